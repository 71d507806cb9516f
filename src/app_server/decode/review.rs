//! What Codex's own reviewer says about an approval.

use super::parts::Parts;
use crate::model::event::{ApprovalReviewStatus, ApprovalReviewed};

/// A review that begins or has ended (`item/autoApprovalReview/*`). One of an unknown state is told all
/// the same.
pub(super) fn review(params: &Parts<'_>) -> Option<ApprovalReviewed> {
    let review = params.parts("review");
    // What Codex names there is no item, as in its request.
    let is_of_permissions =
        params.parts("action").text("type").as_deref() == Some("requestPermissions");
    let item_id = params.text("targetItemId")?;
    let status = match review.text("status")?.as_str() {
        "inProgress" => ApprovalReviewStatus::InProgress,
        "approved" => ApprovalReviewStatus::Approved,
        "denied" => ApprovalReviewStatus::Denied,
        "timedOut" => ApprovalReviewStatus::TimedOut,
        "aborted" => ApprovalReviewStatus::Aborted,
        _ => ApprovalReviewStatus::Unspecified,
    };
    Some(ApprovalReviewed {
        // CLIs before 0.130 have none.
        review_id: params.text("reviewId")?,
        item_id: if is_of_permissions { String::new() } else { item_id },
        status: status.into(),
        risk_level: review.text("riskLevel")?,
        user_authorization: review.text("userAuthorization")?,
        rationale: review.text("rationale")?,
        action_json: params.json("action"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::app_server::decode::{News, Scope, notification};
    use crate::model::event::Event;

    fn action() -> Value {
        json!({"type": "applyPatch", "cwd": "/w", "files": ["/w/a"]})
    }

    /// As 0.169.0 tells it.
    fn told(method: &str, review: Value, target: Value) -> (Scope, News) {
        let params = json!({
            "threadId": "t", "turnId": "u", "startedAtMs": 1, "completedAtMs": 2, "reviewId": "r",
            "targetItemId": target, "decisionSource": "agent", "review": review,
            "action": action(),
        });
        notification(method, &serde_json::value::to_raw_value(&params).unwrap())
    }

    #[test]
    fn a_review_is_told_when_it_begins_and_with_its_verdict() {
        let begun = json!({"status": "inProgress", "riskLevel": null, "userAuthorization": null,
                           "rationale": null});
        let (scope, news) = told("item/autoApprovalReview/started", begun, json!("i"));
        assert_eq!((scope.thread_id.as_deref(), scope.turn_id.as_deref()), (Some("t"), Some("u")));
        let mut expected = ApprovalReviewed {
            review_id: "r".to_owned(),
            item_id: "i".to_owned(),
            status: ApprovalReviewStatus::InProgress.into(),
            action_json: action().to_string(),
            ..ApprovalReviewed::default()
        };
        assert_eq!(news, News::Event(Event::ApprovalReviewed(expected.clone())));

        let verdict = json!({"status": "denied", "riskLevel": "high", "userAuthorization": "low",
                             "rationale": "it deletes"});
        let (_, news) = told("item/autoApprovalReview/completed", verdict, json!(null));
        expected = ApprovalReviewed {
            item_id: String::new(),
            status: ApprovalReviewStatus::Denied.into(),
            risk_level: "high".to_owned(),
            user_authorization: "low".to_owned(),
            rationale: "it deletes".to_owned(),
            ..expected
        };
        assert_eq!(news, News::Event(Event::ApprovalReviewed(expected)));
    }

    #[test]
    fn a_review_of_permissions_is_about_no_item() {
        let mut params = json!({
            "threadId": "t", "turnId": "u", "reviewId": "r", "targetItemId": "call_1",
            "review": { "status": "inProgress" },
            "action": { "type": "requestPermissions", "reason": null, "permissions": {} },
        });
        let item_id = |params: &Value| {
            let params = serde_json::value::to_raw_value(params).unwrap();
            match notification("item/autoApprovalReview/started", &params).1 {
                News::Event(Event::ApprovalReviewed(review)) => review.item_id,
                news => panic!("{news:?}"),
            }
        };
        assert_eq!(item_id(&params), "");
        params["action"] = action();
        assert_eq!(item_id(&params), "call_1");
    }

    #[test]
    fn every_state_of_a_review_has_its_name_and_a_new_one_is_told_all_the_same() {
        for (word, status) in [
            ("approved", ApprovalReviewStatus::Approved),
            ("timedOut", ApprovalReviewStatus::TimedOut),
            ("aborted", ApprovalReviewStatus::Aborted),
            ("pondering", ApprovalReviewStatus::Unspecified),
        ] {
            let (_, news) =
                told("item/autoApprovalReview/completed", json!({"status": word}), json!("i"));
            let News::Event(Event::ApprovalReviewed(review)) = news else { panic!("{news:?}") };
            assert_eq!(review.status(), status, "{word}");
        }
    }
}
