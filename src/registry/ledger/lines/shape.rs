//! How each line looks, and what it stands for.
//!
//! A field that is not known here is refused: it may be what a newer sidecar could not do without, and
//! there would be no place to keep it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Counts, Entry};
use crate::model::event::{Event, Usage};
use crate::model::fingerprint::Fingerprint;
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::refusal::show;
use crate::model::request::{ContentHash, RequestId};
use crate::model::{self, id};
use crate::pb;
use crate::registry::bindings::Binding;
use crate::registry::latest::LatestThread;
use crate::registry::ledger::{
    KeptBinding, KeptEnd, KeptFacts, KeptMark, KeptThreadStarted, KeptTurn,
};
use crate::registry::threads::{Left, SeenTurn, ThreadFacts, TurnsSeen};

/// What an event is in the contract.
const EVENT: &str = "TurnEvent";

/// The highest number of an event: more than a turn can have, and as exact in every reader of JSON.
const LAST_SEQUENCE: u64 = 1 << 53;

/// A line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Line {
    Header(HeaderLine),
    Context(Box<ContextLine>),
    EvictedContext(EvictedLine),
    Thread(Box<ThreadLine>),
    Turn(Box<TurnLine>),
    Directory(DirectoryLine),
    End(EndLine),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeaderLine {
    /// What this is.
    pub(super) format: String,
    /// Of the lines.
    pub(super) version: u64,
    /// Of the sidecar that wrote them.
    pub(super) sidecar_version: String,
    #[serde(with = "time")]
    pub(super) create_time: SystemTime,
}

/// What comes between the header and this, by kind.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndLine {
    contexts: u64,
    evicted_contexts: u64,
    threads: u64,
    turns: u64,
    directories: u64,
    /// Whether something could not be read.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) partial: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ContextLine {
    context_id: String,
    thread_id_key: String,
    thread_id: String,
    #[serde(with = "time")]
    create_time: SystemTime,
    #[serde(with = "time")]
    update_time: SystemTime,
    #[serde(with = "time")]
    use_time: SystemTime,
    turn_count: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latest_turn_id: Option<String>,
    #[serde(default, skip_serializing_if = "is_false")]
    fresh_copy: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copied_from_thread_id: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EvictedLine {
    context_id: String,
    thread_id_key: String,
    thread_id: String,
    #[serde(with = "time")]
    evict_time: SystemTime,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ThreadLine {
    thread_id: String,
    /// When this was told of it.
    #[serde(with = "time")]
    update_time: SystemTime,
    /// Whether Codex was never seen to work on a turn of it.
    blank: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<UsageLine>,
    /// The turns that were seen to end on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    turns_seen: Option<TurnsSeenLine>,
    /// Which settings its last turn has left in force that Codex does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    left: Option<LeftLine>,
    /// SHA-256 in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dynamic_tools_digest: Option<Base64>,
    /// SHA-256 in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    developer_instructions_digest: Option<Base64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageLine {
    input_tokens: u64,
    cached_input_tokens: u64,
    cache_write_input_tokens: u64,
    output_tokens: u64,
    reasoning_output_tokens: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TurnsSeenLine {
    count: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<SeenTurnLine>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeftLine {
    reasoning_summary: bool,
    service_tier: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeenTurnLine {
    codex_turn_id: String,
    completed: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TurnLine {
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

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DirectoryLine {
    /// One of the two: what is no UTF-8 is in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory_base64: Option<Base64>,
    thread_id: String,
    #[serde(with = "time")]
    use_time: SystemTime,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// RFC 3339, to the nanosecond.
mod time {
    use std::time::SystemTime;

    use prost_types::Timestamp;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&Timestamp::from(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        let time = text.parse::<Timestamp>().ok().and_then(|time| SystemTime::try_from(time).ok());
        time.ok_or_else(|| D::Error::custom(format!("{text:?} is no time of RFC 3339")))
    }
}

/// Bytes as base64.
#[derive(Debug)]
struct Base64(Vec<u8>);

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
    fn digest(self, field: &str) -> Result<[u8; 32], String> {
        let bytes = self.0.len();
        self.0.try_into().map_err(|_| format!("{field} has {bytes} bytes and not 32"))
    }
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

/// A name as a request may have it.
fn name(field: &str, text: String) -> Result<String, String> {
    let fault = match text.trim() {
        "" => Some("is empty".to_owned()),
        trimmed if trimmed != text => Some("has space around it; leave that out".to_owned()),
        trimmed => id::faults_of_name(trimmed).next(),
    };
    match fault {
        Some(fault) => Err(format!("{field} {} {fault}", show(&text))),
        None => Ok(text),
    }
}

fn thread_id(field: &str, text: String) -> Result<ThreadId, String> {
    name(field, text).map(ThreadId::from_codex)
}

fn key(context_id: String, thread_id_key: String) -> Result<ContextKey, String> {
    Ok(ContextKey {
        tenant: Tenant::default(),
        context_id: name("context_id", context_id)?,
        thread_key: name("thread_id_key", thread_id_key)?,
    })
}

impl EndLine {
    pub(super) fn new(counts: Counts, partial: bool) -> EndLine {
        let Counts { contexts, evicted_contexts, threads, turns, directories } = counts;
        EndLine { contexts, evicted_contexts, threads, turns, directories, partial }
    }

    pub(super) fn counts(&self) -> Counts {
        let &EndLine { contexts, evicted_contexts, threads, turns, directories, partial: _ } = self;
        Counts { contexts, evicted_contexts, threads, turns, directories }
    }
}

impl From<Entry> for Line {
    fn from(entry: Entry) -> Line {
        match entry {
            Entry::Context(kept) => Line::Context(Box::new((*kept).into())),
            Entry::EvictedContext(kept) => Line::EvictedContext(kept.into()),
            Entry::Thread(thread_id, facts) => Line::Thread(Box::new((thread_id, facts).into())),
            Entry::Turn(kept) => Line::Turn(Box::new((*kept).into())),
            Entry::Directory(directory, latest) => Line::Directory((directory, latest).into()),
        }
    }
}

impl From<KeptBinding> for ContextLine {
    fn from(kept: KeptBinding) -> ContextLine {
        let KeptBinding { key, binding } = kept;
        let ContextKey { tenant: _, context_id, thread_key } = key;
        let Binding {
            thread_id,
            created_at,
            updated_at,
            turns,
            latest_turn,
            is_fresh_copy,
            copied_from,
            used_at,
        } = binding;
        ContextLine {
            context_id,
            thread_id_key: thread_key,
            thread_id: thread_id.to_string(),
            create_time: created_at,
            update_time: updated_at,
            use_time: used_at,
            turn_count: turns,
            latest_turn_id: latest_turn.map(|turn| turn.0),
            fresh_copy: is_fresh_copy,
            copied_from_thread_id: copied_from.map(|thread| thread.to_string()),
        }
    }
}

impl TryFrom<ContextLine> for KeptBinding {
    type Error = String;

    fn try_from(line: ContextLine) -> Result<KeptBinding, String> {
        let ContextLine {
            context_id,
            thread_id_key,
            thread_id: thread,
            create_time,
            update_time,
            use_time,
            turn_count,
            latest_turn_id,
            fresh_copy,
            copied_from_thread_id,
        } = line;
        let binding = Binding {
            thread_id: thread_id("thread_id", thread)?,
            created_at: create_time,
            updated_at: update_time,
            turns: turn_count,
            latest_turn: latest_turn_id
                .map(|id| name("latest_turn_id", id).map(TurnId))
                .transpose()?,
            is_fresh_copy: fresh_copy,
            copied_from: copied_from_thread_id
                .map(|id| thread_id("copied_from_thread_id", id))
                .transpose()?,
            used_at: use_time,
        };
        Ok(KeptBinding { key: key(context_id, thread_id_key)?, binding })
    }
}

impl From<KeptMark> for EvictedLine {
    fn from(kept: KeptMark) -> EvictedLine {
        let KeptMark { key, thread_id, evicted_at } = kept;
        let ContextKey { tenant: _, context_id, thread_key } = key;
        EvictedLine {
            context_id,
            thread_id_key: thread_key,
            thread_id: thread_id.to_string(),
            evict_time: evicted_at,
        }
    }
}

impl TryFrom<EvictedLine> for KeptMark {
    type Error = String;

    fn try_from(line: EvictedLine) -> Result<KeptMark, String> {
        let EvictedLine { context_id, thread_id_key, thread_id: thread, evict_time } = line;
        Ok(KeptMark {
            key: key(context_id, thread_id_key)?,
            thread_id: thread_id("thread_id", thread)?,
            evicted_at: evict_time,
        })
    }
}

impl From<(ThreadId, KeptFacts)> for ThreadLine {
    fn from((thread_id, kept): (ThreadId, KeptFacts)) -> ThreadLine {
        let KeptFacts { facts, at } = kept;
        let ThreadFacts { usage, is_blank, turns, left, dynamic_tools, developer_instructions } =
            facts;
        let digest = |fingerprint: Fingerprint| Base64(fingerprint.as_bytes().to_vec());
        let seen = |SeenTurn { id, has_completed }| SeenTurnLine {
            codex_turn_id: id,
            completed: has_completed,
        };
        ThreadLine {
            thread_id: thread_id.to_string(),
            update_time: at,
            blank: is_blank,
            usage: usage.map(UsageLine::from),
            turns_seen: turns
                .map(|TurnsSeen { count, last }| TurnsSeenLine { count, last: last.map(seen) }),
            left: left.map(|Left { summary, service_tier }| LeftLine {
                reasoning_summary: summary,
                service_tier,
            }),
            dynamic_tools_digest: dynamic_tools.map(digest),
            developer_instructions_digest: developer_instructions.map(digest),
        }
    }
}

impl TryFrom<ThreadLine> for (ThreadId, KeptFacts) {
    type Error = String;

    fn try_from(line: ThreadLine) -> Result<(ThreadId, KeptFacts), String> {
        let ThreadLine {
            thread_id: thread,
            update_time,
            blank,
            usage,
            turns_seen,
            left,
            dynamic_tools_digest,
            developer_instructions_digest,
        } = line;
        let fingerprint = |field: &str, digest: Option<Base64>| {
            digest.map(|digest| digest.digest(field).map(Fingerprint::from_bytes)).transpose()
        };
        let seen = |SeenTurnLine { codex_turn_id, completed }| SeenTurn {
            id: codex_turn_id,
            has_completed: completed,
        };
        let facts = ThreadFacts {
            usage: usage.map(Usage::from),
            is_blank: blank,
            turns: turns_seen
                .map(|TurnsSeenLine { count, last }| TurnsSeen { count, last: last.map(seen) }),
            left: left.map(|LeftLine { reasoning_summary, service_tier }| Left {
                summary: reasoning_summary,
                service_tier,
            }),
            dynamic_tools: fingerprint("dynamic_tools_digest", dynamic_tools_digest)?,
            developer_instructions: fingerprint(
                "developer_instructions_digest",
                developer_instructions_digest,
            )?,
        };
        Ok((thread_id("thread_id", thread)?, KeptFacts { facts, at: update_time }))
    }
}

impl From<Usage> for UsageLine {
    fn from(usage: Usage) -> UsageLine {
        let Usage {
            input_tokens,
            cached_input_tokens,
            cache_write_input_tokens,
            output_tokens,
            reasoning_output_tokens,
        } = usage;
        UsageLine {
            input_tokens,
            cached_input_tokens,
            cache_write_input_tokens,
            output_tokens,
            reasoning_output_tokens,
        }
    }
}

impl From<UsageLine> for Usage {
    fn from(line: UsageLine) -> Usage {
        let UsageLine {
            input_tokens,
            cached_input_tokens,
            cache_write_input_tokens,
            output_tokens,
            reasoning_output_tokens,
        } = line;
        Usage {
            input_tokens,
            cached_input_tokens,
            cache_write_input_tokens,
            output_tokens,
            reasoning_output_tokens,
        }
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

impl From<(PathBuf, LatestThread)> for DirectoryLine {
    fn from((directory, latest): (PathBuf, LatestThread)) -> DirectoryLine {
        let LatestThread { thread_id, at } = latest;
        let (directory, directory_base64) = match directory.to_str() {
            Some(text) => (Some(text.to_owned()), None),
            None => (None, Some(Base64(directory.as_os_str().as_bytes().to_vec()))),
        };
        let thread_id = thread_id.to_string();
        DirectoryLine { directory, directory_base64, thread_id, use_time: at }
    }
}

impl TryFrom<DirectoryLine> for (PathBuf, LatestThread) {
    type Error = String;

    fn try_from(line: DirectoryLine) -> Result<(PathBuf, LatestThread), String> {
        let DirectoryLine { directory, directory_base64, thread_id: thread, use_time } = line;
        let directory = match (directory, directory_base64) {
            (Some(text), None) => PathBuf::from(text),
            (None, Some(Base64(bytes))) => PathBuf::from(OsString::from_vec(bytes)),
            (Some(_), Some(_)) | (None, None) => {
                return Err("wants one of directory and directory_base64".to_owned());
            }
        };
        let latest = LatestThread { thread_id: thread_id("thread_id", thread)?, at: use_time };
        Ok((directory, latest))
    }
}
