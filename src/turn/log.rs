//! What happened in a turn, kept for its readers.
//!
//! The engine appends; any number of [`Reader`]s, the first caller's included, read at their own
//! pace. Nobody who reads can slow the engine or another reader: the log is bounded by bytes, gives
//! up its oldest events, and tells a reader that falls behind of the [`Gap`]. An event is encoded once,
//! as it goes over the wire; all of its readers share those bytes. What readers must not know yet is held,
//! and all that comes after it.
//!
//! Invariants: sequences are 1, 2, 3… without a hole; a reader is given every sequence after its
//! start exactly once, as an event or within one gap; `thread_started`, what waits for an answer and the
//! terminal event are never given up; nothing is appended after the end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;

use crate::model::event::{Event, Gap, RequestRaised, RequestResolved, TurnEvent};
use crate::model::id::{ThreadId, TurnId};
#[cfg(test)]
use crate::model::outcome::Outcome;
use crate::model::question::Question;
use crate::model::refusal::Refusal;
use crate::turn::retained::Retained;
use crate::turn::summary::Summary;

/// The events of one turn.
#[derive(Debug)]
pub(crate) struct Log {
    turn_id: TurnId,
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
    summary: Summary,
    // In the order of their sequences, with holes where events were given up.
    events: VecDeque<Entry>,
    bytes: u64,
    last: u64,
    // What readers are not shown yet.
    held: Option<Held>,
    // The ids of the questions that wait for an answer, and where they were told.
    questions: Vec<(String, u64)>,
    end: Option<End>,
}

/// The events that readers are not shown.
#[derive(Debug)]
struct Held {
    // Those after this one.
    after: u64,
    // As it was known then.
    summary: Summary,
}

impl State {
    /// The last sequence that readers are shown.
    fn shown(&self) -> u64 {
        self.held.as_ref().map_or(self.last, |held| held.after)
    }

    /// Holds what comes from here on, unless it is held already.
    fn hold(&mut self) {
        if self.held.is_none() {
            self.held = Some(Held { after: self.last, summary: self.summary.clone() });
        }
    }

    fn progress(&self) -> Progress {
        Progress { last: self.shown(), ended: self.end.is_some() }
    }

    /// Notes what an event asks or settles, and tells how much it is worth.
    fn keeping(&mut self, sequence: u64, event: &Event) -> Keeping {
        match event {
            Event::RequestRaised(RequestRaised { request: Some(question) }) => {
                self.questions.push((question.request_id.clone(), sequence));
                // Whoever joins late may answer it. The turn bounds how much waits.
                Keeping::Pinned
            }
            Event::RequestResolved(RequestResolved { request_id, .. }) => {
                for (_, asked) in self.questions.extract_if(.., |(id, _)| id == request_id) {
                    let index = self.events.partition_point(|entry| entry.sequence < asked);
                    let entry = self.events.get_mut(index).filter(|one| one.sequence == asked);
                    if let Some(entry) = entry {
                        entry.keeping = Keeping::Usual;
                    }
                }
                Keeping::Usual
            }
            event if event.is_pinned() => Keeping::Pinned,
            _ => Keeping::Usual,
        }
    }
}

#[derive(Debug, Clone)]
enum End {
    // The last event is the terminal one.
    Terminal,
    // The turn was refused before it began.
    Refused(Refusal),
}

/// One event.
#[derive(Debug)]
struct Entry {
    sequence: u64,
    emitted_at: SystemTime,
    keeping: Keeping,
    encoded: Bytes,
}

/// How much an event is worth when there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    Usual,
    Pinned,
}

impl Entry {
    /// What an entry takes beside its event's bytes: itself in the queue, the head of the block that they are
    /// in, and the block of the count that its readers share.
    const OVERHEAD: usize = size_of::<Entry>() + 16 + 32;

    fn bytes(&self) -> u64 {
        (self.encoded.len() + Entry::OVERHEAD) as u64
    }
}

/// An event as a reader is given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// The encoded [`TurnEvent`].
    pub encoded: Bytes,
    /// Whether it is the terminal one.
    pub is_terminal: bool,
}

/// An event with its sequence.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Numbered {
    pub(crate) sequence: u64,
    pub(crate) emitted_at: SystemTime,
    /// The encoded [`TurnEvent`].
    pub(crate) encoded: Bytes,
    // There is one, as far as this sidecar knows it.
    event: Option<Event>,
}

impl Numbered {
    pub(crate) fn new(
        turn_id: &TurnId,
        sequence: u64,
        emitted_at: SystemTime,
        event: Event,
    ) -> Numbered {
        let (turn_id, at) = (turn_id.0.clone(), Some(emitted_at.into()));
        let told = TurnEvent { sequence, emitted_at: at, turn_id, event: Some(event) };
        let encoded = told.encode_to_vec().into();
        Numbered { sequence, emitted_at, encoded, event: told.event }
    }

    /// One of this turn that was kept; `None` where it can't be read, or is not what is looked for.
    pub(crate) fn of_kept(
        encoded: Bytes,
        turn: &TurnId,
        is_meant: impl Fn(&Event) -> bool,
    ) -> Option<Numbered> {
        let TurnEvent { sequence, emitted_at, turn_id, event } =
            TurnEvent::decode(encoded.clone()).ok()?;
        let emitted_at = SystemTime::try_from(emitted_at?).ok()?;
        let is_it = turn_id == turn.0
            && (1..=Log::MOST_SEQUENCE).contains(&sequence)
            && event.as_ref().is_some_and(is_meant);
        is_it.then_some(Numbered { sequence, emitted_at, encoded, event })
    }
}

impl Log {
    /// The highest sequence: who has read it asks for the one after it.
    pub(crate) const MOST_SEQUENCE: u64 = u64::MAX - 1;

    /// What a turn takes as long as it is kept, beside its events: itself, its log, their names, and its
    /// entries in the tables.
    const OVERHEAD: u64 = 1152;

    /// An empty log of this turn.
    pub(crate) fn new(turn_id: TurnId, retained: Arc<Retained>) -> Log {
        retained.add(Log::OVERHEAD);
        let (state, progress) = (Mutex::default(), watch::Sender::default());
        Log { turn_id, state, progress, retained }
    }

    /// The log of a turn that an earlier process has ended: all that is left of its events.
    pub(crate) fn restored(
        turn_id: TurnId,
        retained: Arc<Retained>,
        thread_started: Option<Numbered>,
        terminal: Numbered,
    ) -> Log {
        let log = Log::new(turn_id, retained);
        let mut state = log.state();
        for numbered in thread_started.into_iter().chain([terminal]) {
            log.push(&mut state, numbered);
        }
        state.end = Some(End::Terminal);
        log.progress.send_replace(state.progress());
        drop(state);
        log
    }

    /// Appends an event, and gives its sequence. Does nothing once the log has ended.
    pub(crate) fn append(&self, event: Event) -> u64 {
        self.append_within(event, u64::MAX)
    }

    /// The same, and holds it with all that comes after it where its sequence is beyond this one.
    pub(crate) fn append_within(&self, event: Event, most: u64) -> u64 {
        let mut state = self.state();
        if state.end.is_some() {
            return state.last;
        }
        let numbered = self.number(&state, event);
        let sequence = numbered.sequence;
        if sequence > most {
            state.hold();
        }
        self.push(&mut state, numbered);
        self.make_room(state);
        sequence
    }

    /// The same, and holds it with all that comes after it, until that is [released](Log::release).
    pub(crate) fn append_held(&self, event: Event) -> Numbered {
        let mut state = self.state();
        let numbered = self.number(&state, event);
        if state.end.is_none() {
            state.hold();
            self.push(&mut state, numbered.clone());
            self.make_room(state);
        }
        numbered
    }

    /// Shows readers what was held.
    pub(crate) fn release(&self) {
        let mut state = self.state();
        if state.held.take().is_some() {
            self.progress.send_replace(state.progress());
        }
    }

    /// The event as it is if nothing is appended before it.
    pub(crate) fn next(&self, event: Event) -> Numbered {
        let state = self.state();
        self.number(&state, event)
    }

    /// The same for one that was the next, and is so no more if something was appended since.
    pub(crate) fn next_again(&self, numbered: Numbered) -> Numbered {
        let state = self.state();
        match numbered {
            Numbered { sequence, event: Some(event), .. } if sequence <= state.last => {
                self.number(&state, event)
            }
            numbered => numbered,
        }
    }

    /// Ends the log: with the outcome's terminal event, or without one where the turn was refused. Does
    /// nothing if it has ended.
    #[cfg(test)]
    pub(crate) fn end(&self, outcome: Outcome) {
        self.end_with(outcome.into_event().map(|terminal| self.next(terminal)));
    }

    /// The same with a terminal event that is the [next](Log::next).
    pub(crate) fn end_with(&self, end: Result<Numbered, Refusal>) {
        let mut state = self.state();
        if state.end.is_some() {
            return;
        }
        state.end = Some(match end {
            Ok(terminal) => {
                self.push(&mut state, terminal);
                End::Terminal
            }
            Err(refusal) => End::Refused(refusal),
        });
        state.held = None;
        self.make_room(state);
    }

    fn number(&self, state: &State, event: Event) -> Numbered {
        Numbered::new(&self.turn_id, state.last + 1, SystemTime::now(), event)
    }

    fn push(&self, state: &mut State, numbered: Numbered) {
        let Numbered { sequence, emitted_at, encoded, event } = numbered;
        state.last = sequence;
        let keeping = event.as_ref().map_or(Keeping::Pinned, |event| {
            state.summary.note(sequence, emitted_at, event);
            state.keeping(sequence, event)
        });
        let entry = Entry { sequence, emitted_at, keeping, encoded };
        state.bytes += entry.bytes();
        self.retained.add(entry.bytes());
        state.events.push_back(entry);
    }

    /// Keeps within the bounds, and wakes the readers. The newest event stays: whoever keeps up must be
    /// able to see it.
    fn make_room<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        while state.bytes > self.retained.max_bytes_per_turn() && self.give_up_oldest(&mut state, 1)
        {
        }
        if self.retained.is_over() {
            // Without the lock: the others are locked one by one, and one of them may be this one.
            drop(state);
            self.retained.make_room();
            state = self.state();
            while self.retained.is_over() && self.give_up_oldest(&mut state, 1) {}
        }
        // Under the lock, so that what readers are told never goes back.
        self.progress.send_replace(state.progress());
    }

    /// Gives up everything that need not be kept, to make room for others.
    pub(crate) fn shrink(&self) {
        let mut state = self.state();
        while self.give_up_oldest(&mut state, 0) {}
    }

    /// Gives up its oldest events until that many bytes are free, but not the newest one.
    pub(crate) fn give_up(&self, bytes: u64) {
        let mut state = self.state();
        let enough = state.bytes.saturating_sub(bytes);
        while state.bytes > enough && self.give_up_oldest(&mut state, 1) {}
    }

    /// How many bytes it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.state().bytes + Log::OVERHEAD
    }

    /// The last sequence, shown or not; 0 before the first.
    pub(crate) fn last(&self) -> u64 {
        self.state().last
    }

    /// The last sequence that is shown so far; 0 before the first.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.state().shown()
    }

    /// What is known from the events that are shown.
    pub(crate) fn summary(&self) -> Summary {
        let state = self.state();
        state.held.as_ref().map_or(&state.summary, |held| &held.summary).clone()
    }

    /// Whether it was told that the turn has this thread.
    pub(crate) fn is_of_thread(&self, thread_id: &ThreadId) -> bool {
        self.state().summary.thread_id.as_deref() == Some(thread_id.as_str())
    }

    /// The ids of what waits for an answer, as far as it is shown.
    pub(crate) fn pending_requests(&self) -> Vec<String> {
        let state = self.state();
        let shown = state.questions.iter().filter(|(_, asked)| *asked <= state.shown());
        shown.map(|(request_id, _)| request_id.clone()).collect()
    }

    /// The question of this id, while it waits for an answer.
    pub(crate) fn question(&self, request_id: &str) -> Option<Question> {
        let state = self.state();
        let (_, asked) = state.questions.iter().find(|(id, _)| id == request_id)?;
        let index = state.events.partition_point(|entry| entry.sequence < *asked);
        let entry = state.events.get(index).filter(|entry| entry.sequence == *asked)?;
        match TurnEvent::decode(&*entry.encoded).ok()?.event? {
            Event::RequestRaised(RequestRaised { request }) => request,
            _ => None,
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().end.is_some()
    }

    /// How it ended, if it has: with its terminal event, encoded, or with a refusal.
    pub(crate) fn ending(&self) -> Option<Result<Bytes, Refusal>> {
        let state = self.state();
        match state.end.as_ref()? {
            End::Terminal => state.events.back().map(|terminal| Ok(terminal.encoded.clone())),
            End::Refused(refusal) => Some(Err(refusal.clone())),
        }
    }

    /// When it has ended with its terminal event, if it has.
    pub(crate) fn ended_at(&self) -> Option<SystemTime> {
        let state = self.state();
        let terminal = state.events.back().filter(|_| matches!(state.end, Some(End::Terminal)));
        terminal.map(|terminal| terminal.emitted_at)
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as the log.
        let _ = progress.wait_for(|progress| progress.ended).await;
    }

    /// Waits until there is an event or an end.
    pub(crate) async fn begun(&self) {
        let mut progress = self.progress.subscribe();
        let _ = progress.wait_for(|progress| progress.ended || progress.last > 0).await;
    }

    /// A reader of what comes after this sequence. It is given the terminal event in any case, also one
    /// of that sequence.
    pub(crate) fn read_after(self: &Arc<Log>, sequence: u64) -> Reader {
        let next = match self.state() {
            state if matches!(state.end, Some(End::Terminal)) => sequence.min(state.last - 1),
            _ => sequence,
        };
        Reader {
            log: Arc::clone(self),
            next: next.saturating_add(1),
            progress: self.progress.subscribe(),
        }
    }

    fn give_up_oldest(&self, state: &mut State, keep_newest: usize) -> bool {
        let candidates = state.events.len().saturating_sub(keep_newest);
        // The others are few, so that this finds one soon.
        let oldest =
            state.events.iter().take(candidates).position(|entry| entry.keeping == Keeping::Usual);
        let Some(entry) = oldest.and_then(|index| state.events.remove(index)) else {
            return false;
        };
        state.bytes -= entry.bytes();
        self.retained.remove(entry.bytes());
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change under this lock is complete before anything in it could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.retained.remove(self.bytes());
    }
}

/// Reads a log at its own pace.
#[derive(Debug)]
pub(crate) struct Reader {
    log: Arc<Log>,
    next: u64,
    progress: watch::Receiver<Progress>,
}

impl Reader {
    /// The next event, waiting for it if need be. `None` after the terminal event.
    ///
    /// # Errors
    /// The [`Refusal`] that ended the turn before it began.
    pub(crate) async fn next(&mut self) -> Option<Result<Read, Refusal>> {
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
    fn read_now(&mut self) -> Option<Option<Result<Read, Refusal>>> {
        let state = self.log.state();
        let index = state.events.partition_point(|entry| entry.sequence < self.next);
        let shown = state.shown();
        let Some(entry) = state.events.get(index).filter(|entry| entry.sequence <= shown) else {
            return match &state.end {
                None => None,
                Some(End::Terminal) => Some(None),
                Some(End::Refused(refusal)) => Some(Some(Err(refusal.clone()))),
            };
        };
        let (from, sequence, emitted_at) = (self.next, entry.sequence, entry.emitted_at);
        let read = if sequence == from {
            self.next += 1;
            let is_last = index + 1 == state.events.len();
            let is_terminal = is_last && matches!(state.end, Some(End::Terminal));
            Read { encoded: entry.encoded.clone(), is_terminal }
        } else {
            self.next = sequence;
            let to = sequence - 1;
            let gap = Event::Gap(Gap { from, to });
            let gap = Numbered::new(&self.log.turn_id, to, emitted_at, gap);
            Read { encoded: gap.encoded, is_terminal: false }
        };
        Some(Some(Ok(read)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{InterruptReason, ThreadOrigin, TokenUsageUpdated, Usage};
    use crate::model::question::{Question, QuestionKind, Resolution, ToolCall};
    use proptest::prelude::*;

    #[test]
    fn what_is_known_of_a_turn_outlives_the_events_that_told_it() {
        let log = log(&Retained::new(1 << 20, 1));
        assert_eq!(log.summary(), Summary::default());
        let raised = |id: &str| {
            let request_id = id.to_owned();
            let question = crate::model::question::Question { request_id, ..Default::default() };
            Event::request_raised(question)
        };
        let usage = Usage { input_tokens: 3, ..Usage::default() };
        let used = TokenUsageUpdated { usage: Some(usage), ..TokenUsageUpdated::default() };
        let resolved = crate::pb::RequestResolution::Answered;
        for event in [
            Event::queued(2),
            thread_started(),
            raised("one"),
            raised("two"),
            Event::TokenUsageUpdated(used),
            Event::request_resolved("one".to_owned(), resolved, ""),
        ] {
            log.append(event);
        }
        let known = log.summary();
        assert_eq!((known.thread_id.as_deref(), known.queue_position), (Some("t"), 2));
        assert_eq!((known.usage, log.pending_requests()), (Some(usage), vec!["two".to_owned()]));
        let (number, _, name) = known.last.unwrap();
        assert_eq!((number, name), (6, "request_resolved"));
        log.end(interrupted());
        let known = log.summary();
        // Codex said no more of it.
        assert_eq!((known.usage, known.reason.as_str()), (Some(usage), "CODEX"));
        assert_eq!(known.last.unwrap().2, "turn_interrupted");
    }

    fn delta(bytes: usize) -> Event {
        Event::agent_message_delta(String::new(), "x".repeat(bytes))
    }

    fn interrupted() -> Outcome {
        Outcome::Interrupted {
            reason: InterruptReason::Codex,
            usage: Usage::default(),
            thread_usage: Usage::default(),
        }
    }

    fn thread_started() -> Event {
        Event::thread_started("t", ThreadOrigin::New)
    }

    fn log(retained: &Arc<Retained>) -> Arc<Log> {
        Arc::new(Log::new(TurnId("turn".to_owned()), Arc::clone(retained)))
    }

    fn decoded(read: &Read) -> TurnEvent {
        TurnEvent::decode(read.encoded.clone()).unwrap()
    }

    /// Reads all that is there and checks that no sequence is missing or doubled.
    fn drain(reader: &mut Reader, seen: &mut u64) -> Vec<TurnEvent> {
        let mut events = Vec::new();
        while let Some(Some(Ok(read))) = reader.read_now() {
            let event = decoded(&read);
            match &event.event {
                Some(Event::Gap(Gap { from, to })) => {
                    assert_eq!(*from, *seen + 1);
                    assert!(to >= from);
                    assert_eq!(event.sequence, *to);
                }
                _ => assert_eq!(event.sequence, *seen + 1),
            }
            assert_eq!(event.turn_id, "turn");
            let is_terminal = event.event.as_ref().is_some_and(Event::is_terminal);
            assert_eq!(read.is_terminal, is_terminal);
            *seen = event.sequence;
            events.push(event);
        }
        events
    }

    proptest! {
        #[test]
        fn every_reader_gets_every_sequence_once_and_the_pinned_events_survive(
            steps in proptest::collection::vec((0_usize..3000, 0_u8..10), 1..200),
            max_per_turn in 1_u64..20_000,
            max in 1_u64..40_000,
        ) {
            let retained = Retained::new(max, max_per_turn);
            let log = log(&retained);
            log.append(thread_started());
            let mut readers = vec![(log.read_after(0), 0_u64)];
            let (mut questions, mut held) = (0, None);
            for (bytes, action) in steps {
                match action {
                    0 => for (reader, seen) in &mut readers {
                        drain(reader, seen);
                        prop_assert!(held.is_none_or(|held| *seen < held), "{} of {:?}", seen, held);
                    },
                    1 => { let last = log.last_sequence() / 2; readers.push((log.read_after(last), last)); }
                    2 => log.shrink(),
                    3 => {
                        questions += 1;
                        log.append(question(questions, bytes));
                    }
                    4 => { log.append(settled(questions)); }
                    5 => {
                        let first = log.append_held(delta(bytes)).sequence;
                        held.get_or_insert(first);
                    }
                    6 => {
                        log.release();
                        held = None;
                    }
                    _ => { log.append(delta(bytes)); }
                }
                let bytes = log.state().bytes;
                prop_assert_eq!(bytes + Log::OVERHEAD, retained.bytes());
                prop_assert_eq!(bytes, log.state().events.iter().map(Entry::bytes).sum::<u64>());
            }
            log.end(interrupted());
            let last = log.last_sequence();
            log.append(delta(1));
            log.end(interrupted());
            prop_assert_eq!(log.last_sequence(), last);
            log.shrink();
            readers.push((log.read_after(0), 0));
            for (reader, seen) in &mut readers {
                let from = *seen;
                let events = drain(reader, seen);
                prop_assert_eq!(*seen, last);
                let terminal = events.last().and_then(|event| event.event.as_ref());
                prop_assert!(terminal.is_none_or(Event::is_terminal));
                if from == 0 { prop_assert_eq!(events[0].event.as_ref(), Some(&thread_started())); }
                prop_assert!(matches!(reader.read_now(), Some(None)));
            }
            drop(readers);
            drop(log);
            prop_assert_eq!(retained.bytes(), 0);
        }
    }

    fn question(id: u32, bytes: usize) -> Event {
        let call = ToolCall { arguments_json: "x".repeat(bytes), ..Default::default() };
        let question = Question::new(None, QuestionKind::ToolCall(call));
        Event::request_raised(Question { request_id: id.to_string(), ..question })
    }

    fn settled(id: u32) -> Event {
        Event::request_resolved(id.to_string(), Resolution::Answered, "")
    }

    #[test]
    fn a_question_is_there_for_who_joins_late_as_long_as_it_waits() {
        let log = log(&Retained::new(1 << 20, 10_000));
        log.append(thread_started());
        log.append(question(1, 1000));
        let has_question = || {
            let events = drain(&mut log.read_after(0), &mut 0);
            events.iter().any(|event| event.event == Some(question(1, 1000)))
        };
        for _ in 0..20 {
            log.append(delta(1000));
        }
        assert!(has_question());
        log.append(settled(1));
        log.append(delta(1000));
        assert!(!has_question());
        // All of them, also where there are more than fit beside other events.
        for id in 2..20 {
            log.append(question(id, 1000));
        }
        log.append(delta(1000));
        let told = drain(&mut log.read_after(0), &mut 0);
        let asked = told.iter().filter(|told| matches!(told.event, Some(Event::RequestRaised(_))));
        assert_eq!(asked.count(), 18);
        for id in 2..20 {
            log.append(settled(id));
        }
        assert!(log.state().bytes <= 10_000);
        assert_eq!(log.pending_requests(), [""; 0]);
    }

    #[test]
    fn readers_share_the_bytes_of_an_event_and_read_what_was_appended() {
        let log = log(&Retained::new(1 << 20, 1 << 20));
        let before = SystemTime::now();
        log.append(thread_started());
        log.end(interrupted());
        let read = |reader: &mut Reader| match reader.read_now() {
            Some(Some(Ok(read))) => read,
            other => panic!("{other:?}"),
        };
        let (mut one, mut other) = (log.read_after(0), log.read_after(0));
        for event in [thread_started(), interrupted().into_event().unwrap()] {
            let (one, other) = (read(&mut one), read(&mut other));
            assert_eq!(one.encoded.as_ptr(), other.encoded.as_ptr());
            let told = decoded(&one);
            assert_eq!(told.event, Some(event));
            let emitted_at = SystemTime::try_from(told.emitted_at.unwrap()).unwrap();
            assert!((before..=SystemTime::now()).contains(&emitted_at));
        }
        // The terminal event is for everybody, also for who has seen it.
        assert!(read(&mut log.read_after(2)).is_terminal);
        assert_eq!(log.ending(), Some(Ok(read(&mut log.read_after(1)).encoded)));
    }

    #[tokio::test]
    async fn a_reader_waits_and_is_woken_by_events_and_by_a_refusal() {
        let log = log(&Retained::new(1 << 20, 1 << 20));
        let mut reader = log.read_after(0);
        let reading = tokio::spawn(async move {
            let first = reader.next().await.unwrap().unwrap();
            let second = reader.next().await.unwrap();
            (decoded(&first).sequence, second)
        });
        tokio::task::yield_now().await;
        log.append(Event::queued(1));
        tokio::task::yield_now().await;
        log.end(Outcome::Refused(Refusal::ContextBusy));
        log.end(Outcome::Refused(Refusal::DeadlineExceeded));
        assert_eq!(reading.await.unwrap(), (1, Err(Refusal::ContextBusy)));
        assert_eq!(log.ending(), Some(Err(Refusal::ContextBusy)));
    }

    #[test]
    fn a_running_turn_keeps_its_events_as_long_as_ended_ones_have_some_to_give_up() {
        let retained = Retained::new(20_000, 10_000);
        let ended: Vec<_> = (0..2)
            .map(|_| {
                let log = log(&retained);
                log.append(thread_started());
                for _ in 0..4 {
                    log.append(delta(2000));
                }
                log.end(interrupted());
                retained.note_ended(&log);
                log
            })
            .collect();
        let running = log(&retained);
        for _ in 0..4 {
            running.append(delta(2000));
        }
        assert_eq!(drain(&mut running.read_after(0), &mut 0).len(), 4);
        // The oldest one has given up what it could, and keeps its ends.
        assert_eq!(drain(&mut ended[0].read_after(0), &mut 0).len(), 3);
        assert!(!retained.is_over());
    }
}
