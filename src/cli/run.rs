//! `run`: one turn, printed as it goes.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use tokio::signal::unix::{SignalKind, signal};

use super::client::{self, AddrArgs};
use super::failure::{Failure, Outcome, describe, tell};
use super::printer::{Printer, colours_wanted};
use super::words::show_error;
use super::{INTERRUPTED, USAGE, json};
use crate::grpc::caller::Caller;
use crate::pb;
use crate::pb::turn_event::Event;

/// Arguments of `run`.
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

/// Runs `run`.
pub(super) async fn run(args: RunArgs) -> Outcome {
    let request = request(&args)?;
    let caller = client::connect(&args.addr.addr).await?;
    let mut output = if args.json {
        Output::Json
    } else {
        Output::People(Box::new(Printer::new(io::stdout(), colours_wanted())))
    };
    match run_turn(&caller, request, &mut output).await?.ended {
        Ended::Completed(_) => Ok(0),
        Ended::Failed(error) => {
            let advice = if error.retryable { "; trying again may help" } else { "" };
            Err(Failure::told(format!("turn failed: {}{advice}", show_error(&error))))
        }
        Ended::Interrupted => Ok(INTERRUPTED),
    }
}

/// Where events go.
pub(super) enum Output {
    Json,
    People(Box<Printer<io::Stdout>>),
}

impl Output {
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure> {
        match self {
            Output::Json => {
                let mut line = json::line(event)?;
                line.push('\n');
                let mut out = io::stdout();
                out.write_all(line.as_bytes())?;
                out.flush()?;
            }
            Output::People(printer) => printer.event(event)?,
        }
        Ok(())
    }

    /// Makes way for a line on stderr, which may be the same terminal.
    fn finish_line(&mut self) -> Result<(), Failure> {
        if let Output::People(printer) = self {
            printer.finish_line()?;
        }
        Ok(())
    }
}

/// What the stream of a turn told.
#[derive(Debug)]
pub(super) struct Told {
    /// The thread that it ran on; empty when it never had one.
    pub(super) thread_id: String,
    /// How it ended.
    pub(super) ended: Ended,
}

/// How a turn ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Well, with this final response.
    Completed(String),
    Failed(Box<pb::TurnError>),
    Interrupted,
}

/// Runs a turn and prints it. Ctrl-C interrupts the turn and goes on until it has ended; a second
/// one leaves at once, and so does the first as long as there is no turn to interrupt.
pub(super) async fn run_turn(
    caller: &Caller,
    request: pb::RunTurnRequest,
    output: &mut Output,
) -> Result<Told, Failure> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| Failure::told(format!("can't listen for signals: {error}")))?;
    let mut thread_id = String::new();
    let mut events = tokio::select! {
        // The server may answer only with the first event.
        events = caller.run_turn(request) => events?,
        _ = interrupts.recv() => return Ok(Told { thread_id, ended: Ended::Interrupted }),
    };

    let mut turn_id = String::new();
    let mut interrupting = false;
    let mut ended = None;
    loop {
        let event = tokio::select! {
            // First, so that a flood of events can't delay it.
            biased;
            _ = interrupts.recv() => {
                if interrupting || turn_id.is_empty() {
                    return Ok(Told { thread_id, ended: Ended::Interrupted });
                }
                interrupting = true;
                output.finish_line()?;
                tell("interrupting the turn; once more to leave at once");
                tokio::spawn(interrupt(caller.clone(), turn_id.clone()));
                continue;
            }
            event = events.next() => event,
        };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(refused) => {
                output.finish_line()?;
                return Err(refused.into());
            }
        };
        output.event(&event)?;
        turn_id = event.turn_id;
        match event.event {
            Some(Event::ThreadStarted(thread)) => thread_id = thread.thread_id,
            Some(Event::TurnCompleted(done)) => ended = Some(Ended::Completed(done.final_response)),
            Some(Event::TurnFailed(failed)) => {
                ended = Some(Ended::Failed(Box::new(failed.error.unwrap_or_default())));
            }
            Some(Event::TurnInterrupted(_)) => ended = Some(Ended::Interrupted),
            _ => {}
        }
    }
    match ended {
        Some(ended) => Ok(Told { thread_id, ended }),
        None => {
            Err(Failure::told("the stream ended without a terminal event, against the contract"))
        }
    }
}

async fn interrupt(caller: Caller, turn_id: String) {
    if let Err(refused) = caller.interrupt_turn(turn_id).await {
        tell(&format!("error: can't interrupt the turn: {}", describe(&refused)));
    }
}

/// The request that the arguments ask for. Only what has to be read here is looked at here; the
/// rest is the sidecar's to judge.
fn request(args: &RunArgs) -> Result<pb::RunTurnRequest, Failure> {
    let RunArgs {
        addr: _,
        context,
        tool,
        thread,
        ephemeral,
        cd,
        skip_git_repo_check,
        model,
        sandbox,
        permission_profile,
        reasoning_summary,
        effort,
        approval,
        image,
        output_schema,
        turn_timeout,
        max_total_tokens,
        idle_timeout,
        request_id,
        busy,
        on_disconnect,
        json: _,
        prompt,
    } = args;

    let prompt = if prompt == "-" { read_stdin()? } else { prompt.clone() };
    let mut inputs = vec![input(pb::user_input::Input::Text(prompt))];
    for path in image {
        let path = absolute(path)?;
        inputs.push(input(pb::user_input::Input::LocalImage(pb::LocalImage { path })));
    }
    let output_schema = match output_schema {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            usage(format!("can't read the output schema {}: {error}", path.display()))
        })?,
        None => String::new(),
    };

    let mut thread_options = pb::ThreadOptions {
        model: model.clone(),
        working_directory: cd.as_deref().map(absolute).transpose()?,
        skip_git_repo_check: skip_git_repo_check.then_some(true),
        permission_profile: permission_profile.clone().unwrap_or_default(),
        ..Default::default()
    };
    if let Some(mode) = sandbox
        .as_deref()
        .and_then(|text| pb::SandboxMode::from_str_name(&enum_name("SANDBOX_MODE_", text)))
    {
        thread_options.set_sandbox_mode(mode);
    }
    if let Some(policy) = approval
        .as_deref()
        .and_then(|text| pb::ApprovalPolicy::from_str_name(&enum_name("APPROVAL_POLICY_", text)))
    {
        thread_options.set_approval_policy(policy);
    }
    if let Some(summary) = reasoning_summary.as_deref().and_then(|text| {
        pb::ReasoningSummary::from_str_name(&enum_name("REASONING_SUMMARY_", text))
    }) {
        thread_options.set_reasoning_summary(summary);
    }
    if let Some(effort) = effort {
        // By its number where it has one: an older sidecar knows those.
        match pb::ReasoningEffort::from_str_name(&enum_name("REASONING_EFFORT_", effort)) {
            Some(known) if known != pb::ReasoningEffort::Unspecified => {
                thread_options.set_model_reasoning_effort(known);
            }
            _ => thread_options.model_reasoning_effort_name = effort.clone(),
        }
    }

    let mut request = pb::RunTurnRequest {
        context_id: context.clone().unwrap_or_default(),
        tool_name: tool.clone(),
        inputs,
        ephemeral: *ephemeral,
        thread_id: thread.clone().unwrap_or_default(),
        thread_options: Some(thread_options),
        turn_options: Some(pb::TurnOptions {
            output_schema,
            idle_timeout: idle_timeout.map(duration).transpose()?,
            turn_timeout: turn_timeout.map(duration).transpose()?,
            max_total_tokens: max_total_tokens.unwrap_or_default(),
            ..Default::default()
        }),
        request_id: request_id.clone(),
        ..Default::default()
    };
    if let Some(policy) = busy
        .as_deref()
        .and_then(|text| pb::BusyPolicy::from_str_name(&enum_name("BUSY_POLICY_", text)))
    {
        request.set_busy_policy(policy);
    }
    if let Some(policy) = on_disconnect.as_deref().and_then(|text| {
        pb::DisconnectPolicy::from_str_name(&enum_name("DISCONNECT_POLICY_", text))
    }) {
        request.set_disconnect_policy(policy);
    }
    Ok(request)
}

fn input(input: pb::user_input::Input) -> pb::UserInput {
    pb::UserInput { input: Some(input) }
}

/// `read-only` as the contract spells it: `SANDBOX_MODE_READ_ONLY`.
fn enum_name(prefix: &str, text: &str) -> String {
    format!("{prefix}{}", text.to_ascii_uppercase().replace('-', "_"))
}

fn duration(duration: Duration) -> Result<prost_types::Duration, Failure> {
    duration.try_into().map_err(|_| usage(format!("{duration:?} is too long")))
}

/// The path from the root: the sidecar works in another directory than this client.
fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path)
        .map_err(|error| usage(format!("{} can't be made absolute: {error}", path.display())))?;
    let text = absolute.to_str();
    text.map(str::to_owned).ok_or_else(|| usage(format!("{} is not UTF-8", path.display())))
}

fn read_stdin() -> Result<String, Failure> {
    let mut prompt = String::new();
    io::stdin()
        .read_to_string(&mut prompt)
        .map_err(|error| usage(format!("can't read the prompt from stdin: {error}")))?;
    Ok(prompt)
}

fn usage(message: String) -> Failure {
    Failure::Told { message, code: USAGE }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse(line: &[&str]) -> Result<RunArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("run").chain(line.iter().copied()))
            .map(|line| line.run)
    }

    #[test]
    fn every_argument_reaches_the_request() {
        let directory = tempfile::tempdir().unwrap();
        let schema = directory.path().join("schema.json");
        std::fs::write(&schema, "{}").unwrap();
        let args = parse(&[
            "--context",
            "c",
            "--tool",
            "codex_engineer",
            "--thread",
            "t",
            "--cd",
            "/work/./x",
            "--skip-git-repo-check",
            "--model",
            "m",
            "--sandbox",
            "workspace-write",
            "--effort",
            "xhigh",
            "--approval",
            "on-request",
            "--image",
            "/a.png",
            "--image",
            "/b.png",
            "--output-schema",
            schema.to_str().unwrap(),
            "--turn-timeout",
            "1m 500ms",
            "--max-total-tokens",
            "9000",
            "--idle-timeout",
            "2s",
            "--request-id",
            "r",
            "--busy",
            "steer",
            "--on-disconnect",
            "continue",
            "--",
            "-hello",
        ])
        .unwrap();
        let image = |path: &str| {
            input(pb::user_input::Input::LocalImage(pb::LocalImage { path: path.to_owned() }))
        };
        let expected = pb::RunTurnRequest {
            context_id: "c".to_owned(),
            tool_name: "codex_engineer".to_owned(),
            inputs: vec![
                input(pb::user_input::Input::Text("-hello".to_owned())),
                image("/a.png"),
                image("/b.png"),
            ],
            thread_id: "t".to_owned(),
            thread_options: Some(pb::ThreadOptions {
                model: Some("m".to_owned()),
                sandbox_mode: pb::SandboxMode::WorkspaceWrite.into(),
                working_directory: Some("/work/x".to_owned()),
                skip_git_repo_check: Some(true),
                model_reasoning_effort: pb::ReasoningEffort::Xhigh.into(),
                approval_policy: pb::ApprovalPolicy::OnRequest.into(),
                ..Default::default()
            }),
            turn_options: Some(pb::TurnOptions {
                output_schema: "{}".to_owned(),
                idle_timeout: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
                turn_timeout: Some(prost_types::Duration { seconds: 60, nanos: 500_000_000 }),
                max_total_tokens: 9000,
                ..Default::default()
            }),
            request_id: "r".to_owned(),
            busy_policy: pb::BusyPolicy::Steer.into(),
            disconnect_policy: pb::DisconnectPolicy::Continue.into(),
            ..Default::default()
        };
        assert_eq!(request(&args).unwrap(), expected);

        let newer = parse(&["--ephemeral", "--effort", "ultra", "x"]).unwrap();
        let options = request(&newer).unwrap().thread_options.unwrap();
        assert_eq!(options.model_reasoning_effort_name, "ultra");
        assert_eq!(options.model_reasoning_effort, 0);
    }

    #[test]
    fn every_listed_word_is_one_of_the_contract() {
        let words = [
            ("--sandbox", vec!["read-only", "workspace-write", "danger-full-access"]),
            ("--approval", vec!["never", "on-request", "on-failure", "untrusted"]),
            ("--busy", vec!["queue", "reject", "steer"]),
            ("--on-disconnect", vec!["interrupt", "continue"]),
        ];
        for (flag, words) in words {
            for word in words {
                let request = request(&parse(&["--ephemeral", flag, word, "x"]).unwrap()).unwrap();
                let options = request.thread_options.unwrap();
                let numbers = [
                    options.sandbox_mode,
                    options.approval_policy,
                    request.busy_policy,
                    request.disconnect_policy,
                ];
                assert_ne!(numbers, [0; 4], "{flag} {word}");
            }
        }
        assert!(parse(&["x"]).is_err(), "no thread was chosen");
        assert!(parse(&["--ephemeral", "--context", "c", "x"]).is_err());
    }
}
