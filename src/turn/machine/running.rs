//! What is known of a turn that Codex has taken, and what becomes of all that is told of it.

use tokio::time::Instant;

use super::meter::Meter;
use super::outcome::Counts;
use super::owned::{Owned, Rest, Whose};
use super::patches::Patches;
use super::skipped::OpenMessage;
use super::withheld::Withheld;
use super::{Act, Begun, Kept, Policy, Step, Terms};
use crate::app_server::decode::{News, TurnEnd};
use crate::app_server::message::{Asked, Told};
use crate::app_server::settings::Gate;
use crate::model::event::{
    ApprovalReviewStatus, ApprovalReviewed, Event, McpServerStatus, TokenUsageUpdated, Usage,
    WarningCode,
};
use crate::model::failure::TurnError;
use crate::model::id::ThreadId;
use crate::model::item::{AgentMessage, Item, ItemKind, TodoList};
use crate::model::question::{Question, QuestionKind};
use crate::turn::clocks::Cause;

/// The item that stands for the agent's plan; Codex has plans but no item for them.
const TODO_LIST_ID: &str = "todo_list";

/// Most reviews that are known to be under way: Codex has one at a time for each call of the model.
const MOST_REVIEWS: usize = 64;

#[derive(Debug)]
pub(super) struct Run {
    pub(super) thread_id: ThreadId,
    // Codex's id of the first of its turns that are this one.
    pub(super) codex_turn_id: String,
    // That of the latest, to which input is added.
    pub(super) current_turn_id: String,
    pub(super) owned: Owned,
    // How Codex ended its turn on the turn's own thread, unless it goes on.
    pub(super) end: Option<TurnEnd>,
    // Whether something may have been done, as far as events tell.
    pub(super) side_effects: bool,
    // An error that the turn's end follows, until it is known whether something may have been done.
    pub(super) held_error: Option<(TurnError, bool)>,
    // In which respect more came into force than was asked. From then on nothing is told but the end.
    pub(super) not_applied: Option<String>,
    pub(super) final_response: Option<String>,
    // What of an agent message came before its item.
    pub(super) open_message: OpenMessage,
    // Whether an agent message may have been lost.
    pub(super) is_response_doubtful: bool,
    // Of texts that are told in pieces, what may be a part of a key.
    pub(super) withheld: Withheld,
    // Whether Codex said anything about this turn.
    pub(super) has_begun: bool,
    include_raw_events: bool,
    may_have_goal: bool,
    pub(super) meter: Meter,
    plan: Option<TodoList>,
    // Those that Codex's reviewer has not ended.
    reviews: Vec<ApprovalReviewed>,
    pub(super) patches: Patches,
    // Nothing of the turn is told before this lets it pass.
    gate: Gate,
}

impl Run {
    /// Codex has taken the turn, which is told.
    pub(super) fn begin(thread_id: ThreadId, begun: Begun, step: &mut Step<'_>) -> Run {
        let Begun {
            codex_turn_id,
            settings,
            gate,
            usage,
            redactor,
            may_have_goal,
            stopped,
            mcp_servers,
        } = begun;
        step.acts.extend(stopped.iter().map(|stopped| Act::Tell(unowned_turn_stopped(stopped))));
        step.acts.push(Act::Tell(Event::turn_started(&codex_turn_id, settings)));
        for status in mcp_servers {
            tell_mcp_server(status, step.acts);
        }
        Run {
            owned: Owned::new(thread_id.as_str(), &step.terms.root, &codex_turn_id)
                .of_review(step.terms.is_review),
            thread_id,
            current_turn_id: codex_turn_id.clone(),
            codex_turn_id,
            end: None,
            side_effects: false,
            held_error: None,
            not_applied: None,
            final_response: None,
            open_message: OpenMessage::default(),
            is_response_doubtful: false,
            withheld: Withheld::new(redactor),
            has_begun: false,
            include_raw_events: step.terms.include_raw_events,
            may_have_goal,
            meter: Meter::from(usage),
            plan: None,
            reviews: Vec::new(),
            patches: Patches::default(),
            gate,
        }
    }

    /// Whether anything of the turn runs.
    pub(super) fn rest(&self, now: Instant) -> Rest {
        if self.end.is_none() { Rest::Busy } else { self.owned.rest(now) }
    }

    pub(super) fn ended_badly(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end != TurnEnd::Completed)
    }

    /// Why the turn must stop, of what it did or was given.
    pub(super) fn cause_to_stop(&self, terms: &Terms) -> Option<Cause> {
        if self.not_applied.is_some() {
            return Some(Cause::SettingsNotApplied);
        }
        let most = u64::from(terms.max_total_tokens?);
        (self.counts().turn.total_tokens() > most).then_some(Cause::Budget)
    }

    /// The threads with a goal that Codex may go on with.
    pub(super) fn goals(&self) -> Vec<ThreadId> {
        let mut goals: Vec<_> = self.owned.goals().into_iter().map(ThreadId::from_codex).collect();
        if self.may_have_goal && !goals.contains(&self.thread_id) {
            goals.push(self.thread_id.clone());
        }
        goals
    }

    /// Of the turn: of its own thread, and of its sub-agents.
    pub(super) fn counts(&self) -> Counts {
        let turn = self.meter.used() + self.owned.agents_usage();
        Counts { turn, thread: self.meter.total().unwrap_or_default() }
    }

    /// What is kept of the thread.
    pub(super) fn kept(&self) -> Kept {
        Kept {
            has_begun: self.has_begun,
            // Where it was not what was asked, the thread is loaded anew before its next turn.
            in_force: self.gate.clone().in_force().filter(|_| self.not_applied.is_none()),
            usage: self.meter.total(),
        }
    }

    /// Tells an event, unless more came into force than was asked: then only the end is told.
    pub(super) fn tell(&self, event: Event, acts: &mut Vec<Act>) {
        if self.not_applied.is_none() {
            acts.push(Act::Tell(event));
        }
    }

    /// Takes in what Codex tells.
    pub(super) fn take(&mut self, told: Told, step: &mut Step<'_>) {
        let whose = self.owned.whose(&told.scope);
        match &told.news {
            // Those of a sub-agent's thread are not this turn's.
            News::Settings(settings)
                if told.scope.thread_id.as_deref() == Some(self.thread_id.as_str()) =>
            {
                let heard = self.gate.hear(settings.clone());
                self.hold_back(heard);
            }
            // Whoever's question it was.
            News::RequestResolved(call) => step.questions.withdraw(call, step.acts),
            _ => {}
        }
        // Only what is about this turn is progress, and trying again is not.
        if whose != Whose::Another && told.scope.turn_id.is_some() && !told.is_retry() {
            step.clocks.note_progress(step.now);
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
                    self.tell(told.raw(), step.acts);
                }
                self.take_own(told, step);
            }
            Whose::Another => self.take_anothers(told, step),
            Whose::Agent(thread_id) => {
                if self.include_raw_events {
                    self.tell(told.raw(), step.acts);
                }
                self.take_agents(&thread_id, told, step);
            }
        }
    }

    fn take_own(&mut self, Told { scope, news, .. }: Told, step: &mut Step<'_>) {
        match news {
            News::McpServer { status, .. } => tell_mcp_server(status, step.acts),
            News::Event(event) => self.file(event, step),
            News::Plan(_) if self.not_applied.is_some() => {}
            News::Plan(plan) => self.update_plan(plan, step.acts),
            News::TokenUsage { total, last, model_context_window } => {
                // Older CLIs begin a turn by repeating the counts of the one before.
                if self.meter.take(total, last) {
                    self.tell_usage(last, model_context_window, step.acts);
                }
            }
            News::TurnEnded(end) => {
                let went_well = end == TurnEnd::Completed;
                if self.owned.turn_ends(scope.turn_id.as_deref(), went_well, step.now) {
                    self.end = Some(end);
                }
            }
            News::Goal { is_active } => {
                self.owned.goal_changes(self.thread_id.as_str(), is_active);
            }
            // Its begin was told when Codex took it.
            News::TurnStarted { .. }
            | News::RequestResolved(_)
            | News::Settings(_)
            | News::ThreadStarted { .. }
            | News::ThreadUnloaded
            | News::ThreadIdle
            | News::Other => {}
        }
    }

    /// Codex asks something, of the turn or of one of its sub-agents.
    pub(super) fn ask(&mut self, mut asked: Asked, policy: &Policy, step: &mut Step<'_>) {
        let whose = self.owned.whose(&asked.scope);
        self.complete(&mut asked.question, &whose);
        // What Codex does in a turn that is not the caller's the caller can't allow.
        let policy = if whose == Whose::Another { &Policy::Decline } else { policy };
        step.clocks.note_progress(step.now);
        self.side_effects = true;
        let passed = self.gate.pass();
        self.hold_back(passed);
        if self.not_applied.is_some() {
            step.acts.push(Act::Decline(asked.call));
            return;
        }
        step.questions.raise(asked, policy, step.now, step.acts);
    }

    /// Adds what is known of what a question is about.
    fn complete(&self, question: &mut Question, whose: &Whose) {
        let thread_id = match whose {
            Whose::Agent(thread_id) => thread_id.as_str(),
            Whose::Own | Whose::Another => self.thread_id.as_str(),
        };
        if let Some(QuestionKind::FileChangeApproval(asked)) = &mut question.kind
            && asked.changes.is_empty()
        {
            asked.changes = self.patches.changes(thread_id, &question.item_id);
        }
        if let Whose::Agent(thread_id) = whose {
            // The sub-agent's own items are not told.
            question.item_id = self.owned.agent_item(thread_id).unwrap_or_default().to_owned();
        }
    }

    pub(super) fn tell_usage(
        &self,
        last_request: Usage,
        model_context_window: Option<u64>,
        acts: &mut Vec<Act>,
    ) {
        let Counts { turn, thread } = self.counts();
        let event = TokenUsageUpdated {
            usage: Some(turn),
            thread_usage: Some(thread),
            last_request_usage: Some(last_request),
            model_context_window,
        };
        self.tell(Event::TokenUsageUpdated(event), acts);
    }

    fn file(&mut self, mut event: Event, step: &mut Step<'_>) {
        if !self.withheld.hold(&mut event) {
            return;
        }
        match &mut event {
            Event::ItemStarted(started) => {
                if let Some(item) = &started.item {
                    self.side_effects |= item.has_side_effects();
                    self.owned.notes_item(self.thread_id.as_str(), item, false, step.now);
                    self.patches.note(self.thread_id.as_str(), item, false);
                }
            }
            Event::ItemUpdated(updated) => {
                if let Some(item) = &updated.item {
                    self.side_effects |= item.has_side_effects();
                    self.patches.note(self.thread_id.as_str(), item, false);
                }
            }
            Event::ApprovalReviewed(review) => self.note_review(review),
            Event::AgentMessageDelta(delta) => self.open_message.add(&delta.item_id, &delta.text),
            Event::ItemCompleted(completed) => {
                if let Some(item) = &completed.item {
                    self.side_effects |= item.is_of_an_answer();
                    self.release_withheld(&item.id, step.acts);
                    self.owned.notes_item(self.thread_id.as_str(), item, true, step.now);
                    self.patches.note(self.thread_id.as_str(), item, true);
                    if let Some(ItemKind::AgentMessage(AgentMessage { text, .. })) = &item.kind {
                        self.final_response = Some(text.clone());
                        self.open_message.close(&item.id);
                    }
                }
            }
            Event::ThreadError(told) => {
                self.tell_held_error(step.acts);
                if let Some(error) = &mut told.error {
                    if !told.will_retry {
                        self.held_error = Some((std::mem::take(error), false));
                        return;
                    }
                    // What the failed try did before it failed can't be known yet.
                    error.side_effects_possible = true;
                }
            }
            _ => {}
        }
        self.tell(event, step.acts);
    }

    fn note_review(&mut self, review: &ApprovalReviewed) {
        self.reviews.retain(|known| known.review_id != review.review_id);
        if review.status() == ApprovalReviewStatus::InProgress && self.reviews.len() < MOST_REVIEWS
        {
            self.reviews.push(review.clone());
        }
    }

    /// Keeps the first thing that is wrong with what came into force.
    fn hold_back(&mut self, checked: Result<(), String>) {
        if let (Err(wrong), None) = (checked, &self.not_applied) {
            self.not_applied = Some(wrong);
        }
    }

    /// Tells what was held back of an item's texts, once it is final.
    pub(super) fn release_withheld(&mut self, item_id: &str, acts: &mut Vec<Act>) {
        for event in self.withheld.release(item_id) {
            self.tell(event, acts);
        }
    }

    /// Tells what was kept back until the turn is over.
    pub(super) fn finish(&mut self, acts: &mut Vec<Act>) {
        for event in self.withheld.release_all() {
            self.tell(event, acts);
        }
        self.tell_held_error(acts);
        // Codex says so itself, but as a rule after the turn's end.
        for mut review in std::mem::take(&mut self.reviews) {
            review.set_status(ApprovalReviewStatus::Aborted);
            self.tell(Event::ApprovalReviewed(review), acts);
        }
        // A plan is final when its turn is.
        if let Some(item) = self.plan_item() {
            self.tell(Event::item_completed(item), acts);
        }
    }

    fn tell_held_error(&mut self, acts: &mut Vec<Act>) {
        if let Some((mut error, will_retry)) = self.held_error.take() {
            error.side_effects_possible = self.side_effects;
            acts.push(Act::Tell(Event::thread_error(error, will_retry)));
        }
    }

    fn update_plan(&mut self, plan: TodoList, acts: &mut Vec<Act>) {
        // The model called a tool to say so.
        self.side_effects = true;
        let is_first = self.plan.is_none();
        self.plan = Some(plan);
        if let Some(item) = self.plan_item() {
            let event =
                if is_first { Event::item_started(item) } else { Event::item_updated(item) };
            acts.push(Act::Tell(event));
        }
    }

    fn plan_item(&self) -> Option<Item> {
        let plan = self.plan.clone()?;
        Some(Item::new(TODO_LIST_ID, ItemKind::TodoList(plan)))
    }

    pub(super) fn take_final_response(&mut self) -> String {
        let doubtful = self.is_response_doubtful.then(|| self.open_message.unended());
        final_response(doubtful, self.final_response.take())
    }
}

fn tell_mcp_server(status: McpServerStatus, acts: &mut Vec<Act>) {
    let warning = status.warning();
    acts.push(Act::Tell(Event::McpServerStatus(status)));
    acts.extend(warning.map(Act::Tell));
}

fn unowned_turn_stopped(codex_turn_id: &str) -> Event {
    let message = format!(
        "Codex had begun turn {codex_turn_id} by itself on this thread, or on one of its sub-agents; \
         nobody had asked for it, and it was stopped"
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
