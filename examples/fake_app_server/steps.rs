//! The steps of a turn, one by one.

use std::time::Duration;

use serde_json::{Value, json};

use crate::commands::{self, Pipes};
use crate::faults;
use crate::output::{PATTERN, bulk, now_ms};
use crate::script::Step;
use crate::shapes;
use crate::turn::{Running, Stop};

/// The longest delta of `items`.
const MAX_DELTA: usize = 64 * 1024;

impl Running {
    pub(crate) fn perform(&mut self, step: &Step) -> Result<(), Stop> {
        match step {
            Step::Say(text) => self.say(text)?,
            Step::Words(count) => {
                let word = |n| if n == *count { format!("w{n}") } else { format!("w{n} ") };
                self.message((1..=*count).map(word))?;
            }
            Step::Items { count, bytes } => {
                for _ in 0..*count {
                    self.message(deltas(*bytes))?;
                }
            }
            Step::Ask { method, params } => self.perform_ask(method, params)?,
            Step::Reason(text) => self.perform_reason(text),
            Step::Plan(steps) => self.perform_plan(steps),
            Step::Run(command) => {
                let id = commands::start(self, command, Pipes::Kept);
                self.turn.await_mail(&id)?;
            }
            Step::Spawn(command) => drop(commands::start(self, command, Pipes::Null)),
            Step::Wait(time) => self.turn.sleep(*time)?,
            Step::Hang => drop(self.turn.await_mail("nothing")?),
            Step::Retry(times) => {
                for _ in 0..*times {
                    self.retry();
                    self.turn.sleep(Duration::from_millis(50))?;
                }
            }
            Step::Warn(message) => {
                let params = json!({ "threadId": self.thread.id, "message": message });
                self.server.notify("warning", params);
            }
            Step::UnknownItem => {
                let id = self.item_id("holo");
                self.item(&json!({ "type": "hologram", "id": id, "depth": 3 }));
            }
            Step::Line(bytes) => self.perform_line(*bytes),
            Step::EndlessLine => self.server.output.endless_line(),
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
            Step::Die(death) => death.die(),
            Step::Fail { info, message } => {
                return Err(Stop::Failed { info: info.clone(), message: message.clone() });
            }
        }
        Ok(())
    }

    fn perform_ask(&mut self, method: &str, params: &Value) -> Result<(), Stop> {
        let id = self.ask(method, params);
        let answer = self.turn.await_mail(&format!("request {id}"))?;
        let resolved = json!({ "threadId": self.thread.id, "requestId": id });
        self.server.notify("serverRequest/resolved", resolved);
        match answer.get("error") {
            Some(error) => self.say(&format!("{method} was refused: {error}")),
            None => self.say(&format!("{method} was answered: {}", answer["result"])),
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

    /// A line of exactly so many bytes, or of the fewest that such a line has.
    fn perform_line(&self, bytes: usize) {
        let mut line = json!({
            "method": "turn/diff/updated",
            "params": { "threadId": self.thread.id, "turnId": self.turn.id, "diff": "" },
            "emittedAtMs": now_ms(),
        });
        let rest = bytes.saturating_sub(line.to_string().len());
        line["params"]["diff"] = json!(bulk(rest));
        self.server.output.message(&line);
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
