//! Callers' answers to what Codex asks: whether they fit, and as Codex wants them.
//!
//! Codex checks next to nothing of an answer, and what it can't read it takes for a failure: so all that
//! can be told from the question is looked at here ([`Expected`]), before Codex sees it.

mod expected;
mod form;
mod permissions;

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
    json!({ "action": action, "content": content, "_meta": null })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn approval(decision: ApprovalDecision) -> Answer {
        Answer::Approval(ApprovalAnswer {
            decision: decision.into(),
            exec_policy_amendment: vec!["git".to_owned(), "status".to_owned()],
            network_policy_amendment: Some(NetworkPolicyAmendment {
                host: "h".to_owned(),
                allow: false,
            }),
        })
    }

    #[test]
    fn a_decision_is_said_in_the_words_of_the_request() {
        use ApprovalDecision as Decision;
        let words = json!(["git", "status"]);
        let rule = json!({ "host": "h", "action": "deny" });
        let cases = [
            (Decision::Accept, json!("accept"), json!("approved")),
            (Decision::AcceptForSession, json!("acceptForSession"), json!("approved_for_session")),
            (Decision::Decline, json!("decline"), json!("denied")),
            (Decision::Cancel, json!("cancel"), json!("abort")),
            (
                Decision::AcceptWithExecPolicyAmendment,
                json!({ "acceptWithExecpolicyAmendment": { "execpolicy_amendment": words } }),
                json!({
                    "approved_execpolicy_amendment": { "proposed_execpolicy_amendment": words }
                }),
            ),
            (
                Decision::ApplyNetworkPolicyAmendment,
                json!({ "applyNetworkPolicyAmendment": { "network_policy_amendment": rule } }),
                json!({ "network_policy_amendment": { "network_policy_amendment": rule } }),
            ),
        ];
        for (decision, newer, older) in cases {
            let said = |method: &str| result(method, &approval(decision))["decision"].clone();
            assert_eq!(said("item/commandExecution/requestApproval"), newer);
            assert_eq!(said("item/fileChange/requestApproval"), newer);
            assert_eq!(said("execCommandApproval"), older);
            assert_eq!(said("applyPatchApproval"), older);
        }
    }

    #[test]
    fn permissions_are_granted_as_they_were_given() {
        let grant = |permissions_json: &str, scope: PermissionGrantScope, strict| {
            let answer = PermissionsAnswer {
                permissions_json: permissions_json.to_owned(),
                scope: scope.into(),
                strict_auto_review: strict,
            };
            result("item/permissions/requestApproval", &Answer::Permissions(answer))
        };
        assert_eq!(
            grant(r#"{"network":{"enabled":true}}"#, PermissionGrantScope::Session, Some(true)),
            json!({
                "permissions": { "network": { "enabled": true } },
                "scope": "session",
                "strictAutoReview": true,
            })
        );
        let nothing = json!({ "permissions": {}, "scope": "turn" });
        assert_eq!(grant("", PermissionGrantScope::Unspecified, None), nothing);
        // What is not granted is left out: Codex takes null for no permissions at all.
        let with_null = grant(r#"{"network":null}"#, PermissionGrantScope::Turn, None);
        assert_eq!(with_null, nothing);
    }

    #[test]
    fn answers_of_a_user_are_said_by_their_questions_and_forms_with_their_content() {
        let answer = |id: &str, answers: &[&str]| UserQuestionAnswer {
            question_id: id.to_owned(),
            answers: answers.iter().map(|&answer| answer.to_owned()).collect(),
        };
        let answers = vec![answer("a", &["x", "y"]), answer("b", &[])];
        let said = Answer::UserQuestions(UserQuestionsAnswer { answers });
        assert_eq!(
            result("item/tool/requestUserInput", &said),
            json!({ "answers": { "a": { "answers": ["x", "y"] }, "b": { "answers": [] } } })
        );
        for (action, content, expected) in [
            (ElicitationAction::Accept, r#"{"n":1}"#, json!(["accept", { "n": 1 }])),
            (ElicitationAction::Accept, "", json!(["accept", null])),
            (ElicitationAction::Decline, "", json!(["decline", null])),
            (ElicitationAction::Cancel, "", json!(["cancel", null])),
        ] {
            let content_json = content.to_owned();
            let given = ElicitationAnswer { action: action.into(), content_json };
            let said = result("mcpServer/elicitation/request", &Answer::Elicitation(given));
            assert_eq!(json!([said["action"], said["content"]]), expected);
            assert!(said["_meta"].is_null());
        }
    }

    #[test]
    fn what_a_lent_function_gave_back_is_what_codex_reads() {
        let content = [
            Content::Text("t".to_owned()),
            Content::ImageUrl("data:i".to_owned()),
            Content::AudioUrl("data:a".to_owned()),
        ];
        let content = content.map(|content| ToolContent { content: Some(content) }).to_vec();
        let said = |answer| result("item/tool/call", &Answer::ToolCall(answer));
        assert_eq!(
            said(ToolCallAnswer { content, success: true }),
            json!({
                "contentItems": [
                    { "type": "inputText", "text": "t" },
                    { "type": "inputImage", "imageUrl": "data:i" },
                    { "type": "inputAudio", "audioUrl": "data:a" },
                ],
                "success": true,
            })
        );
        let nothing = json!({ "contentItems": [], "success": false });
        assert_eq!(said(ToolCallAnswer::default()), nothing);
    }
}
