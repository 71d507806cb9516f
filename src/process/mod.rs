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
//! A [`Process`] that is dropped is killed. Where there is no guard (not on Linux, or none is asked
//! for) a child leads a process group of its own, and that group is all that is killed with it.

mod children;
mod dying;
#[cfg(target_os = "linux")]
mod guard;
#[cfg(target_os = "linux")]
mod guards;
#[cfg(target_os = "linux")]
mod leftovers;
#[cfg(target_os = "linux")]
mod orphans;
#[cfg(target_os = "linux")]
mod tree;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use dying::{has_dying_children, is_dying};
#[cfg(target_os = "linux")]
pub use guard::guard_if_asked;
#[cfg(target_os = "linux")]
pub use leftovers::{
    Moment, clear_leftovers, instance_variable, kill_started_by, kill_started_since,
};

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// The program's path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables to set over the sidecar's own environment, or to take out of it.
    pub env: Vec<(OsString, Option<OsString>)>,
    /// The directory that it starts in; the sidecar's own where there is none.
    pub current_dir: Option<PathBuf>,
    /// A binary whose `main` calls [`guard_if_asked`], to start the program under; best
    /// `/proc/self/exe`, which is there even after the file was replaced. Without one, and anywhere
    /// but on Linux, descendants that leave the child's process group outlive it.
    pub guard: Option<PathBuf>,
}

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
        match children::start(spec).await? {
            children::Started::Direct(mut child) => {
                let gone = || io::Error::other("the child ended while it started");
                let pid = child.id().ok_or_else(gone)?;
                let pipes = Pipes {
                    stdin: child.stdin.take().ok_or_else(gone)?,
                    stdout: child.stdout.take().ok_or_else(gone)?,
                    stderr: child.stderr.take().ok_or_else(gone)?,
                };
                Ok((Process { pid, keeper: Keeper::Direct(child) }, pipes))
            }
            children::Started::Guarded(guarding) => {
                let children::Guarding { guard, control, stdin, stdout, stderr } = guarding;
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

/// The sidecar's end of a guard. Dropping it closes the control socket, which the guard takes as the
/// order to kill.
#[derive(Debug)]
struct Guarded {
    guard: children::GuardId,
    control: UnixStream,
    heard: Vec<u8>,
    status: Option<ExitStatus>,
    gone: Option<oneshot::Receiver<()>>,
    all_gone: bool,
    killed_at: Option<Instant>,
}

/// What a guard says, a line each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// The program runs, under this id.
    Started(u32),
    /// It could not be started, for this error number.
    Failed(i32),
    /// It ended, with this raw status.
    Ended(i32),
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Word::Started(pid) => writeln!(f, "started {pid}"),
            Word::Failed(errno) => writeln!(f, "failed {errno}"),
            Word::Ended(status) => writeln!(f, "ended {status}"),
        }
    }
}

impl Word {
    fn parse(line: &str) -> Option<Word> {
        let (word, number) = line.trim_end().split_once(' ')?;
        match word {
            "started" => Some(Word::Started(number.parse().ok()?)),
            "failed" => Some(Word::Failed(number.parse().ok()?)),
            "ended" => Some(Word::Ended(number.parse().ok()?)),
            _ => None,
        }
    }
}

impl Guarded {
    /// How long after the order to kill the guard's work is waited for.
    const PATIENCE: Duration = Duration::from_secs(5);

    fn new(
        guard: children::GuardId,
        control: std::os::unix::net::UnixStream,
    ) -> io::Result<Guarded> {
        control.set_nonblocking(true)?;
        Ok(Guarded {
            guard,
            control: UnixStream::from_std(control)?,
            heard: Vec::new(),
            status: None,
            gone: None,
            all_gone: false,
            killed_at: None,
        })
    }

    async fn started(&mut self) -> io::Result<u32> {
        match self.word().await? {
            Some(Word::Started(pid)) => Ok(pid),
            Some(Word::Failed(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Word::Ended(_)) | None => {
                Err(io::Error::other("the guard ended before it had started the program"))
            }
        }
    }

    /// The guard's next word; `None` once it is gone. Nothing is lost where this is dropped.
    async fn word(&mut self) -> io::Result<Option<Word>> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                let word = std::str::from_utf8(&line).ok().and_then(Word::parse);
                return word
                    .map(Some)
                    .ok_or_else(|| io::Error::other("the guard speaks in riddles"));
            }
            self.control.readable().await?;
            let mut buffer = [0; 64];
            match self.control.try_read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => self.heard.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The guard died before it had read the order to kill.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    async fn exited(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            self.status = match self.word().await? {
                Some(Word::Ended(status)) => Some(ExitStatus::from_raw(status)),
                Some(Word::Started(_) | Word::Failed(_)) => None,
                // The guard was killed, and the kernel killed the program with it.
                None => Some(ExitStatus::from_raw(Signal::KILL.as_raw())),
            };
        }
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(killed_at) = self.killed_at {
            let patience = killed_at + Self::PATIENCE;
            if let Ok(status) = tokio::time::timeout_at(patience, self.end()).await {
                return status;
            }
            let busy = children::give_up(self.guard).await.unwrap_or(true);
            if busy {
                return Ok(self.status.unwrap_or(ExitStatus::from_raw(Signal::KILL.as_raw())));
            }
        }
        self.end().await
    }

    async fn end(&mut self) -> io::Result<ExitStatus> {
        let status = self.exited().await?;
        if !self.all_gone {
            // Its end of the socket closes when it exits, and not before.
            while self.word().await?.is_some() {}
            let guard = self.guard;
            let gone = self.gone.get_or_insert_with(|| children::gone(guard));
            // An error says that nobody looks any more, and so that nobody will.
            let _ = gone.await;
            self.all_gone = true;
        }
        Ok(status)
    }

    fn kill(&mut self) {
        self.killed_at.get_or_insert_with(Instant::now);
        // Not through tokio, whose write may have to wait to learn that the socket is writable. A
        // guard that can't be written to is gone.
        let _ = rustix::io::write(&self.control, b"k");
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
    children::adopt_orphans()
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

#[cfg(not(target_os = "linux"))]
mod elsewhere {
    //! Where there are neither subreapers nor `/proc`.

    use std::ffi::OsString;
    use std::io;
    use std::path::Path;
    use std::process::ExitCode;

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

    /// Descendants can't be found here.
    pub fn kill_started_by(_pid: u32, _variable: &str, _value: &str) -> usize {
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
}
#[cfg(not(target_os = "linux"))]
pub use elsewhere::{
    Moment, clear_leftovers, guard_if_asked, instance_variable, kill_started_by, kill_started_since,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guard_says_is_understood() {
        for word in [Word::Started(7), Word::Failed(2), Word::Ended(256)] {
            assert_eq!(Word::parse(&word.to_string()), Some(word));
        }
        for riddle in ["", "started", "started x", "ended 1 2", "left 1"] {
            assert_eq!(Word::parse(riddle), None, "{riddle}");
        }
    }
}
