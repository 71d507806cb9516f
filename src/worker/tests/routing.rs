//! Where what it says goes.

use super::*;
use crate::worker::testing::worker;

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
async fn a_second_route_takes_over_and_the_end_of_the_first_does_not_end_it() {
    let (worker, mut codex) = worker().await;
    let mut first = worker.route("t").unwrap();
    codex.begin_turn("t", "1", "1").await;
    settle().await;
    let mut second = worker.route("t").unwrap();
    codex.end_turn("t", "1").await;
    assert_eq!(next(&mut first).await, "turn/started");
    assert_eq!(next(&mut first).await, "the end");
    assert_eq!(next(&mut second).await, "turn/completed");
    drop(first);
    codex.begin_turn("t", "2", "2").await;
    assert_eq!(next(&mut second).await, "turn/started");
    codex.is_left_alone_for(60 * SECOND).await;
}
