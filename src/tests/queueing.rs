//! Turns that meet: order, limits, and what may be done to those that wait.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;

use crate::model::id::CallerId;
use crate::pb;
use crate::testing::{Played, Turn, prompt};
use crate::worker::testing::HOLD;

fn under(policy: pb::BusyPolicy, request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    pb::RunTurnRequest { busy_policy: policy.into(), ..request }
}

/// A turn that Codex has taken.
async fn taken(sidecar: &Played, context: &str) -> Turn {
    let mut turn = sidecar.begin(prompt(context, HOLD)).await.unwrap();
    turn.until("turn_started").await;
    turn
}

/// On two threads, so that they do race.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_races_of_two_first_turns_give_one_thread_each_and_turns_in_order() {
    let sidecar = Played::with(|setup| setup.workers = 2).await;
    let slots = Arc::new(Semaphore::new(16));
    let mut races = JoinSet::new();
    for race in 0..1000 {
        let (sidecar, slots) = (Arc::clone(&sidecar), Arc::clone(&slots));
        races.spawn(async move {
            let _slot = slots.acquire().await.unwrap();
            let context = format!("race {race}");
            let (one, two) =
                tokio::join!(sidecar.say(&context, "hello"), sidecar.say(&context, "hello"));
            assert_eq!(one.thread_id(), two.thread_id(), "{context}");
            let (first, second) = match one.thread_started().origin() {
                pb::ThreadOrigin::New => (one, two),
                _ => (two, one),
            };
            assert_eq!(first.thread_started().origin(), pb::ThreadOrigin::New, "{context}");
            assert_eq!(second.thread_started().origin(), pb::ThreadOrigin::Resumed, "{context}");
            for turn in [&first, &second] {
                assert_eq!(turn.final_response(), "You said: hello");
            }
            // One clock, read by one process.
            let time = |event: &pb::TurnEvent| {
                let at = event.emitted_at.unwrap();
                (at.seconds, at.nanos)
            };
            let began = second.kinds().iter().position(|kind| *kind == "thread_started").unwrap();
            assert!(time(first.events.last().unwrap()) <= time(&second.events[began]));
            first.thread_id().to_owned()
        });
    }
    let threads: HashSet<String> = races.join_all().await.into_iter().collect();
    assert_eq!(threads.len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn reject_refuses_while_the_context_is_busy() {
    let sidecar = Played::with(|_| {}).await;
    let busy = taken(&sidecar, "a").await;
    let request = under(pb::BusyPolicy::Reject, prompt("a", "hello"));
    sidecar.refused(request.clone()).await.assert(Code::Aborted, "CONTEXT_BUSY");
    // The thread is busy, whoever names it.
    let thread_id = busy.thread_id().to_owned();
    let named = pb::RunTurnRequest { thread_id, ..prompt("other", "hello") };
    let refused = sidecar.refused(under(pb::BusyPolicy::Reject, named)).await;
    refused.assert(Code::Aborted, "CONTEXT_BUSY");
    sidecar.run(under(pb::BusyPolicy::Reject, prompt("b", "hello"))).await.completed();
    sidecar.interrupt(&busy.id()).await;
    sidecar.run(request).await.completed();
}

/// Whether they waited for the thread while they held their slots.
#[tokio::test(start_paused = true)]
async fn contexts_that_name_one_busy_thread_wait_in_its_lane_and_take_nobodys_room() {
    let sidecar = Played::with(|setup| setup.limits.max_running_turns = 2).await;
    let busy = taken(&sidecar, "a").await;
    let mut named = Vec::new();
    for number in 0..8 {
        let thread_id = busy.thread_id().to_owned();
        let request = pb::RunTurnRequest { thread_id, ..prompt(&format!("{number}"), "hello") };
        let mut turn = sidecar.begin(request).await.unwrap();
        turn.until("queued").await;
        assert_eq!(turn.queue_position(), number + 1);
        named.push(turn);
    }
    let counts = sidecar.counts().await;
    assert_eq!((counts.running_turns, counts.queued_turns), (1, 8));
    sidecar.say("innocent", "hello").await.completed();
    sidecar.interrupt(&busy.id()).await;
    for turn in &mut named {
        turn.rest().await;
        turn.completed();
        assert_eq!(turn.thread_id(), busy.thread_id());
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_caller_leaves_the_others_room_and_their_turn() {
    let sidecar = Played::with(|setup| setup.limits.max_running_turns = 1).await;
    let busy = taken(&sidecar, "busy").await;
    let mut flood = Vec::new();
    let mut refused = 0;
    for number in 0..1000 {
        match sidecar.begin_as(CallerId(1), prompt(&format!("flood {number}"), HOLD)).await {
            Ok(turn) => flood.push(turn),
            Err(refusal) => {
                refusal.assert(Code::ResourceExhausted, "QUEUE_FULL");
                assert!(refusal.retry_after.is_some_and(|after| !after.is_zero()));
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    let mut innocent = sidecar.begin_as(CallerId(2), prompt("innocent", "hello")).await.unwrap();
    innocent.until("queued").await;
    assert_eq!(innocent.queue_position(), 2);
    sidecar.interrupt(&busy.id()).await;
    flood[0].until("turn_started").await;
    sidecar.interrupt(&flood[0].id()).await;
    innocent.rest().await;
    innocent.completed();
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_waits_can_be_interrupted_and_not_steered() {
    let sidecar = Played::with(|_| {}).await;
    let mut busy = taken(&sidecar, "a").await;
    let mut queued = sidecar.begin(prompt("a", "never")).await.unwrap();
    queued.until("queued").await;
    assert_eq!(queued.queue_position(), 1);
    let mut last = sidecar.begin(prompt("a", "at last")).await.unwrap();
    last.until("queued").await;
    assert_eq!(last.queue_position(), 2);

    let refused = sidecar.steer(&queued.id(), "hello").await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
    let terminal = sidecar.interrupt(&queued.id()).await;
    queued.rest().await;
    assert_eq!(queued.interrupted(), pb::InterruptReason::InterruptRequested);
    assert_eq!(queued.kinds(), ["queued", "turn_interrupted"]);
    assert_eq!(*queued.events.last().unwrap(), terminal);
    // Again, it is as it was.
    assert_eq!(sidecar.interrupt(&queued.id()).await, terminal);

    // The one behind it moves up, and the running one has not noticed.
    let terminal = sidecar.interrupt(&busy.id()).await;
    busy.rest().await;
    assert_eq!(busy.events.last(), Some(&terminal));
    last.rest().await;
    last.completed();
    assert_eq!(last.queue_position(), 1);

    // Leaving the queue by hanging up.
    let busy = taken(&sidecar, "a").await;
    let mut queued = sidecar.begin(prompt("a", "never")).await.unwrap();
    queued.until("queued").await;
    let turn_id = queued.id();
    drop(queued);
    sidecar.queued(0).await;
    let mut seen = sidecar.attach(&turn_id).await.unwrap();
    seen.rest().await;
    assert_eq!(seen.interrupted(), pb::InterruptReason::CallerDisconnected);
    sidecar.interrupt(&busy.id()).await;
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limits_turns_are_refused_at_once_and_told_when_to_come_back() {
    let sidecar = Played::with(|setup| {
        setup.limits.max_running_turns = 2;
        setup.limits.max_waiting_turns = 2;
        setup.limits.max_waiting_turns_per_context = 1;
    })
    .await;
    let running = [taken(&sidecar, "a").await, taken(&sidecar, "b").await];
    let mut behind = sidecar.begin(prompt("a", "behind a")).await.unwrap();
    behind.until("queued").await;
    assert_eq!(behind.queue_position(), 1);
    let full = sidecar.refused(prompt("a", "no room")).await;
    full.assert(Code::ResourceExhausted, "CONTEXT_QUEUE_FULL");
    assert!(full.retry_after.is_some_and(|after| !after.is_zero()), "{full:#?}");

    // No room in all, though its context is idle.
    let mut third = sidecar.begin(prompt("c", "third")).await.unwrap();
    third.until("queued").await;
    assert_eq!(third.queue_position(), 1);
    let full = sidecar.refused(prompt("d", "no room")).await;
    full.assert(Code::ResourceExhausted, "QUEUE_FULL");
    assert!(full.retry_after.is_some_and(|after| !after.is_zero()), "{full:#?}");
    let counts = sidecar.counts().await;
    assert_eq!((counts.running_turns, counts.queued_turns), (2, 2));

    for turn in &running {
        sidecar.interrupt(&turn.id()).await;
    }
    third.rest().await;
    third.completed();
    behind.rest().await;
    behind.completed();
    let counts = sidecar.counts().await;
    assert_eq!((counts.running_turns, counts.queued_turns), (0, 0));
    sidecar.run(prompt("d", "room")).await.completed();
}

#[tokio::test(start_paused = true)]
async fn a_draining_sidecar_refuses_before_headers_and_lets_running_turns_end() {
    let sidecar = Played::with(|_| {}).await;
    let mut running = taken(&sidecar, "a").await;
    let engine = Arc::clone(&sidecar.engine);
    let draining = tokio::spawn(async move { engine.drain(Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    // An error of the call, not of its stream: there were no headers.
    let refused = sidecar.begin(prompt("b", "hello")).await.err().unwrap();
    refused.assert(Code::Unavailable, "DRAINING");
    assert!(refused.retry_after.is_some_and(|after| !after.is_zero()), "{refused:#?}");
    sidecar.release();
    running.rest().await;
    assert_eq!(running.final_response(), "released");
    draining.await.unwrap();
}
