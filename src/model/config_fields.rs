//! What overrides of Codex's configuration say that options have fields for.

use std::path::{Component, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::options::{REASONING_SUMMARY_KEY, ThreadOptions, WEB_SEARCH_KEY};

const MODEL: &str = "model";
const SANDBOX_MODE: &str = "sandbox_mode";
const APPROVAL_POLICY: &str = "approval_policy";
const APPROVALS_REVIEWER: &str = "approvals_reviewer";
const WORKSPACE_WRITE: &str = "sandbox_workspace_write";
const NETWORK_ACCESS: &str = "network_access";
const WRITABLE_ROOTS: &str = "writable_roots";

/// One that can't be read: its key, and what is wrong with it.
pub(crate) type Unreadable = (String, String);

impl ThreadOptions {
    /// Moves what `config` says that there are fields for into these, unless a field says something
    /// itself. There they hold for one turn and are judged with the others; among the overrides they would
    /// hold for longer: of a `sandbox_mode` Codex makes a trust in the directory that is for good. What
    /// only Codex understands of it stays.
    ///
    /// # Errors
    /// All that can't be read.
    pub(crate) fn take_fields_from_config(&mut self) -> Result<(), Vec<Unreadable>> {
        let Some(config) = &mut self.config else { return Ok(()) };
        let mut unreadable = Vec::new();
        let mut note = |key: String, problem: &str| unreadable.push((key, problem.to_owned()));
        if let Some(model) = config.shift_remove(MODEL) {
            match model.as_str().map(str::trim).filter(|name| !name.is_empty()) {
                Some(name) => self.model = self.model.take().or_else(|| Some(name.to_owned())),
                None => note(MODEL.to_owned(), "is no model's name"),
            }
        }
        if let Some(mode) = config.shift_remove(SANDBOX_MODE) {
            match read(&mode) {
                Some(mode) => self.sandbox_mode = self.sandbox_mode.or(Some(mode)),
                None => note(
                    SANDBOX_MODE.to_owned(),
                    "is no mode; use read-only, workspace-write or danger-full-access",
                ),
            }
        }
        // The other form, an object, has no field.
        if config.get(APPROVAL_POLICY).is_some_and(|policy| !policy.is_object())
            && let Some(policy) = config.shift_remove(APPROVAL_POLICY)
        {
            match read(&policy) {
                Some(policy) => self.approval_policy = self.approval_policy.or(Some(policy)),
                None => note(
                    APPROVAL_POLICY.to_owned(),
                    "is no policy; use never, on-request, on-failure or untrusted",
                ),
            }
        }
        if let Some(summary) = config.shift_remove(REASONING_SUMMARY_KEY) {
            match read(&summary) {
                Some(summary) => self.reasoning_summary = self.reasoning_summary.or(Some(summary)),
                None => note(
                    REASONING_SUMMARY_KEY.to_owned(),
                    "is no summary; use auto, concise, detailed or none",
                ),
            }
        }
        if let Some(reviewer) = config.get(APPROVALS_REVIEWER).and_then(read) {
            config.shift_remove(APPROVALS_REVIEWER);
            self.approvals_reviewer = self.approvals_reviewer.or(Some(reviewer));
        }
        if let Some(mode) = config.get(WEB_SEARCH_KEY).and_then(read) {
            config.shift_remove(WEB_SEARCH_KEY);
            if self.web_search_mode.is_none() && self.web_search_enabled.is_none() {
                self.web_search_mode = Some(mode);
            }
        }
        if let Some(access) = take_of_workspace_write(config, NETWORK_ACCESS) {
            match access.as_bool() {
                Some(access) => {
                    self.network_access_enabled = self.network_access_enabled.or(Some(access));
                }
                None => note(of_workspace_write(NETWORK_ACCESS), "is no boolean"),
            }
        }
        if let Some(roots) = take_of_workspace_write(config, WRITABLE_ROOTS) {
            match paths(&roots) {
                Some(roots) if self.additional_directories.is_none() && !roots.is_empty() => {
                    self.additional_directories = Some(roots);
                }
                Some(_) => {}
                None => note(
                    of_workspace_write(WRITABLE_ROOTS),
                    "is no list of absolute paths without ..",
                ),
            }
        }
        if unreadable.is_empty() { Ok(()) } else { Err(unreadable) }
    }
}

/// The value that the CLI's word means.
fn read<T: DeserializeOwned>(word: &Value) -> Option<T> {
    word.as_str().and_then(|_| T::deserialize(word).ok())
}

fn of_workspace_write(key: &str) -> String {
    format!("{WORKSPACE_WRITE}.{key}")
}

/// It stands in a table, or has the table before a dot.
fn take_of_workspace_write(config: &mut Map<String, Value>, key: &str) -> Option<Value> {
    let dotted = config.shift_remove(&format!("{WORKSPACE_WRITE}.{key}"));
    let table = config.get_mut(WORKSPACE_WRITE).and_then(Value::as_object_mut);
    let nested = table.and_then(|table| table.shift_remove(key));
    if config.get(WORKSPACE_WRITE).is_some_and(|table| table == &Value::Object(Map::new())) {
        config.shift_remove(WORKSPACE_WRITE);
    }
    dotted.or(nested)
}

fn paths(roots: &Value) -> Option<Vec<PathBuf>> {
    let path = |root: &Value| {
        let path = PathBuf::from(root.as_str()?);
        let plain = |part: Component<'_>| part != Component::ParentDir;
        let is_plain = path.is_absolute() && path.components().all(plain);
        (is_plain && !path.to_string_lossy().contains('\0')).then_some(path)
    };
    roots.as_array()?.iter().map(path).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::options::{
        ApprovalPolicy, ApprovalsReviewer, ReasoningSummary, SandboxMode, WebSearchMode,
    };

    fn options(config: Value) -> ThreadOptions {
        ThreadOptions { config: config.as_object().cloned(), ..ThreadOptions::default() }
    }

    #[test]
    fn what_the_overrides_say_is_what_the_fields_say_which_beat_them() {
        let config = json!({
            "sandbox_mode": "workspace-write",
            "approval_policy": "on-request",
            "sandbox_workspace_write": { "writable_roots": ["/a"] },
            "sandbox_workspace_write.network_access": true,
            "model_verbosity": "low",
            "model": " m ",
            "model_reasoning_summary": "concise",
            "approvals_reviewer": "auto_review",
            "web_search": "live",
        });
        let mut taken = options(config.clone());
        taken.take_fields_from_config().unwrap();
        let rights = ThreadOptions {
            sandbox_mode: Some(SandboxMode::WorkspaceWrite),
            approval_policy: Some(ApprovalPolicy::OnRequest),
            network_access_enabled: Some(true),
            additional_directories: Some(vec![PathBuf::from("/a")]),
            model: Some("m".to_owned()),
            reasoning_summary: Some(ReasoningSummary::Concise),
            approvals_reviewer: Some(ApprovalsReviewer::AutoReview),
            web_search_mode: Some(WebSearchMode::Live),
            ..options(json!({ "model_verbosity": "low" }))
        };
        assert_eq!(taken, rights);

        let said = ThreadOptions {
            sandbox_mode: Some(SandboxMode::ReadOnly),
            approval_policy: Some(ApprovalPolicy::Never),
            network_access_enabled: Some(false),
            additional_directories: Some(vec![PathBuf::from("/b")]),
            model: Some("n".to_owned()),
            reasoning_summary: Some(ReasoningSummary::None),
            approvals_reviewer: Some(ApprovalsReviewer::User),
            web_search_enabled: Some(false),
            ..options(json!({ "model_verbosity": "low" }))
        };
        let mut taken = ThreadOptions { config: config.as_object().cloned(), ..said.clone() };
        taken.take_fields_from_config().unwrap();
        assert_eq!(taken, said);
    }

    #[test]
    fn what_has_no_field_stays_and_what_cannot_be_read_is_told() {
        let others = json!({
            "approval_policy": { "granular": { "rules": true } },
            "sandbox_workspace_write": { "exclude_slash_tmp": true },
            "web_search": "indexed",
            "approvals_reviewer": "somebody",
        });
        let mut taken = options(others.clone());
        taken.take_fields_from_config().unwrap();
        assert_eq!(taken, options(others));
        let mut odd = options(json!({
            "sandbox_mode": "bogus",
            "approval_policy": 7,
            "model": { "x": 1 },
            "model_reasoning_summary": "loud",
            "sandbox_workspace_write": { "network_access": "yes", "writable_roots": ["a"] },
        }));
        let keys = odd.take_fields_from_config().unwrap_err().into_iter().map(|(key, _)| key);
        let keys: Vec<_> = keys.collect();
        assert_eq!(
            keys,
            [
                "model",
                "sandbox_mode",
                "approval_policy",
                "model_reasoning_summary",
                "sandbox_workspace_write.network_access",
                "sandbox_workspace_write.writable_roots",
            ]
        );
    }
}
