//! Random schedules of everything that may happen to a turn, nonsense included: late results, doubled
//! ones, news of turns that nobody knows. Whatever the order, the promises of the README hold.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::app_server::message::{CallId, SkippedLine};
use crate::app_server::protected::ProtectedPaths;
use crate::model::event::RequestResolved;
use crate::model::failure::TurnError;
use crate::model::question::{ApprovalAnswer, ApprovalDecision, Resolution, ToolCallAnswer};

#[derive(Debug, Clone)]
enum Step {
    Queue(u32),
    Admit,
    /// Something that was begun comes to an end, in one way or another.
    Finish(Index, u8),
    /// A result that nobody asked for.
    Stray(u8),
    Tell(u8, u8),
    /// A question of a kind, asked of the caller or not.
    Ask(u8, bool),
    Answer(u8, u8),
    Skip(u8),
    LoseWorker,
    Stop,
    Steer,
    Later(u64),
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0_u32..4).prop_map(Step::Queue),
        6 => Just(Step::Admit),
        30 => (any::<Index>(), 0_u8..8).prop_map(|(which, how)| Step::Finish(which, how)),
        2 => (0_u8..12).prop_map(Step::Stray),
        20 => (0_u8..14, 0_u8..4).prop_map(|(what, whose)| Step::Tell(what, whose)),
        6 => (0_u8..3, any::<bool>()).prop_map(|(kind, is_asked)| Step::Ask(kind, is_asked)),
        6 => (0_u8..6, 0_u8..4).prop_map(|(id, what)| Step::Answer(id, what)),
        1 => (0_u8..4).prop_map(Step::Skip),
        1 => Just(Step::LoseWorker),
        2 => Just(Step::Stop),
        3 => Just(Step::Steer),
        4 => (0_u64..3000).prop_map(Step::Later),
        2 => Just(Step::Tick),
    ]
}

/// All that is around a turn.
struct World {
    sim: Sim,
    // What was begun and has not come to an end.
    under_way: Vec<Act>,
    // Codex's turns that run as far as was told, by thread.
    running: BTreeMap<&'static str, String>,
    turns: u32,
    calls: u64,
    asks: u64,
    // What was asked, by id less one, and answered.
    kinds: Vec<u8>,
    answered: BTreeMap<u8, u8>,
    // Whether the machine has to be told nothing more of the worker.
    is_lost: bool,
    gave_up: bool,
    seen: Seen,
}

/// What the machine has done, held to the rules.
#[derive(Default)]
struct Seen {
    ends: u32,
    thread_started: bool,
    turn_started: u32,
    pending: HashSet<String>,
    raised: HashSet<String>,
    // Calls of Codex's that want an answer, and that had one.
    calls: Vec<(Call, u32)>,
    asked: HashSet<ReplyTo>,
    used: Usage,
}

impl Seen {
    fn note(&mut self, act: &Act) {
        assert_eq!(self.ends, 0, "after the end: {act:#?}");
        match act {
            Act::Tell(event) => self.note_event(event),
            Act::Decline(call) => self.note_answer(call),
            Act::Answer(call, _) => self.note_answer(call),
            Act::ReplySteered { to, .. } | Act::ReplyAnswered { to, .. } => {
                assert!(self.asked.remove(to), "{to:?} is told twice, or was never asked");
            }
            Act::End(outcome) => {
                self.ends += 1;
                assert!(self.pending.is_empty(), "unresolved: {:?}", self.pending);
                assert!(self.asked.is_empty(), "unanswered: {:?}", self.asked);
                match outcome {
                    Outcome::Completed { usage, .. }
                    | Outcome::Failed { usage, .. }
                    | Outcome::Interrupted { usage, .. } => self.note_usage(*usage),
                    Outcome::Refused(_) => assert!(!self.thread_started, "refused after it began"),
                }
            }
            _ => {}
        }
    }

    fn note_event(&mut self, event: &Event) {
        assert!(!event.is_terminal(), "an end that is none: {event:#?}");
        match event {
            Event::Queued(_) => assert!(!self.thread_started),
            Event::ThreadStarted(_) => {
                assert!(!self.thread_started, "twice");
                self.thread_started = true;
            }
            event => {
                assert!(self.thread_started, "before thread_started: {event:#?}");
                match event {
                    Event::TurnStarted(_) => self.turn_started += 1,
                    Event::Warning(_) | Event::McpServerStatus(_) => {}
                    event => assert!(self.turn_started > 0, "before turn_started: {event:#?}"),
                }
            }
        }
        match event {
            Event::RequestRaised(told) => {
                let id = told.request.as_ref().unwrap().request_id.clone();
                assert!(self.raised.insert(id.clone()), "raised twice: {id}");
                self.pending.insert(id);
            }
            Event::RequestResolved(RequestResolved { request_id, resolution, .. }) => {
                assert_ne!(*resolution, i32::from(Resolution::Unspecified));
                assert!(self.pending.remove(request_id), "resolved twice: {request_id}");
            }
            Event::TokenUsageUpdated(told) => self.note_usage(told.usage.unwrap()),
            _ => {}
        }
    }

    fn note_answer(&mut self, call: &Call) {
        let asked = self.calls.iter_mut().find(|(asked, _)| asked == call);
        let (_, answers) = asked.expect("a question of Codex's");
        *answers += 1;
        assert_eq!(*answers, 1, "answered twice");
    }

    fn note_usage(&mut self, usage: Usage) {
        assert_eq!(self.used.since(usage), Usage::default(), "{usage:?} after {:?}", self.used);
        self.used = usage;
    }
}

fn question_of(kind: u8) -> QuestionKind {
    match kind {
        0 => QuestionKind::ToolCall(ToolCall::default()),
        1 => QuestionKind::FileChangeApproval(Default::default()),
        _ => QuestionKind::UserQuestions(Default::default()),
    }
}

/// An answer that fits the question of the same number; the last one fits none.
fn answer_of(what: u8) -> Answer {
    match what {
        0 => Answer::ToolCall(ToolCallAnswer::default()),
        1 => {
            let decision = ApprovalDecision::AcceptForSession.into();
            Answer::Approval(ApprovalAnswer { decision, ..Default::default() })
        }
        2 => Answer::UserQuestions(Default::default()),
        _ => Answer::Approval(ApprovalAnswer::default()),
    }
}

const THREADS: [&str; 4] = [THREAD, "child", "grandchild", THREAD];

impl World {
    fn new(turn: Option<u64>, idle: Option<u64>, budget: Option<u64>, ephemeral: bool) -> World {
        let sim = Sim::new(|request| {
            let options = &mut request.turn_options;
            options.turn_timeout = turn.map(Duration::from_millis);
            options.idle_timeout = idle.map(Duration::from_millis);
            options.max_total_tokens = budget.and_then(NonZeroU64::new);
            request.ephemeral = ephemeral;
        });
        World {
            sim,
            under_way: Vec::new(),
            running: BTreeMap::new(),
            turns: 0,
            calls: 0,
            asks: 0,
            kinds: Vec::new(),
            answered: BTreeMap::new(),
            is_lost: false,
            gave_up: false,
            seen: Seen::default(),
        }
    }

    fn on(&mut self, input: Input) {
        let acts = self.sim.on(input);
        self.note(acts);
    }

    fn later(&mut self, time: Duration) {
        // The driver tells the time when the machine wants it, and acts come between.
        let until = self.sim.now + time;
        while let Some(at) = self.sim.machine.wake_at().filter(|at| *at <= until) {
            let acts = self.sim.later(at.saturating_duration_since(self.sim.now));
            self.note(acts);
        }
        self.sim.now = until;
    }

    fn note(&mut self, acts: Vec<Act>) {
        for act in acts {
            self.seen.note(&act);
            match &act {
                Act::Tell(Event::TurnStarted(told)) => {
                    self.running.insert(THREAD, told.codex_turn_id.clone());
                }
                Act::GiveUp | Act::Kill(_) => self.gave_up = true,
                Act::Open { .. } => {
                    // Another thread, or the same on another worker.
                    self.under_way.clear();
                    (self.is_lost, self.gave_up) = (false, false);
                }
                Act::End(Outcome::Refused(_)) => {}
                Act::End(outcome) => {
                    let may_run = self.is_lost || self.gave_up;
                    assert!(may_run || self.running.is_empty(), "{:?}: {outcome:#?}", self.running);
                    let leaves = |act: &Act| matches!(act, Act::EndCommands(_) | Act::GiveUp);
                    assert!(self.is_lost || !self.under_way.iter().any(leaves), "{outcome:#?}");
                }
                _ => {}
            }
            let comes_to_an_end = matches!(
                act,
                Act::Open { .. }
                    | Act::Quiet
                    | Act::Start
                    | Act::EndForeign { .. }
                    | Act::Steer { .. }
                    | Act::ClearGoals { .. }
                    | Act::SeeGoals { .. }
                    | Act::EndCommands(_)
                    | Act::LookForAnswer { .. }
                    | Act::GiveUp
                    | Act::Kill(_)
                    | Act::Forget { .. }
            );
            if comes_to_an_end {
                self.under_way.push(act);
            }
        }
        self.assert_that_it_waits_for_something();
    }

    /// Nothing waits for nothing.
    fn assert_that_it_waits_for_something(&self) {
        let machine = &self.sim.machine;
        let waits = self.sim.is_over()
            || machine.waits()
            || machine.listens()
            || machine.wake_at().is_some()
            || !self.under_way.is_empty();
        assert!(waits, "{machine:#?}");
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Queue(position) => self.on(Input::Queued(position)),
            Step::Admit => self.on(Input::Admitted),
            Step::Finish(which, how) if !self.under_way.is_empty() => {
                let act = self.under_way.remove(which.index(self.under_way.len()));
                self.finish(act, how);
            }
            Step::Finish(..) => {}
            Step::Stray(what) => self.stray(what),
            Step::Tell(what, whose) => self.tell(what, whose),
            Step::Ask(kind, is_asked) => self.ask(kind, is_asked),
            Step::Answer(id, what) => self.answer(id, what),
            Step::Skip(what) => self.skip(what),
            // Nothing is heard of a worker before there is one.
            Step::LoseWorker if self.sim.machine.listens() => {
                self.is_lost = true;
                self.on(Input::WorkerLost(exit()));
            }
            Step::LoseWorker => {}
            Step::Stop => self.on(Input::Stop(InterruptReason::InterruptRequested)),
            Step::Steer => {
                let to = self.next_ask();
                self.on(Input::Steer(to));
            }
            Step::Later(millis) => self.later(Duration::from_millis(millis)),
            Step::Tick => self.on(Input::Tick),
        }
    }

    fn next_ask(&mut self) -> ReplyTo {
        self.asks += 1;
        let to = ReplyTo(self.asks);
        if !self.sim.is_over() {
            self.seen.asked.insert(to);
        }
        to
    }

    fn finish(&mut self, act: Act, how: u8) {
        let goes_well = how > 1;
        let lost = |written| ThreadError::Lost { cause: "lost".to_owned(), written };
        let input = match act {
            Act::Open { .. } => Input::Opened(match how {
                0 => Err(OpenError::Lost("lost".to_owned())),
                1 => Err(OpenError::Refused(Refusal::ContextBusy)),
                _ => Ok(opened()),
            }),
            Act::Quiet if how == 0 => Input::Quieted(Err("it goes on".to_owned())),
            Act::Quiet => Input::Quieted(Ok(())),
            Act::Start => Input::Started(match how {
                0 => Err(lost(false)),
                1 => Err(lost(true)),
                2 => Err(ThreadError::Steered("foreign".to_owned())),
                3 => Err(ThreadError::Overloaded("busy".to_owned())),
                4 => Err(ThreadError::Unreadable("garbled".to_owned())),
                _ => Ok(self.begun(how)),
            }),
            Act::EndForeign { .. } => Input::ForeignEnded(goes_well),
            Act::Steer { to, .. } if goes_well => Input::Steered(to, Ok(())),
            Act::Steer { to, .. } => Input::Steered(to, Err("no".to_owned())),
            Act::ClearGoals { threads, .. } if goes_well => Input::GoalsCleared(threads),
            Act::ClearGoals { .. } => Input::GoalsCleared(Vec::new()),
            Act::SeeGoals { .. } => Input::GoalsSeen(how == 0),
            Act::EndCommands(_) => Input::CommandsEnded(EndedCommands {
                commands: if goes_well { vec!["sleep".to_owned()] } else { Vec::new() },
                killed: usize::from(how),
            }),
            Act::LookForAnswer { .. } => Input::HadNoAnswer(goes_well),
            Act::GiveUp => Input::GivenUp,
            Act::Kill(_) => Input::WorkerLost(exit()),
            Act::Forget { .. } => Input::Forgotten,
            act => unreachable!("{act:?}"),
        };
        self.on(input);
    }

    fn begun(&self, how: u8) -> Begun {
        Begun {
            codex_turn_id: format!("turn-{}", self.turns),
            // One that lets nothing pass.
            gate: Gate::new(Settings::in_directory("/w"), None, how == 7),
            usage: (how == 6).then(|| tokens(50)),
            may_have_goal: how == 6,
            stopped: vec!["foreign".to_owned()],
            ..begun()
        }
    }

    fn stray(&mut self, what: u8) {
        if what == 7 && self.under_way.iter().any(|act| matches!(act, Act::EndCommands(_))) {
            return;
        }
        self.on(match what {
            0 => Input::Opened(Err(OpenError::Lost("stray".to_owned()))),
            1 => Input::Quieted(Ok(())),
            2 => Input::Started(Err(ThreadError::Refused("stray".to_owned()))),
            3 => Input::ForeignEnded(true),
            4 => Input::Steered(ReplyTo(1), Ok(())),
            5 => Input::GoalsCleared(vec![thread(THREAD)]),
            6 => Input::GoalsSeen(true),
            7 => Input::CommandsEnded(EndedCommands::default()),
            8 => Input::HadNoAnswer(true),
            9 => Input::Forgotten,
            10 => Input::Queued(1),
            // What gives a thread up is told by nobody else.
            _ => Input::Admitted,
        });
    }

    fn tell(&mut self, what: u8, whose: u8) {
        let thread_id = THREADS[usize::from(whose)];
        let current = self.running.get(thread_id).cloned();
        let heard = self.sim.machine.listens();
        let of = |news| Told::of(thread_id, current.as_deref(), news);
        let input = match what {
            0 | 1 => {
                // Codex begins one turn after the other on a thread.
                if current.is_some() {
                    return;
                }
                self.turns += 1;
                let turn_id = format!("turn-{}", self.turns);
                if heard && thread_id != THREAD {
                    self.running.insert(thread_id, turn_id.clone());
                }
                Told::of(thread_id, Some(&turn_id), begins_below(ROOT))
            }
            2..=4 => {
                let Some(current) = &current else { return };
                let end = match what {
                    2 => TurnEnd::Completed,
                    3 => TurnEnd::Interrupted,
                    _ => TurnEnd::Failed(TurnError::new(FailureReason::CodexError, "no")),
                };
                let ended = Told::of(thread_id, Some(current), News::TurnEnded(end));
                if heard {
                    self.running.remove(thread_id);
                }
                ended
            }
            // Of a turn of the thread that nobody knows.
            5 => Told::of(THREAD, Some("unknown"), News::TurnEnded(TurnEnd::Completed)),
            6 => Told::of(thread_id, None, News::Goal { is_active: true }),
            7 => Told::of(thread_id, None, News::Goal { is_active: false }),
            8 => of(usage(u64::from(self.turns) * 37 % 100 + self.calls * 60, 10)),
            9 => of(News::Event(Event::item_started(command("c")))),
            10 => of(News::Event(Event::item_completed(command("c")))),
            11 => of(super::says("words")),
            12 => {
                self.calls += 1;
                let error = TurnError::new(FailureReason::CodexError, "half-way");
                of(News::Event(Event::thread_error(error, whose == 0)))
            }
            _ => {
                if heard {
                    // One that is taken back needs no answer.
                    let taken_back = call_id(self.calls);
                    self.seen.calls.retain(|(asked, _)| *asked != taken_back);
                }
                of(News::RequestResolved(CallId::new(self.calls)))
            }
        };
        self.on(Input::Told(input));
    }

    fn ask(&mut self, kind: u8, is_asked: bool) {
        // Before, there is no thread to ask of.
        if !matches!(self.sim.machine.stage, Stage::Starting(_) | Stage::Live(_)) {
            return;
        }
        self.calls += 1;
        self.seen.calls.push((call_id(self.calls), 0));
        let policy = match is_asked {
            true => Policy::Ask {
                until: None,
                within: SECOND,
                most_bytes: 1 << 20,
                protected: ProtectedPaths::default(),
            },
            false => Policy::Decline,
        };
        let question = Question::new(None, question_of(kind));
        let asked = Asked { question, ..tool_call(self.calls) };
        let before = self.seen.raised.len();
        self.on(Input::Asked(asked, policy));
        // One that is not told of has no id.
        if self.seen.raised.len() > before {
            self.kinds.push(kind);
        }
    }

    fn answer(&mut self, id: u8, what: u8) {
        let (to, request_id) = (self.next_ask(), id.to_string());
        let is_over = self.sim.is_over();
        let is_raised = self.seen.raised.contains(&request_id);
        let waits = self.seen.pending.contains(&request_id);
        let fits = self.kinds.get(usize::from(id).wrapping_sub(1)) == Some(&what);
        let given = Box::new(Given::new(answer_of(what), CallerName::default()));
        let acts = self.sim.on(Input::Answer { to, request_id: request_id.clone(), given });
        if !is_over {
            let Some(Act::ReplyAnswered { outcome, .. }) = acts.last() else { panic!("{acts:#?}") };
            let is_the_same = self.answered.get(&id) == Some(&what);
            match outcome {
                Ok(()) => assert!((waits && fits) || (!waits && is_the_same)),
                Err(Unanswerable::Unfit(_)) => assert!(waits && !fits),
                Err(Unanswerable::Denied(denied)) => panic!("nothing is protected: {denied:?}"),
                Err(Unanswerable::Resolved) => assert!(is_raised && !waits && !is_the_same),
                Err(Unanswerable::Unknown) => assert!(!is_raised),
            }
            if waits && fits {
                self.answered.insert(id, what);
                assert!(matches!(acts[..], [Act::Answer(..), Act::Tell(_), _]), "{acts:#?}");
            } else {
                assert_eq!(acts.len(), 1, "{acts:#?}");
            }
        }
        self.note(acts);
    }

    fn skip(&mut self, what: u8) {
        let ends = what == 0;
        if ends && self.sim.machine.listens() {
            self.running.remove(THREAD);
        }
        let method = if ends { "turn/completed" } else { "item/started" };
        self.on(Input::Skipped(Arc::new(SkippedLine {
            method: (what < 3).then(|| method.to_owned()),
            thread_id: (what < 3).then(|| THREAD.to_owned()),
            item_type: Some("commandExecution".to_owned()),
            item_id: Some("lost".to_owned()),
            ..Default::default()
        })));
    }

    /// Codex takes the turn at once.
    fn take(&mut self, how: u8) {
        self.on(Input::Admitted);
        while let Some(act) = self.under_way.pop() {
            self.finish(act, how);
        }
    }

    /// Stops the turn, whatever it does, with a Codex that tells nothing more.
    fn end(&mut self) {
        // One that waits is stopped there.
        self.on(Input::Stop(InterruptReason::Draining));
        let stopped_at = self.sim.now;
        let mut steps = 0;
        while !self.sim.is_over() {
            steps += 1;
            assert!(steps < 100, "{:#?}", self.sim.machine);
            if self.under_way.is_empty() {
                let at = self.sim.machine.wake_at().expect("an end in time");
                self.later(at.saturating_duration_since(self.sim.now));
            } else {
                // All that was begun comes to an end, at once and well.
                let act = self.under_way.remove(0);
                self.finish(act, 6);
            }
        }
        // Once for what runs, once for the goals that are left, once for input that is under way; and
        // what is told late of commands.
        let most = 3 * GRACE + SECOND;
        assert!(self.sim.now <= stopped_at + most, "{:?}", self.sim.now - stopped_at);
        assert_eq!(self.seen.ends, 1);
        let unanswered = self.seen.calls.iter().any(|(_, answers)| *answers == 0);
        assert!(self.is_lost || !unanswered, "{:?}", self.seen.calls);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_to_a_turn_its_promises_hold(
        steps in prop::collection::vec(step(), 1..120),
        turn in prop::option::of(1_u64..20_000),
        idle in prop::option::of(1_u64..5_000),
        budget in prop::option::of(1_u64..200),
        ephemeral in any::<bool>(),
        // How Codex takes the turn, where that is not left to the schedule.
        taken in prop::option::weighted(0.8, 5_u8..8),
    ) {
        let mut world = World::new(turn, idle, budget, ephemeral);
        if let Some(how) = taken {
            world.take(how);
        }
        for step in steps {
            world.play(step);
        }
        world.end();
        // Over is over.
        for step in [Step::Stop, Step::Tick, Step::Stray(0), Step::LoseWorker, Step::Later(10_000)] {
            world.play(step);
        }
        prop_assert_eq!(world.sim.machine.wake_at(), None);
    }
}
