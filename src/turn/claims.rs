//! Request ids: the same request twice gets one turn.

use std::sync::Arc;

use dashmap::mapref::entry::Entry;
use tokio::sync::watch;

use crate::model::id::Tenant;
use crate::model::refusal::Refusal;
use crate::model::request::{ContentHash, RequestId};
use crate::turn::turn::{RequestKey, Turn};
use crate::turn::turns::Turns;

/// What is known of a request id.
#[derive(Debug)]
pub(super) struct Claimed {
    content: ContentHash,
    // `None` while the first call with it has no turn yet.
    turn: watch::Receiver<Option<Arc<Turn>>>,
}

impl Claimed {
    /// That of a turn which an earlier process had.
    pub(super) fn restored(content: ContentHash, turn: Arc<Turn>) -> Claimed {
        Claimed { content, turn: watch::channel(Some(turn)).1 }
    }

    pub(super) fn is_for(&self, turn: &Arc<Turn>) -> bool {
        self.turn.borrow().as_ref().is_some_and(|known| Arc::ptr_eq(known, turn))
    }
}

/// What became of a request id.
#[derive(Debug)]
pub(crate) enum RequestIdUse {
    /// Nobody else has it.
    First(Claim),
    /// The same request came before; this is its turn.
    Repeated(Arc<Turn>),
}

/// The sole use of a request id. Dropping it unsettled gives the id free again, and whoever waits
/// for its turn tries to get one.
#[derive(Debug)]
pub(crate) struct Claim {
    turns: Arc<Turns>,
    key: RequestKey,
    turn: watch::Sender<Option<Arc<Turn>>>,
}

impl Claim {
    /// Every call with this id gets this turn from now on, for as long as the turn is retained.
    pub(crate) fn settle(self, turn: &Arc<Turn>) {
        turn.requests().push(self.key.clone());
        self.turn.send_replace(Some(Arc::clone(turn)));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let turn = self.turn.borrow().clone();
        let own = self.turn.subscribe();
        // Also where the turn was forgotten while it was being settled for; another call may have the id
        // by then.
        self.turns.by_request.remove_if(&self.key, |_, claimed| {
            claimed.turn.same_channel(&own)
                && turn.is_none_or(|turn| self.turns.get(&turn.id).is_none())
        });
    }
}

impl Turns {
    /// Takes a request id for a call that is about to get a turn, or finds the turn that the same
    /// request got before. Waits while that is not known yet.
    ///
    /// # Errors
    /// [`Refusal::RequestIdReused`].
    pub(crate) async fn claim(
        self: &Arc<Turns>,
        tenant: &Tenant,
        RequestId { id, content }: &RequestId,
    ) -> Result<RequestIdUse, Refusal> {
        loop {
            let key = (tenant.clone(), id.clone());
            let mut turn = match self.by_request.entry(key.clone()) {
                Entry::Occupied(entry) if entry.get().content.differs_from(content) => {
                    return Err(Refusal::RequestIdReused { request_id: id.clone() });
                }
                Entry::Occupied(entry) => entry.get().turn.clone(),
                Entry::Vacant(entry) => {
                    let (turn, known) = watch::channel(None);
                    entry.insert(Claimed { content: *content, turn: known });
                    let turns = Arc::clone(self);
                    return Ok(RequestIdUse::First(Claim { turns, key, turn }));
                }
            };
            let known = turn.wait_for(Option::is_some).await;
            if let Ok(Some(turn)) = known.as_deref() {
                return Ok(RequestIdUse::Repeated(Arc::clone(turn)));
            }
            // The first call was refused before it had a turn.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::outcome::Outcome;
    use crate::model::request::TurnRequest;
    use crate::registry::ledger::Ledger;
    use crate::turn::retention::Retention;

    #[tokio::test]
    async fn a_claim_that_was_settled_for_a_forgotten_turn_leaves_the_next_ones_alone() {
        let all = Arc::new(Turns::new(&Retention::default(), Arc::new(Ledger::memory())));
        let id =
            RequestId { id: "r".to_owned(), content: ContentHash { version: 1, digest: [1; 32] } };
        let tenant = Tenant::default();
        let RequestIdUse::First(first) = all.claim(&tenant, &id).await.unwrap() else { panic!() };
        let (turn, _mailbox) = Turn::new(&TurnRequest::default(), Arc::clone(all.retained()));
        all.enter(&turn);
        // Step by step as it is settled, while the turn is refused and forgotten.
        turn.requests().push(first.key.clone());
        first.turn.send_replace(Some(Arc::clone(&turn)));
        turn.log.end(Outcome::Refused(Refusal::ContextBusy));
        all.note_ended(&turn);
        let RequestIdUse::First(second) = all.claim(&tenant, &id).await.unwrap() else { panic!() };
        drop(first);
        assert_eq!(all.by_request.len(), 1);
        drop(second);
        assert!(all.by_request.is_empty());
    }
}
