//! The patches that are being made: what they change is told before Codex asks whether they may.

use std::collections::VecDeque;

use crate::model::item::{ChangedFile, FileChange, Item, ItemKind};

/// How many are kept. Codex makes one after the other on a thread.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Patches(VecDeque<Patch>);

#[derive(Debug)]
struct Patch {
    thread_id: String,
    item_id: String,
    changes: Vec<ChangedFile>,
}

impl Patches {
    /// An item of a thread begins, changes or ends.
    pub(super) fn note(&mut self, thread_id: &str, item: &Item, ended: bool) {
        let Some(ItemKind::FileChange(FileChange { changes, .. })) = &item.kind else { return };
        self.0.retain(|patch| !patch.is(thread_id, &item.id));
        if ended {
            return;
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        let (thread_id, item_id) = (thread_id.to_owned(), item.id.clone());
        self.0.push_back(Patch { thread_id, item_id, changes: changes.clone() });
    }

    /// What the patch of this item changes.
    pub(super) fn changes(&self, thread_id: &str, item_id: &str) -> Vec<ChangedFile> {
        let patch = self.0.iter().find(|patch| patch.is(thread_id, item_id));
        patch.map(|patch| patch.changes.clone()).unwrap_or_default()
    }
}

impl Patch {
    fn is(&self, thread_id: &str, item_id: &str) -> bool {
        self.thread_id == thread_id && self.item_id == item_id
    }
}
