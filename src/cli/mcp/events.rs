//! The events of a turn as `codex mcp-server` told them, as far as the contract has them.
//!
//! There they were the events of Codex's core, by their own names. Clients of it read who said what,
//! which commands ran and how a turn ended; these are here. The raw items of the model's answers are not.

use base64::Engine as _;
use serde_json::{Map, Value, json};

use crate::pb;
use crate::pb::item::Kind;
use crate::pb::turn_event::Event;

/// The thread and the turn that an event is of, by Codex's ids.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thread<'a> {
    pub(super) thread_id: &'a str,
    pub(super) turn_id: &'a str,
}

/// The messages that an event makes; `last_message` is the agent's so far.
pub(super) fn messages(event: &Event, thread: Thread<'_>, last_message: &str) -> Vec<Value> {
    let Thread { thread_id, turn_id } = thread;
    let message = match event {
        Event::TurnStarted(pb::TurnStarted { settings, .. }) => {
            let started = json!({ "type": "task_started", "turn_id": turn_id });
            let configured = settings.as_ref().map(|settings| session_configured(settings, thread));
            return configured.into_iter().chain([started]).collect();
        }
        Event::AgentMessageDelta(pb::AgentMessageDelta { item_id, text }) => json!({
            "type": "agent_message_content_delta",
            "thread_id": thread_id,
            "turn_id": turn_id,
            "item_id": item_id,
            "delta": text,
        }),
        Event::CommandOutputDelta(pb::CommandOutputDelta { item_id, text }) => json!({
            "type": "exec_command_output_delta",
            "call_id": item_id,
            "stream": "stdout",
            "chunk": base64::prelude::BASE64_STANDARD.encode(text),
        }),
        Event::ItemStarted(pb::ItemStarted { item: Some(item) }) => match begun(item, turn_id) {
            Some(message) => message,
            None => return Vec::new(),
        },
        Event::ItemCompleted(pb::ItemCompleted { item: Some(item) }) => {
            match ended(item, turn_id) {
                Some(message) => message,
                None => return Vec::new(),
            }
        }
        Event::ItemUpdated(pb::ItemUpdated { item: Some(item) }) => match &item.kind {
            Some(Kind::TodoList(list)) => plan(list),
            _ => return Vec::new(),
        },
        Event::TurnDiffUpdated(pb::TurnDiffUpdated { diff }) => {
            json!({ "type": "turn_diff", "unified_diff": diff })
        }
        Event::TokenUsageUpdated(update) => json!({
            "type": "token_count",
            "info": {
                "total_token_usage": usage(update.thread_usage.as_ref()),
                "last_token_usage": usage(update.last_request_usage.as_ref()),
                "model_context_window": update.model_context_window,
            },
        }),
        Event::Warning(pb::Warning { message, .. }) => {
            json!({ "type": "warning", "message": message })
        }
        Event::ThreadError(pb::ThreadError { error: Some(error), will_retry }) => {
            let kind = if *will_retry { "stream_error" } else { "error" };
            json!({ "type": kind, "message": error.message })
        }
        Event::RequestRaised(pb::RequestRaised { request: Some(request) }) => {
            match approval_request(request, turn_id) {
                Some(message) => message,
                None => return Vec::new(),
            }
        }
        Event::TurnCompleted(_) => json!({
            "type": "task_complete",
            "turn_id": turn_id,
            "last_agent_message": (!last_message.is_empty()).then_some(last_message),
        }),
        Event::TurnFailed(pb::TurnFailed { error: Some(error), .. }) => {
            json!({ "type": "error", "message": error.message })
        }
        Event::TurnInterrupted(_) => {
            json!({ "type": "turn_aborted", "turn_id": turn_id, "reason": "interrupted" })
        }
        _ => return Vec::new(),
    };
    vec![message]
}

/// What is worth a word to somebody who watches a progress bar.
pub(super) fn progress(event: &Event) -> Option<String> {
    match event {
        Event::Queued(pb::Queued { position }) => Some(format!("waiting, number {position}")),
        Event::TurnStarted(_) => Some("started".to_owned()),
        Event::ItemStarted(pb::ItemStarted { item: Some(item) }) => match item.kind.as_ref()? {
            Kind::CommandExecution(command) => Some(format!("exec: {}", command.command)),
            Kind::McpToolCall(call) => Some(format!("mcp: {}/{}", call.server, call.tool)),
            Kind::FileChange(_) => Some("apply patch".to_owned()),
            Kind::WebSearch(_) => Some("web search".to_owned()),
            Kind::Reasoning(_) => Some("thinking".to_owned()),
            Kind::AgentMessage(_) => Some("answering".to_owned()),
            _ => None,
        },
        Event::ThreadError(pb::ThreadError { error, .. }) => Some(error.as_ref()?.message.clone()),
        Event::RequestRaised(_) => Some("waiting for an answer".to_owned()),
        _ => None,
    }
}

fn session_configured(settings: &pb::TurnSettings, thread: Thread<'_>) -> Value {
    let approval_policy = match settings.approval_policy() {
        pb::ApprovalPolicy::Unspecified => Value::Null,
        pb::ApprovalPolicy::Never => json!("never"),
        pb::ApprovalPolicy::OnRequest => json!("on-request"),
        pb::ApprovalPolicy::OnFailure => json!("on-failure"),
        pb::ApprovalPolicy::Untrusted => json!("untrusted"),
    };
    json!({
        "type": "session_configured",
        "session_id": thread.thread_id,
        "thread_id": thread.thread_id,
        "model": settings.model,
        "model_provider_id": settings.model_provider,
        "approval_policy": approval_policy,
        "cwd": settings.working_directory,
    })
}

fn begun(item: &pb::Item, turn_id: &str) -> Option<Value> {
    let call_id = &item.id;
    Some(match item.kind.as_ref()? {
        Kind::CommandExecution(command) => {
            let mut message = exec_command("exec_command_begin", command);
            message["call_id"] = json!(call_id);
            message["turn_id"] = json!(turn_id);
            message
        }
        Kind::FileChange(change) => json!({
            "type": "patch_apply_begin",
            "call_id": call_id,
            "turn_id": turn_id,
            "changes": changes(&change.changes),
        }),
        Kind::McpToolCall(call) => json!({
            "type": "mcp_tool_call_begin",
            "call_id": call_id,
            "invocation": invocation(call),
        }),
        Kind::WebSearch(_) => json!({ "type": "web_search_begin", "call_id": call_id }),
        Kind::TodoList(list) => plan(list),
        _ => return None,
    })
}

fn ended(item: &pb::Item, turn_id: &str) -> Option<Value> {
    let call_id = &item.id;
    Some(match item.kind.as_ref()? {
        Kind::AgentMessage(message) => json!({ "type": "agent_message", "message": message.text }),
        Kind::Reasoning(reasoning) if !reasoning.summary.is_empty() => {
            json!({ "type": "agent_reasoning", "text": reasoning.summary.join("\n") })
        }
        Kind::CommandExecution(command) => {
            use pb::CommandExecutionStatus as Status;
            let mut message = exec_command("exec_command_end", command);
            let took = command.duration.unwrap_or_default();
            let status = match command.status() {
                Status::Unspecified | Status::InProgress => "in_progress",
                Status::Completed => "completed",
                Status::Failed => "failed",
                Status::Declined => "declined",
            };
            for (key, value) in [
                ("call_id", json!(call_id)),
                ("turn_id", json!(turn_id)),
                ("aggregated_output", json!(command.aggregated_output)),
                ("exit_code", json!(command.exit_code)),
                ("duration", json!({ "secs": took.seconds, "nanos": took.nanos })),
                ("status", json!(status)),
            ] {
                message[key] = value;
            }
            message
        }
        Kind::FileChange(change) => json!({
            "type": "patch_apply_end",
            "call_id": call_id,
            "turn_id": turn_id,
            "success": change.status() == pb::FileChangeStatus::Completed,
            "changes": changes(&change.changes),
        }),
        Kind::McpToolCall(call) => {
            let result: Value = serde_json::from_str(&call.result_json).unwrap_or_default();
            let result = if call.error_message.is_empty() {
                json!({ "Ok": result })
            } else {
                json!({ "Err": call.error_message })
            };
            json!({
                "type": "mcp_tool_call_end",
                "call_id": call_id,
                "invocation": invocation(call),
                "result": result,
            })
        }
        Kind::WebSearch(search) => {
            json!({ "type": "web_search_end", "call_id": call_id, "query": search.query })
        }
        _ => return None,
    })
}

fn approval_request(request: &pb::CodexRequest, turn_id: &str) -> Option<Value> {
    use pb::codex_request::Kind;
    Some(match request.kind.as_ref()? {
        Kind::CommandApproval(approval) => json!({
            "type": "exec_approval_request",
            "call_id": request.item_id,
            "turn_id": turn_id,
            "command": words(&approval.command),
            "cwd": approval.working_directory,
            "reason": approval.reason,
        }),
        Kind::FileChangeApproval(approval) => json!({
            "type": "apply_patch_approval_request",
            "call_id": request.item_id,
            "turn_id": turn_id,
            "changes": changes(&approval.changes),
            "reason": approval.reason,
        }),
        _ => return None,
    })
}

fn exec_command(kind: &str, command: &pb::CommandExecution) -> Value {
    let pb::CommandExecution { command, working_directory, .. } = command;
    json!({ "type": kind, "command": words(command), "cwd": working_directory })
}

/// The words of a command line, as Codex had them.
pub(super) fn words(command: &str) -> Vec<String> {
    shlex::split(command).unwrap_or_else(|| vec![command.to_owned()])
}

fn invocation(call: &pb::McpToolCall) -> Value {
    let arguments: Value = serde_json::from_str(&call.arguments_json).unwrap_or_default();
    json!({ "server": call.server, "tool": call.tool, "arguments": arguments })
}

/// Files and what becomes of them.
pub(super) fn changes(files: &[pb::ChangedFile]) -> Value {
    let change = |file: &pb::ChangedFile| {
        let change = match file.kind() {
            pb::FileChangeKind::Add => json!({ "type": "add", "content": file.diff }),
            pb::FileChangeKind::Delete => json!({ "type": "delete", "content": file.diff }),
            pb::FileChangeKind::Unspecified | pb::FileChangeKind::Update => json!({
                "type": "update",
                "unified_diff": file.diff,
                "move_path": (!file.move_path.is_empty()).then_some(&file.move_path),
            }),
        };
        (file.path.clone(), change)
    };
    Value::Object(files.iter().map(change).collect::<Map<_, _>>())
}

fn plan(list: &pb::TodoList) -> Value {
    let step = |item: &pb::TodoItem| {
        let status = match item.status() {
            _ if item.completed => "completed",
            pb::TodoStatus::InProgress => "in_progress",
            _ => "pending",
        };
        json!({ "step": item.text, "status": status })
    };
    let explanation = (!list.explanation.is_empty()).then_some(&list.explanation);
    let steps: Vec<Value> = list.items.iter().map(step).collect();
    json!({ "type": "plan_update", "explanation": explanation, "plan": steps })
}

fn usage(usage: Option<&pb::Usage>) -> Value {
    usage.map_or(Value::Null, |usage| {
        json!({
            "input_tokens": usage.input_tokens,
            "cached_input_tokens": usage.cached_input_tokens,
            "cache_write_input_tokens": usage.cache_write_input_tokens,
            "output_tokens": usage.output_tokens,
            "reasoning_output_tokens": usage.reasoning_output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREAD: Thread<'_> = Thread { thread_id: "thread", turn_id: "turn" };

    fn only(event: Event) -> Value {
        let mut told = messages(&event, THREAD, "so far");
        assert_eq!(told.len(), 1, "{told:?}");
        told.remove(0)
    }

    fn started(kind: Kind) -> Event {
        let item = Some(pb::Item { id: "i".to_owned(), kind: Some(kind) });
        Event::ItemStarted(pb::ItemStarted { item })
    }

    #[test]
    fn an_approval_and_an_end_have_their_old_names() {
        let approval = pb::CommandApproval {
            command: "sh -c 'a b'".to_owned(),
            working_directory: "/w".to_owned(),
            ..Default::default()
        };
        let request = pb::CodexRequest {
            item_id: "i".to_owned(),
            kind: Some(pb::codex_request::Kind::CommandApproval(approval)),
            ..Default::default()
        };
        let raised = Event::RequestRaised(pb::RequestRaised { request: Some(request) });
        let told = only(raised);
        assert_eq!(
            (&told["type"], &told["call_id"]),
            (&json!("exec_approval_request"), &json!("i"))
        );
        assert_eq!(told["command"], json!(["sh", "-c", "a b"]));

        let completed = only(Event::TurnCompleted(pb::TurnCompleted::default()));
        assert_eq!(completed["last_agent_message"], "so far");
        let aborted = only(Event::TurnInterrupted(pb::TurnInterrupted::default()));
        assert_eq!(
            (&aborted["type"], &aborted["turn_id"]),
            (&json!("turn_aborted"), &json!("turn"))
        );
        let error = Some(pb::TurnError { message: "boom".to_owned(), ..Default::default() });
        for (will_retry, kind) in [(true, "stream_error"), (false, "error")] {
            let error = error.clone();
            let told = only(Event::ThreadError(pb::ThreadError { error, will_retry }));
            assert_eq!((&told["type"], &told["message"]), (&json!(kind), &json!("boom")));
        }
    }

    #[test]
    fn changes_are_by_their_files_and_steps_by_their_state() {
        let file = |path: &str, kind: pb::FileChangeKind, move_path: &str| pb::ChangedFile {
            path: path.to_owned(),
            kind: kind.into(),
            diff: "d".to_owned(),
            move_path: move_path.to_owned(),
        };
        let files = [
            file("a", pb::FileChangeKind::Add, ""),
            file("b", pb::FileChangeKind::Delete, ""),
            file("c", pb::FileChangeKind::Update, "e"),
        ];
        let expected = json!({
            "a": { "type": "add", "content": "d" },
            "b": { "type": "delete", "content": "d" },
            "c": { "type": "update", "unified_diff": "d", "move_path": "e" },
        });
        assert_eq!(changes(&files), expected);
        let step = |completed, status: pb::TodoStatus| {
            let status = status.into();
            pb::TodoItem { text: "s".to_owned(), completed, status }
        };
        let items =
            vec![step(true, pb::TodoStatus::Unspecified), step(false, pb::TodoStatus::Pending)];
        let list = pb::TodoList { items, explanation: String::new() };
        let told = only(started(Kind::TodoList(list)));
        let states: Vec<&Value> =
            told["plan"].as_array().unwrap().iter().map(|step| &step["status"]).collect();
        assert_eq!(states, ["completed", "pending"]);
        assert_eq!(told["explanation"], Value::Null);
    }

    #[test]
    fn what_nobody_knew_there_is_not_told() {
        for event in [
            Event::Queued(pb::Queued { position: 1 }),
            Event::RequestResolved(pb::RequestResolved::default()),
            started(Kind::ImageView(pb::ImageView::default())),
        ] {
            assert_eq!(messages(&event, THREAD, ""), Vec::<Value>::new());
        }
        assert_eq!(
            progress(&Event::Queued(pb::Queued { position: 1 })).as_deref(),
            Some("waiting, number 1")
        );
    }
}
