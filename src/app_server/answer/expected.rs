//! What may be answered to a question.

use std::collections::HashSet;

use super::approval::Offer;
use super::{form, permissions};
use crate::model::question::{
    Answer, ElicitationAction, ElicitationAnswer, PermissionGrantScope, PermissionsAnswer,
    Question, QuestionKind, UserQuestion, UserQuestionAnswer, UserQuestionsAnswer,
};
use crate::model::refusal::{Faults, FieldViolation, show};

/// What may be answered to a question: as much of it as has to be known for that.
#[derive(Debug)]
pub(crate) enum Expected {
    Approval(Offer),
    /// No more than this.
    Permissions {
        asked: Box<str>,
    },
    UserQuestions(Box<[Choice]>),
    Elicitation(Form),
    /// So much of JSON at most.
    ToolCall {
        most_bytes: usize,
    },
    /// Nobody can answer it.
    Nothing,
}

/// What an MCP server may be given.
#[derive(Debug)]
pub(crate) struct Form {
    // `None` for an address, which wants no content.
    schema: Option<Box<str>>,
    persist: Box<[String]>,
}

/// What may be answered to one question of the model.
#[derive(Debug)]
pub(crate) struct Choice {
    question_id: String,
    // What must be chosen from; anything goes where it is empty.
    labels: Box<[String]>,
}

impl Expected {
    /// What may be answered to this, if Codex may tell so many bytes of it back.
    pub(crate) fn of(question: &Question, most_bytes: usize) -> Expected {
        match &question.kind {
            Some(QuestionKind::CommandApproval(asked)) => {
                Expected::Approval(Offer::of_command(asked))
            }
            Some(QuestionKind::FileChangeApproval(_)) => Expected::Approval(Offer::of_patch()),
            Some(QuestionKind::PermissionsApproval(asked)) => {
                Expected::Permissions { asked: asked.permissions_json.as_str().into() }
            }
            Some(QuestionKind::UserQuestions(asked)) => {
                Expected::UserQuestions(asked.questions.iter().map(Choice::of).collect())
            }
            Some(QuestionKind::Elicitation(asked)) => Expected::Elicitation(Form {
                // Of a mode that this contract does not know, whatever its server takes.
                schema: (asked.mode != "url").then(|| asked.requested_schema_json.as_str().into()),
                persist: asked.persist.as_slice().into(),
            }),
            Some(QuestionKind::ToolCall(asked)) => {
                // The line in which it is told back has them, too, and some more.
                const AROUND: usize = 4096;
                let others = asked.arguments_json.len() + AROUND;
                Expected::ToolCall { most_bytes: most_bytes.saturating_sub(others) }
            }
            Some(QuestionKind::Unknown(_)) | None => Expected::Nothing,
        }
    }

    /// Takes an answer to the question of this id, with what it leaves to Codex's proposal filled in.
    ///
    /// # Errors
    /// Each of its faults, by its path in the request.
    pub(crate) fn take(
        &self,
        request_id: &str,
        answer: Answer,
    ) -> Result<Answer, Vec<FieldViolation>> {
        let mut faults = Faults::default();
        let taken = match (self, answer) {
            (Expected::Approval(offer), Answer::Approval(answer)) => {
                Answer::Approval(offer.take(answer, &mut faults))
            }
            (Expected::Permissions { asked }, Answer::Permissions(answer)) => {
                check_permissions(asked, &answer, &mut faults);
                Answer::Permissions(answer)
            }
            (Expected::UserQuestions(choices), Answer::UserQuestions(answer)) => {
                check_user_questions(choices, &answer, &mut faults);
                Answer::UserQuestions(answer)
            }
            (Expected::Elicitation(form), Answer::Elicitation(answer)) => {
                Answer::Elicitation(form.take(answer, &mut faults))
            }
            (Expected::ToolCall { most_bytes }, Answer::ToolCall(answer)) => {
                // What is in it needs no question to be looked at.
                let bytes = json_bytes(&super::tool_call(&answer));
                if bytes > *most_bytes {
                    let fault = format!(
                        "has {bytes} bytes as JSON, and Codex tells it back in a line of at most \
                         limits.max_codex_line_bytes; give at most {most_bytes}"
                    );
                    faults.add("tool_call", fault);
                }
                Answer::ToolCall(answer)
            }
            (expected, answer) => {
                let wanted = expected.answered_with();
                faults.add(field_of(&answer), format!("request {request_id:?} is {wanted}"));
                answer
            }
        };
        if faults.0.is_empty() { Ok(taken) } else { Err(faults.0) }
    }

    fn answered_with(&self) -> &'static str {
        match self {
            Expected::Approval(_) => "answered with approval",
            Expected::Permissions { .. } => "answered with permissions",
            Expected::UserQuestions(_) => "answered with user_questions",
            Expected::Elicitation(_) => "answered with elicitation",
            Expected::ToolCall { .. } => "answered with tool_call",
            Expected::Nothing => "one that nobody can answer",
        }
    }
}

/// The contract's name for this kind of answer.
fn field_of(answer: &Answer) -> &'static str {
    match answer {
        Answer::Approval(_) => "approval",
        Answer::Permissions(_) => "permissions",
        Answer::UserQuestions(_) => "user_questions",
        Answer::Elicitation(_) => "elicitation",
        Answer::ToolCall(_) => "tool_call",
    }
}

fn check_permissions(asked: &str, answer: &PermissionsAnswer, faults: &mut Faults) {
    if PermissionGrantScope::try_from(answer.scope).is_err() {
        let known = [PermissionGrantScope::Turn, PermissionGrantScope::Session];
        let known = known.map(|scope| scope.as_str_name()).join(" or ");
        faults.add("permissions.scope", format!("{} is none; use {known}", answer.scope));
    }
    if answer.scope() == PermissionGrantScope::Session && answer.strict_auto_review == Some(true) {
        faults.add(
            "permissions.strict_auto_review",
            "can't be combined with PERMISSION_GRANT_SCOPE_SESSION; leave one of the two out",
        );
    }
    permissions::check(&answer.permissions_json, asked, faults);
}

impl Choice {
    fn of(question: &UserQuestion) -> Choice {
        let UserQuestion { question_id, options, other_allowed, .. } = question;
        let labels = options.iter().filter(|_| !other_allowed);
        Choice {
            question_id: question_id.clone(),
            labels: labels.map(|option| option.label.clone()).collect(),
        }
    }
}

fn check_user_questions(choices: &[Choice], answer: &UserQuestionsAnswer, faults: &mut Faults) {
    let mut answered = HashSet::new();
    for (at, UserQuestionAnswer { question_id, answers }) in answer.answers.iter().enumerate() {
        let field = format!("user_questions.answers[{at}]");
        let Some(choice) = choices.iter().find(|choice| choice.question_id == *question_id) else {
            let known: Vec<_> = choices.iter().map(|choice| show(&choice.question_id)).collect();
            let fault = format!("{} was not asked; use {}", show(question_id), known.join(", "));
            faults.add(format!("{field}.question_id"), fault);
            continue;
        };
        if !answered.insert(question_id) {
            let fault = format!("{} is answered twice; answer it once", show(question_id));
            faults.add(format!("{field}.question_id"), fault);
        }
        if choice.labels.is_empty() {
            continue;
        }
        for (nth, given) in answers.iter().enumerate() {
            if !choice.labels.contains(given) {
                let labels: Vec<_> = choice.labels.iter().map(|label| show(label)).collect();
                let fault = format!("{} is no option; use {}", show(given), labels.join(", "));
                faults.add(format!("{field}.answers[{nth}]"), fault);
            }
        }
    }
}

impl Form {
    fn take(&self, mut answer: ElicitationAnswer, faults: &mut Faults) -> ElicitationAnswer {
        const FIELD: &str = "elicitation.content_json";
        const WITH_ACCEPT: &str = "goes with ELICITATION_ACTION_ACCEPT alone; leave it out";
        match ElicitationAction::try_from(answer.action).unwrap_or_default() {
            ElicitationAction::Unspecified => {
                let known = "use ELICITATION_ACTION_ACCEPT, _DECLINE or _CANCEL";
                faults.add("elicitation.action", format!("{} is none; {known}", answer.action));
            }
            ElicitationAction::Accept => {
                self.take_content(&mut answer, FIELD, faults);
                if !answer.persist.is_empty() && !self.persist.contains(&answer.persist) {
                    let known = match &*self.persist {
                        [] => "leave it out".to_owned(),
                        known => format!("use {}, or leave it out", known.join(" or ")),
                    };
                    let fault = format!("{} is not on offer; {known}", show(&answer.persist));
                    faults.add("elicitation.persist", fault);
                }
            }
            ElicitationAction::Decline | ElicitationAction::Cancel => {
                if !answer.content_json.is_empty() {
                    faults.add(FIELD, WITH_ACCEPT);
                }
                if !answer.persist.is_empty() {
                    faults.add("elicitation.persist", WITH_ACCEPT);
                }
            }
        }
        answer
    }

    fn take_content(&self, answer: &mut ElicitationAnswer, field: &str, faults: &mut Faults) {
        match &self.schema {
            Some(schema) => {
                if answer.content_json.is_empty() {
                    // All that a form without fields can be filled in with.
                    "{}".clone_into(&mut answer.content_json);
                }
                for fault in form::faults(&answer.content_json, schema) {
                    faults.add(field, fault);
                }
            }
            None if !answer.content_json.is_empty() => {
                faults.add(field, "is for forms, and the request is an address; leave it out");
            }
            None => {}
        }
    }
}

/// How long a value is as JSON.
fn json_bytes(value: &serde_json::Value) -> usize {
    struct Count(usize);

    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let mut count = Count(0);
    // What counts takes all that is written to it.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}
