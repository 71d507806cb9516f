//! Changes to keep, and what they come to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::model::event::Usage;
use crate::model::fingerprint::Fingerprint;
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::request::{ContentHash, RequestId};
use crate::registry::bindings::Binding;
use crate::registry::latest::LatestThread;
use crate::registry::ledger::{
    Change, Kept, KeptBinding, KeptEnd, KeptMark, KeptThreadStarted, KeptTokens, KeptTurn, Restore,
};
use crate::registry::threads::{Left, SeenTurn, ThreadFacts, TurnsSeen};

/// A time that differs from those of other numbers, to the nanosecond.
fn time(number: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789 + number)
}

pub(super) fn context(number: u64) -> ContextKey {
    ContextKey {
        tenant: Tenant::default(),
        context_id: format!("context {number}"),
        thread_key: "codex_thread_id".to_owned(),
    }
}

/// UUIDs, and others.
pub(super) fn thread(number: u64) -> ThreadId {
    match number % 3 {
        0 => ThreadId::from_codex(format!("thread-{number}")),
        _ => ThreadId::from_codex(uuid::Uuid::from_u128(u128::from(number) << 64).to_string()),
    }
}

pub(super) fn turn(number: u64) -> TurnId {
    match number % 3 {
        0 => TurnId(format!("turn-{number}")),
        _ => TurnId(uuid::Uuid::from_u128(u128::from(number) << 64).to_string()),
    }
}

pub(super) fn request(number: u64) -> RequestId {
    let digest = [u8::try_from(number % 251).unwrap(); 32];
    RequestId { id: format!("request-{number}"), content: ContentHash { version: 1, digest } }
}

pub(super) fn binding(number: u64) -> Binding {
    Binding {
        thread_id: thread(number),
        created_at: time(number),
        updated_at: time(number + 1),
        turns: number,
        latest_turn: number.is_multiple_of(2).then(|| turn(number)),
        is_fresh_copy: number.is_multiple_of(4),
        copied_from: number.is_multiple_of(5).then(|| thread(number + 1)),
        used_at: time(number + 2),
    }
}

pub(super) fn mark(number: u64, at: u64) -> KeptMark {
    KeptMark { key: context(number), thread_id: thread(at), evicted_at: time(at) }
}

pub(super) fn facts(number: u64) -> ThreadFacts {
    ThreadFacts {
        usage: number.is_multiple_of(2).then(|| Usage {
            input_tokens: number,
            output_tokens: 1,
            ..Usage::default()
        }),
        is_blank: number.is_multiple_of(3),
        turns: (!number.is_multiple_of(5)).then(|| TurnsSeen {
            count: usize::try_from(number).unwrap(),
            last: number.is_multiple_of(2).then(|| SeenTurn {
                id: format!("t{number}"),
                has_completed: number.is_multiple_of(4),
            }),
        }),
        left: (number % 3 != 1)
            .then(|| Left { summary: number.is_multiple_of(2), ..Left::default() }),
        dynamic_tools: number.is_multiple_of(7).then(|| Fingerprint::of(&number)),
        developer_instructions: (number % 2 == 1).then(|| Fingerprint::of(&"text")),
    }
}

pub(super) fn started(number: u64) -> KeptTurn {
    KeptTurn {
        turn_id: turn(number),
        context: (!number.is_multiple_of(4)).then(|| context(number)),
        created_at: time(number),
        started_at: time(number + 1),
        requests: (0..number % 3).map(|more| request(number + more)).collect(),
        thread_started: None,
        reserved: 4096,
        end: None,
    }
}

pub(super) fn thread_started(number: u64) -> KeptThreadStarted {
    KeptThreadStarted {
        thread_id: thread(number),
        worker: number.is_multiple_of(2).then(|| "w0".to_owned()),
        sequence: number,
        event: vec![1; usize::try_from(number % 50).unwrap()].into(),
    }
}

pub(super) fn end(number: u64, bytes: usize) -> KeptEnd {
    KeptEnd { ended_at: time(number), sequence: number, event: vec![2; bytes].into() }
}

pub(super) fn latest(number: u64) -> LatestThread {
    LatestThread { thread_id: thread(number), at: time(number) }
}

pub(super) fn tokens(number: u64) -> KeptTokens {
    KeptTokens { day: time(number), tokens: number }
}

/// What is kept, as a plain model of it says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::registry::ledger) struct Model {
    pub(in crate::registry::ledger) bindings: BTreeMap<ContextKey, Binding>,
    pub(in crate::registry::ledger) marks: BTreeMap<ContextKey, KeptMark>,
    pub(in crate::registry::ledger) facts: BTreeMap<ThreadId, ThreadFacts>,
    pub(in crate::registry::ledger) turns: BTreeMap<TurnId, KeptTurn>,
    pub(in crate::registry::ledger) directories: BTreeMap<PathBuf, LatestThread>,
    pub(in crate::registry::ledger) tokens: Option<KeptTokens>,
}

impl Model {
    pub(in crate::registry::ledger) fn change(&mut self, change: &Change) {
        let turns = &mut self.turns;
        match change.clone() {
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
            Change::StartTurn(turn) => drop(turns.insert(turn.turn_id.clone(), *turn)),
            Change::JoinTurn(request, turn_id) => {
                if let Some(turn) = turns.get_mut(&turn_id) {
                    turn.requests.retain(|known| known.id != request.id);
                    turn.requests.push(request);
                }
            }
            Change::LeaveTurn(request, turn_id) => {
                if let Some(turn) = turns.get_mut(&turn_id) {
                    turn.requests.retain(|known| known.id != request.id);
                }
            }
            Change::ThreadStarted(turn_id, started) => {
                if let Some(turn) = turns.get_mut(&turn_id) {
                    turn.thread_started = Some(started);
                }
            }
            Change::Reserve(turn_id, sequence) => {
                if let Some(turn) = turns.get_mut(&turn_id) {
                    turn.reserved = sequence;
                }
            }
            Change::EndTurn(turn_id, end) => {
                if let Some(turn) = turns.get_mut(&turn_id) {
                    turn.end = Some(end);
                }
            }
            Change::ForgetTurn(turn_id) => drop(turns.remove(&turn_id)),
            Change::Directory(directory, latest) => {
                self.directories.insert(directory, latest);
            }
            Change::ForgetDirectory(directory) => drop(self.directories.remove(&directory)),
            Change::Tokens(tokens) => self.tokens = Some(tokens),
        }
    }

    pub(super) fn of<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Model {
        let mut model = Model::default();
        for change in changes {
            model.change(change);
        }
        model
    }

    /// Without what is removed at an opening: facts of threads that nothing names; and with the requests
    /// of each turn in one order.
    pub(super) fn as_opened(&self) -> Model {
        let bound = self.bindings.values().map(|binding| &binding.thread_id);
        let bound: BTreeSet<_> =
            bound.chain(self.marks.values().map(|mark| &mark.thread_id)).cloned().collect();
        let mut opened = self.clone();
        opened.facts.retain(|thread_id, _| bound.contains(thread_id));
        for turn in opened.turns.values_mut() {
            turn.requests.sort_by(|one, other| one.id.cmp(&other.id));
        }
        opened
    }

    pub(super) fn keep(&mut self, kept: Kept) {
        let known = match kept {
            Kept::Binding(kept) => {
                let KeptBinding { key, binding } = *kept;
                self.bindings.insert(key, binding).is_some()
            }
            Kept::Mark(mark) => self.marks.insert(mark.key.clone(), mark).is_some(),
            Kept::Turn(turn) => self.turns.insert(turn.turn_id.clone(), *turn).is_some(),
            Kept::Directory { directory, latest } => {
                self.directories.insert(directory, latest).is_some()
            }
            Kept::Tokens(tokens) => self.tokens.replace(tokens).is_some(),
        };
        assert!(!known, "a piece was given twice");
    }
}

/// Where an opening puts what was kept.
#[derive(Debug, Clone, Default)]
pub(super) struct Restored(Arc<Mutex<Model>>);

impl Restored {
    pub(super) fn restore(&self) -> Restore {
        let restored = self.clone();
        Box::new(move |kept| restored.0.lock().unwrap().keep(kept))
    }

    /// Facts are not among what is restored.
    pub(super) fn model(&self) -> Model {
        self.0.lock().unwrap().as_opened()
    }
}

/// Some of each kind.
pub(super) fn some_of_all() -> Vec<Change> {
    let mut changes = Vec::new();
    for number in 0..20 {
        changes.push(Change::Bind(context(number), binding(number)));
        changes.push(Change::Facts(thread(number), facts(number)));
        changes.push(Change::StartTurn(Box::new(started(number))));
        if number.is_multiple_of(2) {
            changes.push(Change::ThreadStarted(turn(number), thread_started(number)));
            changes.push(Change::JoinTurn(request(number + 100), turn(number)));
            changes.push(Change::Reserve(turn(number), number * 10_000));
        }
        if number.is_multiple_of(4) {
            changes.push(Change::EndTurn(turn(number), end(number, 10_000)));
            changes.push(Change::Mark(mark(number, number)));
        }
        changes.push(Change::Directory(format!("/d/{number}").into(), latest(number)));
    }
    changes.push(Change::ForgetTurn(turn(4)));
    changes.push(Change::Unbind(context(1)));
    changes.push(Change::ForgetMark(context(8)));
    changes.push(Change::ForgetFacts(thread(3)));
    changes.push(Change::ForgetDirectory("/d/7".into()));
    changes.extend([1, 2].map(|number| Change::Tokens(tokens(number))));
    changes
}
