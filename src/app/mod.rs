//! Wires the parts into a running sidecar.
//!
//! Owns the order of start and end: bind, then start the tenants, each in a [`house`] of its own, then
//! serve; on shutdown tell the probes, let turns end, close connections, end the workers. Every step of
//! the end has a bound of its own, because an open stream would otherwise hold it up for ever.

mod cgroup;
mod connections;
mod credentials;
mod descent;
mod doors;
mod home_lock;
mod house;
mod listen;
mod protected;
mod readiness;
mod tenants;
mod tls;
mod worker_spec;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use self::cgroup::Cgroups;
use self::connections::{Connections, Entry};
use self::credentials::Credentials;
use self::descent::Descent;
use self::doors::Doors;
use self::house::House;
use self::listen::{Listener, Reach};
use self::readiness::Readiness;
use self::tenants::Tenants;
use crate::access::WrongSetting;
use crate::config::Config;
use crate::grpc::limits::ConnectionLimits;
use crate::output_schema;
use crate::process;

pub use self::listen::BoundAddress;
pub use self::readiness::READINESS_SERVICE;

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
        source: io::Error,
    },
    /// Another sidecar has CODEX_HOME.
    #[error(
        "CODEX_HOME {} is used by another sidecar ({owner}): give this one a CODEX_HOME of its own, end the other one, or say {} if both are to use it", .home.display(), .share
    )]
    HomeInUse {
        home: PathBuf,
        /// What it says of itself.
        owner: String,
        /// The setting that has it shared.
        share: String,
    },
    /// Other machines could reach what lets its callers run commands.
    #[error(
        "{address} can be reached from other machines, and whoever reaches the sidecar can run \
         commands as it; set a credential (--token-file FILE, or --tls-cert FILE, --tls-key FILE and \
         --tls-client-ca FILE), listen on loopback or on a Unix socket, or say --insecure-listen if \
         something else guards it (health probes alone may come to --health-listen)"
    )]
    Exposed {
        /// The address that was taken.
        address: String,
    },
    /// Settings can't be used: what they name can't (a file of tokens, certificates or keys, a group), or a
    /// tool's output schema, or a credential is given to two tenants.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Settings(Vec<WrongSetting>),
    /// What an earlier sidecar has kept can't be used.
    #[error("{0}")]
    State(String),
    /// The offline model can't be started.
    #[error("the offline model can't be started")]
    OfflineModel(#[source] io::Error),
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
            | StartError::Settings(_)
            | StartError::State(_) => 64,
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
    listeners: Vec<(Listener, BoundAddress)>,
    health_listeners: Vec<(Listener, BoundAddress)>,
    tenants: Tenants,
    credentials: Credentials,
    doors: Doors,
    health_doors: Doors,
    descent: Descent,
    readiness: Arc<Readiness>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

impl App {
    /// Binds every listener, then starts the tenants; returns once it listens, which is before it is
    /// ready. A missing or broken CLI is no error here: the health service and `GetServerInfo` tell
    /// of it, and it is looked for again and again. Nor is what keeps a tenant beside `default` from being
    /// served, which its callers are told.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(mut config: Config) -> Result<App, StartError> {
        config.connections = within_descriptors(&config.connections);
        protected::share(&mut config);
        let credentials = read_settings(&config).map_err(StartError::Settings)?;
        let home_lock = house::lock(&config).await?;
        let reach = match credentials.access.is_set() || config.insecure_listen {
            true => Reach::Anybody,
            false => Reach::ThisMachine,
        };
        let listeners = listen::bind_all(&config, &config.listen, reach).await?;
        let for_probes = config.health_listen.as_deref().unwrap_or_default();
        let health_listeners = listen::bind_all(&config, for_probes, Reach::Anybody).await?;
        let default_directory = std::env::current_dir().map_err(StartError::WorkingDirectory)?;
        let addresses = listeners.iter().map(|(_, address)| address.to_string());
        let addresses = addresses.collect::<Vec<_>>().join(", ");
        // Before the first worker, which would be in the group that is divided.
        let groups = Cgroups::of(&config);
        let descent = Descent::start(config.identify_peers);
        let count = descent.unidentified();
        let house =
            House::start(&config, home_lock, &addresses, &default_directory, None, count).await?;
        let (readiness, health) = Readiness::new().await;
        let tenants =
            Tenants::start(house, &config, groups, addresses, default_directory, &readiness);
        let open = Routes::new(health.max_decoding_message_size(config.requests.max_message_bytes));
        let access = Arc::clone(&credentials.access);
        let doors = Doors::new(access, open.clone(), tenants.served());
        let health_doors = Doors::open(open);
        Ok(App {
            config,
            listeners,
            health_listeners,
            tenants,
            credentials,
            doors,
            health_doors,
            descent,
            readiness,
        })
    }

    /// What else is wrong with a configuration that can't be used as it is, as far as that shows without
    /// starting anything: whoever mends it is to do so once.
    pub(crate) fn wrong_settings(config: &Config) -> Vec<WrongSetting> {
        read_settings(config).err().unwrap_or_default()
    }

    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> Vec<BoundAddress> {
        self.listeners.iter().map(|(_, bound)| bound.clone()).collect()
    }

    /// Where it answers health probes only, in the order of the configuration.
    pub(crate) fn health_addresses(&self) -> Vec<BoundAddress> {
        self.health_listeners.iter().map(|(_, bound)| bound.clone()).collect()
    }

    /// What reads tokens and certificates again.
    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials.clone()
    }

    /// Tells the log who can call.
    pub(crate) fn tell_callers(&self) {
        self.credentials.tell(&self.addresses());
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
            tenants,
            credentials,
            doors,
            health_doors,
            descent,
            readiness,
        } = self;
        let close = CancellationToken::new();
        let mut servers = tokio::task::JoinSet::new();
        // Probes have a room of their own: those who crowd the other one can't keep them out.
        let entry = Entry { doors, tls: credentials.tls.clone() };
        // Kubelets ask without TLS, and what they are told is no secret.
        let health_entry = Entry { doors: health_doors, tls: None };
        for (listeners, entry) in [(listeners, entry), (health_listeners, health_entry)] {
            let connections = Connections::new(config.connections.clone());
            for (listener, address) in listeners {
                let (entry, connections) = (entry.clone(), connections.clone());
                let (descent, close) = (descent.clone(), close.clone());
                servers.spawn(async move {
                    listen::serve(listener, address, entry, connections, &descent, close).await
                });
            }
        }
        let watching = tokio::spawn(credentials.watch());

        let mut failed = Ok(());
        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = servers.join_next() => {
                if let Some(Ok(Err(error))) = ended {
                    failed = Err(error);
                }
            }
        }

        // Turns are refused before the probes are told: who has seen that begins none.
        tokio::join!(biased; tenants.drain(config.drain_grace), readiness.end());
        // The streams have said their last; what is open now is idle, or a health watch.
        close.cancel();
        let closed = async { while servers.join_next().await.is_some() {} };
        if tokio::time::timeout(CLOSE_GRACE, closed).await.is_err() {
            tracing::debug!("connections that were still open are cut");
            servers.abort_all();
        }
        tenants.end().await;
        watching.abort();
        failed
    }
}

/// What callers and the sidecar show each other; or all that is wrong with what the settings name.
fn read_settings(config: &Config) -> Result<Credentials, Vec<WrongSetting>> {
    let mut wrong = Vec::new();
    for (at, config) in places(config) {
        for (tool, defaults) in &config.tools {
            // Else every call of the tool would be refused for a fault of the configuration.
            let schema = defaults.output_schema.clone().map(output_schema::strict_value);
            if let Some(Err(problem)) = schema {
                let setting = format!("{at}tools.{tool}.output_schema");
                wrong.push(WrongSetting { setting, problem });
            }
        }
    }
    if let Some(group) = &config.unix_sockets.group
        && let Err(problem) = listen::group_id(group)
    {
        wrong.push(WrongSetting { setting: "unix_group".to_owned(), problem });
    }
    match Credentials::load(config) {
        Ok(credentials) if wrong.is_empty() => Ok(credentials),
        credentials => {
            wrong.extend(credentials.err().into_iter().flatten());
            Err(wrong)
        }
    }
}

/// The configuration of each tenant, with its path in the file.
fn places(config: &Config) -> impl Iterator<Item = (String, &Config)> {
    let tenants = config.tenants.iter();
    let tenants = tenants.map(|(name, tenant)| (format!("tenants.{name}."), &tenant.config));
    std::iter::once((String::new(), config)).chain(tenants)
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
