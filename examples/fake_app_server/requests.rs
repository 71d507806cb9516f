//! The answers to requests that no fault keeps from being answered.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use serde_json::{Map, Value, json};

use crate::commands;
use crate::output::guard;
use crate::script::Script;
use crate::server::Server;
use crate::shapes::{self, RpcError};
use crate::threads::{Thread, ThreadState, Usage, text_of};
use crate::turn::{Running, Turn};

/// The most characters that Codex takes as one input.
const MAX_INPUT_CHARS: usize = 1 << 20;

impl Server {
    pub(crate) fn dispatch(
        self: &Arc<Server>,
        id: &Value,
        method: &str,
        params: &Value,
    ) -> Result<(), RpcError> {
        if method == "initialize" {
            return self.initialize(id, params);
        }
        if !self.initialized.load(Ordering::SeqCst) {
            return Err(RpcError::refused("Not initialized"));
        }
        match method {
            "config/read" => self.answer(id, Ok(config())),
            "account/login/start" => self.answer(id, Ok(json!({ "type": params["type"] }))),
            "model/list" => self.answer(id, Ok(models())),
            "server/diagnostics" => self.answer(id, Ok(self.diagnostics())),
            "thread/start" => {
                let thread = Arc::new(self.store.start(params)?);
                let told = self.open(id, &thread);
                self.notify("thread/started", json!({ "thread": told }));
            }
            "thread/resume" => self.resume(id, params)?,
            "thread/archive" => self.archive(id, params)?,
            "thread/unarchive" => {
                let thread = self.store.unarchive(thread_id(params)?)?;
                let told = shapes::thread(&thread, None, self.settings().version());
                self.answer(id, Ok(json!({ "thread": told })));
                self.notify("thread/unarchived", json!({ "threadId": thread.id }));
            }
            "thread/read" => {
                let thread = self.thread(params)?;
                let told =
                    shapes::thread(&thread, Some(&thread.state()), self.settings().version());
                self.answer(id, Ok(json!({ "thread": told })));
            }
            "thread/unsubscribe" => {
                let loaded = self.thread(params).is_ok();
                let status = if loaded { "unsubscribed" } else { "notLoaded" };
                self.answer(id, Ok(json!({ "status": status })));
            }
            "thread/loaded/list" => {
                let ids: Vec<String> = guard(&self.threads).keys().cloned().collect();
                self.answer(id, Ok(json!({ "data": ids, "nextCursor": null })));
            }
            "thread/backgroundTerminals/list" => {
                let thread = self.thread(params)?;
                let running: Vec<Value> =
                    thread.state().terminals.iter().map(commands::Terminal::json).collect();
                self.answer(id, Ok(json!({ "data": running, "nextCursor": null })));
            }
            "thread/backgroundTerminals/terminate" => {
                let thread = self.thread(params)?;
                let state = thread.state();
                let found =
                    state.terminals.iter().find(|one| params["processId"] == *one.process_id);
                found.iter().for_each(|terminal| terminal.kill());
                self.answer(id, Ok(json!({ "terminated": found.is_some() })));
            }
            "thread/settings/update" => {
                let thread = self.thread(params)?;
                let mut state = thread.state();
                let before = state.settings.clone();
                state.apply(params);
                self.tell_settings(&thread, &state, &before);
                self.answer(id, Ok(json!({})));
            }
            "permissionProfile/list" => {
                let profiles = [":read-only", ":workspace", ":danger-full-access"]
                    .map(|id| json!({ "id": id, "description": null, "allowed": true }));
                self.answer(id, Ok(json!({ "data": profiles, "nextCursor": null })));
            }
            "turn/start" => self.turn_start(id, params)?,
            "turn/steer" => {
                let thread = self.thread(params)?;
                let state = thread.state();
                let turn =
                    active(&state, &params["expectedTurnId"], "no active turn to steer", '`')?;
                turn.steer(input(params)?.clone());
                self.answer(id, Ok(json!({ "turnId": turn.id })));
            }
            "turn/interrupt" => {
                let thread = self.thread(params)?;
                let state = thread.state();
                let turn = active(&state, &params["turnId"], "no active turn to interrupt", ' ')?;
                self.answer(id, Ok(json!({})));
                turn.interrupt();
            }
            _ => {
                let message = format!("Invalid request: unknown variant `{method}`");
                return Err(RpcError::refused(message));
            }
        }
        Ok(())
    }

    fn initialize(&self, id: &Value, params: &Value) -> Result<(), RpcError> {
        if self.initialized.swap(true, Ordering::SeqCst) {
            return Err(RpcError::refused("Already initialized"));
        }
        let client = params.pointer("/clientInfo/name").and_then(Value::as_str).unwrap_or("nobody");
        let own = format!("{client}/{} (fake)", self.settings().version());
        self.answer(
            id,
            Ok(json!({
                "userAgent": own,
                "codexHome": self.home,
                "platformFamily": "unix",
                "platformOs": "linux",
            })),
        );
        let params = json!({
            "status": "disabled", "serverName": "fake", "installationId": "fake", "environmentId": null,
        });
        self.notify("remoteControl/status/changed", params);
        Ok(())
    }

    /// Answers with a thread that is loaded from now on.
    fn open(&self, id: &Value, thread: &Arc<Thread>) -> Value {
        let state = thread.state();
        let told = shapes::thread(thread, Some(&state), self.settings().version());
        guard(&self.threads).insert(thread.id.clone(), Arc::clone(thread));
        self.answer(id, Ok(shapes::opened(told.clone(), &state)));
        told
    }

    fn resume(&self, id: &Value, params: &Value) -> Result<(), RpcError> {
        if let Ok(thread) = self.thread(params) {
            thread.state().apply(params);
            self.open(id, &thread);
            return Ok(());
        }
        let thread = Arc::new(self.store.resume(thread_id(params)?, params)?);
        let status = json!({ "threadId": thread.id, "status": { "type": "idle" } });
        self.notify("thread/status/changed", status);
        self.open(id, &thread);
        let state = thread.state();
        if state.usage != Usage::default() {
            let usage = shapes::token_usage(&state.usage, &state.last.0);
            let params =
                json!({ "threadId": thread.id, "turnId": state.last.1, "tokenUsage": usage });
            self.notify("thread/tokenUsage/updated", params);
        }
        Ok(())
    }

    /// Ends what runs on the thread, puts its rollout away and lets go of it.
    fn archive(&self, id: &Value, params: &Value) -> Result<(), RpcError> {
        let loaded = self.thread(params).ok();
        if let Some(thread) = &loaded {
            let mut state = thread.state();
            while let Some(turn) = state.active.clone().filter(|turn| !turn.deaf) {
                turn.interrupt();
                state = thread.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            commands::kill_all(thread);
        }
        let thread_id = thread_id(params)?;
        self.store.archive(thread_id, loaded.as_deref())?;
        if guard(&self.threads).remove(thread_id).is_some() {
            let status = json!({ "threadId": thread_id, "status": { "type": "notLoaded" } });
            self.notify("thread/status/changed", status);
        }
        self.answer(id, Ok(json!({})));
        self.notify("thread/archived", json!({ "threadId": thread_id }));
        Ok(())
    }

    fn turn_start(self: &Arc<Server>, id: &Value, params: &Value) -> Result<(), RpcError> {
        let input = input(params)?;
        let thread = self.thread(params)?;
        let text = text_of(input);
        let chars = text.chars().count();
        if chars > MAX_INPUT_CHARS {
            let message =
                format!("Input exceeds the maximum length of {MAX_INPUT_CHARS} characters.");
            let data = json!({
                "input_error_code": "input_too_large", "max_chars": MAX_INPUT_CHARS, "actual_chars": chars,
            });
            return Err(RpcError { code: -32602, message, data });
        }
        let script = Script::read(&text);
        let mut state = thread.state();
        if let Some(turn) = &state.active {
            turn.steer(input.clone());
            let turn = shapes::turn(turn.ids(), "inProgress", Value::Null, None, None);
            state.apply(params);
            self.answer(id, Ok(json!({ "turn": turn })));
            return Ok(());
        }
        if let Some((code, message)) = &script.manner.refuse {
            return Err(RpcError { code: *code, message: message.clone(), data: Value::Null });
        }
        let before = state.settings.clone();
        state.apply(params);
        self.tell_settings(&thread, &state, &before);
        let turn = Arc::new(Turn::new(&script.manner, params["rootTurnId"].as_str()));
        state.active = Some(Arc::clone(&turn));
        drop(state);
        let started = shapes::turn(turn.ids(), "inProgress", Value::Null, None, None);
        let answer = Ok(json!({ "turn": started }));
        let running = Running {
            server: Arc::clone(self),
            thread,
            turn,
            params: params.clone(),
            manner: script.manner.clone(),
            items: 0,
            last_message: None,
            words: 0,
        };
        self.answer(id, answer);
        std::thread::spawn(move || running.play(script));
        Ok(())
    }

    /// Tells the settings of a thread if they are no longer what they were.
    fn tell_settings(&self, thread: &Thread, state: &ThreadState, before: &Map<String, Value>) {
        if state.settings == *before {
            return;
        }
        let settings = shapes::settings(state);
        let params = json!({ "threadId": thread.id, "threadSettings": settings });
        self.notify("thread/settings/updated", params);
    }

    fn thread(&self, params: &Value) -> Result<Arc<Thread>, RpcError> {
        let id = thread_id(params)?;
        let thread = guard(&self.threads).get(id).cloned();
        thread.ok_or_else(|| RpcError::refused(format!("thread not found: {id}")))
    }

    fn diagnostics(&self) -> Value {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: u64 =
            statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
        let page = u64::try_from(rustix::param::page_size()).unwrap_or_default();
        let threads: Vec<Arc<Thread>> = guard(&self.threads).values().cloned().collect();
        let active = threads.iter().filter(|thread| thread.state().active.is_some()).count();
        json!({
            "process": {
                "id": std::process::id(), "residentMemoryBytes": pages * page, "physicalFootprintBytes": null,
            },
            "gauges": [
                { "name": "core.threads.live", "value": threads.len() },
                { "name": "core.turns.active", "value": active },
            ],
        })
    }
}

fn thread_id(params: &Value) -> Result<&str, RpcError> {
    params["threadId"]
        .as_str()
        .ok_or_else(|| RpcError::refused("Invalid request: missing field `threadId`"))
}

fn input(params: &Value) -> Result<&Value, RpcError> {
    let input = params.get("input").filter(|input| input.is_array());
    input.ok_or_else(|| RpcError::refused("Invalid request: missing field `input`"))
}

/// The running turn of a thread, if it is the expected one.
fn active<'a>(
    state: &'a ThreadState,
    expected: &Value,
    none: &str,
    quote: char,
) -> Result<&'a Arc<Turn>, RpcError> {
    let turn = state.active.as_ref().ok_or_else(|| RpcError::refused(none))?;
    if *expected == *turn.id {
        return Ok(turn);
    }
    let quote = if quote == ' ' { "" } else { "`" };
    let expected = expected.as_str().unwrap_or_default();
    let message = format!(
        "expected active turn id {quote}{expected}{quote} but found {quote}{}{quote}",
        turn.id
    );
    Err(RpcError::refused(message))
}

fn config() -> Value {
    json!({
        "config": {
            "cli_auth_credentials_store": "ephemeral",
            "model": null,
            "model_provider": "fake",
            "approval_policy": null,
            "sandbox_mode": null,
            "sandbox_workspace_write": null,
            "model_reasoning_effort": null,
        },
        "origins": {},
        "layers": null,
    })
}

fn models() -> Value {
    json!({
        "data": [{
            "id": "fake-model",
            "model": "fake-model",
            "displayName": "Fake model",
            "description": "Scripted",
            "hidden": false,
            "supportedReasoningEfforts": [],
            "defaultReasoningEffort": "medium",
            "inputModalities": ["text", "image"],
            "isDefault": true,
        }],
        "nextCursor": null,
    })
}
