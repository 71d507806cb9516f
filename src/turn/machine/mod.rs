//! What a turn makes of all that happens to it, from its queue to its end.
//!
//! Pure: it is told what happens, as [`Input`]s with the moment, and says what is to be done, as
//! [`Act`]s; the engine's driver does that and tells what came of it. It knows no worker, no task and
//! no stream, and no clock: [`Machine::wake_at`] says when it wants to be told the time, which is when
//! it looks at the turn's clocks. So what has happened goes before every clock, as long as the driver
//! tells what has happened first.
//!
//! Life cycle, each stage a module: waiting → [`opening`] a thread → [`starting`] Codex's turn →
//! [`live`], with its [`stopping`] and its [`ending`] → over. Input for the turn ([`steering`]) and
//! Codex's questions ([`questions`]) are taken in every stage.
//!
//! Invariants: there is exactly one [`Act::End`], and nothing after it. `thread_started` goes before
//! every event but `queued` and the warning that its context was evicted. Every question that is told of is resolved once. Every wish that wants a
//! reply gets one. The turn does not end while a turn of Codex's that it owns runs, unless the thread
//! was given up or the worker is lost. An input that does not belong to the moment (a late result, a
//! second one) changes nothing.

mod agents;
mod ending;
mod live;
mod meter;
mod opening;
mod outcome;
mod owned;
mod patches;
mod questions;
mod running;
mod skipped;
mod starting;
mod steering;
mod stopping;
#[cfg(test)]
mod tests;
mod withheld;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::app_server::message::{Asked, Call, SkippedLine, Told};
use crate::app_server::settings::{Gate, Settings};
use crate::app_server::thread_error::ThreadError;
use crate::model::event::{
    Event, InterruptReason, McpServerStatus, ThreadOrigin, TurnSettings, Usage,
};
use crate::model::id::ThreadId;
use crate::model::outcome::Outcome;
use crate::model::question::{Answer, Given, Unanswerable};
use crate::model::refusal::Refusal;
use crate::model::request::{TurnRequest, Work};
use crate::redact::Redactor;
use crate::turn::clocks::{Cause, Clocks};
use crate::turn::turn::HAS_ENDED;
use crate::worker::WorkerExit;

use live::Live;
use outcome::Counts;
use questions::Questions;
use starting::Starting;
use steering::{Steering, Target};

pub(crate) use questions::MOST_PENDING;
pub(super) use questions::{Policy, Record};
pub(super) use starting::{OUT_OF_RESOURCES_FOR, PATIENCE};

/// What a turn goes by that does not change while it runs.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// The name under which Codex's turn is started.
    pub(super) root: String,
    pub(super) is_ephemeral: bool,
    pub(super) is_review: bool,
    /// Why it takes no more input, where it does not.
    pub(super) takes_no_input: Option<&'static str>,
    pub(super) include_raw_events: bool,
    pub(super) omit_final_response: bool,
    pub(super) max_total_tokens: Option<NonZeroU64>,
    /// How long an interrupted turn may take to end before its worker is given up.
    pub(super) grace: Duration,
    /// By how much pauses are longer or shorter than they are said to be, so that turns that wait for
    /// the same thing don't ask for it in step: 0.5 to 1.5.
    pub(super) jitter: f64,
}

/// What happens to a turn.
#[derive(Debug)]
pub(super) enum Input {
    /// It has this position in its queue.
    Queued(u32),
    /// It leaves the queue.
    Admitted,
    /// Somebody asks for its end.
    Stop(InterruptReason),
    /// Somebody has more input for what runs.
    Steer(ReplyTo),
    /// Somebody answers a question.
    Answer { to: ReplyTo, request_id: String, given: Box<Given> },
    /// What came of [`Act::Open`].
    Opened(Result<Opened, OpenError>),
    /// What came of [`Act::Quiet`]: nothing runs on the thread, or what could not be ended.
    Quieted(Result<(), String>),
    /// What came of [`Act::Start`].
    Started(Result<Begun, ThreadError>),
    /// What came of [`Act::EndForeign`]: whether it has ended.
    ForeignEnded(bool),
    /// What came of [`Act::Steer`], or why Codex did not take it.
    Steered(ReplyTo, Result<(), String>),
    /// What came of [`Act::ClearGoals`]: the threads that had one.
    GoalsCleared(Vec<ThreadId>),
    /// What came of [`Act::SeeGoals`]: whether Codex goes on all the same.
    GoalsSeen(bool),
    /// What came of [`Act::EndCommands`].
    CommandsEnded(EndedCommands),
    /// What came of [`Act::LookForAnswer`]: whether it is certain that the turn had none.
    HadNoAnswer(bool),
    /// What came of [`Act::GiveUp`].
    GivenUp,
    /// What came of [`Act::Forget`].
    Forgotten,
    /// Codex tells something of the thread, or of one that descends from it.
    Told(Told),
    /// Codex asks something, and this is done about it.
    Asked(Asked, Policy),
    /// Codex told or asked something in a line that could not be read.
    Skipped(Arc<SkippedLine>),
    /// The worker has ended.
    WorkerLost(Arc<WorkerExit>),
    /// Nothing, but it is later: the clocks are looked at.
    Tick,
}

/// What is to be done for a turn.
#[derive(Debug, PartialEq)]
pub(super) enum Act {
    Tell(Event),
    /// Open the turn's thread; again, if there is a cause.
    Open {
        after: Option<String>,
    },
    /// Make sure that nothing runs on the thread.
    Quiet,
    /// Ask Codex to start its turn.
    Start,
    /// End a turn into which ours was taken as input.
    EndForeign {
        codex_turn_id: String,
    },
    /// From now on the thread is the context's.
    Bind,
    /// The context had a turn.
    NoteTurn,
    /// Give somebody's input to a turn of Codex's.
    Steer {
        to: ReplyTo,
        codex_turn_id: String,
    },
    /// Tell who wanted to steer which turn of Codex's took the input, or why none did.
    ReplySteered {
        to: ReplyTo,
        outcome: Result<String, String>,
    },
    /// Say no to a question.
    Decline(Call),
    /// Give Codex somebody's answer.
    Answer(Call, Answer),
    /// Tell who answered whether it counts.
    ReplyAnswered {
        to: ReplyTo,
        outcome: Result<(), Unanswerable>,
    },
    /// Interrupt a turn of Codex's, and try again until it was heard.
    Interrupt {
        thread_id: ThreadId,
        codex_turn_id: String,
    },
    /// Take the goals of these threads away; if so said, only where there is one.
    ClearGoals {
        threads: Vec<ThreadId>,
        ask_first: bool,
    },
    /// See whether Codex had begun to go on with goals that were taken away from idle threads.
    SeeGoals {
        threads: Vec<ThreadId>,
    },
    /// End what runs of the threads' commands: these items, and what they left behind.
    EndCommands(Vec<(ThreadId, Vec<String>)>),
    /// Look in Codex's record whether its turn had an answer.
    LookForAnswer {
        codex_turn_id: String,
    },
    /// Have the thread let go, or else kill the worker.
    GiveUp,
    /// Kill the worker, for this cause.
    Kill(&'static str),
    /// Have Codex forget the turn's thread and those of its sub-agents.
    Forget {
        agents: Vec<ThreadId>,
    },
    /// Codex ended a turn: the worker works.
    NoteCompleted,
    /// Keep this of the thread for its next turn.
    Keep(Kept),
    /// The turn has ended.
    End(Outcome),
}

/// Whom to reply to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ReplyTo(pub(super) u64);

/// A thread, ready for a turn.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) thread_id: ThreadId,
    pub(super) origin: ThreadOrigin,
    /// For before `thread_started`: that the context was evicted.
    pub(super) eviction: Option<Event>,
    /// For after `thread_started`.
    pub(super) warnings: Vec<Event>,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The turn can't run.
    Refused(Refusal),
    /// The worker died under it; another one may do.
    Lost(String),
}

/// What is known when Codex has taken the turn.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) codex_turn_id: String,
    /// What it runs with, where that is known.
    pub(super) settings: Option<TurnSettings>,
    /// Nothing of the turn is told before this lets it pass.
    pub(super) gate: Gate,
    /// The thread's counts before the turn, as far as they are known.
    pub(super) usage: Option<Usage>,
    pub(super) redactor: Redactor,
    /// Whether Codex may go on with a goal of the thread that was not told of.
    pub(super) may_have_goal: bool,
    /// Turns that were stopped before it because they were nobody's.
    pub(super) stopped: Vec<String>,
    /// What was told of MCP servers before it.
    pub(super) mcp_servers: Vec<McpServerStatus>,
}

/// What was ended of the commands that a turn left running.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EndedCommands {
    /// The command lines of those that Codex ended.
    pub(super) commands: Vec<String>,
    /// How many processes were killed besides.
    pub(super) killed: usize,
}

/// What is kept of a thread for its next turn.
#[derive(Debug, PartialEq)]
pub(super) struct Kept {
    /// Whether Codex was seen to work on the turn.
    pub(super) has_begun: bool,
    /// What Codex said last that it uses; `None` where that was not what was asked.
    pub(super) in_force: Option<Settings>,
    /// The thread's counts, where they are known.
    pub(super) usage: Option<Usage>,
}

/// The machine of one turn.
#[derive(Debug)]
pub(super) struct Machine {
    terms: Terms,
    clocks: Clocks,
    steering: Steering,
    questions: Questions,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waiting,
    Opening { attempt: u32 },
    Starting(Box<Starting>),
    Live(Box<Live>),
    Over,
}

/// What a stage works with for one input.
struct Step<'a> {
    now: Instant,
    terms: &'a Terms,
    clocks: &'a mut Clocks,
    steering: &'a mut Steering,
    questions: &'a mut Questions,
    acts: &'a mut Vec<Act>,
}

/// What follows upon an input.
#[derive(Debug)]
enum Next {
    Stay,
    Stage(Stage),
    End(Outcome),
}

impl Step<'_> {
    /// How a turn ends that had to stop for this.
    fn stopped(&self, cause: Cause, counts: Counts, side_effects_possible: bool) -> Outcome {
        outcome::stopped(cause, self.terms, self.clocks, counts, side_effects_possible)
    }

    /// Says no to a question that comes when none is expected.
    fn decline(&mut self, call: Call) -> Next {
        self.acts.push(Act::Decline(call));
        Next::Stay
    }
}

impl Terms {
    pub(super) fn new(root: &str, request: &TurnRequest, grace: Duration, jitter: f64) -> Terms {
        Terms {
            root: root.to_owned(),
            is_ephemeral: request.ephemeral,
            is_review: matches!(request.work, Work::Review(_)),
            takes_no_input: match request.work {
                Work::Inputs => None,
                Work::Review(_) => Some("it is a review, which takes no input"),
                Work::Compact => Some("it is a compaction, which takes no input"),
            },
            include_raw_events: request.include_raw_events,
            omit_final_response: request.turn_options.omit_final_response,
            max_total_tokens: request.turn_options.max_total_tokens,
            grace,
            jitter,
        }
    }
}

impl Machine {
    /// The machine of a turn that waits.
    pub(super) fn new(terms: Terms, clocks: Clocks) -> Machine {
        let (steering, questions) = (Steering::default(), Questions::default());
        Machine { terms, clocks, steering, questions, stage: Stage::Waiting }
    }

    /// Takes in what happens, and adds what is to be done.
    pub(super) fn on(&mut self, input: Input, now: Instant, acts: &mut Vec<Act>) {
        let Machine { terms, clocks, steering, questions, stage } = self;
        let mut step = Step { now, terms, clocks, steering, questions, acts };
        let input = match input {
            // What is over has said its last word.
            _ if matches!(stage, Stage::Over) => return,
            Input::Steer(to) => {
                let nowhere = step.terms.takes_no_input.map(Target::Nowhere);
                let target = nowhere.unwrap_or_else(|| target(stage));
                return step.steering.take(to, &target, step.acts);
            }
            Input::Steered(to, ref outcome) => {
                step.steering.note_steered(to, outcome, step.acts);
                input
            }
            Input::Answer { to, request_id, given } => {
                step.questions.answer(to, &request_id, *given, step.acts);
                step.clocks.let_idle_stand(step.questions.are_pending(), now);
                return;
            }
            // Like a clock that strikes.
            Input::Stop(reason) => {
                step.clocks.ask_to_stop(reason);
                Input::Tick
            }
            input => input,
        };
        let next = match stage {
            Stage::Waiting => opening::on_waiting(input, &mut step),
            Stage::Opening { attempt } => opening::on(*attempt, input, &mut step),
            Stage::Starting(starting) => starting.on(input, &mut step),
            Stage::Live(live) => live.on(input, &mut step),
            Stage::Over => Next::Stay,
        };
        match next {
            Next::Stay => {}
            Next::Stage(next) => {
                *stage = next;
                steering.let_go(&target(stage), acts);
            }
            Next::End(outcome) => {
                *stage = Stage::Over;
                steering.end(acts);
                acts.push(Act::End(outcome));
            }
        }
    }

    /// What became of Codex's questions, for those who answer late.
    pub(super) fn into_record(self) -> Record {
        self.questions.into_record()
    }

    /// When it wants to be told the time, if nothing else happens.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting | Stage::Over => None,
            Stage::Opening { .. } => self.clocks.next(),
            Stage::Starting(starting) => starting.wake_at(&self.clocks),
            Stage::Live(live) => live.wake_at(&self.clocks, &self.questions),
        }
    }

    /// Whether it wants to be told what Codex says now.
    pub(super) fn listens(&self) -> bool {
        matches!(&self.stage, Stage::Live(live) if live.listens())
    }

    /// Whether the turn waits in its queue.
    pub(super) fn waits(&self) -> bool {
        matches!(self.stage, Stage::Waiting)
    }
}

/// Where input for the turn goes now.
fn target(stage: &Stage) -> Target<'_> {
    match stage {
        Stage::Waiting => Target::Nowhere("it waits in its queue"),
        Stage::Opening { .. } | Stage::Starting(_) => Target::Later,
        Stage::Live(live) => live.target(),
        Stage::Over => Target::Nowhere(HAS_ENDED),
    }
}
