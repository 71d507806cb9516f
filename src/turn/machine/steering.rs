//! Input that is added to a turn while it runs.
//!
//! While the turn's thread is being opened it waits; then it goes to the turn of Codex's that runs. Who
//! sent it is told which one took it, or why none did, at the latest when the turn ends.

use super::{Act, ReplyTo};
use crate::turn::turn::HAS_ENDED;

/// Where input goes.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// Nowhere, for this reason.
    Nowhere(&'static str),
    /// It is not known yet.
    Later,
    Turn(&'a str),
}

#[derive(Debug, Default)]
pub(super) struct Steering {
    waiting: Vec<ReplyTo>,
    // Each with the turn of Codex's that it was given to.
    under_way: Vec<(ReplyTo, String)>,
}

impl Steering {
    /// Somebody has input.
    pub(super) fn take(&mut self, to: ReplyTo, target: &Target<'_>, acts: &mut Vec<Act>) {
        match target {
            Target::Nowhere(cause) => {
                acts.push(Act::ReplySteered { to, outcome: Err((*cause).to_owned()) });
            }
            Target::Later => self.waiting.push(to),
            Target::Turn(codex_turn_id) => {
                let codex_turn_id = (*codex_turn_id).to_owned();
                self.under_way.push((to, codex_turn_id.clone()));
                acts.push(Act::Steer { to, codex_turn_id });
            }
        }
    }

    /// It may be known by now where input goes.
    pub(super) fn let_go(&mut self, target: &Target<'_>, acts: &mut Vec<Act>) {
        if !matches!(target, Target::Later) {
            for to in std::mem::take(&mut self.waiting) {
                self.take(to, target, acts);
            }
        }
    }

    /// Codex took the input, or did not.
    pub(super) fn note_steered(
        &mut self,
        to: ReplyTo,
        outcome: &Result<(), String>,
        acts: &mut Vec<Act>,
    ) {
        let Some(index) = self.under_way.iter().position(|(known, _)| *known == to) else {
            return;
        };
        let (to, codex_turn_id) = self.under_way.swap_remove(index);
        let outcome = outcome.clone().map(|()| codex_turn_id);
        acts.push(Act::ReplySteered { to, outcome });
    }

    /// Whether it is not known yet of some input whether Codex took it.
    pub(super) fn is_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The turn has ended.
    pub(super) fn end(&mut self, acts: &mut Vec<Act>) {
        let under_way = self.under_way.drain(..).map(|(to, _)| to);
        for to in self.waiting.drain(..).chain(under_way) {
            acts.push(Act::ReplySteered { to, outcome: Err(HAS_ENDED.to_owned()) });
        }
    }
}
