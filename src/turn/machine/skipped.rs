//! What becomes of a turn when a line of its worker was too long to be read.
//!
//! News that are lost are told as a warning, and the turn goes on; a lost end ends it. From then on
//! nobody can promise that the turn had no effect.

use super::Step;
use super::owned::Whose;
use super::running::Run;
use crate::app_server::decode::{self, LostNews, Scope, TurnEnd};
use crate::app_server::message::SkippedLine;
use crate::app_server::whose::encoded_bytes;
use crate::model::event::{Event, WarningCode};
use crate::model::failure::{FailureReason, TurnError};
use crate::model::item::{AgentMessage, Item, ItemKind, SubAgentStatus};

/// An agent message as far as its deltas have told it.
#[derive(Debug, Default)]
pub(super) struct OpenMessage {
    id: String,
    text: String,
    // A delta was lost, or there were more than are kept.
    is_cut: bool,
}

/// As long as the longest line that can be configured: more than any model writes at once.
const LONGEST_MESSAGE: usize = 64 << 20;

impl OpenMessage {
    /// Takes in a delta; one of another message begins anew.
    pub(super) fn add(&mut self, item_id: &str, text: &str) {
        self.turn_to(item_id);
        if self.text.len() + text.len() > LONGEST_MESSAGE {
            self.is_cut = true;
        }
        if !self.is_cut {
            self.text.push_str(text);
        }
    }

    /// The message is final, and known from elsewhere.
    pub(super) fn close(&mut self, item_id: &str) {
        if self.id == item_id {
            *self = OpenMessage::default();
        }
    }

    fn turn_to(&mut self, item_id: &str) {
        if self.id != item_id {
            *self = OpenMessage { id: item_id.to_owned(), ..OpenMessage::default() };
        }
    }

    /// Takes the text of a message out, and whether it is all of it: as long as its lost line said.
    fn take(&mut self, item_id: Option<&str>, text_bytes: Option<u64>) -> (String, bool) {
        if item_id.is_none_or(|id| id != self.id) {
            return (String::new(), false);
        }
        let OpenMessage { id: _, text, is_cut } = std::mem::take(self);
        let is_whole = !is_cut && text_bytes == Some(encoded_bytes(&text));
        (text, is_whole)
    }

    /// The text of a message of which no end came.
    pub(super) fn unended(&mut self) -> Option<String> {
        let OpenMessage { id, text, .. } = std::mem::take(self);
        (!id.is_empty()).then_some(text)
    }
}

impl Run {
    /// Files a line over the limit as what was lost.
    pub(super) fn skip(&mut self, line: &SkippedLine, step: &mut Step<'_>) {
        let scope = Scope { thread_id: line.thread_id.clone(), turn_id: line.turn_id.clone() };
        let whose = self.owned.whose(&scope);
        if whose == Whose::Another {
            // A late word on an earlier turn of this thread.
            return;
        }
        self.side_effects = true;
        if line.turn_id.is_some() {
            step.clocks.note_progress(step.now);
        }
        let limit = format!(
            "{} bytes, more than limits.max_line_bytes, which is {}",
            line.bytes, line.limit
        );
        let (mut end, mut message) = (None, None);
        let consequence = match decode::skipped(line) {
            lost if matches!(whose, Whose::Agent(_)) => self.lose_agents(&scope, lost, step),
            LostNews::TurnEnded { is_interrupted: true, .. } => {
                end = Some(TurnEnd::Interrupted);
                "it told that the turn was interrupted".to_owned()
            }
            LostNews::TurnEnded { status, .. } => {
                end = Some(TurnEnd::Failed(lost_end(&limit, status.as_deref())));
                "it was the turn's end".to_owned()
            }
            LostNews::ItemStarted { item_id, is_command } => {
                if is_command {
                    self.owned.loses_begin_of_command(self.thread_id.as_str(), item_id);
                }
                self.has_begun = true;
                "the turn goes on".to_owned()
            }
            LostNews::MessageCompleted { item_id, text_bytes } => {
                if let Some(item_id) = &item_id {
                    self.release_withheld(item_id, step.acts);
                }
                let (text, is_whole) = self.open_message.take(item_id.as_deref(), text_bytes);
                self.final_response = Some(text.clone());
                self.has_begun = true;
                if is_whole {
                    let kind = ItemKind::AgentMessage(AgentMessage { text, phase: String::new() });
                    message = item_id.map(|id| Item::new(id, kind));
                    "the message is known from its deltas".to_owned()
                } else {
                    "of the message, and of final_response if it is the last one, there is only what \
                     its deltas told"
                        .to_owned()
                }
            }
            LostNews::ItemCompleted { item_id } => {
                self.owned.loses_end_of_item(self.thread_id.as_str(), item_id.as_deref());
                self.has_begun = true;
                "the turn goes on".to_owned()
            }
            LostNews::MessageDelta { item_id } => {
                if let Some(item_id) = item_id {
                    self.open_message.turn_to(&item_id);
                    self.open_message.is_cut = true;
                }
                "the message's item has the whole text".to_owned()
            }
            LostNews::Other if line.id.is_some() => {
                "it was a question, and was declined".to_owned()
            }
            LostNews::Other => "the turn goes on".to_owned(),
            LostNews::Unknown => {
                self.is_response_doubtful = true;
                "it can't be told which turn it was about, so that every turn of the worker says so"
                    .to_owned()
            }
        };
        // First what is larger than all that is retained of a turn, so that the warning outlives it.
        if let Some(item) = message {
            self.tell(Event::item_completed(item), step.acts);
        }
        self.tell(line_skipped(line, &limit, &consequence), step.acts);
        if let Some(end) = end
            && self.owned.turn_ends(line.turn_id.as_deref(), false, step.now)
        {
            self.end = Some(end);
        }
    }

    /// What was lost of a sub-agent: it goes on, or has ended as far as its turn can tell.
    fn lose_agents(&mut self, scope: &Scope, lost: LostNews, step: &mut Step<'_>) -> String {
        let thread_id = scope.thread_id.as_deref().unwrap_or_default();
        match lost {
            LostNews::TurnEnded { is_interrupted, .. } => {
                let status = match is_interrupted {
                    true => SubAgentStatus::Interrupted,
                    false => SubAgentStatus::Failed,
                };
                let failure = "how it ended was in a line that is too long to be read";
                let ended = self.owned.agent_ends(thread_id, status, Some(failure), step.now);
                if let Some(item) = ended {
                    self.tell(Event::item_completed(item), step.acts);
                }
                "it was the end of a sub-agent's turn".to_owned()
            }
            LostNews::ItemStarted { item_id, is_command: true } => {
                self.owned.loses_begin_of_command(thread_id, item_id);
                "the sub-agent goes on".to_owned()
            }
            LostNews::ItemCompleted { item_id } => {
                self.owned.loses_end_of_item(thread_id, item_id.as_deref());
                "the sub-agent goes on".to_owned()
            }
            LostNews::ItemStarted { .. }
            | LostNews::MessageCompleted { .. }
            | LostNews::MessageDelta { .. }
            | LostNews::Other
            | LostNews::Unknown => "the sub-agent goes on".to_owned(),
        }
    }
}

fn line_skipped(line: &SkippedLine, limit: &str, consequence: &str) -> Event {
    let what = match (&line.method, &line.item_type) {
        (Some(method), Some(kind)) => format!(" ({method} of {kind})"),
        (Some(method), None) => format!(" ({method})"),
        (None, _) => String::new(),
    };
    let message =
        format!("the Codex process wrote a line of {limit}{what}; it was skipped: {consequence}");
    let details = "CODEX_SIDECAR_MAX_LINE_BYTES, or max_line_bytes in the section limits, may be as \
                   high as 67108864";
    Event::warning(WarningCode::LineSkipped, message, details)
}

fn lost_end(limit: &str, status: Option<&str>) -> TurnError {
    let status = status.map(|status| format!(" (Codex calls it {status})")).unwrap_or_default();
    let message =
        format!("how the turn ended{status} can't be read: the line that tells it has {limit}");
    TurnError {
        // It would be as long again: not retryable.
        side_effects_possible: true,
        ..TurnError::new(FailureReason::WorkerProtocol, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_message_is_its_deltas_if_they_are_as_long_as_it_was() {
        let told = || {
            let mut message = OpenMessage::default();
            message.add("old", "of another message");
            message.add("m", "say \"");
            message.add("m", "hello\n\"");
            message
        };
        let text = "say \"hello\n\"";
        let length = encoded_bytes(text);
        assert_eq!(told().take(Some("m"), Some(length)), (text.to_owned(), true));
        assert_eq!(told().take(Some("m"), Some(length + 1)), (text.to_owned(), false));
        assert_eq!(told().take(Some("m"), None), (text.to_owned(), false));
        assert_eq!(told().take(Some("old"), Some(18)), (String::new(), false));
        assert_eq!(told().take(None, Some(length)), (String::new(), false));
        let mut cut = told();
        cut.is_cut = true;
        assert!(!cut.take(Some("m"), Some(length)).1);
        let mut closed = told();
        closed.close("old");
        assert_eq!(closed.unended().as_deref(), Some(text));
        closed.close("m");
        assert_eq!(closed.unended(), None);
    }

    #[test]
    fn what_is_kept_of_a_message_is_bounded() {
        let mut message = OpenMessage::default();
        let piece = "x".repeat(1 << 20);
        for _ in 0..80 {
            message.add("m", &piece);
        }
        assert!(message.text.len() <= LONGEST_MESSAGE && message.is_cut);
    }
}
