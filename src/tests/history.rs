//! Copies of threads, reverts and histories: what comes between, what goes wrong, and what they cost.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::{Code, Request};

use crate::grpc::api::codex_service_server::CodexService as _;
use crate::grpc::api::pool_service_server::PoolService as _;
use crate::pb;
use crate::testing::{Refused, Sidecar, meanwhile, prompt, sidecar, sidecar_with};
use crate::worker::testing::{Asked, Codex};

const THREAD: &str = "00000000-0000-4000-8000-000000000001";

fn copying(source: &str, target: &str) -> pb::ForkContextRequest {
    let context = |context_id: &str| {
        Some(pb::ContextRef { context_id: context_id.to_owned(), ..Default::default() })
    };
    pb::ForkContextRequest {
        source: context(source),
        target: context(target),
        ..Default::default()
    }
}

async fn fork(sidecar: &Sidecar, request: pb::ForkContextRequest) -> Result<pb::Context, Refused> {
    let forked = sidecar.api.fork_context(Request::new(request)).await.map_err(Refused::from)?;
    Ok(forked.into_inner().context.unwrap())
}

async fn revert(sidecar: &Sidecar, context: &str, before: &str) -> Result<pb::Context, Refused> {
    let request = pb::RevertContextRequest {
        context: copying(context, "").source,
        before_codex_turn_id: before.to_owned(),
    };
    let reverted = sidecar.api.revert_context(Request::new(request)).await;
    Ok(reverted.map_err(Refused::from)?.into_inner().context.unwrap())
}

async fn read(
    sidecar: &Sidecar,
    page_token: &str,
    page_size: i32,
) -> Result<pb::ReadThreadResponse, Refused> {
    let request = pb::ReadThreadRequest {
        target: Some(pb::read_thread_request::Target::ThreadId(THREAD.to_owned())),
        page_size,
        page_token: page_token.to_owned(),
    };
    let page = sidecar.api.read_thread(Request::new(request)).await.map_err(Refused::from)?;
    Ok(page.into_inner())
}

async fn bind(sidecar: &Sidecar, context: &str) {
    let request = pb::BindContextRequest {
        context_id: context.to_owned(),
        thread_id: THREAD.to_owned(),
        ..Default::default()
    };
    sidecar.api.bind_context(Request::new(request)).await.unwrap();
}

/// What was asked of a thread, beside turns.
fn deeds(codex: &Codex) -> Vec<&str> {
    let deeds = ["resume", "fork", "revert", "archive", "unarchive", "delete"];
    let asked = codex.heard.iter().filter_map(|asked| asked.method.strip_prefix("thread/"));
    asked.filter(|deed| deeds.contains(deed)).collect()
}

#[tokio::test(start_paused = true)]
async fn turns_that_come_while_a_thread_is_copied_wait_for_it() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    let source = sidecar.context("a").await.unwrap().thread_id;
    let mut forking = pin!(fork(&sidecar, copying("a", "b")));
    let asked = meanwhile(forking.as_mut(), codex.asked("thread/fork")).await;
    assert_eq!(asked.params["threadId"], source);
    assert_eq!(asked.params["sandbox"], "read-only");
    // Neither context can have a turn, nor another thread.
    let reject = |context: &str| {
        let mut request = prompt(context, "hello");
        request.set_busy_policy(pb::BusyPolicy::Reject);
        request
    };
    for context in ["a", "b"] {
        sidecar.refused(reject(context)).await.assert(Code::Aborted, "CONTEXT_BUSY");
        let mut waiting = sidecar.begin(prompt(context, "hello")).await.unwrap();
        waiting.until("queued").await;
        assert_eq!(waiting.queue_position(), 1);
        sidecar.interrupt(&waiting.id()).await;
    }
    let request = pb::BindContextRequest {
        context_id: "b".to_owned(),
        thread_id: THREAD.to_owned(),
        ..Default::default()
    };
    let bound = sidecar.api.bind_context(Request::new(request)).await.map_err(Refused::from);
    bound.unwrap_err().assert(Code::Aborted, "CONTEXT_BUSY");
    let mut first = sidecar.begin(prompt("b", "hello")).await.unwrap();
    first.until("queued").await;

    codex.answer_usually(&asked).await;
    let forked = codex.during(forking).await.unwrap();
    codex.during(first.rest()).await;
    assert_eq!(first.thread_id(), forked.thread_id);
    assert_eq!(first.thread_started().origin(), pb::ThreadOrigin::Forked);
    let again = codex.during(sidecar.say("b", "hello")).await;
    assert_eq!(again.thread_started().origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(codex.during(sidecar.say("a", "hello")).await.thread_id(), source);
    // A copy is no turn.
    assert_eq!(sidecar.worker().await.turns_started, 4);
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_made_and_bound_although_its_caller_has_gone() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    let asked = {
        let mut forking = pin!(fork(&sidecar, copying("a", "b")));
        meanwhile(forking.as_mut(), codex.asked("thread/fork")).await
    };
    codex.answer_usually(&asked).await;
    // It waits for the copy.
    let turn = codex.during(sidecar.say("b", "hello")).await;
    assert_eq!(turn.thread_started().origin(), pb::ThreadOrigin::Forked);
    assert_eq!(deeds(&codex), ["fork", "archive", "unarchive", "resume"]);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_no_such_part_is_deleted_and_told() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    // What a CLI does that does not know how to stop at a turn.
    codex.history = Some(vec![("u2", "completed"), ("u1", "completed")]);
    let part =
        || pb::ForkContextRequest { last_codex_turn_id: "u1".to_owned(), ..copying("a", "b") };
    let refused = codex.during(fork(&sidecar, part())).await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "CODEX_REFUSED");
    assert_eq!(deeds(&codex), ["fork", "delete"]);
    let copy = codex.heard_of("thread/delete")[0].params["threadId"].clone();
    assert_ne!(copy, sidecar.context("a").await.unwrap().thread_id);
    sidecar.context("b").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    codex.history = Some(vec![("u1", "completed")]);
    codex.during(fork(&sidecar, part())).await.unwrap();
}

/// Row 35.
#[tokio::test(start_paused = true)]
async fn a_copy_that_kills_whatever_worker_makes_it_is_refused_after_the_second_death() {
    const POISON: &str = "poison";
    let (sidecar, mut codex) = sidecar().await;
    let sidecar = Arc::new(sidecar);
    bind(&sidecar, "a").await;
    codex.dies_of = Some(POISON);
    let launched = tokio::spawn({
        let sidecar = Arc::clone(&sidecar);
        async move {
            let mut successor = sidecar.codex().await;
            successor.dies_of = Some(POISON);
            let successor = successor.in_background();
            let last = sidecar.codex().await.in_background();
            (successor, last)
        }
    });
    let request =
        pb::ForkContextRequest { last_codex_turn_id: POISON.to_owned(), ..copying("a", "b") };
    let refused = codex.during(fork(&sidecar, request)).await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "OPENING_KILLS_WORKERS");
    let (_successor, _last) = launched.await.unwrap();
    sidecar.context("b").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    // Nothing is left reserved.
    fork(&sidecar, copying("a", "b")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_never_makes_the_copy_holds_its_contexts_for_a_bounded_time() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    let began = Instant::now();
    let mut forking = pin!(fork(&sidecar, copying("a", "b")));
    let asked = meanwhile(forking.as_mut(), codex.asked("thread/fork")).await;
    let refused = codex.during(forking).await.unwrap_err();
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    assert!(refused.retry_after.is_some());
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    codex.during(sidecar.say("a", "hello")).await.completed();
    codex.during(sidecar.say("b", "hello")).await.completed();
    // What it makes after all is nobody's.
    codex.answer(&asked, asked.opened("late")).await;
    let deleted = codex.asked("thread/delete").await;
    assert_eq!(deleted.params, json!({ "threadId": "late" }));
}

#[tokio::test(start_paused = true)]
async fn a_thread_is_loaded_to_be_taken_back_where_it_is_not_and_let_go_of() {
    let (sidecar, mut codex) = sidecar().await;
    bind(&sidecar, "a").await;
    codex.during(revert(&sidecar, "a", "u2")).await.unwrap();
    assert_eq!(deeds(&codex), ["resume", "revert", "archive", "unarchive"]);
    let reverted = codex.heard_of("thread/revert")[0];
    assert_eq!(reverted.params, json!({ "threadId": THREAD, "beforeTurnId": "u2" }));
    assert_eq!(sidecar.worker().await.loaded_threads, 0);
    // Where a turn has loaded it.
    codex.during(sidecar.say("a", "hello")).await.completed();
    assert_eq!(sidecar.worker().await.loaded_threads, 1);
    codex.heard.clear();
    codex.during(revert(&sidecar, "a", "u2")).await.unwrap();
    assert_eq!(deeds(&codex), ["revert", "archive", "unarchive"]);
    // A turn of another context on the thread waits, too.
    bind(&sidecar, "b").await;
    let mut reverting = pin!(revert(&sidecar, "a", "u1"));
    let asked = meanwhile(reverting.as_mut(), codex.asked("thread/revert")).await;
    let mut waiting = sidecar.begin(prompt("b", "hello")).await.unwrap();
    waiting.until("queued").await;
    codex.refuse(&asked, -32600, "turn not found: u1").await;
    let refused = codex.during(reverting).await.unwrap_err();
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    codex.during(waiting.rest()).await;
    waiting.completed();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_copied_or_taken_back_in_a_drain_and_all_can_be_read() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    codex.during(sidecar.engine.drain(Duration::from_secs(1))).await;
    let refused = fork(&sidecar, copying("a", "b")).await.unwrap_err();
    refused.assert(Code::Unavailable, "DRAINING");
    revert(&sidecar, "a", "u1").await.unwrap_err().assert(Code::Unavailable, "DRAINING");
    codex.history = Some(vec![("u1", "completed")]);
    assert_eq!(codex.during(read(&sidecar, "", 0)).await.unwrap().turns.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_copy_needs_room_for_its_context() {
    let (sidecar, mut codex) = sidecar_with(|setup| setup.contexts.max_contexts = 2).await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    let mut forking = pin!(fork(&sidecar, copying("a", "b")));
    let asked = meanwhile(forking.as_mut(), codex.asked("thread/fork")).await;
    // It counts before it is bound.
    let full = sidecar.refused(prompt("c", "hello")).await;
    full.assert(Code::ResourceExhausted, "CONTEXTS_FULL");
    codex.answer_usually(&asked).await;
    codex.during(forking).await.unwrap();
    let full = fork(&sidecar, copying("a", "c")).await.unwrap_err();
    full.assert(Code::ResourceExhausted, "CONTEXTS_FULL");
}

/// A turn of so many bytes.
fn listed(number: usize, bytes: usize) -> Value {
    let item = json!({ "type": "agentMessage", "id": "m", "text": "x".repeat(bytes) });
    json!({ "id": format!("u{number}"), "status": "completed", "items": [item] })
}

/// Answers for a thread of turns of these sizes until there is no more to read, as Codex does.
async fn answer_history(codex: &mut Codex, sizes: &[usize]) {
    loop {
        let asked = codex.asked("thread/turns/list").await;
        let from: usize = match &asked.params["cursor"] {
            Value::String(cursor) => cursor.parse().unwrap(),
            _ => 0,
        };
        let limit = asked.params["limit"].as_u64().unwrap() as usize;
        let until = (from + limit).min(sizes.len());
        let page: Vec<Value> = (from..until)
            .map(|number| match asked.params["itemsView"].as_str() {
                Some("full") => listed(number, sizes[number]),
                _ => json!({ "id": format!("u{number}"), "status": "completed", "items": [] }),
            })
            .collect();
        let next = (until < sizes.len()).then(|| until.to_string());
        codex.answer(&asked, json!({ "data": page, "nextCursor": next })).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_is_as_large_as_clients_take_by_default_and_a_line_may_be() {
    const MIB: usize = 1 << 20;
    let (sidecar, mut codex) =
        sidecar_with(|setup| setup.spec.limits.peer.max_line_bytes = 5 * MIB / 2).await;
    // Three are asked for: of the first, a page has no room for the third; those from there on are more
    // than a line has room for.
    let sizes = [7, MIB, 6 * MIB / 5, 5, 3 * MIB / 2, 9];
    let reading = async {
        let mut seen = Vec::new();
        let mut page_token = String::new();
        loop {
            let page = read(&sidecar, &page_token, 3).await.unwrap();
            let bytes = prost::Message::encoded_len(&page);
            assert!(page.turns.len() == 1 || bytes < 2 * MIB + 1000, "{bytes}");
            let ids = page.turns.into_iter().map(|turn| turn.codex_turn_id);
            seen.push(ids.collect::<Vec<_>>());
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return seen;
            }
        }
    };
    let seen = tokio::select! {
        seen = reading => seen,
        () = answer_history(&mut codex, &sizes) => unreachable!(),
    };
    let expected: [&[&str]; 3] = [&["u0", "u1"], &["u2"], &["u3", "u4", "u5"]];
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn few_pages_are_read_at_once_and_none_is_waited_for_without_end() {
    let (sidecar, mut codex) = sidecar().await;
    codex.mutes = vec!["thread/turns/list"];
    let began = Instant::now();
    let reading = join_all((0..50).map(|_| read(&sidecar, "", 0)));
    let refused = codex.during(reading).await;
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
    for refused in refused {
        refused.unwrap_err().assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    }
    let asked: Vec<&Asked> = codex.heard_of("thread/turns/list");
    assert!(asked.len() <= 8, "{}", asked.len());
    // Turns are not kept from the worker meanwhile, nor afterwards.
    codex.during(sidecar.say("a", "hello")).await.completed();
}

#[tokio::test(start_paused = true)]
async fn a_page_that_its_worker_does_not_live_to_tell_is_told_by_another() {
    let (sidecar, mut codex) = sidecar().await;
    let mut reading = pin!(read(&sidecar, "", 0));
    meanwhile(reading.as_mut(), codex.asked("thread/turns/list")).await;
    codex.exit("signal 9");
    let mut successor = sidecar.codex().await;
    successor.history = Some(vec![("u1", "completed")]);
    assert_eq!(successor.during(reading).await.unwrap().turns.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_asked_for_the_models_once_a_minute() {
    let (sidecar, mut codex) = sidecar().await;
    let asked_at_start = codex.count("model/list");
    let list = async |include_hidden| {
        let request = Request::new(pb::ListModelsRequest { include_hidden });
        sidecar.pool.list_models(request).await.map_err(Refused::from)
    };
    // None that was not told is kept.
    codex.refuses = vec![("model/list", 1, -32600, "no models today")];
    let refused = codex.during(list(false)).await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "CODEX_REFUSED");
    assert!(refused.message.contains("no models today"), "{refused:?}");
    let all = join_all((0..20).map(|_| list(false)));
    for models in codex.during(all).await {
        assert_eq!(models.unwrap().into_inner().models[0].model, "m0");
    }
    assert_eq!(codex.count("model/list") - asked_at_start, 2);
    tokio::time::advance(Duration::from_secs(59)).await;
    codex.during(list(true)).await.unwrap();
    assert_eq!(codex.count("model/list") - asked_at_start, 2);
    tokio::time::advance(Duration::from_secs(2)).await;
    codex.during(list(true)).await.unwrap();
    assert_eq!(codex.count("model/list") - asked_at_start, 3);
}
