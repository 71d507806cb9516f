//! The steps of a turn, one by one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::commands::{self, Pipes};
use crate::faults;
use crate::output::{PATTERN, bulk, now_ms};
use crate::script::{AskMode, Step};
use crate::shapes;
use crate::threads::Usage;
use crate::turn::{Running, Stop};

/// The longest delta of `bytes` and `items`.
const MAX_DELTA: usize = 64 * 1024;

impl Running {
    pub(crate) fn perform(&mut self, step: &Step) -> Result<(), Stop> {
        match step {
            Step::Say(text) => self.say(text)?,
            Step::Words(count) => {
                let word = |n| if n == *count { format!("w{n}") } else { format!("w{n} ") };
                self.message((1..=*count).map(word))?;
            }
            Step::Bytes(bytes) => self.message(deltas(*bytes))?,
            Step::Items { count, bytes } => {
                for _ in 0..*count {
                    self.message(deltas(*bytes))?;
                }
            }
            Step::Show(pointer) => {
                let text = self.params.pointer(pointer).unwrap_or(&Value::Null).to_string();
                self.say(&text)?;
            }
            Step::Settings => {
                let text = json!(self.thread.state().settings).to_string();
                self.say(&text)?;
            }
            Step::Ask { method, params, mode } => self.perform_ask(method, params, *mode)?,
            Step::Reason(text) => self.perform_reason(text),
            Step::Plan(steps) => self.perform_plan(steps),
            Step::Item { kind, status } => {
                let id = self.item_id("call");
                let cwd = self.thread.state().cwd();
                let started = self.item_started(&shapes::told(*kind, &id, &cwd, "inProgress"));
                if status != "inProgress" {
                    self.item_completed(&shapes::told(*kind, &id, &cwd, status), started);
                }
            }
            Step::Run(command) => {
                let id = commands::start(self, command, Pipes::Kept);
                self.turn.await_mail(&id)?;
            }
            Step::Spawn { command, holds_pipes } => {
                let pipes = if *holds_pipes { Pipes::Held } else { Pipes::Null };
                commands::start(self, command, pipes);
            }
            Step::Wait(time) => self.turn.sleep(*time)?,
            Step::Hang => drop(self.turn.await_mail("nothing")?),
            Step::OtherThreads => loop {
                self.chatter();
                self.turn.sleep(Duration::from_millis(20))?;
            },
            Step::Retry(times) => {
                let mut left = *times;
                while left != Some(0) {
                    self.retry();
                    left = left.map(|left| left - 1);
                    self.turn.sleep(Duration::from_millis(50))?;
                }
            }
            Step::Usage { input, output } => {
                self.usage = Some(Usage { input: *input, cached: 0, output: *output });
            }
            Step::Warn(message) => {
                let params = json!({ "threadId": self.thread.id, "message": message });
                self.server.notify("warning", params, self.piece);
            }
            Step::UnknownItem => {
                let id = self.item_id("holo");
                self.item(&json!({ "type": "hologram", "id": id, "depth": 3 }));
            }
            Step::UnknownNotification => self.tell("thread/hologram", json!({ "depth": 3 })),
            Step::UnknownShape => self.perform_unknown_shapes(),
            Step::WrongTurnId => self.perform_wrong_turn_id(),
            Step::Garbage(lines) => {
                for line in garbage().cycle().take(*lines) {
                    self.server.output.line(line.to_vec(), self.piece);
                }
            }
            Step::Line(bytes) => self.perform_line(*bytes),
            Step::HalfLine => {
                let line = json!({ "method": "item/agentMessage/delta", "params": { "threadId": self.thread.id } });
                let line = line.to_string();
                self.server.output.raw(&line.as_bytes()[..line.len() - 2], self.piece);
            }
            Step::GarbageLine(bytes) => {
                let line: Vec<u8> = PATTERN.bytes().cycle().take(*bytes).collect();
                self.server.output.line(line, self.piece);
            }
            Step::EndlessLine => self.server.output.endless_line(),
            Step::Split(piece) => self.piece = Some(*piece),
            Step::Stderr(bytes) => {
                let line = format!("{}\n", PATTERN.repeat(4));
                let flood: Vec<u8> = line.bytes().cycle().take(*bytes).collect();
                faults::complain(&flood);
            }
            Step::StderrLine(bytes) => {
                let line: Vec<u8> = PATTERN.bytes().cycle().take(*bytes).chain([b'\n']).collect();
                faults::complain(&line);
            }
            Step::StderrText(text) => faults::complain(format!("{text}\n").as_bytes()),
            Step::Grow(mib) => self.server.grow(*mib),
            Step::Wedge => {
                self.server.wedged.store(true, Ordering::SeqCst);
                self.server.output.set_wedged(true);
            }
            Step::StopReading => self.server.stopped_reading.store(true, Ordering::SeqCst),
            Step::CloseStdout => self.server.output.close(),
            Step::Die(death) => death.die(),
            Step::Fail { info, message } => {
                return Err(Stop::Failed { info: info.clone(), message: message.clone() });
            }
        }
        Ok(())
    }

    fn perform_ask(&mut self, method: &str, params: &Value, mode: AskMode) -> Result<(), Stop> {
        let id = self.ask(method, params);
        let resolved = json!({ "threadId": self.thread.id, "requestId": id });
        match mode {
            AskMode::Go => Ok(()),
            AskMode::Withdraw => {
                self.server.notify("serverRequest/resolved", resolved, self.piece);
                Ok(())
            }
            AskMode::Wait => {
                let answer = self.turn.await_mail(&format!("request {id}"))?;
                self.server.notify("serverRequest/resolved", resolved, self.piece);
                match answer.get("error") {
                    Some(error) => self.say(&format!("{method} was refused: {error}")),
                    None => self.say(&format!("{method} was answered: {}", answer["result"])),
                }
            }
        }
    }

    fn perform_reason(&mut self, text: &str) {
        let id = self.item_id("rs");
        let started = self.item_started(&shapes::reasoning(&id, &[]));
        self.tell("item/reasoning/summaryPartAdded", json!({ "itemId": id, "summaryIndex": 0 }));
        for delta in text.split_inclusive(' ') {
            let params = json!({ "itemId": id, "delta": delta, "summaryIndex": 0 });
            self.tell("item/reasoning/summaryTextDelta", params);
        }
        self.item_completed(&shapes::reasoning(&id, &[text]), started);
    }

    fn perform_plan(&self, steps: &[String]) {
        let status = |position| match position {
            0 => "completed",
            1 => "inProgress",
            _ => "pending",
        };
        let steps = steps.iter().enumerate();
        let plan: Vec<Value> = steps
            .map(|(position, step)| json!({ "step": step, "status": status(position) }))
            .collect();
        self.tell("turn/plan/updated", json!({ "explanation": null, "plan": plan }));
    }

    /// Methods that are known, with parameters that are not.
    fn perform_unknown_shapes(&self) {
        self.tell("item/agentMessage/delta", json!({ "delta": 7 }));
        self.tell("item/completed", json!({ "item": "none" }));
        self.tell("thread/tokenUsage/updated", json!({ "tokenUsage": [] }));
        self.server.notify("item/started", Value::Null, self.piece);
    }

    /// A whole turn of this thread that nobody started, and its failure.
    fn perform_wrong_turn_id(&mut self) {
        let turn_id = uuid::Uuid::now_v7().to_string();
        let scope = (self.thread.id.as_str(), turn_id.as_str());
        let tell = |params: Value, method: &str| self.server.notify(method, params, self.piece);
        let error = shapes::turn_error(&json!("other"), "of another turn", Value::Null);
        let turn = |status: &str, error: Value| {
            let turn = shapes::turn((&turn_id, &turn_id), status, error, Some(now_ms()), None);
            json!({ "threadId": self.thread.id, "turn": turn })
        };
        tell(turn("inProgress", Value::Null), "turn/started");
        let message = shapes::agent_message("msg_foreign", "of another turn");
        self.server.item(
            scope,
            &shapes::agent_message("msg_foreign", ""),
            (now_ms(), None),
            self.piece,
        );
        let delta = json!({
            "threadId": self.thread.id, "turnId": turn_id, "itemId": "msg_foreign", "delta": "of another turn",
        });
        tell(delta, "item/agentMessage/delta");
        self.server.item(scope, &message, (now_ms(), Some(now_ms())), self.piece);
        tell(turn("failed", error), "turn/completed");
    }

    /// A line of exactly so many bytes, or of the fewest that such a line has.
    fn perform_line(&self, bytes: usize) {
        let mut line = json!({
            "method": "turn/diff/updated",
            "params": { "threadId": self.thread.id, "turnId": self.turn.id, "diff": "" },
            "emittedAtMs": now_ms(),
        });
        let rest = bytes.saturating_sub(line.to_string().len());
        line["params"]["diff"] = json!(bulk(rest));
        self.server.output.message(&line, self.piece);
    }

    /// Something about a thread that nobody here has.
    fn chatter(&self) {
        let (thread_id, turn_id) = (uuid::Uuid::nil().to_string(), uuid::Uuid::nil().to_string());
        let params = json!({
            "threadId": thread_id, "turnId": turn_id, "itemId": "msg_other", "delta": "elsewhere ",
        });
        self.server.notify("item/agentMessage/delta", params, self.piece);
    }

    fn retry(&self) {
        let info = json!({ "responseStreamDisconnected": { "httpStatusCode": null } });
        let details = json!("Connection failed: error sending request");
        let error = shapes::turn_error(&info, "Reconnecting... waiting for network", details);
        self.tell("error", json!({ "error": error, "willRetry": true }));
    }
}

/// Every delta starts the pattern anew, as the longest is a multiple of it.
fn deltas(bytes: usize) -> impl Iterator<Item = String> {
    (0..bytes).step_by(MAX_DELTA).map(move |start| bulk(MAX_DELTA.min(bytes - start)))
}

/// Lines that are no message of the protocol; the first is blank.
fn garbage() -> impl Iterator<Item = &'static [u8]> + Clone {
    const LINES: [&[u8]; 6] = [
        b"",
        b"\xff\xfe\x80\x00not text\xc3",
        br#"{"method":"item/started","params":{"item":"#,
        b"thread 'main' panicked at codex-rs/core/src/lib.rs:1:1:",
        b"{}",
        b"[1,2,3]",
    ];
    LINES.into_iter()
}
