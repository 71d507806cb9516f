//! `exec`: a drop-in for `codex exec`, for the SDKs, actions and scripts that start one process per turn.
//!
//! The same command line, the same output (JSONL, or for people), the same exit status; the turn itself
//! runs on the sidecar's warm pool. One process is one turn, so this stays small: one thread for the
//! connection, one for standard output, nothing read or built that a turn does not need.
//!
//! SIGINT interrupts the turn and goes on until it has ended, as the real one does. SIGTERM has no
//! handler, as in the real one: the process dies by it at once, and the sidecar interrupts a turn
//! whose caller is gone. SIGKILL, with which SDKs give up, comes to the same.

mod args;
mod credentials;
mod front;
mod human;
mod jsonl;
mod last;
mod output;
pub(crate) mod overrides;
mod prompt;
pub(in crate::cli) mod request;
mod review;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;

pub(super) use self::args::ExecArgs;
use self::credentials::Wanted;
use self::human::{Header, Paint};
use self::output::{Display, Form};
use self::request::{Asked, Place, Said};
use super::client;
use super::failure::{CommandResult, Failure, tell};
use super::refusal::Words;
use super::turn::{Outcome, Told, run_turn};
use crate::grpc::caller::Caller;

/// Wrong usage, as the real one has it.
const WRONG_USAGE: u8 = 2;
/// How long to try to reach the sidecar. Whoever waits for it is told within a second.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(800);
/// How long the comparison of credentials may hold up the end of a turn.
const COMPARE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs `exec` if the command line is one of it: its first word is that, or there are options before
/// it, as `codex` takes them.
pub(super) fn main(arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let args = match front::parse(arguments.collect())? {
        Ok(args) => args,
        Err(error) => {
            // Where it can't be written nobody is left to be told.
            let _ = error.print();
            let asked_for =
                matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return Some(ExitCode::from(if asked_for { 0 } else { WRONG_USAGE }));
        }
    };
    if let Some(refusal) = args.refusal() {
        tell(&format!("error: {refusal}"));
        return Some(ExitCode::from(WRONG_USAGE));
    }
    Some(match exec(&args) {
        Ok(code) => ExitCode::from(code),
        Err(Failure::OutputClosed) => Failure::OutputClosed.report(),
        Err(failure) => {
            tell(&as_codex(failure.into_message()));
            ExitCode::FAILURE
        }
    })
}

fn exec(args: &ExecArgs) -> CommandResult {
    let asked = asked(args)?;
    for warning in &asked.warnings {
        tell(&format!("warning: {warning}"));
    }
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let addr = client::default_addr();
    let credentials = client::CredentialArgs::default().read()?;

    // One thread: there is one connection to serve.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(format!("can't start the runtime: {error}")))?;
    let ran = runtime.block_on(async {
        let connecting =
            client::connect_within(&addr, &credentials, CONNECT_TIMEOUT, "CODEX_SIDECAR_ADDR");
        let caller = connecting.await?;
        run(args, asked, &caller, &env).await
    });
    runtime.shutdown_background();
    ran
}

async fn run(
    args: &ExecArgs,
    asked: Asked,
    caller: &Caller,
    env: &dyn Fn(&str) -> Option<String>,
) -> CommandResult {
    let Asked { mut request, base_url, thoughts, prompt, resume_last, warnings: _ } = asked;
    let wanted = Wanted::of(base_url, env);
    let form = if args.flags.json {
        Form::Jsonl(jsonl::Renderer::default())
    } else {
        let cli_version = match caller.get_server_info().await {
            Ok(info) => info.cli_version,
            Err(_) => String::new(),
        };
        let header = Header::of(&request, cli_version, prompt);
        let paint = Paint::asked(args.flags.color.as_deref());
        Form::Human(Box::new(human::Renderer::new(
            header,
            thoughts,
            paint,
            request.review.is_some(),
        )))
    };
    let words = Words::of_exec(&request);
    let is_review = request.review.is_some();
    let mut display =
        Display::start(form, words, is_review, args.flags.output_last_message.as_deref())?;
    if let Some(last) = resume_last {
        last::find(last, caller, &mut request).await?;
    }
    let comparing = tokio::spawn(credentials::compare(wanted, caller.clone()));
    let told = run_turn(caller, request, &mut display).await;
    let _ = tokio::time::timeout(COMPARE_TIMEOUT, comparing).await;
    // Whatever was rendered is written before anything is told about the end.
    let has_completed = matches!(&told, Ok(Told { outcome: Outcome::Completed(_), .. }));
    let failed_on_the_way = display.finish(has_completed)?;
    Ok(match told?.outcome {
        Outcome::Completed(_) => u8::from(failed_on_the_way),
        Outcome::Failed(_) | Outcome::Interrupted => 1,
    })
}

/// Reads what has to be read here: the files and the prompt.
fn asked(args: &ExecArgs) -> Result<Asked, Failure> {
    let directory = std::env::current_dir()
        .map_err(|error| failed(format!("can't tell the working directory: {error}")))?;
    let context_id = std::env::var("CODEX_SIDECAR_CONTEXT").ok();
    let context_id = context_id.as_deref().map(str::trim).filter(|id| !id.is_empty());
    let place = Place { directory: &directory, context_id };
    // Before anything that can fail: the SDKs write the prompt whether or not somebody reads it,
    // and a broken pipe would hide from them what is told here.
    let said = match args.review() {
        // The others have no effect on a review, as with the real one.
        Some(review) => return request::ask(args, place, Said::Review(review.read()?)),
        None => prompt::resolve(args.prompt(), args.is_resume())?,
    };
    let schema = match &args.flags.output_schema {
        Some(path) => read_schema(path)?,
        None => String::new(),
    };
    request::ask(args, place, Said::Prompt { text: said, output_schema: schema })
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

/// The line that says why there was no turn: what the real one finds out while it reads what it was
/// given it tells as it is, all else as an error.
fn as_codex(message: String) -> String {
    const BARE: [&str; 6] = [
        "Error parsing -c overrides: ",
        "Failed to read output schema file ",
        "Failed to read prompt from stdin: ",
        "No prompt provided",
        "Not inside a trusted directory",
        "Output schema file ",
    ];
    if BARE.iter().any(|start| message.starts_with(start)) {
        return message;
    }
    format!("Error: {message}")
}

fn failed(message: impl Into<String>) -> Failure {
    Failure::told(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_wrong_is_told_as_codex_tells_it() {
        let bare = "Error parsing -c overrides: Invalid override (missing '='): x";
        assert_eq!(as_codex(bare.to_owned()), bare);
        let other = "Specify --uncommitted, --base, --commit";
        assert_eq!(as_codex(other.to_owned()), format!("Error: {other}"));
    }
}
