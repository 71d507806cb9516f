//! What happened in a turn, kept for its readers.
//!
//! The engine appends; any number of [`Reader`]s, the first caller's included, read at their own
//! pace. Nobody who reads can slow the engine or another reader: the log is bounded by bytes, gives
//! up its oldest events, and tells a reader that falls behind of the [`Event::Gap`].
//!
//! Invariants: sequences are 1, 2, 3… without a hole; a reader is given every sequence after its
//! start exactly once, as an event or within one gap; `thread_started` and the terminal event are
//! never given up; nothing is appended after the end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::model::event::{Event, TurnEvent};
use crate::model::refusal::Refusal;

/// The bytes that all logs together hold, against their common bound.
#[derive(Debug)]
pub struct Retained {
    bytes: AtomicU64,
    max_bytes: u64,
    max_bytes_per_turn: u64,
    ended: Mutex<EndedLogs>,
}

/// The logs that have something to give up without anybody missing it now, oldest first.
#[derive(Debug, Default)]
struct EndedLogs {
    logs: VecDeque<Weak<Log>>,
    // Logs that are gone are taken out once there are this many, so that they don't pile up.
    prune_at: usize,
}

impl Retained {
    /// Nothing held yet.
    pub fn new(max_bytes: u64, max_bytes_per_turn: u64) -> Arc<Retained> {
        let (bytes, ended) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Retained { bytes, max_bytes, max_bytes_per_turn, ended })
    }

    /// About how many bytes all logs hold.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether they hold more than they should.
    pub fn is_over(&self) -> bool {
        self.excess() > 0
    }

    /// By how much they do.
    pub fn excess(&self) -> u64 {
        self.bytes().saturating_sub(self.max_bytes)
    }

    /// Notes a log that has ended: from now on it makes room for those that have not.
    pub fn note_ended(&self, log: &Arc<Log>) {
        let mut ended = self.ended();
        ended.logs.push_back(Arc::downgrade(log));
        if ended.logs.len() >= ended.prune_at {
            ended.logs.retain(|log| log.strong_count() > 0);
            ended.prune_at = (2 * ended.logs.len()).max(64);
        }
    }

    /// Lets ended logs give up what need not be kept, oldest first, while all are too large.
    pub fn make_room(&self) {
        while self.is_over() {
            let Some(oldest) = self.ended().logs.pop_front() else { return };
            if let Some(log) = oldest.upgrade() {
                log.shrink();
            }
        }
    }

    fn ended(&self) -> MutexGuard<'_, EndedLogs> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a log ended.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// With its terminal event.
    Terminal,
    /// Without one: the turn was refused before it began.
    Refused(Refusal),
}

/// The events of one turn.
#[derive(Debug)]
pub struct Log {
    state: Mutex<State>,
    // The last sequence, and whether there is an end: what readers wait on.
    progress: watch::Sender<Progress>,
    retained: Arc<Retained>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Progress {
    last: u64,
    ended: bool,
}

#[derive(Debug, Default)]
struct State {
    // In the order of their sequences, with holes where events were given up.
    events: VecDeque<(Arc<TurnEvent>, u64)>,
    bytes: u64,
    last: u64,
    end: Option<End>,
}

impl Log {
    /// An empty log.
    pub fn new(retained: Arc<Retained>) -> Log {
        Log { state: Mutex::default(), progress: watch::Sender::default(), retained }
    }

    /// Appends an event and returns it with its sequence; `None` once the log has ended. A terminal
    /// event ends it.
    pub fn append(&self, event: Event) -> Option<Arc<TurnEvent>> {
        let bytes = event.approximate_bytes() as u64;
        let is_terminal = event.is_terminal();
        let mut state = self.state();
        if state.end.is_some() {
            return None;
        }
        state.last += 1;
        let event =
            Arc::new(TurnEvent { sequence: state.last, emitted_at: SystemTime::now(), event });
        state.events.push_back((Arc::clone(&event), bytes));
        state.bytes += bytes;
        self.retained.bytes.fetch_add(bytes, Ordering::Relaxed);
        if is_terminal {
            state.end = Some(End::Terminal);
        }
        // The newest stays: whoever keeps up must be able to see it.
        while state.bytes > self.retained.max_bytes_per_turn && self.give_up_oldest(&mut state, 1) {
        }
        if self.retained.is_over() {
            // Without the lock: the others are locked one by one, and one of them may be this one.
            drop(state);
            self.retained.make_room();
            state = self.state();
            while self.retained.is_over() && self.give_up_oldest(&mut state, 1) {}
        }
        self.tell(&state);
        Some(event)
    }

    /// Wakes the readers. Under the lock, so that what they are told never goes back.
    fn tell(&self, state: &MutexGuard<'_, State>) {
        self.progress.send_replace(Progress { last: state.last, ended: state.end.is_some() });
    }

    /// Ends the log without a terminal event. Does nothing if it has ended.
    pub fn refuse(&self, refusal: Refusal) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        state.end = Some(End::Refused(refusal));
        self.tell(&state);
    }

    /// Gives up everything that need not be kept, to make room for others.
    pub fn shrink(&self) {
        let mut state = self.state();
        while self.give_up_oldest(&mut state, 0) {}
    }

    /// Gives up its oldest events until that many bytes are free, but not the newest one.
    pub fn give_up(&self, bytes: u64) {
        let mut state = self.state();
        let enough = state.bytes.saturating_sub(bytes);
        while state.bytes > enough && self.give_up_oldest(&mut state, 1) {}
    }

    /// About how many bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// The last sequence so far; 0 before the first.
    pub fn last_sequence(&self) -> u64 {
        self.state().last
    }

    /// The terminal event, if the log has ended with one.
    pub fn terminal(&self) -> Option<Arc<TurnEvent>> {
        let state = self.state();
        let (event, _) = state.events.back()?;
        event.event.is_terminal().then(|| Arc::clone(event))
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as the log.
        let _ = progress.wait_for(|progress| progress.ended).await;
    }

    /// Waits until there is an event or an end.
    pub async fn begun(&self) {
        let mut progress = self.progress.subscribe();
        let _ = progress.wait_for(|progress| progress.ended || progress.last > 0).await;
    }

    /// A reader of what comes after this sequence.
    pub fn read_after(self: &Arc<Log>, sequence: u64) -> Reader {
        Reader {
            log: Arc::clone(self),
            next: sequence.saturating_add(1),
            progress: self.progress.subscribe(),
        }
    }

    fn give_up_oldest(&self, state: &mut State, keep_newest: usize) -> bool {
        let candidates = state.events.len().saturating_sub(keep_newest);
        // The pinned ones are few and stand at the ends, so that this finds one at once.
        let oldest =
            state.events.iter().take(candidates).position(|(event, _)| !event.event.is_pinned());
        let Some((_, bytes)) = oldest.and_then(|index| state.events.remove(index)) else {
            return false;
        };
        state.bytes -= bytes;
        self.retained.bytes.fetch_sub(bytes, Ordering::Relaxed);
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is complete before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let bytes = self.state().bytes;
        self.retained.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Reads a log at its own pace.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    next: u64,
    progress: watch::Receiver<Progress>,
}

impl Reader {
    /// The next event, waiting for it if need be. `None` after the terminal event.
    ///
    /// # Errors
    /// The [`Refusal`] that ended the turn before it began.
    pub async fn next(&mut self) -> Option<Result<Arc<TurnEvent>, Refusal>> {
        loop {
            self.progress.mark_unchanged();
            if let Some(read) = self.read_now() {
                return read;
            }
            if self.progress.changed().await.is_err() {
                return None;
            }
        }
    }

    /// What can be said without waiting: an event, the end (`Some(None)`), or nothing yet.
    fn read_now(&mut self) -> Option<Option<Result<Arc<TurnEvent>, Refusal>>> {
        let state = self.log.state();
        let index = state.events.partition_point(|(event, _)| event.sequence < self.next);
        if let Some((event, _)) = state.events.get(index) {
            if event.sequence == self.next {
                self.next += 1;
                return Some(Some(Ok(Arc::clone(event))));
            }
            let (from, to) = (self.next, event.sequence - 1);
            self.next = event.sequence;
            let emitted_at = event.emitted_at;
            let gap = TurnEvent { sequence: to, emitted_at, event: Event::Gap { from, to } };
            return Some(Some(Ok(Arc::new(gap))));
        }
        match &state.end {
            None => None,
            Some(End::Terminal) => Some(None),
            Some(End::Refused(refusal)) => Some(Some(Err(refusal.clone()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{Delta, InterruptReason, ThreadOrigin, Usage};
    use proptest::prelude::*;

    fn delta(bytes: usize) -> Event {
        Event::AgentMessageDelta(Delta { item_id: String::new(), text: "x".repeat(bytes) })
    }

    fn terminal() -> Event {
        Event::TurnInterrupted {
            reason: InterruptReason::Codex,
            usage: Usage::default(),
            thread_usage: Usage::default(),
        }
    }

    fn thread_started() -> Event {
        Event::ThreadStarted { thread_id: "t".to_owned(), origin: ThreadOrigin::New }
    }

    /// Reads all that is there and checks that no sequence is missing or doubled.
    fn drain(reader: &mut Reader, seen: &mut u64) -> Vec<Arc<TurnEvent>> {
        let mut events = Vec::new();
        while let Some(Some(Ok(event))) = reader.read_now() {
            match event.event {
                Event::Gap { from, to } => {
                    assert_eq!(from, *seen + 1);
                    assert!(to >= from);
                    assert_eq!(event.sequence, to);
                }
                _ => assert_eq!(event.sequence, *seen + 1),
            }
            *seen = event.sequence;
            events.push(event);
        }
        events
    }

    proptest! {
        #[test]
        fn every_reader_gets_every_sequence_once_and_the_pinned_events_survive(
            steps in proptest::collection::vec((0_usize..3000, 0_u8..6), 1..200),
            max_per_turn in 1_u64..20_000,
            max in 1_u64..40_000,
        ) {
            let retained = Retained::new(max, max_per_turn);
            let log = Arc::new(Log::new(Arc::clone(&retained)));
            log.append(thread_started());
            let mut readers = vec![(log.read_after(0), 0_u64)];
            for (bytes, action) in steps {
                match action {
                    0 => for (reader, seen) in &mut readers { drain(reader, seen); },
                    1 => { let last = log.last_sequence() / 2; readers.push((log.read_after(last), last)); }
                    2 => log.shrink(),
                    _ => { log.append(delta(bytes)); }
                }
                let held = log.state().bytes;
                prop_assert_eq!(held, retained.bytes());
            }
            log.append(terminal());
            prop_assert!(log.append(delta(1)).is_none());
            log.shrink();
            readers.push((log.read_after(0), 0));
            let last = log.last_sequence();
            for (reader, seen) in &mut readers {
                let from = *seen;
                let events = drain(reader, seen);
                prop_assert_eq!(*seen, last);
                prop_assert!(events.last().is_none_or(|event| event.event.is_terminal()));
                if from == 0 { prop_assert_eq!(&events[0].event, &thread_started()); }
                prop_assert!(matches!(reader.read_now(), Some(None)));
            }
            drop(readers);
            drop(log);
            prop_assert_eq!(retained.bytes(), 0);
        }
    }

    #[tokio::test]
    async fn a_reader_waits_and_is_woken_by_events_and_by_a_refusal() {
        let log = Arc::new(Log::new(Retained::new(1 << 20, 1 << 20)));
        let mut reader = log.read_after(0);
        let reading = tokio::spawn(async move {
            let first = reader.next().await.unwrap().unwrap();
            let second = reader.next().await.unwrap();
            (first.sequence, second)
        });
        tokio::task::yield_now().await;
        log.append(Event::Queued { position: 1 });
        tokio::task::yield_now().await;
        log.refuse(Refusal::ContextBusy);
        log.refuse(Refusal::DeadlineExceeded);
        assert_eq!(reading.await.unwrap(), (1, Err(Refusal::ContextBusy)));
        assert_eq!(log.terminal(), None);
    }

    #[test]
    fn a_running_turn_keeps_its_events_as_long_as_ended_ones_have_some_to_give_up() {
        let retained = Retained::new(20_000, 10_000);
        let ended: Vec<_> = (0..2)
            .map(|_| {
                let log = Arc::new(Log::new(Arc::clone(&retained)));
                log.append(thread_started());
                for _ in 0..4 {
                    log.append(delta(2000));
                }
                log.append(terminal());
                retained.note_ended(&log);
                log
            })
            .collect();
        let running = Arc::new(Log::new(Arc::clone(&retained)));
        for _ in 0..4 {
            running.append(delta(2000));
        }
        assert_eq!(drain(&mut running.read_after(0), &mut 0).len(), 4);
        // The oldest one has given up what it could, and keeps its ends.
        assert_eq!(drain(&mut ended[0].read_after(0), &mut 0).len(), 3);
        assert!(!retained.is_over());
    }

    #[test]
    fn logs_that_are_gone_do_not_pile_up() {
        let retained = Retained::new(1 << 20, 1 << 20);
        for _ in 0..1000 {
            retained.note_ended(&Arc::new(Log::new(Arc::clone(&retained))));
        }
        assert!(retained.ended().logs.len() <= 64);
    }
}
