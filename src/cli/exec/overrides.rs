//! `-c key=value`, as the CLI reads it, on its way into `ThreadOptions.config`.
//!
//! The sidecar hands the settings to Codex one by one, in no order, so they are kept such that the
//! order does not matter: as single values under dotted paths, none of which lies within another.

use prost_types::value::Kind;
use toml::Value;

/// The largest integer that a protobuf number carries exactly.
const EXACT: i64 = 1 << 53;

/// Settings by their dotted paths.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Overrides {
    entries: Vec<(String, Value)>,
}

impl Overrides {
    /// Reads the arguments in their order: a later one wins.
    pub(crate) fn parse<'a>(
        arguments: impl IntoIterator<Item = &'a String>,
    ) -> Result<Overrides, String> {
        let mut overrides = Overrides::default();
        for argument in arguments {
            let (key, value) = argument
                .split_once('=')
                .ok_or_else(|| format!("Invalid override (missing '='): {argument}"))?;
            let key = key.trim();
            if key.is_empty() || key.split('.').any(str::is_empty) {
                return Err(format!("Empty key in override: {argument}"));
            }
            overrides.set(key, parse_value(value.trim()));
        }
        Ok(overrides)
    }

    /// Sets a value in place of what was there, below it included.
    pub(crate) fn set(&mut self, path: &str, value: Value) {
        self.entries.retain(|(other, _)| other != path && !is_within(other, path));
        // A single value above gives way; a table that had to be kept whole takes it in.
        let above = self.entries.iter().position(|(other, _)| is_within(path, other));
        if let Some(at) = above {
            let (other, whole) = &mut self.entries[at];
            let rest = &path[other.len() + 1..];
            if whole.is_table() {
                insert(whole, rest, value);
                return;
            }
            self.entries.remove(at);
        }
        self.flatten(path, value);
    }

    fn flatten(&mut self, path: &str, value: Value) {
        match value {
            // A key with a dot in it can't be part of a dotted path.
            Value::Table(table)
                if !table.is_empty()
                    && table.keys().all(|key| !key.is_empty() && !key.contains('.')) =>
            {
                for (key, value) in table {
                    self.flatten(&format!("{path}.{key}"), value);
                }
            }
            value => self.entries.push((path.to_owned(), value)),
        }
    }

    /// Takes a setting out.
    pub(crate) fn take(&mut self, path: &str) -> Option<Value> {
        let at = self.entries.iter().position(|(other, _)| other == path)?;
        Some(self.entries.remove(at).1)
    }

    /// Whether a setting is there and on.
    pub(crate) fn is_true(&self, path: &str) -> bool {
        self.entries.contains(&(path.to_owned(), Value::Boolean(true)))
    }

    /// The first setting that is `path` or lies within it.
    pub(crate) fn any_within(&self, path: &str) -> Option<&str> {
        let found = self.entries.iter().find(|(other, _)| other == path || is_within(other, path));
        found.map(|(path, _)| path.as_str())
    }

    /// For the contract; `None` where nothing is left.
    pub(crate) fn into_struct(self) -> Result<Option<prost_types::Struct>, String> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        let fields = self.entries.into_iter().map(|(path, value)| {
            let value = to_protobuf(&path, value)?;
            Ok((path, value))
        });
        Ok(Some(prost_types::Struct { fields: fields.collect::<Result<_, String>>()? }))
    }
}

fn is_within(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.starts_with('.'))
}

fn insert(table: &mut Value, path: &str, value: Value) {
    let Value::Table(entries) = table else { return };
    match path.split_once('.') {
        None => drop(entries.insert(path.to_owned(), value)),
        Some((key, rest)) => {
            let below = entries.entry(key).or_insert_with(|| Value::Table(toml::Table::default()));
            if !below.is_table() {
                *below = Value::Table(toml::Table::default());
            }
            insert(below, rest, value);
        }
    }
}

/// TOML; what is none is a text, without the quotes around it.
fn parse_value(text: &str) -> Value {
    let line: Result<toml::Table, _> = format!("value = {text}").parse();
    line.ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.trim_matches(['"', '\'']).to_owned()))
}

fn to_protobuf(path: &str, value: Value) -> Result<prost_types::Value, String> {
    let refused = |what: &str| {
        Err(format!("-c {path} can't be honoured through a sidecar: its protocol has no {what}"))
    };
    let kind = match value {
        Value::String(text) => Kind::StringValue(text),
        Value::Boolean(value) => Kind::BoolValue(value),
        Value::Integer(number) if (-EXACT..=EXACT).contains(&number) => {
            Kind::NumberValue(number as f64)
        }
        Value::Integer(_) => return refused("integers beyond 2^53"),
        Value::Float(number) if number.is_finite() => Kind::NumberValue(number),
        Value::Float(_) => return refused("infinite numbers"),
        Value::Datetime(_) => return refused("dates"),
        Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values
                .into_iter()
                .map(|value| to_protobuf(path, value))
                .collect::<Result<_, _>>()?,
        }),
        Value::Table(table) => Kind::StructValue(prost_types::Struct {
            fields: table
                .into_iter()
                .map(|(key, value)| to_protobuf(path, value).map(|value| (key, value)))
                .collect::<Result<_, _>>()?,
        }),
    };
    Ok(prost_types::Value { kind: Some(kind) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(arguments: &[&str]) -> Vec<String> {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        let overrides = Overrides::parse(&arguments).unwrap();
        overrides.entries.iter().map(|(path, value)| format!("{path}={value}")).collect()
    }

    #[test]
    fn values_are_toml_or_else_text() {
        assert_eq!(
            entries(&["a=1", "b=true", "c=\"x\"", "d = plain text ", "e=[1, 'y']", "f='half"]),
            ["a=1", "b=true", "c=\"x\"", "d=\"plain text\"", "e=[1, \"y\"]", "f=\"half\""]
        );
        // What only looks like TOML: a second line would be a second key.
        assert_eq!(entries(&["a=1\nb=2"]), ["a=\"\"\"\n1\nb=2\"\"\""].map(|text| text.to_owned()));
    }

    #[test]
    fn a_later_one_wins_above_and_below() {
        assert_eq!(entries(&["a=1", "a=2"]), ["a=2"]);
        assert_eq!(entries(&["a.b=1", "a={c=2}"]), ["a.c=2"]);
        assert_eq!(entries(&["a={b=1, c={d=2}}", "a.b=3"]), ["a.c.d=2", "a.b=3"]);
        assert_eq!(entries(&["a=1", "a.b=2"]), ["a.b=2"]);
        assert_eq!(entries(&["a={'x.y'=1}", "a.b.c=2"]), ["a={ b = { c = 2 }, \"x.y\" = 1 }"]);
        assert_eq!(entries(&["a={}", "ab=1"]), ["a={}", "ab=1"]);
    }

    #[test]
    fn what_the_protocol_cant_carry_is_refused() {
        for (text, why) in
            [("a=9007199254740993", "2^53"), ("a=inf", "infinite"), ("a.b=[1979-05-27]", "dates")]
        {
            let overrides = Overrides::parse(&[text.to_owned()]).unwrap();
            let error = overrides.into_struct().unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for text in ["foo", "=1", " = 1", "a..b=1"] {
            let error = Overrides::parse(&[text.to_owned()]).unwrap_err();
            assert!(error.contains("override") && error.ends_with(text), "{error}");
        }
    }
}
