//! What lies in files of the ledger's, and the lines that are to become one.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use tempfile::TempDir;

use super::Target;
use crate::registry::ledger::frame::{Frame, HEAD};
use crate::registry::ledger::import::{ImportRules, import};
use crate::registry::ledger::lines::{Entry, LineFault, LineReader, LineWriter};
use crate::registry::ledger::record::{Operation, Record, append_operations};
use crate::registry::ledger::{file, key, salvage};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "ledger::frame", seeds: frames, holds: frame, share: 200 },
    Target { name: "ledger::record", seeds: records, holds: record, share: 200 },
    Target { name: "ledger::key", seeds: keys, holds: key, share: 100 },
    Target { name: "ledger::lines", seeds: exports, holds: lines, share: 20 },
    Target { name: "ledger::import", seeds: exports, holds: imported, share: 1 },
    Target { name: "ledger::salvage", seeds: files, holds: salvaged, share: 30 },
];

/// An export, with a line of each kind.
const EXPORT: &str = include_str!("seeds/state.jsonl");

fn exports() -> Vec<Vec<u8>> {
    vec![EXPORT.as_bytes().to_vec()]
}

/// What the export is in the table: keys and frames.
fn kept() -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut operations = Vec::new();
    for entry in LineReader::new(EXPORT.as_bytes()) {
        for change in entry.unwrap().into_changes() {
            append_operations(&change, &mut operations);
        }
    }
    let kept = operations.into_iter().filter_map(|operation| match operation {
        Operation::Put { key, value } => Some((key, value)),
        Operation::Remove(_) | Operation::RemoveAll(_) => None,
    });
    kept.collect()
}

fn frames() -> Vec<Vec<u8>> {
    kept().into_iter().map(|(_, frame)| frame).collect()
}

/// A frame that is found is the one that was made of its parts.
fn frame(bytes: &[u8]) {
    let Some((frame, length)) = Frame::decode(bytes) else { return };
    assert_eq!(frame.encode(), bytes[..length]);
    assert_eq!(Frame::length(&bytes[..HEAD]), Some(length));
}

/// The kind, the length of the key, the key and the payload: what a checksum would let nobody change.
fn records() -> Vec<Vec<u8>> {
    let parts = frames().into_iter().map(|bytes| {
        let (Frame { kind, key, payload }, _) = Frame::decode(&bytes).unwrap();
        let length = u8::try_from(key.len()).unwrap();
        [&[kind, length], key, payload].concat()
    });
    parts.collect()
}

fn record(bytes: &[u8]) {
    let [kind, length, rest @ ..] = bytes else { return };
    let Some((key, payload)) = rest.split_at_checked(usize::from(*length)) else { return };
    _ = Record::of_frame(Frame { kind: *kind, key, payload });
}

fn keys() -> Vec<Vec<u8>> {
    kept().into_iter().map(|(key, _)| key).collect()
}

/// A key is that of what is read from it.
fn key(bytes: &[u8]) {
    _ = key::is_end(bytes);
    if let Some(id) = key::parse_id(bytes) {
        assert_eq!(key::parse_id(&key::id(&id)), Some(id));
    }
    if let Some((id, rest)) = key::split_id(bytes) {
        assert!(bytes.ends_with(rest) && id.len() <= bytes.len().max(36));
    }
    if let Some((_, rest)) = bytes.split_first()
        && let Some(context) = key::parse_context(rest)
    {
        assert_eq!(key::context(&context)[1..], *rest);
    }
}

fn read(lines: &[u8]) -> (Vec<Entry>, Vec<LineFault>) {
    let (mut entries, mut faults) = (Vec::new(), Vec::new());
    for read in LineReader::new(lines) {
        match read {
            Ok(entry) => entries.push(entry),
            Err(fault) => faults.push(fault),
        }
    }
    (entries, faults)
}

/// What is taken is written so that the same is taken again.
fn lines(bytes: &[u8]) {
    let (entries, faults) = read(bytes);
    let count = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
    assert!(entries.len() <= count && faults.len() <= 2 * count + 1);
    let mut writer = LineWriter::new(Vec::new()).unwrap();
    for entry in entries.clone() {
        writer.entry(entry).unwrap();
    }
    let (written, _) = writer.end(false).unwrap();
    assert_eq!(read(&written), (entries, Vec::new()));
}

thread_local! {
    static DIRECTORY: TempDir = {
        let shared = std::path::Path::new("/dev/shm");
        let memory = shared.is_dir().then(|| tempfile::tempdir_in(shared).ok()).flatten();
        memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
    };
    static SALVAGED: RefCell<File> = RefCell::new(tempfile::tempfile().unwrap());
}

/// A ledger that was made by an import can be read whole, and one that was refused is not there.
fn imported(lines: &[u8]) {
    DIRECTORY.with(|directory| {
        let path = directory.path().join("sidecar.redb");
        _ = std::fs::remove_file(&path);
        let rules = ImportRules { replace: false, partial: lines.len().is_multiple_of(2) };
        match import(&path, lines, rules) {
            Ok(_) => assert!(file::check(&path).is_ok()),
            Err(_) => assert!(!path.exists()),
        }
    });
}

/// Frames with what may lie between them.
fn files() -> Vec<Vec<u8>> {
    vec![frames().join(&b"redb\0\0\0\0"[..])]
}

/// Nothing is found that was never written.
fn salvaged(bytes: &[u8]) {
    SALVAGED.with_borrow_mut(|file| {
        file.set_len(0).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        let found = salvage::scan(file).unwrap();
        assert!(found.records.len() as u64 <= found.whole);
        assert!(found.whole <= bytes.len() as u64 / HEAD as u64);
    });
}
