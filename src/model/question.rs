//! What Codex asks in a turn, and what is answered, as the contract has it.

use sha2::{Digest as _, Sha256};

use crate::model::id::CallerName;
use crate::model::refusal::FieldViolation;

pub(crate) use crate::pb::answer_request_request::Answer;
pub(crate) use crate::pb::codex_request::Kind as QuestionKind;
pub(crate) use crate::pb::{
    ApprovalAnswer, ApprovalDecision, CodexRequest as Question, CommandApproval, Elicitation,
    ElicitationAction, ElicitationAnswer, FileChangeApproval, NetworkAccess,
    NetworkPolicyAmendment, PermissionGrantScope, PermissionsAnswer, PermissionsApproval,
    RequestResolution as Resolution, ToolCall, ToolCallAnswer, UnknownRequest, UserQuestion,
    UserQuestionAnswer, UserQuestionOption, UserQuestions, UserQuestionsAnswer,
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

/// An answer, as somebody gives it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Given {
    pub answer: Answer,
    /// Equal for equal answers.
    pub digest: AnswerDigest,
    /// Who gives it.
    pub by: CallerName,
}

impl Given {
    /// This answer, by this one.
    pub(crate) fn new(answer: Answer, by: CallerName) -> Given {
        let mut encoded = Vec::with_capacity(answer.encoded_len());
        // Without maps, equal answers have equal encodings.
        answer.encode(&mut encoded);
        Given { answer, digest: AnswerDigest(Sha256::digest(encoded).into()), by }
    }
}

/// The SHA-256 of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerDigest([u8; 32]);

/// Why an answer does not count.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Unanswerable {
    /// The turn did not ask this.
    Unknown,
    /// It needs no answer any more.
    Resolved,
    /// It does not fit what was asked, which still waits.
    Unfit(Vec<FieldViolation>),
    /// It allows what must not be allowed; the question still waits.
    Denied(Vec<FieldViolation>),
}
