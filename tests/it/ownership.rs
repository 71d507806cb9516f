//! What a turn owns: sub-agents, goal continuations and commands end with it, count as its own, and
//! nothing runs without a turn.

use std::process::Stdio;
use std::time::Duration;

use crate::support;
use crate::support::binary::{self, Binary};
use crate::support::{
    PATIENCE, Sidecar, Told, Turn, eventually, processes, prompt, unsandboxed, within,
};
use codex_sidecar::parts::config::Config;
use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::turn_event::Event;
use rustix::process::Signal;
use serde_json::{Value, json};

fn with_timeout(seconds: i64, mut request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    let timeout = Some(prost_types::Duration { seconds, nanos: 0 });
    request.turn_options.get_or_insert_default().turn_timeout = timeout;
    request
}

fn with_budget(tokens: u64, mut request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    request.turn_options.get_or_insert_default().max_total_tokens = tokens;
    request
}

fn goals_on(config: &mut Config) {
    config.worker.config.insert("features.goals".to_owned(), true.into());
}

/// `[[tool spawn_agent …]]` with this prompt for the sub-agent.
fn spawn(words: &str) -> String {
    format!("[[tool spawn_agent {}]]", json!({ "message": words }))
}

/// How many processes of a sidecar run this command line.
fn running(client: &Sidecar, command: &str) -> usize {
    running_in(&client.place, command)
}

fn running_in(place: &support::Place, command: &str) -> usize {
    let all = processes::of_home(&place.codex_home());
    all.iter().filter(|process| process.command == command).count()
}

async fn runs(sidecar: &Sidecar, command: &str) {
    eventually(command, async || (running(sidecar, command) > 0).then_some(())).await;
}

/// Nothing goes on without a turn: the next turn of the context is a turn of its own, its one request
/// is the only one that the model gets, and no turn is counted as running.
async fn assert_quiet(sidecar: &Sidecar, context: &str, user_messages: usize) {
    assert_eq!(sidecar.counts().await.running_turns, 0);
    let before = sidecar.model.requests();
    let told = sidecar.say(context, "still there?").await;
    let answer = format!("You said: still there? (user messages so far: {user_messages})");
    assert_eq!(told.final_response(), answer);
    assert_eq!(sidecar.model.requests(), before + 1, "requests that no turn made");
    assert_eq!(told.codex_turn_ids().len(), 1);
    assert_eq!(warnings(&told, "UNOWNED_TURN_STOPPED"), 0, "{:#?}", told.warnings());
}

fn warnings(told: &Told, code: &str) -> usize {
    told.warnings().iter().filter(|warning| warning.code == code).count()
}

fn total(usage: Option<&pb::Usage>) -> u64 {
    let usage = usage.expect("usage");
    usage.input_tokens + usage.output_tokens
}

#[tokio::test]
async fn goals_are_off_and_a_model_that_makes_one_starts_nothing() {
    let sidecar = Sidecar::start().await;
    let tools = sidecar.shown("/tools", prompt("tools", "")).await.to_string();
    assert!(!tools.contains("create_goal"), "{tools}");
    assert!(tools.contains("spawn_agent"), "sub-agents stay: {tools}");

    let before = sidecar.model.requests();
    let goal = r#"[[tool create_goal {"objective": "go on"}]] [[say done]]"#;
    let told = sidecar.say("a", goal).await;
    assert_eq!((told.final_response(), told.codex_turn_ids().len()), ("done", 1));
    assert_eq!(sidecar.model.requests(), before + 2);
    assert_quiet(&sidecar, "a", 2).await;
    sidecar.stop().await;
}

#[tokio::test]
async fn continuations_of_a_goal_are_the_turns_own_until_the_goal_is_done() {
    let sidecar = Sidecar::with(goals_on).await;
    let words = r#"[[tool create_goal {"objective": "go on"}]] [[say one]] [[next]] [[say two]]
        [[next]] [[tool update_goal {"status": "complete"}]] [[say three]]"#;
    let told = sidecar.say("a", words).await;
    assert_eq!(told.final_response(), "three");
    assert_eq!(told.codex_turn_ids().len(), 3, "{:?}", told.kinds());
    // Two requests, one, and two; all are in the usage of this one turn.
    assert_eq!(sidecar.model.requests(), 5);
    let completed = told.completed();
    assert!(completed.usage.is_some(), "{completed:?}");
    assert_eq!(completed.usage, completed.thread_usage);
    assert_eq!(told.messages(), ["one", "two", "three"]);
    assert_quiet(&sidecar, "a", 2).await;

    // A sub-agent's goal is waited for as well.
    let words = r#"[[tool create_goal {"objective": "go on"}]] [[say one]] [[next]]
        [[tool update_goal {"status": "complete"}]] [[say two]]"#;
    let told = sidecar.say("b", &format!("{} [[say done]]", spawn(words))).await;
    assert_eq!((told.final_response(), told.codex_turn_ids().len()), ("done", 1));
    let agents = told.sub_agents();
    let works = agents.iter().filter(|agent| agent.action() == pb::SubAgentAction::Work);
    let said: Vec<&str> = works.map(|agent| agent.agents[0].message.as_str()).collect();
    assert_eq!(said, ["one", "two"], "{agents:#?}");
    assert_quiet(&sidecar, "b", 2).await;
    sidecar.stop().await;
}

/// A goal that never ends, stopped in each of the ways in which a turn can be.
#[tokio::test]
async fn whatever_stops_a_turn_takes_its_goal_away() {
    let sidecar = Sidecar::with(goals_on).await;
    let endless =
        r#"[[tool create_goal {"objective": "go on"}]] [[say one]] [[next]] [[say more]]"#;

    let mut turn = sidecar.begin(prompt("interrupted", endless)).await;
    turn.started().await;
    // A continuation, which is steered: the input is taken by what runs then.
    turn.started().await;
    sidecar.interrupt(turn.turn_id()).await.unwrap();
    let told = turn.rest().await;
    assert_eq!(told.interrupted(), pb::InterruptReason::InterruptRequested);
    assert!(told.codex_turn_ids().len() >= 2, "{:?}", told.kinds());
    assert_quiet(&sidecar, "interrupted", 2).await;
    // The goal itself is gone: a later turn would else wake it.
    let asked = sidecar.say("interrupted", "[[tool get_goal]] [[show /input]]").await;
    let input: Value = serde_json::from_str(asked.final_response()).unwrap();
    let output = input.as_array().unwrap().iter().rev().find_map(|item| item["output"].as_str());
    assert!(output.unwrap().contains("\"goal\":null"), "{output:?}");

    let told = sidecar.run(with_timeout(1, prompt("late", endless))).await;
    assert_eq!(told.failed().reason, "TURN_TIMEOUT");
    assert_quiet(&sidecar, "late", 2).await;

    let told = sidecar.run(with_budget(20_000, prompt("dear", endless))).await;
    let error = told.failed();
    assert_eq!((error.reason.as_str(), error.retryable), ("BUDGET_EXCEEDED", false), "{error:?}");
    let Event::TurnFailed(failed) = told.terminal() else { panic!("{:?}", told.terminal()) };
    let used = total(failed.usage.as_ref());
    assert!(used > 20_000, "{used}");
    assert!(told.codex_turn_ids().len() >= 2, "{:?}", told.kinds());
    assert_quiet(&sidecar, "dear", 2).await;

    let failing =
        r#"[[tool create_goal {"objective": "go on"}]] [[say one]] [[next]] [[status 400]]"#;
    let told = sidecar.say("failed", failing).await;
    assert!(!told.failed().message.is_empty());
    assert_quiet(&sidecar, "failed", 2).await;
    sidecar.stop().await;
}

/// A worker that dies leaves its thread's goal on the disk, and Codex goes on with it by itself as soon
/// as the thread is loaded again.
#[tokio::test]
async fn a_goal_that_a_dead_worker_left_takes_no_turn_over() {
    let sidecar = Sidecar::with(goals_on).await;
    let endless =
        r#"[[tool create_goal {"objective": "go on"}]] [[say one]] [[next]] [[say more]]"#;
    let mut turn = sidecar.begin(prompt("a", endless)).await;
    turn.started().await;
    turn.started().await;
    processes::signal(sidecar.workers().await[0].pid, Signal::KILL);
    assert_eq!(turn.rest().await.failed().reason, "WORKER_LOST");

    let told = sidecar.say("a", "hello").await;
    assert_eq!(told.final_response(), "You said: hello (user messages so far: 2)");
    // As much as one request for this thread, and not what the goal has used.
    let completed = told.completed();
    let last = told.all().filter_map(|event| match event {
        Event::TokenUsageUpdated(usage) => usage.last_request_usage,
        _ => None,
    });
    assert_eq!(completed.usage, last.last(), "{completed:?}");
    assert_quiet(&sidecar, "a", 3).await;
    sidecar.stop().await;
}

#[tokio::test]
async fn a_turn_ends_when_its_sub_agents_have_and_counts_what_they_used() {
    let sidecar = Sidecar::start().await;
    let child = "[[wait 1s]] [[run echo hi > child.txt]] [[say child done]]";
    let told =
        sidecar.run(unsandboxed("a", &format!("{} [[say parent done]]", spawn(child)))).await;
    assert_eq!(told.final_response(), "parent done");
    let file = sidecar.place.work().join("child.txt");
    assert!(file.exists(), "the terminal event came before the sub-agent's command");

    let agents = told.sub_agents();
    let spawned = agents.iter().find(|agent| agent.action() == pb::SubAgentAction::Spawn);
    let spawned = spawned.unwrap_or_else(|| panic!("{agents:#?}"));
    assert_eq!((spawned.prompt.as_str(), spawned.tool.as_str()), (child, "spawnAgent"));
    assert_eq!(spawned.sender_thread_id, told.thread_id());
    let works = agents.iter().filter(|agent| agent.action() == pb::SubAgentAction::Work);
    let works: Vec<_> = works.collect();
    assert_eq!(works.len(), 1, "{agents:#?}");
    assert_eq!(works[0].status(), pb::SubAgentStatus::Completed);
    let [state] = &works[0].agents[..] else { panic!("{works:#?}") };
    assert_eq!(state.thread_id, spawned.agents[0].thread_id);
    assert_eq!(
        (state.phase(), state.message.as_str()),
        (pb::SubAgentPhase::Completed, "child done")
    );
    // It began before it ended, and nothing else of it is among the turn's own items.
    assert!(told.all().any(|event| matches!(event, Event::ItemStarted(pb::ItemStarted {
        item: Some(pb::Item { kind: Some(Kind::SubAgent(agent)), .. }) })
        if agent.action() == pb::SubAgentAction::Work)));
    assert!(told.commands().is_empty());

    let completed = told.completed();
    let (turn, thread) = (total(completed.usage.as_ref()), total(completed.thread_usage.as_ref()));
    assert!(turn > thread, "usage {turn} without the sub-agent's, the thread's is {thread}");
    assert_eq!(sidecar.model.requests(), 4);

    // It stays with the thread: a later turn may use it again, and is charged for that alone.
    let id = &state.thread_id;
    let again = json!({ "target": id, "message": "[[say once more]]" });
    let told =
        sidecar.run(unsandboxed("a", &format!("[[tool send_input {again}]] [[say sent]]"))).await;
    assert_eq!(told.final_response(), "sent");
    let agents = told.sub_agents();
    let said = agents.iter().find(|agent| agent.action() == pb::SubAgentAction::Work);
    assert_eq!(said.map(|agent| agent.agents[0].message.as_str()), Some("once more"));
    let last: u64 = told
        .all()
        .filter_map(|event| match event {
            Event::TokenUsageUpdated(usage) => Some(total(usage.last_request_usage.as_ref())),
            _ => None,
        })
        .sum();
    assert_eq!(total(told.completed().usage.as_ref()), last);
    assert_quiet(&sidecar, "a", 3).await;
    sidecar.stop().await;
}

/// Begins a turn whose sub-agent runs a command for ever, when its own part is over or not.
async fn with_busy_agent(
    sidecar: &Sidecar,
    request: impl Fn(&str, &str) -> pb::RunTurnRequest,
    context: &str,
    nap: u32,
    then: &str,
) -> Turn {
    let words = format!("{} {then}", spawn(&format!("[[run sleep {nap}]] [[run touch late.txt]]")));
    let mut turn = sidecar.begin(request(context, &words)).await;
    turn.started().await;
    runs(sidecar, &format!("sleep {nap}")).await;
    turn
}

/// Nothing of it runs any more, and what it would have done next is not done.
fn assert_gone(sidecar: &Sidecar, nap: u32) {
    assert_eq!(running(sidecar, &format!("sleep {nap}")), 0, "the command outlived its turn");
    assert!(!sidecar.place.work().join("late.txt").exists());
}

#[tokio::test]
async fn whatever_stops_a_turn_stops_its_sub_agents_and_their_commands() {
    let sidecar = Sidecar::with(|config| config.drain_grace = Duration::ZERO).await;
    // While the turn's own part goes on, and when it is over.
    for (context, nap, then) in [("busy", 5501, "[[hang]]"), ("done", 5502, "[[say done]]")] {
        let turn = with_busy_agent(&sidecar, unsandboxed, context, nap, then).await;
        sidecar.interrupt(turn.turn_id()).await.unwrap();
        let told = turn.rest().await;
        assert_eq!(told.interrupted(), pb::InterruptReason::InterruptRequested, "{context}");
        assert_gone(&sidecar, nap);
        let agents = told.sub_agents();
        let work = agents.iter().find(|agent| agent.action() == pb::SubAgentAction::Work);
        assert_eq!(work.unwrap().status(), pb::SubAgentStatus::Interrupted, "{context}");
        assert_quiet(&sidecar, context, 2).await;
    }

    let late = |context: &str, words: &str| with_timeout(3, unsandboxed(context, words));
    let turn = with_busy_agent(&sidecar, late, "late", 5503, "[[say done]]").await;
    let told = turn.rest().await;
    let error = told.failed();
    assert_eq!((error.reason.as_str(), error.side_effects_possible), ("TURN_TIMEOUT", true));
    assert_gone(&sidecar, 5503);
    assert_quiet(&sidecar, "late", 2).await;

    // The caller goes.
    let turn = with_busy_agent(&sidecar, unsandboxed, "left", 5504, "[[say done]]").await;
    drop(turn);
    eventually("no running turn", async || {
        (sidecar.counts().await.running_turns == 0).then_some(())
    })
    .await;
    assert_gone(&sidecar, 5504);
    assert_quiet(&sidecar, "left", 2).await;

    // Its own part fails: nobody waits for what its sub-agents would have found.
    let turn =
        with_busy_agent(&sidecar, unsandboxed, "failed", 5505, "[[wait 1s]] [[status 400]]").await;
    assert!(!turn.rest().await.failed().message.is_empty());
    assert_gone(&sidecar, 5505);
    assert_quiet(&sidecar, "failed", 2).await;

    // The drain waits for them, and ends them with the turn.
    let turn = with_busy_agent(&sidecar, unsandboxed, "drained", 5506, "[[say done]]").await;
    sidecar.begin_shutdown();
    assert_eq!(turn.rest().await.interrupted(), pb::InterruptReason::Draining);
    assert_gone(&sidecar, 5506);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_drop_in_that_is_ended_takes_its_sub_agents_along() {
    let sidecar = Binary::start().await;
    let words = format!("{} [[say done]]", spawn("[[run sleep 5511]] [[run touch late.txt]]"));
    let mut exec = binary::command(&sidecar.place);
    exec.args(["exec", "--experimental-json", "--sandbox", "danger-full-access", "--cd"])
        .arg(sidecar.place.work())
        .arg(&words)
        .env("CODEX_SIDECAR_ADDR", &sidecar.address)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut exec = exec.spawn().unwrap();
    let naps = || running_in(&sidecar.place, "sleep 5511");
    eventually("the sub-agent's command", async || (naps() > 0).then_some(())).await;
    processes::signal(exec.id().unwrap(), Signal::TERM);
    within(PATIENCE, "the end of the drop-in", exec.wait()).await.unwrap();
    eventually("no running turn", async || {
        (sidecar.counts().await.running_turns == 0).then_some(())
    })
    .await;
    assert_eq!(naps(), 0);
    assert!(!sidecar.place.work().join("late.txt").exists());
    sidecar.stop().await;
}

#[tokio::test]
async fn what_a_sub_agent_uses_counts_for_the_budget_and_what_it_asks_is_answered() {
    let sidecar = Sidecar::start().await;
    // More than the rest of the turn uses, in one answer of the sub-agent.
    let words = format!("{} [[say done]]", spawn("[[wait 1s]] [[words 50000]]"));
    let told = sidecar.run(with_budget(30_000, prompt("dear", &words))).await;
    let error = told.failed();
    assert_eq!((error.reason.as_str(), error.retryable), ("BUDGET_EXCEEDED", false), "{error:?}");
    assert_quiet(&sidecar, "dear", 2).await;
    // Also where the request that exceeds it is the last one; and one that is kept stops nothing.
    let told = sidecar.run(with_budget(10, prompt("short", "hello"))).await;
    assert_eq!(told.failed().reason, "BUDGET_EXCEEDED");
    assert_eq!(warnings(&told, "COMMANDS_ENDED"), 0);
    sidecar.run(with_budget(1_000_000, prompt("short", "hello"))).await.completed();

    let asking = r#"[[tool exec_command {"cmd": "ls", "sandbox_permissions": "require_escalated",
        "justification": "may I?"}]] [[say asked]]"#;
    let mut request = prompt("asks", &format!("{} [[say done]]", spawn(asking)));
    let options = request.thread_options.get_or_insert_default();
    options.approval_policy = pb::ApprovalPolicy::OnRequest.into();
    let told = sidecar.run(request).await;
    assert_eq!(told.final_response(), "done");
    assert!(told.kinds().contains(&"request_raised"), "{:?}", told.kinds());
    let agents = told.sub_agents();
    let work = agents.iter().find(|agent| agent.action() == pb::SubAgentAction::Work).unwrap();
    assert_eq!(work.agents[0].message, "asked");
    sidecar.stop().await;
}

#[tokio::test]
async fn what_a_sub_agent_does_is_progress_of_the_turn() {
    let sidecar = Sidecar::start().await;
    // Its answer takes longer than the turn may be idle, each piece of it much less.
    let words = format!("{} [[say done]]", spawn("[[words 60]] [[slow 150]]"));
    let mut request = prompt("a", &words);
    let idle = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    request.turn_options.get_or_insert_default().idle_timeout = idle;
    let told = sidecar.run(request).await;
    assert_eq!(told.final_response(), "done");
    let at = |event: &pb::TurnEvent| {
        let at = event.emitted_at.unwrap();
        Duration::new(at.seconds.try_into().unwrap(), at.nanos.try_into().unwrap())
    };
    let done = told.events.iter().rposition(|event| {
        matches!(&event.event, Some(Event::AgentMessageDelta(delta)) if delta.text.contains("done"))
    });
    let waited = at(told.events.last().unwrap()) - at(&told.events[done.expect("the deltas")]);
    assert!(waited > Duration::from_secs(5), "the turn waited only {waited:?}");
    sidecar.stop().await;
}

/// As `codex exec` does when it ends; and what has made itself a daemon, too.
#[tokio::test]
async fn commands_that_still_run_at_the_end_of_a_turn_are_ended_and_told() {
    let sidecar = Sidecar::start().await;
    let words = r#"[[tool exec_command {"cmd": "sleep 5521", "yield_time_ms": 250, "login": false}]]
        [[run setsid -f sleep 5522 < /dev/null > /dev/null 2>&1]] [[say done]]"#;
    let told = sidecar.run(unsandboxed("a", words)).await;
    assert_eq!(told.final_response(), "done");
    for nap in ["sleep 5521", "sleep 5522"] {
        assert_eq!(running(&sidecar, nap), 0, "{nap}");
    }
    assert_eq!(warnings(&told, "COMMANDS_ENDED"), 1, "{:#?}", told.warnings());
    let warning = told.warnings().into_iter().find(|warning| warning.code == "COMMANDS_ENDED");
    assert!(warning.unwrap().details.contains("sleep 5521"), "{warning:#?}");
    // Both commands are told to their ends.
    assert_eq!(told.commands().len(), 2, "{:#?}", told.items());
    // One that has ended by itself is no matter.
    let told = sidecar.run(unsandboxed("a", "[[run echo hi]] [[say done]]")).await;
    assert_eq!(warnings(&told, "COMMANDS_ENDED"), 0, "{:#?}", told.warnings());
    assert_quiet(&sidecar, "a", 3).await;

    // A sub-agent's command is the turn's own, too.
    let child = r#"[[tool exec_command {"cmd": "sleep 5523", "yield_time_ms": 250, "login": false}]]
        [[say child done]]"#;
    let told = sidecar.run(unsandboxed("b", &format!("{} [[say done]]", spawn(child)))).await;
    assert_eq!(told.final_response(), "done");
    assert_eq!(running(&sidecar, "sleep 5523"), 0);
    assert_eq!(warnings(&told, "COMMANDS_ENDED"), 1, "{:#?}", told.warnings());
    sidecar.stop().await;
}
