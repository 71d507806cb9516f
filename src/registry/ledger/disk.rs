//! The file of the ledger: made, locked, copied. What is in it is redb's.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use rustix::fs::{Advice, CWD, FallocateFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::registry::ledger::Durability;
use crate::registry::ledger::backend::FileStorage;
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::open;

/// Where the bytes of a ledger are.
pub(super) trait Disk: std::fmt::Debug + Send {
    /// What a person calls it.
    fn path(&self) -> &Path;

    /// The storage with a ledger in it, which is made where there is none. It is this process's alone from
    /// the first time on.
    ///
    /// # Errors
    /// [`Fault`]
    fn attach(&mut self) -> Result<Box<dyn StorageBackend>, Fault>;

    /// Keeps a copy of it as that of this version.
    ///
    /// # Errors
    /// [`Fault`]
    fn back_up(&self, version: u64) -> Result<(), Fault>;

    /// How many bytes it has; 0 where that is not known.
    fn len(&self) -> u64;

    /// Whether there is room for more, before it is opened again after trouble.
    ///
    /// # Errors
    /// What the system says.
    fn probe(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A file.
#[derive(Debug)]
pub(super) struct FileDisk {
    path: PathBuf,
    durability: Durability,
    file: Option<File>,
    storage: Option<FileStorage>,
}

/// How much room there is to be, in bytes, before a file is opened again that could not be written.
const ROOM: u64 = 256 * 1024;

const MODE: u32 = 0o600;

impl FileDisk {
    pub(super) fn new(path: PathBuf, durability: Durability) -> FileDisk {
        FileDisk { path, durability, file: None, storage: None }
    }

    fn storage(&self, file: &File) -> Result<FileStorage, Fault> {
        Ok(FileStorage::new(file.try_clone()?, self.durability)?)
    }

    /// Opens it and locks it.
    fn take(&self) -> Result<File, Fault> {
        look_at(&self.path)?;
        let mut options = OpenOptions::new();
        let file = match options.read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.make(None),
            Err(error) => return Err(error.into()),
        };
        lock(&file, &self.path)?;
        let metadata = file.metadata()?;
        if metadata.len() == 0 {
            return self.make(Some(&file));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let path = self.path.display();
            tracing::warn!(%path, mode = format!("{mode:o}"), "others may open the file of the state");
        }
        Ok(file)
    }

    /// Makes one beside it and moves it there when it is whole, so that it is never seen half made. `empty`
    /// is an empty one that is there, and locked.
    fn make(&self, empty: Option<&File>) -> Result<File, Fault> {
        let new = beside(&self.path, "new");
        let file = create(&new)?;
        lock(&file, &new)?;
        file.set_len(0)?;
        file.set_permissions(std::fs::Permissions::from_mode(MODE))?;
        open::make(Box::new(self.storage(&file)?))?;
        file.sync_all()?;
        if empty.is_some() {
            std::fs::rename(&new, &self.path)?;
        } else {
            // Another one may have come there in between, or a link that leads nowhere may be there.
            match rustix::fs::renameat_with(CWD, &new, CWD, &self.path, RenameFlags::NOREPLACE) {
                Ok(()) => {}
                Err(Errno::INVAL | Errno::NOSYS) if self.path.symlink_metadata().is_err() => {
                    std::fs::rename(&new, &self.path)?;
                }
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        sync_directory(&self.path)?;
        Ok(file)
    }
}

impl Disk for FileDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn attach(&mut self) -> Result<Box<dyn StorageBackend>, Fault> {
        let file = match self.file.take() {
            // It stays the same file while this process runs, whatever is done to its name: another one
            // would have nothing of what was kept.
            Some(file) => {
                // What the system could not write may be in its memory as if it were written.
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
                file
            }
            None => self.take()?,
        };
        let storage = self.storage(&file);
        self.file = Some(file);
        let storage = storage?;
        self.storage = Some(storage.clone());
        Ok(Box::new(storage))
    }

    fn back_up(&self, version: u64) -> Result<(), Fault> {
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        let (to, new) = (
            beside(&self.path, &format!("v{version}.bak")),
            beside(&self.path, &format!("v{version}.bak.new")),
        );
        let mut copy = create(&new)?;
        copy.set_len(0)?;
        file.rewind()?;
        io::copy(&mut file, &mut copy)?;
        copy.sync_all()?;
        std::fs::rename(&new, &to)?;
        sync_directory(&to)?;
        let (path, backup) = (self.path.display(), to.display());
        tracing::info!(%path, %backup, version, "the state is of an older version: a copy is kept");
        Ok(())
    }

    fn len(&self) -> u64 {
        let metadata = self.file.as_ref().and_then(|file| file.metadata().ok());
        metadata.map_or(0, |metadata| metadata.len())
    }

    fn probe(&self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, self.len(), ROOM) {
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::IO)) => {
                Err(error.into())
            }
            // A file system may not know how to.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for FileDisk {
    fn drop(&mut self) {
        // A reader of an older state may keep the file open.
        if let Some(storage) = &self.storage {
            storage.unlock();
        }
        if let Some(file) = &self.file {
            let _ = file.unlock();
        }
    }
}

/// Looks at what is to be opened, if there is something: a device or a pipe does something when it is opened,
/// or waits.
///
/// # Errors
/// [`Fault::NotAFile`]
pub(super) fn look_at(path: &Path) -> Result<(), Fault> {
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    match (metadata.is_file(), metadata.is_dir()) {
        (true, _) => Ok(()),
        (false, true) => Err(Fault::NotAFile("a directory".to_owned())),
        (false, false) => Err(Fault::NotAFile("no regular file".to_owned())),
    }
}

/// Opens a file to be written anew, of nobody else, and through no link.
fn create(path: &Path) -> io::Result<File> {
    let no_links = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(MODE).custom_flags(no_links).open(path)
}

/// Locks it for this process. Whoever had it may have moved it or put another one in its place: that is
/// as if it were still used, and looked at again.
fn lock(file: &File, path: &Path) -> Result<(), Fault> {
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Fault::InUse),
        // A file system may have no locks.
        Err(TryLockError::Error(error)) => {
            tracing::warn!(path = %path.display(), %error, "the file of the state can't be locked");
        }
    }
    let (locked, named) = (file.metadata()?, std::fs::metadata(path)?);
    let is_the_same = (locked.dev(), locked.ino()) == (named.dev(), named.ino());
    is_the_same.then_some(()).ok_or(Fault::InUse)
}

/// The file with this ending beside it.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

/// Has the directory keep the name of this file.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}
