//! Which thread a turn runs on: the bound one, the named, the configured, a new one, none that is kept,
//! and what comes of one that is gone.

use std::path::PathBuf;

use crate::support;
use crate::support::{Sidecar, ephemeral, prompt};
use codex_sidecar::parts::config::ToolDefaults;
use codex_sidecar::pb;
use tonic::Code;

#[tokio::test]
async fn the_second_turn_of_a_context_continues_its_thread() {
    let sidecar = Sidecar::start().await;
    let first = sidecar.say("a", "hello").await;
    assert_eq!(first.origin(), pb::ThreadOrigin::New);
    assert_eq!(first.final_response(), "You said: hello (user messages so far: 1)");

    let second = sidecar.say("  a\n", "again").await;
    assert_eq!(second.origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(second.thread_id(), first.thread_id());
    assert_ne!(second.turn_id(), first.turn_id());
    assert_eq!(second.final_response(), "You said: again (user messages so far: 2)");

    // Another tool of the same context has a thread of its own; a thread key of one's own, too.
    let engineer = pb::RunTurnRequest { tool_name: "codex_engineer".into(), ..prompt("a", "hi") };
    let engineer = sidecar.run(engineer).await;
    assert_eq!(engineer.origin(), pb::ThreadOrigin::New);
    let own_key = pb::RunTurnRequest {
        tool_name: "codex_not-a-key".into(),
        thread_id_key: " codex_thread_id_engineer ".into(),
        ..prompt("a", "hi again")
    };
    let own_key = sidecar.run(own_key).await;
    assert_eq!(own_key.thread_id(), engineer.thread_id());
    assert_eq!(own_key.final_response(), "You said: hi again (user messages so far: 2)");
    sidecar.stop().await;
}

#[tokio::test]
async fn an_explicit_thread_beats_the_bound_one_and_that_the_configured_one() {
    let place = support::Place::new();
    // A first sidecar makes the threads that the second is configured with and asked for.
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let configured = sidecar.say("configured", "one").await.thread_id().to_owned();
    let explicit = sidecar.say("explicit", "one").await.thread_id().to_owned();
    let place = sidecar.stop().await;

    let thread_id = configured.clone();
    let sidecar = Sidecar::in_place(place, |_, config| {
        let tool = ToolDefaults { thread_id: Some(thread_id), ..ToolDefaults::default() };
        config.tools.insert("codex_engineer".to_owned(), tool);
    })
    .await;
    let engineer = |words: &str| pb::RunTurnRequest {
        tool_name: "codex_engineer".into(),
        ..prompt("a", words)
    };
    // Not bound yet: the tool's own thread, which is bound by that.
    let told = sidecar.run(engineer("two")).await;
    assert_eq!(
        (told.thread_id(), told.origin()),
        (configured.as_str(), pb::ThreadOrigin::Explicit)
    );
    assert_eq!(told.final_response(), "You said: two (user messages so far: 2)");
    // The tool says nothing of another tool's thread.
    let other = sidecar.say("a", "one").await;
    assert_eq!(other.origin(), pb::ThreadOrigin::New);
    // Named: bound in place of the other.
    let named = pb::RunTurnRequest { thread_id: format!(" {explicit} "), ..engineer("two") };
    let told = sidecar.run(named).await;
    assert_eq!((told.thread_id(), told.origin()), (explicit.as_str(), pb::ThreadOrigin::Explicit));
    assert_eq!(told.final_response(), "You said: two (user messages so far: 2)");
    // Bound beats configured.
    let told = sidecar.run(engineer("three")).await;
    assert_eq!((told.thread_id(), told.origin()), (explicit.as_str(), pb::ThreadOrigin::Resumed));
    assert_eq!(told.final_response(), "You said: three (user messages so far: 3)");
    // Named without a context: run, and bound to nobody.
    let contexts = sidecar.info().await.counts.unwrap().contexts;
    let nobody = pb::RunTurnRequest { thread_id: configured.clone(), ..prompt("", "three") };
    let told = sidecar.run(nobody).await;
    assert_eq!(told.thread_id(), configured);
    assert_eq!(told.final_response(), "You said: three (user messages so far: 3)");
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, contexts);
    sidecar.stop().await;
}

#[tokio::test]
async fn an_ephemeral_turn_leaves_nothing() {
    let sidecar = Sidecar::start().await;
    let told = sidecar.run(ephemeral("hello")).await;
    assert_eq!(told.origin(), pb::ThreadOrigin::New);
    assert_eq!(told.final_response(), "You said: hello (user messages so far: 1)");
    assert_eq!(sidecar.place.rollouts(), Vec::<PathBuf>::new());
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, 0);
    let again = pb::RunTurnRequest { thread_id: told.thread_id().to_owned(), ..prompt("a", "x") };
    sidecar.refused(again).await.assert(Code::NotFound, "THREAD_NOT_FOUND");
    // To compare with: one that is kept.
    sidecar.say("a", "hello").await;
    assert_eq!(sidecar.place.rollouts().len(), 1);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_thread_that_is_gone_is_told_and_replaced_only_if_asked_for() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let first = sidecar.say("a", "hello").await;
    let place = sidecar.stop().await;
    for rollout in place.rollouts() {
        std::fs::remove_file(rollout).unwrap();
    }
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let bind = pb::BindContextRequest {
        context_id: "a".into(),
        thread_id: first.thread_id().to_owned(),
        ..Default::default()
    };
    sidecar.codex().bind_context(bind).await.unwrap();
    let refused = sidecar.refused(prompt("a", "again")).await;
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    assert_eq!(refused.metadata["thread_id"], first.thread_id());
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, first.thread_id());

    let mut replace = prompt("a", "again");
    replace.set_missing_thread_policy(pb::MissingThreadPolicy::StartNew);
    let told = sidecar.run(replace).await;
    assert_eq!(told.origin(), pb::ThreadOrigin::New);
    assert_ne!(told.thread_id(), first.thread_id());
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, told.thread_id());
    assert!(told.warnings().iter().any(|warning| warning.message.contains(first.thread_id())));
    assert!(
        told.warnings().iter().all(|warning| !warning.code.is_empty()),
        "{:?}",
        told.warnings()
    );
    sidecar.stop().await;
}
