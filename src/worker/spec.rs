//! What a worker is made of: how it is launched, what it is held to, which one it is, and why there
//! may be none.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::app_server::peer::PeerLimits;
use crate::app_server::protected::Protection;
use crate::worker::conversation::Launch;
use crate::worker::runner::with_last_words;

/// Says of a version what is wrong with it.
pub(super) type CheckVersion = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// How to start a worker.
#[derive(Clone)]
pub(crate) struct WorkerSpec {
    /// Where its two streams come from; asked anew for every start.
    pub launch: Arc<dyn Launch>,
    /// Looks whether CODEX_HOME can be written, before a start and now and then; may block. The error
    /// says what is wrong with it, and what to do.
    pub check_home: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// The user's `config.toml`, in CODEX_HOME.
    pub config_file: PathBuf,
    /// Looks at the version that the handshake told; the error says what is wrong with it.
    pub check_version: Arc<CheckVersion>,
    /// Values for `-c`.
    pub config_overrides: Vec<String>,
    /// Texts that must not appear in anything that it says; asked anew for every start.
    pub secrets: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// What the commands of its turns must not write; looked for anew for every start.
    pub protected: Protection,
    /// Bounds.
    pub limits: WorkerLimits,
}

impl std::fmt::Debug for WorkerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither values nor variables: they may be secrets.
        f.debug_struct("WorkerSpec").field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Bounds of one worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerLimits {
    /// Bounds of the protocol.
    pub peer: PeerLimits,
    /// How long it may take from spawn to the end of the handshake. Default 30 s.
    pub start_timeout: Duration,
    /// How long any request but a turn may take.
    pub request_timeout: Duration,
}

impl Default for WorkerLimits {
    fn default() -> WorkerLimits {
        WorkerLimits {
            peer: PeerLimits::default(),
            start_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a worker could not be started.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum SpawnError {
    /// There is no CLI to start.
    #[error("{0}")]
    NotFound(String),
    /// The operating system refused.
    #[error("{} could not be started: {cause}", .program.display())]
    Os {
        program: PathBuf,
        /// What the system said.
        cause: String,
        /// Whether the machine is out of processes, memory or file descriptors.
        out_of_resources: bool,
    },
    /// Its version is none that the sidecar can work with.
    #[error("{} can't be used: {cause}", .program.display())]
    Version {
        program: PathBuf,
        /// Which version it is, and which are supported.
        cause: String,
    },
    /// It started, but the handshake failed.
    #[error("{} started, but did not become an app-server: {cause}{}", .program.display(), with_last_words(.stderr_tail))]
    Handshake {
        program: PathBuf,
        /// What happened.
        cause: String,
        /// The last lines that it complained.
        stderr_tail: Vec<String>,
    },
}
