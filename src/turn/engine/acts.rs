//! What a turn's machine wants done, done to the worker, the pool, the registry and the log.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::{Done, Driver, Held, hear};
use super::keeping::Writing;
use tracing::Instrument as _;

use crate::model::event::{Event, ThreadStarted, Usage};
use crate::model::id::ThreadId;
use crate::model::refusal::Refusal;
use crate::pool::Incarnation;
use crate::turn::contexts::Contexts;
use crate::turn::machine::{Act, EndedCommands, Input, Kept};
use crate::turn::workspace;
use crate::worker::thread::{Task, ThreadError};
use crate::worker::{Route, ThreadMessage, Worker};

/// How often an interruption that Codex refuses is tried again: it refuses while it has not quite
/// begun with the turn.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(100);

/// How long the ending of one thread's commands may take, and the killing of what they left.
const COMMANDS_WITHIN: Duration = Duration::from_secs(2);

/// How long it is waited for that Codex writes a new thread down. It has when it tells that the turn began,
/// which it does some ms after it has taken the turn; who has called is not to be left without a word if
/// it hangs.
const WRITTEN_DOWN_WITHIN: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) fn perform(&mut self, act: Act) {
        match act {
            Act::Tell(Event::ThreadStarted(started)) => self.introduce(started),
            Act::Tell(event) => self.tell(event),
            Act::Open { after } => self.open(after),
            Act::ReplySteered { to, outcome } => self.replies.reply_steered(to, outcome),
            Act::ReplyAnswered { to, outcome } => self.replies.reply_answered(to, outcome),
            act => self.perform_on_thread(act),
        }
    }

    fn open(&mut self, after: Option<String>) {
        if let Some(cause) = after {
            tracing::info!(turn = %self.turn.id, cause, "the worker was lost before the turn began");
        }
        self.held = None;
        let started = self.keeping.start();
        let mut opening =
            self.engine.start_opening(&self.request, &self.workspace, &self.suspicion, started);
        self.begin(async move { Done::Opened(opening.opened().await.map(Box::new)) });
    }

    fn tell(&mut self, event: Event) {
        let reserving = self.keeping.tell(event);
        self.wait_for_reserve(reserving);
    }

    pub(super) fn wait_for_reserve(&mut self, reserving: Option<Writing>) {
        if let Some(kept) = reserving {
            self.begin(async move { Done::Reserved(kept.await) });
        }
    }

    /// Tells of the turn's thread; readers know of it once it is kept.
    fn introduce(&mut self, started: ThreadStarted) {
        let event = Event::ThreadStarted(started);
        let Some(held) = &mut self.held else { return self.tell(event) };
        held.keep_facts(&self.engine.contexts);
        // The ephemeral ones never will be.
        let is_written_down = !held.thread.facts.is_blank || self.request.ephemeral;
        let kept = self.keeping.introduce(event, &held.thread_id, is_written_down);
        if let Some(kept) = kept {
            self.begin(async move { Done::Kept(kept.await) });
        }
        if !is_written_down {
            self.begin(async move {
                tokio::time::sleep(WRITTEN_DOWN_WITHIN).await;
                Done::ToldAnyway
            });
        }
    }

    /// Does what needs the turn's thread.
    fn perform_on_thread(&mut self, act: Act) {
        let Some(held) = &mut self.held else { return };
        let grace = self.engine.settings.timeouts.interrupt_grace;
        let (worker, thread_id) = (Arc::clone(held.lease.worker()), held.thread_id.clone());
        match act {
            Act::Quiet => self.begin(async move {
                Done::input(Input::Quieted(worker.quiet_thread(&thread_id, grace).await))
            }),
            Act::Start => self.start(),
            Act::EndForeign { codex_turn_id } => self.begin(async move {
                let ended = worker.end_foreign_turn(&thread_id, &codex_turn_id, grace).await;
                Done::input(Input::ForeignEnded(ended.is_ok()))
            }),
            Act::Bind => self.bind(),
            Act::NoteTurn if self.request.ephemeral => {}
            Act::NoteTurn => match &self.request.context {
                Some(key) => self.engine.contexts.note_turn(key, &self.turn.id),
                None => {
                    let directory = &self.workspace.working_directory;
                    self.engine.latest_threads.note(directory, &thread_id);
                }
            },
            Act::Steer { to, codex_turn_id } => match self.replies.inputs(to) {
                Some(inputs) => self.begin(async move {
                    let steered = worker.steer_turn(&thread_id, &codex_turn_id, &inputs).await;
                    Done::input(Input::Steered(to, steered.map_err(|error| error.to_string())))
                }),
                // Whoever sent it has gone before it could be given to Codex.
                None => self.begin(std::future::ready(Done::input(Input::Steered(
                    to,
                    Err("nobody waits for it any more".to_owned()),
                )))),
            },
            Act::Decline(call) => worker.decline(&call),
            Act::Answer(call, answer) => worker.answer(&call, &answer),
            Act::Interrupt { thread_id, codex_turn_id } => self.begin(async move {
                while let Err(error) = worker.interrupt_turn(&thread_id, &codex_turn_id).await {
                    tracing::debug!(%error, "the turn could not be interrupted");
                    if !worker.is_alive() {
                        break;
                    }
                    tokio::time::sleep(INTERRUPT_AGAIN).await;
                }
                Done::Interrupted
            }),
            Act::ClearGoals { threads, ask_first } => self.begin(async move {
                let mut had = Vec::new();
                for thread_id in threads {
                    let may_have = !ask_first || worker.has_goal(&thread_id).await;
                    if may_have && worker.clear_goal(&thread_id).await {
                        had.push(thread_id);
                    }
                }
                Done::input(Input::GoalsCleared(had))
            }),
            Act::SeeGoals { threads } => self.begin(async move {
                let mut goes_on = false;
                for thread_id in threads {
                    goes_on |= worker.goes_on_all_the_same(&thread_id).await;
                }
                Done::input(Input::GoalsSeen(goes_on))
            }),
            Act::EndCommands(commands) => {
                let began_at = held.began_at;
                self.begin(async move {
                    let ending = commands.into_iter().map(|(thread_id, items)| {
                        end_commands(&worker, thread_id, items, began_at)
                    });
                    let ended = futures::future::join_all(ending).await;
                    let ended = ended.into_iter().fold(EndedCommands::default(), |mut all, one| {
                        all.commands.extend(one.commands);
                        all.killed += one.killed;
                        all
                    });
                    Done::input(Input::CommandsEnded(ended))
                });
            }
            Act::LookForAnswer { codex_turn_id } => self.begin(async move {
                let had_none = worker.had_no_answer(&thread_id, &codex_turn_id).await;
                Done::input(Input::HadNoAnswer(had_none))
            }),
            Act::GiveUp => {
                let incarnation = Arc::clone(held.lease.incarnation());
                self.begin(
                    async move { Done::GivenUp(give_up(&incarnation, thread_id, grace).await) },
                );
            }
            Act::Kill(cause) => {
                let incarnation = Arc::clone(held.lease.incarnation());
                self.begin(async move {
                    if worker.is_alive() {
                        incarnation.give_up(cause);
                    }
                    Done::input(Input::WorkerLost(worker.exited().await))
                });
            }
            Act::Forget { mut agents } => {
                // Not worth more than a moment each: it is for the worker's memory only.
                if held.thread.asked.is_none() {
                    agents.push(thread_id.clone());
                } else {
                    // Codex goes on with the turn, and its end would not be told any more.
                    agents.clear();
                }
                let engine = Arc::clone(&self.engine);
                self.begin(async move {
                    for thread_id in agents {
                        let forgetting = worker.forget_thread(&thread_id);
                        let _ = tokio::time::timeout(grace, forgetting).await;
                    }
                    engine.threads.forget(&thread_id);
                    Done::input(Input::Forgotten)
                });
            }
            Act::NoteCompleted => held.lease.note_turn_completed(),
            Act::Keep(kept) => {
                held.keep(kept);
                held.keep_facts(&self.engine.contexts);
            }
            // Done without a thread.
            Act::Tell(_)
            | Act::Open { .. }
            | Act::ReplySteered { .. }
            | Act::ReplyAnswered { .. }
            | Act::End(_) => {}
        }
    }

    fn start(&mut self) {
        let Some(held) = &mut self.held else { return };
        let (worker, thread_id) = (Arc::clone(held.lease.worker()), held.thread_id.clone());
        let counts = worker.counts_of(&thread_id);
        let is_more = |counts: &Usage| {
            held.thread.facts.usage.is_none_or(|known| known.total_tokens() < counts.total_tokens())
        };
        if let Some(counts) = counts.filter(is_more) {
            // What was used meanwhile is not this turn's.
            held.thread.facts.usage = Some(counts);
        }
        let mut loaded = held.loaded.clone();
        let (turn, request) = (Arc::clone(&self.turn), Arc::clone(&self.request));
        let (workspace, engine) = (Arc::clone(&self.workspace), Arc::clone(&self.engine));
        self.begin(async move {
            let task = Task {
                root_turn_id: &turn.id.0,
                work: &request.work,
                inputs: &request.inputs,
                output_schema: request.turn_options.output_schema.as_ref(),
            };
            let options = &request.thread_options;
            let again = workspace::check_again(&engine.looks, &workspace, &request.policy);
            let outcome = match again.await {
                Ok(()) => {
                    worker.start_turn(&thread_id, &mut loaded, task, options, &workspace).await
                }
                Err(Refusal::PolicyDenied(denied)) => Err(ThreadError::Denied(denied)),
                Err(refusal) => Err(ThreadError::OutOfResources(refusal.to_string())),
            };
            Done::Started { loaded: Box::new(loaded), outcome }
        });
    }

    /// From here on the thread counts as this context's, also when the turn fails.
    fn bind(&mut self) {
        let Some(held) = &mut self.held else { return };
        held.thread.publish_holder();
        let context = self.request.context.as_ref().filter(|_| !self.request.ephemeral);
        held.thread.is_bound |= context.is_some();
        let contexts = &self.engine.contexts;
        let (thread_id, facts) = (&held.thread_id, &held.thread.facts);
        let replaced = contexts.bind_for_turn(context, &self.ticket, thread_id, facts);
        // Of which nothing need be remembered for the context's sake.
        if let Some(replaced) = replaced
            && let Some(mut thread) = self.engine.threads.try_lock(&replaced)
        {
            thread.is_bound = contexts.has_thread(&replaced);
        }
    }
}

impl Held {
    /// Has what is known of the thread outlive the sidecar, where a context goes on with it.
    pub(super) fn keep_facts(&mut self, contexts: &Contexts) {
        self.thread.is_bound = contexts.keep_facts(&self.thread_id, &self.thread.facts);
    }

    fn keep(&mut self, Kept { has_begun, in_force, usage }: Kept) {
        self.thread.facts.is_blank &= !has_begun || self.is_unsaved;
        if let Some(loaded) = &mut self.thread.loaded {
            loaded.note_in_force(in_force);
        }
        if usage.is_some() {
            self.thread.facts.usage = usage;
        }
    }
}

/// Ends the commands of a thread that still run, and those that have made themselves daemons, too.
pub(super) async fn end_commands(
    worker: &Worker,
    thread_id: ThreadId,
    items: Vec<String>,
    began_at: crate::process::Moment,
) -> EndedCommands {
    let mut commands = Vec::new();
    if !items.is_empty() {
        let ending = worker.end_commands(&thread_id, &items);
        commands = tokio::time::timeout(COMMANDS_WITHIN, ending).await.unwrap_or_default();
    }
    let killing = worker.kill_commands(&thread_id, began_at);
    let killed = tokio::time::timeout(COMMANDS_WITHIN, killing).await.unwrap_or_default();
    EndedCommands { commands, killed }
}

/// The release of a thread, under way.
pub(super) type Releasing = Pin<Box<dyn Future<Output = Result<(), ThreadError>> + Send>>;

fn release(worker: &Arc<Worker>, thread_id: &ThreadId) -> Releasing {
    let (worker, thread_id) = (Arc::clone(worker), thread_id.clone());
    Box::pin(async move { worker.release_thread(&thread_id).await })
}

/// The turn did not end although it was told to. A worker that still answers is asked to let go of the
/// thread, which disturbs no other turn. One that does not is killed, unless it gives another sign of life
/// and other turns are at work on it: then the rest of the release is given back.
async fn give_up(
    incarnation: &Incarnation,
    thread_id: ThreadId,
    grace: Duration,
) -> Option<Releasing> {
    let worker = &incarnation.worker;
    let asked_at = Instant::now();
    let mut releasing = release(worker, &thread_id);
    let pinged = Arc::clone(worker);
    // Whatever it answers, it is heard.
    tokio::spawn(async move { pinged.ping(grace).await }.in_current_span());
    match tokio::time::timeout(grace, &mut releasing).await {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => releasing = Box::pin(std::future::ready(Err(error))),
        Err(_) => {}
    }
    if worker.is_alive() {
        if worker.silence() <= asked_at.elapsed() && incarnation.has_others() {
            tracing::warn!(worker = %worker.id(), %thread_id, "worker does not end a turn that it was told to interrupt; it gets no new turns");
            return Some(releasing);
        }
        incarnation.give_up("it did not end a turn that it was told to interrupt");
    }
    worker.exited().await;
    None
}

/// Waits until Codex has let go of the thread of a turn that it did not end, and ends what the turn has left.
pub(super) async fn let_go(
    worker: Arc<Worker>,
    thread_id: ThreadId,
    mut releasing: Releasing,
    // Held for as long: a turn to which nobody listens is nobody's, and the worker is killed for it.
    mut route: Option<Route>,
    began_at: crate::process::Moment,
) {
    let released = async {
        while let Err(error) = releasing.await {
            tracing::debug!(worker = %worker.id(), %thread_id, %error, "a thread could not be released");
            if !worker.is_alive() {
                return;
            }
            worker.stop_unheard(&thread_id).await;
            if !worker.runs_turn(&thread_id) {
                // It is one that can't be released, as ephemeral ones.
                return worker.forget_thread(&thread_id).await;
            }
            releasing = release(&worker, &thread_id);
        }
    };
    let declined = async {
        while let Some(message) = hear(route.as_mut()).await {
            if let ThreadMessage::Asked(asked) = message {
                worker.decline(&asked.call);
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        () = released => {}
        () = declined => {}
    }
    end_commands(&worker, thread_id, Vec::new(), began_at).await;
}
