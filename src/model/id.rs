//! Names of things: tenants, contexts, threads, turns, workers.

use std::fmt;

/// Whose a context, a worker or a limit is. One app-server is one tenant, because every thread of
/// a CODEX_HOME is visible to all of its clients.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(pub String);

impl Default for Tenant {
    fn default() -> Tenant {
        Tenant("default".to_owned())
    }
}

/// Who calls, among all that a tenant's callers share: a number for each connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct CallerId(pub(crate) u64);

/// Who calls, as others are told: the address of its connection (`127.0.0.1:40112`), or of a Unix socket
/// the user of the other side (`unix:uid=1000`). Empty where neither is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CallerName(pub(crate) std::sync::Arc<str>);

/// The key of a binding: which thread of which context.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContextKey {
    /// Whose it is.
    pub tenant: Tenant,
    /// The caller's name of the conversation, trimmed, 1 to 256 bytes.
    pub context_id: String,
    /// Which of the context's threads, `codex_thread_id` or `codex_thread_id_<suffix>`.
    pub thread_key: String,
}

/// Whether a character has no place in a name: a control character, or one that turns the direction of
/// the text around it.
pub(crate) fn is_hidden(character: char) -> bool {
    let turns = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    turns || character.is_control()
}

/// Most bytes of a context id, a tool's name and a thread key.
pub(crate) const LONGEST_NAME: usize = 256;

/// What keeps such a name, trimmed and not empty, from being one, with what to do about it.
pub(crate) fn faults_of_name(name: &str) -> impl Iterator<Item = String> {
    let is_long = name.len() > LONGEST_NAME;
    let long = is_long.then(|| format!("is too long; give at most {LONGEST_NAME} bytes"));
    let hidden = name.chars().find(|character| is_hidden(*character));
    let hidden = hidden.map(|hidden| {
        format!("holds the control character U+{:04X}; leave it out", u32::from(hidden))
    });
    long.into_iter().chain(hidden)
}

/// Codex's id of a thread: a UUID in its hyphenated lower-case form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadId(String);

impl ThreadId {
    /// Parses a UUID in any of its usual forms; `None` where it is none.
    pub fn parse(text: &str) -> Option<ThreadId> {
        uuid::Uuid::try_parse(text.trim()).ok().map(|id| ThreadId(id.to_string()))
    }

    /// Takes an id from Codex as it is.
    pub fn from_codex(id: impl Into<String>) -> ThreadId {
        ThreadId(id.into())
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ThreadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sidecar's id of a turn: a UUID, time-ordered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TurnId(pub String);

impl TurnId {
    /// A fresh id.
    pub fn generate() -> TurnId {
        TurnId(uuid::Uuid::now_v7().to_string())
    }
}

impl fmt::Display for TurnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which worker, and which incarnation of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct WorkerId {
    /// The worker's slot in the pool, from 0.
    pub slot: usize,
    /// 1, 2, 3… for each incarnation in that slot.
    pub generation: u64,
}

impl WorkerId {
    /// The name of the slot, which outlives the incarnation: `w0`.
    pub(crate) fn slot_name(&self) -> String {
        format!("w{}", self.slot)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}.{}", self.slot, self.generation)
    }
}
