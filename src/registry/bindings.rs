//! Which thread belongs to which context.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use tokio::time::Instant;

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
    /// Whether its thread is a copy that has had no turn here.
    pub(crate) is_fresh_copy: bool,
    /// The thread that its thread was copied from, whose history Codex keeps for both.
    pub(crate) copied_from: Option<ThreadId>,
    /// When it was last used.
    pub(crate) used_at: SystemTime,
}

/// What [`Bindings::bind`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The binding as it is now.
    pub(crate) binding: Binding,
    /// The thread that was bound before, if another.
    pub(crate) replaced: Option<ThreadId>,
}

/// What is left of a context that was evicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The thread that it had.
    pub(crate) thread_id: ThreadId,
    /// When it was evicted.
    pub(crate) since: Instant,
}

/// All bindings, in the order of their keys and in that of their last uses.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    all: RwLock<All>,
}

#[derive(Debug, Default)]
struct All {
    by_key: BTreeMap<Arc<ContextKey>, Kept>,
    // By the number of their last use.
    by_use: BTreeMap<u64, Arc<ContextKey>>,
    uses: u64,
    marks: HashMap<Arc<ContextKey>, Mark>,
    // In the order in which they were made; those that are gone may still be among them.
    marked: VecDeque<(Instant, Arc<ContextKey>)>,
}

#[derive(Debug)]
struct Kept {
    binding: Binding,
    use_number: u64,
    used_at: Instant,
}

impl All {
    fn note_use(&mut self, key: &ContextKey) -> Option<&mut Binding> {
        let kept = self.by_key.get_mut(key)?;
        self.uses += 1;
        if let Some(key) = self.by_use.remove(&kept.use_number) {
            self.by_use.insert(self.uses, key);
        }
        (kept.use_number, kept.used_at) = (self.uses, Instant::now());
        Some(&mut kept.binding)
    }

    fn remove(&mut self, key: &ContextKey) -> Option<Binding> {
        let kept = self.by_key.remove(key)?;
        self.by_use.remove(&kept.use_number);
        Some(kept.binding)
    }
}

impl Bindings {
    pub(crate) fn get(&self, key: &ContextKey) -> Option<Binding> {
        self.read().by_key.get(key).map(|kept| kept.binding.clone())
    }

    pub(crate) fn contains(&self, key: &ContextKey) -> bool {
        self.read().by_key.contains_key(key)
    }

    /// Binds a thread to a context, in place of any other. What was left of the context is no matter
    /// any more.
    pub(crate) fn bind(&self, key: &ContextKey, thread_id: &ThreadId) -> Bound {
        let now = SystemTime::now();
        let mut all = self.write();
        all.marks.remove(key);
        if let Some(binding) = all.note_use(key) {
            binding.updated_at = now;
            let before = std::mem::replace(&mut binding.thread_id, thread_id.clone());
            let replaced = (before != *thread_id).then_some(before);
            binding.is_fresh_copy &= replaced.is_none();
            return Bound { binding: binding.clone(), replaced };
        }
        let binding = Binding {
            thread_id: thread_id.clone(),
            created_at: now,
            updated_at: now,
            turns: 0,
            latest_turn: None,
            is_fresh_copy: false,
            copied_from: None,
            used_at: now,
        };
        all.uses += 1;
        let (key, use_number) = (Arc::new(key.clone()), all.uses);
        all.by_use.insert(use_number, Arc::clone(&key));
        let kept = Kept { binding: binding.clone(), use_number, used_at: Instant::now() };
        all.by_key.insert(key, kept);
        Bound { binding, replaced: None }
    }

    /// Binds a context to a copy of another one's thread.
    pub(crate) fn bind_copy(&self, key: &ContextKey, thread_id: &ThreadId) -> Binding {
        let Bound { mut binding, .. } = self.bind(key, thread_id);
        binding.is_fresh_copy = true;
        if let Some(kept) = self.write().by_key.get_mut(key) {
            kept.binding.is_fresh_copy = true;
        }
        binding
    }

    /// Notes that a turn of this context has its thread.
    pub(crate) fn note_turn(&self, key: &ContextKey, turn_id: &TurnId) {
        if let Some(binding) = self.write().note_use(key) {
            binding.turns += 1;
            binding.is_fresh_copy = false;
            binding.latest_turn = Some(turn_id.clone());
            binding.updated_at = SystemTime::now();
        }
    }

    /// Notes that a context is used, which is the last to be evicted then.
    pub(crate) fn note_use(&self, key: &ContextKey) {
        self.write().note_use(key);
    }

    /// Forgets the binding of a context. The thread stays where it is, on Codex's disk.
    pub(crate) fn remove(&self, key: &ContextKey) -> Option<Binding> {
        self.write().remove(key)
    }

    /// The context that is unused for longest, of those that are not busy; with `since`, only one that is
    /// unused since then.
    pub(crate) fn unused_longest(
        &self,
        is_busy: impl Fn(&ContextKey) -> bool,
        since: Option<Instant>,
    ) -> Option<Arc<ContextKey>> {
        let all = self.read();
        let key = all.by_use.values().find(|key| !is_busy(key))?;
        let used_at = all.by_key.get(key)?.used_at;
        since.is_none_or(|since| used_at <= since).then(|| Arc::clone(key))
    }

    /// Evicts a context, and gives its thread. Leaves a mark of it, and at most so many marks.
    pub(crate) fn evict(&self, key: &Arc<ContextKey>, most_marks: usize) -> Option<ThreadId> {
        let mut all = self.write();
        let thread_id = all.remove(key)?.thread_id;
        let now = Instant::now();
        all.marks.insert(Arc::clone(key), Mark { thread_id: thread_id.clone(), since: now });
        all.marked.push_back((now, Arc::clone(key)));
        while all.marked.len() > most_marks {
            all.forget_oldest_mark();
        }
        Some(thread_id)
    }

    /// What is left of a context that was evicted and not bound since.
    pub(crate) fn mark(&self, key: &ContextKey) -> Option<Mark> {
        self.read().marks.get(key).cloned()
    }

    /// Forgets the marks that are as old as this, or older.
    pub(crate) fn forget_marks(&self, since: Instant) {
        let mut all = self.write();
        while all.marked.front().is_some_and(|(made, _)| *made <= since) {
            all.forget_oldest_mark();
        }
    }

    /// How many bindings there are.
    pub(crate) fn len(&self) -> usize {
        self.read().by_key.len()
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
        let all = self.read();
        let page = all.by_key.range::<ContextKey, _>((start, Unbounded));
        let page = page.take_while(|(key, _)| is_wanted(key)).take(limit);
        page.map(|(key, kept)| (ContextKey::clone(key), kept.binding.clone())).collect()
    }

    // A panic elsewhere can't leave the maps half changed.
    fn read(&self) -> RwLockReadGuard<'_, All> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, All> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn forget_oldest_mark(&mut self) {
        let Some((made, key)) = self.marked.pop_front() else { return };
        // It may have been bound, and evicted again, since.
        if self.marks.get(&key).is_some_and(|mark| mark.since == made) {
            self.marks.remove(&key);
        }
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

    #[tokio::test(start_paused = true)]
    async fn the_one_unused_for_longest_goes_first_and_leaves_a_mark_for_a_while() {
        let bindings = Bindings::default();
        let keys: Vec<ContextKey> = (0..4).map(|number| key(&number.to_string(), "k")).collect();
        for (number, key) in keys.iter().enumerate() {
            bindings.bind(key, &ThreadId::from_codex(number.to_string()));
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        let before = Instant::now();
        bindings.note_use(&keys[0]);
        let unused = |since| bindings.unused_longest(|key| *key == keys[1], since);
        let evict = |since| unused(since).and_then(|key| bindings.evict(&key, 2));
        // The second is busy, and the others are used later than that.
        assert_eq!(evict(before.checked_sub(std::time::Duration::from_secs(3))), None);
        let evicted: Vec<_> = (0..4).map(|_| evict(None)).collect();
        let id = |number: &str| Some(ThreadId::from_codex(number));
        assert_eq!(evicted, [id("2"), id("3"), id("0"), None]);
        let marks: Vec<_> = keys.iter().map(|key| bindings.mark(key).is_some()).collect();
        assert_eq!(marks, [true, false, false, true], "there is room for two");
        bindings.bind(&keys[3], &ThreadId::from_codex("3"));
        assert_eq!(bindings.mark(&keys[3]), None);
        assert_eq!(bindings.mark(&keys[0]).unwrap().thread_id, ThreadId::from_codex("0"));
        bindings.forget_marks(Instant::now());
        let all = bindings.read();
        assert_eq!((all.by_key.len(), all.by_use.len()), (2, 2));
        assert_eq!((all.marks.len(), all.marked.len()), (0, 0));
    }
}
