//! What is told of a ledger that can't be opened, to the person who starts the sidecar: which file, what is
//! wrong, the commands to run, in order.

use std::fs::{File, TryLockError};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The file that a sidecar locks its CODEX_HOME by, in which it says where it listens.
const LOCK: &str = "sidecar.lock";

/// The longest that is told of an owner, in bytes.
const OWNER_BYTES: u64 = 512;

pub(super) fn in_use(path: &Path) -> String {
    let owner = owner(path).map(|owner| format!(" ({owner})")).unwrap_or_default();
    format!(
        "another process has the state in {} open{owner}; a state has one sidecar: end that one, or start \
         this one with a CODEX_HOME of its own (--codex-home), or only with a state of its own (--state)",
        path.display()
    )
}

/// What the sidecar that has the ledger says of itself, if that is known: host, pid and addresses.
pub(crate) fn owner(ledger: &Path) -> Option<String> {
    let file = File::open(ledger.with_file_name(LOCK)).ok()?;
    if !matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)) {
        // Nobody's: of one that has ended.
        return None;
    }
    let mut text = Vec::new();
    file.take(OWNER_BYTES).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line: String = text.lines().next()?.chars().filter(|c| !c.is_control()).collect();
    let (_, pid) = line.split_once(", pid ")?;
    let pid = pid.split(',').next()?.parse().ok()?;
    (pid != std::process::id() && has_open(pid, ledger)).then_some(line)
}

/// Whether a process is seen to have the file open: CODEX_HOME and a state that lies there may be those of two
/// sidecars.
fn has_open(pid: u32, file: &Path) -> bool {
    let (Ok(open), Ok(file)) = (std::fs::read_dir(format!("/proc/{pid}/fd")), file.metadata())
    else {
        return false;
    };
    let mut open = open.filter_map(|entry| entry.ok()?.path().metadata().ok());
    open.any(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
}

pub(super) fn not_a_file(path: &Path, what: &str) -> String {
    format!(
        "the state can't be kept in {}, which is {what}: name a file with --state ([state] path in the \
         configuration), or none for the one in CODEX_HOME",
        path.display()
    )
}

pub(super) fn damaged(path: &Path, cause: &str) -> String {
    format!(
        "the state in {} is damaged: {cause}; `codex-sidecar state check {}` says how much of it can be read; {}",
        path.display(),
        quoted(path),
        salvage(path)
    )
}

/// What to do about a damaged ledger.
pub(crate) fn salvage(path: &Path) -> String {
    let (file, lines, damaged) = (quoted(path), aside(path, ".jsonl"), aside(path, ".damaged"));
    if has_lines(path) {
        return format!(
            "these are lines that `codex-sidecar state export` makes, and no state. Make one of them:\n  \
             mv {file} {lines}\n  \
             codex-sidecar state import {lines} --state {file}"
        );
    }
    format!(
        "nothing was changed in it. Put a backup in its place, or save what can be read of it:\n  \
         codex-sidecar state export {file} -o {lines}\n  \
         mv {file} {damaged}\n  \
         codex-sidecar state import --partial {lines} --state {file}\n\
         and start the sidecar again (without the import where nothing could be read: it begins with \
         nothing then); the threads themselves are Codex's, and are not touched by this"
    )
}

/// What to do about one of which nothing can be read.
pub(crate) fn nothing_left(path: &Path) -> String {
    let (file, damaged) = (quoted(path), aside(path, ".damaged"));
    format!(
        "nothing in it can be read, and nothing was changed in it. Put a backup in its place (an exported \
         one by `codex-sidecar state import`), or let the sidecar begin with nothing:\n  \
         mv {file} {damaged}\n\
         and start it again; the threads themselves are Codex's, and are not touched by this"
    )
}

/// Whether the file is of JSON lines.
pub(crate) fn has_lines(path: &Path) -> bool {
    let mut start = [0; 1];
    let read = File::open(path).and_then(|mut file| file.read(&mut start));
    read.is_ok_and(|read| start[..read] == *b"{")
}

fn aside(path: &Path, suffix: &str) -> String {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    quoted(&PathBuf::from(name))
}

/// For a shell.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().into_owned();
    shlex::try_quote(&text).map(|quoted| quoted.into_owned()).unwrap_or(text)
}

pub(super) fn too_new(path: &Path, version: u64, newest: u64) -> String {
    format!(
        "a newer sidecar wrote the state in {} (version {version}; this one reads up to {newest}); start that \
         sidecar or a later one, or start this one with a state of its own (--state), which knows nothing of \
         those contexts",
        path.display()
    )
}
