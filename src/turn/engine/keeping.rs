//! What is kept of a turn, for as long as its task runs.
//!
//! In this order, each only when what goes before it is kept: the turn's start, Codex's part in it, its
//! `thread_started` with the binding, its end. Nobody waits for more than his own part: the start is
//! written while the thread is being opened, and what the turn tells goes on behind its `thread_started`,
//! which is held until it is kept. So is that of a new thread until Codex has written the thread down, too:
//! an id that was told is to be good for another turn, whatever dies. Nor is an event shown that is beyond
//! those that the turn has reserved: the end of a turn that is lost comes after all that was told. What
//! can't be kept now holds up nothing: the turn warns of it, and the ledger keeps it as soon as it can.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use crate::model::event::{Event, WarningCode};
use crate::model::id::ThreadId;
use crate::model::outcome::Outcome;
use crate::model::refusal::Refusal;
use crate::model::request::RequestId;
use crate::registry::ledger::{Change, KeptEnd, KeptThreadStarted, KeptTurn, Ledger, Trouble};
use crate::turn::log::Numbered;
use crate::turn::turn::Turn;

/// How many events a turn may tell before it has to reserve more.
const RESERVED_AT_START: u64 = 4096;

/// By how much more it reserves then.
const RESERVES: u64 = 4;

/// Whether something is kept, for all who wait for it.
pub(super) type Writing = Shared<BoxFuture<'static, Result<(), Trouble>>>;

/// A `thread_started` that is held.
#[derive(Debug)]
struct Introduction {
    writing: Writing,
    kept: Option<Result<(), Trouble>>,
    // By Codex, so that the thread can be resumed.
    is_written_down: bool,
}

/// What is kept of one turn.
#[derive(Debug)]
pub(super) struct Keeping {
    ledger: Arc<Ledger>,
    turn: Arc<Turn>,
    request_id: Option<RequestId>,
    start: Option<Writing>,
    introduction: Option<Introduction>,
    reserved: u64,
    // What it would have beside that, until it is kept.
    reserving: Option<u64>,
    has_warned: bool,
}

impl Keeping {
    pub(super) fn new(
        ledger: Arc<Ledger>,
        turn: Arc<Turn>,
        request_id: Option<RequestId>,
    ) -> Keeping {
        Keeping {
            ledger,
            turn,
            request_id,
            start: None,
            introduction: None,
            reserved: RESERVED_AT_START,
            reserving: None,
            has_warned: false,
        }
    }

    /// The turn leaves its queue. Codex gets it only once this is kept.
    pub(super) fn start(&mut self) -> Writing {
        if let Some(start) = &self.start {
            return start.clone();
        }
        let forget = Change::ForgetTurn(self.turn.id.clone());
        let written = self.ledger.try_write(vec![self.start_turn()], vec![forget]);
        self.turn.set_kept(true);
        let turn = Arc::clone(&self.turn);
        let start = async move {
            let written = written.await;
            turn.set_kept(written.is_ok());
            written
        };
        self.start.insert(start.boxed().shared()).clone()
    }

    fn start_turn(&self) -> Change {
        let turn = &self.turn;
        Change::StartTurn(Box::new(KeptTurn {
            turn_id: turn.id.clone(),
            context: turn.context.clone(),
            created_at: turn.created_at,
            started_at: turn.started_at().unwrap_or(turn.created_at),
            requests: self.request_id.iter().cloned().collect(),
            thread_started: None,
            reserved: self.reserved,
            end: None,
        }))
    }

    /// Tells something of the turn. What it gives has to be waited for, and
    /// [noted](Keeping::note_reserved).
    pub(super) fn tell(&mut self, event: Event) -> Option<Writing> {
        self.turn.log.append_within(event, self.reserved);
        self.reserve()
    }

    fn reserve(&mut self) -> Option<Writing> {
        let last = self.turn.log.last();
        // Well before there is no room: it may take its time.
        if last <= self.reserved / 2 || self.reserving.is_some() {
            return None;
        }
        let reserving = last.max(self.reserved).saturating_mul(RESERVES);
        self.reserving = Some(reserving);
        let reserve = Change::Reserve(self.turn.id.clone(), reserving);
        Some(self.ledger.write(vec![reserve]).boxed().shared())
    }

    /// Notes whether what the turn reserves is kept. What it gives has to be waited for as well.
    pub(super) fn note_reserved(&mut self, kept: Result<(), Trouble>) -> Option<Writing> {
        self.reserved = self.reserving.take()?;
        self.release_if_settled();
        self.warn(kept);
        self.reserve()
    }

    /// Tells of the turn's thread, where that is to be kept. What it gives has to be waited for, and
    /// [noted](Keeping::note_kept); and [so](Keeping::note_written_down) that Codex has written the thread
    /// down, where it has not.
    pub(super) fn introduce(
        &mut self,
        thread_started: Event,
        thread_id: &ThreadId,
        is_written_down: bool,
    ) -> Option<Writing> {
        let Numbered { sequence, encoded, .. } = self.turn.log.append_held(thread_started);
        let thread_started = KeptThreadStarted {
            thread_id: thread_id.clone(),
            worker: self.turn.worker(),
            sequence,
            event: encoded,
        };
        let thread_started = Change::ThreadStarted(self.turn.id.clone(), thread_started);
        let writing = self.ledger.write(vec![thread_started]).boxed().shared();
        let kept = writing.clone().now_or_never();
        let waits = kept.is_none().then(|| writing.clone());
        self.introduction = Some(Introduction { writing, kept, is_written_down });
        self.release_if_settled();
        waits
    }

    /// Notes whether the turn's thread is kept.
    pub(super) fn note_kept(&mut self, kept: Result<(), Trouble>) {
        if let Some(introduction) = &mut self.introduction {
            introduction.kept = Some(kept);
            self.release_if_settled();
        }
    }

    /// Whether it is waited for that Codex writes the thread down.
    pub(super) fn waits_for_codex(&self) -> bool {
        self.introduction.as_ref().is_some_and(|introduction| !introduction.is_written_down)
    }

    /// Notes that Codex has written the thread down, or takes too long.
    pub(super) fn note_written_down(&mut self) {
        if let Some(introduction) = &mut self.introduction {
            introduction.is_written_down = true;
            self.release_if_settled();
        }
    }

    fn release_if_settled(&mut self) {
        let settled = self
            .introduction
            .take_if(|introduction| introduction.is_written_down && introduction.kept.is_some());
        let is_within = self.turn.log.last() <= self.reserved;
        if self.introduction.is_none() && is_within {
            self.turn.log.release();
        }
        if let Some(Introduction { kept: Some(kept), .. }) = settled {
            self.warn(kept);
        }
    }

    /// Keeps how the turn ends, and gives what its log is to end with. One that is refused leaves nothing.
    pub(super) async fn end(mut self, outcome: Outcome) -> Result<Numbered, Refusal> {
        let has_started = match self.start.take() {
            Some(start) => start.await.is_ok(),
            None => false,
        };
        let terminal = match outcome.into_event() {
            Ok(terminal) => self.turn.log.next(terminal),
            Err(refusal) => {
                if has_started {
                    self.turn.set_kept(false);
                    let forget = Change::ForgetTurn(self.turn.id.clone());
                    // Kept or not: it will be.
                    let _ = self.ledger.write(vec![forget]).await;
                }
                return Err(refusal);
            }
        };
        let mut changes = Vec::from_iter((!has_started).then(|| self.start_turn()));
        changes.push(end_of(&self.turn, &terminal));
        let written = self.ledger.write(changes);
        self.turn.set_kept(true);
        self.note_written_down();
        if let Some(Introduction { writing, .. }) = &self.introduction {
            // It was before this one.
            let kept = writing.clone().await;
            self.note_kept(kept);
        }
        self.warn(written.await);
        Ok(self.after_all(terminal))
    }

    /// The terminal event after whatever was told since it was numbered.
    fn after_all(&self, terminal: Numbered) -> Numbered {
        let sequence = terminal.sequence;
        let terminal = self.turn.log.next_again(terminal);
        if terminal.sequence > sequence {
            self.ledger.note(&[end_of(&self.turn, &terminal)]);
        }
        terminal
    }

    /// Tells, once, that what is told is not kept.
    fn warn(&mut self, kept: Result<(), Trouble>) {
        let Err(Trouble { cause }) = kept else { return };
        if !std::mem::replace(&mut self.has_warned, true) {
            let message = format!(
                "what becomes of this turn can't be kept now ({cause}); it is remembered as long as the \
                 sidecar runs, and kept as soon as it can be"
            );
            self.turn.log.append(Event::warning(WarningCode::OutcomeNotKept, message, ""));
        }
    }
}

/// That a turn has ended with this event.
pub(super) fn end_of(turn: &Turn, terminal: &Numbered) -> Change {
    let Numbered { sequence, emitted_at: ended_at, .. } = *terminal;
    let event = terminal.encoded.clone();
    Change::EndTurn(turn.id.clone(), KeptEnd { ended_at, sequence, event })
}
