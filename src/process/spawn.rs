//! How a child is started: its command, its streams, what is done between fork and exec.
//!
//! For the [reaper](super::reaper) and, as to its worker, for a guard. Waits for nobody.

use std::ffi::OsString;
#[cfg(target_os = "linux")]
use std::fs::File;
use std::io;
#[cfg(target_os = "linux")]
use std::io::{Seek as _, Write as _};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd as _;
#[cfg(target_os = "linux")]
use std::os::unix::net::UnixStream;
#[cfg(target_os = "linux")]
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[cfg(target_os = "linux")]
use rustix::fs::MemfdFlags;
#[cfg(target_os = "linux")]
use rustix::io::{Errno, FdFlags};
#[cfg(target_os = "linux")]
use rustix::process::Signal;
use tokio::process::Child;

#[cfg(target_os = "linux")]
use super::descriptors::restore_descriptor_limit;
#[cfg(target_os = "linux")]
use super::guard_wire::{NAME, SUBCOMMAND, environment_to_bytes};

/// What to start.
#[derive(Debug, Clone, Default)]
pub struct ProcessSpec {
    /// What to run, by its path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// A variable that its guard has, too: by it both are known.
    pub mark: Option<(OsString, OsString)>,
    /// The directory that it starts in; the sidecar's own where there is none.
    pub current_dir: Option<PathBuf>,
    /// A binary whose `main` calls [`guard_if_asked`](super::guard_if_asked), to start the program
    /// under; best `/proc/self/exe`, which is there even after the file was replaced. Without one, and
    /// anywhere but on Linux, descendants that leave the child's process group outlive it.
    pub guard: Option<PathBuf>,
}

/// Starts a child that leads a process group of its own.
pub(super) fn directly(spec: ProcessSpec, runtime: &tokio::runtime::Handle) -> io::Result<Child> {
    let _entered = runtime.enter();
    let ProcessSpec { program, args, env, mark, current_dir, guard: _ } = spec;
    let mut command = Command::new(program);
    command.args(args);
    furnish(&mut command, env.into_iter().chain(mark), current_dir);
    let mut command = tokio::process::Command::from(command);
    command.process_group(0).kill_on_drop(true);
    #[cfg(target_os = "linux")]
    die_with_the_parent(command.as_std_mut());
    command.spawn()
}

/// Starts a guard that is to start the program; gives the sidecar's end of the control socket too.
#[cfg(target_os = "linux")]
pub(super) fn under_a_guard(
    guard: &std::path::Path,
    spec: ProcessSpec,
) -> io::Result<(std::process::Child, UnixStream)> {
    let ProcessSpec { program, args, env, mark, current_dir, guard: _ } = spec;
    let (control, theirs) = UnixStream::pair()?;
    let handed_on = handed_on(env.into_iter().chain(mark.clone()))?;
    let mut command = Command::new(guard);
    command
        .arg0(NAME)
        .args([SUBCOMMAND, &theirs.as_raw_fd().to_string(), &handed_on.as_raw_fd().to_string()])
        .arg("--")
        .arg(program)
        .args(args);
    // Where its own libraries are.
    let libraries = "LD_LIBRARY_PATH";
    let own = std::env::var_os(libraries).map(|path| (libraries.into(), path));
    furnish(&mut command, own.into_iter().chain(mark), current_dir);
    leave_to_the_guard(&mut command, theirs, handed_on);
    let child = command.spawn().map_err(|error| match error.kind() {
        // Else it would seem as if the program had not been found.
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => io::Error::new(
            error.kind(),
            format!("the guard {} could not be started: {error}", guard.display()),
        ),
        _ => error,
    })?;
    Ok((child, control))
}

/// An environment as a guard hands it on: in memory, where it is seen in no list of processes.
#[cfg(target_os = "linux")]
fn handed_on(env: impl Iterator<Item = (OsString, OsString)>) -> io::Result<File> {
    let memory = rustix::fs::memfd_create("environment", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(&environment_to_bytes(env))?;
    file.rewind()?;
    Ok(file)
}

/// What a child and a guard have in common.
fn furnish(
    command: &mut Command,
    env: impl Iterator<Item = (OsString, OsString)>,
    current_dir: Option<PathBuf>,
) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_clear().envs(env);
    if let Some(directory) = current_dir {
        command.current_dir(directory);
    }
}

/// Gives the guard its end of the control socket and what it hands on, and a session of its own: a terminal's signals must
/// not reach it, and by the session its orphans are told from the sidecar's own children.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "no library runs anything between fork and exec")]
fn leave_to_the_guard(command: &mut Command, control: UnixStream, handed_on: File) {
    // SAFETY: the closure makes four system calls and allocates nothing, which is all that may be done
    // in the child of a process with several threads.
    unsafe {
        command.pre_exec(move || {
            rustix::io::fcntl_setfd(&control, FdFlags::empty())?;
            rustix::io::fcntl_setfd(&handed_on, FdFlags::empty())?;
            rustix::process::setsid()?;
            restore_descriptor_limit()
        });
    }
}

/// Has the kernel kill the child when the thread that starts it ends.
#[cfg(target_os = "linux")]
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
