//! Logging: one subscriber for the process, on stderr.
//!
//! stdout belongs to what a subcommand prints. Nothing here, and nobody who logs, may be given a
//! key or a token. Nobody who logs ever waits for a reader of stderr: lines go into a queue of bounded
//! size, which a thread of its own writes out; what finds the queue full is dropped and counted, and the
//! count is logged once somebody reads again.

use std::io::{self, IsTerminal as _};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Most bytes of the log that wait for a reader of stderr.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// How long the end of the process may wait for a reader of stderr.
pub(crate) const FLUSH_TIME: Duration = Duration::from_secs(1);

/// What a line in the queue costs beside its bytes.
const LINE_OVERHEAD: usize = 64;

/// What logs for each connection and stream of each client: left out below an error, unless the filter
/// names it.
const CHATTY: [&str; 4] = ["h2", "hyper", "hyper_util", "tonic"];

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Lines for people.
    Text,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter's syntax is wrong.
    #[error("{filter:?} is no log filter: {source}")]
    Filter {
        filter: String,
        /// What is wrong.
        source: tracing_subscriber::filter::ParseError,
    },
    /// No thread can be started for it.
    #[error("the log's thread can't be started: {0}")]
    Thread(#[source] io::Error),
    /// The process has a subscriber already.
    #[error("logging is already set up")]
    Twice,
}

/// Sets up logging for the whole process; once.
pub fn init(format: LogFormat, filter: &str) -> Result<Log, TelemetryError> {
    let filter = with_quiet_libraries(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let log = Log::start(io::stderr(), MAX_QUEUED_BYTES).map_err(TelemetryError::Thread)?;
    let writer = log.clone();
    let lines = fmt()
        .with_env_filter(filter)
        .with_writer(move || writer.clone())
        // It would tell about a closed stderr on stderr, and panic.
        .log_internal_errors(false);
    let result = match format {
        // Fields at the top of the object, where collectors look for them.
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).try_init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colours).try_init()
        }
    };
    result.map_err(|_| TelemetryError::Twice)?;
    Ok(log)
}

fn with_quiet_libraries(filter: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let named = |library: &str| {
        filter.split(',').any(|directive| {
            let target = directive.trim().strip_prefix(library);
            target.is_some_and(|rest| rest.is_empty() || rest.starts_with(['=', ':', '[']))
        })
    };
    let quiet = CHATTY.into_iter().filter(|library| !named(library));
    let quiet = quiet.map(|library| format!(",{library}=error"));
    EnvFilter::builder().parse(filter.to_owned() + &quiet.collect::<String>())
}

/// Where lines are written that must not wait for a reader. Clones write to the same queue.
#[derive(Debug, Clone)]
pub struct Log {
    queue: mpsc::Sender<Queued>,
    account: Arc<Account>,
}

#[derive(Debug)]
struct Account {
    most_bytes: usize,
    queued_bytes: AtomicUsize,
    dropped: AtomicU64,
}

#[derive(Debug)]
enum Queued {
    Line(Vec<u8>),
    /// Tells that all before it is written.
    Flush(mpsc::Sender<()>),
}

impl Log {
    /// One whose thread writes to `output`, for as long as the process lives.
    fn start(mut output: impl io::Write + Send + 'static, most_bytes: usize) -> io::Result<Log> {
        let (queue, queued) = mpsc::channel();
        let account = Arc::new(Account {
            most_bytes,
            queued_bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
        });
        let books = Arc::clone(&account);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            for next in queued {
                match next {
                    Queued::Line(line) => {
                        // Where it can't be written nobody is left to be told.
                        let _ = output.write_all(&line);
                        books.queued_bytes.fetch_sub(cost(&line), Ordering::Relaxed);
                        let dropped = books.dropped.swap(0, Ordering::Relaxed);
                        if dropped > 0 {
                            tracing::warn!(
                                dropped,
                                "lines of the log were dropped, because nobody read stderr"
                            );
                        }
                    }
                    Queued::Flush(done) => {
                        // Whoever asked may have gone.
                        let _ = done.send(());
                    }
                }
            }
        })?;
        Ok(Log { queue, account })
    }

    /// Puts a line on stderr, if there is room in the queue.
    pub(crate) fn tell(&self, line: &str) {
        self.enqueue(format!("{line}\n").into_bytes());
    }

    /// Waits until all that was logged so far is written, for as long as `limit`.
    pub(crate) fn flush(&self, limit: Duration) {
        let (done, written) = mpsc::channel();
        if self.queue.send(Queued::Flush(done)).is_ok() {
            // Later than that, it is lost with the process.
            let _ = written.recv_timeout(limit);
        }
    }

    fn enqueue(&self, line: Vec<u8>) {
        let Account { most_bytes, queued_bytes, dropped } = &*self.account;
        let cost = cost(&line);
        let before = queued_bytes.fetch_add(cost, Ordering::Relaxed);
        let fits = before + cost <= *most_bytes;
        if !fits || self.queue.send(Queued::Line(line)).is_err() {
            queued_bytes.fetch_sub(cost, Ordering::Relaxed);
            dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn cost(line: &[u8]) -> usize {
    line.len() + LINE_OVERHEAD
}

impl io::Write for Log {
    /// Takes a whole line at once, as `tracing_subscriber` writes them.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.enqueue(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Logs panics instead of writing them to stderr, which may have no reader.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!("{panic}\n{backtrace}");
    }));
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// An output whose reader takes what it is told to, and nothing before.
    #[derive(Debug, Clone)]
    struct Pipe {
        room: Arc<Mutex<mpsc::Receiver<()>>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl io::Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.room.lock().unwrap().recv();
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_was_dropped_is_counted_and_told() {
        let (read, room) = mpsc::channel();
        let written = Arc::default();
        let pipe = Pipe { room: Arc::new(Mutex::new(room)), written: Arc::clone(&written) };
        let room_for_three = 3 * (LINE_OVERHEAD + 3);
        let log = Log::start(pipe, room_for_three).unwrap();
        for number in 0..9 {
            log.tell(&format!("{number:02}"));
        }
        assert_eq!(log.account.dropped.load(Ordering::Relaxed), 6);
        log.flush(Duration::from_millis(1));
        assert!(written.lock().unwrap().is_empty());

        drop(read);
        log.flush(Duration::from_secs(20));
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "00\n01\n02\n");
        assert_eq!(log.account.dropped.load(Ordering::Relaxed), 0);
        assert_eq!(log.account.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_libraries_say_of_single_connections_is_left_out_unless_it_is_asked_for() {
        let filter = |text| with_quiet_libraries(text).unwrap().to_string();
        for text in ["info", "debug", "info,h2o=debug", "codex_sidecar::pool=debug"] {
            let filter = filter(text);
            for library in CHATTY {
                assert!(filter.contains(&format!("{library}=error")), "{text}: {filter}");
            }
        }
        for text in ["info,h2=debug", "h2::proto=debug,info", "info, h2"] {
            let filter = filter(text);
            assert!(!filter.contains("h2=error") && filter.contains("tonic=error"), "{filter}");
        }
        assert!(with_quiet_libraries("info,h2=loud").is_err());
    }
}
