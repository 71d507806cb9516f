//! One turn, from its first notification to its last.
//!
//! A thread of its own plays it; what others may do to it (interrupt, steer, deliver an answer) they
//! do to its [`Turn`]. Its end is written under the lock of its thread's state, so that a request
//! which comes with it finds either a running turn or an idle thread.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::output::{guard, now_ms};
use crate::script::{Manner, Script, Step};
use crate::server::Server;
use crate::shapes;
use crate::threads::{Thread, Usage, text_of};

/// What others see of a running turn.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) id: String,
    /// The first turn of the work that it belongs to.
    root: String,
    /// In milliseconds since 1970.
    pub(crate) started: u64,
    /// Whether it goes on when it is interrupted.
    pub(crate) deaf: bool,
    control: Mutex<Control>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Control {
    interrupted: bool,
    steered: VecDeque<Value>,
    mail: HashMap<String, Value>,
}

/// Why a turn ends before the end of its script.
#[derive(Debug)]
pub(crate) enum Stop {
    Interrupted,
    Failed { info: Value, message: String },
}

impl Turn {
    /// `root` is the name that whoever starts it gives it.
    pub(crate) fn new(manner: &Manner, root: Option<&str>) -> Turn {
        let id = uuid::Uuid::now_v7().to_string();
        Turn {
            root: root.unwrap_or(&id).to_owned(),
            id,
            started: now_ms(),
            deaf: manner.ignore_interrupt,
            control: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn ids(&self) -> (&str, &str) {
        (&self.id, &self.root)
    }

    pub(crate) fn interrupt(&self) {
        if !self.deaf {
            guard(&self.control).interrupted = true;
            self.changed.notify_all();
        }
    }

    pub(crate) fn steer(&self, input: Value) {
        guard(&self.control).steered.push_back(input);
    }

    /// Leaves something that the turn waits for under this name.
    pub(crate) fn deliver(&self, name: &str, value: Value) {
        guard(&self.control).mail.insert(name.to_owned(), value);
        self.changed.notify_all();
    }

    /// Waits for what is left under this name.
    pub(crate) fn await_mail(&self, name: &str) -> Result<Value, Stop> {
        let mut control = guard(&self.control);
        loop {
            if let Some(value) = control.mail.remove(name) {
                return Ok(value);
            }
            if control.interrupted {
                return Err(Stop::Interrupted);
            }
            control = self.changed.wait(control).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn sleep(&self, time: Duration) -> Result<(), Stop> {
        let end = Instant::now() + time;
        let mut control = guard(&self.control);
        loop {
            if control.interrupted {
                return Err(Stop::Interrupted);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let waited = self.changed.wait_timeout(control, left);
            control = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn take_steered(&self) -> Option<Value> {
        guard(&self.control).steered.pop_front()
    }
}

/// A turn that is being played.
pub(crate) struct Running {
    pub(crate) server: Arc<Server>,
    pub(crate) thread: Arc<Thread>,
    pub(crate) turn: Arc<Turn>,
    /// Those of `turn/start`.
    pub(crate) params: Value,
    pub(crate) manner: Manner,
    pub(crate) items: usize,
    pub(crate) last_message: Option<Value>,
    pub(crate) words: u64,
}

impl Running {
    /// Plays the turn to its end.
    pub(crate) fn play(mut self, script: Script) {
        let input = self.params["input"].clone();
        let mut outcome = self.open(&input).and_then(|()| self.perform_all(&script.steps, &input));
        loop {
            let steered = match outcome {
                Ok(()) => self.end_unless_steered(),
                Err(stop) => {
                    self.end_early(stop);
                    None
                }
            };
            let Some(input) = steered else { break };
            let Script { steps, manner } = Script::read(&text_of(&input));
            self.manner.slow = manner.slow;
            outcome = self.take_input(&input).and_then(|()| self.perform_all(&steps, &input));
        }
        for _ in 0..self.manner.late {
            self.message(["late"]).ok();
        }
    }

    fn open(&mut self, input: &Value) -> Result<(), Stop> {
        self.tell(
            "thread/status/changed",
            json!({ "status": { "type": "active", "activeFlags": [] } }),
        );
        let turn =
            shapes::turn(self.turn.ids(), "inProgress", Value::Null, Some(self.turn.started), None);
        self.tell("turn/started", json!({ "turn": turn }));
        self.take_input(input)
    }

    fn take_input(&mut self, input: &Value) -> Result<(), Stop> {
        self.keep(input)?;
        let id = uuid::Uuid::now_v7().to_string();
        self.item(&shapes::user_message(&id, input));
        Ok(())
    }

    /// Writes an input to the rollout.
    fn keep(&mut self, input: &Value) -> Result<(), Stop> {
        let mut line = json!({ "turn": self.turn.id, "input": input });
        {
            let mut state = self.thread.state();
            state.note_input(input);
            line["settings"] = json!(state.settings);
        }
        let written =
            self.server.store.write_head(&self.thread).and_then(|()| self.thread.append(&line));
        written.map_err(unwritten)
    }

    fn perform_all(&mut self, steps: &[Step], input: &Value) -> Result<(), Stop> {
        for step in steps {
            self.perform(step)?;
        }
        if steps.iter().any(Step::is_answer) {
            return Ok(());
        }
        let user_messages = self.thread.state().user_messages;
        let text = text_of(input);
        let text = if text.is_empty() { "[image]" } else { &text };
        self.say(&format!("You said: {text} (user messages so far: {user_messages})"))
    }

    /// Ends the turn well, unless somebody steered it meanwhile.
    fn end_unless_steered(&mut self) -> Option<Value> {
        let thread = Arc::clone(&self.thread);
        let mut state = thread.state();
        if let Some(input) = self.turn.take_steered() {
            return Some(input);
        }
        let cached = if state.user_messages > 1 { 3 } else { 0 };
        let input = u64::try_from(state.input_chars).unwrap_or_default() / 4 + 3;
        let last = Usage { input, cached, output: self.words };
        state.note_usage(&self.turn.id, last);
        let counts = json!([last.input, last.cached, last.output]);
        let failed = thread.append(&json!({ "turn": self.turn.id, "usage": counts })).err();
        let usage = shapes::token_usage(&state.usage, &last);
        self.tell("thread/tokenUsage/updated", json!({ "tokenUsage": usage }));
        let limits = json!({ "rateLimits": { "limitId": "codex", "primary": null } });
        self.server.notify("account/rateLimits/updated", limits);
        let (status, error) = match failed.map(unwritten) {
            Some(Stop::Failed { info, message }) => {
                ("failed", shapes::turn_error(&info, &message, Value::Null))
            }
            Some(Stop::Interrupted) | None => ("completed", Value::Null),
        };
        let item = self.last_message.take();
        self.write_end(status, "idle", &error, item.as_ref());
        state.active = None;
        thread.idle.notify_all();
        None
    }

    fn end_early(&mut self, stop: Stop) {
        let (thread, ended) = (Arc::clone(&self.thread), Arc::clone(&self.turn));
        let mut state = thread.state();
        match stop {
            Stop::Interrupted => self.write_end("interrupted", "idle", &Value::Null, None),
            Stop::Failed { info, message } => {
                let error = shapes::turn_error(&info, &message, Value::Null);
                self.write_end("failed", "systemError", &error, None);
            }
        }
        state.active = None;
        thread.idle.notify_all();
        drop(state);
        self.server.withdraw_requests(&ended.id, &self.thread.id);
    }

    fn write_end(
        &self,
        status: &str,
        thread_status: &str,
        error: &Value,
        last_item: Option<&Value>,
    ) {
        self.tell("thread/status/changed", json!({ "status": { "type": thread_status } }));
        if status == "failed" {
            self.tell("error", json!({ "error": error, "willRetry": false }));
        }
        let times = if self.manner.no_end { 0 } else { 1 + usize::from(self.manner.double_end) };
        for _ in 0..times {
            let turn = shapes::turn(
                self.turn.ids(),
                status,
                error.clone(),
                Some(self.turn.started),
                last_item,
            );
            self.tell("turn/completed", json!({ "turn": turn }));
        }
    }

    /// Tells something about this turn.
    pub(crate) fn tell(&self, method: &str, params: Value) {
        let mut all = json!({ "threadId": self.thread.id });
        // What tells the whole turn, or is about the thread alone, has no `turnId` of its own.
        if params.get("turn").is_none() && method != "thread/status/changed" {
            all["turnId"] = json!(self.turn.id);
        }
        shapes::merge(&mut all, &params);
        self.server.notify(method, all);
    }

    /// Tells of an item that is done as soon as it is begun.
    pub(crate) fn item(&self, item: &Value) {
        let started = self.item_started(item);
        self.item_completed(item, started);
    }

    /// Tells of an item, and when it began.
    pub(crate) fn item_started(&self, item: &Value) -> u64 {
        let now = now_ms();
        self.server.item((&self.thread.id, &self.turn.id), item, (now, None));
        now
    }

    pub(crate) fn item_completed(&self, item: &Value, started: u64) {
        self.server.item((&self.thread.id, &self.turn.id), item, (started, Some(now_ms())));
    }

    /// An id for a new item.
    pub(crate) fn item_id(&mut self, prefix: &str) -> String {
        self.items += 1;
        format!("{prefix}_{}_{}", self.turn.id.rsplit('-').next().unwrap_or_default(), self.items)
    }

    /// An agent message, word by word.
    pub(crate) fn say(&mut self, text: &str) -> Result<(), Stop> {
        let words = text.split_inclusive(' ').count();
        let group = words.div_ceil(2000).max(1);
        let mut pieces = Vec::new();
        for (position, word) in text.split_inclusive(' ').enumerate() {
            match pieces.last_mut() {
                Some(last) if position % group != 0 => *last = format!("{last}{word}"),
                _ => pieces.push(word.to_owned()),
            }
        }
        self.message(pieces)
    }

    /// An agent message of these deltas.
    pub(crate) fn message<T: AsRef<str>>(
        &mut self,
        deltas: impl IntoIterator<Item = T>,
    ) -> Result<(), Stop> {
        let id = self.item_id("msg");
        let started = self.item_started(&shapes::agent_message(&id, ""));
        let mut text = String::new();
        for delta in deltas {
            if !text.is_empty() && !self.manner.slow.is_zero() {
                self.turn.sleep(self.manner.slow)?;
            }
            self.words += 1;
            text.push_str(delta.as_ref());
            self.tell("item/agentMessage/delta", json!({ "itemId": id, "delta": delta.as_ref() }));
        }
        // A long text is interrupted at its end at the latest.
        self.turn.sleep(Duration::ZERO)?;
        let item = shapes::agent_message(&id, &text);
        self.item_completed(&item, started);
        let done = json!({ "startedAtMs": started, "completedAtMs": now_ms() });
        let mut summary = item;
        shapes::merge(&mut summary, &done);
        self.last_message = Some(summary);
        Ok(())
    }

    /// Asks the client something; the number under which its answer comes.
    pub(crate) fn ask(&mut self, method: &str, params: &Value) -> u64 {
        let item_id = self.item_id("call");
        let cwd = self.thread.state().cwd();
        let mut all = shapes::request(method, &self.thread.id, &self.turn.id, &item_id, &cwd);
        shapes::merge(&mut all, params);
        let id = self.server.next_request.fetch_add(1, Ordering::Relaxed);
        guard(&self.server.asked).insert(id, Arc::clone(&self.turn));
        let line = json!({ "method": method, "id": id, "params": all });
        self.server.output.message(&line);
        id
    }
}

fn unwritten(error: std::io::Error) -> Stop {
    Stop::Failed { info: json!("other"), message: format!("failed to write the rollout: {error}") }
}
