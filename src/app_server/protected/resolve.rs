//! Where a path leads.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// As many links as Linux follows.
const MOST_LINKS: usize = 40;

/// A path as the system takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Without links, as far as it is there.
    pub(crate) path: PathBuf,
    /// The links on the way, each where it lies itself.
    pub(crate) links: Vec<PathBuf>,
}

impl Resolved {
    /// Follows all links of an absolute path. What is not there, or can't be looked at, is taken as it is
    /// written. Blocks.
    pub(crate) fn of(path: &Path) -> Resolved {
        let mut resolved = Resolved { path: PathBuf::from("/"), links: Vec::new() };
        let mut rest: VecDeque<OsString> = parts(path);
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                resolved.path.pop();
                continue;
            }
            let next = resolved.path.join(&part);
            match std::fs::read_link(&next) {
                Ok(target) if resolved.links.len() < MOST_LINKS => {
                    if target.is_absolute() {
                        resolved.path = PathBuf::from("/");
                    }
                    resolved.links.push(next);
                    for part in parts(&target).into_iter().rev() {
                        rest.push_front(part);
                    }
                }
                Ok(_) | Err(_) => resolved.path = next,
            }
        }
        resolved
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::ParentDir => Some("..".into()),
        Component::Normal(name) => Some(name.to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_and_named_where_they_lie() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap();
        let real = root.join("a/real");
        std::fs::create_dir_all(&real).unwrap();
        symlink("real", root.join("a/near")).unwrap();
        symlink(root.join("a"), root.join("far")).unwrap();
        symlink("loop", root.join("loop")).unwrap();

        let resolved = Resolved::of(&root.join("far/near/../near/home"));
        assert_eq!(resolved.path, real.join("home"));
        let near = root.join("a/near");
        assert_eq!(resolved.links, [root.join("far"), near.clone(), near]);
        assert_eq!(Resolved::of(&real), Resolved { path: real, links: vec![] });
        assert_eq!(Resolved::of(&root.join("loop/x")).links.len(), MOST_LINKS);
    }
}
