//! The options of a turn: each one reaches the model's request and is gone with its turn, and the
//! request beats the tool, which beats the CLI.

use std::path::{Path, PathBuf};

use crate::support;
use crate::support::{Sidecar, Told, prompt, text, with_options};
use codex_sidecar::parts::config::ToolDefaults;
use codex_sidecar::parts::model::options::ThreadOptions;
use codex_sidecar::pb;
use serde_json::{Value, json};

/// One option: how a turn sets it, and what of the model's request tells it.
struct Probe {
    option: &'static str,
    group: u8,
    part: &'static str,
    set: fn(&mut pb::ThreadOptions, &Path),
    read: fn(&Value) -> Value,
    /// What is read of the turn that sets it.
    expected: fn(&Path) -> Value,
}

const MODEL: &str = "/model";
const REASONING: &str = "/reasoning";
const TOOLS: &str = "/tools";
const INPUT: &str = "/input";
const SERVICE_TIER: &str = "/service_tier";
const PARTS: [&str; 5] = [MODEL, REASONING, TOOLS, INPUT, SERVICE_TIER];

/// What a turn's messages show, by part of the model's request.
fn shown(told: &Told) -> std::collections::BTreeMap<&'static str, Value> {
    let messages = told.messages().into_iter();
    PARTS.into_iter().zip(messages.map(|text| serde_json::from_str(text).expect("JSON"))).collect()
}

/// The text of the last message of this kind that Codex itself put into the conversation.
fn latest(input: &Value, mark: &str) -> String {
    let messages = input.as_array().expect("a list of messages").iter();
    let texts = messages.filter_map(|message| message["content"].as_array()).flatten();
    let mut texts = texts.filter_map(|part| part["text"].as_str());
    texts.rfind(|text| text.starts_with(mark)).unwrap_or_default().to_owned()
}

fn sandbox_told(input: &Value) -> Value {
    let permissions = latest(input, "<permissions instructions>");
    let mode =
        permissions.split("`sandbox_mode` is `").nth(1).and_then(|rest| rest.split('`').next());
    let network = permissions.contains("Network access is enabled");
    json!({ "mode": mode, "network": network })
}

fn approval_told(input: &Value) -> Value {
    let permissions = latest(input, "<permissions instructions>");
    Value::from(permissions.contains("Approval policy is currently never"))
}

fn web_search_told(tools: &Value) -> Value {
    let tools = tools.as_array().expect("a list of tools");
    let search = tools.iter().find(|tool| tool["type"] == "web_search");
    search.map_or(Value::Null, |tool| tool["external_web_access"].clone())
}

const PROBES: &[Probe] = &[
    Probe {
        option: "model",
        group: 0,
        part: MODEL,
        set: |options, _| options.model = Some("another-model".into()),
        read: Value::clone,
        expected: |_| "another-model".into(),
    },
    Probe {
        option: "model_reasoning_effort",
        group: 0,
        part: REASONING,
        set: |options, _| options.set_model_reasoning_effort(pb::ReasoningEffort::High),
        read: |reasoning| reasoning["effort"].clone(),
        expected: |_| "high".into(),
    },
    Probe {
        option: "model_reasoning_effort_name",
        group: 1,
        part: REASONING,
        set: |options, _| options.model_reasoning_effort_name = "xhigh".into(),
        read: |reasoning| reasoning["effort"].clone(),
        expected: |_| "xhigh".into(),
    },
    Probe {
        option: "sandbox_mode",
        group: 0,
        part: INPUT,
        set: |options, _| options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess),
        read: sandbox_told,
        expected: |_| json!({ "mode": "danger-full-access", "network": true }),
    },
    Probe {
        option: "network_access_enabled",
        group: 1,
        part: INPUT,
        set: |options, _| {
            options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
            options.network_access_enabled = Some(true);
        },
        read: sandbox_told,
        expected: |_| json!({ "mode": "workspace-write", "network": true }),
    },
    Probe {
        option: "additional_directories",
        group: 1,
        part: INPUT,
        set: |options, directory| {
            options.set_sandbox_mode(pb::SandboxMode::WorkspaceWrite);
            options.additional_directories = vec![directory.display().to_string()];
        },
        read: |input| {
            let permissions = latest(input, "<permissions instructions>");
            Value::from(permissions.contains("/elsewhere"))
        },
        expected: |_| true.into(),
    },
    Probe {
        option: "approval_policy",
        group: 0,
        part: INPUT,
        set: |options, _| options.set_approval_policy(pb::ApprovalPolicy::Never),
        read: approval_told,
        expected: |_| true.into(),
    },
    Probe {
        option: "working_directory",
        group: 0,
        part: INPUT,
        set: |options, directory| options.working_directory = Some(directory.display().to_string()),
        read: |input| {
            let environment = latest(input, "<environment_context>");
            let cwd =
                environment.split("<cwd>").nth(1).and_then(|rest| rest.split("</cwd>").next());
            Value::from(cwd.unwrap_or_default())
        },
        expected: |directory| directory.display().to_string().into(),
    },
    Probe {
        option: "web_search_mode",
        group: 0,
        part: TOOLS,
        set: |options, _| options.set_web_search_mode(pb::WebSearchMode::Live),
        read: web_search_told,
        expected: |_| true.into(),
    },
    Probe {
        option: "web_search_enabled",
        group: 1,
        part: TOOLS,
        set: |options, _| options.web_search_enabled = Some(true),
        read: web_search_told,
        expected: |_| true.into(),
    },
    Probe {
        option: "base_instructions",
        group: 0,
        part: INPUT,
        set: |options, _| options.base_instructions = Some("Base of this turn.".into()),
        // The first message of all; what the history quotes does not count.
        read: |input| Value::from(input[0].to_string().contains("Base of this turn.")),
        expected: |_| true.into(),
    },
    Probe {
        option: "config",
        group: 0,
        part: TOOLS,
        set: |options, _| {
            let off = prost_types::Value { kind: Some(prost_types::value::Kind::BoolValue(false)) };
            options.config = Some(prost_types::Struct {
                fields: [("tools.update_plan.enabled".to_owned(), off)].into(),
            });
        },
        read: |tools| {
            let tools = tools.as_array().expect("a list of tools");
            Value::from(tools.iter().any(|tool| tool["name"] == "update_plan"))
        },
        expected: |_| false.into(),
    },
    Probe {
        option: "permission_profile",
        group: 2,
        part: INPUT,
        set: |options, _| options.permission_profile = ":workspace".into(),
        read: sandbox_told,
        expected: |_| json!({ "mode": "workspace-write", "network": false }),
    },
    Probe {
        option: "reasoning_summary",
        group: 0,
        part: REASONING,
        set: |options, _| options.set_reasoning_summary(pb::ReasoningSummary::Detailed),
        read: |reasoning| reasoning["summary"].clone(),
        expected: |_| "detailed".into(),
    },
    Probe {
        option: "model_reasoning_summary in config",
        group: 1,
        part: REASONING,
        set: |options, _| options.config = Some(one("model_reasoning_summary", "concise")),
        read: |reasoning| reasoning["summary"].clone(),
        expected: |_| "concise".into(),
    },
    Probe {
        option: "service_tier in config",
        group: 2,
        part: SERVICE_TIER,
        set: |options, _| options.config = Some(one("service_tier", "flex")),
        read: Value::clone,
        expected: |_| "flex".into(),
    },
];

/// Overrides of one key.
fn one(key: &str, value: &str) -> prost_types::Struct {
    let kind = prost_types::value::Kind::StringValue(value.to_owned());
    let value = prost_types::Value { kind: Some(kind) };
    prost_types::Struct { fields: [(key.to_owned(), value)].into() }
}

#[tokio::test]
async fn no_option_of_one_turn_sticks_to_the_next() {
    let sidecar = Sidecar::start().await;
    let elsewhere = sidecar.place.path().join("elsewhere");
    support::make_repository(&elsewhere);
    let show = |request: pb::RunTurnRequest| {
        let inputs = PARTS.map(|part| text(&format!("[[show {part}]]")));
        let request = pb::RunTurnRequest { inputs: inputs.to_vec(), ..request };
        async { shown(&sidecar.run(request).await) }
    };
    let mut wrong = Vec::new();
    // Options that contradict each other are set by different turns, on threads of their own.
    for group in [0, 1, 2] {
        let probes: Vec<&Probe> = PROBES.iter().filter(|probe| probe.group == group).collect();
        let plain = |context: &str| prompt(&format!("{context}-{group}"), "");
        let overriding = |context: &str| {
            with_options(plain(context), |options| {
                probes.iter().for_each(|probe| (probe.set)(options, &elsewhere));
            })
        };
        let before = show(plain("later")).await;
        let during = show(overriding("later")).await;
        let after = show(plain("later")).await;
        // From the thread's first turn on, too: what a thread is started with must not stay.
        let first = show(overriding("first")).await;
        let next = show(plain("first")).await;
        for Probe { option, part, read, expected, .. } in probes {
            let [before, during, after, first, next] =
                [&before, &during, &after, &first, &next].map(|shown| read(&shown[*part]));
            let expected = expected(&elsewhere);
            // Codex writes the base instructions that a thread is started with into its rollout,
            // and has no request that takes them out again.
            let kept = if *option == "base_instructions" { &expected } else { &before };
            let seen = [&before, &during, &after, &first, &next];
            if before == expected || seen != [&before, &expected, &before, &expected, kept] {
                wrong.push(format!("{option}: expected {expected}, saw {seen:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "before, during, after, first, next:\n{}", wrong.join("\n"));
    sidecar.stop().await;
}

#[tokio::test]
async fn no_option_sticks_when_the_worker_is_lost_in_between() {
    let sidecar = Sidecar::start().await;
    let before = sandbox_told(&sidecar.shown(INPUT, prompt("a", "")).await);
    let overriding = with_options(prompt("a", ""), |options| {
        options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
        options.set_approval_policy(pb::ApprovalPolicy::Never);
        options.set_model_reasoning_effort(pb::ReasoningEffort::High);
        options.model = Some("another-model".into());
    });
    let during = sandbox_told(&sidecar.shown(INPUT, overriding.clone()).await);
    assert_eq!(during["mode"], "danger-full-access");
    let worker = sidecar.workers().await.remove(0);
    support::processes::signal(worker.pid, rustix::process::Signal::KILL);
    let after = sidecar.shown(INPUT, prompt("a", "")).await;
    assert_eq!(sandbox_told(&after), before, "the sandbox of the turn before");
    assert_eq!(approval_told(&after), false);
    assert_eq!(sidecar.shown("/model", prompt("a", "")).await, "offline-model");
    assert_eq!(sidecar.shown("/reasoning/effort", prompt("a", "")).await, "medium");
    sidecar.stop().await;
}

#[tokio::test]
async fn developer_instructions_reach_the_model() {
    let sidecar = Sidecar::start().await;
    let request = with_options(prompt("a", ""), |options| {
        options.developer_instructions = Some("Answer in Latin.".into());
    });
    let input = sidecar.shown("/input", request).await;
    let messages = input.as_array().unwrap();
    let told = messages.iter().any(|message| {
        message["role"] == "developer" && message.to_string().contains("Answer in Latin.")
    });
    assert!(told, "{input:#}");
    sidecar.stop().await;
}

#[tokio::test]
async fn the_request_beats_the_tool_which_beats_the_cli() {
    let place = support::Place::new();
    let elsewhere = place.path().join("tool-directory");
    support::make_repository(&elsewhere);
    let directory = elsewhere.clone();
    let sidecar = Sidecar::in_place(place, move |_, config| {
        let thread_options = ThreadOptions {
            model: Some("tool-model".into()),
            model_reasoning_effort: Some("low".into()),
            working_directory: Some(directory),
            ..ThreadOptions::default()
        };
        let tool = ToolDefaults { thread_options, ..ToolDefaults::default() };
        config.tools.insert("codex_engineer".to_owned(), tool);
    })
    .await;
    let engineer = |context: &str| pb::RunTurnRequest {
        tool_name: "codex_engineer".into(),
        ..prompt(context, "")
    };
    assert_eq!(sidecar.shown("/model", prompt("a", "")).await, "offline-model");
    assert_eq!(sidecar.shown("/model", engineer("a")).await, "tool-model");
    let asked = with_options(engineer("a"), |options| options.model = Some("mine".into()));
    assert_eq!(sidecar.shown("/model", asked.clone()).await, "mine");
    // Per field: what the request does not say is still the tool's.
    assert_eq!(sidecar.shown("/reasoning/effort", asked).await, "low");
    assert_eq!(sidecar.shown("/reasoning/effort", prompt("a", "")).await, "medium");
    // The support module gives every request a directory of its own; this one goes without.
    let mut request = engineer("b");
    request.inputs = vec![text("[[run pwd]]")];
    request.thread_options = Some(pb::ThreadOptions::default());
    request.thread_options.as_mut().unwrap().set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    let mut codex = sidecar.codex();
    let stream = codex.run_turn(request).await.unwrap().into_inner();
    let told = support::Turn::new(stream).rest().await;
    let pwd = PathBuf::from(told.command().aggregated_output.trim());
    assert_eq!(pwd.canonicalize().unwrap(), elsewhere.canonicalize().unwrap());
    sidecar.stop().await;
}
