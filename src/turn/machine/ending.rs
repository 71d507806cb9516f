//! How a turn ends of which nothing runs any more, or that is given up.
//!
//! Its commands are ended, since nothing of a turn runs on after it; where it failed, it is found out
//! whether something may have been done of which no event told; what was kept back is told.

use std::time::Duration;

use tokio::time::Instant;

use super::live::Live;
use super::outcome;
use super::{Act, EndedCommands, Input, Next, Step};
use crate::app_server::decode::TurnEnd;
use crate::model::event::{Event, InterruptReason, WarningCode};
use crate::model::id::ThreadId;
use crate::model::outcome::Outcome;
use crate::turn::clocks::Cause;
use crate::worker::WorkerExit;

/// How long the ends of commands are waited for once the turn is over.
const COMMANDS_END_WITHIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Ending {
    doing: Doing,
    // Whether the end was asked for: then only the end is told.
    was_asked: bool,
    // Codex did not end all of it in time.
    gives_up: bool,
    // How long it is waited for whether Codex took input that it was given.
    input_by: Instant,
}

/// What is being waited for.
#[derive(Debug)]
enum Doing {
    EndingCommands,
    /// Codex may tell the ends of commands after the turn's end.
    SettlingCommands {
        until: Instant,
    },
    GivingUp,
    LookingForAnswer,
    SettlingInput,
    Forgetting(Outcome),
}

impl Ending {
    pub(super) fn listens(&self) -> bool {
        let hears_of_commands =
            matches!(self.doing, Doing::EndingCommands | Doing::SettlingCommands { .. });
        hears_of_commands && !self.was_asked
    }

    pub(super) fn wake_at(&self) -> Option<Instant> {
        match &self.doing {
            Doing::SettlingCommands { until } => Some(*until),
            Doing::SettlingInput => Some(self.input_by),
            Doing::EndingCommands
            | Doing::GivingUp
            | Doing::LookingForAnswer
            | Doing::Forgetting(_) => None,
        }
    }
}

impl Live {
    /// Nothing of the turn runs any more.
    pub(super) fn end(&mut self, step: &mut Step<'_>) -> Next {
        step.acts.push(Act::NoteCompleted);
        self.end_commands(false, step)
    }

    /// Codex did not end all of the turn in time, and what it goes on doing nobody knows.
    pub(super) fn give_up(&mut self, step: &mut Step<'_>) -> Next {
        self.end_commands(true, step)
    }

    /// The worker has ended.
    pub(super) fn lose(&mut self, exit: &WorkerExit, step: &mut Step<'_>) -> Next {
        step.questions.withdraw_all(step.acts);
        self.run.side_effects = true;
        self.run.finish(step.acts);
        self.forget(outcome::worker_lost(exit, "", self.run.counts()), step)
    }

    /// Ends the commands that still run, of the turn and of its sub-agents: nothing of a turn runs on
    /// after it, as nothing runs on after `codex exec`.
    fn end_commands(&mut self, gives_up: bool, step: &mut Step<'_>) -> Next {
        step.questions.withdraw_all(step.acts);
        let cause = self.stopping.as_ref().and_then(|stopping| stopping.cause);
        self.ending = Some(Ending {
            doing: Doing::EndingCommands,
            was_asked: gives_up || cause.is_some(),
            gives_up,
            input_by: step.now + step.terms.grace,
        });
        let commands = self.run.owned.commands().into_iter();
        let commands: Vec<_> =
            commands.map(|(thread, items)| (ThreadId::from_codex(thread), items)).collect();
        if !commands.is_empty() {
            self.ending_commands += 1;
            step.acts.push(Act::EndCommands(commands));
        }
        self.end_on(Input::Tick, step)
    }

    /// Commands were ended. Codex may have gone on meanwhile.
    pub(super) fn collect(&mut self, ended: EndedCommands) {
        if let Some(left) = self.ending_commands.checked_sub(1) {
            self.ending_commands = left;
            self.ended_commands.commands.extend(ended.commands);
            self.ended_commands.killed += ended.killed;
        }
    }

    /// Takes in what happens to a turn that is ending.
    pub(super) fn end_on(&mut self, input: Input, step: &mut Step<'_>) -> Next {
        let Some(ending) = &mut self.ending else { return Next::Stay };
        match (&mut ending.doing, input) {
            (Doing::EndingCommands, Input::Tick) if self.ending_commands == 0 => {
                self.note_commands_ended(step)
            }
            (Doing::SettlingCommands { until }, Input::Tick)
                if *until <= step.now || !self.run.owned.has_running_commands() =>
            {
                self.tell_ended_commands(step)
            }
            // Nothing more will be told.
            (Doing::SettlingCommands { .. }, Input::WorkerLost(_)) => {
                self.tell_ended_commands(step)
            }
            (Doing::GivingUp, Input::GivenUp) => {
                self.run.side_effects = true;
                self.settle_input(step)
            }
            (Doing::LookingForAnswer, Input::HadNoAnswer(had_none)) => {
                self.run.side_effects = !had_none;
                self.settle_input(step)
            }
            (Doing::SettlingInput, Input::Tick | Input::Steered(..)) => self.settle_input(step),
            (Doing::Forgetting(outcome), Input::Forgotten) => Next::End(outcome.clone()),
            (_, _) => Next::Stay,
        }
    }

    fn note_commands_ended(&mut self, step: &mut Step<'_>) -> Next {
        let Some(ending) = &mut self.ending else { return Next::Stay };
        if ending.gives_up {
            ending.doing = Doing::GivingUp;
            step.acts.push(Act::GiveUp);
            Next::Stay
        } else if ending.was_asked {
            self.look_for_answer(step)
        } else if self.run.owned.has_running_commands() {
            // Also of one that has ended by itself: an older CLI may tell that after the turn's end.
            let until = step.now + COMMANDS_END_WITHIN;
            ending.doing = Doing::SettlingCommands { until };
            Next::Stay
        } else {
            self.tell_ended_commands(step)
        }
    }

    fn tell_ended_commands(&mut self, step: &mut Step<'_>) -> Next {
        let EndedCommands { commands, killed } = std::mem::take(&mut self.ended_commands);
        if !commands.is_empty() || killed > 0 {
            self.run.tell(commands_ended(&commands, killed), step.acts);
        }
        self.look_for_answer(step)
    }

    /// Finds out whether something may have been done of which no event told.
    fn look_for_answer(&mut self, step: &mut Step<'_>) -> Next {
        let Some(ending) = &mut self.ending else { return Next::Stay };
        let cause = self.stopping.as_ref().and_then(|stopping| stopping.cause);
        let is_failure = matches!(self.run.end, Some(TurnEnd::Failed(_)))
            || matches!(
                cause,
                Some(Cause::TurnTimeout | Cause::IdleTimeout | Cause::ToolTimeout | Cause::Budget)
            );
        if (is_failure || self.run.held_error.is_some()) && !self.run.side_effects {
            ending.doing = Doing::LookingForAnswer;
            let codex_turn_id = self.run.codex_turn_id.clone();
            step.acts.push(Act::LookForAnswer { codex_turn_id });
            return Next::Stay;
        }
        self.settle_input(step)
    }

    /// Whoever has sent input is told whether Codex took it: he would else send it again.
    fn settle_input(&mut self, step: &mut Step<'_>) -> Next {
        let Some(ending) = &mut self.ending else { return Next::Stay };
        if step.steering.is_under_way() && step.now < ending.input_by {
            ending.doing = Doing::SettlingInput;
            return Next::Stay;
        }
        self.run.finish(step.acts);
        let outcome = self.outcome(step);
        self.forget(outcome, step)
    }

    /// Ends the turn, once ephemeral threads are forgotten.
    fn forget(&mut self, outcome: Outcome, step: &mut Step<'_>) -> Next {
        step.acts.push(Act::Keep(self.run.kept()));
        if !step.terms.is_ephemeral {
            return Next::End(outcome);
        }
        let agents = self.run.owned.agent_threads().into_iter().map(ThreadId::from_codex);
        step.acts.push(Act::Forget { agents: agents.collect() });
        self.ending = Some(Ending {
            doing: Doing::Forgetting(outcome),
            was_asked: true,
            gives_up: false,
            input_by: step.now,
        });
        Next::Stay
    }

    fn outcome(&mut self, step: &Step<'_>) -> Outcome {
        let (counts, side_effects) = (self.run.counts(), self.run.side_effects);
        let stopped = |cause| step.stopped(cause, counts, side_effects);
        if let Some(wrong) = &self.run.not_applied {
            let mut outcome = stopped(Cause::SettingsNotApplied);
            if let Outcome::Failed { error, .. } = &mut outcome {
                error.message = format!("{}: {wrong}", error.message);
            }
            return outcome;
        }
        let had_others = self.stopping.as_ref().is_some_and(|stopping| stopping.had_others);
        let cause = self.stopping.as_ref().and_then(|stopping| stopping.cause);
        let (usage, thread_usage) = (counts.turn, counts.thread);
        match (self.run.end.take().unwrap_or(TurnEnd::Interrupted), cause) {
            (_, Some(cause @ Cause::Budget)) => stopped(cause),
            (TurnEnd::Completed, cause) if cause.is_none() || !had_others => {
                let omits = step.terms.omit_final_response;
                let said = self.run.take_final_response();
                let final_response = if omits { String::new() } else { said };
                Outcome::Completed { final_response, usage, thread_usage }
            }
            (TurnEnd::Failed(mut error), _) => {
                error.side_effects_possible = side_effects;
                outcome::failed(error, counts)
            }
            (TurnEnd::Completed | TurnEnd::Interrupted, Some(cause)) => stopped(cause),
            (TurnEnd::Completed | TurnEnd::Interrupted, None) => {
                Outcome::Interrupted { reason: InterruptReason::Codex, usage, thread_usage }
            }
        }
    }
}

fn commands_ended(ended: &[String], killed: usize) -> Event {
    let count = ended.len();
    let message = match (count, killed) {
        (0, killed) => format!("processes that the turn had left running were ended: {killed}"),
        (count, 0) => format!("commands that still ran at the end of the turn were ended: {count}"),
        (count, killed) => format!(
            "commands that still ran at the end of the turn were ended: {count}, and with them \
             processes that it had left running: {killed}"
        ),
    };
    Event::warning(WarningCode::CommandsEnded, message, ended.join("\n"))
}
