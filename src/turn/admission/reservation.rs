//! Lanes that are kept free of turns while something is done to what they are of: a turn that comes
//! meanwhile waits, as it would for another turn.

use std::sync::Arc;

use tokio::sync::Notify;

use super::lanes::State;
use super::{Admission, Busy, Lane, RETRY_AFTER};
use crate::model::refusal::Refusal;

/// Lanes that no turn runs in. Dropping it gives them up.
#[derive(Debug)]
pub(crate) struct Reservation {
    // Among the ids of tickets, and of none of them.
    id: u64,
    lanes: Vec<Lane>,
    admission: Arc<Admission>,
}

impl Admission {
    /// Reserves the lanes that `look` names, where no turn runs or waits in them; `None` where one does.
    /// What is seen by the look holds from then on, as with [`Admission::while_idle`]; `settle` is asked
    /// once, when nothing but its own refusal can prevent the reservation any more. Waits for whoever has
    /// reserved them, which is to be short: first come, first served, and only so many.
    ///
    /// # Errors
    /// Those of both; [`Refusal::ContextQueueFull`] and [`Refusal::QueueFull`] where as many wait already
    /// as turns may.
    pub(crate) async fn reserve<T>(
        self: &Arc<Admission>,
        look: impl Fn(&Busy<'_>) -> Result<(Vec<Lane>, T), Refusal>,
        settle: impl Fn(&Busy<'_>) -> Result<(), Refusal>,
    ) -> Result<Option<(Reservation, T)>, Refusal> {
        let mut place: Option<Place<'_>> = None;
        loop {
            let next = {
                let mut state = self.state();
                let (lanes, seen) = look(&Busy(&state.lanes))?;
                let taken = || lanes.iter().filter_map(|lane| state.lanes.get(lane)).flatten();
                if taken().any(|id| state.tickets.contains_key(id)) {
                    return Ok(None);
                }
                match lanes.iter().find(|lane| state.lanes.contains_key(lane)) {
                    None => {
                        settle(&Busy(&state.lanes))?;
                        let id = state.next_ticket;
                        state.next_ticket += 1;
                        for lane in &lanes {
                            state.lanes.entry(lane.clone()).or_default().push_back(id);
                        }
                        let admission = Arc::clone(self);
                        return Ok(Some((Reservation { id, lanes, admission }, seen)));
                    }
                    Some(lane) => self.place(&mut state, lane, place.is_some())?,
                }
            };
            // Only now: this takes the lock.
            let woken = Arc::clone(&place.insert(next).woken);
            woken.notified().await;
        }
    }

    /// A place among those that wait for a lane: the last, or the first for one that waited before.
    fn place(
        &self,
        state: &mut State,
        lane: &Lane,
        has_waited: bool,
    ) -> Result<Place<'_>, Refusal> {
        let all = state.reserving.values().map(|waiting| waiting.len()).sum();
        let waiting = state.reserving.get(lane).map_or(0, |waiting| waiting.len());
        let retry_after = RETRY_AFTER;
        if !has_waited && waiting >= self.limits.max_waiting_turns_per_context {
            return Err(Refusal::ContextQueueFull { waiting, retry_after });
        }
        if !has_waited && all >= self.limits.max_waiting_turns {
            return Err(Refusal::QueueFull { waiting: all, retry_after });
        }
        let woken = Arc::new(Notify::new());
        let waiting = state.reserving.entry(lane.clone()).or_default();
        let at = if has_waited { 0 } else { waiting.len() };
        waiting.insert(at, Arc::clone(&woken));
        Ok(Place { admission: self, lane: lane.clone(), woken })
    }
}

/// A place among those that wait for a lane that is reserved. Whoever was woken and does not reserve it
/// wakes the next one.
#[derive(Debug)]
struct Place<'a> {
    admission: &'a Admission,
    lane: Lane,
    woken: Arc<Notify>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        let waiting = state.reserving.get_mut(&self.lane);
        let at = waiting
            .as_ref()
            .and_then(|waiting| waiting.iter().position(|other| Arc::ptr_eq(other, &self.woken)));
        match (waiting, at) {
            (Some(waiting), Some(at)) => {
                waiting.remove(at);
                if waiting.is_empty() {
                    state.reserving.remove(&self.lane);
                }
            }
            _ => state.wake_next(&self.lane),
        }
    }
}

impl State {
    /// Wakes the first of those that wait for a lane, unless it is reserved again.
    fn wake_next(&mut self, lane: &Lane) {
        let ids = self.lanes.get(lane).into_iter().flatten();
        let is_reserved = ids.clone().any(|id| !self.tickets.contains_key(id));
        let Some(waiting) = self.reserving.get_mut(lane).filter(|_| !is_reserved) else { return };
        if let Some(first) = waiting.pop_front() {
            first.notify_one();
        }
        if waiting.is_empty() {
            self.reserving.remove(lane);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        for lane in &self.lanes {
            state.leave_lane(lane, self.id);
        }
        for lane in &self.lanes {
            state.wake_next(lane);
        }
        self.admission.advance(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Weak;
    use std::time::Duration;

    use super::*;
    use crate::model::id::{CallerId, ContextKey, Tenant};
    use crate::model::request::BusyPolicy;
    use crate::turn::admission::{AdmissionLimits, Entrant, QueuePosition, Ticket};

    fn key(name: &str) -> ContextKey {
        ContextKey {
            tenant: Tenant::default(),
            context_id: name.to_owned(),
            thread_key: String::new(),
        }
    }

    fn lanes(names: &[&str]) -> Vec<Lane> {
        names.iter().map(|name| Lane::Context(key(name))).collect()
    }

    fn admit(
        admission: &Arc<Admission>,
        name: &str,
        policy: BusyPolicy,
    ) -> Result<Ticket, Refusal> {
        let entrant = Entrant {
            tenant: Tenant::default(),
            caller: CallerId::default(),
            context: Some(key(name)),
            thread: None,
            follows_context: true,
            policy,
            turn: Weak::new(),
            bytes: 0,
        };
        admission.admit(|_| Ok(entrant), || ())
    }

    fn runs(ticket: &Ticket) -> bool {
        *ticket.position().borrow() == QueuePosition::Running
    }

    #[tokio::test(start_paused = true)]
    async fn turns_wait_for_a_reservation_and_no_reservation_is_made_over_a_turn() {
        let admission = Admission::new(AdmissionLimits::default());
        let reserve = |names: &'static [&'static str]| {
            let admission = Arc::clone(&admission);
            async move { admission.reserve(|_| Ok((lanes(names), ())), |_| Ok(())).await.unwrap() }
        };
        // A lane that is named twice is one.
        let (held, ()) = reserve(&["a", "b", "b"]).await.unwrap();
        assert_eq!(admission.waiting_in(&Lane::Context(key("a"))), 0);
        assert_eq!(admission.while_idle(&Lane::Context(key("b")), |_| ()), None);
        let other = admit(&admission, "c", BusyPolicy::Queue).unwrap();
        assert!(runs(&other));
        let refused = admit(&admission, "a", BusyPolicy::Reject);
        assert_eq!(refused.unwrap_err(), Refusal::ContextBusy);
        let waiting = admit(&admission, "a", BusyPolicy::Queue).unwrap();
        assert!(!runs(&waiting));
        assert_eq!(admission.waiting_in(&Lane::Context(key("a"))), 1);
        assert_eq!(admission.running(), 1);
        // A turn waits there already.
        assert!(reserve(&["a"]).await.is_none());
        drop(held);
        assert!(runs(&waiting));
        assert!(reserve(&["d", "a"]).await.is_none());
        drop((waiting, other));
        drop(reserve(&["d", "a"]).await.unwrap());
        assert!(admission.hold(|busy| busy.contexts().count()) == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_reservation_waits_for_another_and_looks_again() {
        let admission = Admission::new(AdmissionLimits::default());
        let (first, ()) =
            admission.reserve(|_| Ok((lanes(&["a", "b"]), ())), |_| Ok(())).await.unwrap().unwrap();
        let (looks, settled) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let look = |_: &Busy<'_>| {
            looks.set(looks.get() + 1);
            Ok((lanes(&["b"]), ()))
        };
        let settle = |_: &Busy<'_>| {
            settled.set(settled.get() + 1);
            Ok(())
        };
        let second = admission.reserve(look, settle);
        tokio::pin!(second);
        let waited = tokio::time::timeout(Duration::from_secs(1), &mut second).await;
        assert!(waited.is_err());
        drop(first);
        second.await.unwrap().unwrap();
        assert_eq!((looks.get(), settled.get()), (2, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn reservations_wait_in_a_line_that_is_bounded_and_moves_one_at_a_time() {
        let limits = AdmissionLimits {
            max_waiting_turns: 5,
            max_waiting_turns_per_context: 3,
            ..AdmissionLimits::default()
        };
        let admission = Admission::new(limits);
        let looks = std::cell::Cell::new(0);
        let reserve = |names: &'static [&'static str]| {
            let look = |_: &Busy<'_>| {
                looks.set(looks.get() + 1);
                Ok((lanes(names), ()))
            };
            Box::pin(admission.reserve(look, |_| Ok(())))
        };
        let (held, ()) = reserve(&["a", "b"]).await.unwrap().unwrap();
        let mut waiting: Vec<_> = [&["a"], &["a"], &["a"], &["b"], &["b"]]
            .into_iter()
            .map(|names| reserve(names))
            .collect();
        for one in &mut waiting {
            assert!(futures::poll!(one).is_pending());
        }
        let full = reserve(&["a"]).await.unwrap_err();
        assert!(matches!(full, Refusal::ContextQueueFull { waiting: 3, .. }), "{full:?}");
        let full = reserve(&["b"]).await.unwrap_err();
        assert!(matches!(full, Refusal::QueueFull { waiting: 5, .. }), "{full:?}");
        // What is free is not waited for, and whoever goes leaves its place.
        drop(reserve(&["c"]).await.unwrap().unwrap());
        drop(waiting.remove(4));
        let mut last = reserve(&["b"]);
        assert!(futures::poll!(&mut last).is_pending());

        looks.set(0);
        drop(held);
        let second = waiting.remove(1);
        let mut polled = Vec::new();
        for one in waiting.iter_mut().chain([&mut last]) {
            polled.push(futures::poll!(one));
        }
        assert_eq!(
            polled.iter().map(std::task::Poll::is_ready).collect::<Vec<_>>(),
            [true, false, true, false]
        );
        assert_eq!(looks.get(), 2);
        // One that is woken and goes wakes the next.
        drop(polled);
        drop(second);
        assert!(futures::poll!(&mut waiting[1]).is_ready());
        assert!(futures::poll!(&mut last).is_ready());
        assert!(admission.state().reserving.is_empty());
    }
}
