//! What Codex asks, from its line to the answer that it reads, over gRPC's own messages.

use serde_json::{Value, json};

use crate::model::question::{
    Answer, ApprovalAnswer, ApprovalDecision, ElicitationAction, ElicitationAnswer,
    NetworkPolicyAmendment, PermissionsAnswer, ToolCallAnswer, UserQuestionAnswer,
    UserQuestionsAnswer,
};
use crate::pb;
use crate::pb::turn_event::Event;
use crate::testing::{Sidecar, Turn, prompt, sidecar};
use crate::worker::testing::Codex;

/// A turn whose caller is asked.
fn asking(context: &str) -> pb::RunTurnRequest {
    let mut request = prompt(context, "x");
    request.set_question_policy(pb::QuestionPolicy::Ask);
    request
}

/// A turn that Codex has begun and goes on with.
async fn begin(sidecar: &Sidecar, codex: &mut Codex, request: pb::RunTurnRequest) -> Turn {
    codex.holds_turns = true;
    let mut turn = codex.during(sidecar.begin(request)).await.unwrap();
    codex.during(turn.until("turn_started")).await;
    turn
}

/// Codex asks something in the turn that was begun last.
async fn ask(codex: &mut Codex, id: u64, method: &str, mut params: Value) {
    let (thread_id, turn_id) = codex.turns.last().unwrap();
    params["threadId"] = json!(thread_id);
    params["turnId"] = json!(turn_id);
    codex.ask(id, method, params).await;
}

fn raised(turn: &Turn) -> &pb::CodexRequest {
    let raised = turn.all().filter_map(|event| match event {
        Event::RequestRaised(raised) => raised.request.as_ref(),
        _ => None,
    });
    raised.last().unwrap()
}

fn resolved(turn: &Turn) -> (pb::RequestResolution, &str) {
    let resolved = turn.all().filter_map(|event| match event {
        Event::RequestResolved(resolved) => {
            Some((resolved.resolution(), resolved.resolved_by.as_str()))
        }
        _ => None,
    });
    resolved.last().unwrap()
}

fn decide(decision: ApprovalDecision) -> Answer {
    Answer::Approval(ApprovalAnswer { decision: decision.into(), ..Default::default() })
}

/// A question of each kind, an answer to it, and what Codex reads.
fn kinds() -> Vec<(&'static str, Value, Answer, Value)> {
    let amended = ApprovalAnswer {
        decision: ApprovalDecision::ApplyNetworkPolicyAmendment.into(),
        network_policy_amendment: Some(NetworkPolicyAmendment {
            host: "h".to_owned(),
            allow: true,
        }),
        ..Default::default()
    };
    let rule = json!({ "host": "h", "action": "allow" });
    let grant = r#"{"network":{"enabled":true}}"#;
    let chosen =
        UserQuestionAnswer { question_id: "color".to_owned(), answers: vec!["Blue".to_owned()] };
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } } });
    vec![
        (
            "item/commandExecution/requestApproval",
            json!({
                "itemId": "i", "command": "touch x", "cwd": "/w", "kind": "command",
                "proposedExecpolicyAmendment": ["touch"],
                "availableDecisions": [
                    "accept",
                    { "acceptWithExecpolicyAmendment": { "execpolicy_amendment": ["touch"] } },
                    "cancel",
                ],
            }),
            decide(ApprovalDecision::AcceptWithExecPolicyAmendment),
            json!({ "decision": {
                "acceptWithExecpolicyAmendment": { "execpolicy_amendment": ["touch"] },
            } }),
        ),
        (
            "item/commandExecution/requestApproval",
            json!({
                "itemId": "i", "proposedNetworkPolicyAmendments": [rule],
                "networkApprovalContext": { "host": "h", "protocol": "https" },
            }),
            Answer::Approval(amended),
            json!({ "decision": {
                "applyNetworkPolicyAmendment": { "network_policy_amendment": rule },
            } }),
        ),
        (
            "item/fileChange/requestApproval",
            json!({ "itemId": "i", "reason": "why" }),
            decide(ApprovalDecision::AcceptForSession),
            json!({ "decision": "acceptForSession" }),
        ),
        (
            "item/permissions/requestApproval",
            json!({ "itemId": "i", "cwd": "/w", "permissions": { "network": { "enabled": true } } }),
            Answer::Permissions(PermissionsAnswer {
                permissions_json: grant.to_owned(),
                ..Default::default()
            }),
            json!({ "permissions": { "network": { "enabled": true } }, "scope": "turn" }),
        ),
        (
            "item/tool/requestUserInput",
            json!({ "itemId": "i", "isBlocking": false, "questions": [{
                "id": "color", "header": "Color", "question": "Which?", "isOther": false,
                "isSecret": false, "options": [{ "label": "Red" }, { "label": "Blue" }],
            }] }),
            Answer::UserQuestions(UserQuestionsAnswer { answers: vec![chosen] }),
            json!({ "answers": { "color": { "answers": ["Blue"] } } }),
        ),
        (
            "mcpServer/elicitation/request",
            json!({ "serverName": "s", "mode": "form", "message": "m", "requestedSchema": schema }),
            Answer::Elicitation(ElicitationAnswer {
                action: ElicitationAction::Accept.into(),
                content_json: r#"{"n":1}"#.to_owned(),
                ..Default::default()
            }),
            json!({ "action": "accept", "content": { "n": 1 }, "_meta": null }),
        ),
        (
            "item/tool/call",
            json!({ "tool": "f", "callId": "c", "arguments": {} }),
            Answer::ToolCall(ToolCallAnswer { content: Vec::new(), success: true }),
            json!({ "contentItems": [], "success": true }),
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn each_kind_waits_for_its_answer_which_codex_reads_as_it_was_given() {
    let (sidecar, mut codex) = sidecar().await;
    let mut turn = begin(&sidecar, &mut codex, asking("a")).await;
    let began = std::time::SystemTime::now();
    for (id, (method, params, answer, read)) in (1..).zip(kinds()) {
        ask(&mut codex, id, method, params).await;
        codex.during(turn.until("request_raised")).await;
        let question = raised(&turn);
        assert_eq!(question.request_id, id.to_string());
        let expires = std::time::SystemTime::try_from(question.expire_time.unwrap()).unwrap();
        assert_eq!(expires.duration_since(began).unwrap().as_secs(), 600, "{method}");
        let request_id = question.request_id.clone();
        // Another connection than that which runs the turn.
        let answered = sidecar.answer_as("127.0.0.1:4", &turn.id(), &request_id, answer).await;
        answered.unwrap();
        assert_eq!(codex.answered(id).await["result"], read);
        codex.during(turn.until("request_resolved")).await;
        assert_eq!(resolved(&turn), (pb::RequestResolution::Answered, "127.0.0.1:4"));
    }
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    turn.completed();
}
