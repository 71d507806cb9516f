//! Paths that must lie in one of the policy's directories, opened beneath it.
//!
//! The kernel walks such a path and never leaves the directory: a `..`, a link out of it, a link of the
//! process file system end the walk, also where somebody swaps one for another meanwhile. What comes of it
//! is the very file or directory, and its path without links.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// What is only looked at: nothing is done to a device or a FIFO by it.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Most links on the way, as Linux has it.
const MOST_LINKS: usize = 40;

/// How often the kernel is asked again where somebody renames directories under it.
const PATIENCE: usize = 8;

/// Why a path can't be had.
#[derive(Debug)]
pub(super) enum Astray {
    /// It lies in none of the directories, or leads out of it. Whether it is there is not told.
    Outside,
    /// It lies in one, and the system says this.
    Fault(io::Error),
}

impl From<Errno> for Astray {
    fn from(error: Errno) -> Astray {
        Astray::Fault(error.into())
    }
}

/// Something in one of the directories.
#[derive(Debug)]
pub(super) struct Beneath {
    found: OwnedFd,
    /// Its path without links.
    pub(super) path: PathBuf,
}

impl Beneath {
    /// Opens `path`, which is absolute, in the first of `roots` that has it.
    pub(super) fn open(roots: &[PathBuf], path: &Path) -> Result<Beneath, Astray> {
        Beneath::open_by(roots, path, kernel)
    }

    fn open_by(
        roots: &[PathBuf],
        path: &Path,
        open: fn(BorrowedFd<'_>, &Path) -> Result<OwnedFd, Astray>,
    ) -> Result<Beneath, Astray> {
        let mut astray = Astray::Outside;
        for root in roots {
            let Ok(directory) = rustix::fs::open(root, LOOK | OFlags::DIRECTORY, Mode::empty())
            else {
                continue;
            };
            let real = path_of(&directory)?;
            // As it is configured, or as it is found again by who asks for its path.
            let within = path.strip_prefix(root).or_else(|_| path.strip_prefix(&real));
            let Ok(within) = within else { continue };
            match open(directory.as_fd(), within) {
                Ok(found) => {
                    let path = path_of(&found)?;
                    // One that was taken away meanwhile has no path any more.
                    if path.starts_with(&real) {
                        return Ok(Beneath { found, path });
                    }
                }
                Err(Astray::Outside) => {}
                Err(fault) => astray = fault,
            }
        }
        Err(astray)
    }

    /// Whether it is a regular file.
    pub(super) fn is_file(&self) -> io::Result<bool> {
        let found = rustix::fs::fstat(&self.found)?;
        Ok(FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)
    }

    /// Opens the file, whatever its path leads to by now.
    pub(super) fn read(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(itself(&self.found), flags, Mode::empty())?.into())
    }
}

fn itself(found: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

fn path_of(found: &OwnedFd) -> Result<PathBuf, Astray> {
    let path = rustix::fs::readlink(itself(found), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

/// Has the kernel walk, or walks where it can't.
fn kernel(root: BorrowedFd<'_>, within: &Path) -> Result<OwnedFd, Astray> {
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let within_or_itself = if within.as_os_str().is_empty() { Path::new(".") } else { within };
    for _ in 0..PATIENCE {
        return match rustix::fs::openat2(root, within_or_itself, LOOK, Mode::empty(), how) {
            Ok(found) => Ok(found),
            Err(Errno::XDEV | Errno::LOOP) => Err(Astray::Outside),
            Err(Errno::AGAIN | Errno::INTR) => continue,
            // Before Linux 5.6, or where a filter of system calls does not know it.
            Err(Errno::NOSYS | Errno::PERM) => by_steps(root, within),
            Err(error) => Err(error.into()),
        };
    }
    by_steps(root, within)
}

/// Walks one step after the other and follows no link that it has not read itself. The way up is the way
/// that it came.
fn by_steps(root: BorrowedFd<'_>, within: &Path) -> Result<OwnedFd, Astray> {
    let mut way: Vec<OwnedFd> = Vec::new();
    let mut left: VecDeque<OsString> = parts(within)?.collect();
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        let here = way.last().map_or(root, |here| here.as_fd());
        if part == *".." {
            way.pop().ok_or(Astray::Outside)?;
            continue;
        }
        let found = rustix::fs::openat(here, &part, LOOK | OFlags::NOFOLLOW, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind != FileType::Symlink {
            way.push(found);
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Astray::Outside);
        }
        let target = rustix::fs::readlinkat(&found, "", Vec::new())?.into_bytes();
        let target: Vec<OsString> =
            parts(Path::new(OsStr::new(&OsString::from_vec(target))))?.collect();
        for part in target.into_iter().rev() {
            left.push_front(part);
        }
    }
    match way.pop() {
        Some(found) => Ok(found),
        None => Ok(rustix::fs::openat(root, ".", LOOK, Mode::empty())?),
    }
}

/// The steps of a way that begins where one is.
fn parts(path: &Path) -> Result<impl Iterator<Item = OsString>, Astray> {
    if path.is_absolute() {
        return Err(Astray::Outside);
    }
    let parts = path.components().filter(|part| *part != Component::CurDir);
    Ok(parts.map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>().into_iter())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// How a path is opened, and how it came out: where it leads, or why it leads nowhere.
    fn opened(root: &Path, path: &Path) -> Vec<Result<PathBuf, &'static str>> {
        let told = |open| match Beneath::open_by(&[root.to_owned()], path, open) {
            Ok(beneath) => Ok(beneath.path),
            Err(Astray::Outside) => Err("outside"),
            Err(Astray::Fault(error)) if error.kind() == io::ErrorKind::NotFound => Err("missing"),
            Err(Astray::Fault(error)) => panic!("{error}"),
        };
        vec![told(kernel), told(by_steps)]
    }

    #[test]
    fn nothing_leads_out_of_a_root_with_the_kernel_or_without() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let root = place.join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::create_dir(place.join("root-too")).unwrap();
        std::fs::write(place.join("secret"), "s").unwrap();
        std::fs::write(root.join("a/file"), "f").unwrap();
        for (target, link) in [
            ("a/b", "in"),
            ("../a", "a/up"),
            ("../../a/b", "a/b/over"),
            ("/etc", "absolute"),
            ("../secret", "out"),
            ("../nothing", "nowhere"),
            ("a/../../secret", "winding"),
            ("loop", "loop"),
            ("in/gone", "gone"),
            ("/proc/self/root", "magic"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        symlink(root.join("a"), root.join("absolute-within")).unwrap();
        symlink(&root, place.join("link-to-root")).unwrap();
        for (path, leads) in [
            ("", Ok("")),
            ("a/b", Ok("a/b")),
            ("a/file", Ok("a/file")),
            ("in", Ok("a/b")),
            ("a/up/b", Ok("a/b")),
            ("a/b/over/../file", Ok("a/file")),
            ("none", Err("missing")),
            ("gone", Err("missing")),
            ("absolute", Err("outside")),
            ("absolute/passwd", Err("outside")),
            ("absolute-within", Err("outside")),
            ("out", Err("outside")),
            ("nowhere", Err("outside")),
            ("winding", Err("outside")),
            ("loop", Err("outside")),
            ("magic/etc", Err("outside")),
            ("../secret", Err("outside")),
            ("a/../../secret", Err("outside")),
        ] {
            let leads = leads.map(|path: &str| root.join(path).components().collect::<PathBuf>());
            for told in opened(&root, &root.join(path)) {
                assert_eq!(told, leads, "{path}");
            }
        }
        for path in [place.join("secret"), place.join("root-too"), place.clone(), "/".into()] {
            assert_eq!(opened(&root, &path), [Err("outside"), Err("outside")], "{path:?}");
        }
        // By the name that is configured, and by the one that it has.
        let linked = place.join("link-to-root");
        for path in [linked.join("a"), root.join("a")] {
            assert_eq!(opened(&linked, &path), [Ok(root.join("a")), Ok(root.join("a"))]);
        }
        let none = place.join("none");
        assert_eq!(opened(&none, &none), [Err("outside"), Err("outside")]);
    }

    #[test]
    fn what_was_opened_is_read_whatever_its_path_leads_to() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(place.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("image"), "image").unwrap();
        let beneath = Beneath::open(std::slice::from_ref(&root), &root.join("image")).unwrap();
        std::fs::remove_file(root.join("image")).unwrap();
        symlink("../secret", root.join("image")).unwrap();
        assert!(beneath.is_file().unwrap());
        assert_eq!(io::read_to_string(beneath.read().unwrap()).unwrap(), "image");
    }

    /// Somebody swaps a directory for a link out of the root, again and again.
    #[test]
    fn a_swapped_link_never_gets_out() {
        use std::sync::atomic::{AtomicBool, Ordering};

        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let root = place.join("root");
        std::fs::create_dir_all(root.join("real/inner")).unwrap();
        std::fs::create_dir_all(place.join("outer/inner")).unwrap();
        symlink("../outer", root.join("link")).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let [at, real, link] = ["at", "real", "link"].map(|name| root.join(name));
                while !is_over.load(Ordering::Relaxed) {
                    for from in [&real, &link] {
                        std::fs::rename(from, &at).unwrap();
                        std::fs::rename(&at, from).unwrap();
                    }
                }
            });
            for _ in 0..2_000 {
                for told in opened(&root, &root.join("at/inner")) {
                    assert!(told.as_ref().map_or(true, |path| path.starts_with(&root)), "{told:?}");
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }
}
