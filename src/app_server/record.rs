//! What Codex's own record of a thread (its *rollout*) says of one turn.
//!
//! Codex tells of a tool only when it has something to tell: a command that the sandbox stops may have
//! written before, and no item of it ever comes. But it records every piece of a model's answer before
//! it acts on it, and writes the record out before it says that the turn is over. So where a promise
//! hangs on it that nothing was done, the record is asked, and what is not understood is taken for an
//! answer.

use std::io::{self, BufRead};

use serde::Deserialize;
use serde_json::Value;

/// What the record says of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// From its beginning to its end, and of the model nothing: it never finished a piece of an answer.
    NoAnswer,
    /// The model finished a piece of an answer at least, or something that this version doesn't know.
    Answer,
    /// Its beginning, but not its end, or not yet.
    Unfinished,
    /// It does not know the turn.
    Unknown,
}

#[derive(Deserialize)]
struct Line {
    r#type: String,
    #[serde(default)]
    payload: Payload,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Payload {
    r#type: Option<String>,
    role: Option<String>,
    turn_id: Option<String>,
    item: Option<Value>,
}

/// Reads the lines of a record, or the last ones of it.
///
/// # Errors
/// What reading comes to.
pub(crate) fn recorded(mut lines: impl BufRead, turn_id: &str) -> io::Result<Recorded> {
    let (mut has_begun, mut has_ended, mut has_answer) = (false, false, false);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if !line.ends_with(b"\n") {
            // It is being written.
            break;
        }
        let Ok(Line { r#type, payload }) = serde_json::from_slice::<Line>(&line) else {
            // Half a line, where the reading began in the middle; else nothing that is known.
            has_answer |= has_begun;
            continue;
        };
        let is_ours = payload.turn_id.as_deref() == Some(turn_id);
        let kind = payload.r#type.as_deref().unwrap_or_default();
        match (r#type.as_str(), kind) {
            ("turn_context", _) | ("event_msg", "task_started" | "turn_started") if is_ours => {
                has_begun = true;
            }
            ("event_msg", "task_complete" | "turn_complete" | "turn_aborted") if is_ours => {
                has_ended = true;
            }
            _ if !has_begun || has_ended => {}
            _ => has_answer |= !is_harmless(r#type.as_str(), kind, &payload),
        }
    }
    Ok(match (has_begun, has_ended) {
        _ if has_answer => Recorded::Answer,
        (true, true) => Recorded::NoAnswer,
        (true, false) => Recorded::Unfinished,
        (false, _) => Recorded::Unknown,
    })
}

/// Whether a line tells of the turn's input or of its failure, and of nothing that a model wrote.
fn is_harmless(line: &str, kind: &str, payload: &Payload) -> bool {
    match line {
        "turn_context" | "world_state" | "session_meta" => true,
        "response_item" => {
            kind == "message"
                && matches!(payload.role.as_deref(), Some("user" | "developer" | "system"))
        }
        "event_msg" => match kind {
            "task_started"
            | "turn_started"
            | "user_message"
            | "token_count"
            | "error"
            | "stream_error"
            | "warning"
            | "thread_settings_applied" => true,
            "item_started" | "item_completed" => {
                payload.item.as_ref().is_some_and(|item| item["type"] == "UserMessage")
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(lines: &[Value]) -> Recorded {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        recorded(text.as_bytes(), "u").unwrap()
    }

    fn event(kind: &str) -> Value {
        json!({"timestamp": "now", "type": "event_msg", "payload": {"type": kind, "turn_id": "u"}})
    }

    fn item(payload: Value) -> Value {
        json!({"type": "response_item", "payload": payload})
    }

    #[test]
    fn a_turn_without_an_answer_is_told_from_one_with_and_from_half_a_turn() {
        let context = json!({"type": "turn_context", "payload": {"turn_id": "u"}});
        let prompt = item(json!({"type": "message", "role": "user", "content": []}));
        let echo = json!({"type": "event_msg", "payload": {
            "type": "item_completed", "turn_id": "u", "item": {"type": "UserMessage"}}});
        let end = event("task_complete");
        let before = item(json!({"type": "function_call", "name": "of an earlier turn"}));
        let with = |more: &[Value]| {
            let mut lines = vec![before.clone(), event("task_started"), context.clone()];
            lines.extend([prompt.clone(), echo.clone()]);
            lines.extend_from_slice(more);
            read(&lines)
        };
        assert_eq!(with(&[event("token_count"), end.clone()]), Recorded::NoAnswer);
        assert_eq!(with(&[event("stream_error"), event("turn_aborted")]), Recorded::NoAnswer);
        for answer in [
            item(json!({"type": "function_call", "name": "exec_command"})),
            item(json!({"type": "message", "role": "assistant"})),
            item(json!({"type": "reasoning"})),
            item(json!({"type": "of a newer CLI"})),
            json!({"type": "event_msg", "payload": {"type": "item_completed", "item": {"type": "Plan"}}}),
            event("of_a_newer_cli"),
            json!({"type": "token_usage_record", "payload": {"turn_id": "u"}}),
            json!("what"),
        ] {
            assert_eq!(with(&[answer.clone(), end.clone()]), Recorded::Answer, "{answer}");
        }
        assert_eq!(with(&[]), Recorded::Unfinished);
        assert_eq!(read(&[prompt, end.clone()]), Recorded::Unknown);
        assert_eq!(read(&[event("task_started"), end, before]), Recorded::NoAnswer);
        assert_eq!(read(&[]), Recorded::Unknown);
    }
}
