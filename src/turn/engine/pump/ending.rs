//! How a turn is stopped with all that belongs to it, and how its commands end.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::Run;
use crate::model::event::{Event, WarningCode};
use crate::model::id::ThreadId;
use crate::turn::engine::owned::Rest;
use crate::turn::engine::{Cause, Engine};
use crate::worker::Route;

/// How long the ends of commands are waited for once the turn is over.
const COMMANDS_END_WITHIN: Duration = Duration::from_millis(500);

/// A turn that is being stopped, with all that belongs to it.
#[derive(Debug)]
pub(super) struct Stopping {
    // `None`: Codex ended the turn badly, and what it had started is not waited for.
    pub(super) cause: Option<Cause>,
    // Whether the turn had more to wait for than what Codex was doing on its own thread.
    pub(super) had_others: bool,
    // Until when it may take to end.
    pub(super) deadline: Instant,
    // Each ends the interrupting of a turn; by Codex's id of it.
    interrupting: HashMap<String, DropGuard>,
    // Takes the goals away; gives the threads that had one.
    pub(super) clearing: Option<JoinHandle<Vec<ThreadId>>>,
}

impl Engine {
    /// Begins to stop a turn and all that belongs to it.
    pub(super) fn stop(&self, run: &Run<'_>, cause: Option<Cause>) -> Stopping {
        let worker = Arc::clone(run.worker);
        let mut goals: Vec<ThreadId> =
            run.owned.goals().into_iter().map(ThreadId::from_codex).collect();
        if worker.may_have_goal(run.thread_id) && !goals.contains(run.thread_id) {
            goals.push(run.thread_id.clone());
        }
        // Else Codex would go on with them at the next turn.
        let clearing = (!goals.is_empty()).then(|| {
            self.tasks.spawn(async move {
                let mut had_goals = Vec::new();
                for thread_id in goals {
                    if worker.clear_goal(&thread_id).await {
                        had_goals.push(thread_id);
                    }
                }
                had_goals
            })
        });
        Stopping {
            cause,
            had_others: run.end.is_some() || run.owned.has_others(),
            deadline: Instant::now() + self.settings.timeouts.interrupt_grace,
            interrupting: HashMap::new(),
            clearing,
        }
    }

    /// Interrupts what runs of a turn and is not being interrupted yet.
    pub(super) fn interrupt_all(&self, run: &Run<'_>, stopping: &mut Stopping) {
        for (thread_id, codex_turn_id) in run.owned.running() {
            let interrupting = || {
                let thread_id = ThreadId::from_codex(thread_id);
                self.interrupt(run.worker, &thread_id, &codex_turn_id)
            };
            stopping.interrupting.entry(codex_turn_id.clone()).or_insert_with(interrupting);
        }
    }
}

impl Run<'_> {
    /// Takes the goals away that Codex would go on with by itself; gives the threads that had one.
    pub(super) async fn clear_goals(&self) -> Vec<ThreadId> {
        let mut had_goals = Vec::new();
        for thread_id in self.owned.goals() {
            let thread_id = ThreadId::from_codex(thread_id);
            if self.worker.has_goal(&thread_id).await && self.worker.clear_goal(&thread_id).await {
                had_goals.push(thread_id);
            }
        }
        had_goals
    }

    /// Waits until it shows whether Codex goes on with goals that were taken away in the moment in which
    /// it may have begun, and hears what it told meanwhile.
    pub(super) async fn hear_of_goals(
        &mut self,
        had_goals: Vec<ThreadId>,
        route: &mut Route,
        deadline: Instant,
    ) {
        for thread_id in had_goals {
            let going_on = self.worker.goes_on_all_the_same(&thread_id);
            if let Ok(true) = tokio::time::timeout_at(deadline, going_on).await {
                // Its begin may be known a moment before it is here.
                while self.rest() != Rest::Busy {
                    match tokio::time::timeout_at(deadline, route.recv()).await {
                        Ok(Some(message)) => self.take_message(message),
                        Ok(None) | Err(_) => return,
                    }
                }
            }
        }
        while let Some(message) = route.try_recv() {
            self.take_message(message);
        }
    }

    /// Ends the commands that still run, of the turn and of its sub-agents: nothing of a turn runs on
    /// after it, as nothing runs on after `codex exec`. It is told, unless the end was asked for.
    pub(super) async fn end_commands(&mut self, route: &mut Route, was_asked: bool) {
        const WITHIN: Duration = Duration::from_secs(2);
        let (worker, began_at) = (self.worker, self.began_at);
        let ending = self.owned.commands().into_iter().map(|(thread_id, running)| async move {
            let thread_id = ThreadId::from_codex(thread_id);
            let mut ended = Vec::new();
            if !running.is_empty() {
                let ending = worker.end_commands(&thread_id, &running);
                ended = tokio::time::timeout(WITHIN, ending).await.unwrap_or_default();
            }
            // Those that have made themselves daemons, too.
            let killing = worker.kill_commands(&thread_id, began_at);
            let killed = tokio::time::timeout(WITHIN, killing).await.unwrap_or_default();
            (ended, killed)
        });
        let (ended, killed): (Vec<_>, Vec<_>) =
            futures::future::join_all(ending).await.into_iter().unzip();
        let ended: Vec<String> = ended.into_iter().flatten().collect();
        let killed: usize = killed.into_iter().sum();
        if was_asked {
            return;
        }
        // Also of one that has ended by itself: an older CLI may tell that after the turn's end.
        let settling = async {
            while self.owned.has_running_commands() {
                let Some(message) = route.recv().await else { return };
                self.take_message(message);
            }
        };
        let _ = tokio::time::timeout(COMMANDS_END_WITHIN, settling).await;
        if !ended.is_empty() || killed > 0 {
            self.log.append(commands_ended(&ended, killed));
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
