//! Turns that were told their end, and that Codex goes on with.
//!
//! A worker that has one is not killed while others are at work on it, since they would be lost with it.
//! It gets no new turns until Codex lets go of the thread, takes them again then, and is killed once it
//! has nothing to lose; after a while it is killed all the same.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tracing::Instrument as _;

use crate::pool::incarnation::Unended;
use crate::pool::{Lease, Pool};

/// How many times as long as any turn may take to end such a turn may take. A worker that is merely busy,
/// with the output of many turns, is through with it by then.
const PATIENCE: u32 = 10;

/// That is at least so long: Codex itself gives a thread 10 s to shut down. What it has not ended by then it
/// never ends, and the worker would be kept from everybody else for as long as any turn on it lasts.
const LEAST: Duration = Duration::from_secs(30);

impl Pool {
    /// Lets a worker that does not end a turn live on for the sake of the others. `let_go` is to complete
    /// when Codex has let go of the turn's thread; `grace` is how long the turn had to end.
    pub(crate) fn outlast(
        self: &Arc<Pool>,
        lease: Arc<Lease>,
        grace: Duration,
        let_go: impl Future<Output = ()> + Send + 'static,
    ) {
        let incarnation = Arc::clone(lease.incarnation());
        let unended = Unended::new(lease);
        self.doubt(&incarnation);
        tokio::spawn(
            async move {
                let within = grace.saturating_mul(PATIENCE).max(LEAST);
                let cause = tokio::select! {
                    biased;
                    () = let_go => None,
                    _ = incarnation.worker.exited() => None,
                    () = incarnation.has_nothing_to_lose() => Some(String::new()),
                    () = tokio::time::sleep(within) => {
                        Some(format!(", for {}", humantime::format_duration(within)))
                    }
                };
                if let Some(how_long) = cause {
                    let cause = "it did not end a turn that it was told to interrupt";
                    incarnation.give_up(&format!("{cause}{how_long}"));
                }
                drop(unended);
                // Its supervisor sees whether it takes turns again.
                incarnation.doubted.notify_one();
            }
            .in_current_span(),
        );
    }
}
