//! Codex's own reviewer in the caller's stead.

use codex_sidecar::pb;
use codex_sidecar::pb::ApprovalReviewStatus::{Aborted, Approved, Denied, InProgress};
use codex_sidecar::pb::turn_event::Event;

use super::{asked, asking, kind_of, raised};
use crate::support::{Sidecar, Told};

fn reviewed(context: &str, words: &str) -> pb::RunTurnRequest {
    let mut request = asking(context, words);
    let options = request.thread_options.get_or_insert_default();
    options.set_approvals_reviewer(pb::ApprovalsReviewer::AutoReview);
    request
}

fn reviews(told: &Told) -> Vec<&pb::ApprovalReviewed> {
    let reviews = told.all().filter_map(|event| match event {
        Event::ApprovalReviewed(review) => Some(review),
        _ => None,
    });
    reviews.collect()
}

#[tokio::test]
async fn the_reviewers_verdicts_are_told_and_the_caller_is_not_asked() {
    let sidecar = Sidecar::start().await;
    let file = sidecar.place.path().join("touched");
    let words = |review: &str| {
        format!(
            "{review} [[escalate touch {}]] [[write a.txt one]] [[say went on]]",
            file.display()
        )
    };

    let told = sidecar.run(reviewed("allowed", &words("[[review allow it is yours]]"))).await;
    assert_eq!(told.final_response(), "went on");
    assert!(raised(&told).is_empty(), "{told:#?}");
    let [begun, approved, patch, _] = reviews(&told)[..] else { panic!("{told:#?}") };
    assert_eq!((begun.status(), approved.status()), (InProgress, Approved));
    assert_eq!(begun.review_id, approved.review_id);
    let command = told.items().into_iter().find(|(id, _)| *id == approved.item_id);
    assert!(matches!(command, Some((_, pb::item::Kind::CommandExecution(_)))), "{told:#?}");
    assert_eq!((approved.risk_level.as_str(), approved.rationale.as_str()), ("low", "it is yours"));
    assert!(approved.action_json.contains("touch"), "{approved:#?}");
    assert!(patch.action_json.contains("a.txt"), "{patch:#?}");
    assert!(file.exists() && sidecar.place.work().join("a.txt").exists());

    std::fs::remove_file(&file).unwrap();
    let told = sidecar.run(reviewed("denied", &words("[[review deny it is not]]"))).await;
    assert_eq!(told.final_response(), "went on");
    let [_, denied, _, _] = reviews(&told)[..] else { panic!("{told:#?}") };
    assert_eq!((denied.status(), denied.rationale.as_str()), (Denied, "it is not"));
    assert_eq!(told.command().status(), pb::CommandExecutionStatus::Declined);
    assert!(!file.exists());

    sidecar.stop().await;
}

#[tokio::test]
async fn a_reviewer_of_one_turn_does_not_answer_for_the_next() {
    let sidecar = Sidecar::start().await;
    let escalate = "[[escalate true]] [[say went on]]";
    sidecar.run(reviewed("a", escalate)).await.completed();
    // Nobody says who answers: the configuration's own, which is the caller.
    let mut turn = sidecar.begin(asking("a", escalate)).await;
    assert_eq!(kind_of(&asked(&mut turn).await), "command_approval");
    sidecar.interrupt(turn.turn_id()).await.unwrap();
    assert!(reviews(&turn.rest().await).is_empty());
    sidecar.run(reviewed("a", escalate)).await.completed();
    let mut request = asking("a", escalate);
    let options = request.thread_options.get_or_insert_default();
    options.set_approvals_reviewer(pb::ApprovalsReviewer::User);
    let mut turn = sidecar.begin(request).await;
    assert_eq!(kind_of(&asked(&mut turn).await), "command_approval");
    sidecar.interrupt(turn.turn_id()).await.unwrap();
    turn.rest().await;

    sidecar.stop().await;
}

#[tokio::test]
async fn a_review_that_does_not_end_is_given_up_with_its_turn() {
    let sidecar = Sidecar::start().await;
    let mut turn = sidecar.begin(reviewed("a", "[[review hang]] [[escalate true]]")).await;
    let begun = turn
        .until("a review", |event| match event {
            Event::ApprovalReviewed(review) => Some(review.clone()),
            _ => None,
        })
        .await;
    assert_eq!(begun.status(), InProgress);
    sidecar.interrupt(turn.turn_id()).await.unwrap();
    let told = turn.rest().await;
    assert_eq!(told.interrupted(), pb::InterruptReason::InterruptRequested);
    // Codex tells it, unless the end of the turn is quicker.
    if let [_, aborted] = reviews(&told)[..] {
        assert_eq!((aborted.status(), &aborted.review_id), (Aborted, &begun.review_id));
    }

    sidecar.stop().await;
}
