//! From Codex's notifications and requests to this project's events.
//!
//! A newer CLI never breaks anything here: an item of an unknown type becomes
//! [`ItemKind::Unknown`](crate::model::item::ItemKind::Unknown), a notification of an unknown method becomes [`Decoded::Untyped`].

mod agent;
mod failure;
mod item;
mod kinship;
mod question;
mod retry;
mod skipped;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::app_server::mcp;
use crate::app_server::message::Notification;
use crate::app_server::settings::Settings;
use crate::model::event::{Event, ReasoningPart, TurnDiffUpdated, Usage, WarningCode};
use crate::model::failure::{FailureReason, TurnError};
use crate::model::item::{TodoItem, TodoList, TodoStatus};

use failure::CodexTurnError;
use item::{item, patch};

pub use kinship::{Kinship, ThreadRead, failure_of, kinship};
pub use question::{decline, question};
pub use skipped::{LostNews, skipped};

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
    Plan(TodoList),
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

/// What came into force, where the notification tells that.
pub fn settings(Notification { method, params }: &Notification) -> Option<Settings> {
    if method != "thread/settings/updated" {
        return None;
    }
    // What has no settings tells unknown ones.
    let params: Value = serde_json::from_str(params.get()).unwrap_or_default();
    Some(Settings::told(&params["threadSettings"]))
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
        "item/started" => Event::item_started(item(params)?),
        "item/updated" => Event::item_updated(item(params)?),
        "item/completed" => Event::item_completed(item(params)?),
        "item/agentMessage/delta" => {
            let Delta { item_id, delta } = read(params)?;
            Event::agent_message_delta(item_id, delta)
        }
        "item/reasoning/textDelta" | "item/reasoning/summaryTextDelta" => reasoning_delta(params)?,
        "item/commandExecution/outputDelta" => {
            let Delta { item_id, delta } = read(params)?;
            Event::command_output_delta(item_id, delta)
        }
        "item/fileChange/patchUpdated" => Event::item_updated(patch(params)?),
        "turn/diff/updated" => {
            #[derive(Deserialize)]
            struct Params {
                diff: String,
            }
            Event::TurnDiffUpdated(TurnDiffUpdated { diff: read::<Params>(params)?.diff })
        }
        "warning" | "guardianWarning" => {
            #[derive(Deserialize)]
            struct Params {
                message: String,
            }
            let code = match method.as_str() {
                "warning" => WarningCode::Codex,
                _ => WarningCode::Guardian,
            };
            let Params { message } = read(params)?;
            Event::warning(code, message, "")
        }
        "configWarning" | "deprecationNotice" => {
            #[derive(Deserialize)]
            struct Params {
                summary: String,
                details: Option<String>,
            }
            let Params { summary, details } = read(params)?;
            let code = match method.as_str() {
                "configWarning" => WarningCode::Config,
                _ => WarningCode::Deprecation,
            };
            Event::warning(code, summary, details.unwrap_or_default())
        }
        "model/rerouted" => {
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Params {
                from_model: String,
                to_model: String,
                #[serde(default)]
                reason: Value,
            }
            let Params { from_model, to_model, reason } = read(params)?;
            let details = match reason {
                Value::Null => String::new(),
                Value::String(reason) => reason,
                reason => reason.to_string(),
            };
            let message = format!("{to_model} answers instead of {from_model}");
            Event::warning(WarningCode::ModelRerouted, message, details)
        }
        mcp::STARTUP_STATUS => Event::McpServerStatus(mcp::startup_status(params)?.status),
        "error" => {
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Params {
                error: CodexTurnError,
                #[serde(default)]
                will_retry: bool,
            }
            let Params { error, will_retry } = read(params)?;
            Event::thread_error(error.into(), will_retry)
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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Delta {
    item_id: String,
    delta: String,
}

fn reasoning_delta(params: &str) -> Option<Event> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        item_id: String,
        delta: String,
        summary_index: Option<u32>,
        #[serde(default)]
        content_index: u32,
    }
    let Params { item_id, delta, summary_index, content_index } = read(params)?;
    let (part, index) = match summary_index {
        Some(index) => (ReasoningPart::Summary, index),
        None => (ReasoningPart::Content, content_index),
    };
    Some(Event::reasoning_delta(item_id, delta, part, index))
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
        .map(|Step { step, status }| {
            let status = match status.as_str() {
                "completed" => TodoStatus::Completed,
                "inProgress" => TodoStatus::InProgress,
                _ => TodoStatus::Pending,
            };
            TodoItem::new(step, status)
        })
        .collect();
    Some(Decoded::Plan(TodoList { items, explanation: explanation.unwrap_or_default() }))
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
        (status, None) => TurnEnd::Failed(TurnError::new(
            FailureReason::CodexError,
            format!("Codex ended the turn with status {status:?} and no error"),
        )),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::model::event::{ItemCompleted, ItemStarted};
    use crate::model::item::{FileChangeStatus, Item, ItemKind, UnknownItem};

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
        let Decoded::Event(Event::ItemCompleted(ItemCompleted {
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
            Decoded::Event(Event::ItemStarted(ItemStarted {
                item: Some(Item { kind: Some(ItemKind::Unknown(_)), .. })
            }))
        ));
        // A patch that was declined is known as such.
        let item = json!({"type": "fileChange", "id": "i3", "changes": [], "status": "declined"});
        let decoded = notify("item/completed", json!({ "item": item }));
        let Decoded::Event(Event::ItemCompleted(ItemCompleted { item: Some(item) })) = decoded
        else {
            panic!("{decoded:?}");
        };
        let Some(ItemKind::FileChange(change)) = item.kind else { panic!("{item:?}") };
        assert_eq!(change.status(), FileChangeStatus::Declined);
        assert_eq!(notify("thread/hologram", json!({})), Decoded::Untyped);
        assert_eq!(notify("item/agentMessage/delta", json!({"delta": 7})), Decoded::Untyped);
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
