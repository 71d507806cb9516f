//! A binding as it is kept: packed, because there may be a million of them, and in three orders.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicI64, Ordering as Memory};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use uuid::Uuid;

use super::Binding;
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};

/// The context, a NUL, the thread key. Names have no NUL, so that this is in the order of both. Before a
/// tenant's that is not the usual one: a NUL, the tenant, a NUL.
pub(super) fn packed(tenant: &Tenant, context_id: &str, thread_key: &str) -> String {
    let mut packed = of_tenant(tenant);
    packed.reserve_exact(context_id.len() + 1 + thread_key.len());
    packed.push_str(context_id);
    packed.push('\0');
    packed.push_str(thread_key);
    packed
}

pub(super) fn packed_key(key: &ContextKey) -> String {
    packed(&key.tenant, &key.context_id, &key.thread_key)
}

/// What the packed keys of a tenant's contexts begin with.
fn of_tenant(tenant: &Tenant) -> String {
    if *tenant == Tenant::default() { String::new() } else { format!("\0{}\0", tenant.0) }
}

pub(super) fn unpacked(packed: &str) -> ContextKey {
    let named = packed.strip_prefix('\0').and_then(|rest| rest.split_once('\0'));
    let (tenant, key) = match named {
        Some((tenant, key)) => (Tenant(tenant.to_owned()), key),
        None => (Tenant::default(), packed),
    };
    let (context_id, thread_key) = key.split_once('\0').unwrap_or((key, ""));
    ContextKey { tenant, context_id: context_id.to_owned(), thread_key: thread_key.to_owned() }
}

/// The time of a use: nanoseconds of the process's own clock since it began, of which only the microseconds
/// are the time: the rest tells apart what happened in the same one. What an earlier process did is before
/// zero.
pub(super) type UseTime = i64;

/// Nanoseconds in a microsecond.
const MICRO: i64 = 1000;

/// The clock of uses. A step of the wall clock changes no age while the process runs.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    began_at: SystemTime,
}

impl Clock {
    pub(super) fn new() -> Clock {
        Clock { began: Instant::now(), began_at: SystemTime::now() }
    }

    fn micros(&self) -> i64 {
        nanos(self.began.elapsed()) / MICRO
    }

    /// The time of a use now, after that of the last one.
    pub(super) fn next(&self, last: UseTime) -> UseTime {
        self.now().max(last.saturating_add(1))
    }

    /// How long ago this was.
    pub(super) fn age(&self, used: UseTime) -> Duration {
        let age = self.micros().saturating_sub(used.div_euclid(MICRO));
        Duration::from_micros(u64::try_from(age).unwrap_or(0))
    }

    pub(super) fn now(&self) -> UseTime {
        self.micros() * MICRO
    }

    /// It may be after now: the clock on the wall may have been ahead then.
    pub(super) fn of_wall(&self, time: SystemTime) -> UseTime {
        nanos_since(time, self.began_at)
    }

    pub(super) fn wall(&self, used: UseTime) -> SystemTime {
        moved(self.began_at, used)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn nanos_since(time: SystemTime, zero: SystemTime) -> i64 {
    time.duration_since(zero).map_or_else(|error| -nanos(error.duration()), nanos)
}

fn moved(zero: SystemTime, nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    let moved = if nanos < 0 { zero.checked_sub(distance) } else { zero.checked_add(distance) };
    moved.unwrap_or(zero)
}

/// A binding; or the mark of one that was evicted.
#[derive(Debug)]
pub(super) struct Entry {
    key: Box<str>,
    // Changed only while it is in no order of use.
    used: AtomicI64,
    // A UUID; nil for any other text, which is in `more` then.
    thread: Uuid,
    // In nanoseconds since 1970.
    created: i64,
    state: Mutex<State>,
}

/// What changes while the thread stays the same.
#[derive(Debug)]
struct State {
    updated: i64,
    // Nil for none, and for any other text.
    latest_turn: Uuid,
    // What few have.
    more: Option<Box<More>>,
    turns: u32,
    is_fresh_copy: bool,
}

#[derive(Debug, Default)]
struct More {
    thread: Option<Box<str>>,
    latest_turn: Option<Box<str>>,
    copied_from: Option<ThreadId>,
}

/// An id as a UUID if its text is what that is written as; else its text.
fn uuid_of(text: &str) -> Result<Uuid, Box<str>> {
    match Uuid::try_parse(text) {
        Ok(uuid)
            if !uuid.is_nil()
                && uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == text =>
        {
            Ok(uuid)
        }
        Ok(_) | Err(_) => Err(text.into()),
    }
}

fn split(uuid: Result<Uuid, Box<str>>) -> (Uuid, Option<Box<str>>) {
    match uuid {
        Ok(uuid) => (uuid, None),
        Err(text) => (Uuid::nil(), Some(text)),
    }
}

impl State {
    fn new(binding: &Binding, thread: Option<Box<str>>) -> State {
        let latest_turn = binding.latest_turn.as_ref().map(|turn| split(uuid_of(&turn.0)));
        let (latest_turn, turn_text) = latest_turn.unwrap_or_default();
        let more =
            More { thread, latest_turn: turn_text, copied_from: binding.copied_from.clone() };
        let has_more =
            more.thread.is_some() || more.latest_turn.is_some() || more.copied_from.is_some();
        State {
            updated: nanos_since(binding.updated_at, UNIX_EPOCH),
            latest_turn,
            more: has_more.then(|| Box::new(more)),
            turns: u32::try_from(binding.turns).unwrap_or(u32::MAX),
            is_fresh_copy: binding.is_fresh_copy,
        }
    }
}

impl Entry {
    pub(super) fn new(key: &str, binding: &Binding, used: UseTime) -> Entry {
        let (thread, text) = split(uuid_of(binding.thread_id.as_str()));
        Entry {
            key: key.into(),
            used: AtomicI64::new(used),
            thread,
            created: nanos_since(binding.created_at, UNIX_EPOCH),
            state: Mutex::new(State::new(binding, text)),
        }
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    pub(super) fn used(&self) -> UseTime {
        self.used.load(Memory::Relaxed)
    }

    /// Only while no order of use has it.
    pub(super) fn set_used(&self, used: UseTime) {
        self.used.store(used, Memory::Relaxed);
    }

    pub(super) fn thread_id(&self) -> ThreadId {
        self.thread_id_of(&self.state())
    }

    fn thread_id_of(&self, state: &State) -> ThreadId {
        match state.more.as_ref().and_then(|more| more.thread.as_deref()) {
            Some(text) => ThreadId::from_codex(text),
            None => ThreadId::from_codex(self.thread.to_string()),
        }
    }

    /// Its place in the order of threads.
    pub(super) fn thread(&self) -> Uuid {
        self.thread
    }

    pub(super) fn has_thread(&self, thread_id: &ThreadId) -> bool {
        match uuid_of(thread_id.as_str()) {
            Ok(uuid) => self.thread == uuid,
            Err(_) => self.thread.is_nil() && self.thread_id() == *thread_id,
        }
    }

    /// The thread that its thread was copied from.
    pub(super) fn copied_from(&self) -> Option<ThreadId> {
        self.state().more.as_ref()?.copied_from.clone()
    }

    pub(super) fn binding(&self, clock: &Clock) -> Binding {
        let state = self.state();
        let more = state.more.as_deref();
        let latest_turn = match more.and_then(|more| more.latest_turn.as_deref()) {
            Some(text) => Some(TurnId(text.to_owned())),
            None if state.latest_turn.is_nil() => None,
            None => Some(TurnId(state.latest_turn.to_string())),
        };
        Binding {
            thread_id: self.thread_id_of(&state),
            created_at: moved(UNIX_EPOCH, self.created),
            updated_at: moved(UNIX_EPOCH, state.updated),
            turns: u64::from(state.turns),
            latest_turn,
            is_fresh_copy: state.is_fresh_copy,
            copied_from: more.and_then(|more| more.copied_from.clone()),
            used_at: clock.wall(self.used()),
        }
    }

    /// Takes over all that may change while the thread stays the same.
    pub(super) fn change(&self, binding: &Binding) {
        let mut state = self.state();
        let thread = state.more.take().and_then(|more| more.thread);
        *state = State::new(binding, thread);
    }

    // A panic elsewhere can't leave it half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an entry stands among others.
pub(super) trait Order {
    fn compare(one: &Entry, other: &Entry) -> Ordering;
}

#[derive(Debug)]
pub(super) struct Key;

#[derive(Debug)]
pub(super) struct Use;

#[derive(Debug)]
pub(super) struct Thread;

impl Order for Key {
    fn compare(one: &Entry, other: &Entry) -> Ordering {
        one.key.cmp(&other.key)
    }
}

impl Order for Use {
    fn compare(one: &Entry, other: &Entry) -> Ordering {
        one.used().cmp(&other.used()).then_with(|| Key::compare(one, other))
    }
}

impl Order for Thread {
    fn compare(one: &Entry, other: &Entry) -> Ordering {
        one.thread.cmp(&other.thread).then_with(|| Key::compare(one, other))
    }
}

/// An entry in an order.
#[derive(Debug)]
pub(super) struct By<O> {
    pub(super) entry: Arc<Entry>,
    order: PhantomData<O>,
}

impl<O> By<O> {
    pub(super) fn of(entry: &Arc<Entry>) -> By<O> {
        By { entry: Arc::clone(entry), order: PhantomData }
    }
}

impl By<Thread> {
    /// Before all contexts that have the thread.
    pub(super) fn first_of(thread_id: &ThreadId) -> By<Thread> {
        let none = Binding::first(thread_id, UNIX_EPOCH);
        By::of(&Arc::new(Entry::new("", &none, 0)))
    }
}

impl<O: Order> PartialEq for By<O> {
    fn eq(&self, other: &By<O>) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<O: Order> Eq for By<O> {}

impl<O: Order> PartialOrd for By<O> {
    fn partial_cmp(&self, other: &By<O>) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<O: Order> Ord for By<O> {
    fn cmp(&self, other: &By<O>) -> Ordering {
        O::compare(&self.entry, &other.entry)
    }
}

impl Hash for By<Key> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.entry.key.hash(state);
    }
}

impl Borrow<str> for By<Key> {
    fn borrow(&self) -> &str {
        &self.entry.key
    }
}
