//! Codex's items.
//!
//! What can't be read as a known type is passed on whole as [`ItemKind::Unknown`].

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::agent::{CodexActivity, CollabCall};
use super::parts::Parts;
use crate::model::item::{
    AgentMessage, ChangedFile, CommandExecution, CommandExecutionStatus, ContextCompaction,
    DynamicToolCall, DynamicToolCallStatus, ErrorItem, FileChange, FileChangeKind,
    FileChangeStatus, HookPrompt, HookPromptFragment, ImageGeneration, ImageView, Item, ItemKind,
    McpToolCall, McpToolCallStatus, Plan, Reasoning, ReviewMode, ToolContent, UnknownItem,
    UserMessage, WebSearch, WebSearchAction,
};
use crate::pb::tool_content::Content;
use crate::pb::user_input::Input;
use crate::pb::web_search::{FindInPage, OpenPage, Search};
use crate::pb::{LocalImage, UserInput};

pub(super) fn changed_files(patch: &Parts<'_>) -> Option<Vec<ChangedFile>> {
    let changes: Vec<CodexFileChange> = patch.read("changes")?;
    Some(changes.into_iter().map(ChangedFile::from).collect())
}

/// Reads an item.
pub(super) fn item(json: &RawValue) -> Option<Item> {
    let item = Parts::of(json);
    let (r#type, id): (String, String) = (item.read("type")?, item.text("id")?);
    let kind = kind(&r#type, json, &item)
        .unwrap_or_else(|| ItemKind::Unknown(UnknownItem { r#type, json: json.get().to_owned() }));
    Some(Item::new(id, kind))
}

fn kind(r#type: &str, json: &RawValue, item: &Parts<'_>) -> Option<ItemKind> {
    Some(match r#type {
        "agentMessage" => ItemKind::AgentMessage(AgentMessage {
            text: item.read("text")?,
            phase: item.text("phase")?,
        }),
        "reasoning" => ItemKind::Reasoning(Reasoning {
            summary: texts("summary", item)?,
            content: texts("content", item)?,
        }),
        "commandExecution" => ItemKind::CommandExecution(CommandExecution {
            command: item.read("command")?,
            working_directory: item.text("cwd")?,
            aggregated_output: item.text("aggregatedOutput")?,
            exit_code: item.read("exitCode")?,
            status: CommandExecutionStatus::from(status(item)?).into(),
            duration: duration(item)?,
        }),
        "fileChange" => ItemKind::FileChange(FileChange {
            changes: changed_files(item)?,
            status: FileChangeStatus::from(status(item)?).into(),
        }),
        "mcpToolCall" => ItemKind::McpToolCall(McpToolCall {
            server: item.read("server")?,
            tool: item.read("tool")?,
            arguments_json: item.json_or_null("arguments"),
            result_json: item.json("result"),
            error_message: match item.read::<Option<CodexMcpError>>("error")? {
                Some(CodexMcpError { message }) => message,
                None => String::new(),
            },
            status: McpToolCallStatus::from(status(item)?).into(),
            duration: duration(item)?,
        }),
        "dynamicToolCall" => ItemKind::DynamicToolCall(DynamicToolCall {
            tool: item.read("tool")?,
            namespace: item.text("namespace")?,
            arguments_json: item.json_or_null("arguments"),
            content: tool_content(item)?,
            success: item.read("success")?,
            status: DynamicToolCallStatus::from(status(item)?).into(),
            duration: duration(item)?,
        }),
        "webSearch" => ItemKind::WebSearch(WebSearch {
            query: item.text("query")?,
            action: item.get("action").map(web_search_action),
            results_json: item.json("results"),
        }),
        "imageView" => ItemKind::ImageView(ImageView { path: item.read("path")? }),
        "imageGeneration" => ItemKind::ImageGeneration(ImageGeneration {
            status: item.read("status")?,
            revised_prompt: item.text("revisedPrompt")?,
            saved_path: item.text("savedPath")?,
            result: item.text("result")?,
        }),
        "plan" => ItemKind::Plan(Plan { text: item.read("text")? }),
        "enteredReviewMode" => ItemKind::ReviewMode(review_mode(true, item)?),
        "exitedReviewMode" => ItemKind::ReviewMode(review_mode(false, item)?),
        "hookPrompt" => ItemKind::HookPrompt(HookPrompt { fragments: fragments(item)? }),
        "userMessage" => ItemKind::UserMessage(UserMessage { inputs: user_inputs(item)? }),
        "contextCompaction" => ItemKind::ContextCompaction(ContextCompaction {}),
        "error" => ItemKind::Error(ErrorItem { message: item.read("message")? }),
        "collabAgentToolCall" => {
            ItemKind::SubAgent(serde_json::from_str::<CollabCall>(json.get()).ok()?.into())
        }
        "subAgentActivity" => {
            ItemKind::SubAgent(serde_json::from_str::<CodexActivity>(json.get()).ok()?.into())
        }
        _ => return None,
    })
}

fn review_mode(entered: bool, item: &Parts<'_>) -> Option<ReviewMode> {
    Some(ReviewMode { entered, review: item.text("review")? })
}

fn fragments(item: &Parts<'_>) -> Option<Vec<HookPromptFragment>> {
    let fragments: Vec<CodexFragment> = item.read("fragments")?;
    let fragment = |CodexFragment { text, hook_run_id }| HookPromptFragment { text, hook_run_id };
    Some(fragments.into_iter().map(fragment).collect())
}

fn texts(name: &str, item: &Parts<'_>) -> Option<Vec<String>> {
    item.read::<Option<Vec<String>>>(name).map(Option::unwrap_or_default)
}

fn status(item: &Parts<'_>) -> Option<CodexStatus> {
    item.read("status")
}

/// How long it took, once it has ended.
fn duration(item: &Parts<'_>) -> Option<Option<prost_types::Duration>> {
    let millis: Option<u64> = item.read("durationMs")?;
    let duration = millis.map(std::time::Duration::from_millis);
    Some(duration.and_then(|duration| duration.try_into().ok()))
}

fn tool_content(item: &Parts<'_>) -> Option<Vec<ToolContent>> {
    let content = item.read::<Option<Vec<CodexToolContent>>>("contentItems")?;
    let known = content.unwrap_or_default().into_iter().filter_map(|content| match content {
        CodexToolContent::InputText { text } => Some(Content::Text(text)),
        CodexToolContent::InputImage { image_url } => Some(Content::ImageUrl(image_url)),
        CodexToolContent::InputAudio { audio_url } => Some(Content::AudioUrl(audio_url)),
        CodexToolContent::Other => None,
    });
    Some(known.map(|content| ToolContent { content: Some(content) }).collect())
}

fn user_inputs(item: &Parts<'_>) -> Option<Vec<UserInput>> {
    let content: Vec<CodexUserInput> = item.read("content")?;
    let known = content.into_iter().filter_map(|input| match input {
        CodexUserInput::Text { text } => Some(Input::Text(text)),
        CodexUserInput::Image { url } => url.map(|url| Input::ImageUrl(without_data(url))),
        CodexUserInput::LocalImage { path } => Some(Input::LocalImage(LocalImage { path })),
        CodexUserInput::Other => None,
    });
    Some(known.map(|input| UserInput { input: Some(input) }).collect())
}

fn web_search_action(json: &RawValue) -> WebSearchAction {
    let action = Parts::of(json);
    let text = |name: &str| action.read::<String>(name).unwrap_or_default();
    match text("type").as_str() {
        "search" => {
            let queries: Vec<Value> = action.read("queries").unwrap_or_default();
            let queries = queries.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            WebSearchAction::Search(Search { query: text("query"), queries })
        }
        "openPage" => WebSearchAction::OpenPage(OpenPage { url: text("url") }),
        "findInPage" => {
            WebSearchAction::FindInPage(FindInPage { url: text("url"), pattern: text("pattern") })
        }
        _ => WebSearchAction::OtherActionJson(json.get().to_owned()),
    }
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
#[serde(rename_all = "camelCase")]
struct CodexFragment {
    text: String,
    #[serde(default)]
    hook_run_id: String,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_newer_clis_are_read_as_the_contract_has_them() {
        let read = |json: serde_json::Value| {
            let json = RawValue::from_string(json.to_string()).unwrap();
            item(&json).and_then(|item| item.kind).unwrap()
        };
        let json = serde_json::json!({ "type": "plan", "id": "p", "text": "# Steps" });
        assert_eq!(read(json), ItemKind::Plan(Plan { text: "# Steps".to_owned() }));
        let made = serde_json::json!({
            "type": "imageGeneration", "id": "g", "status": "completed", "revisedPrompt": "a cat",
            "savedPath": "/h/cat.png", "result": "QUJD", "failure": null, "generationId": null,
        });
        let image = ImageGeneration {
            status: "completed".to_owned(),
            revised_prompt: "a cat".to_owned(),
            saved_path: "/h/cat.png".to_owned(),
            result: "QUJD".to_owned(),
        };
        assert_eq!(read(made), ItemKind::ImageGeneration(image));
        // Kept elsewhere by the provider, and not there yet.
        let begun = serde_json::json!({
            "type": "imageGeneration", "id": "g", "status": "in_progress", "revisedPrompt": null,
            "fileId": "f",
        });
        let status = "in_progress".to_owned();
        let image = ImageGeneration { status, ..ImageGeneration::default() };
        assert_eq!(read(begun), ItemKind::ImageGeneration(image));
        for (r#type, entered) in [("enteredReviewMode", true), ("exitedReviewMode", false)] {
            let json = serde_json::json!({ "type": r#type, "id": "r", "review": "all of it" });
            let review = "all of it".to_owned();
            assert_eq!(read(json), ItemKind::ReviewMode(ReviewMode { entered, review }));
        }
        let hook = serde_json::json!({
            "type": "hookPrompt", "id": "h", "fragments": [{ "text": "mind this", "hookRunId": "x" }],
        });
        let fragment =
            HookPromptFragment { text: "mind this".to_owned(), hook_run_id: "x".to_owned() };
        assert_eq!(read(hook), ItemKind::HookPrompt(HookPrompt { fragments: vec![fragment] }));
        let odd = serde_json::json!({ "type": "plan", "id": "p", "text": 7 });
        assert!(matches!(read(odd), ItemKind::Unknown(_)));
    }

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
