//! The Codex CLI on this machine: where its native binary is, which version it is, how to get one.
//!
//! What npm installs as `codex` is a node script that starts the native binary. A worker must be
//! the binary itself: with the script in between there is one process more per worker, and a signal
//! need not arrive. So the script is followed to the binary in its package, here and nowhere else.
//! Nothing here starts a worker.

use std::ffi::OsStr;
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

/// The oldest CLI whose app-server speaks the protocol as the sidecar does.
pub(crate) const OLDEST_SUPPORTED: CliVersion = CliVersion(semver::Version::new(0, 100, 0));

/// How long `codex --version` may take.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// What to do about a CLI that is missing.
const ADVICE: &str = "install it with `npm install -g @openai/codex` (or deploy/install-codex.sh), \
                      or name its binary with CODEX_PATH or --codex-path";

/// Why the CLI was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The configured path leads nowhere.
    #[error("the Codex CLI is not at {}, as configured: {cause}; {ADVICE}", .path.display())]
    NotThere {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// No directory of PATH has it.
    #[error("the Codex CLI was not found: no {name:?} in {}; {ADVICE}", show_directories(.searched))]
    NotOnPath {
        /// The name that was looked for.
        name: String,
        /// The directories of PATH.
        searched: Vec<PathBuf>,
    },
    /// npm's script is there, and the binary that it would start is not.
    #[error(
        "{} is npm's wrapper of the Codex CLI, and its native binary is not in {}; \
         npm leaves it out with --omit=optional and on another platform; {ADVICE}",
        .wrapper.display(),
        show_directories(.searched)
    )]
    NoNativeBinary {
        /// The script.
        wrapper: PathBuf,
        /// Where the binary would be.
        searched: Vec<PathBuf>,
    },
}

fn show_directories(directories: &[PathBuf]) -> String {
    if directories.is_empty() {
        return "PATH, which is empty".to_owned();
    }
    let shown: Vec<String> =
        directories.iter().map(|directory| directory.display().to_string()).collect();
    shown.join(", ")
}

/// Finds the native binary: at `configured` (a path, or a bare name), else `codex` on `path`, the
/// value of PATH. Looks at the disk every time, so that a CLI which is installed later is found.
pub fn find(configured: Option<&Path>, path: Option<&OsStr>) -> Result<PathBuf, FindError> {
    let default = Path::new("codex");
    let wanted = configured.unwrap_or(default);
    let found = if wanted.as_os_str().as_encoded_bytes().contains(&b'/') {
        check_executable(wanted)
            .map_err(|cause| FindError::NotThere { path: wanted.to_owned(), cause })?;
        wanted.to_owned()
    } else {
        find_on_path(wanted, path)?
    };
    follow_wrapper(found)
}

fn find_on_path(name: &Path, path: Option<&OsStr>) -> Result<PathBuf, FindError> {
    let searched: Vec<PathBuf> = std::env::split_paths(path.unwrap_or_default())
        .filter(|directory| !directory.as_os_str().is_empty())
        .collect();
    let found =
        searched.iter().map(|directory| directory.join(name)).find(|file| is_executable(file));
    found
        .ok_or_else(|| FindError::NotOnPath { name: name.to_string_lossy().into_owned(), searched })
}

fn is_executable(path: &Path) -> bool {
    check_executable(path).is_ok()
}

fn check_executable(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
        .map_err(|error| format!("it can't be executed: {}", std::io::Error::from(error)))
}

/// The native binary behind npm's wrapper; anything else is what it is.
fn follow_wrapper(found: PathBuf) -> Result<PathBuf, FindError> {
    // npm links `bin/codex` to the script; its package is beside the script, not beside the link.
    let Ok(script) = std::fs::canonicalize(&found) else {
        return Ok(found);
    };
    let is_script = script.extension() == Some(OsStr::new("js")) && starts_with_shebang(&script);
    if !is_script {
        return Ok(found);
    }
    let Some(package) = script.parent().and_then(Path::parent) else {
        return Ok(found);
    };
    if !package.ends_with("@openai/codex") {
        return Ok(found);
    }
    let searched = vendor_directories(package);
    let binary = searched.iter().find_map(|vendor| binary_in(vendor));
    binary.ok_or(FindError::NoNativeBinary { wrapper: script.clone(), searched })
}

fn starts_with_shebang(path: &Path) -> bool {
    let mut start = [0; 2];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok()
        && &start == b"#!"
}

/// Where npm puts the binary: a package per platform, nested in the main package or beside it; up
/// to about 0.130 in the main package itself.
fn vendor_directories(package: &Path) -> Vec<PathBuf> {
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let cpu = match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    };
    let platform = format!("codex-{os}-{cpu}");
    let nested = package.join("node_modules/@openai").join(&platform);
    let beside = package.with_file_name(&platform);
    [nested, beside, package.to_owned()].map(|package| package.join("vendor")).to_vec()
}

/// The binary for this machine in `vendor/<target triple>/`.
fn binary_in(vendor: &Path) -> Option<PathBuf> {
    let os = match std::env::consts::OS {
        "macos" => "apple-darwin",
        other => other,
    };
    let mut triples: Vec<PathBuf> = std::fs::read_dir(vendor)
        .ok()?
        .filter_map(|entry| entry.ok())
        .filter(|entry| {
            let triple = entry.file_name();
            let triple = triple.to_string_lossy();
            triple.starts_with(std::env::consts::ARCH) && triple.contains(os)
        })
        .map(|entry| entry.path())
        .collect();
    triples.sort();
    triples
        .iter()
        .flat_map(|triple| [triple.join("bin/codex"), triple.join("codex/codex")])
        .find(|binary| is_executable(binary))
}

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

/// Why the CLI could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The script could not be started.
    #[error("{} could not be started: {source}", .script.display())]
    Spawn {
        /// The script.
        script: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The script failed; it said why on standard error.
    #[error("{} failed with {status}; its messages are above", .script.display())]
    Failed {
        /// The script.
        script: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// The script named no binary.
    #[error("{} succeeded and named no executable file: {output:?}", .script.display())]
    NoBinary {
        /// The script.
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Written by another process: a child that a neighbouring test forks meanwhile would inherit
    /// the open file, and starting a file that is open for writing fails (ETXTBSY).
    fn write_executable(path: &Path, content: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let script = r#"printf %s "$2" >"$1" && chmod 755 "$1""#;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script, "sh"]).arg(path).arg(content);
        assert!(command.status().unwrap().success());
    }

    fn vendor() -> String {
        let os = if cfg!(target_os = "macos") { "apple-darwin" } else { "unknown-linux-musl" };
        format!("vendor/{}-{os}", std::env::consts::ARCH)
    }

    fn platform() -> String {
        let beside = vendor_directories(Path::new("/x/@openai/codex"))[1].clone();
        beside.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn npms_wrapper_is_followed_to_the_native_binary_wherever_npm_put_it() {
        let places = [
            format!("@openai/{}/{}/bin/codex", platform(), vendor()),
            format!("@openai/codex/node_modules/@openai/{}/{}/bin/codex", platform(), vendor()),
            format!("@openai/codex/{}/codex/codex", vendor()),
        ];
        for place in places {
            let root = tempfile::tempdir().unwrap();
            let root = root.path().canonicalize().unwrap();
            let modules = root.join("lib/node_modules");
            let script = modules.join("@openai/codex/bin/codex.js");
            write_executable(&script, "#!/usr/bin/env node\n");
            write_executable(&modules.join(&place), "native");
            // A binary of another machine beside it is not taken.
            write_executable(
                &modules.join("@openai/codex/vendor/a-other-machine/bin/codex"),
                "foreign",
            );
            std::fs::create_dir(root.join("bin")).unwrap();
            symlink("../lib/node_modules/@openai/codex/bin/codex.js", root.join("bin/codex"))
                .unwrap();

            let path = std::env::join_paths([root.join("empty"), root.join("bin")]).unwrap();
            let expected = Ok(modules.join(&place));
            assert_eq!(find(None, Some(&path)), expected);
            assert_eq!(find(Some(&root.join("bin/codex")), None), expected);
            assert_eq!(find(Some(&script), None), expected);
        }
    }

    #[test]
    fn what_is_no_wrapper_is_taken_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("my-codex");
        write_executable(&own, "#!/bin/sh\n");
        assert_eq!(find(Some(&own), None), Ok(own.clone()));
        assert_eq!(find(Some(Path::new("my-codex")), Some(root.path().as_os_str())), Ok(own));
    }

    #[test]
    fn a_missing_cli_says_where_it_was_looked_for_and_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let missing = root.path().join("missing");
        let error = find(Some(&missing), None).unwrap_err().to_string();
        assert!(error.contains(missing.to_str().unwrap()), "{error}");
        assert!(error.contains("npm install -g @openai/codex"), "{error}");

        let error = find(None, Some(root.path().as_os_str())).unwrap_err().to_string();
        assert!(error.contains(root.path().to_str().unwrap()), "{error}");

        // There, and of no use: the error is not about PATH.
        let plain = root.path().join("codex");
        std::fs::write(&plain, "").unwrap();
        assert!(matches!(find(Some(&plain), None), Err(FindError::NotThere { .. })));

        let script = root.path().join("@openai/codex/bin/codex.js");
        write_executable(&script, "#!/usr/bin/env node\n");
        let error = find(Some(&script), None).unwrap_err().to_string();
        assert!(error.contains(&platform()), "{error}");
    }

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
