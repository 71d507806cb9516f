//! The short form of openai-agents' `codex_tool`: an object whose `properties` is a list.

use serde_json::{Map, Value, json};

use super::{DEEPEST, is_truthy};

/// Whether this is the short form. An empty list of properties is, and is then refused as one.
pub(super) fn is_short_form(schema: &Map<String, Value>) -> bool {
    schema
        .get("properties")
        .and_then(Value::as_array)
        .is_some_and(|properties| properties.iter().all(|property| property.get("name").is_some()))
}

/// The object schema that a short form stands for.
pub(super) fn written_out(short: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let listed = short.get("properties").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if listed.is_empty() {
        return Err("has no properties; its short form needs at least one".to_owned());
    }
    let mut properties = Map::new();
    for property in listed {
        let name = property.get("name").and_then(Value::as_str);
        let Some(name) = name.filter(|name| !name.trim().is_empty()) else {
            return Err(
                "has a property without a name; give each a text that is not blank".to_owned()
            );
        };
        if properties.contains_key(name) {
            return Err(format!("has the property {name:?} twice; leave one out"));
        }
        let field = property.get("schema").and_then(|field| short_field(field, 0));
        let Some(mut field) = field else {
            return Err(format!(
                "has no valid schema for the property {name:?}; its type is string, number, \
                 integer, boolean or array, an enum lists texts, and an array has items"
            ));
        };
        if let Some(description) = property.get("description").filter(|text| is_truthy(text)) {
            field.insert("description".to_owned(), description.clone());
        }
        properties.insert(name.to_owned(), Value::Object(field));
    }

    // Checked, though a strict schema requires every property anyway: a name that is not there is
    // a mistake.
    if let Some(required) = short.get("required") {
        let names = required.as_array().map(|names| names.iter().map(Value::as_str));
        let Some(names) = names.and_then(|names| names.collect::<Option<Vec<_>>>()) else {
            return Err("has a required that is not a list of texts".to_owned());
        };
        if let Some(name) = names.into_iter().find(|name| !properties.contains_key(*name)) {
            return Err(format!("requires {name:?}, which is not among its properties"));
        }
    }

    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema.insert("properties".to_owned(), Value::Object(properties));
    for key in ["title", "description"] {
        if let Some(text) = short.get(key).filter(|text| is_truthy(text)) {
            schema.insert(key.to_owned(), text.clone());
        }
    }
    Ok(schema)
}

/// The schema of one property; `None` for one that the short form does not have.
fn short_field(field: &Value, depth: usize) -> Option<Map<String, Value>> {
    // Each level of the short form is at least one of the result, where the bound would fall anyway.
    if depth > DEEPEST {
        return None;
    }
    let kind = field.get("type").and_then(Value::as_str)?;
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!(kind));
    if let Some(description) = field.get("description").filter(|text| is_truthy(text)) {
        schema.insert("description".to_owned(), description.clone());
    }
    match kind {
        "array" => {
            let items = short_field(field.get("items")?, depth + 1)?;
            schema.insert("items".to_owned(), Value::Object(items));
        }
        "string" | "number" | "integer" | "boolean" => {
            if let Some(choices) = field.get("enum").filter(|choices| !choices.is_null()) {
                choices.as_array().filter(|choices| choices.iter().all(Value::is_string))?;
                schema.insert("enum".to_owned(), choices.clone());
            }
        }
        _ => return None,
    }
    Some(schema)
}
