//! What the permission profiles of the CLI's configuration let be written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::ProtectedPaths;
use super::mounts::Mounts;
use super::resolve::Resolved;

/// The most profiles that extend one another.
const LONGEST_CHAIN: usize = 32;

/// The table `permissions` of the CLI's configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct ProfileTables(BTreeMap<String, ProfileTable>);

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ProfileTable {
    extends: Option<String>,
    workspace_roots: Option<Map<String, Value>>,
    filesystem: Option<Map<String, Value>>,
}

impl ProfileTables {
    /// What is mounted for commands of a turn that works there; `None` where nothing is kept from them.
    /// Blocks.
    ///
    /// # Errors
    /// Why that can't be told.
    pub(super) fn mounts(
        &self,
        name: &str,
        working_directory: &Path,
        protected: &ProtectedPaths,
    ) -> Result<Option<Mounts>, String> {
        let mut chain = Vec::new();
        let mut next = Some(name.to_owned());
        let mut built_in = None;
        while let Some(name) = next.take() {
            if name.starts_with(':') {
                built_in = Some(name);
                break;
            }
            let table = self.0.get(&name).ok_or_else(|| format!("there is no profile {name:?}"))?;
            chain.push(table);
            if chain.len() > LONGEST_CHAIN {
                return Err(format!("more than {LONGEST_CHAIN} profiles extend one another"));
            }
            next.clone_from(&table.extends);
        }
        let set = |roots: &Map<String, Value>| -> Vec<PathBuf> {
            let set = roots.iter().filter(|(_, is_set)| **is_set != Value::Bool(false));
            set.map(|(path, _)| at_home(path)).collect()
        };
        let mut workspace = vec![working_directory.to_owned()];
        for table in &chain {
            workspace.extend(table.workspace_roots.iter().flat_map(set));
        }
        let mut roots = Vec::new();
        match built_in.as_deref() {
            None | Some(":read-only") => {}
            Some(":workspace") => {
                roots.extend(workspace.iter().cloned());
                roots.push(protected.slash_tmp.clone());
                roots.extend(protected.tmpdir.clone());
            }
            Some(":danger-full-access") => return Ok(None),
            Some(other) => return Err(format!("{other:?} is not known here")),
        }
        let leads_to = |path: &PathBuf| Resolved::of(path).path;
        let roots: Vec<PathBuf> = roots.iter().map(leads_to).collect();
        let mut mounts = if protected.cli_keeps {
            Mounts::of(&roots)
        } else {
            Mounts { writable: roots, read_only: Vec::new() }
        };

        let special = |key: &str| -> Vec<PathBuf> {
            match key {
                ":slash_tmp" => vec![protected.slash_tmp.clone()],
                ":tmpdir" => protected.tmpdir.iter().cloned().collect(),
                ":workspace_roots" | ":project_roots" => workspace.clone(),
                // The whole, and what may be.
                _ => vec![PathBuf::from("/")],
            }
        };
        for (key, sub, access) in entries(&chain) {
            let bases = if key.starts_with(':') { special(&key) } else { vec![at_home(&key)] };
            let (bases, is_exact) = without_pattern(bases, &sub);
            for path in bases {
                let path = Resolved::of(&path).path;
                mounts.writable.retain(|root| *root != path || !is_exact);
                mounts.read_only.retain(|kept| *kept != path);
                match access.as_str() {
                    "read" | "deny" | "none" if is_exact => mounts.read_only.push(path),
                    // A pattern that denies keeps no directory from being moved.
                    "read" | "deny" | "none" => {}
                    _ => mounts.writable.push(path),
                }
            }
        }
        Ok(Some(mounts))
    }
}

/// The entries, those of what is extended before those that replace them.
fn entries(chain: &[&ProfileTable]) -> Vec<(String, String, String)> {
    let mut entries: BTreeMap<(String, String), String> = BTreeMap::new();
    for table in chain.iter().rev() {
        for (key, entry) in table.filesystem.iter().flatten() {
            let mut put = |sub: &str, access: &str| {
                entries.insert((key.clone(), sub.to_owned()), access.to_owned());
            };
            match entry {
                Value::String(access) => put("", access),
                Value::Object(parts) => {
                    for (sub, access) in parts {
                        let sub = if sub == "." { "" } else { sub };
                        put(sub, access.as_str().unwrap_or("write"));
                    }
                }
                // No entry, or none of a path.
                _ => {}
            }
        }
    }
    // `:minimal` and the like name what a program needs to be read.
    entries.retain(|(key, _), access| access != "read" || key == ":root" || is_place(key));
    entries.into_iter().map(|((key, sub), access)| (key, sub, access)).collect()
}

fn is_place(key: &str) -> bool {
    let known = [":slash_tmp", ":tmpdir", ":workspace_roots", ":project_roots"];
    !key.starts_with(':') || known.contains(&key)
}

/// The directories below these, up to the first pattern; whether there is none.
fn without_pattern(bases: Vec<PathBuf>, sub: &str) -> (Vec<PathBuf>, bool) {
    let is_pattern =
        |part: &std::ffi::OsStr| part.to_string_lossy().contains(['*', '?', '[', ']', '{', '}']);
    let mut is_exact = true;
    let cut = bases.into_iter().map(|base| {
        let whole = if sub.is_empty() { base } else { base.join(sub) };
        let cut: PathBuf = whole.iter().take_while(|part| !is_pattern(part)).collect();
        is_exact &= cut == whole;
        cut
    });
    (cut.collect(), is_exact)
}

/// The path with the user's home for `~`, as the worker has it.
fn at_home(path: &str) -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into()));
    match path.strip_prefix('~') {
        Some("") => home(),
        Some(rest) if rest.starts_with('/') => home().join(rest.trim_start_matches('/')),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::app_server::protected::ProtectedPath;

    #[test]
    fn a_profile_keeps_a_home_or_lets_it_be_written() {
        let judge = |home: &str, tables: Value| {
            let protected = ProtectedPaths::new(
                vec![ProtectedPath::new("CODEX_HOME", Path::new(home))],
                Some(Path::new("/nowhere/tmp")),
            );
            let tables: ProfileTables = serde_json::from_value(tables).unwrap();
            protected.with_cli(true).judge_profile("p", &tables, Path::new("/nowhere/w"))
        };
        let files = |files: Value| json!({ "p": { "extends": ":workspace", "filesystem": files } });
        let cases = [
            ("/nowhere/h", json!({ "p": {} }), true),
            ("/nowhere/h", files(json!({})), true),
            ("/nowhere/w/h", files(json!({})), false),
            ("/nowhere/w/.codex", files(json!({})), true),
            ("/nowhere/tmp/h", files(json!({})), false),
            ("/nowhere/tmp/h", files(json!({ ":tmpdir": "read" })), true),
            ("/nowhere/tmp/a/h", files(json!({ "/nowhere/tmp/a/h": "read" })), false),
            ("/nowhere/tmp/a/h", files(json!({ "/nowhere/tmp/a": "read" })), true),
            ("/nowhere/w/a/h", files(json!({ ":workspace_roots": { "a": "read" } })), true),
            ("/nowhere/w/a/h", files(json!({ ":workspace_roots": { "a/*": "deny" } })), false),
            ("/nowhere/h", files(json!({ "/nowhere": "write" })), false),
            ("/nowhere/h", files(json!({ "/nowhere/**": "write" })), false),
            ("/nowhere/h", files(json!({ "/nowhere": { "h": "write" } })), false),
            ("/nowhere/h", files(json!({ "/nowhere/h/skills": "write" })), false),
            ("/nowhere/h", files(json!({ ":root": "write" })), false),
            ("/nowhere/h", files(json!({ ":minimal": "read", "/else": "write" })), true),
            ("/nowhere/h", json!({ "p": { "filesystem": { ":something_new": "write" } } }), false),
            ("/nowhere/h", json!({ "p": { "extends": ":danger-full-access" } }), true),
            ("/nowhere/h", json!({ "p": { "extends": ":new" } }), false),
            ("/nowhere/h", json!({ "p": { "extends": "p" } }), false),
            ("/nowhere/h", json!({}), false),
            (
                "/nowhere/x/h",
                json!({ "p": { "extends": "q" }, "q": { "extends": ":workspace", "workspace_roots": { "/nowhere/x": true } } }),
                false,
            ),
            (
                "/nowhere/x/h",
                json!({ "p": { "extends": "q", "filesystem": { "/nowhere/x": "read" } }, "q": { "filesystem": { "/nowhere/x": "write" } } }),
                true,
            ),
        ];
        for (home, tables, keeps) in cases {
            let judged = judge(home, tables.clone());
            assert_eq!(judged.is_ok(), keeps, "{home} with {tables}: {judged:?}");
        }
    }
}
