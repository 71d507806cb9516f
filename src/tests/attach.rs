//! Streams beside the first, and what is kept for them.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::json;
use tonic::Code;

use crate::grpc::api::codex_service_server::CodexServiceServer;
use crate::grpc::client::codex_service_client::CodexServiceClient;
use crate::grpc::stream::EventBodies;
use crate::pb;
use crate::testing::{Played, prompt, sidecar_with};
use crate::worker::testing::HOLD;

#[tokio::test(start_paused = true)]
async fn who_falls_behind_what_is_retained_is_told_of_the_gap() {
    let (sidecar, mut codex) =
        sidecar_with(|setup| setup.retention.max_bytes_per_turn = 64 << 10).await;
    let mut live = sidecar.hold(&mut codex, prompt("a", "hello")).await;
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
    let service = EventBodies(CodexServiceServer::new(sidecar.api.clone()));
    let mut client = CodexServiceClient::new(service);
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

/// Of any size, also beyond what goes to a connection in one piece; and what a stream ends with.
#[tokio::test(start_paused = true)]
async fn the_body_of_a_stream_holds_the_events_as_they_are_and_its_status() {
    let (sidecar, mut codex) =
        sidecar_with(|setup| setup.retention.max_bytes_per_turn = 16 << 20).await;
    let mut live = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    for bytes in [0, 1, 127, 16_000, 16_384, 40_000, 3_000_000] {
        let text = "x".repeat(bytes);
        let item = json!({ "type": "agentMessage", "id": bytes.to_string(), "text": text });
        codex.tell_in_turn("item/completed", json!({ "item": item })).await;
        codex.during(live.until("item_completed")).await;
    }
    let service = EventBodies(CodexServiceServer::new(sidecar.api.clone()));
    let client = || CodexServiceClient::new(service.clone()).max_decoding_message_size(8 << 20);
    let target = Some(pb::attach_turn_request::Target::TurnId(live.id()));
    let request = pb::AttachTurnRequest { target, after_sequence: 0 };
    let mut mute = tonic::Request::new(request.clone());
    mute.set_timeout(Duration::from_secs(1));
    let mut attached = client().attach_turn(request).await.unwrap().into_inner();
    codex.end_last_turn().await;
    codex.during(live.rest()).await;
    let mut read = Vec::new();
    while let Some(response) = attached.message().await.unwrap() {
        read.push(response.event.unwrap());
    }
    assert_eq!(read.len(), live.events.len());
    assert!(read == live.events);

    // One that is not over when its time is.
    let mut waiting = codex.during(sidecar.begin(prompt("b", "hello"))).await.unwrap();
    codex.during(waiting.until("turn_started")).await;
    let target = Some(pb::attach_turn_request::Target::TurnId(waiting.id()));
    mute.get_mut().target = target;
    let mut attached = client().attach_turn(mute).await.unwrap().into_inner();
    let status = loop {
        match attached.message().await {
            Ok(response) => assert!(response.is_some()),
            Err(status) => break status,
        }
    };
    crate::testing::Refused::from(status).assert(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
}

#[tokio::test(start_paused = true)]
async fn a_turn_has_so_many_readers_and_no_more_until_one_goes() {
    let sidecar = Played::with(|setup| setup.readers.max_readers_per_turn = 3).await;
    let mut turn = sidecar.begin(prompt("a", HOLD)).await.unwrap();
    turn.until("turn_started").await;
    let mut readers = Vec::new();
    let refused = loop {
        match sidecar.attach(&turn.id()).await {
            Ok(reader) => readers.push(reader),
            Err(refused) => break refused,
        }
    };
    refused.assert(Code::ResourceExhausted, "TOO_MANY_READERS");
    assert_eq!(readers.len(), 2);
    readers.pop();
    readers.push(sidecar.attach(&turn.id()).await.unwrap());
    sidecar.release();
    for reader in &mut readers {
        reader.rest().await;
    }
    turn.rest().await;
    // An ended stream is none, read or not.
    readers.push(sidecar.attach(&turn.id()).await.unwrap());
    let limits = sidecar.info().await.limits.unwrap();
    assert_eq!((limits.max_readers, limits.max_readers_per_turn), (4096, 3));
}

/// Whatever part of an item is large.
#[tokio::test(start_paused = true)]
async fn what_is_retained_is_counted_with_all_texts_of_all_items() {
    let large = "x".repeat(100_000);
    let items = [
        json!({ "type": "agentMessage", "text": large }),
        json!({ "type": "reasoning", "summary": [large], "content": [] }),
        json!({ "type": "plan", "text": large }),
        json!({ "type": "commandExecution", "command": "x", "cwd": "/", "status": "completed",
            "commandActions": [], "aggregatedOutput": large }),
        json!({ "type": "commandExecution", "command": large, "cwd": "/", "status": "completed",
            "commandActions": [] }),
        json!({ "type": "mcpToolCall", "server": "s", "tool": "t", "status": "completed",
            "arguments": { "a": large } }),
        json!({ "type": "mcpToolCall", "server": "s", "tool": "t", "status": "completed",
            "arguments": {}, "result": { "content": [{ "type": "text", "text": large }] } }),
        json!({ "type": "fileChange", "status": "completed",
            "changes": [{ "path": "/a", "kind": { "type": "add" }, "diff": large }] }),
        json!({ "type": "webSearch", "query": large }),
        json!({ "type": "nobodyKnows", "what": large }),
    ];
    let (sidecar, mut codex) = sidecar_with(|_| {}).await;
    let mut live = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    for (number, mut item) in items.into_iter().enumerate() {
        item["id"] = json!(number.to_string());
        let before = sidecar.counts().await.retained_bytes;
        codex.tell_in_turn("item/completed", json!({ "item": item })).await;
        codex.during(live.until("item_completed")).await;
        let counted = sidecar.counts().await.retained_bytes - before;
        assert!((100_000..150_000).contains(&counted), "{counted}: {}", item["type"]);
    }
    codex.end_last_turn().await;
    codex.during(live.rest()).await;
}
