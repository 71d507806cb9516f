//! What a turn asks, put to the MCP client as an elicitation, and its answer.
//!
//! Approvals are asked as `codex mcp-server` asked them, with the same extra fields. Its clients had to
//! answer with a `decision` beside the protocol's `action`; here the action is enough, and a decision
//! is heard where there is one. What a client can't be asked is declined at once: functions (nobody
//! lends any here) and secrets, for which the protocol has no form.

use rmcp::model::{ClientCapabilities, ClientResult, CustomRequest, ServerRequest};
use rmcp::service::{Peer, PeerRequestOptions, RoleServer};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::grpc::caller::Caller;
use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::codex_request::Kind;
use crate::pb::{ApprovalDecision as Decision, ElicitationAction as Action};

/// How the client can be asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Modes {
    pub(super) form: bool,
    pub(super) url: bool,
}

impl Modes {
    pub(super) fn of(capabilities: Option<ClientCapabilities>) -> Modes {
        let elicitation = capabilities.and_then(|capabilities| capabilities.elicitation);
        elicitation.map_or_else(Modes::default, |modes| Modes {
            // Without a mode it is the one that came first.
            form: modes.form.is_some() || modes.url.is_none(),
            url: modes.url.is_some(),
        })
    }
}

/// What is asked, and of which call.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) question: pb::CodexRequest,
    pub(super) turn_id: String,
    pub(super) thread_id: String,
    pub(super) codex_turn_id: String,
    /// The client's id of the call.
    pub(super) call_id: String,
}

/// What the client said.
#[derive(Debug, Clone, PartialEq)]
struct Reply {
    action: Action,
    content: Value,
    decision: Option<Decision>,
}

/// Asks the client, and hands its answer to the sidecar; declines what it can't be asked or does not
/// answer. Takes the question back from it once it `is_withdrawn`.
pub(super) async fn ask(
    question: Question,
    modes: Modes,
    caller: Caller,
    peer: Peer<RoleServer>,
    is_withdrawn: CancellationToken,
) {
    let reply = match elicitation(&question, modes) {
        Some(params) => {
            let request = CustomRequest::new("elicitation/create", Some(params));
            let request = ServerRequest::CustomRequest(request);
            let options = PeerRequestOptions::no_options();
            match peer.send_cancellable_request(request, options).await {
                Ok(mut asked) => tokio::select! {
                    said = &mut asked.rx => said.ok().and_then(Result::ok).and_then(Reply::of),
                    () = is_withdrawn.cancelled() => {
                        let why = "it needs no answer any more".to_owned();
                        let _ = asked.cancel(Some(why)).await;
                        return;
                    }
                },
                Err(_) => None,
            }
        }
        None => None,
    };
    let reply = reply.unwrap_or_else(Reply::declined);
    let Some(answer) = answer(&question.question, &reply) else { return };
    let Question { question: pb::CodexRequest { request_id, .. }, turn_id, .. } = question;
    let send = |answer| {
        let (turn_id, request_id) = (turn_id.clone(), request_id.clone());
        caller.answer_request(pb::AnswerRequestRequest {
            turn_id,
            request_id,
            answer: Some(answer),
        })
    };
    let declined = answer_declined(&answer);
    // An answer that does not fit leaves the question open, and the turn waiting.
    if let Err(refused) = send(answer).await
        && refused.code == "INVALID_ARGUMENT"
    {
        let _ = send(declined).await;
    }
}

impl Reply {
    fn declined() -> Reply {
        Reply { action: Action::Decline, content: Value::Null, decision: None }
    }

    fn of(result: ClientResult) -> Option<Reply> {
        let said = serde_json::to_value(result).ok()?;
        let decision = [&said["decision"], &said["content"]["decision"]];
        let decision = decision.into_iter().find_map(decision_of);
        let action = match said["action"].as_str() {
            Some("accept") => Action::Accept,
            Some("decline") => Action::Decline,
            Some("cancel") => Action::Cancel,
            // Of clients that know `codex mcp-server` alone.
            _ => match decision? {
                Decision::Accept | Decision::AcceptForSession => Action::Accept,
                _ => Action::Decline,
            },
        };
        Some(Reply { action, content: said["content"].clone(), decision })
    }
}

/// The word of `codex mcp-server`.
fn decision_of(word: &Value) -> Option<Decision> {
    Some(match word.as_str()? {
        "approved" => Decision::Accept,
        "approved_for_session" => Decision::AcceptForSession,
        "denied" => Decision::Decline,
        "abort" => Decision::Cancel,
        _ => return None,
    })
}

/// The parameters of the elicitation; `None` for what this client can't be asked.
fn elicitation(question: &Question, modes: Modes) -> Option<Value> {
    let kind = question.question.kind.as_ref()?;
    if let Kind::Elicitation(pb::Elicitation { mode, message, url, elicitation_id, .. }) = kind
        && mode == "url"
    {
        let params = json!({
            "mode": "url",
            "message": message,
            "url": url,
            "elicitationId": elicitation_id,
        });
        return modes.url.then_some(params);
    }
    if !modes.form {
        return None;
    }
    let mut params = match kind {
        Kind::CommandApproval(approval) => command_approval(approval),
        Kind::FileChangeApproval(approval) => file_change_approval(approval),
        Kind::PermissionsApproval(approval) => {
            let pb::PermissionsApproval { permissions_json, reason, .. } = approval;
            let message = format!("Allow Codex these permissions: {permissions_json}?");
            json!({
                "message": with_reason(message, reason),
                "requestedSchema": nothing(),
                "codex_elicitation": "permissions-approval",
            })
        }
        Kind::UserQuestions(asked) => {
            json!({ "message": "Codex asks", "requestedSchema": questions(&asked.questions)? })
        }
        Kind::Elicitation(asked) => {
            let schema = serde_json::from_str(&asked.requested_schema_json);
            json!({
                "message": format!("{}: {}", asked.server_name, asked.message),
                "requestedSchema": schema.ok().filter(Value::is_object).unwrap_or_else(nothing),
            })
        }
        Kind::ToolCall(_) | Kind::Unknown(_) => return None,
    };
    for (key, value) in [
        ("threadId", &question.thread_id),
        ("codex_mcp_tool_call_id", &question.call_id),
        ("codex_event_id", &question.codex_turn_id),
        ("codex_call_id", &question.question.item_id),
    ] {
        params[key] = json!(value);
    }
    Some(params)
}

fn nothing() -> Value {
    json!({ "type": "object", "properties": {} })
}

fn with_reason(message: String, reason: &str) -> String {
    if reason.is_empty() { message } else { format!("{message} {reason}") }
}

fn command_approval(approval: &pb::CommandApproval) -> Value {
    let pb::CommandApproval { command, working_directory, network_access, .. } = approval;
    let message = match network_access {
        Some(pb::NetworkAccess { host, protocol }) => {
            format!("Allow Codex to connect to {host} ({protocol})?")
        }
        None => format!("Allow Codex to run `{command}` in `{working_directory}`?"),
    };
    json!({
        "message": message,
        "requestedSchema": nothing(),
        "codex_elicitation": "exec-approval",
        "codex_command": super::events::words(command),
        "codex_cwd": working_directory,
        "codex_reason": approval.reason,
    })
}

fn file_change_approval(approval: &pb::FileChangeApproval) -> Value {
    let files: Vec<&str> = approval.changes.iter().map(|file| file.path.as_str()).collect();
    let message = match files.as_slice() {
        [] => "Allow Codex to apply proposed code changes?".to_owned(),
        files => format!("Allow Codex to apply proposed code changes to {}?", files.join(", ")),
    };
    json!({
        "message": with_reason(message, &approval.reason),
        "requestedSchema": nothing(),
        "codex_elicitation": "patch-approval",
        "codex_changes": super::events::changes(&approval.changes),
    })
}

/// A text or a choice for each question; `None` where one is for a secret.
fn questions(questions: &[pb::UserQuestion]) -> Option<Value> {
    if questions.iter().any(|question| question.secret) {
        return None;
    }
    let properties: Map<String, Value> = questions
        .iter()
        .map(|question| {
            let labels: Vec<&str> =
                question.options.iter().map(|option| option.label.as_str()).collect();
            let mut property = json!({ "type": "string", "title": question.header });
            let mut description = question.text.clone();
            if !labels.is_empty() && question.other_allowed {
                description += &format!(" ({}, or something else)", labels.join(", "));
            } else if !labels.is_empty() {
                property["enum"] = json!(labels);
            }
            property["description"] = json!(description);
            (question.question_id.clone(), property)
        })
        .collect();
    let required: Vec<&String> = properties.keys().collect();
    Some(json!({ "type": "object", "required": required, "properties": properties }))
}

/// The answer that a reply comes to; `None` for a question without one.
fn answer(question: &pb::CodexRequest, reply: &Reply) -> Option<Answer> {
    let accepts = reply.action == Action::Accept;
    Some(match question.kind.as_ref()? {
        Kind::CommandApproval(approval) => decide(reply, &approval.available_decisions),
        Kind::FileChangeApproval(_) => decide(reply, &[]),
        Kind::PermissionsApproval(asked) if accepts => {
            let permissions_json = asked.permissions_json.clone();
            let scope = pb::PermissionGrantScope::Turn.into();
            Answer::Permissions(pb::PermissionsAnswer {
                permissions_json,
                scope,
                ..Default::default()
            })
        }
        Kind::PermissionsApproval(_) => Answer::Permissions(pb::PermissionsAnswer::default()),
        Kind::UserQuestions(asked) if accepts => {
            let answers = asked.questions.iter().filter_map(|question| {
                let said = reply.content[&question.question_id].as_str()?;
                let (question_id, answers) = (question.question_id.clone(), vec![said.to_owned()]);
                Some(pb::UserQuestionAnswer { question_id, answers })
            });
            Answer::UserQuestions(pb::UserQuestionsAnswer { answers: answers.collect() })
        }
        Kind::UserQuestions(_) => Answer::UserQuestions(pb::UserQuestionsAnswer::default()),
        Kind::Elicitation(asked) => {
            let content_json = match &reply.content {
                _ if !accepts || asked.mode == "url" => String::new(),
                Value::Null => "{}".to_owned(),
                content => content.to_string(),
            };
            Answer::Elicitation(pb::ElicitationAnswer {
                action: reply.action.into(),
                content_json,
                ..Default::default()
            })
        }
        Kind::ToolCall(_) => Answer::ToolCall(pb::ToolCallAnswer::default()),
        Kind::Unknown(_) => return None,
    })
}

/// The decision, or the nearest that is on offer; nothing said is all on offer.
fn decide(reply: &Reply, offered: &[i32]) -> Answer {
    let is_offered = |decision: Decision| offered.is_empty() || offered.contains(&decision.into());
    let wanted = reply.decision.unwrap_or(match reply.action {
        Action::Accept => Decision::Accept,
        Action::Cancel => Decision::Cancel,
        Action::Decline | Action::Unspecified => Decision::Decline,
    });
    let decision = match wanted {
        wanted if is_offered(wanted) => wanted,
        Decision::AcceptForSession if is_offered(Decision::Accept) => Decision::Accept,
        _ => Decision::Decline,
    };
    approval(decision)
}

fn approval(decision: Decision) -> Answer {
    Answer::Approval(pb::ApprovalAnswer { decision: decision.into(), ..Default::default() })
}

/// The same kind of answer, saying no.
fn answer_declined(answer: &Answer) -> Answer {
    match answer {
        Answer::Approval(_) => approval(Decision::Decline),
        Answer::Permissions(_) => Answer::Permissions(Default::default()),
        Answer::UserQuestions(_) => Answer::UserQuestions(Default::default()),
        Answer::Elicitation(_) => {
            let action = Action::Decline.into();
            Answer::Elicitation(pb::ElicitationAnswer { action, ..Default::default() })
        }
        Answer::ToolCall(_) => Answer::ToolCall(Default::default()),
    }
}

#[cfg(test)]
mod tests;
