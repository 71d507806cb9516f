//! One worker: a Codex CLI child that speaks the app-server protocol.
//!
//! A runner task owns the child and all that ends it; a [`Worker`] is a handle to it that any number
//! of turns share. [`Worker::spawn`] returns only after `initialize` was answered. A worker ends once
//! (by its own death, by a broken protocol, by [`Worker::kill`]), and then every route to it closes
//! and every pending request fails. An incarnation is never revived: the pool starts another one with
//! a higher generation, so that a late message of a dead one has nowhere to go.

pub mod ownership;
pub mod thread;
mod unowned;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::app_server::message::{Inbound, Notification, ServerRequest};
use crate::app_server::peer::{Peer, PeerLimits, RequestError};
use crate::app_server::{decode, method};
use crate::process::{self, Pipes, Process, ProcessSpec};
use crate::turn::request::ThreadId;

/// Says of a version what is wrong with it.
pub type CheckVersion = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// How to start a worker.
#[derive(Clone)]
pub struct WorkerSpec {
    /// Finds the native CLI; asked anew for every start, so that a CLI that is installed later is
    /// found then. The error says what was looked for, where, and what to do.
    pub locate: Arc<dyn Fn() -> Result<PathBuf, String> + Send + Sync>,
    /// Looks whether CODEX_HOME can be written, before a start and now and then; may block. The error
    /// says what is wrong with it, and what to do.
    pub check_home: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// Looks at the version that the handshake told; the error says what is wrong with it.
    pub check_version: Arc<CheckVersion>,
    /// The binary that guards it, so that nothing of what it starts outlives it; see
    /// [`ProcessSpec::guard`].
    pub guard: Option<PathBuf>,
    /// Values for `-c`.
    pub config_overrides: Vec<String>,
    /// Variables to set for it, or to take out of its environment.
    pub env: Vec<(OsString, Option<OsString>)>,
    /// Texts that must not appear in what is kept of its stderr.
    pub secrets: Vec<String>,
    /// Bounds.
    pub limits: WorkerLimits,
}

impl std::fmt::Debug for WorkerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither values nor variables: they may be secrets.
        f.debug_struct("WorkerSpec").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Bounds of one worker.
#[derive(Debug, Clone)]
pub struct WorkerLimits {
    /// Bounds of the protocol.
    pub peer: PeerLimits,
    /// How long it may take from spawn to the end of the handshake.
    pub start_timeout: Duration,
    /// How long any request but a turn may take.
    pub request_timeout: Duration,
}

impl Default for WorkerLimits {
    fn default() -> WorkerLimits {
        WorkerLimits {
            peer: PeerLimits::default(),
            start_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Which worker, and which incarnation of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkerId {
    /// The worker's place in the pool, from 0.
    pub slot: usize,
    /// 1, 2, 3… for each incarnation in that place.
    pub generation: u64,
}

impl WorkerId {
    /// The name of its place, which outlives the incarnation: `w0`.
    pub fn place(&self) -> String {
        format!("w{}", self.slot)
    }
}

impl std::fmt::Display for WorkerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "w{}.{}", self.slot, self.generation)
    }
}

/// Why a worker could not be started.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpawnError {
    /// There is no CLI to start.
    #[error("{0}")]
    NotFound(String),
    /// The operating system refused.
    #[error("{} could not be started: {cause}", .program.display())]
    Os {
        /// The program.
        program: PathBuf,
        /// What the system said.
        cause: String,
        /// Whether the machine is out of processes, memory or file descriptors.
        out_of_resources: bool,
    },
    /// Its version is none that the sidecar can work with.
    #[error("{} can't be used: {cause}", .program.display())]
    Version {
        /// The program.
        program: PathBuf,
        /// Which version it is, and which are supported.
        cause: String,
    },
    /// It started, but the handshake failed.
    #[error("{} started, but did not become an app-server: {cause}{}", .program.display(), tail(.stderr_tail))]
    Handshake {
        /// The program.
        program: PathBuf,
        /// What happened.
        cause: String,
        /// The last lines that it complained.
        stderr_tail: Vec<String>,
    },
}

/// How a worker ended.
#[derive(Debug, Clone)]
pub struct WorkerExit {
    /// What the sidecar saw first: `exit status 1`, `it wrote a line longer than …`, `killed: …`.
    pub cause: String,
    /// The last lines of its stderr, oldest first.
    pub stderr_tail: Vec<String>,
}

impl std::fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.cause, tail(&self.stderr_tail))
    }
}

fn tail(lines: &[String]) -> String {
    if lines.is_empty() {
        String::new()
    } else {
        format!("; its last words: {}", lines.join(" | "))
    }
}

/// What a worker says about one thread.
#[derive(Debug)]
pub enum ThreadMessage {
    /// It tells.
    Notification(Notification),
    /// It asks; [`Worker::answer`] must be called.
    Request(ServerRequest),
}

/// What the CLI's configuration says where a request says nothing; read once per worker.
#[derive(Debug, Clone, Default)]
pub struct CliDefaults {
    /// The configured part.
    pub config: method::CliConfig,
    /// The model that is used where none is configured.
    pub default_model: Option<String>,
}

/// A handle to one worker.
#[derive(Debug)]
pub struct Worker {
    id: WorkerId,
    pid: u32,
    user_agent: String,
    started_at: SystemTime,
    peer: Peer,
    routes: Arc<Routes>,
    exit: watch::Receiver<Option<Arc<WorkerExit>>>,
    killed: Kill,
    request_timeout: Duration,
    // Whether Codex may pursue goals, which lets it take turns by itself.
    may_have_goals: bool,
    defaults: OnceLock<CliDefaults>,
    running_turns: watch::Sender<usize>,
    started_turns: AtomicU64,
    completed_turns: AtomicU64,
    // By id, so that no path that loads or releases twice makes the count drift.
    loaded_threads: Mutex<HashSet<ThreadId>>,
}

#[derive(Debug, Clone, Default)]
struct Kill {
    token: CancellationToken,
    cause: Arc<OnceLock<String>>,
}

type Table = HashMap<String, mpsc::UnboundedSender<ThreadMessage>>;

#[derive(Debug)]
struct Routes {
    // `None` once the worker has ended: no route can be made any more.
    table: Mutex<Option<Table>>,
    kin: unowned::Kin,
}

impl Routes {
    fn open(kin: unowned::Kin) -> Routes {
        Routes { table: Mutex::new(Some(Table::new())), kin }
    }

    fn table(&self) -> MutexGuard<'_, Option<Table>> {
        // A panic elsewhere can't leave the map half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where messages of a thread go: to the turn on it, else to that on the nearest thread that it
    /// descends from.
    fn get(&self, thread_id: &str) -> Option<mpsc::UnboundedSender<ThreadMessage>> {
        let table = self.table();
        let table = table.as_ref()?;
        let own = table.get(thread_id).cloned();
        own.or_else(|| {
            let ownership = self.kin.ownership();
            ownership.ancestors(thread_id).find_map(|elder| table.get(elder).cloned())
        })
    }

    /// Passes on what is held of threads that somebody listens to by now.
    fn forward_held(&self) {
        for (thread_id, messages) in self.kin.take_heard(|thread_id| self.get(thread_id).is_some())
        {
            let Some(sender) = self.get(&thread_id) else { continue };
            for message in messages {
                let _ = sender.send(message);
            }
        }
    }
}

/// What a worker says about one thread, as long as it is held. Ends when the worker ends.
///
/// The queue is unbounded on purpose: its reader is the engine, which only files what it reads into
/// a bounded log, and a bounded queue here would let one slow turn block all others of the worker.
#[derive(Debug)]
pub struct Route {
    thread_id: String,
    routes: Arc<Routes>,
    messages: mpsc::UnboundedReceiver<ThreadMessage>,
}

impl Route {
    /// The next message; `None` once the worker has ended.
    pub async fn recv(&mut self) -> Option<ThreadMessage> {
        self.messages.recv().await
    }

    /// The next message, if one is here already.
    pub fn try_recv(&mut self) -> Option<ThreadMessage> {
        self.messages.try_recv().ok()
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if let Some(table) = self.routes.table().as_mut() {
            table.remove(&self.thread_id);
        }
        self.routes.kin.unheard_from_now_on(&self.thread_id);
    }
}

impl Worker {
    /// Starts a worker and shakes hands with it.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left of a worker that failed.
    pub async fn spawn(id: WorkerId, spec: &WorkerSpec) -> Result<Arc<Worker>, SpawnError> {
        let mut args: Vec<OsString> = vec!["app-server".into()];
        for value in &spec.config_overrides {
            args.extend(["-c".into(), value.into()]);
        }
        let program = (spec.locate)().map_err(SpawnError::NotFound)?;
        let process_spec = ProcessSpec {
            program: program.clone(),
            args,
            env: spec.env.clone(),
            current_dir: None,
            guard: spec.guard.clone(),
        };
        let (process, Pipes { stdin, stdout, stderr }) =
            Process::spawn(process_spec).await.map_err(|error| SpawnError::Os {
                program: program.clone(),
                out_of_resources: is_out_of_resources(&error),
                cause: error.to_string(),
            })?;
        let pid = process.pid();

        let stderr_tail = Arc::new(StderrTail::new(spec.secrets.clone()));
        let drained = tokio::spawn(drain_stderr(id.clone(), stderr, Arc::clone(&stderr_tail)));

        let (kin, suspects) = unowned::Kin::new();
        let routes = Arc::new(Routes::open(kin));
        let unanswered = Arc::new(OnceLock::<Peer>::new());
        let peer = Peer::start(stdout, stdin, spec.limits.peer.clone(), {
            let (routes, unanswered) = (Arc::clone(&routes), Arc::clone(&unanswered));
            move |inbound| route(&routes, unanswered.get(), inbound)
        });
        let _ = unanswered.set(peer.clone());

        let killed = Kill::default();
        let (exit_sender, exit) = watch::channel(None);
        tokio::spawn(run(
            process,
            peer.clone(),
            killed.clone(),
            Arc::clone(&routes),
            Arc::clone(&stderr_tail),
            drained,
            exit_sender,
        ));

        let handshake = async {
            let initialized: method::Initialized = peer
                .request(
                    method::INITIALIZE,
                    &method::initialize_params(),
                    spec.limits.start_timeout,
                )
                .await?;
            peer.notify(method::INITIALIZED)?;
            Ok::<_, RequestError>(initialized)
        };
        let mut worker = Worker {
            id,
            pid,
            user_agent: String::new(),
            started_at: SystemTime::now(),
            peer: peer.clone(),
            routes,
            exit,
            killed,
            request_timeout: spec.limits.request_timeout,
            may_have_goals: !spec
                .config_overrides
                .iter()
                .any(|value| value == "features.goals=false"),
            defaults: OnceLock::new(),
            running_turns: watch::Sender::new(0),
            started_turns: AtomicU64::new(0),
            completed_turns: AtomicU64::new(0),
            loaded_threads: Mutex::default(),
        };
        match handshake.await {
            Ok(initialized) => worker.user_agent = initialized.user_agent,
            Err(error) => {
                worker.kill("the handshake failed");
                let exit = worker.exited().await;
                // Its own end explains more than our failed request.
                let cause = match error {
                    RequestError::Transport { .. } => exit.cause.clone(),
                    other => other.to_string(),
                };
                let stderr_tail = exit.stderr_tail.clone();
                return Err(SpawnError::Handshake { program, cause, stderr_tail });
            }
        }
        if let Err(cause) = (spec.check_version)(worker.cli_version()) {
            worker.kill("its version is not supported");
            worker.exited().await;
            return Err(SpawnError::Version { program, cause });
        }
        let defaults = worker.read_defaults().await;
        let _ = worker.defaults.set(defaults);
        let worker = Arc::new(worker);
        tokio::spawn(unowned::watch(Arc::downgrade(&worker), suspects));
        Ok(worker)
    }

    async fn read_defaults(&self) -> CliDefaults {
        /// The worker is up; what it may be slow with (its provider's list of models) must not keep
        /// it from the first turn for long.
        const WITHIN: Duration = Duration::from_secs(5);
        let params = json!({ "includeLayers": false });
        let read =
            self.request_within::<method::ConfigRead>(method::CONFIG_READ, &params, WITHIN).await;
        let config = match read {
            Ok(read) => read.config,
            Err(error) => {
                // An old CLI without it: `thread/start` still tells the defaults of new threads.
                tracing::debug!(worker = %self.id, %error, "the CLI's configuration can't be read");
                method::CliConfig::default()
            }
        };
        let default_model = match &config.model {
            Some(model) => Some(model.clone()),
            None => self
                .request_within::<method::ModelList>(method::MODEL_LIST, &json!({}), WITHIN)
                .await
                .ok()
                .and_then(|list| list.data.into_iter().find(|model| model.is_default))
                .map(|model| model.model),
        };
        CliDefaults { config, default_model }
    }

    /// Which worker, and which incarnation of it.
    pub fn id(&self) -> &WorkerId {
        &self.id
    }

    /// The operating system's id of it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What it said of itself in the handshake: `codex_sidecar/0.169.0 (…)`.
    pub fn user_agent(&self) -> &str {
        &self.user_agent
    }

    /// The CLI's version, as the handshake told it.
    pub fn cli_version(&self) -> &str {
        let (_, version) = self.user_agent.split_once('/').unwrap_or(("", ""));
        version.split_whitespace().next().unwrap_or_default()
    }

    /// When it was started.
    pub fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// What the CLI's configuration says where a request says nothing.
    pub fn defaults(&self) -> CliDefaults {
        self.defaults.get().cloned().unwrap_or_default()
    }

    /// Asks it something.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn request<A: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
    ) -> Result<A, RequestError> {
        self.request_within(method, params, self.request_timeout).await
    }

    /// Asks it something, with a time of its own for the answer.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn request_within<A: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, RequestError> {
        self.peer.request(method, params, timeout).await
    }

    /// Answers a request of the worker. A worker that is gone needs no answer.
    pub fn answer(
        &self,
        id: &serde_json::Value,
        answer: Result<serde_json::Value, crate::app_server::message::RpcError>,
    ) {
        if let Err(error) = self.peer.respond(id, answer) {
            tracing::debug!(worker = %self.id, %error, "an answer could not be written");
        }
    }

    /// What it says about a thread from now on. `None` once it has ended. A second route of the
    /// same thread takes the place of the first.
    pub fn route(&self, thread_id: &str) -> Option<Route> {
        let (sender, messages) = mpsc::unbounded_channel();
        self.routes.table().as_mut()?.insert(thread_id.to_owned(), sender);
        Some(Route { thread_id: thread_id.to_owned(), routes: Arc::clone(&self.routes), messages })
    }

    /// Whether a turn of ours listens to what it says of a thread.
    fn is_heard(&self, thread_id: &str) -> bool {
        self.routes.get(thread_id).is_some()
    }

    fn forward_held(&self) {
        self.routes.forward_held();
    }

    fn kin(&self) -> &unowned::Kin {
        &self.routes.kin
    }

    /// Waits for its end.
    pub async fn exited(&self) -> Arc<WorkerExit> {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(lost_runner),
            Err(_) => lost_runner(),
        }
    }

    /// Whether it still runs, as far as the sidecar knows.
    pub fn is_alive(&self) -> bool {
        self.exit.borrow().is_none() && self.peer.close_cause().is_none()
    }

    /// Kills it with all that it started. The cause is told to whoever has a turn on it.
    pub fn kill(&self, cause: impl Into<String>) {
        let _ = self.killed.cause.set(cause.into());
        self.killed.token.cancel();
    }

    /// Asks for the cheapest thing that goes through Codex's own queue.
    ///
    /// # Errors
    /// See [`RequestError`]; any answer at all, also an error, is a sign of life.
    pub async fn ping(&self, timeout: Duration) -> Result<(), RequestError> {
        let pong = self
            .request_within::<method::Ignored>(method::THREAD_LOADED_LIST, &json!({}), timeout)
            .await;
        match pong {
            Ok(_) | Err(RequestError::Server { .. } | RequestError::Decode { .. }) => Ok(()),
            Err(error @ (RequestError::Transport { .. } | RequestError::Timeout { .. })) => {
                Err(error)
            }
        }
    }

    /// How long ago it last said anything.
    pub fn silence(&self) -> Duration {
        self.peer.silence()
    }

    /// How many turns run on it.
    pub fn running_turns(&self) -> usize {
        *self.running_turns.borrow()
    }

    /// Waits until no turn runs on it.
    pub async fn idle(&self) {
        let mut running = self.running_turns.subscribe();
        // The sender lives as long as the worker.
        let _ = running.wait_for(|running| *running == 0).await;
    }

    /// How many turns Codex ended on it, well or badly: a worker that did that works.
    pub fn completed_turns(&self) -> u64 {
        self.completed_turns.load(Ordering::Relaxed)
    }

    pub(crate) fn note_turn_completed(&self) {
        self.completed_turns.fetch_add(1, Ordering::Relaxed);
    }

    /// How many turns it was given since its start.
    pub fn started_turns(&self) -> u64 {
        self.started_turns.load(Ordering::Relaxed)
    }

    /// How many threads it holds.
    pub fn loaded_threads(&self) -> usize {
        self.loaded().len()
    }

    /// Whether it holds this thread.
    pub fn holds_thread(&self, thread_id: &ThreadId) -> bool {
        self.loaded().contains(thread_id)
    }

    /// Notes that a thread was loaded into it.
    pub fn note_thread_loaded(&self, thread_id: &ThreadId) {
        self.loaded().insert(thread_id.clone());
    }

    /// Notes that a thread was released from it.
    pub fn note_thread_released(&self, thread_id: &ThreadId) {
        self.loaded().remove(thread_id);
    }

    fn loaded(&self) -> MutexGuard<'_, HashSet<ThreadId>> {
        // A panic elsewhere can't leave the set half changed.
        self.loaded_threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin_turn(&self) {
        self.running_turns.send_modify(|running| *running += 1);
        self.started_turns.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end_turn(&self) {
        self.running_turns.send_modify(|running| *running = running.saturating_sub(1));
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill("nobody needs it any more");
    }
}

fn lost_runner() -> Arc<WorkerExit> {
    Arc::new(WorkerExit { cause: "its supervision ended".to_owned(), stderr_tail: Vec::new() })
}

fn route(routes: &Routes, peer: Option<&Peer>, inbound: Inbound) {
    match inbound {
        Inbound::Notification(notification) => {
            let scope = decode::scope(&notification.params);
            let kinship = decode::kinship(&notification);
            if let Some(kinship) = &kinship {
                routes.kin.observe(kinship);
                // It may have told whose a thread is.
                routes.forward_held();
            }
            let Some(thread_id) = scope.thread_id.as_deref() else {
                tracing::trace!(method = notification.method, "a notification of no thread");
                return;
            };
            let message = ThreadMessage::Notification(notification);
            match routes.get(thread_id) {
                Some(sender) => drop(sender.send(message)),
                None => routes.kin.unheard(thread_id, kinship.as_ref(), message),
            }
        }
        Inbound::Request(request) => {
            let scope = decode::scope(&request.params);
            let unclaimed = match scope.thread_id.as_deref().and_then(|id| routes.get(id)) {
                Some(sender) => {
                    sender.send(ThreadMessage::Request(request)).err().map(|error| error.0)
                }
                None => Some(ThreadMessage::Request(request)),
            };
            // A request without an answer would hang Codex for ever.
            if let (Some(ThreadMessage::Request(request)), Some(peer)) = (unclaimed, peer) {
                tracing::debug!(
                    method = request.method,
                    "declined a request that no turn is waiting for"
                );
                let _ = peer.respond(&request.id, decode::decline(&request.method));
            }
        }
    }
}

async fn run(
    mut process: Process,
    peer: Peer,
    killed: Kill,
    routes: Arc<Routes>,
    stderr_tail: Arc<StderrTail>,
    drained: tokio::task::JoinHandle<()>,
    exit: watch::Sender<Option<Arc<WorkerExit>>>,
) {
    let cause = tokio::select! {
        biased;
        // First: who orders its end knows best why it ends.
        () = killed.token.cancelled() => {
            let cause = killed.cause.get().map_or("", String::as_str);
            format!("killed: {cause}")
        }
        // Above the broken pipe: an exit already seen explains it.
        status = process.exited() => match status {
            Ok(status) => process::describe(status),
            Err(error) => format!("its end can't be waited for: {error}"),
        },
        cause = peer.closed() => {
            // Most often the pipe breaks a moment before the exit can be seen.
            match tokio::time::timeout(Duration::from_millis(200), process.exited()).await {
                Ok(Ok(status)) => process::describe(status),
                Ok(Err(_)) | Err(_) => cause,
            }
        }
    };
    let cause = match peer.misconduct() {
        Some(misconduct) if !killed.token.is_cancelled() => misconduct.to_owned(),
        _ => cause,
    };
    peer.close(cause.clone());
    // No route can be made from now on, and those that are end after what they hold already.
    *routes.table() = None;
    // Also what the worker started and left behind.
    process.kill();
    let _ = process.wait().await;
    // A descendant may still hold the pipe open.
    let _ = tokio::time::timeout(Duration::from_millis(200), drained).await;
    let _ = exit.send(Some(Arc::new(WorkerExit { cause, stderr_tail: stderr_tail.lines() })));
}

/// The last lines of a worker's stderr.
#[derive(Debug)]
struct StderrTail {
    lines: Mutex<VecDeque<String>>,
    secrets: Vec<String>,
}

impl StderrTail {
    const LINES: usize = 12;
    const LINE_BYTES: usize = 512;

    fn new(secrets: Vec<String>) -> StderrTail {
        StderrTail { lines: Mutex::default(), secrets }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Takes a line in; returns what is kept of it.
    fn push(&self, line: &[u8]) -> Option<String> {
        let mut line = without_escapes(&String::from_utf8_lossy(line));
        for secret in self.secrets.iter().filter(|secret| !secret.is_empty()) {
            line = line.replace(secret.as_str(), "[redacted]");
        }
        let line = line.trim();
        if line.is_empty() {
            return None;
        }
        let mut end = line.len().min(Self::LINE_BYTES);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        let line = line[..end].to_owned();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == Self::LINES {
            lines.pop_front();
        }
        lines.push_back(line.clone());
        Some(line)
    }
}

/// The text without the colours that Codex's log writes even into a pipe.
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            let mut sequence = characters.by_ref().skip_while(|c| *c == '[');
            let _ = sequence.find(char::is_ascii_alphabetic);
        } else if !character.is_control() || character == '\t' {
            plain.push(character);
        }
    }
    plain
}

async fn drain_stderr(id: WorkerId, mut stderr: impl AsyncRead + Unpin, tail: Arc<StderrTail>) {
    // A line is kept only as far as it is shown; the rest of it is read and dropped.
    const KEPT: usize = 4096;
    const LOGGED_PER_SECOND: u32 = 5;
    let mut buffer = vec![0; 16 * 1024];
    let mut line = Vec::new();
    let mut window = (tokio::time::Instant::now(), 0_u32);
    let mut take = |line: &[u8]| {
        let Some(text) = tail.push(line) else { return };
        if window.0.elapsed() >= Duration::from_secs(1) {
            if window.1 > LOGGED_PER_SECOND {
                let suppressed = window.1 - LOGGED_PER_SECOND;
                tracing::info!(worker = %id, suppressed, "more lines on the worker's stderr");
            }
            window = (tokio::time::Instant::now(), 0);
        }
        window.1 = window.1.saturating_add(1);
        if window.1 <= LOGGED_PER_SECOND {
            tracing::info!(worker = %id, stderr = text, "the worker complains");
        }
    };
    loop {
        let read = match stderr.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        for &byte in &buffer[..read] {
            if byte == b'\n' {
                take(&line);
                line.clear();
            } else if line.len() < KEPT {
                line.push(byte);
            }
        }
    }
    take(&line);
}

/// Whether the machine is out of processes, memory or file descriptors.
pub fn is_out_of_resources(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    exhausted.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_stderr_is_bounded_plain_and_without_secrets() {
        let tail = StderrTail::new(vec!["sk-canary".to_owned()]);
        for number in 0..100 {
            tail.push(format!("\u{1b}[31mERROR\u{1b}[0m line {number} sk-canary ✓").as_bytes());
        }
        tail.push("✓".repeat(1000).as_bytes());
        tail.push(b" \x1b[0m ");
        let lines = tail.lines();
        assert_eq!(lines.len(), StderrTail::LINES);
        assert_eq!(lines[lines.len() - 2], "ERROR line 99 [redacted] ✓");
        assert!(lines[lines.len() - 1].len() <= StderrTail::LINE_BYTES);
    }
}
