//! How many streams read turns, and whose they are.
//!
//! A reader costs what is on its way to it, whether it reads or not; so there are only so many of one
//! turn, and in all, and no caller takes the seats of all others. Owns the count, and nothing of what
//! is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::id::{CallerId, TurnId};
use crate::model::refusal::Refusal;

/// How many streams of turns' events may be open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReaderLimits {
    /// Most in all; beyond it TOO_MANY_READERS. Default 4,096. One connection's may be seven eighths of
    /// them.
    pub max_readers: usize,
    /// Most of one turn; beyond it TOO_MANY_READERS. Default 128, shared as those are.
    pub max_readers_per_turn: usize,
}

impl Default for ReaderLimits {
    fn default() -> ReaderLimits {
        ReaderLimits { max_readers: 4096, max_readers_per_turn: 128 }
    }
}

/// Most seats that one caller may have, as a multiple of those that are free: see the admission's.
const SHARE: usize = 7;

/// The seats of all readers.
#[derive(Debug)]
pub(crate) struct Readers {
    limits: ReaderLimits,
    taken: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Taken,
    by_turn: HashMap<TurnId, Taken>,
}

/// How many seats are taken, in all and by each caller.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_caller: HashMap<CallerId, usize>,
}

impl Taken {
    /// Takes one of so many for this caller.
    ///
    /// # Errors
    /// How many are taken that are too many, and whether these are all, or the caller's alone.
    fn take(&mut self, caller: CallerId, most: usize) -> Result<(), (usize, bool)> {
        let free = most.saturating_sub(self.all);
        let own = self.by_caller.get(&caller).copied().unwrap_or(0);
        if own >= free.saturating_mul(SHARE) {
            return Err(if free == 0 { (self.all, true) } else { (own, false) });
        }
        self.by_caller.insert(caller, own + 1);
        self.all += 1;
        Ok(())
    }

    fn give_back(&mut self, caller: CallerId) {
        if let Some(own) = self.by_caller.get_mut(&caller) {
            self.all -= 1;
            *own -= 1;
            if *own == 0 {
                self.by_caller.remove(&caller);
            }
        }
    }
}

/// The right to one stream. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Seat {
    readers: Arc<Readers>,
    caller: CallerId,
    turn: Option<TurnId>,
}

impl Readers {
    pub(crate) fn new(limits: ReaderLimits) -> Arc<Readers> {
        Arc::new(Readers { limits, taken: Mutex::default() })
    }

    /// Takes a seat for a stream of this caller's.
    ///
    /// # Errors
    /// [`Refusal::TooManyReaders`].
    pub(crate) fn take(self: &Arc<Readers>, caller: CallerId) -> Result<Seat, Refusal> {
        let taken = self.taken().all.take(caller, self.limits.max_readers);
        taken.map_err(|(open, is_all)| Refusal::TooManyReaders {
            open,
            of: if is_all { "this sidecar" } else { "this connection" },
        })?;
        Ok(Seat { readers: Arc::clone(self), caller, turn: None })
    }

    fn taken(&self) -> MutexGuard<'_, State> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Makes it one of this turn's.
    ///
    /// # Errors
    /// [`Refusal::TooManyReaders`].
    pub(crate) fn of_turn(mut self, turn: &TurnId) -> Result<Seat, Refusal> {
        let most = self.readers.limits.max_readers_per_turn;
        let mut taken = self.readers.taken();
        let of_turn = taken.by_turn.entry(turn.clone()).or_default();
        if let Err((open, is_all)) = of_turn.take(self.caller, most) {
            taken.forget_unread(turn);
            let of = if is_all { "this turn" } else { "this turn and connection" };
            return Err(Refusal::TooManyReaders { open, of });
        }
        drop(taken);
        self.turn = Some(turn.clone());
        Ok(self)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.readers.taken();
        taken.all.give_back(self.caller);
        if let Some(turn) = &self.turn {
            if let Some(of_turn) = taken.by_turn.get_mut(turn) {
                of_turn.give_back(self.caller);
            }
            taken.forget_unread(turn);
        }
    }
}

impl State {
    fn forget_unread(&mut self, turn: &TurnId) {
        if self.by_turn.get(turn).is_some_and(|taken| taken.all == 0) {
            self.by_turn.remove(turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_some_of_a_turns_seats_to_others() {
        let readers = Readers::new(ReaderLimits { max_readers: 64, max_readers_per_turn: 16 });
        let turn = TurnId::generate();
        let take = |caller| readers.take(CallerId(caller))?.of_turn(&turn);
        let seats: Vec<Seat> = (0..14).map(|_| take(1).unwrap()).collect();
        let full = Refusal::TooManyReaders { open: 14, of: "this turn and connection" };
        assert_eq!(take(1).unwrap_err(), full);
        let others = [take(2).unwrap(), take(3).unwrap()];
        let full = Refusal::TooManyReaders { open: 16, of: "this turn" };
        assert_eq!(take(4).unwrap_err(), full);
        drop((seats, others));
        let taken = readers.taken();
        assert_eq!((taken.all.all, taken.all.by_caller.len(), taken.by_turn.len()), (0, 0, 0));
    }

    #[test]
    fn seats_are_counted_by_turn_and_in_all_and_one_caller_leaves_some_to_others() {
        let readers = Readers::new(ReaderLimits { max_readers: 16, max_readers_per_turn: 3 });
        let (one, two) = (CallerId(1), CallerId(2));
        let turn = TurnId::generate();
        let take = |caller| readers.take(caller)?.of_turn(&turn);
        let seats: Vec<Seat> = (0..3).map(|_| take(one).unwrap()).collect();
        let full = Refusal::TooManyReaders { open: 3, of: "this turn" };
        assert_eq!(take(two).unwrap_err(), full);
        drop(seats);
        let seats: Vec<Seat> = (0..14).map(|_| readers.take(one).unwrap()).collect();
        let full = Refusal::TooManyReaders { open: 14, of: "this connection" };
        assert_eq!(readers.take(one).unwrap_err(), full);
        let others = [take(two).unwrap(), readers.take(CallerId(3)).unwrap()];
        let full = Refusal::TooManyReaders { open: 16, of: "this sidecar" };
        assert_eq!(readers.take(CallerId(4)).unwrap_err(), full);
        drop((seats, others));
        let taken = readers.taken();
        assert_eq!((taken.all.all, taken.all.by_caller.len(), taken.by_turn.len()), (0, 0, 0));
    }
}
