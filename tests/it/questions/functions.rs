//! Functions that the caller lends.

use codex_sidecar::pb;
use codex_sidecar::pb::answer_request_request::Answer;
use codex_sidecar::pb::codex_request::Kind as Asked;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::tool_content::Content;
use codex_sidecar::pb::turn_event::Event;
use serde_json::Value;

use super::{answer, asked, give_back, lending, outputs};
use crate::support::attached::by_id;
use crate::support::{Sidecar, Told};

const PIXEL: &str = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

fn call_of(request: &pb::CodexRequest) -> &pb::ToolCall {
    let Some(Asked::ToolCall(call)) = &request.kind else { panic!("{request:#?}") };
    call
}

/// The calls that ended, with what they gave back.
fn calls(told: &Told) -> Vec<(String, pb::DynamicToolCallStatus)> {
    let calls = told.items().into_iter().filter_map(|(id, kind)| match kind {
        Kind::DynamicToolCall(call) => Some((id.to_owned(), call.status())),
        _ => None,
    });
    calls.collect()
}

#[tokio::test]
async fn calls_that_are_made_at_once_wait_at_once_and_are_answered_in_any_order() {
    let sidecar = Sidecar::start().await;
    let words =
        r#"[[tool look {"n": 1}]] [[and]] [[tool look {"n": 2}]] [[and]] [[tool look {"n": 3}]]"#;
    let mut turn = sidecar.begin(lending("a", words)).await;
    let mut waiting = Vec::new();
    for _ in 1..=3 {
        let request = asked(&mut turn).await;
        let arguments: Value = serde_json::from_str(&call_of(&request).arguments_json).unwrap();
        assert_eq!(call_of(&request).tool, "look");
        waiting.push((arguments["n"].as_u64().unwrap(), request));
    }
    // Codex may ask for them in another order than they were made in.
    waiting.sort_by_key(|(n, _)| *n);
    assert!(waiting.iter().map(|(n, _)| *n).eq(1..=3));
    for (n, request) in waiting.iter().rev() {
        let back = give_back(&format!("number {n}"));
        answer(&sidecar, turn.turn_id(), &request.request_id, back).await.unwrap();
    }
    let told = turn.rest().await;
    let ended = calls(&told);
    assert_eq!(ended.len(), 3);
    assert!(ended.iter().all(|(_, status)| *status == pb::DynamicToolCallStatus::Completed));
    assert_eq!(outputs(&sidecar, "a").await, ["number 1", "number 2", "number 3"]);

    sidecar.stop().await;
}

#[tokio::test]
async fn a_function_gives_back_texts_and_images_or_fails() {
    let sidecar = Sidecar::with(|config| config.retention.max_bytes_per_turn = 16 << 20).await;
    let content = |content: Content| pb::ToolContent { content: Some(content) };
    // Six megabytes in one answer: far more than a gRPC message has by default, and less than a line.
    let long = "x".repeat(6 << 20);
    let both = vec![content(Content::Text(long.clone())), content(Content::ImageUrl(PIXEL.into()))];
    let mut turn = sidecar.begin(lending("a", "[[tool look]] [[tool look]]")).await;
    let request = asked(&mut turn).await;
    let far = pb::ToolContent { content: Some(Content::ImageUrl("https://x.test/i.png".into())) };
    let unfit = Answer::ToolCall(pb::ToolCallAnswer { content: vec![far], success: true });
    let refused = answer(&sidecar, turn.turn_id(), &request.request_id, unfit).await;
    assert_eq!(refused.unwrap_err().field_paths(), ["tool_call.content[0].image_url"]);
    let back = Answer::ToolCall(pb::ToolCallAnswer { content: both, success: true });
    answer(&sidecar, turn.turn_id(), &request.request_id, back).await.unwrap();

    let request = asked(&mut turn).await;
    let failed = vec![content(Content::Text("no such thing".into()))];
    let failed = Answer::ToolCall(pb::ToolCallAnswer { content: failed, success: false });
    answer(&sidecar, turn.turn_id(), &request.request_id, failed).await.unwrap();
    let told = turn.rest().await;
    told.completed();
    use pb::DynamicToolCallStatus::{Completed, Failed};
    let status: Vec<_> = calls(&told).into_iter().map(|(_, status)| status).collect();
    assert_eq!(status, [Completed, Failed]);

    sidecar.stop().await;
}

#[tokio::test]
async fn a_caller_that_vanishes_comes_back_to_its_call_and_one_that_does_not_is_not_waited_for() {
    let sidecar = Sidecar::start().await;
    let mut request = lending("back", "[[tool look]] [[say went on]]");
    request.set_disconnect_policy(pb::DisconnectPolicy::Continue);
    let mut turn = sidecar.begin(request.clone()).await;
    let call = asked(&mut turn).await;
    let turn_id = turn.turn_id().to_owned();
    drop(turn);
    // All of it is told again, the call included, and it waits still.
    let mut attached = sidecar.attach(by_id(&turn_id), 0).await;
    let raised = loop {
        let event = attached.try_next().await.unwrap().expect("the turn still runs");
        if let Some(Event::RequestRaised(pb::RequestRaised { request: Some(request) })) =
            event.event
        {
            break request;
        }
    };
    assert_eq!(raised, call);
    answer(&sidecar, &turn_id, &raised.request_id, give_back("found")).await.unwrap();
    let events = attached.rest().await;
    let told = Told { events };
    assert_eq!(told.final_response(), "went on");
    assert_eq!(outputs(&sidecar, "back").await, ["found"]);

    request.context_id = "gone".to_owned();
    let soon = prost_types::Duration { seconds: 1, nanos: 0 };
    request.turn_options.get_or_insert_default().answer_timeout = Some(soon);
    let mut turn = sidecar.begin(request).await;
    let call = asked(&mut turn).await;
    assert!(call.expire_time.is_some());
    let turn_id = turn.turn_id().to_owned();
    drop(turn);
    let told = Told { events: sidecar.attach(by_id(&turn_id), 0).await.rest().await };
    assert_eq!(told.final_response(), "went on");
    let resolved = super::resolved(&told);
    assert_eq!(resolved[0].resolution(), pb::RequestResolution::TimedOut);
    assert_eq!(resolved[0].resolved_by, "sidecar");
    let status: Vec<_> = calls(&told).into_iter().map(|(_, status)| status).collect();
    assert_eq!(status, [pb::DynamicToolCallStatus::Failed]);

    sidecar.stop().await;
}
