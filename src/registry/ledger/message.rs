//! The payloads of records. Fields may be added; a number that was used is never used for another.
//!
//! Times are nanoseconds since 1970. Ids are [`super::key::id`]s.

use prost::Message;

use crate::model::event::Usage;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Binding {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) thread_id: Vec<u8>,
    #[prost(sfixed64, tag = "2")]
    pub(super) created_at: i64,
    #[prost(sfixed64, tag = "3")]
    pub(super) updated_at: i64,
    #[prost(sfixed64, tag = "4")]
    pub(super) used_at: i64,
    #[prost(uint64, tag = "5")]
    pub(super) turns: u64,
    #[prost(bytes = "vec", optional, tag = "6")]
    pub(super) latest_turn: Option<Vec<u8>>,
    #[prost(bool, tag = "7")]
    pub(super) is_fresh_copy: bool,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub(super) copied_from: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Mark {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) thread_id: Vec<u8>,
    #[prost(sfixed64, tag = "2")]
    pub(super) evicted_at: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Turn {
    #[prost(sfixed64, tag = "1")]
    pub(super) created_at: i64,
    #[prost(sfixed64, tag = "2")]
    pub(super) started_at: i64,
    #[prost(uint64, tag = "3")]
    pub(super) reserved: u64,
    #[prost(message, optional, tag = "4")]
    pub(super) context: Option<Context>,
    #[prost(message, repeated, tag = "5")]
    pub(super) requests: Vec<Request>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Context {
    #[prost(string, tag = "1")]
    pub(super) context_id: String,
    #[prost(string, tag = "2")]
    pub(super) thread_key: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(uint32, tag = "2")]
    pub(super) content_version: u32,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) content_digest: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ThreadStarted {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) thread_id: Vec<u8>,
    #[prost(string, optional, tag = "2")]
    pub(super) worker: Option<String>,
    #[prost(uint64, tag = "3")]
    pub(super) sequence: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(super) event: bytes::Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Reserved {
    #[prost(uint64, tag = "1")]
    pub(super) sequence: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct End {
    #[prost(sfixed64, tag = "1")]
    pub(super) ended_at: i64,
    #[prost(uint64, tag = "2")]
    pub(super) sequence: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) event: bytes::Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Facts {
    #[prost(message, optional, tag = "1")]
    pub(super) usage: Option<Usage>,
    #[prost(bool, tag = "2")]
    pub(super) is_blank: bool,
    #[prost(message, optional, tag = "3")]
    pub(super) turns: Option<TurnsSeen>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub(super) dynamic_tools: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "5")]
    pub(super) developer_instructions: Option<Vec<u8>>,
    #[prost(message, optional, tag = "6")]
    pub(super) left: Option<Left>,
    #[prost(sfixed64, tag = "7")]
    pub(super) at: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Left {
    #[prost(bool, tag = "1")]
    pub(super) summary: bool,
    #[prost(bool, tag = "2")]
    pub(super) service_tier: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TurnsSeen {
    #[prost(uint64, tag = "1")]
    pub(super) count: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) last: Option<SeenTurn>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SeenTurn {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(bool, tag = "2")]
    pub(super) has_completed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tokens {
    #[prost(sfixed64, tag = "1")]
    pub(super) day: i64,
    #[prost(uint64, tag = "2")]
    pub(super) tokens: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Directory {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) thread_id: Vec<u8>,
    #[prost(sfixed64, tag = "2")]
    pub(super) at: i64,
}
