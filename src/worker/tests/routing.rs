//! Where what it says goes.

use super::*;
use crate::worker::testing::{worker, worker_with};

fn child(parent: &str, child: &str) -> Value {
    json!({ "thread": { "id": child, "parentThreadId": parent } })
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_a_thread_goes_to_the_turn_on_it_alone() {
    let (worker, mut codex) = worker().await;
    let (mut one, mut two) = (worker.route("t1").unwrap(), worker.route("t2").unwrap());
    codex.begin_turn("t1", "u1", "r1").await;
    codex.begin_turn("t2", "u2", "r2").await;
    codex.ask(1, "item/tool/call", json!({ "threadId": "t2", "turnId": "u2" })).await;
    codex.end_turn("t1", "u1").await;
    codex.tell("account/updated", json!({})).await;
    assert_eq!(all(&mut one).await, ["turn/started", "turn/completed"]);
    assert_eq!(all(&mut two).await, ["turn/started", "a question: item/tool/call"]);
    // The older way to name it.
    codex.ask(2, "execCommandApproval", json!({ "conversationId": "t1" })).await;
    assert_eq!(all(&mut one).await, ["a question: execCommandApproval"]);
    drop(one);
    codex.end_turn("t2", "u2").await;
    codex.tell("item/started", json!({ "threadId": "t1", "item": {} })).await;
    assert_eq!(all(&mut two).await, ["turn/completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_no_turn_waits_for_is_declined() {
    let (worker, mut codex) = worker().await;
    let route = worker.route("t").unwrap();
    codex.ask(1, "item/commandExecution/requestApproval", json!({ "threadId": "x" })).await;
    assert_eq!(codex.answered(1).await["result"]["decision"], "decline");
    codex.ask(2, "mystery/request", json!({ "of": "no thread" })).await;
    let refused = codex.answered(2).await;
    assert_eq!(refused["error"]["code"], -32601, "{refused}");
    drop(route);
    codex.ask(3, "item/tool/call", json!({ "threadId": "t" })).await;
    assert_eq!(codex.answered(3).await["result"]["success"], false);
}

#[tokio::test(start_paused = true)]
async fn a_route_that_is_closed_leaves_no_question_without_somebody_to_answer_it() {
    let (worker, mut codex) = worker().await;
    let mut route = worker.route("t").unwrap();
    codex.ask(1, "item/tool/call", json!({ "threadId": "t" })).await;
    settle().await;
    route.close();
    codex.ask(2, "item/tool/call", json!({ "threadId": "t" })).await;
    assert_eq!(codex.answered(2).await["result"]["success"], false);
    assert_eq!(all(&mut route).await, ["a question: item/tool/call"]);
    // Another one may listen, and keeps its route when the closed one goes.
    let mut next = worker.route("t").unwrap();
    drop(route);
    codex.begin_turn("t", "u", "r").await;
    assert_eq!(all(&mut next).await, ["turn/started"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_about_the_process_is_no_turns_question() {
    let (worker, mut codex) = worker().await;
    let mut route = worker.route("t").unwrap();
    codex.ask(1, "currentTime/read", json!({ "threadId": "t" })).await;
    let now = codex.answered(1).await["result"]["currentTimeAt"].as_u64().unwrap();
    assert!(now > 1_700_000_000, "{now}");
    assert!(all(&mut route).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_sub_agent_says_goes_to_the_turn_of_its_elder() {
    let (worker, mut codex) = worker().await;
    let mut elder = worker.route("t").unwrap();
    codex.tell("thread/started", child("t", "c")).await;
    codex.tell("thread/started", child("c", "g")).await;
    codex.begin_turn("g", "1", "1").await;
    codex.ask(1, "item/tool/call", json!({ "threadId": "g" })).await;
    assert_eq!(all(&mut elder).await, ["turn/started", "a question: item/tool/call"]);
    // One that a turn of ours is on has its own.
    let mut own = worker.route("c").unwrap();
    codex.begin_turn("c", "2", "2").await;
    codex.end_turn("g", "1").await;
    assert_eq!(all(&mut own).await, ["turn/started", "turn/completed"]);
    assert!(all(&mut elder).await.is_empty());
    // Nothing of that was stopped.
    codex.is_left_alone_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_sub_agent_says_before_its_parent_is_known_is_held_for_the_turn() {
    let (worker, mut codex) = worker().await;
    let mut elder = worker.route("t").unwrap();
    codex.begin_turn("c", "1", "1").await;
    codex.tell("item/started", json!({ "threadId": "c", "item": {} })).await;
    assert!(all(&mut elder).await.is_empty());
    tokio::time::sleep(Duration::from_millis(500)).await;
    codex.tell("thread/started", child("t", "c")).await;
    codex.end_turn("c", "1").await;
    assert_eq!(all(&mut elder).await, ["turn/started", "item/started", "turn/completed"]);
    codex.is_left_alone_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_route_of_a_thread_is_refused_and_the_first_goes_on() {
    let (worker, mut codex) = worker().await;
    let mut first = worker.route("t").unwrap();
    codex.begin_turn("t", "1", "1").await;
    settle().await;
    assert_eq!(worker.route("t").unwrap_err(), NoRoute::Taken);
    codex.end_turn("t", "1").await;
    assert_eq!(all(&mut first).await, ["turn/started", "turn/completed"]);
    drop(first);
    let mut second = worker.route("t").unwrap();
    codex.begin_turn("t", "2", "2").await;
    assert_eq!(next(&mut second).await, "turn/started");
    codex.is_left_alone_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_route_that_nobody_reads_ends_alone_when_too_much_waits_in_it() {
    const LINE: usize = 64 << 10;
    let (worker, mut codex) = worker_with(|spec| {
        spec.limits.peer.max_line_bytes = LINE;
        spec.limits.peer.max_echo_bytes = LINE;
    })
    .await;
    let (mut unread, mut read) = (worker.route("t").unwrap(), worker.route("u").unwrap());
    let diff =
        |thread: &str| json!({ "threadId": thread, "turnId": "1", "diff": "x".repeat(60 << 10) });
    let mut heard = 0;
    for _ in 0..100 {
        codex.tell("turn/diff/updated", diff("t")).await;
        codex.tell("turn/diff/updated", diff("u")).await;
        heard += all(&mut read).await.len();
    }
    assert_eq!(heard, 100, "one that is read takes any number");
    let held = std::iter::from_fn(|| unread.try_recv()).count();
    assert!((4..=8).contains(&held), "{held} lines");
    assert_eq!(next(&mut unread).await, "the end");
    assert!(worker.is_alive());
    // What came for it is nobody's by now, and the end of a route is not that of the next one.
    codex.ask(1, "item/tool/call", json!({ "threadId": "t" })).await;
    assert_eq!(codex.answered(1).await["result"]["success"], false);
    let mut next_one = worker.route("t").unwrap();
    drop(unread);
    codex.begin_turn("t", "2", "2").await;
    assert_eq!(next(&mut next_one).await, "turn/started");
    // A line of any length that is the only one fits.
    codex.tell("turn/diff/updated", diff("t")).await;
    assert_eq!(next(&mut next_one).await, "turn/diff/updated");
}
