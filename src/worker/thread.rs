//! What a worker does with threads and turns: Codex's requests as calls, its refusals as types.
//!
//! A thread has one owning worker (Codex refuses a second writer), and what a `turn/start` sets
//! holds for the later turns of a loaded thread. [`LoadedThread`] is what must be known to undo it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::app_server::decode;
use crate::app_server::method::{self, Baseline, BaselineAccess, Lingering, LoadOptions};
use crate::app_server::peer::{OVERLOADED, RequestError};
use crate::app_server::refusal_text::{self, Meaning};
use crate::app_server::settings::{Gate, Settings};
use crate::model::id::ThreadId;
use crate::model::options::{SandboxMode, ThreadOptions};
use crate::model::request::UserInput;
use crate::worker::mcp::McpHealth;
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
    /// What its next turn would use of an earlier one's if it did not say.
    lingering: Lingering,
    /// The most that it was given since it was loaded. Codex keeps some of it (MCP servers go on with
    /// it) also for turns that ask for less.
    granted: Settings,
    /// What Codex said last that it uses; not known when that was not what was asked.
    in_force: Option<Settings>,
}

impl LoadedThread {
    /// Starts the thread's MCP servers again that have ended, before a turn in this directory.
    pub async fn mend_mcp_servers(
        &self,
        worker: &Worker,
        thread_id: &ThreadId,
        directory: &Path,
    ) -> McpHealth {
        worker.mend_mcp_servers(thread_id, directory, &self.load.config).await
    }

    /// Whether it is loaded with what these options need; what a turn may do is another matter, see
    /// [`LoadedThread::lingers`].
    pub fn fits(&self, options: &ThreadOptions) -> bool {
        self.load == LoadOptions::of(options) && self.in_force.is_some()
    }

    /// In which respect an earlier turn had more than a turn with these options asks for; it must be
    /// loaded anew then. [`Worker::prepare`] comes first.
    pub fn lingers(&self, options: &ThreadOptions, workspace: &Workspace) -> Option<String> {
        self.granted.lingers_beyond(&self.asked(options, workspace))
    }

    /// The permission profile of the CLI's configuration that turns with these options use.
    pub fn profile(&self, options: &ThreadOptions) -> Option<String> {
        self.baseline.profile(options).map(str::to_owned)
    }

    /// Takes over from what was loaded before what its turns have set: Codex keeps it with the thread.
    pub fn succeed(&mut self, before: &LoadedThread) {
        self.lingering.summary = before.lingering.summary;
    }

    /// What lets nothing of a turn with these options pass before it is known that no more came into
    /// force.
    pub fn gate(&self, options: &ThreadOptions, workspace: &Workspace, tells: bool) -> Gate {
        Gate::new(self.asked(options, workspace), self.in_force.clone(), tells)
    }

    /// Notes what Codex said last that it uses; `None` when that was not what was asked.
    pub fn note_in_force(&mut self, settings: Option<Settings>) {
        self.in_force = settings;
    }

    fn asked(&self, options: &ThreadOptions, workspace: &Workspace) -> Settings {
        let params = method::rights_params(options, &self.baseline, workspace.paths());
        Settings::asked(&Value::Object(params))
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

impl Workspace {
    fn paths(&self) -> (&Path, &[PathBuf]) {
        (&self.working_directory, &self.additional_directories)
    }
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
    /// A `config.toml` can't be read, the user's or one of a project.
    #[error("{0}")]
    BadConfig(String),
    /// It took the turn as steering of a turn of its own, which was ended.
    #[error("the turn was taken as input of turn {0}, which Codex had begun by itself")]
    Steered(String),
    /// It refuses for another reason.
    #[error("{0}")]
    Refused(String),
    /// It has no permission profile of the name that was asked for, or may not use it.
    #[error("{0}")]
    UnknownProfile(String),
    /// It gives the thread more rights than were asked for, also when it loads it again.
    #[error("{0}")]
    NotApplied(String),
    /// It answered, but not so that it can be read: what it did can't be known.
    #[error("{0}")]
    Unreadable(String),
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
            RequestError::Decode { .. } | RequestError::TooLong { .. } => {
                ThreadError::Unreadable(text)
            }
            RequestError::Server { code: OVERLOADED, message, .. } => {
                ThreadError::Overloaded(message)
            }
            // The protocol has no codes for these.
            RequestError::Server { message, .. } => match refusal_text::meaning(&message) {
                Meaning::ThreadNotFound => ThreadError::NotFound(message),
                Meaning::HeldElsewhere => ThreadError::HeldElsewhere(message),
                Meaning::Archived => ThreadError::Archived(message),
                Meaning::BadConfig => ThreadError::BadConfig(message),
                Meaning::Other => ThreadError::Refused(text),
            },
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
        self.check_profile(options, &load, directory).await?;
        let params = method::thread_start_params(options, &load, directory, ephemeral);
        let mut once_more = true;
        loop {
            let opened = self
                .load_thread(method::THREAD_START, params.clone(), directory, &load.config)
                .await?;
            let thread_id = ThreadId::from_codex(opened.thread.id.clone());
            self.note_thread_loaded(&thread_id);
            let granted = opened.settings();
            let baseline = self.started_baseline(opened, options, directory).await;
            let loaded = LoadedThread {
                worker: self.id().clone(),
                load: load.clone(),
                baseline,
                directory: directory.clone(),
                lingering: Lingering::default(),
                in_force: Some(granted.clone()),
                granted,
            };
            let Some(wider) = started_wider(&loaded, options, workspace) else {
                return Ok((thread_id, loaded));
            };
            self.forget_thread(&thread_id).await;
            if !once_more {
                return Err(ThreadError::NotApplied(wider));
            }
            tracing::warn!(worker = %self.id(), wider, "a thread was started with more rights than were asked for");
            once_more = false;
        }
    }

    /// What is known of the defaults by the answer to a `thread/start`: all but what was sent along,
    /// which is an override.
    async fn started_baseline(
        &self,
        opened: method::ThreadOpened,
        options: &ThreadOptions,
        directory: &Path,
    ) -> Baseline {
        let mut baseline = self.baseline_of(opened);
        let asks_for_access = method::asks_for_access(options);
        let needs_workspace_write = options.sandbox_mode == Some(SandboxMode::WorkspaceWrite);
        let config = match options.model.is_some() || needs_workspace_write {
            true => self.read_config(directory).await,
            false => None,
        };
        if options.model.is_some() {
            let configured = config.as_ref().and_then(|config| config.model.clone());
            let default = || self.defaults().default_model;
            baseline.model = configured.or_else(default).unwrap_or(baseline.model);
        }
        if options.approval_policy.is_some() {
            baseline.approval_policy = None;
        }
        if asks_for_access {
            baseline.access = None;
            baseline.workspace_write = needs_workspace_write
                .then(|| config.and_then(|config| config.sandbox_workspace_write))
                .map(Option::unwrap_or_default);
        }
        baseline
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
        self.check_profile(options, &load, directory).await?;
        // Codex resumes with the model, effort, summary, approval policy and sandbox of the thread's
        // last turn, which may have been another caller's override.
        let baseline = self.baseline(&load, directory).await?;
        let policy = baseline.approval_policy(options);
        let params = method::thread_resume_params(thread_id.as_str(), &load, directory, &policy);
        let mut once_more = true;
        loop {
            let opened = self
                .load_thread(method::THREAD_RESUME, params.clone(), directory, &load.config)
                .await?;
            if opened.thread.id != thread_id.as_str() {
                // Codex goes by the id that the rollout itself says.
                let other = ThreadId::from_codex(opened.thread.id);
                self.forget_thread(&other).await;
                let cause = format!("the rollout of thread {thread_id} is that of thread {other}");
                return Err(ThreadError::NotFound(cause));
            }
            self.note_thread_loaded(thread_id);
            let granted = opened.settings();
            // What the summary is it does not say.
            let effort = opened.reasoning_effort != baseline.effort;
            let loaded = LoadedThread {
                worker: self.id().clone(),
                load: load.clone(),
                baseline: baseline.clone(),
                directory: directory.clone(),
                lingering: Lingering { effort, summary: true },
                in_force: Some(granted.clone()),
                granted,
            };
            let Some(wider) = loaded.lingers(options, workspace) else { return Ok(loaded) };
            self.release_thread(thread_id).await?;
            if !once_more {
                return Err(ThreadError::NotApplied(wider));
            }
            tracing::warn!(worker = %self.id(), %thread_id, wider, "a thread was loaded with more rights than were asked for");
            once_more = false;
        }
    }

    /// Looks whether the permission profile that a turn asks for can be had.
    async fn check_profile(
        &self,
        options: &ThreadOptions,
        load: &LoadOptions,
        directory: &Path,
    ) -> Result<(), ThreadError> {
        let Some(name) = &options.permission_profile else { return Ok(()) };
        if !self.defaults().tells_settings {
            let version = self.cli_version();
            return Err(ThreadError::Refused(format!(
                "the Codex CLI {version} can't be given a permission profile by its name"
            )));
        }
        if load.config.keys().any(|key| key.split('.').next() == Some("permissions")) {
            // It may be one of those, which only the thread will have.
            return Ok(());
        }
        let params = json!({ "cwd": directory });
        let profiles: method::Profiles = self.request(method::PROFILE_LIST, &params).await?;
        match profiles.data.iter().find(|profile| profile.id == *name) {
            Some(profile) if profile.allowed => Ok(()),
            Some(_) => {
                Err(ThreadError::UnknownProfile(format!("{name:?} is not allowed on this machine")))
            }
            None => {
                let known: Vec<&str> =
                    profiles.data.iter().map(|profile| profile.id.as_str()).collect();
                Err(ThreadError::UnknownProfile(format!(
                    "{name:?} is no permission profile of the CLI's configuration; it has {}",
                    known.join(", ")
                )))
            }
        }
    }

    /// Makes sure that what a turn with these options needs to know of the defaults is known, and that
    /// there is the permission profile that it asks for.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub async fn prepare(
        &self,
        thread: &mut LoadedThread,
        options: &ThreadOptions,
        workspace: &Workspace,
    ) -> Result<(), ThreadError> {
        let directory = &workspace.working_directory;
        let is_known = options
            .permission_profile
            .as_ref()
            .is_none_or(|name| thread.directory == *directory && thread.granted.is_profile(name));
        if !is_known {
            self.check_profile(options, &thread.load, directory).await?;
        }
        self.know_baseline(thread, options, directory).await
    }

    async fn know_baseline(
        &self,
        thread: &mut LoadedThread,
        options: &ThreadOptions,
        directory: &Path,
    ) -> Result<(), ThreadError> {
        // Another directory may be trusted otherwise.
        if thread.directory != *directory || !thread.baseline.covers(options) {
            thread.baseline = self.baseline(&thread.load, directory).await?;
            thread.directory = directory.to_owned();
        }
        Ok(())
    }

    /// What a new thread in this directory uses where nobody says anything: found out with one that
    /// gets no turn, because it depends on more than the configuration tells (whether the directory
    /// is in a project that the user trusts, for one).
    async fn baseline(
        &self,
        load: &LoadOptions,
        directory: &Path,
    ) -> Result<Baseline, ThreadError> {
        let config = self.without_mcp_servers(&load.config, directory).await;
        let params = method::thread_probe_params(config, directory);
        let opened: method::ThreadOpened = self.request(method::THREAD_START, &params).await?;
        self.forget_thread(&ThreadId::from_codex(opened.thread.id.clone())).await;
        Ok(self.baseline_of(opened))
    }

    fn baseline_of(&self, opened: method::ThreadOpened) -> Baseline {
        let defaults = self.defaults();
        // An older CLI can't be given a profile by its name.
        let profile = opened.custom_profile().filter(|_| defaults.tells_settings);
        let profile = profile.map(str::to_owned);
        Baseline {
            model: opened.model,
            effort: opened.reasoning_effort,
            reasoning_summary: defaults.config.model_reasoning_summary,
            approval_policy: Some(opened.approval_policy),
            approvals_reviewer: opened.approvals_reviewer,
            service_tier: opened.service_tier,
            workspace_write: Some(self.workspace_write(&opened.sandbox)),
            access: Some(BaselineAccess { sandbox_policy: opened.sandbox, profile }),
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
        if self.is_dying() {
            let exit = tokio::time::timeout(Duration::from_secs(2), self.exited()).await;
            let cause = exit.map_or_else(|_| "it is ending".to_owned(), |exit| exit.cause.clone());
            return Err(ThreadError::Lost { cause, written: false });
        }
        let baseline = self.know_baseline(thread, options, &workspace.working_directory).await;
        baseline.map_err(ThreadError::before_the_turn)?;
        let params = method::turn_start_params(
            thread_id.as_str(),
            inputs,
            options,
            &thread.baseline,
            workspace.paths(),
            output_schema,
            thread.lingering,
        );
        // Before it is known whether Codex takes it.
        thread.granted = Settings::asked(&params);
        let params = method::with_root(params, root_turn_id);
        let before = self.expects_turn(thread_id, root_turn_id);
        let started: method::TurnStarted = self.request(method::TURN_START, &params).await?;
        if !self.is_new(&started.turn, root_turn_id, &before) {
            return Err(ThreadError::Steered(started.turn.id));
        }
        thread.lingering.effort = options
            .model_reasoning_effort
            .as_ref()
            .is_some_and(|effort| Some(effort) != thread.baseline.effort.as_ref());
        thread.lingering.summary = options.summary().is_some_and(|summary| {
            Some(summary.as_str()) != thread.baseline.reasoning_summary.as_deref()
        });
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

    /// The answer that says no to a request of Codex.
    pub fn decline(&self, request: &crate::app_server::message::ServerRequest) {
        self.answer(&request.id, decode::decline(&request.method));
    }

    async fn read_config(&self, directory: &Path) -> Option<method::CliConfig> {
        let params = json!({ "includeLayers": false, "cwd": directory });
        let read = self.request::<method::ConfigRead>(method::CONFIG_READ, &params).await;
        read.ok().map(|read| read.config)
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

/// In which respect a thread that was just started has more rights than the turn asks for that it was
/// started for. Nothing is known of what was not sent along: there its answer is what is asked for.
fn started_wider(
    loaded: &LoadedThread,
    options: &ThreadOptions,
    workspace: &Workspace,
) -> Option<String> {
    let asked = loaded.asked(options, workspace);
    let approvals = options
        .approval_policy
        .is_some()
        .then(|| loaded.granted.asks_otherwise_than(&asked))
        .flatten();
    let access =
        || method::asks_for_access(options).then(|| loaded.granted.loads_beyond(&asked)).flatten();
    approvals.or_else(access)
}
