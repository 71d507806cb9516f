//! The seam between a worker and whatever it speaks with: two streams, its complaints, and its end.
//!
//! A worker knows nothing else of the other side. A child process is one way to get a conversation
//! (`child`), a pair of pipes in memory another.

use std::io;
use std::path::PathBuf;

use futures::future::BoxFuture;
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::worker::SpawnError;

/// What a worker speaks over.
pub(crate) struct Conversation {
    /// What is on the other side, as an error names it.
    pub program: PathBuf,
    /// The operating system's id of it, where it is a process.
    pub pid: Option<u32>,
    /// Towards it.
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    /// From it.
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// Its complaints.
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    /// The key that it is to know; it must have been made to keep it in memory.
    pub api_key: Option<SecretString>,
    /// How it ends.
    pub ending: Box<dyn Ending>,
    /// The variables that it was told to keep from commands, by name or pattern.
    pub excluded: Vec<String>,
}

impl std::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Conversation { program, pid, .. } = self;
        f.debug_struct("Conversation").field("program", program).field("pid", pid).finish()
    }
}

/// The end of the other side.
pub(crate) trait Ending: Send {
    /// Waits for its own end, and tells it in words: `exit status 1`. May be dropped and called again.
    fn exited(&mut self) -> BoxFuture<'_, io::Result<String>>;

    /// Has it ended at once, with all that it started. Doesn't wait; [`Ending::gone`] does.
    fn kill(&mut self);

    /// Waits until it is gone, with all that it started.
    fn gone(&mut self) -> BoxFuture<'_, ()>;
}

/// A way to get a conversation.
pub(crate) trait Launch: Send + Sync {
    /// Gets one that knows these values of `-c`.
    fn launch<'a>(
        &'a self,
        config_overrides: &'a [String],
    ) -> BoxFuture<'a, Result<Conversation, SpawnError>>;
}
