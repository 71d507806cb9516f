//! Who waits for a reply of a turn.
//!
//! The machine knows them by numbers alone. Whoever does not wait any more is forgotten with what he
//! sent.

use std::collections::HashMap;

use tokio::sync::oneshot;

use crate::model::question::Unanswerable;
use crate::model::request::UserInput;
use crate::turn::machine::{Input, ReplyTo};
use crate::turn::turn::Command;

#[derive(Debug, Default)]
pub(super) struct Replies {
    count: u64,
    steering: HashMap<ReplyTo, Steering>,
    answering: HashMap<ReplyTo, oneshot::Sender<Result<(), Unanswerable>>>,
}

#[derive(Debug)]
struct Steering {
    inputs: Vec<UserInput>,
    reply: oneshot::Sender<Result<String, String>>,
}

impl Replies {
    /// Takes in what is wanted of the turn, as its machine is told it.
    pub(super) fn note(&mut self, command: Command) -> Input {
        self.steering.retain(|_, steering| !steering.reply.is_closed());
        self.count += 1;
        let to = ReplyTo(self.count);
        match command {
            Command::Stop(reason) => Input::Stop(reason),
            Command::Steer { inputs, reply } => {
                self.steering.insert(to, Steering { inputs, reply });
                Input::Steer(to)
            }
            Command::Answer { request_id, given, reply } => {
                self.answering.insert(to, reply);
                Input::Answer { to, request_id, given }
            }
        }
    }

    /// What to steer with, if somebody still waits for it.
    pub(super) fn inputs(&mut self, to: ReplyTo) -> Option<Vec<UserInput>> {
        let steering = self.steering.get_mut(&to).filter(|asked| !asked.reply.is_closed())?;
        Some(std::mem::take(&mut steering.inputs))
    }

    pub(super) fn reply_steered(&mut self, to: ReplyTo, outcome: Result<String, String>) {
        if let Some(Steering { reply, .. }) = self.steering.remove(&to) {
            // Nobody may wait any more.
            let _ = reply.send(outcome);
        }
    }

    pub(super) fn reply_answered(&mut self, to: ReplyTo, outcome: Result<(), Unanswerable>) {
        if let Some(reply) = self.answering.remove(&to) {
            let _ = reply.send(outcome);
        }
    }
}
