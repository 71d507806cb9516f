//! Faults that the pool lives through.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::pb;
use crate::pb::turn_event::Event;
use crate::pool::Readiness;
use crate::testing::{Disk, Played, Setup, Sidecar, meanwhile, prompt, sidecar, sidecar_with};
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

/// Has the workers of a sidecar play in the background, and die of what has [`POISON`] in it; counts them.
fn poisonable(sidecar: &Arc<Sidecar>) -> Arc<AtomicUsize> {
    let launched = Arc::<AtomicUsize>::default();
    let (sidecar, count) = (Arc::clone(sidecar), Arc::clone(&launched));
    tokio::spawn(async move {
        let never = broadcast::Sender::new(1);
        for number in 1.. {
            let mut codex = sidecar.codex().await;
            count.fetch_add(1, Ordering::Relaxed);
            codex.number = Some(number);
            codex.dies_of = Some(POISON);
            tokio::spawn(codex.play(never.subscribe()));
        }
    });
    launched
}

const POISON: &str = "poison";

/// A turn under whose opening a worker dies.
fn poisoned(context: &str) -> pb::RunTurnRequest {
    let mut request = prompt(context, "hello");
    let options = request.thread_options.get_or_insert_default();
    options.developer_instructions = Some(POISON.to_owned());
    request
}

/// Row 35. Those that were opened beside it are tried apart, and served.
#[tokio::test(start_paused = true)]
async fn a_request_that_kills_whatever_worker_opens_it_is_refused_after_the_second_death() {
    let sidecar = Arc::new(Sidecar::start(|_| {}));
    let mut codex = sidecar.codex().await;
    codex.during(sidecar.is_ready()).await;
    let innocents = (0..3).map(async |number| {
        let told = sidecar.say(&format!("c{number}"), "hello").await;
        assert_eq!(told.final_response(), "You said: hello");
    });
    let refused = sidecar.refused(poisoned("bad"));
    let mut all = pin!(async { tokio::join!(refused, join_all(innocents)) });
    let crowd = async {
        for _ in 0..4 {
            codex.asked("thread/start").await;
        }
        codex.exit("signal 6");
    };
    meanwhile(all.as_mut(), crowd).await;
    let began = Instant::now();
    let launched = poisonable(&sidecar);
    let (refused, _) = all.await;
    refused.assert(Code::FailedPrecondition, "OPENING_KILLS_WORKERS");
    assert_eq!(refused.retry_after, None);
    assert!(refused.message.contains("signal 6"), "{refused:#?}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    sidecar.say("c0", "again").await.completed();
    assert_eq!(launched.load(Ordering::Relaxed), 2, "one of the successors died");
}

/// Row 35: the pool is not put out, however many of them come.
#[tokio::test(start_paused = true)]
async fn deaths_that_requests_cause_open_no_breaker_and_no_innocent_is_refused() {
    let sidecar = Arc::new(Sidecar::start(|setup| setup.workers = 2));
    poisonable(&sidecar);
    sidecar.is_ready().await;
    for round in 0..4 {
        let poisons = (0..4).map(async |number| {
            let refused = sidecar.refused(poisoned(&format!("bad{number}"))).await;
            refused.assert(Code::FailedPrecondition, "OPENING_KILLS_WORKERS");
        });
        let innocents = (0..4).map(async |number| {
            let told = sidecar.say(&format!("c{round}-{number}"), "hello").await;
            match told.terminal() {
                // One that had begun where the first ones were tried.
                Event::TurnFailed(_) => assert_eq!(told.failed().reason, "WORKER_LOST"),
                _ => assert_eq!(told.final_response(), "You said: hello"),
            }
        });
        let began = Instant::now();
        tokio::join!(biased; join_all(poisons), join_all(innocents));
        sidecar.say(&format!("after{round}"), "hello").await.completed();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    sidecar.is_ready().await;
    let failures: Vec<u32> =
        sidecar.engine.pool().status().iter().map(|slot| slot.failures).collect();
    assert_eq!(failures, [0, 0]);
}

/// An opening whose worker another turn gives up is not to blame, however often.
#[tokio::test(start_paused = true)]
async fn an_opening_is_not_blamed_for_a_worker_that_a_turn_gives_up() {
    let sidecar = Arc::new(Sidecar::start(|_| {}));
    let mut innocent = pin!(sidecar.say("innocent", "hello"));
    for number in 1..=2 {
        let mut codex = sidecar.codex().await;
        codex.number = Some(number);
        codex.is_deaf_to_interrupts = true;
        codex.refuses.push(("thread/archive", 1, -32600, "not now"));
        meanwhile(innocent.as_mut(), codex.asked("thread/start")).await;
        // It waits for an answer while its worker is given up.
        let stuck = async {
            let mut stuck = sidecar.begin(prompt(&format!("stuck{number}"), HOLD)).await.unwrap();
            stuck.until("turn_started").await;
            sidecar.interrupt(&stuck.id()).await
        };
        meanwhile(innocent.as_mut(), codex.during(stuck)).await;
        assert_eq!(codex.ended().await, "signal 9");
    }
    let mut codex = sidecar.codex().await;
    codex.during(innocent).await.completed();
}

/// The one that is silent is killed, and not the one that was asked before it.
#[tokio::test(start_paused = true)]
async fn of_two_workers_the_one_that_was_asked_last_is_blamed_for_its_silence() {
    let sidecar = Sidecar::start(|setup| {
        setup.workers = 2;
        // It is the turn that finds out.
        setup.pool.liveness_interval = Duration::from_secs(3600);
    });
    let mut a = sidecar.codex().await;
    let mut b = a.during(sidecar.codex()).await;
    a.during(b.during(sidecar.is_ready())).await;
    for codex in [&mut a, &mut b] {
        codex.refuses.push(("thread/resume", 1, -32600, "no rollout found for thread id"));
    }
    let mut request = prompt("a", "hello");
    request.thread_id = "00000000-0000-4000-8000-000000000009".to_owned();
    request.set_missing_thread_policy(pb::MissingThreadPolicy::StartNew);
    let mut told = pin!(sidecar.run(request));
    let (mut first, mut second) = tokio::select! {
        biased;
        _ = told.as_mut() => panic!("it was answered"),
        asked = a.asked("thread/resume") => { a.refuse(&asked, -32600, "no rollout found").await; (a, b) }
        asked = b.asked("thread/resume") => { b.refuse(&asked, -32600, "no rollout found").await; (b, a) }
    };
    // From here on the second one does nothing at all.
    meanwhile(told.as_mut(), first.during(second.asked("thread/start"))).await;
    let successor = async {
        let mut codex = sidecar.codex().await;
        codex.during(std::future::pending::<()>()).await;
    };
    tokio::select! {
        biased;
        told = told.as_mut() => { told.completed(); }
        () = first.during(successor) => {}
    }
    assert_eq!(second.ended().await, "signal 9");
    assert!(sidecar.workers().await.iter().any(|worker| worker.generation == 1));
}

/// A worker that has stopped since it was heard last gets no turn to wait with it.
#[tokio::test(start_paused = true)]
async fn a_worker_that_has_been_quiet_is_asked_for_a_sign_of_life_before_it_gets_a_turn() {
    let sidecar = Sidecar::start(|setup| setup.workers = 2);
    let one = played(&sidecar, 1).await;
    let two = played(&sidecar, 2).await;
    sidecar.is_ready().await;
    let held = sidecar.say("a", "hello").await;
    let (stuck, _well) =
        if held.thread_id().starts_with("00000001-") { (one, two) } else { (two, one) };
    let _stuck = stuck.back().await;
    sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    for number in 0..4 {
        sidecar.say(&format!("new{number}"), "hello").await.completed();
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // What the stuck one holds goes on once that is killed.
    let (again, _successor) = tokio::join!(sidecar.say("a", "again"), played(&sidecar, 3));
    assert_eq!(again.thread_id(), held.thread_id());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
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
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
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

/// It is not killed as long as it tells of its turns, which may be hours.
#[tokio::test(start_paused = true)]
async fn a_turn_whose_thread_a_stuck_worker_holds_does_not_wait_for_that_one_s_turns() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("b", "hello")).await.completed();
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    codex.mutes = vec!["thread/loaded/list"];
    while sidecar.worker().await.state() != pb::WorkerState::Unresponsive {
        codex.say_in_turn("still here").await;
        codex.during(sleep(Duration::from_secs(1))).await;
    }
    let began = Instant::now();
    let mut refused = pin!(sidecar.refused(prompt("b", "again")));
    let refused = loop {
        codex.say_in_turn("still here").await;
        let pause = sleep(Duration::from_millis(1500));
        tokio::select! {
            refused = &mut refused => break refused,
            () = codex.during(pause) => {}
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it waits and waits");
    };
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    assert!(refused.message.contains("no sign of life"), "{refused:#?}");
    codex.mutes.clear();
    while sidecar.worker().await.state() != pb::WorkerState::Ready {
        codex.say_in_turn("still here").await;
        codex.during(sleep(Duration::from_secs(1))).await;
    }
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    codex.holds_turns = false;
    codex.during(sidecar.say("b", "again")).await.completed();
}

/// Recycling by turns and age: at no time without a warm worker, and unseen by the
/// contexts, whose turns end where they began.
#[tokio::test(start_paused = true)]
async fn worn_out_workers_are_replaced_unseen() {
    type Wear = (&'static str, fn(&mut Setup));
    let wears: [Wear; 2] = [
        ("turns", |setup| setup.pool.max_turns_per_worker = Some(2)),
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

/// What the worker itself has no more of is not the request's fault.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_out_of_file_descriptors_refuses_for_a_while_and_not_for_good() {
    let (sidecar, mut codex) = sidecar().await;
    let first = codex.during(sidecar.say("a", "hello")).await;
    for method in ["turn/start", "thread/start", "thread/resume"] {
        if method == "thread/resume" {
            codex.exit("signal 9");
            codex = sidecar.codex().await;
        }
        let text = "error creating thread: Too many open files (os error 24)";
        codex.refuses = vec![(method, 1, -32603, text)];
        let context = if method == "thread/start" { "b" } else { "a" };
        let refused = codex.during(sidecar.refused(prompt(context, "hello"))).await;
        refused.assert(Code::ResourceExhausted, "OUT_OF_RESOURCES");
        assert!(refused.retry_after.is_some(), "{method}: {refused:#?}");
        assert!(refused.message.contains("Too many open files"), "{method}: {refused:#?}");
    }
    let next = codex.during(sidecar.say("a", "again")).await;
    assert_eq!(next.thread_id(), first.thread_id());
    next.completed();
}

/// Row 40. Codex tells it before anybody would look.
#[tokio::test(start_paused = true)]
async fn a_home_that_codex_can_not_save_in_is_looked_at_at_once() {
    let disk = Disk::default();
    let (sidecar, mut codex) = sidecar_with(|setup| {
        setup.pool.liveness_interval = Duration::from_secs(3600);
        disk.hold_home(setup);
    })
    .await;
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    disk.fill();
    let began = Instant::now();
    let unsaved = "Failed to save the conversation transcript; Codex will continue retrying. Error: \
                   thread-store internal error: No space left on device (os error 28)";
    let told = json!({ "threadId": turn.thread_id(), "message": unsaved });
    codex.tell("warning", told).await;
    let mut readiness = sidecar.engine.pool().readiness();
    let not_ready = |readiness: &_| matches!(readiness, Readiness::NotReady { .. });
    codex.during(readiness.wait_for(not_ready)).await.unwrap();
    let refused = codex.during(sidecar.refused(prompt("b", "hello"))).await;
    assert!(refused.message.contains(Disk::TROUBLE), "{refused:#?}");
    disk.empty();
    codex.during(sidecar.is_ready()).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // The turn goes on meanwhile, and is told.
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    assert_eq!(turn.warned("CODEX_WARNING"), [unsaved]);
}

/// Row 40.
#[tokio::test(start_paused = true)]
async fn what_was_lost_of_a_thread_is_told_before_it_goes_on() {
    let (sidecar, mut codex) = sidecar().await;
    // One that can't list them is asked, too.
    for _ in 0..3 {
        codex.during(sidecar.say("a", "hello")).await.completed();
    }
    let whole = |id| (id, "completed");
    let cases = [
        // Whatever else has come since.
        (vec![whole("more"), whole("u3"), whole("u2"), whole("u1")], None),
        // Four were seen, and one more here.
        (vec![whole("u1"), whole("more")], None),
        (vec![whole("more")], Some((1, 5))),
        // What is there is known from now on.
        (vec![whole("u1"), whole("more")], None),
        // Its begin is there.
        (vec![("u1", "interrupted"), whole("x"), whole("more")], Some((2, 3))),
        (vec![], Some((0, 4))),
    ];
    for (history, lost) in cases {
        codex.exit("signal 9");
        codex = sidecar.codex().await;
        codex.history = Some(history);
        let told = codex.during(sidecar.say("a", "again")).await;
        told.completed();
        let warned = told.warned("THREAD_TRUNCATED");
        match lost {
            Some((left, seen)) => {
                let numbers =
                    format!("{left} whole turns of thread {}, and {seen} were", told.thread_id());
                assert!(warned.len() == 1 && warned[0].contains(&numbers), "{warned:?}");
                let before = told.kinds().iter().position(|kind| *kind == "turn_started");
                let at = told.kinds().iter().position(|kind| *kind == "warning");
                assert!(at < before, "{:?}", told.kinds());
            }
            None => assert!(warned.is_empty(), "{warned:?}"),
        }
    }
    // With the thread loaded nobody asks.
    let asked = codex.count("thread/turns/list");
    let again = codex.during(sidecar.say("a", "again")).await;
    again.completed();
    assert_eq!(codex.count("thread/turns/list"), asked);
}

/// No other worker could have the thread, if that one has loaded it by now.
#[tokio::test(start_paused = true)]
async fn a_worker_that_may_have_loaded_a_thread_gets_it_also_after_a_turn_that_got_no_worker() {
    let disk = Disk::default();
    let sidecar = Sidecar::start(|setup| {
        setup.workers = 2;
        disk.hold_home(setup);
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
    disk.fill();
    asked.during(other.during(sleep(Duration::from_secs(11)))).await;
    let refused = asked.during(other.during(sidecar.refused(prompt("a", "hello")))).await;
    assert!(refused.message.contains(Disk::TROUBLE), "{refused:#?}");
    disk.empty();
    asked.during(other.during(sleep(Duration::from_secs(11)))).await;

    let next = asked.during(other.during(sidecar.say("a", "again"))).await;
    assert_eq!(next.thread_id(), known);
    assert_eq!((asked.count("thread/resume"), other.count("thread/resume")), (2, 0));
}
