//! What is shared by all turns, and the faults that meet a request before it is answered.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::output::{Output, guard, now_ms};
use crate::settings::{Settings, Span, of};
use crate::shapes::{self, RpcError};
use crate::threads::{Store, Thread};
use crate::turn::Turn;

/// The whole process.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) home: PathBuf,
    settings: Mutex<Arc<Settings>>,
    pub(crate) store: Store,
    pub(crate) output: Output,
    pub(crate) threads: Mutex<HashMap<String, Arc<Thread>>>,
    pub(crate) initialized: AtomicBool,
    pub(crate) next_request: AtomicU64,
    /// The turns that wait for an answer of the client.
    pub(crate) asked: Mutex<HashMap<u64, Arc<Turn>>>,
    ballast: Mutex<Vec<Vec<u8>>>,
}

impl Server {
    pub(crate) fn new(home: PathBuf, settings: Arc<Settings>, store: Store) -> Server {
        Server {
            home,
            settings: Mutex::new(settings),
            store,
            output: Output::default(),
            threads: Mutex::default(),
            initialized: AtomicBool::new(false),
            next_request: AtomicU64::new(0),
            asked: Mutex::default(),
            ballast: Mutex::default(),
        }
    }

    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&guard(&self.settings))
    }

    /// Reads the settings again.
    pub(crate) fn reload(&self) -> Arc<Settings> {
        let settings = Arc::new(Settings::load(Some(&self.home)));
        *guard(&self.settings) = Arc::clone(&settings);
        settings
    }

    /// Takes one line of the client.
    pub(crate) fn take(self: &Arc<Server>, line: &[u8]) {
        let settings = self.settings();
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
        let Some(Span(delay)) = of(&settings.delays, method).copied() else {
            return self.respond(id, method, &params);
        };
        let (server, id, method) = (Arc::clone(self), id.clone(), method.to_owned());
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            server.respond(&id, &method, &params);
        });
    }

    fn respond(self: &Arc<Server>, id: &Value, method: &str, params: &Value) {
        if let Err(error) = self.dispatch(id, method, params) {
            self.answer(id, Err(error));
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
        self.output.message(&line);
    }

    pub(crate) fn notify(&self, method: &str, params: Value) {
        let line = json!({ "method": method, "params": params, "emittedAtMs": now_ms() });
        self.output.message(&line);
    }

    /// Tells that an item began, or ended.
    pub(crate) fn item(&self, scope: (&str, &str), item: &Value, times: (u64, Option<u64>)) {
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
        self.notify(method, params);
    }
}
