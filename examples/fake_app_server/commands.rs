//! Commands that a turn starts: each in a session of its own, as Codex starts them, so that they
//! outlive an interruption, and the process.

use std::io::{Read as _, Seek as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Signal};
use serde_json::{Map, Value, json};

use crate::faults;
use crate::output::now_ms;
use crate::shapes;
use crate::turn::Running;

/// The word by which this program starts itself as a command's shell.
pub(crate) const SESSION: &str = "__session";

/// What a command's stdout and stderr are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pipes {
    /// Kept, and told at its end.
    Kept,
    /// Nothing.
    Null,
}

/// A command that still runs.
#[derive(Debug, Clone)]
pub(crate) struct Terminal {
    pub(crate) item_id: String,
    pub(crate) process_id: String,
    pub(crate) command: String,
    pub(crate) cwd: Value,
    pid: u32,
}

impl Terminal {
    pub(crate) fn json(&self) -> Value {
        let Terminal { item_id, process_id, command, cwd, pid: _ } = self;
        json!({
            "itemId": item_id, "processId": process_id, "command": command, "cwd": cwd,
            "osPid": null, "cpuPercent": null, "rssKb": null,
        })
    }

    /// Kills the command with all of its session that shares its process group.
    pub(crate) fn kill(&self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            // It may not lead its group yet.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// Becomes the shell of a command; returns only if that fails.
pub(crate) fn become_session(command: &str) -> std::io::Error {
    if let Err(error) = rustix::process::setsid() {
        return error.into();
    }
    Command::new("/bin/sh").args(["-c", command]).exec()
}

/// Starts a command and tells of it; its end is told whenever it comes, and left for the turn under
/// the id that is returned.
pub(crate) fn start(running: &mut Running, command: &str, pipes: Pipes) -> String {
    let id = running.item_id("call");
    let cwd = running.thread.state().cwd();
    let kept = running.server.home.join(format!("fake-output-{id}"));
    let output = (pipes == Pipes::Kept).then(|| faults::open(&kept).ok()).flatten();
    let _ = std::fs::remove_file(&kept);
    let stdio = || match (&output, pipes) {
        (Some(file), Pipes::Kept) => file.try_clone().map_or_else(|_| Stdio::null(), Stdio::from),
        (None, Pipes::Kept) | (_, Pipes::Null) => Stdio::null(),
    };
    let own = std::env::current_exe().unwrap_or_default();
    let mut session = Command::new(own);
    session.args([SESSION, command]).stdin(Stdio::null()).stdout(stdio()).stderr(stdio());
    let child = session.current_dir(cwd.as_str().unwrap_or("/")).spawn();

    let pid = child.as_ref().map_or(0, Child::id);
    let process_id = pid.to_string();
    let item = shapes::command(&id, command, &cwd, Some(&process_id));
    let started = running.item_started(&Value::Object(item.clone()));
    let child = match child {
        Ok(child) => child,
        Err(error) => {
            let item = ended(item, None, &error.to_string(), started);
            running.item_completed(&item, started);
            running.turn.deliver(&id, Value::Null);
            return id;
        }
    };
    let terminal =
        Terminal { item_id: id.clone(), process_id, command: command.to_owned(), cwd, pid };
    running.thread.state().terminals.push(terminal);
    let (server, thread) = (Arc::clone(&running.server), Arc::clone(&running.thread));
    let (turn, item_id) = (Arc::clone(&running.turn), id.clone());
    std::thread::spawn(move || {
        let code = wait(child);
        let text = output.map_or_else(String::new, |mut file| {
            let mut bytes = Vec::new();
            let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
            read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
        });
        thread.state().terminals.retain(|terminal| terminal.item_id != item_id);
        if !text.is_empty() {
            let params = json!({
                "threadId": thread.id, "turnId": turn.id, "itemId": item_id, "delta": text,
            });
            server.notify("item/commandExecution/outputDelta", params);
        }
        let item = ended(item, code, &text, started);
        server.item((&thread.id, &turn.id), &item, (started, Some(now_ms())));
        turn.deliver(&item_id, Value::Null);
    });
    id
}

fn wait(mut child: Child) -> Option<i32> {
    let status = child.wait().ok()?;
    // As Codex tells a command that was killed.
    status.code().or_else(|| status.signal().map(|_| -1))
}

fn ended(mut item: Map<String, Value>, code: Option<i32>, output: &str, started: u64) -> Value {
    item.insert("status".to_owned(), json!(if code == Some(0) { "completed" } else { "failed" }));
    item.insert("aggregatedOutput".to_owned(), json!((!output.is_empty()).then_some(output)));
    item.insert("exitCode".to_owned(), json!(code.unwrap_or(-1)));
    item.insert("durationMs".to_owned(), json!(now_ms().saturating_sub(started)));
    Value::Object(item)
}

/// Kills every command of a thread.
pub(crate) fn kill_all(thread: &crate::threads::Thread) {
    let terminals = std::mem::take(&mut thread.state().terminals);
    terminals.iter().for_each(Terminal::kill);
}
