//! How to get one.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::find::is_executable;

/// Why the CLI could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The script could not be started.
    #[error("{} could not be started: {source}", .script.display())]
    Spawn {
        script: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The script failed; it said why on standard error.
    #[error("{} failed with {status}; its messages are above", .script.display())]
    Failed {
        script: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// The script named no binary.
    #[error("{} succeeded and named no executable file: {output:?}", .script.display())]
    NoBinary {
        script: PathBuf,
        /// What it said.
        output: String,
    },
}

/// Puts the pinned CLI under this repository's `target/` through npm, unless it is there, and
/// returns its native binary. For the demo and the tests: it needs the repository that the sidecar
/// was built from. Blocks, for minutes on a slow network.
pub fn install() -> Result<PathBuf, InstallError> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/install-codex.sh");
    let output =
        std::process::Command::new(&script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = match output {
        Ok(output) => output,
        Err(source) => return Err(InstallError::Spawn { script, source }),
    };
    if !output.status.success() {
        return Err(InstallError::Failed { script, status: output.status });
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let binary = PathBuf::from(stdout.trim_end().lines().next_back().unwrap_or_default());
    if !is_executable(&binary) {
        return Err(InstallError::NoBinary { script, output: stdout.into_owned() });
    }
    Ok(binary)
}
