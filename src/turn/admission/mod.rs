//! Who may run now: turns of one context, or on one thread, one after the other, and not too many in
//! all.
//!
//! A turn stands in its lanes (its context, and the thread that it will run on as soon as that is
//! known) until the turns before it have ended, then in the common line until there is room for it.
//! A lane is first come, first served, but for turns that supersede others ([`BusyPolicy::Interrupt`]),
//! which go before those that wait; and all lanes in the same order, so that no two turns wait for each
//! other. In the common line callers take turns. Nobody waits without being told: what does not
//! fit is refused at once.

mod lanes;
mod line;
mod reservation;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;

use crate::model::id::{CallerId, ContextKey, Tenant, ThreadId};
use crate::model::refusal::Refusal;
use crate::model::request::BusyPolicy;
use crate::turn::turn::Turn;

pub(crate) use reservation::Reservation;

use lanes::{Entry, Stage, State, take_one, take_waiting, tell};

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
        Arc::new(Admission { limits, state: Mutex::default() })
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

    /// The turn that runs in one of these lanes.
    pub(crate) fn running_in(&self, lanes: &[Lane]) -> Option<Arc<Turn>> {
        let state = self.state();
        let mut ids = lanes.iter().filter_map(|lane| state.lanes.get(lane)).flatten();
        let running = ids.find(|id| state.runs(**id))?;
        state.tickets.get(running)?.turn.upgrade()
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
