//! What is known of the threads that it holds.

use super::*;
use crate::worker::testing::worker;

#[tokio::test(start_paused = true)]
async fn what_a_thread_is_loaded_with_is_known_again_and_not_kept() {
    let (worker, mut codex) = worker().await;
    let long = "do what you must. ".repeat(10_000);
    let with = |config: Value, instructions: &str| ThreadOptions {
        config: config.as_object().cloned(),
        base_instructions: Some(instructions.to_owned()),
        developer_instructions: Some(instructions.to_owned()),
        ..ThreadOptions::default()
    };
    let options = with(json!({ "a": { "x": long, "y": 1 }, "b": 2 }), &long);
    let (_, loaded) = codex.during(worker.opens(&options)).await.unwrap();
    let kept = format!("{loaded:?}");
    assert!(kept.len() < 4096, "{} bytes are kept", kept.len());
    assert!(loaded.fits(&options));
    assert!(loaded.fits(&with(json!({ "b": 2, "a": { "y": 1, "x": long } }), &long)));
    assert!(!loaded.fits(&with(json!({ "b": 2, "a": { "y": 2, "x": long } }), &long)));
    assert!(!loaded.fits(&with(json!({ "b": 2, "a": { "y": 1, "x": long } }), &long[1..])));
    assert!(!loaded.fits(&ThreadOptions::default()));
}

#[tokio::test(start_paused = true)]
async fn idle_threads_are_those_without_a_turn_and_the_longest_unused_comes_first() {
    let (worker, mut codex) = worker().await;
    for _ in 0..4 {
        codex.during(worker.opens(&ThreadOptions::default())).await.unwrap();
        tokio::time::sleep(SECOND).await;
    }
    let idle = || worker.idle_threads().iter().map(ThreadId::to_string).collect::<Vec<_>>();
    assert_eq!(idle(), ["t1", "t2", "t3", "t4"]);
    let route = worker.route("t1").unwrap();
    drop(worker.route("t2").unwrap());
    assert_eq!(idle(), ["t3", "t4"], "not one that was used just now");
    tokio::time::sleep(SECOND).await;
    assert_eq!(idle(), ["t3", "t4", "t2"]);
    drop(route);
    tokio::time::sleep(SECOND).await;
    assert_eq!(idle(), ["t3", "t4", "t2", "t1"]);
    codex.during(worker.unload_thread(&thread("t4"))).await;
    assert_eq!(idle(), ["t3", "t2", "t1"]);
    // One that Codex has no rollout of can't be archived.
    codex.refuses.push(("thread/archive", 1, -32600, "no rollout found for thread id t3"));
    codex.during(worker.unload_thread(&thread("t3"))).await;
    assert_eq!(codex.heard_of("thread/unsubscribe")[0].params["threadId"], "t3");
    assert_eq!(idle(), ["t2", "t1"]);
}
