//! The frames of HTTP/2 that go over a connection, by their heads: when a client's half of the handshake
//! is there, and whether it keeps us busy with frames that come to nothing.
//!
//! A ping is answered, a reset thrown away, a change of the settings carried out, without any call that
//! would be counted; h2 sets no limit to them. So a client has a [`Credit`] for such frames. It grows with
//! time and with what is sent to the client: who reads a stream sends windows and pings as it reads.
//! Looks at no payload but for its length.

use std::time::Duration;

use tokio::time::Instant;

/// What a client has at most, and begins with.
const MOST: u64 = 10_000;
/// What it gets each second.
const PER_SECOND: u64 = 100;
/// What it gets for a frame with which it is answered: Go's client sends a ping and two windows for each.
const PER_ANSWER: u64 = 10;

/// What a client says before its first frame.
const PREFACE: usize = 24;
const HEAD: usize = 9;

/// Kinds of frames, as RFC 9113 numbers them.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// What a frame from a client costs, and its name. Those of calls cost nothing here: they are held to other
/// limits.
fn cost(kind: u8) -> (u64, &'static str) {
    match kind {
        kind::DATA | kind::HEADERS | kind::CONTINUATION => (0, ""),
        kind::PRIORITY => (1, "PRIORITY"),
        // A call was begun for it.
        kind::RST_STREAM => (4, "RST_STREAM"),
        // It may change the windows of all streams.
        kind::SETTINGS => (100, "SETTINGS"),
        kind::PING => (1, "PING"),
        kind::GOAWAY => (1, "GOAWAY"),
        kind::WINDOW_UPDATE => (1, "WINDOW_UPDATE"),
        _ => (1, "unknown"),
    }
}

/// A client sends too many frames of this kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client floods its connection with {0} frames")]
pub(super) struct Flood(&'static str);

/// Cuts a stream of bytes into frames, however it is read.
#[derive(Debug)]
struct Heads {
    head: [u8; HEAD],
    /// How much of the head is there.
    seen: usize,
    /// How much is to come before the next head.
    rest: usize,
}

impl Heads {
    fn new(preface: usize) -> Heads {
        Heads { head: [0; HEAD], seen: 0, rest: preface }
    }

    /// The kind of the next frame whose head comes to its end within `bytes`, which are shortened by what
    /// was read.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<u8> {
        let skipped = self.rest.min(bytes.len());
        self.rest -= skipped;
        *bytes = &bytes[skipped..];
        let taken = (HEAD - self.seen).min(bytes.len());
        self.head[self.seen..self.seen + taken].copy_from_slice(&bytes[..taken]);
        self.seen += taken;
        *bytes = &bytes[taken..];
        if self.seen < HEAD {
            return None;
        }
        let [a, b, c, kind, ..] = self.head;
        (self.seen, self.rest) = (0, u32::from_be_bytes([0, a, b, c]) as usize);
        Some(kind)
    }
}

/// What a client may still send.
#[derive(Debug)]
struct Credit {
    left: u64,
    /// Until when what time brings is in it.
    until: Instant,
}

impl Credit {
    fn add(&mut self, more: u64) {
        self.left = (self.left + more).min(MOST);
    }

    fn take(&mut self, cost: u64) -> bool {
        if self.left < cost {
            let now = Instant::now();
            let seconds = now.saturating_duration_since(self.until).as_secs();
            self.until += Duration::from_secs(seconds);
            self.add(seconds.saturating_mul(PER_SECOND));
        }
        let left = self.left.checked_sub(cost);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    received: Heads,
    sent: Heads,
    /// How many have come.
    count: u64,
    credit: Credit,
}

impl Frames {
    /// None yet, in either direction.
    pub(super) fn new() -> Frames {
        let credit = Credit { left: MOST, until: Instant::now() };
        Frames { received: Heads::new(PREFACE), sent: Heads::new(0), count: 0, credit }
    }

    /// Whether a client has said all of its half of the handshake: the preface and a whole frame, which has
    /// to be SETTINGS.
    pub(super) fn have_shaken_hands(&self) -> bool {
        self.count > 1 || self.count == 1 && self.received.rest == 0
    }

    /// Takes in what was read of a client.
    ///
    /// # Errors
    /// It sends more than it may.
    pub(super) fn receive(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while let Some(kind) = self.received.next(&mut bytes) {
            self.count += 1;
            let (cost, name) = cost(kind);
            if cost > 0 && !self.credit.take(cost) {
                return Err(Flood(name));
            }
        }
        Ok(())
    }

    /// Takes in what was written to it.
    pub(super) fn send(&mut self, mut bytes: &[u8]) {
        while let Some(kind) = self.sent.next(&mut bytes) {
            if matches!(kind, kind::DATA | kind::HEADERS) {
                self.credit.add(PER_ANSWER);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
        [&[a, b, c, kind, 0, 0, 0, 0, 0], &vec![0xff; length][..]].concat()
    }

    fn begun() -> Frames {
        let mut frames = Frames::new();
        frames.receive(&[0; PREFACE]).unwrap();
        frames
    }

    #[tokio::test(start_paused = true)]
    async fn hands_are_shaken_once_the_first_frame_is_whole_however_it_comes() {
        let bytes = [&[b'P'; PREFACE][..], &frame(kind::SETTINGS, 12)].concat();
        for cut in 1..bytes.len() {
            let mut frames = Frames::new();
            for part in bytes.chunks(cut) {
                assert!(!frames.have_shaken_hands(), "{cut}");
                frames.receive(part).unwrap();
            }
            assert!(frames.have_shaken_hands(), "{cut}");
        }
        let mut frames = begun();
        frames.receive(&[frame(kind::SETTINGS, 0), frame(kind::PING, 8)].concat()).unwrap();
        assert!(frames.have_shaken_hands());
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_frames_that_come_to_nothing_has_so_many_and_more_with_time() {
        for (kind, name, most) in [
            (kind::PING, "PING", MOST),
            (kind::SETTINGS, "SETTINGS", MOST / 100),
            (kind::RST_STREAM, "RST_STREAM", MOST / 4),
            (kind::WINDOW_UPDATE, "WINDOW_UPDATE", MOST),
            (kind::PRIORITY, "PRIORITY", MOST),
            (200, "unknown", MOST),
        ] {
            let mut frames = begun();
            let one = frame(kind, 8);
            for _ in 0..most {
                frames.receive(&one).unwrap();
            }
            assert_eq!(frames.receive(&one), Err(Flood(name)));
            // The connection is over then; here it goes on behind the payload.
            frames.receive(&one[HEAD..]).unwrap();
            tokio::time::advance(Duration::from_secs(10)).await;
            for _ in 0..most / 10 {
                frames.receive(&one).unwrap();
            }
            assert_eq!(frames.receive(&one), Err(Flood(name)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_what_it_is_sent_has_as_many_as_that_takes() {
        let mut frames = begun();
        let of_a_reader =
            [frame(kind::WINDOW_UPDATE, 4), frame(kind::WINDOW_UPDATE, 4), frame(kind::PING, 8)];
        for _ in 0..10 * MOST {
            // Cut where it is written in parts.
            let sent = frame(kind::DATA, 40);
            frames.send(&sent[..5]);
            frames.send(&sent[5..]);
            frames.receive(&of_a_reader.concat()).unwrap();
        }
        // What answers a ping is no answer.
        let sent = frame(kind::PING, 8);
        let flooded = (0..2 * MOST).any(|_| {
            frames.send(&sent);
            frames.receive(&sent).is_err()
        });
        assert!(flooded);
        // Calls have limits of their own.
        let mut frames = begun();
        for _ in 0..10 * MOST {
            frames.receive(&[frame(kind::HEADERS, 9), frame(kind::DATA, 5)].concat()).unwrap();
        }
    }
}
