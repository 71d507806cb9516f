//! `RunTurn` over real gRPC, on the real CLI with the offline model.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, and says where"
)]

mod support;

use codex_sidecar::pb;
use support::Sidecar;

#[tokio::test]
async fn the_second_turn_of_a_context_continues_its_thread() {
    let sidecar = Sidecar::start().await;
    let first = sidecar.say("a", "hello").await;
    assert_eq!(first.origin(), pb::ThreadOrigin::New);
    assert_eq!(first.final_response(), "You said: hello (user messages so far: 1)");

    let second = sidecar.say("a", "again").await;
    assert_eq!(second.origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(second.thread_id(), first.thread_id());
    assert_ne!(second.turn_id(), first.turn_id());
    assert_eq!(second.final_response(), "You said: again (user messages so far: 2)");
    sidecar.stop().await;
}

#[tokio::test]
async fn the_built_binary_serves_the_same() {
    let sidecar = support::binary::Binary::start().await;
    let told = sidecar.say("a", "hello").await;
    assert_eq!(told.final_response(), "You said: hello (user messages so far: 1)");
    sidecar.stop().await;
}
