//! The protocol over a pair of byte streams: requests with their answers, and what comes unasked.
//!
//! Owns the table of pending requests and two tasks, one that reads lines and one that writes
//! them. A [`Peer`] is a cheap handle to them. It closes once, for ever, when either stream ends or
//! misbehaves; every pending request then fails with [`RequestError::Transport`]. It never blocks
//! on the other side: a request waits a moment for room in the bounded queue towards it, and is refused
//! then. An answer has room of its own, because the other side hangs without it: a side that asks on and
//! on and reads no answers is closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::app_server::decode;
use crate::app_server::lines::{LineLimits, Lines, Piece};
use crate::app_server::message::{self, Call, CallId, Inbound, Line, RpcError, SkippedLine};

/// Bounds of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerLimits {
    /// The longest line that is taken, in bytes; a longer one is skipped, and told as
    /// [`Inbound::Skipped`] or as `RequestError::TooLong`. Default 8 MiB.
    pub max_line_bytes: usize,
    /// The longest line that is taken if it tells back what a caller put in; not less counts than
    /// `max_line_bytes`.
    pub max_echo_bytes: usize,
    /// How many lines that are no message of the protocol close the peer.
    pub max_garbage_lines: u64,
    /// How long one line may take to be written; longer closes the peer. Default 10 s.
    pub write_timeout: Duration,
    /// How many requests may wait to be written.
    pub max_queued_writes: usize,
    /// How many answers may; more close the peer. All questions of all turns may be answered, or
    /// withdrawn, at the same moment: those of 64 turns, of 1,024 each, have room in the default, beside
    /// some that are declined at once.
    pub max_queued_answers: usize,
}

/// How many of the answers that may wait to be written are to questions that never waited.
const MOST_DECLINED: usize = 16_384;

impl PeerLimits {
    /// The same with room for the answers to so many questions that wait.
    pub(crate) fn with_questions(self, most_pending: usize) -> PeerLimits {
        let max_queued_answers =
            most_pending.saturating_add(MOST_DECLINED).min(Semaphore::MAX_PERMITS);
        PeerLimits { max_queued_answers, ..self }
    }
}

impl Default for PeerLimits {
    fn default() -> PeerLimits {
        PeerLimits {
            max_line_bytes: 8 << 20,
            max_echo_bytes: 8 << 20,
            max_garbage_lines: 1000,
            write_timeout: Duration::from_secs(10),
            max_queued_writes: 256,
            max_queued_answers: 64 * 1024 + MOST_DECLINED,
        }
    }
}

/// Why a request has no answer that can be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    /// The other side is gone, or stuck.
    #[error("{method}: {cause}")]
    Transport {
        /// What was asked.
        method: &'static str,
        /// What happened.
        cause: String,
        /// Whether any byte of the request may have reached the other side.
        written: bool,
    },
    /// No answer came in time.
    #[error("{method}: no answer within {}", humantime::format_duration(*.after))]
    Timeout {
        /// What was asked.
        method: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// It answered with an error.
    #[error("{method}: {message} (code {code})")]
    Server {
        /// What was asked.
        method: &'static str,
        /// JSON-RPC's code.
        code: i64,
        /// Its text.
        message: String,
    },
    /// It answered in a line over the limit, which was skipped: what it did can't be known.
    #[error(
        "{method}: the answer has {bytes} bytes, more than limits.max_line_bytes, which is {limit}"
    )]
    TooLong {
        /// What was asked.
        method: &'static str,
        /// How long the answer was.
        bytes: u64,
        /// How long it might have been.
        limit: usize,
        /// Where the list goes on that it was a part of.
        next_cursor: Option<String>,
    },
    /// It answered something else than the protocol says.
    #[error("{method}: the answer can't be read: {cause}")]
    Decode {
        /// What was asked.
        method: &'static str,
        /// What is wrong with it.
        cause: String,
    },
}

/// JSON-RPC's code of Codex's overload answer.
pub(crate) const OVERLOADED: i64 = -32001;

/// How long a request waits for room in the queue: whoever is refused and asks again must not spin.
const ROOM_WITHIN: Duration = Duration::from_secs(1);

/// Said of a side that leaves no room in the queue towards it.
const NOT_READING: &str = "the worker does not read its standard input";

/// A handle to one peer.
#[derive(Debug, Clone)]
pub struct Peer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    next_id: AtomicU64,
    pending: Mutex<HashMap<u64, Pending>>,
    outbound: mpsc::UnboundedSender<Outgoing>,
    // What bounds it.
    room_for_requests: Arc<Semaphore>,
    room_for_answers: Arc<Semaphore>,
    garbage_lines: AtomicU64,
    started_at: Instant,
    // Milliseconds from the start to the last line that came.
    last_heard: AtomicU64,
    closed: watch::Sender<Option<String>>,
    // Why this side closed it: what the other side did wrong.
    misconduct: OnceLock<String>,
}

#[derive(Debug)]
struct Pending {
    answer: oneshot::Sender<Answer>,
}

/// What came back for a request.
#[derive(Debug)]
enum Answer {
    Outcome(Result<Box<RawValue>, RpcError>),
    /// In a line over the limit, of so many bytes.
    TooLong(Box<SkippedLine>),
}

#[derive(Debug)]
struct Outgoing {
    line: Vec<u8>,
    written: Arc<AtomicBool>,
    _room: OwnedSemaphorePermit,
}

/// Takes its entry out of the table when the caller loses interest, so that a cancelled call leaks
/// nothing.
struct PendingGuard<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.inner.pending().remove(&self.id);
    }
}

impl Inner {
    fn pending(&self) -> MutexGuard<'_, HashMap<u64, Pending>> {
        // A panic elsewhere can't leave the map half changed.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_up(&self, cause: String) {
        // First, so that whoever sees the close finds it.
        let _ = self.misconduct.set(cause.clone());
        self.close(cause);
    }

    fn close(&self, cause: String) {
        let first = self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(cause);
            }
            first
        });
        if first {
            // Dropping the senders fails every pending request.
            self.pending().clear();
            self.room_for_requests.close();
        }
    }
}

impl Peer {
    /// Starts to speak. `on_message` is called for everything that comes unasked, in the order of
    /// its arrival, from the reading task: it must not block. It is given the peer, for an answer.
    pub fn start<R, W>(
        reader: R,
        writer: W,
        limits: PeerLimits,
        mut on_message: impl FnMut(&Peer, Inbound) + Send + 'static,
    ) -> Peer
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (outbound, queue) = mpsc::unbounded_channel();
        let room = |most| Arc::new(Semaphore::new(most));
        let inner = Arc::new(Inner {
            next_id: AtomicU64::new(1),
            pending: Mutex::default(),
            outbound,
            room_for_requests: room(limits.max_queued_writes),
            room_for_answers: room(limits.max_queued_answers),
            garbage_lines: AtomicU64::new(0),
            started_at: Instant::now(),
            last_heard: AtomicU64::new(0),
            closed: watch::Sender::new(None),
            misconduct: OnceLock::new(),
        });
        tokio::spawn(
            write_lines(Arc::clone(&inner), writer, queue, limits.write_timeout).in_current_span(),
        );
        let peer = Peer { inner: Arc::clone(&inner) };
        let asked = peer.clone();
        let on_message = move |inbound| on_message(&asked, inbound);
        tokio::spawn(read_lines(inner, reader, limits, on_message).in_current_span());
        peer
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// See [`RequestError`]. A call that is dropped leaves nothing behind; its late answer is
    /// ignored.
    pub async fn request<A: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &impl Serialize,
        timeout: Duration,
    ) -> Result<A, RequestError> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.inner.pending().insert(id, Pending { answer });
        let guard = PendingGuard { inner: &self.inner, id };

        let written = Arc::new(AtomicBool::new(false));
        let transport = |cause: &str| RequestError::Transport {
            method,
            cause: self.close_cause().unwrap_or_else(|| cause.to_owned()),
            written: written.load(Ordering::Acquire),
        };
        let mut is_queued = false;
        let asking = async {
            let room = Arc::clone(&self.inner.room_for_requests).acquire_owned();
            let Ok(room) = tokio::time::timeout(ROOM_WITHIN, room).await else {
                return Some(Err(self.not_sent(method, NOT_READING)));
            };
            // An error: the peer has closed.
            let room = room.ok()?;
            let message = Outbound { id: Some(id), method, params };
            if let Err(error) = self.send(method, &message, room, &written) {
                return Some(Err(error));
            }
            is_queued = true;
            // The peer may have closed between the insertion and the send: then nobody is left to
            // answer, and the table was already cleared.
            if self.close_cause().is_some() {
                return None;
            }
            answered.await.ok().map(Ok)
        };
        let outcome = match tokio::time::timeout(timeout, asking).await {
            Ok(Some(Ok(Answer::Outcome(outcome)))) => outcome,
            Ok(Some(Ok(Answer::TooLong(line)))) => {
                let SkippedLine { bytes, limit, next_cursor, .. } = *line;
                return Err(RequestError::TooLong { method, bytes, limit, next_cursor });
            }
            Ok(Some(Err(error))) => return Err(error),
            Ok(None) => return Err(transport("the connection closed")),
            Err(_) if is_queued => return Err(RequestError::Timeout { method, after: timeout }),
            Err(_) => return Err(transport(NOT_READING)),
        };
        drop(guard);
        let result = outcome.map_err(|RpcError { code, message }| RequestError::Server {
            method,
            code,
            message,
        })?;
        serde_json::from_str(result.get())
            .map_err(|error| RequestError::Decode { method, cause: error.to_string() })
    }

    /// Tells something.
    ///
    /// # Errors
    /// [`RequestError::Transport`] when the peer is closed or its queue is full.
    pub fn notify(&self, method: &'static str) -> Result<(), RequestError> {
        #[derive(Serialize)]
        struct Bare {
            method: &'static str,
        }
        let room = Arc::clone(&self.inner.room_for_requests).try_acquire_owned();
        let room = room.map_err(|_| self.not_sent(method, NOT_READING))?;
        self.send(method, &Bare { method }, room, &Arc::default())
    }

    /// Says no to a request of the other side.
    ///
    /// # Errors
    /// [`RequestError::Transport`] when the peer is closed or its queue is full.
    pub fn decline(&self, call: &Call) -> Result<(), RequestError> {
        self.respond(call, decode::decline(&call.method))
    }

    /// Answers a request of the other side.
    ///
    /// # Errors
    /// [`RequestError::Transport`] when the peer is closed or its queue is full.
    pub(super) fn respond(
        &self,
        call: &Call,
        answer: Result<serde_json::Value, RpcError>,
    ) -> Result<(), RequestError> {
        #[derive(Serialize)]
        struct Answer<'a> {
            id: &'a CallId,
            #[serde(skip_serializing_if = "Option::is_none")]
            result: Option<serde_json::Value>,
            #[serde(skip_serializing_if = "Option::is_none")]
            error: Option<RpcError>,
        }
        let (result, error) = match answer {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        const METHOD: &str = "answer";
        let room = Arc::clone(&self.inner.room_for_answers).try_acquire_owned();
        let room = room.map_err(|error| {
            if matches!(error, TryAcquireError::NoPermits) {
                self.inner.give_up("it asks, and does not read the answers".to_owned());
            }
            self.not_sent(METHOD, NOT_READING)
        })?;
        self.send(METHOD, &Answer { id: &call.id, result, error }, room, &Arc::default())
    }

    /// Why the peer closed; `None` while it is open.
    pub fn close_cause(&self) -> Option<String> {
        self.inner.closed.borrow().clone()
    }

    /// What the other side did that made this side close; `None` where a stream merely ended. A process
    /// whose streams are closed on it ends, most often well: that end explains nothing.
    pub fn misconduct(&self) -> Option<&str> {
        self.inner.misconduct.get().map(String::as_str)
    }

    /// Waits until the peer is closed, and tells why.
    pub async fn closed(&self) -> String {
        let mut closed = self.inner.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(cause) => cause.clone().unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Closes the peer from this side.
    pub fn close(&self, cause: impl Into<String>) {
        self.inner.close(cause.into());
    }

    /// How many lines were no message of the protocol.
    pub fn garbage_lines(&self) -> u64 {
        self.inner.garbage_lines.load(Ordering::Relaxed)
    }

    /// How long ago the other side last wrote a line.
    pub fn silence(&self) -> Duration {
        let heard = Duration::from_millis(self.inner.last_heard.load(Ordering::Relaxed));
        self.inner.started_at.elapsed().saturating_sub(heard)
    }

    fn not_sent(&self, method: &'static str, cause: &str) -> RequestError {
        let cause = self.close_cause().unwrap_or_else(|| cause.to_owned());
        RequestError::Transport { method, cause, written: false }
    }

    fn send(
        &self,
        method: &'static str,
        message: &impl Serialize,
        room: OwnedSemaphorePermit,
        written: &Arc<AtomicBool>,
    ) -> Result<(), RequestError> {
        let line = serde_json::to_vec(message);
        let mut line = line.map_err(|error| self.not_sent(method, &error.to_string()))?;
        line.push(b'\n');
        if let Some(cause) = self.close_cause() {
            return Err(self.not_sent(method, &cause));
        }
        let outgoing = Outgoing { line, written: Arc::clone(written), _room: room };
        self.inner.outbound.send(outgoing).map_err(|_| self.not_sent(method, NOT_READING))
    }
}

#[derive(Serialize)]
struct Outbound<'a, P: Serialize> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    method: &'static str,
    params: &'a P,
}

async fn write_lines(
    inner: Arc<Inner>,
    mut writer: impl AsyncWrite + Unpin,
    mut queue: mpsc::UnboundedReceiver<Outgoing>,
    timeout: Duration,
) {
    let mut closed = inner.closed.subscribe();
    loop {
        let Outgoing { line, written, _room } = tokio::select! {
            biased;
            _ = closed.wait_for(Option::is_some) => return,
            next = queue.recv() => match next {
                Some(outgoing) => outgoing,
                None => return,
            },
        };
        // From here on the other side may have seen it.
        written.store(true, Ordering::Release);
        let write = async {
            writer.write_all(&line).await?;
            writer.flush().await
        };
        match tokio::time::timeout(timeout, write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return inner.close(format!("its standard input is closed: {error}")),
            Err(_) => {
                let timeout = humantime::format_duration(timeout);
                return inner.give_up(format!("it did not read its standard input for {timeout}"));
            }
        }
    }
}

async fn read_lines(
    inner: Arc<Inner>,
    mut reader: impl AsyncRead + Unpin,
    limits: PeerLimits,
    mut on_message: impl FnMut(Inbound),
) {
    let mut lines = Lines::new(LineLimits {
        any: limits.max_line_bytes,
        echo: limits.max_echo_bytes.max(limits.max_line_bytes),
    });
    let mut closed = inner.closed.subscribe();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = tokio::select! {
            biased;
            _ = closed.wait_for(Option::is_some) => return,
            read = reader.read(&mut buffer) => read,
        };
        let mut bytes = match read {
            Ok(0) => {
                if let Some(piece) = lines.rest() {
                    inner.take(piece, &limits, &mut on_message);
                }
                return inner.close("its standard output ended".to_owned());
            }
            Ok(read) => &buffer[..read],
            Err(error) => {
                return inner.close(format!("its standard output can't be read: {error}"));
            }
        };
        while let Some(piece) = lines.next(&mut bytes) {
            inner.take(piece, &limits, &mut on_message);
            if inner.closed.borrow().is_some() {
                return;
            }
        }
    }
}

impl Inner {
    fn take(&self, piece: Piece<'_>, limits: &PeerLimits, on_message: &mut impl FnMut(Inbound)) {
        // A line that does not end is no word: its writer is as good as silent.
        let heard = u64::try_from(self.started_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_heard.store(heard, Ordering::Relaxed);
        let line = match piece {
            Piece::Line(line) => line,
            Piece::Skipped(line) => return self.skip(line, limits, on_message),
        };
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        match message::parse(line) {
            Ok(Line::Inbound(inbound)) => on_message(inbound),
            Ok(Line::Response { id, outcome }) => self.answer(id, Answer::Outcome(outcome)),
            Err(cause) => {
                let count = self.garbage_lines.fetch_add(1, Ordering::Relaxed) + 1;
                // Every power of two: a flood is told without flooding the log.
                if count.is_power_of_two() {
                    let start = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
                    tracing::warn!(
                        count,
                        cause,
                        start,
                        "the worker wrote a line that is no message"
                    );
                }
                if count >= limits.max_garbage_lines {
                    self.give_up(format!("it wrote {count} lines that are no messages"));
                }
            }
        }
    }

    fn skip(
        &self,
        line: Box<SkippedLine>,
        limits: &PeerLimits,
        on_message: &mut impl FnMut(Inbound),
    ) {
        let SkippedLine { bytes, limit, method, thread_id, .. } = &*line;
        tracing::warn!(bytes, limit, method, thread_id, "skipped a line over the limit");
        match line.id.as_ref().and_then(serde_json::Value::as_u64) {
            Some(id) if line.method.is_none() && line.is_answer => {
                self.answer(id, Answer::TooLong(line));
            }
            _ => {
                if line.method.is_none() {
                    let count = self.garbage_lines.fetch_add(1, Ordering::Relaxed) + 1;
                    if count >= limits.max_garbage_lines {
                        self.give_up(format!("it wrote {count} lines that are no messages"));
                    }
                }
                on_message(Inbound::Skipped(line));
            }
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let pending = self.pending().remove(&id);
        match pending {
            // A caller that has gone does not want its answer.
            Some(Pending { answer: waiting }) => drop(waiting.send(answer)),
            None => tracing::debug!(id, "an answer came that nobody waits for"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app_server::decode::News;
    use crate::model::event::{Event, WarningCode};
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, BufReader, DuplexStream, duplex, split};

    fn start(limits: PeerLimits) -> (Peer, DuplexStream, mpsc::UnboundedReceiver<Inbound>) {
        let (ours, theirs) = duplex(1 << 20);
        let (reader, writer) = split(ours);
        let (messages, received) = mpsc::unbounded_channel();
        let peer = Peer::start(reader, writer, limits, move |_, message| {
            let _ = messages.send(message);
        });
        (peer, theirs, received)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn answers_find_their_requests_in_any_order_and_split_at_any_byte() {
        let (peer, theirs, mut received) = start(PeerLimits::default());
        let (reader, mut writer) = split(theirs);
        let other_side = tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            let mut ids = Vec::new();
            for _ in 0..2 {
                let line: Value =
                    serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
                ids.push(line["id"].clone());
            }
            let text = format!(
                "\n  \n{}\n{}\n{}\n",
                json!({"id": ids[1], "result": "zwei ✓"}),
                json!({"method": "warning", "params": {"message": "ä"}}),
                json!({"id": ids[0], "error": {"code": -1, "message": "no"}}),
            );
            for byte in text.as_bytes() {
                writer.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            writer
        });
        let params = json!({});
        let (one, two) = tokio::join!(
            peer.request::<Value>("one", &params, SECOND),
            peer.request::<Value>("two", &params, SECOND),
        );
        assert!(matches!(one, Err(RequestError::Server { code: -1, .. })));
        assert_eq!(two.unwrap(), "zwei ✓");
        let warning = News::Event(Event::warning(WarningCode::Codex, "ä", ""));
        assert!(matches!(received.recv().await, Some(Inbound::Told(told)) if told.news == warning));
        drop(other_side.await.unwrap());
        assert_eq!(peer.closed().await, "its standard output ended");
        assert!(peer.inner.pending().is_empty());
        let refused = peer.request::<Value>("three", &params, SECOND).await;
        assert!(matches!(refused, Err(RequestError::Transport { written: false, .. })));
    }

    #[tokio::test]
    async fn a_dropped_request_leaves_nothing_behind() {
        let (peer, _theirs, _received) = start(PeerLimits::default());
        let params = json!({});
        {
            let request = peer.request::<Value>("one", &params, SECOND);
            tokio::pin!(request);
            assert!(futures::poll!(&mut request).is_pending());
            assert_eq!(peer.inner.pending().len(), 1);
        }
        assert!(peer.inner.pending().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_reads_nothing_closes_the_peer_and_fails_what_is_pending() {
        let (ours, theirs) = duplex(16);
        let (reader, writer) = split(ours);
        let peer = Peer::start(reader, writer, PeerLimits::default(), |_, _| {});
        let params = json!({"text": "x".repeat(64)});
        let error = peer.request::<Value>("one", &params, 60 * SECOND).await.unwrap_err();
        assert!(matches!(error, RequestError::Transport { written: true, .. }), "{error}");
        assert!(peer.closed().await.contains("did not read its standard input"));
        drop(theirs);
    }

    /// A side that reads nothing, and how many requests wait for it: one in its pipe, the others in the
    /// queue, which they fill.
    async fn fill(limits: &PeerLimits) -> (Peer, DuplexStream, Vec<tokio::task::JoinHandle<()>>) {
        let (ours, theirs) = duplex(16);
        let (reader, writer) = split(ours);
        let peer = Peer::start(reader, writer, limits.clone(), |peer, inbound| {
            if let Inbound::Asked(asked) = inbound {
                let _ = peer.decline(&asked.call);
            }
        });
        let asking = (0..limits.max_queued_writes).map(|_| {
            let peer = peer.clone();
            tokio::spawn(async move {
                let _ = peer.request::<Value>("one", &json!({}), 60 * SECOND).await;
            })
        });
        let asking = asking.collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        (peer, theirs, asking)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_a_moment_for_room_and_was_not_written_then() {
        let limits = PeerLimits { max_queued_writes: 4, ..PeerLimits::default() };
        let (peer, theirs, asking) = fill(&limits).await;
        let began = Instant::now();
        let error = peer.request::<Value>("two", &json!({}), 5 * SECOND).await.unwrap_err();
        assert_eq!(began.elapsed(), ROOM_WITHIN, "whoever asks again and again would spin");
        assert!(matches!(error, RequestError::Transport { written: false, .. }), "{error}");
        assert_eq!((peer.close_cause(), peer.inner.pending().len()), (None, asking.len()));
        // There is room again as soon as it reads.
        let mut lines = BufReader::new(theirs).lines();
        let reading = async { while lines.next_line().await.unwrap().unwrap().contains("one") {} };
        let params = json!({});
        let (error, ()) = tokio::join!(peer.request::<Value>("two", &params, 5 * SECOND), reading);
        assert!(matches!(error, Err(RequestError::Timeout { method: "two", .. })), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_room_beside_any_number_of_requests_and_none_is_dropped_in_silence() {
        let limits =
            PeerLimits { max_queued_writes: 4, max_queued_answers: 4, ..PeerLimits::default() };
        let (peer, theirs, _asking) = fill(&limits).await;
        let (reader, mut writer) = split(theirs);
        let ask =
            |id: usize| format!("{{\"id\":{id},\"method\":\"what/request\",\"params\":{{}}}}\n");
        for id in 0..limits.max_queued_writes {
            writer.write_all(ask(id).as_bytes()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(peer.close_cause(), None);
        let mut lines = BufReader::new(reader).lines();
        let mut answers = 0;
        while answers < limits.max_queued_writes {
            answers += usize::from(lines.next_line().await.unwrap().unwrap().contains("error"));
        }
        drop(lines);
        // One that reads no answers is not left waiting for those that have no room.
        let (peer, theirs, _asking) = fill(&limits).await;
        let (_reader, mut writer) = split(theirs);
        for id in 0..=limits.max_queued_writes {
            writer.write_all(ask(id).as_bytes()).await.unwrap();
        }
        assert_eq!(peer.closed().await, "it asks, and does not read the answers");
        assert_eq!(peer.misconduct(), Some("it asks, and does not read the answers"));
    }

    #[tokio::test]
    async fn a_line_at_the_limit_passes_and_one_above_it_is_skipped_and_told() {
        let limits = PeerLimits { max_line_bytes: 100, ..PeerLimits::default() };
        let limits = PeerLimits { max_echo_bytes: 100, ..limits };
        let (peer, mut theirs, mut received) = start(limits);
        let frame = r#"{"method":""}"#.len();
        let line = format!("{{\"method\":\"{}\"}}\n", "m".repeat(100 - frame));
        theirs.write_all(line.as_bytes()).await.unwrap();
        assert!(
            matches!(received.recv().await, Some(Inbound::Told(told)) if told.method.len() == 100 - frame)
        );
        let method = "m".repeat(101 - frame);
        let line = format!("{{\"method\":\"{method}\"}}\n{{\"method\":\"next\"}}\n");
        theirs.write_all(line.as_bytes()).await.unwrap();
        let Some(Inbound::Skipped(skipped)) = received.recv().await else { panic!("not told") };
        assert_eq!((skipped.bytes, skipped.limit, skipped.method), (101, 100, Some(method)));
        assert!(
            matches!(received.recv().await, Some(Inbound::Told(told)) if told.method == "next")
        );
        assert!(peer.close_cause().is_none());
        assert_eq!(peer.garbage_lines(), 0);
    }

    #[tokio::test]
    async fn an_answer_over_the_limit_fails_its_own_call_only_wherever_its_id_stands() {
        let limits = PeerLimits { max_line_bytes: 100, max_echo_bytes: 0, ..PeerLimits::default() };
        let (peer, theirs, mut received) = start(limits);
        let (reader, mut writer) = split(theirs);
        let other_side = tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            let mut ids = Vec::new();
            for _ in 0..3 {
                let line: Value =
                    serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
                ids.push(line["id"].clone());
            }
            let long = "\"},\"id\":99".repeat(100);
            let text = format!(
                "{}\n{}\n{}\n",
                json!({"id": ids[0], "result": {"data": long}}),
                json!({"error": {"code": -1, "message": long}, "id": ids[2]}),
                json!({"id": ids[1], "result": "here"}),
            );
            writer.write_all(text.as_bytes()).await.unwrap();
            writer
        });
        let params = json!({});
        let (one, two, three) = tokio::join!(
            peer.request::<Value>("one", &params, SECOND),
            peer.request::<Value>("two", &params, SECOND),
            peer.request::<Value>("three", &params, SECOND),
        );
        assert!(
            matches!(one, Err(RequestError::TooLong { method: "one", limit: 100, .. })),
            "{one:?}"
        );
        assert_eq!(two.unwrap(), "here");
        assert!(matches!(three, Err(RequestError::TooLong { method: "three", .. })), "{three:?}");
        assert!(received.try_recv().is_err());
        drop(other_side.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_without_an_end_is_no_word_and_takes_no_memory() {
        let (peer, mut theirs, _received) = start(PeerLimits::default());
        theirs.write_all(b"{\"method\":\"hello\"}\n").await.unwrap();
        tokio::time::sleep(SECOND).await;
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..32 {
            theirs.write_all(&chunk).await.unwrap();
        }
        tokio::time::sleep(SECOND).await;
        assert!(peer.silence() >= SECOND, "{:?}", peer.silence());
        theirs.write_all(b"\n{\"method\":\"hello\"}\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(peer.silence() < SECOND, "{:?}", peer.silence());
        assert!(peer.close_cause().is_none());
    }

    #[tokio::test]
    async fn garbage_is_counted_and_skipped_until_its_limit() {
        let limits = PeerLimits { max_garbage_lines: 3, ..PeerLimits::default() };
        let (peer, mut theirs, mut received) = start(limits);
        theirs.write_all(b"what\n\xff\xfe\n{\"method\":\"warning\"}\n").await.unwrap();
        assert!(matches!(received.recv().await, Some(Inbound::Told(_))));
        assert_eq!(peer.garbage_lines(), 2);
        theirs.write_all(b"again\n").await.unwrap();
        assert!(peer.closed().await.contains("3 lines that are no messages"));
    }
}
