//! What a thread sleeps on that waits for the ends of children.

use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::SIGCHLD;

/// Wakes one thread whenever a child has ended, and whenever a byte is written to its other end.
#[derive(Debug)]
pub(super) struct Wake {
    bytes: UnixStream,
}

impl Wake {
    /// Makes one, and its other end.
    pub(super) fn new() -> io::Result<(Wake, UnixStream)> {
        let (bytes, other) = UnixStream::pair()?;
        bytes.set_nonblocking(true)?;
        other.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGCHLD, other.try_clone()?)?;
        Ok((Wake { bytes }, other))
    }

    /// Sleeps until it is woken, `also` can be read, or the time has passed.
    pub(super) fn wait(&mut self, also: Option<BorrowedFd<'_>>, timeout: Option<Duration>) {
        let mut watched = vec![PollFd::new(&self.bytes, PollFlags::IN)];
        watched.extend(also.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        // What is longer than the system can count is for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // An interruption is as good as any other end of the sleep.
        let _ = rustix::event::poll(&mut watched, timeout.as_ref());
        while self.bytes.read(&mut [0; 256]).is_ok_and(|read| read > 0) {}
    }
}
