//! What a process holds (keys, tokens, what callers say) stays its own.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};

/// Keeps other processes of the same user out of this one: none but root may read its memory, its
/// environment and its open files, or trace it, and no core of it is ever written. What it starts inherits
/// the last, and not the rest. To be called early.
///
/// # Errors
/// What the operating system says.
pub(crate) fn keep_private() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}
