//! What happens in a turn, in this project's own words: no protobuf, no Codex JSON.
//!
//! [`Event`]s are made by `app_server::decode` and by the engine, kept in a turn's log, and turned
//! into protobuf by `grpc::convert`. This module knows nothing of ours.

use std::time::{Duration, SystemTime};

/// One thing that happened, with its place in the turn.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnEvent {
    /// 1, 2, 3… per turn. A [`Event::Gap`] bears the last sequence that it stands for.
    pub sequence: u64,
    /// When the sidecar learned of it.
    pub emitted_at: SystemTime,
    /// What happened.
    pub event: Event,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The turn waits; the number of turns that go before it.
    Queued {
        /// 1 means: next.
        position: u32,
    },
    /// The thread of this turn is known.
    ThreadStarted {
        /// Codex's id of the thread.
        thread_id: String,
        /// Where the thread came from.
        origin: ThreadOrigin,
    },
    /// Codex took the turn.
    TurnStarted {
        /// Codex's own id of the turn.
        codex_turn_id: String,
    },
    /// An item began.
    ItemStarted(Item),
    /// An item changed.
    ItemUpdated(Item),
    /// An item is final.
    ItemCompleted(Item),
    /// A piece of an agent message.
    AgentMessageDelta(Delta),
    /// A piece of the model's reasoning.
    ReasoningDelta(ReasoningDelta),
    /// A piece of a command's output.
    CommandOutputDelta(Delta),
    /// The turn's changes so far, as one unified diff.
    TurnDiffUpdated {
        /// The diff's text.
        diff: String,
    },
    /// Token usage after a model request.
    TokenUsageUpdated {
        /// Of this turn so far.
        turn: Usage,
        /// Of the thread so far.
        thread: Usage,
        /// Of the last model request alone.
        last_request: Usage,
        /// The model's context window in tokens, where Codex knows it.
        model_context_window: Option<u64>,
    },
    /// An error that does not end the turn by itself.
    ThreadError {
        /// What went wrong.
        error: TurnError,
        /// Codex tries again by itself.
        will_retry: bool,
    },
    /// Something that the caller should know.
    Warning {
        /// What kind of warning.
        code: WarningCode,
        /// Its text.
        message: String,
        /// More of the same; empty where there is none.
        details: String,
    },
    /// An MCP server of the thread starts, is ready, or is not.
    McpServerStatus(McpServerStatus),
    /// Codex asks something.
    RequestRaised(Request),
    /// What Codex asked has been answered or has lapsed.
    RequestResolved {
        /// The request's id.
        request_id: String,
        /// How it ended.
        resolution: Resolution,
    },
    /// Events that this reader can no longer have.
    Gap {
        /// The first missing sequence.
        from: u64,
        /// The last missing sequence.
        to: u64,
    },
    /// What this contract has no name for.
    Raw {
        /// Codex's method.
        method: String,
        /// Its parameters as JSON text.
        json: String,
    },
    /// Terminal: the turn ended well.
    TurnCompleted {
        /// The last agent message, or a fixed sentence when there was none.
        final_response: String,
        /// Of this turn.
        usage: Usage,
        /// Of the thread.
        thread_usage: Usage,
    },
    /// Terminal: the turn failed.
    TurnFailed {
        /// Why.
        error: TurnError,
        /// Of this turn, as far as it is known.
        usage: Usage,
        /// Of the thread, as far as it is known.
        thread_usage: Usage,
    },
    /// Terminal: the turn was stopped.
    TurnInterrupted {
        /// By whom or what.
        reason: InterruptReason,
        /// Of this turn, as far as it is known.
        usage: Usage,
        /// Of the thread, as far as it is known.
        thread_usage: Usage,
    },
}

impl Event {
    /// Whether this is the last event of its turn.
    pub fn is_terminal(&self) -> bool {
        matches!(
            self,
            Event::TurnCompleted { .. } | Event::TurnFailed { .. } | Event::TurnInterrupted { .. }
        )
    }

    /// Whether this event must outlive every bound on retention.
    pub fn is_pinned(&self) -> bool {
        self.is_terminal() || matches!(self, Event::ThreadStarted { .. })
    }

    /// About how much memory it holds, in bytes: its texts and a fixed overhead.
    pub fn approximate_bytes(&self) -> usize {
        // The event itself, its counts and its place in a log; and what allocating it and its texts
        // costs beside their lengths, which most deltas are shorter than.
        const OVERHEAD: usize = size_of::<TurnEvent>() + 32 + 64;
        let texts = match self {
            Event::ItemStarted(item) | Event::ItemUpdated(item) | Event::ItemCompleted(item) => {
                item.approximate_bytes()
            }
            Event::AgentMessageDelta(delta) | Event::CommandOutputDelta(delta) => {
                delta.item_id.len() + delta.text.len()
            }
            Event::ReasoningDelta(delta) => delta.item_id.len() + delta.text.len(),
            Event::TurnDiffUpdated { diff } => diff.len(),
            Event::ThreadError { error, .. } | Event::TurnFailed { error, .. } => {
                error.message.len() + error.details.len()
            }
            Event::Warning { code: _, message, details } => message.len() + details.len(),
            Event::McpServerStatus(McpServerStatus { server, state: _, error }) => {
                server.len() + error.len()
            }
            Event::RequestRaised(request) => request.approximate_bytes(),
            Event::Raw { method, json } => method.len() + json.len(),
            Event::TurnCompleted { final_response, .. } => final_response.len(),
            Event::ThreadStarted { thread_id, .. } => thread_id.len(),
            Event::TurnStarted { codex_turn_id } => codex_turn_id.len(),
            Event::RequestResolved { request_id, .. } => request_id.len(),
            Event::Queued { .. }
            | Event::TokenUsageUpdated { .. }
            | Event::Gap { .. }
            | Event::TurnInterrupted { .. } => 0,
        };
        OVERHEAD + texts
    }
}

/// Where a turn's thread came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadOrigin {
    /// Made for this turn.
    New,
    /// The context's own, from an earlier turn or bound by hand.
    Resumed,
    /// A fork of another thread.
    Forked,
    /// Named by the request or by the tool's configuration.
    Explicit,
}

/// Who or what stopped a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptReason {
    /// Its last reader went away under the policy INTERRUPT.
    CallerDisconnected,
    /// The caller's deadline passed under the policy INTERRUPT.
    DeadlineExceeded,
    /// `InterruptTurn`.
    Requested,
    /// The sidecar shuts down.
    Draining,
    /// Codex itself, unasked.
    Codex,
}

/// A piece of text of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The item that it belongs to.
    pub item_id: String,
    /// The text to append.
    pub text: String,
}

/// A piece of the model's reasoning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningDelta {
    /// The item that it belongs to.
    pub item_id: String,
    /// The text to append.
    pub text: String,
    /// Which of the item's two lists it belongs to.
    pub part: ReasoningPart,
    /// Which entry of that list, from 0.
    pub index: u32,
}

/// The two lists of a reasoning item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningPart {
    /// Summaries.
    Summary,
    /// Raw reasoning.
    Content,
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
            WarningCode::DynamicToolsIgnored => "DYNAMIC_TOOLS_IGNORED",
            WarningCode::DeveloperInstructionsIgnored => "DEVELOPER_INSTRUCTIONS_IGNORED",
            WarningCode::SandboxOptionsIgnored => "SANDBOX_OPTIONS_IGNORED",
            WarningCode::McpServerFailed => "MCP_SERVER_FAILED",
            WarningCode::LineSkipped => "LINE_SKIPPED",
            WarningCode::UnownedTurnStopped => "UNOWNED_TURN_STOPPED",
            WarningCode::CommandsEnded => "COMMANDS_ENDED",
        }
    }
}

/// How far an MCP server of a thread is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct McpServerStatus {
    /// Its name in Codex's configuration.
    pub server: String,
    /// How far it is.
    pub state: McpServerState,
    /// Why it failed; empty where it did not.
    pub error: String,
}

/// How far an MCP server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum McpServerState {
    /// It is being started.
    Starting,
    /// Its tools can be called.
    Ready,
    /// It did not start, or it ended.
    Failed,
    /// Its start was given up.
    Cancelled,
}

impl McpServerStatus {
    /// What the caller should know where the server failed.
    pub fn warning(&self) -> Option<Event> {
        let McpServerStatus { server, state, error } = self;
        (*state == McpServerState::Failed).then(|| Event::Warning {
            code: WarningCode::McpServerFailed,
            message: format!("the MCP server {server:?} is not there, nor are its tools: {error}"),
            details: String::new(),
        })
    }
}

/// Token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens sent to the model, cached ones included.
    pub input_tokens: u64,
    /// Of these, read from the provider's cache.
    pub cached_input_tokens: u64,
    /// Of these, written to the provider's cache.
    pub cache_write_input_tokens: u64,
    /// Tokens that the model wrote, reasoning included.
    pub output_tokens: u64,
    /// Of these, reasoning.
    pub reasoning_output_tokens: u64,
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

/// Why a turn, or a part of it, failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnError {
    /// What kind of failure.
    pub reason: FailureReason,
    /// For the person who reads it.
    pub message: String,
    /// More of the same: a provider's answer, the last lines of a dead worker's stderr.
    pub details: String,
    /// Whether the cause may be gone on a second try, whatever the first one did.
    pub retryable: bool,
    /// When to try again, where the provider said so.
    pub retry_after: Option<Duration>,
    /// Whether a command, a patch or a tool call may have started; false is a promise that none had.
    pub side_effects_possible: bool,
    /// The provider's HTTP status, where one is known.
    pub http_status: Option<u16>,
}

/// Kinds of failure of a turn. The upper ones are the sidecar's own, the others one per
/// `CodexErrorInfo` of the CLI's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// The worker died with the turn on it.
    WorkerLost,
    /// No progress for `idle_timeout`.
    IdleTimeout,
    /// Not done within `turn_timeout`.
    TurnTimeout,
    /// The worker garbled what it said, or said it in a line over the limit.
    WorkerProtocol,
    /// More came into force than was asked.
    SettingsNotApplied,
    /// More tokens than `max_total_tokens`.
    BudgetExceeded,
    /// `contextWindowExceeded`.
    ContextWindowExceeded,
    /// `sessionBudgetExceeded`.
    SessionBudgetExceeded,
    /// `usageLimitExceeded`.
    UsageLimitExceeded,
    /// `rateLimitExceeded`.
    RateLimitExceeded,
    /// `flexUnavailable`.
    FlexUnavailable,
    /// `serverOverloaded`.
    ServerOverloaded,
    /// `modelNotFound`.
    ModelNotFound,
    /// `policyCapacityUnavailable`.
    PolicyCapacityUnavailable,
    /// `inferenceHookDenied`.
    InferenceHookDenied,
    /// `cyberPolicy`.
    CyberPolicy,
    /// `misalignmentPolicyViolation`.
    MisalignmentPolicyViolation,
    /// `tooManyDenials`.
    TooManyDenials,
    /// `httpConnectionFailed`.
    HttpConnectionFailed,
    /// `responseStreamConnectionFailed`.
    ResponseStreamConnectionFailed,
    /// `internalServerError`.
    InternalServerError,
    /// `unauthorized`.
    Unauthorized,
    /// `badRequest`.
    BadRequest,
    /// `threadRollbackFailed`.
    ThreadRollbackFailed,
    /// `sandboxError`.
    SandboxError,
    /// `responseStreamDisconnected`.
    ResponseStreamDisconnected,
    /// `responseTooManyFailedAttempts`.
    ResponseTooManyFailedAttempts,
    /// `activeTurnNotSteerable`.
    ActiveTurnNotSteerable,
    /// `other`, none at all, or one that this version does not know.
    CodexError,
}

impl FailureReason {
    /// The name on the wire, in UPPER_SNAKE.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureReason::WorkerLost => "WORKER_LOST",
            FailureReason::IdleTimeout => "IDLE_TIMEOUT",
            FailureReason::TurnTimeout => "TURN_TIMEOUT",
            FailureReason::WorkerProtocol => "WORKER_PROTOCOL",
            FailureReason::SettingsNotApplied => "SETTINGS_NOT_APPLIED",
            FailureReason::BudgetExceeded => "BUDGET_EXCEEDED",
            FailureReason::ContextWindowExceeded => "CONTEXT_WINDOW_EXCEEDED",
            FailureReason::SessionBudgetExceeded => "SESSION_BUDGET_EXCEEDED",
            FailureReason::UsageLimitExceeded => "USAGE_LIMIT_EXCEEDED",
            FailureReason::RateLimitExceeded => "RATE_LIMIT_EXCEEDED",
            FailureReason::FlexUnavailable => "FLEX_UNAVAILABLE",
            FailureReason::ServerOverloaded => "SERVER_OVERLOADED",
            FailureReason::ModelNotFound => "MODEL_NOT_FOUND",
            FailureReason::PolicyCapacityUnavailable => "POLICY_CAPACITY_UNAVAILABLE",
            FailureReason::InferenceHookDenied => "INFERENCE_HOOK_DENIED",
            FailureReason::CyberPolicy => "CYBER_POLICY",
            FailureReason::MisalignmentPolicyViolation => "MISALIGNMENT_POLICY_VIOLATION",
            FailureReason::TooManyDenials => "TOO_MANY_DENIALS",
            FailureReason::HttpConnectionFailed => "HTTP_CONNECTION_FAILED",
            FailureReason::ResponseStreamConnectionFailed => "RESPONSE_STREAM_CONNECTION_FAILED",
            FailureReason::InternalServerError => "INTERNAL_SERVER_ERROR",
            FailureReason::Unauthorized => "UNAUTHORIZED",
            FailureReason::BadRequest => "BAD_REQUEST",
            FailureReason::ThreadRollbackFailed => "THREAD_ROLLBACK_FAILED",
            FailureReason::SandboxError => "SANDBOX_ERROR",
            FailureReason::ResponseStreamDisconnected => "RESPONSE_STREAM_DISCONNECTED",
            FailureReason::ResponseTooManyFailedAttempts => "RESPONSE_TOO_MANY_FAILED_ATTEMPTS",
            FailureReason::ActiveTurnNotSteerable => "ACTIVE_TURN_NOT_STEERABLE",
            FailureReason::CodexError => "CODEX_ERROR",
        }
    }
}

/// A thing that a turn made or did.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Codex's id of it, unique in its thread.
    pub id: String,
    /// What it is.
    pub kind: ItemKind,
}

impl Item {
    /// Whether the model has finished a piece of an answer if this item is final: from then on something
    /// may have been done that no item tells of.
    pub fn is_of_an_answer(&self) -> bool {
        !matches!(self.kind, ItemKind::UserMessage { .. } | ItemKind::Error { .. })
    }

    /// Whether its start means that the world outside the model may have changed. An item of an
    /// unknown kind may be a tool of a newer CLI.
    pub fn has_side_effects(&self) -> bool {
        match &self.kind {
            ItemKind::CommandExecution(_)
            | ItemKind::FileChange { .. }
            | ItemKind::McpToolCall(_)
            | ItemKind::DynamicToolCall(_)
            | ItemKind::Unknown { .. } => true,
            // A sub-agent may act before anything is heard of it.
            ItemKind::SubAgent(agent) => matches!(
                agent.action,
                SubAgentAction::Spawn | SubAgentAction::Message | SubAgentAction::Other
            ),
            ItemKind::AgentMessage { .. }
            | ItemKind::Reasoning { .. }
            | ItemKind::WebSearch { .. }
            | ItemKind::TodoList { .. }
            | ItemKind::Error { .. }
            | ItemKind::UserMessage { .. }
            | ItemKind::ImageView { .. }
            | ItemKind::ContextCompaction => false,
        }
    }

    fn approximate_bytes(&self) -> usize {
        let kind = match &self.kind {
            ItemKind::AgentMessage { text, phase } => text.len() + phase.len(),
            ItemKind::Reasoning { summary, content } => {
                summary.iter().chain(content).map(String::len).sum()
            }
            ItemKind::CommandExecution(command) => {
                command.command.len() + command.aggregated_output.len()
            }
            ItemKind::FileChange { changes, .. } => {
                changes.iter().map(|change| change.path.len() + change.diff.len() + 32).sum()
            }
            ItemKind::McpToolCall(call) => {
                call.arguments_json.len() + call.result_json.as_deref().map_or(0, str::len)
            }
            ItemKind::WebSearch { query, action: _, results_json } => {
                query.len() + results_json.as_deref().map_or(0, str::len)
            }
            ItemKind::TodoList { items, .. } => items.iter().map(|item| item.text.len() + 8).sum(),
            ItemKind::Error { message } => message.len(),
            ItemKind::UserMessage { inputs } => inputs
                .iter()
                .map(|input| match input {
                    UserInput::Text(text)
                    | UserInput::LocalImage(text)
                    | UserInput::ImageUrl(text) => text.len(),
                })
                .sum(),
            ItemKind::DynamicToolCall(call) => {
                let content = call.content.iter().map(|content| match content {
                    ToolContent::Text(text)
                    | ToolContent::ImageUrl(text)
                    | ToolContent::AudioUrl(text) => text.len(),
                });
                call.arguments_json.len() + content.sum::<usize>()
            }
            ItemKind::ImageView { path } => path.len(),
            ItemKind::ContextCompaction => 0,
            ItemKind::SubAgent(agent) => {
                let agents = agent.agents.iter();
                agent.prompt.len() + agents.map(|agent| agent.message.len() + 128).sum::<usize>()
            }
            ItemKind::Unknown { json, .. } => json.len(),
        };
        self.id.len() + kind
    }
}

/// What an item is.
#[derive(Debug, Clone, PartialEq)]
pub enum ItemKind {
    /// The agent said something.
    AgentMessage {
        /// Its text.
        text: String,
        /// Codex's name for what it is (`commentary`, `final_answer`, …); empty where it says none.
        phase: String,
    },
    /// The model's reasoning, as far as the provider shows it.
    Reasoning {
        /// Summaries.
        summary: Vec<String>,
        /// Raw reasoning.
        content: Vec<String>,
    },
    /// A command.
    CommandExecution(CommandExecution),
    /// A patch.
    FileChange {
        /// One per file.
        changes: Vec<FileChange>,
        /// How far it is.
        status: Status,
    },
    /// A call of an MCP tool.
    McpToolCall(McpToolCall),
    /// A web search.
    WebSearch {
        /// What was searched.
        query: String,
        /// What exactly was done, where Codex says so.
        action: Option<WebSearchAction>,
        /// What was found, as JSON text, where Codex says so.
        results_json: Option<String>,
    },
    /// The agent's plan.
    TodoList {
        /// Its steps.
        items: Vec<TodoItem>,
        /// Why the plan changed, where the agent said so.
        explanation: Option<String>,
    },
    /// An error that became an item.
    Error {
        /// Its text.
        message: String,
    },
    /// What the user said.
    UserMessage {
        /// Its parts.
        inputs: Vec<UserInput>,
    },
    /// A call of a function that the caller lent.
    DynamicToolCall(DynamicToolCall),
    /// The model looked at an image.
    ImageView {
        /// The image's path.
        path: String,
    },
    /// The thread's history was shortened.
    ContextCompaction,
    /// What the agent does with other agents, and what those do.
    SubAgent(SubAgent),
    /// What this version has no name for.
    Unknown {
        /// Codex's name of it.
        r#type: String,
        /// All of it as JSON text.
        json: String,
    },
}

/// What a web search did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WebSearchAction {
    /// It searched.
    Search {
        /// The one query, where there is one.
        query: String,
        /// All of them.
        queries: Vec<String>,
    },
    /// It opened a page.
    OpenPage {
        /// The page.
        url: String,
    },
    /// It looked for something in a page.
    FindInPage {
        /// The page.
        url: String,
        /// What was looked for.
        pattern: String,
    },
    /// What this version has no name for, as JSON text.
    Other(String),
}

/// A piece of what a tool gave back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolContent {
    /// Text.
    Text(String),
    /// The URL of an image, often a `data:` one.
    ImageUrl(String),
    /// The URL of a sound, often a `data:` one.
    AudioUrl(String),
}

/// How far an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It runs.
    InProgress,
    /// It ended well.
    Completed,
    /// It ended badly.
    Failed,
    /// Its approval was declined.
    Declined,
}

/// A command that the agent ran.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandExecution {
    /// The command line.
    pub command: String,
    /// Where it ran.
    pub working_directory: String,
    /// Standard output and error together.
    pub aggregated_output: String,
    /// Its exit status, once it has one.
    pub exit_code: Option<i32>,
    /// How far it is.
    pub status: Status,
    /// How long it ran, once it ended.
    pub duration: Option<Duration>,
}

/// A change of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// The file's path.
    pub path: String,
    /// What kind of change.
    pub kind: FileChangeKind,
    /// The unified diff, or the whole text of an added file.
    pub diff: String,
    /// The new path of a moved file.
    pub move_path: Option<String>,
}

/// What kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileChangeKind {
    /// A new file.
    Add,
    /// A file is gone.
    Delete,
    /// A file changed, or moved.
    Update,
}

/// A call of an MCP tool.
#[derive(Debug, Clone, PartialEq)]
pub struct McpToolCall {
    /// The MCP server's name in the CLI's configuration.
    pub server: String,
    /// The tool's name.
    pub tool: String,
    /// The arguments as JSON text.
    pub arguments_json: String,
    /// The result as JSON text.
    pub result_json: Option<String>,
    /// The error's text.
    pub error: Option<String>,
    /// How far it is.
    pub status: Status,
    /// How long it took, once it ended.
    pub duration: Option<Duration>,
}

/// A call of a function that the caller lent.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicToolCall {
    /// The function's name.
    pub tool: String,
    /// The namespace that it is in; empty for none.
    pub namespace: String,
    /// The arguments as JSON text.
    pub arguments_json: String,
    /// What the caller answered.
    pub content: Vec<ToolContent>,
    /// Whether the caller called it a success.
    pub success: Option<bool>,
    /// How far it is.
    pub status: Status,
    /// How long it took, once it ended.
    pub duration: Option<Duration>,
}

/// What the agent does with sub-agents, or what one of them does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAgent {
    /// What is done.
    pub action: SubAgentAction,
    /// Codex's name for it (`spawnAgent`, `wait`, …); empty where the sidecar tells what a sub-agent
    /// does.
    pub tool: String,
    /// How far it is.
    pub status: SubAgentStatus,
    /// The thread of the agent that does it.
    pub sender_thread_id: String,
    /// The sub-agents that it is done with, each as last known.
    pub agents: Vec<AgentState>,
    /// What a sub-agent is told; empty where it is told nothing.
    pub prompt: String,
    /// The model of a new sub-agent, where Codex says it.
    pub model: String,
    /// Its reasoning effort, where Codex says it.
    pub reasoning_effort: String,
}

/// What is done with sub-agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubAgentAction {
    /// A new one is started.
    Spawn,
    /// One is told something.
    Message,
    /// The agent waits for some.
    Wait,
    /// One is closed.
    Close,
    /// A closed one is opened again.
    Resume,
    /// The turn of one is stopped.
    Interrupt,
    /// They are listed.
    List,
    /// One works: a turn of its own, from its begin to its end.
    Work,
    /// Codex tells that one has ended its work.
    Finish,
    /// What this version has no name for.
    Other,
}

/// How far something with a sub-agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubAgentStatus {
    /// It goes on.
    InProgress,
    /// It ended well.
    Completed,
    /// It ended badly.
    Failed,
    /// It was stopped.
    Interrupted,
}

/// One sub-agent, as last known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentState {
    /// Its thread.
    pub thread_id: String,
    /// Codex's name of its place among the agents (`/root/reader`); empty where it has none.
    pub path: String,
    /// How it stands.
    pub phase: AgentPhase,
    /// The last thing that it said, or what went wrong with it.
    pub message: String,
}

/// How a sub-agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentPhase {
    /// Not said, or one that this version has no name for.
    Unknown,
    /// It has not begun.
    Pending,
    /// It works.
    Running,
    /// It was stopped; it can be told more.
    Interrupted,
    /// It has done what it was told; it can be told more.
    Completed,
    /// It failed.
    Errored,
    /// It is closed.
    Closed,
    /// There is none of that id.
    NotFound,
}

/// A step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TodoItem {
    /// What is to be done.
    pub text: String,
    /// How far it is.
    pub status: TodoStatus,
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TodoStatus {
    /// Not begun.
    Pending,
    /// Being done.
    InProgress,
    /// Done.
    Completed,
}

/// One part of what the user says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserInput {
    /// Text.
    Text(String),
    /// The absolute path of an image on the sidecar's machine.
    LocalImage(String),
    /// The `data:` address of an image; without its data in what a turn tells.
    ImageUrl(String),
}

/// Something that Codex asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The sidecar's id of it, unique in its turn.
    pub id: String,
    /// The item that it is about, where there is one.
    pub item_id: Option<String>,
    /// What is asked.
    pub kind: RequestKind,
}

impl Request {
    fn approximate_bytes(&self) -> usize {
        let kind = match &self.kind {
            RequestKind::CommandApproval { command, .. } => command.len(),
            RequestKind::FileChangeApproval { .. } => 0,
            RequestKind::PermissionsApproval { permissions_json, .. } => permissions_json.len(),
            RequestKind::UserInput { questions, .. } => {
                questions.iter().map(|question| question.question.len() + 64).sum()
            }
            RequestKind::Elicitation { message, params_json, .. } => {
                message.len() + 2 * params_json.len()
            }
            RequestKind::ToolCall { arguments_json, .. } => arguments_json.len(),
            RequestKind::Unknown { json, .. } => json.len(),
        };
        self.id.len() + kind
    }
}

/// What Codex asks.
#[derive(Debug, Clone, PartialEq)]
pub enum RequestKind {
    /// May this command run?
    CommandApproval {
        /// The command line.
        command: String,
        /// Where it would run.
        working_directory: String,
        /// Why the agent asks.
        reason: Option<String>,
        /// The host and protocol, where it is the network that is asked for.
        network_access: Option<(String, String)>,
        /// The words of a rule that would allow it from now on.
        proposed_exec_policy_amendment: Vec<String>,
        /// Hosts that would be allowed (true) or denied from now on.
        proposed_network_policy_amendments: Vec<(String, bool)>,
        /// More permissions that the command wants, as JSON text.
        additional_permissions_json: Option<String>,
    },
    /// May this patch be applied?
    FileChangeApproval {
        /// Why the agent asks.
        reason: Option<String>,
        /// The root that the agent wants to write to from now on.
        grant_root: Option<String>,
    },
    /// May the agent have these permissions?
    PermissionsApproval {
        /// Why the agent asks.
        reason: Option<String>,
        /// What it wants, as JSON text.
        permissions_json: String,
        /// Where it wants it.
        working_directory: String,
    },
    /// Questions to the user.
    UserInput {
        /// The questions.
        questions: Vec<Question>,
        /// Whether the turn waits for the answers.
        is_blocking: bool,
    },
    /// An MCP server asks.
    Elicitation {
        /// The server's name.
        server: String,
        /// Codex's name for how it asks: `form`, `url`, ….
        mode: String,
        /// What it says.
        message: String,
        /// The JSON schema of the answer, for a form.
        schema_json: Option<String>,
        /// The page to open, for a URL.
        url: Option<String>,
        /// The server's id of it, for a URL.
        elicitation_id: Option<String>,
        /// All of it as JSON text: modes differ.
        params_json: String,
    },
    /// A function that the caller lent is called.
    ToolCall {
        /// The function's name.
        tool: String,
        /// The namespace that it is in; empty for none.
        namespace: String,
        /// Codex's id of the call.
        call_id: String,
        /// The arguments as JSON text.
        arguments_json: String,
    },
    /// What this version has no name for; answered with an error.
    Unknown {
        /// Codex's method.
        method: String,
        /// Its parameters as JSON text.
        json: String,
    },
}

/// A question to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its id, the key of its answer.
    pub id: String,
    /// A short heading.
    pub header: String,
    /// The question.
    pub question: String,
    /// Choices with their descriptions; none means free text.
    pub options: Vec<(String, String)>,
    /// Whether an answer beside the choices is welcome.
    pub is_other_allowed: bool,
    /// Whether the answer is a secret.
    pub is_secret: bool,
}

/// How a request of Codex ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The caller answered.
    Answered,
    /// The sidecar declined, because nobody can answer or nobody did in time.
    Declined,
    /// Codex withdrew it.
    Withdrawn,
}
