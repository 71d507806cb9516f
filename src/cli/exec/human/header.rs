//! What `codex exec` tells before the turn: what it runs with, and what was said.

use super::paint::{Paint, Style};
use crate::pb;

/// What is told at the top.
#[derive(Debug, Clone, Default)]
pub(in crate::cli::exec) struct Header {
    /// The version of the CLI; empty where it is not known.
    pub(in crate::cli::exec) cli_version: String,
    /// What was said, all of it.
    pub(in crate::cli::exec) prompt: String,
    /// What the turn was asked to run with, until it is known what it runs with.
    pub(in crate::cli::exec) settings: pb::TurnSettings,
    pub(super) thread_id: String,
}

impl Header {
    /// What a turn was asked to run with.
    pub(in crate::cli::exec) fn of(
        request: &pb::RunTurnRequest,
        cli_version: String,
        prompt: String,
    ) -> Header {
        let options = request.thread_options.clone().unwrap_or_default();
        let settings = pb::TurnSettings {
            working_directory: options.working_directory.clone().unwrap_or_default(),
            model: options.model.clone().unwrap_or_default(),
            model_reasoning_effort: options.model_reasoning_effort_name.clone(),
            approval_policy: options.approval_policy,
            sandbox_mode: options.sandbox_mode,
            ..Default::default()
        };
        Header { cli_version, prompt, settings, thread_id: String::new() }
    }

    pub(super) fn text(&self, paint: Paint) -> String {
        let pb::TurnSettings {
            model,
            model_provider,
            model_reasoning_effort,
            reasoning_summary,
            working_directory,
            ..
        } = &self.settings;
        let or_none = |text: &'_ str| if text.is_empty() { "none" } else { text }.to_owned();
        let approval = match self.settings.approval_policy() {
            pb::ApprovalPolicy::Unspecified | pb::ApprovalPolicy::Never => "never",
            pb::ApprovalPolicy::OnRequest => "on-request",
            pb::ApprovalPolicy::OnFailure => "on-failure",
            pb::ApprovalPolicy::Untrusted => "untrusted",
        };
        let lines = [
            ("workdir", working_directory.clone()),
            ("model", model.clone()),
            ("provider", model_provider.clone()),
            ("approval", approval.to_owned()),
            ("sandbox", sandbox(&self.settings)),
            ("reasoning effort", or_none(model_reasoning_effort)),
            ("reasoning summaries", or_none(reasoning_summary)),
            ("session id", self.thread_id.clone()),
        ];
        let version = match self.cli_version.as_str() {
            "" => String::new(),
            version => format!(" v{version}"),
        };
        let mut text = format!("OpenAI Codex{version}\n--------\n");
        for (key, value) in lines {
            text += &format!("{} {value}\n", paint.styled(&[Style::Bold], format!("{key}:")));
        }
        text + &format!("--------\n{}\n{}\n", paint.styled(&[Style::Cyan], "user"), self.prompt)
    }
}

fn sandbox(settings: &pb::TurnSettings) -> String {
    let network = if settings.network_access_enabled { " (network access enabled)" } else { "" };
    match settings.sandbox_mode() {
        pb::SandboxMode::ReadOnly => format!("read-only{network}"),
        pb::SandboxMode::DangerFullAccess => "danger-full-access".to_owned(),
        pb::SandboxMode::WorkspaceWrite => {
            let roots: Vec<&str> = std::iter::once("workdir")
                .chain(settings.writable_roots.iter().map(String::as_str))
                .collect();
            format!("workspace-write [{}]{network}", roots.join(", "))
        }
        pb::SandboxMode::Unspecified => settings.permission_profile.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sandboxes_are_told_as_the_real_one_does() {
        let mut settings = pb::TurnSettings::default();
        settings.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
        settings.writable_roots = ["/tmp", "$TMPDIR", "/extra"].map(str::to_owned).to_vec();
        assert_eq!(sandbox(&settings), "workspace-write [workdir, /tmp, $TMPDIR, /extra]");
        settings.network_access_enabled = true;
        assert!(sandbox(&settings).ends_with("] (network access enabled)"));
        settings.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
        assert_eq!(sandbox(&settings), "danger-full-access");
        let profile = pb::TurnSettings { permission_profile: "p".to_owned(), ..Default::default() };
        assert_eq!(sandbox(&profile), "p");
    }
}
