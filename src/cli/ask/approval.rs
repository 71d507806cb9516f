//! Approvals: of a command, of changes to files, of permissions.

use std::io;

use super::{Choice, Person, choose, pretty, quoted};
use crate::cli::words::plain;
use crate::pb;
use crate::pb::ApprovalDecision as Decision;
use crate::pb::answer_request_request::Answer;

pub(super) async fn command(
    asked: &pb::CommandApproval,
    person: &impl Person,
) -> io::Result<Option<Answer>> {
    person.show(&command_text(asked))?;
    choose(&command_choices(asked), person).await
}

fn command_text(asked: &pb::CommandApproval) -> String {
    let what = match asked.action.as_str() {
        _ if asked.command.is_empty() => "Codex asks: may the turn use the network?",
        "writeStdin" => "Codex asks: may this be typed into a command that runs?",
        _ => "Codex asks: may this command run?",
    };
    let mut text = format!("{what}\n{}", quoted(&asked.command, "    "));
    if !asked.working_directory.is_empty() {
        text.push_str(&format!("  in {}\n", plain(&asked.working_directory)));
    }
    if let Some(network) = &asked.network_access {
        let pb::NetworkAccess { host, protocol } = network;
        text.push_str(&format!("  it wants to reach {} by {}\n", plain(host), plain(protocol)));
    }
    if !asked.additional_permissions_json.is_empty() {
        text.push_str("  it wants, beyond the sandbox:\n");
        text.push_str(&quoted(&pretty(&asked.additional_permissions_json), "    "));
    }
    text.push_str(&because(&asked.reason));
    text
}

/// What may be chosen: whatever Codex offers. A no is always taken.
fn command_choices(asked: &pb::CommandApproval) -> Vec<Choice<Answer>> {
    let mut offered: Vec<Decision> = asked.available_decisions().collect();
    if offered.is_empty() {
        offered = vec![Decision::Accept, Decision::AcceptForSession];
    }
    let is_offered = |decision| offered.contains(&decision);
    let mut choices = Vec::new();
    if is_offered(Decision::Accept) {
        choices.push(Choice::new('y', "yes, this once", decided(Decision::Accept)));
    }
    let for_session = is_offered(Decision::AcceptForSession);
    if for_session {
        let meaning = "always: this and the like, for as long as the thread is loaded";
        choices.push(Choice::new('a', meaning, decided(Decision::AcceptForSession)));
    }
    if is_offered(Decision::AcceptWithExecPolicyAmendment) {
        let start = plain(&asked.proposed_exec_policy_amendment.join(" "));
        let meaning =
            format!("always: commands that start with `{start}`; Codex writes it into its rules");
        // Where it is the only one that says always, `a` is what a person types.
        let key = if for_session { 'p' } else { 'a' };
        let answer = decided(Decision::AcceptWithExecPolicyAmendment);
        choices.push(Choice::new(key, meaning, answer));
    }
    if is_offered(Decision::ApplyNetworkPolicyAmendment) {
        let keys = '1'..='9';
        for (key, rule) in keys.zip(&asked.proposed_network_policy_amendments) {
            let what = if rule.allow { "always allow" } else { "never allow" };
            let meaning = format!("{what} the host {}", plain(&rule.host));
            let answer = Answer::Approval(pb::ApprovalAnswer {
                decision: Decision::ApplyNetworkPolicyAmendment.into(),
                network_policy_amendment: Some(rule.clone()),
                ..Default::default()
            });
            choices.push(Choice::new(key, meaning, answer));
        }
    }
    choices.extend(refusals());
    choices
}

/// What says no.
fn refusals() -> [Choice<Answer>; 2] {
    [
        Choice::new('n', "no, and Codex goes on without it", decided(Decision::Decline)),
        Choice::new('c', "no, and the turn is stopped", decided(Decision::Cancel)),
    ]
}

pub(super) fn decided(decision: Decision) -> Answer {
    Answer::Approval(pb::ApprovalAnswer { decision: decision.into(), ..Default::default() })
}

fn because(reason: &str) -> String {
    if reason.is_empty() {
        return String::new();
    }
    format!("  because: {}\n", plain(reason))
}

pub(super) async fn file_change(
    asked: &pb::FileChangeApproval,
    person: &impl Person,
) -> io::Result<Option<Answer>> {
    let mut text = "Codex asks: may these files be changed?\n".to_owned();
    for file in &asked.changes {
        let sign = match file.kind() {
            pb::FileChangeKind::Add => '+',
            pb::FileChangeKind::Delete => '-',
            pb::FileChangeKind::Update | pb::FileChangeKind::Unspecified => '~',
        };
        let to = match file.move_path.as_str() {
            "" => String::new(),
            path => format!(" -> {}", plain(path)),
        };
        text.push_str(&format!("    {sign} {}{to}\n", plain(&file.path)));
    }
    if !asked.grant_root.is_empty() {
        let root = plain(&asked.grant_root);
        text.push_str(&format!("  and all below {root} from now on?\n"));
    }
    text.push_str(&because(&asked.reason));
    person.show(&text)?;

    let mut choices = vec![
        Choice::new('y', "yes, this once", Some(decided(Decision::Accept))),
        Choice::new(
            'a',
            "always: these files, for as long as the thread is loaded",
            Some(decided(Decision::AcceptForSession)),
        ),
    ];
    choices.extend(
        refusals().map(|Choice { key, meaning, value }| Choice::new(key, meaning, Some(value))),
    );
    if asked.changes.iter().any(|file| !file.diff.is_empty()) {
        choices.push(Choice::new('d', "show the diff", None));
    }
    loop {
        match choose(&choices, person).await? {
            Some(Some(answer)) => return Ok(Some(answer)),
            Some(None) => {
                for file in &asked.changes {
                    person.show(&format!("{}\n", plain(&file.path)))?;
                    person.show(&quoted(&file.diff, "    "))?;
                }
            }
            None => return Ok(None),
        }
    }
}

pub(super) async fn permissions(
    asked: &pb::PermissionsApproval,
    person: &impl Person,
) -> io::Result<Option<Answer>> {
    let mut text = "Codex asks: may it do more than the sandbox allows?\n".to_owned();
    text.push_str(&quoted(&pretty(&asked.permissions_json), "    "));
    if !asked.working_directory.is_empty() {
        text.push_str(&format!("  in {}\n", plain(&asked.working_directory)));
    }
    text.push_str(&because(&asked.reason));
    person.show(&text)?;
    let choices = [
        Choice::new('y', "yes, for this turn", granted(asked, pb::PermissionGrantScope::Turn)),
        Choice::new(
            'a',
            "always: for as long as the thread is loaded",
            granted(asked, pb::PermissionGrantScope::Session),
        ),
        Choice::new('n', "no, and Codex goes on without", Answer::Permissions(Default::default())),
    ];
    choose(&choices, person).await
}

/// All that was asked for.
pub(super) fn granted(asked: &pb::PermissionsApproval, scope: pb::PermissionGrantScope) -> Answer {
    Answer::Permissions(pb::PermissionsAnswer {
        permissions_json: asked.permissions_json.clone(),
        scope: scope.into(),
        strict_auto_review: None,
    })
}
