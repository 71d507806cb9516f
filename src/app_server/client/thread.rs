//! Threads: started, resumed, let go of; what they are loaded with; their goals and commands.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::app_server::baseline::{Baseline, approval_policy, approvals_reviewer, asks_for_access};
use crate::app_server::client::Client;
use crate::app_server::command_environment;
use crate::app_server::decode::CodexThread;
use crate::app_server::mcp;
use crate::app_server::peer::RequestError;
use crate::app_server::settings::{self, Settings};
use crate::model::options::{
    DynamicTool, Environment, REASONING_SUMMARY_KEY, ThreadOptions, WEB_SEARCH_KEY, WebSearchMode,
};

/// What a thread is loaded with, and can't be changed by `turn/start`: a turn with another value
/// of it needs the thread to be released and resumed.
#[derive(Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadOptions {
    /// `config` and the web search mode, as CLI overrides.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub(in crate::app_server) config: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::app_server) base_instructions: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::app_server) developer_instructions: Option<String>,
}

impl LoadOptions {
    /// The part of the options that holds from loading on.
    pub fn of(options: &ThreadOptions) -> LoadOptions {
        let mut config = options.config.clone().unwrap_or_default();
        if let Some(mode) = options.web_search() {
            config.insert(WEB_SEARCH_KEY.to_owned(), json!(web_search(mode)));
        }
        // `turn/start` has a field for it; loaded with the thread it would stay for later turns.
        config.remove(REASONING_SUMMARY_KEY);
        // One by one: a table would take the place of what the worker is started with, which keeps
        // keys from commands.
        for (name, value) in options.environment.iter().flat_map(|Environment(set)| set) {
            config.insert(format!("shell_environment_policy.set.{name}"), json!(value));
        }
        LoadOptions {
            config,
            base_instructions: options.base_instructions.clone(),
            developer_instructions: options.developer_instructions.clone(),
        }
    }

    /// Whether there may be permission profiles among the overrides, which only the thread will have.
    pub fn may_bring_profiles(&self) -> bool {
        self.config.keys().any(|key| key.split('.').next() == Some("permissions"))
    }
}

impl fmt::Debug for LoadOptions {
    /// Keys alone: their values, as the instructions, may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoadOptions { config, base_instructions: _, developer_instructions: _ } = self;
        f.debug_set().entries(config.keys()).finish()
    }
}

/// A thread to be loaded: a new one, or one from its rollout.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadThread {
    #[serde(skip)]
    method: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_id: Option<String>,
    #[serde(flatten)]
    copied: Option<Copied>,
    cwd: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval_policy: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approvals_reviewer: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    ephemeral: bool,
    #[serde(skip_serializing_if = "is_false")]
    exclude_turns: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    thread_source: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dynamic_tools: Vec<Tool>,
    #[serde(flatten)]
    load: LoadOptions,
}

/// What a new thread is a copy of.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    thread_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_turn_id: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Tool {
    Function { name: String, description: String, input_schema: Value },
}

fn is_false(flag: &bool) -> bool {
    !*flag
}

impl LoadThread {
    /// A new thread.
    ///
    /// The approval policy and the reviewer go along, and where a sandbox or a profile is asked for the read-only
    /// sandbox: MCP servers are started with them, and would else let a tool run that only the
    /// configuration's own rights allow. What is more than read-only is left to `turn/start`: a
    /// `thread/start` with a working directory and the workspace-write or no sandbox (by its name or by
    /// that of a profile) would mark the directory as trusted in `config.toml`, and from then on a
    /// hostile repository's own `.codex/config.toml` would be loaded. The model goes along, because
    /// Codex chooses the base instructions by it.
    pub fn new(
        options: &ThreadOptions,
        load: &LoadOptions,
        working_directory: &Path,
        ephemeral: bool,
    ) -> LoadThread {
        let tools = options.dynamic_tools.iter().flatten();
        LoadThread {
            model: options.model.clone(),
            approval_policy: options.approval_policy.map(approval_policy),
            approvals_reviewer: options.approvals_reviewer.map(approvals_reviewer),
            sandbox: asks_for_access(options).then_some("read-only"),
            ephemeral,
            thread_source: options.thread_source.clone(),
            dynamic_tools: tools.cloned().map(Tool::from).collect(),
            ..LoadThread::bare("thread/start", working_directory, load)
        }
    }

    /// A thread that only tells what one with these options would use, and has no MCP servers of those
    /// that are `configured`: it gets no turn, so nothing is started for it and nothing is kept of it.
    pub fn probe(
        load: &LoadOptions,
        working_directory: &Path,
        configured: &mcp::ConfigRead,
    ) -> LoadThread {
        let load = LoadThread::without_company(&load.config, configured);
        LoadThread { ephemeral: true, ..LoadThread::bare("thread/start", working_directory, &load) }
    }

    /// A copy of a thread, up to a turn and with it where one is named. It is not to have a turn before it
    /// is loaded again, so nothing is started for it, as for [`LoadThread::probe`]. It keeps what belongs
    /// to the thread: its instructions and lent functions.
    pub fn copy(
        thread_id: &str,
        last_turn_id: Option<&str>,
        working_directory: &Path,
        configured: &mcp::ConfigRead,
    ) -> LoadThread {
        let load = LoadThread::without_company(&Map::new(), configured);
        let last_turn_id = last_turn_id.map(str::to_owned);
        LoadThread {
            copied: Some(Copied { thread_id: thread_id.to_owned(), last_turn_id }),
            // Not what the thread's last turn had.
            sandbox: Some("read-only"),
            exclude_turns: true,
            ..LoadThread::bare("thread/fork", working_directory, &load)
        }
    }

    /// A thread from its rollout that is not to have a turn before it is loaded again: nothing is started
    /// for it.
    pub fn without_turns(
        thread_id: &str,
        working_directory: &Path,
        configured: &mcp::ConfigRead,
    ) -> LoadThread {
        let load = LoadThread::without_company(&Map::new(), configured);
        LoadThread {
            thread_id: Some(thread_id.to_owned()),
            sandbox: Some("read-only"),
            exclude_turns: true,
            ..LoadThread::bare("thread/resume", working_directory, &load)
        }
    }

    /// These overrides, without MCP servers and login shells.
    fn without_company(
        overrides: &Map<String, Value>,
        configured: &mcp::ConfigRead,
    ) -> LoadOptions {
        let mut config = mcp::without_servers(overrides, configured.names());
        config.insert("features.shell_snapshot".to_owned(), json!(false));
        LoadOptions { config, ..LoadOptions::default() }
    }

    /// A thread from its rollout, for turns that by default use this.
    ///
    /// Without an approval policy, a reviewer and a sandbox Codex would take those of the thread's last turn, and
    /// start the MCP servers with them: the first turn would race with what its own `turn/start` changes.
    /// So it is loaded with the least, and the turn adds to that.
    pub fn from_rollout(
        thread_id: &str,
        options: &ThreadOptions,
        baseline: &Baseline,
        load: &LoadOptions,
        working_directory: &Path,
    ) -> LoadThread {
        LoadThread {
            thread_id: Some(thread_id.to_owned()),
            approval_policy: Some(baseline.approval_policy(options)),
            approvals_reviewer: baseline.approvals_reviewer(options),
            sandbox: Some("read-only"),
            // The answer of a 60-turn thread shrinks from 156 kB to 2 kB.
            exclude_turns: true,
            ..LoadThread::bare("thread/resume", working_directory, load)
        }
    }

    fn bare(method: &'static str, working_directory: &Path, load: &LoadOptions) -> LoadThread {
        LoadThread {
            method,
            thread_id: None,
            copied: None,
            cwd: working_directory.to_owned(),
            model: None,
            approval_policy: None,
            approvals_reviewer: None,
            sandbox: None,
            ephemeral: false,
            exclude_turns: false,
            thread_source: None,
            dynamic_tools: Vec::new(),
            load: load.clone(),
        }
    }

    /// The thread, where it is not a new one.
    pub fn thread_id(&self) -> Option<&str> {
        self.thread_id.as_deref()
    }

    /// Whether it is a copy of another one.
    pub fn is_copy(&self) -> bool {
        self.copied.is_some()
    }

    /// Where it works.
    pub fn working_directory(&self) -> &Path {
        &self.cwd
    }

    /// How long Codex may take with the MCP servers that it waits for before it answers.
    pub fn longest_required_start(&self, configured: &mcp::ConfigRead) -> std::time::Duration {
        configured.longest_required_start(&self.load)
    }

    /// No answer came in time.
    pub fn timed_out(&self, after: std::time::Duration) -> RequestError {
        RequestError::Timeout { method: self.method, after }
    }

    /// No answer will come.
    pub fn lost(&self, cause: &str) -> RequestError {
        RequestError::Transport { method: self.method, cause: cause.to_owned(), written: true }
    }
}

impl From<DynamicTool> for Tool {
    fn from(DynamicTool { name, description, input_schema }: DynamicTool) -> Tool {
        Tool::Function { name, description, input_schema }
    }
}

fn web_search(mode: WebSearchMode) -> &'static str {
    match mode {
        WebSearchMode::Disabled => "disabled",
        WebSearchMode::Cached => "cached",
        WebSearchMode::Live => "live",
    }
}

/// A thread that is loaded.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ThreadOpened {
    thread: ThreadRef,
    /// The model that its next turn would use.
    pub(in crate::app_server) model: String,
    /// The provider of that model.
    #[serde(default)]
    pub(in crate::app_server) model_provider: String,
    /// The effort that its next turn would use; `None` means the model's own.
    #[serde(default)]
    pub(in crate::app_server) reasoning_effort: Option<String>,
    /// The approval policy that its next turn would use.
    pub(in crate::app_server) approval_policy: Value,
    /// Who would answer what its next turn asks.
    #[serde(default)]
    pub(in crate::app_server) approvals_reviewer: Option<Value>,
    /// The sandbox policy that its next turn would use.
    pub(in crate::app_server) sandbox: Value,
    /// The permission profile that its next turn would use.
    #[serde(default)]
    active_permission_profile: Value,
    /// The service tier that its next turn would use: `None` where the CLI does not say, null where
    /// it has none.
    #[serde(default, deserialize_with = "present")]
    pub(in crate::app_server) service_tier: Option<Value>,
    /// Where its next turn would work.
    #[serde(default)]
    cwd: Value,
}

#[derive(Debug, Clone, Deserialize)]
struct ThreadRef {
    id: String,
}

/// A field that is there, although it may be null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl ThreadOpened {
    /// Codex's id of it.
    pub fn thread_id(&self) -> &str {
        &self.thread.id
    }

    /// What its next turn may do.
    pub fn settings(&self) -> Settings {
        Settings::told(&json!({
            "approvalPolicy": self.approval_policy,
            "approvalsReviewer": self.approvals_reviewer,
            "sandbox": self.sandbox,
            "activePermissionProfile": self.active_permission_profile,
            "cwd": self.cwd,
        }))
    }

    /// Whether its next turn would use this effort.
    pub fn has_effort_of(&self, baseline: &Baseline) -> bool {
        self.reasoning_effort == baseline.effort
    }

    /// The permission profile of `config.toml` that its next turn would use, by its name.
    pub(in crate::app_server) fn custom_profile(&self) -> Option<&str> {
        let name = self.active_permission_profile["id"].as_str();
        name.filter(|name| settings::is_custom_profile(name))
    }
}

/// What Codex knows of a thread.
#[derive(Debug, Clone, Deserialize)]
pub struct ThreadRead {
    /// Its rollout; none of an ephemeral thread.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Where it worked last.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    #[serde(default)]
    status: Value,
}

impl ThreadRead {
    /// Whether Codex works on it.
    pub fn is_active(&self) -> bool {
        self.status["type"] == "active"
    }
}

/// A turn as Codex has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListedTurn {
    /// Codex's id of it.
    pub(crate) id: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    root_turn_id: Option<String>,
}

impl ListedTurn {
    /// Whether it is a turn within this one, as a reviewer's is within the review.
    pub(crate) fn is_within(&self, turn_id: &str) -> bool {
        self.id != turn_id && self.root_turn_id.as_deref() == Some(turn_id)
    }

    /// Whether its end is there, too. Codex takes one whose end it does not have for interrupted.
    pub(crate) fn has_end(&self) -> bool {
        !matches!(self.status.as_str(), "interrupted" | "inProgress")
    }
}

/// A command that still runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Terminal {
    /// The item that started it.
    pub item_id: String,
    /// Codex's handle of it; not the operating system's.
    pub process_id: String,
    /// The command line.
    #[serde(default)]
    pub command: String,
}

/// The parameters of a request that is about a thread and needs to say no more.
fn of_thread(thread_id: &str) -> Value {
    json!({ "threadId": thread_id })
}

impl Client {
    /// Has a thread loaded, whose commands see nothing that they were not to see without it.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn load_thread(&self, thread: &LoadThread) -> Result<ThreadOpened, RequestError> {
        let mut thread = thread.clone();
        command_environment::keep_excluded(&mut thread.load.config, &self.excluded);
        self.ask(thread.method, &thread).await
    }

    /// What Codex knows of a thread, without its turns; a CLI without it is served, too.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn thread_read(&self, thread_id: &str) -> Result<ThreadRead, RequestError> {
        #[derive(Deserialize)]
        struct Read {
            thread: ThreadRead,
        }
        let Read { thread } = self.read(thread_id).await?;
        Ok(thread)
    }

    /// The thread of the agent that made this one.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn thread_parent(&self, thread_id: &str) -> Result<Option<String>, RequestError> {
        #[derive(Deserialize)]
        struct Read {
            thread: CodexThread,
        }
        let Read { thread } = self.read(thread_id).await?;
        Ok(thread.parent())
    }

    async fn read<A: for<'a> Deserialize<'a>>(&self, thread_id: &str) -> Result<A, RequestError> {
        self.ask("thread/read", &json!({ "threadId": thread_id, "includeTurns": false })).await
    }

    /// A thread's turns, the newest first, and at most so many; and whether there are more.
    ///
    /// # Errors
    /// See [`RequestError`]; CLIs before 0.130 can't list them.
    pub(crate) async fn thread_turns(
        &self,
        thread_id: &str,
        at_most: usize,
    ) -> Result<(Vec<ListedTurn>, bool), RequestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Page {
            data: Vec<ListedTurn>,
            #[serde(default)]
            next_cursor: Option<String>,
        }
        let params = json!({
            "threadId": thread_id,
            "limit": at_most,
            "sortDirection": "desc",
            "itemsView": "notLoaded",
        });
        let Page { data, next_cursor } = self.ask("thread/turns/list", &params).await?;
        Ok((data, next_cursor.is_some()))
    }

    /// Lets go of a thread: it leaves the memory at once, and lies in the archive.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn thread_archive(&self, thread_id: &str) -> Result<(), RequestError> {
        self.order("thread/archive", &of_thread(thread_id)).await
    }

    /// Takes a thread out of the archive.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn thread_unarchive(&self, thread_id: &str) -> Result<(), RequestError> {
        self.order("thread/unarchive", &of_thread(thread_id)).await
    }

    /// Lets a thread be unloaded when it has been idle for long enough.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn thread_unsubscribe(&self, thread_id: &str) -> Result<(), RequestError> {
        self.order("thread/unsubscribe", &of_thread(thread_id)).await
    }

    /// Whether the thread has a goal that Codex goes on with by itself.
    ///
    /// # Errors
    /// See [`RequestError`]; a CLI without goals refuses it.
    pub async fn goal_is_active(&self, thread_id: &str) -> Result<bool, RequestError> {
        #[derive(Deserialize)]
        struct Read {
            #[serde(default)]
            goal: Option<Goal>,
        }
        #[derive(Deserialize)]
        struct Goal {
            status: String,
        }
        let Read { goal } = self.ask("thread/goal/get", &of_thread(thread_id)).await?;
        Ok(goal.is_some_and(|goal| goal.status == "active"))
    }

    /// Takes the thread's goal away, and tells whether there was one.
    ///
    /// # Errors
    /// See [`RequestError`]; a CLI without goals refuses it.
    pub async fn goal_clear(&self, thread_id: &str) -> Result<bool, RequestError> {
        #[derive(Deserialize)]
        struct Cleared {
            #[serde(default)]
            cleared: bool,
        }
        let Cleared { cleared } = self.ask("thread/goal/clear", &of_thread(thread_id)).await?;
        Ok(cleared)
    }

    /// The commands of a thread that still run.
    ///
    /// # Errors
    /// See [`RequestError`]; CLIs before 0.150 can't list them.
    pub async fn terminals_list(&self, thread_id: &str) -> Result<Vec<Terminal>, RequestError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            data: Vec<Terminal>,
        }
        let params = of_thread(thread_id);
        let List { data } = self.ask("thread/backgroundTerminals/list", &params).await?;
        Ok(data)
    }

    /// Ends a command.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn terminals_terminate(
        &self,
        thread_id: &str,
        terminal: &Terminal,
    ) -> Result<(), RequestError> {
        let params = json!({ "threadId": thread_id, "processId": terminal.process_id });
        self.order("thread/backgroundTerminals/terminate", &params).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::options::{ApprovalPolicy, SandboxMode};

    #[test]
    fn a_thread_is_loaded_with_the_least() {
        let load = LoadOptions::default();
        let started = |options: &ThreadOptions| {
            json!(LoadThread::new(options, &load, Path::new("/w"), false))
        };
        // What is not asked for is learned from the answer.
        assert_eq!(started(&ThreadOptions::default()), json!({ "cwd": "/w" }));
        for access in [
            ThreadOptions { sandbox_mode: Some(SandboxMode::WorkspaceWrite), ..Default::default() },
            ThreadOptions {
                sandbox_mode: Some(SandboxMode::DangerFullAccess),
                ..Default::default()
            },
            ThreadOptions { permission_profile: Some("mine".to_owned()), ..Default::default() },
        ] {
            // Anything else would mark the directory as trusted.
            assert_eq!(started(&access), json!({ "cwd": "/w", "sandbox": "read-only" }));
        }
        let never =
            ThreadOptions { approval_policy: Some(ApprovalPolicy::Never), ..Default::default() };
        assert_eq!(started(&never), json!({ "cwd": "/w", "approvalPolicy": "never" }));
        let baseline = Baseline::default();
        let directory = Path::new("/w");
        let resumed = LoadThread::from_rollout("t", &never, &baseline, &load, directory);
        let configured = mcp::ConfigRead::default();
        let copy = LoadThread::copy("t", Some("u"), directory, &configured);
        assert_eq!(
            json!(copy),
            json!({
                "threadId": "t",
                "lastTurnId": "u",
                "cwd": "/w",
                "excludeTurns": true,
                "sandbox": "read-only",
                "config": { "features.shell_snapshot": false },
            })
        );
        // It is another one that is loaded.
        assert_eq!(copy.thread_id(), None);
        assert_eq!(
            json!(resumed),
            json!({
                "threadId": "t",
                "cwd": "/w",
                "excludeTurns": true,
                "approvalPolicy": "never",
                "sandbox": "read-only",
            })
        );
    }

    #[test]
    fn a_summary_in_config_is_no_part_of_what_a_thread_is_loaded_with() {
        let config = [("model_reasoning_summary".to_owned(), json!("detailed"))];
        let asked =
            ThreadOptions { config: Some(config.into_iter().collect()), ..Default::default() };
        assert_eq!(LoadOptions::of(&asked), LoadOptions::default());
    }
}
