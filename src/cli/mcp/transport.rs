//! The lines of standard input and output, a JSON-RPC message each.
//!
//! Of its own because every line gets an answer here: the library's transport drops what is too long and
//! what is no JSON, and whoever wrote that would wait for ever.

use std::future::Future;
use std::io::{self, BufRead, Read as _};
use std::pin::Pin;
use std::sync::Arc;

use rmcp::model::{ErrorData, RequestId};
use rmcp::service::{RoleServer, RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::envelope::Envelope;

/// Longest line that is read as a whole, in bytes: all that a sidecar takes by default, with every
/// character written as an escape.
const LONGEST: u64 = 64 << 20;
/// Some lines of standard input that wait to be seen to. One: they may be long.
const WAITING: usize = 1;

/// A line of the client's.
#[derive(Debug, PartialEq)]
enum Line {
    Whole(Vec<u8>),
    /// Of one that is too long, only what says whom to answer.
    TooLong(Envelope),
}

type Writing = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// Reads from one side and writes to the other.
pub(super) struct Lines<W> {
    lines: mpsc::Receiver<Line>,
    output: Arc<Mutex<W>>,
    /// An error that is on its way; kept, because a receive may be given up half-way.
    answering: Option<Writing>,
    /// Cancelled at the end of the input, and once nobody reads the output.
    is_gone: CancellationToken,
}

/// Those of this process. `is_gone` is cancelled when the client closes its side, of either.
pub(super) fn stdio(is_gone: CancellationToken) -> Lines<tokio::io::Stdout> {
    let nobody_reads = is_gone.clone();
    // A thread of its own: between two writes nothing else tells that nobody reads any more.
    std::thread::spawn(move || {
        let stdout = io::stdout();
        let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
        // Errors and hang-ups are told unasked.
        while matches!(poll(&mut watched, None), Ok(0) | Err(rustix::io::Errno::INTR)) {}
        if watched[0].revents().intersects(PollFlags::ERR | PollFlags::HUP) {
            nobody_reads.cancel();
        }
    });
    Lines::new(io::BufReader::new(io::stdin()), LONGEST, tokio::io::stdout(), is_gone)
}

impl<W: AsyncWrite + Send + Unpin + 'static> Lines<W> {
    fn new(
        input: impl BufRead + Send + 'static,
        longest: u64,
        output: W,
        is_gone: CancellationToken,
    ) -> Lines<W> {
        let (sender, lines) = mpsc::channel(WAITING);
        // A thread of its own: a line that is too long is read through a parser that can't wait.
        std::thread::spawn(move || read(input, longest, &sender));
        Lines { lines, output: Arc::new(Mutex::new(output)), answering: None, is_gone }
    }

    fn write(&self, mut text: Vec<u8>) -> impl Future<Output = io::Result<()>> + Send + 'static {
        text.push(b'\n');
        let output = Arc::clone(&self.output);
        async move {
            let mut output = output.lock().await;
            output.write_all(&text).await?;
            output.flush().await
        }
    }
}

impl<W: AsyncWrite + Send + Unpin + 'static> Transport<RoleServer> for Lines<W> {
    type Error = io::Error;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let text = serde_json::to_vec(&message);
        let writing = text.map(|text| self.write(text));
        async move { writing?.await }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            if let Some(answering) = &mut self.answering {
                let answered = answering.await;
                self.answering = None;
                if answered.is_err() {
                    self.is_gone.cancel();
                    return None;
                }
            }
            let line = tokio::select! {
                line = self.lines.recv() => line,
                () = self.is_gone.cancelled() => None,
            };
            let Some(line) = line else {
                self.is_gone.cancel();
                return None;
            };
            match taken(line) {
                Taken::Message(message) => return Some(*message),
                Taken::Wrong { id, error } => {
                    // Null where no id could be read, as JSON-RPC has it.
                    let answer = json!({ "jsonrpc": "2.0", "id": id, "error": error });
                    self.answering = Some(Box::pin(self.write(answer.to_string().into_bytes())));
                }
                Taken::Nothing => {}
            }
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        self.output.lock().await.flush().await
    }
}

/// What a line comes to.
enum Taken {
    Message(Box<RxJsonRpcMessage<RoleServer>>),
    Wrong {
        id: Option<RequestId>,
        error: ErrorData,
    },
    /// Notifications get no answer.
    Nothing,
}

fn taken(line: Line) -> Taken {
    let (envelope, error) = match line {
        Line::Whole(line) => match serde_json::from_slice(&line) {
            Ok(message) => return Taken::Message(Box::new(message)),
            Err(error) if error.is_data() => (
                Envelope::of(line.as_slice()),
                ErrorData::invalid_request(format!("no message of MCP: {error}"), None),
            ),
            Err(error) => {
                let mut envelope = Envelope::of(line.as_slice());
                // Whatever it was to be.
                envelope.is_answer = false;
                envelope.is_notification = false;
                (envelope, ErrorData::parse_error(format!("no JSON: {error}"), None))
            }
        },
        Line::TooLong(envelope) => {
            let most = LONGEST >> 20;
            let why = format!("the message is longer than {most} MiB, which is the most taken");
            (envelope, ErrorData::invalid_request(why, None))
        }
    };
    let Envelope { id, is_answer, is_notification } = envelope;
    match id {
        // What was asked is answered, if not in a form that can be read.
        Some(id) if is_answer => {
            Taken::Message(Box::new(RxJsonRpcMessage::<RoleServer>::error(error, Some(id))))
        }
        None if is_notification => Taken::Nothing,
        id => Taken::Wrong { id, error },
    }
}

/// Hands on the lines until the input ends or nobody takes them any more.
fn read(mut input: impl BufRead, longest: u64, lines: &mpsc::Sender<Line>) {
    loop {
        let mut line = Vec::new();
        match (&mut input).take(longest).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let is_whole = line.ends_with(b"\n") || (line.len() as u64) < longest;
        let line = if is_whole {
            let text = line.trim_ascii();
            let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            if text.is_empty() {
                continue;
            }
            Line::Whole(text.to_vec())
        } else {
            let mut rest = UntilNewline { input: &mut input, is_over: false };
            let envelope = Envelope::of(line.as_slice().chain(&mut rest));
            drop(line);
            if io::copy(&mut rest, &mut io::sink()).is_err() {
                return;
            }
            Line::TooLong(envelope)
        };
        if lines.blocking_send(line).is_err() {
            return;
        }
    }
}

/// The rest of a line.
struct UntilNewline<'a, R> {
    input: &'a mut R,
    is_over: bool,
}

impl<R: BufRead> io::Read for UntilNewline<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.is_over {
            return Ok(0);
        }
        let available = self.input.fill_buf()?;
        let most = available.len().min(into.len());
        let newline = available[..most].iter().position(|byte| *byte == b'\n');
        let length = newline.unwrap_or(most);
        into[..length].copy_from_slice(&available[..length]);
        self.input.consume(length + usize::from(newline.is_some()));
        self.is_over = newline.is_some();
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// What comes of an input: the messages that were received, and the lines that were written.
    async fn received(input: &str, longest: u64) -> (Vec<Value>, Vec<Value>) {
        let (mine, theirs) = tokio::io::duplex(1 << 20);
        let is_gone = CancellationToken::new();
        let input = io::Cursor::new(input.to_owned().into_bytes());
        let mut lines = Lines::new(input, longest, mine, is_gone.clone());
        let mut messages = Vec::new();
        while let Some(message) = lines.receive().await {
            messages.push(serde_json::to_value(message).unwrap());
        }
        assert!(is_gone.is_cancelled());
        drop(lines);
        let mut written = String::new();
        let mut theirs = theirs;
        theirs.read_to_string(&mut written).await.unwrap();
        let written = written.lines().map(|line| serde_json::from_str(line).unwrap());
        (messages, written.collect())
    }

    fn errors(written: &[Value]) -> Vec<(Value, i64)> {
        let parts = |line: &Value| (line["id"].clone(), line["error"]["code"].as_i64().unwrap());
        written.iter().map(parts).collect()
    }

    #[tokio::test]
    async fn every_line_is_a_message_or_gets_an_error() {
        let input = "\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\r\n\n\
                     no JSON\n\
                     {\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\",\n\
                     {\"jsonrpc\":\"2.0\",\"id\":3,\"method\":7}\n\
                     [1]\n\
                     {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":7}\n\
                     {\"jsonrpc\":\"2.0\",\"id\":\"4\",\"error\":\"odd\"}\n\
                     {\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"ping\"}";
        let (messages, written) = received(input, LONGEST).await;
        let ids: Vec<&Value> = messages.iter().map(|message| &message["id"]).collect();
        // The fourth was to be an answer: it is one, if an error.
        assert_eq!(ids, [&json!(1), &json!("4"), &json!(5)]);
        assert_eq!(messages[1]["error"]["code"], -32600);
        let expected =
            [(Value::Null, -32700), (json!(2), -32700), (json!(3), -32600), (Value::Null, -32600)];
        assert_eq!(errors(&written), expected);
        assert!(written[0].as_object().unwrap().contains_key("id"));
    }

    #[tokio::test]
    async fn what_is_too_long_is_answered_wherever_its_id_stands_and_the_next_line_counts() {
        let long = "x\\\"}".repeat(1000);
        let input = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{{\"id\":9,\"a\":\"{long}\"}}}}\n\
             {{\"method\":\"tools/call\",\"params\":[[{{\"id\":9,\"a\":\"{long}\"}}]],\"id\":\"z\"}}\n\
             {{\"method\":\"notifications/progress\",\"params\":\"{long}\"}}\n\
             {long}\n\
             {{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"ping\"}}\n\
             {{\"id\":3,\"result\":\"{long}\"}}"
        );
        for longest in [64, 300] {
            let (messages, written) = received(&input, longest).await;
            let ids: Vec<&Value> = messages.iter().map(|message| &message["id"]).collect();
            assert_eq!(ids, [&json!(2), &json!(3)]);
            let expected = [(json!(1), -32600), (json!("z"), -32600), (Value::Null, -32600)];
            assert_eq!(errors(&written), expected);
        }
    }
}
