//! When a turn must stop, and why.
//!
//! Pure: nothing here waits. The turn's machine is told the time and asks whether a clock has struck;
//! [`Clocks::next`] says when the next one will.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::event::InterruptReason;
use crate::model::options::TurnOptions;

/// Why a turn is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Asked(InterruptReason),
    TurnTimeout,
    IdleTimeout,
    // More came into force than was asked.
    SettingsNotApplied,
    Budget,
}

/// The clocks of one turn; absent ones never strike.
#[derive(Debug)]
pub(super) struct Clocks {
    pub(super) turn_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    // Not before the turn has left its queue.
    turn_deadline: Option<Instant>,
    // `None` before the turn is handed to Codex: there is no progress to miss.
    last_progress: Option<Instant>,
    // Whoever is asked something may take his time.
    idle_stands: bool,
    asked: Option<InterruptReason>,
}

impl Clocks {
    pub(super) fn new(options: &TurnOptions) -> Clocks {
        Clocks {
            turn_timeout: options.turn_timeout,
            idle_timeout: options.idle_timeout,
            turn_deadline: None,
            last_progress: None,
            idle_stands: false,
            asked: None,
        }
    }

    /// The turn leaves its queue.
    pub(super) fn start(&mut self, now: Instant) {
        self.turn_deadline = self.turn_timeout.and_then(|timeout| now.checked_add(timeout));
    }

    /// Notes that the turn's end is asked for. The first reason stays.
    pub(super) fn ask_to_stop(&mut self, reason: InterruptReason) {
        self.asked.get_or_insert(reason);
    }

    /// Whose asking for the end is the cause to stop, if anybody has.
    pub(super) fn asked(&self) -> Option<Cause> {
        self.asked.map(Cause::Asked)
    }

    /// Something happens that counts; the first time the turn is handed to Codex.
    pub(super) fn note_progress(&mut self, now: Instant) {
        self.last_progress = Some(now);
    }

    /// The turn is Codex's no more.
    pub(super) fn forget_progress(&mut self) {
        self.last_progress = None;
    }

    /// Lets the idle clock stand, or start anew.
    pub(super) fn let_idle_stand(&mut self, stands: bool, now: Instant) {
        if self.idle_stands && !stands {
            self.note_progress(now);
        }
        self.idle_stands = stands;
    }

    /// Why the turn must stop now, if it must.
    pub(super) fn struck(&self, now: Instant) -> Option<Cause> {
        let is_over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if self.asked.is_some() {
            self.asked()
        } else if is_over(self.turn_deadline) {
            Some(Cause::TurnTimeout)
        } else if is_over(self.idle_deadline()) {
            Some(Cause::IdleTimeout)
        } else {
            None
        }
    }

    /// When the next clock strikes.
    pub(super) fn next(&self) -> Option<Instant> {
        self.turn_deadline.into_iter().chain(self.idle_deadline()).min()
    }

    fn idle_deadline(&self) -> Option<Instant> {
        if self.idle_stands {
            return None;
        }
        self.last_progress?.checked_add(self.idle_timeout?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn clocks(turn: Option<u32>, idle: Option<u32>) -> Clocks {
        let seconds = |count: Option<u32>| count.map(|count| count * SECOND);
        let (turn_timeout, idle_timeout) = (seconds(turn), seconds(idle));
        Clocks::new(&TurnOptions { turn_timeout, idle_timeout, ..TurnOptions::default() })
    }

    #[test]
    fn the_turns_clock_runs_from_its_start_and_the_idle_clock_from_the_last_progress() {
        let start = Instant::now();
        let mut clocks = clocks(Some(10), Some(3));
        assert_eq!((clocks.struck(start + 60 * SECOND), clocks.next()), (None, None));
        clocks.start(start);
        assert_eq!(clocks.next(), Some(start + 10 * SECOND));
        clocks.note_progress(start);
        assert_eq!(clocks.next(), Some(start + 3 * SECOND));
        assert_eq!(clocks.struck(start + 3 * SECOND), Some(Cause::IdleTimeout));
        clocks.note_progress(start + 8 * SECOND);
        assert_eq!(clocks.struck(start + 9 * SECOND), None);
        assert_eq!(clocks.struck(start + 20 * SECOND), Some(Cause::TurnTimeout));
        // Whoever asks for the end goes before, and the first reason stays.
        clocks.ask_to_stop(InterruptReason::Draining);
        clocks.ask_to_stop(InterruptReason::InterruptRequested);
        let asked = Some(Cause::Asked(InterruptReason::Draining));
        assert_eq!(clocks.struck(start + 20 * SECOND), asked);
    }

    #[test]
    fn the_idle_clock_stands_while_a_question_waits_and_then_starts_anew() {
        let start = Instant::now();
        let mut clocks = clocks(None, Some(3));
        clocks.note_progress(start);
        clocks.let_idle_stand(true, start + SECOND);
        assert_eq!((clocks.struck(start + 60 * SECOND), clocks.next()), (None, None));
        clocks.let_idle_stand(false, start + 60 * SECOND);
        clocks.let_idle_stand(false, start + 61 * SECOND);
        assert_eq!(clocks.next(), Some(start + 63 * SECOND));
    }
}
