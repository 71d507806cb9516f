//! The file of a ledger while no sidecar has it: looked at, exported, imported into.
//!
//! Looking and exporting never write to it: what redb would repair in it, it repairs in memory.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::StorageBackend;

use crate::registry::ledger::KeptTurn;
use crate::registry::ledger::backend::Deferred;
use crate::registry::ledger::disk::{self, Disk};
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::lines::{Counts, Entry, LineWriter};
use crate::registry::ledger::open::{self, Opened, Versions};
use crate::registry::ledger::read::{Piece, Pieces};
use crate::registry::ledger::record::Operation;
use crate::registry::ledger::salvage::{self, Found};
use crate::registry::ledger::store::{self, Snapshot};

/// Why nothing could be done with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FileFault {
    /// There is none.
    Missing,
    /// Another process has it.
    InUse,
    /// It can't be read as a ledger, or not all of it.
    Damaged(String),
    /// What has its name can be none, because of this.
    NotAFile(String),
    /// A newer sidecar wrote it.
    TooNew { version: u64, newest: u64 },
    /// What the system says.
    System(String),
}

/// Why there is no export.
#[derive(Debug)]
pub(crate) enum ExportFault {
    File(FileFault),
    /// Of what it is written to.
    Out(io::Error),
}

impl<F: Into<FileFault>> From<F> for ExportFault {
    fn from(fault: F) -> ExportFault {
        ExportFault::File(fault.into())
    }
}

impl From<Fault> for FileFault {
    fn from(fault: Fault) -> FileFault {
        match fault {
            Fault::InUse => FileFault::InUse,
            Fault::Damaged(cause) => FileFault::Damaged(cause),
            Fault::NotAFile(what) => FileFault::NotAFile(what),
            Fault::TooNew(version) => {
                FileFault::TooNew { version, newest: Versions::THIS.newest() }
            }
            Fault::System(cause) => FileFault::System(cause),
        }
    }
}

/// What is in a whole file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    /// Of what is in it.
    pub(crate) version: u64,
    pub(crate) counts: Counts,
    /// Turns of which no end is kept: they ran when the sidecar ended.
    pub(crate) unended_turns: u64,
    /// Ids of requests that are kept with the turns.
    pub(crate) request_ids: u64,
    /// Its size.
    pub(crate) bytes: u64,
    /// When it was written last.
    pub(crate) written_at: Option<SystemTime>,
}

/// What a raw look at a damaged file finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Salvaged {
    pub(crate) counts: Counts,
    /// Whole records, older ones of the same thing included.
    pub(crate) records: u64,
}

/// What an export was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Exported {
    Whole(Counts),
    /// The file is damaged, because of this.
    Salvaged(String, Salvaged),
}

/// Reads all of the file.
///
/// # Errors
/// [`FileFault`]
pub(crate) fn check(path: &Path) -> Result<Checked, FileFault> {
    let file = take(path)?;
    let metadata = file.metadata().map_err(Fault::from)?;
    let opened = open(path, &file, &[])?;
    let version = Snapshot::of(&opened.database)?.version()?;
    let (mut counts, mut unended_turns, mut request_ids) = (Counts::default(), 0, 0);
    entries::<FileFault>(&opened, &mut |entry| {
        counts.count(&entry);
        if let Entry::Turn(turn) = entry {
            let KeptTurn { requests, end, .. } = *turn;
            unended_turns += u64::from(end.is_none());
            request_ids += requests.len() as u64;
        }
        Ok(())
    })?;
    let (bytes, written_at) = (metadata.len(), metadata.modified().ok());
    Ok(Checked { version, counts, unended_turns, request_ids, bytes, written_at })
}

/// What can be read of a damaged file.
///
/// # Errors
/// [`FileFault`]
pub(crate) fn look_into(path: &Path) -> Result<Salvaged, FileFault> {
    let found = salvage::scan(&take(path)?).map_err(Fault::from)?;
    let source = Source::Damaged(String::new(), found);
    let mut counts = Counts::default();
    let records = source.records();
    source.entries::<FileFault>(&mut |entry| {
        counts.count(&entry);
        Ok(())
    })?;
    Ok(Salvaged { counts, records })
}

/// Writes what is in the file as lines; of a damaged one what can be read, and nothing where that is nothing.
///
/// # Errors
/// [`ExportFault`]
pub(crate) fn export(path: &Path, out: impl Write) -> Result<Exported, ExportFault> {
    // With its lock.
    let file = take(path)?;
    let source = Source::of(path, &file)?;
    let (is_whole, records) = (matches!(source, Source::Whole(_)), source.records());
    if let Source::Damaged(cause, Found { whole: 0, .. }) = source {
        return Ok(Exported::Salvaged(cause, Salvaged::default()));
    }
    let mut writer = LineWriter::new(out).map_err(ExportFault::Out)?;
    let cause = source.entries(&mut |entry| writer.entry(entry).map_err(ExportFault::Out))?;
    let (_, counts) = writer.end(!is_whole).map_err(ExportFault::Out)?;
    Ok(match cause {
        None => Exported::Whole(counts),
        Some(cause) => Exported::Salvaged(cause, Salvaged { counts, records }),
    })
}

/// What an export is made of.
#[derive(Debug)]
enum Source {
    Whole(Opened),
    /// Damaged because of this, with what was found all the same.
    Damaged(String, Found),
}

impl Source {
    /// It is read once before anything is told of it, so that a damaged one is not found out in the midst.
    fn of(path: &Path, file: &File) -> Result<Source, FileFault> {
        let opened = open(path, file, &[]).map_err(FileFault::from).and_then(|opened| {
            entries::<FileFault>(&opened, &mut |_| Ok(()))?;
            Ok(opened)
        });
        match opened {
            Ok(opened) => Ok(Source::Whole(opened)),
            Err(FileFault::Damaged(cause)) => {
                Ok(Source::Damaged(cause, salvage::scan(file).map_err(Fault::from)?))
            }
            Err(fault) => Err(fault),
        }
    }

    /// How many records were found in a damaged one.
    fn records(&self) -> u64 {
        match self {
            Source::Whole(_) => 0,
            Source::Damaged(_, found) => found.whole,
        }
    }

    /// Gives all that it has, and why that is not all.
    fn entries<E: From<Fault>>(
        self,
        each: &mut dyn FnMut(Entry) -> Result<(), E>,
    ) -> Result<Option<String>, E> {
        match self {
            Source::Whole(opened) => entries(&opened, each).map(|()| None),
            Source::Damaged(cause, found) => {
                let records = found.records.into_values().map(Ok::<_, Fault>);
                for piece in Pieces::of(records) {
                    if let Some(entry) = Entry::of(piece?) {
                        each(entry)?;
                    }
                }
                Ok(Some(cause))
            }
        }
    }
}

/// Gives all that is kept, one by one.
fn entries<E: From<Fault>>(
    opened: &Opened,
    each: &mut dyn FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let records = Snapshot::of(&opened.database)?.records()?;
    for piece in Pieces::of(records.map(|read| read.map(|(record, _)| record))) {
        if let Some(entry) = Entry::of(piece?) {
            each(entry)?;
        }
    }
    Ok(())
}

impl Entry {
    /// `None` for what is left of a turn that is not kept any more.
    pub(super) fn of(piece: Piece) -> Option<Entry> {
        use crate::registry::ledger::Kept;
        Some(match piece {
            Piece::Kept(Kept::Binding(kept)) => Entry::Context(kept),
            Piece::Kept(Kept::Mark(kept)) => Entry::EvictedContext(kept),
            Piece::Kept(Kept::Turn(kept)) => Entry::Turn(kept),
            Piece::Kept(Kept::Directory { directory, latest }) => {
                Entry::Directory(directory, latest)
            }
            Piece::Kept(Kept::Tokens(tokens)) => Entry::Tokens(tokens),
            Piece::Facts(thread_id, facts) => Entry::Thread(thread_id, *facts),
            Piece::Stray(_) => return None,
        })
    }
}

/// Opens the file to be read only, with no sidecar on it meanwhile.
fn take(path: &Path) -> Result<File, FileFault> {
    disk::look_at(path)?;
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FileFault::Missing,
        _ => FileFault::System(error.to_string()),
    })?;
    match file.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(FileFault::InUse),
        // A file system may have no locks.
        Err(TryLockError::Error(_)) => {}
    }
    Ok(file)
}

/// Opens the ledger in it, whose pages are all looked at, with what is to be done with it done in memory.
///
/// # Errors
/// [`Fault`]
pub(super) fn open(path: &Path, file: &File, unkept: &[Operation]) -> Result<Opened, Fault> {
    if file.metadata()?.len() == 0 {
        return Err(Fault::Damaged("it is empty".to_owned()));
    }
    let overlay = Deferred::new(Box::new(ReadOnly(file.try_clone()?)))?;
    let mut disk = InMemory { path: path.to_owned(), overlay };
    let opened = open::open(&mut disk, Versions::THIS)?;
    if !unkept.is_empty() {
        store::commit(&opened.database, unkept)?;
    }
    Ok(opened)
}

/// A file that nothing is written to.
#[derive(Debug)]
struct ReadOnly(File);

impl StorageBackend for ReadOnly {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// The same with what is written in memory, which goes with it.
#[derive(Debug)]
struct InMemory {
    path: PathBuf,
    overlay: Deferred,
}

impl Disk for InMemory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn attach(&mut self) -> Result<Box<dyn StorageBackend>, Fault> {
        Ok(Box::new(self.overlay.clone()))
    }

    fn back_up(&self, _version: u64) -> Result<(), Fault> {
        Ok(())
    }

    fn len(&self) -> u64 {
        StorageBackend::len(&self.overlay).unwrap_or_default()
    }
}

/// All that is in the file, or could be read of it.
#[cfg(test)]
pub(super) fn read(path: &Path) -> Result<(Vec<Entry>, Option<Salvaged>), FileFault> {
    let file = take(path)?;
    let source = Source::of(path, &file)?;
    let records = source.records();
    let (mut all, mut counts) = (Vec::new(), Counts::default());
    let cause = source.entries::<FileFault>(&mut |entry| {
        counts.count(&entry);
        all.push(entry);
        Ok(())
    })?;
    Ok((all, cause.map(|_| Salvaged { counts, records })))
}
