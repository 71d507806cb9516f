//! Threads: what is kept of them on disk, and who may write them.
//!
//! `CODEX_HOME/fake-threads/ID.jsonl` is the rollout: one JSON object per input or count of tokens,
//! there from the first input on. `ID.lock` is locked by the process that has the thread loaded; the
//! kernel frees it however that process ends. An archived rollout lies in `archived/`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use serde_json::{Map, Value, json};

use crate::commands::Terminal;
use crate::faults;
use crate::output::{guard, now_ms};
use crate::shapes::RpcError;
use crate::turn::Turn;

/// The settings that a turn may override, and that hold from then on.
const STICKY: [&str; 6] = ["cwd", "model", "effort", "summary", "approvalPolicy", "sandboxPolicy"];

/// A loaded thread.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) id: String,
    /// Of its rollout; an ephemeral thread has none.
    pub(crate) path: Option<PathBuf>,
    /// In seconds since 1970.
    pub(crate) created_at: u64,
    /// Gone once it is released.
    lock: Mutex<Option<File>>,
    state: Mutex<ThreadState>,
    /// Told whenever its turn has ended.
    pub(crate) idle: Condvar,
}

/// What changes of a thread.
#[derive(Debug, Default)]
pub(crate) struct ThreadState {
    pub(crate) active: Option<Arc<Turn>>,
    pub(crate) user_messages: usize,
    pub(crate) input_chars: usize,
    pub(crate) usage: Usage,
    /// Of its last turn, and which that was.
    pub(crate) last: (Usage, String),
    pub(crate) settings: Map<String, Value>,
    pub(crate) preview: String,
    pub(crate) terminals: Vec<Terminal>,
}

/// Tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) output: u64,
}

impl Usage {
    fn add(&mut self, other: Usage) {
        self.input += other.input;
        self.cached += other.cached;
        self.output += other.output;
    }
}

impl ThreadState {
    pub(crate) fn cwd(&self) -> Value {
        self.settings
            .get("cwd")
            .filter(|cwd| cwd.is_string())
            .cloned()
            .unwrap_or_else(|| json!("/"))
    }

    /// Takes over what a request overrides.
    pub(crate) fn apply(&mut self, params: &Value) {
        for key in STICKY {
            if let Some(value) = params.get(key).filter(|value| !value.is_null()) {
                self.settings.insert(key.to_owned(), value.clone());
            }
        }
        // A thread is started and resumed with no more than the name of a sandbox.
        let policy = match params["sandbox"].as_str() {
            Some("read-only") => json!({ "type": "readOnly", "networkAccess": false }),
            Some("danger-full-access") => json!({ "type": "dangerFullAccess" }),
            Some("workspace-write") => json!({
                "type": "workspaceWrite", "writableRoots": [], "networkAccess": false,
                "excludeTmpdirEnvVar": false, "excludeSlashTmp": false,
            }),
            Some(_) | None => Value::Null,
        };
        if !policy.is_null() {
            self.settings.insert("sandboxPolicy".to_owned(), policy);
        }
        // The only way to take an effort away.
        if let Some(mode) = params.pointer("/collaborationMode/settings") {
            self.settings.insert("model".to_owned(), mode["model"].clone());
            self.settings.insert("effort".to_owned(), mode["reasoning_effort"].clone());
        }
    }

    /// Counts the tokens of a turn.
    pub(crate) fn note_usage(&mut self, turn_id: &str, usage: Usage) {
        self.usage.add(usage);
        self.last = (usage, turn_id.to_owned());
    }

    /// Counts an input as a message of the user.
    pub(crate) fn note_input(&mut self, input: &Value) {
        let text = text_of(input);
        self.user_messages += 1;
        self.input_chars += text.chars().count();
        if self.user_messages == 1 {
            self.preview = text;
        }
    }
}

/// The texts of an input.
pub(crate) fn text_of(input: &Value) -> String {
    let texts: Vec<&str> =
        input.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str()).collect();
    texts.join("\n\n")
}

fn default_settings() -> Map<String, Value> {
    let settings = json!({
        "cwd": "/",
        "model": "fake-model",
        "effort": null,
        "approvalPolicy": "on-request",
        "sandboxPolicy": { "type": "readOnly", "networkAccess": false },
    });
    settings.as_object().cloned().unwrap_or_default()
}

impl Thread {
    pub(crate) fn state(&self) -> MutexGuard<'_, ThreadState> {
        guard(&self.state)
    }

    /// Adds a line to the rollout, if there is to be one.
    pub(crate) fn append(&self, line: &Value) -> io::Result<()> {
        match &self.path {
            Some(path) => append(path, line),
            None => Ok(()),
        }
    }

    /// Lets another process have it.
    pub(crate) fn release(&self) {
        guard(&self.lock).take();
    }
}

fn append(path: &Path, line: &Value) -> io::Result<()> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)?
        .write_all(format!("{line}\n").as_bytes())
}

/// The threads of one CODEX_HOME.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(crate) fn open(home: &Path) -> io::Result<Store> {
        let directory = home.join("fake-threads");
        std::fs::create_dir_all(directory.join("archived"))?;
        Ok(Store { directory })
    }

    pub(crate) fn start(&self, params: &Value) -> Result<Thread, RpcError> {
        let id = uuid::Uuid::now_v7().to_string();
        let ephemeral = params["ephemeral"] == true;
        let lock = if ephemeral { None } else { Some(self.lock(&id)?) };
        let mut state = ThreadState { settings: default_settings(), ..ThreadState::default() };
        state.apply(params);
        Ok(self.thread(id, !ephemeral, now_ms() / 1000, lock, state))
    }

    pub(crate) fn resume(&self, id: &str, params: &Value) -> Result<Thread, RpcError> {
        if uuid::Uuid::parse_str(id).is_err() {
            return Err(RpcError::refused(format!("invalid session id: {id}")));
        }
        if self.archived(id).exists() {
            let hint = format!("Run `codex unarchive {id}` to unarchive it first.");
            return Err(RpcError::refused(format!("session {id} is archived. {hint}")));
        }
        let path = self.path(id);
        let text = std::fs::read_to_string(&path).map_err(|_| no_rollout(id))?;
        let lock = self.lock(id)?;
        let (created_at, mut state) = replay(&text).ok_or_else(|| {
            RpcError::refused(format!(
                "failed to load rollout `{}`: rollout is empty",
                path.display()
            ))
        })?;
        // The one setting that a rollout does not bring back.
        state
            .settings
            .insert("sandboxPolicy".to_owned(), default_settings()["sandboxPolicy"].clone());
        state.apply(params);
        Ok(self.thread(id.to_owned(), true, created_at, Some(lock), state))
    }

    /// Puts a rollout away. A thread that is loaded here has one from now on, if it had none.
    pub(crate) fn archive(&self, id: &str, loaded: Option<&Thread>) -> Result<(), RpcError> {
        match loaded {
            Some(thread) if thread.path.is_none() => return Err(no_rollout(id)),
            Some(thread) => self.write_head(thread).map_err(|error| failed(&error))?,
            None if !self.path(id).exists() => return Err(no_rollout(id)),
            None => drop(self.lock(id)?),
        }
        std::fs::rename(self.path(id), self.archived(id)).map_err(|error| failed(&error))?;
        if let Some(thread) = loaded {
            thread.release();
        }
        Ok(())
    }

    /// Takes a rollout back; the thread is not loaded by it.
    pub(crate) fn unarchive(&self, id: &str) -> Result<Thread, RpcError> {
        std::fs::rename(self.archived(id), self.path(id)).map_err(|_| {
            RpcError::refused(format!("no archived rollout found for thread id {id}"))
        })?;
        Ok(self.thread(id.to_owned(), true, now_ms() / 1000, None, ThreadState::default()))
    }

    /// Begins the rollout of a thread that has none.
    pub(crate) fn write_head(&self, thread: &Thread) -> io::Result<()> {
        match &thread.path {
            Some(path) if !path.exists() => {
                let head =
                    json!({ "createdAt": thread.created_at, "settings": thread.state().settings });
                append(path, &head)
            }
            _ => Ok(()),
        }
    }

    fn thread(
        &self,
        id: String,
        stored: bool,
        created_at: u64,
        lock: Option<File>,
        state: ThreadState,
    ) -> Thread {
        let path = stored.then(|| self.path(&id));
        Thread {
            id,
            path,
            created_at,
            lock: Mutex::new(lock),
            state: Mutex::new(state),
            idle: Condvar::new(),
        }
    }

    fn lock(&self, id: &str) -> Result<File, RpcError> {
        faults::lock(&self.directory.join(format!("{id}.lock")))
            .map_err(|error| failed(&error))?
            .ok_or_else(|| RpcError::refused(format!("thread {id} already has an active writer")))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.jsonl"))
    }

    fn archived(&self, id: &str) -> PathBuf {
        self.directory.join("archived").join(format!("{id}.jsonl"))
    }
}

/// What a rollout tells; lines that can't be read are passed over.
fn replay(text: &str) -> Option<(u64, ThreadState)> {
    let lines: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let created_at = lines.first()?["createdAt"].as_u64().unwrap_or_default();
    let mut state = ThreadState { settings: default_settings(), ..ThreadState::default() };
    for line in &lines {
        if let Some(settings) = line["settings"].as_object() {
            state.settings = settings.clone();
        }
        if let Some(input) = line.get("input") {
            state.note_input(input);
        }
        if let Some([input, cached, output]) = line["usage"].as_array().map(Vec::as_slice) {
            let count = |value: &Value| value.as_u64().unwrap_or_default();
            let (input, cached, output) = (count(input), count(cached), count(output));
            let turn_id = line["turn"].as_str().unwrap_or_default();
            state.note_usage(turn_id, Usage { input, cached, output });
        }
    }
    Some((created_at, state))
}

fn no_rollout(id: &str) -> RpcError {
    RpcError::refused(format!("no rollout found for thread id {id}"))
}

fn failed(error: &io::Error) -> RpcError {
    RpcError { code: -32603, message: format!("fake-threads: {error}"), data: Value::Null }
}
