//! Deleting a context with its thread.
//!
//! Codex deletes the thread first, then what the sidecar keeps goes, and the binding last: whenever this is
//! cut off, the context is still there to be deleted again, and what is gone already is no hindrance.

use std::sync::Arc;

use super::Engine;
use super::history::IdleThread;
use super::open::Ties;
use crate::model::id::{ContextKey, ThreadId};
use crate::model::refusal::Refusal;
use crate::registry::threads::ThreadState;
use crate::worker::Worker;
use crate::worker::history::{Deletion, PastError};

impl Engine {
    /// Deletes a context with its thread and the turns that are retained of it, and gives the thread's id. A
    /// caller that goes does not undo it.
    ///
    /// # Errors
    /// [`Refusal`]; the context is there then, but its thread and its turns may be gone where the ledger is
    /// what failed, or a worker was lost: it can be deleted again.
    pub(crate) async fn erase_context(
        self: &Arc<Engine>,
        key: ContextKey,
    ) -> Result<ThreadId, Refusal> {
        let idle = self.idle_thread(&key, self.contexts.reserve_to_erase(&key)).await?;
        let engine = Arc::clone(self);
        self.to_its_end(async move { engine.erase(&key, idle).await }).await
    }

    async fn erase(
        self: &Arc<Engine>,
        key: &ContextKey,
        idle: IdleThread,
    ) -> Result<ThreadId, Refusal> {
        let IdleThread { mut thread, thread_id, reserved, .. } = idle;
        let _unbound = self.contexts.keep_unbound(&thread_id).await;
        self.check_not_shared(key, &thread_id).await?;
        let ties = Ties::none();
        let holder = self.holder_for_use(&mut thread, &thread_id, &ties).await;
        let holder = holder.map_err(Refusal::from)?;
        let erased = &thread_id;
        let deed = |worker: Arc<Worker>| async move {
            worker.erase_thread(erased).await.map_err(PastError::from)
        };
        let deletion = self.on_a_worker(&thread_id, holder, &ties, "context_id", deed).await;
        let is_held =
            |worker| self.pool.worker(worker).is_some_and(|worker| worker.holds_thread(&thread_id));
        // Also of one that it refuses to delete Codex has let go.
        if !thread.loaded.as_ref().is_some_and(|loaded| is_held(&loaded.worker)) {
            thread.loaded = None;
        }
        match deletion.map_err(Refusal::from)? {
            (Deletion::Gone, _) => {}
            (Deletion::HasCopies, _) => {
                return Err(Refusal::ThreadHasCopies { thread_id, context: None });
            }
        }
        self.turns.forget_thread(&thread_id, key);
        self.latest_threads.forget(&thread_id);
        self.contexts.erase(key, (&thread_id, &thread.facts), &reserved).await?;
        self.ledger.erase_soon();
        // Nobody will ever name it.
        *thread = ThreadState::default();
        Ok(thread_id)
    }

    /// Whether nobody but this context needs its thread, as far as it is known here.
    async fn check_not_shared(
        self: &Arc<Engine>,
        key: &ContextKey,
        thread_id: &ThreadId,
    ) -> Result<(), Refusal> {
        if let Some(context) = self.contexts.other_of(thread_id, key) {
            return Err(Refusal::ThreadShared { thread_id: thread_id.clone(), context });
        }
        // Before Codex is asked, which lets go of the thread to find out.
        let (engine, source) = (Arc::clone(self), thread_id.clone());
        let looking = tokio::task::spawn_blocking(move || engine.contexts.copy_of(&source));
        match looking.await.map_err(|error| Refusal::Internal(error.to_string()))? {
            None => Ok(()),
            context => Err(Refusal::ThreadHasCopies { thread_id: thread_id.clone(), context }),
        }
    }
}
