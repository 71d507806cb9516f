//! `RunTurn` over real gRPC, on the real CLI with the offline model: what a turn tells, what its
//! options do and don't do to the next one, and how it fails.

use std::path::{Path, PathBuf};

use crate::support;
use crate::support::{Sidecar, Told, ephemeral, prompt, text};
use codex_sidecar::parts::config::ToolDefaults;
use codex_sidecar::parts::model::options::ThreadOptions;
use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::turn_event::Event;
use serde_json::Value;
use tonic::Code;

/// A turn whose commands run wherever the test does: CI containers often allow no sandbox.
fn unsandboxed(context: &str, words: &str) -> pb::RunTurnRequest {
    with_options(prompt(context, words), |options| {
        options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
    })
}

fn with_options(
    mut request: pb::RunTurnRequest,
    change: impl FnOnce(&mut pb::ThreadOptions),
) -> pb::RunTurnRequest {
    change(request.thread_options.get_or_insert_default());
    request
}

#[tokio::test]
async fn the_second_turn_of_a_context_continues_its_thread() {
    let sidecar = Sidecar::start().await;
    let first = sidecar.say("a", "hello").await;
    assert_eq!(first.origin(), pb::ThreadOrigin::New);
    assert_eq!(first.final_response(), "You said: hello (user messages so far: 1)");

    let second = sidecar.say("  a\n", "again").await;
    assert_eq!(second.origin(), pb::ThreadOrigin::Resumed);
    assert_eq!(second.thread_id(), first.thread_id());
    assert_ne!(second.turn_id(), first.turn_id());
    assert_eq!(second.final_response(), "You said: again (user messages so far: 2)");

    // Another tool of the same context has a thread of its own; a thread key of one's own, too.
    let engineer = pb::RunTurnRequest { tool_name: "codex_engineer".into(), ..prompt("a", "hi") };
    let engineer = sidecar.run(engineer).await;
    assert_eq!(engineer.origin(), pb::ThreadOrigin::New);
    let own_key = pb::RunTurnRequest {
        tool_name: "codex_not-a-key".into(),
        thread_id_key: " codex_thread_id_engineer ".into(),
        ..prompt("a", "hi again")
    };
    let own_key = sidecar.run(own_key).await;
    assert_eq!(own_key.thread_id(), engineer.thread_id());
    assert_eq!(own_key.final_response(), "You said: hi again (user messages so far: 2)");
    sidecar.stop().await;
}

#[tokio::test]
async fn every_kind_of_item_that_codex_makes_is_typed() {
    let sidecar = Sidecar::start().await;
    let work = sidecar.place.work().display().to_string();
    let script = "[[reason let me look]] [[run echo out; sleep 0.2; echo err >&2]] [[run exit 3]] \
                  [[write notes.txt hello]] [[plan A; B]] [[plan A; B; C]] [[say done]]";
    let told = sidecar.run(unsandboxed("items", script)).await;
    assert_eq!(told.final_response(), "done");

    let (_, said) = told.item("user_message", |kind| match kind {
        Kind::UserMessage(message) => Some(message),
        _ => None,
    });
    assert_eq!(said.inputs, [text(script)]);

    let (reasoning_id, reasoning) = told.item("reasoning", |kind| match kind {
        Kind::Reasoning(reasoning) => Some(reasoning),
        _ => None,
    });
    assert_eq!(
        (reasoning.summary.as_slice(), reasoning.content.len()),
        (["let me look".to_owned()].as_slice(), 0)
    );
    let mut thought = String::new();
    for event in told.all() {
        if let Event::ReasoningDelta(delta) = event {
            assert_eq!(delta.item_id, reasoning_id);
            assert_eq!((delta.part(), delta.index), (pb::ReasoningPart::Summary, 0));
            thought.push_str(&delta.text);
        }
    }
    assert_eq!(thought, "let me look");

    let commands = told.commands();
    assert_eq!(commands.len(), 2, "{commands:#?}");
    assert!(commands[0].command.contains("echo out"), "{commands:#?}");
    assert_eq!(commands[0].working_directory, work);
    assert_eq!(commands[0].aggregated_output, "out\nerr\n");
    assert_eq!(commands[0].exit_code, Some(0));
    assert_eq!(commands[0].status(), pb::CommandExecutionStatus::Completed);
    assert!(commands[0].duration.is_some());
    assert_eq!(commands[1].exit_code, Some(3));
    assert_eq!(commands[1].status(), pb::CommandExecutionStatus::Failed);

    let (_, patch) = told.item("file_change", |kind| match kind {
        Kind::FileChange(change) => Some(change),
        _ => None,
    });
    assert_eq!(patch.status(), pb::FileChangeStatus::Completed);
    assert_eq!(patch.changes.len(), 1);
    assert_eq!(patch.changes[0].kind(), pb::FileChangeKind::Add);
    assert_eq!(patch.changes[0].path, format!("{work}/notes.txt"));
    assert_eq!(patch.changes[0].diff, "hello\n");
    assert_eq!(std::fs::read_to_string(sidecar.place.work().join("notes.txt")).unwrap(), "hello\n");
    let diff = told.all().find_map(|event| match event {
        Event::TurnDiffUpdated(updated) => Some(&updated.diff),
        _ => None,
    });
    assert!(diff.is_some_and(|diff| diff.contains("+++ b/notes.txt")), "{diff:?}");

    // A plan is one item: it starts, is updated, and is complete when its turn is.
    let plan = |event: &Event| {
        let (what, item) = match event {
            Event::ItemStarted(pb::ItemStarted { item }) => ("started", item),
            Event::ItemUpdated(pb::ItemUpdated { item }) => ("updated", item),
            Event::ItemCompleted(pb::ItemCompleted { item }) => ("completed", item),
            _ => return None,
        };
        let item = item.as_ref()?;
        let Some(Kind::TodoList(list)) = &item.kind else { return None };
        let steps: Vec<_> = list
            .items
            .iter()
            .map(|step| (step.text.clone(), step.completed, step.status()))
            .collect();
        Some((item.id.clone(), what, steps))
    };
    let plans: Vec<_> = told.all().filter_map(plan).collect();
    let whats: Vec<_> = plans.iter().map(|(_, what, _)| *what).collect();
    assert_eq!(whats, ["started", "updated", "completed"], "{plans:#?}");
    assert!(plans.iter().all(|(id, ..)| *id == plans[0].0), "{plans:#?}");
    let step = |text: &str, status: pb::TodoStatus| {
        (text.to_owned(), status == pb::TodoStatus::Completed, status)
    };
    assert_eq!(
        plans[0].2,
        [step("A", pb::TodoStatus::Completed), step("B", pb::TodoStatus::InProgress)]
    );
    assert_eq!(plans[2].2.len(), 3);

    // Who began an item ends it, and an id stands for one item only.
    let (mut started, mut completed) = (Vec::new(), Vec::new());
    for event in told.all() {
        match event {
            Event::ItemStarted(pb::ItemStarted { item: Some(item) }) => {
                started.push(item.id.clone())
            }
            Event::ItemCompleted(pb::ItemCompleted { item: Some(item) }) => {
                completed.push(item.id.clone());
            }
            _ => {}
        }
    }
    started.sort();
    completed.sort();
    assert_eq!(started, completed);
    completed.dedup();
    assert_eq!(started.len(), completed.len());
    sidecar.stop().await;
}

#[tokio::test]
async fn the_deltas_of_a_message_give_its_text_as_it_streams() {
    let sidecar = Sidecar::start().await;
    let mut turn = sidecar.begin(prompt("a", "[[slow 200]] [[words 4]]")).await;
    let delta = |event: &Event| match event {
        Event::AgentMessageDelta(delta) => Some(delta.clone()),
        _ => None,
    };
    let first = turn.until("the first delta", delta).await;
    assert_eq!(first.text.trim(), "w1");
    let told = turn.rest().await;
    let text: String = told.all().filter_map(delta).map(|delta| delta.text).collect();
    assert_eq!(text, "w1 w2 w3 w4");
    let (id, message) = told.item("agent_message", |kind| match kind {
        Kind::AgentMessage(message) => Some(message),
        _ => None,
    });
    assert_eq!((id, message.text.as_str()), (first.item_id.as_str(), "w1 w2 w3 w4"));
    sidecar.stop().await;
}

#[tokio::test]
async fn what_the_contract_has_no_name_for_is_passed_on() {
    let sidecar = Sidecar::start().await;
    let told = sidecar.say("unknown", "hello").await;

    let raw = |told: &Told| -> Vec<pb::Raw> {
        told.all()
            .filter_map(|event| match event {
                Event::Raw(raw) => Some(raw.clone()),
                _ => None,
            })
            .collect()
    };
    assert_eq!(raw(&told), [], "raw events without being asked for");
    let asking = pb::RunTurnRequest { include_raw_events: true, ..prompt("unknown", "hello") };
    let asked = sidecar.run(asking).await;
    let raw = raw(&asked);
    assert!(!raw.is_empty(), "{:?}", asked.kinds());
    for raw in raw {
        let params: Value = serde_json::from_str(&raw.json).expect("raw events are JSON");
        assert!(raw.method.contains('/') && params.is_object(), "{raw:?}");
        assert_eq!(params["threadId"].as_str(), Some(asked.thread_id()), "{raw:?}");
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn usage_is_of_the_turn_and_of_the_thread() {
    let sidecar = Sidecar::start().await;
    let usage = |told: &Told| {
        let completed = told.completed();
        (completed.usage.unwrap(), completed.thread_usage.unwrap())
    };
    // Two requests to the model in one turn: both count.
    let first = sidecar.run(unsandboxed("a", "[[run true]] [[words 10]]")).await;
    let (first_turn, first_thread) = usage(&first);
    assert_eq!(first_turn, first_thread, "the first turn is all there is of its thread");
    assert!(first_turn.output_tokens >= 10, "{first_turn:?}");
    let reports: Vec<&pb::TokenUsageUpdated> = first
        .all()
        .filter_map(|event| match event {
            Event::TokenUsageUpdated(report) => Some(report),
            _ => None,
        })
        .collect();
    assert_eq!(reports.len(), 2, "{reports:#?}");
    assert_eq!(reports[1].usage, Some(first_turn));
    let last = |report: &pb::TokenUsageUpdated| report.last_request_usage.expect("last request");
    assert_eq!(
        last(reports[0]).input_tokens + last(reports[1]).input_tokens,
        first_turn.input_tokens
    );
    assert!(reports[0].model_context_window.is_some());

    let second = sidecar.say("a", "[[words 3]]").await;
    let (second_turn, second_thread) = usage(&second);
    assert_eq!(second_turn.output_tokens, 3);
    assert_eq!(second_turn.input_tokens, second_thread.input_tokens - first_thread.input_tokens);
    assert_eq!(second_thread.output_tokens, first_thread.output_tokens + 3);

    // The same after the worker that held the thread is gone.
    let worker = sidecar.workers().await.remove(0);
    support::processes::signal(worker.pid, rustix::process::Signal::KILL);
    let third = sidecar.say("a", "[[words 5]]").await;
    let (third_turn, third_thread) = usage(&third);
    assert_eq!(third_turn.output_tokens, 5);
    assert_eq!(third_thread.output_tokens, second_thread.output_tokens + 5);

    // A turn that is stopped or fails has used something, too.
    let failed = sidecar.run(unsandboxed("a", "[[run true]] [[status 500]]")).await;
    let Event::TurnFailed(pb::TurnFailed { usage, thread_usage, .. }) = failed.terminal() else {
        panic!("{:?}", failed.terminal());
    };
    let (usage, thread_usage) = (usage.unwrap(), thread_usage.unwrap());
    assert_eq!(thread_usage.input_tokens, third_thread.input_tokens + usage.input_tokens);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_final_response_is_the_last_message_or_a_fixed_sentence() {
    let sidecar = Sidecar::start().await;
    let told = sidecar.run(unsandboxed("a", "[[say one]] [[run true]] [[say two]]")).await;
    assert_eq!(told.final_response(), "two");
    let told = sidecar.say("a", "[[reason nothing to say]] [[end]]").await;
    assert_eq!(told.final_response(), "Codex task completed with inputs.");

    // Who reads the items need not have it twice.
    for (words, said) in [("[[say three]]", &["three"][..]), ("[[reason nothing]] [[end]]", &[])] {
        let mut request = prompt("a", words);
        request.turn_options.get_or_insert_default().omit_final_response = true;
        let told = sidecar.run(request).await;
        assert_eq!(told.final_response(), "");
        assert!(told.completed().usage.is_some(), "{told:#?}");
        let items = told.items().into_iter().filter_map(|(_, kind)| match kind {
            Kind::AgentMessage(message) => Some(message.text.as_str()),
            _ => None,
        });
        assert_eq!(items.collect::<Vec<_>>(), said);
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn texts_are_joined_and_images_reach_the_model() {
    let sidecar = Sidecar::start().await;
    let image = sidecar.place.path().join("dot.png");
    std::fs::write(&image, DOT).unwrap();
    let image_url = format!("data:image/png;base64,{DOT_BASE64}");
    let mut request = prompt("images", "");
    request.inputs = vec![
        text("  first "),
        pb::UserInput {
            input: Some(pb::user_input::Input::LocalImage(pb::LocalImage {
                path: image.display().to_string(),
            })),
        },
        text("second"),
        pb::UserInput { input: Some(pb::user_input::Input::ImageUrl(image_url.clone())) },
        text("[[show /input]]"),
    ];
    let told = sidecar.run(request).await;
    let input: Value = serde_json::from_str(told.final_response()).unwrap();
    let message = input.as_array().unwrap().last().unwrap();
    assert_eq!(message["role"], "user", "{message:#}");
    let parts = message["content"].as_array().unwrap();
    let joined = "first\n\nsecond\n\n[[show /input]]";
    assert!(parts.iter().any(|part| part["text"] == joined), "{parts:#?}");
    let images: Vec<&str> = parts.iter().filter_map(|part| part["image_url"].as_str()).collect();
    assert_eq!(images.len(), 2, "{parts:#?}");
    assert!(images.iter().all(|url| url.starts_with("data:image/png;base64,")), "{parts:#?}");
    let (_, said) = told.item("user_message", |kind| match kind {
        Kind::UserMessage(message) => Some(message),
        _ => None,
    });
    assert_eq!(said.inputs.len(), 3, "{said:#?}");
    // Without its data: the caller has them.
    let shown = format!("data:image/png;base64,… ({} bytes)", DOT.len());
    let shown = pb::user_input::Input::ImageUrl(shown);
    assert!(said.inputs.contains(&pb::UserInput { input: Some(shown) }), "{said:#?}");
    sidecar.stop().await;
}

#[tokio::test]
async fn an_output_schema_reaches_the_model_made_strict_and_for_this_turn_only() {
    let sidecar = Sidecar::start().await;
    let schema = r#"{"type": "object", "properties": {"name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "object", "properties": {"tag": {"type": "string"}}}}}}"#;
    let short = r#"{"title": "Answer", "properties": [
        {"name": "summary", "description": "In a sentence", "schema": {"type": "string"}}]}"#;
    let with_schema = |schema: &str| pb::RunTurnRequest {
        turn_options: Some(pb::TurnOptions {
            output_schema: schema.to_owned(),
            ..Default::default()
        }),
        ..prompt("a", "")
    };
    let format = sidecar.shown("/text/format", with_schema(schema)).await;
    assert_eq!(
        (format["type"].as_str(), format["strict"].as_bool()),
        (Some("json_schema"), Some(true))
    );
    let object = &format["schema"];
    assert_eq!(object["additionalProperties"], false, "{object:#}");
    assert_eq!(object["required"], serde_json::json!(["name", "tags"]));
    let inner = &object["properties"]["tags"]["items"];
    assert_eq!(inner["additionalProperties"], false, "{object:#}");
    assert_eq!(inner["required"], serde_json::json!(["tag"]));

    let format = sidecar.shown("/text/format", with_schema(short)).await;
    assert_eq!(format["schema"]["properties"]["summary"]["type"], "string", "{format:#}");
    assert_eq!(format["schema"]["required"], serde_json::json!(["summary"]));
    assert_eq!(format["schema"]["additionalProperties"], false);

    assert_eq!(sidecar.shown("/text/format", prompt("a", "")).await, Value::Null);

    let mut answer = with_schema(schema);
    answer.inputs = vec![text(r#"[[json {"name": "x", "tags": []}]]"#)];
    let told = sidecar.run(answer).await;
    let response: Value = serde_json::from_str(told.final_response()).unwrap();
    assert_eq!(response, serde_json::json!({"name": "x", "tags": []}));
    sidecar.stop().await;
}

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
    let messages = told.items().into_iter().filter_map(|(_, kind)| match kind {
        Kind::AgentMessage(message) => Some(serde_json::from_str(&message.text).expect("JSON")),
        _ => None,
    });
    PARTS.into_iter().zip(messages).collect()
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
    serde_json::json!({ "mode": mode, "network": network })
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
        expected: |_| serde_json::json!({ "mode": "danger-full-access", "network": true }),
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
        expected: |_| serde_json::json!({ "mode": "workspace-write", "network": true }),
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
        expected: |_| serde_json::json!({ "mode": "workspace-write", "network": false }),
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

#[tokio::test]
async fn an_explicit_thread_beats_the_bound_one_and_that_the_configured_one() {
    let place = support::Place::new();
    // A first sidecar makes the threads that the second is configured with and asked for.
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let configured = sidecar.say("configured", "one").await.thread_id().to_owned();
    let explicit = sidecar.say("explicit", "one").await.thread_id().to_owned();
    let place = sidecar.stop().await;

    let thread_id = configured.clone();
    let sidecar = Sidecar::in_place(place, |_, config| {
        let tool = ToolDefaults { thread_id: Some(thread_id), ..ToolDefaults::default() };
        config.tools.insert("codex_engineer".to_owned(), tool);
    })
    .await;
    let engineer = |words: &str| pb::RunTurnRequest {
        tool_name: "codex_engineer".into(),
        ..prompt("a", words)
    };
    // Not bound yet: the tool's own thread, which is bound by that.
    let told = sidecar.run(engineer("two")).await;
    assert_eq!(
        (told.thread_id(), told.origin()),
        (configured.as_str(), pb::ThreadOrigin::Explicit)
    );
    assert_eq!(told.final_response(), "You said: two (user messages so far: 2)");
    // The tool says nothing of another tool's thread.
    let other = sidecar.say("a", "one").await;
    assert_eq!(other.origin(), pb::ThreadOrigin::New);
    // Named: bound in place of the other.
    let named = pb::RunTurnRequest { thread_id: format!(" {explicit} "), ..engineer("two") };
    let told = sidecar.run(named).await;
    assert_eq!((told.thread_id(), told.origin()), (explicit.as_str(), pb::ThreadOrigin::Explicit));
    assert_eq!(told.final_response(), "You said: two (user messages so far: 2)");
    // Bound beats configured.
    let told = sidecar.run(engineer("three")).await;
    assert_eq!((told.thread_id(), told.origin()), (explicit.as_str(), pb::ThreadOrigin::Resumed));
    assert_eq!(told.final_response(), "You said: three (user messages so far: 3)");
    // Named without a context: run, and bound to nobody.
    let contexts = sidecar.info().await.counts.unwrap().contexts;
    let nobody = pb::RunTurnRequest { thread_id: configured.clone(), ..prompt("", "three") };
    let told = sidecar.run(nobody).await;
    assert_eq!(told.thread_id(), configured);
    assert_eq!(told.final_response(), "You said: three (user messages so far: 3)");
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, contexts);
    sidecar.stop().await;
}

#[tokio::test]
async fn an_ephemeral_turn_leaves_nothing() {
    let sidecar = Sidecar::start().await;
    let told = sidecar.run(ephemeral("hello")).await;
    assert_eq!(told.origin(), pb::ThreadOrigin::New);
    assert_eq!(told.final_response(), "You said: hello (user messages so far: 1)");
    assert_eq!(sidecar.place.rollouts(), Vec::<PathBuf>::new());
    assert_eq!(sidecar.info().await.counts.unwrap().contexts, 0);
    let again = pb::RunTurnRequest { thread_id: told.thread_id().to_owned(), ..prompt("a", "x") };
    sidecar.refused(again).await.assert(Code::NotFound, "THREAD_NOT_FOUND");
    // To compare with: one that is kept.
    sidecar.say("a", "hello").await;
    assert_eq!(sidecar.place.rollouts().len(), 1);
    sidecar.stop().await;
}

#[tokio::test]
async fn a_turn_that_fails_says_why_and_its_context_stays_bound() {
    struct Row {
        words: &'static str,
        reason: &'static str,
        http_status: Option<i32>,
        retryable: bool,
        side_effects_possible: bool,
    }
    let row = |words, reason, http_status, retryable| Row {
        words,
        reason,
        http_status,
        retryable,
        side_effects_possible: false,
    };
    let rows = [
        row("[[status 401]]", "UNAUTHORIZED", Some(401), false),
        row("[[status 429]]", "RATE_LIMIT_EXCEEDED", Some(429), true),
        row("[[status 500]]", "INTERNAL_SERVER_ERROR", None, true),
        row("[[status 400]]", "BAD_REQUEST", Some(400), false),
        row("[[fail context_length_exceeded]]", "CONTEXT_WINDOW_EXCEEDED", None, false),
        row("[[fail insufficient_quota]]", "USAGE_LIMIT_EXCEEDED", None, false),
        row(
            "[[fail rate_limit_exceeded Please try again in 7.5s]]",
            "RATE_LIMIT_EXCEEDED",
            None,
            true,
        ),
        row("[[cut]]", "RESPONSE_STREAM_DISCONNECTED", None, true),
        Row {
            words: "[[run true]] [[status 503]]",
            reason: "HTTP_CONNECTION_FAILED",
            http_status: Some(503),
            retryable: true,
            side_effects_possible: true,
        },
    ];
    let sidecar = Sidecar::start().await;
    for Row { words, reason, http_status, retryable, side_effects_possible } in rows {
        // The context's first turn: it is bound although it never had a good one.
        let told = sidecar.run(unsandboxed(words, words)).await;
        let error = told.failed();
        let seen = (error.reason.as_str(), error.http_status, error.retryable);
        assert_eq!(seen, (reason, http_status, retryable), "{words}: {error:#?}");
        assert_eq!(error.side_effects_possible, side_effects_possible, "{words}: {error:#?}");
        assert!(!error.message.is_empty(), "{words}");
        if words.contains("7.5s") {
            let wait = error.retry_after.expect("the provider said when");
            assert_eq!((wait.seconds, wait.nanos), (7, 500_000_000));
        }
        let thread_error = told.all().find_map(|event| match event {
            Event::ThreadError(pb::ThreadError { error, will_retry }) => Some((error, will_retry)),
            _ => None,
        });
        let (thread_error, will_retry) = thread_error.expect("the error is told when it happens");
        assert!(!will_retry, "{words}");
        assert_eq!(thread_error.as_ref().unwrap().reason, reason, "{words}");

        assert_eq!(sidecar.context(words).await.unwrap().thread_id, told.thread_id());
        let next = sidecar.say(words, "and now?").await;
        assert_eq!(
            (next.thread_id(), next.origin()),
            (told.thread_id(), pb::ThreadOrigin::Resumed)
        );
        assert!(next.final_response().starts_with("You said: and now?"), "{words}");
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn a_retry_of_codex_is_told_and_is_not_the_end() {
    // With retries, unlike in the other tests: the model breaks off once per request.
    let sidecar = Sidecar::with(|config| {
        let retries = "model_providers.offline.stream_max_retries = 1";
        let table: toml::Table = toml::from_str(retries).unwrap();
        let providers = config.worker.config["model_providers"]["offline"].as_table_mut().unwrap();
        let retries = table["model_providers"]["offline"].as_table().unwrap().clone();
        providers.extend(retries);
    })
    .await;
    let told = sidecar.say("a", "[[cut]]").await;
    let will_retry: Vec<bool> = told
        .all()
        .filter_map(|event| match event {
            Event::ThreadError(error) => Some(error.will_retry),
            _ => None,
        })
        .collect();
    assert_eq!(will_retry, [true, false], "{:?}", told.kinds());
    assert!(told.failed().retryable);
    sidecar.stop().await;
}

#[tokio::test]
async fn what_codex_asks_is_declined_and_the_turn_goes_on() {
    let sidecar = Sidecar::start().await;
    let escalate = r#"[[tool exec_command {"cmd": "touch escaped", "sandbox_permissions": "require_escalated", "justification": "may I?"}]] [[say done]]"#;
    let request = with_options(prompt("a", escalate), |options| {
        options.set_sandbox_mode(pb::SandboxMode::ReadOnly);
        options.set_approval_policy(pb::ApprovalPolicy::OnRequest);
    });
    let told = sidecar.run(request).await;
    assert_eq!(told.final_response(), "done");
    assert_eq!(told.command().status(), pb::CommandExecutionStatus::Declined);
    assert!(!sidecar.place.work().join("escaped").exists());
    let raised = told.all().find_map(|event| match event {
        Event::RequestRaised(pb::RequestRaised { request }) => request.as_ref(),
        _ => None,
    });
    let raised = raised.expect("what is asked is told");
    let Some(pb::codex_request::Kind::CommandApproval(approval)) = &raised.kind else {
        panic!("{raised:#?}");
    };
    assert!(approval.command.contains("touch escaped"), "{approval:#?}");
    assert_eq!(approval.reason, "may I?");
    let resolved = told.all().find_map(|event| match event {
        Event::RequestResolved(resolved) => Some(resolved),
        _ => None,
    });
    let resolved = resolved.expect("what is settled is told");
    assert_eq!(resolved.request_id, raised.request_id);
    assert_eq!(resolved.resolution(), pb::RequestResolution::Declined);

    sidecar.stop().await;
}

#[tokio::test]
async fn a_function_that_is_lent_is_answered_for_by_who_lends_it() {
    let sidecar = Sidecar::start().await;
    let lent = pb::DynamicTool {
        name: "lookup".into(),
        description: "Looks something up".into(),
        input_schema: r#"{"type": "object", "properties": {"key": {"type": "string"}}}"#.into(),
    };
    let lending = |context: &str| {
        let words = r#"[[tool lookup {"key": "x"}]] [[say went on]]"#;
        with_options(prompt(context, words), |options| options.dynamic_tools = vec![lent.clone()])
    };
    let resolution = |told: &Told| {
        let resolved = told.all().find_map(|event| match event {
            Event::RequestResolved(resolved) => Some(resolved.resolution()),
            _ => None,
        });
        resolved.expect("what is settled is told")
    };
    let call_of = |told: &Told| {
        let (_, call) = told.item("dynamic_tool_call", |kind| match kind {
            Kind::DynamicToolCall(call) => Some(call),
            _ => None,
        });
        call.clone()
    };

    let mut turn = sidecar.begin(lending("a")).await;
    let asked = turn
        .until("request_raised", |event| match event {
            Event::RequestRaised(pb::RequestRaised { request }) => request.clone(),
            _ => None,
        })
        .await;
    let Some(pb::codex_request::Kind::ToolCall(call)) = &asked.kind else { panic!("{asked:#?}") };
    assert_eq!(call.tool, "lookup");
    assert_eq!(serde_json::from_str::<Value>(&call.arguments_json).unwrap()["key"], "x");
    let text = pb::tool_content::Content::Text("found it".into());
    let content = vec![pb::ToolContent { content: Some(text) }];
    let answer = pb::ToolCallAnswer { content: content.clone(), success: true };
    let answer = pb::AnswerRequestRequest {
        turn_id: turn.turn_id().to_owned(),
        request_id: asked.request_id,
        answer: Some(pb::answer_request_request::Answer::ToolCall(answer)),
    };
    sidecar.codex().answer_request(answer).await.unwrap();
    let told = turn.rest().await;
    assert_eq!(told.final_response(), "went on");
    assert_eq!(resolution(&told), pb::RequestResolution::Answered);
    let call = call_of(&told);
    assert_eq!((call.status(), call.success), (pb::DynamicToolCallStatus::Completed, Some(true)));
    assert_eq!(call.content, content);

    // Nobody answers for it.
    let mut unanswered = lending("b");
    unanswered.turn_options.get_or_insert_default().answer_timeout =
        Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let told = sidecar.run(unanswered).await;
    assert_eq!(told.final_response(), "went on");
    assert_eq!(resolution(&told), pb::RequestResolution::TimedOut);
    let call = call_of(&told);
    assert_eq!((call.status(), call.success), (pb::DynamicToolCallStatus::Failed, Some(false)));
    sidecar.stop().await;
}

#[tokio::test]
async fn a_thread_that_is_gone_is_told_and_replaced_only_if_asked_for() {
    let sidecar = Sidecar::with(|config| config.workers = 2).await;
    let first = sidecar.say("a", "hello").await;
    let place = sidecar.stop().await;
    for rollout in place.rollouts() {
        std::fs::remove_file(rollout).unwrap();
    }
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;
    let bind = pb::BindContextRequest {
        context_id: "a".into(),
        thread_id: first.thread_id().to_owned(),
        ..Default::default()
    };
    sidecar.codex().bind_context(bind).await.unwrap();
    let refused = sidecar.refused(prompt("a", "again")).await;
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    assert_eq!(refused.metadata["thread_id"], first.thread_id());
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, first.thread_id());

    let mut replace = prompt("a", "again");
    replace.set_missing_thread_policy(pb::MissingThreadPolicy::StartNew);
    let told = sidecar.run(replace).await;
    assert_eq!(told.origin(), pb::ThreadOrigin::New);
    assert_ne!(told.thread_id(), first.thread_id());
    assert_eq!(sidecar.context("a").await.unwrap().thread_id, told.thread_id());
    assert!(told.warnings().iter().any(|warning| warning.message.contains(first.thread_id())));
    assert!(
        told.warnings().iter().all(|warning| !warning.code.is_empty()),
        "{:?}",
        told.warnings()
    );
    sidecar.stop().await;
}

#[tokio::test]
async fn a_tool_of_an_mcp_server_is_typed() {
    let place = support::Place::new();
    let server = place.path().join("server.py");
    std::fs::write(&server, MCP_SERVER).unwrap();
    let sidecar = Sidecar::in_place(place, |_, config| {
        let server = format!(
            "mcp_servers.desk.command = \"python3\"\nmcp_servers.desk.args = [{:?}]\n\
             mcp_servers.desk.default_tools_approval_mode = \"approve\"\n",
            server.display().to_string()
        );
        let table: toml::Table = toml::from_str(&server).unwrap();
        config.worker.config.extend(table);
    })
    .await;
    let script = r#"[[tool desk.ring {"times": 2}]] [[say done]]"#;
    let told = sidecar.run(unsandboxed("mcp", script)).await;
    assert_eq!(told.final_response(), "done");
    let (_, call) = told.item("mcp_tool_call", |kind| match kind {
        Kind::McpToolCall(call) => Some(call),
        _ => None,
    });
    assert_eq!((call.server.as_str(), call.tool.as_str()), ("desk", "ring"), "{call:#?}");
    assert_eq!(call.status(), pb::McpToolCallStatus::Completed, "{call:#?}");
    assert_eq!(serde_json::from_str::<Value>(&call.arguments_json).unwrap()["times"], 2);
    let result: Value = serde_json::from_str(&call.result_json).unwrap();
    assert_eq!(result["content"][0]["text"], "rang 2 times", "{result:#}");
    sidecar.stop().await;
}

/// The smallest MCP server: one tool, on standard input and output.
const MCP_SERVER: &str = r#"
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params") or {}
    if method == "initialize":
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "desk", "version": "1"}}
    elif method == "tools/list":
        schema = {"type": "object", "properties": {"times": {"type": "integer"}}}
        result = {"tools": [{"name": "ring", "description": "Rings", "inputSchema": schema}]}
    elif method == "tools/call":
        words = "rang %d times" % params["arguments"]["times"]
        result = {"content": [{"type": "text", "text": words}]}
    else:
        result = {}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"#;

/// A PNG of one pixel.
const DOT: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x48, 0x44, 0x52,
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x06, 0x00, 0x00, 0x00, 0x1f, 0x15, 0xc4,
    0x89, 0x00, 0x00, 0x00, 0x0d, 0x49, 0x44, 0x41, 0x54, 0x78, 0x9c, 0x63, 0x60, 0x60, 0x60, 0xf8,
    0x0f, 0x00, 0x01, 0x04, 0x01, 0x00, 0x5f, 0xe5, 0xc3, 0x4b, 0x00, 0x00, 0x00, 0x00, 0x49, 0x45,
    0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];
const DOT_BASE64: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGD4DwABBAEAX+XDSwAAAABJRU5ErkJggg==";
