//! What it writes and what it does not read: bytes, lines, and what is no line of the protocol.

use super::*;
use crate::app_server::peer::PeerLimits;
use crate::worker::testing::{worker, worker_with};

#[tokio::test(start_paused = true)]
async fn lines_and_characters_may_be_split_at_any_byte() {
    let (worker, mut codex) = worker().await;
    let mut route = worker.route("t").unwrap();
    let delta = "žluťoučký kůň 🐎 ✓";
    let line = json!({"method": "item/agentMessage/delta", "params": {
        "threadId": "t", "turnId": "u", "itemId": "i", "delta": delta}});
    let bytes = format!("\n{line}\r\n").into_bytes();
    for size in [1, 2, 3, 7] {
        for piece in bytes.chunks(size) {
            codex.write(piece).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(all(&mut route).await, ["item/agentMessage/delta"], "{size}");
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_is_skipped_until_it_is_too_much() {
    let (worker, mut codex) = worker().await;
    let mut route = worker.route("t").unwrap();
    codex.write(&b"what\n\xff\xfe\n\n{}\n".repeat(200)).await;
    codex.begin_turn("t", "u", "r").await;
    assert_eq!(next(&mut route).await, "turn/started");
    assert!(worker.is_alive());
    codex.write(&b"again\n".repeat(399)).await;
    codex.end_turn("t", "u").await;
    assert_eq!(next(&mut route).await, "turn/completed");
    codex.write(b"and again\n").await;
    assert_eq!(next(&mut route).await, "the end");
    let exit = worker.exited().await;
    assert_eq!(exit.cause, "it wrote 1000 lines that are no messages");
    assert_eq!(codex.ended().await, "signal 9");
}

#[tokio::test(start_paused = true)]
async fn a_long_line_is_skipped_and_told_to_those_whom_it_may_have_been_for() {
    let (worker, mut codex) = worker_with(|spec| {
        spec.limits.peer = PeerLimits { max_line_bytes: 1000, ..PeerLimits::default() };
        spec.limits.peer.max_echo_bytes = 1000;
    })
    .await;
    let (mut one, mut two) = (worker.route("t1").unwrap(), worker.route("t2").unwrap());
    let pad = "x".repeat(1000);
    // One that names its thread.
    codex.tell("turn/diff/updated", json!({ "threadId": "t1", "diff": pad })).await;
    assert_eq!((all(&mut one).await, all(&mut two).await), (vec!["a skipped line".into()], vec![]));
    // One of a thread that nobody listens to.
    codex.tell("turn/diff/updated", json!({ "threadId": "t3", "diff": pad })).await;
    assert!(all(&mut one).await.is_empty() && all(&mut two).await.is_empty());
    // One of which nobody can say whose it was.
    codex.write(format!("what {pad}\n").as_bytes()).await;
    for route in [&mut one, &mut two] {
        assert_eq!(all(route).await, ["a skipped line"]);
    }
    // A question is answered although it can't be read.
    codex.ask(7, "item/tool/call", json!({ "threadId": "t1", "arguments": pad })).await;
    assert_eq!(all(&mut one).await, ["a skipped line"]);
    let answer = codex.answered(7).await;
    assert_eq!(answer["result"]["success"], false, "{answer}");
    // An answer fails its own question alone, and what comes after it is read as ever.
    let ping = worker.ping(SECOND);
    let (pong, ()) = tokio::join!(ping, async {
        let asked = codex.asked("thread/loaded/list").await;
        codex.answer(&asked, json!({ "data": [pad] })).await;
    });
    pong.unwrap();
    codex.begin_turn("t1", "u", "r").await;
    assert_eq!(next(&mut one).await, "turn/started");
    assert!(worker.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_line_without_an_end_is_silence() {
    let (worker, mut codex) = worker().await;
    for _ in 0..60 {
        codex.write(&[b'x'; 1000]).await;
        tokio::time::sleep(SECOND).await;
    }
    assert!(worker.silence() >= 60 * SECOND, "{:?}", worker.silence());
    codex.write(b"\n").await;
    settle().await;
    assert!(worker.silence() < SECOND, "{:?}", worker.silence());
    assert!(worker.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_reading_is_ended_and_fails_what_it_was_asked() {
    let (worker, codex) = worker().await;
    let long = "x".repeat(100_000);
    let asking = [(); 3].map(|()| worker.says(&long));
    for asked in futures::future::join_all(asking).await {
        let error = asked.unwrap_err();
        assert!(error.contains("did not read its standard input for 10s"), "{error}");
    }
    let exit = worker.exited().await;
    assert_eq!(exit.cause, "it did not read its standard input for 10s");
    assert_eq!(codex.ended().await, "signal 9");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_asked_too_much_at_once_is_not_waited_for() {
    let (worker, _codex) = worker_with(|spec| spec.limits.peer.max_queued_writes = 2).await;
    let long = "x".repeat(100_000);
    let asking = (0..10).map(|_| worker.says(&long));
    let refused = futures::future::join_all(asking).await;
    let at_once = |error: &&String| error.contains("does not read its standard input");
    let refused: Vec<String> = refused.into_iter().filter_map(Result::err).collect();
    assert!(refused.iter().filter(at_once).count() >= 7, "{refused:#?}");
}
