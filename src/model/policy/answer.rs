//! Answers to what Codex asks, held against a policy: who is held to a ceiling does not approve of more.

use serde_json::Value;

use super::{ImagePolicy, Policy};
use crate::model::options::SandboxMode;
use crate::model::question::{Answer, ApprovalDecision};
use crate::model::refusal::Faults;
use crate::pb::tool_content::Content;

const PERMISSIONS: &str = "permissions.permissions_json";

impl Policy {
    /// Adds what of an answer is denied. What it grants on the disk is judged by [`Policy::roots`] where
    /// the disk is looked at.
    pub(crate) fn judge_answer(&self, answer: &Answer, denied: &mut Faults) {
        match answer {
            Answer::Approval(answer) => {
                // Out of its sandbox a command has the network, too.
                let key =
                    if self.bounds_commands() { "max_sandbox_mode" } else { "network_access" };
                let bounds = self.bounds_commands() || !self.network_access;
                let (fault, key) = match answer.decision() {
                    ApprovalDecision::Accept | ApprovalDecision::AcceptForSession if bounds => (
                        "may let a command or a patch out of its sandbox: Codex does not tell",
                        key,
                    ),
                    ApprovalDecision::AcceptWithExecPolicyAmendment if bounds => {
                        ("lets commands out of their sandboxes from now on", key)
                    }
                    ApprovalDecision::ApplyNetworkPolicyAmendment if !self.network_access => (
                        "is about the network, which commands must not have here",
                        "network_access",
                    ),
                    _ => return,
                };
                let (decision, setting) = (answer.decision().as_str_name(), self.setting(key));
                denied.add("approval.decision", format!("{decision} {fault} ({setting}); decline"));
            }
            Answer::Permissions(answer) => {
                let granted = serde_json::from_str(&answer.permissions_json).unwrap_or_default();
                self.judge_permissions(&granted, denied);
            }
            Answer::ToolCall(answer) if self.images == ImagePolicy::None => {
                let is_image = |content: &&crate::pb::ToolContent| {
                    matches!(content.content, Some(Content::ImageUrl(_)))
                };
                if answer.content.iter().find(is_image).is_some() {
                    let setting = self.setting("images");
                    denied
                        .add("tool_call.content", format!("no images are taken here ({setting})"));
                }
            }
            Answer::ToolCall(_) | Answer::UserQuestions(_) | Answer::Elicitation(_) => {}
        }
    }

    fn judge_permissions(&self, granted: &Value, denied: &mut Faults) {
        let is_something = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
        if !self.network_access && is_something(&granted["network"]["enabled"]) {
            let setting = self.setting("network_access");
            denied.add(
                PERMISSIONS,
                format!("/network/enabled: no network is to be granted ({setting})"),
            );
        }
        if !self.bounds_commands() {
            return;
        }
        let setting = self.setting("max_sandbox_mode");
        if self.max_sandbox_mode == SandboxMode::ReadOnly && may_write(&granted["fileSystem"]) {
            denied.add(PERMISSIONS, format!("/fileSystem: nothing is to be written ({setting})"));
        }
        let known = ["network", "fileSystem"];
        let parts = granted.as_object().into_iter().flatten();
        for (name, _) in
            parts.filter(|(name, value)| !known.contains(&name.as_str()) && is_something(value))
        {
            let name = crate::model::refusal::show(name);
            denied.add(PERMISSIONS, format!("{name} may be more than is allowed ({setting})"));
        }
    }
}

/// Whether anything may be written that is granted; what is not understood counts.
fn may_write(files: &Value) -> bool {
    let is_harmless = |name: &str, part: &Value| match name {
        "read" | "globScanMaxDepth" => true,
        "write" => part.as_array().is_some_and(Vec::is_empty),
        "entries" => part.as_array().is_some_and(|entries| {
            entries.iter().all(|entry| matches!(entry["access"].as_str(), Some("read" | "deny")))
        }),
        _ => false,
    };
    match files {
        Value::Null => false,
        Value::Object(parts) => {
            parts.iter().any(|(name, part)| !part.is_null() && !is_harmless(name, part))
        }
        _ => true,
    }
}

/// What an answer lets commands write to: the paths of each, or none where it is no path.
pub(crate) fn written(answer: &Answer) -> Vec<Option<String>> {
    let Answer::Permissions(answer) = answer else { return Vec::new() };
    let granted: Value = serde_json::from_str(&answer.permissions_json).unwrap_or_default();
    let files = &granted["fileSystem"];
    let list = |name: &str| files[name].as_array().cloned().unwrap_or_default();
    let plain = list("write").into_iter().map(|path| path.as_str().map(str::to_owned));
    let entries = list("entries")
        .into_iter()
        .filter(|entry| !matches!(entry["access"].as_str(), Some("read" | "deny")));
    let entries = entries.map(|entry| match entry["path"]["type"].as_str() {
        Some("path") => entry["path"]["path"].as_str().map(str::to_owned),
        _ => None,
    });
    plain.chain(entries).collect()
}
