//! Keeps keys out of texts that are told in pieces.
//!
//! A worker's lines hold no key, but a model writes word by word: of a key that it repeats, each line
//! would hold a part. So the pieces of an item's text are looked at one after the other.

use std::collections::HashMap;

use super::Run;
use crate::model::event::{
    AgentMessageDelta, CommandOutputDelta, Event, ReasoningDelta, ReasoningPart,
};
use crate::redact::Pieces;

/// Which text of which item.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TextId {
    item_id: String,
    kind: TextKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum TextKind {
    Message,
    Output,
    // Of an entry of one of the two lists.
    Reasoning(ReasoningPart, u32),
}

/// The texts that are being told.
pub(super) type Withheld = HashMap<TextId, Pieces>;

impl Run<'_> {
    /// Takes out of a delta what may be a part of a key; false if nothing is left to be told now.
    pub(super) fn withhold(&mut self, event: &mut Event) -> bool {
        let (item_id, kind, text) = match event {
            Event::AgentMessageDelta(AgentMessageDelta { item_id, text }) => {
                (item_id, TextKind::Message, text)
            }
            Event::CommandOutputDelta(CommandOutputDelta { item_id, text }) => {
                (item_id, TextKind::Output, text)
            }
            Event::ReasoningDelta(delta) => {
                let kind = TextKind::Reasoning(delta.part(), delta.index);
                let ReasoningDelta { item_id, text, .. } = delta;
                (item_id, kind, text)
            }
            _ => return true,
        };
        if text.is_empty() {
            return true;
        }
        let id = TextId { item_id: item_id.clone(), kind };
        let pieces = self.withheld.entry(id).or_default();
        *text = pieces.take(&self.redactor, std::mem::take(text));
        !text.is_empty()
    }

    /// Tells what was held back of an item's texts, once it is final.
    pub(super) fn release_withheld(&mut self, item_id: &str) {
        let ended = self.withheld.extract_if(|id, _| id.item_id == item_id).collect();
        self.release(ended);
    }

    /// The same of all texts, once the turn is over.
    pub(super) fn release_all_withheld(&mut self) {
        let ended = std::mem::take(&mut self.withheld).into_iter().collect();
        self.release(ended);
    }

    fn release(&self, ended: Vec<(TextId, Pieces)>) {
        for (TextId { item_id, kind }, pieces) in ended {
            let text = pieces.end();
            if text.is_empty() {
                continue;
            }
            self.log.append(match kind {
                TextKind::Message => Event::agent_message_delta(item_id, text),
                TextKind::Output => Event::command_output_delta(item_id, text),
                TextKind::Reasoning(part, index) => {
                    Event::reasoning_delta(item_id, text, part, index)
                }
            });
        }
    }
}
