//! The one task that owns what ends a worker: the order to kill it, its own end, a broken stream.
//!
//! It sees the first of them, tells why, closes all that depends on the worker, and is over when the
//! other side is gone with all that it started. A [`Life`] is the handle to it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::app_server::peer::Peer;
use crate::worker::conversation::Ending;
use crate::worker::route::Routes;
use crate::worker::stderr::StderrTail;

/// How long what explains an end may come after it: the exit after the broken stream, the last words
/// after the exit.
const EXPLAINED_WITHIN: Duration = Duration::from_millis(200);

/// How a worker ended.
#[derive(Debug, Clone)]
pub(crate) struct WorkerExit {
    /// What the sidecar saw first: `exit status 1`, `it wrote 1000 lines that …`, `killed: …`.
    pub cause: String,
    /// What it said last on its stderr, oldest first, each line with its time.
    pub stderr_tail: Vec<String>,
}

impl std::fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.cause, with_last_words(&self.stderr_tail))
    }
}

pub(super) fn with_last_words(lines: &[String]) -> String {
    if lines.is_empty() {
        String::new()
    } else {
        format!("; its last words: {}", lines.join(" | "))
    }
}

/// A worker's end: it can be ordered, and waited for. It comes when this is dropped.
#[derive(Debug)]
pub(super) struct Life {
    killed: Kill,
    exit: watch::Receiver<Option<Arc<WorkerExit>>>,
}

#[derive(Debug, Clone, Default)]
struct Kill {
    token: CancellationToken,
    cause: Arc<OnceLock<String>>,
}

impl Life {
    /// Orders the end. The first cause is the one that is told.
    pub(super) fn end(&self, cause: impl Into<String>) {
        let _ = self.killed.cause.set(cause.into());
        self.killed.token.cancel();
    }

    /// Waits for the end.
    pub(super) async fn exited(&self) -> Arc<WorkerExit> {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(lost_runner),
            Err(_) => lost_runner(),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end("nobody needs it any more");
    }
}

fn lost_runner() -> Arc<WorkerExit> {
    Arc::new(WorkerExit { cause: "its supervision ended".to_owned(), stderr_tail: Vec::new() })
}

/// What the task owns.
pub(super) struct Runner {
    pub(super) ending: Box<dyn Ending>,
    pub(super) peer: Peer,
    pub(super) routes: Arc<Routes>,
    pub(super) stderr_tail: Arc<StderrTail>,
    /// The reading of the stderr.
    pub(super) drained: JoinHandle<()>,
}

impl Runner {
    pub(super) fn start(self) -> Life {
        let killed = Kill::default();
        let (ended, exit) = watch::channel(None);
        let life = Life { killed: killed.clone(), exit };
        tokio::spawn(
            async move {
                let exit = self.run(&killed).await;
                let _ = ended.send(Some(Arc::new(exit)));
            }
            .in_current_span(),
        );
        life
    }

    async fn run(self, killed: &Kill) -> WorkerExit {
        let Runner { mut ending, peer, routes, stderr_tail, drained } = self;
        let cause = tokio::select! {
            biased;
            // First: who orders the end knows best why it comes.
            () = killed.token.cancelled() => {
                let cause = killed.cause.get().map_or("", String::as_str);
                format!("killed: {cause}")
            }
            // Above the broken stream: an exit that was seen already explains it.
            exit = ending.exited() => {
                exit.unwrap_or_else(|error| format!("its end can't be waited for: {error}"))
            }
            cause = peer.closed() => {
                // Most often the stream breaks a moment before the exit can be seen.
                match tokio::time::timeout(EXPLAINED_WITHIN, ending.exited()).await {
                    Ok(Ok(exit)) => exit,
                    Ok(Err(_)) | Err(_) => cause,
                }
            }
        };
        let cause = match peer.misconduct() {
            Some(misconduct) if !killed.token.is_cancelled() => misconduct.to_owned(),
            _ => cause,
        };
        peer.close(cause.clone());
        routes.close();
        // Also what the worker started and left behind.
        ending.kill();
        ending.gone().await;
        // A descendant may still hold the stderr open.
        let _ = tokio::time::timeout(EXPLAINED_WITHIN, drained).await;
        WorkerExit { cause, stderr_tail: stderr_tail.last_words() }
    }
}
