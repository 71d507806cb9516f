//! Where what a worker says goes: to the turn on its thread, to that on the thread that it descends
//! from, or to nobody.
//!
//! [`Routes`] is the table; it is open from the worker's start to its end. It forwards and never
//! waits: what it does runs in the task that reads the worker.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::app_server::message::{Asked, Inbound, SkippedLine, Told};
use crate::app_server::peer::Peer;
use crate::model::event::McpServerStatus;
use crate::model::id::ThreadId;
use crate::worker::mcp::McpServers;
use crate::worker::unowned;

/// What a worker says about one thread.
#[derive(Debug)]
pub(crate) enum ThreadMessage {
    /// It tells.
    Told(Told),
    /// It asks, and must be answered.
    Asked(Asked),
    /// It told or asked something in a line over the limit, which is gone. What it asked was declined.
    /// A line that may be about this thread or another one comes to all of them, and names none.
    Skipped(Arc<SkippedLine>),
}

/// What one message takes beside its text.
const OVERHEAD: usize = 1024;

impl ThreadMessage {
    /// About how many bytes it takes while it waits to be read.
    fn bytes(&self) -> usize {
        let text = match self {
            ThreadMessage::Told(told) => told.bytes(),
            ThreadMessage::Asked(asked) => asked.bytes,
            // Shared by all that it is told to.
            ThreadMessage::Skipped(_) => 0,
        };
        text + OVERHEAD
    }
}

type Table = HashMap<String, Listener>;

/// The other end of a [`Route`].
#[derive(Debug)]
struct Listener {
    messages: mpsc::UnboundedSender<ThreadMessage>,
    // How many bytes wait to be read; also what tells one route of a thread from another.
    unread: Arc<AtomicUsize>,
}

#[derive(Debug)]
pub(super) struct Routes {
    // `None` once the worker has ended: no route can be made any more.
    table: Mutex<Option<Table>>,
    // How many bytes may wait in a route, beside one message.
    most_unread: usize,
    // The threads that the worker holds for us, and when each was used last. By id, so that no path that
    // loads or releases twice makes the count drift.
    loaded: Mutex<HashMap<ThreadId, Instant>>,
    pub(super) mcp: McpServers,
    pub(super) kin: unowned::Kin,
}

/// Why there is no route to a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoute {
    #[error("the worker ended")]
    WorkerEnded,
    /// A turn has one.
    #[error("another turn listens to the thread already")]
    Taken,
}

impl Routes {
    pub(super) fn open(mcp: McpServers, kin: unowned::Kin, most_unread: usize) -> Routes {
        let table = Mutex::new(Some(Table::new()));
        Routes { table, most_unread, loaded: Mutex::default(), mcp, kin }
    }

    pub(super) fn loaded(&self) -> MutexGuard<'_, HashMap<ThreadId, Instant>> {
        // A panic elsewhere can't leave the map half changed.
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Option<Table>> {
        // A panic elsewhere can't leave the map half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No route can be made from now on, and those that are end after what they hold already.
    pub(super) fn close(&self) {
        *self.table() = None;
    }

    /// Listens to a thread from now on. A thread has one route at a time: two turns on it would each
    /// hear half.
    pub(super) fn listen(self: &Arc<Routes>, thread_id: &str) -> Result<Route, NoRoute> {
        let (sender, messages) = mpsc::unbounded_channel();
        let unread = Arc::new(AtomicUsize::new(0));
        let listener = Listener { messages: sender, unread: Arc::clone(&unread) };
        let ((), mcp_servers) = self.mcp.hand_over(thread_id, || {
            match self.table().as_mut().ok_or(NoRoute::WorkerEnded)?.entry(thread_id.to_owned()) {
                Entry::Vacant(vacant) => drop(vacant.insert(listener)),
                Entry::Occupied(_) => return Err(NoRoute::Taken),
            }
            Ok(())
        })?;
        let (thread_id, routes) = (thread_id.to_owned(), Arc::clone(self));
        Ok(Route { thread_id, routes, messages, unread, mcp_servers })
    }

    /// The thread whose route hears of this one: itself, or the nearest that it descends from.
    fn heard_at(&self, table: &Table, thread_id: &str) -> Option<String> {
        if table.contains_key(thread_id) {
            return Some(thread_id.to_owned());
        }
        let ownership = self.kin.ownership();
        ownership.ancestors(thread_id).find(|elder| table.contains_key(*elder)).map(str::to_owned)
    }

    /// Whether a turn is on this thread itself.
    pub(super) fn is_taken(&self, thread_id: &str) -> bool {
        self.table().as_ref().is_some_and(|table| table.contains_key(thread_id))
    }

    /// Whether a turn listens to what is said of a thread.
    pub(super) fn is_heard(&self, thread_id: &str) -> bool {
        self.table().as_ref().is_some_and(|table| self.heard_at(table, thread_id).is_some())
    }

    /// Passes a message of a thread on, and gives it back where nobody listens. A route that is not read
    /// while more and more is said ends: what waits in it takes memory, and a worker must not be kept
    /// from telling the others.
    fn pass_on(&self, thread_id: &str, message: ThreadMessage) -> Option<ThreadMessage> {
        let mut locked = self.table();
        let Some(table) = locked.as_mut() else { return Some(message) };
        let Some(at) = self.heard_at(table, thread_id) else { return Some(message) };
        let Some(Listener { messages, unread }) = table.get(&at) else { return Some(message) };
        let waiting = unread.load(Ordering::Relaxed);
        if waiting > 0 && waiting + message.bytes() > self.most_unread {
            tracing::warn!(
                thread_id,
                waiting,
                "a turn did not read what was told of it; it hears no more"
            );
            table.remove(&at);
            return Some(message);
        }
        unread.fetch_add(message.bytes(), Ordering::Relaxed);
        messages.send(message).err().map(|error| error.0)
    }

    /// Passes on what is held of threads that somebody listens to by now.
    pub(super) fn forward_held(&self) {
        for (thread_id, held) in self.kin.take_heard(|thread_id| self.is_heard(thread_id)) {
            for told in held {
                let _ = self.pass_on(&thread_id, ThreadMessage::Told(told));
            }
        }
    }
}

/// What a worker says about one thread, as long as it is held. Ends when the worker ends, or when so
/// much waits in it that nobody seems to read it.
///
/// The queue is bounded by its bytes and never waits: its reader is the engine, which only files what
/// it reads into a bounded log, and a queue that waits would let one slow turn block all others of the
/// worker.
#[derive(Debug)]
pub(crate) struct Route {
    thread_id: String,
    routes: Arc<Routes>,
    messages: mpsc::UnboundedReceiver<ThreadMessage>,
    unread: Arc<AtomicUsize>,
    mcp_servers: Vec<McpServerStatus>,
}

impl Route {
    /// What was said of the thread's MCP servers before there was this route, as far as it is new or
    /// bad; once.
    pub(crate) fn take_mcp_servers(&mut self) -> Vec<McpServerStatus> {
        std::mem::take(&mut self.mcp_servers)
    }

    /// The next message; `None` once the route has ended.
    pub(crate) async fn recv(&mut self) -> Option<ThreadMessage> {
        let message = self.messages.recv().await?;
        self.unread.fetch_sub(message.bytes(), Ordering::Relaxed);
        Some(message)
    }

    /// The next message, if one is here already.
    pub(crate) fn try_recv(&mut self) -> Option<ThreadMessage> {
        let message = self.messages.try_recv().ok()?;
        self.unread.fetch_sub(message.bytes(), Ordering::Relaxed);
        Some(message)
    }

    /// Hears no more; what is here already can still be read.
    pub(crate) fn close(&mut self) {
        if let Some(table) = self.routes.table().as_mut() {
            // Not one that came after it.
            table.retain(|thread_id, listener| {
                *thread_id != self.thread_id || !Arc::ptr_eq(&listener.unread, &self.unread)
            });
        }
    }

    /// Why it ended, where the worker did not: so much may wait in it.
    pub(crate) fn overflowed(&self) -> String {
        let most = self.routes.most_unread;
        format!("more than {most} bytes that were told of the turn waited to be read")
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        self.close();
        if let Some(used_at) =
            self.routes.loaded().get_mut(&ThreadId::from_codex(self.thread_id.clone()))
        {
            *used_at = Instant::now();
        }
        self.routes.kin.unheard_from_now_on(&self.thread_id);
    }
}

/// Takes in what a worker says.
pub(super) fn route(routes: &Routes, peer: &Peer, inbound: Inbound) {
    match inbound {
        Inbound::Told(told) => {
            if routes.kin.observe(&told) {
                // It may have told whose a thread is.
                routes.forward_held();
            }
            routes.mcp.hear(told, |told| {
                let Some(thread_id) = told.scope.thread_id.clone() else { return false };
                let unheard = routes.pass_on(&thread_id, ThreadMessage::Told(told));
                if let Some(ThreadMessage::Told(told)) = unheard {
                    routes.kin.unheard(told);
                    return false;
                }
                true
            });
        }
        Inbound::Skipped(line) => skipped(routes, peer, line),
        Inbound::Asked(asked) => {
            let unclaimed = match asked.scope.thread_id.clone() {
                _ if asked.is_of_the_process() => Some(ThreadMessage::Asked(asked)),
                Some(thread_id) => routes.pass_on(&thread_id, ThreadMessage::Asked(asked)),
                None => Some(ThreadMessage::Asked(asked)),
            };
            // A request without an answer would hang Codex for ever.
            if let Some(ThreadMessage::Asked(Asked { call, .. })) = unclaimed {
                tracing::debug!(?call, "a request that is no turn's is answered at once");
                let _ = peer.decline(&call);
            }
        }
    }
}

/// Tells whoever a line was for that it is gone: the turns of its thread, or all of them where it names
/// none. A request of Codex is declined, since it waits for an answer.
fn skipped(routes: &Routes, peer: &Peer, line: Box<SkippedLine>) {
    if let Some(call) = line.call() {
        let _ = peer.decline(&call);
    }
    let line = Arc::<SkippedLine>::from(line);
    let threads: Vec<String> = match &line.thread_id {
        Some(thread_id) => vec![thread_id.clone()],
        None => routes.table().iter().flat_map(Table::keys).cloned().collect(),
    };
    for thread_id in threads {
        let _ = routes.pass_on(&thread_id, ThreadMessage::Skipped(Arc::clone(&line)));
    }
}
