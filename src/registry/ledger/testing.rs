//! A ledger's disk in memory, for tests on paused clocks: no thread has to be waited for. It can be full,
//! can keep everybody waiting, and outlives the sidecars that are started on it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::{Change, Kept, KeptBinding, KeptMark, KeptTurn, Restore, Trouble, Written};
use crate::model::id::{ContextKey, ThreadId, TurnId};
use crate::registry::bindings::Binding;
use crate::registry::latest::LatestThread;
use crate::registry::threads::ThreadFacts;

/// The disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    state: Mutex<State>,
    trouble: watch::Sender<Option<Trouble>>,
}

#[derive(Debug, Default)]
struct State {
    kept: Everything,
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

/// What is kept.
#[derive(Debug, Default)]
struct Everything {
    bindings: BTreeMap<ContextKey, Binding>,
    marks: BTreeMap<ContextKey, KeptMark>,
    facts: BTreeMap<ThreadId, ThreadFacts>,
    turns: BTreeMap<TurnId, KeptTurn>,
    directories: BTreeMap<PathBuf, LatestThread>,
}

impl Everything {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Bind(key, binding) => {
                self.marks.remove(&key);
                self.bindings.insert(key, binding);
            }
            Change::Unbind(key) => drop(self.bindings.remove(&key)),
            Change::Mark(mark) => {
                self.bindings.remove(&mark.key);
                self.marks.insert(mark.key.clone(), mark);
            }
            Change::ForgetMark(key) => drop(self.marks.remove(&key)),
            Change::Facts(thread_id, facts) => drop(self.facts.insert(thread_id, facts)),
            Change::ForgetFacts(thread_id) => drop(self.facts.remove(&thread_id)),
            Change::StartTurn(turn) => {
                for request in &turn.requests {
                    self.give_free(&request.id);
                }
                self.turns.insert(turn.turn_id.clone(), *turn);
            }
            Change::JoinTurn(request, turn_id) => {
                self.give_free(&request.id);
                if let Some(turn) = self.turns.get_mut(&turn_id) {
                    turn.requests.push(request);
                }
            }
            Change::LeaveTurn(request, turn_id) => {
                if let Some(turn) = self.turns.get_mut(&turn_id) {
                    turn.requests.retain(|known| known.id != request.id);
                }
            }
            Change::ThreadStarted(turn_id, told) => {
                if let Some(turn) = self.turns.get_mut(&turn_id) {
                    turn.thread_started = Some(told);
                }
            }
            Change::Reserve(turn_id, reserved) => {
                if let Some(turn) = self.turns.get_mut(&turn_id) {
                    turn.reserved = reserved;
                }
            }
            Change::EndTurn(turn_id, end) => {
                if let Some(turn) = self.turns.get_mut(&turn_id) {
                    turn.end = Some(end);
                }
            }
            Change::ForgetTurn(turn_id) => drop(self.turns.remove(&turn_id)),
            Change::Directory(directory, latest) => {
                self.directories.insert(directory, latest);
            }
            Change::ForgetDirectory(directory) => drop(self.directories.remove(&directory)),
        }
    }

    fn give_free(&mut self, request_id: &str) {
        for turn in self.turns.values_mut() {
            turn.requests.retain(|known| known.id != request_id);
        }
    }
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
            changes.into_iter().for_each(|change| state.kept.apply(change));
            let _ = written.send(Ok(()));
        }
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
            state.kept.apply(change);
        }
        self.trouble.send_replace(None);
    }

    /// Lets so much time pass on the wall while nobody has it.
    pub(crate) fn age(&self, by: Duration) {
        for turn in self.state().kept.turns.values_mut() {
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
    pub(super) fn restore(&self, restore: &mut Restore) {
        let kept: Vec<Kept> = {
            let Everything { bindings, marks, turns, directories, facts: _ } =
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
            bindings.chain(marks).chain(turns).chain(directories).collect()
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
        changes.into_iter().for_each(|change| state.kept.apply(change));
        Written::yes()
    }

    pub(super) fn facts_of(&self, thread_id: &ThreadId) -> Option<ThreadFacts> {
        self.disk.state().kept.facts.get(thread_id).cloned()
    }

    pub(super) fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        self.disk.trouble.subscribe()
    }
}
