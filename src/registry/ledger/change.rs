//! What the ledger is told, and what it tells at the next start.

use std::path::PathBuf;
use std::time::SystemTime;

use bytes::Bytes;

use crate::model::id::{ContextKey, ThreadId, TurnId};
use crate::model::request::RequestId;
use crate::registry::bindings::Binding;
use crate::registry::latest::LatestThread;
use crate::registry::threads::ThreadFacts;

/// A change of what is kept. Each sets something whole, so that a change that is kept twice does no harm.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    /// The context is bound so. It has no mark any more.
    Bind(ContextKey, Binding),
    Unbind(ContextKey),
    /// The context was evicted: it is not bound any more, and has this mark.
    Mark(KeptMark),
    ForgetMark(ContextKey),
    /// What is known of a thread.
    Facts(ThreadId, ThreadFacts),
    ForgetFacts(ThreadId),
    /// A turn leaves its queue. It has no `thread_started` and no end.
    StartTurn(Box<KeptTurn>),
    /// A request id is that of this turn, which another request has started.
    JoinTurn(RequestId, TurnId),
    /// The request id is not that of this turn any more: what it asked for did not reach the turn.
    LeaveTurn(RequestId, TurnId),
    /// What a turn has told of its thread.
    ThreadStarted(TurnId, KeptThreadStarted),
    /// No event of the turn has a higher sequence, until it says more.
    Reserve(TurnId, u64),
    EndTurn(TurnId, KeptEnd),
    /// With all that is kept of it, its request ids, too.
    ForgetTurn(TurnId),
    /// The thread was worked with last in the directory, of those without a context.
    Directory(PathBuf, LatestThread),
    ForgetDirectory(PathBuf),
    /// So many tokens were used on the latest day on which any were.
    Tokens(KeptTokens),
}

/// A binding.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptBinding {
    pub(crate) key: ContextKey,
    pub(crate) binding: Binding,
}

/// What is left of a context that was evicted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptMark {
    pub(crate) key: ContextKey,
    pub(crate) thread_id: ThreadId,
    pub(crate) evicted_at: SystemTime,
}

/// What is known of a thread.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptFacts {
    pub(crate) facts: ThreadFacts,
    /// When it was told: the facts of a thread can become fewer, so that they do not tell which are newer.
    pub(crate) at: SystemTime,
}

/// How many tokens were used on a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeptTokens {
    /// Its first moment, of UTC.
    pub(crate) day: SystemTime,
    /// Input and output.
    pub(crate) tokens: u64,
}

/// A turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptTurn {
    pub(crate) turn_id: TurnId,
    pub(crate) context: Option<ContextKey>,
    /// When it was called for.
    pub(crate) created_at: SystemTime,
    /// When it left its queue.
    pub(crate) started_at: SystemTime,
    /// The ids of the requests that are this turn: its own, and those that have steered it.
    pub(crate) requests: Vec<RequestId>,
    pub(crate) thread_started: Option<KeptThreadStarted>,
    /// No event of it has a higher sequence.
    pub(crate) reserved: u64,
    pub(crate) end: Option<KeptEnd>,
}

/// The event `thread_started` of a turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptThreadStarted {
    pub(crate) thread_id: ThreadId,
    /// The slot of the worker that the turn runs on.
    pub(crate) worker: Option<String>,
    pub(crate) sequence: u64,
    /// The encoded `TurnEvent`.
    pub(crate) event: Bytes,
}

/// The terminal event of a turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptEnd {
    pub(crate) ended_at: SystemTime,
    pub(crate) sequence: u64,
    /// The encoded `TurnEvent`.
    pub(crate) event: Bytes,
}
