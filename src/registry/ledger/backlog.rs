//! Changes that could not be kept when they were made, merged: each key once. So it is as large as what
//! changes in the meantime, however often that does.

use std::collections::{BTreeMap, BTreeSet};

use crate::registry::ledger::record::Operation;

#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// All keys under these go before the others are done.
    prefixes: BTreeSet<Vec<u8>>,
    by_key: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.prefixes.is_empty() && self.by_key.is_empty()
    }

    pub(super) fn operations(&self) -> impl Iterator<Item = Operation> {
        let prefixes = self.prefixes.iter().cloned().map(Operation::RemoveAll);
        prefixes.chain(self.by_key.iter().map(|(key, value)| match value.clone() {
            Some(value) => Operation::Put { key: key.clone(), value },
            None => Operation::Remove(key.clone()),
        }))
    }

    pub(super) fn add(&mut self, operations: impl IntoIterator<Item = Operation>) {
        for operation in operations {
            match operation {
                Operation::Put { key, value } => {
                    self.by_key.insert(key, Some(value));
                }
                Operation::Remove(key) => {
                    self.by_key.insert(key, None);
                }
                Operation::RemoveAll(prefix) => {
                    let under = self.by_key.range(prefix.clone()..).map(|(key, _)| key);
                    let under = under.take_while(|key| key.starts_with(&prefix));
                    for key in under.cloned().collect::<Vec<_>>() {
                        self.by_key.remove(&key);
                    }
                    self.prefixes.insert(prefix);
                }
            }
        }
    }

    /// What is to be put under this key, `None` in it where it is to be removed.
    pub(super) fn find(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        let is_removed = || self.prefixes.iter().any(|prefix| key.starts_with(prefix));
        self.by_key.get(key).cloned().or_else(|| is_removed().then_some(None))
    }
}
