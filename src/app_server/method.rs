//! What the sidecar asks of Codex, and what it reads of the answers.
//!
//! Field names are those of `codex app-server generate-json-schema --experimental`. Answers name
//! only what is used, and everything that an older CLI may leave out is optional.

use std::path::Path;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::app_server::mcp;
use crate::app_server::settings::{self, Settings};
use crate::model::options::{
    ApprovalPolicy, DynamicTool, REASONING_SUMMARY_KEY, ReasoningSummary, SandboxMode,
    ThreadOptions, WebSearchMode,
};
use crate::model::request::UserInput;

/// `initialize`.
pub const INITIALIZE: &str = "initialize";
/// `initialized`, the notification that ends the handshake.
pub const INITIALIZED: &str = "initialized";
/// `config/read`.
pub const CONFIG_READ: &str = "config/read";
/// `model/list`.
pub const MODEL_LIST: &str = "model/list";
/// `thread/start`.
pub const THREAD_START: &str = "thread/start";
/// `thread/resume`.
pub const THREAD_RESUME: &str = "thread/resume";
/// `thread/read`; a CLI without it is served, too.
pub const THREAD_READ: &str = "thread/read";
/// `thread/archive`.
pub const THREAD_ARCHIVE: &str = "thread/archive";
/// `thread/unarchive`.
pub const THREAD_UNARCHIVE: &str = "thread/unarchive";
/// `thread/unsubscribe`.
pub const THREAD_UNSUBSCRIBE: &str = "thread/unsubscribe";
/// `thread/loaded/list`, the cheapest request that goes through Codex's own queue.
pub const THREAD_LOADED_LIST: &str = "thread/loaded/list";
/// `thread/goal/get`; a CLI without goals refuses it.
pub const GOAL_GET: &str = "thread/goal/get";
/// `thread/goal/clear`; a CLI without goals refuses it.
pub const GOAL_CLEAR: &str = "thread/goal/clear";
/// `thread/backgroundTerminals/list`.
pub const TERMINALS_LIST: &str = "thread/backgroundTerminals/list";
/// `thread/backgroundTerminals/terminate`.
pub const TERMINALS_TERMINATE: &str = "thread/backgroundTerminals/terminate";
/// `thread/settings/update`.
pub const SETTINGS_UPDATE: &str = "thread/settings/update";
/// `permissionProfile/list`.
pub const PROFILE_LIST: &str = "permissionProfile/list";
/// `turn/start`.
pub const TURN_START: &str = "turn/start";
/// `turn/steer`.
pub const TURN_STEER: &str = "turn/steer";
/// `turn/interrupt`.
pub const TURN_INTERRUPT: &str = "turn/interrupt";

/// Every method above that a CLI must have: what a check of its schema looks for.
pub const METHODS: &[&str] = &[
    INITIALIZE,
    CONFIG_READ,
    MODEL_LIST,
    THREAD_START,
    THREAD_RESUME,
    THREAD_ARCHIVE,
    THREAD_UNARCHIVE,
    THREAD_UNSUBSCRIBE,
    THREAD_LOADED_LIST,
    THREAD_READ,
    GOAL_GET,
    GOAL_CLEAR,
    TERMINALS_LIST,
    TERMINALS_TERMINATE,
    SETTINGS_UPDATE,
    PROFILE_LIST,
    TURN_START,
    TURN_STEER,
    TURN_INTERRUPT,
    mcp::RELOAD,
    mcp::STATUS_LIST,
];

/// The parameters of [`INITIALIZE`].
pub fn initialize_params() -> Value {
    json!({
        "clientInfo": {
            "name": "codex_sidecar",
            "title": "codex-sidecar",
            "version": env!("CARGO_PKG_VERSION"),
        },
        // Dynamic tools, `excludeTurns` and the background terminals are experimental.
        "capabilities": { "experimentalApi": true, "requestAttestation": false },
    })
}

/// The answer to [`INITIALIZE`].
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Initialized {
    /// `codex_sidecar/0.169.0 (Debian …)`.
    #[serde(default)]
    pub user_agent: String,
}

/// An answer of which nothing is read.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Ignored {}

/// The answer to [`CONFIG_READ`]: what `config.toml` and `-c` say, as far as the sidecar needs it
/// to undo what an earlier turn overrode.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ConfigRead {
    /// The effective configuration.
    #[serde(default)]
    pub config: CliConfig,
}

/// A part of the CLI's effective configuration.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct CliConfig {
    /// `model`.
    #[serde(default)]
    pub model: Option<String>,
    /// `model_reasoning_effort`.
    #[serde(default)]
    pub model_reasoning_effort: Option<String>,
    /// `approval_policy`, as Codex spells it.
    #[serde(default)]
    pub approval_policy: Option<Value>,
    /// `openai_base_url`.
    #[serde(default)]
    pub openai_base_url: Option<String>,
    /// `model_reasoning_summary`.
    #[serde(default)]
    pub model_reasoning_summary: Option<String>,
    /// `sandbox_workspace_write`.
    #[serde(default)]
    pub sandbox_workspace_write: Option<WorkspaceWriteConfig>,
}

/// The table `sandbox_workspace_write` of the CLI's configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct WorkspaceWriteConfig {
    /// Writable beside the working directory.
    pub writable_roots: Vec<String>,
    /// Whether commands reach the network.
    pub network_access: bool,
    /// Whether `$TMPDIR` is not writable.
    pub exclude_tmpdir_env_var: bool,
    /// Whether `/tmp` is not writable.
    pub exclude_slash_tmp: bool,
}

/// The answer to [`MODEL_LIST`].
#[derive(Debug, Clone, Deserialize)]
pub struct ModelList {
    /// The models that this CLI knows.
    #[serde(default)]
    pub data: Vec<Model>,
}

/// One model.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The name to ask for.
    pub model: String,
    /// Used where nothing is configured.
    #[serde(default)]
    pub is_default: bool,
}

/// The answer to [`THREAD_START`] and [`THREAD_RESUME`].
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ThreadOpened {
    /// The thread.
    pub thread: ThreadRef,
    /// The model that its next turn would use.
    pub model: String,
    /// The effort that its next turn would use; `None` means the model's own.
    #[serde(default)]
    pub reasoning_effort: Option<String>,
    /// The approval policy that its next turn would use.
    pub approval_policy: Value,
    /// Who would answer what its next turn asks.
    #[serde(default)]
    pub approvals_reviewer: Option<Value>,
    /// The sandbox policy that its next turn would use.
    pub sandbox: Value,
    /// The permission profile that its next turn would use.
    #[serde(default)]
    pub active_permission_profile: Value,
    /// The service tier that its next turn would use: `None` where the CLI does not say, null where
    /// it has none.
    #[serde(default, deserialize_with = "present")]
    pub service_tier: Option<Value>,
    /// Where its next turn would work.
    #[serde(default)]
    pub cwd: Value,
}

/// A field that is there, although it may be null.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

impl ThreadOpened {
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

    /// The permission profile of `config.toml` that its next turn would use, by its name.
    pub fn custom_profile(&self) -> Option<&str> {
        let name = self.active_permission_profile["id"].as_str();
        name.filter(|name| settings::is_custom_profile(name))
    }
}

/// The answer to [`PROFILE_LIST`].
#[derive(Debug, Clone, Deserialize)]
pub struct Profiles {
    /// The profiles that the configuration has.
    #[serde(default)]
    pub data: Vec<Profile>,
}

/// A permission profile.
#[derive(Debug, Clone, Deserialize)]
pub struct Profile {
    /// Its name.
    pub id: String,
    /// Whether the machine's administrator lets it be used.
    #[serde(default = "yes")]
    pub allowed: bool,
}

fn yes() -> bool {
    true
}

/// The answer to [`THREAD_READ`].
#[derive(Debug, Clone, Deserialize)]
pub struct ThreadRead {
    /// What is known of the thread.
    pub thread: ThreadFile,
}

/// Where a thread is recorded.
#[derive(Debug, Clone, Deserialize)]
pub struct ThreadFile {
    /// Its rollout; none of an ephemeral thread.
    #[serde(default)]
    pub path: Option<std::path::PathBuf>,
}

/// A thread, by its id.
#[derive(Debug, Clone, Deserialize)]
pub struct ThreadRef {
    /// Codex's id.
    pub id: String,
}

/// The answer to [`TURN_START`].
#[derive(Debug, Clone, Deserialize)]
pub struct TurnStarted {
    /// The turn.
    pub turn: TurnRef,
}

/// A turn, by its id.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnRef {
    /// Codex's id.
    pub id: String,
    /// The first turn of the chain of work that it belongs to; what [`with_root`] named, where the
    /// request made the turn.
    #[serde(default)]
    pub root_turn_id: Option<String>,
}

/// The answer to [`TERMINALS_LIST`].
#[derive(Debug, Clone, Deserialize)]
pub struct Terminals {
    /// Commands that still run.
    #[serde(default)]
    pub data: Vec<Terminal>,
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

/// The answer to [`GOAL_GET`].
#[derive(Debug, Clone, Deserialize)]
pub struct GoalRead {
    #[serde(default)]
    goal: Option<Goal>,
}

/// The answer to [`GOAL_CLEAR`].
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct GoalCleared {
    /// Whether there was a goal.
    #[serde(default)]
    pub cleared: bool,
}

/// A goal, as far as it tells whether Codex goes on with it.
#[derive(Debug, Clone, Deserialize)]
struct Goal {
    status: String,
}

impl GoalRead {
    /// Whether there is a goal that Codex goes on with by itself.
    pub fn is_active(&self) -> bool {
        self.goal.as_ref().is_some_and(|goal| goal.status == "active")
    }
}

/// The answer to [`THREAD_READ`], as far as it tells whether a turn runs.
#[derive(Debug, Clone, Deserialize)]
pub struct ThreadStatusRead {
    thread: ThreadWithStatus,
}

#[derive(Debug, Clone, Deserialize)]
struct ThreadWithStatus {
    #[serde(default)]
    status: Value,
}

impl ThreadStatusRead {
    /// Whether Codex works on the thread.
    pub fn is_active(&self) -> bool {
        self.thread.status["type"] == "active"
    }
}

/// What a thread is loaded with, and can't be changed by `turn/start`: a turn with another value
/// of it needs the thread to be released and resumed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadOptions {
    /// `config` and the web search mode, as CLI overrides.
    pub config: Map<String, Value>,
    /// Replaces the model's base instructions.
    pub base_instructions: Option<String>,
    /// Instructions of the developer role.
    pub developer_instructions: Option<String>,
}

impl LoadOptions {
    /// The part of the options that holds from loading on.
    pub fn of(options: &ThreadOptions) -> LoadOptions {
        let mut config = options.config.clone().unwrap_or_default();
        if let Some(mode) = options.web_search() {
            config.insert("web_search".to_owned(), json!(web_search(mode)));
        }
        // `turn/start` has a field for it; loaded with the thread it would stay for later turns.
        config.remove(REASONING_SUMMARY_KEY);
        LoadOptions {
            config,
            base_instructions: options.base_instructions.clone(),
            developer_instructions: options.developer_instructions.clone(),
        }
    }

    fn insert_into(&self, params: &mut Map<String, Value>) {
        if !self.config.is_empty() {
            params.insert("config".to_owned(), Value::Object(self.config.clone()));
        }
        if let Some(text) = &self.base_instructions {
            params.insert("baseInstructions".to_owned(), json!(text));
        }
        if let Some(text) = &self.developer_instructions {
            params.insert("developerInstructions".to_owned(), json!(text));
        }
    }
}

/// The parameters of [`THREAD_START`].
///
/// The approval policy goes along, and where a sandbox or a profile is asked for the read-only
/// sandbox: MCP servers are started with them, and would else let a tool run that only the
/// configuration's own rights allow. What is more than read-only is left to `turn/start`: a
/// `thread/start` with a working directory and the workspace-write or no sandbox (by its name or by
/// that of a profile) would mark the directory as trusted in `config.toml`, and from then on a
/// hostile repository's own `.codex/config.toml` would be loaded. The model goes along, because
/// Codex chooses the base instructions by it.
pub fn thread_start_params(
    options: &ThreadOptions,
    load: &LoadOptions,
    working_directory: &Path,
    ephemeral: bool,
) -> Value {
    let mut params = Map::new();
    params.insert("cwd".to_owned(), json!(working_directory));
    load.insert_into(&mut params);
    if let Some(model) = &options.model {
        params.insert("model".to_owned(), json!(model));
    }
    if let Some(policy) = options.approval_policy {
        params.insert("approvalPolicy".to_owned(), approval_policy(policy));
    }
    if asks_for_access(options) {
        params.insert("sandbox".to_owned(), json!("read-only"));
    }
    if ephemeral {
        params.insert("ephemeral".to_owned(), json!(true));
    }
    if let Some(source) = &options.thread_source {
        params.insert("threadSource".to_owned(), json!(source));
    }
    if let Some(tools) = options.dynamic_tools.as_deref().filter(|tools| !tools.is_empty()) {
        params.insert("dynamicTools".to_owned(), tools.iter().map(dynamic_tool).collect());
    }
    Value::Object(params)
}

/// The parameters of a [`THREAD_START`] that only asks what a thread would use: the thread gets no
/// turn, so nothing is started for it and nothing is kept of it. `config` are the overrides that it is
/// loaded with; see [`mcp::without_servers`].
pub fn thread_probe_params(mut config: Map<String, Value>, working_directory: &Path) -> Value {
    config.insert("features.shell_snapshot".to_owned(), json!(false));
    json!({ "cwd": working_directory, "ephemeral": true, "config": config })
}

/// The parameters of [`THREAD_RESUME`].
///
/// Without an approval policy and a sandbox Codex would take those of the thread's last turn, and
/// start the MCP servers with them: the first turn would race with what its own `turn/start` changes.
/// So it is loaded with the least, and the turn adds to that.
pub fn thread_resume_params(
    thread_id: &str,
    load: &LoadOptions,
    working_directory: &Path,
    approval_policy: &Value,
) -> Value {
    let mut params = Map::new();
    params.insert("threadId".to_owned(), json!(thread_id));
    params.insert("cwd".to_owned(), json!(working_directory));
    // The answer of a 60-turn thread shrinks from 156 kB to 2 kB.
    params.insert("excludeTurns".to_owned(), json!(true));
    params.insert("approvalPolicy".to_owned(), approval_policy.clone());
    params.insert("sandbox".to_owned(), json!("read-only"));
    load.insert_into(&mut params);
    Value::Object(params)
}

/// What a thread's turns use where neither the request nor the tool says anything. What a thread was
/// started with an override of is not known.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// The model.
    pub model: String,
    /// The effort; `None` means the model's own.
    pub effort: Option<String>,
    /// The summary of the reasoning; `None` means the model's own.
    pub reasoning_summary: Option<String>,
    /// The approval policy, as Codex spells it.
    pub approval_policy: Option<Value>,
    /// Who answers what Codex asks; absent with CLIs that know no reviewers.
    pub approvals_reviewer: Option<Value>,
    /// The service tier: `None` with CLIs that do not say, null for none.
    pub service_tier: Option<Value>,
    /// What commands may touch.
    pub access: Option<BaselineAccess>,
    /// The defaults of the workspace-write sandbox.
    pub workspace_write: Option<WorkspaceWriteConfig>,
}

/// What commands may touch where nobody says anything.
#[derive(Debug, Clone, PartialEq)]
pub struct BaselineAccess {
    /// The sandbox policy, as Codex spells it.
    pub sandbox_policy: Value,
    /// The permission profile of `config.toml` that is in its place, by its name; only with CLIs that
    /// can be given one.
    pub profile: Option<String>,
}

impl Baseline {
    /// Whether all is known that turns with these options need.
    pub fn covers(&self, options: &ThreadOptions) -> bool {
        let needs_workspace_write = options.sandbox_mode == Some(SandboxMode::WorkspaceWrite);
        (options.approval_policy.is_some() || self.approval_policy.is_some())
            && (asks_for_access(options) || self.access.is_some())
            && (!needs_workspace_write || self.workspace_write.is_some())
    }

    /// The approval policy of turns with these options.
    pub fn approval_policy(&self, options: &ThreadOptions) -> Value {
        let asked = options.approval_policy.map(approval_policy);
        asked.or_else(|| self.approval_policy.clone()).unwrap_or_default()
    }

    /// The permission profile of `config.toml` that turns with these options use.
    pub fn profile<'a>(&'a self, options: &'a ThreadOptions) -> Option<&'a str> {
        if asks_for_access(options) {
            let asked = options.permission_profile.as_deref();
            return asked.filter(|name| settings::is_custom_profile(name));
        }
        self.access.as_ref().and_then(|access| access.profile.as_deref())
    }
}

/// Whether the options say what commands may touch.
pub fn asks_for_access(options: &ThreadOptions) -> bool {
    options.sandbox_mode.is_some() || options.permission_profile.is_some()
}

/// What earlier turns of the loaded thread (or its rollout) have set, and the next one must take
/// away if it does not set it itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lingering {
    /// An effort other than the baseline's.
    pub effort: bool,
    /// A summary other than the baseline's.
    pub summary: bool,
}

/// The part of the parameters of [`TURN_START`] that decides over the turn's rights.
pub fn rights_params(
    options: &ThreadOptions,
    baseline: &Baseline,
    (working_directory, additional_directories): (&Path, &[std::path::PathBuf]),
) -> Map<String, Value> {
    let mut params = Map::new();
    params.insert("cwd".to_owned(), json!(working_directory));
    params.insert("approvalPolicy".to_owned(), baseline.approval_policy(options));
    if let Some(reviewer) = &baseline.approvals_reviewer {
        params.insert("approvalsReviewer".to_owned(), reviewer.clone());
    }
    let profile = match &options.permission_profile {
        Some(name) => Some(name.as_str()),
        None => baseline.profile(options),
    };
    match profile {
        // The legacy policy would take the profile's place, and allow more.
        Some(name) => params.insert("permissions".to_owned(), json!(name)),
        None => params.insert(
            "sandboxPolicy".to_owned(),
            sandbox_policy(options, baseline, additional_directories),
        ),
    };
    params
}

/// The parameters of [`TURN_START`]: always the full set, because whatever one turn sets holds for
/// all later turns of the thread that do not set it themselves.
///
/// An effort that lingers can be replaced, but only a collaboration mode can take it away (its empty
/// instructions add nothing to the history). A summary can only be replaced.
pub fn turn_start_params(
    thread_id: &str,
    inputs: &[UserInput],
    options: &ThreadOptions,
    baseline: &Baseline,
    workspace: (&Path, &[std::path::PathBuf]),
    output_schema: Option<&Value>,
    lingering: Lingering,
) -> Value {
    let model = options.model.as_ref().unwrap_or(&baseline.model);
    let mut params = Value::Object(rights_params(options, baseline, workspace));
    params["threadId"] = json!(thread_id);
    params["input"] = json!(inputs_json(inputs));
    params["model"] = json!(model);
    if let Some(tier) = &baseline.service_tier {
        params["serviceTier"] = tier.clone();
    }
    let effort = options.model_reasoning_effort.as_ref().or(baseline.effort.as_ref());
    match effort {
        Some(effort) => params["effort"] = json!(effort),
        None if lingering.effort => {
            params["collaborationMode"] = json!({
                "mode": "default",
                "settings": { "model": model, "reasoning_effort": null, "developer_instructions": "" },
            });
        }
        None => {}
    }
    let summary = options.summary().map(ReasoningSummary::as_str);
    match summary.or(baseline.reasoning_summary.as_deref()) {
        Some(summary) => params["summary"] = json!(summary),
        None if lingering.summary => params["summary"] = json!(ReasoningSummary::Auto.as_str()),
        None => {}
    }
    if let Some(schema) = output_schema {
        params["outputSchema"] = schema.clone();
    }
    params
}

/// Names the turn that a [`TURN_START`] makes, for the look at its answer: Codex takes the name for a
/// new turn, and not where it takes the request as steering of a turn that runs.
pub fn with_root(mut turn_start_params: Value, root_turn_id: &str) -> Value {
    turn_start_params["rootTurnId"] = json!(root_turn_id);
    turn_start_params
}

/// The parameters of [`TURN_STEER`].
pub fn turn_steer_params(thread_id: &str, codex_turn_id: &str, inputs: &[UserInput]) -> Value {
    json!({ "threadId": thread_id, "expectedTurnId": codex_turn_id, "input": inputs_json(inputs) })
}

/// The texts joined with a blank line, then the images, as `codex exec` receives them from its
/// SDKs.
fn inputs_json(inputs: &[UserInput]) -> Vec<Value> {
    let texts: Vec<&str> = inputs
        .iter()
        .filter_map(|input| match input {
            UserInput::Text(text) => Some(text.as_str()),
            UserInput::LocalImage(_) | UserInput::ImageUrl(_) => None,
        })
        .collect();
    let mut parts = Vec::new();
    if !texts.is_empty() {
        parts.push(json!({ "type": "text", "text": texts.join("\n\n") }));
    }
    parts.extend(inputs.iter().filter_map(|input| match input {
        UserInput::Text(_) => None,
        UserInput::LocalImage(path) => Some(json!({ "type": "localImage", "path": path })),
        UserInput::ImageUrl(url) => Some(json!({ "type": "image", "url": url })),
    }));
    parts
}

fn dynamic_tool(tool: &DynamicTool) -> Value {
    json!({
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "inputSchema": tool.input_schema,
    })
}

fn web_search(mode: WebSearchMode) -> &'static str {
    match mode {
        WebSearchMode::Disabled => "disabled",
        WebSearchMode::Cached => "cached",
        WebSearchMode::Live => "live",
    }
}

fn approval_policy(policy: ApprovalPolicy) -> Value {
    json!(match policy {
        ApprovalPolicy::Never => "never",
        // The protocol lost `on-failure`; `codex exec` itself reads it as this.
        ApprovalPolicy::OnRequest | ApprovalPolicy::OnFailure => "on-request",
        ApprovalPolicy::Untrusted => "untrusted",
    })
}

fn sandbox_policy(
    options: &ThreadOptions,
    baseline: &Baseline,
    additional_directories: &[std::path::PathBuf],
) -> Value {
    let read_only = json!({ "type": "readOnly", "networkAccess": false });
    let own = baseline.access.as_ref().map(|access| &access.sandbox_policy);
    match (options.sandbox_mode, own) {
        (Some(SandboxMode::ReadOnly), _) => read_only,
        (Some(SandboxMode::DangerFullAccess), _) => json!({ "type": "dangerFullAccess" }),
        // Not known, and not asked for where it is needed: the least.
        (None, None) => read_only,
        (None, Some(own)) if own["type"] != "workspaceWrite" => own.clone(),
        (Some(SandboxMode::WorkspaceWrite) | None, _) => {
            let WorkspaceWriteConfig {
                writable_roots,
                network_access,
                exclude_tmpdir_env_var,
                exclude_slash_tmp,
            } = baseline.workspace_write.clone().unwrap_or_default();
            let roots: Vec<Value> = writable_roots
                .iter()
                .map(|root| json!(root))
                .chain(additional_directories.iter().map(|directory| json!(directory)))
                .collect();
            json!({
                "type": "workspaceWrite",
                "writableRoots": roots,
                "networkAccess": options.network_access_enabled.unwrap_or(network_access),
                "excludeTmpdirEnvVar": exclude_tmpdir_env_var,
                "excludeSlashTmp": exclude_slash_tmp,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        Baseline {
            model: "m0".to_owned(),
            effort: None,
            reasoning_summary: None,
            approval_policy: Some(json!("on-request")),
            approvals_reviewer: None,
            service_tier: None,
            access: Some(BaselineAccess {
                sandbox_policy: json!({ "type": "readOnly", "networkAccess": false }),
                profile: None,
            }),
            workspace_write: Some(WorkspaceWriteConfig::default()),
        }
    }

    fn params(options: &ThreadOptions, lingers: bool) -> Value {
        params_over(&baseline(), options, Lingering { effort: lingers, summary: lingers })
    }

    fn params_over(baseline: &Baseline, options: &ThreadOptions, lingering: Lingering) -> Value {
        let inputs = [
            UserInput::Text("a".to_owned()),
            UserInput::LocalImage("/i.png".to_owned()),
            UserInput::Text("b".to_owned()),
        ];
        let extra = ["/extra".into()];
        turn_start_params(
            "t",
            &inputs,
            options,
            baseline,
            (Path::new("/w"), &extra),
            None,
            lingering,
        )
    }

    #[test]
    fn a_turn_without_options_sends_the_whole_baseline() {
        assert_eq!(
            params(&ThreadOptions::default(), false),
            json!({
                "threadId": "t",
                "input": [{"type": "text", "text": "a\n\nb"}, {"type": "localImage", "path": "/i.png"}],
                "cwd": "/w",
                "model": "m0",
                "approvalPolicy": "on-request",
                "sandboxPolicy": {"type": "readOnly", "networkAccess": false},
            })
        );
    }

    #[test]
    fn an_effort_of_an_earlier_turn_is_taken_away_and_one_of_this_turn_is_sent() {
        let reset = params(&ThreadOptions::default(), true);
        assert_eq!(reset["collaborationMode"]["settings"]["reasoning_effort"], Value::Null);
        assert_eq!(reset["collaborationMode"]["settings"]["model"], "m0");
        let own =
            ThreadOptions { model_reasoning_effort: Some("high".to_owned()), ..Default::default() };
        let set = params(&own, true);
        assert_eq!(set["effort"], "high");
        assert_eq!(set.get("collaborationMode"), None);
    }

    #[test]
    fn the_workspace_write_sandbox_gets_network_and_additional_directories() {
        let options = ThreadOptions {
            sandbox_mode: Some(SandboxMode::WorkspaceWrite),
            network_access_enabled: Some(true),
            ..Default::default()
        };
        let policy = &params(&options, false)["sandboxPolicy"];
        assert_eq!(policy["writableRoots"], json!(["/extra"]));
        assert_eq!(policy["networkAccess"], json!(true));
    }

    #[test]
    fn a_summary_of_an_earlier_turn_is_replaced_and_one_in_config_is_the_turns_own() {
        let nobody = ThreadOptions::default();
        assert_eq!(params(&nobody, false).get("summary"), None);
        assert_eq!(params(&nobody, true)["summary"], "auto");
        let configured = Baseline { reasoning_summary: Some("none".to_owned()), ..baseline() };
        let lingering = Lingering { effort: false, summary: true };
        assert_eq!(params_over(&configured, &nobody, lingering)["summary"], "none");
        let config = [("model_reasoning_summary".to_owned(), json!("detailed"))];
        let asked =
            ThreadOptions { config: Some(config.into_iter().collect()), ..Default::default() };
        assert_eq!(params(&asked, false)["summary"], "detailed");
        assert!(LoadOptions::of(&asked).config.is_empty(), "a thread must not be loaded with it");
        let field = ThreadOptions { reasoning_summary: Some(ReasoningSummary::Concise), ..asked };
        assert_eq!(params(&field, false)["summary"], "concise");
    }

    #[test]
    fn a_profile_of_the_configuration_stays_unless_a_sandbox_is_asked_for() {
        let access = BaselineAccess {
            sandbox_policy: json!({ "type": "workspaceWrite", "writableRoots": ["/w/out"] }),
            profile: Some("mine".to_owned()),
        };
        let baseline = Baseline { access: Some(access), ..baseline() };
        let sent = |options: &ThreadOptions| {
            let params = params_over(&baseline, options, Lingering::default());
            (params["permissions"].clone(), params["sandboxPolicy"]["type"].clone())
        };
        assert_eq!(sent(&ThreadOptions::default()), (json!("mine"), Value::Null));
        let other =
            ThreadOptions { permission_profile: Some("other".to_owned()), ..Default::default() };
        assert_eq!(sent(&other), (json!("other"), Value::Null));
        let sandboxed =
            ThreadOptions { sandbox_mode: Some(SandboxMode::ReadOnly), ..Default::default() };
        assert_eq!(sent(&sandboxed), (Value::Null, json!("readOnly")));
    }

    #[test]
    fn a_thread_is_loaded_with_the_least() {
        let load = LoadOptions::default();
        let started =
            |options: &ThreadOptions| thread_start_params(options, &load, Path::new("/w"), false);
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
        let resumed = thread_resume_params("t", &load, Path::new("/w"), &json!("never"));
        assert_eq!(resumed["sandbox"], "read-only");
        assert_eq!(resumed["approvalPolicy"], "never");
    }
}
