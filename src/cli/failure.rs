//! Why a subcommand did not do what it was asked to.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use tonic::Code;
use tonic_types::StatusExt as _;

use super::OUTPUT_CLOSED;

/// What a subcommand gives: its exit code, or why it failed.
pub(super) type Outcome = Result<u8, Failure>;

/// Why a subcommand failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Something to tell on stderr, then this exit code.
    Told {
        /// What to tell, one line or more, without `error: `.
        message: String,
        /// The exit code.
        code: u8,
    },
    /// Nobody reads stdout any more: nothing to tell, and nobody to tell it to.
    OutputClosed,
}

impl Failure {
    /// A failure with exit code 1.
    pub(super) fn told(message: impl Into<String>) -> Failure {
        Failure::Told { message: message.into(), code: 1 }
    }

    /// Tells it, and gives the exit code.
    pub(super) fn report(self) -> ExitCode {
        match self {
            Failure::Told { message, code } => {
                tell(&format!("error: {message}"));
                ExitCode::from(code)
            }
            Failure::OutputClosed => ExitCode::from(OUTPUT_CLOSED),
        }
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

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Failure {
        Failure::told(describe(&status))
    }
}

/// A status for people: code, reason, message; then a line for each field and for the retry.
fn describe(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    let mut text = code_name(status.code()).to_owned();
    if let Some(info) = details.error_info() {
        let _ = write!(text, " ({})", info.reason);
    }
    let message = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    let _ = write!(text, ": {message}");
    for violation in details.bad_request().into_iter().flat_map(|request| &request.field_violations)
    {
        let _ = write!(text, "\n  {}: {}", violation.field, violation.description);
    }
    if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
        let delay = Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
        let _ = write!(text, "\n  try again after {}", humantime::format_duration(delay));
    }
    text
}

/// The code's name in the protocol.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_is_told_with_all_its_details() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("INVALID_INPUT", "codex.sidecar", HashMap::new())
            .add_bad_request_violation("inputs[0].text", "is blank")
            .set_retry_info(Some(Duration::from_millis(1500)));
        let status =
            tonic::Status::with_error_details(Code::InvalidArgument, "invalid request", details);
        assert_eq!(
            Failure::from(status),
            Failure::told(
                "INVALID_ARGUMENT (INVALID_INPUT): invalid request\n  inputs[0].text: is blank\n  \
                 try again after 1s 500ms"
            )
        );
    }

    #[test]
    fn a_closed_stdout_is_no_error_to_tell() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert_eq!(Failure::from(closed), Failure::OutputClosed);
    }
}
