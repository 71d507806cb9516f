//! What is kept, piece by piece: a record has one key in the table and is written whole.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use prost::Message as _;

use crate::model::fingerprint::Fingerprint;
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::request::{ContentHash, RequestId};
use crate::registry::bindings::Binding;
use crate::registry::latest::LatestThread;
use crate::registry::ledger::frame::Frame;
use crate::registry::ledger::key::{self, TurnPart};
use crate::registry::ledger::{
    Change, KeptBinding, KeptEnd, KeptFacts, KeptMark, KeptThreadStarted, KeptTokens, KeptTurn,
    message,
};
use crate::registry::threads::{Left, SeenTurn, ThreadFacts, TurnsSeen};

/// A record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    Binding(Box<KeptBinding>),
    Mark(KeptMark),
    /// A turn as it started: its own requests, without what came after.
    Turn(Box<KeptTurn>),
    ThreadStarted(TurnId, KeptThreadStarted),
    Reserved(TurnId, u64),
    End(TurnId, KeptEnd),
    /// A request that has joined the turn.
    Request(TurnId, RequestId),
    Facts(ThreadId, Box<KeptFacts>),
    Directory(PathBuf, LatestThread),
    Tokens(KeptTokens),
}

/// A change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Put {
        key: Vec<u8>,
        /// The whole frame.
        value: Vec<u8>,
    },
    Remove(Vec<u8>),
    /// All keys that begin so.
    RemoveAll(Vec<u8>),
}

impl Operation {
    /// How many bytes of memory it holds, about.
    pub(super) fn bytes(&self) -> usize {
        let (key, value) = match self {
            Operation::Put { key, value } => (key, value.len()),
            Operation::Remove(key) | Operation::RemoveAll(key) => (key, 0),
        };
        size_of::<Operation>() + key.len() + value
    }
}

/// Appends what a change does to the table.
pub(crate) fn append_operations(change: &Change, to: &mut Vec<Operation>) {
    match change {
        Change::Bind(context, binding) => {
            to.push(Operation::Remove(key::mark(context)));
            to.push(put(binding_message(binding), kind::BINDING, key::context(context)));
        }
        Change::Unbind(context) => to.push(Operation::Remove(key::context(context))),
        Change::Mark(mark) => {
            to.push(Operation::Remove(key::context(&mark.key)));
            to.push(put(mark_message(mark), kind::MARK, key::mark(&mark.key)));
        }
        Change::ForgetMark(context) => to.push(Operation::Remove(key::mark(context))),
        Change::Facts(thread_id, facts) => {
            to.push(put_facts(thread_id, facts, SystemTime::now()));
        }
        Change::ForgetFacts(thread_id) => to.push(Operation::Remove(key::thread(thread_id))),
        Change::StartTurn(turn) => {
            let turn_id = &turn.turn_id;
            to.push(Operation::RemoveAll(key::turn(turn_id)));
            to.push(put(turn_message(turn), kind::TURN, key::turn_part(turn_id, TurnPart::Start)));
            if let Some(started) = &turn.thread_started {
                to.push(put_thread_started(turn_id, started));
            }
            if let Some(end) = &turn.end {
                to.push(put_end(turn_id, end));
            }
        }
        Change::JoinTurn(request, turn_id) => {
            let key = key::turn_part(turn_id, TurnPart::Request(&request.id));
            to.push(put(request_message(request), kind::REQUEST, key));
        }
        Change::LeaveTurn(request, turn_id) => {
            to.push(Operation::Remove(key::turn_part(turn_id, TurnPart::Request(&request.id))));
        }
        Change::ThreadStarted(turn_id, started) => to.push(put_thread_started(turn_id, started)),
        Change::Reserve(turn_id, sequence) => {
            let key = key::turn_part(turn_id, TurnPart::Reserved);
            to.push(put(message::Reserved { sequence: *sequence }, kind::RESERVED, key));
        }
        Change::EndTurn(turn_id, end) => to.push(put_end(turn_id, end)),
        Change::ForgetTurn(turn_id) => to.push(Operation::RemoveAll(key::turn(turn_id))),
        Change::Directory(directory, latest) => {
            let message = message::Directory {
                thread_id: key::id(latest.thread_id.as_str()),
                at: nanoseconds(latest.at),
            };
            to.push(put(message, kind::DIRECTORY, key::directory(directory)));
        }
        Change::ForgetDirectory(directory) => {
            to.push(Operation::Remove(key::directory(directory)));
        }
        Change::Tokens(KeptTokens { day, tokens }) => {
            let message = message::Tokens { day: nanoseconds(*day), tokens: *tokens };
            to.push(put(message, kind::TOKENS, vec![key::TOKENS]));
        }
    }
}

impl Record {
    /// The record of a value of the table under this key.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(value: &[u8], key: &[u8]) -> Result<Record, &'static str> {
        match Frame::decode(value) {
            Some((frame, length)) if length == value.len() && frame.key == key => {
                Record::of_frame(frame)
            }
            Some(_) => Err("it is another one's"),
            None => Err("its checksum is wrong"),
        }
    }

    /// The record that was found as this frame.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of_frame(frame: Frame<'_>) -> Result<Record, &'static str> {
        record_of(frame).ok_or("it is whole but says nothing that is known")
    }
}

/// What stands for the form of a payload.
mod kind {
    pub(super) const BINDING: u8 = 1;
    pub(super) const MARK: u8 = 2;
    pub(super) const TURN: u8 = 3;
    pub(super) const THREAD_STARTED: u8 = 4;
    pub(super) const RESERVED: u8 = 5;
    pub(super) const END: u8 = 6;
    pub(super) const REQUEST: u8 = 7;
    pub(super) const FACTS: u8 = 8;
    pub(super) const DIRECTORY: u8 = 9;
    pub(super) const TOKENS: u8 = 10;
}

fn put(message: impl prost::Message, kind: u8, key: Vec<u8>) -> Operation {
    let value = Frame { kind, key: &key, payload: &message.encode_to_vec() }.encode();
    Operation::Put { key, value }
}

pub(super) fn put_facts(thread_id: &ThreadId, facts: &ThreadFacts, at: SystemTime) -> Operation {
    put(facts_message(facts, at), kind::FACTS, key::thread(thread_id))
}

fn put_thread_started(turn_id: &TurnId, started: &KeptThreadStarted) -> Operation {
    let message = message::ThreadStarted {
        thread_id: key::id(started.thread_id.as_str()),
        worker: started.worker.clone(),
        sequence: started.sequence,
        event: started.event.clone(),
    };
    put(message, kind::THREAD_STARTED, key::turn_part(turn_id, TurnPart::ThreadStarted))
}

fn put_end(turn_id: &TurnId, end: &KeptEnd) -> Operation {
    let message = message::End {
        ended_at: nanoseconds(end.ended_at),
        sequence: end.sequence,
        event: end.event.clone(),
    };
    put(message, kind::END, key::turn_part(turn_id, TurnPart::End))
}

fn binding_message(binding: &Binding) -> message::Binding {
    message::Binding {
        thread_id: key::id(binding.thread_id.as_str()),
        created_at: nanoseconds(binding.created_at),
        updated_at: nanoseconds(binding.updated_at),
        used_at: nanoseconds(binding.used_at),
        turns: binding.turns,
        latest_turn: binding.latest_turn.as_ref().map(|turn_id| key::id(&turn_id.0)),
        is_fresh_copy: binding.is_fresh_copy,
        copied_from: binding.copied_from.as_ref().map(|id| key::id(id.as_str())),
    }
}

fn mark_message(mark: &KeptMark) -> message::Mark {
    message::Mark {
        thread_id: key::id(mark.thread_id.as_str()),
        evicted_at: nanoseconds(mark.evicted_at),
    }
}

fn turn_message(turn: &KeptTurn) -> message::Turn {
    message::Turn {
        created_at: nanoseconds(turn.created_at),
        started_at: nanoseconds(turn.started_at),
        reserved: turn.reserved,
        context: turn.context.as_ref().map(|context| message::Context {
            context_id: context.context_id.clone(),
            thread_key: context.thread_key.clone(),
        }),
        requests: turn.requests.iter().map(request_message).collect(),
    }
}

fn request_message(request: &RequestId) -> message::Request {
    message::Request {
        id: request.id.clone(),
        content_version: request.content.version,
        content_digest: request.content.digest.to_vec(),
    }
}

fn facts_message(facts: &ThreadFacts, at: SystemTime) -> message::Facts {
    let ThreadFacts { usage, is_blank, turns, left, dynamic_tools, developer_instructions } = facts;
    let fingerprint = |print: &Fingerprint| print.as_bytes().to_vec();
    message::Facts {
        usage: *usage,
        is_blank: *is_blank,
        turns: turns.as_ref().map(|turns| message::TurnsSeen {
            count: u64::try_from(turns.count).unwrap_or(u64::MAX),
            last: turns.last.as_ref().map(|turn| message::SeenTurn {
                id: turn.id.clone(),
                has_completed: turn.has_completed,
            }),
        }),
        dynamic_tools: dynamic_tools.as_ref().map(fingerprint),
        developer_instructions: developer_instructions.as_ref().map(fingerprint),
        left: left.map(|Left { summary, service_tier }| message::Left { summary, service_tier }),
        at: nanoseconds(at),
    }
}

fn record_of(frame: Frame<'_>) -> Option<Record> {
    let (space, rest) = frame.key.split_first()?;
    let payload = frame.payload;
    Some(match (*space, frame.kind) {
        (key::CONTEXT, kind::BINDING) => {
            let message = message::Binding::decode(payload).ok()?;
            let binding = Binding {
                thread_id: thread_id(&message.thread_id)?,
                created_at: time(message.created_at)?,
                updated_at: time(message.updated_at)?,
                turns: message.turns,
                latest_turn: match message.latest_turn {
                    Some(id) => Some(TurnId(key::parse_id(&id)?)),
                    None => None,
                },
                is_fresh_copy: message.is_fresh_copy,
                copied_from: match message.copied_from {
                    Some(id) => Some(thread_id(&id)?),
                    None => None,
                },
                used_at: time(message.used_at)?,
            };
            let key = key::parse_context(rest)?;
            Record::Binding(Box::new(KeptBinding { key, binding }))
        }
        (key::MARK, kind::MARK) => {
            let message = message::Mark::decode(payload).ok()?;
            Record::Mark(KeptMark {
                key: key::parse_context(rest)?,
                thread_id: thread_id(&message.thread_id)?,
                evicted_at: time(message.evicted_at)?,
            })
        }
        (key::TURN, kind) => {
            let (id, _) = key::split_id(rest)?;
            return turn_record(TurnId(id), kind, payload);
        }
        (key::THREAD, kind::FACTS) => {
            let thread_id = ThreadId::from_codex(key::parse_id(rest)?);
            Record::Facts(thread_id, Box::new(facts(message::Facts::decode(payload).ok()?)?))
        }
        (key::DIRECTORY, kind::DIRECTORY) => {
            let message = message::Directory::decode(payload).ok()?;
            let latest =
                LatestThread { thread_id: thread_id(&message.thread_id)?, at: time(message.at)? };
            Record::Directory(key::parse_directory(rest), latest)
        }
        (key::TOKENS, kind::TOKENS) => {
            let message::Tokens { day, tokens } = message::Tokens::decode(payload).ok()?;
            Record::Tokens(KeptTokens { day: time(day)?, tokens })
        }
        _ => return None,
    })
}

fn turn_record(turn_id: TurnId, kind: u8, payload: &[u8]) -> Option<Record> {
    Some(match kind {
        kind::TURN => {
            let message = message::Turn::decode(payload).ok()?;
            let requests: Option<Vec<_>> = message.requests.into_iter().map(request).collect();
            Record::Turn(Box::new(KeptTurn {
                turn_id,
                context: message.context.map(|context| ContextKey {
                    tenant: Tenant::default(),
                    context_id: context.context_id,
                    thread_key: context.thread_key,
                }),
                created_at: time(message.created_at)?,
                started_at: time(message.started_at)?,
                requests: requests?,
                thread_started: None,
                reserved: message.reserved,
                end: None,
            }))
        }
        kind::THREAD_STARTED => {
            let message = message::ThreadStarted::decode(payload).ok()?;
            let started = KeptThreadStarted {
                thread_id: thread_id(&message.thread_id)?,
                worker: message.worker,
                sequence: message.sequence,
                event: message.event,
            };
            Record::ThreadStarted(turn_id, started)
        }
        kind::RESERVED => {
            Record::Reserved(turn_id, message::Reserved::decode(payload).ok()?.sequence)
        }
        kind::END => {
            let message = message::End::decode(payload).ok()?;
            let end = KeptEnd {
                ended_at: time(message.ended_at)?,
                sequence: message.sequence,
                event: message.event,
            };
            Record::End(turn_id, end)
        }
        kind::REQUEST => {
            Record::Request(turn_id, request(message::Request::decode(payload).ok()?)?)
        }
        _ => return None,
    })
}

fn facts(message: message::Facts) -> Option<KeptFacts> {
    let fingerprint = |bytes: Option<Vec<u8>>| match bytes {
        Some(bytes) => Some(Some(Fingerprint::from_bytes(bytes.try_into().ok()?))),
        None => Some(None),
    };
    let at = time(message.at)?;
    let facts = ThreadFacts {
        usage: message.usage,
        is_blank: message.is_blank,
        turns: message.turns.map(|turns| TurnsSeen {
            count: usize::try_from(turns.count).unwrap_or(usize::MAX),
            last: turns
                .last
                .map(|turn| SeenTurn { id: turn.id, has_completed: turn.has_completed }),
        }),
        left: message
            .left
            .map(|message::Left { summary, service_tier }| Left { summary, service_tier }),
        dynamic_tools: fingerprint(message.dynamic_tools)?,
        developer_instructions: fingerprint(message.developer_instructions)?,
    };
    Some(KeptFacts { facts, at })
}

fn request(message: message::Request) -> Option<RequestId> {
    let digest = message.content_digest.try_into().ok()?;
    let content = ContentHash { version: message.content_version, digest };
    Some(RequestId { id: message.id, content })
}

fn thread_id(bytes: &[u8]) -> Option<ThreadId> {
    key::parse_id(bytes).map(ThreadId::from_codex)
}

/// Since 1970; negative before. What is out of its 292 years is as far as it can be.
fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanos| -nanos),
    }
}

fn time(nanoseconds: i64) -> Option<SystemTime> {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    match nanoseconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(distance),
        _ => SystemTime::UNIX_EPOCH.checked_sub(distance),
    }
}
