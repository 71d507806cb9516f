//! What is shared by all turns, and the faults that meet a request before it is answered.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::faults::{Counters, Death};
use crate::output::{Output, guard, now_ms};
use crate::settings::{ScriptedError, Settings, Span, of};
use crate::shapes::{self, RpcError};
use crate::threads::{Store, Thread};
use crate::turn::Turn;

/// The whole process.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) home: PathBuf,
    /// Which process of this CODEX_HOME it is, from 1.
    pub(crate) start: u64,
    settings: Mutex<Arc<Settings>>,
    counters: Counters,
    pub(crate) store: Store,
    pub(crate) output: Output,
    pub(crate) threads: Mutex<HashMap<String, Arc<Thread>>>,
    pub(crate) initialized: AtomicBool,
    /// By a prompt; `wedge` of the settings is another way to it.
    pub(crate) wedged: AtomicBool,
    pub(crate) stopped_reading: AtomicBool,
    pub(crate) next_request: AtomicU64,
    /// The turns that wait for an answer of the client.
    pub(crate) asked: Mutex<HashMap<u64, Arc<Turn>>>,
    turns_done: AtomicU64,
    ballast: Mutex<Vec<Vec<u8>>>,
}

impl Server {
    pub(crate) fn new(
        home: PathBuf,
        start: u64,
        settings: Arc<Settings>,
        counters: Counters,
        store: Store,
    ) -> Server {
        Server {
            home,
            start,
            settings: Mutex::new(settings),
            counters,
            store,
            output: Output::default(),
            threads: Mutex::default(),
            initialized: AtomicBool::new(false),
            wedged: AtomicBool::new(false),
            stopped_reading: AtomicBool::new(false),
            next_request: AtomicU64::new(0),
            asked: Mutex::default(),
            turns_done: AtomicU64::new(0),
            ballast: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&guard(&self.settings))
    }

    /// Reads the settings again.
    pub(crate) fn reload(&self) -> Arc<Settings> {
        let settings = Arc::new(Settings::load(Some(&self.home), self.start));
        *guard(&self.settings) = Arc::clone(&settings);
        self.output.set_wedged(settings.wedge || self.wedged.load(Ordering::SeqCst));
        settings
    }

    /// Takes one line of the client.
    pub(crate) fn take(self: &Arc<Server>, line: &[u8]) {
        let settings = self.settings();
        if settings.wedge || self.wedged.load(Ordering::SeqCst) {
            return;
        }
        let Ok(message) = serde_json::from_slice::<Value>(line) else {
            return crate::faults::complain(b"ERROR fake_app_server: a line that is no JSON\n");
        };
        let params = message.get("params").cloned().unwrap_or_default();
        match (message["method"].as_str(), message.get("id")) {
            (Some(method), Some(id)) => self.request(id, method, params, &settings),
            (Some(_), None) => {}
            (None, id) => {
                let id = id.and_then(Value::as_u64);
                let turn = id.and_then(|id| guard(&self.asked).remove(&id));
                if let (Some(turn), Some(id)) = (turn, id) {
                    turn.deliver(&format!("request {id}"), message);
                }
            }
        }
    }

    fn request(
        self: &Arc<Server>,
        id: &Value,
        method: &str,
        params: Value,
        settings: &Arc<Settings>,
    ) {
        if let Some(death) = of(&settings.die_on, method) {
            self.die_if_due(&format!("die_on.{method}"), death);
        }
        if settings.mute.iter().any(|muted| muted == method || muted == "*") {
            return;
        }
        let Some(Span(delay)) = of(&settings.delays, method).copied() else {
            return self.respond(id, method, &params, settings);
        };
        let (server, id, method) = (Arc::clone(self), id.clone(), method.to_owned());
        let settings = Arc::clone(settings);
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            server.respond(&id, &method, &params, &settings);
        });
    }

    fn respond(self: &Arc<Server>, id: &Value, method: &str, params: &Value, settings: &Settings) {
        if let Some(line) = of(&settings.raw_answers, method) {
            return self.output.line(line.replace("$id", &id.to_string()).into_bytes(), None);
        }
        if let Some(answer) = of(&settings.answers, method) {
            return self.answer(id, Ok(answer.clone()));
        }
        let outcome = self.scripted_error(method, settings).map_or(Ok(()), Err);
        let mut params = params.clone();
        if let (Some(imposed), Some(params)) =
            (of(&settings.imposes, method), params.as_object_mut())
        {
            params.extend(imposed.clone());
        }
        if let Err(error) = outcome.and_then(|()| self.dispatch(id, method, &params)) {
            self.answer(id, Err(error));
        }
    }

    fn scripted_error(&self, method: &str, settings: &Settings) -> Option<RpcError> {
        let overloaded = of(&settings.overload, method).is_some_and(|times| {
            self.counters.is_among_first(&format!("overload.{method}"), *times)
        });
        if overloaded {
            let message = "Server overloaded; retry later.".to_owned();
            return Some(RpcError { code: -32001, message, data: Value::Null });
        }
        let ScriptedError { code, message, data, times } = of(&settings.errors, method)?.clone();
        let due = times
            .is_none_or(|times| self.counters.is_among_first(&format!("errors.{method}"), times));
        due.then_some(RpcError { code, message, data })
    }

    /// Counts a turn, and dies if it was one too many.
    pub(crate) fn turn_done(&self) {
        let done = self.turns_done.fetch_add(1, Ordering::SeqCst) + 1;
        let settings = self.settings();
        if settings.crash_after_turns.is_some_and(|turns| done >= turns) {
            self.die_if_due("crash", &settings.crash);
        }
    }

    /// Dies, unless it has done so as often as it should.
    pub(crate) fn die_if_due(&self, name: &str, death: &Death) {
        if death.times.is_none_or(|times| self.counters.is_among_first(name, times)) {
            death.die();
        }
    }

    /// Tells that the client need not answer any more what a turn had asked.
    pub(crate) fn withdraw_requests(&self, turn_id: &str, thread_id: &str) {
        let mut asked = guard(&self.asked);
        let ids: Vec<u64> =
            asked.iter().filter(|(_, turn)| turn.id == turn_id).map(|(id, _)| *id).collect();
        for id in ids {
            asked.remove(&id);
            self.notify(
                "serverRequest/resolved",
                json!({ "threadId": thread_id, "requestId": id }),
                None,
            );
        }
    }

    /// Takes memory, and uses it.
    pub(crate) fn grow(&self, mib: u64) {
        for _ in 0..mib {
            guard(&self.ballast).push(vec![1; 1 << 20]);
        }
    }

    pub(crate) fn answer(&self, id: &Value, outcome: Result<Value, RpcError>) {
        let line = match outcome {
            Ok(result) => json!({ "id": id, "result": result }),
            Err(error) => json!({ "error": error.json(), "id": id }),
        };
        self.output.message(&line, None);
    }

    pub(crate) fn notify(&self, method: &str, params: Value, piece: Option<usize>) {
        let line = json!({ "method": method, "params": params, "emittedAtMs": now_ms() });
        self.output.message(&line, piece);
    }

    /// Tells that an item began, or ended.
    pub(crate) fn item(
        &self,
        scope: (&str, &str),
        item: &Value,
        times: (u64, Option<u64>),
        piece: Option<usize>,
    ) {
        let ((thread_id, turn_id), (started, completed)) = (scope, times);
        let mut item = item.clone();
        shapes::merge(&mut item, &json!({ "startedAtMs": started, "completedAtMs": completed }));
        let mut params = json!({ "item": item, "threadId": thread_id, "turnId": turn_id });
        let (method, time) = match completed {
            Some(at) => {
                ("item/completed", json!({ "contentTokenCount": null, "completedAtMs": at }))
            }
            None => ("item/started", json!({ "startedAtMs": started })),
        };
        shapes::merge(&mut params, &time);
        self.notify(method, params, piece);
    }
}
