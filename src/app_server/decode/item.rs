//! Codex's items.
//!
//! What can't be read as a known type is passed on whole as [`ItemKind::Unknown`].

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::agent::{CodexActivity, CollabCall};
use super::read;
use crate::model::event::{
    CommandExecution, DynamicToolCall, FileChange, FileChangeKind, Item, ItemKind, McpToolCall,
    Status, ToolContent, UserInput, WebSearchAction,
};

pub(super) fn patch(params: &str) -> Option<Item> {
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

pub(super) fn item(params: &str) -> Option<Item> {
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
        phase: Option<String>,
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
        namespace: Option<String>,
        #[serde(default)]
        arguments: Value,
        status: CodexStatus,
        content_items: Option<Vec<CodexToolContent>>,
        success: Option<bool>,
        duration_ms: Option<u64>,
    },
    WebSearch {
        #[serde(default)]
        query: Option<String>,
        action: Option<Value>,
        results: Option<Value>,
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
    CollabAgentToolCall(CollabCall),
    SubAgentActivity(CodexActivity),
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
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum CodexToolContent {
    InputText {
        text: String,
    },
    InputImage {
        image_url: String,
    },
    InputAudio {
        audio_url: String,
    },
    #[serde(other)]
    Other,
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
            CodexItem::AgentMessage { text, phase } => {
                ItemKind::AgentMessage { text, phase: phase.unwrap_or_default() }
            }
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
                namespace,
                arguments,
                status,
                content_items,
                success,
                duration_ms,
            } => ItemKind::DynamicToolCall(DynamicToolCall {
                tool,
                namespace: namespace.unwrap_or_default(),
                arguments_json: arguments.to_string(),
                content: content_items
                    .unwrap_or_default()
                    .into_iter()
                    .filter_map(|content| match content {
                        CodexToolContent::InputText { text } => Some(ToolContent::Text(text)),
                        CodexToolContent::InputImage { image_url } => {
                            Some(ToolContent::ImageUrl(image_url))
                        }
                        CodexToolContent::InputAudio { audio_url } => {
                            Some(ToolContent::AudioUrl(audio_url))
                        }
                        CodexToolContent::Other => None,
                    })
                    .collect(),
                success,
                status: status.into(),
                duration: duration_ms.map(Duration::from_millis),
            }),
            CodexItem::WebSearch { query, action, results } => ItemKind::WebSearch {
                query: query.unwrap_or_default(),
                action: action.map(web_search_action),
                results_json: results.map(|results| results.to_string()),
            },
            CodexItem::ImageView { path } => ItemKind::ImageView { path },
            CodexItem::UserMessage { content } => ItemKind::UserMessage {
                inputs: content
                    .into_iter()
                    .filter_map(|input| match input {
                        CodexUserInput::Text { text } => Some(UserInput::Text(text)),
                        CodexUserInput::Image { url } => {
                            url.map(|url| UserInput::ImageUrl(without_data(url)))
                        }
                        CodexUserInput::LocalImage { path } => Some(UserInput::LocalImage(path)),
                        CodexUserInput::Other => None,
                    })
                    .collect(),
            },
            CodexItem::ContextCompaction {} => ItemKind::ContextCompaction,
            CodexItem::Error { message } => ItemKind::Error { message },
            CodexItem::CollabAgentToolCall(call) => ItemKind::SubAgent(call.into()),
            CodexItem::SubAgentActivity(activity) => ItemKind::SubAgent(activity.into()),
        }
    }
}

/// An address without the data that it holds: the caller has sent them, and they may be megabytes.
fn without_data(url: String) -> String {
    let Some((head, data)) = url.split_once(',').filter(|(head, _)| is_data(head)) else {
        return url;
    };
    let padding = data.len() - data.trim_end_matches('=').len();
    let bytes = (data.len() / 4 * 3).saturating_sub(padding);
    format!("{head},… ({bytes} bytes)")
}

fn is_data(head: &str) -> bool {
    head.split_at_checked("data:".len())
        .is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("data:"))
}

fn web_search_action(action: Value) -> WebSearchAction {
    let text = |key: &str| action[key].as_str().unwrap_or_default().to_owned();
    match action["type"].as_str() {
        Some("search") => WebSearchAction::Search {
            query: text("query"),
            queries: action["queries"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        },
        Some("openPage") => WebSearchAction::OpenPage { url: text("url") },
        Some("findInPage") => {
            WebSearchAction::FindInPage { url: text("url"), pattern: text("pattern") }
        }
        _ => WebSearchAction::Other(action.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_shown_without_its_data() {
        let cases = [
            ("data:image/png;base64,QUJD", "data:image/png;base64,… (3 bytes)"),
            ("DATA:image/png;base64,QQ==", "DATA:image/png;base64,… (1 bytes)"),
            ("data:image/png;base64,", "data:image/png;base64,… (0 bytes)"),
            ("https://example.com/a,b.png", "https://example.com/a,b.png"),
            ("data:nothing", "data:nothing"),
            ("☃,☃", "☃,☃"),
        ];
        for (url, shown) in cases {
            assert_eq!(without_data(url.to_owned()), shown);
        }
    }
}
