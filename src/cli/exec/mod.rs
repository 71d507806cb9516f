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
mod output;
pub(super) mod overrides;
mod prompt;
mod request;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use clap::error::ErrorKind;

use self::args::ExecArgs;
use self::credentials::Wanted;
use self::output::JsonLines;
use self::request::{Asked, Caller};
use super::client;
use super::failure::{CommandResult, Failure, tell};
use super::turn::{Outcome, run_turn};

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

fn exec(args: &ExecArgs) -> CommandResult {
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
    let mut output = JsonLines::start();
    let told = runtime.block_on(async {
        let connecting = client::connect_within(&addr, CONNECT_TIMEOUT, "CODEX_SIDECAR_ADDR");
        let caller = connecting.await.map_err(exit_1)?;
        let comparing = tokio::spawn(credentials::compare(wanted, caller.clone()));
        let told = run_turn(&caller, asked.request, &mut output).await;
        let _ = tokio::time::timeout(COMPARE_TIMEOUT, comparing).await;
        told
    });
    runtime.shutdown_background();
    // Whatever was rendered is written before anything is told about the end.
    let (failed_on_the_way, last_message) = output.finish()?;
    let code = match told?.outcome {
        Outcome::Completed(_) => u8::from(failed_on_the_way),
        Outcome::Failed(_) | Outcome::Interrupted => 1,
    };
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
    request::ask(args, Caller { directory: &directory, context_id }, prompt, schema)
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

/// The real one knows two exit statuses of its own, and 64 is none of them.
fn exit_1(failure: Failure) -> Failure {
    failure.with_code(1)
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::told(message)
}
