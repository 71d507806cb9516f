//! Failed turns: every kind of failure that Codex knows has its reason here, arrives with it, and leaves
//! its context bound.

use std::collections::BTreeMap;
use std::process::Command;

use crate::support::{Sidecar, codex_path, prompt, unsandboxed};
use codex_sidecar::parts::app_server::decode::News;
use codex_sidecar::parts::app_server::message::{self, Inbound, Line};
use codex_sidecar::parts::model::event::Event;
use codex_sidecar::parts::model::failure::TurnError;
use codex_sidecar::pb;
use serde_json::{Value, json};

/// The kinds of failure in the schema of the installed CLI, and whether they have a status.
fn kinds_of_the_cli() -> BTreeMap<String, bool> {
    let directory = tempfile::tempdir().unwrap();
    let generated = Command::new(codex_path())
        .args(["app-server", "generate-json-schema", "--out"])
        .arg(directory.path())
        .env("CODEX_HOME", directory.path())
        .output()
        .expect("the CLI runs");
    assert!(generated.status.success(), "{generated:?}");
    let schema = directory.path().join("codex_app_server_protocol.v2.schemas.json");
    let schema: Value = serde_json::from_slice(&std::fs::read(schema).unwrap()).unwrap();
    let info = &schema["definitions"]["CodexErrorInfo"];
    let alternatives = info["oneOf"].as_array().or(info["anyOf"].as_array()).expect("alternatives");
    let mut kinds = BTreeMap::new();
    for alternative in alternatives {
        for name in alternative["enum"].as_array().into_iter().flatten() {
            kinds.insert(name.as_str().unwrap().to_owned(), false);
        }
        for (name, value) in alternative["properties"].as_object().into_iter().flatten() {
            let has_status = value["properties"].get("httpStatusCode").is_some();
            kinds.insert(name.clone(), has_status);
        }
    }
    kinds
}

fn decoded(info: &Value, message: &str) -> TurnError {
    let params = json!({
        "threadId": "t", "turnId": "u", "willRetry": false,
        "error": { "message": message, "codexErrorInfo": info, "additionalDetails": null },
    });
    let line = json!({ "method": "error", "params": params }).to_string();
    let Ok(Line::Inbound(Inbound::Told(told))) = message::parse(line.as_bytes()) else { panic!() };
    match told.news {
        News::Event(Event::ThreadError(told)) => told.error.expect("an error"),
        other => panic!("{other:?}"),
    }
}

/// `responseStreamDisconnected` as a reason.
fn upper_snake(name: &str) -> String {
    name.chars().fold(String::new(), |mut reason, letter| {
        if letter.is_ascii_uppercase() {
            reason.push('_');
        }
        reason.push(letter.to_ascii_uppercase());
        reason
    })
}

#[test]
fn every_kind_of_the_installed_cli_has_a_reason_of_its_own() {
    let kinds = kinds_of_the_cli();
    assert!(kinds.len() >= 20, "{kinds:?}");
    for (name, has_status) in &kinds {
        let bare = decoded(&json!(name), "it failed");
        let expected = if name == "other" { "CODEX_ERROR".to_owned() } else { upper_snake(name) };
        assert_eq!(bare.reason, expected, "a kind that the table does not know: {name}");
        assert_eq!((bare.retry_after, bare.http_status), (None, None), "{name}");
        if *has_status {
            for status in [401, 404, 429, 503] {
                let error = decoded(&json!({ name: { "httpStatusCode": status } }), "it failed");
                let expected = match status {
                    401 => "UNAUTHORIZED".to_owned(),
                    429 => "RATE_LIMIT_EXCEEDED".to_owned(),
                    _ => bare.reason.clone(),
                };
                assert_eq!(error.reason, expected, "{name} with {status}");
                assert_eq!(error.http_status, Some(status), "{name}");
                let retryable = matches!(status, 429 | 503);
                assert_eq!(error.retryable, retryable, "{name} with {status}");
            }
        }
    }
    // What nobody can do anything about by asking again.
    for name in
        ["contextWindowExceeded", "unauthorized", "badRequest", "cyberPolicy", "sandboxError"]
    {
        assert!(!decoded(&json!(name), "").retryable, "{name}");
    }
    for name in ["serverOverloaded", "rateLimitExceeded", "internalServerError"] {
        assert!(decoded(&json!(name), "").retryable, "{name}");
    }
    assert_eq!(decoded(&json!("hologramFailed"), "").reason, "CODEX_ERROR");
    assert_eq!(decoded(&Value::Null, "").reason, "CODEX_ERROR");
}

#[tokio::test]
async fn failures_of_the_provider_arrive_as_they_are_through_the_real_cli() {
    let sidecar = Sidecar::start().await;
    for (prompt_text, reason, status, retryable) in [
        ("[[status 401]]", "UNAUTHORIZED", Some(401), false),
        ("[[status 429 7]]", "RATE_LIMIT_EXCEEDED", Some(429), true),
        ("[[status 500]]", "INTERNAL_SERVER_ERROR", None, true),
        ("[[status 400]]", "BAD_REQUEST", Some(400), false),
        ("[[fail context_length_exceeded]]", "CONTEXT_WINDOW_EXCEEDED", None, false),
        ("[[fail insufficient_quota]]", "USAGE_LIMIT_EXCEEDED", None, false),
        ("[[status 403]]", "HTTP_CONNECTION_FAILED", Some(403), false),
        ("[[status 404]]", "HTTP_CONNECTION_FAILED", Some(404), false),
        ("[[status 503]]", "HTTP_CONNECTION_FAILED", Some(503), true),
        ("[[incomplete content_filter]]", "CODEX_ERROR", None, false),
        ("[[incomplete max_output_tokens]]", "CODEX_ERROR", None, false),
        ("[[fail server_error exit status 137]]", "RESPONSE_STREAM_DISCONNECTED", None, true),
    ] {
        let told = sidecar.run(prompt(prompt_text, prompt_text)).await;
        let error = told.failed();
        println!("{prompt_text}: {error:?}");
        assert_eq!(error.reason, reason, "{prompt_text}: {error:#?}");
        assert_eq!(error.http_status, status, "{prompt_text}: {error:#?}");
        assert_eq!(error.retryable, retryable, "{prompt_text}: {error:#?}");
        assert!(!error.side_effects_possible && !error.message.is_empty(), "{error:#?}");
    }
    let told = sidecar.run(prompt("a", "[[run true]] [[status 500]]")).await;
    assert!(told.failed().side_effects_possible);
    let rate = "[[fail rate_limit_exceeded Rate limit reached. Please try again in 1m59s.]]";
    let told = sidecar.run(prompt("b", rate)).await;
    let error: &pb::TurnError = told.failed();
    assert_eq!(error.reason, "RATE_LIMIT_EXCEEDED", "{error:#?}");
    assert_eq!(error.retry_after.map(|after| (after.seconds, after.nanos)), Some((119, 0)));
    sidecar.stop().await;
}

#[tokio::test]
async fn a_turn_that_fails_says_why_and_its_context_stays_bound() {
    struct Row {
        words: &'static str,
        reason: &'static str,
        http_status: Option<i32>,
        retryable: bool,
        side_effects_possible: bool,
    }
    let row = |words, reason, http_status, retryable| Row {
        words,
        reason,
        http_status,
        retryable,
        side_effects_possible: false,
    };
    let rows = [
        row("[[status 401]]", "UNAUTHORIZED", Some(401), false),
        row("[[status 429]]", "RATE_LIMIT_EXCEEDED", Some(429), true),
        row("[[status 500]]", "INTERNAL_SERVER_ERROR", None, true),
        row("[[status 400]]", "BAD_REQUEST", Some(400), false),
        row("[[fail context_length_exceeded]]", "CONTEXT_WINDOW_EXCEEDED", None, false),
        row("[[fail insufficient_quota]]", "USAGE_LIMIT_EXCEEDED", None, false),
        row(
            "[[fail rate_limit_exceeded Please try again in 7.5s]]",
            "RATE_LIMIT_EXCEEDED",
            None,
            true,
        ),
        row("[[cut]]", "RESPONSE_STREAM_DISCONNECTED", None, true),
        Row {
            words: "[[run true]] [[status 503]]",
            reason: "HTTP_CONNECTION_FAILED",
            http_status: Some(503),
            retryable: true,
            side_effects_possible: true,
        },
    ];
    let sidecar = Sidecar::start().await;
    for Row { words, reason, http_status, retryable, side_effects_possible } in rows {
        // The context's first turn: it is bound although it never had a good one.
        let told = sidecar.run(unsandboxed(words, words)).await;
        let error = told.failed();
        let seen = (error.reason.as_str(), error.http_status, error.retryable);
        assert_eq!(seen, (reason, http_status, retryable), "{words}: {error:#?}");
        assert_eq!(error.side_effects_possible, side_effects_possible, "{words}: {error:#?}");
        assert!(!error.message.is_empty(), "{words}");
        if words.contains("7.5s") {
            let wait = error.retry_after.expect("the provider said when");
            assert_eq!((wait.seconds, wait.nanos), (7, 500_000_000));
        }
        let thread_error = told.all().find_map(|event| match event {
            Event::ThreadError(pb::ThreadError { error, will_retry }) => Some((error, will_retry)),
            _ => None,
        });
        let (thread_error, will_retry) = thread_error.expect("the error is told when it happens");
        assert!(!will_retry, "{words}");
        assert_eq!(thread_error.as_ref().unwrap().reason, reason, "{words}");

        assert_eq!(sidecar.context(words).await.unwrap().thread_id, told.thread_id());
        let next = sidecar.say(words, "and now?").await;
        assert_eq!(
            (next.thread_id(), next.origin()),
            (told.thread_id(), pb::ThreadOrigin::Resumed)
        );
        assert!(next.final_response().starts_with("You said: and now?"), "{words}");
    }
    sidecar.stop().await;
}

#[tokio::test]
async fn a_retry_of_codex_is_told_and_is_not_the_end() {
    // With retries, unlike in the other tests: the model breaks off once per request.
    let sidecar = Sidecar::with(|config| {
        let retries = "model_providers.offline.stream_max_retries = 1";
        let table: toml::Table = toml::from_str(retries).unwrap();
        let providers = config.worker.config["model_providers"]["offline"].as_table_mut().unwrap();
        let retries = table["model_providers"]["offline"].as_table().unwrap().clone();
        providers.extend(retries);
    })
    .await;
    let told = sidecar.say("a", "[[cut]]").await;
    let will_retry: Vec<bool> = told
        .all()
        .filter_map(|event| match event {
            Event::ThreadError(error) => Some(error.will_retry),
            _ => None,
        })
        .collect();
    assert_eq!(will_retry, [true, false], "{:?}", told.kinds());
    assert!(told.failed().retryable);
    sidecar.stop().await;
}
