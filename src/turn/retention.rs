//! How much of turns is kept, as it is configured.

use std::time::Duration;

/// What is kept of turns for those who join them late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Most bytes of events of one turn, what waits for an answer not among them: of that there is at most
    /// 16 MiB beside. Default 4 MiB.
    pub max_bytes_per_turn: usize,
    /// Most bytes of events in all, at least as many as of one turn. Default 256 MiB.
    pub max_bytes: usize,
    /// How long a turn is kept after its end; zero keeps none but what a restart has lost, which is kept for
    /// 10 min at the least. Default 10 min.
    pub after_end: Duration,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            max_bytes_per_turn: 4 << 20,
            max_bytes: 256 << 20,
            after_end: Duration::from_secs(600),
        }
    }
}
