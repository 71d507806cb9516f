//! `state check`: what is in the file, and whether it is whole.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{StateFileArgs, ask_it, code, damaged, failure, quietly};
use crate::cli::failure::CommandResult;
use crate::cli::words;
use crate::registry::ledger::advice;
use crate::registry::ledger::file::{self, Checked, FileFault, Salvaged};
use crate::registry::ledger::lines::Counts;

#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The file, in place of --state
    #[arg(value_name = "PATH", conflicts_with_all = ["state", "tenant"])]
    path: Option<PathBuf>,
    #[command(flatten)]
    file: StateFileArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn check(args: CheckArgs) -> CommandResult {
    let CheckArgs { path, file: named, json } = args;
    let path = path.map_or_else(|| named.path(), Ok)?;
    let (checked, salvaged) = quietly(|| {
        let checked = file::check(&path);
        let is_damaged = matches!(checked, Err(FileFault::Damaged(_)));
        // What can't be read either is not told twice.
        let salvaged = is_damaged.then(|| file::look_into(&path).ok()).flatten();
        (checked, salvaged)
    });
    let mut out = io::stdout();
    if json {
        let (line, code) = line(&path, checked, salvaged);
        writeln!(out, "{line}")?;
        return Ok(code);
    }
    match (checked, salvaged) {
        (Ok(checked), _) => {
            out.write_all(text(&path, &checked).as_bytes())?;
            Ok(0)
        }
        (Err(FileFault::Damaged(cause)), salvaged) => Err(damaged(&path, &cause, salvaged)),
        (Err(fault), _) => Err(failure(&path, fault, &busy(&path))),
    }
}

fn busy(path: &Path) -> String {
    format!("it can be checked when that one has ended; what it has is shown by {}", ask_it(path))
}

fn text(path: &Path, checked: &Checked) -> String {
    let Checked { version, counts, unended_turns, request_ids, bytes, written_at } = checked;
    let written = match written_at {
        Some(time) => {
            let time = prost_types::Timestamp::from(*time);
            format!("{time} ({} ago)", words::ago(Some(&time)))
        }
        None => "-".to_owned(),
    };
    let Counts { contexts, evicted_contexts, threads, turns, directories, tokens } = counts;
    let lines = [
        ("state", format!("{} is whole", path.display())),
        ("version", version.to_string()),
        ("size", format!("{bytes} bytes")),
        ("last write", written),
        ("contexts", format!("{contexts}, and {evicted_contexts} evicted")),
        ("threads", threads.to_string()),
        ("turns", format!("{turns}, {unended_turns} without an end; {request_ids} request ids")),
        ("directories", directories.to_string()),
        ("tokens", if *tokens > 0 { "of a day" } else { "none" }.to_owned()),
    ];
    lines.map(|(name, value)| format!("{name:<13}{value}\n")).concat()
}

/// The same for a script, and the exit code.
fn line(
    path: &Path,
    checked: Result<Checked, FileFault>,
    salvaged: Option<Salvaged>,
) -> (Value, u8) {
    let shown = path.display().to_string();
    let checked = match checked {
        Ok(checked) => checked,
        Err(fault) => {
            let state = match &fault {
                FileFault::Missing => "missing",
                FileFault::InUse => "in_use",
                FileFault::Damaged(_) => "damaged",
                FileFault::NotAFile(_) => "not_a_file",
                FileFault::TooNew { .. } => "too_new",
                FileFault::System(_) => "unreadable",
            };
            let code = code(&fault);
            let mut line = json!({ "path": shown, "state": state });
            if fault == FileFault::InUse {
                line["owner"] = advice::owner(path).into();
            }
            let failure = match fault {
                FileFault::Damaged(cause) => damaged(path, &cause, salvaged),
                fault => failure(path, fault, &busy(path)),
            };
            line["message"] = failure.into_message().into();
            if let Some(Salvaged { counts, records }) = salvaged {
                line["readable"] = json!({ "records": records, "counts": count(counts) });
            }
            return (line, code);
        }
    };
    let Checked { version, counts, unended_turns, request_ids, bytes, written_at } = checked;
    let written = written_at.map(|time| prost_types::Timestamp::from(time).to_string());
    let line = json!({
        "path": shown,
        "state": "whole",
        "version": version,
        "bytes": bytes,
        "write_time": written,
        "counts": count(counts),
        "unended_turns": unended_turns,
        "request_ids": request_ids,
    });
    (line, 0)
}

fn count(counts: Counts) -> Value {
    let Counts { contexts, evicted_contexts, threads, turns, directories, tokens } = counts;
    json!({
        "contexts": contexts,
        "evicted_contexts": evicted_contexts,
        "threads": threads,
        "turns": turns,
        "directories": directories,
        "tokens": tokens,
    })
}
