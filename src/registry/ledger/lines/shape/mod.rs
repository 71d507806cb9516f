//! How each line looks, and what it stands for.
//!
//! A field that is not known here is refused: it may be what a newer sidecar could not do without, and
//! there would be nowhere to keep it.

mod context;
mod directory;
mod encoded;
mod thread;
mod tokens;
mod turn;

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Counts, Entry};
use crate::model::id;
use crate::model::id::{ContextKey, Tenant, ThreadId};
use crate::model::refusal::show;
pub(super) use context::{ContextLine, EvictedLine};
pub(super) use directory::DirectoryLine;
use encoded::time;
pub(super) use thread::ThreadLine;
pub(super) use tokens::TokensLine;
pub(super) use turn::TurnLine;

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
    Tokens(TokensLine),
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
    // Lines of before had none.
    #[serde(default, skip_serializing_if = "is_zero")]
    tokens: u64,
    /// Whether something could not be read.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) partial: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
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
        let Counts { contexts, evicted_contexts, threads, turns, directories, tokens } = counts;
        EndLine { contexts, evicted_contexts, threads, turns, directories, tokens, partial }
    }

    pub(super) fn counts(&self) -> Counts {
        let &EndLine {
            contexts,
            evicted_contexts,
            threads,
            turns,
            directories,
            tokens,
            partial: _,
        } = self;
        Counts { contexts, evicted_contexts, threads, turns, directories, tokens }
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
            Entry::Tokens(tokens) => Line::Tokens(tokens.into()),
        }
    }
}
