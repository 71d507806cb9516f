//! The clocks of a turn, and what becomes of a worker that does not heed them.

use std::pin::pin;
use std::time::Duration;

use serde_json::json;
use tonic::Code;

use crate::pb;
use crate::testing::{Sidecar, Turn, meanwhile, prompt, sidecar, sidecar_with};
use crate::worker::testing::{Codex, HOLD};

const GRACE: Duration = Duration::from_millis(500);

/// How long a worker that was killed is heard out.
const LAST_WORDS: Duration = Duration::from_millis(200);

fn duration(millis: u64) -> Option<prost_types::Duration> {
    Duration::from_millis(millis).try_into().ok()
}

fn within_turn(millis: u64, mut request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    request.turn_options.get_or_insert_default().turn_timeout = duration(millis);
    request
}

fn within_idle(millis: u64, mut request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    request.turn_options.get_or_insert_default().idle_timeout = duration(millis);
    request
}

/// A sidecar whose turns have half a second to end when they are told to.
async fn impatient() -> (Sidecar, Codex) {
    sidecar_with(|setup| setup.timeouts.interrupt_grace = GRACE).await
}

/// Runs a turn as usual.
async fn say(sidecar: &Sidecar, codex: &mut Codex, context: &str) -> Turn {
    codex.holds_turns = false;
    codex.during(sidecar.say(context, "hello")).await
}

#[tokio::test(start_paused = true)]
async fn only_the_turns_own_events_are_progress() {
    let (sidecar, mut codex) = sidecar().await;
    let pause = Duration::from_millis(500);
    // Longer than the timeout, but never silent for it.
    let mut turn = sidecar.hold(&mut codex, within_idle(600, prompt("a", "x"))).await;
    for _ in 0..10 {
        tokio::time::sleep(pause).await;
        codex.say_in_turn("still here").await;
    }
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    turn.completed();

    let will_retry = json!({ "error": { "message": "waiting" }, "willRetry": true });
    let other = json!({ "threadId": "other", "turnId": "other", "itemId": "i", "delta": "x" });
    for (method, params, is_own) in [
        ("error", will_retry, true),
        ("item/agentMessage/delta", other, false),
        ("thread/name/updated", json!({ "threadId": turn.thread_id() }), false),
    ] {
        let mut turn = sidecar.hold(&mut codex, within_idle(600, prompt("a", "x"))).await;
        let began = tokio::time::Instant::now();
        let talk = async {
            loop {
                let asked = tokio::select! {
                    Some(asked) = codex.next() => asked,
                    () = tokio::time::sleep(pause / 5) => {
                        match is_own {
                            true => codex.tell_in_turn(method, params.clone()).await,
                            false => codex.tell(method, params.clone()).await,
                        }
                        continue;
                    }
                };
                codex.answer_usually(&asked).await;
            }
        };
        tokio::select! {
            () = turn.rest() => {}
            () = talk => {}
        }
        let error = turn.failed();
        assert_eq!((error.reason.as_str(), error.retryable), ("IDLE_TIMEOUT", true), "{method}");
        let took = began.elapsed();
        assert!((600..800).contains(&took.as_millis()), "{method}: {took:?}");
    }
}

/// On a clock that stands still while anything is to be done, so that it is moved by hand.
#[tokio::test(start_paused = true)]
async fn a_flood_of_events_does_not_drown_the_clocks() {
    let (sidecar, mut codex) =
        sidecar_with(|setup| setup.retention.max_bytes_per_turn = 64 << 10).await;
    let mut turn = sidecar.hold(&mut codex, within_turn(500, prompt("a", "x"))).await;
    let (thread_id, turn_id) = codex.turns[0].clone();
    let params = json!({ "threadId": thread_id, "turnId": turn_id, "itemId": "i", "delta": "x" });
    let delta = json!({ "method": "item/agentMessage/delta", "params": params });
    let flood = format!("{delta}\n").repeat(400);
    let flooding = async {
        loop {
            codex.write(flood.as_bytes()).await;
            while let Some(Some(asked)) = futures::FutureExt::now_or_never(codex.next()) {
                codex.answer_usually(&asked).await;
            }
        }
    };
    let ending = async {
        tokio::time::advance(Duration::from_millis(500)).await;
        turn.rest().await;
    };
    tokio::select! {
        () = ending => {}
        () = flooding => {}
    }
    assert_eq!(turn.failed().reason, "TURN_TIMEOUT");
}

/// One context on each way not to end; another one on the same worker must not notice.
#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_end_a_turn_loses_its_thread_and_nobody_else_does() {
    let (sidecar, mut codex) = impatient().await;
    let mut other = sidecar.hold(&mut codex, prompt("other", "x")).await;
    // It refuses to be interrupted, and it says that it is but is not.
    for is_refused in [true, false] {
        codex.is_deaf_to_interrupts = true;
        codex.refuses = match is_refused {
            true => vec![("turn/interrupt", usize::MAX, -32600, "no")],
            false => Vec::new(),
        };
        let mut first = sidecar.hold(&mut codex, within_turn(2000, prompt("a", "x"))).await;
        let began = tokio::time::Instant::now();
        codex.during(first.rest()).await;
        let error = first.failed();
        assert_eq!(error.reason, "TURN_TIMEOUT");
        assert!(error.side_effects_possible, "what it goes on doing nobody knows: {error:#?}");
        let took = began.elapsed();
        assert!((2500..2600).contains(&took.as_millis()), "{took:?}");
        codex.is_deaf_to_interrupts = false;
        let next = say(&sidecar, &mut codex, "a").await;
        assert_eq!(next.thread_id(), first.thread_id());
        assert_eq!(next.thread_started().origin(), pb::ThreadOrigin::Resumed);
        next.completed();
    }
    assert!(codex.count("turn/interrupt") > 5, "it is asked again and again where it refuses");
    let worker = sidecar.worker().await;
    assert_eq!((worker.generation, worker.running_turns), (1, 1));
    let (thread_id, turn_id) = codex.turns[0].clone();
    codex.end_turn(&thread_id, &turn_id).await;
    codex.during(other.rest()).await;
    other.completed();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_silent_altogether_is_replaced() {
    let (sidecar, mut codex) = impatient().await;
    let first = say(&sidecar, &mut codex, "a").await;
    let mut turn = sidecar.hold(&mut codex, within_turn(2000, prompt("a", "x"))).await;
    let began = tokio::time::Instant::now();
    // From now on nobody answers.
    turn.rest().await;
    assert_eq!(turn.failed().reason, "TURN_TIMEOUT");
    let took = began.elapsed();
    assert!(took <= Duration::from_millis(2000) + 2 * GRACE + LAST_WORDS, "{took:?}");
    assert_eq!(codex.ended().await, "signal 9");
    let mut codex = sidecar.codex().await;
    codex.during(sidecar.is_ready()).await;
    let next = say(&sidecar, &mut codex, "a").await;
    assert_eq!(next.thread_id(), first.thread_id());
    assert_eq!(sidecar.worker().await.generation, 2);
}

/// Two turns on a worker that answers, of which the second one was to end and was not let go of.
async fn stuck_beside_another(sidecar: &Sidecar, codex: &mut Codex) -> (Turn, Turn) {
    let other = sidecar.hold(codex, prompt("other", "x")).await;
    codex.is_deaf_to_interrupts = true;
    codex.mutes = vec!["thread/archive"];
    let mut stuck = sidecar.hold(codex, within_turn(2000, prompt("a", "x"))).await;
    let began = tokio::time::Instant::now();
    codex.during(stuck.rest()).await;
    let error = stuck.failed();
    assert_eq!((error.reason.as_str(), error.side_effects_possible), ("TURN_TIMEOUT", true));
    let took = began.elapsed();
    assert!(took <= Duration::from_millis(2000) + 2 * GRACE + LAST_WORDS, "{took:?}");
    let worker = sidecar.worker().await;
    assert_eq!((worker.state(), worker.running_turns), (pb::WorkerState::Unresponsive, 2));
    (other, stuck)
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_ends_a_turn_is_replaced_once_the_others_on_it_have_ended() {
    let (sidecar, mut codex) = impatient().await;
    let (mut other, stuck) = stuck_beside_another(&sidecar, &mut codex).await;
    // Nobody else could have the thread, and a turn on it would be taken as steering.
    let (again, new) = codex
        .during(async {
            let again = sidecar.refused(prompt("a", "again"));
            tokio::join!(again, sidecar.refused(prompt("new", "hello")))
        })
        .await;
    for refused in [again, new] {
        refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
        assert!(refused.message.contains("does not end a turn"), "{refused:#?}");
    }
    assert_eq!(codex.count("turn/start"), 2);
    let (thread_id, turn_id) = codex.turns[0].clone();
    codex.end_turn(&thread_id, &turn_id).await;
    codex.during(other.rest()).await;
    other.completed();
    assert_eq!(codex.ended().await, "signal 9");
    let mut codex = sidecar.codex().await;
    codex.during(sidecar.is_ready()).await;
    let next = say(&sidecar, &mut codex, "a").await;
    next.completed();
    assert_eq!(next.thread_id(), stuck.thread_id());
    assert_eq!(sidecar.worker().await.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_a_turn_late_serves_on_and_that_context_too() {
    let (sidecar, mut codex) = impatient().await;
    let (mut other, stuck) = stuck_beside_another(&sidecar, &mut codex).await;
    let mut next = pin!(sidecar.say("a", "again"));
    meanwhile(next.as_mut(), codex.during(tokio::time::sleep(Duration::from_secs(15)))).await;
    assert_eq!(codex.count("turn/start"), 2, "it would be taken as steering");
    codex.mutes.clear();
    codex.holds_turns = false;
    codex.end_last_turn().await;
    let archive = codex.heard_of("thread/archive")[0].clone();
    codex.answer_usually(&archive).await;
    let next = codex.during(next).await;
    assert_eq!(next.final_response(), "You said: again");
    assert_eq!(next.thread_id(), stuck.thread_id());
    say(&sidecar, &mut codex, "new").await.completed();
    codex.during(tokio::time::sleep(Duration::from_secs(60))).await;
    let worker = sidecar.worker().await;
    assert_eq!((worker.state(), worker.generation), (pb::WorkerState::Ready, 1));
    let (thread_id, turn_id) = codex.turns[0].clone();
    codex.end_turn(&thread_id, &turn_id).await;
    codex.during(other.rest()).await;
    other.completed();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_ends_a_turn_does_not_live_on_for_ever() {
    let (sidecar, mut codex) = impatient().await;
    let (mut other, _stuck) = stuck_beside_another(&sidecar, &mut codex).await;
    let began = tokio::time::Instant::now();
    codex.during(other.rest()).await;
    let error = other.failed();
    assert_eq!(error.reason, "WORKER_LOST");
    assert!(error.message.contains("to interrupt, for 30s"), "{error:#?}");
    assert_eq!(began.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_answers_nothing_after_an_interruption_is_killed_with_all_its_turns() {
    let (sidecar, mut codex) = impatient().await;
    let mut other = sidecar.hold(&mut codex, prompt("other", "x")).await;
    let mut stuck = sidecar.hold(&mut codex, within_turn(2000, prompt("a", "x"))).await;
    let began = tokio::time::Instant::now();
    // From now on nobody answers.
    stuck.rest().await;
    assert_eq!(stuck.failed().reason, "TURN_TIMEOUT");
    other.rest().await;
    assert_eq!(other.failed().reason, "WORKER_LOST");
    let took = began.elapsed();
    assert!(took <= Duration::from_millis(2000) + 2 * GRACE + LAST_WORDS, "{took:?}");
    assert_eq!(codex.ended().await, "signal 9");
}

/// The other threads that it holds are not in use, and any worker may have them.
#[tokio::test(start_paused = true)]
async fn the_contexts_of_a_worker_that_does_not_end_a_turn_go_on_elsewhere_at_once() {
    let sidecar = Sidecar::start(|setup| {
        setup.workers = 2;
        setup.timeouts.interrupt_grace = GRACE;
    });
    let mut playing = Vec::new();
    for number in 1..=2 {
        let mut codex = sidecar.codex().await;
        codex.number = Some(number);
        codex.is_deaf_to_interrupts = true;
        codex.refuses.push(("thread/archive", 1, -32600, "not now"));
        playing.push(codex.in_background());
    }
    sidecar.is_ready().await;
    let mut idle = Vec::new();
    let mut busy = Vec::new();
    for context in ["one", "two"] {
        idle.push((context, sidecar.say(context, "hello").await.thread_id().to_owned()));
    }
    for context in ["busy one", "busy two"] {
        let mut turn = sidecar.begin(prompt(context, HOLD)).await.unwrap();
        turn.until("turn_started").await;
        busy.push(turn);
    }
    let mut stuck = sidecar.begin(prompt("stuck", HOLD)).await.unwrap();
    stuck.until("turn_started").await;
    sidecar.interrupt(&stuck.id()).await;
    stuck.rest().await;
    assert_eq!(stuck.interrupted(), pb::InterruptReason::InterruptRequested);
    let drained = sidecar.has_worker(pb::WorkerState::Unresponsive).await;
    let began = tokio::time::Instant::now();
    let is_held_there = |(_, thread_id): &&(_, String)| thread_id[..8] == stuck.thread_id()[..8];
    let (context, thread_id) = idle.iter().find(is_held_there).unwrap();
    let told = sidecar.say(context, "again").await;
    assert_eq!((told.thread_id(), told.final_response()), (thread_id.as_str(), "You said: again"));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let serving = sidecar.workers().await;
    let now = serving.iter().find(|worker| worker.worker_id == drained.worker_id).unwrap();
    assert_eq!(now.turns_started, drained.turns_started, "it got a new turn");
    // It lets go of the thread at the second time.
    while sidecar.workers().await.iter().any(|worker| worker.state() != pb::WorkerState::Ready) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(sidecar.workers().await.iter().all(|worker| worker.generation == 1));
    assert_eq!(sidecar.say("stuck", "again").await.thread_id(), stuck.thread_id());
}

/// What Codex never answers while the turn is on its way to it.
#[tokio::test(start_paused = true)]
async fn a_turn_is_over_in_time_also_while_its_thread_is_being_opened() {
    let (sidecar, mut codex) = impatient().await;
    let known = say(&sidecar, &mut codex, "known").await.thread_id().to_owned();
    // A thread that must be loaded anew.
    let reload = |says: &str| {
        let base_instructions = Some(says.to_owned());
        let options = pb::ThreadOptions { base_instructions, ..Default::default() };
        pb::RunTurnRequest { thread_options: Some(options), ..prompt("known", "hello") }
    };
    // Silent to this alone, or to everything that is asked of it from then on.
    for (muted, is_silent, request) in [
        ("thread/start", false, prompt("new", "hello")),
        ("thread/start", true, prompt("other", "hello")),
        ("turn/start", false, prompt("known", "hello")),
        ("turn/start", true, prompt("known", "hello")),
        ("thread/archive", true, reload("one")),
        ("thread/unarchive", true, reload("two")),
        ("thread/resume", true, reload("three")),
    ] {
        let began = tokio::time::Instant::now();
        let mut turn = pin!(async {
            let mut turn = sidecar.begin(within_turn(400, request.clone())).await.unwrap();
            turn.rest().await;
            turn
        });
        meanwhile(turn.as_mut(), codex.asked(muted)).await;
        let turn = match is_silent {
            true => turn.await,
            false => codex.during(turn).await,
        };
        assert_eq!(turn.failed().reason, "TURN_TIMEOUT", "{muted}");
        let took = began.elapsed();
        assert!(took <= Duration::from_millis(400) + 2 * GRACE + LAST_WORDS, "{muted}: {took:?}");
        if is_silent {
            assert_eq!(codex.ended().await, "signal 9", "{muted}");
            codex = sidecar.codex().await;
            codex.during(sidecar.is_ready()).await;
        }
        // Nothing is lost by it, wherever it was cut off.
        codex.holds_turns = false;
        let next = codex.during(sidecar.run(request.clone())).await;
        next.completed();
        if request.context_id == "known" {
            assert_eq!(next.thread_id(), known, "{muted}");
        }
    }
    assert_eq!(sidecar.context("known").await.unwrap().thread_id, known);
}

/// A turn of half an hour takes no longer to test than one of a second.
#[tokio::test(start_paused = true)]
async fn a_turn_that_waits_for_an_answer_is_not_idle() {
    let (sidecar, mut codex) = sidecar().await;
    let mut request = within_idle(1000, within_turn(2_000_000, prompt("a", "x")));
    request.turn_options.get_or_insert_default().answer_timeout = duration(1_800_000);
    let mut turn = sidecar.hold(&mut codex, request).await;
    let (thread_id, turn_id) = codex.turns[0].clone();
    let params = json!({ "threadId": thread_id, "turnId": turn_id, "tool": "lookup" });
    codex.ask(7, "item/tool/call", params).await;
    let began = tokio::time::Instant::now();
    codex.during(turn.until("request_resolved")).await;
    assert_eq!(began.elapsed().as_secs(), 1800);
    codex.during(turn.rest()).await;
    assert_eq!(turn.failed().reason, "IDLE_TIMEOUT");
    assert_eq!(began.elapsed().as_secs(), 1801);
}

/// Whoever asks for no clock has these.
#[tokio::test(start_paused = true)]
async fn a_turn_that_hangs_is_ended_by_default_and_warned_of_before() {
    let (sidecar, mut codex) = sidecar().await;
    let command = json!({ "type": "commandExecution", "id": "c", "command": "sleep", "cwd": "/",
        "status": "inProgress", "commandActions": [] });
    for (item, minutes) in [(None, 10), (Some(command), 60)] {
        let mut turn = sidecar.hold(&mut codex, prompt("a", "x")).await;
        let began = tokio::time::Instant::now();
        if let Some(item) = item {
            codex.tell_in_turn("item/started", json!({ "item": item })).await;
            codex.during(turn.until("item_started")).await;
        }
        codex.during(turn.until("warning")).await;
        assert_eq!(turn.warned("NO_PROGRESS").len(), 1);
        assert_eq!(began.elapsed().as_secs(), 60 * minutes / 2);
        codex.during(turn.rest()).await;
        let error = turn.failed();
        assert_eq!((error.reason.as_str(), error.retryable), ("IDLE_TIMEOUT", true));
        assert_eq!(began.elapsed().as_secs(), 60 * minutes);
        assert_eq!(turn.warned("NO_PROGRESS").len(), 1);
    }
    let limits = sidecar.info().await.limits.unwrap();
    let seconds = |duration: Option<prost_types::Duration>| duration.unwrap().seconds;
    assert_eq!((seconds(limits.default_idle_timeout), seconds(limits.tool_timeout)), (600, 3600));
}
