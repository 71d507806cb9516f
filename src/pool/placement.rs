//! Which worker a turn gets.

use std::sync::Arc;
use std::time::Duration;

use crate::model::id::WorkerId;
use crate::pool::{Pool, Readiness, SlotState, SlotStatus, Trouble, Unavailable};
use crate::worker::Worker;

/// The use of a worker by one turn. Bound to one incarnation: when that one dies, the lease is of
/// no more use, and whatever it still says reaches nobody.
#[derive(Debug)]
pub struct Lease {
    worker: Arc<Worker>,
}

impl Lease {
    fn new(worker: Arc<Worker>) -> Lease {
        worker.begin_turn();
        Lease { worker }
    }

    /// The worker.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.worker.end_turn();
    }
}

impl Pool {
    /// A worker for a turn: the preferred one if that incarnation still runs, else the least loaded.
    /// Waits for a worker that is being started, but never for one that keeps failing.
    ///
    /// # Errors
    /// [`Unavailable`] with the cause and when to try again.
    pub async fn lease(&self, preferred: Option<&WorkerId>) -> Result<Lease, Unavailable> {
        let deadline = tokio::time::Instant::now() + self.settings.worker_wait;
        if let Some(cause) = self.home_fault.borrow().clone() {
            // Codex could not write down what the turn says.
            let retry_after = Duration::from_secs(5);
            return Err(Unavailable { cause, retry_after, out_of_resources: false });
        }
        if let Some(worker) = preferred.and_then(|id| self.worker(id)) {
            return Ok(Lease::new(worker));
        }
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            if let Some(worker) = self.least_loaded() {
                return Ok(Lease::new(worker));
            }
            let statuses = self.status();
            if self.stop.is_cancelled() || !statuses.iter().any(|status| self.may_come(status)) {
                return Err(self.unavailable(&statuses));
            }
            match tokio::time::timeout_at(deadline, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(self.unavailable(&self.status())),
            }
        }
    }

    fn least_loaded(&self) -> Option<Arc<Worker>> {
        self.slots
            .iter()
            .filter_map(|slot| match &slot.status.borrow().state {
                SlotState::Ready(worker) if worker.is_alive() => Some(Arc::clone(worker)),
                _ => None,
            })
            .min_by_key(|worker| {
                (worker.running_turns(), worker.loaded_threads(), worker.started_turns())
            })
    }

    fn may_come(&self, status: &SlotStatus) -> bool {
        let broken = status.failures >= self.settings.breaker_failures;
        match status.state {
            SlotState::Starting | SlotState::Backoff { .. } => !broken,
            // Its worker has just died and its supervisor is about to see it, or it may yet live.
            SlotState::Ready(_) | SlotState::Unresponsive(_) => true,
            SlotState::Stopped => false,
        }
    }

    fn unavailable(&self, statuses: &[SlotStatus]) -> Unavailable {
        let now = tokio::time::Instant::now();
        let retry_after = statuses
            .iter()
            .filter_map(|status| match status.state {
                SlotState::Backoff { until } => Some(until.saturating_duration_since(now)),
                SlotState::Starting
                | SlotState::Ready(_)
                | SlotState::Unresponsive(_)
                | SlotState::Stopped => None,
            })
            .min()
            .unwrap_or_default()
            .max(Duration::from_secs(1));
        let (kind, cause) = trouble(statuses);
        Unavailable { cause, retry_after, out_of_resources: kind == Trouble::OutOfResources }
    }

    /// Tells waiters and readiness that a slot has changed.
    pub(super) fn note_change(&self) {
        let statuses = self.status();
        let any_ready = statuses.iter().any(|status| matches!(status.state, SlotState::Ready(_)));
        // At the start every slot must have had its chance; later one warm worker is enough.
        let all_tried = statuses.iter().all(|status| {
            matches!(status.state, SlotState::Ready(_)) || status.last_failure.is_some()
        });
        let home_fault = self.home_fault.borrow().clone();
        let config_fault = self.config_fault.borrow().clone();
        self.readiness.send_if_modified(|readiness| {
            let was_ready = *readiness == Readiness::Ready;
            let next = if let Some(cause) = home_fault {
                Readiness::NotReady { kind: Trouble::HomeUnusable, cause }
            } else if let Some(cause) = config_fault.filter(|_| any_ready) {
                Readiness::NotReady { kind: Trouble::ConfigInvalid, cause }
            } else if any_ready && (was_ready || all_tried) {
                Readiness::Ready
            } else {
                let (kind, cause) = trouble(&statuses);
                Readiness::NotReady { kind, cause }
            };
            let changed = *readiness != next;
            *readiness = next;
            changed
        });
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

fn trouble(statuses: &[SlotStatus]) -> (Trouble, String) {
    let stuck = statuses.iter().find_map(|status| match &status.state {
        SlotState::Unresponsive(worker) => Some(worker.id()),
        _ => None,
    });
    let without_worker = |status: &&SlotStatus| {
        !matches!(status.state, SlotState::Ready(_) | SlotState::Unresponsive(_))
    };
    match statuses.iter().filter(without_worker).max_by_key(|status| status.failures) {
        Some(SlotStatus { failures: failures @ 1.., last_failure: Some(failure), .. }) => {
            (failure.kind, format!("{} ({failures} failures in a row)", failure.message))
        }
        Some(SlotStatus { state: SlotState::Stopped, .. }) => {
            (Trouble::Stopped, "the pool is shut down".to_owned())
        }
        _ if stuck.is_some() => {
            let worker = stuck.map(ToString::to_string).unwrap_or_default();
            (Trouble::WorkersFailing, format!("worker {worker} gives no sign of life"))
        }
        _ => (Trouble::Starting, "the workers are being started".to_owned()),
    }
}
