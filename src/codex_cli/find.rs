//! Where the native binary is.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// What to do about a CLI that is missing.
const ADVICE: &str = "install it with `npm install -g @openai/codex` (or deploy/install-codex.sh), \
                      or name its binary with CODEX_PATH or --codex-path";

/// Why the CLI was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The configured path leads nowhere.
    #[error("the Codex CLI is not at {}, as configured: {cause}; {ADVICE}", .path.display())]
    NotThere {
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
    /// It leads to this program, which would start itself without end.
    #[error("{} is codex-sidecar itself and not the Codex CLI; {ADVICE}", .path.display())]
    Itself { path: PathBuf },
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
    let binary = follow_wrapper(found)?;
    match is_this_program(&binary) {
        true => Err(FindError::Itself { path: binary }),
        false => Ok(binary),
    }
}

/// Also behind a link, of either kind.
fn is_this_program(binary: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    // By this path it is there even after its file was replaced.
    let own = std::env::current_exe().ok();
    let own = id(Path::new("/proc/self/exe")).or_else(|| id(&own?));
    own.is_some() && id(binary) == own
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

pub(super) fn is_executable(path: &Path) -> bool {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::codex_cli::tests::write_executable;

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
        let layouts = [
            format!("@openai/{}/{}/bin/codex", platform(), vendor()),
            format!("@openai/codex/node_modules/@openai/{}/{}/bin/codex", platform(), vendor()),
            format!("@openai/codex/{}/codex/codex", vendor()),
        ];
        for layout in layouts {
            let root = tempfile::tempdir().unwrap();
            let root = root.path().canonicalize().unwrap();
            let modules = root.join("lib/node_modules");
            let script = modules.join("@openai/codex/bin/codex.js");
            write_executable(&script, "#!/usr/bin/env node\n");
            write_executable(&modules.join(&layout), "native");
            // A binary of another machine beside it is not taken.
            write_executable(
                &modules.join("@openai/codex/vendor/a-other-machine/bin/codex"),
                "foreign",
            );
            std::fs::create_dir(root.join("bin")).unwrap();
            symlink("../lib/node_modules/@openai/codex/bin/codex.js", root.join("bin/codex"))
                .unwrap();

            let path = std::env::join_paths([root.join("empty"), root.join("bin")]).unwrap();
            let expected = Ok(modules.join(&layout));
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
    fn this_program_is_not_taken_for_the_cli() {
        let root = tempfile::tempdir().unwrap();
        let own = std::env::current_exe().unwrap();
        let link = root.path().join("codex");
        symlink(&own, &link).unwrap();
        let wanted = |path: &Path| Err(FindError::Itself { path: path.to_owned() });
        assert_eq!(find(Some(&own), None), wanted(&own));
        assert_eq!(find(Some(&link), None), wanted(&link));
        assert_eq!(find(None, Some(root.path().as_os_str())), wanted(&link));
        let hard = own.with_file_name(format!("codex-{}", uuid::Uuid::new_v4()));
        std::fs::hard_link(&own, &hard).unwrap();
        let found = find(Some(&hard), None);
        std::fs::remove_file(&hard).unwrap();
        assert_eq!(found, wanted(&hard));
        let told = FindError::Itself { path: link }.to_string();
        assert!(told.contains("codex-sidecar itself") && told.contains("CODEX_PATH"), "{told}");
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
}
