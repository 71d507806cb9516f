//! Whom to answer about a message that can't be taken: as much of it as says that.

use std::io;

use rmcp::model::RequestId;
use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};

/// What the outermost object of a message says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Envelope {
    pub(crate) id: Option<RequestId>,
    /// It is the answer to something.
    pub(crate) is_answer: bool,
    /// It names a method and wants no answer.
    pub(crate) is_notification: bool,
}

impl Envelope {
    /// Reads it to its end or its first fault, keeping nothing else of it.
    pub(crate) fn of(message: impl io::Read) -> Envelope {
        let mut envelope = Envelope::default();
        let reader = io::BufReader::new(message);
        let read = serde_json::Deserializer::from_reader(reader).deserialize_map(&mut envelope);
        envelope.is_notification &= envelope.id.is_none() && read.is_ok();
        envelope
    }
}

impl<'de> Visitor<'de> for &mut Envelope {
    type Value = ();

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(name) = fields.next_key::<String>()? {
            match name.as_str() {
                "id" => self.id = fields.next_value()?,
                name => {
                    self.is_answer |= matches!(name, "result" | "error");
                    self.is_notification |= name == "method";
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}
