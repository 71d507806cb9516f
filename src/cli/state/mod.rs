//! `state`: what a sidecar keeps over its end, looked at, taken out, and put in.

mod check;
mod export;
mod import;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::failure::{CommandResult, Failure};
use super::{UNREACHABLE, USAGE};
use crate::config::{Config, ServeArgs};
use crate::registry::ledger::advice;
use crate::registry::ledger::file::FileFault;

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  codex-sidecar state export -o state.jsonl          of a sidecar that has ended
  codex-sidecar state export --addr 127.0.0.1:50061  of one that runs; its turns go on
  codex-sidecar state import state.jsonl             on another machine, before its sidecar starts
  codex-sidecar state check

The state names Codex's threads, which are in CODEX_HOME/sessions: copy that, too, for another machine.")]
pub(super) struct StateArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print the state as JSON lines; of a damaged file what can be read, with exit status 1
    Export(export::ExportArgs),
    /// Put exported lines into the state of a sidecar that does not run: all of them, or none
    Import(import::ImportArgs),
    /// Say what is in the state, and whether it is whole; exit 0 if it is, 1 if not, 69 if a sidecar has it
    Check(check::CheckArgs),
}

pub(super) async fn state(StateArgs { action }: StateArgs) -> CommandResult {
    match action {
        Action::Export(args) => export::export(args).await,
        Action::Import(args) => import::import(args),
        Action::Check(args) => check::check(args),
    }
}

/// Which state, as `serve` would find it.
#[derive(Debug, clap::Args)]
struct PlaceArgs {
    /// The file [env: CODEX_SIDECAR_STATE] [default: sidecar.redb in CODEX_HOME]
    #[arg(long, value_name = "PATH")]
    state: Option<OsString>,
    /// The CODEX_HOME that it is in [env: CODEX_HOME] [default: ~/.codex]
    #[arg(long, value_name = "DIR")]
    codex_home: Option<OsString>,
    /// The sidecar's configuration, which may say where it is [env: CODEX_SIDECAR_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<OsString>,
}

impl PlaceArgs {
    /// The file.
    ///
    /// # Errors
    /// A configuration that is wrong, or says that nothing is kept.
    fn path(self) -> Result<PathBuf, Failure> {
        let PlaceArgs { state, codex_home, config } = self;
        let args = ServeArgs { state, codex_home, config, ..ServeArgs::default() };
        let config = Config::load(args, &|name| std::env::var_os(name)).map_err(|errors| {
            let faults: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            Failure::Told { message: faults.join("\nerror: "), code: USAGE }
        })?;
        config.state_file().ok_or_else(|| Failure::Told {
            message:
                "the configuration says memory, where nothing is kept: name a file with --state"
                    .to_owned(),
            code: USAGE,
        })
    }
}

/// Does something with a ledger's file.
///
/// redb panics on some damaged files. That is caught where it is read, and told in other words.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let done = work();
    std::panic::set_hook(hook);
    done
}

/// Why nothing could be done with the file. `instead` is what can be done while a sidecar has it.
fn failure(path: &Path, fault: FileFault, instead: &str) -> Failure {
    let shown = path.display();
    let code = if fault == FileFault::InUse { UNREACHABLE } else { 1 };
    let message = match fault {
        FileFault::Missing => format!(
            "there is no state at {shown}: a sidecar makes it when it starts; another one is named by \
             --state or --codex-home"
        ),
        FileFault::InUse => {
            let who = match advice::owner(path) {
                Some(owner) => format!("a sidecar ({owner})"),
                None => "another process".to_owned(),
            };
            format!("{who} has {shown} open: {instead}")
        }
        FileFault::Damaged(cause) => {
            format!("{shown} is damaged: {cause}; {}", advice::salvage(path))
        }
        FileFault::TooNew { version, newest } => format!(
            "a newer sidecar wrote {shown} (version {version}; this one reads up to {newest}): use that \
             sidecar's own `codex-sidecar state`"
        ),
        FileFault::System(cause) => format!("can't read {shown}: {cause}"),
    };
    Failure::Told { message, code }
}

/// How to ask the sidecar that has the file.
fn ask_it(path: &Path) -> String {
    let addr = advice::owner(path)
        .and_then(|owner| {
            let (_, addresses) = owner.split_once(", listening on ")?;
            addresses.split(", ").next().map(str::to_owned)
        })
        .filter(|addr| addr.contains(':'))
        .unwrap_or_else(|| "ADDR".to_owned());
    format!("`codex-sidecar state export --addr {addr}`")
}
