//! Turns that meet: order, limits, and what may be done to those that wait.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::attached::by_id;
use crate::support::turn::until_there;
use crate::support::{Client, Place, Sidecar, Turn, eventually, prompt, scripted, text};
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use tonic::Code;

fn under(policy: pb::BusyPolicy, request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    pb::RunTurnRequest { busy_policy: policy.into(), ..request }
}

async fn position(turn: &mut Turn) -> u32 {
    turn.until("queued", |event| match event {
        Event::Queued(queued) => Some(queued.position),
        _ => None,
    })
    .await
}

/// Waits until so many turns wait.
async fn waiting(client: &Client, count: u32) {
    eventually(&format!("{count} waiting turns"), || async {
        (client.counts().await.queued_turns == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn turns_of_a_context_run_in_order_and_tell_their_places() {
    let sidecar = Sidecar::start().await;
    let mut first = sidecar.begin(prompt("a", "[[wait 300ms]] [[say 1]]")).await;
    first.started().await;
    let mut second = sidecar.begin(prompt("a", "two")).await;
    assert_eq!(position(&mut second).await, 1);
    let mut third = sidecar.begin(prompt("a", "three")).await;
    assert_eq!(position(&mut third).await, 2);
    let other = sidecar.say("b", "meanwhile").await;
    assert_eq!(other.final_response(), "You said: meanwhile (user messages so far: 1)");

    let (first, second, third) = tokio::join!(first.rest(), second.rest(), third.rest());
    assert_eq!(first.final_response(), "1");
    assert_eq!(second.final_response(), "You said: two (user messages so far: 2)");
    assert_eq!(third.final_response(), "You said: three (user messages so far: 3)");
    assert_eq!(second.thread_id(), first.thread_id());
    assert_eq!(third.thread_id(), first.thread_id());
    let positions: Vec<u32> = third
        .all()
        .filter_map(|event| match event {
            Event::Queued(queued) => Some(queued.position),
            _ => None,
        })
        .collect();
    assert_eq!(positions, [2, 1]);
    sidecar.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_races_of_two_first_turns_give_one_thread_each_and_turns_in_order() {
    let sidecar = scripted::with(|config| {
        config.workers = 2;
        config.retention.after_end = Duration::ZERO;
    })
    .await;
    let slots = Arc::new(tokio::sync::Semaphore::new(16));
    let mut races = tokio::task::JoinSet::new();
    for race in 0..1000 {
        let (client, slots) = ((*sidecar).clone(), Arc::clone(&slots));
        races.spawn(async move {
            let _slot = slots.acquire().await.unwrap();
            let context = format!("race {race}");
            let (one, two) =
                tokio::join!(client.say(&context, "hello"), client.say(&context, "hello"));
            assert_eq!(one.thread_id(), two.thread_id(), "{context}");
            let (first, second) =
                if one.origin() == pb::ThreadOrigin::New { (one, two) } else { (two, one) };
            assert_eq!(first.origin(), pb::ThreadOrigin::New, "{context}");
            assert_eq!(second.origin(), pb::ThreadOrigin::Resumed, "{context}");
            assert_eq!(first.final_response(), "You said: hello (user messages so far: 1)");
            assert_eq!(second.final_response(), "You said: hello (user messages so far: 2)");
            let end_of_first = first.events.last().unwrap().emitted_at.unwrap();
            let start_of_second = second
                .events
                .iter()
                .find(|event| matches!(event.event, Some(Event::ThreadStarted(_))));
            let start_of_second = start_of_second.unwrap().emitted_at.unwrap();
            // One clock, read by one process.
            assert!(
                (end_of_first.seconds, end_of_first.nanos)
                    <= (start_of_second.seconds, start_of_second.nanos),
                "{context}"
            );
            first.thread_id().to_owned()
        });
    }
    let mut threads = HashSet::new();
    while let Some(thread) = races.join_next().await {
        threads.insert(thread.unwrap());
    }
    assert_eq!(threads.len(), 1000);
    sidecar.stop().await;
}

#[tokio::test]
async fn reject_refuses_while_the_context_is_busy() {
    let sidecar = scripted::start().await;
    let mut busy = sidecar.begin(prompt("a", "[[hang]]")).await;
    let turn_id = busy.started().await;
    let request = under(pb::BusyPolicy::Reject, prompt("a", "hello"));
    sidecar.refused(request.clone()).await.assert(Code::Aborted, "CONTEXT_BUSY");
    // The thread is busy, whoever names it.
    let thread_id = busy.events[0].clone();
    let Some(Event::ThreadStarted(started)) = thread_id.event else { panic!("{thread_id:?}") };
    let named = pb::RunTurnRequest { thread_id: started.thread_id, ..prompt("other", "hello") };
    sidecar
        .refused(under(pb::BusyPolicy::Reject, named))
        .await
        .assert(Code::Aborted, "CONTEXT_BUSY");
    sidecar.run(under(pb::BusyPolicy::Reject, prompt("b", "hello"))).await.completed();
    sidecar.interrupt(&turn_id).await.unwrap();
    sidecar.run(request).await.completed();
    sidecar.stop().await;
}

#[tokio::test]
async fn the_real_cli_takes_what_a_running_turn_is_steered_with() {
    let sidecar = Sidecar::start().await;
    let go = sidecar.place.path().join("go");
    let mut running = sidecar.begin(until_there("a", &go, "first")).await;
    let turn_id = running.started().await;
    running.command_started().await;
    let codex_turn_id = sidecar.steer(&turn_id, "and this").await.unwrap();
    let Some(Event::TurnStarted(started)) = running.events.iter().find_map(|event| {
        event.event.clone().filter(|event| matches!(event, Event::TurnStarted(_)))
    }) else {
        panic!()
    };
    assert_eq!(codex_turn_id, started.codex_turn_id);

    // All of it is looked at before Codex sees any.
    let image = pb::user_input::Input::LocalImage(pb::LocalImage { path: "/no/image".to_owned() });
    let remote = pb::user_input::Input::ImageUrl("https://example.com/image.png".to_owned());
    for (image, field) in [(image, "local_image.path"), (remote, "image_url")] {
        let inputs = vec![text("look"), pb::UserInput { input: Some(image) }];
        let request = pb::SteerTurnRequest { turn_id: turn_id.clone(), inputs };
        let refused = sidecar.codex().steer_turn(request).await.unwrap_err();
        let refused = support::Refused::from(refused);
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), [format!("inputs[1].{field}")]);
        // What to do about it stands there, too.
        let remedy = if field == "image_url" { "send data:image/" } else { "/no/image" };
        assert!(refused.fields[0].1.contains(remedy), "{refused:#?}");
    }

    // The same by the policy: it joins the turn, from its first event.
    let joined = sidecar.begin(under(pb::BusyPolicy::Steer, prompt("a", "[[say both]]"))).await;
    std::fs::write(go, "").unwrap();
    let (told, joined) = tokio::join!(running.rest(), joined.rest());
    assert_eq!(told.events, joined.events);
    let said: Vec<_> = told
        .items()
        .into_iter()
        .filter_map(|(_, kind)| match kind {
            pb::item::Kind::UserMessage(message) => Some(message.inputs.clone()),
            _ => None,
        })
        .collect();
    assert!(said.contains(&vec![text("and this")]), "{said:#?}");
    assert!(said.contains(&vec![text("[[say both]]")]), "{said:#?}");
    assert_eq!(told.final_response(), "both");

    // With none running it is a turn as usual; one that has ended takes nothing.
    let own = sidecar.run(under(pb::BusyPolicy::Steer, prompt("a", "hello"))).await;
    assert_ne!(own.turn_id(), turn_id);
    let ended = sidecar.steer(&turn_id, "too late").await.unwrap_err();
    ended.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_turn_that_waits_can_be_interrupted_and_not_steered() {
    let sidecar = scripted::start().await;
    let mut busy = sidecar.begin(prompt("a", "[[hang]]")).await;
    let running_id = busy.started().await;
    let mut queued = sidecar.begin(prompt("a", "never")).await;
    assert_eq!(position(&mut queued).await, 1);
    let turn_id = queued.turn_id().to_owned();
    let mut last = sidecar.begin(prompt("a", "at last")).await;
    assert_eq!(position(&mut last).await, 2);

    let refused = sidecar.steer(&turn_id, "hello").await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "TURN_NOT_STEERABLE");
    let terminal = sidecar.interrupt(&turn_id).await.unwrap();
    let told = queued.rest().await;
    assert_eq!(told.interrupted(), pb::InterruptReason::InterruptRequested);
    assert_eq!(told.kinds(), ["queued", "turn_interrupted"]);
    assert_eq!(*told.events.last().unwrap(), terminal);
    // Again, it is as it was.
    assert_eq!(sidecar.interrupt(&turn_id).await.unwrap(), terminal);

    // The one behind it moves up, and the running one has not noticed.
    assert_eq!(position(&mut last).await, 1);
    let terminal = sidecar.interrupt(&running_id).await.unwrap();
    assert_eq!(busy.rest().await.events.last(), Some(&terminal));
    last.rest().await.completed();

    // Leaving the queue by hanging up.
    let mut busy = sidecar.begin(prompt("a", "[[hang]]")).await;
    let running_id = busy.started().await;
    let mut queued = sidecar.begin(prompt("a", "never")).await;
    position(&mut queued).await;
    let turn_id = queued.turn_id().to_owned();
    drop(queued);
    waiting(&sidecar, 0).await;
    let seen = sidecar.attach(by_id(&turn_id), 0).await.rest().await;
    assert!(matches!(&seen.last().unwrap().event, Some(Event::TurnInterrupted(interrupted))
        if interrupted.reason() == pb::InterruptReason::CallerDisconnected));
    sidecar.interrupt(&running_id).await.unwrap();
    sidecar.stop().await;
}

#[tokio::test]
async fn beyond_the_limits_turns_are_refused_at_once_and_told_when_to_come_back() {
    let sidecar = scripted::with(|config| {
        config.limits.max_running_turns = 2;
        config.limits.max_waiting_turns = 2;
        config.limits.max_waiting_turns_per_context = 1;
    })
    .await;
    let mut running = Vec::new();
    for context in ["a", "b"] {
        let mut turn = sidecar.begin(prompt(context, "[[hang]]")).await;
        turn.started().await;
        running.push(turn);
    }
    let mut behind = sidecar.begin(prompt("a", "behind a")).await;
    assert_eq!(position(&mut behind).await, 1);
    let full = sidecar.refused(prompt("a", "no room")).await;
    full.assert(Code::ResourceExhausted, "CONTEXT_QUEUE_FULL");
    assert!(full.retry_after.is_some_and(|after| !after.is_zero()), "{full:#?}");

    // No place in all, though its context is idle.
    let mut third = sidecar.begin(prompt("c", "third")).await;
    assert_eq!(position(&mut third).await, 1);
    let full = sidecar.refused(prompt("d", "no room")).await;
    full.assert(Code::ResourceExhausted, "QUEUE_FULL");
    assert!(full.retry_after.is_some_and(|after| !after.is_zero()), "{full:#?}");
    let counts = sidecar.counts().await;
    assert_eq!((counts.running_turns, counts.queued_turns), (2, 2));

    for turn in &running {
        sidecar.interrupt(turn.turn_id()).await.unwrap();
    }
    third.rest().await.completed();
    behind.rest().await.completed();
    let counts = sidecar.counts().await;
    assert_eq!((counts.running_turns, counts.queued_turns), (0, 0));
    sidecar.run(prompt("d", "room")).await.completed();
    sidecar.stop().await;
}

#[tokio::test]
async fn a_draining_sidecar_refuses_before_headers_and_lets_running_turns_end() {
    let sidecar = scripted::start().await;
    let mut running = sidecar.begin(prompt("a", "[[wait 500]] [[say done]]")).await;
    running.started().await;
    sidecar.begin_shutdown();
    // The drain is seen by the refusal itself; a turn before it is an ordinary one.
    let refused = eventually("a refusal", || async {
        sidecar.try_begin(prompt("b", "hello")).await.err().map(support::Refused::from)
    })
    .await;
    // An error of the call, not of its stream: there were no headers.
    refused.assert(Code::Unavailable, "DRAINING");
    assert!(refused.retry_after.is_some_and(|after| !after.is_zero()), "{refused:#?}");
    assert_eq!(running.rest().await.final_response(), "done");
    sidecar.stop().await;
}

#[tokio::test]
async fn without_a_healthy_worker_turns_are_refused_before_headers() {
    let sidecar = Sidecar::cold(Place::new(), |_, config| {
        config.codex_path = Some(PathBuf::from("/nowhere/codex"));
        config.pool.breaker_failures = 1;
    })
    .await;
    let status = sidecar.try_begin(prompt("a", "hello")).await.unwrap_err();
    let refused = support::Refused::from(status);
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    assert!(refused.retry_after.is_some_and(|after| !after.is_zero()), "{refused:#?}");
    assert!(refused.message.contains("/nowhere/codex"), "{refused:#?}");
    assert_eq!(sidecar.counts().await.retained_turns, 0);
    sidecar.stop().await;
}
