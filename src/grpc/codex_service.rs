//! `CodexService`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use prost::Message as _;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tonic::{Request, Response, Status};

use crate::grpc::all_of::all_of;
use crate::grpc::api::codex_service_server::CodexService;
use crate::grpc::api::{AttachTurnResponse, RunTurnResponse};
use crate::grpc::limits::RequestLimits;
use crate::grpc::stream::{EventStream, Streaming};
use crate::grpc::unsent::Unsent;
use crate::grpc::{convert, deadline, page_size, page_token, routed, turns, unary};
use crate::model::event::{InterruptReason, TurnEvent};
use crate::model::id::{CallerId, CallerName, ContextKey, Tenant, ThreadId, TurnId};
use crate::model::options::ToolDefaults;
use crate::model::policy::Policy;
use crate::model::refusal::{Refusal, show};
use crate::model::request::TurnRequest;
use crate::pb;
use crate::registry::bindings::{Binding, Bound};
use crate::registry::latest::LatestThread;
use crate::turn::engine::Engine;
use crate::turn::timeouts::Timeouts;
use crate::turn::turn::Turn;

/// Most bindings in one page, and how many where none are asked for.
const MAX_PAGE: usize = 1000;
const DEFAULT_PAGE: usize = 50;

/// How many bindings are listed before others have their turn.
const LISTED_AT_ONCE: usize = 100;

/// The implementation over an engine.
#[derive(Debug, Clone)]
pub(crate) struct CodexApi {
    pub(super) engine: Arc<Engine>,
    tools: Arc<BTreeMap<String, ToolDefaults>>,
    policy: Arc<Policy>,
    limits: RequestLimits,
    timeouts: Timeouts,
    // Held by the call that lists.
    listing: Arc<Semaphore>,
    unsent: Arc<Unsent>,
}

impl CodexApi {
    /// Serves this engine. `tools` are the defaults of tools by their names; `policy` holds for those
    /// that have none of their own.
    pub(crate) fn new(
        engine: Arc<Engine>,
        tools: BTreeMap<String, ToolDefaults>,
        policy: Policy,
        limits: RequestLimits,
        timeouts: Timeouts,
    ) -> CodexApi {
        let listing = Arc::new(Semaphore::new(1));
        let (tools, policy, unsent) = (Arc::new(tools), Arc::new(policy), Arc::default());
        CodexApi { engine, tools, policy, limits, timeouts, listing, unsent }
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// A request for a turn, validated.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(super) fn validate(
        &self,
        request: pb::RunTurnRequest,
        caller: CallerId,
    ) -> Result<TurnRequest, Refusal> {
        let defaults = |tool: &str| ToolDefaults::of(&self.tools, tool);
        let (limits, timeouts) = (&self.limits, &self.timeouts);
        let (policy, tenant) = (&self.policy, Tenant::default());
        let turn = convert::turn_request(request, &defaults, policy, limits, timeouts, tenant)?;
        Ok(TurnRequest { caller, ..turn })
    }

    /// One listing at a time: a flood of them leaves the other cores to everybody else.
    async fn turn_to_list(&self) -> Result<SemaphorePermit<'_>, Refusal> {
        let closed = |error: AcquireError| Refusal::Internal(error.to_string());
        self.listing.acquire().await.map_err(closed)
    }

    /// The binding that the field `context` names.
    fn context_of(&self, context: &pb::ContextRef) -> Result<ContextKey, Refusal> {
        let defaults = |tool: &str| ToolDefaults::of(&self.tools, tool);
        convert::context_ref("context", &Tenant::default(), context, &defaults)
    }

    fn key(
        &self,
        context_id: &str,
        tool_name: &str,
        thread_key: &str,
    ) -> Result<ContextKey, Refusal> {
        let defaults = |tool: &str| ToolDefaults::of(&self.tools, tool);
        convert::context_key(&Tenant::default(), context_id, tool_name, thread_key, &defaults)
    }

    /// The binding that the field `path` of a request names, which is required.
    pub(super) fn key_of(
        &self,
        path: &str,
        context: Option<&pb::ContextRef>,
    ) -> Result<ContextKey, Refusal> {
        let context = context.ok_or_else(|| Refusal::field(path, "is missing; name a context"))?;
        let defaults = |tool: &str| ToolDefaults::of(&self.tools, tool);
        convert::context_ref(path, &Tenant::default(), context, &defaults)
    }

    pub(super) fn context(&self, key: &ContextKey, binding: &Binding) -> pb::Context {
        let running = self.engine.turns().live_of(key);
        let waiting = self.engine.contexts().waiting_turns(key);
        pb::Context {
            context_id: key.context_id.clone(),
            thread_id_key: key.thread_key.clone(),
            tool_name: tool_of(&key.thread_key),
            thread_id: binding.thread_id.to_string(),
            create_time: Some(binding.created_at.into()),
            update_time: Some(binding.updated_at.into()),
            turn_count: binding.turns,
            running_turn_id: running.map(|turn| turn.id.to_string()).unwrap_or_default(),
            latest_turn_id: binding.latest_turn.as_ref().map(TurnId::to_string).unwrap_or_default(),
            queued_turns: u32::try_from(waiting).unwrap_or(u32::MAX),
            worker_id: self.engine.holder_of(&binding.thread_id).unwrap_or_default(),
        }
    }
}

/// The tool whose default thread key this is.
fn tool_of(thread_key: &str) -> String {
    match thread_key.strip_prefix("codex_thread_id_") {
        Some(suffix) if !suffix.is_empty() => format!("codex_{suffix}"),
        _ => "codex".to_owned(),
    }
}

#[tonic::async_trait]
impl CodexService for CodexApi {
    type RunTurnStream = EventStream<RunTurnResponse>;

    async fn run_turn(
        &self,
        request: Request<pb::RunTurnRequest>,
    ) -> Result<Response<Self::RunTurnStream>, Status> {
        let deadline = deadline::of(request.metadata());
        let caller = request.extensions().get::<CallerId>().copied().unwrap_or_default();
        let routed = routed::check(&request);
        let turn = routed::read(routed, self.validate(request.into_inner(), caller))?;
        let seat = self.engine.readers().take(caller)?;
        let caller = deadline::answer(deadline, self.engine.run_turn(turn)).await?;
        if let Some(deadline) = deadline {
            caller.leave_at(deadline);
        }
        let turn = Arc::clone(caller.turn());
        let seat = seat.of_turn(&turn.id)?;
        // Headers only once something is to be said: a refusal without them may be retried by any
        // gRPC client on its own.
        let begun = deadline::headers(deadline, turn.log.begun()).await;
        if begun.is_some()
            && turn.log.last_sequence() == 0
            && let Some(Err(refusal)) = turn.log.ending()
        {
            return Err(refusal.into());
        }
        let streaming = Streaming {
            reader: turn.log.read_after(0),
            caller: Some(caller),
            deadline,
            is_over: false,
            _seat: seat,
            unsent: Arc::clone(&self.unsent),
        };
        Ok(streaming.into_response(|event| RunTurnResponse { event }))
    }

    type AttachTurnStream = EventStream<AttachTurnResponse>;

    async fn attach_turn(
        &self,
        request: Request<pb::AttachTurnRequest>,
    ) -> Result<Response<Self::AttachTurnStream>, Status> {
        let deadline = deadline::of(request.metadata());
        let caller = request.extensions().get::<CallerId>().copied().unwrap_or_default();
        routed::check(&request)?;
        let pb::AttachTurnRequest { target, after_sequence } = request.into_inner();
        let turn = match target {
            Some(pb::attach_turn_request::Target::TurnId(turn_id)) => {
                self.engine.turn(&turn_id_of(&turn_id)?)?
            }
            Some(pb::attach_turn_request::Target::Context(context)) => {
                let key = self.key_of("context", Some(&context))?;
                let turn = self.engine.turns().of_context(&key);
                turn.ok_or(Refusal::NoTurnOfContext(key))?
            }
            None => {
                return Err(
                    Refusal::field("target", "is not set; name a turn_id or a context").into()
                );
            }
        };
        let last = turn.log.last_sequence();
        // Of a turn that was lost it is not known how much was told.
        if after_sequence > last && !turn.was_lost() {
            let description = format!(
                "{after_sequence} is beyond the turn's latest event, {last}; give the sequence of \
                 the last event that was received"
            );
            return Err(Refusal::field("after_sequence", description).into());
        }
        let seat = self.engine.readers().take(caller)?.of_turn(&turn.id)?;
        let streaming = Streaming {
            reader: turn.log.read_after(after_sequence),
            caller: None,
            deadline,
            is_over: false,
            _seat: seat,
            unsent: Arc::clone(&self.unsent),
        };
        Ok(streaming.into_response(|event| AttachTurnResponse { event }))
    }

    async fn interrupt_turn(
        &self,
        request: Request<pb::InterruptTurnRequest>,
    ) -> Result<Response<pb::InterruptTurnResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let pb::InterruptTurnRequest { turn_id } = request.into_inner();
        let turn = self.engine.turn(&turn_id_of(&turn_id)?)?;
        turn.interrupt(InterruptReason::InterruptRequested);
        let terminal = deadline::answer(deadline, terminal(&turn)).await?;
        let terminal_event = Some(terminal);
        Ok(Response::new(pb::InterruptTurnResponse { terminal_event }))
    }

    async fn steer_turn(
        &self,
        request: Request<pb::SteerTurnRequest>,
    ) -> Result<Response<pb::SteerTurnResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let pb::SteerTurnRequest { turn_id, inputs } = request.into_inner();
        let inputs = convert::user_inputs(inputs, &self.limits);
        let (turn_id, inputs, ()) = all_of(turn_id_of(&turn_id), inputs, Ok(()))?;
        let turn = self.engine.turn(&turn_id)?;
        let codex_turn_id = deadline::answer(deadline, self.engine.steer(&turn, inputs)).await?;
        Ok(Response::new(pb::SteerTurnResponse { codex_turn_id }))
    }

    async fn answer_request(
        &self,
        request: Request<pb::AnswerRequestRequest>,
    ) -> Result<Response<pb::AnswerRequestResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        let by = request.extensions().get::<CallerName>().cloned().unwrap_or_default();
        let pb::AnswerRequestRequest { turn_id, request_id, answer } = request.into_inner();
        let answer = convert::answer(request_id, answer);
        let (turn_id, (request_id, answer), ()) = all_of(turn_id_of(&turn_id), answer, Ok(()))?;
        let turn = self.engine.turn(&turn_id)?;
        let answering = self.engine.answer(&turn, request_id, answer, by);
        deadline::answer(deadline, answering).await?;
        Ok(Response::new(pb::AnswerRequestResponse {}))
    }

    async fn get_context(
        &self,
        request: Request<pb::GetContextRequest>,
    ) -> Result<Response<pb::GetContextResponse>, Status> {
        routed::check(&request)?;
        let pb::GetContextRequest { context_id, tool_name, thread_id_key } = request.into_inner();
        let key = self.key(&context_id, &tool_name, &thread_id_key)?;
        let binding = self.engine.contexts().get(&key)?;
        Ok(Response::new(pb::GetContextResponse { context: Some(self.context(&key, &binding)) }))
    }

    async fn list_contexts(
        &self,
        request: Request<pb::ListContextsRequest>,
    ) -> Result<Response<pb::ListContextsResponse>, Status> {
        let pb::ListContextsRequest { page_size, page_token, context_id } = request.into_inner();
        let limit = page_size::of(page_size, DEFAULT_PAGE, MAX_PAGE);
        let filter = Some(context_id.trim()).filter(|context_id| !context_id.is_empty());
        let after = page_token::of_contexts(&page_token, filter);
        let (limit, mut after, ()) = all_of(limit, after, Ok(()))?;
        let _turn = self.turn_to_list().await?;
        let mut contexts = Vec::new();
        let next_page_token = loop {
            // One more than is left tells whether there is a next page.
            let left = limit - contexts.len();
            let part = left.min(LISTED_AT_ONCE);
            let mut page =
                self.engine.contexts().page(&Tenant::default(), filter, after.as_ref(), part + 1);
            let has_more = page.len() > part;
            page.truncate(part);
            contexts.extend(page.iter().map(|(key, binding)| self.context(key, binding)));
            match page.pop() {
                Some((key, _)) if has_more && part == left => {
                    break page_token::after_context(&key, filter);
                }
                Some((key, _)) if has_more => after = Some((key.context_id, key.thread_key)),
                _ => break String::new(),
            }
            tokio::task::yield_now().await;
        };
        Ok(Response::new(pb::ListContextsResponse { contexts, next_page_token }))
    }

    async fn bind_context(
        &self,
        request: Request<pb::BindContextRequest>,
    ) -> Result<Response<pb::BindContextResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        routed::check(&request)?;
        let pb::BindContextRequest { context_id, tool_name, thread_id_key, thread_id } =
            request.into_inner();
        let key = self.key(&context_id, &tool_name, &thread_id_key);
        let (key, thread_id, ()) = all_of(key, thread_id_of(&thread_id), Ok(()))?;
        let binding = self.engine.bind_context(key.clone(), thread_id);
        let Bound { binding, replaced } = deadline::answer(deadline, binding).await?;
        Ok(Response::new(pb::BindContextResponse {
            context: Some(self.context(&key, &binding)),
            replaced_thread_id: replaced.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    async fn fork_context(
        &self,
        request: Request<pb::ForkContextRequest>,
    ) -> Result<Response<pb::ForkContextResponse>, Status> {
        self.fork(request).await
    }

    async fn run_turn_unary(
        &self,
        request: Request<pb::RunTurnUnaryRequest>,
    ) -> Result<Response<pb::RunTurnUnaryResponse>, Status> {
        Ok(Response::new(unary::run(self, request).await?))
    }

    async fn list_turns(
        &self,
        request: Request<pb::ListTurnsRequest>,
    ) -> Result<Response<pb::ListTurnsResponse>, Status> {
        routed::check(&request)?;
        let pb::ListTurnsRequest { context, page_size, page_token } = request.into_inner();
        let context = context.map(|context| self.context_of(&context)).transpose();
        let wanted = turns::Wanted::read(context, page_size, &page_token)?;
        let _turn = self.turn_to_list().await?;
        Ok(Response::new(turns::page(self.engine.turns(), wanted).await))
    }

    async fn read_thread(
        &self,
        request: Request<pb::ReadThreadRequest>,
    ) -> Result<Response<pb::ReadThreadResponse>, Status> {
        self.read(request).await
    }

    async fn revert_context(
        &self,
        request: Request<pb::RevertContextRequest>,
    ) -> Result<Response<pb::RevertContextResponse>, Status> {
        self.revert(request).await
    }

    async fn get_latest_thread(
        &self,
        request: Request<pb::GetLatestThreadRequest>,
    ) -> Result<Response<pb::GetLatestThreadResponse>, Status> {
        let pb::GetLatestThreadRequest { working_directory } = request.into_inner();
        let directory = (!working_directory.is_empty()).then(|| Path::new(&working_directory));
        if let Some(relative) = directory.filter(|directory| !directory.is_absolute()) {
            let description = format!("{} is no absolute path", relative.display());
            return Err(Refusal::field("working_directory", description).into());
        }
        let LatestThread { thread_id, at } = self
            .engine
            .latest_threads()
            .of(directory)
            .ok_or_else(|| Refusal::NoLatestThread(working_directory.clone()))?;
        Ok(Response::new(pb::GetLatestThreadResponse {
            thread_id: thread_id.to_string(),
            last_turn_time: Some(at.into()),
        }))
    }

    async fn delete_context(
        &self,
        request: Request<pb::DeleteContextRequest>,
    ) -> Result<Response<pb::DeleteContextResponse>, Status> {
        let deadline = deadline::of(request.metadata());
        routed::check(&request)?;
        let pb::DeleteContextRequest { context_id, tool_name, thread_id_key, delete_thread } =
            request.into_inner();
        let key = self.key(&context_id, &tool_name, &thread_id_key)?;
        let mut response = pb::DeleteContextResponse::default();
        if delete_thread {
            let thread_id = deadline::answer(deadline, self.engine.erase_context(key)).await?;
            response.deleted_thread_id = thread_id.to_string();
        } else {
            deadline::answer(deadline, self.engine.delete_context(key)).await?;
        }
        Ok(Response::new(response))
    }
}

pub(super) async fn terminal(turn: &Turn) -> Result<TurnEvent, Refusal> {
    turn.log.ended().await;
    let nothing = || Refusal::Internal("the turn ended without an event".to_owned());
    let terminal = turn.log.ending().ok_or_else(nothing)??;
    TurnEvent::decode(terminal).map_err(|error| Refusal::Internal(error.to_string()))
}

/// The field `thread_id` of a request.
pub(super) fn thread_id_of(text: &str) -> Result<ThreadId, Refusal> {
    let fault = || format!("{} is not a thread id; Codex's are UUIDs", show(text));
    ThreadId::parse(text).ok_or_else(|| Refusal::field("thread_id", fault()))
}

fn turn_id_of(text: &str) -> Result<TurnId, Refusal> {
    match uuid::Uuid::try_parse(text.trim()) {
        Ok(id) => Ok(TurnId(id.to_string())),
        Err(_) if text.trim().is_empty() => Err(Refusal::field(
            "turn_id",
            "is empty; give the id that every event of the turn bears",
        )),
        Err(_) => Err(Refusal::field(
            "turn_id",
            format!(
                "{} is not a turn id; give the one that every event of the turn bears",
                show(text)
            ),
        )),
    }
}
