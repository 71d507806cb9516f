//! Whether what a user gave to an MCP server fits the form that it asked with.
//!
//! MCP's forms are flat (`ElicitRequestFormParams` of version 2025-11-25): each field is a text, a number,
//! a yes or no, or a choice. What is looked at is made anew from that, so that the time goes with the
//! length of the form and of the content, and not with their product; whatever else a server asks it has
//! to look at itself, as it does in any case.

use std::collections::HashSet;

use jsonschema::{ValidationError, Validator};
use serde_json::{Map, Value, json};

use crate::model::refusal::show_json;

/// How many faults are told.
const MOST: usize = 16;

/// Largest form and content, in bytes.
const LARGEST_FORM: usize = 64 << 10;
const LARGEST_CONTENT: usize = 1 << 20;

/// Longest text about one of them, in characters: it may hold what was given.
const LONGEST: usize = 256;

/// What is wrong with content for a schema, each as the end of a sentence about the content.
pub(super) fn faults(content_json: &str, schema_json: &str) -> Vec<String> {
    if content_json.len() > LARGEST_CONTENT {
        let bytes = content_json.len();
        return vec![format!("has {bytes} bytes; give at most {LARGEST_CONTENT}")];
    }
    let content: Value = match serde_json::from_str(content_json) {
        Ok(content @ Value::Object(_)) => content,
        Ok(_) => return vec!["is no JSON object; a form is filled in with one".to_owned()],
        Err(error) => return vec![format!("is no JSON: {error}")],
    };
    // Whatever its server makes of a form that nobody here can read: the server looks at it again.
    let Some(form) = Form::read(schema_json) else { return Vec::new() };
    let of_fields = form.fields.iter_errors(&content).map(|error| fault(&error));
    let of_choices = form.choices.iter().flat_map(|choice| choice.faults(&content));
    of_fields.chain(of_choices).take(MOST).collect()
}

/// A form, as far as it is one of MCP's.
struct Form {
    fields: Validator,
    choices: Vec<Choice>,
}

/// A field with a list of what was chosen.
struct Choice {
    field: String,
    options: HashSet<Value>,
}

impl Form {
    fn read(schema_json: &str) -> Option<Form> {
        if schema_json.len() > LARGEST_FORM {
            return None;
        }
        let schema: Value = serde_json::from_str(schema_json).ok()?;
        let mut choices = Vec::new();
        let mut fields = Map::new();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            fields.insert(name.clone(), flat(field));
            if let Some(options) = options(&field["items"]) {
                let options = options.into_iter().cloned().collect();
                choices.push(Choice { field: name.clone(), options });
            }
        }
        let mut flat = json!({ "properties": fields });
        for rule in ["type", "required"] {
            if let Some(value) = schema.get(rule) {
                flat[rule] = value.clone();
            }
        }
        jsonschema::options()
            .should_validate_formats(true)
            .build(&flat)
            .inspect_err(|error| tracing::debug!(%error, "the schema of a form can't be read"))
            .ok()
            .map(|fields| Form { fields, choices })
    }
}

/// What MCP's forms say of a field's own value: each rule looks at it once.
fn flat(field: &Value) -> Value {
    const RULES: [&str; 9] = [
        "type",
        "minLength",
        "maxLength",
        "format",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "const",
    ];
    let mut flat = Map::new();
    for rule in RULES {
        if let Some(value) = field.get(rule) {
            flat.insert(rule.to_owned(), value.clone());
        }
    }
    if let Some(options) = options(field) {
        flat.insert("enum".to_owned(), json!(options));
    }
    Value::Object(flat)
}

/// What can be chosen in a field, or in the elements of its list, with titles or without.
fn options(choice: &Value) -> Option<Vec<&Value>> {
    if let Some(options) = choice["enum"].as_array() {
        return Some(options.iter().collect());
    }
    let titled = choice["oneOf"].as_array().or_else(|| choice["anyOf"].as_array())?;
    titled.iter().map(|option| option.get("const")).collect()
}

impl Choice {
    fn faults<'a>(&'a self, content: &'a Value) -> impl Iterator<Item = String> + 'a {
        let chosen = content[&self.field].as_array().into_iter().flatten().enumerate();
        let unknown = chosen.filter(|(_, one)| !self.options.contains(one));
        unknown.map(|(at, one)| {
            let said = format!("{} is none of the options", show_json(&one.to_string()));
            misfit(&said, &format!("at /{}/{at}", self.field))
        })
    }
}

fn fault(error: &ValidationError<'_>) -> String {
    let said = error.to_string();
    let said = match said.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &said[..end]),
        None => said,
    };
    let at = error.instance_path().to_string();
    let at = if at.is_empty() { "at its top" } else { &format!("at {at}") };
    misfit(&said, at)
}

fn misfit(said: &str, at: &str) -> String {
    format!("does not fit requested_schema_json of the request: {said} ({at})")
}

#[cfg(test)]
mod tests {

    use serde_json::json;

    use super::*;

    #[test]
    fn content_is_held_against_each_rule_of_its_form() {
        let schema = json!({
            "type": "object",
            "properties": {
                "age": { "type": "integer", "minimum": 1 },
                "color": { "type": "string", "enum": ["red", "blue"] },
                "mail": { "type": "string", "format": "email" },
                "many": { "type": "array", "items": { "type": "string", "enum": ["a", "b"] } },
                "name": { "type": "string", "minLength": 2 },
                "picked": { "type": "array", "maxItems": 2,
                    "items": { "anyOf": [{ "const": "p", "title": "P" }] } },
                "when": { "type": "string", "format": "date-time" },
                "one": { "oneOf": [{ "const": "x", "title": "X" }, { "const": "y" }] },
                "ok": { "type": "boolean" },
            },
            "required": ["name"],
        });
        let schema = schema.to_string();
        let all = json!({ "age": 3, "color": "red", "mail": "a@b.c", "many": ["a"], "name": "Bo",
            "one": "y", "ok": true, "picked": ["p"], "when": "2026-01-02T03:04:05+01:00" });
        assert_eq!(faults(&all.to_string(), &schema), Vec::<String>::new());
        for (content, at) in [
            (json!({}), "at its top"),
            (json!({ "name": "B" }), "/name"),
            (json!({ "name": "Bo", "age": 0 }), "/age"),
            (json!({ "name": "Bo", "age": "3" }), "/age"),
            (json!({ "name": "Bo", "color": "green" }), "/color"),
            (json!({ "name": "Bo", "mail": "nobody" }), "/mail"),
            (json!({ "name": "Bo", "many": ["a", "c"] }), "/many/1"),
            (json!({ "name": "Bo", "many": "a" }), "/many"),
            (json!({ "name": "Bo", "picked": ["q"] }), "/picked/0"),
            (json!({ "name": "Bo", "picked": ["p", "p", "p"] }), "/picked"),
            (json!({ "name": "Bo", "when": "today" }), "/when"),
            (json!({ "name": "Bo", "one": "z" }), "/one"),
            (json!({ "name": "Bo", "ok": 1 }), "/ok"),
        ] {
            let faults = faults(&content.to_string(), &schema);
            assert_eq!(faults.len(), 1, "{content}: {faults:?}");
            assert!(faults[0].contains(at), "{content}: {faults:?}");
        }
        let many: Vec<_> = (0..100).map(|_| "c".repeat(1000)).collect();
        let faults = faults(&json!({ "name": "Bo", "many": many }).to_string(), &schema);
        assert_eq!(faults.len(), MOST);
        assert!(faults.iter().all(|fault| fault.chars().count() < 2 * LONGEST), "{faults:?}");
    }

    /// Both as long as they may be, and each with as many rules and values as there can be. Minutes and
    /// gigabytes, where every rule is held against every value.
    #[test]
    fn the_longest_content_is_held_against_the_longest_form_before_the_test_is_given_up() {
        let rules: Vec<_> = (0..3000).map(|_| json!({ "minimum": 2 })).collect();
        let options: Vec<_> = (0..3000).map(|at| format!("option {at}")).collect();
        let few: Vec<_> = (0..50).map(|at| format!("option {at}")).collect();
        let chosen = json!({ "type": "string", "enum": options });
        let patterns: serde_json::Map<_, _> =
            (0..1000).map(|at| (format!("p{at}"), json!({ "pattern": "^\\w{8000}$" }))).collect();
        let numbers = json!({ "x": vec![1; (LARGEST_CONTENT - 10) / 2] });
        let text = json!({ "x": "x".repeat(LARGEST_CONTENT - 32), "p1": "p" });
        for (properties, content, count) in [
            (json!({ "x": { "type": "array", "items": { "allOf": rules } } }), &numbers, 0),
            (json!({ "x": { "type": "array", "items": chosen } }), &numbers, MOST),
            (json!({ "x": { "type": "array", "items": { "enum": few } } }), &numbers, MOST),
            (json!({ "x": { "allOf": vec![json!({ "minLength": 1 }); 3000] } }), &text, 0),
            (json!({ "x": chosen }), &text, 1),
            (Value::Object(patterns), &text, 0),
        ] {
            let schema = json!({ "type": "object", "properties": properties }).to_string();
            assert!(schema.len() <= LARGEST_FORM, "{}", schema.len());
            let content = content.to_string();
            assert_eq!(faults(&content, &schema).len(), count);
        }
    }

    #[test]
    fn content_is_an_object_also_where_its_form_cannot_be_read() {
        let remote = json!({ "$ref": "https://example.test/schema.json" }).to_string();
        let local = json!({ "$ref": "file:///etc/passwd" }).to_string();
        let endless = json!({ "allOf": [{ "$ref": "#" }] }).to_string();
        let large = json!({ "description": "x".repeat(LARGEST_FORM), "type": "null" }).to_string();
        let sphinx = r#"{"type":"sphinx"}"#;
        for schema in ["", "null", "7", sphinx, &remote, &local, &endless, &large] {
            assert_eq!(faults(r#"{"x":1}"#, schema), Vec::<String>::new(), "{schema}");
            let much = json!({ "x": "x".repeat(LARGEST_CONTENT) }).to_string();
            for other in ["", "7", "[1]", "null", "{", &much] {
                assert_eq!(faults(other, schema).len(), 1, "{schema}: {other}");
            }
        }
    }
}
