//! What the answer to a question must not let be written.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::{ProtectedPaths, Resolved};
use crate::model::question::{
    Answer, ApprovalDecision, CommandApproval, FileChangeApproval, PermissionsApproval, Question,
    QuestionKind,
};
use crate::model::refusal::FieldViolation;

/// Holds the answers to one question against what is protected.
#[derive(Debug)]
pub(crate) struct Denials {
    protected: ProtectedPaths,
    // What would be written with a yes.
    asked: Vec<PathBuf>,
    working_directory: PathBuf,
}

impl Denials {
    /// Those of this question.
    pub(crate) fn of(question: &Question, protected: &ProtectedPaths) -> Denials {
        let mut denials = Denials {
            protected: protected.clone(),
            asked: Vec::new(),
            working_directory: PathBuf::new(),
        };
        if protected.is_empty() {
            return denials;
        }
        match &question.kind {
            Some(QuestionKind::CommandApproval(CommandApproval {
                additional_permissions_json,
                working_directory,
                ..
            })) => {
                denials.working_directory = working_directory.into();
                denials.asked = denials.written(additional_permissions_json);
            }
            Some(QuestionKind::FileChangeApproval(FileChangeApproval {
                grant_root,
                changes,
                ..
            })) => {
                let roots = Some(grant_root).filter(|root| !root.is_empty()).into_iter();
                let paths = changes.iter().flat_map(|change| [&change.path, &change.move_path]);
                let paths = roots.chain(paths).filter(|path| !path.is_empty());
                denials.asked = paths.map(|path| plain(Path::new(path))).collect();
            }
            Some(QuestionKind::PermissionsApproval(PermissionsApproval {
                working_directory,
                ..
            })) => denials.working_directory = working_directory.into(),
            Some(_) | None => {}
        }
        denials
    }

    /// Looks whether an answer lets something protected be written, by the paths as they are written.
    ///
    /// # Errors
    /// What does so, by the answer's field.
    pub(crate) fn check(&self, answer: &Answer) -> Result<(), Vec<FieldViolation>> {
        self.hold(answer, |path| self.protected.denied_grant(path))
    }

    /// The same by where the paths lead now: what is written for may make links. Blocks.
    ///
    /// # Errors
    /// As [`Denials::check`].
    pub(crate) fn check_on_disk(&self, answer: &Answer) -> Result<(), Vec<FieldViolation>> {
        self.hold(answer, |path| self.protected.denied_grant(&Resolved::of(path).path))
    }

    fn hold(
        &self,
        answer: &Answer,
        denied: impl Fn(&Path) -> Option<String>,
    ) -> Result<(), Vec<FieldViolation>> {
        if self.protected.is_empty() {
            return Ok(());
        }
        let (field, written) = match answer {
            Answer::Approval(answer) => match answer.decision() {
                ApprovalDecision::Decline | ApprovalDecision::Cancel => return Ok(()),
                _ => ("approval.decision", self.asked.clone()),
            },
            Answer::Permissions(answer) => {
                ("permissions.permissions_json", self.written(&answer.permissions_json))
            }
            Answer::UserQuestions(_) | Answer::Elicitation(_) | Answer::ToolCall(_) => {
                return Ok(());
            }
        };
        let denied = written.iter().filter_map(|path| denied(path));
        let denied: Vec<_> = denied.map(|denied| FieldViolation::new(field, denied)).collect();
        if denied.is_empty() { Ok(()) } else { Err(denied) }
    }

    /// What these permissions let be written.
    fn written(&self, permissions_json: &str) -> Vec<PathBuf> {
        let permissions: Value = serde_json::from_str(permissions_json).unwrap_or_default();
        let files = &permissions["fileSystem"];
        let list = |name: &str| files[name].as_array().into_iter().flatten();
        let texts = list("write").map(|path| self.path(&serde_json::json!({ "path": path })));
        let entries = list("entries").filter(|entry| entry["access"] == "write");
        texts.chain(entries.map(|entry| self.path(&entry["path"]))).collect()
    }

    /// Where an entry is; the whole where that is not known.
    fn path(&self, path: &Value) -> PathBuf {
        let whole = || PathBuf::from("/");
        if let Some(path) = path["path"].as_str() {
            return plain(Path::new(path));
        }
        let place = match path["value"]["kind"].as_str() {
            Some("slash_tmp") => self.protected.slash_tmp.clone(),
            Some("tmpdir") => self.protected.tmpdir.clone().unwrap_or_else(whole),
            Some("project_roots") if self.working_directory.is_absolute() => {
                self.working_directory.clone()
            }
            _ => whole(),
        };
        match path["value"]["subpath"].as_str() {
            Some(below) => plain(&place.join(below)),
            None => place,
        }
    }
}

/// The path without `.` and `..`; the whole where it is relative to what is not known.
fn plain(path: &Path) -> PathBuf {
    if !path.is_absolute() {
        return "/".into();
    }
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::app_server::protected::ProtectedPath;
    use crate::model::item::ChangedFile;
    use crate::model::question::{ApprovalAnswer, PermissionsAnswer};

    fn protected() -> ProtectedPaths {
        let home = ProtectedPath::new("CODEX_HOME", Path::new("/nowhere/w/.codex"));
        ProtectedPaths::new(vec![home], Some(Path::new("/nowhere/tmp"))).with_cli(true)
    }

    fn denied(kind: QuestionKind, answer: &Answer) -> Vec<String> {
        let question = Question::new(None, kind);
        assert_eq!(Denials::of(&question, &ProtectedPaths::default()).check(answer), Ok(()));
        let denied = Denials::of(&question, &protected()).check(answer);
        denied.err().into_iter().flatten().map(|denied| denied.field).collect()
    }

    #[test]
    fn permissions_are_granted_beside_what_is_protected_and_not_around_or_in_it() {
        let grants = |files: Value| {
            let asked = PermissionsApproval {
                working_directory: "/nowhere/else".to_owned(),
                ..Default::default()
            };
            let answer = PermissionsAnswer {
                permissions_json: json!({ "fileSystem": files }).to_string(),
                ..Default::default()
            };
            let kind = QuestionKind::PermissionsApproval(asked);
            denied(kind, &Answer::Permissions(answer))
        };
        let entry =
            |path: Value, access: &str| json!({ "entries": [{ "path": path, "access": access }] });
        let path = |path: &str| json!({ "type": "path", "path": path });
        let special = |kind: &str| json!({ "type": "special", "value": { "kind": kind } });
        for allowed in [
            json!({ "write": ["/nowhere/w/sub", "/opt"], "read": ["/"] }),
            entry(path("/nowhere/w/.codexed"), "write"),
            entry(path("/nowhere/w/.codex"), "read"),
            entry(special("tmpdir"), "write"),
            entry(special("project_roots"), "write"),
        ] {
            assert_eq!(grants(allowed.clone()), [""; 0], "{allowed}");
        }
        for too_much in [
            json!({ "write": ["/nowhere/w"] }),
            json!({ "write": ["/nowhere/w/.codex/config.toml"] }),
            json!({ "write": ["/nowhere/w/sub/../.codex"] }),
            json!({ "write": ["relative"] }),
            entry(path("/nowhere/w/.codex"), "write"),
            entry(special("root"), "write"),
            entry(json!({ "type": "glob_pattern", "pattern": "/nowhere/**" }), "write"),
        ] {
            assert_eq!(grants(too_much.clone()), ["permissions.permissions_json"], "{too_much}");
        }
    }

    #[test]
    fn a_command_or_patch_that_would_write_what_is_protected_can_only_be_declined() {
        let decided = |decision: ApprovalDecision| {
            Answer::Approval(ApprovalAnswer { decision: decision.into(), ..Default::default() })
        };
        let command = |path: &str| {
            QuestionKind::CommandApproval(CommandApproval {
                additional_permissions_json: json!({ "fileSystem": { "write": [path] } })
                    .to_string(),
                ..Default::default()
            })
        };
        let patch = |path: &str, move_path: &str| {
            let change = ChangedFile {
                path: path.to_owned(),
                move_path: move_path.to_owned(),
                ..Default::default()
            };
            let asked = FileChangeApproval { changes: vec![change], ..Default::default() };
            QuestionKind::FileChangeApproval(asked)
        };
        let root = QuestionKind::FileChangeApproval(FileChangeApproval {
            grant_root: "/nowhere".to_owned(),
            ..Default::default()
        });
        let home = "/nowhere/w/.codex/config.toml";
        for kind in [command(home), patch(home, ""), patch("/w/x", home), root] {
            for yes in [ApprovalDecision::Accept, ApprovalDecision::AcceptForSession] {
                assert_eq!(denied(kind.clone(), &decided(yes)), ["approval.decision"], "{kind:?}");
            }
            assert_eq!(denied(kind, &decided(ApprovalDecision::Decline)), [""; 0]);
        }
        for kind in [command("/opt"), patch("/nowhere/w/x", "/nowhere/w/y")] {
            assert_eq!(denied(kind, &decided(ApprovalDecision::Accept)), [""; 0]);
        }
    }

    #[test]
    fn what_is_granted_through_a_link_is_held_against_where_that_leads() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let (home, link) = (place.join("home"), place.join("w/link"));
        std::fs::create_dir(&home).unwrap();
        std::fs::create_dir(place.join("w")).unwrap();
        std::os::unix::fs::symlink(&home, &link).unwrap();
        let home = ProtectedPath::new("CODEX_HOME", &home);
        let protected = ProtectedPaths::new(vec![home], None).with_cli(true);
        let is_denied = |kind: QuestionKind, answer: &Answer| {
            let denials = Denials::of(&Question::new(None, kind), &protected);
            assert_eq!(denials.check(answer), Ok(()));
            denials.check_on_disk(answer).is_err()
        };
        let granted = |path: &Path| {
            let files = json!({ "fileSystem": { "write": [path] } });
            let answer =
                PermissionsAnswer { permissions_json: files.to_string(), ..Default::default() };
            let kind = QuestionKind::PermissionsApproval(PermissionsApproval::default());
            is_denied(kind, &Answer::Permissions(answer))
        };
        let patched = |path: &Path| {
            let path = path.display().to_string();
            let change = ChangedFile { path, ..Default::default() };
            let asked = FileChangeApproval { changes: vec![change], ..Default::default() };
            let decision = ApprovalDecision::Accept.into();
            let yes = Answer::Approval(ApprovalAnswer { decision, ..Default::default() });
            is_denied(QuestionKind::FileChangeApproval(asked), &yes)
        };
        assert!(granted(&link) && patched(&link.join("config.toml")));
        assert!(!granted(&place.join("w/sub")) && !patched(&place.join("w/file")));
    }
}
