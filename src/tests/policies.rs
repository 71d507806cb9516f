//! What a turn makes of its context's binding and of the turns that are there, what it may be in place
//! of words, and how it is listed.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tonic::Code;

use crate::app_server::protected::{ProtectedPath, ProtectedPaths, Protection};
use crate::pb;
use crate::pb::review_target::Target;
use crate::pb::user_input::Input;
use crate::testing::{Played, Sidecar, Turn, meanwhile, prompt, sidecar};
use crate::worker::testing::HOLD;

fn for_context(policy: pb::ContextPolicy, request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    pb::RunTurnRequest { context_policy: policy.into(), ..request }
}

fn superseding(context: &str, words: &str) -> pb::RunTurnRequest {
    let busy_policy = pb::BusyPolicy::Interrupt.into();
    pb::RunTurnRequest { busy_policy, ..prompt(context, words) }
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_could_write_what_is_protected_stops_nobody() {
    let place = tempfile::tempdir().unwrap();
    let work = place.path().canonicalize().unwrap();
    let home = work.join("home");
    let sidecar = Played::with(|setup| {
        setup.spec.protected = Protection::new(move || {
            ProtectedPaths::new(vec![ProtectedPath::new("CODEX_HOME", &home)], None)
        });
    })
    .await;
    let running = taken(&sidecar, prompt("a", HOLD)).await;
    let mut denied = superseding("a", "hello");
    let options = denied.thread_options.get_or_insert_default();
    options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
    options.working_directory = Some(work.display().to_string());
    options.skip_git_repo_check = Some(true);
    let refused = sidecar.refused(denied).await;
    refused.assert(Code::PermissionDenied, "POLICY_DENIED");
    assert_eq!(refused.fields, ["thread_options.working_directory"]);
    sidecar.release();
    let mut running = running;
    running.rest().await;
    running.completed();
}

fn review(context: &str, target: Target) -> pb::RunTurnRequest {
    let review = Some(pb::ReviewTarget { target: Some(target) });
    pb::RunTurnRequest { review, inputs: Vec::new(), ..prompt(context, "") }
}

fn compact(context: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest { compact: true, inputs: Vec::new(), ..prompt(context, "") }
}

fn words(text: &str) -> Target {
    Target::Instructions(text.to_owned())
}

async fn taken(sidecar: &Sidecar, request: pb::RunTurnRequest) -> Turn {
    let mut turn = sidecar.begin(request).await.unwrap();
    turn.until("turn_started").await;
    turn
}

#[tokio::test(start_paused = true)]
async fn a_context_that_must_exist_or_be_new_decides_before_anything_starts() {
    let sidecar = Played::with(|_| {}).await;
    let (must_exist, must_be_new) = (pb::ContextPolicy::MustExist, pb::ContextPolicy::MustBeNew);
    let thread_id = sidecar.say("other", "hello").await.thread_id().to_owned();
    let named = pb::RunTurnRequest { thread_id, ..prompt("a", "hello") };
    for request in [prompt("a", "hello"), named] {
        let refused = sidecar.refused(for_context(must_exist, request)).await;
        refused.assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    }
    let first = for_context(must_be_new, prompt("a", "hello"));
    let first = pb::RunTurnRequest { request_id: "r".to_owned(), ..first };
    let turn = sidecar.run(first.clone()).await;
    // The same call finds its turn; any other one is a second.
    assert_eq!(sidecar.run(first.clone()).await.id(), turn.id());
    let steering = pb::RunTurnRequest {
        busy_policy: pb::BusyPolicy::Steer.into(),
        ..for_context(must_be_new, prompt("a", "hello"))
    };
    let busy = taken(&sidecar, prompt("a", HOLD)).await;
    for request in [for_context(must_be_new, prompt("a", "hello")), steering] {
        sidecar.refused(request).await.assert(Code::AlreadyExists, "CONTEXT_EXISTS");
    }
    sidecar.interrupt(&busy.id()).await;
    let goes_on = sidecar.run(for_context(must_exist, prompt("a", "hello"))).await;
    assert_eq!(goes_on.thread_id(), turn.thread_id());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_first_turns_at_once_one_runs_and_the_others_are_refused() {
    let sidecar = Played::with(|setup| setup.workers = 2).await;
    for round in 0..50 {
        let first = for_context(pb::ContextPolicy::MustBeNew, prompt(&format!("{round}"), "hello"));
        let calls = (0..8).map(|_| {
            let (sidecar, first) = (Arc::clone(&sidecar), first.clone());
            tokio::spawn(async move { sidecar.unary(first).await })
        });
        let ended = futures::future::join_all(calls).await;
        let (ran, refused): (Vec<_>, Vec<_>) =
            ended.into_iter().map(Result::unwrap).partition(Result::is_ok);
        assert_eq!(ran.len(), 1, "{ran:?}");
        for refused in refused {
            refused.unwrap_err().assert(Code::AlreadyExists, "CONTEXT_EXISTS");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_supersedes_runs_next_and_those_that_wait_keep_their_order() {
    let sidecar = Played::with(|_| {}).await;
    let mut running = taken(&sidecar, prompt("a", HOLD)).await;
    let mut waiting = Vec::new();
    for name in ["one", "two"] {
        let mut turn = sidecar.begin(prompt("a", name)).await.unwrap();
        turn.until("queued").await;
        waiting.push(turn);
    }
    let next = sidecar.run(superseding("a", "now")).await;
    assert_eq!(next.final_response(), "You said: now");
    running.rest().await;
    assert_eq!(running.interrupted(), pb::InterruptReason::Superseded);
    let mut ends = vec![next.events.last().unwrap().emitted_at];
    for (turn, name) in waiting.iter_mut().zip(["one", "two"]) {
        turn.rest().await;
        assert_eq!(turn.final_response(), format!("You said: {name}"));
        ends.push(turn.events.last().unwrap().emitted_at);
    }
    let ends: Vec<_> = ends.iter().flatten().map(|at| (at.seconds, at.nanos)).collect();
    assert!(ends.is_sorted(), "{ends:?}");
    // With nothing to supersede it is a turn as any other.
    assert_eq!(sidecar.run(superseding("a", "again")).await.final_response(), "You said: again");
}

/// Whether the one that waits is stopped while the one that runs is deaf.
#[tokio::test(start_paused = true)]
async fn of_two_that_supersede_the_later_stops_the_earlier_also_while_it_waits() {
    let (sidecar, mut codex) = sidecar().await;
    codex.is_deaf_to_interrupts = true;
    let mut running = codex.during(taken(&sidecar, prompt("a", HOLD))).await;
    let mut second = codex.during(sidecar.begin(superseding("a", "second"))).await.unwrap();
    codex.during(second.until("queued")).await;
    let mut third = codex.during(sidecar.begin(superseding("a", "third"))).await.unwrap();
    codex.during(second.rest()).await;
    assert_eq!(second.kinds(), ["queued", "turn_interrupted"]);
    assert_eq!(second.interrupted(), pb::InterruptReason::Superseded);
    codex.during(third.until("queued")).await;
    assert_eq!(third.queue_position(), 1);
    codex.end_last_turn().await;
    codex.during(third.rest()).await;
    assert_eq!(third.final_response(), "You said: third");
    // Codex ended it before it heard of the interruption.
    codex.during(running.rest()).await;
    running.completed();
}

#[tokio::test(start_paused = true)]
async fn the_turn_of_another_context_on_the_thread_is_superseded_and_one_beside_it_is_not() {
    let sidecar = Played::with(|_| {}).await;
    let mut beside = taken(&sidecar, prompt("beside", HOLD)).await;
    let mut running = taken(&sidecar, prompt("a", HOLD)).await;
    let thread_id = running.thread_id().to_owned();
    let named = pb::RunTurnRequest { thread_id, ..superseding("b", "mine") };
    let turn = sidecar.run(named).await;
    assert_eq!((turn.final_response(), turn.thread_id()), ("You said: mine", running.thread_id()));
    running.rest().await;
    assert_eq!(running.interrupted(), pb::InterruptReason::Superseded);
    sidecar.release();
    beside.rest().await;
    beside.completed();
}

#[tokio::test(start_paused = true)]
async fn a_review_runs_by_the_turns_own_settings_and_answers_with_its_text() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await;
    let mut request = review("a", words(" look here "));
    let options = request.thread_options.get_or_insert_default();
    options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
    options.model = Some("m1".to_owned());
    let turn = codex.during(sidecar.run(request)).await;
    assert_eq!(turn.final_response(), "Reviewed.");
    let asked = codex.heard_of("review/start")[0];
    assert_eq!(asked.params["target"], json!({ "type": "custom", "instructions": "look here" }));
    let set = codex.heard_of("thread/settings/update").last().unwrap().params.clone();
    assert_eq!(
        (&set["model"], &set["sandboxPolicy"]["type"]),
        (&json!("m1"), &json!("workspaceWrite"))
    );
    // The next turn has its own.
    codex.during(sidecar.say("a", "hello")).await;
    let next = &codex.heard_of("turn/start").last().unwrap().params;
    assert_eq!(
        (&next["model"], &next["sandboxPolicy"]["type"]),
        (&json!("m0"), &json!("readOnly"))
    );
    assert_eq!(codex.count("turn/start"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_review_that_gets_more_rights_than_it_asked_for_is_stopped() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await;
    codex.holds_turns = true;
    let full = json!({ "sandboxPolicy": { "type": "dangerFullAccess" } });
    codex.imposes.insert("thread/settings/update", full);
    let mut request = review("a", words("x"));
    request.thread_options.get_or_insert_default().set_sandbox_mode(pb::SandboxMode::ReadOnly);
    let turn = codex.during(sidecar.run(request)).await;
    assert_eq!(turn.failed().reason, "SETTINGS_NOT_APPLIED");
}

#[tokio::test(start_paused = true)]
async fn a_review_and_a_compaction_take_no_input_and_can_be_interrupted() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await;
    codex.holds_turns = true;
    for (request, what) in [(review("a", words("x")), "review"), (compact("a"), "compaction")] {
        let mut turn = codex.during(taken(&sidecar, request)).await;
        let refused = codex.during(sidecar.steer(&turn.id(), "more")).await.unwrap_err();
        refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
        assert!(refused.message.contains(what), "{}", refused.message);
        let steering =
            pb::RunTurnRequest { busy_policy: pb::BusyPolicy::Steer.into(), ..prompt("a", "more") };
        let refused = codex.during(sidecar.refused(steering)).await;
        refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
        assert_eq!(codex.count("turn/steer"), 0);
        codex.during(sidecar.interrupt(&turn.id())).await;
        codex.during(turn.rest()).await;
        assert_eq!(turn.interrupted(), pb::InterruptReason::InterruptRequested);
    }
}

#[tokio::test(start_paused = true)]
async fn a_compaction_begins_when_codex_says_so_and_needs_a_thread() {
    let (sidecar, mut codex) = sidecar().await;
    let refused = codex.during(sidecar.refused(compact("a"))).await;
    refused.assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    codex.during(sidecar.say("a", "hello")).await;
    codex.holds_turns = true;
    let call = sidecar.begin(compact("a"));
    tokio::pin!(call);
    let asked = meanwhile(call.as_mut(), codex.asked("thread/compact/start")).await;
    codex.answer(&asked, json!({})).await;
    codex.begin_turn("t1", "c1", "c1").await;
    let mut turn = codex.during(call).await.unwrap();
    codex.during(turn.until("turn_started")).await;
    let item = json!({ "type": "contextCompaction", "id": "i" });
    let told = json!({ "threadId": "t1", "turnId": "c1", "item": item });
    codex.tell("item/completed", told).await;
    let total = json!({ "inputTokens": 7, "outputTokens": 2 });
    let usage = json!({ "threadId": "t1", "turnId": "c1", "tokenUsage": { "total": total, "last": total } });
    codex.tell("thread/tokenUsage/updated", usage).await;
    codex.end_turn("t1", "c1").await;
    codex.during(turn.rest()).await;
    assert!(matches!(turn.items()[..], [pb::item::Kind::ContextCompaction(_)]));
    assert_eq!(turn.completed().usage.map(|usage| usage.input_tokens), Some(7));
    assert_eq!(turn.final_response(), "Codex task completed with inputs.");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_before_a_compaction_begins_loses_it_and_the_context_goes_on() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await;
    let call = sidecar.begin(compact("a"));
    tokio::pin!(call);
    let asked = meanwhile(call.as_mut(), codex.asked("thread/compact/start")).await;
    codex.answer(&asked, json!({})).await;
    codex.exit("signal 9");
    let mut turn = call.await.unwrap();
    let mut next = sidecar.codex().await;
    next.during(turn.rest()).await;
    let error = turn.failed();
    assert_eq!((error.reason.as_str(), error.side_effects_possible), ("WORKER_LOST", true));
    let goes_on = next.during(sidecar.say("a", "hello")).await;
    assert_eq!(goes_on.thread_id(), turn.thread_id());
}

#[tokio::test(start_paused = true)]
async fn a_compaction_that_never_begins_ends_by_its_clock() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await;
    let mut request = compact("a");
    let timeout = prost_types::Duration { seconds: 5, nanos: 0 };
    request.turn_options.get_or_insert_default().turn_timeout = Some(timeout);
    let call = sidecar.run(request);
    tokio::pin!(call);
    let asked = meanwhile(call.as_mut(), codex.asked("thread/compact/start")).await;
    codex.answer(&asked, json!({})).await;
    let turn = codex.during(call).await;
    assert_eq!(turn.failed().reason, "TURN_TIMEOUT");
}

#[tokio::test(start_paused = true)]
async fn a_compaction_of_a_thread_that_is_gone_begins_no_new_one() {
    let (sidecar, mut codex) = sidecar().await;
    let thread_id = "0198c2a4-0000-7000-8000-000000000001".to_owned();
    codex.refuses.push(("thread/resume", 9, -32600, "no rollout found for thread id"));
    let request = pb::RunTurnRequest {
        thread_id,
        missing_thread_policy: pb::MissingThreadPolicy::StartNew.into(),
        ..compact("a")
    };
    let refused = codex.during(sidecar.refused(request)).await;
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    assert_eq!(codex.count("thread/compact/start"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_skill_that_codex_does_not_know_is_refused_and_one_that_it_knows_is_passed_on() {
    let (sidecar, mut codex) = sidecar().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("SKILL.md").display().to_string();
    let skill = |path: &str| {
        let skill = pb::Skill { name: "s".to_owned(), path: path.to_owned() };
        let mut request = prompt("a", "use it");
        request.inputs.push(pb::UserInput { input: Some(Input::Skill(skill)) });
        request
    };
    let refused = codex.during(sidecar.refused(skill(&file))).await;
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert!(refused.message.contains("does not exist"), "{}", refused.message);
    std::fs::write(&file, "---\nname: s\n---\n").unwrap();
    let refused = codex.during(sidecar.refused(skill(&file))).await;
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert!(refused.message.contains("inputs[1].skill.path"), "{}", refused.message);
    assert_eq!(codex.count("thread/start"), 0, "it was refused before");
    codex.skills.push(file.clone());
    codex.during(sidecar.run(skill(&file))).await.completed();
    let sent = &codex.heard_of("turn/start")[0].params["input"];
    assert_eq!(sent[1], json!({ "type": "skill", "name": "s", "path": file }));
    // A turn that runs can't be given one: Codex would drop it.
    codex.holds_turns = true;
    let turn = codex.during(taken(&sidecar, prompt("a", "hello"))).await;
    let request = pb::SteerTurnRequest { turn_id: turn.id(), inputs: skill(&file).inputs };
    use crate::grpc::api::codex_service_server::CodexService as _;
    let steered = sidecar.api.steer_turn(tonic::Request::new(request));
    let refused = crate::testing::Refused::from(codex.during(steered).await.unwrap_err());
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
}

#[tokio::test(start_paused = true)]
async fn a_turn_for_its_end_alone_gives_that_and_its_refusals_name_their_fields() {
    let (sidecar, mut codex) = sidecar().await;
    let ran = codex.during(sidecar.unary(prompt("a", "hello"))).await.unwrap();
    let Some(pb::turn_event::Event::TurnCompleted(completed)) = ran.terminal_event.unwrap().event
    else {
        panic!()
    };
    assert_eq!(
        (completed.final_response.as_str(), ran.thread_id.as_str()),
        ("You said: hello", "t1")
    );
    let refused = sidecar.unary(pb::RunTurnRequest::default()).await.unwrap_err();
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert!(refused.message.contains("request.inputs"), "{}", refused.message);
    codex.refuses.push(("turn/start", 1, -32600, "no"));
    let ran = codex.during(sidecar.unary(prompt("b", "hello"))).await.unwrap();
    let Some(pb::turn_event::Event::TurnFailed(_)) = ran.terminal_event.unwrap().event else {
        panic!()
    };
    assert_eq!(ran.thread_id, "t2");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_does_what_its_disconnect_policy_says() {
    let sidecar = Played::with(|_| {}).await;
    for (policy, ends) in [
        (pb::DisconnectPolicy::Interrupt, "TURN_STATE_INTERRUPTED"),
        (pb::DisconnectPolicy::Continue, "TURN_STATE_COMPLETED"),
    ] {
        let mut request = prompt(policy.as_str_name(), HOLD);
        request.disconnect_policy = policy.into();
        let call = tokio::spawn({
            let sidecar = Arc::clone(&sidecar);
            async move { sidecar.unary(request).await }
        });
        let listed = || async {
            let (turns, _) = sidecar.turns(Some(policy.as_str_name()), 0, "").await.unwrap();
            turns.into_iter().next()
        };
        while listed().await.is_none_or(|turn| turn.last_event != "turn_started") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        call.abort();
        let _ = call.await;
        if policy == pb::DisconnectPolicy::Continue {
            sidecar.release();
        }
        while listed().await.is_none_or(|turn| turn.end_time.is_none()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(listed().await.unwrap().state().as_str_name(), ends);
    }
}

#[tokio::test(start_paused = true)]
async fn turns_are_listed_with_how_far_they_are_in_the_order_of_their_calls() {
    let sidecar = Played::with(|_| {}).await;
    let done = sidecar.say("a", "hello").await;
    let running = taken(&sidecar, prompt("a", HOLD)).await;
    let mut waiting = sidecar.begin(prompt("a", "later")).await.unwrap();
    waiting.until("queued").await;
    let beside = taken(&sidecar, prompt("b", HOLD)).await;
    let (turns, next) = sidecar.turns(None, 0, "").await.unwrap();
    assert_eq!(next, "");
    let all = [done.id(), running.id(), waiting.id(), beside.id()];
    assert_eq!(turns.iter().map(|turn| turn.turn_id.clone()).collect::<Vec<_>>(), all);
    use pb::TurnState::{Completed, Running, Waiting};
    assert_eq!(
        turns.iter().map(pb::TurnInfo::state).collect::<Vec<_>>(),
        [Completed, Running, Waiting, Running]
    );
    let [ended, runs, waits, _] = &turns[..] else { panic!() };
    assert_eq!(
        (ended.last_event.as_str(), ended.last_sequence),
        ("turn_completed", done.events.last().unwrap().sequence)
    );
    assert!(ended.end_time.is_some() && runs.end_time.is_none() && waits.start_time.is_none());
    assert_eq!((runs.thread_id.as_str(), runs.worker_id.as_str()), (running.thread_id(), "w0"));
    assert_eq!(
        (waits.queue_position, waits.worker_id.as_str(), waits.last_event.as_str()),
        (1, "", "queued")
    );
    assert_eq!(runs.context.as_ref().unwrap().context_id, "a");
    assert!(runs.start_time.is_some() && runs.last_event_time.is_some());

    let (of_b, _) = sidecar.turns(Some("b"), 0, "").await.unwrap();
    assert_eq!(of_b.len(), 1);
    assert_eq!(of_b[0].turn_id, beside.id());
    // In pages, of which each bears where it ended.
    let mut listed = Vec::new();
    let mut token = String::new();
    loop {
        let (page, next) = sidecar.turns(Some("a"), 1, &token).await.unwrap();
        listed.extend(page.into_iter().map(|turn| turn.turn_id));
        if next.is_empty() {
            break;
        }
        let refused = sidecar.turns(None, 1, &next).await.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        token = next;
    }
    assert_eq!(listed, all[..3]);
    for token in ["x", "00", "7b7d"] {
        let refused = sidecar.turns(None, 1, token).await.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    }
    sidecar.turns(None, -1, "").await.unwrap_err().assert(Code::InvalidArgument, "INVALID_INPUT");

    sidecar.interrupt(&running.id()).await;
    let (turns, _) = sidecar.turns(Some("a"), 0, "").await.unwrap();
    let interrupted = turns.iter().find(|turn| turn.turn_id == running.id()).unwrap();
    assert_eq!(interrupted.reason, "INTERRUPT_REQUESTED");
    assert_eq!(interrupted.state(), pb::TurnState::Interrupted);
}

#[tokio::test(start_paused = true)]
async fn input_joins_the_turn_of_its_thread_whatever_context_that_came_by() {
    let (sidecar, mut codex) = sidecar().await;
    codex.number = Some(1);
    codex.during(sidecar.say("a", "hello")).await;
    let thread_id = sidecar.context("a").await.unwrap().thread_id;
    let named = |context: &str, text: &str| {
        let thread_id = thread_id.clone();
        pb::RunTurnRequest { thread_id, ..prompt(context, text) }
    };
    for joining in [prompt("a", "more"), named("c", "more")] {
        let running = sidecar.hold(&mut codex, named("b", "hold")).await;
        let steering = pb::RunTurnRequest { busy_policy: pb::BusyPolicy::Steer.into(), ..joining };
        let joined = codex.during(sidecar.run(steering)).await;
        assert_eq!(joined.id(), running.id());
        joined.completed();
    }
    assert_eq!(codex.count("turn/steer"), 2);
}
