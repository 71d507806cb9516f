//! Which Codex thread belongs to which context.
//!
//! In memory, keyed by tenant, context and thread key. A binding is kept as soon as its thread is
//! known, also when the turn then fails: the thread exists and has seen the input.

use std::time::SystemTime;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};

/// A context's thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The thread.
    pub thread_id: ThreadId,
    /// When the context was first bound.
    pub created_at: SystemTime,
    /// When its thread or its latest turn last changed.
    pub updated_at: SystemTime,
    /// How many turns of it have begun here.
    pub turns: u64,
    /// The latest of them.
    pub latest_turn: Option<TurnId>,
}

/// All bindings.
#[derive(Debug, Default)]
pub struct Registry {
    bindings: DashMap<ContextKey, Binding>,
}

impl Registry {
    /// The binding of a context.
    pub fn get(&self, key: &ContextKey) -> Option<Binding> {
        self.bindings.get(key).map(|binding| binding.clone())
    }

    /// Binds a thread to a context; returns the thread that was bound before, if another.
    pub fn bind(&self, key: &ContextKey, thread_id: &ThreadId) -> Option<ThreadId> {
        let now = SystemTime::now();
        match self.bindings.entry(key.clone()) {
            Entry::Occupied(mut entry) => {
                let binding = entry.get_mut();
                binding.updated_at = now;
                let before = std::mem::replace(&mut binding.thread_id, thread_id.clone());
                (before != *thread_id).then_some(before)
            }
            Entry::Vacant(entry) => {
                entry.insert(Binding {
                    thread_id: thread_id.clone(),
                    created_at: now,
                    updated_at: now,
                    turns: 0,
                    latest_turn: None,
                });
                None
            }
        }
    }

    /// Notes that a turn of this context has its thread.
    pub fn note_turn(&self, key: &ContextKey, turn_id: &TurnId) {
        if let Some(mut binding) = self.bindings.get_mut(key) {
            binding.turns += 1;
            binding.latest_turn = Some(turn_id.clone());
            binding.updated_at = SystemTime::now();
        }
    }

    /// Forgets the binding of a context. The thread stays where it is, on Codex's disk.
    pub fn remove(&self, key: &ContextKey) -> Option<Binding> {
        self.bindings.remove(key).map(|(_, binding)| binding)
    }

    /// How many bindings there are.
    pub fn len(&self) -> usize {
        self.bindings.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bindings.is_empty()
    }

    /// Up to `limit` bindings of a tenant in the order of their keys, those after `after` only, and
    /// only of one context where one is named. One look at all of them, and memory for one page.
    pub fn page(
        &self,
        tenant: &Tenant,
        context_id: Option<&str>,
        after: Option<&(String, String)>,
        limit: usize,
    ) -> Vec<(ContextKey, Binding)> {
        let mut page = std::collections::BTreeMap::new();
        for entry in &self.bindings {
            let key = entry.key();
            let place = (&key.context_id, &key.thread_key);
            let wanted = key.tenant == *tenant
                && context_id.is_none_or(|context_id| key.context_id == context_id)
                && after.is_none_or(|(context_id, thread_key)| place > (context_id, thread_key));
            if !wanted {
                continue;
            }
            page.insert(key.clone(), entry.value().clone());
            if page.len() > limit {
                page.pop_last();
            }
        }
        page.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(context_id: &str) -> ContextKey {
        ContextKey {
            tenant: Tenant::default(),
            context_id: context_id.to_owned(),
            thread_key: "codex_thread_id".to_owned(),
        }
    }

    #[test]
    fn pages_are_complete_and_in_order() {
        let registry = Registry::default();
        for number in 0..25 {
            registry
                .bind(&key(&format!("c{number:02}")), &ThreadId::from_codex(number.to_string()));
        }
        let mut after = None;
        let mut seen = Vec::new();
        loop {
            let page = registry.page(&Tenant::default(), None, after.as_ref(), 10);
            let Some((last, _)) = page.last() else { break };
            after = Some((last.context_id.clone(), last.thread_key.clone()));
            seen.extend(page.into_iter().map(|(key, _)| key.context_id));
        }
        let expected: Vec<String> = (0..25).map(|number| format!("c{number:02}")).collect();
        assert_eq!(seen, expected);
        assert!(registry.page(&Tenant("other".to_owned()), None, None, 10).is_empty());
        assert_eq!(registry.page(&Tenant::default(), Some("c07"), None, 10).len(), 1);
    }

    #[test]
    fn a_second_binding_tells_what_it_replaces() {
        let registry = Registry::default();
        let (one, two) = (ThreadId::from_codex("1"), ThreadId::from_codex("2"));
        assert_eq!(registry.bind(&key("c"), &one), None);
        assert_eq!(registry.bind(&key("c"), &one), None);
        assert_eq!(registry.bind(&key("c"), &two), Some(one));
        assert_eq!(registry.remove(&key("c")).map(|binding| binding.thread_id), Some(two));
    }
}
