//! What a thread's turns use where nobody says anything, and what they may do with it.
//!
//! Pure: [`Baseline`] is learned from what Codex answers, and gives with a turn's options its
//! [`Rights`].

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use crate::app_server::client::{CliConfig, CliDefaults, ThreadOpened, WorkspaceWriteConfig};
use crate::app_server::protected::{ProtectedPaths, Root, Shield};
use crate::app_server::settings::{self, Settings};
use crate::model::options::{ApprovalPolicy, ApprovalsReviewer, SandboxMode, ThreadOptions};
use crate::model::workspace::Workspace;

/// What a thread's turns use where neither the request nor the tool says anything. What a thread was
/// started with an override of is not known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Baseline {
    pub(super) model: String,
    /// The provider of the model, by its name in the configuration; empty where the CLI does not say.
    pub(super) model_provider: String,
    /// The effort; `None` means the model's own.
    pub(super) effort: Option<String>,
    /// The summary of the reasoning; `None` means the model's own.
    pub(super) reasoning_summary: Option<String>,
    /// The approval policy, as Codex spells it.
    approval_policy: Option<Value>,
    /// Who answers what Codex asks, as Codex spells it; null with CLIs that know no reviewers.
    approvals_reviewer: Option<Value>,
    /// The service tier: `None` with CLIs that do not say, where none is configured; null for none.
    pub(super) service_tier: Option<Value>,
    /// What commands may touch.
    access: Option<Access>,
    /// The defaults of the workspace-write sandbox.
    workspace_write: Option<WorkspaceWriteConfig>,
    /// How the roots of the turn that is about to begin keep what is protected.
    shield: Shield,
}

/// What commands may touch where nobody says anything.
#[derive(Debug, Clone, PartialEq)]
struct Access {
    /// The sandbox policy, as Codex spells it.
    sandbox_policy: Value,
    /// The permission profile of `config.toml` that is in its place, by its name; only with CLIs that
    /// can be given one.
    profile: Option<String>,
}

impl Baseline {
    /// What a thread uses that was loaded without any override.
    pub fn of(opened: ThreadOpened, defaults: &CliDefaults) -> Baseline {
        // An older CLI can't be given a profile by its name.
        let profile = opened.custom_profile().filter(|_| defaults.tells_settings);
        let profile = profile.map(str::to_owned);
        let workspace_write = workspace_write(&opened.sandbox)
            .or_else(|| defaults.config.sandbox_workspace_write.clone())
            .unwrap_or_default();
        Baseline {
            model: opened.model,
            model_provider: opened.model_provider,
            effort: opened.reasoning_effort,
            reasoning_summary: defaults.config.model_reasoning_summary.clone(),
            approval_policy: Some(opened.approval_policy),
            approvals_reviewer: Some(opened.approvals_reviewer.unwrap_or_default()),
            service_tier: opened
                .service_tier
                .or_else(|| defaults.config.service_tier.clone().map(Value::String)),
            workspace_write: Some(workspace_write),
            access: Some(Access { sandbox_policy: opened.sandbox, profile }),
            shield: Shield::default(),
        }
    }

    /// What is known before a thread is started of turns with these options: what the configuration of
    /// its directory says of the sandbox that they ask for.
    pub fn before_start(config: Option<&CliConfig>) -> Baseline {
        let configured = config.and_then(|config| config.sandbox_workspace_write.clone());
        Baseline { workspace_write: Some(configured.unwrap_or_default()), ..Baseline::default() }
    }

    /// What a thread uses that was started with these options: all but what was sent along, which is an
    /// override. `config` is that of its directory; see [`Baseline::needs_config`].
    pub fn of_started(
        opened: ThreadOpened,
        options: &ThreadOptions,
        defaults: &CliDefaults,
        config: Option<CliConfig>,
    ) -> Baseline {
        let mut baseline = Baseline::of(opened, defaults);
        let CliConfig { model, sandbox_workspace_write, .. } = config.unwrap_or_default();
        if options.model.is_some() {
            let default = model.or_else(|| defaults.default_model.clone());
            baseline.model = default.unwrap_or(baseline.model);
        }
        if options.approval_policy.is_some() {
            baseline.approval_policy = None;
        }
        let knows_reviewers = baseline.approvals_reviewer != Some(Value::Null);
        if options.approvals_reviewer.is_some() && knows_reviewers {
            baseline.approvals_reviewer = None;
        }
        if asks_for_access(options) {
            baseline.access = None;
            baseline.workspace_write =
                needs_workspace_write(options).then(|| sandbox_workspace_write.unwrap_or_default());
        }
        baseline
    }

    /// Whether the configuration tells what a thread that was started with these options does not.
    pub fn needs_config(options: &ThreadOptions) -> bool {
        options.model.is_some() || needs_workspace_write(options)
    }

    /// Whether all is known that turns with these options need.
    pub fn covers(&self, options: &ThreadOptions) -> bool {
        (options.approval_policy.is_some() || self.approval_policy.is_some())
            && (options.approvals_reviewer.is_some() || self.approvals_reviewer.is_some())
            && (asks_for_access(options) || self.access.is_some())
            && (!needs_workspace_write(options) || self.workspace_write.is_some())
    }

    /// Whether the CLI does not say the service tier, and none is configured.
    pub(crate) fn tells_no_service_tier(&self) -> bool {
        self.service_tier.is_none()
    }

    /// The approval policy of turns with these options.
    pub(super) fn approval_policy(&self, options: &ThreadOptions) -> Value {
        let asked = options.approval_policy.map(approval_policy);
        asked.or_else(|| self.approval_policy.clone()).unwrap_or_default()
    }

    /// Who answers what turns with these options ask; `None` where the CLI knows nobody but the caller,
    /// and nobody else is asked for.
    pub(super) fn approvals_reviewer(&self, options: &ThreadOptions) -> Option<Value> {
        let own = self.approvals_reviewer.as_ref();
        match options.approvals_reviewer {
            Some(ApprovalsReviewer::User) if own == Some(&Value::Null) => None,
            Some(asked) => Some(approvals_reviewer(asked)),
            None => own.filter(|own| !own.is_null()).cloned(),
        }
    }

    /// The permission profile of `config.toml` that turns with these options use.
    pub fn profile<'a>(&'a self, options: &'a ThreadOptions) -> Option<&'a str> {
        if asks_for_access(options) {
            let asked = options.permission_profile.as_deref();
            return asked.filter(|name| settings::is_custom_profile(name));
        }
        self.access.as_ref().and_then(|access| access.profile.as_deref())
    }

    /// The directories that turns with these options may write; `None` where no sandbox of the
    /// workspace-write kind says it.
    pub(crate) fn roots(
        &self,
        options: &ThreadOptions,
        workspace: &Workspace,
        protected: &ProtectedPaths,
    ) -> Option<Vec<Root>> {
        let policy = match options.permission_profile.as_deref() {
            Some(WORKSPACE_PROFILE) => workspace_policy(Vec::new()),
            Some(_) => return None,
            None => self.sandbox_policy(options, workspace),
        };
        let WorkspaceWriteConfig {
            exclude_tmpdir_env_var, exclude_slash_tmp, writable_roots, ..
        } = workspace_write(&policy)?;
        let Workspace { working_directory, additional_directories } = workspace;
        let mut roots = vec![Root {
            path: working_directory.clone(),
            field: "thread_options.working_directory".to_owned(),
            is_configured: false,
        }];
        for (at, path) in additional_directories.iter().enumerate() {
            roots.push(Root {
                path: path.clone(),
                field: format!("thread_options.additional_directories[{at}]"),
                is_configured: false,
            });
        }
        let configured = writable_roots.into_iter().map(PathBuf::from);
        roots.extend(configured.filter(|path| !additional_directories.contains(path)).map(
            |path| {
                let field = "thread_options.sandbox_mode".to_owned();
                Root { path, field, is_configured: true }
            },
        ));
        roots.extend((!exclude_slash_tmp).then(|| protected.slash_tmp()));
        roots.extend(protected.tmpdir().filter(|_| !exclude_tmpdir_env_var));
        Some(roots)
    }

    /// Has the next turn's roots keep what is protected.
    pub(crate) fn set_shield(&mut self, shield: Shield) {
        self.shield = shield;
    }

    /// What turns with these options may do.
    pub(super) fn rights<'a>(
        &'a self,
        options: &'a ThreadOptions,
        workspace: &'a Workspace,
    ) -> Rights<'a> {
        let profile = options.permission_profile.as_deref().or_else(|| self.profile(options));
        let access = match profile {
            // The same, and a profile has no further roots.
            Some(WORKSPACE_PROFILE) if !self.shield.roots.is_empty() => {
                AccessRight::SandboxPolicy(workspace_policy(self.shield.roots.clone()))
            }
            // The legacy policy would take the profile's place, and allow more.
            Some(name) => AccessRight::Permissions(name),
            None => AccessRight::SandboxPolicy(self.sandbox_policy(options, workspace)),
        };
        Rights {
            shields: &self.shield.roots,
            cwd: &workspace.working_directory,
            approval_policy: self.approval_policy(options),
            approvals_reviewer: self.approvals_reviewer(options),
            access,
        }
    }

    /// The same, to be compared with what Codex tells.
    pub fn settings(&self, options: &ThreadOptions, workspace: &Workspace) -> Settings {
        Settings::asked(&self.rights(options, workspace))
    }

    fn sandbox_policy(&self, options: &ThreadOptions, workspace: &Workspace) -> Value {
        let read_only = json!({ "type": "readOnly", "networkAccess": false });
        let own = self.access.as_ref().map(|access| &access.sandbox_policy);
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
                } = self.workspace_write.clone().unwrap_or_default();
                let Shield { roots: shields, left_out } = &self.shield;
                let configured = writable_roots.iter().map(Path::new);
                let configured = configured.filter(|root| !left_out.iter().any(|out| out == root));
                let asked = workspace.additional_directories.iter().chain(shields);
                let asked = asked.map(|root| root.as_path());
                json!({
                    "type": "workspaceWrite",
                    "writableRoots": configured.chain(asked).collect::<Vec<&Path>>(),
                    "networkAccess": options.network_access_enabled.unwrap_or(network_access),
                    "excludeTmpdirEnvVar": exclude_tmpdir_env_var,
                    "excludeSlashTmp": exclude_slash_tmp,
                })
            }
        }
    }
}

/// The part of the parameters of `turn/start` that decides over the turn's rights.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rights<'a> {
    pub(super) cwd: &'a Path,
    pub(super) approval_policy: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) approvals_reviewer: Option<Value>,
    #[serde(flatten)]
    pub(super) access: AccessRight<'a>,
    /// Which of the sandbox's roots lie in others and are there to keep what is protected.
    #[serde(skip)]
    pub(super) shields: &'a [PathBuf],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum AccessRight<'a> {
    /// A permission profile, by its name.
    Permissions(&'a str),
    SandboxPolicy(Value),
}

/// The built-in profile that is the workspace-write sandbox.
const WORKSPACE_PROFILE: &str = ":workspace";

/// The policy of [`WORKSPACE_PROFILE`], with these roots.
fn workspace_policy(roots: Vec<PathBuf>) -> Value {
    json!({
        "type": "workspaceWrite",
        "writableRoots": roots,
        "networkAccess": false,
        "excludeTmpdirEnvVar": false,
        "excludeSlashTmp": false,
    })
}

/// Whether the options say what commands may touch.
pub(crate) fn asks_for_access(options: &ThreadOptions) -> bool {
    options.sandbox_mode.is_some() || options.permission_profile.is_some()
}

fn needs_workspace_write(options: &ThreadOptions) -> bool {
    options.sandbox_mode == Some(SandboxMode::WorkspaceWrite)
}

/// In which respect a thread that was just started has more rights than the turn asks for that it was
/// started for. Nothing is known of what was not sent along: there its answer is what is asked for.
pub(crate) fn started_wider(
    granted: &Settings,
    asked: &Settings,
    options: &ThreadOptions,
) -> Option<String> {
    let says_approvals = options.approval_policy.is_some() || options.approvals_reviewer.is_some();
    let approvals = says_approvals.then(|| granted.asks_otherwise_than(asked)).flatten();
    let access = || asks_for_access(options).then(|| granted.loads_beyond(asked)).flatten();
    approvals.or_else(access)
}

/// The policy as Codex spells it.
pub(super) fn approval_policy(policy: ApprovalPolicy) -> Value {
    json!(match policy {
        ApprovalPolicy::Never => "never",
        // The protocol lost `on-failure`; `codex exec` itself reads it as this.
        ApprovalPolicy::OnRequest | ApprovalPolicy::OnFailure => "on-request",
        ApprovalPolicy::Untrusted => "untrusted",
    })
}

/// The reviewer as Codex spells it.
pub(super) fn approvals_reviewer(reviewer: ApprovalsReviewer) -> Value {
    json!(match reviewer {
        ApprovalsReviewer::User => "user",
        ApprovalsReviewer::AutoReview => "auto_review",
    })
}

/// The settings of a workspace-write sandbox, which a thread in it tells itself: those of a trusted
/// project included.
fn workspace_write(sandbox: &Value) -> Option<WorkspaceWriteConfig> {
    if sandbox["type"] != "workspaceWrite" {
        return None;
    }
    let flag = |key: &str| sandbox[key].as_bool().unwrap_or(false);
    let roots = sandbox["writableRoots"].as_array().into_iter().flatten();
    Some(WorkspaceWriteConfig {
        writable_roots: roots.filter_map(Value::as_str).map(str::to_owned).collect(),
        network_access: flag("networkAccess"),
        exclude_tmpdir_env_var: flag("excludeTmpdirEnvVar"),
        exclude_slash_tmp: flag("excludeSlashTmp"),
    })
}

/// What earlier turns of the loaded thread (or its rollout) have set, and the next one must take
/// away if it does not set it itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lingering {
    /// An effort other than the baseline's.
    pub effort: bool,
    /// A summary other than the baseline's.
    pub summary: bool,
    /// A service tier other than the baseline's, where that is not known.
    pub service_tier: bool,
}

impl Lingering {
    /// What a turn with these options leaves.
    pub fn after(options: &ThreadOptions, baseline: &Baseline) -> Lingering {
        let effort = options.model_reasoning_effort.as_deref();
        let summary = options.summary().map(|summary| summary.as_str());
        Lingering {
            effort: effort.is_some() && effort != baseline.effort.as_deref(),
            summary: summary.is_some() && summary != baseline.reasoning_summary.as_deref(),
            service_tier: options.service_tier.is_some() && baseline.service_tier.is_none(),
        }
    }
}
