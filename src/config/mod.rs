//! The configuration: the only reader of flags, environment and file.
//!
//! [`Config`] is the sum of its parts' own settings: each part declares what it can be told, with its
//! default, beside the code that goes by it, and `app` hands it over as it is. So this module stands
//! above the parts, below `app` and `cli`, and no part reads the configuration. It opens, starts and
//! creates nothing.
//!
//! `settings` is the one table of how all of it is written: by key, flag and environment variable.
//! `load` and `print` both walk it, so that a setting can't be readable without being printed, or the
//! other way round. It takes every part's struct apart by its fields, so that a new one fails to
//! compile until it has its line. A key's section is the users' order and need not be its part.
//!
//! A value comes from, in this order, a flag, an environment variable, the file, its default.
//! `Config::load` looks at all of it before it says anything, so that one run tells every fault.
//! What comes out is plain data that nobody has to check again.

mod args;
mod check;
mod codec;
mod fault;
mod file;
mod listen;
mod load;
mod policy;
mod print;
mod secrets;
mod settings;
mod tenants;
#[cfg(test)]
mod tests;
mod tools;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::access::{IdentifyPeers, TokenHash};
use crate::grpc::limits::{ConnectionLimits, RequestLimits};
use crate::model::id::Tenant;
use crate::model::policy::Policy;
use crate::pool::PoolSettings;
use crate::registry::ledger::{StatePath, StateSettings};
use crate::turn::admission::AdmissionLimits;
use crate::turn::contexts::ContextLimits;
use crate::turn::quota::QuotaLimits;
use crate::turn::readers::ReaderLimits;
use crate::turn::retention::Retention;
use crate::turn::timeouts::Timeouts;
use crate::worker::settings::WorkerSettings;

pub(crate) use crate::access::Credentials;
pub use crate::model::options::ToolDefaults;
pub use crate::telemetry::LogFormat;

pub(crate) use args::ServeArgs;
pub(crate) use check::origin;
pub(crate) use fault::{ConfigErrors, Fault};
pub(crate) use file::Origins;
pub(crate) use tenants::tenant_name;

/// How the sidecar runs. Durations are positive unless a field says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the server listens; at least one, all different. Default `127.0.0.1:50061`.
    pub listen: Vec<ListenAddress>,
    /// Where the server answers `grpc.health.v1` and nothing else, for probes that come from outside
    /// the pod or the machine (a kubelet dials the pod's address). Default none.
    pub health_listen: Option<Vec<ListenAddress>>,
    /// Whether other machines may reach the server over TCP although no credential is set, so that nobody
    /// is asked who they are. Default no.
    pub insecure_listen: bool,
    /// The file of the tokens that callers may show, one a line. Default none.
    pub token_file: Option<PathBuf>,
    /// TLS on the TCP listeners.
    pub tls: TlsFiles,
    /// The names of client certificates that are let in: hosts, URIs, addresses of mail or of the network.
    /// Default: all that the client authorities vouch for.
    pub client_names: Option<Vec<String>>,
    /// Who may connect to its Unix sockets.
    pub unix_sockets: UnixSockets,
    /// Whether a connection must be told from those of commands that turns run. Default: when possible.
    pub identify_peers: IdentifyPeers,
    /// The Codex CLI: an absolute path, or a bare name that is looked for on PATH. Default: none
    /// given, which means `codex` on PATH.
    pub codex_path: Option<PathBuf>,
    /// CODEX_HOME of the workers, absolute; it need not exist yet. Default `~/.codex`.
    pub codex_home: PathBuf,
    /// Whether another sidecar may use the same CODEX_HOME at the same time. Default no.
    pub share_codex_home: bool,
    /// How many workers are kept, 1 to 64. Default: the machine's cores, at most 4.
    pub workers: usize,
    /// Whether the built-in scripted model answers in place of a real one. Default no.
    pub offline_model: bool,
    /// How long running turns may go on once the sidecar is asked to end; zero interrupts them at
    /// once. Default 30 s.
    pub drain_grace: Duration,
    /// The form of the log on stderr. Default: text if stderr is a terminal, else JSON.
    pub log_format: LogFormat,
    /// What is logged: a level, or a filter in the syntax of `tracing_subscriber::EnvFilter`,
    /// checked. Default `info`.
    pub log: String,
    /// How many turns run and wait.
    pub limits: AdmissionLimits,
    /// How much is run in a while.
    pub quotas: QuotaLimits,
    /// What one request may hold.
    pub requests: RequestLimits,
    /// What clients may hold open.
    pub connections: ConnectionLimits,
    /// What is kept of turns for those who join them late.
    pub retention: Retention,
    /// How many streams of turns' events may be open.
    pub readers: ReaderLimits,
    /// How many contexts are kept, and how long.
    pub contexts: ContextLimits,
    /// How long turns may take.
    pub timeouts: Timeouts,
    /// How workers are supervised and replaced.
    pub pool: PoolSettings,
    /// What workers are started with, and held to.
    pub worker: WorkerSettings,
    /// Where what outlives the sidecar is kept, and how.
    pub state: StateSettings,
    /// Whether commands of turns in the workspace-write sandbox may write CODEX_HOME and the state, where
    /// these lie in what such turns may write. Default no: such turns are denied where Codex can't keep
    /// them from it.
    pub allow_writable_codex_home: bool,
    /// What callers may ask for at most.
    pub policy: Policy,
    /// Defaults of the caller's Codex tools, by tool name.
    pub tools: BTreeMap<String, ToolDefaults>,
    /// Who else is served than the tenant `default`, which all of the above is, by their names.
    pub tenants: BTreeMap<String, TenantConfig>,
    /// Whose configuration it is. No user's setting.
    pub tenant: Tenant,
    /// The key for the model provider: CODEX_API_KEY, else OPENAI_API_KEY. `None` where neither is
    /// given, for example because CODEX_HOME has a login.
    pub api_key: Option<ApiKey>,
    /// The binary that guards the workers, so that nothing of what they start outlives them: the
    /// sidecar's own. Found by itself where the sidecar runs as a program; to be named where it runs
    /// inside another one. No user's setting.
    pub guard: Option<PathBuf>,
    /// Variables to set for the workers over the sidecar's own environment, or to take out of it.
    /// For tests, which can't change their own: no setting of the file.
    pub worker_env: Vec<(OsString, Option<OsString>)>,
    /// What commands of its turns must not write of others: their CODEX_HOMEs and states, and the files by
    /// which callers are known. The sidecar fills it when it starts. No user's setting.
    pub kept_beside: KeptBeside,
    /// A token that is in no file, for whoever runs a sidecar within their own process. No user's setting.
    pub own_token: Option<TokenHash>,
}

/// What is kept for others than one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeptBeside {
    /// CODEX_HOMEs, and what is kept of contexts and turns.
    pub of_tenants: Vec<PathBuf>,
    /// Tokens, certificates and keys.
    pub credentials: Vec<PathBuf>,
}

/// The ledger's name in CODEX_HOME.
const LEDGER: &str = "sidecar.redb";

impl Config {
    /// The file of the ledger, which is beside the threads if it is not said where; `None` where nothing is
    /// kept.
    pub(crate) fn state_file(&self) -> Option<PathBuf> {
        match &self.state.path {
            Some(StatePath::File(path)) => Some(path.clone()),
            Some(StatePath::Memory) => None,
            None => Some(self.codex_home.join(LEDGER)),
        }
    }

    /// Reads flags, environment (through `env`) and file, and checks all of it.
    pub(crate) fn load(
        args: ServeArgs,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Config, ConfigErrors> {
        Config::load_with_origins(args, env).map(|(config, _)| config)
    }

    /// As [`Config::load`], and tells where each value that is not a default came from.
    pub(crate) fn load_with_origins(
        args: ServeArgs,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(Config, Origins), ConfigErrors> {
        match Config::read(args, env) {
            (config, origins, faults) if faults.is_empty() => Ok((config, origins)),
            (_, _, faults) => Err(ConfigErrors(faults)),
        }
    }

    /// As [`Config::load_with_origins`], but gives, with all that is wrong, what could be read: defaults
    /// stand in the place of the rest.
    pub(crate) fn read(
        args: ServeArgs,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> (Config, Origins, Vec<Fault>) {
        load::load(&args, env)
    }

    /// The credentials of the default tenant, and of all others.
    pub(crate) fn credentials(&self) -> (Credentials, BTreeMap<Tenant, Credentials>) {
        let default = Credentials {
            token_file: self.token_file.clone(),
            client_names: self.client_names.clone(),
            unix_uids: self.unix_sockets.allow_uids.clone(),
            unix_gids: self.unix_sockets.allow_gids.clone(),
        };
        let tenants = self.tenants.iter();
        let tenants = tenants.map(|(name, it)| (Tenant(name.clone()), it.credentials.clone()));
        (default, tenants.collect())
    }

    /// The configuration as a TOML file that loads to the same values, each with its origin in a
    /// comment. Secrets are never in it.
    pub(crate) fn to_toml(&self, origins: &Origins) -> String {
        print::to_toml(self, origins)
    }
}

impl Default for Config {
    fn default() -> Config {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Config {
            listen: vec![ListenAddress::Tcp { host: "127.0.0.1".to_owned(), port: 50061 }],
            health_listen: None,
            insecure_listen: false,
            token_file: None,
            tls: TlsFiles::default(),
            client_names: None,
            unix_sockets: UnixSockets::default(),
            identify_peers: IdentifyPeers::default(),
            codex_path: None,
            codex_home: std::env::home_dir().unwrap_or_else(|| PathBuf::from("/")).join(".codex"),
            share_codex_home: false,
            workers: cores.min(4),
            offline_model: false,
            drain_grace: Duration::from_secs(30),
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            limits: AdmissionLimits::default(),
            quotas: QuotaLimits::default(),
            requests: RequestLimits::default(),
            connections: ConnectionLimits::default(),
            retention: Retention::default(),
            readers: ReaderLimits::default(),
            contexts: ContextLimits::default(),
            timeouts: Timeouts::default(),
            pool: PoolSettings::default(),
            worker: WorkerSettings::default(),
            state: StateSettings::default(),
            allow_writable_codex_home: false,
            policy: Policy::default(),
            tools: BTreeMap::new(),
            tenants: BTreeMap::new(),
            tenant: Tenant::default(),
            api_key: None,
            guard: None,
            worker_env: Vec::new(),
            kept_beside: KeptBeside::default(),
            own_token: None,
        }
    }
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// A TCP port of a host: an IP address without brackets, or a name. Port 0 lets the system
    /// choose.
    Tcp {
        /// A name or an address.
        host: String,
        /// 0 for any that is free.
        port: u16,
    },
    /// A Unix domain socket by its absolute path, short enough for the system.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            ListenAddress::Tcp { host, port } => write!(f, "{host}:{port}"),
            ListenAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The PEM files of TLS on the TCP listeners; not of those for health probes, and not of Unix sockets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its authority. Default none: no TLS.
    pub cert: Option<PathBuf>,
    /// Its key; given with `cert`, or not at all.
    pub key: Option<PathBuf>,
    /// The authorities that vouch for clients, which then have to show a certificate. Only with `cert`.
    /// Default none: clients show none.
    pub client_ca: Option<PathBuf>,
}

/// Who may connect to the server's Unix sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixSockets {
    /// The mode of their files. Default 0600: nobody but who runs the sidecar.
    pub mode: u32,
    /// The group of their files, by name or number. Default: the sidecar's.
    pub group: Option<String>,
    /// The users that are served, by their numbers; who runs the sidecar is one only if it is among them,
    /// because the model's commands run as the same. Default: all whom the mode lets in; so where there are
    /// only groups, those of no other group are refused.
    pub allow_uids: Option<Vec<u32>>,
    /// The groups whose users are served, by their numbers; a process's own group counts, not the
    /// others that its user is in. Default as for the users.
    pub allow_gids: Option<Vec<u32>>,
}

impl Default for UnixSockets {
    fn default() -> UnixSockets {
        UnixSockets { mode: 0o600, group: None, allow_uids: None, allow_gids: None }
    }
}

/// One tenant beside `default`.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantConfig {
    /// How it is served: the top level's configuration with what its table says. CODEX_HOME, state, key and
    /// tools are its own; what is the sidecar's as a whole (listeners, log, connections) is the top
    /// level's. It has no tenants.
    pub config: Config,
    /// By what its callers are known.
    pub credentials: Credentials,
    /// The file that its key for the model provider was read from, absolute.
    pub api_key_file: Option<PathBuf>,
    /// The environment variable that it was read from.
    pub api_key_env: Option<String>,
    /// Its workers' share of the processors against other tenants' (`cpu.weight` of cgroup v2), 1 to
    /// 10,000. Default: as the system shares them.
    pub cpu_weight: Option<u32>,
}

/// The key for the model provider.
#[derive(Clone)]
pub struct ApiKey {
    /// The key itself; `Debug` does not show it.
    pub secret: SecretString,
    /// The environment variable, or the file, that it came from.
    pub source: Cow<'static, str>,
}

/// What tells a key from others without telling the key: the first 16 hexadecimal digits of its
/// SHA-256.
pub(crate) fn key_fingerprint(key: &str) -> String {
    use sha2::{Digest as _, Sha256};
    Sha256::digest(key).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey([redacted] from {})", self.source)
    }
}

impl PartialEq for ApiKey {
    fn eq(&self, other: &ApiKey) -> bool {
        self.secret.expose_secret() == other.secret.expose_secret() && self.source == other.source
    }
}
