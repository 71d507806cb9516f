//! Cuts a stream into lines. One over the limit is not kept but looked at and skipped, to its end,
//! in bounded memory: what comes after it is read as ever.
//!
//! The limit has one exception. What a caller puts in comes back as an item, a little longer than it
//! was sent: such a line may be as long as the longest request that is accepted makes it.

use memchr::memchr;

use crate::app_server::whose::{Scan, SkippedLine};

/// The longest lines that are kept, in bytes without their ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineLimits {
    /// Of any line.
    pub(crate) any: usize,
    /// Of one that tells back what a caller put in; at least as long.
    pub(crate) echo: usize,
}

/// What came to its end.
#[derive(Debug)]
pub(crate) enum Piece<'a> {
    /// A line, without its end.
    Line(&'a [u8]),
    /// One that was too long, and is gone.
    Skipped(Box<SkippedLine>),
}

/// The beginning of a line tells whether it is an echo: the type of an item is its first member.
const BEGINNING: usize = 4096;

/// Memory that a long line needed is given back after it; as much as most lines need is kept.
const KEPT_CAPACITY: usize = 64 * 1024;

/// A stream of lines.
#[derive(Debug)]
pub(crate) struct Lines {
    limits: LineLimits,
    // The line that has begun.
    line: Vec<u8>,
    // It was given away, and is to be forgotten.
    is_given: bool,
    // It may be as long as an echo.
    is_echo: bool,
    // It is being skipped.
    skipping: Option<Box<Scan>>,
}

impl Lines {
    pub(crate) fn new(limits: LineLimits) -> Lines {
        Lines { limits, line: Vec::new(), is_given: false, is_echo: false, skipping: None }
    }

    /// The next piece that comes to its end within `bytes`, which are shortened by what was read; `None`
    /// once all of them were.
    pub(crate) fn next<'a, 'b: 'a>(&'a mut self, bytes: &mut &'b [u8]) -> Option<Piece<'a>> {
        self.forget_given();
        let (part, is_whole) = match memchr(b'\n', bytes) {
            Some(end) => {
                let part = &bytes[..end];
                *bytes = &bytes[end + 1..];
                (part, true)
            }
            None => (std::mem::take(bytes), false),
        };
        if self.skipping.is_none()
            && is_whole
            && self.line.is_empty()
            && part.len() <= self.limits.any
        {
            // Most lines: they need not be copied.
            return Some(Piece::Line(part));
        }
        self.take(part);
        if !is_whole {
            return None;
        }
        if let Some(scan) = self.skipping.take() {
            return Some(Piece::Skipped(Box::new(scan.end(self.limits.any))));
        }
        self.is_given = true;
        Some(Piece::Line(&self.line))
    }

    /// What is left at the end of the stream: a line without its end.
    pub(crate) fn rest(&mut self) -> Option<Piece<'_>> {
        self.forget_given();
        if let Some(scan) = self.skipping.take() {
            return Some(Piece::Skipped(Box::new(scan.end(self.limits.any))));
        }
        self.is_given = true;
        (!self.line.is_empty()).then_some(Piece::Line(&self.line))
    }

    fn take(&mut self, part: &[u8]) {
        if let Some(scan) = &mut self.skipping {
            return scan.feed(part);
        }
        let length = self.line.len() + part.len();
        if length > self.limits.any && !self.is_echo {
            let mut beginning = Scan::default();
            let kept = &self.line[..self.line.len().min(BEGINNING)];
            beginning.feed(kept);
            beginning.feed(&part[..part.len().min(BEGINNING - kept.len())]);
            self.is_echo = beginning.is_echo();
        }
        let limit = if self.is_echo { self.limits.echo } else { self.limits.any };
        if length <= limit {
            return self.line.extend_from_slice(part);
        }
        let mut scan = Box::<Scan>::default();
        scan.feed(&self.line);
        scan.feed(part);
        self.skipping = Some(scan);
        self.is_given = true;
        self.forget_given();
    }

    fn forget_given(&mut self) {
        if std::mem::take(&mut self.is_given) {
            self.is_echo = false;
            self.line.clear();
            if self.line.capacity() > KEPT_CAPACITY {
                self.line = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Seen {
        Line(Vec<u8>),
        Skipped(u64),
    }

    fn see(piece: Piece<'_>) -> Seen {
        match piece {
            Piece::Line(line) => Seen::Line(line.to_vec()),
            Piece::Skipped(line) => Seen::Skipped(line.bytes),
        }
    }

    fn read(limits: LineLimits, stream: &[u8], cuts: &[usize]) -> Vec<Seen> {
        let mut lines = Lines::new(limits);
        let mut seen = Vec::new();
        let mut rest = stream;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (mut piece, tail) = rest.split_at((*cut).clamp(1, rest.len()));
            while let Some(piece) = lines.next(&mut piece) {
                seen.push(see(piece));
            }
            rest = tail;
        }
        seen.extend(lines.rest().map(see));
        seen
    }

    proptest! {
        #[test]
        fn lines_up_to_the_limit_pass_and_longer_ones_are_counted_however_they_are_cut(
            lengths in prop::collection::vec(0_usize..40, 0..20),
            cuts in prop::collection::vec(1_usize..50, 1..20),
            is_ended in any::<bool>(),
        ) {
            let limits = LineLimits { any: 20, echo: 20 };
            let lines: Vec<Vec<u8>> = lengths.iter().map(|length| vec![b'x'; *length]).collect();
            let mut stream = lines.join(&b'\n');
            if is_ended && !lines.is_empty() {
                stream.push(b'\n');
            }
            let mut expected: Vec<Seen> = lines
                .into_iter()
                .map(|line| match line.len() {
                    0..=20 => Seen::Line(line),
                    length => Seen::Skipped(length as u64),
                })
                .collect();
            if !is_ended && expected.last() == Some(&Seen::Line(Vec::new())) {
                expected.pop();
            }
            prop_assert_eq!(read(limits, &stream, &cuts), expected);
        }
    }

    #[test]
    fn what_a_caller_put_in_may_come_back_longer_than_other_lines_and_is_bounded_too() {
        let limits = LineLimits { any: 200, echo: 1000 };
        let item = |kind: &str, length: usize| {
            let item = json!({"type": kind, "id": "i", "content": "x".repeat(length)});
            let params = json!({"item": item, "threadId": "t"});
            json!({"method": "item/started", "params": params}).to_string().into_bytes()
        };
        let line = |bytes: &[u8]| vec![Seen::Line(bytes.to_vec())];
        for cut in [1, 7, 100, 5000] {
            let echo = item("userMessage", 500);
            assert_eq!(read(limits, &echo, &[cut]), line(&echo));
            let long = item("userMessage", 1000);
            assert_eq!(read(limits, &long, &[cut]), [Seen::Skipped(long.len() as u64)]);
            let other = item("agentMessage", 500);
            assert_eq!(read(limits, &other, &[cut]), [Seen::Skipped(other.len() as u64)]);
        }
    }

    #[test]
    fn a_line_of_64_mib_passes_where_that_is_the_limit() {
        let limit = 64 << 20;
        let mut lines = Lines::new(LineLimits { any: limit, echo: limit });
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..1024 {
            assert!(lines.next(&mut &chunk[..]).is_none());
        }
        let mut end = &b"\n"[..];
        assert!(matches!(lines.next(&mut end), Some(Piece::Line(line)) if line.len() == limit));
    }

    #[test]
    fn a_line_without_an_end_takes_no_memory() {
        let limits = LineLimits { any: 1 << 20, echo: 1 << 20 };
        let mut lines = Lines::new(limits);
        let chunk = vec![b'x'; 64 * 1024];
        for _ in 0..1024 {
            assert!(lines.next(&mut &chunk[..]).is_none());
        }
        assert_eq!(lines.line.capacity(), 0);
        let mut end = &b"\n{}\n"[..];
        assert!(
            matches!(lines.next(&mut end), Some(Piece::Skipped(line)) if line.bytes == 64 << 20)
        );
        assert!(matches!(lines.next(&mut end), Some(Piece::Line(b"{}"))));
    }
}
