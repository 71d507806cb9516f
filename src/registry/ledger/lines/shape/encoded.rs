//! Times and bytes as texts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

/// RFC 3339, to the nanosecond.
pub(super) mod time {
    use std::time::SystemTime;

    use prost_types::Timestamp;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        time: &SystemTime,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        out.collect_str(&Timestamp::from(*time))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        let time = text.parse::<Timestamp>().ok().and_then(|time| SystemTime::try_from(time).ok());
        time.ok_or_else(|| D::Error::custom(format!("{text:?} is no time of RFC 3339")))
    }
}

/// Bytes as base64.
#[derive(Debug)]
pub(super) struct Base64(pub(super) Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Base64, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = BASE64.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Base64(bytes))
    }
}

impl Base64 {
    pub(super) fn digest(self, field: &str) -> Result<[u8; 32], String> {
        let bytes = self.0.len();
        self.0.try_into().map_err(|_| format!("{field} has {bytes} bytes and not 32"))
    }
}
