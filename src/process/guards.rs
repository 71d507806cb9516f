//! The sidecar's side of its guards: starts them, reaps them, and clears up after one that was killed.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::sync::oneshot;

use super::ProcessSpec;
use super::children::{GuardId, Guarding, furnish};
use super::guard::{NAME, SUBCOMMAND};
use super::orphans::Orphans;
use super::tree::Stat;

/// All guards of this process. Belongs to the thread that starts them.
#[derive(Debug, Default)]
pub(super) struct Guards {
    /// Those that are not reaped.
    known: HashMap<GuardId, Pid>,
    started: u64,
    waiting: Vec<(GuardId, oneshot::Sender<()>)>,
    orphans: Option<Orphans>,
}

impl Guards {
    pub(super) fn new() -> Guards {
        Guards::default()
    }

    pub(super) fn start(&mut self, guard: &Path, spec: ProcessSpec) -> io::Result<Guarding> {
        let ProcessSpec { program, args, env, current_dir, guard: _ } = spec;
        let (control, theirs) = UnixStream::pair()?;
        let mut command = Command::new(guard);
        command
            .arg0(NAME)
            .args([SUBCOMMAND, &theirs.as_raw_fd().to_string(), "--"])
            .arg(program)
            .args(args);
        furnish(&mut command, env, current_dir);
        leave_to_the_guard(&mut command, theirs);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            // Else it would seem as if the program had not been found.
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => io::Error::new(
                error.kind(),
                format!("the guard {} could not be started: {error}", guard.display()),
            ),
            _ => error,
        })?;
        let id = GuardId(self.started);
        self.started += 1;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        self.known.insert(id, pid);
        // From here on an error closes the socket, and with it the guard.
        let gone = || io::Error::other("a pipe of the guard is missing");
        Ok(Guarding {
            guard: id,
            control,
            stdin: child.stdin.take().ok_or_else(gone)?,
            stdout: child.stdout.take().ok_or_else(gone)?,
            stderr: child.stderr.take().ok_or_else(gone)?,
        })
    }

    pub(super) fn tell_when_gone(&mut self, guard: GuardId, gone: oneshot::Sender<()>) {
        self.waiting.push((guard, gone));
    }

    /// Kills it if it was stopped; whether it lives and works.
    pub(super) fn give_up(&mut self, guard: GuardId) -> bool {
        let Some(pid) = self.known.get(&guard).copied() else { return false };
        let stopped =
            Stat::read(pid.as_raw_nonzero().get()).is_some_and(|stat| stat.stopped || stat.zombie);
        tracing::warn!(guard = pid.as_raw_nonzero(), stopped, "a guard has not done its work yet");
        if stopped {
            // Not reaped, so still the guard's id.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        !stopped
    }

    pub(super) fn adopt_orphans(&mut self) {
        self.orphans.get_or_insert_with(Orphans::new);
        // Who is there before the next guard is.
        self.tend();
    }

    /// Does what there is to do; says when to come again even if no child ends.
    pub(super) fn tend(&mut self) -> Option<Duration> {
        let mut killed = reap(&mut self.known);
        let mut rest = None;
        let mut clearing = false;
        if let Some(orphans) = &mut self.orphans {
            if !killed && let Some(seen) = orphans.look() {
                // Should a guard have been killed while that was read, what it left is in there, and
                // must not be taken for something that was there before.
                killed = reap(&mut self.known);
                if !killed {
                    orphans.note(&seen, is_guard(&self.known));
                }
            }
            if killed {
                orphans.expect();
            }
            rest = orphans.tend(is_guard(&self.known));
            clearing = orphans.are_awaited();
        }
        let known = &self.known;
        for (guard, gone) in std::mem::take(&mut self.waiting) {
            if known.contains_key(&guard) || clearing {
                self.waiting.push((guard, gone));
            } else {
                let _ = gone.send(());
            }
        }
        rest
    }
}

fn is_guard(known: &HashMap<GuardId, Pid>) -> impl Fn(Pid) -> bool {
    move |pid| known.values().any(|guard| *guard == pid)
}

/// Reaps the guards that have ended; whether one ended before its work was done.
fn reap(known: &mut HashMap<GuardId, Pid>) -> bool {
    let mut undone = false;
    known.retain(|_, pid| match rustix::process::waitpid(Some(*pid), WaitOptions::NOHANG) {
        Ok(None) => true,
        Ok(Some((_, status))) => {
            undone |= status.exit_status() != Some(0);
            false
        }
        // Reaped by somebody who should not have: nobody knows how it ended.
        Err(Errno::CHILD) => {
            undone = true;
            false
        }
        Err(_) => true,
    });
    undone
}

/// Gives the guard its end of the control socket, and a session of its own: a terminal's signals must
/// not reach it, and by the session its orphans are told from the sidecar's own children.
#[allow(unsafe_code, reason = "no library runs anything between fork and exec")]
fn leave_to_the_guard(command: &mut Command, control: UnixStream) {
    // SAFETY: the closure makes two system calls and allocates nothing, which is all that may be done
    // in the child of a process with several threads.
    unsafe {
        command.pre_exec(move || {
            rustix::io::fcntl_setfd(control.as_fd(), FdFlags::empty())?;
            rustix::process::setsid()?;
            Ok(())
        });
    }
}

/// Has the kernel kill the child when the thread that starts it ends.
#[allow(unsafe_code, reason = "no library sets the parent-death signal between fork and exec")]
pub(super) fn die_with_the_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure makes two system calls and allocates nothing, which is all that may be done
    // in the child of a process with several threads.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have died before the signal was asked for.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from(Errno::SRCH));
            }
            Ok(())
        });
    }
}
