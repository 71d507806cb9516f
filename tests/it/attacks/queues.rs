//! Callers that want more than their share.

use std::time::Duration;

use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use futures::future::join_all;
use tonic::Code;

use super::{Target, size};
use crate::support::turn::until_there;
use crate::support::{Client, prompt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_contexts_cost_their_size() {
    let (bindings, pages) = size((4_000, 10), (100_000, 100));
    let target = Target::with("").await;
    let thread_id = target.say("first", "hello").await.thread_id().to_owned();
    for chunk in 0..bindings / 100 {
        let binding = (0..100).map(|number| {
            let context_id = format!("context-{chunk}-{number}");
            let thread_id = thread_id.clone();
            let request = pb::BindContextRequest { context_id, thread_id, ..Default::default() };
            let mut codex = target.codex();
            async move { codex.bind_context(request).await.unwrap() }
        });
        join_all(binding).await;
    }
    let what = format!("32 callers that list {bindings} contexts, {pages} pages each");
    let measured = target
        .attacked(&what, async |sidecar| {
            let callers = (0..32).map(|_| async {
                let mut request = pb::ListContextsRequest { page_size: 100, ..Default::default() };
                for _ in 0..pages {
                    let page = sidecar.codex().list_contexts(request.clone()).await.unwrap();
                    request.page_token = page.into_inner().next_page_token;
                }
            });
            join_all(callers).await;
        })
        .await;
    assert!(measured.kept() < 64, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contexts_that_name_one_busy_thread_take_no_places() {
    let count = size(80, 200);
    let target = Target::with("").await;
    let thread_id = target.say("owner", "hello").await.thread_id().to_owned();
    let done = target.place.path().join("done");
    target
        .attacked(&format!("{count} contexts that name one busy thread"), async |sidecar| {
            let mut busy = sidecar.begin(until_there("owner", &done, "over")).await;
            busy.command_started().await;
            let naming = (0..count).map(|number| {
                let mut request = prompt(&format!("other{number}"), "hello");
                request.thread_id = thread_id.clone();
                sidecar.begin(request)
            });
            let waiting = join_all(naming).await;
            let queued = waiting.into_iter().map(|mut turn| async move {
                let first = turn.try_next().await.unwrap().and_then(|event| event.event);
                assert!(matches!(first, Some(Event::Queued(_))), "{first:?}");
                turn
            });
            let waiting = join_all(queued).await;
            let counts = sidecar.counts().await;
            // The busy one, and the canary's.
            assert!(counts.running_turns <= 2, "{counts:?}");
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(waiting);
            std::fs::write(&done, "").unwrap();
            busy.rest().await.completed();
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_callers_flood_leaves_the_others_their_share() {
    let (count, seconds) = size((1_500, 10), (5_000, 30));
    let target = Target::with("").await;
    target
        .attacked(&format!("{count} turns at once over one connection"), async |sidecar| {
            let flood = Client::connect(&sidecar.address, sidecar.place.work()).await;
            let mut calls = tokio::task::JoinSet::new();
            for number in 0..count {
                let client = flood.clone();
                calls.spawn(async move {
                    match client.try_begin(prompt(&format!("flood{number}"), "hello")).await {
                        // Held, and read to its end.
                        Ok(mut turn) => {
                            while turn.try_next().await.is_ok_and(|event| event.is_some()) {}
                        }
                        Err(status) => {
                            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                        }
                    }
                });
            }
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            calls.abort_all();
            while let Some(ended) = calls.join_next().await {
                if let Err(error) = ended
                    && error.is_panic()
                {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        })
        .await;
}
