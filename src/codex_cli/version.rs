//! Which version a binary is, and whether that is good enough.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

/// The oldest CLI whose app-server speaks the protocol as the sidecar does.
pub(crate) const OLDEST_SUPPORTED: CliVersion = CliVersion(semver::Version::new(0, 100, 0));

/// How long `codex --version` may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// A version of the CLI, ordered as semantic versions are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CliVersion(semver::Version);

impl CliVersion {
    /// Whether the sidecar can work with it.
    pub(crate) fn is_supported(&self) -> bool {
        *self >= OLDEST_SUPPORTED
    }

    /// Whether it is what a build from source calls itself.
    pub(crate) fn is_unversioned(&self) -> bool {
        (self.0.major, self.0.minor, self.0.patch) == (0, 0, 0)
    }
}

/// A text that is no version of the CLI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no version like 0.169.0")]
pub struct ParseVersionError {
    text: String,
}

impl FromStr for CliVersion {
    type Err = ParseVersionError;

    /// Reads `0.169.0`, or a line that ends with it, such as `codex-cli 0.169.0`.
    fn from_str(text: &str) -> Result<CliVersion, ParseVersionError> {
        parse_version(text)
            .ok_or_else(|| ParseVersionError { text: text.chars().take(200).collect() })
    }
}

fn parse_version(text: &str) -> Option<CliVersion> {
    let word = text.split_whitespace().next_back()?;
    let word = word.strip_prefix('v').unwrap_or(word);
    // A build's mark says nothing of what the CLI can do, and would count in the order.
    let word = word.split('+').next().unwrap_or(word);
    semver::Version::parse(word).ok().map(CliVersion)
}

impl fmt::Display for CliVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why the CLI did not tell its version.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// It could not be started.
    #[error("{} could not be started: {source}", .path.display())]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It did not end in time, and was killed.
    #[error("{} --version did not answer within {} s", .path.display(), VERSION_TIMEOUT.as_secs())]
    Timeout {
        /// The binary.
        path: PathBuf,
    },
    /// It ended without success.
    #[error("{} --version failed with {status}: {stderr}", .path.display())]
    Failed {
        /// The binary.
        path: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// It said something else.
    #[error("{} --version said {output:?} and no version; is it the Codex CLI?", .path.display())]
    Unreadable {
        /// The binary.
        path: PathBuf,
        /// The start of what it wrote.
        output: String,
    },
}

/// Asks a binary for its version.
pub async fn version(path: &Path) -> Result<CliVersion, VersionError> {
    version_within(path, VERSION_TIMEOUT).await
}

async fn version_within(path: &Path, timeout: Duration) -> Result<CliVersion, VersionError> {
    let path = path.to_owned();
    let mut command = tokio::process::Command::new(&path);
    // Killed on drop, so that a binary which hangs doesn't outlive the timeout.
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(timeout, command.output()).await {
        Err(_) => return Err(VersionError::Timeout { path }),
        Ok(Err(source)) => return Err(VersionError::Spawn { path, source }),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let start = stderr.trim_end().char_indices().rev().nth(499).map_or(0, |(at, _)| at);
        let stderr = stderr.trim_end()[start..].to_owned();
        return Err(VersionError::Failed { path, status: output.status, stderr });
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    match stdout.trim().lines().next_back().unwrap_or_default().parse() {
        Ok(version) => Ok(version),
        Err(ParseVersionError { .. }) => {
            let output = stdout.chars().take(200).collect();
            Err(VersionError::Unreadable { path, output })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codex_cli::tests::write_executable;

    #[test]
    fn versions_are_read_and_ordered() {
        let version = |text: &str| text.parse::<CliVersion>();
        assert_eq!(version("codex-cli 0.169.0").unwrap().to_string(), "0.169.0");
        assert_eq!(version("0.170.0-alpha.3").unwrap().to_string(), "0.170.0-alpha.3");
        for wrong in ["", "codex-cli", "0.169", "0.169.0.1", "0.x.0", "-1.0.0"] {
            assert!(version(wrong).is_err(), "{wrong:?}");
        }
        let ordered = ["0.99.9", "0.100.0-alpha.1", "0.100.0", "0.100.1", "0.169.0", "1.0.0"];
        let versions = ordered.map(|text| version(text).unwrap());
        assert!(versions.is_sorted(), "{versions:?}");
        assert_eq!(versions.map(|v| v.is_supported()), [false, false, true, true, true, true]);
        // Parts of a pre-release are numbers, and a build's mark counts for nothing.
        assert!(version("0.170.0-alpha.9").unwrap() < version("0.170.0-alpha.10").unwrap());
        assert_eq!(version("0.169.0+build"), version("0.169.0"));
    }

    #[tokio::test]
    async fn a_binary_that_is_not_the_cli_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let binary = root.path().join("codex");
        write_executable(&binary, "#!/bin/sh\necho warning >&2\necho codex-cli 0.123.4\n");
        assert_eq!(version(&binary).await.unwrap().to_string(), "0.123.4");

        let binary = root.path().join("other");
        write_executable(&binary, "#!/bin/sh\necho hello\n");
        assert!(matches!(version(&binary).await, Err(VersionError::Unreadable { .. })));

        let binary = root.path().join("failing");
        write_executable(&binary, "#!/bin/sh\necho no luck >&2\nexit 3\n");
        let error = version(&binary).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3: no luck"), "{error}");

        let binary = root.path().join("hanging");
        write_executable(&binary, "#!/bin/sh\nexec sleep 1000\n");
        let result = version_within(&binary, Duration::from_millis(50)).await;
        assert!(matches!(result, Err(VersionError::Timeout { .. })));

        let missing = root.path().join("missing");
        assert!(matches!(version(&missing).await, Err(VersionError::Spawn { .. })));
    }
}
