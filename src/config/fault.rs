//! What is wrong with a configuration.

use std::fmt;

/// One fault: where the value comes from, the value, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where it comes from: `--workers`, `CODEX_SIDECAR_WORKERS`,
    /// `sidecar.toml: limits.max_running_turns`.
    pub(crate) origin: String,
    /// The value as it was written; empty where the fault is not about a value.
    pub(crate) value: String,
    /// What is wrong, or what is allowed.
    pub(crate) problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { origin, value, problem } = self;
        if value.is_empty() {
            write!(f, "{origin}: {problem}")
        } else {
            write!(f, "{origin}: {value}: {problem}")
        }
    }
}

/// Every fault of a configuration; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigErrors(pub(crate) Vec<Fault>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
