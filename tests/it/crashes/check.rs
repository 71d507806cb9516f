//! Holds a sidecar to what was told before it was started.

use super::load::Load;
use super::told::{Asked, Belief, Context};
use crate::support::attached::by_id;
use crate::support::turn::is_terminal;
use crate::support::{PATIENCE, within};
use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::read_thread_request::Target;
use codex_sidecar::pb::turn_event::Event;
use codex_sidecar::pb::user_input::Input;

/// What became of requests that were made before the sidecar was killed.
#[derive(Debug, Default)]
pub(super) struct Fates {
    /// Ended before, and told again.
    pub(super) ended: usize,
    /// Lost with the sidecar.
    pub(super) lost: usize,
    /// Nothing was left of it, and it ran now.
    pub(super) untouched: usize,
}

impl Load {
    /// The context has the thread that its callers were told of.
    pub(super) async fn check_binding(&self, context: &mut Context) {
        let name = &context.name;
        let thread_id = match self.client.context(name).await {
            Ok(context) => Some(context.thread_id),
            Err(refused) if refused.reason == "CONTEXT_NOT_FOUND" => None,
            Err(refused) => panic!("{name}: {refused:#?}"),
        };
        let belief = &context.belief;
        assert!(belief.allows(thread_id.as_deref()), "{name}: {belief:?}, and not {thread_id:?}");
        context.belief = Belief::sure(thread_id);
    }

    /// All that was asked of the context and heard of it holds; what never ran does so now.
    pub(super) async fn check_requests(&self, context: &mut Context, fates: &mut Fates) {
        for go in context.asked.iter().filter_map(|asked| asked.go.as_ref()) {
            std::fs::write(go, "").unwrap();
        }
        for before in std::mem::take(&mut context.asked) {
            let kept = self.check_attach(&before).await;
            let mut again =
                Asked { events: Vec::new(), is_cut: false, refused: None, ..before.clone() };
            context.expects_turns();
            self.repeat(&mut again).await;
            let told = again.events.last().unwrap_or_else(|| panic!("{again:#?}"));
            assert!(is_terminal(told), "no outcome: {again:#?}");
            match kept {
                Some(terminal) => {
                    assert_eq!(told, &terminal, "{before:#?}");
                    match reason(&terminal) {
                        Some("SIDECAR_RESTARTED") => fates.lost += 1,
                        _ => fates.ended += 1,
                    }
                }
                None if reason(told) == Some("SIDECAR_RESTARTED") => {
                    // Its caller never heard of it, and Codex may have.
                    assert!(before.turn_id().is_none(), "{before:#?}, and then {again:#?}");
                    fates.lost += 1;
                }
                None => {
                    let is_new =
                        before.turn_id().is_none_or(|turn_id| again.turn_id() != Some(turn_id));
                    let ended = matches!(again.terminal(), Some(Event::TurnCompleted(_)));
                    assert!(is_new && ended, "{before:#?}, and then {again:#?}");
                    context.learns(&again);
                    fates.untouched += 1;
                }
            }
            let runs = again.runs();
            assert!(runs <= 1, "ran {runs} times: {before:#?}, and then {again:#?}");
            // The model goes by what was said last: by what was added to it before it began, then.
            let has_answered = match again.terminal() {
                Some(Event::TurnCompleted(end)) => end.final_response.contains(again.id()),
                _ => false,
            };
            assert!(!has_answered || runs == 1, "answered and did not run: {again:#?}");
            context.asked.push(again);
        }
    }

    /// The same call, until the sidecar takes it.
    async fn repeat(&self, again: &mut Asked) {
        loop {
            self.hear(again, None).await;
            assert!(!again.is_cut, "{again:#?}");
            if again.refused.take().is_none() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }

    /// A request of long ago is told as it was.
    pub(super) async fn check_again(&self, before: &Asked) {
        let turn_id = before.turn_id().expect("it has run");
        let kept = self.client.told_after(by_id(turn_id), 0).await;
        assert_eq!(kept.last(), before.events.last(), "{before:#?}");
        let mut again = Asked { events: Vec::new(), ..before.clone() };
        self.repeat(&mut again).await;
        assert_eq!(again.events.last(), before.events.last(), "{before:#?}");
        let runs = again.runs();
        assert!(runs <= 1, "ran {runs} times: {before:#?}");
    }

    /// The turn is there as it was told, with an end; or it is not, if it only waited.
    async fn check_attach(&self, before: &Asked) -> Option<pb::TurnEvent> {
        let turn_id = before.turn_id()?;
        let attached = match self.client.try_attach(by_id(turn_id), 0).await {
            Ok(attached) => attached,
            Err(refused) => {
                assert_eq!(refused.reason, "TURN_NOT_FOUND", "{before:#?}");
                let only_waited =
                    before.events.iter().all(|event| matches!(event.event, Some(Event::Queued(_))));
                let was_refused = before.refused.is_some();
                assert!(only_waited || was_refused, "forgotten: {before:#?}");
                return None;
            }
        };
        let kept = attached.rest().await;
        let is_started =
            |event: &&pb::TurnEvent| matches!(event.event, Some(Event::ThreadStarted(_)));
        if let Some(started) = before.thread_started() {
            assert_eq!(kept.iter().find(is_started), Some(started), "{before:#?}");
        }
        let terminal = kept.last().expect("a terminal event").clone();
        if before.terminal().is_some() {
            assert_eq!(before.events.last(), Some(&terminal));
        } else {
            assert!(terminal.sequence > before.heard(), "{before:#?}, and then {kept:#?}");
        }
        if reason(&terminal) == Some("SIDECAR_RESTARTED") {
            let Some(Event::TurnFailed(failed)) = &terminal.event else { unreachable!() };
            let error = failed.error.as_ref().unwrap();
            assert!(error.retryable && error.side_effects_possible, "{error:#?}");
        }
        // From what was heard last there is the rest.
        let rest = self.client.told_after(by_id(turn_id), before.heard()).await;
        assert_eq!(rest.last(), Some(&terminal), "{before:#?}");
        Some(terminal)
    }

    /// No request is in the context's thread twice, and each turn has ended.
    pub(super) async fn check_history(&self, context: &Context) {
        let Some(thread_id) = context.belief.thread_id() else { return };
        if !context.written.contains(thread_id) {
            return;
        }
        let messages = self.messages(thread_id).await;
        for asked in &context.asked {
            let said = format!("This is {}.", asked.id());
            let count = messages.iter().filter(|message| message.starts_with(&said)).count();
            assert!(count <= 1, "{count} times in {thread_id}: {asked:#?}");
        }
    }

    /// What users said in a thread.
    async fn messages(&self, thread_id: &str) -> Vec<String> {
        let mut request = pb::ReadThreadRequest {
            target: Some(Target::ThreadId(thread_id.to_owned())),
            ..Default::default()
        };
        let mut messages = Vec::new();
        loop {
            let mut codex = self.client.codex();
            let asked = codex.read_thread(request.clone());
            let page = within(PATIENCE, "ReadThread", asked).await.unwrap().into_inner();
            let items = page.turns.into_iter().flat_map(|turn| turn.items);
            for item in items {
                let Some(Kind::UserMessage(message)) = item.kind else { continue };
                let texts = message.inputs.into_iter().filter_map(|input| match input.input? {
                    Input::Text(text) => Some(text),
                    _ => None,
                });
                messages.extend(texts);
            }
            if page.next_page_token.is_empty() {
                return messages;
            }
            request.page_token = page.next_page_token;
        }
    }
}

fn reason(terminal: &pb::TurnEvent) -> Option<&str> {
    match &terminal.event {
        Some(Event::TurnFailed(failed)) => Some(failed.error.as_ref()?.reason.as_str()),
        _ => None,
    }
}
