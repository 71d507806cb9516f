//! What no turn's commands may write on this machine, and what is said of that at the start.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::app_server::protected::{ProtectedPath, ProtectedPaths, Protection, Root};
use crate::config::{Config, KeptBeside};
use crate::model::id::Tenant;

/// Tells each tenant's configuration what commands of its turns must not write of others.
pub(super) fn share(config: &mut Config) {
    let (tls, tenants) = (&config.tls, config.tenants.values());
    let credentials = [&config.token_file, &tls.cert, &tls.key, &tls.client_ca].into_iter();
    let credentials =
        credentials.cloned().chain(tenants.flat_map(|tenant| {
            [tenant.credentials.token_file.clone(), tenant.api_key_file.clone()]
        }));
    let credentials: Vec<PathBuf> = credentials.flatten().collect();
    let all: Vec<(Tenant, Vec<PathBuf>)> = std::iter::once(&*config)
        .chain(config.tenants.values().map(|tenant| &tenant.config))
        .map(|one| {
            let paths = [Some(one.codex_home.clone()), one.state_file()];
            (one.tenant.clone(), paths.into_iter().flatten().collect())
        })
        .collect();
    let beside = |own: &Tenant| {
        let others = all.iter().filter(|(tenant, _)| tenant != own);
        let of_tenants = others.flat_map(|(_, paths)| paths).cloned().collect();
        KeptBeside { of_tenants, credentials: credentials.clone() }
    };
    config.kept_beside = beside(&config.tenant);
    for tenant in config.tenants.values_mut() {
        tenant.config.kept_beside = beside(&tenant.config.tenant);
    }
}

/// Looks for it, as often as it is asked; not for its own where the configuration lets that be written.
/// Blocks.
pub(super) fn of(config: &Config) -> Protection {
    let (home, state, tmpdir) = (config.codex_home.clone(), config.state_file(), tmpdir(config));
    let (beside, is_allowed) = (config.kept_beside.clone(), config.allow_writable_codex_home);
    Protection::new(move || {
        let mut paths = match is_allowed {
            true => Vec::new(),
            false => own(&home, state.as_deref()),
        };
        let KeptBeside { of_tenants, credentials } = &beside;
        // What two share is told as one's own.
        let is_told = |path: &&PathBuf| paths.iter().any(|told| told.given == **path);
        let others = of_tenants.iter().filter(|path| !is_told(path) && **path != home);
        let others: Vec<_> = others.map(|path| ProtectedPath::of_another(path)).collect();
        paths.extend(others);
        // One that is given by a descriptor lies nowhere.
        let files = credentials.iter().filter(|path| path.is_file());
        paths.extend(files.map(|path| ProtectedPath::of_credentials(path)));
        ProtectedPaths::new(paths, tmpdir.as_deref())
    })
}

fn find(home: &Path, state: Option<&Path>, tmpdir: Option<&Path>) -> ProtectedPaths {
    ProtectedPaths::new(own(home, state), tmpdir)
}

fn own(home: &Path, state: Option<&Path>) -> Vec<ProtectedPath> {
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

/// The text of a file of the CLI's, if it is one, of a plausible length.
pub(super) fn text_of(path: &Path) -> String {
    const LONGEST: u64 = 1 << 20;
    // A pipe, or a device, has no end.
    let read = || {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let file = std::fs::File::from(file);
        let mut text = String::new();
        (file.metadata().ok()?.is_file())
            .then(|| file.take(LONGEST).read_to_string(&mut text).ok())??;
        Some(text)
    };
    read().unwrap_or_default()
}

/// What a WORKSPACE_WRITE turn may write that says nothing else, as far as it can be known without Codex.
fn written_by_default(protected: &ProtectedPaths, home: &Path, directory: &Path) -> Vec<Root> {
    let text = text_of(&home.join("config.toml"));
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
    use crate::config::{Credentials, TenantConfig};

    #[test]
    fn no_turn_of_a_tenant_may_write_what_is_kept_for_others_nor_is_told_where_it_lies() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let at = |name: &str| place.join(name);
        for name in ["top", "a", "b", "secrets", "work"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        std::fs::write(at("secrets/tokens"), "").unwrap();
        let home = |name: &str| Config { codex_home: at(name), ..Config::default() };
        let mut config = home("top");
        for name in ["a", "b"] {
            let tenant = TenantConfig {
                config: Config { tenant: Tenant(name.to_owned()), ..home(name) },
                credentials: Credentials {
                    token_file: (name == "b").then(|| at("secrets/tokens")),
                    ..Credentials::default()
                },
                api_key_file: None,
                api_key_env: None,
                cpu_weight: None,
            };
            config.tenants.insert(name.to_owned(), tenant);
        }
        // Its own it may write.
        config.tenants.get_mut("a").unwrap().config.allow_writable_codex_home = true;
        share(&mut config);
        let of_a = of(&config.tenants["a"].config).find().with_cli(true);
        let denied = |path: &Path, is_configured: bool| {
            let field = "thread_options.working_directory".to_owned();
            let root = Root { path: path.to_owned(), field, is_configured };
            let denied = of_a.shield(&[root]).err().into_iter().flatten();
            denied.map(|denied| denied.description).collect::<Vec<_>>().join("; ")
        };
        for name in ["b", "top", "secrets"] {
            let told = denied(&at(name), false);
            assert!(told.contains("what the sidecar keeps"), "{name}: {told}");
        }
        let told = denied(&place, false);
        assert!(!told.contains("redb") && !told.contains("tokens"), "{told}");
        for name in ["a", "work"] {
            assert_eq!(denied(&at(name), false), "", "{name}");
        }
        // A temporary directory, which all turns may write.
        assert_eq!(denied(&at("secrets"), true), "");
    }

    /// The look at the start of a tenant's house is on a thread of the runtime, which all tenants share.
    #[test]
    fn a_home_that_does_not_answer_holds_up_nobody() {
        let place = tempfile::tempdir().unwrap();
        let fifo = place.path().join("config.toml");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600))
            .unwrap();
        let config = Config { codex_home: place.path().to_owned(), ..Config::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            runtime.block_on(async {
                // Another tenant's.
                let other = tokio::spawn(tokio::task::yield_now());
                let _spec = super::super::worker_spec::worker_spec(&config, None, None, None);
                let _ = other.await;
            });
            let _ = done.send(());
        });
        let in_time = is_done.recv_timeout(std::time::Duration::from_secs(5));
        if in_time.is_err() {
            // Lets go of the thread.
            let _ = std::fs::OpenOptions::new().write(true).open(&fifo);
        }
        assert!(in_time.is_ok(), "the runtime's thread waits for the config.toml of one tenant");
    }
}
