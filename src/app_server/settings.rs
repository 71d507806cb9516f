//! What the turns of a thread may do: as it is asked for, and as Codex says that it came into force.
//!
//! Codex ignores fields that it does not know, so a field that a newer CLI has renamed would leave a
//! turn with the rights of an earlier one, or of the configuration, without a word. Therefore what
//! Codex tells is compared with what was asked, and whatever can't be understood counts as too much.
//! Pure: nothing here asks Codex anything.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::app_server::baseline::{AccessRight, Rights};

/// What decides over the rights of a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// When Codex asks, as it spells it.
    approval_policy: Value,
    /// Who answers what Codex asks; absent with CLIs that know no reviewers.
    approvals_reviewer: Option<String>,
    /// What commands may touch.
    access: Access,
    /// Where the turn works; absent where an old CLI does not say.
    working_directory: Option<PathBuf>,
}

/// What commands and patches may touch.
#[derive(Debug, Clone, PartialEq)]
enum Access {
    ReadOnly {
        network: bool,
    },
    WorkspaceWrite {
        // The working directory is one of them.
        roots: Vec<PathBuf>,
        network: bool,
        tmpdir: bool,
        slash_tmp: bool,
    },
    // Somebody else's sandbox: Codex itself keeps nothing from being written.
    External {
        network: bool,
    },
    Full,
    // A profile of config.toml, by its name: what is in it only Codex knows.
    Profile(String),
    // Understood by Codex alone.
    Unknown(Value),
}

/// The built-in profile of this name, which says no more than the sandbox of that kind.
fn built_in(name: &str, working_directory: Option<&Path>) -> Option<Access> {
    Some(match name {
        ":read-only" => Access::ReadOnly { network: false },
        ":workspace" => Access::WorkspaceWrite {
            roots: working_directory.map(plain).into_iter().collect(),
            network: false,
            tmpdir: true,
            slash_tmp: true,
        },
        ":danger-full-access" => Access::Full,
        _ => return None,
    })
}

/// Whether the profile is one of config.toml.
pub(crate) fn is_custom_profile(name: &str) -> bool {
    built_in(name, None).is_none()
}

impl Settings {
    /// What a `turn/start` asks for.
    pub(super) fn asked(rights: &Rights<'_>) -> Settings {
        let Rights { cwd, approval_policy, approvals_reviewer, access, shields: _ } = rights;
        let access = match access {
            AccessRight::Permissions(name) => {
                built_in(name, Some(cwd)).unwrap_or_else(|| Access::Profile((*name).to_owned()))
            }
            AccessRight::SandboxPolicy(policy) => sandbox(policy, Some(cwd)),
        };
        Settings {
            approval_policy: approval_policy.clone(),
            approvals_reviewer: approvals_reviewer
                .as_ref()
                .and_then(Value::as_str)
                .map(str::to_owned),
            access,
            working_directory: Some(cwd.to_path_buf()),
        }
    }

    /// What Codex tells: `threadSettings` of `thread/settings/updated`, or the answer to
    /// `thread/start` or `thread/resume`, which names the sandbox otherwise.
    pub fn told(told: &Value) -> Settings {
        let working_directory = told["cwd"].as_str().map(PathBuf::from);
        let policy = match &told["sandboxPolicy"] {
            Value::Null => &told["sandbox"],
            policy => policy,
        };
        let access = match &told["activePermissionProfile"] {
            Value::Null => sandbox(policy, working_directory.as_deref()),
            profile => match profile["id"].as_str() {
                // What is in a built-in profile is told beside its name.
                Some(name) if !is_custom_profile(name) => {
                    sandbox(policy, working_directory.as_deref())
                }
                Some(name) => Access::Profile(name.to_owned()),
                None => Access::Unknown(profile.clone()),
            },
        };
        Settings {
            approval_policy: told["approvalPolicy"].clone(),
            approvals_reviewer: told["approvalsReviewer"].as_str().map(str::to_owned),
            access,
            working_directory,
        }
    }

    /// In which respect these go beyond `asked`; `None` means in none. Policies of approval have no
    /// order: another one than was asked counts as wider.
    pub fn wider_than(&self, asked: &Settings) -> Option<String> {
        self.asks_otherwise_than(asked).or_else(|| self.reaches_beyond(asked))
    }

    /// As [`Settings::wider_than`], of the approvals alone.
    pub fn asks_otherwise_than(&self, asked: &Settings) -> Option<String> {
        if self.approval_policy != asked.approval_policy {
            let (own, other) = (&self.approval_policy, &asked.approval_policy);
            return Some(format!("the approval policy is {own} and not {other}"));
        }
        match &asked.approvals_reviewer {
            Some(other) if self.approvals_reviewer.as_ref() != Some(other) => {
                let own = self.approvals_reviewer.as_deref().unwrap_or("not told");
                Some(format!("the reviewer of approvals is {own} and not {other}"))
            }
            Some(_) | None => None,
        }
    }

    fn reaches_beyond(&self, asked: &Settings) -> Option<String> {
        if self.access.reaches_beyond(&asked.access) {
            return Some(format!("the sandbox is {} and not {}", self.access, asked.access));
        }
        None
    }

    /// In which respect a thread that is loaded with these has more than a turn on it that asks for
    /// `asked`. The read-only sandbox is the least that a thread can be loaded with: it counts as less
    /// than any profile, whatever that keeps from being read, because the turn brings the profile.
    pub fn lingers_beyond(&self, asked: &Settings) -> Option<String> {
        self.asks_otherwise_than(asked).or_else(|| self.loads_beyond(asked))
    }

    /// As [`Settings::lingers_beyond`], of what commands may touch alone.
    pub fn loads_beyond(&self, asked: &Settings) -> Option<String> {
        match self.access {
            Access::ReadOnly { network: false } => None,
            _ => self.reaches_beyond(asked),
        }
    }

    /// Where these work, if that is elsewhere than `asked`.
    pub fn works_elsewhere_than(&self, asked: &Settings) -> Option<String> {
        let (own, other) = (self.working_directory.as_ref()?, asked.working_directory.as_ref()?);
        (plain(own) != plain(other)).then(|| {
            format!("the working directory is {} and not {}", own.display(), other.display())
        })
    }

    /// Whether the access is that of this profile of config.toml.
    pub fn is_profile(&self, name: &str) -> bool {
        matches!(&self.access, Access::Profile(own) if own == name)
    }
}

#[cfg(test)]
impl Settings {
    /// Those of a turn that works there, and of which nothing else is known.
    pub(crate) fn in_directory(path: &str) -> Settings {
        Settings::told(&serde_json::json!({ "cwd": path }))
    }
}

fn sandbox(policy: &Value, working_directory: Option<&Path>) -> Access {
    // A flag that is not there counts as what allows more.
    let allows = |key: &str| policy[key].as_bool() != Some(false);
    match policy["type"].as_str() {
        Some("dangerFullAccess") => Access::Full,
        // CLIs before 0.115 say nothing of the network here, and give none.
        Some("readOnly") if policy.get("networkAccess").is_none() => {
            Access::ReadOnly { network: false }
        }
        Some("readOnly") => Access::ReadOnly { network: allows("networkAccess") },
        Some("externalSandbox") => {
            Access::External { network: policy["networkAccess"] != "restricted" }
        }
        Some("workspaceWrite") => {
            let roots: Option<Vec<PathBuf>> =
                policy["writableRoots"].as_array().and_then(|roots| {
                    roots
                        .iter()
                        .map(|root| root.as_str().map(|root| plain(Path::new(root))))
                        .collect()
                });
            let Some(mut roots) = roots else { return Access::Unknown(policy.clone()) };
            roots.extend(working_directory.map(plain));
            Access::WorkspaceWrite {
                roots,
                network: allows("networkAccess"),
                tmpdir: policy["excludeTmpdirEnvVar"] != true,
                slash_tmp: policy["excludeSlashTmp"] != true,
            }
        }
        Some(_) | None => Access::Unknown(policy.clone()),
    }
}

/// The path as Codex tells it: without `.`, `..` and doubled separators; links are left as they are.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

impl Access {
    fn reaches_beyond(&self, asked: &Access) -> bool {
        if self == asked {
            return false;
        }
        match (self, asked) {
            // There is nothing beyond it.
            (_, Access::Full) => false,
            (Access::Full, _)
            | (Access::Profile(_) | Access::Unknown(_), _)
            | (_, Access::Profile(_) | Access::Unknown(_)) => true,
            (
                Access::ReadOnly { network },
                Access::ReadOnly { network: asked }
                | Access::WorkspaceWrite { network: asked, .. }
                | Access::External { network: asked },
            )
            | (
                Access::WorkspaceWrite { network, .. } | Access::External { network },
                Access::External { network: asked },
            ) => *network && !*asked,
            (Access::WorkspaceWrite { .. }, Access::ReadOnly { .. })
            | (Access::External { .. }, Access::ReadOnly { .. } | Access::WorkspaceWrite { .. }) => {
                true
            }
            (
                Access::WorkspaceWrite { roots, network, tmpdir, slash_tmp },
                Access::WorkspaceWrite {
                    roots: asked_roots,
                    network: asked_network,
                    tmpdir: asked_tmpdir,
                    slash_tmp: asked_slash_tmp,
                },
            ) => {
                (*network && !*asked_network)
                    || (*tmpdir && !*asked_tmpdir)
                    || (*slash_tmp && !*asked_slash_tmp)
                    || roots
                        .iter()
                        .any(|root| !asked_roots.iter().any(|asked| root.starts_with(asked)))
            }
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = |network: &bool| if *network { " with the network" } else { "" };
        match self {
            Access::ReadOnly { network } => write!(f, "read-only{}", with(network)),
            Access::WorkspaceWrite { roots, network, tmpdir, slash_tmp } => {
                let mut places: Vec<String> =
                    roots.iter().map(|root| root.display().to_string()).collect();
                places.extend(slash_tmp.then(|| "/tmp".to_owned()));
                places.extend(tmpdir.then(|| "$TMPDIR".to_owned()));
                write!(f, "workspace-write (in {}){}", places.join(", "), with(network))
            }
            Access::External { network } => write!(f, "left to an outer sandbox{}", with(network)),
            Access::Full => write!(f, "danger-full-access"),
            Access::Profile(name) => write!(f, "the permission profile {name:?}"),
            Access::Unknown(value) => write!(f, "something unknown ({value})"),
        }
    }
}

/// Lets nothing of a turn pass before it is known that no more came into force than was asked.
///
/// Codex tells its settings when `turn/start` changes them, before it says anything else about the
/// turn (measured with 0.150 and 0.169: around the answer to `turn/start`, always before
/// `turn/started`); where it changes nothing, what it said last holds.
#[derive(Debug, Clone)]
pub(crate) struct Gate {
    asked: Settings,
    in_force: Option<Settings>,
    // Whether this CLI tells its settings at all.
    tells: bool,
    is_open: bool,
}

impl Gate {
    /// Before a turn that asked for this, on a thread of which Codex last said that.
    pub(crate) fn new(asked: Settings, in_force: Option<Settings>, tells: bool) -> Gate {
        Gate { asked, in_force, tells, is_open: false }
    }

    /// Codex tells what came into force; the error says what is wrong with it. Before anything of the
    /// turn has passed it may still be what an earlier request set.
    ///
    /// # Errors
    /// In which respect it is not what was asked.
    pub(crate) fn hear(&mut self, told: Settings) -> Result<(), String> {
        self.tells = true;
        self.in_force = Some(told);
        if self.is_open { self.check() } else { Ok(()) }
    }

    /// Something of the turn wants to pass; the error says why it must not.
    ///
    /// # Errors
    /// In which respect what came into force is not what was asked.
    pub(crate) fn pass(&mut self) -> Result<(), String> {
        if !self.is_open {
            if self.tells {
                self.check()?;
            }
            self.is_open = true;
        }
        Ok(())
    }

    /// What Codex said last.
    pub(crate) fn in_force(self) -> Option<Settings> {
        self.in_force
    }

    fn check(&self) -> Result<(), String> {
        let Some(in_force) = &self.in_force else {
            return Err("Codex did not say what came into force".to_owned());
        };
        let wrong = in_force.wider_than(&self.asked);
        match wrong.or_else(|| in_force.works_elsewhere_than(&self.asked)) {
            Some(wrong) => Err(wrong),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_only(network: bool) -> Value {
        json!({ "type": "readOnly", "networkAccess": network })
    }

    fn workspace_write(roots: &[&str], network: bool) -> Value {
        json!({
            "type": "workspaceWrite", "writableRoots": roots, "networkAccess": network,
            "excludeTmpdirEnvVar": true, "excludeSlashTmp": true,
        })
    }

    fn rights(access: AccessRight<'_>) -> Rights<'_> {
        let cwd = Path::new("/w");
        Rights {
            cwd,
            approval_policy: json!("never"),
            approvals_reviewer: None,
            access,
            shields: &[],
        }
    }

    fn asked(sandbox: Value) -> Settings {
        Settings::asked(&rights(AccessRight::SandboxPolicy(sandbox)))
    }

    fn told(sandbox: Value) -> Settings {
        Settings::told(&json!({
            "cwd": "/w", "approvalPolicy": "never", "approvalsReviewer": "user",
            "sandboxPolicy": sandbox, "activePermissionProfile": null,
        }))
    }

    #[test]
    fn sandboxes_are_ordered_by_what_they_allow() {
        let full = || json!({ "type": "dangerFullAccess" });
        let ladder = [
            read_only(false),
            workspace_write(&[], false),
            workspace_write(&["/extra"], false),
            json!({ "type": "externalSandbox", "networkAccess": "restricted" }),
            full(),
        ];
        for (at, lower) in ladder.iter().enumerate() {
            for (above, upper) in ladder.iter().enumerate() {
                let wider = told(upper.clone()).wider_than(&asked(lower.clone()));
                assert_eq!(wider.is_some(), above > at, "{upper} for {lower}: {wider:?}");
            }
        }
        let wider = |own: Value, other: Value| told(own).wider_than(&asked(other)).is_some();
        assert!(wider(read_only(true), read_only(false)));
        assert!(!wider(read_only(false), read_only(true)));
        assert!(wider(read_only(true), workspace_write(&[], false)));
        assert!(wider(workspace_write(&[], true), workspace_write(&[], false)));
        let external = |network: &str| json!({"type": "externalSandbox", "networkAccess": network});
        assert!(wider(external("enabled"), external("restricted")));
        assert!(wider(external("holographic"), external("restricted")));
        let slash_tmp = json!({
            "type": "workspaceWrite", "writableRoots": [], "networkAccess": false,
            "excludeTmpdirEnvVar": true, "excludeSlashTmp": false,
        });
        assert!(wider(slash_tmp.clone(), workspace_write(&[], false)));
        assert!(!wider(workspace_write(&[], false), slash_tmp));
    }

    #[test]
    fn roots_may_lie_within_those_that_were_asked_for_and_nowhere_else() {
        let wider = |own: &[&str], other: &[&str]| {
            told(workspace_write(own, false)).wider_than(&asked(workspace_write(other, false)))
        };
        assert_eq!(wider(&["/a/b", "/w/x", "/a/./c/"], &["/a"]), None);
        assert_eq!(wider(&["/a/b/../c"], &["/a/c"]), None);
        assert!(wider(&["/ab"], &["/a"]).is_some());
        assert!(wider(&["/a/../etc"], &["/a"]).is_some());
        assert!(wider(&["/"], &["/a"]).is_some());
    }

    #[test]
    fn another_policy_or_reviewer_of_approvals_counts_as_wider() {
        let with = |policy: Value, reviewer: Value| {
            let told = Settings::told(&json!({
                "cwd": "/w", "approvalPolicy": policy, "approvalsReviewer": reviewer,
                "sandbox": read_only(false),
            }));
            let asked = Settings::asked(&Rights {
                approval_policy: policy,
                approvals_reviewer: Some(reviewer),
                ..rights(AccessRight::SandboxPolicy(read_only(false)))
            });
            (told, asked)
        };
        let (never, asked) = with(json!("never"), json!("user"));
        assert_eq!(never.wider_than(&asked), None);
        for (policy, reviewer) in [
            (json!("on-request"), json!("user")),
            (json!({ "granular": { "rules": true } }), json!("user")),
            (Value::Null, json!("user")),
            (json!("never"), json!("auto_review")),
            (json!("never"), Value::Null),
        ] {
            let (told, _) = with(policy, reviewer);
            assert!(told.wider_than(&asked).is_some(), "{told:?}");
        }
        // A CLI that knows no reviewers, or that tells of one that nobody asked for.
        let (_, asked_of_old) = with(json!("never"), Value::Null);
        assert_eq!(never.wider_than(&asked_of_old), None);
    }

    #[test]
    fn a_profile_is_the_one_that_was_asked_for_or_too_much() {
        let asked_for = |name: &str| Settings::asked(&rights(AccessRight::Permissions(name)));
        let told_of = |profile: Value, sandbox: Value| {
            Settings::told(&json!({
                "cwd": "/w", "approvalPolicy": "never", "sandboxPolicy": sandbox,
                "activePermissionProfile": profile,
            }))
        };
        let own =
            told_of(json!({ "id": "mine", "extends": null }), workspace_write(&["/w/o"], false));
        assert_eq!(own.wider_than(&asked_for("mine")), None);
        assert!(own.is_profile("mine") && !own.is_profile("other"));
        assert!(own.wider_than(&asked_for("other")).is_some());
        assert!(own.wider_than(&asked(workspace_write(&["/w/o"], false))).is_some());
        assert_eq!(own.wider_than(&asked(json!({ "type": "dangerFullAccess" }))), None);
        // Dropped, or of an unknown shape.
        assert!(told(read_only(false)).wider_than(&asked_for("mine")).is_some());
        assert!(told_of(json!("mine"), read_only(false)).wider_than(&asked_for("mine")).is_some());
        // Built-in ones are no more than the sandbox of their kind.
        let built_in = told_of(json!({ "id": ":read-only" }), read_only(false));
        assert_eq!(built_in.wider_than(&asked(read_only(false))), None);
        assert_eq!(built_in.wider_than(&asked_for(":read-only")), None);
        assert_eq!(told(workspace_write(&[], false)).wider_than(&asked_for(":workspace")), None);
        assert!(
            told(workspace_write(&["/x"], false)).wider_than(&asked_for(":workspace")).is_some()
        );
        assert!(built_in.wider_than(&asked_for(":hologram")).is_some());
        // A thread is loaded read-only, and the turn brings the profile.
        assert_eq!(told(read_only(false)).lingers_beyond(&asked_for("mine")), None);
        assert!(told(workspace_write(&[], false)).lingers_beyond(&asked_for("mine")).is_some());
        assert!(own.lingers_beyond(&asked(read_only(false))).is_some());
    }

    #[test]
    fn what_can_not_be_understood_counts_as_wider() {
        for sandbox in [
            Value::Null,
            json!("readOnly"),
            json!({ "type": "readonly", "networkAccess": false }),
            json!({ "type": "readOnly", "networkAccess": "restricted" }),
            json!({ "type": "hologram" }),
            json!({ "type": "workspaceWrite" }),
        ] {
            let told = told(sandbox.clone());
            assert!(told.wider_than(&asked(read_only(false))).is_some(), "{sandbox}");
        }
        let no_flags = told(json!({ "type": "workspaceWrite", "writableRoots": [] }));
        assert!(no_flags.wider_than(&asked(workspace_write(&[], false))).is_some());
        // What nobody understands may still be what was asked.
        let hologram = json!({ "type": "hologram" });
        assert_eq!(told(hologram.clone()).wider_than(&asked(hologram)), None);
        // 0.100 says nothing of the network.
        let old = json!({ "type": "readOnly", "access": { "type": "fullAccess" } });
        assert_eq!(told(old).wider_than(&asked(read_only(false))), None);
    }

    #[test]
    fn the_gate_goes_by_what_was_told_last_and_by_nothing_where_nothing_is_told() {
        let narrow = || asked(read_only(false));
        let full = || told(json!({ "type": "dangerFullAccess" }));
        let mut told_before = Gate::new(narrow(), Some(told(read_only(false))), true);
        assert_eq!(told_before.pass(), Ok(()));
        // Late, but told.
        assert!(told_before.hear(full()).is_err());
        assert_eq!(told_before.in_force(), Some(full()));

        assert!(Gate::new(narrow(), Some(full()), true).pass().is_err());
        assert!(Gate::new(narrow(), None, true).pass().is_err());
        let mut old = Gate::new(narrow(), Some(full()), false);
        assert_eq!(old.pass(), Ok(()));

        let mut changed = Gate::new(narrow(), Some(full()), true);
        // What was told first may be of the request before.
        assert_eq!(changed.hear(full()), Ok(()));
        assert_eq!(changed.hear(told(read_only(false))), Ok(()));
        assert_eq!(changed.pass(), Ok(()));
        let mut never_narrowed = Gate::new(narrow(), Some(told(read_only(false))), false);
        assert_eq!(never_narrowed.hear(full()), Ok(()));
        assert!(never_narrowed.pass().is_err());

        let elsewhere = Settings::told(&json!({
            "cwd": "/elsewhere", "approvalPolicy": "never", "sandbox": read_only(false),
        }));
        assert!(Gate::new(narrow(), Some(elsewhere), true).pass().is_err());
    }
}
