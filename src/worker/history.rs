//! What a worker does with the past of threads: reads it, copies it, takes it back.

use std::path::PathBuf;

use prost::Message as _;

use crate::app_server::client::{
    KeptTurn, ListPart, LoadThread, has_copies, is_invalid_place, is_turn_without_start,
    is_unknown_request, is_without_rollout, unknown_turn,
};
use crate::app_server::mcp::ConfigRead;
use crate::app_server::peer::RequestError;
use crate::app_server::thread_error::ThreadError;
use crate::model::id::ThreadId;
use crate::pb::{Model, ThreadTurn};
use crate::worker::Worker;
use crate::worker::thread::ListedTurn;

/// Why nothing was done with a thread's past.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PastError {
    /// The thread does not have the turn that was named.
    #[error("{0}")]
    UnknownTurn(String),
    /// The place that was named is none of the thread's.
    #[error("{0}")]
    InvalidPlace(String),
    /// Anything else.
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

impl From<RequestError> for PastError {
    fn from(error: RequestError) -> PastError {
        if let Some(said) = unknown_turn(&error) {
            PastError::UnknownTurn(said)
        } else if is_invalid_place(&error) {
            PastError::InvalidPlace("names no place in the thread's history".to_owned())
        } else {
            PastError::Thread(error.into())
        }
    }
}

/// Where a page of a thread's history begins: among its turns, and where the page before ended in the
/// middle of the first one, among that one's items. In Codex's own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HistoryPlace {
    pub(crate) turns: Option<String>,
    pub(crate) items: Option<String>,
}

/// A page of a thread's history.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HistoryPage {
    /// The turns, the oldest first.
    pub(crate) turns: Vec<ThreadTurn>,
    /// Where the next page begins; `None` at the end.
    pub(crate) next: Option<HistoryPlace>,
}

/// A copy of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThreadCopy {
    pub(crate) thread_id: ThreadId,
    /// Whether the worker has let go of it, so that any worker may load it.
    pub(crate) is_released: bool,
}

/// What came of deleting a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// There is nothing of it on Codex's disk any more, or there was nothing.
    Gone,
    /// It is there, because others are copies of it. No worker holds it any more.
    HasCopies,
}

/// About how large a page of several turns may be: half of what gRPC libraries take by default.
const PAGE_BYTES: usize = 2 << 20;

/// Most items that are asked for at once.
const ITEMS_AT_ONCE: usize = 100;

impl Worker {
    /// Copies a thread, up to a turn and with it where one is named, wherever the thread is loaded, and
    /// lets go of the copy.
    ///
    /// # Errors
    /// See [`PastError`]; nothing is left of a copy then, but where the worker was lost.
    pub(crate) async fn copy_thread(
        &self,
        thread_id: &ThreadId,
        last_turn_id: Option<&str>,
    ) -> Result<ThreadCopy, PastError> {
        let (directory, configured) = self.surroundings(thread_id).await?;
        let copy = LoadThread::copy(thread_id.as_str(), last_turn_id, &directory, &configured);
        let opened = self.load_thread(&copy).await?;
        let copy = ThreadId::from_codex(opened.thread_id());
        self.note_thread_loaded(&copy);
        // A CLI that does not know how to stop at a turn copies all, and says nothing.
        if let Some(last_turn_id) = last_turn_id {
            let newest = self.turns_of(&copy, 1).await;
            let newest = newest.and_then(|(turns, _)| turns.into_iter().next());
            let is_last =
                |newest: &ListedTurn| newest.id == last_turn_id || newest.is_within(last_turn_id);
            if !newest.as_ref().is_some_and(is_last) {
                self.delete_thread(&copy).await;
                let version = self.cli_version();
                let cause = format!("the Codex CLI {version} can't copy a part of a thread");
                return Err(ThreadError::Refused(cause).into());
            }
        }
        let released = self.release_thread(&copy).await;
        if let Err(error) = &released {
            tracing::debug!(thread_id = %copy, %error, "a copy of a thread could not be released");
        }
        Ok(ThreadCopy { thread_id: copy, is_released: released.is_ok() })
    }

    /// Takes a thread back to before a turn, and lets go of it: the next turn learns its token counts
    /// when it loads it.
    ///
    /// # Errors
    /// See [`PastError`]; a loss tells whether it may have been done.
    pub(crate) async fn revert_thread(
        &self,
        thread_id: &ThreadId,
        before_turn_id: &str,
    ) -> Result<(), PastError> {
        if !self.holds_thread(thread_id) {
            let loading = self.load_to_revert(thread_id).await;
            loading.map_err(ThreadError::before_the_turn)?;
        }
        let thread = thread_id.as_str();
        let mut reverted = self.client.thread_revert(thread, before_turn_id).await;
        if reverted.as_ref().is_err_and(is_turn_without_start)
            && let Some(first) = self.first_within(thread_id, before_turn_id).await
        {
            reverted = self.client.thread_revert(thread, &first).await;
        }
        self.unload_thread(thread_id).await;
        self.kin().ownership().forget_counts(thread_id.as_str());
        Ok(reverted?)
    }

    /// The first turn within a turn, by Codex's id.
    async fn first_within(&self, thread_id: &ThreadId, turn_id: &str) -> Option<String> {
        /// Of those that came last.
        const MOST: usize = 1000;
        let (turns, _) = self.turns_of(thread_id, MOST).await?;
        turns.into_iter().rfind(|turn| turn.is_within(turn_id)).map(|turn| turn.id)
    }

    async fn load_to_revert(&self, thread_id: &ThreadId) -> Result<(), ThreadError> {
        let (directory, configured) = self.surroundings(thread_id).await?;
        let load = LoadThread::without_turns(thread_id.as_str(), &directory, &configured);
        let opened = self.load_thread(&load).await?;
        let loaded = ThreadId::from_codex(opened.thread_id());
        self.note_thread_loaded(&loaded);
        if loaded != *thread_id {
            // Codex goes by the id that the rollout itself says.
            self.unload_thread(&loaded).await;
            let cause = format!("the rollout of thread {thread_id} is that of thread {loaded}");
            return Err(ThreadError::NotFound(cause));
        }
        Ok(())
    }

    /// Where a thread worked last, and the MCP servers that are configured there.
    async fn surroundings(
        &self,
        thread_id: &ThreadId,
    ) -> Result<(PathBuf, ConfigRead), RequestError> {
        let read = self.client.thread_read(thread_id.as_str()).await?;
        let directory = read.cwd.unwrap_or_else(|| PathBuf::from("/"));
        let configured = self.mcp_config(&directory).await.unwrap_or_else(|error| {
            tracing::debug!(%thread_id, %error, "the configured MCP servers are not known");
            ConfigRead::default()
        });
        Ok((directory, configured))
    }

    /// Deletes a thread, with its rollout and with those of its sub-agents, wherever it is not held by another
    /// process.
    ///
    /// # Errors
    /// See [`ThreadError`]; a loss tells whether it may have been done.
    pub(crate) async fn erase_thread(&self, thread_id: &ThreadId) -> Result<Deletion, ThreadError> {
        let deletion = match self.client.thread_delete(thread_id.as_str()).await {
            Ok(()) => Deletion::Gone,
            Err(error) if is_without_rollout(&error) => Deletion::Gone,
            Err(error) if has_copies(&error) => Deletion::HasCopies,
            Err(error) if is_unknown_request(&error) => {
                let version = self.cli_version();
                let cause = format!("the Codex CLI {version} can't delete threads");
                return Err(ThreadError::Refused(cause));
            }
            Err(error) => return Err(error.into()),
        };
        self.note_thread_released(thread_id);
        self.kin().ownership().forget_counts(thread_id.as_str());
        Ok(deletion)
    }

    /// Deletes a thread that nobody knows of. A CLI that can't has it in its archive.
    pub(crate) async fn delete_thread(&self, thread_id: &ThreadId) {
        let thread = thread_id.as_str();
        let deleted = match self.client.thread_delete(thread).await {
            Err(RequestError::Server { .. }) => self.client.thread_archive(thread).await,
            other => other,
        };
        match deleted {
            Ok(()) => self.note_thread_released(thread_id),
            Err(error) => tracing::debug!(%thread_id, %error, "a thread could not be deleted"),
        }
    }

    /// At most so many turns of a thread's history from a place on. Fewer, where they are large: a page
    /// is at most about as large as a line of Codex may be. The thread is not loaded for it.
    ///
    /// # Errors
    /// See [`PastError`].
    pub(crate) async fn history(
        &self,
        thread_id: &ThreadId,
        place: &HistoryPlace,
        at_most: usize,
    ) -> Result<HistoryPage, PastError> {
        if place.items.is_some() {
            return self.items_of_a_turn(thread_id, place).await;
        }
        let (thread, from) = (thread_id.as_str(), place.turns.as_deref());
        let mut at_most = at_most.max(1);
        loop {
            let asking = self.client.thread_history(thread, from, at_most, true);
            let ListPart { mut entries, mut next } = match asking.await {
                Ok(part) => part,
                Err(RequestError::TooLong { bytes, limit, .. }) if at_most > 1 => {
                    at_most = fewer(at_most, bytes, limit);
                    continue;
                }
                Err(RequestError::TooLong { .. }) => {
                    return self.items_of_a_turn(thread_id, place).await;
                }
                Err(error) => return Err(error.into()),
            };
            let fitting = that_fit(&entries);
            if fitting < entries.len() {
                entries.truncate(fitting);
                let listed = entries.iter().map(|turn| turn.listed).sum();
                let again = self.client.thread_history(thread, from, listed, false).await?;
                next = again.next;
            }
            let next = next.map(|next| HistoryPlace { turns: Some(next), items: None });
            let turns = entries.into_iter().map(|kept| kept.turn).collect();
            return Ok(HistoryPage { turns, next });
        }
    }

    /// A part of a turn that is too large for one page, from a place among its items on. An item that
    /// alone is too large is left out and counted.
    async fn items_of_a_turn(
        &self,
        thread_id: &ThreadId,
        place: &HistoryPlace,
    ) -> Result<HistoryPage, PastError> {
        let thread = thread_id.as_str();
        let asking = self.client.thread_history(thread, place.turns.as_deref(), 1, false);
        let ListPart { entries, next: next_turn } = asking.await?;
        let Some(KeptTurn { mut turn, .. }) = entries.into_iter().next() else {
            // It was taken back meanwhile.
            return Ok(HistoryPage { turns: Vec::new(), next: None });
        };
        let mut at_most = ITEMS_AT_ONCE;
        let next_item = loop {
            let from = place.items.as_deref();
            match self.client.turn_items(thread, &turn.codex_turn_id, from, at_most).await {
                Ok(ListPart { entries, next }) => {
                    turn.items = entries;
                    break next;
                }
                Err(RequestError::TooLong { bytes, limit, .. }) if at_most > 1 => {
                    at_most = fewer(at_most, bytes, limit);
                }
                Err(RequestError::TooLong { next_cursor, .. }) => {
                    turn.skipped_items = 1;
                    break next_cursor;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let next = match (next_item, next_turn) {
            (Some(item), _) => Some(HistoryPlace { items: Some(item), ..place.clone() }),
            (None, Some(turn)) => Some(HistoryPlace { turns: Some(turn), items: None }),
            (None, None) => None,
        };
        Ok(HistoryPage { turns: vec![turn], next })
    }

    /// All models that Codex offers, those that it does not show to people included.
    ///
    /// # Errors
    /// See [`ThreadError`].
    pub(crate) async fn models(&self) -> Result<Vec<Model>, ThreadError> {
        Ok(self.client.models().await?)
    }
}

/// How many of a list may fit into a line, where so many took so many bytes; fewer, and at least one.
fn fewer(entries: usize, bytes: u64, limit: usize) -> usize {
    let fitting = entries as u64 * limit as u64 / bytes.max(1);
    usize::try_from(fitting).unwrap_or(entries).clamp(1, (entries / 2).max(1))
}

/// How many of the turns are no more than a page; at least the first.
fn that_fit(turns: &[KeptTurn]) -> usize {
    let mut bytes = 0;
    let fitting = turns.iter().take_while(|kept| {
        bytes += kept.turn.encoded_len();
        bytes <= PAGE_BYTES
    });
    fitting.count().max(1)
}
