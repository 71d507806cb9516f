//! Faults that the pool lives through.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::pb;
use crate::testing::{Played, Setup, Sidecar, meanwhile, prompt, sidecar};
use crate::worker::testing::{HOLD, Playing};

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

/// The next worker that is launched, with a number of its own.
async fn played(sidecar: &Sidecar, number: u32) -> Playing {
    let mut codex = sidecar.codex().await;
    codex.number = Some(number);
    codex.in_background()
}

/// A stuck worker gets no new turns, and is killed when none of its own tells anything either.
#[tokio::test(start_paused = true)]
async fn a_stuck_worker_is_given_up_and_killed() {
    let sidecar = Sidecar::start(|setup| setup.workers = 2);
    let one = played(&sidecar, 1).await;
    let two = played(&sidecar, 2).await;
    sidecar.is_ready().await;
    let contexts = ["a", "b", "c", "d"];
    let mut threads = Vec::new();
    for context in contexts {
        threads.push(sidecar.say(context, "hello").await.thread_id().to_owned());
    }
    let held: Vec<u32> = sidecar.workers().await.iter().map(|one| one.loaded_threads).collect();
    assert_eq!(held, [2, 2]);

    let mut lost = sidecar.begin(prompt("a", HOLD)).await.unwrap();
    lost.until("turn_started").await;
    // Which has the thread; the other one plays on.
    let (stuck, _well) = if threads[0].starts_with("00000001-") { (one, two) } else { (two, one) };
    let stuck = stuck.back().await;
    let others = async {
        let stuck = sidecar.has_worker(pb::WorkerState::Unresponsive).await;
        // One of them has its thread on the stuck worker, and waits for its end.
        let again = contexts[1..].iter().map(|context| sidecar.say(context, "again"));
        let (told, successor) = tokio::join!(join_all(again), played(&sidecar, 3));
        (stuck, told, successor)
    };
    let ((stuck_worker, told, _successor), ()) = tokio::join!(others, lost.rest());
    assert_eq!(stuck.ended().await, "signal 9");
    let error = lost.failed();
    assert_eq!(error.reason, "WORKER_LOST", "{error:#?}");
    assert!(error.message.contains("no sign of life"), "{error:#?}");
    for (told, thread_id) in told.iter().zip(&threads[1..]) {
        assert_eq!(told.thread_id(), thread_id);
        assert_eq!(told.final_response(), "You said: again");
    }
    assert_eq!(sidecar.say("a", "again").await.thread_id(), threads[0]);
    let workers = sidecar.workers().await;
    let successor = workers.iter().find(|one| one.worker_id == stuck_worker.worker_id).unwrap();
    assert_eq!((successor.generation, successor.state()), (2, pb::WorkerState::Ready));
}

/// One that answers no question but still tells of its turn is drained, and back when it answers again.
#[tokio::test(start_paused = true)]
async fn a_worker_that_only_tells_of_its_turn_keeps_it_and_gets_no_other() {
    let (sidecar, mut codex) = sidecar().await;
    codex.holds_turns = true;
    let mut turn = codex.during(sidecar.begin(prompt("a", "hello"))).await.unwrap();
    codex.during(turn.until("turn_started")).await;
    for (mutes, state) in [
        (vec!["thread/loaded/list"], pb::WorkerState::Unresponsive),
        (vec![], pb::WorkerState::Ready),
    ] {
        codex.mutes = mutes;
        for _ in 0..120 {
            codex.say_in_turn("still here").await;
            codex.during(sleep(Duration::from_secs(1))).await;
        }
        assert_eq!(sidecar.worker().await.state(), state);
    }
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    assert_eq!(turn.final_response(), "still here");
    codex.holds_turns = false;
    let next = codex.during(sidecar.say("a", "again")).await;
    assert_eq!(next.thread_id(), turn.thread_id());
    assert_eq!(sidecar.worker().await.generation, 1);
}

/// Recycling by turns, idle threads and age: at no time without a warm worker, and unseen by the
/// contexts, whose turns end where they began.
#[tokio::test(start_paused = true)]
async fn worn_out_workers_are_replaced_unseen() {
    type Wear = (&'static str, fn(&mut Setup));
    let wears: [Wear; 3] = [
        ("turns", |setup| setup.pool.max_turns_per_worker = Some(2)),
        ("idle threads", |setup| setup.pool.max_idle_threads = Some(0)),
        ("age", |setup| setup.pool.max_age = Some(Duration::from_secs(60))),
    ];
    for (name, change) in wears {
        let sidecar = Played::with(change).await;
        let first = sidecar.say("a", "hello").await;
        let mut long = sidecar.begin(prompt("long", HOLD)).await.unwrap();
        long.until("turn_started").await;
        let began_on = sidecar.worker().await.generation;
        loop {
            sidecar.say("a", "hello").await.completed();
            let worker = sidecar.worker().await;
            assert_eq!(worker.state(), pb::WorkerState::Ready, "{name}");
            if worker.generation > began_on {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // It went on where it was, beside its worker's successor.
        sidecar.release();
        long.rest().await;
        assert_eq!(long.final_response(), "released", "{name}");
        // Both threads moved.
        for context in ["a", "long"] {
            let told = sidecar.say(context, "hello").await;
            assert_eq!(told.thread_started().origin(), pb::ThreadOrigin::Resumed, "{name}");
        }
        assert_eq!(sidecar.say("a", "hello").await.thread_id(), first.thread_id(), "{name}");
    }
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
