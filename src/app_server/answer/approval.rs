//! What may be answered to whether a command may run, or a patch be applied.

use serde_json::json;

use crate::model::question::{
    ApprovalAnswer, ApprovalDecision, CommandApproval, NetworkPolicyAmendment,
};
use crate::model::refusal::{Faults, show, show_json};

/// What is on offer for a command or a patch.
#[derive(Debug, Default)]
pub(crate) struct Offer {
    decisions: Vec<ApprovalDecision>,
    exec_policy_amendment: Box<[String]>,
    network_policy_amendments: Box<[NetworkPolicyAmendment]>,
}

/// What is on offer where Codex does not say.
const DECISIONS: [ApprovalDecision; 4] = [
    ApprovalDecision::Accept,
    ApprovalDecision::AcceptForSession,
    ApprovalDecision::Decline,
    ApprovalDecision::Cancel,
];

impl Offer {
    /// For a command.
    pub(super) fn of_command(asked: &CommandApproval) -> Offer {
        use ApprovalDecision as Decision;
        let exec_policy_amendment: Box<[_]> = asked.proposed_exec_policy_amendment.clone().into();
        let network_policy_amendments: Box<[_]> =
            asked.proposed_network_policy_amendments.clone().into();
        let mut decisions: Vec<_> = asked.available_decisions().collect();
        if decisions.is_empty() {
            let can_amend = !exec_policy_amendment.is_empty();
            let can_rule = !network_policy_amendments.is_empty();
            decisions.extend(DECISIONS);
            decisions.extend(can_amend.then_some(Decision::AcceptWithExecPolicyAmendment));
            decisions.extend(can_rule.then_some(Decision::ApplyNetworkPolicyAmendment));
        }
        Offer { decisions, exec_policy_amendment, network_policy_amendments }
    }

    /// For a patch.
    pub(super) fn of_patch() -> Offer {
        Offer { decisions: DECISIONS.into(), ..Offer::default() }
    }

    pub(super) fn take(&self, mut answer: ApprovalAnswer, faults: &mut Faults) -> ApprovalAnswer {
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
            let as_json = |words: &[String]| show_json(&json!(words).to_string());
            let (given, proposed) = (as_json(&answer.exec_policy_amendment), as_json(proposed));
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
