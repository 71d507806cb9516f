//! Child processes that leave nothing behind.
//!
//! Owns how a child is started and how it is ended; knows nothing of what it says. Every child leads
//! a process group of its own and dies with the sidecar.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::sync::oneshot;

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
}

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
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

impl Process {
    /// Starts a child with pipes on its three streams.
    ///
    /// # Errors
    /// What the operating system says: a missing program, no permission, no processes or file
    /// descriptors left.
    pub async fn spawn(spec: ProcessSpec) -> io::Result<(Process, Pipes)> {
        let mut child = spawner::spawn(spec).await?;
        let pid = child.id().ok_or_else(|| io::Error::other("the child ended while it started"))?;
        let gone = || io::Error::other("a pipe of the child is missing");
        let pipes = Pipes {
            stdin: child.stdin.take().ok_or_else(gone)?,
            stdout: child.stdout.take().ok_or_else(gone)?,
            stderr: child.stderr.take().ok_or_else(gone)?,
        };
        Ok((Process { child, pid }, pipes))
    }

    /// The operating system's id of it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end and reaps it.
    ///
    /// # Errors
    /// What the operating system says; not expected.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills it and every process of its group at once.
    pub fn kill(&mut self) {
        if let Some(group) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may be gone already, which is what is wanted.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.start_kill();
    }
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

mod spawner {
    //! Starts children from one thread that lives as long as the process, because the kernel sends
    //! the parent-death signal when the *thread* that made the child ends.

    use std::sync::OnceLock;
    use std::sync::mpsc;

    use super::*;

    struct Job {
        spec: ProcessSpec,
        runtime: tokio::runtime::Handle,
        done: oneshot::Sender<io::Result<Child>>,
    }

    pub(super) async fn spawn(spec: ProcessSpec) -> io::Result<Child> {
        static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
        let jobs = JOBS.get_or_init(|| {
            let (jobs, queue) = mpsc::channel::<Job>();
            // Should the thread not start, the queue is dropped and every spawn says so.
            let _ = std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
                for Job { spec, runtime, done } in queue {
                    let _entered = runtime.enter();
                    // A caller that is gone drops the child, which kills it.
                    let _ = done.send(start(spec));
                }
            });
            jobs
        });
        let (done, started) = oneshot::channel();
        let lost = || io::Error::other("the thread that starts children is gone");
        jobs.send(Job { spec, runtime: tokio::runtime::Handle::current(), done })
            .map_err(|_| lost())?;
        started.await.map_err(|_| lost())?
    }

    fn start(spec: ProcessSpec) -> io::Result<Child> {
        let ProcessSpec { program, args, env, current_dir } = spec;
        let mut command = tokio::process::Command::new(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        for (name, value) in env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = current_dir {
            command.current_dir(directory);
        }
        die_with_the_sidecar(&mut command);
        command.spawn()
    }

    #[cfg(target_os = "linux")]
    #[allow(unsafe_code, reason = "no library sets the parent-death signal between fork and exec")]
    fn die_with_the_sidecar(command: &mut tokio::process::Command) {
        let sidecar = rustix::process::getpid();
        // SAFETY: the closure only makes two system calls and allocates nothing, which is all that
        // may be done in the child of a process with several threads.
        unsafe {
            command.pre_exec(move || {
                rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                // The sidecar may have died before the signal was asked for.
                if rustix::process::getppid() != Some(sidecar) {
                    return Err(io::Error::from(rustix::io::Errno::SRCH));
                }
                Ok(())
            });
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn die_with_the_sidecar(_command: &mut tokio::process::Command) {}
}
