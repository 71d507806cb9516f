//! What outlives the process: bindings, the facts of threads, turns.
//!
//! The ledger lies under the registry and the turns, which are in memory and answer every question that
//! is asked while the sidecar runs. Whoever changes what must outlive it [writes](Ledger::write) the
//! [`Change`]s in the order in which they happen, and waits for [`Written`] before it tells anybody.
//! [`Ledger::open`] gives back at the next start what was written, as [`Kept`].
//!
//! Invariants: changes are kept in the order of the calls, those of one call together or not at all.
//! `Written` says yes only once they are as durable as [`Durability`] says. What can't be kept now (no room,
//! a disk that can't be written) is tried again until it can, or is undone, as the caller of it chose;
//! meanwhile there is [`Trouble`], and no turn is to start. A file that can't be understood is refused
//! and never written to.
//!
//! One ledger is one tenant's: no key names the tenant.

mod change;
#[cfg(test)]
pub(crate) mod testing;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::{oneshot, watch};

use crate::model::id::ThreadId;
use crate::registry::threads::ThreadFacts;

pub(crate) use change::{Change, KeptBinding, KeptEnd, KeptMark, KeptThreadStarted, KeptTurn};

/// Where the ledger is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatePlace {
    /// This file.
    File(PathBuf),
    /// Nowhere: all is forgotten with the process.
    Memory,
}

/// What kept changes outlive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The loss of power: each group of changes waits for the disk (fsync).
    #[default]
    Power,
    /// The end of the process, however it ends. A machine that goes down with it may damage the file.
    Process,
}

/// How the ledger keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StateSettings {
    /// Where it is. Default: `sidecar.redb` in CODEX_HOME, beside the threads that it names.
    pub place: Option<StatePlace>,
    /// What kept changes outlive. Default: the loss of power.
    pub durability: Durability,
}

/// Why nothing can be kept now, for the person who reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// With the path and what the system says.
    pub(crate) cause: String,
}

/// Why a ledger is refused at the start. None of these goes away by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// Another process has it.
    #[error("")]
    InUse { path: PathBuf },
    /// It can't be read as a ledger, or not all of it.
    #[error("")]
    Damaged { path: PathBuf, cause: String },
    /// A newer sidecar wrote it.
    #[error("")]
    TooNew { path: PathBuf, version: u64, newest: u64 },
}

/// Something that an earlier process kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kept {
    Binding(Box<KeptBinding>),
    Mark(KeptMark),
    Turn(Box<KeptTurn>),
    /// The thread that was worked with last in a directory, of those without a context.
    Directory {
        directory: PathBuf,
        latest: crate::registry::latest::LatestThread,
    },
}

/// What an earlier process kept is given to this, piece by piece, in a thread that may block.
pub(crate) type Restore = Box<dyn FnMut(Kept) + Send>;

/// The ledger.
#[derive(Debug)]
pub(crate) struct Ledger {
    trouble: watch::Sender<Option<Trouble>>,
    #[cfg(test)]
    played: Option<testing::Played>,
}

impl Ledger {
    /// One that keeps nothing, and never has trouble.
    pub(crate) fn memory() -> Ledger {
        Ledger {
            trouble: watch::Sender::default(),
            #[cfg(test)]
            played: None,
        }
    }

    /// One on a disk in memory.
    #[cfg(test)]
    pub(crate) fn on(disk: &std::sync::Arc<testing::Disk>) -> Ledger {
        Ledger { played: Some(disk.start()), ..Ledger::memory() }
    }

    /// One in a file, which is not read yet: there is trouble until it is.
    pub(crate) fn in_file(path: PathBuf, durability: Durability) -> Ledger {
        let _ = (path, durability);
        Ledger::memory()
    }

    /// Reads what an earlier process has kept, and gives it to `restore`. Returns when that is done, or when
    /// there is trouble that may go away: it is tried again from time to time then, and `restore` is
    /// called when it has gone.
    ///
    /// # Errors
    /// [`OpenError`], which does not go away.
    pub(crate) async fn open(&self, mut restore: Restore) -> Result<(), OpenError> {
        #[cfg(test)]
        if let Some(played) = &self.played {
            played.restore(&mut restore);
            return Ok(());
        }
        drop(restore);
        Ok(())
    }

    /// Whether all that an earlier process has kept was given to `restore`.
    pub(crate) fn is_read(&self) -> bool {
        true
    }

    /// All that is kept as of now, as JSON lines in parts of many, read while others write.
    ///
    /// # Errors
    /// [`Trouble`]; `None` for one that keeps nothing.
    pub(crate) async fn export(
        &self,
    ) -> Result<Option<tokio::sync::mpsc::Receiver<Result<bytes::Bytes, Trouble>>>, Trouble> {
        Ok(None)
    }

    /// Keeps what waits to be kept, if it can, and lets go of the file. Nothing is kept from there on.
    pub(crate) async fn close(&self) {}

    /// Queues changes: they are kept, together, in the order of the calls. Where that can't be done now,
    /// `Written` says so at once, and they are kept as soon as it can.
    pub(crate) fn write(&self, changes: Vec<Change>) -> Written {
        #[cfg(test)]
        if let Some(played) = &self.played {
            return played.write(changes, None);
        }
        let _ = changes;
        Written::yes()
    }

    /// The same for what can be refused: where they can't be kept now, they are not, and `undo` is in
    /// their place, in case that the disk has them all the same.
    pub(crate) fn try_write(&self, changes: Vec<Change>, undo: Vec<Change>) -> Written {
        #[cfg(test)]
        if let Some(played) = &self.played {
            return played.write(changes, Some(undo));
        }
        let _ = (changes, undo);
        Written::yes()
    }

    /// What is known of a thread.
    ///
    /// # Errors
    /// [`Trouble`] where it can't be read now.
    pub(crate) async fn facts_of(
        &self,
        thread_id: &ThreadId,
    ) -> Result<Option<ThreadFacts>, Trouble> {
        #[cfg(test)]
        if let Some(played) = &self.played {
            return Ok(played.facts_of(thread_id));
        }
        let _ = thread_id;
        Ok(None)
    }

    /// Why nothing can be kept now, as it changes.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        #[cfg(test)]
        if let Some(played) = &self.played {
            return played.trouble();
        }
        self.trouble.subscribe()
    }
}

/// Whether changes are kept, once that is known.
#[derive(Debug)]
pub(crate) struct Written(Option<oneshot::Receiver<Result<(), Trouble>>>);

impl Written {
    /// Of what need not be waited for.
    pub(crate) fn yes() -> Written {
        Written(None)
    }
}

impl Future for Written {
    type Output = Result<(), Trouble>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Trouble>> {
        let Some(receiver) = &mut self.0 else { return Poll::Ready(Ok(())) };
        let gone = || Err(Trouble { cause: "the ledger is closed".to_owned() });
        Pin::new(receiver).poll(context).map(|written| written.unwrap_or_else(|_| gone()))
    }
}
