//! From a request to a thread that a worker holds and nobody else uses.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::pool::Lease;
use crate::pool::threads::{ThreadGuard, ThreadState};
use crate::turn::engine::Engine;
use crate::turn::event::{Event, ThreadOrigin, WarningCode};
use crate::turn::refusal::Refusal;
use crate::turn::request::{BusyPolicy, MissingThreadPolicy, ThreadId, TurnRequest};
use crate::worker::thread::{LoadedThread, ThreadError, Workspace};
use crate::worker::{Route, Worker, WorkerId};

/// A thread, ready for a turn.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) thread_id: ThreadId,
    pub(super) origin: ThreadOrigin,
    pub(super) loaded: LoadedThread,
    // For after `thread_started`, which nothing but `queued` may precede.
    pub(super) warnings: Vec<Event>,
    pub(super) route: Route,
    // Declared after the route: what may still come for the thread has nowhere to go before
    // another turn may use it.
    pub(super) lease: Lease,
    pub(super) thread: ThreadGuard,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The turn can't run.
    Refused(Refusal),
    /// The worker died under it; another one may do.
    Lost(String),
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> OpenError {
        OpenError::Refused(refusal)
    }
}

/// How often Codex is asked again while it says that it is overloaded, or that another process
/// (which may be a worker of ours that is just dying) writes the thread.
pub(super) const PATIENCE: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

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

/// What an opening and its turn know of each other.
#[derive(Debug, Clone, Default)]
struct Ties {
    abandoned: CancellationToken,
    // The worker that is being asked.
    worker: Arc<OnceLock<Arc<Worker>>>,
}

impl Ties {
    /// Waits for something that may be given up half-way.
    async fn unless_abandoned<T>(&self, future: impl Future<Output = T>) -> Result<T, OpenError> {
        tokio::select! {
            biased;
            () = self.abandoned.cancelled() => {
                Err(OpenError::Lost("the turn ended while its thread was being opened".to_owned()))
            }
            value = future => Ok(value),
        }
    }

    async fn pause(&self, pause: Duration) -> Result<(), OpenError> {
        self.unless_abandoned(tokio::time::sleep(pause)).await
    }

    async fn wait(&self, pause: Option<&Duration>, cause: String) -> Result<(), OpenError> {
        match pause {
            Some(pause) => self.pause(pause.mul_f64(0.5 + fastrand::f64())).await,
            None => Err(OpenError::Refused(Refusal::WorkerUnavailable {
                cause: format!("Codex is overloaded: {cause}"),
                retry_after: Duration::from_secs(2),
            })),
        }
    }

    async fn lease(
        &self,
        engine: &Engine,
        preferred: Option<&WorkerId>,
    ) -> Result<Lease, OpenError> {
        let lease = self.unless_abandoned(engine.pool.lease(preferred)).await?;
        let lease = lease.map_err(Refusal::from)?;
        let _ = self.worker.set(Arc::clone(lease.worker()));
        Ok(lease)
    }
}

impl Engine {
    /// Starts to open the turn's thread.
    pub(super) fn start_opening(
        self: &Arc<Engine>,
        request: &Arc<TurnRequest>,
        workspace: &Arc<Workspace>,
    ) -> Opening {
        let ties = Ties::default();
        let abandon = ties.abandoned.clone().drop_guard();
        let engine = Arc::clone(self);
        let (request, workspace) = (Arc::clone(request), Arc::clone(workspace));
        let task = self.tasks.spawn(async move {
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
            match (&opened, ties.worker.get()) {
                (Err(OpenError::Lost(_)), Some(worker)) if worker.is_alive() => {
                    // It gave no answer for as long as any request may take.
                    engine.replace_if_silent(worker, "it did not open a thread").await;
                }
                (Ok(opened), _) if ties.abandoned.is_cancelled() && request.ephemeral => {
                    opened.lease.worker().forget_thread(&opened.thread_id).await;
                    engine.pool.threads().forget(&opened.thread_id);
                }
                (Ok(_) | Err(_), _) => {}
            }
            opened
        });
        Opening { task, _abandon: abandon }
    }

    async fn finish_abandoned(
        &self,
        open: &mut (impl Future<Output = Result<Opened, OpenError>> + Unpin),
        ties: &Ties,
    ) -> Result<Opened, OpenError> {
        let grace = self.settings.interrupt_grace;
        if let Ok(opened) = tokio::time::timeout(grace, &mut *open).await {
            return opened;
        }
        if let Some(worker) = ties.worker.get() {
            self.replace_if_silent(worker, "it was silent while it had a thread to open").await;
        }
        open.await
    }

    /// The request's thread beats the context's, which beats the tool's, which beats a new one.
    async fn open(
        &self,
        request: &TurnRequest,
        workspace: &Workspace,
        ties: &Ties,
    ) -> Result<Opened, OpenError> {
        let bound = request.context.as_ref().and_then(|key| self.registry.get(key));
        let (thread_id, origin) = if let Some(thread_id) = &request.explicit_thread {
            (thread_id.clone(), ThreadOrigin::Explicit)
        } else if let Some(binding) = bound {
            (binding.thread_id, ThreadOrigin::Resumed)
        } else if let Some(thread_id) = &request.configured_thread {
            (thread_id.clone(), ThreadOrigin::Explicit)
        } else {
            return self.open_new(request, workspace, ties).await;
        };
        match self.open_existing(request, workspace, &thread_id, origin, ties).await {
            Err(OpenError::Refused(Refusal::ThreadNotFound { thread_id, cause }))
                if request.missing_thread_policy == MissingThreadPolicy::StartNew
                    || self.is_blank(&thread_id) =>
            {
                let mut opened = self.open_new(request, workspace, ties).await?;
                opened.warnings.push(Event::Warning {
                    code: WarningCode::ThreadReplaced,
                    details: String::new(),
                    message: format!(
                        "thread {thread_id} was not found ({cause}); a new thread takes its place"
                    ),
                });
                Ok(opened)
            }
            other => other,
        }
    }

    /// Whether losing this thread loses nothing: without this, a context whose first worker died in
    /// the wrong moment would be refused for ever.
    fn is_blank(&self, thread_id: &ThreadId) -> bool {
        self.pool.threads().try_lock(thread_id).is_some_and(|thread| thread.is_blank)
    }

    async fn open_new(
        &self,
        request: &TurnRequest,
        workspace: &Workspace,
        ties: &Ties,
    ) -> Result<Opened, OpenError> {
        let options = &request.thread_options;
        let lease = ties.lease(self, None).await?;
        let mut patience = PATIENCE.iter();
        let (thread_id, loaded) = loop {
            match lease.worker().start_thread(options, workspace, request.ephemeral).await {
                Ok(started) => break started,
                Err(ThreadError::Overloaded(cause)) => ties.wait(patience.next(), cause).await?,
                Err(error) => return Err(open_error(error, None)),
            }
        };
        let mut thread = self.pool.threads().lock(&thread_id).await;
        *thread = ThreadState {
            usage: Some(crate::turn::event::Usage::default()),
            is_blank: true,
            dynamic_tools: Some(options.dynamic_tools.clone().unwrap_or_default()),
            ..ThreadState::default()
        };
        opened(thread_id, ThreadOrigin::New, loaded, lease, thread)
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
        // Another context may be bound to the same thread.
        let mut thread = match self.pool.threads().try_lock(thread_id) {
            Some(thread) => thread,
            None if request.busy_policy == BusyPolicy::Reject => {
                return Err(Refusal::ContextBusy.into());
            }
            None => ties.unless_abandoned(self.pool.threads().lock(thread_id)).await?,
        };
        let holder = thread.loaded.as_ref().map(|loaded| loaded.worker.clone());
        let holder = holder.or(thread.asked.take());
        if let Some(holder) = &holder {
            // No other worker could have the thread, and this one takes no turns.
            ties.unless_abandoned(self.pool.settled(holder)).await?;
        }
        if let Some(retiring) = holder.as_ref().and_then(|id| self.pool.retiring(id)) {
            // Its successor could not resume the thread while it is held there. One that is lost
            // meanwhile holds nothing any more.
            match retiring.release_thread(thread_id).await {
                Ok(()) | Err(ThreadError::Lost { .. }) => thread.loaded = None,
                Err(error) => return Err(open_error(error, Some(thread_id))),
            }
        }
        let lease = ties.lease(self, holder.as_ref()).await?;
        let worker = lease.worker();

        let held = thread.loaded.clone().filter(|loaded| {
            // The worker may have let go of it to end a turn that nobody had asked for.
            loaded.worker == *worker.id() && worker.holds_thread(thread_id)
        });
        let loaded = match held {
            Some(loaded) if loaded.fits(options) => loaded,
            held => {
                if held.is_some() {
                    // What a thread is loaded with can only be changed by loading it anew.
                    worker
                        .release_thread(thread_id)
                        .await
                        .map_err(|error| open_error(error, Some(thread_id)))?;
                }
                thread.loaded = None;
                let resumed = self.resume(worker, request, workspace, thread_id, ties).await;
                if matches!(resumed, Err(OpenError::Lost(_))) {
                    thread.asked = Some(worker.id().clone());
                }
                resumed?
            }
        };
        let mut warnings = Vec::new();
        if let (Some(wanted), Some(made_with)) = (&options.dynamic_tools, &thread.dynamic_tools)
            && wanted != made_with
        {
            let message = "dynamic_tools belong to a thread from its start; this thread keeps \
                           those that it was started with";
            warnings.push(Event::Warning {
                code: WarningCode::DynamicToolsIgnored,
                message: message.to_owned(),
                details: String::new(),
            });
        }
        let mut opened = opened(thread_id.clone(), origin, loaded, lease, thread)?;
        opened.warnings = warnings;
        Ok(opened)
    }

    async fn resume(
        &self,
        worker: &Worker,
        request: &TurnRequest,
        workspace: &Workspace,
        thread_id: &ThreadId,
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
                Err(error) => return Err(open_error(error, Some(thread_id))),
            }
        }
    }
}

fn opened(
    thread_id: ThreadId,
    origin: ThreadOrigin,
    loaded: LoadedThread,
    lease: Lease,
    mut thread: ThreadGuard,
) -> Result<Opened, OpenError> {
    // Also for a turn that ends before Codex takes it.
    thread.loaded = Some(loaded.clone());
    match lease.worker().route(thread_id.as_str()) {
        Some(route) => {
            let warnings = Vec::new();
            Ok(Opened { thread_id, origin, loaded, warnings, route, lease, thread })
        }
        None => Err(OpenError::Lost("the worker ended".to_owned())),
    }
}

fn open_error(error: ThreadError, thread_id: Option<&ThreadId>) -> OpenError {
    match (error, thread_id) {
        (ThreadError::NotFound(cause), Some(thread_id)) => {
            Refusal::ThreadNotFound { thread_id: thread_id.clone(), cause }.into()
        }
        // Opening a thread can be asked for again, even if the worker has seen it.
        (ThreadError::Lost { cause, .. }, _) => OpenError::Lost(cause),
        (ThreadError::Overloaded(cause), _) => Refusal::WorkerUnavailable {
            cause: format!("Codex is overloaded: {cause}"),
            retry_after: Duration::from_secs(2),
        }
        .into(),
        (
            error @ (ThreadError::NotFound(_)
            | ThreadError::Archived(_)
            | ThreadError::HeldElsewhere(_)
            | ThreadError::Steered(_)
            | ThreadError::Refused(_)),
            _,
        ) => Refusal::CodexRefused { cause: error.to_string() }.into(),
    }
}
