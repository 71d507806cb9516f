//! Turns as Codex has kept them.

use serde_json::value::RawValue;

use super::failure::CodexTurnError;
use super::item::item;
use super::parts::Parts;
use crate::model::item::Item;
use crate::pb::{ThreadTurn, ThreadTurnStatus};

/// Reads a turn with the items that are there.
pub(crate) fn thread_turn(json: &RawValue) -> Option<ThreadTurn> {
    let turn = Parts::of(json);
    let codex_turn_id = turn.read("id")?;
    let status = match turn.text("status")?.as_str() {
        "inProgress" => ThreadTurnStatus::InProgress,
        "completed" => ThreadTurnStatus::Completed,
        "interrupted" => ThreadTurnStatus::Interrupted,
        "failed" => ThreadTurnStatus::Failed,
        _ => ThreadTurnStatus::Unspecified,
    };
    let items: Vec<Item> = turn
        .read::<Option<Vec<&RawValue>>>("items")?
        .unwrap_or_default()
        .into_iter()
        .filter_map(item)
        .collect();
    let error = turn.read::<Option<CodexTurnError>>("error")?.map(|error| crate::pb::TurnError {
        side_effects_possible: items.iter().any(Item::has_side_effects),
        ..error.into()
    });
    let (start_time, end_time) = (time("startedAt", &turn), time("completedAt", &turn));
    Some(ThreadTurn {
        codex_turn_id,
        status: status.into(),
        items,
        error,
        start_time,
        end_time,
        skipped_items: 0,
    })
}

/// The turn that a turn is within, or what its client calls it.
pub(crate) fn root_turn_id(json: &RawValue) -> Option<String> {
    Parts::of(json).read::<Option<String>>("rootTurnId")?
}

/// Reads an item of a turn, as a list of items has it.
pub(crate) fn listed_item(json: &RawValue) -> Option<Item> {
    Parts::of(json).get("item").and_then(item)
}

/// In whole seconds, as Codex keeps it.
fn time(name: &str, turn: &Parts<'_>) -> Option<prost_types::Timestamp> {
    let seconds = turn.read::<Option<i64>>(name)??;
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_turn_is_read_with_what_codex_has_kept_of_it() {
        let read = |json: serde_json::Value| {
            thread_turn(&RawValue::from_string(json.to_string()).unwrap())
        };
        let failed = json!({
            "id": "u1", "status": "failed", "startedAt": 7, "completedAt": null,
            "error": { "message": "no", "codexErrorInfo": "usageLimitExceeded" },
            "items": [
                { "type": "commandExecution", "id": "c", "command": "ls", "status": "completed" },
                { "type": "of the future", "id": "f" },
                { "no": "item" },
            ],
        });
        let turn = read(failed).unwrap();
        assert_eq!(turn.status(), ThreadTurnStatus::Failed);
        let ids: Vec<&str> = turn.items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["c", "f"]);
        let error = turn.error.unwrap();
        assert_eq!((error.reason.as_str(), error.message.as_str()), ("USAGE_LIMIT_EXCEEDED", "no"));
        assert!(error.side_effects_possible);
        assert_eq!((turn.start_time.map(|time| time.seconds), turn.end_time), (Some(7), None));
        let unknown = read(json!({ "id": "u2", "status": "of the future" })).unwrap();
        assert_eq!((unknown.status(), unknown.items.len()), (ThreadTurnStatus::Unspecified, 0));
        assert_eq!(read(json!({ "status": "completed" })), None);
    }
}
