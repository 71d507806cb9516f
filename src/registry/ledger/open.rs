//! A file is opened: repaired after a crash, checked, brought to this version, read.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use redb::{Builder, Database, StorageBackend, WriteTransaction};

use crate::model::id::ThreadId;
use crate::registry::ledger::backend::Deferred;
use crate::registry::ledger::disk::Disk;
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::read::{Piece, Pieces};
use crate::registry::ledger::record::Operation;
use crate::registry::ledger::store::{self, META, RECORDS, Snapshot, VERSION_KEY, caught};
use crate::registry::ledger::{Kept, key};

/// Pages of the file that are kept in memory, in bytes.
const CACHE: usize = 16 * 1024 * 1024;

/// Makes of the tables of a version those of the next.
pub(super) type Migration = fn(&WriteTransaction) -> Result<(), Fault>;

/// The versions of what is in the tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Versions {
    /// The oldest that can be read.
    pub(super) oldest: u64,
    /// From the oldest on, each from one version to the next.
    pub(super) migrations: &'static [Migration],
}

impl Versions {
    /// Of this sidecar. For another form of the tables append what makes it of the one before.
    pub(super) const THIS: Versions = Versions { oldest: 1, migrations: &[] };

    /// The one that is written.
    pub(super) fn newest(self) -> u64 {
        self.oldest + u64::try_from(self.migrations.len()).unwrap_or_default()
    }
}

/// A database that was opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) database: Database,
    /// Nothing is written to the file before this is released.
    deferred: Deferred,
}

/// Makes a ledger in a storage that is empty, with the records of another one, if there is one.
///
/// # Errors
/// [`Fault`]
pub(super) fn make(storage: Box<dyn StorageBackend>, like: Option<&Snapshot>) -> Result<(), Fault> {
    let deferred = Deferred::new(storage)?;
    deferred.release()?;
    let database = database(deferred)?;
    caught(|| {
        let transaction = database.begin_write()?;
        transaction.open_table(META)?.insert(VERSION_KEY, Versions::THIS.newest())?;
        match like {
            Some(snapshot) => snapshot.copy_to(&transaction)?,
            None => drop(transaction.open_table(RECORDS)?),
        }
        Ok(transaction.commit()?)
    })?;
    caught(|| Ok(database.close()?))
}

/// Opens the ledger of a disk, and brings it to this version.
///
/// # Errors
/// [`Fault`]; the disk is as it was where the ledger is damaged or newer.
pub(super) fn open(disk: &mut dyn Disk, versions: Versions) -> Result<Opened, Fault> {
    let opened = attach(disk)?;
    let version = Snapshot::of(&opened.database)?.version()?;
    if version > versions.newest() {
        return Err(Fault::TooNew(version));
    }
    if version < versions.oldest {
        return Err(Fault::Damaged(format!("it says that its version is {version}")));
    }
    if version == versions.newest() {
        return Ok(opened);
    }
    // Closed well, so that the copy is whole by itself.
    opened.deferred.release()?;
    opened.database.close()?;
    disk.back_up(version)?;
    let opened = attach(disk)?;
    opened.deferred.release()?;
    caught(|| {
        let transaction = opened.database.begin_write()?;
        let done = usize::try_from(version - versions.oldest).unwrap_or(usize::MAX);
        for migrate in versions.migrations.iter().skip(done) {
            migrate(&transaction)?;
        }
        transaction.open_table(META)?.insert(VERSION_KEY, versions.newest())?;
        Ok(transaction.commit()?)
    })?;
    Ok(opened)
}

fn attach(disk: &mut dyn Disk) -> Result<Opened, Fault> {
    let deferred = Deferred::new(disk.attach()?)?;
    Ok(Opened { database: database(deferred.clone())?, deferred })
}

fn database(storage: Deferred) -> Result<Database, Fault> {
    let mut builder = Builder::new();
    // After a crash redb does the same anyhow: it takes as long.
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    caught(|| Ok(builder.create_with_backend(storage)?))
}

/// What was found when all was read.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// How many bytes the records have.
    pub(super) bytes: u64,
    /// What nothing refers to.
    strays: Vec<Operation>,
}

/// How many strays are removed at once; more of them next time.
const MOST_STRAYS: usize = 100_000;

impl Opened {
    /// Reads all records, and gives what was kept to `restore`, without the first `given`, which counts on.
    ///
    /// # Errors
    /// [`Fault`]
    pub(super) fn read(
        &self,
        given: &mut u64,
        restore: &mut dyn FnMut(Kept),
    ) -> Result<Found, Fault> {
        let mut found = Found::default();
        let mut bytes = 0;
        // Of the ids of threads that are bound: facts come after them.
        let mut bound = Vec::new();
        let mut are_sorted = false;
        let records = Snapshot::of(&self.database)?.records()?.map(|read| {
            read.map(|(record, length)| {
                bytes += u64::try_from(length).unwrap_or_default();
                record
            })
        });
        for (number, piece) in (1..).zip(Pieces::of(records)) {
            let stray = match piece? {
                Piece::Kept(kept) => {
                    match &kept {
                        Kept::Binding(binding) => bound.push(hash(&binding.binding.thread_id)),
                        Kept::Mark(mark) => bound.push(hash(&mark.thread_id)),
                        Kept::Turn(_) | Kept::Directory { .. } | Kept::Tokens(_) => {}
                    }
                    if number > *given {
                        restore(kept);
                        *given = number;
                    }
                    continue;
                }
                Piece::Facts(thread_id, _) => {
                    if !std::mem::replace(&mut are_sorted, true) {
                        bound.sort_unstable();
                    }
                    if bound.binary_search(&hash(&thread_id)).is_ok() {
                        continue;
                    }
                    Operation::Remove(key::thread(&thread_id))
                }
                Piece::Stray(turn_id) => Operation::RemoveAll(key::turn(&turn_id)),
            };
            if found.strays.len() < MOST_STRAYS {
                found.strays.push(stray);
            }
        }
        found.bytes = bytes;
        Ok(found)
    }

    /// Lets the file be written. Removes what nothing refers to.
    ///
    /// # Errors
    /// [`Fault`]
    pub(super) fn begin(self, found: Option<&mut Found>) -> Result<Database, Fault> {
        self.deferred.release()?;
        if let Some(found) = found
            && !found.strays.is_empty()
        {
            let grown = store::commit(&self.database, &found.strays)?;
            found.bytes = found.bytes.saturating_add_signed(grown);
            found.strays.clear();
        }
        Ok(self.database)
    }
}

fn hash(thread_id: &ThreadId) -> u64 {
    let mut hasher = DefaultHasher::new();
    thread_id.hash(&mut hasher);
    hasher.finish()
}
