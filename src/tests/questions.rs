//! What Codex asks, from its line to the answer that it reads, over gRPC's own messages.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tonic::Code;

use crate::app_server::protected::{ProtectedPath, ProtectedPaths, Protection};
use crate::model::question::{
    Answer, ApprovalAnswer, ApprovalDecision, ElicitationAction, ElicitationAnswer,
    NetworkPolicyAmendment, PermissionsAnswer, ToolCallAnswer, UserQuestionAnswer,
    UserQuestionsAnswer,
};
use crate::pb;
use crate::pb::turn_event::Event;
use crate::testing::{Refused, Sidecar, Turn, prompt, sidecar, sidecar_with};
use crate::worker::testing::Codex;

/// A turn whose caller is asked.
fn asking(context: &str) -> pb::RunTurnRequest {
    let mut request = prompt(context, "x");
    request.set_question_policy(pb::QuestionPolicy::Ask);
    request
}

/// A turn that Codex has begun and goes on with.
async fn begin(sidecar: &Sidecar, codex: &mut Codex, request: pb::RunTurnRequest) -> Turn {
    codex.holds_turns = true;
    let mut turn = codex.during(sidecar.begin(request)).await.unwrap();
    codex.during(turn.until("turn_started")).await;
    turn
}

/// Codex asks something in the turn that was begun last.
async fn ask(codex: &mut Codex, id: u64, method: &str, mut params: Value) {
    let (thread_id, turn_id) = codex.turns.last().unwrap();
    params["threadId"] = json!(thread_id);
    params["turnId"] = json!(turn_id);
    codex.ask(id, method, params).await;
}

fn raised(turn: &Turn) -> &pb::CodexRequest {
    let raised = turn.all().filter_map(|event| match event {
        Event::RequestRaised(raised) => raised.request.as_ref(),
        _ => None,
    });
    raised.last().unwrap()
}

fn resolved(turn: &Turn) -> (pb::RequestResolution, &str) {
    let resolved = turn.all().filter_map(|event| match event {
        Event::RequestResolved(resolved) => {
            Some((resolved.resolution(), resolved.resolved_by.as_str()))
        }
        _ => None,
    });
    resolved.last().unwrap()
}

fn decide(decision: ApprovalDecision) -> Answer {
    Answer::Approval(ApprovalAnswer { decision: decision.into(), ..Default::default() })
}

/// A question of each kind, an answer to it, and what Codex reads.
fn kinds() -> Vec<(&'static str, Value, Answer, Value)> {
    let amended = ApprovalAnswer {
        decision: ApprovalDecision::ApplyNetworkPolicyAmendment.into(),
        network_policy_amendment: Some(NetworkPolicyAmendment {
            host: "h".to_owned(),
            allow: true,
        }),
        ..Default::default()
    };
    let rule = json!({ "host": "h", "action": "allow" });
    let grant = r#"{"network":{"enabled":true}}"#;
    let chosen =
        UserQuestionAnswer { question_id: "color".to_owned(), answers: vec!["Blue".to_owned()] };
    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } } });
    vec![
        (
            "item/commandExecution/requestApproval",
            json!({
                "itemId": "i", "command": "touch x", "cwd": "/w", "kind": "command",
                "proposedExecpolicyAmendment": ["touch"],
                "availableDecisions": [
                    "accept",
                    { "acceptWithExecpolicyAmendment": { "execpolicy_amendment": ["touch"] } },
                    "cancel",
                ],
            }),
            decide(ApprovalDecision::AcceptWithExecPolicyAmendment),
            json!({ "decision": {
                "acceptWithExecpolicyAmendment": { "execpolicy_amendment": ["touch"] },
            } }),
        ),
        (
            "item/commandExecution/requestApproval",
            json!({
                "itemId": "i", "proposedNetworkPolicyAmendments": [rule],
                "networkApprovalContext": { "host": "h", "protocol": "https" },
            }),
            Answer::Approval(amended),
            json!({ "decision": {
                "applyNetworkPolicyAmendment": { "network_policy_amendment": rule },
            } }),
        ),
        (
            "item/fileChange/requestApproval",
            json!({ "itemId": "i", "reason": "why" }),
            decide(ApprovalDecision::AcceptForSession),
            json!({ "decision": "acceptForSession" }),
        ),
        (
            "item/permissions/requestApproval",
            json!({ "itemId": "i", "cwd": "/w", "permissions": { "network": { "enabled": true } } }),
            Answer::Permissions(PermissionsAnswer {
                permissions_json: grant.to_owned(),
                ..Default::default()
            }),
            json!({ "permissions": { "network": { "enabled": true } }, "scope": "turn" }),
        ),
        (
            "item/tool/requestUserInput",
            json!({ "itemId": "i", "isBlocking": false, "questions": [{
                "id": "color", "header": "Color", "question": "Which?", "isOther": false,
                "isSecret": false, "options": [{ "label": "Red" }, { "label": "Blue" }],
            }] }),
            Answer::UserQuestions(UserQuestionsAnswer { answers: vec![chosen] }),
            json!({ "answers": { "color": { "answers": ["Blue"] } } }),
        ),
        (
            "mcpServer/elicitation/request",
            json!({ "serverName": "s", "mode": "form", "message": "m", "requestedSchema": schema }),
            Answer::Elicitation(ElicitationAnswer {
                action: ElicitationAction::Accept.into(),
                content_json: r#"{"n":1}"#.to_owned(),
                ..Default::default()
            }),
            json!({ "action": "accept", "content": { "n": 1 }, "_meta": null }),
        ),
        (
            "item/tool/call",
            json!({ "tool": "f", "callId": "c", "arguments": {} }),
            Answer::ToolCall(ToolCallAnswer { content: Vec::new(), success: true }),
            json!({ "contentItems": [], "success": true }),
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn each_kind_waits_for_its_answer_which_codex_reads_as_it_was_given() {
    let (sidecar, mut codex) = sidecar().await;
    let mut turn = begin(&sidecar, &mut codex, asking("a")).await;
    let began = std::time::SystemTime::now();
    for (id, (method, params, answer, read)) in (1..).zip(kinds()) {
        ask(&mut codex, id, method, params).await;
        codex.during(turn.until("request_raised")).await;
        let question = raised(&turn);
        assert_eq!(question.request_id, id.to_string());
        let expires = std::time::SystemTime::try_from(question.expire_time.unwrap()).unwrap();
        assert_eq!(expires.duration_since(began).unwrap().as_secs(), 600, "{method}");
        let request_id = question.request_id.clone();
        // Another connection than that which runs the turn.
        let answered = sidecar.answer_as("127.0.0.1:4", &turn.id(), &request_id, answer).await;
        answered.unwrap();
        assert_eq!(codex.answered(id).await["result"], read);
        codex.during(turn.until("request_resolved")).await;
        assert_eq!(resolved(&turn), (pb::RequestResolution::Answered, "127.0.0.1:4"));
    }
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    turn.completed();
}

/// The ids of what a turn asked, in order, and of what was settled.
fn ids(turn: &Turn) -> (Vec<String>, Vec<String>) {
    let (mut raised, mut resolved) = (Vec::new(), Vec::new());
    for event in turn.all() {
        match event {
            Event::RequestRaised(told) => {
                raised.push(told.request.as_ref().unwrap().request_id.clone());
            }
            Event::RequestResolved(told) => resolved.push(told.request_id.clone()),
            _ => {}
        }
    }
    (raised, resolved)
}

#[tokio::test(start_paused = true)]
async fn who_does_not_say_that_he_answers_is_not_waited_for() {
    let (sidecar, mut codex) = sidecar().await;
    for policy in [pb::QuestionPolicy::Unspecified, pb::QuestionPolicy::Decline] {
        let mut request = prompt("a", "x");
        request.set_question_policy(policy);
        let mut turn = begin(&sidecar, &mut codex, request).await;
        for (id, (method, params, answer, _)) in (1..).zip(kinds()) {
            let began = Instant::now();
            ask(&mut codex, id, method, params).await;
            codex.during(turn.until("request_raised")).await;
            codex.during(turn.until("request_resolved")).await;
            // Who lends a function answers for it.
            let (resolution, waited) = match method {
                "item/tool/call" => (pb::RequestResolution::TimedOut, 60),
                _ => (pb::RequestResolution::Declined, 0),
            };
            assert_eq!(resolved(&turn), (resolution, "sidecar"));
            assert_eq!(began.elapsed().as_secs(), waited, "{method}");
            let late = sidecar.answer_as("", &turn.id(), &id.to_string(), answer).await;
            late.unwrap_err().assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
        }
        codex.end_last_turn().await;
        codex.during(turn.rest()).await;
        turn.completed();
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_fit_leaves_the_question_open() {
    let (sidecar, mut codex) = sidecar().await;
    let mut turn = begin(&sidecar, &mut codex, asking("a")).await;
    let params = json!({ "itemId": "i", "command": "ls" });
    ask(&mut codex, 1, "item/commandExecution/requestApproval", params).await;
    codex.during(turn.until("request_raised")).await;
    let amended = ApprovalDecision::AcceptWithExecPolicyAmendment;
    for (answer, fields) in [
        (decide(amended), &["approval.decision"][..]),
        (decide(ApprovalDecision::Unspecified), &["approval.decision"]),
        (Answer::ToolCall(ToolCallAnswer::default()), &["tool_call"]),
    ] {
        let refused = sidecar.answer_as("", &turn.id(), "1", answer).await.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.fields, fields);
    }
    let unknown = sidecar.answer_as("", &turn.id(), "2", decide(ApprovalDecision::Accept)).await;
    unknown.unwrap_err().assert(Code::NotFound, "REQUEST_NOT_FOUND");
    sidecar.answer_as("", &turn.id(), "1", decide(ApprovalDecision::Accept)).await.unwrap();
    assert_eq!(codex.answered(1).await["result"]["decision"], "accept");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_grants_what_is_protected_is_denied_and_the_question_stays_open() {
    let (sidecar, mut codex) = sidecar_with(|setup| {
        let home = || ProtectedPath::new("CODEX_HOME", Path::new("/nowhere/.codex"));
        setup.spec.protected = Protection::new(move || ProtectedPaths::new(vec![home()], None));
    })
    .await;
    let mut turn = begin(&sidecar, &mut codex, asking("a")).await;
    let files = json!({ "write": ["/nowhere", "/opt"] });
    let params = json!({ "itemId": "i", "cwd": "/w", "permissions": { "fileSystem": files } });
    ask(&mut codex, 1, "item/permissions/requestApproval", params).await;
    codex.during(turn.until("request_raised")).await;
    let grant = |path: &str| {
        Answer::Permissions(PermissionsAnswer {
            permissions_json: json!({ "fileSystem": { "write": [path] } }).to_string(),
            ..Default::default()
        })
    };
    let refused = sidecar.answer_as("", &turn.id(), "1", grant("/nowhere")).await.unwrap_err();
    refused.assert(Code::PermissionDenied, "POLICY_DENIED");
    assert_eq!(refused.fields, ["permissions.permissions_json"]);
    sidecar.answer_as("", &turn.id(), "1", grant("/opt")).await.unwrap();
    let granted = json!({ "fileSystem": { "write": ["/opt"] } });
    assert_eq!(codex.answered(1).await["result"]["permissions"], granted);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_counts_and_may_be_given_again_by_anybody_as_long_as_the_turn_is_kept() {
    let (sidecar, mut codex) = sidecar().await;
    let mut turn = begin(&sidecar, &mut codex, asking("a")).await;
    ask(&mut codex, 1, "item/fileChange/requestApproval", json!({ "itemId": "i" })).await;
    codex.during(turn.until("request_raised")).await;
    let (yes, no) = (decide(ApprovalDecision::Accept), decide(ApprovalDecision::Decline));
    let answer = async |name: &str, answer: &Answer| {
        sidecar.answer_as(name, &turn.id(), "1", answer.clone()).await
    };
    // At the same moment: one of them counts.
    let (first, second) = tokio::join!(answer("one", &yes), answer("other", &no));
    first.unwrap();
    let resolved_already = |refused: Result<(), Refused>| {
        refused.unwrap_err().assert(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED");
    };
    resolved_already(second);
    answer("third", &yes).await.unwrap();
    assert_eq!(codex.answered(1).await["result"]["decision"], "accept");
    let id = turn.id();
    codex.end_last_turn().await;
    codex.during(turn.rest()).await;
    assert_eq!(ids(&turn), (vec!["1".to_owned()], vec!["1".to_owned()]));
    assert_eq!(resolved(&turn).1, "one");
    let answer = async |answer: &Answer| sidecar.answer_as("", &id, "1", answer.clone()).await;
    answer(&yes).await.unwrap();
    resolved_already(answer(&no).await);
    // Codex heard of it once.
    assert_eq!(codex.heard.iter().filter(|line| line.method.is_empty()).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_question_survives_who_was_asked_and_all_that_is_told_after_it() {
    let (sidecar, mut codex) =
        sidecar_with(|setup| setup.retention.max_bytes_per_turn = 64 << 10).await;
    let mut request = asking("a");
    request.set_disconnect_policy(pb::DisconnectPolicy::Continue);
    let mut turn = begin(&sidecar, &mut codex, request).await;
    ask(&mut codex, 1, "item/fileChange/requestApproval", json!({ "itemId": "i" })).await;
    codex.during(turn.until("request_raised")).await;
    let id = turn.id();
    drop(turn);
    for number in 0..64 {
        let text = "x".repeat(4096);
        let item = json!({ "type": "agentMessage", "id": number.to_string(), "text": text });
        codex.tell_in_turn("item/completed", json!({ "item": item })).await;
    }
    let mut late = codex.during(sidecar.attach(&id)).await.unwrap();
    codex.during(late.until("request_raised")).await;
    let (request_id, accept) = (raised(&late).request_id.clone(), ApprovalDecision::Accept);
    assert_eq!(sidecar.pending(&id), [request_id.as_str()]);
    sidecar.answer_as("late", &id, &request_id, decide(accept)).await.unwrap();
    assert_eq!(codex.answered(1).await["result"]["decision"], "accept");
    assert_eq!(sidecar.pending(&id), [""; 0]);
    codex.end_last_turn().await;
    codex.during(late.rest()).await;
    assert_eq!(resolved(&late).1, "late");
    late.completed();
}

#[tokio::test(start_paused = true)]
async fn who_never_comes_back_is_waited_for_no_longer_than_said_and_the_turn_goes_on() {
    let (sidecar, mut codex) = sidecar().await;
    let mut request = asking("a");
    request.set_disconnect_policy(pb::DisconnectPolicy::Continue);
    let options = request.turn_options.get_or_insert_default();
    options.answer_timeout = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    let turn = begin(&sidecar, &mut codex, request).await;
    let id = turn.id();
    ask(&mut codex, 1, "item/tool/call", json!({ "tool": "f", "callId": "c" })).await;
    ask(&mut codex, 2, "mcpServer/elicitation/request", json!({ "mode": "form" })).await;
    drop(turn);
    codex.during(tokio::time::sleep(Duration::from_millis(4_900))).await;
    assert_eq!(answers(&codex), HashMap::new());
    codex.during(tokio::time::sleep(Duration::from_millis(200))).await;
    assert_eq!(answers(&codex), HashMap::from([(1, 1), (2, 1)]));
    codex.say_in_turn("on").await;
    codex.end_last_turn().await;
    let mut late = codex.during(sidecar.attach(&id)).await.unwrap();
    codex.during(late.rest()).await;
    assert_eq!(late.final_response(), "on");
    assert_eq!(resolved(&late), (pb::RequestResolution::TimedOut, "sidecar"));
}

/// A turn that is told more than it can take hears no more, and so can't be asked any more.
#[tokio::test(start_paused = true)]
async fn a_turn_that_hears_no_more_leaves_no_question_without_an_answer() {
    let (sidecar, mut codex) = sidecar_with(|setup| {
        setup.spec.limits.peer.max_line_bytes = 2048;
        setup.spec.limits.peer.max_echo_bytes = 0;
    })
    .await;
    let mut turn = begin(&sidecar, &mut codex, asking("a")).await;
    ask(&mut codex, 1, "item/fileChange/requestApproval", json!({ "itemId": "i" })).await;
    codex.during(turn.until("request_raised")).await;
    let (thread_id, turn_id) = codex.turns.last().unwrap().clone();
    let delta = json!({ "method": "item/agentMessage/delta",
        "params": { "threadId": thread_id, "turnId": turn_id, "itemId": "m", "delta": "x" } });
    let question = json!({ "id": 2, "method": "item/fileChange/requestApproval",
        "params": { "threadId": thread_id, "turnId": turn_id, "itemId": "j" } });
    // At once, so that nobody reads any of it before the rest is there.
    let lines = format!("{delta}\n").repeat(40) + &format!("{question}\n");
    codex.write(lines.as_bytes()).await;
    codex.during(turn.rest()).await;
    assert_eq!(turn.failed().reason, "WORKER_LOST");
    assert_eq!(resolved(&turn), (pb::RequestResolution::Withdrawn, "sidecar"));
    codex.during(tokio::time::sleep(Duration::from_secs(1))).await;
    assert_eq!(answers(&codex), HashMap::from([(1, 1), (2, 1)]));
}

/// Questions that all time out at the same moment are a burst of answers.
#[tokio::test(start_paused = true)]
async fn a_thousand_questions_end_at_once_and_harm_nobody() {
    const QUESTIONS: u64 = 1000;
    let (sidecar, mut codex) = sidecar().await;
    let mut turn = begin(&sidecar, &mut codex, asking("a")).await;
    let asked = codex.turns.last().unwrap().clone();
    for id in 1..=QUESTIONS {
        ask(&mut codex, id, "item/fileChange/requestApproval", json!({ "itemId": "i" })).await;
        codex.during(turn.until("request_raised")).await;
    }
    // A turn beside them.
    codex.holds_turns = false;
    codex.during(sidecar.say("b", "hello")).await.completed();
    let began = Instant::now();
    codex.during(turn.until("request_resolved")).await;
    assert_eq!(began.elapsed().as_secs(), 600);
    codex.end_turn(&asked.0, &asked.1).await;
    codex.during(turn.rest()).await;
    turn.completed();
    let (raised, resolved) = ids(&turn);
    assert_eq!((raised.len(), resolved.len()), (QUESTIONS as usize, QUESTIONS as usize));
    codex.during(sidecar.say("b", "hello")).await.completed();
    let answers: HashSet<_> = answers(&codex).into_keys().collect();
    assert_eq!(answers.len(), QUESTIONS as usize);
}

/// More than fit in what is usually on its way to a worker.
#[tokio::test(start_paused = true)]
async fn the_questions_of_many_turns_are_withdrawn_at_once_and_cost_no_worker() {
    let (sidecar, mut codex) = sidecar().await;
    let mut turns = Vec::new();
    for number in 0..17 {
        let turn = begin(&sidecar, &mut codex, asking(&format!("c{number}"))).await;
        for nth in 0..1024 {
            let id = 1_000_000 + number * 1024 + nth;
            ask(&mut codex, id, "item/fileChange/requestApproval", json!({ "itemId": "i" })).await;
        }
        turns.push(turn);
    }
    codex.during(sidecar.engine.drain(Duration::from_millis(1))).await;
    for mut turn in turns {
        codex.during(turn.rest()).await;
        assert_eq!(turn.interrupted(), pb::InterruptReason::Draining);
    }
}

/// How often Codex read an answer to each of its questions.
fn answers(codex: &Codex) -> HashMap<u64, usize> {
    let mut answers = HashMap::new();
    for line in codex.heard.iter().filter(|line| line.method.is_empty()) {
        *answers.entry(line.id.as_u64().unwrap()).or_default() += 1;
    }
    answers
}

/// One schedule of all that may happen to questions.
async fn play(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let (sidecar, mut codex) = sidecar().await;
    let mut request = asking("a");
    request.set_disconnect_policy(pb::DisconnectPolicy::Continue);
    let options = request.turn_options.get_or_insert_default();
    options.answer_timeout = Some(prost_types::Duration { seconds: 30, nanos: 0 });
    let mut turn = begin(&sidecar, &mut codex, request).await;
    let id = turn.id();
    let (mut asked, mut killed, mut ended, mut steered) = (0, false, false, false);
    let mut taken_back = HashSet::new();
    let kinds = kinds();
    for _ in 0..random.usize(5..40) {
        match random.u8(..20) {
            0..8 if !killed && !ended => {
                asked += 1;
                let (method, params, ..) = kinds[random.usize(..kinds.len())].clone();
                ask(&mut codex, asked, method, params).await;
            }
            // Most often one that fits nothing, or a question that is settled.
            8..14 if asked > 0 => {
                let (.., answer, _) = kinds[random.usize(..kinds.len())].clone();
                let request_id = random.u64(1..=asked).to_string();
                let answering = sidecar.answer_as("", &id, &request_id, answer);
                let answered = codex.during(answering).await;
                if let Err(refused) = answered {
                    let reason = refused.reason.as_str();
                    let known = ["INVALID_INPUT", "REQUEST_ALREADY_RESOLVED", "REQUEST_NOT_FOUND"];
                    assert!(known.contains(&reason), "{seed}: {refused:#?}");
                }
            }
            14 => codex.during(tokio::time::sleep(Duration::from_secs(random.u64(..40)))).await,
            15 if asked > 0 && !killed => {
                let question = random.u64(1..=asked);
                taken_back.insert(question);
                let params = json!({ "threadId": codex.turns[0].0, "requestId": question });
                codex.tell("serverRequest/resolved", params).await;
            }
            16 => {
                // Whoever reads goes, and another one comes.
                drop(turn);
                turn = codex.during(sidecar.attach(&id)).await.unwrap();
            }
            17 if !steered && !ended => {
                steered = true;
                ended = codex.during(sidecar.steer(&id, "more")).await.is_ok() || ended;
            }
            18 if random.u8(..4) == 0 => {
                if random.bool() {
                    let _ = codex.during(sidecar.interrupt(&id)).await;
                    ended = true;
                } else if !ended {
                    codex.end_last_turn().await;
                    ended = true;
                }
            }
            19 if random.u8(..6) == 0 => {
                codex.exit("signal 9");
                killed = true;
            }
            _ => codex.during(tokio::task::yield_now()).await,
        }
    }
    let ending = sidecar.interrupt(&id);
    let in_time = tokio::time::timeout(Duration::from_secs(60), codex.during(ending)).await;
    assert!(in_time.is_ok(), "{seed}: it hangs");
    let mut all = codex.during(sidecar.attach(&id)).await.unwrap();
    codex.during(all.rest()).await;
    // What is still on its way to Codex.
    codex.during(tokio::time::sleep(Duration::from_secs(1))).await;
    let (raised, mut resolved) = ids(&all);
    resolved.sort_by_key(|id| id.parse::<u64>().unwrap());
    assert_eq!(raised, resolved, "{seed}");
    let answers = answers(&codex);
    for question in 1..=asked {
        let times = answers.get(&question).copied().unwrap_or(0);
        let may_have_none = killed || taken_back.contains(&question);
        assert!(times == 1 || times == 0 && may_have_none, "{seed}: {question} {times} times");
    }
    assert_eq!(sidecar.pending(&id), [""; 0], "{seed}");
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_each_question_is_answered_once_and_settled_once() {
    for _ in 0..60 {
        play(fastrand::u64(..)).await;
    }
}
