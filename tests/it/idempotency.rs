//! `request_id`: asked twice, done once.

use crate::support::attached::by_id;
use crate::support::{Client, Sidecar, prompt, scripted, text};
use codex_sidecar::pb;
use tonic::Code;

fn with_id(request: pb::RunTurnRequest, id: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest { request_id: id.to_owned(), ..request }
}

#[tokio::test]
async fn fifty_calls_at_once_are_one_turn_and_fifty_streams_alike() {
    let sidecar = Sidecar::start().await;
    let request = with_id(prompt("a", "[[words 50]]"), "once");
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (client, request): (Client, _) = ((*sidecar).clone(), request.clone());
            tokio::spawn(async move { client.run(request).await })
        })
        .collect();
    let mut streams = Vec::new();
    for call in calls {
        streams.push(call.await.unwrap());
    }
    for stream in &streams {
        assert_eq!(stream.events, streams[0].events);
    }
    assert_eq!(sidecar.model.requests(), 1);
    assert_eq!(sidecar.context("a").await.unwrap().turn_count, 1);

    // As long as the turn is retained.
    assert_eq!(sidecar.run(request.clone()).await.events, streams[0].events);
    let other = with_id(prompt("a", "something else"), "once");
    sidecar.refused(other).await.assert(Code::AlreadyExists, "REQUEST_ID_REUSED");
    let elsewhere = with_id(prompt("b", "[[words 50]]"), "once");
    sidecar.refused(elsewhere).await.assert(Code::AlreadyExists, "REQUEST_ID_REUSED");
    assert_eq!(sidecar.model.requests(), 1);
    assert_ne!(
        sidecar.run(with_id(prompt("a", "[[words 50]]"), "twice")).await.turn_id(),
        streams[0].turn_id()
    );
    sidecar.stop().await;
}

#[tokio::test]
async fn a_repeated_call_keeps_the_turn_alive_when_the_first_one_is_lost() {
    let sidecar = scripted::start().await;
    let request = with_id(prompt("a", "[[wait 300]] [[say still here]]"), "r");
    let mut first = sidecar.begin(request.clone()).await;
    let turn_id = first.started().await;
    let mut second = sidecar.begin(request.clone()).await;
    assert_eq!(second.started().await, turn_id);
    drop(first);
    assert_eq!(second.rest().await.final_response(), "still here");

    // With the last one it is over.
    let request = with_id(prompt("a", "[[hang]]"), "s");
    let mut first = sidecar.begin(request.clone()).await;
    let turn_id = first.started().await;
    let second = sidecar.begin(request.clone()).await;
    drop((first, second));
    sidecar.attach(by_id(&turn_id), 0).await.rest().await;
    assert_eq!(sidecar.run(request).await.interrupted(), pb::InterruptReason::CallerDisconnected);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_refused_call_leaves_no_trace_of_its_id() {
    let sidecar = scripted::with(|config| config.limits.max_waiting_turns = 0).await;
    let mut busy = sidecar.begin(prompt("a", "[[hang]]")).await;
    let turn_id = busy.started().await;
    let request = with_id(prompt("a", "hello"), "r");
    sidecar.refused(request.clone()).await.assert(Code::ResourceExhausted, "QUEUE_FULL");
    sidecar.interrupt(&turn_id).await.unwrap();
    sidecar.run(request).await.completed();
    // Not even of its content.
    let missing = "00000000-0000-4000-8000-000000000000".to_owned();
    let gone = with_id(pb::RunTurnRequest { thread_id: missing, ..prompt("c", "hello") }, "q");
    sidecar.refused(gone).await.assert(Code::NotFound, "THREAD_NOT_FOUND");
    sidecar.run(with_id(prompt("c", "hello"), "q")).await.completed();
    sidecar.stop().await;
}

#[tokio::test]
async fn a_repeated_call_does_not_steer_twice() {
    let sidecar = scripted::start().await;
    let mut running = sidecar.begin(prompt("a", "[[wait 500]]")).await;
    running.started().await;
    let steering = pb::RunTurnRequest {
        busy_policy: pb::BusyPolicy::Steer.into(),
        ..with_id(prompt("a", "[[say steered]]"), "r")
    };
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let (client, request): (Client, _) = ((*sidecar).clone(), steering.clone());
            tokio::spawn(async move { client.run(request).await })
        })
        .collect();
    let told = running.rest().await;
    assert_eq!(told.final_response(), "steered");
    for call in calls {
        assert_eq!(call.await.unwrap().events, told.events);
    }
    let steered = told.items().into_iter().filter(|(_, kind)| {
        matches!(kind, pb::item::Kind::UserMessage(message)
            if message.inputs == [text("[[say steered]]")])
    });
    assert_eq!(steered.count(), 1, "{:#?}", told.events);
    sidecar.stop().await;
}
