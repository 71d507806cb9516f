//! Why a call was refused: everything that is said as a gRPC status, and nothing that is said as a
//! terminal event. `grpc::status` is the only place that maps it.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::id::{ContextKey, ThreadId, TurnId};

/// One fault of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The field's path in the request, as protobuf spells it: `thread_options.working_directory`,
    /// `inputs[2].text`.
    pub field: String,
    /// What is wrong, with which value, and what to do.
    pub description: String,
}

impl FieldViolation {
    /// A fault of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> FieldViolation {
        FieldViolation { field: field.into(), description: description.into() }
    }
}

/// The faults of one request. It keeps the first [`Faults::MOST`] and counts no further: a caller
/// could else make it hold many times the memory of the request.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub(crate) Vec<FieldViolation>);

impl Faults {
    const MOST: usize = 256;

    /// Whether no further one is kept.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= Faults::MOST
    }

    /// Another one, of `field`.
    pub(crate) fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if !self.is_full() {
            self.0.push(FieldViolation::new(field, description));
        }
    }

    /// `value` if there was no fault.
    pub(crate) fn or_refuse<T>(self, value: T) -> Result<T, Refusal> {
        if self.0.is_empty() { Ok(value) } else { Err(Refusal::InvalidInput(self.0)) }
    }

    /// `value` if a policy denied nothing.
    pub(crate) fn or_deny<T>(self, value: T) -> Result<T, Refusal> {
        if self.0.is_empty() { Ok(value) } else { Err(Refusal::PolicyDenied(self.0)) }
    }
}

impl From<Faults> for Vec<FieldViolation> {
    fn from(Faults(faults): Faults) -> Vec<FieldViolation> {
        faults
    }
}

/// A caller's value for an error message: quoted, escaped, and cut where it is long.
pub(crate) fn show(value: &str) -> String {
    const MOST: usize = 48;
    match value.char_indices().nth(MOST) {
        None => format!("{value:?}"),
        Some((end, _)) => format!("{:?}… ({} bytes)", &value[..end], value.len()),
    }
}

/// The same for JSON, which has quotation marks of its own: as it is, cut where it is long.
pub(crate) fn show_json(json: &str) -> String {
    const MOST: usize = 96;
    let (shown, rest) = match json.char_indices().nth(MOST) {
        None => (json, String::new()),
        Some((end, _)) => (&json[..end], format!("… ({} bytes)", json.len())),
    };
    // JSON that is none may have them.
    let shown: String =
        shown.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    shown + &rest
}

/// A duration for people: no longer than it has to be told, and none too short.
fn in_milliseconds(duration: Duration) -> humantime::FormattedDuration {
    let milliseconds = duration.as_micros().div_ceil(1_000);
    humantime::format_duration(Duration::from_millis(milliseconds.try_into().unwrap_or(u64::MAX)))
}

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No credential, or one that opens nothing. Which of the two is for the log alone.
    #[error(
        "the call needs a credential that is known here: send authorization: Bearer …, or come with a client certificate or as a user that the sidecar knows"
    )]
    Unauthenticated,
    /// It is made by a command of a turn, or it can't be told by whom.
    #[error(
        "the call comes from a process that a turn has started, or from one that can't be told: what turns run can't call the sidecar"
    )]
    CalledByATurn,
    /// The request is wrong by itself.
    #[error("invalid request: {}", .0.iter().map(|violation| format!("{}: {}", violation.field, violation.description)).collect::<Vec<_>>().join("; "))]
    InvalidInput(Vec<FieldViolation>),
    /// Codex has no rollout of this thread, or can't read it.
    #[error(
        "thread {thread_id} was not found by Codex: {cause}; check the id{}",
        if *.can_be_new { ", or let the turn begin a new thread in its place: missing_thread_policy START_NEW" } else { "" }
    )]
    ThreadNotFound {
        thread_id: ThreadId,
        /// What Codex said.
        cause: String,
        /// Whether the caller can have a new one instead.
        can_be_new: bool,
    },
    /// No turn without a context has run in this directory, or in any where it is empty.
    #[error(
        "no turn without a context is known to have worked{}",
        if .0.is_empty() { String::new() } else { format!(" in {}", .0) }
    )]
    NoLatestThread(String),
    /// Nothing is bound.
    #[error("context {:?} has no thread bound under {:?}", .0.context_id, .0.thread_key)]
    ContextNotFound(ContextKey),
    /// No such turn, or no longer.
    #[error(
        "turn {0} is not known here: it never was, or it ended longer ago than turns are retained"
    )]
    TurnNotFound(TurnId),
    /// The context has no turn that runs or is retained.
    #[error("context {:?} has no running or retained turn under {:?}", .0.context_id, .0.thread_key)]
    NoTurnOfContext(ContextKey),
    /// Another process writes this thread.
    #[error(
        "thread {thread_id} is open in a Codex process that is not this sidecar's: {cause}; close it there first"
    )]
    ThreadHeldElsewhere {
        thread_id: ThreadId,
        /// What Codex said.
        cause: String,
    },
    /// The thread is another context's, too, and can't be deleted with this one.
    #[error(
        "thread {thread_id} is also that of context {:?} under {:?}; delete this one without its thread, and that one with it", .context.context_id, .context.thread_key
    )]
    ThreadShared {
        thread_id: ThreadId,
        /// Which context.
        context: ContextKey,
    },
    /// Others are copies of the thread: their beginning would be deleted with it.
    #[error(
        "thread {thread_id} can't be deleted, because {} a copy of it; delete the copy with its thread first",
        match .context {
            Some(key) => format!("context {:?} has, under {:?},", key.context_id, key.thread_key),
            None => "Codex still has".to_owned(),
        }
    )]
    ThreadHasCopies {
        thread_id: ThreadId,
        /// The context of a copy, where one has it.
        context: Option<ContextKey>,
    },
    /// The working directory lies outside a git repository.
    #[error(
        "{field} {} is not inside a git repository; {}",
        .path.display(),
        if *.can_be_skipped { "name one that is, or set thread_options.skip_git_repo_check" }
        else { "name one that is in thread_options.working_directory: changes are git's" }
    )]
    NotAGitRepository {
        /// The field's path.
        field: String,
        /// Its value.
        path: PathBuf,
        /// Whether the turn would do without one: not a review of changes.
        can_be_skipped: bool,
    },
    /// A directory does not exist.
    #[error("{field} {} {cause}", .path.display())]
    WorkingDirectoryMissing {
        /// The field's path.
        field: String,
        /// Its value.
        path: PathBuf,
        /// `does not exist`, `is not a directory`, ….
        cause: String,
    },
    /// Above the policy's ceiling, or outside the allowed roots: each field with what is denied, what is
    /// allowed, and the setting that says so.
    #[error("denied by policy: {}", .0.iter().map(|denied| format!("{}: {}", denied.field, denied.description)).collect::<Vec<_>>().join("; "))]
    PolicyDenied(Vec<FieldViolation>),
    /// Too many turns wait.
    #[error("{waiting} turns already wait, the limit of this sidecar; try again later")]
    QueueFull {
        /// How many wait.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// Too many turns of this caller wait, for what is left of the queue.
    #[error(
        "{waiting} turns of this connection already wait, its share of this sidecar's queue; try again later"
    )]
    QueueShareFull {
        /// How many wait.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The turns that wait hold too much.
    #[error(
        "the turns that wait hold {bytes} bytes already, and with this one it would be more than is left for this connection; try again later, or send less"
    )]
    QueueTooLarge {
        /// How much they hold.
        bytes: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// The requests that are still arriving hold too much.
    #[error(
        "the requests that are arriving hold {bytes} bytes already, and with this one it would be more than is left for this connection; try again later, or send fewer at once"
    )]
    ArrivalsTooLarge {
        /// How much they hold.
        bytes: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// Too many turns of this context, or calls that are to change it, wait.
    #[error(
        "{waiting} turns or calls of this context already wait, the limit for one context; try again later"
    )]
    ContextQueueFull {
        /// How many wait.
        waiting: usize,
        /// When to try again.
        retry_after: Duration,
    },
    /// There are as many contexts as there may be.
    #[error(
        "{bound} contexts are bound, and this sidecar keeps {max_contexts} at most (limits.max_contexts); delete some, or let limits.evict_contexts or limits.context_ttl drop those that are unused"
    )]
    ContextsFull {
        /// How many there are, with those that are about to be bound.
        bound: usize,
        /// How many there may be.
        max_contexts: usize,
    },
    /// Too many turns have begun within a minute.
    #[error(
        "{most} turns may begin in a minute, and have (limits.turns_per_minute); try again in {}", in_milliseconds(*.retry_after)
    )]
    TurnRateExceeded {
        /// How many may.
        most: u32,
        /// When the next one may.
        retry_after: Duration,
    },
    /// The tokens of the day are used.
    #[error(
        "{used} tokens were used today, and {most} are there for a day of UTC (limits.tokens_per_day); try again after midnight, in {}", humantime::format_duration(Duration::from_secs(.retry_after.as_secs()))
    )]
    TokenQuotaExceeded {
        /// How many were used.
        used: u64,
        /// How many there are.
        most: u64,
        /// When the day is over.
        retry_after: Duration,
    },
    /// So much was added to the turn already that it takes no more.
    #[error(
        "turn {turn_id} takes no more input: {steered} additions with {bytes} bytes were made to it, and the limits are {most} and {most_bytes}; wait for its end, and say the rest in the next turn"
    )]
    SteeringFull {
        turn_id: TurnId,
        /// How many additions it has had.
        steered: usize,
        /// The bytes of all of them.
        bytes: usize,
        /// Most additions.
        most: usize,
        /// Most bytes.
        most_bytes: usize,
    },
    /// Too many streams of turns' events are open.
    #[error("{open} streams of {of} are open already, the limit; close some, or try again later")]
    TooManyReaders {
        /// How many are open.
        open: usize,
        /// Of what: a turn, a connection, the sidecar.
        of: &'static str,
    },
    /// A stream was not read for so long, in the midst of a large event, that others needed its room.
    #[error(
        "the stream was not read, and others needed the room that its event took; attach again after the last event that was received"
    )]
    ReaderTooSlow,
    /// The lines of the state were not read for this long.
    #[error(
        "nothing of the state was read for {}, and what it says grows old; ask again, and read it all",
        humantime::format_duration(*.0)
    )]
    StateUnread(Duration),
    /// The state can't be read now.
    #[error("the state can't be exported now: {cause}; ask again")]
    StateUnreadable {
        /// Why not.
        cause: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// Nothing is kept that outlives the sidecar.
    #[error("the sidecar keeps its state in memory (--state memory): there is nothing to export")]
    StateInMemory,
    /// No worker can take the turn.
    #[error("no Codex worker is available: {cause}")]
    WorkerUnavailable {
        /// Why not.
        cause: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The operating system refuses another process or file.
    #[error("the machine is out of resources: {cause}")]
    OutOfResources {
        /// What the system said.
        cause: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// What has to outlive the sidecar can't be written down, or was not read yet.
    #[error(
        "the sidecar can't keep what it does: {cause}; nothing begins until it can, and it looks each second whether it can"
    )]
    LedgerUnavailable {
        /// Why not.
        cause: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// What is the caller's tenant's can't be used.
    #[error("this tenant is not served now: {cause}")]
    TenantUnavailable {
        /// Why not.
        cause: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// The sidecar shuts down.
    #[error("the sidecar is draining and takes no new turns")]
    Draining {
        /// When to try again (at another instance, or at this one's successor).
        retry_after: Duration,
    },
    /// The context runs a turn, and the policy is REJECT.
    #[error("the context already runs a turn and busy_policy is REJECT")]
    ContextBusy,
    /// The context's binding can't be changed now.
    #[error("context {:?} has a turn that runs or waits under {:?}; wait for it, or interrupt it", .0.context_id, .0.thread_key)]
    ContextInUse(ContextKey),
    /// The context is bound already, or is about to be, and should not be.
    #[error("context {:?} is bound already under {:?}; name another one, or delete it first", .0.context_id, .0.thread_key)]
    ContextExists(ContextKey),
    /// The same request id came with other content.
    #[error(
        "request_id {request_id:?} was already used for a different request; use a new id for new content"
    )]
    RequestIdReused { request_id: String },
    /// Codex refuses what it was asked for a reason of its own; to open a thread most often for a wrong
    /// option.
    #[error("Codex refused: {cause}")]
    CodexRefused {
        /// What Codex said.
        cause: String,
    },
    /// Codex gives the thread more rights than the turn asked for, also after it was loaded anew.
    #[error(
        "Codex does not give the thread the rights that the turn asked for: {cause}; the turn was not started"
    )]
    SettingsNotApplied {
        /// In which respect.
        cause: String,
    },
    /// Two workers have died while they opened the thread, the second of nothing else.
    #[error(
        "two workers ended while they opened the thread of this request, the second while it opened no other: {cause}; the request is not tried again, because it would most likely end the next one, too: look at its thread_options, config first, and at its thread"
    )]
    OpeningKillsWorkers {
        /// How the second one ended.
        cause: String,
    },
    /// The turn can't be steered now.
    #[error("turn {turn_id} can't be steered: {cause}")]
    NotSteerable {
        turn_id: TurnId,
        /// Why not.
        cause: String,
    },
    /// Codex did not ask this in the turn.
    #[error("turn {turn_id} did not ask anything under the id {request_id:?}")]
    RequestNotFound {
        turn_id: TurnId,
        /// The question's id.
        request_id: String,
    },
    /// What Codex asked needs no answer any more.
    #[error(
        "request {request_id:?} of turn {turn_id} needs no answer any more: it was answered otherwise, declined or withdrawn"
    )]
    RequestAlreadyResolved {
        turn_id: TurnId,
        /// The question's id.
        request_id: String,
    },
    /// The caller's deadline passed.
    #[error("the call's deadline passed")]
    DeadlineExceeded,
    /// The end of the request did not come in time.
    #[error(
        "the request was not complete after {}; end the client's side of the call once its message is sent",
        humantime::format_duration(*.patience)
    )]
    RequestIncomplete {
        /// How long it was waited for.
        patience: Duration,
    },
    /// The server does not have this yet.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// A fault of the sidecar or of Codex that has no better name.
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    /// A refusal of a single field.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Refusal {
        Refusal::InvalidInput(vec![FieldViolation::new(field, description)])
    }
}
