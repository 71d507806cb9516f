//! The binary: parses the command line, runs one subcommand, gives its exit code.

fn main() -> std::process::ExitCode {
    codex_sidecar::cli::main()
}
