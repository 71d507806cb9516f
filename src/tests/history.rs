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

#[tokio::test(start_paused = true)]
async fn a_copy_takes_the_place_of_a_context_that_nobody_uses_and_a_refused_one_of_none() {
    let evicting = async || {
        let (sidecar, mut codex) = sidecar_with(|setup| {
            setup.contexts.max_contexts = 2;
            setup.contexts.evict_contexts = true;
        })
        .await;
        codex.number = Some(1);
        codex.during(sidecar.say("a", "hello")).await.completed();
        codex.during(sidecar.say("b", "hello")).await.completed();
        (sidecar, codex)
    };
    let (sidecar, mut codex) = evicting().await;
    codex.during(fork(&sidecar, copying("a", "c"))).await.unwrap();
    sidecar.context("a").await.unwrap();
    sidecar.context("b").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");

    let (sidecar, mut codex) = evicting().await;
    let mut running = sidecar.hold(&mut codex, prompt("b", "hello")).await;
    let refused = codex.during(fork(&sidecar, copying("b", "c"))).await.unwrap_err();
    refused.assert(Code::Aborted, "CONTEXT_BUSY");
    // Nor does a turn that is refused: its context would be new, and its thread is busy.
    let mut rejected = prompt("d", "hello");
    rejected.thread_id = sidecar.context("b").await.unwrap().thread_id;
    rejected.set_busy_policy(pb::BusyPolicy::Reject);
    sidecar.refused(rejected).await.assert(Code::Aborted, "CONTEXT_BUSY");
    sidecar.context("a").await.unwrap();
    codex.during(sidecar.interrupt(&running.id())).await;
    codex.during(running.rest()).await;
    // Whoever has to go for a copy goes when that is bound: it may fail.
    let mut first = pin!(fork(&sidecar, copying("b", "c")));
    let asked = meanwhile(first.as_mut(), codex.asked("thread/fork")).await;
    sidecar.context("a").await.unwrap();
    let mut second = pin!(fork(&sidecar, copying("b", "d")));
    assert!(futures::poll!(second.as_mut()).is_pending());
    codex.answer_usually(&asked).await;
    codex.during(first).await.unwrap();
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    codex.during(second).await.unwrap();
    sidecar.context("b").await.unwrap();
    sidecar.context("c").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn a_thread_whose_worker_dies_once_it_was_taken_back_is_taken_back() {
    let (sidecar, mut codex) = sidecar().await;
    codex.history = Some(vec![]);
    bind(&sidecar, "a").await;
    codex.history = Some(vec![("u1", "completed")]);
    codex.during(sidecar.say("a", "one")).await.completed();
    codex.history = Some(vec![("u2", "completed"), ("u1", "completed")]);
    codex.during(sidecar.say("a", "two")).await.completed();
    let mut reverting = pin!(revert(&sidecar, "a", "u2"));
    meanwhile(reverting.as_mut(), codex.asked("thread/revert")).await;
    codex.exit("signal 9");
    let mut successor = sidecar.codex().await;
    successor.history = Some(vec![("u1", "completed")]);
    successor.refuses = vec![("thread/revert", 2, -32600, "turn not found: u2")];
    successor.during(reverting).await.unwrap();
    // What it has now is all that it should have.
    let turn = successor.during(sidecar.say("a", "three")).await;
    assert_eq!(turn.kinds().iter().filter(|kind| **kind == "warning").count(), 0);
    turn.completed();
    // Whoever asks once more is told.
    let refused = successor.during(revert(&sidecar, "a", "u2")).await.unwrap_err();
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
}

#[tokio::test(start_paused = true)]
async fn a_loss_before_a_thread_is_taken_back_makes_no_unknown_turn_a_known_one() {
    let (sidecar, mut codex) = sidecar().await;
    bind(&sidecar, "a").await;
    let mut reverting = pin!(revert(&sidecar, "a", "u2"));
    meanwhile(reverting.as_mut(), codex.asked("thread/resume")).await;
    codex.exit("signal 9");
    let mut successor = sidecar.codex().await;
    successor.refuses = vec![("thread/revert", 1, -32600, "turn not found: u2")];
    let refused = successor.during(reverting).await.unwrap_err();
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_is_taken_back_late_has_lost_nothing() {
    let (sidecar, mut codex) = sidecar().await;
    codex.history = Some(vec![]);
    bind(&sidecar, "a").await;
    for turns in [vec![("u1", "completed")], vec![("u2", "completed"), ("u1", "completed")]] {
        codex.history = Some(turns);
        codex.during(sidecar.say("a", "hello")).await.completed();
    }
    codex.mutes = vec!["thread/revert"];
    let refused = codex.during(revert(&sidecar, "a", "u2")).await.unwrap_err();
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    codex.history = Some(vec![("u1", "completed")]);
    let turn = codex.during(sidecar.say("a", "hello")).await;
    assert_eq!(turn.kinds().iter().filter(|kind| **kind == "warning").count(), 0);
    turn.completed();
}

#[tokio::test(start_paused = true)]
async fn nobody_is_waited_with_for_a_thread_who_has_gone_and_only_so_many_wait() {
    let (sidecar, mut codex) = sidecar().await;
    bind(&sidecar, "a").await;
    let mut reverting = pin!(revert(&sidecar, "a", "u3"));
    let asked = meanwhile(reverting.as_mut(), codex.asked("thread/revert")).await;
    for _ in 0..1000 {
        let mut gone = pin!(revert(&sidecar, "a", "u2"));
        assert!(futures::poll!(gone.as_mut()).is_pending());
    }
    let mut waiting: Vec<_> = (0..16).map(|_| Box::pin(revert(&sidecar, "a", "u1"))).collect();
    for one in &mut waiting {
        assert!(futures::poll!(one).is_pending());
    }
    let full = revert(&sidecar, "a", "u1").await.unwrap_err();
    full.assert(Code::ResourceExhausted, "CONTEXT_QUEUE_FULL");
    codex.answer(&asked, json!({})).await;
    codex.during(reverting).await.unwrap();
    codex.during(join_all(waiting)).await;
    let named: Vec<&Value> =
        codex.heard_of("thread/revert").iter().map(|asked| &asked.params["beforeTurnId"]).collect();
    assert_eq!(named[0], "u3");
    assert_eq!(named[1..], ["u1"; 16]);
    // Who waits when it begins to drain is told at once.
    let mut reverting = pin!(revert(&sidecar, "a", "u3"));
    let asked = meanwhile(reverting.as_mut(), codex.asked("thread/revert")).await;
    let mut waiting = pin!(revert(&sidecar, "a", "u1"));
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    let mut draining = pin!(sidecar.engine.drain(Duration::from_secs(10)));
    assert!(futures::poll!(draining.as_mut()).is_pending());
    waiting.await.unwrap_err().assert(Code::Unavailable, "DRAINING");
    codex.answer(&asked, json!({})).await;
    codex.during(reverting).await.unwrap();
    codex.during(draining).await;
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

/// What Codex lists of a thread with a review `r` between two turns; of a copy up to it, without the last.
fn listed_with_a_review(is_copy: bool) -> Vec<Value> {
    let turn = |id: &str, root: &str, status: &str, items: &[&str]| {
        let item = |kind: &&str| json!({ "type": kind, "id": format!("{id}-{kind}"), "text": "" });
        let items: Vec<Value> = items.iter().map(item).collect();
        json!({ "id": id, "rootTurnId": root, "status": status, "items": items })
    };
    let within = turn("within", "r", "interrupted", &["plan"]);
    let review = turn("r", "r", "completed", &["contextCompaction", "agentMessage"]);
    let first = turn("u1", "ours", "completed", &["agentMessage"]);
    match is_copy {
        true => vec![first, review, within],
        false => vec![first, within, review, turn("u2", "ours", "completed", &["agentMessage"])],
    }
}

/// Answers with the list of a thread, as Codex does.
async fn answer_list(codex: &mut Codex, turns: &[Value]) {
    loop {
        let asked = codex.asked("thread/turns/list").await;
        let from = asked.params["cursor"].as_str().map_or(0, |cursor| cursor.parse().unwrap());
        let until = (from + asked.params["limit"].as_u64().unwrap() as usize).min(turns.len());
        let mut turns = turns.to_vec();
        if asked.params["sortDirection"] == "desc" {
            turns.reverse();
        }
        let next = (until < turns.len()).then(|| until.to_string());
        codex.answer(&asked, json!({ "data": turns[from..until], "nextCursor": next })).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_review_is_one_turn_with_what_its_reviewer_did_wherever_a_page_ends() {
    for (is_copy, page_size) in
        [(false, 1), (false, 2), (false, 3), (true, 1), (true, 2), (true, 9)]
    {
        let (sidecar, mut codex) = sidecar().await;
        let reading = async {
            let (mut seen, mut page_token) = (Vec::new(), String::new());
            loop {
                let page = read(&sidecar, &page_token, page_size).await.unwrap();
                assert!(page.turns.len() as i32 <= page_size);
                seen.extend(page.turns);
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    return seen;
                }
            }
        };
        let list = listed_with_a_review(is_copy);
        let seen = tokio::select! {
            seen = reading => seen,
            () = answer_list(&mut codex, &list) => unreachable!(),
        };
        let ids: Vec<&str> = seen.iter().map(|turn| turn.codex_turn_id.as_str()).collect();
        assert_eq!(ids, if is_copy { &["u1", "r"][..] } else { &["u1", "r", "u2"] });
        assert!(seen.iter().all(|turn| turn.status() == pb::ThreadTurnStatus::Completed));
        let items: Vec<&str> = seen[1].items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(items, ["r-contextCompaction", "within-plan", "r-agentMessage"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_thread_is_copied_up_to_a_review_and_taken_back_to_before_it() {
    let (sidecar, mut codex) = sidecar().await;
    bind(&sidecar, "a").await;
    let list = listed_with_a_review(true);
    let request =
        pb::ForkContextRequest { last_codex_turn_id: "r".to_owned(), ..copying("a", "b") };
    tokio::select! {
        forked = fork(&sidecar, request) => drop(forked.unwrap()),
        () = answer_list(&mut codex, &list) => unreachable!(),
    }
    let list = listed_with_a_review(false);
    let text = "turn r does not have a persisted start boundary";
    codex.refuses = vec![("thread/revert", 1, -32600, text)];
    tokio::select! {
        reverted = revert(&sidecar, "a", "r") => drop(reverted.unwrap()),
        () = answer_list(&mut codex, &list) => unreachable!(),
    }
    let named = codex.heard_of("thread/revert");
    let named: Vec<&Value> = named.iter().map(|asked| &asked.params["beforeTurnId"]).collect();
    assert_eq!(named, ["r", "within"]);
}

#[tokio::test(start_paused = true)]
async fn a_drain_is_not_held_up_by_a_copy_that_is_not_made() {
    let (sidecar, mut codex) = sidecar().await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    codex.mutes = vec!["thread/fork"];
    let mut forking = pin!(fork(&sidecar, copying("a", "b")));
    meanwhile(forking.as_mut(), codex.asked("thread/fork")).await;
    let began = Instant::now();
    codex.during(sidecar.engine.drain(Duration::from_secs(1))).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    forking.await.unwrap_err().assert(Code::Unavailable, "DRAINING");
}

#[tokio::test(start_paused = true)]
async fn a_turn_goes_where_its_thread_may_have_been_loaded_to_be_taken_back() {
    let sidecar = Sidecar::start(|setup| setup.workers = 2);
    let mut one = sidecar.codex().await;
    one.during(sidecar.is_ready()).await;
    let mut two = one.during(sidecar.codex()).await;
    let shaking = tokio::time::sleep(Duration::from_secs(5));
    one.during(two.during(shaking)).await;
    bind(&sidecar, "a").await;
    for codex in [&mut one, &mut two] {
        codex.mutes = vec!["thread/resume"];
    }
    let refused = one.during(two.during(revert(&sidecar, "a", "u1"))).await.unwrap_err();
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    let asked = |one: &Codex, two: &Codex| [one, two].map(|codex| codex.count("thread/resume"));
    let before = asked(&one, &two);
    assert_eq!(before.iter().sum::<usize>(), 1);
    for codex in [&mut one, &mut two] {
        codex.mutes.clear();
    }
    let turn = one.during(two.during(sidecar.say("a", "hello"))).await;
    turn.completed();
    let after = asked(&one, &two);
    let by_turn = [after[0] - before[0], after[1] - before[1]];
    assert_eq!(by_turn, before);
}

#[tokio::test(start_paused = true)]
async fn no_service_tier_of_an_earlier_turn_is_left_where_a_cli_does_not_tell_it() {
    let (sidecar, mut codex) = sidecar().await;
    let mut fast = prompt("a", "hello");
    fast.thread_options.get_or_insert_default().service_tier = "fast".to_owned();
    codex.during(sidecar.run(fast)).await.completed();
    codex.during(fork(&sidecar, copying("a", "b"))).await.unwrap();
    codex.during(revert(&sidecar, "a", "u2")).await.unwrap();
    for context in ["a", "b"] {
        codex.during(sidecar.say(context, "hello")).await.completed();
        let started = codex.heard_of("turn/start").pop().unwrap();
        assert_eq!(started.params.get("serviceTier"), Some(&Value::Null), "{context}");
    }
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
async fn no_more_is_asked_at_once_where_callers_go() {
    let (sidecar, mut codex) = sidecar().await;
    let asked_at_start = codex.count("model/list");
    codex.mutes = vec!["thread/turns/list", "model/list"];
    for _ in 0..100 {
        let within = Duration::from_millis(1);
        let _ = codex.during(tokio::time::timeout(within, read(&sidecar, "", 0))).await;
        let listing = sidecar.pool.list_models(Request::new(pb::ListModelsRequest::default()));
        let _ = codex.during(tokio::time::timeout(within, listing)).await;
    }
    assert_eq!(codex.count("thread/turns/list"), 4);
    assert_eq!(codex.count("model/list") - asked_at_start, 1);
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
