//! What requests hold that have not arrived whole.
//!
//! A call may take its time with its request, and a connection may have many calls open; so all such
//! requests together are bounded by their bytes, and no caller takes the room of all others. Owns the
//! count, and nothing of what is read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::id::CallerId;
use crate::model::refusal::Refusal;

/// Most bytes of all of them. They are shared as the queue of turns is.
const MOST_BYTES: usize = 256 << 20;

/// Most bytes of one caller's, as a multiple of what is left: see the admission's.
const SHARE: usize = 7;

/// When a refused caller should try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All of them.
#[derive(Debug)]
pub(crate) struct Arrivals {
    most: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_caller: HashMap<CallerId, usize>,
}

/// What one of them holds. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Arrived {
    arrivals: Arc<Arrivals>,
    caller: CallerId,
    bytes: usize,
}

impl Default for Arrivals {
    fn default() -> Arrivals {
        Arrivals::new(MOST_BYTES)
    }
}

impl Arrivals {
    /// None yet, and never more than so many bytes.
    pub(crate) fn new(most: usize) -> Arrivals {
        Arrivals { most, held: Mutex::default() }
    }

    /// A request of this caller's, of which nothing is here.
    pub(super) fn begin(self: &Arc<Arrivals>, caller: CallerId) -> Arrived {
        Arrived { arrivals: Arc::clone(self), caller, bytes: 0 }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrived {
    /// Takes in so many bytes more.
    ///
    /// # Errors
    /// [`Refusal::ArrivalsTooLarge`].
    pub(super) fn add(&mut self, bytes: usize) -> Result<(), Refusal> {
        let mut held = self.arrivals.held();
        let own = held.by_caller.get(&self.caller).copied().unwrap_or(0) + bytes;
        let all = held.all + bytes;
        let free = self.arrivals.most.saturating_sub(all);
        if all > self.arrivals.most || own > free.saturating_mul(SHARE) {
            return Err(Refusal::ArrivalsTooLarge { bytes: held.all, retry_after: RETRY_AFTER });
        }
        held.all = all;
        held.by_caller.insert(self.caller, own);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut held = self.arrivals.held();
        held.all -= self.bytes;
        if let Some(own) = held.by_caller.get_mut(&self.caller) {
            *own -= self.bytes;
            if *own == 0 {
                held.by_caller.remove(&self.caller);
            }
        }
    }
}
