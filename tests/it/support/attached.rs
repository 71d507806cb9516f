//! Streams of `AttachTurn`, and the rules that they keep wherever they begin.

use codex_sidecar::pb;
use codex_sidecar::pb::attach_turn_request::Target;
use codex_sidecar::pb::turn_event::Event;
use tonic::{Status, Streaming};

use super::turn::is_terminal;
use super::{Client, PATIENCE, Refused, within};

/// A stream that is open.
#[derive(Debug)]
pub struct Attached {
    stream: Streaming<pb::AttachTurnResponse>,
    after: u64,
    pub events: Vec<pb::TurnEvent>,
}

pub fn by_id(turn_id: &str) -> Target {
    Target::TurnId(turn_id.to_owned())
}

pub fn by_context(context_id: &str) -> Target {
    Target::Context(pb::ContextRef { context_id: context_id.to_owned(), ..Default::default() })
}

impl Client {
    pub async fn attach(&self, target: Target, after: u64) -> Attached {
        let attached = self.try_attach(target, after).await;
        attached.unwrap_or_else(|refused| panic!("{refused:#?}"))
    }

    pub async fn try_attach(&self, target: Target, after: u64) -> Result<Attached, Refused> {
        let request = pb::AttachTurnRequest { target: Some(target), after_sequence: after };
        let mut codex = self.codex();
        let attached = within(PATIENCE, "AttachTurn", codex.attach_turn(request)).await;
        let stream = attached.map_err(Refused::from)?.into_inner();
        Ok(Attached { stream, after, events: Vec::new() })
    }

    /// All that is told of a turn after this event, to its end.
    pub async fn told_after(&self, target: Target, after: u64) -> Vec<pb::TurnEvent> {
        self.attach(target, after).await.rest().await
    }

    /// The turns that it knows, of this context or of all.
    pub async fn turns(&self, context_id: Option<&str>) -> Vec<pb::TurnInfo> {
        let context = context_id.map(|context_id| pb::ContextRef {
            context_id: context_id.to_owned(),
            ..Default::default()
        });
        let mut request = pb::ListTurnsRequest { context, page_size: 1000, ..Default::default() };
        let mut turns = Vec::new();
        loop {
            let mut codex = self.codex();
            let asked = codex.list_turns(request.clone());
            let page = within(PATIENCE, "ListTurns", asked).await.unwrap().into_inner();
            turns.extend(page.turns);
            if page.next_page_token.is_empty() {
                return turns;
            }
            request.page_token = page.next_page_token;
        }
    }

    pub async fn steer(&self, turn_id: &str, words: &str) -> Result<String, Refused> {
        let request =
            pb::SteerTurnRequest { turn_id: turn_id.to_owned(), inputs: vec![super::text(words)] };
        let mut codex = self.codex();
        let steered = within(PATIENCE, "SteerTurn", codex.steer_turn(request)).await;
        Ok(steered.map_err(Refused::from)?.into_inner().codex_turn_id)
    }

    pub async fn counts(&self) -> pb::ServerCounts {
        self.info().await.counts.expect("counts")
    }
}

impl Attached {
    /// The next event, by the rules; `None` after the terminal one.
    pub async fn try_next(&mut self) -> Result<Option<pb::TurnEvent>, Status> {
        let message = within(PATIENCE, "an event", self.stream.message()).await?;
        let Some(pb::AttachTurnResponse { event }) = message else {
            let ended = self.events.last().is_some_and(is_terminal);
            assert!(ended, "ended with OK without a terminal event: {:#?}", self.events);
            return Ok(None);
        };
        let event = event.expect("a response has its event");
        // Who has seen the terminal event gets it again, and nothing else.
        let again = self.events.is_empty() && event.sequence == self.after && is_terminal(&event);
        if !again {
            assert_follows(self.events.last().map_or(self.after, |last| last.sequence), &event);
        }
        self.events.push(event.clone());
        Ok(Some(event))
    }

    /// All events, to the end.
    pub async fn rest(mut self) -> Vec<pb::TurnEvent> {
        loop {
            match self.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => return self.events,
                Err(status) => panic!("{status:?} after {:#?}", self.events),
            }
        }
    }
}

/// The rule of sequences: the next number, or a gap that says which ones are missing.
pub fn assert_follows(seen: u64, event: &pb::TurnEvent) {
    match &event.event {
        Some(Event::Gap(pb::Gap { from, to })) => {
            assert_eq!(*from, seen + 1, "a gap that leaves a hole or overlaps: {event:#?}");
            assert!(to >= from && event.sequence == *to, "{event:#?}");
        }
        _ => assert_eq!(event.sequence, seen + 1, "after {seen}: {event:#?}"),
    }
}

/// The concatenated deltas of agent messages.
pub fn said(events: &[pb::TurnEvent]) -> String {
    let deltas = events.iter().filter_map(|event| match &event.event {
        Some(Event::AgentMessageDelta(delta)) => Some(delta.text.as_str()),
        _ => None,
    });
    deltas.collect()
}
