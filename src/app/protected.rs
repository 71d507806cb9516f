//! What no turn's commands may write on this machine, and what is said of that at the start.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::app_server::protected::{OF_OTHERS, ProtectedPath, ProtectedPaths, Protection, Root};
use crate::config::Config;

/// Looks for it, as often as it is asked: what is this tenant's, unless the configuration lets it be
/// written, and what is any other's. Blocks.
pub(super) fn of(config: &Config) -> Protection {
    let (home, state, tmpdir) = (config.codex_home.clone(), config.state_file(), tmpdir(config));
    let (is_own_kept, others) = (!config.allow_writable_codex_home, config.kept_from_turns.clone());
    Protection::new(move || {
        let own = is_own_kept.then(|| of_home(&home, state.as_deref())).unwrap_or_default();
        let others = others.iter().map(|path| ProtectedPath::new(OF_OTHERS, path));
        ProtectedPaths::new(own.into_iter().chain(others).collect(), tmpdir.as_deref())
    })
}

fn find(home: &Path, state: Option<&Path>, tmpdir: Option<&Path>) -> ProtectedPaths {
    ProtectedPaths::new(of_home(home, state), tmpdir)
}

fn of_home(home: &Path, state: Option<&Path>) -> Vec<ProtectedPath> {
    let home = ProtectedPath::new("CODEX_HOME", home);
    let mut paths = Vec::new();
    // What lies elsewhere, and is used as if it lay in it.
    for entry in std::fs::read_dir(&home.given).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            paths.push(ProtectedPath::new("what CODEX_HOME links to,", &entry.path()));
        }
    }
    paths.extend(state.map(|file| ProtectedPath::new("the sidecar's state", file)));
    let is_kept_with_home = |path: &Path| path.starts_with(&home.real.path);
    for path in &mut paths {
        let links = &mut path.real.links;
        links.retain(|link| !is_kept_with_home(link) && !home.real.links.contains(link));
    }
    paths.retain(|path| !is_kept_with_home(&path.real.path) || !path.real.links.is_empty());
    paths.insert(0, home);
    paths
}

/// `$TMPDIR` of the workers.
fn tmpdir(config: &Config) -> Option<PathBuf> {
    let own = config.worker_env.iter().rev().find(|(name, _)| name == "TMPDIR");
    let value: Option<OsString> = match own {
        Some((_, value)) => value.clone(),
        None => std::env::var_os("TMPDIR"),
    };
    value.map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Says once what turns in the workspace-write sandbox can do to CODEX_HOME and to the state, where that
/// is not nothing. Blocks.
pub(super) fn tell(config: &Config, default_directory: &Path) {
    let (home, state) = (&config.codex_home, config.state_file());
    let protected = find(home, state.as_deref(), tmpdir(config).as_deref()).with_cli(true);
    if let Some(ProtectedPath { name, real, .. }) = protected.in_temporary_directory() {
        tracing::warn!(
            "{name} {} lies in a temporary directory, which commands of WORKSPACE_WRITE turns can write, \
             and where Codex puts no helper programs; let it lie elsewhere",
            real.path.display()
        );
    }
    let written = written_by_default(&protected, home, default_directory);
    let Err(denied) = protected.shield(&written) else { return };
    let reasons: Vec<String> = denied.into_iter().map(|denied| denied.description).collect();
    let reasons = reasons.join("; ");
    if config.allow_writable_codex_home {
        tracing::warn!(
            "policy.allow_writable_codex_home is on: by default, commands of WORKSPACE_WRITE turns can \
             write what later turns go by: {reasons}"
        );
    } else {
        tracing::warn!("by default, WORKSPACE_WRITE turns are denied by policy: {reasons}");
    }
}

/// What a WORKSPACE_WRITE turn may write that says nothing else, as far as it can be known without Codex.
fn written_by_default(protected: &ProtectedPaths, home: &Path, directory: &Path) -> Vec<Root> {
    let text = std::fs::read_to_string(home.join("config.toml")).unwrap_or_default();
    let file: toml::Table = text.parse().unwrap_or_default();
    let table = file.get("sandbox_workspace_write").and_then(toml::Value::as_table);
    let is_set = |key: &str| {
        table.and_then(|table| table.get(key)).and_then(toml::Value::as_bool).unwrap_or(false)
    };
    let root = |path: PathBuf, is_configured| Root {
        path,
        field: "thread_options.sandbox_mode".to_owned(),
        is_configured,
    };
    let mut roots = vec![root(directory.to_owned(), false)];
    let configured = table.and_then(|table| table.get("writable_roots"));
    let configured = configured.and_then(toml::Value::as_array).into_iter().flatten();
    roots.extend(configured.filter_map(|path| Some(root(path.as_str()?.into(), true))));
    roots.extend((!is_set("exclude_slash_tmp")).then(|| protected.slash_tmp()));
    roots.extend(protected.tmpdir().filter(|_| !is_set("exclude_tmpdir_env_var")));
    roots
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServeArgs;

    /// The homes of all tenants are what some next turn goes by, and the processes of all have one user.
    #[test]
    fn a_turn_of_one_tenant_writes_neither_the_home_of_another_nor_what_callers_are_known_by() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let text = format!(
            "codex_home = {:?}\n[tenants.a]\ncodex_home = {:?}\n\
             [tenants.b]\ncodex_home = {:?}\ntoken_file = {:?}\n",
            at("top"),
            at("a"),
            at("b"),
            at("keys/tokens")
        );
        std::fs::write(at("sidecar.toml"), text).unwrap();
        let args = ServeArgs { config: Some(at("sidecar.toml").into()), ..ServeArgs::default() };
        let config = Config::load(args, &|_| None).unwrap();
        for home in ["a", "b", "top", "keys"] {
            std::fs::create_dir(at(home)).unwrap();
        }
        let root = |home: &str| Root {
            path: at(home),
            field: "thread_options.working_directory".to_owned(),
            is_configured: false,
        };
        let of_a = of(&config.tenants["a"].config).find().with_cli(true);
        assert!(of_a.shield(&[root("a")]).is_err(), "its own");
        for others in ["b", "top", "keys"] {
            let denied = of_a.shield(&[root(others)]).unwrap_err();
            // Where it is they learn no more of than they have said.
            let told = &denied[0].description;
            assert!(told.contains("what is not this tenant's"), "{told}");
            let others_own = ["top/", "keys/tokens", "sidecar.redb"];
            assert!(!others_own.iter().any(|path| told.contains(path)), "{told}");
        }
        let lets_its_own =
            Config { allow_writable_codex_home: true, ..config.tenants["a"].config.clone() };
        let of_a = of(&lets_its_own).find().with_cli(true);
        assert!(of_a.shield(&[root("a")]).is_ok());
        assert!(of_a.shield(&[root("b")]).is_err());
    }
}
