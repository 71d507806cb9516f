//! The slots: which incarnation is in each, and how its workers fared.
//!
//! Supervision writes them. Everybody else reads them, or waits until they change.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::id::WorkerId;
use crate::pool::{Incarnation, Pool, Trouble, Unavailable};
use crate::worker::Worker;

/// What a slot does.
#[derive(Debug, Clone, Default)]
pub(crate) enum SlotState {
    /// It waits for its turn to start, or starts.
    #[default]
    Starting,
    /// Its worker is warm.
    Ready(Arc<Incarnation>),
    /// Its worker gets no new turns: it gave no sign of life and is asked once more, or does not end a
    /// turn that it was told to interrupt.
    Unresponsive(Arc<Incarnation>),
    /// Its worker failed; the next one starts later.
    Backoff {
        /// When.
        until: Instant,
    },
    /// It has no worker until somebody needs one.
    Asleep,
    /// The pool has been shut down.
    Stopped,
}

impl SlotState {
    /// Its warm worker, as far as the slot knows.
    pub(crate) fn ready(&self) -> Option<&Arc<Incarnation>> {
        match self {
            SlotState::Ready(incarnation) => Some(incarnation),
            SlotState::Starting
            | SlotState::Unresponsive(_)
            | SlotState::Backoff { .. }
            | SlotState::Asleep
            | SlotState::Stopped => None,
        }
    }

    /// Its worker, warm or not.
    pub(crate) fn held(&self) -> Option<&Arc<Incarnation>> {
        match self {
            SlotState::Ready(incarnation) | SlotState::Unresponsive(incarnation) => {
                Some(incarnation)
            }
            SlotState::Starting
            | SlotState::Backoff { .. }
            | SlotState::Asleep
            | SlotState::Stopped => None,
        }
    }
}

/// What is known of a slot.
#[derive(Debug, Clone, Default)]
pub(crate) struct SlotStatus {
    pub(crate) state: SlotState,
    /// The generation of its latest worker.
    pub(crate) generation: u64,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// The last failed start or end of a worker.
    pub(crate) last_failure: Option<Failure>,
}

/// A failed start or the end of a worker.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: Trouble,
    /// For the person who reads it.
    pub(crate) message: String,
}

impl Pool {
    /// What is known of every slot, in order.
    pub(crate) fn status(&self) -> Vec<SlotStatus> {
        self.slots.borrow().clone()
    }

    /// The worker of this id, if that incarnation still runs and takes turns.
    pub(crate) fn worker(&self, id: &WorkerId) -> Option<Arc<Worker>> {
        self.incarnation(id).map(|incarnation| Arc::clone(&incarnation.worker))
    }

    pub(super) fn incarnation(&self, id: &WorkerId) -> Option<Arc<Incarnation>> {
        let slots = self.slots.borrow();
        let ready = slots.get(id.slot)?.state.ready();
        ready.filter(|ready| ready.worker.id() == id && ready.worker.is_alive()).cloned()
    }

    /// The worker of this id, if it gets no new turns because it does not end one. What else it holds it
    /// can be asked to let go of, and another worker could have.
    pub(crate) fn drained(&self, id: &WorkerId) -> Option<Arc<Worker>> {
        // What could not be written down is in the memory of the worker alone.
        if self.home_fault.borrow().is_some() {
            return None;
        }
        let slots = self.slots.borrow();
        let is_another_ready = slots.iter().any(|slot| slot.state.ready().is_some());
        match &slots.get(id.slot)?.state {
            SlotState::Unresponsive(drained)
                if drained.worker.id() == id && drained.unended() > 0 && is_another_ready =>
            {
                Some(Arc::clone(&drained.worker))
            }
            _ => None,
        }
    }

    /// Waits while the worker of this id gets no new turns: what it holds it holds until it is back or
    /// killed.
    ///
    /// # Errors
    /// [`Unavailable`] where neither is soon: one that still tells of its turns is not killed before they
    /// have ended, and one that does not end a turn not for a while.
    pub(crate) async fn settled(&self, id: &WorkerId) -> Result<(), Unavailable> {
        let mut complaint = None;
        let mut slots = self.slots.subscribe();
        let settling = slots.wait_for(|slots| {
            complaint = match slots.get(id.slot).map(|slot| &slot.state) {
                Some(SlotState::Unresponsive(stuck)) if stuck.worker.id() == id => {
                    Some(stuck.complaint())
                }
                _ => None,
            };
            complaint.is_none()
        });
        // The sender lives as long as the pool.
        let _ = tokio::time::timeout(self.settling(), settling).await;
        match complaint {
            None => Ok(()),
            Some(complaint) => Err(Unavailable {
                cause: format!(
                    "worker {id}, which holds the thread, {complaint}, and still has turns at work"
                ),
                retry_after: Duration::from_secs(5),
                out_of_resources: false,
            }),
        }
    }

    /// How long a turn waits for a worker that gets no new turns: longer than one lives that says nothing
    /// at all.
    pub(super) fn settling(&self) -> Duration {
        self.settings.worker_wait + self.settings.liveness_timeout * 2
    }

    /// Notes that a worker owes a sign of life, or the end of a turn: it gets no new turns until it gives
    /// that, which its supervisor sees to.
    pub(super) fn doubt(&self, doubted: &Arc<Incarnation>) {
        self.update(doubted.worker.id().slot, |status| {
            if status.state.ready().is_some_and(|ready| Arc::ptr_eq(ready, doubted)) {
                status.state = SlotState::Unresponsive(Arc::clone(doubted));
            }
        });
        doubted.doubted.notify_one();
    }

    /// Whether this incarnation may still hold a thread.
    pub(crate) fn runs(&self, id: &WorkerId) -> bool {
        let holds =
            |slot: &SlotStatus| slot.state.held().is_some_and(|held| held.worker.id() == id);
        self.slots.borrow().get(id.slot).is_some_and(holds) || self.retiring(id).is_some()
    }

    pub(super) fn update(&self, slot: usize, change: impl FnOnce(&mut SlotStatus)) {
        self.slots.send_modify(|slots| {
            if let Some(status) = slots.get_mut(slot) {
                change(status);
            }
        });
        self.update_readiness();
    }
}
