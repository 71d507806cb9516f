//! Wires the parts into a running sidecar.
//!
//! Owns the order of start and end: bind, then start the pool, then serve; on shutdown tell the
//! probes, let turns end, close connections, end the workers. Every step of the end has a bound of
//! its own, because an open stream would otherwise hold it up for ever.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::net::{TcpListener, UnixListener};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::app_server::peer::PeerLimits;
use crate::app_server::secrets;
use crate::codex_cli::{self, CliVersion};
use crate::config::{Config, ListenAddress, key_fingerprint};
use crate::grpc::api::codex_service_server::CodexServiceServer;
use crate::grpc::api::pool_service_server::PoolServiceServer;
use crate::grpc::codex_service::CodexApi;
use crate::grpc::limits::{ConnectionLimits, RequestLimits};
use crate::grpc::pool_service::{PoolApi, Setup};
use crate::offline_model::OfflineModel;
use crate::output_schema;
use crate::pb;
use crate::pool::{Pool, Readiness};
use crate::process;
use crate::registry::Registry;
use crate::turn::admission::Admission;
use crate::turn::engine::{Engine, EngineSettings};
use crate::turn::turns::Turns;
use crate::worker::child::{Child, is_out_of_resources};
use crate::worker::{WorkerLimits, WorkerSpec};

/// The service whose health says whether turns are taken.
pub const READINESS_SERVICE: &str = "codex.sidecar.v1.CodexService";

/// How long connections may take to close after the last turn has ended.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Why the sidecar did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("can't listen on {address}")]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The offline model can't be started.
    #[error("the offline model can't be started")]
    OfflineModel(#[source] std::io::Error),
    /// A tool's configured output schema can't be used.
    #[error("tools.{tool}.output_schema: {cause}")]
    OutputSchema {
        /// The tool.
        tool: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The reflection service can't be built from the contract's descriptors.
    #[error("server reflection can't be set up: {0}")]
    Reflection(String),
    /// The sidecar's own directory can't be told.
    #[error("the working directory can't be told")]
    WorkingDirectory(#[source] std::io::Error),
}

impl StartError {
    /// The exit status: 64 for a configuration that can't work here, 1 for anything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Listen { .. } | StartError::OutputSchema { .. } => 64,
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
        /// The address.
        address: String,
        /// What tonic says.
        source: tonic::transport::Error,
    },
}

/// An address that is listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BoundAddress {
    /// TCP, with the port that was really taken.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BoundAddress::Tcp(address) => write!(f, "{address}"),
            BoundAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A sidecar that listens, but does not serve yet.
pub struct App {
    config: Config,
    listeners: Vec<(Listener, BoundAddress)>,
    health_listeners: Vec<(Listener, BoundAddress)>,
    offline_model: Option<OfflineModel>,
    pool: Arc<Pool>,
    engine: Arc<Engine>,
    routes: Routes,
    health_routes: Routes,
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
    pub async fn start(config: Config) -> Result<App, StartError> {
        for (tool, defaults) in &config.tools {
            // Else every call of the tool would be refused for a fault of the configuration.
            if let Some(schema) = &defaults.output_schema {
                output_schema::strict_value(schema.clone())
                    .map_err(|cause| StartError::OutputSchema { tool: tool.clone(), cause })?;
            }
        }
        let listeners = bind_all(&config.listen).await?;
        let health_listeners =
            bind_all(config.health_listen.as_deref().unwrap_or_default()).await?;
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
        let spec = worker_spec(&config, offline_model.as_ref());
        let pool = Pool::start(spec, config.workers, config.pool.clone());
        let engine = Engine::new(
            Arc::clone(&pool),
            Arc::new(Registry::default()),
            Arc::new(Turns::new(&config.retention)),
            Admission::new(config.limits.clone()),
            EngineSettings { default_directory, timeouts: config.timeouts.clone() },
        );
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
        let workers = PoolServiceServer::new(PoolApi::new(Arc::clone(&engine), setup(&config)));
        let health_routes = Routes::new(health.clone());
        let routes = Routes::new(health).add_service(codex).add_service(workers);
        let routes = with_reflection(routes)?;
        Ok(App {
            config,
            listeners,
            health_listeners,
            offline_model,
            pool,
            engine,
            routes,
            health_routes,
            reporter,
        })
    }

    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> Vec<BoundAddress> {
        self.listeners.iter().map(|(_, bound)| bound.clone()).collect()
    }

    /// Where it answers health probes only, in the order of the configuration.
    pub fn health_addresses(&self) -> Vec<BoundAddress> {
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
            listeners,
            health_listeners,
            offline_model,
            pool,
            engine,
            routes,
            health_routes,
            reporter,
        } = self;
        let close = CancellationToken::new();
        let mut servers = tokio::task::JoinSet::new();
        let all = listeners.into_iter().map(|listener| (listener, routes.clone()));
        let health = health_listeners.into_iter().map(|listener| (listener, health_routes.clone()));
        for ((listener, address), routes) in all.chain(health) {
            let limits = config.connections.clone();
            servers.spawn(serve(listener, address, routes, limits, close.clone()));
        }
        let readiness = tokio::spawn(report_readiness(reporter.clone(), Arc::clone(&pool)));
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

        readiness.abort();
        reporter.set_service_status(READINESS_SERVICE, ServingStatus::NotServing).await;
        engine.drain(config.drain_grace, &CancellationToken::new()).await;
        // The streams have said their last; what is open now is idle, or a health watch.
        close.cancel();
        let closed = async { while servers.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_GRACE, closed).await.is_err() {
            tracing::debug!("connections that were still open are cut");
            servers.abort_all();
        }
        pool.shutdown().await;
        engine.ended().await;
        sweeping.abort();
        if let Some(offline_model) = offline_model {
            offline_model.shutdown().await;
        }
        failed
    }
}

async fn bind_all(
    addresses: &[ListenAddress],
) -> Result<Vec<(Listener, BoundAddress)>, StartError> {
    let mut listeners = Vec::new();
    for address in addresses {
        let bound = bind(address).await;
        let address = address.to_string();
        listeners.push(bound.map_err(|source| StartError::Listen { address, source })?);
    }
    Ok(listeners)
}

async fn bind(address: &ListenAddress) -> std::io::Result<(Listener, BoundAddress)> {
    match address {
        ListenAddress::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port)).await?;
            let bound = BoundAddress::Tcp(listener.local_addr()?);
            Ok((Listener::Tcp(listener), bound))
        }
        ListenAddress::Unix(path) => {
            // A socket that nobody listens on is what a killed sidecar left behind.
            if std::os::unix::net::UnixStream::connect(path).is_err() && is_socket(path) {
                std::fs::remove_file(path)?;
            }
            let listener = UnixListener::bind(path)?;
            Ok((Listener::Unix(listener), BoundAddress::Unix(path.clone())))
        }
    }
}

fn is_socket(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

async fn serve(
    listener: Listener,
    address: BoundAddress,
    routes: Routes,
    limits: ConnectionLimits,
    close: CancellationToken,
) -> Result<(), ServeError> {
    let router = Server::builder()
        // Neither is bounded by default: a client could open streams, or reset them, without end.
        .max_concurrent_streams(limits.max_streams_per_connection)
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_routes(routes);
    let closing = close.cancelled_owned();
    let served = match listener {
        Listener::Tcp(listener) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming_shutdown(incoming, closing).await
        }
        Listener::Unix(listener) => {
            let served = router
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), closing)
                .await;
            if let BoundAddress::Unix(path) = &address {
                let _ = std::fs::remove_file(path);
            }
            served
        }
    };
    served.map_err(|source| ServeError::Transport { address: address.to_string(), source })
}

/// Adds server reflection in both generations of its protocol; grpcurl asks for the older one.
fn with_reflection(routes: Routes) -> Result<Routes, StartError> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let failed = |error: tonic_reflection::server::Error| StartError::Reflection(error.to_string());
    let v1 = builder().build_v1().map_err(failed)?;
    let v1alpha = builder().build_v1alpha().map_err(failed)?;
    Ok(routes.add_service(v1).add_service(v1alpha))
}

async fn report_readiness(reporter: HealthReporter, pool: Arc<Pool>) {
    let mut readiness = pool.readiness();
    loop {
        let now = readiness.borrow_and_update().clone();
        match &now {
            Readiness::Ready => tracing::info!("ready for turns"),
            Readiness::NotReady { cause, .. } => tracing::warn!(cause, "not ready for turns"),
        }
        let status = match now {
            Readiness::Ready => ServingStatus::Serving,
            Readiness::NotReady { .. } => ServingStatus::NotServing,
        };
        reporter.set_service_status(READINESS_SERVICE, status).await;
        if readiness.changed().await.is_err() {
            return;
        }
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
        drain_grace: config.drain_grace,
        admission: config.limits.clone(),
        requests: config.requests.clone(),
        max_line_bytes: config.worker.limits.peer.max_line_bytes,
        retention: config.retention.clone(),
        timeouts: config.timeouts.clone(),
    }
}

/// This program, where it is the sidecar and not one that has the sidecar inside.
fn own_binary() -> Option<PathBuf> {
    let name = std::env::current_exe().ok()?;
    // By this path it is there even after its file was replaced.
    (name.file_stem()? == env!("CARGO_PKG_NAME")).then(|| PathBuf::from("/proc/self/exe"))
}

fn worker_spec(config: &Config, offline_model: Option<&OfflineModel>) -> WorkerSpec {
    let mut config_overrides = Vec::new();
    // Above the offline model's, so that what the owner configured for the workers wins.
    config_overrides.extend(offline_model.map(OfflineModel::config_overrides).unwrap_or_default());
    config_overrides.extend(config.worker.config_overrides());
    // Older CLIs ignore it. An ephemeral thread can't be archived: unloading it is the only way to
    // have its memory back.
    config_overrides.insert(0, "thread_unload_delay_secs=1".to_owned());

    let mut env = config.worker_env.clone();
    env.push(("CODEX_HOME".into(), Some(config.codex_home.clone().into_os_string())));
    if let Some(key) = &config.api_key {
        let secret = key.secret.expose_secret().to_owned();
        env.push(("CODEX_API_KEY".into(), Some(secret.into())));
    }
    match process::instance_variable(&config.codex_home) {
        Ok((name, value)) => env.push((name, Some(value))),
        Err(error) => tracing::debug!(%error, "workers are not marked"),
    }
    if offline_model.is_some() {
        env.extend(without_proxies_on_loopback(|name| std::env::var_os(name)));
    }
    let configured = config.codex_path.clone();
    let codex_home = config.codex_home.clone();
    let child = Child {
        locate: Arc::new(move || {
            codex_cli::find(configured.as_deref(), std::env::var_os("PATH").as_deref())
                .map_err(|error| error.to_string())
        }),
        guard: config.guard.clone().or_else(own_binary),
        env,
    };
    WorkerSpec {
        launch: Arc::new(child),
        config_file: codex_home.join("config.toml"),
        check_home: Arc::new(move || check_home(&codex_home)),
        check_version: Arc::new(|version| {
            let parsed: CliVersion = version.parse().map_err(|error| format!("{error}"))?;
            if parsed.is_supported() {
                return Ok(());
            }
            if parsed.is_unversioned() {
                tracing::warn!("the CLI was built from source and does not know its version");
                return Ok(());
            }
            let oldest = codex_cli::OLDEST_SUPPORTED;
            Err(format!("it is version {version}, and the oldest that is supported is {oldest}"))
        }),
        config_overrides,
        secrets: known_secrets(config),
        limits: WorkerLimits {
            peer: PeerLimits {
                max_echo_bytes: longest_echo(&config.requests),
                ..config.worker.limits.peer.clone()
            },
            ..config.worker.limits.clone()
        },
    }
}

/// The variables that keep a proxy of the environment out of what goes to this machine itself: no
/// proxy reaches the offline model, and Codex would wait for one without end. Both spellings, each
/// with what it says already: programs differ in which of them wins.
fn without_proxies_on_loopback(
    env: impl Fn(&str) -> Option<OsString>,
) -> impl Iterator<Item = (OsString, Option<OsString>)> {
    const LOOPBACK: &str = "127.0.0.1,localhost,::1";
    let said = |name: &str| env(name).filter(|value| !value.is_empty());
    let (upper, lower) = (said("NO_PROXY"), said("no_proxy"));
    let with_loopback = |value: Option<OsString>| match value {
        Some(mut value) => {
            value.push(",");
            value.push(LOOPBACK);
            value
        }
        None => LOOPBACK.into(),
    };
    let both = [("NO_PROXY", upper.clone().or(lower.clone())), ("no_proxy", lower.or(upper))];
    both.map(|(name, value)| (name.into(), Some(with_loopback(value)))).into_iter()
}

/// How long the line can be in which Codex tells back the input of a request that was accepted: as long
/// as the request, five bytes more for a character that JSON escapes at its longest (`\u0001`), and
/// what stands around it.
fn longest_echo(limits: &RequestLimits) -> usize {
    const AROUND: usize = 256 * 1024;
    let escaped = limits.max_input_characters.min(limits.max_message_bytes).saturating_mul(5);
    limits.max_message_bytes.saturating_add(escaped).saturating_add(AROUND)
}

/// What must not be in anything that a worker says: the keys that it is given, and what its CODEX_HOME
/// and its overrides hold or name.
fn known_secrets(config: &Config) -> Arc<dyn Fn() -> Vec<String> + Send + Sync> {
    let key = config.api_key.as_ref().map(|key| key.secret.expose_secret().to_owned());
    let overrides = secrets::of_config(&config.worker.config);
    let home = config.codex_home.clone();
    Arc::new(move || {
        // Read anew: a login may be newer than the sidecar.
        let read = |name: &str| std::fs::read_to_string(home.join(name)).unwrap_or_default();
        let configured = secrets::of_config(&read("config.toml").parse().unwrap_or_default());
        let variables = ["CODEX_API_KEY", "OPENAI_API_KEY"].map(str::to_owned).into_iter();
        let variables = variables.chain(overrides.variables.clone()).chain(configured.variables);
        key.clone()
            .into_iter()
            // A worker has the sidecar's environment.
            .chain(variables.filter_map(|name| std::env::var(name).ok()))
            .chain(overrides.values.clone())
            .chain(configured.values)
            .chain(secrets::of_login(&read("auth.json")))
            .collect()
    })
}

/// Whether Codex can write into its home: it is made if it is missing, which Codex would refuse, and a
/// file of the size of a short turn's rollout is written and removed.
fn check_home(home: &std::path::Path) -> Result<(), String> {
    let shown = home.display();
    std::fs::create_dir_all(home).map_err(|error| {
        format!("CODEX_HOME {shown} can't be made: {error}; name another one, or make it")
    })?;
    let probe = home.join(format!(".codex-sidecar-probe-{}", uuid::Uuid::new_v4()));
    let written = std::fs::write(&probe, [b' '; 64 * 1024]);
    let removed = std::fs::remove_file(&probe);
    match written.and(removed) {
        Ok(()) => Ok(()),
        // Not the fault of the home: the start of a worker tells of it.
        Err(error) if is_out_of_resources(&error) => Ok(()),
        Err(error) => Err(format!(
            "CODEX_HOME {shown} can't be written: {error}; make room or give the right to write"
        )),
    }
}
