//! Which thread was worked with last in a directory, of those that belong to no context.
//!
//! For callers that keep no ids and say "the last one". A context knows its own thread, which is
//! nobody else's to continue: it is not remembered here.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::model::id::ThreadId;

/// Of how many directories the thread is remembered; the one without a turn for longest goes first.
const DIRECTORIES: usize = 10_000;

/// A thread, and when its last turn began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LatestThread {
    pub(crate) thread_id: ThreadId,
    pub(crate) at: SystemTime,
}

#[derive(Debug)]
struct Noted {
    latest: LatestThread,
    // Grows with each turn: two may begin at the same time.
    order: u64,
}

#[derive(Debug, Default)]
struct Directories {
    noted: HashMap<PathBuf, Noted>,
    turns: u64,
}

/// The newest thread of each directory.
#[derive(Debug, Default)]
pub(crate) struct LatestThreads(Mutex<Directories>);

impl LatestThreads {
    /// Takes in what an earlier process knew.
    pub(crate) fn restore(&self, directory: PathBuf, latest: LatestThread) {
        let _ = (directory, latest);
    }

    /// A turn of a thread without a context works in this directory.
    pub(crate) fn note(&self, directory: &Path, thread_id: &ThreadId) {
        let mut directories = self.lock();
        let Directories { noted, turns } = &mut *directories;
        *turns += 1;
        let latest = LatestThread { thread_id: thread_id.clone(), at: SystemTime::now() };
        noted.insert(directory.to_owned(), Noted { latest, order: *turns });
        if noted.len() > DIRECTORIES {
            let oldest = noted.iter().min_by_key(|(_, noted)| noted.order);
            if let Some(directory) = oldest.map(|(directory, _)| directory.clone()) {
                noted.remove(&directory);
            }
        }
    }

    /// The newest thread of this directory, or of any.
    pub(crate) fn of(&self, directory: Option<&Path>) -> Option<LatestThread> {
        let directories = self.lock();
        let noted = match directory {
            Some(directory) => directories.noted.get(directory),
            None => directories.noted.values().max_by_key(|noted| noted.order),
        };
        noted.map(|noted| noted.latest.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Directories> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let latest = LatestThreads::default();
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
