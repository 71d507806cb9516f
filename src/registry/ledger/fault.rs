//! Why the file can't be opened, read or written.

use std::io;
use std::path::Path;

use crate::registry::ledger::{OpenError, Trouble};

/// Why something could not be done with the file.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another process has it.
    InUse,
    /// It can't be read as a ledger, because of this.
    Damaged(String),
    /// What has its name can be none, because of this.
    NotAFile(String),
    /// What is in it is of this version.
    TooNew(u64),
    /// This may go away.
    System(String),
}

impl Fault {
    /// What it is to who wants to begin with the file.
    ///
    /// # Errors
    /// One that may go away.
    pub(super) fn into_open_error(self, path: &Path, newest: u64) -> Result<OpenError, Trouble> {
        let path = path.to_owned();
        match self {
            Fault::InUse => Ok(OpenError::InUse { path }),
            Fault::Damaged(cause) => Ok(OpenError::Damaged { path, cause }),
            Fault::NotAFile(what) => Ok(OpenError::NotAFile { path, what }),
            Fault::TooNew(version) => Ok(OpenError::TooNew { path, version, newest }),
            Fault::System(_) => Err(self.into_trouble(&path)),
        }
    }

    /// What it is to who wants to keep something.
    pub(super) fn into_trouble(self, path: &Path) -> Trouble {
        let path = path.display();
        Trouble {
            cause: match self {
                Fault::InUse => format!("{path}: another process has the file"),
                Fault::Damaged(cause) => format!("{path}: the file is damaged: {cause}"),
                Fault::NotAFile(what) => format!("{path}: it is {what}"),
                Fault::TooNew(version) => {
                    format!("{path}: a newer sidecar has written the file (version {version})")
                }
                Fault::System(cause) => format!("{path}: {cause}"),
            },
        }
    }
}

/// What redb says of a file whose format is newer than what it reads, before the number.
const NEWER_FORMAT: &str = "Expected file format version";

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Fault {
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Fault::InUse,
            redb::Error::Io(error) => Fault::from(error),
            redb::Error::Corrupted(cause) if cause.starts_with(NEWER_FORMAT) => {
                let version = cause.rsplit(' ').next().and_then(|number| number.parse().ok());
                Fault::TooNew(version.unwrap_or_default())
            }
            redb::Error::Corrupted(cause) => Fault::Damaged(cause),
            error @ (redb::Error::UpgradeRequired(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableDoesNotExist(_)) => {
                Fault::Damaged(format!("it is no state of a sidecar ({error})"))
            }
            error => Fault::System(error.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            // redb says so of what does not begin as its files do, and where a file ends too early.
            io::ErrorKind::InvalidData => Fault::Damaged(error.to_string()),
            io::ErrorKind::UnexpectedEof => Fault::Damaged("it ends too early".to_owned()),
            _ => Fault::System(error.to_string()),
        }
    }
}

/// Each of redb's errors is one of [`redb::Error`].
macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Fault {
            fn from(error: redb::$error) -> Fault {
                Fault::from(redb::Error::from(error))
            }
        }
    )*};
}
from_redb!(CommitError, CompactionError, DatabaseError, StorageError, TableError, TransactionError);
