//! The turns that run or are retained, and how they are found.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::turn::admission::Lane;
use crate::turn::event::InterruptReason;
use crate::turn::log::{End, Log, Retained};
use crate::turn::refusal::Refusal;
use crate::turn::request::{
    ContextKey, DisconnectPolicy, RequestId, Tenant, ThreadId, TurnId, TurnRequest,
};
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
    request_id: Option<RequestId>,
    disconnect_policy: DisconnectPolicy,
    stop: watch::Sender<Option<InterruptReason>>,
    live: watch::Sender<Option<Live>>,
    callers: AtomicUsize,
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
        Arc::new(Turn {
            id: TurnId::generate(),
            tenant: request.tenant.clone(),
            context: request.context.clone(),
            lane,
            log: Arc::new(Log::new(retained)),
            request_id: request.request_id.clone(),
            disconnect_policy: request.disconnect_policy,
            stop: watch::Sender::new(None),
            live: watch::Sender::new(None),
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

    /// Where it runs, once it does; `None` if it ends before.
    pub async fn live(&self) -> Option<Live> {
        let mut live = self.live.subscribe();
        tokio::select! {
            biased;
            () = self.log.ended() => None,
            live = live.wait_for(Option::is_some) => live.ok().and_then(|live| live.clone()),
        }
    }

    pub(super) fn set_live(&self, live: Option<Live>) {
        self.live.send_replace(live);
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

/// All turns.
#[derive(Debug)]
pub struct Directory {
    turns: DashMap<TurnId, Arc<Turn>>,
    by_request: DashMap<(Tenant, String), Arc<Turn>>,
    // In the order of their arrival.
    unended: DashMap<ContextKey, Vec<Arc<Turn>>>,
    latest: DashMap<ContextKey, Arc<Turn>>,
    ended: Mutex<VecDeque<(Instant, Arc<Turn>)>>,
    retained: Arc<Retained>,
    keep_for: Duration,
}

/// What became of a turn that was to be entered.
#[derive(Debug)]
pub enum Entered {
    /// It is new; its engine must be started.
    New,
    /// The same request came before; this is its turn.
    Joined(Arc<Turn>),
}

impl Directory {
    /// Empty. Ended turns are kept for `keep_for`.
    pub fn new(retained: Arc<Retained>, keep_for: Duration) -> Directory {
        Directory {
            turns: DashMap::new(),
            by_request: DashMap::new(),
            unended: DashMap::new(),
            latest: DashMap::new(),
            ended: Mutex::default(),
            retained,
            keep_for,
        }
    }

    /// The bytes that all turns' logs share.
    pub fn retained(&self) -> &Arc<Retained> {
        &self.retained
    }

    /// Enters a turn, unless its request id is known.
    ///
    /// # Errors
    /// [`Refusal::RequestIdReused`].
    pub fn enter(&self, turn: &Arc<Turn>) -> Result<Entered, Refusal> {
        if let Some(request_id) = &turn.request_id {
            match self.by_request.entry((turn.tenant.clone(), request_id.id.clone())) {
                Entry::Occupied(entry) => {
                    let known = entry.get();
                    let same = known
                        .request_id
                        .as_ref()
                        .is_some_and(|known| known.fingerprint == request_id.fingerprint);
                    return if same {
                        Ok(Entered::Joined(Arc::clone(known)))
                    } else {
                        Err(Refusal::RequestIdReused { request_id: request_id.id.clone() })
                    };
                }
                Entry::Vacant(entry) => drop(entry.insert(Arc::clone(turn))),
            }
        }
        self.turns.insert(turn.id.clone(), Arc::clone(turn));
        Ok(Entered::New)
    }

    /// Notes that a turn was admitted: from now on it is one of its context.
    pub fn note_admitted(&self, turn: &Arc<Turn>) {
        if let Some(key) = &turn.context {
            self.unended.entry(key.clone()).or_default().push(Arc::clone(turn));
        }
    }

    /// The turn of this id.
    pub fn get(&self, id: &TurnId) -> Option<Arc<Turn>> {
        self.turns.get(id).map(|turn| Arc::clone(&turn))
    }

    /// The turn of this context that runs, or else the latest one that is retained.
    pub fn of_context(&self, key: &ContextKey) -> Option<Arc<Turn>> {
        self.live_of(key).or_else(|| self.latest.get(key).map(|turn| Arc::clone(&turn)))
    }

    /// The turn of this context that runs or is the next to run.
    pub fn live_of(&self, key: &ContextKey) -> Option<Arc<Turn>> {
        self.unended.get(key).and_then(|turns| turns.first().cloned())
    }

    /// Every turn that has not ended.
    pub fn unended(&self) -> Vec<Arc<Turn>> {
        let unended = self.turns.iter().filter(|turn| turn.log.end().is_none());
        unended.map(|turn| Arc::clone(&turn)).collect()
    }

    /// How many turns are known, ended ones included.
    pub fn len(&self) -> usize {
        self.turns.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Notes that a turn has ended. One that was refused is forgotten at once, so that the same
    /// request may be tried again; any other is kept for its readers.
    pub fn note_ended(&self, turn: &Arc<Turn>) {
        if let Some(key) = &turn.context {
            if let Some(mut turns) = self.unended.get_mut(key) {
                turns.retain(|other| !Arc::ptr_eq(other, turn));
            }
            self.unended.remove_if(key, |_, turns| turns.is_empty());
        }
        match turn.log.end() {
            Some(End::Terminal) => {
                if let Some(key) = &turn.context {
                    self.latest.insert(key.clone(), Arc::clone(turn));
                }
                let expiry = Instant::now() + self.keep_for;
                self.ended().push_back((expiry, Arc::clone(turn)));
            }
            Some(End::Refused(_)) | None => self.forget(turn),
        }
        self.make_room();
    }

    /// Forgets the ended turns whose time is over.
    pub fn sweep(&self) {
        let now = Instant::now();
        loop {
            let expired = {
                let mut ended = self.ended();
                match ended.front() {
                    Some((expiry, _)) if *expiry <= now => ended.pop_front(),
                    _ => None,
                }
            };
            match expired {
                Some((_, turn)) => self.forget(&turn),
                None => return,
            }
        }
    }

    /// Lets ended turns give up their events, oldest first, while all logs together are too large.
    pub fn make_room(&self) {
        if !self.retained.is_over() {
            return;
        }
        for (_, turn) in self.ended().iter() {
            if !self.retained.is_over() {
                return;
            }
            turn.log.shrink();
        }
    }

    fn forget(&self, turn: &Arc<Turn>) {
        let is_it = |other: &Arc<Turn>| Arc::ptr_eq(other, turn);
        self.turns.remove(&turn.id);
        if let Some(request_id) = &turn.request_id {
            let key = (turn.tenant.clone(), request_id.id.clone());
            self.by_request.remove_if(&key, |_, other| is_it(other));
        }
        if let Some(key) = &turn.context {
            self.latest.remove_if(key, |_, other| is_it(other));
        }
    }

    fn ended(&self) -> std::sync::MutexGuard<'_, VecDeque<(Instant, Arc<Turn>)>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
