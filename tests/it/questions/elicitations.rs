//! What MCP servers ask their user, and the approvals of their tools.

use std::path::Path;
use std::process::{Command, Stdio};

use codex_sidecar::pb;
use codex_sidecar::pb::ElicitationAction::{Accept, Cancel, Decline};
use codex_sidecar::pb::McpToolCallStatus::{Completed, Failed};
use codex_sidecar::pb::answer_request_request::Answer;
use codex_sidecar::pb::codex_request::Kind as Asked;
use codex_sidecar::pb::item::Kind;
use serde_json::{Value, json};
use tonic::Code;

use super::{answer, asked, asking, elicit, run_answering, with_desk};
use crate::support::{Place, Sidecar, Told};

/// The path of a program for Node: the MCP project's own reference server.
fn reference_server() -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mcp/install.sh");
    let output = Command::new(script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.expect("tests/mcp/install.sh can be run");
    assert!(output.status.success(), "the reference server could not be installed");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn start() -> Sidecar {
    let place = Place::new();
    with_desk(&place);
    Sidecar::in_place(place, |_, _| {}).await
}

/// How the turn's one call of a tool ended, and what it gave back.
fn called(told: &Told) -> (pb::McpToolCallStatus, Value) {
    let (_, call) = told.item("mcp_tool_call", |kind| match kind {
        Kind::McpToolCall(call) => Some(call),
        _ => None,
    });
    let result: Value = serde_json::from_str(&call.result_json).unwrap_or_default();
    let text = result["content"][0]["text"].as_str().unwrap_or("null");
    (call.status(), serde_json::from_str(text).unwrap())
}

#[tokio::test]
async fn a_form_reaches_its_server_as_the_user_filled_it_in() {
    let sidecar = start().await;
    let fill = |context: &str| asking(context, "[[tool desk.form]]");
    let mut turn = sidecar.begin(fill("accepted")).await;
    let request = asked(&mut turn).await;
    let Some(Asked::Elicitation(form)) = &request.kind else { panic!("{request:#?}") };
    assert_eq!((form.server_name.as_str(), form.mode.as_str()), ("desk", "form"));
    assert_eq!((form.message.as_str(), form.url.as_str()), ("Who are you?", ""));
    let schema: Value = serde_json::from_str(&form.requested_schema_json).unwrap();
    assert_eq!(schema["properties"]["name"]["minLength"], 2, "{schema}");
    for unfit in [r#"{"name": "B"}"#, r#"{"age": 3}"#, r#"{"name": "Bo", "age": "old"}"#, "{", "7"]
    {
        let unfit = elicit(Accept, unfit);
        let refused = answer(&sidecar, turn.turn_id(), &request.request_id, unfit).await;
        let refused = refused.unwrap_err();
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        let paths = refused.field_paths();
        assert!(paths.iter().all(|path| *path == "elicitation.content_json"), "{refused:#?}");
    }
    let filled = elicit(Accept, r#"{"name": "Bo", "age": 3}"#);
    answer(&sidecar, turn.turn_id(), &request.request_id, filled).await.unwrap();
    let content = json!({"action": "accept", "content": {"name": "Bo", "age": 3}});
    assert_eq!(called(&turn.rest().await), (Completed, content));

    for (action, word) in [(Decline, "decline"), (Cancel, "cancel")] {
        let told = run_answering(&sidecar, fill(word), [elicit(action, "")]).await;
        assert_eq!(called(&told), (Completed, json!({"action": word})));
    }

    sidecar.stop().await;
}

#[tokio::test]
async fn an_address_is_visited_or_not() {
    let sidecar = start().await;
    let visit = |context: &str| asking(context, "[[tool desk.address]]");
    let mut turn = sidecar.begin(visit("accepted")).await;
    let request = asked(&mut turn).await;
    let Some(Asked::Elicitation(asked)) = &request.kind else { panic!("{request:#?}") };
    assert_eq!((asked.mode.as_str(), asked.message.as_str()), ("url", "Log in"));
    assert_eq!(asked.url, "https://example.test/login");
    assert_eq!((asked.elicitation_id.as_str(), asked.requested_schema_json.as_str()), ("e1", ""));
    let unfit = elicit(Accept, r#"{"password": "x"}"#);
    let refused = answer(&sidecar, turn.turn_id(), &request.request_id, unfit).await;
    assert_eq!(refused.unwrap_err().field_paths(), ["elicitation.content_json"]);
    let visited = elicit(Accept, "");
    answer(&sidecar, turn.turn_id(), &request.request_id, visited).await.unwrap();
    let (status, result) = called(&turn.rest().await);
    assert_eq!((status, &result["action"]), (Completed, &json!("accept")));

    let told = run_answering(&sidecar, visit("declined"), [elicit(Decline, "")]).await;
    assert_eq!(called(&told), (Completed, json!({"action": "decline"})));

    sidecar.stop().await;
}

#[tokio::test]
async fn a_tool_that_may_change_something_is_called_or_not_as_its_approval_says() {
    let sidecar = start().await;
    let ring = |context: &str| asking(context, "[[tool desk.ring]] [[say went on]]");
    let mut turn = sidecar.begin(ring("accepted")).await;
    let request = asked(&mut turn).await;
    let Some(Asked::Elicitation(approval)) = &request.kind else { panic!("{request:#?}") };
    let params: Value = serde_json::from_str(&approval.params_json).unwrap();
    assert_eq!(params["_meta"]["codex_approval_kind"], "mcp_tool_call", "{params}");
    assert!(approval.message.contains("ring"), "{approval:#?}");
    assert_eq!(approval.persist, ["session", "always"]);
    answer(&sidecar, turn.turn_id(), &request.request_id, elicit(Accept, "")).await.unwrap();
    assert_eq!(called(&turn.rest().await), (Completed, json!("rang")));

    // That was this once. For the session, the next call is not asked about.
    let mut turn = sidecar.begin(ring("accepted")).await;
    let request = asked(&mut turn).await;
    let persist = |word: &str| {
        let (action, persist) = (Accept.into(), word.to_owned());
        Answer::Elicitation(pb::ElicitationAnswer { action, persist, ..Default::default() })
    };
    let unfit = answer(&sidecar, turn.turn_id(), &request.request_id, persist("ever")).await;
    assert_eq!(unfit.unwrap_err().field_paths(), ["elicitation.persist"]);
    let session = persist("session");
    answer(&sidecar, turn.turn_id(), &request.request_id, session).await.unwrap();
    assert_eq!(called(&turn.rest().await), (Completed, json!("rang")));
    let told = run_answering(&sidecar, ring("accepted"), []).await;
    assert_eq!(called(&told), (Completed, json!("rang")));

    for action in [Decline, Cancel] {
        let word = action.as_str_name();
        let told = run_answering(&sidecar, ring(word), [elicit(action, "")]).await;
        assert_eq!(told.final_response(), "went on");
        assert_eq!(called(&told), (Failed, Value::Null));
    }

    sidecar.stop().await;
}

/// What a call of the reference server gave back, as one text.
fn text(told: &Told) -> String {
    let (_, call) = told.item("mcp_tool_call", |kind| match kind {
        Kind::McpToolCall(call) => Some(call),
        _ => None,
    });
    assert_eq!(call.status(), Completed, "{call:#?}");
    let result: Value = serde_json::from_str(&call.result_json).unwrap();
    let parts = result["content"].as_array().unwrap().iter();
    parts.filter_map(|part| part["text"].as_str()).collect()
}

#[tokio::test]
async fn the_reference_server_of_mcp_is_approved_and_answered_end_to_end() {
    let place = Place::new();
    let config = format!(
        "[mcp_servers.everything]\ncommand = \"node\"\nargs = [{:?}, \"stdio\"]\nrequired = true\n\
         startup_timeout_sec = 60\n",
        reference_server()
    );
    std::fs::write(place.codex_home().join("config.toml"), config).unwrap();
    let sidecar = Sidecar::in_place(place, |_, _| {}).await;

    // A form with every kind of field that MCP has.
    let words = "[[tool everything.trigger_elicitation_request]]";
    let mut turn = sidecar.begin(asking("form", words)).await;
    let request = asked(&mut turn).await;
    let wrong =
        r#"{"name": "Bo", "integer": 101, "email": "nobody", "untitledSingleSelectEnum": "x"}"#;
    let wrong = answer(&sidecar, turn.turn_id(), &request.request_id, elicit(Accept, wrong)).await;
    wrong.unwrap_err().assert(Code::InvalidArgument, "INVALID_INPUT");
    let filled = json!({
        "name": "Bo", "check": true, "email": "bo@example.test", "birthdate": "2000-02-29",
        "homepage": "https://example.test", "integer": 7, "number": 2.5,
        "titledSingleSelectEnum": "hero-2", "titledMultipleSelectEnum": ["fish-1", "fish-3"],
        "legacyTitledEnum": "pet-2",
    });
    let filled = elicit(Accept, &filled.to_string());
    answer(&sidecar, turn.turn_id(), &request.request_id, filled).await.unwrap();
    let told = turn.rest().await;
    assert!(
        text(&told).contains("Name: Bo") && text(&told).contains("\"fish-3\""),
        "{}",
        text(&told)
    );

    let told = run_answering(&sidecar, asking("no", words), [elicit(Decline, "")]).await;
    assert!(text(&told).contains("\"action\": \"decline\""), "{}", text(&told));

    // An approval, and then the address that the tool itself asks to be visited.
    let words =
        r#"[[tool everything.trigger_url_elicitation {"url": "https://example.test/login"}]]"#;
    let mut turn = sidecar.begin(asking("address", words)).await;
    let mut modes = Vec::new();
    for _ in 0..2 {
        let request = super::asked(&mut turn).await;
        let Some(Asked::Elicitation(asked)) = &request.kind else { panic!("{request:#?}") };
        modes.push((asked.mode.clone(), asked.url.clone()));
        let yes = elicit(Accept, "");
        answer(&sidecar, turn.turn_id(), &request.request_id, yes).await.unwrap();
    }
    let mode = |mode: &str, url: &str| (mode.to_owned(), url.to_owned());
    assert_eq!(modes, [mode("form", ""), mode("url", "https://example.test/login")]);
    assert!(text(&turn.rest().await).contains("accept"));

    sidecar.stop().await;
}
