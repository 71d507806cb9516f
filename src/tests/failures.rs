//! Turns that Codex fails, and items that nobody knows.

use serde_json::{Value, json};

use crate::pb;
use crate::testing::{Sidecar, Turn, prompt, sidecar};
use crate::worker::testing::Codex;

/// A turn in which Codex does this before it fails.
async fn failing(
    sidecar: &Sidecar,
    codex: &mut Codex,
    item: Option<Value>,
    (info, message): (Value, &str),
) -> Turn {
    let mut turn = sidecar.hold(codex, prompt("a", "hello")).await;
    if let Some(item) = item {
        codex.tell_in_turn("item/started", json!({ "item": item })).await;
    }
    let (thread_id, turn_id) = codex.turns.last().unwrap().clone();
    let error = json!({ "message": message, "codexErrorInfo": info });
    let failed = json!({ "id": turn_id, "status": "failed", "error": error });
    codex.tell("turn/completed", json!({ "threadId": thread_id, "turn": failed })).await;
    codex.during(turn.rest()).await;
    turn
}

#[tokio::test(start_paused = true)]
async fn a_failure_says_what_may_have_been_done_and_when_to_try_again() {
    let (sidecar, mut codex) = sidecar().await;
    let limited = json!({ "responseTooManyFailedAttempts": { "httpStatusCode": 429 } });
    let limited = (limited, "Please try again in 7.5s.");
    let told = failing(&sidecar, &mut codex, None, limited).await;
    let error = told.failed();
    assert_eq!(error.reason, "RATE_LIMIT_EXCEEDED");
    assert_eq!(error.http_status, Some(429));
    assert_eq!(error.retry_after.map(|after| (after.seconds, after.nanos)), Some((7, 500_000_000)));
    // This Codex keeps no record that would say that nothing was done.
    assert!(error.retryable && error.side_effects_possible, "{error:#?}");

    for item in [
        json!({ "type": "agentMessage", "id": "i", "text": "hello" }),
        json!({
            "type": "commandExecution", "id": "i", "command": "true", "cwd": "/",
            "commandActions": [], "status": "inProgress",
        }),
        json!({ "type": "fileChange", "id": "i", "changes": [], "status": "completed" }),
        json!({
            "type": "mcpToolCall", "id": "i", "server": "desk", "tool": "ring", "arguments": {},
            "status": "failed",
        }),
        json!({ "type": "hologram", "id": "i" }),
    ] {
        let spent = (json!("usageLimitExceeded"), "no more");
        let told = failing(&sidecar, &mut codex, Some(item.clone()), spent).await;
        let error = told.failed();
        let said = (error.reason.as_str(), error.message.as_str());
        assert_eq!(said, ("USAGE_LIMIT_EXCEEDED", "no more"));
        assert!(error.side_effects_possible, "{item}");
        assert!(!error.retryable && error.retry_after.is_none());
    }
    // The thread is the context's all the same.
    assert_eq!(sidecar.context("a").await.unwrap().turn_count, 6);
    codex.holds_turns = false;
    codex.during(sidecar.say("a", "hello")).await.completed();
}

#[tokio::test(start_paused = true)]
async fn an_item_of_a_newer_cli_is_passed_on_whole() {
    let (sidecar, mut codex) = sidecar().await;
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    let item = json!({ "type": "hologram", "id": "h1", "depth": 3 });
    codex.tell_in_turn("item/completed", json!({ "item": item })).await;
    codex.say_in_turn("done").await;
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    assert_eq!(turn.final_response(), "done");
    let unknown = turn.items().into_iter().find_map(|kind| match kind {
        pb::item::Kind::Unknown(item) => Some(item),
        _ => None,
    });
    let unknown = unknown.unwrap();
    assert_eq!(unknown.r#type, "hologram");
    assert_eq!(serde_json::from_str::<Value>(&unknown.json).unwrap(), item);
}
