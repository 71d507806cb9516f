//! What the real CLI asks in a turn, and what becomes of the answers: each kind of question answered in
//! every way, declined, too late, interrupted, lost with its worker, and answered by somebody else.
//!
//! The offline model has Codex ask (`[[escalate]]`, `[[write]]` in a read-only sandbox, `[[permit]]`,
//! `[[ask]]`, `[[tool]]` of an MCP server or of a lent function); the sidecar and the CLI are the real ones.

mod answers;
mod elicitations;
mod fates;
mod functions;
mod review;

use std::path::Path;

use codex_sidecar::pb;
use codex_sidecar::pb::answer_request_request::Answer;
use codex_sidecar::pb::codex_request::Kind as Asked;
use codex_sidecar::pb::turn_event::Event;

use crate::support::{Client, PATIENCE, Place, Refused, Told, Turn, prompt, within};

/// A turn under `on-request` in a read-only sandbox, whose caller is asked.
fn asking(context: &str, words: &str) -> pb::RunTurnRequest {
    let mut request = prompt(context, words);
    request.set_question_policy(pb::QuestionPolicy::Ask);
    let options = request.thread_options.get_or_insert_default();
    options.set_sandbox_mode(pb::SandboxMode::ReadOnly);
    options.set_approval_policy(pb::ApprovalPolicy::OnRequest);
    request
}

/// What a turn asks next.
async fn asked(turn: &mut Turn) -> pb::CodexRequest {
    let raised = |event: &Event| match event {
        Event::RequestRaised(pb::RequestRaised { request }) => request.clone(),
        _ => None,
    };
    turn.until("request_raised", raised).await
}

async fn answer(
    client: &Client,
    turn_id: &str,
    request_id: &str,
    answer: Answer,
) -> Result<(), Refused> {
    let request = pb::AnswerRequestRequest {
        turn_id: turn_id.to_owned(),
        request_id: request_id.to_owned(),
        answer: Some(answer),
    };
    let mut codex = client.codex();
    let answered = within(PATIENCE, "AnswerRequest", codex.answer_request(request)).await;
    answered.map(|_| ()).map_err(Refused::from)
}

/// Runs a turn to its end, with what it asks answered in this order. It asks nothing else.
async fn run_answering(
    client: &Client,
    request: pb::RunTurnRequest,
    answers: impl IntoIterator<Item = Answer>,
) -> Told {
    let mut turn = client.begin(request).await;
    let mut count = 0;
    for given in answers {
        let request = asked(&mut turn).await;
        answer(client, turn.turn_id(), &request.request_id, given).await.unwrap();
        count += 1;
    }
    let told = turn.rest().await;
    let by = |resolution: pb::RequestResolved| (resolution.resolution(), resolution.resolved_by);
    for (resolution, by) in resolved(&told).into_iter().map(by) {
        assert_eq!(resolution, pb::RequestResolution::Answered, "{told:#?}");
        assert!(by.starts_with("127.0.0.1:"), "{by:?}");
    }
    assert_eq!(raised(&told).len(), count, "{told:#?}");
    assert_eq!(resolved(&told).len(), count, "{told:#?}");
    told
}

fn raised(told: &Told) -> Vec<&pb::CodexRequest> {
    let raised = told.all().filter_map(|event| match event {
        Event::RequestRaised(raised) => raised.request.as_ref(),
        _ => None,
    });
    raised.collect()
}

fn resolved(told: &Told) -> Vec<pb::RequestResolved> {
    let resolved = told.all().filter_map(|event| match event {
        Event::RequestResolved(resolved) => Some(resolved.clone()),
        _ => None,
    });
    resolved.collect()
}

fn decide(decision: pb::ApprovalDecision) -> Answer {
    Answer::Approval(pb::ApprovalAnswer { decision: decision.into(), ..Default::default() })
}

fn grant(permissions_json: &str) -> Answer {
    let permissions_json = permissions_json.to_owned();
    Answer::Permissions(pb::PermissionsAnswer { permissions_json, ..Default::default() })
}

/// Answers to questions by their ids.
fn say(answers: &[(&str, &[&str])]) -> Answer {
    let answers = answers.iter().map(|(question_id, answers)| pb::UserQuestionAnswer {
        question_id: (*question_id).to_owned(),
        answers: answers.iter().map(|answer| (*answer).to_owned()).collect(),
    });
    Answer::UserQuestions(pb::UserQuestionsAnswer { answers: answers.collect() })
}

fn elicit(action: pb::ElicitationAction, content_json: &str) -> Answer {
    let (action, content_json) = (action.into(), content_json.to_owned());
    Answer::Elicitation(pb::ElicitationAnswer { action, content_json, ..Default::default() })
}

fn give_back(text: &str) -> Answer {
    let content = pb::tool_content::Content::Text(text.to_owned());
    let content = vec![pb::ToolContent { content: Some(content) }];
    Answer::ToolCall(pb::ToolCallAnswer { content, success: true })
}

/// A function that the caller lends.
fn lent(name: &str) -> pb::DynamicTool {
    pb::DynamicTool {
        name: name.to_owned(),
        description: "Looks something up".to_owned(),
        input_schema: r#"{"type": "object", "properties": {"n": {"type": "integer"}}}"#.to_owned(),
    }
}

fn lending(context: &str, words: &str) -> pb::RunTurnRequest {
    let mut request = asking(context, words);
    request.thread_options.get_or_insert_default().dynamic_tools = vec![lent("look")];
    request
}

/// Configures an MCP server that asks its user, `tests/mcp/desk.py`.
pub(crate) fn with_desk(place: &Place) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mcp/desk.py");
    let config = format!(
        "[mcp_servers.desk]\ncommand = \"python3\"\nargs = [{script:?}]\nrequired = true\n"
    );
    std::fs::write(place.codex_home().join("config.toml"), config).unwrap();
}

/// The kinds of questions, by their names in the contract.
fn kind_of(request: &pb::CodexRequest) -> &'static str {
    match &request.kind {
        Some(Asked::CommandApproval(_)) => "command_approval",
        Some(Asked::FileChangeApproval(_)) => "file_change_approval",
        Some(Asked::PermissionsApproval(_)) => "permissions_approval",
        Some(Asked::UserQuestions(_)) => "user_questions",
        Some(Asked::Elicitation(_)) => "elicitation",
        Some(Asked::ToolCall(_)) => "tool_call",
        Some(Asked::Unknown(_)) | None => "unknown",
    }
}

/// A prompt for each kind of question. What may not be done would leave this file.
fn every_kind(forbidden: &Path) -> Vec<(&'static str, String)> {
    let forbidden = forbidden.display();
    let permissions = r#"{"network": {"enabled": true}}"#;
    vec![
        ("command_approval", format!("[[escalate touch {forbidden}]]")),
        ("file_change_approval", format!("[[write {forbidden} x]]")),
        ("permissions_approval", format!("[[permit {permissions}]]")),
        ("user_questions", "[[ask Which? | Red | Blue]]".to_owned()),
        ("elicitation", "[[tool desk.form]]".to_owned()),
        ("tool_call", r#"[[tool look {"n": 1}]]"#.to_owned()),
    ]
}

/// The outputs of the model's calls so far, in a later turn of the same context.
async fn outputs(client: &Client, context: &str) -> Vec<serde_json::Value> {
    let input = client.shown("/input", prompt(context, "")).await;
    let items = input.as_array().expect("a list").iter();
    let outputs = items
        .filter(|item| item["type"].as_str().is_some_and(|kind| kind.ends_with("_output")))
        .map(|item| item["output"].clone());
    outputs.collect()
}
