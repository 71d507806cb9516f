//! The task that keeps one slot of the pool alive.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::pool::{Failure, Pool, PoolSettings, SlotState, SlotStatus, Trouble};
use crate::worker::{SpawnError, Worker, WorkerId, WorkerSpec};

/// Starts workers in one slot, one after the other, until the pool stops.
pub(super) async fn run(pool: Arc<Pool>, index: usize, spec: Arc<WorkerSpec>) {
    let mut generation = 0;
    loop {
        generation += 1;
        let id = WorkerId { slot: index, generation };
        pool.update(index, |status| {
            status.state = SlotState::Starting;
            status.generation = generation;
        });
        let started = tokio::select! {
            biased;
            () = pool.stop.cancelled() => break,
            started = start(&pool, id.clone(), &spec) => started,
        };
        let pause = match started {
            Ok(worker) => {
                tracing::info!(worker = %id, pid = worker.pid(), cli = worker.user_agent(), "worker ready");
                let ready_at = Instant::now();
                pool.update(index, |status| {
                    status.state = SlotState::Ready(Arc::clone(&worker));
                });
                let exit = tokio::select! {
                    biased;
                    () = pool.stop.cancelled() => {
                        worker.kill("the sidecar shuts down");
                        worker.exited().await;
                        break;
                    }
                    exit = worker.exited() => exit,
                };
                tracing::warn!(worker = %id, %exit, "worker ended");
                let lived = ready_at.elapsed();
                pool.fail(
                    index,
                    Trouble::WorkersFailing,
                    format!("worker {id} ended: {exit}"),
                    lived,
                )
            }
            Err(error) => {
                tracing::error!(worker = %id, %error, "worker failed to start");
                pool.fail(index, trouble(&error), error.to_string(), Duration::ZERO)
            }
        };
        tokio::select! {
            biased;
            () = pool.stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    pool.update(index, |status| status.state = SlotState::Stopped);
}

async fn start(pool: &Pool, id: WorkerId, spec: &WorkerSpec) -> Result<Arc<Worker>, SpawnError> {
    // Never closed, so that this can't fail; without a permit starts would merely not be spaced.
    let _spaced = pool.starts.acquire().await.ok();
    let started = Worker::spawn(id, spec).await;
    if started.is_ok() && pool.starts.available_permits() == 0 {
        // The database of CODEX_HOME exists now: two at a time may start from here on.
        pool.widen_starts();
    }
    started
}

fn trouble(error: &SpawnError) -> Trouble {
    match error {
        SpawnError::NotFound(_) => Trouble::CodexNotFound,
        SpawnError::Version { .. } => Trouble::CodexTooOld,
        SpawnError::Os { out_of_resources: true, .. } => Trouble::OutOfResources,
        SpawnError::Os { .. } | SpawnError::Handshake { .. } => Trouble::CodexUnusable,
    }
}

impl Pool {
    fn widen_starts(&self) {
        static WIDTH: usize = 2;
        // Ours is held, so that this is reached with none available and at most `WIDTH` in all.
        if !self.widened.swap(true, std::sync::atomic::Ordering::Relaxed) {
            self.starts.add_permits(WIDTH - 1);
        }
    }

    fn update(&self, index: usize, change: impl FnOnce(&mut SlotStatus)) {
        if let Some(slot) = self.slots.get(index) {
            debug_assert_eq!(slot.index, index);
            slot.status.send_modify(change);
            self.note_change();
        }
    }

    /// Notes a failure; returns the pause before the next start.
    fn fail(&self, index: usize, kind: Trouble, message: String, lived: Duration) -> Duration {
        let mut pause = Duration::ZERO;
        self.update(index, |status| {
            let stable = lived >= self.settings.stable_after;
            status.failures = if stable { 0 } else { status.failures.saturating_add(1) };
            pause = backoff(&self.settings, status.failures);
            status.last_failure = Some(Failure { kind, message, at: SystemTime::now() });
            status.state = SlotState::Backoff { until: Instant::now() + pause };
        });
        pause
    }
}

/// The pause after this many failures in a row: none after the first, so that a single death costs
/// only a start; then doubling, with up to half of it taken off at random, so that many workers that
/// died of one cause do not come back at one moment.
fn backoff(settings: &PoolSettings, failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(2) else { return Duration::ZERO };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let full = settings.backoff_initial.saturating_mul(factor).min(settings.backoff_max);
    full.mul_f64(1.0 - fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum() {
        let settings = PoolSettings::default();
        assert_eq!(backoff(&settings, 0), Duration::ZERO);
        assert_eq!(backoff(&settings, 1), Duration::ZERO);
        for (failures, full) in [(2, 200), (3, 400), (4, 800), (40, 30_000), (u32::MAX, 30_000)] {
            let pause = backoff(&settings, failures).as_millis();
            assert!((full / 2..=full).contains(&pause), "{failures}: {pause}");
        }
    }
}
