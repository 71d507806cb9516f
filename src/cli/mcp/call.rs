//! One call of a tool: a turn from its beginning to its end.

use std::collections::HashMap;
use std::future::Future;

use rmcp::model::{
    CallToolResult, ContentBlock, CustomNotification, ProgressNotificationParam, ProgressToken,
};
use rmcp::service::{RequestContext, RoleServer, ServiceError};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::asking::{self, Modes, Question};
use super::events;
use super::sessions::Sessions;
use crate::cli::refusal::Words;
use crate::grpc::caller::Caller;
use crate::pb;
use crate::pb::turn_event::Event;

/// What a call asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(super) request: pb::RunTurnRequest,
    /// The thread that goes on; empty for a new one.
    pub(super) thread_id: String,
}

/// What a call comes to.
#[derive(Debug)]
pub(crate) struct Ending {
    /// Empty where there was none.
    thread_id: String,
    text: String,
    is_error: bool,
}

impl Ending {
    pub(super) fn failed(thread_id: &str, text: impl Into<String>) -> Ending {
        Ending { thread_id: thread_id.to_owned(), text: text.into(), is_error: true }
    }

    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn into_result(self) -> CallToolResult {
        let Ending { thread_id, text, is_error } = self;
        let content = vec![ContentBlock::text(text.as_str())];
        let mut result = if is_error {
            CallToolResult::error(content)
        } else {
            CallToolResult::success(content)
        };
        // Of a call that never had a thread there is nothing to go on with.
        if !thread_id.is_empty() {
            result.structured_content = Some(json!({ "threadId": thread_id, "content": text }));
        }
        result
    }
}

/// Who made a call.
#[derive(Clone, Copy)]
pub(super) struct Client<'a> {
    pub(super) context: &'a RequestContext<RoleServer>,
    /// Cancelled when it has closed its side.
    pub(super) is_gone: &'a CancellationToken,
}

impl Client<'_> {
    /// Waits until it wants the call no more.
    pub(super) async fn gave_up(&self) {
        tokio::select! {
            () = self.context.ct.cancelled() => {}
            () = self.is_gone.cancelled() => {}
        }
    }

    /// Tells it something, unless it has gone: nothing is written any more then, and this would wait.
    async fn tell(&self, telling: impl Future<Output = Result<(), ServiceError>>) {
        tokio::select! {
            biased;
            () = self.is_gone.cancelled() => {}
            _ = telling => {}
        }
    }
}

/// Runs the turn, tells what it does, has the client asked what it asks.
pub(super) async fn run(
    caller: &Caller,
    asked: Asked,
    client: Client<'_>,
    sessions: &Sessions,
) -> Ending {
    let Asked { mut request, thread_id } = asked;
    let modes = Modes::of(client.context.client_capabilities());
    if modes.form {
        request.set_question_policy(pb::QuestionPolicy::Ask);
    }
    let options = request.thread_options.clone().unwrap_or_default();
    let mut call = Call {
        caller,
        client,
        modes,
        thread_id,
        turn_id: String::new(),
        codex_turn_id: String::new(),
        last_message: String::new(),
        progress: 0,
        waiting: HashMap::new(),
    };
    let mut events = tokio::select! {
        begun = caller.run_turn(request) => match begun {
            Ok(events) => events,
            Err(refused) => return Ending::failed(&call.thread_id, Words::of_tool().failure(refused).into_message()),
        },
        // Dropping the call interrupts a turn that has begun.
        () = client.gave_up() => return Ending::failed(&call.thread_id, "cancelled"),
    };
    let mut is_cancelled = false;
    loop {
        let event = tokio::select! {
            // First, so that a flood of events can't delay it.
            biased;
            () = client.gave_up(), if !is_cancelled => {
                is_cancelled = true;
                if call.turn_id.is_empty() {
                    return Ending::failed(&call.thread_id, "cancelled");
                }
                tokio::spawn(interrupt(caller.clone(), call.turn_id.clone()));
                continue;
            }
            event = events.next() => event,
        };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => return Ending::failed(&call.thread_id, "the turn's events broke off"),
            Err(refused) => {
                return Ending::failed(
                    &call.thread_id,
                    Words::of_tool().failure(refused).into_message(),
                );
            }
        };
        if let Some(Event::ThreadStarted(thread)) = &event.event {
            sessions.remember(&thread.thread_id, &options);
        }
        if let Some(ending) = call.take(event).await {
            return ending;
        }
    }
}

async fn interrupt(caller: Caller, turn_id: String) {
    // A turn that has ended meanwhile needs none.
    let _ = caller.interrupt_turn(turn_id).await;
}

struct Call<'a> {
    caller: &'a Caller,
    client: Client<'a>,
    modes: Modes,
    thread_id: String,
    turn_id: String,
    codex_turn_id: String,
    last_message: String,
    progress: u64,
    /// What the client is being asked, by the sidecar's ids; dropping one takes it back.
    waiting: HashMap<String, DropGuard>,
}

impl Call<'_> {
    /// Tells an event, and does what it wants done; gives the call's ending with the last one.
    async fn take(&mut self, event: pb::TurnEvent) -> Option<Ending> {
        self.turn_id.clone_from(&event.turn_id);
        match &event.event {
            Some(Event::ThreadStarted(thread)) => self.thread_id.clone_from(&thread.thread_id),
            Some(Event::TurnStarted(turn)) => self.codex_turn_id.clone_from(&turn.codex_turn_id),
            Some(Event::ItemCompleted(pb::ItemCompleted { item: Some(item) })) => {
                if let Some(pb::item::Kind::AgentMessage(message)) = &item.kind {
                    self.last_message.clone_from(&message.text);
                }
            }
            _ => {}
        }
        let event = event.event?;
        let thread = events::Thread { thread_id: &self.thread_id, turn_id: &self.codex_turn_id };
        for message in events::messages(&event, thread, &self.last_message) {
            self.tell(message).await;
        }
        if let Some(text) = events::progress(&event) {
            self.tell_progress(text).await;
        }
        match event {
            Event::RequestRaised(pb::RequestRaised { request: Some(question) }) => {
                self.ask(question);
                None
            }
            Event::RequestResolved(resolved) => {
                self.waiting.remove(&resolved.request_id);
                None
            }
            Event::TurnCompleted(_) => Some(Ending {
                thread_id: self.thread_id.clone(),
                text: std::mem::take(&mut self.last_message),
                is_error: false,
            }),
            Event::TurnFailed(failed) => {
                let message = failed.error.map_or_else(String::new, |error| error.message);
                Some(Ending::failed(&self.thread_id, message))
            }
            Event::TurnInterrupted(_) => {
                Some(Ending::failed(&self.thread_id, "the turn was interrupted"))
            }
            _ => None,
        }
    }

    async fn tell(&self, message: Value) {
        let params = json!({
            "_meta": { "requestId": self.client.context.id, "threadId": self.thread_id },
            "id": self.codex_turn_id,
            "msg": message,
        });
        let notification = CustomNotification::new("codex/event", Some(params));
        self.client.tell(self.client.context.peer.send_notification(notification.into())).await;
    }

    async fn tell_progress(&mut self, text: String) {
        let token: Option<ProgressToken> = self.client.context.meta.get_progress_token();
        let Some(token) = token else { return };
        self.progress += 1;
        let progress = ProgressNotificationParam::new(token, self.progress as f64);
        let progress = progress.with_message(text);
        self.client.tell(self.client.context.peer.notify_progress(progress)).await;
    }

    /// Asks the client in a task of its own: the turn's events go on meanwhile.
    fn ask(&mut self, question: pb::CodexRequest) {
        let is_withdrawn = CancellationToken::new();
        let question = Question {
            question,
            turn_id: self.turn_id.clone(),
            thread_id: self.thread_id.clone(),
            codex_turn_id: self.codex_turn_id.clone(),
            call_id: self.client.context.id.to_string(),
        };
        self.waiting
            .insert(question.question.request_id.clone(), is_withdrawn.clone().drop_guard());
        let (caller, peer) = (self.caller.clone(), self.client.context.peer.clone());
        tokio::spawn(asking::ask(question, self.modes, caller, peer, is_withdrawn));
    }
}
