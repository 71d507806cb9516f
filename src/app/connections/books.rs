//! The books: which connections are open, and who makes room for whom.
//!
//! One that is idle for longest makes room for a new one; where none is, one that is quiet for longest: whose
//! calls only wait, or whose client takes nothing of what they send; never one with a call that carries
//! something. It is told to leave, and
//! counts no more unless it begins a call on its way out. The books never touch a socket and never
//! wait: they are told what happens, and dropping what they give out tells them of its end. Of those that
//! have not shaken hands there are fewer: the one that began first makes room for the next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::grpc::arrivals::Arrivals;
use crate::grpc::limits::ConnectionLimits;
use crate::model::id::CallerId;

/// How long a connection with nothing but calls that wait has carried nothing when it makes room.
const QUIET: Duration = Duration::from_secs(10);
/// The same where its client takes nothing of what it is sent.
const UNREAD: Duration = Duration::from_secs(60);
/// How often the same trouble is logged at most.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// All connections of some listeners.
#[derive(Debug, Clone)]
pub(in crate::app) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: ConnectionLimits,
    state: Mutex<State>,
    /// What the requests of their calls hold.
    arrivals: Arc<Arrivals>,
}

#[derive(Debug, Default)]
struct State {
    open: HashMap<u64, Entry>,
    /// How many of them were told to leave and have no call: they count no more.
    leaving: usize,
    /// The others without a call, by the moment of that, counted.
    idle: BTreeMap<u64, u64>,
    /// Those that have not shaken hands and count, in the order in which they came.
    shaking: BTreeSet<u64>,
    moment: u64,
    told: HashMap<&'static str, Instant>,
}

#[derive(Debug)]
struct Entry {
    calls: usize,
    /// How many of them only wait for something to be told.
    waiting: usize,
    /// How many of the others have sent something that their client does not take.
    unread: usize,
    /// When one of these last carried something.
    carried: Instant,
    /// Since which moment it has no call.
    idle_since: u64,
    is_leaving: bool,
    close: CancellationToken,
}

impl Connections {
    /// None yet, and never more than `limits` says.
    pub(in crate::app) fn new(limits: ConnectionLimits) -> Connections {
        let (state, arrivals) = (Mutex::default(), Arc::default());
        Connections(Arc::new(Shared { limits, state, arrivals }))
    }

    /// A new connection, for which another one may have to leave; `None` where all that are open
    /// have calls, and none is quiet.
    pub(super) fn admit(&self, listener: &CancellationToken) -> Option<Connection> {
        // From 1: 0 stands for a caller whose connection is not known.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut state = self.state();
        let most = self.0.limits.max_connections;
        if state.count() >= most {
            // More than one has to, where others have begun a call when they were told to.
            while state.count() >= most && state.dismiss() {}
            let makes_room = state.count() < most;
            if state.may_tell("full") {
                let done = if makes_room {
                    "the one that was idle or quiet for longest is closed"
                } else {
                    "all have calls open that carry something, and new ones are refused"
                };
                tracing::warn!("{most} connections are open (limits.max_connections): {done}");
            }
            if !makes_room {
                return None;
            }
        }
        let most = self.0.limits.max_handshakes;
        if state.shaking.len() >= most
            && let Some(first) = state.shaking.first().copied()
        {
            state.tell_to_leave(first);
            if state.may_tell("handshakes") {
                tracing::warn!(
                    "{most} connections are in their handshake (limits.max_handshakes): the one \
                     that began it first is closed"
                );
            }
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        state.shaking.insert(number);
        let close = listener.child_token();
        let idle_since = state.next_moment();
        state.idle.insert(idle_since, number);
        let entry = Entry {
            calls: 0,
            waiting: 0,
            unread: 0,
            carried: Instant::now(),
            idle_since,
            is_leaving: false,
            close: close.clone(),
        };
        state.open.insert(number, entry);
        drop(state);
        Some(Connection { caller: CallerId(number), connections: self.clone(), close })
    }

    /// Nobody could be accepted: one leaves, where one can.
    pub(super) fn short_of_descriptors(&self, error: &io::Error) {
        let mut state = self.state();
        state.dismiss();
        if state.may_tell("accept") {
            tracing::warn!(%error, "connections can't be accepted and have to wait");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics under it.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&self) -> usize {
        self.open.len() - self.leaving
    }

    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// Tells the connection that was idle for longest to leave, or else the one that was quiet for
    /// longest; false where there is none.
    fn dismiss(&mut self) -> bool {
        let idle = self.idle.first_key_value().map(|(_, number)| *number);
        let Some(number) = idle.or_else(|| self.quiet()) else { return false };
        self.tell_to_leave(number);
        true
    }

    fn tell_to_leave(&mut self, number: u64) {
        self.shaking.remove(&number);
        if let Some(entry) = self.open.get_mut(&number) {
            self.idle.remove(&entry.idle_since);
            entry.is_leaving = true;
            entry.close.cancel();
            self.leaving += 1;
        }
    }

    /// The connection whose calls carry nothing, and which has carried nothing for longest.
    fn quiet(&self) -> Option<u64> {
        let quiet = self.open.iter().filter(|(_, entry)| {
            let patience = if entry.unread == 0 { QUIET } else { UNREAD };
            entry.only_waits() && !entry.is_leaving && entry.carried.elapsed() >= patience
        });
        quiet.min_by_key(|(_, entry)| entry.carried).map(|(number, _)| *number)
    }

    /// One carries something, perhaps on its way out: it stays as long as that does, and counts again.
    fn stays(&mut self, number: u64) {
        if let Some(entry) = self.open.get_mut(&number) {
            self.leaving -= usize::from(std::mem::take(&mut entry.is_leaving));
        }
    }

    fn may_tell(&mut self, trouble: &'static str) -> bool {
        let now = Instant::now();
        let due = self.told.get(trouble).is_none_or(|told| now - *told >= TELL_EVERY);
        if due {
            self.told.insert(trouble, now);
        }
        due
    }
}

impl Entry {
    fn only_waits(&self) -> bool {
        self.calls == self.waiting + self.unread
    }
}

/// One that is open; dropping it says that it is not.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) caller: CallerId,
    connections: Connections,
    /// It is told to leave, or its listener is closed.
    pub(super) close: CancellationToken,
}

impl Connection {
    pub(super) fn limits(&self) -> &ConnectionLimits {
        &self.connections.0.limits
    }

    pub(super) fn arrivals(&self) -> &Arc<Arrivals> {
        &self.connections.0.arrivals
    }

    /// It has shaken hands.
    pub(super) fn note_handshake(&self) {
        self.connections.state().shaking.remove(&self.caller.0);
    }

    /// Nothing is open on it that it would have to stay for.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.connections.state();
        state.open.get(&self.caller.0).is_none_or(|entry| {
            // Where it makes room; with its listener those that wait are told of that first.
            entry.calls == 0 || entry.is_leaving && entry.only_waits()
        })
    }

    /// A call begins, which only waits for something to be told or not.
    pub(super) fn begin_call(self: &Arc<Self>, waits: bool) -> CallOnDrop {
        let mut state = self.connections.state();
        if let Some(entry) = state.open.get_mut(&self.caller.0) {
            entry.calls += 1;
            entry.waiting += usize::from(waits);
            entry.carried = Instant::now();
            let idle_since = entry.idle_since;
            state.idle.remove(&idle_since);
            state.stays(self.caller.0);
        }
        drop(state);
        CallOnDrop { connection: Arc::clone(self), waits, is_unread: false }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.connections.state();
        state.shaking.remove(&self.caller.0);
        if let Some(entry) = state.open.remove(&self.caller.0) {
            state.idle.remove(&entry.idle_since);
            state.leaving -= usize::from(entry.is_leaving);
        }
    }
}

/// A call that is open.
#[derive(Debug)]
pub(super) struct CallOnDrop {
    connection: Arc<Connection>,
    /// It only waits for something to be told.
    waits: bool,
    /// Its client has not taken what was sent last.
    is_unread: bool,
}

impl CallOnDrop {
    /// A part of its response is on its way: its head, or what comes after.
    pub(super) fn sent(&mut self) {
        let was_unread = std::mem::replace(&mut self.is_unread, !self.waits);
        self.carried(|entry| entry.unread += usize::from(!was_unread && self.is_unread));
    }

    /// Its client can take more.
    pub(super) fn taken(&mut self) {
        if std::mem::take(&mut self.is_unread) {
            self.carried(|entry| entry.unread -= 1);
            self.connection.connections.state().stays(self.connection.caller.0);
        }
    }

    fn carried(&self, change: impl FnOnce(&mut Entry)) {
        let mut state = self.connection.connections.state();
        if let Some(entry) = state.open.get_mut(&self.connection.caller.0) {
            entry.carried = Instant::now();
            change(entry);
        }
    }
}

impl Drop for CallOnDrop {
    fn drop(&mut self) {
        let Connection { caller: CallerId(number), connections, .. } = &*self.connection;
        let mut state = connections.state();
        let moment = state.next_moment();
        let Some(entry) = state.open.get_mut(number) else { return };
        entry.calls -= 1;
        entry.waiting -= usize::from(self.waits);
        entry.unread -= usize::from(self.is_unread);
        if entry.calls == 0 && !entry.is_leaving {
            entry.idle_since = moment;
            state.idle.insert(moment, *number);
        }
    }
}

/// What tests see of the books, and turn.
#[cfg(test)]
impl Connections {
    /// How many are open and count.
    pub(super) fn count(&self) -> usize {
        self.state().count()
    }

    /// How many are open, also of those that were told to leave.
    pub(super) fn open(&self) -> usize {
        self.state().open.len()
    }

    /// How many are in their handshake.
    pub(super) fn shaking(&self) -> usize {
        self.state().shaking.len()
    }

    /// How many calls there are whose clients do not take what they are sent.
    pub(super) fn unread(&self) -> usize {
        self.state().open.values().map(|entry| entry.unread).sum()
    }

    /// How many have just one call.
    pub(super) fn with_one_call(&self) -> usize {
        self.state().open.values().filter(|entry| entry.calls == 1).count()
    }

    /// How many have a call that does not only wait.
    pub(super) fn with_more_than_waits(&self) -> usize {
        self.state().open.values().filter(|entry| !entry.only_waits()).count()
    }

    /// Makes it so long ago that anything was carried.
    pub(super) fn age(&self) {
        for entry in self.state().open.values_mut() {
            entry.carried -= UNREAD;
        }
    }
}
