//! Loads a configuration: flag over environment over file over default, all faults collected.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::codec::{Codec, Raw, show_bounded};
use super::file::{File, Origin, Origins, unknown_key};
use super::settings::Scope;
use super::settings::{self, Name, Visitor};
use super::{ApiKey, Config, Fault, LogFormat, ServeArgs, check, tenants, tools};

/// Where the key is looked for, the first that is not blank.
pub(super) const KEY_VARIABLES: [&str; 2] = ["CODEX_API_KEY", "OPENAI_API_KEY"];

/// A login that Codex itself looks for.
pub(super) const LOGIN_VARIABLE: &str = "CODEX_ACCESS_TOKEN";

pub(super) fn load(
    args: &ServeArgs,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> (Config, Origins, Vec<Fault>) {
    let mut faults = Vec::new();
    let file = read_file(args, env, &mut faults);
    let mut origins = Origins::new();
    let mut config = Config::default();
    if !std::io::stderr().is_terminal() {
        config.log_format = LogFormat::Json;
    }
    if let Some(home) = env("HOME").filter(|home| !home.is_empty()) {
        config.codex_home = Path::new(&home).join(".codex");
    }
    let place = Place::Top { args, env };
    let mut loader = Loader::new(place, file.as_ref(), &mut origins, &mut faults);
    settings::visit_top(&mut config, &mut loader);
    loader.refuse_unknown_keys(&["tools", "tenants"]);
    if let Some(file) = &file {
        config.tools =
            tools::read(file, &file.table, "", &config.policy, &mut origins, &mut faults);
    }
    config.api_key = read_key(env, &mut faults);
    check::together(&config, "", &origins, &mut faults);
    if let Some(file) = &file {
        tenants::read(file, &mut config, env, &mut origins, &mut faults);
    }
    // What a tenant inherits is wrong once.
    let mut told = HashSet::new();
    faults.retain(|fault| told.insert(fault.to_string()));
    (config, origins, faults)
}

/// The variable's value; blank is the same as not given.
fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<OsString> {
    env(name).filter(|value| !value.to_string_lossy().trim().is_empty())
}

fn read_key(env: &dyn Fn(&str) -> Option<OsString>, faults: &mut Vec<Fault>) -> Option<ApiKey> {
    let (source, value) =
        KEY_VARIABLES.into_iter().find_map(|name| Some((name, variable(env, name)?)))?;
    match key_of(&value.to_string_lossy()) {
        Ok(text) => Some(ApiKey { secret: SecretString::from(text), source: source.into() }),
        // The value itself is never told.
        Err(problem) => {
            faults.push(Fault { origin: source.to_owned(), value: String::new(), problem });
            None
        }
    }
}

/// The key that a text is.
pub(super) fn key_of(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err("wants a key of printable ASCII characters without spaces".to_owned())
    }
}

fn read_file(
    args: &ServeArgs,
    env: &dyn Fn(&str) -> Option<OsString>,
    faults: &mut Vec<Fault>,
) -> Option<File> {
    let (origin, path) = match &args.config {
        Some(path) => ("--config", path.clone()),
        None => ("CODEX_SIDECAR_CONFIG", variable(env, "CODEX_SIDECAR_CONFIG")?),
    };
    let path = PathBuf::from(path);
    let value = path.display().to_string();
    File::read(path)
        .map_err(|problem| faults.push(Fault { origin: origin.to_owned(), value, problem }))
        .ok()
}

/// Where settings are read.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// At the top level of the file, below flags and environment.
    Top { args: &'a ServeArgs, env: &'a dyn Fn(&str) -> Option<OsString> },
    /// In the table of a tenant, which is at this path of the file.
    Tenant { path: &'a str, table: &'a toml::Table },
}

/// Reads the settings of one place.
pub(super) struct Loader<'a> {
    place: Place<'a>,
    file: Option<&'a File>,
    section: &'static str,
    /// Keys by section, as they were asked for.
    known: BTreeMap<&'static str, BTreeSet<&'static str>>,
    /// The keys with their sections that are known and have no place here.
    misplaced: BTreeSet<(&'static str, &'static str)>,
    origins: &'a mut Origins,
    faults: &'a mut Vec<Fault>,
}

impl Visitor for Loader<'_> {
    fn section(&mut self, name: &'static str) {
        self.section = name;
        self.known.entry("").or_default().insert(name);
        self.known.entry(name).or_default();
    }

    fn required<C: Codec>(&mut self, name: Name, codec: C, slot: &mut C::Value) {
        if let Some(value) = self.find(name, &codec) {
            *slot = value;
        }
    }

    fn optional<C: Codec>(&mut self, name: Name, codec: C, slot: &mut Option<C::Value>) {
        if let Some(value) = self.find(name, &codec) {
            *slot = Some(value);
        }
    }
}

impl<'a> Loader<'a> {
    pub(super) fn new(
        place: Place<'a>,
        file: Option<&'a File>,
        origins: &'a mut Origins,
        faults: &'a mut Vec<Fault>,
    ) -> Loader<'a> {
        let known = BTreeMap::from([("", BTreeSet::new())]);
        Loader { place, file, section: "", known, misplaced: BTreeSet::new(), origins, faults }
    }

    /// The table of the place, and where it is in the file.
    fn table(&self) -> (Option<&'a toml::Table>, &'a str) {
        match self.place {
            Place::Top { .. } => (self.file.map(|file| &file.table), ""),
            Place::Tenant { path, table } => (Some(table), path),
        }
    }

    /// The value of the first source that has one. The other sources are read too: what they say
    /// is not used, yet a fault in it would show on the day that the first one is taken away.
    fn find<C: Codec>(&mut self, name: Name, codec: &C) -> Option<C::Value> {
        let (table, at) = self.table();
        let table = match self.section {
            "" => table,
            section => table.and_then(|table| table.get(section)?.as_table()),
        };
        let value = table.and_then(|table| table.get(name.key));
        let path = join(at, &join(self.section, name.key));
        if let (Place::Tenant { .. }, Scope::Sidecar) = (self.place, name.scope) {
            self.misplaced.insert((self.section, name.key));
            if let (Some(file), Some(value)) = (self.file, value) {
                let top = join(self.section, name.key);
                self.faults.push(Fault {
                    origin: file.origin(&path).to_string(),
                    value: Raw::Toml(value).show(),
                    problem: format!(
                        "is the sidecar's and no tenant's: say {top} at the top level"
                    ),
                });
            }
            return None;
        };
        self.known.entry(self.section).or_default().insert(name.key);
        let mut found = None;
        let here = Path::new("");

        if let Place::Top { args, env } = self.place {
            if let Some(flag) = name.flag
                && let Some(raw) = given(args, flag)
            {
                self.read(&path, Origin::Flag(flag), raw, here, codec, &mut found);
            }
            if let Some(name) = name.env
                && let Some(text) = variable(env, name)
            {
                let origin = Origin::Environment(name);
                self.read(&path, origin, Raw::Text(&text), here, codec, &mut found);
            }
        }
        if let (Some(file), Some(value)) = (self.file, value) {
            let origin = file.origin(&path);
            self.read(&path, origin, Raw::Toml(value), &file.directory, codec, &mut found);
        }
        found
    }

    fn read<C: Codec>(
        &mut self,
        path: &str,
        origin: Origin,
        raw: Raw<'_>,
        base: &Path,
        codec: &C,
        found: &mut Option<C::Value>,
    ) {
        match codec.read(raw, base) {
            Ok(value) => {
                if found.is_none() {
                    *found = Some(value);
                    self.origins.insert(path.to_owned(), origin);
                }
            }
            Err(problem) => {
                self.faults.push(Fault { origin: origin.to_string(), value: raw.show(), problem })
            }
        }
    }

    /// Refuses what nobody has asked for; `elsewhere` is read by others.
    pub(super) fn refuse_unknown_keys(&mut self, elsewhere: &[&'static str]) {
        let (Some(file), (Some(table), at)) = (self.file, self.table()) else { return };
        let mut top = self.known[""].clone();
        top.extend(elsewhere);
        // A section of which nothing has its place here is none.
        top.retain(|key| self.known.get(key).is_none_or(|keys| !keys.is_empty()));
        for (key, value) in table {
            if elsewhere.contains(&key.as_str())
                || self.misplaced.iter().any(|(section, other)| section.is_empty() && other == key)
            {
                continue;
            }
            match self.known.get(key.as_str()).filter(|_| !key.is_empty()) {
                Some(known) => match value.as_table() {
                    Some(table) => {
                        let is_unknown = |name: &&String| {
                            let is_misplaced = || {
                                let mut misplaced = self.misplaced.iter();
                                misplaced.any(|(section, other)| section == key && other == name)
                            };
                            !known.contains(name.as_str()) && !is_misplaced()
                        };
                        for name in table.keys().filter(is_unknown) {
                            let origin = file.origin(&join(at, &join(key, name)));
                            self.faults.push(unknown_key(origin, name, known));
                        }
                    }
                    None => self.faults.push(Fault {
                        origin: file.origin(&join(at, key)).to_string(),
                        value: show_bounded(&value.to_string()),
                        problem: "wants a table".to_owned(),
                    }),
                },
                None if !top.contains(key.as_str()) => {
                    self.faults.push(unknown_key(file.origin(&join(at, key)), key, &top));
                }
                None => {}
            }
        }
    }
}

/// The path of a key in a section.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// What a flag was given, by its name with the dashes.
fn given<'a>(args: &'a ServeArgs, flag: &str) -> Option<Raw<'a>> {
    let ServeArgs {
        listen,
        health_listen,
        insecure_listen,
        token_file,
        tls_cert,
        tls_key,
        tls_client_ca,
        codex_path,
        codex_home,
        share_codex_home,
        state,
        workers,
        config: _,
        offline_model,
        drain_grace,
        log_format,
        log,
        print_config: _,
    } = args;
    let value: &Option<OsString> = match flag {
        "--listen" => return (!listen.is_empty()).then_some(Raw::Texts(listen)),
        "--health-listen" => {
            return (!health_listen.is_empty()).then_some(Raw::Texts(health_listen));
        }
        "--insecure-listen" => insecure_listen,
        "--token-file" => token_file,
        "--tls-cert" => tls_cert,
        "--tls-key" => tls_key,
        "--tls-client-ca" => tls_client_ca,
        "--codex-path" => codex_path,
        "--codex-home" => codex_home,
        "--share-codex-home" => share_codex_home,
        "--state" => state,
        "--workers" => workers,
        "--offline-model" => offline_model,
        "--drain-grace" => drain_grace,
        "--log-format" => log_format,
        "--log" => log,
        _ => return None,
    };
    value.as_deref().map(|text: &OsStr| Raw::Text(text))
}
