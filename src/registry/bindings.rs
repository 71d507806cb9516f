//! Which thread belongs to which context.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};

/// A context's thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) thread_id: ThreadId,
    /// When the context was first bound.
    pub(crate) created_at: SystemTime,
    /// When its thread or its latest turn last changed.
    pub(crate) updated_at: SystemTime,
    /// How many turns of the context have begun here.
    pub(crate) turns: u64,
    /// The latest of them.
    pub(crate) latest_turn: Option<TurnId>,
}

/// What [`Bindings::bind`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The binding as it is now.
    pub(crate) binding: Binding,
    /// The thread that was bound before, if another.
    pub(crate) replaced: Option<ThreadId>,
}

/// All bindings, in the order of their keys.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    by_key: RwLock<BTreeMap<ContextKey, Binding>>,
}

impl Bindings {
    pub(crate) fn get(&self, key: &ContextKey) -> Option<Binding> {
        self.read().get(key).cloned()
    }

    /// Binds a thread to a context, in place of any other.
    pub(crate) fn bind(&self, key: &ContextKey, thread_id: &ThreadId) -> Bound {
        let now = SystemTime::now();
        let mut by_key = self.write();
        let binding = by_key.entry(key.clone()).or_insert_with(|| Binding {
            thread_id: thread_id.clone(),
            created_at: now,
            updated_at: now,
            turns: 0,
            latest_turn: None,
        });
        binding.updated_at = now;
        let before = std::mem::replace(&mut binding.thread_id, thread_id.clone());
        let replaced = (before != *thread_id).then_some(before);
        Bound { binding: binding.clone(), replaced }
    }

    /// Notes that a turn of this context has its thread.
    pub(crate) fn note_turn(&self, key: &ContextKey, turn_id: &TurnId) {
        if let Some(binding) = self.write().get_mut(key) {
            binding.turns += 1;
            binding.latest_turn = Some(turn_id.clone());
            binding.updated_at = SystemTime::now();
        }
    }

    /// Forgets the binding of a context. The thread stays where it is, on Codex's disk.
    pub(crate) fn remove(&self, key: &ContextKey) -> Option<Binding> {
        self.write().remove(key)
    }

    /// How many bindings there are.
    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    /// Up to `limit` bindings of a tenant in the order of their keys, those after `after` only, and
    /// only of one context where one is named.
    pub(crate) fn page(
        &self,
        tenant: &Tenant,
        context_id: Option<&str>,
        after: Option<&(String, String)>,
        limit: usize,
    ) -> Vec<(ContextKey, Binding)> {
        let key = |context_id: &str, thread_key: &str| ContextKey {
            tenant: tenant.clone(),
            context_id: context_id.to_owned(),
            thread_key: thread_key.to_owned(),
        };
        let first = key(context_id.unwrap_or_default(), "");
        let start = match after.map(|(context_id, thread_key)| key(context_id, thread_key)) {
            Some(after) if after >= first => Excluded(after),
            Some(_) | None => Included(first),
        };
        let is_wanted = |key: &ContextKey| {
            key.tenant == *tenant
                && context_id.is_none_or(|context_id| key.context_id == context_id)
        };
        let by_key = self.read();
        let page = by_key.range((start, Unbounded)).take_while(|(key, _)| is_wanted(key));
        page.take(limit).map(|(key, binding)| (key.clone(), binding.clone())).collect()
    }

    // A panic elsewhere can't leave the map half changed.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ContextKey, Binding>> {
        self.by_key.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<ContextKey, Binding>> {
        self.by_key.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(context_id: &str, thread_key: &str) -> ContextKey {
        ContextKey {
            tenant: Tenant::default(),
            context_id: context_id.to_owned(),
            thread_key: thread_key.to_owned(),
        }
    }

    #[test]
    fn pages_are_complete_and_in_order_and_of_one_tenant() {
        let bindings = Bindings::default();
        let mut expected = Vec::new();
        for number in 0..25 {
            for thread_key in ["a", "b"] {
                let mine = key(&format!("c{number:02}"), thread_key);
                let anothers = ContextKey { tenant: Tenant("z".to_owned()), ..mine.clone() };
                for key in [&mine, &anothers] {
                    bindings.bind(key, &ThreadId::from_codex(number.to_string()));
                }
                expected.push(mine);
            }
        }
        let mut after = None;
        let mut seen = Vec::new();
        loop {
            let page = bindings.page(&Tenant::default(), None, after.as_ref(), 9);
            let Some((last, _)) = page.last() else { break };
            after = Some((last.context_id.clone(), last.thread_key.clone()));
            seen.extend(page.into_iter().map(|(key, _)| key));
        }
        assert_eq!(seen, expected);
        assert!(bindings.page(&Tenant("other".to_owned()), None, None, 10).is_empty());
        assert_eq!(bindings.len(), 100);
    }

    #[test]
    fn a_page_of_one_context_holds_nothing_else_wherever_it_begins() {
        let bindings = Bindings::default();
        for context_id in ["a", "b", "bb", "c"] {
            for thread_key in ["1", "2"] {
                bindings.bind(&key(context_id, thread_key), &ThreadId::from_codex("t"));
            }
        }
        let page = |after: Option<(&str, &str)>| -> Vec<ContextKey> {
            let after = after.map(|(context, thread)| (context.to_owned(), thread.to_owned()));
            let page = bindings.page(&Tenant::default(), Some("b"), after.as_ref(), 10);
            page.into_iter().map(|(key, _)| key).collect()
        };
        let both = [key("b", "1"), key("b", "2")];
        assert_eq!(page(None), both);
        assert_eq!(page(Some(("a", "2"))), both);
        assert_eq!(page(Some(("b", ""))), both);
        assert_eq!(page(Some(("b", "1"))), both[1..]);
        assert_eq!(page(Some(("b", "2"))), []);
        assert_eq!(page(Some(("c", "1"))), []);
    }

    #[test]
    fn a_second_binding_tells_what_it_replaces_and_keeps_what_was_counted() {
        let bindings = Bindings::default();
        let key = key("c", "codex_thread_id");
        let (one, two) = (ThreadId::from_codex("1"), ThreadId::from_codex("2"));
        let turn = TurnId::generate();
        let first = bindings.bind(&key, &one);
        assert_eq!((first.replaced, first.binding.turns), (None, 0));
        bindings.note_turn(&key, &turn);
        assert_eq!(bindings.bind(&key, &one).replaced, None);
        let second = bindings.bind(&key, &two);
        assert_eq!(second.replaced, Some(one));
        assert_eq!(bindings.get(&key).as_ref(), Some(&second.binding));
        assert_eq!((second.binding.turns, second.binding.latest_turn.as_ref()), (1, Some(&turn)));
        assert_eq!(second.binding.created_at, first.binding.created_at);
        assert_eq!(bindings.remove(&key), Some(second.binding));
        assert_eq!(bindings.len(), 0);
    }
}
