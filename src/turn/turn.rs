//! One turn, as everybody sees it, and those who called for it.
//!
//! A turn is a task with a mailbox: whoever wants something of it, to stop it, to add input, to answer
//! a question, sends a [`Command`] to the task that owns it, through waiting, opening, running and
//! ending. The mailbox closes with the task, and a reply that never comes means the same: the turn has
//! ended. How far the turn is, is published as a [`Phase`]; its events are in its log.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::model::event::InterruptReason;
use crate::model::id::{ContextKey, Tenant, TurnId};
use crate::model::question::{Answer, Unanswerable};
use crate::model::refusal::Refusal;
use crate::model::request::{DisconnectPolicy, TurnRequest, UserInput};
use crate::turn::admission::Lane;
use crate::turn::log::{Log, Retained};
use crate::turn::machine::Record;

/// A turn, as everybody but its task sees it.
#[derive(Debug)]
pub(crate) struct Turn {
    pub id: TurnId,
    /// Whose it is.
    pub tenant: Tenant,
    /// Its context, unless it has none.
    pub context: Option<ContextKey>,
    /// What it must run in order with.
    pub lane: Option<Lane>,
    /// What happened in it.
    pub log: Arc<Log>,
    // The keys under which the turns find it: of its own request, and of those that steered
    // it.
    pub(super) requests: Mutex<Vec<RequestKey>>,
    disconnect_policy: DisconnectPolicy,
    // Without a bound: the task reads it at once, whatever the turn waits for.
    mailbox: mpsc::UnboundedSender<Command>,
    phase: Mutex<Phase>,
    // What became of Codex's questions, once it has ended.
    questions: OnceLock<Record>,
    callers: AtomicUsize,
}

pub(super) type RequestKey = (Tenant, String);

/// What is wanted of a turn.
#[derive(Debug)]
pub(super) enum Command {
    /// Its end. The first reason stays.
    Stop(InterruptReason),
    /// More input for what runs.
    Steer {
        inputs: Vec<UserInput>,
        /// Gets Codex's id of the turn that took it, or why none did.
        reply: oneshot::Sender<Result<String, String>>,
    },
    /// An answer to what Codex asks in it.
    Answer {
        request_id: String,
        answer: Answer,
        /// Gets to know whether the answer counts.
        reply: oneshot::Sender<Result<(), Unanswerable>>,
    },
}

/// Where a turn's task finds what is wanted of the turn.
pub(super) type Mailbox = mpsc::UnboundedReceiver<Command>;

/// Why a turn takes nothing any more.
pub(super) const HAS_ENDED: &str = "it has ended";

/// How far a turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits in its queue.
    Waiting,
    /// It has left the queue.
    Running,
    Over,
}

impl Turn {
    /// A turn that has not begun, and the mailbox for its task.
    pub(super) fn new(request: &TurnRequest, retained: Arc<Retained>) -> (Arc<Turn>, Mailbox) {
        let lane = match (&request.context, &request.explicit_thread) {
            (Some(key), _) => Some(Lane::Context(key.clone())),
            (None, Some(id)) => Some(Lane::Thread(request.tenant.clone(), id.clone())),
            (None, None) => None,
        };
        let id = TurnId::generate();
        let (mailbox, commands) = mpsc::unbounded_channel();
        let turn = Arc::new(Turn {
            log: Arc::new(Log::new(id.clone(), retained)),
            id,
            tenant: request.tenant.clone(),
            context: request.context.clone(),
            lane,
            requests: Mutex::default(),
            disconnect_policy: request.disconnect_policy,
            mailbox,
            phase: Mutex::new(Phase::Waiting),
            questions: OnceLock::new(),
            callers: AtomicUsize::new(0),
        });
        (turn, commands)
    }

    /// Asks for its end. The first reason stays.
    pub(crate) fn interrupt(&self, reason: InterruptReason) {
        // One that has ended needs no stopping.
        let _ = self.mailbox.send(Command::Stop(reason));
    }

    /// Adds input to what runs, and gives Codex's id of it. Waits while the thread is being opened.
    ///
    /// # Errors
    /// [`Refusal::NotSteerable`] when it waits in its queue, has ended, or Codex can't.
    pub(crate) async fn steer(&self, inputs: Vec<UserInput>) -> Result<String, Refusal> {
        let (reply, steered) = oneshot::channel();
        // A closed mailbox drops the reply.
        let _ = self.mailbox.send(Command::Steer { inputs, reply });
        let steered = steered.await.unwrap_or_else(|_| Err(HAS_ENDED.to_owned()));
        steered.map_err(|cause| Refusal::NotSteerable { turn_id: self.id.clone(), cause })
    }

    /// Answers what Codex asks in it. The first answer counts, and may be given again, also when the
    /// turn has ended.
    ///
    /// # Errors
    /// [`Refusal::RequestNotFound`], [`Refusal::RequestAlreadyResolved`], or that the question wants an
    /// answer of another kind.
    pub(crate) async fn answer(&self, request_id: String, answer: Answer) -> Result<(), Refusal> {
        let (reply, answered) = oneshot::channel();
        let command =
            Command::Answer { request_id: request_id.clone(), answer: answer.clone(), reply };
        // A closed mailbox drops the reply.
        let _ = self.mailbox.send(command);
        let outcome = match (answered.await, self.questions.get()) {
            (Ok(outcome), _) => outcome,
            (Err(_), Some(record)) => record.look_up(&request_id, &answer),
            (Err(_), None) => Err(Unanswerable::Resolved),
        };
        let turn_id = || self.id.clone();
        outcome.map_err(|why| match why {
            Unanswerable::Unknown => Refusal::RequestNotFound { turn_id: turn_id(), request_id },
            Unanswerable::Resolved => {
                Refusal::RequestAlreadyResolved { turn_id: turn_id(), request_id }
            }
            Unanswerable::OtherKind { given, wanted } => {
                let description = format!("request {request_id:?} is answered with {wanted}");
                Refusal::field(given, description)
            }
        })
    }

    /// Keeps what became of Codex's questions: the turn has ended.
    pub(super) fn keep_questions(&self, record: Record) {
        // It ends once.
        let _ = self.questions.set(record);
    }

    /// Whether it has left the queue and has not ended.
    pub(crate) fn is_running(&self) -> bool {
        *self.phase() == Phase::Running && !self.log.has_ended()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        *self.phase() = phase;
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Vec<RequestKey>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a caller of this turn. When the last one goes, the disconnect policy decides.
    pub(crate) fn join(self: &Arc<Turn>) -> Caller {
        self.callers.fetch_add(1, Ordering::AcqRel);
        Caller {
            presence: Arc::new(Presence { turn: Arc::clone(self), left: AtomicBool::new(false) }),
        }
    }
}

/// One who called for the turn, and reads it. Dropped when the stream ends, however it ends.
#[derive(Debug)]
pub(crate) struct Caller {
    presence: Arc<Presence>,
}

#[derive(Debug)]
struct Presence {
    turn: Arc<Turn>,
    left: AtomicBool,
}

impl Caller {
    pub(crate) fn turn(&self) -> &Arc<Turn> {
        &self.presence.turn
    }

    /// Counts the caller as gone when its deadline passes, even while nobody polls its stream
    /// because the other side does not read.
    pub(crate) fn leave_at(&self, deadline: Instant) {
        let presence = Arc::clone(&self.presence);
        tokio::spawn(async move {
            tokio::select! {
                () = presence.turn.log.ended() => {}
                () = tokio::time::sleep_until(deadline) => {
                    presence.leave(InterruptReason::DeadlineExceeded);
                }
            }
        });
    }

    /// Counts the caller as gone because its deadline has passed.
    pub(crate) fn deadline_passed(&self) {
        self.presence.leave(InterruptReason::DeadlineExceeded);
    }
}

impl Presence {
    fn leave(&self, reason: InterruptReason) {
        if self.left.swap(true, Ordering::AcqRel) {
            return;
        }
        let was_last = self.turn.callers.fetch_sub(1, Ordering::AcqRel) == 1;
        // An ended turn no longer looks.
        if was_last && self.turn.disconnect_policy == DisconnectPolicy::Interrupt {
            self.turn.interrupt(reason);
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.presence.leave(InterruptReason::CallerDisconnected);
    }
}
