//! The replacement of workers that are well, but old, large or worn.
//!
//! The successor is warm before the old one gets no more turns, so that the pool never has one less.
//! One worker is replaced at a time; it ends once its turns have, and until then holds its threads.

use std::sync::{Arc, MutexGuard, PoisonError};
use tracing::Instrument as _;

use crate::model::id::WorkerId;
use crate::pool::supervision::{HoldBack, Supervision};
use crate::pool::{Incarnation, Pool, PoolSettings, SlotState};
use crate::worker::{SpawnError, Worker};

impl Pool {
    /// The worker of this id, if it has been replaced and still runs. A thread that it holds must be
    /// released from it before another one may have it.
    pub(crate) fn retiring(&self, id: &WorkerId) -> Option<Arc<Worker>> {
        let retiring = self.all_retiring();
        let found = retiring.iter().find(|retiring| retiring.worker.id() == id);
        found.map(|retiring| Arc::clone(&retiring.worker))
    }

    pub(super) fn all_retiring(&self) -> MutexGuard<'_, Vec<Arc<Incarnation>>> {
        self.retiring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self, retired: &Arc<Incarnation>) {
        self.all_retiring().retain(|other| !Arc::ptr_eq(other, retired));
    }
}

impl Supervision {
    /// Begins to start a successor, if the slot's worker should have one and no other slot is at it.
    /// Until that one is warm the worker goes on as before, and is looked after.
    pub(super) fn recycle(&mut self, old: &Incarnation) {
        // What could not be written down is in the memory of the worker alone.
        let is_home_faulty = self.pool.home_fault.borrow().is_some();
        if is_home_faulty || self.recycling.is_some() || !self.hold_back.is_over() {
            return;
        }
        let Some(reason) = wear(old, &self.pool.settings) else { return };
        let Ok(permit) = Arc::clone(&self.pool.recycling).try_acquire_owned() else { return };
        tracing::info!(worker = %old.worker.id(), reason, "worker is recycled");
        self.recycling = Some(permit);
        self.begin();
    }

    /// Puts the successor into the slot of a worker; that one ends once its turns have.
    pub(super) fn succeed(
        &mut self,
        old: &Arc<Incarnation>,
        started: Result<Arc<Incarnation>, SpawnError>,
    ) -> Option<Arc<Incarnation>> {
        let permit = self.recycling.take();
        let successor = match started {
            Ok(successor) => successor,
            Err(error) => {
                let pause = self.hold_back.fail(&self.pool.settings);
                let pause = humantime::format_duration(pause);
                tracing::warn!(worker = %old.worker.id(), %error, %pause, "no successor could be started; the worker stays, and the next try waits");
                return None;
            }
        };
        self.hold_back = HoldBack::default();
        // Before its successor gets its slot: a thread must be found at one of the two.
        self.pool.all_retiring().push(Arc::clone(old));
        self.enter(SlotState::Ready(Arc::clone(&successor)));
        let (pool, old) = (Arc::clone(&self.pool), Arc::clone(old));
        tokio::spawn(async move {
            let worker = &old.worker;
            let cause = tokio::select! {
                () = old.idle() => "it was recycled",
                _ = worker.exited() => "it has ended",
                () = gave_up(worker, &pool.settings) => "it gave no sign of life while it was drained",
            };
            worker.kill(cause);
            worker.exited().await;
            pool.has_ended(&old);
            drop(permit);
        }.in_current_span());
        Some(successor)
    }
}

/// Why a worker should be replaced.
fn wear(incarnation: &Incarnation, settings: &PoolSettings) -> Option<String> {
    let PoolSettings { max_turns_per_worker, max_age, .. } = settings;
    let turns = incarnation.started_turns();
    if let Some(max) = max_turns_per_worker.filter(|max| turns >= *max) {
        return Some(format!("it ran {turns} turns, the limit is {max}"));
    }
    if let Some(max) = max_age.filter(|max| incarnation.ready_at.elapsed() >= *max) {
        return Some(format!("it is older than {}", humantime::format_duration(max)));
    }
    incarnation.outgrown(settings)
}

/// Returns when a worker that is being drained gives no sign of life twice.
async fn gave_up(worker: &Worker, settings: &PoolSettings) {
    let mut unanswered = 0;
    while unanswered < 2 {
        if unanswered == 0 {
            tokio::time::sleep(settings.liveness_interval).await;
        }
        let is_silent = worker.ping(settings.liveness_timeout).await.is_err()
            && worker.silence() >= settings.liveness_timeout;
        unanswered = if is_silent { unanswered + 1 } else { 0 };
    }
}
