//! Messages of the contract as JSON, one object a line, as [`crate::model::json`] writes them.

use prost::Message;

use super::failure::Failure;
use crate::{model, pb};

/// A message that can be rendered: its name in the contract.
pub(super) trait Named: Message {
    const NAME: &'static str;
}

macro_rules! named {
    ($($message:ident),*) => {
        $(impl Named for pb::$message {
            const NAME: &'static str = stringify!($message);
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

/// The message in one line.
pub(super) fn line<M: Named>(message: &M) -> Result<String, Failure> {
    let mut line = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut line);
    model::json::serialize(M::NAME, &message.encode_to_vec(), &mut serializer)
        .and_then(|()| String::from_utf8(line).map_err(|error| error.to_string()))
        .map_err(|error| Failure::told(format!("can't render {} as JSON: {error}", M::NAME)))
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
