//! One worker: a conversation with a Codex CLI that speaks the app-server protocol.
//!
//! A runner task owns all that ends it; a [`Worker`] is a handle to it that any number of turns share.
//! [`Worker::start`] runs over any [`Conversation`], and returns only after `initialize` was answered;
//! a child process is one way to get one ([`child`]). A worker ends once (by its own death, by a broken
//! protocol, by [`Worker::kill`]), and then every route to it closes and every pending request fails. An
//! incarnation is never revived: the pool starts another one with a higher generation, so that a late
//! message of a dead one has nowhere to go.

pub(crate) mod child;
mod complaints;
pub(crate) mod conversation;
pub(crate) mod environment;
pub(crate) mod history;
mod login;
pub(crate) mod mcp;
pub(crate) mod ownership;
pub(crate) mod protection;
mod record;
mod route;
mod runner;
pub(crate) mod settings;
mod spec;
mod stderr;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod thread;
mod unowned;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::app_server::client::{CliDefaults, Client, Initialized};
use crate::app_server::message::Call;
use crate::app_server::peer::{Peer, PeerLimits, RequestError};
use crate::app_server::protected::ProtectedPaths;
use crate::model::id::{ThreadId, WorkerId};
use crate::model::question::Answer;
use crate::redact::Redactor;
use crate::worker::conversation::Conversation;
use crate::worker::mcp::McpServers;
use crate::worker::route::Routes;
use crate::worker::runner::{Life, Runner};
use crate::worker::stderr::StderrTail;

pub(crate) use route::{NoRoute, Route, ThreadMessage};
pub(crate) use runner::WorkerExit;
pub(crate) use spec::{SpawnError, WorkerLimits, WorkerSpec};

/// How long the defaults may take. The worker is up; what it may be slow with (its provider's list of
/// models) must not keep it from the first turn for long.
const DEFAULTS: Duration = Duration::from_secs(5);

/// A thread that was used within this time is not idle: one that was just made is about to have its turn.
const SETTLES: Duration = Duration::from_secs(1);

/// So many of the longest lines may wait for the turn that they are for.
const UNREAD_LINES: usize = 8;

/// A handle to one worker.
#[derive(Debug)]
pub(crate) struct Worker {
    id: WorkerId,
    pid: Option<u32>,
    user_agent: String,
    started_at: SystemTime,
    peer: Peer,
    client: Client,
    routes: Arc<Routes>,
    life: Life,
    redactor: Redactor,
    // The longest line that it may tell.
    max_line_bytes: usize,
    // Whether Codex may pursue goals, which lets it take turns by itself.
    may_have_goals: bool,
    defaults: CliDefaults,
    // What the commands of its turns must not write.
    protected: ProtectedPaths,
    // Looks at directories for it that are under way.
    looks: Arc<Semaphore>,
    config_fault_at_start: Option<String>,
    loading: Arc<mcp::Loading>,
}

impl Worker {
    /// Launches a worker and shakes hands with it.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left of a worker that failed.
    pub(crate) async fn spawn(id: WorkerId, spec: &WorkerSpec) -> Result<Arc<Worker>, SpawnError> {
        let conversation = spec.launch.launch(&spec.config_overrides).await?;
        Worker::start(id, conversation, spec).await
    }

    /// Shakes hands with the other side of a conversation.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left of a worker that failed.
    pub(crate) async fn start(
        id: WorkerId,
        conversation: Conversation,
        spec: &WorkerSpec,
    ) -> Result<Arc<Worker>, SpawnError> {
        let started_at = SystemTime::now();
        let Conversation { program, pid, stdin, stdout, stderr, api_key, ending, excluded } =
            conversation;
        // Before anything is read: whatever it says may repeat a key.
        let redactor = Redactor::new((spec.secrets)());
        let stdout = redactor.reader(stdout);
        let stderr = redactor.reader(stderr);
        let stderr_tail = Arc::new(StderrTail::default());
        let drained = tokio::spawn(
            {
                let (id, stderr_tail) = (id.clone(), Arc::clone(&stderr_tail));
                async move { stderr::drain(id, stderr, &stderr_tail).await }
            }
            .in_current_span(),
        );

        let mcp = McpServers::new(id.clone());
        let (kin, suspects) = unowned::Kin::new();
        let PeerLimits { max_line_bytes, max_echo_bytes, .. } = spec.limits.peer;
        let most_unread = UNREAD_LINES * max_line_bytes.max(max_echo_bytes);
        let routes = Arc::new(Routes::open(mcp, kin, most_unread));
        let peer = Peer::start(stdout, stdin, spec.limits.peer.clone(), {
            let routes = Arc::clone(&routes);
            move |peer, inbound| route::route(&routes, peer, inbound)
        });

        let runner = Runner {
            ending,
            peer: peer.clone(),
            routes: Arc::clone(&routes),
            stderr_tail: Arc::clone(&stderr_tail),
            drained,
        };
        let life = runner.start();
        let client = Client::new(peer.clone(), spec.limits.request_timeout).excluding(excluded);
        let Initialized { user_agent } =
            match client.within(spec.limits.start_timeout).initialize().await {
                Ok(initialized) => initialized,
                Err(error) => return Err(handshake_failed(program, &life, error).await),
            };
        if let Err(cause) = (spec.check_version)(version(&user_agent)) {
            life.end("its version is not supported");
            life.exited().await;
            return Err(SpawnError::Version { program, cause });
        }
        if let Some(key) = api_key {
            let logging_in = client.within(spec.limits.start_timeout);
            if let Err(error) = login::log_in(&id, &logging_in, &key).await {
                return Err(handshake_failed(program, &life, error).await);
            }
        }
        let protected = spec.protected.find().with_cli(protection::keeps(version(&user_agent)));
        let (defaults, config_fault_at_start) = client.within(DEFAULTS).defaults().await;
        stderr_tail.note_ready();
        let has_no_goals = |value: &String| value == "features.goals=false";
        let worker = Arc::new(Worker {
            id,
            pid,
            user_agent,
            started_at,
            peer,
            client,
            routes,
            life,
            redactor,
            max_line_bytes,
            may_have_goals: !spec.config_overrides.iter().any(has_no_goals),
            defaults,
            protected,
            looks: Arc::new(Semaphore::new(protection::MOST_LOOKS)),
            config_fault_at_start,
            loading: Arc::default(),
        });
        tokio::spawn(unowned::watch(Arc::downgrade(&worker), suspects).in_current_span());
        Ok(worker)
    }

    /// What was wrong with the user's `config.toml` when it started: it runs without any of it then,
    /// also when the file is mended later.
    pub(crate) fn config_fault_at_start(&self) -> Option<&str> {
        self.config_fault_at_start.as_deref()
    }

    /// What is wrong with the user's `config.toml` now; `None` where Codex can read it. A project's own
    /// is not looked at. Takes Codex 1 ms.
    ///
    /// # Errors
    /// See [`RequestError`]; nothing is known then.
    pub(crate) async fn config_fault(
        &self,
        timeout: Duration,
    ) -> Result<Option<String>, RequestError> {
        self.client.within(timeout).config_fault().await
    }

    /// Which worker, and which incarnation of it.
    pub(crate) fn id(&self) -> &WorkerId {
        &self.id
    }

    /// The operating system's id of it, where it is a process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// What it said of itself in the handshake: `codex_sidecar/0.169.0 (…)`.
    pub(crate) fn user_agent(&self) -> &str {
        &self.user_agent
    }

    /// The CLI's version, as the handshake told it.
    pub(crate) fn cli_version(&self) -> &str {
        version(&self.user_agent)
    }

    /// When it was started.
    pub(crate) fn started_at(&self) -> SystemTime {
        self.started_at
    }

    /// What the CLI's configuration says where a request says nothing.
    pub(crate) fn defaults(&self) -> &CliDefaults {
        &self.defaults
    }

    /// What must not be in anything that it says. Its lines are without it; a text that it tells in
    /// pieces has to be looked at as a whole.
    pub(crate) fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// What the commands of its turns must not write.
    pub(crate) fn protected(&self) -> &ProtectedPaths {
        &self.protected
    }

    /// The longest line that is read of it, in bytes.
    pub(crate) fn max_line_bytes(&self) -> usize {
        self.max_line_bytes
    }

    /// Says no to a request of the worker. A worker that is gone needs no answer.
    pub(crate) fn decline(&self, call: &Call) {
        if let Err(error) = self.peer.decline(call) {
            tracing::debug!(worker = %self.id, %error, "an answer could not be written");
        }
    }

    /// Answers a request of the worker. A worker that is gone needs no answer.
    pub(crate) fn answer(&self, call: &Call, answer: &Answer) {
        if let Err(error) = self.peer.answer(call, answer) {
            tracing::debug!(worker = %self.id, %error, "an answer could not be written");
        }
    }

    /// What it says about a thread from now on.
    ///
    /// # Errors
    /// [`NoRoute`].
    pub(crate) fn route(&self, thread_id: &str) -> Result<Route, NoRoute> {
        self.routes.listen(thread_id)
    }

    /// Whether a turn of ours listens to what it says of a thread.
    fn is_heard(&self, thread_id: &str) -> bool {
        self.routes.is_heard(thread_id)
    }

    fn forward_held(&self) {
        self.routes.forward_held();
    }

    fn kin(&self) -> &unowned::Kin {
        &self.routes.kin
    }

    /// Waits for its end.
    pub(crate) async fn exited(&self) -> Arc<WorkerExit> {
        self.life.exited().await
    }

    /// Whether it still runs, as far as the sidecar knows.
    pub(crate) fn is_alive(&self) -> bool {
        !self.life.is_over() && self.peer.close_cause().is_none()
    }

    /// Ends it with all that it started. The cause is told to whoever has a turn on it.
    pub(crate) fn kill(&self, cause: impl Into<String>) {
        self.life.end(cause);
    }

    /// Asks for the cheapest thing that goes through Codex's own queue.
    ///
    /// # Errors
    /// See [`RequestError`]; any answer at all, also an error, is a sign of life.
    pub(crate) async fn ping(&self, timeout: Duration) -> Result<(), RequestError> {
        self.client.within(timeout).ping().await
    }

    /// How long ago it last said anything.
    pub(crate) fn silence(&self) -> Duration {
        self.peer.silence()
    }

    /// How many threads it holds.
    pub(crate) fn loaded_threads(&self) -> usize {
        self.loaded().len()
    }

    /// The threads that it has held for a moment and no turn listens to, the one that was used longest ago first.
    pub(crate) fn idle_threads(&self) -> Vec<ThreadId> {
        let mut idle: Vec<(Instant, ThreadId)> = self
            .loaded()
            .iter()
            .map(|(thread_id, used_at)| (*used_at, thread_id.clone()))
            .collect();
        idle.retain(|(used_at, thread_id)| {
            used_at.elapsed() >= SETTLES && !self.routes.is_taken(thread_id.as_str())
        });
        idle.sort_by_key(|(used_at, _)| *used_at);
        idle.into_iter().map(|(_, thread_id)| thread_id).collect()
    }

    /// Whether it holds this thread.
    pub(crate) fn holds_thread(&self, thread_id: &ThreadId) -> bool {
        self.loaded().contains_key(thread_id)
    }

    /// Notes that a thread was loaded into it.
    pub(crate) fn note_thread_loaded(&self, thread_id: &ThreadId) {
        self.loaded().insert(thread_id.clone(), Instant::now());
    }

    /// Notes that a thread was released from it.
    pub(crate) fn note_thread_released(&self, thread_id: &ThreadId) {
        self.loaded().remove(thread_id);
        self.routes.mcp.forget(thread_id.as_str());
    }

    fn loaded(&self) -> MutexGuard<'_, HashMap<ThreadId, Instant>> {
        self.routes.loaded()
    }
}

/// Ends a worker that failed while it was started.
async fn handshake_failed(program: PathBuf, life: &Life, error: RequestError) -> SpawnError {
    life.end("the handshake failed");
    let WorkerExit { cause, stderr_tail } = (*life.exited().await).clone();
    let cause = match error {
        // The worker's own end explains more than the failed request.
        RequestError::Transport { .. } => cause,
        other => other.to_string(),
    };
    SpawnError::Handshake { program, cause, stderr_tail }
}

/// The version in what a CLI says of itself.
fn version(user_agent: &str) -> &str {
    let (_, version) = user_agent.split_once('/').unwrap_or(("", ""));
    version.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
