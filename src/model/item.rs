//! The things that a turn makes or does, as the contract has them.

pub(crate) use crate::pb::item::Kind as ItemKind;
pub(crate) use crate::pb::web_search::Action as WebSearchAction;
pub(crate) use crate::pb::{
    AgentMessage, ChangedFile, CommandExecution, CommandExecutionStatus, ContextCompaction,
    DynamicToolCall, DynamicToolCallStatus, ErrorItem, FileChange, FileChangeKind,
    FileChangeStatus, HookPrompt, HookPromptFragment, ImageGeneration, ImageView, Item,
    McpToolCall, McpToolCallStatus, Plan, Reasoning, ReviewMode, SubAgent, SubAgentAction,
    SubAgentPhase, SubAgentState, SubAgentStatus, TodoItem, TodoList, TodoStatus, ToolContent,
    UnknownItem, UserMessage, WebSearch,
};

impl Item {
    /// An item of this kind.
    pub fn new(id: impl Into<String>, kind: ItemKind) -> Item {
        Item { id: id.into(), kind: Some(kind) }
    }

    /// Whether the model has finished a piece of an answer if this item is final: from then on something
    /// may have been done that no item tells of.
    pub fn is_of_an_answer(&self) -> bool {
        !matches!(self.kind, Some(ItemKind::UserMessage(_) | ItemKind::Error(_)))
    }

    /// Whether its start means that the world outside the model may have changed. An item of an
    /// unknown kind may be a tool of a newer CLI.
    pub fn has_side_effects(&self) -> bool {
        match &self.kind {
            None
            | Some(
                ItemKind::CommandExecution(_)
                | ItemKind::FileChange(_)
                | ItemKind::McpToolCall(_)
                | ItemKind::DynamicToolCall(_)
                | ItemKind::Unknown(_),
            ) => true,
            // A sub-agent may act before anything is heard of it.
            Some(ItemKind::SubAgent(agent)) => match agent.action() {
                SubAgentAction::Spawn | SubAgentAction::Message | SubAgentAction::Unspecified => {
                    true
                }
                SubAgentAction::Wait
                | SubAgentAction::Close
                | SubAgentAction::Resume
                | SubAgentAction::Interrupt
                | SubAgentAction::List
                | SubAgentAction::Work
                | SubAgentAction::Finish => false,
            },
            Some(
                ItemKind::AgentMessage(_)
                | ItemKind::Reasoning(_)
                | ItemKind::WebSearch(_)
                | ItemKind::TodoList(_)
                | ItemKind::Error(_)
                | ItemKind::UserMessage(_)
                | ItemKind::ImageView(_)
                | ItemKind::ContextCompaction(_)
                | ItemKind::Plan(_)
                | ItemKind::ImageGeneration(_)
                | ItemKind::ReviewMode(_)
                | ItemKind::HookPrompt(_),
            ) => false,
        }
    }
}

impl TodoItem {
    /// A step of a plan.
    pub fn new(text: String, status: TodoStatus) -> TodoItem {
        TodoItem { text, completed: status == TodoStatus::Completed, status: status.into() }
    }
}
