//! The faults of the process as a whole; the table in `main.rs` says what each of them does.
//!
//! Every setting is the variable `FAKE_<NAME>` and the key `<name>` of `CODEX_HOME/fake.json`; the
//! file wins. It is read again for every line that arrives, so a test may change it at any time. A
//! setting that is not understood ends the process with status 64, so that no test passes by a typo.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::faults::{self, Death};

/// What holds for each method; `*` stands for all that are not named.
pub(crate) type ByMethod<T> = HashMap<String, T>;

/// The faults of the process as a whole.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub(crate) version: Option<String>,

    pub(crate) start_delay: Option<Span>,
    pub(crate) exit_at_start: Option<Death>,
    pub(crate) lock_starts: Option<Span>,
    pub(crate) stdout_at_start: Option<String>,
    pub(crate) stderr_at_start: Option<String>,

    pub(crate) delays: ByMethod<Span>,

    pub(crate) crash_after: Option<Span>,
    pub(crate) crash: Death,
}

/// A duration such as `500ms`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span(pub(crate) Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Span).map_err(serde::de::Error::custom)
    }
}

/// What holds for a method.
pub(crate) fn of<'a, T>(table: &'a ByMethod<T>, method: &str) -> Option<&'a T> {
    table.get(method).or_else(|| table.get("*"))
}

impl Settings {
    /// Reads what holds for the processes of this CODEX_HOME.
    pub(crate) fn load(home: Option<&Path>) -> Settings {
        let mut last = String::new();
        // A test that writes the file while it is read leaves half of it, for a moment.
        for _ in 0..50 {
            match read(home) {
                Ok(settings) => return settings,
                Err(error) => last = error,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        faults::complain(format!("fake_app_server: {last}\n").as_bytes());
        std::process::exit(64);
    }

    /// The version that it claims to be.
    pub(crate) fn version(&self) -> &str {
        self.version.as_deref().unwrap_or("0.169.0")
    }
}

fn read(home: Option<&Path>) -> Result<Settings, String> {
    let mut all = Map::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix("FAKE_")) else {
            continue;
        };
        let value = value.to_string_lossy();
        let value = serde_json::from_str(&value).unwrap_or_else(|_| Value::from(&*value));
        all.insert(name.to_ascii_lowercase(), value);
    }
    if let Some(path) = home.map(|home| home.join("fake.json")) {
        match std::fs::read(&path) {
            Ok(bytes) => {
                let file: Map<String, Value> = serde_json::from_slice(&bytes)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
                all.extend(file);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", path.display())),
        }
    }
    serde_json::from_value(Value::Object(all)).map_err(|error| format!("settings: {error}"))
}
