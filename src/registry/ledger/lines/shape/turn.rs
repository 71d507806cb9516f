//! The line of a turn: its start, its ends, its requests.

use std::time::SystemTime;

use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::encoded::{Base64, time};
use super::{key, name, thread_id};
use crate::model;
use crate::model::event::Event;
use crate::model::id::{ContextKey, TurnId};
use crate::model::refusal::show;
use crate::model::request::{ContentHash, RequestId};
use crate::pb;
use crate::registry::ledger::{KeptEnd, KeptThreadStarted, KeptTurn};

/// What an event is in the contract.
const EVENT: &str = "TurnEvent";

/// The highest number of an event: more than a turn can have, and as exact in every reader of JSON.
const LAST_SEQUENCE: u64 = 1 << 53;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TurnLine {
    turn_id: String,
    /// Both or neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    context_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thread_id_key: Option<String>,
    #[serde(with = "time")]
    create_time: SystemTime,
    #[serde(with = "time")]
    start_time: SystemTime,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    requests: Vec<RequestLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    thread_started: Option<ThreadStartedLine>,
    /// No event has a higher one.
    reserved_sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<TurnEndLine>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestLine {
    request_id: String,
    content_version: u32,
    /// In base64.
    content_digest: Base64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ThreadStartedLine {
    thread_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    worker_id: Option<String>,
    sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_base64: Option<Base64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TurnEndLine {
    #[serde(with = "time")]
    end_time: SystemTime,
    sequence: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_base64: Option<Base64>,
}

/// An event in one of its two forms: JSON where that is the same byte for byte when it is read again, else
/// base64.
fn event_out(encoded: &[u8]) -> (Option<Value>, Option<Base64>) {
    let json = model::json::serialize(EVENT, encoded, serde_json::value::Serializer).ok();
    let is_same =
        |json: &Value| model::json::deserialize(EVENT, json).is_ok_and(|again| again == encoded);
    match json.filter(is_same) {
        Some(json) => (Some(json), None),
        None => (None, Some(Base64(encoded.to_vec()))),
    }
}

/// The event of this turn with this sequence.
fn event_in(
    json: Option<Value>,
    base64: Option<Base64>,
    turn_id: &str,
    sequence: u64,
) -> Result<(Bytes, Option<Event>), String> {
    let bytes = match (json, base64) {
        (Some(json), None) => model::json::deserialize(EVENT, json)
            .map_err(|error| format!("event is none of the contract's: {error}"))?,
        (None, Some(Base64(bytes))) => bytes,
        (Some(_), Some(_)) | (None, None) => {
            return Err("wants one of event and event_base64".to_owned());
        }
    };
    let event = pb::TurnEvent::decode(bytes.as_slice())
        .map_err(|error| format!("event_base64 is no event: {error}"))?;
    if event.turn_id != turn_id {
        return Err(format!("event is of turn {}", show(&event.turn_id)));
    }
    if event.sequence != sequence {
        return Err(format!("event has sequence {} and not {sequence}", event.sequence));
    }
    if event.emitted_at.is_none_or(|time| SystemTime::try_from(time).is_err()) {
        return Err("event has no time (emitted_at)".to_owned());
    }
    Ok((Bytes::from(bytes), event.event))
}

/// A turn whose sequences are what they can be.
fn in_order(turn: KeptTurn) -> Result<KeptTurn, String> {
    let KeptTurn { thread_started, reserved, end, .. } = &turn;
    let started = thread_started.as_ref().map(|started| started.sequence);
    let ended = end.as_ref().map(|end| end.sequence);
    let numbers = [
        ("thread_started.sequence", started),
        ("end.sequence", ended),
        ("reserved_sequence", Some(*reserved)),
    ];
    for (field, number) in numbers {
        if let Some(number) = number.filter(|number| !(1..=LAST_SEQUENCE).contains(number)) {
            return Err(format!("{field} {number} is not one of 1 to {LAST_SEQUENCE}"));
        }
    }
    let (before, what) = match ended {
        Some(ended) => (ended.saturating_sub(1), "end.sequence"),
        // Its end comes behind what is reserved.
        None => (*reserved, "reserved_sequence"),
    };
    match started.filter(|started| *started > before) {
        Some(started) => Err(format!("thread_started.sequence {started} is behind {what}")),
        None => Ok(turn),
    }
}

impl From<KeptTurn> for TurnLine {
    fn from(kept: KeptTurn) -> TurnLine {
        let KeptTurn {
            turn_id,
            context,
            created_at,
            started_at,
            requests,
            thread_started,
            reserved,
            end,
        } = kept;
        let (context_id, thread_id_key) = context
            .map(|ContextKey { tenant: _, context_id, thread_key }| (context_id, thread_key))
            .unzip();
        let request = |RequestId { id, content: ContentHash { version, digest } }| RequestLine {
            request_id: id,
            content_version: version,
            content_digest: Base64(digest.to_vec()),
        };
        TurnLine {
            turn_id: turn_id.0,
            context_id,
            thread_id_key,
            create_time: created_at,
            start_time: started_at,
            requests: requests.into_iter().map(request).collect(),
            thread_started: thread_started.map(|started| {
                let KeptThreadStarted { thread_id, worker, sequence, event } = started;
                let (event, event_base64) = event_out(&event);
                let thread_id = thread_id.to_string();
                ThreadStartedLine { thread_id, worker_id: worker, sequence, event, event_base64 }
            }),
            reserved_sequence: reserved,
            end: end.map(|KeptEnd { ended_at, sequence, event }| {
                let (event, event_base64) = event_out(&event);
                TurnEndLine { end_time: ended_at, sequence, event, event_base64 }
            }),
        }
    }
}

impl TryFrom<TurnLine> for KeptTurn {
    type Error = String;

    fn try_from(line: TurnLine) -> Result<KeptTurn, String> {
        let TurnLine {
            turn_id,
            context_id,
            thread_id_key,
            create_time,
            start_time,
            requests,
            thread_started,
            reserved_sequence,
            end,
        } = line;
        let context = match (context_id, thread_id_key) {
            (Some(context_id), Some(thread_id_key)) => Some(key(context_id, thread_id_key)?),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                return Err("wants both of context_id and thread_id_key, or neither".to_owned());
            }
        };
        let request = |RequestLine { request_id, content_version, content_digest }| {
            let digest = content_digest.digest("content_digest")?;
            let content = ContentHash { version: content_version, digest };
            match RequestId::fault_of(&request_id) {
                Some(fault) => Err(format!("request_id {} {fault}", show(&request_id))),
                None => Ok(RequestId { id: request_id, content }),
            }
        };
        let started = |line: ThreadStartedLine| {
            let ThreadStartedLine { thread_id: thread, worker_id, sequence, event, event_base64 } =
                line;
            let thread_id = thread_id("thread_started.thread_id", thread)?;
            let (event, told) = event_in(event, event_base64, &turn_id, sequence)
                .map_err(|error| format!("thread_started: {error}"))?;
            match told {
                Some(Event::ThreadStarted(told)) if told.thread_id == thread_id.as_str() => {}
                told => {
                    let what = told.as_ref().map_or("none", Event::name);
                    return Err(format!(
                        "thread_started: event is {what}, and not thread_started of that thread"
                    ));
                }
            }
            Ok::<_, String>(KeptThreadStarted { thread_id, worker: worker_id, sequence, event })
        };
        let ended = |TurnEndLine { end_time, sequence, event, event_base64 }| {
            let (event, told) = event_in(event, event_base64, &turn_id, sequence)
                .map_err(|error| format!("end: {error}"))?;
            if !told.as_ref().is_some_and(Event::is_terminal) {
                let what = told.as_ref().map_or("none", Event::name);
                return Err(format!("end: event is {what}, which ends no turn"));
            }
            Ok::<_, String>(KeptEnd { ended_at: end_time, sequence, event })
        };
        let thread_started = thread_started.map(started).transpose()?;
        let end = end.map(ended).transpose()?;
        in_order(KeptTurn {
            turn_id: TurnId(name("turn_id", turn_id)?),
            context,
            created_at: create_time,
            started_at: start_time,
            requests: requests.into_iter().map(request).collect::<Result<_, String>>()?,
            thread_started,
            reserved: reserved_sequence,
            end,
        })
    }
}
