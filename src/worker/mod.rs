//! One worker: a Codex CLI child that speaks the app-server protocol.
//!
//! A runner task owns the child and all that ends it; a [`Worker`] is a handle to it that any number
//! of turns share. [`Worker::spawn`] returns only after `initialize` was answered. A worker ends once
//! (by its own death, by a broken protocol, by [`Worker::kill`]), and then every route to it closes
//! and every pending request fails. An incarnation is never revived: the pool starts another one with
//! a higher generation, so that a late message of a dead one has nowhere to go.

mod complaints;
pub mod mcp;
pub mod ownership;
mod record;
pub mod settings;
mod stderr;
pub mod thread;
mod unowned;

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::app_server::message::{Inbound, Notification, ServerRequest, SkippedLine};
use crate::app_server::peer::{Peer, PeerLimits, RequestError};
use crate::app_server::{decode, method, refusal_text};
use crate::model::event::McpServerStatus;
use crate::model::id::ThreadId;
use crate::process::{self, Pipes, Process, ProcessSpec};
use crate::redact::Redactor;
use crate::worker::mcp::McpServers;
use crate::worker::stderr::StderrTail;

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
    /// The user's `config.toml`, in CODEX_HOME.
    pub config_file: PathBuf,
    /// Looks at the version that the handshake told; the error says what is wrong with it.
    pub check_version: Arc<CheckVersion>,
    /// The binary that guards it, so that nothing of what it starts outlives it; see
    /// [`ProcessSpec::guard`].
    pub guard: Option<PathBuf>,
    /// Values for `-c`.
    pub config_overrides: Vec<String>,
    /// Variables to set for it, or to take out of its environment.
    pub env: Vec<(OsString, Option<OsString>)>,
    /// Texts that must not appear in anything that it says; asked anew for every start.
    pub secrets: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Bounds of the protocol.
    pub peer: PeerLimits,
    /// How long it may take from spawn to the end of the handshake. Default 30 s.
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
    /// What the sidecar saw first: `exit status 1`, `it wrote 1000 lines that …`, `killed: …`.
    pub cause: String,
    /// What it said last on its stderr, oldest first, each line with its time.
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
    /// It told or asked something in a line over the limit, which is gone. What it asked was declined.
    /// A line that may be about this thread or another one comes to all of them, and names none.
    Skipped(Arc<SkippedLine>),
}

/// What the CLI's configuration says where a request says nothing; read once per worker.
#[derive(Debug, Clone, Default)]
pub struct CliDefaults {
    /// The configured part.
    pub config: method::CliConfig,
    /// The model that is used where none is configured.
    pub default_model: Option<String>,
    /// Whether the CLI tells which settings came into force with a turn. Such a CLI has permission
    /// profiles that can be picked by name, too.
    pub tells_settings: bool,
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
    redactor: Redactor,
    // Whether Codex may pursue goals, which lets it take turns by itself.
    may_have_goals: bool,
    defaults: OnceLock<CliDefaults>,
    running_turns: watch::Sender<usize>,
    started_turns: AtomicU64,
    completed_turns: AtomicU64,
    // By id, so that no path that loads or releases twice makes the count drift.
    loaded_threads: Arc<Mutex<HashSet<ThreadId>>>,
    loading: Arc<mcp::Loading>,
    config_fault_at_start: Option<String>,
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
    mcp: McpServers,
    kin: unowned::Kin,
}

impl Routes {
    fn open(mcp: McpServers, kin: unowned::Kin) -> Routes {
        Routes { table: Mutex::new(Some(Table::new())), mcp, kin }
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
    mcp_servers: Vec<McpServerStatus>,
}

impl Route {
    /// What was said of the thread's MCP servers before there was this route, as far as it is new or
    /// bad; once.
    pub fn take_mcp_servers(&mut self) -> Vec<McpServerStatus> {
        std::mem::take(&mut self.mcp_servers)
    }

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

        // Before anything is read: whatever it says may repeat a key.
        let redactor = Redactor::new((spec.secrets)());
        let stdout = redactor.reader(stdout);
        let stderr = redactor.reader(stderr);
        let stderr_tail = Arc::new(StderrTail::default());
        let drained = tokio::spawn({
            let (id, stderr_tail) = (id.clone(), Arc::clone(&stderr_tail));
            async move { stderr::drain(id, stderr, &stderr_tail).await }
        });

        let mcp = McpServers::new(id.clone());
        let (kin, suspects) = unowned::Kin::new();
        let routes = Arc::new(Routes::open(mcp, kin));
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
            redactor,
            may_have_goals: !spec
                .config_overrides
                .iter()
                .any(|value| value == "features.goals=false"),
            defaults: OnceLock::new(),
            running_turns: watch::Sender::new(0),
            started_turns: AtomicU64::new(0),
            completed_turns: AtomicU64::new(0),
            loaded_threads: Arc::default(),
            loading: Arc::default(),
            config_fault_at_start: None,
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
        let (defaults, config_fault) = worker.read_defaults().await;
        let _ = worker.defaults.set(defaults);
        worker.config_fault_at_start = config_fault;
        stderr_tail.note_ready();
        let worker = Arc::new(worker);
        tokio::spawn(unowned::watch(Arc::downgrade(&worker), suspects));
        Ok(worker)
    }

    async fn read_defaults(&self) -> (CliDefaults, Option<String>) {
        /// The worker is up; what it may be slow with (its provider's list of models) must not keep
        /// it from the first turn for long.
        const WITHIN: Duration = Duration::from_secs(5);
        let params = json!({ "includeLayers": false });
        let mut config_fault = None;
        let (read, tells_settings) = tokio::join!(
            self.request_within::<method::ConfigRead>(method::CONFIG_READ, &params, WITHIN),
            self.tells_settings(WITHIN),
        );
        let config = match read {
            Ok(read) => read.config,
            Err(error) => {
                config_fault = fault_of(&error);
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
        (CliDefaults { config, default_model, tells_settings }, config_fault)
    }

    /// Asks for a change of settings of no thread at all: the CLIs that know this request are those
    /// that tell their settings, also when they refuse it.
    async fn tells_settings(&self, within: Duration) -> bool {
        let params = json!({ "threadId": "none" });
        let asked =
            self.request_within::<method::Ignored>(method::SETTINGS_UPDATE, &params, within).await;
        match asked {
            Ok(_) => true,
            Err(RequestError::Server { message, .. }) => {
                !refusal_text::is_unknown_request(&message)
            }
            Err(_) => false,
        }
    }

    /// What was wrong with the user's `config.toml` when it started: it runs without any of it then,
    /// also when the file is mended later.
    pub fn config_fault_at_start(&self) -> Option<&str> {
        self.config_fault_at_start.as_deref()
    }

    /// What is wrong with the user's `config.toml` now; `None` where Codex can read it. A project's own
    /// is not looked at. Takes Codex 1 ms.
    ///
    /// # Errors
    /// See [`RequestError`]; nothing is known then.
    pub async fn config_fault(&self, timeout: Duration) -> Result<Option<String>, RequestError> {
        let params = json!({ "includeLayers": false });
        let read = self.request_within::<method::Ignored>(method::CONFIG_READ, &params, timeout);
        match read.await {
            Ok(_) => Ok(None),
            Err(error) => fault_of(&error).map(Some).ok_or(error),
        }
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

    /// What must not be in anything that it says. Its lines are without it; a text that it tells in
    /// pieces has to be looked at as a whole.
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
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
        let ((), mcp_servers) = self.routes.mcp.hand_over(thread_id, || {
            self.routes.table().as_mut()?.insert(thread_id.to_owned(), sender);
            Some(())
        })?;
        let (thread_id, routes) = (thread_id.to_owned(), Arc::clone(&self.routes));
        Some(Route { thread_id, routes, messages, mcp_servers })
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
            Ok(_)
            | Err(
                RequestError::Server { .. }
                | RequestError::Decode { .. }
                | RequestError::TooLong { .. },
            ) => Ok(()),
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
        self.routes.mcp.forget(thread_id.as_str());
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

/// What is wrong with the configuration, if that is why it could not be read.
fn fault_of(error: &RequestError) -> Option<String> {
    match error {
        RequestError::Server { code, message, .. } => refusal_text::config_fault(*code, message),
        RequestError::Transport { .. }
        | RequestError::Timeout { .. }
        | RequestError::TooLong { .. }
        | RequestError::Decode { .. } => None,
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
            let pass_on = |notification: Notification| {
                let message = ThreadMessage::Notification(notification);
                match routes.get(thread_id) {
                    Some(sender) => sender.send(message).is_ok(),
                    None => {
                        routes.kin.unheard(thread_id, kinship.as_ref(), message);
                        false
                    }
                }
            };
            routes.mcp.hear(thread_id, notification, pass_on);
        }
        Inbound::Skipped(line) => skipped(routes, peer, line),
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

/// Tells whoever a line was for that it is gone: the turns of its thread, or all of them where it names
/// none. A request of Codex is declined, since it waits for an answer.
fn skipped(routes: &Routes, peer: Option<&Peer>, line: Box<SkippedLine>) {
    if let (Some(id), Some(method), Some(peer)) = (&line.id, &line.method, peer) {
        let _ = peer.respond(id, decode::decline(method));
    }
    let line = Arc::<SkippedLine>::from(line);
    if let Some(thread_id) = &line.thread_id {
        if let Some(sender) = routes.get(thread_id) {
            let _ = sender.send(ThreadMessage::Skipped(line));
        }
        return;
    }
    for sender in routes.table().iter().flat_map(Table::values) {
        let _ = sender.send(ThreadMessage::Skipped(Arc::clone(&line)));
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
    let _ = exit.send(Some(Arc::new(WorkerExit { cause, stderr_tail: stderr_tail.last_words() })));
}

/// Whether the machine is out of processes, memory or file descriptors.
pub fn is_out_of_resources(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    exhausted.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
