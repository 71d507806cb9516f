//! The tasks that watch CODEX_HOME: while it can't be written, or Codex can't read the `config.toml`
//! in it, every new thread is refused, so the pool is not ready.
//!
//! The home is written into: now and then, and when Codex complains. Of `config.toml` a worker is asked, because only Codex knows what it can
//! read: when the file has changed, when a thread was refused for it, now and then, and often while
//! something is wrong with it. A worker that started without its configuration goes on without it, so
//! it is replaced once the file is mended.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::pool::Pool;
use crate::pool::supervision::LOOK;
use crate::worker::{Worker, WorkerSpec};

/// Looks at CODEX_HOME until the pool stops: often while something is wrong with it.
pub(super) async fn watch(pool: Arc<Pool>, spec: Arc<WorkerSpec>) {
    let stop = pool.stop.clone();
    let watching = async {
        loop {
            pool.look_at_home(&spec).await;
            // Of workers that sleep nothing else tells.
            pool.update_readiness();
            let is_usable = pool.home_fault.borrow().is_none();
            let interval = pool.settings.liveness_interval;
            let pause = if is_usable { interval } else { LOOK.min(interval) };
            tokio::select! {
                () = pool.home_doubted.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    };
    stop.run_until_cancelled(watching).await;
}

/// Looks at `config.toml` until the pool stops.
pub(super) async fn watch_config(pool: Arc<Pool>) {
    let stop = pool.stop.clone();
    let watching = async {
        let interval = pool.settings.liveness_interval;
        let mut last: Option<(Option<Stamp>, Instant)> = None;
        loop {
            let stamp = stamp(&pool.config_file).await;
            let is_due = last.as_ref().is_none_or(|(known, at)| {
                *known != stamp || at.elapsed() >= interval || pool.config_fault.borrow().is_some()
            });
            if is_due && pool.look_at_config().await {
                last = Some((stamp, Instant::now()));
            }
            tokio::time::sleep(LOOK.min(interval)).await;
        }
    };
    stop.run_until_cancelled(watching).await;
}

/// What changes when a file does.
type Stamp = (Option<SystemTime>, u64, u64);

async fn stamp(file: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = tokio::fs::metadata(file).await.ok()?;
    Some((metadata.modified().ok(), metadata.len(), metadata.ino()))
}

impl Pool {
    /// Has CODEX_HOME looked at now: Codex says that it could not write there.
    pub(crate) fn doubt_home(&self) {
        self.home_doubted.notify_one();
    }

    /// Looks at CODEX_HOME, and tells if what is wrong with it has changed.
    pub(super) async fn look_at_home(&self, spec: &WorkerSpec) {
        let check = Arc::clone(&spec.check_home);
        let looked = tokio::task::spawn_blocking(move || check()).await;
        let fault = looked.map_or_else(|error| Some(error.to_string()), Result::err);
        self.note_fault(&self.home_fault, fault);
    }

    /// Asks a worker what is wrong with `config.toml`; returns whether there was an answer.
    async fn look_at_config(&self) -> bool {
        let workers = self.warm_workers();
        let Some(worker) = workers.first() else { return false };
        let fault = match worker.config_fault(self.settings.liveness_timeout).await {
            Ok(fault) => fault,
            Err(error) => {
                tracing::debug!(worker = %worker.id(), %error, "it is not known whether config.toml can be read");
                // An older CLI can't be asked.
                return worker.is_alive();
            }
        };
        let is_mended = fault.is_none() && self.config_fault.borrow().is_some();
        if is_mended && self.end_those_without_config(&workers).await {
            // Ready when their successors are.
            return false;
        }
        self.note_config_fault(fault);
        true
    }

    /// What is wrong with `config.toml`, asked because a thread was refused for a configuration;
    /// `None` where it is fine, so that the fault is in a project's.
    pub(crate) async fn config_fault_after(&self, worker: &Worker) -> Option<String> {
        let asked = worker.config_fault(self.settings.liveness_timeout).await;
        let fault = asked.ok()??;
        self.note_config_fault(Some(fault));
        self.config_fault.borrow().clone()
    }

    /// Notes what is wrong with `config.toml`, and tells if that has changed.
    pub(super) fn note_config_fault(&self, fault: Option<String>) {
        let file = self.config_file.display();
        let fault = fault.map(|fault| {
            format!(
                "Codex can't read its configuration {file}, and takes no new threads until it is \
                 mended: {fault}"
            )
        });
        self.note_fault(&self.config_fault, fault);
    }

    fn note_fault(&self, known: &watch::Sender<Option<String>>, fault: Option<String>) {
        let has_changed = known.send_if_modified(|known| {
            let has_changed = *known != fault;
            *known = fault;
            has_changed
        });
        if has_changed {
            self.update_readiness();
        }
    }

    fn warm_workers(&self) -> Vec<Arc<Worker>> {
        let slots = self.slots.borrow();
        let ready = slots.iter().filter_map(|slot| slot.state.ready()).map(|ready| &ready.worker);
        ready.filter(|worker| worker.is_alive()).cloned().collect()
    }

    /// Ends the workers that started while `config.toml` could not be read; returns whether there were
    /// any. They have no turns: whatever they were asked was refused.
    async fn end_those_without_config(&self, workers: &[Arc<Worker>]) -> bool {
        let mut any = false;
        for worker in workers.iter().filter(|worker| worker.config_fault_at_start().is_some()) {
            tracing::info!(worker = %worker.id(), "config.toml can be read again; the worker is replaced by one that has read it");
            worker.kill("it had started without its config.toml, which can be read again");
            worker.exited().await;
            any = true;
        }
        any
    }
}
