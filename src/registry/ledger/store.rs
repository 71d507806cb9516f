//! The tables of the file, and what is done with them.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use redb::{
    Database, ReadTransaction, ReadableDatabase as _, ReadableTable as _, Table, TableDefinition,
    WriteTransaction,
};

use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::record::{Operation, Record};

/// What is true of the file as a whole: the version of what is in it, under [`VERSION_KEY`].
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
pub(super) const VERSION_KEY: &str = "version";

/// All records, by their [`super::key`]s.
pub(super) const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");

/// Does something with redb, which panics on some damaged files.
///
/// # Errors
/// Those of `work`; [`Fault::Damaged`] where it panics.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    std::panic::catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Fault::Damaged(words_of(&*panic))))
}

/// What somebody said who panicked.
pub(super) fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<&str>().map(|words| (*words).to_owned());
    let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
    words.unwrap_or_else(|| "it can't be read".to_owned())
}

/// Does these operations in one transaction, durable on return. By how many bytes the records have grown.
///
/// # Errors
/// [`Fault`]; the operations may have been done all the same.
pub(super) fn commit<'a>(
    database: &Database,
    operations: impl IntoIterator<Item = &'a Operation>,
) -> Result<i64, Fault> {
    caught(|| {
        let transaction = database.begin_write()?;
        let mut grown = 0;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for operation in operations {
                grown += apply(&mut records, operation)?;
            }
        }
        transaction.commit()?;
        Ok(grown)
    })
}

/// Does an operation. By how many bytes the records have grown.
///
/// # Errors
/// Those of redb.
pub(super) fn apply(
    records: &mut Table<'_, &'static [u8], &'static [u8]>,
    operation: &Operation,
) -> Result<i64, redb::StorageError> {
    let size =
        |key: &[u8], value: &[u8]| i64::try_from(key.len() + value.len()).unwrap_or(i64::MAX);
    Ok(match operation {
        Operation::Put { key, value } => {
            let before = records.insert(&key[..], &value[..])?;
            size(key, value) - before.map_or(0, |before| size(key, before.value()))
        }
        Operation::Remove(key) => {
            records.remove(&key[..])?.map_or(0, |before| -size(key, before.value()))
        }
        Operation::RemoveAll(prefix) => {
            let mut removed = 0;
            let end = end_of(prefix);
            let mut all =
                records.extract_from_if::<&[u8], _>(&prefix[..]..&end[..], |_, _| true)?;
            while let Some(gone) = all.next().transpose()? {
                removed += size(gone.0.value(), gone.1.value());
            }
            -removed
        }
    })
}

/// The least key that comes after all that begin so.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    // No key begins with FF: the first byte is a kind, of which there are few.
    let mut end = prefix.to_vec();
    while end.pop_if(|last| *last == u8::MAX).is_some() {}
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// What is in the tables at one moment, whatever is written meanwhile.
pub(super) struct Snapshot(ReadTransaction);

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Snapshot")
    }
}

impl Snapshot {
    /// # Errors
    /// [`Fault`]
    pub(super) fn of(database: &Database) -> Result<Snapshot, Fault> {
        caught(|| Ok(Snapshot(database.begin_read()?)))
    }

    /// The version of what is in the tables.
    ///
    /// # Errors
    /// [`Fault`]
    pub(super) fn version(&self) -> Result<u64, Fault> {
        caught(|| {
            let version = self.0.open_table(META)?.get(VERSION_KEY)?;
            let none = || Fault::Damaged("it says nothing of its version".to_owned());
            version.map(|version| version.value()).ok_or_else(none)
        })
    }

    /// The record with this key.
    ///
    /// # Errors
    /// [`Fault`]
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Record>, Fault> {
        caught(|| match self.0.open_table(RECORDS)?.get(key)? {
            Some(value) => decode(key, value.value()).map(Some),
            None => Ok(None),
        })
    }

    /// Has the other one have these records.
    ///
    /// # Errors
    /// [`Fault`]
    pub(super) fn copy_to(&self, other: &WriteTransaction) -> Result<(), Fault> {
        let mut records = other.open_table(RECORDS)?;
        for read in self.0.open_table(RECORDS)?.iter()? {
            let (key, value) = read?;
            records.insert(key.value(), value.value())?;
        }
        Ok(())
    }

    /// All records in the order of their keys, each with how many bytes it takes.
    ///
    /// # Errors
    /// [`Fault`]
    pub(super) fn records(
        &self,
    ) -> Result<impl Iterator<Item = Result<(Record, usize), Fault>> + use<>, Fault> {
        let mut all = caught(|| Ok(self.0.open_table(RECORDS)?.range::<&[u8]>(..)?))?;
        Ok(std::iter::from_fn(move || {
            caught(|| {
                let Some((key, value)) = all.next().transpose()? else { return Ok(None) };
                let (key, value) = (key.value(), value.value());
                decode(key, value).map(|record| Some((record, key.len() + value.len())))
            })
            .transpose()
        }))
    }
}

/// # Errors
/// [`Fault::Damaged`]
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Record, Fault> {
    let damaged = |what: &str| Fault::Damaged(format!("the record {}: {what}", key.escape_ascii()));
    Record::decode(value, key).map_err(damaged)
}
