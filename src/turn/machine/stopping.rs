//! How a turn is stopped with all that belongs to it, and how it is kept from going on.
//!
//! Every turn of Codex's that runs of it is interrupted, and every goal taken away, or Codex would go
//! on with it by itself. It may have begun to just then: that is looked for once the turn is at rest.

use std::collections::HashSet;

use tokio::time::Instant;

use super::live::Live;
use super::{Act, Step};
use crate::model::id::ThreadId;
use crate::turn::clocks::Cause;

/// A turn that is being stopped, with all that belongs to it.
#[derive(Debug)]
pub(super) struct Stopping {
    // `None`: Codex ended the turn badly, and what it had started is not waited for.
    pub(super) cause: Option<Cause>,
    // Whether the turn had more to wait for than what Codex was doing on its own thread.
    pub(super) had_others: bool,
    // Until when it may take to end.
    pub(super) deadline: Instant,
    // Codex's ids of the turns that are being interrupted.
    interrupted: HashSet<String>,
}

/// What is done about the goals that Codex would go on with.
#[derive(Debug, PartialEq)]
pub(super) enum Goals {
    None,
    /// They are being taken away; whether because nothing else is left of the turn.
    Clearing {
        by: Instant,
        is_at_rest: bool,
    },
    /// They are gone, and there were these.
    Cleared {
        had: Vec<ThreadId>,
        by: Instant,
    },
    /// The turn is at rest; it shows whether Codex had begun to go on with one.
    Seeing {
        by: Instant,
    },
    /// It had. Its begin may be known a moment before it is told.
    Beginning {
        by: Instant,
    },
}

impl Goals {
    /// Something runs again.
    pub(super) fn note_begin(&mut self) {
        if matches!(self, Goals::Beginning { .. }) {
            *self = Goals::None;
        }
    }

    /// When it has been waited for long enough.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match self {
            Goals::None => None,
            Goals::Clearing { by, .. }
            | Goals::Cleared { by, .. }
            | Goals::Seeing { by }
            | Goals::Beginning { by } => Some(*by),
        }
    }
}

impl Live {
    /// Begins to stop the turn where there is a cause to, and interrupts what runs of one that is being
    /// stopped.
    pub(super) fn stop_if_due(&mut self, cause: Option<Cause>, step: &mut Step<'_>) {
        if self.stopping.is_none() {
            let cause = cause.or_else(|| self.run.cause_to_stop(step.terms));
            if cause.is_none() && !self.run.ended_badly() {
                return;
            }
            self.stop(cause, step);
        }
        let Some(stopping) = &mut self.stopping else { return };
        for (thread_id, codex_turn_id) in self.run.owned.running() {
            if stopping.interrupted.insert(codex_turn_id.clone()) {
                let thread_id = ThreadId::from_codex(thread_id);
                step.acts.push(Act::Interrupt { thread_id, codex_turn_id });
            }
        }
        // After the interruptions: who is told no goes on.
        step.questions.withdraw_all(step.acts);
    }

    fn stop(&mut self, cause: Option<Cause>, step: &mut Step<'_>) {
        let deadline = step.now + step.terms.grace;
        self.stopping = Some(Stopping {
            cause,
            had_others: self.run.end.is_some() || self.run.owned.has_others(),
            deadline,
            interrupted: HashSet::new(),
        });
        // Else Codex would go on with them at the next turn.
        let threads = self.run.goals();
        if !threads.is_empty() {
            step.acts.push(Act::ClearGoals { threads, ask_first: false });
            self.goals = Goals::Clearing { by: deadline, is_at_rest: false };
        }
    }

    /// Codex holds back for a reason of its own, and must not go on when nobody looks.
    pub(super) fn clear_goals_at_rest(&mut self, step: &mut Step<'_>) {
        let threads = self.run.owned.goals().into_iter().map(ThreadId::from_codex).collect();
        step.acts.push(Act::ClearGoals { threads, ask_first: true });
        self.goals = Goals::Clearing { by: step.now + step.terms.grace, is_at_rest: true };
    }

    pub(super) fn note_goals_cleared(&mut self, had: Vec<ThreadId>) {
        if let Goals::Clearing { by, is_at_rest } = self.goals {
            if is_at_rest {
                self.run.owned.forget_goals();
            }
            self.goals = Goals::Cleared { had, by };
        }
    }

    pub(super) fn note_goals_seen(&mut self, goes_on: bool) {
        if let Goals::Seeing { by } = self.goals {
            self.goals = if goes_on { Goals::Beginning { by } } else { Goals::None };
        }
    }

    /// Whether a turn at rest still has to wait until it is sure that it goes on with no goal.
    pub(super) fn waits_for_goals(&mut self, step: &mut Step<'_>) -> bool {
        let is_late = self.goals.wake_at().is_some_and(|by| by <= step.now);
        match &mut self.goals {
            Goals::None => return false,
            Goals::Clearing { is_at_rest: true, .. } if is_late => self.run.owned.forget_goals(),
            _ if is_late => {}
            Goals::Cleared { had, by } if !had.is_empty() => {
                step.acts.push(Act::SeeGoals { threads: std::mem::take(had) });
                self.goals = Goals::Seeing { by: *by };
                return true;
            }
            Goals::Cleared { .. } => {}
            Goals::Clearing { .. } | Goals::Seeing { .. } | Goals::Beginning { .. } => return true,
        }
        self.goals = Goals::None;
        false
    }
}
