//! What callers are held to at the edge, as it is configured.

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
    /// Most connections of clients, over all listeners. Default 1,024.
    pub max_connections: usize,
    /// Most calls that one connection may have open. Default 1,024.
    pub max_streams_per_connection: u32,
}

impl Default for ConnectionLimits {
    fn default() -> ConnectionLimits {
        ConnectionLimits { max_connections: 1024, max_streams_per_connection: 1024 }
    }
}
