//! One turn on an open thread: from `turn/start` to the end.

mod agents;
mod ending;
mod skipped;
mod withheld;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app_server::decode::{News, TurnEnd};
use crate::app_server::message::{Asked, Told};
use crate::app_server::settings::Gate;
use crate::model::event::{
    Event, InterruptReason, ItemCompleted, ItemStarted, ItemUpdated, TokenUsageUpdated, Usage,
    WarningCode,
};
use crate::model::failure::{FailureReason, TurnError};
use crate::model::id::ThreadId;
use crate::model::item::{Item, ItemKind, TodoList};
use crate::model::outcome::Outcome;
use crate::model::question::Resolution;
use crate::model::refusal::Refusal;
use crate::model::request::TurnRequest;
use crate::process;
use crate::redact::Redactor;
use crate::turn::engine::open::{Opened, PATIENCE};
use crate::turn::engine::owned::{Owned, Rest, Whose};
use crate::turn::engine::{Cause, Clocks, Engine, until};
use crate::turn::log::Log;
use crate::turn::turn::{Live, Phase, Turn};
use crate::worker::thread::{ThreadError, Workspace};
use crate::worker::{Route, ThreadMessage, Worker, WorkerExit};

use ending::Stopping;
use skipped::OpenMessage;
use withheld::Withheld;

/// The worker died before it could have seen the turn; for this cause.
pub(super) struct NeverBegan(pub(super) String);

/// How often `turn/start` is tried again after Codex took it as steering of a turn of its own.
const STEERED_AGAIN: u32 = 2;

/// How often an interruption that Codex refuses is tried again: it refuses while it has not quite
/// begun with the turn.
const INTERRUPT_AGAIN: Duration = Duration::from_millis(100);

/// After how many messages in a row the clocks are looked at, although there are more. Below, what has
/// happened goes before them, and a flood would keep them from being looked at at all.
const FLOOD: u32 = 64;

/// The item that stands for the agent's plan; Codex has plans but no item for them.
const TODO_LIST_ID: &str = "todo_list";

impl Engine {
    pub(super) async fn run_opened(
        &self,
        turn: &Turn,
        request: &TurnRequest,
        workspace: &Workspace,
        opened: Opened,
        clocks: &mut Clocks,
    ) -> Result<Outcome, NeverBegan> {
        let Opened {
            thread_id, origin, mut loaded, warnings, mut route, lease, mut thread, ..
        } = opened;
        let worker = lease.worker();
        let schema = request.turn_options.output_schema.as_ref();
        let handed_over = Instant::now();
        let began_at = process::Moment::now();
        // A cause that comes while Codex is being told waits for what it says, but not for long.
        let mut cause = None;
        let mut patience = PATIENCE.iter();
        let mut steered = 0;
        let started = loop {
            // Codex takes the turn as steering of whatever runs there.
            let quiet = tokio::select! {
                biased;
                quiet = worker.quiet_thread(&thread_id, self.settings.timeouts.interrupt_grace) => quiet,
                struck = clocks.strike(Some(handed_over)) => {
                    self.forget_ephemeral(request, worker, &thread_id).await;
                    return Ok(clocks.outcome(struck, Default::default(), false));
                }
            };
            if let Err(what) = quiet {
                self.give_up(worker, &thread_id).await;
                thread.loaded = None;
                return Err(NeverBegan(what));
            }
            if let Some(counts) = worker.counts_of(&thread_id)
                && thread
                    .facts
                    .usage
                    .is_none_or(|known| known.total_tokens() < counts.total_tokens())
            {
                // What was used meanwhile is not this turn's.
                thread.facts.usage = Some(counts);
            }
            let start = worker.start_turn(
                &thread_id,
                &mut loaded,
                (&turn.id.0, &request.inputs),
                &request.thread_options,
                workspace,
                schema,
            );
            let mut start = Box::pin(start);
            let early = tokio::select! {
                biased;
                started = &mut start => Some(started),
                struck = clocks.strike(Some(handed_over)) => {
                    cause = Some(struck);
                    None
                }
            };
            let started = match early {
                Some(started) => Some(started),
                None => {
                    tokio::time::timeout(self.settings.timeouts.interrupt_grace, start).await.ok()
                }
            };
            if let Some(Err(ThreadError::Steered(other))) = &started {
                steered += 1;
                let grace = self.settings.timeouts.interrupt_grace;
                let ended = worker.end_foreign_turn(&thread_id, other, grace).await;
                if ended.is_ok() && steered <= STEERED_AGAIN && cause.is_none() {
                    continue;
                }
                self.give_up(worker, &thread_id).await;
                break started;
            }
            // It has not taken the turn: asking again can do no harm.
            let pause = match &started {
                Some(Err(ThreadError::Overloaded(_))) if cause.is_none() => patience.next(),
                _ => None,
            };
            let Some(pause) = pause else { break started };
            tokio::select! {
                biased;
                struck = clocks.strike(Some(handed_over)) => {
                    cause = Some(struck);
                    break started;
                }
                () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
            }
        };
        if let Some(Err(ThreadError::Lost { cause, written: false })) = started {
            // Nothing was said of this thread yet: the caller never learns of the failed attempt.
            return Err(NeverBegan(cause));
        }
        let tells_settings = worker.defaults().tells_settings;
        let gate = loaded.gate(&request.thread_options, workspace, tells_settings);
        thread.loaded = Some(loaded);
        thread.publish_holder();

        // From here on the thread counts as this context's, also when the turn fails.
        if let Some(key) = request.context.as_ref().filter(|_| !request.ephemeral) {
            self.contexts.bind_for_turn(key, &thread_id);
        }
        if let Some(Err(ThreadError::Overloaded(said))) = started {
            // Nothing has begun, nor been told.
            self.forget_ephemeral(request, worker, &thread_id).await;
            return Ok(match cause {
                Some(cause) => clocks.outcome(cause, Default::default(), false),
                None => Outcome::Refused(Refusal::WorkerUnavailable {
                    cause: format!("Codex is overloaded: {said}"),
                    retry_after: Duration::from_secs(2),
                }),
            });
        }
        if let Some(key) = request.context.as_ref().filter(|_| !request.ephemeral) {
            self.contexts.note_turn(key, &turn.id);
        }
        turn.log.append(Event::thread_started(thread_id.as_str(), origin));
        for warning in warnings {
            turn.log.append(warning);
        }

        let codex_turn_id = match started {
            Some(Ok(codex_turn_id)) => codex_turn_id,
            None => {
                self.give_up(worker, &thread_id).await;
                thread.loaded = None;
                let cause = cause.unwrap_or(Cause::TurnTimeout);
                // It was told of the turn; what it did with it can't be known.
                return Ok(clocks.outcome(cause, Default::default(), true));
            }
            Some(Err(ThreadError::Lost { cause, .. })) => {
                let exit = if worker.is_alive() {
                    // It did not answer: whether the turn runs there can't be known.
                    worker.kill("it did not answer turn/start");
                    worker.exited().await
                } else {
                    worker.exited().await
                };
                return Ok(worker_lost(&exit, &cause, true, Default::default()));
            }
            Some(Err(ThreadError::Unreadable(cause))) => {
                // It may run. Letting go of its thread stops it, and disturbs no other turn.
                self.give_up(worker, &thread_id).await;
                thread.loaded = None;
                return Ok(unreadable(&cause));
            }
            Some(Err(error)) => {
                if matches!(error, ThreadError::Steered(_)) {
                    // It was unloaded to end what ran on it.
                    thread.loaded = None;
                }
                self.forget_ephemeral(request, worker, &thread_id).await;
                return Ok(match cause {
                    Some(cause) => clocks.outcome(cause, Default::default(), false),
                    None => refused_by_codex(&error),
                });
            }
        };
        for stopped in worker.take_stopped_turns(&thread_id) {
            turn.log.append(unowned_turn_stopped(&stopped));
        }
        turn.log.append(Event::turn_started(codex_turn_id.clone()));
        for status in route.take_mcp_servers() {
            let warning = status.warning();
            turn.log.append(Event::McpServerStatus(status));
            if let Some(warning) = warning {
                turn.log.append(warning);
            }
        }
        turn.set_phase(Phase::Live(Live {
            worker: Arc::clone(worker),
            thread_id: thread_id.clone(),
            codex_turn_id: codex_turn_id.clone(),
        }));

        let mut run = Run {
            turn,
            worker,
            log: &turn.log,
            owned: Owned::new(thread_id.as_str(), &turn.id.0, &codex_turn_id),
            thread_id: &thread_id,
            codex_turn_id,
            end: None,
            max_total_tokens: request.turn_options.max_total_tokens.map(u64::from),
            include_raw_events: request.include_raw_events,
            usage_before: thread.facts.usage,
            usage_total: thread.facts.usage.unwrap_or_default(),
            final_response: None,
            has_begun: false,
            side_effects: false,
            held_error: None,
            open_message: OpenMessage::default(),
            redactor: worker.redactor().clone(),
            withheld: Withheld::new(),
            is_response_doubtful: false,
            began_at,
            plan: None,
            raised: 0,
            last_progress: Instant::now(),
            gate,
            not_applied: None,
        };
        let end = self.pump(&mut run, &mut route, &thread_id, worker, clocks, cause).await;
        thread.facts.is_blank &= !run.has_begun;
        let as_asked = run.not_applied.is_none();
        if let Some(loaded) = &mut thread.loaded {
            // Where it was not what was asked, the thread is loaded anew before its next turn.
            loaded.note_in_force(run.gate.clone().in_force().filter(|_| as_asked));
        }
        if run.usage_before.is_some() {
            thread.facts.usage = Some(run.usage_total);
        }
        let outcome = match end {
            Ended::Codex(end, stopping) => {
                lease.note_turn_completed();
                let cause = stopping.as_ref().and_then(|stopping| stopping.cause);
                run.end_commands(&mut route, cause.is_some()).await;
                let is_failure = matches!(end, TurnEnd::Failed(_))
                    || matches!(
                        cause,
                        Some(Cause::TurnTimeout | Cause::IdleTimeout | Cause::Budget)
                    );
                if is_failure || run.held_error.is_some() {
                    run.settle_side_effects().await;
                }
                run.finish();
                run.terminal(end, stopping, clocks)
            }
            Ended::Unresponsive(end, stopping) => {
                thread.loaded = None;
                // What it goes on doing, nobody knows.
                run.side_effects = true;
                run.finish();
                run.terminal(end, stopping, clocks)
            }
            Ended::WorkerLost(exit) => {
                // It may have acted in its last moment, and told nobody.
                run.side_effects = true;
                run.finish();
                worker_lost(&exit, "", run.side_effects, (run.usage(), run.usage_total))
            }
        };
        if request.ephemeral {
            for agent in run.owned.agent_threads() {
                let agent = ThreadId::from_codex(agent);
                let forgetting = worker.forget_thread(&agent);
                let _ =
                    tokio::time::timeout(self.settings.timeouts.interrupt_grace, forgetting).await;
            }
        }
        self.forget_ephemeral(request, worker, &thread_id).await;
        Ok(outcome)
    }

    async fn forget_ephemeral(&self, request: &TurnRequest, worker: &Worker, thread_id: &ThreadId) {
        if request.ephemeral {
            // Not worth more than a moment: it is for the worker's memory only.
            let forgetting = worker.forget_thread(thread_id);
            let _ = tokio::time::timeout(self.settings.timeouts.interrupt_grace, forgetting).await;
            self.threads.forget(thread_id);
        }
    }

    async fn pump(
        &self,
        run: &mut Run<'_>,
        route: &mut Route,
        thread_id: &ThreadId,
        worker: &Arc<Worker>,
        clocks: &mut Clocks,
        mut cause: Option<Cause>,
    ) -> Ended {
        let mut stopping: Option<Stopping> = None;
        let mut in_a_row = 0_u32;
        loop {
            if stopping.is_none() {
                cause = cause.or(run.not_applied.is_some().then_some(Cause::SettingsNotApplied));
                cause = cause.or(run.is_over_budget().then_some(Cause::Budget));
                if cause.is_some() || run.ended_badly() {
                    stopping = Some(self.stop(run, cause.take()));
                }
            }
            if let Some(stopping) = &mut stopping {
                self.interrupt_all(run, stopping);
            }
            let rest = run.rest();
            match (rest, &mut stopping) {
                (
                    Rest::Over | Rest::Goal,
                    Some(Stopping { clearing: clearing @ Some(_), deadline, .. }),
                ) => {
                    if let Some(clearing) = clearing.take()
                        && let Ok(Ok(had_goals)) = timeout_at(*deadline, clearing).await
                    {
                        run.hear_of_goals(had_goals, route, *deadline).await;
                    }
                    continue;
                }
                (Rest::Over, _) => {
                    let end = run.end.take().unwrap_or(TurnEnd::Interrupted);
                    return Ended::Codex(end, stopping);
                }
                (Rest::Goal, _) => {
                    // Codex holds back for a reason of its own, and must not go on when nobody looks.
                    let deadline = Instant::now() + self.settings.timeouts.interrupt_grace;
                    let had_goals = timeout_at(deadline, run.clear_goals()).await;
                    run.owned.forget_goals();
                    run.hear_of_goals(had_goals.unwrap_or_default(), route, deadline).await;
                    continue;
                }
                (Rest::Busy | Rest::Until(_), _) => {}
            }
            let give_up_at = stopping.as_ref().map(|stopping| stopping.deadline);
            if in_a_row >= FLOOD {
                in_a_row = 0;
                match &stopping {
                    None => cause = clocks.has_struck(Some(run.last_progress)),
                    Some(Stopping { deadline, .. }) if *deadline <= Instant::now() => {
                        run.end_commands(route, true).await;
                        self.give_up(worker, thread_id).await;
                        let end = run.end.take().unwrap_or(TurnEnd::Interrupted);
                        return Ended::Unresponsive(end, stopping);
                    }
                    Some(_) => {}
                }
                if cause.is_some() {
                    continue;
                }
            }
            let look_again_at = match rest {
                Rest::Until(by) => Some(by),
                Rest::Busy | Rest::Goal | Rest::Over => None,
            };
            tokio::select! {
                biased;
                // First what has happened: an end already here beats every clock.
                message = route.recv() => {
                    in_a_row += 1;
                    match message {
                        Some(message) => run.take_message(message),
                        None => return Ended::WorkerLost(worker.exited().await),
                    }
                }
                struck = clocks.strike(Some(run.last_progress)), if stopping.is_none() => {
                    in_a_row = 0;
                    cause = Some(struck);
                }
                // Seen above.
                () = until(give_up_at), if stopping.is_some() => in_a_row = FLOOD,
                () = until(look_again_at) => {}
            }
        }
    }

    /// Tells Codex to stop the turn. Not waited for: events must go on being read, and the end comes
    /// as one. Ends when the guard is dropped.
    fn interrupt(
        &self,
        worker: &Arc<Worker>,
        thread_id: &ThreadId,
        codex_turn_id: &str,
    ) -> DropGuard {
        let over = CancellationToken::new();
        let guard = over.clone().drop_guard();
        let (worker, thread_id) = (Arc::clone(worker), thread_id.clone());
        let codex_turn_id = codex_turn_id.to_owned();
        let interrupting = async move {
            while let Err(error) = worker.interrupt_turn(&thread_id, &codex_turn_id).await {
                tracing::debug!(%error, "the turn could not be interrupted");
                if !worker.is_alive() {
                    return;
                }
                tokio::time::sleep(INTERRUPT_AGAIN).await;
            }
        };
        self.tasks.spawn(async move { over.run_until_cancelled(interrupting).await });
        guard
    }

    /// The turn did not end although it was told to. A worker that still answers is asked to let go
    /// of the thread, which disturbs no other turn; one that doesn't is killed.
    async fn give_up(&self, worker: &Worker, thread_id: &ThreadId) {
        let released = tokio::time::timeout(
            self.settings.timeouts.interrupt_grace,
            worker.release_thread(thread_id),
        )
        .await;
        if !matches!(released, Ok(Ok(()))) {
            worker.kill("it did not end a turn that it was told to interrupt");
            worker.exited().await;
        }
    }
}

/// How the pumping ended.
enum Ended {
    /// Codex said so; how it had been told to, if it had.
    Codex(TurnEnd, Option<Stopping>),
    /// Codex did not end all of it in time.
    Unresponsive(TurnEnd, Option<Stopping>),
    /// The worker ended.
    WorkerLost(Arc<WorkerExit>),
}

/// What is known of a running turn.
struct Run<'a> {
    turn: &'a Turn,
    worker: &'a Arc<Worker>,
    thread_id: &'a ThreadId,
    // Codex's id of the first of its turns that are this one.
    codex_turn_id: String,
    log: &'a Log,
    owned: Owned,
    // How Codex ended its turn on the turn's own thread, unless it goes on.
    end: Option<TurnEnd>,
    max_total_tokens: Option<u64>,
    include_raw_events: bool,
    // The thread's counts before this turn; `None` until the first report of a resumed thread.
    usage_before: Option<Usage>,
    usage_total: Usage,
    final_response: Option<String>,
    // Whether Codex said anything about this turn.
    has_begun: bool,
    // Whether something may have been done, as far as events tell; see `settle_side_effects`.
    side_effects: bool,
    // An error that the turn's end follows, until it is known whether something may have been done.
    held_error: Option<(TurnError, bool)>,
    // What of an agent message came before its item.
    open_message: OpenMessage,
    redactor: Redactor,
    // Of texts that are told in pieces, what may be a part of a key.
    withheld: Withheld,
    // Whether an agent message may have been lost.
    is_response_doubtful: bool,
    // Before Codex could have started a command for it.
    began_at: process::Moment,
    plan: Option<TodoList>,
    raised: u64,
    last_progress: Instant,
    // Nothing of the turn is told before this lets it pass.
    gate: Gate,
    // In which respect more came into force than was asked. From then on nothing is told but the end.
    not_applied: Option<String>,
}

impl Run<'_> {
    fn rest(&self) -> Rest {
        if self.end.is_none() { Rest::Busy } else { self.owned.rest(Instant::now()) }
    }

    fn ended_badly(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end != TurnEnd::Completed)
    }

    fn is_over_budget(&self) -> bool {
        self.max_total_tokens.is_some_and(|most| self.usage().total_tokens() > most)
    }

    fn take_message(&mut self, message: ThreadMessage) {
        match message {
            ThreadMessage::Told(told) => self.take(told),
            ThreadMessage::Asked(asked) => self.decline(asked),
            ThreadMessage::Skipped(line) => self.skip(&line),
        }
    }

    /// Tells an event, unless more came into force than was asked: then only the end is told.
    fn tell(&self, event: Event) {
        if self.not_applied.is_none() {
            self.log.append(event);
        }
    }

    /// Files what Codex tells.
    fn take(&mut self, told: Told) {
        let whose = self.owned.whose(&told.scope);
        if let News::Settings(settings) = &told.news
            // Those of a sub-agent's thread are not this turn's.
            && told.scope.thread_id.as_deref() == Some(self.thread_id.as_str())
        {
            let heard = self.gate.hear(settings.clone());
            self.hold_back(heard);
        }
        // Only what is about this turn is progress, and trying again is not.
        if whose != Whose::Another && told.scope.turn_id.is_some() && !told.is_retry() {
            self.last_progress = Instant::now();
        }
        match whose {
            Whose::Own => {
                // Items come after the input was written to the rollout.
                self.has_begun |= told.is_of_an_item();
                if told.scope.turn_id.is_some() {
                    let passed = self.gate.pass();
                    self.hold_back(passed);
                }
                if self.include_raw_events && told.news.is_untyped() {
                    self.tell(told.raw());
                }
                self.take_own(told);
            }
            Whose::Another => self.take_anothers(told),
            Whose::Agent(thread_id) => {
                if self.include_raw_events {
                    self.tell(told.raw());
                }
                self.take_agents(&thread_id, told);
            }
        }
    }

    fn take_own(&mut self, Told { scope, news, .. }: Told) {
        match news {
            News::McpServer { status, .. } => {
                let warning = status.warning();
                self.log.append(Event::McpServerStatus(status));
                if let Some(warning) = warning {
                    self.log.append(warning);
                }
            }
            News::Event(event) => self.file(event),
            News::Plan(_) if self.not_applied.is_some() => {}
            News::Plan(plan) => self.update_plan(plan),
            News::TokenUsage { total, last, model_context_window } => {
                // Older CLIs begin a turn by repeating the counts of the one before.
                if self.usage_before.is_some() && total == self.usage_total {
                    return;
                }
                // A resumed thread's earlier counts are what this first report adds to.
                self.usage_before.get_or_insert_with(|| total.since(last));
                self.usage_total = total;
                self.file_usage(last, model_context_window);
            }
            News::TurnEnded(end) => {
                let went_well = end == TurnEnd::Completed;
                if self.owned.turn_ends(scope.turn_id.as_deref(), went_well, Instant::now()) {
                    self.end = Some(end);
                }
            }
            News::Goal { is_active } => {
                self.owned.goal_changes(self.thread_id.as_str(), is_active);
            }
            // Every request is answered at once, so that there is none to be withdrawn.
            News::TurnStarted { .. } | News::RequestResolved(_) => {}
            News::Settings(_)
            | News::ThreadStarted { .. }
            | News::ThreadUnloaded
            | News::ThreadIdle
            | News::Other => {}
        }
    }

    fn file_usage(&mut self, last_request: Usage, model_context_window: Option<u64>) {
        self.tell(Event::TokenUsageUpdated(TokenUsageUpdated {
            usage: Some(self.usage()),
            thread_usage: Some(self.usage_total),
            last_request_usage: Some(last_request),
            model_context_window,
        }));
    }

    fn file(&mut self, mut event: Event) {
        if !self.withhold(&mut event) {
            return;
        }
        match &mut event {
            Event::ItemStarted(ItemStarted { item: Some(item) }) => {
                self.side_effects |= item.has_side_effects();
                self.owned.notes_item(self.thread_id.as_str(), item, false, Instant::now());
            }
            Event::ItemUpdated(ItemUpdated { item: Some(item) }) => {
                self.side_effects |= item.has_side_effects();
            }
            Event::AgentMessageDelta(delta) => self.open_message.add(&delta.item_id, &delta.text),
            Event::ItemCompleted(ItemCompleted { item: Some(item) }) => {
                self.side_effects |= item.is_of_an_answer();
                self.release_withheld(&item.id);
                self.owned.notes_item(self.thread_id.as_str(), item, true, Instant::now());
                if let Some(ItemKind::AgentMessage(message)) = &item.kind {
                    self.final_response = Some(message.text.clone());
                    self.open_message.close(&item.id);
                }
            }
            Event::ThreadError(told) => {
                self.tell_held_error();
                let will_retry = told.will_retry;
                if let Some(error) = told.error.as_mut() {
                    if !will_retry {
                        self.held_error = Some((error.clone(), will_retry));
                        return;
                    }
                    // What the failed try did before it failed can't be known yet.
                    error.side_effects_possible = true;
                }
            }
            _ => {}
        }
        self.tell(event);
    }

    /// Keeps the first thing that is wrong with what came into force.
    fn hold_back(&mut self, checked: Result<(), String>) {
        if let (Err(wrong), None) = (checked, &self.not_applied) {
            self.not_applied = Some(wrong);
        }
    }

    /// Finds out, once the turn is over, whether something may have been done of which no event told.
    async fn settle_side_effects(&mut self) {
        if !self.side_effects {
            let had_none = self.worker.had_no_answer(self.thread_id, &self.codex_turn_id).await;
            self.side_effects = !had_none;
        }
    }

    /// Tells what was kept back until the turn is over.
    fn finish(&mut self) {
        self.release_all_withheld();
        self.tell_held_error();
        self.close_plan();
    }

    fn tell_held_error(&mut self) {
        if let Some((mut error, will_retry)) = self.held_error.take() {
            error.side_effects_possible = self.side_effects;
            self.log.append(Event::thread_error(error, will_retry));
        }
    }

    fn update_plan(&mut self, plan: TodoList) {
        // The model called a tool to say so.
        self.side_effects = true;
        let is_first = self.plan.is_none();
        self.plan = Some(plan);
        if let Some(item) = self.plan_item() {
            let event =
                if is_first { Event::item_started(item) } else { Event::item_updated(item) };
            self.log.append(event);
        }
    }

    /// A plan is final when its turn is.
    fn close_plan(&mut self) {
        if let Some(item) = self.plan_item() {
            self.tell(Event::item_completed(item));
        }
    }

    fn plan_item(&self) -> Option<Item> {
        Some(Item::new(TODO_LIST_ID, ItemKind::TodoList(self.plan.clone()?)))
    }

    /// Says no to what Codex asks: an unanswered request would hang the turn for ever.
    fn decline(&mut self, Asked { call, mut question, .. }: Asked) {
        self.last_progress = Instant::now();
        self.side_effects = true;
        let passed = self.gate.pass();
        self.hold_back(passed);
        if self.not_applied.is_some() {
            self.worker.decline(&call);
            return;
        }
        self.raised += 1;
        let id = self.raised.to_string();
        question.request_id.clone_from(&id);
        self.log.append(Event::request_raised(question));
        self.worker.decline(&call);
        self.log.append(Event::request_resolved(id, Resolution::Declined));
    }

    /// Of the turn: of its own thread, and of its sub-agents.
    fn usage(&self) -> Usage {
        let own =
            self.usage_before.map_or_else(Usage::default, |before| self.usage_total.since(before));
        own + self.owned.agents_usage()
    }

    fn take_final_response(&mut self) -> String {
        let doubtful = self.is_response_doubtful.then(|| self.open_message.unended());
        final_response(doubtful, self.final_response.take())
    }

    fn terminal(&mut self, end: TurnEnd, stopping: Option<Stopping>, clocks: &Clocks) -> Outcome {
        let usage = self.usage();
        if let Some(wrong) = self.not_applied.take() {
            let counts = (usage, self.usage_total);
            let mut outcome = clocks.outcome(Cause::SettingsNotApplied, counts, self.side_effects);
            if let Outcome::Failed { error, .. } = &mut outcome {
                error.message = format!("{}: {wrong}", error.message);
            }
            return outcome;
        }
        let had_others = stopping.as_ref().is_some_and(|stopping| stopping.had_others);
        match (end, stopping.and_then(|stopping| stopping.cause)) {
            (_, Some(cause @ Cause::Budget)) => {
                clocks.outcome(cause, (usage, self.usage_total), self.side_effects)
            }
            (TurnEnd::Completed, cause) if cause.is_none() || !had_others => Outcome::Completed {
                final_response: self.take_final_response(),
                usage,
                thread_usage: self.usage_total,
            },
            (TurnEnd::Failed(mut error), _) => {
                error.side_effects_possible = self.side_effects;
                Outcome::Failed { error, usage, thread_usage: self.usage_total }
            }
            (TurnEnd::Completed | TurnEnd::Interrupted, Some(cause)) => {
                clocks.outcome(cause, (usage, self.usage_total), self.side_effects)
            }
            (TurnEnd::Completed | TurnEnd::Interrupted, None) => Outcome::Interrupted {
                reason: InterruptReason::Codex,
                usage,
                thread_usage: self.usage_total,
            },
        }
    }
}

fn unowned_turn_stopped(codex_turn_id: &str) -> Event {
    let message = format!(
        "Codex had begun turn {codex_turn_id} by itself on this thread, or on one of its \
         sub-agents; nobody had asked for it, and it was stopped"
    );
    Event::warning(WarningCode::UnownedTurnStopped, message, "")
}

/// What a turn answered. `doubtful`: an agent message may have been lost with its line, and what of it
/// came before.
fn final_response(doubtful: Option<Option<String>>, said: Option<String>) -> String {
    match (doubtful, said) {
        (Some(Some(unended)), _) => unended,
        (_, Some(said)) => said,
        // There may have been one: to say that there was none would be a claim.
        (Some(None), None) => String::new(),
        (None, None) => "Codex task completed with inputs.".to_owned(),
    }
}

fn worker_lost(
    exit: &WorkerExit,
    what: &str,
    side_effects_possible: bool,
    (usage, thread_usage): (Usage, Usage),
) -> Outcome {
    let cause = &exit.cause;
    let message = if what.is_empty() {
        format!("the worker ended with the turn on it: {cause}")
    } else {
        format!("the worker ended with the turn on it: {cause} ({what})")
    };
    let error = TurnError {
        details: exit.stderr_tail.join("\n"),
        retryable: true,
        side_effects_possible,
        ..TurnError::new(FailureReason::WorkerLost, message)
    };
    Outcome::Failed { error, usage, thread_usage }
}

fn unreadable(cause: &str) -> Outcome {
    let message = format!("whether Codex took the turn can't be known: {cause}");
    let error = TurnError::new(FailureReason::WorkerProtocol, message);
    let error = TurnError { side_effects_possible: true, ..error };
    Outcome::Failed { error, usage: Usage::default(), thread_usage: Usage::default() }
}

fn refused_by_codex(error: &ThreadError) -> Outcome {
    let (reason, retryable) = match error {
        ThreadError::Overloaded(_) => (FailureReason::ServerOverloaded, true),
        ThreadError::Steered(_) => (FailureReason::WorkerProtocol, true),
        ThreadError::NotFound(_)
        | ThreadError::Archived(_)
        | ThreadError::HeldElsewhere(_)
        | ThreadError::BadConfig(_)
        | ThreadError::Refused(_)
        | ThreadError::UnknownProfile(_)
        | ThreadError::NotApplied(_)
        | ThreadError::Unreadable(_)
        | ThreadError::Lost { .. } => (FailureReason::BadRequest, false),
    };
    let error = TurnError::new(reason, format!("Codex did not take the turn: {error}"));
    let error = TurnError { retryable, ..error };
    Outcome::Failed { error, usage: Usage::default(), thread_usage: Usage::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_claims_no_answer_that_may_have_been_lost() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(final_response(None, text("said")), "said");
        assert_eq!(final_response(None, None), "Codex task completed with inputs.");
        assert_eq!(final_response(Some(text("half")), text("said")), "half");
        assert_eq!(final_response(Some(None), text("said")), "said");
        assert_eq!(final_response(Some(None), None), "");
    }
}
