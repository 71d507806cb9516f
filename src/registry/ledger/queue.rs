//! What waits to be kept: in the order of the calls, and, while nothing can be kept, merged by key.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::registry::ledger::backlog::Backlog;
use crate::registry::ledger::key;
use crate::registry::ledger::record::{Operation, append_operations};
use crate::registry::ledger::{Change, Trouble, Written};

/// How much waits before what can be refused is, in bytes. What can't is queued all the same: turns that run
/// end, and no other ones start.
const MOST_QUEUED: usize = 64 * 1024 * 1024;

/// How long what nobody waits for waits for something that is waited for, to be kept with it.
const LINGERS: Duration = Duration::from_millis(50);

/// How much is kept in one commit, in bytes, if there is more than one call.
const MOST_AT_ONCE: usize = 8 * 1024 * 1024;

/// Tells whether changes are kept.
pub(super) type Ack = oneshot::Sender<Result<(), Trouble>>;

/// The changes of one call.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) operations: Vec<Operation>,
    /// What stands in its place where it can't be kept.
    undo: Option<Vec<Change>>,
    bytes: usize,
}

impl Group {
    pub(super) fn new(changes: &[Change], undo: Option<Vec<Change>>) -> Group {
        let mut operations = Vec::with_capacity(changes.len() * 2);
        for change in changes {
            append_operations(change, &mut operations);
        }
        let bytes = operations.iter().map(Operation::bytes).sum();
        Group { operations, undo, bytes }
    }
}

/// What the callers and the writer share.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something for the writer to do.
    work: Condvar,
    trouble: watch::Sender<Option<Trouble>>,
    is_read: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    waiting: VecDeque<(Group, Ack)>,
    waiting_bytes: usize,
    /// Somebody waits for one of them.
    is_awaited: bool,
    /// What is being committed, and who waits for it.
    current: Option<Arc<Vec<Group>>>,
    acks: Vec<Ack>,
    /// How many groups were queued, and how many of them the writer has taken since.
    queued: u64,
    taken: u64,
    /// Once so many are taken nothing of what was removed is to be left in the file.
    erase_after: Option<u64>,
    /// Since when the disk is at work.
    busy_since: Option<Instant>,
    backlog: Backlog,
    /// The backlog that is being committed; `backlog` has what came since.
    current_backlog: Option<Arc<Backlog>>,
    is_closing: bool,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Keeping,
    Troubled(Trouble),
    Closed(Trouble),
}

/// What the writer is to do.
#[derive(Debug)]
pub(super) enum Work {
    Commit(Arc<Vec<Group>>),
    /// Nothing came for a while.
    Idle,
    /// Nothing more comes.
    Close,
}

/// The disk is at work until this is dropped.
pub(super) struct Busy<'a>(&'a Queue);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.state().busy_since = None;
    }
}

impl Queue {
    /// One whose ledger is not read yet.
    pub(super) fn new(unread: Trouble) -> Queue {
        Queue {
            state: Mutex::default(),
            work: Condvar::new(),
            trouble: watch::Sender::new(Some(unread)),
            is_read: AtomicBool::new(false),
        }
    }

    pub(super) fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        self.trouble.subscribe()
    }

    pub(super) fn is_read(&self) -> bool {
        self.is_read.load(Ordering::Acquire)
    }

    /// All that an earlier process has kept was restored.
    pub(super) fn note_read(&self) {
        self.is_read.store(true, Ordering::Release);
    }

    /// Takes in what somebody waits for.
    pub(super) fn submit(&self, group: Group) -> Written {
        let mut state = self.state();
        state.is_awaited = true;
        self.take_in(&mut state, group)
    }

    /// Takes in what nobody waits for.
    pub(super) fn note(&self, group: Group) {
        drop(self.take_in(&mut self.state(), group));
    }

    fn take_in(&self, state: &mut State, group: Group) -> Written {
        match &state.phase {
            Phase::Closed(trouble) => Written::no(trouble.clone()),
            Phase::Troubled(trouble) => {
                let written = Written::no(trouble.clone());
                // What can be refused has not been tried: there is nothing to undo.
                if group.undo.is_none() {
                    state.backlog.add(group.operations);
                }
                written
            }
            Phase::Keeping => {
                if group.undo.is_some() && state.waiting_bytes > MOST_QUEUED {
                    let cause = "more waits for the disk than is let wait".to_owned();
                    return Written::no(Trouble { cause });
                }
                let (ack, written) = oneshot::channel();
                state.waiting_bytes += group.bytes;
                state.queued += 1;
                state.waiting.push_back((group, ack));
                self.work.notify_one();
                Written::when(written)
            }
        }
    }

    /// What waits to be put under this key, `None` in it where the key is to be removed.
    pub(super) fn find(&self, key: &[u8]) -> Option<Option<Vec<u8>>> {
        let state = self.state();
        let current = state.current.iter().flat_map(|groups| groups.iter().rev());
        let groups = state.waiting.iter().rev().map(|(group, _)| group).chain(current);
        let mut operations = groups.flat_map(|group| group.operations.iter().rev());
        let waiting = operations.find_map(|operation| match operation {
            Operation::Put { key: of, value } => (of == key).then(|| Some(value.clone())),
            Operation::Remove(of) => (of == key).then_some(None),
            Operation::RemoveAll(prefix) => key.starts_with(prefix).then_some(None),
        });
        waiting
            .or_else(|| state.backlog.find(key))
            .or_else(|| state.current_backlog.as_ref()?.find(key))
    }

    /// Waits for something to do, at most so long.
    pub(super) fn next(&self, at_most: Duration) -> Work {
        let is_idle = |state: &mut State| state.waiting.is_empty() && !state.is_closing;
        let is_unawaited = |state: &mut State| !state.is_awaited && !state.is_closing;
        let waited = self.work.wait_timeout_while(self.state(), at_most, is_idle);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return Work::Idle;
        }
        let lingered = self.work.wait_timeout_while(state, LINGERS, is_unawaited);
        let (mut state, _) = lingered.unwrap_or_else(PoisonError::into_inner);
        let (mut groups, mut acks, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some((group, _)) = state.waiting.front()
            && (groups.is_empty() || bytes + group.bytes <= MOST_AT_ONCE)
        {
            bytes += group.bytes;
            let Some((group, ack)) = state.waiting.pop_front() else { break };
            groups.push(group);
            acks.push(ack);
        }
        if groups.is_empty() {
            return Work::Close;
        }
        state.waiting_bytes -= bytes;
        state.taken += u64::try_from(groups.len()).unwrap_or_default();
        state.is_awaited = !state.waiting.is_empty();
        let groups = Arc::new(groups);
        state.current = Some(Arc::clone(&groups));
        state.acks = acks;
        Work::Commit(groups)
    }

    /// What was being committed is kept.
    pub(super) fn note_kept(&self) {
        let mut state = self.state();
        state.current = None;
        let acks = std::mem::take(&mut state.acks);
        drop(state);
        for ack in acks {
            // Nobody may wait for it.
            let _ = ack.send(Ok(()));
        }
    }

    /// What was being committed may be kept or not, and nothing can be kept now.
    pub(super) fn note_failure(&self, trouble: &Trouble) {
        let mut state = self.state();
        let acks = self.fail(&mut state, trouble);
        drop(state);
        for ack in acks {
            let _ = ack.send(Err(trouble.clone()));
        }
    }

    /// Whoever is to be told.
    fn fail(&self, state: &mut State, trouble: &Trouble) -> Vec<Ack> {
        let State { current, acks, waiting, backlog, .. } = &mut *state;
        for group in current.take().iter().flat_map(|groups| groups.iter()) {
            match &group.undo {
                // The disk may have it all the same.
                Some(undo) => backlog.add(Group::new(undo, None).operations),
                None => backlog.add(group.operations.iter().cloned()),
            }
        }
        let mut acks = std::mem::take(acks);
        for (group, ack) in waiting.drain(..) {
            if group.undo.is_none() {
                backlog.add(group.operations);
            }
            acks.push(ack);
        }
        state.waiting_bytes = 0;
        state.taken = state.queued;
        self.set_trouble(state, trouble);
        acks
    }

    /// The disk is at work until what this gives is dropped.
    pub(super) fn busy(&self) -> Busy<'_> {
        self.state().busy_since = Some(Instant::now());
        Busy(self)
    }

    /// Where the disk has been at work for so long, nothing can be kept now: what it is at may come to its end
    /// or not.
    pub(super) fn note_if_hangs(&self, after: Duration, trouble: &Trouble) {
        let mut state = self.state();
        let hangs = state.busy_since.is_some_and(|since| since.elapsed() >= after);
        if !hangs || !matches!(state.phase, Phase::Keeping) {
            return;
        }
        let acks = self.fail(&mut state, trouble);
        drop(state);
        tracing::warn!(cause = trouble.cause, "the state can't be written now");
        for ack in acks {
            let _ = ack.send(Err(trouble.clone()));
        }
    }

    /// Whether nothing can be kept now.
    pub(super) fn is_troubled(&self) -> bool {
        matches!(self.state().phase, Phase::Troubled(_))
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state().phase, Phase::Closed(_))
    }

    /// Of what was removed by now nothing is to be left in the file.
    pub(super) fn erase_soon(&self) {
        let mut state = self.state();
        state.erase_after = Some(state.queued);
    }

    /// Whether there is something to erase whose removal is kept.
    pub(super) fn has_to_erase(&self) -> bool {
        let state = self.state();
        let is_kept = |after| state.current.is_none() && after <= state.taken;
        matches!(state.phase, Phase::Keeping) && state.erase_after.is_some_and(is_kept)
    }

    /// Nothing is left of what was removed when this was asked for.
    pub(super) fn note_erased(&self) {
        let mut state = self.state();
        if state.erase_after.is_some_and(|after| after <= state.taken) {
            state.erase_after = None;
        }
    }

    /// What could not be kept until now.
    pub(super) fn unkept(&self) -> Vec<Operation> {
        let state = self.state();
        let current = state.current_backlog.iter().flat_map(|backlog| backlog.operations());
        current.chain(state.backlog.operations()).collect()
    }

    /// What could not be kept until now, to be committed. Without any, all is kept: there is no trouble any
    /// more.
    pub(super) fn take_backlog(&self) -> Option<Arc<Backlog>> {
        let mut state = self.state();
        state.current_backlog = None;
        if state.backlog.is_empty() {
            state.phase = Phase::Keeping;
            self.trouble.send_replace(None);
            return None;
        }
        let backlog = Arc::new(std::mem::take(&mut state.backlog));
        state.current_backlog = Some(Arc::clone(&backlog));
        Some(backlog)
    }

    /// The backlog could not be committed.
    pub(super) fn note_backlog_failure(&self, trouble: &Trouble) {
        let mut state = self.state();
        if let Some(current) = state.current_backlog.take() {
            let newer = std::mem::take(&mut state.backlog);
            state.backlog.add(current.operations());
            state.backlog.add(newer.operations());
        }
        self.set_trouble(&mut state, trouble);
    }

    fn set_trouble(&self, state: &mut State, trouble: &Trouble) {
        state.phase = Phase::Troubled(trouble.clone());
        self.trouble.send_if_modified(|known| {
            let is_news = known.as_ref() != Some(trouble);
            *known = Some(trouble.clone());
            is_news
        });
    }

    /// Waits so long, or until it is to be closed. Whether it is.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let waited = self.work.wait_timeout_while(self.state(), pause, |state| !state.is_closing);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_closing
    }

    /// Has the writer end when all is done.
    pub(super) fn close(&self) {
        self.state().is_closing = true;
        self.work.notify_all();
    }

    /// Of how many turns the end could not be kept until now.
    pub(super) fn unkept_ends(&self) -> usize {
        let state = self.state();
        let ends = state.backlog.operations().filter(|operation| match operation {
            Operation::Put { key, .. } => key::is_end(key),
            Operation::Remove(_) | Operation::RemoveAll(_) => false,
        });
        ends.count()
    }

    /// Nothing is kept any more, because of this.
    pub(super) fn note_closed(&self, trouble: &Trouble) {
        let mut state = self.state();
        state.current = None;
        let acks = std::mem::take(&mut state.acks);
        state.phase = Phase::Closed(trouble.clone());
        state.waiting_bytes = 0;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for ack in waiting.into_iter().map(|(_, ack)| ack).chain(acks) {
            let _ = ack.send(Err(trouble.clone()));
        }
    }

    /// How many calls wait.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere can't leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
