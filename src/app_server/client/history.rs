//! What Codex has kept of threads, and taking them back.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::app_server::client::Client;
use crate::app_server::decode;
use crate::app_server::peer::RequestError;
use crate::app_server::refusal_text;
use crate::model::item::Item;
use crate::pb::ThreadTurn;

/// A part of a list, and where it goes on.
#[derive(Debug, Clone, PartialEq)]
pub struct ListPart<T> {
    /// Its entries, the oldest first.
    pub entries: Vec<T>,
    /// Codex's name of the place after them; `None` at the end.
    pub next: Option<String>,
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

/// Whether Codex refuses a request because the place that it names is none of the thread's.
pub(crate) fn is_invalid_place(error: &RequestError) -> bool {
    matches!(error, RequestError::Server { message, .. } if refusal_text::is_invalid_cursor(message))
}

impl Client {
    /// At most so many of a thread's turns from a place on, the oldest first, with or without their
    /// items. The thread is not loaded for it.
    ///
    /// # Errors
    /// See [`RequestError`]; CLIs before 0.130 can't list them.
    pub async fn thread_history(
        &self,
        thread_id: &str,
        from: Option<&str>,
        at_most: usize,
        with_items: bool,
    ) -> Result<ListPart<ThreadTurn>, RequestError> {
        let params = json!({
            "threadId": thread_id,
            "cursor": from,
            "limit": at_most,
            "sortDirection": "asc",
            "itemsView": if with_items { "full" } else { "notLoaded" },
        });
        let listed: Listed = self.ask("thread/turns/list", &params).await?;
        Ok(listed.read(decode::thread_turn))
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

    /// Deletes a thread with its rollout.
    ///
    /// # Errors
    /// See [`RequestError`]; one that others are copies of is refused.
    pub async fn thread_delete(&self, thread_id: &str) -> Result<(), RequestError> {
        self.order("thread/delete", &json!({ "threadId": thread_id })).await
    }
}
