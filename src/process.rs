//! Child processes that leave nothing behind.
//!
//! Owns how a child is started and how it is ended; knows nothing of what it says. Every child leads
//! a process group of its own and dies with the sidecar. What it starts in turn may leave the group
//! (Codex gives each command a session of its own), so the child's environment bears a mark, which
//! everything below it inherits.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

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
    mark: String,
}

/// The variable that marks a child and all that it starts.
const MARK: &str = "CODEX_SIDECAR_PROCESS";

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
    pub async fn spawn(mut spec: ProcessSpec) -> io::Result<(Process, Pipes)> {
        let mark = uuid::Uuid::new_v4().to_string();
        spec.env.push((MARK.into(), Some(mark.clone().into())));
        let mut child = spawner::spawn(spec).await?;
        let pid = child.id().ok_or_else(|| io::Error::other("the child ended while it started"))?;
        let gone = || io::Error::other("a pipe of the child is missing");
        let pipes = Pipes {
            stdin: child.stdin.take().ok_or_else(gone)?,
            stdout: child.stdout.take().ok_or_else(gone)?,
            stderr: child.stderr.take().ok_or_else(gone)?,
        };
        Ok((Process { child, pid, mark }, pipes))
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

    /// Kills it and all that it started, commands in sessions of their own and daemons included.
    pub async fn kill(&mut self) {
        // Before their parent is gone: without it nobody knows any more that they were its children.
        let below = tokio::task::spawn_blocking({
            let pid = self.pid;
            move || table::descendants(pid)
        });
        let below = below.await.unwrap_or_default();
        if let Some(group) = as_pid(self.pid) {
            // It may be gone already, which is what is wanted.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.start_kill();
        kill_all(&below);
        // What had been orphaned before, and what was started while this looked.
        for _ in 0..KILL_ROUNDS {
            let marked = tokio::task::spawn_blocking({
                let wanted = format!("{MARK}={}", self.mark);
                move || table::with_environment(&wanted)
            });
            let marked = marked.await.unwrap_or_default();
            if marked.is_empty() {
                return;
            }
            kill_all(&marked);
            tokio::time::sleep(KILL_PAUSE).await;
        }
        tracing::warn!(pid = self.pid, "a worker's processes can't be killed, or go on starting");
    }
}

/// How often what a child left behind is looked for until it is gone.
const KILL_ROUNDS: u32 = 50;
/// The pause in between: a killed process needs a moment to go.
const KILL_PAUSE: Duration = Duration::from_millis(10);

fn kill_all(pids: &[u32]) {
    for pid in pids.iter().filter_map(|pid| as_pid(*pid)) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

fn as_pid(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

/// Whether a process has been killed or is about to end, although it can't be waited for yet: what
/// is written to it now is read by nobody. False where the system does not tell.
pub fn is_dying(pid: u32) -> bool {
    table::is_dying(pid)
}

mod table {
    //! The system's table of processes, as `/proc` shows it.

    use std::path::Path;

    /// The processes below this one, as far as their parents live.
    pub(super) fn descendants(root: u32) -> Vec<u32> {
        let parents: Vec<(u32, u32)> =
            pids().into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
        let mut below = vec![root];
        let mut at = 0;
        while let Some(&parent) = below.get(at) {
            below.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        below.remove(0);
        below
    }

    /// The processes that were started with this `NAME=value`. Zombies have no environment.
    pub(super) fn with_environment(wanted: &str) -> Vec<u32> {
        let has = |pid: &u32| {
            // Not readable is not ours.
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|pair| pair == wanted.as_bytes())
        };
        pids().into_iter().filter(has).collect()
    }

    pub(super) fn is_dying(pid: u32) -> bool {
        const PF_EXITING: u64 = 0x4;
        const SIGKILL: u64 = 1 << 8;
        let Some(stat) = stat(pid) else { return Path::new("/proc/self/stat").exists() };
        let mut fields = stat.split(' ');
        let state = fields.next().unwrap_or_default();
        let flags: u64 = fields.nth(5).and_then(|flags| flags.parse().ok()).unwrap_or_default();
        if matches!(state, "Z" | "X") || flags & PF_EXITING != 0 {
            return true;
        }
        // A signal that is sent and not taken yet.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let pending = |line: &str| {
            let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        };
        status.lines().filter_map(pending).any(|mask| mask & SIGKILL != 0)
    }

    fn pids() -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    fn parent(pid: u32) -> Option<u32> {
        stat(pid)?.split(' ').nth(1)?.parse().ok()
    }

    /// What follows the name, which may hold anything, in brackets: state, parent, ….
    fn stat(pid: u32) -> Option<String> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned())
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use super::*;

    async fn shell(script: &str) -> (Process, Pipes) {
        let spec = ProcessSpec {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            ..ProcessSpec::default()
        };
        Process::spawn(spec).await.unwrap()
    }

    async fn lines(pipes: Pipes, count: usize) -> (Vec<u32>, ChildStdin) {
        let mut lines = BufReader::new(pipes.stdout).lines();
        let mut pids = Vec::new();
        while pids.len() < count {
            pids.push(lines.next_line().await.unwrap().unwrap().parse().unwrap());
        }
        (pids, pipes.stdin)
    }

    fn is_gone(pid: u32) -> bool {
        std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default().is_empty()
    }

    #[tokio::test]
    async fn a_kill_takes_along_sessions_orphans_and_who_hides_the_mark() {
        let script = "setsid sh -c 'echo $$; sleep 1000' &
            (setsid sh -c 'echo $$; sleep 1000' & )
            setsid env -i sh -c 'echo $$; sleep 1000' &
            wait";
        let (mut process, pipes) = shell(script).await;
        let (pids, _stdin) = lines(pipes, 3).await;
        assert!(pids.iter().all(|pid| !is_dying(*pid)));
        process.kill().await;
        process.wait().await.unwrap();
        for _ in 0..200 {
            if pids.iter().all(|pid| is_gone(*pid)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("alive: {:?}", pids.iter().filter(|pid| !is_gone(**pid)).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn who_was_killed_is_known_to_be_dying_at_once() {
        for _ in 0..50 {
            let (mut process, pipes) = shell("echo $$; exec sleep 1000").await;
            let (pids, _stdin) = lines(pipes, 1).await;
            assert!(!is_dying(pids[0]));
            kill_all(&pids);
            assert!(is_dying(pids[0]));
            process.wait().await.unwrap();
            assert!(is_dying(pids[0]));
        }
    }
}
