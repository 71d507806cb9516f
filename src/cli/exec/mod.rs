//! `exec`: a drop-in for `codex exec --json`, for the SDKs that start one process per turn.
//!
//! The same command line, the same JSONL on standard output, the same exit status; the turn itself
//! runs on the sidecar's warm pool. One process is one turn, so this stays small: one thread for the
//! connection, one for standard output, nothing read or built that a turn does not need.
//!
//! SIGINT interrupts the turn and goes on until it has ended, as the real one does. SIGTERM has no
//! handler, as in the real one: the process dies by it at once, and the sidecar interrupts a turn
//! whose caller is gone. SIGKILL, with which SDKs give up, comes to the same.

mod args;
mod credentials;
mod jsonl;
mod overrides;
mod prompt;
mod request;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use clap::Parser as _;
use clap::error::ErrorKind;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::args::ExecArgs;

use self::credentials::Wanted;
use self::jsonl::{Line, Renderer};
use self::request::Asked;
use super::client;
use super::failure::{Failure, Outcome, tell};
use crate::grpc::caller::{Caller, Refused, TurnEvents};
use crate::pb;
use crate::pb::codex_request::Kind as Question;
use crate::pb::turn_event::Event;

/// Wrong usage, as the real one has it.
const WRONG_USAGE: u8 = 2;
/// How long to try to reach the sidecar. Whoever waits for it is told within a second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(800);
/// How long the comparison of credentials may hold up the end of a turn.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs `exec` with what follows that word on the command line.
pub(super) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let name = OsString::from("codex-sidecar exec");
    let args = match ExecArgs::try_parse_from(std::iter::once(name).chain(arguments)) {
        Ok(args) => args,
        Err(error) => {
            // Where it can't be written nobody is left to be told.
            let _ = error.print();
            let asked_for =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked_for { 0 } else { WRONG_USAGE });
        }
    };
    match exec(&args) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(),
    }
}

fn exec(args: &ExecArgs) -> Outcome {
    if let Some(message) = args.refusal() {
        return Err(Failure::Told { message, code: WRONG_USAGE });
    }
    if !args.flags.json {
        let message = "only the JSONL output is offered here: add --json".to_owned();
        return Err(Failure::Told { message, code: WRONG_USAGE });
    }
    let asked = asked(args)?;
    for warning in &asked.warnings {
        tell(&format!("warning: {warning}"));
    }
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let wanted = Wanted::of(asked.base_url, &env);
    let addr = env("CODEX_SIDECAR_ADDR").unwrap_or_else(|| client::DEFAULT_ADDR.to_owned());

    // One thread: there is one connection to serve.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format!("can't start the runtime: {error}")))?;
    let outcome = runtime.block_on(async {
        let connecting = client::connect_within(&addr, CONNECT_TIMEOUT, "CODEX_SIDECAR_ADDR");
        let caller = connecting.await.map_err(exit_1)?;
        let comparing = tokio::spawn(credentials::compare(wanted, caller.clone()));
        let ended = run_turn(&caller, asked.request).await;
        let _ = tokio::time::timeout(COMPARE_TIMEOUT, comparing).await;
        ended
    });
    runtime.shutdown_background();
    let Ended { code, last_message } = outcome?;
    if let (Some(path), 0) = (&args.flags.output_last_message, code) {
        write_last_message(path, last_message.as_deref());
    }
    Ok(code)
}

/// Reads what has to be read here: the files and the prompt.
fn asked(args: &ExecArgs) -> Result<Asked, Failure> {
    let directory = std::env::current_dir()
        .map_err(|error| failed(format!("can't tell the working directory: {error}")))?;
    let context_id = std::env::var("CODEX_SIDECAR_CONTEXT").ok();
    let context_id = context_id.as_deref().map(str::trim).filter(|id| !id.is_empty());
    // Before anything that can fail: the SDKs write the prompt whether or not somebody reads it,
    // and a broken pipe would hide from them what is told here.
    let prompt = prompt::resolve(args.prompt(), args.is_resume())?;
    let schema = match &args.flags.output_schema {
        Some(path) => read_schema(path)?,
        None => String::new(),
    };
    request::ask(args, request::Caller { directory: &directory, context_id }, prompt, schema)
}

fn read_schema(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        failed(format!("Failed to read output schema file {}: {error}", path.display()))
    })?;
    serde_json::from_str::<serde::de::IgnoredAny>(&text).map_err(|error| {
        failed(format!("Output schema file {} is not valid JSON: {error}", path.display()))
    })?;
    Ok(text)
}

fn write_last_message(path: &Path, message: Option<&str>) {
    if message.is_none() {
        let path = path.display();
        tell(&format!("Warning: no last agent message; wrote empty content to {path}"));
    }
    if let Err(error) = std::fs::write(path, message.unwrap_or_default()) {
        tell(&format!("Failed to write last message file {}: {error}", path.display()));
    }
}

/// How a turn ended.
struct Ended {
    code: u8,
    last_message: Option<String>,
}

async fn run_turn(caller: &Caller, request: pb::RunTurnRequest) -> Result<Ended, Failure> {
    let mut interrupts = signal(SignalKind::interrupt())
        .map_err(|error| failed(format!("can't listen for signals: {error}")))?;
    let mut ended = Ended { code: 1, last_message: None };
    let mut stream = tokio::select! {
        // The server may answer only with the first event.
        events = caller.run_turn(request) => events.map_err(refused)?,
        // Dropping the call interrupts a turn that has begun.
        _ = interrupts.recv() => return Ok(ended),
    };
    let output = Output::start();
    let told = follow(&mut stream, &mut interrupts, caller, &output, &mut ended).await;
    // Whatever was rendered is written before anything is told about the end.
    output.finish()?;
    told.map(|()| ended)
}

async fn follow(
    events: &mut TurnEvents,
    interrupts: &mut Signal,
    caller: &Caller,
    output: &Output,
    ended: &mut Ended,
) -> Result<(), Failure> {
    let mut renderer = Renderer::default();
    let mut turn_id = String::new();
    let mut interrupting = false;
    let mut is_over = false;
    let mut failed_on_the_way = false;
    loop {
        let event = tokio::select! {
            // First, so that a flood of events can't delay it.
            biased;
            _ = interrupts.recv() => {
                if interrupting || turn_id.is_empty() {
                    return Ok(());
                }
                interrupting = true;
                tokio::spawn(interrupt(caller.clone(), turn_id.clone()));
                continue;
            }
            event = events.next() => event.map_err(refused)?,
        };
        let Some(event) = event else { break };
        if turn_id.is_empty() {
            turn_id.clone_from(&event.turn_id);
        }
        for line in renderer.event(&event) {
            output.line(&line)?;
        }
        match event.event {
            Some(Event::ItemCompleted(pb::ItemCompleted { item: Some(item) })) => {
                if let Some(pb::item::Kind::AgentMessage(message)) = item.kind {
                    ended.last_message = Some(message.text);
                }
            }
            Some(Event::ThreadError(pb::ThreadError { will_retry: false, .. })) => {
                failed_on_the_way = true;
            }
            Some(Event::Warning(warning)) if !jsonl::is_from_codex(&warning) => {
                tell(&format!("warning: {}", warning.message));
            }
            Some(Event::RequestRaised(pb::RequestRaised { request: Some(request) })) => {
                tokio::spawn(answer(caller.clone(), turn_id.clone(), request));
            }
            Some(Event::TurnCompleted(_)) => {
                is_over = true;
                ended.code = u8::from(failed_on_the_way);
            }
            Some(Event::TurnFailed(_) | Event::TurnInterrupted(_)) => is_over = true,
            _ => {}
        }
    }
    if is_over {
        Ok(())
    } else {
        Err(failed("the stream ended without a terminal event, against the contract"))
    }
}

async fn interrupt(caller: Caller, turn_id: String) {
    if let Err(refused) = caller.interrupt_turn(turn_id).await {
        tell(&format!("warning: can't interrupt the turn: {}", refused.message));
    }
}

/// Says no at once, as the real one does: nobody is there to be asked. A sidecar that has said so
/// itself answers with an error, which is no news.
async fn answer(caller: Caller, turn_id: String, request: pb::CodexRequest) {
    use pb::answer_request_request::Answer;
    let answer = match request.kind {
        Some(Question::CommandApproval(_) | Question::FileChangeApproval(_)) => {
            let decision = pb::ApprovalDecision::Decline.into();
            Answer::Approval(pb::ApprovalAnswer { decision, ..Default::default() })
        }
        Some(Question::PermissionsApproval(_)) => Answer::Permissions(Default::default()),
        Some(Question::UserQuestions(_)) => Answer::UserQuestions(Default::default()),
        Some(Question::Elicitation(_)) => {
            let action = pb::ElicitationAction::Cancel.into();
            Answer::Elicitation(pb::ElicitationAnswer { action, ..Default::default() })
        }
        Some(Question::ToolCall(_)) => Answer::ToolCall(pb::ToolCallAnswer::default()),
        Some(Question::Unknown(_)) | None => return,
    };
    let request_id = request.request_id;
    let answered = pb::AnswerRequestRequest { turn_id, request_id, answer: Some(answer) };
    let _ = caller.answer_request(answered).await;
}

/// A refusal, as an exit status of 1 and what the real one would say where it is known.
fn refused(refused: Refused) -> Failure {
    match refused.reason.as_deref() {
        Some("NOT_A_GIT_REPOSITORY") => {
            failed("Not inside a trusted directory and --skip-git-repo-check was not specified.")
        }
        _ => Failure::from(refused),
    }
}

/// The real one knows two exit statuses of its own, and 64 is none of them.
fn exit_1(failure: Failure) -> Failure {
    match failure {
        Failure::Told { message, code: _ } => failed(message),
        Failure::OutputClosed => Failure::OutputClosed,
    }
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::told(message)
}

/// Standard output, on a thread of its own: whoever reads slowly must not keep this process from
/// reading the stream, of which the sidecar retains only so much.
struct Output {
    lines: mpsc::Sender<Vec<u8>>,
    writer: std::thread::JoinHandle<io::Result<()>>,
}

impl Output {
    fn start() -> Output {
        let (lines, queue) = mpsc::channel::<Vec<u8>>();
        let writer = std::thread::spawn(move || {
            let mut out = io::stdout().lock();
            for line in queue {
                out.write_all(&line)?;
            }
            out.flush()
        });
        Output { lines, writer }
    }

    fn line(&self, line: &Line<'_>) -> Result<(), Failure> {
        let mut text = serde_json::to_vec(line)
            .map_err(|error| failed(format!("can't render an event: {error}")))?;
        text.push(b'\n');
        // It ends early only when it can't write; `finish` knows why.
        self.lines.send(text).map_err(|_| Failure::OutputClosed)
    }

    /// Waits until all is written.
    fn finish(self) -> Result<(), Failure> {
        let Output { lines, writer } = self;
        drop(lines);
        match writer.join() {
            Ok(written) => Ok(written?),
            Err(_) => Err(failed("can't write to standard output")),
        }
    }
}
