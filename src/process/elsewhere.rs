//! Where there are neither subreapers nor `/proc`: no guards, and no way to find what was left behind.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitCode};
use std::time::Duration;

use tokio::sync::oneshot;

use super::kin::{Kin, Peer};
use super::spawn::ProcessSpec;

/// There are no guards here.
pub fn guard_if_asked(_args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    None
}

/// There is nothing to find leftovers with here.
///
/// # Errors
/// None.
pub fn instance_variable(_codex_home: &Path) -> io::Result<(OsString, OsString)> {
    Ok(("CODEX_SIDECAR_INSTANCE".into(), std::process::id().to_string().into()))
}

/// Leftovers can't be found here.
pub fn clear_leftovers(_codex_home: &Path) -> usize {
    0
}

/// A moment; there is no use for it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(());

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        Moment(())
    }
}

/// Descendants can't be found here.
pub fn kill_started_since(_pid: u32, _variable: &str, _value: &str, _since: Moment) -> usize {
    0
}

/// A search for processes, which can't be found here.
pub(crate) struct Census(usize);

impl Census {
    pub(crate) fn new(peers: impl IntoIterator<Item = Peer>) -> Census {
        Census(peers.into_iter().count())
    }

    pub(crate) fn go_on(&mut self, _slice: Duration) -> bool {
        true
    }

    pub(crate) fn known(&self) -> impl Iterator<Item = Option<&Kin>> {
        std::iter::repeat_n(None, self.0)
    }

    pub(crate) fn end(self) -> Vec<Kin> {
        vec![Kin::Unknown("this system does not tell who is connected"); self.0]
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct GuardId(Infallible);

#[derive(Debug)]
pub(super) struct Guarding {
    pub(super) guard: GuardId,
    pub(super) control: UnixStream,
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

#[derive(Default)]
pub(super) struct Guards;

impl Guards {
    pub(super) fn start(&mut self, _: &Path, _: ProcessSpec) -> io::Result<Guarding> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    pub(super) fn tell_when_gone(&mut self, guard: GuardId, _: oneshot::Sender<()>) {
        match guard.0 {}
    }

    pub(super) fn give_up(&mut self, guard: GuardId) -> bool {
        match guard.0 {}
    }

    pub(super) fn note_unguarded(&mut self, _: Option<u32>) {}

    pub(super) fn adopt_orphans(&mut self) {}

    pub(super) fn tend(&mut self) -> Option<Duration> {
        None
    }
}
