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
    /// Most of one turn; beyond it TOO_MANY_READERS. Default 128.
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
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_caller: HashMap<CallerId, usize>,
    by_turn: HashMap<TurnId, usize>,
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
        let mut taken = self.taken();
        let free = self.limits.max_readers.saturating_sub(taken.all);
        let own = taken.by_caller.entry(caller).or_default();
        if *own >= free.saturating_mul(SHARE) {
            let (open, of) = match free {
                0 => (self.limits.max_readers, "this sidecar"),
                _ => (*own, "this connection"),
            };
            forget_none(&mut taken.by_caller, &caller);
            return Err(Refusal::TooManyReaders { open, of });
        }
        *own += 1;
        taken.all += 1;
        Ok(Seat { readers: Arc::clone(self), caller, turn: None })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Makes it one of this turn's.
    ///
    /// # Errors
    /// [`Refusal::TooManyReaders`].
    pub(crate) fn of_turn(mut self, turn: &TurnId) -> Result<Seat, Refusal> {
        let mut taken = self.readers.taken();
        let readers = taken.by_turn.entry(turn.clone()).or_default();
        if *readers >= self.readers.limits.max_readers_per_turn {
            let open = *readers;
            forget_none(&mut taken.by_turn, turn);
            return Err(Refusal::TooManyReaders { open, of: "this turn" });
        }
        *readers += 1;
        drop(taken);
        self.turn = Some(turn.clone());
        Ok(self)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.readers.taken();
        taken.all -= 1;
        take_one(&mut taken.by_caller, &self.caller);
        if let Some(turn) = &self.turn {
            take_one(&mut taken.by_turn, turn);
        }
    }
}

fn take_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
    }
    forget_none(counts, key);
}

fn forget_none<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if counts.get(key) == Some(&0) {
        counts.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((taken.all, taken.by_caller.len(), taken.by_turn.len()), (0, 0, 0));
    }
}
