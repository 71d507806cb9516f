//! Which thread belongs to which context.
//!
//! They are in memory, packed; a map answers who asks for one by its key, and beside it are orders: by key
//! for pages, by use for evictions, by thread. Readers of the map wait for nobody. What changes here is
//! queued for the [`Ledger`] under the lock of the orders, so that it is kept in the order in which it
//! happens; but what a caller is to hear of only once it is kept is [planned](Bindings::plan), written by
//! whoever plans it, and then [put](Bindings::put).

mod entry;
mod orders;
#[cfg(test)]
mod tests;

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ahash::RandomState;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Slot;

use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::registry::ledger::{Change, KeptBinding, KeptMark, Ledger};
use crate::registry::threads::ThreadFacts;
use entry::{By, Clock, Entry, Key, packed, packed_key, unpacked};
use orders::Orders;

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

impl Binding {
    /// That of a context that was bound just now.
    fn first(thread_id: &ThreadId, now: SystemTime) -> Binding {
        Binding {
            thread_id: thread_id.clone(),
            created_at: now,
            updated_at: now,
            turns: 0,
            latest_turn: None,
            is_fresh_copy: false,
            copied_from: None,
            used_at: now,
        }
    }
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
    /// How long ago it was evicted.
    pub(crate) age: Duration,
}

/// All bindings, in the order of their keys and in that of their last uses.
#[derive(Debug)]
pub(crate) struct Bindings {
    entries: DashMap<By<Key>, (), RandomState>,
    // Held by whoever changes anything.
    orders: Mutex<Orders>,
    clock: Clock,
    ledger: Arc<Ledger>,
}

/// How many parts the map has, so that no part is large: one that grows holds up those who read it.
const PARTS: usize = 256;

impl Default for Bindings {
    fn default() -> Bindings {
        Bindings::new(Arc::new(Ledger::memory()))
    }
}

impl Bindings {
    /// None yet. What changes is told to the ledger.
    pub(crate) fn new(ledger: Arc<Ledger>) -> Bindings {
        let entries = DashMap::with_hasher_and_shard_amount(RandomState::new(), PARTS);
        Bindings { entries, orders: Mutex::default(), clock: Clock::new(), ledger }
    }

    pub(crate) fn get(&self, key: &ContextKey) -> Option<Binding> {
        self.entry(&packed_key(key)).map(|entry| entry.binding(&self.clock))
    }

    pub(crate) fn contains(&self, key: &ContextKey) -> bool {
        self.entries.contains_key(packed_key(key).as_str())
    }

    /// Whether a context goes on with this thread.
    pub(crate) fn has_thread(&self, thread_id: &ThreadId) -> bool {
        self.orders().other_of(thread_id, "").is_some()
    }

    /// Another context than this one that goes on with this thread.
    pub(crate) fn other_of(&self, thread_id: &ThreadId, key: &ContextKey) -> Option<ContextKey> {
        let orders = self.orders();
        orders.other_of(thread_id, &packed_key(key)).map(|entry| unpacked(entry.key()))
    }

    /// A context whose thread is a copy of this one. All are looked at.
    pub(crate) fn copy_of(&self, thread_id: &ThreadId) -> Option<ContextKey> {
        let is_copy = |entry: &Entry| entry.copied_from().as_ref() == Some(thread_id);
        let copy = self.entries.iter().find(|entry| is_copy(&entry.key().entry));
        copy.map(|entry| unpacked(entry.key().entry.key()))
    }

    /// What binding a thread to a context, in place of any other, makes of it.
    pub(crate) fn plan(&self, key: &ContextKey, thread_id: &ThreadId) -> Bound {
        let now = SystemTime::now();
        let Some(mut binding) = self.get(key) else {
            return Bound { binding: Binding::first(thread_id, now), replaced: None };
        };
        (binding.updated_at, binding.used_at) = (now, now);
        if binding.thread_id == *thread_id {
            return Bound { binding, replaced: None };
        }
        let replaced = std::mem::replace(&mut binding.thread_id, thread_id.clone());
        (binding.is_fresh_copy, binding.copied_from) = (false, None);
        Bound { binding, replaced: Some(replaced) }
    }

    /// What binding a copy of another thread to a context makes of it.
    pub(crate) fn plan_copy(
        &self,
        key: &ContextKey,
        thread_id: &ThreadId,
        copied_from: &ThreadId,
    ) -> Binding {
        let copied_from = Some(copied_from.clone());
        Binding { is_fresh_copy: true, copied_from, ..self.plan(key, thread_id).binding }
    }

    /// What the ledger is told to have a context as it is now.
    pub(crate) fn as_is(&self, key: &ContextKey) -> Change {
        let orders = self.orders();
        let packed = packed_key(key);
        if let Some(entry) = self.entry(&packed) {
            return Change::Bind(key.clone(), entry.binding(&self.clock));
        }
        match orders.marks.get(packed.as_str()) {
            Some(mark) => Change::Mark(self.kept_mark(&mark.entry)),
            None => Change::Unbind(key.clone()),
        }
    }

    /// Binds a context as was planned and kept. What was left of the context is no matter any more.
    pub(crate) fn put(&self, key: &ContextKey, binding: &Binding) {
        let mut orders = self.orders();
        let before = self.entry(&packed_key(key)).map(|before| before.thread_id());
        self.put_in(&mut orders, key, binding);
        let forgotten = before.and_then(|thread_id| forgotten(&orders, &thread_id));
        forgotten.into_iter().for_each(|change| self.queue(change));
    }

    fn put_in(&self, orders: &mut Orders, key: &ContextKey, binding: &Binding) -> Arc<Entry> {
        let packed = packed_key(key);
        orders.remove_mark(&packed);
        let used = orders.next_use(&self.clock);
        let before = self.entry(&packed);
        if let Some(entry) = &before
            && entry.has_thread(&binding.thread_id)
        {
            orders.note_use(entry, used);
            entry.change(binding);
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry::new(&packed, binding, used));
        if let Some(before) = &before {
            orders.remove(before);
        }
        orders.add(&entry);
        self.enter(&entry);
        entry
    }

    /// Binds a thread of which this is known to a context, in place of any other. What was left of the
    /// context is no matter any more.
    pub(crate) fn bind(
        &self,
        key: &ContextKey,
        thread_id: &ThreadId,
        facts: &ThreadFacts,
    ) -> Bound {
        let mut orders = self.orders();
        let Bound { binding, replaced } = self.plan(key, thread_id);
        let is_new = replaced.is_some() || !self.contains(key);
        let binding = self.put_in(&mut orders, key, &binding).binding(&self.clock);
        // Else it is as it was, but for the time.
        if is_new {
            // All of it at once: a context whose thread nobody knows to be blank would be refused for ever.
            let bind = Change::Bind(key.clone(), binding.clone());
            let mut changes = vec![bind, Change::Facts(thread_id.clone(), facts.clone())];
            changes.extend(replaced.as_ref().and_then(|thread_id| forgotten(&orders, thread_id)));
            self.ledger.note(&changes);
        }
        Bound { binding, replaced }
    }

    /// Has what is known of a thread kept, if a context goes on with it. Whether one does.
    pub(crate) fn keep_facts(&self, thread_id: &ThreadId, facts: &ThreadFacts) -> bool {
        let orders = self.orders();
        let is_bound = orders.other_of(thread_id, "").is_some();
        if is_bound {
            self.queue(Change::Facts(thread_id.clone(), facts.clone()));
        }
        is_bound
    }

    /// Has what is known of a thread forgotten, unless a context goes on with it.
    pub(crate) fn forget_facts(&self, thread_id: &ThreadId) {
        let orders = self.orders();
        forgotten(&orders, thread_id).into_iter().for_each(|change| self.queue(change));
    }

    /// Notes that a turn of this context has its thread.
    pub(crate) fn note_turn(&self, key: &ContextKey, turn_id: &TurnId) {
        self.note(key, |binding| {
            binding.turns += 1;
            binding.is_fresh_copy = false;
            binding.latest_turn = Some(turn_id.clone());
            binding.updated_at = SystemTime::now();
        });
    }

    /// Notes that a turn of this context has ended, for as long as it is not used.
    pub(crate) fn note_end(&self, key: &ContextKey) {
        self.note(key, |_| ());
    }

    fn note(&self, key: &ContextKey, change: impl FnOnce(&mut Binding)) {
        let mut orders = self.orders();
        let Some(entry) = self.entry(&packed_key(key)) else { return };
        let used = orders.next_use(&self.clock);
        orders.note_use(&entry, used);
        let mut binding = entry.binding(&self.clock);
        change(&mut binding);
        entry.change(&binding);
        self.queue(Change::Bind(key.clone(), binding));
    }

    /// Notes that a context is used, which is the last to be evicted then.
    pub(crate) fn note_use(&self, key: &ContextKey) {
        let mut orders = self.orders();
        let Some(entry) = self.entry(&packed_key(key)) else { return };
        let used = orders.next_use(&self.clock);
        orders.note_use(&entry, used);
    }

    /// Forgets the binding of a context, of which the ledger knows. The thread stays where it is, on
    /// Codex's disk.
    pub(crate) fn remove(&self, key: &ContextKey) -> Option<Binding> {
        let mut orders = self.orders();
        let entry = self.leave(&mut orders, &packed_key(key))?;
        forgotten(&orders, &entry.thread_id()).into_iter().for_each(|change| self.queue(change));
        Some(entry.binding(&self.clock))
    }

    /// The context that is unused for longest, for at least so long, of those that are not busy.
    pub(crate) fn unused_longest(
        &self,
        is_busy: impl Fn(&ContextKey) -> bool,
        at_least: Duration,
    ) -> Option<ContextKey> {
        let orders = self.orders();
        let by_use = orders.by_use.iter().map(|by| &by.entry);
        let is_unused = |entry: &&Arc<Entry>| self.clock.age(entry.used()) >= at_least;
        let mut unused = by_use.take_while(is_unused);
        unused.find_map(|entry| Some(unpacked(entry.key())).filter(|key| !is_busy(key)))
    }

    /// Evicts a context, and gives its thread. Leaves a mark of it, and at most so many marks.
    pub(crate) fn evict(&self, key: &ContextKey, most_marks: usize) -> Option<ThreadId> {
        let mut orders = self.orders();
        let entry = self.leave(&mut orders, &packed_key(key))?;
        let thread_id = entry.thread_id();
        // It is the mark from here on.
        entry.set_used(orders.next_use(&self.clock));
        orders.marked.insert(By::of(&entry));
        orders.marks.insert(By::of(&entry));
        let mark = Change::Mark(self.kept_mark(&entry));
        self.ledger.note(&Vec::from_iter([mark].into_iter().chain(forgotten(&orders, &thread_id))));
        self.limit_marks(&mut orders, most_marks);
        Some(thread_id)
    }

    /// What is left of a context that was evicted and not bound since.
    pub(crate) fn mark(&self, key: &ContextKey) -> Option<Mark> {
        let orders = self.orders();
        let mark = &orders.marks.get(packed_key(key).as_str())?.entry;
        Some(Mark { thread_id: mark.thread_id(), age: self.clock.age(mark.used()) })
    }

    /// Forgets the marks that are as old as this, or older.
    pub(crate) fn forget_marks(&self, age: Duration) {
        let mut orders = self.orders();
        while orders.marked.first().is_some_and(|mark| self.clock.age(mark.entry.used()) >= age) {
            let left = orders.marked.len() - 1;
            self.limit_marks(&mut orders, left);
        }
    }

    /// How many bindings there are.
    pub(crate) fn len(&self) -> usize {
        self.orders().by_key.len()
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
        // Names begin with no character of control.
        let first = packed(tenant, context_id.unwrap_or("\u{1}"), "");
        let after = after.map(|(context_id, thread_key)| packed(tenant, context_id, thread_key));
        let start = match &after {
            Some(after) if *after >= first => Excluded(after.as_str()),
            Some(_) | None => Included(first.as_str()),
        };
        let is_wanted = |key: &ContextKey| {
            key.tenant == *tenant
                && context_id.is_none_or(|context_id| key.context_id == context_id)
        };
        let orders = self.orders();
        let page = orders.by_key.range::<str, _>((start, Unbounded)).map(|by| &by.entry);
        let page = page.map(|entry| (unpacked(entry.key()), entry));
        let page = page.take_while(|(key, _)| is_wanted(key)).take(limit);
        page.map(|(key, entry)| (key, entry.binding(&self.clock))).collect()
    }

    /// Takes what an earlier process has kept. It is as it was then: as long unused, too.
    pub(crate) fn restore(&self, kept: &KeptBinding) {
        let used = self.clock.of_wall(kept.binding.used_at);
        let entry = Arc::new(Entry::new(&packed_key(&kept.key), &kept.binding, used));
        let mut orders = self.lock();
        self.enter(&entry);
        orders.restored.push(entry);
    }

    /// The same for what is left of a context.
    pub(crate) fn restore_mark(&self, kept: &KeptMark) {
        let used = self.clock.of_wall(kept.evicted_at).min(self.clock.now());
        let binding = Binding::first(&kept.thread_id, kept.evicted_at);
        let mark = Arc::new(Entry::new(&packed_key(&kept.key), &binding, used));
        let mut orders = self.lock();
        orders.remove_mark(mark.key());
        orders.marked.insert(By::of(&mark));
        orders.marks.insert(By::of(&mark));
    }

    /// All that was kept was restored. Without this, whoever needs the orders first waits until they are
    /// there.
    pub(crate) fn restored(&self) {
        drop(self.orders());
    }

    fn entry(&self, key: &str) -> Option<Arc<Entry>> {
        self.entries.get(key).map(|entry| Arc::clone(&entry.key().entry))
    }

    /// Whoever looks for the context finds this from now on.
    fn enter(&self, entry: &Arc<Entry>) {
        match self.entries.entry(By::of(entry)) {
            // In one step: nobody is to find nothing.
            Slot::Occupied(slot) => drop(slot.replace_entry(())),
            Slot::Vacant(slot) => drop(slot.insert(())),
        }
    }

    fn leave(&self, orders: &mut Orders, key: &str) -> Option<Arc<Entry>> {
        let (By { entry, .. }, ()) = self.entries.remove(key)?;
        orders.remove(&entry);
        Some(entry)
    }

    /// Forgets the oldest marks beyond so many.
    fn limit_marks(&self, orders: &mut Orders, most: usize) {
        while orders.marked.len() > most {
            let Some(By { entry: mark, .. }) = orders.marked.pop_first() else { return };
            orders.marks.remove(mark.key());
            self.queue(Change::ForgetMark(unpacked(mark.key())));
        }
    }

    fn kept_mark(&self, mark: &Entry) -> KeptMark {
        KeptMark {
            key: unpacked(mark.key()),
            thread_id: mark.thread_id(),
            evicted_at: self.clock.wall(mark.used()),
        }
    }

    /// Not waited for.
    fn queue(&self, change: Change) {
        self.ledger.note(&[change]);
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        let mut orders = self.lock();
        if !orders.restored.is_empty() {
            orders.take_in(self.clock.now());
        }
        orders
    }

    // A panic elsewhere can't leave the maps half changed.
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of a thread need not outlive the process where no context goes on with it.
fn forgotten(orders: &Orders, thread_id: &ThreadId) -> Option<Change> {
    let is_bound = orders.other_of(thread_id, "").is_some();
    (!is_bound).then(|| Change::ForgetFacts(thread_id.clone()))
}
