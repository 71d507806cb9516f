//! A worker in its slot, with the pool's books of it, and a turn's use of it.
//!
//! A turn has a [`Lease`] for as long as it uses the worker, and is [`Entering`] while its thread is
//! being opened there. What is told by a death depends on that: a worker that dies while it is asked to
//! open a thread may have died of what it was asked.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use crate::pool::Awake;
use crate::worker::Worker;

/// How many openings may go on in one worker at once, which is more than there ever are: one that must
/// be alone takes the room of all.
const ROOM: u32 = 1 << 24;

/// How long one that must be alone waits for the ends of the turns on its worker, which it may take along.
const ALONE_WITHIN: Duration = Duration::from_secs(2);

/// How long it is alone at most: longer than a worker that hangs lives. It may wait for its MCP servers
/// for minutes, and the others not for it.
const ALONE_FOR: Duration = Duration::from_secs(30);

/// A worker, and the turns that the pool has given it.
#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) worker: Arc<Worker>,
    pub(super) ready_at: Instant,
    turns: watch::Sender<Turns>,
    started_turns: AtomicU64,
    completed_turns: AtomicU64,
    // First come, first served: who wants to be alone is not kept waiting by those who come later.
    room: Arc<Semaphore>,
    suspects: AtomicUsize,
    died_under_opening: AtomicBool,
    given_up: AtomicBool,
    // Since when idle threads are released because the worker is too large.
    relieved_at: Mutex<Option<Instant>>,
    pub(super) doubted: Notify,
}

/// The turns that have a lease on a worker.
#[derive(Debug, Clone, Copy, Default)]
struct Turns {
    leased: usize,
    /// Of these, those whose threads may not be opened yet.
    waiting: usize,
    /// Those whose threads are being opened.
    opening: usize,
    /// Those that were told their end, and that Codex goes on with.
    unended: usize,
}

impl Turns {
    /// Those that would be lost with the worker: one that has no thread yet goes elsewhere, unseen.
    fn at_work(&self) -> usize {
        self.leased.saturating_sub(self.waiting + self.opening + self.unended)
    }
}

impl Incarnation {
    pub(super) fn new(worker: Arc<Worker>) -> Arc<Incarnation> {
        Arc::new(Incarnation {
            worker,
            ready_at: Instant::now(),
            turns: watch::Sender::default(),
            started_turns: AtomicU64::new(0),
            completed_turns: AtomicU64::new(0),
            relieved_at: Mutex::default(),
            room: Arc::new(Semaphore::new(ROOM as usize)),
            suspects: AtomicUsize::new(0),
            died_under_opening: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            doubted: Notify::new(),
        })
    }

    /// How many turns have a lease on it.
    pub(crate) fn running_turns(&self) -> usize {
        self.turns.borrow().leased
    }

    /// How many turns were told their end and are still Codex's.
    pub(super) fn unended(&self) -> usize {
        self.turns.borrow().unended
    }

    /// Whether a turn beside the one that asks would be lost with it.
    pub(crate) fn has_others(&self) -> bool {
        self.turns.borrow().at_work() > 1
    }

    /// Why it gets no new turns, where it gets none.
    pub(super) fn complaint(&self) -> &'static str {
        match self.unended() {
            0 => "gives no sign of life",
            _ => "does not end a turn that it was told to interrupt",
        }
    }

    /// How many turns it was given since its start.
    pub(crate) fn started_turns(&self) -> u64 {
        self.started_turns.load(Ordering::Relaxed)
    }

    /// How many turns Codex ended on it, well or badly: a worker that did that works.
    pub(super) fn completed_turns(&self) -> u64 {
        self.completed_turns.load(Ordering::Relaxed)
    }

    /// How many openings are alone on it or wait for that, because a worker has died under them.
    pub(super) fn suspects(&self) -> usize {
        self.suspects.load(Ordering::Relaxed)
    }

    /// Whether it died while it was asked to open a thread, and not because a turn gave it up.
    pub(crate) fn died_under_opening(&self) -> bool {
        let was_asked =
            self.died_under_opening.load(Ordering::Acquire) || self.turns.borrow().opening > 0;
        was_asked && !self.worker.is_alive() && !self.given_up.load(Ordering::Acquire)
    }

    /// Kills the worker for the sake of one turn: what else it was asked is not to blame for its end.
    pub(crate) fn give_up(&self, cause: &str) {
        self.given_up.store(true, Ordering::Release);
        self.worker.kill(cause);
    }

    /// How many threads it holds that no turn uses.
    pub(super) fn idle_threads(&self) -> usize {
        self.worker.loaded_threads().saturating_sub(self.running_turns())
    }

    pub(super) fn relieved_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.relieved_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no turn has a lease on it.
    pub(super) async fn idle(&self) {
        let mut turns = self.turns.subscribe();
        // The sender lives as long as the incarnation.
        let _ = turns.wait_for(|turns| turns.leased == 0).await;
    }

    /// Waits until no turn would be lost with it.
    pub(super) async fn has_nothing_to_lose(&self) {
        let mut turns = self.turns.subscribe();
        let _ = turns.wait_for(|turns| turns.at_work() == 0).await;
    }

    /// Waits until no turn but the one that asks is at work on it.
    async fn is_left_to_one(&self) {
        let mut turns = self.turns.subscribe();
        let _ = turns.wait_for(|turns| turns.leased <= turns.waiting + 1).await;
    }
}

/// The use of a worker by one turn. Bound to one incarnation: when that one dies, the lease is of
/// no more use, and whatever it still says reaches nobody.
#[derive(Debug)]
pub(crate) struct Lease {
    incarnation: Arc<Incarnation>,
    _awake: Arc<Awake>,
}

impl Lease {
    pub(super) fn new(incarnation: Arc<Incarnation>, awake: Arc<Awake>) -> Lease {
        incarnation.turns.send_modify(|turns| turns.leased += 1);
        incarnation.started_turns.fetch_add(1, Ordering::Relaxed);
        Lease { incarnation, _awake: awake }
    }

    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.incarnation.worker
    }

    pub(crate) fn incarnation(&self) -> &Arc<Incarnation> {
        &self.incarnation
    }

    /// Notes that it is for no turn.
    pub(crate) fn note_no_turn(&self) {
        self.incarnation.started_turns.fetch_sub(1, Ordering::Relaxed);
    }

    /// Notes that Codex has ended the turn, well or badly.
    pub(crate) fn note_turn_completed(&self) {
        self.incarnation.completed_turns.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.incarnation.turns.send_modify(|turns| turns.leased -= 1);
    }
}

/// A turn that was told its end, and that Codex goes on with: its worker still runs it.
#[derive(Debug)]
pub(super) struct Unended(Arc<Lease>);

impl Unended {
    pub(super) fn new(lease: Arc<Lease>) -> Unended {
        lease.incarnation.turns.send_modify(|turns| turns.unended += 1);
        Unended(lease)
    }
}

impl Drop for Unended {
    fn drop(&mut self) {
        self.0.incarnation.turns.send_modify(|turns| turns.unended -= 1);
    }
}

/// An opening that a worker has died under, and that is to be alone on its next one.
#[derive(Debug)]
pub(super) struct Suspect(Arc<Incarnation>);

impl Suspect {
    pub(super) fn new(incarnation: &Arc<Incarnation>) -> Suspect {
        incarnation.suspects.fetch_add(1, Ordering::Relaxed);
        Suspect(Arc::clone(incarnation))
    }
}

impl Drop for Suspect {
    fn drop(&mut self) {
        self.0.suspects.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A turn that may not ask its worker yet.
struct Waits<'a>(&'a Incarnation);

impl Waits<'_> {
    fn new(incarnation: &Incarnation) -> Waits<'_> {
        incarnation.turns.send_modify(|turns| turns.waiting += 1);
        Waits(incarnation)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.turns.send_modify(|turns| turns.waiting -= 1);
    }
}

/// The opening of a thread on a worker, for as long as the worker may be asked for it.
#[derive(Debug)]
pub(crate) struct Entering {
    incarnation: Arc<Incarnation>,
    _room: OwnedSemaphorePermit,
    _suspect: Option<Suspect>,
    // Keeps the others away from it.
    alone: Option<AbortOnDropHandle<()>>,
}

impl Entering {
    /// Waits until the worker may be asked: beside others that open a thread, or alone, and then for a
    /// while also until no turn is at work there. `None` where it has ended meanwhile.
    pub(super) async fn new(
        incarnation: &Arc<Incarnation>,
        suspect: Option<Suspect>,
    ) -> Option<Entering> {
        let waiting = async {
            let number = if suspect.is_some() { ROOM } else { 1 };
            let waits = Waits::new(incarnation);
            // Never closed.
            let room = Arc::clone(&incarnation.room).acquire_many_owned(number).await.ok()?;
            drop(waits);
            if suspect.is_some() {
                let _ = tokio::time::timeout(ALONE_WITHIN, incarnation.is_left_to_one()).await;
            }
            Some(room)
        };
        let room = tokio::select! {
            biased;
            _ = incarnation.worker.exited() => return None,
            room = waiting => room?,
        };
        if !incarnation.worker.is_alive() {
            return None;
        }
        let mut room = room;
        let rest = room.split(ROOM as usize - 1).filter(|_| suspect.is_some());
        let alone = rest.map(|rest| {
            AbortOnDropHandle::new(tokio::spawn(
                async move {
                    tokio::time::sleep(ALONE_FOR).await;
                    drop(rest);
                }
                .in_current_span(),
            ))
        });
        incarnation.turns.send_modify(|turns| turns.opening += 1);
        let incarnation = Arc::clone(incarnation);
        Some(Entering { incarnation, _room: room, _suspect: suspect, alone })
    }

    /// Whether it was to be alone, and no longer is.
    pub(crate) fn has_company(&self) -> bool {
        self.alone.as_ref().is_some_and(AbortOnDropHandle::is_finished)
    }

    pub(crate) fn incarnation(&self) -> &Arc<Incarnation> {
        &self.incarnation
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        if !self.incarnation.worker.is_alive() {
            self.incarnation.died_under_opening.store(true, Ordering::Release);
        }
        self.incarnation.turns.send_modify(|turns| turns.opening -= 1);
    }
}
