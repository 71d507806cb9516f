//! How each kind of item is printed.

use std::io::{self, Write};

use super::{Look, Printer};
use crate::cli::words::{plain, show_time, word};
use crate::pb;
use crate::pb::item::Kind;

impl<W: Write> Printer<W> {
    pub(super) fn item(&mut self, item: Option<&pb::Item>, completed: bool) -> io::Result<()> {
        let Some(pb::Item { id, kind: Some(kind) }) = item else {
            return Ok(());
        };
        let first_time = self.announced.insert(id.clone());
        match kind {
            Kind::AgentMessage(message) => {
                if completed {
                    self.answered = true;
                    self.complete_text(id, Look::Normal, &message.text, "")?;
                }
            }
            Kind::Reasoning(pb::Reasoning { summary, content }) => {
                if completed {
                    let parts = if summary.is_empty() { content } else { summary };
                    if self.streamed.remove(id).is_some() {
                        // Its parts were told without what is between them here.
                        self.end_line()?;
                    } else {
                        self.complete_text(id, Look::Dim, &parts.join("\n"), "")?;
                    }
                }
            }
            Kind::CommandExecution(command) => {
                if first_time {
                    self.line(Look::Bold, &format!("$ {}", command.command))?;
                }
                if completed {
                    self.complete_text(id, Look::Dim, &command.aggregated_output, "  ")?;
                    let (look, how) = match (command.exit_code, command.status()) {
                        (Some(0), _) => (Look::Dim, "exit code 0".to_owned()),
                        (Some(code), _) => (Look::Red, format!("exit code {code}")),
                        (None, status) => {
                            let prefix = "COMMAND_EXECUTION_STATUS_";
                            (Look::Red, word(status.as_str_name(), prefix))
                        }
                    };
                    self.line(look, &format!("  {how}{}", show_time(command.duration.as_ref())))?;
                }
            }
            Kind::FileChange(change) => {
                if completed {
                    self.file_change(change)?;
                }
            }
            Kind::McpToolCall(call) => {
                if first_time {
                    let text =
                        format!("call {}.{} {}", call.server, call.tool, call.arguments_json);
                    self.line(Look::Bold, &text)?;
                }
                if completed {
                    let time = show_time(call.duration.as_ref());
                    if call.error_message.is_empty() {
                        self.line(Look::Dim, &format!("  {}{time}", call.result_json))?;
                    } else {
                        self.line(Look::Red, &format!("  failed{time}: {}", call.error_message))?;
                    }
                }
            }
            Kind::DynamicToolCall(call) => {
                if first_time {
                    let text = format!("call {} {}", call.tool, call.arguments_json);
                    self.line(Look::Bold, &text)?;
                }
                if completed {
                    let how = word(call.status().as_str_name(), "DYNAMIC_TOOL_CALL_STATUS_");
                    let look = if call.success == Some(true) { Look::Dim } else { Look::Red };
                    self.line(look, &format!("  {how}{}", show_time(call.duration.as_ref())))?;
                }
            }
            Kind::WebSearch(search) => {
                if completed {
                    self.line(Look::Bold, &format!("web search: {}", search.query))?;
                }
            }
            Kind::TodoList(list) => self.todo_list(list)?,
            Kind::Error(pb::ErrorItem { message }) => {
                if first_time {
                    self.line(Look::Yellow, &format!("problem: {message}"))?;
                }
            }
            Kind::UserMessage(message) => {
                if first_time {
                    self.user_message(message)?;
                }
            }
            Kind::ImageView(pb::ImageView { path }) => {
                if first_time {
                    self.line(Look::Dim, &format!("looked at {path}"))?;
                }
            }
            Kind::ContextCompaction(pb::ContextCompaction {}) => {
                if first_time {
                    self.line(Look::Dim, "summed up the thread's history to make room")?;
                }
            }
            Kind::SubAgent(agent) => self.sub_agent(agent, first_time, completed)?,
            Kind::Plan(pb::Plan { text }) => {
                if completed {
                    self.complete_text(id, Look::Normal, text, "")?;
                }
            }
            Kind::ImageGeneration(image) => {
                if completed {
                    let text = format!("image: {} {}", image.status, image.saved_path);
                    self.line(Look::Bold, text.trim_end())?;
                }
            }
            Kind::ReviewMode(review) => {
                if first_time {
                    let what = if review.entered { "review of" } else { "review:" };
                    self.text(Look::Bold, &format!("{what} {}", plain(&review.review)), "")?;
                }
            }
            Kind::HookPrompt(hook) => {
                if first_time {
                    for fragment in &hook.fragments {
                        self.text(Look::Dim, &fragment.text, "| ")?;
                    }
                }
            }
            Kind::Unknown(unknown) => {
                if first_time {
                    self.line(Look::Dim, &format!("{} {}", unknown.r#type, unknown.json))?;
                }
            }
        }
        Ok(())
    }

    fn sub_agent(
        &mut self,
        agent: &pb::SubAgent,
        first_time: bool,
        completed: bool,
    ) -> io::Result<()> {
        let action = word(agent.action().as_str_name(), "SUB_AGENT_ACTION_");
        if first_time {
            let ids: Vec<&str> =
                agent.agents.iter().map(|agent| agent.thread_id.as_str()).collect();
            let text = format!("sub-agent {}: {action} {}", ids.join(", "), plain(&agent.prompt));
            self.line(Look::Bold, text.trim_end())?;
        }
        if completed {
            for agent in &agent.agents {
                let phase = word(agent.phase().as_str_name(), "SUB_AGENT_PHASE_");
                let said = plain(&agent.message);
                self.line(Look::Dim, format!("  {phase} {said}").trim_end())?;
            }
        }
        Ok(())
    }

    fn file_change(&mut self, change: &pb::FileChange) -> io::Result<()> {
        for file in &change.changes {
            let sign = match file.kind() {
                pb::FileChangeKind::Add => '+',
                pb::FileChangeKind::Delete => '-',
                pb::FileChangeKind::Update | pb::FileChangeKind::Unspecified => '~',
            };
            let to = match file.move_path.as_str() {
                "" => String::new(),
                path => format!(" -> {path}"),
            };
            self.line(Look::Bold, &format!("{sign} {}{to}", file.path))?;
        }
        if change.status() != pb::FileChangeStatus::Completed {
            let how = word(change.status().as_str_name(), "FILE_CHANGE_STATUS_");
            self.line(Look::Red, &format!("  {how}"))?;
        }
        Ok(())
    }

    fn todo_list(&mut self, list: &pb::TodoList) -> io::Result<()> {
        let mut plan = String::from("plan:");
        for item in &list.items {
            let sign = match item.status() {
                pb::TodoStatus::Completed => 'x',
                pb::TodoStatus::InProgress => '>',
                _ if item.completed => 'x',
                _ => ' ',
            };
            plan.push_str(&format!("\n  [{sign}] {}", plain(&item.text)));
        }
        if self.plan != plan {
            self.text(Look::Normal, &plan, "")?;
            self.plan = plan;
        }
        Ok(())
    }

    fn user_message(&mut self, message: &pb::UserMessage) -> io::Result<()> {
        use pb::user_input::Input;
        for input in message.inputs.iter().filter_map(|input| input.input.as_ref()) {
            match input {
                Input::Text(text) => self.text(Look::Dim, text, "> ")?,
                Input::LocalImage(pb::LocalImage { path }) => {
                    self.line(Look::Dim, &format!("> image {path}"))?;
                }
                // May be a data address of megabytes.
                Input::ImageUrl(url) => {
                    let start: String = url.chars().take(80).collect();
                    self.line(Look::Dim, &format!("> image {start}"))?;
                }
                Input::Skill(pb::Skill { name, .. }) => {
                    self.line(Look::Dim, &format!("> skill {name}"))?;
                }
                Input::Mention(pb::Mention { name, path }) => {
                    self.line(Look::Dim, &format!("> mention {name} ({path})"))?;
                }
                Input::ExternalMessage(pb::ExternalMessage { source, text }) => {
                    self.line(Look::Dim, &format!("> from {source}:"))?;
                    self.text(Look::Dim, text, "> ")?;
                }
            }
        }
        Ok(())
    }
}
