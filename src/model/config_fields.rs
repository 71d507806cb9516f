//! What overrides of Codex's configuration say that options have fields for.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::options::{ApprovalPolicy, SandboxMode, ThreadOptions};

const SANDBOX_MODE: &str = "sandbox_mode";
const APPROVAL_POLICY: &str = "approval_policy";
const WORKSPACE_WRITE: &str = "sandbox_workspace_write";
const NETWORK_ACCESS: &str = "network_access";
const WRITABLE_ROOTS: &str = "writable_roots";

/// One that can't be read: its key, and what is wrong with it.
pub(crate) type Unreadable = (String, String);

impl ThreadOptions {
    /// Moves what `config` says of rights into the fields for them, unless a field says something itself.
    /// There they hold for one turn and are judged with the others; among the overrides they would hold
    /// for longer: of a `sandbox_mode` Codex makes a trust in the directory that is for good.
    ///
    /// # Errors
    /// All that can't be read.
    pub(crate) fn take_rights_from_config(&mut self) -> Result<(), Vec<Unreadable>> {
        let Some(config) = &mut self.config else { return Ok(()) };
        let mut unreadable = Vec::new();
        if let Some(mode) = config.remove(SANDBOX_MODE) {
            match sandbox_mode(&mode) {
                Some(mode) => self.sandbox_mode = self.sandbox_mode.or(Some(mode)),
                None => unreadable.push((
                    SANDBOX_MODE.to_owned(),
                    "is no mode; use read-only, workspace-write or danger-full-access".to_owned(),
                )),
            }
        }
        // The other form, an object, has no field.
        if config.get(APPROVAL_POLICY).is_some_and(|policy| !policy.is_object())
            && let Some(policy) = config.remove(APPROVAL_POLICY)
        {
            match approval_policy(&policy) {
                Some(policy) => self.approval_policy = self.approval_policy.or(Some(policy)),
                None => unreadable.push((
                    APPROVAL_POLICY.to_owned(),
                    "is no policy; use never, on-request, on-failure or untrusted".to_owned(),
                )),
            }
        }
        if let Some(access) = take_of_workspace_write(config, NETWORK_ACCESS) {
            match access.as_bool() {
                Some(access) => {
                    self.network_access_enabled = self.network_access_enabled.or(Some(access));
                }
                None => unreadable.push(of_workspace_write(NETWORK_ACCESS, "is no boolean")),
            }
        }
        if let Some(roots) = take_of_workspace_write(config, WRITABLE_ROOTS) {
            match paths(&roots) {
                Some(roots) if self.additional_directories.is_none() && !roots.is_empty() => {
                    self.additional_directories = Some(roots);
                }
                Some(_) => {}
                None => unreadable
                    .push(of_workspace_write(WRITABLE_ROOTS, "is no list of absolute paths")),
            }
        }
        if unreadable.is_empty() { Ok(()) } else { Err(unreadable) }
    }
}

fn of_workspace_write(key: &str, problem: &str) -> Unreadable {
    (format!("{WORKSPACE_WRITE}.{key}"), problem.to_owned())
}

/// It stands in a table, or has the table before a dot.
fn take_of_workspace_write(config: &mut Map<String, Value>, key: &str) -> Option<Value> {
    let dotted = config.remove(&format!("{WORKSPACE_WRITE}.{key}"));
    let table = config.get_mut(WORKSPACE_WRITE).and_then(Value::as_object_mut);
    let nested = table.and_then(|table| table.remove(key));
    if config.get(WORKSPACE_WRITE).is_some_and(|table| table == &Value::Object(Map::new())) {
        config.remove(WORKSPACE_WRITE);
    }
    dotted.or(nested)
}

fn sandbox_mode(word: &Value) -> Option<SandboxMode> {
    Some(match word.as_str()? {
        "read-only" => SandboxMode::ReadOnly,
        "workspace-write" => SandboxMode::WorkspaceWrite,
        "danger-full-access" => SandboxMode::DangerFullAccess,
        _ => return None,
    })
}

fn approval_policy(word: &Value) -> Option<ApprovalPolicy> {
    Some(match word.as_str()? {
        "never" => ApprovalPolicy::Never,
        "on-request" => ApprovalPolicy::OnRequest,
        "on-failure" => ApprovalPolicy::OnFailure,
        "untrusted" => ApprovalPolicy::Untrusted,
        _ => return None,
    })
}

fn paths(roots: &Value) -> Option<Vec<PathBuf>> {
    let path = |root: &Value| {
        let path = PathBuf::from(root.as_str()?);
        path.is_absolute().then_some(path)
    };
    roots.as_array()?.iter().map(path).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn options(config: Value) -> ThreadOptions {
        ThreadOptions { config: config.as_object().cloned(), ..ThreadOptions::default() }
    }

    #[test]
    fn rights_in_the_overrides_are_those_of_the_fields_which_beat_them() {
        let config = json!({
            "sandbox_mode": "workspace-write",
            "approval_policy": "on-request",
            "sandbox_workspace_write": { "writable_roots": ["/a"] },
            "sandbox_workspace_write.network_access": true,
            "model_verbosity": "low",
        });
        let mut taken = options(config.clone());
        taken.take_rights_from_config().unwrap();
        let rights = ThreadOptions {
            sandbox_mode: Some(SandboxMode::WorkspaceWrite),
            approval_policy: Some(ApprovalPolicy::OnRequest),
            network_access_enabled: Some(true),
            additional_directories: Some(vec![PathBuf::from("/a")]),
            ..options(json!({ "model_verbosity": "low" }))
        };
        assert_eq!(taken, rights);

        let said = ThreadOptions {
            sandbox_mode: Some(SandboxMode::ReadOnly),
            approval_policy: Some(ApprovalPolicy::Never),
            network_access_enabled: Some(false),
            additional_directories: Some(vec![PathBuf::from("/b")]),
            ..options(json!({ "model_verbosity": "low" }))
        };
        let mut taken = ThreadOptions { config: config.as_object().cloned(), ..said.clone() };
        taken.take_rights_from_config().unwrap();
        assert_eq!(taken, said);
    }

    #[test]
    fn what_has_no_field_stays_and_what_cannot_be_read_is_told() {
        let others = json!({
            "approval_policy": { "granular": { "rules": true } },
            "sandbox_workspace_write": { "exclude_slash_tmp": true },
        });
        let mut taken = options(others.clone());
        taken.take_rights_from_config().unwrap();
        assert_eq!(taken, options(others));
        let mut odd = options(json!({
            "sandbox_mode": "bogus",
            "approval_policy": 7,
            "sandbox_workspace_write": { "network_access": "yes", "writable_roots": ["a"] },
        }));
        let keys = odd.take_rights_from_config().unwrap_err().into_iter().map(|(key, _)| key);
        let keys: Vec<_> = keys.collect();
        assert_eq!(
            keys,
            [
                "sandbox_mode",
                "approval_policy",
                "sandbox_workspace_write.network_access",
                "sandbox_workspace_write.writable_roots",
            ]
        );
    }
}
