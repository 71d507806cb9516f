//! A turn's request after validation: what the engine may rely on without looking again.

use std::sync::Arc;

use crate::model::id::{CallerId, ContextKey, Tenant, ThreadId};
use crate::model::options::{ThreadOptions, TurnOptions};
use crate::model::policy::Policy;
use crate::model::refusal::FieldViolation;

/// A turn to run.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(test, derive(Default))]
pub(crate) struct TurnRequest {
    /// Whose turn it is.
    pub tenant: Tenant,
    /// Who asks for it, for its share of what callers share.
    pub caller: CallerId,
    /// The binding that it reads and keeps; `None` for an ephemeral turn, or one that names only
    /// a thread.
    pub context: Option<ContextKey>,
    /// What Codex is to do.
    pub work: Work,
    /// What the user says, in the order of the request; at least one with [`Work::Inputs`], else
    /// none; texts trimmed and not empty.
    pub inputs: Vec<UserInput>,
    /// The thread is neither kept on disk nor bound.
    pub ephemeral: bool,
    /// The thread that the request names; beats the binding.
    pub explicit_thread: Option<ThreadId>,
    /// The thread that the tool's configuration names; used where nothing is bound.
    pub configured_thread: Option<ThreadId>,
    /// The request's options over the tool's defaults.
    pub thread_options: ThreadOptions,
    /// The request's options over the tool's defaults, and within the server's maxima.
    pub turn_options: TurnOptions,
    /// The caller's key of idempotency.
    pub request_id: Option<RequestId>,
    /// Whether the context may be bound, or must be.
    pub context_policy: ContextPolicy,
    /// What to do when the context already runs a turn.
    pub busy_policy: BusyPolicy,
    /// What to do about what Codex asks.
    pub question_policy: QuestionPolicy,
    /// What to do when nobody reads the turn any more.
    pub disconnect_policy: DisconnectPolicy,
    /// What to do when the bound thread is gone.
    pub missing_thread_policy: MissingThreadPolicy,
    /// Pass on what the contract has no name for.
    pub include_raw_events: bool,
    /// What it was held against, and what becomes of it is, too.
    pub policy: Arc<Policy>,
    /// What it denies of the request before the disk is looked at; only where it has roots, so that what
    /// lies outside of them is told with it.
    pub denied: Vec<FieldViolation>,
    /// How large the request was on the wire.
    pub bytes: usize,
}

/// What Codex is to do in a turn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Work {
    /// What the inputs say.
    #[default]
    Inputs,
    /// Its own review.
    Review(ReviewTarget),
    /// Sum up the thread's history.
    Compact,
}

/// What a review looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReviewTarget {
    /// What is changed, staged or untracked in the working directory.
    UncommittedChanges,
    /// What the current branch changes compared with this one.
    BaseBranch(String),
    /// What this commit changes.
    Commit(String),
    /// What these words say; trimmed and not empty.
    Instructions(String),
}

/// One part of what the user says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserInput {
    /// What is typed.
    Text(String),
    /// The absolute path of an image on the sidecar's machine.
    LocalImage(String),
    /// The `data:` address of an image.
    ImageUrl(String),
    /// A skill that the model is to use.
    Skill {
        /// Its name.
        name: String,
        /// The absolute path of its `SKILL.md` on the sidecar's machine.
        path: String,
    },
    /// Something that the text speaks of.
    Mention {
        /// Its name, as the text has it.
        name: String,
        /// An absolute path, or an address of Codex.
        path: String,
    },
    /// Text from outside, which is not the user's word.
    External {
        /// Where it comes from: 1 to 64 of `[A-Za-z0-9_.:/@-]`.
        source: String,
        /// The text.
        text: String,
    },
}

impl UserInput {
    /// How many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            UserInput::Text(text) | UserInput::LocalImage(text) | UserInput::ImageUrl(text) => {
                text.len()
            }
            UserInput::Skill { name: one, path: other }
            | UserInput::Mention { name: one, path: other }
            | UserInput::External { source: one, text: other } => one.len() + other.len(),
        }
    }
}

/// The caller's key of idempotency with a digest of everything else in the request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RequestId {
    /// 1 to 36 ASCII characters.
    pub id: String,
    /// Of the rest of the request.
    pub content: ContentHash,
}

impl RequestId {
    /// Most characters.
    const LONGEST: usize = 36;

    /// What keeps a text from being one, with what to do about it.
    pub(crate) fn fault_of(id: &str) -> Option<String> {
        let printable = |byte: u8| (b' '..=b'~').contains(&byte);
        let is_one = (1..=RequestId::LONGEST).contains(&id.len()) && id.bytes().all(printable);
        (!is_one).then(|| {
            format!(
                "is no request id; give 1 to {} printable ASCII characters, for example a UUID",
                RequestId::LONGEST
            )
        })
    }
}

/// Equal for equal requests. How it is made may change with a version of the sidecar; what was kept under
/// an older one is compared with the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ContentHash {
    /// How it is made.
    pub version: u32,
    pub digest: [u8; 32],
}

impl ContentHash {
    /// Whether the requests are certainly not the same. Of one that was made in another way that can't be
    /// said: then the id is what counts.
    pub(crate) fn differs_from(&self, other: &ContentHash) -> bool {
        self.version == other.version && self.digest != other.digest
    }
}

/// Whether a turn's context may be bound, or must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ContextPolicy {
    #[default]
    Any,
    /// Refuse with CONTEXT_NOT_FOUND where it is not bound.
    MustExist,
    /// Refuse with CONTEXT_EXISTS where it is.
    MustBeNew,
}

/// What to do when the context already runs a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum BusyPolicy {
    /// Wait, first come first served.
    #[default]
    Queue,
    /// Refuse.
    Reject,
    /// Add the input to the running turn.
    Steer,
    /// Interrupt the running turn, and run before those that wait.
    Interrupt,
}

/// What to do about what Codex asks, calls of lent functions apart: who lends, answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum QuestionPolicy {
    /// Say no at once.
    #[default]
    Decline,
    /// Ask the caller.
    Ask,
}

/// What to do when nobody reads the turn any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum DisconnectPolicy {
    #[default]
    Interrupt,
    /// Let it run on; it can be attached to.
    Continue,
}

/// What to do when the thread of a binding (or of the configuration) is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum MissingThreadPolicy {
    /// Refuse with THREAD_NOT_FOUND.
    #[default]
    Fail,
    /// Start a new thread and bind that.
    StartNew,
}
