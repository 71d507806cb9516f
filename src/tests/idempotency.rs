//! Calls that are made again under the id that they had.

use tonic::Code;

use crate::pb;
use crate::testing::{Played, prompt, sidecar_with};
use crate::worker::testing::HOLD;

fn with_id(request: pb::RunTurnRequest, id: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest { request_id: id.to_owned(), ..request }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_call_keeps_the_turn_alive_when_the_first_one_is_lost() {
    let sidecar = Played::with(|_| {}).await;
    let request = with_id(prompt("a", HOLD), "r");
    let mut first = sidecar.begin(request.clone()).await.unwrap();
    first.until("turn_started").await;
    let mut second = sidecar.begin(request.clone()).await.unwrap();
    second.until("turn_started").await;
    assert_eq!(second.id(), first.id());
    drop(first);
    sidecar.release();
    second.rest().await;
    assert_eq!(second.final_response(), "released");

    // With the last one it is over.
    let request = with_id(prompt("a", HOLD), "s");
    let mut first = sidecar.begin(request.clone()).await.unwrap();
    first.until("turn_started").await;
    let turn_id = first.id();
    let second = sidecar.begin(request.clone()).await.unwrap();
    drop((first, second));
    sidecar.attach(&turn_id).await.unwrap().rest().await;
    assert_eq!(sidecar.run(request).await.interrupted(), pb::InterruptReason::CallerDisconnected);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_leaves_no_trace_of_its_id() {
    let (sidecar, mut codex) = sidecar_with(|setup| setup.limits.max_waiting_turns = 0).await;
    let mut busy = codex.during(sidecar.begin(prompt("a", HOLD))).await.unwrap();
    codex.during(busy.until("turn_started")).await;
    let request = with_id(prompt("a", "hello"), "r");
    sidecar.refused(request.clone()).await.assert(Code::ResourceExhausted, "QUEUE_FULL");
    codex.during(sidecar.interrupt(&busy.id())).await;
    codex.during(sidecar.run(request)).await.completed();
    // Not even of its content.
    let missing = "00000000-0000-4000-8000-000000000000";
    codex.refuses.push(("thread/resume", 1, -32600, "no rollout found for thread id"));
    let gone = pb::RunTurnRequest { thread_id: missing.to_owned(), ..prompt("c", "hello") };
    let refused = codex.during(sidecar.refused(with_id(gone, "q"))).await;
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    codex.during(sidecar.run(with_id(prompt("c", "hello"), "q"))).await.completed();
}

#[tokio::test(start_paused = true)]
async fn a_repeated_call_does_not_steer_twice() {
    let sidecar = Played::with(|_| {}).await;
    let mut running = sidecar.begin(prompt("a", HOLD)).await.unwrap();
    running.until("turn_started").await;
    let steering = pb::RunTurnRequest {
        busy_policy: pb::BusyPolicy::Steer.into(),
        ..with_id(prompt("a", "this way"), "r")
    };
    let calls = (0..10).map(|_| sidecar.run(steering.clone()));
    let (calls, ()) = tokio::join!(futures::future::join_all(calls), running.rest());
    assert_eq!(running.final_response(), "steered");
    for call in calls {
        assert_eq!(call.events, running.events);
    }
    let steered = running.items().into_iter().filter(|kind| {
        matches!(kind, pb::item::Kind::UserMessage(message)
            if message.inputs == prompt("a", "this way").inputs)
    });
    assert_eq!(steered.count(), 1, "{:#?}", running.events);
}
