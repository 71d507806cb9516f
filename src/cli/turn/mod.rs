//! The one driver of a turn's events, for `run`, `attach`, `exec` and `demo`.
//!
//! Owns a turn from the call to its end: Ctrl-C, what Codex asks, a refused call, a connection that
//! breaks. Shows nothing of what the turn does; every command has an [`Output`] for that.

mod connection;
mod follow;
mod sidecar;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::future::Future;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::ask::{Nobody, Person};
use super::failure::{Failure, tell};
use crate::grpc::caller::{Caller, Refused};
use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::turn_event::Event;

pub(super) use connection::Begin;
use follow::Follower;

/// How a command shows a turn, and what it does about it.
pub(super) trait Output {
    /// Shows an event.
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure>;

    /// Makes way for a line on stderr, which may be the same terminal.
    fn finish_line(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Tells something about the turn that is no event of it.
    fn note(&mut self, text: &str) -> Result<(), Failure> {
        self.finish_line()?;
        tell(text);
        Ok(())
    }

    /// Tells that the turn is being interrupted.
    fn interrupting(&mut self) -> Result<(), Failure> {
        self.note("interrupting the turn; once more to leave at once")
    }

    /// The answer to what Codex asks; without one it is left to the sidecar.
    fn answer(&self, _question: &pb::CodexRequest) -> Option<Answer> {
        None
    }

    /// What is done about what Codex asks.
    fn reply(&mut self, question: &pb::CodexRequest) -> Result<Reply, Failure> {
        Ok(self.answer(question).map_or(Reply::Leave, Reply::Send))
    }

    /// What a refused call comes to.
    fn refusal(&self, refused: Refused) -> Failure {
        refused.into()
    }

    /// Whether a turn is joined again when its connection breaks.
    fn rejoins(&self) -> bool {
        false
    }

    /// Whether Ctrl-C interrupts the turn; else it only leaves.
    fn interrupts(&self) -> bool {
        true
    }

    /// Whether it wants to show, four times a second, that time goes by.
    fn ticks(&self) -> bool {
        false
    }

    /// Shows that time goes by. Never while a person is asked.
    fn tick(&mut self) -> Result<(), Failure> {
        Ok(())
    }
}

/// What is done about what Codex asks.
#[derive(Debug)]
pub(super) enum Reply {
    /// Nothing: the sidecar or somebody else settles it.
    Leave,
    /// It is answered so.
    Send(Answer),
    /// It is answered so, which is a no only because nobody was there to be asked.
    Decline(Answer),
    /// The person is asked.
    Ask,
    /// The turn is stopped because of it.
    Stop,
}

/// What a turn told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The sidecar's id of the turn; empty when it never began.
    pub(super) turn_id: String,
    /// The thread that it ran on; empty when it never had one.
    pub(super) thread_id: String,
    pub(super) outcome: Outcome,
    /// Who interrupted it, or what, if the sidecar said so.
    pub(super) interrupted_by: pb::InterruptReason,
    /// The ids of its questions that were declined for want of an answer.
    pub(super) declined: BTreeSet<String>,
    /// The id of the question that it was stopped because of.
    pub(super) stopped_by: Option<String>,
    /// Whether its connection was lost on the way.
    pub(super) was_cut: bool,
    /// Whether Ctrl-C left it before its end was seen.
    pub(super) left: bool,
}

/// How a turn ended, as far as this process saw it.
#[derive(Debug, Default)]
pub(super) enum Outcome {
    /// With this final response.
    Completed(String),
    Failed(Box<pb::TurnError>),
    #[default]
    Interrupted,
}

impl Outcome {
    /// Of a terminal event; `None` of any other.
    fn of(event: &Event) -> Option<Outcome> {
        match event {
            Event::TurnCompleted(done) => Some(Outcome::Completed(done.final_response.clone())),
            Event::TurnFailed(failed) => {
                Some(Outcome::Failed(Box::new(failed.error.clone().unwrap_or_default())))
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
    follow_turn(caller, Begin::Run(Box::new(request)), output, &Nobody).await
}

/// Runs or joins a turn, shows it, and asks `person` what it asks.
pub(super) async fn follow_turn(
    caller: &Caller,
    begin: Begin,
    output: &mut impl Output,
    person: &impl Person,
) -> Result<Told, Failure> {
    Follower::new(caller.clone(), begin, output, person, ctrl_c()?).follow().await
}

/// Runs a call to its end unless Ctrl-C comes first; then it is given up, and there is nothing.
pub(super) async fn unless_interrupted<T>(
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    let mut interrupts = ctrl_c()?;
    tokio::select! {
        result = call => result.map(Some),
        _ = interrupts.recv() => Ok(None),
    }
}

/// Every Ctrl-C from now on.
fn ctrl_c() -> Result<mpsc::UnboundedReceiver<()>, Failure> {
    let mut signals = signal(SignalKind::interrupt())
        .map_err(|error| Failure::told(format!("can't listen for signals: {error}")))?;
    let (sender, interrupts) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            if sender.send(()).is_err() {
                return;
            }
        }
    });
    Ok(interrupts)
}
