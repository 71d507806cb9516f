//! What comes into force with a turn: no more than was asked, and nothing of an earlier turn's.

use serde_json::{Value, json};
use tonic::Code;

use crate::pb;
use crate::pb::SandboxMode::{DangerFullAccess, ReadOnly, WorkspaceWrite};
use crate::testing::{Sidecar, never, prompt, sidecar, sidecar_with};
use crate::worker::testing::Codex;

#[tokio::test(start_paused = true)]
async fn a_cli_that_tells_no_settings_runs_what_it_is_asked_for_and_knows_no_profiles() {
    let sidecar = Sidecar::start(|_| {});
    let mut codex = sidecar.codex().await;
    let unknown = "unknown variant `thread/settings/update`";
    codex.refuses.push(("thread/settings/update", 1, -32600, unknown));
    codex.during(sidecar.is_ready()).await;
    assert!(!sidecar.info().await.settings_verified);
    for (sandbox, sent) in
        [(ReadOnly, "readOnly"), (DangerFullAccess, "dangerFullAccess"), (ReadOnly, "readOnly")]
    {
        codex.during(sidecar.run(never("a", "hello", sandbox))).await.completed();
        let turns = codex.heard_of("turn/start");
        assert_eq!(turns.last().unwrap().params["sandboxPolicy"]["type"], sent);
    }
    let mut request = prompt("b", "hello");
    let options = request.thread_options.get_or_insert_default();
    options.permission_profile = ":workspace".to_owned();
    let refused = codex.during(sidecar.refused(request)).await;
    refused.assert(Code::FailedPrecondition, "CODEX_REFUSED");
}

#[tokio::test(start_paused = true)]
async fn more_than_was_asked_is_interrupted_before_anything_is_told() {
    let (sidecar, mut codex) = sidecar().await;
    assert!(sidecar.info().await.settings_verified);
    codex.during(sidecar.run(never("a", "hello", ReadOnly))).await.completed();
    let wider: [(&str, Value); 4] = [
        ("danger-full-access", json!({ "sandboxPolicy": { "type": "dangerFullAccess" } })),
        ("on-request", json!({ "approvalPolicy": "on-request" })),
        ("hologram", json!({ "sandboxPolicy": { "type": "hologram" } })),
        ("elsewhere", json!({ "cwd": "/elsewhere" })),
    ];
    for (what, imposed) in wider {
        codex.imposes.insert("turn/start", imposed);
        for context in ["a", "new"] {
            codex.holds_turns = true;
            let before = codex.count("turn/interrupt");
            let request = never(context, "hello", WorkspaceWrite);
            let mut turn = codex.during(sidecar.begin(request)).await.unwrap();
            codex.say_in_turn("first").await;
            let (thread_id, turn_id) = codex.turns.last().unwrap().clone();
            let asks = json!({ "threadId": thread_id, "turnId": turn_id, "questions": [] });
            codex.ask(1, "item/tool/requestUserInput", asks).await;
            codex.during(turn.rest()).await;
            let error = turn.failed();
            assert_eq!(error.reason, "SETTINGS_NOT_APPLIED", "{what}: {error:#?}");
            assert!(error.message.contains(what), "{what}: {error:#?}");
            assert!(!error.retryable, "{error:#?}");
            let kinds = turn.kinds();
            assert_eq!(kinds, ["thread_started", "turn_started", "turn_failed"], "{what}");
            assert_eq!(codex.count("turn/interrupt"), before + 1, "{what}");
        }
        // The thread is good again once Codex does what it is asked.
        codex.imposes.clear();
        codex.holds_turns = false;
        for context in ["a", "new"] {
            let told = codex.during(sidecar.run(never(context, "hello", WorkspaceWrite))).await;
            assert_eq!(told.final_response(), "You said: hello", "{what}");
        }
    }
    // Less than was asked is no harm.
    let less = json!({ "sandboxPolicy": { "type": "readOnly", "networkAccess": false } });
    codex.imposes.insert("turn/start", less);
    let told = codex.during(sidecar.run(never("a", "hello", WorkspaceWrite))).await;
    assert_eq!(told.final_response(), "You said: hello");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_ended_before_it_could_be_interrupted_has_failed_all_the_same() {
    let (sidecar, mut codex) = sidecar().await;
    let imposed = json!({ "sandboxPolicy": { "type": "dangerFullAccess" } });
    codex.imposes.insert("turn/start", imposed);
    let running = sidecar.run(never("a", "hello", ReadOnly));
    let ((), told) = {
        let script = async {
            let asked = codex.asked("turn/start").await;
            let (thread_id, root) = (&asked.params["threadId"], &asked.params["rootTurnId"]);
            let (thread_id, root) = (thread_id.as_str().unwrap(), root.as_str().unwrap());
            codex.turns.push((thread_id.to_owned(), "u".to_owned()));
            codex.tell_settings(&asked).await;
            codex.begin_turn(thread_id, "u", root).await;
            let command = json!({
                "type": "commandExecution", "id": "c", "command": "true", "cwd": "/",
                "status": "completed", "commandActions": [], "exitCode": 0,
            });
            codex.tell_in_turn("item/completed", json!({ "item": command })).await;
            codex.end_last_turn().await;
            // Only then.
            codex.answer(&asked, json!({ "turn": { "id": "u", "rootTurnId": root } })).await;
            codex.during(std::future::pending::<()>()).await;
        };
        tokio::select! {
            told = running => ((), told),
            () = script => unreachable!(),
        }
    };
    let error = told.failed();
    assert_eq!((error.reason.as_str(), error.retryable), ("SETTINGS_NOT_APPLIED", false));
    assert!(error.side_effects_possible, "a command had begun: {error:#?}");
    assert_eq!(told.kinds(), ["thread_started", "turn_started", "turn_failed"]);
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_has_too_much_is_loaded_anew_once_and_then_refused() {
    let (sidecar, mut codex) = sidecar().await;
    let first = codex.during(sidecar.run(never("old", "hello", DangerFullAccess))).await;
    let deaf = json!({ "sandbox": { "type": "dangerFullAccess" } });
    codex.imposes.insert("thread/start", deaf.clone());
    codex.imposes.insert("thread/resume", deaf);
    let count = |codex: &Codex| {
        ["thread/start", "thread/resume", "turn/start"].map(|method| codex.count(method))
    };
    let [starts, resumes, turns] = count(&codex);
    for context in ["new", "old"] {
        let refused = codex.during(sidecar.refused(never(context, "hello", ReadOnly))).await;
        refused.assert(Code::FailedPrecondition, "SETTINGS_NOT_APPLIED");
        assert!(refused.message.contains("danger-full-access"), "{refused:#?}");
    }
    // Loaded, and loaded anew once; beside the two of the new context one that asks what the defaults
    // are. No turn was started.
    assert_eq!(count(&codex), [starts + 3, resumes + 2, turns]);
    // Nothing is bound by a refusal, and nothing is lost by it.
    assert!(sidecar.context("new").await.is_err());
    codex.imposes.clear();
    let told = codex.during(sidecar.run(never("old", "again", ReadOnly))).await;
    assert_eq!(told.final_response(), "You said: again");
    assert_eq!(told.thread_id(), first.thread_id());
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_asks_for_less_gets_its_thread_loaded_anew_with_the_least() {
    let (sidecar, mut codex) = sidecar_with(|_| {}).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let also_elsewhere = || {
        let mut request = never("a", "hello", WorkspaceWrite);
        let options = request.thread_options.get_or_insert_default();
        options.additional_directories = vec![elsewhere.path().display().to_string()];
        request
    };
    let asked = |policy: pb::ApprovalPolicy| {
        let mut request = never("a", "hello", ReadOnly);
        request.thread_options.get_or_insert_default().set_approval_policy(policy);
        request
    };
    let turns = [
        ("the first", false, never("a", "hello", ReadOnly)),
        ("the same", false, never("a", "hello", ReadOnly)),
        ("more", false, never("a", "hello", WorkspaceWrite)),
        ("a directory more", false, also_elsewhere()),
        ("a directory less", true, never("a", "hello", WorkspaceWrite)),
        ("all", false, never("a", "hello", DangerFullAccess)),
        ("less than all", true, also_elsewhere()),
        ("the least", true, never("a", "hello", ReadOnly)),
        ("another policy", true, asked(pb::ApprovalPolicy::OnRequest)),
        ("and back", true, asked(pb::ApprovalPolicy::Never)),
    ];
    for (what, anew, request) in turns {
        codex.heard.clear();
        codex.during(sidecar.run(request)).await.completed();
        let resumed = codex.heard_of("thread/resume");
        assert_eq!(resumed.len(), usize::from(anew), "{what}: {:#?}", codex.heard);
        for resume in resumed {
            let turn = codex.heard_of("turn/start")[0];
            assert_eq!(resume.params["sandbox"], "read-only", "{what}");
            assert_eq!(resume.params["approvalPolicy"], turn.params["approvalPolicy"], "{what}");
        }
    }
}
