//! How records become what was kept.

use std::iter::Peekable;

use crate::model::id::{ThreadId, TurnId};
use crate::registry::ledger::record::Record;
use crate::registry::ledger::{Kept, KeptFacts, KeptTurn};

/// Something that was kept, with all of its records.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Kept(Kept),
    Facts(ThreadId, Box<KeptFacts>),
    /// Records of a turn that is not kept any more.
    Stray(TurnId),
}

/// The pieces of records that come in the order of their keys.
pub(super) struct Pieces<I: Iterator>(Peekable<I>);

impl<I: Iterator> Pieces<I> {
    pub(super) fn of(records: impl IntoIterator<IntoIter = I>) -> Pieces<I> {
        Pieces(records.into_iter().peekable())
    }
}

impl<E, I: Iterator<Item = Result<Record, E>>> Iterator for Pieces<I> {
    type Item = Result<Piece, E>;

    fn next(&mut self) -> Option<Result<Piece, E>> {
        let record = match self.0.next()? {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        Some(Ok(match record {
            Record::Binding(binding) => Piece::Kept(Kept::Binding(binding)),
            Record::Mark(mark) => Piece::Kept(Kept::Mark(mark)),
            Record::Facts(thread_id, facts) => Piece::Facts(thread_id, facts),
            Record::Directory(directory, latest) => {
                Piece::Kept(Kept::Directory { directory, latest })
            }
            Record::Tokens(tokens) => Piece::Kept(Kept::Tokens(tokens)),
            Record::Turn(mut turn) => {
                while let Some(part) = self.part_of(&turn.turn_id) {
                    add(&mut turn, part);
                }
                Piece::Kept(Kept::Turn(turn))
            }
            Record::ThreadStarted(turn_id, _)
            | Record::Reserved(turn_id, _)
            | Record::End(turn_id, _)
            | Record::Request(turn_id, _) => {
                while self.part_of(&turn_id).is_some() {}
                Piece::Stray(turn_id)
            }
        }))
    }
}

impl<E, I: Iterator<Item = Result<Record, E>>> Pieces<I> {
    fn part_of(&mut self, turn_id: &TurnId) -> Option<Record> {
        let is_part = |record: &Result<Record, E>| {
            matches!(
                record,
                Ok(Record::ThreadStarted(of, _)
                    | Record::Reserved(of, _)
                    | Record::End(of, _)
                    | Record::Request(of, _)) if of == turn_id
            )
        };
        self.0.next_if(is_part)?.ok()
    }
}

fn add(turn: &mut KeptTurn, part: Record) {
    match part {
        Record::ThreadStarted(_, started) => turn.thread_started = Some(started),
        Record::Reserved(_, sequence) => turn.reserved = sequence,
        Record::End(_, end) => turn.end = Some(end),
        Record::Request(_, request) => {
            turn.requests.retain(|known| known.id != request.id);
            turn.requests.push(request);
        }
        Record::Binding(_)
        | Record::Mark(_)
        | Record::Turn(_)
        | Record::Facts(..)
        | Record::Directory(..)
        | Record::Tokens(_) => {}
    }
}
