//! Threads that no turn uses: how many stay loaded, which are released, and what that costs.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::json;
use tokio::time::sleep;
use tonic::Request;

use crate::grpc::api::codex_service_server::CodexService as _;
use crate::pb;
use crate::testing::{Disk, Setup, Sidecar, meanwhile, prompt, sidecar_with};
use crate::worker::SpawnError;
use crate::worker::conversation::{Conversation, Launch};
use crate::worker::testing::Codex;

/// One whose engine looks after what is idle, as it does in an application.
async fn swept(change: impl FnOnce(&mut Setup)) -> (Sidecar, Codex) {
    let (sidecar, codex) = sidecar_with(change).await;
    let engine = Arc::clone(&sidecar.engine);
    tokio::spawn(async move { engine.sweep().await });
    (sidecar, codex)
}

/// The threads that were released, in that order.
fn released(codex: &Codex) -> Vec<&str> {
    let asked = codex.heard_of("thread/archive").into_iter();
    asked.map(|asked| asked.params["threadId"].as_str().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn idle_threads_are_released_the_oldest_first_and_their_worker_stays() {
    let (sidecar, mut codex) = swept(|setup| setup.pool.max_idle_threads = Some(2)).await;
    let mut long = sidecar.hold(&mut codex, prompt("long", "hello")).await;
    codex.holds_turns = false;
    for context in ["a", "b", "c", "a"] {
        codex.during(sidecar.say(context, "hello")).await.completed();
        codex.during(sleep(Duration::from_millis(1))).await;
    }
    // A turn of no context at all.
    let mut unbound = prompt("", "hello");
    unbound.unbound = true;
    codex.during(sidecar.run(unbound)).await.completed();
    codex.during(sleep(Duration::from_secs(2))).await;
    assert_eq!(released(&codex), ["t3", "t4"], "b and c");
    // The thread of the turn that runs is not idle, however old it is.
    let (thread_id, turn_id) = codex.turns[0].clone();
    codex.end_turn(&thread_id, &turn_id).await;
    codex.during(long.rest()).await;
    long.completed();
    codex.during(sleep(Duration::from_secs(2))).await;
    assert_eq!(released(&codex), ["t3", "t4", "t2"], "and a");
    let worker = sidecar.worker().await;
    assert_eq!((worker.generation, worker.loaded_threads), (1, 2));
    // Its next turn knows nothing of it.
    let next = codex.during(sidecar.say("b", "hello")).await;
    assert_eq!(next.thread_id(), "t3");
    assert_eq!(next.thread_started().origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(next.warnings(), Vec::<&pb::Warning>::new());
    assert_eq!(codex.heard_of("thread/resume")[0].params["threadId"], "t3");
    let limits = sidecar.info().await.limits.unwrap();
    assert_eq!((limits.max_idle_threads, limits.max_resident_bytes), (Some(2), Some(1 << 30)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_released_while_it_can_not_be_written_down() {
    let disk = Disk::default();
    let (sidecar, mut codex) = swept(|setup| {
        setup.pool.max_idle_threads = Some(0);
        disk.hold_home(setup);
    })
    .await;
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    disk.fill();
    codex.during(sleep(Duration::from_secs(11))).await;
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    codex.during(sleep(Duration::from_secs(5))).await;
    assert_eq!(released(&codex), Vec::<&str>::new());
    disk.empty();
    codex.during(sleep(Duration::from_secs(11))).await;
    assert_eq!(released(&codex), ["t1"]);
}

/// Launches a worker that is as large as this process.
struct Large(Arc<dyn Launch>);

impl Launch for Large {
    fn launch<'a>(
        &'a self,
        config_overrides: &'a [String],
    ) -> BoxFuture<'a, Result<Conversation, SpawnError>> {
        async move {
            let mut conversation = self.0.launch(config_overrides).await?;
            conversation.pid = Some(std::process::id());
            Ok(conversation)
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_too_large_is_relieved_of_its_idle_threads_before_it_is_replaced() {
    let (sidecar, mut codex) = swept(|setup| {
        setup.spec.launch = Arc::new(Large(Arc::clone(&setup.spec.launch)));
        setup.pool.max_resident_bytes = Some(1);
    })
    .await;
    for context in ["a", "b", "c"] {
        codex.during(sidecar.say(context, "hello")).await.completed();
        codex.during(sleep(Duration::from_millis(1))).await;
    }
    codex.during(sleep(Duration::from_secs(5))).await;
    assert_eq!(released(&codex), ["t1", "t2", "t3"]);
    assert_eq!(sidecar.worker().await.generation, 1);
    let mut successor = codex.during(sidecar.codex()).await;
    successor.during(codex.during(codex_ended(&sidecar))).await;
    assert_eq!(sidecar.worker().await.generation, 2);
    let next = successor.during(sidecar.say("a", "hello")).await;
    assert_eq!(next.thread_id(), "t1");
}

async fn codex_ended(sidecar: &Sidecar) {
    while sidecar.worker().await.generation == 1 {
        sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_context_leaves_nothing_loaded_and_nothing_of_what_it_was_loaded_with() {
    let (sidecar, mut codex) = swept(|_| {}).await;
    let long = "do what you must. ".repeat(10_000);
    let mut request = prompt("a", "hello");
    let options = request.thread_options.get_or_insert_default();
    options.base_instructions = Some(long.clone());
    options.developer_instructions = Some(long.clone());
    codex.during(sidecar.run(request)).await.completed();
    assert!(!format!("{:?}", sidecar.engine).contains("do what you must"));
    assert_eq!(sidecar.worker().await.loaded_threads, 1);
    let request = pb::DeleteContextRequest { context_id: "a".to_owned(), ..Default::default() };
    codex.during(sidecar.api.delete_context(Request::new(request))).await.unwrap();
    codex.during(sleep(Duration::from_millis(10))).await;
    assert_eq!(released(&codex), ["t1"]);
    assert_eq!(codex.count("thread/unarchive"), 1);
    assert_eq!(sidecar.worker().await.loaded_threads, 0);
}

/// What it is loaded with may still be asked for, and no turn is on it yet.
#[tokio::test(start_paused = true)]
async fn a_thread_that_is_being_made_is_not_idle() {
    let (sidecar, mut codex) = swept(|setup| setup.pool.max_idle_threads = Some(0)).await;
    let mut request = prompt("a", "hello");
    request.thread_options.get_or_insert_default().model = Some("m1".to_owned());
    let mut turn = pin!(sidecar.run(request));
    let made = codex.asked("turn/start");
    let asked = meanwhile(turn.as_mut(), made).await;
    meanwhile(turn.as_mut(), codex.during(sleep(Duration::from_secs(3)))).await;
    assert_eq!(released(&codex), Vec::<&str>::new());
    codex.answer_usually(&asked).await;
    codex.during(turn).await.completed();
    assert_eq!(released(&codex), Vec::<&str>::new());
    codex.during(sleep(Duration::from_secs(3))).await;
    assert_eq!(released(&codex), ["t1"]);
}

/// Nobody is on the thread: to be refused as if somebody were would be a lie.
#[tokio::test(start_paused = true)]
async fn a_turn_that_must_not_wait_for_others_waits_for_the_release_of_its_idle_thread() {
    let (sidecar, mut codex) = swept(|setup| setup.pool.max_idle_threads = Some(0)).await;
    codex.during(sidecar.say("a", "hello")).await.completed();
    let archive = codex.asked("thread/archive").await;
    let mut request = prompt("a", "again");
    request.set_busy_policy(pb::BusyPolicy::Reject);
    let mut turn = pin!(sidecar.run(request));
    meanwhile(turn.as_mut(), sleep(Duration::from_millis(50))).await;
    codex.answer(&archive, json!({})).await;
    let turn = codex.during(turn).await;
    assert_eq!((turn.thread_id(), turn.final_response()), ("t1", "You said: again"));
}

/// It is kept for its context alone, which has another one now.
#[tokio::test(start_paused = true)]
async fn a_blank_thread_that_another_one_has_replaced_is_forgotten() {
    let (sidecar, mut codex) = swept(|_| {}).await;
    let mut turn = sidecar.hold(&mut codex, prompt("a", "hello")).await;
    codex.exit("signal 9");
    turn.rest().await;
    assert_eq!((turn.thread_id(), &*turn.failed().reason), ("t1", "WORKER_LOST"));
    let mut codex = sidecar.codex().await;
    codex.number = Some(2);
    codex.refuses = vec![("thread/resume", 1, -32600, "no rollout found for thread id t1")];
    let next = codex.during(sidecar.say("a", "again")).await;
    assert_eq!(next.warned("THREAD_REPLACED").len(), 1);
    codex.during(sleep(Duration::from_secs(2))).await;
    assert!(!format!("{:?}", sidecar.engine).contains("ThreadId(\"t1\")"));
}
