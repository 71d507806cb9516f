//! The beginning and the end, of the sidecar and of turns: readiness, health and reflection, what
//! happens when callers, workers and the sidecar itself go away.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support;
use crate::support::binary::Binary;
use crate::support::turn::until_there;
use crate::support::{
    Client, PATIENCE, Place, Sidecar, Turn, eventually, processes, prompt, unsandboxed, within,
};
use codex_sidecar::parts::app::READINESS_SERVICE;
use codex_sidecar::parts::config::ListenAddress;
use codex_sidecar::pb;
use rustix::process::Signal;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;

/// A turn that runs `sleep` for longer than any test waits, outside every sandbox.
fn sleeping(context: &str) -> pb::RunTurnRequest {
    unsandboxed(context, "[[run sleep 600]]")
}

fn sleeps(codex_home: &Path) -> Vec<processes::Process> {
    let is_sleep = |process: &processes::Process| process.command.ends_with("sleep 600");
    processes::of_home(codex_home).into_iter().filter(is_sleep).collect()
}

/// Begins a turn and waits until its command runs, as the system sees it.
async fn begin_sleeping(client: &Client, context: &str, codex_home: &Path) -> Turn {
    let mut turn = client.begin(sleeping(context)).await;
    turn.command_started().await;
    eventually("the command", || async { (!sleeps(codex_home).is_empty()).then_some(()) }).await;
    turn
}

async fn command_is_gone(codex_home: &Path) {
    eventually("the end of the command", || async { sleeps(codex_home).is_empty().then_some(()) })
        .await;
}

/// The services that reflection lists, in this version of its protocol.
macro_rules! services {
    ($client:expr, $version:ident) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        let asked = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut reflection = ServerReflectionClient::new($client.channel());
        let answers = reflection.server_reflection_info(tokio_stream::once(asked)).await;
        let answer = within(PATIENCE, "reflection", answers.unwrap().into_inner().message()).await;
        match answer.unwrap().unwrap().message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                list.service.into_iter().map(|service| service.name).collect::<Vec<String>>()
            }
            other => panic!("{other:?}"),
        }
    }};
}

#[tokio::test]
async fn nothing_says_serving_before_a_worker_can_take_turns() {
    // Its own time to start: a CLI that takes its while.
    let place = Place::new();
    let gate = place.path().join("go");
    let slow = place.path().join("codex");
    let script = format!(
        "#!/bin/sh\nwhile [ ! -e {} ]; do sleep 0.05; done\nexec {} \"$@\"\n",
        gate.display(),
        support::codex_path().display()
    );
    write_executable(&slow, &script).await;
    let sidecar = Sidecar::cold(place, |_, config| config.codex_path = Some(slow)).await;

    assert_eq!(sidecar.health_of("").await.unwrap(), ServingStatus::Serving, "it is alive");
    assert_eq!(sidecar.health_of(READINESS_SERVICE).await.unwrap(), ServingStatus::NotServing);
    let info = sidecar.info().await;
    assert!(!info.ready);
    assert_eq!(info.not_ready_reason, "STARTING");
    assert!(!info.not_ready_message.is_empty());
    assert_eq!(info.counts.unwrap().ready_workers, 0);
    let request = HealthCheckRequest { service: READINESS_SERVICE.to_owned() };
    let mut watch = sidecar.health().watch(request).await.unwrap().into_inner();
    let first = within(PATIENCE, "the first word of the watch", watch.message()).await;
    assert_eq!(first.unwrap().unwrap().status(), ServingStatus::NotServing);

    std::fs::write(gate, "").unwrap();
    let second = within(PATIENCE, "readiness", watch.message()).await;
    assert_eq!(second.unwrap().unwrap().status(), ServingStatus::Serving);
    let info = sidecar.info().await;
    assert!(info.ready, "{info:#?}");
    assert_eq!((info.not_ready_reason.as_str(), info.not_ready_message.as_str()), ("", ""));
    assert!(!info.cli_version.is_empty() && !info.sidecar_version.is_empty(), "{info:#?}");
    assert_eq!(info.drain_state(), pb::DrainState::Serving);
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

#[tokio::test]
async fn a_missing_cli_is_told_and_found_when_it_comes() {
    let place = Place::new();
    let later = place.path().join("codex");
    let path = later.clone();
    let sidecar = Sidecar::cold(place, |_, config| {
        config.codex_path = Some(path);
        config.pool.worker_wait = Duration::from_millis(200);
    })
    .await;
    let reason = eventually("the reason", || async {
        Some(sidecar.info().await).filter(|info| info.not_ready_reason != "STARTING")
    });
    let info = reason.await;
    assert_eq!((info.ready, info.not_ready_reason.as_str()), (false, "CODEX_NOT_FOUND"));
    assert!(info.not_ready_message.contains(later.to_str().unwrap()), "{info:#?}");
    assert_eq!(sidecar.health_of(READINESS_SERVICE).await.unwrap(), ServingStatus::NotServing);
    assert_eq!(sidecar.health_of("").await.unwrap(), ServingStatus::Serving);
    let refused = sidecar.refused(prompt("a", "hello")).await;
    refused.assert(Code::Unavailable, "WORKER_UNAVAILABLE");
    assert!(refused.retry_after.is_some(), "{refused:#?}");

    std::os::unix::fs::symlink(support::codex_path(), &later).unwrap();
    sidecar.ready().await;
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

#[tokio::test]
async fn health_and_reflection_tell_what_is_served() {
    let socket_place = support::short_directory();
    let socket = socket_place.path().join("sidecar.sock");
    let path = socket.clone();
    let sidecar = Sidecar::with(|config| config.listen.push(ListenAddress::Unix(path))).await;
    let unknown = sidecar.health_of("no.such.Service").await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);

    let expected =
        ["codex.sidecar.v1.CodexService", "codex.sidecar.v1.PoolService", "grpc.health.v1.Health"];
    for services in [services!(sidecar, v1), services!(sidecar, v1alpha)] {
        for service in expected {
            assert!(services.iter().any(|name| name == service), "{service}: {services:?}");
        }
    }

    // The same over a Unix socket.
    let address = format!("unix:{}", socket.display());
    let local = Client::connect(&address, sidecar.place.work()).await;
    assert_eq!(local.health_of(READINESS_SERVICE).await.unwrap(), ServingStatus::Serving);
    local.say("a", "hello").await.completed();
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
    assert!(!socket.exists(), "the socket is left behind");
}

#[tokio::test]
async fn dropping_the_stream_interrupts_the_turn_and_its_command() {
    let sidecar = Sidecar::start().await;
    let home = sidecar.place.codex_home();
    let turn = begin_sleeping(&sidecar, "a", &home).await;
    let thread_id = sidecar.context("a").await.unwrap().thread_id;
    let worker = sidecar.workers().await.remove(0);
    drop(turn);
    command_is_gone(&home).await;
    let next = sidecar.say("a", "hello").await;
    assert_eq!(next.thread_id(), thread_id);
    assert!(next.final_response().starts_with("You said: hello"), "{next:?}");
    // It was interrupted, not cut off: the worker is the same.
    assert_eq!(sidecar.workers().await[0].pid, worker.pid);
    sidecar.stop().await;
}

#[tokio::test]
async fn interrupt_turn_returns_the_terminal_event_that_the_stream_has() {
    let sidecar = Sidecar::start().await;
    let home = sidecar.place.codex_home();
    let turn = begin_sleeping(&sidecar, "a", &home).await;
    let turn_id = turn.turn_id().to_owned();
    let asked = Instant::now();
    let terminal = sidecar.interrupt(&turn_id).await.unwrap();
    let took = asked.elapsed();
    // Told to end by then; the system may need a moment for it.
    command_is_gone(&home).await;
    let told = turn.rest().await;
    assert_eq!(told.interrupted(), pb::InterruptReason::InterruptRequested);
    assert_eq!(told.events.last(), Some(&terminal));
    assert!(took < Duration::from_secs(30), "{took:?}");
    // Once more changes nothing.
    assert_eq!(sidecar.interrupt(&turn_id).await.unwrap(), terminal);
    let next = sidecar.say("a", "hello").await;
    assert_eq!(next.thread_id(), told.thread_id());

    // A model that says nothing is no obstacle.
    let mut silent = sidecar.begin(prompt("a", "[[hang]]")).await;
    let turn_id = silent.started().await;
    sidecar.interrupt(&turn_id).await.unwrap();
    assert_eq!(silent.rest().await.interrupted(), pb::InterruptReason::InterruptRequested);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_callers_deadline_ends_the_stream_and_the_turn() {
    let sidecar = Sidecar::start().await;
    let home = sidecar.place.codex_home();
    let mut request = Request::new(sidecar.at_work(sleeping("a")));
    let deadline = Duration::from_secs(3);
    // The header alone: tonic's own clock in the client would hide what the server does.
    let timeout = format!("{}m", deadline.as_millis()).parse().unwrap();
    request.metadata_mut().insert("grpc-timeout", timeout);
    let asked = Instant::now();
    let stream = sidecar.codex().run_turn(request).await.unwrap().into_inner();
    let mut turn = Turn::new(stream);
    let ended = turn.rest_fails().await;
    let took = asked.elapsed();
    assert_eq!(ended.code, Code::DeadlineExceeded, "{ended:#?}");
    // How late at most is the benchmark's matter.
    assert!(took >= deadline && took < deadline + Duration::from_secs(20), "{took:?}");
    assert!(!turn.events.iter().any(support::turn::is_terminal), "{:#?}", turn.events);
    command_is_gone(&home).await;
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

#[tokio::test]
async fn a_turn_is_held_to_its_own_times() {
    // It is silent while a command runs, which is measured by a clock of its own.
    let tool = Some(Duration::from_secs(1));
    let sidecar = Sidecar::with(|config| config.timeouts.tool = tool).await;
    let second = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let with = |turn_options: pb::TurnOptions, context: &str| pb::RunTurnRequest {
        turn_options: Some(turn_options),
        ..sleeping(context)
    };
    let total = pb::TurnOptions { turn_timeout: second, ..Default::default() };
    let told = sidecar.run(with(total, "a")).await;
    assert_eq!(told.failed().reason, "TURN_TIMEOUT");
    let idle = pb::TurnOptions { idle_timeout: second, ..Default::default() };
    let told = sidecar.run(with(idle, "b")).await;
    assert_eq!(told.failed().reason, "IDLE_TIMEOUT");
    assert!(told.failed().side_effects_possible);
    command_is_gone(&sidecar.place.codex_home()).await;
    // Not idle as long as something comes, however long it takes.
    let three = Some(prost_types::Duration { seconds: 3, nanos: 0 });
    let idle = pb::TurnOptions { idle_timeout: three, ..Default::default() };
    let lively =
        pb::RunTurnRequest { turn_options: Some(idle), ..prompt("b", "[[slow 500]] [[words 9]]") };
    sidecar.run(lively).await.completed();
    sidecar.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_between_two_turns_is_not_missed() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let first = sidecar.say("a", "hello").await;
    let holder = sidecar.context("a").await.unwrap().worker_id;
    let worker = sidecar.workers().await.into_iter().find(|worker| worker.worker_id == holder);
    let worker = worker.expect("the holder is listed");
    processes::signal(worker.pid, Signal::KILL);
    // At once, and again when the sidecar has seen it.
    for (number, words) in [(2, "again"), (3, "and again")] {
        let told = sidecar.say("a", words).await;
        assert_eq!(
            (told.thread_id(), told.origin()),
            (first.thread_id(), pb::ThreadOrigin::Resumed)
        );
        let expected = format!("You said: {words} (user messages so far: {number})");
        assert_eq!(told.final_response(), expected);
        eventually("the worker's successor", || async {
            let workers = sidecar.workers().await;
            let successor = workers.into_iter().find(|worker| worker.worker_id == holder)?;
            (successor.state() == pb::WorkerState::Ready && successor.pid != worker.pid)
                .then_some(successor)
        })
        .await;
    }
    let successor = sidecar.workers().await.into_iter().find(|w| w.worker_id == holder).unwrap();
    assert!(successor.generation > worker.generation);
    assert_eq!(successor.restarts, 1);
    assert!(successor.last_error.contains("signal 9"), "{successor:#?}");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_under_a_turn_fails_that_turn_alone() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let home = sidecar.place.codex_home();
    let turn = begin_sleeping(&sidecar, "a", &home).await;
    let mut other = sidecar.begin(prompt("b", "[[wait 2s]] [[say unharmed]]")).await;
    other.started().await;
    let holder = sidecar.context("a").await.unwrap().worker_id;
    let worker = sidecar.workers().await.into_iter().find(|worker| worker.worker_id == holder);
    processes::signal(worker.unwrap().pid, Signal::KILL);
    let told = turn.rest().await;
    let error = told.failed();
    assert_eq!(error.reason, "WORKER_LOST");
    assert!(error.side_effects_possible && error.retryable, "{error:#?}");
    command_is_gone(&home).await;
    let next = sidecar.say("a", "hello").await;
    assert_eq!((next.thread_id(), next.origin()), (told.thread_id(), pb::ThreadOrigin::Resumed));
    assert_eq!(other.rest().await.final_response(), "unharmed");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_signal_lets_running_turns_end_and_takes_no_new_ones() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut sidecar = Binary::start().await;
        let home = sidecar.place.codex_home();
        let go = sidecar.place.path().join("go");
        let mut turn = sidecar.begin(until_there("a", &go, "finished")).await;
        turn.command_started().await;
        // What would hold a graceful shutdown up for ever.
        let request = HealthCheckRequest { service: READINESS_SERVICE.to_owned() };
        let mut watch = sidecar.health().watch(request).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

        sidecar.signal(signal);
        let update = within(PATIENCE, "the news of the drain", watch.message()).await;
        assert_eq!(update.unwrap().unwrap().status(), ServingStatus::NotServing);
        let refused = sidecar.refused(prompt("b", "hello")).await;
        refused.assert(Code::Unavailable, "DRAINING");
        assert!(refused.retry_after.is_some(), "{refused:#?}");
        assert_eq!(sidecar.health_of("").await.unwrap(), ServingStatus::Serving);
        let info = sidecar.info().await;
        assert_eq!((info.ready, info.drain_state()), (false, pb::DrainState::Draining));
        assert_eq!(info.not_ready_reason, "DRAINING");

        std::fs::write(go, "").unwrap();
        assert_eq!(turn.rest().await.final_response(), "finished");
        let status = sidecar.exited(PATIENCE).await;
        assert!(status.success(), "{status}: {}", sidecar.log());
        processes::assert_none_left(&home).await;
    }
}

#[tokio::test]
async fn a_drain_is_bounded_by_its_grace_whatever_runs() {
    let mut sidecar = Binary::with(|command| {
        command.args(["--drain-grace", "1s"]);
    })
    .await;
    let home = sidecar.place.codex_home();
    let turn = begin_sleeping(&sidecar, "a", &home).await;
    let waiting = sidecar.begin(prompt("a", "hello")).await;
    // A caller that reads nothing.
    let _unread = sidecar.begin(prompt("b", "[[words 20000]] [[hang]]")).await;
    let asked = Instant::now();
    sidecar.signal(Signal::TERM);
    assert_eq!(turn.rest().await.interrupted(), pb::InterruptReason::Draining);
    assert_eq!(waiting.rest().await.interrupted(), pb::InterruptReason::Draining);
    let status = sidecar.exited(PATIENCE).await;
    assert!(status.success(), "{status}: {}", sidecar.log());
    let took = asked.elapsed();
    // Far below the command's ten minutes.
    assert!(took > Duration::from_secs(1) && took < PATIENCE, "{took:?}");
    processes::assert_none_left(&home).await;
}

#[tokio::test]
async fn a_second_signal_ends_the_sidecar_at_once() {
    let mut sidecar = Binary::start().await;
    let home = sidecar.place.codex_home();
    let mut turn = begin_sleeping(&sidecar, "a", &home).await;
    sidecar.signal(Signal::TERM);
    eventually("the drain", || async {
        (sidecar.info().await.drain_state() == pb::DrainState::Draining).then_some(())
    })
    .await;
    sidecar.signal(Signal::INT);
    // The grace is 30 s.
    let status = sidecar.exited(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(130), "{}", sidecar.log());
    let ended = turn.rest_fails().await;
    assert!(!matches!(ended.code, Code::Ok), "{ended:#?}");
}

#[tokio::test]
async fn the_server_tells_its_limits_and_what_it_holds() {
    let sidecar = Sidecar::with(|config| config.drain_grace = Duration::from_secs(7)).await;
    sidecar.say("a", "hello").await.completed();
    let mut running = sidecar.begin(prompt("b", "[[hang]]")).await;
    let turn_id = running.started().await;
    let info = sidecar.info().await;
    assert_eq!(info.codex_home, sidecar.place.codex_home().display().to_string());
    assert_eq!(info.codex_path, support::codex_path().display().to_string());
    let limits = info.limits.unwrap();
    assert_eq!(limits.workers, 1);
    assert_eq!(limits.drain_grace.unwrap().seconds, 7);
    assert_eq!(limits.max_codex_line_bytes, 8 << 20);
    let counts = info.counts.unwrap();
    assert_eq!((counts.running_turns, counts.queued_turns, counts.contexts), (1, 0, 2));
    assert_eq!((counts.retained_turns, counts.ready_workers), (2, 1));
    let worker = sidecar.workers().await.remove(0);
    assert_eq!(worker.state(), pb::WorkerState::Ready);
    assert_eq!((worker.running_turns, worker.turns_started, worker.loaded_threads), (1, 2, 2));
    assert!(processes::is_alive(worker.pid) && worker.resident_memory_bytes > 1 << 20);
    assert_eq!(worker.cli_version, info.cli_version);
    sidecar.interrupt(&turn_id).await.unwrap();
    running.rest().await;
    sidecar.stop().await;
}

/// Written by another process, so that no neighbouring test's child holds the file open for writing.
async fn write_executable(path: &Path, content: &str) {
    let script = r#"printf %s "$2" >"$1" && chmod 755 "$1""#;
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", script, "sh"]).arg(path).arg(content);
    assert!(command.status().await.unwrap().success());
}
