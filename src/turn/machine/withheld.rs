//! Keeps keys out of texts that are told in pieces.
//!
//! A worker's lines hold no key, but a model writes word by word: of a key that it repeats, each line
//! would hold a part. So the pieces of an item's text are looked at one after the other.

use std::collections::HashMap;

use crate::model::event::{AgentMessageDelta, CommandOutputDelta, Event, ReasoningDelta};
use crate::redact::{Pieces, Redactor};

/// The texts that are being told.
#[derive(Debug)]
pub(super) struct Withheld {
    redactor: Redactor,
    texts: HashMap<TextId, Pieces>,
}

/// Which text of which item.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TextId {
    item_id: String,
    kind: TextKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum TextKind {
    Message,
    Output,
    Reasoning(i32, u32),
}

impl Withheld {
    pub(super) fn new(redactor: Redactor) -> Withheld {
        Withheld { redactor, texts: HashMap::new() }
    }

    /// Takes out of a delta what may be a part of a key; false if nothing is left to be told now.
    pub(super) fn hold(&mut self, event: &mut Event) -> bool {
        let (item_id, kind, text) = match event {
            Event::AgentMessageDelta(AgentMessageDelta { item_id, text }) => {
                (item_id, TextKind::Message, text)
            }
            Event::CommandOutputDelta(CommandOutputDelta { item_id, text }) => {
                (item_id, TextKind::Output, text)
            }
            Event::ReasoningDelta(ReasoningDelta { item_id, text, part, index }) => {
                (item_id, TextKind::Reasoning(*part, *index), text)
            }
            _ => return true,
        };
        if text.is_empty() {
            return true;
        }
        let id = TextId { item_id: item_id.clone(), kind };
        let pieces = self.texts.entry(id).or_default();
        *text = pieces.take(&self.redactor, std::mem::take(text));
        !text.is_empty()
    }

    /// Gives what was held back of an item's texts, once it is final.
    pub(super) fn release(&mut self, item_id: &str) -> Vec<Event> {
        let ended = self.texts.extract_if(|id, _| id.item_id == item_id);
        ended.filter_map(|(id, pieces)| rest(id, pieces)).collect()
    }

    /// The same of all texts, once the turn is over.
    pub(super) fn release_all(&mut self) -> Vec<Event> {
        self.texts.drain().filter_map(|(id, pieces)| rest(id, pieces)).collect()
    }
}

fn rest(TextId { item_id, kind }: TextId, pieces: Pieces) -> Option<Event> {
    let text = pieces.end();
    if text.is_empty() {
        return None;
    }
    Some(match kind {
        TextKind::Message => Event::agent_message_delta(item_id, text),
        TextKind::Output => Event::command_output_delta(item_id, text),
        TextKind::Reasoning(part, index) => {
            Event::ReasoningDelta(ReasoningDelta { item_id, text, part, index })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::ReasoningPart;

    #[test]
    fn a_key_that_is_told_in_pieces_is_taken_out_of_the_text_as_a_whole() {
        let mut withheld = Withheld::new(Redactor::new(["sk-0123456789".to_owned()]));
        let mut told = String::new();
        for piece in ["the key is sk-01", "2345", "6789, and", " so on sk-0"] {
            let mut event = Event::agent_message_delta("m".to_owned(), piece.to_owned());
            if withheld.hold(&mut event) {
                let Event::AgentMessageDelta(delta) = event else { panic!() };
                told += &delta.text;
            }
        }
        assert_eq!(told, "the key is [redacted], and so on ");
        // Other texts are of no matter to it, nor are other items.
        let part = ReasoningPart::Summary;
        let mut other = Event::reasoning_delta("m".to_owned(), "s".to_owned(), part, 0);
        assert!(!withheld.hold(&mut other));
        assert!(withheld.release("other").is_empty());
        let mut released = withheld.release("m");
        released.sort_by_key(|event| format!("{event:?}"));
        let rest = Event::agent_message_delta("m".to_owned(), "sk-0".to_owned());
        let summary = Event::reasoning_delta("m".to_owned(), "s".to_owned(), part, 0);
        assert_eq!(released, [rest, summary]);
        assert!(withheld.release_all().is_empty());
    }
}
