//! Child processes that leave nothing behind.
//!
//! Owns how a child is started and how it is ended; knows nothing of what it says. On Linux there is
//! a [guard](guard_if_asked) between the sidecar and a child:
//!
//! ```text
//! sidecar ── guard ── worker ── commands, tool servers, whatever they start
//!    └─ control socket ┘  stdin, stdout and stderr are the sidecar's own pipes: nobody copies bytes
//! ```
//!
//! The guard is a child subreaper, so whatever leaves the worker's group, session or tree becomes the
//! guard's own child, and it kills all its descendants when the worker ends, when it is told to, or
//! when the control socket closes. The kernel closes that socket however the sidecar dies. The other
//! two deaths are covered from both sides: the kernel kills the worker with its guard, and the sidecar
//! adopts and kills what a guard that was itself killed leaves ([`adopt_orphans`]).
//!
//! A child's environment is all that it is given: nothing of the sidecar's own comes to it by itself. The
//! guard has none of it, and hands it on: a key stands in the environment of the worker alone.
//!
//! A [`Process`] that is dropped is killed. Where there is no guard (not on Linux, or none is asked
//! for) a child leads a process group of its own, and that group is all that is killed with it.

#[cfg(target_os = "linux")]
mod census;
mod descriptors;
mod dying;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod files;
#[cfg(target_os = "linux")]
mod guard;
pub(crate) mod guard_wire;
mod guarded;
#[cfg(target_os = "linux")]
mod guards;
mod kin;
#[cfg(target_os = "linux")]
mod leftovers;
#[cfg(target_os = "linux")]
mod orphans;
mod private;
mod reaper;
#[cfg(target_os = "linux")]
mod sockets;
mod spawn;
#[cfg(target_os = "linux")]
pub(crate) mod tree;
#[cfg(target_os = "linux")]
mod users;
mod wake;

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

// Every system but Linux has neither subreapers nor `/proc`.
#[cfg(not(target_os = "linux"))]
use elsewhere as census;
#[cfg(not(target_os = "linux"))]
use elsewhere as guards;
#[cfg(not(target_os = "linux"))]
use elsewhere as guard;
#[cfg(not(target_os = "linux"))]
use elsewhere as leftovers;
use guarded::Guarded;
use guards::Guarding;

pub(crate) use census::Census;
pub(crate) use descriptors::{descriptor_limit, raise_descriptor_limit};
pub(crate) use dying::{has_dying_children, is_dying};
pub use guard::guard_if_asked;
#[cfg(test)]
pub(crate) use kin::Somebody;
pub(crate) use kin::{Kin, Peer};
pub use leftovers::{Moment, clear_leftovers, instance_variable, kill_started_since};
pub(crate) use private::keep_private;
pub use spawn::ProcessSpec;

/// A running child.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    keeper: Keeper,
}

/// The three streams of a child.
#[derive(Debug)]
pub struct Pipes {
    /// Towards it.
    pub stdin: ChildStdin,
    /// From it.
    pub stdout: ChildStdout,
    /// Its complaints.
    pub stderr: ChildStderr,
}

#[derive(Debug)]
enum Keeper {
    Direct(Child),
    Guarded(Guarded),
}

impl Process {
    /// Starts a child with pipes on its three streams.
    ///
    /// # Errors
    /// What the operating system says, with its error number: a missing program, no permission, no
    /// processes, memory or file descriptors left. A guard that can't be found or started has a
    /// message of its own.
    pub async fn spawn(spec: ProcessSpec) -> io::Result<(Process, Pipes)> {
        match reaper::start(spec).await? {
            reaper::Started::Direct(mut child) => {
                let gone = || io::Error::other("the child ended while it started");
                let pid = child.id().ok_or_else(gone)?;
                let pipes = Pipes {
                    stdin: child.stdin.take().ok_or_else(gone)?,
                    stdout: child.stdout.take().ok_or_else(gone)?,
                    stderr: child.stderr.take().ok_or_else(gone)?,
                };
                Ok((Process { pid, keeper: Keeper::Direct(child) }, pipes))
            }
            reaper::Started::Guarded(guarding) => {
                let Guarding { guard, control, stdin, stdout, stderr } = guarding;
                let mut guarded = Guarded::new(guard, control)?;
                let pipes = Pipes {
                    stdin: ChildStdin::from_std(stdin)?,
                    stdout: ChildStdout::from_std(stdout)?,
                    stderr: ChildStderr::from_std(stderr)?,
                };
                let pid = guarded.started().await?;
                Ok((Process { pid, keeper: Keeper::Guarded(guarded) }, pipes))
            }
        }
    }

    /// The operating system's id of it: the program's, not its guard's.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its own end. What it started may still be being killed then; see [`Process::wait`].
    ///
    /// # Errors
    /// What the operating system says; not expected.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        match &mut self.keeper {
            Keeper::Direct(child) => child.wait().await,
            Keeper::Guarded(guarded) => guarded.exited().await,
        }
    }

    /// Waits for its end and for the end of all that it started, and gives its own exit status. May
    /// be dropped and called again. Once it was [killed](Process::kill), that takes five seconds at
    /// most: what is left then can't be killed, or not yet, and its guard goes on without us.
    ///
    /// # Errors
    /// What the operating system says; not expected.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.keeper {
            Keeper::Direct(child) => child.wait().await,
            Keeper::Guarded(guarded) => guarded.wait().await,
        }
    }

    /// Has it killed at once, with all that it started. Doesn't wait; [`Process::wait`] does.
    pub fn kill(&mut self) {
        match &mut self.keeper {
            Keeper::Direct(child) => {
                if let Some(group) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
                    // It may be gone already, which is what is wanted.
                    let _ = rustix::process::kill_process_group(group, Signal::KILL);
                }
                let _ = child.start_kill();
            }
            Keeper::Guarded(guarded) => guarded.kill(),
        }
    }
}

/// Makes the sidecar the parent of whatever a guard leaves behind that is killed itself, and has it
/// reap the children that nobody else waits for, as process 1 must. To be called once, early.
///
/// Which children may be touched: none of the session that the sidecar is in (all that it starts
/// without a guard stays there, and only whoever started one may take its exit status), except what
/// has been dead for ten seconds; no guard that is alive; and to be killed, none that was there before
/// a guard died. So a child that this process starts in another session by other means than
/// [`Process`] could be reaped here: there must be none.
///
/// # Errors
/// What the operating system says.
pub fn adopt_orphans() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    reaper::adopt_orphans()
}

/// The resident memory of a process, in bytes; `None` once it is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// An exit status in words: `exit status 1`, `signal 9`.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}
