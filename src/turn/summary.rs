//! What is known of a turn from its events.

use std::time::SystemTime;

use crate::model::event::{Event, Usage};

/// What is known of a turn from the events that were told of it, also of those that were given up.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Summary {
    /// Codex's id of its thread.
    pub thread_id: Option<String>,
    /// Where it was told to wait last.
    pub queue_position: u32,
    /// What it used, as far as Codex has said.
    pub usage: Option<Usage>,
    /// The last event: its number, when it was, and its name.
    pub last: Option<(u64, SystemTime, &'static str)>,
    /// The reason of its failure or interruption.
    pub reason: String,
}

impl Summary {
    pub(super) fn note(&mut self, sequence: u64, emitted_at: SystemTime, event: &Event) {
        self.last = Some((sequence, emitted_at, event.name()));
        match event {
            Event::ThreadStarted(started) => self.thread_id = Some(started.thread_id.clone()),
            Event::Queued(queued) => self.queue_position = queued.position,
            Event::TokenUsageUpdated(told) => self.usage = told.usage.or(self.usage),
            Event::TurnCompleted(end) => self.usage = end.usage.or(self.usage),
            Event::TurnFailed(end) => {
                self.usage = end.usage.or(self.usage);
                self.reason = end.error.as_ref().map(|e| e.reason.clone()).unwrap_or_default();
            }
            Event::TurnInterrupted(end) => {
                self.usage = end.usage.or(self.usage);
                let reason = end.reason().as_str_name();
                let reason = reason.strip_prefix("INTERRUPT_REASON_").unwrap_or(reason);
                reason.clone_into(&mut self.reason);
            }
            _ => {}
        }
    }
}
