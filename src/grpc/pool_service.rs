//! `PoolService`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};

use crate::grpc::api::pool_service_server::PoolService;
use crate::grpc::deadline;
use crate::grpc::limits::{ConnectionLimits, RequestLimits};
use crate::model::refusal::Refusal;
use crate::model::request::QuestionPolicy;
use crate::pb;
use crate::pool::{self, PoolSettings, SlotState, SlotStatus};
use crate::registry::ledger::export::ExportEnd;
use crate::registry::ledger::{self, Durability, Ledger};
use crate::turn::admission::AdmissionLimits;
use crate::turn::contexts::ContextLimits;
use crate::turn::engine::readiness::{NotReady, Trouble};
use crate::turn::engine::{DrainState, Engine, LEDGER_RETRY_AFTER};
use crate::turn::pixels::{MAX_DECODED_IMAGES_BYTES, MAX_IMAGE_PIXELS, MAX_IMAGES_BYTES};
use crate::turn::quota::QuotaLimits;
use crate::turn::readers::ReaderLimits;
use crate::turn::retention::Retention;
use crate::turn::timeouts::Timeouts;

/// What the sidecar was started with, as far as clients are told.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// The CLI as it is configured, if it is.
    pub codex_path: Option<PathBuf>,
    /// CODEX_HOME of the workers.
    pub codex_home: PathBuf,
    /// Whether the built-in model answers.
    pub offline_model: bool,
    /// What tells the provider's key from others, if there is one.
    pub api_key_fingerprint: Option<String>,
    /// How many workers are kept.
    pub workers: usize,
    /// How they are kept.
    pub pool: PoolSettings,
    /// How long running turns may go on in a drain.
    pub drain_grace: Duration,
    /// How many turns run and wait.
    pub admission: AdmissionLimits,
    /// How much is run in a while.
    pub quotas: QuotaLimits,
    /// What one request may hold.
    pub requests: RequestLimits,
    /// What clients may hold open.
    pub connections: ConnectionLimits,
    /// The longest line of a worker, in bytes.
    pub max_line_bytes: usize,
    /// What is kept of turns.
    pub retention: Retention,
    /// How many streams of turns' events may be open.
    pub readers: ReaderLimits,
    /// How many contexts are kept, and how long.
    pub contexts: ContextLimits,
    /// The clocks of turns.
    pub timeouts: Timeouts,
    /// How many connections were let in of which it is not known who made them.
    pub peers_unidentified: Arc<AtomicU64>,
}

/// The implementation over an engine.
#[derive(Debug, Clone)]
pub(crate) struct PoolApi {
    engine: Arc<Engine>,
    setup: Arc<Setup>,
    started_at: SystemTime,
}

impl PoolApi {
    /// Serves this engine.
    pub(crate) fn new(engine: Arc<Engine>, setup: Setup) -> PoolApi {
        PoolApi { engine, setup: Arc::new(setup), started_at: SystemTime::now() }
    }
}

#[tonic::async_trait]
impl PoolService for PoolApi {
    type ExportStateStream = BoxStream<'static, Result<pb::ExportStateResponse, Status>>;

    async fn export_state(
        &self,
        request: Request<pb::ExportStateRequest>,
    ) -> Result<Response<Self::ExportStateStream>, Status> {
        let pb::ExportStateRequest {} = request.into_inner();
        let export = self.engine.ledger().export().await.map_err(unreadable)?;
        let parts = export.ok_or(Refusal::StateInMemory)?;
        let parts = parts.map(|part| match part {
            Ok(lines) => Ok(pb::ExportStateResponse { lines: lines.into() }),
            Err(ExportEnd::Trouble(trouble)) => Err(unreadable(trouble).into()),
            Err(ExportEnd::Unread(patience)) => Err(Refusal::StateUnread(patience).into()),
        });
        Ok(Response::new(parts.boxed()))
    }

    async fn list_models(
        &self,
        request: Request<pb::ListModelsRequest>,
    ) -> Result<Response<pb::ListModelsResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let pb::ListModelsRequest { include_hidden } = request.into_inner();
        let models = deadline::answer(deadline, self.engine.models()).await?;
        let shown = models.iter().filter(|model| include_hidden || !model.hidden);
        Ok(Response::new(pb::ListModelsResponse { models: shown.cloned().collect() }))
    }

    async fn list_workers(
        &self,
        request: Request<pb::ListWorkersRequest>,
    ) -> Result<Response<pb::ListWorkersResponse>, Status> {
        let pb::ListWorkersRequest {} = request.into_inner();
        let workers = self.engine.pool().status();
        let workers = workers.into_iter().enumerate().map(|(index, status)| worker(index, &status));
        Ok(Response::new(pb::ListWorkersResponse { workers: workers.collect() }))
    }

    async fn get_server_info(
        &self,
        request: Request<pb::GetServerInfoRequest>,
    ) -> Result<Response<pb::GetServerInfoResponse>, Status> {
        let pb::GetServerInfoRequest {} = request.into_inner();
        let engine = &self.engine;
        let readiness = engine.readiness().now();
        let drain = engine.drain_state();
        let (ready, not_ready_reason, not_ready_message) = match (drain, readiness) {
            (DrainState::Serving, Ok(())) => (true, "", String::new()),
            (DrainState::Serving, Err(NotReady { kind: Trouble::Ledger, cause })) => {
                (false, "LEDGER_UNAVAILABLE", cause)
            }
            (DrainState::Serving, Err(NotReady { kind: Trouble::Pool(kind), cause })) => {
                (false, code(kind), cause)
            }
            (DrainState::Draining | DrainState::Interrupting, _) => {
                (false, "DRAINING", "the sidecar shuts down and takes no new turns".to_owned())
            }
        };
        let slots = engine.pool().status();
        let ready_worker =
            slots.iter().find_map(|slot| slot.state.ready()).map(|ready| &ready.worker);
        let drain_state = match drain {
            DrainState::Serving => pb::DrainState::Serving,
            DrainState::Draining => pb::DrainState::Draining,
            DrainState::Interrupting => pb::DrainState::Interrupting,
        };
        Ok(Response::new(pb::GetServerInfoResponse {
            sidecar_version: env!("CARGO_PKG_VERSION").to_owned(),
            cli_version: ready_worker
                .map(|worker| worker.cli_version().to_owned())
                .unwrap_or_default(),
            codex_path: (self.setup.codex_path.as_ref())
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            codex_home: self.setup.codex_home.display().to_string(),
            ready,
            not_ready_reason: not_ready_reason.to_owned(),
            not_ready_message,
            drain_state: drain_state.into(),
            limits: Some(limits(&self.setup)),
            counts: Some(self.counts()),
            start_time: Some(self.started_at.into()),
            offline_model: self.setup.offline_model,
            api_key_fingerprint: self.setup.api_key_fingerprint.clone().unwrap_or_default(),
            settings_verified: ready_worker.is_some_and(|worker| worker.defaults().tells_settings),
            state: state(engine.ledger()),
            openai_base_url: ready_worker
                .and_then(|worker| worker.defaults().config.openai_base_url.clone())
                .unwrap_or_default(),
        }))
    }
}

impl PoolApi {
    fn counts(&self) -> pb::ServerCounts {
        let engine = &self.engine;
        let ready = engine.pool().status().into_iter();
        let ready = ready.filter(|slot| slot.state.ready().is_some()).count();
        pb::ServerCounts {
            running_turns: count(engine.admission().running()),
            queued_turns: count(engine.admission().waiting()),
            retained_turns: engine.turns().len() as u64,
            retained_bytes: engine.turns().retained().bytes(),
            contexts: engine.contexts().count() as u64,
            ready_workers: count(ready),
            peers_unidentified: self.setup.peers_unidentified.load(Ordering::Relaxed),
            tokens_today: engine.quotas().tokens_today(),
        }
    }
}

fn unreadable(ledger::Trouble { cause }: ledger::Trouble) -> Refusal {
    Refusal::StateUnreadable { cause, retry_after: LEDGER_RETRY_AFTER }
}

fn state(ledger: &Ledger) -> Option<pb::StateInfo> {
    let (path, durability) = ledger.path().zip(ledger.durability())?;
    let durability = match durability {
        Durability::Power => pb::StateDurability::Power,
        Durability::Process => pb::StateDurability::Process,
    };
    let bytes = path.metadata().map_or(0, |metadata| metadata.len());
    let path = path.display().to_string();
    Some(pb::StateInfo { path, durability: durability.into(), bytes })
}

fn code(trouble: pool::Trouble) -> &'static str {
    use pool::Trouble;
    match trouble {
        Trouble::Starting => "STARTING",
        Trouble::CodexNotFound => "CODEX_NOT_FOUND",
        Trouble::CodexTooOld => "CODEX_TOO_OLD",
        Trouble::CodexUnusable => "CODEX_UNUSABLE",
        Trouble::HomeUnusable => "CODEX_HOME_UNUSABLE",
        Trouble::ConfigInvalid => "CODEX_CONFIG_INVALID",
        Trouble::OutOfResources => "OUT_OF_RESOURCES",
        Trouble::WorkersFailing => "WORKERS_FAILING",
        Trouble::Stopped => "DRAINING",
    }
}

fn worker(index: usize, status: &SlotStatus) -> pb::Worker {
    let SlotStatus { state, generation, failures: _, last_failure } = status;
    let mut worker = pb::Worker {
        worker_id: format!("w{index}"),
        generation: *generation,
        restarts: generation.saturating_sub(1),
        last_error: last_failure
            .as_ref()
            .map(|failure| failure.message.clone())
            .unwrap_or_default(),
        ..pb::Worker::default()
    };
    let state = match state {
        SlotState::Starting => pb::WorkerState::Starting,
        SlotState::Ready(running) | SlotState::Unresponsive(running) => {
            let process = &running.worker;
            worker.pid = process.pid().unwrap_or_default();
            worker.start_time = Some(process.started_at().into());
            worker.loaded_threads = count(process.loaded_threads());
            worker.running_turns = count(running.running_turns());
            worker.turns_started = running.started_turns();
            worker.resident_memory_bytes = process.resident_bytes().unwrap_or(0);
            worker.cli_version = process.cli_version().to_owned();
            match state {
                SlotState::Unresponsive(_) => pb::WorkerState::Unresponsive,
                _ => pb::WorkerState::Ready,
            }
        }
        SlotState::Backoff { until } => {
            let pause = until.saturating_duration_since(tokio::time::Instant::now());
            worker.next_start_time = Some((SystemTime::now() + pause).into());
            pb::WorkerState::Backoff
        }
        SlotState::Asleep => pb::WorkerState::Asleep,
        SlotState::Stopped => pb::WorkerState::Stopping,
    };
    worker.state = state.into();
    worker
}

fn limits(setup: &Setup) -> pb::ServerLimits {
    let Setup {
        admission,
        quotas,
        requests,
        connections,
        retention,
        readers,
        contexts,
        timeouts,
        pool,
        ..
    } = setup;
    let duration =
        |duration: Option<Duration>| duration.and_then(|duration| duration.try_into().ok());
    pb::ServerLimits {
        max_request_bytes: requests.max_message_bytes as u64,
        max_input_characters: requests.max_input_characters as u64,
        max_codex_line_bytes: setup.max_line_bytes as u64,
        max_running_turns: count(admission.max_running_turns),
        max_queued_turns: count(admission.max_waiting_turns),
        max_queued_turns_per_context: count(admission.max_waiting_turns_per_context),
        max_contexts: contexts.max_contexts as u64,
        context_ttl: duration(contexts.context_ttl),
        evict_contexts: contexts.evict_contexts,
        max_retained_bytes_per_turn: retention.max_bytes_per_turn as u64,
        max_retained_bytes: retention.max_bytes as u64,
        event_retention: duration(Some(retention.after_end)),
        default_idle_timeout: duration(timeouts.default_idle()),
        max_idle_timeout: duration(timeouts.max_idle),
        tool_timeout: duration(timeouts.tool),
        default_turn_timeout: duration(timeouts.default_turn()),
        max_turn_timeout: duration(timeouts.max_turn),
        default_answer_timeout: duration(Some(timeouts.answer_under(QuestionPolicy::Decline))),
        default_ask_timeout: duration(Some(timeouts.answer_under(QuestionPolicy::Ask))),
        max_answer_timeout: duration(timeouts.max_answer),
        drain_grace: duration(Some(setup.drain_grace)),
        workers: count(setup.workers),
        max_idle_threads: pool.max_idle_threads.map(|most| most as u64),
        max_resident_bytes: pool.max_resident_bytes,
        max_connections: count(connections.max_connections),
        max_handshakes: count(connections.max_handshakes),
        max_streams_per_connection: connections.max_streams_per_connection,
        request_timeout: duration(Some(connections.request_timeout)),
        max_image_pixels: MAX_IMAGE_PIXELS,
        max_images_bytes: MAX_IMAGES_BYTES,
        max_decoded_images_bytes: MAX_DECODED_IMAGES_BYTES,
        max_readers: count(readers.max_readers),
        max_readers_per_turn: count(readers.max_readers_per_turn),
        turns_per_minute: quotas.turns_per_minute,
        tokens_per_day: quotas.tokens_per_day,
        stop_when_idle: duration(pool.stop_when_idle),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
