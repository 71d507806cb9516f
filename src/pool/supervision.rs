//! The task that keeps one slot of the pool alive.
//!
//! It starts a worker, looks after it (signs of life, recycling), and starts the next one when it
//! has ended: at once after a single death, with growing pauses after failures in a row, and with
//! long ones once the breaker is open. While CODEX_HOME can't be written it starts none. A death under
//! the opening of a thread counts as no failure: one request may have caused it, and the others are to
//! be served.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

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
    let mut supervision = Supervision {
        pool: Arc::clone(&pool),
        slot,
        spec,
        generation: 0,
        starting: JoinSet::new(),
        recycling: None,
        hold_back: HoldBack::default(),
    };
    let demand = Arc::clone(&pool.demand);
    let living = async {
        loop {
            demand.awake().await;
            tokio::select! {
                biased;
                before = pool.asleep(slot) => supervision.sleep(before).await,
                () = supervision.keep_alive() => {}
            }
        }
    };
    stop.run_until_cancelled(living).await;
    supervision.end().await;
}

/// What the task of one slot knows.
pub(super) struct Supervision {
    pub(super) pool: Arc<Pool>,
    slot: usize,
    spec: Arc<WorkerSpec>,
    generation: u64,
    // The start that is under way, if there is one.
    starting: JoinSet<Result<Arc<Incarnation>, SpawnError>>,
    // Held from the start of a successor to the end of the worker that it replaces.
    pub(super) recycling: Option<OwnedSemaphorePermit>,
    pub(super) hold_back: HoldBack,
}

/// What keeps the next start of a successor back after some have failed.
#[derive(Debug, Default)]
pub(super) struct HoldBack {
    failures: u32,
    until: Option<Instant>,
}

impl HoldBack {
    pub(super) fn is_over(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }

    /// Notes a failure; the pause grows with each.
    pub(super) fn fail(&mut self, settings: &PoolSettings) -> Duration {
        self.failures = self.failures.saturating_add(1);
        // There is a worker, so that the first one is in no hurry either.
        let pause = backoff(settings, self.failures.saturating_add(1));
        self.until = Some(Instant::now() + pause);
        pause
    }
}

impl Supervision {
    /// Never returns by itself.
    async fn keep_alive(&mut self) {
        loop {
            self.enter(SlotState::Starting);
            self.pool.look_at_home(&self.spec).await;
            // That is no failure of a worker: the first one comes as soon as it is put right.
            let _ = self.pool.home_fault.subscribe().wait_for(Option::is_none).await;
            self.begin();
            let pause = match self.started().await {
                Ok(incarnation) => {
                    self.enter(SlotState::Ready(Arc::clone(&incarnation)));
                    self.attend(incarnation).await
                }
                Err(error) => {
                    tracing::error!(worker = self.slot, %error, "worker failed to start");
                    self.fail(trouble(&error), error.to_string(), Blame::Failure)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Ends what is left in the slot, which sleeps.
    async fn sleep(&mut self, before: SlotState) {
        self.recycling = None;
        self.hold_back = HoldBack::default();
        let last = before.held().cloned().into_iter().collect();
        self.end_all(last, "no turn needed it for a while").await;
    }

    /// Ends the slot.
    async fn end(&mut self) {
        let mut last = Vec::new();
        self.pool.update(self.slot, |status| {
            last.extend(status.state.held().cloned());
            status.state = SlotState::Stopped;
        });
        self.end_all(last, "the sidecar shuts down").await;
    }

    /// Kills these workers of the slot, those that they replaced and one that has just been started, and
    /// waits for their end.
    async fn end_all(&mut self, mut last: Vec<Arc<Incarnation>>, cause: &str) {
        let is_ours = |retiring: &mut Arc<Incarnation>| retiring.worker.id().slot == self.slot;
        last.extend(self.pool.all_retiring().extract_if(.., is_ours));
        self.starting.abort_all();
        while let Some(started) = self.starting.join_next().await {
            last.extend(started.into_iter().flatten());
        }
        for incarnation in &last {
            incarnation.worker.kill(cause);
        }
        for incarnation in &last {
            incarnation.worker.exited().await;
        }
    }

    /// Begins to start a worker, unless one is being started: the successor of one that has died
    /// meanwhile.
    pub(super) fn begin(&mut self) {
        if self.starting.is_empty() {
            self.generation += 1;
            let id = WorkerId { slot: self.slot, generation: self.generation };
            self.starting
                .spawn(start(Arc::clone(&self.pool), id, Arc::clone(&self.spec)).in_current_span());
        }
    }

    /// Waits for the worker that is being started; for ever, if there is none. May be dropped and called
    /// again.
    async fn started(&mut self) -> Result<Arc<Incarnation>, SpawnError> {
        match self.starting.join_next().await {
            Some(Ok(started)) => started,
            Some(Err(fault)) => Err(SpawnError::NotFound(fault.to_string())),
            None => std::future::pending().await,
        }
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
            let is_doubted = tokio::select! {
                biased;
                exit = worker.exited() => {
                    tracing::warn!(worker = %worker.id(), %exit, "worker ended");
                    let blame = if incarnation.died_under_opening() {
                        Blame::Nobody
                    } else if is_stable() || incarnation.completed_turns() > 0 {
                        // It is no part of a crash loop.
                        Blame::Chance
                    } else {
                        Blame::Failure
                    };
                    let message = format!("worker {} ended: {exit}", worker.id());
                    self.recycling = None;
                    return self.fail(Trouble::WorkersFailing, message, blame);
                }
                () = incarnation.doubted.notified() => true,
                started = self.started() => {
                    if let Some(successor) = self.succeed(&incarnation, started) {
                        incarnation = successor;
                        asked_at = Instant::now();
                    }
                    continue;
                }
                _ = look.tick() => false,
            };
            if is_stable() {
                self.note_stable();
            }
            // Also one that talks: a worker can go on telling of its turns and take no new ones.
            if is_doubted || asked_at.elapsed() >= interval {
                self.check(&incarnation).await;
                asked_at = Instant::now();
            } else {
                self.recycle(&incarnation);
            }
        }
    }

    /// Asks a worker for a sign of life. One that gives none gets no new turns; it is killed when it
    /// gives none a second time and nothing is heard of its turns either.
    async fn check(&self, incarnation: &Arc<Incarnation>) {
        let worker = &incarnation.worker;
        let timeout = self.pool.settings.liveness_timeout;
        let mut is_asked_again = false;
        loop {
            let asked_at = Instant::now();
            let answer = worker.ping(timeout).await;
            if !worker.is_alive() {
                return;
            }
            if answer.is_err() {
                // Also where the question could not even be written.
                tokio::select! {
                    _ = worker.exited() => return,
                    () = tokio::time::sleep_until(asked_at + timeout) => {}
                }
            }
            match answer {
                Ok(()) => return self.enter_ready_again(incarnation),
                Err(error) if !is_asked_again => {
                    is_asked_again = true;
                    tracing::warn!(worker = %worker.id(), %error, "worker gives no sign of life; it gets no new turns");
                    self.enter(SlotState::Unresponsive(Arc::clone(incarnation)));
                }
                Err(_) if incarnation.running_turns() > 0 && worker.silence() < timeout => {}
                Err(_) => {
                    let total = humantime::format_duration(timeout * 2);
                    return worker.kill(format!("it gave no sign of life for {total}"));
                }
            }
        }
    }

    /// It gave a sign of life.
    fn enter_ready_again(&self, incarnation: &Arc<Incarnation>) {
        self.pool.update(self.slot, |status| {
            let is_doubted = matches!(&status.state, SlotState::Unresponsive(stuck) if Arc::ptr_eq(stuck, incarnation));
            // Looked at here: whoever has one doubts the worker after that.
            if is_doubted && incarnation.unended() == 0 {
                tracing::info!(worker = %incarnation.worker.id(), "worker is back");
                status.state = SlotState::Ready(Arc::clone(incarnation));
            }
        });
    }

    pub(super) fn enter(&self, state: SlotState) {
        self.pool.update(self.slot, |status| {
            if let SlotState::Ready(incarnation) = &state {
                status.generation = incarnation.worker.id().generation;
            }
            status.state = state;
        });
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
    fn fail(&self, kind: Trouble, message: String, blame: Blame) -> Duration {
        let settings = &self.pool.settings;
        let mut pause = Duration::ZERO;
        self.pool.update(self.slot, |status| {
            let before = status.failures;
            status.failures = match blame {
                Blame::Failure => before.saturating_add(1),
                Blame::Chance => 0,
                Blame::Nobody => before,
            };
            pause = backoff(settings, status.failures);
            if status.failures > before && status.failures == settings.breaker_failures {
                let failures = status.failures;
                tracing::error!(worker = self.slot, failures, cause = message, "breaker open");
            }
            status.last_failure = Some(Failure { kind, message });
            status.state = SlotState::Backoff { until: Instant::now() + pause };
        });
        pause
    }
}

/// What the end of a worker, or a start that failed, says of the next one.
#[derive(Debug, Clone, Copy)]
enum Blame {
    /// The next one is likely to fail, too.
    Failure,
    /// Nothing: this one had worked.
    Chance,
    /// Nothing either way: a request may have ended it.
    Nobody,
}

/// Starts a worker; returns when it is warm. The next start is spaced from this one.
async fn start(
    pool: Arc<Pool>,
    id: WorkerId,
    spec: Arc<WorkerSpec>,
) -> Result<Arc<Incarnation>, SpawnError> {
    // Never closed, so that this can't fail; without a permit starts would merely not be spaced.
    let permit = Arc::clone(&pool.starts).acquire_owned().await.ok();
    let started = Worker::spawn(id.clone(), &spec).await;
    let spacing = pool.settings.start_spacing;
    tokio::spawn(
        async move {
            tokio::time::sleep(spacing).await;
            drop(permit);
        }
        .in_current_span(),
    );
    let worker = started?;
    let (pid, cli) = (worker.pid(), worker.user_agent());
    tracing::info!(worker = %id, pid, cli, "worker ready");
    // The database of CODEX_HOME exists now: two at a time may start from here on.
    pool.widen_starts();
    // Before anybody may take it for ready.
    if let Some(fault) = worker.config_fault_at_start() {
        pool.note_config_fault(Some(fault.to_owned()));
    }
    Ok(Incarnation::new(worker))
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
