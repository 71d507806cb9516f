//! A ledger's disk in memory, for tests on paused clocks: no thread has to be waited for. It can be full,
//! can keep everybody waiting, and outlives the sidecars that are started on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::tests::sample::Model;
use super::{Change, Kept, KeptBinding, KeptTurn, Restore, Trouble, Written};
use crate::model::id::{ContextKey, ThreadId};
use crate::registry::bindings::Binding;
use crate::registry::threads::ThreadFacts;

/// The disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    state: Mutex<State>,
    trouble: watch::Sender<Option<Trouble>>,
}

#[derive(Debug, Default)]
struct State {
    kept: Model,
    // Of the sidecar that has it now: whoever had it before was killed.
    owner: u64,
    holds: bool,
    held: Vec<Held>,
    is_full: bool,
    backlog: Vec<Change>,
}

#[derive(Debug)]
struct Held {
    changes: Vec<Change>,
    // What is done in their place if they can't be kept; else they themselves, later.
    undo: Option<Vec<Change>>,
    written: oneshot::Sender<Result<(), Trouble>>,
}

/// A sidecar's access to the disk, until another one is started on it.
#[derive(Debug)]
pub(super) struct Played {
    disk: Arc<Disk>,
    owner: u64,
}

impl Disk {
    /// What a full disk says.
    pub(crate) const TROUBLE: &str = "the disk is full";

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on nobody gets to know whether his changes are kept, and they are not.
    pub(crate) fn hold(&self) {
        self.state().holds = true;
    }

    /// Keeps what was held, and no more is held.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        state.holds = false;
        for Held { changes, written, .. } in std::mem::take(&mut state.held) {
            changes.into_iter().for_each(|change| state.kept.change(&change));
            let _ = written.send(Ok(()));
        }
    }

    /// Keeps the first calls of what is held, as one does that is killed between two commits; the rest stays
    /// held. Gives what was kept.
    pub(crate) fn keep_first(&self, calls: usize) -> Vec<Change> {
        let mut state = self.state();
        let mut kept = Vec::new();
        let first: Vec<_> = state.held.drain(..calls).collect();
        for Held { changes, written, .. } in first {
            kept.extend(changes.iter().cloned());
            changes.into_iter().for_each(|change| state.kept.change(&change));
            let _ = written.send(Ok(()));
        }
        kept
    }

    /// What is held, call by call.
    pub(crate) fn held(&self) -> Vec<Vec<Change>> {
        self.state().held.iter().map(|held| held.changes.clone()).collect()
    }

    /// Has something on it that whoever has it did not write.
    pub(crate) fn change(&self, change: &Change) {
        self.state().kept.change(change);
    }

    /// From here on there is no room, nor for what is held.
    pub(crate) fn fill(&self) {
        let mut state = self.state();
        (state.is_full, state.holds) = (true, false);
        let trouble = Trouble { cause: Disk::TROUBLE.to_owned() };
        for Held { changes, undo, written } in std::mem::take(&mut state.held) {
            state.backlog.extend(undo.unwrap_or(changes));
            let _ = written.send(Err(trouble.clone()));
        }
        self.trouble.send_replace(Some(trouble));
    }

    /// There is room again.
    pub(crate) fn empty(&self) {
        let mut state = self.state();
        state.is_full = false;
        for change in std::mem::take(&mut state.backlog) {
            state.kept.change(&change);
        }
        self.trouble.send_replace(None);
    }

    /// Lets so much time pass on the wall while nobody has it.
    pub(crate) fn age(&self, by: Duration) {
        let mut state = self.state();
        state.kept.bindings.values_mut().for_each(|binding| binding.used_at -= by);
        state.kept.marks.values_mut().for_each(|mark| mark.evicted_at -= by);
        for turn in state.kept.turns.values_mut() {
            let Some(end) = &mut turn.end else { continue };
            let mut told = <crate::pb::TurnEvent as prost::Message>::decode(&*end.event).unwrap();
            end.ended_at -= by;
            told.emitted_at = Some(end.ended_at.into());
            end.event = prost::Message::encode_to_vec(&told).into();
        }
    }

    /// The turns that are kept.
    pub(crate) fn turns(&self) -> Vec<KeptTurn> {
        self.state().kept.turns.values().cloned().collect()
    }

    /// The contexts that are kept, with their threads.
    pub(crate) fn contexts(&self) -> Vec<(String, ThreadId)> {
        let kept = |(key, bound): (&ContextKey, &Binding)| {
            (key.context_id.clone(), bound.thread_id.clone())
        };
        self.state().kept.bindings.iter().map(kept).collect()
    }

    /// The threads of which something is kept.
    pub(crate) fn facts(&self) -> BTreeMap<ThreadId, ThreadFacts> {
        self.state().kept.facts.clone()
    }

    /// Kills whoever has it, with all that it has not kept, and gives it to another one.
    pub(super) fn start(self: &Arc<Disk>) -> Played {
        let mut state = self.state();
        state.owner += 1;
        state.held.clear();
        state.backlog.clear();
        Played { disk: Arc::clone(self), owner: state.owner }
    }
}

impl Played {
    pub(super) fn restore(&self, restore: Restore) {
        let kept: Vec<Kept> = {
            let Model { bindings, marks, turns, directories, tokens, facts: _ } =
                &self.disk.state().kept;
            let bindings = bindings.iter().map(|(key, binding)| {
                let (key, binding) = (key.clone(), binding.clone());
                Kept::Binding(Box::new(KeptBinding { key, binding }))
            });
            let directories = directories.iter().map(|(directory, latest)| {
                let (directory, latest) = (directory.clone(), latest.clone());
                Kept::Directory { directory, latest }
            });
            let turns = turns.values().map(|turn| Kept::Turn(Box::new(turn.clone())));
            let marks = marks.values().cloned().map(Kept::Mark);
            let tokens = tokens.iter().copied().map(Kept::Tokens);
            bindings.chain(marks).chain(turns).chain(directories).chain(tokens).collect()
        };
        kept.into_iter().for_each(restore);
    }

    pub(super) fn write(&self, changes: Vec<Change>, undo: Option<Vec<Change>>) -> Written {
        let mut state = self.disk.state();
        if state.owner != self.owner {
            return Written(Some(oneshot::channel().1));
        }
        if state.is_full {
            state.backlog.extend(undo.unwrap_or(changes));
            let (told, written) = oneshot::channel();
            let _ = told.send(Err(Trouble { cause: Disk::TROUBLE.to_owned() }));
            return Written(Some(written));
        }
        if state.holds {
            let (told, written) = oneshot::channel();
            state.held.push(Held { changes, undo, written: told });
            return Written(Some(written));
        }
        changes.into_iter().for_each(|change| state.kept.change(&change));
        Written::yes()
    }

    pub(super) fn facts_of(&self, thread_id: &ThreadId) -> Option<ThreadFacts> {
        self.disk.state().kept.facts.get(thread_id).cloned()
    }

    pub(super) fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        self.disk.trouble.subscribe()
    }
}
