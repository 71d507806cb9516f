//! Faults of the pool: nothing to start, nothing that stays up, too much to do, too old, stuck, worn out.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::{Place, Sidecar, eventually, processes, prompt, scripted};
use codex_sidecar::parts::app::READINESS_SERVICE;
use codex_sidecar::parts::config::Config;
use codex_sidecar::pb;
use rustix::process::Signal;
use serde_json::json;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

/// Failures and pauses in the time that a test has.
fn impatient(config: &mut Config) {
    config.pool.backoff_initial = Duration::from_millis(10);
    config.pool.backoff_max = Duration::from_millis(100);
    config.pool.breaker_failures = 3;
    config.pool.breaker_open = Duration::from_millis(300);
    config.pool.start_spacing = Duration::ZERO;
}

/// Waits until turns are refused for this reason; returns what is said to people.
async fn not_ready(sidecar: &Sidecar, reason: &str) -> String {
    eventually(reason, async || {
        let info = sidecar.info().await;
        (info.not_ready_reason == reason).then_some(info.not_ready_message)
    })
    .await
}

/// Row 12: a CLI that is missing, then too old, then crashing, then well, under one sidecar that is
/// never touched.
#[tokio::test]
async fn whatever_is_wrong_with_the_cli_is_told_and_the_sidecar_recovers_by_itself() {
    let place = Place::new();
    let codex = place.path().join("codex");
    let sidecar = Sidecar::cold(place, |place, config| {
        impatient(config);
        config.codex_path = Some(place.path().join("codex"));
    })
    .await;
    let message = not_ready(&sidecar, "CODEX_NOT_FOUND").await;
    assert!(message.contains(codex.to_str().unwrap()), "{message}");
    assert!(message.contains("npm install -g @openai/codex"), "{message}");
    assert_eq!(sidecar.health_of(READINESS_SERVICE).await.unwrap(), ServingStatus::NotServing);
    eventually("the breaker", async || {
        let info = sidecar.info().await.not_ready_message;
        info.contains("3 failures in a row").then_some(())
    })
    .await;
    let refused = sidecar.refused(prompt("a", "hello")).await;
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    assert!(refused.message.contains("not at") && refused.retry_after.is_some(), "{refused:#?}");

    scripted::set_faults(&sidecar, &json!({"version": "0.99.0"}));
    std::os::unix::fs::symlink(scripted::fake_cli(), &codex).unwrap();
    let message = not_ready(&sidecar, "CODEX_TOO_OLD").await;
    assert!(message.contains("0.99.0") && message.contains("0.100.0"), "{message}");
    assert!(message.contains(codex.to_str().unwrap()), "{message}");

    let broken = json!({"exit_at_start": {"code": 3, "stderr": "no luck with the config\n"}});
    scripted::set_faults(&sidecar, &broken);
    let message = not_ready(&sidecar, "CODEX_UNUSABLE").await;
    assert!(message.contains("exit status 3") && message.contains("no luck"), "{message}");
    let broken = json!({"stdout_at_start": "hello\n", "start_delay": "20ms",
                        "exit_at_start": {"code": 0}});
    scripted::set_faults(&sidecar, &broken);

    scripted::set_faults(&sidecar, &json!({}));
    sidecar.ready().await;
    sidecar.say("a", "hello").await.completed();

    // Up for a moment each time: that is a crash loop too.
    scripted::set_faults(&sidecar, &json!({"crash_after": "30ms", "crash": {"code": 9}}));
    processes::signal(sidecar.workers().await[0].pid, Signal::KILL);
    let message = not_ready(&sidecar, "WORKERS_FAILING").await;
    assert!(message.contains("w0"), "{message}");
    eventually("the breaker", async || {
        let info = sidecar.info().await.not_ready_message;
        (info.contains("exit status 9") && info.contains("in a row")).then_some(())
    })
    .await;
    scripted::set_faults(&sidecar, &json!({}));
    sidecar.ready().await;
    eventually("a turn on a worker that lasts", async || {
        let turn = sidecar.try_begin(prompt("a", "again")).await.ok()?;
        let told = turn.rest().await;
        matches!(told.terminal(), pb::turn_event::Event::TurnCompleted(_)).then_some(())
    })
    .await;
    sidecar.stop().await;
}

/// A build from source does not know its version.
#[tokio::test]
async fn a_cli_built_from_source_is_taken() {
    let place = Place::new();
    let faults = json!({"version": "0.0.0"}).to_string();
    std::fs::write(place.codex_home().join("fake.json"), faults).unwrap();
    let sidecar = Sidecar::in_place(place, |_, config| {
        config.codex_path = Some(scripted::fake_cli().to_owned());
    })
    .await;
    assert_eq!(sidecar.info().await.cli_version, "0.0.0");
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

/// Row 13, on the real CLI.
#[tokio::test]
async fn sixteen_workers_on_a_fresh_codex_home_all_serve() {
    let began = Instant::now();
    let sidecar = Sidecar::with(|config| config.workers = 16).await;
    eventually("sixteen workers", async || {
        (sidecar.info().await.counts.unwrap().ready_workers == 16).then_some(())
    })
    .await;
    println!("16 workers ready after {:?}", began.elapsed());
    // All at once, and none over before the last has begun, so that each has its own.
    let mut turns = Vec::new();
    for number in 0..16 {
        turns.push(sidecar.begin(prompt(&format!("c{number}"), "[[hang]]")).await);
    }
    for turn in &mut turns {
        turn.started().await;
    }
    let workers = sidecar.workers().await;
    assert!(workers.iter().all(|worker| worker.running_turns == 1), "{workers:#?}");
    for turn in turns {
        sidecar.interrupt(turn.turn_id()).await.unwrap();
        turn.rest().await.interrupted();
    }
    let threads: HashSet<String> = futures::future::join_all((0..16).map(async |number| {
        let told = sidecar.say(&format!("c{number}"), "hello").await;
        told.completed();
        told.thread_id().to_owned()
    }))
    .await
    .into_iter()
    .collect();
    assert_eq!(threads.len(), 16);
    println!("16 turns on 16 workers after {:?}", began.elapsed());
    sidecar.stop().await;
}

/// Starts that collide on a fresh database are spaced and tried again.
#[tokio::test]
async fn workers_that_lock_each_other_out_come_up_one_after_the_other() {
    let place = Place::new();
    let faults = json!({"lock_starts": "30ms"}).to_string();
    std::fs::write(place.codex_home().join("fake.json"), faults).unwrap();
    let sidecar = Sidecar::in_place(place, |_, config| {
        config.codex_path = Some(scripted::fake_cli().to_owned());
        config.workers = 16;
        config.pool.backoff_initial = Duration::from_millis(50);
        config.pool.start_spacing = Duration::ZERO;
    })
    .await;
    eventually("sixteen workers", async || {
        (sidecar.info().await.counts.unwrap().ready_workers == 16).then_some(())
    })
    .await;
    sidecar.stop().await;
}

/// Recycling by memory: at no time without a warm worker, and unseen by the contexts, whose turns end
/// where they began.
#[tokio::test]
async fn a_worker_that_has_grown_is_replaced_unseen() {
    let sidecar = scripted::with(|config| {
        impatient(config);
        config.pool.liveness_interval = Duration::from_millis(100);
        config.pool.max_resident_bytes = Some(64 << 20);
    })
    .await;
    let first = sidecar.say("a", "[[grow 80]]").await;
    let mut long = sidecar.begin(prompt("long", "[[slow 20]] [[words 150]]")).await;
    long.started().await;
    let began_on = sidecar.workers().await[0].generation;
    let renewed = async {
        loop {
            sidecar.say("a", "[[grow 80]]").await.completed();
            let worker = sidecar.workers().await.remove(0);
            assert_eq!(worker.state(), pb::WorkerState::Ready);
            if worker.generation > began_on {
                break;
            }
        }
    };
    support::within(support::PATIENCE, "a successor", renewed).await;
    // It went on where it was, beside its worker's successor.
    assert_eq!(long.rest().await.final_response().split(' ').count(), 150);
    // Both threads moved.
    for context in ["a", "long"] {
        let told = sidecar.say(context, "hello").await;
        assert_eq!(told.origin(), pb::ThreadOrigin::Resumed);
    }
    assert_eq!(sidecar.say("a", "hello").await.thread_id(), first.thread_id());
    sidecar.stop().await;
}
