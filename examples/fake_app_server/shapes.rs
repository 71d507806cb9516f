//! The JSON of app-server 0.169.0, field by field.

use serde_json::{Map, Value, json};

use crate::output::now_ms;
use crate::threads::{Thread, ThreadState, Usage};

/// An error answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RpcError {
    pub(crate) code: i64,
    pub(crate) message: String,
    pub(crate) data: Value,
}

impl RpcError {
    /// Codex's code of nearly every refusal.
    pub(crate) fn refused(message: impl Into<String>) -> RpcError {
        RpcError { code: -32600, message: message.into(), data: Value::Null }
    }

    pub(crate) fn json(&self) -> Value {
        let RpcError { code, message, data } = self;
        if data.is_null() {
            json!({ "code": code, "message": message })
        } else {
            json!({ "code": code, "data": data, "message": message })
        }
    }
}

/// A thread; `state` is absent for one that is not loaded.
pub(crate) fn thread(thread: &Thread, state: Option<&ThreadState>, version: &str) -> Value {
    let setting =
        |key: &str| state.and_then(|state| state.settings.get(key).cloned()).unwrap_or_default();
    let status = match state {
        Some(state) if state.active.is_some() => "active",
        Some(_) => "idle",
        None => "notLoaded",
    };
    let cwd = state.map_or(Value::from("/"), |state| state.cwd());
    json!({
        "id": thread.id,
        "environments": state.map(|_| json!([{
            "environmentId": "local", "cwd": cwd, "runtimeWorkspaceRoots": [cwd],
        }])),
        "extra": null,
        "sessionId": thread.id,
        "forkedFromId": null,
        "attachedToThreadId": null,
        "parentThreadId": null,
        "preview": state.map_or("", |state| &state.preview),
        "ephemeral": thread.path.is_none(),
        "section": null,
        "sectionEnteredAt": null,
        "projectId": null,
        "historyMode": "paginated",
        "modelProvider": "fake",
        "model": setting("model"),
        "reasoningEffort": setting("effort"),
        "createdAt": thread.created_at,
        "updatedAt": now_ms() / 1000,
        "recencyAt": now_ms() / 1000,
        "status": { "type": status },
        "path": thread.path,
        "cwd": cwd,
        "cliVersion": version,
        "originator": "codex_sidecar",
        "source": "vscode",
        "canAcceptDirectInput": state.map(|_| true),
        "threadSource": null,
        "agentNickname": null,
        "agentRole": null,
        "gitInfo": null,
        "name": null,
        "daybreakEnabled": null,
        "turns": [],
    })
}

/// The answer to `thread/start` and `thread/resume`.
pub(crate) fn opened(thread: Value, state: &ThreadState) -> Value {
    let setting = |key: &str| state.settings.get(key).cloned().unwrap_or_default();
    json!({
        "thread": thread,
        "model": setting("model"),
        "modelProvider": "fake",
        "serviceTier": null,
        "disabledPluginIds": [],
        "cwd": state.cwd(),
        "runtimeWorkspaceRoots": [state.cwd()],
        "instructionSources": [],
        "approvalPolicy": setting("approvalPolicy"),
        "approvalsReviewer": "user",
        "sandbox": setting("sandboxPolicy"),
        "activePermissionProfile": { "id": ":read-only", "extends": null },
        "reasoningEffort": setting("effort"),
        "multiAgentMode": "explicitRequestOnly",
    })
}

/// What `thread/settings/updated` tells.
pub(crate) fn settings(state: &ThreadState) -> Value {
    let setting = |key: &str| state.settings.get(key).cloned().unwrap_or_default();
    json!({
        "disabledPluginIds": [],
        "cwd": state.cwd(),
        "environments": null,
        "approvalPolicy": setting("approvalPolicy"),
        "approvalsReviewer": "user",
        "sandboxPolicy": setting("sandboxPolicy"),
        "activePermissionProfile": null,
        "model": setting("model"),
        "modelProvider": "fake",
        "serviceTier": null,
        "effort": setting("effort"),
        "summary": setting("summary"),
        "collaborationMode": {
            "mode": "default",
            "settings": {
                "model": setting("model"), "reasoning_effort": setting("effort"), "developer_instructions": null,
            },
        },
        "multiAgentMode": "explicitRequestOnly",
        "personality": null,
    })
}

/// A turn. The times are in milliseconds; absent before they have come.
pub(crate) fn turn(
    (id, root): (&str, &str),
    status: &str,
    error: Value,
    started: Option<u64>,
    last_item: Option<&Value>,
) -> Value {
    let ended = (status != "inProgress").then(now_ms);
    json!({
        "id": id,
        "rootTurnId": root,
        "items": last_item.into_iter().collect::<Vec<_>>(),
        "itemsView": if last_item.is_some() { "summary" } else { "notLoaded" },
        "status": status,
        "error": error,
        "startedAt": started.map(|at| at / 1000),
        "completedAt": ended.map(|at| at / 1000),
        "durationMs": ended.zip(started).map(|(ended, started)| ended.saturating_sub(started)),
    })
}

/// The error of a turn.
pub(crate) fn turn_error(info: &Value, message: &str, details: Value) -> Value {
    json!({ "message": message, "codexErrorInfo": info, "additionalDetails": details, "misalignment": null })
}

pub(crate) fn user_message(id: &str, input: &Value) -> Value {
    let mut content = input.clone();
    for part in content.as_array_mut().into_iter().flatten() {
        if part["type"] == "text" && part.get("text_elements").is_none() {
            part["text_elements"] = json!([]);
        }
    }
    json!({ "type": "userMessage", "id": id, "clientId": null, "content": content })
}

pub(crate) fn agent_message(id: &str, text: &str) -> Value {
    json!({
        "type": "agentMessage",
        "moderation": null,
        "id": id,
        "text": text,
        "phase": null,
        "memoryCitation": null,
        "delivery": null,
        "questions": null,
    })
}

pub(crate) fn reasoning(id: &str, summary: &[&str]) -> Value {
    json!({ "type": "reasoning", "id": id, "summary": summary, "content": [] })
}

/// A command; its outcome is absent while it runs.
pub(crate) fn command(
    id: &str,
    command: &str,
    cwd: &Value,
    process_id: Option<&str>,
) -> Map<String, Value> {
    let item = json!({
        "type": "commandExecution",
        "id": id,
        "pluginId": null,
        "scriptPath": null,
        "command": format!("/bin/bash -lc {}", quoted(command)),
        "cwd": cwd,
        "processId": process_id,
        "source": "unifiedExecStartup",
        "status": "inProgress",
        "commandActions": [{ "type": "unknown", "command": command }],
        "aggregatedOutput": null,
        "exitCode": null,
        "durationMs": null,
    });
    item.as_object().cloned().unwrap_or_default()
}

fn quoted(command: &str) -> String {
    if command.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c)) {
        command.to_owned()
    } else {
        format!("'{}'", command.replace('\'', r"'\''"))
    }
}

/// The counts of a thread, and of its last model request.
pub(crate) fn token_usage(total: &Usage, last: &Usage) -> Value {
    let counts = |usage: &Usage| {
        json!({
            "totalTokens": usage.input + usage.output,
            "inputTokens": usage.input,
            "cachedInputTokens": usage.cached,
            "cacheWriteInputTokens": 0,
            "outputTokens": usage.output,
            "reasoningOutputTokens": 0,
        })
    };
    json!({ "total": counts(total), "last": counts(last), "modelContextWindow": 258_400 })
}

/// The parameters that a request of Codex has, of which a script may replace any.
pub(crate) fn request(
    method: &str,
    thread_id: &str,
    turn_id: &str,
    item_id: &str,
    cwd: &Value,
) -> Value {
    let mut params = json!({ "threadId": thread_id, "turnId": turn_id });
    if method == "item/commandExecution/requestApproval" {
        let own = json!({
            "kind": "command", "itemId": item_id, "startedAtMs": now_ms(), "environmentId": "local",
            "reason": "may I?", "command": "/bin/bash -lc 'make check'", "cwd": cwd,
            "commandActions": [{ "type": "unknown", "command": "make check" }],
            "availableDecisions": ["accept", "cancel"],
        });
        merge(&mut params, &own);
    }
    params
}

/// Puts the fields of one object over those of another.
pub(crate) fn merge(params: &mut Value, over: &Value) {
    if let (Some(params), Some(over)) = (params.as_object_mut(), over.as_object()) {
        params.extend(over.clone());
    }
}
