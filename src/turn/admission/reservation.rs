//! Lanes that are kept free of turns while something is done to what they are of: a turn that comes
//! meanwhile waits, as it would for another turn.

use std::sync::Arc;

use super::{Admission, Busy, Lane};
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
    /// What is seen by the look holds from then on, as with [`Admission::while_idle`]. Waits for whoever
    /// has reserved them, which is to be short.
    ///
    /// # Errors
    /// Those of the look.
    pub(crate) async fn reserve<T>(
        self: &Arc<Admission>,
        look: impl Fn(&Busy<'_>) -> Result<(Vec<Lane>, T), Refusal>,
    ) -> Result<Option<(Reservation, T)>, Refusal> {
        let mut released = self.released.subscribe();
        loop {
            let is_reserved = {
                let mut state = self.state();
                let (lanes, seen) = look(&Busy(&state.lanes))?;
                let taken: Vec<u64> = lanes
                    .iter()
                    .filter_map(|lane| state.lanes.get(lane))
                    .flatten()
                    .copied()
                    .collect();
                if taken.is_empty() {
                    let id = state.next_ticket;
                    state.next_ticket += 1;
                    for lane in &lanes {
                        state.lanes.entry(lane.clone()).or_default().push_back(id);
                    }
                    let admission = Arc::clone(self);
                    return Ok(Some((Reservation { id, lanes, admission }, seen)));
                }
                taken.iter().all(|id| !state.tickets.contains_key(id))
            };
            if !is_reserved {
                return Ok(None);
            }
            // The sender lives as long as the admission.
            let _ = released.changed().await;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        for lane in &self.lanes {
            state.leave_lane(lane, self.id);
        }
        self.admission.advance(&mut state);
        drop(state);
        self.admission.released.send_replace(());
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
            async move { admission.reserve(|_| Ok((lanes(names), ()))).await.unwrap() }
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
            admission.reserve(|_| Ok((lanes(&["a", "b"]), ()))).await.unwrap().unwrap();
        let looks = std::cell::Cell::new(0);
        let second = admission.reserve(|_| {
            looks.set(looks.get() + 1);
            Ok((lanes(&["b"]), ()))
        });
        tokio::pin!(second);
        let waited = tokio::time::timeout(Duration::from_secs(1), &mut second).await;
        assert!(waited.is_err());
        drop(first);
        second.await.unwrap().unwrap();
        assert_eq!(looks.get(), 2);
    }
}
