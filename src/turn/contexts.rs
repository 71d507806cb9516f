//! Contexts: which thread each goes on with, and when that may change.
//!
//! A binding is not pulled from under a turn. A turn that was admitted has its context's lane to
//! itself until it has ended, and binds the thread that it opened. A caller binds and deletes only
//! while no turn of the context runs or waits; that look and the change are one step with regard to
//! admission, so that no turn begins between them. An eviction goes the same way: contexts are only so
//! many, and may be unused only for so long, and one that goes leaves a mark, by which its next turn is
//! told.

use std::cell::RefCell;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::model::event::{Event, WarningCode};
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::refusal::Refusal;
use crate::model::request::{ContextPolicy, TurnRequest, Work};
use crate::registry::bindings::{Binding, Bindings, Bound, Mark};
use crate::registry::ledger::{Change, KeptBinding, KeptMark, Ledger};
use crate::registry::threads::ThreadFacts;
use crate::turn::admission::{Admission, Busy, Entrant, Lane, Reservation, Ticket};
use crate::turn::engine::Engine;
use crate::turn::turn::Turn;

/// How many contexts are kept, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextLimits {
    /// Most contexts that are bound, those that are about to be included. Default 1,000,000.
    pub max_contexts: usize,
    /// How long a context may be unused before it is evicted. Default: for ever.
    pub context_ttl: Option<Duration>,
    /// Whether the context that is unused for longest makes room for a new one; else the new one is
    /// refused with CONTEXTS_FULL. Default no.
    pub evict_contexts: bool,
}

impl Default for ContextLimits {
    fn default() -> ContextLimits {
        ContextLimits { max_contexts: 1_000_000, context_ttl: None, evict_contexts: false }
    }
}

/// How long it is remembered that a context was evicted.
const MARKED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long a call waits for others that bind and delete the same context: what they do has been kept by
/// then, and who copies its thread takes longer.
const RESERVED_WITHIN: Duration = Duration::from_secs(2);

/// Most contexts that one sweep evicts: turns wait for it.
const SWEPT_AT_ONCE: usize = 1000;

/// The bindings, and who may change them.
#[derive(Debug)]
pub(crate) struct Contexts {
    bindings: Bindings,
    ledger: Arc<Ledger>,
    admission: Arc<Admission>,
    limits: ContextLimits,
    // The threads of contexts that were evicted, until somebody lets go of them.
    evicted: Mutex<Vec<ThreadId>>,
}

impl Contexts {
    /// Contexts that this ledger keeps, and whose turns this admission admits. None is bound yet.
    pub(crate) fn new(
        ledger: Arc<Ledger>,
        admission: Arc<Admission>,
        limits: ContextLimits,
    ) -> Contexts {
        let bindings = Bindings::new(Arc::clone(&ledger));
        Contexts { bindings, ledger, admission, limits, evicted: Mutex::default() }
    }

    /// See [`Bindings::restore`]. The limits do not matter: they refuse, and evict, when something comes.
    pub(crate) fn restore(&self, kept: KeptBinding) {
        self.bindings.restore(&kept);
    }

    /// See [`Bindings::restore_mark`].
    pub(crate) fn restore_mark(&self, kept: KeptMark) {
        self.bindings.restore_mark(&kept);
    }

    /// See [`Bindings::restored`].
    pub(crate) fn restored(&self) {
        self.bindings.restored();
    }

    /// The binding of a context.
    ///
    /// # Errors
    /// [`Refusal::ContextNotFound`].
    pub(crate) fn get(&self, key: &ContextKey) -> Result<Binding, Refusal> {
        self.bindings.get(key).ok_or_else(|| Refusal::ContextNotFound(key.clone()))
    }

    /// Whether a context goes on with this thread.
    pub(crate) fn has_thread(&self, thread_id: &ThreadId) -> bool {
        self.bindings.has_thread(thread_id)
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

    /// Keeps a context free of turns while a caller binds a thread to it, and the thread from being deleted.
    ///
    /// # Errors
    /// [`Refusal::ContextInUse`], [`Refusal::ContextsFull`], [`Refusal::LedgerUnavailable`]; see
    /// [`Admission::reserve`].
    pub(crate) async fn reserve_to_bind(
        &self,
        key: &ContextKey,
        thread_id: &ThreadId,
    ) -> Result<Reservation, Refusal> {
        self.check_ledger()?;
        let binding = Lane::Binding(key.tenant.clone(), thread_id.clone());
        let lanes = [Lane::Context(key.clone()), binding];
        let look = |_: &Busy<'_>| Ok((lanes.to_vec(), ()));
        let settle = |busy: &Busy<'_>| self.make_room(key, busy, None);
        let reserved = self.admission.reserve(look, settle).await?;
        Ok(reserved.ok_or_else(|| Refusal::ContextInUse(key.clone()))?.0)
    }

    /// Binds a thread to a context that is kept free for it. Nobody sees it before it is kept.
    ///
    /// # Errors
    /// [`Refusal::LedgerUnavailable`]; nothing has changed then.
    pub(crate) async fn bind(
        &self,
        key: &ContextKey,
        thread_id: &ThreadId,
        _reserved: &Reservation,
    ) -> Result<Bound, Refusal> {
        let bound = self.bindings.plan(key, thread_id);
        let change = Change::Bind(key.clone(), bound.binding.clone());
        self.keep(vec![change], vec![self.bindings.as_is(key)]).await?;
        self.bindings.put(key, &bound.binding);
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

    /// Keeps a context and its thread free of turns while both are deleted, the thread also of new contexts,
    /// and gives the thread.
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
            let [context, thread] = self.lanes_of(key, &thread_id);
            let binding = Lane::Binding(key.tenant.clone(), thread_id.clone());
            Ok((vec![context, thread, binding], thread_id))
        };
        let reserved = self.admission.reserve(look, |_| Ok(())).await?;
        reserved.ok_or_else(|| Refusal::ContextInUse(key.clone()))
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

    /// Keeps a context and its thread free of turns while that is changed, and gives the thread.
    ///
    /// # Errors
    /// [`Refusal::ContextInUse`], [`Refusal::ContextNotFound`]; see [`Admission::reserve`].
    pub(crate) async fn reserve(
        &self,
        key: &ContextKey,
    ) -> Result<(Reservation, ThreadId), Refusal> {
        let look = |_: &Busy<'_>| {
            let thread_id = self.get(key)?.thread_id;
            Ok((self.lanes_of(key, &thread_id).to_vec(), thread_id))
        };
        let settle = |_: &Busy<'_>| {
            self.bindings.note_use(key);
            Ok(())
        };
        let reserved = self.admission.reserve(look, settle).await?;
        reserved.ok_or_else(|| Refusal::ContextInUse(key.clone()))
    }

    /// The same for a context whose thread is to be copied for another one, which is kept free, too.
    ///
    /// # Errors
    /// [`Refusal::ContextInUse`], [`Refusal::ContextNotFound`] of the source,
    /// [`Refusal::ContextExists`] of the target, [`Refusal::ContextsFull`]; see [`Admission::reserve`].
    pub(crate) async fn reserve_copy(
        &self,
        source: &ContextKey,
        target: &ContextKey,
    ) -> Result<(Reservation, ThreadId), Refusal> {
        let look = |_: &Busy<'_>| {
            let thread_id = self.get(source)?.thread_id;
            if self.bindings.contains(target) {
                return Err(Refusal::ContextExists(target.clone()));
            }
            let [context, thread] = self.lanes_of(source, &thread_id);
            Ok((vec![context, thread, Lane::Context(target.clone())], thread_id))
        };
        let settle = |busy: &Busy<'_>| {
            self.make_room(target, busy, Some(source))?;
            self.bindings.note_use(source);
            Ok(())
        };
        let reserved = self.admission.reserve(look, settle).await?;
        reserved.ok_or_else(|| {
            let target_lane = Lane::Context(target.clone());
            let is_target = self.admission.while_idle(&target_lane, |_| ()).is_none();
            Refusal::ContextInUse(if is_target { target } else { source }.clone())
        })
    }

    fn lanes_of(&self, key: &ContextKey, thread_id: &ThreadId) -> [Lane; 2] {
        [Lane::Context(key.clone()), Lane::Thread(key.tenant.clone(), thread_id.clone())]
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
        self.bindings.put(key, &binding);
        Ok(binding)
    }

    /// Has what is known of a thread kept, if a context goes on with it. Not waited for.
    pub(crate) fn keep_facts(&self, thread_id: &ThreadId, facts: &ThreadFacts) {
        if self.has_thread(thread_id) {
            drop(self.ledger.write(vec![Change::Facts(thread_id.clone(), facts.clone())]));
        }
    }

    /// Looks at what a turn wants of its context, for one that is not [admitted](Contexts::admit) itself.
    ///
    /// # Errors
    /// See [`Contexts::admit`].
    pub(crate) fn check(&self, request: &TurnRequest) -> Result<(), Refusal> {
        self.admission.hold(|busy| self.check_policy(request, busy))
    }

    /// Whether the context is bound as its turn wants it to be. One that is about to be bound is new no
    /// more, and does not exist yet.
    fn check_policy(&self, request: &TurnRequest, busy: &Busy<'_>) -> Result<(), Refusal> {
        let Some(key) = &request.context else { return Ok(()) };
        let is_bound = self.bindings.contains(key);
        let has_thread =
            is_bound || request.explicit_thread.is_some() || request.configured_thread.is_some();
        match request.context_policy {
            ContextPolicy::MustExist if !is_bound => Err(Refusal::ContextNotFound(key.clone())),
            ContextPolicy::MustBeNew if is_bound || busy.has(key) => {
                Err(Refusal::ContextExists(key.clone()))
            }
            // There is nothing to sum up.
            _ if request.work == Work::Compact && !has_thread => {
                Err(Refusal::ContextNotFound(key.clone()))
            }
            ContextPolicy::Any | ContextPolicy::MustExist | ContextPolicy::MustBeNew => Ok(()),
        }
    }

    /// Takes a turn in, which is there from `enter` on. The look at its context's thread and both are one
    /// step. Those that it supersedes are stopped.
    ///
    /// # Errors
    /// See [`Admission::admit`]; [`Refusal::ContextsFull`]; [`Refusal::ContextNotFound`] and
    /// [`Refusal::ContextExists`] by the turn's [`ContextPolicy`], or where there is nothing to compact.
    pub(crate) fn admit(
        &self,
        request: &TurnRequest,
        turn: &Weak<Turn>,
        enter: impl FnOnce(),
    ) -> Result<Ticket, Refusal> {
        // One that is refused after all changes nothing.
        let to_evict = RefCell::new(None);
        let entrant = |busy: &Busy<'_>| {
            self.check_policy(request, busy)?;
            if let Some(key) = &request.context {
                to_evict.replace(self.room(key, busy, None)?);
            }
            Ok(Entrant {
                tenant: request.tenant.clone(),
                caller: request.caller,
                context: request.context.clone(),
                thread: self.thread_of(request),
                follows_context: request.explicit_thread.is_none(),
                policy: request.busy_policy,
                turn: Weak::clone(turn),
                bytes: request.bytes,
            })
        };
        let enter = || {
            to_evict.take().iter().for_each(|key| self.evict(key));
            if let Some(key) = &request.context {
                self.bindings.note_use(key);
            }
            enter();
        };
        self.admission.admit(entrant, enter)
    }

    /// The turn that runs where this one would: in its context, or on its thread.
    pub(crate) fn running_turn(&self, request: &TurnRequest) -> Option<Arc<Turn>> {
        let context = request.context.clone().map(Lane::Context);
        let thread = self.thread_of(request);
        let thread = thread.map(|thread| Lane::Thread(request.tenant.clone(), thread));
        let lanes: Vec<Lane> = context.into_iter().chain(thread).collect();
        self.admission.running_in(&lanes)
    }

    /// The request's thread beats the context's, which beats the tool's.
    fn thread_of(&self, request: &TurnRequest) -> Option<ThreadId> {
        let bound = || request.context.as_ref().and_then(|key| self.bindings.get(key));
        let explicit = request.explicit_thread.clone();
        let known = explicit.or_else(|| bound().map(|binding| binding.thread_id));
        known.or_else(|| request.configured_thread.clone())
    }

    /// Notes the thread of a turn, which its context goes on with, and gives the one that it went on with
    /// before, if another. Only for the turn that runs in the context's lane.
    pub(crate) fn bind_for_turn(
        &self,
        key: Option<&ContextKey>,
        ticket: &Ticket,
        thread_id: &ThreadId,
    ) -> Option<ThreadId> {
        let replaced = key.and_then(|key| self.bindings.bind(key, thread_id).replaced);
        ticket.note_thread(thread_id);
        replaced
    }

    /// Notes that a turn of this context has its thread.
    pub(crate) fn note_turn(&self, key: &ContextKey, turn_id: &TurnId) {
        self.bindings.note_turn(key, turn_id);
    }

    /// Notes that a turn of this context ends.
    pub(crate) fn note_end(&self, key: &ContextKey) {
        self.bindings.note_end(key);
    }

    /// What a turn of this context is to be told, if the context was evicted since its last.
    pub(crate) fn eviction(&self, key: &ContextKey) -> Option<Event> {
        let Mark { thread_id, age } = self.bindings.mark(key)?;
        let ago = Duration::from_secs(age.as_secs());
        let message = format!(
            "this context was unused for so long that its binding was dropped, {} ago; its thread was \
             {thread_id}, which a turn that names it goes on with",
            humantime::format_duration(ago)
        );
        Some(Event::warning(WarningCode::ContextEvicted, message, ""))
    }

    /// Evicts what was unused for too long, and forgets what was evicted long ago.
    fn sweep(&self) {
        if let Some(ttl) = self.limits.context_ttl {
            for _ in 0..SWEPT_AT_ONCE {
                let evicted = self.admission.hold(|busy| {
                    let unused = self.bindings.unused_longest(|key| busy.has(key), ttl);
                    unused.inspect(|key| self.evict(key))
                });
                if evicted.is_none() {
                    break;
                }
            }
        }
        self.bindings.forget_marks(MARKED_FOR);
    }

    /// Sees that there is room for a context, which may be bound. `spared` is in use, too.
    fn make_room(
        &self,
        key: &ContextKey,
        busy: &Busy<'_>,
        spared: Option<&ContextKey>,
    ) -> Result<(), Refusal> {
        self.room(key, busy, spared)?.iter().for_each(|key| self.evict(key));
        Ok(())
    }

    /// Looks for room for a context, and gives the one that has to go for it.
    fn room(
        &self,
        key: &ContextKey,
        busy: &Busy<'_>,
        spared: Option<&ContextKey>,
    ) -> Result<Option<ContextKey>, Refusal> {
        let most = self.limits.max_contexts;
        let is_known = || self.bindings.contains(key) || busy.has(key);
        // Those that are about to be bound are few, but must be looked up one by one.
        if self.bindings.len() + busy.contexts().count() < most || is_known() {
            return Ok(None);
        }
        let to_be_bound = busy.contexts().filter(|key| !self.bindings.contains(key)).count();
        if self.bindings.len() + to_be_bound < most {
            return Ok(None);
        }
        let is_used = |key: &ContextKey| busy.has(key) || Some(key) == spared;
        let unused = || self.bindings.unused_longest(is_used, Duration::ZERO);
        let unused = self.limits.evict_contexts.then(unused).flatten();
        unused.map(Some).ok_or(Refusal::ContextsFull { max_contexts: most })
    }

    fn evict(&self, key: &ContextKey) {
        self.evicted().extend(self.bindings.evict(key, self.limits.max_contexts));
    }

    fn evicted(&self) -> MutexGuard<'_, Vec<ThreadId>> {
        self.evicted.lock().unwrap_or_else(PoisonError::into_inner)
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
            let bound = engine.contexts().bind(&key, &thread_id, &reserved).await?;
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
        self.tasks.spawn(deed).await.map_err(fault)?
    }

    /// Evicts the contexts that were unused for too long, and lets go of the threads of all that were
    /// evicted.
    pub(super) fn sweep_contexts(self: &Arc<Engine>) {
        self.contexts().sweep();
        let evicted = std::mem::take(&mut *self.contexts().evicted());
        for thread_id in evicted {
            self.let_go(thread_id);
        }
    }

    /// Unloads a thread that no context continues any more, with its MCP servers. A turn of another
    /// context that runs on it keeps it; one that comes later loads it again.
    fn let_go(self: &Arc<Engine>, thread_id: ThreadId) {
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            let Some(mut thread) = engine.threads.try_lock(&thread_id) else { return };
            thread.is_bound = engine.contexts().has_thread(&thread_id);
            let holder =
                thread.loaded.as_ref().and_then(|loaded| engine.pool.worker(&loaded.worker));
            let Some(worker) = holder else { return };
            worker.unload_thread(&thread_id).await;
            if !worker.holds_thread(&thread_id) {
                thread.loaded = None;
            }
        });
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

#[cfg(test)]
mod tests {
    use std::task::Poll;
    use std::thread;

    use super::*;
    use crate::turn::admission::{AdmissionLimits, QueuePosition};

    fn key() -> ContextKey {
        ContextKey {
            tenant: Tenant::default(),
            context_id: "c".to_owned(),
            thread_key: "codex_thread_id".to_owned(),
        }
    }

    fn contexts() -> Contexts {
        limited(ContextLimits::default())
    }

    fn limited(limits: ContextLimits) -> Contexts {
        let admission = Admission::new(AdmissionLimits::default());
        Contexts::new(Arc::new(Ledger::memory()), admission, limits)
    }

    async fn bind(
        contexts: &Contexts,
        key: &ContextKey,
        thread_id: &ThreadId,
    ) -> Result<Bound, Refusal> {
        let reserved = contexts.reserve_to_bind(key, thread_id).await?;
        contexts.bind(key, thread_id, &reserved).await
    }

    async fn unbind(contexts: &Contexts, key: &ContextKey) -> Result<ThreadId, Refusal> {
        let (reserved, bound) = contexts.reserve_to_unbind(key).await?;
        contexts.unbind(key, &reserved).await?;
        Ok(bound.thread_id)
    }

    fn admit(contexts: &Contexts) -> Ticket {
        let request = TurnRequest { context: Some(key()), ..TurnRequest::default() };
        contexts.admit(&request, &Weak::new(), || ()).unwrap()
    }

    #[tokio::test]
    async fn a_binding_changes_by_hand_only_while_no_turn_runs_or_waits() {
        let contexts = contexts();
        let (key, one, two) = (key(), ThreadId::from_codex("1"), ThreadId::from_codex("2"));
        let not_found = Refusal::ContextNotFound(key.clone());
        assert_eq!(unbind(&contexts, &key).await, Err(not_found.clone()));
        assert_eq!(bind(&contexts, &key, &one).await.unwrap().replaced, None);

        let running = admit(&contexts);
        let waiting = admit(&contexts);
        let in_use = Refusal::ContextInUse(key.clone());
        assert_eq!(bind(&contexts, &key, &two).await.unwrap_err(), in_use);
        drop(running);
        // The other one runs now.
        assert_eq!(unbind(&contexts, &key).await.unwrap_err(), in_use);
        contexts.bind_for_turn(Some(&key), &waiting, &two);
        let another = ContextKey { context_id: "d".to_owned(), ..key.clone() };
        assert_eq!(bind(&contexts, &another, &two).await.unwrap().replaced, None);
        drop(waiting);
        assert_eq!(bind(&contexts, &key, &one).await.unwrap().replaced, Some(two));
        assert_eq!(unbind(&contexts, &key).await.unwrap(), one);
        assert_eq!(contexts.get(&key).unwrap_err(), not_found);
    }

    #[tokio::test(start_paused = true)]
    async fn no_turn_runs_between_the_look_and_the_change_and_the_next_one_sees_it() {
        let (contexts, key, thread_id) = (contexts(), key(), ThreadId::from_codex("1"));
        let reserved = contexts.reserve_to_bind(&key, &thread_id).await.unwrap();
        let turn = admit(&contexts);
        let waits = || *turn.position().borrow() == QueuePosition::Waiting(1);
        assert!(waits());
        // Nor anybody else who is to change it.
        let mut other = Box::pin(contexts.reserve_to_unbind(&key));
        assert_eq!(
            futures::poll!(&mut other).map(|reserved| reserved.err()),
            Poll::Ready(Some(Refusal::ContextInUse(key.clone())))
        );
        contexts.bind(&key, &thread_id, &reserved).await.unwrap();
        assert!(waits());
        drop(reserved);
        assert_eq!(*turn.position().borrow(), QueuePosition::Running);
        assert_eq!(contexts.get(&key).unwrap().thread_id, thread_id);
        assert_eq!(unbind(&contexts, &key).await, Err(Refusal::ContextInUse(key.clone())));
    }

    #[test]
    fn of_two_turns_on_a_new_context_exactly_one_is_the_first() {
        for _ in 0..500 {
            let contexts = contexts();
            let first = TurnRequest {
                context: Some(key()),
                context_policy: ContextPolicy::MustBeNew,
                ..TurnRequest::default()
            };
            let admitted = thread::scope(|scope| {
                let race =
                    [(); 2].map(|()| scope.spawn(|| contexts.admit(&first, &Weak::new(), || ())));
                race.map(|one| one.join().unwrap())
            });
            let [one, two] = &admitted;
            assert_eq!(one.is_ok(), two.is_err(), "{admitted:?}");
            let refused = admitted.into_iter().find_map(Result::err).unwrap();
            assert_eq!(refused, Refusal::ContextExists(key()));
        }
    }

    #[tokio::test]
    async fn a_turn_gets_the_context_that_it_asks_for_or_none() {
        let contexts = contexts();
        let (key, thread_id) = (key(), ThreadId::from_codex("1"));
        let asks = |context_policy, work: Work| {
            let request = TurnRequest {
                context: Some(key.clone()),
                context_policy,
                work,
                ..TurnRequest::default()
            };
            let checked = contexts.check(&request);
            let admitted = contexts.admit(&request, &Weak::new(), || ()).map(drop);
            assert_eq!(checked, admitted);
            admitted
        };
        let (missing, exists) =
            (Err(Refusal::ContextNotFound(key.clone())), Err(Refusal::ContextExists(key.clone())));
        use ContextPolicy::{Any, MustBeNew, MustExist};
        assert_eq!(asks(MustExist, Work::Inputs), missing);
        assert_eq!(asks(MustBeNew, Work::Inputs), Ok(()));
        assert_eq!(asks(Any, Work::Compact), missing);
        // A refusal holds no place.
        assert_eq!(asks(MustBeNew, Work::Inputs), Ok(()));
        // What is about to be bound is not there yet, and new no more.
        let running = admit(&contexts);
        assert_eq!(asks(MustExist, Work::Inputs), missing);
        assert_eq!(asks(MustBeNew, Work::Inputs), exists);
        contexts.bind_for_turn(Some(&key), &running, &thread_id);
        drop(running);
        assert_eq!(asks(MustExist, Work::Inputs), Ok(()));
        assert_eq!(asks(MustBeNew, Work::Inputs), exists);
        assert_eq!(asks(Any, Work::Compact), Ok(()));
        unbind(&contexts, &key).await.unwrap();
        // The binding is looked at also where the thread is named.
        let named = TurnRequest {
            context: Some(key.clone()),
            explicit_thread: Some(thread_id),
            context_policy: MustExist,
            ..TurnRequest::default()
        };
        let admitted = contexts.admit(&named, &Weak::new(), || ()).map(drop);
        assert_eq!(admitted, missing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_context_beyond_the_most_is_refused_or_takes_the_place_of_the_one_unused_for_longest()
    {
        let thread = ThreadId::from_codex("1");
        let named = |name: &str| ContextKey { context_id: name.to_owned(), ..key() };
        let run = |contexts: &Contexts, name: &str| {
            let request = TurnRequest { context: Some(named(name)), ..TurnRequest::default() };
            contexts.admit(&request, &Weak::new(), || ())
        };
        let mut limits = ContextLimits { max_contexts: 2, ..ContextLimits::default() };
        let contexts = limited(limits.clone());
        let full = Refusal::ContextsFull { max_contexts: 2 };
        bind(&contexts, &named("a"), &thread).await.unwrap();
        // It counts before it is bound.
        let running = run(&contexts, "b").unwrap();
        assert_eq!(bind(&contexts, &named("c"), &thread).await.unwrap_err(), full);
        assert_eq!(run(&contexts, "c").unwrap_err(), full);
        // Those that are there go on.
        drop((run(&contexts, "a").unwrap(), run(&contexts, "b").unwrap()));
        drop(running);
        bind(&contexts, &named("c"), &thread).await.unwrap();
        unbind(&contexts, &named("a")).await.unwrap();
        bind(&contexts, &named("d"), &thread).await.unwrap();

        limits.evict_contexts = true;
        let contexts = limited(limits.clone());
        for name in ["a", "b"] {
            bind(&contexts, &named(name), &thread).await.unwrap();
        }
        let running = run(&contexts, "a").unwrap();
        // The only one that is idle, though used later.
        bind(&contexts, &named("c"), &thread).await.unwrap();
        assert!(contexts.get(&named("b")).is_err() && contexts.get(&named("a")).is_ok());
        let other = run(&contexts, "c").unwrap();
        assert_eq!(run(&contexts, "d").unwrap_err(), full, "all of them are busy");
        drop((running, other));
        assert!(
            contexts.eviction(&named("b")).is_some() && contexts.eviction(&named("a")).is_none()
        );
        assert_eq!(contexts.evicted().len(), 1);

        limits.context_ttl = Some(Duration::from_secs(60));
        let contexts = limited(limits);
        bind(&contexts, &named("a"), &thread).await.unwrap();
        let running = run(&contexts, "a").unwrap();
        tokio::time::advance(Duration::from_secs(3600)).await;
        bind(&contexts, &named("b"), &thread).await.unwrap();
        contexts.sweep();
        assert_eq!(contexts.count(), 2);
        contexts.note_end(&named("a"));
        drop(running);
        tokio::time::advance(Duration::from_secs(59)).await;
        contexts.sweep();
        assert_eq!(contexts.count(), 2);
        tokio::time::advance(Duration::from_secs(1)).await;
        contexts.sweep();
        assert_eq!(contexts.count(), 0);
        assert!(contexts.eviction(&named("a")).is_some());
        tokio::time::advance(MARKED_FOR).await;
        contexts.sweep();
        assert!(contexts.eviction(&named("a")).is_none());
    }
}
