//! Threads that are loaded too late, as their MCP servers may make them.

use std::time::Duration;

use tonic::Code;

use crate::testing::{meanwhile, prompt, sidecar};

#[tokio::test(start_paused = true)]
async fn a_thread_that_is_loaded_too_late_is_asked_for_once_and_let_go() {
    let (sidecar, mut codex) = sidecar().await;
    let mut late = std::pin::pin!(sidecar.refused(prompt("a", "hello")));
    let asked = meanwhile(late.as_mut(), codex.asked("thread/start")).await;
    let refused = codex.during(late).await;
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    assert!(refused.message.contains("thread/start: no answer within 30s"), "{refused:#?}");
    assert!(refused.retry_after.is_some(), "{refused:#?}");
    codex.answer(&asked, asked.opened("late")).await;
    codex.during(tokio::time::sleep(Duration::from_secs(1))).await;
    assert_eq!(codex.count("thread/start"), 1);
    let let_go = codex.heard_of("thread/unsubscribe");
    assert_eq!(let_go.len(), 1);
    assert_eq!(let_go[0].params["threadId"], "late");
    // The worker serves on.
    codex.during(sidecar.say("a", "hello")).await.completed();
    assert_eq!(sidecar.worker().await.restarts, 0);
}
