//! What is written to Codex, request by request: which fields there are, which are null, and which are
//! left out.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, duplex, split};

use super::{
    CliConfig, CliDefaults, Client, LoadOptions, LoadThread, StartTurn, Task, Terminal,
    ThreadOpened,
};
use crate::app_server::baseline::{Baseline, Lingering};
use crate::app_server::mcp;
use crate::app_server::peer::{Peer, PeerLimits};
use crate::model::options::{
    ApprovalPolicy, ApprovalsReviewer, DynamicTool, Environment, ReasoningSummary, SandboxMode,
    ThreadOptions, WebSearchMode,
};
use crate::model::request::{ReviewTarget, UserInput, Work};
use crate::model::workspace::Workspace;

/// The method and the parameters of the first request of a call.
async fn asked(call: impl AsyncFnOnce(&Client)) -> (String, Value) {
    let (ours, theirs) = duplex(1 << 20);
    let (reader, writer) = split(ours);
    let peer = Peer::start(reader, writer, PeerLimits::default(), |_, _| {});
    let client = Client::new(peer, Duration::from_secs(30));
    let mut lines = BufReader::new(theirs).lines();
    let line = tokio::select! {
        () = call(&client) => panic!("nobody has answered"),
        line = lines.next_line() => line.unwrap().unwrap(),
    };
    let mut line: Value = serde_json::from_str(&line).unwrap();
    let parts: Vec<&String> = line.as_object().unwrap().keys().collect();
    assert_eq!(parts, ["id", "method", "params"]);
    (line["method"].as_str().unwrap().to_owned(), line["params"].take())
}

fn says(method: &str, params: Value) -> (String, Value) {
    (method.to_owned(), params)
}

fn opened(more: Value) -> ThreadOpened {
    let mut opened = json!({
        "thread": { "id": "t" },
        "model": "m0",
        "approvalPolicy": { "granular": {} },
        "sandbox": { "type": "readOnly", "networkAccess": false },
    });
    opened.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(opened).unwrap()
}

/// Options that say all that they can, a sandbox in place of a permission profile.
fn all_options() -> ThreadOptions {
    let config = json!({ "a.b": { "c": null }, "model_reasoning_summary": "detailed" });
    let tool = DynamicTool {
        name: "f".to_owned(),
        description: "d".to_owned(),
        input_schema: json!({ "type": "object" }),
    };
    ThreadOptions {
        model: Some("m".to_owned()),
        sandbox_mode: Some(SandboxMode::WorkspaceWrite),
        working_directory: Some("/ignored".into()),
        skip_git_repo_check: Some(true),
        model_reasoning_effort: Some("high".to_owned()),
        network_access_enabled: Some(true),
        web_search_mode: Some(WebSearchMode::Cached),
        web_search_enabled: Some(true),
        approval_policy: Some(ApprovalPolicy::OnFailure),
        additional_directories: Some(vec!["/ignored".into()]),
        base_instructions: Some("base".to_owned()),
        developer_instructions: Some(String::new()),
        config: config.as_object().cloned(),
        dynamic_tools: Some(vec![tool]),
        thread_source: Some("source".to_owned()),
        permission_profile: None,
        reasoning_summary: Some(ReasoningSummary::Concise),
        approvals_reviewer: Some(ApprovalsReviewer::AutoReview),
        service_tier: Some("flex".to_owned()),
        environment: Some(Environment([("SET_X".to_owned(), "v".to_owned())].into())),
    }
}

#[tokio::test]
async fn a_thread_is_asked_for_with_all_that_its_options_say() {
    let options = all_options();
    let load = LoadOptions::of(&options);
    let loading = async |thread: LoadThread| {
        asked(async |client| {
            let _ = client.load_thread(&thread).await;
        })
        .await
    };
    let directory = Path::new("/w");
    let config = json!({
        "a.b": { "c": null },
        "web_search": "cached",
        "shell_environment_policy.set.SET_X": "v",
    });
    let tool = json!({
        "type": "function", "name": "f", "description": "d", "inputSchema": { "type": "object" },
    });
    assert_eq!(
        loading(LoadThread::new(&options, &load, directory, true)).await,
        says(
            "thread/start",
            json!({
                "cwd": "/w",
                "model": "m",
                "approvalPolicy": "on-request",
                "approvalsReviewer": "auto_review",
                "sandbox": "read-only",
                "ephemeral": true,
                "threadSource": "source",
                "dynamicTools": [tool],
                "config": config,
                "baseInstructions": "base",
                "developerInstructions": "",
            })
        )
    );
    let told = opened(json!({ "approvalsReviewer": "user" }));
    let baseline = Baseline::of(told, &CliDefaults::default());
    let nothing = ThreadOptions::default();
    let resumed = LoadThread::from_rollout("t", &nothing, &baseline, &load, directory);
    assert_eq!(
        loading(resumed).await,
        says(
            "thread/resume",
            json!({
                "threadId": "t",
                "cwd": "/w",
                "excludeTurns": true,
                "approvalPolicy": { "granular": {} },
                "approvalsReviewer": "user",
                "sandbox": "read-only",
                "config": config,
                "baseInstructions": "base",
                "developerInstructions": "",
            })
        )
    );
    let configured: mcp::ConfigRead =
        serde_json::from_value(json!({ "config": { "mcp_servers": { "s": {} } } })).unwrap();
    assert_eq!(
        loading(LoadThread::probe(&load, directory, &configured)).await,
        says(
            "thread/start",
            json!({
                "cwd": "/w",
                "ephemeral": true,
                "config": {
                    "a.b": { "c": null },
                    "web_search": "cached",
                    "shell_environment_policy.set.SET_X": "v",
                    "features.shell_snapshot": false,
                    "mcp_servers": { "s": { "enabled": false } },
                },
            })
        )
    );
}

#[tokio::test]
async fn a_turn_is_asked_for_with_all_that_its_options_and_the_defaults_say() {
    let workspace =
        Workspace { working_directory: "/w".into(), additional_directories: vec!["/extra".into()] };
    let inputs = [
        UserInput::ImageUrl("data:i".to_owned()),
        UserInput::Text("a".to_owned()),
        UserInput::LocalImage("/i.png".to_owned()),
        UserInput::Text(String::new()),
        UserInput::Skill { name: "s".to_owned(), path: "/s/SKILL.md".to_owned() },
        UserInput::External { source: "GitHub:issue/12".to_owned(), text: "one".to_owned() },
        UserInput::External { source: "1@b".to_owned(), text: "two".to_owned() },
        UserInput::Mention { name: "m".to_owned(), path: "app://m".to_owned() },
    ];
    let input = json!([
        { "type": "text", "text": "a\n\n" },
        { "type": "image", "url": "data:i" },
        { "type": "localImage", "path": "/i.png" },
        { "type": "skill", "name": "s", "path": "/s/SKILL.md" },
        { "type": "mention", "name": "m", "path": "app://m" },
    ]);
    let external = |number: usize, name: &str, value: &str| {
        (format!("r/{number:06}"), json!({ "kind": "untrusted", "name": name, "value": value }))
    };
    let external: serde_json::Map<_, _> =
        [external(5, "github_issue_12", "one"), external(6, "from_1_b", "two")]
            .into_iter()
            .collect();
    let starting = async |options: &ThreadOptions, baseline: &Baseline, schema: Option<&Value>| {
        let turn = StartTurn {
            thread_id: "t",
            task: Task {
                root_turn_id: "r",
                work: &Work::Inputs,
                inputs: &inputs,
                output_schema: schema,
            },
            options,
            baseline,
            workspace: &workspace,
            lingering: Lingering { effort: true, summary: true, service_tier: true },
        };
        asked(async |client| {
            let _ = client.turn_start(&turn).await;
        })
        .await
    };
    let config: CliConfig =
        serde_json::from_value(json!({ "sandbox_workspace_write": { "writable_roots": ["/c"] } }))
            .unwrap();
    let defaults = CliDefaults { config, tells_settings: true, ..CliDefaults::default() };
    let more = json!({ "approvalsReviewer": "user", "serviceTier": null });
    let baseline = Baseline::of(opened(more), &defaults);
    assert_eq!(
        starting(&all_options(), &baseline, Some(&json!({ "type": "object" }))).await,
        says(
            "turn/start",
            json!({
                "threadId": "t",
                "rootTurnId": "r",
                "input": input,
                "additionalContext": external,
                "cwd": "/w",
                "approvalPolicy": "on-request",
                "approvalsReviewer": "auto_review",
                "sandboxPolicy": {
                    "type": "workspaceWrite",
                    "writableRoots": ["/c", "/extra"],
                    "networkAccess": true,
                    "excludeTmpdirEnvVar": false,
                    "excludeSlashTmp": false,
                },
                "model": "m",
                "serviceTier": "flex",
                "effort": "high",
                "summary": "concise",
                "outputSchema": { "type": "object" },
            })
        )
    );
    // What lingers is taken away, and a profile stands in place of a sandbox.
    let baseline =
        Baseline::of(opened(json!({ "activePermissionProfile": { "id": "p" } })), &defaults);
    assert_eq!(
        starting(&ThreadOptions::default(), &baseline, None).await,
        says(
            "turn/start",
            json!({
                "threadId": "t",
                "rootTurnId": "r",
                "input": input,
                "additionalContext": external,
                "cwd": "/w",
                "approvalPolicy": { "granular": {} },
                "permissions": "p",
                "model": "m0",
                "serviceTier": null,
                "collaborationMode": {
                    "mode": "default",
                    "settings": {
                        "model": "m0",
                        "reasoning_effort": null,
                        "developer_instructions": "",
                    },
                },
                "summary": "auto",
            })
        )
    );
    // A key that was there before would make Codex leave the text out.
    let mut keys = Vec::new();
    for _ in 0..2 {
        let steered = asked(async |client| {
            let _ = client.turn_steer("t", "u", &inputs).await;
        });
        let (method, mut params) = steered.await;
        let told = params.as_object_mut().unwrap().remove("additionalContext").unwrap();
        assert_eq!(
            (method, params),
            says("turn/steer", json!({ "threadId": "t", "expectedTurnId": "u", "input": input }))
        );
        let told = told.as_object().unwrap();
        assert!(told.values().eq(external.values()));
        keys.extend(told.keys().cloned());
    }
    assert_eq!(keys.iter().collect::<std::collections::HashSet<_>>().len(), 4);
}

#[tokio::test]
async fn a_review_and_a_compaction_go_by_settings_that_are_set_before() {
    let workspace = Workspace { working_directory: "/w".into(), additional_directories: vec![] };
    let options = all_options();
    let baseline = Baseline::of(opened(json!({})), &CliDefaults::default());
    let turn = StartTurn {
        thread_id: "t",
        task: Task { root_turn_id: "r", work: &Work::Compact, inputs: &[], output_schema: None },
        options: &options,
        baseline: &baseline,
        workspace: &workspace,
        lingering: Lingering::default(),
    };
    let (_, mut started) = asked(async |client| {
        let _ = client.turn_start(&turn).await;
    })
    .await;
    for task in ["input", "rootTurnId"] {
        started.as_object_mut().unwrap().remove(task).unwrap();
    }
    let set = asked(async |client| {
        let _ = client.thread_settings_update(&turn).await;
    });
    assert_eq!(set.await, says("thread/settings/update", started));
    for (target, said) in [
        (ReviewTarget::UncommittedChanges, json!({ "type": "uncommittedChanges" })),
        (ReviewTarget::BaseBranch("b".to_owned()), json!({ "type": "baseBranch", "branch": "b" })),
        (
            ReviewTarget::Commit("c".to_owned()),
            json!({ "type": "commit", "sha": "c", "title": null }),
        ),
        (
            ReviewTarget::Instructions("i".to_owned()),
            json!({ "type": "custom", "instructions": "i" }),
        ),
    ] {
        let review = asked(async |client| {
            let _ = client.review_start("t", &target).await;
        });
        let params = json!({ "threadId": "t", "target": said, "delivery": "inline" });
        assert_eq!(review.await, says("review/start", params));
    }
}

#[tokio::test]
async fn every_other_request_says_this_and_no_more() {
    macro_rules! asks {
        ($($client:ident => $call:expr, $method:literal, $params:expr;)*) => {$(
            let request = asked(async |$client| {
                let _ = $call.await;
            });
            assert_eq!(request.await, says($method, $params));
        )*};
    }
    let info = json!({
        "name": "codex_sidecar", "title": "codex-sidecar", "version": env!("CARGO_PKG_VERSION"),
    });
    let capabilities = json!({ "experimentalApi": true, "requestAttestation": false });
    let thread = json!({ "threadId": "t" });
    let read = json!({ "threadId": "t", "includeTurns": false });
    let directory = Path::new("/d");
    let terminal: Terminal =
        serde_json::from_value(json!({ "itemId": "i", "processId": "p" })).unwrap();
    asks! {
        client => client.initialize(), "initialize",
            json!({ "clientInfo": info, "capabilities": capabilities });
        client => client.log_in(&"sk-1".into()), "account/login/start",
            json!({ "type": "apiKey", "apiKey": "sk-1" });
        client => client.keeps_login_in_memory(), "config/read", json!({ "includeLayers": false });
        client => client.ping(), "thread/loaded/list", json!({});
        client => client.config_read(None), "config/read", json!({ "includeLayers": false });
        client => client.config_fault(), "config/read", json!({ "includeLayers": false });
        client => client.mcp_config(directory), "config/read",
            json!({ "includeLayers": false, "cwd": "/d" });
        client => client.profile_list(directory), "permissionProfile/list", json!({ "cwd": "/d" });
        client => client.mcp_reload(), "config/mcpServer/reload", Value::Null;
        client => client.mcp_server_status("t", "s"), "mcpServerStatus/list",
            json!({ "threadId": "t", "serverName": "s", "detail": "toolsAndAuthOnly" });
        client => client.compact_start("t"), "thread/compact/start", thread.clone();
        client => client.skills(directory), "skills/list", json!({ "cwds": ["/d"] });
        client => client.thread_read("t"), "thread/read", read.clone();
        client => client.thread_parent("t"), "thread/read", read.clone();
        client => client.thread_history("t", Some("c"), 7, true), "thread/turns/list", json!({
            "threadId": "t", "cursor": "c", "limit": 7, "sortDirection": "asc", "itemsView": "full",
        });
        client => client.thread_history("t", None, 1, false), "thread/turns/list", json!({
            "threadId": "t", "cursor": null, "limit": 1, "sortDirection": "asc",
            "itemsView": "notLoaded",
        });
        client => client.turn_items("t", "u", Some("c"), 7), "thread/items/list", json!({
            "threadId": "t", "turnId": "u", "cursor": "c", "limit": 7, "sortDirection": "asc",
        });
        client => client.thread_revert("t", "u"), "thread/revert",
            json!({ "threadId": "t", "beforeTurnId": "u" });
        client => client.thread_delete("t"), "thread/delete", thread.clone();
        client => client.models(), "model/list", json!({ "includeHidden": true, "cursor": null });
        client => client.thread_archive("t"), "thread/archive", thread.clone();
        client => client.thread_unarchive("t"), "thread/unarchive", thread.clone();
        client => client.thread_unsubscribe("t"), "thread/unsubscribe", thread.clone();
        client => client.goal_is_active("t"), "thread/goal/get", thread.clone();
        client => client.goal_clear("t"), "thread/goal/clear", thread.clone();
        client => client.terminals_list("t"), "thread/backgroundTerminals/list", thread.clone();
        client => client.terminals_terminate("t", &terminal), "thread/backgroundTerminals/terminate",
            json!({ "threadId": "t", "processId": "p" });
        client => client.turn_interrupt("t", "u"), "turn/interrupt",
            json!({ "threadId": "t", "turnId": "u" });
    }
}
