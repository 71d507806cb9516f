//! A whole sidecar in memory, for tests: the gRPC services over an engine and a pool whose workers are
//! played by the test ([`Codex`]). There is no network, no process and, on a paused clock, no waiting.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures::StreamExt as _;
use prost::Message as _;
use tokio::sync::{Mutex, mpsc};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::grpc::api::RunTurnResponse;
use crate::grpc::api::codex_service_server::CodexService as _;
use crate::grpc::codex_service::CodexApi;
use crate::grpc::limits::RequestLimits;
use crate::grpc::stream::EventStream;
use crate::pb;
use crate::pb::turn_event::Event;
use crate::pool::{Pool, PoolSettings};
use crate::registry::bindings::Bindings;
use crate::turn::admission::{Admission, AdmissionLimits};
use crate::turn::engine::{Engine, EngineSettings};
use crate::turn::retention::Retention;
use crate::turn::timeouts::Timeouts;
use crate::turn::turns::Turns;
use crate::worker::WorkerSpec;
use crate::worker::testing::{self, Codex};

/// What a sidecar is made of.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) spec: WorkerSpec,
    pub(crate) workers: usize,
    pub(crate) pool: PoolSettings,
    pub(crate) limits: AdmissionLimits,
    pub(crate) retention: Retention,
    pub(crate) timeouts: Timeouts,
}

/// A sidecar.
#[derive(Debug)]
pub(crate) struct Sidecar {
    pub(crate) api: CodexApi,
    pub(crate) engine: Arc<Engine>,
    launched: Mutex<mpsc::UnboundedReceiver<Codex>>,
    work: tempfile::TempDir,
}

/// One with one worker that is warm, all by default, and that worker's other side.
pub(crate) async fn sidecar() -> (Sidecar, Codex) {
    sidecar_with(|_| {}).await
}

/// The same with another setup, of one worker.
pub(crate) async fn sidecar_with(change: impl FnOnce(&mut Setup)) -> (Sidecar, Codex) {
    let sidecar = Sidecar::start(change);
    let mut codex = sidecar.codex().await;
    codex.during(sidecar.is_ready()).await;
    (sidecar, codex)
}

impl Sidecar {
    /// One whose workers are being started.
    pub(crate) fn start(change: impl FnOnce(&mut Setup)) -> Sidecar {
        let (launch, launched) = testing::launcher();
        let mut setup = Setup {
            spec: testing::spec(launch),
            workers: 1,
            pool: PoolSettings::default(),
            limits: AdmissionLimits::default(),
            retention: Retention::default(),
            timeouts: Timeouts::default(),
        };
        change(&mut setup);
        let Setup { spec, workers, pool, limits, retention, timeouts } = setup;
        let work = tempfile::tempdir().unwrap();
        let default_directory = work.path().canonicalize().unwrap();
        let engine = Engine::new(
            Pool::start(spec, workers, pool),
            Bindings::default(),
            Arc::new(Turns::new(&retention)),
            Admission::new(limits),
            EngineSettings { default_directory, timeouts: timeouts.clone() },
        );
        let requests = RequestLimits::default();
        let api = CodexApi::new(Arc::clone(&engine), Default::default(), requests, timeouts);
        Sidecar { api, engine, launched: Mutex::new(launched), work }
    }

    /// The other side of the next worker that is launched; it has not shaken hands.
    pub(crate) async fn codex(&self) -> Codex {
        self.launched.lock().await.recv().await.unwrap()
    }

    /// Waits until turns are taken.
    pub(crate) async fn is_ready(&self) {
        let mut readiness = self.engine.pool().readiness();
        let ready = |readiness: &_| *readiness == crate::pool::Readiness::Ready;
        readiness.wait_for(ready).await.unwrap();
    }

    /// Where its turns work that say nothing else.
    pub(crate) fn work(&self) -> PathBuf {
        self.work.path().canonicalize().unwrap()
    }

    /// Begins a turn: returns when it has told something.
    pub(crate) async fn begin(&self, mut request: pb::RunTurnRequest) -> Result<Turn, Refused> {
        request.thread_options.get_or_insert_default().skip_git_repo_check.get_or_insert(true);
        let response = self.api.run_turn(Request::new(request)).await.map_err(Refused::from)?;
        Ok(Turn { stream: response.into_inner(), events: Vec::new() })
    }

    /// Runs a turn to its terminal event.
    pub(crate) async fn run(&self, request: pb::RunTurnRequest) -> Turn {
        let mut turn = self.begin(request).await.unwrap();
        turn.rest().await;
        turn
    }

    /// Runs a turn of a context with nothing but this prompt.
    pub(crate) async fn say(&self, context: &str, words: &str) -> Turn {
        self.run(prompt(context, words)).await
    }

    /// Runs a turn that must be refused.
    pub(crate) async fn refused(&self, request: pb::RunTurnRequest) -> Refused {
        let mut turn = match self.begin(request).await {
            Ok(turn) => turn,
            Err(refused) => return refused,
        };
        while let Some(read) = turn.next().await.transpose() {
            if let Err(refused) = read {
                return refused;
            }
        }
        panic!("not refused: {:#?}", turn.events)
    }
}

/// What comes of `other` while `call` is not answered.
pub(crate) async fn meanwhile<C: Future, T>(
    call: Pin<&mut C>,
    other: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        _ = call => panic!("it was answered"),
        value = other => value,
    }
}

/// A turn of a context that says these words.
pub(crate) fn prompt(context: &str, words: &str) -> pb::RunTurnRequest {
    let text = pb::user_input::Input::Text(words.to_owned());
    pb::RunTurnRequest {
        context_id: context.to_owned(),
        inputs: vec![pb::UserInput { input: Some(text) }],
        ..Default::default()
    }
}

/// A turn, and what was read of it.
pub(crate) struct Turn {
    stream: EventStream<RunTurnResponse>,
    pub(crate) events: Vec<pb::TurnEvent>,
}

impl Turn {
    async fn next(&mut self) -> Result<Option<()>, Refused> {
        let Some(read) = self.stream.next().await.transpose()? else { return Ok(None) };
        self.events.push(pb::TurnEvent::decode(read.event).unwrap());
        Ok(Some(()))
    }

    /// Reads on until an event of this kind.
    pub(crate) async fn until(&mut self, kind: &str) {
        while self.kinds().last() != Some(&kind) {
            if self.next().await.unwrap().is_none() {
                panic!("the turn ended before {kind}: {:#?}", self.events);
            }
        }
    }

    /// Reads to the end.
    pub(crate) async fn rest(&mut self) {
        while self.next().await.unwrap().is_some() {}
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter_map(|event| event.event.as_ref())
    }

    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.all().map(kind_of).collect()
    }

    pub(crate) fn thread_started(&self) -> &pb::ThreadStarted {
        let started = self.all().find_map(|event| match event {
            Event::ThreadStarted(started) => Some(started),
            _ => None,
        });
        started.unwrap_or_else(|| panic!("no thread_started: {:#?}", self.events))
    }

    pub(crate) fn thread_id(&self) -> &str {
        &self.thread_started().thread_id
    }

    pub(crate) fn terminal(&self) -> &Event {
        self.all().last().unwrap()
    }

    pub(crate) fn completed(&self) -> &pb::TurnCompleted {
        match self.terminal() {
            Event::TurnCompleted(completed) => completed,
            _ => panic!("not completed: {:#?}", self.events),
        }
    }

    pub(crate) fn final_response(&self) -> &str {
        &self.completed().final_response
    }

    pub(crate) fn failed(&self) -> &pb::TurnError {
        match self.terminal() {
            Event::TurnFailed(pb::TurnFailed { error: Some(error), .. }) => error,
            _ => panic!("not failed: {:#?}", self.events),
        }
    }

    pub(crate) fn warnings(&self) -> Vec<&pb::Warning> {
        let warnings = self.all().filter_map(|event| match event {
            Event::Warning(warning) => Some(warning),
            _ => None,
        });
        warnings.collect()
    }

    /// The words of the warnings with this code.
    pub(crate) fn warned(&self, code: &str) -> Vec<&str> {
        let warnings = self.warnings().into_iter().filter(|warning| warning.code == code);
        warnings.map(|warning| warning.message.as_str()).collect()
    }
}

fn kind_of(event: &Event) -> &'static str {
    match event {
        Event::AgentMessageDelta(_) => "agent_message_delta",
        Event::ReasoningDelta(_) => "reasoning_delta",
        Event::CommandOutputDelta(_) => "command_output_delta",
        Event::ItemStarted(_) => "item_started",
        Event::ItemUpdated(_) => "item_updated",
        Event::ItemCompleted(_) => "item_completed",
        Event::Queued(_) => "queued",
        Event::ThreadStarted(_) => "thread_started",
        Event::TurnStarted(_) => "turn_started",
        Event::TurnDiffUpdated(_) => "turn_diff_updated",
        Event::TokenUsageUpdated(_) => "token_usage_updated",
        Event::ThreadError(_) => "thread_error",
        Event::Warning(_) => "warning",
        Event::McpServerStatus(_) => "mcp_server_status",
        Event::RequestRaised(_) => "request_raised",
        Event::RequestResolved(_) => "request_resolved",
        Event::Gap(_) => "gap",
        Event::Raw(_) => "raw",
        Event::TurnCompleted(_) => "turn_completed",
        Event::TurnFailed(_) => "turn_failed",
        Event::TurnInterrupted(_) => "turn_interrupted",
    }
}

/// A call that ended with a status, taken apart.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    pub(crate) reason: String,
    pub(crate) retry_after: Option<std::time::Duration>,
    pub(crate) message: String,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        let details = status.get_error_details();
        Refused {
            code: status.code(),
            reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            message: status.message().to_owned(),
        }
    }
}

impl Refused {
    pub(crate) fn assert(&self, code: Code, reason: &str) {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{self:#?}");
    }
}
