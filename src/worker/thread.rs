//! What a worker does with threads and turns: Codex's requests as calls, its refusals as types.
//!
//! A thread has one owning worker (Codex refuses a second writer), and what a `turn/start` sets
//! holds for the later turns of a loaded thread. [`LoadedThread`] is what must be known to undo it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app_server::baseline::{Baseline, Lingering, asks_for_access, started_wider};
use crate::app_server::client::{LoadOptions, LoadThread, StartTurn};
use crate::app_server::settings::{Gate, Settings};
use crate::model::event::TurnSettings;
use crate::model::fingerprint::Fingerprint;
use crate::model::id::ThreadId;
use crate::model::options::ThreadOptions;
use crate::model::request::{UserInput, Work};
use crate::model::workspace::Workspace;
use crate::registry::threads::{Left, Loaded};
use crate::worker::{Worker, WorkerId};

pub(crate) use crate::app_server::client::{ListedTurn, Task};
pub(crate) use crate::app_server::thread_error::ThreadError;

/// A thread that a worker holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LoadedThread {
    /// The incarnation of the worker that holds it; with any other it is not loaded.
    pub worker: WorkerId,
    /// Of what it was loaded with, which may be megabytes of instructions.
    load: Fingerprint,
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

impl Loaded for LoadedThread {
    fn worker(&self) -> &WorkerId {
        &self.worker
    }
}

impl LoadedThread {
    /// Whether it is loaded with what these options need; what a turn may do is another matter, see
    /// [`LoadedThread::lingers`].
    pub(crate) fn fits(&self, options: &ThreadOptions) -> bool {
        self.in_force.is_some() && self.load == Fingerprint::of(&LoadOptions::of(options))
    }

    /// In which respect an earlier turn had more than a turn with these options asks for; it must be
    /// loaded anew then. [`Worker::prepare`] comes first.
    pub(crate) fn lingers(&self, options: &ThreadOptions, workspace: &Workspace) -> Option<String> {
        self.granted.lingers_beyond(&self.baseline.settings(options, workspace))
    }

    /// The permission profile of the CLI's configuration that turns with these options use.
    pub(crate) fn profile(&self, options: &ThreadOptions) -> Option<String> {
        self.baseline.profile(options).map(str::to_owned)
    }

    /// What its last turn has left, as far as Codex does not tell it.
    pub(crate) fn left(&self) -> Left {
        let Lingering { summary, service_tier, effort: _ } = self.lingering;
        Left { summary, service_tier }
    }

    /// Takes over what was left when it was loaded before: Codex keeps it with the thread.
    pub(crate) fn take_over(&mut self, Left { summary, service_tier }: Left) {
        self.lingering = Lingering { summary, service_tier, ..self.lingering };
    }

    /// What lets nothing of a turn with these options pass before it is known that no more came into
    /// force.
    pub(crate) fn gate(&self, options: &ThreadOptions, workspace: &Workspace, tells: bool) -> Gate {
        Gate::new(self.baseline.settings(options, workspace), self.in_force.clone(), tells)
    }

    /// What a turn with these options runs with.
    pub(crate) fn turn_settings(
        &self,
        options: &ThreadOptions,
        workspace: &Workspace,
    ) -> TurnSettings {
        self.baseline.turn_settings(options, workspace)
    }

    /// Notes what Codex said last that it uses; `None` when that was not what was asked.
    pub(crate) fn note_in_force(&mut self, settings: Option<Settings>) {
        self.in_force = settings;
    }
}

impl Worker {
    /// Starts a new thread.
    ///
    /// # Errors
    /// See [`ThreadError`]. Asking twice leaves at worst an empty thread that was never written.
    pub(crate) async fn start_thread(
        &self,
        options: &ThreadOptions,
        workspace: &Workspace,
        ephemeral: bool,
    ) -> Result<(ThreadId, LoadedThread), ThreadError> {
        let load = LoadOptions::of(options);
        let directory = &workspace.working_directory;
        self.check_profile(options, &load, directory).await?;
        let config = match Baseline::needs_config(options) {
            true => self.client.config_read(Some(directory)).await.ok(),
            false => None,
        };
        if asks_for_access(options) {
            // Before anything is started for the thread.
            let mut known = Baseline::before_start(config.as_ref());
            self.protect(&mut known, options, workspace).await?;
        }
        let new = LoadThread::new(options, &load, directory, ephemeral);
        let mut once_more = true;
        loop {
            let opened = self.load_thread(&new).await?;
            let thread_id = ThreadId::from_codex(opened.thread_id());
            let granted = opened.settings();
            let mut baseline =
                Baseline::of_started(opened, options, self.defaults(), config.clone());
            if let Err(error) = self.protect(&mut baseline, options, workspace).await {
                self.forget_thread(&thread_id).await;
                return Err(error);
            }
            let asked = baseline.settings(options, workspace);
            let Some(wider) = started_wider(&granted, &asked, options) else {
                // Not before: nobody else knows of it, and it would count as idle.
                self.note_thread_loaded(&thread_id);
                let loaded = LoadedThread {
                    worker: self.id().clone(),
                    load: Fingerprint::of(&load),
                    baseline,
                    directory: directory.clone(),
                    lingering: Lingering::default(),
                    in_force: Some(granted.clone()),
                    granted,
                };
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

    /// Loads a thread from its rollout.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub(crate) async fn resume_thread(
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
        let mut baseline = self.baseline(&load, directory).await?;
        self.protect(&mut baseline, options, workspace).await?;
        let rollout =
            LoadThread::from_rollout(thread_id.as_str(), options, &baseline, &load, directory);
        let mut once_more = true;
        loop {
            let opened = self.load_thread(&rollout).await?;
            if opened.thread_id() != thread_id.as_str() {
                // Codex goes by the id that the rollout itself says.
                let other = ThreadId::from_codex(opened.thread_id());
                self.forget_thread(&other).await;
                let cause = format!("the rollout of thread {thread_id} is that of thread {other}");
                return Err(ThreadError::NotFound(cause));
            }
            self.note_thread_loaded(thread_id);
            let granted = opened.settings();
            let loaded = LoadedThread {
                worker: self.id().clone(),
                load: Fingerprint::of(&load),
                // What the summary is it does not say, nor, some CLIs, the service tier.
                lingering: Lingering {
                    effort: !opened.has_effort_of(&baseline),
                    summary: true,
                    service_tier: baseline.tells_no_service_tier(),
                },
                baseline: baseline.clone(),
                directory: directory.clone(),
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
        if load.may_bring_profiles() {
            return Ok(());
        }
        let profiles = self.client.profile_list(directory).await?;
        match profiles.iter().find(|profile| profile.id == *name) {
            Some(profile) if profile.allowed => Ok(()),
            Some(_) => {
                Err(ThreadError::UnknownProfile(format!("{name:?} is not allowed on this machine")))
            }
            None => {
                let known: Vec<&str> = profiles.iter().map(|profile| profile.id.as_str()).collect();
                Err(ThreadError::UnknownProfile(format!(
                    "{name:?} is no permission profile of the CLI's configuration; it has {}",
                    known.join(", ")
                )))
            }
        }
    }

    /// Makes sure that what a turn with these options needs to know of the defaults is known, and that
    /// there is the permission profile that it asks for. The thread is loaded with what the options say.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub(crate) async fn prepare(
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
            self.check_profile(options, &LoadOptions::of(options), directory).await?;
        }
        self.know_baseline(thread, options, directory).await?;
        self.protect(&mut thread.baseline, options, workspace).await
    }

    async fn know_baseline(
        &self,
        thread: &mut LoadedThread,
        options: &ThreadOptions,
        directory: &Path,
    ) -> Result<(), ThreadError> {
        // Another directory may be trusted otherwise.
        if thread.directory != *directory || !thread.baseline.covers(options) {
            thread.baseline = self.baseline(&LoadOptions::of(options), directory).await?;
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
        let configured = self.mcp_config(directory).await.unwrap_or_else(|error| {
            tracing::debug!(worker = %self.id, %error, "the configured MCP servers are not known");
            Default::default()
        });
        let probe = LoadThread::probe(load, directory, &configured);
        let opened = self.client.load_thread(&probe).await?;
        self.forget_thread(&ThreadId::from_codex(opened.thread_id())).await;
        Ok(Baseline::of(opened, self.defaults()))
    }

    /// Makes the worker let go of a thread and of those of its sub-agents, so that any worker may resume
    /// it. Takes Codex some 10 ms. Unsubscribing would not do: it unloads after a delay, and the thread
    /// alone.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub(crate) async fn release_thread(&self, thread_id: &ThreadId) -> Result<(), ThreadError> {
        self.client.thread_archive(thread_id.as_str()).await?;
        self.note_thread_released(thread_id);
        self.unarchive_thread(thread_id).await
    }

    /// Lets go of a thread that nobody uses. A worker that does not answer keeps it.
    pub(crate) async fn unload_thread(&self, thread_id: &ThreadId) {
        match self.release_thread(thread_id).await {
            Ok(()) | Err(ThreadError::Lost { .. }) => {}
            // One without a rollout can't be archived.
            Err(_) => self.forget_thread(thread_id).await,
        }
    }

    /// The turns that Codex has of a thread, the newest first and at most so many, and whether
    /// there are more. `None` where it does not say, as CLIs before 0.130. Takes Codex 1 ms, and 50 µs
    /// for each turn.
    pub(crate) async fn turns_of(
        &self,
        thread_id: &ThreadId,
        at_most: usize,
    ) -> Option<(Vec<ListedTurn>, bool)> {
        const WITHIN: Duration = Duration::from_secs(5);
        let client = self.client.within(WITHIN);
        let listed = client.thread_turns(thread_id.as_str(), at_most).await;
        listed
            .inspect_err(|error| tracing::debug!(%thread_id, %error, "its turns are not known"))
            .ok()
    }

    /// Takes a thread out of Codex's archive.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub(crate) async fn unarchive_thread(&self, thread_id: &ThreadId) -> Result<(), ThreadError> {
        Ok(self.client.thread_unarchive(thread_id.as_str()).await?)
    }

    /// Lets Codex unload an ephemeral thread, which can be neither archived nor deleted.
    pub(crate) async fn forget_thread(&self, thread_id: &ThreadId) {
        match self.client.thread_unsubscribe(thread_id.as_str()).await {
            Ok(()) => self.note_thread_released(thread_id),
            Err(error) => tracing::debug!(%thread_id, %error, "a thread could not be unsubscribed"),
        }
    }

    /// Starts a turn on a loaded thread and returns Codex's id of it. The thread should have no running
    /// turn: Codex takes the request as steering then, without an error, which is found out by
    /// `root_turn_id`, a name that no other turn has.
    ///
    /// # Errors
    /// See [`ThreadError`]; the turn can't have begun unless `Lost` says that it was written.
    pub(crate) async fn start_turn(
        &self,
        thread_id: &ThreadId,
        thread: &mut LoadedThread,
        task: Task<'_>,
        options: &ThreadOptions,
        workspace: &Workspace,
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
        let turn = StartTurn {
            thread_id: thread_id.as_str(),
            task,
            options,
            baseline: &thread.baseline,
            workspace,
            lingering: thread.lingering,
        };
        // Before it is known whether Codex takes it.
        thread.granted = turn.settings();
        let lingering = Lingering::after(options, turn.baseline);
        let before = self.expects_turn(thread_id, task.root_turn_id);
        let codex_turn_id = match task.work {
            Work::Inputs => {
                let started = self.client.turn_start(&turn).await?;
                if !self.is_new(&started, task.root_turn_id, &before) {
                    return Err(ThreadError::Steered(started.id));
                }
                started.id
            }
            // These go by the settings of the thread, and take none with them.
            Work::Review(target) => {
                self.set(&turn).await?;
                thread.lingering = lingering;
                self.client.review_start(turn.thread_id, target).await?.id
            }
            Work::Compact => {
                self.set(&turn).await?;
                thread.lingering = lingering;
                self.client.compact_start(turn.thread_id).await?;
                self.begun_since(&before, thread_id).await?
            }
        };
        thread.lingering = lingering;
        Ok(codex_turn_id)
    }

    /// Sets the thread's settings to those of a turn that is not told them itself.
    async fn set(&self, turn: &StartTurn<'_>) -> Result<(), ThreadError> {
        if !self.defaults().tells_settings {
            return Err(ThreadError::Refused(format!(
                "the Codex CLI {} can't be given the settings of a review or a compaction; 0.150 and \
                 newer ones can",
                self.cli_version()
            )));
        }
        let set = self.client.thread_settings_update(turn).await;
        set.map_err(|error| ThreadError::from(error).before_the_turn())
    }

    /// Looks whether Codex can give these inputs to the model. It drops a skill that it does not know
    /// without a word, and where it is old, texts from outside.
    ///
    /// # Errors
    /// [`ThreadError::UnknownSkill`]; see [`ThreadError`].
    pub(crate) async fn check_inputs(
        &self,
        inputs: &[UserInput],
        workspace: &Workspace,
    ) -> Result<(), ThreadError> {
        self.check_external(inputs)?;
        if !inputs.iter().any(|input| matches!(input, UserInput::Skill { .. })) {
            return Ok(());
        }
        let directory = &workspace.working_directory;
        let known = self.client.skills(directory).await?;
        for (at, input) in inputs.iter().enumerate() {
            let UserInput::Skill { path, .. } = input else { continue };
            if !known.contains(path) {
                let directory = directory.display();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let cause =
                    format!("{path} is no skill that Codex knows in {directory}; it knows {known}");
                return Err(ThreadError::UnknownSkill { at, cause });
            }
        }
        Ok(())
    }

    fn check_external(&self, inputs: &[UserInput]) -> Result<(), ThreadError> {
        let has_any = inputs.iter().any(|input| matches!(input, UserInput::External { .. }));
        if has_any && !self.defaults().tells_settings {
            return Err(ThreadError::Refused(format!(
                "the Codex CLI {} can't tell external messages from what the user says; 0.150 and \
                 newer ones can",
                self.cli_version()
            )));
        }
        Ok(())
    }

    /// Adds input to a running turn.
    ///
    /// # Errors
    /// See [`ThreadError`]; `Refused` when Codex's turn has ended or can't be steered.
    pub(crate) async fn steer_turn(
        &self,
        thread_id: &ThreadId,
        codex_turn_id: &str,
        inputs: &[UserInput],
    ) -> Result<(), ThreadError> {
        self.check_external(inputs)?;
        Ok(self.client.turn_steer(thread_id.as_str(), codex_turn_id, inputs).await?)
    }

    /// Asks Codex to stop a turn; `turn/completed` tells when it has.
    ///
    /// # Errors
    /// See [`ThreadError`]; `Refused` when the turn has ended by itself.
    pub(crate) async fn interrupt_turn(
        &self,
        thread_id: &ThreadId,
        codex_turn_id: &str,
    ) -> Result<(), ThreadError> {
        Ok(self.client.turn_interrupt(thread_id.as_str(), codex_turn_id).await?)
    }

    /// Ends the commands of these items that still run, and gives their command lines: neither the
    /// end of a turn nor its interruption ends them.
    pub(crate) async fn end_commands(
        &self,
        thread_id: &ThreadId,
        item_ids: &[String],
    ) -> Vec<String> {
        let mut ended = Vec::new();
        let thread = thread_id.as_str();
        let running = match self.client.terminals_list(thread).await {
            Ok(running) => running,
            Err(error) => {
                tracing::debug!(%thread_id, %error, "running commands can't be listed");
                return ended;
            }
        };
        for terminal in running.iter().filter(|terminal| item_ids.contains(&terminal.item_id)) {
            match self.client.terminals_terminate(thread, terminal).await {
                Ok(()) => ended.push(terminal.command.clone()),
                Err(error) => {
                    tracing::debug!(%thread_id, %error, "a running command can't be ended");
                }
            }
        }
        ended
    }
}
