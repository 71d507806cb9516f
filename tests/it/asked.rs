//! What Codex asks in a turn: nobody approves by default, and who lends a function answers for it.

use crate::support::{Sidecar, Told, prompt, with_options};
use codex_sidecar::pb;
use codex_sidecar::pb::item::Kind;
use codex_sidecar::pb::turn_event::Event;
use serde_json::Value;

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
