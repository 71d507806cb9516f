//! What a turn tells over real gRPC, on the real CLI: items, deltas, usage, the final response, and what
//! the contract has no name for.

use crate::support;
use crate::support::{Sidecar, Told, prompt, text, unsandboxed};
use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::turn_event::Event;
use serde_json::{Value, json};

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
async fn a_tool_of_an_mcp_server_is_typed() {
    let place = support::Place::new();
    let schema = json!({ "type": "object", "properties": { "times": { "type": "integer" } } });
    let ring = json!({ "name": "ring", "description": "Rings", "inputSchema": schema });
    let desk = support::desk(&place, &ring, "rang %(times)d times");
    let sidecar = Sidecar::in_place(place, |_, config| {
        let desk = desk + "default_tools_approval_mode = \"approve\"\n";
        let table: toml::Table = toml::from_str(&desk).unwrap();
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
        assert_eq!(told.messages(), said);
    }
    sidecar.stop().await;
}
