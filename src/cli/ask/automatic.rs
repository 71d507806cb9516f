//! Answers without a person: `--yes` and `--no`.

use super::approval::{decided, granted};
use super::form;
use crate::pb;
use crate::pb::ApprovalDecision as Decision;
use crate::pb::answer_request_request::Answer;
use crate::pb::codex_request::Kind as Question;

/// The answer that allows what is asked, once. `None` where a yes is no answer: a question wants words,
/// an address a visit, a function's call its result.
pub(in crate::cli) fn yes(question: &pb::CodexRequest) -> Option<Answer> {
    match question.kind.as_ref()? {
        Question::CommandApproval(asked) => {
            // Never a rule that outlives the turn: that is more than a yes.
            let is_offered = asked.available_decisions.is_empty()
                || asked.available_decisions().any(|one| one == Decision::Accept);
            is_offered.then(|| decided(Decision::Accept))
        }
        Question::FileChangeApproval(_) => Some(decided(Decision::Accept)),
        Question::PermissionsApproval(asked) => {
            Some(granted(asked, pb::PermissionGrantScope::Turn))
        }
        Question::Elicitation(asked) if asked.mode == "form" => {
            let content = form::by_default(&asked.requested_schema_json)?;
            Some(Answer::Elicitation(pb::ElicitationAnswer {
                action: pb::ElicitationAction::Accept.into(),
                content_json: content.to_string(),
                persist: String::new(),
            }))
        }
        Question::Elicitation(_)
        | Question::UserQuestions(_)
        | Question::ToolCall(_)
        | Question::Unknown(_) => None,
    }
}

/// The answer that declines what is asked. `None` for what nobody can answer.
pub(in crate::cli) fn no(question: &pb::CodexRequest) -> Option<Answer> {
    Some(match question.kind.as_ref()? {
        Question::CommandApproval(_) | Question::FileChangeApproval(_) => {
            decided(Decision::Decline)
        }
        Question::PermissionsApproval(_) => Answer::Permissions(Default::default()),
        Question::UserQuestions(_) => Answer::UserQuestions(Default::default()),
        Question::Elicitation(_) => Answer::Elicitation(pb::ElicitationAnswer {
            action: pb::ElicitationAction::Decline.into(),
            ..Default::default()
        }),
        Question::ToolCall(_) => Answer::ToolCall(pb::ToolCallAnswer {
            content: vec![pb::ToolContent {
                content: Some(pb::tool_content::Content::Text(
                    "The function can't be called: nobody who lends it follows the turn."
                        .to_owned(),
                )),
            }],
            success: false,
        }),
        Question::Unknown(_) => return None,
    })
}
