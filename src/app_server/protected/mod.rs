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

/// What is not the caller's own, as callers are told.
const KEPT: &str = "what the sidecar keeps";

/// The setting that lets it be written all the same.
const SETTING: &str = "policy.allow_writable_codex_home = true";

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
    // Whose it is.
    whose: Whose,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The caller's tenant's.
    Own,
    /// Another tenant's, of which this one's callers know nothing.
    Others,
    /// The sidecar's, which lies where it happens to: it is kept from who names its directory, and not from
    /// all turns that may write a temporary one.
    Sidecar,
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
    /// Writable roots besides: they lie in others, and can't be moved away as roots, nor can what lies
    /// in them be that is a root or protected.
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

    /// Whether not even the temporary directories are known.
    pub(crate) fn is_unknown(&self) -> bool {
        self.slash_tmp.as_os_str().is_empty()
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
        let mut denied: Vec<FieldViolation> = Vec::new();
        let resolved = roots.iter().map(|root| (root, Resolved::of(&root.path)));
        let resolved: Vec<(&Root, Resolved)> = resolved.collect();
        for (root, Resolved { path, links }) in &resolved {
            let is_within = self.paths.iter().any(|kept| path.starts_with(&kept.real.path));
            let others = || resolved.iter().filter(|(_, other)| other.path != *path);
            // Whoever may write where a link lies decides where it leads, and who makes a directory what it is.
            let of_link = (links.iter())
                .find(|link| resolved.iter().any(|(_, other)| link.starts_with(&other.path)));
            let is_to_be_made =
                || !path.is_dir() && others().any(|(_, other)| path.starts_with(&other.path));
            if root.is_configured && (is_within || of_link.is_some() || is_to_be_made()) {
                shield.left_out.push(root.path.clone());
            } else {
                denied.extend(of_link.map(|link| root.denied_link(path, link)));
                real.push((root, path.clone()));
            }
        }
        for (root, leads_to) in &real {
            let all: Vec<PathBuf> =
                real.iter().map(|(_, root)| root.clone()).chain(shield.roots.clone()).collect();
            match mounts::anchors(leads_to, &all) {
                Some(anchors) => shield.roots.extend(anchors),
                None => denied.push(root.denied_in_another(leads_to)),
            }
        }
        for path in self.paths.iter() {
            let real: Vec<_> = real.iter().filter(|(root, _)| path.is_kept_from(root)).collect();
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
        let all_kept = self.paths.iter().filter(|path| path.whose != Whose::Sidecar);
        let lost = all_kept.clone().find(|path| !mounts.keep(&path.real.path));
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
        let all_kept = self.paths.iter().filter(|path| path.whose != Whose::Sidecar);
        let lost = all_kept.clone().find(|path| {
            let links_lie_in =
                |root: &PathBuf| path.real.links.iter().any(|link| link.starts_with(root));
            !mounts.keep(&path.real.path) || mounts.writable.iter().any(links_lie_in)
        });
        match lost {
            None => Ok(()),
            Some(path) => denied(format!(
                "{name:?} lets commands write or move {}; give \"read\" to the first directory on its way \
                 that lies in a writable one{}",
                path.shown(),
                path.or_set()
            )),
        }
    }

    /// What of this path must not be granted to be written, as it is written; `None` means nothing.
    pub(crate) fn denied_grant(&self, path: &Path) -> Option<String> {
        let touches = |one: &Path| path.starts_with(one) || one.starts_with(path);
        let touched = self.paths.iter().find(|protected| {
            let links = protected.real.links.iter().map(PathBuf::as_path);
            links.chain([&*protected.given, &protected.real.path]).any(touches)
        })?;
        let (path, shown, or) = (path.display(), touched.shown(), touched.or_set());
        Some(format!("{path} would let {shown} be written; grant less{or}"))
    }
}

impl Root {
    fn denied_link(&self, leads_to: &Path, link: &Path) -> FieldViolation {
        let (link, leads_to) = (link.display(), leads_to.display());
        let description = format!(
            "commands could replace the link {link}, which lies in what they may write, and with it the \
             sandbox; name {leads_to} itself"
        );
        FieldViolation::new(self.field.clone(), description)
    }

    fn denied_in_another(&self, leads_to: &Path) -> FieldViolation {
        let description = format!(
            "commands could replace {}, which lies in something else that they may write, and with it the \
             sandbox; name a directory that does not lie in .git, .codex, .agents or .aws there",
            leads_to.display()
        );
        FieldViolation::new(self.field.clone(), description)
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
        ProtectedPath {
            name,
            given: given.to_owned(),
            real: Resolved::of(given),
            whose: Whose::Own,
        }
    }

    /// What is another tenant's. Blocks.
    pub(crate) fn of_another(given: &Path) -> ProtectedPath {
        ProtectedPath { whose: Whose::Others, ..ProtectedPath::new(KEPT, given) }
    }

    /// A file by which callers or the sidecar are known. Blocks.
    pub(crate) fn of_credentials(given: &Path) -> ProtectedPath {
        ProtectedPath { whose: Whose::Sidecar, ..ProtectedPath::new(KEPT, given) }
    }

    fn is_kept_from(&self, root: &Root) -> bool {
        self.whose != Whose::Sidecar || !root.is_configured
    }

    fn shown(&self) -> String {
        match self.whose {
            Whose::Own => format!("{} {}", self.name, self.real.path.display()),
            // Not where it lies.
            Whose::Others | Whose::Sidecar => self.name.to_owned(),
        }
    }

    fn or_set(&self) -> String {
        match self.whose {
            Whose::Own => format!(", or set {SETTING}"),
            Whose::Others | Whose::Sidecar => String::new(),
        }
    }

    /// Short enough to be told as a whole, by any length that paths have in practice.
    fn denied(&self, root: &Root, leads_to: &Path, cli_keeps: bool) -> FieldViolation {
        let (root_is, shown) = (leads_to.display(), self.shown());
        let how = match self.real.path.starts_with(leads_to) {
            true => format!("commands could write {shown} in {root_is}"),
            false => format!("commands could write {root_is}, in {shown}"),
        };
        let advice = match (self.whose, cli_keeps) {
            (Whose::Own, true) => "keep them apart, let it lie in a directory named .codex",
            (Whose::Own, false) => {
                "keep them apart, or use Codex 0.130 or newer and the name .codex"
            }
            (Whose::Others | Whose::Sidecar, _) => "keep them apart",
        };
        FieldViolation::new(root.field.clone(), format!("{how}; {advice}{}", self.or_set()))
    }

    fn denied_link(&self, root: &Root, leads_to: &Path, link: &Path) -> FieldViolation {
        let Self { name, given: _, real, whose } = self;
        if *whose != Whose::Own {
            let description =
                format!("commands could replace {name} in {}; keep them apart", leads_to.display());
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
