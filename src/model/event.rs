//! What is told of a turn, in the contract's own messages.
//!
//! An [`Event`] is made once, by `app_server::decode` or by the engine, and its turn's log keeps it as
//! it goes over the wire.

pub use crate::pb::turn_event::Event;
pub(crate) use crate::pb::{
    AgentMessageDelta, ApprovalReviewStatus, ApprovalReviewed, CommandOutputDelta, Gap,
    InterruptReason, ItemCompleted, ItemStarted, ItemUpdated, McpServerState, McpServerStatus,
    Queued, Raw, ReasoningDelta, ReasoningPart, RequestRaised, RequestResolved, ThreadError,
    ThreadOrigin, ThreadStarted, TokenUsageUpdated, TurnCompleted, TurnDiffUpdated, TurnEvent,
    TurnFailed, TurnInterrupted, TurnSettings, TurnStarted, Usage, Warning,
};

use crate::model::failure::TurnError;
use crate::model::item::Item;
use crate::model::question::{Question, Resolution};

impl Event {
    /// The turn waits, with so many before it; 1 means: next.
    pub fn queued(position: u32) -> Event {
        Event::Queued(Queued { position })
    }

    /// The thread of this turn is known.
    pub fn thread_started(thread_id: impl Into<String>, origin: ThreadOrigin) -> Event {
        let (thread_id, origin) = (thread_id.into(), origin.into());
        Event::ThreadStarted(ThreadStarted { thread_id, origin })
    }

    /// Codex took the turn, which runs with these settings.
    pub fn turn_started(codex_turn_id: impl Into<String>, settings: Option<TurnSettings>) -> Event {
        Event::TurnStarted(TurnStarted { codex_turn_id: codex_turn_id.into(), settings })
    }

    /// An item began.
    pub fn item_started(item: Item) -> Event {
        Event::ItemStarted(ItemStarted { item: Some(item) })
    }

    /// An item changed.
    pub fn item_updated(item: Item) -> Event {
        Event::ItemUpdated(ItemUpdated { item: Some(item) })
    }

    /// An item is final.
    pub fn item_completed(item: Item) -> Event {
        Event::ItemCompleted(ItemCompleted { item: Some(item) })
    }

    /// A piece of an agent message.
    pub fn agent_message_delta(item_id: String, text: String) -> Event {
        Event::AgentMessageDelta(AgentMessageDelta { item_id, text })
    }

    /// A piece of a command's output.
    pub fn command_output_delta(item_id: String, text: String) -> Event {
        Event::CommandOutputDelta(CommandOutputDelta { item_id, text })
    }

    /// A piece of the model's reasoning, of the entry `index` of one of its item's two lists.
    pub fn reasoning_delta(
        item_id: String,
        text: String,
        part: ReasoningPart,
        index: u32,
    ) -> Event {
        Event::ReasoningDelta(ReasoningDelta { item_id, text, part: part.into(), index })
    }

    /// An error that does not end the turn by itself.
    pub fn thread_error(error: TurnError, will_retry: bool) -> Event {
        Event::ThreadError(ThreadError { error: Some(error), will_retry })
    }

    /// Something that the caller should know; `details` is empty where there are none.
    pub fn warning(
        code: WarningCode,
        message: impl Into<String>,
        details: impl Into<String>,
    ) -> Event {
        let (code, message, details) = (code.as_str().to_owned(), message.into(), details.into());
        Event::Warning(Warning { code, message, details })
    }

    /// Codex asks something.
    pub fn request_raised(question: Question) -> Event {
        Event::RequestRaised(RequestRaised { request: Some(question) })
    }

    /// What Codex asked needs no answer any more.
    pub fn request_resolved(
        request_id: String,
        resolution: Resolution,
        resolved_by: impl Into<String>,
    ) -> Event {
        let (resolution, resolved_by) = (resolution.into(), resolved_by.into());
        Event::RequestResolved(RequestResolved { request_id, resolution, resolved_by })
    }

    /// Its name in the contract.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Queued(_) => "queued",
            Event::ThreadStarted(_) => "thread_started",
            Event::TurnStarted(_) => "turn_started",
            Event::ItemStarted(_) => "item_started",
            Event::ItemUpdated(_) => "item_updated",
            Event::ItemCompleted(_) => "item_completed",
            Event::AgentMessageDelta(_) => "agent_message_delta",
            Event::ReasoningDelta(_) => "reasoning_delta",
            Event::CommandOutputDelta(_) => "command_output_delta",
            Event::TurnDiffUpdated(_) => "turn_diff_updated",
            Event::TokenUsageUpdated(_) => "token_usage_updated",
            Event::ThreadError(_) => "thread_error",
            Event::Warning(_) => "warning",
            Event::McpServerStatus(_) => "mcp_server_status",
            Event::RequestRaised(_) => "request_raised",
            Event::RequestResolved(_) => "request_resolved",
            Event::ApprovalReviewed(_) => "approval_reviewed",
            Event::Gap(_) => "gap",
            Event::Raw(_) => "raw",
            Event::TurnCompleted(_) => "turn_completed",
            Event::TurnFailed(_) => "turn_failed",
            Event::TurnInterrupted(_) => "turn_interrupted",
        }
    }

    /// Whether this is the last event of its turn.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Event::TurnCompleted(_) | Event::TurnFailed(_) | Event::TurnInterrupted(_))
    }

    /// Whether this event must outlive every bound on retention.
    pub fn is_pinned(&self) -> bool {
        self.is_terminal() || matches!(self, Event::ThreadStarted(_))
    }
}

/// Kinds of warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarningCode {
    /// Codex's own.
    Codex,
    /// Of Codex's guardian, which reviews what the agent does.
    Guardian,
    /// Something of the CLI's configuration will go.
    Deprecation,
    /// Something of the CLI's configuration is wrong.
    Config,
    /// Another model than the one asked for answers.
    ModelRerouted,
    /// The context's thread was gone, and a new one took its place.
    ThreadReplaced,
    /// Codex has fewer turns of the thread than were seen to end on it.
    ThreadTruncated,
    /// Dynamic tools of the request were not taken, because the thread has its own.
    DynamicToolsIgnored,
    /// Developer instructions of the request were not taken, because the thread has its own.
    DeveloperInstructionsIgnored,
    /// Options of the sandbox were not taken, because a permission profile is in its place.
    SandboxOptionsIgnored,
    /// An MCP server did not start.
    McpServerFailed,
    /// Something that the worker told was too long to be read.
    LineSkipped,
    /// Codex ran a turn on the thread that nobody had asked for; it was stopped.
    UnownedTurnStopped,
    /// Commands that the turn had started still ran at its end; they were ended.
    CommandsEnded,
    /// The turn has been silent for half of the time that it may be.
    NoProgress,
    /// The context was bound before, and was evicted.
    ContextEvicted,
    /// What became of the turn could not be written down.
    OutcomeNotKept,
}

impl WarningCode {
    /// The name on the wire, in UPPER_SNAKE.
    pub fn as_str(self) -> &'static str {
        match self {
            WarningCode::Codex => "CODEX_WARNING",
            WarningCode::Guardian => "GUARDIAN_WARNING",
            WarningCode::Deprecation => "DEPRECATION_NOTICE",
            WarningCode::Config => "CONFIG_WARNING",
            WarningCode::ModelRerouted => "MODEL_REROUTED",
            WarningCode::ThreadReplaced => "THREAD_REPLACED",
            WarningCode::ThreadTruncated => "THREAD_TRUNCATED",
            WarningCode::DynamicToolsIgnored => "DYNAMIC_TOOLS_IGNORED",
            WarningCode::DeveloperInstructionsIgnored => "DEVELOPER_INSTRUCTIONS_IGNORED",
            WarningCode::SandboxOptionsIgnored => "SANDBOX_OPTIONS_IGNORED",
            WarningCode::McpServerFailed => "MCP_SERVER_FAILED",
            WarningCode::LineSkipped => "LINE_SKIPPED",
            WarningCode::UnownedTurnStopped => "UNOWNED_TURN_STOPPED",
            WarningCode::CommandsEnded => "COMMANDS_ENDED",
            WarningCode::NoProgress => "NO_PROGRESS",
            WarningCode::ContextEvicted => "CONTEXT_EVICTED",
            WarningCode::OutcomeNotKept => "OUTCOME_NOT_KEPT",
        }
    }
}

impl McpServerStatus {
    /// What the caller should know where the server failed.
    pub fn warning(&self) -> Option<Event> {
        let McpServerStatus { server, state: _, error } = self;
        (self.state() == McpServerState::Failed).then(|| {
            let message =
                format!("the MCP server {server:?} is not there, nor are its tools: {error}");
            Event::warning(WarningCode::McpServerFailed, message, "")
        })
    }
}

impl std::ops::Add for Usage {
    type Output = Usage;

    fn add(self, other: Usage) -> Usage {
        Usage {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            cached_input_tokens: self.cached_input_tokens.saturating_add(other.cached_input_tokens),
            cache_write_input_tokens: self
                .cache_write_input_tokens
                .saturating_add(other.cache_write_input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            reasoning_output_tokens: self
                .reasoning_output_tokens
                .saturating_add(other.reasoning_output_tokens),
        }
    }
}

impl Usage {
    /// Tokens in and out together. Cached ones and those of reasoning are among them.
    pub fn total_tokens(self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }

    /// What was used since `before`. Never negative: a provider that restarts its count (after a
    /// context compaction, say) yields zero, not a wrap-around.
    pub fn since(self, before: Usage) -> Usage {
        Usage {
            input_tokens: self.input_tokens.saturating_sub(before.input_tokens),
            cached_input_tokens: self
                .cached_input_tokens
                .saturating_sub(before.cached_input_tokens),
            cache_write_input_tokens: self
                .cache_write_input_tokens
                .saturating_sub(before.cache_write_input_tokens),
            output_tokens: self.output_tokens.saturating_sub(before.output_tokens),
            reasoning_output_tokens: self
                .reasoning_output_tokens
                .saturating_sub(before.reasoning_output_tokens),
        }
    }
}
