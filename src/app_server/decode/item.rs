//! Codex's items.
//!
//! What can't be read as a known type is passed on whole as [`ItemKind::Unknown`].

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::agent::{CodexActivity, CollabCall};
use super::read;
use crate::model::item::{
    AgentMessage, ChangedFile, CommandExecution, CommandExecutionStatus, ContextCompaction,
    DynamicToolCall, DynamicToolCallStatus, ErrorItem, FileChange, FileChangeKind,
    FileChangeStatus, ImageView, Item, ItemKind, McpToolCall, McpToolCallStatus, Reasoning,
    ToolContent, UnknownItem, UserMessage, WebSearch, WebSearchAction,
};
use crate::pb::tool_content::Content;
use crate::pb::user_input::Input;
use crate::pb::web_search::{FindInPage, OpenPage, Search};
use crate::pb::{LocalImage, UserInput};

pub(super) fn patch(params: &str) -> Option<Item> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        item_id: String,
        changes: Vec<CodexFileChange>,
    }
    let Params { item_id, changes } = read(params)?;
    let changes = changes.into_iter().map(ChangedFile::from).collect();
    let change = FileChange { changes, status: FileChangeStatus::InProgress.into() };
    Some(Item::new(item_id, ItemKind::FileChange(change)))
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
        .map(ItemKind::from)
        .unwrap_or_else(|_| ItemKind::Unknown(UnknownItem { r#type, json: item.get().to_owned() }));
    Some(Item::new(id, kind))
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

impl From<CodexStatus> for CommandExecutionStatus {
    fn from(status: CodexStatus) -> CommandExecutionStatus {
        match status {
            CodexStatus::InProgress => CommandExecutionStatus::InProgress,
            CodexStatus::Completed => CommandExecutionStatus::Completed,
            CodexStatus::Failed => CommandExecutionStatus::Failed,
            CodexStatus::Declined => CommandExecutionStatus::Declined,
        }
    }
}

impl From<CodexStatus> for FileChangeStatus {
    fn from(status: CodexStatus) -> FileChangeStatus {
        match status {
            CodexStatus::InProgress => FileChangeStatus::InProgress,
            CodexStatus::Completed => FileChangeStatus::Completed,
            CodexStatus::Failed => FileChangeStatus::Failed,
            CodexStatus::Declined => FileChangeStatus::Declined,
        }
    }
}

// Codex has no word for a declined call of a tool; to it, that is a failed one.
impl From<CodexStatus> for McpToolCallStatus {
    fn from(status: CodexStatus) -> McpToolCallStatus {
        match status {
            CodexStatus::InProgress => McpToolCallStatus::InProgress,
            CodexStatus::Completed => McpToolCallStatus::Completed,
            CodexStatus::Failed | CodexStatus::Declined => McpToolCallStatus::Failed,
        }
    }
}

impl From<CodexStatus> for DynamicToolCallStatus {
    fn from(status: CodexStatus) -> DynamicToolCallStatus {
        match status {
            CodexStatus::InProgress => DynamicToolCallStatus::InProgress,
            CodexStatus::Completed => DynamicToolCallStatus::Completed,
            CodexStatus::Failed | CodexStatus::Declined => DynamicToolCallStatus::Failed,
        }
    }
}

impl From<CodexFileChange> for ChangedFile {
    fn from(CodexFileChange { path, kind, diff }: CodexFileChange) -> ChangedFile {
        let (kind, move_path) = match kind {
            CodexChangeKind::Add => (FileChangeKind::Add, None),
            CodexChangeKind::Delete => (FileChangeKind::Delete, None),
            CodexChangeKind::Update { move_path } => (FileChangeKind::Update, move_path),
        };
        let move_path = move_path.unwrap_or_default();
        ChangedFile { path, kind: kind.into(), diff, move_path }
    }
}

impl From<CodexItem> for ItemKind {
    fn from(item: CodexItem) -> ItemKind {
        match item {
            CodexItem::AgentMessage { text, phase } => {
                ItemKind::AgentMessage(AgentMessage { text, phase: phase.unwrap_or_default() })
            }
            CodexItem::Reasoning { summary, content } => {
                ItemKind::Reasoning(Reasoning { summary, content })
            }
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
                status: CommandExecutionStatus::from(status).into(),
                duration: millis(duration_ms),
            }),
            CodexItem::FileChange { changes, status } => ItemKind::FileChange(FileChange {
                changes: changes.into_iter().map(ChangedFile::from).collect(),
                status: FileChangeStatus::from(status).into(),
            }),
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
                result_json: result.map(|result| result.to_string()).unwrap_or_default(),
                error_message: error.map(|error| error.message).unwrap_or_default(),
                status: McpToolCallStatus::from(status).into(),
                duration: millis(duration_ms),
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
                        CodexToolContent::InputText { text } => Some(Content::Text(text)),
                        CodexToolContent::InputImage { image_url } => {
                            Some(Content::ImageUrl(image_url))
                        }
                        CodexToolContent::InputAudio { audio_url } => {
                            Some(Content::AudioUrl(audio_url))
                        }
                        CodexToolContent::Other => None,
                    })
                    .map(|content| ToolContent { content: Some(content) })
                    .collect(),
                success,
                status: DynamicToolCallStatus::from(status).into(),
                duration: millis(duration_ms),
            }),
            CodexItem::WebSearch { query, action, results } => ItemKind::WebSearch(WebSearch {
                query: query.unwrap_or_default(),
                action: action.map(web_search_action),
                results_json: results.map(|results| results.to_string()).unwrap_or_default(),
            }),
            CodexItem::ImageView { path } => ItemKind::ImageView(ImageView { path }),
            CodexItem::UserMessage { content } => ItemKind::UserMessage(UserMessage {
                inputs: content
                    .into_iter()
                    .filter_map(|input| match input {
                        CodexUserInput::Text { text } => Some(Input::Text(text)),
                        CodexUserInput::Image { url } => {
                            url.map(|url| Input::ImageUrl(without_data(url)))
                        }
                        CodexUserInput::LocalImage { path } => {
                            Some(Input::LocalImage(LocalImage { path }))
                        }
                        CodexUserInput::Other => None,
                    })
                    .map(|input| UserInput { input: Some(input) })
                    .collect(),
            }),
            CodexItem::ContextCompaction {} => ItemKind::ContextCompaction(ContextCompaction {}),
            CodexItem::Error { message } => ItemKind::Error(ErrorItem { message }),
            CodexItem::CollabAgentToolCall(call) => ItemKind::SubAgent(call.into()),
            CodexItem::SubAgentActivity(activity) => ItemKind::SubAgent(activity.into()),
        }
    }
}

fn millis(millis: Option<u64>) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(std::time::Duration::from_millis(millis?)).ok()
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
        Some("search") => WebSearchAction::Search(Search {
            query: text("query"),
            queries: action["queries"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        }),
        Some("openPage") => WebSearchAction::OpenPage(OpenPage { url: text("url") }),
        Some("findInPage") => {
            WebSearchAction::FindInPage(FindInPage { url: text("url"), pattern: text("pattern") })
        }
        _ => WebSearchAction::OtherActionJson(action.to_string()),
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
