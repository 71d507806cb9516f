//! A turn that Codex has taken, until it is over.
//!
//! It runs as long as anything of it does ([`Rest`]); a cause to stop makes Codex end it
//! ([`super::stopping`]), and once nothing runs any more what it leaves is put in order
//! ([`super::ending`]).

use std::time::Duration;

use tokio::time::Instant;

use super::ending::Ending;
use super::owned::Rest;
use super::running::Run;
use super::steering::Target;
use super::stopping::{Goals, Stopping};
use super::{Begun, EndedCommands, Input, Next, Policy, Questions, Step};
use crate::model::event::{Event, WarningCode};
use crate::model::id::ThreadId;
use crate::turn::clocks::{Cause, Clocks};
use crate::turn::turn::HAS_ENDED;

#[derive(Debug)]
pub(super) struct Live {
    pub(super) run: Run,
    pub(super) stopping: Option<Stopping>,
    pub(super) goals: Goals,
    // As of the last input.
    pub(super) rest: Rest,
    // How often commands are being ended: again, where Codex went on meanwhile.
    pub(super) ending_commands: usize,
    // What was ended of the commands, until it is told.
    pub(super) ended_commands: EndedCommands,
    // Once nothing runs any more, or the thread is given up.
    pub(super) ending: Option<Ending>,
}

impl Live {
    /// Codex has taken the turn; there may be a cause to stop it at once.
    pub(super) fn begin(
        thread_id: ThreadId,
        begun: Begun,
        cause: Option<Cause>,
        step: &mut Step<'_>,
    ) -> Live {
        step.clocks.note_progress(step.now);
        let mut live = Live {
            run: Run::begin(thread_id, begun, step),
            stopping: None,
            goals: Goals::None,
            rest: Rest::Busy,
            ending_commands: 0,
            ended_commands: EndedCommands::default(),
            ending: None,
        };
        live.stop_if_due(cause, step);
        live
    }

    pub(super) fn on(&mut self, input: Input, step: &mut Step<'_>) -> Next {
        let next = self.take(input, step);
        step.clocks.let_idle_stand(step.questions.are_pending(), step.now);
        step.clocks.let_tools_run(self.run.owned.has_running_tools(), step.now);
        next
    }

    fn take(&mut self, input: Input, step: &mut Step<'_>) -> Next {
        match input {
            Input::Told(told) if self.listens() => self.run.take(told, step),
            Input::Skipped(line) if self.listens() => self.run.skip(&line, step),
            Input::Asked(asked, policy) if self.listens() => {
                let is_over = self.stopping.is_some() || self.ending.is_some();
                let policy = match policy {
                    Policy::Ask { .. } if is_over => Policy::Withdraw,
                    policy => policy,
                };
                self.run.ask(asked, &policy, step);
            }
            // Whoever asks late is answered all the same.
            Input::Asked(asked, _) => return step.decline(asked.call),
            Input::Tick if self.ending.is_none() => {
                step.questions.expire(step.now, step.acts);
                return self.look_at_clocks(step);
            }
            Input::CommandsEnded(ended) => {
                self.collect(ended);
                if self.ending.is_some() {
                    return self.end_on(Input::Tick, step);
                }
            }
            input if self.ending.is_some() => return self.end_on(input, step),
            Input::GoalsCleared(had) => self.note_goals_cleared(had),
            Input::GoalsSeen(goes_on) => self.note_goals_seen(goes_on),
            Input::WorkerLost(exit) => return self.lose(&exit, step),
            _ => {}
        }
        self.rest = self.run.rest(step.now);
        if self.ending.is_some() && self.rest == Rest::Over {
            return self.end_on(Input::Tick, step);
        }
        // Codex goes on after all.
        self.ending = None;
        self.go_on(None, step)
    }

    fn look_at_clocks(&mut self, step: &mut Step<'_>) -> Next {
        self.rest = self.run.rest(step.now);
        match &self.stopping {
            // At rest, what ends the turn is under way.
            _ if !self.rest.is_at_work() => self.go_on(None, step),
            Some(stopping) if stopping.deadline <= step.now => self.give_up(step),
            Some(_) => self.go_on(None, step),
            None => {
                let struck = step.clocks.struck(step.now);
                if struck.is_none()
                    && let Some((silent, most)) = step.clocks.warning(step.now)
                {
                    self.run.tell(no_progress(silent, most), step.acts);
                }
                self.go_on(struck, step)
            }
        }
    }

    /// Looks what follows from all that is known.
    fn go_on(&mut self, cause: Option<Cause>, step: &mut Step<'_>) -> Next {
        loop {
            self.rest = self.run.rest(step.now);
            // One that came at rest waits until there is something to stop.
            let asked = step.clocks.asked().filter(|_| self.rest.is_at_work());
            self.stop_if_due(cause.or(asked), step);
            let rest = self.rest;
            if rest == Rest::Busy {
                self.goals.note_begin();
            }
            if rest.is_at_work() || self.waits_for_goals(step) {
                return Next::Stay;
            }
            if self.run.rest(step.now) == Rest::Over {
                return self.end(step);
            }
            self.clear_goals_at_rest(step);
        }
    }

    pub(super) fn wake_at(&self, clocks: &Clocks, questions: &Questions) -> Option<Instant> {
        if let Some(ending) = &self.ending {
            return ending.wake_at();
        }
        let clock = match &self.stopping {
            _ if !self.rest.is_at_work() => self.goals.wake_at(),
            Some(stopping) => Some(stopping.deadline),
            None => clocks.next().into_iter().chain(clocks.next_warning()).min(),
        };
        let rest = match self.rest {
            Rest::Until(by) => Some(by),
            Rest::Busy | Rest::Goal | Rest::Over => None,
        };
        clock.into_iter().chain(rest).chain(questions.next()).min()
    }

    pub(super) fn listens(&self) -> bool {
        self.ending.as_ref().is_none_or(Ending::listens)
    }

    pub(super) fn target(&self) -> Target<'_> {
        match self.ending {
            Some(_) => Target::Nowhere(HAS_ENDED),
            None => Target::Turn(&self.run.current_turn_id),
        }
    }
}

fn no_progress(silent: Duration, most: Duration) -> Event {
    let show = |duration: Duration| {
        humantime::format_duration(Duration::from_millis(duration.as_millis() as u64)).to_string()
    };
    let (silent, most) = (show(silent), show(most));
    let message = format!("the turn has made no progress for {silent}; after {most} it is stopped");
    Event::warning(WarningCode::NoProgress, message, "")
}
