//! Requests that are poison to a worker, and workers that stop.

use std::time::Duration;

use codex_sidecar::pb;
use codex_sidecar::pb::user_input::Input;
use rustix::process::Signal;
use tonic::Code;

use super::{Target, size};
use crate::support::{processes, prompt, text};

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
