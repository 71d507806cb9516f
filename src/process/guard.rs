//! The guard: a small process between the sidecar and one worker.
//!
//! It is the sidecar's own binary, started again, with one thread and without a runtime. Its life:
//! become a subreaper, start the worker, give its own copies of the worker's streams up, wait for one
//! of three ends (the worker's, an order, the sidecar's), kill every descendant until none is left,
//! exit with 0, which says so. It ignores the signals that a terminal or a service manager sends to
//! everyone: the sidecar decides when a worker ends.
//!
//! The worker is not reaped before its group is killed: until then its id, and so its group's, can be
//! nobody else's.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};

use super::guard_wire::{NAME, SUBCOMMAND, Word, environment_from_bytes};
use super::private::keep_private;
use super::spawn::die_with_the_parent;
use super::tree::{self, Sweep};
use super::wake::Wake;

/// Is the guard of a worker, if the command line says so, and gives its exit code at its end. To be
/// called first of all in `main`, with all arguments, before there is a thread or an open file.
pub fn guard_if_asked(args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.skip(1);
    if args.next()? != SUBCOMMAND {
        return None;
    }
    let mut fd = || args.next()?.to_str()?.parse::<RawFd>().ok().filter(|fd| *fd > 2);
    let (control, environment) = (fd(), fd());
    let (Some(control), Some(environment), Some(_), Some(program)) =
        (control, environment, args.next().filter(|word| word == "--"), args.next())
    else {
        eprintln!("this subcommand is for the sidecar's own use");
        return Some(ExitCode::from(64));
    };
    // Only a help for who looks at a list of processes. Before it is private: the file is root's then.
    let _ = std::fs::write("/proc/self/comm", NAME);
    // It has the worker's keys in its memory. A system that refuses this is no reason to have no worker.
    let _ = keep_private();
    let (control, environment) = inherit(control, environment);
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(environment_from_bytes(&environment));
    Some(match Guard::start(control, command) {
        Some(guard) => guard.run(),
        None => ExitCode::SUCCESS,
    })
}

/// Takes the control socket over, reads the environment to hand on, and closes that and whatever else the
/// sidecar was started with.
#[allow(
    unsafe_code,
    reason = "a file descriptor that was inherited can only be named by its number"
)]
fn inherit(control: RawFd, environment: RawFd) -> (UnixStream, Vec<u8>) {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && ![control, environment].contains(fd)) {
        // The directory itself was open, and is no longer.
        if std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_err() {
            continue;
        }
        // SAFETY: nothing in this process has a file open yet, so that nobody owns the descriptor.
        unsafe { rustix::io::close(fd) };
    }
    // SAFETY: as above; the sidecar made these two for nobody but us.
    let (control, environment) =
        unsafe { (OwnedFd::from_raw_fd(control), OwnedFd::from_raw_fd(environment)) };
    let mut bytes = Vec::new();
    // It is in memory. Whatever is missing of it, the worker says what it can't do without.
    let _ = std::fs::File::from(environment).read_to_end(&mut bytes);
    (UnixStream::from(control), bytes)
}

struct Guard {
    me: Pid,
    control: UnixStream,
    wake: Wake,
    worker: Pid,
    /// Whether the sidecar was told how the worker ended.
    told: bool,
    alone: bool,
}

impl Guard {
    /// Starts the worker; tells the sidecar what became of it.
    fn start(control: UnixStream, command: Command) -> Option<Guard> {
        match Guard::try_start(&control, command) {
            Ok((wake, worker)) => {
                let me = rustix::process::getpid();
                let guard = Guard { me, control, wake, worker, told: false, alone: false };
                guard.tell(Word::Started(worker.as_raw_nonzero().get().unsigned_abs()));
                Some(guard)
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
                let _ = write!(&control, "{}", Word::Failed(errno));
                None
            }
        }
    }

    fn try_start(control: &UnixStream, mut command: Command) -> io::Result<(Wake, Pid)> {
        rustix::io::fcntl_setfd(control, rustix::io::FdFlags::CLOEXEC)?;
        control.set_nonblocking(true)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let (wake, _) = Wake::new()?;
        // Handlers, because an ignored signal would be ignored by the worker too.
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2] {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
        }
        // So that even a guard that is killed leaves no worker.
        die_with_the_parent(command.process_group(0));
        let worker = command.spawn()?.id();
        let worker = i32::try_from(worker).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        // Else its pipes would stay open after its end. Nothing can be done where this fails, but then
        // the sidecar sees the end a little later.
        if let Ok(null) = std::fs::File::options().read(true).write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdin(&null);
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
        }
        Ok((wake, worker))
    }

    fn tell(&self, word: Word) {
        // A sidecar that is gone hears nothing; the socket's end tells of that.
        let _ = write!(&self.control, "{word}");
    }

    fn run(mut self) -> ExitCode {
        loop {
            self.pause(None);
            // The worker's end first: how it ended is told even where the order comes with it.
            if self.worker_ended() || self.ordered() {
                break;
            }
            self.reap_orphans();
        }
        self.kill_everything();
        ExitCode::SUCCESS
    }

    /// Waits until a child has ended or the sidecar moves.
    fn pause(&mut self, timeout: Option<Duration>) {
        // A socket that was closed is readable for ever; there is nothing more to hear from it.
        let control = (!self.alone).then(|| self.control.as_fd());
        self.wake.wait(control, timeout);
    }

    /// Whether the sidecar has ordered the end or is gone.
    fn ordered(&mut self) -> bool {
        if self.alone {
            return true;
        }
        match self.control.read(&mut [0; 8]) {
            Ok(0) => self.alone = true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return false,
            Err(_) => self.alone = true,
        }
        true
    }

    /// Whether the worker has ended; leaves it unreaped and tells the sidecar.
    fn worker_ended(&mut self) -> bool {
        if self.told {
            return true;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = match rustix::process::waitid(WaitId::Pid(self.worker), options) {
            Ok(Some(status)) => status,
            Ok(None) | Err(_) => return false,
        };
        // As wait(2) puts them.
        self.tell_end(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => (code & 0xff) << 8,
            (None, signal) => signal.unwrap_or(Signal::KILL.as_raw()) & 0x7f,
        });
        true
    }

    fn tell_end(&mut self, status: i32) {
        if !self.told {
            self.told = true;
            self.tell(Word::Ended(status));
        }
    }

    fn reap_orphans(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // Most often it was the worker's child, and the worker has reaped it.
        if !matches!(rustix::process::waitid(WaitId::All, options), Ok(Some(_))) {
            return;
        }
        let me = self.me.as_raw_nonzero().get();
        for stat in tree::all().unwrap_or_default() {
            let Some(pid) = stat.pid().filter(|_| stat.zombie && stat.parent == me) else {
                continue;
            };
            if pid != self.worker {
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
    }

    /// Kills until there is no descendant, however long that takes: nobody else would go on.
    fn kill_everything(&mut self) {
        // Descendants that fork all the time keep the processors busy. Only root may go before them.
        let _ = rustix::process::setpriority_process(None, -10);
        // The worker is not reaped yet, so that the group is its own.
        let _ = rustix::process::kill_process_group(self.worker, Signal::KILL);
        let mut rest = Duration::from_millis(1);
        // Most often the group was all there was, and no sweep is needed.
        self.pause(Some(rest));
        let mut sweep = Sweep::new(self.me);
        while !self.reap_all() {
            if sweep.pass(|_| true).is_ok_and(|pass| pass.new > 0) {
                rest = Duration::from_millis(1);
                continue;
            }
            // All that can be found is killed, and dies when it can.
            self.pause(Some(rest));
            self.ordered();
            rest = (rest * 2).min(Duration::from_secs(1));
        }
    }

    /// Reaps who is dead; whether there is no child left, and so no descendant.
    fn reap_all(&mut self) -> bool {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.worker => self.tell_end(status.as_raw()),
                Ok(Some(_)) => {}
                Err(Errno::CHILD) => return true,
                Ok(None) | Err(_) => return false,
            }
        }
    }
}
