//! One turn, as everybody sees it, and those who called for it.
//!
//! A turn is a task with a mailbox: whoever wants something of it, to stop it, to add input, to answer
//! a question, sends a [`Command`] to the task that owns it, through waiting, opening, running and
//! ending. The mailbox closes with the task, and a reply that never comes means the same: the turn has
//! ended. How far the turn is, is published as a [`Phase`]; its events are in its log.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::model::event::{Event, InterruptReason};
use crate::model::failure::FailureReason;
use crate::model::id::{CallerName, ContextKey, Tenant, TurnId};
use crate::model::policy::Policy;
use crate::model::question::{Answer, Given, Unanswerable};
use crate::model::refusal::Refusal;
use crate::model::request::{DisconnectPolicy, TurnRequest, UserInput};
use crate::registry::ledger::{KeptThreadStarted, KeptTurn};
use crate::turn::log::{Log, Numbered};
use crate::turn::machine::Record;
use crate::turn::pixels::ImageSum;
use crate::turn::retained::Retained;

/// A turn, as everybody but its task sees it.
#[derive(Debug)]
pub(crate) struct Turn {
    pub id: TurnId,
    /// Its context, unless it has none.
    pub context: Option<ContextKey>,
    /// What happened in it.
    pub log: Arc<Log>,
    /// When it was called for.
    pub created_at: SystemTime,
    started_at: OnceLock<SystemTime>,
    // The slot of the worker that it runs on, or ran on.
    worker: Mutex<Option<String>>,
    // The keys under which the turns find it: of its own request, and of those that steered
    // it.
    pub(super) requests: Mutex<Vec<RequestKey>>,
    // Whether the ledger has it.
    is_kept: AtomicBool,
    /// What is held against what is said to it, and answered in it.
    pub(super) policy: Arc<Policy>,
    /// Held by the answer that is looked at: the first that came is the first that counts.
    pub(super) answering: tokio::sync::Mutex<()>,
    disconnect_policy: DisconnectPolicy,
    // Without a bound: the task reads it at once, whatever the turn waits for. Gone with the task: an ended
    // turn is kept, and it would be the largest part of a small one.
    mailbox: Mutex<Option<mpsc::UnboundedSender<Command>>>,
    phase: Mutex<Phase>,
    // What became of Codex's questions, once it has ended.
    questions: OnceLock<Record>,
    // How many read it and keep it alive.
    callers: Mutex<usize>,
    steered: Mutex<Steered>,
}

/// What was added to a turn, or is about to be.
#[derive(Debug, Clone, Copy, Default)]
struct Steered {
    count: usize,
    bytes: usize,
    /// Those of the turn's own request among them.
    images: ImageSum,
}

/// Most additions to one turn.
const MOST_STEERED: usize = 256;

/// Most bytes of all of them. Codex keeps them as long as the turn runs, and we some of them until it has
/// taken them.
const MOST_STEERED_BYTES: usize = 16 << 20;

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
        given: Box<Given>,
        /// Gets to know whether the answer counts.
        reply: oneshot::Sender<Result<(), Unanswerable>>,
    },
}

/// How long before its deadline a caller that goes goes for it: a client's clock started earlier than
/// ours. Of a short time, no more than a quarter.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

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
        let id = TurnId::generate();
        let (mailbox, commands) = mpsc::unbounded_channel();
        let turn = Arc::new(Turn {
            log: Arc::new(Log::new(id.clone(), retained)),
            id,
            context: request.context.clone(),
            created_at: SystemTime::now(),
            started_at: OnceLock::new(),
            worker: Mutex::default(),
            requests: Mutex::default(),
            is_kept: AtomicBool::default(),
            policy: Arc::clone(&request.policy),
            answering: tokio::sync::Mutex::default(),
            disconnect_policy: request.disconnect_policy,
            mailbox: Mutex::new(Some(mailbox)),
            phase: Mutex::new(Phase::Waiting),
            questions: OnceLock::new(),
            callers: Mutex::default(),
            steered: Mutex::default(),
        });
        (turn, commands)
    }

    /// A turn of an earlier process, which has ended with this event.
    pub(super) fn restored(
        kept: KeptTurn,
        terminal: Numbered,
        retained: &Arc<Retained>,
    ) -> Arc<Turn> {
        let KeptTurn { turn_id: id, context, created_at, started_at, thread_started, .. } = kept;
        let (told, worker) = match thread_started {
            Some(KeptThreadStarted { worker, event, .. }) => {
                let is_meant = |event: &Event| matches!(event, Event::ThreadStarted(_));
                (Numbered::of_kept(event, &id, is_meant), worker)
            }
            None => (None, None),
        };
        let told = told.filter(|told| told.sequence < terminal.sequence);
        let log = Log::restored(id.clone(), Arc::clone(retained), told, terminal);
        Arc::new(Turn {
            id,
            context,
            log: Arc::new(log),
            created_at,
            started_at: started_at.into(),
            worker: Mutex::new(worker),
            requests: Mutex::default(),
            is_kept: AtomicBool::new(true),
            // It takes nothing any more.
            policy: Arc::default(),
            answering: tokio::sync::Mutex::default(),
            // Nobody can end it by going.
            disconnect_policy: DisconnectPolicy::Continue,
            mailbox: Mutex::default(),
            phase: Mutex::new(Phase::Over),
            questions: OnceLock::new(),
            callers: Mutex::default(),
            steered: Mutex::default(),
        })
    }

    /// Asks for its end. The first reason stays.
    pub(crate) fn interrupt(&self, reason: InterruptReason) {
        self.send(Command::Stop(reason));
    }

    /// Adds input to what runs, and gives Codex's id of it. Waits while the thread is being opened.
    ///
    /// # Errors
    /// [`Refusal::NotSteerable`] when it waits in its queue, has ended, or Codex can't;
    /// [`Refusal::SteeringFull`]; [`Refusal::InvalidInput`] where `images`, which are those of the
    /// inputs, are too many or too large together with the others of the turn.
    pub(super) async fn steer(
        &self,
        inputs: Vec<UserInput>,
        images: ImageSum,
    ) -> Result<String, Refusal> {
        let bytes = inputs.iter().map(UserInput::bytes).sum();
        self.count_steered(bytes, images)?;
        let (reply, steered) = oneshot::channel();
        self.send(Command::Steer { inputs, reply });
        let steered = steered.await.unwrap_or_else(|_| Err(HAS_ENDED.to_owned()));
        steered.map_err(|cause| {
            // Nobody has it. Of one who does not wait for the reply that can't be known: it counts.
            let mut steered = self.steered();
            steered.count -= 1;
            steered.bytes -= bytes;
            steered.images = steered.images.without(images);
            Refusal::NotSteerable { turn_id: self.id.clone(), cause }
        })
    }

    /// The images that it has been given.
    pub(super) fn images(&self) -> ImageSum {
        self.steered().images
    }

    /// Notes the images of its own request.
    pub(super) fn count_images(&self, images: ImageSum) {
        self.steered().images = images;
    }

    fn count_steered(&self, bytes: usize, images: ImageSum) -> Result<(), Refusal> {
        let mut steered = self.steered();
        if steered.count >= MOST_STEERED || bytes > MOST_STEERED_BYTES.saturating_sub(steered.bytes)
        {
            return Err(Refusal::SteeringFull {
                turn_id: self.id.clone(),
                steered: steered.count,
                bytes: steered.bytes,
                most: MOST_STEERED,
                most_bytes: MOST_STEERED_BYTES,
            });
        }
        let images = steered.images.with(images);
        if let Some(fault) = images.fault() {
            return Err(Refusal::field("inputs", format!("the last image {fault}")));
        }
        steered.count += 1;
        steered.bytes += bytes;
        steered.images = images;
        Ok(())
    }

    fn steered(&self) -> MutexGuard<'_, Steered> {
        self.steered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers what Codex asks in it. The first answer counts, and may be given again, also when the
    /// turn has ended.
    ///
    /// # Errors
    /// [`Refusal::RequestNotFound`]; [`Refusal::RequestAlreadyResolved`]; [`Refusal::InvalidInput`] where
    /// it does not fit the question, which waits on.
    pub(crate) async fn answer(
        &self,
        request_id: String,
        answer: Answer,
        by: CallerName,
    ) -> Result<(), Refusal> {
        let (reply, answered) = oneshot::channel();
        let given = Box::new(Given::new(answer, by));
        let digest = given.digest;
        self.send(Command::Answer { request_id: request_id.clone(), given, reply });
        let outcome = match (answered.await, self.questions.get()) {
            (Ok(outcome), _) => outcome,
            (Err(_), Some(record)) => record.look_up(&request_id, digest),
            (Err(_), None) => Err(Unanswerable::Resolved),
        };
        let turn_id = || self.id.clone();
        outcome.map_err(|why| match why {
            Unanswerable::Unknown => Refusal::RequestNotFound { turn_id: turn_id(), request_id },
            Unanswerable::Resolved => {
                Refusal::RequestAlreadyResolved { turn_id: turn_id(), request_id }
            }
            Unanswerable::Unfit(faults) => Refusal::InvalidInput(faults),
            Unanswerable::Denied(denied) => Refusal::PolicyDenied(denied),
        })
    }

    /// Keeps what became of Codex's questions: the turn has ended.
    pub(super) fn keep_questions(&self, record: Record) {
        // It ends once.
        let _ = self.questions.set(record);
    }

    /// When it left the queue, once it has.
    pub(crate) fn started_at(&self) -> Option<SystemTime> {
        self.started_at.get().copied()
    }

    /// Whether the ledger has it, or will have it.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept.load(Ordering::Acquire)
    }

    /// Notes whether the ledger has it.
    pub(super) fn set_kept(&self, is_kept: bool) {
        self.is_kept.store(is_kept, Ordering::Release);
    }

    /// The worker that it runs on, or ran on, by its slot in the pool.
    pub(crate) fn worker(&self) -> Option<String> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes the worker that it runs on.
    pub(super) fn note_worker(&self, slot: String) {
        *self.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(slot);
    }

    /// Whether it ended with the sidecar that ran it.
    pub(crate) fn was_lost(&self) -> bool {
        self.log.summary().reason == FailureReason::SidecarRestarted.as_str()
    }

    /// Whether it has left the queue and has not ended.
    pub(crate) fn is_running(&self) -> bool {
        *self.phase() == Phase::Running && !self.log.has_ended()
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        *self.phase() = phase;
        if phase == Phase::Running {
            // It leaves the queue once.
            let _ = self.started_at.set(SystemTime::now());
        }
        if phase == Phase::Over {
            self.mailbox().take();
        }
    }

    /// Tells the turn's task what is wanted. Where it has ended, the command is dropped with its reply.
    fn send(&self, command: Command) {
        if let Some(mailbox) = &*self.mailbox() {
            // The task may end just now.
            let _ = mailbox.send(command);
        }
    }

    fn mailbox(&self) -> MutexGuard<'_, Option<mpsc::UnboundedSender<Command>>> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Vec<RequestKey>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn callers(&self) -> MutexGuard<'_, usize> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a caller of this turn. When the last one goes, the disconnect policy decides.
    pub(crate) fn join(self: &Arc<Turn>) -> Caller {
        *self.callers() += 1;
        Caller {
            presence: Arc::new(Presence {
                turn: Arc::clone(self),
                left: AtomicBool::new(false),
                deadline_from: OnceLock::new(),
            }),
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
    // From when on who leaves leaves because of its deadline.
    deadline_from: OnceLock<Instant>,
}

impl Caller {
    pub(crate) fn turn(&self) -> &Arc<Turn> {
        &self.presence.turn
    }

    /// Counts the caller as gone when its deadline passes, and for its deadline where it goes shortly
    /// before, even while nobody polls its stream
    /// because the other side does not read.
    pub(crate) fn leave_at(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        // A call has one.
        let _ = self.presence.deadline_from.set(deadline - DEADLINE_MARGIN.min(left / 4));
        let presence = Arc::clone(&self.presence);
        tokio::spawn(
            async move {
                tokio::select! {
                    () = presence.turn.log.ended() => {}
                    () = tokio::time::sleep_until(deadline) => {
                        presence.leave(InterruptReason::DeadlineExceeded);
                    }
                }
            }
            .in_current_span(),
        );
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
        let mut callers = self.turn.callers();
        *callers -= 1;
        // Under the lock: a turn that somebody has joined is not interrupted for want of callers. An ended
        // one no longer looks.
        if *callers == 0 && self.turn.disconnect_policy == DisconnectPolicy::Interrupt {
            self.turn.interrupt(reason);
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let deadline_from = self.presence.deadline_from.get();
        self.presence.leave(match deadline_from {
            Some(from) if Instant::now() >= *from => InterruptReason::DeadlineExceeded,
            _ => InterruptReason::CallerDisconnected,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::turn::pixels::MAX_DECODED_IMAGES_BYTES;
    use crate::turn::pixels::tests::decoded;

    #[tokio::test]
    async fn additions_are_counted_and_those_that_were_not_taken_given_back() {
        let retained = Retained::new(1 << 20, 1 << 20);
        let (turn, mut mailbox) = Turn::new(&TurnRequest::default(), retained);
        let answering = tokio::spawn(async move {
            let mut count = 0;
            while let Some(command) = mailbox.recv().await {
                let Command::Steer { reply, .. } = command else { panic!() };
                count += 1;
                let _ =
                    reply.send(if count <= 10 { Err("no".to_owned()) } else { Ok(String::new()) });
            }
            count
        });
        let steer = |bytes: usize| {
            turn.steer(vec![UserInput::Text("x".repeat(bytes))], ImageSum::default())
        };
        for _ in 0..10 {
            let refused = steer(4 << 20).await.unwrap_err();
            assert!(matches!(refused, Refusal::NotSteerable { .. }), "{refused}");
        }
        for _ in 0..3 {
            steer(5 << 20).await.unwrap();
        }
        let full = steer(2 << 20).await.unwrap_err();
        assert!(matches!(full, Refusal::SteeringFull { steered: 3, .. }), "{full}");
        for _ in 3..MOST_STEERED {
            steer(1).await.unwrap();
        }
        let full = steer(0).await.unwrap_err();
        assert!(matches!(full, Refusal::SteeringFull { steered: MOST_STEERED, .. }), "{full}");
        drop(turn);
        assert_eq!(answering.await.unwrap(), 10 + MOST_STEERED);
    }

    /// The client's clock strikes before ours, as a rule.
    #[tokio::test(start_paused = true)]
    async fn who_goes_shortly_before_its_deadline_goes_for_it() {
        use InterruptReason::{CallerDisconnected, DeadlineExceeded};
        for (deadline, stays, reason) in [
            (Some(1000), 999, DeadlineExceeded),
            (Some(1000), 901, DeadlineExceeded),
            (Some(1000), 899, CallerDisconnected),
            (Some(1000), 2000, DeadlineExceeded),
            // Of a short time not much is short.
            (Some(40), 31, DeadlineExceeded),
            (Some(40), 20, CallerDisconnected),
            (Some(0), 0, DeadlineExceeded),
            (None, 999, CallerDisconnected),
        ] {
            let retained = Retained::new(1 << 20, 1 << 20);
            let (turn, mut mailbox) = Turn::new(&TurnRequest::default(), retained);
            let caller = turn.join();
            if let Some(deadline) = deadline {
                caller.leave_at(Instant::now() + Duration::from_millis(deadline));
            }
            tokio::time::sleep(Duration::from_millis(stays)).await;
            drop(caller);
            let command = mailbox.recv().await;
            let is_told = matches!(command, Some(Command::Stop(told)) if told == reason);
            assert!(is_told, "{deadline:?}, {stays}: {command:?}");
        }
    }

    #[tokio::test]
    async fn images_that_are_added_count_with_the_turns_own() {
        let retained = Retained::new(1 << 20, 1 << 20);
        let (turn, mut mailbox) = Turn::new(&TurnRequest::default(), retained);
        let answering = tokio::spawn(async move {
            let mut outcomes = [Err("no".to_owned()), Ok(String::new())].into_iter();
            while let Some(Command::Steer { reply, .. }) = mailbox.recv().await {
                let _ = reply.send(outcomes.next().unwrap());
            }
        });
        let steer = |images| turn.steer(vec![UserInput::Text("x".to_owned())], images);
        let third = decoded(MAX_DECODED_IMAGES_BYTES / 3);
        turn.count_images(third.with(third));
        let refused = steer(third).await.unwrap_err();
        assert!(matches!(refused, Refusal::NotSteerable { .. }), "{refused}");
        steer(third).await.unwrap();
        let full = steer(third).await.unwrap_err();
        assert!(matches!(full, Refusal::InvalidInput(_)), "{full}");
        drop(turn);
        answering.await.unwrap();
    }

    #[test]
    fn a_turn_that_somebody_joined_in_time_is_not_interrupted_when_the_one_before_leaves() {
        for _ in 0..5_000 {
            let retained = Retained::new(1 << 20, 1 << 20);
            let (turn, mut mailbox) = Turn::new(&TurnRequest::default(), retained);
            let before = turn.join();
            let (is_stopped, _after) = thread::scope(|scope| {
                scope.spawn(move || drop(before));
                let after = turn.join();
                (mailbox.try_recv().is_ok(), after)
            });
            assert!(is_stopped || mailbox.try_recv().is_err());
        }
    }
}
