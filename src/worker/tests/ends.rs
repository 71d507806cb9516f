//! How it ends, and what is told of that.

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::app_server::peer::RequestError;
use crate::worker::testing::{conversation, launcher, spec, worker, worker_id, worker_with};

#[tokio::test(start_paused = true)]
async fn whoever_orders_the_end_knows_best_why_it_comes() {
    let (worker, codex) = worker().await;
    codex.exit("exit status 3");
    worker.kill("it was recycled");
    worker.kill("nobody needs it");
    drop(codex);
    assert_eq!(worker.exited().await.cause, "killed: it was recycled");
}

#[tokio::test(start_paused = true)]
async fn an_exit_explains_a_broken_stream_also_when_it_is_seen_a_moment_later() {
    let (seen_at_once, codex) = worker().await;
    codex.exit("exit status 3");
    drop(codex);
    assert_eq!(seen_at_once.exited().await.cause, "exit status 3");

    let (seen_later, mut codex) = worker().await;
    codex.close_stdout().await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    codex.exit("signal 11");
    assert_eq!(seen_later.exited().await.cause, "signal 11");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_without_an_exit_ends_the_worker() {
    let (worker, mut codex) = worker().await;
    codex.close_stdout().await;
    assert_eq!(worker.exited().await.cause, "its standard output ended");
    assert_eq!(codex.ended().await, "signal 9");
}

#[tokio::test(start_paused = true)]
async fn misconduct_explains_an_exit_that_comes_of_it() {
    let (worker, mut codex) = worker_with(|spec| spec.limits.peer.max_garbage_lines = 1).await;
    codex.write(b"what\n").await;
    codex.exit("exit status 0");
    assert_eq!(worker.exited().await.cause, "it wrote 1 lines that are no messages");
}

#[tokio::test(start_paused = true)]
async fn what_is_pending_fails_at_the_end_and_tells_whether_it_was_written() {
    let (worker, mut codex) = worker().await;
    let ping = worker.ping(60 * SECOND);
    let (pong, ()) = tokio::join!(ping, async {
        codex.asked("thread/loaded/list").await;
        codex.exit("exit status 3");
    });
    let error = pong.unwrap_err();
    assert!(
        matches!(&error, RequestError::Transport { written: true, cause, .. }
        if cause == "exit status 3"),
        "{error:?}"
    );
    // Whoever asks it later is told at once, and that nothing was written.
    let error = worker.ping(60 * SECOND).await.unwrap_err();
    assert!(matches!(error, RequestError::Transport { written: false, .. }), "{error:?}");
    assert!(!worker.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_route_gives_what_it_holds_before_it_ends_and_there_is_none_afterwards() {
    let (worker, mut codex) = worker().await;
    let mut route = worker.route("t").unwrap();
    codex.begin_turn("t", "u", "r").await;
    codex.end_turn("t", "u").await;
    settle().await;
    codex.exit("exit status 0");
    worker.exited().await;
    assert_eq!(next(&mut route).await, "turn/started");
    assert_eq!(next(&mut route).await, "turn/completed");
    assert_eq!(next(&mut route).await, "the end");
    assert_eq!(worker.route("t").unwrap_err(), NoRoute::WorkerEnded);
}

#[tokio::test(start_paused = true)]
async fn last_words_are_those_of_the_end_with_their_time() {
    let (conversation, mut codex) = conversation();
    let spec = spec(launcher().0);
    let starting = Worker::start(worker_id(), conversation, &spec);
    let (worker, ()) = tokio::join!(starting, async {
        codex.stderr.write_all(b"WARNING: an old habit\n").await.unwrap();
        settle().await;
        let last = codex.asked("model/list").await;
        codex.answer(&last, json!({})).await;
    });
    let worker = worker.unwrap();
    codex.stderr.write_all(b"it hurts\n").await.unwrap();
    codex.exit("exit status 7");
    let exit = worker.exited().await;
    let [said] = &exit.stderr_tail[..] else { panic!("{exit:?}") };
    let (time, words) = said.split_once(' ').unwrap();
    assert_eq!(words, "it hurts");
    humantime::parse_rfc3339(time).unwrap();
    assert_eq!(exit.to_string(), format!("exit status 7; its last words: {said}"));
}

#[tokio::test(start_paused = true)]
async fn a_stderr_that_a_descendant_holds_open_does_not_keep_the_end_back() {
    let (worker, codex) = worker().await;
    let began = tokio::time::Instant::now();
    codex.exit("exit status 0");
    worker.exited().await;
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_nobody_holds_is_ended() {
    let (worker, codex) = worker().await;
    let mut route = worker.route("t").unwrap();
    drop(worker);
    assert_eq!(codex.ended().await, "signal 9");
    assert_eq!(next(&mut route).await, "the end");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_it_repeats_is_taken_out_wherever_it_is_told() {
    const KEY: &str = "sk-canary-0123456789";
    let (worker, mut codex) = worker_with(|spec| {
        spec.secrets = std::sync::Arc::new(|| vec![KEY.to_owned()]);
    })
    .await;
    let (pong, ()) = tokio::join!(worker.says("hello"), async {
        let asked = codex.asked("turn/steer").await;
        codex.refuse(&asked, -32600, &format!("no {KEY} here")).await;
    });
    assert!(pong.unwrap_err().contains("no [redacted] here"));
    codex.stderr.write_all(format!("bad key {KEY}\n").as_bytes()).await.unwrap();
    codex.exit("exit status 1");
    let exit = worker.exited().await.to_string();
    assert!(exit.ends_with("bad key [redacted]"), "{exit}");
}
