//! What a turn may do: no more than it asked for, whatever an earlier turn or the configuration has,
//! and what Codex says that came into force is held against it.

use std::path::Path;

use crate::support::{Place, Sidecar, Told, desk, processes, prompt, with_options};
use codex_sidecar::parts::config::ToolDefaults;
use codex_sidecar::parts::model::options::ThreadOptions;
use codex_sidecar::parts::registry::StatePath;
use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use serde_json::json;
use tonic::Code;

/// A turn that is never asked for approval, in this sandbox.
fn never(context: &str, words: &str, sandbox: pb::SandboxMode) -> pb::RunTurnRequest {
    with_options(prompt(context, words), |options| {
        options.set_sandbox_mode(sandbox);
        options.set_approval_policy(pb::ApprovalPolicy::Never);
    })
}

/// A turn that is never asked for approval, under this profile; under the configuration's where the
/// name is empty.
fn under(context: &str, words: &str, profile: &str) -> pb::RunTurnRequest {
    with_options(prompt(context, words), |options| {
        options.permission_profile = profile.to_owned();
        options.set_approval_policy(pb::ApprovalPolicy::Never);
    })
}

fn with_config_toml(text: &str) -> Place {
    let place = Place::new();
    std::fs::write(place.codex_home().join("config.toml"), text).unwrap();
    place
}

// ---- MCP tools ----

const WIPE: &str = "[[tool desk.wipe {}]] [[say done]]";

/// A sidecar whose CODEX_HOME has a server with a tool that says of itself that it destroys, and
/// besides this configuration.
async fn with_wiper(config: &str) -> Sidecar {
    let place = Place::new();
    let wipe = json!({
        "name": "wipe", "description": "Wipes", "annotations": { "destructiveHint": true },
        "inputSchema": { "type": "object", "properties": {} },
    });
    let desk = desk(&place, &wipe, "wiped");
    std::fs::write(place.codex_home().join("config.toml"), format!("{config}\n{desk}")).unwrap();
    Sidecar::in_place(place, |_, _| {}).await
}

/// Whether the tool ran.
fn has_wiped(told: &Told) -> bool {
    assert_eq!(told.final_response(), "done");
    let (_, call) = told.item("a call of the tool", |kind| match kind {
        Kind::McpToolCall(call) => Some(call),
        _ => None,
    });
    match call.status() {
        pb::McpToolCallStatus::Completed => true,
        pb::McpToolCallStatus::Failed => false,
        other => panic!("{other:?}: {call:#?}"),
    }
}

#[tokio::test]
async fn a_tool_that_one_turn_may_call_is_denied_to_the_next_that_may_not() {
    use pb::SandboxMode::{DangerFullAccess, ReadOnly, WorkspaceWrite};
    let sidecar = with_wiper("").await;
    let wipes = async |context: &str, sandbox: pb::SandboxMode| {
        has_wiped(&sidecar.run(never(context, WIPE, sandbox)).await)
    };
    assert!(!wipes("fresh", ReadOnly).await);
    for round in 0..4 {
        let context = format!("wide-{round}");
        let told = [
            wipes(&context, DangerFullAccess).await,
            wipes(&context, ReadOnly).await,
            wipes(&context, DangerFullAccess).await,
            wipes(&context, WorkspaceWrite).await,
        ];
        assert_eq!(told, [true, false, true, false], "{context}");
        // The other way round, which needs no new loading.
        let context = format!("narrow-{round}");
        let told = [
            wipes(&context, ReadOnly).await,
            wipes(&context, DangerFullAccess).await,
            wipes(&context, ReadOnly).await,
        ];
        assert_eq!(told, [false, true, false], "{context}");
    }
    // All of one context went on with one thread.
    let thread = sidecar.context("wide-0").await.unwrap().thread_id;
    let told = sidecar.run(never("wide-0", "how many?", ReadOnly)).await;
    assert_eq!(told.thread_id(), thread);
    assert!(told.final_response().contains("messages so far: 5"), "{}", told.final_response());
    sidecar.stop().await;
}

#[tokio::test]
async fn a_tool_that_the_configuration_allows_is_denied_to_a_turn_that_may_not_call_it() {
    use pb::SandboxMode::{DangerFullAccess, ReadOnly};
    let sidecar =
        with_wiper("sandbox_mode = \"danger-full-access\"\napproval_policy = \"never\"").await;
    // Its MCP servers are started before its first turn: not with what the configuration says.
    for round in 0..4 {
        let context = format!("c{round}");
        assert!(!has_wiped(&sidecar.run(never(&context, WIPE, ReadOnly)).await));
        assert!(has_wiped(&sidecar.run(prompt(&context, WIPE)).await), "as configured");
        assert!(!has_wiped(&sidecar.run(never(&context, WIPE, ReadOnly)).await));
    }
    // A worker that comes anew takes the thread from its rollout, whose last turn had everything.
    assert!(has_wiped(&sidecar.run(never("c0", WIPE, DangerFullAccess)).await));
    let worker = sidecar.workers().await.remove(0);
    processes::signal(worker.pid, rustix::process::Signal::KILL);
    assert!(!has_wiped(&sidecar.run(never("c0", WIPE, ReadOnly)).await));
    sidecar.stop().await;
}

// ---- Permission profiles ----

const PROFILES: &str = r#"
default_permissions = "outbox"
[permissions.outbox]
extends = ":read-only"
[permissions.outbox.filesystem.":workspace_roots"]
"out" = "write"
[permissions.desk]
extends = ":read-only"
[permissions.desk.filesystem.":workspace_roots"]
"desk" = "write"
"#;

/// Tries to write into three directories of the working directory, and says which the sandbox let it.
const WRITE: &str = "[[run for d in out desk .; do touch $d/x 2>/dev/null && echo wrote $d; done; \
                     true]] [[say done]]";

fn wrote(told: &Told) -> Vec<String> {
    assert_eq!(told.final_response(), "done");
    let output = &told.command().aggregated_output;
    let mut wrote: Vec<String> =
        output.lines().filter_map(|line| line.strip_prefix("wrote ")).map(str::to_owned).collect();
    wrote.sort();
    wrote
}

/// Whether Codex's sandbox works here at all: it needs namespaces, which a container may not allow.
async fn can_sandbox(sidecar: &Sidecar) -> bool {
    let told = sidecar.run(never("probe", "[[run echo works]]", pb::SandboxMode::ReadOnly)).await;
    let works = told.command().aggregated_output.contains("works");
    if !works {
        eprintln!("skipped: Codex's sandbox does not work here: {:#?}", told.command());
    }
    works
}

fn make_directories(work: &Path) {
    for directory in ["out", "desk"] {
        std::fs::create_dir(work.join(directory)).unwrap();
    }
}

#[tokio::test]
async fn a_profile_of_the_configuration_stays_in_force_and_one_of_the_request_takes_its_place() {
    use pb::SandboxMode::{ReadOnly, WorkspaceWrite};
    let place = with_config_toml(PROFILES);
    make_directories(&place.work());
    let sidecar = Sidecar::in_place(place, |_, config| {
        let thread_options = ThreadOptions {
            permission_profile: Some("desk".to_owned()),
            ..ThreadOptions::default()
        };
        let tool = ToolDefaults { thread_options, ..ToolDefaults::default() };
        config.tools.insert("codex_desk".to_owned(), tool);
    })
    .await;
    if !can_sandbox(&sidecar).await {
        return;
    }
    let run = async |request: pb::RunTurnRequest| wrote(&sidecar.run(request).await);
    // Each after each other one, in both orders, on one thread.
    for round in 0..2 {
        assert_eq!(run(under("a", WRITE, "")).await, ["out"], "the configuration's, {round}");
        assert_eq!(run(under("a", WRITE, "desk")).await, ["desk"], "the request's, {round}");
        assert_eq!(run(under("a", WRITE, "")).await, ["out"], "after the request's, {round}");
        let sandboxed = never("a", WRITE, WorkspaceWrite);
        assert_eq!(run(sandboxed).await, [".", "desk", "out"], "a sandbox, {round}");
        assert_eq!(run(under("a", WRITE, "desk")).await, ["desk"], "after a sandbox, {round}");
        assert!(run(never("a", WRITE, ReadOnly)).await.is_empty(), "read-only, {round}");
    }
    // Of a tool; by one of Codex's own names; from a thread's first turn on.
    let tool = pb::RunTurnRequest { tool_name: "codex_desk".to_owned(), ..under("b", WRITE, "") };
    assert_eq!(run(tool.clone()).await, ["desk"]);
    let beaten = with_options(tool, |options| options.set_sandbox_mode(ReadOnly));
    assert!(run(beaten).await.is_empty(), "the request beats the tool");
    assert_eq!(run(under("c", WRITE, ":workspace")).await, [".", "desk", "out"]);
    assert!(run(under("c", WRITE, ":read-only")).await.is_empty());
    // Also when the thread comes from its rollout.
    let worker = sidecar.workers().await.remove(0);
    processes::signal(worker.pid, rustix::process::Signal::KILL);
    assert_eq!(run(under("c", WRITE, "")).await, ["out"]);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_profile_that_is_not_there_is_refused_by_its_name() {
    let sidecar = Sidecar::in_place(with_config_toml(PROFILES), |_, _| {}).await;
    let refused = sidecar.refused(under("a", "hello", "hologram")).await;
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert_eq!(refused.field_paths(), ["thread_options.permission_profile"]);
    assert!(refused.message.contains("hologram") && refused.message.contains("outbox"));
    let thread = sidecar.run(under("a", "hello", "desk")).await.thread_id().to_owned();
    // Of a thread that is there, too, and it goes on.
    sidecar
        .refused(under("a", "hello", "hologram"))
        .await
        .assert(Code::InvalidArgument, "INVALID_INPUT");
    assert_eq!(sidecar.run(under("a", "again", "desk")).await.thread_id(), thread);

    let both = with_options(under("a", "hello", "desk"), |options| {
        options.set_sandbox_mode(pb::SandboxMode::ReadOnly);
    });
    let refused = sidecar.refused(both).await;
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert_eq!(
        refused.field_paths(),
        ["thread_options.permission_profile", "thread_options.sandbox_mode"]
    );
    sidecar.stop().await;
}

#[tokio::test]
async fn options_of_the_sandbox_are_told_to_be_ignored_under_a_profile() {
    let sidecar = Sidecar::in_place(with_config_toml(PROFILES), |_, _| {}).await;
    let elsewhere = sidecar.place.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    for (profile, words) in [("", "first"), ("desk", "second")] {
        let request = with_options(under("a", words, profile), |options| {
            options.network_access_enabled = Some(true);
            options.additional_directories = vec![elsewhere.display().to_string()];
        });
        let told = sidecar.run(request).await;
        let [warning] = told.warnings()[..] else { panic!("{:?}", told.warnings()) };
        assert_eq!(warning.code, "SANDBOX_OPTIONS_IGNORED");
        for named in ["network_access_enabled", "additional_directories"] {
            assert!(warning.message.contains(named), "{warning:?}");
        }
    }
    assert!(sidecar.run(under("a", "third", "desk")).await.warnings().is_empty());
    sidecar.stop().await;
}

#[tokio::test]
async fn no_directory_is_marked_as_trusted_whatever_is_asked_for() {
    use pb::SandboxMode::{DangerFullAccess, ReadOnly, WorkspaceWrite};
    let sidecar = Sidecar::in_place(with_config_toml(PROFILES), |_, _| {}).await;
    for (at, sandbox) in
        [WorkspaceWrite, DangerFullAccess, ReadOnly, WorkspaceWrite].into_iter().enumerate()
    {
        sidecar.run(never("one", "hello", sandbox)).await;
        sidecar.run(never(&format!("c{at}"), "hello", sandbox)).await;
    }
    sidecar.run(under("profile", "hello", ":workspace")).await;
    let config = std::fs::read_to_string(sidecar.place.codex_home().join("config.toml")).unwrap();
    assert_eq!(config, PROFILES);
    sidecar.stop().await;
}

// ---- What came into force ----

#[tokio::test]
async fn the_server_tells_whether_settings_are_verified() {
    let real = Sidecar::start().await;
    assert!(real.info().await.settings_verified);
    real.stop().await;
}

// ---- Instructions and summaries ----

#[tokio::test]
async fn developer_instructions_of_a_later_turn_are_told_to_be_ignored() {
    let sidecar = Sidecar::start().await;
    let with = |context: &str, instructions: &str| {
        with_options(prompt(context, "[[show /input]]"), |options| {
            options.developer_instructions = Some(instructions.to_owned());
        })
    };
    let codes = |told: &Told| {
        told.warnings().iter().map(|warning| warning.code.clone()).collect::<Vec<_>>()
    };
    let ignored = ["DEVELOPER_INSTRUCTIONS_IGNORED"];
    let first = sidecar.run(with("a", "Answer in Latin.")).await;
    assert!(codes(&first).is_empty(), "{:?}", first.warnings());
    assert!(first.final_response().contains("Answer in Latin."));
    let same = sidecar.run(with("a", "Answer in Latin.")).await;
    assert!(codes(&same).is_empty(), "{:?}", same.warnings());
    let other = sidecar.run(with("a", "Answer in Greek.")).await;
    assert_eq!(codes(&other), ignored);
    assert!(!other.final_response().contains("Answer in Greek."), "then they need no warning");
    assert!(codes(&sidecar.run(prompt("a", "hello")).await).is_empty());
    // The thread was begun without any.
    sidecar.run(prompt("b", "hello")).await;
    assert_eq!(codes(&sidecar.run(with("b", "Answer in Greek.")).await), ignored);
    // It is remembered when the worker is lost, and when the sidecar is; not by one that keeps nothing.
    let worker = sidecar.workers().await.remove(0);
    processes::signal(worker.pid, rustix::process::Signal::KILL);
    assert!(codes(&sidecar.run(with("a", "Answer in Latin.")).await).is_empty());
    let thread = first.thread_id().to_owned();
    let place = sidecar.stop().await;
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let explicit = |instructions: &str| pb::RunTurnRequest {
        thread_id: thread.clone(),
        ..with("a", instructions)
    };
    assert!(codes(&sidecar.run(explicit("Answer in Latin.")).await).is_empty());
    assert_eq!(codes(&sidecar.run(explicit("Answer in Greek.")).await), ignored);
    let place = sidecar.stop().await;
    let sidecar = Sidecar::in_place(place, |_, config| {
        config.state.path = Some(StatePath::Memory);
    })
    .await;
    assert_eq!(codes(&sidecar.run(explicit("Answer in Latin.")).await), ignored);
    assert!(codes(&sidecar.run(explicit("Answer in Latin.")).await).is_empty(), "told once");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_summary_of_one_turn_is_not_the_next_ones_also_not_after_a_restart() {
    let sidecar = Sidecar::start().await;
    let summary = async |sidecar: &Sidecar, request: pb::RunTurnRequest| {
        sidecar.shown("/reasoning/summary", request).await
    };
    let field = |context: &str, value: pb::ReasoningSummary| {
        with_options(prompt(context, ""), |options| options.set_reasoning_summary(value))
    };
    let key = |context: &str, value: &str| {
        with_options(prompt(context, ""), |options| {
            let value = prost_types::value::Kind::StringValue(value.to_owned());
            let value = prost_types::Value { kind: Some(value) };
            let fields = [("model_reasoning_summary".to_owned(), value)].into();
            options.config = Some(prost_types::Struct { fields });
        })
    };
    let before = summary(&sidecar, prompt("a", "")).await;
    assert_ne!(before, "detailed");
    for _ in 0..2 {
        assert_eq!(summary(&sidecar, key("a", "detailed")).await, "detailed");
        assert_eq!(summary(&sidecar, prompt("a", "")).await, before);
        let concise = field("a", pb::ReasoningSummary::Concise);
        assert_eq!(summary(&sidecar, concise).await, "concise");
    }
    let worker = sidecar.workers().await.remove(0);
    processes::signal(worker.pid, rustix::process::Signal::KILL);
    assert_eq!(summary(&sidecar, prompt("a", "")).await, before);
    assert_eq!(summary(&sidecar, key("a", "detailed")).await, "detailed");
    let thread = sidecar.context("a").await.unwrap().thread_id;
    let place = sidecar.stop().await;
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let explicit = pb::RunTurnRequest { thread_id: thread, ..prompt("a", "") };
    assert_eq!(summary(&sidecar, explicit).await, before);
    sidecar.stop().await;

    let configured = with_config_toml("model_reasoning_summary = \"concise\"\n");
    let sidecar = Sidecar::in_place(configured, |_, _| {}).await;
    assert_eq!(summary(&sidecar, prompt("a", "")).await, "concise");
    assert_eq!(summary(&sidecar, field("a", pb::ReasoningSummary::Detailed)).await, "detailed");
    assert_eq!(summary(&sidecar, prompt("a", "")).await, "concise");
    sidecar.stop().await;
}
