//! The task that keeps one slot of the pool alive.
//!
//! It starts a worker, looks after it (signs of life, recycling), and starts the next one when it
//! has ended: at once after a single death, with growing pauses after failures in a row, and with
//! long ones once the breaker is open. While CODEX_HOME can't be written it starts none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::id::WorkerId;
use crate::pool::slots::Failure;
use crate::pool::{Incarnation, Pool, PoolSettings, SlotState, Trouble};
use crate::worker::{SpawnError, Worker, WorkerSpec};

/// How often a healthy worker is looked at.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// A worker that lived this long was healthy: its end is no failure in a row.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Starts workers in one slot, one after the other, until the pool stops.
pub(super) async fn run(pool: Arc<Pool>, slot: usize, spec: Arc<WorkerSpec>) {
    let stop = pool.stop.clone();
    let mut supervision = Supervision { pool, slot, spec, generation: 0 };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = supervision.keep_alive() => {}
    }
    supervision.end().await;
}

/// What the task of one slot knows.
pub(super) struct Supervision {
    pub(super) pool: Arc<Pool>,
    slot: usize,
    spec: Arc<WorkerSpec>,
    generation: u64,
}

impl Supervision {
    /// Never returns by itself.
    async fn keep_alive(&mut self) {
        loop {
            self.enter(SlotState::Starting);
            self.pool.look_at_home(&self.spec).await;
            // That is no failure of a worker: the first one comes as soon as it is put right.
            let _ = self.pool.home_fault.subscribe().wait_for(Option::is_none).await;
            let pause = match self.start().await {
                Ok(incarnation) => self.attend(incarnation).await,
                Err(error) => {
                    tracing::error!(worker = self.slot, %error, "worker failed to start");
                    self.fail(trouble(&error), error.to_string(), false)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Kills the worker of this slot and those that it replaced, and waits for their end.
    async fn end(&self) {
        let is_ours = |retiring: &mut Arc<Incarnation>| retiring.worker.id().slot == self.slot;
        let mut last: Vec<_> = self.pool.all_retiring().extract_if(.., is_ours).collect();
        self.pool.update(self.slot, |status| {
            last.extend(status.state.held().cloned());
            status.state = SlotState::Stopped;
        });
        for incarnation in &last {
            incarnation.worker.kill("the sidecar shuts down");
        }
        for incarnation in &last {
            incarnation.worker.exited().await;
        }
    }

    /// Starts a worker, which takes the slot once it is warm.
    pub(super) async fn start(&mut self) -> Result<Arc<Incarnation>, SpawnError> {
        // Never closed, so that this can't fail; without a permit starts would merely not be spaced.
        let permit = self.pool.starts.acquire().await.ok();
        self.generation += 1;
        let id = WorkerId { slot: self.slot, generation: self.generation };
        let started = Worker::spawn(id.clone(), &self.spec).await;
        let started = started.map(|worker| {
            let (pid, cli) = (worker.pid(), worker.user_agent());
            tracing::info!(worker = %id, pid, cli, "worker ready");
            // The database of CODEX_HOME exists now: two at a time may start from here on.
            self.pool.widen_starts();
            // Before anybody may take it for ready.
            if let Some(fault) = worker.config_fault_at_start() {
                self.pool.note_config_fault(Some(fault.to_owned()));
            }
            let incarnation = Incarnation::new(worker);
            self.pool.update(self.slot, |status| {
                status.state = SlotState::Ready(Arc::clone(&incarnation));
                status.generation = id.generation;
            });
            incarnation
        });
        tokio::time::sleep(self.pool.settings.start_spacing).await;
        drop(permit);
        started
    }

    /// Looks after a worker until it ends; returns the pause before the next start.
    async fn attend(&mut self, mut incarnation: Arc<Incarnation>) -> Duration {
        let interval = self.pool.settings.liveness_interval;
        let mut asked_at = Instant::now();
        let mut look = tokio::time::interval(LOOK.min(interval));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let worker = &incarnation.worker;
            let is_stable = || incarnation.ready_at.elapsed() >= STABLE_AFTER;
            tokio::select! {
                biased;
                exit = worker.exited() => {
                    tracing::warn!(worker = %worker.id(), %exit, "worker ended");
                    // One that lived for a while, or has ended a turn, is no part of a crash loop.
                    let healthy = is_stable() || incarnation.completed_turns() > 0;
                    let message = format!("worker {} ended: {exit}", worker.id());
                    return self.fail(Trouble::WorkersFailing, message, healthy);
                }
                _ = look.tick() => {}
            }
            if is_stable() {
                self.note_stable();
            }
            // Also one that talks: a worker can go on telling of its turns and take no new ones.
            if asked_at.elapsed() >= interval {
                self.check(&incarnation).await;
                asked_at = Instant::now();
            } else if let Some(successor) = self.recycle(&incarnation).await {
                incarnation = successor;
                asked_at = Instant::now();
            }
        }
    }

    /// Asks a worker for a sign of life. One that gives none gets no new turns; it is killed when it
    /// gives none a second time and nothing is heard of its turns either.
    async fn check(&self, incarnation: &Arc<Incarnation>) {
        let worker = &incarnation.worker;
        let timeout = self.pool.settings.liveness_timeout;
        let Err(error) = worker.ping(timeout).await else { return };
        if !worker.is_alive() {
            return;
        }
        tracing::warn!(worker = %worker.id(), %error, "worker gives no sign of life; it gets no new turns");
        self.enter(SlotState::Unresponsive(Arc::clone(incarnation)));
        loop {
            match worker.ping(timeout).await {
                Ok(()) => {
                    tracing::info!(worker = %worker.id(), "worker is back");
                    return self.enter(SlotState::Ready(Arc::clone(incarnation)));
                }
                Err(_) if !worker.is_alive() => return,
                Err(_) if incarnation.running_turns() > 0 && worker.silence() < timeout => {}
                Err(_) => {
                    let total = humantime::format_duration(timeout * 2);
                    return worker.kill(format!("it gave no sign of life for {total}"));
                }
            }
        }
    }

    fn enter(&self, state: SlotState) {
        self.pool.update(self.slot, |status| status.state = state);
    }

    /// Notes that the slot's worker has lived long enough to be no part of a crash loop.
    fn note_stable(&self) {
        let failures = self.pool.slots.borrow().get(self.slot).map_or(0, |slot| slot.failures);
        if failures > 0 {
            if failures >= self.pool.settings.breaker_failures {
                tracing::info!(worker = self.slot, "breaker closed");
            }
            self.pool.update(self.slot, |status| status.failures = 0);
        }
    }

    /// Notes a failure; returns the pause before the next start.
    fn fail(&self, kind: Trouble, message: String, healthy: bool) -> Duration {
        let settings = &self.pool.settings;
        let mut pause = Duration::ZERO;
        self.pool.update(self.slot, |status| {
            status.failures = if healthy { 0 } else { status.failures.saturating_add(1) };
            pause = backoff(settings, status.failures);
            if status.failures == settings.breaker_failures {
                let failures = status.failures;
                tracing::error!(worker = self.slot, failures, cause = message, "breaker open");
            }
            status.last_failure = Some(Failure { kind, message });
            status.state = SlotState::Backoff { until: Instant::now() + pause };
        });
        pause
    }
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
        const WIDTH: usize = 2;
        if !self.widened.swap(true, Ordering::Relaxed) {
            self.starts.add_permits(WIDTH - 1);
        }
    }
}

/// The pause after this many failures in a row: none after the first, so that a single death costs
/// only a start; then doubling, with up to half of it taken off at random, so that many workers that
/// died of one cause do not come back at one moment. An open breaker waits longer; each start after
/// it is a trial, and one that succeeds and lasts closes it.
fn backoff(settings: &PoolSettings, failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(2) else { return Duration::ZERO };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    let mut full = settings.backoff_initial.saturating_mul(factor).min(settings.backoff_max);
    if failures >= settings.breaker_failures {
        full = full.max(settings.breaker_open);
    }
    full.mul_f64(1.0 - fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_maximum_and_an_open_breaker_waits_longer() {
        let settings = PoolSettings {
            breaker_failures: 6,
            breaker_open: Duration::from_secs(60),
            ..PoolSettings::default()
        };
        assert_eq!(backoff(&settings, 0), Duration::ZERO);
        assert_eq!(backoff(&settings, 1), Duration::ZERO);
        for (failures, full) in [(2, 200), (3, 400), (4, 800), (6, 60_000), (u32::MAX, 60_000)] {
            let pause = backoff(&settings, failures).as_millis();
            assert!((full / 2..=full).contains(&pause), "{failures}: {pause}");
        }
    }
}
