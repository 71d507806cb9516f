//! `resume --last`: which thread is meant.
//!
//! Of a context its own; without one the thread that the sidecar worked with last in the directory, of
//! those without a context. What ran before the sidecar started it does not know. Where there is none
//! the real one begins a new thread without a word; here that is an error, because there may well be
//! one that the sidecar does not know of.

use super::{Failure, failed};
use crate::cli::refusal::Words;
use crate::grpc::caller::{Caller, Refused};
use crate::pb;

/// What `--last` is said with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResumeLast {
    /// The last one of any directory (`--all`).
    pub(super) of_any_directory: bool,
}

/// Has the turn continue the thread that is meant.
pub(super) async fn find(
    last: ResumeLast,
    caller: &Caller,
    request: &mut pb::RunTurnRequest,
) -> Result<(), Failure> {
    let words = Words::of_exec(request);
    if !request.context_id.is_empty() {
        // A context without a thread would get a new one.
        request.set_context_policy(pb::ContextPolicy::MustExist);
        let context_id = request.context_id.clone();
        let bound = pb::GetContextRequest { context_id, ..Default::default() };
        let found = caller.get_context(bound).await;
        return found.map(drop).map_err(|refused| none(&words, refused));
    }
    let options = request.thread_options.as_ref();
    let directory = options.and_then(|options| options.working_directory.clone());
    let working_directory = directory.filter(|_| !last.of_any_directory).unwrap_or_default();
    let found = caller.get_latest_thread(pb::GetLatestThreadRequest { working_directory }).await;
    request.thread_id = found.map_err(|refused| none(&words, refused))?.thread_id;
    Ok(())
}

/// Why there is no such thread.
fn none(words: &Words, refused: Refused) -> Failure {
    let is_missing =
        matches!(refused.reason.as_deref(), Some("THREAD_NOT_FOUND" | "CONTEXT_NOT_FOUND"));
    let advice = if is_missing { "; give the thread's id" } else { "" };
    failed(format!("resume --last: {}{advice}", words.failure(refused).into_message()))
}
