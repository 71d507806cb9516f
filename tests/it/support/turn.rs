//! Requests, and what came of them.

use std::time::Duration;

use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::turn_event::Event;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use super::{PATIENCE, within};

/// A text input.
pub fn text(words: &str) -> pb::UserInput {
    pb::UserInput { input: Some(pb::user_input::Input::Text(words.to_owned())) }
}

/// A turn of a context that says these words.
pub fn prompt(context: &str, words: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest {
        context_id: context.to_owned(),
        inputs: vec![text(words)],
        ..Default::default()
    }
}

/// A turn on a thread that is kept nowhere.
pub fn ephemeral(words: &str) -> pb::RunTurnRequest {
    pb::RunTurnRequest { ephemeral: true, ..prompt("", words) }
}

/// The same with other options.
pub fn with_options(
    mut request: pb::RunTurnRequest,
    change: impl FnOnce(&mut pb::ThreadOptions),
) -> pb::RunTurnRequest {
    change(request.thread_options.get_or_insert_default());
    request
}

/// A turn of a context whose commands run outside every sandbox: CI containers often allow none, and
/// what runs in one dies with it by itself.
pub fn unsandboxed(context: &str, words: &str) -> pb::RunTurnRequest {
    with_options(prompt(context, words), |options| {
        options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    })
}

/// A turn whose command runs until this file is there, outside every sandbox; then it says these words.
/// For what must happen while a turn runs, however long it takes.
pub fn until_there(context: &str, file: &std::path::Path, words: &str) -> pb::RunTurnRequest {
    let file = file.display();
    let script = format!("[[run until [ -e '{file}' ]; do sleep 0.05; done]] [[say {words}]]");
    unsandboxed(context, &script)
}

/// A stream that is open. Dropping it is the caller's leave.
#[derive(Debug)]
pub struct Turn {
    stream: Streaming<pb::RunTurnResponse>,
    pub events: Vec<pb::TurnEvent>,
}

impl Turn {
    pub fn new(stream: Streaming<pb::RunTurnResponse>) -> Turn {
        Turn { stream, events: Vec::new() }
    }

    /// The next event; `None` after the last.
    pub async fn try_next(&mut self) -> Result<Option<pb::TurnEvent>, Status> {
        let what = format!("the next event after {:?}", self.kinds());
        let message = within(PATIENCE, &what, self.stream.message()).await?;
        let Some(pb::RunTurnResponse { event }) = message else { return Ok(None) };
        let event = event.expect("a response has its event");
        self.events.push(event.clone());
        Ok(Some(event))
    }

    /// Reads on until an event is what is looked for, and returns what `pick` makes of it.
    pub async fn until<T>(&mut self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        loop {
            match self.try_next().await {
                Ok(Some(event)) => {
                    if let Some(found) = event.event.as_ref().and_then(&pick) {
                        return found;
                    }
                }
                Ok(None) => panic!("the turn ended before {what}: {:#?}", self.events),
                Err(status) => panic!("{status:?} before {what}: {:#?}", self.events),
            }
        }
    }

    /// Reads on until Codex has taken the turn; returns the sidecar's id of it.
    pub async fn started(&mut self) -> String {
        let started = |event: &Event| matches!(event, Event::TurnStarted(_)).then_some(());
        self.until("turn_started", started).await;
        self.turn_id().to_owned()
    }

    /// Reads on until a command is running.
    pub async fn command_started(&mut self) -> pb::CommandExecution {
        self.until("a command", |event| match event {
            Event::ItemStarted(pb::ItemStarted { item: Some(item) }) => match &item.kind {
                Some(Kind::CommandExecution(command)) => Some(command.clone()),
                _ => None,
            },
            _ => None,
        })
        .await
    }

    pub fn turn_id(&self) -> &str {
        &self.events.first().expect("no event yet").turn_id
    }

    /// The rest, to an end by the rules.
    pub async fn rest(mut self) -> Told {
        loop {
            match self.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(status) => panic!("the stream ended with {status:?}: {:#?}", self.events),
            }
        }
        let told = Told { events: self.events };
        told.assert_well_formed();
        told
    }

    /// All that is left of a turn of an earlier sidecar, by the rule of sequences.
    pub async fn read_kept(mut self) -> Vec<pb::TurnEvent> {
        while let Some(event) = self.try_next().await.expect("what is kept is told whole") {
            let before = self.events.iter().rev().nth(1).map_or(0, |event| event.sequence);
            super::attached::assert_follows(before, &event);
        }
        assert!(self.events.last().is_some_and(is_terminal), "{:#?}", self.events);
        self.events
    }

    /// The rest, to an end that is a status.
    pub async fn rest_fails(&mut self) -> Refused {
        loop {
            match self.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended with OK: {:#?}", self.events),
                Err(status) => break Refused::from(status),
            }
        }
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.events.iter().filter_map(|event| event.event.as_ref()).map(Event::name).collect()
    }
}

/// All that a turn told.
#[derive(Debug)]
pub struct Told {
    pub events: Vec<pb::TurnEvent>,
}

impl Told {
    /// The rules that hold for every stream with status OK that was read from its beginning.
    pub fn assert_well_formed(&self) {
        let kinds = self.kinds();
        let turn_id = &self.events.first().expect("a turn without an event").turn_id;
        assert!(uuid::Uuid::try_parse(turn_id).is_ok(), "{turn_id:?} is no turn id");
        let mut latest = None;
        for (at, event) in self.events.iter().enumerate() {
            assert_eq!(event.sequence, at as u64 + 1, "sequence of {event:#?}");
            assert_eq!(event.turn_id, *turn_id, "turn_id of {event:#?}");
            let emitted_at = event.emitted_at.expect("every event has its time");
            let emitted_at = (emitted_at.seconds, emitted_at.nanos);
            assert!(
                Some(emitted_at) >= latest,
                "an event is older than the one before: {event:#?}"
            );
            latest = Some(emitted_at);
        }
        let terminals: Vec<usize> =
            (0..self.events.len()).filter(|at| is_terminal(&self.events[*at])).collect();
        assert_eq!(terminals, [self.events.len() - 1], "one terminal event, the last: {kinds:?}");

        let first = |kind: &str| kinds.iter().position(|other| *other == kind);
        let once = |kind: &str| kinds.iter().filter(|other| **other == kind).count() <= 1;
        assert!(once("thread_started"), "{kinds:?}");
        // More than one only where Codex goes on with a goal, each with an id of its own.
        let begun = self.codex_turn_ids();
        let different: std::collections::BTreeSet<_> = begun.iter().collect();
        assert_eq!(different.len(), begun.len(), "{kinds:?}");
        if let Some(turn_started) = first("turn_started") {
            let thread_started = first("thread_started").expect("no thread_started");
            assert!(thread_started < turn_started, "{kinds:?}");
            let between = &kinds[thread_started + 1..turn_started];
            assert!(between.iter().all(|kind| *kind == "warning"), "{kinds:?}");
        }
        if let Some(thread_started) = first("thread_started") {
            let earlier = &kinds[..thread_started];
            assert!(earlier.iter().all(|kind| *kind == "queued"), "{kinds:?}");
        }
    }

    pub fn kinds(&self) -> Vec<&'static str> {
        self.events.iter().filter_map(|event| event.event.as_ref()).map(Event::name).collect()
    }

    /// The contents of all events, in order.
    pub fn all(&self) -> impl Iterator<Item = &Event> {
        self.events.iter().filter_map(|event| event.event.as_ref())
    }

    pub fn turn_id(&self) -> &str {
        &self.events[0].turn_id
    }

    pub fn thread_started(&self) -> &pb::ThreadStarted {
        let started = self.all().find_map(|event| match event {
            Event::ThreadStarted(started) => Some(started),
            _ => None,
        });
        started.unwrap_or_else(|| panic!("no thread_started: {:#?}", self.events))
    }

    pub fn thread_id(&self) -> &str {
        &self.thread_started().thread_id
    }

    pub fn origin(&self) -> pb::ThreadOrigin {
        self.thread_started().origin()
    }

    pub fn terminal(&self) -> &Event {
        self.events.last().and_then(|event| event.event.as_ref()).expect("a terminal event")
    }

    pub fn completed(&self) -> &pb::TurnCompleted {
        match self.terminal() {
            Event::TurnCompleted(completed) => completed,
            other => panic!("not completed: {other:#?}; before it {:?}", self.kinds()),
        }
    }

    pub fn final_response(&self) -> &str {
        &self.completed().final_response
    }

    pub fn failed(&self) -> &pb::TurnError {
        match self.terminal() {
            Event::TurnFailed(pb::TurnFailed { error: Some(error), .. }) => error,
            other => panic!("not failed: {other:#?}; before it {:?}", self.kinds()),
        }
    }

    pub fn interrupted(&self) -> pb::InterruptReason {
        match self.terminal() {
            Event::TurnInterrupted(interrupted) => interrupted.reason(),
            other => panic!("not interrupted: {other:#?}; before it {:?}", self.kinds()),
        }
    }

    /// Items as they were when they ended.
    pub fn items(&self) -> Vec<(&str, &Kind)> {
        self.all()
            .filter_map(|event| match event {
                Event::ItemCompleted(pb::ItemCompleted { item }) => item.as_ref(),
                _ => None,
            })
            .map(|item| (item.id.as_str(), item.kind.as_ref().expect("an item has its kind")))
            .collect()
    }

    /// What `pick` finds among the ended items; there must be exactly one.
    pub fn item<'a, T>(&'a self, what: &str, pick: impl Fn(&'a Kind) -> Option<T>) -> (&'a str, T) {
        let mut found: Vec<(&str, T)> = self
            .items()
            .into_iter()
            .filter_map(|(id, kind)| pick(kind).map(|picked| (id, picked)))
            .collect();
        assert_eq!(found.len(), 1, "{what}: {:#?}", self.events);
        found.remove(0)
    }

    /// What the model said: the texts of its messages, as they were when they ended.
    pub fn messages(&self) -> Vec<&str> {
        self.items()
            .into_iter()
            .filter_map(|(_, kind)| match kind {
                Kind::AgentMessage(message) => Some(message.text.as_str()),
                _ => None,
            })
            .collect()
    }

    pub fn commands(&self) -> Vec<&pb::CommandExecution> {
        self.items()
            .into_iter()
            .filter_map(|(_, kind)| match kind {
                Kind::CommandExecution(command) => Some(command),
                _ => None,
            })
            .collect()
    }

    /// The only command of the turn.
    pub fn command(&self) -> &pb::CommandExecution {
        let commands = self.commands();
        assert_eq!(commands.len(), 1, "one command: {:#?}", self.events);
        commands[0]
    }

    /// Codex's ids of its turns: one, and one more each time that it went on with a goal.
    pub fn codex_turn_ids(&self) -> Vec<&str> {
        self.all()
            .filter_map(|event| match event {
                Event::TurnStarted(started) => Some(started.codex_turn_id.as_str()),
                _ => None,
            })
            .collect()
    }

    /// What sub-agents did, as it was told when it ended.
    pub fn sub_agents(&self) -> Vec<&pb::SubAgent> {
        self.items()
            .into_iter()
            .filter_map(|(_, kind)| match kind {
                Kind::SubAgent(agent) => Some(agent),
                _ => None,
            })
            .collect()
    }

    pub fn warnings(&self) -> Vec<&pb::Warning> {
        self.all()
            .filter_map(|event| match event {
                Event::Warning(warning) => Some(warning),
                _ => None,
            })
            .collect()
    }
}

/// A call that ended with a status, taken apart.
#[derive(Debug)]
pub struct Refused {
    pub code: Code,
    pub reason: String,
    pub domain: String,
    pub metadata: std::collections::HashMap<String, String>,
    /// The paths of the fields at fault, and what is wrong with each.
    pub fields: Vec<(String, String)>,
    pub retry_after: Option<Duration>,
    pub message: String,
}

impl From<Status> for Refused {
    fn from(status: Status) -> Refused {
        let details = status.get_error_details();
        let info = details.error_info();
        let violations = details.bad_request().map(|bad| bad.field_violations.clone());
        Refused {
            code: status.code(),
            reason: info.map(|info| info.reason.clone()).unwrap_or_default(),
            domain: info.map(|info| info.domain.clone()).unwrap_or_default(),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            fields: violations
                .unwrap_or_default()
                .into_iter()
                .map(|violation| (violation.field, violation.description))
                .collect(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            message: status.message().to_owned(),
        }
    }
}

impl Refused {
    pub fn field_paths(&self) -> Vec<&str> {
        self.fields.iter().map(|(path, _)| path.as_str()).collect()
    }

    pub fn assert(&self, code: Code, reason: &str) {
        assert_eq!((self.code, self.reason.as_str()), (code, reason), "{self:#?}");
        assert_eq!(self.domain, "codex.sidecar", "{self:#?}");
    }
}

pub fn is_terminal(event: &pb::TurnEvent) -> bool {
    matches!(
        event.event,
        Some(Event::TurnCompleted(_) | Event::TurnFailed(_) | Event::TurnInterrupted(_))
    )
}
