//! A form, by its schema: the flat object of the Model Context Protocol, field by field.
//!
//! A field is a text, a number, a yes or no, or a choice of one or several. What has another shape is
//! typed as JSON. The sidecar checks the whole against the schema; here is checked what a person can
//! mend at once.

use std::io;

use serde_json::{Map, Number, Value};

use super::{Person, quoted};
use crate::cli::words::plain;

/// One thing to fill in.
#[derive(Debug)]
pub(crate) struct Field {
    name: String,
    title: String,
    description: String,
    required: bool,
    default: Option<Value>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Text {
        hidden: bool,
        format: String,
        least: u64,
        most: Option<u64>,
    },
    Number {
        whole: bool,
        least: Option<f64>,
        most: Option<f64>,
    },
    YesOrNo,
    /// Values with what they are called.
    One(Vec<(Value, String)>),
    Several {
        options: Vec<(Value, String)>,
        least: u64,
        most: Option<u64>,
    },
    /// Whatever it is.
    Json,
}

/// The fields of a form, in the schema's order. An error where it has none of that shape.
pub(crate) fn of(schema: &str) -> Result<Vec<Field>, ()> {
    let schema: Value = serde_json::from_str(schema).map_err(|_| ())?;
    let schema = schema.as_object().ok_or(())?;
    let required: Vec<&str> = match schema.get("required") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let Some(properties) = schema.get("properties") else { return Ok(Vec::new()) };
    let properties = properties.as_object().ok_or(())?;
    let field = |(name, schema): (&String, &Value)| Field {
        name: name.clone(),
        title: text(schema, "title"),
        description: text(schema, "description"),
        required: required.contains(&name.as_str()),
        default: schema.get("default").cloned(),
        kind: kind(schema),
    };
    Ok(properties.iter().map(field).collect())
}

/// What the form comes to where nothing is typed; `None` where something has to be.
pub(crate) fn by_default(schema: &str) -> Option<Value> {
    let mut content = Map::new();
    for field in of(schema).ok()? {
        match field.default {
            Some(default) => drop(content.insert(field.name, default)),
            None if field.required => return None,
            None => {}
        }
    }
    Some(content.into())
}

fn text(schema: &Value, name: &str) -> String {
    schema.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn kind(schema: &Value) -> Kind {
    if let Some(options) = options(schema) {
        return Kind::One(options);
    }
    let count = |name: &str| schema.get(name).and_then(Value::as_u64);
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    match text(schema, "type").as_str() {
        "string" => {
            let format = text(schema, "format");
            let secret = schema.get("writeOnly").and_then(Value::as_bool).unwrap_or_default();
            Kind::Text {
                hidden: secret || format == "password",
                format,
                least: count("minLength").unwrap_or(0),
                most: count("maxLength"),
            }
        }
        "number" => Kind::Number { whole: false, least: bound("minimum"), most: bound("maximum") },
        "integer" => Kind::Number { whole: true, least: bound("minimum"), most: bound("maximum") },
        "boolean" => Kind::YesOrNo,
        "array" => match schema.get("items").and_then(options) {
            Some(options) => Kind::Several {
                options,
                least: count("minItems").unwrap_or(0),
                most: count("maxItems"),
            },
            None => Kind::Json,
        },
        _ => Kind::Json,
    }
}

/// The values of a choice, with their names where the schema has some (`enumNames`, or `title` and
/// `const` in `oneOf` or `anyOf`).
fn options(schema: &Value) -> Option<Vec<(Value, String)>> {
    let shown = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if let Some(Value::Array(values)) = schema.get("enum") {
        let names = schema.get("enumNames").and_then(Value::as_array);
        let name = |at: usize| names.and_then(|names| names.get(at)).and_then(Value::as_str);
        let option = |(at, value): (usize, &Value)| {
            (value.clone(), name(at).map_or_else(|| shown(value), str::to_owned))
        };
        return Some(values.iter().enumerate().map(option).collect());
    }
    let choices = schema.get("oneOf").or_else(|| schema.get("anyOf"))?.as_array()?;
    let option = |choice: &Value| {
        let value = choice.get("const")?;
        let title = text(choice, "title");
        Some((value.clone(), if title.is_empty() { shown(value) } else { title }))
    };
    choices.iter().map(option).collect()
}

/// Asks for every field; `None` where nobody answers.
pub(super) async fn fill_in(
    fields: &[Field],
    person: &impl Person,
) -> io::Result<Option<Map<String, Value>>> {
    let mut content = Map::new();
    for field in fields {
        person.show(&field.text())?;
        let hidden = matches!(field.kind, Kind::Text { hidden: true, .. });
        let value = loop {
            let Some(line) = person.line("> ", hidden).await? else { return Ok(None) };
            match field.read(line.trim()) {
                Ok(value) => break value,
                Err(fault) => person.show(&format!("{fault}\n"))?,
            }
        };
        if let Some(value) = value {
            content.insert(field.name.clone(), value);
        }
    }
    Ok(Some(content))
}

impl Field {
    fn text(&self) -> String {
        let title = if self.title.is_empty() { &self.name } else { &self.title };
        let mut text = format!("{} ({})", plain(title), self.wants());
        if let Some(default) = &self.default {
            let default = match default {
                Value::String(text) => plain(text),
                other => plain(&other.to_string()),
            };
            text.push_str(&format!(" [{default}]"));
        } else if !self.required {
            text.push_str(", may be left empty");
        }
        text.push('\n');
        text.push_str(&quoted(&self.description, "  "));
        if let Kind::One(options) | Kind::Several { options, .. } = &self.kind {
            for (at, (_, name)) in options.iter().enumerate() {
                text.push_str(&format!("  {}  {}\n", at + 1, plain(name)));
            }
        }
        text
    }

    fn wants(&self) -> String {
        match &self.kind {
            Kind::Text { format, hidden: false, .. } if !format.is_empty() => plain(format),
            Kind::Text { hidden: true, .. } => "hidden text".to_owned(),
            Kind::Text { .. } => "text".to_owned(),
            Kind::Number { whole: true, .. } => "whole number".to_owned(),
            Kind::Number { whole: false, .. } => "number".to_owned(),
            Kind::YesOrNo => "y or n".to_owned(),
            Kind::One(_) => "one of".to_owned(),
            Kind::Several { .. } => "any of, with commas between".to_owned(),
            Kind::Json => "JSON".to_owned(),
        }
    }

    /// The value that was typed; nothing where the field is left out.
    fn read(&self, typed: &str) -> Result<Option<Value>, String> {
        if typed.is_empty() {
            return match &self.default {
                Some(default) => Ok(Some(default.clone())),
                None if self.required => Err("It has to be filled in.".to_owned()),
                None => Ok(None),
            };
        }
        self.value(typed).map(Some)
    }

    fn value(&self, typed: &str) -> Result<Value, String> {
        match &self.kind {
            Kind::Text { least, most, .. } => {
                let length = typed.chars().count() as u64;
                if length < *least {
                    return Err(format!("At least {least} characters."));
                }
                if let Some(most) = most.filter(|most| length > *most) {
                    return Err(format!("At most {most} characters."));
                }
                Ok(typed.into())
            }
            Kind::Number { whole, least, most } => {
                let number: Option<Number> = if *whole {
                    typed.parse::<i64>().ok().map(Number::from)
                } else {
                    // A whole one stays whole.
                    let whole = typed.parse::<i64>().ok().map(Number::from);
                    whole.or_else(|| Number::from_f64(typed.parse().ok()?))
                };
                let what = if *whole { "a whole number" } else { "a number" };
                let number = number.ok_or_else(|| format!("Type {what}."))?;
                let size = number.as_f64().unwrap_or_default();
                if let Some(least) = least.filter(|least| size < *least) {
                    return Err(format!("At least {least}."));
                }
                if let Some(most) = most.filter(|most| size > *most) {
                    return Err(format!("At most {most}."));
                }
                Ok(number.into())
            }
            Kind::YesOrNo => match typed.to_lowercase().as_str() {
                "y" | "yes" | "true" => Ok(true.into()),
                "n" | "no" | "false" => Ok(false.into()),
                _ => Err("Type y or n.".to_owned()),
            },
            Kind::One(options) => one_of(options, typed),
            Kind::Several { options, least, most } => {
                let values: Vec<Value> = typed
                    .split(',')
                    .map(|part| one_of(options, part.trim()))
                    .collect::<Result<_, _>>()?;
                let count = values.len() as u64;
                if count < *least {
                    return Err(format!("At least {least} of them."));
                }
                if let Some(most) = most.filter(|most| count > *most) {
                    return Err(format!("At most {most} of them."));
                }
                Ok(values.into())
            }
            Kind::Json => {
                serde_json::from_str(typed).map_err(|error| format!("This is no JSON: {error}."))
            }
        }
    }
}

/// By number, name or value.
fn one_of(options: &[(Value, String)], typed: &str) -> Result<Value, String> {
    let by_name = options
        .iter()
        .find(|(value, name)| name.eq_ignore_ascii_case(typed) || value.as_str() == Some(typed));
    let by_number = || options.get(typed.parse::<usize>().ok()?.checked_sub(1)?);
    match by_name.or_else(by_number) {
        Some((value, _)) => Ok(value.clone()),
        None => Err(format!("Type a number from 1 to {}.", options.len())),
    }
}
