//! The way out: whole lines, one at a time, whichever thread writes them.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Standard output.
#[derive(Debug, Default)]
pub(crate) struct Output {
    /// Held for a whole line, so that it is not torn by another.
    writer: Mutex<()>,
}

impl Output {
    /// Writes a message as a line.
    pub(crate) fn message(&self, message: &serde_json::Value) {
        self.line(fill(message.to_string()).into_bytes());
    }

    /// Writes a line.
    pub(crate) fn line(&self, mut line: Vec<u8>) {
        line.push(b'\n');
        self.raw(&line);
    }

    /// Writes bytes as they are. Waits for as long as nobody reads.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        let _writer = guard(&self.writer);
        write_all(bytes);
    }

    /// Writes a line that never ends; nothing else is written any more.
    pub(crate) fn endless_line(&self) -> ! {
        let _writer = guard(&self.writer);
        let piece = PATTERN.repeat(4096);
        write_all(b"{\"method\":\"");
        loop {
            write_all(piece.as_bytes());
        }
    }
}

/// What stands for so many bytes of [`PATTERN`] in a message, until it is written.
///
/// Bulk goes around the JSON writer, which takes a minute for 200 MiB where it is not optimised.
pub(crate) fn bulk(bytes: usize) -> String {
    format!("\u{1}bulk:{bytes};")
}

/// What bulk is made of: nothing that JSON would escape.
pub(crate) const PATTERN: &str = "0123456789abcdef";

fn fill(line: String) -> String {
    // As the JSON writer spells what `bulk` makes.
    let mut parts = line.split(r"\u0001bulk:");
    let head = parts.next().unwrap_or_default();
    if head.len() == line.len() {
        return line;
    }
    let mut filled = head.to_owned();
    for part in parts {
        let (bytes, rest) = part.split_once(';').unwrap_or_default();
        let bytes: usize = bytes.parse().unwrap_or_default();
        filled.push_str(&PATTERN.repeat(bytes / PATTERN.len()));
        filled.push_str(&PATTERN[..bytes % PATTERN.len()]);
        filled.push_str(rest);
    }
    filled
}

fn write_all(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(rustix::stdio::stdout(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(rustix::io::Errno::INTR) => {}
            // Nobody is left to talk to.
            Err(_) => std::process::exit(0),
        }
    }
}

/// The contents of a mutex; a panic elsewhere ends the process anyway.
pub(crate) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Ends the process when the machine fails it: a full disk, say.
pub(crate) fn or_exit<T>(what: &str, result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        crate::faults::complain(format!("Error: {what}: {error}\n").as_bytes());
        std::process::exit(1);
    })
}
