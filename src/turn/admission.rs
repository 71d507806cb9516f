//! Who may run now: turns of one context one after the other, and not too many in all.
//!
//! A turn stands in its lane (its context, or the thread that it names) until the turns before it
//! have ended, then in the common line until there is room for it. Both are first come, first served.
//! Nobody waits without being told: what does not fit is refused at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::model::id::{ContextKey, Tenant, ThreadId};
use crate::model::refusal::Refusal;
use crate::model::request::BusyPolicy;

/// What runs one turn at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Lane {
    /// A context's thread.
    Context(ContextKey),
    /// A thread that was named without a context.
    Thread(Tenant, ThreadId),
}

/// How many turns may run and wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Most turns that run at once. Default 64.
    pub max_running_turns: usize,
    /// Most turns of one tenant that run at once. Default 64.
    pub max_running_turns_per_tenant: usize,
    /// Most turns that wait in all; beyond it QUEUE_FULL. Default 256.
    pub max_waiting_turns: usize,
    /// Most turns that wait in one lane; beyond it CONTEXT_QUEUE_FULL. Default 16.
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

#[derive(Debug, Default)]
struct State {
    next_ticket: u64,
    tickets: HashMap<u64, Entry>,
    lanes: HashMap<Lane, LaneState>,
    // Heads of their lanes, waiting for room.
    line: VecDeque<u64>,
    running: usize,
    running_of: HashMap<Tenant, usize>,
    waiting: usize,
}

#[derive(Debug)]
struct Entry {
    lane: Option<Lane>,
    tenant: Tenant,
    running: bool,
    position: watch::Sender<QueuePosition>,
}

#[derive(Debug, Default)]
struct LaneState {
    // The head is the one that runs, or stands in the common line.
    head: Option<u64>,
    waiting: VecDeque<u64>,
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
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.admission.leave(self.id);
    }
}

/// When a refused caller should try again: a turn takes about as long.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Admission {
    /// Nobody is here yet.
    pub(crate) fn new(limits: AdmissionLimits) -> Arc<Admission> {
        Arc::new(Admission { limits, state: Mutex::default() })
    }

    /// Takes a turn in.
    ///
    /// # Errors
    /// [`Refusal::ContextBusy`] under [`BusyPolicy::Reject`], [`Refusal::ContextQueueFull`] and
    /// [`Refusal::QueueFull`].
    pub(crate) fn admit(
        self: &Arc<Admission>,
        tenant: &Tenant,
        lane: Option<Lane>,
        policy: BusyPolicy,
    ) -> Result<Ticket, Refusal> {
        let mut lock = self.state();
        let state = &mut *lock;
        let in_lane = lane.as_ref().and_then(|lane| state.lanes.get(lane));
        let lane_is_busy = in_lane.is_some();
        let waiting_in_lane = in_lane.map_or(0, |lane| lane.waiting.len());
        if lane_is_busy && policy == BusyPolicy::Reject {
            return Err(Refusal::ContextBusy);
        }
        let runs_at_once = !lane_is_busy && state.line.is_empty() && self.has_room(state, tenant);
        if !runs_at_once {
            if lane_is_busy && waiting_in_lane >= self.limits.max_waiting_turns_per_context {
                let waiting = waiting_in_lane;
                return Err(Refusal::ContextQueueFull { waiting, retry_after: RETRY_AFTER });
            }
            if state.waiting >= self.limits.max_waiting_turns {
                let waiting = state.waiting;
                return Err(Refusal::QueueFull { waiting, retry_after: RETRY_AFTER });
            }
        }

        let id = state.next_ticket;
        state.next_ticket += 1;
        state.waiting += 1;
        let (sender, position) = watch::channel(QueuePosition::Waiting(1));
        let entry =
            Entry { lane: lane.clone(), tenant: tenant.clone(), running: false, position: sender };
        state.tickets.insert(id, entry);
        match lane {
            Some(lane) => {
                let lane = state.lanes.entry(lane).or_default();
                match lane.head {
                    None => {
                        lane.head = Some(id);
                        state.line.push_back(id);
                    }
                    Some(_) => lane.waiting.push_back(id),
                }
            }
            None => state.line.push_back(id),
        }
        self.advance(state);
        tell_lane(state, id);
        drop(lock);
        Ok(Ticket { id, admission: Arc::clone(self), position })
    }

    /// How many turns run.
    pub(crate) fn running(&self) -> usize {
        self.state().running
    }

    /// How many turns wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// How many turns wait in this lane.
    pub(crate) fn waiting_in(&self, lane: &Lane) -> usize {
        let state = self.state();
        let Some(lane) = state.lanes.get(lane) else { return 0 };
        let head_waits =
            lane.head.and_then(|id| state.tickets.get(&id)).is_some_and(|entry| !entry.running);
        lane.waiting.len() + usize::from(head_waits)
    }

    /// Makes a change that no turn of this lane may come between; `None`, and no change, where one
    /// runs or waits. Nobody is admitted meanwhile: the change must be short, and ask nothing here.
    pub(crate) fn while_idle<T>(&self, lane: &Lane, change: impl FnOnce() -> T) -> Option<T> {
        let state = self.state();
        let is_idle = !state.lanes.contains_key(lane);
        is_idle.then(change)
    }

    fn has_room(&self, state: &State, tenant: &Tenant) -> bool {
        state.running < self.limits.max_running_turns
            && state.running_of.get(tenant).copied().unwrap_or(0)
                < self.limits.max_running_turns_per_tenant
    }

    /// Lets those in the common line run for whom there is room; a tenant at its limit does not hold
    /// up the others.
    fn advance(&self, state: &mut State) {
        let mut index = 0;
        while let Some(&id) = state.line.get(index) {
            let Some(tenant) = state.tickets.get(&id).map(|entry| entry.tenant.clone()) else {
                state.line.remove(index);
                continue;
            };
            if !self.has_room(state, &tenant) {
                index += 1;
                continue;
            }
            state.line.remove(index);
            state.running += 1;
            state.waiting -= 1;
            *state.running_of.entry(tenant).or_default() += 1;
            if let Some(entry) = state.tickets.get_mut(&id) {
                entry.running = true;
                entry.position.send_replace(QueuePosition::Running);
            }
        }
        for (index, id) in state.line.iter().enumerate() {
            if let Some(entry) = state.tickets.get(id) {
                tell(entry, index + 1);
            }
        }
    }

    fn leave(&self, id: u64) {
        let mut lock = self.state();
        let state = &mut *lock;
        let Some(Entry { lane, tenant, running, .. }) = state.tickets.remove(&id) else { return };
        if running {
            state.running -= 1;
            if let Some(count) = state.running_of.get_mut(&tenant) {
                *count -= 1;
                if *count == 0 {
                    state.running_of.remove(&tenant);
                }
            }
        } else {
            state.waiting -= 1;
            state.line.retain(|other| *other != id);
        }
        if let Some(lane) = lane {
            let mut is_empty = false;
            if let Some(lane) = state.lanes.get_mut(&lane) {
                if lane.head == Some(id) {
                    lane.head = lane.waiting.pop_front();
                    state.line.extend(lane.head);
                } else {
                    lane.waiting.retain(|other| *other != id);
                }
                is_empty = lane.head.is_none();
                for (index, id) in lane.waiting.iter().enumerate() {
                    if let Some(entry) = state.tickets.get(id) {
                        tell(entry, index + 1);
                    }
                }
            }
            if is_empty {
                state.lanes.remove(&lane);
            }
        }
        self.advance(state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Tells a newcomer its position behind the others of its lane.
fn tell_lane(state: &State, id: u64) {
    let Some(entry) = state.tickets.get(&id) else { return };
    let lane = entry.lane.as_ref().and_then(|lane| state.lanes.get(lane));
    if let Some(index) = lane.and_then(|lane| lane.waiting.iter().position(|other| *other == id)) {
        tell(entry, index + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lane(name: usize) -> Option<Lane> {
        Some(Lane::Context(ContextKey {
            tenant: Tenant::default(),
            context_id: name.to_string(),
            thread_key: String::new(),
        }))
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

    fn admit(admission: &Arc<Admission>, name: usize) -> Result<Ticket, Refusal> {
        admission.admit(&Tenant::default(), lane(name), BusyPolicy::Queue)
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
        let rejected = admission.admit(&Tenant::default(), lane(2), BusyPolicy::Reject);
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

    proptest! {
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
