//! The clocks of a turn, and what becomes of a worker that does not heed them.

use std::time::{Duration, Instant, SystemTime};

use crate::support::attached::{by_context, by_id};
use crate::support::{Place, Refused, Sidecar, Told, Turn, eventually, prompt, scripted};
use codex_sidecar::parts::config::Config;
use codex_sidecar::parts::offline_model::OfflineModel;
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use serde_json::json;
use tonic::{Code, Request};

/// What a machine with more to do than cores may add to any time. Far below what a clock that does not
/// strike would take; how exact they are is the benchmarks' matter.
const SLACK: Duration = Duration::from_secs(20);

/// Without the shell that Codex starts to look at the user's environment: it may outlive a sidecar that
/// lived for a second.
fn quiet(config: &mut Config) {
    config.worker.disable_features.push("shell_snapshot".to_owned());
}

fn timeout(turn: Option<Duration>, idle: Option<Duration>) -> Option<pb::TurnOptions> {
    let duration = |duration: Duration| prost_types::Duration::try_from(duration).unwrap();
    Some(pb::TurnOptions {
        turn_timeout: turn.map(duration),
        idle_timeout: idle.map(duration),
        ..Default::default()
    })
}

fn within_turn(millis: u64, request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    let turn_options = timeout(Some(Duration::from_millis(millis)), None);
    pb::RunTurnRequest { turn_options, ..request }
}

fn within_idle(millis: u64, request: pb::RunTurnRequest) -> pb::RunTurnRequest {
    let turn_options = timeout(None, Some(Duration::from_millis(millis)));
    pb::RunTurnRequest { turn_options, ..request }
}

/// From one event to another, by the sidecar's own clock.
fn between(first: &pb::TurnEvent, last: &pb::TurnEvent) -> Duration {
    let at = |event: &pb::TurnEvent| SystemTime::try_from(event.emitted_at.unwrap()).unwrap();
    at(last).duration_since(at(first)).unwrap()
}

fn whole(told: &Told) -> Duration {
    between(told.events.first().unwrap(), told.events.last().unwrap())
}

#[tokio::test]
async fn a_provider_out_of_reach_ends_the_turn_in_time_and_the_worker_serves_the_next() {
    // Nobody listens there, for now.
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let sidecar = Sidecar::in_place(Place::new(), |_, config| {
        let provider = toml::from_str(&format!(
            "base_url = \"http://{address}/v1\"\nrequest_max_retries = 100\nstream_max_retries = 100"
        ));
        let provider: toml::Table = provider.unwrap();
        let providers = config.worker.config["model_providers"]["offline"].as_table_mut();
        providers.unwrap().extend(provider);
        quiet(config);
    })
    .await;
    let before = sidecar.workers().await;

    let called = SystemTime::now();
    let told = sidecar.run(within_turn(2000, prompt("a", "hello"))).await;
    let error = told.failed();
    assert_eq!(error.reason, "TURN_TIMEOUT", "{error:#?}");
    assert!(!error.retryable && !error.side_effects_possible, "{error:#?}");
    let took = whole(&told);
    let ended = told.events.last().unwrap().emitted_at.unwrap();
    let since_call = SystemTime::try_from(ended).unwrap().duration_since(called).unwrap();
    println!(
        "turn_failed{{TURN_TIMEOUT}} {took:?} after the first event, {since_call:?} after the call"
    );
    let least = Duration::from_millis(2000);
    assert!(since_call >= least && since_call < least + SLACK, "{since_call:?}");

    let model = OfflineModel::start(address).await.expect("the port is still free");
    let next = sidecar.run(within_turn(30_000, prompt("a", "are you there?"))).await;
    assert_eq!(next.thread_id(), told.thread_id());
    assert_eq!(next.final_response(), "You said: are you there? (user messages so far: 2)");
    let after = sidecar.workers().await;
    assert_eq!((after[0].pid, after[0].generation), (before[0].pid, before[0].generation));
    sidecar.stop().await;
    model.shutdown().await;
}

#[tokio::test]
async fn the_real_cli_ends_a_turn_that_is_idle_or_interrupted_at_any_moment() {
    let sidecar = Sidecar::with(quiet).await;
    let told = sidecar.run(within_idle(500, prompt("a", "[[hang]]"))).await;
    assert_eq!(told.failed().reason, "IDLE_TIMEOUT");
    assert!(told.failed().retryable);

    // An interruption is not lost, however early it comes.
    for pause in [0, 1, 5, 20, 60] {
        let mut turn = sidecar.begin(prompt("a", "[[hang]]")).await;
        let turn_id = turn.try_next().await.unwrap().unwrap().turn_id;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let began = Instant::now();
        sidecar.interrupt(&turn_id).await.unwrap();
        println!("interrupted {pause} ms after its first event: over after {:?}", began.elapsed());
        assert_eq!(turn.rest().await.interrupted(), pb::InterruptReason::InterruptRequested);
    }
    assert_eq!(sidecar.workers().await[0].generation, 1);
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

async fn begin_by(
    sidecar: &Sidecar,
    deadline: Duration,
    request: pb::RunTurnRequest,
) -> Result<Turn, tonic::Status> {
    let mut request = Request::new(sidecar.at_work(request));
    request.set_timeout(deadline);
    Ok(Turn::new(sidecar.codex().run_turn(request).await?.into_inner()))
}

#[tokio::test]
async fn a_deadline_ends_the_stream_and_by_the_policy_the_turn() {
    let sidecar = Sidecar::with(quiet).await;
    // Long enough for a turn to begin.
    let deadline = Duration::from_secs(4);
    let began = Instant::now();
    let mut turn = begin_by(&sidecar, deadline, prompt("a", "[[hang]]")).await.unwrap();
    turn.started().await;
    let watching = sidecar.attach(by_context("a"), 0).await;
    turn.rest_fails().await.assert(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    let took = began.elapsed();
    println!("DEADLINE_EXCEEDED {took:?} after the call, whose deadline was {deadline:?}");
    assert!(took + Duration::from_millis(50) > deadline && took < deadline + SLACK, "{took:?}");
    let seen = watching.rest().await;
    assert!(
        matches!(&seen.last().unwrap().event, Some(Event::TurnInterrupted(interrupted))
        if interrupted.reason() == pb::InterruptReason::DeadlineExceeded),
        "{seen:#?}"
    );

    let outliving = pb::RunTurnRequest {
        disconnect_policy: pb::DisconnectPolicy::Continue.into(),
        ..prompt("a", "[[wait 8s]] [[say done]]")
    };
    let mut turn = begin_by(&sidecar, deadline, outliving).await.unwrap();
    let turn_id = turn.started().await;
    turn.rest_fails().await.assert(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    let seen = sidecar.attach(by_id(&turn_id), 0).await.rest().await;
    assert!(matches!(&seen.last().unwrap().event, Some(Event::TurnCompleted(completed))
        if completed.final_response == "done"));

    // In the queue, before any event of its own but its place.
    let mut busy = sidecar.begin(prompt("a", "[[hang]]")).await;
    let busy_id = busy.started().await;
    let mut queued = begin_by(&sidecar, Duration::from_secs(2), prompt("a", "x")).await.unwrap();
    queued.rest_fails().await.assert(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    eventually("an empty queue", || async {
        (sidecar.counts().await.queued_turns == 0).then_some(())
    })
    .await;

    // Attached streams and unary calls have theirs, too.
    let mut request =
        Request::new(pb::AttachTurnRequest { target: Some(by_id(&busy_id)), after_sequence: 0 });
    request.set_timeout(Duration::from_secs(2));
    let mut watching = sidecar.codex().attach_turn(request).await.unwrap().into_inner();
    let status = loop {
        match watching.message().await {
            Ok(event) => drop(event.expect("no end")),
            Err(status) => break status,
        }
    };
    Refused::from(status).assert(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    sidecar.interrupt(&busy_id).await.unwrap();
    assert_eq!(busy.rest().await.interrupted(), pb::InterruptReason::InterruptRequested);
    sidecar.stop().await;
}

/// The deadline of a call that nobody can answer before it: while a thread is being opened.
#[tokio::test]
async fn a_deadline_before_the_first_event_is_told_as_one() {
    let sidecar = scripted::start().await;
    scripted::set_faults(&sidecar, &json!({ "delays": { "thread/start": "2s" } }));
    let began = Instant::now();
    let deadline = Duration::from_millis(500);
    let refused = match begin_by(&sidecar, deadline, prompt("a", "hello")).await {
        Err(status) => Refused::from(status),
        Ok(mut turn) => turn.rest_fails().await,
    };
    refused.assert(Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert!(began.elapsed() < deadline + SLACK, "{:?}", began.elapsed());
    eventually("nothing left", || async {
        (sidecar.counts().await.running_turns == 0).then_some(())
    })
    .await;
    // The thread comes late, to nobody.
    sidecar.say("a", "hello").await.completed();
    sidecar.stop().await;
}

/// A client that reads nothing has its turn interrupted at its deadline all the same.
#[tokio::test]
async fn a_deadline_counts_also_where_nobody_reads() {
    let sidecar = scripted::start().await;
    let deadline = Duration::from_secs(4);
    // More than fits into the windows of the connection.
    let request = prompt("a", "[[items 40 65536]] [[hang]]");
    let _unread = begin_by(&sidecar, deadline, request).await.unwrap();
    let seen = sidecar.attach(by_context("a"), 0).await.rest().await;
    assert!(
        matches!(&seen.last().unwrap().event, Some(Event::TurnInterrupted(interrupted))
        if interrupted.reason() == pb::InterruptReason::DeadlineExceeded),
        "{:#?}",
        seen.last()
    );
    sidecar.stop().await;
}

#[tokio::test]
async fn the_servers_defaults_and_maxima_hold() {
    let sidecar = scripted::with(|config| {
        config.timeouts.turn = Some(Duration::from_secs(4));
        config.timeouts.max_turn = Some(Duration::from_secs(60));
        config.timeouts.max_idle = Some(Duration::from_secs(2));
    })
    .await;
    let too_long = sidecar.refused(within_turn(60_001, prompt("a", "hello"))).await;
    too_long.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert_eq!(too_long.field_paths(), ["turn_options.turn_timeout"]);
    let too_long = sidecar.refused(within_idle(2001, prompt("a", "hello"))).await;
    assert_eq!(too_long.field_paths(), ["turn_options.idle_timeout"]);

    // The default, and the maximum where there is no default.
    let told = sidecar.run(prompt("a", "[[words 1000]] [[slow 50]]")).await;
    assert_eq!(told.failed().reason, "TURN_TIMEOUT");
    let told = sidecar.run(prompt("a", "[[hang]]")).await;
    assert_eq!(told.failed().reason, "IDLE_TIMEOUT");
    let told = sidecar.run(within_turn(60_000, prompt("a", "[[words 100]] [[slow 50]]"))).await;
    told.completed();
    sidecar.stop().await;
}
