//! The command line: one subcommand a file, the exit code of each.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 64 wrong usage or
//! configuration, 130 interrupted, 141 the reader of stdout went away.

mod client;
mod contexts;
mod demo;
mod exec;
mod failure;
mod health;
mod json;
mod printer;
mod run;
mod serve;
mod shown;
mod table;
mod turn;
mod words;
mod workers;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use crate::config::ServeArgs;
use failure::Failure;

/// Wrong usage or configuration (EX_USAGE).
const USAGE: u8 = 64;
/// Ended by an interrupt (128 + SIGINT).
const INTERRUPTED: u8 = 130;
/// Ended because nobody reads stdout any more (128 + SIGPIPE).
const OUTPUT_CLOSED: u8 = 141;

/// OpenAI's Codex CLI behind gRPC, on a warm and supervised pool
#[derive(Debug, clap::Parser)]
#[command(name = "codex-sidecar", version, propagate_version = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the sidecar
    Serve(Box<ServeArgs>),
    /// Run one turn and print what it does
    Run(Box<run::RunArgs>),
    /// Run one turn as `codex exec` does, for the SDKs that start that
    // For the list of subcommands; `main` sees to it before this is parsed.
    #[command(disable_help_flag = true)]
    Exec {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// What a worker of Codex is started with
    #[command(hide = true, disable_help_flag = true)]
    AppServer {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Look at and change which thread a context continues
    Contexts(contexts::ContextsArgs),
    /// List the Codex processes of the pool
    Workers(workers::WorkersArgs),
    /// Ask for the health of a service; exit 0 only if it is serving
    Health(health::HealthArgs),
    /// Run two turns of one context against a sidecar of its own
    Demo(demo::DemoArgs),
}

/// Runs the subcommand that the process's arguments name.
pub fn main() -> ExitCode {
    // By itself, because it is started once per turn and has the exit codes of another program.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|word| word == "exec") {
        return exec::main(arguments);
    }
    let command = match CommandLine::try_parse() {
        Ok(CommandLine { command }) => command,
        Err(error) => {
            // Where it can't be written nobody is left to be told.
            let _ = error.print();
            let asked_for =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked_for { 0 } else { USAGE });
        }
    };
    let command = match command {
        Command::Exec { arguments } => return exec::main(arguments.into_iter()),
        // A sidecar has taken a copy of this program for the CLI.
        Command::AppServer { .. } => {
            let message = "this is codex-sidecar itself and not the Codex CLI: CODEX_PATH or \
                           --codex-path names the wrong program";
            return Failure::Told { message: message.to_owned(), code: USAGE }.report();
        }
        command => command,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return Failure::told(format!("can't start the runtime: {error}")).report();
        }
    };
    let result = runtime.block_on(async {
        match command {
            Command::Serve(args) => serve::serve(*args).await,
            // Seen to above.
            Command::Exec { .. } | Command::AppServer { .. } => Ok(0),
            Command::Run(args) => run::run(*args).await,
            Command::Contexts(args) => contexts::contexts(args).await,
            Command::Workers(args) => workers::workers(args).await,
            Command::Health(args) => health::health(args).await,
            Command::Demo(args) => demo::demo(args).await,
        }
    });
    // Without this a blocking read, such as of a prompt on stdin, would hold the exit.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
