//! Messages of the contract as JSON, and back.
//!
//! Protobuf's JSON mapping with the names of the contract: fields in snake_case as the proto spells
//! them, enums by name, 64-bit integers as numbers, times as RFC 3339 text, durations as `"1.5s"`.
//! A field that is not set, or has its type's zero, is left out. By the descriptors, not by hand: a new
//! field of the contract is there without anybody thinking of it.

use std::sync::OnceLock;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::{Deserializer, Serializer};

use crate::pb;

/// Gives the encoded message of this name (`TurnEvent`) to `serializer`. What it holds beyond the contract
/// is left out.
///
/// # Errors
/// Why it can't be decoded or rendered.
pub(crate) fn serialize<S: Serializer>(
    name: &str,
    encoded: &[u8],
    serializer: S,
) -> Result<S::Ok, String> {
    let message =
        DynamicMessage::decode(descriptor(name)?, encoded).map_err(|error| error.to_string())?;
    let options =
        SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    message.serialize_with_options(serializer, &options).map_err(|error| error.to_string())
}

/// Reads a message of this name, and gives it encoded.
///
/// # Errors
/// What is wrong with it; also a field that the contract does not have.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    name: &str,
    deserializer: D,
) -> Result<Vec<u8>, String> {
    let message = DynamicMessage::deserialize(descriptor(name)?, deserializer);
    message.map(|message| message.encode_to_vec()).map_err(|error| error.to_string())
}

fn descriptor(name: &str) -> Result<MessageDescriptor, String> {
    static POOL: OnceLock<Result<DescriptorPool, String>> = OnceLock::new();
    let decode = || DescriptorPool::decode(pb::DESCRIPTORS).map_err(|error| error.to_string());
    let pool = POOL
        .get_or_init(decode)
        .as_ref()
        .map_err(|error| format!("the contract's descriptors are broken: {error}"))?;
    let name = format!("codex.sidecar.v1.{name}");
    pool.get_message_by_name(&name).ok_or_else(|| format!("the contract has no message {name}"))
}
