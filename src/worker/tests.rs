//! A worker over two streams in memory, on a paused clock.

use serde_json::json;

use crate::worker::testing;

#[tokio::test(start_paused = true)]
async fn a_worker_that_shook_hands_knows_who_it_speaks_with() {
    let (worker, mut codex) = testing::worker().await;
    assert_eq!(worker.cli_version(), "0.169.0");
    assert_eq!((worker.pid(), worker.is_alive()), (None, true));
    assert_eq!(worker.defaults().default_model.as_deref(), Some("m0"));
    let mut route = worker.route("t").unwrap();
    codex.tell("turn/started", json!({"threadId": "t", "turn": {"id": "u"}})).await;
    assert!(route.recv().await.is_some());
    drop(worker);
    assert_eq!(codex.ended().await, "signal 9");
    assert!(route.recv().await.is_none());
}
