//! What is told of a ledger that can't be opened, to the person who starts the sidecar: which file, what is
//! wrong, the commands to run, in order.

use std::fs::{File, TryLockError};
use std::io::Read as _;
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

/// What the sidecar of the ledger's directory says of itself, if one has it: host, pid and addresses.
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
    let is_this = line.contains(&format!(", pid {},", std::process::id()));
    Some(line).filter(|line| !line.is_empty() && !is_this)
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
    let aside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        quoted(&PathBuf::from(name))
    };
    let (path, lines, damaged) = (quoted(path), aside(".jsonl"), aside(".damaged"));
    format!(
        "nothing was changed in it. Put a backup in its place, or save what can be read of it:\n  \
         codex-sidecar state export {path} -o {lines}\n  \
         mv {path} {damaged}\n  \
         codex-sidecar state import --partial {lines} --state {path}\n\
         and start the sidecar again; the threads themselves are Codex's, and are not touched by this"
    )
}

/// For a shell.
fn quoted(path: &Path) -> String {
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
