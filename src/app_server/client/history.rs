//! What Codex has kept of threads, and taking them back.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::app_server::client::Client;
use crate::app_server::decode;
use crate::app_server::peer::RequestError;
use crate::app_server::refusal_text;
use crate::model::item::Item;
use crate::pb::{ThreadTurn, ThreadTurnStatus};

/// A part of a list, and where it goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct ListPart<T> {
    /// Its entries, the oldest first.
    pub entries: Vec<T>,
    /// Codex's name of the place after them; `None` at the end.
    pub next: Option<String>,
}

/// A turn as Codex has kept it.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptTurn {
    /// The turn; a review with its reviewer's.
    pub turn: ThreadTurn,
    /// How many turns of Codex's list it is.
    pub listed: usize,
    // The turn that it is within, or a name that its client gave it.
    root: Option<String>,
}

impl KeptTurn {
    fn read(json: &RawValue) -> Option<KeptTurn> {
        let (turn, root) = (decode::thread_turn(json)?, decode::root_turn_id(json));
        Some(KeptTurn { turn, listed: 1, root })
    }

    fn is_within(&self, other: &KeptTurn) -> bool {
        let id = &other.turn.codex_turn_id;
        self.turn.codex_turn_id != *id && self.root.as_ref() == Some(id)
    }

    /// Whether it may be a part of the turn that comes next, or the other way round.
    fn may_be_half(&self) -> bool {
        let is_unended = self.turn.status() == ThreadTurnStatus::Interrupted;
        let is_root = self.root.as_ref() == Some(&self.turn.codex_turn_id);
        self.listed == 1 && self.root.is_some() && (is_unended || is_root)
    }

    /// Takes in a turn that is within this one: after the item that begins it.
    fn take_in(&mut self, within: KeptTurn) {
        let at = self.turn.items.len().min(1);
        self.turn.items.splice(at..at, within.turn.items);
        self.listed += within.listed;
    }
}

/// Adds a turn to those that come before it. Of a review and its reviewer's turn, which Codex lists side by
/// side, a copy of the thread has the review first.
fn add(turns: &mut Vec<KeptTurn>, mut turn: KeptTurn) {
    match turns.pop() {
        Some(before) if before.is_within(&turn) => turn.take_in(before),
        Some(mut before) if turn.is_within(&before) => {
            before.take_in(turn);
            return turns.push(before);
        }
        before => turns.extend(before),
    }
    turns.push(turn);
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    data: Vec<Box<RawValue>>,
    #[serde(default)]
    next_cursor: Option<String>,
}

impl Listed {
    fn read<T>(self, entry: impl Fn(&RawValue) -> Option<T>) -> ListPart<T> {
        let entries = self.data.iter().filter_map(|json| entry(json)).collect();
        ListPart { entries, next: self.next_cursor }
    }
}

/// What Codex says where it refuses a request because the thread does not have the turn that it names.
pub(crate) fn unknown_turn(error: &RequestError) -> Option<String> {
    match error {
        RequestError::Server { message, .. } if refusal_text::is_unknown_turn(message) => {
            // Its name for it is none of the contract's.
            Some(message.replace("lastTurnId", "turn"))
        }
        _ => None,
    }
}

/// Whether Codex refuses a request because the turn that it names begins with another one; see
/// [`ListedTurn::is_within`](crate::app_server::client::ListedTurn::is_within).
pub(crate) fn is_turn_without_start(error: &RequestError) -> bool {
    matches!(error, RequestError::Server { message, .. } if refusal_text::is_turn_without_start(message))
}

/// Whether Codex refuses a request because there is nothing of the thread on its disk.
pub(crate) fn is_without_rollout(error: &RequestError) -> bool {
    matches!(error, RequestError::Server { message, .. } if refusal_text::is_without_rollout(message))
}

/// Whether Codex refuses to delete a thread because others are copies of it. It is not loaded any more then.
pub(crate) fn has_copies(error: &RequestError) -> bool {
    matches!(error, RequestError::Server { message, .. } if refusal_text::has_copies(message))
}

/// Whether a CLI refuses a request because it does not know it.
pub(crate) fn is_unknown_request(error: &RequestError) -> bool {
    matches!(error, RequestError::Server { message, .. } if refusal_text::is_unknown_request(message))
}

/// Whether Codex refuses a request because the place that it names is none of the thread's.
pub(crate) fn is_invalid_place(error: &RequestError) -> bool {
    matches!(error, RequestError::Server { message, .. } if refusal_text::is_invalid_cursor(message))
}

impl Client {
    /// At most so many turns of Codex's list from a place on, the oldest first, with or without their
    /// items; one more where the last would be half of one. The thread is not loaded for it.
    ///
    /// # Errors
    /// See [`RequestError`]; CLIs before 0.130 can't list them.
    pub async fn thread_history(
        &self,
        thread_id: &str,
        from: Option<&str>,
        at_most: usize,
        with_items: bool,
    ) -> Result<ListPart<KeptTurn>, RequestError> {
        let listed = self.listed_turns(thread_id, from, at_most, with_items).await?;
        let ListPart { entries, mut next } = listed;
        let mut turns = Vec::with_capacity(entries.len());
        entries.into_iter().for_each(|turn| add(&mut turns, turn));
        if let (Some(from), Some(last)) = (&next, turns.last())
            && last.may_be_half()
            // It stays by itself where the other half has no room.
            && let Ok(after) = self.listed_turns(thread_id, Some(from), 1, with_items).await
        {
            let before = turns.len();
            after.entries.into_iter().for_each(|turn| add(&mut turns, turn));
            if turns.len() == before {
                next = after.next;
            }
            turns.truncate(before);
        }
        Ok(ListPart { entries: turns, next })
    }

    async fn listed_turns(
        &self,
        thread_id: &str,
        from: Option<&str>,
        at_most: usize,
        with_items: bool,
    ) -> Result<ListPart<KeptTurn>, RequestError> {
        let params = json!({
            "threadId": thread_id,
            "cursor": from,
            "limit": at_most,
            "sortDirection": "asc",
            "itemsView": if with_items { "full" } else { "notLoaded" },
        });
        let listed: Listed = self.ask("thread/turns/list", &params).await?;
        Ok(listed.read(KeptTurn::read))
    }

    /// At most so many items of a turn from a place on, the oldest first.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn turn_items(
        &self,
        thread_id: &str,
        codex_turn_id: &str,
        from: Option<&str>,
        at_most: usize,
    ) -> Result<ListPart<Item>, RequestError> {
        let params = json!({
            "threadId": thread_id,
            "turnId": codex_turn_id,
            "cursor": from,
            "limit": at_most,
            "sortDirection": "asc",
        });
        let listed: Listed = self.ask("thread/items/list", &params).await?;
        Ok(listed.read(decode::listed_item))
    }

    /// Takes a loaded thread back to before a turn.
    ///
    /// # Errors
    /// See [`RequestError`]; [`unknown_turn`] tells one that the thread does not have.
    pub async fn thread_revert(
        &self,
        thread_id: &str,
        before_turn_id: &str,
    ) -> Result<(), RequestError> {
        let params: Value = json!({ "threadId": thread_id, "beforeTurnId": before_turn_id });
        self.order("thread/revert", &params).await
    }

    /// Deletes a thread with its rollout, and those of its sub-agents.
    ///
    /// # Errors
    /// See [`RequestError`]; [`is_without_rollout`] tells one that is not there, [`has_copies`] one that
    /// others are copies of, [`is_unknown_request`] a CLI before 0.150.
    pub async fn thread_delete(&self, thread_id: &str) -> Result<(), RequestError> {
        self.order("thread/delete", &json!({ "threadId": thread_id })).await
    }
}
