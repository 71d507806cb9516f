//! What Codex asks in a turn, and what becomes of it.
//!
//! A question is told of with an id, and is resolved once: declined at once, answered, declined when
//! its time is over, or withdrawn, because Codex takes it back or the turn stops. An unanswered one
//! would hang Codex, so that every one gets its answer unless the worker is lost. What was answered is
//! remembered as a fingerprint beyond the end of the turn: the same answer may come twice.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{Act, ReplyTo};
use crate::app_server::message::{Call, CallId};
use crate::model::event::Event;
use crate::model::question::{Answer, Question, Resolution, Unanswerable};
use crate::pb::ToolCallAnswer;

/// What is done about a question.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Policy {
    /// It is declined at once.
    Decline,
    /// It waits for an answer, so long, and until then, if that is a time.
    Ask { until: Option<prost_types::Timestamp>, within: Duration },
}

/// The questions of one turn.
#[derive(Debug, Default)]
pub(super) struct Questions {
    record: Record,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Pending {
    id: u64,
    call: Call,
    // Absent where it is later than any time.
    deadline: Option<Instant>,
}

/// What became of the questions of a turn, for those who answer late.
#[derive(Debug, Default)]
pub(crate) struct Record {
    // They are numbered from 1.
    raised: u64,
    answered: HashMap<u64, Fingerprint>,
}

type Fingerprint = [u8; 32];

impl Questions {
    /// Codex asks.
    pub(super) fn raise(
        &mut self,
        mut question: Question,
        call: Call,
        policy: &Policy,
        now: Instant,
        acts: &mut Vec<Act>,
    ) {
        self.record.raised += 1;
        let id = self.record.raised;
        question.request_id = id.to_string();
        match policy {
            Policy::Decline => {
                acts.push(Act::Tell(Event::request_raised(question)));
                acts.push(Act::Decline(call));
                acts.push(resolved(id, Resolution::Declined));
            }
            Policy::Ask { until, within } => {
                question.expire_time = *until;
                acts.push(Act::Tell(Event::request_raised(question)));
                self.pending.push(Pending { id, call, deadline: now.checked_add(*within) });
            }
        }
    }

    /// Somebody answers.
    pub(super) fn answer(
        &mut self,
        to: ReplyTo,
        request_id: &str,
        answer: Answer,
        acts: &mut Vec<Act>,
    ) {
        let pending = self.pending.iter().position(|known| known.id.to_string() == request_id);
        let outcome = match (pending, answer) {
            (None, answer) => self.record.look_up(request_id, &answer),
            (Some(index), Answer::ToolCall(answer)) => {
                let Pending { id, call, .. } = self.pending.remove(index);
                self.record.answered.insert(id, fingerprint(&answer));
                acts.push(Act::Answer(call, answer));
                acts.push(resolved(id, Resolution::Answered));
                Ok(())
            }
            // Nothing else waits for an answer.
            (Some(_), answer) => {
                Err(Unanswerable::OtherKind { given: kind_of(&answer), wanted: "tool_call" })
            }
        };
        acts.push(Act::ReplyAnswered { to, outcome });
    }

    /// Codex takes a question back, or has seen its answer.
    pub(super) fn withdraw(&mut self, id: &CallId, acts: &mut Vec<Act>) {
        for withdrawn in self.pending.extract_if(.., |pending| pending.call.is(id)) {
            acts.push(resolved(withdrawn.id, Resolution::Withdrawn));
        }
    }

    /// The turn stops, or has ended; a worker that is there is still told something.
    pub(super) fn withdraw_all(&mut self, is_worker_there: bool, acts: &mut Vec<Act>) {
        for Pending { id, call, .. } in self.pending.drain(..) {
            if is_worker_there {
                acts.push(Act::Decline(call));
            }
            acts.push(resolved(id, Resolution::Withdrawn));
        }
    }

    /// Declines those whose time is over.
    pub(super) fn expire(&mut self, now: Instant, acts: &mut Vec<Act>) {
        let is_over = |pending: &mut Pending| pending.deadline.is_some_and(|by| by <= now);
        for Pending { id, call, .. } in self.pending.extract_if(.., is_over) {
            acts.push(Act::Decline(call));
            acts.push(resolved(id, Resolution::TimedOut));
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

impl Record {
    /// What an answer is to a question that waits for none.
    pub(crate) fn look_up(&self, request_id: &str, answer: &Answer) -> Result<(), Unanswerable> {
        let known = request_id.parse().ok().filter(|id: &u64| id.to_string() == request_id);
        let Some(id) = known.filter(|id| (1..=self.raised).contains(id)) else {
            return Err(Unanswerable::Unknown);
        };
        match (self.answered.get(&id), answer) {
            (Some(first), Answer::ToolCall(answer)) if *first == fingerprint(answer) => Ok(()),
            (Some(_) | None, _) => Err(Unanswerable::Resolved),
        }
    }
}

/// The contract's name for this kind of answer.
fn kind_of(answer: &Answer) -> &'static str {
    match answer {
        Answer::Approval(_) => "approval",
        Answer::Permissions(_) => "permissions",
        Answer::UserQuestions(_) => "user_questions",
        Answer::Elicitation(_) => "elicitation",
        Answer::ToolCall(_) => "tool_call",
    }
}

fn fingerprint(answer: &ToolCallAnswer) -> Fingerprint {
    // Without maps, equal answers have equal encodings.
    Sha256::digest(answer.encode_to_vec()).into()
}

fn resolved(id: u64, resolution: Resolution) -> Act {
    Act::Tell(Event::request_resolved(id.to_string(), resolution, ""))
}
