//! Where a turn works.

use std::path::PathBuf;

/// Where a turn works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    /// Absolute, existing.
    pub working_directory: PathBuf,
    /// Absolute, existing; writable beside it.
    pub additional_directories: Vec<PathBuf>,
}
