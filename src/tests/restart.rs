//! What a sidecar knows that is started where another one was killed.

use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use crate::pb;
use crate::pb::turn_event::Event;
use crate::registry::ledger::testing::Disk;
use crate::testing::{self, Refused, Sidecar, Turn, meanwhile, prompt, sidecar_on};
use crate::worker::testing::Codex;

async fn start(disk: &Arc<Disk>, number: u32) -> (Sidecar, Codex) {
    sidecar_on(disk, number, |_| {}).await
}

fn with_id(request: pb::RunTurnRequest, id: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest { request_id: id.to_owned(), ..request }
}

async fn attached(sidecar: &Sidecar, turn_id: &str) -> Turn {
    let mut turn = sidecar.attach(turn_id).await.unwrap();
    turn.rest().await;
    turn
}

/// What is left of a turn after a restart: its ends as they were.
fn ends(turn: &Turn) -> Vec<&pb::TurnEvent> {
    let is_left = |event: &&pb::TurnEvent| {
        let event = event.event.as_ref().unwrap();
        event.is_terminal() || matches!(event, Event::ThreadStarted(_))
    };
    turn.events.iter().filter(is_left).collect()
}

fn assert_restarted(turn: &Turn) {
    let error = turn.failed();
    assert_eq!(error.reason, "SIDECAR_RESTARTED");
    assert!(error.retryable && error.side_effects_possible, "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_ended_turn_is_found_as_it_was_under_all_its_names() {
    let disk = Arc::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let request = with_id(prompt("a", "hello"), "r");
    let before = codex.during(sidecar.run(request.clone())).await;
    let (listed, _) = sidecar.turns(None, 0, "").await.unwrap();

    for number in 2..4 {
        let (sidecar, mut codex) = start(&disk, number).await;
        let after = attached(&sidecar, &before.id()).await;
        assert_eq!(after.kinds(), ["thread_started", "gap", "turn_completed"]);
        assert_eq!(ends(&after), ends(&before));
        let again = codex.during(sidecar.run(request.clone())).await;
        assert_eq!(again.events, after.events);
        let other = with_id(prompt("a", "something else"), "r");
        sidecar.refused(other).await.assert(Code::AlreadyExists, "REQUEST_ID_REUSED");
        let (found, _) = sidecar.turns(Some("a"), 0, "").await.unwrap();
        assert_eq!(found, listed);
        assert_eq!(codex.count("turn/start"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_ran_is_lost_and_never_run_again() {
    let disk = Arc::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let request = with_id(prompt("a", "hello"), "r");
    let before = sidecar.hold(&mut codex, request.clone()).await;
    // It only waits, and Codex never gets to know of it.
    let waiting = with_id(prompt("a", "later"), "w");
    let mut queued = sidecar.begin(waiting.clone()).await.unwrap();
    queued.until("queued").await;

    let mut lost = Vec::new();
    for number in 2..4 {
        let (sidecar, mut codex) = start(&disk, number).await;
        let after = attached(&sidecar, &before.id()).await;
        assert_eq!(after.kinds(), ["thread_started", "gap", "turn_failed"]);
        assert_restarted(&after);
        assert_eq!(ends(&after)[0], ends(&before)[0]);
        assert!(after.events.last().unwrap().sequence > before.events.last().unwrap().sequence);
        let again = codex.during(sidecar.run(request.clone())).await;
        assert_eq!(again.events, after.events);
        let (found, _) = sidecar.turns(Some("a"), 0, "").await.unwrap();
        let [info] = &found[..] else { panic!("{found:#?}") };
        assert_eq!((info.turn_id.clone(), info.state()), (before.id(), pb::TurnState::Failed));
        assert_eq!((info.reason.as_str(), info.worker_id.as_str()), ("SIDECAR_RESTARTED", "w0"));
        sidecar.attach(&queued.id()).await.err().unwrap().assert(Code::NotFound, "TURN_NOT_FOUND");
        assert_eq!(codex.count("turn/start"), 0);
        lost.push(after.events);
    }
    assert_eq!(lost[0], lost[1], "it is lost once");
    let (sidecar, mut codex) = start(&disk, 4).await;
    let ran = codex.during(sidecar.run(waiting)).await;
    assert_eq!(ran.final_response(), "You said: later");
    assert_ne!(ran.id(), queued.id());
}

#[tokio::test(start_paused = true)]
async fn a_refused_turn_leaves_nothing() {
    let disk = Arc::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    codex.refuses.push(("thread/start", 1, -32600, "not today"));
    let request = with_id(prompt("a", "hello"), "r");
    let refused = codex.during(sidecar.refused(request.clone())).await;
    refused.assert(Code::FailedPrecondition, "CODEX_REFUSED");
    assert_eq!(disk.turns(), []);
    let (sidecar, mut codex) = start(&disk, 2).await;
    codex.during(sidecar.run(request)).await.completed();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_or_told_before_what_goes_before_it_is_kept() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    disk.hold();
    let running = sidecar.begin(with_id(prompt("a", "hello"), "r"));
    tokio::pin!(running);
    // The thread is opened beside it, and there is time for more.
    meanwhile(running.as_mut(), codex.during(tokio::time::sleep(Duration::from_secs(1)))).await;
    assert_eq!((codex.count("thread/start"), codex.count("turn/start")), (1, 0));
    assert_eq!(disk.turns(), []);
    disk.release();
    let asked = tokio::select! {
        _ = &mut running => panic!("it tells something"),
        asked = codex.asked("turn/start") => asked,
    };
    assert_eq!(disk.turns().len(), 1);

    disk.hold();
    codex.answer_usually(&asked).await;
    // Codex goes on, and nobody hears of it.
    meanwhile(running.as_mut(), codex.during(tokio::time::sleep(Duration::from_secs(1)))).await;
    let (listed, _) = sidecar.turns(None, 0, "").await.unwrap();
    assert_eq!((listed[0].thread_id.as_str(), listed[0].last_event.as_str()), ("", ""));
    assert_eq!(listed[0].state(), pb::TurnState::Running);
    disk.release();
    let mut turn = running.await.unwrap();
    turn.rest().await;
    assert_eq!(turn.final_response(), "You said: hello");
    let kept = disk.turns().remove(0);
    assert_eq!(kept.end.unwrap().sequence, turn.events.last().unwrap().sequence);
}

#[tokio::test(start_paused = true)]
async fn the_end_is_not_heard_before_it_is_kept_and_all_else_is() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    disk.hold();
    codex.say_in_turn("bye").await;
    codex.end_last_turn().await;
    codex.during(turn.until("item_completed")).await;
    {
        let rest = turn.rest();
        tokio::pin!(rest);
        meanwhile(rest.as_mut(), codex.during(tokio::time::sleep(Duration::from_secs(1)))).await;
        // The context has its turn as long.
        let busy = pb::RunTurnRequest {
            busy_policy: pb::BusyPolicy::Reject.into(),
            ..prompt("a", "another")
        };
        sidecar.refused(busy).await.assert(Code::Aborted, "CONTEXT_BUSY");
        disk.release();
        rest.await;
    }
    assert_eq!(turn.final_response(), "bye");
    assert_eq!(turn.warned("OUTCOME_NOT_KEPT"), [""; 0]);
}

async fn assert_unavailable(refused: Refused) {
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    assert!(
        refused.retry_after.is_some() && refused.message.contains(Disk::TROUBLE),
        "{refused:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn on_a_full_disk_no_turn_begins_and_the_end_of_one_that_runs_is_told_and_kept_later() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let ended = codex.during(sidecar.run(with_id(prompt("b", "before"), "r"))).await;
    let mut running = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    let mut waiting = sidecar.begin(prompt("a", "later")).await.unwrap();
    disk.fill();
    let info = sidecar.info().await;
    assert!(!info.ready && info.not_ready_message.contains(Disk::TROUBLE), "{info:?}");
    assert_eq!(info.not_ready_reason, "LEDGER_UNAVAILABLE");
    assert_unavailable(sidecar.refused(prompt("c", "hello")).await).await;
    // What is known is told.
    let again = sidecar.run(with_id(prompt("b", "before"), "r")).await;
    assert_eq!(again.id(), ended.id());

    codex.say_in_turn("bye").await;
    codex.end_last_turn().await;
    codex.during(running.rest()).await;
    assert_eq!(running.final_response(), "bye");
    assert!(running.warned("OUTCOME_NOT_KEPT")[0].contains(Disk::TROUBLE));
    // Its turn has come.
    let refused = loop {
        match waiting.next().await {
            Ok(Some(())) => {}
            Ok(None) => panic!("{:#?}", waiting.events),
            Err(refused) => break refused,
        }
    };
    assert_unavailable(refused).await;

    disk.empty();
    assert!(sidecar.info().await.ready);
    let (sidecar, _codex) = start(&disk, 2).await;
    let after = attached(&sidecar, &running.id()).await;
    assert_eq!(ends(&after), ends(&running));
    let refused = sidecar.attach(&waiting.id()).await.err().unwrap();
    refused.assert(Code::NotFound, "TURN_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn a_turn_whose_start_can_not_be_kept_gives_its_thread_back() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    disk.hold();
    let running = sidecar.refused(with_id(prompt("a", "hello"), "r"));
    tokio::pin!(running);
    meanwhile(running.as_mut(), codex.during(tokio::time::sleep(Duration::from_secs(1)))).await;
    disk.fill();
    assert_unavailable(codex.during(running).await).await;
    assert_eq!((codex.count("turn/start"), codex.count("thread/unsubscribe")), (0, 1));
    assert_eq!(sidecar.counts().await.running_turns, 0);
    disk.empty();
    assert_eq!(disk.turns(), []);
    codex.during(sidecar.run(with_id(prompt("a", "hello"), "r"))).await.completed();
}

#[tokio::test(start_paused = true)]
async fn what_is_not_kept_of_a_thread_is_told_with_a_warning() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let running = sidecar.begin(prompt("a", "hello"));
    tokio::pin!(running);
    let asked = tokio::select! {
        _ = &mut running => panic!("it tells something"),
        asked = codex.asked("turn/start") => asked,
    };
    disk.hold();
    codex.answer_usually(&asked).await;
    meanwhile(running.as_mut(), codex.during(tokio::time::sleep(Duration::from_secs(1)))).await;
    disk.fill();
    let mut turn = running.await.unwrap();
    turn.rest().await;
    assert_eq!(turn.final_response(), "You said: hello");
    assert_eq!(turn.warned("OUTCOME_NOT_KEPT").len(), 1, "{:?}", turn.kinds());
    disk.empty();
    let (sidecar, _codex) = start(&disk, 2).await;
    assert_eq!(ends(&attached(&sidecar, &turn.id()).await), ends(&turn));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_steered_a_turn_is_that_turn() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let running = sidecar.hold(&mut codex, with_id(prompt("a", "hello"), "r")).await;
    let steers = |words: &str, id: &str| pb::RunTurnRequest {
        busy_policy: pb::BusyPolicy::Steer.into(),
        ..with_id(prompt("a", words), id)
    };
    // One that Codex does not take leaves no trace.
    codex.refuses.push(("turn/steer", 1, -32600, "not today"));
    let refused = codex.during(sidecar.refused(steers("even more", "t"))).await;
    refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
    disk.fill();
    assert_unavailable(sidecar.refused(steers("too much", "u")).await).await;
    disk.empty();
    // It ends what runs, in the test's Codex.
    disk.hold();
    let steering = sidecar.begin(steers("more", "s"));
    tokio::pin!(steering);
    meanwhile(steering.as_mut(), codex.during(tokio::time::sleep(Duration::from_secs(1)))).await;
    assert_eq!(codex.count("turn/steer"), 1, "the one that was refused");
    disk.release();
    let mut joined = codex.during(steering).await.unwrap();
    codex.during(joined.rest()).await;

    let (sidecar, mut codex) = start(&disk, 2).await;
    for request in [with_id(prompt("a", "hello"), "r"), steers("more", "s")] {
        let again = codex.during(sidecar.run(request)).await;
        assert_eq!((again.id(), ends(&again)), (running.id(), ends(&joined)));
    }
    for id in ["t", "u"] {
        let ran = codex.during(sidecar.run(steers("even more", id))).await;
        assert_ne!(ran.id(), running.id());
    }
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_kept_for_as_long_as_it_would_have_been_without_the_restart() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let turn = codex.during(sidecar.run(with_id(prompt("a", "hello"), "r"))).await;
    disk.age(Duration::from_secs(590));
    let (sidecar, _codex) = start(&disk, 2).await;
    sidecar.engine.turns().sweep();
    attached(&sidecar, &turn.id()).await;
    tokio::time::advance(Duration::from_secs(10)).await;
    sidecar.engine.turns().sweep();
    let forgotten = sidecar.attach(&turn.id()).await.err().unwrap();
    forgotten.assert(Code::NotFound, "TURN_NOT_FOUND");
    assert_eq!(disk.turns(), []);

    // One whose time was over before.
    let (sidecar, mut codex) = start(&disk, 3).await;
    let turn = codex.during(sidecar.run(with_id(prompt("a", "hello"), "r"))).await;
    disk.age(Duration::from_secs(601));
    let (sidecar, mut codex) = start(&disk, 4).await;
    let forgotten = sidecar.attach(&turn.id()).await.err().unwrap();
    forgotten.assert(Code::NotFound, "TURN_NOT_FOUND");
    assert_eq!(disk.turns(), []);
    let again = codex.during(sidecar.run(with_id(prompt("a", "hello"), "r"))).await;
    assert_ne!(again.id(), turn.id());
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_was_lost_is_kept_also_where_none_is() {
    let disk = Arc::default();
    let keeps_none =
        |number| sidecar_on(&disk, number, |setup| setup.retention.after_end = Duration::ZERO);
    let (sidecar, mut codex) = keeps_none(1).await;
    let request = with_id(prompt("a", "hello"), "r");
    let before = sidecar.hold(&mut codex, request.clone()).await;
    for number in 2..4 {
        let (sidecar, mut codex) = keeps_none(number).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let again = codex.during(sidecar.run(request.clone())).await;
        assert_eq!((again.id(), codex.count("turn/start")), (before.id(), 0));
        assert_restarted(&again);
    }
    disk.age(Duration::from_secs(600));
    let (_sidecar, _codex) = keeps_none(4).await;
    assert_eq!(disk.turns(), []);
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_turns_counts_after_a_restart_and_the_oldest_goes_for_it() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let words = "x".repeat(4000);
    let mut ids = Vec::new();
    for number in 0..8 {
        let context = number.to_string();
        ids.push(codex.during(sidecar.run(prompt(&context, &words))).await.id());
    }
    let (sidecar, _codex) = sidecar_on(&disk, 2, |setup| {
        (setup.retention.max_bytes, setup.retention.max_bytes_per_turn) = (14_000, 14_000);
    })
    .await;
    let counts = sidecar.counts().await;
    assert!(counts.retained_bytes <= 14_000, "{counts:?}");
    let kept: Vec<_> = disk.turns().into_iter().map(|turn| turn.turn_id.0).collect();
    assert_eq!(kept, ids[6..]);
    assert_eq!(counts.retained_turns, 2);
}

#[tokio::test(start_paused = true)]
async fn a_turn_without_a_context_is_kept_and_its_thread_is_nobodys() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let ephemeral = pb::RunTurnRequest { ephemeral: true, ..with_id(prompt("", "hello"), "e") };
    let turn = codex.during(sidecar.run(ephemeral.clone())).await;
    let unbound = pb::RunTurnRequest {
        thread_id: uuid::Uuid::new_v4().to_string(),
        ..with_id(prompt("", "hello"), "u")
    };
    let other = codex.during(sidecar.run(unbound.clone())).await;
    assert!(disk.facts().is_empty(), "{:?}", disk.facts());
    let (sidecar, mut codex) = start(&disk, 2).await;
    for (request, before) in [(ephemeral, turn), (unbound, other)] {
        let after = codex.during(sidecar.run(request)).await;
        assert_eq!((after.id(), ends(&after)), (before.id(), ends(&before)));
    }
    assert_eq!(codex.count("turn/start"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_turn_of_before_comes_too_late() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let turn = codex.during(sidecar.run(prompt("a", "hello"))).await;
    let (sidecar, _codex) = start(&disk, 2).await;
    let answer = crate::model::question::Answer::UserQuestions(Default::default());
    let late = sidecar.answer_as("", &turn.id(), "r", answer).await.unwrap_err();
    late.assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
}

#[tokio::test(start_paused = true)]
async fn a_context_goes_on_with_its_thread_and_what_was_known_of_it() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let lent = |name: &str| {
        let mut request = prompt("a", "hello");
        let options = request.thread_options.get_or_insert_default();
        options.developer_instructions = Some(name.to_owned());
        request
    };
    let before = codex.during(sidecar.run(lent("be brief"))).await;
    let context = sidecar.context("a").await.unwrap();

    let (sidecar, mut codex) = start(&disk, 2).await;
    let known = sidecar.context("a").await.unwrap();
    assert_eq!(pb::Context { worker_id: context.worker_id.clone(), ..known }, context);
    let after = codex.during(sidecar.run(lent("be brief"))).await;
    assert_eq!(after.thread_id(), before.thread_id());
    assert_eq!(after.thread_started().origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(after.warnings(), [] as [&pb::Warning; 0]);
    let (sidecar, mut codex) = start(&disk, 3).await;
    let other = codex.during(sidecar.run(lent("be long"))).await;
    assert_eq!(other.warned("DEVELOPER_INSTRUCTIONS_IGNORED").len(), 1, "{:?}", other.warnings());
    assert_eq!(sidecar.context("a").await.unwrap().turn_count, 3);
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_codex_never_wrote_down_is_replaced_and_any_other_that_is_gone_is_missed() {
    const GONE: (&str, usize, i64, &str) =
        ("thread/resume", 1, -32600, "no rollout found for thread id");
    const EMPTY: (&str, usize, i64, &str) =
        ("thread/resume", 1, -32603, "failed to load rollout: rollout at /h/r.jsonl is empty");
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let ended = codex.during(sidecar.say("b", "hello")).await;
    let before = sidecar.hold(&mut codex, prompt("a", "hello")).await;

    let (sidecar, mut codex) = start(&disk, 2).await;
    codex.refuses.push(EMPTY);
    let after = codex.during(sidecar.say("a", "again")).await;
    assert_eq!(after.thread_started().origin(), pb::ThreadOrigin::New);
    assert!(after.warned("THREAD_REPLACED")[0].contains(before.thread_id()));
    assert_eq!(after.final_response(), "You said: again");
    codex.refuses.push(GONE);
    let missed = codex.during(sidecar.refused(prompt("b", "again"))).await;
    missed.assert(Code::NotFound, "THREAD_NOT_FOUND");
    assert!(missed.message.contains(ended.thread_id()), "{missed:?}");

    let (sidecar, _codex) = start(&disk, 3).await;
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, after.thread_id());
    let kept: Vec<_> = disk.facts().into_keys().map(|id| id.to_string()).collect();
    let mut bound = [ended.thread_id().to_owned(), after.thread_id().to_owned()];
    bound.sort();
    assert_eq!(kept, bound, "what is known of the one that was replaced is forgotten");
}

/// Codex keeps a summary that was asked for, and has no word for none: AUTO takes its place.
#[tokio::test(start_paused = true)]
async fn what_the_last_turn_has_set_is_known_unless_somebody_else_had_a_turn_since() {
    let plain = || prompt("a", "hello");
    let mut detailed = plain();
    let options = detailed.thread_options.get_or_insert_default();
    options.set_reasoning_summary(pb::ReasoningSummary::Detailed);
    let auto = serde_json::json!("auto");
    for (last, history, summary) in [
        (plain(), "u1", serde_json::Value::Null),
        (plain(), "another", auto.clone()),
        (detailed, "u1", auto),
    ] {
        let disk = Arc::<Disk>::default();
        let (sidecar, mut codex) = start(&disk, 1).await;
        codex.during(sidecar.run(last)).await;
        let (sidecar, mut codex) = start(&disk, 2).await;
        codex.history = Some(vec![(history, "completed"), ("u1", "completed")]);
        codex.during(sidecar.run(plain())).await;
        assert_eq!(codex.heard_of("turn/start")[0].params["summary"], summary, "{history}");
    }
}

/// Codex has it on disk from `turn/started` on, and not always before.
#[tokio::test(start_paused = true)]
async fn a_new_thread_is_told_of_once_codex_has_written_it_down() {
    for tells in [true, false] {
        let disk = Arc::<Disk>::default();
        let (sidecar, mut codex) = start(&disk, 1).await;
        let running = sidecar.begin(prompt("a", "hello"));
        tokio::pin!(running);
        let asked = tokio::select! {
            _ = &mut running => panic!("it tells something"),
            asked = codex.asked("turn/start") => asked,
        };
        let root = asked.params["rootTurnId"].clone();
        let turn = serde_json::json!({ "turn": { "id": "u1", "rootTurnId": root } });
        codex.tell_settings(&asked).await;
        codex.answer(&asked, turn).await;
        let while_not = codex.during(tokio::time::sleep(Duration::from_secs(4)));
        meanwhile(running.as_mut(), while_not).await;
        assert!(disk.turns()[0].thread_started.is_some(), "we have done our part");
        if tells {
            let (thread_id, root) = (asked.params["threadId"].as_str().unwrap(), root.as_str());
            codex.begin_turn(thread_id, "u1", root.unwrap()).await;
        }
        // What takes too long is not waited for.
        let within = Duration::from_secs(if tells { 0 } else { 2 });
        let began_at = tokio::time::Instant::now();
        let mut turn = running.await.unwrap();
        turn.until("turn_started").await;
        assert!(began_at.elapsed() <= within);
    }
}

#[tokio::test(start_paused = true)]
async fn a_blank_thread_that_codex_has_after_all_takes_the_instructions_of_its_next_turn() {
    let instructed = |words: &str| {
        let mut request = prompt("a", "hello");
        let options = request.thread_options.get_or_insert_default();
        options.developer_instructions = Some(words.to_owned());
        request
    };
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let before = sidecar.hold(&mut codex, instructed("be brief")).await;
    let (sidecar, mut codex) = start(&disk, 2).await;
    let after = codex.during(sidecar.run(instructed("be long"))).await;
    assert_eq!(after.thread_id(), before.thread_id());
    assert_eq!(after.warnings(), [] as [&pb::Warning; 0]);
    let resumed = &codex.heard_of("thread/resume")[0].params;
    assert_eq!(resumed["developerInstructions"], "be long");
    // From here on it has them.
    let other = codex.during(sidecar.run(instructed("be brief"))).await;
    assert_eq!(other.warned("DEVELOPER_INSTRUCTIONS_IGNORED").len(), 1, "{:?}", other.warnings());
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_full_for_codex_and_for_us_is_the_homes_trouble() {
    let (state, home) = (Arc::<Disk>::default(), testing::Disk::default());
    let (sidecar, mut codex) = sidecar_on(&state, 1, |setup| home.hold_home(setup)).await;
    home.fill();
    let reason = async |codex: &mut Codex, wanted: &str| {
        loop {
            let info = sidecar.info().await;
            if info.not_ready_reason == wanted {
                return info.not_ready_message;
            }
            codex.during(tokio::time::sleep(Duration::from_secs(1))).await;
        }
    };
    reason(&mut codex, "CODEX_HOME_UNUSABLE").await;
    state.fill();
    let message = reason(&mut codex, "CODEX_HOME_UNUSABLE").await;
    assert!(message.starts_with(testing::Disk::TROUBLE), "{message}");
    assert_eq!(message.matches(Disk::TROUBLE).count(), 2, "{message}");
    home.empty();
    reason(&mut codex, "LEDGER_UNAVAILABLE").await;
    state.empty();
    reason(&mut codex, "").await;
}
