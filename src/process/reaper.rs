//! The one thread that starts children and buries them.
//!
//! One thread for starting, because the kernel sends the parent-death signal of a child that is
//! started without a guard when the *thread* that made it ends; this one lives as long as the process.
//! The same one for reaping, so that there is no moment in which a guard exists and isn't known to who
//! reaps. It never waits for anything but work.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::process::Child;
use tokio::sync::oneshot;

#[cfg(target_os = "linux")]
use super::census::Roots;
use super::guards::{GuardId, Guarding, Guards};
use super::spawn::{self, ProcessSpec};
use super::wake::Wake;

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
    #[cfg(target_os = "linux")]
    Roots(oneshot::Sender<Roots>),
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

/// Whose descendants the workers and their commands are; whatever has happened to a guard by now is in it.
#[cfg(target_os = "linux")]
pub(super) fn roots() -> oneshot::Receiver<Roots> {
    let (roots, answer) = oneshot::channel();
    let _ = send(Job::Roots(roots));
    answer
}

/// Has orphans looked after from now on.
pub(super) fn adopt_orphans() -> io::Result<()> {
    send(Job::AdoptOrphans)
}

#[derive(Clone)]
struct Thread {
    jobs: mpsc::Sender<Job>,
    waker: Arc<UnixStream>,
}

fn send(job: Job) -> io::Result<()> {
    // Kept only once it runs: what can't be started now for want of descriptors may be later.
    static THREAD: Mutex<Option<Thread>> = Mutex::new(None);
    let Thread { jobs, waker } = {
        let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
        match &*thread {
            Some(thread) => thread.clone(),
            None => thread.insert(begin()?).clone(),
        }
    };
    jobs.send(job).map_err(|_| lost())?;
    // Where the socket is full, the thread is awake.
    let _ = (&*waker).write(&[1]);
    Ok(())
}

fn lost() -> io::Error {
    io::Error::other("the thread that starts children is gone")
}

fn begin() -> io::Result<Thread> {
    let (wake, waker) = Wake::new()?;
    let (jobs, queue) = mpsc::channel();
    std::thread::Builder::new().name("children".to_owned()).spawn(move || run(queue, wake))?;
    Ok(Thread { jobs, waker: Arc::new(waker) })
}

fn run(queue: mpsc::Receiver<Job>, mut wake: Wake) {
    let mut guards = Guards::default();
    let mut rest = None;
    loop {
        wake.wait(None, rest);
        // The other end is a static: the queue never closes.
        while let Ok(job) = queue.try_recv() {
            match job {
                Job::Start { spec, runtime, started } => {
                    let result = match &spec.guard {
                        Some(guard) if cfg!(target_os = "linux") => {
                            guards.start(&guard.clone(), spec).map(Started::Guarded)
                        }
                        _ => {
                            let child = spawn::directly(spec, &runtime);
                            if let Ok(child) = &child {
                                guards.note_unguarded(child.id());
                            }
                            child.map(Started::Direct)
                        }
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
                #[cfg(target_os = "linux")]
                Job::Roots(answer) => {
                    let _ = answer.send(guards.roots());
                }
            }
        }
        rest = guards.tend();
    }
}
