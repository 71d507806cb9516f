//! The guards that the sidecar has: reaps them, and clears up after one that was killed.

use std::collections::HashMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};
use tokio::sync::oneshot;

use super::census::Roots;
use super::orphans::Orphans;
use super::spawn::{self, ProcessSpec};
use super::tree::{Identity, Stat};

/// Which guard, of all that this process ever started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct GuardId(u64);

/// A guard that is about to start a program.
#[derive(Debug)]
pub(super) struct Guarding {
    pub(super) guard: GuardId,
    /// The sidecar's end of it.
    pub(super) control: UnixStream,
    /// The program's streams.
    pub(super) stdin: ChildStdin,
    pub(super) stdout: ChildStdout,
    pub(super) stderr: ChildStderr,
}

/// All guards of this process. Belongs to the [reaper](super::reaper).
#[derive(Debug, Default)]
pub(super) struct Guards {
    /// Those that are not reaped.
    known: HashMap<GuardId, Pid>,
    started: u64,
    waiting: Vec<(GuardId, oneshot::Sender<()>)>,
    orphans: Option<Orphans>,
    /// Children that were started without a guard.
    unguarded: Vec<Identity>,
}

impl Guards {
    pub(super) fn start(&mut self, guard: &Path, spec: ProcessSpec) -> io::Result<Guarding> {
        let (mut child, control) = spawn::under_a_guard(guard, spec)?;
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

    /// Kills a guard that was stopped; tells whether it is at work instead.
    pub(super) fn give_up(&mut self, guard: GuardId) -> bool {
        let Some(pid) = self.known.get(&guard).copied() else { return false };
        let stopped =
            Stat::read(pid.as_raw_nonzero().get()).is_some_and(|stat| stat.stopped || stat.zombie);
        if stopped {
            tracing::warn!(guard = pid.as_raw_nonzero(), "a guard that was stopped is killed");
            // Not reaped, so still the guard's id.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        !stopped
    }

    pub(super) fn note_unguarded(&mut self, pid: Option<u32>) {
        let pid = pid.and_then(|pid| i32::try_from(pid).ok());
        self.unguarded.retain(|it| Stat::read(it.pid).is_some_and(|now| now.identity == *it));
        self.unguarded.extend(pid.and_then(Stat::read).map(|stat| stat.identity));
    }

    /// Whose descendants all workers and their commands are.
    pub(super) fn roots(&mut self) -> Roots {
        // A guard that was just killed has left its descendants to us.
        self.tend();
        let mut guards: Vec<i32> =
            self.known.values().map(|pid| pid.as_raw_nonzero().get()).collect();
        guards.sort_unstable();
        let standing = self.orphans.as_ref().and_then(Orphans::standing);
        Roots { guards, unguarded: self.unguarded.clone(), standing: standing.cloned() }
    }

    pub(super) fn adopt_orphans(&mut self) {
        self.orphans.get_or_insert_with(Orphans::new);
        // Notes the children that are there before the next guard.
        self.tend();
    }

    /// Does what there is to do; says when to come again even if no child ends.
    pub(super) fn tend(&mut self) -> Option<Duration> {
        let mut killed = reap(&mut self.known);
        let mut rest = None;
        let mut clearing = false;
        if let Some(orphans) = &mut self.orphans {
            if !killed && let Some(seen) = orphans.look() {
                // A guard that was killed during the look left its orphans in `seen`: they must not
                // pass for children that stood there before.
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
