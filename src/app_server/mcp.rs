//! MCP servers, as Codex tells of them and as it is asked about them.
//!
//! Codex starts a thread's servers when it loads the thread. It waits for those that are `required`
//! before it answers, and tells of each only after that answer. Of a server
//! that ends later it tells nothing: it has to be asked.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::app_server::client::LoadOptions;

/// How long Codex lets a server take to start that has no `startup_timeout_sec` (0.169.0).
pub(crate) const DEFAULT_STARTUP_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest error of a server that is kept, in bytes.
const MAX_ERROR_BYTES: usize = 4096;

/// A server's error as it may be shown: bounded, and without what a URL has of credentials.
pub(super) fn shown(error: &str) -> String {
    let mut end = error.len().min(MAX_ERROR_BYTES);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    without_url_secrets(&error[..end])
}

/// The text without the user, the password, the query and the fragment of the URLs in it.
fn without_url_secrets(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + "://".len());
        shown.push_str(before);
        let is_end = |c: char| c.is_whitespace() || matches!(c, ')' | '"' | '\'' | '>' | '`' | ',');
        let end = url.find(is_end).unwrap_or(url.len());
        let (mut url, after) = url.split_at(end);
        let authority_end = url.find(['/', '?', '#']).unwrap_or(url.len());
        if let Some(user_end) = url[..authority_end].rfind('@') {
            url = &url[user_end + 1..];
        }
        match url.find(['?', '#']) {
            Some(secret) => {
                shown.push_str(&url[..=secret]);
                shown.push_str("[redacted]");
            }
            None => shown.push_str(url),
        }
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// What Codex says of a server that it is asked about.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its connection; older CLIs don't say.
    #[serde(default)]
    runtime_status: Option<String>,
    /// The HTTP server that it is; `None` for a process.
    #[serde(default)]
    http_origin: Option<String>,
    /// Why its tools could not be listed.
    #[serde(default)]
    tools_error: Option<String>,
}

impl ServerStatus {
    /// Whether it failed to start, or has ended.
    pub fn is_down(&self) -> bool {
        matches!(self.runtime_status.as_deref(), Some("failed" | "cancelled"))
    }

    /// Whether it is reached through HTTP.
    pub fn is_remote(&self) -> bool {
        self.http_origin.is_some()
    }

    /// Why it is down, where Codex says so.
    pub fn error(&self) -> String {
        self.tools_error.as_deref().map(shown).unwrap_or_default()
    }
}

/// The part of the answer to `config/read` that is about MCP servers.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ConfigRead {
    #[serde(default)]
    config: Config,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Config {
    #[serde(default)]
    mcp_servers: Option<Map<String, Value>>,
}

/// How a server is configured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Whether it is started at all.
    pub enabled: bool,
    /// Whether a thread can't be without it.
    pub required: bool,
    startup_timeout_sec: Option<f64>,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig { enabled: true, required: false, startup_timeout_sec: None }
    }
}

impl ServerConfig {
    /// How long it may take to start.
    pub fn startup_timeout(&self) -> Duration {
        let seconds = self.startup_timeout_sec.map(Duration::try_from_secs_f64);
        seconds.and_then(Result::ok).unwrap_or(DEFAULT_STARTUP_TIMEOUT)
    }
}

impl ConfigRead {
    /// The names of the servers.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.config.mcp_servers.iter().flat_map(Map::keys)
    }

    /// The servers of a thread that is loaded with this.
    pub fn servers(&self, load: &LoadOptions) -> BTreeMap<String, ServerConfig> {
        let mut root =
            json!({ "mcp_servers": self.config.mcp_servers.clone().unwrap_or_default() });
        for (path, value) in &load.config {
            // Codex itself splits the path so.
            let mut at = &mut root;
            for name in path.split('.') {
                if !at.is_object() {
                    *at = json!({});
                }
                at = &mut at[name];
            }
            merge(at, value);
        }
        let servers = root["mcp_servers"].as_object().cloned().unwrap_or_default();
        let read = |server: Value| serde_json::from_value(server).unwrap_or_default();
        servers.into_iter().map(|(name, server)| (name, read(server))).collect()
    }

    /// How long Codex may take with the servers that it waits for before it answers that a thread is
    /// loaded; they start at once.
    pub(super) fn longest_required_start(&self, load: &LoadOptions) -> Duration {
        let servers = self.servers(load).into_values();
        let waited_for = servers.filter(|server| server.enabled && server.required);
        waited_for.map(|server| server.startup_timeout()).max().unwrap_or_default()
    }
}

/// Lays a table over another, as Codex does.
fn merge(at: &mut Value, over: &Value) {
    match (at, over) {
        (Value::Object(at), Value::Object(over)) => {
            for (name, value) in over {
                merge(at.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (at, over) => *at = over.clone(),
    }
}

/// The overrides of a thread that is to have no MCP servers: an empty table would be laid over the
/// configured one and take nothing away. `configured` are the names of the servers that the
/// configuration has.
pub(super) fn without_servers<'a>(
    overrides: &Map<String, Value>,
    configured: impl Iterator<Item = &'a String>,
) -> Map<String, Value> {
    let is_about_servers = |key: &str| key.split('.').next() == Some("mcp_servers");
    let mut without: Map<String, Value> = overrides
        .iter()
        .filter(|(key, _)| !is_about_servers(key))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let off: Map<String, Value> =
        configured.map(|name| (name.clone(), json!({ "enabled": false }))).collect();
    if !off.is_empty() {
        without.insert("mcp_servers".to_owned(), Value::Object(off));
    }
    without
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(servers: Value) -> ConfigRead {
        serde_json::from_value(json!({ "config": { "model": null, "mcp_servers": servers } }))
            .unwrap()
    }

    fn load(overrides: Value) -> LoadOptions {
        LoadOptions { config: overrides.as_object().unwrap().clone(), ..LoadOptions::default() }
    }

    #[test]
    fn a_url_is_shown_without_its_credentials() {
        let text = "for url (http://user:pass@127.0.0.1:9/mcp?token=abc), when https://h/p#x";
        assert_eq!(
            without_url_secrets(text),
            "for url (http://127.0.0.1:9/mcp?[redacted]), when https://h/p#[redacted]"
        );
        for plain in ["", "://", "no URL", "file:///etc/x, http://h/a@b"] {
            assert_eq!(without_url_secrets(plain), plain);
        }
    }

    #[test]
    fn the_longest_start_is_that_of_the_servers_that_are_waited_for() {
        let config = read(json!({
            "slow": { "command": "x", "required": true, "startup_timeout_sec": 60.5 },
            "off": { "command": "x", "required": true, "enabled": false, "startup_timeout_sec": 600 },
            "optional": { "command": "x", "startup_timeout_sec": 600 },
        }));
        assert_eq!(
            config.longest_required_start(&LoadOptions::default()),
            Duration::from_millis(60_500)
        );
        let plain = read(json!({ "a": { "command": "x", "required": true } }));
        assert_eq!(plain.longest_required_start(&LoadOptions::default()), DEFAULT_STARTUP_TIMEOUT);
        for config in [read(json!(null)), read(json!({ "a": { "command": "x" } }))] {
            assert_eq!(config.longest_required_start(&LoadOptions::default()), Duration::ZERO);
        }
    }

    #[test]
    fn overrides_are_laid_over_the_configuration_whichever_way_they_are_written() {
        let config = read(json!({ "a": { "command": "x", "required": true } }));
        let seconds = |value: Value| config.longest_required_start(&load(value)).as_secs();
        assert_eq!(seconds(json!({ "mcp_servers.a.startup_timeout_sec": 90 })), 90);
        assert_eq!(seconds(json!({ "mcp_servers.a": { "startup_timeout_sec": 91 } })), 91);
        assert_eq!(seconds(json!({ "mcp_servers": { "a": { "startup_timeout_sec": 92 } } })), 92);
        assert_eq!(seconds(json!({ "mcp_servers.a.enabled": false })), 0);
        assert_eq!(
            seconds(json!({ "mcp_servers.b": { "required": true, "startup_timeout_sec": 93 } })),
            93
        );
        // What is no server, and no number of seconds, is Codex's to refuse.
        assert_eq!(seconds(json!({ "mcp_servers.a": 3, "model": "m" })), 0);
        assert_eq!(seconds(json!({ "mcp_servers.a.startup_timeout_sec": -1 })), 30);
    }

    #[test]
    fn a_thread_without_servers_has_each_configured_one_switched_off() {
        let config = read(json!({ "a.b": { "command": "x" }, "c": { "command": "x" } }));
        let given = load(json!({
            "mcp_servers.c.enabled": true, "mcp_servers": {}, "model": "m",
        }));
        assert_eq!(
            Value::Object(without_servers(&given.config, config.names())),
            json!({ "model": "m", "mcp_servers": { "a.b": { "enabled": false }, "c": { "enabled": false } } })
        );
        assert_eq!(without_servers(&Map::new(), std::iter::empty()), Map::new());
    }
}
