//! Who is at the other end of a connection: one of those that a worker has started, or somebody else.

use std::fmt;
use std::net::SocketAddr;

use super::Moment;

/// The other end of a connection, as far as the connection tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Of a Unix socket.
    Process {
        /// Who connected it; 0 for one of another PID namespace.
        pid: i32,
        /// When it was there, at the latest.
        seen: Moment,
    },
    /// Of a TCP connection.
    Tcp {
        /// Its address.
        client: SocketAddr,
        /// Ours.
        server: SocketAddr,
    },
}

/// Who that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kin {
    /// A worker of this process, or somebody that descends from one.
    Ours(Somebody),
    /// Perhaps one that descends from a worker, and hides which files it has.
    PerhapsOurs(Somebody),
    /// Somebody else.
    Stranger,
    /// Nobody any more: it has closed its end, or has ended.
    Gone,
    /// That can't be told, for this reason.
    Unknown(&'static str),
}

/// A process, for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Somebody {
    pub(crate) pid: i32,
    /// The name of its program, at most 15 bytes of it; it has chosen that itself.
    pub(crate) command: String,
}

impl fmt::Display for Somebody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({:?})", self.pid, self.command)
    }
}
