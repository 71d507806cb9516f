//! The task that owns a turn.
//!
//! It tells the turn's machine what happens (in the queue, in the mailbox, on the worker, and what came
//! of its own acts) and does what the machine says. It holds what the turn holds: its ticket, its
//! thread, its lease of a worker, the route on which the worker speaks. It never waits for one thing
//! alone, and ends with the machine; what is under way then is dropped.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use super::Engine;
use super::acts::{Releasing, end_commands, let_go};
use super::keeping::Keeping;
use super::open;
use super::replies::Replies;
use crate::app_server::decode::{News, Scope, TurnEnd};
use crate::app_server::message::Told;
use crate::app_server::thread_error::ThreadError;
use crate::model::event::{Event, Usage};
use crate::model::id::ThreadId;
use crate::model::outcome::Outcome;
use crate::model::question::{Question, QuestionKind};
use crate::model::request::{QuestionPolicy, TurnRequest};
use crate::model::workspace::Workspace;
use crate::pool::Lease;
use crate::process;
use crate::registry::ledger::Trouble;
use crate::registry::threads::{SeenTurn, ThreadLock};
use crate::turn::admission::{QueuePosition, Ticket};
use crate::turn::clocks::Clocks;
use crate::turn::machine::{Act, Begun, Input, Machine, OpenError, Opened, Policy, Terms};
use crate::turn::turn::{Command, Mailbox, Phase, Turn};
use crate::worker::thread::LoadedThread;
use crate::worker::{Route, ThreadMessage, WorkerExit};

/// After how many messages since the clocks were looked at the rest is, although there are more: a flood
/// would keep clocks and commands from being looked at at all.
const FLOOD: u32 = 64;

/// The driver of one turn.
pub(super) struct Driver {
    pub(super) engine: Arc<Engine>,
    pub(super) turn: Arc<Turn>,
    pub(super) request: Arc<TurnRequest>,
    pub(super) workspace: Arc<Workspace>,
    pub(super) ticket: Arc<Ticket>,
    machine: Machine,
    // Empty between two inputs; kept, since most inputs have an act.
    acts: Vec<Act>,
    pub(super) replies: Replies,
    pub(super) keeping: Keeping,
    // What is counted already of what the turn has used.
    counted: Usage,
    pub(super) suspicion: open::Suspicion,
    // What is under way. Declared before what it is about.
    doing: FuturesUnordered<Doing>,
    pub(super) held: Option<Held>,
}

type Doing = Pin<Box<dyn Future<Output = Done> + Send>>;

/// What came of something that was begun.
pub(super) enum Done {
    Opened(Result<Box<open::Opened>, OpenError>),
    Started { loaded: Box<LoadedThread>, outcome: Result<String, ThreadError> },
    // Codex has not let go of the thread yet, where that is under way.
    GivenUp(Option<Releasing>),
    // Whether the turn's thread is kept.
    Kept(Result<(), Trouble>),
    // The turn's thread is told whether Codex has it on disk or not.
    ToldAnyway,
    // Whether more room for the turn's events is kept.
    Reserved(Result<(), Trouble>),
    // Codex will tell the end.
    Interrupted,
    // What needs nothing of what is held.
    Input(Box<Input>),
}

impl Done {
    pub(super) fn input(input: Input) -> Done {
        Done::Input(Box::new(input))
    }
}

/// An open thread, for the turn alone.
pub(super) struct Held {
    pub(super) thread_id: ThreadId,
    // Before Codex could have started a command for the turn.
    pub(super) began_at: process::Moment,
    pub(super) loaded: LoadedThread,
    // In the order of [`open::Opened`]. `None` once the worker has ended.
    route: Option<Route>,
    // Shared with the worker's books for as long as Codex goes on with a turn that was given up.
    pub(super) lease: Arc<Lease>,
    pub(super) thread: ThreadLock<LoadedThread>,
    // Whether nothing was written of the thread before this turn.
    was_blank: bool,
    // Codex has said in this turn that it could not write the thread down.
    pub(super) is_unsaved: bool,
}

/// Something that the turn's machine has to be told.
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one, and live for one line")]
enum Happening {
    Done(Done),
    Heard(Option<ThreadMessage>),
    Wanted(Command),
    Moved,
    Later,
}

impl Driver {
    pub(super) fn new(
        engine: Arc<Engine>,
        turn: Arc<Turn>,
        request: Arc<TurnRequest>,
        workspace: Arc<Workspace>,
        ticket: Arc<Ticket>,
    ) -> Driver {
        let timeouts = &engine.settings.timeouts;
        let jitter = 0.5 + fastrand::f64();
        let terms = Terms::new(&turn.id.0, &request, timeouts.interrupt_grace, jitter);
        let machine = Machine::new(terms, Clocks::new(&request.turn_options, timeouts.tool));
        let (ledger, request_id) = (Arc::clone(&engine.ledger), request.request_id.clone());
        let keeping = Keeping::new(ledger, Arc::clone(&turn), request_id);
        Driver {
            engine,
            turn,
            request,
            workspace,
            ticket,
            machine,
            acts: Vec::new(),
            replies: Replies::default(),
            keeping,
            counted: Usage::default(),
            suspicion: open::Suspicion::default(),
            doing: FuturesUnordered::new(),
            held: None,
        }
    }

    /// Drives the turn until it has ended, and gives back what it held but its ticket. Its end has to be
    /// kept.
    pub(super) async fn run(mut self, mailbox: &mut Mailbox) -> (Outcome, Keeping) {
        let mut position = self.ticket.position();
        let mut in_a_row = 0;
        let mut happening = Happening::Moved;
        loop {
            in_a_row = match happening {
                Happening::Heard(_) => in_a_row + 1,
                // In a flood these go before the clocks, and don't put them off.
                Happening::Done(_) | Happening::Wanted(_) | Happening::Moved => in_a_row,
                Happening::Later => 0,
            };
            let input = match happening {
                Happening::Done(done) => self.note_done(done),
                Happening::Heard(message) => self.note_heard(message),
                Happening::Wanted(command) => Some(self.replies.note(command)),
                Happening::Moved => Some(self.note_position(*position.borrow_and_update())),
                Happening::Later => Some(Input::Tick),
            };
            if let Some(outcome) = input.and_then(|input| self.feed(input)) {
                if let Some(held) = &mut self.held {
                    held.decline_unheard();
                }
                self.turn.keep_questions(self.machine.into_record());
                return (outcome, self.keeping);
            }
            let wake_at = self.machine.wake_at();
            let route = self.held.as_mut().and_then(|held| held.route.as_mut());
            let route = route.filter(|_| self.machine.listens());
            happening = tokio::select! {
                biased;
                // First what has happened: an end already here beats every clock and every command, and
                // what Codex told before it answered is heard before the answer.
                message = hear(route), if in_a_row < FLOOD => Happening::Heard(message),
                // Then what came of what was begun. A flood keeps it back no longer than the clocks.
                Some(done) = self.doing.next() => Happening::Done(done),
                // What is wanted of the turn; above its queue, so that a turn that is to stop does
                // not begin.
                Some(command) = mailbox.recv() => Happening::Wanted(command),
                // The ticket lives as long as we do.
                Ok(()) = position.changed(), if self.machine.waits() => Happening::Moved,
                // Last the clocks: whatever else there is goes before them.
                () = until(wake_at) => Happening::Later,
                // But for a flood, in which they are looked at all the same.
                () = std::future::ready(()), if in_a_row >= FLOOD => Happening::Later,
            };
        }
    }

    /// Begins something, and tells the machine what comes of it. What it asks of the worker is asked
    /// now, so that acts reach the worker in their order.
    pub(super) fn begin(&mut self, doing: impl Future<Output = Done> + Send + 'static) {
        let mut doing: Doing = Box::pin(doing);
        // Polled again as soon as it is among the others.
        match doing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => self.doing.push(Box::pin(std::future::ready(done))),
            Poll::Pending => self.doing.push(doing),
        }
    }

    fn feed(&mut self, input: Input) -> Option<Outcome> {
        let mut acts = std::mem::take(&mut self.acts);
        self.machine.on(input, Instant::now(), &mut acts);
        let mut outcome = None;
        for act in acts.drain(..) {
            match act {
                Act::End(ended) => {
                    self.count(ended.usage());
                    outcome = Some(ended);
                }
                Act::Tell(Event::TokenUsageUpdated(told)) => {
                    self.count(told.usage.unwrap_or_default());
                    self.perform(Act::Tell(Event::TokenUsageUpdated(told)));
                }
                act => self.perform(act),
            }
        }
        self.acts = acts;
        outcome
    }

    /// Counts what the turn has used, of which this is all until now.
    fn count(&mut self, used: Usage) {
        self.engine.quotas.count(used.since(self.counted));
        self.counted = used;
    }

    fn note_position(&self, position: QueuePosition) -> Input {
        match position {
            QueuePosition::Waiting(number) => Input::Queued(number),
            QueuePosition::Running => {
                self.turn.set_phase(Phase::Running);
                Input::Admitted
            }
        }
    }

    fn note_heard(&mut self, message: Option<ThreadMessage>) -> Option<Input> {
        match message {
            Some(ThreadMessage::Told(told)) => {
                if told.is_of_lost_history() {
                    self.engine.pool.doubt_home();
                }
                if let Some(held) = &mut self.held {
                    let is_unsaved = held.note_unsaved(&told);
                    held.count_turns(&told);
                    if held.note_history(&told) || is_unsaved {
                        held.keep_facts(&self.engine.contexts);
                    }
                    if self.keeping.waits_for_codex() && held.is_written_down(&told) {
                        self.keeping.note_written_down();
                    }
                }
                Some(Input::Told(told))
            }
            Some(ThreadMessage::Asked(asked)) => {
                let policy = self.policy(&asked.question);
                Some(Input::Asked(asked, policy))
            }
            Some(ThreadMessage::Skipped(line)) => Some(Input::Skipped(line)),
            None => {
                let held = self.held.as_mut()?;
                let (route, began_at) = (held.route.take()?, held.began_at);
                let (worker, thread_id) = (Arc::clone(held.lease.worker()), held.thread_id.clone());
                self.begin(async move {
                    if !worker.is_alive() {
                        return Done::input(Input::WorkerLost(worker.exited().await));
                    }
                    // Codex goes on with a turn that can't be followed any more.
                    worker.stop_unheard(&thread_id).await;
                    end_commands(&worker, thread_id, Vec::new(), began_at).await;
                    let (cause, stderr_tail) = (route.overflowed(), Vec::new());
                    Done::input(Input::WorkerLost(Arc::new(WorkerExit { cause, stderr_tail })))
                });
                None
            }
        }
    }

    /// Who lends a function answers for it; all else is asked of who wants that.
    fn policy(&self, question: &Question) -> Policy {
        let policy = self.request.question_policy;
        let is_asked = match question.kind {
            Some(QuestionKind::ToolCall(_)) => true,
            // Nobody could answer it.
            Some(QuestionKind::Unknown(_)) | None => false,
            Some(_) => policy == QuestionPolicy::Ask,
        };
        if !is_asked {
            return Policy::Decline;
        }
        let default = self.engine.settings.timeouts.answer_under(policy);
        let within = self.request.turn_options.answer_timeout.unwrap_or(default);
        let until = SystemTime::now().checked_add(within).map(Into::into);
        let worker = self.held.as_ref().map(|held| held.lease.worker());
        let most_bytes = worker.map_or(usize::MAX, |worker| worker.max_line_bytes());
        let protected = worker.map(|worker| worker.protected().clone()).unwrap_or_default();
        Policy::Ask { until, within, most_bytes, protected }
    }

    fn note_done(&mut self, done: Done) -> Option<Input> {
        match done {
            Done::Input(input) => Some(*input),
            Done::Interrupted => None,
            Done::Kept(kept) => {
                self.keeping.note_kept(kept);
                None
            }
            Done::ToldAnyway => {
                self.keeping.note_written_down();
                None
            }
            Done::Reserved(kept) => {
                let reserving = self.keeping.note_reserved(kept);
                self.wait_for_reserve(reserving);
                None
            }
            Done::Opened(Ok(opened)) => {
                let open::Opened {
                    thread_id, origin, loaded, warnings, route, lease, thread, ..
                } = *opened;
                let (began_at, route) = (process::Moment::now(), Some(route));
                let context = self.request.context.as_ref();
                let eviction = context.and_then(|key| self.engine.contexts.eviction(key));
                let opened = Opened { thread_id: thread_id.clone(), origin, eviction, warnings };
                let lease = Arc::new(lease);
                self.turn.note_worker(lease.worker().id().slot_name());
                let (was_blank, is_unsaved) = (thread.facts.is_blank, false);
                self.held = Some(Held {
                    thread_id,
                    began_at,
                    loaded,
                    route,
                    lease,
                    thread,
                    was_blank,
                    is_unsaved,
                });
                Some(Input::Opened(Ok(opened)))
            }
            Done::Opened(Err(error)) => Some(Input::Opened(Err(error))),
            Done::GivenUp(releasing) => {
                let held = self.held.as_mut()?;
                held.thread.loaded = None;
                if let Some(releasing) = releasing {
                    // No other worker could have it before.
                    held.thread.asked = Some(held.lease.worker().id().clone());
                    let (worker, route) = (Arc::clone(held.lease.worker()), held.route.take());
                    let let_go =
                        let_go(worker, held.thread_id.clone(), releasing, route, held.began_at);
                    let grace = self.engine.settings.timeouts.interrupt_grace;
                    self.engine.pool.outlast(Arc::clone(&held.lease), grace, let_go);
                }
                Some(Input::GivenUp)
            }
            Done::Started { loaded, outcome } => {
                let held = self.held.as_mut()?;
                // Also where Codex did not take the turn: it may have taken its settings. Not where
                // the thread was given up meanwhile.
                held.loaded = *loaded;
                held.thread.facts.left = Some(held.loaded.left());
                if let Some(known) = &mut held.thread.loaded {
                    known.clone_from(&held.loaded);
                }
                let begun = outcome.map(|codex_turn_id| {
                    let worker = held.lease.worker();
                    let tells_settings = worker.defaults().tells_settings;
                    let options = &self.request.thread_options;
                    let route = held.route.as_mut();
                    Begun {
                        codex_turn_id,
                        settings: Some(held.loaded.turn_settings(options, &self.workspace)),
                        gate: held.loaded.gate(options, &self.workspace, tells_settings),
                        usage: held.thread.facts.usage,
                        redactor: worker.redactor().clone(),
                        may_have_goal: worker.may_have_goal(&held.thread_id),
                        stopped: worker.take_stopped_turns(&held.thread_id),
                        mcp_servers: route.map(Route::take_mcp_servers).unwrap_or_default(),
                    }
                });
                Some(Input::Started(begun))
            }
        }
    }
}

impl Held {
    /// Whether it follows from this that Codex has written the thread down.
    fn is_written_down(&self, told: &Told) -> bool {
        let is_of_turn =
            matches!(told.news, News::TurnStarted { .. } | News::Event(_) | News::TurnEnded(_));
        let Scope { thread_id, turn_id } = &told.scope;
        is_of_turn && turn_id.is_some() && thread_id.as_deref() == Some(self.thread_id.as_str())
    }

    /// Notes that Codex could not write the thread down. One of which nothing was written before is as blank
    /// as it was: what it has goes with its worker.
    fn note_unsaved(&mut self, told: &Told) -> bool {
        if !told.is_of_lost_history() {
            return false;
        }
        self.is_unsaved = true;
        let is_news = self.was_blank && !self.thread.facts.is_blank;
        self.thread.facts.is_blank |= self.was_blank;
        is_news
    }

    /// Notes whether the thread has a history now, of which nothing was known before: Codex tells of items
    /// when it has written down what they answer.
    fn note_history(&mut self, told: &Told) -> bool {
        let is_of_thread = told.scope.thread_id.as_deref() == Some(self.thread_id.as_str());
        let can_be = self.thread.facts.is_blank && !self.is_unsaved;
        let is_news = can_be && told.is_of_an_item() && is_of_thread;
        self.thread.facts.is_blank &= !is_news;
        is_news
    }

    /// Counts the turns that Codex has ended on the thread: it has them from now on.
    fn count_turns(&mut self, told: &Told) {
        let News::TurnEnded(end) = &told.news else { return };
        let Scope { thread_id: Some(thread_id), turn_id: Some(id) } = &told.scope else { return };
        let turns = self.thread.facts.turns.as_mut();
        if let Some(turns) = turns.filter(|_| *thread_id == self.thread_id.as_str()) {
            turns.count += 1;
            let has_completed = matches!(end, TurnEnd::Completed);
            turns.last = Some(SeenTurn { id: id.clone(), has_completed });
        }
    }

    /// Says no to what Codex asked when the turn did not listen any more.
    fn decline_unheard(&mut self) {
        let Some(route) = &mut self.route else { return };
        // First, or what comes while the rest is looked at would be dropped with the route.
        route.close();
        while let Some(message) = route.try_recv() {
            if let ThreadMessage::Asked(asked) = message {
                self.lease.worker().decline(&asked.call);
            }
        }
    }
}

pub(super) async fn hear(route: Option<&mut Route>) -> Option<ThreadMessage> {
    match route {
        Some(route) => route.recv().await,
        None => std::future::pending().await,
    }
}

/// Sleeps until then, or for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
