//! The CLIs that the sidecar supports, from the oldest to the pinned one: each serves the same turns,
//! and each one's own schema is compared with what the sidecar asks and reads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{PATIENCE, Refused, Sidecar, eventually, processes, prompt};
use codex_sidecar::parts::app_server::baseline::{Baseline, Lingering};
use codex_sidecar::parts::app_server::client::{
    CliDefaults, Client, LoadOptions, LoadThread, StartTurn, Task, Terminal,
};
use codex_sidecar::parts::app_server::mcp;
use codex_sidecar::parts::app_server::peer::{Peer, PeerLimits};
use codex_sidecar::parts::model::options::{
    ApprovalPolicy, ApprovalsReviewer, DynamicTool, SandboxMode, ThreadOptions,
};
use codex_sidecar::parts::model::request::{ReviewTarget, UserInput, Work};
use codex_sidecar::parts::model::workspace::Workspace;
use codex_sidecar::pb;
use rustix::process::Signal;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tonic::Code;

/// The binary of this version, installed through npm if it is not there.
async fn installed(version: &'static str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/install-codex.sh");
    let installing = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(script);
        command.arg(version).stdin(Stdio::null()).stderr(Stdio::inherit()).output()
    });
    let output = installing.await.unwrap().expect("the script starts");
    assert!(output.status.success(), "{version} could not be installed");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

async fn serves(version: &'static str) {
    let codex = installed(version).await;
    let sidecar = Sidecar::with(|config| {
        config.codex_path = Some(codex);
        config.pool.backoff_initial = std::time::Duration::from_millis(10);
    })
    .await;
    assert_eq!(sidecar.info().await.cli_version, version);

    let first = sidecar.say("a", "hello").await;
    assert_eq!(first.origin(), pb::ThreadOrigin::New);
    assert_eq!(first.final_response(), "You said: hello (user messages so far: 1)");
    let second = sidecar.say("a", "again").await;
    assert_eq!(second.thread_id(), first.thread_id());
    assert_eq!(second.final_response(), "You said: again (user messages so far: 2)");
    assert!(second.completed().usage.is_some_and(|usage| usage.output_tokens > 0));

    let told = sidecar.say("a", "[[run echo one; exit 3]] [[say done]]").await;
    assert_eq!(told.final_response(), "done");
    let command = told.command();
    assert_eq!(command.exit_code, Some(3), "{command:#?}");
    assert!(command.aggregated_output.contains("one"), "{command:#?}");

    // A number that no other test's command has.
    let nap = format!("30{}", version.replace('.', ""));
    let mut turn = sidecar.begin(prompt("a", &format!("[[run sleep {nap}]]"))).await;
    turn.command_started().await;
    let home = sidecar.place.codex_home();
    let sleeps = || {
        let running = processes::of_home(&home).into_iter();
        running.filter(|process| process.command.contains(&nap)).count()
    };
    eventually("the command", async || (sleeps() > 0).then_some(())).await;
    sidecar.interrupt(turn.turn_id()).await.unwrap();
    assert_eq!(turn.rest().await.interrupted(), pb::InterruptReason::InterruptRequested);
    eventually("the end of the command", async || (sleeps() == 0).then_some(())).await;

    let failed = sidecar.say("a", "[[status 400]]").await;
    assert!(!failed.failed().message.is_empty(), "{failed:#?}");

    // All of them copy a thread; those that can list turns tell its past, with the turns that failed.
    let context = |context_id: &str| {
        Some(pb::ContextRef { context_id: context_id.to_owned(), ..Default::default() })
    };
    let copying =
        pb::ForkContextRequest { source: context("a"), target: context("b"), ..Default::default() };
    let copy = sidecar.codex().fork_context(copying).await.unwrap().into_inner().context.unwrap();
    let of_copy = pb::ReadThreadRequest {
        target: Some(pb::read_thread_request::Target::ThreadId(copy.thread_id.clone())),
        ..Default::default()
    };
    match sidecar.codex().read_thread(of_copy).await {
        Ok(page) => assert_eq!(page.into_inner().turns.len(), 5),
        Err(status) => {
            Refused::from(status).assert(Code::FailedPrecondition, "CODEX_REFUSED");
            assert!(["0.100.0", "0.115.0"].contains(&version));
        }
    }
    let told = sidecar.say("b", "on").await;
    assert_eq!((told.thread_id(), told.origin()), (&*copy.thread_id, pb::ThreadOrigin::Forked));
    assert!(told.final_response().ends_with("so far: 6)"), "{}", told.final_response());

    processes::signal(sidecar.workers().await[0].pid, Signal::KILL);
    let last = sidecar.say("a", "still there?").await;
    assert_eq!(last.thread_id(), first.thread_id());
    assert!(last.final_response().starts_with("You said: still there?"));
    sidecar.stop().await;
}

/// What a CLI's generated schema lacks of what the sidecar uses, a line each.
fn gone(schema: &Path, sent: &[(String, Map<String, Value>)]) -> BTreeSet<String> {
    let read = |name: &str| -> Value {
        let text = std::fs::read_to_string(schema.join(name));
        text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    };
    let requests = read("ClientRequest.json");
    let mut gone = BTreeSet::new();

    let known: BTreeSet<String> = methods(&requests)
        .chain(methods(&read("ClientNotification.json")))
        .map(|(method, _)| method)
        .collect();
    for (method, params) in sent {
        if !known.contains(method) {
            gone.insert(format!("method {method}"));
        }
        let Some((_, entry)) = methods(&requests).find(|(known, _)| known == method) else {
            continue;
        };
        let definition = resolve(&requests, &entry["properties"]["params"]);
        for field in
            params.keys().filter(|field| definition["properties"][field.as_str()].is_null())
        {
            gone.insert(format!("{method}: parameter {field}"));
        }
    }
    for (answer, fields) in ANSWERS {
        let schema = read(&format!("v2/{answer}.json"));
        if schema.is_null() {
            // Told as a method, above.
            continue;
        }
        for field in *fields {
            let found = field.split('.').try_fold(schema.clone(), |at, name| {
                let at = resolve(&schema, &at);
                let at = if at["items"].is_null() { at } else { resolve(&schema, &at["items"]) };
                let next = at["properties"][name].clone();
                (!next.is_null()).then_some(next)
            });
            if found.is_none() {
                gone.insert(format!("{answer}: field {field}"));
            }
        }
    }
    let told: BTreeSet<String> =
        methods(&read("ServerNotification.json")).map(|(method, _)| method).collect();
    for method in NOTIFICATIONS.iter().filter(|method| !told.contains(**method)) {
        gone.insert(format!("notification {method}"));
    }
    let asked: BTreeSet<String> =
        methods(&read("ServerRequest.json")).map(|(method, _)| method).collect();
    for method in REQUESTS.iter().filter(|method| !asked.contains(**method)) {
        gone.insert(format!("server request {method}"));
    }
    gone
}

/// What a turn can't do without: the notifications that make its events and its end.
const NOTIFICATIONS: &[&str] = &[
    "turn/started",
    "turn/completed",
    "turn/plan/updated",
    "turn/diff/updated",
    "item/started",
    "item/completed",
    "item/agentMessage/delta",
    "item/reasoning/textDelta",
    "item/reasoning/summaryTextDelta",
    "item/commandExecution/outputDelta",
    "thread/tokenUsage/updated",
    "thread/settings/updated",
    "thread/goal/updated",
    "thread/goal/cleared",
    "error",
    "warning",
    "mcpServer/startupStatus/updated",
    "item/autoApprovalReview/started",
    "item/autoApprovalReview/completed",
];

/// What Codex asks, and is answered with more than an error.
const REQUESTS: &[&str] = &[
    "item/commandExecution/requestApproval",
    "item/fileChange/requestApproval",
    "item/permissions/requestApproval",
    "item/tool/requestUserInput",
    "item/tool/call",
    "mcpServer/elicitation/request",
];

/// What is read of a thread that was opened.
const OPENED: &[&str] = &[
    "thread.id",
    "model",
    "reasoningEffort",
    "approvalPolicy",
    "approvalsReviewer",
    "sandbox",
    "activePermissionProfile",
    "serviceTier",
    "cwd",
];

/// What is read of the answers.
const ANSWERS: &[(&str, &[&str])] = &[
    ("ThreadStartResponse", OPENED),
    ("ThreadResumeResponse", OPENED),
    ("TurnStartResponse", &["turn.id", "turn.rootTurnId"]),
    ("ThreadReadResponse", &["thread.id", "thread.status"]),
    ("ThreadGoalGetResponse", &["goal.status"]),
    (
        "ConfigReadResponse",
        &[
            "config.model",
            "config.model_reasoning_effort",
            "config.model_reasoning_summary",
            "config.approval_policy",
            "config.sandbox_workspace_write",
        ],
    ),
    ("PermissionProfileListResponse", &["data.id", "data.allowed"]),
    (
        "ThreadSettingsUpdatedNotification",
        &[
            "threadId",
            "threadSettings.approvalPolicy",
            "threadSettings.approvalsReviewer",
            "threadSettings.sandboxPolicy",
            "threadSettings.activePermissionProfile.id",
            "threadSettings.cwd",
        ],
    ),
    ("ModelListResponse", &["data.model", "data.isDefault", "data.hidden", "nextCursor"]),
    ("ThreadForkResponse", &["thread.id"]),
    ("ThreadTurnsListResponse", &["data.id", "data.status", "data.items", "nextCursor"]),
    ("ThreadItemsListResponse", &["data.item", "nextCursor"]),
    ("ThreadBackgroundTerminalsListResponse", &["data.itemId", "data.processId"]),
    ("TurnCompletedNotification", &["threadId", "turn.id", "turn.status", "turn.error"]),
    ("ItemStartedNotification", &["threadId", "turnId", "item"]),
    (
        "ItemGuardianApprovalReviewCompletedNotification",
        &[
            "threadId",
            "turnId",
            "reviewId",
            "targetItemId",
            "action",
            "review.status",
            "review.riskLevel",
            "review.userAuthorization",
            "review.rationale",
        ],
    ),
    ("ErrorNotification", &["threadId", "turnId", "error", "willRetry"]),
    ("ThreadTokenUsageUpdatedNotification", &["tokenUsage.total", "tokenUsage.last"]),
    ("McpServerStatusUpdatedNotification", &["threadId", "name", "status", "error"]),
    ("ListMcpServerStatusResponse", &["data.name", "data.runtimeStatus"]),
];

/// All that the sidecar asks, with every option set: what a client writes to a Codex that refuses it.
async fn sent() -> Vec<(String, Map<String, Value>)> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(ours);
    let peer = Peer::start(reader, writer, PeerLimits::default(), |_, _| {});
    let refusing = tokio::spawn(async move {
        let (reader, mut writer) = tokio::io::split(theirs);
        let mut lines = BufReader::new(reader).lines();
        let mut sent = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            let line: Value = serde_json::from_str(&line).unwrap();
            let params = line["params"].as_object().cloned().unwrap_or_default();
            sent.push((line["method"].as_str().unwrap().to_owned(), params));
            let answer = match line["method"] == "initialize" {
                true => json!({"id": line["id"], "result": {}}),
                false => json!({"id": line["id"], "error": {"code": -32600, "message": "no"}}),
            };
            writer.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
        sent
    });
    ask_everything(&Client::new(peer.clone(), PATIENCE)).await;
    peer.close("all is asked");
    drop(peer);
    refusing.await.unwrap()
}

async fn ask_everything(client: &Client) {
    let options = ThreadOptions {
        model: Some("m".to_owned()),
        base_instructions: Some("b".to_owned()),
        developer_instructions: Some("d".to_owned()),
        config: Some([("k".to_owned(), json!("v"))].into_iter().collect()),
        thread_source: Some("s".to_owned()),
        dynamic_tools: Some(vec![DynamicTool {
            name: "t".to_owned(),
            description: "d".to_owned(),
            input_schema: json!({}),
        }]),
        ..ThreadOptions::default()
    };
    let load = LoadOptions::of(&options);
    let workspace =
        Workspace { working_directory: "/w".into(), additional_directories: Vec::new() };
    let directory = &workspace.working_directory;
    let config = serde_json::from_value(json!({"model_reasoning_summary": "auto"})).unwrap();
    let defaults = CliDefaults { config, tells_settings: true, ..CliDefaults::default() };
    let baseline = |effort: Option<&str>, profile: Option<&str>| {
        let opened = serde_json::from_value(json!({
            "thread": {"id": "t"},
            "model": "m",
            "reasoningEffort": effort,
            "approvalPolicy": "never",
            "approvalsReviewer": "user",
            "serviceTier": "flex",
            "sandbox": {"type": "readOnly"},
            "activePermissionProfile": profile.map(|name| json!({"id": name})),
        }));
        Baseline::of(opened.unwrap(), &defaults)
    };
    // Those that send a sandbox and an approval policy along with the thread.
    let narrowed = ThreadOptions {
        sandbox_mode: Some(SandboxMode::ReadOnly),
        approval_policy: Some(ApprovalPolicy::Never),
        approvals_reviewer: Some(ApprovalsReviewer::User),
        ..options.clone()
    };
    let usual = baseline(Some("high"), None);
    for thread in [
        LoadThread::new(&narrowed, &load, directory, true),
        LoadThread::probe(&load, directory, &mcp::ConfigRead::default()),
        LoadThread::from_rollout("t", &options, &usual, &load, directory),
        LoadThread::copy("t", Some("u"), directory, &mcp::ConfigRead::default()),
        LoadThread::without_turns("t", directory, &mcp::ConfigRead::default()),
    ] {
        let _ = client.load_thread(&thread).await;
    }
    let inputs = [
        UserInput::Text("hello".to_owned()),
        UserInput::External { source: "web".to_owned(), text: "hello".to_owned() },
    ];
    for baseline in [&usual, &baseline(None, None), &baseline(Some("high"), Some("p"))] {
        let turn = StartTurn {
            thread_id: "t",
            task: Task {
                root_turn_id: "r",
                work: &Work::Inputs,
                inputs: &inputs,
                output_schema: Some(&json!({})),
            },
            options: &options,
            baseline,
            workspace: &workspace,
            lingering: Lingering { effort: true, summary: true, service_tier: true },
        };
        let _ = client.turn_start(&turn).await;
        let _ = client.thread_settings_update(&turn).await;
    }
    let _ = client.initialize().await;
    let _ = client.log_in(&"key".into()).await;
    let _ = client.ping().await;
    let _ = client.defaults().await;
    let _ = client.config_read(Some(directory)).await;
    let _ = client.profile_list(directory).await;
    let _ = client.mcp_reload().await;
    let _ = client.mcp_server_status("t", "s").await;
    let _ = client.turn_steer("t", "u", &inputs).await;
    let _ = client.turn_interrupt("t", "u").await;
    let _ = client.review_start("t", &ReviewTarget::UncommittedChanges).await;
    let _ = client.compact_start("t").await;
    let _ = client.skills(directory).await;
    let _ = client.thread_read("t").await;
    let _ = client.thread_history("t", Some("c"), 1, true).await;
    let _ = client.turn_items("t", "u", Some("c"), 1).await;
    let _ = client.thread_revert("t", "u").await;
    let _ = client.thread_delete("t").await;
    let _ = client.models().await;
    let _ = client.thread_archive("t").await;
    let _ = client.thread_unarchive("t").await;
    let _ = client.thread_unsubscribe("t").await;
    let _ = client.goal_is_active("t").await;
    let _ = client.goal_clear("t").await;
    let _ = client.terminals_list("t").await;
    let terminal =
        Terminal { item_id: "i".to_owned(), process_id: "p".to_owned(), command: String::new() };
    let _ = client.terminals_terminate("t", &terminal).await;
}

/// Every method that a schema of messages has, with its entry.
fn methods(schema: &Value) -> impl Iterator<Item = (String, Value)> {
    let entries = schema["oneOf"].as_array().cloned().unwrap_or_default();
    entries.into_iter().flat_map(|entry| {
        let names = entry["properties"]["method"]["enum"].as_array().cloned().unwrap_or_default();
        names.into_iter().filter_map(move |name| Some((name.as_str()?.to_owned(), entry.clone())))
    })
}

/// Follows a reference within the schema, also one that may be null.
fn resolve(schema: &Value, at: &Value) -> Value {
    let alternatives = ["anyOf", "allOf", "oneOf"].iter().find_map(|key| at[*key].as_array());
    if let Some(alternatives) = alternatives.filter(|_| at["properties"].is_null()) {
        let found = alternatives.iter().find(|alternative| alternative["type"] != "null");
        return found.map_or(Value::Null, |found| resolve(schema, found));
    }
    match at["$ref"].as_str() {
        Some(reference) => {
            let pointer = reference.trim_start_matches('#');
            schema.pointer(pointer).map_or(Value::Null, |found| resolve(schema, found))
        }
        None => at.clone(),
    }
}

async fn gone_from(version: &'static str) -> BTreeSet<String> {
    let codex = installed(version).await;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let home = directory.path().join("home");
    let out = directory.path().join("schema");
    std::fs::create_dir_all(&home).unwrap();
    let mut command = Command::new(codex);
    command
        .args(["app-server", "generate-json-schema", "--experimental", "--out"])
        .arg(&out)
        .env("CODEX_HOME", &home)
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    gone(&out, &sent().await)
}

/// The pinned CLI has all that is used; of the older ones it is known what they lack, and the code
/// does without: nothing else may go.
#[tokio::test]
async fn every_schema_has_what_the_sidecar_uses() {
    let terminals =
        ["list", "terminate"].map(|name| format!("method thread/backgroundTerminals/{name}"));
    let early = [
        "notification warning",
        "thread/resume: parameter excludeTurns",
        "thread/start: parameter threadSource",
    ]
    .map(str::to_owned);
    let first = [
        "ThreadResumeResponse: field approvalsReviewer",
        "ThreadResumeResponse: field serviceTier",
        "ThreadStartResponse: field approvalsReviewer",
        "ThreadStartResponse: field serviceTier",
        "turn/start: parameter approvalsReviewer",
        "thread/start: parameter approvalsReviewer",
        "thread/resume: parameter approvalsReviewer",
        "notification item/autoApprovalReview/started",
        "notification item/autoApprovalReview/completed",
        "turn/start: parameter serviceTier",
        "method thread/unsubscribe",
        "server request item/permissions/requestApproval",
        "server request mcpServer/elicitation/request",
    ]
    .map(str::to_owned);
    // Its reviews have no id, and its reviewer another name.
    let reviews = [
        "ItemGuardianApprovalReviewCompletedNotification: field reviewId",
        "ItemGuardianApprovalReviewCompletedNotification: field review.userAuthorization",
    ]
    .map(str::to_owned);
    // They tell no settings.
    let settings = [
        "method permissionProfile/list",
        "method thread/settings/update",
        "notification thread/settings/updated",
        // Nor do they take texts from outside.
        "turn/start: parameter additionalContext",
        "turn/steer: parameter additionalContext",
    ]
    .map(str::to_owned);
    // Nor do they know profiles.
    let profiles = [
        "ThreadResumeResponse: field activePermissionProfile",
        "ThreadStartResponse: field activePermissionProfile",
        "turn/start: parameter permissions",
    ]
    .map(str::to_owned);
    // MCP servers that end stay away with the CLIs that can't be asked for those of a thread.
    let one_server = ["mcpServerStatus/list: parameter serverName".to_owned()];
    let servers = [
        "mcpServerStatus/list: parameter threadId",
        "ListMcpServerStatusResponse: field data.runtimeStatus",
    ]
    .map(str::to_owned);
    let server_threads = ["McpServerStatusUpdatedNotification: field threadId".to_owned()];
    let server_news =
        ["mcpServerStatus/list: parameter detail", "notification mcpServer/startupStatus/updated"]
            .map(str::to_owned);
    let goals = [
        "method thread/goal/clear",
        "method thread/goal/get",
        "notification thread/goal/cleared",
        "notification thread/goal/updated",
    ]
    .map(str::to_owned);
    let roots = ["TurnStartResponse: field turn.rootTurnId", "turn/start: parameter rootTurnId"]
        .map(str::to_owned);
    let statuses = ["ThreadReadResponse: field thread.status"].map(str::to_owned);
    // They copy whole threads only, and neither take one back nor read the items of one turn.
    let parts = [
        "method thread/delete",
        "method thread/items/list",
        "method thread/revert",
        "thread/fork: parameter lastTurnId",
    ]
    .map(str::to_owned);
    let turns =
        ["method thread/turns/list", "thread/fork: parameter excludeTurns"].map(str::to_owned);
    let hidden = ["ModelListResponse: field data.hidden", "model/list: parameter includeHidden"]
        .map(str::to_owned);
    let known: [(&'static str, Vec<&[String]>); 5] = [
        (
            "0.100.0",
            vec![
                &terminals,
                &settings,
                &early,
                &profiles,
                &first,
                &one_server,
                &servers,
                &server_news,
                &goals,
                &roots,
                &statuses,
                &parts,
                &turns,
                &hidden,
            ],
        ),
        (
            "0.115.0",
            vec![
                &terminals,
                &settings,
                &early,
                &profiles,
                &one_server,
                &servers,
                &server_news,
                &goals,
                &roots,
                &parts,
                &turns,
                &reviews,
            ],
        ),
        (
            "0.130.0",
            vec![&terminals, &settings, &one_server, &servers, &server_threads, &roots, &parts],
        ),
        ("0.150.0", vec![&one_server, &roots]),
        ("0.169.0", vec![]),
    ];
    for (version, known) in known {
        let gone = gone_from(version).await;
        println!("{version} lacks {gone:#?}");
        let known: BTreeSet<String> = known.into_iter().flatten().cloned().collect();
        assert_eq!(gone, known, "{version} lacks something else than is known");
    }
    // The check itself: a schema that has nothing lacks everything.
    let empty = tempfile::tempdir().unwrap();
    let sent = sent().await;
    let all = gone(empty.path(), &sent);
    assert!(sent.len() > 20, "{sent:#?}");
    assert!(sent.iter().all(|(method, _)| all.contains(&format!("method {method}"))));
}

#[tokio::test]
async fn version_0_100_0_serves() {
    serves("0.100.0").await;
}

#[tokio::test]
async fn version_0_115_0_serves() {
    serves("0.115.0").await;
}

#[tokio::test]
async fn version_0_130_0_serves() {
    serves("0.130.0").await;
}

#[tokio::test]
async fn version_0_150_0_serves() {
    serves("0.150.0").await;
}

#[tokio::test]
async fn version_0_169_0_serves() {
    serves("0.169.0").await;
}
