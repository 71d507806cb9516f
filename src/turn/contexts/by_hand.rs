//! What callers change by hand: nobody hears of it, and nothing of it is seen, before it is kept.

use std::future::Future;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use super::Contexts;
use tracing::Instrument as _;

use crate::model::id::{ContextKey, ThreadId};
use crate::model::refusal::Refusal;
use crate::registry::bindings::{Binding, Bound};
use crate::registry::ledger::Change;
use crate::registry::threads::ThreadFacts;
use crate::turn::admission::{Busy, Lane, Reservation};
use crate::turn::engine::Engine;

/// How long a call waits for others that bind and delete the same context: what they do has been kept by
/// then, and who copies its thread takes longer.
const RESERVED_WITHIN: Duration = Duration::from_secs(2);

/// Keeps those who bind a thread and whoever deletes it apart. Of many threads that share one lock few are
/// ever deleted.
#[derive(Debug)]
pub(super) struct Deletions([Arc<RwLock<()>>; 64]);

impl Default for Deletions {
    fn default() -> Deletions {
        Deletions(std::array::from_fn(|_| Arc::default()))
    }
}

impl Deletions {
    fn of(&self, thread_id: &ThreadId) -> Arc<RwLock<()>> {
        let mut hasher = DefaultHasher::new();
        thread_id.hash(&mut hasher);
        let at = usize::try_from(hasher.finish() % 64).unwrap_or_default();
        Arc::clone(&self.0[at])
    }
}

/// A context that is kept free of turns, and a thread that nobody deletes meanwhile.
#[derive(Debug)]
pub(crate) struct ToBind {
    _reserved: Reservation,
    _undeleted: OwnedRwLockReadGuard<()>,
}

/// A context and its thread, kept free of turns and of others who would bind the thread.
#[derive(Debug)]
pub(crate) struct ToErase {
    _unbound: OwnedRwLockWriteGuard<()>,
}

impl Contexts {
    /// Keeps a context free of turns while a caller binds a thread to it, and the thread from being deleted.
    ///
    /// # Errors
    /// [`Refusal::ContextInUse`], [`Refusal::ContextsFull`], [`Refusal::LedgerUnavailable`]; see
    /// [`Admission::reserve`].
    pub(crate) async fn reserve_to_bind(
        &self,
        key: &ContextKey,
        thread_id: &ThreadId,
    ) -> Result<ToBind, Refusal> {
        self.check_ledger()?;
        let look = |_: &Busy<'_>| Ok((vec![Lane::Context(key.clone())], ()));
        let settle = |busy: &Busy<'_>| self.room(key, busy, None).map(drop);
        let reserved = self.admission.reserve(look, settle).await?;
        let (_reserved, ()) = reserved.ok_or_else(|| Refusal::ContextInUse(key.clone()))?;
        let _undeleted = self.deletions.of(thread_id).read_owned().await;
        Ok(ToBind { _reserved, _undeleted })
    }

    /// Binds a thread to a context that is kept free for it, with what is known of the thread here. Nobody
    /// sees it before it is kept.
    ///
    /// # Errors
    /// [`Refusal::LedgerUnavailable`]; nothing has changed then.
    pub(crate) async fn bind(
        &self,
        key: &ContextKey,
        thread_id: &ThreadId,
        facts: Option<&ThreadFacts>,
        _reserved: &ToBind,
    ) -> Result<Bound, Refusal> {
        let bound = self.bindings.plan(key, thread_id);
        let bind = Change::Bind(key.clone(), bound.binding.clone());
        let facts = facts.map(|facts| Change::Facts(thread_id.clone(), facts.clone()));
        let changes = [bind].into_iter().chain(facts).collect();
        if let Err(refusal) = self.keep(changes, vec![self.bindings.as_is(key)]).await {
            self.bindings.forget_facts(thread_id);
            return Err(refusal);
        }
        self.put(key, &bound.binding);
        Ok(bound)
    }

    /// Keeps a context free of turns while its binding is deleted, and gives that.
    ///
    /// # Errors
    /// [`Refusal::ContextInUse`], [`Refusal::ContextNotFound`], [`Refusal::LedgerUnavailable`]; see
    /// [`Admission::reserve`].
    pub(crate) async fn reserve_to_unbind(
        &self,
        key: &ContextKey,
    ) -> Result<(Reservation, Binding), Refusal> {
        self.check_ledger()?;
        let look = |_: &Busy<'_>| Ok((vec![Lane::Context(key.clone())], self.bindings.get(key)));
        let reserved = self.admission.reserve(look, |_| Ok(())).await?;
        let (reserved, bound) = reserved.ok_or_else(|| Refusal::ContextInUse(key.clone()))?;
        Ok((reserved, bound.ok_or_else(|| Refusal::ContextNotFound(key.clone()))?))
    }

    /// Deletes the binding of a context that is kept free for it. All see it until that is kept.
    ///
    /// # Errors
    /// [`Refusal::LedgerUnavailable`]; nothing has changed then.
    pub(crate) async fn unbind(
        &self,
        key: &ContextKey,
        _reserved: &Reservation,
    ) -> Result<(), Refusal> {
        self.keep(vec![Change::Unbind(key.clone())], vec![self.bindings.as_is(key)]).await?;
        self.bindings.remove(key);
        Ok(())
    }

    /// Keeps a context and its thread free of turns while both are deleted, and gives the thread. It is to be
    /// kept free of [others](Contexts::keep_unbound), too.
    ///
    /// # Errors
    /// [`Refusal::ContextInUse`], [`Refusal::ContextNotFound`], [`Refusal::LedgerUnavailable`]; see
    /// [`Admission::reserve`].
    pub(crate) async fn reserve_to_erase(
        &self,
        key: &ContextKey,
    ) -> Result<(Reservation, ThreadId), Refusal> {
        self.check_ledger()?;
        let look = |_: &Busy<'_>| {
            let thread_id = self.get(key)?.thread_id;
            Ok((self.lanes_of(key, &thread_id).to_vec(), thread_id))
        };
        let reserved = self.admission.reserve(look, |_| Ok(())).await?;
        reserved.ok_or_else(|| Refusal::ContextInUse(key.clone()))
    }

    /// Waits until nobody binds this thread by hand, and lets nobody do so.
    pub(crate) async fn keep_unbound(&self, thread_id: &ThreadId) -> ToErase {
        ToErase { _unbound: self.deletions.of(thread_id).write_owned().await }
    }

    /// Deletes the binding of a context, and what is known of its thread, which is gone.
    ///
    /// # Errors
    /// [`Refusal::LedgerUnavailable`]; nothing has changed then.
    pub(crate) async fn erase(
        &self,
        key: &ContextKey,
        thread: (&ThreadId, &ThreadFacts),
        _reserved: &Reservation,
    ) -> Result<(), Refusal> {
        let (thread_id, facts) = thread;
        let undo = [self.bindings.as_is(key), Change::Facts(thread_id.clone(), facts.clone())];
        let changes = [Change::Unbind(key.clone()), Change::ForgetFacts(thread_id.clone())];
        self.keep(changes.to_vec(), undo.to_vec()).await?;
        self.bindings.remove(key);
        Ok(())
    }

    /// See [`Bindings::other_of`].
    pub(crate) fn other_of(&self, thread_id: &ThreadId, key: &ContextKey) -> Option<ContextKey> {
        self.bindings.other_of(thread_id, key)
    }

    /// See [`Bindings::copy_of`].
    pub(crate) fn copy_of(&self, thread_id: &ThreadId) -> Option<ContextKey> {
        self.bindings.copy_of(thread_id)
    }

    /// Whether anything can be kept now: what is refused at once needs no undoing.
    ///
    /// # Errors
    /// [`Refusal::LedgerUnavailable`].
    pub(crate) fn check_ledger(&self) -> Result<(), Refusal> {
        self.ledger.trouble().borrow().clone().map_or(Ok(()), |trouble| Err(trouble.into()))
    }

    async fn keep(&self, changes: Vec<Change>, undo: Vec<Change>) -> Result<(), Refusal> {
        Ok(self.ledger.try_write(changes, undo).await?)
    }

    /// Binds a context that is kept free to a copy of another one's thread, of which this is known.
    ///
    /// # Errors
    /// [`Refusal::LedgerUnavailable`]; nothing has changed then.
    pub(crate) async fn bind_copy(
        &self,
        key: &ContextKey,
        copy: (&ThreadId, &ThreadFacts),
        copied_from: &ThreadId,
        _reserved: &Reservation,
    ) -> Result<Binding, Refusal> {
        let (thread_id, facts) = copy;
        let binding = self.bindings.plan_copy(key, thread_id, copied_from);
        let facts = Change::Facts(thread_id.clone(), facts.clone());
        let changes = vec![Change::Bind(key.clone(), binding.clone()), facts];
        let undo = vec![self.bindings.as_is(key), Change::ForgetFacts(thread_id.clone())];
        self.keep(changes, undo).await?;
        self.put(key, &binding);
        Ok(binding)
    }

    /// Binds a context as is kept. What has to go for it goes now: had it not been kept, nothing would have.
    fn put(&self, key: &ContextKey, binding: &Binding) {
        self.bindings.put(key, binding);
        if !self.limits.evict_contexts || self.bindings.len() <= self.limits.max_contexts {
            return;
        }
        self.admission.hold(|busy| {
            let is_used = |other: &ContextKey| busy.has(other) || other == key;
            let unused = self.bindings.unused_longest(is_used, Duration::ZERO);
            unused.iter().for_each(|key| self.evict(key));
        });
    }

    /// Has it kept that less is known of a bound thread than before.
    ///
    /// # Errors
    /// [`Refusal::LedgerUnavailable`]; nothing has changed then.
    pub(crate) async fn keep_doubts(
        &self,
        thread_id: &ThreadId,
        facts: &ThreadFacts,
        before: &ThreadFacts,
    ) -> Result<(), Refusal> {
        let [facts, before] =
            [facts, before].map(|facts| vec![Change::Facts(thread_id.clone(), facts.clone())]);
        self.keep(facts, before).await
    }

    /// Has what is known of a thread kept, if a context goes on with it; whether one does. Not waited for.
    pub(crate) fn keep_facts(&self, thread_id: &ThreadId, facts: &ThreadFacts) -> bool {
        self.bindings.keep_facts(thread_id, facts)
    }
}

impl Engine {
    /// Binds a thread to a context for a caller, and lets go of the one that was bound before. A caller
    /// that goes does not undo it.
    ///
    /// # Errors
    /// See [`Contexts::reserve_to_bind`] and [`Contexts::bind`].
    pub(crate) async fn bind_context(
        self: &Arc<Engine>,
        key: ContextKey,
        thread_id: ThreadId,
    ) -> Result<Bound, Refusal> {
        let reserving = self.contexts().reserve_to_bind(&key, &thread_id);
        let reserved = in_time(&key, reserving).await?;
        let engine = Arc::clone(self);
        self.unbroken(async move {
            // A turn that uses the thread keeps what it leaves itself.
            let known = || engine.threads.try_lock(&thread_id);
            let facts = known().map(|thread| thread.facts.clone());
            let facts = facts.filter(|facts| *facts != ThreadFacts::default());
            let binding = engine.contexts().bind(&key, &thread_id, facts.as_ref(), &reserved);
            let bound = binding.await?;
            if let Some(mut thread) = known() {
                thread.is_bound = true;
                if facts.is_some_and(|facts| facts != thread.facts) {
                    engine.contexts().keep_facts(&thread_id, &thread.facts);
                }
            }
            if let Some(replaced) = &bound.replaced {
                engine.let_go(replaced.clone());
            }
            Ok(bound)
        })
        .await
    }

    /// Deletes the binding of a context for a caller, and lets go of its thread. A caller that goes does
    /// not undo it.
    ///
    /// # Errors
    /// See [`Contexts::reserve_to_unbind`] and [`Contexts::unbind`].
    pub(crate) async fn delete_context(self: &Arc<Engine>, key: ContextKey) -> Result<(), Refusal> {
        let (reserved, bound) = in_time(&key, self.contexts().reserve_to_unbind(&key)).await?;
        let engine = Arc::clone(self);
        self.unbroken(async move {
            engine.contexts().unbind(&key, &reserved).await?;
            engine.let_go(bound.thread_id);
            Ok(())
        })
        .await
    }

    /// Does something short that is not to be cut off with its call: what is kept is to be what is.
    async fn unbroken<T: Send + 'static>(
        &self,
        deed: impl Future<Output = Result<T, Refusal>> + Send + 'static,
    ) -> Result<T, Refusal> {
        let fault = |error: tokio::task::JoinError| Refusal::Internal(error.to_string());
        self.tasks.spawn(deed.in_current_span()).await.map_err(fault)?
    }
}

/// Reserves a context, which others may have reserved. It is not waited for without end.
async fn in_time<T>(
    key: &ContextKey,
    reserving: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let in_use = || Err(Refusal::ContextInUse(key.clone()));
    tokio::time::timeout(RESERVED_WITHIN, reserving).await.unwrap_or_else(|_| in_use())
}
