//! What is wanted of a turn while it waits, opens, runs and ends: to stop, to take more input, to take an
//! answer. All of it goes to the task that owns the turn.

use std::pin::pin;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::grpc::api::codex_service_server::CodexService as _;
use crate::model::id::TurnId;
use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::turn_event::Event;
use crate::testing::{Refused, Sidecar, Turn, meanwhile, prompt, sidecar, sidecar_with};
use crate::worker::testing::Codex;

async fn interrupt(sidecar: &Sidecar, turn_id: &TurnId) -> pb::TurnEvent {
    let request = pb::InterruptTurnRequest { turn_id: turn_id.to_string() };
    let interrupted = sidecar.api.interrupt_turn(Request::new(request)).await.unwrap();
    interrupted.into_inner().terminal_event.unwrap()
}

async fn steer(sidecar: &Sidecar, turn_id: &TurnId) -> Result<String, Refused> {
    let inputs = prompt("", "more").inputs;
    let request = pb::SteerTurnRequest { turn_id: turn_id.to_string(), inputs };
    let steered = sidecar.api.steer_turn(Request::new(request)).await.map_err(Refused::from)?;
    Ok(steered.into_inner().codex_turn_id)
}

async fn answer(
    sidecar: &Sidecar,
    turn_id: &TurnId,
    request_id: &str,
    answer: Answer,
) -> Result<(), Refused> {
    let request = pb::AnswerRequestRequest {
        turn_id: turn_id.to_string(),
        request_id: request_id.to_owned(),
        answer: Some(answer),
    };
    sidecar.api.answer_request(Request::new(request)).await.map(drop).map_err(Refused::from)
}

fn says(text: &str) -> Answer {
    let content = pb::tool_content::Content::Text(text.to_owned());
    let content = vec![pb::ToolContent { content: Some(content) }];
    Answer::ToolCall(pb::ToolCallAnswer { content, success: true })
}

/// The turn that was begun, before it tells anything.
fn begun(sidecar: &Sidecar) -> TurnId {
    let [turn] = &sidecar.engine.turns().unended()[..] else { panic!("not one turn") };
    turn.id.clone()
}

/// Begins a turn that is the test's to go on with.
async fn begin(sidecar: &Sidecar, codex: &mut Codex, context: &str) -> (Turn, TurnId) {
    let turn = sidecar.hold(codex, prompt(context, "x")).await;
    let id = TurnId(turn.events[0].turn_id.clone());
    (turn, id)
}

/// Asks for a lent function, in the turn that was begun last.
async fn call_function(codex: &mut Codex, turn: &mut Turn, id: u64) -> pb::CodexRequest {
    let (thread_id, turn_id) = codex.turns.last().unwrap().clone();
    let arguments = json!({ "key": "x" });
    let params = json!({
        "threadId": thread_id, "turnId": turn_id, "callId": "c", "tool": "lookup",
        "arguments": arguments,
    });
    codex.ask(id, "item/tool/call", params).await;
    codex.during(turn.until("request_raised")).await;
    match turn.terminal() {
        Event::RequestRaised(pb::RequestRaised { request }) => request.clone().unwrap(),
        event => panic!("{event:#?}"),
    }
}

fn interrupted(event: &Event) -> pb::InterruptReason {
    match event {
        Event::TurnInterrupted(interrupted) => interrupted.reason(),
        event => panic!("{event:#?}"),
    }
}

fn resolutions(turn: &Turn) -> Vec<pb::RequestResolution> {
    let resolved = turn.all().filter_map(|event| match event {
        Event::RequestResolved(resolved) => Some(resolved.resolution()),
        _ => None,
    });
    resolved.collect()
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_stopped_in_every_stage() {
    let (sidecar, mut codex) = sidecar_with(|setup| setup.limits.max_running_turns = 1).await;
    // It waits.
    let (mut running, running_id) = begin(&sidecar, &mut codex, "a").await;
    let mut waiting = sidecar.begin(prompt("b", "x")).await.unwrap();
    waiting.until("queued").await;
    let waiting_id = TurnId(waiting.events[0].turn_id.clone());
    let refused = steer(&sidecar, &waiting_id).await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
    let terminal = interrupt(&sidecar, &waiting_id).await;
    waiting.rest().await;
    assert_eq!(waiting.kinds(), ["queued", "turn_interrupted"]);
    assert_eq!(waiting.events.last(), Some(&terminal));
    // It runs; whoever asks twice is told the same.
    let (terminal, again) = codex
        .during(async {
            tokio::join!(interrupt(&sidecar, &running_id), interrupt(&sidecar, &running_id))
        })
        .await;
    running.rest().await;
    assert_eq!((&terminal, &again), (running.events.last().unwrap(), &terminal));
    assert_eq!(interrupted(running.terminal()), pb::InterruptReason::InterruptRequested);

    // Its thread is being opened, or Codex is being told of it.
    for method in ["thread/start", "turn/start"] {
        let mut turn = pin!(sidecar.begin(prompt(method, "x")));
        let asked = meanwhile(turn.as_mut(), codex.asked(method)).await;
        let id = begun(&sidecar);
        let mut interrupting = pin!(interrupt(&sidecar, &id));
        if method == "turn/start" {
            // What it did with the turn is waited for, and then it is interrupted.
            meanwhile(interrupting.as_mut(), tokio::task::yield_now()).await;
            codex.answer_usually(&asked).await;
        }
        let terminal = codex.during(interrupting).await;
        assert_eq!(
            interrupted(terminal.event.as_ref().unwrap()),
            pb::InterruptReason::InterruptRequested
        );
        codex.during(turn).await.unwrap().rest().await;
        if method == "thread/start" {
            codex.answer_usually(&asked).await;
        }
    }
    codex.holds_turns = false;
    codex.during(sidecar.say("b", "hello")).await.completed();
}

#[tokio::test(start_paused = true)]
async fn input_waits_for_codexs_turn_and_goes_by_the_turns_task() {
    let (sidecar, mut codex) = sidecar().await;
    codex.holds_turns = true;
    let mut turn = pin!(sidecar.begin(prompt("a", "x")));
    let opening = meanwhile(turn.as_mut(), codex.asked("thread/start")).await;
    let id = begun(&sidecar);
    let mut steering = pin!(steer(&sidecar, &id));
    let mut given_up = Box::pin(steer(&sidecar, &id));
    meanwhile(steering.as_mut(), tokio::task::yield_now()).await;
    meanwhile(given_up.as_mut(), tokio::task::yield_now()).await;
    // Whoever hangs up takes his input along.
    drop(given_up);
    codex.answer_usually(&opening).await;
    let mut turn = codex.during(turn).await.unwrap();
    let asked = meanwhile(steering.as_mut(), codex.asked("turn/steer")).await;
    assert_eq!(asked.params["expectedTurnId"], "u1");
    codex.answer(&asked, json!({})).await;
    assert_eq!(steering.await.unwrap(), "u1");
    assert_eq!(codex.count("turn/steer"), 1);

    // What Codex refuses is told; so is that there is no turn any more.
    let mut steering = pin!(steer(&sidecar, &id));
    let asked = meanwhile(steering.as_mut(), codex.asked("turn/steer")).await;
    codex.refuse(&asked, -32600, "not now").await;
    let refused = steering.await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
    assert!(refused.message.contains("not now"), "{refused:#?}");
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    let refused = steer(&sidecar, &id).await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
    assert!(refused.message.contains("it has ended"), "{refused:#?}");
}

/// Else whoever sent it would send it again, and it would be said twice.
#[tokio::test(start_paused = true)]
async fn a_turn_that_ends_while_it_is_given_input_says_whether_codex_took_it() {
    let (sidecar, mut codex) = sidecar().await;
    for is_taken in [true, false] {
        let (mut turn, id) = begin(&sidecar, &mut codex, "a").await;
        let mut steering = pin!(steer(&sidecar, &id));
        let asked = meanwhile(steering.as_mut(), codex.asked("turn/steer")).await;
        codex.end_last_turn().await;
        if is_taken {
            codex.answer(&asked, json!({})).await;
        }
        let (steered, ()) = codex.during(async { tokio::join!(steering, turn.rest()) }).await;
        turn.completed();
        assert_eq!(steered.is_ok(), is_taken, "{steered:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_of_a_lent_function_is_answered_by_who_lends_it() {
    let (sidecar, mut codex) = sidecar().await;
    let (mut turn, id) = begin(&sidecar, &mut codex, "a").await;
    let asked = call_function(&mut codex, &mut turn, 7).await;
    let Some(pb::codex_request::Kind::ToolCall(call)) = &asked.kind else { panic!("{asked:#?}") };
    assert_eq!((call.tool.as_str(), call.arguments_json.as_str()), ("lookup", r#"{"key":"x"}"#));
    assert!(asked.expire_time.is_some(), "{asked:#?}");

    // What is no answer to it changes nothing.
    let request_id = asked.request_id.as_str();
    let unknown = answer(&sidecar, &id, "99", says("x")).await.unwrap_err();
    unknown.assert(Code::NotFound, "REQUEST_NOT_FOUND");
    let other = Answer::Approval(pb::ApprovalAnswer::default());
    let other = answer(&sidecar, &id, request_id, other).await.unwrap_err();
    other.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert!(
        other.message.contains("approval: request \"1\" is answered with tool_call"),
        "{other:#?}"
    );
    let empty = pb::ToolCallAnswer { content: vec![pb::ToolContent::default()], success: true };
    let empty = answer(&sidecar, &id, request_id, Answer::ToolCall(empty)).await.unwrap_err();
    empty.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert!(empty.message.contains("tool_call.content[0]"), "{empty:#?}");

    answer(&sidecar, &id, request_id, says("found")).await.unwrap();
    let answered: Value = codex.answered(7).await;
    let given =
        json!({ "contentItems": [{ "type": "inputText", "text": "found" }], "success": true });
    assert_eq!(answered["result"], given);
    // Codex tells that it has seen it.
    let seen = json!({ "threadId": turn.thread_id(), "requestId": 7 });
    codex.tell("serverRequest/resolved", seen).await;
    // The same answer may come twice, another one may not; also when the turn is over.
    for is_over in [false, true] {
        answer(&sidecar, &id, request_id, says("found")).await.unwrap();
        let second = answer(&sidecar, &id, request_id, says("other")).await.unwrap_err();
        second.assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
        let unknown = answer(&sidecar, &id, "2", says("x")).await.unwrap_err();
        unknown.assert(Code::NotFound, "REQUEST_NOT_FOUND");
        if !is_over {
            codex.end_last_turn().await;
            codex.during(turn.rest()).await;
        }
    }
    turn.completed();
    assert_eq!(resolutions(&turn), [pb::RequestResolution::Answered]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_nobody_answers_is_declined_in_its_time_and_the_turn_goes_on() {
    let (sidecar, mut codex) = sidecar().await;
    let (mut turn, id) = begin(&sidecar, &mut codex, "a").await;
    let began = tokio::time::Instant::now();
    let asked = call_function(&mut codex, &mut turn, 7).await;
    codex.during(turn.until("request_resolved")).await;
    assert_eq!(began.elapsed(), Duration::from_secs(60), "the server's default");
    let no = loop {
        let asked = codex.next().await.unwrap();
        if asked.method.is_empty() {
            break asked;
        }
        codex.answer_usually(&asked).await;
    };
    assert_eq!(no.id, 7);
    let late = answer(&sidecar, &id, &asked.request_id, says("late")).await.unwrap_err();
    late.assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
    // Codex takes one back.
    call_function(&mut codex, &mut turn, 8).await;
    let taken_back = json!({ "threadId": turn.thread_id(), "requestId": 8 });
    codex.tell("serverRequest/resolved", taken_back).await;
    codex.during(turn.until("request_resolved")).await;
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    turn.completed();
    use pb::RequestResolution::{TimedOut, Withdrawn};
    assert_eq!(resolutions(&turn), [TimedOut, Withdrawn]);
}

#[tokio::test(start_paused = true)]
async fn an_interruption_reaches_codex_before_the_no_to_its_question() {
    let (sidecar, mut codex) = sidecar().await;
    let (mut turn, id) = begin(&sidecar, &mut codex, "a").await;
    call_function(&mut codex, &mut turn, 7).await;
    let mut interrupting = pin!(interrupt(&sidecar, &id));
    let first = meanwhile(interrupting.as_mut(), codex.next()).await.unwrap();
    assert_eq!(first.method, "turn/interrupt");
    let no = meanwhile(interrupting.as_mut(), codex.answered(7)).await;
    assert_eq!(no["result"]["success"], false);
    codex.answer_usually(&first).await;
    codex.during(interrupting).await;
    turn.rest().await;
    assert_eq!(resolutions(&turn), [pb::RequestResolution::Withdrawn]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_worker_withdraws_its_questions() {
    let (sidecar, mut codex) = sidecar().await;
    let (mut turn, _) = begin(&sidecar, &mut codex, "a").await;
    call_function(&mut codex, &mut turn, 7).await;
    codex.exit("exit status 3");
    turn.rest().await;
    assert_eq!(turn.failed().reason, "WORKER_LOST");
    assert_eq!(resolutions(&turn), [pb::RequestResolution::Withdrawn]);
}

/// What is not a call of a lent function nobody is asked.
#[tokio::test(start_paused = true)]
async fn other_questions_are_declined_at_once() {
    let (sidecar, mut codex) = sidecar().await;
    let (mut turn, id) = begin(&sidecar, &mut codex, "a").await;
    let (thread_id, turn_id) = codex.turns[0].clone();
    let params = json!({ "threadId": thread_id, "turnId": turn_id, "itemId": "i", "command": "x" });
    codex.ask(7, "item/commandExecution/requestApproval", params).await;
    assert_eq!(codex.answered(7).await["result"]["decision"], "decline");
    let late = Answer::Approval(pb::ApprovalAnswer::default());
    let late = answer(&sidecar, &id, "1", late).await.unwrap_err();
    late.assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    assert_eq!(resolutions(&turn), [pb::RequestResolution::Declined]);
    let raised = turn.all().find_map(|event| match event {
        Event::RequestRaised(raised) => raised.request.as_ref(),
        _ => None,
    });
    assert_eq!(raised.unwrap().expire_time, None, "there is no time to answer it");
}
