//! A turn for callers that want one answer, and the turns that are there, on the real CLI.

use crate::support::turn::until_there;
use crate::support::{Refused, Sidecar, eventually, prompt};
use codex_sidecar::pb;
use codex_sidecar::pb::turn_event::Event;
use tonic::{Code, Request};

fn unary(sidecar: &Sidecar, request: pb::RunTurnRequest) -> pb::RunTurnUnaryRequest {
    pb::RunTurnUnaryRequest { request: Some(sidecar.at_work(request)) }
}

async fn listed(sidecar: &Sidecar, context_id: &str) -> Vec<pb::TurnInfo> {
    let context_id = context_id.to_owned();
    let context = Some(pb::ContextRef { context_id, ..Default::default() });
    let request = pb::ListTurnsRequest { context, ..Default::default() };
    sidecar.codex().list_turns(request).await.unwrap().into_inner().turns
}

#[tokio::test]
async fn one_call_gives_one_answer_and_the_same_call_the_same() {
    let sidecar = Sidecar::start().await;
    let mut request = prompt("a", "hello");
    request.request_id = "r".to_owned();
    let call = unary(&sidecar, request.clone());
    let first = sidecar.codex().run_turn_unary(call.clone()).await.unwrap().into_inner();
    let terminal = first.terminal_event.clone().unwrap();
    let Some(Event::TurnCompleted(completed)) = &terminal.event else { panic!("{terminal:#?}") };
    assert_eq!(completed.final_response, "You said: hello (user messages so far: 1)");
    assert!(completed.usage.is_some());
    assert_eq!(first.thread_id, sidecar.context("a").await.unwrap().thread_id);
    let again = sidecar.codex().run_turn_unary(call).await.unwrap().into_inner();
    assert_eq!(again, first);
    // A stream of the same request is that of the same turn.
    assert_eq!(sidecar.run(request).await.turn_id(), terminal.turn_id);

    let call = unary(&sidecar, prompt("a", "[[fail insufficient_quota]]"));
    let failed = sidecar.codex().run_turn_unary(call).await.unwrap().into_inner();
    let terminal = failed.terminal_event.unwrap();
    assert!(matches!(terminal.event, Some(Event::TurnFailed(_))), "{terminal:#?}");

    for (request, field) in [
        (None, "request"),
        (Some(prompt("", "hello")), "request.context_id"),
        (Some(prompt("a", " ")), "request.inputs[0].text"),
    ] {
        let call = pb::RunTurnUnaryRequest { request };
        let refused = Refused::from(sidecar.codex().run_turn_unary(call).await.unwrap_err());
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), [field]);
    }
    let mut gone = prompt("b", "hello");
    let options = gone.thread_options.get_or_insert_default();
    options.working_directory = Some("/no/such/directory".to_owned());
    let call = pb::RunTurnUnaryRequest { request: Some(gone) };
    let refused = Refused::from(sidecar.codex().run_turn_unary(call).await.unwrap_err());
    refused.assert(Code::FailedPrecondition, "WORKING_DIRECTORY_MISSING");
    assert_eq!(refused.field_paths(), ["request.thread_options.working_directory"]);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_deadline_of_one_answer_ends_the_call_and_by_the_policy_the_turn() {
    let sidecar = Sidecar::start().await;
    let go = sidecar.place.path().join("go");
    for (context, policy) in
        [("a", pb::DisconnectPolicy::Interrupt), ("b", pb::DisconnectPolicy::Continue)]
    {
        let mut request = until_there(context, &go, "done");
        request.disconnect_policy = policy.into();
        let mut call = Request::new(unary(&sidecar, request));
        call.metadata_mut().insert("grpc-timeout", "2S".parse().unwrap());
        let refused = Refused::from(sidecar.codex().run_turn_unary(call).await.unwrap_err());
        // This client has a clock of its own, which may strike first.
        let is_the_clients = refused.code == Code::Cancelled && refused.domain.is_empty();
        assert!(refused.code == Code::DeadlineExceeded || is_the_clients, "{refused:#?}");
        if policy == pb::DisconnectPolicy::Interrupt {
            let ended = eventually("the end of the turn", async || {
                let turn = listed(&sidecar, context).await.pop()?;
                turn.end_time.is_some().then_some(turn)
            });
            let ended = ended.await;
            assert_eq!(ended.state(), pb::TurnState::Interrupted);
            assert_eq!(ended.reason, "DEADLINE_EXCEEDED");
        } else {
            let turn = listed(&sidecar, context).await.pop().unwrap();
            assert_eq!(turn.state(), pb::TurnState::Running);
            std::fs::write(&go, "").unwrap();
            eventually("its good end", async || {
                let turn = listed(&sidecar, context).await.pop()?;
                (turn.state() == pb::TurnState::Completed).then_some(())
            })
            .await;
        }
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn turns_are_listed_from_the_queue_to_their_end() {
    let sidecar = Sidecar::start().await;
    let done = sidecar.say("a", "hello").await;
    let go = sidecar.place.path().join("go");
    let mut running = sidecar.begin(until_there("a", &go, "done")).await;
    running.started().await;
    running.command_started().await;
    let mut waiting = sidecar.begin(prompt("a", "later")).await;
    waiting.try_next().await.unwrap();
    let turns = listed(&sidecar, "a").await;
    use pb::TurnState::{Completed, Running, Waiting};
    let states: Vec<_> = turns.iter().map(pb::TurnInfo::state).collect();
    assert_eq!(states, [Completed, Running, Waiting]);
    let ids: Vec<_> = turns.iter().map(|turn| turn.turn_id.as_str()).collect();
    assert_eq!(ids, [done.turn_id(), running.turn_id(), waiting.turn_id()]);
    assert_eq!(turns[0].usage, done.completed().usage);
    assert_eq!((&*turns[1].thread_id, &*turns[1].worker_id), (done.thread_id(), "w0"));
    assert_eq!((turns[2].queue_position, &*turns[2].last_event), (1, "queued"));
    std::fs::write(&go, "").unwrap();
    running.rest().await;
    waiting.rest().await;
    let turns = listed(&sidecar, "a").await;
    assert!(turns.iter().all(|turn| turn.state() == Completed && turn.end_time.is_some()));
    sidecar.stop().await;
}
