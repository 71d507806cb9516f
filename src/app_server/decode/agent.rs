//! Sub-agents: Codex's items about them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::item::{SubAgent, SubAgentAction, SubAgentPhase, SubAgentState, SubAgentStatus};

/// The item `collabAgentToolCall`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CollabCall {
    tool: String,
    status: CallStatus,
    #[serde(default)]
    sender_thread_id: String,
    #[serde(default)]
    receiver_thread_ids: Vec<String>,
    prompt: Option<String>,
    model: Option<String>,
    reasoning_effort: Option<String>,
    // A map with its keys in order, so that the same states make the same item.
    #[serde(default)]
    agents_states: BTreeMap<String, CodexState>,
}

/// The item `subAgentActivity`, which tells the same where agents have paths.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CodexActivity {
    kind: String,
    agent_thread_id: String,
    #[serde(default)]
    agent_path: String,
    model: Option<String>,
    reasoning_effort: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "camelCase")]
enum CallStatus {
    InProgress,
    Completed,
    Failed,
    Interrupted,
}

#[derive(Deserialize)]
struct CodexState {
    status: String,
    message: Option<String>,
}

impl CodexState {
    fn phase(&self) -> SubAgentPhase {
        match self.status.as_str() {
            "pendingInit" => SubAgentPhase::Pending,
            "running" => SubAgentPhase::Running,
            "interrupted" => SubAgentPhase::Interrupted,
            "completed" => SubAgentPhase::Completed,
            "errored" => SubAgentPhase::Errored,
            "shutdown" => SubAgentPhase::Closed,
            "notFound" => SubAgentPhase::NotFound,
            _ => SubAgentPhase::Unspecified,
        }
    }
}

impl From<CollabCall> for SubAgent {
    fn from(call: CollabCall) -> SubAgent {
        let CollabCall {
            tool,
            status,
            sender_thread_id,
            receiver_thread_ids,
            prompt,
            model,
            reasoning_effort,
            mut agents_states,
        } = call;
        let mut agents: Vec<SubAgentState> = receiver_thread_ids
            .into_iter()
            .map(|id| {
                let state = agents_states.remove(&id);
                agent(id, state)
            })
            .collect();
        agents.extend(agents_states.into_iter().map(|(id, state)| agent(id, Some(state))));
        SubAgent {
            action: match tool.as_str() {
                "spawnAgent" => SubAgentAction::Spawn,
                "sendInput" | "sendMessage" | "followupTask" => SubAgentAction::Message,
                "wait" => SubAgentAction::Wait,
                "closeAgent" => SubAgentAction::Close,
                "resumeAgent" => SubAgentAction::Resume,
                "interruptAgent" => SubAgentAction::Interrupt,
                "listAgents" => SubAgentAction::List,
                _ => SubAgentAction::Unspecified,
            }
            .into(),
            tool,
            status: match status {
                CallStatus::InProgress => SubAgentStatus::InProgress,
                CallStatus::Completed => SubAgentStatus::Completed,
                CallStatus::Failed => SubAgentStatus::Failed,
                CallStatus::Interrupted => SubAgentStatus::Interrupted,
            }
            .into(),
            sender_thread_id,
            agents,
            prompt: prompt.unwrap_or_default(),
            model: model.unwrap_or_default(),
            reasoning_effort: reasoning_effort.unwrap_or_default(),
        }
    }
}

fn agent(thread_id: String, state: Option<CodexState>) -> SubAgentState {
    SubAgentState {
        thread_id,
        path: String::new(),
        phase: state.as_ref().map_or(SubAgentPhase::Unspecified, CodexState::phase).into(),
        message: state.and_then(|state| state.message).unwrap_or_default(),
    }
}

impl From<CodexActivity> for SubAgent {
    fn from(activity: CodexActivity) -> SubAgent {
        let CodexActivity { kind, agent_thread_id, agent_path, model, reasoning_effort } = activity;
        let (action, phase) = match kind.as_str() {
            "started" => (SubAgentAction::Spawn, SubAgentPhase::Pending),
            "interacted" => (SubAgentAction::Message, SubAgentPhase::Unspecified),
            "interrupted" => (SubAgentAction::Interrupt, SubAgentPhase::Interrupted),
            "completed" => (SubAgentAction::Finish, SubAgentPhase::Completed),
            _ => (SubAgentAction::Unspecified, SubAgentPhase::Unspecified),
        };
        let message = String::new();
        SubAgent {
            action: action.into(),
            tool: kind,
            // It is told once it is done.
            status: SubAgentStatus::Completed.into(),
            sender_thread_id: String::new(),
            agents: vec![SubAgentState {
                thread_id: agent_thread_id,
                path: agent_path,
                phase: phase.into(),
                message,
            }],
            prompt: String::new(),
            model: model.unwrap_or_default(),
            reasoning_effort: reasoning_effort.unwrap_or_default(),
        }
    }
}
