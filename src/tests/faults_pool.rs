//! Faults that the pool lives through.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::testing::{Sidecar, meanwhile, prompt, sidecar};

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

/// No other worker could have the thread, if that one has loaded it by now.
#[tokio::test(start_paused = true)]
async fn a_worker_that_may_have_loaded_a_thread_gets_it_also_after_a_turn_that_got_no_worker() {
    let is_home_gone = Arc::new(AtomicBool::new(false));
    let sidecar = Sidecar::start(|setup| {
        setup.workers = 2;
        let is_gone = Arc::clone(&is_home_gone);
        setup.spec.check_home = Arc::new(move || match is_gone.load(Ordering::Relaxed) {
            true => Err("no home".to_owned()),
            false => Ok(()),
        });
    });
    let mut a = sidecar.codex().await;
    let mut b = a.during(sidecar.codex()).await;
    a.during(b.during(sidecar.is_ready())).await;
    let known = a.during(b.during(sidecar.say("a", "hello"))).await.thread_id().to_owned();
    let (mut asked, mut other) = if a.count("thread/start") == 1 { (a, b) } else { (b, a) };
    asked.exit("signal 9");
    asked = other.during(sidecar.codex()).await;
    asked.during(other.during(sleep(Duration::from_secs(1)))).await;

    // It does not answer when it is asked for the thread, and is well otherwise.
    let mut refused = pin!(sidecar.refused(prompt("a", "hello")));
    let resume = meanwhile(refused.as_mut(), asked.asked("thread/resume")).await;
    assert_eq!(resume.params["threadId"], known.as_str());
    let refused = asked.during(other.during(refused)).await;
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    is_home_gone.store(true, Ordering::Relaxed);
    asked.during(other.during(sleep(Duration::from_secs(11)))).await;
    let refused = asked.during(other.during(sidecar.refused(prompt("a", "hello")))).await;
    assert!(refused.message.contains("no home"), "{refused:#?}");
    is_home_gone.store(false, Ordering::Relaxed);
    asked.during(other.during(sleep(Duration::from_secs(11)))).await;

    let next = asked.during(other.during(sidecar.say("a", "again"))).await;
    assert_eq!(next.thread_id(), known);
    assert_eq!((asked.count("thread/resume"), other.count("thread/resume")), (2, 0));
}
