//! HTTP/2 by hand: what no honest client's library would send.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a client of HTTP/2 says first, without its SETTINGS.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

pub(super) const GET_INFO: &str = "/codex.sidecar.v1.PoolService/GetServerInfo";

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The preface and SETTINGS with these.
pub(super) fn handshake(settings: &[(u16, u32)]) -> Vec<u8> {
    let settings = settings
        .iter()
        .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()));
    [PREFACE, &frame(SETTINGS, 0, 0, &settings.collect::<Vec<u8>>())].concat()
}

/// A header as HPACK has one that is in no table.
pub(super) fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = Vec::new();
        match text.len() {
            short @ 0..127 => bytes.push(u8::try_from(short).unwrap()),
            long => {
                bytes.push(127);
                let mut rest = long - 127;
                while rest >= 128 {
                    bytes.push(u8::try_from(rest % 128).unwrap() | 128);
                    rest /= 128;
                }
                bytes.push(u8::try_from(rest).unwrap());
            }
        }
        bytes.extend(text.as_bytes());
        bytes
    };
    [vec![0], text(name), text(value)].concat()
}

/// What every call of gRPC says first.
pub(super) fn headers_of(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    headers.into_iter().flat_map(|(name, value)| header(name, value)).collect()
}

/// A message with its head; compressed, as it says.
pub(super) fn message(is_compressed: bool, bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[u8::from(is_compressed)], &length[..], bytes].concat()
}

/// A whole call with an empty message.
pub(super) fn call(stream: u32, path: &str) -> Vec<u8> {
    let headers = frame(HEADERS, END_HEADERS, stream, &headers_of(path));
    [headers, frame(DATA, END_STREAM, stream, &message(false, b""))].concat()
}

/// How a connection went.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// It was cut, with or without a GOAWAY.
    pub(super) is_closed: bool,
    /// The code of that.
    pub(super) goaway: Option<u32>,
    /// Streams that were answered, and those that were reset with their code.
    pub(super) answered: usize,
    pub(super) resets: Vec<u32>,
    /// All that was in headers, as it came.
    pub(super) headers: Vec<u8>,
}

impl Seen {
    pub(super) fn take(&mut self, bytes: &mut Vec<u8>) {
        while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some(payload) = rest.get(..length) else { return };
            let number = |at: usize| {
                payload.get(at..at + 4).map(|four| u32::from_be_bytes(four.try_into().unwrap()))
            };
            match head[3] {
                HEADERS => {
                    self.answered += 1;
                    self.headers.extend(payload);
                }
                RST_STREAM => self.resets.extend(number(0)),
                7 => self.goaway = number(4),
                _ => {}
            }
            bytes.drain(..9 + length);
        }
    }
}

/// Says `first`, then `next` of 0, 1, 2, … until it gives none, until it is cut, or for so long; then goes
/// on to read for the rest of the time, if it is to.
pub(super) async fn attack(
    address: &str,
    first: &[u8],
    mut next: impl FnMut(u32) -> Option<Vec<u8>>,
    time: Duration,
    stays: bool,
) -> io::Result<Seen> {
    let mut stream = TcpStream::connect(address).await?;
    let (mut reader, mut writer) = stream.split();
    let mut seen = Seen::default();
    let reading = async {
        let (mut bytes, mut part) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            match reader.read(&mut part).await {
                Ok(0) | Err(_) => break,
                Ok(read) => bytes.extend(&part[..read]),
            }
            seen.take(&mut bytes);
        }
        seen.is_closed = true;
    };
    let writing = async {
        // It may be over at any moment.
        writer.write_all(first).await.ok();
        for number in 0.. {
            let Some(bytes) = next(number) else { break };
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        if stays {
            std::future::pending::<()>().await;
        }
        // What is on its way back comes.
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
        () = tokio::time::sleep(time) => {}
    }
    Ok(seen)
}
