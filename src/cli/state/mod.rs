//! `state`: what a sidecar keeps over its end, looked at, taken out, and put in.

mod check;
mod export;
mod import;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::failure::{CommandResult, Failure};
use super::{UNREACHABLE, USAGE};
use crate::config::{Config, ServeArgs};
use crate::registry::ledger::advice;
use crate::registry::ledger::file::{self, FileFault, Salvaged};

#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  codex-sidecar state export -o state.jsonl          of a sidecar that has ended
  codex-sidecar state export --addr 127.0.0.1:50061  of one that runs; its turns go on
  codex-sidecar state import state.jsonl             on another machine, before its sidecar starts
  codex-sidecar state check
  codex-sidecar state check --config sidecar.toml --tenant research

The state names Codex's threads, which are in CODEX_HOME/sessions: copy that, too, for another machine.

Exit status:
   0  done
   1  the state is damaged or not there, or lines are not whole; of `export`: with what could be read, if any
   2  a wrong command line
   3  `import`: the state says otherwise than the lines (--replace lets them win)
      `export --addr`: the sidecar refuses
  64  a wrong configuration, or a state that can be in no such file
  69  a sidecar has the state, or none can be reached at --addr
After all but 0, and but 1 of `export`, nothing was changed or written.")]
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
    /// Say what is in the state, and whether it is whole: exit status 0 if it is
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
struct StateFileArgs {
    /// The file [env: CODEX_SIDECAR_STATE] [default: sidecar.redb in CODEX_HOME]
    #[arg(long, value_name = "PATH")]
    state: Option<OsString>,
    /// The CODEX_HOME that it is in [env: CODEX_HOME] [default: ~/.codex]
    #[arg(long, value_name = "DIR")]
    codex_home: Option<OsString>,
    /// The sidecar's configuration, which may say where it is [env: CODEX_SIDECAR_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<OsString>,
    /// Of which tenant of the configuration [default: the top level's]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["state", "codex_home"])]
    tenant: Option<String>,
}

impl StateFileArgs {
    /// The file.
    ///
    /// # Errors
    /// A configuration that is wrong, or says that nothing is kept.
    fn path(self) -> Result<PathBuf, Failure> {
        let StateFileArgs { state, codex_home, config, tenant } = self;
        let args = ServeArgs { state, codex_home, config, ..ServeArgs::default() };
        let config = Config::load(args, &|name| std::env::var_os(name)).map_err(|errors| {
            let faults: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            Failure::Told { message: faults.join("\nerror: "), code: USAGE }
        })?;
        of_tenant(&config, tenant.as_deref())?.state_file().ok_or_else(|| Failure::Told {
            message:
                "the configuration says memory, where nothing is kept: name a file with --state"
                    .to_owned(),
            code: USAGE,
        })
    }
}

/// The configuration of the tenant of this name.
fn of_tenant<'a>(config: &'a Config, name: Option<&str>) -> Result<&'a Config, Failure> {
    let Some(name) = name.filter(|name| *name != config.tenant.0) else { return Ok(config) };
    let tenant = config.tenants.get(name).map(|tenant| &tenant.config);
    tenant.ok_or_else(|| {
        let known = std::iter::once(&config.tenant.0).chain(config.tenants.keys());
        let known = known.map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!(
            "--tenant {name:?}: the configuration has no such tenant; it has {known} (--config, \
             CODEX_SIDECAR_CONFIG)"
        );
        Failure::Told { message, code: USAGE }
    })
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
    let code = code(&fault);
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
        FileFault::Damaged(cause) => return damaged(path, &cause, file::look_into(path).ok()),
        FileFault::NotAFile(what) => format!(
            "{shown} is {what}, where no state can be: name a file with --state ([state] path in the \
             configuration)"
        ),
        FileFault::TooNew { version, newest } => format!(
            "a newer sidecar wrote {shown} (version {version}; this one reads up to {newest}): use that \
             sidecar's own `codex-sidecar state`"
        ),
        FileFault::System(cause) => format!("can't read {shown}: {cause}"),
    };
    Failure::Told { message, code }
}

fn code(fault: &FileFault) -> u8 {
    match fault {
        FileFault::InUse => UNREACHABLE,
        FileFault::NotAFile(_) => USAGE,
        FileFault::Missing
        | FileFault::Damaged(_)
        | FileFault::TooNew { .. }
        | FileFault::System(_) => 1,
    }
}

/// Why nothing could be done with a damaged file in which this was found.
fn damaged(path: &Path, cause: &str, found: Option<Salvaged>) -> Failure {
    let cure = match found {
        _ if advice::has_lines(path) => advice::salvage(path),
        Some(Salvaged { records: 0, .. }) => advice::nothing_left(path),
        Some(found) => format!("{}; {}", readable(found), advice::salvage(path)),
        None => advice::salvage(path),
    };
    Failure::told(format!("{} is damaged: {cause}; {cure}", path.display()))
}

fn readable(Salvaged { counts, records }: Salvaged) -> String {
    let (records, are) =
        if records == 1 { ("1 record", "is") } else { (&*format!("{records} records"), "are") };
    format!("{records} in it {are} whole, and what they say is: {counts}")
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
    format!(
        "`codex-sidecar state export --addr {addr}`, with a credential of the tenant whose it is if it asks \
         for one"
    )
}
