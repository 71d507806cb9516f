//! The command line, as a person or a script uses it: the built binary, its output and its exit
//! codes.

use std::process::Output;
use std::time::Duration;

use crate::support;
use crate::support::binary::{self, Binary};
use crate::support::{Place, processes, prompt};
use assert_cmd::Command;
use serde_json::Value;

/// The binary as a client of `address`.
async fn client(sidecar: &Binary, arguments: &[&str]) -> Output {
    let mut command = binary::command(&sidecar.place);
    command.args(arguments).env("CODEX_SIDECAR_ADDR", &sidecar.address);
    binary::output(&mut command).await
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:#?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    assert!(output.status.success(), "{output:#?}");
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// The binary with nothing of the machine's own configuration.
fn bare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codex-sidecar"));
    command.env_clear().env("HOME", "/nonexistent").timeout(Duration::from_secs(60));
    command
}

#[test]
fn the_configuration_is_printed_with_its_origins_and_without_secrets() {
    let place = Place::new();
    let file = place.path().join("sidecar.toml");
    let content = r#"
        workers = 3
        drain_grace = "5s"
        [limits]
        max_running_turns = 7
        [tools.codex_engineer]
        model = "a-model"
        sandbox_mode = "workspace-write"
    "#;
    std::fs::write(&file, content).unwrap();
    let run = |config: &std::path::Path| {
        let mut command = bare();
        command
            .args(["serve", "--print-config", "--drain-grace", "9s"])
            .env("CODEX_SIDECAR_CONFIG", config);
        command.env("CODEX_SIDECAR_WORKERS", "2").env("CODEX_API_KEY", "sk-canary-printed");
        command.assert().success().get_output().clone()
    };
    let printed = String::from_utf8(run(&file).stdout).unwrap();
    assert!(!printed.contains("canary"), "{printed}");
    let config: toml::Table = toml::from_str(&printed).expect("it is a configuration");
    // The flag beats the environment, which beats the file.
    assert_eq!(config["drain_grace"].as_str(), Some("9s"), "{printed}");
    assert_eq!(config["workers"].as_integer(), Some(2), "{printed}");
    assert_eq!(config["limits"]["max_running_turns"].as_integer(), Some(7), "{printed}");
    assert_eq!(config["tools"]["codex_engineer"]["model"].as_str(), Some("a-model"), "{printed}");
    for origin in ["--drain-grace", "CODEX_SIDECAR_WORKERS", "limits.max_running_turns"] {
        assert!(printed.contains(origin), "{origin}: {printed}");
    }
    // What is printed is what it is: read again it says the same.
    let again = place.path().join("again.toml");
    std::fs::write(&again, &printed).unwrap();
    let again: toml::Table =
        toml::from_str(&String::from_utf8(run(&again).stdout).unwrap()).unwrap();
    assert_eq!(again, config);
}

#[test]
fn every_fault_of_a_configuration_is_told_at_once() {
    let place = Place::new();
    let file = place.path().join("sidecar.toml");
    let content = "
        wokers = 3
        [limits]
        max_running_turns = 0
        [tools.shell]
        model = \"a-model\"
        [tools.codex_engineer]
        sandbox_mode = \"everything\"
    ";
    std::fs::write(&file, content).unwrap();
    let mut command = bare();
    command.args(["serve", "--workers", "65", "--listen", "nowhere"]).arg("--config").arg(&file);
    command.env("CODEX_SIDECAR_DRAIN_GRACE", "soon").env("CODEX_API_KEY", "sk canary");
    let assert = command.assert().code(64);
    let told = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    let faults = [
        "--workers",
        "--listen",
        "CODEX_SIDECAR_DRAIN_GRACE",
        "CODEX_API_KEY",
        "wokers",
        "limits.max_running_turns",
        "tools.shell",
        "tools.codex_engineer.sandbox_mode",
    ];
    for fault in faults {
        assert!(told.contains(fault), "{fault} is not in:\n{told}");
    }
    assert!(!told.contains("canary"), "{told}");
    assert!(assert.get_output().stdout.is_empty());
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    for line in [&[][..], &["no-such-command"], &["completions"], &["completions", "no-such-shell"]]
    {
        bare().args(line).assert().code(2);
    }
    for name in ["contexts", "workers", "turns", "info", "models", "health", "demo", "mcp", "exec"]
    {
        bare().args([name, "--no-such-flag"]).assert().code(2);
    }
    // Of the server it is a part of its configuration.
    bare().args(["serve", "--no-such-flag"]).assert().code(64);
    bare().args(["run", "--addr", "nowhere", "--context", "a", "hello"]).assert().code(64);
    bare().arg("--help").assert().success();
    bare().arg("--version").assert().success();
    bare().args(["run", "--no-such-flag"]).assert().code(2);
    // A usage line shows what has to be given, and not what the environment gives.
    let assert = bare().arg("attach").env("CODEX_SIDECAR_ADDR", "127.0.0.1:1").assert().code(2);
    let told = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(told.contains("Usage: ") && !told.contains("--addr"), "{told}");
    // A script reads why.
    let assert = bare().args(["run", "--json", "--ephemeral", "--turn-timeout", "0", "x"]).assert();
    let told = String::from_utf8(assert.code(2).get_output().stderr.clone()).unwrap();
    let told: Value = serde_json::from_str(&told).expect(&told);
    assert_eq!(told["error"]["exit_status"], 2, "{told}");
    assert!(told["error"]["message"].as_str().unwrap().contains("--turn-timeout"), "{told}");
    // Nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    for arguments in [
        ["health"].as_slice(),
        &["workers"],
        &["contexts", "list"],
        &["run", "--context", "a", "hello"],
    ] {
        let assert = bare().args(arguments).env("CODEX_SIDECAR_ADDR", &address).assert().code(69);
        let told = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert!(told.contains(&address), "{arguments:?}: {told}");
    }
}

#[test]
fn an_address_that_is_taken_is_told_and_nothing_is_left_running() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let place = Place::new();
    let mut command = bare();
    command.args(["serve", "--offline-model", "--listen", &address]);
    command.env("CODEX_HOME", place.codex_home()).env("CODEX_PATH", support::codex_path());
    let assert = command.assert().code(64);
    let told = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(told.contains(&address), "{told}");
    assert_eq!(processes::of_home(&place.codex_home()), []);
}

#[tokio::test]
async fn the_subcommands_work_with_a_running_sidecar() {
    let sidecar = Binary::start().await;
    let health = client(&sidecar, &["health"]).await;
    assert_eq!(stdout(&health).trim(), "SERVING");
    let readiness = ["health", "--service", "codex.sidecar.v1.CodexService"];
    assert_eq!(stdout(&client(&sidecar, &readiness).await).trim(), "SERVING");
    let unknown = client(&sidecar, &["health", "--service", "no.such.Service"]).await;
    assert_eq!(unknown.status.code(), Some(1), "{unknown:#?}");

    // A person reads it, and the answer is there.
    let work = sidecar.place.work().display().to_string();
    let run = |more: &'static [&'static str]| {
        let fixed = ["run", "--context", "cli", "--cd", work.as_str()];
        [fixed.as_slice(), more].concat()
    };
    let output = client(&sidecar, &run(&["hello"])).await;
    // The answer alone is on stdout.
    assert_eq!(stdout(&output), "You said: hello (user messages so far: 1)\n");
    let shown = stderr(&output);
    assert!(shown.contains("turn ") && shown.contains("completed; tokens"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "colours or a clock without a terminal: {shown:?}");
    // A script reads it: the same events as over gRPC.
    let lines = json_lines(&stdout(&client(&sidecar, &run(&["--json", "again"])).await));
    let last = lines.last().unwrap();
    let response = &last["turn_completed"]["final_response"];
    assert_eq!(response, "You said: again (user messages so far: 2)", "{last:#}");
    for (at, line) in lines.iter().enumerate() {
        assert_eq!(line["sequence"].as_u64(), Some(at as u64 + 1), "{line:#}");
    }
    // Also what a command printed in its first moments, which Codex doesn't stream.
    let unconfined = ["--sandbox", "danger-full-access"];
    let command = "[[run echo start; sleep 1; echo end]]";
    let arguments = [run(&[]), unconfined.to_vec(), vec![command]].concat();
    let shown = stderr(&client(&sidecar, &arguments).await);
    for word in ["start", "end"] {
        let lines = shown.lines().filter(|line| line.trim() == word).count();
        assert_eq!(lines, 1, "{word} in {shown}");
    }
    let failed = client(&sidecar, &run(&["[[status 400]]"])).await;
    assert_eq!(failed.status.code(), Some(1), "{failed:#?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("BAD_REQUEST"), "{failed:#?}");
    let missing = sidecar.place.path().join("missing").display().to_string();
    let refused = client(&sidecar, &["run", "--context", "x", "--cd", &missing, "hello"]).await;
    assert_eq!(refused.status.code(), Some(3), "{refused:#?}");
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("WORKING_DIRECTORY_MISSING") && told.contains(&missing), "{told}");
    assert!(told.starts_with("error: --cd ") && !told.contains("thread_options"), "{told}");
    assert_eq!(told.matches(&missing).count(), 1, "told twice: {told}");

    let bound = json_lines(&stdout(&client(&sidecar, &["contexts", "get", "cli", "--json"]).await));
    assert_eq!((&bound[0]["context_id"], &bound[0]["turn_count"]), (&"cli".into(), &4.into()));
    let thread_id = bound[0]["thread_id"].as_str().unwrap();
    let listed = stdout(&client(&sidecar, &["contexts", "list"]).await);
    assert!(listed.contains("cli") && listed.contains(thread_id), "{listed}");
    stdout(&client(&sidecar, &["contexts", "bind", "other", thread_id]).await);
    let told = sidecar.say("other", "hello").await;
    assert_eq!(told.thread_id(), thread_id);
    stdout(&client(&sidecar, &["contexts", "delete", "other"]).await);
    let gone = client(&sidecar, &["contexts", "get", "other"]).await;
    assert_eq!(gone.status.code(), Some(3), "{gone:#?}");
    assert!(String::from_utf8_lossy(&gone.stderr).contains("CONTEXT_NOT_FOUND"), "{gone:#?}");
    let erased = sidecar.say("erased", "hello").await.thread_id().to_owned();
    let told = stdout(&client(&sidecar, &["contexts", "delete", "erased", "--thread"]).await);
    assert_eq!(told, format!("thread {erased} is deleted, and its context with it\n"));
    // In the command's words, for a person and for a script.
    let wrong = client(&sidecar, &["contexts", "bind", "other", "zzz"]).await;
    let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(told.starts_with("error: THREAD: ") && told.lines().count() == 1, "{told}");
    let wrong = client(&sidecar, &["contexts", "get", "other", "--json"]).await;
    let told: Value = serde_json::from_slice(&wrong.stderr).unwrap();
    assert_eq!(told["error"]["reason"], "CONTEXT_NOT_FOUND", "{told}");

    let workers = json_lines(&stdout(&client(&sidecar, &["workers", "--json"]).await));
    assert_eq!((workers.len(), &workers[0]["state"]), (1, &"WORKER_STATE_READY".into()));
    let table = stdout(&client(&sidecar, &["workers"]).await);
    assert!(table.contains(&workers[0]["pid"].to_string()), "{table}");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_key_is_in_no_output() {
    // In the environment under both names, and in a request to a model that echoes it.
    let canary = "sk-canary-7c1f0b";
    let sidecar = Binary::with(|command| {
        command.env("CODEX_API_KEY", canary).env("OPENAI_API_KEY", canary).args(["--log", "debug"]);
    })
    .await;
    let told = sidecar.say("a", "hello").await;
    let failed = sidecar.say("b", "[[status 401]]").await;
    failed.failed();
    let refused = sidecar.refused(prompt("", "hello")).await;
    let worker = sidecar.workers().await.remove(0);
    let command_line = std::fs::read(format!("/proc/{}/cmdline", worker.pid)).unwrap();
    let own_command_line = std::fs::read(format!("/proc/{}/cmdline", sidecar.pid())).unwrap();
    let outputs = [
        ("events", format!("{told:?} {failed:?}")),
        ("refusal", format!("{refused:?}")),
        ("workers", format!("{worker:?}")),
        ("server info", format!("{:?}", sidecar.info().await)),
        ("the worker's arguments", String::from_utf8_lossy(&command_line).into_owned()),
        ("the sidecar's arguments", String::from_utf8_lossy(&own_command_line).into_owned()),
    ];
    for (what, output) in outputs {
        assert!(!output.is_empty() && !output.contains(canary), "{what}: {output}");
    }
    // Killed, so that its end is logged too.
    processes::signal(worker.pid, rustix::process::Signal::KILL);
    sidecar.say("a", "again").await.completed();
    let log = sidecar.log();
    sidecar.stop().await;
    assert!(log.contains("listening on") && !log.contains(canary), "{log}");
    let structured = log.lines().filter(|line| !line.is_empty());
    for line in structured {
        let line: Value = serde_json::from_str(line).expect("off a terminal the log is JSON");
        assert!(line.is_object(), "{line}");
    }
}

#[test]
fn the_demo_shows_that_a_thread_continues() {
    let place = Place::new();
    let mut command = bare();
    command.env_clear().envs(support::environment(&place.user_home()));
    command.arg("demo").env("CODEX_PATH", support::codex_path());
    let assert = command.assert().success();
    let shown = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    for words in
        ["turn 1", "turn 2", "echo hello", "user messages so far: 1", "user messages so far: 2"]
    {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
    // It was in the user's cache, and nothing is left of it.
    let cache = place.user_home().join(".cache");
    let left = std::fs::read_dir(&cache).unwrap().count();
    assert_eq!(left, 0, "{}", cache.display());
}

/// A proxy that takes connections and never answers.
fn black_hole() -> (std::net::TcpListener, String) {
    // The system completes the handshake of whoever comes, for as long as this is there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (listener, address)
}

/// The variables that name a proxy, in both spellings.
const PROXIES: [&str; 6] =
    ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

#[test]
fn the_demo_needs_no_way_around_a_proxy() {
    let (_listener, proxy) = black_hole();
    let mut command = Command::new(env!("CARGO_BIN_EXE_codex-sidecar"));
    command.arg("demo").env("CODEX_PATH", support::codex_path());
    command.env_remove("CODEX_API_KEY").env_remove("OPENAI_API_KEY");
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    for name in PROXIES {
        command.env(name, &proxy);
    }
    let assert = command.timeout(Duration::from_secs(60)).assert().success();
    let shown = String::from_utf8(assert.get_output().stdout.clone()).unwrap();
    assert!(shown.contains("user messages so far: 2"), "{shown}");
}

#[tokio::test]
async fn the_offline_model_is_reached_past_a_proxy_and_what_no_proxy_said_stays() {
    for said in [None, Some(("no_proxy", "example.org"))] {
        let (_listener, proxy) = black_hole();
        let sidecar = Binary::with(|command| {
            command.env_remove("NO_PROXY").env_remove("no_proxy");
            command.envs(PROXIES.map(|name| (name, &proxy))).envs(said);
        })
        .await;
        sidecar.say("a", "hello").await.completed();
        let worker = sidecar.workers().await[0].pid;
        let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let variables: Vec<&str> = environment.split('\0').collect();
        for name in ["NO_PROXY", "no_proxy"] {
            let before = said.map(|(_, value)| format!("{value},")).unwrap_or_default();
            let expected = format!("{name}={before}127.0.0.1,localhost,::1");
            assert!(variables.contains(&expected.as_str()), "{expected}: {variables:#?}");
        }
        sidecar.stop().await;
    }
}

#[test]
fn a_demo_that_gets_no_answer_in_time_fails_and_says_so() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codex-sidecar"));
    command.args(["demo", "--turn-timeout", "1ms"]).env("CODEX_PATH", support::codex_path());
    command.env_remove("CODEX_API_KEY").env_remove("OPENAI_API_KEY");
    let assert = command.timeout(Duration::from_secs(60)).assert().code(1);
    let told = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(told.contains("turn 1 failed: TURN_TIMEOUT") && told.contains("1ms"), "{told}");
}
