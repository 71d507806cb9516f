//! What becomes of a question of each kind that its caller does not answer: declined, too late,
//! interrupted, lost with its worker, and answered by somebody else.

use codex_sidecar::parts::config::ListenAddress;
use codex_sidecar::pb;
use codex_sidecar::pb::RequestResolution::{Answered, Declined, TimedOut, Withdrawn};
use codex_sidecar::pb::answer_request_request::Answer;
use rustix::process::Signal;
use tonic::Code;

use super::{
    answer, asked, asking, decide, elicit, every_kind, give_back, grant, kind_of, lending,
    resolved, say, with_desk,
};
use crate::support::attached::by_id;
use crate::support::{Client, Place, Sidecar, Told, processes, short_directory};

async fn start() -> Sidecar {
    let place = Place::new();
    with_desk(&place);
    Sidecar::in_place(place, |_, _| {}).await
}

/// A turn of each kind that asks once, and the file that must not be there in the end.
fn turns(sidecar: &Sidecar) -> (std::path::PathBuf, Vec<(&'static str, pb::RunTurnRequest)>) {
    let forbidden = sidecar.place.path().join("forbidden");
    let kinds = every_kind(&forbidden).into_iter().map(|(kind, words)| {
        let words = format!("{words} [[say went on]]");
        (kind, if kind == "tool_call" { lending(kind, &words) } else { asking(kind, &words) })
    });
    (forbidden.clone(), kinds.collect())
}

/// An answer of this kind, and another one.
fn two_answers(kind: &str) -> (Answer, Answer) {
    use pb::ApprovalDecision::{Accept, Decline};
    match kind {
        "command_approval" | "file_change_approval" => (decide(Decline), decide(Accept)),
        "permissions_approval" => (grant(""), grant(r#"{"network": {"enabled": true}}"#)),
        "user_questions" => (say(&[("q1", &["Red"])]), say(&[("q1", &["Blue"])])),
        "elicitation" => {
            use pb::ElicitationAction::{Cancel, Decline};
            (elicit(Decline, ""), elicit(Cancel, ""))
        }
        _ => (give_back("one"), give_back("two")),
    }
}

fn only(told: &Told) -> pb::RequestResolved {
    let resolved = resolved(told);
    assert_eq!((resolved.len(), super::raised(told).len()), (1, 1), "{told:#?}");
    resolved[0].clone()
}

#[tokio::test]
async fn who_knows_nothing_of_questions_never_waits_for_one() {
    let sidecar = start().await;
    let (forbidden, turns) = turns(&sidecar);
    for (kind, mut request) in turns {
        request.set_question_policy(pb::QuestionPolicy::Unspecified);
        if kind == "tool_call" {
            // Who lends a function answers for it, whatever becomes of other questions.
            continue;
        }
        let told = sidecar.run(request).await;
        assert_eq!(told.final_response(), "went on", "{kind}");
        assert_eq!(kind_of(super::raised(&told)[0]), kind);
        let resolved = only(&told);
        assert_eq!((resolved.resolution(), resolved.resolved_by.as_str()), (Declined, "sidecar"));
        let late =
            answer(&sidecar, told.turn_id(), &resolved.request_id, two_answers(kind).0).await;
        late.unwrap_err().assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
    }
    assert!(!forbidden.exists());

    sidecar.stop().await;
}

#[tokio::test]
async fn a_question_that_nobody_answers_in_time_is_declined_and_the_turn_goes_on() {
    let sidecar = start().await;
    let (forbidden, turns) = turns(&sidecar);
    for (kind, mut request) in turns {
        let soon = prost_types::Duration { seconds: 0, nanos: 500_000_000 };
        request.turn_options.get_or_insert_default().answer_timeout = Some(soon);
        let told = sidecar.run(request).await;
        assert_eq!(told.final_response(), "went on", "{kind}");
        assert_eq!(kind_of(super::raised(&told)[0]), kind);
        let resolved = only(&told);
        assert_eq!((resolved.resolution(), resolved.resolved_by.as_str()), (TimedOut, "sidecar"));
        let late =
            answer(&sidecar, told.turn_id(), &resolved.request_id, two_answers(kind).0).await;
        late.unwrap_err().assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
    }
    assert!(!forbidden.exists());

    sidecar.stop().await;
}

#[tokio::test]
async fn an_interruption_takes_the_question_back() {
    let sidecar = start().await;
    let (forbidden, turns) = turns(&sidecar);
    for (kind, request) in turns {
        let mut turn = sidecar.begin(request).await;
        let raised = asked(&mut turn).await;
        assert_eq!(kind_of(&raised), kind);
        sidecar.interrupt(turn.turn_id()).await.unwrap();
        let told = turn.rest().await;
        assert_eq!(told.interrupted(), pb::InterruptReason::InterruptRequested, "{kind}");
        let resolved = only(&told);
        assert_eq!((resolved.resolution(), resolved.resolved_by.as_str()), (Withdrawn, "sidecar"));
        let late =
            answer(&sidecar, told.turn_id(), &resolved.request_id, two_answers(kind).1).await;
        late.unwrap_err().assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
        // Its thread serves on.
        assert!(sidecar.say(kind, "hello").await.final_response().contains("hello"));
    }
    assert!(!forbidden.exists());

    sidecar.stop().await;
}

#[tokio::test]
async fn a_question_goes_with_its_worker_and_its_turn_is_lost() {
    let sidecar = start().await;
    let (forbidden, turns) = turns(&sidecar);
    for (kind, request) in turns {
        let mut turn = sidecar.begin(request).await;
        let raised = asked(&mut turn).await;
        assert_eq!(kind_of(&raised), kind);
        let worker = sidecar.workers().await.remove(0);
        processes::signal(worker.pid, Signal::KILL);
        let told = turn.rest().await;
        assert_eq!(told.failed().reason, "WORKER_LOST", "{kind}");
        assert_eq!(only(&told).resolution(), Withdrawn);
        let late = answer(&sidecar, told.turn_id(), &raised.request_id, two_answers(kind).1).await;
        late.unwrap_err().assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
        sidecar.ready().await;
    }
    assert!(!forbidden.exists());

    sidecar.stop().await;
}

#[tokio::test]
async fn a_question_outlives_its_caller_and_the_first_answer_counts_whoever_gives_it() {
    let sidecar = start().await;
    let address = sidecar.addresses[0].to_string();
    let other = Client::connect(&address, sidecar.place.work()).await;
    let (_, turns) = turns(&sidecar);
    for (kind, mut request) in turns {
        request.set_disconnect_policy(pb::DisconnectPolicy::Continue);
        let mut turn = sidecar.begin(request).await;
        let raised = asked(&mut turn).await;
        let turn_id = turn.turn_id().to_owned();
        drop(turn);

        let attached = other.attach(by_id(&turn_id), 0).await;
        let (first, second) = two_answers(kind);
        answer(&other, &turn_id, &raised.request_id, first.clone()).await.unwrap();
        // The same again, by anybody, changes nothing; another one comes too late.
        answer(&sidecar, &turn_id, &raised.request_id, first.clone()).await.unwrap();
        let late = answer(&sidecar, &turn_id, &raised.request_id, second).await.unwrap_err();
        late.assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
        let told = Told { events: attached.rest().await };
        assert_eq!(told.final_response(), "went on", "{kind}");
        let resolved = only(&told);
        assert_eq!(resolved.resolution(), Answered);
        assert!(resolved.resolved_by.starts_with("127.0.0.1:"), "{resolved:#?}");
        // Also when the turn is over, as long as it is retained.
        answer(&sidecar, &turn_id, &raised.request_id, first).await.unwrap();
        let unknown = answer(&sidecar, &turn_id, "777", two_answers(kind).0).await.unwrap_err();
        unknown.assert(Code::NotFound, "REQUEST_NOT_FOUND");
    }

    sidecar.stop().await;
}

#[tokio::test]
async fn who_answered_is_told_by_his_address_or_over_a_unix_socket_by_his_user() {
    let sockets = short_directory();
    let socket = sockets.path().join("sidecar.sock");
    let path = socket.clone();
    let sidecar = Sidecar::with(|config| config.listen.push(ListenAddress::Unix(path))).await;
    let address = format!("unix:{}", socket.display());
    let neighbour = Client::connect(&address, sidecar.place.work()).await;
    let user = format!("unix:uid={}", rustix::process::getuid().as_raw());
    let answerers: [(&Client, &str); 2] = [(&sidecar, "127.0.0.1:"), (&neighbour, &user)];
    for (answerer, by) in answerers {
        let mut turn = sidecar.begin(lending("a", "[[tool look]]")).await;
        let raised = asked(&mut turn).await;
        answer(answerer, turn.turn_id(), &raised.request_id, give_back("x")).await.unwrap();
        let resolved = only(&turn.rest().await);
        assert!(resolved.resolved_by.starts_with(by), "{resolved:#?}");
    }

    sidecar.stop().await;
}
