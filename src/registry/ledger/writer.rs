//! The one thread that writes: what waits becomes one commit.

use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use redb::{CompactionError, Database};
use tokio::sync::oneshot;

use crate::registry::ledger::disk::Disk;
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::open::{self, Found, Opened, Versions};
use crate::registry::ledger::queue::{Ack, Group, Queue, Work};
use crate::registry::ledger::store::{self, Snapshot, caught};
use crate::registry::ledger::{Kept, OpenError, Restore, Trouble};

/// How long the writer waits for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pauses {
    /// Before it tries again what the disk refused.
    pub(super) again: Duration,
    /// For another process to let go of the file.
    pub(super) in_use: Duration,
    /// Until it looks whether the file can be smaller.
    pub(super) idle: Duration,
}

impl Default for Pauses {
    fn default() -> Pauses {
        Pauses {
            again: Duration::from_secs(1),
            in_use: Duration::from_secs(3),
            idle: Duration::from_secs(2),
        }
    }
}

const IN_USE_AGAIN: Duration = Duration::from_millis(50);

/// A file that is smaller stays as it is.
const SMALL: u64 = 8 * 1024 * 1024;

/// The database, while there is one that can be read.
#[derive(Debug, Default)]
pub(super) struct Shelf(RwLock<Option<Database>>);

impl Shelf {
    /// What is in the database now; `None` while there is none.
    pub(super) fn snapshot(&self) -> Option<Result<Snapshot, Fault>> {
        let database = self.0.read().unwrap_or_else(PoisonError::into_inner);
        database.as_ref().map(Snapshot::of)
    }

    fn with<T>(&self, work: impl FnOnce(&Database) -> T) -> Option<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(work)
    }

    fn with_mut<T>(&self, work: impl FnOnce(&mut Option<Database>) -> T) -> T {
        work(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The writer.
pub(super) struct Writer {
    disk: Box<dyn Disk>,
    queue: Arc<Queue>,
    shelf: Arc<Shelf>,
    pauses: Pauses,
    versions: Versions,
    /// Until all was read.
    restore: Option<Restore>,
    /// How many pieces it was given.
    given: u64,
    /// How many bytes the records have.
    bytes: u64,
    /// How many bytes the file and the records had when it was made smaller last.
    compacted: (u64, u64),
}

impl Writer {
    pub(super) fn new(
        disk: Box<dyn Disk>,
        queue: Arc<Queue>,
        shelf: Arc<Shelf>,
        pauses: Pauses,
        restore: Restore,
    ) -> Writer {
        let (versions, restore) = (Versions::THIS, Some(restore));
        Writer {
            disk,
            queue,
            shelf,
            pauses,
            versions,
            restore,
            given: 0,
            bytes: 0,
            compacted: (0, 0),
        }
    }

    /// Runs until the queue is closed. `opened` is told how the first opening went.
    pub(super) fn run(mut self, opened: oneshot::Sender<Result<(), OpenError>>) {
        let path = self.disk.path().to_owned();
        let answer = match self.open_patiently() {
            Ok(()) => Ok(()),
            Err(fault) => match fault.into_open_error(&path, self.versions.newest()) {
                Ok(error) => Err(error),
                Err(trouble) => {
                    tracing::warn!(cause = trouble.cause, "the state can't be read now");
                    self.queue.note_failure(&trouble, Vec::new());
                    Ok(())
                }
            },
        };
        let is_refused = answer.is_err();
        // Whoever opens it may be gone.
        let _ = opened.send(answer);
        if !is_refused {
            self.serve();
        }
        let cause = format!("{}: the ledger is closed", path.display());
        self.queue.note_closed(&Trouble { cause });
    }

    fn serve(&mut self) {
        let mut idle = Some(self.pauses.idle);
        loop {
            if self.shelf.with(|_| ()).is_none() {
                let is_closing = self.queue.pause(self.pauses.again);
                self.recover();
                if is_closing {
                    break;
                }
                continue;
            }
            match self.queue.next(idle) {
                Work::Commit(groups, acks) => {
                    self.commit(&groups, acks);
                    idle = Some(self.pauses.idle);
                }
                // Not again before something has changed, unless somebody is in the way.
                Work::Idle => idle = self.compact().then_some(self.pauses.idle),
                Work::Close => break,
            }
        }
        if let Some(database) = self.shelf.with_mut(Option::take)
            && let Err(fault) = caught(|| Ok(database.close()?))
        {
            let trouble = fault.into_trouble(self.disk.path());
            tracing::warn!(cause = trouble.cause, "the state is closed as after a crash");
        }
    }

    /// Opens it, and waits for another process that ends.
    fn open_patiently(&mut self) -> Result<(), Fault> {
        let deadline = Instant::now() + self.pauses.in_use;
        loop {
            match self.open() {
                Err(Fault::InUse) if Instant::now() < deadline => {
                    if self.queue.pause(IN_USE_AGAIN) {
                        return Err(Fault::InUse);
                    }
                }
                Ok(()) => {
                    // What was told while it was read is in the queue.
                    self.keep_backlog();
                    return Ok(());
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    fn open(&mut self) -> Result<(), Fault> {
        let opened = open::open(&mut *self.disk, self.versions)?;
        let mut found = match &mut self.restore {
            Some(restore) => Some(read(&opened, &mut self.given, restore)?),
            None => None,
        };
        let database = opened.begin(found.as_mut())?;
        if let Some(found) = found {
            self.bytes = found.bytes;
            self.restore = None;
        }
        self.shelf.with_mut(|shelf| *shelf = Some(database));
        self.queue.note_read();
        Ok(())
    }

    fn commit(&mut self, groups: &[Group], acks: Vec<Ack>) {
        let operations = groups.iter().flat_map(|group| &group.operations);
        match self.shelf.with(|database| store::commit(database, operations)) {
            Some(Ok(grown)) => {
                self.bytes = self.bytes.saturating_add_signed(grown);
                self.queue.note_kept(acks);
            }
            Some(Err(fault)) => {
                let trouble = self.give_up(fault);
                tracing::warn!(cause = trouble.cause, "the state can't be written now");
                self.queue.note_failure(&trouble, acks);
            }
            None => {}
        }
    }

    /// Closes the database, which redb wants after an error: what it has in memory is not true any more.
    fn give_up(&mut self, fault: Fault) -> Trouble {
        if let Some(database) = self.shelf.with_mut(Option::take) {
            // It says that there was an error, and repairs what is in the file when it opens it again.
            let _ = caught(|| Ok(database.close()?));
        }
        fault.into_trouble(self.disk.path())
    }

    /// Opens it again, and keeps what could not be kept.
    fn recover(&mut self) {
        match self.disk.probe().map_err(Fault::from).and_then(|()| self.open()) {
            Ok(()) => {
                self.keep_backlog();
                if self.shelf.with(|_| ()).is_some() {
                    tracing::info!(path = %self.disk.path().display(), "the state is written again");
                }
            }
            Err(fault) => {
                let trouble = self.give_up(fault);
                self.queue.note_backlog_failure(&trouble);
            }
        }
    }

    fn keep_backlog(&mut self) {
        while let Some(backlog) = self.queue.take_backlog() {
            let operations: Vec<_> = backlog.operations().collect();
            match self.shelf.with(|database| store::commit(database, &operations)) {
                Some(Ok(grown)) => self.bytes = self.bytes.saturating_add_signed(grown),
                Some(Err(fault)) => {
                    let trouble = self.give_up(fault);
                    drop(backlog);
                    self.queue.note_backlog_failure(&trouble);
                    return;
                }
                None => return,
            }
        }
    }

    /// Makes the file smaller if there is little in it. Whether it is to be tried again, since somebody
    /// reads. Who writes or reads meanwhile waits: for about a second where 500 MiB become 50.
    fn compact(&mut self) -> bool {
        let (length, (least, bytes)) = (self.disk.len(), self.compacted);
        // It can't be smaller than it was made, with as much in it.
        let is_compact = length <= least.saturating_mul(2) && self.bytes > bytes / 2;
        if length <= SMALL || self.bytes > length / 4 || is_compact {
            return false;
        }
        let compacted = self.shelf.with_mut(|shelf| {
            let Some(database) = shelf else { return Ok(true) };
            caught(|| match database.compact() {
                Ok(_) => Ok(true),
                Err(CompactionError::TransactionInProgress) => Ok(false),
                Err(error) => Err(error.into()),
            })
        });
        match compacted {
            Ok(is_done) => {
                if is_done {
                    self.compacted = (self.disk.len(), self.bytes);
                }
                !is_done
            }
            Err(fault) => {
                let trouble = self.give_up(fault);
                tracing::warn!(cause = trouble.cause, "the file of the state stays large");
                self.queue.note_failure(&trouble, Vec::new());
                false
            }
        }
    }
}

/// How much is read before it is given, and how many such parts may wait for that.
const PART: usize = 1024;
const PARTS: usize = 4;

/// Reads all, while what was read is given to `restore` in a thread beside: a million contexts take as long
/// to take in as to read.
fn read(opened: &Opened, given: &mut u64, restore: &mut Restore) -> Result<Found, Fault> {
    let (read, taken) = mpsc::sync_channel::<Vec<Kept>>(PARTS);
    thread::scope(|scope| {
        let restoring = move || taken.into_iter().flatten().for_each(restore);
        let builder = thread::Builder::new().name("ledger restore".to_owned());
        let restoring = builder.spawn_scoped(scope, restoring)?;
        let mut part = Vec::new();
        let found = opened.read(given, &mut |kept| {
            part.push(kept);
            if part.len() == PART {
                // It takes all that comes, or has panicked, which is seen below.
                let _ = read.send(std::mem::take(&mut part));
            }
        });
        let _ = read.send(part);
        drop(read);
        match restoring.join() {
            Ok(()) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
