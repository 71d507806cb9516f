//! The ledger as JSON lines: for a backup, for another machine, and for people.
//!
//! The first line is the header, the last one counts the others by kind, so that a file that was cut is
//! noticed. Between them each line is something kept, whole by itself, in no order that matters. Written
//! and read one by one: no more than a line is in memory.

mod shape;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{self, BufRead, Read as _, Write};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::model::id::ThreadId;
use crate::registry::latest::LatestThread;
use crate::registry::ledger::record::{self, Operation};
use crate::registry::ledger::{Change, KeptBinding, KeptFacts, KeptMark, KeptTokens, KeptTurn};
use shape::{EndLine, HeaderLine, Line};

/// What the header calls these lines.
const FORMAT: &str = "codex-sidecar state";

/// The version of the lines that is written, and the newest that is read.
const VERSION: u64 = 1;

/// The longest line that is read, in bytes. The longest that is written is that of a turn, with the two
/// largest events that Codex's longest line can make.
const LONGEST_LINE: u64 = 512 << 20;

/// What the file of a ledger begins with.
pub(crate) const LEDGER: &[u8] = b"redb";

/// What some editors put before a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Something kept, whole.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry {
    Context(Box<KeptBinding>),
    EvictedContext(KeptMark),
    Thread(ThreadId, KeptFacts),
    Turn(Box<KeptTurn>),
    /// The thread that was worked with last in a directory, of those without a context.
    Directory(PathBuf, LatestThread),
    /// How many tokens were used on the latest day on which any were.
    Tokens(KeptTokens),
}

impl Entry {
    /// Appends what makes it so in the table, whatever is kept of it.
    pub(super) fn append_operations(self, to: &mut Vec<Operation>) {
        if let Entry::Thread(thread_id, KeptFacts { facts, at }) = &self {
            return to.push(record::put_facts(thread_id, facts, *at));
        }
        for change in self.into_changes() {
            record::append_operations(&change, to);
        }
    }

    /// The changes that make it so. They say nothing of when the facts of a thread were told.
    pub(crate) fn into_changes(self) -> Vec<Change> {
        match self {
            Entry::Context(kept) => vec![Change::Bind(kept.key, kept.binding)],
            Entry::EvictedContext(kept) => vec![Change::Mark(kept)],
            Entry::Thread(thread_id, kept) => vec![Change::Facts(thread_id, kept.facts)],
            Entry::Turn(kept) => {
                vec![Change::ForgetTurn(kept.turn_id.clone()), Change::StartTurn(kept)]
            }
            Entry::Directory(directory, latest) => vec![Change::Directory(directory, latest)],
            Entry::Tokens(tokens) => vec![Change::Tokens(tokens)],
        }
    }
}

/// How many there are of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) contexts: u64,
    pub(crate) evicted_contexts: u64,
    pub(crate) threads: u64,
    pub(crate) turns: u64,
    pub(crate) directories: u64,
    /// Days of which it is known how many tokens were used.
    pub(crate) tokens: u64,
}

impl Counts {
    pub(crate) fn count(&mut self, entry: &Entry) {
        let counter = match entry {
            Entry::Context(_) => &mut self.contexts,
            Entry::EvictedContext(_) => &mut self.evicted_contexts,
            Entry::Thread(..) => &mut self.threads,
            Entry::Turn(_) => &mut self.turns,
            Entry::Directory(..) => &mut self.directories,
            Entry::Tokens(_) => &mut self.tokens,
        };
        *counter += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        let &Counts { contexts, evicted_contexts, threads, turns, directories, tokens } = self;
        // An end says whatever its writer wrote.
        let all = [contexts, evicted_contexts, threads, turns, directories, tokens];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// Writes lines.
#[derive(Debug)]
pub(crate) struct LineWriter<W> {
    out: W,
    counts: Counts,
}

impl<W: Write> LineWriter<W> {
    /// Begins with the header.
    pub(crate) fn new(out: W) -> io::Result<LineWriter<W>> {
        let mut writer = LineWriter { out, counts: Counts::default() };
        writer.line(&Line::Header(HeaderLine {
            format: FORMAT.to_owned(),
            version: VERSION,
            sidecar_version: env!("CARGO_PKG_VERSION").to_owned(),
            create_time: SystemTime::now(),
        }))?;
        Ok(writer)
    }

    pub(crate) fn entry(&mut self, entry: Entry) -> io::Result<()> {
        self.counts.count(&entry);
        self.line(&entry.into())
    }

    /// Ends with the counts; `partial` where something could not be read.
    pub(crate) fn end(mut self, partial: bool) -> io::Result<(W, Counts)> {
        self.line(&Line::End(EndLine::new(self.counts, partial)))?;
        self.out.flush()?;
        Ok((self.out, self.counts))
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }
}

/// Why a line, or what should be there, was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LineFault {
    /// Its number, from 1; of what is missing the number of the last one that is there.
    pub(crate) line: u64,
    pub(crate) problem: String,
    /// Whether nothing of the rest can be taken either.
    pub(crate) is_fatal: bool,
}

/// Reads lines. It goes on behind a fault, unless that is fatal.
#[derive(Debug)]
pub(crate) struct LineReader<R> {
    from: R,
    line: u64,
    state: ReaderState,
    counts: Counts,
    /// How many lines there are that may be something kept, and can't be taken.
    untaken: u64,
    /// A line that a fault came before.
    pending: Option<Line>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReaderState {
    /// The header comes.
    AtStart,
    /// What is kept comes.
    Within,
    /// The last line was there.
    AtEnd,
    Over,
}

impl<R: BufRead> LineReader<R> {
    pub(crate) fn new(from: R) -> LineReader<R> {
        let (state, counts) = (ReaderState::AtStart, Counts::default());
        LineReader { from, line: 0, state, counts, untaken: 0, pending: None }
    }

    fn fault(&self, problem: impl Into<String>) -> LineFault {
        LineFault { line: self.line, problem: problem.into(), is_fatal: false }
    }

    fn fatal(&mut self, problem: impl Into<String>) -> LineFault {
        self.state = ReaderState::Over;
        LineFault { line: self.line, problem: problem.into(), is_fatal: true }
    }

    /// What comes when there is no further line.
    fn over(&mut self) -> Option<LineFault> {
        match std::mem::replace(&mut self.state, ReaderState::Over) {
            ReaderState::AtEnd | ReaderState::Over => None,
            // What there was can't be taken, which was told.
            ReaderState::AtStart if self.untaken > 0 => None,
            ReaderState::AtStart => Some(self.fatal("there is nothing in it")),
            ReaderState::Within => {
                Some(self.fault("the line of kind \"end\" is not there: it was cut"))
            }
        }
    }

    /// Takes a line that is one; gives what is kept, if it is that.
    fn take(&mut self, line: Line) -> Result<Option<Entry>, LineFault> {
        match (self.state, &line) {
            (ReaderState::AtStart, Line::Header(header)) => {
                let HeaderLine { format, version, sidecar_version, create_time: _ } = header;
                if format != FORMAT {
                    let problem = format!("format {format:?} is not {FORMAT:?}");
                    return Err(self.fatal(problem));
                }
                if *version > VERSION {
                    let problem = format!(
                        "sidecar {sidecar_version} wrote version {version} of these lines; this one \
                         reads up to {VERSION}: update it"
                    );
                    return Err(self.fatal(problem));
                }
                self.state = ReaderState::Within;
                return Ok(None);
            }
            (ReaderState::AtStart, _) => {
                self.state = ReaderState::Within;
                // Taken all the same where a part is wanted.
                self.pending = Some(line);
                return Err(self.fault("the first line is not of kind \"header\": it was cut"));
            }
            (ReaderState::AtEnd, _) => {
                return Err(self.fault("comes after the line of kind \"end\""));
            }
            (ReaderState::Within, Line::Header(_)) => {
                return Err(self.fault("is a second header"));
            }
            (ReaderState::Within, Line::End(end)) => {
                self.state = ReaderState::AtEnd;
                if end.partial {
                    return Err(self.fault(
                        "these are the parts of a damaged state that could be read, and not all",
                    ));
                }
                // What could not be taken was told.
                let is_told = end.counts().total() == self.counts.total() + self.untaken;
                if end.counts() != self.counts && !(is_told && self.untaken > 0) {
                    let problem =
                        format!("it counts {}, and there are {}", end.counts(), self.counts);
                    return Err(self.fault(problem));
                }
                return Ok(None);
            }
            (ReaderState::Within | ReaderState::Over, _) => {}
        }
        self.entry(line).map(Some)
    }

    fn entry(&mut self, line: Line) -> Result<Entry, LineFault> {
        let entry = match line {
            Line::Context(line) => (*line).try_into().map(|kept| Entry::Context(Box::new(kept))),
            Line::EvictedContext(line) => line.try_into().map(Entry::EvictedContext),
            Line::Thread(line) => {
                (*line).try_into().map(|(thread_id, facts)| Entry::Thread(thread_id, facts))
            }
            Line::Turn(line) => (*line).try_into().map(|kept| Entry::Turn(Box::new(kept))),
            Line::Directory(line) => {
                line.try_into().map(|(directory, latest)| Entry::Directory(directory, latest))
            }
            Line::Tokens(line) => Ok(Entry::Tokens(line.into())),
            Line::Header(_) | Line::End(_) => Err("is in the wrong place".to_owned()),
        };
        let entry = entry.map_err(|problem| {
            self.untaken += 1;
            self.fault(problem)
        })?;
        self.counts.count(&entry);
        Ok(entry)
    }
}

impl<R: BufRead> Iterator for LineReader<R> {
    type Item = Result<Entry, LineFault>;

    fn next(&mut self) -> Option<Result<Entry, LineFault>> {
        loop {
            if self.state == ReaderState::Over {
                return None;
            }
            let line = match self.pending.take().map_or_else(|| self.read(), |line| Ok(Some(line)))
            {
                Ok(Some(line)) => line,
                Ok(None) => return self.over().map(Err),
                Err(fault) => return Some(Err(fault)),
            };
            if let Some(taken) = self.take(line).transpose() {
                return Some(taken);
            }
        }
    }
}

impl<R: BufRead> LineReader<R> {
    /// The next line that is not blank.
    fn read(&mut self) -> Result<Option<Line>, LineFault> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = (&mut self.from).take(LONGEST_LINE).read_until(b'\n', &mut bytes);
            match read {
                Ok(0) => return Ok(None),
                Ok(_) => self.line += 1,
                Err(error) => return Err(self.fatal(format!("can't be read: {error}"))),
            }
            if !bytes.trim_ascii().is_empty() {
                break;
            }
        }
        if self.line == 1 {
            if let Some(problem) = no_lines(&bytes) {
                return Err(self.fatal(problem));
            }
            if bytes.starts_with(BYTE_ORDER_MARK) {
                bytes.drain(..BYTE_ORDER_MARK.len());
            }
        }
        if bytes.len() as u64 == LONGEST_LINE && !bytes.ends_with(b"\n") {
            return Err(self.fatal(format!("is longer than {LONGEST_LINE} bytes")));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            self.untaken += 1;
            // The line has its own number.
            self.fault(error.to_string().replace(" at line 1 column ", " at column "))
        })
    }
}

/// What is wrong where these are no lines at all.
fn no_lines(start: &[u8]) -> Option<&'static str> {
    if start.starts_with(LEDGER) {
        return Some(
            "this is the file of a state, and not the lines that `codex-sidecar state export` makes of it",
        );
    }
    if start.starts_with(&[0x1F, 0x8B]) {
        return Some("this is compressed: unpack it first (gunzip)");
    }
    let is_text = !start.contains(&0) && std::str::from_utf8(start).is_ok();
    (!is_text).then_some("this is no text in UTF-8, as `codex-sidecar state export` makes it")
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Counts { contexts, evicted_contexts, threads, turns, directories, tokens } = self;
        let all = [
            (contexts, "context", "contexts"),
            (evicted_contexts, "evicted context", "evicted contexts"),
            (threads, "thread", "threads"),
            (turns, "turn", "turns"),
            (directories, "directory", "directories"),
            (tokens, "day's tokens", "days' tokens"),
        ];
        let some = all.into_iter().filter(|(count, ..)| *count > 0);
        for (number, (count, one, more)) in some.enumerate() {
            let comma = if number > 0 { ", " } else { "" };
            write!(f, "{comma}{count} {}", if count == 1 { one } else { more })?;
        }
        if self.total() == 0 { f.write_str("nothing") } else { Ok(()) }
    }
}
