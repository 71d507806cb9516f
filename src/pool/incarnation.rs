//! A worker in its slot, with the pool's books of it, and a turn's use of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::worker::Worker;

/// A worker, and the turns that the pool has given it.
#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) worker: Arc<Worker>,
    pub(super) ready_at: Instant,
    running_turns: watch::Sender<usize>,
    started_turns: AtomicU64,
    completed_turns: AtomicU64,
}

impl Incarnation {
    pub(super) fn new(worker: Arc<Worker>) -> Arc<Incarnation> {
        Arc::new(Incarnation {
            worker,
            ready_at: Instant::now(),
            running_turns: watch::Sender::new(0),
            started_turns: AtomicU64::new(0),
            completed_turns: AtomicU64::new(0),
        })
    }

    /// How many turns have a lease on it.
    pub(crate) fn running_turns(&self) -> usize {
        *self.running_turns.borrow()
    }

    /// How many turns it was given since its start.
    pub(crate) fn started_turns(&self) -> u64 {
        self.started_turns.load(Ordering::Relaxed)
    }

    /// How many turns Codex ended on it, well or badly: a worker that did that works.
    pub(super) fn completed_turns(&self) -> u64 {
        self.completed_turns.load(Ordering::Relaxed)
    }

    /// How many threads it holds that no turn uses.
    pub(super) fn idle_threads(&self) -> usize {
        self.worker.loaded_threads().saturating_sub(self.running_turns())
    }

    /// Waits until no turn has a lease on it.
    pub(super) async fn idle(&self) {
        let mut running = self.running_turns.subscribe();
        // The sender lives as long as the incarnation.
        let _ = running.wait_for(|running| *running == 0).await;
    }
}

/// The use of a worker by one turn. Bound to one incarnation: when that one dies, the lease is of
/// no more use, and whatever it still says reaches nobody.
#[derive(Debug)]
pub(crate) struct Lease {
    incarnation: Arc<Incarnation>,
}

impl Lease {
    pub(super) fn new(incarnation: Arc<Incarnation>) -> Lease {
        incarnation.running_turns.send_modify(|running| *running += 1);
        incarnation.started_turns.fetch_add(1, Ordering::Relaxed);
        Lease { incarnation }
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.incarnation.worker
    }

    /// Notes that Codex has ended the turn, well or badly.
    pub(crate) fn note_turn_completed(&self) {
        self.incarnation.completed_turns.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.incarnation.running_turns.send_modify(|running| *running -= 1);
    }
}
