//! `state export`: what is kept as JSON lines.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::{PlaceArgs, ask_it, failure, quietly};
use crate::cli::failure::{CommandResult, Failure, tell};
use crate::cli::{client, refusal};
use crate::registry::ledger::file::{self, ExportFault, Exported, Salvaged};

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// The file, in place of --state
    #[arg(value_name = "PATH", conflicts_with = "state")]
    path: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Ask the sidecar that runs at this address, HOST:PORT or unix:PATH, in place of reading a file
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["path", "state", "codex_home", "config"])]
    addr: Option<String>,
    /// Write to this file, which nobody else may read, in place of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn export(args: ExportArgs) -> CommandResult {
    let ExportArgs { path, place, addr, output } = args;
    let output = output.filter(|output| output.as_os_str() != "-");
    let mut out = match &output {
        Some(path) => Output::Beside(NewFile::new(path)?),
        None => Output::Stdout(BufWriter::new(io::stdout())),
    };
    match addr {
        Some(addr) => {
            of_running(&addr, &mut out).await?;
            out.done()?;
            Ok(0)
        }
        None => {
            let path = path.map_or_else(|| place.path(), Ok)?;
            let exported = of_file(&path, &mut out)?;
            // What could be read is there, also where that is not all.
            out.done()?;
            match exported {
                Exported::Whole(counts) => {
                    if output.is_some() {
                        tell(&format!("exported {counts}"));
                    }
                    Ok(0)
                }
                Exported::Salvaged(cause, salvaged) => Err(partly(&path, &cause, salvaged)),
            }
        }
    }
}

async fn of_running(addr: &str, out: &mut Output) -> Result<(), Failure> {
    let caller = client::connect_to(addr).await?;
    let mut parts = caller.export_state().await.map_err(refusal::failure)?;
    while let Some(part) = parts.next().await.map_err(refusal::failure)? {
        out.write_all(&part).map_err(|error| out.failure(&error))?;
    }
    Ok(())
}

fn of_file(path: &Path, out: &mut Output) -> Result<Exported, Failure> {
    quietly(|| file::export(path, &mut *out)).map_err(|fault| match fault {
        ExportFault::File(fault) => {
            failure(path, fault, &format!("ask it with {}, or end it first", ask_it(path)))
        }
        ExportFault::Out(error) => out.failure(&error),
    })
}

fn partly(path: &Path, cause: &str, salvaged: Salvaged) -> Failure {
    let Salvaged { counts, records } = salvaged;
    Failure::told(format!(
        "{} is damaged: {cause}; {records} records were found that are whole by themselves, and exported \
         is what they say: {counts}. It may be older than the last state, and what was deleted may be among \
         it. `codex-sidecar state import --partial` takes it",
        path.display()
    ))
}

/// Where the lines go.
enum Output {
    Stdout(BufWriter<io::Stdout>),
    Beside(NewFile),
}

impl Output {
    fn done(self) -> Result<(), Failure> {
        match self {
            Output::Stdout(mut out) => Ok(out.flush()?),
            Output::Beside(file) => file.done(),
        }
    }

    /// Of an error of writing.
    fn failure(&self, error: &io::Error) -> Failure {
        match self {
            Output::Stdout(_) => io::Error::from(error.kind()).into(),
            Output::Beside(file) => file.failure(error),
        }
    }

    fn inner(&mut self) -> &mut dyn Write {
        match self {
            Output::Stdout(out) => out,
            Output::Beside(file) => &mut file.out,
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner().flush()
    }
}

/// A file that takes its name only when it is whole.
struct NewFile {
    path: PathBuf,
    /// What it is called until then; none where the name is that of a device or a pipe.
    beside: Option<PathBuf>,
    out: BufWriter<File>,
}

impl NewFile {
    fn new(path: &Path) -> Result<NewFile, Failure> {
        let is_special = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        let beside = (!is_special).then(|| {
            let mut name = path.as_os_str().to_owned();
            name.push(".new");
            PathBuf::from(name)
        });
        let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        match &beside {
            Some(_) => options.create(true).truncate(true).mode(0o600).custom_flags(no_links),
            None => &mut options,
        };
        let opened = options.write(true).open(beside.as_deref().unwrap_or(path)).and_then(|file| {
            if beside.is_some() {
                // One that an earlier try has left may be another's to read.
                file.set_permissions(Permissions::from_mode(0o600))?;
            }
            Ok(file)
        });
        let file = opened.map_err(|error| cant_write(path, &error))?;
        Ok(NewFile { path: path.to_owned(), beside, out: BufWriter::new(file) })
    }

    fn done(mut self) -> Result<(), Failure> {
        let written = self.out.flush().and_then(|()| match self.beside.take() {
            Some(beside) => {
                self.out.get_ref().sync_all()?;
                std::fs::rename(beside, &self.path)
            }
            None => Ok(()),
        });
        written.map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &io::Error) -> Failure {
        cant_write(&self.path, error)
    }
}

fn cant_write(path: &Path, error: &io::Error) -> Failure {
    Failure::told(format!("can't write -o {}: {error}", path.display()))
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            // What is not whole is nobody's.
            let _ = std::fs::remove_file(beside);
        }
    }
}
