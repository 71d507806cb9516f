//! Faults that the pool lives through.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::testing::{prompt, sidecar};

/// Row 11.
#[tokio::test(start_paused = true)]
async fn overload_is_waited_out_and_then_told_before_anything_has_begun() {
    let (sidecar, mut codex) = sidecar().await;
    for method in ["thread/start", "turn/start"] {
        codex.refuses.push((method, 2, -32001, "too many"));
    }
    let first = codex.during(sidecar.say("a", "hello")).await;
    assert_eq!(first.final_response(), "You said: hello");

    for method in ["turn/start", "thread/start", "thread/resume"] {
        if method == "thread/resume" {
            // Only the next incarnation has to load it.
            codex.exit("signal 9");
            codex = sidecar.codex().await;
        }
        codex.refuses = vec![(method, 100_000, -32001, "too many")];
        let context = if method == "thread/start" { "b" } else { "a" };
        let began = Instant::now();
        let refused = codex.during(sidecar.refused(prompt(context, "hello"))).await;
        refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
        assert!(refused.retry_after.is_some_and(|after| !after.is_zero()), "{refused:#?}");
        assert!(refused.message.contains("overloaded"), "{refused:#?}");
        assert!(began.elapsed() > Duration::from_millis(700), "{method}: it was not tried again");
    }
    codex.refuses.clear();
    let next = codex.during(sidecar.say("a", "again")).await;
    assert_eq!(next.thread_id(), first.thread_id());
    assert_eq!(next.final_response(), "You said: again");
}
