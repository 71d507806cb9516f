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

fn exec_command(kind: &str, command: &pb::CommandExecution) -> Value {
    let pb::CommandExecution { command, working_directory, .. } = command;
    let words = shlex::split(command).unwrap_or_else(|| vec![command.clone()]);
    json!({ "type": kind, "command": words, "cwd": working_directory })
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
