//! The turns that run or are retained, and how they are found.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::time::Instant;

use crate::model::failure::FailureReason;
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::request::RequestId;
use crate::registry::ledger::{Change, Ledger};
use crate::turn::claims::Claimed;
use crate::turn::retained::Retained;
use crate::turn::retention::Retention;
use crate::turn::turn::{RequestKey, Turn};

/// How long a turn that was lost with an earlier process is kept at least: whoever repeats its request must
/// not have it run again, and be told.
const LOST_FOR: Duration = Duration::from_secs(600);

/// How many turns are looked at before others have their turn.
const LOOKED_AT_ONCE: usize = 1000;

#[derive(Debug)]
pub(crate) struct Turns {
    // By their ids, which are in the order of their calls.
    turns: RwLock<BTreeMap<TurnId, Arc<Turn>>>,
    pub(super) by_request: DashMap<RequestKey, Claimed>,
    by_context: DashMap<ContextKey, OfContext>,
    ended: Mutex<VecDeque<(Instant, Arc<Turn>)>>,
    retained: Arc<Retained>,
    keep_for: Duration,
    ledger: Arc<Ledger>,
}

/// The turns of one context.
#[derive(Debug, Default)]
struct OfContext {
    // In the order of their arrival, each until it is filed as ended.
    unended: Vec<Arc<Turn>>,
    // The latest that has ended.
    latest: Option<Arc<Turn>>,
}

impl OfContext {
    fn running(&self) -> Option<&Arc<Turn>> {
        self.unended.iter().find(|turn| turn.is_running())
    }

    fn live(&self) -> Option<&Arc<Turn>> {
        let unended = || self.unended.iter().find(|turn| !turn.log.has_ended());
        self.running().or_else(unended)
    }

    /// The latest that has ended, filed or not: its readers know of its end before it is.
    fn latest(&self) -> Option<&Arc<Turn>> {
        let ended = |turn: &&Arc<Turn>| matches!(turn.log.ending(), Some(Ok(_)));
        self.unended.iter().rev().find(ended).or(self.latest.as_ref())
    }
}

impl Turns {
    /// None yet; those that are forgotten are forgotten by the ledger, too.
    pub(crate) fn new(retention: &Retention, ledger: Arc<Ledger>) -> Turns {
        let Retention { max_bytes_per_turn, max_bytes, after_end } = *retention;
        Turns {
            turns: RwLock::default(),
            by_request: DashMap::new(),
            by_context: DashMap::new(),
            ended: Mutex::default(),
            retained: Retained::new(max_bytes as u64, max_bytes_per_turn as u64),
            keep_for: after_end,
            ledger,
        }
    }

    /// The bytes that all turns' logs share.
    pub(crate) fn retained(&self) -> &Arc<Retained> {
        &self.retained
    }

    /// Enters a turn that was admitted: from now on it can be found.
    pub(crate) fn enter(&self, turn: &Arc<Turn>) {
        self.write().insert(turn.id.clone(), Arc::clone(turn));
        if let Some(key) = &turn.context {
            let mut known = self.by_context.entry(key.clone()).or_default();
            known.unended.push(Arc::clone(turn));
        }
    }

    pub(crate) fn get(&self, id: &TurnId) -> Option<Arc<Turn>> {
        self.read().get(id).map(Arc::clone)
    }

    /// The turns after this one, so many of those that are looked for, and the last that was looked at
    /// where there may be more: at most [`LOOKED_AT_ONCE`].
    pub(crate) fn page(
        &self,
        after: Option<&TurnId>,
        limit: usize,
        is_meant: impl Fn(&Turn) -> bool,
    ) -> (Vec<Arc<Turn>>, Option<TurnId>) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let turns = self.read();
        let mut found = Vec::new();
        for (looked_at, (id, turn)) in turns.range((from, Bound::Unbounded)).enumerate() {
            if found.len() == limit || looked_at == LOOKED_AT_ONCE {
                // This one is not among them.
                let last = turns.range(..id).next_back().map(|(id, _)| id.clone());
                return (found, last);
            }
            if is_meant(turn) {
                found.push(Arc::clone(turn));
            }
        }
        (found, None)
    }

    /// The turn of this context that runs or is the next to run, or else the latest one that is
    /// retained.
    pub(crate) fn of_context(&self, key: &ContextKey) -> Option<Arc<Turn>> {
        let known = self.by_context.get(key)?;
        known.live().or_else(|| known.latest()).cloned()
    }

    /// The turn of this context that runs or is the next to run.
    pub(crate) fn live_of(&self, key: &ContextKey) -> Option<Arc<Turn>> {
        self.by_context.get(key)?.live().cloned()
    }

    /// Every turn that has not ended.
    pub(crate) fn unended(&self) -> Vec<Arc<Turn>> {
        let turns = self.read();
        let unended = turns.values().filter(|turn| !turn.log.has_ended());
        unended.map(Arc::clone).collect()
    }

    /// How many turns are known, ended ones included.
    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<TurnId, Arc<Turn>>> {
        self.turns.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<TurnId, Arc<Turn>>> {
        self.turns.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a turn has ended. One that was refused is forgotten at once, so that the same
    /// request may be tried again; any other is kept for its readers.
    pub(crate) fn note_ended(&self, turn: &Arc<Turn>) {
        // Its context may have been forgotten since its end.
        let is_known = self.read().contains_key(&turn.id);
        let is_kept = is_known && matches!(turn.log.ending(), Some(Ok(_)));
        // One step, so that there is no moment in which the context has no turn.
        self.of_its_context(turn, |known| {
            known.unended.retain(|other| !Arc::ptr_eq(other, turn));
            if is_kept {
                known.latest = Some(Arc::clone(turn));
            }
        });
        if is_kept {
            self.retained.note_ended(&turn.log);
            let expiry = Instant::now() + self.keep_for;
            self.ended().push_back((expiry, Arc::clone(turn)));
        } else {
            self.forget(turn);
        }
        self.make_room();
    }

    /// Forgets the turns of a context, of which none runs or waits, and those that have ended on its thread.
    pub(crate) fn forget_thread(&self, thread_id: &ThreadId, key: &ContextKey) {
        let is_meant = |turn: &Turn| {
            let is_of_thread = || turn.log.has_ended() && turn.log.is_of_thread(thread_id);
            turn.context.as_ref() == Some(key) || is_of_thread()
        };
        let mut after = None;
        loop {
            let (found, last) = self.page(after.as_ref(), LOOKED_AT_ONCE, is_meant);
            found.iter().for_each(|turn| self.forget(turn));
            after = last;
            if after.is_none() {
                break;
            }
        }
        self.ended().retain(|(_, turn)| !is_meant(turn));
    }

    /// Takes in a turn that an earlier process has ended, or left, at this time. Its time goes on by the
    /// clock on the wall.
    pub(super) fn restore(&self, turn: &Arc<Turn>, requests: Vec<RequestId>, ended_at: SystemTime) {
        let age = SystemTime::now().duration_since(ended_at).unwrap_or_default();
        let is_lost = turn.log.summary().reason == FailureReason::SidecarRestarted.as_str();
        let keep_for = if is_lost { self.keep_for.max(LOST_FOR) } else { self.keep_for };
        let left = keep_for.saturating_sub(age);
        if left.is_zero() {
            return self.forget(turn);
        }
        self.write().insert(turn.id.clone(), Arc::clone(turn));
        for RequestId { id, content } in requests {
            let key = (Tenant::default(), id);
            turn.requests().push(key.clone());
            self.by_request.insert(key, Claimed::restored(content, Arc::clone(turn)));
        }
        if let Some(key) = &turn.context {
            let mut known = self.by_context.entry(key.clone()).or_default();
            let is_later = |latest: &Arc<Turn>| latest.log.ended_at() > Some(ended_at);
            if !known.latest.as_ref().is_some_and(is_later) {
                known.latest = Some(Arc::clone(turn));
            }
        }
        {
            let (mut ended, expiry) = (self.ended(), Instant::now() + left);
            let at = ended.partition_point(|(other, _)| *other <= expiry);
            ended.insert(at, (expiry, Arc::clone(turn)));
        }
        self.forget_oldest();
    }

    /// Forgets the ended turns whose time is over.
    pub(crate) fn sweep(&self) {
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
    pub(crate) fn make_room(&self) {
        self.retained.make_room();
        if !self.retained.is_over() {
            return;
        }
        for turn in self.unended() {
            turn.log.give_up(self.retained.excess());
        }
        self.forget_oldest();
    }

    /// Forgets the turns that have ended first while all logs together are too large.
    fn forget_oldest(&self) {
        let mut excess = self.retained.excess();
        while excess > 0 {
            let Some((_, turn)) = self.ended().pop_front() else { return };
            // Counted here: the bytes are only free once its last reader has gone.
            excess = excess.saturating_sub(turn.log.bytes());
            self.forget(&turn);
        }
    }

    fn forget(&self, turn: &Arc<Turn>) {
        self.write().remove(&turn.id);
        if turn.is_kept() {
            self.ledger.note(&[Change::ForgetTurn(turn.id.clone())]);
        }
        for key in turn.requests().drain(..) {
            self.by_request.remove_if(&key, |_, claimed| claimed.is_for(turn));
        }
        self.of_its_context(turn, |known| {
            known.latest.take_if(|latest| Arc::ptr_eq(latest, turn));
        });
    }

    /// Changes what is known of the turns of a turn's context, and forgets a context that has none.
    fn of_its_context(&self, turn: &Turn, change: impl FnOnce(&mut OfContext)) {
        let Some(key) = &turn.context else { return };
        if let Entry::Occupied(mut known) = self.by_context.entry(key.clone()) {
            change(known.get_mut());
            if known.get().unended.is_empty() && known.get().latest.is_none() {
                known.remove();
            }
        }
    }

    fn ended(&self) -> MutexGuard<'_, VecDeque<(Instant, Arc<Turn>)>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{Event, Raw, Usage};
    use crate::model::id::Tenant;
    use crate::model::outcome::Outcome;
    use crate::model::refusal::Refusal;
    use crate::model::request::{ContentHash, RequestId, TurnRequest};
    use crate::turn::claims::RequestIdUse;

    const KEEP: Duration = Duration::from_secs(600);

    fn turns(max_bytes: usize) -> Arc<Turns> {
        let retention = Retention { max_bytes_per_turn: max_bytes, max_bytes, after_end: KEEP };
        Arc::new(Turns::new(&retention, Arc::new(Ledger::memory())))
    }

    fn turn(all: &Turns, context: &str) -> Arc<Turn> {
        let context = ContextKey {
            tenant: Tenant::default(),
            context_id: context.to_owned(),
            thread_key: String::new(),
        };
        let request = TurnRequest { context: Some(context), ..TurnRequest::default() };
        let (turn, _mailbox) = Turn::new(&request, Arc::clone(all.retained()));
        all.enter(&turn);
        turn
    }

    fn complete(all: &Turns, turn: &Arc<Turn>, response_bytes: usize) {
        turn.log.end(Outcome::Completed {
            final_response: "x".repeat(response_bytes),
            usage: Usage::default(),
            thread_usage: Usage::default(),
        });
        all.note_ended(turn);
    }

    #[test]
    fn a_context_has_its_turn_also_between_the_turns_end_and_its_filing() {
        let all = turns(1 << 20);
        let (earlier, turn) = (turn(&all, "a"), turn(&all, "a"));
        let key = turn.context.clone().unwrap();
        complete(&all, &earlier, 10);
        let known = || all.of_context(&key).unwrap().id.clone();
        assert_eq!(known(), turn.id);
        // Whoever reads this may ask for the context's turn at once.
        turn.log.end(Outcome::Completed {
            final_response: String::new(),
            usage: Usage::default(),
            thread_usage: Usage::default(),
        });
        assert_eq!((known(), all.live_of(&key).is_none()), (turn.id.clone(), true));
        all.note_ended(&turn);
        assert_eq!(known(), turn.id);
        for turn in [&earlier, &turn] {
            all.forget(turn);
        }
        assert!(all.by_context.is_empty());
    }

    fn id(text: &str, fingerprint: u8) -> RequestId {
        let content = ContentHash { version: 1, digest: [fingerprint; 32] };
        RequestId { id: text.to_owned(), content }
    }

    async fn claim(all: &Arc<Turns>, id: &RequestId) -> Result<RequestIdUse, Refusal> {
        all.claim(&Tenant::default(), id).await
    }

    #[tokio::test(start_paused = true)]
    async fn ended_turns_are_forgotten_when_their_time_is_over_and_running_ones_are_not() {
        let all = turns(1 << 20);
        let (running, ended) = (turn(&all, "a"), turn(&all, "b"));
        let Ok(RequestIdUse::First(first)) = claim(&all, &id("r", 1)).await else { panic!() };
        first.settle(&ended);
        tokio::time::advance(2 * KEEP).await;
        complete(&all, &ended, 10);
        let (a, b) = (running.context.clone().unwrap(), ended.context.clone().unwrap());

        tokio::time::advance(KEEP - Duration::from_secs(1)).await;
        all.sweep();
        assert_eq!(all.of_context(&b).unwrap().id, ended.id);
        assert!(matches!(
            claim(&all, &id("r", 1)).await,
            Ok(RequestIdUse::Repeated(known)) if known.id == ended.id
        ));

        tokio::time::advance(Duration::from_secs(1)).await;
        all.sweep();
        assert!(all.get(&ended.id).is_none() && all.of_context(&b).is_none());
        assert!(all.by_request.is_empty());
        assert_eq!(all.of_context(&a).unwrap().id, running.id);
        drop(ended);
        assert_eq!(all.retained().bytes(), running.log.bytes());
    }

    #[test]
    fn where_terminal_events_alone_are_too_much_the_oldest_turns_are_forgotten() {
        let all = turns(12_000);
        let turns: Vec<_> = (0..8).map(|n| turn(&all, &n.to_string())).collect();
        let ids: Vec<_> = turns.iter().map(|turn| turn.id.clone()).collect();
        for turn in turns {
            complete(&all, &turn, 4000);
        }
        assert!(!all.retained().is_over());
        let kept: Vec<_> = ids.iter().map(|id| all.get(id).is_some()).collect();
        assert_eq!(kept, [false, false, false, false, false, false, true, true]);
    }

    #[test]
    fn running_turns_give_up_events_before_an_ended_one_is_forgotten() {
        let all = turns(10_000);
        let (running, ended) = (turn(&all, "a"), turn(&all, "b"));
        for _ in 0..8 {
            let raw = Raw { method: String::new(), json: "x".repeat(800) };
            running.log.append(Event::Raw(raw));
        }
        let before = running.log.bytes();
        complete(&all, &ended, 4000);
        assert!(all.get(&ended.id).is_some() && !all.retained().is_over());
        assert!(running.log.bytes() < before && running.log.bytes() > before / 4);
    }

    #[tokio::test]
    async fn the_same_request_at_once_waits_for_the_first_and_a_refused_one_leaves_no_trace() {
        let all = turns(1 << 20);
        let Ok(RequestIdUse::First(first)) = claim(&all, &id("r", 1)).await else { panic!() };
        let reused = claim(&all, &id("r", 2)).await.unwrap_err();
        assert_eq!(reused, Refusal::RequestIdReused { request_id: "r".to_owned() });

        let second = tokio::spawn({
            let all = Arc::clone(&all);
            async move { claim(&all, &id("r", 1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        // Refused: the next one is the first.
        drop(first);
        let Ok(RequestIdUse::First(second)) = second.await.unwrap() else { panic!() };
        let third = tokio::spawn({
            let all = Arc::clone(&all);
            async move { claim(&all, &id("r", 1)).await }
        });
        tokio::task::yield_now().await;
        let turn = turn(&all, "a");
        second.settle(&turn);
        assert!(matches!(third.await.unwrap(),
            Ok(RequestIdUse::Repeated(known)) if known.id == turn.id));

        // A turn that is refused after it was entered frees its id, too.
        turn.log.end(Outcome::Refused(Refusal::ContextBusy));
        all.note_ended(&turn);
        assert!(all.len() == 0 && all.by_request.is_empty());
    }
}
