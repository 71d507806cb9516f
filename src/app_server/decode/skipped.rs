//! What a line over the limit may have told.

use crate::app_server::message::SkippedLine;

/// What is known of news that were skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LostNews {
    /// The turn is over.
    TurnEnded {
        /// Codex's word for how: `completed`, `failed`.
        status: Option<String>,
        /// That it was interrupted; nothing else was to be read then.
        is_interrupted: bool,
    },
    /// An item began.
    ItemStarted {
        item_id: Option<String>,
        /// It is a command, which may still run.
        is_command: bool,
    },
    /// An agent message is final.
    MessageCompleted {
        item_id: Option<String>,
        /// How long its text was, encoded.
        text_bytes: Option<u64>,
    },
    /// Another item is final.
    ItemCompleted { item_id: Option<String> },
    /// A piece of an agent message.
    MessageDelta {
        /// The message's id.
        item_id: Option<String>,
    },
    /// Something that is known by its name only.
    Other,
    /// It can't be told what it was, or whose.
    Unknown,
}

/// Takes a skipped line for what it was.
pub(crate) fn skipped(line: &SkippedLine) -> LostNews {
    let Some(method) = line.method.as_deref().filter(|_| line.thread_id.is_some()) else {
        return LostNews::Unknown;
    };
    let item_id = line.item_id.clone();
    match (method, line.item_type.as_deref()) {
        ("turn/completed", _) => LostNews::TurnEnded {
            status: line.turn_status.clone(),
            is_interrupted: line.turn_status.as_deref() == Some("interrupted"),
        },
        ("item/started", kind) => {
            LostNews::ItemStarted { item_id, is_command: kind == Some("commandExecution") }
        }
        ("item/completed", Some("agentMessage")) => {
            LostNews::MessageCompleted { item_id, text_bytes: line.item_text_bytes }
        }
        ("item/completed", Some(_)) => LostNews::ItemCompleted { item_id },
        ("item/agentMessage/delta", _) => LostNews::MessageDelta { item_id },
        // An item of which not even the type is known.
        ("item/completed", None) => LostNews::Unknown,
        _ => LostNews::Other,
    }
}
