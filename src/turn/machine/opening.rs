//! Before a turn has a thread: it waits in its queue, then its thread is opened.
//!
//! A worker that is lost meanwhile is unseen by the caller: another one is tried, a few times.

use std::time::Duration;

use super::outcome::Counts;
use super::{Act, Input, Next, OpenError, Stage, Starting, Step};
use crate::model::event::Event;
use crate::model::outcome::Outcome;
use crate::model::refusal::Refusal;

/// How often a turn that Codex has not taken yet is tried on another worker.
const ATTEMPTS: u32 = 3;

/// When to try again where none of them could do it.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The turn waits in its queue. Its clocks do not run yet.
pub(super) fn on_waiting(input: Input, step: &mut Step<'_>) -> Next {
    match input {
        Input::Queued(position) => {
            step.acts.push(Act::Tell(Event::queued(position)));
            Next::Stay
        }
        Input::Admitted => {
            step.clocks.start(step.now);
            step.acts.push(Act::Open { after: None });
            Next::Stage(Stage::Opening { attempt: 1 })
        }
        Input::Tick => end_if_struck(step),
        _ => Next::Stay,
    }
}

/// The turn's thread is being opened.
pub(super) fn on(attempt: u32, input: Input, step: &mut Step<'_>) -> Next {
    match input {
        Input::Opened(Ok(opened)) => {
            step.clocks.note_progress(step.now);
            Next::Stage(Stage::Starting(Box::new(Starting::new(attempt, opened, step))))
        }
        Input::Opened(Err(OpenError::Refused(refusal))) => Next::End(Outcome::Refused(refusal)),
        Input::Opened(Err(OpenError::Lost(cause))) => again(attempt, cause, step),
        Input::Tick => end_if_struck(step),
        _ => Next::Stay,
    }
}

/// Opens the thread again: its worker was lost before it could have seen the turn.
pub(super) fn again(attempt: u32, cause: String, step: &mut Step<'_>) -> Next {
    if attempt >= ATTEMPTS {
        let refusal = Refusal::WorkerUnavailable { cause, retry_after: RETRY_AFTER };
        return Next::End(Outcome::Refused(refusal));
    }
    step.clocks.forget_progress();
    match end_if_struck(step) {
        Next::Stay => {
            step.acts.push(Act::Open { after: Some(cause) });
            Next::Stage(Stage::Opening { attempt: attempt + 1 })
        }
        next => next,
    }
}

/// Nothing has begun: the turn may end at once.
fn end_if_struck(step: &Step<'_>) -> Next {
    match step.clocks.struck(step.now) {
        Some(cause) => Next::End(step.stopped(cause, Counts::default(), false)),
        None => Next::Stay,
    }
}
