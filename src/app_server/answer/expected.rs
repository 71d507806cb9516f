//! What may be answered to a question.

use std::collections::HashSet;

use super::{form, permissions};
use crate::model::question::{
    Answer, ApprovalAnswer, ApprovalDecision, ElicitationAction, ElicitationAnswer,
    NetworkPolicyAmendment, PermissionGrantScope, PermissionsAnswer, Question, QuestionKind,
    UserQuestion, UserQuestionAnswer, UserQuestionsAnswer,
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
    /// Content that fits the schema, or none where that is `None`.
    Elicitation {
        schema: Option<Box<str>>,
    },
    ToolCall,
    /// Nobody can answer it.
    Nothing,
}

/// What is on offer for a command or a patch.
#[derive(Debug, Default)]
pub(crate) struct Offer {
    decisions: Vec<ApprovalDecision>,
    exec_policy_amendment: Box<[String]>,
    network_policy_amendments: Box<[NetworkPolicyAmendment]>,
}

/// What may be answered to one question of the model.
#[derive(Debug)]
pub(crate) struct Choice {
    question_id: String,
    // What must be chosen from; anything goes where it is empty.
    labels: Box<[String]>,
}

/// What is on offer where Codex does not say.
const DECISIONS: [ApprovalDecision; 4] = [
    ApprovalDecision::Accept,
    ApprovalDecision::AcceptForSession,
    ApprovalDecision::Decline,
    ApprovalDecision::Cancel,
];

impl Expected {
    /// What may be answered to this.
    pub(crate) fn of(question: &Question) -> Expected {
        match &question.kind {
            Some(QuestionKind::CommandApproval(asked)) => {
                let exec_policy_amendment: Box<[_]> =
                    asked.proposed_exec_policy_amendment.as_slice().into();
                let network_policy_amendments: Box<[_]> =
                    asked.proposed_network_policy_amendments.as_slice().into();
                let mut decisions: Vec<_> = asked.available_decisions().collect();
                if decisions.is_empty() {
                    use ApprovalDecision as Decision;
                    let can_amend = !exec_policy_amendment.is_empty();
                    let can_rule = !network_policy_amendments.is_empty();
                    decisions.extend(DECISIONS);
                    decisions.extend(can_amend.then_some(Decision::AcceptWithExecPolicyAmendment));
                    decisions.extend(can_rule.then_some(Decision::ApplyNetworkPolicyAmendment));
                }
                Expected::Approval(Offer {
                    decisions,
                    exec_policy_amendment,
                    network_policy_amendments,
                })
            }
            Some(QuestionKind::FileChangeApproval(_)) => {
                Expected::Approval(Offer { decisions: DECISIONS.into(), ..Offer::default() })
            }
            Some(QuestionKind::PermissionsApproval(asked)) => {
                Expected::Permissions { asked: asked.permissions_json.as_str().into() }
            }
            Some(QuestionKind::UserQuestions(asked)) => {
                Expected::UserQuestions(asked.questions.iter().map(Choice::of).collect())
            }
            Some(QuestionKind::Elicitation(asked)) => Expected::Elicitation {
                // Of a mode that this contract does not know, whatever its server takes.
                schema: (asked.mode != "url").then(|| asked.requested_schema_json.as_str().into()),
            },
            Some(QuestionKind::ToolCall(_)) => Expected::ToolCall,
            Some(QuestionKind::Unknown(_)) | None => Expected::Nothing,
        }
    }

    /// Takes an answer, with what it leaves to Codex's proposal filled in.
    ///
    /// # Errors
    /// Each of its faults, by its path in the request.
    pub(crate) fn take(&self, answer: Answer) -> Result<Answer, Vec<FieldViolation>> {
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
            (Expected::Elicitation { schema }, Answer::Elicitation(answer)) => {
                Answer::Elicitation(take_elicitation(schema.as_deref(), answer, &mut faults))
            }
            // Its parts need no question to be looked at.
            (Expected::ToolCall, answer @ Answer::ToolCall(_)) => answer,
            (expected, answer) => {
                let wanted = expected.answered_with();
                faults.add(field_of(&answer), format!("does not fit; the request is {wanted}"));
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
            Expected::Elicitation { .. } => "answered with elicitation",
            Expected::ToolCall => "answered with tool_call",
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

impl Offer {
    fn take(&self, mut answer: ApprovalAnswer, faults: &mut Faults) -> ApprovalAnswer {
        use ApprovalDecision as Decision;
        let decision = Decision::try_from(answer.decision);
        if !decision.is_ok_and(|decision| self.decisions.contains(&decision)) {
            let given = match decision {
                Ok(decision) => decision.as_str_name().to_owned(),
                Err(_) => answer.decision.to_string(),
            };
            let offered: Vec<_> = self.decisions.iter().map(Decision::as_str_name).collect();
            let offered = offered.join(", ");
            faults.add("approval.decision", format!("{given} is not on offer; use {offered}"));
        }
        self.take_exec_policy_amendment(&mut answer, faults);
        self.check_network_policy_amendment(&answer, faults);
        answer
    }

    fn take_exec_policy_amendment(&self, answer: &mut ApprovalAnswer, faults: &mut Faults) {
        const FIELD: &str = "approval.exec_policy_amendment";
        let proposed = &self.exec_policy_amendment;
        if answer.decision() != ApprovalDecision::AcceptWithExecPolicyAmendment {
            if !answer.exec_policy_amendment.is_empty() {
                faults
                    .add(FIELD, "goes with ACCEPT_WITH_EXEC_POLICY_AMENDMENT alone; leave it out");
            }
        } else if answer.exec_policy_amendment.is_empty() {
            answer.exec_policy_amendment = proposed.to_vec();
        } else if !answer.exec_policy_amendment.starts_with(proposed) {
            let given = show(&format!("{:?}", answer.exec_policy_amendment));
            let proposed = show(&format!("{proposed:?}"));
            faults.add(
                FIELD,
                format!(
                    "{given} allows more than Codex proposed; begin with {proposed}, or leave it out"
                ),
            );
        }
    }

    fn check_network_policy_amendment(&self, answer: &ApprovalAnswer, faults: &mut Faults) {
        const FIELD: &str = "approval.network_policy_amendment";
        let wants_rule = answer.decision() == ApprovalDecision::ApplyNetworkPolicyAmendment;
        match &answer.network_policy_amendment {
            None if wants_rule => {
                faults.add(FIELD, "is not set; give one of proposed_network_policy_amendments");
            }
            Some(_) if !wants_rule => {
                faults.add(FIELD, "goes with APPLY_NETWORK_POLICY_AMENDMENT alone; leave it out");
            }
            Some(rule) if !self.network_policy_amendments.contains(rule) => {
                let does = if rule.allow { "allow" } else { "deny" };
                faults.add(
                    FIELD,
                    format!(
                        "to {does} {} is not on offer; give one of \
                         proposed_network_policy_amendments",
                        show(&rule.host)
                    ),
                );
            }
            Some(_) | None => {}
        }
    }
}

fn check_permissions(asked: &str, answer: &PermissionsAnswer, faults: &mut Faults) {
    const FIELD: &str = "permissions.permissions_json";
    if PermissionGrantScope::try_from(answer.scope).is_err() {
        let known = [PermissionGrantScope::Turn, PermissionGrantScope::Session];
        let known = known.map(|scope| scope.as_str_name()).join(" or ");
        faults.add("permissions.scope", format!("{} is none; use {known}", answer.scope));
    }
    match permissions::granted(&answer.permissions_json) {
        Ok(granted) => {
            for excess in permissions::excess(&granted, asked) {
                faults.add(FIELD, excess);
            }
        }
        Err(fault) => {
            faults.add(FIELD, format!("{} {fault}", show(&answer.permissions_json)));
        }
    }
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

fn take_elicitation(
    schema: Option<&str>,
    mut answer: ElicitationAnswer,
    faults: &mut Faults,
) -> ElicitationAnswer {
    const FIELD: &str = "elicitation.content_json";
    let action = ElicitationAction::try_from(answer.action).unwrap_or_default();
    match (action, schema) {
        (ElicitationAction::Unspecified, _) => {
            let fault = format!("{} is no action; use ACCEPT, DECLINE or CANCEL", answer.action);
            faults.add("elicitation.action", fault);
        }
        (ElicitationAction::Accept, Some(schema)) => {
            if answer.content_json.is_empty() {
                // All that a form without fields can be filled in with.
                "{}".clone_into(&mut answer.content_json);
            }
            for fault in form::faults(&answer.content_json, schema) {
                faults.add(FIELD, fault);
            }
        }
        (ElicitationAction::Accept, None) if !answer.content_json.is_empty() => {
            faults.add(FIELD, "is for forms, and the request is an address; leave it out");
        }
        (ElicitationAction::Decline | ElicitationAction::Cancel, _)
            if !answer.content_json.is_empty() =>
        {
            faults.add(FIELD, "goes with ACCEPT alone; leave it out");
        }
        (_, _) => {}
    }
    answer
}
