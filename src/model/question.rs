//! What Codex asks in a turn, as the contract has it.

pub(crate) use crate::pb::answer_request_request::Answer;
pub(crate) use crate::pb::codex_request::Kind as QuestionKind;
pub(crate) use crate::pb::{
    CodexRequest as Question, CommandApproval, Elicitation, FileChangeApproval, NetworkAccess,
    NetworkPolicyAmendment, PermissionsApproval, RequestResolution as Resolution, ToolCall,
    UnknownRequest, UserQuestion, UserQuestionOption, UserQuestions,
};

impl Question {
    /// Something that Codex asks, of the item of this id. It has no id of its own until a turn tells
    /// of it.
    pub fn new(item_id: Option<String>, kind: QuestionKind) -> Question {
        Question {
            request_id: String::new(),
            expire_time: None,
            item_id: item_id.unwrap_or_default(),
            kind: Some(kind),
        }
    }
}

/// Why an answer does not count.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Unanswerable {
    /// The turn did not ask this.
    Unknown,
    /// It needs no answer any more.
    Resolved,
    /// It wants an answer of another kind, which the contract calls so.
    OtherKind { given: &'static str, wanted: &'static str },
}
