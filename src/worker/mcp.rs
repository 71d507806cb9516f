//! The MCP servers of a worker's threads: what Codex tells of them, how those that have ended are
//! found and started again, and threads that are loaded for as long as their servers may take.
//!
//! Codex tells of a thread's servers right after it answered that the thread is loaded, when no turn
//! may listen yet: `McpServers` keeps what it says until one does. The table holds the threads that
//! the worker has loaded, sub-agents' too, and forgets each when Codex has closed it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::app_server::client::{LoadOptions, LoadThread, ThreadOpened};
use crate::app_server::decode::News;
use crate::app_server::mcp::{self, ServerStatus};
use crate::app_server::message::Told;
use crate::app_server::peer::RequestError;
use crate::model::event::{McpServerState, McpServerStatus};
use crate::model::id::ThreadId;
use crate::model::options::ThreadOptions;
use crate::worker::{Worker, WorkerId};

/// A server that took longer than this to fail, or that needs a login, is not tried again before
/// every turn: each would pay for it.
const SLOW_FAILURE: Duration = Duration::from_secs(2);

/// After what time such a server is tried again.
const SLOW_FAILURE_PAUSE: Duration = Duration::from_secs(60);

/// How long a turn waits for a server that is tried again and that it can be without: as long as
/// Codex lets the first turn of a thread wait for it.
const OPTIONAL_START: Duration = Duration::from_secs(1);

/// How long the look at a server may take. One that takes longer is left alone.
const LOOK: Duration = Duration::from_secs(2);

/// How long the configuration may take to be read, which takes Codex a few milliseconds.
const CONFIG: Duration = Duration::from_secs(5);

/// How long an answer is awaited that its caller has given up.
const LATE: Duration = Duration::from_secs(3600);

/// The servers of a worker's threads.
#[derive(Debug)]
pub(super) struct McpServers {
    worker: WorkerId,
    threads: Mutex<HashMap<String, Thread>>,
}

type Thread = BTreeMap<String, Server>;

#[derive(Debug)]
struct Server {
    status: McpServerStatus,
    // Whether a turn was told of this status.
    is_told: bool,
    changed_at: Instant,
    // How long its last start took until it had failed.
    failed_after: Duration,
    // Reached through HTTP: it has no process that could end, and a look at it may ask it for its
    // kind of login.
    is_remote: bool,
}

/// Why a server is looked at before a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// It was ready when last heard of.
    MayHaveEnded,
    /// It did not start.
    Failed,
}

impl Server {
    fn new(status: McpServerStatus) -> Server {
        Server {
            status,
            is_told: false,
            changed_at: Instant::now(),
            failed_after: Duration::ZERO,
            is_remote: false,
        }
    }

    fn become_status(&mut self, status: McpServerStatus) {
        if status.state() == McpServerState::Failed {
            self.failed_after = match self.status.state() {
                McpServerState::Starting => self.changed_at.elapsed(),
                McpServerState::Ready
                | McpServerState::Failed
                | McpServerState::Cancelled
                | McpServerState::Unspecified => Duration::ZERO,
            };
        }
        self.status = status;
        self.changed_at = Instant::now();
        self.is_told = false;
    }

    fn suspicion(&self) -> Option<Suspicion> {
        match self.status.state() {
            McpServerState::Ready => (!self.is_remote).then_some(Suspicion::MayHaveEnded),
            McpServerState::Failed | McpServerState::Cancelled => {
                let may_be_tried = self.failed_after < SLOW_FAILURE
                    || self.changed_at.elapsed() >= SLOW_FAILURE_PAUSE;
                may_be_tried.then_some(Suspicion::Failed)
            }
            McpServerState::Starting | McpServerState::Unspecified => None,
        }
    }
}

impl McpServers {
    pub(super) fn new(worker: WorkerId) -> McpServers {
        McpServers { worker, threads: Mutex::default() }
    }

    fn threads(&self) -> MutexGuard<'_, HashMap<String, Thread>> {
        // A panic elsewhere can't leave the map half changed.
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what is told of a thread's servers, and says whether there is anything in it to pass
    /// on. `pass_on` does that, and says whether a turn listens; the one and the other are one step, so
    /// that no status is told twice or not at all.
    pub(super) fn hear(&self, told: Told, pass_on: impl FnOnce(Told) -> bool) {
        let (thread_id, status, needs_login) = match (&told.scope.thread_id, &told.news) {
            (Some(thread_id), News::McpServer { status, needs_login }) => {
                (thread_id.clone(), status.clone(), *needs_login)
            }
            (thread_id, news) => {
                if let (Some(thread_id), News::ThreadUnloaded) = (thread_id, news) {
                    self.forget(thread_id);
                }
                pass_on(told);
                return;
            }
        };
        let mut threads = self.threads();
        if !threads.contains_key(&thread_id) {
            if matches!(status.state(), McpServerState::Ready | McpServerState::Cancelled) {
                // The last words of a thread that was let go while its servers started.
                return;
            }
            threads.insert(thread_id.clone(), Thread::new());
        }
        let Some(servers) = threads.get_mut(&thread_id) else { return };
        let name = status.server.clone();
        if !self.note(&thread_id, servers, status) {
            // Codex repeats itself when it looks at its servers anew.
            return;
        }
        let is_told = pass_on(told);
        if let Some(server) = servers.get_mut(&name) {
            server.is_told = is_told;
            if needs_login {
                server.failed_after = SLOW_FAILURE;
            }
        }
    }

    /// Files a status; returns whether it is news.
    fn note(&self, thread_id: &str, servers: &mut Thread, status: McpServerStatus) -> bool {
        if servers.get(&status.server).is_some_and(|known| known.status == status) {
            return false;
        }
        if status.state() == McpServerState::Failed {
            let McpServerStatus { server, state: _, error } = &status;
            let worker = &self.worker;
            tracing::warn!(%worker, thread_id, server, error, "an MCP server is not there");
        }
        match servers.get_mut(&status.server) {
            Some(known) => known.become_status(status),
            None => drop(servers.insert(status.server.clone(), Server::new(status))),
        }
        true
    }

    /// Runs `listen`, from which on a turn hears of this thread, and returns what it must be told
    /// that was said before: what is new, and who is still missing.
    pub(super) fn hand_over<T, E>(
        &self,
        thread_id: &str,
        listen: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Vec<McpServerStatus>), E> {
        let mut threads = self.threads();
        let listening = listen()?;
        let mut told = Vec::new();
        for server in threads.get_mut(thread_id).into_iter().flat_map(BTreeMap::values_mut) {
            if !server.is_told || server.status.state() == McpServerState::Failed {
                server.is_told = true;
                told.push(server.status.clone());
            }
        }
        Ok((listening, told))
    }

    /// Forgets a thread that is not loaded any more.
    pub(super) fn forget(&self, thread_id: &str) {
        self.threads().remove(thread_id);
    }

    fn suspects(&self, thread_id: &str) -> Vec<(String, Suspicion)> {
        let threads = self.threads();
        let servers = threads.get(thread_id).into_iter().flatten();
        servers.filter_map(|(name, server)| Some((name.clone(), server.suspicion()?))).collect()
    }

    fn note_remote(&self, thread_id: &str, name: &str) {
        let mut threads = self.threads();
        if let Some(server) = threads.get_mut(thread_id).and_then(|servers| servers.get_mut(name)) {
            server.is_remote = true;
        }
    }

    fn note_down(&self, thread_id: &str, name: &str, error: String) {
        let mut threads = self.threads();
        if let Some(servers) = threads.get_mut(thread_id) {
            let (server, state) = (name.to_owned(), McpServerState::Failed.into());
            self.note(thread_id, servers, McpServerStatus { server, state, error });
        }
    }
}

/// How the MCP servers of a thread are before a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum McpHealth {
    /// As good as can be.
    Settled,
    /// One that the thread can't be without is down and does not come back: the thread must be loaded
    /// anew, and what Codex says then is why it can't.
    RequiredIsDown,
}

impl Worker {
    /// Whether a loaded thread has MCP servers.
    pub(crate) fn has_mcp_servers(&self, thread_id: &ThreadId) -> bool {
        self.routes.mcp.threads().contains_key(thread_id.as_str())
    }

    /// Starts those MCP servers of a loaded thread again that have ended since its last turn, or did
    /// not start. Costs nothing for a thread without servers, and 1 to 3 ms where all are well.
    /// The thread is loaded with what the options say.
    pub(crate) async fn mend_mcp_servers(
        &self,
        thread_id: &ThreadId,
        directory: &Path,
        options: &ThreadOptions,
    ) -> McpHealth {
        let thread = thread_id.as_str();
        let suspects = self.routes.mcp.suspects(thread);
        if suspects.iter().any(|(_, suspicion)| *suspicion == Suspicion::MayHaveEnded) {
            self.funerals().await;
        }
        let looks = suspects.into_iter().map(|(name, suspicion)| async move {
            match suspicion {
                Suspicion::Failed => Some((name, suspicion)),
                Suspicion::MayHaveEnded => {
                    let status = self.mcp_server_status(thread, &name, LOOK).await?;
                    if status.is_remote() {
                        self.routes.mcp.note_remote(thread, &name);
                        return None;
                    }
                    status.is_down().then_some((name, suspicion))
                }
            }
        });
        let down: Vec<(String, Suspicion)> = join_all(looks).await.into_iter().flatten().collect();
        if down.is_empty() {
            return McpHealth::Settled;
        }
        for (server, suspicion) in &down {
            if *suspicion == Suspicion::MayHaveEnded {
                tracing::info!(worker = %self.id, %thread_id, server, "an MCP server has ended; it is started again");
            }
        }
        let config = self.mcp_config(directory).await.unwrap_or_default();
        let configured = config.servers(&LoadOptions::of(options));
        // An answer alone says nothing: the servers start when the thread is looked at.
        let reloaded = self.client.mcp_reload().await;
        if let Err(error) = &reloaded {
            tracing::warn!(worker = %self.id, %thread_id, %error, "MCP servers can't be started again");
        }
        let waits = down.into_iter().map(|(name, suspicion)| {
            let (configured, reloaded) = (configured.get(&name), reloaded.as_ref().err());
            async move {
                let is_required = configured.is_some_and(|server| server.required);
                let patience = match suspicion {
                    Suspicion::Failed if !is_required => OPTIONAL_START,
                    Suspicion::Failed | Suspicion::MayHaveEnded => {
                        let start = configured.map(mcp::ServerConfig::startup_timeout);
                        start.unwrap_or(mcp::DEFAULT_STARTUP_TIMEOUT) + LOOK
                    }
                };
                let status = match reloaded {
                    None => self.mcp_server_status(thread, &name, patience).await,
                    Some(_) => None,
                };
                let is_up = status.as_ref().is_some_and(|status| !status.is_down());
                if !is_up && suspicion == Suspicion::MayHaveEnded {
                    let error =
                        status.map(|status| status.error()).filter(|error| !error.is_empty());
                    let error = error.or_else(|| reloaded.map(ToString::to_string));
                    let error = error.unwrap_or_else(|| "it has ended".to_owned());
                    self.routes.mcp.note_down(thread, &name, error);
                }
                is_required && !is_up
            }
        });
        if join_all(waits).await.contains(&true) {
            McpHealth::RequiredIsDown
        } else {
            McpHealth::Settled
        }
    }

    /// What Codex says of one server of a thread; `None` where it can't be known in time.
    async fn mcp_server_status(
        &self,
        thread_id: &str,
        server: &str,
        timeout: Duration,
    ) -> Option<ServerStatus> {
        match self.client.within(timeout).mcp_server_status(thread_id, server).await {
            Ok(status) => status,
            Err(error) => {
                tracing::debug!(worker = %self.id, thread_id, server, %error, "an MCP server can't be looked at");
                None
            }
        }
    }

    /// How the MCP servers of threads in this directory are configured.
    pub(super) async fn mcp_config(
        &self,
        directory: &Path,
    ) -> Result<mcp::ConfigRead, RequestError> {
        self.client.within(CONFIG).mcp_config(directory).await
    }

    /// Asks Codex to load a thread, and waits for as long as the MCP servers that it waits for may take.
    /// A thread whose loading nobody waits for any more, for whatever reason, is unloaded when Codex has
    /// loaded it after all: its servers would stay else.
    pub(super) async fn load_thread(
        &self,
        thread: &LoadThread,
    ) -> Result<ThreadOpened, RequestError> {
        let began = Instant::now();
        let mut loading = self.start_loading(thread.clone());
        let gone = || Err(thread.lost("the worker ended"));
        let within = self.client.timeout();
        if let Ok(answer) = tokio::time::timeout(within, &mut loading).await {
            return answer.unwrap_or_else(|_| gone());
        }
        // Asked only now: most threads are there at once.
        let servers = match self.mcp_config(thread.working_directory()).await {
            Ok(config) => thread.longest_required_start(&config),
            Err(_) => Duration::ZERO,
        };
        let within = within + servers;
        let left = within.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, loading).await {
            Ok(answer) => answer.unwrap_or_else(|_| gone()),
            Err(_) => Err(thread.timed_out(within)),
        }
    }

    fn start_loading(
        &self,
        thread: LoadThread,
    ) -> oneshot::Receiver<Result<ThreadOpened, RequestError>> {
        let (answer, answered) = oneshot::channel();
        let (client, loading, id) =
            (self.client.clone(), Arc::clone(&self.loading), self.id.clone());
        let routes = Arc::clone(&self.routes);
        loading.begin(thread.thread_id());
        tokio::spawn(async move {
            let opened = client.within(LATE).load_thread(&thread).await;
            let thread_id = opened.as_ref().ok().map(|opened| opened.thread_id().to_owned());
            let is_late = answer.send(opened).is_err();
            let is_wanted = loading.end(thread.thread_id());
            let Some(thread_id) = thread_id.filter(|_| is_late && !is_wanted) else { return };
            if routes.loaded().contains_key(&ThreadId::from_codex(thread_id.clone())) {
                return;
            }
            tracing::info!(worker = %id, thread_id, "a thread was loaded when nobody wanted it any more; it is let go");
            // A copy that nobody knows of is no use to anybody.
            let letting_go = match thread.is_copy() {
                true => client.thread_delete(&thread_id).await,
                false => client.thread_unsubscribe(&thread_id).await,
            };
            if let Err(error) = letting_go {
                tracing::debug!(worker = %id, thread_id, %error, "a thread could not be let go");
            }
        }.in_current_span());
        answered
    }
}

/// How many loadings of each thread are under way: a late answer to one must not take the thread away
/// from another.
#[derive(Debug, Default)]
pub(super) struct Loading {
    threads: Mutex<HashMap<String, usize>>,
}

impl Loading {
    fn threads(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // A panic elsewhere can't leave the map half changed.
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, thread_id: Option<&str>) {
        if let Some(thread_id) = thread_id {
            *self.threads().entry(thread_id.to_owned()).or_default() += 1;
        }
    }

    /// Returns whether another loading of the thread is under way.
    fn end(&self, thread_id: Option<&str>) -> bool {
        let Some(thread_id) = thread_id else { return false };
        let mut threads = self.threads();
        let left = threads.get(thread_id).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            threads.remove(thread_id);
        } else {
            threads.insert(thread_id.to_owned(), left);
        }
        left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use McpServerState::{Cancelled, Failed, Ready, Starting};

    fn servers() -> McpServers {
        McpServers::new(WorkerId { slot: 0, generation: 1 })
    }

    /// Hears a status; returns whether it was passed on, to a turn that listens or not.
    fn hear(servers: &McpServers, server: &str, state: McpServerState, listens: bool) -> bool {
        let mut is_passed_on = false;
        let error = if state == McpServerState::Failed { "no" } else { "" };
        let (server, state, error) = (server.to_owned(), state.into(), error.to_owned());
        let status = McpServerStatus { server, state, error };
        let news = News::McpServer { status, needs_login: false };
        servers.hear(Told::of("t", None, news), |_| {
            is_passed_on = true;
            listens
        });
        is_passed_on
    }

    /// What a turn that begins is told.
    fn begin(servers: &McpServers) -> Vec<(String, McpServerState)> {
        let ((), told) = servers.hand_over("t", || Ok::<_, ()>(())).unwrap();
        told.into_iter().map(|status| (status.server.clone(), status.state())).collect()
    }

    fn told(server: &str, state: McpServerState) -> (String, McpServerState) {
        (server.to_owned(), state)
    }

    #[tokio::test]
    async fn each_status_reaches_one_turn_and_a_failure_every_turn() {
        let servers = servers();
        hear(&servers, "a", Starting, false);
        hear(&servers, "b", Starting, false);
        hear(&servers, "a", Ready, false);
        let first = [told("a", McpServerState::Ready), told("b", McpServerState::Starting)];
        assert_eq!(begin(&servers), first);
        assert!(hear(&servers, "b", Failed, true));
        assert!(!hear(&servers, "b", Failed, true), "no news");
        assert!(!hear(&servers, "a", Ready, true), "no news");
        let missing = [told("b", McpServerState::Failed)];
        assert_eq!(begin(&servers), missing);
        assert_eq!(begin(&servers), missing);
        hear(&servers, "b", Starting, false);
        hear(&servers, "b", Ready, false);
        assert_eq!(begin(&servers), [told("b", McpServerState::Ready)]);
        assert_eq!(begin(&servers), []);
        assert_eq!(servers.hand_over("t", || Err::<(), _>("ended")), Err("ended"));
    }

    #[tokio::test]
    async fn a_thread_that_was_let_go_is_forgotten_and_its_last_words_are_too() {
        let servers = servers();
        hear(&servers, "a", Starting, false);
        servers.forget("t");
        assert!(!hear(&servers, "a", Cancelled, false));
        assert!(!hear(&servers, "a", Ready, false));
        assert!(servers.threads().is_empty());
        hear(&servers, "a", Starting, false);
        servers.hear(Told::of("t", None, News::ThreadUnloaded), |_| false);
        assert!(servers.threads().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_tried_again_at_once_unless_that_would_cost_every_turn() {
        let servers = servers();
        let suspects = || servers.suspects("t");
        let failed = |name: &str| vec![(name.to_owned(), Suspicion::Failed)];
        hear(&servers, "a", Starting, false);
        assert_eq!(suspects(), [], "nothing is known yet");
        hear(&servers, "a", Failed, false);
        assert_eq!(suspects(), failed("a"));
        hear(&servers, "a", Starting, false);
        tokio::time::advance(SLOW_FAILURE).await;
        hear(&servers, "a", Failed, false);
        assert_eq!(suspects(), []);
        tokio::time::advance(SLOW_FAILURE_PAUSE).await;
        assert_eq!(suspects(), failed("a"));
        hear(&servers, "a", Starting, false);
        hear(&servers, "a", Ready, false);
        assert_eq!(suspects(), [("a".to_owned(), Suspicion::MayHaveEnded)]);
        servers.note_remote("t", "a");
        assert_eq!(suspects(), [], "it has no process");
    }

    #[test]
    fn a_late_answer_spares_a_thread_that_is_being_loaded_once_more() {
        let loading = Loading::default();
        loading.begin(Some("t"));
        loading.begin(Some("t"));
        assert!(loading.end(Some("t")));
        assert!(!loading.end(Some("t")));
        loading.begin(None);
        assert!(!loading.end(None));
        assert!(loading.threads().is_empty());
    }
}
