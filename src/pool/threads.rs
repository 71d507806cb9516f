//! Which thread is loaded where, and who may use it now.
//!
//! A turn locks its thread for as long as it runs. That one lock keeps the promise that a thread
//! never has two turns at once, whatever contexts it is bound to. What is known of a thread is
//! forgotten where it can be learned anew, so that the table is bounded by what workers hold.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use dashmap::DashMap;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::model::event::Usage;
use crate::model::id::ThreadId;
use crate::model::id::WorkerId;
use crate::model::options::DynamicTool;
use crate::worker::thread::LoadedThread;

/// What is remembered of a thread between its turns.
#[derive(Debug, Default)]
pub struct ThreadState {
    /// Where it is loaded. Only true while that incarnation of the worker runs.
    pub loaded: Option<LoadedThread>,
    /// The worker that was asked to load it and has not been heard of since: it may have done so.
    pub asked: Option<WorkerId>,
    /// Its token counts after the last turn that was seen here.
    pub usage: Option<Usage>,
    /// Made here, and Codex was never seen to work on a turn of it: its worker may have died before
    /// there was a rollout, and with it a history that could be lost.
    pub is_blank: bool,
    /// The functions that it was made with, where it was made here.
    pub dynamic_tools: Option<Vec<DynamicTool>>,
    /// The developer instructions that it was made with, empty for none, where it was made here; else
    /// those that were asked for first, once that was warned of.
    pub developer_instructions: Option<String>,
}

#[derive(Debug, Default)]
struct Cell {
    state: Arc<Mutex<ThreadState>>,
    // What `state.loaded` said when it was last given back or set; read without the lock.
    holder: Arc<StdMutex<Option<WorkerId>>>,
}

type Cells = DashMap<ThreadId, Cell>;

/// Up to how many threads are remembered although no worker holds them: their token counts are
/// exact then from the first report of their next turn on.
const REMEMBERED: usize = 10_000;

impl Cell {
    /// Whether nobody uses it, nobody waits for it, and no worker that `runs` holds its thread.
    fn can_be_forgotten(&self, knows_counts: bool, runs: impl Fn(&WorkerId) -> bool) -> bool {
        // Whoever wants it takes a share of it under the map's lock, which is held here.
        if Arc::strong_count(&self.state) > 1 {
            return false;
        }
        self.state.try_lock().is_ok_and(|state| {
            // That a thread is blank can be learned nowhere else.
            !state.is_blank
                && (knows_counts || state.usage.is_none())
                && state.loaded.as_ref().is_none_or(|loaded| !runs(&loaded.worker))
                && state.asked.as_ref().is_none_or(|worker| !runs(worker))
        })
    }
}

/// The exclusive use of a thread.
#[derive(Debug)]
pub struct ThreadGuard {
    state: OwnedMutexGuard<ThreadState>,
    holder: Arc<StdMutex<Option<WorkerId>>>,
    // Declared last: it looks at the cell when this guard's share of it is gone.
    _forgetting: Forgetting,
}

/// Forgets a thread after its use if there is nothing to remember: an id that a caller made up would
/// else stay for ever.
#[derive(Debug)]
struct Forgetting {
    cells: Arc<Cells>,
    thread_id: ThreadId,
}

impl Drop for Forgetting {
    fn drop(&mut self) {
        let is_full = self.cells.len() > REMEMBERED;
        self.cells.remove_if(&self.thread_id, |_, cell| cell.can_be_forgotten(is_full, |_| true));
    }
}

impl Deref for ThreadGuard {
    type Target = ThreadState;

    fn deref(&self) -> &ThreadState {
        &self.state
    }
}

impl DerefMut for ThreadGuard {
    fn deref_mut(&mut self) -> &mut ThreadState {
        &mut self.state
    }
}

impl ThreadGuard {
    /// Notes where the thread is loaded, for those who ask without using it.
    pub fn publish_holder(&self) {
        let holder = self.state.loaded.as_ref().map(|loaded| loaded.worker.clone());
        *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = holder;
    }
}

impl Drop for ThreadGuard {
    fn drop(&mut self) {
        self.publish_holder();
    }
}

/// The threads that this sidecar has met.
#[derive(Debug, Default)]
pub struct Threads {
    cells: Arc<Cells>,
}

impl Threads {
    /// Waits for the exclusive use of a thread, first come first served.
    pub async fn lock(&self, thread_id: &ThreadId) -> ThreadGuard {
        // The map's guard is gone before anybody waits for the cell's.
        let (state, holder) = self.cell(thread_id);
        let forgetting = self.forgetting(thread_id);
        ThreadGuard { state: state.lock_owned().await, holder, _forgetting: forgetting }
    }

    /// Takes the exclusive use of a thread if nobody has it.
    pub fn try_lock(&self, thread_id: &ThreadId) -> Option<ThreadGuard> {
        let (state, holder) = self.cell(thread_id);
        let forgetting = self.forgetting(thread_id);
        Some(ThreadGuard { state: state.try_lock_owned().ok()?, holder, _forgetting: forgetting })
    }

    /// The worker that had the thread loaded when last heard; it may have ended since.
    pub fn holder(&self, thread_id: &ThreadId) -> Option<WorkerId> {
        let cell = self.cells.get(thread_id)?;
        cell.holder.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets a thread that can't come back: an ephemeral one after its turn.
    pub fn forget(&self, thread_id: &ThreadId) {
        self.cells.remove(thread_id);
    }

    /// Forgets, once there are many, the threads that no worker holds which `runs`.
    pub fn forget_unheld(&self, runs: impl Fn(&WorkerId) -> bool) {
        if self.cells.len() > REMEMBERED {
            self.cells.retain(|_, cell| !cell.can_be_forgotten(true, &runs));
        }
    }

    /// How many threads are remembered.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    fn forgetting(&self, thread_id: &ThreadId) -> Forgetting {
        Forgetting { cells: Arc::clone(&self.cells), thread_id: thread_id.clone() }
    }

    fn cell(
        &self,
        thread_id: &ThreadId,
    ) -> (Arc<Mutex<ThreadState>>, Arc<StdMutex<Option<WorkerId>>>) {
        let cell = self.cells.entry(thread_id.clone()).or_default();
        (Arc::clone(&cell.state), Arc::clone(&cell.holder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ThreadId {
        ThreadId::from_codex(format!("thread-{number}"))
    }

    #[tokio::test]
    async fn what_nobody_holds_is_forgotten_and_what_is_blank_or_in_use_is_not() {
        let threads = Threads::default();
        // An id that a caller made up.
        drop(threads.lock(&id(0)).await);
        assert!(threads.try_lock(&id(0)).is_some());
        assert!(threads.is_empty());

        threads.lock(&id(0)).await.is_blank = true;
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
            threads.lock(&id(number)).await.usage = Some(Usage::default());
        }
        assert_eq!(threads.len(), REMEMBERED);
        threads.forget_unheld(|_| false);
        assert_eq!(threads.len(), REMEMBERED, "there is room for them");
        // Beyond that, one goes after its use.
        for number in REMEMBERED..REMEMBERED + 10 {
            threads.lock(&id(number)).await.usage = Some(Usage::default());
        }
        assert_eq!(threads.len(), REMEMBERED);
        drop(threads.lock(&id(REMEMBERED)).await);
        let extra = threads.lock(&id(REMEMBERED)).await;
        threads.forget_unheld(|_| false);
        assert_eq!(threads.len(), 3, "blank, used, used");
        drop((used, extra));
        assert!(threads.try_lock(&id(0)).is_some_and(|thread| thread.is_blank));
    }
}
