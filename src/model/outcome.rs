//! How a turn ended.

use crate::model::event::{
    Event, InterruptReason, TurnCompleted, TurnFailed, TurnInterrupted, Usage,
};
use crate::model::failure::TurnError;
use crate::model::refusal::Refusal;

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    /// Well.
    Completed {
        /// The last agent message, or a fixed sentence when there was none.
        final_response: String,
        /// Of this turn.
        usage: Usage,
        thread_usage: Usage,
    },
    /// Badly.
    Failed {
        /// Why.
        error: TurnError,
        /// Of this turn, as far as it is known.
        usage: Usage,
        /// Of the thread, as far as it is known.
        thread_usage: Usage,
    },
    /// It was stopped.
    Interrupted {
        /// By whom or what.
        reason: InterruptReason,
        /// Of this turn, as far as it is known.
        usage: Usage,
        /// Of the thread, as far as it is known.
        thread_usage: Usage,
    },
    /// It never began.
    Refused(Refusal),
}

impl Outcome {
    /// What the turn has used, as far as it is known.
    pub(crate) fn usage(&self) -> Usage {
        match self {
            Outcome::Completed { usage, .. }
            | Outcome::Failed { usage, .. }
            | Outcome::Interrupted { usage, .. } => *usage,
            Outcome::Refused(_) => Usage::default(),
        }
    }

    /// The turn's terminal event.
    ///
    /// # Errors
    /// Why it was refused: a turn that never began has no terminal event.
    pub(crate) fn into_event(self) -> Result<Event, Refusal> {
        Ok(match self {
            Outcome::Completed { final_response, usage, thread_usage } => {
                let (usage, thread_usage) = (known(usage), known(thread_usage));
                Event::TurnCompleted(TurnCompleted { final_response, usage, thread_usage })
            }
            Outcome::Failed { error, usage, thread_usage } => Event::TurnFailed(TurnFailed {
                error: Some(error),
                usage: known(usage),
                thread_usage: known(thread_usage),
            }),
            Outcome::Interrupted { reason, usage, thread_usage } => {
                Event::TurnInterrupted(TurnInterrupted {
                    reason: reason.into(),
                    usage: known(usage),
                    thread_usage: known(thread_usage),
                })
            }
            Outcome::Refused(refusal) => return Err(refusal),
        })
    }
}

/// A turn's final usage. Codex never tells of one without a token, so all zeros mean that it told
/// nothing, which the contract says by leaving the field out.
fn known(usage: Usage) -> Option<Usage> {
    (usage != Usage::default()).then_some(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_that_codex_did_not_tell_is_absent() {
        let interrupted = |usage| {
            let reason = InterruptReason::Draining;
            match (Outcome::Interrupted { reason, usage, thread_usage: usage }).into_event() {
                Ok(Event::TurnInterrupted(interrupted)) => interrupted,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(interrupted(Usage::default()).usage, None);
        let usage = interrupted(Usage { input_tokens: 5, ..Usage::default() }).usage;
        assert_eq!(usage.map(|usage| usage.input_tokens), Some(5));
    }
}
