//! `state export`: what is kept as JSON lines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read as _, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::{StateFileArgs, ask_it, damaged, failure, quietly, readable};
use crate::cli::client::{self, CredentialArgs};
use crate::cli::failure::{CommandResult, Failure, tell};
use crate::cli::refusal;
use crate::registry::ledger::file::{self, ExportFault, Exported, Salvaged};
use crate::registry::ledger::lines::LEDGER;

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// The file, in place of --state
    #[arg(value_name = "PATH", conflicts_with_all = ["state", "tenant"])]
    path: Option<PathBuf>,
    #[command(flatten)]
    file: StateFileArgs,
    /// Ask the sidecar that runs at this address, HOST:PORT, https://HOST:PORT or
    /// unix:PATH, in place of reading a file
    #[arg(long, value_name = "ADDR", conflicts_with_all = ["path", "state", "codex_home", "config", "tenant"])]
    addr: Option<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Write to this file, which nobody else may read, in place of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn export(args: ExportArgs) -> CommandResult {
    let ExportArgs { path, file, addr, credentials, output } = args;
    let output = output.filter(|output| output.as_os_str() != "-");
    // Of none where one that runs is asked.
    let path = match &addr {
        Some(_) => None,
        None => Some(path.map_or_else(|| file.path(), Ok)?),
    };
    let mut out = match &output {
        Some(output) => Output::Beside(NewFile::new(output, path.as_deref())?),
        None => Output::Stdout(BufWriter::new(io::stdout())),
    };
    let Some(path) = path else {
        of_running(&addr.unwrap_or_default(), &credentials, &mut out).await?;
        out.done()?;
        return Ok(0);
    };
    match of_file(&path, &mut out)? {
        Exported::Whole(counts) => {
            out.done()?;
            if output.is_some() {
                tell(&format!("exported {counts}"));
            }
            Ok(0)
        }
        Exported::Salvaged(cause, found @ Salvaged { records: 0, .. }) => {
            Err(damaged(&path, &cause, Some(found)))
        }
        Exported::Salvaged(cause, salvaged) => {
            // What could be read is there, also where that is not all.
            out.done()?;
            Err(partly(&path, &cause, salvaged))
        }
    }
}

async fn of_running(
    addr: &str,
    credentials: &CredentialArgs,
    out: &mut Output,
) -> Result<(), Failure> {
    let caller = client::connect_to(addr, &credentials.read()?).await?;
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
    Failure::told(format!(
        "{} is damaged: {cause}; {}. That is exported. It may be older than the last state, and what was \
         deleted may be among it. `codex-sidecar state import --partial` takes it",
        path.display(),
        readable(salvaged)
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
    /// Where it is to be, through all links.
    path: PathBuf,
    /// What it is called until then; none where the name is that of a device or a pipe.
    beside: Option<PathBuf>,
    out: BufWriter<File>,
}

impl NewFile {
    /// One at this path, which is not to be that of a state, least of all the one that is exported.
    fn new(path: &Path, exported: Option<&Path>) -> Result<NewFile, Failure> {
        let path = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() => {
                path.canonicalize().map_err(|error| cant_write(path, &error))?
            }
            Ok(_) | Err(_) => path.to_owned(),
        };
        let is_special = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        if !is_special && is_state(&path, exported) {
            return Err(Failure::usage(format!(
                "-o {} is a state itself, which nothing is to be written over: name another file",
                path.display()
            )));
        }
        let beside = (!is_special)
            .then(|| path.with_file_name(format!(".state-{}.new", uuid::Uuid::new_v4())));
        let mut options = OpenOptions::new();
        if beside.is_some() {
            options.create_new(true).mode(0o600);
        }
        let file = options.write(true).open(beside.as_deref().unwrap_or(&path));
        let file = file.map_err(|error| cant_write(&path, &error))?;
        Ok(NewFile { path, beside, out: BufWriter::new(file) })
    }

    fn done(mut self) -> Result<(), Failure> {
        let written = self.out.flush().and_then(|()| match &self.beside {
            Some(beside) => {
                self.out.get_ref().sync_all()?;
                std::fs::rename(beside, &self.path)
            }
            None => Ok(()),
        });
        written.map_err(|error| self.failure(&error))?;
        self.beside = None;
        Ok(())
    }

    fn failure(&self, error: &io::Error) -> Failure {
        cant_write(&self.path, error)
    }
}

/// Whether a file is the one that is exported, looks like a state, or is locked as that of a sidecar.
fn is_state(path: &Path, exported: Option<&Path>) -> bool {
    let same = |exported: &Path| {
        let (Ok(one), Ok(other)) = (path.metadata(), exported.metadata()) else { return false };
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    };
    if exported.is_some_and(same) {
        return true;
    }
    let Ok(mut file) = File::open(path) else { return false };
    let mut start = [0; LEDGER.len()];
    file.read_exact(&mut start).is_ok_and(|()| start == LEDGER)
        || matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
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
