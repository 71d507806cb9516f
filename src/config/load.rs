//! Loads a configuration: flag over environment over file over default, all faults collected.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

use super::codec::{Codec, Raw, show_bounded};
use super::file::{File, Origin, Origins, unknown_key};
use super::settings::{self, Name, Visitor};
use super::{ApiKey, Config, ConfigErrors, Fault, LogFormat, ServeArgs, check, tools};

/// Where the key is looked for, the first that is not blank.
const KEY_VARIABLES: [&str; 2] = ["CODEX_API_KEY", "OPENAI_API_KEY"];

pub(super) fn load(
    args: &ServeArgs,
    env: &dyn Fn(&str) -> Option<OsString>,
) -> Result<(Config, Origins), ConfigErrors> {
    let mut faults = Vec::new();
    let file = read_file(args, env, &mut faults);
    let mut loader = Loader {
        args,
        env,
        file: file.as_ref(),
        section: "",
        known: BTreeMap::from([("", BTreeSet::new())]),
        origins: Origins::new(),
        faults,
    };
    let mut config = Config::default();
    if !std::io::stderr().is_terminal() {
        config.log_format = LogFormat::Json;
    }
    if let Some(home) = env("HOME").filter(|home| !home.is_empty()) {
        config.codex_home = Path::new(&home).join(".codex");
    }
    settings::visit(&mut config, &mut loader);
    loader.refuse_unknown_keys();
    let Loader { mut origins, mut faults, .. } = loader;
    if let Some(file) = &file {
        config.tools = tools::read(file, &mut origins, &mut faults);
    }
    config.api_key = read_key(env, &mut faults);
    check::together(&config, &origins, &mut faults);
    if faults.is_empty() { Ok((config, origins)) } else { Err(ConfigErrors(faults)) }
}

/// The variable's value; blank is the same as not given.
fn variable(env: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<OsString> {
    env(name).filter(|value| !value.to_string_lossy().trim().is_empty())
}

fn read_key(env: &dyn Fn(&str) -> Option<OsString>, faults: &mut Vec<Fault>) -> Option<ApiKey> {
    let (source, value) =
        KEY_VARIABLES.into_iter().find_map(|name| Some((name, variable(env, name)?)))?;
    match value.to_str().map(str::trim) {
        Some(text) if text.chars().all(|c| c.is_ascii_graphic()) => {
            Some(ApiKey { secret: SecretString::from(text.to_owned()), source })
        }
        // The value itself is never told.
        _ => {
            faults.push(Fault {
                origin: source.to_owned(),
                value: String::new(),
                problem: "wants a key of printable ASCII characters without spaces".to_owned(),
            });
            None
        }
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

struct Loader<'a> {
    args: &'a ServeArgs,
    env: &'a dyn Fn(&str) -> Option<OsString>,
    file: Option<&'a File>,
    section: &'static str,
    /// Keys by section, as they were asked for.
    known: BTreeMap<&'static str, BTreeSet<&'static str>>,
    origins: Origins,
    faults: Vec<Fault>,
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

impl Loader<'_> {
    /// The value of the first source that has one. The other sources are read too: what they say
    /// is not used, yet a fault in it would show on the day that the first one is taken away.
    fn find<C: Codec>(&mut self, name: Name, codec: &C) -> Option<C::Value> {
        self.known.entry(self.section).or_default().insert(name.key);
        let path = join(self.section, name.key);
        let mut found = None;
        let here = Path::new("");

        if let Some(flag) = name.flag {
            let args = self.args;
            if let Some(raw) = given(args, flag) {
                self.read(&path, Origin::Flag(flag), raw, here, codec, &mut found);
            }
        }
        if let Some(env) = name.env
            && let Some(text) = variable(self.env, env)
        {
            self.read(&path, Origin::Environment(env), Raw::Text(&text), here, codec, &mut found);
        }
        if let Some(file) = self.file {
            let table = match self.section {
                "" => Some(&file.table),
                section => file.table.get(section).and_then(|value| value.as_table()),
            };
            if let Some(value) = table.and_then(|table| table.get(name.key)) {
                let origin = file.origin(&path);
                self.read(&path, origin, Raw::Toml(value), &file.directory, codec, &mut found);
            }
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

    fn refuse_unknown_keys(&mut self) {
        let Some(file) = self.file else { return };
        for (key, value) in &file.table {
            if key == "tools" {
                continue;
            }
            let mut top = self.known[""].clone();
            top.insert("tools");
            match self.known.get(key.as_str()).filter(|_| !key.is_empty()) {
                Some(known) => match value.as_table() {
                    Some(table) => {
                        let unknown = table.keys().filter(|name| !known.contains(name.as_str()));
                        for name in unknown {
                            let origin = file.origin(&join(key, name));
                            self.faults.push(unknown_key(origin, name, known));
                        }
                    }
                    None => self.faults.push(Fault {
                        origin: file.origin(key).to_string(),
                        value: show_bounded(&value.to_string()),
                        problem: "wants a table".to_owned(),
                    }),
                },
                None if !top.contains(key.as_str()) => {
                    self.faults.push(unknown_key(file.origin(key), key, &top));
                }
                None => {}
            }
        }
    }
}

fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

/// What a flag was given, by its name with the dashes.
fn given<'a>(args: &'a ServeArgs, flag: &str) -> Option<Raw<'a>> {
    let ServeArgs {
        listen,
        health_listen,
        insecure_listen,
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
