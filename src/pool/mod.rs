//! The pool: a fixed number of workers, kept warm.
//!
//! Each place in the pool (a slot) has one supervising task that starts a worker, waits for its end
//! and starts the next. A turn takes a [`Lease`] on a worker; the pool never moves a running turn.
//! Nothing here knows of threads, nor what a turn says.

mod config_file;
mod placement;
mod supervise;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::model::id::WorkerId;
use crate::worker::{Worker, WorkerSpec};

pub use placement::Lease;

/// How workers are supervised and replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Turns after which a worker is replaced. Default: any number.
    pub max_turns_per_worker: Option<u64>,
    /// Age at which a worker is replaced. Default: any.
    pub max_age: Option<Duration>,
    /// Resident memory, in bytes, at which a worker is replaced. Default: any.
    pub max_resident_bytes: Option<u64>,
    /// Most threads that a worker keeps loaded beyond those that run; with more it is replaced.
    /// Default: any number.
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
}

impl Default for PoolSettings {
    fn default() -> PoolSettings {
        PoolSettings {
            max_turns_per_worker: None,
            max_age: None,
            max_resident_bytes: None,
            max_idle_threads: None,
            liveness_interval: Duration::from_secs(10),
            liveness_timeout: Duration::from_secs(5),
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            breaker_failures: 5,
            breaker_open: Duration::from_secs(30),
            start_spacing: Duration::from_millis(100),
            worker_wait: Duration::from_secs(10),
        }
    }
}

/// Whether turns can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// At least one worker is warm, and at the start all were.
    Ready,
    /// None is.
    NotReady {
        /// What kind of trouble it is.
        kind: Trouble,
        /// Why not, for the person who reads it.
        cause: String,
    },
}

/// Kinds of trouble that keep workers from being ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// None: they are being started.
    Starting,
    /// The CLI was not found.
    CodexNotFound,
    /// The CLI is of a version that is not supported.
    CodexTooOld,
    /// The CLI does not start, or does not speak its protocol.
    CodexUnusable,
    /// CODEX_HOME can't be written.
    HomeUnusable,
    /// Codex can't read its `config.toml`.
    ConfigInvalid,
    /// The machine is out of processes, memory or file descriptors.
    OutOfResources,
    /// Workers start, and end again and again.
    WorkersFailing,
    /// The pool is shut down.
    Stopped,
}

/// A failed start or the end of a worker.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What kind of trouble it is.
    pub kind: Trouble,
    /// For the person who reads it.
    pub message: String,
    /// When it was seen.
    pub at: SystemTime,
}

/// Why no worker can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable {
    /// For the person who reads it.
    pub cause: String,
    /// When to try again.
    pub retry_after: Duration,
    /// Whether the machine is out of processes, memory or file descriptors.
    pub out_of_resources: bool,
}

/// What a slot does.
#[derive(Debug, Clone)]
pub enum SlotState {
    /// It waits for its turn to start, or starts.
    Starting,
    /// Its worker is warm.
    Ready(Arc<Worker>),
    /// Its worker gave no sign of life and gets no new turns; it is asked once more.
    Unresponsive(Arc<Worker>),
    /// Its worker failed; the next one starts later.
    Backoff {
        /// When.
        until: tokio::time::Instant,
    },
    /// The pool has been shut down.
    Stopped,
}

/// What is known of a slot.
#[derive(Debug, Clone)]
pub struct SlotStatus {
    /// What it does.
    pub state: SlotState,
    /// Which incarnation it is at.
    pub generation: u64,
    /// Failures in a row.
    pub failures: u32,
    /// The last failed start or end of a worker.
    pub last_failure: Option<Failure>,
}

#[derive(Debug)]
struct Slot {
    status: watch::Sender<SlotStatus>,
}

/// The pool.
#[derive(Debug)]
pub struct Pool {
    slots: Vec<Slot>,
    settings: PoolSettings,
    // Changes whenever any slot does; waiters look again.
    changed: watch::Sender<u64>,
    readiness: watch::Sender<Readiness>,
    // What is wrong with CODEX_HOME.
    home_fault: watch::Sender<Option<String>>,
    // What is wrong with `config.toml`, as a worker says.
    config_fault: watch::Sender<Option<String>>,
    config_file: std::path::PathBuf,
    starts: Semaphore,
    widened: AtomicBool,
    // One worker is recycled at a time.
    recycling: Arc<Semaphore>,
    // Replaced, and still busy with the turns that they have.
    retiring: Mutex<Vec<Arc<Worker>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Pool {
    /// Starts a pool of so many workers, at least one; returns at once. [`Pool::readiness`] tells when
    /// it is warm.
    pub fn start(spec: WorkerSpec, workers: usize, settings: PoolSettings) -> Arc<Pool> {
        let slots = (0..workers.max(1))
            .map(|_| Slot {
                status: watch::Sender::new(SlotStatus {
                    state: SlotState::Starting,
                    generation: 0,
                    failures: 0,
                    last_failure: None,
                }),
            })
            .collect();
        let starting = Readiness::NotReady {
            kind: Trouble::Starting,
            cause: "the workers are being started".to_owned(),
        };
        let pool = Arc::new(Pool {
            slots,
            settings,
            changed: watch::Sender::new(0),
            readiness: watch::Sender::new(starting),
            home_fault: watch::Sender::new(None),
            config_fault: watch::Sender::new(None),
            config_file: spec.config_file.clone(),
            // One at first: processes that start at once on a fresh CODEX_HOME lock each other out
            // of its database.
            starts: Semaphore::new(1),
            widened: AtomicBool::new(false),
            recycling: Arc::new(Semaphore::new(1)),
            retiring: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let spec = Arc::new(spec);
        pool.tasks.spawn(supervise::watch_home(Arc::clone(&pool), Arc::clone(&spec)));
        pool.tasks.spawn(config_file::watch(Arc::clone(&pool)));
        for index in 0..pool.slots.len() {
            pool.tasks.spawn(supervise::run(Arc::clone(&pool), index, Arc::clone(&spec)));
        }
        pool.tasks.close();
        pool
    }

    /// Whether turns can run, now and as it changes.
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// What is known of every slot, in order.
    pub fn status(&self) -> Vec<SlotStatus> {
        self.slots.iter().map(|slot| slot.status.borrow().clone()).collect()
    }

    /// The worker of this id, if that incarnation still runs.
    pub fn worker(&self, id: &WorkerId) -> Option<Arc<Worker>> {
        let status = self.slots.get(id.slot)?.status.borrow();
        match &status.state {
            SlotState::Ready(worker) if worker.id() == id && worker.is_alive() => {
                Some(Arc::clone(worker))
            }
            _ => None,
        }
    }

    /// Waits while the worker of this id gives no sign of life: what it holds it holds until it is back
    /// or killed, one of which is soon.
    pub async fn settled(&self, id: &WorkerId) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let is_stuck = self.slots.get(id.slot).is_some_and(|slot| {
                matches!(&slot.status.borrow().state, SlotState::Unresponsive(worker) if worker.id() == id)
            });
            if !is_stuck || changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether this incarnation may still hold a thread.
    pub(crate) fn runs(&self, id: &WorkerId) -> bool {
        let is_current = self.slots.get(id.slot).is_some_and(|slot| {
            matches!(
                &slot.status.borrow().state,
                SlotState::Ready(worker) | SlotState::Unresponsive(worker) if worker.id() == id
            )
        });
        is_current || self.retiring(id).is_some()
    }

    /// The worker of this id, if it has been replaced and still runs. A thread that it holds must be
    /// released from it before another one may have it.
    pub fn retiring(&self, id: &WorkerId) -> Option<Arc<Worker>> {
        self.retired().iter().find(|worker| worker.id() == id).cloned()
    }

    fn retired(&self) -> MutexGuard<'_, Vec<Arc<Worker>>> {
        self.retiring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills every worker with all that it started, and waits until they are gone.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}
