//! Whether granted permissions are no more than those that were asked for, and said in Codex's form.
//!
//! Codex itself drops what is more, without a word to anybody, and grants nothing at all where it can't
//! read the answer. So each part is one that is known here, or is what the request says itself.

use std::collections::{HashMap, HashSet};
use std::path::{Component, Path};

use serde_json::{Map, Value};

use crate::model::refusal::{Faults, show_json};

const FIELD: &str = "permissions.permissions_json";

/// Most bytes of an answer, unless the request itself is half as long or longer.
const LARGEST: usize = 64 << 10;

/// Most bytes of a path that is looked for among those above it: as long as Linux has them.
const LONGEST_PATH: usize = 4096;

/// Reads what is granted, without what is null in it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn granted(json: &str) -> Result<Map<String, Value>, String> {
    if json.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(json) {
        Ok(Value::Object(mut granted)) => {
            granted.retain(|_, part| !part.is_null());
            Ok(granted)
        }
        Ok(_) => {
            let shown = show_json(json);
            Err(format!("{shown} is no object; give one in the form of the request's"))
        }
        Err(error) => Err(format!("{} is no JSON: {error}", show_json(json))),
    }
}

/// Holds an answer against what was asked.
pub(super) fn check(json: &str, asked: &str, faults: &mut Faults) {
    let most = LARGEST.max(2 * asked.len());
    if json.len() > most {
        return faults.add(FIELD, format!("has {} bytes; give at most {most}", json.len()));
    }
    let granted = match granted(json) {
        Ok(granted) => granted,
        Err(fault) => return faults.add(FIELD, fault),
    };
    let asked: Value = serde_json::from_str(asked).unwrap_or_default();
    for (name, part) in &granted {
        let asked = &asked[name.as_str()];
        match name.as_str() {
            "network" => check_network(part, asked, faults),
            "fileSystem" => check_files(part, asked, faults),
            _ if part == asked => {}
            _ => not_asked_for(&format!("/{name}"), part, faults),
        }
    }
}

fn not_asked_for(at: &str, granted: &Value, faults: &mut Faults) {
    let shown = show_json(&granted.to_string());
    let advice = "grant no more than permissions_json of the request";
    faults.add(FIELD, format!("{shown} at {at} was not asked for; {advice}"));
}

fn is_not(what: &str, at: &str, granted: &Value, faults: &mut Faults) {
    let shown = show_json(&granted.to_string());
    let advice = "give it in the form of permissions_json of the request";
    faults.add(FIELD, format!("{shown} at {at} is no {what}; {advice}"));
}

fn check_network(granted: &Value, asked: &Value, faults: &mut Faults) {
    let Value::Object(parts) = granted else {
        return is_not("object", "/network", granted, faults);
    };
    for (name, part) in parts {
        let at = format!("/network/{name}");
        match (name.as_str(), part) {
            ("enabled", Value::Null | Value::Bool(false)) => {}
            (_, part) if asked.get(name) == Some(part) => {}
            ("enabled", Value::Bool(true)) => not_asked_for(&at, part, faults),
            ("enabled", _) => is_not("boolean", &at, part, faults),
            (_, _) => not_asked_for(&at, part, faults),
        }
    }
}

/// Below a directory that was asked for lies no more than that, and to read is less than to write. What
/// the request denies within what it asks for stays denied.
fn check_files(granted: &Value, asked: &Value, faults: &mut Faults) {
    let Value::Object(parts) = granted else {
        return is_not("object", "/fileSystem", granted, faults);
    };
    let known = Asked::read(asked);
    let mut denied = HashSet::new();
    let mut grants_something = false;
    for (name, part) in parts {
        let at = format!("/fileSystem/{name}");
        match (name.as_str(), part) {
            ("read" | "write" | "entries" | "globScanMaxDepth", Value::Null) => {}
            (list @ ("read" | "write" | "entries"), Value::Array(ones)) => {
                for (nth, one) in ones.iter().enumerate() {
                    let at = format!("{at}/{nth}");
                    let is_literal = known.literally.contains(&(list, one));
                    match Entry::read(list, one) {
                        Some(Entry { path, access: Access::Deny }) => {
                            if is_literal || known.can_be_denied(path) {
                                denied.insert(path);
                            } else {
                                is_not("path or pattern to deny", &at, one, faults);
                            }
                        }
                        Some(Entry { path, access }) => {
                            grants_something = true;
                            if !is_literal && !known.covers(path, access) {
                                not_asked_for(&at, one, faults);
                            }
                        }
                        None if is_literal => grants_something = true,
                        None if list == "entries" => is_not("entry", &at, one, faults),
                        None => is_not("path", &at, one, faults),
                    }
                }
            }
            ("read" | "write" | "entries", _) => is_not("list", &at, part, faults),
            (_, part) if asked.get(name) == Some(part) => {}
            (_, _) => not_asked_for(&at, part, faults),
        }
    }
    if grants_something {
        let is_missing = |(path, _): &&(&Value, &Value)| !denied.contains(path);
        for (_, shown) in known.denied.iter().filter(is_missing) {
            let shown = show_json(&shown.to_string());
            let fault = "is denied by the request and must stay so; repeat it in";
            faults.add(FIELD, format!("{shown} {fault} /fileSystem/entries"));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    Deny,
    Read,
    Write,
}

/// An entry of permissions to files, also of the two older lists: of a path it has the text, of anything
/// else what Codex says.
#[derive(Debug)]
struct Entry<'a> {
    path: &'a Value,
    access: Access,
}

impl<'a> Entry<'a> {
    /// `None` where it has not the form that is known here.
    fn read(list: &str, one: &'a Value) -> Option<Entry<'a>> {
        let access = match list {
            "read" | "write" if !one.is_string() => return None,
            "read" => return Some(Entry { path: one, access: Access::Read }),
            "write" => return Some(Entry { path: one, access: Access::Write }),
            _ => match one["access"].as_str()? {
                "read" => Access::Read,
                "write" => Access::Write,
                "deny" => Access::Deny,
                _ => return None,
            },
        };
        let path = one.get("path").filter(|path| path.is_object())?;
        let has_two = |parts: &Value| parts.as_object().is_some_and(|parts| parts.len() == 2);
        let path = match path["type"].as_str()? {
            "path" if has_two(path) => path.get("path").filter(|path| path.is_string())?,
            "path" => return None,
            _ => path,
        };
        has_two(one).then_some(Entry { path, access })
    }
}

/// What was asked for, to be looked up.
struct Asked<'a> {
    // By the list that they are in.
    literally: HashSet<(&'static str, &'a Value)>,
    directories: HashMap<&'a Path, Access>,
    others: HashMap<&'a Value, Access>,
    // The paths, each with its entry.
    denied: Vec<(&'a Value, &'a Value)>,
}

impl<'a> Asked<'a> {
    fn read(files: &'a Value) -> Asked<'a> {
        let mut asked = Asked {
            literally: HashSet::new(),
            directories: HashMap::new(),
            others: HashMap::new(),
            denied: Vec::new(),
        };
        for list in ["read", "write", "entries"] {
            for one in files[list].as_array().into_iter().flatten() {
                asked.literally.insert((list, one));
                let Some(Entry { path, access }) = Entry::read(list, one) else { continue };
                if access == Access::Deny {
                    asked.denied.push((path, one));
                }
                let known = match path.as_str() {
                    Some(path) => asked.directories.entry(Path::new(path)).or_insert(access),
                    None => asked.others.entry(path).or_insert(access),
                };
                *known = access.max(*known);
            }
        }
        asked
    }

    /// Whether that much, or more, was asked for there or in a directory above.
    fn covers(&self, path: &Value, access: Access) -> bool {
        let Some(path) = path.as_str() else {
            return self.others.get(path).is_some_and(|asked| *asked >= access);
        };
        let has_no_way_up =
            |path: &Path| path.components().all(|part| part != Component::ParentDir);
        path.len() <= LONGEST_PATH
            && has_no_way_up(Path::new(path))
            && Path::new(path)
                .ancestors()
                .any(|above| self.directories.get(above).is_some_and(|asked| *asked >= access))
    }

    /// To deny is less, wherever it is, as long as Codex can read it.
    fn can_be_denied(&self, path: &Value) -> bool {
        let is_pattern = || {
            let parts = path.as_object().filter(|parts| parts.len() == 2);
            path["type"] == "glob_pattern" && parts.is_some() && path["pattern"].is_string()
        };
        path.is_string() || is_pattern() || self.others.contains_key(path)
    }
}
