//! The turns that run or are retained, and how they are found.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::model::event::InterruptReason;
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::refusal::Refusal;
use crate::model::request::{DisconnectPolicy, RequestId, TurnRequest};
use crate::turn::admission::Lane;
use crate::turn::log::{End, Log, Retained};
use crate::turn::retention::Retention;
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
    // The keys under which the directory finds it: of its own request, and of those that steered
    // it.
    requests: Mutex<Vec<RequestKey>>,
    disconnect_policy: DisconnectPolicy,
    stop: watch::Sender<Option<InterruptReason>>,
    phase: watch::Sender<Phase>,
    callers: AtomicUsize,
}

type RequestKey = (Tenant, String);

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
        Arc::new(Turn {
            id: TurnId::generate(),
            tenant: request.tenant.clone(),
            context: request.context.clone(),
            lane,
            log: Arc::new(Log::new(retained)),
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
        begun && self.log.end().is_none()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    fn requests(&self) -> MutexGuard<'_, Vec<RequestKey>> {
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

/// All turns.
#[derive(Debug)]
pub struct Directory {
    turns: DashMap<TurnId, Arc<Turn>>,
    by_request: DashMap<RequestKey, Claimed>,
    // In the order of their arrival.
    unended: DashMap<ContextKey, Vec<Arc<Turn>>>,
    latest: DashMap<ContextKey, Arc<Turn>>,
    ended: Mutex<VecDeque<(Instant, Arc<Turn>)>>,
    retained: Arc<Retained>,
    keep_for: Duration,
}

/// What is known of a request id.
#[derive(Debug)]
struct Claimed {
    fingerprint: [u8; 32],
    // `None` while the first call with it has no turn yet.
    turn: watch::Receiver<Option<Arc<Turn>>>,
}

impl Claimed {
    fn is_for(&self, turn: &Arc<Turn>) -> bool {
        self.turn.borrow().as_ref().is_some_and(|known| Arc::ptr_eq(known, turn))
    }
}

/// What became of a request id.
#[derive(Debug)]
pub enum RequestIdUse {
    /// Nobody else has it.
    First(Claim),
    /// The same request came before; this is its turn.
    Repeated(Arc<Turn>),
}

/// The sole use of a request id. Dropping it unsettled gives the id free again, and whoever waits
/// for its turn tries to get one.
#[derive(Debug)]
pub struct Claim {
    directory: Arc<Directory>,
    key: RequestKey,
    turn: watch::Sender<Option<Arc<Turn>>>,
}

impl Claim {
    /// Every call with this id gets this turn from now on, for as long as the turn is retained.
    pub fn settle(self, turn: &Arc<Turn>) {
        turn.requests().push(self.key.clone());
        self.turn.send_replace(Some(Arc::clone(turn)));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let turn = self.turn.borrow().clone();
        // Also where the turn was forgotten while it was being settled for.
        if turn.is_none_or(|turn| !self.directory.turns.contains_key(&turn.id)) {
            self.directory.by_request.remove(&self.key);
        }
    }
}

impl Directory {
    /// Empty.
    pub fn new(retention: &Retention) -> Directory {
        let Retention { max_bytes_per_turn, max_bytes, after_end } = *retention;
        Directory {
            turns: DashMap::new(),
            by_request: DashMap::new(),
            unended: DashMap::new(),
            latest: DashMap::new(),
            ended: Mutex::default(),
            retained: Retained::new(max_bytes as u64, max_bytes_per_turn as u64),
            keep_for: after_end,
        }
    }

    /// The bytes that all turns' logs share.
    pub fn retained(&self) -> &Arc<Retained> {
        &self.retained
    }

    /// Takes a request id for a call that is about to get a turn, or finds the turn that the same
    /// request got before. Waits while that is not known yet.
    ///
    /// # Errors
    /// [`Refusal::RequestIdReused`].
    pub async fn claim(
        self: &Arc<Directory>,
        tenant: &Tenant,
        RequestId { id, fingerprint }: &RequestId,
    ) -> Result<RequestIdUse, Refusal> {
        loop {
            let key = (tenant.clone(), id.clone());
            let mut turn = match self.by_request.entry(key.clone()) {
                Entry::Occupied(entry) if entry.get().fingerprint != *fingerprint => {
                    return Err(Refusal::RequestIdReused { request_id: id.clone() });
                }
                Entry::Occupied(entry) => entry.get().turn.clone(),
                Entry::Vacant(entry) => {
                    let (turn, known) = watch::channel(None);
                    entry.insert(Claimed { fingerprint: *fingerprint, turn: known });
                    let directory = Arc::clone(self);
                    return Ok(RequestIdUse::First(Claim { directory, key, turn }));
                }
            };
            let known = turn.wait_for(Option::is_some).await;
            if let Ok(Some(turn)) = known.as_deref() {
                return Ok(RequestIdUse::Repeated(Arc::clone(turn)));
            }
            // The first call was refused before it had a turn.
        }
    }

    /// Enters a turn that was admitted: from now on it can be found.
    pub fn enter(&self, turn: &Arc<Turn>) {
        self.turns.insert(turn.id.clone(), Arc::clone(turn));
        if let Some(key) = &turn.context {
            self.unended.entry(key.clone()).or_default().push(Arc::clone(turn));
        }
    }

    /// The turn of this id.
    pub fn get(&self, id: &TurnId) -> Option<Arc<Turn>> {
        self.turns.get(id).map(|turn| Arc::clone(&turn))
    }

    /// The turn of this context that runs or is the next to run, or else the latest one that is
    /// retained.
    pub fn of_context(&self, key: &ContextKey) -> Option<Arc<Turn>> {
        self.live_of(key).or_else(|| self.latest.get(key).map(|turn| Arc::clone(&turn)))
    }

    /// The turn of this context that runs or is the next to run.
    pub fn live_of(&self, key: &ContextKey) -> Option<Arc<Turn>> {
        self.running_of(key).or_else(|| {
            let turns = self.unended.get(key)?;
            turns.iter().find(|turn| turn.log.end().is_none()).cloned()
        })
    }

    /// The turn of this context that runs.
    pub fn running_of(&self, key: &ContextKey) -> Option<Arc<Turn>> {
        self.unended.get(key)?.iter().find(|turn| turn.is_running()).cloned()
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
        match turn.log.end() {
            Some(End::Terminal) => {
                // First, so that there is no moment in which the context has no turn.
                if let Some(key) = &turn.context {
                    self.latest.insert(key.clone(), Arc::clone(turn));
                }
                self.retained.note_ended(&turn.log);
                let expiry = Instant::now() + self.keep_for;
                self.ended().push_back((expiry, Arc::clone(turn)));
            }
            Some(End::Refused(_)) | None => self.forget(turn),
        }
        if let Some(key) = &turn.context {
            if let Some(mut turns) = self.unended.get_mut(key) {
                turns.retain(|other| !Arc::ptr_eq(other, turn));
            }
            self.unended.remove_if(key, |_, turns| turns.is_empty());
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

    /// While all logs together are too large, lets ended turns give up their events, oldest first,
    /// then running ones; and where that does not do, because terminal events alone are too many,
    /// forgets the oldest turns.
    pub fn make_room(&self) {
        self.retained.make_room();
        if !self.retained.is_over() {
            return;
        }
        for turn in self.unended() {
            turn.log.give_up(self.retained.excess());
        }
        let mut excess = self.retained.excess();
        while excess > 0 {
            let Some((_, turn)) = self.ended().pop_front() else { return };
            // Counted here: the bytes are only free once its last reader has gone.
            excess = excess.saturating_sub(turn.log.bytes());
            self.forget(&turn);
        }
    }

    fn forget(&self, turn: &Arc<Turn>) {
        self.turns.remove(&turn.id);
        for key in turn.requests().drain(..) {
            self.by_request.remove_if(&key, |_, claimed| claimed.is_for(turn));
        }
        if let Some(key) = &turn.context {
            self.latest.remove_if(key, |_, other| Arc::ptr_eq(other, turn));
        }
    }

    fn ended(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<Turn>)>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{Event, Usage};
    use crate::model::request::{BusyPolicy, MissingThreadPolicy};

    const KEEP: Duration = Duration::from_secs(600);

    fn directory(max_bytes: usize) -> Arc<Directory> {
        let retention = Retention { max_bytes_per_turn: max_bytes, max_bytes, after_end: KEEP };
        Arc::new(Directory::new(&retention))
    }

    fn turn(directory: &Directory, context: &str) -> Arc<Turn> {
        let tenant = Tenant::default();
        let request = TurnRequest {
            tenant: tenant.clone(),
            context: Some(ContextKey {
                tenant,
                context_id: context.to_owned(),
                thread_key: String::new(),
            }),
            inputs: Vec::new(),
            ephemeral: false,
            explicit_thread: None,
            configured_thread: None,
            thread_options: Default::default(),
            turn_options: Default::default(),
            request_id: None,
            busy_policy: BusyPolicy::Queue,
            disconnect_policy: DisconnectPolicy::Interrupt,
            missing_thread_policy: MissingThreadPolicy::Fail,
            include_raw_events: false,
        };
        let turn = Turn::new(&request, Arc::clone(directory.retained()));
        directory.enter(&turn);
        turn
    }

    fn complete(directory: &Directory, turn: &Arc<Turn>, response_bytes: usize) {
        turn.log.append(Event::TurnCompleted {
            final_response: "x".repeat(response_bytes),
            usage: Usage::default(),
            thread_usage: Usage::default(),
        });
        directory.note_ended(turn);
    }

    fn id(text: &str, fingerprint: u8) -> RequestId {
        RequestId { id: text.to_owned(), fingerprint: [fingerprint; 32] }
    }

    async fn claim(directory: &Arc<Directory>, id: &RequestId) -> Result<RequestIdUse, Refusal> {
        directory.claim(&Tenant::default(), id).await
    }

    #[tokio::test(start_paused = true)]
    async fn ended_turns_are_forgotten_when_their_time_is_over_and_running_ones_are_not() {
        let directory = directory(1 << 20);
        let (running, ended) = (turn(&directory, "a"), turn(&directory, "b"));
        let Ok(RequestIdUse::First(first)) = claim(&directory, &id("r", 1)).await else { panic!() };
        first.settle(&ended);
        tokio::time::advance(2 * KEEP).await;
        complete(&directory, &ended, 10);
        let (a, b) = (running.context.clone().unwrap(), ended.context.clone().unwrap());

        tokio::time::advance(KEEP - Duration::from_secs(1)).await;
        directory.sweep();
        assert_eq!(directory.of_context(&b).unwrap().id, ended.id);
        assert!(matches!(
            claim(&directory, &id("r", 1)).await,
            Ok(RequestIdUse::Repeated(known)) if known.id == ended.id
        ));

        tokio::time::advance(Duration::from_secs(1)).await;
        directory.sweep();
        assert!(directory.get(&ended.id).is_none() && directory.of_context(&b).is_none());
        assert!(directory.by_request.is_empty());
        assert_eq!(directory.of_context(&a).unwrap().id, running.id);
        drop(ended);
        assert_eq!(directory.retained().bytes(), 0);
    }

    #[test]
    fn where_terminal_events_alone_are_too_much_the_oldest_turns_are_forgotten() {
        let directory = directory(10_000);
        let turns: Vec<_> = (0..8).map(|n| turn(&directory, &n.to_string())).collect();
        let ids: Vec<_> = turns.iter().map(|turn| turn.id.clone()).collect();
        for turn in turns {
            complete(&directory, &turn, 4000);
        }
        assert!(!directory.retained().is_over());
        let kept: Vec<_> = ids.iter().map(|id| directory.get(id).is_some()).collect();
        assert_eq!(kept, [false, false, false, false, false, false, true, true]);
    }

    #[test]
    fn running_turns_give_up_events_before_an_ended_one_is_forgotten() {
        let directory = directory(10_000);
        let (running, ended) = (turn(&directory, "a"), turn(&directory, "b"));
        for _ in 0..8 {
            running.log.append(Event::Raw { method: String::new(), json: "x".repeat(800) });
        }
        let before = running.log.bytes();
        complete(&directory, &ended, 4000);
        assert!(directory.get(&ended.id).is_some() && !directory.retained().is_over());
        assert!(running.log.bytes() < before && running.log.bytes() > before / 4);
    }

    #[tokio::test]
    async fn the_same_request_at_once_waits_for_the_first_and_a_refused_one_leaves_no_trace() {
        let directory = directory(1 << 20);
        let Ok(RequestIdUse::First(first)) = claim(&directory, &id("r", 1)).await else { panic!() };
        let reused = claim(&directory, &id("r", 2)).await.unwrap_err();
        assert_eq!(reused, Refusal::RequestIdReused { request_id: "r".to_owned() });

        let second = tokio::spawn({
            let directory = Arc::clone(&directory);
            async move { claim(&directory, &id("r", 1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        // Refused: the next one is the first.
        drop(first);
        let Ok(RequestIdUse::First(second)) = second.await.unwrap() else { panic!() };
        let third = tokio::spawn({
            let directory = Arc::clone(&directory);
            async move { claim(&directory, &id("r", 1)).await }
        });
        tokio::task::yield_now().await;
        let turn = turn(&directory, "a");
        second.settle(&turn);
        assert!(matches!(third.await.unwrap(),
            Ok(RequestIdUse::Repeated(known)) if known.id == turn.id));

        // A turn that is refused after it was entered frees its id, too.
        turn.log.refuse(Refusal::ContextBusy);
        directory.note_ended(&turn);
        assert!(directory.is_empty() && directory.by_request.is_empty());
    }
}
