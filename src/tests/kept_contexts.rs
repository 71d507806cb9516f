//! Contexts that outlive the sidecar: what is told is kept, and what is kept is there again.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Request};

use crate::grpc::api::codex_service_server::CodexService as _;
use crate::model::id::ThreadId;
use crate::pb;
use crate::registry::ledger::testing::Disk;
use crate::testing::{Refused, Setup, Sidecar, meanwhile, prompt, sidecar_on};

const THREADS: [&str; 2] =
    ["00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"];

async fn bind(sidecar: &Sidecar, context: &str, thread_id: &str) -> Result<pb::Context, Refused> {
    let request = pb::BindContextRequest {
        context_id: context.to_owned(),
        thread_id: thread_id.to_owned(),
        ..Default::default()
    };
    let bound = sidecar.api.bind_context(Request::new(request)).await.map_err(Refused::from)?;
    Ok(bound.into_inner().context.unwrap())
}

async fn delete(sidecar: &Sidecar, context: &str) -> Result<(), Refused> {
    let request = pb::DeleteContextRequest { context_id: context.to_owned(), ..Default::default() };
    sidecar.api.delete_context(Request::new(request)).await.map(drop).map_err(Refused::from)
}

async fn fork(sidecar: &Sidecar, source: &str, target: &str) -> Result<pb::Context, Refused> {
    let context = |context_id: &str| {
        Some(pb::ContextRef { context_id: context_id.to_owned(), ..Default::default() })
    };
    let (source, target) = (context(source), context(target));
    let request = pb::ForkContextRequest { source, target, ..Default::default() };
    let forked = sidecar.api.fork_context(Request::new(request)).await.map_err(Refused::from)?;
    Ok(forked.into_inner().context.unwrap())
}

fn kept(disk: &Disk) -> Vec<(String, String)> {
    let contexts = disk.contexts().into_iter();
    contexts.map(|(context, thread_id)| (context, thread_id.to_string())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_binding_by_hand_is_told_when_it_is_kept_and_not_there_where_it_can_not_be() {
    let disk = Arc::default();
    let (sidecar, mut codex) = sidecar_on(&disk, 1, |_| {}).await;
    let second = Duration::from_secs(1);
    disk.hold();
    let mut binding = pin!(bind(&sidecar, "a", THREADS[0]));
    tokio::time::timeout(second, &mut binding).await.unwrap_err();
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    // What comes meanwhile finds it.
    let mut turn = sidecar.begin(prompt("a", "hello")).await.unwrap();
    turn.until("queued").await;
    disk.release();
    assert_eq!(binding.await.unwrap().thread_id, THREADS[0]);
    codex.during(turn.rest()).await;
    assert_eq!(turn.thread_id(), THREADS[0]);

    let as_it_was = sidecar.context("a").await.unwrap();
    for deed in ["bind", "delete"] {
        disk.hold();
        let mut doing = pin!(async {
            match deed {
                "bind" => bind(&sidecar, "a", THREADS[1]).await.map(drop),
                _ => delete(&sidecar, "a").await,
            }
        });
        tokio::time::timeout(second, &mut doing).await.unwrap_err();
        disk.fill();
        doing.await.unwrap_err().assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
        assert_eq!(sidecar.context("a").await.unwrap(), as_it_was);
        // Known before.
        let refused = bind(&sidecar, "new", THREADS[1]).await.unwrap_err();
        refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
        assert!(refused.retry_after.is_some() && refused.message.contains(Disk::TROUBLE));
        delete(&sidecar, "a").await.unwrap_err().assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
        disk.empty();
        assert_eq!(kept(&disk), [("a".to_owned(), THREADS[0].to_owned())]);
    }
    bind(&sidecar, "a", THREADS[1]).await.unwrap();
    assert_eq!(kept(&disk), [("a".to_owned(), THREADS[1].to_owned())]);
    assert_eq!(disk.facts().len(), 0, "of a thread that no context has");
    delete(&sidecar, "a").await.unwrap();
    assert_eq!(kept(&disk), []);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_can_not_be_kept_is_not_left_in_codex() {
    let disk = Arc::default();
    let (sidecar, mut codex) = sidecar_on(&disk, 1, |_| {}).await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    disk.hold();
    let mut forking = pin!(fork(&sidecar, "a", "b"));
    let waiting = async { codex.asked("thread/unarchive").await };
    let asked = meanwhile(forking.as_mut(), waiting).await;
    codex.answer_usually(&asked).await;
    tokio::time::timeout(Duration::from_secs(1), &mut forking).await.unwrap_err();
    disk.fill();
    let refused = codex.during(forking).await.unwrap_err();
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    let copy = codex.heard_of("thread/unarchive")[0].params.clone();
    assert_eq!(codex.heard_of("thread/delete")[0].params, copy);
    sidecar.context("b").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    // Nothing is asked of Codex where it is known before.
    let asked = codex.count("thread/fork");
    let refused = fork(&sidecar, "a", "b").await.unwrap_err();
    refused.assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
    assert_eq!(codex.count("thread/fork"), asked);

    disk.empty();
    let forked = codex.during(fork(&sidecar, "a", "b")).await.unwrap();
    assert!(disk.facts().contains_key(&ThreadId::from_codex(&*forked.thread_id)));
    let (sidecar, mut codex) = sidecar_on(&disk, 2, |_| {}).await;
    let turn = codex.during(sidecar.say("b", "hello")).await;
    assert_eq!(turn.thread_started().origin(), pb::ThreadOrigin::Forked);
    assert_eq!(turn.thread_id(), forked.thread_id);
}

#[tokio::test(start_paused = true)]
async fn contexts_are_as_they_were_and_go_in_the_order_in_which_they_were_used() {
    let disk = Arc::default();
    let (sidecar, mut codex) = sidecar_on(&disk, 1, |_| {}).await;
    for context in ["c", "a", "d", "b", "a"] {
        codex.during(sidecar.say(context, "hello")).await.completed();
    }
    let mut before = Vec::new();
    for context in ["a", "b", "c", "d"] {
        before.push(sidecar.context(context).await.unwrap());
    }
    let (sidecar, mut codex) = sidecar_on(&disk, 2, |setup| {
        setup.contexts.max_contexts = 3;
        setup.contexts.evict_contexts = true;
    })
    .await;
    let request = pb::ListContextsRequest::default();
    let listed = sidecar.api.list_contexts(Request::new(request)).await.unwrap().into_inner();
    let as_before =
        |context: &pb::Context| pb::Context { worker_id: String::new(), ..context.clone() };
    assert_eq!(listed.contexts, before.iter().map(as_before).collect::<Vec<_>>());

    // There are more than may be: each new one takes the place of one, until there is room.
    let again = codex.during(sidecar.say("b", "hello")).await;
    assert_eq!(again.thread_started().origin(), pb::ThreadOrigin::Resumed);
    for (new, gone) in [("e", "c"), ("f", "d"), ("g", "a"), ("h", "b")] {
        let is_there = sidecar.context(gone).await.is_ok();
        codex.during(sidecar.say(new, "hello")).await.completed();
        assert!(
            is_there && sidecar.context(gone).await.is_err(),
            "{new} takes the place of {gone}"
        );
    }
    let (sidecar, mut codex) = sidecar_on(&disk, 3, |_| {}).await;
    let anew = codex.during(sidecar.say("b", "hello")).await;
    let told = anew.warned("CONTEXT_EVICTED");
    assert!(told.len() == 1 && told[0].contains(&before[1].thread_id), "{told:?}");
    let (sidecar, mut codex) = sidecar_on(&disk, 4, |_| {}).await;
    assert_eq!(codex.during(sidecar.say("b", "hello")).await.warned("CONTEXT_EVICTED").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_time_of_contexts_and_marks_goes_on_between_two_sidecars() {
    let disk: Arc<Disk> = Arc::default();
    let hour = Duration::from_secs(3600);
    let limited = |setup: &mut Setup| setup.contexts.context_ttl = Some(hour);
    let sweep = |sidecar: &Sidecar| {
        let engine = Arc::clone(&sidecar.engine);
        tokio::spawn(async move { engine.sweep().await })
    };
    let (sidecar, mut codex) = sidecar_on(&disk, 1, limited).await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    disk.age(hour - Duration::from_secs(60));
    let (sidecar, _codex) = sidecar_on(&disk, 2, limited).await;
    sweep(&sidecar);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert!(sidecar.context("a").await.is_ok());
    tokio::time::sleep(Duration::from_secs(15)).await;
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    assert_eq!((kept(&disk), disk.facts().len()), (Vec::new(), 0));

    let day = 24 * hour;
    disk.age(29 * day);
    let (sidecar, mut codex) = sidecar_on(&disk, 3, |_| {}).await;
    sweep(&sidecar);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(codex.during(sidecar.say("a", "hello")).await.warned("CONTEXT_EVICTED").len(), 1);
    delete(&sidecar, "a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_latest_thread_of_a_directory_outlives_the_sidecar_and_goes_with_the_thread() {
    let disk = Arc::default();
    let latest = async |sidecar: &Sidecar| {
        let request = pb::GetLatestThreadRequest::default();
        let latest = sidecar.api.get_latest_thread(Request::new(request)).await;
        latest.map(|latest| latest.into_inner()).map_err(Refused::from)
    };
    let (sidecar, mut codex) = sidecar_on(&disk, 1, |_| {}).await;
    let unbound = pb::RunTurnRequest { unbound: true, ..prompt("", "hello") };
    let turn = codex.during(sidecar.run(unbound)).await;
    let before = latest(&sidecar).await.unwrap();
    assert_eq!(before.thread_id, turn.thread_id());
    let (sidecar, mut codex) = sidecar_on(&disk, 2, |_| {}).await;
    assert_eq!(latest(&sidecar).await.unwrap(), before);
    bind(&sidecar, "a", turn.thread_id()).await.unwrap();
    let request = pb::DeleteContextRequest {
        context_id: "a".to_owned(),
        delete_thread: true,
        ..Default::default()
    };
    codex.during(sidecar.api.delete_context(Request::new(request))).await.unwrap();
    latest(&sidecar).await.unwrap_err().assert(Code::NotFound, "THREAD_NOT_FOUND");
    let (sidecar, _codex) = sidecar_on(&disk, 3, |_| {}).await;
    latest(&sidecar).await.unwrap_err().assert(Code::NotFound, "THREAD_NOT_FOUND");
}

/// Whoever goes on with a thread goes on with what is known of it.
#[tokio::test(start_paused = true)]
async fn what_is_known_of_a_thread_that_is_bound_by_hand_outlives_the_sidecar() {
    let instructed = |context: &str| {
        let mut request = prompt(context, "hello");
        let options = request.thread_options.get_or_insert_default();
        options.developer_instructions = Some("be brief".to_owned());
        request
    };
    for restarts in [false, true] {
        let disk = Arc::<Disk>::default();
        let (mut sidecar, mut codex) = sidecar_on(&disk, 1, |_| {}).await;
        let unbound = pb::RunTurnRequest { unbound: true, ..instructed("") };
        let first = codex.during(sidecar.run(unbound)).await;
        disk.hold();
        {
            let mut binding = pin!(bind(&sidecar, "a", first.thread_id()));
            tokio::time::timeout(Duration::from_secs(1), &mut binding).await.unwrap_err();
            disk.fill();
            binding.await.unwrap_err().assert(Code::Unavailable, "LEDGER_UNAVAILABLE");
        }
        disk.empty();
        assert_eq!((kept(&disk).len(), disk.facts().len()), (0, 0));
        bind(&sidecar, "a", first.thread_id()).await.unwrap();
        if restarts {
            (sidecar, codex) = sidecar_on(&disk, 2, |_| {}).await;
        }
        let after = codex.during(sidecar.run(instructed("a"))).await;
        assert_eq!(after.thread_id(), first.thread_id());
        assert_eq!(after.warnings(), [] as [&pb::Warning; 0], "restarts: {restarts}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_a_thread_whose_context_was_deleted_while_somebody_used_it() {
    let disk = Arc::<Disk>::default();
    let (sidecar, mut codex) = sidecar_on(&disk, 1, |_| {}).await;
    let first = codex.during(sidecar.say("a", "hello")).await;
    let mut other = prompt("", "hello");
    other.thread_id = first.thread_id().to_owned();
    let mut running = sidecar.hold(&mut codex, other).await;
    delete(&sidecar, "a").await.unwrap();
    assert_eq!(disk.facts().len(), 0);
    codex.end_last_turn().await;
    codex.during(running.rest()).await;
    assert_eq!((kept(&disk).len(), disk.facts().len()), (0, 0));
}

/// It was used until then.
#[tokio::test(start_paused = true)]
async fn the_time_of_a_context_begins_anew_when_its_turn_is_lost() {
    let disk: Arc<Disk> = Arc::default();
    let hour = Duration::from_secs(3600);
    let limited = |setup: &mut Setup| setup.contexts.context_ttl = Some(hour);
    let (sidecar, mut codex) = sidecar_on(&disk, 1, limited).await;
    let _running = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    disk.age(2 * hour);
    // Killed twice, and that it was used is kept.
    for number in [2, 3] {
        let (sidecar, _codex) = sidecar_on(&disk, number, limited).await;
        let engine = Arc::clone(&sidecar.engine);
        let _sweeping = tokio::spawn(async move { engine.sweep().await });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(sidecar.context("a").await.is_ok(), "{number}");
    }
}
