//! The replacement of workers that are well, but old, large or worn.
//!
//! The successor is warm before the old one gets no more turns, so that the pool never has one less.
//! One worker is replaced at a time; it ends once its turns have, and until then holds its threads.

use std::sync::{Arc, MutexGuard, PoisonError};

use crate::model::id::WorkerId;
use crate::pool::supervision::Supervision;
use crate::pool::{Incarnation, Pool, PoolSettings};
use crate::worker::Worker;

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
    /// Replaces the slot's worker, if it should be and none is being replaced; returns its successor.
    pub(super) async fn recycle(&mut self, old: &Arc<Incarnation>) -> Option<Arc<Incarnation>> {
        let reason = wear(old, &self.pool.settings)?;
        let permit = Arc::clone(&self.pool.recycling).try_acquire_owned().ok()?;
        tracing::info!(worker = %old.worker.id(), reason, "worker is recycled");
        // Before its successor gets its slot: a thread must be found at one of the two.
        self.pool.all_retiring().push(Arc::clone(old));
        let successor = match self.start().await {
            Ok(successor) => successor,
            Err(error) => {
                tracing::warn!(worker = %old.worker.id(), %error, "no successor could be started; the worker stays");
                self.pool.has_ended(old);
                return None;
            }
        };
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
        });
        Some(successor)
    }
}

/// Why a worker should be replaced.
fn wear(incarnation: &Incarnation, settings: &PoolSettings) -> Option<String> {
    let PoolSettings {
        max_turns_per_worker, max_age, max_resident_bytes, max_idle_threads, ..
    } = settings;
    let turns = incarnation.started_turns();
    if let Some(max) = max_turns_per_worker.filter(|max| turns >= *max) {
        return Some(format!("it ran {turns} turns, the limit is {max}"));
    }
    if let Some(max) = max_age.filter(|max| incarnation.ready_at.elapsed() >= *max) {
        return Some(format!("it is older than {}", humantime::format_duration(max)));
    }
    let idle = incarnation.idle_threads();
    if let Some(max) = max_idle_threads.filter(|max| idle > *max) {
        return Some(format!("it holds {idle} idle threads, the limit is {max}"));
    }
    let max = (*max_resident_bytes)?;
    let resident = incarnation.worker.resident_bytes()?;
    (resident >= max).then(|| format!("it has {resident} bytes resident, the limit is {max}"))
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
