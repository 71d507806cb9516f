//! A request is told all that is wrong with its form at once.

use tonic::{Code, Request, Response, Status};

use crate::grpc::api::codex_service_server::CodexService as _;
use crate::pb;
use crate::testing::{Refused, sidecar};

const THREAD: &str = "00000000-0000-4000-8000-000000000001";

#[track_caller]
fn assert_faults<T>(called: Result<Response<T>, Status>, fields: &[&str]) {
    let Err(status) = called else { panic!("it is taken; {fields:?}") };
    let refused = Refused::from(status);
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    assert_eq!(refused.fields, fields, "{refused:#?}");
}

#[tokio::test(start_paused = true)]
async fn every_call_names_all_faults_of_its_request() {
    let (sidecar, _codex) = sidecar().await;
    let api = &sidecar.api;
    let nameless = || Some(pb::ContextRef::default());
    let garbage = || "garbage".to_owned();

    let nothing = pb::AnswerRequestRequest::default();
    let answered = api.answer_request(Request::new(nothing)).await;
    assert_faults(answered, &["turn_id", "request_id", "answer"]);
    let beside = pb::AnswerRequestRequest {
        turn_id: "nope".to_owned(),
        answer: Some(pb::answer_request_request::Answer::Approval(pb::ApprovalAnswer::default())),
        ..Default::default()
    };
    assert_faults(api.answer_request(Request::new(beside)).await, &["turn_id", "request_id"]);

    let inputs = vec![pb::UserInput { input: None }];
    let steered = pb::SteerTurnRequest { turn_id: garbage(), inputs };
    assert_faults(api.steer_turn(Request::new(steered)).await, &["turn_id", "inputs[0]"]);

    use pb::read_thread_request::Target;
    for (target, field) in [
        (None, Some("target")),
        (Some(Target::ThreadId(garbage())), Some("thread_id")),
        (Some(Target::Context(pb::ContextRef::default())), Some("context.context_id")),
        (Some(Target::ThreadId(THREAD.to_owned())), None),
    ] {
        let read = pb::ReadThreadRequest { target, page_size: -1, page_token: garbage() };
        let fields: Vec<_> = field.into_iter().chain(["page_size", "page_token"]).collect();
        assert_faults(api.read_thread(Request::new(read)).await, &fields);
    }
    let listed = pb::ListTurnsRequest { context: nameless(), page_size: -1, page_token: garbage() };
    let fields = ["context.context_id", "page_size", "page_token"];
    assert_faults(api.list_turns(Request::new(listed)).await, &fields);
    let listed =
        pb::ListContextsRequest { page_size: -1, page_token: garbage(), ..Default::default() };
    assert_faults(api.list_contexts(Request::new(listed)).await, &["page_size", "page_token"]);

    let bound = pb::BindContextRequest { thread_id: garbage(), ..Default::default() };
    assert_faults(api.bind_context(Request::new(bound)).await, &["context_id", "thread_id"]);
    let copied = pb::ForkContextRequest {
        source: nameless(),
        last_codex_turn_id: "x".repeat(1000),
        ..Default::default()
    };
    let fields = ["source.context_id", "target", "last_codex_turn_id"];
    assert_faults(api.fork_context(Request::new(copied)).await, &fields);
    let reverted = pb::RevertContextRequest { context: nameless(), ..Default::default() };
    let fields = ["context.context_id", "before_codex_turn_id"];
    assert_faults(api.revert_context(Request::new(reverted)).await, &fields);
}

/// What a call can do about it is what it says, in the contract's words.
#[tokio::test(start_paused = true)]
async fn what_codex_refuses_is_told_without_its_wire_and_with_what_the_call_can_do() {
    let (sidecar, mut codex) = sidecar().await;
    let read = || {
        let target = Some(pb::read_thread_request::Target::ThreadId(THREAD.to_owned()));
        Request::new(pb::ReadThreadRequest { target, ..Default::default() })
    };
    let wire = ["thread/", "turn/", "code -", "not loaded", "missing_thread_policy", "lastTurnId"];
    for (said, code, reason) in [
        ("thread not loaded: 1", Code::NotFound, "THREAD_NOT_FOUND"),
        ("ephemeral threads do not support thread/turns/list", Code::NotFound, "THREAD_NOT_FOUND"),
        ("the disk says no", Code::FailedPrecondition, "CODEX_REFUSED"),
    ] {
        codex.refuses = vec![("thread/turns/list", 1, -32600, said)];
        let refused = codex.during(sidecar.api.read_thread(read())).await.unwrap_err();
        let refused = Refused::from(refused);
        refused.assert(code, reason);
        assert!(!wire.iter().any(|word| refused.message.contains(word)), "{refused:#?}");
    }
    codex.during(sidecar.say("a", "hello")).await.completed();
    let context = || Some(pb::ContextRef { context_id: "a".to_owned(), ..Default::default() });
    for said in ["turn not found: zz", "lastTurnId 'zz' was not found in the source thread"] {
        codex.refuses = vec![("thread/revert", 1, -32600, said)];
        let before_codex_turn_id = "zz".to_owned();
        let request = pb::RevertContextRequest { context: context(), before_codex_turn_id };
        let reverted = codex.during(sidecar.api.revert_context(Request::new(request))).await;
        let refused = Refused::from(reverted.unwrap_err());
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert!(refused.message.contains("zz"), "{refused:#?}");
        assert!(!wire.iter().any(|word| refused.message.contains(word)), "{refused:#?}");
    }
    // A turn has the field.
    codex.refuses = vec![("thread/resume", 1, -32600, "no rollout found for thread id 1")];
    let mut turn = crate::testing::prompt("b", "hello");
    turn.thread_id = THREAD.to_owned();
    let refused = codex.during(sidecar.refused(turn)).await;
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    assert!(refused.message.contains("missing_thread_policy"), "{refused:#?}");
}
