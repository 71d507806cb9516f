//! Where what a worker says goes: to the turn on its thread, to that on the thread that it descends
//! from, or to nobody.
//!
//! [`Routes`] is the table; it is open from the worker's start to its end. It forwards and never
//! waits: what it does runs in the task that reads the worker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use crate::app_server::message::{Asked, Inbound, SkippedLine, Told};
use crate::app_server::peer::Peer;
use crate::model::event::McpServerStatus;
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

type Table = HashMap<String, mpsc::UnboundedSender<ThreadMessage>>;

#[derive(Debug)]
pub(super) struct Routes {
    // `None` once the worker has ended: no route can be made any more.
    table: Mutex<Option<Table>>,
    pub(super) mcp: McpServers,
    pub(super) kin: unowned::Kin,
}

impl Routes {
    pub(super) fn open(mcp: McpServers, kin: unowned::Kin) -> Routes {
        Routes { table: Mutex::new(Some(Table::new())), mcp, kin }
    }

    fn table(&self) -> MutexGuard<'_, Option<Table>> {
        // A panic elsewhere can't leave the map half changed.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No route can be made from now on, and those that are end after what they hold already.
    pub(super) fn close(&self) {
        *self.table() = None;
    }

    /// Listens to a thread from now on; `None` once the worker has ended.
    pub(super) fn listen(self: &Arc<Routes>, thread_id: &str) -> Option<Route> {
        let (sender, messages) = mpsc::unbounded_channel();
        let ((), mcp_servers) = self.mcp.hand_over(thread_id, || {
            self.table().as_mut()?.insert(thread_id.to_owned(), sender);
            Some(())
        })?;
        let (thread_id, routes) = (thread_id.to_owned(), Arc::clone(self));
        Some(Route { thread_id, routes, messages, mcp_servers })
    }

    /// Where messages of a thread go: to the turn on it, else to that on the nearest thread that it
    /// descends from.
    pub(super) fn get(&self, thread_id: &str) -> Option<mpsc::UnboundedSender<ThreadMessage>> {
        let table = self.table();
        let table = table.as_ref()?;
        let own = table.get(thread_id).cloned();
        own.or_else(|| {
            let ownership = self.kin.ownership();
            ownership.ancestors(thread_id).find_map(|elder| table.get(elder).cloned())
        })
    }

    /// Passes on what is held of threads that somebody listens to by now.
    pub(super) fn forward_held(&self) {
        for (thread_id, held) in self.kin.take_heard(|thread_id| self.get(thread_id).is_some()) {
            let Some(sender) = self.get(&thread_id) else { continue };
            for told in held {
                let _ = sender.send(ThreadMessage::Told(told));
            }
        }
    }
}

/// What a worker says about one thread, as long as it is held. Ends when the worker ends.
///
/// The queue is unbounded on purpose: its reader is the engine, which only files what it reads into
/// a bounded log, and a bounded queue here would let one slow turn block all others of the worker.
#[derive(Debug)]
pub(crate) struct Route {
    thread_id: String,
    routes: Arc<Routes>,
    messages: mpsc::UnboundedReceiver<ThreadMessage>,
    mcp_servers: Vec<McpServerStatus>,
}

impl Route {
    /// What was said of the thread's MCP servers before there was this route, as far as it is new or
    /// bad; once.
    pub(crate) fn take_mcp_servers(&mut self) -> Vec<McpServerStatus> {
        std::mem::take(&mut self.mcp_servers)
    }

    /// The next message; `None` once the worker has ended.
    pub(crate) async fn recv(&mut self) -> Option<ThreadMessage> {
        self.messages.recv().await
    }

    /// The next message, if one is here already.
    pub(crate) fn try_recv(&mut self) -> Option<ThreadMessage> {
        self.messages.try_recv().ok()
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        self.messages.close();
        if let Some(table) = self.routes.table().as_mut() {
            // Not one that took over.
            table.retain(|_, listener| !listener.is_closed());
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
                let Some(thread_id) = &told.scope.thread_id else { return false };
                match routes.get(thread_id) {
                    Some(sender) => sender.send(ThreadMessage::Told(told)).is_ok(),
                    None => {
                        routes.kin.unheard(told);
                        false
                    }
                }
            });
        }
        Inbound::Skipped(line) => skipped(routes, peer, line),
        Inbound::Asked(asked) => {
            let listener = asked.scope.thread_id.as_deref().and_then(|id| routes.get(id));
            let unclaimed = match listener {
                Some(sender) => sender.send(ThreadMessage::Asked(asked)).err().map(|error| error.0),
                None => Some(ThreadMessage::Asked(asked)),
            };
            // A request without an answer would hang Codex for ever.
            if let Some(ThreadMessage::Asked(Asked { call, .. })) = unclaimed {
                tracing::debug!(?call, "declined a request that no turn is waiting for");
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
    if let Some(thread_id) = &line.thread_id {
        if let Some(sender) = routes.get(thread_id) {
            let _ = sender.send(ThreadMessage::Skipped(line));
        }
        return;
    }
    for sender in routes.table().iter().flat_map(Table::values) {
        let _ = sender.send(ThreadMessage::Skipped(Arc::clone(&line)));
    }
}
