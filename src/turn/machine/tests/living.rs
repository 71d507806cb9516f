//! A turn that Codex works on.

use super::*;
use crate::app_server::message::SkippedLine;
use crate::model::event::{AgentMessageDelta, ThreadError as ToldError, TokenUsageUpdated};
use crate::model::failure::TurnError;
use crate::model::item::{
    SubAgent, SubAgentAction, SubAgentPhase, SubAgentState, SubAgentStatus, TodoItem, TodoList,
    TodoStatus, UserMessage,
};

fn item_events(acts: &[Act]) -> Vec<&Item> {
    let events = acts.iter().filter_map(|act| match act {
        Act::Tell(Event::ItemStarted(told)) => told.item.as_ref(),
        Act::Tell(Event::ItemUpdated(told)) => told.item.as_ref(),
        Act::Tell(Event::ItemCompleted(told)) => told.item.as_ref(),
        _ => None,
    });
    events.collect()
}

#[test]
fn a_turn_that_codex_ends_well_says_what_was_said_last() {
    let mut sim = Sim::live(|_| {});
    sim.tell(says("first"));
    assert_eq!(sim.tell(says("last")).len(), 1);
    assert_eq!(sim.complete(), [Act::NoteCompleted, kept(false), completed("last")]);

    let mut sim = Sim::live(|request| request.turn_options.omit_final_response = true);
    sim.tell(says("last"));
    assert_eq!(sim.complete().last(), Some(&completed("")));
    let mut sim = Sim::live(|_| {});
    assert_eq!(sim.complete(), [Act::NoteCompleted, kept(false), completed(NO_WORDS)]);
}

#[test]
fn an_end_of_another_turn_of_the_thread_is_none() {
    let mut sim = Sim::live(|_| {});
    let acts = sim.tell_of(THREAD, Some("earlier"), News::TurnEnded(TurnEnd::Completed));
    assert_eq!(acts, []);
    let begins = sim.tell_of(THREAD, Some("late"), begins_below("late"));
    assert_eq!(begins, [], "its begin is told late");
    // What it used is its own.
    assert_eq!(sim.tell_of(THREAD, Some("late"), usage(150, 50)), []);
    let used = TokenUsageUpdated {
        usage: Some(tokens(7)),
        thread_usage: Some(tokens(157)),
        last_request_usage: Some(tokens(7)),
        model_context_window: None,
    };
    assert_eq!(sim.tell(usage(157, 7)), [Act::Tell(Event::TokenUsageUpdated(used))]);
    assert_eq!(sim.tell(usage(157, 7)), [], "told twice");
}

#[test]
fn a_failure_is_looked_into_and_what_was_held_back_is_told_before_the_end() {
    let error = |message: &str| TurnError::new(FailureReason::CodexError, message);
    for (had_none, side_effects) in [(true, false), (false, true)] {
        let mut sim = Sim::live(|_| {});
        // An error that the end follows is held back until it is known what was done.
        let held = ToldError { error: Some(error("half-way")), will_retry: false };
        assert_eq!(sim.tell(News::Event(Event::ThreadError(held))), []);
        let acts = sim.tell(News::TurnEnded(TurnEnd::Failed(error("no"))));
        let look = Act::LookForAnswer { codex_turn_id: FIRST.to_owned() };
        assert_eq!(acts, [Act::NoteCompleted, look]);
        let acts = sim.on(Input::HadNoAnswer(had_none));
        let Act::Tell(Event::ThreadError(told)) = &acts[0] else { panic!("{acts:#?}") };
        let told = told.error.as_ref().unwrap();
        assert_eq!((told.message.as_str(), told.side_effects_possible), ("half-way", side_effects));
        assert_eq!(failure(&acts).side_effects_possible, side_effects);
        assert!(sim.is_over());
    }
    // What events tell needs no look.
    let mut sim = Sim::live(|_| {});
    sim.tell(News::Event(Event::item_started(Item::new(
        "i",
        ItemKind::Unknown(Default::default()),
    ))));
    let acts = sim.tell(News::TurnEnded(TurnEnd::Failed(error("no"))));
    assert!(failure(&acts).side_effects_possible);
}

#[test]
fn a_retry_is_told_and_is_no_progress() {
    let mut sim = Sim::live(|request| request.turn_options.idle_timeout = Some(3 * SECOND));
    let start = sim.now;
    assert_eq!(sim.later(2 * SECOND), [silent("1s 500ms", "3s")]);
    let retry = || ToldError { error: Some(TurnError::default()), will_retry: true };
    let acts = sim.tell(News::Event(Event::ThreadError(retry())));
    let Act::Tell(Event::ThreadError(told)) = &acts[0] else { panic!("{acts:#?}") };
    assert!(told.error.as_ref().unwrap().side_effects_possible);
    assert_eq!(sim.machine.wake_at(), Some(start + 3 * SECOND));
    // Nor is what another turn of the thread tells, nor what is of no turn.
    sim.tell_of(THREAD, Some("other"), says("x"));
    sim.tell_of(THREAD, None, says("x"));
    assert_eq!(sim.machine.wake_at(), Some(start + 3 * SECOND));
    sim.tell(says("x"));
    assert_eq!(sim.later(2 * SECOND), [silent("1s 500ms", "3s")]);
    assert_eq!(sim.machine.wake_at(), Some(start + 5 * SECOND));
}

#[test]
fn a_plan_is_one_item_from_its_first_word_to_the_turns_end() {
    let plan = |status| TodoList {
        items: vec![TodoItem::new("a".to_owned(), status)],
        explanation: String::new(),
    };
    let item = |status| Item::new("todo_list", ItemKind::TodoList(plan(status)));
    let mut sim = Sim::live(|_| {});
    let acts = sim.tell(News::Plan(plan(TodoStatus::Pending)));
    assert_eq!(acts, [Act::Tell(Event::item_started(item(TodoStatus::Pending)))]);
    let acts = sim.tell(News::Plan(plan(TodoStatus::Completed)));
    assert_eq!(acts, [Act::Tell(Event::item_updated(item(TodoStatus::Completed)))]);
    let acts = sim.complete();
    assert_eq!(acts[1], Act::Tell(Event::item_completed(item(TodoStatus::Completed))));
}

#[test]
fn raw_events_are_told_only_where_they_are_asked_for() {
    for asked in [false, true] {
        let mut sim = Sim::live(|request| request.include_raw_events = asked);
        assert_eq!(sim.tell(News::Other).len(), usize::from(asked));
        // All of a sub-agent's, whatever it is.
        let acts = sim.tell_of("child", Some("1"), says("x"));
        let raw = acts.iter().filter(|act| matches!(act, Act::Tell(Event::Raw(_))));
        assert_eq!(raw.count(), usize::from(asked), "{acts:#?}");
    }
}

#[test]
fn what_was_kept_of_a_text_is_told_when_it_is_final_and_at_the_end() {
    let mut sim = Sim::telling(|_| {});
    let redactor = Redactor::new(["sk-0123456789".to_owned()]);
    sim.on(Input::Started(Ok(Begun { redactor, ..begun() })));
    let delta = |item_id: &str, text: &str| {
        let (item_id, text) = (item_id.to_owned(), text.to_owned());
        Event::AgentMessageDelta(AgentMessageDelta { item_id, text })
    };
    let told = sim.tell(News::Event(delta("m", "it is sk-0")));
    assert_eq!(told, [Act::Tell(delta("m", "it is "))]);
    assert_eq!(sim.tell(News::Event(delta("n", "sk-01"))), []);
    let acts = sim.tell(says("it is sk-0"));
    assert_eq!(acts[0], Act::Tell(delta("m", "sk-0")));
    assert_eq!(sim.complete()[1], Act::Tell(delta("n", "sk-01")));
}

#[test]
fn a_turn_waits_for_its_sub_agents_and_counts_what_they_use() {
    let mut sim = Sim::live(|_| {});
    let state = SubAgentState { thread_id: "child".to_owned(), ..Default::default() };
    let spawn = SubAgent {
        action: SubAgentAction::Spawn.into(),
        tool: "spawnAgent".to_owned(),
        status: SubAgentStatus::Completed.into(),
        sender_thread_id: THREAD.to_owned(),
        agents: vec![state],
        ..Default::default()
    };
    let spawned = Item::new("call", ItemKind::SubAgent(spawn));
    sim.tell(News::Event(Event::item_completed(spawned)));
    assert_eq!(sim.complete(), [], "it may begin");
    assert_eq!(sim.machine.wake_at(), Some(sim.now + SECOND));
    let begins = sim.begins("child", "2");
    assert_eq!(item_events(&begins)[0].id, "2");
    assert_eq!(sim.machine.wake_at(), Some(sim.now + TOOL / 2));
    let hears = UserMessage {
        inputs: vec![crate::pb::UserInput {
            input: Some(crate::pb::user_input::Input::Text("do it".to_owned())),
        }],
    };
    let hears = Item::new("u", ItemKind::UserMessage(hears));
    sim.tell_of("child", Some("2"), News::Event(Event::item_completed(hears)));
    let acts = sim.tell_of("child", Some("2"), says("done"));
    let [item] = &item_events(&acts)[..] else { panic!("{acts:#?}") };
    let Some(ItemKind::SubAgent(agent)) = &item.kind else { panic!("{item:#?}") };
    assert_eq!((agent.prompt.as_str(), agent.agents[0].message.as_str()), ("do it", "done"));
    let acts = sim.tell_of("child", Some("2"), usage(30, 30));
    let Act::Tell(Event::TokenUsageUpdated(used)) = &acts[0] else { panic!("{acts:#?}") };
    assert_eq!((used.usage, used.thread_usage), (Some(tokens(30)), Some(tokens(100))));
    let warning = Event::warning(WarningCode::Codex, "careful", "");
    let acts = sim.tell_of("child", Some("2"), News::Event(warning.clone()));
    assert_eq!(acts, [Act::Tell(warning)]);
    let acts = sim.tell_of("child", Some("2"), News::TurnEnded(TurnEnd::Completed));
    let [item] = &item_events(&acts)[..] else { panic!("{acts:#?}") };
    let Some(ItemKind::SubAgent(agent)) = &item.kind else { panic!("{item:#?}") };
    assert_eq!(agent.agents[0].phase(), SubAgentPhase::Completed);
    let Some(Act::End(Outcome::Completed { usage, final_response, .. })) = acts.last() else {
        panic!("{acts:#?}")
    };
    assert_eq!((*usage, final_response.as_str()), (tokens(30), NO_WORDS));
}

#[test]
fn a_sub_agent_that_is_unloaded_is_waited_for_no_more() {
    let mut sim = Sim::live(|_| {});
    sim.begins("child", "2");
    assert_eq!(sim.complete(), []);
    let acts = sim.tell_of("child", None, News::ThreadUnloaded);
    assert_eq!(item_events(&acts).len(), 1);
    assert!(sim.is_over());
}

#[test]
fn a_sub_agent_that_does_not_begin_is_waited_for_a_second() {
    let mut sim = Sim::live(|_| {});
    sim.goal(THREAD, true);
    assert_eq!(sim.complete(), []);
    // A goal that Codex does not go on with is taken away.
    let clear = Act::ClearGoals { threads: vec![thread(THREAD)], ask_first: true };
    assert_eq!(sim.later(2 * SECOND), [clear]);
}

#[test]
fn continuations_of_a_goal_are_the_turns_own_until_the_goal_is_done() {
    let mut sim = Sim::live(|_| {});
    sim.goal(THREAD, true);
    sim.tell(says("one"));
    assert_eq!(sim.complete(), []);
    let begins = sim.begins(THREAD, "2");
    assert_eq!(begins, [Act::Tell(Event::turn_started("2", None))]);
    // Input is added to what runs now.
    let steer = Act::Steer { to: ReplyTo(1), codex_turn_id: "2".to_owned() };
    assert_eq!(sim.on(Input::Steer(ReplyTo(1))), [steer]);
    sim.on(Input::Steered(ReplyTo(1), Ok(())));
    sim.tell_of(THREAD, Some("2"), says("two"));
    sim.goal(THREAD, false);
    let acts = sim.tell_of(THREAD, Some("2"), News::TurnEnded(TurnEnd::Completed));
    assert_eq!(acts, [Act::NoteCompleted, kept(false), completed("two")]);
}

#[test]
fn a_lost_worker_fails_the_turn_whatever_it_did() {
    let mut sim = Sim::live(|request| request.ephemeral = true);
    let plan = TodoList { items: Vec::new(), explanation: String::new() };
    sim.tell(News::Plan(plan));
    sim.begins("child", "2");
    let acts = sim.lose_worker();
    let forget = Act::Forget { agents: vec![thread("child")] };
    assert!(matches!(acts[0], Act::Tell(Event::ItemCompleted(_))), "{acts:#?}");
    assert_eq!(acts[1..], [kept(false), forget]);
    assert_eq!(sim.lose_worker(), [], "it is lost once");
    let acts = sim.on(Input::Forgotten);
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::WorkerLost.as_str());
    assert!(error.retryable && error.side_effects_possible);
    assert!(error.message.contains("exit status 3"), "{error:#?}");
}

fn skipped(method: &str, turn_id: Option<&str>, kind: Option<&str>) -> Arc<SkippedLine> {
    Arc::new(SkippedLine {
        method: Some(method.to_owned()),
        thread_id: Some(THREAD.to_owned()),
        turn_id: turn_id.map(str::to_owned),
        item_id: Some("m".to_owned()),
        item_type: kind.map(str::to_owned),
        bytes: 9_000_000,
        limit: 8_388_608,
        ..Default::default()
    })
}

fn warned(acts: &[Act]) -> &str {
    match acts.first() {
        Some(Act::Tell(Event::Warning(warning))) => {
            assert_eq!(warning.code, WarningCode::LineSkipped.as_str());
            assert!(warning.message.contains("9000000 bytes"), "{warning:#?}");
            &warning.message
        }
        _ => panic!("{acts:#?}"),
    }
}

#[test]
fn a_lost_line_is_told_and_the_turn_goes_on() {
    let mut sim = Sim::live(|_| {});
    let acts = sim.on(Input::Skipped(skipped("turn/diff/updated", Some(FIRST), None)));
    assert!(warned(&acts).ends_with("the turn goes on"), "{acts:#?}");
    // A late word on another turn is of no matter.
    assert_eq!(sim.on(Input::Skipped(skipped("turn/diff/updated", Some("0"), None))), []);
    // From then on nobody can promise that nothing was done.
    let end = TurnEnd::Failed(TurnError::new(FailureReason::CodexError, "no"));
    let acts = sim.tell(News::TurnEnded(end));
    assert!(failure(&acts).side_effects_possible);
}

#[test]
fn a_lost_end_ends_the_turn() {
    let mut sim = Sim::live(|_| {});
    let acts = sim.on(Input::Skipped(skipped("turn/completed", Some(FIRST), None)));
    assert!(warned(&acts).ends_with("it was the turn's end"), "{acts:#?}");
    let error = failure(&acts);
    assert_eq!(error.reason, FailureReason::WorkerProtocol.as_str());
    assert!(error.side_effects_possible && !error.retryable, "{error:#?}");

    let mut line = SkippedLine::clone(&skipped("turn/completed", Some(FIRST), None));
    line.turn_status = Some("interrupted".to_owned());
    let mut sim = Sim::live(|_| {});
    let acts = sim.on(Input::Skipped(Arc::new(line)));
    assert_eq!(acts.last(), Some(&interrupted(InterruptReason::Codex, tokens(100))));
}

#[test]
fn a_lost_message_leaves_what_its_deltas_told() {
    let mut sim = Sim::live(|_| {});
    let delta = Event::agent_message_delta("m".to_owned(), "half of".to_owned());
    sim.tell(News::Event(delta));
    let line = skipped("item/completed", Some(FIRST), Some("agentMessage"));
    assert!(warned(&sim.on(Input::Skipped(line))).contains("only what its deltas told"));
    assert_eq!(sim.complete().last(), Some(&completed("half of")));
}

#[test]
fn a_lost_begin_of_a_command_is_ended_with_the_turn() {
    let mut sim = Sim::live(|_| {});
    let line = skipped("item/started", Some(FIRST), Some("commandExecution"));
    sim.on(Input::Skipped(line));
    let end = Act::EndCommands(vec![(thread(THREAD), vec!["m".to_owned()])]);
    assert_eq!(sim.complete(), [Act::NoteCompleted, end]);
}

#[test]
fn what_runs_for_the_turn_is_no_silence_and_a_silence_is_warned_of_at_its_half() {
    let idle = 10 * SECOND;
    let warned = |acts: &[Act]| {
        let warnings = acts.iter().filter(|act| {
            matches!(act, Act::Tell(Event::Warning(warning)) if warning.code == "NO_PROGRESS")
        });
        warnings.count()
    };
    let mcp = Item::new("mcp", ItemKind::McpToolCall(Default::default()));
    for item in [command("c"), mcp] {
        let mut sim = Sim::live(|request| request.turn_options.idle_timeout = Some(idle));
        sim.tell(News::Event(Event::item_started(item.clone())));
        let acts = sim.later(TOOL - SECOND);
        assert_eq!((warned(&acts), acts.len()), (1, 1), "{acts:#?}");
        let completed = Event::item_completed(item.clone());
        sim.tell(News::Event(completed));
        let acts = sim.later(idle - SECOND);
        assert_eq!((warned(&acts), acts.len()), (1, 1), "{acts:#?}");
        sim.tell(News::Event(Event::item_started(item)));
        let acts = sim.later(TOOL);
        assert_eq!((warned(&acts), acts.last()), (1, Some(&interrupts(FIRST))), "{acts:#?}");
    }
    // A sub-agent's turn.
    let mut sim = Sim::live(|request| request.turn_options.idle_timeout = Some(idle));
    sim.begins("agent", "child");
    let acts = sim.later(TOOL - SECOND);
    assert_eq!((warned(&acts), acts.len()), (1, 1), "{acts:#?}");
    assert_eq!(sim.later(SECOND), [interrupts("first"), interrupts_on("agent", "child")]);
}
