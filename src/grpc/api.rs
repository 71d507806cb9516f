//! The contract's stubs for the server.
//!
//! They are the contract's on the wire, and differ from it in one respect: the responses that stream a
//! turn carry each event as its log keeps it, encoded. On the wire, a message and its bytes are the same.

use bytes::Bytes;

pub(crate) use stubs::*;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    rustdoc::all,
    reason = "generated"
)]
mod stubs {
    include!(concat!(env!("OUT_DIR"), "/server/codex.sidecar.v1.rs"));
}

/// [`pb::RunTurnResponse`](crate::pb::RunTurnResponse) on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RunTurnResponse {
    /// The encoded event.
    #[prost(bytes = "bytes", tag = "1")]
    pub event: Bytes,
}

/// [`pb::AttachTurnResponse`](crate::pb::AttachTurnResponse) on the wire.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AttachTurnResponse {
    /// The encoded event.
    #[prost(bytes = "bytes", tag = "1")]
    pub event: Bytes,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb;

    #[test]
    fn both_sides_of_a_stream_are_the_same_on_the_wire() {
        let event = pb::TurnEvent {
            sequence: 7,
            emitted_at: Some(prost_types::Timestamp { seconds: 1, nanos: 2 }),
            turn_id: "turn".to_owned(),
            event: Some(pb::turn_event::Event::Queued(pb::Queued { position: 3 })),
        };
        let encoded = Bytes::from(event.encode_to_vec());
        let run = RunTurnResponse { event: encoded.clone() }.encode_to_vec();
        let attached = AttachTurnResponse { event: encoded }.encode_to_vec();
        let told = pb::RunTurnResponse { event: Some(event.clone()) };
        assert_eq!(run, told.encode_to_vec());
        assert_eq!(pb::RunTurnResponse::decode(&*run).unwrap(), told);
        let told = pb::AttachTurnResponse { event: Some(event) };
        assert_eq!(attached, told.encode_to_vec());
        assert_eq!(pb::AttachTurnResponse::decode(&*attached).unwrap(), told);
        // No event is one that is not there, and not one that says nothing.
        let nothing = RunTurnResponse::default().encode_to_vec();
        assert_eq!(pb::RunTurnResponse::decode(&*nothing).unwrap().event, None);
    }

    #[test]
    fn what_reflection_serves_names_the_events_and_not_their_bytes() {
        let contract = prost_types::FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap();
        let messages = || contract.file.iter().flat_map(|file| &file.message_type);
        for name in ["RunTurnResponse", "AttachTurnResponse"] {
            let message = messages().find(|message| message.name() == name).unwrap();
            let [event] = &*message.field else { panic!("{message:?}") };
            assert_eq!(event.type_name(), ".codex.sidecar.v1.TurnEvent");
            assert_eq!((event.name(), event.number()), ("event", 1));
        }
    }
}
