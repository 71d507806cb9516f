use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use proptest::prelude::*;
use prost::Message as _;
use prost_types::value::Kind;
use serde_json::json;

use super::*;
use crate::grpc::limits::RequestLimits;
use crate::model::id::{ContextKey, Tenant, ThreadId};
use crate::model::options::{
    Environment, ReasoningSummary, SandboxMode, ThreadOptions, ToolDefaults, WebSearchMode,
};
use crate::model::policy::{ImagePolicy, Policy};
use crate::model::question::Answer;
use crate::model::refusal::Refusal;
use crate::model::request::{BusyPolicy, TurnRequest, UserInput, Work};
use crate::pb;
use crate::pb::tool_content::Content;
use crate::turn::timeouts::Timeouts;

const THREAD: &str = "0198c2a4-0000-7000-8000-000000000001";

fn timeouts() -> Timeouts {
    Timeouts {
        turn: None,
        max_turn: Some(Duration::from_secs(3600)),
        idle: Some(Duration::from_secs(600)),
        max_idle: None,
        answer: Some(Duration::from_secs(60)),
        max_answer: None,
        ..Timeouts::default()
    }
}

/// What existing callers rely on: nothing is denied.
fn anything() -> Arc<Policy> {
    Arc::new(Policy { config_keys: vec!["*".to_owned()], ..Policy::default() })
}

fn text(text: &str) -> pb::UserInput {
    pb::UserInput { input: Some(pb::user_input::Input::Text(text.to_owned())) }
}

fn image(path: &str) -> pb::UserInput {
    let image = pb::LocalImage { path: path.to_owned() };
    pb::UserInput { input: Some(pb::user_input::Input::LocalImage(image)) }
}

fn image_url(url: &str) -> pb::UserInput {
    pb::UserInput { input: Some(pb::user_input::Input::ImageUrl(url.to_owned())) }
}

fn plain() -> pb::RunTurnRequest {
    pb::RunTurnRequest {
        context_id: "c".to_owned(),
        inputs: vec![text("hello")],
        ..Default::default()
    }
}

fn validate_with(
    request: pb::RunTurnRequest,
    tool: ToolDefaults,
) -> Result<TurnRequest, Vec<(String, String)>> {
    let limits = RequestLimits { max_input_characters: 1_048_576, ..RequestLimits::default() };
    turn_request(request, &|_| tool.clone(), &anything(), &limits, &timeouts(), Tenant::default())
        .map_err(violations)
}

fn validate(request: pb::RunTurnRequest) -> Result<TurnRequest, Vec<(String, String)>> {
    validate_with(request, ToolDefaults::default())
}

fn violations(refusal: Refusal) -> Vec<(String, String)> {
    match refusal {
        Refusal::InvalidInput(violations) => violations
            .into_iter()
            .map(|violation| (violation.field, violation.description))
            .collect(),
        other => panic!("{other}"),
    }
}

/// The only fault of a request, which must be of `field`.
fn the_fault(field: &str, request: pb::RunTurnRequest) -> String {
    let faults = validate(request).expect_err(field);
    assert_eq!(
        faults.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(),
        [field],
        "{faults:?}"
    );
    faults.into_iter().map(|(_, description)| description).collect()
}

fn with_options(change: impl FnOnce(&mut pb::ThreadOptions)) -> pb::RunTurnRequest {
    let mut options = pb::ThreadOptions::default();
    change(&mut options);
    pb::RunTurnRequest { thread_options: Some(options), ..plain() }
}

fn with_turn_options(change: impl FnOnce(&mut pb::TurnOptions)) -> pb::RunTurnRequest {
    let mut options = pb::TurnOptions::default();
    change(&mut options);
    pb::RunTurnRequest { turn_options: Some(options), ..plain() }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn value(kind: Kind) -> prost_types::Value {
    prost_types::Value { kind: Some(kind) }
}

#[test]
fn a_request_is_trimmed_and_layered_over_the_defaults_of_its_tool() {
    let request = pb::RunTurnRequest {
        context_id: "  conversation ".to_owned(),
        tool_name: " codex_engineer ".to_owned(),
        inputs: vec![
            text("  one\n"),
            image(" /a.png "),
            image_url(" DATA:image/png;base64,QUJD "),
            text("two"),
        ],
        thread_id: format!(" {} ", THREAD.to_uppercase()),
        thread_options: Some(pb::ThreadOptions {
            sandbox_mode: pb::SandboxMode::ReadOnly.into(),
            web_search_enabled: Some(false),
            working_directory: Some(" /work ".to_owned()),
            model_reasoning_effort: pb::ReasoningEffort::Xhigh.into(),
            ..Default::default()
        }),
        turn_options: Some(pb::TurnOptions { idle_timeout: seconds(5), ..Default::default() }),
        busy_policy: pb::BusyPolicy::Steer.into(),
        ..Default::default()
    };
    let tool = ToolDefaults {
        thread_options: ThreadOptions {
            model: Some("m".to_owned()),
            sandbox_mode: Some(SandboxMode::WorkspaceWrite),
            web_search_mode: Some(WebSearchMode::Live),
            ..ThreadOptions::default()
        },
        thread_id: Some(THREAD.to_owned()),
        output_schema: Some(json!({"properties": {"a": {"type": "string"}}})),
        idle_timeout: Some(Duration::from_secs(7)),
        turn_timeout: Some(Duration::from_secs(7200)),
        ..ToolDefaults::default()
    };
    let turn = validate_with(request, tool).unwrap();

    let key = ContextKey {
        tenant: Tenant::default(),
        context_id: "conversation".to_owned(),
        thread_key: "codex_thread_id_engineer".to_owned(),
    };
    assert_eq!(turn.context, Some(key));
    assert_eq!(
        turn.inputs,
        [
            UserInput::Text("one".to_owned()),
            UserInput::LocalImage("/a.png".to_owned()),
            UserInput::ImageUrl("DATA:image/png;base64,QUJD".to_owned()),
            UserInput::Text("two".to_owned()),
        ]
    );
    assert_eq!(turn.explicit_thread, ThreadId::parse(THREAD));
    assert_eq!(turn.configured_thread, ThreadId::parse(THREAD));
    assert_eq!(turn.busy_policy, BusyPolicy::Steer);

    let options = turn.thread_options;
    assert_eq!(options.model.as_deref(), Some("m"));
    assert_eq!(options.sandbox_mode, Some(SandboxMode::ReadOnly));
    assert_eq!(options.web_search(), Some(WebSearchMode::Disabled));
    assert_eq!(options.working_directory.as_deref(), Some(Path::new("/work")));
    assert_eq!(options.model_reasoning_effort.as_deref(), Some("xhigh"));

    let options = turn.turn_options;
    let strict = json!({
        "properties": {"a": {"type": "string"}}, "type": "object",
        "additionalProperties": false, "required": ["a"],
    });
    assert_eq!(options.output_schema, Some(strict));
    assert_eq!(options.idle_timeout, Some(Duration::from_secs(5)));
    // The tool's is above the server's maximum; the answer's is said by nobody.
    assert_eq!(options.turn_timeout, Some(Duration::from_secs(3600)));
    assert_eq!(options.answer_timeout, Some(Duration::from_secs(60)));

    // No tool says anything: the server's defaults, within its maxima.
    let options = validate(plain()).unwrap().turn_options;
    assert_eq!(options.idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(options.turn_timeout, Some(Duration::from_secs(3600)));
}

#[test]
fn the_thread_key_is_the_given_one_or_the_configured_or_the_tools() {
    let key = |tool_name: &str, given: &str, configured: Option<&str>| {
        let tool = ToolDefaults {
            thread_id_key: configured.map(str::to_owned),
            ..ToolDefaults::default()
        };
        context_key(&Tenant::default(), "c", tool_name, given, &|_| tool.clone())
            .map(|key| key.thread_key)
            .map_err(violations)
    };
    assert_eq!(key("", "", None).unwrap(), "codex_thread_id");
    assert_eq!(key("codex", "", None).unwrap(), "codex_thread_id");
    assert_eq!(key("codex_A_1", "", None).unwrap(), "codex_thread_id_A_1");
    assert_eq!(key("codex_a-b", " mine ", None).unwrap(), "mine");
    assert_eq!(key("codex_a-b", "", Some("theirs")).unwrap(), "theirs");
    assert_eq!(key("codex_a", "mine", Some("theirs")).unwrap(), "mine");
    for name in ["codex_", "codex_a-b", "codex_ a", "codex_ä", "codexer", "Codex", "engineer"] {
        let faults = key(name, "", None).unwrap_err();
        assert!(faults.iter().all(|(field, _)| field == "tool_name"), "{name}: {faults:?}");
        assert!(faults[0].1.contains(name), "{name}: {faults:?}");
    }
    let long = format!("codex_{}", "x".repeat(250));
    assert_eq!(key(&long, "", None).unwrap_err()[0].0, "tool_name");
    assert_eq!(key("codex", &"k".repeat(257), None).unwrap_err()[0].0, "thread_id_key");

    let reference = pb::ContextRef { tool_name: "shell".to_owned(), ..Default::default() };
    let refusal =
        context_ref("context", &Tenant::default(), &reference, &|_| ToolDefaults::default());
    let fields: Vec<_> =
        violations(refusal.unwrap_err()).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["context.tool_name", "context.context_id"]);
}

#[test]
fn an_unbound_turn_starts_anew_and_names_nothing() {
    let unbound = || pb::RunTurnRequest { context_id: String::new(), unbound: true, ..plain() };
    let tool = ToolDefaults {
        thread_id: Some("01a2027d-3c05-7d20-bbab-2c1375cd12d9".to_owned()),
        ..ToolDefaults::default()
    };
    let turn = validate_with(unbound(), tool).unwrap();
    assert_eq!((turn.context, turn.explicit_thread, turn.configured_thread), (None, None, None));
    assert!(!turn.ephemeral);

    let fault = the_fault("context_id", pb::RunTurnRequest { unbound: true, ..plain() });
    assert!(fault.contains("can't be combined with unbound"), "{fault}");
    let both = pb::RunTurnRequest { ephemeral: true, ..unbound() };
    assert!(the_fault("unbound", both).contains("leave one of the two out"));
}

#[test]
fn every_fault_of_a_request_is_named_at_once() {
    let request = pb::RunTurnRequest {
        context_id: "ä".repeat(129),
        tool_name: "shell".to_owned(),
        thread_id_key: String::new(),
        inputs: vec![
            text(" \n"),
            pb::UserInput { input: None },
            image("relative.png"),
            image("/a/../b.png"),
            image_url("http://x/y.png"),
            image_url("data:text/plain,x"),
        ],
        ephemeral: false,
        thread_id: "not-a-uuid".to_owned(),
        thread_options: Some(pb::ThreadOptions {
            model: Some(" ".to_owned()),
            sandbox_mode: 9,
            working_directory: Some("/a\0b".to_owned()),
            model_reasoning_effort: 99,
            model_reasoning_effort_name: "Ultra High".to_owned(),
            web_search_mode: -1,
            approval_policy: 5,
            additional_directories: vec!["/fine".to_owned(), "relative".to_owned()],
            config: Some(prost_types::Struct {
                fields: [
                    ("fine".to_owned(), value(Kind::NumberValue(1.0))),
                    ("infinite".to_owned(), value(Kind::NumberValue(f64::INFINITY))),
                    ("null".to_owned(), value(Kind::NullValue(0))),
                ]
                .into(),
            }),
            dynamic_tools: vec![
                pb::DynamicTool {
                    name: "f".to_owned(),
                    input_schema: "{}".to_owned(),
                    ..Default::default()
                },
                pb::DynamicTool {
                    name: "f".to_owned(),
                    input_schema: "[]".to_owned(),
                    ..Default::default()
                },
                pb::DynamicTool { name: "mcp__f".to_owned(), ..Default::default() },
            ],
            ..Default::default()
        }),
        turn_options: Some(pb::TurnOptions {
            output_schema: r#"{"type": "array"}"#.to_owned(),
            idle_timeout: seconds(0),
            turn_timeout: seconds(3601),
            answer_timeout: Some(prost_types::Duration { seconds: 1, nanos: -1 }),
            omit_final_response: false,
            max_total_tokens: 0,
        }),
        request_id: "x".repeat(37),
        busy_policy: 7,
        disconnect_policy: 7,
        missing_thread_policy: 7,
        ..Default::default()
    };
    let faults = validate(request).unwrap_err();
    let fields: Vec<_> = faults.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "request_id",
            "tool_name",
            "thread_id",
            "context_id",
            "inputs[0].text",
            "inputs[1]",
            "inputs[2].local_image.path",
            "inputs[3].local_image.path",
            "inputs[4].image_url",
            "inputs[5].image_url",
            "thread_options.model",
            "thread_options.sandbox_mode",
            "thread_options.working_directory",
            "thread_options.model_reasoning_effort",
            "thread_options.model_reasoning_effort_name",
            "thread_options.web_search_mode",
            "thread_options.approval_policy",
            "thread_options.additional_directories[1]",
            "thread_options.config[\"infinite\"]",
            "thread_options.config[\"null\"]",
            "thread_options.dynamic_tools[1].name",
            "thread_options.dynamic_tools[1].input_schema",
            "thread_options.dynamic_tools[2].name",
            "turn_options.output_schema",
            "turn_options.idle_timeout",
            "turn_options.turn_timeout",
            "turn_options.answer_timeout",
            "busy_policy",
            "disconnect_policy",
            "missing_thread_policy",
        ]
    );
    for (field, description) in &faults {
        assert!(description.len() < 300 && !description.ends_with('.'), "{field}: {description}");
    }
    let said = |field: &str| &faults.iter().find(|fault| fault.0 == field).unwrap().1;
    assert!(said("turn_options.turn_timeout").contains("at most 1h"));
    assert!(said("thread_options.sandbox_mode").contains("SANDBOX_MODE_DANGER_FULL_ACCESS"));
}

#[test]
fn a_turn_has_a_context_or_a_thread_or_is_ephemeral() {
    let nothing = || pb::RunTurnRequest { context_id: " ".to_owned(), ..plain() };
    the_fault("context_id", nothing());
    let thread_only = pb::RunTurnRequest { thread_id: THREAD.to_owned(), ..nothing() };
    assert_eq!(validate(thread_only).unwrap().context, None);

    let tool = ToolDefaults { thread_id: Some(THREAD.to_owned()), ..ToolDefaults::default() };
    let ephemeral = pb::RunTurnRequest { ephemeral: true, ..nothing() };
    let turn = validate_with(ephemeral.clone(), tool).unwrap();
    assert!(turn.ephemeral && turn.context.is_none() && turn.configured_thread.is_none());

    the_fault("context_id", pb::RunTurnRequest { ephemeral: true, ..plain() });
    the_fault(
        "thread_id",
        pb::RunTurnRequest { thread_id: THREAD.to_owned(), ..ephemeral.clone() },
    );
    the_fault("thread_id_key", pb::RunTurnRequest { thread_id_key: "k".to_owned(), ..ephemeral });
}

#[test]
fn inputs_are_bounded_in_number_and_in_joined_length() {
    let inputs = |inputs| pb::RunTurnRequest { inputs, ..plain() };
    the_fault("inputs", inputs(Vec::new()));
    the_fault("inputs", inputs(vec![text("x"); 257]));
    // Characters, not bytes; and the blank line between two texts counts.
    let half = "ä".repeat(524_287);
    assert!(validate(inputs(vec![text(&half), text(&half)])).is_ok());
    let fault =
        the_fault("inputs", inputs(vec![text(&half), image("/i.png"), text(&half), text("x")]));
    assert!(fault.starts_with("1048579 characters"), "{fault}");
    the_fault("inputs", inputs(vec![text(&"x".repeat(2 << 20))]));
}

#[test]
fn whatever_a_request_says_makes_another_one_of_it_for_its_id() {
    let fingerprint = |request: pb::RunTurnRequest| {
        let request = pb::RunTurnRequest { request_id: "r".to_owned(), ..request };
        validate(request).unwrap().request_id.unwrap().content
    };
    let other = |input| {
        let mut request = plain();
        request.inputs.push(pb::UserInput { input: Some(input) });
        request
    };
    use pb::user_input::Input;
    let (name, path) = ("n".to_owned(), "/a".to_owned());
    let review = |target| {
        let review = Some(pb::ReviewTarget { target: Some(target) });
        pb::RunTurnRequest { review, inputs: Vec::new(), ..plain() }
    };
    let requests = [
        plain(),
        pb::RunTurnRequest { context_policy: pb::ContextPolicy::MustExist.into(), ..plain() },
        pb::RunTurnRequest { busy_policy: pb::BusyPolicy::Interrupt.into(), ..plain() },
        pb::RunTurnRequest { compact: true, inputs: Vec::new(), ..plain() },
        review(pb::review_target::Target::UncommittedChanges(true)),
        review(pb::review_target::Target::BaseBranch("main".to_owned())),
        review(pb::review_target::Target::Commit("main".to_owned())),
        review(pb::review_target::Target::Instructions("main".to_owned())),
        other(Input::Skill(pb::Skill { name: name.clone(), path: path.clone() })),
        other(Input::Mention(pb::Mention { name, path })),
        other(Input::ExternalMessage(pb::ExternalMessage {
            source: "n".to_owned(),
            text: "/a".to_owned(),
        })),
        with_options(|options| options.service_tier = "flex".to_owned()),
    ];
    let different: HashSet<_> = requests.iter().cloned().map(fingerprint).collect();
    assert_eq!(different.len(), requests.len());
    for request in requests {
        assert_eq!(fingerprint(request.clone()), fingerprint(request));
    }
}

#[test]
fn a_turn_that_is_no_words_takes_nothing_of_what_words_take() {
    let tool = ToolDefaults {
        output_schema: Some(json!({"properties": {"a": {"type": "string"}}})),
        ..ToolDefaults::default()
    };
    let compact = || pb::RunTurnRequest { compact: true, inputs: Vec::new(), ..plain() };
    let turn = validate_with(compact(), tool).unwrap();
    assert_eq!((turn.work, turn.inputs), (Work::Compact, Vec::new()));
    assert_eq!(turn.turn_options.output_schema, None);
    the_fault("inputs", pb::RunTurnRequest { compact: true, ..plain() });
    let steering = pb::RunTurnRequest { busy_policy: pb::BusyPolicy::Steer.into(), ..compact() };
    the_fault("busy_policy", steering);
    let nowhere = |request| pb::RunTurnRequest { context_id: String::new(), ..request };
    the_fault("compact", pb::RunTurnRequest { ephemeral: true, ..nowhere(compact()) });
    the_fault("compact", pb::RunTurnRequest { unbound: true, ..nowhere(compact()) });
    let review = pb::RunTurnRequest {
        review: Some(pb::ReviewTarget::default()),
        inputs: Vec::new(),
        ..plain()
    };
    the_fault("review", review);
    let new = pb::ContextPolicy::MustBeNew.into();
    let named = pb::RunTurnRequest { thread_id: THREAD.to_owned(), ..nowhere(plain()) };
    the_fault("context_policy", pb::RunTurnRequest { context_policy: new, ..named });
}

#[test]
fn numbers_of_the_configuration_keep_their_kind() {
    let list = prost_types::ListValue {
        values: vec![value(Kind::NumberValue(3.0)), value(Kind::BoolValue(true))],
    };
    let inner =
        prost_types::Struct { fields: [("list".to_owned(), value(Kind::ListValue(list)))].into() };
    let request = with_options(|options| {
        options.config = Some(prost_types::Struct {
            fields: [
                ("a.b".to_owned(), value(Kind::NumberValue(-4.0))),
                ("c".to_owned(), value(Kind::NumberValue(0.5))),
                ("d".to_owned(), value(Kind::StructValue(inner))),
                ("e".to_owned(), value(Kind::NumberValue(1e300))),
            ]
            .into(),
        });
    });
    let config = validate(request).unwrap().thread_options.config.unwrap();
    let text = serde_json::Value::Object(config).to_string();
    assert_eq!(text, r#"{"a.b":-4,"c":0.5,"d":{"list":[3,true]},"e":1e+300}"#);

    let secret = prost_types::Struct {
        fields: [("".to_owned(), value(Kind::StringValue("sk-canary".to_owned())))].into(),
    };
    let fault = the_fault("thread_options.config[\"\"]", with_options(|o| o.config = Some(secret)));
    assert!(!fault.contains("canary"));
}

#[test]
fn configuration_holds_so_many_values_and_no_more() {
    let listed = |count: usize| {
        with_options(|options| {
            let values = vec![value(Kind::BoolValue(true)); count];
            let list = value(Kind::ListValue(prost_types::ListValue { values }));
            let fields = [("a".to_owned(), list)].into_iter().collect();
            options.config = Some(prost_types::Struct { fields });
        })
    };
    assert!(validate(listed(9_999)).is_ok());
    let fault = the_fault("thread_options.config", listed(10_000));
    assert_eq!(fault, "holds 10001 values; give at most 10000");
}

#[test]
fn one_way_to_say_the_effort_at_a_time() {
    let effort = |number, name: &str| {
        let name = name.to_owned();
        with_options(|options| {
            options.model_reasoning_effort = number;
            options.model_reasoning_effort_name = name;
        })
    };
    let said = |request| validate(request).unwrap().thread_options.model_reasoning_effort;
    assert_eq!(said(effort(0, "")), None);
    assert_eq!(said(effort(1, "")).as_deref(), Some("minimal"));
    assert_eq!(said(effort(0, "ultra")).as_deref(), Some("ultra"));
    the_fault("thread_options.model_reasoning_effort_name", effort(1, "low"));
}

#[test]
fn durations_are_well_formed_and_positive() {
    let idle = |seconds, nanos| {
        with_turn_options(|options| {
            options.idle_timeout = Some(prost_types::Duration { seconds, nanos });
        })
    };
    let turn = validate(idle(0, 1)).unwrap();
    assert_eq!(turn.turn_options.idle_timeout, Some(Duration::from_nanos(1)));
    for (seconds, nanos) in
        [(0, 0), (-1, 0), (0, -1), (1, 1_000_000_000), (i64::MAX, i32::MAX), (i64::MIN, i32::MIN)]
    {
        the_fault("turn_options.idle_timeout", idle(seconds, nanos));
    }
}

#[test]
fn a_default_that_is_written_out_makes_no_other_request() {
    let fingerprint = |request: pb::RunTurnRequest| {
        let request = pb::RunTurnRequest { request_id: "r".to_owned(), ..request };
        validate(request).unwrap().request_id.unwrap().content
    };
    let first = fingerprint(plain());
    for written in [
        pb::RunTurnRequest { busy_policy: pb::BusyPolicy::Queue.into(), ..plain() },
        pb::RunTurnRequest { disconnect_policy: pb::DisconnectPolicy::Interrupt.into(), ..plain() },
        pb::RunTurnRequest {
            missing_thread_policy: pb::MissingThreadPolicy::Fail.into(),
            ..plain()
        },
        pb::RunTurnRequest { context_policy: pb::ContextPolicy::Any.into(), ..plain() },
        pb::RunTurnRequest { question_policy: pb::QuestionPolicy::Decline.into(), ..plain() },
        pb::RunTurnRequest { tool_name: "codex".to_owned(), ..plain() },
        pb::RunTurnRequest { thread_options: Some(pb::ThreadOptions::default()), ..plain() },
        pb::RunTurnRequest { turn_options: Some(pb::TurnOptions::default()), ..plain() },
    ] {
        assert_ne!(written, plain());
        assert_eq!(fingerprint(written.clone()), first, "{written:?}");
    }
}

#[test]
fn the_fingerprint_is_of_everything_but_the_id() {
    let fingerprint = |request_id: &str, said: &str| {
        let request = pb::RunTurnRequest {
            request_id: request_id.to_owned(),
            inputs: vec![text(said)],
            ..plain()
        };
        validate(request).unwrap().request_id.unwrap()
    };
    let first = fingerprint("one id", "hello");
    assert_eq!(first.id, "one id");
    assert_eq!(first.content, fingerprint("another", "hello").content);
    assert_ne!(first.content, fingerprint("one id", "good bye").content);
    the_fault("request_id", pb::RunTurnRequest { request_id: "ä".to_owned(), ..plain() });
    assert_eq!(validate(plain()).unwrap().request_id, None);
}

#[test]
fn a_configured_schema_that_cannot_be_used_can_be_got_around() {
    let tool = ToolDefaults {
        output_schema: Some(json!({"type": "object", "additionalProperties": true})),
        ..ToolDefaults::default()
    };
    let faults = validate_with(plain(), tool.clone()).unwrap_err();
    assert_eq!(faults[0].0, "tool_name");
    let own = with_turn_options(|options| options.output_schema = "{}".to_owned());
    assert!(validate_with(own, tool).is_ok());
}

#[test]
fn lent_functions_take_an_object_without_properties_where_they_say_nothing() {
    let request = with_options(|options| {
        options.dynamic_tools =
            vec![pb::DynamicTool { name: "f-1".to_owned(), ..Default::default() }];
    });
    let tools = validate(request).unwrap().thread_options.dynamic_tools.unwrap();
    assert_eq!(tools[0].input_schema, json!({"type": "object", "properties": {}}));

    let deep = format!("{}1{}", r#"{"a":"#.repeat(110), "}".repeat(110));
    let request = with_options(|options| {
        options.dynamic_tools = vec![pb::DynamicTool {
            name: "f".to_owned(),
            input_schema: deep,
            ..Default::default()
        }];
    });
    let fault = the_fault("thread_options.dynamic_tools[0].input_schema", request);
    assert!(fault.contains("deeper than 100"), "{fault}");
}

#[test]
fn unset_options_leave_everything_unsaid() {
    let turn = validate(pb::RunTurnRequest {
        thread_options: Some(pb::ThreadOptions::default()),
        ..plain()
    });
    assert_eq!(turn.unwrap().thread_options, ThreadOptions::default());
}

#[test]
fn long_values_are_shown_by_their_beginning() {
    assert_eq!(show("a\0\"b"), r#""a\0\"b""#);
    let shown = show(&"ä".repeat(1000));
    assert!(shown.len() < 130 && shown.ends_with("… (2000 bytes)"), "{shown}");
}

#[test]
fn the_images_of_an_answer_are_looked_at_and_added_up() {
    let content = |width| {
        let data = BASE64_STANDARD.encode(crate::turn::pixels::tests::png(width, 7_000));
        let content = Content::ImageUrl(format!("data:image/png;base64,{data}"));
        pb::ToolContent { content: Some(content) }
    };
    let answered = |widths: &[u32]| {
        let content = widths.iter().map(|width| content(*width)).collect();
        let answer = Answer::ToolCall(pb::ToolCallAnswer { content, success: true });
        super::answer("1".to_owned(), Some(answer)).map(drop)
    };
    assert!(answered(&[7_000; 5]).is_ok());
    for (widths, index, expected) in [
        (&[7_000, 16_000][..], 1, "is 16000 × 7000 pixels large"),
        (&[7_000; 6], 5, "together they have 1176000000 bytes once they are decoded"),
    ] {
        let Err(Refusal::InvalidInput(violations)) = answered(widths) else { panic!() };
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].field, format!("tool_call.content[{index}].image_url"));
        assert!(violations[0].description.contains(expected), "{}", violations[0].description);
    }
}

#[test]
fn what_a_function_gives_back_is_inline() {
    let answered = |content: Content| {
        let content = vec![pb::ToolContent { content: Some(content) }];
        let answer = Answer::ToolCall(pb::ToolCallAnswer { content, success: true });
        super::answer("1".to_owned(), Some(answer)).map(drop)
    };
    for good in [
        Content::Text(String::new()),
        Content::ImageUrl("data:image/png;base64,QUJD".to_owned()),
        Content::AudioUrl("DATA:audio/wav;base64,QUJD".to_owned()),
    ] {
        assert!(answered(good).is_ok());
    }
    let image = |url: &str| (Content::ImageUrl(url.to_owned()), "image_url");
    let audio = |url: &str| (Content::AudioUrl(url.to_owned()), "audio_url");
    let bad = [
        image("https://example.com/x.png"),
        image("/srv/x.png"),
        image("data:image/png;base64,?"),
        image(""),
        audio("https://example.com/x.wav"),
        audio("data"),
        audio("é"),
    ];
    for (content, field) in bad {
        let Err(Refusal::InvalidInput(violations)) = answered(content.clone()) else {
            panic!("{content:?}");
        };
        assert_eq!(violations[0].field, format!("tool_call.content[0].{field}"), "{content:?}");
    }
    for (id, answer) in [("", Some(Answer::Approval(Default::default()))), ("1", None)] {
        assert!(super::answer(id.to_owned(), answer).is_err());
    }
}

#[test]
fn who_is_asked_has_longer_to_answer_than_who_only_lends() {
    let asking = |policy: i32| pb::RunTurnRequest {
        context_id: "c".to_owned(),
        inputs: vec![text("hello")],
        question_policy: policy,
        ..Default::default()
    };
    let settled = |policy: pb::QuestionPolicy, timeouts: &Timeouts| {
        let defaults = |_: &str| ToolDefaults::default();
        let (limits, tenant) = (RequestLimits::default(), Tenant::default());
        let turn =
            turn_request(asking(policy.into()), &defaults, &anything(), &limits, timeouts, tenant);
        turn.unwrap().turn_options.answer_timeout.unwrap().as_secs()
    };
    let usual = Timeouts::default();
    assert_eq!(settled(pb::QuestionPolicy::Unspecified, &usual), 60);
    assert_eq!(settled(pb::QuestionPolicy::Decline, &usual), 60);
    assert_eq!(settled(pb::QuestionPolicy::Ask, &usual), 600);
    let configured = Timeouts { answer: Some(Duration::from_secs(7)), ..Timeouts::default() };
    assert_eq!(settled(pb::QuestionPolicy::Ask, &configured), 7);
    let bounded = Timeouts { max_answer: Some(Duration::from_secs(90)), ..Timeouts::default() };
    assert_eq!(settled(pb::QuestionPolicy::Ask, &bounded), 90);
    let faults = validate(asking(77)).unwrap_err();
    assert_eq!(faults[0].0, "question_policy");
}

proptest! {
    /// Bytes that happen to be a request, however mad, are a turn or a list of faults.
    #[test]
    fn no_request_makes_validation_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        number in any::<i32>(),
        text_of_any in "\\PC{0,40}",
        duration in any::<(i64, i32)>(),
        double in any::<f64>(),
    ) {
        let mut request = pb::RunTurnRequest::decode(bytes.as_slice()).unwrap_or_default();
        let duration = prost_types::Duration { seconds: duration.0, nanos: duration.1 };
        request.context_id.push_str(&text_of_any);
        request.tool_name.push_str(&text_of_any);
        request.inputs.push(image_url(&text_of_any));
        request.busy_policy = number;
        let options = request.thread_options.get_or_insert_default();
        options.sandbox_mode = number;
        options.working_directory = Some(text_of_any.clone());
        options.config.get_or_insert_default().fields.insert(text_of_any, value(Kind::NumberValue(double)));
        let options = request.turn_options.get_or_insert_default();
        options.idle_timeout = Some(duration);
        match validate(request) {
            Ok(turn) => {
                let path: Option<PathBuf> = turn.thread_options.working_directory;
                prop_assert!(path.is_none_or(|path| path.is_absolute()));
            }
            Err(faults) => prop_assert!(!faults.is_empty()),
        }
    }
}

#[test]
fn a_sandbox_and_a_profile_are_one_choice() {
    let asking = |sandbox: pb::SandboxMode, profile: &str| pb::RunTurnRequest {
        context_id: "c".to_owned(),
        inputs: vec![text("hello")],
        thread_options: Some(pb::ThreadOptions {
            sandbox_mode: sandbox.into(),
            permission_profile: profile.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let tool = |sandbox_mode: Option<SandboxMode>, profile: Option<&str>| ToolDefaults {
        thread_options: ThreadOptions {
            sandbox_mode,
            permission_profile: profile.map(str::to_owned),
            ..ThreadOptions::default()
        },
        ..ToolDefaults::default()
    };
    let read_only = Some(SandboxMode::ReadOnly);
    let settled = |request: pb::RunTurnRequest, tool: ToolDefaults| {
        let options = validate_with(request, tool).unwrap().thread_options;
        (options.sandbox_mode, options.permission_profile)
    };
    let unspecified = pb::SandboxMode::Unspecified;
    let mine = Some("mine".to_owned());
    assert_eq!(settled(asking(unspecified, " mine "), tool(read_only, None)), (None, mine.clone()));
    assert_eq!(
        settled(asking(pb::SandboxMode::ReadOnly, ""), tool(None, Some("mine"))),
        (read_only, None)
    );
    assert_eq!(settled(asking(unspecified, ""), tool(None, Some("mine"))), (None, mine));
    let both = asking(pb::SandboxMode::ReadOnly, "mine");
    let faults = validate_with(both, ToolDefaults::default()).unwrap_err();
    let fields: Vec<&str> = faults.iter().map(|(field, _)| field.as_str()).collect();
    assert_eq!(fields, ["thread_options.permission_profile", "thread_options.sandbox_mode"]);
}

#[test]
fn a_summary_in_config_is_moved_into_its_field() {
    let with = |word: &str, field: pb::ReasoningSummary| {
        let value = prost_types::Value { kind: Some(Kind::StringValue(word.to_owned())) };
        let fields = [("model_reasoning_summary".to_owned(), value)];
        let request = pb::RunTurnRequest {
            context_id: "c".to_owned(),
            inputs: vec![text("hello")],
            thread_options: Some(pb::ThreadOptions {
                config: Some(prost_types::Struct { fields: fields.into_iter().collect() }),
                reasoning_summary: field.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        validate_with(request, ToolDefaults::default())
    };
    let options = with("detailed", pb::ReasoningSummary::Unspecified).unwrap().thread_options;
    assert_eq!(options.reasoning_summary, Some(ReasoningSummary::Detailed));
    assert_eq!(options.config, Some(serde_json::Map::new()));
    let options = with("detailed", pb::ReasoningSummary::None).unwrap().thread_options;
    assert_eq!(options.reasoning_summary, Some(ReasoningSummary::None));
    let faults = with("loud", pb::ReasoningSummary::Unspecified).unwrap_err();
    assert_eq!(faults[0].0, "thread_options.config[\"model_reasoning_summary\"]");
}

/// What a request is denied, by this policy.
fn denied(request: pb::RunTurnRequest, tool: ToolDefaults, policy: Policy) -> Vec<String> {
    let limits = RequestLimits::default();
    let policy = Arc::new(policy);
    let tenant = Tenant::default();
    match turn_request(request, &|_| tool.clone(), &policy, &limits, &timeouts(), tenant) {
        Ok(_) => Vec::new(),
        Err(Refusal::PolicyDenied(denied)) => {
            denied.into_iter().map(|denied| denied.field).collect()
        }
        Err(other) => panic!("{other}"),
    }
}

fn configured(keys: &[(&str, Kind)]) -> Option<prost_types::Struct> {
    let fields = keys.iter().map(|(key, kind)| ((*key).to_owned(), value(kind.clone())));
    Some(prost_types::Struct { fields: fields.collect() })
}

#[test]
fn all_that_a_policy_denies_is_told_together_once_the_form_is_right() {
    let word = |word: &str| Kind::StringValue(word.to_owned());
    let asking = |options: &mut pb::ThreadOptions| {
        options.set_sandbox_mode(pb::SandboxMode::DangerFullAccess);
        options.environment = [("A".to_owned(), "x".to_owned())].into();
        options.config = configured(&[
            ("model_providers.x.base_url", word("http://127.0.0.1:1")),
            ("model", word("m")),
            ("notify", word("x")),
        ]);
    };
    let policy = Policy {
        max_sandbox_mode: SandboxMode::ReadOnly,
        models: Some(vec!["n".to_owned()]),
        images: ImagePolicy::Data,
        ..Policy::default()
    };
    let mut request = with_options(asking);
    request.inputs.push(image("/i.png"));
    let fields = [
        "thread_options.config[\"model_providers.x.base_url\"]",
        "thread_options.config[\"notify\"]",
        "thread_options.environment[\"A\"]",
        "thread_options.sandbox_mode",
        "thread_options.model",
        "inputs[1].local_image",
    ];
    assert_eq!(denied(request.clone(), ToolDefaults::default(), policy.clone()), fields);
    let wrong = pb::RunTurnRequest { context_id: String::new(), ..request };
    let defaults = |_: &str| ToolDefaults::default();
    let (limits, policy) = (RequestLimits::default(), Arc::new(policy));
    let refusal = turn_request(wrong, &defaults, &policy, &limits, &timeouts(), Tenant::default());
    let faults = violations(refusal.unwrap_err());
    assert_eq!(faults.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), ["context_id"]);
}

/// The tool's own configuration is the owner's; its policy takes the place of the one for all.
#[test]
fn a_tools_defaults_are_not_held_against_the_list_and_its_own_policy_holds() {
    let own = json!({ "notify": ["x"], "features.a": true });
    let tool = ToolDefaults {
        thread_options: ThreadOptions {
            config: own.as_object().cloned(),
            environment: Some(Environment([("T".to_owned(), "t".to_owned())].into())),
            ..ThreadOptions::default()
        },
        policy: Some(Arc::new(Policy {
            environment: vec!["A".to_owned()],
            config_keys: vec!["features.b".to_owned()],
            ..Policy::default()
        })),
        ..ToolDefaults::default()
    };
    let asking = |key: &str, variable: &str| {
        with_options(|options| {
            options.config = configured(&[(key, Kind::BoolValue(true))]);
            options.environment = [(variable.to_owned(), "own".to_owned())].into();
        })
    };
    let none = Policy::default;
    assert_eq!(denied(asking("features.b", "A"), tool.clone(), none()), Vec::<String>::new());
    assert_eq!(
        denied(asking("features.a", "T"), tool.clone(), none()),
        ["thread_options.config[\"features.a\"]", "thread_options.environment[\"T\"]"]
    );
    let options = validate_with(asking("features.b", "A"), tool).unwrap().thread_options;
    let Some(Environment(variables)) = options.environment else { panic!() };
    assert_eq!(variables.keys().collect::<Vec<_>>(), ["A", "T"]);
    assert_eq!(options.config.unwrap().len(), 3);
}

#[test]
fn a_variable_has_a_name_and_a_value_that_no_fault_shows() {
    let setting = |name: &str, value: &str| {
        with_options(|options| {
            options.environment = [(name.to_owned(), value.to_owned())].into();
        })
    };
    let long = "x".repeat(32 << 10);
    let longer = format!("{long}canary");
    for (name, value) in [
        ("", "canary"),
        ("1A", "canary"),
        ("A-B", "canary"),
        ("A=B", "canary"),
        ("Ä", "canary"),
        ("A.B", "canary"),
        ("A", "canary\0"),
        ("A", longer.as_str()),
    ] {
        let field = format!("thread_options.environment[{name:?}]");
        let fault = the_fault(&field, setting(name, value));
        assert!(!fault.contains("canary"), "{fault}");
    }
    let many = with_options(|options| {
        options.environment = (0..65).map(|at| (format!("A{at}"), String::new())).collect();
    });
    the_fault("thread_options.environment", many);
    let free = Policy { environment: vec!["*".to_owned()], ..Policy::default() };
    let fits = [setting("_a1", &long), setting(&"A".repeat(128), "")];
    for request in fits {
        assert_eq!(denied(request, ToolDefaults::default(), free.clone()), Vec::<String>::new());
    }
    let named = the_fault(
        &format!("thread_options.environment[{:?}… (129 bytes)]", "A".repeat(48)),
        setting(&"A".repeat(129), ""),
    );
    assert!(named.contains("no variable's name"), "{named}");
}

#[test]
fn a_key_has_something_in_each_of_its_parts() {
    for key in [".a", "a.", "a..b"] {
        let field = format!("thread_options.config[{key:?}]");
        the_fault(
            &field,
            with_options(|options| {
                options.config = configured(&[(key, Kind::BoolValue(true))]);
            }),
        );
    }
}

proptest! {
    /// The order in which the variables come makes no other request of it.
    #[test]
    fn equal_variables_have_one_digest(names in prop::collection::btree_set("[A-C]{1,3}", 0..5)) {
        let asking = |names: &mut dyn Iterator<Item = &String>| {
            let mut request = with_options(|options| {
                options.environment = names.map(|name| (name.clone(), name.clone())).collect();
            });
            request.request_id = "r".to_owned();
            // As it comes over the wire.
            let request = pb::RunTurnRequest::decode(request.encode_to_vec().as_slice()).unwrap();
            let free = Policy { environment: vec!["*".to_owned()], ..Policy::default() };
            let limits = RequestLimits::default();
            let turn = turn_request(
                request,
                &|_| ToolDefaults::default(),
                &Arc::new(free),
                &limits,
                &timeouts(),
                Tenant::default(),
            );
            turn.unwrap().request_id.unwrap().content
        };
        prop_assert_eq!(asking(&mut names.iter()), asking(&mut names.iter().rev()));
    }
}
