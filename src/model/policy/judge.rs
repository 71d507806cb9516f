//! Options and inputs, held against a policy.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{ImagePolicy, Policy, keys, word};
use crate::model::options::{
    ApprovalPolicy, SandboxMode, ThreadOptions, WEB_SEARCH_KEY, WebSearchMode,
};
use crate::model::pattern::any_matches;
use crate::model::refusal::{Faults, show};
use crate::model::request::UserInput;

const SANDBOX_MODES: [SandboxMode; 3] =
    [SandboxMode::ReadOnly, SandboxMode::WorkspaceWrite, SandboxMode::DangerFullAccess];
const WEB_SEARCH_MODES: [WebSearchMode; 3] =
    [WebSearchMode::Disabled, WebSearchMode::Cached, WebSearchMode::Live];

impl Policy {
    /// Adds what of these options, those of all layers together, is denied, by the field's path below
    /// `at`: whatever goes by its value. Keys and variables are the request's matter
    /// ([`Policy::judge_config`], [`Policy::judge_environment`]), directories the disk's.
    pub(crate) fn judge(&self, at: &str, options: &ThreadOptions, denied: &mut Faults) {
        let mut judged = Judged { policy: self, at, denied };
        judged.sandbox(options);
        judged.profile(options);
        judged.approvals(options);
        judged.web_search(options);
        if let Some(model) = &options.model {
            judged.model("model", model);
        }
        if !self.dynamic_tools
            && options.dynamic_tools.as_ref().is_some_and(|some| !some.is_empty())
        {
            judged.deny("dynamic_tools", "functions are not to be lent here", "dynamic_tools");
        }
    }

    /// Adds what the overrides of a request set that nobody may, below `at`.
    pub(crate) fn judge_config(&self, at: &str, config: &Map<String, Value>, denied: &mut Faults) {
        keys::denied(config, &self.config_keys, &mut |path| {
            let setting = self.setting("config_keys");
            let fault = format!(
                "is no key that callers may set here; who runs the sidecar can allow it with {setting}"
            );
            denied.add(format!("{at}[{}]", show(path)), fault);
            denied.is_full()
        });
    }

    /// Adds the variables of a request that nobody may set, below `at`.
    pub(crate) fn judge_environment<'a>(
        &self,
        at: &str,
        names: impl Iterator<Item = &'a str>,
        denied: &mut Faults,
    ) {
        for name in names.filter(|name| !any_matches(&self.environment, name)) {
            let setting = self.setting("environment");
            let fault = format!(
                "is no variable that callers may set here; who runs the sidecar can allow it with \
                 {setting}"
            );
            denied.add(format!("{at}[{}]", show(name)), fault);
        }
    }

    /// Adds the inputs that nobody may give.
    pub(crate) fn judge_inputs(&self, inputs: &[UserInput], denied: &mut Faults) {
        for (at, input) in inputs.iter().enumerate() {
            let (field, fault) = match (input, self.images) {
                (UserInput::LocalImage(_), ImagePolicy::Data) => {
                    ("local_image", "images are not read from the disk here; send the data")
                }
                (UserInput::LocalImage(_), ImagePolicy::None) => {
                    ("local_image", "no images are taken here")
                }
                (UserInput::ImageUrl(_), ImagePolicy::None) => {
                    ("image_url", "no images are taken here")
                }
                _ => continue,
            };
            let setting = self.setting("images");
            denied.add(format!("inputs[{at}].{field}"), format!("{fault} ({setting})"));
        }
    }

    /// Adds the model that a turn would have where nobody names one, if it may not be.
    pub(crate) fn judge_unnamed_model(&self, model: &str, denied: &mut Faults) {
        let Some(models) = &self.models else { return };
        if !any_matches(models, model) {
            let fault = format!(
                "is not given, and the model that Codex would take, {}, is none of those that are \
                 allowed: {} ({}); name one of them",
                show(model),
                models.join(", "),
                self.setting("models")
            );
            denied.add("thread_options.model", fault);
        }
    }

    /// Has the least hold of what is bounded where nobody says anything.
    pub(crate) fn settle(&self, options: &mut ThreadOptions) {
        let bounds_access =
            self.bounds_commands() || !self.network_access || self.permission_profiles.is_some();
        if bounds_access && options.sandbox_mode.is_none() && options.permission_profile.is_none() {
            options.sandbox_mode = Some(SandboxMode::ReadOnly);
        }
        // Of a profile nobody can say it.
        if !self.network_access && options.permission_profile.is_none() {
            options.network_access_enabled = Some(false);
        }
        if let (Some([first, ..]), None) =
            (self.approval_policies.as_deref(), options.approval_policy)
        {
            options.approval_policy = Some(*first);
        }
        if let (Some([first, ..]), None) = (self.reviewers(), options.approvals_reviewer) {
            options.approvals_reviewer = Some(*first);
        }
        let says_search = options.web_search().is_some() || configured_search(options).is_some();
        if self.max_web_search < WebSearchMode::Live && !says_search {
            options.web_search_mode = Some(WebSearchMode::Disabled);
        }
    }
}

struct Judged<'a> {
    policy: &'a Policy,
    at: &'a str,
    denied: &'a mut Faults,
}

impl Judged<'_> {
    fn deny(&mut self, field: &str, fault: &str, key: &str) {
        let setting = self.policy.setting(key);
        self.denied.add(format!("{}{field}", self.at), format!("{fault} ({setting})"));
    }

    fn sandbox(&mut self, options: &ThreadOptions) {
        if let Some(mode) = options.sandbox_mode {
            self.mode("sandbox_mode", &word(&mode), mode);
        }
        if options.network_access_enabled == Some(true) && !self.policy.network_access {
            let fault = "true is not allowed: commands have no network here";
            self.deny("network_access_enabled", fault, "network_access");
        }
    }

    /// `value` says this mode.
    fn mode(&mut self, field: &str, value: &str, mode: SandboxMode) {
        let Policy { max_sandbox_mode, network_access, .. } = self.policy;
        if mode > *max_sandbox_mode {
            let allowed = up_to(&SANDBOX_MODES, *max_sandbox_mode);
            let fault = format!("{value} is more than is allowed, {allowed}");
            self.deny(field, &fault, "max_sandbox_mode");
        } else if mode == SandboxMode::DangerFullAccess && !network_access {
            let fault = format!("{value} has the network, which commands must not have here");
            self.deny(field, &fault, "network_access");
        }
    }

    fn profile(&mut self, options: &ThreadOptions) {
        const FIELD: &str = "permission_profile";
        let Some(name) = options.permission_profile.as_deref() else { return };
        let value = show(name);
        let listed = self.policy.permission_profiles.as_ref();
        if let Some(listed) = listed.filter(|listed| !any_matches(*listed, name)) {
            let fault = match listed.as_slice() {
                [] => format!("{value} is not allowed: no profile is"),
                listed => {
                    format!("{value} is none of those that are allowed: {}", listed.join(", "))
                }
            };
            return self.deny(FIELD, &fault, "permission_profiles");
        }
        match built_in(name) {
            Some(mode) => self.mode(FIELD, &value, mode),
            // The owner has looked into those that are listed.
            None if listed.is_some() => {}
            None => {
                let key = match (self.policy.bounds_commands(), self.policy.network_access) {
                    (true, _) => "max_sandbox_mode",
                    (false, false) => "network_access",
                    (false, true) => return,
                };
                let fault = format!(
                    "{value} may allow more than is allowed here; only those that \
                     permission_profiles names are"
                );
                self.deny(FIELD, &fault, key);
            }
        }
    }

    fn approvals(&mut self, options: &ThreadOptions) {
        // Codex takes the one for the other.
        let means = |policy: ApprovalPolicy| match policy {
            ApprovalPolicy::OnFailure => ApprovalPolicy::OnRequest,
            other => other,
        };
        if let (Some(asked), Some(allowed)) =
            (options.approval_policy, &self.policy.approval_policies)
            && !allowed.iter().any(|one| means(*one) == means(asked))
        {
            let fault = none_of(&asked, allowed);
            self.deny("approval_policy", &fault, "approval_policies");
        }
        if let (Some(asked), Some(allowed)) = (options.approvals_reviewer, self.policy.reviewers())
            && !allowed.contains(&asked)
        {
            let fault = none_of(&asked, allowed);
            let key = match self.policy.approvals_reviewers {
                Some(_) => "approvals_reviewers",
                None => "max_sandbox_mode",
            };
            self.deny("approvals_reviewer", &fault, key);
        }
    }

    fn web_search(&mut self, options: &ThreadOptions) {
        let most = self.policy.max_web_search;
        let allowed = || up_to(&WEB_SEARCH_MODES, most);
        if let Some(mode) = options.web_search().filter(|mode| *mode > most) {
            let (field, value) = match options.web_search_mode {
                Some(_) => ("web_search_mode", word(&mode)),
                None => ("web_search_enabled", "true, which is live,".to_owned()),
            };
            let fault = format!("{value} is more than is allowed, {}", allowed());
            self.deny(field, &fault, "max_web_search");
        }
        // Modes that have no name here are between the two at best.
        if let Some(mode) = configured_search(options).filter(|_| most < WebSearchMode::Live) {
            let fault = format!("{mode} may be more than is allowed, {}", allowed());
            self.deny(&format!("config[{WEB_SEARCH_KEY:?}]"), &fault, "max_web_search");
        }
    }

    fn model(&mut self, field: &str, model: &str) {
        let Some(models) = &self.policy.models else { return };
        if !any_matches(models, model) {
            let allowed = models.join(", ");
            let fault = format!("{} is none of those that are allowed: {allowed}", show(model));
            self.deny(field, &fault, "models");
        }
    }
}

/// What `config` says of the search that its field has no value for.
fn configured_search(options: &ThreadOptions) -> Option<&Value> {
    options.config.as_ref()?.get(WEB_SEARCH_KEY)
}

/// The sandbox of a profile that the CLI has itself.
fn built_in(profile: &str) -> Option<SandboxMode> {
    Some(match profile {
        ":read-only" => SandboxMode::ReadOnly,
        ":workspace" => SandboxMode::WorkspaceWrite,
        ":danger-full-access" => SandboxMode::DangerFullAccess,
        _ => return None,
    })
}

fn up_to<T: Serialize + PartialOrd>(modes: &[T], most: T) -> String {
    let words: Vec<String> = modes.iter().filter(|mode| **mode <= most).map(word).collect();
    words.join(" or ")
}

fn none_of<T: Serialize>(asked: &T, allowed: &[T]) -> String {
    let allowed: Vec<String> = allowed.iter().map(word).collect();
    format!("{} is none of those that are allowed: {}", word(asked), allowed.join(", "))
}
