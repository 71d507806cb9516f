//! The flags of `serve`.

use std::ffi::OsString;

/// Flags of `serve`, as they were written: what they mean is checked by `Config::load`, together
/// with environment and file, so that all faults are told at once.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ServeArgs {
    /// Where to listen: HOST:PORT or unix:PATH; may be given several times
    /// [env: CODEX_SIDECAR_LISTEN, comma separated] [default: 127.0.0.1:50061]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Vec<OsString>,
    /// Where to listen for health probes only, as for --listen; for probes that come from outside
    /// [env: CODEX_SIDECAR_HEALTH_LISTEN, comma separated] [default: none]
    #[arg(long, value_name = "ADDR")]
    pub(crate) health_listen: Vec<OsString>,
    /// Let other machines reach what --listen names although no credential is set; whoever reaches it can
    /// run commands [env: CODEX_SIDECAR_INSECURE_LISTEN]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) insecure_listen: Option<OsString>,
    /// The tokens that callers may show, one a line: TOKEN or sha256:HEX, then tenant=NAME and
    /// expires=TIME; `codex-sidecar token new` makes them [env: CODEX_SIDECAR_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<OsString>,
    /// The certificate for TLS on TCP, in PEM; with --tls-key [env: CODEX_SIDECAR_TLS_CERT]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_cert: Option<OsString>,
    /// The key of that certificate, in PEM [env: CODEX_SIDECAR_TLS_KEY]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_key: Option<OsString>,
    /// Who vouches for clients, in PEM: over TCP each has to show a certificate of theirs
    /// [env: CODEX_SIDECAR_TLS_CLIENT_CA]
    #[arg(long, value_name = "FILE")]
    pub(crate) tls_client_ca: Option<OsString>,
    /// The Codex CLI: a path, or a name to look for on PATH [env: CODEX_PATH] [default: codex]
    #[arg(long, value_name = "FILE")]
    pub(crate) codex_path: Option<OsString>,
    /// CODEX_HOME of the workers [env: CODEX_HOME] [default: ~/.codex]
    #[arg(long, value_name = "DIR")]
    pub(crate) codex_home: Option<OsString>,
    /// Use CODEX_HOME although another sidecar does: neither then knows what the other one's threads do
    /// [env: CODEX_SIDECAR_SHARE_CODEX_HOME]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) share_codex_home: Option<OsString>,
    /// Where bindings and turns are kept, so that a restart finds them: a file, or memory, which keeps
    /// nothing [env: CODEX_SIDECAR_STATE] [default: sidecar.redb in CODEX_HOME]
    #[arg(long, value_name = "PATH|memory")]
    pub(crate) state: Option<OsString>,
    /// How many workers to keep, 1 to 64
    /// [env: CODEX_SIDECAR_WORKERS] [default: the cores, at most 4]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) workers: Option<OsString>,
    /// A TOML file with settings; flags and environment win over it [env: CODEX_SIDECAR_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<OsString>,
    /// Let the built-in scripted model answer: no key, no network
    /// [env: CODEX_SIDECAR_OFFLINE_MODEL]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) offline_model: Option<OsString>,
    /// How long running turns may go on once asked to end, like 30s or 5m
    /// [env: CODEX_SIDECAR_DRAIN_GRACE] [default: 30s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    pub(crate) drain_grace: Option<OsString>,
    /// The form of the log on stderr: json or text
    /// [env: CODEX_SIDECAR_LOG_FORMAT] [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT")]
    pub(crate) log_format: Option<OsString>,
    /// What to log: a level, or a filter like info,codex_sidecar::pool=debug
    /// [env: CODEX_SIDECAR_LOG] [default: info]
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<OsString>,
    /// Print the effective configuration as TOML, without secrets, and exit
    #[arg(long)]
    pub(crate) print_config: bool,
}
