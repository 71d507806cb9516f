//! How the process ends badly.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::Signal;
use serde::Deserialize;

/// How the process dies. The default is what a Rust panic looks like from outside: exit status 101.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Death {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<String>,
    /// Written to stderr first, with a line end.
    pub(crate) stderr: Option<String>,
}

impl Death {
    /// `3`, `SEGV`, `SIGSEGV` or nothing.
    pub(crate) fn parse(text: &str) -> Result<Death, String> {
        if text.is_empty() {
            return Ok(Death::default());
        }
        if let Ok(code) = text.parse() {
            return Ok(Death { code: Some(code), ..Death::default() });
        }
        signal(text).ok_or_else(|| {
            format!("`{text}` is neither an exit status nor the name of a signal")
        })?;
        Ok(Death { signal: Some(text.to_owned()), ..Death::default() })
    }

    pub(crate) fn die(&self) -> ! {
        if let Some(text) = &self.stderr {
            complain(format!("{text}\n").as_bytes());
        }
        let Some(signal) = self.signal.as_deref().and_then(signal) else {
            std::process::exit(self.code.unwrap_or(101));
        };
        loop {
            // Rust's own handler of SIGSEGV and SIGBUS takes the first one and steps aside.
            let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn signal(name: &str) -> Option<Signal> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    Some(match name {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "ILL" => Signal::ILL,
        "ABRT" => Signal::ABORT,
        "BUS" => Signal::BUS,
        "FPE" => Signal::FPE,
        "KILL" => Signal::KILL,
        "SEGV" => Signal::SEGV,
        "PIPE" => Signal::PIPE,
        "ALRM" => Signal::ALARM,
        "STOP" => Signal::STOP,
        _ => return None,
    })
}

/// Writes to stderr, and waits for as long as nobody reads it.
pub(crate) fn complain(bytes: &[u8]) {
    let _ = io::stderr().write_all(bytes);
}

/// Opens a file to be locked, and makes it if need be.
pub(crate) fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Takes an exclusive lock that lives as long as the file, or as the process; `None` if another
/// process has it.
pub(crate) fn lock(path: &std::path::Path) -> io::Result<Option<File>> {
    let file = open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
