//! The configuration: the only reader of flags, environment and file.
//!
//! A value comes from, in this order, a flag, an environment variable, the file, its default.
//! [`Config::load`] looks at all of it before it says anything, so that one run tells every fault.
//! What comes out is plain data that nobody has to check again; this module knows no other one of
//! ours but [`crate::options`], and it opens, starts and creates nothing.
//!
//! `settings` is the one table of what there is; `load` and `print` both walk it, so that a setting
//! can't be readable without being printed, or the other way round.

mod args;
mod check;
mod codec;
mod fault;
mod listen;
mod load;
mod print;
mod settings;
#[cfg(test)]
mod tests;
mod tools;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use crate::options::ThreadOptions;

pub use args::ServeArgs;
pub use fault::{ConfigErrors, Fault};
pub use load::{Origin, Origins};

/// Most characters that Codex takes in one turn (Unicode scalar values); it refuses more itself.
pub const CODEX_MAX_INPUT_CHARACTERS: usize = 1_048_576;

/// How the sidecar runs. Durations are positive unless a field says otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where the server listens; at least one, all different. Default `127.0.0.1:50061`.
    pub listen: Vec<ListenAddress>,
    /// Where the server answers `grpc.health.v1` and nothing else, for probes that come from outside
    /// the pod or the machine (a kubelet dials the pod's address). Default none.
    pub health_listen: Option<Vec<ListenAddress>>,
    /// The Codex CLI: an absolute path, or a bare name that is looked for on PATH. Default: none
    /// given, which means `codex` on PATH.
    pub codex_path: Option<PathBuf>,
    /// CODEX_HOME of the workers, absolute; it need not exist yet. Default `~/.codex`.
    pub codex_home: PathBuf,
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
    /// What callers are held to.
    pub limits: Limits,
    /// What is kept of turns for those who join them late.
    pub retention: Retention,
    /// Clocks of turns, and the times within which workers have to act.
    pub timeouts: Timeouts,
    /// How workers are supervised and replaced.
    pub pool: PoolConfig,
    /// What workers are started with.
    pub worker: WorkerConfig,
    /// Defaults of the caller's Codex tools, by tool name.
    pub tools: BTreeMap<String, ToolDefaults>,
    /// The key for the model provider: CODEX_API_KEY, else OPENAI_API_KEY. `None` where neither is
    /// given, for example because CODEX_HOME has a login.
    pub api_key: Option<ApiKey>,
    /// The binary that guards the workers, so that nothing of what they start outlives them: the
    /// sidecar's own. Found by itself where the sidecar runs as a program; to be named where it runs
    /// inside another one. No user's setting.
    pub guard: Option<PathBuf>,
}

impl Config {
    /// Reads flags, environment (through `env`) and file, and checks all of it.
    pub fn load(
        args: ServeArgs,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Config, ConfigErrors> {
        Config::load_with_origins(args, env).map(|(config, _)| config)
    }

    /// As [`Config::load`], and tells where each value that is not a default came from.
    pub fn load_with_origins(
        args: ServeArgs,
        env: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<(Config, Origins), ConfigErrors> {
        load::load(&args, env)
    }

    /// The configuration as a TOML file that loads to the same values, each with its origin in a
    /// comment. Secrets are never in it.
    pub fn to_toml(&self, origins: &Origins) -> String {
        print::to_toml(self, origins)
    }

    /// The defaults of a tool; empty ones for a tool that the configuration does not name.
    pub fn tool(&self, name: &str) -> ToolDefaults {
        self.tools.get(name).cloned().unwrap_or_default()
    }
}

impl Default for Config {
    fn default() -> Config {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Config {
            listen: vec![ListenAddress::Tcp { host: "127.0.0.1".to_owned(), port: 50061 }],
            health_listen: None,
            codex_path: None,
            codex_home: std::env::home_dir().unwrap_or_else(|| PathBuf::from("/")).join(".codex"),
            workers: cores.min(4),
            offline_model: false,
            drain_grace: Duration::from_secs(30),
            log_format: LogFormat::Text,
            log: "info".to_owned(),
            limits: Limits::default(),
            retention: Retention::default(),
            timeouts: Timeouts::default(),
            pool: PoolConfig::default(),
            worker: WorkerConfig::default(),
            tools: BTreeMap::new(),
            api_key: None,
            guard: None,
        }
    }
}

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// A TCP port of a host: an IP address without brackets, or a name. Port 0 lets the system
    /// choose.
    Tcp {
        /// The host.
        host: String,
        /// The port.
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

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Lines for people.
    Text,
}

/// What callers are held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most turns that run at once. Default 64.
    pub max_running_turns: usize,
    /// Most turns of one tenant that run at once. Default 64.
    pub max_running_turns_per_tenant: usize,
    /// Most turns that wait in all; beyond it QUEUE_FULL. Default 256.
    pub max_waiting_turns: usize,
    /// Most turns that wait for one binding; beyond it CONTEXT_QUEUE_FULL. Default 16.
    pub max_waiting_turns_per_context: usize,
    /// Most characters of text in one turn. Default and maximum 1,048,576, Codex's own limit.
    pub max_input_characters: usize,
    /// Largest gRPC request message, in bytes. Default 8 MiB.
    pub max_message_bytes: usize,
    /// Longest line that a worker may write, in bytes; 64 KiB to 64 MiB. Default 8 MiB.
    pub max_line_bytes: usize,
    /// Most connections of clients, over all listeners. Default 1,024.
    pub max_connections: usize,
    /// Most calls that one connection may have open. Default 1,024.
    pub max_streams_per_connection: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_running_turns: 64,
            max_running_turns_per_tenant: 64,
            max_waiting_turns: 256,
            max_waiting_turns_per_context: 16,
            max_input_characters: CODEX_MAX_INPUT_CHARACTERS,
            max_message_bytes: 8 << 20,
            max_line_bytes: 8 << 20,
            max_connections: 1024,
            max_streams_per_connection: 1024,
        }
    }
}

/// What is kept of turns for those who join them late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Most bytes of events of one turn. Default 4 MiB.
    pub max_bytes_per_turn: usize,
    /// Most bytes of events in all, at least as many as of one turn. Default 256 MiB.
    pub max_bytes: usize,
    /// How long a turn is kept after its end; zero keeps none. Default 10 min.
    pub after_end: Duration,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            max_bytes_per_turn: 4 << 20,
            max_bytes: 256 << 20,
            after_end: Duration::from_secs(600),
        }
    }
}

/// Clocks of turns, and the times within which workers have to act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest time of a turn when neither request nor tool say one. Default: no limit.
    pub turn: Option<Duration>,
    /// Longest time without progress when neither request nor tool say one. Default: no limit.
    pub idle: Option<Duration>,
    /// Longest wait for an answer when neither request nor tool say one. Default 60 s.
    pub answer: Duration,
    /// Longest `turn_timeout` that a caller may ask for. Default: any.
    pub max_turn: Option<Duration>,
    /// Longest `idle_timeout` that a caller may ask for. Default: any.
    pub max_idle: Option<Duration>,
    /// Longest `answer_timeout` that a caller may ask for. Default: any.
    pub max_answer: Option<Duration>,
    /// How long an interrupted turn has until its worker is killed. Default 2 s.
    pub interrupt_grace: Duration,
    /// How long a worker has to answer `initialize`. Default 30 s.
    pub worker_start: Duration,
    /// How long a turn waits for a worker that can take it. Default 10 s.
    pub worker_wait: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            turn: None,
            idle: None,
            answer: Duration::from_secs(60),
            max_turn: None,
            max_idle: None,
            max_answer: None,
            interrupt_grace: Duration::from_secs(2),
            worker_start: Duration::from_secs(30),
            worker_wait: Duration::from_secs(10),
        }
    }
}

/// How workers are supervised and replaced. `None` recycles nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Turns after which a worker is replaced. Default: any number.
    pub max_turns_per_worker: Option<u64>,
    /// Age at which a worker is replaced. Default: any.
    pub max_age: Option<Duration>,
    /// Resident memory, in bytes, above which a worker is replaced. Default: any.
    pub max_resident_bytes: Option<u64>,
    /// Most threads that a worker keeps loaded without a turn. Default: any number.
    pub max_idle_threads: Option<usize>,
    /// How often a worker is asked whether it is alive. Default 10 s.
    pub liveness_interval: Duration,
    /// How long it has to answer that. Default 5 s.
    pub liveness_timeout: Duration,
    /// Wait before the first restart of a worker; doubles with each failure. Default 200 ms.
    pub backoff_initial: Duration,
    /// Longest wait before a restart, at least `backoff_initial`. Default 30 s.
    pub backoff_max: Duration,
    /// Failed starts in a row after which starting pauses. Default 5.
    pub breaker_failures: u32,
    /// How long it then pauses. Default 30 s.
    pub breaker_open: Duration,
    /// Time between two starts, so that they don't race for CODEX_HOME; may be zero. Default
    /// 100 ms.
    pub start_spacing: Duration,
    /// How long a worker may take to read one message. Default 10 s.
    pub write_timeout: Duration,
}

impl Default for PoolConfig {
    fn default() -> PoolConfig {
        PoolConfig {
            max_turns_per_worker: None,
            max_age: None,
            max_resident_bytes: None,
            max_idle_threads: None,
            liveness_interval: Duration::from_secs(10),
            liveness_timeout: Duration::from_secs(5),
            backoff_initial: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            breaker_failures: 5,
            breaker_open: Duration::from_secs(30),
            start_spacing: Duration::from_millis(100),
            write_timeout: Duration::from_secs(10),
        }
    }
}

/// What workers are started with. The values are visible in the machine's process list: a secret
/// belongs into CODEX_HOME or the environment.
#[derive(Clone, PartialEq)]
pub struct WorkerConfig {
    /// Overrides of CLI configuration. A nested table means dotted keys. What it says of a feature
    /// beats `disable_features` and the sidecar's own defaults.
    pub config: toml::Table,
    /// Features of the CLI that are switched off, beside `goals`, which only `config` switches on.
    /// Default `shell_snapshot`: it runs a login shell for every new thread, and leaves it behind when
    /// the worker ends meanwhile.
    pub disable_features: Vec<String>,
}

/// Features that let Codex act after a turn has ended: a goal makes it take turn after turn by itself.
const OFF_BY_DEFAULT: [&str; 1] = ["goals"];

impl Default for WorkerConfig {
    fn default() -> WorkerConfig {
        WorkerConfig {
            config: toml::Table::new(),
            disable_features: vec!["shell_snapshot".to_owned()],
        }
    }
}

impl WorkerConfig {
    /// The values for `-c`, each `dotted.key=value` with the value in TOML. Features are among them
    /// as `features.NAME=false`: unlike `--disable`, a CLI that does not know one takes that with a
    /// warning. What `config` says of a feature holds, whatever else would switch it off.
    pub fn config_overrides(&self) -> Vec<String> {
        let config = print::flatten(&self.config);
        let is_said = |feature: &str| config.iter().any(|(key, _)| key == feature);
        let listed = self.disable_features.iter().map(String::as_str);
        let defaults =
            OFF_BY_DEFAULT.into_iter().filter(|name| !listed.clone().any(|x| x == *name));
        let disabled: Vec<String> = listed
            .clone()
            .chain(defaults)
            .map(|name| format!("features.{name}"))
            .filter(|feature| !is_said(feature))
            .map(|feature| format!("{feature}=false"))
            .collect();
        let config = config.iter().map(|(key, value)| format!("{key}={value}"));
        config.chain(disabled).collect()
    }
}

impl fmt::Debug for WorkerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WorkerConfig { config, disable_features } = self;
        let keys: Vec<String> = print::flatten(config).into_iter().map(|(key, _)| key).collect();
        // Keys only: a value may be a provider's token.
        f.debug_struct("WorkerConfig")
            .field("config", &keys)
            .field("disable_features", disable_features)
            .finish()
    }
}

/// Defaults of one of the caller's Codex tools. `None` means: not said here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolDefaults {
    /// How its threads run.
    pub thread_options: ThreadOptions,
    /// The thread that it continues where nothing is bound: a UUID, hyphenated and lower-case.
    pub thread_id: Option<String>,
    /// The thread key in place of the one that the tool's name gives; 1 to 256 bytes, trimmed.
    pub thread_id_key: Option<String>,
    /// The schema of its final response as it was given, a JSON object; neither made strict nor
    /// written out from its short form.
    pub output_schema: Option<serde_json::Value>,
    /// Longest time without progress.
    pub idle_timeout: Option<Duration>,
    /// Longest time of the whole turn.
    pub turn_timeout: Option<Duration>,
    /// Longest wait for an answer.
    pub answer_timeout: Option<Duration>,
    /// Most tokens of a turn, in and out.
    pub max_total_tokens: Option<NonZeroU64>,
}

/// The key for the model provider.
#[derive(Clone)]
pub struct ApiKey {
    /// The key itself; `Debug` does not show it.
    pub secret: SecretString,
    /// The environment variable that it came from.
    pub source: &'static str,
}

/// What tells a key from others without telling the key: the first 16 hexadecimal digits of its
/// SHA-256.
pub fn key_fingerprint(key: &str) -> String {
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
