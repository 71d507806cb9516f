//! What is kept, as lines, while the sidecar runs: as of one moment, read while others write.
//!
//! No more of it is in memory than its reader takes: the next part is made when there is room for it. A
//! reader that takes none for long is given up, since the file can't shrink, and grows, as long as that moment
//! is to be read.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::mpsc::{self, Sender};
use tokio_stream::wrappers::ReceiverStream;

use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::file;
use crate::registry::ledger::lines::{Entry, LineWriter};
use crate::registry::ledger::read::Pieces;
use crate::registry::ledger::record::Operation;
use crate::registry::ledger::store::Snapshot;
use crate::registry::ledger::{Ledger, Trouble};

/// The size of a part, in bytes; the last one may be smaller.
const PART: usize = 64 << 10;

/// How many parts are made before they are taken.
const AHEAD: usize = 2;

/// How long a part may wait to be taken.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many exports of one ledger are made at once, each in a thread of its own; others wait.
const AT_ONCE: usize = 2;

/// Those of one ledger.
#[derive(Debug, Clone)]
pub(super) struct Exports(Arc<Semaphore>);

impl Default for Exports {
    fn default() -> Exports {
        Exports(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

/// Why an export ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExportEnd {
    Trouble(Trouble),
    /// Nothing was taken for this long.
    Unread(Duration),
}

/// The lines in parts.
pub(crate) type Parts = BoxStream<'static, Result<Bytes, ExportEnd>>;

impl Ledger {
    /// All that is kept as of now, with what can't be kept now; `None` for one that keeps nothing.
    ///
    /// # Errors
    /// [`Trouble`] where it was not read yet.
    pub(crate) async fn export(&self) -> Result<Option<Parts>, Trouble> {
        // It is never closed.
        let permit = Arc::clone(&self.exports.0).acquire_owned().await.ok();
        let Some(file) = &self.file else { return Ok(None) };
        if !file.queue.is_read() {
            let trouble = file.queue.trouble().borrow().clone();
            let cause = || "it is not read yet".to_owned();
            return Err(trouble.unwrap_or_else(|| Trouble { cause: cause() }));
        }
        // Of this moment, whenever there is a thread for it.
        let (path, snapshot, unkept) =
            (file.path.clone(), file.shelf.snapshot(), file.queue.unkept());
        let make = move |out: Out| {
            let _permit = permit;
            let written = match snapshot {
                Some(snapshot) => snapshot.and_then(|snapshot| write(&snapshot, out, || Ok(()))),
                None => write_closed(&path, &unkept, out),
            };
            written.map_err(|fault| fault.into_trouble(&path))
        };
        Ok(Some(parts(PATIENCE, make)))
    }
}

/// Writes all lines of a file that can't be written now, and was closed for that, with what waits for it.
fn write_closed(path: &Path, unkept: &[Operation], out: Out) -> Result<(), Fault> {
    // Its lock is this process's already.
    let read = File::open(path)?;
    let written_at = read.metadata()?.modified()?;
    let opened = file::open(path, &read, unkept)?;
    write(&Snapshot::of(&opened.database)?, out, || {
        // The writer tries again from time to time, and then what was read may be of two moments.
        let is_same = read.metadata()?.modified()? == written_at;
        let changed = || Fault::System("it was written while it was read: ask again".to_owned());
        is_same.then_some(()).ok_or_else(changed)
    })
}

/// Writes all lines; the last one, without which they are not whole, if `is_true`.
fn write(
    snapshot: &Snapshot,
    out: Out,
    is_true: impl FnOnce() -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut writer = LineWriter::new(out)?;
    for piece in Pieces::of(snapshot.records()?.map(|read| read.map(|(record, _)| record))) {
        if let Some(entry) = Entry::of(piece?) {
            writer.entry(entry)?;
        }
    }
    is_true()?;
    writer.end(false)?;
    Ok(())
}

/// What `make` writes, in a thread that may block.
fn parts(
    patience: Duration,
    make: impl FnOnce(Out) -> Result<(), Trouble> + Send + 'static,
) -> Parts {
    let (parts, taken) = mpsc::channel(AHEAD);
    let runtime = Handle::current();
    let made = tokio::task::spawn_blocking(move || {
        let is_unread = Arc::new(AtomicBool::new(false));
        let buffer = BytesMut::new();
        let out = Out { buffer, parts, patience, runtime, is_unread: Arc::clone(&is_unread) };
        make(out).map_err(|trouble| match is_unread.load(Ordering::Relaxed) {
            true => ExportEnd::Unread(patience),
            false => ExportEnd::Trouble(trouble),
        })
    });
    // How it ended is told behind the last part: there may be no room for it before.
    let end = stream::once(made).filter_map(async |made| match made {
        Ok(end) => end.err().map(Err),
        Err(error) => Some(Err(ExportEnd::Trouble(Trouble { cause: error.to_string() }))),
    });
    ReceiverStream::new(taken).map(Ok).chain(end).boxed()
}

/// Where lines go.
struct Out {
    buffer: BytesMut,
    parts: Sender<Bytes>,
    patience: Duration,
    runtime: Handle,
    /// Whether its reader was given up.
    is_unread: Arc<AtomicBool>,
}

impl Out {
    fn send(&mut self) -> io::Result<()> {
        let part = self.buffer.split().freeze();
        match self.runtime.block_on(self.parts.send_timeout(part, self.patience)) {
            Ok(()) => Ok(()),
            Err(SendTimeoutError::Timeout(_)) => {
                self.is_unread.store(true, Ordering::Relaxed);
                Err(io::ErrorKind::TimedOut.into())
            }
            // Nobody is there to be told.
            Err(SendTimeoutError::Closed(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PART {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(from: usize, to: usize) -> Vec<u8> {
        (from..to).map(|number| u8::try_from(number % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn what_is_written_comes_in_parts_and_whole() {
        let length = 5 * PART + 7;
        let mut parts = parts(PATIENCE, move |mut out| {
            for from in (0..length).step_by(1000) {
                out.write_all(&bytes(from, length.min(from + 1000))).unwrap();
            }
            out.flush().unwrap();
            Ok(())
        });
        let mut all = Vec::new();
        while let Some(part) = parts.next().await {
            let part = part.unwrap();
            assert!(part.len() <= PART);
            all.extend(part);
        }
        assert!(all == bytes(0, length));
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_given_up_and_told() {
        let patience = Duration::from_millis(20);
        let (made, mut is_made) = mpsc::channel(64);
        let parts = parts(patience, move |mut out| {
            let mut cause = None;
            while cause.is_none() {
                cause = out.write_all(&[7; PART]).err().map(|error| error.to_string());
                made.try_send(()).unwrap();
            }
            Err(Trouble { cause: cause.unwrap_or_default() })
        });
        // To its end, without anything being taken.
        let mut made = 0;
        while is_made.recv().await.is_some() {
            made += 1;
        }
        assert_eq!(made, AHEAD + 1, "no more is made than there is room for");
        let parts: Vec<_> = parts.collect().await;
        assert_eq!(parts.len(), AHEAD + 1);
        assert_eq!(parts[AHEAD], Err(ExportEnd::Unread(patience)));
    }

    #[tokio::test]
    async fn trouble_is_told_behind_what_was_read() {
        let trouble = Trouble { cause: "the disk".to_owned() };
        let told = trouble.clone();
        let parts = parts(PATIENCE, move |mut out| {
            out.write_all(&[7; PART]).unwrap();
            Err(told)
        });
        let parts: Vec<_> = parts.collect().await;
        assert_eq!(parts, [Ok(Bytes::from(vec![7; PART])), Err(ExportEnd::Trouble(trouble))]);
    }
}
