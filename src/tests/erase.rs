//! Contexts that are deleted with their threads.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use serde_json::json;
use tonic::{Code, Request};

use crate::grpc::api::codex_service_server::CodexService as _;
use crate::pb;
use crate::registry::ledger::testing::Disk;
use crate::testing::{Refused, Sidecar, meanwhile, prompt, sidecar_on};
use crate::worker::testing::{Codex, HOLD};

async fn start(disk: &Arc<Disk>, number: u32) -> (Sidecar, Codex) {
    sidecar_on(disk, number, |_| {}).await
}

async fn erase(sidecar: &Sidecar, context: &str) -> Result<String, Refused> {
    let request = pb::DeleteContextRequest {
        context_id: context.to_owned(),
        delete_thread: true,
        ..Default::default()
    };
    let erased = sidecar.api.delete_context(Request::new(request)).await;
    Ok(erased.map_err(Refused::from)?.into_inner().deleted_thread_id)
}

async fn bind(sidecar: &Sidecar, context: &str, thread_id: &str) -> Result<(), Refused> {
    let request = pb::BindContextRequest {
        context_id: context.to_owned(),
        thread_id: thread_id.to_owned(),
        ..Default::default()
    };
    sidecar.api.bind_context(Request::new(request)).await.map(drop).map_err(Refused::from)
}

async fn fork(sidecar: &Sidecar, source: &str, target: &str) -> pb::Context {
    let context = |context_id: &str| {
        Some(pb::ContextRef { context_id: context_id.to_owned(), ..Default::default() })
    };
    let (source, target) = (context(source), context(target));
    let request = pb::ForkContextRequest { source, target, ..Default::default() };
    let forked = sidecar.api.fork_context(Request::new(request)).await.unwrap();
    forked.into_inner().context.unwrap()
}

fn with_id(request: pb::RunTurnRequest, id: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest { request_id: id.to_owned(), ..request }
}

fn assert_nothing_is_kept(disk: &Disk) {
    assert_eq!((disk.contexts(), disk.facts().len(), disk.turns()), (Vec::new(), 0, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn of_an_erased_context_nothing_is_left_and_all_else_is() {
    let disk = Arc::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let request = with_id(prompt("a", "hello"), "r");
    let turn = codex.during(sidecar.run(request.clone())).await;
    codex.during(sidecar.say("a", "again")).await.completed();
    let other = codex.during(sidecar.say("b", "hello")).await;

    assert_eq!(codex.during(erase(&sidecar, "a")).await.unwrap(), turn.thread_id());
    let deleted = codex.heard_of("thread/delete");
    assert_eq!(deleted.len(), 1);
    assert_eq!(deleted[0].params, json!({ "threadId": turn.thread_id() }));
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    sidecar.attach(&turn.id()).await.err().unwrap().assert(Code::NotFound, "TURN_NOT_FOUND");
    let (listed, _) = sidecar.turns(None, 0, "").await.unwrap();
    assert_eq!(listed.iter().map(|turn| &turn.turn_id).collect::<Vec<_>>(), [&other.id()]);
    assert_eq!(sidecar.worker().await.loaded_threads, 1);
    let kept: Vec<_> = disk.contexts().into_iter().map(|(context, _)| context).collect();
    assert_eq!((kept, disk.facts().len(), disk.turns().len()), (vec!["b".to_owned()], 1, 1));

    let again = codex.during(sidecar.run(request)).await;
    assert_ne!((again.id(), again.thread_id()), (turn.id(), turn.thread_id()));
    for context in ["a", "b"] {
        codex.during(erase(&sidecar, context)).await.unwrap();
    }
    assert_nothing_is_kept(&disk);
    let refused = codex.during(erase(&sidecar, "a")).await.unwrap_err();
    refused.assert(Code::NotFound, "CONTEXT_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_has_a_turn_or_another_context_is_not_deleted() {
    let disk = Arc::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let thread = codex.during(sidecar.say("a", "hello")).await.thread_id().to_owned();
    // By another context, which is not bound to it when it is looked at.
    let explicit = pb::RunTurnRequest { thread_id: thread.clone(), ..prompt("b", HOLD) };
    let mut running = sidecar.hold(&mut codex, explicit).await;
    erase(&sidecar, "a").await.unwrap_err().assert(Code::Aborted, "CONTEXT_BUSY");
    codex.during(sidecar.steer(&running.id(), "go on")).await.unwrap();
    codex.during(running.rest()).await;
    let refused = erase(&sidecar, "a").await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "THREAD_SHARED");
    assert!(refused.message.contains("context \"b\" under \"codex_thread_id\""), "{refused:?}");
    assert_eq!((codex.count("thread/delete"), sidecar.context("a").await.is_ok()), (0, true));
    let unbind = pb::DeleteContextRequest { context_id: "b".to_owned(), ..Default::default() };
    codex.during(sidecar.api.delete_context(Request::new(unbind))).await.unwrap();
    assert_eq!(disk.facts().len(), 1, "of the thread that a context has");

    // Nor does anybody come by it while it is being deleted.
    let mut erasing = pin!(erase(&sidecar, "a"));
    let asked = meanwhile(erasing.as_mut(), codex.asked("thread/delete")).await;
    bind(&sidecar, "c", &thread).await.unwrap_err().assert(Code::Aborted, "CONTEXT_BUSY");
    let explicit = pb::RunTurnRequest { thread_id: thread.clone(), ..prompt("d", "hello") };
    let mut waiting = sidecar.begin(explicit).await.unwrap();
    waiting.until("queued").await;
    codex.answer_usually(&asked).await;
    assert_eq!(codex.during(erasing).await.unwrap(), thread);
    codex.refuses.push(("thread/resume", 1, -32600, "no rollout found for thread id"));
    let refused = codex.during(waiting.next()).await.unwrap_err();
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    assert_eq!(disk.contexts(), []);
}

#[tokio::test(start_paused = true)]
async fn a_thread_with_copies_is_deleted_after_them() {
    let disk = Arc::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let source = codex.during(sidecar.say("a", "hello")).await.thread_id().to_owned();
    codex.during(fork(&sidecar, "a", "b")).await;
    // What is known of it outlives a restart.
    let (sidecar, mut codex) = start(&disk, 2).await;
    codex.during(sidecar.say("b", "hello")).await.completed();
    let refused = erase(&sidecar, "a").await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "THREAD_SHARED");
    assert!(refused.message.contains("context \"b\" has"), "{refused:?}");
    assert_eq!(codex.count("thread/delete"), 0);
    codex.during(erase(&sidecar, "b")).await.unwrap();

    // A copy that was made elsewhere: Codex lets go of the thread before it refuses.
    codex.during(sidecar.say("a", "hello")).await.completed();
    let text = "cannot delete thread x: forked history still references it";
    codex.refuses.push(("thread/delete", 1, -32600, text));
    let refused = codex.during(erase(&sidecar, "a")).await.unwrap_err();
    refused.assert(Code::FailedPrecondition, "THREAD_SHARED");
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, source);
    let resumed = codex.count("thread/resume");
    codex.during(sidecar.say("a", "hello")).await.completed();
    assert_eq!(codex.count("thread/resume"), resumed + 1);
    codex.during(erase(&sidecar, "a")).await.unwrap();
    assert_nothing_is_kept(&disk);
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_off_is_done_by_asking_again() {
    let disk = Arc::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let thread = codex.during(sidecar.say("a", "hello")).await.thread_id().to_owned();
    // Codex has deleted it, and the sidecar is killed before that is kept.
    disk.hold();
    let mut erasing = Box::pin(erase(&sidecar, "a"));
    let asked = meanwhile(erasing.as_mut(), codex.asked("thread/delete")).await;
    codex.answer_usually(&asked).await;
    tokio::time::timeout(Duration::from_secs(1), &mut erasing).await.unwrap_err();
    drop(erasing);

    let (sidecar, mut codex) = start(&disk, 2).await;
    disk.release();
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, thread);
    let no_rollout = "no rollout found for thread id";
    codex.refuses.push(("thread/delete", 2, -32600, no_rollout));
    // The disk is full, which is known only when Codex has done its part.
    disk.hold();
    let mut erasing = Box::pin(codex.during(erase(&sidecar, "a")));
    tokio::time::timeout(Duration::from_secs(1), &mut erasing).await.unwrap_err();
    disk.fill();
    erasing.await.unwrap_err().assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, thread);
    // Now it is known.
    let asked = codex.count("thread/delete");
    erase(&sidecar, "a").await.unwrap_err().assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    assert_eq!(codex.count("thread/delete"), asked);
    disk.empty();
    assert_eq!(disk.contexts().len(), 1);
    // A caller that goes does not undo it.
    let gone = erase(&sidecar, "a").now_or_never();
    assert!(gone.is_none());
    codex.refuses.clear();
    let asked = codex.asked("thread/delete").await;
    codex.refuse(&asked, -32600, no_rollout).await;
    let queued = codex.during(sidecar.say("a", "hello")).await;
    assert_eq!(queued.thread_started().origin(), pb::ThreadOrigin::New);
}

#[tokio::test(start_paused = true)]
async fn where_codex_does_not_delete_it_all_stays() {
    let disk = Arc::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let turn = codex.during(sidecar.say("a", "hello")).await;
    let held = "thread x already has an active writer";
    for (text, most, code, reason) in [
        (
            "Invalid request: unknown variant `thread/delete`",
            1,
            Code::FailedPrecondition,
            "CODEX_REFUSED",
        ),
        ("rollout is empty", 1, Code::NotFound, "THREAD_NOT_FOUND"),
        (held, 99, Code::FailedPrecondition, "THREAD_HELD_ELSEWHERE"),
    ] {
        codex.refuses = vec![("thread/delete", most, -32600, text)];
        codex.during(erase(&sidecar, "a")).await.unwrap_err().assert(code, reason);
        assert_eq!(sidecar.context("a").await.unwrap().thread_id, turn.thread_id());
        assert!(sidecar.attach(&turn.id()).await.is_ok());
    }
    assert_eq!((disk.contexts().len(), disk.facts().len(), disk.turns().len()), (1, 1, 1));
    codex.refuses.clear();
    // It is where it was.
    codex.heard.clear();
    codex.during(sidecar.say("a", "again")).await.completed();
    assert_eq!(codex.count("thread/resume"), 0);
}

/// A turn need not be one of the context to have been one of its thread.
#[tokio::test(start_paused = true)]
async fn a_turn_that_named_the_thread_goes_with_it_and_no_other_one_does() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = start(&disk, 1).await;
    let first = codex.during(sidecar.say("a", "hello")).await;
    let mut naming = with_id(prompt("", "and more"), "r");
    naming.thread_id = first.thread_id().to_owned();
    let named = codex.during(sidecar.run(naming)).await;
    let other = codex.during(sidecar.say("b", "hello")).await;
    codex.during(erase(&sidecar, "a")).await.unwrap();
    for gone in [first.id(), named.id()] {
        let refused = sidecar.attach(&gone).await.err().unwrap();
        refused.assert(Code::NotFound, "TURN_NOT_FOUND");
    }
    assert!(sidecar.attach(&other.id()).await.is_ok());
    let kept: Vec<_> = disk.turns().into_iter().map(|turn| turn.turn_id.0).collect();
    assert_eq!(kept, [other.id()]);
}
