//! Whether what a user gave to an MCP server fits the form that it asked with.

use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::Value;

/// How many faults are told.
const MOST: usize = 16;

/// Largest form and content, in bytes. A form has a few fields, and a large one could take its time.
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
    let Some(form) = form(schema_json) else { return Vec::new() };
    form.iter_errors(&content).take(MOST).map(|error| fault(&error)).collect()
}

fn form(schema_json: &str) -> Option<Validator> {
    if schema_json.len() > LARGEST_FORM {
        return None;
    }
    let schema: Value = serde_json::from_str(schema_json).ok()?;
    if has_references(&schema) {
        return None;
    }
    jsonschema::options()
        .should_validate_formats(true)
        // Takes a time that goes with the length of the text, whatever the server's pattern is.
        .with_pattern_options(PatternOptions::regex())
        .build(&schema)
        .inspect_err(|error| tracing::debug!(%error, "the schema of a form can't be read"))
        .ok()
}

/// Whether a schema refers to something, itself included: with that it can be endless, or as good as.
fn has_references(schema: &Value) -> bool {
    match schema {
        Value::Object(parts) => parts.iter().any(|(name, part)| {
            matches!(&**name, "$ref" | "$dynamicRef" | "$recursiveRef") || has_references(part)
        }),
        Value::Array(parts) => parts.iter().any(has_references),
        _ => false,
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
                "name": { "type": "string", "minLength": 2, "pattern": "^(a+)+$|B" },
                "one": { "oneOf": [{ "const": "x", "title": "X" }, { "const": "y" }] },
                "ok": { "type": "boolean" },
            },
            "required": ["name"],
        });
        let schema = schema.to_string();
        let all = json!({ "age": 3, "color": "red", "mail": "a@b.c", "many": ["a"], "name": "Bo",
            "one": "y", "ok": true });
        assert_eq!(faults(&all.to_string(), &schema), Vec::<String>::new());
        for (content, at) in [
            (json!({}), "at its top"),
            (json!({ "name": "B" }), "/name"),
            // One for which an engine that goes back would need years.
            (json!({ "name": format!("{}!", "a".repeat(60)) }), "/name"),
            (json!({ "name": "Bo", "age": 0 }), "/age"),
            (json!({ "name": "Bo", "age": "3" }), "/age"),
            (json!({ "name": "Bo", "color": "green" }), "/color"),
            (json!({ "name": "Bo", "mail": "nobody" }), "/mail"),
            (json!({ "name": "Bo", "many": ["a", "c"] }), "/many/1"),
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
