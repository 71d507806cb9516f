//! What redb writes to: the file, and what holds writes back until the file is known to be whole.

use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use crate::registry::ledger::Durability;
use crate::registry::ledger::fault::Fault;

/// The file. Its lock ends with the file and not with the database, which is closed and opened again while
/// the file stays this process's.
#[derive(Debug, Clone)]
pub(super) struct FileStorage {
    file: Arc<FileBackend>,
    durability: Durability,
    /// How long the file was left, in bytes.
    length: Arc<AtomicU64>,
}

impl FileStorage {
    /// # Errors
    /// [`Fault`]
    pub(super) fn new(file: std::fs::File, durability: Durability) -> Result<FileStorage, Fault> {
        let length = Arc::new(AtomicU64::new(file.metadata()?.len()));
        Ok(FileStorage { file: Arc::new(FileBackend::new(file)?), durability, length })
    }

    /// How long the file is, in bytes, as far as it was written by this.
    pub(super) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Unlocks the file, whoever may still read it.
    pub(super) fn unlock(&self) {
        if let Err(error) = self.file.close() {
            tracing::debug!(%error, "the file of the state can't be unlocked");
        }
    }
}

impl StorageBackend for FileStorage {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)?;
        self.length.store(len, Ordering::Release);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.durability {
            Durability::Power => self.file.sync_data(),
            // What is written is the kernel's, which outlives the process.
            Durability::Process => Ok(()),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    // `close` is not passed on, since it would unlock the file.

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}

/// Holds back what is written, in memory, until [`Deferred::release`]: redb repairs a file while it opens
/// it, and one that turns out to be damaged, or another version's, is not to be touched.
#[derive(Debug, Clone)]
pub(super) struct Deferred(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    storage: Box<dyn StorageBackend>,
    is_released: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    steps: Vec<Step>,
    len: u64,
}

/// Something that redb did.
#[derive(Debug)]
enum Step {
    Write(u64, Box<[u8]>),
    SetLen(u64),
    Sync,
}

impl Deferred {
    /// # Errors
    /// Those of the storage.
    pub(super) fn new(storage: Box<dyn StorageBackend>) -> io::Result<Deferred> {
        let held = Mutex::new(Held { steps: Vec::new(), len: storage.len()? });
        Ok(Deferred(Arc::new(Inner { storage, is_released: AtomicBool::new(false), held })))
    }

    /// Does what was held back, in its order and with its syncs, and holds nothing back from now on.
    ///
    /// # Errors
    /// Those of the storage. It is as after a crash then.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut held = self.held();
        for step in held.steps.drain(..) {
            match step {
                Step::Write(offset, data) => self.0.storage.write(offset, &data)?,
                Step::SetLen(len) => self.0.storage.set_len(len)?,
                Step::Sync => self.0.storage.sync_data()?,
            }
        }
        self.0.is_released.store(true, Ordering::Release);
        Ok(())
    }

    fn is_released(&self) -> bool {
        self.0.is_released.load(Ordering::Acquire)
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn read(
        &self,
        storage: &dyn StorageBackend,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), io::Error> {
        let length = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if offset.saturating_add(length(out)) > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let below = usize::try_from(storage.len()?.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (stored, beyond) = out.split_at_mut(below.min(out.len()));
        if !stored.is_empty() {
            storage.read(offset, stored)?;
        }
        beyond.fill(0);
        // The part of `out` from this offset on, and how many bytes of what is there come before it.
        let part = |from: u64| {
            let skipped = usize::try_from(offset.saturating_sub(from)).unwrap_or(usize::MAX);
            (usize::try_from(from.saturating_sub(offset)).unwrap_or(usize::MAX), skipped)
        };
        for step in &self.steps {
            match step {
                Step::Write(at, data) => {
                    let (begin, skipped) = part(*at);
                    let (Some(to), Some(from)) = (out.get_mut(begin..), data.get(skipped..)) else {
                        continue;
                    };
                    let shared = to.len().min(from.len());
                    to[..shared].copy_from_slice(&from[..shared]);
                }
                Step::SetLen(len) => {
                    if let Some(gone) = out.get_mut(part(*len).0..) {
                        gone.fill(0);
                    }
                }
                Step::Sync => {}
            }
        }
        Ok(())
    }
}

impl StorageBackend for Deferred {
    fn len(&self) -> io::Result<u64> {
        if self.is_released() { self.0.storage.len() } else { Ok(self.held().len) }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.is_released() {
            return self.0.storage.read(offset, out);
        }
        self.held().read(&*self.0.storage, offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.is_released() {
            return self.0.storage.set_len(len);
        }
        let mut held = self.held();
        held.len = len;
        held.steps.push(Step::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.is_released() {
            return self.0.storage.sync_data();
        }
        self.held().steps.push(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_released() {
            return self.0.storage.write(offset, data);
        }
        let mut held = self.held();
        let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        held.len = held.len.max(end);
        held.steps.push(Step::Write(offset, data.into()));
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.0.storage.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.storage.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.storage.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.storage.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.storage.query_lock_range(start, end)
    }
}
