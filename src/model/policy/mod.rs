//! What callers may ask for at most.
//!
//! A policy is the owner's: of the sidecar, of a tenant, of a tool. What is asked for is held against it
//! before Codex sees anything of it ([`Policy::judge`] and its sisters), and where nobody says anything of
//! what it bounds, the least that it allows holds ([`Policy::settle`]): what the CLI's own configuration
//! says, or that of a project that is trusted, may be more. Pure: nothing here looks at the disk.

mod answer;
mod judge;
mod keys;
mod narrow;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use answer::written;

use super::options::{ApprovalPolicy, ApprovalsReviewer, SandboxMode, WebSearchMode};

/// The ceilings of what callers ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// The most that commands may touch. Default: no sandbox at all.
    pub max_sandbox_mode: SandboxMode,
    /// The permission profiles, by name or pattern. Default: all, or only the CLI's own that
    /// `max_sandbox_mode` and `network_access` allow, where these allow less than all.
    pub permission_profiles: Option<Vec<String>>,
    /// When Codex may be told to ask. Default: as anybody likes.
    pub approval_policies: Option<Vec<ApprovalPolicy>>,
    /// Who may answer approvals. Default: all, or the caller alone where `max_sandbox_mode` bounds
    /// commands.
    pub approvals_reviewers: Option<Vec<ApprovalsReviewer>>,
    /// Whether commands may use the network, which without a sandbox they always may. Default yes.
    pub network_access: bool,
    /// The most of a search of the web. Default live.
    pub max_web_search: WebSearchMode,
    /// The models, by name or pattern. Default: all.
    pub models: Option<Vec<String>>,
    /// Absolute directories in one of which all must lie that is named on the disk. Default: anywhere.
    pub roots: Option<Vec<PathBuf>>,
    /// Patterns of keys of Codex's configuration that callers may set, beside those that do no harm.
    /// Default none.
    pub config_keys: Vec<String>,
    /// Patterns of variables that callers may set for commands. Default none.
    pub environment: Vec<String>,
    /// Whether callers may lend functions to the model. Default yes.
    pub dynamic_tools: bool,
    /// Which images may come with what is said. Default any.
    pub images: ImagePolicy,
    /// Which of them a tool says itself.
    pub own: OwnKeys,
}

/// What of a policy is a tool's own, for who is to be told which setting it was.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnKeys {
    /// The tool's section in the file.
    pub section: String,
    /// The keys in it.
    pub keys: Vec<&'static str>,
}

/// Which images may come with what is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImagePolicy {
    /// None at all.
    None,
    /// Those that are sent, and none from the sidecar's disk.
    Data,
    /// Both.
    Any,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            max_sandbox_mode: SandboxMode::DangerFullAccess,
            permission_profiles: None,
            approval_policies: None,
            approvals_reviewers: None,
            network_access: true,
            max_web_search: WebSearchMode::Live,
            models: None,
            roots: None,
            config_keys: Vec::new(),
            environment: Vec::new(),
            dynamic_tools: true,
            images: ImagePolicy::Any,
            own: OwnKeys::default(),
        }
    }
}

impl Policy {
    /// The setting of this key, as people find it in the file.
    pub(crate) fn setting(&self, key: &str) -> String {
        match self.own.keys.contains(&key) {
            true => format!("[{}] {key}", self.own.section),
            false => format!("[policy] {key}"),
        }
    }

    /// Whether commands are to be kept from something that Codex itself would let them do.
    fn bounds_commands(&self) -> bool {
        self.max_sandbox_mode < SandboxMode::DangerFullAccess
    }

    /// Who may answer approvals. A reviewer that lets a command out of its sandbox is no ceiling: where
    /// there is one, only who is named beside it.
    fn reviewers(&self) -> Option<&[ApprovalsReviewer]> {
        match &self.approvals_reviewers {
            Some(reviewers) => Some(reviewers),
            None if self.bounds_commands() => Some(&[ApprovalsReviewer::User]),
            None => None,
        }
    }
}

/// The word that the configuration has for a value.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        // No value of these enums has no word.
        Err(_) => String::new(),
    }
}
