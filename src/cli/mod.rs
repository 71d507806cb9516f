//! The command line: one subcommand a file, the exit code of each.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 a wrong command line,
//! 3 refused, 4 out of time, 5 a question without an answer, 64 a wrong configuration (for `serve` its
//! command line is part of it, for the others the sidecar's address), 69 no sidecar, 130 interrupted,
//! 141 the reader of stdout went away.

mod answer;
mod answers;
pub(crate) mod args;
pub(crate) mod ask;
mod attach;
mod client;
mod completions;
mod contexts;
mod demo;
pub(crate) mod exec;
mod failure;
mod health;
mod history;
mod info;
mod interrupt;
mod json;
pub(crate) mod mcp;
mod models;
mod printer;
mod refusal;
mod run;
mod serve;
mod shown;
mod state;
mod steer;
mod table;
mod target;
mod token;
mod turn;
mod turns;
mod watch;
mod words;
mod workers;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use crate::config::ServeArgs;
use failure::{Failure, tell};

/// A wrong command line; of `serve` it is [`USAGE`].
const COMMAND_LINE: u8 = 2;
/// Refused before a turn began.
const REFUSED: u8 = 3;
/// A timeout or a deadline.
const OUT_OF_TIME: u8 = 4;
/// Something was declined for want of an answer.
const DECLINED: u8 = 5;
/// No sidecar can be reached, or it is on its way down (EX_UNAVAILABLE).
const UNREACHABLE: u8 = 69;
/// A wrong configuration (EX_USAGE).
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
    // For the list of subcommands and for completions; `main` sees to it before this is parsed.
    #[command(visible_alias = "e")]
    Exec(Box<exec::ExecArgs>),
    /// Serve Codex to an MCP client on stdin and stdout, as `codex mcp-server` did
    Mcp(mcp::McpArgs),
    /// What a worker of Codex is started with
    #[command(hide = true, disable_help_flag = true)]
    AppServer {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Join a turn that runs, or look at one that has ended
    Attach(Box<attach::AttachArgs>),
    /// Stop a turn
    Interrupt(interrupt::InterruptArgs),
    /// Add input to a turn that runs
    Steer(Box<steer::SteerArgs>),
    /// Answer what a turn asks
    Answer(Box<answer::AnswerArgs>),
    /// List the turns that run, wait, or have ended and are retained
    Turns(turns::TurnsArgs),
    /// Look at and change which thread a context continues
    Contexts(contexts::ContextsArgs),
    /// List the Codex processes of the pool
    Workers(workers::WorkersArgs),
    /// Ask for the health of a service; exit 0 only if it is serving
    Health(health::HealthArgs),
    /// Show what the sidecar is and how it does
    Info(info::InfoArgs),
    /// Look at, export and import what a sidecar keeps over its end
    State(state::StateArgs),
    /// Make the tokens that callers show
    Token(token::TokenArgs),
    /// List the models that Codex offers
    Models(models::ModelsArgs),
    /// Print a script that has a shell complete this command line
    Completions(completions::CompletionsArgs),
    /// Run two turns of one context against a sidecar of its own
    Demo(demo::DemoArgs),
}

/// Runs the subcommand that the process's arguments name.
pub fn main() -> ExitCode {
    // By itself, because it is started once per turn and has the exit codes of another program.
    if let Some(code) = exec::main(std::env::args_os().skip(1)) {
        return code;
    }
    let command = match CommandLine::try_parse_from(args::joined(std::env::args_os())) {
        Ok(CommandLine { command }) => command,
        Err(error) => return ExitCode::from(wrong_command_line(&error)),
    };
    let command = match command {
        // A sidecar has taken a copy of this program for the CLI.
        Command::AppServer { .. } => {
            let message = "this is codex-sidecar itself and not the Codex CLI: CODEX_PATH or \
                           --codex-path names the wrong program";
            return Failure::Told { message: message.to_owned(), code: USAGE }.report();
        }
        command => command,
    };
    // A sidecar has keys, and runs what a model says under the same user. Others don't hide: the sidecar
    // looks who they are. A system that refuses this is no reason to serve nobody.
    if matches!(command, Command::Serve(_) | Command::Demo(_)) {
        let _ = crate::process::keep_private();
    }
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
            Command::Exec(_) | Command::AppServer { .. } => Ok(0),
            Command::Run(args) => run::run(*args).await,
            Command::Mcp(args) => mcp::mcp(args).await,
            Command::Attach(args) => attach::attach(*args).await,
            Command::Interrupt(args) => interrupt::interrupt(args).await,
            Command::Steer(args) => steer::steer(*args).await,
            Command::Answer(args) => answer::answer(*args).await,
            Command::Turns(args) => turns::turns(args).await,
            Command::Info(args) => info::info(args).await,
            Command::State(args) => state::state(args).await,
            Command::Token(args) => token::token(args),
            Command::Models(args) => models::models(args).await,
            Command::Completions(args) => completions::completions(&args),
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
        Err(failure) if speaks_json(std::env::args_os()) => {
            ExitCode::from(failure.report_as_json())
        }
        Err(failure) => failure.report(),
    }
}

/// Whether a script reads what is told.
fn speaks_json(words: impl Iterator<Item = OsString>) -> bool {
    // Behind `--` there are no flags.
    words.take_while(|word| word != "--").any(|word| word == "--json")
}

/// The subcommand of a command line that begins with an option.
fn misplaced(mut words: impl Iterator<Item = OsString>) -> Option<String> {
    let begins_with_option = words.next()?.as_encoded_bytes().starts_with(b"-");
    let command = CommandLine::command();
    let name = words.find_map(|word| command.find_subcommand(word).map(clap::Command::get_name))?;
    begins_with_option.then(|| name.to_owned())
}

/// Tells what is wrong with the command line, or the help that it asks for; gives the exit code.
fn wrong_command_line(error: &clap::Error) -> u8 {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Where it can't be written nobody is left to be told.
        let _ = error.print();
        return 0;
    }
    let is_of_the_server = std::env::args_os().nth(1).is_some_and(|word| word == "serve");
    if speaks_json(std::env::args_os()) && !is_of_the_server {
        let text = error.render().to_string();
        let message = text.trim().trim_start_matches("error: ");
        return Failure::usage(message).report_as_json();
    }
    let _ = error.print();
    if let Some(name) = misplaced(std::env::args_os().skip(1)) {
        tell(&format!("tip: options of {name} stand behind that word"));
    }
    // Its command line is a part of its configuration.
    if is_of_the_server { USAGE } else { COMMAND_LINE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_before_its_word_is_noticed() {
        let of = |line: &str| misplaced(line.split(' ').map(OsString::from));
        assert_eq!(of("-m x run hi").as_deref(), Some("run"));
        assert_eq!(of("run -m x"), None);
        assert_eq!(of("-m x"), None);
    }

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
