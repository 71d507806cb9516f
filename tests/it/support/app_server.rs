//! A process of the real CLI beside the sidecar's, on the same CODEX_HOME and the same model, spoken to by
//! its own protocol: somebody else's.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{PATIENCE, Sidecar, codex_path, environment, within};

/// The process. Gone with it.
#[derive(Debug)]
pub struct AppServer {
    process: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    work: String,
    asked: u64,
}

impl AppServer {
    /// One that has shaken hands.
    pub async fn start(sidecar: &Sidecar) -> AppServer {
        let mut command = Command::new(codex_path());
        command.arg("app-server");
        for setting in sidecar.model.config_overrides() {
            command.args(["-c", &setting]);
        }
        command
            .env_clear()
            .envs(environment(&sidecar.place.user_home()))
            .env("CODEX_HOME", sidecar.place.codex_home())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let stdin = process.stdin.take().unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap()).lines();
        let work = sidecar.place.work().display().to_string();
        let mut server = AppServer { process, stdin, stdout, work, asked: 0 };
        let client = json!({ "name": "tests", "title": "tests", "version": "0" });
        let capabilities = json!({ "experimentalApi": true });
        let hello = json!({ "clientInfo": client, "capabilities": capabilities });
        server.ask("initialize", hello).await;
        server.write(&json!({ "method": "initialized" })).await;
        server
    }

    async fn write(&mut self, message: &Value) {
        self.stdin.write_all(format!("{message}\n").as_bytes()).await.unwrap();
    }

    async fn line(&mut self) -> Value {
        let line = within(PATIENCE, "a line of the other process", self.stdout.next_line()).await;
        serde_json::from_str(&line.unwrap().expect("the other process has ended")).unwrap()
    }

    /// The answer to a request, which must be no refusal.
    pub async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        self.write(&json!({ "id": id, "method": method, "params": params })).await;
        loop {
            let mut line = self.line().await;
            if line["method"].is_null() && line["id"] == id {
                assert!(line["error"].is_null(), "{method}: {line}");
                return line["result"].take();
            }
        }
    }

    /// A new thread, which it holds.
    pub async fn thread(&mut self) -> String {
        let started = self.ask("thread/start", json!({ "cwd": self.work })).await;
        started["thread"]["id"].as_str().unwrap().to_owned()
    }

    /// Runs a turn to its end, and gives Codex's id of it.
    pub async fn turn(&mut self, thread_id: &str, words: &str) -> String {
        let input = json!([{ "type": "text", "text": words }]);
        let turn = self.ask("turn/start", json!({ "threadId": thread_id, "input": input })).await;
        let turn_id = turn["turn"]["id"].as_str().unwrap().to_owned();
        loop {
            let line = self.line().await;
            if line["method"] == "turn/completed" && line["params"]["turn"]["id"] == turn_id {
                return turn_id;
            }
        }
    }

    /// Ends it.
    pub async fn stop(mut self) {
        self.process.kill().await.unwrap();
    }
}
