//! An item of the contract as `codex exec --json` shows it.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Message;
use crate::pb;
use crate::pb::item::Kind;

#[derive(Debug, Serialize)]
pub(in crate::cli::exec) struct Item<'a> {
    pub(super) id: String,
    #[serde(flatten)]
    pub(super) details: Details<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Details<'a> {
    AgentMessage {
        text: &'a str,
    },
    Reasoning {
        text: String,
    },
    CommandExecution {
        command: &'a str,
        aggregated_output: &'a str,
        exit_code: Option<i32>,
        status: &'static str,
    },
    FileChange {
        changes: Vec<Change<'a>>,
        status: &'static str,
    },
    McpToolCall {
        server: &'a str,
        tool: &'a str,
        arguments: Value,
        result: Option<McpResult>,
        error: Option<Message>,
        status: &'static str,
    },
    CollabToolCall {
        tool: String,
        sender_thread_id: Value,
        receiver_thread_ids: Value,
        prompt: Value,
        agents_states: Value,
        status: String,
    },
    WebSearch {
        // Codex's own id, a second `id` beside the item's: so does the real one.
        id: &'a str,
        query: &'a str,
        action: Value,
    },
    TodoList {
        items: Vec<Todo<'a>>,
    },
    Error {
        message: String,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct Change<'a> {
    path: &'a str,
    kind: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct McpResult {
    content: Value,
    structured_content: Value,
}

#[derive(Debug, Serialize)]
pub(super) struct Todo<'a> {
    text: &'a str,
    completed: bool,
}

/// What an item shows; `None` for one that is not shown.
pub(super) fn details(item: &pb::Item) -> Option<Details<'_>> {
    Some(match item.kind.as_ref()? {
        Kind::AgentMessage(pb::AgentMessage { text, phase: _ }) => Details::AgentMessage { text },
        Kind::Reasoning(pb::Reasoning { summary, content: _ }) => {
            let text = summary.join("\n");
            if text.trim().is_empty() {
                return None;
            }
            Details::Reasoning { text }
        }
        Kind::CommandExecution(command) => {
            use pb::CommandExecutionStatus as Status;
            Details::CommandExecution {
                command: &command.command,
                aggregated_output: &command.aggregated_output,
                exit_code: command.exit_code,
                status: match command.status() {
                    Status::Unspecified | Status::InProgress => "in_progress",
                    Status::Completed => "completed",
                    Status::Failed => "failed",
                    Status::Declined => "declined",
                },
            }
        }
        Kind::FileChange(change) => {
            use pb::FileChangeStatus as Status;
            Details::FileChange {
                changes: change.changes.iter().map(changed_file).collect(),
                status: match change.status() {
                    Status::Unspecified | Status::InProgress => "in_progress",
                    Status::Completed => "completed",
                    Status::Failed | Status::Declined => "failed",
                },
            }
        }
        Kind::McpToolCall(call) => mcp_tool_call(call),
        Kind::WebSearch(search) => Details::WebSearch {
            id: &item.id,
            query: &search.query,
            action: web_search_action(search.action.as_ref()),
        },
        Kind::TodoList(list) => Details::TodoList {
            items: list
                .items
                .iter()
                .map(|item| Todo { text: &item.text, completed: item.completed })
                .collect(),
        },
        Kind::Error(pb::ErrorItem { message }) => Details::Error { message: message.clone() },
        Kind::SubAgent(agent) => sub_agent(agent)?,
        Kind::Unknown(unknown) if unknown.r#type == "collabAgentToolCall" => {
            collab_tool_call(&unknown.json)?
        }
        // `codex exec` has no line for any other.
        _ => return None,
    })
}

fn changed_file(file: &pb::ChangedFile) -> Change<'_> {
    let kind = match file.kind() {
        pb::FileChangeKind::Add => "add",
        pb::FileChangeKind::Delete => "delete",
        pb::FileChangeKind::Unspecified | pb::FileChangeKind::Update => "update",
    };
    Change { path: &file.path, kind }
}

fn mcp_tool_call(call: &pb::McpToolCall) -> Details<'_> {
    use pb::McpToolCallStatus as Status;
    let result = parsed(&call.result_json).filter(Value::is_object).map(|mut result| McpResult {
        content: result["content"].take(),
        structured_content: result["structuredContent"].take(),
    });
    Details::McpToolCall {
        server: &call.server,
        tool: &call.tool,
        arguments: parsed(&call.arguments_json).unwrap_or_default(),
        result,
        error: (!call.error_message.is_empty())
            .then(|| Message { message: call.error_message.clone() }),
        status: match call.status() {
            Status::Unspecified | Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Failed => "failed",
        },
    }
}

fn web_search_action(action: Option<&pb::web_search::Action>) -> Value {
    use pb::web_search::{Action, FindInPage, OpenPage, Search};
    let mut shown = Map::new();
    let mut field = |name: &str, value: Value| {
        // What is not said is left out.
        let is_said = match &value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(values) => !values.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::Object(_) => true,
        };
        if is_said {
            shown.insert(name.to_owned(), value);
        }
    };
    match action {
        None => field("type", json!("other")),
        Some(Action::Search(Search { query, queries })) => {
            field("type", json!("search"));
            field("query", json!(query));
            field("queries", json!(queries));
        }
        Some(Action::OpenPage(OpenPage { url })) => {
            field("type", json!("open_page"));
            field("url", json!(url));
        }
        Some(Action::FindInPage(FindInPage { url, pattern })) => {
            field("type", json!("find_in_page"));
            field("url", json!(url));
            field("pattern", json!(pattern));
        }
        Some(Action::OtherActionJson(text)) => match parsed(text) {
            Some(Value::Object(said)) => {
                for (name, value) in said {
                    match value.as_str().filter(|_| name == "type") {
                        Some(kind) => field("type", json!(snake_case(kind))),
                        None => field(&snake_case(&name), value),
                    }
                }
            }
            _ => field("type", json!("other")),
        },
    }
    Value::Object(shown)
}

/// The real one shows what an agent asks of others, and nothing of what those do.
fn sub_agent(agent: &pb::SubAgent) -> Option<Details<'_>> {
    use pb::{SubAgentAction as Action, SubAgentStatus as Status};
    if agent.action() == Action::Work || agent.sender_thread_id.is_empty() {
        return None;
    }
    let known = |agent: &&pb::SubAgentState| agent.phase() != pb::SubAgentPhase::Unspecified;
    let state = |agent: &pb::SubAgentState| {
        let status = match agent.phase() {
            pb::SubAgentPhase::Unspecified => "unknown",
            pb::SubAgentPhase::Pending => "pending_init",
            pb::SubAgentPhase::Running => "running",
            pb::SubAgentPhase::Interrupted => "interrupted",
            pb::SubAgentPhase::Completed => "completed",
            pb::SubAgentPhase::Errored => "errored",
            pb::SubAgentPhase::Closed => "shutdown",
            pb::SubAgentPhase::NotFound => "not_found",
        };
        let message = (!agent.message.is_empty()).then_some(&agent.message);
        (agent.thread_id.clone(), json!({ "status": status, "message": message }))
    };
    Some(Details::CollabToolCall {
        tool: shown_tool(&agent.tool),
        sender_thread_id: json!(agent.sender_thread_id),
        receiver_thread_ids: agent.agents.iter().map(|agent| json!(agent.thread_id)).collect(),
        prompt: json!((!agent.prompt.is_empty()).then_some(&agent.prompt)),
        agents_states: Value::Object(agent.agents.iter().filter(known).map(state).collect()),
        status: match agent.status() {
            Status::Unspecified | Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Interrupted => "interrupted",
        }
        .to_owned(),
    })
}

fn shown_tool(codex_name: &str) -> String {
    match codex_name {
        // The real one shows it so.
        "resumeAgent" => "wait".to_owned(),
        name => snake_case(name),
    }
}

/// The same from a sidecar whose contract has no name for it.
fn collab_tool_call<'a>(text: &str) -> Option<Details<'a>> {
    let mut call = parsed(text)?;
    let mut take = |name: &str| call.get_mut(name).map(Value::take).unwrap_or_default();
    let agents_states = match take("agentsStates") {
        Value::Object(states) => Value::Object(
            states
                .into_iter()
                .map(|(thread_id, state)| {
                    let status = state["status"].as_str().map(snake_case);
                    (thread_id, json!({ "status": status, "message": state["message"] }))
                })
                .collect(),
        ),
        _ => json!({}),
    };
    let tool = shown_tool(take("tool").as_str()?);
    Some(Details::CollabToolCall {
        tool,
        sender_thread_id: take("senderThreadId"),
        receiver_thread_ids: take("receiverThreadIds"),
        prompt: take("prompt"),
        agents_states,
        status: snake_case(take("status").as_str()?),
    })
}

/// `openPage` is `open_page`.
fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 2);
    for character in name.chars() {
        if character.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

fn parsed(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}
