//! The file: its table, where its values come from, and keys in it that nobody knows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use super::Fault;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag(&'static str),
    /// An environment variable.
    Environment(&'static str),
    /// A key of the file.
    File {
        file: PathBuf,
        /// The key's path in it.
        key: String,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => f.write_str(flag),
            Origin::Environment(name) => f.write_str(name),
            Origin::File { file, key } => write!(f, "{}: {key}", file.display()),
        }
    }
}

/// Where each value came from, by the key's path in the file; defaults are not in it.
pub(crate) type Origins = BTreeMap<String, Origin>;

/// The file, read.
pub(super) struct File {
    path: PathBuf,
    /// What relative paths in it start at: its own directory.
    pub(super) directory: PathBuf,
    pub(super) table: toml::Table,
}

impl File {
    /// Reads the file at `path`. An error says what is wrong with it.
    pub(super) fn read(path: PathBuf) -> Result<File, String> {
        let text =
            std::fs::read_to_string(&path).map_err(|error| format!("can't be read: {error}"))?;
        let table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| {
                1 + text.as_bytes()[..span.start.min(text.len())]
                    .iter()
                    .filter(|byte| **byte == b'\n')
                    .count()
            });
            let position = line.map(|line| format!(" in line {line}")).unwrap_or_default();
            format!("is not TOML{position}: {}", error.message().replace('\n', "; "))
        })?;
        let directory = std::path::absolute(&path)
            .ok()
            .and_then(|path| path.parent().map(Path::to_owned))
            .unwrap_or_default();
        Ok(File { path, directory, table })
    }

    /// Where the value of this key comes from.
    pub(super) fn origin(&self, key: &str) -> Origin {
        Origin::File { file: self.path.clone(), key: key.to_owned() }
    }
}

/// The fault of a key that nobody knows, with the nearest one that somebody does.
pub(super) fn unknown_key(origin: Origin, key: &str, known: &BTreeSet<&'static str>) -> Fault {
    let nearest = known
        .iter()
        .map(|candidate| (strsim::levenshtein(key, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(key.len()) / 4);
    let problem = match nearest {
        Some((_, candidate)) => format!("unknown key; did you mean {candidate}?"),
        None => {
            let known: Vec<&str> = known.iter().copied().collect();
            format!("unknown key; known are {}", known.join(", "))
        }
    };
    Fault { origin: origin.to_string(), value: String::new(), problem }
}
