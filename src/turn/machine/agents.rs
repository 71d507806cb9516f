//! What a turn hears that is not of Codex's turn for it: of sub-agents, and of other turns of its thread.

use super::owned::Begun;
use super::running::Run;
use super::{Act, Step};
use crate::app_server::decode::{News, TurnEnd};
use crate::app_server::message::Told;
use crate::model::event::{Event, ItemCompleted, ItemStarted, ItemUpdated};
use crate::model::item::{AgentMessage, Item, ItemKind, SubAgentStatus, UserMessage};
use crate::pb::user_input::Input;

impl Run {
    /// Takes what is told of another turn of the thread: a late word on an earlier one, or the begin of
    /// one that Codex starts by itself.
    pub(super) fn take_anothers(&mut self, told: Told, step: &mut Step<'_>) {
        match (told.news, told.scope.turn_id) {
            (News::TurnStarted { root_turn_id }, Some(turn_id)) => {
                let begun = self.owned.turn_begins(&turn_id, root_turn_id.as_deref());
                if begun == Begun::Continuation {
                    self.end = None;
                    self.final_response = None;
                    step.clocks.note_progress(step.now);
                    step.acts.push(Act::Tell(Event::turn_started(&turn_id, None)));
                    // Input is added to what runs now.
                    self.current_turn_id = turn_id;
                }
            }
            // What it used is its own.
            (News::TokenUsage { total, .. }, _) => self.meter.pass_over(total),
            (_, _) => {}
        }
    }

    /// Takes what a sub-agent tells. It becomes an item of the turn: what the sub-agent says must not be
    /// taken for what the turn's own agent says.
    pub(super) fn take_agents(&mut self, thread_id: &str, told: Told, step: &mut Step<'_>) {
        let Told { scope, news, .. } = told;
        let now = step.now;
        let update = match news {
            News::TurnStarted { .. } => {
                let turn_id = scope.turn_id.as_deref();
                let begun = turn_id.and_then(|turn_id| self.owned.agent_begins(thread_id, turn_id));
                begun.map(Event::item_started)
            }
            News::TurnEnded(end) => {
                let status = match &end {
                    TurnEnd::Completed => SubAgentStatus::Completed,
                    TurnEnd::Interrupted => SubAgentStatus::Interrupted,
                    TurnEnd::Failed(_) => SubAgentStatus::Failed,
                };
                let ended = self.owned.agent_ends(thread_id, status, end.failure(), now);
                ended.map(Event::item_completed)
            }
            News::TokenUsage { total, last, model_context_window } => {
                if self.owned.agent_uses(thread_id, total, last) {
                    self.tell_usage(last, model_context_window, step.acts);
                }
                None
            }
            News::Event(
                Event::ItemStarted(ItemStarted { item: Some(item) })
                | Event::ItemUpdated(ItemUpdated { item: Some(item) }),
            ) => {
                self.side_effects |= item.has_side_effects();
                self.owned.notes_item(thread_id, &item, false, now);
                self.patches.note(thread_id, &item, false);
                None
            }
            News::Event(Event::ItemCompleted(ItemCompleted { item: Some(item) })) => {
                self.side_effects |= item.is_of_an_answer();
                self.owned.notes_item(thread_id, &item, true, now);
                self.patches.note(thread_id, &item, true);
                self.hear_agent(thread_id, item)
            }
            News::Event(warning @ Event::Warning(_)) => Some(warning),
            News::Goal { is_active } => {
                self.owned.goal_changes(thread_id, is_active);
                None
            }
            News::ThreadUnloaded => {
                self.owned.agent_goes(thread_id, now).map(Event::item_completed)
            }
            News::Event(_)
            | News::Plan(_)
            | News::RequestResolved(_)
            | News::McpServer { .. }
            | News::Settings(_)
            | News::ThreadStarted { .. }
            | News::ThreadIdle
            | News::Other => None,
        };
        if let Some(update) = update {
            self.tell(update, step.acts);
        }
    }

    /// What a sub-agent says, or is told.
    fn hear_agent(&mut self, thread_id: &str, item: Item) -> Option<Event> {
        match item.kind {
            Some(ItemKind::AgentMessage(AgentMessage { text, .. })) => {
                self.owned.agent_says(thread_id, &text).map(Event::item_updated)
            }
            Some(ItemKind::UserMessage(UserMessage { inputs })) => {
                let texts = inputs.into_iter().filter_map(|input| match input.input {
                    Some(Input::Text(text)) => Some(text),
                    Some(
                        Input::LocalImage(_)
                        | Input::ImageUrl(_)
                        | Input::Skill(_)
                        | Input::Mention(_)
                        | Input::ExternalMessage(_),
                    )
                    | None => None,
                });
                self.owned.agent_hears(thread_id, texts.collect::<Vec<_>>().join("\n\n"));
                None
            }
            _ => None,
        }
    }
}
