//! Files that credentials are in: who else could read or change them, and whether they have changed.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Most bytes of such a file: thousands of tokens or certificates.
const LONGEST: u64 = 1 << 20;

/// Who may read a file besides its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Nobody: the mode 0600 or less.
    Nobody,
    /// Its group: the mode 0640 or less.
    Group,
    /// Everybody: there is no secret in it.
    Everybody,
}

impl Readers {
    fn widest(self) -> u32 {
        match self {
            Readers::Nobody => 0o600,
            Readers::Group => 0o640,
            // What others may change is no credential, whoever may read it.
            Readers::Everybody => 0o755,
        }
    }
}

/// Reads all of a file, which nobody else may have a hand in. A pipe is read to its end.
///
/// # Errors
/// What is wrong, without its name.
pub(crate) fn read(path: &Path, readers: Readers) -> Result<Vec<u8>, String> {
    // A pipe that nobody writes to would else keep the sidecar from starting.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| format!("can't be read: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("can't be looked at: {error}"))?;
    if metadata.is_dir() {
        return Err("is a directory; name the file".to_owned());
    }
    guarded(&metadata, readers)?;
    if !metadata.is_file() {
        rustix::fs::fcntl_setfl(&file, OFlags::empty())
            .map_err(|error| format!("can't be read: {error}"))?;
    }
    let mut bytes = Vec::new();
    let read = file.take(LONGEST + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("can't be read: {error}"))?;
    if bytes.len() as u64 > LONGEST {
        return Err(format!("is longer than {LONGEST} bytes"));
    }
    Ok(bytes)
}

/// Refuses what others could read or write: it would let them in, or let them choose who comes in.
///
/// # Errors
/// Which mode or which owner lets others.
pub(crate) fn guarded(metadata: &Metadata, readers: Readers) -> Result<(), String> {
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    let readers = match readers {
        // What Kubernetes mounts is root's, and its pod reads it as the group that the pod was given.
        Readers::Nobody if owner == 0 && own != 0 => Readers::Group,
        readers => readers,
    };
    let (mode, widest) = (metadata.mode() & 0o777, readers.widest());
    let advised = widest & 0o666;
    if mode & !widest & !0o700 != 0 {
        return Err(format!(
            "has the mode {mode:04o}, so that others can {} it; it may have {advised:04o} at most: \
             chmod {advised:04o} it",
            if mode & 0o022 & !widest != 0 { "write" } else { "read" }
        ));
    }
    if owner != own && owner != 0 {
        return Err(format!(
            "belongs to the user {owner}, who could change it; it must be owned by the user that this \
             runs as ({own}), or by root"
        ));
    }
    Ok(())
}

/// What tells that a file is another one, or has other content, than when this was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// There is none, or it can't be looked at.
    Missing,
    /// A pipe, which can be read once.
    Once,
    File {
        device: u64,
        inode: u64,
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
    },
}

impl Stamp {
    /// Of what the path leads to now, through all symbolic links.
    pub(crate) fn of(path: &Path) -> Stamp {
        match std::fs::metadata(path) {
            Err(_) => Stamp::Missing,
            Ok(found) if !found.is_file() => Stamp::Once,
            Ok(found) => Stamp::File {
                device: found.dev(),
                inode: found.ino(),
                size: found.size(),
                modified: (found.mtime(), found.mtime_nsec()),
                // Also when the mode or the owner is another one.
                changed: (found.ctime(), found.ctime_nsec()),
            },
        }
    }
}

/// A path with what is wrong with it.
pub(crate) fn fault(path: &Path, problem: impl fmt::Display) -> String {
    format!("{}: {problem}", path.display())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_others_could_read_or_write_is_refused_with_its_mode() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let read_as = |mode: u32, readers| {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            read(&path, readers)
        };
        for (mode, readers) in [
            (0o600, Readers::Nobody),
            (0o400, Readers::Nobody),
            (0o640, Readers::Group),
            (0o440, Readers::Group),
            (0o644, Readers::Everybody),
        ] {
            assert_eq!(read_as(mode, readers), Ok(b"x".to_vec()), "{mode:o}");
        }
        for (mode, readers) in [
            (0o640, Readers::Nobody),
            (0o604, Readers::Nobody),
            (0o620, Readers::Nobody),
            (0o610, Readers::Nobody),
            (0o644, Readers::Group),
            (0o660, Readers::Group),
            (0o664, Readers::Everybody),
            (0o666, Readers::Everybody),
        ] {
            let fault = read_as(mode, readers).unwrap_err();
            assert!(
                fault.contains(&format!("{mode:04o}")) && fault.contains("chmod 06"),
                "{fault}"
            );
        }
    }

    #[test]
    fn a_pipe_is_read_to_its_end_and_one_that_nobody_writes_to_holds_nobody_up() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600))
            .unwrap();
        assert_eq!(read(&path, Readers::Nobody), Ok(Vec::new()));
        assert_eq!(Stamp::of(&path), Stamp::Once);
        let (reader, mut writer) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut writer, b"through a descriptor").unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        assert_eq!(read(Path::new(&path), Readers::Nobody), Ok(b"through a descriptor".to_vec()));
    }

    #[test]
    fn a_stamp_changes_with_what_a_link_leads_to() {
        let place = tempfile::tempdir().unwrap();
        let [one, two, link] = ["one", "two", "link"].map(|name| place.path().join(name));
        std::fs::write(&one, "x").unwrap();
        std::fs::write(&two, "x").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let before = Stamp::of(&link);
        assert_eq!(before, Stamp::of(&one));
        let new = place.path().join("new");
        std::os::unix::fs::symlink(&two, &new).unwrap();
        std::fs::rename(&new, &link).unwrap();
        assert_ne!(before, Stamp::of(&link));
        std::fs::remove_file(&two).unwrap();
        assert_eq!(Stamp::of(&link), Stamp::Missing);
    }
}
