//! From Codex's notifications and requests to what they mean, in the contract's own events.
//!
//! A newer CLI never breaks anything here: an item of an unknown type becomes
//! [`ItemKind::Unknown`](crate::model::item::ItemKind::Unknown), a notification of an unknown method or
//! shape becomes [`News::Other`].

mod agent;
mod failure;
mod history;
mod item;
mod kin;
mod parts;
mod question;
mod retry;
mod review;
mod skipped;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::app_server::mcp;
use crate::app_server::message::CallId;
use crate::app_server::settings::Settings;
use crate::model::event::{
    Event, McpServerState, McpServerStatus, ReasoningPart, TurnDiffUpdated, Usage, WarningCode,
};
use crate::model::failure::{FailureReason, TurnError};
use crate::model::item::{
    FileChange, FileChangeStatus, Item, ItemKind, TodoItem, TodoList, TodoStatus,
};
use crate::model::question::Question;

use failure::CodexTurnError;
use parts::Parts;

pub(crate) use history::{listed_item, root_turn_id, thread_turn};
pub(super) use kin::CodexThread;
pub(crate) use question::decline;
pub(crate) use skipped::{LostNews, skipped};

/// Which thread and turn a message is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The thread, where the message names one.
    pub thread_id: Option<String>,
    /// The turn, where the message names one.
    pub turn_id: Option<String>,
}

impl Scope {
    fn of(params: &Parts<'_>) -> Scope {
        let id = |name: &str| params.read::<String>(name);
        let turn_id = || params.parts("turn").read("id");
        Scope {
            // The two older approval requests name the thread so.
            thread_id: id("threadId").or_else(|| id("conversationId")),
            turn_id: id("turnId").or_else(turn_id),
        }
    }
}

/// What a notification means.
#[derive(Debug, PartialEq)]
pub enum News {
    /// An event as it is.
    Event(Event),
    /// The plan has changed; the turn makes an item of it.
    Plan(TodoList),
    /// Token counts.
    TokenUsage {
        /// Of the thread so far.
        total: Usage,
        /// Of the last model request.
        last: Usage,
        /// The model's context window in tokens.
        model_context_window: Option<u64>,
    },
    /// Codex works on the turn.
    TurnStarted {
        /// The first turn in the chain of work that led to it, where Codex says it: its own id, or
        /// for a sub-agent and a goal's continuation that of the turn that began it all.
        root_turn_id: Option<String>,
    },
    /// The turn is over.
    TurnEnded(TurnEnd),
    /// Codex withdrew one of its requests, or saw its answer.
    RequestResolved(CallId),
    /// How an MCP server of the thread does.
    McpServer {
        /// For the turn.
        status: McpServerStatus,
        /// Whether somebody must log in before the server can start: it is no use to try again at
        /// once.
        needs_login: bool,
    },
    /// What came into force on the thread.
    Settings(Settings),
    /// A thread is there. It is not the scope's.
    ThreadStarted {
        /// The new thread.
        thread_id: String,
        /// The thread of the agent that made it, where it is a sub-agent's.
        parent: Option<String>,
    },
    /// The thread is loaded no more.
    ThreadUnloaded,
    /// No turn runs on the thread, however the last one ended.
    ThreadIdle,
    /// The thread's goal changed.
    Goal {
        /// Whether Codex goes on with it by itself.
        is_active: bool,
    },
    /// Anything else.
    Other,
}

impl News {
    /// Whether the contract has no name for it.
    pub fn is_untyped(&self) -> bool {
        match self {
            News::Settings(_)
            | News::ThreadStarted { .. }
            | News::ThreadUnloaded
            | News::ThreadIdle
            | News::Goal { .. }
            | News::Other => true,
            News::Event(_)
            | News::Plan(_)
            | News::TokenUsage { .. }
            | News::TurnStarted { .. }
            | News::TurnEnded(_)
            | News::RequestResolved(_)
            | News::McpServer { .. } => false,
        }
    }
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

impl TurnEnd {
    /// What went wrong.
    pub fn failure(&self) -> Option<&str> {
        match self {
            TurnEnd::Failed(error) => Some(&error.message),
            TurnEnd::Completed | TurnEnd::Interrupted => None,
        }
    }
}

/// Reads a notification.
pub(super) fn notification(method: &str, params: &RawValue) -> (Scope, News) {
    let params = Parts::of(params);
    let news = news(method, &params).unwrap_or_else(|| {
        tracing::debug!(method, "a notification of a known method has an unknown shape");
        News::Other
    });
    (Scope::of(&params), news)
}

/// Reads a request.
pub(super) fn request(method: &str, params: &RawValue) -> (Scope, Question) {
    let parts = Parts::of(params);
    (Scope::of(&parts), question::question(method, params, &parts))
}

fn news(method: &str, params: &Parts<'_>) -> Option<News> {
    let event = match method {
        "item/started" => Event::item_started(item::item(params.get("item")?)?),
        "item/updated" => Event::item_updated(item::item(params.get("item")?)?),
        "item/completed" => Event::item_completed(item::item(params.get("item")?)?),
        "item/agentMessage/delta" => {
            Event::agent_message_delta(params.read("itemId")?, params.read("delta")?)
        }
        "item/reasoning/textDelta" | "item/reasoning/summaryTextDelta" => {
            let (part, index) = match params.read("summaryIndex")? {
                Some(index) => (ReasoningPart::Summary, index),
                None => (
                    ReasoningPart::Content,
                    params.read::<Option<u32>>("contentIndex")?.unwrap_or(0),
                ),
            };
            Event::reasoning_delta(params.read("itemId")?, params.read("delta")?, part, index)
        }
        "item/commandExecution/outputDelta" => {
            Event::command_output_delta(params.read("itemId")?, params.read("delta")?)
        }
        "item/fileChange/patchUpdated" => {
            let changes = item::changed_files(params)?;
            let change = FileChange { changes, status: FileChangeStatus::InProgress.into() };
            let id: String = params.read("itemId")?;
            Event::item_updated(Item::new(id, ItemKind::FileChange(change)))
        }
        "turn/diff/updated" => {
            Event::TurnDiffUpdated(TurnDiffUpdated { diff: params.read("diff")? })
        }
        "warning" => warning(WarningCode::Codex, params, "message")?,
        "guardianWarning" => warning(WarningCode::Guardian, params, "message")?,
        "configWarning" => warning(WarningCode::Config, params, "summary")?,
        "deprecationNotice" => warning(WarningCode::Deprecation, params, "summary")?,
        "model/rerouted" => {
            let from: String = params.read("fromModel")?;
            let to: String = params.read("toModel")?;
            let reason = params.text("reason").unwrap_or_else(|| params.json("reason"));
            let message = format!("{to} answers instead of {from}");
            Event::warning(WarningCode::ModelRerouted, message, reason)
        }
        "item/autoApprovalReview/started" | "item/autoApprovalReview/completed" => {
            Event::ApprovalReviewed(review::review(params)?)
        }
        "error" => {
            let error: CodexTurnError = params.read("error")?;
            let will_retry = params.read::<Option<bool>>("willRetry")?.unwrap_or(false);
            Event::thread_error(error.into(), will_retry)
        }
        "turn/plan/updated" => return plan(params).map(News::Plan),
        "turn/started" => {
            let root_turn_id = params.parts("turn").read("rootTurnId");
            return Some(News::TurnStarted { root_turn_id });
        }
        // One that can't be read ends all the same.
        "turn/completed" => {
            return Some(turn_ended(params).map_or(News::ThreadIdle, News::TurnEnded));
        }
        "serverRequest/resolved" => {
            return params.read("requestId").map(News::RequestResolved);
        }
        "mcpServer/startupStatus/updated" => return mcp_server(params),
        "thread/tokenUsage/updated" => return token_usage(params),
        "thread/settings/updated" => {
            // What has no settings tells unknown ones.
            let settings: Value = params.read("threadSettings").unwrap_or_default();
            return Some(News::Settings(Settings::told(&settings)));
        }
        "thread/started" => return kin::thread_started(params.get("thread")?),
        "thread/closed" => return Some(News::ThreadUnloaded),
        "thread/status/changed" => {
            let status: String = params.parts("status").read("type")?;
            return Some(match status.as_str() {
                "notLoaded" => News::ThreadUnloaded,
                // Told a moment before the turn's own end.
                "idle" | "systemError" => News::ThreadIdle,
                _ => News::Other,
            });
        }
        "thread/goal/updated" => {
            let status: String = params.parts("goal").read("status")?;
            return Some(News::Goal { is_active: status == "active" });
        }
        "thread/goal/cleared" => return Some(News::Goal { is_active: false }),
        _ => return Some(News::Other),
    };
    Some(News::Event(event))
}

/// A warning of Codex's, whose text has this name.
fn warning(code: WarningCode, params: &Parts<'_>, text: &str) -> Option<Event> {
    let message: String = params.read(text)?;
    Some(Event::warning(code, message, params.text("details")?))
}

fn plan(params: &Parts<'_>) -> Option<TodoList> {
    #[derive(Deserialize)]
    struct Step {
        step: String,
        status: String,
    }
    let steps: Vec<Step> = params.read("plan")?;
    let items = steps
        .into_iter()
        .map(|Step { step, status }| {
            let status = match status.as_str() {
                "completed" => TodoStatus::Completed,
                "inProgress" => TodoStatus::InProgress,
                _ => TodoStatus::Pending,
            };
            TodoItem::new(step, status)
        })
        .collect();
    Some(TodoList { items, explanation: params.text("explanation")? })
}

fn mcp_server(params: &Parts<'_>) -> Option<News> {
    let (server, status): (String, String) = (params.read("name")?, params.read("status")?);
    let error: Option<String> = params.read("error")?;
    let reason: Option<String> = params.read("failureReason")?;
    let state = match status.as_str() {
        "starting" => McpServerState::Starting,
        "ready" => McpServerState::Ready,
        "failed" => McpServerState::Failed,
        "cancelled" => McpServerState::Cancelled,
        _ => return None,
    };
    let status = McpServerStatus {
        server,
        state: state.into(),
        error: error.map(|error| mcp::shown(&error)).unwrap_or_default(),
    };
    let needs_login = reason.as_deref() == Some("reauthenticationRequired");
    Some(News::McpServer { status, needs_login })
}

fn token_usage(params: &Parts<'_>) -> Option<News> {
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
    let Both { total, last, model_context_window } = params.read("tokenUsage")?;
    Some(News::TokenUsage {
        total: usage(total),
        last: usage(last),
        model_context_window: model_context_window.and_then(|window| u64::try_from(window).ok()),
    })
}

/// How a turn ended; `None` where neither that nor which one is said. Whatever else can't be read, the end
/// is one: nobody would tell the turn another.
fn turn_ended(params: &Parts<'_>) -> Option<TurnEnd> {
    let turn = params.parts("turn");
    let status: Option<String> = turn.read("status");
    if status.is_none() && turn.get("id").is_none() {
        return None;
    }
    Some(match status.unwrap_or_default().as_str() {
        "completed" => TurnEnd::Completed,
        "interrupted" => TurnEnd::Interrupted,
        status => TurnEnd::Failed(match turn.read::<CodexTurnError>("error") {
            Some(error) => error.into(),
            None => {
                let told = turn.get("error").map_or("no error", |_| "an error of an unknown shape");
                let message = format!("Codex ended the turn with status {status:?} and {told}");
                let details = turn.json("error");
                TurnError { details, ..TurnError::new(FailureReason::CodexError, message) }
            }
        }),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::app_server::message::Told;
    use crate::model::event::{ItemCompleted, ItemStarted};
    use crate::model::item::{FileChangeStatus, Item, ItemKind, UnknownItem};

    fn read(method: &str, params: Value) -> (Scope, News) {
        let Told { scope, news, .. } = Told::notification(method, &params);
        (scope, news)
    }

    fn notify(method: &str, params: Value) -> News {
        read(method, params).1
    }

    fn failure(info: Value, message: &str) -> TurnError {
        let turn =
            json!({"status": "failed", "error": {"message": message, "codexErrorInfo": info}});
        match notify("turn/completed", json!({"threadId": "t", "turn": turn})) {
            News::TurnEnded(TurnEnd::Failed(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_item_of_a_newer_cli_is_passed_on_whole() {
        let item = json!({"type": "hologram", "id": "i1", "depth": 3});
        let decoded = notify("item/completed", json!({"threadId": "t", "item": item}));
        let News::Event(Event::ItemCompleted(ItemCompleted {
            item: Some(Item { id, kind: Some(ItemKind::Unknown(UnknownItem { r#type, json })) }),
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
            News::Event(Event::ItemStarted(ItemStarted {
                item: Some(Item { kind: Some(ItemKind::Unknown(_)), .. })
            }))
        ));
        // A patch that was declined is known as such.
        let item = json!({"type": "fileChange", "id": "i3", "changes": [], "status": "declined"});
        let decoded = notify("item/completed", json!({ "item": item }));
        let News::Event(Event::ItemCompleted(ItemCompleted { item: Some(item) })) = decoded else {
            panic!("{decoded:?}");
        };
        let Some(ItemKind::FileChange(change)) = item.kind else { panic!("{item:?}") };
        assert_eq!(change.status(), FileChangeStatus::Declined);
        assert_eq!(notify("thread/hologram", json!({})), News::Other);
        assert_eq!(notify("item/agentMessage/delta", json!({"delta": 7})), News::Other);
    }

    #[test]
    fn typed_failures_say_whether_to_try_again_and_when() {
        for (status, reason, retryable) in [
            (400, FailureReason::BadRequest, false),
            (401, FailureReason::Unauthorized, false),
            (403, FailureReason::HttpConnectionFailed, false),
            (404, FailureReason::HttpConnectionFailed, false),
            (408, FailureReason::HttpConnectionFailed, false),
            (429, FailureReason::RateLimitExceeded, true),
            (500, FailureReason::HttpConnectionFailed, true),
            (503, FailureReason::HttpConnectionFailed, true),
        ] {
            let info = json!({"httpConnectionFailed": {"httpStatusCode": status}});
            let error = failure(info, "no");
            let seen = (error.reason.as_str(), error.http_status, error.retryable);
            assert_eq!(seen, (reason.as_str(), Some(status), retryable));
        }
        let lost = failure(json!({"httpConnectionFailed": {"httpStatusCode": null}}), "no");
        assert_eq!((lost.http_status, lost.retryable), (None, true));
        let limited = failure(
            json!({"responseTooManyFailedAttempts": {"httpStatusCode": 429}}),
            "Rate limit reached. Please try again in 7.5s.",
        );
        assert_eq!(
            (limited.reason.as_str(), limited.retryable, limited.retry_after),
            (
                FailureReason::RateLimitExceeded.as_str(),
                true,
                Duration::from_millis(7500).try_into().ok()
            )
        );
        let other = failure(json!("other"), "unexpected status 400 Bad Request: no");
        assert_eq!(
            (other.reason.as_str(), other.http_status, other.retryable),
            (FailureReason::BadRequest.as_str(), Some(400), false)
        );
        let body = failure(json!("other"), r#"{"error": {"message": "exit status 137"}}"#);
        assert_eq!(
            (body.reason.as_str(), body.http_status),
            (FailureReason::BadRequest.as_str(), None)
        );
        let broken =
            failure(json!("other"), "stream disconnected before completion: exit status 137");
        assert_eq!(
            (broken.reason.as_str(), broken.http_status, broken.retryable),
            (FailureReason::ResponseStreamDisconnected.as_str(), None, true)
        );
        for filtered in [
            "stream disconnected before completion: Incomplete response returned, reason: content_filter",
            "Incomplete response returned, reason: max_output_tokens",
        ] {
            let filtered = failure(json!("other"), filtered);
            assert_eq!(
                (filtered.reason.as_str(), filtered.retryable),
                (FailureReason::CodexError.as_str(), false)
            );
        }
        let newer = failure(json!({"quantumFlux": {}}), "?");
        assert_eq!(newer.reason, FailureReason::CodexError.as_str());
        assert_eq!(failure(json!("contextWindowExceeded"), "").reason, "CONTEXT_WINDOW_EXCEEDED");
    }

    #[test]
    fn the_scope_is_read_from_every_shape_of_parameters() {
        let scope_of = |params: Value| read("warning", params).0;
        let both = Scope { thread_id: Some("t".to_owned()), turn_id: Some("u".to_owned()) };
        assert_eq!(scope_of(json!({"threadId": "t", "turnId": "u"})), both);
        assert_eq!(scope_of(json!({"threadId": "t", "turn": {"id": "u", "items": []}})), both);
        assert_eq!(scope_of(json!({"conversationId": "t", "turnId": "u"})), both);
        assert_eq!(scope_of(json!({"threadId": null, "message": "x"})), Scope::default());
        assert_eq!(scope_of(json!(null)), Scope::default());
    }

    #[test]
    fn a_parent_is_read_wherever_a_cli_tells_it() {
        let thread = |thread: Value| notify("thread/started", json!({ "thread": thread }));
        let child = |parent: Option<&str>| News::ThreadStarted {
            thread_id: "c".to_owned(),
            parent: parent.map(str::to_owned),
        };
        assert_eq!(
            thread(json!({"id": "c", "parentThreadId": null, "source": "vscode"})),
            child(None)
        );
        assert_eq!(thread(json!({"id": "c", "parentThreadId": "p"})), child(Some("p")));
        let source = json!({"subAgent": {"thread_spawn": {"parent_thread_id": "p", "depth": 1}}});
        assert_eq!(thread(json!({"id": "c", "source": source})), child(Some("p")));
        let agents = |method: &str, item: Value| {
            let news = notify(method, json!({"threadId": "p", "item": item}));
            let News::Event(
                Event::ItemStarted(ItemStarted { item: Some(item) })
                | Event::ItemCompleted(ItemCompleted { item: Some(item) }),
            ) = news
            else {
                panic!("{news:?}");
            };
            let Some(ItemKind::SubAgent(told)) = item.kind else { panic!("{item:?}") };
            let agents: Vec<String> =
                told.agents.into_iter().map(|agent| agent.thread_id).collect();
            (told.sender_thread_id, agents)
        };
        let call = json!({"type": "collabAgentToolCall", "id": "i", "tool": "spawnAgent",
            "status": "completed", "senderThreadId": "p", "receiverThreadIds": ["c"],
            "agentsStates": {"c": {"status": "pendingInit", "message": null}}});
        assert_eq!(agents("item/completed", call), ("p".to_owned(), vec!["c".to_owned()]));
        let activity = json!({"type": "subAgentActivity", "id": "i", "kind": "started",
            "agentThreadId": "c", "agentPath": "/root/c"});
        assert_eq!(agents("item/started", activity), (String::new(), vec!["c".to_owned()]));
    }

    #[test]
    fn turns_goals_and_ends_of_threads_are_read() {
        let turn = json!({"threadId": "t", "turn": {"id": "u", "rootTurnId": "r"}});
        let (scope, news) = read("turn/started", turn);
        assert_eq!(scope.turn_id.as_deref(), Some("u"));
        assert_eq!(news, News::TurnStarted { root_turn_id: Some("r".to_owned()) });
        let goal = |status: &str| {
            let params = json!({"threadId": "t", "turnId": null, "goal": {"status": status}});
            match notify("thread/goal/updated", params) {
                News::Goal { is_active } => is_active,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([goal("active"), goal("complete"), goal("blocked")], [true, false, false]);
        let cleared = notify("thread/goal/cleared", json!({"threadId": "t"}));
        assert_eq!(cleared, News::Goal { is_active: false });
        let status = |status: &str| {
            notify("thread/status/changed", json!({"threadId": "t", "status": {"type": status}}))
        };
        assert_eq!(status("active"), News::Other);
        assert_eq!(status("idle"), News::ThreadIdle);
        assert_eq!(status("notLoaded"), News::ThreadUnloaded);
        // A turn whose end can't be read has ended.
        assert_eq!(notify("turn/completed", json!({"threadId": "t"})), News::ThreadIdle);
    }

    #[test]
    fn the_end_of_a_turn_is_one_whatever_of_it_can_be_read() {
        let end =
            |turn: Value| match notify("turn/completed", json!({"threadId": "t", "turn": turn})) {
                News::TurnEnded(end) => end,
                other => panic!("{other:?}"),
            };
        let odd = json!({"message": null});
        let completed = end(json!({"id": "u", "status": "completed", "error": odd}));
        assert_eq!(completed, TurnEnd::Completed);
        let interrupted = end(json!({"id": "u", "status": "interrupted", "error": 7}));
        assert_eq!(interrupted, TurnEnd::Interrupted);
        let failed = |turn: Value| match end(turn) {
            TurnEnd::Failed(error) => (error.reason, error.message, error.details),
            other => panic!("{other:?}"),
        };
        let (reason, message, details) =
            failed(json!({"id": "u", "status": "failed", "error": odd}));
        assert_eq!(reason, FailureReason::CodexError.as_str());
        assert!(message.contains("\"failed\""), "{message}");
        assert_eq!(details, odd.to_string());
        for (turn, told) in [
            (json!({"id": "u", "status": {"type": "failed"}, "error": {"message": "m"}}), "m"),
            (json!({"id": "u"}), "no error"),
        ] {
            let (_, message, _) = failed(turn);
            assert!(message.contains(told), "{message}");
        }
    }

    #[test]
    fn the_status_of_an_mcp_server_is_read_and_an_unknown_one_is_not() {
        let read = |params: Value| match notify("mcpServer/startupStatus/updated", params) {
            News::McpServer { status, needs_login } => Some((status, needs_login)),
            News::Other => None,
            other => panic!("{other:?}"),
        };
        let failed = |error: &str, reason: Option<&str>| {
            json!({"threadId": "t", "name": "a", "status": "failed", "error": error,
                "failureReason": reason})
        };
        let expected = McpServerStatus {
            server: "a".to_owned(),
            state: McpServerState::Failed.into(),
            error: "no".to_owned(),
        };
        assert_eq!(read(failed("no", None)), Some((expected.clone(), false)));
        let login = Some("reauthenticationRequired");
        assert_eq!(read(failed("no", login)), Some((expected, true)));
        assert_eq!(read(json!({"name": "a", "status": "dreaming", "error": null})), None);
        let (long, _) = read(failed(&"é".repeat(10_000), None)).unwrap();
        assert!(long.error.len() <= 4096);
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
