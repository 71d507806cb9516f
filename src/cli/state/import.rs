//! `state import`: exported lines into a sidecar's file.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use super::{StateFileArgs, failure, quietly};
use crate::cli::REFUSED;
use crate::cli::failure::{CommandResult, Failure, tell};
use crate::registry::ledger::file::FileFault;
use crate::registry::ledger::import::{self, ImportFault, ImportRules, Imported};
use crate::registry::ledger::lines::LineFault;

/// Most lines that are told of one by one.
const TOLD: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// The lines that `state export` has made; - for standard input
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    lines: PathBuf,
    #[command(flatten)]
    file: StateFileArgs,
    /// Where the state says otherwise, the import wins: a context goes on with the import's thread
    #[arg(long)]
    replace: bool,
    /// Of lines that are not whole, or were made of a damaged state, take those that are
    #[arg(long)]
    partial: bool,
}

pub(super) fn import(args: ImportArgs) -> CommandResult {
    let ImportArgs { lines, file, replace, partial } = args;
    let path = file.path()?;
    needs_directory(&path)?;
    let rules = ImportRules { replace, partial };
    let (name, imported) = if lines.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            return Err(Failure::usage(
                "there is no FILE: name what `codex-sidecar state export` has made, or pipe it in",
            ));
        }
        let name = "standard input".to_owned();
        (name, quietly(|| import::import(&path, io::stdin().lock(), rules)))
    } else {
        let name = lines.display().to_string();
        let cant_read =
            |problem: &dyn Display| Failure::told(format!("can't read {name}: {problem}"));
        let file = File::open(&lines).map_err(|error| cant_read(&error))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(cant_read(&"it is a directory"));
        }
        (name, quietly(|| import::import(&path, BufReader::new(file), rules)))
    };
    let imported = imported.map_err(|fault| not_imported(&path, &name, fault, partial))?;
    let Imported { added, replaced, kept, faults } = imported;
    for line in told(&faults) {
        tell(&format!("{name} is not whole: {line}"));
    }
    let mut out = io::stdout();
    writeln!(out, "imported into {}", path.display())?;
    for (what, counts) in [("new", added), ("replaced", replaced), ("there already", kept)] {
        if counts.total() > 0 {
            writeln!(out, "{what:<14}{counts}")?;
        }
    }
    Ok(0)
}

/// A file can be made, and no directory.
fn needs_directory(path: &Path) -> Result<(), Failure> {
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        Some(_) | None => return Ok(()),
    };
    match directory.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::told(format!(
            "there is no directory {} for the state: make it, or name another file with --state or \
             another CODEX_HOME with --codex-home",
            directory.display()
        ))),
        // What else is wrong with it is found out when the file is made.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn told(faults: &[LineFault]) -> impl Iterator<Item = String> {
    let more = faults.len().saturating_sub(TOLD);
    let lines = faults.iter().take(TOLD);
    let lines = lines.map(|LineFault { line, problem, .. }| match line {
        0 => problem.clone(),
        line => format!("line {line}: {problem}"),
    });
    lines.chain((more > 0).then(|| format!("and {more} more")))
}

fn not_imported(path: &Path, lines: &str, fault: ImportFault, partial: bool) -> Failure {
    match fault {
        ImportFault::File(FileFault::System(cause)) => {
            Failure::told(format!("can't write {}: {cause}", path.display()))
        }
        ImportFault::File(fault) => failure(
            path,
            fault,
            "end it first; what it keeps is changed only by itself (`codex-sidecar contexts bind` binds \
             a context)",
        ),
        ImportFault::Lines(faults) => {
            let is_fatal = faults.iter().any(|fault| fault.is_fatal);
            let hint = match (is_fatal, partial) {
                (true, _) => "",
                (false, false) => "\n--partial takes the lines that are whole, if there are any",
                (false, true) => "\nno line of it can be taken",
            };
            let faults: Vec<String> = told(&faults).map(|line| format!("\n  {line}")).collect();
            let message =
                format!("{lines} is not whole, and nothing was imported:{}{hint}", faults.concat());
            Failure::told(message)
        }
        ImportFault::Conflicts(conflicts, in_all) => {
            let more = in_all - conflicts.len() as u64;
            let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
            let conflicts: Vec<String> =
                conflicts.iter().map(|conflict| format!("\n  {conflict}")).collect();
            let message = format!(
                "{} says otherwise, and nothing was imported:{}{more}\n--replace lets the import win",
                path.display(),
                conflicts.concat()
            );
            Failure::Told { message, code: REFUSED }
        }
    }
}
