//! The orders in which bindings stand.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound::{Included, Unbounded};
use std::sync::Arc;

use super::entry::{By, Clock, Entry, Key, Thread, Use, UseTime};
use crate::model::id::ThreadId;

/// The bindings and the marks, each entry in all orders that are of its kind.
#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) by_key: BTreeSet<By<Key>>,
    pub(super) by_use: BTreeSet<By<Use>>,
    pub(super) by_thread: BTreeSet<By<Thread>>,
    pub(super) last_use: UseTime,
    pub(super) marks: HashSet<By<Key>>,
    // By when they were made.
    pub(super) marked: BTreeSet<By<Use>>,
    // What an earlier process kept, and is in no order yet.
    pub(super) restored: Vec<Arc<Entry>>,
}

impl Orders {
    pub(super) fn add(&mut self, entry: &Arc<Entry>) {
        self.by_key.insert(By::of(entry));
        self.by_use.insert(By::of(entry));
        self.by_thread.insert(By::of(entry));
    }

    pub(super) fn remove(&mut self, entry: &Arc<Entry>) {
        self.by_key.remove(&By::of(entry));
        self.by_use.remove(&By::of(entry));
        self.by_thread.remove(&By::of(entry));
    }

    /// The time of a use: no other has the same.
    pub(super) fn next_use(&mut self, clock: &Clock) -> UseTime {
        self.last_use = clock.next(self.last_use);
        self.last_use
    }

    pub(super) fn note_use(&mut self, entry: &Arc<Entry>, used: UseTime) {
        let by_use = By::of(entry);
        self.by_use.remove(&by_use);
        entry.set_used(used);
        self.by_use.insert(by_use);
    }

    pub(super) fn remove_mark(&mut self, key: &str) -> Option<Arc<Entry>> {
        let mark = self.marks.take(key)?.entry;
        self.marked.remove(&By::of(&mark));
        Some(mark)
    }

    /// A context that goes on with this thread, but not this one.
    pub(super) fn other_of(&self, thread_id: &ThreadId, own: &str) -> Option<&Arc<Entry>> {
        let first = By::first_of(thread_id);
        let others = self.by_thread.range((Included(&first), Unbounded)).map(|by| &by.entry);
        let mut others = others.take_while(|entry| entry.thread() == first.entry.thread());
        others.find(|entry| entry.has_thread(thread_id) && entry.key() != own)
    }

    /// Brings what was restored into its orders: all at once, because that is many times as fast, and takes
    /// half of the memory.
    ///
    /// What was used after `now`, by a clock that was ahead then, was used now: else nothing would grow old
    /// before that time comes.
    pub(super) fn take_in(&mut self, now: UseTime) {
        let mut restored: Vec<_> = self.by_key.iter().map(|by| Arc::clone(&by.entry)).collect();
        restored.append(&mut self.restored);
        // Most often they are.
        restored.sort_by(|one, other| one.key().cmp(other.key()));
        // Of what was read twice the last counts.
        restored.dedup_by(|later, earlier| {
            let is_same = later.key() == earlier.key();
            if is_same {
                std::mem::swap(later, earlier);
            }
            is_same
        });
        self.by_key = restored.iter().map(By::of).collect();
        restored.sort_by_cached_key(|entry| entry.used());
        let mut latest = now;
        for entry in restored.iter().rev() {
            if entry.used() <= latest {
                break;
            }
            entry.set_used(latest);
            latest -= 1;
        }
        self.last_use = restored.last().map_or(0, |last| last.used()).max(self.last_use);
        self.by_use = restored.iter().map(By::of).collect();
        restored.sort_by_cached_key(|entry| entry.thread());
        self.by_thread = restored.iter().map(By::of).collect();
    }
}
