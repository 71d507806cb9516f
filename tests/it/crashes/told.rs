//! What the callers were told, which is what must hold after the next start.

use std::collections::HashSet;
use std::path::PathBuf;

use crate::support::turn::is_terminal;
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;

/// What a caller knows of a context's thread.
#[derive(Debug, Clone)]
pub(super) struct Belief {
    /// It is one of these; none is unbound.
    may: Vec<Option<String>>,
    /// Or one that the caller has not heard of.
    or_new: bool,
}

impl Belief {
    pub(super) fn sure(thread_id: Option<String>) -> Belief {
        Belief { may: vec![thread_id], or_new: false }
    }

    /// This may be so, too: it was asked for, and not answered yet.
    pub(super) fn or(&mut self, thread_id: Option<String>) {
        self.may.push(thread_id);
    }

    /// A thread that nobody has heard of, too.
    pub(super) fn or_new(&mut self) {
        self.or_new = true;
    }

    /// Its thread, where there is no doubt.
    pub(super) fn thread_id(&self) -> Option<&str> {
        match self.may.as_slice() {
            [thread_id] if !self.or_new => thread_id.as_deref(),
            _ => None,
        }
    }

    /// Whether this thread is in the place of another one.
    fn replaces(&self, thread_id: &str) -> bool {
        self.may.iter().all(|may| may.as_deref().is_some_and(|other| other != thread_id))
    }

    pub(super) fn allows(&self, thread_id: Option<&str>) -> bool {
        let is_one = self.may.iter().any(|may| may.as_deref() == thread_id);
        is_one || self.or_new && thread_id.is_some()
    }
}

/// A context, and all that its callers have heard.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) name: String,
    pub(super) belief: Belief,
    /// Its threads that a turn has told, which are never replaced.
    pub(super) told: HashSet<String>,
    /// Its threads on which a turn has completed.
    pub(super) written: HashSet<String>,
    /// How often it got another thread for one that nobody had heard of.
    pub(super) replaced: usize,
    /// A thread that it had before.
    pub(super) earlier: Option<String>,
    /// What was asked of it since the last start.
    pub(super) asked: Vec<Asked>,
}

impl Context {
    pub(super) fn new(name: String) -> Context {
        Context {
            name,
            belief: Belief::sure(None),
            told: HashSet::new(),
            written: HashSet::new(),
            replaced: 0,
            earlier: None,
            asked: Vec::new(),
        }
    }

    /// What must be so before a turn is asked for: it may bind a thread, in place of none or of one that
    /// Codex had not written down, and that no turn has told.
    pub(super) fn expects_turns(&mut self) {
        let is_told = self.belief.thread_id().is_some_and(|thread| self.told.contains(thread));
        if !is_told {
            self.belief.or_new();
        }
    }

    /// Takes in what was heard of one of its turns.
    pub(super) fn learns(&mut self, asked: &Asked) {
        let Some(event) = asked.thread_started() else { return };
        let Some(Event::ThreadStarted(started)) = &event.event else { return };
        let thread_id = &started.thread_id;
        let name = &self.name;
        assert!(self.belief.allows(Some(thread_id)), "{name}: {:?}, and {asked:#?}", self.belief);
        self.replaced += usize::from(self.belief.replaces(thread_id));
        self.belief = Belief::sure(Some(thread_id.clone()));
        self.told.insert(thread_id.clone());
        if matches!(asked.terminal(), Some(Event::TurnCompleted(_))) {
            self.written.insert(thread_id.clone());
        }
    }
}

/// One request, and what was heard of it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) request: pb::RunTurnRequest,
    /// Where each of its runs leaves a line.
    pub(super) count: Option<PathBuf>,
    /// What its command waits for.
    pub(super) go: Option<PathBuf>,
    pub(super) events: Vec<pb::TurnEvent>,
    /// Why it was refused.
    pub(super) refused: Option<String>,
    /// It was sent to a sidecar that was there.
    pub(super) is_sent: bool,
    /// Its stream was cut.
    pub(super) is_cut: bool,
}

/// How far a request was when the sidecar was killed, as far as its caller can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Phase {
    /// In its queue.
    Waiting,
    /// Called for, without a thread so far.
    Opening,
    /// With a thread, and Codex may be at work.
    Running,
    /// It has said its last word, and the end is not told.
    Ending,
}

impl Asked {
    pub(super) fn id(&self) -> &str {
        &self.request.request_id
    }

    pub(super) fn turn_id(&self) -> Option<&str> {
        self.events.first().map(|event| event.turn_id.as_str())
    }

    pub(super) fn thread_started(&self) -> Option<&pb::TurnEvent> {
        let is_it = |event: &&pb::TurnEvent| matches!(event.event, Some(Event::ThreadStarted(_)));
        self.events.iter().find(is_it)
    }

    pub(super) fn terminal(&self) -> Option<&Event> {
        let last = self.events.last().filter(|event| is_terminal(event))?;
        last.event.as_ref()
    }

    /// The last number that was heard.
    pub(super) fn heard(&self) -> u64 {
        self.events.last().map_or(0, |event| event.sequence)
    }

    /// Where it was when it was cut off; none if it was over, or never reached the sidecar.
    pub(super) fn phase(&self) -> Option<Phase> {
        if !self.is_cut {
            return None;
        }
        let has_said = |event: &pb::TurnEvent| match &event.event {
            Some(Event::ItemCompleted(completed)) => completed
                .item
                .as_ref()
                .is_some_and(|item| matches!(item.kind, Some(pb::item::Kind::AgentMessage(_)))),
            _ => false,
        };
        let is_queued = matches!(
            self.events.last().and_then(|event| event.event.as_ref()),
            Some(Event::Queued(_))
        );
        Some(if is_queued {
            Phase::Waiting
        } else if self.thread_started().is_none() {
            Phase::Opening
        } else if self.events.iter().any(has_said) {
            Phase::Ending
        } else {
            Phase::Running
        })
    }

    /// How often its command has run.
    pub(super) fn runs(&self) -> usize {
        let Some(count) = &self.count else { return 0 };
        std::fs::read_to_string(count).unwrap_or_default().lines().count()
    }
}
