//! What Codex asks in a turn, as the contract has it.

pub use crate::pb::codex_request::Kind as QuestionKind;
pub use crate::pb::{
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
