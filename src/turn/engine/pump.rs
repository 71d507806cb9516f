//! One turn on an open thread: from `turn/start` to the end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::app_server::decode::{self, Decoded, TurnEnd};
use crate::app_server::message::{Notification, ServerRequest};
use crate::process;
use crate::turn::directory::{Live, Phase, Turn};
use crate::turn::engine::open::{Opened, PATIENCE};
use crate::turn::engine::{Cause, Clocks, Engine, Outcome, until};
use crate::turn::event::{
    Event, FailureReason, InterruptReason, Item, ItemKind, Request, Resolution, TodoItem,
    TurnError, Usage,
};
use crate::turn::log::Log;
use crate::turn::refusal::Refusal;
use crate::turn::request::{ThreadId, TurnRequest};
use crate::worker::thread::{ThreadError, Workspace};
use crate::worker::{Route, ThreadMessage, Worker, WorkerExit};

/// The worker died before it could have seen the turn; for this cause.
pub(super) struct NeverBegan(pub(super) String);

/// A turn that is being stopped.
#[derive(Debug)]
struct Stopping {
    cause: Cause,
    // Until when it may take to end.
    deadline: Instant,
    // Ends the interrupting.
    _interrupting: Option<DropGuard>,
}

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
        let Opened { thread_id, origin, mut loaded, warnings, mut route, lease, mut thread } =
            opened;
        let worker = lease.worker();
        let schema = request.turn_options.output_schema.as_ref();
        let handed_over = Instant::now();
        let began_at = process::Moment::now();
        // A cause that comes while Codex is being told waits for what it says, but not for long.
        let mut cause = None;
        let mut patience = PATIENCE.iter();
        let started = loop {
            let start = worker.start_turn(
                &thread_id,
                &mut loaded,
                &request.inputs,
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
        thread.loaded = Some(loaded);
        thread.publish_holder();

        // From here on the thread counts as this context's, also when the turn fails.
        if let Some(key) = request.context.as_ref().filter(|_| !request.ephemeral) {
            self.registry.bind(key, &thread_id);
        }
        if let Some(Err(ThreadError::Overloaded(said))) = started {
            // Nothing has begun, nor been told.
            self.forget_ephemeral(request, worker, &thread_id).await;
            return Ok(match cause {
                Some(cause) => Outcome::Ended(clocks.outcome(cause, Default::default(), false)),
                None => Outcome::Refused(Refusal::WorkerUnavailable {
                    cause: format!("Codex is overloaded: {said}"),
                    retry_after: Duration::from_secs(2),
                }),
            });
        }
        if let Some(key) = request.context.as_ref().filter(|_| !request.ephemeral) {
            self.registry.note_turn(key, &turn.id);
        }
        let thread_started = Event::ThreadStarted { thread_id: thread_id.to_string(), origin };
        turn.log.append(thread_started);
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
                return Ok(Outcome::Ended(clocks.outcome(cause, Default::default(), true)));
            }
            Some(Err(ThreadError::Lost { cause, .. })) => {
                let exit = if worker.is_alive() {
                    // It did not answer: whether the turn runs there can't be known.
                    worker.kill("it did not answer turn/start");
                    worker.exited().await
                } else {
                    worker.exited().await
                };
                return Ok(Outcome::Ended(worker_lost(
                    &exit,
                    &cause,
                    true,
                    (Usage::default(), Usage::default()),
                )));
            }
            Some(Err(error)) => {
                self.forget_ephemeral(request, worker, &thread_id).await;
                return Ok(Outcome::Ended(refused_by_codex(&error)));
            }
        };
        turn.log.append(Event::TurnStarted { codex_turn_id: codex_turn_id.clone() });
        turn.set_phase(Phase::Live(Live {
            worker: Arc::clone(worker),
            thread_id: thread_id.clone(),
            codex_turn_id: codex_turn_id.clone(),
        }));

        let mut run = Run {
            log: &turn.log,
            codex_turn_id,
            include_raw_events: request.include_raw_events,
            usage_before: thread.usage,
            usage_total: thread.usage.unwrap_or_default(),
            final_response: None,
            has_begun: false,
            side_effects: false,
            running_commands: Vec::new(),
            ran_commands: false,
            began_at,
            plan: None,
            raised: 0,
            last_progress: Instant::now(),
        };
        let end = self.pump(&mut run, &mut route, &thread_id, worker, clocks, cause).await;
        thread.is_blank &= !run.has_begun;
        if run.usage_before.is_some() {
            thread.usage = Some(run.usage_total);
        }
        let event = match end {
            Ended::Codex(end, cause) => {
                worker.note_turn_completed();
                if end != TurnEnd::Completed {
                    run.end_commands(worker, &thread_id).await;
                }
                run.close_plan();
                run.terminal(end, cause, clocks)
            }
            Ended::Unresponsive(cause) => {
                thread.loaded = None;
                run.close_plan();
                run.terminal(TurnEnd::Interrupted, Some(cause), clocks)
            }
            Ended::WorkerLost(exit) => {
                run.close_plan();
                worker_lost(&exit, "", run.side_effects, (run.usage(), run.usage_total))
            }
        };
        self.forget_ephemeral(request, worker, &thread_id).await;
        Ok(Outcome::Ended(event))
    }

    async fn forget_ephemeral(&self, request: &TurnRequest, worker: &Worker, thread_id: &ThreadId) {
        if request.ephemeral {
            // Not worth more than a moment: it is for the worker's memory only.
            let forgetting = worker.forget_thread(thread_id);
            let _ = tokio::time::timeout(self.settings.timeouts.interrupt_grace, forgetting).await;
            self.pool.threads().forget(thread_id);
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
            if let Some(cause) = cause.take().filter(|_| stopping.is_none()) {
                stopping = Some(Stopping {
                    cause,
                    deadline: Instant::now() + self.settings.timeouts.interrupt_grace,
                    _interrupting: self.interrupt(worker, thread_id, &run.codex_turn_id),
                });
            }
            let give_up_at = stopping.as_ref().map(|stopping| stopping.deadline);
            if in_a_row >= FLOOD {
                in_a_row = 0;
                match &stopping {
                    None => cause = clocks.has_struck(Some(run.last_progress)),
                    Some(Stopping { cause, deadline, .. }) if *deadline <= Instant::now() => {
                        run.end_commands(worker, thread_id).await;
                        self.give_up(worker, thread_id).await;
                        return Ended::Unresponsive(*cause);
                    }
                    Some(_) => {}
                }
                if cause.is_some() {
                    continue;
                }
            }
            tokio::select! {
                biased;
                // First what has happened: an end already here beats every clock.
                message = route.recv() => {
                    in_a_row += 1;
                    let end = match message {
                        Some(ThreadMessage::Notification(notification)) => run.take(&notification),
                        Some(ThreadMessage::Request(request)) => { run.decline(worker, &request); None }
                        None => return Ended::WorkerLost(worker.exited().await),
                    };
                    if let Some(end) = end {
                        return Ended::Codex(end, stopping.map(|stopping| stopping.cause));
                    }
                }
                struck = clocks.strike(Some(run.last_progress)), if stopping.is_none() => {
                    in_a_row = 0;
                    cause = Some(struck);
                }
                // Seen above.
                () = until(give_up_at), if stopping.is_some() => in_a_row = FLOOD,
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
    ) -> Option<DropGuard> {
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
        Some(guard)
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
    /// Codex said so; why it had been told to, if it had.
    Codex(TurnEnd, Option<Cause>),
    /// Codex did not end it in time.
    Unresponsive(Cause),
    /// The worker ended.
    WorkerLost(Arc<WorkerExit>),
}

/// What is known of a running turn.
struct Run<'a> {
    log: &'a Log,
    codex_turn_id: String,
    include_raw_events: bool,
    // The thread's counts before this turn; `None` until the first report of a resumed thread.
    usage_before: Option<Usage>,
    usage_total: Usage,
    final_response: Option<String>,
    // Whether Codex said anything about this turn.
    has_begun: bool,
    side_effects: bool,
    running_commands: Vec<String>,
    ran_commands: bool,
    // Before Codex could have started a command for it.
    began_at: process::Moment,
    plan: Option<(Vec<TodoItem>, Option<String>)>,
    raised: u64,
    last_progress: Instant,
}

impl Run<'_> {
    /// Files a notification; returns the turn's end, if it is that.
    fn take(&mut self, notification: &Notification) -> Option<TurnEnd> {
        let scope = decode::scope(&notification.params);
        if scope.turn_id.as_ref().is_some_and(|turn_id| *turn_id != self.codex_turn_id) {
            // A late word on an earlier turn of this thread.
            return None;
        }
        let decoded = decode::notification(notification);
        let is_retry =
            matches!(decoded, Decoded::Event(Event::ThreadError { will_retry: true, .. }));
        // Only what is about this turn is progress, and trying again is not.
        // Items come after the input was written to the rollout.
        self.has_begun |= notification.method.starts_with("item/");
        if scope.turn_id.is_some() && !is_retry {
            self.last_progress = Instant::now();
        }
        match decoded {
            Decoded::Event(event) => self.file(event),
            Decoded::Plan { items, explanation } => self.update_plan(items, explanation),
            Decoded::TokenUsage { total, last, model_context_window } => {
                // Older CLIs begin a turn by repeating the counts of the one before.
                if self.usage_before.is_some() && total == self.usage_total {
                    return None;
                }
                // A resumed thread's earlier counts are what this first report adds to.
                self.usage_before.get_or_insert_with(|| total.since(last));
                self.usage_total = total;
                let turn = self.usage();
                let last_request = last;
                self.log.append(Event::TokenUsageUpdated {
                    turn,
                    thread: total,
                    last_request,
                    model_context_window,
                });
            }
            Decoded::TurnEnded(end) => return Some(end),
            // Every request is answered at once, so that there is none to be withdrawn.
            Decoded::TurnStarted | Decoded::RequestResolved { .. } => {}
            Decoded::Untyped if self.include_raw_events => {
                let Notification { method, params } = notification;
                let (method, json) = (method.clone(), params.get().to_owned());
                self.log.append(Event::Raw { method, json });
            }
            Decoded::Untyped => {}
        }
        None
    }

    fn file(&mut self, mut event: Event) {
        match &mut event {
            Event::ItemStarted(item) => {
                self.side_effects |= item.has_side_effects();
                if matches!(item.kind, ItemKind::CommandExecution(_)) {
                    self.running_commands.push(item.id.clone());
                    self.ran_commands = true;
                }
            }
            Event::ItemUpdated(item) => self.side_effects |= item.has_side_effects(),
            Event::ItemCompleted(item) => {
                self.side_effects |= item.has_side_effects();
                self.running_commands.retain(|id| *id != item.id);
                if let ItemKind::AgentMessage { text, .. } = &item.kind {
                    self.final_response = Some(text.clone());
                }
            }
            Event::ThreadError { error, .. } => error.side_effects_possible = self.side_effects,
            _ => {}
        }
        self.log.append(event);
    }

    fn update_plan(&mut self, items: Vec<TodoItem>, explanation: Option<String>) {
        let is_first = self.plan.is_none();
        self.plan = Some((items, explanation));
        if let Some(item) = self.plan_item() {
            let event = if is_first { Event::ItemStarted(item) } else { Event::ItemUpdated(item) };
            self.log.append(event);
        }
    }

    /// A plan is final when its turn is.
    fn close_plan(&mut self) {
        if let Some(item) = self.plan_item() {
            self.log.append(Event::ItemCompleted(item));
        }
    }

    fn plan_item(&self) -> Option<Item> {
        let (items, explanation) = self.plan.clone()?;
        let kind = ItemKind::TodoList { items, explanation };
        Some(Item { id: TODO_LIST_ID.to_owned(), kind })
    }

    /// Ends the commands that still run: an interruption leaves them alive.
    async fn end_commands(&self, worker: &Worker, thread_id: &ThreadId) {
        if !self.running_commands.is_empty() {
            let ending = worker.end_commands(thread_id, &self.running_commands);
            let _ = tokio::time::timeout(Duration::from_secs(2), ending).await;
        }
        if self.ran_commands {
            let killing = worker.kill_commands(thread_id, self.began_at);
            let _ = tokio::time::timeout(Duration::from_secs(2), killing).await;
        }
    }

    /// Says no to what Codex asks: an unanswered request would hang the turn for ever.
    fn decline(&mut self, worker: &Worker, request: &ServerRequest) {
        self.last_progress = Instant::now();
        self.raised += 1;
        let id = self.raised.to_string();
        let (item_id, kind) = decode::request(request);
        self.log.append(Event::RequestRaised(Request { id: id.clone(), item_id, kind }));
        worker.decline(request);
        let resolution = Resolution::Declined;
        self.log.append(Event::RequestResolved { request_id: id, resolution });
    }

    fn usage(&self) -> Usage {
        self.usage_before.map_or_else(Usage::default, |before| self.usage_total.since(before))
    }

    fn terminal(&mut self, end: TurnEnd, cause: Option<Cause>, clocks: &Clocks) -> Event {
        let usage = self.usage();
        match (end, cause) {
            (TurnEnd::Completed, _) => Event::TurnCompleted {
                final_response: self
                    .final_response
                    .take()
                    .unwrap_or_else(|| "Codex task completed with inputs.".to_owned()),
                usage,
                thread_usage: self.usage_total,
            },
            (TurnEnd::Failed(mut error), _) => {
                error.side_effects_possible = self.side_effects;
                Event::TurnFailed { error, usage, thread_usage: self.usage_total }
            }
            (TurnEnd::Interrupted, Some(cause)) => {
                clocks.outcome(cause, (usage, self.usage_total), self.side_effects)
            }
            (TurnEnd::Interrupted, None) => Event::TurnInterrupted {
                reason: InterruptReason::Codex,
                usage,
                thread_usage: self.usage_total,
            },
        }
    }
}

fn worker_lost(
    exit: &WorkerExit,
    what: &str,
    side_effects_possible: bool,
    (usage, thread_usage): (Usage, Usage),
) -> Event {
    let cause = &exit.cause;
    let message = if what.is_empty() {
        format!("the worker ended with the turn on it: {cause}")
    } else {
        format!("the worker ended with the turn on it: {cause} ({what})")
    };
    let error = TurnError {
        reason: FailureReason::WorkerLost,
        message,
        details: exit.stderr_tail.join("\n"),
        retryable: true,
        retry_after: None,
        side_effects_possible,
        http_status: None,
    };
    Event::TurnFailed { error, usage, thread_usage }
}

fn refused_by_codex(error: &ThreadError) -> Event {
    let (reason, retryable) = match error {
        ThreadError::Overloaded(_) => (FailureReason::ServerOverloaded, true),
        ThreadError::NotFound(_)
        | ThreadError::Archived(_)
        | ThreadError::HeldElsewhere(_)
        | ThreadError::Refused(_)
        | ThreadError::Lost { .. } => (FailureReason::BadRequest, false),
    };
    let error = TurnError {
        reason,
        message: format!("Codex did not take the turn: {error}"),
        details: String::new(),
        retryable,
        retry_after: None,
        side_effects_possible: false,
        http_status: None,
    };
    Event::TurnFailed { error, usage: Usage::default(), thread_usage: Usage::default() }
}
