//! How many contexts there are, which go, and how they are listed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::{Code, Request};

use crate::grpc::api::codex_service_server::CodexService as _;
use crate::model::id::{ContextKey, Tenant, ThreadId};
use crate::pb;
use crate::testing::{Played, Refused, prompt};
use crate::worker::testing::HOLD;

const THREAD: &str = "00000000-0000-4000-8000-000000000001";

async fn bind(sidecar: &Played, context: &str) -> Result<(), Refused> {
    let request = pb::BindContextRequest {
        context_id: context.to_owned(),
        thread_id: THREAD.to_owned(),
        ..Default::default()
    };
    sidecar.api.bind_context(Request::new(request)).await.map(drop).map_err(Refused::from)
}

#[tokio::test(start_paused = true)]
async fn at_the_most_a_new_context_is_refused_and_the_others_go_on() {
    let sidecar = Played::with(|setup| setup.contexts.max_contexts = 2).await;
    sidecar.say("a", "hello").await.completed();
    let mut held = sidecar.begin(prompt("b", HOLD)).await.unwrap();
    held.until("turn_started").await;
    let refused = sidecar.refused(prompt("c", "hello")).await;
    refused.assert(Code::ResourceExhausted, "CONTEXTS_FULL");
    bind(&sidecar, "c").await.unwrap_err().assert(Code::ResourceExhausted, "CONTEXTS_FULL");
    sidecar.say("a", "hello").await.completed();
    // Without a context there is nothing to keep.
    let unbound = pb::RunTurnRequest { unbound: true, ..prompt("", "hello") };
    sidecar.run(unbound).await.completed();
    sidecar.release();
    held.rest().await;
    let request = pb::DeleteContextRequest { context_id: "b".to_owned(), ..Default::default() };
    sidecar.api.delete_context(Request::new(request)).await.unwrap();
    sidecar.say("c", "hello").await.completed();
    assert_eq!(sidecar.counts().await.contexts, 2);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_context_is_told_so_by_its_next_turn_and_begins_anew() {
    let sidecar = Played::with(|setup| {
        setup.contexts.max_contexts = 2;
        setup.contexts.evict_contexts = true;
    })
    .await;
    let first = sidecar.say("a", "hello").await;
    sidecar.say("b", "hello").await.completed();
    sidecar.say("a", "hello").await.completed();
    // It was used last.
    let mut held = sidecar.begin(prompt("a", HOLD)).await.unwrap();
    held.until("turn_started").await;
    sidecar.say("c", "hello").await.completed();
    sidecar.say("d", "hello").await.completed();
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, first.thread_id());
    sidecar.release();
    held.rest().await;
    sidecar.say("e", "hello").await.completed();
    sidecar.say("f", "hello").await.completed();
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");

    let again = sidecar.say("a", "hello").await;
    assert_eq!(again.kinds()[..2], ["warning", "thread_started"]);
    let told = again.warned("CONTEXT_EVICTED");
    assert!(told.len() == 1 && told[0].contains(first.thread_id()), "{told:?}");
    assert_eq!(again.thread_started().origin(), pb::ThreadOrigin::New);
    assert_eq!(sidecar.say("a", "hello").await.warned("CONTEXT_EVICTED").len(), 0);
    let limits = sidecar.info().await.limits.unwrap();
    assert_eq!((limits.max_contexts, limits.evict_contexts, limits.context_ttl), (2, true, None));
}

#[tokio::test(start_paused = true)]
async fn a_context_that_is_unused_for_its_time_is_evicted() {
    let ttl = Duration::from_secs(3600);
    let sidecar = Played::with(|setup| setup.contexts.context_ttl = Some(ttl)).await;
    let engine = Arc::clone(&sidecar.engine);
    tokio::spawn(async move { engine.sweep().await });
    let first = sidecar.say("a", "hello").await;
    tokio::time::sleep(ttl / 2).await;
    sidecar.say("a", "hello").await.completed();
    tokio::time::sleep(ttl - Duration::from_secs(2)).await;
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, first.thread_id());
    tokio::time::sleep(Duration::from_secs(4)).await;
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    assert_eq!(sidecar.say("a", "hello").await.warned("CONTEXT_EVICTED").len(), 1);
}

/// Not on a paused clock, and with two threads, as what is shown is that there is one left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_listings_holds_nobody_up() {
    let sidecar = Played::with(|_| {}).await;
    for number in 0..50_000 {
        let key = ContextKey {
            tenant: Tenant::default(),
            context_id: format!("{number:05}"),
            thread_key: "codex_thread_id".to_owned(),
        };
        sidecar.engine.bind_context(key, ThreadId::from_codex(THREAD)).await.unwrap();
    }
    let listing: Vec<_> = (0..200)
        .map(|number| {
            let sidecar = Arc::clone(&sidecar);
            tokio::spawn(async move {
                let page_token = match number % 2 {
                    0 => String::new(),
                    _ => {
                        let request =
                            pb::ListContextsRequest { page_size: 1, ..Default::default() };
                        let page = sidecar.api.list_contexts(Request::new(request)).await.unwrap();
                        page.into_inner().next_page_token
                    }
                };
                let request =
                    pb::ListContextsRequest { page_size: 1000, page_token, ..Default::default() };
                let page = sidecar.api.list_contexts(Request::new(request)).await.unwrap();
                let pb::ListContextsResponse { contexts, next_page_token } = page.into_inner();
                let first = number % 2;
                assert!(contexts.iter().enumerate().all(|(index, context)| {
                    context.context_id == format!("{:05}", index + first)
                }));
                assert!(contexts.len() == 1000 && !next_page_token.is_empty());
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    let mut asked = 0;
    while listing.iter().any(|listing| !listing.is_finished()) {
        let (sidecar, began) = (Arc::clone(&sidecar), Instant::now());
        tokio::spawn(async move { sidecar.info().await }).await.unwrap();
        longest = longest.max(began.elapsed());
        asked += 1;
    }
    futures::future::join_all(listing).await.into_iter().for_each(|listed| listed.unwrap());
    assert!(asked > 10 && longest < Duration::from_millis(500), "{asked}: at most {longest:?}");
}
