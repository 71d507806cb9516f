//! The machine of a turn, told what happens by hand: no process, no task, no time but that which is
//! fed.

mod living;
mod opening;
mod questions;
mod schedules;
mod starting;
mod stopping;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::app_server::decode::{News, Scope, TurnEnd};
use crate::model::event::{ThreadOrigin, WarningCode};
use crate::model::failure::FailureReason;
use crate::model::id::CallerName;
use crate::model::item::{AgentMessage, CommandExecution, Item, ItemKind};
use crate::model::question::{Question, QuestionKind, ToolCall};

const GRACE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
/// How long a command may be silent.
const TOOL: Duration = Duration::from_secs(3600);

const THREAD: &str = "thread";
const ROOT: &str = "root";
/// Codex's first turn.
const FIRST: &str = "first";

/// A machine and the time.
pub(super) struct Sim {
    pub(super) machine: Machine,
    pub(super) now: Instant,
}

impl Sim {
    /// A turn that waits.
    pub(super) fn new(change: impl FnOnce(&mut TurnRequest)) -> Sim {
        let mut request = TurnRequest::default();
        change(&mut request);
        let terms = Terms::new(ROOT, &request, GRACE, 1.0);
        let machine = Machine::new(terms, Clocks::new(&request.turn_options, Some(TOOL)));
        Sim { machine, now: Instant::now() }
    }

    /// One whose thread is being opened.
    fn opening(change: impl FnOnce(&mut TurnRequest)) -> Sim {
        let mut sim = Sim::new(change);
        assert_eq!(sim.on(Input::Admitted), [Act::Open { after: None }]);
        sim
    }

    /// One that has a thread on which something may run.
    fn quieting(change: impl FnOnce(&mut TurnRequest)) -> Sim {
        let mut sim = Sim::opening(change);
        assert_eq!(sim.on(Input::Opened(Ok(opened()))), [Act::Quiet]);
        sim
    }

    /// One that Codex is being told of.
    fn telling(change: impl FnOnce(&mut TurnRequest)) -> Sim {
        let mut sim = Sim::quieting(change);
        assert_eq!(sim.on(Input::Quieted(Ok(()))), [Act::Start]);
        sim
    }

    /// One that Codex has taken.
    fn live(change: impl FnOnce(&mut TurnRequest)) -> Sim {
        let mut sim = Sim::telling(change);
        let acts = introduced_then([Act::Tell(Event::turn_started(FIRST, None))]);
        assert_eq!(sim.on(Input::Started(Ok(begun()))), acts);
        assert!(sim.machine.listens());
        sim
    }

    pub(super) fn on(&mut self, input: Input) -> Vec<Act> {
        let mut acts = Vec::new();
        self.machine.on(input, self.now, &mut acts);
        acts
    }

    /// Lets the time go on, and tells it whenever the machine wants to be told.
    pub(super) fn later(&mut self, time: Duration) -> Vec<Act> {
        let until = self.now + time;
        let mut acts = Vec::new();
        while let Some(at) = self.machine.wake_at().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            acts.extend(self.on(Input::Tick));
            let next = self.machine.wake_at();
            assert!(next.is_none_or(|next| next > self.now), "it looks at the same moment again");
        }
        self.now = until;
        acts
    }

    /// Codex tells something of its first turn.
    fn tell(&mut self, news: News) -> Vec<Act> {
        self.tell_of(THREAD, Some(FIRST), news)
    }

    fn tell_of(&mut self, thread_id: &str, turn_id: Option<&str>, news: News) -> Vec<Act> {
        self.on(Input::Told(Told::of(thread_id, turn_id, news)))
    }

    fn begins(&mut self, thread_id: &str, turn_id: &str) -> Vec<Act> {
        self.tell_of(thread_id, Some(turn_id), begins_below(ROOT))
    }

    fn goal(&mut self, thread_id: &str, is_active: bool) -> Vec<Act> {
        self.tell_of(thread_id, None, News::Goal { is_active })
    }

    /// Codex says that it has ended its turn well.
    fn complete(&mut self) -> Vec<Act> {
        self.tell(News::TurnEnded(TurnEnd::Completed))
    }

    fn lose_worker(&mut self) -> Vec<Act> {
        self.on(Input::WorkerLost(exit()))
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.machine.stage, Stage::Over)
    }
}

/// A turn begins in the chain of work that began with this one.
pub(super) fn begins_below(root: &str) -> News {
    News::TurnStarted { root_turn_id: Some(root.to_owned()) }
}

fn opened() -> Opened {
    let warnings = vec![Event::warning(WarningCode::Config, "of the opening", "")];
    Opened { thread_id: thread(THREAD), origin: ThreadOrigin::Resumed, eviction: None, warnings }
}

pub(super) fn begun() -> Begun {
    Begun {
        codex_turn_id: FIRST.to_owned(),
        settings: None,
        gate: Gate::new(Settings::in_directory("/w"), None, false),
        usage: Some(tokens(100)),
        redactor: Redactor::default(),
        may_have_goal: false,
        stopped: Vec::new(),
        mcp_servers: Vec::new(),
    }
}

/// What is done when Codex may have seen the turn.
fn introduced() -> Vec<Act> {
    introduced_then([])
}

fn introduced_then<const N: usize>(then: [Act; N]) -> Vec<Act> {
    let warning = Event::warning(WarningCode::Config, "of the opening", "");
    let thread_started = Event::thread_started(THREAD, ThreadOrigin::Resumed);
    let first = [Act::Bind, Act::NoteTurn, Act::Tell(thread_started), Act::Tell(warning)];
    first.into_iter().chain(then).collect()
}

fn thread(id: &str) -> ThreadId {
    ThreadId::from_codex(id.to_owned())
}

pub(super) fn tokens(input_tokens: u64) -> Usage {
    Usage { input_tokens, ..Usage::default() }
}

pub(super) fn usage(total: u64, last: u64) -> News {
    News::TokenUsage { total: tokens(total), last: tokens(last), model_context_window: None }
}

pub(super) fn exit() -> Arc<WorkerExit> {
    Arc::new(WorkerExit { cause: "exit status 3".to_owned(), stderr_tail: Vec::new() })
}

fn says(text: &str) -> News {
    let message = AgentMessage { text: text.to_owned(), phase: String::new() };
    News::Event(Event::item_completed(Item::new("m", ItemKind::AgentMessage(message))))
}

pub(super) fn command(id: &str) -> Item {
    let command = CommandExecution { command: "sleep".to_owned(), ..Default::default() };
    Item::new(id, ItemKind::CommandExecution(command))
}

/// A call of a lent function, under this name of Codex's.
pub(super) fn tool_call(call: u64) -> Asked {
    let kind = QuestionKind::ToolCall(ToolCall { tool: "lookup".to_owned(), ..Default::default() });
    let (scope, question) = (Scope::default(), Question::new(None, kind));
    Asked { scope, call: call_id(call), question, bytes: 0 }
}

pub(super) fn call_id(call: u64) -> Call {
    Call::new(call, "call")
}

/// What is kept of the thread where nothing was used.
fn kept(has_begun: bool) -> Act {
    Act::Keep(Kept { has_begun, in_force: None, usage: Some(tokens(100)) })
}

/// The end of a turn that Codex ended well without a word.
fn completed(final_response: &str) -> Act {
    let (usage, thread_usage) = (Usage::default(), tokens(100));
    let final_response = final_response.to_owned();
    Act::End(Outcome::Completed { final_response, usage, thread_usage })
}

fn interrupted(reason: InterruptReason, thread_usage: Usage) -> Act {
    Act::End(Outcome::Interrupted { reason, usage: Usage::default(), thread_usage })
}

const NO_WORDS: &str = "Codex task completed with inputs.";

/// The warning of a turn that was silent for so long, and may be for so long.
fn silent(silent: &str, most: &str) -> Act {
    let message = format!("the turn has made no progress for {silent}; after {most} it is stopped");
    Act::Tell(Event::warning(WarningCode::NoProgress, message, ""))
}

/// The failure with which a turn ends.
fn failure(acts: &[Act]) -> &crate::model::failure::TurnError {
    match acts.last() {
        Some(Act::End(Outcome::Failed { error, .. })) => error,
        _ => panic!("{acts:#?}"),
    }
}

fn interrupts(turn_id: &str) -> Act {
    interrupts_on(THREAD, turn_id)
}

fn interrupts_on(thread_id: &str, turn_id: &str) -> Act {
    Act::Interrupt { thread_id: thread(thread_id), codex_turn_id: turn_id.to_owned() }
}
