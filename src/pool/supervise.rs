//! The task that keeps one slot of the pool alive.
//!
//! It starts a worker, looks after it (signs of life, recycling), and starts the next one when it
//! has ended: at once after a single death, with growing pauses after failures in a row, and with
//! long ones once the breaker is open. While CODEX_HOME can't be written it starts none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::model::id::WorkerId;
use crate::pool::{Failure, Pool, PoolSettings, SlotState, SlotStatus, Trouble};
use crate::worker::{SpawnError, Worker, WorkerSpec};

/// How often a healthy worker is looked at.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// A worker that lived this long was healthy: its end is no failure in a row.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Looks at CODEX_HOME until the pool stops: often while something is wrong with it.
pub(super) async fn watch_home(pool: Arc<Pool>, spec: Arc<WorkerSpec>) {
    let stop = pool.stop.clone();
    let watching = async {
        loop {
            pool.look_at_home(&spec).await;
            let is_usable = pool.home_fault.borrow().is_none();
            let interval = pool.settings.liveness_interval;
            let pause = if is_usable { interval } else { LOOK.min(interval) };
            tokio::time::sleep(pause).await;
        }
    };
    stop.run_until_cancelled(watching).await;
}

/// Starts workers in one slot, one after the other, until the pool stops.
pub(super) async fn run(pool: Arc<Pool>, index: usize, spec: Arc<WorkerSpec>) {
    let stop = pool.stop.clone();
    let mut slot = Supervision { pool, index, spec, generation: 0 };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = slot.keep_alive() => {}
    }
    slot.end().await;
}

/// What one supervising task knows.
struct Supervision {
    pool: Arc<Pool>,
    index: usize,
    spec: Arc<WorkerSpec>,
    generation: u64,
}

impl Supervision {
    /// Never returns by itself.
    async fn keep_alive(&mut self) {
        loop {
            self.pool.update(self.index, |status| status.state = SlotState::Starting);
            self.pool.look_at_home(&self.spec).await;
            // That is no failure of a worker: the first one comes as soon as it is put right.
            let _ = self.pool.home_fault.subscribe().wait_for(Option::is_none).await;
            let pause = match self.start().await {
                Ok(worker) => self.attend(worker).await,
                Err(error) => {
                    let worker = self.index;
                    tracing::error!(worker, %error, "worker failed to start");
                    self.pool.fail(self.index, trouble(&error), error.to_string(), false)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Kills the worker of this slot and those that it replaced, and waits for their end.
    async fn end(&self) {
        let mut last = self
            .pool
            .retired()
            .extract_if(.., |worker| worker.id().slot == self.index)
            .collect::<Vec<_>>();
        self.pool.update(self.index, |status| {
            let state = std::mem::replace(&mut status.state, SlotState::Stopped);
            if let SlotState::Ready(worker) | SlotState::Unresponsive(worker) = state {
                last.push(worker);
            }
        });
        for worker in &last {
            worker.kill("the sidecar shuts down");
        }
        for worker in &last {
            worker.exited().await;
        }
    }

    async fn start(&mut self) -> Result<Arc<Worker>, SpawnError> {
        // Never closed, so that this can't fail; without a permit starts would merely not be spaced.
        let permit = self.pool.starts.acquire().await.ok();
        self.generation += 1;
        let id = WorkerId { slot: self.index, generation: self.generation };
        let started = Worker::spawn(id.clone(), &self.spec).await;
        if let Ok(worker) = &started {
            let (pid, cli) = (worker.pid(), worker.user_agent());
            tracing::info!(worker = %id, pid, cli, "worker ready");
            // The database of CODEX_HOME exists now: two at a time may start from here on.
            self.pool.widen_starts();
            // Before anybody may take it for ready.
            if let Some(fault) = worker.config_fault_at_start() {
                self.pool.note_config_fault(Some(fault.to_owned()));
            }
            self.pool.update(self.index, |status| {
                status.state = SlotState::Ready(Arc::clone(worker));
                status.generation = id.generation;
            });
        }
        tokio::time::sleep(self.pool.settings.start_spacing).await;
        drop(permit);
        started
    }

    /// Looks after a worker until it ends; returns the pause before the next start.
    async fn attend(&mut self, mut worker: Arc<Worker>) -> Duration {
        let mut ready_at = Instant::now();
        let mut asked_at = ready_at;
        let mut look = tokio::time::interval(LOOK.min(self.pool.settings.liveness_interval));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                exit = worker.exited() => {
                    tracing::warn!(worker = %worker.id(), %exit, "worker ended");
                    // One that lived for a while, or has ended a turn, is no part of a crash loop.
                    let healthy = ready_at.elapsed() >= STABLE_AFTER
                        || worker.completed_turns() > 0;
                    let message = format!("worker {} ended: {exit}", worker.id());
                    return self.pool.fail(self.index, Trouble::WorkersFailing, message, healthy);
                }
                _ = look.tick() => {}
            }
            if ready_at.elapsed() >= STABLE_AFTER {
                self.pool.note_stable(self.index);
            }
            // Also one that talks: a worker can go on telling of its turns and take no new ones.
            if asked_at.elapsed() >= self.pool.settings.liveness_interval {
                self.check(&worker).await;
                asked_at = Instant::now();
            } else if let Some(reason) = self.recycling_reason(&worker, ready_at)
                && let Some(successor) = self.replace(&worker, reason).await
            {
                worker = successor;
                ready_at = Instant::now();
                asked_at = ready_at;
            }
        }
    }

    /// Asks a worker for a sign of life. One that gives none gets no new turns; it is killed when it
    /// gives none a second time and nothing is heard of its turns either.
    async fn check(&self, worker: &Arc<Worker>) {
        let timeout = self.pool.settings.liveness_timeout;
        let Err(error) = worker.ping(timeout).await else { return };
        if !worker.is_alive() {
            return;
        }
        tracing::warn!(worker = %worker.id(), %error, "worker gives no sign of life; it gets no new turns");
        let given_up = Arc::clone(worker);
        self.pool.update(self.index, |status| status.state = SlotState::Unresponsive(given_up));
        loop {
            match worker.ping(timeout).await {
                Ok(()) => {
                    tracing::info!(worker = %worker.id(), "worker is back");
                    let back = Arc::clone(worker);
                    return self
                        .pool
                        .update(self.index, |status| status.state = SlotState::Ready(back));
                }
                Err(_) if !worker.is_alive() => return,
                Err(_) if worker.running_turns() > 0 && worker.silence() < timeout => {}
                Err(_) => {
                    let total = humantime::format_duration(timeout * 2);
                    return worker.kill(format!("it gave no sign of life for {total}"));
                }
            }
        }
    }

    fn recycling_reason(&self, worker: &Worker, ready_at: Instant) -> Option<String> {
        let PoolSettings {
            max_turns_per_worker,
            max_age,
            max_resident_bytes,
            max_idle_threads,
            ..
        } = &self.pool.settings;
        let turns = worker.started_turns();
        if let Some(max) = max_turns_per_worker.filter(|max| turns >= *max) {
            return Some(format!("it ran {turns} turns, the limit is {max}"));
        }
        if let Some(max) = max_age.filter(|max| ready_at.elapsed() >= *max) {
            return Some(format!("it is older than {}", humantime::format_duration(max)));
        }
        let idle = worker.loaded_threads().saturating_sub(worker.running_turns());
        if let Some(max) = max_idle_threads.filter(|max| idle > *max) {
            return Some(format!("it holds {idle} idle threads, the limit is {max}"));
        }
        let max = (*max_resident_bytes)?;
        let resident = worker.resident_bytes()?;
        (resident >= max).then(|| format!("it has {resident} bytes resident, the limit is {max}"))
    }

    /// Replaces a worker by a warm one, so that the pool never has one less; the old one ends once
    /// its turns have.
    async fn replace(&mut self, old: &Arc<Worker>, reason: String) -> Option<Arc<Worker>> {
        let turn = Arc::clone(&self.pool.recycling).try_acquire_owned().ok()?;
        tracing::info!(worker = %old.id(), reason, "worker is recycled");
        // Before its successor gets its place: a thread must be found at one of the two.
        self.pool.retired().push(Arc::clone(old));
        let successor = match self.start().await {
            Ok(successor) => successor,
            Err(error) => {
                tracing::warn!(worker = %old.id(), %error, "no successor could be started; the worker stays");
                self.pool.retired().retain(|worker| !Arc::ptr_eq(worker, old));
                return None;
            }
        };
        let (pool, old) = (Arc::clone(&self.pool), Arc::clone(old));
        tokio::spawn(async move {
            let cause = tokio::select! {
                () = old.idle() => "it was recycled",
                _ = old.exited() => "it has ended",
                () = given_up(&old, &pool.settings) => "it gave no sign of life while it was drained",
            };
            old.kill(cause);
            old.exited().await;
            pool.retired().retain(|worker| !Arc::ptr_eq(worker, &old));
            drop(turn);
        });
        Some(successor)
    }
}

/// Returns when a worker that is being drained gives no sign of life twice.
async fn given_up(worker: &Worker, settings: &PoolSettings) {
    let mut unanswered = 0;
    while unanswered < 2 {
        if unanswered == 0 {
            tokio::time::sleep(settings.liveness_interval).await;
        }
        let is_silent = worker.ping(settings.liveness_timeout).await.is_err()
            && worker.silence() >= settings.liveness_timeout;
        unanswered = if is_silent { unanswered + 1 } else { 0 };
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

    fn update(&self, index: usize, change: impl FnOnce(&mut SlotStatus)) {
        if let Some(slot) = self.slots.get(index) {
            slot.status.send_modify(change);
            self.note_change();
        }
    }

    /// Looks at CODEX_HOME, and tells if what is wrong with it has changed.
    async fn look_at_home(&self, spec: &WorkerSpec) {
        let check = Arc::clone(&spec.check_home);
        let looked = tokio::task::spawn_blocking(move || check()).await;
        let fault = looked.map_or_else(|error| Some(error.to_string()), Result::err);
        let changed = self.home_fault.send_if_modified(|known| {
            let changed = *known != fault;
            *known = fault;
            changed
        });
        if changed {
            self.note_change();
        }
    }

    /// Notes that the worker of this slot has lived long enough to be no part of a crash loop.
    fn note_stable(&self, index: usize) {
        let failures = self.slots.get(index).map_or(0, |slot| slot.status.borrow().failures);
        if failures > 0 {
            if failures >= self.settings.breaker_failures {
                tracing::info!(worker = index, "breaker closed");
            }
            self.update(index, |status| status.failures = 0);
        }
    }

    /// Notes a failure; returns the pause before the next start.
    fn fail(&self, index: usize, kind: Trouble, message: String, healthy: bool) -> Duration {
        let mut pause = Duration::ZERO;
        self.update(index, |status| {
            status.failures = if healthy { 0 } else { status.failures.saturating_add(1) };
            pause = backoff(&self.settings, status.failures);
            if status.failures == self.settings.breaker_failures {
                let failures = status.failures;
                tracing::error!(worker = index, failures, cause = message, "breaker open");
            }
            status.last_failure = Some(Failure { kind, message, at: SystemTime::now() });
            status.state = SlotState::Backoff { until: Instant::now() + pause };
        });
        pause
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
