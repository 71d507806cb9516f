//! What a turn uses, counted on a thread whose counts go on from turn to turn.

use crate::model::event::Usage;

/// Counts what is used on one thread. The sum never decreases, also where a provider restarts its
/// count.
#[derive(Debug, Default)]
pub(super) struct Meter {
    // The thread's counts when it was last heard of; `None` until the first report of a thread that
    // was there before.
    total: Option<Usage>,
    used: Usage,
}

impl Meter {
    /// Counts from here on.
    pub(super) fn from(total: Option<Usage>) -> Meter {
        Meter { total, used: Usage::default() }
    }

    /// The thread has these counts, with what the last model request used; false where that is known.
    pub(super) fn take(&mut self, total: Usage, last: Usage) -> bool {
        if self.total == Some(total) {
            return false;
        }
        // What was counted before is what this first report adds to.
        let before = self.total.unwrap_or_else(|| total.since(last));
        self.used = self.used + total.since(before);
        self.total = Some(total);
        true
    }

    /// The thread has these counts, and what it used is somebody else's.
    pub(super) fn pass_over(&mut self, total: Usage) {
        self.total = Some(self.total.map_or(total, |known| known + total.since(known)));
    }

    pub(super) fn used(&self) -> Usage {
        self.used
    }

    /// The thread's counts, where they are known.
    pub(super) fn total(&self) -> Option<Usage> {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(input_tokens: u64) -> Usage {
        Usage { input_tokens, ..Usage::default() }
    }

    #[test]
    fn what_was_used_before_or_by_others_is_not_counted_and_nothing_is_counted_twice() {
        let mut meter = Meter::default();
        assert!(meter.take(tokens(1000), tokens(100)));
        assert!(!meter.take(tokens(1000), tokens(100)), "told twice");
        assert!(meter.take(tokens(1500), tokens(500)));
        meter.pass_over(tokens(1700));
        assert!(meter.take(tokens(1707), tokens(7)));
        assert_eq!((meter.used(), meter.total()), (tokens(607), Some(tokens(1707))));
        // Where the counts before are known, whatever the last request was.
        let mut meter = Meter::from(Some(tokens(5)));
        assert!(!meter.take(tokens(5), tokens(5)));
        assert!(meter.take(tokens(9), tokens(1)));
        assert_eq!(meter.used(), tokens(4));
        // Another's is all that is known.
        let mut meter = Meter::default();
        meter.pass_over(tokens(10));
        assert!(meter.take(tokens(13), tokens(13)));
        assert_eq!(meter.used(), tokens(3));
    }

    #[test]
    fn a_count_that_restarts_takes_nothing_back() {
        let mut meter = Meter::from(Some(Usage::default()));
        for total in [10, 4, 6] {
            assert!(meter.take(tokens(total), tokens(0)));
        }
        assert_eq!((meter.used(), meter.total()), (tokens(12), Some(tokens(6))));
    }
}
