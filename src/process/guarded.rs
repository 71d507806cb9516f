//! The sidecar's end of one guard: hears what became of the program, and orders its end.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::guard_wire::{KILL, Word};
use super::guards::GuardId;
use super::reaper;

/// The sidecar's end of a guard. Dropping it closes the control socket, which the guard takes as the
/// order to kill.
#[derive(Debug)]
pub(super) struct Guarded {
    guard: GuardId,
    control: UnixStream,
    heard: Vec<u8>,
    status: Option<ExitStatus>,
    gone: Option<oneshot::Receiver<()>>,
    all_gone: bool,
    killed_at: Option<Instant>,
}

impl Guarded {
    /// How long after the order to kill the guard's work is waited for.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// How often a guard that has the order is looked at: one that was stopped does not hear it.
    const LOOK: Duration = Duration::from_millis(250);

    /// How long it may take to start the program.
    const STARTS_WITHIN: Duration = Duration::from_secs(30);

    pub(super) fn new(
        guard: GuardId,
        control: std::os::unix::net::UnixStream,
    ) -> io::Result<Guarded> {
        control.set_nonblocking(true)?;
        Ok(Guarded {
            guard,
            control: UnixStream::from_std(control)?,
            heard: Vec::new(),
            status: None,
            gone: None,
            all_gone: false,
            killed_at: None,
        })
    }

    pub(super) async fn started(&mut self) -> io::Result<u32> {
        let word = match tokio::time::timeout(Self::STARTS_WITHIN, self.word()).await {
            Ok(word) => word?,
            Err(_) => {
                self.kill();
                self.wait().await?;
                let within = humantime::format_duration(Self::STARTS_WITHIN);
                let message = format!("the guard did not start the program within {within}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        };
        match word {
            Some(Word::Started(pid)) => Ok(pid),
            Some(Word::Failed(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Word::Ended(_)) | None => {
                Err(io::Error::other("the guard ended before it had started the program"))
            }
        }
    }

    /// The guard's next word; `None` once it is gone. Nothing is lost where this is dropped.
    async fn word(&mut self) -> io::Result<Option<Word>> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                let word = std::str::from_utf8(&line).ok().and_then(Word::parse);
                return word
                    .map(Some)
                    .ok_or_else(|| io::Error::other("the guard speaks in riddles"));
            }
            self.control.readable().await?;
            let mut buffer = [0; 64];
            match self.control.try_read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(read) => self.heard.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The guard died before it had read the order to kill.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) async fn exited(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.status {
                return Ok(status);
            }
            self.status = match self.word().await? {
                Some(Word::Ended(status)) => Some(ExitStatus::from_raw(status)),
                Some(Word::Started(_) | Word::Failed(_)) => None,
                // The guard was killed, and the kernel killed the program with it.
                None => Some(ExitStatus::from_raw(Signal::KILL.as_raw())),
            };
        }
    }

    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(killed_at) = self.killed_at {
            let patience = killed_at + Self::PATIENCE;
            loop {
                let look = (Instant::now() + Self::LOOK).min(patience);
                if let Ok(status) = tokio::time::timeout_at(look, self.end()).await {
                    return status;
                }
                let is_busy = reaper::give_up(self.guard).await.unwrap_or(true);
                if !is_busy {
                    break;
                }
                if Instant::now() >= patience {
                    tracing::warn!(guard = ?self.guard, "a guard has not done its work yet, and goes on without us");
                    return Ok(self.status.unwrap_or(ExitStatus::from_raw(Signal::KILL.as_raw())));
                }
            }
        }
        self.end().await
    }

    async fn end(&mut self) -> io::Result<ExitStatus> {
        let status = self.exited().await?;
        if !self.all_gone {
            // Its end of the socket closes when it exits, and not before.
            while self.word().await?.is_some() {}
            let guard = self.guard;
            let gone = self.gone.get_or_insert_with(|| reaper::gone(guard));
            // An error means that the reaper is gone: nobody will ever tell.
            let _ = gone.await;
            self.all_gone = true;
        }
        Ok(status)
    }

    pub(super) fn kill(&mut self) {
        self.killed_at.get_or_insert_with(Instant::now);
        // Not through tokio, whose write may have to wait to learn that the socket is writable. A
        // guard that can't be written to is gone.
        let _ = rustix::io::write(&self.control, KILL);
    }
}
