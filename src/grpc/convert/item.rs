//! Items on their way out.

use super::duration;
use crate::model::event::{
    AgentPhase, AgentState, CommandExecution, DynamicToolCall, FileChange, FileChangeKind, Item,
    ItemKind, McpToolCall, Status, SubAgent, SubAgentAction, SubAgentStatus, TodoItem, TodoStatus,
    ToolContent, UserInput, WebSearchAction,
};
use crate::pb;

pub(super) fn item(item: &Item) -> pb::Item {
    let Item { id, kind } = item;
    pb::Item { id: id.clone(), kind: Some(item_kind(kind)) }
}

fn item_kind(kind: &ItemKind) -> pb::item::Kind {
    use pb::item::Kind;
    match kind {
        ItemKind::AgentMessage { text, phase } => {
            Kind::AgentMessage(pb::AgentMessage { text: text.clone(), phase: phase.clone() })
        }
        ItemKind::Reasoning { summary, content } => {
            Kind::Reasoning(pb::Reasoning { summary: summary.clone(), content: content.clone() })
        }
        ItemKind::CommandExecution(command) => Kind::CommandExecution(command_execution(command)),
        ItemKind::FileChange { changes, status } => Kind::FileChange(pb::FileChange {
            changes: changes.iter().map(changed_file).collect(),
            status: file_change_status(*status).into(),
        }),
        ItemKind::McpToolCall(call) => Kind::McpToolCall(mcp_tool_call(call)),
        ItemKind::WebSearch { query, action, results_json } => Kind::WebSearch(pb::WebSearch {
            query: query.clone(),
            action: action.as_ref().map(web_search_action),
            results_json: results_json.clone().unwrap_or_default(),
        }),
        ItemKind::TodoList { items, explanation } => Kind::TodoList(pb::TodoList {
            items: items.iter().map(todo_item).collect(),
            explanation: explanation.clone().unwrap_or_default(),
        }),
        ItemKind::Error { message } => Kind::Error(pb::ErrorItem { message: message.clone() }),
        ItemKind::UserMessage { inputs } => {
            Kind::UserMessage(pb::UserMessage { inputs: inputs.iter().map(user_input).collect() })
        }
        ItemKind::DynamicToolCall(call) => Kind::DynamicToolCall(dynamic_tool_call(call)),
        ItemKind::ImageView { path } => Kind::ImageView(pb::ImageView { path: path.clone() }),
        ItemKind::ContextCompaction => Kind::ContextCompaction(pb::ContextCompaction {}),
        ItemKind::SubAgent(agent) => Kind::SubAgent(sub_agent(agent)),
        ItemKind::Unknown { r#type, json } => {
            Kind::Unknown(pb::UnknownItem { r#type: r#type.clone(), json: json.clone() })
        }
    }
}

fn command_execution(command: &CommandExecution) -> pb::CommandExecution {
    let CommandExecution {
        command,
        working_directory,
        aggregated_output,
        exit_code,
        status,
        duration: took,
    } = command;
    pb::CommandExecution {
        command: command.clone(),
        working_directory: working_directory.clone(),
        aggregated_output: aggregated_output.clone(),
        exit_code: *exit_code,
        status: match status {
            Status::InProgress => pb::CommandExecutionStatus::InProgress,
            Status::Completed => pb::CommandExecutionStatus::Completed,
            Status::Failed => pb::CommandExecutionStatus::Failed,
            Status::Declined => pb::CommandExecutionStatus::Declined,
        }
        .into(),
        duration: took.and_then(duration),
    }
}

fn changed_file(change: &FileChange) -> pb::ChangedFile {
    let FileChange { path, kind, diff, move_path } = change;
    pb::ChangedFile {
        path: path.clone(),
        kind: match kind {
            FileChangeKind::Add => pb::FileChangeKind::Add,
            FileChangeKind::Delete => pb::FileChangeKind::Delete,
            FileChangeKind::Update => pb::FileChangeKind::Update,
        }
        .into(),
        diff: diff.clone(),
        move_path: move_path.clone().unwrap_or_default(),
    }
}

fn file_change_status(status: Status) -> pb::FileChangeStatus {
    match status {
        Status::InProgress => pb::FileChangeStatus::InProgress,
        Status::Completed => pb::FileChangeStatus::Completed,
        Status::Failed => pb::FileChangeStatus::Failed,
        Status::Declined => pb::FileChangeStatus::Declined,
    }
}

fn mcp_tool_call(call: &McpToolCall) -> pb::McpToolCall {
    let McpToolCall { server, tool, arguments_json, result_json, error, status, duration: took } =
        call;
    pb::McpToolCall {
        server: server.clone(),
        tool: tool.clone(),
        arguments_json: arguments_json.clone(),
        result_json: result_json.clone().unwrap_or_default(),
        error_message: error.clone().unwrap_or_default(),
        status: match status {
            Status::InProgress => pb::McpToolCallStatus::InProgress,
            Status::Completed => pb::McpToolCallStatus::Completed,
            // Codex has no word for a declined call; to it, that is a failed one.
            Status::Failed | Status::Declined => pb::McpToolCallStatus::Failed,
        }
        .into(),
        duration: took.and_then(duration),
    }
}

fn dynamic_tool_call(call: &DynamicToolCall) -> pb::DynamicToolCall {
    let DynamicToolCall {
        tool,
        namespace,
        arguments_json,
        content,
        success,
        status,
        duration: took,
    } = call;
    pb::DynamicToolCall {
        tool: tool.clone(),
        namespace: namespace.clone(),
        arguments_json: arguments_json.clone(),
        status: match status {
            Status::InProgress => pb::DynamicToolCallStatus::InProgress,
            Status::Completed => pb::DynamicToolCallStatus::Completed,
            Status::Failed | Status::Declined => pb::DynamicToolCallStatus::Failed,
        }
        .into(),
        content: content.iter().map(tool_content).collect(),
        success: *success,
        duration: took.and_then(duration),
    }
}

fn sub_agent(agent: &SubAgent) -> pb::SubAgent {
    let SubAgent {
        action,
        tool,
        status,
        sender_thread_id,
        agents,
        prompt,
        model,
        reasoning_effort,
    } = agent;
    pb::SubAgent {
        action: match action {
            SubAgentAction::Spawn => pb::SubAgentAction::Spawn,
            SubAgentAction::Message => pb::SubAgentAction::Message,
            SubAgentAction::Wait => pb::SubAgentAction::Wait,
            SubAgentAction::Close => pb::SubAgentAction::Close,
            SubAgentAction::Resume => pb::SubAgentAction::Resume,
            SubAgentAction::Interrupt => pb::SubAgentAction::Interrupt,
            SubAgentAction::List => pb::SubAgentAction::List,
            SubAgentAction::Work => pb::SubAgentAction::Work,
            SubAgentAction::Finish => pb::SubAgentAction::Finish,
            SubAgentAction::Other => pb::SubAgentAction::Unspecified,
        }
        .into(),
        tool: tool.clone(),
        status: match status {
            SubAgentStatus::InProgress => pb::SubAgentStatus::InProgress,
            SubAgentStatus::Completed => pb::SubAgentStatus::Completed,
            SubAgentStatus::Failed => pb::SubAgentStatus::Failed,
            SubAgentStatus::Interrupted => pb::SubAgentStatus::Interrupted,
        }
        .into(),
        agents: agents.iter().map(agent_state).collect(),
        prompt: prompt.clone(),
        sender_thread_id: sender_thread_id.clone(),
        model: model.clone(),
        reasoning_effort: reasoning_effort.clone(),
    }
}

fn agent_state(agent: &AgentState) -> pb::SubAgentState {
    let AgentState { thread_id, path, phase, message } = agent;
    pb::SubAgentState {
        thread_id: thread_id.clone(),
        phase: match phase {
            AgentPhase::Unknown => pb::SubAgentPhase::Unspecified,
            AgentPhase::Pending => pb::SubAgentPhase::Pending,
            AgentPhase::Running => pb::SubAgentPhase::Running,
            AgentPhase::Interrupted => pb::SubAgentPhase::Interrupted,
            AgentPhase::Completed => pb::SubAgentPhase::Completed,
            AgentPhase::Errored => pb::SubAgentPhase::Errored,
            AgentPhase::Closed => pb::SubAgentPhase::Closed,
            AgentPhase::NotFound => pb::SubAgentPhase::NotFound,
        }
        .into(),
        message: message.clone(),
        path: path.clone(),
    }
}

fn tool_content(content: &ToolContent) -> pb::ToolContent {
    use pb::tool_content::Content;
    let content = match content {
        ToolContent::Text(text) => Content::Text(text.clone()),
        ToolContent::ImageUrl(url) => Content::ImageUrl(url.clone()),
        ToolContent::AudioUrl(url) => Content::AudioUrl(url.clone()),
    };
    pb::ToolContent { content: Some(content) }
}

fn web_search_action(action: &WebSearchAction) -> pb::web_search::Action {
    use pb::web_search::{Action, FindInPage, OpenPage, Search};
    match action {
        WebSearchAction::Search { query, queries } => {
            Action::Search(Search { query: query.clone(), queries: queries.clone() })
        }
        WebSearchAction::OpenPage { url } => Action::OpenPage(OpenPage { url: url.clone() }),
        WebSearchAction::FindInPage { url, pattern } => {
            Action::FindInPage(FindInPage { url: url.clone(), pattern: pattern.clone() })
        }
        WebSearchAction::Other(json) => Action::OtherActionJson(json.clone()),
    }
}

fn todo_item(item: &TodoItem) -> pb::TodoItem {
    let TodoItem { text, status } = item;
    pb::TodoItem {
        text: text.clone(),
        completed: *status == TodoStatus::Completed,
        status: match status {
            TodoStatus::Pending => pb::TodoStatus::Pending,
            TodoStatus::InProgress => pb::TodoStatus::InProgress,
            TodoStatus::Completed => pb::TodoStatus::Completed,
        }
        .into(),
    }
}

fn user_input(input: &UserInput) -> pb::UserInput {
    use pb::user_input::Input;
    let input = match input {
        UserInput::Text(text) => Input::Text(text.clone()),
        UserInput::LocalImage(path) => Input::LocalImage(pb::LocalImage { path: path.clone() }),
        UserInput::ImageUrl(url) => Input::ImageUrl(url.clone()),
    };
    pb::UserInput { input: Some(input) }
}
