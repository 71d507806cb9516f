//! What can be read of a file that can't be opened: each record says by itself whether it is whole, and is
//! found wherever it lies.
//!
//! The file also has what was written before, so that of several with one key the newest is taken, as far
//! as they tell, and what was removed may come back. Nothing is found that was never written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use memchr::memmem::Finder;

use crate::registry::ledger::KeptBinding;
use crate::registry::ledger::frame::{Frame, HEAD, MAGIC};
use crate::registry::ledger::key;
use crate::registry::ledger::record::Record;

/// How much of the file is looked at together, in bytes.
const WINDOW: usize = 1 << 20;

/// The longest record that is looked for, in bytes: above those that Codex's longest line can make.
const LONGEST: usize = 256 << 20;

/// What was found.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// The newest of each key, in the order of the keys.
    pub(crate) records: BTreeMap<Vec<u8>, Record>,
    /// How many there were that are whole, older ones included.
    pub(crate) whole: u64,
}

/// Looks for records in all of the file.
///
/// # Errors
/// Of reading it.
pub(crate) fn scan(file: &File) -> io::Result<Found> {
    let mut scan = Scan {
        file,
        length: file.metadata()?.len(),
        magic: Finder::new(&MAGIC),
        found: Found::default(),
    };
    let mut window = vec![0; WINDOW];
    let mut at = 0;
    while at < scan.length {
        let read = read_at(file, &mut window, at)?;
        if read == 0 {
            break;
        }
        at += scan.window(&window[..read], at)? as u64;
    }
    let mut found = scan.found;
    found.settle();
    Ok(found)
}

struct Scan<'a> {
    file: &'a File,
    length: u64,
    magic: Finder<'a>,
    found: Found,
}

impl Scan<'_> {
    /// Looks into what the file has at an offset. How many bytes of it were looked at, one or more.
    fn window(&mut self, here: &[u8], at: u64) -> io::Result<usize> {
        let mut from = 0;
        loop {
            let Some(distance) = self.magic.find(&here[from..]) else {
                // The last bytes may be the beginning of one.
                return Ok(here.len().saturating_sub(MAGIC.len() - 1).max(from).max(1));
            };
            let begin = from + distance;
            let rest = &here[begin..];
            let is_at_the_end = at + here.len() as u64 >= self.length;
            let seen = match Frame::length(rest) {
                Some(length) if length <= rest.len() => self.take(rest),
                Some(length) if self.has(at + begin as u64, length) => {
                    if begin > 0 {
                        return Ok(begin);
                    }
                    let mut bytes = vec![0; length];
                    let read = read_at(self.file, &mut bytes, at)?;
                    return Ok(self.take(&bytes[..read]));
                }
                None if rest.len() < HEAD && !is_at_the_end => return Ok(begin.max(1)),
                Some(_) | None => 1,
            };
            from = begin + seen;
        }
    }

    /// Whether the file is long enough for a record that can be one.
    fn has(&self, at: u64, length: usize) -> bool {
        length <= LONGEST && length as u64 <= self.length.saturating_sub(at)
    }

    /// Takes the record that these bytes begin with, if they do. How many of them were looked at.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let Some((frame, length)) = Frame::decode(bytes) else { return 1 };
        if let Ok(record) = Record::of_frame(frame) {
            self.found.add(frame.key, record);
        }
        // Nothing within a whole one is another.
        length
    }
}

/// Reads as much as there is.
fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < into.len() {
        match file.read_at(&mut into[read..], at + read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

impl Found {
    fn add(&mut self, key: &[u8], record: Record) {
        self.whole += 1;
        match self.records.get_mut(key) {
            Some(known) if is_newer(&record, known) => *known = record,
            Some(_) => {}
            None => drop(self.records.insert(key.to_vec(), record)),
        }
    }

    /// Of a context that is both bound and evicted, what was later holds.
    fn settle(&mut self) {
        let evicted = self.records.iter().filter_map(|(mark_key, record)| match record {
            Record::Mark(mark) => {
                Some((mark_key.clone(), key::context(&mark.key), mark.evicted_at))
            }
            _ => None,
        });
        for (mark, context, evicted_at) in evicted.collect::<Vec<_>>() {
            let Some(Record::Binding(kept)) = self.records.get(&context) else { continue };
            let binding = &kept.binding;
            let is_bound_again = binding.used_at.max(binding.updated_at) > evicted_at;
            self.records.remove(if is_bound_again { &mark } else { &context });
        }
    }
}

/// Whether a record was written after another one of the same key, as far as they tell.
fn is_newer(one: &Record, other: &Record) -> bool {
    match (one, other) {
        (Record::Binding(one), Record::Binding(other)) => {
            let at = |kept: &KeptBinding| {
                let binding = &kept.binding;
                (binding.used_at.max(binding.updated_at), binding.updated_at, binding.turns)
            };
            at(one) > at(other)
        }
        (Record::Mark(one), Record::Mark(other)) => one.evicted_at > other.evicted_at,
        (Record::Reserved(_, one), Record::Reserved(_, other)) => one > other,
        (Record::End(_, one), Record::End(_, other)) => one.sequence > other.sequence,
        (Record::Facts(_, one), Record::Facts(_, other)) => one.at > other.at,
        (Record::Directory(_, one), Record::Directory(_, other)) => one.at > other.at,
        (Record::Tokens(one), Record::Tokens(other)) => one > other,
        // Written once.
        _ => false,
    }
}
