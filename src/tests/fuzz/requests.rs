//! What callers send: messages, page tokens, headers, images.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::{HeaderMap, HeaderValue};
use prost::Message as _;
use serde_json::{Map, Value};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::Target;
use crate::grpc::limits::RequestLimits;
use crate::grpc::{call, convert, deadline, page_token, status};
use crate::model::id::{ContextKey, Tenant, ThreadId};
use crate::model::options::{ThreadOptions, ToolDefaults};
use crate::model::refusal::Refusal;
use crate::pb;
use crate::turn::pixels::{self, ImageSum};
use crate::turn::timeouts::Timeouts;

pub(super) const TARGETS: &[Target] = &[
    Target { name: "grpc::turn_request", seeds: turns, holds: turn, share: 150 },
    Target { name: "grpc::answer", seeds: answers, holds: answer, share: 200 },
    Target { name: "grpc::page_token", seeds: tokens, holds: token, share: 100 },
    Target { name: "grpc::deadline", seeds: timeouts, holds: timeout, share: 20 },
    Target { name: "grpc::content_type", seeds: kinds, holds: kind, share: 20 },
    Target { name: "grpc::status", seeds: complaints, holds: complaint, share: 30 },
    Target { name: "grpc::image_url", seeds: addresses, holds: address, share: 100 },
    Target { name: "turn::pixels", seeds: images, holds: image, share: 150 },
    Target { name: "model::config_fields", seeds: configs, holds: config, share: 50 },
    Target { name: "output_schema", seeds: schemas, holds: schema, share: 100 },
];

fn value(json: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match json {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap()),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(list) => {
            Kind::ListValue(prost_types::ListValue { values: list.iter().map(value).collect() })
        }
        Value::Object(fields) => Kind::StructValue(fields_of(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn fields_of(fields: &Map<String, Value>) -> prost_types::Struct {
    let fields = fields.iter().map(|(name, field)| (name.clone(), value(field))).collect();
    prost_types::Struct { fields }
}

fn turns() -> Vec<Vec<u8>> {
    let text = pb::user_input::Input::Text("hello".to_owned());
    let image = pb::user_input::Input::ImageUrl("data:image/png;base64,iVBORw0KGgo=".to_owned());
    let file = pb::user_input::Input::LocalImage(pb::LocalImage { path: "/a.png".to_owned() });
    let inputs = [text, image, file].map(|input| pb::UserInput { input: Some(input) }).to_vec();
    let duration = prost_types::Duration { seconds: 3, nanos: 7 };
    let small = pb::RunTurnRequest {
        context_id: "a".to_owned(),
        inputs: inputs[..1].to_vec(),
        ..Default::default()
    };
    let full = pb::RunTurnRequest {
        context_id: "context".to_owned(),
        tool_name: "codex_engineer".to_owned(),
        inputs,
        thread_id: "01a222e2-7484-72e2-a482-805edc345360".to_owned(),
        request_id: "381781b1-695f-4c24-ac86-b50bafe97664".to_owned(),
        busy_policy: 1,
        thread_options: Some(pb::ThreadOptions {
            sandbox_mode: 2,
            approval_policy: 1,
            working_directory: Some("/work".to_owned()),
            additional_directories: vec!["/a".to_owned(), "/b/../c".to_owned()],
            config: Some(fields_of(config_of(CONFIGS[0]).as_ref().unwrap())),
            ..Default::default()
        }),
        turn_options: Some(pb::TurnOptions {
            output_schema: SCHEMAS[0].to_owned(),
            idle_timeout: Some(duration),
            turn_timeout: Some(duration),
            ..Default::default()
        }),
        ..Default::default()
    };
    vec![small.encode_to_vec(), full.encode_to_vec()]
}

/// What is refused names its faults, in a status that fits into trailers; what is taken is taken alike
/// each time.
fn turn(bytes: &[u8]) {
    let request = match pb::RunTurnRequest::decode(bytes) {
        Ok(request) => request,
        Err(error) => {
            let told = Status::internal(format!("failed to decode Protobuf message: {error}"));
            return is_told(&status::of_tonic(&told, "/p").unwrap());
        }
    };
    let validated = || {
        convert::turn_request(
            request.clone(),
            &|_| ToolDefaults::default(),
            &Arc::default(),
            &RequestLimits::default(),
            &Timeouts::default(),
            Tenant::default(),
        )
    };
    match (validated(), validated()) {
        (Ok(one), Ok(other)) => assert_eq!(format!("{one:?}"), format!("{other:?}")),
        (Err(refusal), Err(_)) => is_refused(refusal),
        (one, other) => panic!("{one:?} and {other:?}"),
    }
}

fn is_refused(refusal: Refusal) {
    if let Refusal::InvalidInput(violations) = &refusal {
        assert!(!violations.is_empty());
        let is_named = violations.iter().all(|fault| !fault.field.is_empty());
        assert!(is_named, "{violations:?}");
    }
    is_told(&refusal.into());
}

fn is_told(status: &Status) {
    let mut headers = HeaderMap::new();
    status.add_header(&mut headers).unwrap();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    assert!(bytes < 4096, "{status:?}");
    assert_ne!(status.code(), Code::Internal, "{status:?}");
}

fn answers() -> Vec<Vec<u8>> {
    use pb::answer_request_request::Answer;
    let image = pb::tool_content::Content::ImageUrl("data:image/gif;base64,R0lGODlh".to_owned());
    let answers = [
        Answer::Approval(pb::ApprovalAnswer { decision: 1, ..Default::default() }),
        Answer::ToolCall(pb::ToolCallAnswer {
            content: vec![pb::ToolContent { content: Some(image) }],
            success: true,
        }),
    ];
    let requests = answers.map(|answer| pb::AnswerRequestRequest {
        turn_id: "t".to_owned(),
        request_id: "r".to_owned(),
        answer: Some(answer),
    });
    requests.iter().map(prost::Message::encode_to_vec).collect()
}

fn answer(bytes: &[u8]) {
    let Ok(request) = pb::AnswerRequestRequest::decode(bytes) else { return };
    let pb::AnswerRequestRequest { request_id, answer, .. } = request;
    if let Err(refusal) = convert::answer(request_id, answer) {
        is_refused(refusal);
    }
}

fn context() -> ContextKey {
    let (context_id, thread_key) = ("a\0ä".to_owned(), "codex_thread_id".to_owned());
    ContextKey { tenant: Tenant::default(), context_id, thread_key }
}

fn tokens() -> Vec<Vec<u8>> {
    let thread_id = ThreadId::from_codex("t");
    let place = crate::worker::history::HistoryPlace { turns: Some("c".to_owned()), items: None };
    let tokens = [
        page_token::after_context(&context(), Some("a")),
        page_token::after_turn(&crate::model::id::TurnId("t".to_owned()), Some(&context())),
        page_token::at_place(&thread_id, place),
    ];
    tokens.map(String::into_bytes).to_vec()
}

/// A token that is taken was made here: nothing else is one.
fn token(bytes: &[u8]) {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let tenant = Tenant::default();
    if let Ok(Some((context_id, thread_key))) = page_token::of_contexts(token, None) {
        let key = ContextKey { tenant, context_id, thread_key };
        let again = page_token::after_context(&key, None);
        let read = page_token::of_contexts(&again, None).unwrap().unwrap();
        assert_eq!(read, (key.context_id, key.thread_key));
    }
    _ = page_token::of_contexts(token, Some("a"));
    if let Ok(Some(turn_id)) = page_token::of_turns(token, Some(None)) {
        let again = page_token::after_turn(&turn_id, None);
        assert_eq!(page_token::of_turns(&again, Some(None)).unwrap(), Some(turn_id));
    }
    _ = page_token::of_turns(token, Some(Some(&context())));
    let thread_id = ThreadId::from_codex("t");
    if let Ok(place) = page_token::of_history(token, Some(&thread_id)) {
        let again = page_token::at_place(&thread_id, place.clone());
        assert_eq!(page_token::of_history(&again, Some(&thread_id)).unwrap(), place);
    }
}

fn timeouts() -> Vec<Vec<u8>> {
    ["2S", "99999999H", "1n", "500m"].map(|text| text.as_bytes().to_vec()).to_vec()
}

fn timeout(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let headers = HeaderMap::from_iter([(http::HeaderName::from_static("grpc-timeout"), value)]);
    _ = deadline::of(&MetadataMap::from_headers(headers));
}

fn kinds() -> Vec<Vec<u8>> {
    let kinds = ["application/grpc", "application/grpc+proto; charset=utf-8", "application/json"];
    kinds.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn kind(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    let is_ours = value.to_str().is_ok_and(|kind| kind.to_lowercase().contains("application/grpc"));
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, value)]);
    assert!(is_ours || !call::is_grpc(&headers));
}

fn complaints() -> Vec<Vec<u8>> {
    let complaints = [
        "failed to decode Protobuf message: Struct.fields: Value.kind: ThreadOptions.config: \
         RunTurnRequest.thread_options: recursion limit reached",
        "failed to decode Protobuf message: RunTurnRequest.context_id: invalid string value: data is \
         not UTF-8 encoded",
    ];
    complaints.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Whatever tonic and prost say is told within the bounds of trailers.
fn complaint(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for code in [Code::Internal, Code::OutOfRange, Code::Unimplemented] {
        is_told(&status::of_tonic(&Status::new(code, &*text), &text).unwrap());
    }
}

fn addresses() -> Vec<Vec<u8>> {
    let addresses = [
        "data:image/png;base64,iVBORw0KGgo=",
        "DATA:image/svg+xml;charset=utf-8;base64,PHN2Zz4=",
        "https://example.org/a.png",
        "file:///etc/passwd",
    ];
    addresses.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn address(bytes: &[u8]) {
    let Ok(url) = std::str::from_utf8(bytes) else { return };
    let input = pb::UserInput { input: Some(pb::user_input::Input::ImageUrl(url.to_owned())) };
    let text = pb::UserInput { input: Some(pb::user_input::Input::Text("look".to_owned())) };
    if let Err(refusal) = convert::user_inputs(vec![text, input], &RequestLimits::default()) {
        is_refused(refusal);
    } else {
        let scheme = url.trim().get(..5);
        assert!(scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:")), "{url}");
    }
}

fn images() -> Vec<Vec<u8>> {
    let png = pixels::tests::png(100, 50);
    let segment = |kind: u8, payload: &[u8]| {
        let length = u16::try_from(payload.len() + 2).unwrap().to_be_bytes();
        [&[0xff, kind], &length[..], payload].concat()
    };
    let size = [8, 0, 50, 0, 100, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1];
    let jpeg = [&[0xff, 0xd8][..], &segment(0xe0, b"JFIF\0"), &segment(0xc0, &size), &[0xff, 0xd9]];
    let gif = b"GIF89a\x64\0\x32\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\x04\0\0\0\0\0,\0\0\0\0\x64\0\x32\0\0\x02\x02D\x01\0;";
    let chunk = |kind: &[u8], payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_le_bytes();
        [kind, &length, payload].concat()
    };
    let webp = |chunks: &[u8]| [&chunk(b"RIFF", b"WEBP"), chunks].concat();
    let lossy = chunk(b"VP8 ", &[0x30, 1, 0, 0x9d, 1, 0x2a, 100, 0, 50, 0]);
    let lossless = chunk(b"VP8L", &[0x2f, 99, 0x40, 12, 0, 0]);
    let extended = chunk(b"VP8X", &[2, 0, 0, 0, 99, 0, 0, 49, 0, 0]);
    vec![
        png,
        jpeg.concat(),
        gif.to_vec(),
        webp(&lossy),
        webp(&lossless),
        webp(&[extended, lossy.clone()].concat()),
    ]
}

/// What is added only grows, and what is over the most is refused.
fn image(bytes: &[u8]) {
    let mut sum = ImageSum::default();
    let address = format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes));
    if sum.add_address(&address).is_ok() {
        let one = sum;
        _ = sum.add_address(&address);
        assert_eq!(sum.without(one).with(one), sum);
    }
}

const CONFIGS: &[&str] = &[
    r#"{"sandbox_mode":"workspace-write","approval_policy":"never","sandbox_workspace_write":{"network_access":true,"writable_roots":["/a"]}}"#,
    r#"{"sandbox_workspace_write.network_access":false,"sandbox_workspace_write.writable_roots":["/a","/b"],"approval_policy":{"granular":{}},"model":"m"}"#,
];

fn config_of(json: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(json).ok()
}

fn configs() -> Vec<Vec<u8>> {
    CONFIGS.iter().map(|config| config.as_bytes().to_vec()).collect()
}

/// What was moved into fields is moved once.
fn config(json: &[u8]) {
    let Some(config) = std::str::from_utf8(json).ok().and_then(config_of) else { return };
    let mut options = ThreadOptions { config: Some(config), ..Default::default() };
    if options.take_fields_from_config().is_ok() {
        let once = options.clone();
        assert_eq!(options.take_fields_from_config(), Ok(()));
        assert_eq!(options, once);
        let left = once.config.unwrap();
        assert!(!left.contains_key("sandbox_mode"));
    }
}

const SCHEMAS: &[&str] = &[
    r##"{"type":"object","properties":{"a":{"type":"string","default":"x"},"b":{"$ref":"#/$defs/b"},"c":{"anyOf":[{"type":"null"},{"type":"array","items":{"type":"integer"}}]}},"required":["a"],"$defs":{"b":{"type":"object","properties":{"next":{"$ref":"#/$defs/b"}}}}}"##,
    r##"{"type":"object","properties":{"a":{"allOf":[{"$ref":"#/$defs/x"}],"description":"d"},"l":{"type":"array","items":{"oneOf":[{"const":1},{"enum":["a","b"]}]}}},"$defs":{"x":{"type":"object","properties":{}}},"additionalProperties":false}"##,
    r#"{"title":"T","properties":[{"name":"a","description":"d","schema":{"type":"string"}},{"name":"b","schema":{"type":"array","items":{"type":"number"}}}]}"#,
];

fn schemas() -> Vec<Vec<u8>> {
    SCHEMAS.iter().map(|schema| schema.as_bytes().to_vec()).collect()
}

/// What was made strict is strict.
fn schema(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    if let Ok(strict) = crate::output_schema::strict(text) {
        assert_eq!(crate::output_schema::strict_value(strict.clone()), Ok(strict));
    }
}
