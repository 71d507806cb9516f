//! The pool: a fixed number of workers, kept warm.
//!
//! Each slot of the pool has one task that starts a worker, waits for its end and starts the next
//! ([`supervision`]), or replaces it while it is well ([`recycling`]); one that does not end a turn is
//! drained ([`unended`]); where they are not always there it waits for somebody who needs them
//! ([`sleep`]). What is in the [`slots`] is what everybody else goes by: [`placement`], which
//! gives a turn its [`Lease`], and [`readiness`]. The pool never moves a running turn, and knows nothing of
//! what a turn says; of threads it knows which are [`idle`].

mod home;
mod idle;
mod incarnation;
mod placement;
mod readiness;
mod recycling;
mod sleep;
mod slots;
mod supervision;
mod unended;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::app_server::protected::Protection;
use crate::worker::WorkerSpec;

pub(crate) use incarnation::{Entering, Incarnation, Lease};
pub(crate) use placement::Unavailable;
pub(crate) use readiness::{Readiness, Trouble};
pub(crate) use sleep::Awake;
pub(crate) use slots::{SlotState, SlotStatus};

use sleep::Demand;

/// How workers are supervised and replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Turns after which a worker is replaced. Default: any number.
    pub max_turns_per_worker: Option<u64>,
    /// Age at which a worker is replaced. Default: any.
    pub max_age: Option<Duration>,
    /// Resident memory of a worker, in bytes, from which on its idle threads are released; one that
    /// stays above it without them is replaced. Default 1 GiB.
    pub max_resident_bytes: Option<u64>,
    /// Most threads that a worker keeps loaded beyond those that run; of more, those that have been idle
    /// for the longest time are released. Default 64.
    pub max_idle_threads: Option<usize>,
    /// How often a worker is asked for a sign of life. Default 10 s.
    pub liveness_interval: Duration,
    /// How long it may take to give one. It is asked twice before it is killed. Default 5 s.
    pub liveness_timeout: Duration,
    /// The first pause after a failed start or an early death; doubles with each further one.
    /// Default 200 ms.
    pub backoff_initial: Duration,
    /// The longest pause, at least `backoff_initial`. Default 30 s.
    pub backoff_max: Duration,
    /// After how many failures in a row the breaker of a slot opens: turns are refused at once
    /// rather than kept waiting for it. Default 5.
    pub breaker_failures: u32,
    /// How long an open breaker keeps the next start back. Default 30 s.
    pub breaker_open: Duration,
    /// The least time between two starts, so that they don't race for CODEX_HOME; may be zero.
    /// Default 100 ms.
    pub start_spacing: Duration,
    /// How long a turn waits for a worker that can take it. Default 10 s.
    pub worker_wait: Duration,
    /// With it the workers are started for the first turn, and stopped when none was there for this long.
    /// Default: none, they are always there; for tenants 10 minutes.
    pub stop_when_idle: Option<Duration>,
}

impl Default for PoolSettings {
    fn default() -> PoolSettings {
        PoolSettings {
            max_turns_per_worker: None,
            max_age: None,
            max_resident_bytes: Some(1 << 30),
            max_idle_threads: Some(64),
            liveness_interval: Duration::from_secs(10),
            liveness_timeout: Duration::from_secs(5),
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            breaker_failures: 5,
            breaker_open: Duration::from_secs(30),
            start_spacing: Duration::from_millis(100),
            worker_wait: Duration::from_secs(10),
            stop_when_idle: None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    settings: PoolSettings,
    // Turns are given their workers one after the other: each must see what the one before took.
    placing: Mutex<()>,
    slots: watch::Sender<Vec<SlotStatus>>,
    readiness: watch::Sender<Readiness>,
    // What is wrong with CODEX_HOME.
    home_fault: watch::Sender<Option<String>>,
    home_doubted: Notify,
    // What is wrong with `config.toml`, as a worker says.
    config_fault: watch::Sender<Option<String>>,
    config_file: PathBuf,
    protection: Protection,
    starts: Arc<Semaphore>,
    widened: AtomicBool,
    // One worker is recycled at a time.
    recycling: Arc<Semaphore>,
    demand: Arc<Demand>,
    // Replaced, and still busy with the turns that they have.
    retiring: Mutex<Vec<Arc<Incarnation>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Pool {
    /// What the commands of its workers' turns must not write.
    pub(crate) fn protection(&self) -> &Protection {
        &self.protection
    }

    /// Starts a pool of so many workers, at least one; returns at once. [`Pool::readiness`] tells when
    /// it is warm, or would be.
    pub(crate) fn start(spec: WorkerSpec, workers: usize, settings: PoolSettings) -> Arc<Pool> {
        let workers = workers.max(1);
        let is_asleep = settings.stop_when_idle.is_some();
        let state = if is_asleep { SlotState::Asleep } else { SlotState::Starting };
        let slot = SlotStatus { state, ..SlotStatus::default() };
        let pool = Arc::new(Pool {
            placing: Mutex::default(),
            slots: watch::Sender::new(vec![slot; workers]),
            readiness: watch::Sender::new(readiness::starting()),
            home_fault: watch::Sender::new(None),
            home_doubted: Notify::new(),
            config_fault: watch::Sender::new(None),
            config_file: spec.config_file.clone(),
            protection: spec.protected.clone(),
            // One at first: processes that start at once on a fresh CODEX_HOME lock each other out
            // of its database.
            starts: Arc::new(Semaphore::new(1)),
            widened: AtomicBool::new(false),
            recycling: Arc::new(Semaphore::new(1)),
            demand: Demand::new(settings.stop_when_idle.is_none()),
            retiring: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            settings,
        });
        let spec = Arc::new(spec);
        pool.tasks.spawn(home::watch(Arc::clone(&pool), Arc::clone(&spec)).in_current_span());
        pool.tasks.spawn(home::watch_config(Arc::clone(&pool)).in_current_span());
        pool.tasks.spawn(sleep::watch(Arc::clone(&pool)).in_current_span());
        for slot in 0..workers {
            pool.tasks.spawn(
                supervision::run(Arc::clone(&pool), slot, Arc::clone(&spec)).in_current_span(),
            );
        }
        pool.tasks.close();
        pool
    }

    /// Kills every worker with all that it started, and waits until they are gone.
    pub(crate) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests;
