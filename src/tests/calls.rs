//! What every call is held to before any service sees it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::grpc::arrivals::Arrivals;
use crate::grpc::call::answer;
use crate::model::id::CallerId;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use std::convert::Infallible;
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;

use futures::StreamExt as _;
use http_body::Body as _;
use prost::Message as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::grpc::api::codex_service_server::CodexServiceServer;
use crate::grpc::when_read::WhenRead;
use crate::pb;
use crate::registry::ledger::{Durability, Ledger};
use crate::testing::{Played, prompt};

const GET_CONTEXT: &str = "/codex.sidecar.v1.CodexService/GetContext";
const RUN_TURN: &str = "/codex.sidecar.v1.CodexService/RunTurn";
const PATIENCE: Duration = Duration::from_secs(30);

/// A request of these bytes, which ends with them, or never.
struct Sent {
    bytes: Option<Bytes>,
    ends: bool,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], length.as_slice(), message].concat()
}

async fn services() -> (Played, Routes) {
    let sidecar = Played::with(|_| {}).await;
    let codex = CodexServiceServer::new(sidecar.api.clone()).max_decoding_message_size(8 << 20);
    (sidecar, Routes::new(codex))
}

async fn call(routes: &Routes, path: &str, bytes: Vec<u8>, ends: bool) -> Response<Body> {
    let request = Request::post(path)
        .header("content-type", "application/grpc")
        .body(Sent { bytes: Some(bytes.into()), ends });
    answer(routes.clone(), request.unwrap(), PATIENCE, &Arc::default()).await
}

#[track_caller]
fn assert_refused(response: &Response<Body>, code: Code, reason: &str) -> Status {
    let status = Status::from_header_map(response.headers()).expect("it is refused");
    let details = status.get_error_details();
    let told = details.error_info().map(|info| info.reason.as_str());
    assert_eq!((status.code(), told), (code, Some(reason)), "{status:?}");
    status
}

fn get_context() -> Vec<u8> {
    let context_id = "unknown".to_owned();
    framed(&pb::GetContextRequest { context_id, ..Default::default() }.encode_to_vec())
}

#[tokio::test(start_paused = true)]
async fn a_request_that_does_not_end_is_refused_in_time_and_one_that_does_is_answered() {
    let (_sidecar, routes) = services().await;
    let whole = call(&routes, GET_CONTEXT, get_context(), true).await;
    assert_refused(&whole, Code::NotFound, "CONTEXT_NOT_FOUND");

    let before = Instant::now();
    for bytes in [get_context(), get_context()[..7].to_vec(), Vec::new()] {
        let endless = call(&routes, GET_CONTEXT, bytes, false).await;
        let status = assert_refused(&endless, Code::DeadlineExceeded, "REQUEST_INCOMPLETE");
        assert!(status.message().contains("30s"), "{status}");
    }
    assert_eq!(before.elapsed().as_secs(), 3 * PATIENCE.as_secs());

    let request = Request::post(GET_CONTEXT)
        .header("content-type", "application/grpc+proto")
        .header("grpc-timeout", "2S")
        .body(Sent { bytes: Some(get_context().into()), ends: false });
    let before = Instant::now();
    let late = answer(routes.clone(), request.unwrap(), PATIENCE, &Arc::default()).await;
    assert_refused(&late, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert_eq!(before.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_grpc_runs_no_call() {
    let (sidecar, routes) = services().await;
    let mut turn = prompt("a", "hello");
    turn.thread_options.get_or_insert_default().skip_git_repo_check = Some(true);
    let turn = framed(&turn.encode_to_vec());
    let asked = async |method: Method, kind: Option<&str>| {
        let mut request = Request::builder().method(method).uri(RUN_TURN);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let body = Sent { bytes: Some(turn.clone().into()), ends: true };
        answer(routes.clone(), request.body(body).unwrap(), PATIENCE, &Arc::default()).await
    };
    for kind in [None, Some("application/json"), Some("application/grpc-web"), Some("")] {
        let response = asked(Method::POST, kind).await;
        assert_eq!(response.status(), 415, "{kind:?}");
        assert_refused(&response, Code::InvalidArgument, "INVALID_INPUT");
    }
    for method in [Method::GET, Method::PUT, Method::OPTIONS] {
        let response = asked(method.clone(), Some("application/grpc")).await;
        assert_eq!(
            (response.status().as_u16(), &response.headers()["allow"]),
            (405, &"POST".parse().unwrap())
        );
        assert_refused(&response, Code::InvalidArgument, "INVALID_INPUT");
    }
    assert_eq!(sidecar.engine.turns().len(), 0);
    let response = asked(Method::POST, Some("application/grpc;charset=utf-8")).await;
    assert!(Status::from_header_map(response.headers()).is_none());
    let body = http_body_stream(response.into_body()).count().await;
    assert!(body > 0 && sidecar.engine.turns().len() == 1);
}

fn http_body_stream(mut body: Body) -> impl futures::Stream<Item = Bytes> + Unpin {
    futures::stream::poll_fn(move |context| {
        let frame = std::task::ready!(Pin::new(&mut body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.unwrap().into_data().unwrap_or_default()))
    })
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_be_read_is_refused_as_any_other_bad_input() {
    let (_sidecar, routes) = services().await;
    // As deep as no parser of protobuf goes.
    let mut deep = prost_types::Value { kind: None };
    for _ in 0..60 {
        let fields = [("a".to_owned(), deep)].into();
        let object = prost_types::Struct { fields };
        deep = prost_types::Value { kind: Some(prost_types::value::Kind::StructValue(object)) };
    }
    let mut nested = prompt("a", "hello");
    let config = prost_types::Struct { fields: [("a".to_owned(), deep)].into() };
    nested.thread_options.get_or_insert_default().config = Some(config);
    // Field 1, a text of one byte that is no UTF-8.
    let bad_text = framed(b"\x0a\x01\xff");
    for (bytes, field, words) in [
        (framed(&nested.encode_to_vec()), "thread_options.config", "recursion limit"),
        (bad_text, "context_id", "UTF-8"),
        (framed(b"\xff\xff"), "message", "varint"),
        (get_context()[..7].to_vec(), "message", "EOF"),
        (Vec::new(), "message", "Missing"),
    ] {
        let response = call(&routes, RUN_TURN, bytes, true).await;
        let status = assert_refused(&response, Code::InvalidArgument, "INVALID_INPUT");
        let details = status.get_error_details();
        let [violation] = &*details.bad_request().unwrap().field_violations else {
            panic!("{details:?}");
        };
        assert_eq!(violation.field, field, "{violation:?}");
        assert!(violation.description.contains(words), "{violation:?}");
    }
    let mut large = framed(&[0; 16]);
    large[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    let response = call(&routes, RUN_TURN, large, true).await;
    let status = assert_refused(&response, Code::ResourceExhausted, "REQUEST_TOO_LARGE");
    assert!(status.message().contains("8388608"), "{status}");
    let unknown = "/codex.sidecar.v1.CodexService/NoSuchCall";
    let response = call(&routes, unknown, get_context(), true).await;
    let status = assert_refused(&response, Code::Unimplemented, "UNIMPLEMENTED");
    assert!(status.message().contains(unknown), "{status}");
}

/// Whatever a call begins to send waits in memory for the rest.
#[tokio::test(start_paused = true)]
async fn requests_that_are_arriving_hold_so_much_together_and_no_caller_takes_all_of_it() {
    let (_sidecar, routes) = services().await;
    let arrivals = Arc::new(Arrivals::new(16_000));
    let call = |caller, path: &'static str, ends| {
        let (routes, arrivals) = (routes.clone(), Arc::clone(&arrivals));
        Box::pin(async move {
            // A quarter of what it says that it sends.
            let length = if ends { 995_u32 } else { 3995 };
            let mut bytes = vec![0];
            bytes.extend(length.to_be_bytes());
            // Fields that nobody knows.
            bytes.resize(1000, 0);
            let request = Request::post(path)
                .header("content-type", "application/grpc")
                .extension(CallerId(caller))
                .body(Sent { bytes: Some(bytes.into()), ends });
            answer(routes, request.unwrap(), PATIENCE, &arrivals).await
        })
    };
    let mut arriving = Vec::new();
    for number in 0..14 {
        let path = if number % 2 == 0 { RUN_TURN } else { GET_CONTEXT };
        let mut begun = call(1, path, false);
        assert!(futures::poll!(begun.as_mut()).is_pending(), "{number}");
        arriving.push(begun);
    }
    let status = assert_refused(
        &call(1, GET_CONTEXT, false).await,
        Code::ResourceExhausted,
        "OUT_OF_RESOURCES",
    );
    assert!(status.message().contains("14000 bytes already"), "{status}");
    // Those of others that are there at once hold nothing for long.
    for _ in 0..10 {
        let whole = call(2, GET_CONTEXT, true).await;
        assert_refused(&whole, Code::InvalidArgument, "INVALID_INPUT");
    }
    drop(arriving);
    assert!(futures::poll!(call(1, GET_CONTEXT, false)).is_pending());
    let held = format!("{arrivals:?}");
    assert!(held.contains("all: 0") && held.contains("by_caller: {}"), "{held}");
}

#[tokio::test(start_paused = true)]
async fn no_call_is_answered_before_it_is_known_what_an_earlier_sidecar_has_kept() {
    let sidecar = Played::with(|_| {}).await;
    // Nobody opens it.
    let ledger = Ledger::in_file("/state/sidecar.redb".into(), Durability::Power);
    let service = |ledger| {
        let codex = CodexServiceServer::new(sidecar.api.clone());
        Routes::new(WhenRead::new(codex, Arc::new(ledger)))
    };
    let unread = service(ledger);
    for path in [GET_CONTEXT, RUN_TURN] {
        let response = call(&unread, path, get_context(), true).await;
        let status = assert_refused(&response, Code::Unavailable, "LEDGER_UNAVAILABLE");
        assert!(status.message().contains("/state/sidecar.redb"), "{status}");
        assert!(status.get_error_details().retry_info().is_some(), "{status}");
    }
    let response = call(&service(Ledger::memory()), GET_CONTEXT, get_context(), true).await;
    assert_refused(&response, Code::NotFound, "CONTEXT_NOT_FOUND");
}
