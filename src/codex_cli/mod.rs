//! The Codex CLI on this machine: where its native binary is, which version it is, how to get one.
//!
//! What npm installs as `codex` is a node script that starts the native binary. A worker must be
//! the binary itself: with the script in between there is one process more per worker, and a signal
//! need not arrive. So the script is followed to the binary in its package, here and nowhere else.
//! Nothing here starts a worker.

mod find;
mod install;
mod version;

pub use find::find;
pub use install::install;
pub(crate) use version::CliVersion;
pub(crate) use version::OLDEST_SUPPORTED;
pub use version::version;

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Written by another process: a child that a neighbouring test forks meanwhile would inherit
    /// the open file, and starting a file that is open for writing fails (ETXTBSY).
    pub(super) fn write_executable(path: &Path, content: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let script = r#"printf %s "$2" >"$1" && chmod 755 "$1""#;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script, "sh"]).arg(path).arg(content);
        assert!(command.status().unwrap().success());
    }
}
