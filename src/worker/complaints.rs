//! A worker's stderr on its way to the log: read to its end, cut into lines, told at a bounded rate.
//!
//! Nothing here waits for whoever reads the log, and no line is lost without being counted: how many
//! were kept back is told when their second is over, also if no further line comes, and at the end.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

/// Lines that are told in one window; the others are counted.
const TOLD: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);
/// How much of a line is kept, in bytes; the rest of it is read and dropped.
const KEPT: usize = 4096;

/// What the log is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    Line(String),
    /// So many lines more.
    Suppressed(u32),
}

/// Reads to the end. `keep` takes each line in, and gives what may be told of it.
pub(super) async fn drain(
    mut stderr: impl AsyncRead + Unpin,
    keep: impl Fn(&[u8]) -> Option<String>,
    mut tell: impl FnMut(Complaint),
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut line = Vec::new();
    let mut rate = Rate::default();
    loop {
        let due = rate.due();
        let read = tokio::select! {
            // First: lines without an end must not hide their own count.
            biased;
            () = until(due) => {
                rate.close().into_iter().for_each(&mut tell);
                continue;
            }
            read = stderr.read(&mut buffer) => read,
        };
        let Ok(read @ 1..) = read else { break };
        for &byte in &buffer[..read] {
            if byte == b'\n' {
                keep(&line).into_iter().for_each(|text| rate.take(text, &mut tell));
                line.clear();
            } else if line.len() < KEPT {
                line.push(byte);
            }
        }
    }
    keep(&line).into_iter().for_each(|text| rate.take(text, &mut tell));
    rate.close().into_iter().for_each(&mut tell);
}

async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Which lines are told. A window begins with the first line after the one before.
#[derive(Debug, Default)]
struct Rate {
    ends: Option<Instant>,
    seen: u32,
}

impl Rate {
    fn take(&mut self, text: String, tell: &mut impl FnMut(Complaint)) {
        let now = Instant::now();
        if self.ends.is_some_and(|ends| ends <= now) {
            self.close().into_iter().for_each(&mut *tell);
        }
        self.ends.get_or_insert(now + WINDOW);
        self.seen = self.seen.saturating_add(1);
        if self.seen <= TOLD {
            tell(Complaint::Line(text));
        }
    }

    /// When a count must be told, if there is one.
    fn due(&self) -> Option<Instant> {
        self.ends.filter(|_| self.seen > TOLD)
    }

    /// Ends the window; gives its count, if there is one.
    fn close(&mut self) -> Option<Complaint> {
        let Rate { ends: _, seen } = std::mem::take(self);
        seen.checked_sub(TOLD).filter(|suppressed| *suppressed > 0).map(Complaint::Suppressed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncWriteExt as _, DuplexStream};
    use tokio::task::JoinHandle;

    use super::*;

    type Told = Arc<Mutex<Vec<(Duration, Complaint)>>>;

    /// What is told, and how long after the beginning.
    fn draining() -> (DuplexStream, Told, JoinHandle<()>) {
        let (worker, stderr) = tokio::io::duplex(1 << 20);
        let told = Told::default();
        let began = Instant::now();
        let keep = |line: &[u8]| {
            Some(String::from_utf8_lossy(line).into_owned()).filter(|line| !line.is_empty())
        };
        let drained = tokio::spawn({
            let told = Arc::clone(&told);
            async move {
                let tell = |complaint| told.lock().unwrap().push((began.elapsed(), complaint));
                drain(stderr, keep, tell).await;
            }
        });
        (worker, told, drained)
    }

    fn suppressed(told: &Told) -> Vec<(Duration, u32)> {
        let told = told.lock().unwrap();
        let counts = told.iter().filter_map(|(when, complaint)| match complaint {
            Complaint::Suppressed(count) => Some((*when, *count)),
            Complaint::Line(_) => None,
        });
        counts.collect()
    }

    fn lines(told: &Told) -> Vec<String> {
        let told = told.lock().unwrap();
        let lines = told.iter().filter_map(|(_, complaint)| match complaint {
            Complaint::Line(line) => Some(line.clone()),
            Complaint::Suppressed(_) => None,
        });
        lines.collect()
    }

    /// Lets the reader have all that was written, and time pass.
    async fn pass(time: Duration) {
        tokio::time::sleep(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_count_is_told_when_its_second_is_over_although_no_line_follows() {
        let (mut worker, told, _drained) = draining();
        worker.write_all(&b"x\n".repeat(105)).await.unwrap();
        pass(Duration::from_millis(900)).await;
        assert_eq!((lines(&told).len(), suppressed(&told)), (5, Vec::new()));
        pass(Duration::from_secs(60)).await;
        assert_eq!(suppressed(&told), [(WINDOW, 100)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_count_is_told_at_the_end_of_the_stream() {
        let (mut worker, told, drained) = draining();
        worker.write_all(&b"x\n".repeat(7)).await.unwrap();
        worker.write_all(b"the last words").await.unwrap();
        drop(worker);
        drained.await.unwrap();
        assert_eq!((lines(&told).len(), suppressed(&told)), (5, vec![(Duration::ZERO, 3)]));
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_never_stop_are_counted_second_by_second_and_none_is_lost() {
        let (mut worker, told, drained) = draining();
        for _ in 0..100 {
            worker.write_all(&b"x\n".repeat(10)).await.unwrap();
            pass(Duration::from_millis(50)).await;
        }
        drop(worker);
        drained.await.unwrap();
        let counts = suppressed(&told);
        assert!((5..=6).contains(&counts.len()), "{counts:?}");
        assert_eq!(lines(&told).len(), counts.len() * 5);
        let all = counts.iter().map(|(_, count)| *count).sum::<u32>();
        assert_eq!(usize::try_from(all).unwrap() + lines(&told).len(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_lines_are_all_told_and_leave_nothing_to_count() {
        let (mut worker, told, drained) = draining();
        for at in 0..20 {
            worker.write_all(format!("line {at}\n\n").as_bytes()).await.unwrap();
            pass(Duration::from_millis(300)).await;
        }
        worker.write_all(&b"y".repeat(3 * KEPT)).await.unwrap();
        drop(worker);
        drained.await.unwrap();
        let lines = lines(&told);
        assert_eq!((lines.len(), suppressed(&told)), (21, Vec::new()));
        assert_eq!((lines[0].as_str(), lines[20].len()), ("line 0", KEPT));
    }
}
