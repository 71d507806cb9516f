//! How commands find the file system in a sandbox: what can be written, and what is kept within.
//!
//! Codex mounts each writable root for itself, and read-only over it what it protects. What is mounted
//! can't be moved away; a directory above it can, if its parent can be written. So a path is kept only if
//! it can't be written and no part of it can be made to lead elsewhere.

use std::path::{Path, PathBuf};

/// The directory that Codex keeps read-only in every writable root, also in one that lies in another
/// (measured with 0.130 to 0.169; 0.115 applies patches in it where two roots hold it, and 0.100 does not
/// know it).
const KEPT: &str = ".codex";

/// What else some of the CLIs keep read-only in every writable root.
const KEPT_BY_SOME: [&str; 4] = [".git", ".agents", ".aws", KEPT];

/// What is mounted for a command, by canonical paths. All else can be read alone.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) writable: Vec<PathBuf>,
    pub(super) read_only: Vec<PathBuf>,
}

impl Mounts {
    /// Those of a workspace-write sandbox with these roots.
    pub(super) fn of(roots: &[PathBuf]) -> Mounts {
        let read_only = roots.iter().map(|root| root.join(KEPT)).collect();
        Mounts { writable: roots.to_vec(), read_only }
    }

    /// Whether `path` stays what it is and can't be written, whatever commands do.
    pub(super) fn keep(&self, path: &Path) -> bool {
        let can_be_moved = |part: &Path| {
            !self.is_mounted(part) && part.parent().is_some_and(|parent| self.can_write(parent))
        };
        !self.can_write(path)
            && !self.writable.iter().any(|root| root.starts_with(path))
            && !path.ancestors().any(can_be_moved)
    }

    fn is_mounted(&self, path: &Path) -> bool {
        self.writable.iter().chain(&self.read_only).any(|mounted| mounted == path)
    }

    /// What is mounted innermost decides; a root that is itself what another one keeps is opened.
    fn can_write(&self, path: &Path) -> bool {
        let innermost = |mounts: &[PathBuf]| {
            let above = mounts.iter().filter(|mounted| path.starts_with(mounted));
            above.map(|mounted| mounted.components().count()).max()
        };
        let writable = innermost(&self.writable);
        writable.is_some() && writable >= innermost(&self.read_only)
    }
}

/// The directories that have to be writable roots of their own, besides these, so that `path` is kept:
/// each could be written before. `None` if it can't be kept.
pub(super) fn shields(path: &Path, roots: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let holding = || roots.iter().filter(|root| path.starts_with(root));
    let depth = |root: &&PathBuf| root.components().count();
    let mut shields = Vec::new();
    if let (Some(outermost), Some(innermost)) =
        (holding().min_by_key(depth), holding().max_by_key(depth))
    {
        // Below the innermost root: that one opens whatever an outer one keeps.
        let is_kept = |part: &&Path| part.starts_with(innermost) && part.ends_with(KEPT);
        let above = path.ancestors().take_while(|part| *part != innermost.as_path());
        let kept = above.filter(is_kept).last()?;
        shields = between(outermost, kept, roots)?;
    }
    let all: Vec<PathBuf> = roots.iter().chain(&shields).cloned().collect();
    Mounts::of(&all).keep(path).then_some(shields)
}

/// The directories that have to be writable roots of their own, besides these, so that a root that lies in
/// others stays what it is: Codex mounts it anew for each command, wherever its path leads by then. `None` if
/// that can't be had.
pub(super) fn anchors(root: &Path, roots: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let holding = roots.iter().filter(|other| *other != root && root.starts_with(other));
    let Some(outermost) = holding.min_by_key(|other| other.components().count()) else {
        return Some(Vec::new());
    };
    between(outermost, root, roots)
}

/// What lies between a root and something in it, and is no root yet, the innermost first. `None` where one of
/// them would open what a CLI keeps read-only.
fn between(outermost: &Path, path: &Path, roots: &[PathBuf]) -> Option<Vec<PathBuf>> {
    let between = path.ancestors().skip(1).take_while(|part| *part != outermost);
    let between = between.filter(|part| !roots.iter().any(|root| root == part));
    let is_kept_by_some = |part: &Path| {
        let names = part.strip_prefix(outermost).unwrap_or(part);
        names.iter().any(|name| KEPT_BY_SOME.iter().any(|kept| name == *kept))
    };
    between.map(|part| (!is_kept_by_some(part)).then(|| part.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(texts: &[&str]) -> Vec<PathBuf> {
        texts.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn what_is_named_dot_codex_is_kept_by_roots_of_all_that_lies_between() {
        let shields = |path: &str, roots: &[&str]| super::shields(Path::new(path), &paths(roots));
        assert_eq!(shields("/h/.codex", &["/w", "/tmp"]), Some(vec![]));
        assert_eq!(shields("/w/.codex", &["/w"]), Some(vec![]));
        assert_eq!(shields("/w/.codex/tenants/a", &["/w"]), Some(vec![]));
        assert_eq!(shields("/tmp/a/b/.codex", &["/tmp"]), Some(paths(&["/tmp/a/b", "/tmp/a"])));
        assert_eq!(shields("/w/a/b/.codex", &["/w", "/w/a"]), Some(paths(&["/w/a/b"])));
        assert_eq!(shields("/a/.codex", &["/"]), Some(paths(&["/a"])));
        // Of another name, or opened again from within.
        for (path, root) in [
            ("/w/home", "/w"),
            ("/w/.codex", "/w/.codex"),
            ("/w/.codex", "/w/.codex/sessions"),
            ("/w/.codex/tenants/a", "/w/.codex/tenants"),
            ("/w/.codex/a", "/w/.codex"),
        ] {
            assert_eq!(shields(path, &[root]), None, "{path} in {root}");
            assert_eq!(shields(path, &["/w", root]), None, "{path} in {root} in /w");
        }
        // It would have to be opened what is kept for another reason.
        assert_eq!(shields("/w/.git/a/.codex", &["/w"]), None);
        assert_eq!(shields("/w/.codex/t/x/.codex", &["/w", "/w/.codex/t"]), None);
        // A sibling of the home in what is kept.
        assert_eq!(shields("/w/.codex/a", &["/w", "/w/.codex/b"]), Some(vec![]));
    }

    #[test]
    fn a_root_in_another_one_stays_by_roots_of_all_that_lies_between() {
        let anchors = |root: &str, roots: &[&str]| super::anchors(Path::new(root), &paths(roots));
        assert_eq!(anchors("/w", &["/w", "/tmp", "/w/a/b"]), Some(vec![]));
        assert_eq!(anchors("/w/a", &["/w", "/w/a"]), Some(vec![]));
        assert_eq!(anchors("/w/a/b/c", &["/w", "/w/a"]), Some(paths(&["/w/a/b"])));
        assert_eq!(anchors("/a/b/c", &["/", "/a/b/c"]), Some(paths(&["/a/b", "/a"])));
        assert_eq!(anchors("/w/.git", &["/w"]), Some(vec![]));
        for inner in ["/w/.git/a", "/w/a/.codex/b/c"] {
            assert_eq!(anchors(inner, &["/w"]), None, "{inner}");
        }
    }

    /// What becomes of a path, part by part, for whoever may write what can be written: the other way
    /// round than above, so that both can't be wrong alike.
    fn can_be_had(path: &Path, roots: &[PathBuf]) -> bool {
        let mut can_write = false;
        let mut walked = PathBuf::from("/");
        can_write |= roots.contains(&walked);
        for part in path.components().skip(1) {
            let can_write_parent = can_write;
            walked.push(part);
            let is_root = roots.contains(&walked);
            let is_kept = part.as_os_str() == KEPT
                && walked.parent().is_some_and(|parent| roots.iter().any(|root| root == parent));
            if can_write_parent && !is_root && !is_kept {
                return true;
            }
            can_write = is_root || (can_write && !is_kept);
        }
        can_write || roots.iter().any(|root| root.starts_with(path))
    }

    #[test]
    fn no_tree_of_roots_and_homes_leaves_a_home_that_commands_can_have() {
        let names = ["a", "b", ".codex"];
        let mut all = vec![PathBuf::from("/")];
        let mut last = all.clone();
        for _ in 0..3 {
            last = last.iter().flat_map(|above| names.map(|name| above.join(name))).collect();
            all.extend(last.iter().cloned());
        }
        let (mut kept, mut shielded) = (0, 0);
        for path in &all[1..] {
            for first in &all {
                for second in &all {
                    let roots = [first.clone(), second.clone()];
                    let Some(shields) = shields(path, &roots) else { continue };
                    let with: Vec<PathBuf> = roots.iter().chain(&shields).cloned().collect();
                    assert!(!can_be_had(path, &with), "{path:?} with {with:?}");
                    for shield in &shields {
                        // Nothing is opened for it.
                        let before = Mounts::of(&roots);
                        assert!(before.can_write(shield), "{shield:?} for {path:?} in {roots:?}");
                    }
                    kept += 1;
                    shielded += usize::from(!shields.is_empty());
                }
            }
        }
        assert!(kept > 10_000 && shielded > 100, "{kept}, {shielded}");
    }
}
