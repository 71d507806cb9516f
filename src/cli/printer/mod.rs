//! The events of a turn, for people.
//!
//! Text streams as it comes; everything else is a line or a few. What came from a model or a
//! command is printed without control characters, which could play tricks on a terminal.

mod clock;
mod items;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use super::failure::Failure;
use super::shown::{Missed, Shown};
use super::turn::Output;
use super::words::{plain, show_error, show_question, show_usage, word};
use crate::pb;
use crate::pb::turn_event::Event;

/// Whether a stream may be coloured.
pub(super) fn colours_wanted(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused && !is_dumb()
}

/// Whether the terminal says that it knows no escape sequences.
pub(super) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

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
