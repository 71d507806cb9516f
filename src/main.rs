//! The binary: parses the command line, runs one subcommand, gives its exit code.

fn main() -> std::process::ExitCode {
    // Before anything else exists: a worker's guard is this same binary, with one thread.
    match codex_sidecar::guard_if_asked(std::env::args_os()) {
        Some(code) => code,
        None => codex_sidecar::main(),
    }
}
