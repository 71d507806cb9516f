//! Thread and turn options: the words that the configuration and a request have in common.
//!
//! Every field is optional here, because options are layered: a request's value beats the tool's
//! default, which beats what the CLI itself would do. [`ThreadOptions::or`] is that layering, field
//! by field. Nothing here knows protobuf or Codex's JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::policy::Policy;

/// What a command that the model runs may touch (`--sandbox` of the CLI), the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxMode {
    /// Reads everywhere, writes nowhere.
    ReadOnly,
    /// Writes below the working directory, the additional directories and the temporary folders.
    WorkspaceWrite,
    /// No sandbox at all.
    DangerFullAccess,
}

/// When Codex asks before it runs something (`approval_policy` of the CLI).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ApprovalPolicy {
    /// Never asks; what the sandbox forbids fails.
    Never,
    /// The model decides when to ask.
    OnRequest,
    /// Asks when a command failed in the sandbox. Newer CLIs no longer know this policy and treat
    /// it as `on-request`, and so does the sidecar.
    OnFailure,
    /// Asks before everything that is not known to be harmless.
    Untrusted,
}

/// Who answers the approvals that Codex asks for (`approvals_reviewer` of the CLI).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalsReviewer {
    /// The caller.
    User,
    /// Codex's own reviewer, a model.
    AutoReview,
}

/// Whether the model may search the web (`web_search` of the CLI), the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WebSearchMode {
    /// No search tool.
    Disabled,
    /// Searches an index, never the live web.
    Cached,
    /// Searches the live web.
    Live,
}

/// How much of its reasoning the model sums up (`model_reasoning_summary` of the CLI).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasoningSummary {
    /// As much as suits the model.
    Auto,
    /// A short one.
    Concise,
    /// A long one.
    Detailed,
    None,
}

impl ReasoningSummary {
    /// The CLI's word.
    pub fn as_str(self) -> &'static str {
        match self {
            ReasoningSummary::Auto => "auto",
            ReasoningSummary::Concise => "concise",
            ReasoningSummary::Detailed => "detailed",
            ReasoningSummary::None => "none",
        }
    }

    /// The value of the CLI's word.
    pub fn from_word(word: &str) -> Option<ReasoningSummary> {
        use ReasoningSummary::{Auto, Concise, Detailed};
        [Auto, Concise, Detailed, ReasoningSummary::None]
            .into_iter()
            .find(|summary| summary.as_str() == word)
    }
}

/// The key of `config` that says what [`ThreadOptions::reasoning_summary`] says.
pub(crate) const REASONING_SUMMARY_KEY: &str = "model_reasoning_summary";

/// The key of `config` that says what [`ThreadOptions::web_search_mode`] says, and some that that can't.
pub(crate) const WEB_SEARCH_KEY: &str = "web_search";

/// The deepest that a key of `config` may lead: Codex takes each dot for a table in a table, and walks
/// them by recursion.
pub(crate) const DEEPEST_CONFIG: usize = 100;

/// How deep a key of `config` leads with its value: its dots, and what is inside each other, together.
pub(crate) fn config_depth(key: &str, value: &serde_json::Value) -> usize {
    use serde_json::Value;
    let below = match value {
        Value::Object(map) => map.iter().map(|(key, value)| config_depth(key, value)).max(),
        Value::Array(list) => list.iter().map(|value| config_depth("", value)).max(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    };
    1 + key.matches('.').count() + below.unwrap_or(0)
}

/// A function that the caller lends to the model; Codex asks for it with `item/tool/call`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicTool {
    /// The name that the model calls.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// The JSON schema of its arguments.
    pub input_schema: serde_json::Value,
}

/// Variables for the commands that the model runs, by their names. What they are set to is shown nowhere.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Environment(pub BTreeMap<String, String>);

impl Environment {
    /// Most variables.
    pub(crate) const MOST: usize = 64;
    /// Most bytes of a name.
    const LONGEST_NAME: usize = 128;
    /// Most bytes of a value.
    const LONGEST_VALUE: usize = 32 << 10;

    /// What keeps a variable from being set, with what to do about it; the value is not in it.
    pub(crate) fn fault_of(name: &str, value: &str) -> Option<String> {
        let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !begins_well || !name.bytes().all(plain) || name.len() > Environment::LONGEST_NAME {
            let most = Environment::LONGEST_NAME;
            Some(format!("is no variable's name; use 1 to {most} of A-Z a-z 0-9 _, no digit first"))
        } else if value.len() > Environment::LONGEST_VALUE {
            let (length, most) = (value.len(), Environment::LONGEST_VALUE);
            Some(format!("is set to {length} bytes; give at most {most}"))
        } else if value.contains('\0') {
            Some("is set to something with a NUL byte; leave that out".to_owned())
        } else {
            None
        }
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// How a thread runs. `None` means: not said at this layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ThreadOptions {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The sandbox of commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_mode: Option<SandboxMode>,
    /// The absolute directory that the turn works in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<PathBuf>,
    /// Whether the working directory may lie outside a git repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_git_repo_check: Option<bool>,
    /// The reasoning effort by its Codex name (`minimal` … `xhigh`, and what newer CLIs know).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_reasoning_effort: Option<String>,
    /// Whether commands in the workspace-write sandbox may reach the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_access_enabled: Option<bool>,
    /// Whether and how the model may search the web.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_search_mode: Option<WebSearchMode>,
    /// The legacy switch: true means live, false means disabled; the mode wins over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web_search_enabled: Option<bool>,
    /// When Codex asks before it acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval_policy: Option<ApprovalPolicy>,
    /// Absolute directories that are writable beside the working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additional_directories: Option<Vec<PathBuf>>,
    /// Replaces the model's base instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_instructions: Option<String>,
    /// Instructions of the developer role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub developer_instructions: Option<String>,
    /// Overrides of CLI configuration by dotted key, as `codex -c key=value` takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
    /// Functions that the caller lends to the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_tools: Option<Vec<DynamicTool>>,
    /// What Codex files a new thread under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thread_source: Option<String>,
    /// The permission profile of commands, by its name in the CLI's configuration; in place of the
    /// sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_profile: Option<String>,
    /// How much of its reasoning the model sums up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_summary: Option<ReasoningSummary>,
    /// Who answers the approvals that Codex asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvals_reviewer: Option<ApprovalsReviewer>,
    /// The provider's service tier, by Codex's name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<String>,
    /// Variables for commands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
}

impl ThreadOptions {
    /// These options, with `defaults` where they say nothing. Fields are taken whole, except that
    /// `config` and `environment` are merged key by key, and that the two web search fields are one
    /// choice, and the sandbox and the permission profile another: a layer that says either of two hides both of the
    /// layer below.
    pub fn or(self, defaults: &ThreadOptions) -> ThreadOptions {
        let ThreadOptions {
            model,
            sandbox_mode,
            working_directory,
            skip_git_repo_check,
            model_reasoning_effort,
            network_access_enabled,
            web_search_mode,
            web_search_enabled,
            approval_policy,
            additional_directories,
            base_instructions,
            developer_instructions,
            config,
            dynamic_tools,
            thread_source,
            permission_profile,
            reasoning_summary,
            approvals_reviewer,
            service_tier,
            environment,
        } = self;
        let says_access = sandbox_mode.is_some() || permission_profile.is_some();
        let says_web_search = web_search_mode.is_some() || web_search_enabled.is_some();
        let config = match (config, defaults.config.clone()) {
            (Some(own), Some(mut below)) => {
                below.extend(own);
                Some(below)
            }
            (own, below) => own.or(below),
        };
        let environment = match (environment, defaults.environment.clone()) {
            (Some(own), Some(mut below)) => {
                below.0.extend(own.0);
                Some(below)
            }
            (own, below) => own.or(below),
        };
        ThreadOptions {
            model: model.or_else(|| defaults.model.clone()),
            sandbox_mode: if says_access { sandbox_mode } else { defaults.sandbox_mode },
            working_directory: working_directory.or_else(|| defaults.working_directory.clone()),
            skip_git_repo_check: skip_git_repo_check.or(defaults.skip_git_repo_check),
            model_reasoning_effort: model_reasoning_effort
                .or_else(|| defaults.model_reasoning_effort.clone()),
            network_access_enabled: network_access_enabled.or(defaults.network_access_enabled),
            web_search_mode: if says_web_search {
                web_search_mode
            } else {
                defaults.web_search_mode
            },
            web_search_enabled: if says_web_search {
                web_search_enabled
            } else {
                defaults.web_search_enabled
            },
            approval_policy: approval_policy.or(defaults.approval_policy),
            additional_directories: additional_directories
                .or_else(|| defaults.additional_directories.clone()),
            base_instructions: base_instructions.or_else(|| defaults.base_instructions.clone()),
            developer_instructions: developer_instructions
                .or_else(|| defaults.developer_instructions.clone()),
            config,
            dynamic_tools: dynamic_tools.or_else(|| defaults.dynamic_tools.clone()),
            thread_source: thread_source.or_else(|| defaults.thread_source.clone()),
            permission_profile: if says_access {
                permission_profile
            } else {
                defaults.permission_profile.clone()
            },
            reasoning_summary: reasoning_summary.or(defaults.reasoning_summary),
            approvals_reviewer: approvals_reviewer.or(defaults.approvals_reviewer),
            service_tier: service_tier.or_else(|| defaults.service_tier.clone()),
            environment,
        }
    }

    /// The web search mode that both fields together say: the mode wins over the legacy switch.
    pub fn web_search(&self) -> Option<WebSearchMode> {
        self.web_search_mode.or(match self.web_search_enabled {
            Some(true) => Some(WebSearchMode::Live),
            Some(false) => Some(WebSearchMode::Disabled),
            None => None,
        })
    }

    /// The summary that the field says, or else `config`.
    pub fn summary(&self) -> Option<ReasoningSummary> {
        self.reasoning_summary.or_else(|| {
            let config = self.config.as_ref()?;
            ReasoningSummary::from_word(config.get(REASONING_SUMMARY_KEY)?.as_str()?)
        })
    }

    /// The instructions of the developer role that the field says, or else `config`.
    pub fn asked_developer_instructions(&self) -> Option<&str> {
        self.developer_instructions.as_deref().or_else(|| {
            let config = self.config.as_ref()?;
            config.get("developer_instructions")?.as_str()
        })
    }
}

/// How one turn runs. `None` means: not said at this layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TurnOptions {
    /// A strict JSON object schema for the final response.
    pub output_schema: Option<serde_json::Value>,
    /// The longest time without progress of this turn.
    pub idle_timeout: Option<Duration>,
    /// The longest time of the whole turn, from the moment it leaves the queue.
    pub turn_timeout: Option<Duration>,
    /// The longest time that a request of Codex waits for an answer.
    pub answer_timeout: Option<Duration>,
    /// Leave the final response out of the turn's end: its items have it.
    pub omit_final_response: bool,
    /// Most tokens, in and out, of all that the turn owns; more stop it.
    pub max_total_tokens: Option<NonZeroU64>,
}

/// Defaults of one of the caller's Codex tools. `None` means: not said here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ToolDefaults {
    /// How its threads run.
    pub thread_options: ThreadOptions,
    /// The thread that it continues where nothing is bound: a UUID, hyphenated and lower-case.
    pub thread_id: Option<String>,
    /// The thread key in place of the one that the tool's name gives; 1 to 256 bytes, trimmed.
    pub thread_id_key: Option<String>,
    /// The schema of its final response as it was given, a JSON object; neither made strict nor
    /// written out from its short form.
    pub output_schema: Option<serde_json::Value>,
    /// Longest time without progress.
    pub idle_timeout: Option<Duration>,
    /// Longest time of the whole turn.
    pub turn_timeout: Option<Duration>,
    /// Longest wait for an answer.
    pub answer_timeout: Option<Duration>,
    /// Most tokens of a turn, in and out.
    pub max_total_tokens: Option<NonZeroU64>,
    /// What its callers may ask for at most, where that is less than what holds for all.
    pub policy: Option<Arc<Policy>>,
}

impl ToolDefaults {
    /// The defaults of a tool; empty ones for a tool that `tools` does not name.
    pub fn of(tools: &BTreeMap<String, ToolDefaults>, name: &str) -> ToolDefaults {
        tools.get(name).cloned().unwrap_or_default()
    }
}
