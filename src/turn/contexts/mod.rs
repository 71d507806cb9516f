//! Contexts: which thread each goes on with, and when that may change.
//!
//! A binding is not pulled from under a turn. A turn that was admitted has its context's lane to
//! itself until it has ended, and binds the thread that it opened. A caller binds and deletes only
//! while no turn of the context runs or waits; that look and the change are one step with regard to
//! admission, so that no turn begins between them. An eviction goes the same way: contexts are only so
//! many, and may be unused only for so long, and one that goes leaves a mark, by which its next turn is
//! told.

mod by_hand;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::model::event::{Event, WarningCode};
use crate::model::id::{ContextKey, Tenant, ThreadId, TurnId};
use crate::model::refusal::Refusal;
use crate::model::request::{ContextPolicy, TurnRequest, Work};
use crate::registry::bindings::{Binding, Bindings, Mark};
use crate::registry::ledger::{KeptBinding, KeptMark, Ledger};
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
    deletions: by_hand::Deletions,
}

impl Contexts {
    /// Contexts that this ledger keeps, and whose turns this admission admits. None is bound yet.
    pub(crate) fn new(
        ledger: Arc<Ledger>,
        admission: Arc<Admission>,
        limits: ContextLimits,
    ) -> Contexts {
        let bindings = Bindings::new(Arc::clone(&ledger));
        Contexts {
            bindings,
            ledger,
            admission,
            limits,
            evicted: Mutex::default(),
            deletions: by_hand::Deletions::default(),
        }
    }

    /// See [`Bindings::restore`]. Where they are too many, the sweep evicts
    /// some, if it may; else what is new is refused.
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
            self.room(target, busy, Some(source))?;
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

    /// Notes the thread of a turn, of which this is known and which its context goes on with, and gives the
    /// one that it went on with before, if another. Only for the turn that runs in the context's lane.
    pub(crate) fn bind_for_turn(
        &self,
        key: Option<&ContextKey>,
        ticket: &Ticket,
        thread_id: &ThreadId,
        facts: &ThreadFacts,
    ) -> Option<ThreadId> {
        let replaced = key.and_then(|key| self.bindings.bind(key, thread_id, facts).replaced);
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

    /// Evicts what was unused for too long, or is too much, and forgets what was evicted long ago.
    fn sweep(&self) {
        let ContextLimits { max_contexts, context_ttl, evict_contexts } = self.limits;
        for _ in 0..SWEPT_AT_ONCE {
            let evicted = self.admission.hold(|busy| {
                // An earlier process may have kept more.
                let is_over = evict_contexts && self.bound_with(busy) > max_contexts;
                let unused_for = if is_over { Some(Duration::ZERO) } else { context_ttl };
                let unused = self.bindings.unused_longest(|key| busy.has(key), unused_for?);
                unused.inspect(|key| self.evict(key))
            });
            if evicted.is_none() {
                break;
            }
        }
        self.bindings.forget_marks(MARKED_FOR);
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
        let bound = self.bound_with(busy);
        if bound < most {
            return Ok(None);
        }
        let is_used = |key: &ContextKey| busy.has(key) || Some(key) == spared;
        let unused = || self.bindings.unused_longest(is_used, Duration::ZERO);
        let unused = self.limits.evict_contexts.then(unused).flatten();
        unused.map(Some).ok_or(Refusal::ContextsFull { bound, max_contexts: most })
    }

    /// How many contexts are bound, with those that are about to be.
    fn bound_with(&self, busy: &Busy<'_>) -> usize {
        let to_be_bound = busy.contexts().filter(|key| !self.bindings.contains(key)).count();
        self.bindings.len() + to_be_bound
    }

    fn evict(&self, key: &ContextKey) {
        self.evicted().extend(self.bindings.evict(key, self.limits.max_contexts));
    }

    fn evicted(&self) -> MutexGuard<'_, Vec<ThreadId>> {
        self.evicted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
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
