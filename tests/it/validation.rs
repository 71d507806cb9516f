//! Bad input over real gRPC: each kind is refused with a status, a reason and the field's path, and
//! Codex never sees it.

use std::path::Path;
use std::time::Duration;

use crate::support;
use crate::support::{Refused, Sidecar, prompt, text};
use codex_sidecar::pb;
use codex_sidecar::pb::user_input::Input;
use tonic::Code;

/// A way to get a request wrong.
struct Wrong {
    what: &'static str,
    code: Code,
    reason: &'static str,
    fields: &'static [&'static str],
    spoil: fn(&mut pb::RunTurnRequest, &Path),
}

const fn invalid(
    what: &'static str,
    fields: &'static [&'static str],
    spoil: fn(&mut pb::RunTurnRequest, &Path),
) -> Wrong {
    Wrong { what, code: Code::InvalidArgument, reason: "INVALID_INPUT", fields, spoil }
}

fn options(request: &mut pb::RunTurnRequest) -> &mut pb::ThreadOptions {
    request.thread_options.get_or_insert_default()
}

fn turn_options(request: &mut pb::RunTurnRequest) -> &mut pb::TurnOptions {
    request.turn_options.get_or_insert_default()
}

fn input(input: Input) -> pb::UserInput {
    pb::UserInput { input: Some(input) }
}

fn tool(name: &str) -> pb::DynamicTool {
    pb::DynamicTool { name: name.into(), ..Default::default() }
}

fn duration(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

fn config(key: &str, kind: prost_types::value::Kind) -> Option<prost_types::Struct> {
    let value = prost_types::Value { kind: Some(kind) };
    Some(prost_types::Struct { fields: [(key.to_owned(), value)].into() })
}

/// How the fault of a long key names it.
macro_rules! long_key {
    ($bytes:literal) => {
        concat!(
            "thread_options.config[\"a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.\"… (",
            $bytes,
            " bytes)]"
        )
    };
}

/// An image in a file that starts like this and is at least so long.
fn image(path: &Path, start: &[u8], length: u64) -> pb::UserInput {
    std::fs::write(path, start).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(length.max(start.len() as u64)).unwrap();
    input(Input::LocalImage(pb::LocalImage { path: path.display().to_string() }))
}

const WRONG: &[Wrong] = &[
    invalid("no context", &["context_id"], |request, _| request.context_id.clear()),
    invalid("a blank context", &["context_id"], |request, _| request.context_id = " \t\n".into()),
    invalid("a context of 257 bytes", &["context_id"], |request, _| {
        request.context_id = "x".repeat(257);
    }),
    invalid("a context of 256 characters and 257 bytes", &["context_id"], |request, _| {
        request.context_id = format!("{}é", "x".repeat(255));
    }),
    invalid("no inputs", &["inputs"], |request, _| request.inputs.clear()),
    invalid("blank text", &["inputs[1].text"], |request, _| request.inputs.push(text(" \n"))),
    invalid("an input of nothing", &["inputs[0]"], |request, _| {
        request.inputs = vec![pb::UserInput { input: None }];
    }),
    invalid("257 inputs", &["inputs"], |request, _| request.inputs = vec![text("x"); 257]),
    invalid("2 MiB of text", &["inputs"], |request, _| {
        request.inputs = vec![text(&"x".repeat(2 << 20))];
    }),
    invalid("too much text in all", &["inputs"], |request, _| {
        request.inputs = vec![text(&"x".repeat(1 << 19)); 2];
    }),
    invalid("an image without a path", &["inputs[0].local_image.path"], |request, _| {
        request.inputs = vec![input(Input::LocalImage(pb::LocalImage::default()))];
    }),
    invalid("a relative image", &["inputs[0].local_image.path"], |request, _| {
        let path = "image.png".into();
        request.inputs = vec![input(Input::LocalImage(pb::LocalImage { path }))];
    }),
    invalid("an image that is not there", &["inputs[1].local_image.path"], |request, place| {
        let path = place.join("missing.png").display().to_string();
        request.inputs.push(input(Input::LocalImage(pb::LocalImage { path })));
    }),
    invalid("an image that is a directory", &["inputs[0].local_image.path"], |request, place| {
        let path = place.display().to_string();
        request.inputs = vec![input(Input::LocalImage(pb::LocalImage { path }))];
    }),
    invalid("an image from a file: address", &["inputs[0].image_url"], |request, _| {
        request.inputs = vec![input(Input::ImageUrl("file:///etc/passwd".into()))];
    }),
    invalid("an image from the web", &["inputs[1].image_url"], |request, _| {
        request.inputs.push(input(Input::ImageUrl("https://example.com/image.png".into())));
    }),
    invalid("an image in no base64", &["inputs[0].image_url"], |request, _| {
        request.inputs = vec![input(Input::ImageUrl("data:image/svg+xml,<svg/>".into()))];
    }),
    invalid("an image of 16,000² pixels", &["inputs[1].image_url"], |request, _| {
        // The start of a PNG, which says its size.
        let png = "iVBORw0KGgoAAAANSUhEUgAAPoAAAD6ACAYAAAAAAAAA";
        let url = format!("data:image/png;base64,{png}");
        request.inputs.push(input(Input::ImageUrl(url)));
    }),
    invalid("such an image in a file", &["inputs[0].local_image.path"], |request, place| {
        let path = place.join("bomb.png");
        let start = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x3e\x80\0\0\x3e\x80\x08\x06\0\0\0";
        std::fs::write(&path, start).unwrap();
        let path = path.display().to_string();
        request.inputs = vec![input(Input::LocalImage(pb::LocalImage { path }))];
    }),
    invalid("a JPEG with bytes to skip", &["inputs[0].local_image.path"], |request, place| {
        let frame = b"\xff\xd8\xff\xff\0\0\xff\xff\xc0\0\x0b\x08\x3e\x80\x3e\x80\x01\x01\x11\0";
        request.inputs = vec![image(&place.join("skip.jpg"), frame, 0)];
    }),
    invalid("a WebP larger than its canvas", &["inputs[0].local_image.path"], |request, place| {
        let canvas = b"RIFF\xff\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let frame = b"VP8 \xff\0\0\0\x10\0\0\x9d\x01\x2a\x80\x3e\x80\x3e";
        let both = [canvas.as_slice(), frame].concat();
        request.inputs = vec![image(&place.join("canvas.webp"), &both, 0)];
    }),
    invalid("a PNG without a size", &["inputs[0].local_image.path"], |request, place| {
        request.inputs = vec![image(&place.join("short.png"), b"\x89PNG\r\n\x1a\n", 0)];
    }),
    invalid("images of 60 MiB in all", &["inputs[2].local_image.path"], |request, place| {
        let dot = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0";
        request.inputs = vec![image(&place.join("large.png"), dot, 20 << 20); 4];
    }),
    invalid("a text as an image", &["inputs[0].image_url"], |request, _| {
        request.inputs = vec![input(Input::ImageUrl("data:text/plain;base64,aGVsbG8=".into()))];
    }),
    invalid("an unknown tool", &["tool_name"], |request, _| request.tool_name = "shell".into()),
    invalid("a tool without a suffix", &["tool_name"], |request, _| {
        request.tool_name = "codex_".into();
    }),
    invalid("a bad suffix", &["tool_name"], |request, _| request.tool_name = "codex_a-b".into()),
    invalid("a suffix with a space inside", &["tool_name"], |request, _| {
        request.tool_name = "codex_a b".into();
    }),
    invalid("a tool name of 257 bytes", &["tool_name"], |request, _| {
        request.tool_name = format!("codex_{}", "x".repeat(251));
    }),
    invalid("a thread key of 257 bytes", &["thread_id_key"], |request, _| {
        request.thread_id_key = "x".repeat(257);
    }),
    invalid("a context with NUL", &["context_id"], |request, _| request.context_id = "a\0b".into()),
    invalid("a context with a newline", &["context_id"], |request, _| {
        request.context_id = "a\nb".into();
    }),
    invalid("a context with an escape", &["context_id"], |request, _| {
        request.context_id = "a\u{1b}[31mb".into();
    }),
    invalid("a context that is shown backwards", &["context_id"], |request, _| {
        request.context_id = "a\u{202e}b".into();
    }),
    invalid("a thread key with a C1 control", &["thread_id_key"], |request, _| {
        request.thread_id_key = "a\u{85}b".into();
    }),
    invalid("a tool name with a bidi isolate", &["tool_name"], |request, _| {
        request.tool_name = "codex_\u{2066}b".into();
        request.thread_id_key = "b".into();
    }),
    invalid("a request id with a tab", &["request_id"], |request, _| {
        request.request_id = "a\tb".into();
    }),
    invalid("a malformed thread id", &["thread_id"], |request, _| {
        request.thread_id = "not-a-uuid".into();
    }),
    invalid("an ephemeral turn of a context", &["context_id"], |request, _| {
        request.ephemeral = true
    }),
    invalid("an ephemeral turn of a thread", &["thread_id"], |request, _| {
        request.ephemeral = true;
        request.context_id.clear();
        request.thread_id = "00000000-0000-7000-8000-000000000000".into();
    }),
    invalid("a long request id", &["request_id"], |request, _| request.request_id = "x".repeat(37)),
    invalid("a request id beyond ASCII", &["request_id"], |request, _| {
        request.request_id = "é".into();
    }),
    invalid("an unknown sandbox", &["thread_options.sandbox_mode"], |request, _| {
        options(request).sandbox_mode = 99;
    }),
    invalid("an unknown approval policy", &["thread_options.approval_policy"], |request, _| {
        options(request).approval_policy = -1;
    }),
    invalid("an unknown web search mode", &["thread_options.web_search_mode"], |request, _| {
        options(request).web_search_mode = 4;
    }),
    invalid("an unknown effort", &["thread_options.model_reasoning_effort"], |request, _| {
        options(request).model_reasoning_effort = 6;
    }),
    invalid("an effort twice", &["thread_options.model_reasoning_effort_name"], |request, _| {
        options(request).set_model_reasoning_effort(pb::ReasoningEffort::Low);
        options(request).model_reasoning_effort_name = "high".into();
    }),
    invalid("no effort's name", &["thread_options.model_reasoning_effort_name"], |request, _| {
        options(request).model_reasoning_effort_name = "very high".into();
    }),
    invalid("an unknown busy policy", &["busy_policy"], |request, _| request.busy_policy = 9),
    invalid("an unknown disconnect policy", &["disconnect_policy"], |request, _| {
        request.disconnect_policy = 9;
    }),
    invalid("an unknown missing-thread policy", &["missing_thread_policy"], |request, _| {
        request.missing_thread_policy = 9;
    }),
    invalid("an empty model", &["thread_options.model"], |request, _| {
        options(request).model = Some(" ".into());
    }),
    invalid("an empty directory", &["thread_options.working_directory"], |request, _| {
        options(request).working_directory = Some(String::new());
    }),
    invalid("a relative directory", &["thread_options.working_directory"], |request, _| {
        options(request).working_directory = Some("work".into());
    }),
    invalid("a directory with `..`", &["thread_options.working_directory"], |request, place| {
        options(request).working_directory = Some(format!("{}/../x", place.display()));
    }),
    invalid("a directory with NUL", &["thread_options.working_directory"], |request, place| {
        options(request).working_directory = Some(format!("{}/\0", place.display()));
    }),
    Wrong {
        what: "a missing directory",
        code: Code::FailedPrecondition,
        reason: "WORKING_DIRECTORY_MISSING",
        fields: &["thread_options.working_directory"],
        spoil: |request, place| {
            options(request).working_directory = Some(place.join("missing").display().to_string());
        },
    },
    Wrong {
        what: "a directory that is a file",
        code: Code::FailedPrecondition,
        reason: "WORKING_DIRECTORY_MISSING",
        fields: &["thread_options.working_directory"],
        spoil: |request, place| {
            options(request).working_directory = Some(place.join("file").display().to_string());
        },
    },
    Wrong {
        what: "a directory outside a repository",
        code: Code::FailedPrecondition,
        reason: "NOT_A_GIT_REPOSITORY",
        fields: &["thread_options.working_directory"],
        spoil: |request, _| options(request).working_directory = Some("/".into()),
    },
    invalid(
        "a relative extra directory",
        &["thread_options.additional_directories[1]"],
        |request, place| {
            options(request).additional_directories =
                vec![place.display().to_string(), "elsewhere".into()];
        },
    ),
    Wrong {
        what: "a missing extra directory",
        code: Code::FailedPrecondition,
        reason: "WORKING_DIRECTORY_MISSING",
        fields: &["thread_options.additional_directories[1]"],
        spoil: |request, place| {
            options(request).additional_directories =
                vec![place.display().to_string(), place.join("missing").display().to_string()];
        },
    },
    invalid("a null in config", &["thread_options.config[\"a\"]"], |request, _| {
        options(request).config = config("a", prost_types::value::Kind::NullValue(0));
    }),
    invalid("a number that is none in config", &["thread_options.config[\"a\"]"], |request, _| {
        options(request).config = config("a", prost_types::value::Kind::NumberValue(f64::NAN));
    }),
    invalid("101 tables in one key of config", &[long_key!(201)], |request, _| {
        let kind = prost_types::value::Kind::BoolValue(true);
        options(request).config = config(&["a"; 101].join("."), kind);
    }),
    invalid("10,000 tables in one key of config", &[long_key!(19999)], |request, _| {
        let kind = prost_types::value::Kind::BoolValue(true);
        options(request).config = config(&["a"; 10_000].join("."), kind);
    }),
    invalid(
        "100 tables in a key that is in one",
        &["thread_options.config[\"b\"]"],
        |request, _| {
            let dotted = ["a"; 100].join(".");
            let inner = config(&dotted, prost_types::value::Kind::BoolValue(true)).unwrap();
            let inner = prost_types::value::Kind::StructValue(inner);
            options(request).config = config("b", inner);
            options(request)
                .config
                .as_mut()
                .unwrap()
                .fields
                .extend(config("c", prost_types::value::Kind::BoolValue(true)).unwrap().fields);
        },
    ),
    invalid(
        "a function without a name",
        &["thread_options.dynamic_tools[0].name"],
        |request, _| options(request).dynamic_tools = vec![tool("")],
    ),
    invalid("a function twice", &["thread_options.dynamic_tools[1].name"], |request, _| {
        options(request).dynamic_tools = vec![tool("f"), tool("f")];
    }),
    invalid(
        "a function whose arguments are no object",
        &["thread_options.dynamic_tools[0].input_schema"],
        |request, _| {
            let input_schema = r#"{"type": "string"}"#.into();
            options(request).dynamic_tools = vec![pb::DynamicTool { input_schema, ..tool("f") }];
        },
    ),
    invalid("a schema that is no JSON", &["turn_options.output_schema"], |request, _| {
        turn_options(request).output_schema = "{".into();
    }),
    invalid("a schema of a list", &["turn_options.output_schema"], |request, _| {
        turn_options(request).output_schema = r#"{"type": "array"}"#.into();
    }),
    invalid("a schema that is a number", &["turn_options.output_schema"], |request, _| {
        turn_options(request).output_schema = "1".into();
    }),
    invalid("a short schema of nothing", &["turn_options.output_schema"], |request, _| {
        turn_options(request).output_schema = r#"{"properties": []}"#.into();
    }),
    invalid(
        "a short schema that requires what is not there",
        &["turn_options.output_schema"],
        |request, _| {
            turn_options(request).output_schema = r#"{"properties": [{"name": "a", "description": "A", "schema": {"type": "string"}}], "required": ["b"]}"#.into();
        },
    ),
    invalid("no time", &["turn_options.turn_timeout"], |request, _| {
        turn_options(request).turn_timeout = duration(0, 0);
    }),
    invalid("time before now", &["turn_options.idle_timeout"], |request, _| {
        turn_options(request).idle_timeout = duration(-1, 0);
    }),
    invalid("a malformed duration", &["turn_options.answer_timeout"], |request, _| {
        turn_options(request).answer_timeout = duration(1, 1_000_000_000);
    }),
    invalid("more time than the server gives", &["turn_options.turn_timeout"], |request, _| {
        turn_options(request).turn_timeout = duration(3601, 0);
    }),
    invalid(
        "several faults at once",
        &["context_id", "inputs[0].text", "thread_options.sandbox_mode", "busy_policy"],
        |request, _| {
            request.context_id.clear();
            request.inputs = vec![text("")];
            options(request).sandbox_mode = 99;
            request.busy_policy = 9;
        },
    ),
];

#[tokio::test]
async fn bad_input_is_refused_before_codex_sees_it() {
    let sidecar = Sidecar::with(|config| {
        config.timeouts.max_turn = Some(Duration::from_secs(3600));
    })
    .await;
    std::fs::write(sidecar.place.path().join("file"), "").unwrap();
    let mut faults = Vec::new();
    for Wrong { what, code, reason, fields, spoil } in WRONG {
        let mut request = sidecar.at_work(prompt("a", "hello"));
        spoil(&mut request, sidecar.place.path());
        let mut codex = sidecar.codex();
        let call = async {
            let mut stream = codex.run_turn(request).await?.into_inner();
            stream.message().await
        };
        let answer = support::within(support::PATIENCE, what, call).await;
        let Err(status) = answer else {
            faults.push(format!("{what}: taken: {answer:?}"));
            continue;
        };
        // gRPC gives a stream that is refused at once no headers of its own.
        let refused = Refused::from(status);
        let mut seen = refused.field_paths();
        seen.sort_unstable();
        let mut wanted = fields.to_vec();
        wanted.sort_unstable();
        if (refused.code, refused.reason.as_str(), &seen) != (*code, *reason, &wanted)
            || refused.domain != "codex.sidecar"
            || refused.message.is_empty()
            || refused.fields.iter().any(|(_, description)| description.is_empty())
            || refused.retry_after.is_some()
        {
            faults.push(format!("{what}: wanted {code:?} {reason} {wanted:?}, got {refused:#?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));

    // Not one of them left a trace: no request to the model, no thread, no turn, no binding.
    assert_eq!(sidecar.model.requests(), 0);
    assert!(sidecar.place.rollouts().is_empty());
    let worker = sidecar.workers().await.remove(0);
    assert_eq!((worker.loaded_threads, worker.turns_started, worker.generation), (0, 0, 1));
    let counts = sidecar.info().await.counts.unwrap();
    assert_eq!((counts.contexts, counts.retained_turns, counts.running_turns), (0, 0, 0));

    // To compare with: what is right at the border.
    let mut right = prompt(&format!(" {} ", "x".repeat(256)), "hello");
    right.request_id = "x".repeat(36);
    right.turn_options =
        Some(pb::TurnOptions { turn_timeout: duration(3600, 0), ..Default::default() });
    sidecar.run(right).await.completed();
    let mut outside = prompt("b", "hello");
    options(&mut outside).working_directory = Some("/".into());
    options(&mut outside).skip_git_repo_check = Some(true);
    sidecar.run(outside).await.completed();
    assert_eq!(sidecar.model.requests(), 2);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_longest_input_that_codex_takes_is_taken() {
    let sidecar = Sidecar::start().await;
    let limit = sidecar.info().await.limits.unwrap().max_input_characters;
    assert_eq!(limit, 1_048_576);
    let limit = usize::try_from(limit).unwrap();
    // Characters, not bytes: two bytes each.
    let end = "[[say taken]]";
    let words = format!("{}{end}", "é".repeat(limit - end.len()));
    let told = sidecar.say("a", &words).await;
    assert_eq!(told.final_response(), "taken");
    let refused = sidecar.refused(prompt("a", &format!("{words}x"))).await;
    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_thread_that_codex_does_not_have_is_not_found() {
    let sidecar = Sidecar::start().await;
    let unknown = "00000000-0000-7000-8000-000000000000";
    let request = pb::RunTurnRequest { thread_id: unknown.into(), ..prompt("a", "hello") };
    let refused = sidecar.refused(request).await;
    refused.assert(Code::NotFound, "THREAD_NOT_FOUND");
    assert_eq!(refused.metadata["thread_id"], unknown);
    assert!(refused.message.contains(unknown), "{refused:#?}");
    assert_eq!(sidecar.model.requests(), 0);
    assert!(sidecar.place.rollouts().is_empty());
    sidecar.context("a").await.unwrap_err().assert(Code::NotFound, "CONTEXT_NOT_FOUND");
    sidecar.stop().await;
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_unread() {
    let sidecar = Sidecar::start().await;
    let limit = usize::try_from(sidecar.info().await.limits.unwrap().max_request_bytes).unwrap();
    let status = sidecar.try_begin(prompt("a", &"x".repeat(limit + 1))).await.unwrap_err();
    Refused::from(status).assert(Code::ResourceExhausted, "REQUEST_TOO_LARGE");
    // The connection lives on.
    sidecar.say("a", "hello").await.completed();
    assert_eq!(sidecar.model.requests(), 1);
    sidecar.stop().await;
}

#[tokio::test]
async fn the_other_calls_check_their_input_too() {
    let sidecar = Sidecar::start().await;
    let mut codex = sidecar.codex();
    let mut wrong: Vec<(&str, Refused)> = Vec::new();

    let bind = |context_id: &str, thread_id: &str| pb::BindContextRequest {
        context_id: context_id.into(),
        thread_id: thread_id.into(),
        ..Default::default()
    };
    let answer = codex.bind_context(bind("", "00000000-0000-7000-8000-000000000000")).await;
    wrong.push(("context_id", answer.unwrap_err().into()));
    wrong.push(("thread_id", codex.bind_context(bind("a", "")).await.unwrap_err().into()));
    wrong.push(("thread_id", codex.bind_context(bind("a", "x")).await.unwrap_err().into()));
    let get = pb::GetContextRequest {
        context_id: "a".into(),
        tool_name: "sh".into(),
        ..Default::default()
    };
    wrong.push(("tool_name", codex.get_context(get).await.unwrap_err().into()));
    let delete = pb::DeleteContextRequest {
        thread_id_key: "x".repeat(257),
        context_id: "a".into(),
        ..Default::default()
    };
    wrong.push(("thread_id_key", codex.delete_context(delete).await.unwrap_err().into()));
    let list = pb::ListContextsRequest { page_size: -1, ..Default::default() };
    wrong.push(("page_size", codex.list_contexts(list).await.unwrap_err().into()));
    let list = pb::ListContextsRequest { page_token: "nonsense".into(), ..Default::default() };
    wrong.push(("page_token", codex.list_contexts(list).await.unwrap_err().into()));
    wrong.push(("turn_id", sidecar.interrupt("").await.unwrap_err()));
    wrong.push(("turn_id", sidecar.interrupt("x").await.unwrap_err()));
    for (field, refused) in wrong {
        refused.assert(Code::InvalidArgument, "INVALID_INPUT");
        assert_eq!(refused.field_paths(), [field], "{refused:#?}");
    }
    let unknown = sidecar.interrupt("00000000-0000-7000-8000-000000000000").await.unwrap_err();
    unknown.assert(Code::NotFound, "TURN_NOT_FOUND");
    assert_eq!(unknown.metadata["turn_id"], "00000000-0000-7000-8000-000000000000");
    sidecar.stop().await;
}
