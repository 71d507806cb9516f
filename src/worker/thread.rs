//! What a worker does with threads and turns: Codex's requests as calls, its refusals as types.
//!
//! A thread has one owning worker (Codex refuses a second writer), and what a `turn/start` sets
//! holds for the later turns of a loaded thread. [`LoadedThread`] is what must be known to undo it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::app_server::decode;
use crate::app_server::method::{self, Baseline, LoadOptions};
use crate::app_server::peer::{OVERLOADED, RequestError};
use crate::options::ThreadOptions;
use crate::process;
use crate::turn::event::UserInput;
use crate::turn::request::ThreadId;
use crate::worker::{Worker, WorkerId};

/// A thread that a worker holds.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedThread {
    /// The incarnation of the worker that holds it; with any other it is not loaded.
    pub worker: WorkerId,
    load: LoadOptions,
    baseline: Baseline,
    /// Where the baseline holds.
    directory: PathBuf,
    /// Whether its next turn would use an effort other than the baseline's if it sent none.
    effort_is_set: bool,
}

impl LoadedThread {
    /// Whether a turn with these options can run on it as it is loaded.
    pub fn fits(&self, options: &ThreadOptions) -> bool {
        self.load == LoadOptions::of(options)
    }
}

/// Where a turn works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Absolute, existing.
    pub working_directory: PathBuf,
    /// Absolute, existing; writable beside it.
    pub additional_directories: Vec<PathBuf>,
}

/// Why Codex did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ThreadError {
    /// It has no rollout of the thread, or can't read it.
    #[error("{0}")]
    NotFound(String),
    /// Another process writes the thread.
    #[error("{0}")]
    HeldElsewhere(String),
    /// It is in Codex's archive, where a release that was cut short leaves it.
    #[error("{0}")]
    Archived(String),
    /// It is overloaded; try again.
    #[error("{0}")]
    Overloaded(String),
    /// It took the turn as steering of a turn of its own, which was ended.
    #[error("the turn was taken as input of turn {0}, which Codex had begun by itself")]
    Steered(String),
    /// It refuses for another reason.
    #[error("{0}")]
    Refused(String),
    /// The worker died or is stuck. Nothing was asked that could have had an effect, unless
    /// `written` says so.
    #[error("{cause}")]
    Lost {
        /// What happened.
        cause: String,
        /// Whether the worker may have seen the request.
        written: bool,
    },
}

impl From<RequestError> for ThreadError {
    fn from(error: RequestError) -> ThreadError {
        let text = error.to_string();
        match error {
            RequestError::Transport { written, .. } => ThreadError::Lost { cause: text, written },
            RequestError::Timeout { .. } => ThreadError::Lost { cause: text, written: true },
            RequestError::Decode { .. } => ThreadError::Refused(text),
            RequestError::Server { code: OVERLOADED, message, .. } => {
                ThreadError::Overloaded(message)
            }
            // The protocol has no codes for these; the texts are those of the CLI.
            RequestError::Server { message, .. }
                if message.contains("no rollout found")
                    || message.contains("thread not found")
                    || message.contains("failed to load rollout")
                    || message.contains("rollout is empty") =>
            {
                ThreadError::NotFound(message)
            }
            RequestError::Server { message, .. } if message.contains("active writer") => {
                ThreadError::HeldElsewhere(message)
            }
            RequestError::Server { message, .. } if message.contains("is archived") => {
                ThreadError::Archived(message)
            }
            RequestError::Server { .. } => ThreadError::Refused(text),
        }
    }
}

impl ThreadError {
    /// The same of a request that went ahead of `turn/start`: whatever was written, no turn was.
    fn before_the_turn(self) -> ThreadError {
        match self {
            ThreadError::Lost { cause, written: _ } => ThreadError::Lost { cause, written: false },
            other => other,
        }
    }
}

impl Worker {
    /// Starts a new thread.
    ///
    /// # Errors
    /// See [`ThreadError`]. Asking twice leaves at worst an empty thread that was never written.
    pub async fn start_thread(
        &self,
        options: &ThreadOptions,
        workspace: &Workspace,
        ephemeral: bool,
    ) -> Result<(ThreadId, LoadedThread), ThreadError> {
        let load = LoadOptions::of(options);
        let directory = &workspace.working_directory;
        let params = method::thread_start_params(options, &load, directory, ephemeral);
        let opened: method::ThreadOpened = self.request(method::THREAD_START, &params).await?;
        let thread_id = ThreadId::from_codex(opened.thread.id.clone());
        self.note_thread_loaded(&thread_id);
        let mut baseline = self.baseline_of(opened);
        if options.model.is_some() {
            // What was sent along is an override, not a default.
            baseline.model = self.configured_model(directory).await.unwrap_or(baseline.model);
        }
        let (worker, directory) = (self.id().clone(), directory.clone());
        let loaded = LoadedThread { worker, load, baseline, directory, effort_is_set: false };
        Ok((thread_id, loaded))
    }

    /// Loads a thread from its rollout.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub async fn resume_thread(
        &self,
        thread_id: &ThreadId,
        options: &ThreadOptions,
        workspace: &Workspace,
    ) -> Result<LoadedThread, ThreadError> {
        let load = LoadOptions::of(options);
        let directory = &workspace.working_directory;
        let params = method::thread_resume_params(thread_id.as_str(), &load, directory);
        let opened: method::ThreadOpened = self.request(method::THREAD_RESUME, &params).await?;
        self.note_thread_loaded(thread_id);
        // Codex resumes with the model, effort, approval policy and sandbox of the thread's last
        // turn, which may have been another caller's override.
        let baseline = self.baseline(&load, directory).await?;
        let effort_is_set = opened.reasoning_effort != baseline.effort;
        let (worker, directory) = (self.id().clone(), directory.clone());
        Ok(LoadedThread { worker, load, baseline, directory, effort_is_set })
    }

    /// What a new thread in this directory uses where nobody says anything: found out with one that
    /// gets no turn, because it depends on more than the configuration tells (whether the directory
    /// is in a project that the user trusts, for one).
    async fn baseline(
        &self,
        load: &LoadOptions,
        directory: &Path,
    ) -> Result<Baseline, ThreadError> {
        let params = method::thread_probe_params(load, directory);
        let opened: method::ThreadOpened = self.request(method::THREAD_START, &params).await?;
        self.forget_thread(&ThreadId::from_codex(opened.thread.id.clone())).await;
        Ok(self.baseline_of(opened))
    }

    fn baseline_of(&self, opened: method::ThreadOpened) -> Baseline {
        Baseline {
            model: opened.model,
            effort: opened.reasoning_effort,
            approval_policy: opened.approval_policy,
            workspace_write: self.workspace_write(&opened.sandbox),
            sandbox_policy: opened.sandbox,
        }
    }

    /// Makes the worker let go of a thread, so that any worker may resume it. Unsubscribing would
    /// not do: it unloads only after a delay of many minutes.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub async fn release_thread(&self, thread_id: &ThreadId) -> Result<(), ThreadError> {
        let params = json!({ "threadId": thread_id.as_str() });
        let _: method::Ignored = self.request(method::THREAD_ARCHIVE, &params).await?;
        self.note_thread_released(thread_id);
        self.unarchive_thread(thread_id).await
    }

    /// Takes a thread out of Codex's archive.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub async fn unarchive_thread(&self, thread_id: &ThreadId) -> Result<(), ThreadError> {
        let params = json!({ "threadId": thread_id.as_str() });
        let _: method::Ignored = self.request(method::THREAD_UNARCHIVE, &params).await?;
        Ok(())
    }

    /// Lets Codex unload an ephemeral thread, which can be neither archived nor deleted.
    pub async fn forget_thread(&self, thread_id: &ThreadId) {
        let params = json!({ "threadId": thread_id.as_str() });
        match self.request::<method::Ignored>(method::THREAD_UNSUBSCRIBE, &params).await {
            Ok(_) => self.note_thread_released(thread_id),
            Err(error) => tracing::debug!(%thread_id, %error, "a thread could not be unsubscribed"),
        }
    }

    /// Starts a turn on a loaded thread and returns Codex's id of it. The thread should have no running
    /// turn: Codex takes the request as steering then, without an error, which is found out by
    /// `root_turn_id`, a name that no other turn has.
    ///
    /// # Errors
    /// See [`ThreadError`]; the turn can't have begun unless `Lost` says that it was written.
    pub async fn start_turn(
        &self,
        thread_id: &ThreadId,
        thread: &mut LoadedThread,
        (root_turn_id, inputs): (&str, &[UserInput]),
        options: &ThreadOptions,
        workspace: &Workspace,
        output_schema: Option<&Value>,
    ) -> Result<String, ThreadError> {
        // A worker that was killed a moment ago takes what is written to it, and nobody could say
        // any more whether the turn had begun.
        if process::is_dying(self.pid()) {
            let exit = tokio::time::timeout(Duration::from_secs(2), self.exited()).await;
            let cause = exit.map_or_else(|_| "it is ending".to_owned(), |exit| exit.cause.clone());
            return Err(ThreadError::Lost { cause, written: false });
        }
        if thread.directory != workspace.working_directory {
            // Another directory may be trusted otherwise.
            let baseline = self.baseline(&thread.load, &workspace.working_directory).await;
            thread.baseline = baseline.map_err(ThreadError::before_the_turn)?;
            thread.directory.clone_from(&workspace.working_directory);
        }
        let params = method::turn_start_params(
            thread_id.as_str(),
            inputs,
            options,
            &thread.baseline,
            (&workspace.working_directory, &workspace.additional_directories),
            output_schema,
            thread.effort_is_set,
        );
        let params = method::with_root(params, root_turn_id);
        let before = self.expects_turn(thread_id, root_turn_id);
        let started: method::TurnStarted = self.request(method::TURN_START, &params).await?;
        if !self.is_new(&started.turn, root_turn_id, &before) {
            return Err(ThreadError::Steered(started.turn.id));
        }
        thread.effort_is_set = options
            .model_reasoning_effort
            .as_ref()
            .is_some_and(|effort| Some(effort) != thread.baseline.effort.as_ref());
        Ok(started.turn.id)
    }

    /// Adds input to a running turn.
    ///
    /// # Errors
    /// See [`ThreadError`]; `Refused` when Codex's turn has ended or can't be steered.
    pub async fn steer_turn(
        &self,
        thread_id: &ThreadId,
        codex_turn_id: &str,
        inputs: &[UserInput],
    ) -> Result<(), ThreadError> {
        let params = method::turn_steer_params(thread_id.as_str(), codex_turn_id, inputs);
        let _: method::Ignored = self.request(method::TURN_STEER, &params).await?;
        Ok(())
    }

    /// Asks Codex to stop a turn; `turn/completed` tells when it has.
    ///
    /// # Errors
    /// See [`ThreadError`]; `Refused` when the turn has ended by itself.
    pub async fn interrupt_turn(
        &self,
        thread_id: &ThreadId,
        codex_turn_id: &str,
    ) -> Result<(), ThreadError> {
        let params = json!({ "threadId": thread_id.as_str(), "turnId": codex_turn_id });
        let _: method::Ignored = self.request(method::TURN_INTERRUPT, &params).await?;
        Ok(())
    }

    /// Ends the commands of these items that still run, and gives their command lines: neither the
    /// end of a turn nor its interruption ends them.
    pub async fn end_commands(&self, thread_id: &ThreadId, item_ids: &[String]) -> Vec<String> {
        let mut ended = Vec::new();
        let params = json!({ "threadId": thread_id.as_str() });
        let running = match self.request::<method::Terminals>(method::TERMINALS_LIST, &params).await
        {
            Ok(running) => running.data,
            Err(error) => {
                tracing::debug!(%thread_id, %error, "running commands can't be listed");
                return ended;
            }
        };
        for terminal in running.iter().filter(|terminal| item_ids.contains(&terminal.item_id)) {
            let params =
                json!({ "threadId": thread_id.as_str(), "processId": terminal.process_id });
            match self.request::<method::Ignored>(method::TERMINALS_TERMINATE, &params).await {
                Ok(_) => ended.push(terminal.command.clone()),
                Err(error) => {
                    tracing::debug!(%thread_id, %error, "a running command can't be ended");
                }
            }
        }
        ended
    }

    /// Kills what commands of this thread have started since a moment and left running: what has made
    /// itself a daemon, and with CLIs before 0.150, which can't list their commands, the commands
    /// themselves. Gives how many processes that were.
    pub async fn kill_commands(&self, thread_id: &ThreadId, since: process::Moment) -> usize {
        let (pid, thread) = (self.pid(), thread_id.to_string());
        let killing = tokio::task::spawn_blocking(move || {
            process::kill_started_since(pid, "CODEX_THREAD_ID", &thread, since)
        });
        let count = killing.await.unwrap_or_default();
        if count > 0 {
            tracing::info!(%thread_id, count, "killed what a turn left behind");
        }
        count
    }

    /// The answer that says no to a request of Codex.
    pub fn decline(&self, request: &crate::app_server::message::ServerRequest) {
        self.answer(&request.id, decode::decline(&request.method));
    }

    async fn read_config(&self, directory: &Path) -> Option<method::CliConfig> {
        let params = json!({ "includeLayers": false, "cwd": directory });
        let read = self.request::<method::ConfigRead>(method::CONFIG_READ, &params).await;
        read.ok().map(|read| read.config)
    }

    async fn configured_model(&self, directory: &Path) -> Option<String> {
        let read = self.read_config(directory).await;
        read.and_then(|config| config.model).or_else(|| self.defaults().default_model)
    }

    fn workspace_write(&self, sandbox: &Value) -> method::WorkspaceWriteConfig {
        // A thread in this sandbox tells its settings itself, those of a trusted project included.
        let flag = |key: &str| sandbox[key].as_bool().unwrap_or(false);
        if sandbox["type"] == "workspaceWrite" {
            method::WorkspaceWriteConfig {
                writable_roots: sandbox["writableRoots"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
                network_access: flag("networkAccess"),
                exclude_tmpdir_env_var: flag("excludeTmpdirEnvVar"),
                exclude_slash_tmp: flag("excludeSlashTmp"),
            }
        } else {
            self.defaults().config.sandbox_workspace_write.unwrap_or_default()
        }
    }
}
