//! Which worker a turn gets.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::id::WorkerId;
use crate::pool::incarnation::Suspect;
use crate::pool::readiness::trouble;
use crate::pool::{Entering, Incarnation, Lease, Pool, SlotState, SlotStatus, Trouble};
use crate::worker::Worker;

/// Why no worker can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unavailable {
    /// For the person who reads it.
    pub(crate) cause: String,
    /// When to try again.
    pub(crate) retry_after: Duration,
    /// Whether the machine is out of processes, memory or file descriptors.
    pub(crate) out_of_resources: bool,
}

/// A worker that said something within this time is taken to be well.
const FRESH: Duration = Duration::from_secs(1);

/// How long one that did not may take to give a sign of life before it gets a turn.
const PROBE: Duration = Duration::from_secs(1);

impl Pool {
    /// A worker for a turn: the preferred one if that incarnation still runs, else the least loaded.
    /// Waits for a worker that is being started, but never for one that keeps failing.
    ///
    /// # Errors
    /// [`Unavailable`] with the cause and when to try again.
    #[cfg(test)]
    pub(crate) async fn lease(&self, preferred: Option<&WorkerId>) -> Result<Lease, Unavailable> {
        let awake = Arc::new(self.wake());
        let place = |incarnation| Lease::new(incarnation, Arc::clone(&awake));
        self.place(preferred, self.patience(), place).await
    }

    /// A worker to ask for what changes nothing and needs no thread, as placed as one for a turn. Also
    /// where CODEX_HOME can't be written. It may be stopped as soon as nobody is [`Awake`](Pool::wake).
    ///
    /// # Errors
    /// [`Unavailable`] with the cause and when to try again.
    pub(crate) async fn worker_to_ask(&self) -> Result<Arc<Worker>, Unavailable> {
        let _awake = self.wake();
        self.place(None, self.patience(), |incarnation| Arc::clone(&incarnation.worker)).await
    }

    /// The same, for a turn whose thread is to be opened there; waits until the worker gives a sign of
    /// life, if the last one is old, and may be asked.
    ///
    /// `alone` is for an opening that a worker has died under. Until it is over nothing else is opened
    /// on its worker, so that another death shows whether it was the cause, and takes along no other
    /// opening. It goes where the fewest turns run, and new turns go elsewhere as long as they can.
    ///
    /// # Errors
    /// [`Unavailable`] with the cause and when to try again.
    pub(crate) async fn lease_to_open(
        &self,
        preferred: Option<&WorkerId>,
        alone: bool,
    ) -> Result<(Lease, Entering), Unavailable> {
        let mut deadline = self.patience();
        let settling = Instant::now() + self.settling();
        let awake = Arc::new(self.wake());
        let on = |incarnation: Arc<Incarnation>| {
            let suspect = alone.then(|| Suspect::new(&incarnation));
            (Lease::new(incarnation, Arc::clone(&awake)), suspect)
        };
        loop {
            if let Some(cause) = self.home_fault.borrow().clone() {
                // Codex could not write down what the turn says.
                let retry_after = Duration::from_secs(5);
                return Err(Unavailable { cause, retry_after, out_of_resources: false });
            }
            let (lease, suspect) = self.place(preferred, deadline, on).await?;
            if !self.is_responsive(lease.incarnation()).await {
                // There may be no other, and this one is back or killed by then.
                deadline = settling;
                let stuck = lease.worker().id().clone();
                // Whoever waits has no turn there for whose sake it would live on.
                drop((lease, suspect));
                // What a stuck worker holds no other one could have.
                if preferred == Some(&stuck) {
                    self.settled(&stuck).await?;
                }
                continue;
            }
            let entering = Entering::new(lease.incarnation(), suspect);
            match tokio::time::timeout_at(deadline, entering).await {
                Ok(Some(entering)) => return Ok((lease, entering)),
                Ok(None) => {}
                Err(_) => {
                    let worker = lease.worker().id();
                    return Err(Unavailable {
                        cause: format!(
                            "worker {worker} opens the thread of a request under which another \
                             worker has ended, alone"
                        ),
                        retry_after: Duration::from_secs(1),
                        out_of_resources: false,
                    });
                }
            }
        }
    }

    /// Until when a turn that comes now waits for a worker.
    fn patience(&self) -> Instant {
        Instant::now() + self.settings.worker_wait
    }

    async fn place<T>(
        &self,
        preferred: Option<&WorkerId>,
        deadline: Instant,
        on: impl Fn(Arc<Incarnation>) -> T,
    ) -> Result<T, Unavailable> {
        if let Some(incarnation) = preferred.and_then(|id| self.incarnation(id)) {
            return Ok(on(incarnation));
        }
        let mut slots = self.slots.subscribe();
        let mut found = None;
        let looking = slots.wait_for(|slots| {
            let _placing = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
            found = least_loaded(slots).map(&on);
            found.is_some() || !slots.iter().any(|slot| self.may_come(slot))
        });
        let _ = tokio::time::timeout_at(deadline, looking).await;
        found.ok_or_else(|| unavailable(&self.slots.borrow()))
    }

    /// Asks a worker for a sign of life if the last one is old: what is placed on one that is stuck
    /// would wait until that is found out otherwise.
    async fn is_responsive(&self, incarnation: &Arc<Incarnation>) -> bool {
        let worker = &incarnation.worker;
        if worker.silence() < FRESH || worker.ping(PROBE).await.is_ok() || !worker.is_alive() {
            return true;
        }
        tracing::warn!(worker = %worker.id(), "worker gives no sign of life, and gets no turn before it does");
        self.doubt(incarnation);
        false
    }

    fn may_come(&self, slot: &SlotStatus) -> bool {
        let broken = slot.failures >= self.settings.breaker_failures;
        match slot.state {
            // One that sleeps is about to start: whoever looks for a worker has woken it.
            SlotState::Starting | SlotState::Backoff { .. } | SlotState::Asleep => !broken,
            // Its worker has just died and its supervisor is about to see it, or it may yet live.
            SlotState::Ready(_) | SlotState::Unresponsive(_) => true,
            SlotState::Stopped => false,
        }
    }
}

fn least_loaded(slots: &[SlotStatus]) -> Option<Arc<Incarnation>> {
    let ready = slots.iter().filter_map(|slot| slot.state.ready());
    let least = ready.filter(|incarnation| incarnation.worker.is_alive()).min_by_key(|ready| {
        let is_suspected = ready.suspects() > 0;
        let threads = ready.worker.loaded_threads();
        (is_suspected, ready.running_turns(), threads, ready.started_turns())
    });
    least.cloned()
}

fn unavailable(slots: &[SlotStatus]) -> Unavailable {
    let now = Instant::now();
    let pauses = slots.iter().filter_map(|slot| match slot.state {
        SlotState::Backoff { until } => Some(until.saturating_duration_since(now)),
        SlotState::Starting
        | SlotState::Ready(_)
        | SlotState::Unresponsive(_)
        | SlotState::Asleep
        | SlotState::Stopped => None,
    });
    let retry_after = pauses.min().unwrap_or_default().max(Duration::from_secs(1));
    let (kind, cause) = trouble(slots);
    Unavailable { cause, retry_after, out_of_resources: kind == Trouble::OutOfResources }
}
