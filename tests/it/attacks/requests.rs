//! Requests that are poison to a worker, and workers that stop.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use codex_sidecar::pb;
use codex_sidecar::pb::user_input::Input;
use http::Request;
use http_body::Frame;
use rustix::process::Signal;
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};

use super::wire::message;
use super::{Target, size};
use crate::support::{Client, PATIENCE, Refused, processes, prompt, text, within};

/// `a.a.a.….a = true`, which Codex unfolds into as many tables, one in the other.
fn dotted(segments: usize) -> prost_types::Struct {
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::BoolValue(true)) };
    let key = vec!["a"; segments].join(".");
    prost_types::Struct { fields: [(key, value)].into_iter().collect() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_of_ten_thousand_dots_never_reaches_a_worker() {
    let count = size(4, 40);
    let target = Target::with("").await;
    let restarts = |workers: Vec<pb::Worker>| workers.iter().map(|it| it.restarts).sum::<u64>();
    let before = restarts(target.workers().await);
    let what = format!("{count} × config with 10,000 dots");
    let measured = target
        .attacked(&what, async |sidecar| {
            for number in 0..count {
                let mut request = prompt(&format!("poison{number}"), "hello");
                request.thread_options.get_or_insert_default().config = Some(dotted(10_000));
                let refused = sidecar.refused(request).await;
                refused.assert(Code::InvalidArgument, "INVALID_INPUT");
                let paths = refused.field_paths();
                assert!(paths[0].starts_with("thread_options.config["), "{refused:#?}");
            }
            assert_eq!(restarts(sidecar.workers().await), before);
        })
        .await;
    assert!(measured.kept() < 64, "{measured:?}");
}

/// So many objects, one in the other.
fn nested(levels: usize) -> prost_types::Struct {
    let (mut value, name) = (prost_types::Value { kind: None }, "a".to_owned());
    for _ in 0..levels {
        let fields = [(name.clone(), value)].into_iter().collect();
        let object = prost_types::Struct { fields };
        value = prost_types::Value { kind: Some(prost_types::value::Kind::StructValue(object)) };
    }
    prost_types::Struct { fields: [(name, value)].into_iter().collect() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_deep_in_whatever_form_never_reaches_a_worker() {
    let count = size(3, 100);
    let target = Target::with("").await;
    let restarts = |workers: Vec<pb::Worker>| workers.iter().map(|it| it.restarts).sum::<u64>();
    let before = restarts(target.workers().await);
    let open =
        |open: &str, close: &str| format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
    let schema = open(r#"{"type":"object","properties":{"a":"#, "}}");
    let what = format!("{count} × structs, schemas and functions of 100,000 levels");
    let measured = target
        .attacked(&what, async |sidecar| {
            for number in 0..count {
                let ask = |change: &dyn Fn(&mut pb::RunTurnRequest)| {
                    let mut request = prompt(&format!("deep{number}"), "hello");
                    change(&mut request);
                    request
                };
                // What a parser of protobuf takes, and what it does not.
                for levels in [51, 60, 200] {
                    let refused = sidecar.refused(ask(&|request| {
                        let options = request.thread_options.get_or_insert_default();
                        options.config = Some(nested(levels));
                    }));
                    let refused = refused.await;
                    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
                    let path = &refused.field_paths()[0];
                    assert!(path.starts_with("thread_options.config"), "{refused:#?}");
                }
                for (schema, field) in [
                    (&schema, "turn_options.output_schema"),
                    (&open("[", "]"), "turn_options.output_schema"),
                ] {
                    let refused = sidecar.refused(ask(&|request| {
                        let options = request.turn_options.get_or_insert_default();
                        options.output_schema = schema.clone();
                    }));
                    let refused = refused.await;
                    refused.assert(Code::InvalidArgument, "INVALID_INPUT");
                    assert_eq!(refused.field_paths(), [field], "{refused:#?}");
                }
                let refused = sidecar.refused(ask(&|request| {
                    let options = request.thread_options.get_or_insert_default();
                    options.dynamic_tools = vec![pb::DynamicTool {
                        name: "look".to_owned(),
                        description: "looks".to_owned(),
                        input_schema: schema.clone(),
                    }];
                }));
                let refused = refused.await;
                refused.assert(Code::InvalidArgument, "INVALID_INPUT");
            }
            assert_eq!(restarts(sidecar.workers().await), before);
        })
        .await;
    assert!(measured.kept() < 64 && measured.grown() < 200, "{measured:?}");
}

/// A call of RunTurn with these bytes for a message and its head.
async fn call_with(client: &Client, encoding: Option<&str>, bytes: Vec<u8>) -> Status {
    let mut channel = client.channel();
    let mut request = Request::post("http://localhost/codex.sidecar.v1.CodexService/RunTurn")
        .header("content-type", "application/grpc");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let body = tonic::body::Body::new(Whole(Some(bytes.into())));
    within(PATIENCE, "a place for the call", channel.ready()).await.unwrap();
    let response = within(PATIENCE, "its headers", channel.call(request.body(body).unwrap()));
    Status::from_header_map(response.await.unwrap().headers()).expect("it is refused")
}

/// A body that is there at once.
struct Whole(Option<Bytes>);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_large_or_are_packed_are_refused_unread() {
    let count = size(16, 400);
    let target = Target::with("[limits]\nmax_message_bytes = \"2MiB\"\n").await;
    let what = format!("{count} × messages of 64 MiB, of 4 GiB as they say, and packed ones");
    let measured = target
        .attacked(&what, async |sidecar| {
            let long = "x".repeat(64 << 20);
            let large = (0..count.min(16)).map(|number| {
                let request = sidecar.at_work(prompt(&format!("large{number}"), &long));
                let mut codex = sidecar.codex();
                async move { codex.run_turn(request).await.map(drop).unwrap_err() }
            });
            for status in futures::future::join_all(large).await {
                // What is on its way when it is refused may be cut off.
                if status.code() == Code::ResourceExhausted {
                    Refused::from(status).assert(Code::ResourceExhausted, "REQUEST_TOO_LARGE");
                }
            }
            let refused = async |kind: Option<&str>, body: &[u8], reason: &str, words: &str| {
                let status = call_with(sidecar, kind, body.to_vec()).await;
                let refused = Refused::from(status);
                assert_eq!(refused.reason, reason, "{refused:#?}");
                assert!(refused.message.contains(words), "{refused:#?}");
            };
            let mut endless = message(false, b"");
            endless[1..5].fill(0xff);
            // The start of a file of gzip that would be 10 GiB.
            let bomb = [&b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xec\xc1\x01\x0d"[..], &[0; 9000]];
            let bomb = message(true, &bomb.concat());
            for _ in 0..count {
                refused(None, &endless, "REQUEST_TOO_LARGE", "2097152").await;
                refused(Some("gzip"), &bomb, "UNIMPLEMENTED", "gzip").await;
                // Also where nobody says in which way it is packed.
                refused(None, &bomb, "INVALID_INPUT", "compress").await;
            }
        })
        .await;
    assert!(measured.kept() < 64 && measured.grown() < 300, "{measured:?}");
}

/// The header of a PNG with these dimensions, and a megabyte that nobody should decode.
fn png(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
    file.extend(width.to_be_bytes());
    file.extend(height.to_be_bytes());
    file.extend([1, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.resize(1 << 20, 0);
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_too_many_pixels_never_reaches_a_worker() {
    let count = size(4, 40);
    let target = Target::with("").await;
    let file = target.place.work().join("bomb.png");
    std::fs::write(&file, png(16_000, 16_000)).unwrap();
    let what = format!("{count} × an image of 16,000² pixels");
    let measured = target
        .attacked(&what, async |sidecar| {
            for number in 0..count {
                let mut request = prompt(&format!("bomb{number}"), "look");
                let path = file.display().to_string();
                let image =
                    pb::UserInput { input: Some(Input::LocalImage(pb::LocalImage { path })) };
                request.inputs = vec![text("look"), image];
                let refused = sidecar.refused(request).await;
                refused.assert(Code::InvalidArgument, "INVALID_INPUT");
                assert_eq!(refused.field_paths(), ["inputs[1].local_image.path"], "{refused:#?}");
            }
        })
        .await;
    let workers = measured.peak.workers - measured.before.workers;
    assert!(workers < 256, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_holds_nobody_up() {
    let rounds = size(1, 6);
    // A turn that is on it at that moment is lost with it, and no other one.
    let target = Target { lost: rounds, ..Target::with("").await };
    let what = format!("{rounds} × SIGSTOP of one of two workers");
    target
        .attacked(&what, async |sidecar| {
            for _ in 0..rounds {
                let stopped = sidecar.workers().await.remove(0);
                processes::signal(stopped.pid, Signal::STOP);
                crate::support::eventually("its successor", async || {
                    let workers = sidecar.workers().await;
                    let now = workers.iter().find(|it| it.worker_id == stopped.worker_id)?;
                    (now.pid != stopped.pid && now.state() == pb::WorkerState::Ready).then_some(())
                })
                .await;
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        })
        .await;
}
