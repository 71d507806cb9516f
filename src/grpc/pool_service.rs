//! `PoolService`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};

use crate::config::{Config, key_fingerprint};
use crate::pb;
use crate::pb::pool_service_server::PoolService;
use crate::pool::{Readiness, SlotState, SlotStatus, Trouble};
use crate::process;
use crate::turn::engine::{DrainState, Engine};

/// The implementation over an engine.
#[derive(Debug, Clone)]
pub struct PoolApi {
    engine: Arc<Engine>,
    config: Arc<Config>,
    started_at: SystemTime,
}

impl PoolApi {
    /// Serves this engine, which started with this configuration.
    pub fn new(engine: Arc<Engine>, config: Arc<Config>) -> PoolApi {
        PoolApi { engine, config, started_at: SystemTime::now() }
    }
}

#[tonic::async_trait]
impl PoolService for PoolApi {
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
        let readiness = engine.pool().readiness().borrow().clone();
        let drain = engine.drain_state();
        let (ready, not_ready_reason, not_ready_message) = match (drain, readiness) {
            (DrainState::Serving, Readiness::Ready) => (true, "", String::new()),
            (DrainState::Serving, Readiness::NotReady { kind, cause }) => {
                (false, code(kind), cause)
            }
            (DrainState::Draining | DrainState::Interrupting, _) => {
                (false, "DRAINING", "the sidecar shuts down and takes no new turns".to_owned())
            }
        };
        let ready_worker =
            engine.pool().status().into_iter().find_map(|status| match status.state {
                SlotState::Ready(worker) => Some(worker),
                SlotState::Starting
                | SlotState::Unresponsive(_)
                | SlotState::Backoff { .. }
                | SlotState::Stopped => None,
            });
        let drain_state = match drain {
            DrainState::Serving => pb::DrainState::Serving,
            DrainState::Draining => pb::DrainState::Draining,
            DrainState::Interrupting => pb::DrainState::Interrupting,
        };
        Ok(Response::new(pb::GetServerInfoResponse {
            sidecar_version: env!("CARGO_PKG_VERSION").to_owned(),
            cli_version: ready_worker
                .as_ref()
                .map(|worker| worker.cli_version().to_owned())
                .unwrap_or_default(),
            codex_path: (self.config.codex_path.as_ref())
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            codex_home: self.config.codex_home.display().to_string(),
            ready,
            not_ready_reason: not_ready_reason.to_owned(),
            not_ready_message,
            drain_state: drain_state.into(),
            limits: Some(limits(&self.config)),
            counts: Some(self.counts()),
            start_time: Some(self.started_at.into()),
            offline_model: self.config.offline_model,
            api_key_fingerprint: (self.config.api_key.as_ref())
                .map(|key| key_fingerprint(key.secret.expose_secret()))
                .unwrap_or_default(),
            settings_verified: ready_worker
                .as_ref()
                .is_some_and(|worker| worker.defaults().tells_settings),
            openai_base_url: ready_worker
                .and_then(|worker| worker.defaults().config.openai_base_url)
                .unwrap_or_default(),
        }))
    }
}

impl PoolApi {
    fn counts(&self) -> pb::ServerCounts {
        let engine = &self.engine;
        let ready = engine.pool().status().into_iter();
        let ready = ready.filter(|status| matches!(status.state, SlotState::Ready(_))).count();
        pb::ServerCounts {
            running_turns: count(engine.admission().running()),
            queued_turns: count(engine.admission().waiting()),
            retained_turns: engine.directory().len() as u64,
            retained_bytes: engine.directory().retained().bytes(),
            contexts: engine.registry().len() as u64,
            ready_workers: count(ready),
        }
    }
}

fn code(trouble: Trouble) -> &'static str {
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
            worker.pid = running.pid();
            worker.start_time = Some(running.started_at().into());
            worker.loaded_threads = count(running.loaded_threads());
            worker.running_turns = count(running.running_turns());
            worker.turns_started = running.started_turns();
            worker.resident_memory_bytes = process::resident_bytes(running.pid()).unwrap_or(0);
            worker.cli_version = running.cli_version().to_owned();
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
        SlotState::Stopped => pb::WorkerState::Stopping,
    };
    worker.state = state.into();
    worker
}

fn limits(config: &Config) -> pb::ServerLimits {
    let duration =
        |duration: Option<Duration>| duration.and_then(|duration| duration.try_into().ok());
    let timeouts = &config.timeouts;
    pb::ServerLimits {
        max_request_bytes: config.limits.max_message_bytes as u64,
        max_input_characters: config.limits.max_input_characters as u64,
        max_codex_line_bytes: config.limits.max_line_bytes as u64,
        max_running_turns: count(config.limits.max_running_turns),
        max_queued_turns: count(config.limits.max_waiting_turns),
        max_queued_turns_per_context: count(config.limits.max_waiting_turns_per_context),
        max_contexts: 0,
        max_retained_bytes_per_turn: config.retention.max_bytes_per_turn as u64,
        max_retained_bytes: config.retention.max_bytes as u64,
        event_retention: duration(Some(config.retention.after_end)),
        default_idle_timeout: duration(timeouts.idle),
        max_idle_timeout: duration(timeouts.max_idle),
        default_turn_timeout: duration(timeouts.turn),
        max_turn_timeout: duration(timeouts.max_turn),
        default_answer_timeout: duration(Some(timeouts.answer)),
        max_answer_timeout: duration(timeouts.max_answer),
        drain_grace: duration(Some(config.drain_grace)),
        workers: count(config.workers),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
