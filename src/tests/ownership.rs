//! Turns that nobody asked for, and the turns that come after them.

use std::time::Duration;

use serde_json::json;

use crate::pb;
use crate::testing::{Turn, meanwhile, prompt, sidecar, sidecar_with};
use crate::worker::testing::Codex;

/// Tells that a thread has used so many tokens by now.
async fn uses(codex: &mut Codex, thread_id: &str, total: u64) {
    let counts = json!({ "total": { "inputTokens": total }, "last": { "inputTokens": total } });
    let told = json!({ "threadId": thread_id, "turnId": "any", "tokenUsage": counts });
    codex.tell("thread/tokenUsage/updated", told).await;
}

/// What the turn used.
fn used(turn: &Turn) -> u64 {
    turn.completed().usage.as_ref().map_or(0, |usage| usage.input_tokens)
}

/// Runs the turn that Codex was told to begin last to its end, with so many tokens of the thread in all.
async fn finish(codex: &mut Codex, turn: &mut Turn, total: u64) {
    let (thread_id, turn_id) = codex.turns.last().unwrap().clone();
    let counts = json!({ "total": { "inputTokens": total }, "last": { "inputTokens": 10 } });
    codex.tell_in_turn("thread/tokenUsage/updated", json!({ "tokenUsage": counts })).await;
    codex.say_in_turn("done").await;
    codex.end_turn(&thread_id, &turn_id).await;
    codex.during(turn.rest()).await;
    assert_eq!(turn.final_response(), "done");
}

async fn soon(codex: &mut Codex) {
    codex.during(tokio::time::sleep(Duration::from_millis(100))).await;
}

fn stopped(turn: &Turn) -> usize {
    turn.warned("UNOWNED_TURN_STOPPED").len()
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_nobody_asked_for_is_stopped_and_told_and_swallows_none() {
    let (sidecar, mut codex) = sidecar().await;
    for (context, count) in [("one", 1_u64), ("three", 3)] {
        codex.holds_turns = true;
        let mut first = codex.during(sidecar.begin(prompt(context, "first"))).await.unwrap();
        finish(&mut codex, &mut first, 10).await;
        let thread_id = first.thread_id().to_owned();
        for own in 1..=count {
            let own_turn = format!("{context}-own-{own}");
            codex.begin_turn(&thread_id, &own_turn, &own_turn).await;
            uses(&mut codex, &thread_id, 10 + own * 100).await;
            soon(&mut codex).await;
        }
        let before = codex.count("turn/interrupt");
        let mut told = codex.during(sidecar.begin(prompt(context, "hello"))).await.unwrap();
        finish(&mut codex, &mut told, 20 + count * 100).await;
        // What nobody asked for is not charged to the turn.
        assert_eq!((used(&told), told.thread_id()), (10, thread_id.as_str()), "{context}");
        assert_eq!(stopped(&told) as u64, count, "{context}");
        assert_eq!(codex.count("turn/interrupt"), before, "they were ended before");
        let mut last = codex.during(sidecar.begin(prompt(context, "hello"))).await.unwrap();
        finish(&mut codex, &mut last, 30 + count * 100).await;
        assert_eq!(stopped(&last), 0, "{context}: told once");
    }
    assert_eq!(sidecar.worker().await.generation, 1);
}

/// Codex says that its own turn is over, and takes the next turn as steering of it.
#[tokio::test(start_paused = true)]
async fn a_turn_that_was_taken_as_steering_of_codexs_own_is_begun_once_more() {
    let (sidecar, mut codex) = sidecar().await;
    let first = codex.during(sidecar.say("a", "first")).await;
    let thread_id = first.thread_id().to_owned();
    codex.begin_turn(&thread_id, "own", "own").await;
    codex.end_turn(&thread_id, "own").await;
    soon(&mut codex).await;
    let mut next = std::pin::pin!(sidecar.say("a", "hello"));
    let asked = meanwhile(next.as_mut(), codex.asked("turn/start")).await;
    codex.answer(&asked, json!({ "turn": { "id": "own", "rootTurnId": "own" } })).await;
    let next = codex.during(next).await;
    assert_eq!(next.final_response(), "You said: hello");
    let interrupted = codex.heard_of("turn/interrupt");
    assert_eq!(interrupted.len(), 1);
    assert_eq!(interrupted[0].params["turnId"], "own");
    assert_eq!((stopped(&next), next.thread_id()), (1, thread_id.as_str()));
    let last = codex.during(sidecar.say("a", "hello")).await;
    assert_eq!(stopped(&last), 0, "told once");
}

/// No interruption ends it: the thread is loaded anew.
#[tokio::test(start_paused = true)]
async fn a_thread_whose_own_turn_can_not_be_ended_is_loaded_anew_for_the_next() {
    let grace = Duration::from_millis(500);
    let (sidecar, mut codex) = sidecar_with(|setup| setup.timeouts.interrupt_grace = grace).await;
    let first = codex.during(sidecar.say("a", "first")).await;
    let thread_id = first.thread_id().to_owned();
    codex.is_deaf_to_interrupts = true;
    codex.begin_turn(&thread_id, "own", "own").await;
    soon(&mut codex).await;
    let told = codex.during(sidecar.say("a", "hello")).await;
    assert_eq!(told.final_response(), "You said: hello");
    assert_eq!((stopped(&told), told.thread_id()), (1, thread_id.as_str()));
    assert_eq!(told.thread_started().origin(), pb::ThreadOrigin::Resumed);
    assert_eq!((codex.count("thread/archive"), codex.count("thread/resume")), (1, 1));
    assert_eq!(sidecar.worker().await.generation, 1, "the worker was not given up");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_end_what_nobody_asked_for_is_given_up() {
    let (sidecar, mut codex) = sidecar().await;
    let first = codex.during(sidecar.say("a", "first")).await;
    // On a thread that nobody knows: neither an interruption nor unloading it helps.
    codex.is_deaf_to_interrupts = true;
    codex.refuses.push(("thread/archive", 1, -32600, "thread not found"));
    codex.begin_turn("stray", "u", "u").await;
    let end = codex.ended();
    assert_eq!(codex.during(end).await, "signal 9");
    let mut codex = sidecar.codex().await;
    let next = codex.during(sidecar.say("a", "hello")).await;
    assert_eq!(next.thread_id(), first.thread_id());
    assert_eq!(next.final_response(), "You said: hello");
    let worker = sidecar.worker().await;
    assert_eq!(worker.generation, 2);
    assert!(worker.last_error.contains("turns that nobody had asked for"), "{worker:#?}");
}

/// What Codex does at last may be read in one go with the answer that nothing is left to be done.
#[tokio::test(start_paused = true)]
async fn what_was_told_before_an_answer_is_heard_before_it() {
    let (sidecar, mut codex) = sidecar().await;
    let mut turn = sidecar.hold(&mut codex, prompt("a", "x")).await;
    let (thread_id, turn_id) = codex.turns[0].clone();
    let goal = json!({ "threadId": thread_id, "goal": { "status": "active" } });
    codex.tell("thread/goal/updated", goal).await;
    codex.end_turn(&thread_id, &turn_id).await;
    let mut rest = Box::pin(turn.rest());
    let asked = meanwhile(rest.as_mut(), codex.asked("thread/goal/get")).await;
    let item = json!({ "type": "agentMessage", "id": "said", "text": "went on" });
    let lines = [
        json!({ "method": "turn/started",
            "params": { "threadId": thread_id, "turn": { "id": "u2" } } }),
        json!({ "method": "item/completed",
            "params": { "threadId": thread_id, "turnId": "u2", "item": item } }),
        json!({ "method": "thread/goal/cleared", "params": { "threadId": thread_id } }),
        json!({ "method": "turn/completed",
            "params": { "threadId": thread_id, "turn": { "id": "u2", "status": "completed" } } }),
        json!({ "id": asked.id, "result": {} }),
    ];
    codex.write(lines.map(|line| format!("{line}\n")).concat().as_bytes()).await;
    codex.during(rest).await;
    assert_eq!(turn.final_response(), "went on");
}
