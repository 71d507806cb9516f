//! How many files this process may have open, and that what it starts does not inherit more than it
//! would have without us: programs that close every possible descriptor, or `select`, don't take a
//! limit of a million well.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits as the process was started with them.
static FOUND: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one. For programs, once at their start.
pub(crate) fn raise_descriptor_limit() -> io::Result<()> {
    let found = getrlimit(Resource::Nofile);
    FOUND.get_or_init(|| found);
    setrlimit(Resource::Nofile, Rlimit { current: found.maximum, maximum: found.maximum })?;
    Ok(())
}

/// How many files may be open at once; `None` for any number.
pub(crate) fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Puts the limits back, in a child between fork and exec: allocates nothing and takes no lock.
pub(super) fn restore_descriptor_limit() -> io::Result<()> {
    match FOUND.get() {
        Some(found) => Ok(setrlimit(Resource::Nofile, *found)?),
        None => Ok(()),
    }
}
