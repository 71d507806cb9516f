//! Frames of HTTP/2 that cost their sender nothing.

use std::time::Duration;

use codex_sidecar::pb;
use futures::future::join_all;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::wire::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET_INFO, HEADERS, PING, PRIORITY, RST_STREAM,
    SETTINGS, Seen, WINDOW_UPDATE, attack, call, frame, handshake, header, headers_of, message,
};
use super::{Target, size};
use crate::support::PATIENCE;
use crate::support::attached::by_id;

/// HTTP/2's name for a client that should be calmer.
const ENHANCE_YOUR_CALM: u32 = 11;
const REFUSED_STREAM: u32 = 7;

/// HTTP's status 431 alone, as HPACK has it.
const TOO_LARGE: &[u8] = b"\x48\x83\x69\x90\xff";

/// From two connections at once, again and again for a while: how each of them went.
async fn again_and_again(
    address: &str,
    first: &[u8],
    next: impl Fn(u32) -> Option<Vec<u8>>,
) -> Vec<Seen> {
    let until = tokio::time::Instant::now() + size(Duration::from_secs(2), Duration::from_secs(20));
    let one = async || {
        let mut all = Vec::new();
        while tokio::time::Instant::now() < until {
            all.extend(attack(address, first, &next, PATIENCE, false).await);
        }
        all
    };
    let (one, other) = futures::future::join(one(), one()).await;
    one.into_iter().chain(other).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_come_to_nothing_cost_who_sends_them_the_connection() {
    let floods: [(&str, Vec<u8>); 6] = [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("answers to no PING", frame(PING, 1, 0, &[7; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 7])),
        ("WINDOW_UPDATE of a stream", frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
        ("unknown", frame(0xbe, 0, 0, b"what")),
    ];
    let target = Target::with("").await;
    let measured = target
        .attacked("floods of six kinds of frames", async |sidecar| {
            for (name, flood) in &floods {
                let many = flood.repeat(500);
                // One call, so that there is a stream, which never ends.
                let open = frame(HEADERS, END_HEADERS, 1, &headers_of(GET_INFO));
                let first = [handshake(&[]), open].concat();
                let seen = again_and_again(&sidecar.address, &first, |_| Some(many.clone())).await;
                assert!(seen.iter().all(|seen| seen.is_closed), "{name}: {seen:?}");
                println!("{name}: {} connections were cut", seen.len());
            }
        })
        .await;
    assert!(measured.kept() < 64 && measured.grown() < 128, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_reset_with_their_first_frame_cost_the_connection() {
    let target = Target::with("").await;
    let measured = target
        .attacked("HEADERS and RST_STREAM at once, without end", async |sidecar| {
            let headers = headers_of(GET_INFO);
            let next = |number: u32| {
                let both = |number: u32| {
                    let stream = 2 * number + 1;
                    let begin = frame(HEADERS, END_HEADERS, stream, &headers);
                    [begin, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
                };
                Some((100 * number..100 * (number + 1)).flat_map(both).collect())
            };
            let seen = again_and_again(&sidecar.address, &handshake(&[]), next).await;
            assert!(seen.iter().all(|seen| seen.is_closed), "{seen:?}");
            println!("{} connections were cut", seen.len());
        })
        .await;
    assert!(measured.kept() < 64 && measured.grown() < 128, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_without_any_data_costs_the_connection() {
    let target = Target::with("").await;
    let measured = target
        .attacked("empty DATA frames without end", async |sidecar| {
            let open = frame(HEADERS, END_HEADERS, 1, &headers_of(GET_INFO));
            let many = frame(DATA, 0, 1, b"").repeat(500);
            let first = [handshake(&[]), open].concat();
            let seen = again_and_again(&sidecar.address, &first, |_| Some(many.clone())).await;
            assert!(seen.iter().all(|seen| seen.is_closed), "{seen:?}");
        })
        .await;
    assert!(measured.kept() < 64 && measured.grown() < 128, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_bounded_in_size_in_number_and_in_frames() {
    let target = Target::with("").await;
    let measured = target
        .attacked("headers of 1 MB, 4,000 of them, and in frames without end", async |sidecar| {
            let address = &sidecar.address;
            // Up to four times what may be is answered by HTTP's own "too large"; beyond, it is cut.
            let with = |headers: Vec<u8>| [headers_of(GET_INFO), headers].concat();
            let a_bit_much = with(header("x-long", &"x".repeat(15 << 10)).repeat(2));
            let whole = |headers: &[u8]| {
                let mut parts = headers.chunks(16_000);
                let mut frames = frame(HEADERS, END_STREAM, 1, parts.next().unwrap());
                let parts: Vec<&[u8]> = parts.collect();
                for (at, part) in parts.iter().enumerate() {
                    let flags = if at + 1 == parts.len() { END_HEADERS } else { 0 };
                    frames.extend(frame(CONTINUATION, flags, 1, part));
                }
                frames
            };
            let time = Duration::from_secs(5);
            let once = async |bytes: Vec<u8>| {
                let first = [handshake(&[]), bytes].concat();
                attack(address, &first, |_| None, time, true).await.unwrap()
            };
            let refused = once(whole(&a_bit_much)).await;
            assert!(!refused.is_closed && refused.headers == TOO_LARGE, "{refused:?}");
            let number = size(10, 200);
            for headers in [
                with(header("x-long", &"x".repeat(1 << 20))),
                with((0..4_000).flat_map(|at| header(&format!("x-{at}"), "some value")).collect()),
            ] {
                for seen in join_all((0..number).map(|_| once(whole(&headers)))).await {
                    assert!(seen.is_closed || seen.headers == TOO_LARGE, "{seen:?}");
                }
            }
            let open = frame(HEADERS, 0, 1, &headers_of(GET_INFO));
            for part in [&b""[..], &header("x", "y")] {
                let first = [handshake(&[]), open.clone()].concat();
                let many = frame(CONTINUATION, 0, 1, part).repeat(50);
                let seen = again_and_again(address, &first, |_| Some(many.clone())).await;
                assert!(seen.iter().all(|seen| seen.is_closed), "{seen:?}");
                let calm = seen.iter().filter(|seen| seen.goaway == Some(ENHANCE_YOUR_CALM));
                println!("{} of {} were told to be calm", calm.count(), seen.len());
            }
        })
        .await;
    assert!(measured.kept() < 64 && measured.grown() < 200, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_limit_are_refused_one_by_one() {
    let (connections, seconds) = size((4, 3), (40, 20));
    let target = Target::with("[limits]\nmax_streams_per_connection = 100\n").await;
    let measured = target
        .attacked(
            &format!("{connections} × 2,000 calls that never send their message"),
            async |sidecar| {
                let headers = headers_of(GET_INFO);
                let next = |number: u32| {
                    (number < 2_000).then(|| frame(HEADERS, END_HEADERS, 2 * number + 1, &headers))
                };
                let time = Duration::from_secs(seconds);
                let attackers = (0..connections).map(|_| async {
                    let first = handshake(&[]);
                    attack(&sidecar.address, &first, next, time, true).await.unwrap()
                });
                for seen in join_all(attackers).await {
                    let refused =
                        seen.resets.iter().filter(|code| **code == REFUSED_STREAM).count();
                    // h2 cuts a client that goes on although it is refused.
                    assert!(refused > 800 || seen.is_closed, "{seen:?}");
                }
            },
        )
        .await;
    assert!(measured.kept() < 64 && measured.grown() < 200, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_come_byte_by_byte_have_as_long_as_any_other() {
    let count = size(40, 400);
    let target = Target::with("[timeouts]\nrequest = \"2s\"\n").await;
    let measured = target
        .attacked(&format!("{count} calls whose message comes byte by byte"), async |sidecar| {
            let dripping = (0..count).map(|_| async {
                let open = frame(HEADERS, END_HEADERS, 1, &headers_of(GET_INFO));
                let start = frame(DATA, 0, 1, &message(false, &[0; 1000])[..5]);
                let first = [handshake(&[]), open, start].concat();
                let mut stream = TcpStream::connect(&sidecar.address).await.unwrap();
                let (mut reader, mut writer) = stream.split();
                writer.write_all(&first).await.unwrap();
                let dripping = async {
                    let drop = frame(DATA, 0, 1, b"x");
                    while writer.write_all(&drop).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                };
                let answered = async {
                    let (mut seen, mut part) = (Seen::default(), [0; 4096]);
                    let mut bytes = Vec::new();
                    while seen.answered == 0 {
                        let read = reader.read(&mut part).await.unwrap();
                        assert!(read > 0, "it is cut");
                        bytes.extend(&part[..read]);
                        seen.take(&mut bytes);
                    }
                    seen
                };
                let seen = tokio::select! {
                    seen = answered => seen,
                    () = dripping => panic!("it is cut"),
                    () = tokio::time::sleep(PATIENCE) => panic!("it may go on"),
                };
                let reason = b"REQUEST_INCOMPLETE";
                let is_told = seen.headers.windows(reason.len()).any(|part| part == reason);
                // In base64 among the details, or in the message.
                assert!(is_told || seen.answered == 1, "{seen:?}");
            });
            join_all(dripping).await;
        })
        .await;
    assert!(measured.kept() < 64, "{measured:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_no_window_costs_what_it_has_asked_for_and_no_more() {
    let (connections, calls) = size((20, 50), (100, 500));
    let target = Target::with("").await;
    let big = target.say("big", "[[bytes 3000000]]").await;
    let what = format!("{connections} × {calls} answers and a turn of 3 MB, and no window for any");
    let measured = target
        .attacked(&what, async |sidecar| {
            let target = Some(by_id(big.turn_id()));
            let of_turn = pb::AttachTurnRequest { target, ..Default::default() };
            let path = "/codex.sidecar.v1.CodexService/AttachTurn";
            let attach = [
                frame(HEADERS, END_HEADERS, 1, &headers_of(path)),
                frame(DATA, END_STREAM, 1, &message(false, &of_turn.encode_to_vec())),
            ];
            let first = [handshake(&[(4, 0)]), attach.concat()].concat();
            let next = |number: u32| (number < calls).then(|| call(2 * number + 3, GET_INFO));
            let time = size(Duration::from_secs(4), Duration::from_secs(30));
            let attackers =
                (0..connections).map(|_| attack(&sidecar.address, &first, next, time, true));
            for seen in join_all(attackers).await {
                let seen = seen.unwrap();
                assert!(seen.answered > 0 && !seen.is_closed, "{seen:?}");
            }
        })
        .await;
    assert!(measured.grown() < size(100, 300), "{measured:?}");
}
