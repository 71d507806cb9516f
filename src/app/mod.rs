//! Wires the parts into a running sidecar.
//!
//! Owns the order of start and end: bind, then start the pool, then serve; on shutdown tell the
//! probes, let turns end, close connections, end the workers. Every step of the end has a bound of
//! its own, because an open stream would otherwise hold it up for ever.

mod connections;
mod doors;
mod home_lock;
mod listen;
mod worker_spec;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use self::connections::Connections;
use self::doors::Doors;
use self::home_lock::HomeLock;
use self::listen::Listener;
use self::worker_spec::worker_spec;
use crate::access::Access;
use crate::config::{Config, key_fingerprint};
use crate::grpc::api::codex_service_server::CodexServiceServer;
use crate::grpc::api::pool_service_server::PoolServiceServer;
use crate::grpc::codex_service::CodexApi;
use crate::grpc::limits::ConnectionLimits;
use crate::grpc::pool_service::{PoolApi, Setup};
use crate::grpc::stream::EventBodies;
use crate::grpc::when_read::WhenRead;
use crate::model::id::Tenant;
use crate::offline_model::OfflineModel;
use crate::output_schema;
use crate::pb;
use crate::pool::Pool;
use crate::process;
use crate::registry::ledger::Ledger;
use crate::turn::admission::Admission;
use crate::turn::engine::readiness::NotReady;
use crate::turn::engine::{Engine, EngineSettings};
use crate::turn::turns::Turns;

pub use self::listen::BoundAddress;

/// The service whose health says whether turns are taken.
pub const READINESS_SERVICE: &str = "codex.sidecar.v1.CodexService";

/// How long connections may take to close after the last turn has ended.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How long the ends of the last turns may take to be written down: a disk that hangs must not keep the
/// sidecar.
const KEEP_GRACE: Duration = Duration::from_secs(10);

/// Why the sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("can't listen on {address}")]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// Another sidecar has CODEX_HOME.
    #[error(
        "CODEX_HOME {} is used by another sidecar ({owner}): give this one a CODEX_HOME of its own, end the other one, or say --share-codex-home if both are to use it", .home.display()
    )]
    HomeInUse {
        home: PathBuf,
        /// What it says of itself.
        owner: String,
    },
    /// Other machines could reach what lets its callers run commands.
    #[error(
        "{address} can be reached from other machines, and whoever reaches the sidecar can run \
         commands as it; listen on loopback or on a Unix socket, or say --insecure-listen if \
         something else guards it (health probes alone may come to --health-listen)"
    )]
    Exposed {
        /// The address that was taken.
        address: SocketAddr,
    },
    /// What an earlier sidecar has kept can't be used.
    #[error("{0}")]
    State(String),
    /// The offline model can't be started.
    #[error("the offline model can't be started")]
    OfflineModel(#[source] io::Error),
    /// A tool's configured output schema can't be used.
    #[error("tools.{tool}.output_schema: {cause}")]
    OutputSchema {
        tool: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The reflection service can't be built from the contract's descriptors.
    #[error("server reflection can't be set up: {0}")]
    Reflection(String),
    /// The sidecar's own directory can't be told.
    #[error("the working directory can't be told")]
    WorkingDirectory(#[source] io::Error),
}

impl StartError {
    /// The exit status: 64 for a configuration that can't work here, 1 for anything else.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            StartError::Listen { .. }
            | StartError::HomeInUse { .. }
            | StartError::Exposed { .. }
            | StartError::State(_)
            | StartError::OutputSchema { .. } => 64,
            // A binary that was built without one.
            StartError::OfflineModel(error) if error.kind() == io::ErrorKind::Unsupported => 64,
            StartError::OfflineModel(_)
            | StartError::Reflection(_)
            | StartError::WorkingDirectory(_) => 1,
        }
    }
}

/// Why serving ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener failed.
    #[error("serving {address} failed")]
    Transport {
        /// Where nobody can be served any more.
        address: String,
        /// What the system says.
        source: io::Error,
    },
}

/// A sidecar that listens, but does not serve yet.
pub struct App {
    config: Config,
    home_lock: Option<Arc<HomeLock>>,
    listeners: Vec<(Listener, BoundAddress)>,
    health_listeners: Vec<(Listener, BoundAddress)>,
    offline_model: Option<OfflineModel>,
    pool: Arc<Pool>,
    engine: Arc<Engine>,
    doors: Doors,
    health_doors: Doors,
    reporter: HealthReporter,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

impl App {
    /// Binds every listener, then starts the pool; returns once it listens, which is before it is
    /// ready. A missing or broken CLI is no error here: the health service and `GetServerInfo` tell
    /// of it, and it is looked for again and again.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(mut config: Config) -> Result<App, StartError> {
        config.connections = within_descriptors(&config.connections);
        for (tool, defaults) in &config.tools {
            // Else every call of the tool would be refused for a fault of the configuration.
            if let Some(schema) = &defaults.output_schema {
                output_schema::strict_value(schema.clone())
                    .map_err(|cause| StartError::OutputSchema { tool: tool.clone(), cause })?;
            }
        }
        let home_lock = if config.share_codex_home {
            None
        } else {
            let taken = HomeLock::take(&config.codex_home).await;
            let home = config.codex_home.clone();
            Some(Arc::new(taken.map_err(|owner| StartError::HomeInUse { home, owner })?))
        };
        let listeners = listen::bind_all(&config, &config.listen, false).await?;
        let for_probes = config.health_listen.as_deref().unwrap_or_default();
        let health_listeners = listen::bind_all(&config, for_probes, true).await?;
        let default_directory = std::env::current_dir().map_err(StartError::WorkingDirectory)?;
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
            let addresses = listeners.iter().map(|(_, address)| address.to_string());
            lock.tell(&addresses.collect::<Vec<_>>().join(", "));
        }
        let spec = worker_spec(&config, home_lock.clone(), offline_model.as_ref());
        let pool = Pool::start(spec, config.workers, config.pool.clone());
        let ledger = Arc::new(ledger(&config));
        let engine = Engine::new(
            Arc::clone(&pool),
            Arc::clone(&ledger),
            Arc::new(Turns::new(&config.retention, Arc::clone(&ledger))),
            Admission::new(config.limits.clone()),
            EngineSettings {
                default_directory,
                timeouts: config.timeouts.clone(),
                readers: config.readers.clone(),
                contexts: config.contexts.clone(),
                quotas: config.quotas.clone(),
            },
        );
        // Before anybody is answered: what is not known would else be taken for what is not there.
        if let Err(error) = ledger.open(engine.restoring()).await {
            pool.shutdown().await;
            if let Some(offline_model) = offline_model {
                offline_model.shutdown().await;
            }
            return Err(StartError::State(error.to_string()));
        }
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status(READINESS_SERVICE, ServingStatus::NotServing).await;
        // Whoever can ask is served: the process is alive.
        reporter.set_service_status("", ServingStatus::Serving).await;
        let api = CodexApi::new(
            Arc::clone(&engine),
            config.tools.clone(),
            config.requests.clone(),
            config.timeouts.clone(),
        );
        let codex = CodexServiceServer::new(api)
            .max_decoding_message_size(config.requests.max_message_bytes)
            .max_encoding_message_size(usize::MAX);
        let workers = PoolServiceServer::new(PoolApi::new(Arc::clone(&engine), setup(&config)))
            .max_decoding_message_size(config.requests.max_message_bytes);
        let health = health.max_decoding_message_size(config.requests.max_message_bytes);
        let codex = WhenRead::new(EventBodies(codex), Arc::clone(&ledger));
        let open = Routes::new(health.clone());
        let routes = Routes::new(health).add_service(codex).add_service(workers);
        let routes = with_reflection(routes, config.requests.max_message_bytes)?;
        let tenants = BTreeMap::from([(Tenant::default(), routes)]);
        let doors = Doors::new(Arc::new(Access::default()), open.clone(), tenants);
        let health_doors = Doors::open(open);
        Ok(App {
            config,
            home_lock,
            listeners,
            health_listeners,
            offline_model,
            pool,
            engine,
            doors,
            health_doors,
            reporter,
        })
    }

    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> Vec<BoundAddress> {
        self.listeners.iter().map(|(_, bound)| bound.clone()).collect()
    }

    /// Where it answers health probes only, in the order of the configuration.
    pub(crate) fn health_addresses(&self) -> Vec<BoundAddress> {
        self.health_listeners.iter().map(|(_, bound)| bound.clone()).collect()
    }

    /// Serves until `shutdown` is cancelled, then drains; returns when all is down, which is at the
    /// latest the drain grace and some seconds later, whatever is open.
    ///
    /// # Errors
    /// [`ServeError`] when a listener fails; the sidecar is down then, too.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let App {
            config,
            home_lock,
            listeners,
            health_listeners,
            offline_model,
            pool,
            engine,
            doors,
            health_doors,
            reporter,
        } = self;
        let close = CancellationToken::new();
        let mut servers = tokio::task::JoinSet::new();
        // Probes have a room of their own: those who crowd the other one can't keep them out.
        for (listeners, doors) in [(listeners, doors), (health_listeners, health_doors)] {
            let connections = Connections::new(config.connections.clone());
            for (listener, address) in listeners {
                let (doors, connections) = (doors.clone(), connections.clone());
                servers.spawn(listen::serve(listener, address, doors, connections, close.clone()));
            }
        }
        let readiness = tokio::spawn(report_readiness(reporter.clone(), Arc::clone(&engine)));
        let sweeping = tokio::spawn({
            let engine = Arc::clone(&engine);
            async move { engine.sweep().await }
        });

        let mut failed = Ok(());
        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = servers.join_next() => {
                if let Some(Ok(Err(error))) = ended {
                    failed = Err(error);
                }
            }
        }

        // It may be saying SERVING just now, which must not come after NOT_SERVING.
        readiness.abort();
        let _ = readiness.await;
        // Turns are refused before the probes are told: who has seen that begins none.
        tokio::join!(
            biased;
            engine.drain(config.drain_grace),
            reporter.set_service_status(READINESS_SERVICE, ServingStatus::NotServing),
        );
        // The streams have said their last; what is open now is idle, or a health watch.
        close.cancel();
        let closed = async { while servers.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_GRACE, closed).await.is_err() {
            tracing::debug!("connections that were still open are cut");
            servers.abort_all();
        }
        pool.shutdown().await;
        let kept = async {
            engine.ended().await;
            engine.ledger().close().await;
        };
        if tokio::time::timeout(KEEP_GRACE, kept).await.is_err() {
            tracing::error!("what became of the last turns could not be written down in time");
        }
        sweeping.abort();
        if let Some(offline_model) = offline_model {
            offline_model.shutdown().await;
        }
        if let Some(home_lock) = home_lock {
            home_lock.release();
        }
        failed
    }
}

/// What the sidecar keeps, which it has not read yet.
fn ledger(config: &Config) -> Ledger {
    match config.state_file() {
        Some(path) => Ledger::in_file(path, config.state.durability),
        None => Ledger::memory(),
    }
}

/// The limits, of which connections may take no more than half of all descriptors: the workers need
/// some, and the calls themselves.
fn within_descriptors(limits: &ConnectionLimits) -> ConnectionLimits {
    let descriptors = process::descriptor_limit().unwrap_or(u64::MAX);
    let room = usize::try_from(descriptors / 2).unwrap_or(usize::MAX).max(1);
    let max_connections = limits.max_connections.min(room);
    if max_connections < limits.max_connections {
        tracing::warn!(
            "at most {max_connections} connections instead of {} (limits.max_connections): this \
             process may open {descriptors} files; raise its limit (ulimit -n)",
            limits.max_connections
        );
    }
    ConnectionLimits { max_connections, ..limits.clone() }
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

async fn report_readiness(reporter: HealthReporter, engine: Arc<Engine>) {
    let mut readiness = engine.readiness();
    while let Some(now) = readiness.next().await {
        let status = match &now {
            Ok(()) => {
                tracing::info!("ready for turns");
                ServingStatus::Serving
            }
            Err(NotReady { cause, .. }) => {
                tracing::warn!(cause, "not ready for turns");
                ServingStatus::NotServing
            }
        };
        reporter.set_service_status(READINESS_SERVICE, status).await;
    }
}

fn setup(config: &Config) -> Setup {
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
    }
}
