//! `codex-sidecar mcp` with a client that is not ours.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::{PATIENCE, Sidecar, eventually, within};

/// An environment from the registry may have to be made first.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn the_mcp_package_of_python_runs_turns_answers_approvals_and_cancels() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/mcp/run.sh");
    let mut command = Command::new(script);
    command
        .env("CODEX_SIDECAR", env!("CARGO_BIN_EXE_codex-sidecar"))
        .env("CODEX_SIDECAR_ADDR", sidecar.addresses[0].to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = within(LIMIT, "the tests in Python", command.output()).await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}", String::from_utf8_lossy(&output.stdout));
    // A run that tests nothing proves nothing.
    assert!(told.contains("\nOK\n") && !told.contains("Ran 0 tests"), "{told}");
    // What the client gave up, the sidecar has ended too, and nothing of it was bound.
    eventually("the end of all turns", || async {
        (sidecar.info().await.counts.unwrap().running_turns == 0).then_some(())
    })
    .await;
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, 0);
}

/// `codex-sidecar mcp` as a client has it that writes its lines itself.
struct Raw {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Lines<BufReader<ChildStdout>>>,
}

impl Raw {
    async fn start(sidecar: &Sidecar, capabilities: Value) -> Raw {
        let mut child = Command::new(env!("CARGO_BIN_EXE_codex-sidecar"))
            .arg("mcp")
            .env("CODEX_SIDECAR_ADDR", sidecar.addresses[0].to_string())
            .current_dir(sidecar.place.work())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut raw = Raw { stdin: child.stdin.take(), stdout: Some(stdout), child };
        let client = json!({ "name": "raw", "version": "1" });
        let params = json!({
            "protocolVersion": "2025-06-18", "capabilities": capabilities, "clientInfo": client,
        });
        raw.ask(0, "initialize", params).await;
        raw.answer(0).await;
        raw.write(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
        raw
    }

    async fn write(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        within(PATIENCE, "a line to be taken", stdin.write_all(format!("{line}\n").as_bytes()))
            .await
            .unwrap();
    }

    async fn ask(&mut self, id: u64, method: &str, params: Value) {
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        self.write(&request.to_string()).await;
    }

    async fn call(&mut self, id: u64, arguments: Value) {
        self.ask(id, "tools/call", json!({ "name": "codex", "arguments": arguments })).await;
    }

    /// The next line that is meant.
    async fn next(&mut self, what: &str, is_meant: impl Fn(&Value) -> bool) -> Value {
        let lines = self.stdout.as_mut().unwrap();
        within(PATIENCE, what, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("a line");
                let line: Value = serde_json::from_str(&line).unwrap();
                if is_meant(&line) {
                    return line;
                }
            }
        })
        .await
    }

    async fn answer(&mut self, id: u64) -> Value {
        self.next("an answer", |line| line["id"] == id && line["method"].is_null()).await
    }

    /// Waits for its end, which must not be that of some timeout.
    async fn end(mut self) {
        const PROMPTLY: Duration = Duration::from_secs(3);
        let status = within(PROMPTLY, "its end", self.child.wait()).await.unwrap();
        assert!(status.success(), "{status}");
    }
}

async fn no_turn_runs(sidecar: &Sidecar) {
    eventually("the end of all turns", || async {
        (sidecar.info().await.counts.unwrap().running_turns == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_is_answered_however_long_or_broken() {
    let sidecar = Sidecar::start().await;
    let mut client = Raw::start(&sidecar, json!({})).await;
    client.write("no JSON").await;
    let wrong = client.next("an error", |line| line["error"].is_object()).await;
    assert_eq!((&wrong["error"]["code"], &wrong["id"]), (&json!(-32700), &Value::Null));
    // Above what a sidecar takes, and above what is read at all.
    client.call(1, json!({ "prompt": "x".repeat(20_000_000) })).await;
    let refused = client.answer(1).await;
    assert_eq!(refused["result"]["isError"], true, "{refused}");
    client.call(2, json!({ "prompt": "x".repeat(70 << 20) })).await;
    let refused = client.answer(2).await;
    assert_eq!(refused["error"]["code"], -32600, "{refused}");
    client.call(3, json!({ "prompt": "hello" })).await;
    let said = client.answer(3).await;
    assert_eq!(said["result"]["isError"], false, "{said}");
    client.stdin = None;
    client.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_is_waited_for_no_longer_than_its_turn() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let endless = json!({ "prompt": "[[run sleep 61]]", "sandbox": "danger-full-access" });
    let begins = |line: &Value| line["params"]["msg"]["type"] == "exec_command_begin";

    let mut client = Raw::start(&sidecar, json!({})).await;
    client.call(1, endless.clone()).await;
    client.next("the command", begins).await;
    client.stdin = None;
    // It still hears what became of its call.
    let stopped = client.answer(1).await;
    assert_eq!(stopped["result"]["isError"], true, "{stopped}");
    client.end().await;
    no_turn_runs(&sidecar).await;

    let mut client = Raw::start(&sidecar, json!({ "elicitation": {} })).await;
    let arguments = json!({
        "cmd": "true", "sandbox_permissions": "require_escalated", "justification": "may I?",
    });
    let prompt = format!("[[tool exec_command {arguments}]]");
    client.call(1, json!({ "prompt": prompt, "approval-policy": "on-request" })).await;
    client.next("a question", |line| line["method"] == "elicitation/create").await;
    client.stdin = None;
    client.end().await;
    no_turn_runs(&sidecar).await;

    // What it reads from is closed, what it writes to stays open.
    let mut client = Raw::start(&sidecar, json!({})).await;
    client.call(1, endless).await;
    client.next("the command", begins).await;
    client.stdout = None;
    client.end().await;
    no_turn_runs(&sidecar).await;
}
