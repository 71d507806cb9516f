//! Turns that meet: order, limits, and what may be done to those that wait.

use std::path::PathBuf;

use crate::support;
use crate::support::turn::until_there;
use crate::support::{Place, Sidecar, Turn, prompt, text};
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
