//! Prints a configuration as the TOML file that would give it, without secrets.

use std::fmt::Write as _;

use super::codec::{self, Codec};
use super::load::join;
use super::secrets::redact;
use super::settings::{self, Name, Scope, Visitor};
use super::{Config, Origins, policy};
use crate::model::options::ToolDefaults;
use crate::worker::settings::is_bare_key;

pub(super) fn to_toml(config: &Config, origins: &Origins) -> String {
    let mut printer = Printer { at: "", section: "", origins, text: String::new() };
    match &config.api_key {
        Some(key) => printer.comment(&format!("key: [redacted], from {}", key.source)),
        None => printer.comment("key: none (CODEX_API_KEY, OPENAI_API_KEY)"),
    }
    // A copy, because the one walk over all settings is also the one that fills them.
    settings::visit_top(&mut config.clone(), &mut printer);
    printer.tools(config);
    for (name, tenant) in &config.tenants {
        let at = format!("tenants.{name}");
        let Printer { text, .. } = printer;
        printer = Printer { at: &at, section: "", origins, text };
        printer.header(&[]);
        let key = match &tenant.config.api_key {
            Some(key) => format!("[redacted], from {}", key.source),
            None => "none (api_key_file, api_key_env)".to_owned(),
        };
        printer.comment(&format!("key: {key}"));
        settings::visit_tenant(&mut tenant.clone(), &mut printer);
        printer.tools(&tenant.config);
        let Printer { text, .. } = printer;
        printer = Printer { at: "", section: "", origins, text };
    }
    printer.text
}

struct Printer<'a> {
    /// The path of the tenant's table; empty for the top level.
    at: &'a str,
    section: &'static str,
    origins: &'a Origins,
    text: String,
}

impl Visitor for Printer<'_> {
    fn section(&mut self, name: &'static str) {
        self.section = name;
        self.header(&[name]);
    }

    fn required<C: Codec>(&mut self, name: Name, codec: C, slot: &mut C::Value) {
        if self.has(name) {
            let path = join(self.section, name.key);
            self.line(name.key, &codec.write(slot), &path);
        }
    }

    fn optional<C: Codec>(&mut self, name: Name, codec: C, slot: &mut Option<C::Value>) {
        match slot {
            Some(value) => self.required(name, codec, value),
            None if !self.has(name) => {}
            None => self.comment(&format!("{} is not set", name.key)),
        }
    }
}

impl Printer<'_> {
    /// Whether the setting has its place here.
    fn has(&self, name: Name) -> bool {
        self.at.is_empty() || name.scope != Scope::Sidecar
    }

    fn comment(&mut self, text: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "# {text}");
    }

    fn header(&mut self, parts: &[&str]) {
        let at = self.at.split('.').filter(|part| !part.is_empty());
        let parts: Vec<String> = at.chain(parts.iter().copied()).map(show_key).collect();
        let _ = writeln!(self.text, "\n[{}]", parts.join("."));
    }

    fn line(&mut self, key: &str, value: &toml::Value, path: &str) {
        let own = self.origins.get(&join(self.at, path));
        let origin = match own.or_else(|| self.origins.get(path)) {
            Some(origin) => origin.to_string().replace('\n', " "),
            None => "default".to_owned(),
        };
        let mut value = value.clone();
        let mut redacted = Vec::new();
        if let toml::Value::Table(table) = &mut value {
            redact(table, "", &mut redacted);
        }
        let _ = writeln!(self.text, "{} = {value}  # {origin}", show_key(key));
        for key in redacted {
            self.comment(&format!("{path}: {key} = \"[redacted]\""));
        }
    }

    fn tools(&mut self, config: &Config) {
        for (name, tool) in &config.tools {
            self.tool(name, tool);
        }
    }

    fn tool(&mut self, name: &str, tool: &ToolDefaults) {
        let ToolDefaults {
            thread_options,
            thread_id,
            thread_id_key,
            output_schema,
            idle_timeout,
            turn_timeout,
            answer_timeout,
            max_total_tokens,
            policy,
        } = tool;
        self.header(&["tools", name]);
        let mut lines: Vec<(String, toml::Value)> = Vec::new();
        if let Ok(serde_json::Value::Object(mut options)) = serde_json::to_value(thread_options) {
            let variables = options.remove("environment");
            for (name, _) in variables.iter().filter_map(|table| table.as_object()).flatten() {
                self.comment(&format!("environment.{} = \"[redacted]\"", show_key(name)));
            }
            lines.extend(
                options.into_iter().filter_map(|(key, value)| Some((key, to_toml_value(&value)?))),
            );
        }
        let mut push = |key: &str, value: Option<toml::Value>| {
            lines.extend(value.map(|value| (key.to_owned(), value)));
        };
        push("thread_id", thread_id.clone().map(toml::Value::String));
        push("thread_id_key", thread_id_key.clone().map(toml::Value::String));
        // As JSON text: unlike a table it can hold a null, which an enum may list.
        push("output_schema", output_schema.as_ref().map(|schema| schema.to_string().into()));
        let timeouts = [
            ("idle_timeout", idle_timeout),
            ("turn_timeout", turn_timeout),
            ("answer_timeout", answer_timeout),
        ];
        for (key, value) in timeouts {
            push(key, value.as_ref().map(|value| codec::duration().write(value)));
        }
        // Read as one, so that it fits.
        let tokens = max_total_tokens.and_then(|tokens| i64::try_from(tokens.get()).ok());
        push("max_total_tokens", tokens.map(toml::Value::from));
        for (key, value) in lines {
            let path = format!("tools.{name}.{key}");
            self.line(&key, &value, &path);
        }
        if let Some(policy) = policy {
            self.header(&["tools", name, "policy"]);
            let section = format!("tools.{name}.policy");
            let own = OwnPolicy { printer: self, keys: &policy.own.keys, section };
            policy::visit(&mut policy.as_ref().clone(), &mut { own });
        }
    }
}

/// Prints what of a policy is a tool's own.
struct OwnPolicy<'a, 'b> {
    printer: &'a mut Printer<'b>,
    keys: &'a [&'static str],
    section: String,
}

impl Visitor for OwnPolicy<'_, '_> {
    fn section(&mut self, _name: &'static str) {}

    fn required<C: Codec>(&mut self, name: Name, codec: C, slot: &mut C::Value) {
        if self.keys.contains(&name.key) {
            let path = format!("{}.{}", self.section, name.key);
            self.printer.line(name.key, &codec.write(slot), &path);
        }
    }

    fn optional<C: Codec>(&mut self, name: Name, codec: C, slot: &mut Option<C::Value>) {
        if let Some(value) = slot {
            self.required(name, codec, value);
        }
    }
}

/// JSON as TOML; `None` for a null, which TOML does not have.
fn to_toml_value(value: &serde_json::Value) -> Option<toml::Value> {
    Some(match value {
        serde_json::Value::Null => return None,
        serde_json::Value::Bool(value) => (*value).into(),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64()?.into(),
        },
        serde_json::Value::String(text) => text.clone().into(),
        serde_json::Value::Array(values) => {
            values.iter().filter_map(to_toml_value).collect::<Vec<_>>().into()
        }
        serde_json::Value::Object(object) => toml::Value::Table(
            object
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), to_toml_value(value)?)))
                .collect(),
        ),
    })
}

fn show_key(key: &str) -> String {
    // In JSON's quotes, which TOML reads alike: its own writer may choose a form of several lines.
    if is_bare_key(key) { key.to_owned() } else { serde_json::Value::from(key).to_string() }
}
