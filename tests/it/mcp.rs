//! MCP servers of the CLI's own configuration: what callers are told of them, how long they are waited
//! for, how they come back, and that none is left behind.

use std::path::PathBuf;
use std::time::Duration;

use crate::support::binary::Binary;
use crate::support::{Client, Place, Sidecar, Told, ephemeral, eventually, processes, prompt};
use codex_sidecar::pb;
use codex_sidecar::pb::McpServerState::{Failed, Ready};
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::turn_event::Event;
use rustix::process::Signal;
use tonic::Code;

/// An MCP server: `ring` may change something, as far as Codex knows, and `look` only reads. It notes
/// its process in `pids`. Its behaviour is given as `NAME=VALUE`: before it answers `initialize` it
/// takes some seconds (`delay`) or waits for a file (`until`); where another file is, it ends at its
/// start (`unless`).
const SERVER: &str = r#"
import json, os, sys, time
name, pids = sys.argv[1], sys.argv[2]
how = dict(argument.split("=", 1) for argument in sys.argv[3:])
open(os.path.join(pids, "%s.%d" % (name, os.getpid())), "w").close()
if os.path.exists(how.get("unless", "")):
    sys.exit(3)
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params") or {}
    if method == "initialize":
        time.sleep(float(how.get("delay", 0)))
        while not os.path.exists(how.get("until", "/")):
            time.sleep(0.02)
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": name, "version": "1"}}
    elif method == "tools/list":
        schema = {"type": "object", "properties": {}}
        result = {"tools": [
            {"name": "ring", "description": "Rings", "inputSchema": schema},
            {"name": "look", "description": "Looks", "inputSchema": schema,
             "annotations": {"readOnlyHint": True}}]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": str(os.getpid())}]}
    else:
        result = {}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"#;

/// Lets `ring` be called in any sandbox.
const APPROVED: &str = "default_tools_approval_mode = \"approve\"";

/// The same of a server that each turn waits for, however slow the machine is.
const APPROVED_AND_REQUIRED: &str = "default_tools_approval_mode = \"approve\"\nrequired = true";

/// The servers of one sidecar.
struct Servers {
    directory: PathBuf,
    codex_home: PathBuf,
    config: String,
}

impl Servers {
    fn new(place: &Place) -> Servers {
        let directory = place.path().join("mcp");
        std::fs::create_dir_all(directory.join("pids")).unwrap();
        std::fs::write(directory.join("server.py"), SERVER).unwrap();
        Servers { directory, codex_home: place.codex_home(), config: String::new() }
    }

    /// Configures one more.
    fn with(mut self, name: &str, how: &[&str], settings: &str) -> Servers {
        let (server, pids) = (self.directory.join("server.py"), self.directory.join("pids"));
        let fixed = [server.to_str().unwrap(), name, pids.to_str().unwrap()];
        let args = [&fixed, how].concat();
        self.config +=
            &format!("[mcp_servers.{name}]\ncommand = \"python3\"\nargs = {args:?}\n{settings}\n");
        std::fs::write(self.codex_home.join("config.toml"), &self.config).unwrap();
        self
    }

    /// The processes of a server that were ever started.
    fn started(&self, name: &str) -> Vec<u32> {
        let entries = std::fs::read_dir(self.directory.join("pids")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter_map(|file| {
                file.strip_prefix(&format!("{name}.")).map(|pid| pid.parse().unwrap())
            })
            .collect()
    }

    /// Those that run.
    fn running(&self, name: &str) -> Vec<u32> {
        // The number may be another process's by now.
        let is_ours = |pid: &u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            processes::is_alive(*pid) && String::from_utf8_lossy(&command).contains("server.py")
        };
        self.started(name).into_iter().filter(is_ours).collect()
    }

    /// Kills it, and waits until Codex has seen that: until it has taken its child's exit status.
    async fn kill(&self, name: &str) {
        for pid in self.running(name) {
            processes::signal(pid, Signal::KILL);
            let entry = PathBuf::from(format!("/proc/{pid}"));
            eventually("its funeral", async || (!entry.exists()).then_some(())).await;
        }
    }

    async fn gone(&self, name: &str) {
        eventually(&format!("the end of {name}"), async || {
            self.running(name).is_empty().then_some(())
        })
        .await;
    }
}

/// A turn under `never` in a sandbox.
fn sandboxed(context: &str, words: &str) -> pb::RunTurnRequest {
    let mut request = prompt(context, words);
    let options = request.thread_options.get_or_insert_default();
    options.set_sandbox_mode(pb::SandboxMode::ReadOnly);
    options.set_approval_policy(pb::ApprovalPolicy::Never);
    request
}

/// The calls of a turn: server, tool, and the answer or the error.
fn calls(told: &Told) -> Vec<(&str, &str, Result<String, String>)> {
    let calls = told.items().into_iter().filter_map(|(_, kind)| match kind {
        Kind::McpToolCall(call) => Some(call),
        _ => None,
    });
    calls
        .map(|call| {
            let result = match call.status() {
                pb::McpToolCallStatus::Completed => {
                    let result: serde_json::Value =
                        serde_json::from_str(&call.result_json).unwrap();
                    Ok(result["content"][0]["text"].as_str().unwrap().to_owned())
                }
                _ => Err(call.error_message.clone()),
            };
            (call.server.as_str(), call.tool.as_str(), result)
        })
        .collect()
}

/// The process that answered the only call of a turn.
fn answered_by(told: &Told) -> u32 {
    let calls = calls(told);
    assert_eq!(calls.len(), 1, "{:#?}", told.events);
    let answer = calls[0].2.as_ref();
    answer.unwrap_or_else(|error| panic!("{error}: {:#?}", told.events)).parse().unwrap()
}

/// A turn that called `ring` of a server that Codex does not wait for: on a slow machine not the first.
async fn rung(sidecar: &Client, context: &str, server: &str) -> Told {
    let script = format!("[[tool {server}.ring]] [[say done]]");
    eventually(&format!("{server} rings"), async || {
        let told = sidecar.run(sandboxed(context, &script)).await;
        let has_rung = calls(&told).iter().any(|(_, _, result)| result.is_ok());
        has_rung.then_some(told)
    })
    .await
}

/// What a turn was told of a server, in order.
fn states(told: &Told, server: &str) -> Vec<pb::McpServerState> {
    let statuses = told.all().filter_map(|event| match event {
        Event::McpServerStatus(status) if status.server == server => Some(status.state()),
        _ => None,
    });
    statuses.collect()
}

/// The warnings that name a server.
fn warnings<'a>(told: &'a Told, server: &str) -> Vec<&'a pb::Warning> {
    let quoted = format!("{server:?}");
    let warnings = told.warnings().into_iter();
    warnings
        .filter(|warning| warning.code == "MCP_SERVER_FAILED" && warning.message.contains(&quoted))
        .collect()
}

#[tokio::test]
async fn in_a_sandbox_under_never_a_tool_needs_a_hint_or_the_approval_of_the_configuration() {
    let place = Place::new();
    let servers = Servers::new(&place).with("plain", &[], "required = true").with(
        "approved",
        &[],
        APPROVED_AND_REQUIRED,
    );
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;

    let script = "[[tool plain.ring]] [[tool plain.look]] [[tool approved.ring]] [[say done]]";
    for mode in [pb::SandboxMode::ReadOnly, pb::SandboxMode::WorkspaceWrite] {
        let mut request = sandboxed("a", script);
        request.thread_options.get_or_insert_default().set_sandbox_mode(mode);
        let told = sidecar.run(request).await;
        assert_eq!(told.final_response(), "done");
        let calls = calls(&told);
        assert_eq!(calls.len(), 3, "{calls:?}");
        let error = calls[0].2.as_ref().unwrap_err();
        assert!(error.contains("requires approval") && error.contains("never"), "{calls:?}");
        assert_eq!((calls[1].1, calls[1].2.is_ok()), ("look", true), "{calls:?}");
        assert_eq!((calls[2].0, calls[2].2.is_ok()), ("approved", true), "{calls:?}");
    }
    let mut outside = sandboxed("a", "[[tool plain.ring]] [[say done]]");
    let options = outside.thread_options.get_or_insert_default();
    options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    assert!(servers.running("plain").contains(&answered_by(&sidecar.run(outside).await)));
    let _place = sidecar.stop().await;
    servers.gone("plain").await;
}

#[tokio::test]
async fn a_server_that_does_not_start_is_told_to_its_turns_and_to_the_log() {
    let place = Place::new();
    let always = place.path().join("mcp/server.py");
    let unless = format!("unless={}", always.display());
    let servers =
        Servers::new(&place).with("good", &[], "required = true").with("bad", &[&unless], "");
    let config = servers.config.clone()
        + "[mcp_servers.missing]\ncommand = \"/no/such/program\"\n\
           [mcp_servers.web]\nurl = \"http://canary:canary@127.0.0.1:1/mcp?token=canary\"\n";
    std::fs::write(place.codex_home().join("config.toml"), config).unwrap();
    let sidecar = Binary::cold(place, |_| {}).await;
    sidecar.ready().await;

    let new = told_of_failures(&sidecar, sandboxed("a", "[[hang]]")).await;
    let again = told_of_failures(&sidecar, sandboxed("a", "[[hang]]")).await;
    let alone = pb::RunTurnRequest { ephemeral: true, ..sandboxed("", "[[hang]]") };
    let alone = told_of_failures(&sidecar, alone).await;
    assert_eq!(again.thread_id(), new.thread_id());
    for told in [&new, &again, &alone] {
        assert!(warnings(told, "good").is_empty(), "{:#?}", told.events);
        for event in told.all() {
            if let Event::McpServerStatus(status) = event {
                let has_error = !status.error.is_empty();
                assert_eq!(has_error, status.state() == Failed, "{:#?}", told.events);
            }
        }
    }
    // Whoever loads a thread is told of all its servers.
    for told in [&new, &alone] {
        assert_eq!(states(told, "good").last(), Some(&Ready), "{:#?}", told.events);
    }
    let error = warnings(&new, "missing")[0].message.clone();
    assert!(error.contains("No such file or directory"), "{error}");

    let log = sidecar.log();
    for server in ["bad", "missing", "web"] {
        let is_told = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["level"] == "WARN" && line["server"] == server && line["error"] != ""
        };
        assert!(log.lines().any(is_told), "{server}: {log}");
    }
    let events = format!("{new:?}{again:?}{alone:?}");
    assert!(events.contains("127.0.0.1:1/mcp"), "{events}");
    let shown = log.lines().filter(|line| !line.contains("stderr")).collect::<String>();
    assert!(!events.contains("canary") && !shown.contains("canary"), "{events}\n{shown}");
    let _place = sidecar.stop().await;
    servers.gone("good").await;
}

/// A turn that hangs until it was told that `bad`, `missing` and `web` are not there, and was stopped then.
async fn told_of_failures(sidecar: &Client, request: pb::RunTurnRequest) -> Told {
    let mut turn = sidecar.begin(request).await;
    for server in ["bad", "missing", "web"] {
        let quoted = format!("{server:?}");
        let is_told = |event: &pb::TurnEvent| match &event.event {
            Some(Event::Warning(warning)) => {
                warning.code == "MCP_SERVER_FAILED" && warning.message.contains(&quoted)
            }
            _ => false,
        };
        while !turn.events.iter().any(is_told) {
            turn.try_next()
                .await
                .unwrap()
                .unwrap_or_else(|| panic!("the turn ended before {server}"));
        }
    }
    sidecar.interrupt(turn.turn_id()).await.unwrap();
    let told = turn.rest().await;
    for server in ["bad", "missing", "web"] {
        assert!(states(&told, server).contains(&Failed), "{server}: {:#?}", told.events);
    }
    told
}

#[tokio::test]
async fn a_server_that_ended_between_two_turns_is_there_for_the_next() {
    let place = Place::new();
    let broken = place.path().join("broken");
    let unless = format!("unless={}", broken.display());
    let servers =
        Servers::new(&place).with("desk", &[], APPROVED).with("shelf", &[&unless], APPROVED);
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let ring = "[[tool desk.ring]] [[say done]]";
    let first = rung(&sidecar, "a", "desk").await;
    rung(&sidecar, "a", "shelf").await;
    let other = answered_by(&rung(&sidecar, "b", "desk").await);
    // One that goes on is not started anew.
    let second = sidecar.run(sandboxed("a", ring)).await;
    assert_eq!(answered_by(&second), answered_by(&first));

    for _ in 0..2 {
        processes::signal(answered_by(&sidecar.run(sandboxed("a", ring)).await), Signal::KILL);
        let healed = sidecar.run(sandboxed("a", ring)).await;
        assert_eq!(healed.thread_id(), first.thread_id());
        assert!(servers.running("desk").contains(&answered_by(&healed)), "{:#?}", healed.events);
        assert_eq!(states(&healed, "desk").last(), Some(&Ready), "{:#?}", healed.events);
        assert!(warnings(&healed, "desk").is_empty(), "{:#?}", healed.events);
    }
    let unharmed = sidecar.run(sandboxed("b", ring)).await;
    assert_eq!(answered_by(&unharmed), other, "another thread's server");

    // One that can't come back is told to every turn, until it can.
    std::fs::write(&broken, "").unwrap();
    servers.kill("shelf").await;
    for _ in 0..2 {
        let without = sidecar.run(sandboxed("a", ring)).await;
        assert!(states(&without, "shelf").contains(&Failed), "{:#?}", without.events);
        assert!(!warnings(&without, "shelf").is_empty(), "{:#?}", without.events);
    }
    std::fs::remove_file(&broken).unwrap();
    let with = rung(&sidecar, "a", "shelf").await;
    assert!(servers.running("shelf").contains(&answered_by(&with)), "{:#?}", with.events);
    let counts = ["desk", "shelf"].map(|name| servers.running(name).len());
    assert!(counts.iter().all(|count| *count <= 2), "one of each for each thread: {counts:?}");
    let _place = sidecar.stop().await;
    servers.gone("desk").await;
    servers.gone("shelf").await;
}

#[tokio::test]
async fn no_turn_runs_without_a_required_server() {
    let place = Place::new();
    let broken = place.path().join("broken");
    let unless = format!("unless={}", broken.display());
    let servers =
        Servers::new(&place).with("desk", &[&unless], APPROVED_AND_REQUIRED).with("good", &[], "");
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let ring = "[[tool desk.ring]] [[say done]]";

    std::fs::write(&broken, "").unwrap();
    let refused = sidecar.refused(sandboxed("a", ring)).await;
    refused.assert(Code::FailedPrecondition, "CODEX_REFUSED");
    assert!(refused.message.contains("desk"), "{refused:#?}");
    assert_eq!(servers.started("desk").len(), 1, "it was tried once");
    servers.gone("good").await;
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");

    std::fs::remove_file(&broken).unwrap();
    let first = sidecar.run(sandboxed("a", ring)).await;
    answered_by(&first);
    std::fs::write(&broken, "").unwrap();
    servers.kill("desk").await;
    let refused = sidecar.refused(sandboxed("a", ring)).await;
    refused.assert(Code::FailedPrecondition, "CODEX_REFUSED");
    assert!(refused.message.contains("desk"), "{refused:#?}");
    servers.gone("good").await;

    std::fs::remove_file(&broken).unwrap();
    let last = sidecar.run(sandboxed("a", ring)).await;
    assert_eq!(last.thread_id(), first.thread_id());
    answered_by(&last);
    let _place = sidecar.stop().await;
    servers.gone("desk").await;
}

#[tokio::test]
async fn a_required_server_may_take_as_long_as_it_is_allowed_to() {
    let place = Place::new();
    let required = format!("{APPROVED_AND_REQUIRED}\nstartup_timeout_sec = 60");
    let servers = Servers::new(&place).with("slow", &["delay=3"], &required);
    let sidecar = Sidecar::in_place(place, |_, config| {
        // Far less than the server takes.
        config.worker.limits.request_timeout = Duration::from_secs(1);
    })
    .await;
    let ring = "[[tool slow.ring]] [[say done]]";
    let first = sidecar.run(sandboxed("a", ring)).await;
    answered_by(&first);
    assert_eq!(states(&first, "slow").last(), Some(&Ready), "{:#?}", first.events);
    assert_eq!(servers.started("slow").len(), 1, "it was started once");

    // Loaded anew: what the sidecar itself asks then starts none.
    let mut other = sandboxed("a", ring);
    other.thread_options.get_or_insert_default().base_instructions = Some("Be brief.".to_owned());
    let second = sidecar.run(other).await;
    assert_eq!(second.thread_id(), first.thread_id());
    answered_by(&second);
    assert_eq!(servers.started("slow").len(), 2, "it was started once more");
    assert_eq!(servers.running("slow").len(), 1, "the first one is gone");
    let _place = sidecar.stop().await;
    servers.gone("slow").await;
}

#[tokio::test]
async fn a_thread_that_its_turn_did_not_wait_for_leaves_no_server() {
    let place = Place::new();
    let gate = place.path().join("gate");
    let until = format!("until={}", gate.display());
    let required = "required = true\nstartup_timeout_sec = 60";
    let servers = Servers::new(&place).with("slow", &[&until], required);
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let is_starting = async |count: usize| {
        eventually("the server", async || (servers.started("slow").len() == count).then_some(()))
            .await;
    };
    let open = || std::fs::write(&gate, "").unwrap();
    let close = || std::fs::remove_file(&gate).unwrap();

    // Out of time.
    let mut request = sandboxed("a", "hello");
    let turn_timeout = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    request.turn_options = Some(pb::TurnOptions { turn_timeout, ..Default::default() });
    let told = sidecar.run(request).await;
    assert_eq!(told.failed().reason, "TURN_TIMEOUT");
    assert_eq!(servers.running("slow").len(), 1, "it is still being started");
    open();
    servers.gone("slow").await;
    close();

    // The caller has gone, and its turn with it.
    let (codex, request) = (sidecar.codex(), sidecar.at_work(ephemeral("hello")));
    let caller = tokio::spawn(async move { codex.clone().run_turn(request).await.map(drop) });
    is_starting(2).await;
    caller.abort();
    eventually("the end of the turn", async || {
        let counts = sidecar.info().await.counts.unwrap();
        (counts.running_turns == 0).then_some(())
    })
    .await;
    open();
    servers.gone("slow").await;

    // Resumed for a turn that does not come to it.
    sidecar.say("a", "hello").await.completed();
    assert_eq!(servers.running("slow").len(), 1);
    close();
    let mut other = sandboxed("a", "hello");
    other.thread_options.get_or_insert_default().base_instructions = Some("Be brief.".to_owned());
    other.turn_options = Some(pb::TurnOptions { turn_timeout, ..Default::default() });
    assert_eq!(sidecar.run(other).await.failed().reason, "TURN_TIMEOUT");
    open();
    servers.gone("slow").await;
    assert_eq!(servers.started("slow").len(), 4, "each was started once");

    // None of that is in the way of the next.
    let last = sidecar.say("a", "again").await;
    assert_eq!(last.final_response(), "You said: again (user messages so far: 2)");
    let _place = sidecar.stop().await;
    servers.gone("slow").await;
}

#[tokio::test]
async fn with_a_thread_its_servers_go() {
    let place = Place::new();
    let servers = Servers::new(&place).with("desk", &[], APPROVED_AND_REQUIRED);
    let sidecar = Sidecar::in_place(place, |_, config| {
        config.pool.max_turns_per_worker = Some(4);
    })
    .await;
    let ring = "[[tool desk.ring]] [[say done]]";
    let count = async |wanted: usize| {
        eventually(&format!("{wanted} servers"), async || {
            (servers.running("desk").len() == wanted).then_some(())
        })
        .await;
    };

    answered_by(&sidecar.run(pb::RunTurnRequest { ephemeral: true, ..sandboxed("", ring) }).await);
    count(0).await;

    let told = sidecar.run(sandboxed("a", ring)).await;
    assert_eq!(servers.running("desk"), [answered_by(&told)]);
    delete(&sidecar, "a").await;
    count(0).await;
    // The thread itself is there.
    let mut request = sandboxed("b", ring);
    request.thread_id = told.thread_id().to_owned();
    answered_by(&sidecar.run(request).await);
    count(1).await;

    // The fourth turn is the worker's last.
    let before = sidecar.workers().await[0].pid;
    sidecar.run(sandboxed("c", ring)).await.completed();
    eventually("the next worker", async || {
        (sidecar.workers().await[0].pid != before).then_some(())
    })
    .await;
    count(0).await;
    let _place = sidecar.stop().await;
}

async fn delete(client: &Client, context: &str) {
    let request = pb::DeleteContextRequest { context_id: context.to_owned(), ..Default::default() };
    client.codex().delete_context(request).await.unwrap();
}
