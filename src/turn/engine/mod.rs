//! Drives turns: from a validated request to the one terminal event.
//!
//! The engine owns the order of things: lane, place, thread, worker, `turn/start`, events, end. It
//! runs one task per turn, which ends only after the turn's log has ended, whatever happens. It
//! never blocks on a reader, and it gives a turn's place, thread and worker back before it says that
//! the turn is over, so that whoever reads that may start the next one at once.

mod open;
mod owned;
mod pump;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::model::event::{Event, InterruptReason, Usage};
use crate::model::failure::{FailureReason, TurnError};
use crate::model::id::{ThreadId, TurnId};
use crate::model::outcome::Outcome;
use crate::model::refusal::Refusal;
use crate::model::request::{BusyPolicy, TurnRequest, UserInput};
use crate::pool::{Pool, Unavailable};
use crate::registry::bindings::Bindings;
use crate::registry::threads::Threads;
use crate::turn::admission::{Admission, QueuePosition, Ticket};
use crate::turn::claims::RequestIdUse;
use crate::turn::contexts::Contexts;
use crate::turn::timeouts::Timeouts;
use crate::turn::turn::{Caller, Phase, Turn};
use crate::turn::turns::Turns;
use crate::turn::workspace;
use crate::worker::Worker;
use crate::worker::thread::{LoadedThread, Workspace};

/// How the engine behaves.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Where a turn works that names no directory: the sidecar's own.
    pub default_directory: PathBuf,
    /// The clocks of turns.
    pub timeouts: Timeouts,
}

/// How often a turn that Codex has not taken yet is tried on another worker.
const OPEN_ATTEMPTS: u32 = 3;

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainState {
    /// New turns are taken.
    Serving,
    /// New turns are refused, the others run on.
    Draining,
    /// The others have been told to end.
    Interrupting,
}

/// Drives turns.
#[derive(Debug)]
pub struct Engine {
    pub(super) pool: Arc<Pool>,
    pub(super) threads: Threads<LoadedThread>,
    contexts: Contexts,
    turns: Arc<Turns>,
    admission: Arc<Admission>,
    settings: EngineSettings,
    drain: watch::Sender<DrainState>,
    pub(super) tasks: TaskTracker,
}

/// Why a turn is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Asked(InterruptReason),
    TurnTimeout,
    IdleTimeout,
    // More came into force than was asked.
    SettingsNotApplied,
    Budget,
}

/// When a turn must be over; absent clocks never strike.
#[derive(Debug)]
struct Clocks {
    turn_timeout: Option<Duration>,
    turn_deadline: Option<Instant>,
    idle_timeout: Option<Duration>,
    // No clock, but it stops a turn like one.
    max_total_tokens: Option<u64>,
    stop: watch::Receiver<Option<InterruptReason>>,
}

impl Clocks {
    fn start(request: &TurnRequest, stop: watch::Receiver<Option<InterruptReason>>) -> Clocks {
        let turn_timeout = request.turn_options.turn_timeout;
        Clocks {
            turn_timeout,
            turn_deadline: turn_timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            idle_timeout: request.turn_options.idle_timeout,
            max_total_tokens: request.turn_options.max_total_tokens.map(u64::from),
            stop,
        }
    }

    /// Waits until the turn must stop. Before it was handed to Codex there is no progress to miss.
    async fn strike(&mut self, last_progress: Option<Instant>) -> Cause {
        let idle_deadline = self.idle_deadline(last_progress);
        tokio::select! {
            biased;
            reason = stopped(&mut self.stop) => Cause::Asked(reason),
            () = until(self.turn_deadline) => Cause::TurnTimeout,
            () = until(idle_deadline) => Cause::IdleTimeout,
        }
    }

    /// As [`Clocks::strike`], if it must stop now.
    fn has_struck(&self, last_progress: Option<Instant>) -> Option<Cause> {
        let now = Instant::now();
        let is_over = |deadline: Option<Instant>| deadline.is_some_and(|deadline| deadline <= now);
        if let Some(reason) = *self.stop.borrow() {
            Some(Cause::Asked(reason))
        } else if is_over(self.turn_deadline) {
            Some(Cause::TurnTimeout)
        } else if is_over(self.idle_deadline(last_progress)) {
            Some(Cause::IdleTimeout)
        } else {
            None
        }
    }

    fn idle_deadline(&self, last_progress: Option<Instant>) -> Option<Instant> {
        last_progress?.checked_add(self.idle_timeout?)
    }

    /// What becomes of a turn that had to stop for this.
    fn outcome(
        &self,
        cause: Cause,
        (usage, thread_usage): (Usage, Usage),
        side_effects_possible: bool,
    ) -> Outcome {
        let show = |timeout: Option<Duration>| {
            humantime::format_duration(timeout.unwrap_or_default()).to_string()
        };
        let (reason, message) = match cause {
            Cause::Asked(reason) => {
                return Outcome::Interrupted { reason, usage, thread_usage };
            }
            Cause::TurnTimeout => {
                let timeout = show(self.turn_timeout);
                let message = format!("the turn was not over within its turn_timeout of {timeout}");
                (FailureReason::TurnTimeout, message)
            }
            Cause::IdleTimeout => {
                let timeout = show(self.idle_timeout);
                let message =
                    format!("the turn made no progress for its idle_timeout of {timeout}");
                (FailureReason::IdleTimeout, message)
            }
            Cause::SettingsNotApplied => {
                let message = "Codex gave the turn more rights than it asked for".to_owned();
                (FailureReason::SettingsNotApplied, message)
            }
            Cause::Budget => {
                let (used, most) =
                    (usage.total_tokens(), self.max_total_tokens.unwrap_or_default());
                let message = format!(
                    "the turn used {used} tokens, more than its max_total_tokens of {most}"
                );
                (FailureReason::BudgetExceeded, message)
            }
        };
        let error = TurnError {
            // What was too long, too dear, or given too much, would be so again; a silent provider
            // may be back.
            retryable: cause == Cause::IdleTimeout,
            side_effects_possible,
            ..TurnError::new(reason, message)
        };
        Outcome::Failed { error, usage, thread_usage }
    }
}

/// Sleeps until then, or for ever.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits for a request to stop.
async fn stopped(stop: &mut watch::Receiver<Option<InterruptReason>>) -> InterruptReason {
    // Copied out: the watch's guard must not live across an await.
    let reason = stop.wait_for(Option::is_some).await.map(|reason| *reason);
    match reason {
        Ok(reason) => reason.unwrap_or(InterruptReason::InterruptRequested),
        // The turn outlives its engine's task.
        Err(_) => std::future::pending().await,
    }
}

impl Engine {
    /// An engine over these parts.
    pub(crate) fn new(
        pool: Arc<Pool>,
        bindings: Bindings,
        turns: Arc<Turns>,
        admission: Arc<Admission>,
        settings: EngineSettings,
    ) -> Arc<Engine> {
        Arc::new(Engine {
            pool,
            threads: Threads::default(),
            contexts: Contexts::new(bindings, Arc::clone(&admission)),
            turns,
            admission,
            settings,
            drain: watch::Sender::new(DrainState::Serving),
            tasks: TaskTracker::new(),
        })
    }

    /// The contexts.
    pub(crate) fn contexts(&self) -> &Contexts {
        &self.contexts
    }

    /// The turns.
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// The workers.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Who runs and who waits.
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// Runs a turn, or joins the one that the same request started. The turn runs on by itself;
    /// what the caller holds decides, by the disconnect policy, for how long.
    ///
    /// # Errors
    /// Whatever can be known before the turn exists. What is found out later ends the turn's log.
    pub async fn run_turn(self: &Arc<Engine>, request: TurnRequest) -> Result<Caller, Refusal> {
        // First of all, so that a repeated call finds its turn whatever has changed since.
        let claim = match &request.request_id {
            None => None,
            Some(request_id) => match self.turns.claim(&request.tenant, request_id).await? {
                RequestIdUse::Repeated(turn) => return Ok(turn.join()),
                RequestIdUse::First(claim) => Some(claim),
            },
        };
        let workspace = workspace::check(
            &request.thread_options,
            &request.inputs,
            &self.settings.default_directory,
        )
        .await?;
        let request = Arc::new(request);
        let mut claim = claim;
        if request.busy_policy == BusyPolicy::Steer {
            let (engine, request) = (Arc::clone(self), Arc::clone(&request));
            // In a task of its own: a call that is cut off here, and repeated, must not steer twice.
            let steering = self.tasks.spawn(async move {
                let joined = engine.steer_running(&request).await?;
                match (joined, claim) {
                    (Some(joined), Some(claim)) => {
                        claim.settle(joined.turn());
                        Ok::<_, Refusal>((Some(joined), None))
                    }
                    (joined, claim) => Ok((joined, claim)),
                }
            });
            let fault = |error: tokio::task::JoinError| Refusal::Internal(error.to_string());
            let (joined, unsettled) = steering.await.map_err(fault)??;
            if let Some(joined) = joined {
                return Ok(joined);
            }
            claim = unsettled;
        }
        if self.is_draining() {
            return Err(Refusal::Draining { retry_after: Duration::from_secs(1) });
        }
        let turn = Turn::new(&request, Arc::clone(self.turns.retained()));
        let ticket = self.admission.admit(&turn.tenant, turn.lane.clone(), request.busy_policy)?;
        if *ticket.position().borrow() == QueuePosition::Running {
            turn.set_phase(Phase::Opening);
        }
        // Before the engine starts: a turn without a caller would be interrupted at once.
        let caller = turn.join();
        self.turns.enter(&turn);
        if let Some(claim) = claim {
            claim.settle(&turn);
        }
        let workspace = Arc::new(workspace);
        self.tasks.spawn(Arc::clone(self).drive(turn, request, workspace, ticket));
        Ok(caller)
    }

    /// Adds input to a running turn; returns Codex's id of it.
    ///
    /// # Errors
    /// What is wrong with an image; [`Refusal::NotSteerable`] when it waits, has ended, or Codex can't.
    pub async fn steer(&self, turn: &Arc<Turn>, inputs: &[UserInput]) -> Result<String, Refusal> {
        workspace::check_images(inputs).await?;
        let refused = |cause: String| Refusal::NotSteerable { turn_id: turn.id.clone(), cause };
        let live = turn.live().await.map_err(|cause| refused(cause.to_owned()))?;
        let steered = live.worker.steer_turn(&live.thread_id, &live.codex_turn_id, inputs).await;
        steered.map(|()| live.codex_turn_id).map_err(|error| refused(error.to_string()))
    }

    /// Steers the running turn of the request's context and joins it; `None` where there is none.
    async fn steer_running(&self, request: &TurnRequest) -> Result<Option<Caller>, Refusal> {
        /// A turn that Codex has just ended refuses input some moments before its end is told here.
        const END_IS_NEAR: Duration = Duration::from_secs(1);
        let Some(key) = &request.context else { return Ok(None) };
        while let Some(turn) = self.turns.running_of(key) {
            let caller = turn.join();
            match self.steer(&turn, &request.inputs).await {
                Ok(_) => return Ok(Some(caller)),
                // It ended meanwhile: the next one, or a turn of our own.
                Err(refusal) => {
                    let ended = tokio::time::timeout(END_IS_NEAR, turn.log.ended()).await;
                    ended.map_err(|_| refusal)?;
                }
            }
        }
        Ok(None)
    }

    /// The turn of this id.
    ///
    /// # Errors
    /// [`Refusal::TurnNotFound`].
    pub fn turn(&self, id: &TurnId) -> Result<Arc<Turn>, Refusal> {
        self.turns.get(id).ok_or_else(|| Refusal::TurnNotFound(id.clone()))
    }

    /// The worker that has this thread loaded, by its slot in the pool. Unknown for the moments in
    /// which a turn opens the thread.
    pub fn holder_of(&self, thread_id: &ThreadId) -> Option<String> {
        let holder = self.threads.holder(thread_id)?;
        self.pool.worker(&holder).map(|worker| worker.id().slot_name())
    }

    /// How far the drain is.
    pub fn drain_state(&self) -> DrainState {
        *self.drain.borrow()
    }

    /// Whether new turns are refused.
    pub fn is_draining(&self) -> bool {
        self.drain_state() != DrainState::Serving
    }

    /// Refuses new turns from now on, lets the others run for `grace`, then interrupts them, and
    /// waits until they have ended. Bounded by the grace and the interrupt grace.
    pub async fn drain(&self, grace: Duration) {
        self.drain.send_replace(DrainState::Draining);
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_ok() {
            return;
        }
        self.drain.send_replace(DrainState::Interrupting);
        for turn in self.turns.unended() {
            turn.interrupt(InterruptReason::Draining);
        }
        // A turn that does not end within its own grace ends by giving up its worker.
        let bound = self.settings.timeouts.interrupt_grace * 2 + Duration::from_secs(5);
        if tokio::time::timeout(bound, self.tasks.wait()).await.is_err() {
            tracing::error!("turns did not end; the workers are killed under them");
        }
    }

    /// Waits until every turn has ended; for after the workers are gone.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Forgets turns whose time is over, and threads that ended workers held, for as long as it is
    /// polled.
    pub async fn sweep(&self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.turns.sweep();
            self.turns.make_room();
            self.threads.forget_unheld(|worker| self.pool.runs(worker));
        }
    }

    async fn drive(
        self: Arc<Engine>,
        turn: Arc<Turn>,
        request: Arc<TurnRequest>,
        workspace: Arc<Workspace>,
        ticket: Ticket,
    ) {
        // However this task ends, the log ends.
        let _ended = EndGuard { engine: &self, turn: &turn };
        let mut outcome = self.run_to_outcome(&turn, &request, &workspace, &ticket).await;
        turn.set_phase(Phase::Over);
        drop(ticket);
        if let (true, Outcome::Completed { final_response, .. }) =
            (request.turn_options.omit_final_response, &mut outcome)
        {
            final_response.clear();
        }
        turn.log.end(outcome);
    }

    async fn run_to_outcome(
        self: &Arc<Engine>,
        turn: &Arc<Turn>,
        request: &Arc<TurnRequest>,
        workspace: &Arc<Workspace>,
        ticket: &Ticket,
    ) -> Outcome {
        let mut stop = turn.stop_requests();
        if let Err(reason) = wait_for_place(turn, ticket, &mut stop).await {
            let (usage, thread_usage) = (Usage::default(), Usage::default());
            return Outcome::Interrupted { reason, usage, thread_usage };
        }
        turn.set_phase(Phase::Opening);
        let mut clocks = Clocks::start(request, stop);
        for attempt in 1.. {
            let mut opening = self.start_opening(request, workspace);
            let opened = tokio::select! {
                biased;
                cause = clocks.strike(None) => {
                    return clocks.outcome(cause, Default::default(), false);
                }
                opened = opening.opened() => opened,
            };
            let lost = match opened {
                Ok(opened) => {
                    match self.run_opened(turn, request, workspace, opened, &mut clocks).await {
                        Ok(outcome) => return outcome,
                        Err(pump::NeverBegan(cause)) => cause,
                    }
                }
                Err(open::OpenError::Refused(refusal)) => return Outcome::Refused(refusal),
                Err(open::OpenError::Lost(cause)) => cause,
            };
            if attempt >= OPEN_ATTEMPTS {
                let retry_after = Duration::from_secs(1);
                return Outcome::Refused(Refusal::WorkerUnavailable { cause: lost, retry_after });
            }
            tracing::info!(turn = %turn.id, attempt, cause = lost, "the worker was lost before the turn began");
        }
        Outcome::Refused(Refusal::Internal("no attempt was made".to_owned()))
    }

    /// Kills a worker that answers nothing at all within the interrupt grace. One that does may just
    /// be slow with what it was asked, and serves others.
    async fn replace_if_silent(&self, worker: &Worker, cause: &str) {
        if worker.ping(self.settings.timeouts.interrupt_grace).await.is_err() {
            worker.kill(cause);
            worker.exited().await;
        }
    }
}

/// Ends the log of a turn whose task ended without doing so, which only a fault of ours can bring
/// about, and files the turn as ended.
struct EndGuard<'a> {
    engine: &'a Engine,
    turn: &'a Arc<Turn>,
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.turn.set_phase(Phase::Over);
        if !self.turn.log.has_ended() {
            let message = "the sidecar lost track of the turn, a fault of its own";
            let error = TurnError {
                retryable: true,
                // How far it came can't be told.
                side_effects_possible: true,
                ..TurnError::new(FailureReason::WorkerLost, message)
            };
            let (usage, thread_usage) = (Usage::default(), Usage::default());
            self.turn.log.end(Outcome::Failed { error, usage, thread_usage });
        }
        self.engine.turns.note_ended(self.turn);
    }
}

async fn wait_for_place(
    turn: &Turn,
    ticket: &Ticket,
    stop: &mut watch::Receiver<Option<InterruptReason>>,
) -> Result<(), InterruptReason> {
    let mut position = ticket.position();
    loop {
        match *position.borrow_and_update() {
            QueuePosition::Running => return Ok(()),
            QueuePosition::Waiting(number) => turn.log.append(Event::queued(number)),
        }
        tokio::select! {
            biased;
            reason = stopped(stop) => return Err(reason),
            // The ticket lives as long as we do.
            _ = position.changed() => {}
        }
    }
}

impl From<Unavailable> for Refusal {
    fn from(unavailable: Unavailable) -> Refusal {
        let Unavailable { cause, retry_after, out_of_resources } = unavailable;
        if out_of_resources {
            Refusal::OutOfResources { cause, retry_after }
        } else {
            Refusal::WorkerUnavailable { cause, retry_after }
        }
    }
}
