//! The schema of a final response, made strict.
//!
//! The provider accepts only *strict* schemas: every object closed, every property required. What
//! callers write is not strict, so it is converted here, by the rules of openai-agents, whose users
//! rely on them: what it accepts is accepted with the same result, what it refuses is refused.
//!
//! A schema comes from a caller, so the work on it is bounded: in nesting, in nodes looked at, in
//! fields copied and in the size of the result. A `$ref` fan-out could else blow up a few hundred
//! bytes without end, and a circular one never ends.
//!
//! The schema is held as a graph (`graph`) and not as a tree, because a `$ref` that is written
//! out shares what it names: two places then are one, and strictness for one is strictness for
//! both.

mod graph;
mod short_form;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt::Display;

use serde_json::{Value, json};

use self::graph::{Fields, Graph, Id, Node};

/// Deepest nesting of objects and lists. Codex's own parser gives up at 128 levels of the whole
/// message that the schema travels in.
const DEEPEST: usize = 100;
/// Most schemas looked at, each time one is looked at.
const MOST_NODES: usize = 100_000;
/// Most fields copied by `$ref` and `allOf`.
const MOST_COPIES: usize = 300_000;
/// Longest text of a schema, in bytes. Providers take far less.
const LONGEST_TEXT: usize = 1 << 20;
/// Most bytes of the result, about.
const LARGEST_RESULT: usize = 4 << 20;

/// What may stand beside a `$ref` without saying more about the value.
const BESIDE_REF: [&str; 15] = [
    "$anchor",
    "$comment",
    "$defs",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
];

/// The strict form of a schema, given as the JSON text of an object schema, or in the short form
/// of openai-agents: an object whose `properties` is a list of `{name, description, schema}`.
pub(crate) fn strict(text: &str) -> Result<Value, String> {
    if text.len() > LONGEST_TEXT {
        return Err(format!("is {} bytes long; give at most {LONGEST_TEXT}", text.len()));
    }
    let schema = serde_json::from_str(text).map_err(|error| {
        format!("is not JSON ({error}); give the JSON text of an object schema")
    })?;
    strict_value(schema)
}

/// [`strict`] of a schema that is parsed already.
pub(crate) fn strict_value(schema: Value) -> Result<Value, String> {
    let Value::Object(schema) = schema else {
        return Err("is not a JSON object; give an object schema".to_owned());
    };
    let schema =
        if short_form::is_short_form(&schema) { short_form::written_out(&schema)? } else { schema };
    if schema.get("type").is_some_and(|kind| kind != "object") {
        return Err("is no object schema; its type must be \"object\"".to_owned());
    }
    let schema = Value::Object(schema);
    if depth(&schema) > DEEPEST {
        return Err(format!("is nested deeper than {DEEPEST} levels; flatten it"));
    }
    if schema == json!({}) {
        return Ok(json!({
            "additionalProperties": false,
            "type": "object",
            "properties": {},
            "required": [],
        }));
    }

    let mut graph = Graph::default();
    let root = graph.insert(schema);
    let mut strictness =
        Strictness { graph, root, nodes: MOST_NODES, copies: MOST_COPIES, path: Vec::new() };
    strictness.make_strict(root, 1, false)?;
    strictness.check_root()?;
    let strict = strictness.graph.value(root)?;
    // Writing a reference out may have nested what was flat.
    if depth(&strict) > DEEPEST {
        return Err(format!("is nested deeper than {DEEPEST} levels once strict; flatten it"));
    }
    Ok(strict)
}

/// How many objects and lists are inside each other, at most.
pub(crate) fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// A conversion under way.
struct Strictness {
    graph: Graph,
    root: Id,
    /// How many schemas may still be looked at.
    nodes: usize,
    /// How many fields may still be copied.
    copies: usize,
    /// Where the schema stands that is looked at, for messages.
    path: Vec<String>,
}

impl Strictness {
    /// Makes the schema at `id` and all below it strict, in place. `in_resource` is true below a
    /// schema with an `$id` of its own, where references mean something else.
    fn make_strict(&mut self, id: Id, depth: usize, in_resource: bool) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(
                self.fault(format!("is nested deeper than {DEEPEST} levels, or refers to itself"))
            );
        }
        if self.graph.fields(id).is_none() {
            return Err(self.fault("is not a JSON object, which a schema must be"));
        }
        self.spend_node()?;
        // Seen before anything is closed below: who closed an object by hand meant it.
        let closed_by_hand =
            self.graph.is(self.graph.get(id, "additionalProperties"), &json!(false));
        let in_resource = in_resource || (id != self.root && self.declares_resource(id));
        let at = Place { depth: depth + 1, in_resource };

        if self.graph.get(id, "$ref").is_some() {
            if in_resource {
                return Err(self.ref_across_resources());
            }
            if let Some(key) = self.first_beside_ref(id, id == self.root) {
                return Err(self.fault(format!(
                    "has {key:?} beside a $ref, which can't be merged without changing what it accepts"
                )));
            }
        }
        self.each_field("$defs", id, at)?;
        self.each_field("definitions", id, at)?;
        self.close(id)?;
        if let Some(properties) = self.graph.get_fields(id, "properties") {
            let names: Vec<Value> =
                properties.in_order().into_iter().map(|(name, _)| json!(name)).collect();
            let required = self.graph.insert(Value::Array(names));
            self.graph.set(id, "required", required);
            self.each_field("properties", id, at)?;
        }
        if let Some(items) =
            self.graph.get(id, "items").filter(|items| self.graph.fields(*items).is_some())
        {
            self.below("items", items, at)?;
        }
        self.each_entry("anyOf", id, at)?;
        self.one_of_becomes_any_of(id, at)?;

        if let Some(all_of) = self.graph.get_list(id, "allOf") {
            if let [entry] = *all_of {
                return self.merge_single_all_of(id, entry, closed_by_hand, at);
            }
            self.each_entry("allOf", id, at)?;
        }
        // No default and a default of null are the same to the model.
        if self.graph.is(self.graph.get(id, "default"), &Value::Null) {
            self.graph.remove(id, "default");
        }
        self.write_out_ref(id, at)
    }

    /// Types an object that lacks its type, and forbids what it does not declare.
    fn close(&mut self, id: Id) -> Result<(), String> {
        const OPEN: &str = "allows properties that it does not declare; \
                            leave additionalProperties out, or set it to false";
        let kind = self.graph.get(id, "type");
        let kind = kind.filter(|kind| !self.graph.is(Some(*kind), &Value::Null));
        let is_open = self
            .graph
            .get(id, "additionalProperties")
            .map(|additional| !self.graph.is(Some(additional), &json!(false)));
        let is_object = match kind {
            Some(kind) => {
                self.graph.text(kind) == Some("object")
                    || self.graph.list(kind).is_some_and(|kinds| {
                        kinds.iter().any(|kind| self.graph.text(*kind) == Some("object"))
                    })
            }
            None if self.graph.get_fields(id, "properties").is_some() => {
                let object = self.graph.insert(json!("object"));
                self.graph.set(id, "type", object);
                true
            }
            None if is_open == Some(true) => return Err(self.fault(OPEN)),
            None => false,
        };
        match is_open {
            Some(true) if is_object => Err(self.fault(OPEN)),
            None if is_object => {
                let closed = self.graph.insert(json!(false));
                self.graph.set(id, "additionalProperties", closed);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn one_of_becomes_any_of(&mut self, id: Id, at: Place) -> Result<(), String> {
        let Some(one_of) = self.graph.get_list(id, "oneOf") else {
            return Ok(());
        };
        let mut any_of = self.graph.get_list(id, "anyOf").unwrap_or_default().to_vec();
        any_of.extend_from_slice(one_of);
        self.each_entry("oneOf", id, at)?;
        let any_of = self.graph.push(Node::List(any_of));
        self.graph.set(id, "anyOf", any_of);
        self.graph.remove(id, "oneOf");
        Ok(())
    }

    /// An `allOf` of one entry is that entry.
    fn merge_single_all_of(
        &mut self,
        id: Id,
        entry: Id,
        closed_by_hand: bool,
        at: Place,
    ) -> Result<(), String> {
        let is_bare_ref = self.graph.get(entry, "$ref").is_some()
            && self.first_beside_ref(entry, false).is_none();
        let entry = if is_bare_ref {
            if at.in_resource {
                return Err(self.ref_across_resources());
            }
            self.spend_node()?;
            self.end_of_ref_chain(entry)?
        } else {
            self.path.push("allOf/0".to_owned());
            self.make_strict(entry, at.depth, at.in_resource)?;
            self.path.pop();
            self.copy_of(entry)?
        };
        self.graph.remove(id, "allOf");
        if !closed_by_hand {
            // The merged object is closed again, with what else it then holds.
            self.graph.remove(id, "additionalProperties");
        }
        let merged = self.merged(entry, id)?;
        self.graph.replace(id, Node::Object(merged));
        self.make_strict(id, at.depth, at.in_resource)
    }

    /// The fields of `entry` with those of `parent`, where the two don't contradict each other.
    fn merged(&mut self, mut entry: Fields, parent: Id) -> Result<Fields, String> {
        let graph = &self.graph;
        let mut conflicts: Vec<String> = Vec::new();
        let parent_is_closed = graph.is(graph.get(parent, "additionalProperties"), &json!(false));
        let parent_declares =
            graph.get(parent, "properties").is_some_and(|own| !graph.is_empty_object(own));
        let entry_declares = entry
            .get("properties")
            .and_then(|properties| graph.fields(properties))
            .is_some_and(|properties| properties.len() > 0);
        if parent_is_closed && !parent_declares && entry_declares {
            // It is closed to all that itself does not declare, so to everything of the entry.
            conflicts.push("properties".to_owned());
        }
        let of_parent = graph.fields(parent).cloned().unwrap_or_default();
        let mut compared = 0;
        for (key, value) in of_parent.in_order() {
            let Some(of_entry) = entry.get(key) else {
                entry.set(key, value);
                continue;
            };
            let says_nothing = (key == "properties" && graph.is_empty_object(value))
                || (key == "required" && graph.is_empty_list(value));
            if is_harmless_beside_ref(key) {
                entry.set(key, value);
            } else if !graph.equal(value, of_entry, 0, &mut compared) && !says_nothing {
                conflicts.push(key.to_owned());
            }
        }
        self.spend_copies(of_parent.len() + compared)?;
        if conflicts.is_empty() {
            return Ok(entry);
        }
        conflicts.sort();
        Err(self.fault(format!(
            "has an allOf of one entry that contradicts it in {}",
            conflicts.join(", ")
        )))
    }

    /// What a `$ref` with nothing of weight beside it leads to in the end, with what stood beside.
    fn end_of_ref_chain(&mut self, schema: Id) -> Result<Fields, String> {
        let mut seen = HashSet::new();
        let mut carried = Fields::default();
        let mut at = schema;
        while let Some(reference) = self.graph.get(at, "$ref") {
            if self.first_beside_ref(at, false).is_some() {
                break;
            }
            let reference = self.reference_text(reference)?;
            if !seen.insert(reference.clone()) {
                return Err(self.fault("has a $ref that leads back to itself"));
            }
            // What stands nearer wins, and stands in the order of the one further away.
            let mut beside = self.copy_of(at)?;
            beside.remove("$ref");
            for (name, id) in carried.in_order() {
                beside.set(name, id);
            }
            carried = beside;
            self.spend_node()?;
            at = self.resolve(&reference)?;
        }
        let mut end = self.copy_of(at)?;
        for (name, id) in carried.in_order() {
            end.set(name, id);
        }
        Ok(end)
    }

    /// A `$ref` must stand alone. One that does not becomes what it names, under what stood beside.
    fn write_out_ref(&mut self, id: Id, at: Place) -> Result<(), String> {
        let Some(reference) = self.graph.get(id, "$ref") else {
            return Ok(());
        };
        let stands_alone = self.graph.fields(id).is_none_or(|fields| fields.len() == 1);
        if stands_alone || !self.graph.is_truthy(reference) {
            return Ok(());
        }
        let reference = self.reference_text(reference)?;
        let target = self.resolve(&reference)?;
        // Removed first: the target may be this very schema, or have a $ref of its own to keep.
        self.graph.remove(id, "$ref");
        for (name, value) in self.copy_of(target)?.in_order() {
            if self.graph.get(id, name).is_none() {
                self.graph.set(id, name, value);
            }
        }
        self.make_strict(id, at.depth, at.in_resource)
    }

    /// What `#/…` names in the document.
    fn resolve(&self, reference: &str) -> Result<Id, String> {
        let pointer = reference.strip_prefix("#/").ok_or_else(|| {
            self.fault(format!("has the $ref {reference:?}, which does not begin with #/"))
        })?;
        let pointer = percent_decoded(pointer)
            .ok_or_else(|| self.fault(format!("has the $ref {reference:?}, which is not UTF-8")))?;
        let mut at = self.root;
        for key in pointer.split('/') {
            let key = key.replace("~1", "/").replace("~0", "~");
            at = self
                .graph
                .get(at, &key)
                .filter(|found| self.graph.fields(*found).is_some())
                .ok_or_else(|| {
                    self.fault(format!("has the $ref {reference:?}, which leads to no schema"))
                })?;
            if self.declares_resource(at) {
                return Err(self.ref_across_resources());
            }
        }
        Ok(at)
    }

    fn reference_text(&self, reference: Id) -> Result<String, String> {
        let text = self.graph.text(reference).map(str::to_owned);
        text.ok_or_else(|| self.fault("has a $ref that is not a text"))
    }

    fn declares_resource(&self, id: Id) -> bool {
        self.graph.get(id, "$id").is_some_and(|id| self.graph.text(id).is_some())
    }

    /// The first keyword, by name, that can't stand beside a `$ref`.
    fn first_beside_ref(&self, id: Id, is_root: bool) -> Option<&str> {
        self.graph.fields(id)?.names().find(|key| {
            *key != "$ref" && !is_harmless_beside_ref(key) && !(is_root && *key == "$id")
        })
    }

    /// Makes each value of the object `keyword` strict, if it is one.
    fn each_field(&mut self, keyword: &str, id: Id, at: Place) -> Result<(), String> {
        let Some(fields) = self.graph.get_fields(id, keyword) else {
            return Ok(());
        };
        let schemas: Vec<_> =
            fields.in_order().into_iter().map(|(name, id)| (name.to_owned(), id)).collect();
        for (name, schema) in schemas {
            self.below(&format!("{keyword}/{name}"), schema, at)?;
        }
        Ok(())
    }

    /// Makes each entry of the list `keyword` strict, if it is one.
    fn each_entry(&mut self, keyword: &str, id: Id, at: Place) -> Result<(), String> {
        let entries = self.graph.get_list(id, keyword).unwrap_or_default().to_vec();
        for (place, schema) in entries.into_iter().enumerate() {
            self.below(&format!("{keyword}/{place}"), schema, at)?;
        }
        Ok(())
    }

    fn below(&mut self, step: &str, schema: Id, at: Place) -> Result<(), String> {
        self.path.push(step.to_owned());
        self.make_strict(schema, at.depth, at.in_resource)?;
        self.path.pop();
        Ok(())
    }

    fn check_root(&mut self) -> Result<(), String> {
        if self.graph.get_list(self.root, "anyOf").is_some() {
            return Err(self.fault("is a choice (anyOf, oneOf), which its root must not be"));
        }
        let Some(kind) = self.graph.get(self.root, "type") else {
            return Ok(());
        };
        let Some(kinds) = self.graph.list(kind) else {
            return Ok(());
        };
        let names: Vec<_> = kinds.iter().map(|kind| self.graph.text(*kind)).collect();
        if names == [Some("object")] {
            let object = self.graph.insert(json!("object"));
            self.graph.set(self.root, "type", object);
        } else if names.contains(&Some("object")) {
            return Err(
                self.fault("may be something else than an object, which its root must not be")
            );
        }
        Ok(())
    }

    fn copy_of(&mut self, id: Id) -> Result<Fields, String> {
        let fields = self.graph.fields(id).cloned().unwrap_or_default();
        self.spend_copies(fields.len())?;
        Ok(fields)
    }

    fn spend_node(&mut self) -> Result<(), String> {
        self.nodes = self.nodes.checked_sub(1).ok_or_else(|| self.too_large())?;
        Ok(())
    }

    fn spend_copies(&mut self, fields: usize) -> Result<(), String> {
        self.copies = self.copies.checked_sub(fields).ok_or_else(|| self.too_large())?;
        Ok(())
    }

    fn too_large(&self) -> String {
        "is too large to be made strict; use fewer references to large schemas".to_owned()
    }

    fn ref_across_resources(&self) -> String {
        self.fault("has a $ref into or inside a schema with an $id of its own")
    }

    /// A fault of the schema that is looked at.
    fn fault(&self, what: impl Display) -> String {
        if self.path.is_empty() {
            return what.to_string();
        }
        format!("#/{} {what}", self.path.join("/"))
    }
}

/// Where a schema below stands.
#[derive(Debug, Clone, Copy)]
struct Place {
    depth: usize,
    in_resource: bool,
}

fn is_harmless_beside_ref(key: &str) -> bool {
    BESIDE_REF.contains(&key)
}

/// A text with its `%XX` decoded; what only looks like one stays. `None` if the result is not
/// UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match (byte, hex(tail.first()), hex(tail.get(1))) {
            (b'%', Some(high), Some(low)) => {
                decoded.extend(u8::try_from(high * 16 + low));
                rest = tail.get(2..).unwrap_or_default();
            }
            _ => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).ok()
}

/// What Python takes for true: the rules that are kept here were written in it.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}
