//! The other side as a child process: how it is spawned, how it ends, and what the operating system
//! tells of it.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use secrecy::SecretString;

use crate::app_server::command_environment;
use crate::model::id::ThreadId;
use crate::process::{self, Pipes, Process, ProcessSpec};
use crate::worker::conversation::{Conversation, Ending, Launch};
use crate::worker::{SpawnError, Worker};

/// How to spawn a native CLI as an app-server.
#[derive(Clone)]
pub(crate) struct Child {
    /// Finds the native CLI; asked anew for every start, so that a CLI that is installed later is
    /// found then. The error says what was looked for, where, and what to do.
    pub locate: Arc<dyn Fn() -> Result<PathBuf, String> + Send + Sync>,
    /// The binary that guards it, so that nothing of what it starts outlives it; see
    /// [`ProcessSpec::guard`].
    pub guard: Option<PathBuf>,
    /// A variable by which its guard and all that it starts are known.
    pub mark: Option<(OsString, OsString)>,
    /// What it is started with; asked anew for every start.
    pub outfit: Arc<dyn Fn() -> Outfit + Send + Sync>,
    /// Told the id of each that was spawned, before anything is said to it: to put it in its place.
    pub spawned: Option<Arc<dyn Fn(u32) + Send + Sync>>,
}

/// What a worker is started with, as its configuration says at that moment.
pub(crate) struct Outfit {
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Values for `-c`, which win over all others.
    pub config_overrides: Vec<String>,
    /// The key of its provider, where it does not have it of its environment or a login.
    pub api_key: Option<SecretString>,
    /// The variables that its commands never see, by name or pattern.
    pub excluded: Vec<String>,
}

impl Launch for Child {
    fn launch<'a>(
        &'a self,
        config_overrides: &'a [String],
    ) -> BoxFuture<'a, Result<Conversation, SpawnError>> {
        self.spawn(config_overrides).boxed()
    }
}

impl Child {
    async fn spawn(&self, config_overrides: &[String]) -> Result<Conversation, SpawnError> {
        let mut args: Vec<OsString> = vec!["app-server".into()];
        let Outfit { env, config_overrides: own, api_key, excluded } = (self.outfit)();
        // Wins over all others.
        let exclude = command_environment::exclude(&excluded);
        for value in config_overrides.iter().chain(&own).chain([&exclude]) {
            args.extend(["-c".into(), value.into()]);
        }
        let program = (self.locate)().map_err(SpawnError::NotFound)?;
        let spec = ProcessSpec {
            program: program.clone(),
            args,
            env,
            mark: self.mark.clone(),
            current_dir: None,
            guard: self.guard.clone(),
        };
        let (process, Pipes { stdin, stdout, stderr }) =
            Process::spawn(spec).await.map_err(|error| SpawnError::Os {
                program: program.clone(),
                out_of_resources: is_out_of_resources(&error),
                cause: error.to_string(),
            })?;
        if let Some(spawned) = &self.spawned {
            spawned(process.pid());
        }
        Ok(Conversation {
            program,
            pid: Some(process.pid()),
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            stderr: Box::new(stderr),
            api_key,
            ending: Box::new(process),
            excluded,
        })
    }
}

impl Ending for Process {
    fn exited(&mut self) -> BoxFuture<'_, io::Result<String>> {
        Process::exited(self).map(|status| status.map(process::describe)).boxed()
    }

    fn kill(&mut self) {
        Process::kill(self);
    }

    fn gone(&mut self) -> BoxFuture<'_, ()> {
        self.wait().map(drop).boxed()
    }
}

impl Worker {
    /// Its resident memory, in bytes; `None` once it is gone.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        process::resident_bytes(self.pid?)
    }

    /// Whether it has been killed or is about to end, although that is not told yet.
    pub(super) fn is_dying(&self) -> bool {
        self.pid.is_some_and(process::is_dying)
    }

    /// Waits while a child of the worker dies: Codex may not know yet that one of its servers has ended.
    pub(super) async fn funerals(&self) {
        const AGAIN: Duration = Duration::from_millis(5);
        const WITHIN: Duration = Duration::from_millis(300);
        let waiting = async {
            while self.pid.is_some_and(process::has_dying_children) {
                tokio::time::sleep(AGAIN).await;
            }
        };
        // A child that nobody ever takes the status of is not waited for.
        let _ = tokio::time::timeout(WITHIN, waiting).await;
    }

    /// Kills what commands of this thread have started since a moment and left running: what has made
    /// itself a daemon, and with CLIs before 0.150, which can't list their commands, the commands
    /// themselves. Gives how many processes that were.
    pub(crate) async fn kill_commands(
        &self,
        thread_id: &ThreadId,
        since: process::Moment,
    ) -> usize {
        let Some(pid) = self.pid else { return 0 };
        let thread = thread_id.to_string();
        let killing = tokio::task::spawn_blocking(move || {
            process::kill_started_since(pid, "CODEX_THREAD_ID", &thread, since)
        });
        let count = killing.await.unwrap_or_default();
        if count > 0 {
            tracing::info!(%thread_id, count, "killed what a turn left behind");
        }
        count
    }
}

/// Whether the machine is out of processes, memory or file descriptors.
pub(crate) fn is_out_of_resources(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    exhausted.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
