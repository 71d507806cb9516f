//! One turn, as everybody sees it, and those who called for it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::model::event::InterruptReason;
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::request::{DisconnectPolicy, TurnRequest};
use crate::turn::admission::Lane;
use crate::turn::log::{Log, Retained};
use crate::worker::Worker;

/// A turn, as everybody but its engine sees it.
#[derive(Debug)]
pub struct Turn {
    /// The sidecar's id of it.
    pub id: TurnId,
    /// Whose it is.
    pub tenant: Tenant,
    /// Its context, unless it has none.
    pub context: Option<ContextKey>,
    /// What it must run in order with.
    pub lane: Option<Lane>,
    /// What happened in it.
    pub log: Arc<Log>,
    // The keys under which the turns find it: of its own request, and of those that steered
    // it.
    pub(super) requests: Mutex<Vec<RequestKey>>,
    disconnect_policy: DisconnectPolicy,
    stop: watch::Sender<Option<InterruptReason>>,
    phase: watch::Sender<Phase>,
    callers: AtomicUsize,
}

pub(super) type RequestKey = (Tenant, String);

/// How far a turn is.
#[derive(Debug, Clone)]
pub enum Phase {
    /// It waits for its place.
    Waiting,
    /// Its thread is being opened, or Codex is being told.
    Opening,
    /// Codex has taken it.
    Live(Live),
    /// It is over.
    Over,
}

/// Where a turn runs, once Codex has taken it.
#[derive(Debug, Clone)]
pub struct Live {
    /// The worker.
    pub worker: Arc<Worker>,
    /// The thread.
    pub thread_id: ThreadId,
    /// Codex's id of the turn.
    pub codex_turn_id: String,
}

impl Turn {
    /// A turn that has not begun.
    pub fn new(request: &TurnRequest, retained: Arc<Retained>) -> Arc<Turn> {
        let lane = match (&request.context, &request.explicit_thread) {
            (Some(key), _) => Some(Lane::Context(key.clone())),
            (None, Some(id)) => Some(Lane::Thread(request.tenant.clone(), id.clone())),
            (None, None) => None,
        };
        let id = TurnId::generate();
        Arc::new(Turn {
            log: Arc::new(Log::new(id.clone(), retained)),
            id,
            tenant: request.tenant.clone(),
            context: request.context.clone(),
            lane,
            requests: Mutex::default(),
            disconnect_policy: request.disconnect_policy,
            stop: watch::Sender::new(None),
            phase: watch::Sender::new(Phase::Waiting),
            callers: AtomicUsize::new(0),
        })
    }

    /// Asks for its end. The first reason stays.
    pub fn interrupt(&self, reason: InterruptReason) {
        self.stop.send_if_modified(|stop| {
            let first = stop.is_none();
            if first {
                *stop = Some(reason);
            }
            first
        });
    }

    /// Whether its end was asked for, now and as that changes.
    pub fn stop_requests(&self) -> watch::Receiver<Option<InterruptReason>> {
        self.stop.subscribe()
    }

    /// Where it runs. Waits while its thread is being opened.
    ///
    /// # Errors
    /// Why it does not run: it waits for its place, which may take any time, or is over.
    pub async fn live(&self) -> Result<Live, &'static str> {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as the turn.
        let known = phase.wait_for(|phase| !matches!(phase, Phase::Opening)).await;
        match known.as_deref() {
            Ok(Phase::Live(live)) => Ok(live.clone()),
            Ok(Phase::Waiting) => Err("it waits for its place in the queue"),
            Ok(Phase::Opening | Phase::Over) | Err(_) => Err("it has ended"),
        }
    }

    /// Whether it has left the queue and has not ended.
    pub fn is_running(&self) -> bool {
        let begun = match *self.phase.borrow() {
            Phase::Opening | Phase::Live(_) => true,
            Phase::Waiting | Phase::Over => false,
        };
        begun && !self.log.has_ended()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Vec<RequestKey>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a caller of this turn. When the last one goes, the disconnect policy decides.
    pub fn join(self: &Arc<Turn>) -> Caller {
        self.callers.fetch_add(1, Ordering::AcqRel);
        Caller {
            presence: Arc::new(Presence { turn: Arc::clone(self), left: AtomicBool::new(false) }),
        }
    }
}

/// One who called for the turn, and reads it. Dropped when the stream ends, however it ends.
#[derive(Debug)]
pub struct Caller {
    presence: Arc<Presence>,
}

#[derive(Debug)]
struct Presence {
    turn: Arc<Turn>,
    left: AtomicBool,
}

impl Caller {
    /// The turn.
    pub fn turn(&self) -> &Arc<Turn> {
        &self.presence.turn
    }

    /// Counts the caller as gone when its deadline passes, even while nobody polls its stream
    /// because the other side does not read.
    pub fn leave_at(&self, deadline: Instant) {
        let presence = Arc::clone(&self.presence);
        tokio::spawn(async move {
            tokio::select! {
                () = presence.turn.log.ended() => {}
                () = tokio::time::sleep_until(deadline) => {
                    presence.leave(InterruptReason::DeadlineExceeded);
                }
            }
        });
    }

    /// Counts the caller as gone because its deadline has passed.
    pub fn deadline_passed(&self) {
        self.presence.leave(InterruptReason::DeadlineExceeded);
    }
}

impl Presence {
    fn leave(&self, reason: InterruptReason) {
        if self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        let was_last = self.turn.callers.fetch_sub(1, Ordering::AcqRel) == 1;
        // An ended turn no longer looks.
        if was_last && self.turn.disconnect_policy == DisconnectPolicy::Interrupt {
            self.turn.interrupt(reason);
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.presence.leave(InterruptReason::CallerDisconnected);
    }
}
