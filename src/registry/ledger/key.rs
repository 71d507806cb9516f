//! The keys of records: the first byte says of what; records of one turn are together, its start first.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};

pub(super) const CONTEXT: u8 = 1;
pub(super) const MARK: u8 = 2;
pub(super) const TURN: u8 = 3;
pub(super) const THREAD: u8 = 4;
pub(super) const DIRECTORY: u8 = 5;
/// The whole key: there is one.
pub(super) const TOKENS: u8 = 6;

/// A part of a turn, in the order in which they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TurnPart<'a> {
    Start,
    ThreadStarted,
    Reserved,
    End,
    /// A request that has joined it.
    Request(&'a str),
}

/// A UUID in its hyphenated lower-case form as its 16 bytes, any other text as it is, so that none is the
/// beginning of another.
pub(crate) fn id(text: &str) -> Vec<u8> {
    let mut hyphenated = Uuid::encode_buffer();
    match Uuid::try_parse(text) {
        Ok(uuid) if uuid.hyphenated().encode_lower(&mut hyphenated) == text => {
            [&[0], &uuid.as_bytes()[..]].concat()
        }
        Ok(_) | Err(_) => {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
            [&[1], &length[..], text.as_bytes()].concat()
        }
    }
}

/// The id that these bytes begin with, and what comes after it.
pub(crate) fn split_id(bytes: &[u8]) -> Option<(String, &[u8])> {
    match bytes.split_first()? {
        (0, rest) => {
            let (uuid, rest) = rest.split_at_checked(16)?;
            Some((Uuid::from_slice(uuid).ok()?.to_string(), rest))
        }
        (1, rest) => {
            let (length, rest) = rest.split_at_checked(4)?;
            let length = usize::try_from(u32::from_be_bytes(length.try_into().ok()?)).ok()?;
            let (text, rest) = rest.split_at_checked(length)?;
            Some((String::from_utf8(text.to_vec()).ok()?, rest))
        }
        _ => None,
    }
}

/// The id that is exactly these bytes.
pub(crate) fn parse_id(bytes: &[u8]) -> Option<String> {
    split_id(bytes).and_then(|(id, rest)| rest.is_empty().then_some(id))
}

pub(crate) fn context(key: &ContextKey) -> Vec<u8> {
    of_context(CONTEXT, key)
}

pub(super) fn mark(key: &ContextKey) -> Vec<u8> {
    of_context(MARK, key)
}

fn of_context(space: u8, key: &ContextKey) -> Vec<u8> {
    [&[space], key.context_id.as_bytes(), &[0], key.thread_key.as_bytes()].concat()
}

/// The context of a key without its first byte.
pub(crate) fn parse_context(bytes: &[u8]) -> Option<ContextKey> {
    let text = std::str::from_utf8(bytes).ok()?;
    // The key of a thread has none.
    let (context_id, thread_key) = text.rsplit_once('\0')?;
    Some(ContextKey {
        tenant: Tenant::default(),
        context_id: context_id.to_owned(),
        thread_key: thread_key.to_owned(),
    })
}

pub(super) fn thread(thread_id: &ThreadId) -> Vec<u8> {
    [&[THREAD], &id(thread_id.as_str())[..]].concat()
}

pub(super) fn directory(directory: &Path) -> Vec<u8> {
    [&[DIRECTORY], directory.as_os_str().as_bytes()].concat()
}

/// The directory of a key without its first byte.
pub(super) fn parse_directory(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// What the keys of all parts of a turn begin with.
pub(super) fn turn(turn_id: &TurnId) -> Vec<u8> {
    [&[TURN], &id(&turn_id.0)[..]].concat()
}

pub(super) fn turn_part(turn_id: &TurnId, part: TurnPart<'_>) -> Vec<u8> {
    let mut key = turn(turn_id);
    match part {
        TurnPart::Start => key.push(0),
        TurnPart::ThreadStarted => key.push(1),
        TurnPart::Reserved => key.push(2),
        TurnPart::End => key.push(3),
        TurnPart::Request(id) => {
            key.push(4);
            key.extend(id.as_bytes());
        }
    }
    key
}

/// Whether it is the key of a turn's end.
pub(crate) fn is_end(key: &[u8]) -> bool {
    let part = key.strip_prefix(&[TURN]).and_then(split_id);
    part.is_some_and(|(_, part)| part == [3])
}
