//! Streams beside the first, and what is kept for them.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::json;
use tonic::Code;

use crate::grpc::api::codex_service_server::CodexServiceServer;
use crate::grpc::client::codex_service_client::CodexServiceClient;
use crate::pb;
use crate::testing::{Played, prompt, sidecar_with};
use crate::worker::testing::HOLD;

#[tokio::test(start_paused = true)]
async fn who_falls_behind_what_is_retained_is_told_of_the_gap() {
    let (sidecar, mut codex) =
        sidecar_with(|setup| setup.retention.max_bytes_per_turn = 64 << 10).await;
    codex.holds_turns = true;
    let mut live = codex.during(sidecar.begin(prompt("a", "hello"))).await.unwrap();
    codex.during(live.until("turn_started")).await;
    for number in 0..64 {
        let item =
            json!({ "type": "agentMessage", "id": number.to_string(), "text": "x".repeat(4096) });
        codex.tell_in_turn("item/completed", json!({ "item": item })).await;
    }
    codex.end_last_turn().await;
    codex.during(live.rest()).await;
    let mut replayed = sidecar.attach(&live.id()).await.unwrap();
    replayed.rest().await;
    let kinds = replayed.kinds();
    assert_eq!(kinds[..2], ["thread_started", "gap"], "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "gap").count(), 1, "{kinds:?}");
    assert_eq!(replayed.events[0], live.events[0]);
    assert_eq!(replayed.events.last(), live.events.last());
    // What is still there is what was told live, as far as this reader did not fall behind itself.
    let is_gap = |event: &pb::TurnEvent| matches!(event.event, Some(pb::turn_event::Event::Gap(_)));
    for event in &replayed.events[2..] {
        let told = live.events.iter().find(|told| told.sequence == event.sequence && !is_gap(told));
        assert!(told.is_none_or(|told| told == event));
    }
    let retained = sidecar.counts().await.retained_bytes;
    assert!((32 << 10..=80 << 10).contains(&retained), "{retained} bytes are retained");
}

#[tokio::test(start_paused = true)]
async fn turns_are_kept_for_their_time_and_not_longer() {
    let kept = Duration::from_secs(5);
    let sidecar = Played::with(|setup| setup.retention.after_end = kept).await;
    let engine = std::sync::Arc::clone(&sidecar.engine);
    tokio::spawn(async move { engine.sweep().await });
    let told = sidecar.say("a", "hello").await;
    let ended = tokio::time::Instant::now();
    assert_eq!(sidecar.counts().await.retained_turns, 1);
    let mut again = sidecar.attach(&told.id()).await.unwrap();
    again.rest().await;
    assert_eq!(again.events, told.events);
    let refused = loop {
        match sidecar.attach(&told.id()).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(refused) => break refused,
        }
    };
    refused.assert(Code::NotFound, "TURN_NOT_FOUND");
    assert!(ended.elapsed() >= kept, "after {:?}", ended.elapsed());
    let counts = sidecar.counts().await;
    assert_eq!((counts.retained_turns, counts.retained_bytes, counts.contexts), (0, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn leaving_an_attached_stream_does_not_touch_the_turn() {
    let sidecar = Played::with(|_| {}).await;
    let mut turn = sidecar.begin(prompt("a", HOLD)).await.unwrap();
    turn.until("turn_started").await;
    let mut attached = sidecar.attach(&turn.id()).await.unwrap();
    attached.until("thread_started").await;
    drop(attached);
    sidecar.release();
    turn.rest().await;
    assert_eq!(turn.final_response(), "released");

    // Nor does it keep the turn alive when its caller leaves.
    let mut turn = sidecar.begin(prompt("a", HOLD)).await.unwrap();
    turn.until("turn_started").await;
    let mut watching = sidecar.attach(&turn.id()).await.unwrap();
    drop(turn);
    watching.rest().await;
    assert_eq!(watching.interrupted(), pb::InterruptReason::CallerDisconnected);

    // Under CONTINUE it runs on.
    let outliving = pb::RunTurnRequest {
        disconnect_policy: pb::DisconnectPolicy::Continue.into(),
        ..prompt("a", HOLD)
    };
    let mut turn = sidecar.begin(outliving).await.unwrap();
    turn.until("turn_started").await;
    let turn_id = turn.id();
    drop(turn);
    tokio::time::sleep(Duration::from_secs(60)).await;
    sidecar.release();
    let mut seen = sidecar.attach(&turn_id).await.unwrap();
    seen.rest().await;
    assert_eq!(seen.final_response(), "released");
}

#[tokio::test(start_paused = true)]
async fn a_client_of_the_contract_reads_a_turn_from_both_streams() {
    let sidecar = Played::with(|_| {}).await;
    let mut client = CodexServiceClient::new(CodexServiceServer::new(sidecar.api.clone()));
    let mut request = prompt("a", "hello");
    request.thread_options.get_or_insert_default().skip_git_repo_check = Some(true);
    let run = client.run_turn(request).await.unwrap().into_inner();
    let told: Vec<pb::TurnEvent> =
        run.map(|response| response.unwrap().event.unwrap()).collect().await;
    let last = told.last().and_then(|event| event.event.as_ref());
    assert!(last.is_some_and(pb::turn_event::Event::is_terminal), "{last:?}");
    let turn_id = told[0].turn_id.clone();
    let target = Some(pb::attach_turn_request::Target::TurnId(turn_id));
    let request = pb::AttachTurnRequest { target, after_sequence: 0 };
    let attached = client.attach_turn(request).await.unwrap().into_inner();
    let replayed: Vec<pb::TurnEvent> =
        attached.map(|response| response.unwrap().event.unwrap()).collect().await;
    assert_eq!(replayed, told);
}
