//! Takes secrets out of texts and byte streams before anybody reads them.
//!
//! A provider that refuses a key may repeat it, a command of the model may print its environment: a
//! worker's streams are read through a [`Redactor`], so that whatever becomes of what they say (an
//! event, an error, a log line, a status) holds no secret. It knows what the secrets are and nothing
//! else: no Codex, no JSON.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use memchr::memmem::Finder;
use tokio::io::{AsyncRead, ReadBuf};

/// What stands where a secret stood.
pub(crate) const REDACTED: &str = "[redacted]";

/// A shorter text is no secret: `none`, `dummy`, `x` are given for keys where a provider wants none,
/// and taking every such word out of all texts would only garble them.
const SHORTEST: usize = 8;

/// The secrets, in every way in which they are looked for: as they are, escaped as in a JSON text
/// and as in one within another, and percent-encoded as in an address. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    // Longest first: where one secret begins as another one does, the longer one is taken out.
    forms: Arc<Vec<Finder<'static>>>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").field("forms", &self.forms.len()).finish()
    }
}

impl Redactor {
    /// Knows these secrets. Those of fewer than eight bytes are none.
    pub(crate) fn new(secrets: impl IntoIterator<Item = String>) -> Redactor {
        let mut forms = BTreeSet::new();
        for secret in secrets {
            let secret = secret.trim();
            if secret.len() < SHORTEST {
                continue;
            }
            // A provider's body is JSON that stands in a text of JSON; some escape slashes, too.
            for plain in [secret.to_owned(), secret.replace('/', "\\/")] {
                let escaped = json_escaped(&plain);
                forms.insert(json_escaped(&escaped));
                forms.insert(escaped);
                forms.insert(plain);
            }
            let once = json_escaped(secret).replace('/', "\\/");
            forms.insert(json_escaped(&once));
            forms.insert(once);
            forms.insert(percent_encoded(secret, true));
            forms.insert(percent_encoded(secret, false));
        }
        let mut forms: Vec<String> = forms.into_iter().collect();
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        let forms = forms.iter().map(|form| Finder::new(form.as_bytes()).into_owned()).collect();
        Redactor { forms: Arc::new(forms) }
    }

    /// The text without them.
    #[cfg(test)]
    pub(crate) fn text(&self, text: &str) -> String {
        let mut redacted = Vec::with_capacity(text.len());
        let mut stream = Stream::default();
        stream.take(self, text.as_bytes(), &mut redacted);
        stream.end(&mut redacted);
        String::from_utf8_lossy(&redacted).into_owned()
    }

    /// The stream without them, wherever it is cut into reads. What may be the beginning of a secret
    /// is held back until it is none; the end of a line is never in one, so that no line waits.
    pub(crate) fn reader<R: AsyncRead + Unpin>(&self, inner: R) -> RedactedReader<R> {
        RedactedReader {
            inner,
            redactor: self.clone(),
            stream: Stream::default(),
            raw: vec![0; 32 * 1024].into_boxed_slice(),
            ready: Vec::new(),
            given: 0,
        }
    }

    /// Where the first secret stands in these bytes, and how long it is.
    fn find(&self, bytes: &[u8]) -> Option<(usize, usize)> {
        let found = self
            .forms
            .iter()
            .filter_map(|form| form.find(bytes).map(|at| (at, form.needle().len())));
        found.min_by_key(|(at, length)| (*at, std::cmp::Reverse(*length)))
    }

    /// How many of the last bytes may be the beginning of a secret.
    fn beginning_at_the_end(&self, bytes: &[u8]) -> usize {
        let begins = |form: &Finder<'static>| {
            let needle = form.needle();
            (1..needle.len().min(bytes.len() + 1))
                .rev()
                .find(|length| bytes.ends_with(&needle[..*length]))
        };
        self.forms.iter().filter_map(begins).max().unwrap_or_default()
    }
}

/// A text that comes in pieces, on its way through a [`Redactor`].
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    stream: Stream,
}

impl Pieces {
    /// What of the text can be shown once this piece has come; the rest is held back, because a secret
    /// may begin with it.
    pub(crate) fn take(&mut self, redactor: &Redactor, piece: String) -> String {
        if redactor.forms.is_empty() {
            return piece;
        }
        let mut ready = Vec::with_capacity(piece.len());
        self.stream.take(redactor, piece.as_bytes(), &mut ready);
        String::from_utf8_lossy(&ready).into_owned()
    }

    /// What was held back, once the text is over.
    pub(crate) fn end(mut self) -> String {
        let mut ready = Vec::new();
        self.stream.end(&mut ready);
        String::from_utf8_lossy(&ready).into_owned()
    }
}

/// A stream on its way through a redactor.
#[derive(Debug, Default)]
struct Stream {
    held: Vec<u8>,
}

impl Stream {
    fn take(&mut self, redactor: &Redactor, bytes: &[u8], ready: &mut Vec<u8>) {
        let mut joined = Vec::new();
        let mut rest = if self.held.is_empty() {
            bytes
        } else {
            joined.append(&mut self.held);
            joined.extend_from_slice(bytes);
            &joined
        };
        while let Some((at, length)) = redactor.find(rest) {
            ready.extend_from_slice(&rest[..at]);
            ready.extend_from_slice(REDACTED.as_bytes());
            rest = &rest[at + length..];
        }
        let held = redactor.beginning_at_the_end(rest);
        let (clear, beginning) = rest.split_at(rest.len() - held);
        ready.extend_from_slice(clear);
        self.held = beginning.to_vec();
    }

    /// The stream has ended: what is held is no secret any more, unless it ended within one.
    fn end(&mut self, ready: &mut Vec<u8>) {
        let held = std::mem::take(&mut self.held);
        if held.len() < SHORTEST {
            ready.extend_from_slice(&held);
        } else {
            ready.extend_from_slice(REDACTED.as_bytes());
        }
    }
}

/// A stream without secrets; see [`Redactor::reader`].
#[derive(Debug)]
pub(crate) struct RedactedReader<R> {
    inner: R,
    redactor: Redactor,
    stream: Stream,
    raw: Box<[u8]>,
    // What has gone through and was not read yet: from `given` on.
    ready: Vec<u8>,
    given: usize,
}

impl<R: AsyncRead + Unpin> AsyncRead for RedactedReader<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.get_mut();
        if this.redactor.forms.is_empty() {
            return Pin::new(&mut this.inner).poll_read(context, buffer);
        }
        while this.given == this.ready.len() {
            this.ready.clear();
            this.given = 0;
            let mut raw = ReadBuf::new(&mut this.raw);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut raw))?;
            if raw.filled().is_empty() {
                this.stream.end(&mut this.ready);
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            } else {
                this.stream.take(&this.redactor, raw.filled(), &mut this.ready);
            }
        }
        let left = &this.ready[this.given..];
        let given = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..given]);
        this.given += given;
        Poll::Ready(Ok(()))
    }
}

/// The text as it stands between the quotes of a JSON text.
fn json_escaped(text: &str) -> String {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.unwrap_or_default().to_owned()
}

fn percent_encoded(text: &str, upper_case: bool) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else if upper_case {
            let _ = write!(encoded, "%{byte:02X}");
        } else {
            let _ = write!(encoded, "%{byte:02x}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn redactor(secrets: &[&str]) -> Redactor {
        Redactor::new(secrets.iter().map(|secret| (*secret).to_owned()))
    }

    #[test]
    fn a_secret_in_pieces_is_taken_out_of_the_text_that_they_make() {
        let redactor = redactor(&["sk-canary-1"]);
        let mut text = Pieces::default();
        let shown = ["the key is sk", "-can", "ary-", "1; bye✓ s", "k"]
            .map(|piece| text.take(&redactor, piece.to_owned()));
        assert_eq!(shown, ["the key is ", "", "", "[redacted]; bye✓ ", ""]);
        assert_eq!(text.end(), "sk");
    }

    #[test]
    fn a_secret_is_taken_out_in_every_form_and_a_word_is_none() {
        let redactor = redactor(&["sk-canary-1", "pass\"w/ord+", "none", "sk-canary-1-longer"]);
        for (text, expected) in [
            ("key sk-canary-1!", "key [redacted]!"),
            ("sk-canary-1sk-canary-1", "[redacted][redacted]"),
            ("sk-canary-1-longer", "[redacted]"),
            ("sk-canary-", "[redacted]"),
            ("sk-can sk", "sk-can sk"),
            (r#"{"m":"pass\"w/ord+"}"#, r#"{"m":"[redacted]"}"#),
            (r#"{"body":"{\"m\":\"pass\\\"w/ord+\"}"}"#, r#"{"body":"{\"m\":\"[redacted]\"}"}"#),
            (r#"{"m":"pass\"w\/ord+"}"#, r#"{"m":"[redacted]"}"#),
            (r#"{"body":"{\"m\":\"pass\\\"w\\/ord+\"}"}"#, r#"{"body":"{\"m\":\"[redacted]\"}"}"#),
            ("?key=pass%22w%2Ford%2B&x", "?key=[redacted]&x"),
            ("?key=pass%22w%2ford%2b&x", "?key=[redacted]&x"),
            ("none of it", "none of it"),
            ("sk-canarysk-canary-1", "sk-canary[redacted]"),
        ] {
            assert_eq!(redactor.text(text), expected);
        }
        assert!(!format!("{redactor:?}").contains("canary"));
    }

    /// Gives what it has in these pieces.
    struct Chunks(Vec<Vec<u8>>);

    impl AsyncRead for Chunks {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            if !self.0.is_empty() {
                buffer.put_slice(&self.0.remove(0));
            }
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn no_cut_of_a_stream_lets_a_secret_through_or_changes_anything_else(
            words in prop::collection::vec(
                prop_oneof![
                    Just("sk-aaaaaaaa"), Just("sk-aaaab"), Just("sk-"), Just("a"), Just("aaaaaaa"),
                    Just("sk-aaaaaaa"), Just("\n"), Just("✓")
                ],
                0..40,
            ),
            cuts in prop::collection::vec(1_usize..7, 1..60),
        ) {
            let redactor = redactor(&["sk-aaaaaaaa", "sk-aaaab"]);
            // An end of its own, so that nothing is held at the end of the stream.
            let text = words.concat() + "\n";
            let expected = text.replace("sk-aaaaaaaa", REDACTED).replace("sk-aaaab", REDACTED);
            let mut pieces = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, tail) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece.to_vec());
                rest = tail;
            }
            let read = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
                let mut read = Vec::new();
                redactor.reader(Chunks(pieces)).read_to_end(&mut read).await.unwrap();
                read
            });
            prop_assert_eq!(String::from_utf8(read).unwrap(), expected);
        }
    }
}
