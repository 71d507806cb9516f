//! Callers' answers to what Codex asks: whether they fit, and as Codex wants them.
//!
//! Codex checks next to nothing of an answer, and what it can't read it takes for a failure: so all that
//! can be told from the question is looked at here ([`Expected`]), before Codex sees it.

mod approval;
mod expected;
mod form;
mod permissions;
#[cfg(test)]
mod tests;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::app_server::message::Call;
use crate::app_server::peer::{Peer, RequestError};
use crate::model::question::{
    Answer, ApprovalAnswer, ApprovalDecision, ElicitationAction, ElicitationAnswer,
    NetworkPolicyAmendment, PermissionGrantScope, PermissionsAnswer, ToolCallAnswer,
    UserQuestionAnswer, UserQuestionsAnswer,
};
use crate::pb::ToolContent;
use crate::pb::tool_content::Content;

pub(crate) use expected::Expected;

impl Peer {
    /// Answers a request of Codex. The answer fits what was asked.
    ///
    /// # Errors
    /// [`RequestError::Transport`] when the peer is closed or its queue is full.
    pub(crate) fn answer(&self, call: &Call, answer: &Answer) -> Result<(), RequestError> {
        self.respond(call, Ok(result(&call.method, answer)))
    }
}

/// The answer to a request of this method.
fn result(method: &str, answer: &Answer) -> Value {
    match answer {
        Answer::Approval(answer) => {
            let is_older = matches!(method, "execCommandApproval" | "applyPatchApproval");
            json!({ "decision": if is_older { older_decision(answer) } else { decision(answer) } })
        }
        Answer::Permissions(answer) => permissions(answer),
        Answer::UserQuestions(answer) => user_questions(answer),
        Answer::Elicitation(answer) => elicitation(answer),
        Answer::ToolCall(answer) => tool_call(answer),
    }
}

fn decision(answer: &ApprovalAnswer) -> Value {
    match answer.decision() {
        ApprovalDecision::Accept => json!("accept"),
        ApprovalDecision::AcceptForSession => json!("acceptForSession"),
        ApprovalDecision::Unspecified | ApprovalDecision::Decline => json!("decline"),
        ApprovalDecision::Cancel => json!("cancel"),
        ApprovalDecision::AcceptWithExecPolicyAmendment => json!({
            "acceptWithExecpolicyAmendment": { "execpolicy_amendment": answer.exec_policy_amendment }
        }),
        ApprovalDecision::ApplyNetworkPolicyAmendment => json!({
            "applyNetworkPolicyAmendment": { "network_policy_amendment": network_rule(answer) }
        }),
    }
}

/// In the words of the two older approval requests.
fn older_decision(answer: &ApprovalAnswer) -> Value {
    match answer.decision() {
        ApprovalDecision::Accept => json!("approved"),
        ApprovalDecision::AcceptForSession => json!("approved_for_session"),
        ApprovalDecision::Unspecified | ApprovalDecision::Decline => json!("denied"),
        ApprovalDecision::Cancel => json!("abort"),
        ApprovalDecision::AcceptWithExecPolicyAmendment => json!({
            "approved_execpolicy_amendment": {
                "proposed_execpolicy_amendment": answer.exec_policy_amendment,
            }
        }),
        ApprovalDecision::ApplyNetworkPolicyAmendment => json!({
            "network_policy_amendment": { "network_policy_amendment": network_rule(answer) }
        }),
    }
}

fn network_rule(answer: &ApprovalAnswer) -> Option<Value> {
    let NetworkPolicyAmendment { host, allow } = answer.network_policy_amendment.as_ref()?;
    Some(json!({ "host": host, "action": if *allow { "allow" } else { "deny" } }))
}

fn permissions(answer: &PermissionsAnswer) -> Value {
    let granted = permissions::granted(&answer.permissions_json).unwrap_or_default();
    let scope = match answer.scope() {
        PermissionGrantScope::Unspecified | PermissionGrantScope::Turn => "turn",
        PermissionGrantScope::Session => "session",
    };
    let mut result = json!({ "permissions": granted, "scope": scope });
    if let Some(strict) = answer.strict_auto_review {
        result["strictAutoReview"] = json!(strict);
    }
    result
}

fn user_questions(UserQuestionsAnswer { answers }: &UserQuestionsAnswer) -> Value {
    let answers = answers.iter().map(|UserQuestionAnswer { question_id, answers }| {
        (question_id.clone(), json!({ "answers": answers }))
    });
    json!({ "answers": answers.collect::<Map<_, _>>() })
}

fn elicitation(answer: &ElicitationAnswer) -> Value {
    let action = match answer.action() {
        ElicitationAction::Accept => "accept",
        ElicitationAction::Unspecified | ElicitationAction::Decline => "decline",
        ElicitationAction::Cancel => "cancel",
    };
    // Absent for an address, and for who says no.
    let content: Option<Value> = serde_json::from_str(&answer.content_json).ok();
    let persist = Some(&answer.persist).filter(|persist| !persist.is_empty());
    let meta = persist.map(|persist| json!({ "persist": persist }));
    json!({ "action": action, "content": content, "_meta": meta })
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
enum ContentItem<'a> {
    #[serde(rename = "inputText")]
    Text { text: &'a str },
    #[serde(rename = "inputImage")]
    Image { image_url: &'a str },
    #[serde(rename = "inputAudio")]
    Audio { audio_url: &'a str },
}

fn tool_call(ToolCallAnswer { content, success }: &ToolCallAnswer) -> Value {
    let items = content.iter().filter_map(|ToolContent { content }| match content.as_ref()? {
        Content::Text(text) => Some(ContentItem::Text { text }),
        Content::ImageUrl(image_url) => Some(ContentItem::Image { image_url }),
        Content::AudioUrl(audio_url) => Some(ContentItem::Audio { audio_url }),
    });
    json!({ "contentItems": items.collect::<Vec<_>>(), "success": success })
}
