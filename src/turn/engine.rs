//! Drives turns: from a validated request to the one terminal event.
//!
//! The engine owns the order of things: lane, place, thread, worker, `turn/start`, events, end. It
//! runs one task per turn, which ends only after the turn's log has ended, whatever happens. It
//! never blocks on a reader, and it gives a turn's place, thread and worker back before it says that
//! the turn is over, so that whoever reads that may start the next one at once.

mod open;
mod pump;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pool::{Pool, Unavailable};
use crate::registry::Registry;
use crate::turn::admission::{Admission, Place, Ticket};
use crate::turn::directory::{Caller, Directory, Entered, Turn};
use crate::turn::event::{Event, FailureReason, InterruptReason, TurnError, Usage, UserInput};
use crate::turn::refusal::Refusal;
use crate::turn::request::{BusyPolicy, ThreadId, TurnId, TurnRequest};
use crate::turn::workspace;
use crate::worker::thread::Workspace;

/// How the engine behaves.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Where a turn works that names no directory: the sidecar's own.
    pub default_directory: PathBuf,
    /// How long an interrupted turn may take to end before its worker is given up.
    pub interrupt_grace: Duration,
    /// How often a turn that Codex has not taken yet is tried on another worker.
    pub open_attempts: u32,
}

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
    pool: Arc<Pool>,
    registry: Arc<Registry>,
    directory: Arc<Directory>,
    admission: Arc<Admission>,
    settings: EngineSettings,
    drain: watch::Sender<DrainState>,
    tasks: TaskTracker,
}

/// How a turn ends.
#[derive(Debug)]
enum Outcome {
    Ended(Event),
    Refused(Refusal),
}

impl Outcome {
    fn interrupted(reason: InterruptReason) -> Outcome {
        let (usage, thread_usage) = (Usage::default(), Usage::default());
        Outcome::Ended(Event::TurnInterrupted { reason, usage, thread_usage })
    }

    fn failed(reason: FailureReason, message: impl Into<String>) -> Outcome {
        let error = TurnError {
            reason,
            message: message.into(),
            details: String::new(),
            retryable: true,
            retry_after: None,
            side_effects_possible: false,
            http_status: None,
        };
        let (usage, thread_usage) = (Usage::default(), Usage::default());
        Outcome::Ended(Event::TurnFailed { error, usage, thread_usage })
    }
}

/// When a turn must be over; absent clocks never strike.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    turn_timeout: Option<Duration>,
    turn_deadline: Option<Instant>,
    idle_timeout: Option<Duration>,
}

impl Clocks {
    fn start(request: &TurnRequest) -> Clocks {
        let turn_timeout = request.turn_options.turn_timeout;
        Clocks {
            turn_timeout,
            turn_deadline: turn_timeout.map(|timeout| Instant::now() + timeout),
            idle_timeout: request.turn_options.idle_timeout,
        }
    }

    fn turn_timeout_outcome(&self) -> Outcome {
        Outcome::failed(FailureReason::TurnTimeout, self.turn_timeout_message())
    }

    fn turn_timeout_message(&self) -> String {
        let timeout = humantime::format_duration(self.turn_timeout.unwrap_or_default());
        format!("the turn was not over within its turn_timeout of {timeout}")
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
        Ok(reason) => reason.unwrap_or(InterruptReason::Requested),
        // The turn outlives its engine's task.
        Err(_) => std::future::pending().await,
    }
}

impl Engine {
    /// An engine over these parts.
    pub fn new(
        pool: Arc<Pool>,
        registry: Arc<Registry>,
        directory: Arc<Directory>,
        admission: Arc<Admission>,
        settings: EngineSettings,
    ) -> Arc<Engine> {
        Arc::new(Engine {
            pool,
            registry,
            directory,
            admission,
            settings,
            drain: watch::Sender::new(DrainState::Serving),
            tasks: TaskTracker::new(),
        })
    }

    /// The bindings.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The turns.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// The workers.
    pub fn pool(&self) -> &Arc<Pool> {
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
        if request.busy_policy == BusyPolicy::Steer {
            if let Some(joined) = self.steer_running(&request).await? {
                return Ok(joined);
            }
        }
        let workspace = workspace::check(
            &request.thread_options,
            &request.inputs,
            &self.settings.default_directory,
        )
        .await?;
        let turn = Turn::new(&request, Arc::clone(self.directory.retained()));
        // Before the engine starts: a turn without a caller would be interrupted at once.
        let caller = turn.join();
        match self.directory.enter(&turn)? {
            Entered::Joined(known) => return Ok(known.join()),
            Entered::New => {}
        }
        let admitted = if self.is_draining() {
            Err(Refusal::Draining { retry_after: Duration::from_secs(1) })
        } else {
            self.admission.admit(&turn.tenant, turn.lane.clone(), request.busy_policy)
        };
        let ticket = match admitted {
            Ok(ticket) => ticket,
            Err(refusal) => {
                turn.log.refuse(refusal.clone());
                self.directory.note_ended(&turn);
                return Err(refusal);
            }
        };
        self.directory.note_admitted(&turn);
        self.tasks.spawn(Arc::clone(self).drive(turn, request, workspace, ticket));
        Ok(caller)
    }

    /// Adds input to a running turn; returns Codex's id of it.
    ///
    /// # Errors
    /// [`Refusal::NotSteerable`] when it has ended, or Codex can't.
    pub async fn steer(&self, turn: &Arc<Turn>, inputs: &[UserInput]) -> Result<String, Refusal> {
        let refused = |cause: String| Refusal::NotSteerable { turn_id: turn.id.clone(), cause };
        let Some(live) = turn.live().await else {
            return Err(refused("it has ended".to_owned()));
        };
        let steered = live.worker.steer_turn(&live.thread_id, &live.codex_turn_id, inputs).await;
        steered.map(|()| live.codex_turn_id).map_err(|error| refused(error.to_string()))
    }

    /// Steers the running turn of the request's context and joins it; `None` where there is none.
    async fn steer_running(&self, request: &TurnRequest) -> Result<Option<Caller>, Refusal> {
        let Some(key) = &request.context else { return Ok(None) };
        while let Some(turn) = self.directory.live_of(key) {
            let caller = turn.join();
            match self.steer(&turn, &request.inputs).await {
                Ok(_) => return Ok(Some(caller)),
                // It ended meanwhile: the next one, or a turn of our own.
                Err(_) if turn.log.end().is_some() => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(None)
    }

    /// The turn of this id.
    ///
    /// # Errors
    /// [`Refusal::TurnNotFound`].
    pub fn turn(&self, id: &TurnId) -> Result<Arc<Turn>, Refusal> {
        self.directory.get(id).ok_or_else(|| Refusal::TurnNotFound(id.clone()))
    }

    /// The worker that has this thread loaded, by its place in the pool. Unknown for the moments in
    /// which a turn opens the thread.
    pub fn holder_of(&self, thread_id: &ThreadId) -> Option<String> {
        let holder = self.pool.threads().holder(thread_id)?;
        self.pool.worker(&holder).map(|worker| worker.id().place())
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
    /// waits until they have ended. Bounded by the grace and the interrupt grace. `hurry` cuts the
    /// grace short.
    pub async fn drain(&self, grace: Duration, hurry: &CancellationToken) {
        self.drain.send_replace(DrainState::Draining);
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => return,
            () = tokio::time::sleep(grace) => {}
            () = hurry.cancelled() => {}
        }
        self.drain.send_replace(DrainState::Interrupting);
        for turn in self.directory.unended() {
            turn.interrupt(InterruptReason::Draining);
        }
        // A turn that does not end within its own grace ends by giving up its worker.
        let bound = self.settings.interrupt_grace * 2 + Duration::from_secs(5);
        if tokio::time::timeout(bound, self.tasks.wait()).await.is_err() {
            tracing::error!("turns did not end; the workers are killed under them");
        }
    }

    /// Waits until every turn has ended; for after the workers are gone.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Forgets turns whose time is over, for as long as it is polled.
    pub async fn sweep(&self) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.directory.sweep();
            self.directory.make_room();
        }
    }

    async fn drive(
        self: Arc<Engine>,
        turn: Arc<Turn>,
        request: TurnRequest,
        workspace: Workspace,
        ticket: Ticket,
    ) {
        // However this task ends, the log ends.
        let _ended = EndGuard { engine: &self, turn: &turn };
        let outcome = self.run_to_outcome(&turn, &request, &workspace, &ticket).await;
        turn.set_live(None);
        drop(ticket);
        match outcome {
            Outcome::Ended(event) => drop(turn.log.append(event)),
            Outcome::Refused(refusal) => turn.log.refuse(refusal),
        }
    }

    async fn run_to_outcome(
        &self,
        turn: &Arc<Turn>,
        request: &TurnRequest,
        workspace: &Workspace,
        ticket: &Ticket,
    ) -> Outcome {
        let mut stop = turn.stop_requests();
        if let Err(reason) = wait_for_place(turn, ticket, &mut stop).await {
            return Outcome::interrupted(reason);
        }
        let clocks = Clocks::start(request);
        for attempt in 1.. {
            let opened = tokio::select! {
                biased;
                reason = stopped(&mut stop) => return Outcome::interrupted(reason),
                () = until(clocks.turn_deadline) => return clocks.turn_timeout_outcome(),
                opened = self.open(turn, request, workspace) => opened,
            };
            let opened = match opened {
                Ok(opened) => opened,
                Err(open::OpenError::Refused(refusal)) => return Outcome::Refused(refusal),
                Err(open::OpenError::Lost(cause)) if attempt < self.settings.open_attempts => {
                    tracing::info!(turn = %turn.id, attempt, cause, "the worker was lost before the turn began");
                    continue;
                }
                Err(open::OpenError::Lost(cause)) => {
                    return Outcome::Refused(Refusal::WorkerUnavailable {
                        cause,
                        retry_after: Duration::from_secs(1),
                    });
                }
            };
            match self.run_opened(turn, request, workspace, opened, &clocks, &mut stop).await {
                pump::Ran::Over(outcome) => return outcome,
                pump::Ran::NeverBegan(cause) if attempt < self.settings.open_attempts => {
                    tracing::info!(turn = %turn.id, attempt, cause, "the worker was lost before the turn began");
                }
                pump::Ran::NeverBegan(cause) => {
                    return Outcome::Refused(Refusal::WorkerUnavailable {
                        cause,
                        retry_after: Duration::from_secs(1),
                    });
                }
            }
        }
        Outcome::Refused(Refusal::Internal("no attempt was made".to_owned()))
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
        if self.turn.log.end().is_none() {
            let message = "the sidecar lost track of the turn, a fault of its own";
            if let Outcome::Ended(event) = Outcome::failed(FailureReason::WorkerLost, message) {
                let _ = self.turn.log.append(event);
            }
        }
        self.turn.set_live(None);
        self.engine.directory.note_ended(self.turn);
    }
}

async fn wait_for_place(
    turn: &Turn,
    ticket: &Ticket,
    stop: &mut watch::Receiver<Option<InterruptReason>>,
) -> Result<(), InterruptReason> {
    let mut place = ticket.place();
    loop {
        match *place.borrow_and_update() {
            Place::Running => return Ok(()),
            Place::Waiting(position) => drop(turn.log.append(Event::Queued { position })),
        }
        tokio::select! {
            biased;
            reason = stopped(stop) => return Err(reason),
            // The ticket lives as long as we do.
            _ = place.changed() => {}
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
