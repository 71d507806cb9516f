//! Messages of the contract as JSON, one object a line.
//!
//! Protobuf's JSON mapping with the names of the contract: fields in snake_case as the proto spells
//! them, enums by name, 64-bit integers as numbers, times as RFC 3339 text, durations as `"1.5s"`.
//! A field that is not set, or has its type's zero, is left out.

use std::sync::OnceLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

use super::failure::Failure;
use crate::pb;

/// A message that can be rendered: its full name in the contract.
pub(super) trait Named: Message {
    const NAME: &'static str;
}

macro_rules! named {
    ($($message:ident),*) => {
        $(impl Named for pb::$message {
            const NAME: &'static str = concat!("codex.sidecar.v1.", stringify!($message));
        })*
    };
}
named!(
    TurnEvent,
    Context,
    BindContextResponse,
    Worker,
    TurnInfo,
    ThreadTurn,
    Model,
    GetServerInfoResponse
);

/// The message in one line. By the descriptors, not by hand: a new field of the contract is there
/// without anybody thinking of it.
pub(super) fn line<M: Named>(message: &M) -> Result<String, Failure> {
    static POOL: OnceLock<Result<DescriptorPool, String>> = OnceLock::new();
    let pool = POOL
        .get_or_init(|| DescriptorPool::decode(pb::DESCRIPTORS).map_err(|error| error.to_string()))
        .as_ref()
        .map_err(|error| {
            Failure::told(format!("the contract's descriptors are broken: {error}"))
        })?;
    let render = || -> Result<String, Box<dyn std::error::Error>> {
        let descriptor = pool.get_message_by_name(M::NAME).ok_or("no such message")?;
        let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())?;
        let options =
            SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
        let mut line = Vec::new();
        dynamic.serialize_with_options(&mut serde_json::Serializer::new(&mut line), &options)?;
        Ok(String::from_utf8(line)?)
    };
    render().map_err(|error| Failure::told(format!("can't render {} as JSON: {error}", M::NAME)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_in_the_contracts_words() {
        let command = pb::CommandExecution {
            command: "echo hello".to_owned(),
            exit_code: Some(0),
            status: pb::CommandExecutionStatus::Completed.into(),
            duration: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            ..Default::default()
        };
        let item = pb::Item {
            id: "item_1".to_owned(),
            kind: Some(pb::item::Kind::CommandExecution(command)),
        };
        let event = pb::TurnEvent {
            sequence: 7,
            emitted_at: Some(prost_types::Timestamp { seconds: 0, nanos: 1_000_000 }),
            turn_id: "t".to_owned(),
            event: Some(pb::turn_event::Event::ItemCompleted(pb::ItemCompleted {
                item: Some(item),
            })),
        };
        assert_eq!(
            line(&event).unwrap(),
            r#"{"sequence":7,"emitted_at":"1970-01-01T00:00:00.001Z","turn_id":"t","item_completed":{"item":{"id":"item_1","command_execution":{"command":"echo hello","exit_code":0,"status":"COMMAND_EXECUTION_STATUS_COMPLETED","duration":"1.500s"}}}}"#
        );
    }

    #[test]
    fn every_message_has_its_name() {
        assert!(line(&pb::TurnEvent::default()).is_ok());
        assert!(line(&pb::Context::default()).is_ok());
        assert!(line(&pb::BindContextResponse::default()).is_ok());
        assert!(line(&pb::Worker::default()).is_ok());
        assert!(line(&pb::TurnInfo::default()).is_ok());
        assert!(line(&pb::ThreadTurn::default()).is_ok());
        assert!(line(&pb::Model::default()).is_ok());
        assert!(line(&pb::GetServerInfoResponse::default()).is_ok());
    }
}
