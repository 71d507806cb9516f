//! What a turn runs with, for whoever asked for it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::app_server::baseline::{AccessRight, Baseline, Rights};
use crate::model::event::TurnSettings;
use crate::model::options::{ReasoningSummary, ThreadOptions};
use crate::model::workspace::Workspace;
use crate::pb::{ApprovalPolicy, SandboxMode};

impl Baseline {
    /// What a turn with these options runs with.
    pub fn turn_settings(&self, options: &ThreadOptions, workspace: &Workspace) -> TurnSettings {
        let Rights { cwd, approval_policy, approvals_reviewer: _, access, shields } =
            self.rights(options, workspace);
        let effort = options.model_reasoning_effort.as_ref().or(self.effort.as_ref());
        let summary = options.summary().map(ReasoningSummary::as_str);
        let summary = summary.or(self.reasoning_summary.as_deref());
        let mut told = TurnSettings {
            model: options.model.as_ref().unwrap_or(&self.model).clone(),
            model_provider: self.model_provider.clone(),
            model_reasoning_effort: effort.cloned().unwrap_or_default(),
            reasoning_summary: summary.unwrap_or_default().to_owned(),
            working_directory: cwd.display().to_string(),
            ..TurnSettings::default()
        };
        told.set_approval_policy(match approval_policy.as_str() {
            Some("never") => ApprovalPolicy::Never,
            Some("on-request") => ApprovalPolicy::OnRequest,
            Some("on-failure") => ApprovalPolicy::OnFailure,
            Some("untrusted") => ApprovalPolicy::Untrusted,
            _ => ApprovalPolicy::Unspecified,
        });
        match access {
            AccessRight::Permissions(name) => told.permission_profile = name.to_owned(),
            AccessRight::SandboxPolicy(policy) => tell_sandbox(&policy, cwd, shields, &mut told),
        }
        told
    }
}

fn tell_sandbox(policy: &Value, cwd: &Path, shields: &[PathBuf], told: &mut TurnSettings) {
    told.network_access_enabled = policy["networkAccess"] == true;
    match policy["type"].as_str() {
        Some("readOnly") => told.set_sandbox_mode(SandboxMode::ReadOnly),
        Some("dangerFullAccess") => {
            told.set_sandbox_mode(SandboxMode::DangerFullAccess);
            told.network_access_enabled = true;
        }
        Some("workspaceWrite") => {
            told.set_sandbox_mode(SandboxMode::WorkspaceWrite);
            let may_write = |excluded: &str| policy[excluded] != true;
            let temporary = [("excludeSlashTmp", "/tmp"), ("excludeTmpdirEnvVar", "$TMPDIR")];
            let temporary = temporary.into_iter().filter(|(excluded, _)| may_write(excluded));
            let roots = policy["writableRoots"].as_array().into_iter().flatten();
            // What lies in another root, and is one only to keep something in it, is told with that.
            let is_told = |root: &&str| {
                Path::new(root) != cwd && !shields.iter().any(|shield| shield == Path::new(root))
            };
            let roots = roots.filter_map(Value::as_str).filter(is_told);
            told.writable_roots =
                temporary.map(|(_, path)| path).chain(roots).map(str::to_owned).collect();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sandbox(policy: Value) -> TurnSettings {
        let mut told = TurnSettings::default();
        tell_sandbox(&policy, Path::new("/w"), &["/extra/shield".into()], &mut told);
        told
    }

    #[test]
    fn a_sandbox_is_told_with_all_that_it_lets_be_written() {
        let mut policy = json!({
            "type": "workspaceWrite",
            "writableRoots": ["/w", "/extra", "/extra/shield"],
            "networkAccess": true,
            "excludeTmpdirEnvVar": false,
            "excludeSlashTmp": false,
        });
        let told = sandbox(policy.clone());
        assert_eq!(told.sandbox_mode(), SandboxMode::WorkspaceWrite);
        assert!(told.network_access_enabled);
        assert_eq!(told.writable_roots, ["/tmp", "$TMPDIR", "/extra"]);
        policy["excludeSlashTmp"] = json!(true);
        policy["excludeTmpdirEnvVar"] = json!(true);
        assert_eq!(sandbox(policy).writable_roots, ["/extra"]);
        let told = sandbox(json!({ "type": "readOnly", "networkAccess": false }));
        assert_eq!(told.sandbox_mode(), SandboxMode::ReadOnly);
        assert!(!told.network_access_enabled && told.writable_roots.is_empty());
        assert!(sandbox(json!({ "type": "dangerFullAccess" })).network_access_enabled);
        let newer = sandbox(json!({ "type": "somethingNew" }));
        assert_eq!(newer.sandbox_mode(), SandboxMode::Unspecified);
    }
}
