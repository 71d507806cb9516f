//! What no command of a turn may write: CODEX_HOME, which says how the next turn runs, and what the
//! sidecar keeps.
//!
//! A workspace-write sandbox lets all below its roots be written. What is protected and lies there is
//! taken out of it where Codex can be made to ([`mounts::shields`]); else the turn is denied.

mod grants;
mod mounts;
mod profile;
mod resolve;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::refusal::FieldViolation;

use mounts::Mounts;

pub(crate) use grants::Denials;
pub(crate) use profile::ProfileTables;
pub(crate) use resolve::Resolved;

/// The setting that lets it be written all the same.
const SETTING: &str = "policy.allow_writable_codex_home = true";

/// What is protected and of no concern to the caller: it is told that there is something, and not where.
pub(crate) const OF_OTHERS: &str = "what is not this tenant's";

/// What is protected; nothing by default.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ProtectedPaths {
    paths: Arc<[ProtectedPath]>,
    // Where `/tmp` and `$TMPDIR` of the workers lead.
    slash_tmp: PathBuf,
    tmpdir: Option<PathBuf>,
    // Whether the CLI keeps what is named `.codex` from being written in a root.
    cli_keeps: bool,
}

/// Looks for what is protected, anew each time; may block. Nothing is, by default.
#[derive(Clone)]
pub(crate) struct Protection(Arc<dyn Fn() -> ProtectedPaths + Send + Sync>);

impl Protection {
    /// By this look.
    pub(crate) fn new(look: impl Fn() -> ProtectedPaths + Send + Sync + 'static) -> Protection {
        Protection(Arc::new(look))
    }

    /// What there is now.
    pub(crate) fn find(&self) -> ProtectedPaths {
        (self.0)()
    }
}

impl Default for Protection {
    fn default() -> Protection {
        Protection::new(ProtectedPaths::default)
    }
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Protection").finish_non_exhaustive()
    }
}

/// One path that is protected.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProtectedPath {
    /// What it is, as callers are told.
    pub(crate) name: &'static str,
    /// As it was given.
    pub(crate) given: PathBuf,
    /// Where that leads.
    pub(crate) real: Resolved,
}

/// A directory that a turn's commands may write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Root {
    /// As Codex is told it.
    pub(crate) path: PathBuf,
    /// The field of the request that makes it one.
    pub(crate) field: String,
    /// Whether the CLI's configuration makes it one, and not the request.
    pub(crate) is_configured: bool,
}

/// How a turn's roots are changed so that what is protected stays so.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Shield {
    /// Writable roots besides: they lie in others, and can't be moved away as roots.
    pub(crate) roots: Vec<PathBuf>,
    /// Configured roots that lie in what is protected, and are left out.
    pub(crate) left_out: Vec<PathBuf>,
}

impl ProtectedPaths {
    /// These, for workers that have this `$TMPDIR`. Blocks.
    pub(crate) fn new(paths: Vec<ProtectedPath>, tmpdir: Option<&Path>) -> ProtectedPaths {
        ProtectedPaths {
            paths: paths.into(),
            slash_tmp: Resolved::of(Path::new("/tmp")).path,
            tmpdir: tmpdir.map(|path| Resolved::of(path).path),
            cli_keeps: false,
        }
    }

    /// The same with a CLI that keeps what is named `.codex` from being written in a root, or does not.
    pub(crate) fn with_cli(self, cli_keeps: bool) -> ProtectedPaths {
        ProtectedPaths { cli_keeps, ..self }
    }

    /// Whether nothing is protected.
    pub(crate) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Whether one of them lies in the temporary directories: its name, and where it leads.
    pub(crate) fn in_temporary_directory(&self) -> Option<&ProtectedPath> {
        let temporary = || std::iter::once(&self.slash_tmp).chain(&self.tmpdir);
        let is_in =
            |path: &&ProtectedPath| temporary().any(|above| path.real.path.starts_with(above));
        self.paths.iter().find(is_in)
    }

    /// `/tmp` as a root of a turn.
    pub(crate) fn slash_tmp(&self) -> Root {
        temporary(&self.slash_tmp)
    }

    /// `$TMPDIR` as a root of a turn, where the workers have one.
    pub(crate) fn tmpdir(&self) -> Option<Root> {
        self.tmpdir.as_deref().map(temporary)
    }

    /// How these roots keep what is protected. Blocks.
    ///
    /// # Errors
    /// Which of them can't.
    pub(crate) fn shield(&self, roots: &[Root]) -> Result<Shield, Vec<FieldViolation>> {
        let mut shield = Shield::default();
        let mut real: Vec<(&Root, PathBuf)> = Vec::new();
        for root in roots {
            let leads_to = Resolved::of(&root.path).path;
            let is_within = self.paths.iter().any(|path| leads_to.starts_with(&path.real.path));
            if is_within && root.is_configured {
                shield.left_out.push(root.path.clone());
            } else {
                real.push((root, leads_to));
            }
        }
        let mut denied = Vec::new();
        for path in self.paths.iter() {
            for link in &path.real.links {
                let holding = real.iter().filter(|(_, root)| link.starts_with(root));
                denied
                    .extend(holding.map(|(root, leads_to)| path.denied_link(root, leads_to, link)));
            }
            let all: Vec<PathBuf> =
                real.iter().map(|(_, root)| root.clone()).chain(shield.roots.clone()).collect();
            let touches =
                |root: &Path| path.real.path.starts_with(root) || root.starts_with(&path.real.path);
            let is_touched = all.iter().any(|root| touches(root));
            let shields = mounts::shields(&path.real.path, &all);
            match shields.filter(|_| self.cli_keeps || !is_touched) {
                Some(shields) => shield.roots.extend(shields),
                None => {
                    let touching = real.iter().filter(|(_, root)| touches(root));
                    denied.extend(
                        touching
                            .map(|(root, leads_to)| path.denied(root, leads_to, self.cli_keeps)),
                    );
                }
            }
        }
        // What was added for one may hold another.
        let all: Vec<PathBuf> =
            real.iter().map(|(_, root)| root.clone()).chain(shield.roots.clone()).collect();
        let mounts = Mounts::of(&all);
        let lost = self.paths.iter().find(|path| !mounts.keep(&path.real.path));
        if let Some((path, (root, leads_to))) = lost.zip(real.first()).filter(|_| denied.is_empty())
        {
            denied.push(path.denied(root, leads_to, self.cli_keeps));
        }
        denied.dedup();
        if denied.is_empty() { Ok(shield) } else { Err(denied) }
    }

    /// Whether a permission profile of the CLI's configuration keeps what is protected, for a turn that
    /// works there. Blocks.
    ///
    /// # Errors
    /// What it lets be written.
    pub(crate) fn judge_profile(
        &self,
        name: &str,
        tables: &ProfileTables,
        working_directory: &Path,
    ) -> Result<(), Vec<FieldViolation>> {
        let denied = |description: String| {
            Err(vec![FieldViolation::new("thread_options.permission_profile", description)])
        };
        let mounts = match tables.mounts(name, working_directory, self) {
            Ok(Some(mounts)) => mounts,
            // Whoever may do all may do this.
            Ok(None) => return Ok(()),
            Err(cause) => {
                return denied(format!(
                    "what {name:?} lets be written can't be told: {cause}; name another one, or set \
                     {SETTING}"
                ));
            }
        };
        let lost = self.paths.iter().find(|path| {
            let links_lie_in =
                |root: &PathBuf| path.real.links.iter().any(|link| link.starts_with(root));
            !mounts.keep(&path.real.path) || mounts.writable.iter().any(links_lie_in)
        });
        match lost {
            None => Ok(()),
            Some(path) => denied(format!(
                "{name:?} lets commands write or move {}; give \"read\" to the first directory on its way \
                 that lies in a writable one, or set {SETTING}",
                path.shown()
            )),
        }
    }

    /// What of this path must not be granted to be written; `None` means nothing.
    pub(crate) fn denied_grant(&self, path: &Path) -> Option<String> {
        let touches = |one: &Path| path.starts_with(one) || one.starts_with(path);
        let touched = self.paths.iter().find(|protected| {
            let links = protected.real.links.iter().map(PathBuf::as_path);
            links.chain([&*protected.given, &protected.real.path]).any(touches)
        })?;
        let (path, shown) = (path.display(), touched.shown());
        Some(format!("{path} would let {shown} be written; grant less, or set {SETTING}"))
    }
}

fn temporary(path: &Path) -> Root {
    Root {
        path: path.to_owned(),
        field: "thread_options.sandbox_mode".to_owned(),
        is_configured: true,
    }
}

impl ProtectedPath {
    /// This path, by what it is called. Blocks.
    pub(crate) fn new(name: &'static str, given: &Path) -> ProtectedPath {
        ProtectedPath { name, given: given.to_owned(), real: Resolved::of(given) }
    }

    fn shown(&self) -> String {
        match self.name {
            OF_OTHERS => OF_OTHERS.to_owned(),
            name => format!("{name} {}", self.real.path.display()),
        }
    }

    /// Short enough to be told as a whole, by any length that paths have in practice.
    fn denied(&self, root: &Root, leads_to: &Path, cli_keeps: bool) -> FieldViolation {
        let (root_is, shown) = (leads_to.display(), self.shown());
        let how = match self.real.path.starts_with(leads_to) {
            true => format!("commands could write {shown} in {root_is}"),
            false => format!("commands could write {root_is}, in {shown}"),
        };
        let advice = match cli_keeps {
            true => "keep them apart, let it lie in a directory named .codex",
            false => "keep them apart, or use Codex 0.130 or newer and the name .codex",
        };
        let description = match self.name {
            OF_OTHERS => format!("{how}; name another directory"),
            _ => format!("{how}; {advice}, or set {SETTING}"),
        };
        FieldViolation::new(root.field.clone(), description)
    }

    fn denied_link(&self, root: &Root, leads_to: &Path, link: &Path) -> FieldViolation {
        let Self { name, given: _, real } = self;
        if *name == OF_OTHERS {
            let description = format!(
                "commands could write {OF_OTHERS} in {}; name another directory",
                leads_to.display()
            );
            return FieldViolation::new(root.field.clone(), description);
        }
        let description = format!(
            "commands could replace the link {} to {name} in {}; name it as {}, or set {SETTING}",
            link.display(),
            leads_to.display(),
            real.path.display(),
        );
        FieldViolation::new(root.field.clone(), description)
    }
}
