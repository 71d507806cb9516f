//! Whether granted permissions are no more than those that were asked for.
//!
//! Codex itself drops what is more, without a word to anybody.

use serde_json::{Map, Value};

/// Reads what is granted, without what is null in it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn granted(json: &str) -> Result<Value, String> {
    if json.trim().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match serde_json::from_str(json) {
        Ok(Value::Object(mut granted)) => {
            granted.retain(|_, part| !part.is_null());
            Ok(Value::Object(granted))
        }
        Ok(_) => Err("is no object; give one in the form of the request's".to_owned()),
        Err(error) => Err(format!("is no JSON: {error}")),
    }
}

/// In which respects more is granted than was asked for, each as a sentence.
pub(super) fn excess(granted: &Value, asked: &str) -> Vec<String> {
    let asked: Value = serde_json::from_str(asked).unwrap_or_default();
    let mut excess = Vec::new();
    for (name, part) in granted.as_object().into_iter().flatten() {
        match name.as_str() {
            "network" => {
                note_more(part, &asked["network"], "/network", &mut excess);
            }
            "fileSystem" => {
                note_more_files(part, &asked["fileSystem"], &mut excess);
            }
            name => note_more(part, &asked[name], &format!("/{name}"), &mut excess),
        }
    }
    excess
}

/// Whatever its parts mean: it has none that was not asked for with the same value. What is not
/// granted is never more.
fn note_more(granted: &Value, asked: &Value, at: &str, excess: &mut Vec<String>) {
    match (granted, asked) {
        (Value::Null | Value::Bool(false), _) => {}
        (Value::Object(parts), Value::Object(_)) => {
            for (name, part) in parts {
                note_more(part, &asked[name], &format!("{at}/{name}"), excess);
            }
        }
        (Value::Array(parts), Value::Array(asked)) => {
            for (nth, part) in parts.iter().enumerate().filter(|(_, part)| !asked.contains(part)) {
                excess.push(more(&format!("{at}/{nth}"), part));
            }
        }
        (granted, asked) if granted == asked => {}
        (granted, _) => excess.push(more(at, granted)),
    }
}

fn more(at: &str, granted: &Value) -> String {
    use crate::model::refusal::show;
    format!(
        "{} at {at} was not asked for; grant no more than permissions_json of the request",
        show(&granted.to_string())
    )
}

/// Files: below a directory that was asked for lies no more than that, and to read is less than to write.
/// What the request denies within what it asks for stays denied.
fn note_more_files(granted: &Value, asked: &Value, excess: &mut Vec<String>) {
    let asked_entries = entries(asked);
    let granted_entries = entries(granted);
    for Entry { at, path, access, shown } in &granted_entries {
        let covers = |one: &Entry<'_>| one.access >= *access && is_within(path, one.path);
        if *access > Access::Deny && !asked_entries.iter().any(covers) {
            excess.push(more(&format!("/fileSystem{at}"), shown));
        }
    }
    if granted_entries.iter().all(|entry| entry.access == Access::Deny) {
        return;
    }
    for denied in asked_entries.iter().filter(|entry| entry.access == Access::Deny) {
        if !granted_entries
            .iter()
            .any(|entry| entry.access == Access::Deny && entry.path == denied.path)
        {
            excess.push(format!(
                "{} is denied by the request and must stay so; repeat it in /fileSystem/entries",
                crate::model::refusal::show(&denied.shown.to_string())
            ));
        }
    }
    for (name, part) in granted.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "read" | "write" | "entries") {
            note_more(part, &asked[name.as_str()], &format!("/fileSystem/{name}"), excess);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
enum Access {
    Deny,
    Read,
    Write,
    /// One that we don't know; only the same is no more.
    Other,
}

#[derive(Debug)]
struct Entry<'a> {
    at: String,
    path: &'a Value,
    access: Access,
    shown: &'a Value,
}

/// The entries of permissions to files, those of the two older lists among them.
fn entries(files: &Value) -> Vec<Entry<'_>> {
    let list = |name: &'static str| {
        files[name]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
            .map(move |(nth, one)| (nth, name, one))
    };
    list("read")
        .chain(list("write"))
        .chain(list("entries"))
        .map(|(nth, name, shown)| {
            let access = match (name, shown["access"].as_str()) {
                ("read", _) | (_, Some("read")) => Access::Read,
                ("write", _) | (_, Some("write")) => Access::Write,
                (_, Some("deny" | "none")) => Access::Deny,
                (_, _) => Access::Other,
            };
            let path = match (name, shown["path"]["type"].as_str()) {
                ("entries", Some("path")) => &shown["path"]["path"],
                ("entries", _) => &shown["path"],
                (_, _) => shown,
            };
            Entry { at: format!("/{name}/{nth}"), path, access, shown }
        })
        .collect()
}

/// Whether a path is another one, or lies below it; anything else than a path only is itself.
fn is_within(path: &Value, directory: &Value) -> bool {
    use std::path::{Component, Path};
    let (Some(below), Some(directory)) = (path.as_str(), directory.as_str()) else {
        return path == directory;
    };
    let (below, directory) = (Path::new(below), Path::new(directory));
    below.starts_with(directory) && below.components().all(|part| part != Component::ParentDir)
}
