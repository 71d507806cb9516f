//! How much all turns' logs hold together, and which of them make room for the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::turn::log::Log;

/// The bytes that all logs together hold, against their common bound.
#[derive(Debug)]
pub(crate) struct Retained {
    bytes: AtomicU64,
    max_bytes: u64,
    max_bytes_per_turn: u64,
    ended: Mutex<EndedLogs>,
}

/// The logs that have something to give up without anybody missing it now, oldest first.
#[derive(Debug, Default)]
struct EndedLogs {
    logs: VecDeque<Weak<Log>>,
    // Logs that are gone are taken out once there are this many, so that they don't pile up.
    prune_at: usize,
}

impl Retained {
    /// Nothing held yet.
    pub(crate) fn new(max_bytes: u64, max_bytes_per_turn: u64) -> Arc<Retained> {
        let (bytes, ended) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Retained { bytes, max_bytes, max_bytes_per_turn, ended })
    }

    /// How many bytes all logs hold.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many bytes one log may hold.
    pub(crate) fn max_bytes_per_turn(&self) -> u64 {
        self.max_bytes_per_turn
    }

    /// Notes that a log holds this much more.
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The same for less.
    pub(crate) fn remove(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether they hold more than they should.
    pub(crate) fn is_over(&self) -> bool {
        self.excess() > 0
    }

    /// By how much they do.
    pub(crate) fn excess(&self) -> u64 {
        self.bytes().saturating_sub(self.max_bytes)
    }

    /// Notes a log that has ended: from now on it makes room for those that have not.
    pub(crate) fn note_ended(&self, log: &Arc<Log>) {
        let mut ended = self.ended();
        ended.logs.push_back(Arc::downgrade(log));
        if ended.logs.len() >= ended.prune_at {
            ended.logs.retain(|log| log.strong_count() > 0);
            ended.prune_at = (2 * ended.logs.len()).max(64);
        }
    }

    /// Lets ended logs give up what need not be kept, oldest first, while all are too large.
    pub(crate) fn make_room(&self) {
        while self.is_over() {
            let Some(oldest) = self.ended().logs.pop_front() else { return };
            if let Some(log) = oldest.upgrade() {
                log.shrink();
            }
        }
    }

    fn ended(&self) -> MutexGuard<'_, EndedLogs> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::TurnId;

    #[test]
    fn logs_that_are_gone_do_not_pile_up() {
        let retained = Retained::new(1 << 20, 1 << 20);
        for _ in 0..1000 {
            let id = TurnId("turn".to_owned());
            retained.note_ended(&Arc::new(Log::new(id, Arc::clone(&retained))));
        }
        assert!(retained.ended().logs.len() <= 64);
    }
}
