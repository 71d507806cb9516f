//! From a request to a thread that a worker holds and nobody else uses.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use crate::model::event::{Event, ThreadOrigin, WarningCode};
use crate::model::fingerprint::Fingerprint;
use crate::model::id::{ThreadId, WorkerId};
use crate::model::options::ThreadOptions;
use crate::model::refusal::{Faults, Refusal};
use crate::model::request::{MissingThreadPolicy, TurnRequest, Work};
use crate::model::workspace::Workspace;
use crate::pool::{Entering, Lease};
use crate::registry::threads::{SeenTurn, ThreadFacts, ThreadLock, ThreadState, TurnsSeen};
use crate::turn::engine::Engine;
use crate::turn::engine::keeping::Writing;
use crate::turn::machine::{OUT_OF_RESOURCES_FOR, OpenError, PATIENCE};
use crate::turn::workspace;
use crate::worker::mcp::McpHealth;
use crate::worker::thread::{ListedTurn, LoadedThread, ThreadError};
use crate::worker::{NoRoute, Route, Worker};

/// A thread, ready for a turn.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) thread_id: ThreadId,
    pub(super) origin: ThreadOrigin,
    pub(super) loaded: LoadedThread,
    // For after `thread_started`, which nothing but `queued` may precede.
    pub(super) warnings: Vec<Event>,
    // Whether it was loaded for this turn.
    is_loaded_anew: bool,
    // These three in the order in which they are let go: what may still come for the thread has nowhere
    // to go, and the worker is not counted as used any more, before another turn may use the thread.
    pub(super) route: Route,
    pub(super) lease: Lease,
    pub(super) thread: ThreadLock<LoadedThread>,
}

fn turn_has_ended() -> OpenError {
    OpenError::Lost("the turn ended while its thread was being opened".to_owned())
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> OpenError {
        OpenError::Refused(refusal)
    }
}

/// An opening under way, in a task of its own. Dropping this abandons it: the turn goes its way, but
/// what a worker has been asked is waited for. A thread that was being loaded would else count as
/// loaded nowhere, and no other worker could have it; one that was being released would stay in
/// Codex's archive.
#[derive(Debug)]
pub(super) struct Opening {
    task: JoinHandle<Result<Opened, OpenError>>,
    _abandon: DropGuard,
}

impl Opening {
    /// Waits for what comes of it; to be called once.
    pub(super) async fn opened(&mut self) -> Result<Opened, OpenError> {
        let fault = |error: tokio::task::JoinError| Refusal::Internal(error.to_string());
        (&mut self.task).await.map_err(fault)?
    }
}

/// Of how many deaths a request is found guilty.
const DEATHS: u32 = 2;

/// How many workers have died while they were asked to open a request's thread.
///
/// The first death proves little: other threads may have been opened on that worker, and other turns
/// have run. So the next opening is alone on its worker as far as openings go, and goes where the fewest
/// turns run. If that worker dies, too, the request is refused, and no third worker is tried. An
/// innocent one is served at its second try, unless two workers die of something else under just its two
/// openings; what a turn gave up is no such death.
#[derive(Debug, Clone, Default)]
pub(super) struct Suspicion(Arc<AtomicU32>);

impl Suspicion {
    fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Notes a death; returns whether that is enough.
    fn raise(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) + 1 >= DEATHS
    }
}

/// What an opening and its turn know of each other.
#[derive(Debug)]
pub(super) struct Ties {
    abandoned: CancellationToken,
    suspicion: Suspicion,
    // Which worker was asked last.
    asked: Mutex<Option<Asked>>,
}

/// A worker that is being asked for something.
#[derive(Debug)]
enum Asked {
    ToOpen(Entering),
    /// It has been replaced or gets no new turns, and is to let go of the thread.
    ToRelease(Arc<Worker>),
}

impl Asked {
    fn worker(&self) -> &Arc<Worker> {
        match self {
            Asked::ToOpen(entering) => &entering.incarnation().worker,
            Asked::ToRelease(worker) => worker,
        }
    }
}

impl Ties {
    /// Those of an opening that nobody abandons.
    pub(super) fn none() -> Ties {
        let (abandoned, suspicion) = (CancellationToken::new(), Suspicion::default());
        Ties { abandoned, suspicion, asked: Mutex::default() }
    }

    /// Waits for something that may be given up half-way.
    async fn unless_abandoned<T>(&self, future: impl Future<Output = T>) -> Result<T, OpenError> {
        tokio::select! {
            biased;
            () = self.abandoned.cancelled() => {
                Err(turn_has_ended())
            }
            value = future => Ok(value),
        }
    }

    pub(super) async fn pause(&self, pause: Duration) -> Result<(), OpenError> {
        self.unless_abandoned(tokio::time::sleep(pause)).await
    }

    pub(super) async fn wait(
        &self,
        pause: Option<&Duration>,
        cause: String,
    ) -> Result<(), OpenError> {
        match pause {
            Some(pause) => self.pause(pause.mul_f64(0.5 + fastrand::f64())).await,
            None => Err(OpenError::Refused(Refusal::WorkerUnavailable {
                cause: format!("Codex is overloaded: {cause}"),
                retry_after: Duration::from_secs(2),
            })),
        }
    }

    /// A worker that may be asked to open the thread, until another one is asked or the opening is over.
    pub(super) async fn lease(
        &self,
        engine: &Engine,
        preferred: Option<&WorkerId>,
    ) -> Result<Lease, OpenError> {
        // Whoever is to be alone would wait for itself.
        self.note_asked(None);
        let leasing = engine.pool.lease_to_open(preferred, self.suspicion.is_raised());
        let (lease, entering) = self.unless_abandoned(leasing).await?.map_err(Refusal::from)?;
        self.note_asked(Some(Asked::ToOpen(entering)));
        Ok(lease)
    }

    fn note_asked(&self, asked: Option<Asked>) -> Option<Asked> {
        std::mem::replace(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner), asked)
    }

    fn asked(&self) -> Option<Arc<Worker>> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.as_ref().map(|asked| Arc::clone(asked.worker()))
    }
}

impl Engine {
    /// Starts to open the turn's thread, which the turn gets once its start is kept, too.
    pub(super) fn start_opening(
        self: &Arc<Engine>,
        request: &Arc<TurnRequest>,
        workspace: &Arc<Workspace>,
        suspicion: &Suspicion,
        started: Writing,
    ) -> Opening {
        let abandoned = CancellationToken::new();
        let abandon = abandoned.clone().drop_guard();
        let ties = Ties { abandoned, suspicion: suspicion.clone(), asked: Mutex::default() };
        let engine = Arc::clone(self);
        let (request, workspace) = (Arc::clone(request), Arc::clone(workspace));
        let task = self.tasks.spawn(
            async move {
                let opened = {
                    let open = engine.open(&request, &workspace, &ties);
                    tokio::pin!(open);
                    tokio::select! {
                        biased;
                        opened = &mut open => opened,
                        () = ties.abandoned.cancelled() => {
                            engine.finish_abandoned(&mut open, &ties).await
                        }
                    }
                };
                match opened {
                    Err(OpenError::Lost(cause)) => Err(engine.lost(cause, &ties).await),
                    Ok(opened) if ties.abandoned.is_cancelled() => {
                        engine.undo(opened).await;
                        Err(turn_has_ended())
                    }
                    Ok(opened) => {
                        // The worker has done its part.
                        ties.note_asked(None);
                        if let Err(denied) = check_model(&opened, &request, &workspace) {
                            engine.undo(opened).await;
                            return Err(denied.into());
                        }
                        let started = ties.unless_abandoned(started).await;
                        match started.and_then(|started| Ok(started.map_err(Refusal::from)?)) {
                            Ok(()) => Ok(opened),
                            Err(error) => {
                                engine.undo(opened).await;
                                Err(error)
                            }
                        }
                    }
                    Err(error) => Err(error),
                }
            }
            .in_current_span(),
        );
        Opening { task, _abandon: abandon }
    }

    /// What it means that a worker was lost: it died, or gave no answer for as long as any request may
    /// take.
    pub(super) async fn lost(&self, cause: String, ties: &Ties) -> OpenError {
        let Some(asked) = ties.note_asked(None) else { return OpenError::Lost(cause) };
        let worker = asked.worker();
        if worker.is_alive() {
            self.replace_if_silent(worker, "it did not open a thread").await;
            if worker.is_alive() {
                // It is slow with this alone. Another try would be slow beside it.
                let retry_after = Duration::from_secs(5);
                return Refusal::WorkerUnavailable { cause, retry_after }.into();
            }
        }
        let Asked::ToOpen(entering) = &asked else { return OpenError::Lost(cause) };
        let is_blamed = entering.incarnation().died_under_opening() && !entering.has_company();
        if is_blamed && ties.suspicion.raise() {
            let exit = worker.exited().await;
            let cause = format!("worker {} ended: {exit}", worker.id());
            return Refusal::OpeningKillsWorkers { cause }.into();
        }
        OpenError::Lost(cause)
    }

    /// Kills a worker that answers nothing at all within the interrupt grace. One that does may just
    /// be slow with what it was asked, and serves others.
    async fn replace_if_silent(&self, worker: &Worker, cause: &str) {
        if worker.ping(self.settings.timeouts.interrupt_grace).await.is_err() {
            worker.kill(cause);
            worker.exited().await;
        }
    }

    async fn finish_abandoned(
        &self,
        open: &mut (impl Future<Output = Result<Opened, OpenError>> + Unpin),
        ties: &Ties,
    ) -> Result<Opened, OpenError> {
        let grace = self.settings.timeouts.interrupt_grace;
        if let Ok(opened) = tokio::time::timeout(grace, &mut *open).await {
            return opened;
        }
        if let Some(worker) = ties.asked() {
            self.replace_if_silent(&worker, "it was silent while it had a thread to open").await;
        }
        open.await
    }

    /// Lets go of a thread that was opened for a turn which has ended meanwhile, where nobody else will
    /// use it or what came with it costs something: a new thread, and the MCP servers of any.
    async fn undo(&self, opened: Opened) {
        let Opened { thread_id, origin, is_loaded_anew, route, lease, mut thread, .. } = opened;
        drop(route);
        let worker = Arc::clone(lease.worker());
        if origin == ThreadOrigin::New {
            worker.forget_thread(&thread_id).await;
            drop((lease, thread));
            self.threads.forget(&thread_id);
            return;
        }
        if is_loaded_anew && worker.has_mcp_servers(&thread_id) {
            match worker.release_thread(&thread_id).await {
                Ok(()) => thread.loaded = None,
                Err(error) => tracing::debug!(%thread_id, %error, "a thread could not be released"),
            }
        }
        // In the order of `Opened`.
        drop((lease, thread));
    }

    /// The request's thread beats the context's, which beats the tool's, which beats a new one.
    async fn open(
        &self,
        request: &TurnRequest,
        workspace: &Workspace,
        ties: &Ties,
    ) -> Result<Opened, OpenError> {
        // It may have waited long.
        workspace::check_again(&self.looks, workspace, &request.policy).await?;
        let bound = request.context.as_ref().and_then(|key| self.contexts.get(key).ok());
        let (thread_id, origin) = if let Some(thread_id) = &request.explicit_thread {
            (thread_id.clone(), ThreadOrigin::Explicit)
        } else if let Some(binding) = bound {
            let origin = match binding.is_fresh_copy {
                true => ThreadOrigin::Forked,
                false => ThreadOrigin::Resumed,
            };
            (binding.thread_id, origin)
        } else if let Some(thread_id) = &request.configured_thread {
            (thread_id.clone(), ThreadOrigin::Explicit)
        } else {
            return self.open_new(request, workspace, ties).await;
        };
        match self.open_existing(request, workspace, &thread_id, origin, ties).await {
            Err(OpenError::Refused(Refusal::ThreadNotFound { thread_id, cause, .. }))
                // A new one has nothing to sum up.
                if request.work != Work::Compact
                    && (request.missing_thread_policy == MissingThreadPolicy::StartNew
                        || self.is_blank(&thread_id)) =>
            {
                let mut opened = self.open_new(request, workspace, ties).await?;
                let message = format!(
                    "thread {thread_id} was not found ({cause}); a new thread takes its place"
                );
                opened.warnings.push(Event::warning(WarningCode::ThreadReplaced, message, ""));
                Ok(opened)
            }
            Err(OpenError::Refused(Refusal::ThreadNotFound { thread_id, cause, .. })) => {
                let can_be_new = request.work != Work::Compact;
                Err(Refusal::ThreadNotFound { thread_id, cause, can_be_new }.into())
            }
            other => other,
        }
    }

    /// Whether losing this thread loses nothing: without this, a context whose first worker died in
    /// the wrong moment would be refused for ever.
    fn is_blank(&self, thread_id: &ThreadId) -> bool {
        self.threads.try_lock(thread_id).is_some_and(|thread| thread.facts.is_blank)
    }

    async fn open_new(
        &self,
        request: &TurnRequest,
        workspace: &Workspace,
        ties: &Ties,
    ) -> Result<Opened, OpenError> {
        let options = &request.thread_options;
        let lease = ties.lease(self, None).await?;
        let known = lease.worker().check_inputs(&request.inputs, workspace).await;
        known.map_err(|error| open_error(error, None))?;
        let mut patience = PATIENCE.iter();
        let (thread_id, loaded) = loop {
            match lease.worker().start_thread(options, workspace, request.ephemeral).await {
                Ok(started) => break started,
                Err(ThreadError::Overloaded(cause)) => ties.wait(patience.next(), cause).await?,
                Err(ThreadError::BadConfig(cause)) => {
                    return Err(self.bad_config(lease.worker(), cause).await);
                }
                Err(error) => return Err(open_error(error, None)),
            }
        };
        let mut thread = self.threads.lock(&thread_id).await;
        let facts = ThreadFacts {
            usage: Some(crate::model::event::Usage::default()),
            is_blank: true,
            turns: Some(TurnsSeen::default()),
            left: None,
            dynamic_tools: Some(Fingerprint::of(
                &options.dynamic_tools.as_deref().unwrap_or_default(),
            )),
            developer_instructions: Some(Fingerprint::of(
                &options.asked_developer_instructions().unwrap_or_default(),
            )),
        };
        *thread = ThreadState { facts, ..ThreadState::default() };
        let warning = sandbox_options_ignored(&loaded, options);
        let mut opened = opened(thread_id, ThreadOrigin::New, (loaded, true), lease, thread)?;
        opened.warnings.extend(warning);
        Ok(opened)
    }

    /// Remembers what an earlier process has known of a thread that a context goes on with, or this one
    /// before it had to forget it.
    pub(super) async fn recall(
        &self,
        thread: &mut ThreadState<LoadedThread>,
        thread_id: &ThreadId,
    ) -> Result<(), Refusal> {
        if thread.facts != ThreadFacts::default() {
            return Ok(());
        }
        if let Some(facts) = self.ledger.facts_of(thread_id).await? {
            (thread.facts, thread.is_bound) = (facts, true);
        }
        Ok(())
    }

    async fn open_existing(
        &self,
        request: &TurnRequest,
        workspace: &Workspace,
        thread_id: &ThreadId,
        origin: ThreadOrigin,
        ties: &Ties,
    ) -> Result<Opened, OpenError> {
        let options = &request.thread_options;
        // No other turn has it, since this one has its lane: whoever does releases it, or has given its
        // turn up, and is done soon.
        let mut thread = ties.unless_abandoned(self.threads.lock(thread_id)).await?;
        self.recall(&mut thread, thread_id).await?;
        let holder = self.holder_for_use(&mut thread, thread_id, ties).await?;
        let lease = ties.lease(self, holder.as_ref()).await?;
        // Not before: a turn that gets no worker leaves it to the next one.
        thread.asked = None;
        let worker = lease.worker();
        let known = worker.check_inputs(&request.inputs, workspace).await;
        known.map_err(|error| open_error(error, Some(thread_id)))?;

        let before = thread.loaded.clone();
        let mut held = before.clone().filter(|loaded| {
            // The worker may have let go of it to end a turn that nobody had asked for.
            loaded.worker == *worker.id() && worker.holds_thread(thread_id)
        });
        if let Some(loaded) = held.as_mut().filter(|loaded| loaded.fits(options)) {
            let preparing = worker.prepare(loaded, options, workspace).await;
            preparing.map_err(|error| open_error(error, Some(thread_id)))?;
        }
        let fits = match &held {
            Some(loaded)
                if loaded.fits(options) && loaded.lingers(options, workspace).is_none() =>
            {
                let directory = &workspace.working_directory;
                worker.mend_mcp_servers(thread_id, directory, options).await == McpHealth::Settled
            }
            Some(_) | None => false,
        };
        let mut truncated = None;
        let (loaded, is_loaded_anew) = match held {
            Some(loaded) if fits => {
                // If it ends now, it is not of this.
                ties.note_asked(None);
                (loaded, false)
            }
            held => {
                if held.is_some() {
                    // What a thread is loaded with can only be changed by loading it anew, and so can
                    // what Codex keeps of the rights that an earlier turn had.
                    worker
                        .release_thread(thread_id)
                        .await
                        .map_err(|error| open_error(error, Some(thread_id)))?;
                }
                thread.loaded = None;
                let facts = &mut thread.facts;
                let resumed =
                    self.resume(worker, request, workspace, (thread_id, facts), ties).await;
                if matches!(resumed, Err(OpenError::Lost(_))) {
                    thread.asked = Some(worker.id().clone());
                }
                let mut resumed = resumed?;
                truncated = history_lost(worker, thread_id, &mut thread.facts).await;
                let left = before.map(|before| before.left()).or(thread.facts.left);
                if let Some(left) = left {
                    resumed.take_over(left);
                }
                (resumed, true)
            }
        };
        let mut warnings = Vec::from_iter(truncated);
        warnings.extend(sandbox_options_ignored(&loaded, options));
        warnings.extend(developer_instructions_ignored(&mut thread.facts, options, is_loaded_anew));
        if let (Some(wanted), Some(made_with)) =
            (&options.dynamic_tools, &thread.facts.dynamic_tools)
            && Fingerprint::of(wanted) != *made_with
        {
            let message = "dynamic_tools belong to a thread from its start; this thread keeps \
                           those that it was started with";
            warnings.push(Event::warning(WarningCode::DynamicToolsIgnored, message, ""));
        }
        let loaded = (loaded, is_loaded_anew);
        let mut opened = opened(thread_id.clone(), origin, loaded, lease, thread)?;
        opened.warnings = warnings;
        Ok(opened)
    }

    /// The worker that has the thread, or may have it. One that takes no turns is waited for, or lets go
    /// of it.
    pub(super) async fn holder_for_use(
        &self,
        thread: &mut ThreadState<LoadedThread>,
        thread_id: &ThreadId,
        ties: &Ties,
    ) -> Result<Option<WorkerId>, OpenError> {
        let holder = thread.loaded.as_ref().map(|loaded| loaded.worker.clone());
        let holder = holder.or_else(|| thread.asked.clone());
        // Not of the very thread that it does not let go of.
        let drained = thread.loaded.as_ref().and_then(|loaded| self.pool.drained(&loaded.worker));
        if let Some(holder) = holder.as_ref().filter(|_| drained.is_none()) {
            // No other worker could have the thread, and this one takes no turns.
            let settled = ties.unless_abandoned(self.pool.settled(holder)).await?;
            settled.map_err(Refusal::from)?;
        }
        let retiring = || holder.as_ref().and_then(|id| self.pool.retiring(id));
        if let Some(leaving) = drained.or_else(retiring) {
            thread.asked = None;
            // No other worker could resume the thread while it is held there.
            ties.note_asked(Some(Asked::ToRelease(Arc::clone(&leaving))));
            match leaving.release_thread(thread_id).await {
                Ok(()) => {}
                // One that has ended meanwhile holds nothing any more.
                Err(ThreadError::Lost { .. }) if !leaving.is_alive() => {}
                Err(error) => return Err(open_error(error, Some(thread_id))),
            }
            thread.loaded = None;
        }
        Ok(holder)
    }

    async fn resume(
        &self,
        worker: &Worker,
        request: &TurnRequest,
        workspace: &Workspace,
        (thread_id, facts): (&ThreadId, &mut ThreadFacts),
        ties: &Ties,
    ) -> Result<LoadedThread, OpenError> {
        let mut patience = PATIENCE.iter();
        let mut unarchived = false;
        loop {
            match worker.resume_thread(thread_id, &request.thread_options, workspace).await {
                Ok(loaded) => return Ok(loaded),
                Err(ThreadError::Overloaded(cause)) => ties.wait(patience.next(), cause).await?,
                // A worker was killed between the two steps of a release.
                Err(ThreadError::Archived(_)) if !unarchived => {
                    unarchived = true;
                    let unarchiving = worker.unarchive_thread(thread_id).await;
                    unarchiving.map_err(|error| open_error(error, Some(thread_id)))?;
                }
                Err(ThreadError::HeldElsewhere(cause)) => match patience.next() {
                    Some(pause) => ties.pause(*pause).await?,
                    None => {
                        let thread_id = thread_id.clone();
                        return Err(Refusal::ThreadHeldElsewhere { thread_id, cause }.into());
                    }
                },
                Err(ThreadError::BadConfig(cause)) => {
                    return Err(self.bad_config(worker, cause).await);
                }
                Err(ThreadError::NothingWritten(cause)) => {
                    let cause = nothing_written(facts, cause);
                    let error = ThreadError::NothingWritten(cause);
                    return Err(open_error(error, Some(thread_id)));
                }
                Err(error @ ThreadError::Unreadable(_)) => {
                    // It may be loaded, and no other worker could have it then.
                    if let Err(error) = worker.release_thread(thread_id).await {
                        tracing::debug!(%thread_id, %error, "a thread could not be released");
                    }
                    return Err(open_error(error, Some(thread_id)));
                }
                Err(error) => return Err(open_error(error, Some(thread_id))),
            }
        }
    }

    /// What a refusal for a configuration is: the user's `config.toml` is everybody's trouble and will
    /// be mended, a project's is this request's.
    async fn bad_config(&self, worker: &Worker, cause: String) -> OpenError {
        let refusal = match self.pool.config_fault_after(worker).await {
            Some(cause) => {
                Refusal::WorkerUnavailable { cause, retry_after: Duration::from_secs(5) }
            }
            None => Refusal::CodexRefused { cause },
        };
        refusal.into()
    }
}

/// Whether the policy allows the model that Codex takes where nobody names one.
fn check_model(
    opened: &Opened,
    request: &TurnRequest,
    workspace: &Workspace,
) -> Result<(), Refusal> {
    let TurnRequest { policy, thread_options: options, .. } = request;
    let mut denied = Faults::default();
    if policy.models.is_some() && options.model.is_none() {
        let settings = opened.loaded.turn_settings(options, workspace);
        policy.judge_unnamed_model(&settings.model, &mut denied);
    }
    denied.or_deny(())
}

fn opened(
    thread_id: ThreadId,
    origin: ThreadOrigin,
    (loaded, is_loaded_anew): (LoadedThread, bool),
    lease: Lease,
    mut thread: ThreadLock<LoadedThread>,
) -> Result<Opened, OpenError> {
    // Also for a turn that ends before Codex takes it.
    thread.loaded = Some(loaded.clone());
    match lease.worker().route(thread_id.as_str()) {
        Ok(route) => {
            let warnings = Vec::new();
            Ok(Opened { thread_id, origin, loaded, warnings, is_loaded_anew, route, lease, thread })
        }
        Err(error @ NoRoute::WorkerEnded) => Err(OpenError::Lost(error.to_string())),
        Err(error @ NoRoute::Taken) => Err(Refusal::Internal(error.to_string()).into()),
    }
}

/// A warning where Codex has fewer turns of a thread that it has just loaded than were seen to end on it:
/// what it could not write down is lost with the worker that had it in its memory. What is lost is always
/// the end, so that the last turn tells.
async fn history_lost(
    worker: &Worker,
    thread_id: &ThreadId,
    facts: &mut ThreadFacts,
) -> Option<Event> {
    /// Turns may have come after the last one that was seen.
    const NEWEST: usize = 20;
    /// Of a longer thread neither number is known.
    const MOST: usize = 1000;
    let (seen, left) = (facts.turns.clone(), facts.left.take());
    let is_whole = |turn: &ListedTurn| {
        let last = seen.as_ref().and_then(|seen| seen.last.as_ref());
        last.is_some_and(|last| last.id == turn.id && (turn.has_end() || !last.has_completed))
    };
    if seen.as_ref().is_some_and(|seen| seen.last.is_some()) {
        let (turns, _) = worker.turns_of(thread_id, NEWEST).await?;
        if turns.iter().any(is_whole) {
            // Where nobody else has had a turn on it since.
            facts.left = left.filter(|_| turns.first().is_some_and(is_whole));
            return None;
        }
    }
    let (turns, are_more) = worker.turns_of(thread_id, MOST).await?;
    if are_more {
        return None;
    }
    let newest = turns.first();
    let last = newest.map(|turn| SeenTurn { id: turn.id.clone(), has_completed: turn.has_end() });
    facts.turns = Some(TurnsSeen { count: turns.len(), last });
    let TurnsSeen { count: seen, last: Some(last) } = seen? else { return None };
    // One whose end is not there is lost in part.
    let count = turns.len() - usize::from(newest.is_some_and(|turn| turn.id == last.id));
    if count >= seen {
        return None;
    }
    tracing::warn!(%thread_id, seen, left = count, "a thread has lost turns");
    let message = format!(
        "Codex has {count} whole turns of thread {thread_id}, and {seen} were seen to end on it: the \
         rest could not be written down and are lost, most likely because the disk of CODEX_HOME was full; \
         the model goes on without them"
    );
    Some(Event::warning(WarningCode::ThreadTruncated, message, ""))
}

/// Why a thread can't be had of which Codex has not a byte, with what is lost where it had said that it could
/// not write it down. Of any other somebody has taken the content.
fn nothing_written(facts: &ThreadFacts, cause: String) -> String {
    let Some(TurnsSeen { count: count @ 1.., .. }) = facts.turns else { return cause };
    if !facts.is_blank {
        return cause;
    }
    format!(
        "{cause}: Codex could not write down what was said on it, which is lost with the {count} turns that were \
         seen to end on it, most likely because the disk of CODEX_HOME was full"
    )
}

/// A warning where the sandbox's options have nothing to apply to. With a profile of the request
/// itself, too: they may be the tool's.
fn sandbox_options_ignored(loaded: &LoadedThread, options: &ThreadOptions) -> Option<Event> {
    let profile = loaded.profile(options)?;
    let network = options.network_access_enabled.map(|_| "network_access_enabled");
    let directories = options.additional_directories.as_ref().map(|_| "additional_directories");
    let ignored: Vec<&str> = network.into_iter().chain(directories).collect();
    (!ignored.is_empty()).then(|| {
        let ignored = ignored.join(" and ");
        let message = format!(
            "{ignored} not applied: the permission profile {profile:?} decides what commands may \
             touch"
        );
        Event::warning(WarningCode::SandboxOptionsIgnored, message, "")
    })
}

/// A warning where the thread has other instructions than those that the turn asks for.
fn developer_instructions_ignored(
    thread: &mut ThreadFacts,
    options: &ThreadOptions,
    is_loaded_anew: bool,
) -> Option<Event> {
    let asked = Fingerprint::of(&options.asked_developer_instructions()?);
    let made_with = thread.developer_instructions;
    if made_with == Some(asked) {
        return None;
    }
    // Codex has nothing of it yet, and takes those with which it is loaded.
    if thread.is_blank && is_loaded_anew {
        thread.developer_instructions = Some(asked);
        return None;
    }
    let message = match made_with {
        Some(_) => {
            "developer_instructions belong to a thread from its first turn; this thread keeps those \
             that it was started with"
        }
        None => {
            "developer_instructions belong to a thread from its first turn; this sidecar did not \
             start the thread and can't tell whether it has these: they are not added"
        }
    };
    if made_with.is_none() {
        thread.developer_instructions = Some(asked);
    }
    Some(Event::warning(WarningCode::DeveloperInstructionsIgnored, message, ""))
}

pub(super) fn open_error(error: ThreadError, thread_id: Option<&ThreadId>) -> OpenError {
    match (error, thread_id) {
        (ThreadError::NotFound(cause) | ThreadError::NothingWritten(cause), Some(thread_id)) => {
            Refusal::ThreadNotFound { thread_id: thread_id.clone(), cause, can_be_new: false }
                .into()
        }
        (ThreadError::UnknownProfile(cause), _) => {
            Refusal::field("thread_options.permission_profile", cause).into()
        }
        (ThreadError::Denied(denied), _) => Refusal::PolicyDenied(denied).into(),
        (ThreadError::UnknownSkill { at, cause }, _) => {
            Refusal::field(format!("inputs[{at}].skill.path"), cause).into()
        }
        (ThreadError::OutOfResources(cause), _) => {
            Refusal::OutOfResources { cause, retry_after: OUT_OF_RESOURCES_FOR }.into()
        }
        (ThreadError::NotApplied(cause), _) => Refusal::SettingsNotApplied { cause }.into(),
        // Opening a thread can be asked for again, even if the worker has seen it.
        (ThreadError::Lost { cause, .. }, _) => OpenError::Lost(cause),
        (ThreadError::Overloaded(cause), _) => Refusal::WorkerUnavailable {
            cause: format!("Codex is overloaded: {cause}"),
            retry_after: Duration::from_secs(2),
        }
        .into(),
        (
            error @ (ThreadError::NotFound(_)
            | ThreadError::NothingWritten(_)
            | ThreadError::Archived(_)
            | ThreadError::HeldElsewhere(_)
            | ThreadError::BadConfig(_)
            | ThreadError::Unreadable(_)
            | ThreadError::Steered(_)
            | ThreadError::Refused(_)),
            _,
        ) => Refusal::CodexRefused { cause: error.to_string() }.into(),
    }
}
