//! What a notification tells of threads beside its own: parents, children, turns and goals.
//!
//! A worker must know it of every message, so what tells nothing is told apart by its method alone.

use serde::Deserialize;
use serde_json::Value;

use super::{Decoded, TurnEnd, notification};
use crate::app_server::message::Notification;
use crate::model::event::{Event, ItemCompleted, ItemStarted, Usage};
use crate::model::item::ItemKind;

/// What a notification tells of threads.
#[derive(Debug, Clone, PartialEq)]
pub enum Kinship {
    /// A thread is there, of this parent where it is a sub-agent's.
    Thread {
        /// The thread.
        thread_id: String,
        /// The thread of the agent that made it.
        parent: Option<String>,
    },
    /// A thread is loaded no more.
    Unloaded {
        /// The thread.
        thread_id: String,
    },
    /// An agent has to do with these sub-agents.
    Children {
        /// The agent's thread.
        parent: String,
        /// The threads of the others.
        children: Vec<String>,
    },
    /// A turn began.
    TurnStarted {
        /// The thread.
        thread_id: String,
        /// The turn.
        turn_id: String,
        /// The first turn in the chain of work that led to it, where Codex says it: its own id, or
        /// for a sub-agent and a goal's continuation that of the turn that began it all.
        root_turn_id: Option<String>,
    },
    /// A turn ended.
    TurnEnded {
        /// The thread.
        thread_id: String,
    },
    /// A goal changed.
    Goal {
        /// The thread.
        thread_id: String,
        /// Whether Codex goes on with it by itself.
        is_active: bool,
    },
    /// Token counts.
    Counts {
        /// The thread.
        thread_id: String,
        /// Of the thread so far.
        total: Usage,
    },
}

/// Reads what a notification tells of threads; `None` for most.
pub fn kinship(told: &Notification) -> Option<Kinship> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Params {
        thread_id: Option<String>,
        thread: Option<CodexThread>,
        turn: Option<CodexTurn>,
        goal: Option<CodexGoal>,
        status: Option<CodexStatus>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct CodexTurn {
        id: String,
        root_turn_id: Option<String>,
    }
    #[derive(Deserialize)]
    struct CodexGoal {
        status: String,
    }
    #[derive(Deserialize)]
    struct CodexStatus {
        r#type: String,
    }

    let Notification { method, params } = told;
    match method.as_str() {
        "thread/started"
        | "thread/closed"
        | "thread/status/changed"
        | "turn/started"
        | "turn/completed"
        | "thread/goal/updated"
        | "thread/goal/cleared" => {}
        "thread/tokenUsage/updated" => {
            let Decoded::TokenUsage { total, .. } = notification(told) else { return None };
            let thread_id = super::scope(params).thread_id?;
            return Some(Kinship::Counts { thread_id, total });
        }
        // Read whole only where the words are there at all: an item may be of megabytes.
        "item/started" | "item/completed"
            if params.get().contains("\"collabAgentToolCall\"")
                || params.get().contains("\"subAgentActivity\"") =>
        {
            return children(told);
        }
        _ => return None,
    }
    let params: Params = serde_json::from_str(params.get()).ok()?;
    if method == "thread/started" {
        let CodexThread { id, parent_thread_id, source } = params.thread?;
        let parent = parent_thread_id.or_else(|| spawned_by(&source));
        return Some(Kinship::Thread { thread_id: id, parent });
    }
    let thread_id = params.thread_id?;
    Some(match method.as_str() {
        "turn/started" => {
            let CodexTurn { id, root_turn_id } = params.turn?;
            Kinship::TurnStarted { thread_id, turn_id: id, root_turn_id }
        }
        "turn/completed" => Kinship::TurnEnded { thread_id },
        "thread/closed" => Kinship::Unloaded { thread_id },
        "thread/status/changed" => match params.status?.r#type.as_str() {
            "notLoaded" => Kinship::Unloaded { thread_id },
            // Told a moment before the turn's own end.
            "idle" | "systemError" => Kinship::TurnEnded { thread_id },
            _ => return None,
        },
        "thread/goal/updated" => {
            let is_active = params.goal?.status == "active";
            Kinship::Goal { thread_id, is_active }
        }
        "thread/goal/cleared" => Kinship::Goal { thread_id, is_active: false },
        _ => return None,
    })
}

/// A thread, as far as it tells of its parent.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CodexThread {
    id: String,
    parent_thread_id: Option<String>,
    #[serde(default)]
    source: Value,
}

fn spawned_by(source: &Value) -> Option<String> {
    source.pointer("/subAgent/thread_spawn/parent_thread_id")?.as_str().map(str::to_owned)
}

fn children(told: &Notification) -> Option<Kinship> {
    let parent = super::scope(&told.params).thread_id?;
    let Decoded::Event(
        Event::ItemStarted(ItemStarted { item }) | Event::ItemCompleted(ItemCompleted { item }),
    ) = notification(told)
    else {
        return None;
    };
    let ItemKind::SubAgent(agent) = item?.kind? else { return None };
    let sender = Some(agent.sender_thread_id).filter(|id| !id.is_empty()).unwrap_or(parent);
    let children = agent.agents.into_iter().map(|agent| agent.thread_id).collect();
    Some(Kinship::Children { parent: sender, children })
}

/// The answer to `thread/read`, as far as it tells of a parent.
#[derive(Debug, Clone, Deserialize)]
pub struct ThreadRead {
    thread: CodexThread,
}

impl ThreadRead {
    /// The thread of the agent that made this one.
    pub fn parent(&self) -> Option<String> {
        self.thread.parent_thread_id.clone().or_else(|| spawned_by(&self.thread.source))
    }
}

/// How a turn's end is told of a sub-agent's.
pub fn failure_of(end: &TurnEnd) -> Option<&str> {
    match end {
        TurnEnd::Failed(error) => Some(&error.message),
        TurnEnd::Completed | TurnEnd::Interrupted => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use serde_json::value::RawValue;

    use super::*;

    fn read(method: &str, params: Value) -> Option<Kinship> {
        let params = RawValue::from_string(params.to_string()).unwrap();
        kinship(&Notification { method: method.to_owned(), params })
    }

    #[test]
    fn a_parent_is_read_wherever_a_cli_tells_it() {
        let thread = |thread: Value| read("thread/started", json!({ "thread": thread }));
        let child = |parent: Option<&str>| {
            let parent = parent.map(str::to_owned);
            Some(Kinship::Thread { thread_id: "c".to_owned(), parent })
        };
        assert_eq!(
            thread(json!({"id": "c", "parentThreadId": null, "source": "vscode"})),
            child(None)
        );
        assert_eq!(thread(json!({"id": "c", "parentThreadId": "p"})), child(Some("p")));
        let source = json!({"subAgent": {"thread_spawn": {"parent_thread_id": "p", "depth": 1}}});
        assert_eq!(thread(json!({"id": "c", "source": source})), child(Some("p")));
        let call = json!({"type": "collabAgentToolCall", "id": "i", "tool": "spawnAgent",
            "status": "completed", "senderThreadId": "p", "receiverThreadIds": ["c"],
            "agentsStates": {"c": {"status": "pendingInit", "message": null}}});
        let children =
            Some(Kinship::Children { parent: "p".to_owned(), children: vec!["c".to_owned()] });
        assert_eq!(read("item/completed", json!({"threadId": "p", "item": call})), children);
        let activity = json!({"type": "subAgentActivity", "id": "i", "kind": "started",
            "agentThreadId": "c", "agentPath": "/root/c"});
        assert_eq!(read("item/started", json!({"threadId": "p", "item": activity})), children);
        // The words alone make no child.
        let said = json!({"type": "agentMessage", "id": "i", "text": "\"subAgentActivity\""});
        assert_eq!(read("item/completed", json!({"threadId": "p", "item": said})), None);
    }

    #[test]
    fn turns_goals_and_ends_of_threads_are_read() {
        let turn = json!({"threadId": "t", "turn": {"id": "u", "rootTurnId": "r"}});
        let (thread_id, turn_id) = ("t".to_owned(), "u".to_owned());
        assert_eq!(
            read("turn/started", turn),
            Some(Kinship::TurnStarted { thread_id, turn_id, root_turn_id: Some("r".to_owned()) })
        );
        let goal = |status: &str| {
            let params = json!({"threadId": "t", "turnId": null, "goal": {"status": status}});
            match read("thread/goal/updated", params) {
                Some(Kinship::Goal { is_active, .. }) => is_active,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!([goal("active"), goal("complete"), goal("blocked")], [true, false, false]);
        let cleared = read("thread/goal/cleared", json!({"threadId": "t"}));
        assert!(matches!(cleared, Some(Kinship::Goal { is_active: false, .. })));
        let status = |status: &str| {
            read("thread/status/changed", json!({"threadId": "t", "status": {"type": status}}))
        };
        assert_eq!(status("active"), None);
        assert_eq!(status("idle"), Some(Kinship::TurnEnded { thread_id: "t".to_owned() }));
        assert_eq!(status("notLoaded"), Some(Kinship::Unloaded { thread_id: "t".to_owned() }));
        assert_eq!(read("item/agentMessage/delta", json!({"threadId": "t"})), None);
    }
}
