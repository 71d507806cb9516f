//! What stands for a value that is only ever compared, and may be too large to be kept.

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// The SHA-256 of a value as JSON. In which order an object names its keys makes no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// One that was kept.
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Fingerprint {
        Fingerprint(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn of(value: &impl Serialize) -> Fingerprint {
        // Whatever is fingerprinted came from JSON, or could have.
        let mut value = serde_json::to_value(value).unwrap_or_default();
        value.sort_all_objects();
        // A Value can be written: its keys are texts, and its numbers are JSON's.
        let text = serde_json::to_vec(&value).unwrap_or_default();
        Fingerprint(Sha256::digest(text).into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn equal_values_have_one_fingerprint_and_others_have_another() {
        let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let one = Fingerprint::of(&parsed(r#"{"a":{"c":[1,{"e":2,"f":3}],"d":null},"b":""}"#));
        let same = Fingerprint::of(&parsed(r#"{"b":"","a":{"d":null,"c":[1,{"f":3,"e":2}]}}"#));
        assert_eq!(one, same);
        let others = [json!({}), json!({"a": 1}), json!({"a": "1"}), json!([]), json!(null)];
        for (at, other) in others.iter().enumerate() {
            for another in &others[..at] {
                assert_ne!(Fingerprint::of(other), Fingerprint::of(another));
            }
        }
    }
}
