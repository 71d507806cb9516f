//! `run`: one turn, printed as it goes.

mod request;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;

use super::client::{self, AddrArgs};
use super::failure::{CommandResult, Failure};
use super::printer::{Printer, colours_wanted};
use super::turn::{Outcome, Output, run_turn};
use super::words::show_error;
use super::{INTERRUPTED, json};
use crate::pb;

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("thread-choice").required(true).multiple(true)
    .args(["context", "thread", "ephemeral"])))]
pub(super) struct RunArgs {
    #[command(flatten)]
    addr: AddrArgs,
    /// The conversation to continue, or to begin
    #[arg(long, value_name = "ID")]
    context: Option<String>,
    /// Which of the Codex tools speaks: codex, or codex_ and a suffix
    #[arg(long, value_name = "NAME", default_value = "")]
    tool: String,
    /// The thread to continue, a UUID, in place of the context's
    #[arg(long, value_name = "ID")]
    thread: Option<String>,
    /// A new thread that is kept nowhere
    #[arg(long, conflicts_with_all = ["context", "thread"])]
    ephemeral: bool,
    /// The directory to work in, on the sidecar's machine
    #[arg(long, value_name = "DIR")]
    cd: Option<PathBuf>,
    /// Allow a directory outside a git repository
    #[arg(long)]
    skip_git_repo_check: bool,
    /// The model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// What commands may touch
    #[arg(long, value_name = "MODE", value_parser = PossibleValuesParser::new(["read-only", "workspace-write", "danger-full-access"]))]
    sandbox: Option<String>,
    /// The permission profile of the CLI's configuration, in place of a sandbox
    #[arg(long, value_name = "NAME", conflicts_with = "sandbox")]
    permission_profile: Option<String>,
    /// How much of its reasoning the model sums up
    #[arg(long, value_name = "SUMMARY", value_parser = PossibleValuesParser::new(["auto", "concise", "detailed", "none"]))]
    reasoning_summary: Option<String>,
    /// How hard the model thinks: minimal, low, medium, high, xhigh, or what the CLI knows besides
    #[arg(long, value_name = "EFFORT")]
    effort: Option<String>,
    /// When Codex asks before it acts
    #[arg(long, value_name = "POLICY", value_parser = PossibleValuesParser::new(["never", "on-request", "on-failure", "untrusted"]))]
    approval: Option<String>,
    /// An image to show, a file on the sidecar's machine; may be given several times
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// A file with a JSON schema for the final response
    #[arg(long, value_name = "FILE")]
    output_schema: Option<PathBuf>,
    /// Longest time for the turn, like 10m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    turn_timeout: Option<Duration>,
    /// Most tokens of the turn, in and out, sub-agents included; more stop it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_total_tokens: Option<u64>,
    /// Longest time without progress, like 2m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    idle_timeout: Option<Duration>,
    /// Makes it safe to run the same command again: the same id gives the same turn
    #[arg(long, value_name = "ID", default_value = "")]
    request_id: String,
    /// What to do when the thread is busy
    #[arg(long, value_name = "POLICY", value_parser = PossibleValuesParser::new(["queue", "reject", "steer"]))]
    busy: Option<String>,
    /// What the sidecar does with the turn when this client goes away
    #[arg(long, value_name = "POLICY", value_parser = PossibleValuesParser::new(["interrupt", "continue"]))]
    on_disconnect: Option<String>,
    /// Print the events as JSON, one a line
    #[arg(long)]
    json: bool,
    /// What to say; - reads it from stdin
    #[arg(value_name = "PROMPT")]
    prompt: String,
}

pub(super) async fn run(args: RunArgs) -> CommandResult {
    let request = request::of(&args)?;
    let caller = client::connect(&args.addr.addr).await?;
    let told = if args.json {
        run_turn(&caller, request, &mut JsonLines).await?
    } else {
        let mut printer = Printer::new(io::stdout(), colours_wanted());
        run_turn(&caller, request, &mut printer).await?
    };
    match told.outcome {
        Outcome::Completed(_) => Ok(0),
        Outcome::Failed(error) => {
            let advice = if error.retryable { "; trying again may help" } else { "" };
            Err(Failure::told(format!("turn failed: {}{advice}", show_error(&error))))
        }
        Outcome::Interrupted => Ok(INTERRUPTED),
    }
}

/// The events as they are, one a line.
struct JsonLines;

impl Output for JsonLines {
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure> {
        let mut line = json::line(event)?;
        line.push('\n');
        let mut out = io::stdout();
        out.write_all(line.as_bytes())?;
        out.flush()?;
        Ok(())
    }
}
