//! What it is asked: refusals, silence, late answers, and threads that have more than they should.

use super::*;
use crate::app_server::peer::RequestError;
use crate::model::options::{ApprovalPolicy, SandboxMode};
use crate::worker::testing::{Asked, worker, worker_with};

fn usual() -> ThreadOptions {
    ThreadOptions::default()
}

fn read_only() -> ThreadOptions {
    ThreadOptions { sandbox_mode: Some(SandboxMode::ReadOnly), ..ThreadOptions::default() }
}

fn started(turn_id: &str, root_turn_id: Option<&str>) -> Value {
    json!({ "turn": { "id": turn_id, "rootTurnId": root_turn_id } })
}

/// What comes of a call when a request of this method is answered with an error.
async fn refused<T>(
    codex: &mut Codex,
    call: impl Future<Output = Result<T, ThreadError>>,
    method: &str,
    (code, message): (i64, &str),
) -> ThreadError {
    let script = async {
        let asked = codex.asked(method).await;
        codex.refuse(&asked, code, message).await;
    };
    let (answer, ()) = tokio::join!(call, script);
    answer.map(drop).unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn silence_is_no_sign_of_life_and_a_refusal_is_one() {
    let (worker, mut codex) = worker().await;
    let error = worker.ping(5 * SECOND).await.unwrap_err();
    assert!(matches!(error, RequestError::Timeout { after, .. } if after == 5 * SECOND), "{error}");
    assert!(worker.is_alive(), "that is for others to decide");
    assert!(worker.silence() >= 5 * SECOND);
    let unheard = codex.asked("thread/loaded/list").await;
    let (pong, ()) = tokio::join!(worker.ping(5 * SECOND), async {
        // The late answer to the first is nobody's.
        codex.answer(&unheard, json!({})).await;
        let asked = codex.asked("thread/loaded/list").await;
        codex.refuse(&asked, -32601, "what?").await;
    });
    pong.unwrap();
    assert!(worker.silence() < SECOND);
    codex.during(worker.ping(5 * SECOND)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn overload_is_told_as_what_it_is_wherever_it_comes() {
    let (worker, mut codex) = worker().await;
    let busy = (-32001, "too many");
    let (_, mut loaded) = codex.during(worker.opens(&usual())).await.unwrap();
    let options = usual();
    let turn = worker.starts("t1", &mut loaded, &options);
    let error = refused(&mut codex, turn, "turn/start", busy).await;
    assert!(matches!(&error, ThreadError::Overloaded(said) if said == "too many"), "{error:?}");
    let error = refused(&mut codex, worker.opens(&options), "thread/start", busy).await;
    assert!(matches!(error, ThreadError::Overloaded(_)), "{error:?}");
    let error = refused(&mut codex, worker.loads("t", &options), "thread/resume", busy).await;
    assert!(matches!(error, ThreadError::Overloaded(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_known_by_what_it_means() {
    let (worker, mut codex) = worker().await;
    let options = usual();
    let mut meaning = async |text: &str| {
        refused(&mut codex, worker.loads("t", &options), "thread/resume", (-32600, text)).await
    };
    let gone = meaning("no rollout found for thread id t").await;
    assert!(matches!(gone, ThreadError::NotFound(_)), "{gone:?}");
    let held = meaning("thread t already has an active writer").await;
    assert!(matches!(held, ThreadError::HeldElsewhere(_)), "{held:?}");
    let archived = meaning("session t is archived. Run unarchive").await;
    assert!(matches!(archived, ThreadError::Archived(_)), "{archived:?}");
    let config = meaning("failed to load configuration: /h/config.toml:2:4: what").await;
    assert!(matches!(config, ThreadError::BadConfig(_)), "{config:?}");
    let other = meaning("the model said no").await;
    assert_eq!(other.to_string(), "the model said no");
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_is_another_threads_is_a_thread_that_is_gone() {
    let (worker, mut codex) = worker().await;
    let options = usual();
    let (resumed, ()) = tokio::join!(worker.loads("t", &options), async {
        let asked = codex.asked("thread/resume").await;
        codex.answer(&asked, asked.opened("other")).await;
        let let_go = codex.asked("thread/unsubscribe").await;
        assert_eq!(let_go.params["threadId"], "other");
        codex.answer(&let_go, json!({})).await;
    });
    assert!(matches!(resumed, Err(ThreadError::NotFound(_))), "{resumed:?}");
    assert_eq!(worker.loaded_threads(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_was_not_answered_may_have_begun_and_one_before_it_has_not() {
    let (worker, mut codex) = worker().await;
    let (_, mut loaded) = codex.during(worker.opens(&usual())).await.unwrap();
    let error = worker.starts("t1", &mut loaded, &usual()).await.unwrap_err();
    assert!(matches!(error, ThreadError::Lost { written: true, .. }), "{error:?}");
    codex.asked("turn/start").await;
    // What must be asked before it is not the turn.
    let options = ThreadOptions { approval_policy: Some(ApprovalPolicy::Never), ..usual() };
    let (_, mut loaded) = codex.during(worker.opens(&options)).await.unwrap();
    let error = worker.starts("t2", &mut loaded, &usual()).await.unwrap_err();
    assert!(matches!(error, ThreadError::Lost { written: false, .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_can_not_be_read_says_nothing_of_what_was_done() {
    let (worker, mut codex) = worker().await;
    let (_, mut loaded) = codex.during(worker.opens(&usual())).await.unwrap();
    let options = usual();
    let (answer, ()) = tokio::join!(worker.starts("t1", &mut loaded, &options), async {
        let asked = codex.asked("turn/start").await;
        codex.answer(&asked, json!({ "turn": 7 })).await;
    });
    assert!(matches!(answer, Err(ThreadError::Unreadable(_))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_was_taken_as_steering_is_told_from_a_new_one() {
    let (worker, mut codex) = worker().await;
    let _route = worker.route("t1").unwrap();
    let (_, mut loaded) = codex.during(worker.opens(&usual())).await.unwrap();
    let options = usual();
    let mut start = async |answer: Value| {
        let (turn, ()) = tokio::join!(worker.starts("t1", &mut loaded, &options), async {
            let asked = codex.asked("turn/start").await;
            assert_eq!(asked.params["rootTurnId"], ROOT);
            codex.answer(&asked, answer).await;
        });
        // Told after the answer, as Codex does.
        if let Ok(turn) = &turn {
            codex.begin_turn("t1", turn, turn).await;
            settle().await;
        }
        turn
    };
    // CLIs that do not repeat the name: a turn that was there before is all that can be told.
    assert_eq!(start(started("u1", None)).await.unwrap(), "u1");
    let steered = start(started("u1", None)).await;
    assert!(matches!(&steered, Err(ThreadError::Steered(turn)) if turn == "u1"), "{steered:?}");
    assert_eq!(start(started("u2", Some("another"))).await.unwrap(), "u2");
    // One that has repeated it once always does.
    assert_eq!(start(started("u3", Some(ROOT))).await.unwrap(), "u3");
    let steered = start(started("u4", Some("another"))).await;
    assert!(matches!(&steered, Err(ThreadError::Steered(turn)) if turn == "u4"), "{steered:?}");
}

/// Answers every loading of a thread with what it says, and tells how often that was.
async fn loading(
    codex: &mut Codex,
    call: impl Future<Output = Option<ThreadError>>,
    answer: impl Fn(&Asked) -> Option<Value>,
) -> (Option<ThreadError>, Vec<String>) {
    let mut loads = Vec::new();
    tokio::pin!(call);
    loop {
        let asked = tokio::select! {
            biased;
            outcome = &mut call => return (outcome, loads),
            Some(asked) = codex.next() => asked,
        };
        if asked.method == "thread/start" || asked.method == "thread/resume" {
            loads.push(asked.method.clone());
        }
        match answer(&asked) {
            Some(result) => codex.answer(&asked, result).await,
            None => codex.answer_usually(&asked).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_has_too_much_is_loaded_anew_once_and_then_refused() {
    let (worker, mut codex) = worker().await;
    let options = read_only();
    let with_all = |asked: &Asked| {
        let mut opened = asked.opened("t");
        opened["sandbox"] = json!({ "type": "dangerFullAccess" });
        opened
    };
    // A new one; what is not asked for is as it is.
    let deaf = |asked: &Asked| (asked.method == "thread/start").then(|| with_all(asked));
    let opening = async { worker.opens(&options).await.err() };
    let (error, loads) = loading(&mut codex, opening, deaf).await;
    let Some(ThreadError::NotApplied(wider)) = error else { panic!("{error:?}") };
    assert!(wider.contains("danger-full-access"), "{wider}");
    assert_eq!(loads, ["thread/start", "thread/start"]);
    let opening = async { worker.opens(&usual()).await.err() };
    let (error, loads) = loading(&mut codex, opening, deaf).await;
    assert!(error.is_none() && loads.len() == 1, "{error:?}");
    // One from its rollout, beside one that asks what the defaults are.
    let deaf = |asked: &Asked| (asked.method == "thread/resume").then(|| with_all(asked));
    let resuming = async { worker.loads("t", &options).await.err() };
    let (error, loads) = loading(&mut codex, resuming, deaf).await;
    assert!(matches!(error, Some(ThreadError::NotApplied(_))), "{error:?}");
    assert_eq!(loads, ["thread/start", "thread/resume", "thread/resume"]);
    // Once is enough where that helps.
    let once = std::cell::Cell::new(true);
    let deaf =
        |asked: &Asked| (asked.method == "thread/resume" && once.take()).then(|| with_all(asked));
    let resuming = async { worker.loads("t", &options).await.err() };
    let (error, loads) = loading(&mut codex, resuming, deaf).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(loads.len(), 3);
    assert!(worker.holds_thread(&thread("t")));
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_turn_set_is_taken_away_from_the_next() {
    let (worker, mut codex) = worker().await;
    let (_, mut loaded) = codex.during(worker.opens(&usual())).await.unwrap();
    let eager = ThreadOptions { model_reasoning_effort: Some("high".to_owned()), ..usual() };
    let all = ThreadOptions { sandbox_mode: Some(SandboxMode::DangerFullAccess), ..usual() };
    let mut start = async |options: &ThreadOptions| {
        let (turn, asked) = tokio::join!(worker.starts("t1", &mut loaded, options), async {
            let asked = codex.asked("turn/start").await;
            codex.answer(&asked, started("u", Some(ROOT))).await;
            asked
        });
        turn.unwrap();
        (asked.params, loaded.lingers(&read_only(), &workspace()))
    };
    let (sent, lingers) = start(&eager).await;
    assert_eq!((&sent["effort"], lingers), (&json!("high"), None));
    let (sent, _) = start(&usual()).await;
    assert_eq!(sent["effort"], Value::Null);
    assert_eq!(sent["collaborationMode"]["settings"]["reasoning_effort"], Value::Null);
    let (sent, _) = start(&usual()).await;
    assert_eq!(sent["collaborationMode"], Value::Null);
    // Rights can't be taken away: the thread must be loaded anew.
    let (sent, lingers) = start(&all).await;
    assert_eq!(sent["sandboxPolicy"]["type"], "dangerFullAccess");
    assert!(lingers.is_some_and(|wider| wider.contains("danger-full-access")));
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_is_loaded_too_late_is_asked_for_once_and_let_go() {
    let (worker, mut codex) = worker().await;
    let options = usual();
    let (late, asked) = tokio::join!(worker.opens(&options), async {
        let asked = codex.asked("thread/start").await;
        // As long as any request may take, and what its servers may take is asked then.
        let config = codex.asked("config/read").await;
        codex.answer(&config, json!({ "config": {} })).await;
        asked
    });
    let error = late.unwrap_err();
    assert_eq!(error.to_string(), "thread/start: no answer within 30s");
    tokio::time::sleep(60 * SECOND).await;
    codex.answer(&asked, asked.opened("t")).await;
    let let_go = codex.next().await.unwrap();
    assert_eq!(
        (let_go.method.as_str(), &let_go.params["threadId"]),
        ("thread/unsubscribe", &json!("t"))
    );
    codex.answer(&let_go, json!({})).await;
    codex.is_left_alone_for(60 * SECOND).await;
    assert_eq!(worker.loaded_threads(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_thread_whose_opening_was_abandoned_is_let_go_when_it_comes() {
    let (worker, mut codex) = worker().await;
    let options = usual();
    let asked = {
        let abandoned = worker.opens(&options);
        tokio::pin!(abandoned);
        tokio::select! {
            _ = &mut abandoned => panic!("it was not answered"),
            asked = codex.asked("thread/start") => asked,
        }
    };
    codex.answer(&asked, asked.opened("t")).await;
    assert_eq!(codex.next().await.unwrap().method, "thread/unsubscribe");
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_takes_no_thread_away_that_is_wanted_again() {
    let (worker, mut codex) = worker().await;
    let options = usual();
    let resume_and_give_up = async |codex: &mut Codex| {
        let resuming = worker.loads("t", &options);
        tokio::pin!(resuming);
        tokio::select! {
            _ = &mut resuming => panic!("it was not answered"),
            asked = codex.asked("thread/resume") => asked,
        }
    };
    // Two loadings under way: the first one's late answer is no reason to let go of it.
    let first = resume_and_give_up(&mut codex).await;
    let second = resume_and_give_up(&mut codex).await;
    codex.answer(&first, first.opened("t")).await;
    codex.is_left_alone_for(SECOND).await;
    codex.answer(&second, second.opened("t")).await;
    assert_eq!(codex.next().await.unwrap().method, "thread/unsubscribe");
    // One that is loaded by now is used.
    let late = resume_and_give_up(&mut codex).await;
    worker.note_thread_loaded(&thread("t"));
    codex.answer(&late, late.opened("t")).await;
    codex.is_left_alone_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_required_server_may_take_as_long_as_it_is_allowed_to() {
    let (worker, mut codex) = worker_with(|spec| spec.limits.request_timeout = 10 * SECOND).await;
    let options = usual();
    let began = tokio::time::Instant::now();
    let (opened_late, ()) = tokio::join!(worker.opens(&options), async {
        let asked = codex.asked("thread/start").await;
        let config = codex.asked("config/read").await;
        assert_eq!(config.params["cwd"], "/w");
        let slow = json!({ "command": "x", "required": true, "startup_timeout_sec": 60 });
        codex.answer(&config, json!({ "config": { "mcp_servers": { "slow": slow } } })).await;
        tokio::time::sleep(55 * SECOND).await;
        codex.answer(&asked, asked.opened("t")).await;
    });
    opened_late.unwrap();
    assert!(began.elapsed() > 60 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_permission_profile_that_can_not_be_had_is_told_before_anything_is_loaded() {
    let (worker, mut codex) = worker().await;
    let mut asking = async |name: &str| {
        let options = ThreadOptions { permission_profile: Some(name.to_owned()), ..usual() };
        let (opened, ()) = tokio::join!(worker.opens(&options), async {
            let asked = codex.asked("permissionProfile/list").await;
            let profiles = json!([{ "id": "mine" }, { "id": "theirs", "allowed": false }]);
            codex.answer(&asked, json!({ "data": profiles })).await;
        });
        opened.map(drop).unwrap_err().to_string()
    };
    let unknown =
        "\"other\" is no permission profile of the CLI's configuration; it has mine, theirs";
    assert_eq!(asking("other").await, unknown);
    assert_eq!(asking("theirs").await, "\"theirs\" is not allowed on this machine");
    codex.is_left_alone_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_release_lets_go_of_a_thread_and_takes_it_out_of_the_archive() {
    let (worker, mut codex) = worker().await;
    let (id, _) = codex.during(worker.opens(&usual())).await.unwrap();
    assert!(worker.holds_thread(&id));
    let (released, ()) = tokio::join!(worker.release_thread(&id), async {
        let archived = codex.next().await.unwrap();
        assert_eq!(archived.method, "thread/archive");
        codex.answer(&archived, json!({})).await;
        let unarchived = codex.next().await.unwrap();
        assert_eq!(unarchived.method, "thread/unarchive");
        codex.answer(&unarchived, json!({})).await;
    });
    released.unwrap();
    assert_eq!(worker.loaded_threads(), 0);
}
