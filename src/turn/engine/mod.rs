//! Drives turns: from a validated request to the one terminal event.
//!
//! The engine runs one task per turn, a [`driver::Driver`], which does what the turn's machine says
//! (see [`crate::turn::machine`]) and ends only after the turn's log has ended, whatever happens. It
//! never blocks on a reader, and it gives a turn's slot, thread and worker back before it says that
//! the turn is over, so that whoever reads that may start the next one at once.

mod acts;
mod driver;
mod erase;
mod history;
mod keeping;
mod open;
pub(crate) mod readiness;
mod replies;
mod restore;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::model::event::{InterruptReason, Usage};
use crate::model::failure::{FailureReason, TurnError};
use crate::model::id::{CallerName, ThreadId, TurnId};
use crate::model::options::SandboxMode;
use crate::model::outcome::Outcome;
use crate::model::policy::{self, Policy};
use crate::model::question::Answer;
use crate::model::refusal::{Faults, Refusal};
use crate::model::request::{BusyPolicy, TurnRequest, UserInput};
use crate::model::workspace::Workspace;
use crate::pool::{Pool, Unavailable};
use crate::registry::latest::LatestThreads;
use crate::registry::ledger::{Change, Ledger, Trouble};
use crate::registry::threads::Threads;
use crate::turn::admission::{Admission, QueuePosition, Ticket};
use crate::turn::claims::RequestIdUse;
use crate::turn::contexts::{ContextLimits, Contexts};
use crate::turn::looks::Looks;
use crate::turn::pixels::ImageSum;
use crate::turn::quota::{QuotaLimits, Quotas};
use crate::turn::readers::{ReaderLimits, Readers};
use crate::turn::revision;
use crate::turn::timeouts::Timeouts;
use crate::turn::turn::{Caller, Mailbox, Phase, Turn};
use crate::turn::turns::Turns;
use crate::turn::workspace::{self, Confinement, Looked};
use crate::worker::protection;
use crate::worker::thread::LoadedThread;

use driver::Driver;
use keeping::end_of;

pub(crate) use history::Copy;

/// When to try again what the ledger can't keep now: it tries itself each second.
pub(crate) const LEDGER_RETRY_AFTER: Duration = Duration::from_secs(2);

/// How the engine behaves.
#[derive(Debug, Clone)]
pub(crate) struct EngineSettings {
    /// Where a turn works that names no directory: the sidecar's own.
    pub default_directory: PathBuf,
    /// The clocks of turns.
    pub timeouts: Timeouts,
    /// How many streams read turns.
    pub readers: ReaderLimits,
    /// How many contexts are kept.
    pub contexts: ContextLimits,
    /// Most bytes of the images of one call as they are sent to Codex, where they are read here.
    pub max_image_data: usize,
    /// How much is run in a while.
    pub quotas: QuotaLimits,
}

/// How far a drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrainState {
    /// New turns are taken.
    Serving,
    /// New turns are refused, the others run on.
    Draining,
    /// The others have been told to end.
    Interrupting,
}

/// Drives turns.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(super) pool: Arc<Pool>,
    pub(super) threads: Threads<LoadedThread>,
    pub(super) latest_threads: LatestThreads,
    pub(super) ledger: Arc<Ledger>,
    contexts: Contexts,
    turns: Arc<Turns>,
    admission: Arc<Admission>,
    readers: Arc<Readers>,
    pub(super) quotas: Arc<Quotas>,
    pub(super) looks: Looks,
    settings: EngineSettings,
    past: history::Past,
    drain: watch::Sender<DrainState>,
    pub(super) tasks: TaskTracker,
}

impl Engine {
    /// An engine over these parts.
    pub(crate) fn new(
        pool: Arc<Pool>,
        ledger: Arc<Ledger>,
        turns: Arc<Turns>,
        admission: Arc<Admission>,
        settings: EngineSettings,
    ) -> Arc<Engine> {
        Arc::new(Engine {
            pool,
            threads: Threads::default(),
            latest_threads: LatestThreads::new(Arc::clone(&ledger)),
            contexts: Contexts::new(
                Arc::clone(&ledger),
                Arc::clone(&admission),
                settings.contexts.clone(),
            ),
            looks: Looks::default(),
            quotas: Quotas::new(settings.quotas.clone(), Arc::clone(&ledger)),
            ledger,
            turns,
            admission,
            readers: Readers::new(settings.readers.clone()),
            settings,
            past: history::Past::default(),
            drain: watch::Sender::new(DrainState::Serving),
            tasks: TaskTracker::new(),
        })
    }

    /// Why nothing can be kept now, if so: no turn begins then.
    pub(crate) fn ledger_trouble(&self) -> Option<Trouble> {
        self.ledger.trouble().borrow().clone()
    }

    /// What outlives the process.
    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    pub(crate) fn contexts(&self) -> &Contexts {
        &self.contexts
    }

    pub(crate) fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// The threads that belong to no context, by the directories that they worked in.
    pub(crate) fn latest_threads(&self) -> &LatestThreads {
        &self.latest_threads
    }

    /// The workers.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Who reads.
    pub(crate) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// How much is run in a while.
    pub(crate) fn quotas(&self) -> &Arc<Quotas> {
        &self.quotas
    }

    /// Who runs and who waits.
    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// Runs a turn, or joins the one that the same request started. The turn runs on by itself;
    /// what the caller holds decides, by the disconnect policy, for how long.
    ///
    /// # Errors
    /// Whatever can be known before the turn exists. What is found out later ends the turn's log.
    pub(crate) async fn run_turn(
        self: &Arc<Engine>,
        request: TurnRequest,
    ) -> Result<Caller, Refusal> {
        if !request.denied.is_empty() {
            let directory = &self.settings.default_directory;
            return Err(workspace::denied(&self.looks, request, directory).await);
        }
        // First of all, so that a repeated call finds its turn whatever has changed since.
        let claim = match &request.request_id {
            None => None,
            Some(request_id) => match self.turns.claim(&request.tenant, request_id).await? {
                RequestIdUse::Repeated(turn) => return Ok(turn.join()),
                RequestIdUse::First(claim) => Some(claim),
            },
        };
        let (request, workspace, images) = self.look(request).await?;
        revision::check(&request.work, &workspace.working_directory).await?;
        let request = Arc::new(request);
        if request.thread_options.sandbox_mode == Some(SandboxMode::WorkspaceWrite) {
            let (pool, request, workspace) =
                (Arc::clone(&self.pool), Arc::clone(&request), workspace.clone());
            let check = move || {
                protection::check_request(pool.protection(), &request.thread_options, &workspace)
            };
            self.looks.take(check).await?;
        }
        let mut claim = claim;
        if request.busy_policy == BusyPolicy::Steer {
            self.contexts.check(&request)?;
            let (engine, request) = (Arc::clone(self), Arc::clone(&request));
            // In a task of its own: a call that is cut off here, and repeated, must not steer twice.
            let steering = self.tasks.spawn(
                async move {
                    let joined = engine.steer_running(&request).await?;
                    match (joined, claim) {
                        (Some(joined), Some(claim)) => {
                            claim.settle(joined.turn());
                            Ok::<_, Refusal>((Some(joined), None))
                        }
                        (joined, claim) => Ok((joined, claim)),
                    }
                }
                .in_current_span(),
            );
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
        if let Some(trouble) = self.ledger_trouble() {
            return Err(trouble.into());
        }
        let begins = self.quotas.begin()?;
        let (turn, mailbox) = Turn::new(&request, Arc::clone(self.turns.retained()));
        turn.count_images(images);
        // Before the engine starts: a turn without a caller would be interrupted at once.
        let caller = turn.join();
        let weak = Arc::downgrade(&turn);
        let ticket = self.contexts.admit(&request, &weak, || self.turns.enter(&turn))?;
        begins.keep();
        if *ticket.position().borrow() == QueuePosition::Running {
            turn.set_phase(Phase::Running);
        }
        if let Some(claim) = claim {
            claim.settle(&turn);
        }
        let workspace = Arc::new(workspace);
        self.tasks.spawn(
            Arc::clone(self).drive(turn, mailbox, request, workspace, ticket).in_current_span(),
        );
        Ok(caller)
    }

    /// Looks at what the request names on the disk.
    async fn look(
        &self,
        mut request: TurnRequest,
    ) -> Result<(TurnRequest, Workspace, ImageSum), Refusal> {
        let policy = Arc::clone(&request.policy);
        let inputs = std::mem::take(&mut request.inputs);
        let before: usize = inputs.iter().map(UserInput::bytes).sum();
        let default_directory = &self.settings.default_directory;
        let looked = workspace::check(
            &self.looks,
            &request.thread_options,
            inputs,
            default_directory,
            self.confinement(&policy),
        );
        let Looked { workspace, images, inputs } = looked.await?;
        // With the images that were read meanwhile.
        let read = inputs.iter().map(UserInput::bytes).sum::<usize>().saturating_sub(before);
        request.bytes = request.bytes.saturating_add(read);
        request.inputs = inputs;
        Ok((request, workspace, images))
    }

    fn confinement<'a>(&self, policy: &'a Policy) -> Confinement<'a> {
        Confinement { policy, most_image_data: self.settings.max_image_data }
    }

    /// Answers what Codex asks in a turn.
    ///
    /// # Errors
    /// [`Refusal::PolicyDenied`] where it grants more than the turn could have asked for; see
    /// [`Turn::answer`].
    pub(crate) async fn answer(
        &self,
        turn: &Turn,
        request_id: String,
        answer: Answer,
        by: CallerName,
    ) -> Result<(), Refusal> {
        let mut denied = Faults::default();
        turn.policy.judge_answer(&answer, &mut denied);
        denied.or_deny(())?;
        let _first = turn.answering.lock().await;
        workspace::check_grants(&self.looks, policy::written(&answer), &turn.policy).await?;
        if let Some(question) = turn.log.question(&request_id) {
            let (protection, answer) = (self.pool.protection().clone(), answer.clone());
            let look = move || protection::check_answer(&protection, &question, &answer);
            self.looks.take(look).await?;
        }
        turn.answer(request_id, answer, by).await
    }

    /// Adds input to a running turn; returns Codex's id of it.
    ///
    /// # Errors
    /// [`Refusal::PolicyDenied`] by the turn's own policy; what is wrong with an image; [`Refusal::NotSteerable`] when it waits, has ended, or Codex can't.
    pub(crate) async fn steer(
        &self,
        turn: &Turn,
        inputs: Vec<UserInput>,
    ) -> Result<String, Refusal> {
        if let Some(at) = inputs.iter().position(|input| matches!(input, UserInput::Skill { .. })) {
            let fault = "comes too late: Codex takes a skill with the start of a turn alone";
            return Err(Refusal::field(format!("inputs[{at}].skill"), fault));
        }
        let mut denied = Faults::default();
        turn.policy.judge_inputs(&inputs, &mut denied);
        denied.or_deny(())?;
        let before = turn.images();
        let confinement = self.confinement(&turn.policy);
        let looking = workspace::check_images(&self.looks, inputs, before, confinement);
        let (inputs, images) = looking.await?;
        let images = images.without(before);
        turn.steer(inputs, images).await
    }

    /// Steers the turn that runs in the request's context, or on its thread, and joins it; `None` where
    /// there is none.
    async fn steer_running(&self, request: &TurnRequest) -> Result<Option<Caller>, Refusal> {
        /// A turn that Codex has just ended refuses input some moments before its end is told here.
        const END_IS_NEAR: Duration = Duration::from_secs(1);
        while let Some(turn) = self.contexts.running_turn(request) {
            let caller = turn.join();
            if let Some(id) = &request.request_id {
                // Before Codex has the input: what is asked for again is not given to it again.
                let [join, leave] = [Change::JoinTurn, Change::LeaveTurn]
                    .map(|change| change(id.clone(), turn.id.clone()));
                self.ledger.try_write(vec![join], vec![leave]).await?;
            }
            let Err(refusal) = self.steer(&turn, request.inputs.clone()).await else {
                return Ok(Some(caller));
            };
            if let Some(id) = &request.request_id {
                let leave = Change::LeaveTurn(id.clone(), turn.id.clone());
                self.ledger.note(&[leave]);
            }
            match refusal {
                refusal @ (Refusal::SteeringFull { .. }
                | Refusal::InvalidInput(_)
                | Refusal::PolicyDenied(_)) => {
                    return Err(refusal);
                }
                // It ended meanwhile: the next one, or a turn of our own.
                refusal => {
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
    pub(crate) fn turn(&self, id: &TurnId) -> Result<Arc<Turn>, Refusal> {
        self.turns.get(id).ok_or_else(|| Refusal::TurnNotFound(id.clone()))
    }

    /// The worker that has this thread loaded, by its slot in the pool. Unknown for the moments in
    /// which a turn opens the thread.
    pub(crate) fn holder_of(&self, thread_id: &ThreadId) -> Option<String> {
        let holder = self.threads.holder(thread_id)?;
        self.pool.worker(&holder).map(|worker| worker.id().slot_name())
    }

    /// How far the drain is.
    pub(crate) fn drain_state(&self) -> DrainState {
        *self.drain.borrow()
    }

    /// Whether new turns are refused.
    pub(crate) fn is_draining(&self) -> bool {
        self.drain_state() != DrainState::Serving
    }

    /// Refuses new turns from now on, lets the others run for `grace`, then interrupts them, and
    /// waits until they have ended. Bounded by the grace and the interrupt grace.
    pub(crate) async fn drain(&self, grace: Duration) {
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
    pub(crate) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Forgets turns whose time is over, and threads that ended workers held, and has idle threads
    /// released, for as long as it is polled.
    pub(crate) async fn sweep(self: &Arc<Engine>) {
        tokio::join!(self.forget_what_is_over(), self.pool.release_idle_threads(&self.threads));
    }

    async fn forget_what_is_over(self: &Arc<Engine>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.turns.sweep();
            self.turns.make_room();
            self.sweep_contexts();
            self.threads.forget_unheld(|worker| self.pool.runs(worker));
        }
    }

    async fn drive(
        self: Arc<Engine>,
        turn: Arc<Turn>,
        mut mailbox: Mailbox,
        request: Arc<TurnRequest>,
        workspace: Arc<Workspace>,
        ticket: Ticket,
    ) {
        // However this task ends, the log ends.
        let _ended = EndOnDrop { engine: &self, turn: &turn };
        let ticket = Arc::new(ticket);
        let driver = Driver::new(
            Arc::clone(&self),
            Arc::clone(&turn),
            request,
            workspace,
            Arc::clone(&ticket),
        );
        let (outcome, keeping) = driver.run(&mut mailbox).await;
        turn.set_phase(Phase::Over);
        if let Some(key) = &turn.context {
            self.contexts.note_end(key);
        }
        let end = keeping.end(outcome).await;
        // Who reads the end may go on at once, and who looks before sees that it has not ended.
        ticket.give_up(|| turn.log.end_with(end));
    }
}

/// Ends the log of a turn whose task ended without doing so, which only a fault of ours can bring
/// about, and files the turn as ended.
struct EndOnDrop<'a> {
    engine: &'a Engine,
    turn: &'a Arc<Turn>,
}

impl Drop for EndOnDrop<'_> {
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
            let outcome = Outcome::Failed { error, usage, thread_usage };
            let end = outcome.into_event().map(|terminal| self.turn.log.next(terminal));
            if let Ok(terminal) = &end
                && self.turn.is_kept()
            {
                self.engine.ledger.note(&[end_of(self.turn, terminal)]);
            }
            self.turn.log.end_with(end);
        }
        self.engine.turns.note_ended(self.turn);
    }
}

impl From<Trouble> for Refusal {
    fn from(Trouble { cause }: Trouble) -> Refusal {
        Refusal::LedgerUnavailable { cause, retry_after: LEDGER_RETRY_AFTER }
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
