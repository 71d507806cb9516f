//! The events of a turn, for people.
//!
//! Text streams as it comes; everything else is a line or a few. What came from a model or a
//! command is printed without control characters, which could play tricks on a terminal.

use std::collections::{HashMap, HashSet};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::shown::{Missed, Shown};
use super::turn::Output;
use super::words::{plain, show_error, show_question, show_time, show_usage, word};
use crate::pb;
use crate::pb::item::Kind;
use crate::pb::turn_event::Event;

/// Whether a stream may be coloured.
pub(super) fn colours_wanted(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused
}

/// How long nothing must have been printed before time is shown.
const SILENCE: Duration = Duration::from_secs(1);

/// Prints one turn after the other.
pub(super) struct Printer<W> {
    out: W,
    colours: bool,
    /// The item whose text is being streamed; its line may be unfinished.
    streaming: Option<String>,
    at_line_start: bool,
    /// What was streamed of items, so that it is not printed again with their whole text.
    streamed: HashMap<String, Shown>,
    /// Items whose first line was printed.
    announced: HashSet<String>,
    /// The plan as it was printed last, which its completion repeats.
    plan: String,
    /// Whether the turn showed an agent message.
    answered: bool,
    /// Whether a turn without an agent message has its final response printed.
    prints_final_response: bool,
    /// Whether the line that shows the time is there, to be wiped before anything else is printed.
    shows_time: bool,
    began: Instant,
    printed: Instant,
    /// What the turn does, as far as it said.
    doing: String,
    /// The same before it asked.
    doing_before: Option<String>,
    /// The line that shows the time, as it is.
    time_line: String,
}

/// How a piece of text looks.
#[derive(Clone, Copy)]
enum Look {
    Normal,
    Bold,
    Dim,
    Red,
    Yellow,
}

impl Look {
    fn code(self) -> &'static str {
        match self {
            Look::Normal => "",
            Look::Bold => "\x1b[1m",
            Look::Dim => "\x1b[2m",
            Look::Red => "\x1b[31m",
            Look::Yellow => "\x1b[33m",
        }
    }
}

impl<W: Write> Output for Printer<W> {
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure> {
        Ok(self.show(event)?)
    }

    fn finish_line(&mut self) -> Result<(), Failure> {
        Ok(self.end_line()?)
    }
}

impl<W: Write> Printer<W> {
    /// A printer on `out`.
    pub(super) fn new(out: W, colours: bool) -> Printer<W> {
        Printer {
            out,
            colours,
            streaming: None,
            at_line_start: true,
            streamed: HashMap::new(),
            announced: HashSet::new(),
            plan: String::new(),
            answered: false,
            prints_final_response: true,
            shows_time: false,
            began: Instant::now(),
            printed: Instant::now(),
            doing: "waiting for the sidecar".to_owned(),
            doing_before: None,
            time_line: String::new(),
        }
    }

    /// The same for a caller who prints the final response.
    pub(super) fn without_final_response(mut self) -> Printer<W> {
        self.prints_final_response = false;
        self
    }

    /// Whether the turn's last agent message was printed.
    pub(super) fn has_answered(&self) -> bool {
        self.answered
    }

    /// Shows how long it has been going on, where nothing was printed for a while. For terminals:
    /// the line, of at most `width` characters, is wiped when something is printed.
    pub(super) fn show_time(&mut self, width: usize) -> io::Result<()> {
        if !self.at_line_start || self.printed.elapsed() < SILENCE {
            return Ok(());
        }
        let elapsed = Duration::from_secs(self.began.elapsed().as_secs());
        let text = format!("[{}] {}", humantime::format_duration(elapsed), self.doing);
        // One less: the last column would break the line.
        let text: String = text.chars().take(width.saturating_sub(1)).collect();
        if self.shows_time && self.time_line == text {
            return Ok(());
        }
        self.shows_time = true;
        self.time_line.clone_from(&text);
        let (dim, plain) = if self.colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        write!(self.out, "\r\x1b[2K{dim}{text}{plain}")?;
        self.out.flush()
    }

    /// Wipes the line that shows the time.
    fn wipe_time(&mut self) -> io::Result<()> {
        self.printed = Instant::now();
        if std::mem::take(&mut self.shows_time) {
            self.out.write_all(b"\r\x1b[2K")?;
        }
        Ok(())
    }

    /// Keeps in mind what the turn does.
    fn note_doing(&mut self, event: &Event) {
        let doing = match event {
            Event::Queued(_) => "waiting in the queue".to_owned(),
            Event::ItemStarted(pb::ItemStarted {
                item: Some(pb::Item { kind: Some(kind), .. }),
            }) => match kind {
                Kind::CommandExecution(command) => format!("running {}", command.command),
                Kind::McpToolCall(call) => format!("calling {}.{}", call.server, call.tool),
                Kind::DynamicToolCall(call) => format!("calling {}", call.tool),
                _ => "thinking".to_owned(),
            },
            Event::RequestRaised(_) => {
                self.doing_before.get_or_insert_with(|| self.doing.clone());
                "waiting for an answer".to_owned()
            }
            Event::RequestResolved(_) => match self.doing_before.take() {
                Some(before) => before,
                None => return,
            },
            Event::TokenUsageUpdated(_)
            | Event::TurnDiffUpdated(_)
            | Event::CommandOutputDelta(_) => {
                return;
            }
            _ => "thinking".to_owned(),
        };
        self.doing = plain(&doing);
    }

    /// Takes note of an event that somebody else shows.
    pub(super) fn note_event(&mut self, event: &pb::TurnEvent) {
        if let Some(kind) = &event.event {
            self.note_doing(kind);
        }
    }

    /// Prints something of a thread's history.
    pub(super) fn show_item(&mut self, item: &pb::Item) -> io::Result<()> {
        self.item(Some(item), true)?;
        self.out.flush()
    }

    /// Forgets what was printed of a turn: another one may number its items as this one did.
    pub(super) fn begin_turn(&mut self) {
        self.streamed.clear();
        self.announced.clear();
        self.plan.clear();
    }

    /// Prints an event. What a terminal event says about failure is left to the caller, who has to
    /// give it an exit code.
    fn show(&mut self, event: &pb::TurnEvent) -> io::Result<()> {
        let Some(kind) = &event.event else {
            return Ok(());
        };
        self.note_doing(kind);
        match kind {
            Event::AgentMessageDelta(delta) => {
                self.answered = true;
                self.stream(&delta.item_id, &delta.text, Look::Normal, "")?;
            }
            Event::ReasoningDelta(delta) => {
                self.stream(&delta.item_id, &delta.text, Look::Dim, "")?;
            }
            Event::CommandOutputDelta(delta) => {
                self.stream(&delta.item_id, &delta.text, Look::Dim, "  ")?;
            }
            Event::ItemStarted(pb::ItemStarted { item }) => self.item(item.as_ref(), false)?,
            Event::ItemUpdated(pb::ItemUpdated { item }) => self.item(item.as_ref(), false)?,
            Event::ItemCompleted(pb::ItemCompleted { item }) => self.item(item.as_ref(), true)?,
            Event::Queued(pb::Queued { position }) => {
                self.line(Look::Dim, &format!("waiting, position {position} in the queue"))?;
            }
            Event::ThreadStarted(thread) => {
                let origin = word(thread.origin().as_str_name(), "THREAD_ORIGIN_");
                let text = format!("thread {} ({origin})", thread.thread_id);
                self.line(Look::Dim, &text)?;
            }
            Event::TurnStarted(_) => {
                self.answered = false;
                self.line(Look::Dim, &format!("turn {}", event.turn_id))?;
            }
            Event::TurnDiffUpdated(pb::TurnDiffUpdated { diff }) => {
                let added = diff.lines().filter(|line| is_change(line, '+')).count();
                let removed = diff.lines().filter(|line| is_change(line, '-')).count();
                self.line(Look::Dim, &format!("diff so far: +{added} -{removed} lines"))?;
            }
            Event::TokenUsageUpdated(usage) => {
                let text = format!("tokens so far: {}", show_usage(usage.usage.as_ref()));
                self.line(Look::Dim, &text)?;
            }
            Event::ThreadError(pb::ThreadError { error, will_retry }) => {
                let again = if *will_retry { ", Codex tries again" } else { "" };
                let error = error.as_ref().map(show_error).unwrap_or_default();
                self.line(Look::Yellow, &format!("problem{again}: {error}"))?;
            }
            Event::Warning(pb::Warning { code, message, details }) => {
                let details =
                    if details.is_empty() { String::new() } else { format!(" ({details})") };
                self.line(Look::Yellow, &format!("warning: {code}: {message}{details}"))?;
            }
            // A failure has its warning.
            Event::McpServerStatus(status) => {
                let state = word(status.state().as_str_name(), "MCP_SERVER_STATE_");
                self.line(Look::Dim, &format!("MCP server {}: {state}", status.server))?;
            }
            Event::RequestRaised(pb::RequestRaised { request }) => {
                if let Some(request) = request {
                    let asked = show_question(request);
                    let text = format!("Codex asks (request {}): {asked}", request.request_id);
                    self.line(Look::Yellow, &text)?;
                }
            }
            Event::RequestResolved(resolved) => {
                let how = word(resolved.resolution().as_str_name(), "REQUEST_RESOLUTION_");
                self.line(
                    Look::Dim,
                    &format!("request {} is settled: {how}", resolved.request_id),
                )?;
            }
            Event::ApprovalReviewed(review) => {
                let status = word(review.status().as_str_name(), "APPROVAL_REVIEW_STATUS_");
                let text = format!("Codex's reviewer: {status} {}", plain(&review.rationale));
                self.line(Look::Yellow, text.trim_end())?;
            }
            Event::Gap(pb::Gap { from, to }) => {
                self.line(Look::Yellow, &format!("events {from} to {to} are missing"))?;
            }
            Event::Raw(pb::Raw { method, json }) => {
                self.line(Look::Dim, &format!("{method} {json}"))?;
            }
            Event::TurnCompleted(done) => {
                if !self.answered && self.prints_final_response {
                    self.text(Look::Normal, &done.final_response, "")?;
                }
                self.end("completed", done.usage.as_ref())?;
            }
            Event::TurnFailed(failed) => self.end("failed", failed.usage.as_ref())?,
            Event::TurnInterrupted(stopped) => {
                let reason = word(stopped.reason().as_str_name(), "INTERRUPT_REASON_");
                self.end(&format!("interrupted ({reason})"), stopped.usage.as_ref())?;
            }
        }
        self.out.flush()
    }

    /// Finishes a line that is being streamed, for somebody else to write.
    fn end_line(&mut self) -> io::Result<()> {
        self.wipe_time()?;
        self.streaming = None;
        if !self.at_line_start {
            self.at_line_start = true;
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }

    /// Writes lines of our own.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.text(Look::Bold, text, "")?;
        self.out.flush()
    }

    fn item(&mut self, item: Option<&pb::Item>, completed: bool) -> io::Result<()> {
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

    fn end(&mut self, how: &str, usage: Option<&pb::Usage>) -> io::Result<()> {
        self.begin_turn();
        let usage = match usage {
            Some(_) => format!("; tokens: {}", show_usage(usage)),
            None => String::new(),
        };
        self.line(Look::Dim, &format!("{how}{usage}"))
    }

    /// A piece of an item's text, which may begin and end anywhere in a line.
    fn stream(&mut self, id: &str, text: &str, look: Look, indent: &str) -> io::Result<()> {
        if self.streaming.as_deref() != Some(id) {
            self.end_line()?;
            self.streaming = Some(id.to_owned());
        }
        self.streamed.entry(id.to_owned()).or_default().push(text);
        self.write(look, text, indent)
    }

    /// The whole text of an item, as far as it was not streamed.
    fn complete_text(&mut self, id: &str, look: Look, text: &str, indent: &str) -> io::Result<()> {
        let shown = self.streamed.remove(id).unwrap_or_default();
        let mark = |what: &str| format!("{indent}({what})");
        match shown.missed_of(text) {
            Missed::Nothing => {}
            Missed::Rest(rest) => {
                if self.streaming.as_deref() != Some(id) {
                    self.end_line()?;
                }
                self.write(look, rest, indent)?;
            }
            Missed::Parts(parts) => {
                for (at, part) in parts.into_iter().enumerate() {
                    let what = if at == 0 { "not shown above" } else { "…" };
                    self.line(Look::Yellow, &mark(what))?;
                    self.text(look, part, indent)?;
                }
            }
            Missed::Whole(whole) => {
                self.line(Look::Yellow, &mark("all of it"))?;
                self.text(look, whole, indent)?;
            }
        }
        self.end_line()
    }

    /// A text of whole lines.
    fn text(&mut self, look: Look, text: &str, indent: &str) -> io::Result<()> {
        self.end_line()?;
        self.write(look, text, indent)?;
        self.end_line()
    }

    /// A text as one line.
    fn line(&mut self, look: Look, text: &str) -> io::Result<()> {
        self.text(look, &text.replace(['\n', '\r'], " "), "")
    }

    fn write(&mut self, look: Look, text: &str, indent: &str) -> io::Result<()> {
        self.wipe_time()?;
        let colour = self.colours && !look.code().is_empty();
        for line in text.split_inclusive('\n') {
            if self.at_line_start {
                self.out.write_all(indent.as_bytes())?;
            }
            let shown: String = line.chars().filter(|c| !c.is_control() || *c == '\t').collect();
            if colour {
                write!(self.out, "{}{shown}\x1b[0m", look.code())?;
            } else {
                self.out.write_all(shown.as_bytes())?;
            }
            self.at_line_start = line.ends_with('\n');
            if self.at_line_start {
                self.out.write_all(b"\n")?;
            }
        }
        Ok(())
    }
}

/// A line that a diff adds or removes; its headers begin with the same sign.
fn is_change(line: &str, sign: char) -> bool {
    line.starts_with(sign) && !line.starts_with(if sign == '+' { "+++ " } else { "--- " })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event: Event) -> pb::TurnEvent {
        pb::TurnEvent { turn_id: "t-1".to_owned(), event: Some(event), ..Default::default() }
    }

    fn item(id: &str, kind: Kind) -> Option<pb::Item> {
        Some(pb::Item { id: id.to_owned(), kind: Some(kind) })
    }

    fn print(colours: bool, events: Vec<Event>) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, colours);
        for kind in events {
            printer.show(&event(kind)).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    fn message(text: &str) -> Kind {
        Kind::AgentMessage(pb::AgentMessage { text: text.to_owned(), phase: String::new() })
    }

    fn delta(id: &str, text: &str) -> Event {
        Event::AgentMessageDelta(pb::AgentMessageDelta {
            item_id: id.to_owned(),
            text: text.to_owned(),
        })
    }

    #[test]
    fn a_turn_is_printed_with_every_text_once() {
        let command = |exit_code, aggregated_output: &str| {
            Kind::CommandExecution(pb::CommandExecution {
                command: "echo hello".to_owned(),
                aggregated_output: aggregated_output.to_owned(),
                exit_code,
                duration: exit_code
                    .map(|_| prost_types::Duration { seconds: 0, nanos: 12_000_000 }),
                ..Default::default()
            })
        };
        let output = |text: &str| {
            Event::CommandOutputDelta(pb::CommandOutputDelta {
                item_id: "c".to_owned(),
                text: text.to_owned(),
            })
        };
        let usage = pb::Usage {
            input_tokens: 120,
            cached_input_tokens: 20,
            cache_write_input_tokens: 0,
            output_tokens: 15,
            reasoning_output_tokens: 3,
        };
        let printed = print(
            false,
            vec![
                Event::TurnStarted(pb::TurnStarted::default()),
                Event::ItemStarted(pb::ItemStarted { item: item("a", message("")) }),
                delta("a", "one "),
                delta("a", "two\nthr"),
                Event::ItemStarted(pb::ItemStarted { item: item("c", command(None, "")) }),
                output("hel"),
                output("lo\nworld\n"),
                Event::ItemCompleted(pb::ItemCompleted {
                    item: item("c", command(Some(3), "hello\nworld\n")),
                }),
                Event::ItemCompleted(pb::ItemCompleted {
                    item: item("a", message("one two\nthr")),
                }),
                // Never streamed, and started unseen.
                Event::ItemCompleted(pb::ItemCompleted {
                    item: item("d", command(Some(0), "all at once")),
                }),
                Event::TurnCompleted(pb::TurnCompleted {
                    final_response: "one two\nthr".to_owned(),
                    usage: Some(usage),
                    thread_usage: None,
                }),
            ],
        );
        let expected = "turn t-1\none two\nthr\n$ echo hello\n  hello\n  world\n  exit code 3 after \
                        12 ms\n$ echo hello\n  all at once\n  exit code 0 after 12 ms\ncompleted; \
                        tokens: 120 in (20 cached), 15 out (3 reasoning)\n";
        assert_eq!(printed, expected);
    }

    /// What Codex 0.169.0 tells of `echo start; sleep 3; echo end`, and of other such commands.
    #[test]
    fn output_that_was_never_streamed_is_printed_and_none_is_printed_twice() {
        let command = |pieces: &[&str], whole: &str| {
            let command = |exit_code, output: &str| {
                let command = pb::CommandExecution {
                    command: "c".to_owned(),
                    aggregated_output: output.to_owned(),
                    exit_code,
                    ..Default::default()
                };
                item("c", Kind::CommandExecution(command))
            };
            let mut events = vec![Event::ItemStarted(pb::ItemStarted { item: command(None, "") })];
            events.extend(pieces.iter().map(|piece| {
                let (item_id, text) = ("c".to_owned(), (*piece).to_owned());
                Event::CommandOutputDelta(pb::CommandOutputDelta { item_id, text })
            }));
            let ended = pb::ItemCompleted { item: command(Some(0), whole) };
            events.push(Event::ItemCompleted(ended));
            print(false, events)
        };
        let cases = [
            (&["end\n"][..], "start\nend\n", "  end\n  (not shown above)\n  start\n"),
            (&["star"], "start\nend", "  start\n  end\n"),
            (&["start\n", "end\n"], "start\nend\n", "  start\n  end\n"),
            (&[], "start\nend\n", "  start\n  end\n"),
            (&["b\n", "d\n"], "a\nb\nc\nd\n", {
                "  b\n  d\n  (not shown above)\n  a\n  (…)\n  c\n"
            }),
            (&["x\n"], "start\n", "  x\n  (all of it)\n  start\n"),
        ];
        for (pieces, whole, expected) in cases {
            let expected = format!("$ c\n{expected}  exit code 0\n");
            assert_eq!(command(pieces, whole), expected, "{pieces:?} of {whole:?}");
        }
    }

    #[test]
    fn a_turn_without_an_answer_shows_its_final_response() {
        let done = pb::TurnCompleted {
            final_response: "Codex task completed with inputs.".to_owned(),
            usage: None,
            thread_usage: None,
        };
        let printed = print(false, vec![Event::TurnCompleted(done)]);
        assert_eq!(printed, "Codex task completed with inputs.\ncompleted\n");
    }

    #[test]
    fn escape_sequences_of_a_command_do_not_reach_the_terminal() {
        let output = Event::CommandOutputDelta(pb::CommandOutputDelta {
            item_id: "c".to_owned(),
            text: "\x1b]0;title\x07\ta\r\nb\u{9b}2J".to_owned(),
        });
        assert_eq!(print(false, vec![output.clone()]), "  ]0;title\ta\n  b2J");
        assert_eq!(print(true, vec![output]), "  \x1b[2m]0;title\ta\x1b[0m\n  \x1b[2mb2J\x1b[0m");
    }

    #[test]
    fn a_plan_is_printed_when_it_changes() {
        let plan = |completed| {
            item(
                "plan",
                Kind::TodoList(pb::TodoList {
                    items: vec![pb::TodoItem { text: "look".to_owned(), completed, status: 0 }],
                    explanation: String::new(),
                }),
            )
        };
        let printed = print(
            false,
            vec![
                Event::ItemStarted(pb::ItemStarted { item: plan(false) }),
                Event::ItemUpdated(pb::ItemUpdated { item: plan(true) }),
                Event::ItemCompleted(pb::ItemCompleted { item: plan(true) }),
            ],
        );
        assert_eq!(printed, "plan:\n  [ ] look\nplan:\n  [x] look\n");
    }
}
