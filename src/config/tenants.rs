//! The tenants: `[tenants.NAME]` of the file.
//!
//! A tenant's configuration is the top level's, overlaid with what its table says. What makes it another
//! one is its own alone: CODEX_HOME, state, key, credentials, tools. The top level is the tenant
//! `default`, and a table of that name is refused: there would be two places for one thing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::codec::show_bounded;
use super::file::{File, Origins};
use super::load::{KEY_VARIABLES, LOGIN_VARIABLE, Loader, Place, join, key_of};
use super::{ApiKey, Config, Credentials, Fault, TenantConfig, check, settings, tools};
use crate::access::files::{self, Readers};
use crate::access::{self, WrongSetting};
use crate::model::id::Tenant;
use crate::registry::ledger::StateSettings;

/// For how long a tenant's workers are kept without a turn, if nobody says.
const STOP_WHEN_IDLE: Duration = Duration::from_secs(600);

/// Reads the tables of all tenants; `top` is what they inherit.
pub(super) fn read(
    file: &File,
    top: &mut Config,
    env: &dyn Fn(&str) -> Option<OsString>,
    origins: &mut Origins,
    faults: &mut Vec<Fault>,
) {
    let Some(value) = file.table.get("tenants") else { return };
    let Some(tables) = value.as_table() else {
        return faults.push(Fault {
            origin: file.origin("tenants").to_string(),
            value: show_bounded(&value.to_string()),
            problem: "wants tables, like [tenants.research]".to_owned(),
        });
    };
    let mut tenants = BTreeMap::new();
    for (name, value) in tables {
        let path = format!("tenants.{name}");
        let mut refuse = |value: String, problem: String| {
            faults.push(Fault { origin: file.origin(&path).to_string(), value, problem });
        };
        if let Err(problem) = check_name(name) {
            refuse(format!("{:?}", show_bounded(name)), problem);
            // What it says has its place elsewhere.
            if *name == Tenant::default().0 {
                continue;
            }
        }
        let Some(table) = value.as_table() else {
            refuse(show_bounded(&value.to_string()), "wants a table".to_owned());
            continue;
        };
        let mut tenant = inheriting(name, top, origins);
        let place = Place::Tenant { path: &path, table };
        let mut loader = Loader::new(place, Some(file), origins, faults);
        settings::visit_tenant(&mut tenant, &mut loader);
        loader.refuse_unknown_keys(&["tools"]);
        tenant.config.tools =
            tools::read(file, table, &path, &tenant.config.policy, origins, faults);
        if !table.contains_key("codex_home") {
            faults.push(Fault {
                origin: file.origin(&format!("{path}.codex_home")).to_string(),
                value: String::new(),
                problem: "is missing: each tenant has a CODEX_HOME of its own".to_owned(),
            });
        }
        tenant.config.api_key = key(&tenant, &path, file, env, faults);
        check::together(&tenant.config, &path, origins, faults);
        tenants.insert(name.clone(), tenant);
    }
    check_places(top, &tenants, origins, faults);
    withhold_keys(top, &mut tenants);
    top.tenants = tenants;
    check_credentials(top, origins, faults);
}

fn check_name(name: &str) -> Result<(), String> {
    if name == Tenant::default().0 {
        return Err(
            "is the tenant that the top level of the file is: say there what is its".to_owned()
        );
    }
    tenant_name(name).map(drop)
}

/// A name that a tenant can have, `default` among them.
///
/// # Errors
/// Which it can.
pub(crate) fn tenant_name(name: &str) -> Result<&str, String> {
    let plausible = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=64).contains(&name.len()) && name.chars().all(plausible) {
        Ok(name)
    } else {
        Err("the name of a tenant wants 1 to 64 of a-z, 0-9 and -".to_owned())
    }
}

/// A tenant whose table says nothing.
fn inheriting(name: &str, top: &Config, origins: &Origins) -> TenantConfig {
    let mut config = Config {
        codex_home: PathBuf::new(),
        state: StateSettings { path: None, ..top.state.clone() },
        token_file: None,
        client_names: None,
        own_token: None,
        api_key: None,
        tools: BTreeMap::new(),
        tenants: BTreeMap::new(),
        tenant: Tenant(name.to_owned()),
        ..top.clone()
    };
    if !origins.contains_key("pool.stop_when_idle") {
        config.pool.stop_when_idle = Some(STOP_WHEN_IDLE);
    }
    TenantConfig {
        config,
        credentials: Credentials::default(),
        api_key_file: None,
        api_key_env: None,
        cpu_weight: None,
    }
}

/// The tenant's key for the model provider, from where its table says that it is.
fn key(
    tenant: &TenantConfig,
    path: &str,
    file: &File,
    env: &dyn Fn(&str) -> Option<OsString>,
    faults: &mut Vec<Fault>,
) -> Option<ApiKey> {
    let (name, value, read) = match (&tenant.api_key_file, &tenant.api_key_env) {
        (None, None) => return None,
        (Some(_), Some(name)) => {
            let problem = "stands beside api_key_file; give one of the two".to_owned();
            ("api_key_env", name.clone(), Err(problem))
        }
        (Some(place), None) => {
            let key = read_key_file(place).map(|text| (text, place.display().to_string()));
            ("api_key_file", place.display().to_string(), key)
        }
        (None, Some(name)) => {
            let text = env(name).and_then(|value| value.into_string().ok());
            let key = text.map(|text| (text, name.clone()));
            ("api_key_env", name.clone(), key.ok_or_else(|| "is not set".to_owned()))
        }
    };
    // The key itself is never told.
    let key = read.and_then(|(text, source)| {
        let text = key_of(&text)?;
        Ok(ApiKey { secret: SecretString::from(text), source: source.into() })
    });
    key.map_err(|problem| {
        let origin = file.origin(&format!("{path}.{name}")).to_string();
        faults.push(Fault { origin, value, problem });
    })
    .ok()
}

/// The text of a file that nobody else may read.
fn read_key_file(path: &Path) -> Result<String, String> {
    let bytes = files::read(path, Readers::Nobody)?;
    String::from_utf8(bytes).map_err(|_| "is no text".to_owned())
}

/// Refuses a CODEX_HOME, or a file of state, that two have.
fn check_places(
    top: &Config,
    tenants: &BTreeMap<String, TenantConfig>,
    origins: &Origins,
    faults: &mut Vec<Fault>,
) {
    let all = [("", top)]
        .into_iter()
        .chain(tenants.iter().map(|(name, tenant)| (name.as_str(), &tenant.config)));
    let mut homes = BTreeMap::new();
    let mut states = BTreeMap::new();
    for (name, config) in all {
        // What is missing is told already.
        if config.codex_home.as_os_str().is_empty() {
            continue;
        }
        let own = real(&config.codex_home);
        let nested =
            |other: &PathBuf| *other != own && (own.starts_with(other) || other.starts_with(&own));
        if let Some((other, whose)) = homes.iter().find(|(other, _)| nested(other)) {
            let key = if name.is_empty() {
                "codex_home".to_owned()
            } else {
                format!("tenants.{name}.codex_home")
            };
            let relation = if own.starts_with(other) { "lies in" } else { "holds" };
            let problem = format!("{relation} the CODEX_HOME of {whose}; put them side by side");
            let value = config.codex_home.display().to_string();
            faults.push(Fault { origin: check::origin(origins, &key), value, problem });
        }
        let mut take =
            |taken: &mut BTreeMap<PathBuf, String>, key: &str, place: &Path, what: &str| {
                let whose = match name {
                    "" => "the top level".to_owned(),
                    name => format!("tenants.{name}"),
                };
                match taken.get(&real(place)) {
                    Some(other) => {
                        let key =
                            if name.is_empty() { key.to_owned() } else { format!("{whose}.{key}") };
                        let origin = check::origin(origins, &key);
                        let value = place.display().to_string();
                        let problem = format!("is {what} of {other}, too; give each its own");
                        faults.push(Fault { origin, value, problem });
                    }
                    None => drop(taken.insert(real(place), whose)),
                }
            };
        let taken = homes.len();
        take(&mut homes, "codex_home", &config.codex_home, "the CODEX_HOME");
        // Told once: the state is in CODEX_HOME unless it is said where.
        if homes.len() > taken
            && let Some(state) = config.state_file()
        {
            take(&mut states, "state.path", &state, "the state");
        }
    }
}

/// The path without links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    for there in path.ancestors() {
        let Ok(real) = there.canonicalize() else { continue };
        let Ok(rest) = path.strip_prefix(there) else { continue };
        // What is not there has no links.
        return rest.components().fold(real, |mut real, part| {
            match part {
                Component::ParentDir => drop(real.pop()),
                Component::CurDir => {}
                part => real.push(part),
            }
            real
        });
    }
    path.to_owned()
}

/// Refuses what would be the credential of two, and names that nobody can show.
fn check_credentials(top: &Config, origins: &Origins, faults: &mut Vec<Fault>) {
    let (default, tenants) = top.credentials();
    let mut files = BTreeMap::new();
    let at = |name: &str| if name.is_empty() { String::new() } else { format!("tenants.{name}") };
    let all = tenants.iter().map(|(tenant, credentials)| (tenant.0.as_str(), credentials));
    for (name, credentials) in std::iter::once(("", &default)).chain(all) {
        let mut refuse = |key: &str, value: String, problem: String| {
            let origin = check::origin(origins, &join(&at(name), key));
            faults.push(Fault { origin, value, problem });
        };
        if !name.is_empty() && credentials.client_names.is_some() && top.tls.client_ca.is_none() {
            refuse("client_names", String::new(), check::NAMES_NEED_A_CA.to_owned());
        }
        let Some(path) = &credentials.token_file else { continue };
        if let Some(other) = files.insert(real(path), name) {
            let other = if other.is_empty() { "the top level".to_owned() } else { at(other) };
            let problem = format!("is {other}'s, too; a credential is one tenant's");
            refuse("token_file", path.display().to_string(), problem);
        }
    }
    let twice = access::given_twice(&default, &tenants).into_iter();
    faults.extend(twice.map(|WrongSetting { setting, problem }| Fault {
        origin: check::origin(origins, &setting),
        value: String::new(),
        problem,
    }));
}

/// Keeps the keys of each out of the workers of the others, which have the sidecar's environment.
fn withhold_keys(top: &mut Config, tenants: &mut BTreeMap<String, TenantConfig>) {
    let named: Vec<OsString> =
        tenants.values().filter_map(|tenant| tenant.api_key_env.as_ref()).map(Into::into).collect();
    let usual = [&KEY_VARIABLES[..], &[LOGIN_VARIABLE]].concat();
    let usual: Vec<OsString> = usual.into_iter().map(OsString::from).collect();
    // What is the top level's own key stays with it.
    let of_top = named.iter().filter(|name| !usual.contains(name));
    top.worker_env.extend(of_top.cloned().map(|name| (name, None)));
    for tenant in tenants.values_mut() {
        let all = named.iter().chain(&usual);
        tenant.config.worker_env.extend(all.cloned().map(|name| (name, None)));
    }
}
