//! `request_id`: asked twice, done once.

use crate::support::{Client, Sidecar, prompt};
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
