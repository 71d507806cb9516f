//! The calls of `CodexService` that are about what threads have behind them.

use tonic::{Request, Response, Status};

use crate::grpc::all_of::all_of;
use crate::grpc::codex_service::{CodexApi, thread_id_of};
use crate::grpc::{deadline, page_size, page_token, routed};
use crate::model::id::{ContextKey, ThreadId};
use crate::model::refusal::Refusal;
use crate::pb;
use crate::pb::read_thread_request::Target;
use crate::turn::engine::Copy;
use crate::worker::history::HistoryPage;

/// Most turns in one page of a thread's history, and how many where none are asked for.
const MAX_TURNS: usize = 100;
const DEFAULT_TURNS: usize = 20;

/// Most bytes of Codex's id of a turn: it makes UUIDs.
const LONGEST_TURN_ID: usize = 128;

/// The thread that is to be read.
enum Whose {
    Context(ContextKey),
    Thread(ThreadId),
}

impl CodexApi {
    pub(super) async fn fork(
        &self,
        request: Request<pb::ForkContextRequest>,
    ) -> Result<Response<pb::ForkContextResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        routed::check(&request)?;
        let pb::ForkContextRequest { source, mut target, last_codex_turn_id } =
            request.into_inner();
        if let (Some(source), Some(target)) = (&source, &mut target)
            && target.tool_name.trim().is_empty()
            && target.thread_id_key.trim().is_empty()
        {
            target.tool_name.clone_from(&source.tool_name);
            target.thread_id_key.clone_from(&source.thread_id_key);
        }
        let source = self.key_of("source", source.as_ref());
        let target = self.key_of("target", target.as_ref());
        let last_turn_id = codex_turn_id("last_codex_turn_id", &last_codex_turn_id);
        let (source, target, last_turn_id) = all_of(source, target, last_turn_id)?;
        let copy = Copy { source, target: target.clone(), last_turn_id };
        let binding = deadline::answer(deadline, self.engine.fork_context(copy)).await?;
        let context = Some(self.context(&target, &binding));
        Ok(Response::new(pb::ForkContextResponse { context }))
    }

    pub(super) async fn revert(
        &self,
        request: Request<pb::RevertContextRequest>,
    ) -> Result<Response<pb::RevertContextResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        routed::check(&request)?;
        let pb::RevertContextRequest { context, before_codex_turn_id } = request.into_inner();
        let key = self.key_of("context", context.as_ref());
        let field = "before_codex_turn_id";
        let before = codex_turn_id(field, &before_codex_turn_id).and_then(|turn_id| {
            let missing =
                "is missing; name the first turn to take back, as turn_started or ReadThread tells it";
            turn_id.ok_or_else(|| Refusal::field(field, missing))
        });
        let (key, before, ()) = all_of(key, before, Ok(()))?;
        let reverting = self.engine.revert_context(key.clone(), before);
        let binding = deadline::answer(deadline, reverting).await?;
        let context = Some(self.context(&key, &binding));
        Ok(Response::new(pb::RevertContextResponse { context }))
    }

    pub(super) async fn read(
        &self,
        request: Request<pb::ReadThreadRequest>,
    ) -> Result<Response<pb::ReadThreadResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        routed::check(&request)?;
        let pb::ReadThreadRequest { target, page_size, page_token } = request.into_inner();
        let target = match target {
            Some(Target::Context(context)) => {
                self.key_of("context", Some(&context)).map(Whose::Context)
            }
            Some(Target::ThreadId(thread_id)) => thread_id_of(&thread_id).map(Whose::Thread),
            None => Err(Refusal::field("target", "is not set; name a context or a thread_id")),
        };
        let at_most = page_size::of(page_size, DEFAULT_TURNS, MAX_TURNS);
        let known = match &target {
            Ok(Whose::Thread(thread_id)) => Some(thread_id),
            Ok(Whose::Context(_)) | Err(_) => None,
        };
        let place = page_token::of_history(&page_token, known);
        let (target, at_most, place) = all_of(target, at_most, place)?;
        let thread_id = match target {
            Whose::Thread(thread_id) => thread_id,
            Whose::Context(key) => {
                let thread_id = self.engine.contexts().get(&key)?.thread_id;
                page_token::of_history(&page_token, Some(&thread_id))?;
                thread_id
            }
        };
        let reading = self.engine.read_thread(&thread_id, &place, at_most);
        let HistoryPage { turns, next } = deadline::answer(deadline, reading).await?;
        let next_page_token = next.map(|place| page_token::at_place(&thread_id, place));
        Ok(Response::new(pb::ReadThreadResponse {
            turns,
            next_page_token: next_page_token.unwrap_or_default(),
            thread_id: thread_id.to_string(),
        }))
    }
}

/// Codex's id of a turn, trimmed; `None` where the field is empty.
fn codex_turn_id(field: &str, turn_id: &str) -> Result<Option<String>, Refusal> {
    let turn_id = turn_id.trim();
    if turn_id.len() > LONGEST_TURN_ID {
        let description =
            format!("is {} bytes long; Codex's ids of turns are UUIDs", turn_id.len());
        return Err(Refusal::field(field, description));
    }
    Ok((!turn_id.is_empty()).then(|| turn_id.to_owned()))
}
