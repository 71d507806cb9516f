//! Whether turns can run: there is a worker for them, and what they do can be kept.

use tokio::sync::watch;

use super::Engine;
use crate::pool;
use crate::registry::ledger;

/// Why turns can't run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotReady {
    pub(crate) kind: Trouble,
    /// For the person who reads it.
    pub(crate) cause: String,
}

/// Kinds of trouble that keep turns from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// There is no worker for them.
    Pool(pool::Trouble),
    /// What they do can't be kept.
    Ledger,
}

/// Tells whether turns can run, as it changes.
#[derive(Debug)]
pub(crate) struct ReadinessWatch {
    pool: watch::Receiver<pool::Readiness>,
    ledger: watch::Receiver<Option<ledger::Trouble>>,
    told: Option<Result<(), NotReady>>,
}

impl Engine {
    /// Whether turns can run, now and as it changes.
    pub(crate) fn readiness(&self) -> ReadinessWatch {
        let (pool, ledger) = (self.pool.readiness(), self.ledger.trouble());
        ReadinessWatch { pool, ledger, told: None }
    }
}

impl ReadinessWatch {
    /// Whether turns can run now.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn now(&mut self) -> Result<(), NotReady> {
        let ledger = self.ledger.borrow_and_update().clone();
        let pool = self.pool.borrow_and_update().clone();
        match (pool, ledger) {
            // It is most likely the cause of both.
            (
                pool::Readiness::NotReady { kind: kind @ pool::Trouble::HomeUnusable, cause },
                Some(ledger),
            ) => {
                let cause = format!("{cause}; {}", ledger.cause);
                Err(NotReady { kind: Trouble::Pool(kind), cause })
            }
            (_, Some(ledger::Trouble { cause })) => Err(NotReady { kind: Trouble::Ledger, cause }),
            (pool::Readiness::NotReady { kind, cause }, None) => {
                Err(NotReady { kind: Trouble::Pool(kind), cause })
            }
            (pool::Readiness::Ready, None) => Ok(()),
        }
    }

    /// The same, at once when it is asked first, then whenever it is another than it was; `None` when it
    /// does not change any more.
    pub(crate) async fn next(&mut self) -> Option<Result<(), NotReady>> {
        loop {
            let now = self.now();
            if self.told.as_ref() != Some(&now) {
                return Some(self.told.insert(now).clone());
            }
            tokio::select! {
                changed = self.pool.changed() => changed.ok()?,
                changed = self.ledger.changed() => changed.ok()?,
            }
        }
    }
}
