//! What a worker complains of on its stderr: read to the end, logged at a bounded rate, and its last
//! words kept for whoever asks why it ended.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::AsyncRead;
use tokio::time::Instant;

use crate::worker::WorkerId;
use crate::worker::complaints::{self, Complaint};

/// The last lines of a worker's stderr.
#[derive(Debug, Default)]
pub(super) struct StderrTail {
    lines: Mutex<VecDeque<Said>>,
    // From when on it served.
    ready_at: OnceLock<Instant>,
}

#[derive(Debug)]
struct Said {
    at: SystemTime,
    moment: Instant,
    line: String,
}

impl StderrTail {
    const LINES: usize = 12;
    const LINE_BYTES: usize = 512;
    /// What was said longer before the end explains it no more.
    const LONG_AGO: Duration = Duration::from_secs(60);

    /// It serves from now on: what it said while it started is no last word.
    pub(super) fn note_ready(&self) {
        let _ = self.ready_at.set(Instant::now());
    }

    /// Its last words if it has ended now, oldest first, each with its time.
    pub(super) fn last_words(&self) -> Vec<String> {
        let ready_at = self.ready_at.get();
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .filter(|said| ready_at.is_none_or(|ready_at| said.moment >= *ready_at))
            .filter(|said| said.moment.elapsed() < Self::LONG_AGO)
            .map(|Said { at, line, .. }| {
                format!("{} {line}", humantime::format_rfc3339_millis(*at))
            })
            .collect()
    }

    /// Takes a line in; returns what is kept of it.
    fn push(&self, line: &[u8]) -> Option<String> {
        let line = without_escapes(&String::from_utf8_lossy(line));
        let line = line.trim();
        if line.is_empty() {
            return None;
        }
        let mut end = line.len().min(Self::LINE_BYTES);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        let line = line[..end].to_owned();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == Self::LINES {
            lines.pop_front();
        }
        let (at, moment) = (SystemTime::now(), Instant::now());
        lines.push_back(Said { at, moment, line: line.clone() });
        Some(line)
    }
}

/// The text without the colours that Codex's log writes even into a pipe.
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            let mut sequence = characters.by_ref().skip_while(|c| *c == '[');
            let _ = sequence.find(char::is_ascii_alphabetic);
        } else if !character.is_control() || character == '\t' {
            plain.push(character);
        }
    }
    plain
}

/// Reads a worker's stderr to its end. Secrets are taken out of the stream before.
pub(super) async fn drain(id: WorkerId, stderr: impl AsyncRead + Unpin, tail: &StderrTail) {
    let tell = |complaint| match complaint {
        Complaint::Line(stderr) => tracing::info!(worker = %id, stderr, "the worker complains"),
        Complaint::Suppressed(suppressed) => {
            tracing::info!(worker = %id, suppressed, "more lines on the worker's stderr");
        }
    };
    complaints::drain(stderr, |line| tail.push(line), tell).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Redactor;

    #[tokio::test(start_paused = true)]
    async fn last_words_are_what_was_said_last_with_its_time_and_bounded() {
        let tail = StderrTail::default();
        tail.push(b"WARNING: while it starts");
        assert_eq!(tail.last_words().len(), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        tail.note_ready();
        assert_eq!(tail.last_words(), Vec::<String>::new());
        tail.push(b"long ago");
        tokio::time::advance(StderrTail::LONG_AGO).await;
        for number in 0..100 {
            tail.push(format!("\u{1b}[31mERROR\u{1b}[0m line {number} ✓").as_bytes());
        }
        tail.push("✓".repeat(1000).as_bytes());
        tail.push(b" \x1b[0m ");
        let words = tail.last_words();
        assert_eq!(words.len(), StderrTail::LINES);
        let (time, line) = words[words.len() - 2].split_once(' ').unwrap();
        assert_eq!(line, "ERROR line 99 ✓");
        let said = humantime::parse_rfc3339(time).unwrap();
        assert!(said.elapsed().unwrap() < Duration::from_secs(60), "{time}");
        let (time, line) = words[words.len() - 1].split_once(' ').unwrap();
        assert!(
            line.len() <= StderrTail::LINE_BYTES && time.len() == "2026-11-25T00:00:00.000Z".len()
        );
        tokio::time::advance(StderrTail::LONG_AGO).await;
        assert_eq!(tail.last_words(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn no_part_of_a_key_is_kept_wherever_a_line_is_cut() {
        const KEY: &str = "sk-canary-0123456789";
        let redactor = Redactor::new([KEY.to_owned()]);
        // Around where what is shown of a line ends, and where what is kept of it does.
        for before in (480..520).chain(4070..4110) {
            let tail = StderrTail::default();
            let said = format!("{}{KEY} and {KEY}\n{KEY}", "x".repeat(before));
            let id = WorkerId { slot: 0, generation: 1 };
            drain(id, redactor.reader(said.as_bytes()), &tail).await;
            let kept = tail.last_words().join("\n");
            assert!(!kept.contains("canary") && !kept.contains("sk-"), "{before}: {kept}");
            assert!(kept.ends_with("[redacted]"), "{before}: {kept}");
        }
    }
}
