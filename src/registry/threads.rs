//! What is known of each thread, where it is loaded, and who may use it now.
//!
//! A turn locks its thread for as long as it runs. That one lock keeps the promise that a thread
//! never has two turns at once, whatever contexts it is bound to. What is known of a thread is
//! forgotten where it can be learned anew, so that the table is bounded by what workers hold.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use dashmap::DashMap;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::model::event::Usage;
use crate::model::fingerprint::Fingerprint;
use crate::model::id::{ThreadId, WorkerId};

/// What is true of a thread wherever it is loaded.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct ThreadFacts {
    /// Its token counts after the last turn that was seen here.
    pub(crate) usage: Option<Usage>,
    /// Made here, and Codex was never seen to work on a turn of it: its worker may have died before
    /// there was a rollout, and with it a history that could be lost.
    pub(crate) is_blank: bool,
    /// The turns that were seen to end on it, where all are known.
    pub(crate) turns: Option<TurnsSeen>,
    /// What its last turn here left.
    pub(crate) left: Option<Left>,
    /// Of the functions that it was made with, where it was made here.
    pub(crate) dynamic_tools: Option<Fingerprint>,
    /// Of the developer instructions that it was made with, empty for none, where it was made here; else
    /// of those that were asked for first, once that was warned of.
    pub(crate) developer_instructions: Option<Fingerprint>,
}

/// The turns that were seen to end on a thread: what Codex has of it when it is loaded again must not be
/// less.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct TurnsSeen {
    /// How many.
    pub(crate) count: usize,
    pub(crate) last: Option<SeenTurn>,
}

/// A turn that was seen to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SeenTurn {
    /// Codex's id of it.
    pub(crate) id: String,
    /// Whether it ended well.
    pub(crate) has_completed: bool,
}

/// What a turn has set with Codex that is not what holds without it, and that Codex does not tell: the next
/// turn must take it away.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) summary: bool,
    pub(crate) service_tier: bool,
}

/// A loaded thread, as its worker describes it.
pub(crate) trait Loaded {
    /// The incarnation of the worker that holds it; with any other it is not loaded.
    fn worker(&self) -> &WorkerId;
}

/// What is remembered of a thread between its turns.
#[derive(Debug)]
pub(crate) struct ThreadState<L> {
    /// What is true of it wherever it is loaded.
    pub(crate) facts: ThreadFacts,
    /// Whether a context goes on with it.
    pub(crate) is_bound: bool,
    /// Where it is loaded. Only true while that incarnation of the worker runs.
    pub(crate) loaded: Option<L>,
    /// The worker that was asked to load it and has not been heard of since: it may have done so.
    pub(crate) asked: Option<WorkerId>,
}

impl<L> Default for ThreadState<L> {
    fn default() -> ThreadState<L> {
        ThreadState { facts: ThreadFacts::default(), is_bound: false, loaded: None, asked: None }
    }
}

#[derive(Debug)]
struct Cell<L> {
    state: Arc<Mutex<ThreadState<L>>>,
    holder: Holder,
}

/// The worker that `state.loaded` named when it was last given back or set; read without the lock.
type Holder = Arc<StdMutex<Option<WorkerId>>>;

type Cells<L> = DashMap<ThreadId, Cell<L>>;

/// Up to how many threads are remembered although no worker holds them: their token counts are
/// exact then from the first report of their next turn on, and what they were made with is known.
const REMEMBERED: usize = 10_000;

impl<L> Default for Cell<L> {
    fn default() -> Cell<L> {
        Cell { state: Arc::default(), holder: Arc::default() }
    }
}

impl<L: Loaded> Cell<L> {
    /// Whether nobody uses it, nobody waits for it, and no worker that `runs` holds its thread.
    fn can_be_forgotten(&self, knows_counts: bool, runs: impl Fn(&WorkerId) -> bool) -> bool {
        // Whoever wants it takes a share of it under the map's lock, which is held here.
        if Arc::strong_count(&self.state) > 1 {
            return false;
        }
        self.state.try_lock().is_ok_and(|state| {
            let ThreadFacts { is_blank, usage, dynamic_tools, developer_instructions, .. } =
                &state.facts;
            let knows_nothing =
                usage.is_none() && dynamic_tools.is_none() && developer_instructions.is_none();
            // That a thread is blank can be learned nowhere else, and its context would be refused for
            // ever. Of one without a context there is nothing to know.
            !(*is_blank && state.is_bound)
                && (knows_counts || *is_blank || knows_nothing)
                && state.loaded.as_ref().is_none_or(|loaded| !runs(loaded.worker()))
                && state.asked.as_ref().is_none_or(|worker| !runs(worker))
        })
    }
}

/// The exclusive use of a thread.
#[derive(Debug)]
pub(crate) struct ThreadLock<L: Loaded> {
    state: OwnedMutexGuard<ThreadState<L>>,
    holder: Holder,
    // Declared last: it looks at the cell when this lock's share of it is gone.
    _forget: ForgetOnDrop<L>,
}

/// Forgets a thread after its use if there is nothing to remember: an id that a caller made up would
/// else stay for ever.
#[derive(Debug)]
struct ForgetOnDrop<L: Loaded> {
    cells: Arc<Cells<L>>,
    thread_id: ThreadId,
}

impl<L: Loaded> Drop for ForgetOnDrop<L> {
    fn drop(&mut self) {
        let is_full = self.cells.len() > REMEMBERED;
        self.cells.remove_if(&self.thread_id, |_, cell| cell.can_be_forgotten(is_full, |_| true));
    }
}

impl<L: Loaded> Deref for ThreadLock<L> {
    type Target = ThreadState<L>;

    fn deref(&self) -> &ThreadState<L> {
        &self.state
    }
}

impl<L: Loaded> DerefMut for ThreadLock<L> {
    fn deref_mut(&mut self) -> &mut ThreadState<L> {
        &mut self.state
    }
}

impl<L: Loaded> ThreadLock<L> {
    /// Notes where the thread is loaded, for those who ask without using it.
    pub(crate) fn publish_holder(&self) {
        let holder = self.state.loaded.as_ref().map(|loaded| loaded.worker().clone());
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = holder;
    }
}

impl<L: Loaded> Drop for ThreadLock<L> {
    fn drop(&mut self) {
        self.publish_holder();
    }
}

/// The threads that this sidecar has met.
#[derive(Debug)]
pub(crate) struct Threads<L> {
    cells: Arc<Cells<L>>,
}

impl<L> Default for Threads<L> {
    fn default() -> Threads<L> {
        Threads { cells: Arc::default() }
    }
}

impl<L: Loaded> Threads<L> {
    /// Waits for the exclusive use of a thread, first come first served.
    pub(crate) async fn lock(&self, thread_id: &ThreadId) -> ThreadLock<L> {
        // The map is unlocked before anybody waits for the cell.
        let (state, holder) = self.cell(thread_id);
        let forget = self.forget_on_drop(thread_id);
        ThreadLock { state: state.lock_owned().await, holder, _forget: forget }
    }

    /// Takes the exclusive use of a thread if nobody has it.
    pub(crate) fn try_lock(&self, thread_id: &ThreadId) -> Option<ThreadLock<L>> {
        let (state, holder) = self.cell(thread_id);
        let forget = self.forget_on_drop(thread_id);
        Some(ThreadLock { state: state.try_lock_owned().ok()?, holder, _forget: forget })
    }

    /// The worker that had the thread loaded when last heard; it may have ended since.
    pub(crate) fn holder(&self, thread_id: &ThreadId) -> Option<WorkerId> {
        let cell = self.cells.get(thread_id)?;
        cell.holder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets a thread that can't come back: an ephemeral one after its turn.
    pub(crate) fn forget(&self, thread_id: &ThreadId) {
        self.cells.remove(thread_id);
    }

    /// Forgets, once there are many, the threads that no worker holds which `runs`.
    pub(crate) fn forget_unheld(&self, runs: impl Fn(&WorkerId) -> bool) {
        if self.cells.len() > REMEMBERED {
            self.cells.retain(|_, cell| !cell.can_be_forgotten(true, &runs));
        }
    }

    fn forget_on_drop(&self, thread_id: &ThreadId) -> ForgetOnDrop<L> {
        ForgetOnDrop { cells: Arc::clone(&self.cells), thread_id: thread_id.clone() }
    }

    fn cell(&self, thread_id: &ThreadId) -> (Arc<Mutex<ThreadState<L>>>, Holder) {
        let cell = self.cells.entry(thread_id.clone()).or_default();
        (Arc::clone(&cell.state), Arc::clone(&cell.holder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Loaded for WorkerId {
        fn worker(&self) -> &WorkerId {
            self
        }
    }

    fn id(number: usize) -> ThreadId {
        ThreadId::from_codex(format!("thread-{number}"))
    }

    #[tokio::test]
    async fn what_nobody_holds_is_forgotten_and_what_is_blank_or_in_use_is_not() {
        let threads = Threads::<WorkerId>::default();
        // An id that a caller made up.
        drop(threads.lock(&id(0)).await);
        assert!(threads.try_lock(&id(0)).is_some());
        assert!(threads.cells.is_empty());

        let mut blank = threads.lock(&id(0)).await;
        (blank.facts.is_blank, blank.is_bound) = (true, true);
        drop(blank);
        let used = threads.lock(&id(1)).await;
        let first = id(1);
        let waiting = threads.lock(&first);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(used);
        // Whoever waited has the one cell that there is.
        let used = waiting.await;
        assert!(threads.try_lock(&id(1)).is_none());
        for number in 2..REMEMBERED {
            threads.lock(&id(number)).await.facts.usage = Some(Usage::default());
        }
        assert_eq!(threads.cells.len(), REMEMBERED);
        threads.forget_unheld(|_| false);
        assert_eq!(threads.cells.len(), REMEMBERED, "there is room for them");
        // Beyond that, one goes after its use.
        for number in REMEMBERED..REMEMBERED + 10 {
            threads.lock(&id(number)).await.facts.usage = Some(Usage::default());
        }
        assert_eq!(threads.cells.len(), REMEMBERED);
        drop(threads.lock(&id(REMEMBERED)).await);
        let extra = threads.lock(&id(REMEMBERED)).await;
        threads.forget_unheld(|_| false);
        assert_eq!(threads.cells.len(), 3, "blank, used, used");
        drop((used, extra));
        assert!(threads.try_lock(&id(0)).is_some_and(|thread| thread.facts.is_blank));
    }

    #[tokio::test]
    async fn a_blank_thread_that_no_context_goes_on_with_is_forgotten_once_it_is_loaded_nowhere() {
        let threads = Threads::<WorkerId>::default();
        let mut thread = threads.lock(&id(0)).await;
        thread.facts =
            ThreadFacts { usage: Some(Usage::default()), is_blank: true, ..ThreadFacts::default() };
        thread.loaded = Some(WorkerId { slot: 0, generation: 1 });
        drop(thread);
        assert_eq!(threads.cells.len(), 1);
        threads.lock(&id(0)).await.is_bound = true;
        threads.lock(&id(0)).await.loaded = None;
        assert_eq!(threads.cells.len(), 1, "its context is to go on");
        // Its context is deleted.
        threads.lock(&id(0)).await.is_bound = false;
        assert!(threads.cells.is_empty());
    }

    #[tokio::test]
    async fn a_thread_that_a_running_worker_holds_or_may_hold_is_kept() {
        let threads = Threads::<WorkerId>::default();
        let [ended, running] = [1, 2].map(|generation| WorkerId { slot: 0, generation });
        for number in 0..=REMEMBERED {
            let mut thread = threads.lock(&id(number)).await;
            match number {
                0 => thread.loaded = Some(running.clone()),
                1 => thread.asked = Some(running.clone()),
                2 => thread.asked = Some(ended.clone()),
                _ => thread.loaded = Some(ended.clone()),
            }
        }
        assert_eq!(threads.holder(&id(0)), Some(running.clone()));
        threads.forget_unheld(|worker| *worker == running);
        assert_eq!(threads.cells.len(), 2);
        assert!([0, 1].iter().all(|number| threads.cells.contains_key(&id(*number))));
    }
}
