//! The file of the ledger: made, locked, copied. What is in it is redb's.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Seek as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use redb::StorageBackend;
use rustix::fs::{Advice, CWD, FallocateFlags, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::registry::ledger::Durability;
use crate::registry::ledger::advice;
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

    /// Where the storage is that is attached, for a process that begins after this one.
    fn look(&mut self) -> Whereabouts {
        Whereabouts::InPlace
    }

    /// Is no more about the storage that was attached: another one may come in its place.
    fn let_go(&mut self) {}

    /// Keeps what was removed in its place again. It is not open meanwhile, and is to be attached again.
    ///
    /// # Errors
    /// [`Fault`]
    fn put_back(&mut self) -> Result<(), Fault> {
        Ok(())
    }

    /// Keeps what `fill` makes of an empty storage in the place of what is there, to be attached again.
    ///
    /// # Errors
    /// [`Fault`]; what was there is there then.
    fn renew(&mut self, _fill: Fill<'_>) -> Result<(), Fault> {
        Err(Fault::System("it can't be made anew".to_owned()))
    }

    /// Whether there is room for more, before it is opened again after trouble.
    ///
    /// # Errors
    /// What the system says.
    fn probe(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes something of an empty storage.
pub(super) type Fill<'a> = &'a mut dyn FnMut(Box<dyn StorageBackend>) -> Result<(), Fault>;

/// Where the storage is that is attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// Where who begins next looks for it.
    InPlace,
    /// Nowhere, and nothing is in its place.
    Removed,
    /// Who begins next finds something else, because of this.
    Lost(String),
}

/// A file.
#[derive(Debug)]
pub(super) struct FileDisk {
    path: PathBuf,
    durability: Durability,
    file: Option<File>,
    storage: Option<FileStorage>,
    /// Somebody has cut it, to so many bytes.
    cut: Option<u64>,
}

/// How much room there is to be, in bytes, before a file is opened again that could not be written.
const ROOM: u64 = 256 * 1024;

const MODE: u32 = 0o600;

impl FileDisk {
    pub(super) fn new(path: PathBuf, durability: Durability) -> FileDisk {
        FileDisk { path, durability, file: None, storage: None, cut: None }
    }

    fn storage(&self, file: &File) -> Result<FileStorage, Fault> {
        FileStorage::new(file.try_clone()?, self.durability)
    }

    /// Opens it and locks it.
    fn take(&self) -> Result<File, Fault> {
        look_at(&self.path)?;
        let mut options = OpenOptions::new();
        let file = match options.read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.make(),
            Err(error) => return Err(told(&self.path, error)),
        };
        lock(&file, &self.path)?;
        let metadata = file.metadata()?;
        // None that this makes is ever seen so.
        if metadata.len() == 0 {
            return Err(Fault::Damaged("it is empty".to_owned()));
        }
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let path = self.path.display();
            tracing::warn!(%path, mode = format!("{mode:o}"), "others may open the file of the state");
        }
        // Of a process that was killed while it made one anew.
        remove_leftover(&beside(&destination(&self.path), "new"));
        Ok(file)
    }

    /// Makes one where there is none.
    fn make(&self) -> Result<File, Fault> {
        let at = destination(&self.path);
        let made = self.build(&at, false, |_, storage| open::make(storage, None));
        made.map_err(|fault| match fault {
            Fault::System(cause) if at != self.path => {
                Fault::System(format!("it is a link to {}: {cause}", at.display()))
            }
            fault => fault,
        })
    }

    /// Makes one beside it and moves it there when it is whole, so that it is never seen half made.
    fn build(
        &self,
        at: &Path,
        replaces: bool,
        fill: impl FnOnce(&File, Box<dyn StorageBackend>) -> Result<(), Fault>,
    ) -> Result<File, Fault> {
        let new = beside(at, "new");
        let file = create(&new).map_err(|error| {
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::ISDIR | Errno::LOOP) => Fault::System(format!(
                    "{}, as which it is made, is in the way: {error}; move that away",
                    new.display()
                )),
                _ => told(at, error),
            }
        })?;
        lock(&file, &new)?;
        let built = (|| {
            file.set_len(0)?;
            // Those that somebody has given it.
            let permissions = self.file.as_ref().and_then(|file| file.metadata().ok());
            let permissions = permissions.map(|metadata| metadata.permissions());
            let own = std::fs::Permissions::from_mode(MODE);
            file.set_permissions(permissions.unwrap_or(own))?;
            fill(&file, Box::new(self.storage(&file)?))?;
            file.sync_all()?;
            if replaces { Ok(std::fs::rename(&new, at)?) } else { move_to_nothing(&new, at) }
        })();
        match built {
            Ok(()) => {
                sync_directory(at)?;
                Ok(file)
            }
            Err(fault) => {
                // Still locked, if it is there.
                let _ = std::fs::remove_file(&new);
                Err(fault)
            }
        }
    }
}

impl Disk for FileDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn attach(&mut self) -> Result<Box<dyn StorageBackend>, Fault> {
        let file = match self.file.take() {
            // It stays the same file, whatever is done to its name: another one would have nothing of
            // what was kept.
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

    fn look(&mut self) -> Whereabouts {
        let (Some(file), Some(storage)) = (&self.file, &self.storage) else {
            return Whereabouts::InPlace;
        };
        let path = self.path.display();
        // What can't be looked at is no worse for that: whoever reads or writes it finds out.
        let Ok(opened) = file.metadata() else { return Whereabouts::InPlace };
        if self.cut.is_none() && opened.len() < storage.length() {
            self.cut = Some(opened.len());
        }
        if let Some(length) = self.cut {
            return Whereabouts::Lost(format!(
                "it was cut to {length} bytes while the sidecar runs, and what was kept in it is lost; end \
                 the sidecar, put a backup in its place, and start it again"
            ));
        }
        match std::fs::metadata(&self.path) {
            Ok(named) if is_same(&opened, &named) => Whereabouts::InPlace,
            Ok(_) => Whereabouts::Lost(format!(
                "another file was put in its place while the sidecar runs, which a restart would begin with; \
                 move that one away and the sidecar puts its own there again (`mv {path} {path}.other`), or \
                 end the sidecar if that is the state to go on with"
            )),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Whereabouts::Removed,
                _ => Whereabouts::InPlace,
            },
        }
    }

    fn let_go(&mut self) {
        if let Some(storage) = self.storage.take() {
            storage.unlock();
        }
        self.file = None;
    }

    fn put_back(&mut self) -> Result<(), Fault> {
        let Some(from) = &self.file else { return Ok(()) };
        let at = destination(&self.path);
        let file = self.build(&at, false, |mut to, _| {
            let mut from = from;
            from.rewind()?;
            io::copy(&mut from, &mut to)?;
            Ok(())
        })?;
        self.file = Some(file);
        tracing::warn!(
            path = %self.path.display(),
            "the file of the state was removed while the sidecar runs: it is written there again"
        );
        Ok(())
    }

    fn renew(&mut self, fill: Fill<'_>) -> Result<(), Fault> {
        if self.look() != Whereabouts::InPlace {
            return Err(Fault::System("it is not in its place".to_owned()));
        }
        // Through a link, which stays.
        let at = std::fs::canonicalize(&self.path)?;
        self.file = Some(self.build(&at, true, |_, storage| fill(storage))?);
        Ok(())
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
    match std::fs::metadata(path) {
        Ok(named) if is_same(&file.metadata()?, &named) => Ok(()),
        Ok(_) => Err(Fault::InUse),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Fault::InUse),
        Err(error) => Err(error.into()),
    }
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Gives a file its name, where there is none of that name.
fn move_to_nothing(from: &Path, to: &Path) -> Result<(), Fault> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // A file system may not know how to.
        Err(Errno::INVAL | Errno::NOSYS) if to.symlink_metadata().is_err() => {
            Ok(std::fs::rename(from, to)?)
        }
        // Another process has made one in between.
        Err(Errno::EXIST | Errno::NOENT) => Err(Fault::InUse),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Removes what nobody is at work on.
fn remove_leftover(path: &Path) {
    let is_file = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    if is_file && File::open(path).is_ok_and(|file| file.try_lock().is_ok()) {
        let _ = std::fs::remove_file(path);
    }
}

/// How many links lead on from a path at most, as in Linux.
const MOST_LINKS: usize = 40;

/// Where a path leads to by links, whether or not something is there.
fn destination(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(to) = std::fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(to);
    }
    path
}

/// What the system says of a path, with what to do where it says that it is not allowed.
fn told(path: &Path, error: io::Error) -> Fault {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS) => {}
        Some(Errno::NAMETOOLONG) => return Fault::NotAFile("too long for a name".to_owned()),
        Some(Errno::NOTDIR) => return Fault::NotAFile("in what is no directory".to_owned()),
        Some(Errno::LOOP) => return Fault::NotAFile("a link that leads in a circle".to_owned()),
        Some(Errno::ISDIR) => return Fault::NotAFile("a directory".to_owned()),
        Some(_) | None => return error.into(),
    }
    let uid = rustix::process::geteuid().as_raw();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let found = [path, directory].into_iter().find_map(|path| {
        let metadata = path.metadata().ok()?;
        Some((path, metadata))
    });
    let Some((what, metadata)) = found else {
        let directory = directory.display();
        return Fault::System(format!(
            "{error}: the sidecar runs as uid {uid}, which can't enter {directory}"
        ));
    };
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let quoted = advice::quoted(what);
    let cure = match owner == uid {
        true => format!("chmod u+rwX {quoted}"),
        false => format!("chown {uid} {quoted}"),
    };
    Fault::System(format!(
        "{error}: {} is uid {owner}'s (mode {mode:o}), and the sidecar runs as uid {uid}: `{cure}`",
        what.display()
    ))
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
