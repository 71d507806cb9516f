//! Which thread is loaded where, and who may use it now.
//!
//! A turn locks its thread for as long as it runs. That one lock keeps the promise that a thread
//! never has two turns at once, whatever contexts it is bound to.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};

use dashmap::DashMap;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::options::DynamicTool;
use crate::turn::event::Usage;
use crate::turn::request::ThreadId;
use crate::worker::WorkerId;
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
}

#[derive(Debug, Default)]
struct Cell {
    state: Arc<Mutex<ThreadState>>,
    // What `state.loaded` said when it was last given back or set; read without the lock.
    holder: Arc<StdMutex<Option<WorkerId>>>,
}

/// The exclusive use of a thread.
#[derive(Debug)]
pub struct ThreadGuard {
    state: OwnedMutexGuard<ThreadState>,
    holder: Arc<StdMutex<Option<WorkerId>>>,
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
    cells: DashMap<ThreadId, Cell>,
}

impl Threads {
    /// Waits for the exclusive use of a thread, first come first served.
    pub async fn lock(&self, thread_id: &ThreadId) -> ThreadGuard {
        // The map's guard is gone before anybody waits for the cell's.
        let (state, holder) = self.cell(thread_id);
        ThreadGuard { state: state.lock_owned().await, holder }
    }

    /// Takes the exclusive use of a thread if nobody has it.
    pub fn try_lock(&self, thread_id: &ThreadId) -> Option<ThreadGuard> {
        let (state, holder) = self.cell(thread_id);
        Some(ThreadGuard { state: state.try_lock_owned().ok()?, holder })
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

    fn cell(
        &self,
        thread_id: &ThreadId,
    ) -> (Arc<Mutex<ThreadState>>, Arc<StdMutex<Option<WorkerId>>>) {
        let cell = self.cells.entry(thread_id.clone()).or_default();
        (Arc::clone(&cell.state), Arc::clone(&cell.holder))
    }
}
