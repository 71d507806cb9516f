//! What an earlier process has kept, taken in before anything is served.

use std::sync::Arc;
use std::time::SystemTime;

use super::Engine;
use super::keeping::end_of;
use crate::model::event::{Event, Usage};
use crate::model::failure::{FailureReason, TurnError};
use crate::model::outcome::Outcome;
use crate::registry::ledger::{Kept, KeptTurn, Restore};
use crate::turn::log::{Log, Numbered};
use crate::turn::turn::Turn;

impl Engine {
    /// Takes in what an earlier process has kept; all of it is there once this is dropped.
    pub(crate) fn restoring(self: &Arc<Engine>) -> Restore {
        let restoring = Restoring(Arc::clone(self));
        Box::new(move |kept| restoring.0.restore(kept))
    }

    /// Takes in a piece of what an earlier process has kept.
    fn restore(&self, kept: Kept) {
        match kept {
            Kept::Binding(binding) => self.contexts.restore(*binding),
            Kept::Mark(mark) => self.contexts.restore_mark(mark),
            Kept::Directory { directory, latest } => self.latest_threads.restore(directory, latest),
            Kept::Tokens(tokens) => self.quotas.restore(tokens),
            Kept::Turn(turn) => self.restore_turn(*turn),
        }
    }

    /// A turn that has ended is as it was. One that had not is over, and what it did nobody knows.
    fn restore_turn(&self, mut kept: KeptTurn) {
        let requests = std::mem::take(&mut kept.requests);
        let end = kept.end.take();
        let end =
            end.and_then(|end| Numbered::of_kept(end.event, &kept.turn_id, Event::is_terminal));
        let is_lost = end.is_none();
        let terminal = end.or_else(|| {
            let event = lost().into_event().ok()?;
            let sequence = kept.reserved.saturating_add(1).min(Log::MOST_SEQUENCE);
            Some(Numbered::new(&kept.turn_id, sequence, SystemTime::now(), event))
        });
        let Some(terminal) = terminal else { return };
        let ended_at = terminal.emitted_at;
        let lost_end = is_lost.then(|| terminal.clone());
        let turn = Turn::restored(kept, terminal, self.turns.retained());
        if let Some(terminal) = lost_end {
            tracing::warn!(turn = %turn.id, "a turn was lost with the sidecar that ran it");
            self.ledger.note(&[end_of(&turn, &terminal)]);
            if let Some(key) = &turn.context {
                // It was in use until now, as far as anybody knows.
                self.contexts.note_end(key);
            }
        }
        self.turns.restore(&turn, requests, ended_at);
    }
}

/// An engine that takes in what was kept.
struct Restoring(Arc<Engine>);

impl Drop for Restoring {
    fn drop(&mut self) {
        self.0.contexts.restored();
    }
}

fn lost() -> Outcome {
    let message = "the sidecar ended while the turn ran, and was started again; what the turn had done by \
                   then can't be told";
    let error = TurnError {
        retryable: true,
        side_effects_possible: true,
        ..TurnError::new(FailureReason::SidecarRestarted, message)
    };
    Outcome::Failed { error, usage: Usage::default(), thread_usage: Usage::default() }
}
