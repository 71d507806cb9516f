//! Connections that are held for nothing, and a log that nobody reads.

use std::time::Duration;

use codex_sidecar::pb;
use rustix::process::{Resource, Rlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::codegen::http::uri::PathAndQuery;
use tonic_prost::ProstCodec;

use super::{Target, size};
use crate::support::binary::through;
use crate::support::{Client, PATIENCE, prompt, within};

/// What a client of HTTP/2 says first, and an empty SETTINGS frame.
const HANDSHAKE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// As many as the machine lets this process hold, if that is less.
fn as_many_as_there_are_descriptors(wanted: usize) -> usize {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    // This process has other tests, too.
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    let room = maximum.map_or(usize::MAX, |maximum| usize::try_from(maximum).unwrap());
    wanted.min(room.saturating_sub(2_000).max(100))
}

/// Connections that have said `first` and nothing more. Those that are refused are none.
async fn connections(address: &str, count: usize, first: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let connecting = TcpStream::connect(address);
        let Ok(Ok(mut stream)) = tokio::time::timeout(Duration::from_secs(1), connecting).await
        else {
            continue;
        };
        if stream.write_all(first).await.is_ok() {
            held.push(stream);
        }
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_call_take_nobodys_place() {
    let count = as_many_as_there_are_descriptors(size(1_500, 10_000));
    for (first, kind) in [
        (&b""[..], "that say nothing"),
        (&HANDSHAKE[..30], "that stop in their handshake"),
        (HANDSHAKE, "without a call"),
    ] {
        let target = Target::with("").await;
        let what = format!("{count} connections {kind}");
        let measured = target
            .attacked(&what, async |sidecar| {
                let held = connections(&sidecar.address, count, first).await;
                tokio::time::sleep(size(Duration::from_secs(3), Duration::from_secs(15))).await;
                drop(held);
            })
            .await;
        assert!(measured.kept() < 64, "{measured:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_whose_clients_answer_no_more_are_closed() {
    let count = size(20, 800);
    let target = Target::with("").await;
    let measured = target
        .attacked(&format!("{count} connections whose clients answer no more"), async |sidecar| {
            let gone = connections(&sidecar.address, count, HANDSHAKE).await;
            assert_eq!(gone.len(), count);
            let closed = gone.into_iter().map(|mut socket| async move {
                // A reset is an end, too.
                _ = socket.read_to_end(&mut Vec::new()).await;
            });
            within(2 * PATIENCE, "their end", futures::future::join_all(closed)).await;
        })
        .await;
    assert!(measured.kept() < 64, "{measured:?}");
}

/// The processor time that a process has used.
fn used(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_up_to_the_last_descriptor_stop_neither_health_nor_turns() {
    let seconds = size(6, 30);
    let target = Target::started("", |command| {
        through(command, &["sh", "-c", "ulimit -n 64 && exec \"$0\" \"$@\""]);
    })
    .await;
    target
        .attacked("200 connections that say nothing, at 64 descriptors", async |sidecar| {
            let before = used(sidecar.pid());
            let held = connections(&sidecar.address, 200, b"").await;
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let spent = used(sidecar.pid()).saturating_sub(before);
            // The canary's own calls are a small part of it, also in a build without optimisation.
            assert!(spent < Duration::from_secs(seconds) / 2, "{spent:?} of {seconds} s");
            drop(held);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stops_nothing() {
    let target = Target::started("", |command| {
        command.args(["--log", "debug,h2=trace"]);
    })
    .await;
    // A pipe holds 64 KiB, and a turn's log at this level is some of it.
    let measured = target
        .attacked("a log that nobody reads", async |sidecar| {
            sidecar.leave_log_unread();
            for number in 0..size(20, 200) {
                sidecar.say(&format!("c{}", number % 4), "[[words 100]]").await.completed();
            }
        })
        .await;
    assert!(measured.kept() < 64, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_reset_at_once_stop_nobody() {
    let count = size(500, 5_000);
    let target = Target::with("").await;
    let measured = target
        .attacked(&format!("{count} calls that are reset at once"), async |sidecar| {
            let client = Client::connect(&sidecar.address, sidecar.place.work()).await;
            for number in 0..count {
                let mut codex = client.codex();
                let request = client.at_work(prompt(&format!("r{}", number % 8), "hello"));
                let call = tokio::spawn(async move { codex.run_turn(request).await.map(drop) });
                tokio::task::yield_now().await;
                call.abort();
            }
        })
        .await;
    assert!(measured.kept() < 64, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unary_calls_that_are_never_finished_are_ended() {
    let count = size(200, 1_000);
    let target = Target::with("").await;
    let what = format!("{count} unary calls that their client never half-closes");
    let measured = target
        .attacked(&what, async |sidecar| {
            let client = Client::connect(&sidecar.address, sidecar.place.work()).await;
            let mut calls = tokio::task::JoinSet::new();
            for _ in 0..count {
                let channel = client.channel();
                calls.spawn(async move {
                    let mut client = tonic::client::Grpc::new(channel);
                    client.ready().await.unwrap();
                    let codec =
                        ProstCodec::<pb::GetServerInfoRequest, pb::GetServerInfoResponse>::default(
                        );
                    let path = "/codex.sidecar.v1.PoolService/GetServerInfo";
                    let never = tonic::Request::new(tokio_stream::pending());
                    let path = PathAndQuery::from_static(path);
                    client.client_streaming(never, path, codec).await.map(drop)
                });
            }
            let all = async {
                while let Some(ended) = calls.join_next().await {
                    let status = ended.unwrap().unwrap_err();
                    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
                }
            };
            within(3 * PATIENCE, "the end of the calls", all).await;
        })
        .await;
    assert!(measured.kept() < 64, "{measured:?}");
}
