//! Why a subcommand did not do what it was asked to.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde_json::{Map, Value};

use super::{COMMAND_LINE, OUTPUT_CLOSED, refusal};
use crate::grpc::caller::Refused;

/// What a subcommand gives: its exit code, or why it failed.
pub(super) type CommandResult = Result<u8, Failure>;

/// Why a subcommand failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Something to tell on stderr, then this exit code.
    Told {
        /// What to tell, one line or more, without `error: `.
        message: String,
        /// The exit code.
        code: u8,
    },
    /// The same with what a script wants to know of it.
    Detailed(Box<Detailed>),
    /// Nobody reads stdout any more: nothing to tell, and nobody to tell it to.
    OutputClosed,
}

/// Something to tell, for people and for scripts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Detailed {
    /// What to tell people, one line or more, without `error: `.
    pub(super) message: String,
    /// The exit code.
    pub(super) code: u8,
    /// What a script is told beside the code: at least a `message`.
    pub(super) details: Map<String, Value>,
}

impl Failure {
    /// The same with another exit code.
    pub(super) fn with_code(self, code: u8) -> Failure {
        match self {
            Failure::Told { message, code: _ } => Failure::Told { message, code },
            Failure::Detailed(mut detailed) => {
                detailed.code = code;
                Failure::Detailed(detailed)
            }
            Failure::OutputClosed => Failure::OutputClosed,
        }
    }

    /// What it tells people.
    pub(super) fn into_message(self) -> String {
        match self {
            Failure::Told { message, .. } => message,
            Failure::Detailed(detailed) => detailed.message,
            Failure::OutputClosed => "nobody reads standard output any more".to_owned(),
        }
    }

    /// A wrong command line.
    pub(super) fn usage(message: impl Into<String>) -> Failure {
        Failure::Told { message: message.into(), code: COMMAND_LINE }
    }

    /// Tells it as a line of JSON, and gives the exit code.
    pub(super) fn report_as_json(self) -> u8 {
        let (code, mut details) = match self {
            Failure::Told { message, code } => {
                (code, Map::from_iter([("message".to_owned(), Value::String(message))]))
            }
            Failure::Detailed(detailed) => (detailed.code, detailed.details),
            Failure::OutputClosed => return OUTPUT_CLOSED,
        };
        details.insert("exit_status".to_owned(), code.into());
        tell(&Value::from(Map::from_iter([("error".to_owned(), details.into())])).to_string());
        code
    }

    /// A failure with exit code 1.
    pub(super) fn told(message: impl Into<String>) -> Failure {
        Failure::Told { message: message.into(), code: 1 }
    }

    /// Tells it, and gives the exit code.
    pub(super) fn report(self) -> ExitCode {
        let (message, code) = match self {
            Failure::Told { message, code } => (message, code),
            Failure::Detailed(detailed) => (detailed.message, detailed.code),
            Failure::OutputClosed => return ExitCode::from(OUTPUT_CLOSED),
        };
        tell(&format!("error: {message}"));
        ExitCode::from(code)
    }
}

/// Writes a line to stderr; unlike `eprintln!` without a panic when it is closed.
pub(super) fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

impl From<io::Error> for Failure {
    /// Of writing to stdout, the only I/O of the subcommands without a context of its own.
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::told(format!("can't write to standard output: {error}")),
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Failure {
        refusal::failure(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_stdout_is_no_error_to_tell() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(closed), Failure::OutputClosed);
    }
}
