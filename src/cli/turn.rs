//! The one driver of a turn's events, for `run`, `exec` and `demo`.
//!
//! Owns a turn from the call to its end: Ctrl-C, what Codex asks, a refused call, events that break
//! off. Shows nothing of what the turn does; every command has an [`Output`] for that.

use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Failure, describe, tell};
use crate::grpc::caller::{Caller, Refused};
use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::turn_event::Event;

/// How a command shows a turn.
pub(super) trait Output {
    /// Shows an event.
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure>;

    /// Makes way for a line on stderr, which may be the same terminal.
    fn finish_line(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Tells that the turn is being interrupted.
    fn interrupting(&mut self) -> Result<(), Failure> {
        self.finish_line()?;
        tell("interrupting the turn; once more to leave at once");
        Ok(())
    }

    /// The answer to what Codex asks; without one it is left to the sidecar.
    fn answer(&self, _question: &pb::CodexRequest) -> Option<Answer> {
        None
    }

    /// What a refused call comes to.
    fn refusal(&self, refused: Refused) -> Failure {
        refused.into()
    }
}

/// What a turn told.
#[derive(Debug)]
pub(super) struct Told {
    /// The thread that it ran on; empty when it never had one.
    pub(super) thread_id: String,
    pub(super) outcome: Outcome,
}

/// How a turn ended, as far as this process saw it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// With this final response.
    Completed(String),
    Failed(Box<pb::TurnError>),
    Interrupted,
}

impl Outcome {
    /// Of a terminal event; `None` of any other.
    fn of(event: Event) -> Option<Outcome> {
        match event {
            Event::TurnCompleted(completed) => Some(Outcome::Completed(completed.final_response)),
            Event::TurnFailed(failed) => {
                Some(Outcome::Failed(Box::new(failed.error.unwrap_or_default())))
            }
            Event::TurnInterrupted(_) => Some(Outcome::Interrupted),
            _ => None,
        }
    }
}

/// Runs a turn and shows it. Ctrl-C interrupts the turn and goes on until it has ended; a second one
/// leaves at once, and so does the first as long as there is no turn to interrupt.
pub(super) async fn run_turn(
    caller: &Caller,
    request: pb::RunTurnRequest,
    output: &mut impl Output,
) -> Result<Told, Failure> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| Failure::told(format!("can't listen for signals: {error}")))?;
    let mut thread_id = String::new();
    let mut events = tokio::select! {
        // The sidecar may answer only with the first event.
        events = caller.run_turn(request) => events.map_err(|refused| output.refusal(refused))?,
        // Dropping the call interrupts a turn that has begun.
        _ = interrupts.recv() => return Ok(Told { thread_id, outcome: Outcome::Interrupted }),
    };
    let mut turn_id = String::new();
    let mut interrupting = false;
    let mut outcome = None;
    loop {
        let event = tokio::select! {
            // First, so that a flood of events can't delay it.
            biased;
            _ = interrupts.recv() => {
                if interrupting || turn_id.is_empty() {
                    return Ok(Told { thread_id, outcome: Outcome::Interrupted });
                }
                interrupting = true;
                output.interrupting()?;
                tokio::spawn(interrupt(caller.clone(), turn_id.clone()));
                continue;
            }
            event = events.next() => event,
        };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(refused) => {
                output.finish_line()?;
                return Err(output.refusal(refused));
            }
        };
        output.event(&event)?;
        turn_id = event.turn_id;
        match event.event {
            Some(Event::ThreadStarted(thread)) => thread_id = thread.thread_id,
            Some(Event::RequestRaised(pb::RequestRaised { request: Some(question) })) => {
                let answer = output.answer(&question);
                if answer.is_some() {
                    let request_id = question.request_id;
                    let turn_id = turn_id.clone();
                    let answer = pb::AnswerRequestRequest { turn_id, request_id, answer };
                    tokio::spawn(send(caller.clone(), answer));
                }
            }
            Some(event) => outcome = Outcome::of(event).or(outcome),
            // From a newer sidecar; a client skips what it does not know.
            None => {}
        }
    }
    match outcome {
        Some(outcome) => Ok(Told { thread_id, outcome }),
        None => {
            output.finish_line()?;
            Err(Failure::told("the stream ended without a terminal event, against the contract"))
        }
    }
}

async fn interrupt(caller: Caller, turn_id: String) {
    if let Err(refused) = caller.interrupt_turn(turn_id).await {
        tell(&format!("warning: can't interrupt the turn: {}", describe(&refused)));
    }
}

/// A sidecar that has answered by itself refuses the answer, which is no news.
async fn send(caller: Caller, answer: pb::AnswerRequestRequest) {
    let _ = caller.answer_request(answer).await;
}
