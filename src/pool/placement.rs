//! Which worker a turn gets.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::id::WorkerId;
use crate::pool::readiness::trouble;
use crate::pool::{Incarnation, Lease, Pool, SlotState, SlotStatus, Trouble};

/// Why no worker can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unavailable {
    /// For the person who reads it.
    pub(crate) cause: String,
    /// When to try again.
    pub(crate) retry_after: Duration,
    /// Whether the machine is out of processes, memory or file descriptors.
    pub(crate) out_of_resources: bool,
}

impl Pool {
    /// A worker for a turn: the preferred one if that incarnation still runs, else the least loaded.
    /// Waits for a worker that is being started, but never for one that keeps failing.
    ///
    /// # Errors
    /// [`Unavailable`] with the cause and when to try again.
    pub(crate) async fn lease(&self, preferred: Option<&WorkerId>) -> Result<Lease, Unavailable> {
        let deadline = Instant::now() + self.settings.worker_wait;
        if let Some(cause) = self.home_fault.borrow().clone() {
            // Codex could not write down what the turn says.
            let retry_after = Duration::from_secs(5);
            return Err(Unavailable { cause, retry_after, out_of_resources: false });
        }
        if let Some(incarnation) = preferred.and_then(|id| self.incarnation(id)) {
            return Ok(Lease::new(incarnation));
        }
        let mut slots = self.slots.subscribe();
        let mut found = None;
        let looking = slots.wait_for(|slots| {
            let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
            found = least_loaded(slots).map(Lease::new);
            found.is_some() || !slots.iter().any(|slot| self.may_come(slot))
        });
        let _ = tokio::time::timeout_at(deadline, looking).await;
        found.ok_or_else(|| unavailable(&self.slots.borrow()))
    }

    fn may_come(&self, slot: &SlotStatus) -> bool {
        let broken = slot.failures >= self.settings.breaker_failures;
        match slot.state {
            SlotState::Starting | SlotState::Backoff { .. } => !broken,
            // Its worker has just died and its supervisor is about to see it, or it may yet live.
            SlotState::Ready(_) | SlotState::Unresponsive(_) => true,
            SlotState::Stopped => false,
        }
    }
}

fn least_loaded(slots: &[SlotStatus]) -> Option<Arc<Incarnation>> {
    let ready = slots.iter().filter_map(|slot| slot.state.ready());
    let least = ready.filter(|incarnation| incarnation.worker.is_alive()).min_by_key(|ready| {
        (ready.running_turns(), ready.worker.loaded_threads(), ready.started_turns())
    });
    least.cloned()
}

fn unavailable(slots: &[SlotStatus]) -> Unavailable {
    let now = Instant::now();
    let pauses = slots.iter().filter_map(|slot| match slot.state {
        SlotState::Backoff { until } => Some(until.saturating_duration_since(now)),
        SlotState::Starting
        | SlotState::Ready(_)
        | SlotState::Unresponsive(_)
        | SlotState::Stopped => None,
    });
    let retry_after = pauses.min().unwrap_or_default().max(Duration::from_secs(1));
    let (kind, cause) = trouble(slots);
    Unavailable { cause, retry_after, out_of_resources: kind == Trouble::OutOfResources }
}
