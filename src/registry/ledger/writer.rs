//! The one thread that writes: what waits becomes one commit.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use redb::{CompactionError, Database};
use tokio::sync::oneshot;

use crate::registry::ledger::disk::{Disk, Whereabouts};
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::open::{self, Found, Opened, Versions};
use crate::registry::ledger::queue::{Group, Queue, Work};
use crate::registry::ledger::record::Operation;
use crate::registry::ledger::store::{self, Snapshot, caught, words_of};
use crate::registry::ledger::{Kept, OpenError, Restore, Trouble};

/// How long the writer waits for what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pauses {
    /// Before it tries again what the disk refused, or looks whether the file is in its place.
    pub(super) again: Duration,
    /// For another process to let go of the file.
    pub(super) in_use: Duration,
    /// Before it looks whether the file can be smaller.
    pub(super) smaller: Duration,
    /// For the disk, until it counts as one that hangs.
    pub(super) hangs: Duration,
}

impl Default for Pauses {
    fn default() -> Pauses {
        Pauses {
            again: Duration::from_secs(1),
            in_use: Duration::from_secs(3),
            smaller: Duration::from_secs(2),
            hangs: Duration::from_secs(10),
        }
    }
}

const IN_USE_AGAIN: Duration = Duration::from_millis(50);

/// Making the file anew takes no more of the time than one part in this many.
const RENEWING: u32 = 20;

/// Before it is tried again.
const NOT_RENEWED: Duration = Duration::from_secs(10);

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
    /// When it looks next whether the file can be smaller, and makes it anew.
    smaller_at: Instant,
    renewed_at: Instant,
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
        let now = Instant::now();
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
            smaller_at: now + pauses.smaller,
            renewed_at: now,
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
                    self.queue.note_failure(&trouble);
                    Ok(())
                }
            },
        };
        let is_refused = answer.is_err();
        // Whoever opens it may be gone.
        let _ = opened.send(answer);
        if !is_refused {
            while !self.step_safely() {}
            self.end();
        }
        let cause = format!("{}: the ledger is closed", path.display());
        self.queue.note_closed(&Trouble { cause });
    }

    /// A panic is trouble, too: else nobody would hear any more what is kept.
    fn step_safely(&mut self) -> bool {
        let stepped = panic::catch_unwind(AssertUnwindSafe(|| self.step()));
        stepped.unwrap_or_else(|panic| {
            let fault = Fault::System(format!("a fault of the sidecar: {}", words_of(&*panic)));
            let trouble = self.give_up(fault);
            self.queue.note_failure(&trouble);
            false
        })
    }

    /// Does what is to be done next. Whether it was the last.
    fn step(&mut self) -> bool {
        if self.queue.is_troubled() {
            let is_closing = self.queue.pause(self.pauses.again);
            self.recover();
            return is_closing;
        }
        match self.queue.next(self.pauses.again) {
            Work::Commit(groups) => self.commit(&groups),
            Work::Idle => {
                let queue = Arc::clone(&self.queue);
                let _busy = queue.busy();
                if let Err(trouble) = self.find_in_place() {
                    self.note_failure(&trouble);
                    return false;
                }
            }
            Work::Close => return true,
        }
        if self.queue.has_to_erase() && self.renewed_at <= Instant::now() {
            self.renew();
        }
        if self.smaller_at <= Instant::now() {
            self.smaller_at = Instant::now() + self.pauses.smaller;
            self.compact();
        }
        false
    }

    fn end(&mut self) {
        let queue = Arc::clone(&self.queue);
        let _busy = queue.busy();
        if self.queue.has_to_erase() {
            self.renew();
        }
        let ends = self.queue.unkept_ends();
        if self.queue.is_troubled() {
            let path = self.disk.path().display();
            tracing::error!(%path, turns = ends, "what could not be kept until now is lost, with the outcomes of so many turns");
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
                    if let Err(trouble) = self.keep_backlog() {
                        self.queue.note_backlog_failure(&trouble);
                    }
                    return Ok(());
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    fn open(&mut self) -> Result<(), Fault> {
        let opened = self.try_open();
        // Of one that could not be read nothing is known here: whatever comes in its place is as good.
        if opened.is_err() && self.restore.is_some() && self.given == 0 {
            self.disk.let_go();
        }
        opened
    }

    fn try_open(&mut self) -> Result<(), Fault> {
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

    fn commit(&mut self, groups: &[Group]) {
        let operations = groups.iter().flat_map(|group| &group.operations);
        match self.store(operations) {
            Ok(()) => self.queue.note_kept(),
            Err(trouble) => self.note_failure(&trouble),
        }
    }

    fn note_failure(&self, trouble: &Trouble) {
        tracing::warn!(cause = trouble.cause, "the state can't be written now");
        self.queue.note_failure(trouble);
    }

    /// Does these operations, durable on return where whoever begins next finds them.
    fn store<'a>(
        &mut self,
        operations: impl IntoIterator<Item = &'a Operation>,
    ) -> Result<(), Trouble> {
        let queue = Arc::clone(&self.queue);
        let _busy = queue.busy();
        self.find_in_place()?;
        let stored = self.shelf.with(|database| store::commit(database, operations));
        match stored.unwrap_or_else(|| Err(Fault::System("it is closed".to_owned()))) {
            Ok(grown) => self.bytes = self.bytes.saturating_add_signed(grown),
            Err(fault) => return Err(self.give_up(fault)),
        }
        self.find_in_place()
    }

    /// Looks whether the file is where whoever begins next looks for it. One that was removed is kept there
    /// again.
    fn find_in_place(&mut self) -> Result<(), Trouble> {
        match self.disk.look() {
            Whereabouts::InPlace => Ok(()),
            // It stays open: what is in it can be exported.
            Whereabouts::Lost(cause) => Err(Fault::System(cause).into_trouble(self.disk.path())),
            Whereabouts::Removed => {
                if let Some(database) = self.shelf.with_mut(Option::take) {
                    // So that it is whole by itself. If not, it is repaired when it is opened.
                    let _ = caught(|| Ok(database.close()?));
                }
                let opened = self.disk.put_back().and_then(|()| self.open());
                opened.map_err(|fault| self.give_up(fault))
            }
        }
    }

    /// Closes the database, which redb wants after an error: what it has in memory is not true any more.
    fn give_up(&mut self, fault: Fault) -> Trouble {
        if let Some(database) = self.shelf.with_mut(Option::take) {
            // It says that there was an error, and repairs what is in the file when it opens it again.
            let _ = caught(|| Ok(database.close()?));
        }
        // What a person has to put right is told as at the start.
        match fault.into_open_error(self.disk.path(), self.versions.newest()) {
            Ok(error) => Trouble { cause: error.to_string() },
            Err(trouble) => trouble,
        }
    }

    /// Opens it again if it is closed, and keeps what could not be kept.
    fn recover(&mut self) {
        let queue = Arc::clone(&self.queue);
        let _busy = queue.busy();
        let opened = self.find_in_place().and_then(|()| {
            let probed = self.disk.probe().map_err(Fault::from);
            let is_open = self.shelf.with(|_| ()).is_some();
            let opened = probed.and_then(|()| if is_open { Ok(()) } else { self.open() });
            opened.map_err(|fault| self.give_up(fault))
        });
        match opened.and_then(|()| self.keep_backlog()) {
            Ok(()) => {
                tracing::info!(path = %self.disk.path().display(), "the state is written again");
            }
            Err(trouble) => self.queue.note_backlog_failure(&trouble),
        }
    }

    fn keep_backlog(&mut self) -> Result<(), Trouble> {
        while let Some(backlog) = self.queue.take_backlog() {
            let operations: Vec<_> = backlog.operations().collect();
            self.store(&operations)?;
        }
        Ok(())
    }

    /// Makes the file anew, with what is in it now: nothing of what was removed is left.
    fn renew(&mut self) {
        let queue = Arc::clone(&self.queue);
        let _busy = queue.busy();
        let begun = Instant::now();
        let shelf = Arc::clone(&self.shelf);
        let renewed =
            shelf.snapshot().unwrap_or_else(|| Err(Fault::System("it is closed".to_owned())));
        let renewed = renewed.and_then(|snapshot| {
            self.disk.renew(&mut |storage| open::make(storage, Some(&snapshot)))
        });
        self.renewed_at = Instant::now() + begun.elapsed() * RENEWING;
        if let Err(fault) = renewed {
            let trouble = fault.into_trouble(self.disk.path());
            tracing::warn!(
                cause = trouble.cause,
                "what was deleted is still in the file of the state"
            );
            self.renewed_at = Instant::now() + NOT_RENEWED;
            return;
        }
        self.compacted = (0, 0);
        let opened = open::open(&mut *self.disk, self.versions);
        match opened.and_then(|opened| opened.begin(None)) {
            Ok(database) => {
                let old = self.shelf.with_mut(|shelf| shelf.replace(database));
                if let Some(old) = old {
                    // Nobody will read it again.
                    let _ = caught(|| Ok(old.close()?));
                }
                self.queue.note_erased();
            }
            Err(fault) => {
                let trouble = self.give_up(fault);
                self.note_failure(&trouble);
            }
        }
    }

    /// Makes the file smaller if there is little in it; later, where somebody reads. Who writes or reads
    /// meanwhile waits: for about a second where 500 MiB become 50.
    fn compact(&mut self) {
        let (length, (least, bytes)) = (self.disk.len(), self.compacted);
        // It can't be smaller than it was made, with as much in it.
        let is_compact = length <= least.saturating_mul(2) && self.bytes > bytes / 2;
        if length <= SMALL || self.bytes > length / 4 || is_compact {
            return;
        }
        let queue = Arc::clone(&self.queue);
        let _busy = queue.busy();
        let compacted = self.shelf.with_mut(|shelf| {
            let Some(database) = shelf else { return Ok(true) };
            caught(|| match database.compact() {
                Ok(_) => Ok(true),
                Err(CompactionError::TransactionInProgress) => Ok(false),
                Err(error) => Err(error.into()),
            })
        });
        match compacted {
            Ok(true) => self.compacted = (self.disk.len(), self.bytes),
            Ok(false) => {}
            Err(fault) => {
                let trouble = self.give_up(fault);
                tracing::warn!(cause = trouble.cause, "the file of the state stays large");
                self.queue.note_failure(&trouble);
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
            Err(panic) => Err(Fault::Damaged(words_of(&*panic))),
        }
    })
}
