//! From the first byte to a worker that serves, or to the reason why there is none.

use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use super::*;
use crate::worker::testing::{self, conversation, launcher, spec, worker_id};
use crate::worker::{SpawnError, Worker, WorkerSpec};

/// Starts a worker whose other side does what `script` says.
async fn start(
    change: impl FnOnce(&mut WorkerSpec),
    script: impl AsyncFnOnce(&mut Codex),
) -> Result<(), SpawnError> {
    let mut spec = spec(launcher().0);
    change(&mut spec);
    let (conversation, mut codex) = conversation();
    let scripted = async {
        script(&mut codex).await;
        codex.ended().await
    };
    let started = Worker::start(worker_id(), conversation, &spec);
    let (started, _) = tokio::join!(async { started.await.map(drop) }, scripted);
    started
}

/// Why none was started, and its last words.
fn unusable(started: Result<(), SpawnError>) -> (String, Vec<String>) {
    match started {
        Err(SpawnError::Handshake { cause, stderr_tail, .. }) => (cause, stderr_tail),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_shook_hands_knows_who_it_speaks_with() {
    let (worker, mut codex) = testing::worker().await;
    assert_eq!(worker.user_agent(), "codex_sidecar/0.169.0 (in memory)");
    assert_eq!(worker.cli_version(), "0.169.0");
    assert_eq!((worker.pid(), worker.is_alive()), (None, true));
    assert_eq!(worker.defaults().default_model.as_deref(), Some("m0"));
    assert!(worker.defaults().tells_settings);
    assert_eq!(worker.config_fault_at_start(), None);
    codex.is_left_alone_for(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_is_refused_is_told() {
    let refused = start(
        |_| {},
        async |codex| {
            let asked = codex.asked("initialize").await;
            codex.refuse(&asked, -32600, "not today").await;
        },
    );
    let (cause, _) = unusable(refused.await);
    assert_eq!(cause, "initialize: not today (code -32600)");
}

#[tokio::test(start_paused = true)]
async fn an_exit_in_the_handshake_explains_it_better_than_the_stream_that_ends_with_it() {
    let left = start(
        |_| {},
        async |codex| {
            codex.asked("initialize").await;
            codex.stderr.write_all(b"no luck with the config\n").await.unwrap();
            codex.close_stdout().await;
            settle().await;
            codex.exit("exit status 3");
        },
    );
    let (cause, last_words) = unusable(left.await);
    assert_eq!(cause, "exit status 3");
    assert!(last_words[0].ends_with("Z no luck with the config"), "{last_words:?}");
}

#[tokio::test(start_paused = true)]
async fn silence_and_garbage_in_place_of_a_handshake_are_waited_out() {
    for garbage in ["", "hello\n", "{\"method\":\"warning\"}\n"] {
        let began = Instant::now();
        let silent = start(
            |spec| spec.limits.start_timeout = 7 * SECOND,
            async |codex| {
                codex.asked("initialize").await;
                codex.write(garbage.as_bytes()).await;
            },
        );
        let (cause, _) = unusable(silent.await);
        assert_eq!(cause, "initialize: no answer within 7s", "{garbage:?}");
        assert!(began.elapsed() >= 7 * SECOND && began.elapsed() < 8 * SECOND, "{garbage:?}");
    }
    // Enough of it is reason enough.
    let began = Instant::now();
    let flood = start(|_| {}, async |codex| codex.write(&b"hello\n".repeat(2000)).await);
    let (cause, _) = unusable(flood.await);
    assert_eq!(cause, "it wrote 1000 lines that are no messages");
    assert!(began.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_can_not_be_read_is_no_handshake() {
    let riddle = start(
        |_| {},
        async |codex| {
            let asked = codex.asked("initialize").await;
            codex.answer(&asked, json!({ "userAgent": 7 })).await;
        },
    );
    let (cause, _) = unusable(riddle.await);
    assert!(cause.starts_with("initialize: the answer can't be read"), "{cause}");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_not_supported_is_told_and_its_worker_ended() {
    let check = |version: &str| Err(format!("it is {version}"));
    let old = start(
        |spec| spec.check_version = std::sync::Arc::new(check),
        async |codex| {
            let asked = codex.asked("initialize").await;
            codex.answer(&asked, json!({ "userAgent": "codex_sidecar/0.99.0 (old)" })).await;
            assert_eq!(codex.ended().await, "signal 9");
        },
    );
    let Err(SpawnError::Version { cause, .. }) = old.await else { panic!("it was taken") };
    assert_eq!(cause, "it is 0.99.0");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_nobody_waits_for_leaves_nothing() {
    let (conversation, codex) = conversation();
    let spec = spec(launcher().0);
    let starting = Worker::start(worker_id(), conversation, &spec);
    assert!(tokio::time::timeout(SECOND, starting).await.is_err());
    assert_eq!(codex.ended().await, "signal 9");
}

#[tokio::test(start_paused = true)]
async fn an_older_cli_that_can_not_be_asked_for_its_defaults_serves() {
    let (conversation, mut codex) = conversation();
    let spec = spec(launcher().0);
    let script = async {
        for method in ["config/read", "thread/settings/update", "model/list"] {
            let asked = codex.asked(method).await;
            codex.refuse(&asked, -32600, &format!("unknown variant `{method}`")).await;
        }
    };
    let (worker, ()) = tokio::join!(Worker::start(worker_id(), conversation, &spec), script);
    let worker = worker.unwrap();
    assert_eq!(worker.defaults().default_model, None);
    assert!(!worker.defaults().tells_settings);
    assert_eq!(worker.config_fault_at_start(), None);
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_can_not_be_read_at_the_start_is_told_and_looked_at_again() {
    const FAULT: &str = "failed to read configuration layers: /h/config.toml:2:4: no value";
    let (conversation, mut codex) = conversation();
    let spec = spec(launcher().0);
    let script = async {
        let asked = codex.asked("config/read").await;
        codex.refuse(&asked, -32603, FAULT).await;
    };
    let starting = Worker::start(worker_id(), conversation, &spec);
    tokio::pin!(starting);
    tokio::select! {
        _ = &mut starting => panic!("it asked nothing"),
        () = script => {}
    }
    let worker = codex.during(starting).await.unwrap();
    assert_eq!(worker.config_fault_at_start(), Some(FAULT));
    assert_eq!(codex.during(worker.config_fault(SECOND)).await.unwrap(), None);
}

const KEY: &str = "sk-canary-in-memory";

/// Starts a worker that is to know a key, where Codex keeps logins as is said.
async fn with_key(
    store: Value,
    script: impl AsyncFnOnce(&mut Codex),
) -> (Result<std::sync::Arc<Worker>, SpawnError>, Codex) {
    let (mut conversation, mut codex) = conversation();
    conversation.api_key = Some(KEY.into());
    let spec = spec(launcher().0);
    let starting = Worker::start(worker_id(), conversation, &spec);
    tokio::pin!(starting);
    let scripted = async {
        let asked = codex.asked("config/read").await;
        codex.answer(&asked, json!({ "config": { "cli_auth_credentials_store": store } })).await;
        script(&mut codex).await;
    };
    let early = tokio::select! {
        biased;
        started = &mut starting => Some(started),
        () = scripted => None,
    };
    let started = match early {
        Some(started) => started,
        None => codex.during(starting).await,
    };
    (started, codex)
}

#[tokio::test(start_paused = true)]
async fn a_worker_knows_its_key_before_anything_is_asked_that_may_need_it() {
    let (worker, codex) = with_key(json!("ephemeral"), async |codex| {
        let asked = codex.next().await.unwrap();
        assert_eq!(asked.method, "account/login/start");
        assert_eq!(asked.params, json!({ "type": "apiKey", "apiKey": KEY }));
        codex.answer(&asked, json!({ "type": "apiKey" })).await;
    })
    .await;
    assert!(worker.unwrap().is_alive());
    assert_eq!(codex.count("account/login/start"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_codex_does_not_take_keeps_no_worker_from_serving() {
    for refusal in [
        "Invalid request: unknown variant `account/login/start`",
        "API key login is disabled. Use ChatGPT login instead.",
    ] {
        let (worker, codex) = with_key(json!("ephemeral"), async |codex| {
            let asked = codex.asked("account/login/start").await;
            codex.refuse(&asked, -32600, refusal).await;
        })
        .await;
        assert!(worker.unwrap().is_alive());
        assert_eq!(codex.count("account/login/start"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn no_key_is_told_to_a_codex_that_would_write_it_down() {
    for store in [json!("file"), json!("keyring"), Value::Null] {
        let (worker, codex) = with_key(store, async |_| {}).await;
        assert!(worker.unwrap().is_alive());
        assert_eq!(codex.count("account/login/start"), 0);
    }
    // Where that is not known, neither.
    let (mut conversation, mut codex) = conversation();
    conversation.api_key = Some(KEY.into());
    codex.refuses.push(("config/read", 1, -32603, "failed to read configuration layers: x"));
    let spec = spec(launcher().0);
    let worker = codex.during(Worker::start(worker_id(), conversation, &spec)).await;
    assert!(worker.unwrap().is_alive());
    assert_eq!(codex.count("account/login/start"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_or_is_silent_while_it_is_told_the_key_is_no_worker() {
    let (gone, _) = with_key(json!("ephemeral"), async |codex| {
        codex.asked("account/login/start").await;
        codex.exit("exit status 3");
        settle().await;
    })
    .await;
    assert_eq!(unusable(gone.map(drop)).0, "exit status 3");
    let (silent, _) = with_key(json!("ephemeral"), async |codex| {
        codex.mutes.push("account/login/start");
    })
    .await;
    let (cause, _) = unusable(silent.map(drop));
    assert_eq!(cause, "account/login/start: no answer within 30s");
}
