//! Where a page ended: a place in the list, and the question that it was the answer to. A token is no
//! secret; one that was not made here, or for another question, is refused.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::id::{ContextKey, ThreadId, TurnId};
use crate::model::refusal::Refusal;
use crate::worker::history::HistoryPlace;

type Bindings = (String, String, Option<String>);

/// For the page of bindings after this one.
pub(crate) fn after_context(key: &ContextKey, filter: Option<&str>) -> String {
    let token: Bindings =
        (key.context_id.clone(), key.thread_key.clone(), filter.map(str::to_owned));
    write(&token)
}

/// The context id and the thread key after which the page of bindings begins.
pub(crate) fn of_contexts(
    token: &str,
    filter: Option<&str>,
) -> Result<Option<(String, String)>, Refusal> {
    match read::<Bindings>(token)? {
        None => Ok(None),
        Some((context_id, thread_key, made_with)) if made_with.as_deref() == filter => {
            Ok(Some((context_id, thread_key)))
        }
        Some(_) => Err(refused()),
    }
}

// A turn, and the context id and thread key of whose turns they are.
type Turns = (String, Option<(String, String)>);

fn named(context: Option<&ContextKey>) -> Option<(String, String)> {
    context.map(|key| (key.context_id.clone(), key.thread_key.clone()))
}

/// For the page of turns after this one, of this context or of all.
pub(crate) fn after_turn(turn_id: &TurnId, context: Option<&ContextKey>) -> String {
    let token: Turns = (turn_id.to_string(), named(context));
    write(&token)
}

/// The turn after which the page of turns begins, if the token was made for that context, or for all; or
/// for whatever, where nothing is said.
pub(crate) fn of_turns(
    token: &str,
    whose: Option<Option<&ContextKey>>,
) -> Result<Option<TurnId>, Refusal> {
    match read::<Turns>(token)? {
        None => Ok(None),
        Some((after, of)) if whose.is_none_or(|context| of == named(context)) => {
            Ok(Some(TurnId(after)))
        }
        Some(_) => Err(refused()),
    }
}

type History = (String, Option<String>, Option<String>);

/// For the page of a thread's history that begins here.
pub(crate) fn at_place(thread_id: &ThreadId, place: HistoryPlace) -> String {
    let HistoryPlace { turns, items } = place;
    let token: History = (thread_id.as_str().to_owned(), turns, items);
    write(&token)
}

/// Where the page of a thread's history begins, if the token was made for that thread or, where it is
/// not known yet, for any.
pub(crate) fn of_history(
    token: &str,
    thread_id: Option<&ThreadId>,
) -> Result<HistoryPlace, Refusal> {
    match read::<History>(token)? {
        None => Ok(HistoryPlace::default()),
        Some((made_for, turns, items))
            if thread_id.is_none_or(|thread_id| made_for == thread_id.as_str()) =>
        {
            Ok(HistoryPlace { turns, items })
        }
        Some(_) => Err(refused()),
    }
}

fn refused() -> Refusal {
    Refusal::field("page_token", "is not the next_page_token of a page of this listing")
}

fn write(token: &impl Serialize) -> String {
    let json = serde_json::to_vec(token).unwrap_or_default();
    json.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read<T: DeserializeOwned>(token: &str) -> Result<Option<T>, Refusal> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = (0..token.len()).step_by(2).map(|start| {
        // As they are written: no other text is one.
        let pair = token.get(start..start + 2)?;
        let is_ours = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if !pair.bytes().all(is_ours) {
            return None;
        }
        u8::from_str_radix(pair, 16).ok()
    });
    let bytes: Vec<u8> = bytes.collect::<Option<_>>().ok_or_else(refused)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|_| refused())
}
