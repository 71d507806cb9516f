//! The common line: turns that wait for nothing but room, and whose turn it is.

use std::collections::VecDeque;

use crate::model::id::CallerId;

/// Who waits for nothing but room: each caller's turns in their order, and the callers in that in which
/// they take turns.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) callers: VecDeque<(CallerId, VecDeque<u64>)>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }

    pub(super) fn push(&mut self, caller: CallerId, id: u64) {
        match self.callers.iter_mut().find(|(known, _)| *known == caller) {
            Some((_, ids)) => ids.push_back(id),
            None => self.callers.push_back((caller, VecDeque::from([id]))),
        }
    }

    pub(super) fn remove(&mut self, caller: CallerId, id: u64) {
        self.callers.retain_mut(|(known, ids)| {
            if *known == caller {
                ids.retain(|other| *other != id);
            }
            !ids.is_empty()
        });
    }

    /// Takes out the first for which there is room. Its caller is the last to have another turn.
    pub(super) fn take(&mut self, has_room: impl Fn(u64) -> bool) -> Option<u64> {
        let found = self.callers.iter().enumerate().find_map(|(at, (_, ids))| {
            let index = ids.iter().position(|id| has_room(*id))?;
            Some((at, index))
        });
        let (at, index) = found?;
        let (caller, mut ids) = self.callers.remove(at)?;
        let id = ids.remove(index);
        if !ids.is_empty() {
            self.callers.push_back((caller, ids));
        }
        id
    }

    /// All of them, in the order in which room would be given to them.
    pub(super) fn order(&self) -> Vec<u64> {
        let mut callers: Vec<_> = self.callers.iter().map(|(_, ids)| ids.iter()).collect();
        let mut order = Vec::new();
        while !callers.is_empty() {
            callers.retain_mut(|ids| ids.next().map(|id| order.push(*id)).is_some());
        }
        order
    }
}
