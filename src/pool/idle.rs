//! The release of threads that no turn uses.
//!
//! A thread stays loaded after its turn, so that the next one of its context finds it warm, at a megabyte
//! of the worker's memory and more. Where a worker holds too many, or is too large, those that have been
//! idle for the longest time are unloaded, one after the other: the next turn of such a thread loads it
//! again, here or elsewhere, and nobody else notices anything. A worker that stays too large all the
//! same is recycled. While CODEX_HOME can't be written nothing is released: what Codex could not write
//! down of a thread is in the worker's memory alone.

use std::collections::HashSet;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::Instant;

use crate::model::id::WorkerId;
use crate::pool::supervision::LOOK;
use crate::pool::{Incarnation, Pool, PoolSettings};
use crate::registry::threads::Threads;
use crate::worker::thread::LoadedThread;

impl Pool {
    /// Keeps what the workers hold idle within bounds, for as long as it is polled.
    pub(crate) async fn release_idle_threads(&self, threads: &Threads<LoadedThread>) {
        let mut look = tokio::time::interval(LOOK.min(self.settings.liveness_interval));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A worker that is slow with it keeps no other from being looked at.
        let mut releasing = FuturesUnordered::new();
        let mut looked_at = HashSet::<WorkerId>::new();
        loop {
            tokio::select! {
                Some(id) = releasing.next() => drop(looked_at.remove(&id)),
                _ = look.tick() => {
                    if self.home_fault.borrow().is_some() {
                        continue;
                    }
                    let slots = self.status();
                    for incarnation in slots.iter().filter_map(|slot| slot.state.ready()) {
                        let id = incarnation.worker.id().clone();
                        if looked_at.insert(id.clone()) {
                            let incarnation = Arc::clone(incarnation);
                            releasing.push(async move {
                                incarnation.release_surplus(&self.settings, threads).await;
                                id
                            });
                        }
                    }
                }
            }
        }
    }
}

impl Incarnation {
    async fn release_surplus(&self, settings: &PoolSettings, threads: &Threads<LoadedThread>) {
        let idle = self.worker.idle_threads();
        let mut surplus =
            idle.len().saturating_sub(settings.max_idle_threads.unwrap_or(usize::MAX));
        if self.note_size(settings, idle.len()) {
            // Not all at once: what is released is given back some seconds later.
            surplus = surplus.max(idle.len().div_ceil(4));
        }
        for thread_id in idle {
            if surplus == 0 || !self.worker.is_alive() {
                return;
            }
            // One that is in use, or that a turn is about to use, is not idle.
            let Some(mut thread) = threads.try_lock(&thread_id) else { continue };
            self.worker.unload_thread(&thread_id).await;
            if self.worker.holds_thread(&thread_id) {
                continue;
            }
            if thread.loaded.as_ref().is_some_and(|loaded| loaded.worker == *self.worker.id()) {
                thread.loaded = None;
            }
            tracing::debug!(worker = %self.worker.id(), %thread_id, "an idle thread was released");
            surplus -= 1;
        }
    }

    /// Looks how large the worker is; whether it is too large and holds threads that can be released.
    fn note_size(&self, settings: &PoolSettings, idle: usize) -> bool {
        let is_large = self.excess(settings).is_some();
        let mut relieved_at = self.relieved_at();
        if !is_large {
            *relieved_at = None;
        } else if idle > 0 {
            relieved_at.get_or_insert_with(Instant::now);
        }
        is_large && idle > 0
    }

    /// By what the worker is too large, if it is.
    fn excess(&self, settings: &PoolSettings) -> Option<String> {
        let max = settings.max_resident_bytes?;
        let resident = self.worker.resident_bytes()?;
        (resident >= max).then(|| format!("it has {resident} bytes resident, the limit is {max}"))
    }

    /// Why the worker must be replaced for its size: it is too large although it holds no idle thread,
    /// or still is some time after they were released.
    pub(super) fn outgrown(&self, settings: &PoolSettings) -> Option<String> {
        let excess = self.excess(settings)?;
        let is_relieved = match *self.relieved_at() {
            Some(since) => since.elapsed() < settings.liveness_interval * 2,
            None => self.idle_threads() > 0,
        };
        (!is_relieved).then_some(excess)
    }
}
