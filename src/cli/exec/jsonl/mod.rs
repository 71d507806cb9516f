//! The events of a turn as `codex exec --json` prints them.
//!
//! Pure: an event of the contract goes in, lines come out. Items are numbered `item_0`, `item_1`, …
//! in the order in which they are shown first. What the real one does not show (what the user said,
//! deltas, diffs, images that were looked at) is not shown here either.

mod item;

use std::collections::HashMap;

use serde::Serialize;

use self::item::{Details, Item, details};
use crate::pb;
use crate::pb::item::Kind;
use crate::pb::turn_event::Event;

/// One line of output.
#[derive(Debug, Serialize)]
#[serde(tag = "type")]
pub(super) enum Line<'a> {
    #[serde(rename = "thread.started")]
    ThreadStarted { thread_id: &'a str },
    #[serde(rename = "turn.started")]
    TurnStarted {},
    #[serde(rename = "item.started")]
    ItemStarted { item: Item<'a> },
    #[serde(rename = "item.updated")]
    ItemUpdated { item: Item<'a> },
    #[serde(rename = "item.completed")]
    ItemCompleted { item: Item<'a> },
    #[serde(rename = "turn.completed")]
    TurnCompleted { usage: Usage },
    #[serde(rename = "turn.failed")]
    TurnFailed { error: Message },
    #[serde(rename = "error")]
    Error(Message),
}

#[derive(Debug, Serialize)]
pub(super) struct Message {
    message: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Usage {
    input_tokens: u64,
    cached_input_tokens: u64,
    cache_write_input_tokens: u64,
    output_tokens: u64,
    reasoning_output_tokens: u64,
}

/// Renders the events of one turn.
#[derive(Debug, Default)]
pub(super) struct Renderer {
    next_item: u64,
    /// The shown ids of items that have begun and not ended, by Codex's.
    shown: HashMap<String, String>,
    /// `turn.started` is held back until the turn does something: warnings of the turn's beginning
    /// come before it.
    turn_started: bool,
    /// Whether the turn has begun.
    began: bool,
}

impl Renderer {
    /// The lines that an event makes.
    pub(super) fn event<'a>(&mut self, event: &'a pb::TurnEvent) -> Vec<Line<'a>> {
        let Some(event) = &event.event else {
            // From a newer sidecar; a client skips what it does not know.
            return Vec::new();
        };
        let line = match event {
            Event::ThreadStarted(pb::ThreadStarted { thread_id, origin: _ }) => {
                return vec![Line::ThreadStarted { thread_id }];
            }
            Event::TurnStarted(_) => {
                // Those after the first are a goal's continuations, which are the same turn here.
                self.turn_started = !std::mem::replace(&mut self.began, true);
                return Vec::new();
            }
            Event::Warning(warning) if is_from_codex(warning) => {
                let pb::Warning { code: _, message, details } = warning;
                return vec![self.error_item(with_details(message, details))];
            }
            Event::ItemStarted(pb::ItemStarted { item }) => {
                item.as_ref().and_then(|item| self.started(item))
            }
            Event::ItemUpdated(pb::ItemUpdated { item }) => {
                item.as_ref().and_then(|item| self.updated(item))
            }
            Event::ItemCompleted(pb::ItemCompleted { item }) => {
                item.as_ref().and_then(|item| self.completed(item))
            }
            Event::ThreadError(pb::ThreadError { error, will_retry: _ }) => {
                Some(Line::Error(message_of(error.as_ref())))
            }
            Event::TurnCompleted(done) => {
                Some(Line::TurnCompleted { usage: usage(done.thread_usage.as_ref()) })
            }
            Event::TurnFailed(failed) => {
                Some(Line::TurnFailed { error: message_of(failed.error.as_ref()) })
            }
            // The real one says nothing, and leaves it to the exit status.
            Event::TurnInterrupted(_) => None,
            Event::Gap(pb::Gap { from, to }) => {
                let lost = to.saturating_sub(*from) + 1;
                Some(self.error_item(format!("event stream lagged; dropped {lost} events")))
            }
            // Told on standard error, or answered, by whoever drives this; or not shown at all.
            Event::Warning(_)
            | Event::McpServerStatus(_)
            | Event::Queued(_)
            | Event::RequestRaised(_)
            | Event::ApprovalReviewed(_)
            | Event::RequestResolved(_) => return Vec::new(),
            Event::AgentMessageDelta(_)
            | Event::ReasoningDelta(_)
            | Event::CommandOutputDelta(_)
            | Event::TurnDiffUpdated(_)
            | Event::TokenUsageUpdated(_)
            | Event::Raw(_) => None,
        };
        let held_back = std::mem::take(&mut self.turn_started).then_some(Line::TurnStarted {});
        held_back.into_iter().chain(line).collect()
    }

    fn started<'a>(&mut self, item: &'a pb::Item) -> Option<Line<'a>> {
        // These are shown whole, when they are.
        if matches!(item.kind, Some(Kind::AgentMessage(_) | Kind::Reasoning(_))) {
            return None;
        }
        let details = details(item)?;
        Some(Line::ItemStarted { item: Item { id: self.id_of(&item.id), details } })
    }

    fn updated<'a>(&mut self, item: &'a pb::Item) -> Option<Line<'a>> {
        let details = details(item)?;
        Some(Line::ItemUpdated { item: Item { id: self.id_of(&item.id), details } })
    }

    fn completed<'a>(&mut self, item: &'a pb::Item) -> Option<Line<'a>> {
        let details = details(item)?;
        let id = self.shown.remove(&item.id).unwrap_or_else(|| self.next_id());
        Some(Line::ItemCompleted { item: Item { id, details } })
    }

    fn error_item<'a>(&mut self, message: String) -> Line<'a> {
        let details = Details::Error { message };
        Line::ItemCompleted { item: Item { id: self.next_id(), details } }
    }

    fn id_of(&mut self, codex_id: &str) -> String {
        if let Some(id) = self.shown.get(codex_id) {
            return id.clone();
        }
        let id = self.next_id();
        self.shown.insert(codex_id.to_owned(), id.clone());
        id
    }

    fn next_id(&mut self) -> String {
        let id = format!("item_{}", self.next_item);
        self.next_item += 1;
        id
    }
}

/// Whether Codex said it; what the sidecar says is no part of the real one's output.
pub(super) fn is_from_codex(pb::Warning { code, message: _, details: _ }: &pb::Warning) -> bool {
    matches!(
        code.as_str(),
        "" | "CODEX_WARNING"
            | "GUARDIAN_WARNING"
            | "DEPRECATION_NOTICE"
            | "CONFIG_WARNING"
            | "MODEL_REROUTED"
    )
}

fn with_details(message: &str, details: &str) -> String {
    if details.is_empty() { message.to_owned() } else { format!("{message} ({details})") }
}

fn message_of(error: Option<&pb::TurnError>) -> Message {
    let message = match error {
        Some(error) => with_details(&error.message, &error.details),
        None => "turn failed".to_owned(),
    };
    Message { message }
}

fn usage(usage: Option<&pb::Usage>) -> Usage {
    let pb::Usage {
        input_tokens,
        cached_input_tokens,
        cache_write_input_tokens,
        output_tokens,
        reasoning_output_tokens,
    } = usage.copied().unwrap_or_default();
    Usage {
        input_tokens,
        cached_input_tokens,
        cache_write_input_tokens,
        output_tokens,
        reasoning_output_tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(events: Vec<Event>) -> Vec<String> {
        let mut renderer = Renderer::default();
        let mut lines = Vec::new();
        for event in events {
            let event = pb::TurnEvent { event: Some(event), ..Default::default() };
            let rendered = renderer.event(&event);
            lines.extend(rendered.iter().map(|line| serde_json::to_string(line).unwrap()));
        }
        lines
    }

    fn item(id: &str, kind: Kind) -> Option<pb::Item> {
        Some(pb::Item { id: id.to_owned(), kind: Some(kind) })
    }

    fn started(id: &str, kind: Kind) -> Event {
        Event::ItemStarted(pb::ItemStarted { item: item(id, kind) })
    }

    fn updated(id: &str, kind: Kind) -> Event {
        Event::ItemUpdated(pb::ItemUpdated { item: item(id, kind) })
    }

    fn completed(id: &str, kind: Kind) -> Event {
        Event::ItemCompleted(pb::ItemCompleted { item: item(id, kind) })
    }

    fn message(text: &str) -> Kind {
        Kind::AgentMessage(pb::AgentMessage { text: text.to_owned(), phase: String::new() })
    }

    fn warning(code: &str, message: &str, details: &str) -> Event {
        Event::Warning(pb::Warning {
            code: code.to_owned(),
            message: message.to_owned(),
            details: details.to_owned(),
        })
    }

    fn turn_started() -> Event {
        Event::TurnStarted(pb::TurnStarted::default())
    }

    /// The lines are the real CLI's, of a turn like this one.
    #[test]
    fn a_turn_of_many_items_is_numbered_and_ordered_as_the_real_one_does() {
        let command = |exit_code, output: &str, status: pb::CommandExecutionStatus| {
            Kind::CommandExecution(pb::CommandExecution {
                command: "/bin/bash -c 'exit 3'".to_owned(),
                working_directory: "/w".to_owned(),
                aggregated_output: output.to_owned(),
                exit_code,
                status: status.into(),
                duration: None,
            })
        };
        let patch = |status: pb::FileChangeStatus| {
            Kind::FileChange(pb::FileChange {
                changes: vec![pb::ChangedFile {
                    path: "/w/notes.txt".to_owned(),
                    kind: pb::FileChangeKind::Add.into(),
                    diff: "done\n".to_owned(),
                    move_path: String::new(),
                }],
                status: status.into(),
            })
        };
        let plan = |completed| {
            let step = pb::TodoItem { text: "a".to_owned(), completed, status: 0 };
            Kind::TodoList(pb::TodoList { items: vec![step], explanation: "why".to_owned() })
        };
        let reasoning = |summary: &[&str]| {
            let summary = summary.iter().map(|part| (*part).to_owned()).collect();
            Kind::Reasoning(pb::Reasoning { summary, content: vec!["secret".to_owned()] })
        };
        let usage = pb::Usage {
            input_tokens: 5,
            cached_input_tokens: 4,
            cache_write_input_tokens: 3,
            output_tokens: 2,
            reasoning_output_tokens: 1,
        };
        let thread_id = "t".to_owned();
        let lines = render(vec![
            Event::Queued(pb::Queued { position: 1 }),
            Event::ThreadStarted(pb::ThreadStarted { thread_id, origin: 1 }),
            turn_started(),
            started("u", Kind::UserMessage(pb::UserMessage::default())),
            completed("u", Kind::UserMessage(pb::UserMessage::default())),
            started("r", reasoning(&[])),
            completed("r", reasoning(&["one", "two"])),
            completed("r2", reasoning(&[" "])),
            started("c", command(None, "", pb::CommandExecutionStatus::InProgress)),
            started("p", plan(false)),
            completed("c", command(Some(3), "out\n", pb::CommandExecutionStatus::Failed)),
            started("f", patch(pb::FileChangeStatus::InProgress)),
            updated("f", patch(pb::FileChangeStatus::InProgress)),
            completed("f", patch(pb::FileChangeStatus::Declined)),
            started("m", message("")),
            updated("p", plan(true)),
            completed("m", message("done \u{1f680}\n")),
            completed("p", plan(true)),
            Event::TurnCompleted(pb::TurnCompleted {
                final_response: "done".to_owned(),
                usage: None,
                thread_usage: Some(usage),
            }),
        ]);
        let expected = [
            r#"{"type":"thread.started","thread_id":"t"}"#,
            r#"{"type":"turn.started"}"#,
            r#"{"type":"item.completed","item":{"id":"item_0","type":"reasoning","text":"one\ntwo"}}"#,
            r#"{"type":"item.started","item":{"id":"item_1","type":"command_execution","command":"/bin/bash -c 'exit 3'","aggregated_output":"","exit_code":null,"status":"in_progress"}}"#,
            r#"{"type":"item.started","item":{"id":"item_2","type":"todo_list","items":[{"text":"a","completed":false}]}}"#,
            r#"{"type":"item.completed","item":{"id":"item_1","type":"command_execution","command":"/bin/bash -c 'exit 3'","aggregated_output":"out\n","exit_code":3,"status":"failed"}}"#,
            r#"{"type":"item.started","item":{"id":"item_3","type":"file_change","changes":[{"path":"/w/notes.txt","kind":"add"}],"status":"in_progress"}}"#,
            r#"{"type":"item.updated","item":{"id":"item_3","type":"file_change","changes":[{"path":"/w/notes.txt","kind":"add"}],"status":"in_progress"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_3","type":"file_change","changes":[{"path":"/w/notes.txt","kind":"add"}],"status":"failed"}}"#,
            r#"{"type":"item.updated","item":{"id":"item_2","type":"todo_list","items":[{"text":"a","completed":true}]}}"#,
            "{\"type\":\"item.completed\",\"item\":{\"id\":\"item_4\",\"type\":\"agent_message\",\"text\":\"done \u{1f680}\\n\"}}",
            r#"{"type":"item.completed","item":{"id":"item_2","type":"todo_list","items":[{"text":"a","completed":true}]}}"#,
            r#"{"type":"turn.completed","usage":{"input_tokens":5,"cached_input_tokens":4,"cache_write_input_tokens":3,"output_tokens":2,"reasoning_output_tokens":1}}"#,
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn errors_carry_their_details_and_an_interrupted_turn_ends_without_a_line() {
        let error = pb::TurnError {
            message: "Reconnecting... 1/2".to_owned(),
            details: "high demand".to_owned(),
            ..Default::default()
        };
        let lines = render(vec![
            turn_started(),
            Event::ThreadError(pb::ThreadError { error: Some(error.clone()), will_retry: true }),
            Event::TurnFailed(pb::TurnFailed { error: Some(error), ..Default::default() }),
        ]);
        let expected = [
            r#"{"type":"turn.started"}"#,
            r#"{"type":"error","message":"Reconnecting... 1/2 (high demand)"}"#,
            r#"{"type":"turn.failed","error":{"message":"Reconnecting... 1/2 (high demand)"}}"#,
        ];
        assert_eq!(lines, expected);
        let stopped = Event::TurnInterrupted(pb::TurnInterrupted::default());
        assert_eq!(render(vec![turn_started(), stopped]), [r#"{"type":"turn.started"}"#]);
    }

    #[test]
    fn codexs_warnings_are_items_before_the_turn_and_the_sidecars_are_not_shown() {
        let lines = render(vec![
            turn_started(),
            warning("CONFIG_WARNING", "odd", "very"),
            warning("BINDING_NOT_KEPT", "ours", ""),
            completed("m", message("hi")),
            Event::Gap(pb::Gap { from: 4, to: 6 }),
        ]);
        let expected = [
            r#"{"type":"item.completed","item":{"id":"item_0","type":"error","message":"odd (very)"}}"#,
            r#"{"type":"turn.started"}"#,
            r#"{"type":"item.completed","item":{"id":"item_1","type":"agent_message","text":"hi"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_2","type":"error","message":"event stream lagged; dropped 3 events"}}"#,
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn tool_calls_keep_their_json() {
        let call = |result_json: &str, error_message: &str, status: pb::McpToolCallStatus| {
            Kind::McpToolCall(pb::McpToolCall {
                server: "s".to_owned(),
                tool: "t".to_owned(),
                arguments_json: r#"{"z":1,"a":[null]}"#.to_owned(),
                result_json: result_json.to_owned(),
                error_message: error_message.to_owned(),
                status: status.into(),
                duration: None,
            })
        };
        let result = r#"{"content":[{"type":"text","text":"x"}],"structuredContent":{"b":1,"a":2},"_meta":null}"#;
        let collab = r#"{"type":"collabAgentToolCall","id":"k","tool":"spawnAgent","status":"inProgress","senderThreadId":"me","receiverThreadIds":["you"],"prompt":"go","agentsStates":{"you":{"status":"pendingInit","message":null}}}"#;
        let collab = Kind::Unknown(pb::UnknownItem {
            r#type: "collabAgentToolCall".to_owned(),
            json: collab.to_owned(),
        });
        let agent = |action: pb::SubAgentAction, tool: &str, phase: pb::SubAgentPhase| {
            Kind::SubAgent(pb::SubAgent {
                action: action.into(),
                status: pb::SubAgentStatus::Completed.into(),
                agents: vec![pb::SubAgentState {
                    thread_id: "you".to_owned(),
                    phase: phase.into(),
                    ..Default::default()
                }],
                sender_thread_id: "me".to_owned(),
                tool: tool.to_owned(),
                ..Default::default()
            })
        };
        use pb::{SubAgentAction as Action, SubAgentPhase as Phase};
        let lines = render(vec![
            started("a", call("", "", pb::McpToolCallStatus::InProgress)),
            completed("a", call(result, "", pb::McpToolCallStatus::Completed)),
            completed("b", call("", "boom", pb::McpToolCallStatus::Failed)),
            started("k", collab),
            completed("w", agent(Action::Wait, "wait", Phase::Completed)),
            completed("m", agent(Action::Message, "sendInput", Phase::Unspecified)),
            started("t", agent(Action::Work, "", Phase::Running)),
            started("x", Kind::Unknown(pb::UnknownItem::default())),
            started("i", Kind::ImageView(pb::ImageView::default())),
        ]);
        let expected = [
            r#"{"type":"item.started","item":{"id":"item_0","type":"mcp_tool_call","server":"s","tool":"t","arguments":{"z":1,"a":[null]},"result":null,"error":null,"status":"in_progress"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_0","type":"mcp_tool_call","server":"s","tool":"t","arguments":{"z":1,"a":[null]},"result":{"content":[{"type":"text","text":"x"}],"structured_content":{"b":1,"a":2}},"error":null,"status":"completed"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_1","type":"mcp_tool_call","server":"s","tool":"t","arguments":{"z":1,"a":[null]},"result":null,"error":{"message":"boom"},"status":"failed"}}"#,
            r#"{"type":"item.started","item":{"id":"item_2","type":"collab_tool_call","tool":"spawn_agent","sender_thread_id":"me","receiver_thread_ids":["you"],"prompt":"go","agents_states":{"you":{"status":"pending_init","message":null}},"status":"in_progress"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_3","type":"collab_tool_call","tool":"wait","sender_thread_id":"me","receiver_thread_ids":["you"],"prompt":null,"agents_states":{"you":{"status":"completed","message":null}},"status":"completed"}}"#,
            r#"{"type":"item.completed","item":{"id":"item_4","type":"collab_tool_call","tool":"send_input","sender_thread_id":"me","receiver_thread_ids":["you"],"prompt":null,"agents_states":{},"status":"completed"}}"#,
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_search_has_two_ids_and_its_action_in_either_form_of_the_contract() {
        use pb::web_search::{Action, FindInPage, OpenPage, Search};
        let search = |query: &str, action: Option<Action>| {
            let query = query.to_owned();
            started("ws", Kind::WebSearch(pb::WebSearch { query, action, ..Default::default() }))
        };
        let other = |json: &str| Some(Action::OtherActionJson(json.to_owned()));
        let actions = [
            (None, r#"{"type":"other"}"#),
            (
                other(r#"{"type":"search","query":"q","queries":null}"#),
                r#"{"type":"search","query":"q"}"#,
            ),
            (other(r#"{"type":"openPage","url":"u"}"#), r#"{"type":"open_page","url":"u"}"#),
            (other("nonsense"), r#"{"type":"other"}"#),
            (
                Some(Action::Search(Search {
                    query: String::new(),
                    queries: vec!["a".to_owned()],
                })),
                r#"{"type":"search","queries":["a"]}"#,
            ),
            (
                Some(Action::OpenPage(OpenPage { url: "u".to_owned() })),
                r#"{"type":"open_page","url":"u"}"#,
            ),
            (
                Some(Action::FindInPage(FindInPage {
                    url: "u".to_owned(),
                    pattern: "p".to_owned(),
                })),
                r#"{"type":"find_in_page","url":"u","pattern":"p"}"#,
            ),
        ];
        for (action, shown) in actions {
            let expected = format!(
                r#"{{"type":"item.started","item":{{"id":"item_0","type":"web_search","id":"ws","query":"q","action":{shown}}}}}"#
            );
            assert_eq!(render(vec![search("q", action)]), [expected]);
        }
    }
}
