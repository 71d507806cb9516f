//! Texts of the sidecar, told on a command line.

use super::*;
use crate::model::id::Tenant;

fn refused(code: &'static str, reason: &str, message: &str, fields: &[(&str, &str)]) -> Refused {
    Refused {
        code,
        reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
        message: message.to_owned(),
        fields: fields
            .iter()
            .map(|(field, fault)| ((*field).to_owned(), (*fault).to_owned()))
            .collect(),
        retry_after: None,
    }
}

fn told(refused: Refused) -> (String, u8) {
    let text = |text: &str| pb::UserInput { input: Some(Input::Text(text.to_owned())) };
    let image = pb::LocalImage { path: "/a.png".to_owned() };
    let inputs = [text("x"), pb::UserInput { input: Some(Input::LocalImage(image)) }];
    match Words::of(&inputs).failure(refused) {
        Failure::Detailed(detailed) => (detailed.message, detailed.code),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refusal_names_the_arguments_and_says_everything_once() {
    let sentence = "thread_options.working_directory /x is not inside a git repository; name one \
                    that is, or set thread_options.skip_git_repo_check";
    let field = [("thread_options.working_directory", sentence)];
    let one = refused("FAILED_PRECONDITION", "NOT_A_GIT_REPOSITORY", sentence, &field);
    let expected = "--cd /x is not inside a git repository; name one that is, or give \
                    --skip-git-repo-check (NOT_A_GIT_REPOSITORY)";
    assert_eq!(told(one), (expected.to_owned(), REFUSED));

    let fields = [
        ("inputs[0].text", "is blank"),
        ("inputs[1].local_image.path", "is no image"),
        ("thread_options.config[\"a.b\"]", "is odd"),
        ("thread_options.additional_directories[1]", "is relative"),
        ("turn_options.idle_timeout", "is above turn_options.turn_timeout."),
        ("something.new", "is not known here"),
    ];
    let many = refused("INVALID_ARGUMENT", "INVALID_INPUT", "6 faults: …", &fields);
    let expected = "the request is refused:\n  PROMPT: is blank\n  --image /a.png: is no image\n  \
                    -c a.b: is odd\n  --add-dir number 2: is relative\n  --idle-timeout: is above \
                    --turn-timeout.\n  something.new: is not known here (INVALID_INPUT)";
    assert_eq!(told(many), (expected.to_owned(), REFUSED));
}

#[test]
fn words_that_are_no_paths_stay() {
    let message = "the context is busy: a review runs in turn_id 7";
    let busy = refused("ABORTED", "CONTEXT_BUSY", message, &[]);
    let expected = "the context is busy: a review runs in TURN 7 (CONTEXT_BUSY)";
    assert_eq!(told(busy), (expected.to_owned(), REFUSED));
}

#[test]
fn the_exit_code_tells_what_kind_it_is() {
    let code = |code, reason| told(refused(code, reason, "x", &[])).1;
    assert_eq!(code("UNAVAILABLE", "DRAINING"), 69);
    assert_eq!(code("UNAVAILABLE", ""), 69);
    assert_eq!(code("CANCELLED", ""), 69);
    assert_eq!(code("UNAVAILABLE", "WORKER_UNAVAILABLE"), 3);
    assert_eq!(code("NOT_FOUND", "THREAD_NOT_FOUND"), 3);
    assert_eq!(code("UNAUTHENTICATED", ""), 3);
    assert_eq!(code("DEADLINE_EXCEEDED", ""), 4);
}

#[test]
fn a_script_gets_the_parts() {
    let field = [("thread_options.model", "is empty")];
    let mut refused = refused("INVALID_ARGUMENT", "INVALID_INPUT", "invalid", &field);
    refused.retry_after = Some(Duration::from_millis(1500));
    let Failure::Detailed(detailed) = failure(refused) else { panic!() };
    let expected = serde_json::json!({
        "code": "INVALID_ARGUMENT", "reason": "INVALID_INPUT", "message": "--model: is empty",
        "fields": [
            {"field": "thread_options.model", "argument": "--model", "message": "is empty"}
        ],
        "retry_after_seconds": 1.5,
    });
    assert_eq!(Value::from(detailed.details), expected);
}

/// What a request comes to that is wrong by itself, judged as a sidecar judges it.
fn judged(words: &Words, request: pb::RunTurnRequest) -> String {
    let refusal = crate::grpc::convert::turn_request(
        request,
        &|_| Default::default(),
        &Default::default(),
        &Default::default(),
        &Default::default(),
        Tenant::default(),
    );
    words.failure(crate::grpc::status::status(&refusal.unwrap_err()).into()).into_message()
}

fn message(words: &Words, text: &str) -> String {
    words.failure(refused("ABORTED", "R", text, &[])).into_message()
}

#[test]
fn values_are_those_that_are_typed_and_no_field_is_left() {
    let words = Words::default();
    for (theirs, ours) in [
        ("busy_policy is REJECT", "--busy is reject (R)"),
        (
            "(in its place: missing_thread_policy START_NEW)",
            "(in its place: --missing-thread start-new) (R)",
        ),
        (
            "5 is no value of it; use one of BUSY_POLICY_QUEUE, BUSY_POLICY_STEER",
            "5 is no value of it; use one of queue, steer (R)",
        ),
        ("can't be kept; give a turn_timeout", "can't be kept; give a --turn-timeout (R)"),
        // What is quoted, and what is a path, is not the sidecar's own.
        ("context \"QUEUE busy_policy\" is busy", "context \"QUEUE busy_policy\" is busy (R)"),
        (
            "/srv/REJECT/busy_policy is none, nor is A",
            "/srv/REJECT/busy_policy is none, nor is A (R)",
        ),
    ] {
        assert_eq!(message(&words, theirs), ours);
    }
    let missing = "thread 7 was not found by Codex: none; check the id (a turn may begin a new thread in \
                   its place: missing_thread_policy START_NEW)";
    let expected = "thread 7 was not found by Codex: none; check the id (R)";
    assert_eq!(message(&Words::of_contexts(), missing), expected);
}

#[test]
fn a_text_is_one_line_and_says_a_value_once() {
    let words = Words::of_contexts();
    let reverted =
        "before_codex_turn_id: thread/revert: turn not found: zzz (code -32600); name one";
    assert_eq!(message(&words, reverted), "--before: turn not found: zzz; name one (R)");
    let text = "Codex refused: bad value\n  in `sandbox_mode`\n";
    assert_eq!(
        message(&Words::of_contexts(), text),
        "Codex refused: bad value in `sandbox_mode` (R)"
    );
    let field = [("inputs[1].local_image.path", "/a.png does not exist")];
    let (told, _) = told(refused("INVALID_ARGUMENT", "INVALID_INPUT", "x", &field));
    assert_eq!(told, "--image /a.png does not exist (INVALID_INPUT)");
}

#[test]
fn what_was_not_given_is_not_named_as_if_it_were() {
    let sentence =
        "thread_options.working_directory /srv is not inside a git repository; name one that is";
    let refused = || {
        let field = [("thread_options.working_directory", sentence)];
        refused("FAILED_PRECONDITION", "NOT_A_GIT_REPOSITORY", sentence, &field)
    };
    let mut request = pb::RunTurnRequest::default();
    let expected = "--cd is not given, and its default /srv is not inside a git repository; name one that \
                    is (NOT_A_GIT_REPOSITORY)";
    assert_eq!(Words::of_run(&request).failure(refused()).into_message(), expected);
    request.thread_options.get_or_insert_default().working_directory = Some("/srv".to_owned());
    let told = Words::of_run(&request).failure(refused()).into_message();
    assert!(told.starts_with("--cd /srv is not inside"), "{told}");
}

#[test]
fn what_a_sidecar_finds_wrong_is_told_without_its_names() {
    use crate::pb::review_target::Target;
    let review = |words: &str| {
        Some(pb::ReviewTarget { target: Some(Target::Instructions(words.to_owned())) })
    };
    let said = || vec![pb::UserInput { input: Some(Input::Text("x".to_owned())) }];
    let request = pb::RunTurnRequest { inputs: said(), ephemeral: true, ..Default::default() };
    let wrong = [
        pb::RunTurnRequest { context_id: " ".to_owned(), ephemeral: false, ..request.clone() },
        pb::RunTurnRequest { thread_id: "zzz".to_owned(), ephemeral: false, ..request.clone() },
        pb::RunTurnRequest { tool_name: "shell".to_owned(), ..request.clone() },
        pb::RunTurnRequest { tool_name: "codex_ä".to_owned(), ..request.clone() },
        pb::RunTurnRequest { context_policy: 2, ..request.clone() },
        pb::RunTurnRequest { busy_policy: 77, ..request.clone() },
        pb::RunTurnRequest { inputs: Vec::new(), compact: true, ..request.clone() },
        pb::RunTurnRequest { inputs: Vec::new(), review: review(""), ..request.clone() },
        pb::RunTurnRequest {
            inputs: Vec::new(),
            review: review("x"),
            busy_policy: 3,
            ..request.clone()
        },
        pb::RunTurnRequest {
            inputs: Vec::new(),
            review: review("x"),
            turn_options: Some(pb::TurnOptions { max_total_tokens: 1, ..Default::default() }),
            ..request.clone()
        },
        pb::RunTurnRequest {
            thread_options: Some(pb::ThreadOptions {
                model: Some(String::new()),
                working_directory: Some(String::new()),
                permission_profile: "p".to_owned(),
                sandbox_mode: 1,
                ..Default::default()
            }),
            ..request.clone()
        },
    ];
    for request in wrong {
        let told = judged(&Words::of_run(&request), request);
        // But for the reason at the end, which scripts read.
        let text = told.strip_suffix(" (INVALID_INPUT)").unwrap();
        for name in ["leave the field", "unbound", "thread_started", "_policy", "_options", "_id"] {
            assert!(!text.contains(name), "{name}: {text}");
        }
        let is_name = |word: &str| {
            let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            word.contains('_') && !word.contains("codex_") && !word.contains("Z0-9")
        };
        assert!(!text.split_whitespace().any(is_name), "{text}");
    }
    let blank = pb::RunTurnRequest { inputs: Vec::new(), review: review(""), ..request };
    let expected = "--review TEXT: is blank; say what to look at (INVALID_INPUT)";
    assert_eq!(judged(&Words::default(), blank), expected);
}

#[test]
fn every_place_has_words_of_its_own() {
    let field = [(
        "thread_options.working_directory",
        "thread_options.working_directory /x does not exist",
    )];
    let told = |words: Words| words.failure(refused("NOT_FOUND", "R", "x", &field)).into_message();
    assert_eq!(told(Words::of_exec(&pb::RunTurnRequest::default())), "--cd /x does not exist (R)");
    assert_eq!(told(Words::of_tool()), "cwd /x does not exist (R)");
    let field = [("target.context_id", "\"\" names no conversation")];
    let fork = Words::of_contexts().failure(refused("NOT_FOUND", "R", "x", &field));
    assert_eq!(fork.into_message(), "TARGET: \"\" names no conversation (R)");
}
