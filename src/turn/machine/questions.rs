//! What Codex asks in a turn, and what becomes of it.
//!
//! A question is told of with an id, and is resolved once: declined at once, answered, declined when
//! its time is over, or withdrawn, because Codex takes it back or the turn stops. An unanswered one
//! would hang Codex, so that every one gets its answer unless the worker is lost. What was answered is
//! remembered as a fingerprint beyond the end of the turn: the same answer may come twice.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Act, ReplyTo};
use crate::app_server::answer::Expected;
use crate::app_server::message::{Asked, Call, CallId};
use crate::app_server::protected::{Denials, ProtectedPaths};
use crate::model::event::Event;
use crate::model::question::{Answer, AnswerDigest, Given, Resolution, Unanswerable};

/// Most questions of one turn that wait for an answer, and most bytes of them as Codex wrote them: the
/// turn's log keeps them meanwhile. What is too much is declined at once.
pub(crate) const MOST_PENDING: usize = 1024;
const MOST_PENDING_BYTES: usize = 16 << 20;

/// Who resolves what nobody answers, as callers are told.
const CODEX: &str = "codex";
const SIDECAR: &str = "sidecar";

/// What is done about a question.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Policy {
    /// It is declined at once.
    Decline,
    /// The turn stops, or has ended: nobody can answer it any more.
    Withdraw,
    /// It waits for an answer, so long, and until then, if that is a time. Of the answer Codex may tell so
    /// many bytes back, and with it nothing of what is protected may be written.
    Ask {
        until: Option<prost_types::Timestamp>,
        within: Duration,
        most_bytes: usize,
        protected: ProtectedPaths,
    },
}

/// The questions of one turn.
#[derive(Debug, Default)]
pub(super) struct Questions {
    record: Record,
    pending: Vec<Pending>,
    pending_bytes: usize,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    call: Call,
    expected: Expected,
    denials: Denials,
    bytes: usize,
    // Absent where it is later than any time.
    deadline: Option<Instant>,
}

/// What became of the questions of a turn, for those who answer late.
#[derive(Debug, Default)]
pub(crate) struct Record {
    // They are numbered from 1.
    raised: u64,
    answered: HashMap<u64, AnswerDigest>,
}

impl Questions {
    /// Codex asks.
    pub(super) fn raise(
        &mut self,
        asked: Asked,
        policy: &Policy,
        now: Instant,
        acts: &mut Vec<Act>,
    ) {
        let Asked { call, mut question, bytes, .. } = asked;
        self.record.raised += 1;
        let id = self.record.raised;
        question.request_id = id.to_string();
        match policy {
            Policy::Ask { until, within, most_bytes, protected } if self.has_room_for(bytes) => {
                question.expire_time = *until;
                let expected = Expected::of(&question, *most_bytes);
                let denials = Denials::of(&question, protected);
                acts.push(Act::Tell(Event::request_raised(question)));
                let deadline = now.checked_add(*within);
                self.pending.push(Pending { id, call, expected, denials, bytes, deadline });
                self.pending_bytes += bytes;
            }
            Policy::Ask { .. } | Policy::Decline | Policy::Withdraw => {
                let resolution = match policy {
                    Policy::Withdraw => Resolution::Withdrawn,
                    Policy::Ask { .. } | Policy::Decline => Resolution::Declined,
                };
                acts.push(Act::Tell(Event::request_raised(question)));
                acts.push(Act::Decline(call));
                acts.push(resolved(id, resolution, SIDECAR));
            }
        }
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.pending.len() < MOST_PENDING
            && bytes <= MOST_PENDING_BYTES.saturating_sub(self.pending_bytes)
    }

    /// Somebody answers.
    pub(super) fn answer(
        &mut self,
        to: ReplyTo,
        request_id: &str,
        given: Given,
        acts: &mut Vec<Act>,
    ) {
        let Given { answer, digest, by } = given;
        let id = self.record.id_of(request_id);
        let pending = self.pending.iter().position(|known| Some(known.id) == id);
        let outcome = match pending {
            None => self.record.look_up(request_id, digest),
            Some(index) => self.pending[index].take(request_id, answer).map(|answer| {
                let Pending { id, call, bytes, .. } = self.pending.remove(index);
                self.pending_bytes -= bytes;
                self.record.answered.insert(id, digest);
                acts.push(Act::Answer(call, answer));
                acts.push(resolved(id, Resolution::Answered, &by.0));
            }),
        };
        acts.push(Act::ReplyAnswered { to, outcome });
    }

    /// Takes out of those that wait.
    fn settle(&mut self, is_settled: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let settled: Vec<_> = self.pending.extract_if(.., |one| is_settled(one)).collect();
        self.pending_bytes -= settled.iter().map(|one| one.bytes).sum::<usize>();
        settled
    }

    /// Codex takes a question back, or has seen its answer.
    pub(super) fn withdraw(&mut self, id: &CallId, acts: &mut Vec<Act>) {
        for withdrawn in self.settle(|pending| pending.call.is(id)) {
            acts.push(resolved(withdrawn.id, Resolution::Withdrawn, CODEX));
        }
    }

    /// The turn stops, or has ended. Codex is told so in any case: one that is gone does not listen.
    pub(super) fn withdraw_all(&mut self, acts: &mut Vec<Act>) {
        for Pending { id, call, .. } in self.settle(|_| true) {
            acts.push(Act::Decline(call));
            acts.push(resolved(id, Resolution::Withdrawn, SIDECAR));
        }
    }

    /// Declines those whose time is over.
    pub(super) fn expire(&mut self, now: Instant, acts: &mut Vec<Act>) {
        let is_over = |pending: &Pending| pending.deadline.is_some_and(|by| by <= now);
        for Pending { id, call, .. } in self.settle(is_over) {
            acts.push(Act::Decline(call));
            acts.push(resolved(id, Resolution::TimedOut, SIDECAR));
        }
    }

    /// When the next one's time is over.
    pub(super) fn next(&self) -> Option<Instant> {
        self.pending.iter().filter_map(|pending| pending.deadline).min()
    }

    /// Whether any waits for an answer.
    pub(super) fn are_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What became of them.
    pub(super) fn into_record(self) -> Record {
        self.record
    }
}

impl Pending {
    /// Takes an answer to it, if it may be given.
    fn take(&self, request_id: &str, answer: Answer) -> Result<Answer, Unanswerable> {
        let answer = self.expected.take(request_id, answer).map_err(Unanswerable::Unfit)?;
        self.denials.check(&answer).map_err(Unanswerable::Denied)?;
        Ok(answer)
    }
}

impl Record {
    /// The number of a question, by its id; `None` where it was never asked.
    fn id_of(&self, request_id: &str) -> Option<u64> {
        let id = request_id.parse().ok().filter(|id: &u64| id.to_string() == request_id)?;
        (1..=self.raised).contains(&id).then_some(id)
    }

    /// What an answer is to a question that waits for none.
    pub(crate) fn look_up(
        &self,
        request_id: &str,
        digest: AnswerDigest,
    ) -> Result<(), Unanswerable> {
        let id = self.id_of(request_id).ok_or(Unanswerable::Unknown)?;
        let is_the_same = self.answered.get(&id) == Some(&digest);
        is_the_same.then_some(()).ok_or(Unanswerable::Resolved)
    }
}

fn resolved(id: u64, resolution: Resolution, by: &str) -> Act {
    Act::Tell(Event::request_resolved(id.to_string(), resolution, by))
}
