//! Contexts: which thread each goes on with, and when that may change.
//!
//! A binding is not pulled from under a turn. A turn that was admitted has its context's lane to
//! itself until it has ended, and binds the thread that it opened. A caller binds and deletes only
//! while no turn of the context runs or waits; that look and the change are one step with regard to
//! admission, so that no turn begins between them. Whatever else is to change a binding by itself (an
//! eviction, a store's expiry) goes the caller's way.

use std::sync::Arc;

use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::refusal::Refusal;
use crate::registry::bindings::{Binding, Bindings, Bound};
use crate::turn::admission::{Admission, Lane};
use crate::turn::engine::Engine;
use crate::worker::thread::ThreadError;

/// The bindings, and who may change them.
#[derive(Debug)]
pub(crate) struct Contexts {
    bindings: Bindings,
    admission: Arc<Admission>,
}

impl Contexts {
    /// The contexts of these bindings, whose turns this admission admits.
    pub(crate) fn new(bindings: Bindings, admission: Arc<Admission>) -> Contexts {
        Contexts { bindings, admission }
    }

    /// The binding of a context.
    ///
    /// # Errors
    /// [`Refusal::ContextNotFound`].
    pub(crate) fn get(&self, key: &ContextKey) -> Result<Binding, Refusal> {
        self.bindings.get(key).ok_or_else(|| Refusal::ContextNotFound(key.clone()))
    }

    /// How many contexts are bound.
    pub(crate) fn count(&self) -> usize {
        self.bindings.len()
    }

    /// See [`Bindings::page`].
    pub(crate) fn page(
        &self,
        tenant: &Tenant,
        context_id: Option<&str>,
        after: Option<&(String, String)>,
        limit: usize,
    ) -> Vec<(ContextKey, Binding)> {
        self.bindings.page(tenant, context_id, after, limit)
    }

    /// How many turns wait for this context.
    pub(crate) fn waiting_turns(&self, key: &ContextKey) -> usize {
        self.admission.waiting_in(&Lane::Context(key.clone()))
    }

    /// Binds a thread to a context for a caller.
    ///
    /// # Errors
    /// [`Refusal::ContextInUse`].
    pub(crate) fn bind(&self, key: &ContextKey, thread_id: &ThreadId) -> Result<Bound, Refusal> {
        self.while_idle(key, || self.bindings.bind(key, thread_id))
    }

    /// Deletes the binding of a context for a caller.
    ///
    /// # Errors
    /// [`Refusal::ContextInUse`], [`Refusal::ContextNotFound`].
    pub(crate) fn unbind(&self, key: &ContextKey) -> Result<Binding, Refusal> {
        let removed = self.while_idle(key, || self.bindings.remove(key))?;
        removed.ok_or_else(|| Refusal::ContextNotFound(key.clone()))
    }

    /// Binds the thread of a turn to its context. Only for the turn that runs in the context's lane.
    pub(crate) fn bind_for_turn(&self, key: &ContextKey, thread_id: &ThreadId) {
        self.bindings.bind(key, thread_id);
    }

    /// Notes that a turn of this context has its thread.
    pub(crate) fn note_turn(&self, key: &ContextKey, turn_id: &TurnId) {
        self.bindings.note_turn(key, turn_id);
    }

    fn while_idle<T>(&self, key: &ContextKey, change: impl FnOnce() -> T) -> Result<T, Refusal> {
        let changed = self.admission.while_idle(&Lane::Context(key.clone()), change);
        changed.ok_or_else(|| Refusal::ContextInUse(key.clone()))
    }
}

impl Engine {
    /// Binds a thread to a context for a caller, and lets go of the one that was bound before.
    ///
    /// # Errors
    /// See [`Contexts::bind`].
    pub(crate) fn bind_context(
        self: &Arc<Engine>,
        key: &ContextKey,
        thread_id: &ThreadId,
    ) -> Result<Bound, Refusal> {
        let bound = self.contexts().bind(key, thread_id)?;
        if let Some(replaced) = &bound.replaced {
            self.end_mcp_servers(replaced.clone());
        }
        Ok(bound)
    }

    /// Deletes the binding of a context for a caller, and lets go of its thread.
    ///
    /// # Errors
    /// See [`Contexts::unbind`].
    pub(crate) fn delete_context(self: &Arc<Engine>, key: &ContextKey) -> Result<(), Refusal> {
        let unbound = self.contexts().unbind(key)?;
        self.end_mcp_servers(unbound.thread_id);
        Ok(())
    }

    /// Ends the MCP servers of a thread that no context continues any more. A turn of another context
    /// that runs on it keeps it; one that comes later loads it again.
    fn end_mcp_servers(self: &Arc<Engine>, thread_id: ThreadId) {
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            let Some(mut thread) = engine.threads.try_lock(&thread_id) else { return };
            let holder =
                thread.loaded.as_ref().and_then(|loaded| engine.pool.worker(&loaded.worker));
            let Some(worker) = holder.filter(|worker| worker.has_mcp_servers(&thread_id)) else {
                return;
            };
            match worker.release_thread(&thread_id).await {
                Ok(()) | Err(ThreadError::Lost { .. }) => {}
                // One without a rollout can't be archived.
                Err(_) => worker.forget_thread(&thread_id).await,
            }
            thread.loaded = None;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::model::request::BusyPolicy;
    use crate::turn::admission::{AdmissionLimits, Ticket};

    fn key() -> ContextKey {
        ContextKey {
            tenant: Tenant::default(),
            context_id: "c".to_owned(),
            thread_key: "codex_thread_id".to_owned(),
        }
    }

    fn contexts() -> Contexts {
        Contexts::new(Bindings::default(), Admission::new(AdmissionLimits::default()))
    }

    fn admit(contexts: &Contexts) -> Ticket {
        let lane = Some(Lane::Context(key()));
        contexts.admission.admit(&Tenant::default(), lane, BusyPolicy::Queue).unwrap()
    }

    #[test]
    fn a_binding_changes_by_hand_only_while_no_turn_runs_or_waits() {
        let contexts = contexts();
        let (key, one, two) = (key(), ThreadId::from_codex("1"), ThreadId::from_codex("2"));
        assert_eq!(contexts.unbind(&key), Err(Refusal::ContextNotFound(key.clone())));
        assert_eq!(contexts.bind(&key, &one).unwrap().replaced, None);

        let running = admit(&contexts);
        let waiting = admit(&contexts);
        let in_use = Refusal::ContextInUse(key.clone());
        assert_eq!(contexts.bind(&key, &two).unwrap_err(), in_use);
        drop(running);
        // The other one runs now.
        assert_eq!(contexts.unbind(&key).unwrap_err(), in_use);
        contexts.bind_for_turn(&key, &two);
        let another = ContextKey { context_id: "d".to_owned(), ..key.clone() };
        assert_eq!(contexts.bind(&another, &two).unwrap().replaced, None);
        drop(waiting);
        assert_eq!(contexts.bind(&key, &one).unwrap().replaced, Some(two));
        assert_eq!(contexts.unbind(&key).unwrap().thread_id, one);
        assert_eq!(contexts.get(&key).unwrap_err(), Refusal::ContextNotFound(key));
    }

    #[test]
    fn no_turn_begins_between_the_look_and_the_change() {
        let (contexts, key, thread_id) = (contexts(), key(), ThreadId::from_codex("1"));
        let (begins, begun) = mpsc::channel();
        thread::scope(|scope| {
            let change = || {
                let turn = scope.spawn(|| {
                    begins.send(()).unwrap();
                    let ticket = admit(&contexts);
                    (contexts.get(&key), ticket)
                });
                begun.recv().unwrap();
                // It has all the time that it needs, if nothing holds it up.
                (0..1000).for_each(|_| thread::yield_now());
                assert!(!turn.is_finished());
                contexts.bindings.bind(&key, &thread_id);
                turn
            };
            let turn = contexts.while_idle(&key, change).unwrap();
            let (seen, _ticket) = turn.join().unwrap();
            assert_eq!(seen.unwrap().thread_id, thread_id);
            assert_eq!(contexts.unbind(&key), Err(Refusal::ContextInUse(key.clone())));
        });
    }
}
