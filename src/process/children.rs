//! The one thread that starts children and buries them.
//!
//! One thread for starting, because the kernel sends the parent-death signal of a child that is
//! started without a guard when the *thread* that made it ends; this one lives as long as the process.
//! The same one for reaping, so that there is no moment in which a guard exists and isn't known to who
//! reaps. It never waits for anything but work.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::process::Child;
use tokio::sync::oneshot;

use super::ProcessSpec;
#[cfg(target_os = "linux")]
use super::guards::Guards;
#[cfg(not(target_os = "linux"))]
use nobody::Guards;

/// Which guard, of all that this process ever started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GuardId(pub(super) u64);

/// A guard that is about to start a program.
#[derive(Debug)]
pub(super) struct Guarding {
    pub(super) guard: GuardId,
    /// The sidecar's end of it.
    pub(super) control: UnixStream,
    /// The program's streams.
    pub(super) stdin: std::process::ChildStdin,
    pub(super) stdout: std::process::ChildStdout,
    pub(super) stderr: std::process::ChildStderr,
}

#[derive(Debug)]
pub(super) enum Started {
    Direct(Child),
    Guarded(Guarding),
}

enum Job {
    Start {
        spec: ProcessSpec,
        runtime: tokio::runtime::Handle,
        started: oneshot::Sender<io::Result<Started>>,
    },
    Gone {
        guard: GuardId,
        gone: oneshot::Sender<()>,
    },
    GiveUp {
        guard: GuardId,
        busy: oneshot::Sender<bool>,
    },
    AdoptOrphans,
}

/// Starts a child, under a guard if the spec names one.
pub(super) async fn start(spec: ProcessSpec) -> io::Result<Started> {
    let (started, answer) = oneshot::channel();
    send(Job::Start { spec, runtime: tokio::runtime::Handle::current(), started })?;
    answer.await.map_err(|_| lost())?
}

/// Resolves once a guard that has closed its socket is reaped and, where it was killed itself, what it
/// left behind is gone too or has proved to be beyond killing.
pub(super) fn gone(guard: GuardId) -> oneshot::Receiver<()> {
    let (gone, answer) = oneshot::channel();
    // Where this fails, the receiver learns it from the sender's drop.
    let _ = send(Job::Gone { guard, gone });
    answer
}

/// Kills a guard that was stopped, and whose orphans are then the sidecar's to kill. Tells whether it
/// is one that merely needs its time.
pub(super) fn give_up(guard: GuardId) -> oneshot::Receiver<bool> {
    let (busy, answer) = oneshot::channel();
    let _ = send(Job::GiveUp { guard, busy });
    answer
}

/// Has orphans looked after from now on.
pub(super) fn adopt_orphans() -> io::Result<()> {
    send(Job::AdoptOrphans)
}

#[derive(Clone)]
struct Thread {
    jobs: mpsc::Sender<Job>,
    wake: Arc<UnixStream>,
}

fn send(job: Job) -> io::Result<()> {
    // Kept only once it runs: what can't be started now for want of descriptors may be later.
    static THREAD: Mutex<Option<Thread>> = Mutex::new(None);
    let Thread { jobs, wake } = {
        let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
        match &*thread {
            Some(thread) => thread.clone(),
            None => thread.insert(begin()?).clone(),
        }
    };
    jobs.send(job).map_err(|_| lost())?;
    // Where the socket is full, the thread is awake.
    let _ = (&*wake).write(&[1]);
    Ok(())
}

fn lost() -> io::Error {
    io::Error::other("the thread that starts children is gone")
}

fn begin() -> io::Result<Thread> {
    let (woken, wake) = UnixStream::pair()?;
    woken.set_nonblocking(true)?;
    wake.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, wake.try_clone()?)?;
    let (jobs, queue) = mpsc::channel();
    std::thread::Builder::new().name("children".to_owned()).spawn(move || run(queue, woken))?;
    Ok(Thread { jobs, wake: Arc::new(wake) })
}

fn run(queue: mpsc::Receiver<Job>, mut woken: UnixStream) {
    let mut guards = Guards::new();
    let mut rest = None;
    loop {
        pause(&mut woken, rest);
        // The other end is a static: the queue never closes.
        while let Ok(job) = queue.try_recv() {
            match job {
                Job::Start { spec, runtime, started } => {
                    let result = match &spec.guard {
                        Some(guard) if cfg!(target_os = "linux") => {
                            guards.start(&guard.clone(), spec).map(Started::Guarded)
                        }
                        _ => start_directly(spec, &runtime).map(Started::Direct),
                    };
                    // A caller that is gone drops the child, or the socket of its guard, and either
                    // kills.
                    let _ = started.send(result);
                }
                Job::Gone { guard, gone } => guards.tell_when_gone(guard, gone),
                Job::GiveUp { guard, busy } => {
                    let _ = busy.send(guards.give_up(guard));
                }
                Job::AdoptOrphans => guards.adopt_orphans(),
            }
        }
        rest = guards.tend();
    }
}

/// Waits for a job or for the end of a child.
fn pause(woken: &mut UnixStream, timeout: Option<Duration>) {
    let timeout = timeout.map(timespec);
    // An interruption is as good as any other end of the pause.
    let _ = rustix::event::poll(&mut [PollFd::new(&*woken, PollFlags::IN)], timeout.as_ref());
    while woken.read(&mut [0; 256]).is_ok_and(|read| read > 0) {}
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn start_directly(spec: ProcessSpec, runtime: &tokio::runtime::Handle) -> io::Result<Child> {
    let _entered = runtime.enter();
    let ProcessSpec { program, args, env, current_dir, guard: _ } = spec;
    let mut command = std::process::Command::new(program);
    command.args(args);
    furnish(&mut command, env, current_dir);
    let mut command = tokio::process::Command::from(command);
    command.process_group(0).kill_on_drop(true);
    #[cfg(target_os = "linux")]
    super::guards::die_with_the_parent(command.as_std_mut());
    command.spawn()
}

/// What a child and a guard have in common.
pub(super) fn furnish(
    command: &mut std::process::Command,
    env: Vec<(std::ffi::OsString, Option<std::ffi::OsString>)>,
    current_dir: Option<std::path::PathBuf>,
) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in env {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    if let Some(directory) = current_dir {
        command.current_dir(directory);
    }
}

#[cfg(not(target_os = "linux"))]
mod nobody {
    //! No guards and no orphans.

    use super::*;

    pub(super) struct Guards;

    impl Guards {
        pub(super) fn new() -> Guards {
            Guards
        }

        pub(super) fn start(
            &mut self,
            _: &std::path::Path,
            _: ProcessSpec,
        ) -> io::Result<Guarding> {
            Err(io::Error::from(io::ErrorKind::Unsupported))
        }

        pub(super) fn tell_when_gone(&mut self, _: GuardId, gone: oneshot::Sender<()>) {
            let _ = gone.send(());
        }

        pub(super) fn give_up(&mut self, _: GuardId) -> bool {
            true
        }

        pub(super) fn adopt_orphans(&mut self) {}

        pub(super) fn tend(&mut self) -> Option<Duration> {
            None
        }
    }
}
