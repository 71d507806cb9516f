//! Approvals, permissions and questions to the user, answered in every way.

use codex_sidecar::pb;
use codex_sidecar::pb::ApprovalDecision::{
    Accept, AcceptForSession, AcceptWithExecPolicyAmendment, Cancel, Decline,
};
use codex_sidecar::pb::answer_request_request::Answer;
use codex_sidecar::pb::codex_request::Kind as Asked;
use codex_sidecar::pb::item::Kind;
use serde_json::{Value, json};
use tonic::Code;

use super::{answer, asked, asking, decide, grant, kind_of, outputs, run_answering, say};
use crate::support::{Sidecar, Told};

#[tokio::test]
async fn a_command_is_run_or_not_as_its_approval_says() {
    let sidecar = Sidecar::start().await;
    let file = sidecar.place.path().join("touched");
    let touch = |context: &str| {
        asking(context, &format!("[[escalate touch {}]] [[say went on]]", file.display()))
    };

    let told = run_answering(&sidecar, touch("accepted"), [decide(Accept)]).await;
    assert_eq!(told.final_response(), "went on");
    assert_eq!(told.command().status(), pb::CommandExecutionStatus::Completed);
    assert!(file.exists());

    std::fs::remove_file(&file).unwrap();
    let told = run_answering(&sidecar, touch("declined"), [decide(Decline)]).await;
    assert_eq!(told.final_response(), "went on");
    assert_eq!(told.command().status(), pb::CommandExecutionStatus::Declined);
    assert!(!file.exists());

    let told = run_answering(&sidecar, touch("cancelled"), [decide(Cancel)]).await;
    assert_eq!(told.interrupted(), pb::InterruptReason::Codex);
    assert!(!file.exists());

    sidecar.stop().await;
}

#[tokio::test]
async fn an_amendment_is_kept_and_what_is_not_on_offer_leaves_the_question_open() {
    let sidecar = Sidecar::start().await;
    let file = sidecar.place.path().join("touched");
    let escalate = json!({
        "cmd": format!("touch {}", file.display()), "login": false, "prefix_rule": ["touch"],
        "sandbox_permissions": "require_escalated", "justification": "may I?",
    });
    let words = format!("[[tool exec_command {escalate}]] [[tool exec_command {escalate}]]");
    let mut turn = sidecar.begin(asking("a", &words)).await;
    let request = asked(&mut turn).await;
    let Some(Asked::CommandApproval(approval)) = &request.kind else { panic!("{request:#?}") };
    assert!(approval.command.contains("touch") && approval.reason == "may I?", "{approval:#?}");
    assert_eq!(approval.working_directory, sidecar.place.work().display().to_string());
    assert_eq!(approval.action, "command");
    assert_eq!(approval.proposed_exec_policy_amendment, ["touch"]);
    let on_offer: Vec<_> = approval.available_decisions().collect();
    assert_eq!(on_offer, [Accept, AcceptWithExecPolicyAmendment, Cancel, Decline]);

    let amend = |amendment: &[&str]| {
        Answer::Approval(pb::ApprovalAnswer {
            decision: AcceptWithExecPolicyAmendment.into(),
            exec_policy_amendment: amendment.iter().map(|word| (*word).to_owned()).collect(),
            network_policy_amendment: None,
        })
    };
    let unfit = [
        (decide(AcceptForSession), "approval.decision"),
        (amend(&["rm"]), "approval.exec_policy_amendment"),
        (say(&[]), "user_questions"),
    ];
    for (unfit, path) in unfit {
        let refused = answer(&sidecar, turn.turn_id(), &request.request_id, unfit).await;
        let refused = refused.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), [path], "{refused:#?}");
    }

    // It takes what Codex proposed, and the second command is not asked about.
    answer(&sidecar, turn.turn_id(), &request.request_id, amend(&[])).await.unwrap();
    let told = turn.rest().await;
    told.completed();
    assert_eq!(super::raised(&told).len(), 1, "{told:#?}");
    let commands = told.commands();
    assert_eq!(commands.len(), 2);
    assert!(commands.iter().all(|one| one.status() == pb::CommandExecutionStatus::Completed));
    let place = sidecar.stop().await;
    let rules = std::fs::read_to_string(place.codex_home().join("rules/default.rules")).unwrap();
    assert!(rules.contains(r#"pattern=["touch"]"#), "{rules}");
}

#[tokio::test]
async fn a_change_of_files_is_made_or_not_as_its_approval_says() {
    let sidecar = Sidecar::start().await;
    let write = |context: &str| asking(context, "[[write a.txt one]] [[write a.txt two]]");
    let file = sidecar.place.work().join("a.txt");
    let status = |told: &Told| -> Vec<_> {
        let changes = told.items().into_iter().filter_map(|(_, kind)| match kind {
            Kind::FileChange(change) => Some(change.status()),
            _ => None,
        });
        changes.collect()
    };

    let mut turn = sidecar.begin(write("accepted")).await;
    for decision in [Accept, Decline] {
        let request = asked(&mut turn).await;
        let Some(Asked::FileChangeApproval(approval)) = &request.kind else {
            panic!("{request:#?}")
        };
        // Codex asks without them; they are those of the item that was told before.
        let [change] = &approval.changes[..] else { panic!("{approval:#?}") };
        assert_eq!(change.path, file.display().to_string());
        assert!(change.diff.contains(if decision == Accept { "one" } else { "two" }));
        answer(&sidecar, turn.turn_id(), &request.request_id, decide(decision)).await.unwrap();
    }
    let told = turn.rest().await;
    use pb::FileChangeStatus::{Completed, Declined};
    assert_eq!(status(&told), [Completed, Declined]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one\n");

    // For the session: the same file again is not asked about.
    let told = run_answering(&sidecar, write("session"), [decide(AcceptForSession)]).await;
    assert_eq!(status(&told), [Completed, Completed]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "two\n");

    let told = run_answering(&sidecar, write("cancelled"), [decide(Cancel)]).await;
    assert_eq!(told.interrupted(), pb::InterruptReason::Codex);
    // For commands only.
    let mut turn = sidecar.begin(write("amended")).await;
    let request = asked(&mut turn).await;
    let amended = decide(AcceptWithExecPolicyAmendment);
    let refused = answer(&sidecar, turn.turn_id(), &request.request_id, amended).await;
    assert_eq!(refused.unwrap_err().field_paths(), ["approval.decision"]);
    sidecar.interrupt(turn.turn_id()).await.unwrap();
    turn.rest().await;

    sidecar.stop().await;
}

#[tokio::test]
async fn permissions_are_granted_up_to_what_was_asked_for() {
    let sidecar = Sidecar::start().await;
    let outside = sidecar.place.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let (file, wanted) = (
        outside.join("f"),
        json!({
            "network": {"enabled": true}, "file_system": {"write": [outside]},
        }),
    );
    let words = format!("[[permit {wanted}]] [[run touch {}]]", file.display());

    // Nothing, a part, all of it as it was asked for.
    run_answering(&sidecar, asking("nothing", &words), [grant("")]).await.completed();
    assert!(!file.exists());
    let part = grant(r#"{"network": {"enabled": true}}"#);
    run_answering(&sidecar, asking("part", &words), [part]).await.completed();
    assert!(!file.exists());

    let mut turn = sidecar.begin(asking("all", &words)).await;
    let request = asked(&mut turn).await;
    let Some(Asked::PermissionsApproval(approval)) = &request.kind else { panic!("{request:#?}") };
    assert_eq!(approval.reason, "as the prompt asked");
    let asked_for: Value = serde_json::from_str(&approval.permissions_json).unwrap();
    assert_eq!(asked_for["network"]["enabled"], true, "{asked_for}");
    let more = json!({"fileSystem": {"write": ["/"]}}).to_string();
    for unfit in [grant(&more), grant("{"), grant("7")] {
        let refused = answer(&sidecar, turn.turn_id(), &request.request_id, unfit).await;
        let refused = refused.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), ["permissions.permissions_json"], "{refused:#?}");
    }
    let whole = grant(&approval.permissions_json);
    answer(&sidecar, turn.turn_id(), &request.request_id, whole).await.unwrap();
    assert_eq!(turn.rest().await.command().exit_code, Some(0));
    assert!(file.exists());

    sidecar.stop().await;
}

#[tokio::test]
async fn what_the_user_says_is_what_the_model_reads() {
    let sidecar = Sidecar::start().await;
    let words = "[[ask Which? | Red | Blue; And? | A | B]]";
    let mut turn = sidecar.begin(asking("a", words)).await;
    let request = asked(&mut turn).await;
    assert_eq!(kind_of(&request), "user_questions");
    let Some(Asked::UserQuestions(questions)) = &request.kind else { panic!("{request:#?}") };
    let [first, second] = &questions.questions[..] else { panic!("{questions:#?}") };
    assert_eq!((first.question_id.as_str(), first.text.as_str()), ("q1", "Which?"));
    assert_eq!(second.options[1].label, "B");
    assert!(first.other_allowed && !first.secret && !questions.blocking, "{questions:#?}");

    let unfit = [
        (say(&[("q1", &["Red"]), ("q7", &["A"])]), "user_questions.answers[1].question_id"),
        (say(&[("q1", &["Red"]), ("q1", &["Blue"])]), "user_questions.answers[1].question_id"),
    ];
    for (unfit, path) in unfit {
        let refused = answer(&sidecar, turn.turn_id(), &request.request_id, unfit).await;
        let refused = refused.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), [path], "{refused:#?}");
    }
    // One of them is left out, the other answered in the user's own words.
    let given = say(&[("q1", &["Blue", "or green"])]);
    answer(&sidecar, turn.turn_id(), &request.request_id, given).await.unwrap();
    turn.rest().await.completed();

    let read = |output: &Value| serde_json::from_str::<Value>(output.as_str().unwrap()).unwrap();
    let outputs = outputs(&sidecar, "a").await;
    assert_eq!(read(&outputs[0]), json!({"answers": {"q1": {"answers": ["Blue", "or green"]}}}));

    sidecar.stop().await;
}
