//! What callers do with the past of threads: copy it, take it back, read it. And the models, which a
//! worker is asked for as well.
//!
//! What changes a thread keeps its context, and the thread itself, free of turns meanwhile. Its caller
//! waits for that; from there on it goes to its end whatever becomes of the caller: a copy is bound then,
//! and nothing is left half done. Reading goes to the worker that has the thread, which alone knows of a
//! turn that runs, or to any.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::open::{Ties, open_error};
use super::{DrainState, Engine};
use tracing::Instrument as _;

use crate::model::id::{ContextKey, ThreadId, WorkerId};
use crate::model::refusal::Refusal;
use crate::pb::Model;
use crate::registry::bindings::Binding;
use crate::registry::threads::{ThreadFacts, ThreadLock};
use crate::turn::admission::Reservation;
use crate::turn::machine::{OpenError, PATIENCE};
use crate::worker::Worker;
use crate::worker::history::{HistoryPage, HistoryPlace, PastError};
use crate::worker::thread::{LoadedThread, ThreadError};

/// A context's thread to be copied for another context.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    pub(crate) source: ContextKey,
    pub(crate) target: ContextKey,
    /// Codex's id of the last turn that is copied; all of them where it is not said.
    pub(crate) last_turn_id: Option<String>,
}

/// The models, and when they were told.
type KnownModels = (Instant, Arc<Vec<Model>>);

/// What is kept for these calls.
#[derive(Debug)]
pub(super) struct Past {
    reads: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    models: Arc<Mutex<Option<KnownModels>>>,
}

impl Default for Past {
    fn default() -> Past {
        let [reads, changes] =
            [READS_AT_ONCE, CHANGES_AT_ONCE].map(|most| Arc::new(Semaphore::new(most)));
        Past { reads, changes, models: Arc::default() }
    }
}

/// A thread that no turn runs on, nor can begin on, until it is given back.
#[derive(Debug)]
pub(super) struct IdleThread {
    // In the order in which they are given back.
    pub(super) thread: ThreadLock<LoadedThread>,
    pub(super) thread_id: ThreadId,
    pub(super) reserved: Reservation,
    _change: OwnedSemaphorePermit,
}

/// How many pages are read at once: each holds up to a line of Codex's in memory.
const READS_AT_ONCE: usize = 4;

/// How many threads are changed at once. Those whose callers have gone are among them.
const CHANGES_AT_ONCE: usize = 64;

/// How long a call waits for its turn among others of its kind, and for whoever uses the thread.
const WAITS: Duration = Duration::from_secs(30);

/// How many workers are tried, where one after the other is lost.
const ATTEMPTS: usize = 3;

/// How old the list of models may be.
const MODELS_FOR: Duration = Duration::from_secs(60);

impl Engine {
    /// Copies a context's thread and binds another context to the copy.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is bound then.
    pub(crate) async fn fork_context(self: &Arc<Engine>, copy: Copy) -> Result<Binding, Refusal> {
        self.contexts.check_ledger()?;
        let reserving = self.contexts.reserve_copy(&copy.source, &copy.target);
        let idle = self.idle_thread(&copy.source, reserving).await?;
        let engine = Arc::clone(self);
        self.to_its_end(async move { engine.copy(copy, idle).await }).await
    }

    async fn copy(&self, copy: Copy, idle: IdleThread) -> Result<Binding, Refusal> {
        let Copy { target, last_turn_id, .. } = copy;
        let IdleThread { _change, reserved, thread_id, thread } = idle;
        // It has written what there is. Any other one will do as well.
        let holder = thread.loaded.as_ref().map(|loaded| loaded.worker.clone());
        let holder = holder.filter(|id| self.pool.worker(id).is_some());
        let (thread_id, last_turn_id) = (&thread_id, last_turn_id.as_deref());
        let deed =
            |worker: Arc<Worker>| async move { worker.copy_thread(thread_id, last_turn_id).await };
        let ties = Ties::none();
        let copying = self.on_a_worker(thread_id, holder, &ties, "last_codex_turn_id", deed);
        let (copy, worker) = copying.await.map_err(Refusal::from)?;
        let made_with = thread.facts.clone();
        drop(thread);
        let mut thread = self.threads.lock(&copy.thread_id).await;
        thread.facts = ThreadFacts {
            // A part of it has other counts.
            usage: made_with.usage.filter(|_| last_turn_id.is_none()),
            dynamic_tools: made_with.dynamic_tools,
            developer_instructions: made_with.developer_instructions,
            ..ThreadFacts::default()
        };
        thread.is_bound = true;
        thread.asked = (!copy.is_released).then_some(worker.clone());
        let of_copy = (&copy.thread_id, &thread.facts);
        let bound = self.contexts.bind_copy(&target, of_copy, thread_id, &reserved).await;
        if bound.is_err() {
            // Nobody will ever name it.
            if let Some(worker) = self.pool.worker(&worker) {
                worker.delete_thread(&copy.thread_id).await;
            }
            drop(thread);
            self.threads.forget(&copy.thread_id);
        }
        bound
    }

    /// Takes a context's thread back to before one of its turns.
    ///
    /// # Errors
    /// [`Refusal`]; the thread is as it was then, but where the worker was lost, or was too slow: it may
    /// be taken back after all.
    pub(crate) async fn revert_context(
        self: &Arc<Engine>,
        key: ContextKey,
        before_turn_id: String,
    ) -> Result<Binding, Refusal> {
        let idle = self.idle_thread(&key, self.contexts.reserve(&key)).await?;
        let engine = Arc::clone(self);
        self.to_its_end(async move { engine.revert(&key, &before_turn_id, idle).await }).await
    }

    async fn revert(
        &self,
        key: &ContextKey,
        before_turn_id: &str,
        idle: IdleThread,
    ) -> Result<Binding, Refusal> {
        let IdleThread { _change, reserved: _reserved, thread_id, mut thread } = idle;
        let ties = Ties::none();
        let holder = self.holder_for_use(&mut thread, &thread_id, &ties).await;
        let holder = holder.map_err(Refusal::from)?;
        let thread_id = &thread_id;
        // Before Codex is asked: a successor is not to take what it takes back for lost.
        let known = thread.facts.clone();
        let doubted = ThreadFacts { usage: None, turns: None, ..known.clone() };
        self.contexts.keep_doubts(thread_id, &doubted, &known).await?;
        thread.facts = doubted;
        let (may_be_done, asked) = (&AtomicBool::new(false), &StdMutex::new(holder.clone()));
        let deed = |worker: Arc<Worker>| async move {
            let reverted = worker.revert_thread(thread_id, before_turn_id).await;
            let is_lost = matches!(reverted, Err(PastError::Thread(ThreadError::Lost { .. })));
            let may_hold = is_lost || worker.holds_thread(thread_id);
            *asked.lock().unwrap_or_else(PoisonError::into_inner) =
                may_hold.then(|| worker.id().clone());
            match reverted {
                // The worker before this one has done it, and did not live to say so.
                Err(PastError::UnknownTurn(_)) if may_be_done.load(Ordering::Relaxed) => Ok(()),
                Err(PastError::Thread(error)) if error.may_have_been_done() => {
                    may_be_done.store(true, Ordering::Relaxed);
                    Err(error.into())
                }
                other => other,
            }
        };
        let reverting = self.on_a_worker(thread_id, holder, &ties, "before_codex_turn_id", deed);
        let reverted = reverting.await.map_err(Refusal::from);
        if reverted.is_err() && !may_be_done.load(Ordering::Relaxed) {
            thread.facts = known;
        }
        thread.loaded = None;
        // Where it may be loaded still.
        thread.asked = asked.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.contexts.keep_facts(thread_id, &thread.facts);
        reverted?;
        self.contexts.get(key)
    }

    /// A page of a thread's history: at most so many turns from a place on.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) async fn read_thread(
        self: &Arc<Engine>,
        thread_id: &ThreadId,
        place: &HistoryPlace,
        at_most: usize,
    ) -> Result<HistoryPage, Refusal> {
        let reading = Arc::clone(&self.past.reads).acquire_owned();
        let Ok(Ok(read)) = timeout(WAITS, reading).await else {
            let cause = "others read threads, and none of them has ended in time".to_owned();
            return Err(Refusal::WorkerUnavailable { cause, retry_after: Duration::from_secs(1) });
        };
        let (engine, thread_id, place) = (Arc::clone(self), thread_id.clone(), place.clone());
        // A caller that goes does not make room for another one: its worker reads on.
        let reading = tokio::spawn(
            async move {
                let page = engine.page(&thread_id, &place, at_most).await;
                drop(read);
                page
            }
            .in_current_span(),
        );
        reading.await.map_err(|error| Refusal::Internal(error.to_string()))?
    }

    async fn page(
        &self,
        thread_id: &ThreadId,
        place: &HistoryPlace,
        at_most: usize,
    ) -> Result<HistoryPage, Refusal> {
        let _awake = self.pool.wake();
        let mut attempt = 1;
        loop {
            let holder = self.threads.holder(thread_id);
            let holder =
                holder.and_then(|id| self.pool.worker(&id).or_else(|| self.pool.retiring(&id)));
            let worker = match holder {
                Some(worker) => worker,
                None => self.pool.worker_to_ask().await?,
            };
            let error = match worker.history(thread_id, place, at_most).await {
                Ok(page) => return Ok(page),
                Err(PastError::Thread(error)) => error,
                Err(error @ (PastError::InvalidPlace(_) | PastError::UnknownTurn(_))) => {
                    return Err(Refusal::field("page_token", error.to_string()));
                }
            };
            let is_gone = matches!(error, ThreadError::Lost { .. }) && !worker.is_alive();
            if !is_gone || attempt == ATTEMPTS {
                return Err(open_error(error, Some(thread_id)).into());
            }
            attempt += 1;
        }
    }

    /// The models that Codex offers, as a worker told them at most a minute ago.
    ///
    /// # Errors
    /// [`Refusal::WorkerUnavailable`], [`Refusal::CodexRefused`].
    pub(crate) async fn models(self: &Arc<Engine>) -> Result<Arc<Vec<Model>>, Refusal> {
        // One asks, and the others have its answer.
        let known = Arc::clone(&self.past.models).lock_owned();
        let mut known = timeout(WAITS, known).await.map_err(|_| {
            let cause = "a worker that was asked for its models gives no answer".to_owned();
            Refusal::WorkerUnavailable { cause, retry_after: Duration::from_secs(1) }
        })?;
        if let Some((told_at, models)) = &*known
            && told_at.elapsed() < MODELS_FOR
        {
            return Ok(Arc::clone(models));
        }
        let engine = Arc::clone(self);
        let asking = tokio::spawn(
            async move {
                let _awake = engine.pool.wake();
                let worker = engine.pool.worker_to_ask().await?;
                let models = worker.models().await.map_err(|error| open_error(error, None))?;
                let models = Arc::new(models);
                *known = Some((Instant::now(), Arc::clone(&models)));
                Ok(models)
            }
            .in_current_span(),
        );
        asking.await.map_err(|error| Refusal::Internal(error.to_string()))?
    }

    /// Does something that is not to be cut off with its call, unless the sidecar is on its way down.
    pub(super) async fn to_its_end<T: Send + 'static>(
        &self,
        deed: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining { retry_after: Duration::from_secs(1) });
        }
        let mut drain = self.drain.subscribe();
        // What is not done by then is cut off with the workers.
        let deed = async move {
            tokio::select! {
                biased;
                done = deed => done,
                _ = drain.wait_for(|state| *state == DrainState::Interrupting) => {
                    Err(Refusal::Draining { retry_after: Duration::from_secs(1) })
                }
            }
        };
        let fault = |error: tokio::task::JoinError| Refusal::Internal(error.to_string());
        self.tasks.spawn(deed.in_current_span()).await.map_err(fault)?
    }

    /// The thread of a context that is being reserved. It is not waited for without end: others may have
    /// reserved the same, the thread may be about to be released, and many may be changed just now.
    pub(super) async fn idle_thread(
        &self,
        key: &ContextKey,
        reserving: impl Future<Output = Result<(Reservation, ThreadId), Refusal>>,
    ) -> Result<IdleThread, Refusal> {
        let waiting = async {
            let in_use = Err(Refusal::ContextInUse(key.clone()));
            let (reserved, thread_id) = timeout(WAITS, reserving).await.unwrap_or(in_use)?;
            let is_late = |cause: String| Refusal::WorkerUnavailable {
                cause,
                retry_after: Duration::from_secs(5),
            };
            let mut thread = timeout(WAITS, self.threads.lock(&thread_id)).await.map_err(|_| {
                is_late(format!("thread {thread_id} is in use, and was not released in time"))
            })?;
            self.recall(&mut thread, &thread_id).await?;
            let changing = Arc::clone(&self.past.changes).acquire_owned();
            let Ok(Ok(_change)) = timeout(WAITS, changing).await else {
                let cause =
                    "others copy threads or take them back, and none of them has ended in time";
                return Err(is_late(cause.to_owned()));
            };
            Ok(IdleThread { thread, thread_id, reserved, _change })
        };
        let mut drain = self.drain.subscribe();
        tokio::select! {
            biased;
            _ = drain.wait_for(|state| *state != DrainState::Serving) => {
                Err(Refusal::Draining { retry_after: Duration::from_secs(1) })
            }
            idle = waiting => idle,
        }
    }

    /// Has something done by a worker: the one that has the thread, or any. Where workers die of it, it is
    /// held to what an opening is held to. `field` names the turn.
    pub(super) async fn on_a_worker<T, D: Future<Output = Result<T, PastError>>>(
        &self,
        thread_id: &ThreadId,
        holder: Option<WorkerId>,
        ties: &Ties,
        field: &str,
        deed: impl Fn(Arc<Worker>) -> D,
    ) -> Result<(T, WorkerId), OpenError> {
        let mut attempt = 1;
        let mut is_unarchived = false;
        let mut patience = PATIENCE.iter();
        let mut lease = ties.lease(self, holder.as_ref()).await?;
        lease.note_no_turn();
        loop {
            let worker = Arc::clone(lease.worker());
            let error = match deed(Arc::clone(&worker)).await {
                Ok(done) => return Ok((done, worker.id().clone())),
                Err(PastError::Thread(error)) => error,
                Err(error @ (PastError::UnknownTurn(_) | PastError::InvalidPlace(_))) => {
                    let description = format!(
                        "is no turn of the thread (Codex says: {error}); name one that turn_started or \
                         ReadThread told"
                    );
                    return Err(Refusal::field(field, description).into());
                }
            };
            match error {
                ThreadError::Overloaded(cause) => ties.wait(patience.next(), cause).await?,
                // A worker was killed between the two steps of a release.
                ThreadError::Archived(_) if !is_unarchived => {
                    is_unarchived = true;
                    let unarchiving = worker.unarchive_thread(thread_id).await;
                    unarchiving.map_err(|error| open_error(error, Some(thread_id)))?;
                }
                ThreadError::HeldElsewhere(cause) => match patience.next() {
                    Some(pause) => ties.pause(*pause).await?,
                    None => {
                        let thread_id = thread_id.clone();
                        return Err(Refusal::ThreadHeldElsewhere { thread_id, cause }.into());
                    }
                },
                ThreadError::Lost { cause, .. } => {
                    drop(lease);
                    match self.lost(cause, ties).await {
                        OpenError::Lost(_) if attempt < ATTEMPTS => attempt += 1,
                        error => return Err(error),
                    }
                    lease = ties.lease(self, None).await?;
                    lease.note_no_turn();
                }
                error => return Err(open_error(error, Some(thread_id))),
            }
        }
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Refusal {
        match error {
            OpenError::Refused(refusal) => refusal,
            OpenError::Lost(cause) => {
                Refusal::WorkerUnavailable { cause, retry_after: Duration::from_secs(1) }
            }
        }
    }
}
