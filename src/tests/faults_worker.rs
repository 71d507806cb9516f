//! Faults of one worker: how it dies, what it writes, what it does not read. In every case the other
//! turns go on, the context keeps its thread, and the next turn is served.

use std::pin::pin;

use futures::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::pb;
use crate::pb::turn_event::Event;
use crate::testing::{Setup, Turn, meanwhile, prompt, sidecar, sidecar_with};

/// Rows 5 and 6.
#[tokio::test(start_paused = true)]
async fn unknown_requests_are_refused_and_garbage_is_skipped_until_it_is_too_much() {
    let (sidecar, mut codex) = sidecar().await;
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    let (thread_id, turn_id) = codex.turns[0].clone();
    let params = json!({ "threadId": thread_id, "turnId": turn_id, "x": 1 });
    codex.ask(1, "mystery/request", params).await;
    assert_eq!(codex.answered(1).await["error"]["code"], -32601);
    codex.write(&b"what\n\xff\xfe\n{\"half\n{}\n[1,2,3]\n\n".repeat(120)).await;
    codex.say_in_turn("still here").await;
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    assert_eq!(turn.final_response(), "still here");

    // Another turn on the same worker goes with it, and both contexts go on.
    let mut a = codex.during(sidecar.begin(prompt("a", "again"))).await.unwrap();
    let mut b = codex.during(sidecar.begin(prompt("b", "hello"))).await.unwrap();
    codex.during(async { tokio::join!(a.until("turn_started"), b.until("turn_started")) }).await;
    codex.write(&b"again\n".repeat(400)).await;
    tokio::join!(a.rest(), b.rest());
    for turn in [&a, &b] {
        let error = turn.failed();
        assert_eq!(error.reason, "WORKER_LOST", "{error:#?}");
        assert!(error.message.contains("1000 lines that are no messages"), "{error:#?}");
    }
    assert_eq!(codex.ended().await, "signal 9");
    let mut codex = sidecar.codex().await;
    for (context, before) in [("a", &a), ("b", &b)] {
        let next = codex.during(sidecar.say(context, "hello")).await;
        assert_eq!(next.thread_id(), before.thread_id());
        assert_eq!(next.thread_started().origin(), pb::ThreadOrigin::Resumed);
    }
}

/// Row 8.
#[tokio::test(start_paused = true)]
async fn lines_and_characters_may_be_split_at_any_byte() {
    let (sidecar, mut codex) = sidecar().await;
    codex.holds_turns = true;
    for size in [1, 2, 3, 7] {
        let words = format!("žluťoučký kůň 🐎 ✓ {size}");
        let mut turn = codex.during(sidecar.begin(prompt("a", "hello"))).await.unwrap();
        codex.during(turn.until("turn_started")).await;
        codex.splits_lines = Some(size);
        codex.say_in_turn(&words).await;
        codex.end_last_turn().await;
        codex.splits_lines = None;
        codex.during(turn.rest()).await;
        assert_eq!(turn.final_response(), words);
    }
}

/// Lines of 64 KiB at the most, also those that tell back what was put in.
fn short_lines(setup: &mut Setup) {
    setup.spec.limits.peer.max_line_bytes = 64 << 10;
    setup.spec.limits.peer.max_echo_bytes = 64 << 10;
}

/// A line of which nobody can say whose it was is told to every turn of its worker, and ends none.
#[tokio::test(start_paused = true)]
async fn a_lost_line_of_nobody_is_told_to_all() {
    let (sidecar, mut codex) = sidecar_with(short_lines).await;
    let mut b = sidecar.hold(&mut codex, prompt("b", "hello")).await;
    let mut a = codex.during(sidecar.begin(prompt("a", "hello"))).await.unwrap();
    codex.during(a.until("turn_started")).await;
    // One that names its thread, and is answered although it can't be read.
    let pad = "x".repeat(70_000);
    let (thread_id, turn_id) = codex.turns[1].clone();
    let params = json!({ "threadId": thread_id, "turnId": turn_id, "pad": pad });
    codex.ask(1, "mystery/request", params).await;
    assert_eq!(codex.answered(1).await["error"]["code"], -32601);
    // One that is no message at all is told to every turn.
    codex.write(format!("what {pad}\n").as_bytes()).await;
    codex.say_in_turn("after it").await;
    codex.end_last_turn().await;
    codex.during(a.rest()).await;
    assert_eq!(a.final_response(), "after it");
    let lost = a.warned("LINE_SKIPPED");
    assert!(lost.iter().any(|words| words.contains("a question, and was declined")), "{lost:#?}");
    let of_nobody = |words: &&&str| words.contains("can't be told which turn");
    assert_eq!(lost.iter().filter(of_nobody).count(), 1, "{lost:#?}");
    let (thread_id, turn_id) = codex.turns[0].clone();
    codex.end_turn(&thread_id, &turn_id).await;
    codex.during(b.rest()).await;
    let lost = b.warned("LINE_SKIPPED");
    assert_eq!(lost.iter().filter(of_nobody).count(), 1, "{lost:#?}");
    assert_eq!(b.warnings().len(), 1);
}

/// Row 7: a line at the limit is told, and one above it is not, wherever the limit is.
#[tokio::test(start_paused = true)]
async fn a_line_at_the_limit_is_told_and_one_above_it_is_warned_of() {
    const LIMIT: usize = 1 << 20;
    let (sidecar, mut codex) = sidecar_with(|setup| {
        setup.spec.limits.peer.max_line_bytes = LIMIT;
        setup.spec.limits.peer.max_echo_bytes = LIMIT;
    })
    .await;
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    let (thread_id, turn_id) = codex.turns[0].clone();
    let line = |diff: &str| {
        let params = json!({ "threadId": thread_id, "turnId": turn_id, "diff": diff });
        json!({ "method": "turn/diff/updated", "params": params }).to_string()
    };
    let frame = line("").len();
    codex.write(format!("{}\n", line(&"x".repeat(LIMIT - frame))).as_bytes()).await;
    codex.write(format!("{}\n", line(&"x".repeat(LIMIT - frame + 1))).as_bytes()).await;
    codex.say_in_turn("read").await;
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    assert_eq!(turn.final_response(), "read");
    assert_eq!(turn.kinds().iter().filter(|kind| **kind == "turn_diff_updated").count(), 1);
    let lost = turn.warned("LINE_SKIPPED");
    assert_eq!(lost.len(), 1, "{lost:#?}");
    let limit = format!("{} bytes, more than limits.max_line_bytes, which is {LIMIT}", LIMIT + 1);
    assert!(lost[0].contains(&limit) && lost[0].contains("turn/diff/updated"), "{lost:#?}");
}

/// Row 10.
#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_reading_is_replaced() {
    let (sidecar, mut codex) = sidecar().await;
    let mut threads = Vec::new();
    for context in ["a", "b", "c", "d"] {
        let told = codex.during(sidecar.say(context, "hello")).await;
        threads.push((context, told.thread_id().to_owned()));
    }
    let mut deaf = sidecar.hold(&mut codex, prompt("a", "again")).await;
    // More than a pipe holds. Only what was being written may have been seen; the others never know.
    let long = "x".repeat(900_000);
    let mut turns = pin!(join_all(["b", "c", "d"].map(|context| sidecar.say(context, &long))));
    let mut codex = meanwhile(turns.as_mut(), sidecar.codex()).await;
    deaf.rest().await;
    let ended = codex.during(turns).await;
    let is_lost = |turn: &&Turn| matches!(turn.terminal(), Event::TurnFailed(_));
    let lost: Vec<&Turn> = ended.iter().filter(is_lost).chain([&deaf]).collect();
    assert_eq!(lost.len(), 2);
    for turn in lost {
        let error = turn.failed();
        assert_eq!(error.reason, "WORKER_LOST", "{error:#?}");
        assert!(error.message.contains("did not read its standard input"), "{error:#?}");
    }
    for (context, thread_id) in threads {
        let next = codex.during(sidecar.say(context, "hello")).await;
        assert_eq!(next.thread_id(), thread_id);
    }
}

/// Row 2: the caller learns nothing of a worker that died before it had the turn.
#[tokio::test(start_paused = true)]
async fn a_death_before_the_turn_was_written_is_not_seen_and_one_after_it_is_told() {
    let (sidecar, mut codex) = sidecar().await;
    let mut first = pin!(sidecar.say("a", "hello"));
    meanwhile(first.as_mut(), codex.asked("thread/start")).await;
    codex.exit("signal 9");
    let mut codex = meanwhile(first.as_mut(), sidecar.codex()).await;
    let first = codex.during(first).await;
    assert_eq!(first.final_response(), "You said: hello");
    assert_eq!(first.thread_started().origin(), pb::ThreadOrigin::New);

    // Its worker dies between two turns; the next one that loads the thread dies of it.
    codex.exit("signal 9");
    let mut codex = sidecar.codex().await;
    let mut second = pin!(sidecar.say("a", "again"));
    let asked = meanwhile(second.as_mut(), codex.asked("thread/resume")).await;
    assert_eq!(asked.params["threadId"], first.thread_id());
    codex.exit("signal 9");
    let mut codex = meanwhile(second.as_mut(), sidecar.codex()).await;
    let second = codex.during(second).await;
    assert_eq!(second.final_response(), "You said: again");
    assert_eq!(second.thread_id(), first.thread_id());

    // The worker had read the turn: nobody can say what it did with it.
    let mut lost = pin!(sidecar.say("a", "and again"));
    meanwhile(lost.as_mut(), codex.asked("turn/start")).await;
    codex.stderr.write_all(b"no luck today\n").await.unwrap();
    codex.exit("exit status 3");
    let lost = lost.await;
    let error = lost.failed();
    assert_eq!(error.reason, "WORKER_LOST", "{error:#?}");
    assert!(error.message.contains("exit status 3") && error.side_effects_possible, "{error:#?}");
    assert!(error.details.ends_with("Z no luck today"), "{error:#?}");
    let mut codex = sidecar.codex().await;
    let next = codex.during(sidecar.say("a", "and again")).await;
    assert_eq!(next.thread_id(), first.thread_id());
}

/// Row 38: what waits for a turn that does not read is bounded, and costs that turn alone.
#[tokio::test(start_paused = true)]
async fn a_turn_that_is_told_more_than_may_wait_for_it_fails_alone() {
    let (sidecar, mut codex) = sidecar_with(short_lines).await;
    let mut other = sidecar.hold(&mut codex, prompt("b", "hello")).await;
    // Nothing is read of a turn before it is known that Codex took it.
    let mut turn = pin!(sidecar.begin(prompt("a", "hello")));
    let start = meanwhile(turn.as_mut(), codex.asked("turn/start")).await;
    let thread_id = start.params["threadId"].as_str().unwrap().to_owned();
    codex.begin_turn(&thread_id, "u", "r").await;
    for _ in 0..20 {
        let diff = "x".repeat(60 << 10);
        let params = json!({ "threadId": thread_id, "turnId": "u", "diff": diff });
        meanwhile(turn.as_mut(), codex.tell("turn/diff/updated", params)).await;
    }
    codex.answer(&start, json!({ "turn": { "id": "u" } })).await;
    let mut turn = codex.during(turn).await.unwrap();
    codex.during(turn.rest()).await;
    let error = turn.failed();
    assert_eq!(error.reason, "WORKER_LOST", "{error:#?}");
    assert!(error.side_effects_possible && error.retryable, "{error:#?}");
    assert!(error.message.contains("waited to be read"), "{error:#?}");
    // Codex does not go on with it, and the other turn does.
    assert_eq!(codex.heard_of("turn/interrupt")[0].params["turnId"], "u");
    let (thread_id, turn_id) = codex.turns[0].clone();
    codex.end_turn(&thread_id, &turn_id).await;
    codex.during(other.rest()).await;
    other.completed();
    codex.holds_turns = false;
    let next = codex.during(sidecar.say("a", "again")).await;
    assert_eq!(next.thread_id(), turn.thread_id());
}
