//! The events of a turn as `codex exec` tells them to people, on standard error.
//!
//! Pure: an event of the contract goes in, text comes out. What the real one does not tell (deltas,
//! what the user said, questions) is not told here either.

mod header;
mod item;
mod paint;

pub(super) use self::header::Header;
pub(super) use self::paint::Paint;

use self::paint::Style;
use super::jsonl::is_from_codex;
use crate::pb;
use crate::pb::turn_event::Event;

/// Which of its thoughts the model's user wants to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Thoughts {
    /// Any.
    pub(super) shown: bool,
    /// As they were thought, where they are known, and not a summary.
    pub(super) raw: bool,
}

/// Renders the events of one turn.
#[derive(Debug)]
pub(super) struct Renderer {
    paint: Paint,
    thoughts: Thoughts,
    /// Until it is told.
    header: Option<Header>,
    /// What was told before the turn had begun, for after the header.
    held_back: String,
    thread_usage: Option<pb::Usage>,
    /// The one that was told last: Codex repeats it at every item.
    diff: String,
    /// Codex does not tell what a review uses.
    is_review: bool,
}

impl Renderer {
    pub(super) fn new(
        header: Header,
        thoughts: Thoughts,
        paint: Paint,
        is_review: bool,
    ) -> Renderer {
        Renderer {
            paint,
            thoughts,
            header: Some(header),
            held_back: String::new(),
            thread_usage: None,
            diff: String::new(),
            is_review,
        }
    }

    /// The text that an event makes.
    pub(super) fn event(&mut self, event: &pb::TurnEvent) -> String {
        let Some(event) = &event.event else {
            // From a newer sidecar; a client skips what it does not know.
            return String::new();
        };
        let text = match event {
            Event::ThreadStarted(thread) => {
                if let Some(header) = &mut self.header {
                    header.thread_id.clone_from(&thread.thread_id);
                }
                return String::new();
            }
            Event::TurnStarted(started) => {
                if let (Some(header), Some(settings)) = (&mut self.header, &started.settings) {
                    header.settings = settings.clone();
                }
                return self.header();
            }
            Event::Warning(warning) if is_from_codex(warning) => self.warning(warning),
            Event::Warning(warning) => self.line(Style::Yellow, "warning:", &warning.message),
            Event::Gap(pb::Gap { from, to }) => {
                let lost = to.saturating_sub(*from) + 1;
                let text = format!("event stream lagged; dropped {lost} events");
                self.line(Style::Yellow, "warning:", &text)
            }
            // The others wait for the turn's beginning, which tells what it runs with.
            event => {
                let text = self.of_running(event);
                return if text.is_empty() { text } else { self.header() + &text };
            }
        };
        if self.header.is_some() {
            self.held_back += &text;
            return String::new();
        }
        text
    }

    fn of_running(&mut self, event: &Event) -> String {
        match event {
            Event::ItemStarted(pb::ItemStarted { item: Some(item) }) => self.item_started(item),
            Event::ItemUpdated(pb::ItemUpdated { item: Some(item) }) => self.item_updated(item),
            Event::ItemCompleted(pb::ItemCompleted { item: Some(item) }) => {
                self.item_completed(item)
            }
            Event::TurnDiffUpdated(pb::TurnDiffUpdated { diff })
                if !diff.trim().is_empty() && *diff != self.diff =>
            {
                self.diff.clone_from(diff);
                format!("{diff}\n")
            }
            Event::TokenUsageUpdated(usage) => {
                self.thread_usage = usage.thread_usage.or(self.thread_usage);
                String::new()
            }
            Event::ThreadError(pb::ThreadError { error, will_retry: _ }) => {
                self.error(error.as_ref())
            }
            Event::TurnCompleted(done) => {
                self.thread_usage = done.thread_usage.or(self.thread_usage);
                String::new()
            }
            Event::TurnFailed(failed) => {
                self.thread_usage = failed.thread_usage.or(self.thread_usage);
                let is_full = |error: &pb::TurnError| error.reason == "CONTEXT_WINDOW_EXCEEDED";
                if failed.error.as_ref().is_some_and(is_full) && !self.is_review {
                    // The real one begins to count again where the window is full.
                    self.thread_usage = Some(pb::Usage::default());
                }
                self.error(failed.error.as_ref())
            }
            Event::TurnInterrupted(interrupted) => {
                self.thread_usage = interrupted.thread_usage.or(self.thread_usage);
                format!("{}\n", self.paint.styled(&[Style::Dimmed], "turn interrupted"))
            }
            _ => String::new(),
        }
    }

    /// What comes after the last event: what the thread has used.
    pub(super) fn usage(&self) -> String {
        let Some(usage) = &self.thread_usage else { return String::new() };
        let pb::Usage { input_tokens, cached_input_tokens, output_tokens, .. } = usage;
        let used = input_tokens.saturating_sub(*cached_input_tokens) + output_tokens;
        let title = self.paint.styled(&[Style::Dimmed], "tokens used");
        format!("{title}\n{}\n", with_separators(used))
    }

    fn header(&mut self) -> String {
        match self.header.take() {
            Some(header) => header.text(self.paint) + &std::mem::take(&mut self.held_back),
            None => String::new(),
        }
    }

    fn warning(&self, warning: &pb::Warning) -> String {
        let pb::Warning { code, message, details } = warning;
        match code.as_str() {
            "DEPRECATION_NOTICE" => {
                let mut text = self.line(Style::Yellow, "deprecated:", message);
                if !details.is_empty() {
                    text += &format!("{}\n", self.paint.styled(&[Style::Dimmed], details));
                }
                text
            }
            "CONFIG_WARNING" if !details.is_empty() => {
                self.line(Style::Yellow, "warning:", &format!("{message} ({details})"))
            }
            _ => self.line(Style::Yellow, "warning:", message),
        }
    }

    fn error(&self, error: Option<&pb::TurnError>) -> String {
        let message = error.map_or("turn failed", |error| error.message.as_str());
        self.line(Style::Red, "ERROR:", message)
    }

    fn line(&self, style: Style, title: &str, text: &str) -> String {
        format!("{} {text}\n", self.paint.styled(&[Style::Bold, style], title))
    }
}

/// `24,367`.
fn with_separators(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests;
