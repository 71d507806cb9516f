//! The house of one tenant: all that serves its callers, and nobody else's.
//!
//! CODEX_HOME with its lock, ledger, workers, engine and services of its own. Two houses share no lock, no
//! queue and no count, and neither can name what is in the other.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;

use super::StartError;
use super::home_lock::HomeLock;
use super::worker_spec::worker_spec;
use crate::config::{Config, key_fingerprint};
use crate::grpc::api::codex_service_server::CodexServiceServer;
use crate::grpc::api::pool_service_server::PoolServiceServer;
use crate::grpc::codex_service::CodexApi;
use crate::grpc::pool_service::{PoolApi, Setup};
use crate::grpc::stream::EventBodies;
use crate::grpc::when_read::WhenRead;
use crate::model::id::Tenant;
use crate::offline_model::OfflineModel;
use crate::pb;
use crate::pool::Pool;
use crate::process;
use crate::registry::ledger::Ledger;
use crate::turn::admission::Admission;
use crate::turn::engine::{Engine, EngineSettings};
use crate::turn::turns::Turns;

/// How long the ends of the last turns may take to be written down: a disk that hangs must not keep the
/// sidecar.
const KEEP_GRACE: Duration = Duration::from_secs(10);

/// What serves one tenant. To be ended with [`House::end`].
pub(super) struct House {
    home_lock: Option<Arc<HomeLock>>,
    offline_model: Mutex<Option<OfflineModel>>,
    pool: Arc<Pool>,
    engine: Arc<Engine>,
    routes: Routes,
    _sweeping: AbortOnDropHandle<()>,
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("House").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// Has CODEX_HOME of this configuration for this sidecar alone, unless it may be shared.
///
/// # Errors
/// [`StartError::HomeInUse`].
pub(super) async fn lock(config: &Config) -> Result<Option<Arc<HomeLock>>, StartError> {
    if config.share_codex_home {
        return Ok(None);
    }
    let home = config.codex_home.clone();
    let taken = HomeLock::take(&home).await;
    let taken = taken.map_err(|owner| {
        let share = match config.tenant == Tenant::default() {
            true => "--share-codex-home".to_owned(),
            false => format!("share_codex_home in [tenants.{}]", config.tenant.0),
        };
        StartError::HomeInUse { home, owner, share }
    })?;
    Ok(Some(Arc::new(taken)))
}

impl House {
    /// Starts all of it; returns when it serves, which is before it is ready. `addresses` is where the
    /// sidecar listens, for the lock to tell; `spawned` is told of each worker;
    /// `peers_unidentified` is what its callers are told of those.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub(super) async fn start(
        config: &Config,
        home_lock: Option<Arc<HomeLock>>,
        addresses: &str,
        default_directory: &Path,
        spawned: Option<Arc<dyn Fn(u32) + Send + Sync>>,
        peers_unidentified: Arc<AtomicU64>,
    ) -> Result<House, StartError> {
        let offline_model = if config.offline_model {
            let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
            Some(OfflineModel::start(anywhere).await.map_err(StartError::OfflineModel)?)
        } else {
            None
        };
        let home = config.codex_home.clone();
        let cleared = tokio::task::spawn_blocking(move || process::clear_leftovers(&home)).await;
        if let Ok(cleared @ 1..) = cleared {
            tracing::warn!(cleared, "killed processes that an earlier sidecar left behind");
        }
        if let Some(lock) = &home_lock {
            lock.tell(addresses);
        }
        let spec = worker_spec(config, home_lock.clone(), offline_model.as_ref(), spawned);
        let pool = Pool::start(spec, config.workers, config.pool.clone());
        let ledger = Arc::new(ledger(config));
        let engine = Engine::new(
            Arc::clone(&pool),
            Arc::clone(&ledger),
            Arc::new(Turns::new(&config.retention, Arc::clone(&ledger))),
            Admission::new(config.limits.clone()),
            EngineSettings {
                default_directory: default_directory.to_owned(),
                timeouts: config.timeouts.clone(),
                readers: config.readers.clone(),
                contexts: config.contexts.clone(),
                max_image_data: config.requests.max_message_bytes,
                quotas: config.quotas.clone(),
            },
        );
        // Before anybody is answered: what is not known would else be taken for what is not there.
        let opened = ledger.open(engine.restoring()).await;
        let opened = opened.map_err(|error| StartError::State(error.to_string()));
        let routes = match opened.and_then(|()| routes(config, &engine, peers_unidentified)) {
            Ok(routes) => routes,
            Err(error) => {
                pool.shutdown().await;
                if let Some(offline_model) = offline_model {
                    offline_model.shutdown().await;
                }
                return Err(error);
            }
        };
        let sweeping = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { engine.sweep().await }
        });
        let _sweeping = AbortOnDropHandle::new(sweeping);
        let offline_model = Mutex::new(offline_model);
        Ok(House { home_lock, offline_model, pool, engine, routes, _sweeping })
    }

    /// The services, for the calls of its tenant alone.
    pub(super) fn routes(&self) -> &Routes {
        &self.routes
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Ends what is left once its turns have been drained.
    pub(super) async fn end(&self) {
        self.pool.shutdown().await;
        let kept = async {
            self.engine.ended().await;
            self.engine.ledger().close().await;
        };
        if tokio::time::timeout(KEEP_GRACE, kept).await.is_err() {
            tracing::error!("what became of the last turns could not be written down in time");
        }
        let offline_model =
            self.offline_model.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(offline_model) = offline_model {
            offline_model.shutdown().await;
        }
        if let Some(home_lock) = &self.home_lock {
            home_lock.release();
        }
    }
}

fn routes(
    config: &Config,
    engine: &Arc<Engine>,
    peers_unidentified: Arc<AtomicU64>,
) -> Result<Routes, StartError> {
    let most = config.requests.max_message_bytes;
    let api = CodexApi::new(
        Arc::clone(engine),
        config.tools.clone(),
        config.policy.clone(),
        config.requests.clone(),
        config.timeouts.clone(),
    );
    let codex = CodexServiceServer::new(api)
        .max_decoding_message_size(most)
        .max_encoding_message_size(usize::MAX);
    let workers =
        PoolServiceServer::new(PoolApi::new(Arc::clone(engine), setup(config, peers_unidentified)))
            .max_decoding_message_size(most);
    let codex = WhenRead::new(EventBodies(codex), Arc::clone(engine.ledger()));
    with_reflection(Routes::new(codex).add_service(workers), most)
}

/// What the house keeps, which it has not read yet.
fn ledger(config: &Config) -> Ledger {
    match config.state_file() {
        Some(path) => Ledger::in_file(path, config.state.durability),
        None => Ledger::memory(),
    }
}

/// Adds server reflection in both generations of its protocol; grpcurl asks for the older one.
fn with_reflection(routes: Routes, most: usize) -> Result<Routes, StartError> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| StartError::Reflection(error.to_string());
    let v1 = builder().build_v1().map_err(failed)?;
    let v1alpha = builder().build_v1alpha().map_err(failed)?;
    let v1 = v1.max_decoding_message_size(most);
    Ok(routes.add_service(v1).add_service(v1alpha.max_decoding_message_size(most)))
}

fn setup(config: &Config, peers_unidentified: Arc<AtomicU64>) -> Setup {
    Setup {
        codex_path: config.codex_path.clone(),
        codex_home: config.codex_home.clone(),
        offline_model: config.offline_model,
        api_key_fingerprint: (config.api_key.as_ref())
            .map(|key| key_fingerprint(key.secret.expose_secret())),
        workers: config.workers,
        pool: config.pool.clone(),
        drain_grace: config.drain_grace,
        admission: config.limits.clone(),
        quotas: config.quotas.clone(),
        requests: config.requests.clone(),
        connections: config.connections.clone(),
        max_line_bytes: config.worker.limits.peer.max_line_bytes,
        retention: config.retention.clone(),
        readers: config.readers.clone(),
        contexts: config.contexts.clone(),
        timeouts: config.timeouts.clone(),
        peers_unidentified,
    }
}
