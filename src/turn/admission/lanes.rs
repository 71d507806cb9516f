//! The lanes: which turns stand in which, in which order, and how far each is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use tokio::sync::{Notify, watch};

use super::line::Line;
use super::{Lane, QueuePosition};
use crate::model::event::InterruptReason;
use crate::model::id::{CallerId, Tenant};
use crate::turn::turn::Turn;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) next_ticket: u64,
    pub(super) tickets: HashMap<u64, Entry>,
    // By rank; but for those that run, which are in front, in the order of their arrival.
    pub(super) lanes: HashMap<Lane, VecDeque<u64>>,
    // Those that wait for a lane that is reserved, to reserve it.
    pub(super) reserving: HashMap<Lane, VecDeque<Arc<Notify>>>,
    pub(super) line: Line,
    pub(super) running: usize,
    pub(super) running_of: HashMap<Tenant, usize>,
    pub(super) waiting: Waiting,
    pub(super) waiting_of: HashMap<CallerId, Waiting>,
}

/// Turns that wait, and what their requests hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) turns: usize,
    pub(super) bytes: usize,
}

impl Waiting {
    pub(super) fn add(&mut self, bytes: usize) {
        self.turns += 1;
        self.bytes += bytes;
    }

    pub(super) fn take(&mut self, bytes: usize) {
        self.turns -= 1;
        self.bytes -= bytes;
    }
}

/// Counts one less of a caller's.
pub(super) fn take_waiting(of: &mut HashMap<CallerId, Waiting>, caller: CallerId, bytes: usize) {
    if let Some(waiting) = of.get_mut(&caller) {
        waiting.take(bytes);
        if waiting.turns == 0 {
            of.remove(&caller);
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tenant: Tenant,
    pub(super) caller: CallerId,
    pub(super) context: Option<Lane>,
    pub(super) thread: Option<Lane>,
    pub(super) follows_context: bool,
    pub(super) rank: i64,
    pub(super) turn: Weak<Turn>,
    pub(super) bytes: usize,
    pub(super) stage: Stage,
    pub(super) position: watch::Sender<QueuePosition>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for others of its lanes.
    InLane,
    /// It waits for room.
    InLine,
    Running,
}

impl Entry {
    /// Whether it goes before those that wait.
    pub(super) fn supersedes(&self) -> bool {
        self.rank < 0
    }

    pub(super) fn lanes(&self) -> impl Iterator<Item = &Lane> {
        self.context.iter().chain(&self.thread)
    }
}

impl State {
    pub(super) fn runs(&self, id: u64) -> bool {
        self.tickets.get(&id).is_some_and(|entry| entry.stage == Stage::Running)
    }

    /// Has a turn wait for room, once nobody is before it in its lanes; or in its lanes again.
    pub(super) fn line_up(&mut self, id: u64) {
        let Some(entry) = self.tickets.get(&id) else { return };
        let is_in_front = |lane| self.lanes.get(lane).is_some_and(|lane| lane.front() == Some(&id));
        let (caller, is_free) = (entry.caller, entry.lanes().all(is_in_front));
        let stage = match (entry.stage, is_free) {
            (Stage::InLane, true) => {
                self.line.push(caller, id);
                Stage::InLine
            }
            (Stage::InLine, false) => {
                self.line.remove(caller, id);
                Stage::InLane
            }
            (stage, _) => stage,
        };
        if let Some(entry) = self.tickets.get_mut(&id) {
            entry.stage = stage;
        }
        self.tell_in_lane(id);
    }

    /// Stops those that run in these lanes, and those that wait there to supersede others.
    pub(super) fn supersede(&self, lanes: &[Lane]) {
        for id in lanes.iter().filter_map(|lane| self.lanes.get(lane)).flatten() {
            let Some(entry) = self.tickets.get(id) else { continue };
            if (entry.stage == Stage::Running || entry.supersedes())
                && let Some(turn) = entry.turn.upgrade()
            {
                turn.interrupt(InterruptReason::Superseded);
            }
        }
    }

    /// Puts a turn into a lane: where it runs in front, else by its rank behind those that run.
    pub(super) fn enter_lane(&mut self, lane: &Lane, id: u64) {
        let rank_of = |id: &u64| self.tickets.get(id).map_or(0, |entry| entry.rank);
        let (runs, rank) = (self.runs(id), rank_of(&id));
        let ids = self.lanes.get(lane).into_iter().flatten();
        // What has no ticket has the lane reserved.
        let goes_first = |other: &u64| self.runs(*other) || !self.tickets.contains_key(other);
        let is_ahead = |other: &&u64| !runs && (goes_first(other) || rank_of(other) < rank);
        let ahead = ids.take_while(is_ahead).count();
        self.lanes.entry(lane.clone()).or_default().insert(ahead, id);
    }

    pub(super) fn leave_lane(&mut self, lane: &Lane, id: u64) {
        let Some(ids) = self.lanes.get_mut(lane) else { return };
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            self.lanes.remove(lane);
        }
        self.line_up_lane(lane);
    }

    pub(super) fn line_up_lane(&mut self, lane: &Lane) {
        for id in self.lanes.get(lane).cloned().into_iter().flatten() {
            self.line_up(id);
        }
    }

    pub(super) fn move_to_thread(&mut self, id: u64, thread: &Lane) {
        let Some(entry) = self.tickets.get_mut(&id) else { return };
        if entry.thread.as_ref() == Some(thread) {
            return;
        }
        let before = entry.thread.replace(thread.clone());
        if let Some(before) = before {
            self.leave_lane(&before, id);
        }
        self.enter_lane(thread, id);
        self.line_up_lane(thread);
    }

    /// Tells a turn that waits in its lanes its position there.
    pub(super) fn tell_in_lane(&self, id: u64) {
        let Some(entry) = self.tickets.get(&id).filter(|entry| entry.stage == Stage::InLane) else {
            return;
        };
        let lanes = entry.lanes().filter_map(|lane| self.lanes.get(lane));
        let ahead = lanes.filter_map(|lane| lane.iter().position(|other| *other == id)).max();
        tell(entry, ahead.unwrap_or(0));
    }
}

/// Counts one less.
pub(super) fn take_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

pub(super) fn tell(entry: &Entry, number: usize) {
    let position = QueuePosition::Waiting(u32::try_from(number).unwrap_or(u32::MAX));
    entry.position.send_if_modified(|current| {
        let changed = *current != position;
        *current = position;
        changed
    });
}
