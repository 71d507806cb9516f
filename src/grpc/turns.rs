//! The turns that run, wait or are retained, in pages.

use crate::grpc::all_of::all_of;
use crate::grpc::{page_size, page_token as token};
use crate::model::id::{ContextKey, TurnId};
use crate::model::refusal::Refusal;
use crate::pb;
use crate::turn::summary::Summary;
use crate::turn::turn::Turn;
use crate::turn::turns::Turns;

/// Most turns in one page, and how many where none are asked for.
const MAX_PAGE: usize = 1000;
const DEFAULT_PAGE: usize = 50;

/// Which turns are wanted.
#[derive(Debug)]
pub(super) struct Wanted {
    context: Option<ContextKey>,
    limit: usize,
    after: Option<TurnId>,
}

impl Wanted {
    /// Those of this context, or of all.
    ///
    /// # Errors
    /// That of the context, and a wrong `page_size` or `page_token`.
    pub(super) fn read(
        context: Result<Option<ContextKey>, Refusal>,
        page_size: i32,
        page_token: &str,
    ) -> Result<Wanted, Refusal> {
        let limit = page_size::of(page_size, DEFAULT_PAGE, MAX_PAGE);
        let after = token::of_turns(page_token, context.as_ref().ok().map(Option::as_ref));
        let (context, limit, after) = all_of(context, limit, after)?;
        Ok(Wanted { context, limit, after })
    }
}

/// A page of them.
pub(super) async fn page(turns: &Turns, wanted: Wanted) -> pb::ListTurnsResponse {
    let Wanted { context, limit, mut after } = wanted;
    let context = context.as_ref();
    let mut page = Vec::new();
    let next_page_token = loop {
        let is_meant = |turn: &Turn| context.is_none_or(|key| turn.context.as_ref() == Some(key));
        let (found, last) = turns.page(after.as_ref(), limit - page.len(), is_meant);
        page.extend(found.iter().map(|turn| info(turn)));
        match last {
            None => break String::new(),
            Some(last) if page.len() == limit => break token::after_turn(&last, context),
            last => after = last,
        }
        tokio::task::yield_now().await;
    };
    pb::ListTurnsResponse { turns: page, next_page_token }
}

fn info(turn: &Turn) -> pb::TurnInfo {
    // How far it is first: what is told of it afterwards can't be from before.
    let start_time = turn.started_at();
    let ending = turn.log.ending();
    let Summary { thread_id, queue_position, usage, last, reason } = turn.log.summary();
    let (last_sequence, last_event_time, last_event) = match last {
        Some((sequence, at, name)) => (sequence, Some(at), name),
        None => (0, None, ""),
    };
    let state = match (&ending, last_event) {
        (None, _) if start_time.is_none() => pb::TurnState::Waiting,
        (None, _) => pb::TurnState::Running,
        (Some(Ok(_)), "turn_completed") => pb::TurnState::Completed,
        (Some(Ok(_)), "turn_interrupted") => pb::TurnState::Interrupted,
        (Some(Ok(_) | Err(_)), _) => pb::TurnState::Failed,
    };
    let is_waiting = state == pb::TurnState::Waiting;
    pb::TurnInfo {
        turn_id: turn.id.to_string(),
        context: turn.context.as_ref().map(|key| pb::ContextRef {
            context_id: key.context_id.clone(),
            tool_name: String::new(),
            thread_id_key: key.thread_key.clone(),
        }),
        thread_id: thread_id.unwrap_or_default(),
        state: state.into(),
        queue_position: if is_waiting { queue_position.max(1) } else { 0 },
        worker_id: turn.worker().unwrap_or_default(),
        create_time: Some(turn.created_at.into()),
        start_time: start_time.map(Into::into),
        end_time: ending.and(last_event_time).map(Into::into),
        last_sequence,
        last_event_time: last_event_time.map(Into::into),
        last_event: last_event.to_owned(),
        usage,
        pending_request_ids: turn.log.pending_requests(),
        reason,
    }
}
