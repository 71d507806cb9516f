//! What the sidecar asks of Codex, and what it reads of the answers.
//!
//! Field names are those of `codex app-server generate-json-schema --experimental`. Answers name
//! only what is used, and everything that an older CLI may leave out is optional.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::options::{ApprovalPolicy, DynamicTool, SandboxMode, ThreadOptions, WebSearchMode};
use crate::turn::event::UserInput;

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
/// `thread/archive`.
pub const THREAD_ARCHIVE: &str = "thread/archive";
/// `thread/unarchive`.
pub const THREAD_UNARCHIVE: &str = "thread/unarchive";
/// `thread/unsubscribe`.
pub const THREAD_UNSUBSCRIBE: &str = "thread/unsubscribe";
/// `thread/loaded/list`, the cheapest request that goes through Codex's own queue.
pub const THREAD_LOADED_LIST: &str = "thread/loaded/list";
/// `thread/read`.
pub const THREAD_READ: &str = "thread/read";
/// `thread/goal/get`; a CLI without goals refuses it.
pub const GOAL_GET: &str = "thread/goal/get";
/// `thread/goal/clear`; a CLI without goals refuses it.
pub const GOAL_CLEAR: &str = "thread/goal/clear";
/// `thread/backgroundTerminals/list`.
pub const TERMINALS_LIST: &str = "thread/backgroundTerminals/list";
/// `thread/backgroundTerminals/terminate`.
pub const TERMINALS_TERMINATE: &str = "thread/backgroundTerminals/terminate";
/// `turn/start`.
pub const TURN_START: &str = "turn/start";
/// `turn/steer`.
pub const TURN_STEER: &str = "turn/steer";
/// `turn/interrupt`.
pub const TURN_INTERRUPT: &str = "turn/interrupt";

/// Every method above: what a check of a CLI's schema looks for.
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
    TURN_START,
    TURN_STEER,
    TURN_INTERRUPT,
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
    /// The sandbox policy that its next turn would use.
    pub sandbox: Value,
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
/// The sandbox is left to `turn/start`: a `thread/start` with a working directory and the
/// workspace-write sandbox would mark the directory as trusted in `config.toml`, and from then on a
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
/// turn, so nothing is started for it and nothing is kept of it.
pub fn thread_probe_params(load: &LoadOptions, working_directory: &Path) -> Value {
    let mut config = load.config.clone();
    config.insert("mcp_servers".to_owned(), json!({}));
    config.insert("features.shell_snapshot".to_owned(), json!(false));
    json!({ "cwd": working_directory, "ephemeral": true, "config": config })
}

/// The parameters of [`THREAD_RESUME`].
pub fn thread_resume_params(
    thread_id: &str,
    load: &LoadOptions,
    working_directory: &Path,
) -> Value {
    let mut params = Map::new();
    params.insert("threadId".to_owned(), json!(thread_id));
    params.insert("cwd".to_owned(), json!(working_directory));
    // The answer of a 60-turn thread shrinks from 156 kB to 2 kB.
    params.insert("excludeTurns".to_owned(), json!(true));
    load.insert_into(&mut params);
    Value::Object(params)
}

/// What a thread's turns use where neither the request nor the tool says anything.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// The model.
    pub model: String,
    /// The effort; `None` means the model's own.
    pub effort: Option<String>,
    /// The approval policy, as Codex spells it.
    pub approval_policy: Value,
    /// The sandbox policy, as Codex spells it.
    pub sandbox_policy: Value,
    /// The defaults of the workspace-write sandbox.
    pub workspace_write: WorkspaceWriteConfig,
}

/// The parameters of [`TURN_START`]: always the full set, because whatever one turn sets holds for
/// all later turns of the thread that do not set it themselves.
///
/// `effort_is_set` tells whether an earlier turn of the loaded thread (or its rollout) has an effort
/// other than the baseline's: an effort can be replaced, but only a collaboration mode can take it
/// away (its empty instructions add nothing to the history).
pub fn turn_start_params(
    thread_id: &str,
    inputs: &[UserInput],
    options: &ThreadOptions,
    baseline: &Baseline,
    workspace: (&Path, &[std::path::PathBuf]),
    output_schema: Option<&Value>,
    effort_is_set: bool,
) -> Value {
    let (working_directory, additional_directories) = workspace;
    let model = options.model.as_ref().unwrap_or(&baseline.model);
    let mut params = json!({
        "threadId": thread_id,
        "input": inputs_json(inputs),
        "cwd": working_directory,
        "model": model,
        "approvalPolicy": options.approval_policy.map_or_else(|| baseline.approval_policy.clone(), approval_policy),
        "sandboxPolicy": sandbox_policy(options, baseline, additional_directories),
    });
    let effort = options.model_reasoning_effort.as_ref().or(baseline.effort.as_ref());
    match effort {
        Some(effort) => params["effort"] = json!(effort),
        None if effort_is_set => {
            params["collaborationMode"] = json!({
                "mode": "default",
                "settings": { "model": model, "reasoning_effort": null, "developer_instructions": "" },
            });
        }
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
    let baseline_is_workspace_write = baseline.sandbox_policy["type"] == "workspaceWrite";
    match options.sandbox_mode {
        Some(SandboxMode::ReadOnly) => json!({ "type": "readOnly", "networkAccess": false }),
        Some(SandboxMode::DangerFullAccess) => json!({ "type": "dangerFullAccess" }),
        None if !baseline_is_workspace_write => baseline.sandbox_policy.clone(),
        Some(SandboxMode::WorkspaceWrite) | None => {
            let WorkspaceWriteConfig {
                writable_roots,
                network_access,
                exclude_tmpdir_env_var,
                exclude_slash_tmp,
            } = &baseline.workspace_write;
            let roots: Vec<Value> = writable_roots
                .iter()
                .map(|root| json!(root))
                .chain(additional_directories.iter().map(|directory| json!(directory)))
                .collect();
            json!({
                "type": "workspaceWrite",
                "writableRoots": roots,
                "networkAccess": options.network_access_enabled.unwrap_or(*network_access),
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
            approval_policy: json!("on-request"),
            sandbox_policy: json!({ "type": "readOnly", "networkAccess": false }),
            workspace_write: WorkspaceWriteConfig::default(),
        }
    }

    fn params(options: &ThreadOptions, effort_is_set: bool) -> Value {
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
            &baseline(),
            (Path::new("/w"), &extra),
            None,
            effort_is_set,
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
    fn the_sandbox_is_never_sent_with_thread_start() {
        let options = ThreadOptions {
            sandbox_mode: Some(SandboxMode::WorkspaceWrite),
            web_search_enabled: Some(false),
            ..Default::default()
        };
        let params =
            thread_start_params(&options, &LoadOptions::of(&options), Path::new("/w"), false);
        assert_eq!(params, json!({ "cwd": "/w", "config": { "web_search": "disabled" } }));
    }
}
