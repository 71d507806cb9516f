//! Turns that nobody asked for.

use super::*;
use crate::worker::testing::{Asked, worker, worker_with};

/// Expects the next request to be this one, and answers it.
async fn answers(codex: &mut Codex, method: &str, result: Value) -> Asked {
    let asked = codex.next().await.unwrap();
    assert_eq!(asked.method, method, "{asked:?}");
    codex.answer(&asked, result).await;
    asked
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_nobody_asked_for_is_stopped_and_told_once() {
    let (worker, mut codex) = worker().await;
    codex.begin_turn("t", "u", "u").await;
    // It might be a sub-agent's.
    codex.is_left_alone_for(Duration::from_millis(990)).await;
    answers(&mut codex, "thread/read", json!({ "thread": { "id": "t" } })).await;
    let cleared = answers(&mut codex, "thread/goal/clear", json!({ "cleared": true })).await;
    assert_eq!(cleared.params["threadId"], "t");
    let interrupted = answers(&mut codex, "turn/interrupt", json!({})).await;
    assert_eq!(interrupted.params, json!({ "threadId": "t", "turnId": "u" }));
    codex.end_turn("t", "u").await;
    codex.is_left_alone_for(60 * SECOND).await;
    assert_eq!(worker.take_stopped_turns(&thread("t")), ["u"]);
    assert!(worker.take_stopped_turns(&thread("t")).is_empty());
    assert!(worker.is_alive());
}

#[tokio::test(start_paused = true)]
async fn on_a_thread_that_was_opened_here_there_is_nothing_to_wait_for() {
    let (worker, mut codex) = worker().await;
    worker.note_thread_loaded(&thread("t"));
    let began = tokio::time::Instant::now();
    codex.begin_turn("t", "u", "u").await;
    answers(&mut codex, "thread/goal/clear", json!({})).await;
    assert!(began.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn a_parent_that_was_not_told_is_asked_for() {
    let (worker, mut codex) = worker().await;
    let mut elder = worker.route("t").unwrap();
    codex.begin_turn("c", "u", "u").await;
    let parent = json!({ "thread": { "id": "c", "parentThreadId": "t" } });
    let asked = answers(&mut codex, "thread/read", parent).await;
    assert_eq!(asked.params["threadId"], "c");
    assert_eq!(next(&mut elder).await, "turn/started");
    codex.is_left_alone_for(60 * SECOND).await;
    assert!(worker.take_stopped_turns(&thread("t")).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_runs_when_a_turn_lets_go_of_its_thread_is_stopped_with_all_below_it() {
    let (worker, mut codex) = worker().await;
    let mut route = worker.route("t").unwrap();
    codex.begin_turn("t", "1", "1").await;
    codex.begin_turn("c", "2", "1").await;
    assert_eq!(all(&mut route).await, ["turn/started", "turn/started"]);
    drop(route);
    let mut interrupted = Vec::new();
    while interrupted.len() < 2 {
        let asked = codex.asked("turn/interrupt").await;
        codex.answer(&asked, json!({})).await;
        let name = |key: &str| asked.params[key].as_str().unwrap().to_owned();
        let turn = (name("threadId"), name("turnId"));
        codex.end_turn(&turn.0, &turn.1).await;
        settle().await;
        interrupted.push(turn);
    }
    interrupted.sort();
    assert_eq!(interrupted, [("c".into(), "2".into()), ("t".into(), "1".into())]);
    // Told to whoever has the next turn on the thread at the head of the line.
    let mut stopped = worker.take_stopped_turns(&thread("t"));
    stopped.sort();
    assert_eq!(stopped, ["1", "2"]);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_no_interruption_ends_has_its_thread_unloaded() {
    let (worker, mut codex) = worker().await;
    worker.note_thread_loaded(&thread("t"));
    codex.begin_turn("t", "u", "u").await;
    let mut interruptions = 0;
    let archived = loop {
        let asked = codex.next().await.unwrap();
        match asked.method.as_str() {
            "turn/interrupt" => interruptions += 1,
            "thread/archive" => break asked,
            _ => {}
        }
        codex.answer(&asked, json!({})).await;
    };
    assert!((45..=51).contains(&interruptions), "{interruptions}");
    codex.answer(&archived, json!({})).await;
    answers(&mut codex, "thread/unarchive", json!({})).await;
    codex.tell("thread/closed", json!({ "threadId": "t" })).await;
    codex.is_left_alone_for(60 * SECOND).await;
    assert!(worker.is_alive() && !worker.holds_thread(&thread("t")));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_end_what_nobody_asked_for_is_given_up() {
    let (worker, mut codex) = worker().await;
    codex.begin_turn("stray", "u", "u").await;
    let refusing = async {
        while let Some(asked) = codex.next().await {
            match asked.method.as_str() {
                "turn/interrupt" => codex.answer(&asked, json!({})).await,
                _ => codex.refuse(&asked, -32600, "thread not found").await,
            }
        }
    };
    let (exit, ()) = tokio::join!(worker.exited(), refusing);
    let cause = "killed: it ran turns that nobody had asked for, and did not end them";
    assert_eq!(exit.cause, cause);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_was_not_told_is_asked_for() {
    let (worker, mut codex) = worker().await;
    worker.note_thread_loaded(&thread("t"));
    codex.begin_turn("t", "u", "u").await;
    answers(&mut codex, "thread/goal/clear", json!({})).await;
    let interrupted = codex.next().await.unwrap();
    codex.refuse(&interrupted, -32600, "no active turn").await;
    let idle = json!({ "thread": { "id": "t", "status": { "type": "idle" } } });
    answers(&mut codex, "thread/read", idle).await;
    codex.is_left_alone_for(60 * SECOND).await;
    assert!(worker.is_alive());
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_begins_again_and_again_is_given_up_without_asking_each_time() {
    let (worker, mut codex) = worker().await;
    worker.note_thread_loaded(&thread("t"));
    for turn in 0..8 {
        let turn = format!("u{turn}");
        codex.begin_turn("t", &turn, &turn).await;
        let asked = codex.asked("turn/interrupt").await;
        codex.answer(&asked, json!({})).await;
        codex.end_turn("t", &turn).await;
        settle().await;
    }
    codex.begin_turn("t", "u8", "u8").await;
    answers(&mut codex, "thread/archive", json!({})).await;
    answers(&mut codex, "thread/unarchive", json!({})).await;
    assert_eq!(worker.take_stopped_turns(&thread("t")).len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_thread_is_quiet_when_nothing_runs_on_it_any_more() {
    let (worker, mut codex) = worker().await;
    // Goals are off, and nothing runs: there is nothing to ask.
    worker.quiet_thread(&thread("t"), SECOND).await.unwrap();
    codex.is_left_alone_for(SECOND).await;
    worker.note_thread_loaded(&thread("t"));
    let _route = worker.route("t").unwrap();
    codex.begin_turn("t", "u", "u").await;
    settle().await;
    let id = thread("t");
    let (quiet, ()) = tokio::join!(worker.quiet_thread(&id, SECOND), async {
        answers(&mut codex, "turn/interrupt", json!({})).await;
        codex.end_turn("t", "u").await;
    });
    quiet.unwrap();
    // One that does not end in time is told.
    codex.begin_turn("t", "v", "v").await;
    settle().await;
    let quiet = async {
        let quiet = worker.quiet_thread(&id, SECOND).await;
        quiet.unwrap_err()
    };
    let deaf = async { while codex.next().await.is_some() {} };
    let quiet = tokio::select! {
        quiet = quiet => quiet,
        () = deaf => panic!("it ended"),
    };
    assert_eq!(quiet, "Codex's own turn v could not be ended");
}

#[tokio::test(start_paused = true)]
async fn a_goal_that_was_left_is_taken_away_before_a_turn() {
    // Goals are not switched off.
    let (worker, mut codex) = worker_with(|spec| spec.config_overrides.clear()).await;
    let id = thread("t");
    let _route = worker.route("t").unwrap();
    let goal = json!({ "goal": { "status": "active" } });
    let busy = json!({ "thread": { "id": "t", "status": { "type": "active" } } });
    let (quiet, ()) = tokio::join!(worker.quiet_thread(&id, 5 * SECOND), async {
        answers(&mut codex, "thread/goal/get", goal).await;
        answers(&mut codex, "thread/goal/clear", json!({ "cleared": true })).await;
        // It had begun with it in that very moment.
        answers(&mut codex, "thread/read", busy).await;
        codex.begin_turn("t", "u", "u").await;
        answers(&mut codex, "turn/interrupt", json!({})).await;
        codex.end_turn("t", "u").await;
        let idle = json!({ "thread": { "id": "t", "status": { "type": "idle" } } });
        answers(&mut codex, "thread/read", idle).await;
    });
    quiet.unwrap();
    // One that is paused, and a CLI without goals, leave nothing to do.
    let (quiet, ()) = tokio::join!(worker.quiet_thread(&id, 5 * SECOND), async {
        answers(&mut codex, "thread/goal/get", json!({ "goal": { "status": "paused" } })).await;
    });
    quiet.unwrap();
    let (quiet, ()) = tokio::join!(worker.quiet_thread(&id, 5 * SECOND), async {
        let asked = codex.next().await.unwrap();
        codex.refuse(&asked, -32600, "unknown variant `thread/goal/get`").await;
    });
    quiet.unwrap();
    codex.is_left_alone_for(60 * SECOND).await;
}
