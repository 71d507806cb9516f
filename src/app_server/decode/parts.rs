//! A JSON object by its parts, each of them unread until it is asked for.
//!
//! Most of a line is needed once, some of it never, and what a newer CLI has added can't be known: so
//! an object is only looked through, and who knows a part reads it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// The parts of an object by their names.
#[derive(Debug, Default)]
pub(super) struct Parts<'a>(Vec<(Name<'a>, &'a RawValue)>);

#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Parts<'a> {
    /// The parts of an object; none of what is no object.
    pub(super) fn of(json: &'a RawValue) -> Parts<'a> {
        serde_json::from_str(json.get()).unwrap_or_default()
    }

    /// A part; `None` where it is null, too.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        let (_, part) = self.0.iter().find(|(Name(known), _)| known == name)?;
        (part.get() != "null").then_some(part)
    }

    pub(super) fn parts(&self, name: &str) -> Parts<'a> {
        self.get(name).map(Parts::of).unwrap_or_default()
    }

    /// A part, read; `None` where it is not what it should be. One that is not there is read as null.
    pub(super) fn read<T: Deserialize<'a>>(&self, name: &str) -> Option<T> {
        serde_json::from_str(self.get(name).map_or("null", RawValue::get)).ok()
    }

    /// A text that need not be there; empty then.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.read::<Option<String>>(name).map(Option::unwrap_or_default)
    }

    /// A part's JSON; empty where there is none.
    pub(super) fn json(&self, name: &str) -> String {
        self.get(name).map_or("", RawValue::get).to_owned()
    }

    /// A part's JSON; that of null where there is none.
    pub(super) fn json_or_null(&self, name: &str) -> String {
        self.get(name).map_or("null", RawValue::get).to_owned()
    }
}

impl<'de> Deserialize<'de> for Parts<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Parts<'de>, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Parts<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parts<'de>, A::Error> {
                // Most objects have no more.
                let mut parts = Vec::with_capacity(8);
                while let Some(part) = map.next_entry()? {
                    parts.push(part);
                }
                Ok(Parts(parts))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_as_what_they_are_asked_for() {
        let json = r#"{"text": "ä\n", "number": 7, "none": null, "na\u006de": [1, {"x": 2}]}"#;
        let json = RawValue::from_string(json.to_owned()).unwrap();
        let parts = Parts::of(&json);
        assert_eq!(parts.read::<String>("text").as_deref(), Some("ä\n"));
        assert_eq!(parts.read::<String>("number"), None);
        assert_eq!(parts.read::<String>("absent"), None);
        assert_eq!(parts.read::<Option<u64>>("absent"), Some(None));
        assert_eq!(parts.read::<Option<u64>>("none"), Some(None));
        assert_eq!(parts.read::<Option<u64>>("text"), None);
        let texts = [parts.text("text"), parts.text("none"), parts.text("number")];
        assert_eq!(texts, [Some("ä\n".to_owned()), Some(String::new()), None]);
        assert_eq!([parts.json("name"), parts.json("none")], [r#"[1, {"x": 2}]"#, ""]);
        for other in ["null", "7", "[1]"] {
            let other = RawValue::from_string(other.to_owned()).unwrap();
            assert!(Parts::of(&other).0.is_empty());
        }
    }
}
