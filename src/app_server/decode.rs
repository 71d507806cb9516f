//! From Codex's notifications and requests to this project's events.
//!
//! A newer CLI never breaks anything here: an item of an unknown type becomes
//! [`ItemKind::Unknown`], a notification of an unknown method becomes [`Decoded::Untyped`].

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::app_server::message::{Notification, RpcError, ServerRequest};
use crate::turn::event::{
    CommandExecution, Delta, DynamicToolCall, Event, FailureReason, FileChange, FileChangeKind,
    Item, ItemKind, McpToolCall, Question, RequestKind, Status, TodoItem, TodoStatus, TurnError,
    Usage, UserInput,
};

/// Which thread and turn a message is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The thread, where the message names one.
    pub thread_id: Option<String>,
    /// The turn, where the message names one.
    pub turn_id: Option<String>,
}

/// Reads the scope of a message's parameters.
pub fn scope(params: &RawValue) -> Scope {
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase")]
    struct Ids {
        thread_id: Option<String>,
        // The two older approval requests name the thread so.
        conversation_id: Option<String>,
        turn_id: Option<String>,
        turn: Option<OnlyId>,
    }
    #[derive(Deserialize)]
    struct OnlyId {
        id: String,
    }
    let Ids { thread_id, conversation_id, turn_id, turn } =
        serde_json::from_str(params.get()).unwrap_or_default();
    Scope {
        thread_id: thread_id.or(conversation_id),
        turn_id: turn_id.or(turn.map(|turn| turn.id)),
    }
}

/// What a notification means for its turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// An event as it is.
    Event(Event),
    /// The plan has changed; the engine makes an item of it.
    Plan {
        /// The steps.
        items: Vec<TodoItem>,
        /// Why it changed.
        explanation: Option<String>,
    },
    /// Token counts: of the thread, and of the last model request.
    TokenUsage {
        /// Of the thread so far.
        total: Usage,
        /// Of the last model request.
        last: Usage,
        /// The model's context window in tokens.
        model_context_window: Option<u64>,
    },
    /// Codex works on the turn.
    TurnStarted,
    /// The turn is over.
    TurnEnded(TurnEnd),
    /// Codex withdrew one of its requests, or saw its answer.
    RequestResolved {
        /// Codex's id of the request.
        request_id: Value,
    },
    /// The contract has no name for it.
    Untyped,
}

/// How Codex ended a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum TurnEnd {
    /// Well.
    Completed,
    /// By an interruption.
    Interrupted,
    /// Badly.
    Failed(TurnError),
}

/// Decodes a notification.
pub fn notification(notification: &Notification) -> Decoded {
    decode(notification).unwrap_or(Decoded::Untyped)
}

fn decode(Notification { method, params }: &Notification) -> Option<Decoded> {
    let params = params.get();
    let event = match method.as_str() {
        "item/started" => Event::ItemStarted(item(params)?),
        "item/updated" => Event::ItemUpdated(item(params)?),
        "item/completed" => Event::ItemCompleted(item(params)?),
        "item/agentMessage/delta" => Event::AgentMessageDelta(delta(params)?),
        "item/reasoning/textDelta" | "item/reasoning/summaryTextDelta" => {
            Event::ReasoningDelta(delta(params)?)
        }
        "item/commandExecution/outputDelta" => Event::CommandOutputDelta(delta(params)?),
        "item/fileChange/patchUpdated" => Event::ItemUpdated(patch(params)?),
        "turn/diff/updated" => {
            #[derive(Deserialize)]
            struct Params {
                diff: String,
            }
            Event::TurnDiffUpdated { diff: read::<Params>(params)?.diff }
        }
        "warning" | "guardianWarning" => {
            #[derive(Deserialize)]
            struct Params {
                message: String,
            }
            Event::Warning { message: read::<Params>(params)?.message }
        }
        "configWarning" | "deprecationNotice" => {
            #[derive(Deserialize)]
            struct Params {
                summary: String,
                details: Option<String>,
            }
            let Params { summary, details } = read(params)?;
            let message =
                details.map_or(summary.clone(), |details| format!("{summary}: {details}"));
            Event::Warning { message }
        }
        "error" => {
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Params {
                error: CodexTurnError,
                #[serde(default)]
                will_retry: bool,
            }
            let Params { error, will_retry } = read(params)?;
            Event::ThreadError { error: error.into(), will_retry }
        }
        "turn/started" => return Some(Decoded::TurnStarted),
        "turn/completed" => return turn_ended(params).map(Decoded::TurnEnded),
        "turn/plan/updated" => return plan(params),
        "thread/tokenUsage/updated" => return token_usage(params),
        "serverRequest/resolved" => {
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Params {
                request_id: Value,
            }
            let Params { request_id } = read(params)?;
            return Some(Decoded::RequestResolved { request_id });
        }
        _ => return None,
    };
    Some(Decoded::Event(event))
}

fn read<'a, T: Deserialize<'a>>(params: &'a str) -> Option<T> {
    match serde_json::from_str(params) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::debug!(%error, "a notification of a known method has an unknown shape");
            None
        }
    }
}

fn delta(params: &str) -> Option<Delta> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        item_id: String,
        delta: String,
    }
    let Params { item_id, delta } = read(params)?;
    Some(Delta { item_id, text: delta })
}

fn plan(params: &str) -> Option<Decoded> {
    #[derive(Deserialize)]
    struct Params {
        explanation: Option<String>,
        plan: Vec<Step>,
    }
    #[derive(Deserialize)]
    struct Step {
        step: String,
        status: String,
    }
    let Params { explanation, plan } = read(params)?;
    let items = plan
        .into_iter()
        .map(|Step { step, status }| TodoItem {
            text: step,
            status: match status.as_str() {
                "completed" => TodoStatus::Completed,
                "inProgress" => TodoStatus::InProgress,
                _ => TodoStatus::Pending,
            },
        })
        .collect();
    Some(Decoded::Plan { items, explanation })
}

fn token_usage(params: &str) -> Option<Decoded> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        token_usage: Both,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Both {
        total: Counts,
        last: Counts,
        model_context_window: Option<i64>,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Counts {
        input_tokens: i64,
        cached_input_tokens: i64,
        cache_write_input_tokens: i64,
        output_tokens: i64,
        reasoning_output_tokens: i64,
    }
    fn usage(counts: Counts) -> Usage {
        let count = |count: i64| u64::try_from(count).unwrap_or(0);
        Usage {
            input_tokens: count(counts.input_tokens),
            cached_input_tokens: count(counts.cached_input_tokens),
            cache_write_input_tokens: count(counts.cache_write_input_tokens),
            output_tokens: count(counts.output_tokens),
            reasoning_output_tokens: count(counts.reasoning_output_tokens),
        }
    }
    let Params { token_usage: Both { total, last, model_context_window } } = read(params)?;
    Some(Decoded::TokenUsage {
        total: usage(total),
        last: usage(last),
        model_context_window: model_context_window.and_then(|window| u64::try_from(window).ok()),
    })
}

fn turn_ended(params: &str) -> Option<TurnEnd> {
    #[derive(Deserialize)]
    struct Params {
        turn: Turn,
    }
    #[derive(Deserialize)]
    struct Turn {
        status: String,
        error: Option<CodexTurnError>,
    }
    let Params { turn: Turn { status, error } } = read(params)?;
    Some(match (status.as_str(), error) {
        ("completed", _) => TurnEnd::Completed,
        ("interrupted", _) => TurnEnd::Interrupted,
        (_, Some(error)) => TurnEnd::Failed(error.into()),
        (status, None) => TurnEnd::Failed(TurnError {
            reason: FailureReason::CodexError,
            message: format!("Codex ended the turn with status {status:?} and no error"),
            details: String::new(),
            retryable: false,
            retry_after: None,
            side_effects_possible: false,
            http_status: None,
        }),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CodexTurnError {
    #[serde(default)]
    message: String,
    #[serde(default)]
    codex_error_info: Value,
    #[serde(default)]
    additional_details: Option<String>,
}

impl From<CodexTurnError> for TurnError {
    fn from(error: CodexTurnError) -> TurnError {
        let CodexTurnError { message, codex_error_info, additional_details } = error;
        // Either a bare name, or an object with the name as its only key.
        let (name, info) = match &codex_error_info {
            Value::String(name) => (name.as_str(), &Value::Null),
            Value::Object(object) => object
                .iter()
                .next()
                .map_or(("other", &Value::Null), |(name, info)| (name.as_str(), info)),
            _ => ("other", &Value::Null),
        };
        let reason = failure_reason(name);
        let details = additional_details.unwrap_or_default();
        let http_status = info["httpStatusCode"]
            .as_u64()
            .or_else(|| status_in(&message))
            .or_else(|| status_in(&details))
            .and_then(|status| u16::try_from(status).ok());
        TurnError {
            reason,
            retryable: is_retryable(reason, http_status),
            retry_after: retry_after_in(&message).or_else(|| retry_after_in(&details)),
            message,
            details,
            side_effects_possible: false,
            http_status,
        }
    }
}

/// The reasons by their names in `CodexErrorInfo` of the CLI's schema.
pub(crate) fn failure_reason(name: &str) -> FailureReason {
    match name {
        "contextWindowExceeded" => FailureReason::ContextWindowExceeded,
        "sessionBudgetExceeded" => FailureReason::SessionBudgetExceeded,
        "usageLimitExceeded" => FailureReason::UsageLimitExceeded,
        "rateLimitExceeded" => FailureReason::RateLimitExceeded,
        "flexUnavailable" => FailureReason::FlexUnavailable,
        "serverOverloaded" => FailureReason::ServerOverloaded,
        "modelNotFound" => FailureReason::ModelNotFound,
        "policyCapacityUnavailable" => FailureReason::PolicyCapacityUnavailable,
        "inferenceHookDenied" => FailureReason::InferenceHookDenied,
        "cyberPolicy" => FailureReason::CyberPolicy,
        "misalignmentPolicyViolation" => FailureReason::MisalignmentPolicyViolation,
        "tooManyDenials" => FailureReason::TooManyDenials,
        "httpConnectionFailed" => FailureReason::HttpConnectionFailed,
        "responseStreamConnectionFailed" => FailureReason::ResponseStreamConnectionFailed,
        "internalServerError" => FailureReason::InternalServerError,
        "unauthorized" => FailureReason::Unauthorized,
        "badRequest" => FailureReason::BadRequest,
        "threadRollbackFailed" => FailureReason::ThreadRollbackFailed,
        "sandboxError" => FailureReason::SandboxError,
        "responseStreamDisconnected" => FailureReason::ResponseStreamDisconnected,
        "responseTooManyFailedAttempts" => FailureReason::ResponseTooManyFailedAttempts,
        "activeTurnNotSteerable" => FailureReason::ActiveTurnNotSteerable,
        _ => FailureReason::CodexError,
    }
}

fn is_retryable(reason: FailureReason, http_status: Option<u16>) -> bool {
    match reason {
        FailureReason::WorkerLost
        | FailureReason::IdleTimeout
        | FailureReason::TurnTimeout
        | FailureReason::WorkerProtocol
        | FailureReason::RateLimitExceeded
        | FailureReason::FlexUnavailable
        | FailureReason::ServerOverloaded
        | FailureReason::PolicyCapacityUnavailable
        | FailureReason::ResponseStreamDisconnected
        | FailureReason::InternalServerError => true,
        // A connection that the provider answered with a refusal will be refused again.
        FailureReason::HttpConnectionFailed
        | FailureReason::ResponseStreamConnectionFailed
        | FailureReason::ResponseTooManyFailedAttempts => http_status
            .is_none_or(|status| status >= 500 || matches!(status, 408 | 409 | 425 | 429)),
        FailureReason::CodexError => {
            http_status.is_some_and(|status| status >= 500 || status == 429)
        }
        FailureReason::ContextWindowExceeded
        | FailureReason::SessionBudgetExceeded
        | FailureReason::UsageLimitExceeded
        | FailureReason::ModelNotFound
        | FailureReason::InferenceHookDenied
        | FailureReason::CyberPolicy
        | FailureReason::MisalignmentPolicyViolation
        | FailureReason::TooManyDenials
        | FailureReason::Unauthorized
        | FailureReason::BadRequest
        | FailureReason::ThreadRollbackFailed
        | FailureReason::SandboxError
        | FailureReason::ActiveTurnNotSteerable => false,
    }
}

/// Codex names the status of some failures only in its text: `unexpected status 400 Bad Request: …`
/// and `exceeded retry limit, last status: 429 Too Many Requests`.
fn status_in(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("status")?;
    let rest = rest.trim_start_matches([':', ' ']);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

/// Providers say when to try again in words: `Please try again in 7.5s`, `… in 300ms`.
fn retry_after_in(text: &str) -> Option<Duration> {
    let lower = text.to_ascii_lowercase();
    let (_, rest) = lower.split_once("try again in ")?;
    let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let unit = rest[number.len()..].trim_start();
    let number: f64 = number.parse().ok()?;
    let seconds = if unit.starts_with("ms") || unit.starts_with("millisecond") {
        number / 1000.0
    } else if unit.starts_with('s') {
        number
    } else if unit.starts_with('m') {
        number * 60.0
    } else if unit.starts_with('h') {
        number * 3600.0
    } else {
        return None;
    };
    Duration::try_from_secs_f64(seconds).ok()
}

fn patch(params: &str) -> Option<Item> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        item_id: String,
        changes: Vec<CodexFileChange>,
    }
    let Params { item_id, changes } = read(params)?;
    let changes = changes.into_iter().map(FileChange::from).collect();
    Some(Item { id: item_id, kind: ItemKind::FileChange { changes, status: Status::InProgress } })
}

fn item(params: &str) -> Option<Item> {
    #[derive(Deserialize)]
    struct Params<'a> {
        #[serde(borrow)]
        item: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Head {
        r#type: String,
        #[serde(default)]
        id: String,
    }
    let Params { item } = read(params)?;
    let Head { r#type, id } = read(item.get())?;
    let kind = serde_json::from_str::<CodexItem>(item.get())
        .map_or_else(|_| ItemKind::Unknown { r#type, json: item.get().to_owned() }, ItemKind::from);
    Some(Item { id, kind })
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum CodexItem {
    AgentMessage {
        text: String,
    },
    Reasoning {
        #[serde(default)]
        summary: Vec<String>,
        #[serde(default)]
        content: Vec<String>,
    },
    CommandExecution {
        command: String,
        #[serde(default)]
        cwd: String,
        status: CodexStatus,
        aggregated_output: Option<String>,
        exit_code: Option<i32>,
        duration_ms: Option<u64>,
    },
    FileChange {
        changes: Vec<CodexFileChange>,
        status: CodexStatus,
    },
    McpToolCall {
        server: String,
        tool: String,
        status: CodexStatus,
        #[serde(default)]
        arguments: Value,
        result: Option<Value>,
        error: Option<CodexMcpError>,
        duration_ms: Option<u64>,
    },
    DynamicToolCall {
        tool: String,
        #[serde(default)]
        arguments: Value,
        status: CodexStatus,
        content_items: Option<Value>,
        success: Option<bool>,
        duration_ms: Option<u64>,
    },
    WebSearch {
        #[serde(default)]
        query: Option<String>,
        action: Option<Value>,
    },
    ImageView {
        path: String,
    },
    UserMessage {
        content: Vec<CodexUserInput>,
    },
    ContextCompaction {},
    Error {
        message: String,
    },
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "camelCase")]
enum CodexStatus {
    InProgress,
    Completed,
    Failed,
    Declined,
}

#[derive(Deserialize)]
struct CodexMcpError {
    message: String,
}

#[derive(Deserialize)]
struct CodexFileChange {
    path: String,
    kind: CodexChangeKind,
    #[serde(default)]
    diff: String,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum CodexChangeKind {
    Add,
    Delete,
    Update { move_path: Option<String> },
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
enum CodexUserInput {
    Text {
        text: String,
    },
    Image {
        url: Option<String>,
    },
    LocalImage {
        path: String,
    },
    #[serde(other)]
    Other,
}

impl From<CodexStatus> for Status {
    fn from(status: CodexStatus) -> Status {
        match status {
            CodexStatus::InProgress => Status::InProgress,
            CodexStatus::Completed => Status::Completed,
            CodexStatus::Failed => Status::Failed,
            CodexStatus::Declined => Status::Declined,
        }
    }
}

impl From<CodexFileChange> for FileChange {
    fn from(CodexFileChange { path, kind, diff }: CodexFileChange) -> FileChange {
        let (kind, move_path) = match kind {
            CodexChangeKind::Add => (FileChangeKind::Add, None),
            CodexChangeKind::Delete => (FileChangeKind::Delete, None),
            CodexChangeKind::Update { move_path } => (FileChangeKind::Update, move_path),
        };
        FileChange { path, kind, diff, move_path }
    }
}

impl From<CodexItem> for ItemKind {
    fn from(item: CodexItem) -> ItemKind {
        match item {
            CodexItem::AgentMessage { text } => ItemKind::AgentMessage { text },
            CodexItem::Reasoning { summary, content } => ItemKind::Reasoning { summary, content },
            CodexItem::CommandExecution {
                command,
                cwd,
                status,
                aggregated_output,
                exit_code,
                duration_ms,
            } => ItemKind::CommandExecution(CommandExecution {
                command,
                working_directory: cwd,
                aggregated_output: aggregated_output.unwrap_or_default(),
                exit_code,
                status: status.into(),
                duration: duration_ms.map(Duration::from_millis),
            }),
            CodexItem::FileChange { changes, status } => ItemKind::FileChange {
                changes: changes.into_iter().map(FileChange::from).collect(),
                status: status.into(),
            },
            CodexItem::McpToolCall {
                server,
                tool,
                status,
                arguments,
                result,
                error,
                duration_ms,
            } => ItemKind::McpToolCall(McpToolCall {
                server,
                tool,
                arguments_json: arguments.to_string(),
                result_json: result.map(|result| result.to_string()),
                error: error.map(|error| error.message),
                status: status.into(),
                duration: duration_ms.map(Duration::from_millis),
            }),
            CodexItem::DynamicToolCall {
                tool,
                arguments,
                status,
                content_items,
                success,
                duration_ms,
            } => ItemKind::DynamicToolCall(DynamicToolCall {
                tool,
                arguments_json: arguments.to_string(),
                result_json: content_items.map(|items| items.to_string()),
                success,
                status: status.into(),
                duration: duration_ms.map(Duration::from_millis),
            }),
            CodexItem::WebSearch { query, action } => ItemKind::WebSearch {
                query: query.unwrap_or_default(),
                action_json: action.map(|action| action.to_string()),
            },
            CodexItem::ImageView { path } => ItemKind::ImageView { path },
            CodexItem::UserMessage { content } => ItemKind::UserMessage {
                inputs: content
                    .into_iter()
                    .filter_map(|input| match input {
                        CodexUserInput::Text { text } => Some(UserInput::Text(text)),
                        CodexUserInput::Image { url } => url.map(UserInput::ImageUrl),
                        CodexUserInput::LocalImage { path } => Some(UserInput::LocalImage(path)),
                        CodexUserInput::Other => None,
                    })
                    .collect(),
            },
            CodexItem::ContextCompaction {} => ItemKind::ContextCompaction,
            CodexItem::Error { message } => ItemKind::Error { message },
        }
    }
}

/// What a request of Codex asks, and the item that it is about.
pub fn request(request: &ServerRequest) -> (Option<String>, RequestKind) {
    let ServerRequest { id: _, method, params } = request;
    let params: Value = serde_json::from_str(params.get()).unwrap_or_default();
    let text = |key: &str| params[key].as_str().map(str::to_owned);
    let item_id = text("itemId").or_else(|| text("callId"));
    let kind = match method.as_str() {
        "item/commandExecution/requestApproval" | "execCommandApproval" => {
            RequestKind::CommandApproval {
                command: match &params["command"] {
                    Value::Array(words) => {
                        words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
                    }
                    other => other.as_str().unwrap_or_default().to_owned(),
                },
                working_directory: text("cwd").unwrap_or_default(),
                reason: text("reason"),
            }
        }
        "item/fileChange/requestApproval" | "applyPatchApproval" => {
            RequestKind::FileChangeApproval {
                reason: text("reason"),
                grant_root: text("grantRoot"),
            }
        }
        "item/permissions/requestApproval" => RequestKind::PermissionsApproval {
            reason: text("reason"),
            permissions_json: params["permissions"].to_string(),
        },
        "item/tool/requestUserInput" => RequestKind::UserInput {
            questions: params["questions"].as_array().into_iter().flatten().map(question).collect(),
        },
        "mcpServer/elicitation/request" => RequestKind::Elicitation {
            server: text("serverName").unwrap_or_default(),
            message: text("message").unwrap_or_default(),
            schema_json: params.get("requestedSchema").map(Value::to_string),
            url: text("url"),
        },
        "item/tool/call" => RequestKind::ToolCall {
            tool: text("tool").unwrap_or_default(),
            arguments_json: params["arguments"].to_string(),
        },
        method => RequestKind::Unknown { method: method.to_owned(), json: params.to_string() },
    };
    (item_id, kind)
}

fn question(question: &Value) -> Question {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Question {
        id: text(&question["id"]),
        header: text(&question["header"]),
        question: text(&question["question"]),
        options: question["options"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|option| (text(&option["label"]), text(&option["description"])))
            .collect(),
        is_secret: question["isSecret"].as_bool().unwrap_or(false),
    }
}

/// The answer that says no to a request of Codex. Every request must be answered, or its turn
/// hangs for ever; one of an unknown method is answered with an error.
pub fn decline(method: &str) -> Result<Value, RpcError> {
    Ok(match method {
        "item/commandExecution/requestApproval" | "item/fileChange/requestApproval" => {
            json!({ "decision": "decline" })
        }
        "execCommandApproval" | "applyPatchApproval" => json!({ "decision": "denied" }),
        "item/permissions/requestApproval" => json!({ "permissions": {}, "scope": "turn" }),
        "item/tool/requestUserInput" => json!({ "answers": {} }),
        "mcpServer/elicitation/request" => {
            json!({ "action": "decline", "content": null, "_meta": null })
        }
        "item/tool/call" => json!({
            "contentItems": [{
                "type": "inputText",
                "text": "The tool could not be called: its caller did not answer.",
            }],
            "success": false,
        }),
        "currentTime/read" => {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default();
            json!({ "currentTimeAt": now.as_secs() })
        }
        method => {
            return Err(RpcError {
                code: -32601,
                message: format!("codex-sidecar does not answer {method}"),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notify(method: &str, params: Value) -> Decoded {
        let params = RawValue::from_string(params.to_string()).unwrap();
        notification(&Notification { method: method.to_owned(), params })
    }

    fn failure(info: Value, message: &str) -> TurnError {
        let turn =
            json!({"status": "failed", "error": {"message": message, "codexErrorInfo": info}});
        match notify("turn/completed", json!({"threadId": "t", "turn": turn})) {
            Decoded::TurnEnded(TurnEnd::Failed(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_item_of_a_newer_cli_is_passed_on_whole() {
        let item = json!({"type": "hologram", "id": "i1", "depth": 3});
        let decoded = notify("item/completed", json!({"threadId": "t", "item": item}));
        let Decoded::Event(Event::ItemCompleted(Item {
            id,
            kind: ItemKind::Unknown { r#type, json },
        })) = decoded
        else {
            panic!("{decoded:?}");
        };
        assert_eq!((id.as_str(), r#type.as_str()), ("i1", "hologram"));
        assert_eq!(serde_json::from_str::<Value>(&json).unwrap(), item);
        // A known type with an unknown status is unknown as well, not an error.
        let item = json!({"type": "fileChange", "id": "i2", "changes": [], "status": "dreaming"});
        let decoded = notify("item/started", json!({"item": item}));
        assert!(matches!(
            decoded,
            Decoded::Event(Event::ItemStarted(Item { kind: ItemKind::Unknown { .. }, .. }))
        ));
        assert_eq!(notify("thread/hologram", json!({})), Decoded::Untyped);
        assert_eq!(notify("item/agentMessage/delta", json!({"delta": 7})), Decoded::Untyped);
    }

    #[test]
    fn typed_failures_say_whether_to_try_again_and_when() {
        let refused = failure(json!({"httpConnectionFailed": {"httpStatusCode": 401}}), "no");
        assert_eq!(
            (refused.reason, refused.http_status, refused.retryable),
            (FailureReason::HttpConnectionFailed, Some(401), false)
        );
        let limited = failure(
            json!({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}),
            "Rate limit reached. Please try again in 7.5s.",
        );
        assert_eq!(
            (limited.retryable, limited.retry_after),
            (true, Some(Duration::from_millis(7500)))
        );
        let other = failure(json!("other"), "unexpected status 400 Bad Request: no");
        assert_eq!(
            (other.reason, other.http_status, other.retryable),
            (FailureReason::CodexError, Some(400), false)
        );
        let newer = failure(json!({"quantumFlux": {}}), "?");
        assert_eq!(newer.reason, FailureReason::CodexError);
        assert_eq!(
            failure(json!("contextWindowExceeded"), "").reason.as_str(),
            "CONTEXT_WINDOW_EXCEEDED"
        );
    }

    #[test]
    fn the_scope_is_read_from_every_shape_of_parameters() {
        let scope_of = |value: Value| scope(&RawValue::from_string(value.to_string()).unwrap());
        let both = Scope { thread_id: Some("t".to_owned()), turn_id: Some("u".to_owned()) };
        assert_eq!(scope_of(json!({"threadId": "t", "turnId": "u"})), both);
        assert_eq!(scope_of(json!({"threadId": "t", "turn": {"id": "u", "items": []}})), both);
        assert_eq!(scope_of(json!({"threadId": null, "message": "x"})), Scope::default());
        assert_eq!(scope_of(json!(null)), Scope::default());
    }

    #[test]
    fn every_request_gets_an_answer_and_an_unknown_one_an_error() {
        for method in [
            "item/commandExecution/requestApproval",
            "item/fileChange/requestApproval",
            "item/permissions/requestApproval",
            "item/tool/requestUserInput",
            "mcpServer/elicitation/request",
            "item/tool/call",
            "execCommandApproval",
            "applyPatchApproval",
            "currentTime/read",
        ] {
            assert!(decline(method).is_ok(), "{method}");
        }
        assert_eq!(decline("hologram/project").unwrap_err().code, -32601);
    }
}
