//! What the sidecar and a guard say to each other.
//!
//! The sidecar says what to start on the guard's command line, and with which environment in a file in
//! memory that the guard inherits; it orders the end by a byte on the control socket. The guard says what became of the program, a line each.

#[cfg(target_os = "linux")]
use std::ffi::{OsStr, OsString};
use std::fmt;
#[cfg(target_os = "linux")]
use std::os::unix::ffi::OsStrExt as _;

/// The hidden subcommand: `__guard CONTROL-FD ENVIRONMENT-FD -- PROGRAM ARGUMENT…`.
#[cfg(target_os = "linux")]
pub(super) const SUBCOMMAND: &str = "__guard";

/// What the guard is called in lists of processes. Not after the sidecar: who kills that one by name
/// must not take the guards with it.
#[cfg(target_os = "linux")]
pub(super) const NAME: &str = "worker-guard";

/// The order to kill. Closing the socket is the same order.
pub(super) const KILL: &[u8] = b"k";

/// An environment as `/proc/PID/environ` writes it.
#[cfg(target_os = "linux")]
pub(super) fn environment_to_bytes(env: impl Iterator<Item = (OsString, OsString)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in env {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'=');
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// The other way round.
#[cfg(target_os = "linux")]
pub(super) fn environment_from_bytes(bytes: &[u8]) -> impl Iterator<Item = (&OsStr, &OsStr)> {
    bytes.split(|byte| *byte == 0).filter_map(|line| {
        // A name may begin with the sign.
        let at = 1 + line.get(1..)?.iter().position(|byte| *byte == b'=')?;
        Some((OsStr::from_bytes(&line[..at]), OsStr::from_bytes(&line[at + 1..])))
    })
}

/// What a guard says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// The program runs, under this id.
    Started(u32),
    /// It could not be started, for this error number.
    Failed(i32),
    /// It ended, with this raw status.
    Ended(i32),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Word::Started(pid) => writeln!(f, "started {pid}"),
            Word::Failed(errno) => writeln!(f, "failed {errno}"),
            Word::Ended(status) => writeln!(f, "ended {status}"),
        }
    }
}

impl Word {
    pub(crate) fn parse(line: &str) -> Option<Word> {
        let (word, number) = line.trim_end().split_once(' ')?;
        match word {
            "started" => Some(Word::Started(number.parse().ok()?)),
            "failed" => Some(Word::Failed(number.parse().ok()?)),
            "ended" => Some(Word::Ended(number.parse().ok()?)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn an_environment_is_handed_on_as_it_is() {
        let env = [("A", "b=c"), ("EMPTY", ""), ("LINES", "x\ny"), ("=odd", "1")];
        let bytes = environment_to_bytes(env.into_iter().map(|(n, v)| (n.into(), v.into())));
        let read: Vec<_> = environment_from_bytes(&bytes).collect();
        assert_eq!(read, env.map(|(name, value)| (OsStr::new(name), OsStr::new(value))));
    }

    #[test]
    fn what_a_guard_says_is_understood() {
        for word in [Word::Started(7), Word::Failed(2), Word::Ended(256)] {
            assert_eq!(Word::parse(&word.to_string()), Some(word));
        }
        for riddle in ["", "started", "started x", "ended 1 2", "left 1"] {
            assert_eq!(Word::parse(riddle), None, "{riddle}");
        }
    }
}
