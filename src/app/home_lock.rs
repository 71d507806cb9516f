//! The lock by which a sidecar has a CODEX_HOME for itself.
//!
//! Two on one would each keep workers that the other one's threads are held by, and each its own books of
//! contexts. It is taken at the start; where the file can't be made yet, as soon as CODEX_HOME can be
//! written. It ends with [`HomeLock::release`], with the value, or with the process, however that ends:
//! no child has it. The file stays, since a lock whose file is taken away is none, and says who has it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The file's name in CODEX_HOME.
const NAME: &str = "sidecar.lock";

/// How long one that ends is waited for.
const WITHIN: Duration = Duration::from_secs(3);

const AGAIN: Duration = Duration::from_millis(100);

/// The longest that is told of an owner, in bytes.
const OWNER_BYTES: u64 = 512;

/// The lock on one CODEX_HOME, taken or to be taken.
#[derive(Debug)]
pub(super) struct HomeLock {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    addresses: String,
    is_released: bool,
}

/// Why it can't be had.
#[derive(Debug)]
enum Untaken {
    /// Another sidecar has it, which says this of itself.
    Held(String),
    /// There can be no such file here, or no lock.
    Impossible(io::Error),
}

impl HomeLock {
    /// Takes it, if it can be; waits for one that ends.
    ///
    /// # Errors
    /// Who has it instead.
    pub(super) async fn take(home: &Path) -> Result<HomeLock, String> {
        let lock = HomeLock { path: home.join(NAME), state: Mutex::default() };
        let deadline = Instant::now() + WITHIN;
        loop {
            match lock.try_take() {
                Ok(()) => return Ok(lock),
                Err(Untaken::Held(owner)) if Instant::now() >= deadline => return Err(owner),
                Err(Untaken::Held(_)) => tokio::time::sleep(AGAIN).await,
                Err(Untaken::Impossible(error)) => {
                    let path = lock.path.display();
                    tracing::warn!(%path, %error, "CODEX_HOME can't be locked now");
                    return Ok(lock);
                }
            }
        }
    }

    /// Has the file say where this sidecar listens.
    pub(super) fn tell(&self, addresses: &str) {
        let mut state = self.state();
        addresses.clone_into(&mut state.addresses);
        state.describe();
    }

    /// Looks whether this sidecar has CODEX_HOME for itself, and takes the lock where it could not be
    /// taken before.
    ///
    /// # Errors
    /// Who has it instead.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.try_take() {
            Ok(()) => Ok(()),
            Err(Untaken::Held(owner)) => Err(owner),
            // Told at the start; a file system may have no locks.
            Err(Untaken::Impossible(_)) => Ok(()),
        }
    }

    /// Gives it up for good.
    pub(super) fn release(&self) {
        let mut state = self.state();
        state.file = None;
        state.is_released = true;
    }

    fn try_take(&self) -> Result<(), Untaken> {
        let mut state = self.state();
        if state.file.is_some() || state.is_released {
            return Ok(());
        }
        // Through no link: whatever it names would be written over.
        let no_links = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600).custom_flags(no_links);
        let mut file = options.open(&self.path).map_err(Untaken::Impossible)?;
        match file.try_lock() {
            Ok(()) => {
                state.file = Some(file);
                state.describe();
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(Untaken::Held(owner(&mut file))),
            Err(TryLockError::Error(error)) => Err(Untaken::Impossible(error)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere can't leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Writes into the file who has it. It is for people; the lock holds without it.
    fn describe(&mut self) {
        let State { file: Some(file), addresses, .. } = self else { return };
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let (pid, listening) =
            (std::process::id(), if addresses.is_empty() { "nowhere yet" } else { addresses });
        let text = format!("host {host}, pid {pid}, listening on {listening}\n");
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            tracing::debug!(%error, "the lock of CODEX_HOME does not say whose it is");
        }
    }
}

/// What an owner says of itself.
fn owner(file: &mut File) -> String {
    let mut text = Vec::new();
    let read = file.take(OWNER_BYTES).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let line: String =
        text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect();
    match read {
        Ok(_) if !line.is_empty() => line,
        Ok(_) | Err(_) => "it does not say which".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_has_a_home_for_itself_until_it_gives_it_up() {
        let home = tempfile::tempdir().unwrap();
        let first = HomeLock::take(home.path()).await.unwrap();
        first.tell("127.0.0.1:1");
        first.tell("127.0.0.1:50061, unix:/s");
        let asked_at = Instant::now();
        let owner = HomeLock::take(home.path()).await.unwrap_err();
        assert!(asked_at.elapsed() >= WITHIN);
        let says = format!("pid {}, listening on 127.0.0.1:50061, unix:/s", std::process::id());
        assert!(owner.starts_with("host ") && owner.ends_with(&says), "{owner}");

        let (second, ()) = tokio::join!(HomeLock::take(home.path()), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            first.release();
        });
        assert!(second.is_ok());
        assert_eq!(first.check(), Ok(()), "it wants no more of it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_home_that_comes_later_is_locked_then() {
        let root = tempfile::tempdir().unwrap();
        let home = root.path().join("home");
        let [first, second] =
            [HomeLock::take(&home).await.unwrap(), HomeLock::take(&home).await.unwrap()];
        assert_eq!((first.check(), second.check()), (Ok(()), Ok(())));
        std::fs::create_dir(&home).unwrap();
        assert_eq!(first.check(), Ok(()));
        assert!(second.check().unwrap_err().contains("listening on nowhere yet"));
        drop(first);
        assert_eq!(second.check(), Ok(()));
    }

    #[tokio::test]
    async fn no_link_is_followed() {
        let home = tempfile::tempdir().unwrap();
        let other = home.path().join("precious");
        std::fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, home.path().join(NAME)).unwrap();
        let lock = HomeLock::take(home.path()).await.unwrap();
        lock.tell("127.0.0.1:1");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
    }
}
