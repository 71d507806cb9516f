//! JSON in which a value may be part of several others.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{DEEPEST, LARGEST_RESULT, MOST_COPIES, is_truthy};

/// A place in a [`Graph`].
pub(super) type Id = usize;

/// The values by their places. Nothing is ever taken out.
#[derive(Debug, Default)]
pub(super) struct Graph(Vec<Node>);

#[derive(Debug, Clone)]
pub(super) enum Node {
    /// Null, a bool, a number or a text.
    Plain(Value),
    List(Vec<Id>),
    Object(Fields),
}

/// The fields of an object. They remember the order in which they came: the model writes its
/// answer in the order of the properties.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields {
    by_name: BTreeMap<String, Field>,
    /// The place of the next new field.
    next: usize,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    place: usize,
    id: Id,
}

impl Fields {
    pub(super) fn get(&self, name: &str) -> Option<Id> {
        self.by_name.get(name).map(|field| field.id)
    }

    /// Sets a field; one that is there already keeps its place.
    pub(super) fn set(&mut self, name: &str, id: Id) {
        match self.by_name.get_mut(name) {
            Some(field) => field.id = id,
            None => {
                self.by_name.insert(name.to_owned(), Field { place: self.next, id });
                self.next += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// In the order of the alphabet.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    pub(super) fn in_order(&self) -> Vec<(&str, Id)> {
        let mut fields: Vec<_> = self
            .by_name
            .iter()
            .map(|(name, field)| (field.place, name.as_str(), field.id))
            .collect();
        fields.sort_unstable_by_key(|(place, _, _)| *place);
        fields.into_iter().map(|(_, name, id)| (name, id)).collect()
    }
}

impl Graph {
    pub(super) fn push(&mut self, node: Node) -> Id {
        self.0.push(node);
        self.0.len() - 1
    }

    /// Takes a tree in. Its depth has been checked.
    pub(super) fn insert(&mut self, value: Value) -> Id {
        let node = match value {
            Value::Array(list) => {
                Node::List(list.into_iter().map(|value| self.insert(value)).collect())
            }
            Value::Object(map) => {
                let mut fields = Fields::default();
                for (name, value) in map {
                    let id = self.insert(value);
                    fields.set(&name, id);
                }
                Node::Object(fields)
            }
            plain => Node::Plain(plain),
        };
        self.push(node)
    }

    /// The tree that starts at `id`, within the bounds of a result.
    pub(super) fn value(&self, id: Id) -> Result<Value, String> {
        self.value_within(id, 0, &mut { LARGEST_RESULT })
    }

    fn value_within(&self, id: Id, depth: usize, room: &mut usize) -> Result<Value, String> {
        let too_large = || "is too large once strict; make it smaller".to_owned();
        // The graph may have a circle where no schema is looked for, below `not` for example.
        if depth > DEEPEST {
            return Err(format!("is nested deeper than {DEEPEST} levels once strict; flatten it"));
        }
        let mut spend = |bytes: usize| {
            // A value costs memory also where it has no text.
            *room = room.checked_sub(bytes + 16).ok_or_else(too_large)?;
            Ok::<(), String>(())
        };
        match self.0.get(id) {
            None => Ok(Value::Null),
            Some(Node::Plain(value)) => {
                spend(value.as_str().map_or(0, str::len))?;
                Ok(value.clone())
            }
            Some(Node::List(list)) => {
                spend(0)?;
                list.iter().map(|id| self.value_within(*id, depth + 1, room)).collect()
            }
            Some(Node::Object(fields)) => {
                spend(fields.by_name.keys().map(String::len).sum())?;
                let mut map = Map::new();
                for (name, id) in fields.in_order() {
                    map.insert(name.to_owned(), self.value_within(id, depth + 1, room)?);
                }
                Ok(Value::Object(map))
            }
        }
    }

    pub(super) fn fields(&self, id: Id) -> Option<&Fields> {
        match self.0.get(id) {
            Some(Node::Object(fields)) => Some(fields),
            _ => None,
        }
    }

    pub(super) fn list(&self, id: Id) -> Option<&[Id]> {
        match self.0.get(id) {
            Some(Node::List(list)) => Some(list),
            _ => None,
        }
    }

    pub(super) fn plain(&self, id: Id) -> Option<&Value> {
        match self.0.get(id) {
            Some(Node::Plain(value)) => Some(value),
            _ => None,
        }
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        self.plain(id).and_then(Value::as_str)
    }

    /// The field of an object.
    pub(super) fn get(&self, id: Id, name: &str) -> Option<Id> {
        self.fields(id)?.get(name)
    }

    pub(super) fn get_fields(&self, id: Id, name: &str) -> Option<&Fields> {
        self.fields(self.get(id, name)?)
    }

    pub(super) fn get_list(&self, id: Id, name: &str) -> Option<&[Id]> {
        self.list(self.get(id, name)?)
    }

    pub(super) fn set(&mut self, id: Id, name: &str, value: Id) {
        if let Some(Node::Object(fields)) = self.0.get_mut(id) {
            fields.set(name, value);
        }
    }

    pub(super) fn remove(&mut self, id: Id, name: &str) {
        if let Some(Node::Object(fields)) = self.0.get_mut(id) {
            fields.remove(name);
        }
    }

    pub(super) fn is(&self, id: Option<Id>, value: &Value) -> bool {
        id.and_then(|id| self.plain(id)).is_some_and(|plain| plain == value)
    }

    pub(super) fn is_empty_object(&self, id: Id) -> bool {
        self.fields(id).is_some_and(|fields| fields.len() == 0)
    }

    pub(super) fn is_empty_list(&self, id: Id) -> bool {
        self.list(id).is_some_and(<[Id]>::is_empty)
    }

    pub(super) fn replace(&mut self, id: Id, node: Node) {
        if let Some(place) = self.0.get_mut(id) {
            *place = node;
        }
    }

    pub(super) fn is_truthy(&self, id: Id) -> bool {
        match self.0.get(id) {
            Some(Node::Plain(value)) => is_truthy(value),
            Some(Node::List(list)) => !list.is_empty(),
            Some(Node::Object(fields)) => fields.len() > 0,
            None => false,
        }
    }

    /// JSON equality; `1` and `1.0` are equal. What it looked at is added to `compared`.
    pub(super) fn equal(&self, left: Id, right: Id, depth: usize, compared: &mut usize) -> bool {
        *compared += 1;
        // Past the bounds nothing is equal, and the caller refuses.
        if depth > DEEPEST || *compared > MOST_COPIES {
            return false;
        }
        match (self.0.get(left), self.0.get(right)) {
            (Some(Node::Plain(left)), Some(Node::Plain(right))) => match (left, right) {
                (Value::Number(left), Value::Number(right)) => {
                    left == right || left.as_f64() == right.as_f64()
                }
                (left, right) => left == right,
            },
            (Some(Node::List(left)), Some(Node::List(right))) => {
                left.len() == right.len()
                    && left
                        .iter()
                        .zip(right)
                        .all(|(left, right)| self.equal(*left, *right, depth + 1, compared))
            }
            (Some(Node::Object(left)), Some(Node::Object(right))) => {
                left.len() == right.len()
                    && left.by_name.iter().all(|(name, field)| {
                        right
                            .get(name)
                            .is_some_and(|right| self.equal(field.id, right, depth + 1, compared))
                    })
            }
            _ => false,
        }
    }
}
