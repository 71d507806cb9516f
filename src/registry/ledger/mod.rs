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

pub(crate) mod advice;
mod backend;
mod backlog;
mod change;
mod disk;
pub(crate) mod export;
mod fault;
pub(crate) mod file;
pub(crate) mod frame;
pub(crate) mod import;
pub(crate) mod key;
pub(crate) mod lines;
mod message;
mod open;
mod queue;
mod read;
pub(crate) mod record;
pub(crate) mod salvage;
mod store;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod writer;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::model::id::ThreadId;
use crate::registry::ledger::disk::{Disk, FileDisk};
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::queue::{Group, Queue};
use crate::registry::ledger::record::Record;
use crate::registry::ledger::writer::{Pauses, Shelf, Writer};
use crate::registry::threads::ThreadFacts;

pub(crate) use change::{
    Change, KeptBinding, KeptEnd, KeptFacts, KeptMark, KeptThreadStarted, KeptTokens, KeptTurn,
};

/// Where the state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatePath {
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
    pub path: Option<StatePath>,
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
    #[error("{}", advice::in_use(path))]
    InUse { path: PathBuf },
    /// It can't be read as a ledger, or not all of it.
    #[error("{}", advice::damaged(path, cause))]
    Damaged { path: PathBuf, cause: String },
    /// There can be none in what has its name.
    #[error("{}", advice::not_a_file(path, what))]
    NotAFile { path: PathBuf, what: String },
    /// A newer sidecar wrote it.
    #[error("{}", advice::too_new(path, *version, *newest))]
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
    Tokens(KeptTokens),
}

/// What an earlier process kept is given to this, piece by piece, in a thread that may block.
pub(crate) type Restore = Box<dyn FnMut(Kept) + Send>;

/// The ledger.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// `None` for one that keeps nothing.
    file: Option<InFile>,
    untroubled: watch::Sender<Option<Trouble>>,
    exports: export::Exports,
    #[cfg(test)]
    played: Option<testing::Played>,
}

#[derive(Debug)]
struct InFile {
    path: PathBuf,
    durability: Durability,
    queue: Arc<Queue>,
    shelf: Arc<Shelf>,
    /// Until it is opened.
    unopened: Mutex<Option<(Box<dyn Disk>, Pauses)>>,
    /// Done when the file is let go.
    closed: watch::Receiver<bool>,
    closing: Mutex<Option<watch::Sender<bool>>>,
}

impl Ledger {
    /// One that keeps nothing, and never has trouble.
    pub(crate) fn memory() -> Ledger {
        Ledger::default()
    }

    /// One on a disk in memory.
    #[cfg(test)]
    pub(crate) fn played_on(disk: &Arc<testing::Disk>) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.played = Some(disk.start());
        ledger
    }

    /// One in a file, which is not read yet: there is trouble until it is.
    pub(crate) fn in_file(path: PathBuf, durability: Durability) -> Ledger {
        let disk = FileDisk::new(path, durability);
        Ledger::on(Box::new(disk), durability, Pauses::default())
    }

    fn on(disk: Box<dyn Disk>, durability: Durability, pauses: Pauses) -> Ledger {
        let path = disk.path().to_owned();
        let cause = format!("{} is not read yet", path.display());
        let (closing, closed) = watch::channel(false);
        Ledger {
            file: Some(InFile {
                path,
                durability,
                queue: Arc::new(Queue::new(Trouble { cause })),
                shelf: Arc::default(),
                unopened: Mutex::new(Some((disk, pauses))),
                closed,
                closing: Mutex::new(Some(closing)),
            }),
            untroubled: watch::Sender::default(),
            exports: export::Exports::default(),
            #[cfg(test)]
            played: None,
        }
    }

    /// Reads what an earlier process has kept, and gives it to `restore`. Returns when that is done, or when
    /// there is trouble that may go away: it is tried again from time to time then, and `restore` is
    /// called when it has gone. What was given once is not given again.
    ///
    /// # Errors
    /// [`OpenError`], which does not go away.
    pub(crate) async fn open(&self, restore: Restore) -> Result<(), OpenError> {
        #[cfg(test)]
        if let Some(played) = &self.played {
            played.restore(restore);
            return Ok(());
        }
        let Some(file) = &self.file else { return Ok(()) };
        let Some((disk, pauses)) = lock(&file.unopened).take() else { return Ok(()) };
        let closing = lock(&file.closing).take();
        let writer =
            Writer::new(disk, Arc::clone(&file.queue), Arc::clone(&file.shelf), pauses, restore);
        let (opened, answer) = oneshot::channel();
        let run = move || {
            // Dropped when the thread ends, however it does.
            let _closing = closing;
            writer.run(opened);
        };
        if let Err(error) = std::thread::Builder::new().name("ledger".to_owned()).spawn(run) {
            let cause = format!("there can be no thread that writes the state: {error}");
            file.queue.note_failure(&Trouble { cause });
        }
        tokio::spawn(watch_for_hangs(Arc::downgrade(&file.queue), pauses.hangs, file.path.clone()));
        answer.await.unwrap_or(Ok(()))
    }

    /// Whether all that an earlier process has kept was given to `restore`.
    pub(crate) fn is_read(&self) -> bool {
        self.file.as_ref().is_none_or(|file| file.queue.is_read())
    }

    /// Keeps what waits to be kept, if it can, and lets go of the file. Nothing is kept from there on.
    pub(crate) async fn close(&self) {
        let Some(file) = &self.file else { return };
        file.queue.close();
        // One that was never opened has no file.
        drop(lock(&file.closing).take());
        let mut closed = file.closed.clone();
        while closed.changed().await.is_ok() {}
    }

    /// Queues changes: they are kept, together, in the order of the calls. Where that can't be done now,
    /// `Written` says so at once, and they are kept as soon as it can.
    pub(crate) fn write(&self, changes: Vec<Change>) -> Written {
        #[cfg(test)]
        if let Some(played) = &self.played {
            return played.write(changes, None);
        }
        let Some(file) = &self.file else { return Written::yes() };
        file.queue.submit(Group::new(&changes, None))
    }

    /// The same for what nobody waits for: it is kept with the next that somebody waits for, or soon.
    pub(crate) fn note(&self, changes: &[Change]) {
        #[cfg(test)]
        if let Some(played) = &self.played {
            return drop(played.write(changes.to_vec(), None));
        }
        let Some(file) = &self.file else { return };
        file.queue.note(Group::new(changes, None));
    }

    /// The same for what can be refused: where they can't be kept now, they are not, and `undo` is in
    /// their place, in case that the disk has them all the same.
    pub(crate) fn try_write(&self, changes: Vec<Change>, undo: Vec<Change>) -> Written {
        #[cfg(test)]
        if let Some(played) = &self.played {
            return played.write(changes, Some(undo));
        }
        let Some(file) = &self.file else { return Written::yes() };
        file.queue.submit(Group::new(&changes, Some(undo)))
    }

    /// Of what was removed by the changes up to now nothing is to be left in the file soon: the freed room
    /// in it has what was there until it is used again.
    pub(crate) fn erase_soon(&self) {
        if let Some(file) = &self.file {
            file.queue.erase_soon();
        }
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
        let Some(file) = &self.file else { return Ok(None) };
        let key = key::thread(thread_id);
        let (path, shelf, queue) =
            (file.path.clone(), Arc::clone(&file.shelf), Arc::clone(&file.queue));
        let read = tokio::task::spawn_blocking(move || {
            let record = match queue.find(&key) {
                Some(None) => return Ok(None),
                Some(Some(value)) => {
                    let damaged = |cause: &str| Fault::Damaged(cause.to_owned());
                    Record::decode(&value, &key).map(Some).map_err(damaged)
                }
                None => match shelf.snapshot() {
                    Some(snapshot) => snapshot.and_then(|snapshot| snapshot.get(&key)),
                    None => Err(Fault::System("it can't be read now".to_owned())),
                },
            };
            match record.map_err(|fault| fault.into_trouble(&path))? {
                Some(Record::Facts(_, kept)) => Ok(Some(kept.facts)),
                Some(_) | None => Ok(None),
            }
        });
        let gone = |_| Err(Trouble { cause: "the process ends".to_owned() });
        read.await.unwrap_or_else(gone)
    }

    /// What is kept at this moment, without what waits; `None` while that can't be read.
    #[cfg(test)]
    fn snapshot(&self) -> Option<Result<store::Snapshot, Fault>> {
        self.file.as_ref()?.shelf.snapshot()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| &*file.path)
    }

    /// What kept changes outlive, where any are kept.
    pub(crate) fn durability(&self) -> Option<Durability> {
        self.file.as_ref().map(|file| file.durability)
    }

    /// Why nothing can be kept now, as it changes.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        #[cfg(test)]
        if let Some(played) = &self.played {
            return played.trouble();
        }
        match &self.file {
            Some(file) => file.queue.trouble(),
            None => self.untroubled.subscribe(),
        }
    }
}

/// The writer can't say so itself while it waits for the disk.
async fn watch_for_hangs(queue: Weak<Queue>, after: Duration, path: PathBuf) {
    let seconds = after.as_secs();
    let cause = format!("{}: the disk has not answered for {seconds} seconds", path.display());
    let trouble = Trouble { cause };
    loop {
        tokio::time::sleep(after / 10).await;
        match queue.upgrade() {
            Some(queue) if !queue.is_closed() => queue.note_if_hangs(after, &trouble),
            Some(_) | None => return,
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            file.queue.close();
        }
    }
}

// A panic elsewhere can't leave it half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether changes are kept, once that is known.
#[derive(Debug)]
pub(crate) struct Written(Option<oneshot::Receiver<Result<(), Trouble>>>);

impl Written {
    /// Of what need not be waited for.
    pub(crate) fn yes() -> Written {
        Written(None)
    }

    fn no(trouble: Trouble) -> Written {
        let (ack, written) = oneshot::channel();
        // The receiver is there.
        let _ = ack.send(Err(trouble));
        Written(Some(written))
    }

    fn when(written: oneshot::Receiver<Result<(), Trouble>>) -> Written {
        Written(Some(written))
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
