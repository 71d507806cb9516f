//! An item of the contract as `codex exec` tells it to people.

use super::Renderer;
use super::paint::Style;
use crate::pb;
use crate::pb::item::Kind;

impl Renderer {
    pub(super) fn item_started(&self, item: &pb::Item) -> String {
        let paint = self.paint;
        match &item.kind {
            Some(Kind::CommandExecution(command)) => {
                let title = paint.styled(&[Style::Magenta, Style::Italic], "exec");
                let line = paint.styled(&[Style::Bold], &command.command);
                format!("{title}\n{line} in {}\n", command.working_directory)
            }
            Some(Kind::McpToolCall(call)) => {
                let started = paint.styled(&[Style::Dimmed], "started");
                format!("{} {started}\n", self.mcp_tool(call))
            }
            Some(Kind::WebSearch(search)) => self.web_search(search),
            Some(Kind::FileChange(_)) => {
                format!("{}\n", paint.styled(&[Style::Bold], "apply patch"))
            }
            Some(Kind::SubAgent(agent)) if !agent.tool.is_empty() => {
                let mut tool = agent.tool.clone();
                if let Some(first) = tool.get_mut(..1) {
                    first.make_ascii_uppercase();
                }
                format!("{} {tool}\n", paint.styled(&[Style::Bold], "collab:"))
            }
            Some(Kind::TodoList(list)) => self.todo_list(list),
            _ => String::new(),
        }
    }

    pub(super) fn item_updated(&self, item: &pb::Item) -> String {
        match &item.kind {
            Some(Kind::TodoList(list)) => self.todo_list(list),
            _ => String::new(),
        }
    }

    pub(super) fn item_completed(&self, item: &pb::Item) -> String {
        let paint = self.paint;
        match &item.kind {
            Some(Kind::AgentMessage(message)) => {
                let title = paint.styled(&[Style::Magenta, Style::Italic], "codex");
                format!("{title}\n{}\n", message.text)
            }
            Some(Kind::Reasoning(reasoning)) => self.reasoning(reasoning),
            Some(Kind::CommandExecution(command)) => self.command(command),
            Some(Kind::FileChange(change)) => self.file_change(change),
            Some(Kind::McpToolCall(call)) => self.mcp_tool_call(call),
            Some(Kind::WebSearch(search)) => self.web_search(search),
            Some(Kind::ContextCompaction(_)) => {
                format!("{}\n", paint.styled(&[Style::Dimmed], "context compacted"))
            }
            _ => String::new(),
        }
    }

    fn reasoning(&self, reasoning: &pb::Reasoning) -> String {
        let pb::Reasoning { summary, content } = reasoning;
        let raw = self.thoughts.raw && !content.is_empty();
        let text = if raw { content.join("\n") } else { summary.join("\n") };
        if !self.thoughts.shown || text.trim().is_empty() {
            return String::new();
        }
        format!("{}\n", self.paint.styled(&[Style::Dimmed], text))
    }

    fn command(&self, command: &pb::CommandExecution) -> String {
        use pb::CommandExecutionStatus as Status;
        let took = command.duration.as_ref().map(|took| {
            let millis = took.seconds * 1000 + i64::from(took.nanos) / 1_000_000;
            format!(" in {millis}ms")
        });
        let took = took.unwrap_or_default();
        let (style, how) = match command.status() {
            Status::Completed => (Style::Green, " succeeded".to_owned()),
            Status::Failed => (Style::Red, format!(" exited {}", command.exit_code.unwrap_or(1))),
            Status::Declined => (Style::Yellow, " declined".to_owned()),
            Status::Unspecified | Status::InProgress => (Style::Dimmed, " in progress".to_owned()),
        };
        let title = self.paint.styled(&[style], format!("{how}{took}:"));
        let output = &command.aggregated_output;
        let output = if output.trim().is_empty() { "" } else { &format!("{output}\n") };
        format!("{title}\n{output}")
    }

    fn file_change(&self, change: &pb::FileChange) -> String {
        use pb::FileChangeStatus as Status;
        let status = match change.status() {
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Declined => "declined",
            Status::Unspecified | Status::InProgress => "in progress",
        };
        let mut text = format!("{} {status}\n", self.paint.styled(&[Style::Bold], "patch:"));
        for file in &change.changes {
            text += &format!("{}\n", self.paint.styled(&[Style::Dimmed], &file.path));
        }
        text
    }

    fn mcp_tool(&self, call: &pb::McpToolCall) -> String {
        let title = self.paint.styled(&[Style::Bold], "mcp:");
        let tool = format!("{}/{}", call.server, call.tool);
        format!("{title} {}", self.paint.styled(&[Style::Cyan], tool))
    }

    fn mcp_tool_call(&self, call: &pb::McpToolCall) -> String {
        use pb::McpToolCallStatus as Status;
        let (style, status) = match call.status() {
            Status::Completed => (Style::Green, "completed"),
            Status::Failed => (Style::Red, "failed"),
            Status::Unspecified | Status::InProgress => (Style::Dimmed, "in progress"),
        };
        let status = self.paint.styled(&[style], status);
        let status = self.paint.styled(&[Style::Dimmed], format!("({status})"));
        let mut text = format!("{} {status}\n", self.mcp_tool(call));
        if !call.error_message.is_empty() {
            text += &format!("{}\n", self.paint.styled(&[Style::Red], &call.error_message));
        }
        text
    }

    fn web_search(&self, search: &pb::WebSearch) -> String {
        format!("{} {}\n", self.paint.styled(&[Style::Bold], "web search:"), search.query)
    }

    fn todo_list(&self, list: &pb::TodoList) -> String {
        use pb::TodoStatus as Status;
        let mut text = String::new();
        if !list.explanation.is_empty() {
            text += &format!("{}\n", self.paint.styled(&[Style::Italic], &list.explanation));
        }
        for item in &list.items {
            let step = match item.status() {
                _ if item.completed => {
                    format!("{} {}", self.paint.styled(&[Style::Green], "✓"), item.text)
                }
                Status::InProgress => {
                    format!("{} {}", self.paint.styled(&[Style::Cyan], "→"), item.text)
                }
                _ => {
                    let dimmed = |text: &str| self.paint.styled(&[Style::Dimmed], text);
                    format!("{} {}", dimmed("•"), dimmed(&item.text))
                }
            };
            text += &format!("  {step}\n");
        }
        text
    }
}
