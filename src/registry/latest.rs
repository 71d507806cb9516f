//! Which thread was worked with last in a directory, of those that belong to no context.
//!
//! For callers that keep no ids and say "the last one". A context knows its own thread, which is
//! nobody else's to continue: it is not remembered here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use crate::model::id::ThreadId;
use crate::registry::ledger::{Change, Ledger};

/// Of how many directories the thread is remembered; the one without a turn for longest goes first.
const DIRECTORIES: usize = 10_000;

/// The least that one turn begins after another.
const TICK: Duration = Duration::from_micros(1);

/// A thread, and when its last turn began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LatestThread {
    pub(crate) thread_id: ThreadId,
    pub(crate) at: SystemTime,
}

#[derive(Debug, Default)]
struct Directories {
    // No two were noted at the same time.
    noted: HashMap<PathBuf, LatestThread>,
    newest: Option<SystemTime>,
}

/// The newest thread of each directory.
#[derive(Debug)]
pub(crate) struct LatestThreads {
    directories: Mutex<Directories>,
    ledger: Arc<Ledger>,
}

impl LatestThreads {
    /// None yet. What changes is told to the ledger.
    pub(crate) fn new(ledger: Arc<Ledger>) -> LatestThreads {
        LatestThreads { directories: Mutex::default(), ledger }
    }

    /// A turn of a thread without a context works in this directory.
    pub(crate) fn note(&self, directory: &Path, thread_id: &ThreadId) {
        let mut directories = self.lock();
        // Two may begin at the same time, and a clock may be set back.
        let next = directories.newest.and_then(|newest| newest.checked_add(TICK));
        let at = next.unwrap_or(SystemTime::UNIX_EPOCH).max(SystemTime::now());
        let latest = LatestThread { thread_id: thread_id.clone(), at };
        self.queue(Change::Directory(directory.to_owned(), latest.clone()));
        self.enter(&mut directories, directory.to_owned(), latest);
    }

    /// Takes what an earlier process has kept.
    pub(crate) fn restore(&self, directory: PathBuf, latest: LatestThread) {
        self.enter(&mut self.lock(), directory, latest);
    }

    fn enter(&self, directories: &mut Directories, directory: PathBuf, latest: LatestThread) {
        let Directories { noted, newest } = directories;
        *newest = (*newest).max(Some(latest.at));
        noted.insert(directory, latest);
        if noted.len() > DIRECTORIES {
            let oldest = noted.iter().min_by_key(|(_, latest)| latest.at);
            if let Some(directory) = oldest.map(|(directory, _)| directory.clone()) {
                noted.remove(&directory);
                self.queue(Change::ForgetDirectory(directory));
            }
        }
    }

    /// Forgets a thread that is not there any more.
    pub(crate) fn forget(&self, thread_id: &ThreadId) {
        self.lock().noted.retain(|directory, latest| {
            let is_kept = latest.thread_id != *thread_id;
            if !is_kept {
                self.queue(Change::ForgetDirectory(directory.clone()));
            }
            is_kept
        });
    }

    /// The newest thread of this directory, or of any.
    pub(crate) fn of(&self, directory: Option<&Path>) -> Option<LatestThread> {
        let directories = self.lock();
        match directory {
            Some(directory) => directories.noted.get(directory).cloned(),
            None => directories.noted.values().max_by_key(|latest| latest.at).cloned(),
        }
    }

    /// Not waited for.
    fn queue(&self, change: Change) {
        self.ledger.note(&[change]);
    }

    fn lock(&self) -> MutexGuard<'_, Directories> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread(number: usize) -> ThreadId {
        ThreadId::from_codex(format!("thread-{number}"))
    }

    #[test]
    fn each_directory_has_its_newest_thread_and_the_oldest_directories_are_forgotten() {
        let latest = LatestThreads::new(Arc::new(Ledger::memory()));
        let of = |directory: Option<&str>| {
            latest.of(directory.map(Path::new)).map(|latest| latest.thread_id)
        };
        assert_eq!(of(None), None);
        for (directory, number) in [("/a", 1), ("/b", 2), ("/a", 3)] {
            latest.note(Path::new(directory), &thread(number));
        }
        assert_eq!(of(Some("/a")), Some(thread(3)));
        assert_eq!(of(Some("/b")), Some(thread(2)));
        assert_eq!(of(Some("/c")), None);
        assert_eq!(of(None), Some(thread(3)));
        for number in 0..DIRECTORIES - 1 {
            latest.note(Path::new(&format!("/many/{number}")), &thread(number));
        }
        assert_eq!((of(Some("/b")), of(Some("/a"))), (None, Some(thread(3))));
    }
}
