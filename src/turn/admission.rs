//! Who may run now: turns of one context, or on one thread, one after the other, and not too many in
//! all.
//!
//! A turn stands in its lanes (its context, and the thread that it will run on as soon as that is
//! known) until the turns before it have ended, then in the common line until there is room for it.
//! A lane is first come, first served, but for turns that supersede others ([`BusyPolicy::Interrupt`]),
//! which go before those that wait; and all lanes in the same order, so that no two turns wait for each
//! other. In the common line callers take turns. Nobody waits without being told: what does not
//! fit is refused at once.

mod reservation;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use crate::model::event::InterruptReason;
use crate::model::id::{CallerId, ContextKey, Tenant, ThreadId};
use crate::model::refusal::Refusal;
use crate::model::request::BusyPolicy;
use crate::turn::turn::Turn;

pub(crate) use reservation::Reservation;

/// What runs one turn at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// A context.
    Context(ContextKey),
    /// A thread, whoever names it.
    Thread(Tenant, ThreadId),
}

/// A turn that is to be admitted.
#[derive(Debug, Clone)]
pub(crate) struct Entrant {
    pub(crate) tenant: Tenant,
    /// Whose turn it is among those that share the line.
    pub(crate) caller: CallerId,
    pub(crate) context: Option<ContextKey>,
    /// The thread that it will run on, where that is known.
    pub(crate) thread: Option<ThreadId>,
    /// Whether it runs on whatever thread its context has by then.
    pub(crate) follows_context: bool,
    pub(crate) policy: BusyPolicy,
    /// The turn itself, for one that supersedes it.
    pub(crate) turn: Weak<Turn>,
    /// What its request holds while it waits.
    pub(crate) bytes: usize,
}

/// How many turns may run and wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Most turns that run at once. Default 64.
    pub max_running_turns: usize,
    /// Most turns of one tenant that run at once. Default 64.
    pub max_running_turns_per_tenant: usize,
    /// Most turns that wait in all; beyond it QUEUE_FULL. Default 256. One connection's may take seven
    /// eighths of it.
    pub max_waiting_turns: usize,
    /// Most turns that wait for one context, or, of those without one, for one thread; beyond it
    /// CONTEXT_QUEUE_FULL. Default 16.
    pub max_waiting_turns_per_context: usize,
}

impl Default for AdmissionLimits {
    fn default() -> AdmissionLimits {
        AdmissionLimits {
            max_running_turns: 64,
            max_running_turns_per_tenant: 64,
            max_waiting_turns: 256,
            max_waiting_turns_per_context: 16,
        }
    }
}

/// Most turns that one caller may have waiting, as a multiple of the room that is left. One that floods
/// the queue takes at most seven eighths of it, two take seven fifteenths each, and so on: whoever comes
/// with one turn finds room.
const SHARE: usize = 7;

/// The last part of the queue is for those who have nothing waiting: many callers with a little each would
/// leave them none.
const KEPT: usize = 16;

/// Most bytes that the requests of all turns that wait hold; beyond it QUEUE_FULL. They are shared as the
/// queue is.
const MOST_WAITING_BYTES: usize = 256 << 20;

/// How far a turn is in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueuePosition {
    /// It is the one of this number in its line, from 1.
    Waiting(u32),
    /// It runs.
    Running,
}

/// Admits turns.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: AdmissionLimits,
    state: Mutex<State>,
    // Told whenever lanes that were reserved are given up.
    released: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    next_ticket: u64,
    tickets: HashMap<u64, Entry>,
    // By rank; but for those that run, which are in front, in the order of their arrival.
    lanes: HashMap<Lane, VecDeque<u64>>,
    line: Line,
    running: usize,
    running_of: HashMap<Tenant, usize>,
    waiting: Waiting,
    waiting_of: HashMap<CallerId, Waiting>,
}

/// Turns that wait, and what their requests hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Waiting {
    turns: usize,
    bytes: usize,
}

impl Waiting {
    fn add(&mut self, bytes: usize) {
        self.turns += 1;
        self.bytes += bytes;
    }

    fn take(&mut self, bytes: usize) {
        self.turns -= 1;
        self.bytes -= bytes;
    }
}

/// Counts one less of a caller's.
fn take_waiting(of: &mut HashMap<CallerId, Waiting>, caller: CallerId, bytes: usize) {
    if let Some(waiting) = of.get_mut(&caller) {
        waiting.take(bytes);
        if waiting.turns == 0 {
            of.remove(&caller);
        }
    }
}

/// Who has a turn that runs or waits, while nothing of that changes.
pub(crate) struct Busy<'a>(&'a HashMap<Lane, VecDeque<u64>>);

impl Busy<'_> {
    pub(crate) fn has(&self, key: &ContextKey) -> bool {
        self.0.contains_key(&Lane::Context(key.clone()))
    }

    pub(crate) fn contexts(&self) -> impl Iterator<Item = &ContextKey> {
        self.0.keys().filter_map(|lane| match lane {
            Lane::Context(key) => Some(key),
            Lane::Thread(..) => None,
        })
    }
}

#[derive(Debug)]
struct Entry {
    tenant: Tenant,
    caller: CallerId,
    context: Option<Lane>,
    thread: Option<Lane>,
    follows_context: bool,
    rank: i64,
    turn: Weak<Turn>,
    bytes: usize,
    stage: Stage,
    position: watch::Sender<QueuePosition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It waits for others of its lanes.
    InLane,
    /// It waits for room.
    InLine,
    Running,
}

impl Entry {
    /// Whether it goes before those that wait.
    fn supersedes(&self) -> bool {
        self.rank < 0
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.context.iter().chain(&self.thread)
    }
}

/// Who waits for nothing but room: each caller's turns in their order, and the callers in that in which
/// they take turns.
#[derive(Debug, Default)]
struct Line {
    callers: VecDeque<(CallerId, VecDeque<u64>)>,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }

    fn push(&mut self, caller: CallerId, id: u64) {
        match self.callers.iter_mut().find(|(known, _)| *known == caller) {
            Some((_, ids)) => ids.push_back(id),
            None => self.callers.push_back((caller, VecDeque::from([id]))),
        }
    }

    fn remove(&mut self, caller: CallerId, id: u64) {
        self.callers.retain_mut(|(known, ids)| {
            if *known == caller {
                ids.retain(|other| *other != id);
            }
            !ids.is_empty()
        });
    }

    /// Takes out the first for which there is room. Its caller is the last to have another turn.
    fn take(&mut self, has_room: impl Fn(u64) -> bool) -> Option<u64> {
        let found = self.callers.iter().enumerate().find_map(|(at, (_, ids))| {
            let index = ids.iter().position(|id| has_room(*id))?;
            Some((at, index))
        });
        let (at, index) = found?;
        let (caller, mut ids) = self.callers.remove(at)?;
        let id = ids.remove(index);
        if !ids.is_empty() {
            self.callers.push_back((caller, ids));
        }
        id
    }

    /// All of them, in the order in which room would be given to them.
    fn order(&self) -> Vec<u64> {
        let mut callers: Vec<_> = self.callers.iter().map(|(_, ids)| ids.iter()).collect();
        let mut order = Vec::new();
        while !callers.is_empty() {
            callers.retain_mut(|ids| ids.next().map(|id| order.push(*id)).is_some());
        }
        order
    }
}

/// A turn's admission. Dropping it gives the admission up, whether the turn waits or runs.
#[derive(Debug)]
pub(crate) struct Ticket {
    id: u64,
    admission: Arc<Admission>,
    position: watch::Receiver<QueuePosition>,
}

impl Ticket {
    /// How far the turn is, now and as that changes.
    pub(crate) fn position(&self) -> watch::Receiver<QueuePosition> {
        self.position.clone()
    }

    /// Notes the thread that the turn runs on: from now on it is its context's, and whoever else names it
    /// waits for the turn.
    pub(crate) fn note_thread(&self, thread_id: &ThreadId) {
        self.admission.note_thread(self.id, thread_id);
    }

    /// Gives the admission up and does the turn's last deed in one step: nobody is admitted, and no context
    /// changes, between the two. The deed must be short, and ask nothing here.
    pub(crate) fn give_up(&self, last: impl FnOnce()) {
        self.admission.leave(self.id, last);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.leave(self.id, || ());
    }
}

/// When a refused caller should try again: a turn takes about as long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Admission {
    /// Nobody is here yet.
    pub(crate) fn new(limits: AdmissionLimits) -> Arc<Admission> {
        Arc::new(Admission { limits, state: Mutex::default(), released: watch::Sender::default() })
    }

    /// Takes a turn in: whoever `entrant` makes, who is there from `enter` on. Nothing else is admitted,
    /// and nothing ends, meanwhile, so that what they look at still holds; they must be short, and ask
    /// nothing here.
    ///
    /// # Errors
    /// [`Refusal::ContextBusy`] under [`BusyPolicy::Reject`], [`Refusal::ContextQueueFull`],
    /// [`Refusal::QueueFull`], and whatever the making refuses.
    pub(crate) fn admit(
        self: &Arc<Admission>,
        entrant: impl FnOnce(&Busy<'_>) -> Result<Entrant, Refusal>,
        enter: impl FnOnce(),
    ) -> Result<Ticket, Refusal> {
        let mut lock = self.state();
        let state = &mut *lock;
        let Entrant { tenant, caller, context, thread, follows_context, policy, turn, bytes } =
            entrant(&Busy(&state.lanes))?;
        let context = context.map(Lane::Context);
        let thread = thread.map(|thread| Lane::Thread(tenant.clone(), thread));
        let is_busy =
            [&context, &thread].into_iter().flatten().any(|lane| state.lanes.contains_key(lane));
        if is_busy && policy == BusyPolicy::Reject {
            return Err(Refusal::ContextBusy);
        }
        // Contexts that name one thread are as many contexts.
        let own_lane = context.as_ref().or(thread.as_ref()).and_then(|lane| state.lanes.get(lane));
        let supersedes = policy == BusyPolicy::Interrupt;
        // One that supersedes others waits for them alone, and they are about to go.
        let waiting_in_lane = own_lane.filter(|_| !supersedes).map(|lane| lane.len() - 1);
        let runs_at_once = !is_busy && state.line.is_empty() && self.has_room(state, &tenant);
        if !runs_at_once {
            self.look_for_a_position(state, caller, waiting_in_lane, bytes)?;
        }

        let id = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.add(bytes);
        state.waiting_of.entry(caller).or_default().add(bytes);
        let arrival = i64::try_from(id).unwrap_or(i64::MAX);
        let rank = if supersedes { -1 - arrival } else { arrival };
        let (sender, position) = watch::channel(QueuePosition::Waiting(1));
        let entry = Entry {
            tenant,
            caller,
            context,
            thread,
            follows_context,
            rank,
            turn,
            bytes,
            stage: Stage::InLane,
            position: sender,
        };
        let lanes: Vec<Lane> = entry.lanes().cloned().collect();
        state.tickets.insert(id, entry);
        if supersedes {
            state.supersede(&lanes);
        }
        for lane in &lanes {
            state.enter_lane(lane, id);
        }
        enter();
        for lane in &lanes {
            state.line_up_lane(lane);
        }
        state.line_up(id);
        self.advance(state);
        state.tell_in_lane(id);
        drop(lock);
        Ok(Ticket { id, admission: Arc::clone(self), position })
    }

    fn look_for_a_position(
        &self,
        state: &State,
        caller: CallerId,
        waiting_in_lane: Option<usize>,
        bytes: usize,
    ) -> Result<(), Refusal> {
        let retry_after = RETRY_AFTER;
        let most_in_lane = self.limits.max_waiting_turns_per_context;
        if let Some(waiting) = waiting_in_lane.filter(|waiting| *waiting >= most_in_lane) {
            return Err(Refusal::ContextQueueFull { waiting, retry_after });
        }
        let free = self.limits.max_waiting_turns.saturating_sub(state.waiting.turns);
        let own = state.waiting_of.get(&caller).copied().unwrap_or_default();
        if free == 0 {
            return Err(Refusal::QueueFull { waiting: state.waiting.turns, retry_after });
        }
        let kept = self.limits.max_waiting_turns / KEPT;
        if own.turns >= free.saturating_mul(SHARE) || (own.turns > 0 && free <= kept) {
            return Err(Refusal::QueueShareFull { waiting: own.turns, retry_after });
        }
        let (own, all) = (own.bytes + bytes, state.waiting.bytes + bytes);
        let free = MOST_WAITING_BYTES.saturating_sub(all);
        if all > MOST_WAITING_BYTES || own > free.saturating_mul(SHARE) {
            return Err(Refusal::QueueTooLarge { bytes: state.waiting.bytes, retry_after });
        }
        Ok(())
    }

    /// How many turns run.
    pub(crate) fn running(&self) -> usize {
        self.state().running
    }

    /// How many turns wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting.turns
    }

    /// How many turns wait in this lane.
    pub(crate) fn waiting_in(&self, lane: &Lane) -> usize {
        let state = self.state();
        let lane = state.lanes.get(lane).into_iter().flatten();
        // One that is reserved has no ticket.
        let waits = |id: &&u64| state.tickets.contains_key(id) && !state.runs(**id);
        lane.filter(waits).count()
    }

    /// Makes a change that no turn of this lane may come between; `None`, and no change, where one
    /// runs or waits. Nobody is admitted meanwhile: the change must be short, and ask nothing here.
    pub(crate) fn while_idle<T>(
        &self,
        lane: &Lane,
        change: impl FnOnce(&Busy<'_>) -> T,
    ) -> Option<T> {
        let state = self.state();
        let is_idle = !state.lanes.contains_key(lane);
        is_idle.then(|| change(&Busy(&state.lanes)))
    }

    /// Makes a change that nothing of what is busy may come between; as short as those.
    pub(crate) fn hold<T>(&self, change: impl FnOnce(&Busy<'_>) -> T) -> T {
        change(&Busy(&self.state().lanes))
    }

    fn has_room(&self, state: &State, tenant: &Tenant) -> bool {
        self.limits.have_room(state.running, &state.running_of, tenant)
    }

    /// Lets those in the common line run for whom there is room; a tenant at its limit does not hold
    /// up the others.
    fn advance(&self, state: &mut State) {
        let State { tickets, line, running, running_of, waiting, waiting_of, .. } = state;
        while let Some(id) = line.take(|id| {
            let entry = tickets.get(&id);
            entry.is_none_or(|entry| self.limits.have_room(*running, running_of, &entry.tenant))
        }) {
            let Some(entry) = tickets.get_mut(&id) else { continue };
            *running += 1;
            waiting.take(entry.bytes);
            take_waiting(waiting_of, entry.caller, entry.bytes);
            *running_of.entry(entry.tenant.clone()).or_default() += 1;
            entry.stage = Stage::Running;
            entry.position.send_replace(QueuePosition::Running);
        }
        for (index, id) in line.order().into_iter().enumerate() {
            if let Some(entry) = tickets.get(&id) {
                tell(entry, index + 1);
            }
        }
    }

    fn note_thread(&self, id: u64, thread_id: &ThreadId) {
        let mut lock = self.state();
        let state = &mut *lock;
        let Some(entry) = state.tickets.get(&id) else { return };
        let thread = Lane::Thread(entry.tenant.clone(), thread_id.clone());
        let of_context = entry.context.as_ref().and_then(|lane| state.lanes.get(lane));
        let followers =
            of_context.into_iter().flatten().copied().filter(|other| {
                state.tickets.get(other).is_some_and(|entry| entry.follows_context)
            });
        let moving: Vec<u64> = followers.filter(|other| *other != id).chain([id]).collect();
        for id in moving {
            state.move_to_thread(id, &thread);
        }
        self.advance(state);
    }

    fn leave(&self, id: u64, last: impl FnOnce()) {
        let mut lock = self.state();
        let state = &mut *lock;
        let Some(entry) = state.tickets.remove(&id) else { return };
        match entry.stage {
            Stage::Running => {
                state.running -= 1;
                take_one(&mut state.running_of, &entry.tenant);
            }
            Stage::InLane | Stage::InLine => {
                state.waiting.take(entry.bytes);
                take_waiting(&mut state.waiting_of, entry.caller, entry.bytes);
                state.line.remove(entry.caller, id);
            }
        }
        last();
        for lane in entry.lanes() {
            state.leave_lane(lane, id);
        }
        self.advance(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AdmissionLimits {
    fn have_room(
        &self,
        running: usize,
        running_of: &HashMap<Tenant, usize>,
        tenant: &Tenant,
    ) -> bool {
        running < self.max_running_turns
            && running_of.get(tenant).copied().unwrap_or(0) < self.max_running_turns_per_tenant
    }
}

impl State {
    fn runs(&self, id: u64) -> bool {
        self.tickets.get(&id).is_some_and(|entry| entry.stage == Stage::Running)
    }

    /// Has a turn wait for room, once nobody is before it in its lanes; or in its lanes again.
    fn line_up(&mut self, id: u64) {
        let Some(entry) = self.tickets.get(&id) else { return };
        let is_in_front = |lane| self.lanes.get(lane).is_some_and(|lane| lane.front() == Some(&id));
        let (caller, is_free) = (entry.caller, entry.lanes().all(is_in_front));
        let stage = match (entry.stage, is_free) {
            (Stage::InLane, true) => {
                self.line.push(caller, id);
                Stage::InLine
            }
            (Stage::InLine, false) => {
                self.line.remove(caller, id);
                Stage::InLane
            }
            (stage, _) => stage,
        };
        if let Some(entry) = self.tickets.get_mut(&id) {
            entry.stage = stage;
        }
        self.tell_in_lane(id);
    }

    /// Stops those that run in these lanes, and those that wait there to supersede others.
    fn supersede(&self, lanes: &[Lane]) {
        for id in lanes.iter().filter_map(|lane| self.lanes.get(lane)).flatten() {
            let Some(entry) = self.tickets.get(id) else { continue };
            if (entry.stage == Stage::Running || entry.supersedes())
                && let Some(turn) = entry.turn.upgrade()
            {
                turn.interrupt(InterruptReason::Superseded);
            }
        }
    }

    /// Puts a turn into a lane: where it runs in front, else by its rank behind those that run.
    fn enter_lane(&mut self, lane: &Lane, id: u64) {
        let rank_of = |id: &u64| self.tickets.get(id).map_or(0, |entry| entry.rank);
        let (runs, rank) = (self.runs(id), rank_of(&id));
        let ids = self.lanes.get(lane).into_iter().flatten();
        // What has no ticket has the lane reserved.
        let goes_first = |other: &u64| self.runs(*other) || !self.tickets.contains_key(other);
        let is_ahead = |other: &&u64| !runs && (goes_first(other) || rank_of(other) < rank);
        let ahead = ids.take_while(is_ahead).count();
        self.lanes.entry(lane.clone()).or_default().insert(ahead, id);
    }

    fn leave_lane(&mut self, lane: &Lane, id: u64) {
        let Some(ids) = self.lanes.get_mut(lane) else { return };
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            self.lanes.remove(lane);
        }
        self.line_up_lane(lane);
    }

    fn line_up_lane(&mut self, lane: &Lane) {
        for id in self.lanes.get(lane).cloned().into_iter().flatten() {
            self.line_up(id);
        }
    }

    fn move_to_thread(&mut self, id: u64, thread: &Lane) {
        let Some(entry) = self.tickets.get_mut(&id) else { return };
        if entry.thread.as_ref() == Some(thread) {
            return;
        }
        let before = entry.thread.replace(thread.clone());
        if let Some(before) = before {
            self.leave_lane(&before, id);
        }
        self.enter_lane(thread, id);
        self.line_up_lane(thread);
    }

    /// Tells a turn that waits in its lanes its position there.
    fn tell_in_lane(&self, id: u64) {
        let Some(entry) = self.tickets.get(&id).filter(|entry| entry.stage == Stage::InLane) else {
            return;
        };
        let lanes = entry.lanes().filter_map(|lane| self.lanes.get(lane));
        let ahead = lanes.filter_map(|lane| lane.iter().position(|other| *other == id)).max();
        tell(entry, ahead.unwrap_or(0));
    }
}

/// Counts one less.
fn take_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn tell(entry: &Entry, number: usize) {
    let position = QueuePosition::Waiting(u32::try_from(number).unwrap_or(u32::MAX));
    entry.position.send_if_modified(|current| {
        let changed = *current != position;
        *current = position;
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::request::TurnRequest;
    use crate::turn::log::Retained;
    use crate::turn::turn::{Command, Mailbox};
    use proptest::prelude::*;

    fn entrant(name: usize) -> Entrant {
        let context = ContextKey {
            tenant: Tenant::default(),
            context_id: name.to_string(),
            thread_key: String::new(),
        };
        Entrant {
            tenant: Tenant::default(),
            caller: CallerId::default(),
            context: Some(context),
            thread: None,
            follows_context: true,
            policy: BusyPolicy::Queue,
            turn: Weak::new(),
            bytes: name,
        }
    }

    fn thread(name: usize) -> ThreadId {
        ThreadId::from_codex(name.to_string())
    }

    fn position(ticket: &Ticket) -> QueuePosition {
        *ticket.position.borrow()
    }

    const LIMITS: AdmissionLimits = AdmissionLimits {
        max_running_turns: 2,
        max_running_turns_per_tenant: 2,
        max_waiting_turns: 4,
        max_waiting_turns_per_context: 2,
    };

    fn take_in(
        admission: &Arc<Admission>,
        entrant: impl FnOnce() -> Result<Entrant, Refusal>,
    ) -> Result<Ticket, Refusal> {
        admission.admit(|_| entrant(), || ())
    }

    fn admit(admission: &Arc<Admission>, name: usize) -> Result<Ticket, Refusal> {
        take_in(admission, || Ok(entrant(name)))
    }

    #[test]
    fn many_callers_with_a_little_each_leave_room_for_who_has_nothing_waiting() {
        let limits = AdmissionLimits { max_waiting_turns: 256, ..LIMITS };
        let admission = Admission::new(limits);
        let mut held = Vec::new();
        let mut admit = |caller: u64| {
            let caller = CallerId(caller);
            let mut name = held.len();
            let ticket = take_in(&admission, || {
                name += 1;
                Ok(Entrant { caller, ..entrant(name) })
            });
            ticket.map(|ticket| held.push(ticket))
        };
        for _ in 0..100 {
            for caller in 1..=40 {
                let _ = admit(caller);
            }
        }
        assert!(matches!(admit(1), Err(Refusal::QueueShareFull { .. })));
        for caller in 41..=56 {
            admit(caller).unwrap();
        }
    }

    #[test]
    fn turns_of_a_lane_run_in_order_and_are_told_their_position() {
        let admission = Admission::new(LIMITS);
        let first = admit(&admission, 1).unwrap();
        let second = admit(&admission, 1).unwrap();
        let third = admit(&admission, 1).unwrap();
        let other = admit(&admission, 2).unwrap();
        assert_eq!(
            [&first, &second, &third, &other].map(position),
            [
                QueuePosition::Running,
                QueuePosition::Waiting(1),
                QueuePosition::Waiting(2),
                QueuePosition::Running
            ]
        );
        assert!(matches!(admit(&admission, 1), Err(Refusal::ContextQueueFull { waiting: 2, .. })));
        let rejected =
            take_in(&admission, || Ok(Entrant { policy: BusyPolicy::Reject, ..entrant(2) }));
        assert_eq!(rejected.unwrap_err(), Refusal::ContextBusy);
        let (fourth, _fifth) = (admit(&admission, 4).unwrap(), admit(&admission, 5).unwrap());
        assert_eq!(position(&fourth), QueuePosition::Waiting(1));
        assert!(matches!(admit(&admission, 6), Err(Refusal::QueueFull { waiting: 4, .. })));
        drop(first);
        // The room goes to the one who waited longest for it, not to the lane.
        assert_eq!(
            [&second, &third, &fourth].map(position),
            [QueuePosition::Waiting(2), QueuePosition::Waiting(1), QueuePosition::Running]
        );
        drop((second, other));
        assert_eq!(position(&third), QueuePosition::Waiting(1));
    }

    fn on_thread(admission: &Arc<Admission>, name: usize, on: usize) -> Ticket {
        let entrant = Entrant { thread: Some(thread(on)), follows_context: false, ..entrant(name) };
        take_in(admission, || Ok(entrant)).unwrap()
    }

    #[test]
    fn contexts_that_name_one_thread_wait_for_it_and_leave_the_room_to_others() {
        let admission =
            Admission::new(AdmissionLimits { max_waiting_turns_per_context: 1, ..LIMITS });
        let busy = admit(&admission, 1).unwrap();
        let follows = admit(&admission, 1).unwrap();
        // Its first turn: the thread was not known when it was admitted.
        busy.note_thread(&thread(7));
        let named = [on_thread(&admission, 2, 7), on_thread(&admission, 3, 7)];
        let innocent = admit(&admission, 4).unwrap();
        let positions = |tickets: [&Ticket; 3]| tickets.map(position);
        let waiting = QueuePosition::Waiting;
        assert_eq!(positions([&follows, &named[0], &named[1]]), [1, 2, 3].map(waiting));
        assert_eq!(position(&innocent), QueuePosition::Running);
        let rejected =
            Entrant { thread: Some(thread(7)), policy: BusyPolicy::Reject, ..entrant(5) };
        assert_eq!(take_in(&admission, || Ok(rejected)).unwrap_err(), Refusal::ContextBusy);
        drop(busy);
        assert_eq!(position(&follows), QueuePosition::Running);
        // The context gets another thread: those that follow it don't wait for the old one.
        let last = admit(&admission, 1).unwrap();
        follows.note_thread(&thread(8));
        drop(innocent);
        assert_eq!(
            positions([&named[0], &named[1], &last]),
            [QueuePosition::Running, waiting(1), waiting(1)]
        );
    }

    #[test]
    fn one_that_supersedes_goes_before_those_that_wait_and_the_later_before_the_earlier() {
        let admission = Admission::new(AdmissionLimits {
            max_running_turns: 8,
            max_running_turns_per_tenant: 8,
            max_waiting_turns: 9,
            ..LIMITS
        });
        let retained = Retained::new(1 << 20, 1 << 20);
        let turn = || Turn::new(&TurnRequest::default(), Arc::clone(&retained));
        let superseding = |entrant: Entrant, turn: &Arc<Turn>| {
            let (policy, turn) = (BusyPolicy::Interrupt, Arc::downgrade(turn));
            take_in(&admission, || Ok(Entrant { policy, turn, ..entrant })).unwrap()
        };
        let (one, mut told_one) = turn();
        let (two, mut told_two) = turn();
        let (three, mut told_three) = turn();
        let (other, mut told_other) = turn();
        let ticket = take_in(&admission, || {
            Ok(Entrant { turn: Arc::downgrade(&one), thread: Some(thread(7)), ..entrant(1) })
        });
        let running = ticket.unwrap();
        let waiting = [admit(&admission, 1).unwrap(), admit(&admission, 1).unwrap()];
        let told = |told: &mut Mailbox| match told.try_recv() {
            Ok(Command::Stop(reason)) => Some(reason),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        assert!(told(&mut told_one).is_none());
        // The lane is full for others.
        assert!(matches!(admit(&admission, 1), Err(Refusal::ContextQueueFull { waiting: 2, .. })));
        let second = superseding(entrant(1), &two);
        assert_eq!(told(&mut told_one), Some(InterruptReason::Superseded));
        assert!(told(&mut told_two).is_none());
        let number = QueuePosition::Waiting;
        assert_eq!([&second, &waiting[0], &waiting[1]].map(position), [1, 2, 3].map(number));
        // It goes before one that waits to supersede, and stops that one, too.
        let third = superseding(entrant(1), &three);
        assert_eq!(told(&mut told_two), Some(InterruptReason::Superseded));
        assert!(told(&mut told_three).is_none());
        assert_eq!(
            [&third, &second, &waiting[0], &waiting[1]].map(position),
            [1, 2, 3, 4].map(number)
        );
        // The thread's turn is stopped whoever names it, and whoever waits for another thread is not.
        let elsewhere = superseding(entrant(2), &other);
        assert_eq!(position(&elsewhere), QueuePosition::Running);
        let (four, _mailbox) = turn();
        let named = Entrant { thread: Some(thread(7)), follows_context: false, ..entrant(3) };
        let fourth = superseding(named, &four);
        assert_eq!(told(&mut told_one), Some(InterruptReason::Superseded));
        assert!(told(&mut told_other).is_none());
        drop(second);
        drop(running);
        // It was the last to ask for the thread; the context's own goes on beside it with another.
        assert_eq!(position(&fourth), QueuePosition::Running);
        assert_eq!(position(&third), QueuePosition::Running);
        assert_eq!(waiting.each_ref().map(position), [1, 2].map(number));
    }

    #[test]
    fn one_caller_leaves_room_for_others_and_callers_take_turns() {
        let limits = AdmissionLimits {
            max_waiting_turns: 64,
            max_running_turns: 1,
            ..AdmissionLimits::default()
        };
        let admission = Admission::new(limits);
        let come = |caller, name| {
            take_in(&admission, || Ok(Entrant { caller: CallerId(caller), ..entrant(name) }))
        };
        let running = come(1, 0).unwrap();
        let mut flood: Vec<Ticket> = Vec::new();
        let refused = (1..5000).filter_map(|name| match come(1, name) {
            Ok(ticket) => {
                flood.push(ticket);
                None
            }
            Err(refusal) => Some(refusal),
        });
        let refused: Vec<Refusal> = refused.collect();
        assert_eq!(flood.len(), 56);
        assert!(
            refused
                .iter()
                .all(|refusal| matches!(refusal, Refusal::QueueShareFull { waiting: 56, .. })),
            "{:?}",
            refused.first()
        );
        let others = [come(2, 5000).unwrap(), come(3, 5001).unwrap(), come(2, 5002).unwrap()];
        let waiting = QueuePosition::Waiting;
        assert_eq!([&others[0], &others[1], &others[2]].map(position), [2, 3, 5].map(waiting));
        drop(running);
        assert_eq!(position(&flood[0]), QueuePosition::Running);
        drop(flood.remove(0));
        assert_eq!(position(&others[0]), QueuePosition::Running);
        assert_eq!(position(&flood[0]), waiting(2));
    }

    #[test]
    fn what_waits_holds_only_so_many_bytes_and_one_caller_leaves_some_to_others() {
        let admission =
            Admission::new(AdmissionLimits { max_running_turns: 1, ..AdmissionLimits::default() });
        let come = |caller, name| {
            let bytes = 8 << 20;
            take_in(&admission, || Ok(Entrant { caller: CallerId(caller), bytes, ..entrant(name) }))
        };
        let running = come(1, 0).unwrap();
        let mut waiting: Vec<Ticket> = (1..=28).map(|name| come(1, name).unwrap()).collect();
        let full = come(1, 29).unwrap_err();
        assert!(matches!(full, Refusal::QueueTooLarge { bytes, .. } if bytes == 28 * (8 << 20)));
        waiting.extend((30..33).map(|name| come(2, name).unwrap()));
        assert!(matches!(come(2, 33), Err(Refusal::QueueTooLarge { .. })));
        waiting.push(take_in(&admission, || Ok(entrant(34))).unwrap());
        drop(running);
        drop(waiting);
        assert_eq!(admission.state().waiting, Waiting::default());
        // One that runs at once does not wait.
        take_in(&admission, || Ok(Entrant { bytes: 1 << 30, ..entrant(35) })).unwrap();
    }

    #[test]
    fn nobody_is_admitted_between_a_turns_last_deed_and_its_leave() {
        let admission = Admission::new(LIMITS);
        let (begins, begun) = std::sync::mpsc::channel();
        let ticket = admit(&admission, 1).unwrap();
        std::thread::scope(|scope| {
            let mut next = None;
            ticket.give_up(|| {
                let thread = scope.spawn(|| {
                    begins.send(()).unwrap();
                    position(&admit(&admission, 1).unwrap())
                });
                begun.recv().unwrap();
                // It has all the time that it needs, if nothing holds it up.
                (0..1000).for_each(|_| std::thread::yield_now());
                assert!(!thread.is_finished());
                next = Some(thread);
            });
            assert_eq!(next.unwrap().join().unwrap(), QueuePosition::Running);
        });
    }

    proptest! {
        #[test]
        fn lanes_of_contexts_and_threads_never_wait_for_each_other(
            steps in proptest::collection::vec((0_usize..4, 0_usize..4, 0_usize..20, 0_u8..6), 1..200)
        ) {
            let limits = AdmissionLimits { max_waiting_turns: 40, ..LIMITS };
            let admission = Admission::new(limits);
            let mut tickets: Vec<Ticket> = Vec::new();
            for (name, on, index, action) in steps {
                let caller = CallerId(index as u64 % 3);
                match action {
                    0 => if !tickets.is_empty() { tickets.remove(index % tickets.len()); },
                    1 => if let Some(ticket) = tickets.iter().find(|ticket| position(ticket) == QueuePosition::Running) {
                        ticket.note_thread(&thread(on));
                    },
                    2 => tickets.extend(take_in(&admission, || Ok(Entrant { caller, thread: Some(thread(on)), follows_context: false, ..entrant(name) })).ok()),
                    3 => tickets.extend(take_in(&admission, || Ok(Entrant { caller, context: None, thread: Some(thread(on)), ..entrant(name) })).ok()),
                    4 => tickets.extend(take_in(&admission, || Ok(Entrant { caller, thread: Some(thread(on)), policy: BusyPolicy::Interrupt, ..entrant(name) })).ok()),
                    _ => tickets.extend(take_in(&admission, || Ok(Entrant { caller, ..entrant(name) })).ok()),
                }
                let state = admission.state();
                let mut in_line = state.line.order();
                in_line.sort_unstable();
                for (id, entry) in &state.tickets {
                    let is_free = entry.lanes().all(|lane| state.lanes[lane].front() == Some(id));
                    let stands = in_line.binary_search(id).is_ok();
                    prop_assert_eq!(entry.stage == Stage::InLine, stands);
                    // One that runs may have been given a thread that another one uses just now.
                    if entry.stage != Stage::Running { prop_assert_eq!(is_free, stands); }
                    for lane in entry.lanes() {
                        prop_assert_eq!(state.lanes[lane].iter().filter(|other| *other == id).count(), 1);
                    }
                }
                // Work-conserving: nobody stands in line while there is room.
                prop_assert!(in_line.is_empty() || state.running == LIMITS.max_running_turns);
                let running = state.tickets.values().filter(|entry| entry.stage == Stage::Running).count();
                prop_assert_eq!(state.running, running);
                prop_assert_eq!(state.waiting.turns, tickets.len() - running);
                let of_callers = state.waiting_of.values().fold(Waiting::default(), |sum, one| {
                    Waiting { turns: sum.turns + one.turns, bytes: sum.bytes + one.bytes }
                });
                prop_assert_eq!(of_callers, state.waiting);
            }
            // However they wait for each other, all of them get their turn.
            while !tickets.is_empty() {
                let before = tickets.len();
                let running: Vec<Ticket> = tickets.extract_if(.., |ticket| position(ticket) == QueuePosition::Running).collect();
                drop(running);
                prop_assert!(tickets.len() < before, "nobody runs, and {} wait", before);
            }
            let state = admission.state();
            prop_assert!(state.lanes.is_empty() && state.line.is_empty() && state.waiting_of.is_empty());
        }

        #[test]
        fn no_limit_is_passed_no_lane_runs_twice_and_nothing_is_left(
            steps in proptest::collection::vec((0_usize..4, any::<bool>(), 0_usize..20), 1..200)
        ) {
            let admission = Admission::new(LIMITS);
            let mut tickets: Vec<(usize, Ticket)> = Vec::new();
            for (name, enters, index) in steps {
                if enters {
                    if let Ok(ticket) = admit(&admission, name) { tickets.push((name, ticket)); }
                } else if !tickets.is_empty() {
                    tickets.remove(index % tickets.len());
                }
                let running: Vec<usize> = tickets.iter()
                    .filter(|(_, ticket)| position(ticket) == QueuePosition::Running).map(|(name, _)| *name).collect();
                let mut lanes = running.clone();
                lanes.sort_unstable();
                lanes.dedup();
                prop_assert_eq!(lanes.len(), running.len());
                prop_assert!(running.len() <= LIMITS.max_running_turns);
                prop_assert_eq!(admission.running(), running.len());
                prop_assert_eq!(admission.waiting(), tickets.len() - running.len());
                // Work-conserving: room is never left to a head of a lane that waits.
                let heads = tickets.iter().map(|(name, _)| name).collect::<std::collections::HashSet<_>>().len();
                prop_assert_eq!(running.len(), heads.min(LIMITS.max_running_turns));
                // Within a lane, those that came first are ahead.
                for lane in 0..4 {
                    let positions: Vec<_> = tickets.iter().filter(|(name, _)| *name == lane)
                        .map(|(_, ticket)| position(ticket)).collect();
                    for pair in positions.windows(2).skip(1) {
                        if let (QueuePosition::Waiting(before), QueuePosition::Waiting(after)) = (pair[0], pair[1]) {
                            prop_assert!(before < after);
                        }
                    }
                }
            }
            tickets.clear();
            prop_assert_eq!((admission.running(), admission.waiting()), (0, 0));
            prop_assert!(admission.state().lanes.is_empty() && admission.state().running_of.is_empty());
        }
    }
}
