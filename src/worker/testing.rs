//! A Codex of our own in memory, for tests: the other end of a worker's conversation, played line by
//! line.
//!
//! [`Codex`] is what a test speaks as. It does nothing by itself: a test reads what is asked
//! ([`Codex::asked`]), and has the rest answered as usual while it waits ([`Codex::during`]) or in the
//! background. Usual is one line for each method, without a memory of threads or of what they were told;
//! a turn says what it was told, and ends. [`worker`] gives a worker that has shaken hands with one,
//! [`launcher`] a whole pool's worth.

use std::collections::HashMap;
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
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::app_server::protected::Protection;
use crate::worker::conversation::{Conversation, Ending, Launch};
use crate::worker::{SpawnError, Worker, WorkerId, WorkerLimits, WorkerSpec};

/// What the id of a reviewer's turn begins with; that of the review follows.
const WITHIN: &str = "within-";

/// What a turn is told to go on until it is released, steered or interrupted.
pub(crate) const HOLD: &str = "hold";

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
    /// Which of several it is; then the ids of its new threads are UUIDs that no other one gives.
    pub(crate) number: Option<u32>,
    /// The turns that were begun, the last one last: their threads, and they themselves.
    pub(crate) turns: Vec<(String, String)>,
    /// Whether a turn that was begun is left to the test; else it says something and ends. One that is
    /// told to [`HOLD`] is left in any case.
    pub(crate) holds_turns: bool,
    // Those that were left, and have not ended.
    held: Vec<(String, String)>,
    /// How many bytes are written at a time; all of a line, where that is not said.
    pub(crate) splits_lines: Option<usize>,
    /// Whether an interruption is answered, and ends nothing.
    pub(crate) is_deaf_to_interrupts: bool,
    /// All that was asked.
    pub(crate) heard: Vec<Asked>,
    /// Settings that come into force with this method, whatever is asked for.
    pub(crate) imposes: HashMap<&'static str, Value>,
    /// What it never answers.
    pub(crate) mutes: Vec<&'static str>,
    /// The turns that it has of any thread, the newest first, by id and status; it can't list them, where
    /// that is not said.
    pub(crate) history: Option<Vec<(&'static str, &'static str)>>,
    /// A text in what is asked at which it dies in place of an answer.
    pub(crate) dies_of: Option<&'static str>,
    /// What is refused in place of the usual answer: the method, how often, the code and the text.
    pub(crate) refuses: Vec<(&'static str, usize, i64, &'static str)>,
    /// The reviews that have begun.
    reviews: Vec<String>,
    /// The files of the skills that it knows.
    pub(crate) skills: Vec<String>,
}

/// One that plays in the background.
#[derive(Debug)]
pub(crate) struct Playing {
    back: oneshot::Sender<()>,
    task: JoinHandle<Codex>,
}

impl Playing {
    /// From here on it does what the test does with it.
    pub(crate) async fn back(self) -> Codex {
        let _ = self.back.send(());
        self.task.await.unwrap()
    }
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
        let exit = self.0.borrow().clone().unwrap_or_else(|| "signal 9".to_owned());
        self.0.send_replace(Some(exit));
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
        api_key: None,
        ending: Box::new(MemoryEnding(Arc::clone(&exit))),
        excluded: Vec::new(),
    };
    let lines = BufReader::new(reader).lines();
    let codex = Codex {
        lines,
        stdout: writer,
        stderr,
        exit,
        threads: 0,
        number: None,
        turns: Vec::new(),
        holds_turns: false,
        held: Vec::new(),
        splits_lines: None,
        is_deaf_to_interrupts: false,
        heard: Vec::new(),
        imposes: HashMap::new(),
        mutes: Vec::new(),
        history: None,
        dies_of: None,
        refuses: Vec::new(),
        reviews: Vec::new(),
        skills: Vec::new(),
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
        protected: Protection::default(),
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
        let asked = Asked { id: line["id"].take(), method, params: line["params"].take() };
        self.heard.push(asked.clone());
        Some(asked)
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

    /// All that it was asked of this method.
    pub(crate) fn heard_of(&self, method: &str) -> Vec<&Asked> {
        self.heard.iter().filter(|asked| asked.method == method).collect()
    }

    /// How often it was asked for this method.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.heard_of(method).len()
    }

    /// Answers what is usually asked.
    pub(crate) async fn answer_usually(&mut self, asked: &Asked) {
        if self.mutes.contains(&asked.method.as_str()) {
            return;
        }
        if self.dies_of.is_some_and(|text| asked.params.to_string().contains(text)) {
            return self.exit("signal 6");
        }
        let is_refused = |(method, times, ..): &&mut (&str, usize, i64, &str)| {
            *method == asked.method && *times > 0
        };
        if let Some((_, times, code, text)) = self.refuses.iter_mut().find(is_refused) {
            *times -= 1;
            let (code, text) = (*code, *text);
            return self.refuse(asked, code, text).await;
        }
        let answer = match asked.method.as_str() {
            // An answer, and what wants none.
            _ if asked.id.is_null() || asked.method.is_empty() => return,
            "initialize" => json!({ "userAgent": "codex_sidecar/0.169.0 (in memory)" }),
            "config/read" => json!({ "config": {} }),
            "model/list" => json!({ "data": [{ "model": "m0", "isDefault": true }] }),
            "thread/start" | "thread/fork" => {
                self.threads += 1;
                let id = match self.number {
                    Some(number) => format!("{number:08}-0000-4000-8000-{:012}", self.threads),
                    None => format!("t{}", self.threads),
                };
                self.imposed(asked, asked.opened(&id))
            }
            "thread/resume" => {
                self.imposed(asked, asked.opened(asked.params["threadId"].as_str().unwrap()))
            }
            "thread/read" => json!({ "thread": { "id": asked.params["threadId"] } }),
            "thread/turns/list" => match &self.history {
                Some(turns) => {
                    let most = asked.params["limit"].as_u64().unwrap() as usize;
                    let turn = |(id, status): &(_, _)| json!({ "id": id, "status": status });
                    let page: Vec<Value> = turns.iter().take(most).map(turn).collect();
                    json!({ "data": page, "nextCursor": (turns.len() > most).then_some("more") })
                }
                None => {
                    return self.refuse(asked, -32600, "Invalid request: unknown variant").await;
                }
            },
            "turn/start" => return self.begin_usually(asked).await,
            "review/start" => return self.review_usually(asked).await,
            "thread/compact/start" => return self.compact_usually(asked).await,
            "skills/list" => {
                let skills = self.skills.iter().map(|path| json!({ "name": "s", "path": path }));
                json!({ "data": [{ "cwd": "/", "skills": skills.collect::<Vec<_>>() }] })
            }
            "thread/settings/update" => {
                self.answer(asked, json!({})).await;
                // Whether it knows the request at all is asked without settings.
                if !asked.params["cwd"].is_null() {
                    self.tell_settings(asked).await;
                }
                return;
            }
            "thread/loaded/list"
            | "thread/goal/get"
            | "thread/goal/clear"
            | "thread/unarchive"
            | "thread/revert"
            | "thread/delete"
            | "thread/unsubscribe"
            | "thread/backgroundTerminals/list"
            | "config/mcpServer/reload"
            | "mcpServerStatus/list" => json!({}),
            "thread/archive" => {
                self.answer(asked, json!({})).await;
                let closed = json!({ "threadId": asked.params["threadId"] });
                return self.tell("thread/closed", closed).await;
            }
            "turn/steer" => {
                let steered = asked.params["expectedTurnId"].as_str().unwrap();
                let at = self.held.iter().position(|(_, turn_id)| turn_id == steered).unwrap();
                let (thread_id, turn_id) = self.held.remove(at);
                self.answer(asked, json!({ "turnId": turn_id })).await;
                let item = json!({
                    "type": "userMessage", "id": "steered", "content": asked.params["input"],
                });
                let told = json!({ "threadId": thread_id, "turnId": turn_id, "item": item });
                self.tell("item/completed", told).await;
                return self.finish(&thread_id, &turn_id, "steered").await;
            }
            "turn/interrupt" if self.is_outer(&asked.params["turnId"]) => {
                return self.refuse(asked, -32600, "expected active turn id").await;
            }
            "turn/interrupt" => {
                self.answer(asked, json!({})).await;
                if !self.is_deaf_to_interrupts {
                    self.interrupt(asked).await;
                }
                return;
            }
            method => panic!("{method} has no usual answer: {asked:?}"),
        };
        self.answer(asked, answer).await;
    }

    /// The settings as they come into force.
    fn imposed(&self, asked: &Asked, mut settings: Value) -> Value {
        let imposed = self.imposes.get(asked.method.as_str()).and_then(Value::as_object);
        for (key, value) in imposed.into_iter().flatten() {
            settings[key] = value.clone();
        }
        settings
    }

    /// Tells which settings came into force with a turn.
    pub(crate) async fn tell_settings(&mut self, asked: &Asked) {
        let settings = json!({
            "cwd": asked.params["cwd"],
            "approvalPolicy": asked.params["approvalPolicy"],
            "sandboxPolicy": asked.params["sandboxPolicy"],
        });
        let settings = self.imposed(asked, settings);
        let told = json!({ "threadId": asked.params["threadId"], "threadSettings": settings });
        self.tell("thread/settings/updated", told).await;
    }

    /// Ends a turn as it was told to.
    pub(crate) async fn interrupt(&mut self, asked: &Asked) {
        let interrupted = asked.params["turnId"].as_str().unwrap_or_default();
        let interrupted = interrupted.strip_prefix(WITHIN).unwrap_or(interrupted);
        self.held.retain(|(_, turn_id)| *turn_id != interrupted);
        let turn = json!({ "id": interrupted, "status": "interrupted" });
        let ended = json!({ "threadId": asked.params["threadId"], "turn": turn });
        self.tell("turn/completed", ended).await;
    }

    /// Takes a turn with what it asks for, says what it was told, and ends it.
    async fn begin_usually(&mut self, asked: &Asked) {
        self.tell_settings(asked).await;
        let params = &asked.params;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (thread_id, root) = (text(&params["threadId"]), text(&params["rootTurnId"]));
        let turn_id = format!("u{}", self.turns.len() + 1);
        self.turns.push((thread_id.clone(), turn_id.clone()));
        self.answer(asked, json!({ "turn": { "id": turn_id, "rootTurnId": root } })).await;
        self.begin_turn(&thread_id, &turn_id, &root).await;
        let words = text(&params["input"][0]["text"]);
        if self.holds_turns || words == HOLD {
            self.held.push((thread_id, turn_id));
        } else {
            self.finish(&thread_id, &turn_id, &format!("You said: {words}")).await;
        }
    }

    /// Whether it is a review, which is interrupted by the reviewer's turn alone.
    fn is_outer(&self, turn_id: &Value) -> bool {
        turn_id.as_str().is_some_and(|id| self.reviews.iter().any(|review| review == id))
    }

    /// Takes a review, within which a reviewer has a turn of his own, and ends it.
    async fn review_usually(&mut self, asked: &Asked) {
        let thread_id = asked.params["threadId"].as_str().unwrap().to_owned();
        let turn_id = format!("u{}", self.turns.len() + 1);
        self.turns.push((thread_id.clone(), turn_id.clone()));
        self.answer(asked, json!({ "turn": { "id": turn_id, "rootTurnId": null } })).await;
        self.reviews.push(turn_id.clone());
        self.begin_turn(&thread_id, &format!("{WITHIN}{turn_id}"), &turn_id).await;
        if self.holds_turns {
            self.held.push((thread_id, turn_id));
        } else {
            self.finish(&thread_id, &turn_id, "Reviewed.").await;
        }
    }

    /// Takes a compaction, of which it is told only when it begins, and ends it.
    async fn compact_usually(&mut self, asked: &Asked) {
        let thread_id = asked.params["threadId"].as_str().unwrap().to_owned();
        let turn_id = format!("u{}", self.turns.len() + 1);
        self.turns.push((thread_id.clone(), turn_id.clone()));
        self.answer(asked, json!({})).await;
        self.begin_turn(&thread_id, &turn_id, &turn_id).await;
        if self.holds_turns {
            self.held.push((thread_id, turn_id));
        } else {
            self.end_turn(&thread_id, &turn_id).await;
        }
    }

    /// Says a turn's last words, and ends it.
    async fn finish(&mut self, thread_id: &str, turn_id: &str, words: &str) {
        let item = json!({ "type": "agentMessage", "id": "said", "text": words });
        let said = json!({ "threadId": thread_id, "turnId": turn_id, "item": item });
        self.tell("item/completed", said).await;
        self.end_turn(thread_id, turn_id).await;
    }

    /// Gives the usual answers in the background until it is called back.
    pub(crate) fn in_background(mut self) -> Playing {
        let (back, called_back) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let _ = self.during(called_back).await;
            self
        });
        Playing { back, task }
    }

    /// Plays in the background until the worker ends: gives the usual answers, and ends the turns that
    /// are held whenever they are released.
    pub(crate) async fn play(mut self, mut released: broadcast::Receiver<()>) {
        loop {
            tokio::select! {
                biased;
                asked = self.next() => match asked {
                    Some(asked) => self.answer_usually(&asked).await,
                    None => return,
                },
                Ok(()) = released.recv() => {
                    for (thread_id, turn_id) in std::mem::take(&mut self.held) {
                        self.finish(&thread_id, &turn_id, "released").await;
                    }
                }
            }
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
    pub(crate) fn ended(&self) -> impl Future<Output = String> + use<> {
        let mut exit = self.exit.subscribe();
        async move { exit.wait_for(Option::is_some).await.unwrap().clone().unwrap_or_default() }
    }
}

impl Asked {
    /// The answer to `thread/start`, `thread/fork` and `thread/resume`: a thread that may read, and asks unless it was
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
