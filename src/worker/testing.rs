//! A Codex of our own in memory, for tests: the other end of a worker's conversation, played line by
//! line.
//!
//! [`Codex`] is what a test speaks as. It answers nothing by itself: what is asked is read by
//! [`Codex::asked`], which on its way gives the usual answers to what is usually asked around it. It
//! knows no threads, no turns and no time. [`worker`] gives a worker that has shaken hands with one,
//! [`launcher`] a whole pool's worth.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines, ReadHalf, WriteHalf,
};
use tokio::sync::{mpsc, watch};

use crate::worker::conversation::{Conversation, Ending, Launch};
use crate::worker::{SpawnError, Worker, WorkerId, WorkerLimits, WorkerSpec};

/// How much a stream holds that nobody reads.
const PIPE: usize = 64 * 1024;

/// The other end of a worker's conversation.
#[derive(Debug)]
pub(crate) struct Codex {
    lines: Lines<BufReader<ReadHalf<DuplexStream>>>,
    stdout: WriteHalf<DuplexStream>,
    pub(crate) stderr: DuplexStream,
    exit: Arc<watch::Sender<Option<String>>>,
    threads: usize,
    /// The turns that were begun, the last one last: their threads, and they themselves.
    pub(crate) turns: Vec<(String, String)>,
    /// Whether a turn that was begun is left to the test; else it says something and ends.
    pub(crate) holds_turns: bool,
    /// How many bytes are written at a time; all of a line, where that is not said.
    pub(crate) splits_lines: Option<usize>,
}

/// A line that a worker wrote.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    /// Null, where it wants no answer.
    pub(crate) id: Value,
    pub(crate) method: String,
    pub(crate) params: Value,
}

/// What a [`Codex`] ends by: its own word, or a kill, which is signal 9.
struct MemoryEnding(Arc<watch::Sender<Option<String>>>);

impl Ending for MemoryEnding {
    fn exited(&mut self) -> BoxFuture<'_, io::Result<String>> {
        let mut exit = self.0.subscribe();
        async move {
            let exit = exit.wait_for(Option::is_some).await.map_err(io::Error::other)?;
            Ok(exit.clone().unwrap_or_default())
        }
        .boxed()
    }

    fn kill(&mut self) {
        self.0.send_if_modified(|exit| exit.is_none() && exit.insert("signal 9".into()).len() > 0);
    }

    fn gone(&mut self) -> BoxFuture<'_, ()> {
        self.exited().map(drop).boxed()
    }
}

/// Both ends of a conversation.
pub(crate) fn conversation() -> (Conversation, Codex) {
    let (ours, theirs) = tokio::io::duplex(PIPE);
    let (stdout, stdin) = tokio::io::split(ours);
    let (reader, writer) = tokio::io::split(theirs);
    let (stderr, complaints) = tokio::io::duplex(PIPE);
    let exit = Arc::new(watch::Sender::new(None));
    let conversation = Conversation {
        program: PathBuf::from("codex in memory"),
        pid: None,
        stdin: Box::new(stdin),
        stdout: Box::new(stdout),
        stderr: Box::new(complaints),
        ending: Box::new(MemoryEnding(Arc::clone(&exit))),
    };
    let lines = BufReader::new(reader).lines();
    let codex = Codex {
        lines,
        stdout: writer,
        stderr,
        exit,
        threads: 0,
        turns: Vec::new(),
        holds_turns: false,
        splits_lines: None,
    };
    (conversation, codex)
}

/// Launches a [`Codex`] for every worker, and hands it to the test.
pub(crate) fn launcher() -> (Arc<dyn Launch>, mpsc::UnboundedReceiver<Codex>) {
    struct Launcher(mpsc::UnboundedSender<Codex>);

    impl Launch for Launcher {
        fn launch<'a>(
            &'a self,
            _config_overrides: &'a [String],
        ) -> BoxFuture<'a, Result<Conversation, SpawnError>> {
            let (conversation, codex) = conversation();
            let launched = self.0.send(codex).map(|()| conversation);
            let gone = |_| SpawnError::NotFound("the test is over".to_owned());
            std::future::ready(launched.map_err(gone)).boxed()
        }
    }

    let (sender, launched) = mpsc::unbounded_channel();
    (Arc::new(Launcher(sender)), launched)
}

/// How workers in memory are made: all by default, and without goals, as it is by default.
pub(crate) fn spec(launch: Arc<dyn Launch>) -> WorkerSpec {
    WorkerSpec {
        launch,
        check_home: Arc::new(|| Ok(())),
        config_file: PathBuf::from("/nowhere/config.toml"),
        check_version: Arc::new(|_| Ok(())),
        config_overrides: vec!["features.goals=false".to_owned()],
        secrets: Arc::new(Vec::new),
        limits: WorkerLimits::default(),
    }
}

pub(crate) fn worker_id() -> WorkerId {
    WorkerId { slot: 0, generation: 1 }
}

/// A worker that has shaken hands with a [`Codex`], all by default.
pub(crate) async fn worker() -> (Arc<Worker>, Codex) {
    worker_with(|_| {}).await
}

/// The same with another specification.
pub(crate) async fn worker_with(change: impl FnOnce(&mut WorkerSpec)) -> (Arc<Worker>, Codex) {
    let mut spec = spec(launcher().0);
    change(&mut spec);
    let (conversation, mut codex) = conversation();
    let starting = Worker::start(worker_id(), conversation, &spec);
    let worker = codex.during(starting).await.unwrap();
    (worker, codex)
}

impl Codex {
    /// The next line that the worker wrote; an answer has no method. None once it writes no more.
    pub(crate) async fn next(&mut self) -> Option<Asked> {
        let line = self.lines.next_line().await.ok()??;
        let mut line: Value = serde_json::from_str(&line).unwrap();
        let method = line["method"].as_str().unwrap_or_default().to_owned();
        Some(Asked { id: line["id"].take(), method, params: line["params"].take() })
    }

    /// The next request of this method. What is asked before it gets the usual answer.
    pub(crate) async fn asked(&mut self, method: &str) -> Asked {
        loop {
            let Some(asked) = self.next().await else { panic!("not asked for {method}") };
            if asked.method == method {
                return asked;
            }
            self.answer_usually(&asked).await;
        }
    }

    /// What comes of `future` while everything that is asked gets the usual answer.
    pub(crate) async fn during<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        loop {
            let asked = tokio::select! {
                biased;
                value = &mut future => return value,
                Some(asked) = self.next() => asked,
            };
            self.answer_usually(&asked).await;
        }
    }

    /// Answers what is usually asked.
    pub(crate) async fn answer_usually(&mut self, asked: &Asked) {
        let answer = match asked.method.as_str() {
            // An answer, and what wants none.
            _ if asked.id.is_null() || asked.method.is_empty() => return,
            "initialize" => json!({ "userAgent": "codex_sidecar/0.169.0 (in memory)" }),
            "config/read" => json!({ "config": {} }),
            "model/list" => json!({ "data": [{ "model": "m0", "isDefault": true }] }),
            "thread/start" => {
                self.threads += 1;
                asked.opened(&format!("t{}", self.threads))
            }
            "thread/resume" => asked.opened(asked.params["threadId"].as_str().unwrap_or_default()),
            "thread/read" => json!({ "thread": { "id": asked.params["threadId"] } }),
            "turn/start" => return self.begin_usually(asked).await,
            "thread/settings/update"
            | "thread/loaded/list"
            | "thread/goal/get"
            | "thread/goal/clear"
            | "thread/archive"
            | "thread/unarchive"
            | "thread/unsubscribe"
            | "thread/backgroundTerminals/list"
            | "config/mcpServer/reload"
            | "mcpServerStatus/list"
            | "turn/interrupt" => json!({}),
            method => panic!("{method} has no usual answer: {asked:?}"),
        };
        self.answer(asked, answer).await;
    }

    /// Takes a turn with what it asks for, says what it was told, and ends it.
    async fn begin_usually(&mut self, asked: &Asked) {
        let params = &asked.params;
        self.tell(
            "thread/settings/updated",
            json!({
                "threadId": params["threadId"],
                "threadSettings": {
                    "cwd": params["cwd"],
                    "approvalPolicy": params["approvalPolicy"],
                    "sandboxPolicy": params["sandboxPolicy"],
                },
            }),
        )
        .await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (thread_id, root) = (text(&params["threadId"]), text(&params["rootTurnId"]));
        let turn_id = format!("u{}", self.turns.len() + 1);
        self.turns.push((thread_id.clone(), turn_id.clone()));
        self.answer(asked, json!({ "turn": { "id": turn_id, "rootTurnId": root } })).await;
        self.begin_turn(&thread_id, &turn_id, &root).await;
        if !self.holds_turns {
            let said = format!("You said: {}", text(&params["input"][0]["text"]));
            self.say_in_turn(&said).await;
            self.end_turn(&thread_id, &turn_id).await;
        }
    }

    /// Tells of the begin of a turn.
    pub(crate) async fn begin_turn(&mut self, thread_id: &str, turn_id: &str, root_turn_id: &str) {
        let turn = json!({ "id": turn_id, "rootTurnId": root_turn_id });
        self.tell("turn/started", json!({ "threadId": thread_id, "turn": turn })).await;
    }

    /// Tells of the good end of a turn.
    pub(crate) async fn end_turn(&mut self, thread_id: &str, turn_id: &str) {
        let turn = json!({ "id": turn_id, "status": "completed" });
        self.tell("turn/completed", json!({ "threadId": thread_id, "turn": turn })).await;
    }

    /// Says something in the turn that was begun last.
    pub(crate) async fn say_in_turn(&mut self, text: &str) {
        let item = json!({ "type": "agentMessage", "id": "said", "text": text });
        self.tell_in_turn("item/completed", json!({ "item": item })).await;
    }

    /// Tells something of the turn that was begun last.
    pub(crate) async fn tell_in_turn(&mut self, method: &str, mut params: Value) {
        let (thread_id, turn_id) = self.turns.last().unwrap();
        params["threadId"] = json!(thread_id);
        params["turnId"] = json!(turn_id);
        self.tell(method, params).await;
    }

    /// Ends the turn that was begun last.
    pub(crate) async fn end_last_turn(&mut self) {
        let (thread_id, turn_id) = self.turns.last().unwrap().clone();
        self.end_turn(&thread_id, &turn_id).await;
    }

    /// The worker's answer to a question of this id.
    pub(crate) async fn answered(&mut self, id: u64) -> Value {
        let line = self.lines.next_line().await.unwrap().unwrap();
        let line: Value = serde_json::from_str(&line).unwrap();
        assert!(line["method"].is_null() && line["id"] == id, "{line}");
        line
    }

    pub(crate) async fn answer(&mut self, asked: &Asked, result: Value) {
        self.say(&json!({ "id": asked.id, "result": result })).await;
    }

    pub(crate) async fn refuse(&mut self, asked: &Asked, code: i64, message: &str) {
        let error = json!({ "code": code, "message": message });
        self.say(&json!({ "id": asked.id, "error": error })).await;
    }

    pub(crate) async fn tell(&mut self, method: &str, params: Value) {
        self.say(&json!({ "method": method, "params": params })).await;
    }

    pub(crate) async fn ask(&mut self, id: u64, method: &str, params: Value) {
        self.say(&json!({ "id": id, "method": method, "params": params })).await;
    }

    pub(crate) async fn say(&mut self, message: &Value) {
        self.write(format!("{message}\n").as_bytes()).await;
    }

    /// Writes to its stdout; a worker that is gone reads nothing.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let size = self.splits_lines.unwrap_or(bytes.len()).max(1);
        for piece in bytes.chunks(size) {
            let _ = self.stdout.write_all(piece).await;
            tokio::task::yield_now().await;
        }
    }

    /// Says no more, and still hears.
    pub(crate) async fn close_stdout(&mut self) {
        let _ = self.stdout.shutdown().await;
    }

    /// Ends by itself; what it wrote can still be read.
    pub(crate) fn exit(&self, how: &str) {
        self.exit.send_replace(Some(how.to_owned()));
    }

    /// Waits for its end, and tells it: `signal 9`, where the worker was killed.
    pub(crate) async fn ended(&self) -> String {
        let mut exit = self.exit.subscribe();
        exit.wait_for(Option::is_some).await.unwrap().clone().unwrap_or_default()
    }
}

impl Asked {
    /// The answer to `thread/start` and `thread/resume`: a thread that may read, and asks unless it was
    /// asked for another policy.
    pub(crate) fn opened(&self, thread_id: &str) -> Value {
        let policy = self.params["approvalPolicy"].as_str().unwrap_or("on-request");
        json!({
            "thread": { "id": thread_id },
            "model": "m0",
            "approvalPolicy": policy,
            "sandbox": { "type": "readOnly", "networkAccess": false },
            "cwd": self.params["cwd"],
        })
    }
}
