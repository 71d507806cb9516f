//! What the workers are started with, as the configuration and this machine say it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use secrecy::{ExposeSecret as _, SecretString};

use super::home_lock::HomeLock;
use super::protected;
use crate::app_server::command_environment::{self, Named};
use crate::app_server::login;
use crate::app_server::peer::PeerLimits;
use crate::app_server::protected::Resolved;
use crate::app_server::secrets;
use crate::codex_cli::{self, CliVersion};
use crate::config::{ApiKey, Config};
use crate::grpc::limits::RequestLimits;
use crate::offline_model::OfflineModel;
use crate::process;
use crate::turn::machine::MOST_PENDING;
use crate::worker::child::{Child, Outfit, is_out_of_resources};
use crate::worker::environment;
use crate::worker::{WorkerLimits, WorkerSpec};

/// The variable of the key that configurations can name.
const KEY: &str = "CODEX_API_KEY";

/// This program, where it is the sidecar and not one that has the sidecar inside.
fn own_binary() -> Option<PathBuf> {
    let name = std::env::current_exe().ok()?;
    // By this path it is there even after its file was replaced.
    (name.file_stem()? == env!("CARGO_PKG_NAME")).then(|| PathBuf::from("/proc/self/exe"))
}

pub(super) fn worker_spec(
    config: &Config,
    home_lock: Option<Arc<HomeLock>>,
    offline_model: Option<&OfflineModel>,
    spawned: Option<Arc<dyn Fn(u32) + Send + Sync>>,
) -> WorkerSpec {
    let mut config_overrides = Vec::new();
    // Above the offline model's, so that what the owner configured for the workers wins.
    config_overrides.extend(offline_model.map(OfflineModel::config_overrides).unwrap_or_default());
    // This process may not be looked into, not by its workers either.
    config_overrides.extend(offline_model.and_then(|model| {
        let written = model.write_catalog(&config.codex_home);
        // What is wrong with CODEX_HOME the workers' start tells.
        written.inspect_err(|error| tracing::debug!(%error, "the model's catalog")).ok()
    }));
    config_overrides.extend(config.worker.config_overrides());
    // Older CLIs ignore it. An ephemeral thread can't be archived: unloading it is the only way to
    // have its memory back.
    config_overrides.insert(0, "thread_unload_delay_secs=1".to_owned());

    if let Ok(default_directory) = std::env::current_dir() {
        protected::tell(config, &default_directory);
    }
    let mark = process::instance_variable(&config.codex_home)
        .inspect_err(|error| tracing::debug!(%error, "workers are not marked"))
        .ok();
    let outfit = outfit(config, offline_model.is_some());
    let configured = config.codex_path.clone();
    let codex_home = config.codex_home.clone();
    let child = Child {
        locate: Arc::new(move || {
            codex_cli::find(configured.as_deref(), std::env::var_os("PATH").as_deref())
                .map_err(|error| error.to_string())
        }),
        guard: config.guard.clone().or_else(own_binary),
        mark,
        outfit: Arc::new(outfit),
        spawned,
    };
    WorkerSpec {
        launch: Arc::new(child),
        config_file: codex_home.join("config.toml"),
        check_home: Arc::new(move || {
            check_home(&codex_home)?;
            let Some(lock) = &home_lock else { return Ok(()) };
            lock.check().map_err(|owner| {
                let home = codex_home.display();
                format!("CODEX_HOME {home} is used by another sidecar ({owner}); give one of them its own")
            })
        }),
        check_version: Arc::new(|version| {
            let parsed: CliVersion = version.parse().map_err(|error| format!("{error}"))?;
            if parsed.is_supported() {
                return Ok(());
            }
            if parsed.is_unversioned() {
                tracing::warn!("the CLI was built from source and does not know its version");
                return Ok(());
            }
            let oldest = codex_cli::OLDEST_SUPPORTED;
            Err(format!("it is version {version}, and the oldest that is supported is {oldest}"))
        }),
        config_overrides,
        secrets: known_secrets(config),
        protected: protected::of(config),
        limits: WorkerLimits {
            peer: PeerLimits {
                max_echo_bytes: longest_echo(&config.requests),
                ..config.worker.limits.peer.clone()
            }
            // All of them may be one worker's.
            .with_questions(config.limits.max_running_turns.saturating_mul(MOST_PENDING)),
            ..config.worker.limits.clone()
        },
    }
}

/// What a worker is started with beside its settings: the part of this process's environment that it needs,
/// and that its commands don't see the keys in there.
fn outfit(config: &Config, is_offline: bool) -> impl Fn() -> Outfit + use<> {
    let config_file = config.codex_home.join("config.toml");
    let owner = owners_names(config);
    let added = config.worker.environment.clone();
    let mut changes = config.worker_env.clone();
    // Where links lead: one on the way could be replaced, and Codex can't keep what lies behind one from
    // being written.
    let real_home = Resolved::of(&config.codex_home).path;
    changes.push(("CODEX_HOME".into(), Some(real_home.into_os_string())));
    let key = config.api_key.clone();
    let login_file = config.codex_home.join("auth.json");
    let forbids_keys = login::forbids_keys(&command_environment::nested(&config.worker.config));
    if is_offline {
        changes.extend(without_proxies_on_loopback(|name| std::env::var_os(name)));
    }
    let is_told = std::sync::Once::new();
    move || {
        let mut named = owner.clone();
        let mut forbids_keys = forbids_keys;
        // The user's may have changed since; the machine's stands behind it.
        for file in [Path::new("/etc/codex/config.toml"), &config_file] {
            let text = protected::text_of(file);
            let table = text.parse().unwrap_or_default();
            forbids_keys |= login::forbids_keys(&table);
            named.extend(Named::of(&table));
        }
        let Named { variables, keys, excluded } = named;
        let passed = environment::passed(std::env::vars_os(), &variables, &added);
        let mut env: BTreeMap<OsString, OsString> = passed.into_iter().collect();
        is_told.call_once(|| {
            let is_kept = |name: &OsString| !env.contains_key(name);
            let kept: Vec<OsString> = std::env::vars_os().map(|it| it.0).filter(is_kept).collect();
            tracing::debug!(?kept, "variables that workers don't get ([worker] environment)");
        });
        for (name, value) in &changes {
            match value {
                Some(value) => env.insert(name.clone(), value.clone()),
                None => env.remove(name),
            };
        }
        if let Some(key) = key.as_ref().filter(|_| variables.iter().any(|name| name == KEY)) {
            env.insert(KEY.into(), key.secret.expose_secret().into());
        }
        let env: Vec<(OsString, OsString)> = env.into_iter().collect();
        let hidden = environment::hidden(&env, keys);
        let excluded: BTreeSet<String> = hidden.into_iter().chain(excluded).collect();
        let mut config_overrides = Vec::new();
        let api_key = key.as_ref().and_then(|key| to_log_in_with(key, forbids_keys, &login_file));
        config_overrides.extend(api_key.is_some().then(|| login::IN_MEMORY.to_owned()));
        Outfit { env, config_overrides, api_key, excluded: excluded.into_iter().collect() }
    }
}

/// The key that a worker is to know; `None` where its user's login is to be used. It wins over that login,
/// as it does with `codex exec`, but for the key that `codex exec` does not look for: that one stands in
/// many an environment for other programs.
fn to_log_in_with(key: &ApiKey, forbids_keys: bool, login_file: &Path) -> Option<SecretString> {
    if forbids_keys {
        tracing::warn!(%key.source, "the key is not used: forced_login_method is \"chatgpt\"");
        return None;
    }
    if key.source == "OPENAI_API_KEY" && login_file.exists() {
        tracing::info!(
            "OPENAI_API_KEY is not used: CODEX_HOME has a login; CODEX_API_KEY wins over it"
        );
        return None;
    }
    Some(key.secret.clone())
}

/// The variables that the owner's settings of Codex name, for all workers and for single tools.
fn owners_names(config: &Config) -> Named {
    let mut named = Named::of(&command_environment::nested(&config.worker.config));
    for tool in config.tools.values() {
        let overrides = tool.thread_options.config.as_ref().map(toml::Table::try_from);
        if let Some(Ok(overrides)) = overrides {
            let Named { variables, keys, excluded: _ } =
                Named::of(&command_environment::nested(&overrides));
            named.extend(Named { variables, keys, excluded: Vec::new() });
        }
    }
    named
}

/// The variables that keep a proxy of the environment out of what goes to this machine itself: no
/// proxy reaches the offline model, and Codex would wait for one without end. Both spellings, each
/// with what it says already: programs differ in which of them wins.
fn without_proxies_on_loopback(
    env: impl Fn(&str) -> Option<OsString>,
) -> impl Iterator<Item = (OsString, Option<OsString>)> {
    const LOOPBACK: &str = "127.0.0.1,localhost,::1";
    let said = |name: &str| env(name).filter(|value| !value.is_empty());
    let (upper, lower) = (said("NO_PROXY"), said("no_proxy"));
    let with_loopback = |value: Option<OsString>| match value {
        Some(mut value) => {
            value.push(",");
            value.push(LOOPBACK);
            value
        }
        None => LOOPBACK.into(),
    };
    let both = [("NO_PROXY", upper.clone().or(lower.clone())), ("no_proxy", lower.or(upper))];
    both.map(|(name, value)| (name.into(), Some(with_loopback(value)))).into_iter()
}

/// How long the line can be in which Codex tells back the input of a request that was accepted: as long
/// as the request, five bytes more for a character that JSON escapes at its longest (`\u0001`), and
/// what stands around it.
fn longest_echo(limits: &RequestLimits) -> usize {
    const AROUND: usize = 256 * 1024;
    let escaped = limits.max_input_characters.min(limits.max_message_bytes).saturating_mul(5);
    limits.max_message_bytes.saturating_add(escaped).saturating_add(AROUND)
}

/// What must not be in anything that a worker says: the keys that it is given, and what its CODEX_HOME
/// and its overrides hold or name.
fn known_secrets(config: &Config) -> Arc<dyn Fn() -> Vec<String> + Send + Sync> {
    let key = config.api_key.as_ref().map(|key| key.secret.expose_secret().to_owned());
    let overrides = secrets::of_config(&command_environment::nested(&config.worker.config));
    let tools = owners_names(config).keys;
    let home = config.codex_home.clone();
    Arc::new(move || {
        // Read anew: a login may be newer than the sidecar.
        let read = |name: &str| protected::text_of(&home.join(name));
        let configured = secrets::of_config(&read("config.toml").parse().unwrap_or_default());
        let variables = ["CODEX_API_KEY", "OPENAI_API_KEY"].map(str::to_owned).into_iter();
        let variables = variables.chain(overrides.variables.clone()).chain(configured.variables);
        let variables = variables.chain(tools.clone());
        let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
        key.clone()
            .into_iter()
            .chain(environment::proxy_passwords(&environment))
            // Whatever of the sidecar's environment a worker has.
            .chain(variables.filter_map(|name| std::env::var(name).ok()))
            .chain(overrides.values.clone())
            .chain(configured.values)
            .chain(secrets::of_login(&read("auth.json")))
            .collect()
    })
}

/// Room without which a turn or two fill the disk, in bytes.
const LEAST_ROOM: u64 = 1 << 20;

/// Whether Codex can write into its home: it is made if it is missing, which Codex would refuse, a file
/// of the size of a short turn's rollout is written and removed, and there must be room for some more.
/// The same where Codex keeps what is said on threads, which may be a disk of its own.
fn check_home(home: &Path) -> Result<(), String> {
    std::fs::create_dir_all(home).map_err(|error| {
        let shown = home.display();
        format!("CODEX_HOME {shown} can't be made: {error}; name another one, or make it")
    })?;
    check_directory(home)?;
    let sessions = home.join("sessions");
    if sessions.is_dir() { check_directory(&sessions) } else { Ok(()) }
}

fn check_directory(directory: &Path) -> Result<(), String> {
    let shown = directory.display();
    let probe = directory.join(format!(".codex-sidecar-probe-{}", uuid::Uuid::new_v4()));
    let written = std::fs::write(&probe, [b' '; 64 * 1024]);
    let removed = std::fs::remove_file(&probe);
    match written.and(removed) {
        Ok(()) => {}
        // Not the fault of the home: the start of a worker tells of it.
        Err(error) if is_out_of_resources(&error) => return Ok(()),
        Err(error) => {
            return Err(format!(
                "{shown} in CODEX_HOME can't be written: {error}; make room or give the right to write"
            ));
        }
    }
    match room(directory) {
        Some(room) if room < LEAST_ROOM => Err(format!(
            "the disk of {shown} in CODEX_HOME has {room} bytes left, and Codex needs at least \
             {LEAST_ROOM} to go on; make room"
        )),
        Some(_) | None => Ok(()),
    }
}

/// How many bytes this process may still write; `None` where the system does not say.
fn room(directory: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(directory).ok()?;
    let blocks = if rustix::process::geteuid().is_root() { disk.f_bfree } else { disk.f_bavail };
    // Some file systems have no bounds of their own, and say so by none at all.
    (disk.f_blocks > 0).then(|| blocks.saturating_mul(disk.f_frsize))
}
