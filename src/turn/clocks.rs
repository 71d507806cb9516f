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
    // The same while something ran that takes its time.
    ToolTimeout,
    // More came into force than was asked.
    SettingsNotApplied,
    Budget,
}

/// The clocks of one turn; absent ones never strike.
#[derive(Debug)]
pub(super) struct Clocks {
    pub(super) turn_timeout: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    /// In place of `idle_timeout`, unless that is longer, while something runs that takes its time.
    pub(super) tool_timeout: Option<Duration>,
    // Not before the turn has left its queue.
    turn_deadline: Option<Instant>,
    // `None` before the turn is handed to Codex: there is no progress to miss.
    last_progress: Option<Instant>,
    // Whether a warning was given since.
    has_warned: bool,
    // Whoever is asked something may take his time.
    idle_stands: bool,
    // Whether a command, an MCP call or a sub-agent runs.
    tools_run: bool,
    asked: Option<InterruptReason>,
}

impl Clocks {
    /// `tool_timeout` is the longest time without progress while a command, an MCP call or a sub-agent
    /// runs.
    pub(super) fn new(options: &TurnOptions, tool_timeout: Option<Duration>) -> Clocks {
        Clocks {
            turn_timeout: options.turn_timeout,
            idle_timeout: options.idle_timeout,
            tool_timeout: tool_timeout.map(|tool| tool.max(options.idle_timeout.unwrap_or(tool))),
            turn_deadline: None,
            last_progress: None,
            has_warned: false,
            idle_stands: false,
            tools_run: false,
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
        self.has_warned = false;
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

    /// Notes whether something runs that takes its time. The idle clock starts anew when nothing does any
    /// more.
    pub(super) fn let_tools_run(&mut self, run: bool, now: Instant) {
        if self.tools_run && !run {
            self.note_progress(now);
        }
        self.tools_run = run;
    }

    /// Why the turn must stop now, if it must.
    pub(super) fn struck(&self, now: Instant) -> Option<Cause> {
        let is_over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if self.asked.is_some() {
            self.asked()
        } else if is_over(self.turn_deadline) {
            Some(Cause::TurnTimeout)
        } else if is_over(self.after_silence(1.0)) {
            Some(if self.tools_run { Cause::ToolTimeout } else { Cause::IdleTimeout })
        } else {
            None
        }
    }

    /// When the next clock strikes.
    pub(super) fn next(&self) -> Option<Instant> {
        self.turn_deadline.into_iter().chain(self.after_silence(1.0)).min()
    }

    /// When the turn has been silent for half of what it may be, unless that was warned of.
    pub(super) fn next_warning(&self) -> Option<Instant> {
        self.after_silence(0.5).filter(|_| !self.has_warned)
    }

    /// Whether that is now: how long it has been silent, and may be. Once for each silence.
    pub(super) fn warning(&mut self, now: Instant) -> Option<(Duration, Duration)> {
        self.next_warning().filter(|at| *at <= now)?;
        self.has_warned = true;
        Some((now.duration_since(self.last_progress?), self.silence_timeout()?))
    }

    fn silence_timeout(&self) -> Option<Duration> {
        if self.tools_run { self.tool_timeout } else { self.idle_timeout }
    }

    fn after_silence(&self, share: f64) -> Option<Instant> {
        if self.idle_stands {
            return None;
        }
        self.last_progress?.checked_add(self.silence_timeout()?.mul_f64(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn clocks(turn: Option<u32>, idle: Option<u32>) -> Clocks {
        let seconds = |count: Option<u32>| count.map(|count| count * SECOND);
        let (turn_timeout, idle_timeout) = (seconds(turn), seconds(idle));
        let options = TurnOptions { turn_timeout, idle_timeout, ..TurnOptions::default() };
        Clocks::new(&options, Some(60 * SECOND))
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

    #[test]
    fn what_takes_its_time_has_a_clock_of_its_own_and_half_of_a_silence_is_warned_of_once() {
        let start = Instant::now();
        let mut clocks = clocks(None, Some(4));
        clocks.note_progress(start);
        assert_eq!(clocks.next_warning(), Some(start + 2 * SECOND));
        assert_eq!(clocks.warning(start + SECOND), None);
        assert_eq!(clocks.warning(start + 3 * SECOND), Some((3 * SECOND, 4 * SECOND)));
        assert_eq!((clocks.warning(start + 3 * SECOND), clocks.next_warning()), (None, None));
        clocks.note_progress(start + 3 * SECOND);
        clocks.let_tools_run(true, start + 3 * SECOND);
        assert_eq!(clocks.struck(start + 62 * SECOND), None);
        assert_eq!(clocks.next_warning(), Some(start + 33 * SECOND));
        assert_eq!(clocks.next(), Some(start + 63 * SECOND));
        assert_eq!(clocks.struck(start + 63 * SECOND), Some(Cause::ToolTimeout));
        clocks.let_tools_run(false, start + 62 * SECOND);
        assert_eq!(clocks.next(), Some(start + 66 * SECOND));
        assert_eq!(clocks.struck(start + 66 * SECOND), Some(Cause::IdleTimeout));
        // Whoever allows more silence than that allows it to tools, too.
        let idle_timeout = Some(90 * SECOND);
        let options = TurnOptions { idle_timeout, ..TurnOptions::default() };
        assert_eq!(Clocks::new(&options, Some(60 * SECOND)).tool_timeout, idle_timeout);
    }
}
