//! Workers that are there only while somebody needs them.
//!
//! Where the settings say so, none is started before the first turn, or call that needs one, and all are
//! stopped once nobody needed any for a while. Whoever needs them holds an [`Awake`] from before a
//! worker is looked for until it is done with; a slot goes to sleep only in a moment in which nobody holds
//! one, so that nobody is given a worker that is about to be stopped. While something is wrong (a worker
//! fails, CODEX_HOME can't be written, `config.toml` can't be read) nobody goes to sleep: it is seen here
//! when it is put right, and what could not be written down is in the memory of the workers alone.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::pool::{Pool, SlotState};

/// Who needs the workers.
#[derive(Debug)]
pub(super) struct Demand(watch::Sender<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    /// Whether the workers are to be there.
    is_awake: bool,
    /// How many need them now.
    holders: usize,
    /// When the last one of them went.
    since: Instant,
}

impl Demand {
    pub(super) fn new(is_awake: bool) -> Arc<Demand> {
        let state = State { is_awake, holders: 0, since: Instant::now() };
        Arc::new(Demand(watch::Sender::new(state)))
    }

    fn is_awake(&self) -> bool {
        self.0.borrow().is_awake
    }

    /// Waits until the workers are to be there.
    pub(super) async fn awake(&self) {
        // The sender lives as long as this.
        let _ = self.0.subscribe().wait_for(|state| state.is_awake).await;
    }

    /// Waits until they need not be.
    async fn asleep(&self) {
        let _ = self.0.subscribe().wait_for(|state| !state.is_awake).await;
    }
}

/// Keeps the workers awake. Whoever needs a worker holds it until it is done with that.
#[derive(Debug)]
pub(crate) struct Awake(Arc<Demand>);

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| {
            state.holders -= 1;
            state.since = Instant::now();
        });
    }
}

impl Pool {
    /// Has the workers started, if they sleep, and keeps them.
    pub(crate) fn wake(&self) -> Awake {
        self.demand.0.send_modify(|state| {
            state.is_awake = true;
            state.holders += 1;
        });
        Awake(Arc::clone(&self.demand))
    }

    /// Whether the workers come and go.
    pub(super) fn can_sleep(&self) -> bool {
        self.settings.stop_when_idle.is_some()
    }

    /// Waits until a slot is to sleep, and puts it to sleep; gives what was in it.
    pub(super) async fn asleep(&self, slot: usize) -> SlotState {
        loop {
            self.demand.asleep().await;
            if let Some(before) = self.put_to_sleep(slot) {
                return before;
            }
        }
    }

    /// Puts a slot to sleep, unless somebody needs the workers after all.
    fn put_to_sleep(&self, slot: usize) -> Option<SlotState> {
        let mut before = None;
        self.slots.send_if_modified(|slots| {
            // Looked at while nobody looks for a worker: whoever needs one said so before.
            let Some(status) = slots.get_mut(slot).filter(|_| !self.demand.is_awake()) else {
                return false;
            };
            before = Some(std::mem::replace(&mut status.state, SlotState::Asleep));
            true
        });
        self.update_readiness();
        before
    }

    fn is_in_trouble(&self) -> bool {
        self.home_fault.borrow().is_some()
            || self.config_fault.borrow().is_some()
            || self.slots.borrow().iter().any(|slot| slot.failures > 0)
    }
}

/// Lets the workers sleep whenever nobody has needed them for long enough, until the pool stops.
pub(super) async fn watch(pool: Arc<Pool>) {
    let Some(patience) = pool.settings.stop_when_idle else { return };
    let watching = async {
        let mut state = pool.demand.0.subscribe();
        loop {
            let idle = state.wait_for(|state| state.is_awake && state.holders == 0).await;
            let Ok(since) = idle.map(|state| state.since) else { return };
            let over = since + patience;
            tokio::select! {
                // Somebody came, and may have gone again.
                _ = state.changed() => continue,
                () = tokio::time::sleep_until(over) => {}
            }
            if pool.is_in_trouble() {
                tokio::time::sleep(super::supervision::LOOK).await;
                continue;
            }
            let mut sleeps = false;
            pool.demand.0.send_if_modified(|state| {
                sleeps = state.holders == 0 && state.since == since;
                state.is_awake &= !sleeps;
                sleeps
            });
            if sleeps {
                let idle = humantime::format_duration(patience);
                tracing::info!(%idle, "no turn needs the workers; they are stopped until one does");
            }
        }
    };
    let stop = pool.stop.clone();
    stop.run_until_cancelled(watching).await;
}
