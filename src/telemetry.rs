//! Logging: one subscriber for the process, on stderr.
//!
//! stdout belongs to what a subcommand prints. Nothing here, and nobody who logs, may be given a
//! key or a token.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Lines for people.
    Text,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter's syntax is wrong.
    #[error("{filter:?} is no log filter: {source}")]
    Filter {
        filter: String,
        /// What is wrong.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has a subscriber already.
    #[error("logging is already set up")]
    Twice,
}

/// Sets up logging for the whole process; once.
pub fn init(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })?;
    let lines = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would tell about a closed stderr on stderr, and panic.
        .log_internal_errors(false);
    let result = match format {
        // Fields at the top of the object, where collectors look for them.
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).try_init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(colours).try_init()
        }
    };
    result.map_err(|_| TelemetryError::Twice)
}
