//! From an open thread to Codex's turn on it.
//!
//! Nothing may run on the thread, or Codex would take the turn as input for that. A cause to stop that
//! comes while Codex is being told waits for what it says, but not for long. From the moment in which
//! Codex may have seen the turn the thread counts as the context's, and the turn is told of; before,
//! the caller learns nothing of an attempt that failed.

use std::time::Duration;

use tokio::time::Instant;

use super::live::Live;
use super::outcome::{self, Counts};
use super::{Act, Begun, Input, Next, Opened, Stage, Step, opening};
use crate::app_server::thread_error::ThreadError;
use crate::model::event::Event;
use crate::model::outcome::Outcome;
use crate::model::refusal::Refusal;
use crate::turn::clocks::{Cause, Clocks};

/// How often Codex is asked again while it says that it is overloaded, or that another process
/// (which may be a worker of ours that is just dying) writes the thread.
pub(crate) const PATIENCE: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];

/// How often a turn is started again after Codex took it as input for a turn of its own.
const STEERED_AGAIN: u32 = 2;

/// When to try again where Codex stays overloaded.
const OVERLOADED_FOR: Duration = Duration::from_secs(2);

/// When to try again where it has no more file descriptors, memory or disk.
pub(crate) const OUT_OF_RESOURCES_FOR: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Starting {
    attempt: u32,
    opened: Opened,
    // Why the turn must stop, once it must.
    cause: Option<Cause>,
    // How often Codex took it as input for a turn of its own.
    steered: u32,
    pauses: usize,
    doing: Doing,
}

/// What is being waited for.
#[derive(Debug)]
enum Doing {
    Quieting,
    // Since there is a cause to stop, not for longer than this.
    Telling { give_up_at: Option<Instant> },
    EndingForeign { codex_turn_id: String },
    Pausing { until: Instant, said: String },
    GivingUp(After),
    Killing { said: String },
    Forgetting(Outcome),
}

/// What follows when the thread was given up.
#[derive(Debug)]
enum After {
    OpenAgain(String),
    Forget(Outcome),
    End(Outcome),
}

impl Starting {
    pub(super) fn new(attempt: u32, opened: Opened, step: &mut Step<'_>) -> Starting {
        step.acts.push(Act::Quiet);
        let doing = Doing::Quieting;
        Starting { attempt, opened, cause: None, steered: 0, pauses: 0, doing }
    }

    pub(super) fn on(&mut self, input: Input, step: &mut Step<'_>) -> Next {
        match (&mut self.doing, input) {
            (Doing::Quieting, Input::Quieted(Ok(()))) => {
                step.acts.push(Act::Start);
                self.wait(Doing::Telling { give_up_at: None })
            }
            (Doing::Quieting, Input::Quieted(Err(what))) => {
                self.give_up(After::OpenAgain(what), step)
            }
            (Doing::Quieting, Input::Tick) => match step.clocks.struck(step.now) {
                // Codex has not been told of the turn.
                Some(cause) => self.forget(step.stopped(cause, Counts::default(), false), step),
                None => Next::Stay,
            },
            (Doing::Telling { .. }, Input::Started(started)) => self.started(started, step),
            (Doing::Telling { give_up_at: Some(by) }, Input::Tick) if *by <= step.now => {
                self.introduce(step);
                let cause = self.cause.unwrap_or(Cause::TurnTimeout);
                // Codex was told of the turn; what it did with it can't be known.
                let outcome = step.stopped(cause, Counts::default(), true);
                self.give_up(After::End(outcome), step)
            }
            (Doing::Telling { give_up_at: give_up_at @ None }, Input::Tick) => {
                self.cause = step.clocks.struck(step.now);
                *give_up_at = self.cause.map(|_| step.now + step.terms.grace);
                Next::Stay
            }
            (Doing::EndingForeign { codex_turn_id }, Input::ForeignEnded(has_ended)) => {
                let error = ThreadError::Steered(std::mem::take(codex_turn_id));
                if has_ended && self.steered <= STEERED_AGAIN && self.cause.is_none() {
                    return self.quiet(step);
                }
                self.introduce(step);
                let outcome = self.refused(&error, step);
                self.give_up(After::Forget(outcome), step)
            }
            (Doing::Pausing { until, said }, Input::Tick) => {
                self.cause = step.clocks.struck(step.now);
                if self.cause.is_some() {
                    let said = std::mem::take(said);
                    return self.not_taken(overloaded(&said), step);
                }
                if *until <= step.now { self.quiet(step) } else { Next::Stay }
            }
            (Doing::GivingUp(_), Input::GivenUp) => self.given_up(step),
            (Doing::Killing { said }, Input::WorkerLost(exit)) => {
                Next::End(outcome::worker_lost(&exit, said, Counts::default()))
            }
            (Doing::Forgetting(_), Input::Forgotten) => self.forgotten(),
            (_, Input::Asked(asked, _)) => step.decline(asked.call),
            (_, _) => Next::Stay,
        }
    }

    pub(super) fn wake_at(&self, clocks: &Clocks) -> Option<Instant> {
        match &self.doing {
            Doing::Quieting | Doing::Telling { give_up_at: None } => clocks.next(),
            Doing::Telling { give_up_at } => *give_up_at,
            Doing::Pausing { until, .. } => clocks.next().into_iter().chain([*until]).min(),
            Doing::EndingForeign { .. }
            | Doing::GivingUp(_)
            | Doing::Killing { .. }
            | Doing::Forgetting(_) => None,
        }
    }

    fn wait(&mut self, doing: Doing) -> Next {
        self.doing = doing;
        Next::Stay
    }

    /// Tries anew to start the turn, unless it must stop.
    fn quiet(&mut self, step: &mut Step<'_>) -> Next {
        if let Some(cause) = step.clocks.struck(step.now) {
            return self.forget(step.stopped(cause, Counts::default(), false), step);
        }
        step.acts.push(Act::Quiet);
        self.wait(Doing::Quieting)
    }

    fn started(&mut self, started: Result<Begun, ThreadError>, step: &mut Step<'_>) -> Next {
        match started {
            Ok(begun) => {
                self.introduce(step);
                let thread_id = self.opened.thread_id.clone();
                let live = Live::begin(thread_id, begun, self.cause, step);
                Next::Stage(Stage::Live(Box::new(live)))
            }
            Err(ThreadError::Lost { cause, written: false }) => {
                opening::again(self.attempt, cause, step)
            }
            Err(ThreadError::Steered(codex_turn_id)) => {
                self.steered += 1;
                step.acts.push(Act::EndForeign { codex_turn_id: codex_turn_id.clone() });
                self.wait(Doing::EndingForeign { codex_turn_id })
            }
            // It has not taken the turn: asking again can do no harm.
            Err(ThreadError::Overloaded(said)) => match PATIENCE.get(self.pauses) {
                Some(pause) if self.cause.is_none() => {
                    self.pauses += 1;
                    let until = step.now + pause.mul_f64(step.terms.jitter);
                    self.wait(Doing::Pausing { until, said })
                }
                Some(_) | None => self.not_taken(overloaded(&said), step),
            },
            Err(ThreadError::OutOfResources(cause)) => {
                let retry_after = OUT_OF_RESOURCES_FOR;
                self.not_taken(Refusal::OutOfResources { cause, retry_after }, step)
            }
            Err(ThreadError::Denied(denied)) => self.not_taken(Refusal::PolicyDenied(denied), step),
            Err(ThreadError::Lost { cause: said, written: true }) => {
                self.introduce(step);
                // If it still runs: whether it runs the turn can't be known.
                step.acts.push(Act::Kill("it did not answer turn/start"));
                self.wait(Doing::Killing { said })
            }
            Err(ThreadError::Unreadable(said)) => {
                self.introduce(step);
                // The turn may run. Letting go of its thread stops it, and disturbs no other turn.
                self.give_up(After::End(outcome::unreadable(&said)), step)
            }
            Err(error) => {
                self.introduce(step);
                let outcome = self.refused(&error, step);
                self.forget(outcome, step)
            }
        }
    }

    /// Tells of the thread: Codex may have seen the turn.
    fn introduce(&mut self, step: &mut Step<'_>) {
        let Opened { thread_id, origin, eviction, warnings } = &mut self.opened;
        let thread_started = Event::thread_started(thread_id.as_str(), *origin);
        step.acts.extend([Act::Bind, Act::NoteTurn]);
        step.acts.extend(eviction.take().into_iter().chain([thread_started]).map(Act::Tell));
        step.acts.extend(warnings.drain(..).map(Act::Tell));
    }

    /// Codex has not taken the turn, and does not take it soon: nothing has begun, nor been told.
    fn not_taken(&mut self, refusal: Refusal, step: &mut Step<'_>) -> Next {
        step.acts.push(Act::Bind);
        let outcome = match self.cause {
            Some(cause) => step.stopped(cause, Counts::default(), false),
            None => Outcome::Refused(refusal),
        };
        self.forget(outcome, step)
    }

    fn refused(&self, error: &ThreadError, step: &Step<'_>) -> Outcome {
        match self.cause {
            Some(cause) => step.stopped(cause, Counts::default(), false),
            None => outcome::refused_by_codex(error),
        }
    }

    fn give_up(&mut self, after: After, step: &mut Step<'_>) -> Next {
        step.acts.push(Act::GiveUp);
        self.wait(Doing::GivingUp(after))
    }

    fn given_up(&mut self, step: &mut Step<'_>) -> Next {
        let doing = std::mem::replace(&mut self.doing, Doing::Quieting);
        match doing {
            Doing::GivingUp(After::OpenAgain(cause)) => opening::again(self.attempt, cause, step),
            Doing::GivingUp(After::Forget(outcome)) => self.forget(outcome, step),
            Doing::GivingUp(After::End(outcome)) => Next::End(outcome),
            doing => self.wait(doing),
        }
    }

    /// Ends the turn, once an ephemeral thread is forgotten.
    fn forget(&mut self, outcome: Outcome, step: &mut Step<'_>) -> Next {
        if !step.terms.is_ephemeral {
            return Next::End(outcome);
        }
        step.acts.push(Act::Forget { agents: Vec::new() });
        self.wait(Doing::Forgetting(outcome))
    }

    fn forgotten(&mut self) -> Next {
        let doing = std::mem::replace(&mut self.doing, Doing::Quieting);
        match doing {
            Doing::Forgetting(outcome) => Next::End(outcome),
            doing => self.wait(doing),
        }
    }
}

fn overloaded(said: &str) -> Refusal {
    let cause = format!("Codex is overloaded: {said}");
    Refusal::WorkerUnavailable { cause, retry_after: OVERLOADED_FOR }
}
