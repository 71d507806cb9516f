//! What callers are held to at the edge, as it is configured.

use std::time::Duration;

/// Most characters that Codex takes in one turn (Unicode scalar values); it refuses more itself.
pub(crate) const CODEX_MAX_INPUT_CHARACTERS: usize = 1_048_576;

/// What one request may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// Most characters of all text inputs joined. Default and maximum 1,048,576, Codex's own limit.
    pub max_input_characters: usize,
    /// Largest message, in bytes. Default 8 MiB.
    pub max_message_bytes: usize,
}

impl Default for RequestLimits {
    fn default() -> RequestLimits {
        RequestLimits {
            max_input_characters: CODEX_MAX_INPUT_CHARACTERS,
            max_message_bytes: 8 << 20,
        }
    }
}

/// What clients may hold open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Most connections of clients, over all listeners but those for health probes, which have as
    /// many once more. Where a new one is too many, the one that was without a call for longest is
    /// closed for it; where all have calls, the one whose calls only wait (`Watch`, reflection) and have
    /// carried nothing for 10 s, or whose client has taken nothing of what it was sent for 60 s; where there
    /// is none, the new one is. Default 1,024.
    pub max_connections: usize,
    /// Most of them that may be in their handshake: where a new one is too many, the one that began its
    /// handshake first is closed. Default 256.
    pub max_handshakes: usize,
    /// Most calls that one connection may have open. Default 1,024.
    pub max_streams_per_connection: u32,
    /// How long a client may take for its part of the HTTP/2 handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// How long the request of a call may take to arrive whole. Default 30 s.
    pub request_timeout: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits {
            max_connections: 1024,
            max_handshakes: 256,
            max_streams_per_connection: 1024,
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
        }
    }
}
