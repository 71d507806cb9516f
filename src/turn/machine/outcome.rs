//! How turns end.

use super::Terms;
use crate::app_server::thread_error::ThreadError;
use crate::model::event::Usage;
use crate::model::failure::{FailureReason, TurnError};
use crate::model::outcome::Outcome;
use crate::turn::clocks::{Cause, Clocks};
use crate::worker::WorkerExit;

/// What a turn used, and its thread.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) turn: Usage,
    pub(super) thread: Usage,
}

/// What becomes of a turn that had to stop for this.
pub(super) fn stopped(
    cause: Cause,
    terms: &Terms,
    clocks: &Clocks,
    counts: Counts,
    side_effects_possible: bool,
) -> Outcome {
    let show = |timeout: Option<std::time::Duration>| {
        humantime::format_duration(timeout.unwrap_or_default()).to_string()
    };
    let (reason, message) = match cause {
        Cause::Asked(reason) => {
            let Counts { turn: usage, thread: thread_usage } = counts;
            return Outcome::Interrupted { reason, usage, thread_usage };
        }
        Cause::TurnTimeout => {
            let timeout = show(clocks.turn_timeout);
            let message = format!("the turn was not over within its turn_timeout of {timeout}");
            (FailureReason::TurnTimeout, message)
        }
        Cause::IdleTimeout => {
            let timeout = show(clocks.idle_timeout);
            let message = format!("the turn made no progress for its idle_timeout of {timeout}");
            (FailureReason::IdleTimeout, message)
        }
        Cause::ToolTimeout => {
            let timeout = show(clocks.tool_timeout);
            let message = format!(
                "the turn made no progress for {timeout} while a command, an MCP call or a sub-agent \
                 of it ran; that is what the setting timeouts.tool allows, or the turn's idle_timeout \
                 where that is longer"
            );
            (FailureReason::IdleTimeout, message)
        }
        Cause::SettingsNotApplied => {
            let message = "Codex gave the turn more rights than it asked for".to_owned();
            (FailureReason::SettingsNotApplied, message)
        }
        Cause::Budget => {
            let most = terms.max_total_tokens.map_or(0, u64::from);
            let used = counts.turn.total_tokens();
            let message =
                format!("the turn used {used} tokens, more than its max_total_tokens of {most}");
            (FailureReason::BudgetExceeded, message)
        }
    };
    let error = TurnError {
        // What was too long, too dear, or given too much, would be so again; a silent provider may be
        // back.
        retryable: matches!(cause, Cause::IdleTimeout | Cause::ToolTimeout),
        side_effects_possible,
        ..TurnError::new(reason, message)
    };
    failed(error, counts)
}

pub(super) fn failed(error: TurnError, counts: Counts) -> Outcome {
    let Counts { turn: usage, thread: thread_usage } = counts;
    Outcome::Failed { error, usage, thread_usage }
}

/// The turn can hear no more of what Codex does; `what` it was doing may be empty.
pub(super) fn worker_lost(exit: &WorkerExit, what: &str, counts: Counts) -> Outcome {
    let cause = &exit.cause;
    let message = if what.is_empty() {
        format!("the turn lost its worker: {cause}")
    } else {
        format!("the turn lost its worker: {cause} ({what})")
    };
    let error = TurnError {
        details: exit.stderr_tail.join("\n"),
        retryable: true,
        // It may have acted in its last moment, and told nobody.
        side_effects_possible: true,
        ..TurnError::new(FailureReason::WorkerLost, message)
    };
    failed(error, counts)
}

/// Codex answered `turn/start`, but not so that it can be read.
pub(super) fn unreadable(cause: &str) -> Outcome {
    let message = format!("whether Codex took the turn can't be known: {cause}");
    let error = TurnError {
        side_effects_possible: true,
        ..TurnError::new(FailureReason::WorkerProtocol, message)
    };
    failed(error, Counts::default())
}

/// Codex did not take the turn.
pub(super) fn refused_by_codex(error: &ThreadError) -> Outcome {
    let (reason, retryable) = match error {
        ThreadError::Overloaded(_) | ThreadError::OutOfResources(_) => {
            (FailureReason::ServerOverloaded, true)
        }
        ThreadError::Steered(_) => (FailureReason::WorkerProtocol, true),
        ThreadError::NotFound(_)
        | ThreadError::NothingWritten(_)
        | ThreadError::Archived(_)
        | ThreadError::HeldElsewhere(_)
        | ThreadError::BadConfig(_)
        | ThreadError::Refused(_)
        | ThreadError::UnknownProfile(_)
        | ThreadError::UnknownSkill { .. }
        | ThreadError::NotApplied(_)
        | ThreadError::Denied(_)
        | ThreadError::Unreadable(_)
        | ThreadError::Lost { .. } => (FailureReason::BadRequest, false),
    };
    let message = format!("Codex did not take the turn: {error}");
    let error = TurnError { retryable, ..TurnError::new(reason, message) };
    failed(error, Counts::default())
}
