//! Whether turns can run, and what is the trouble where they can't.

use tokio::sync::watch;

use crate::pool::{Pool, SlotState, SlotStatus};

/// Whether turns can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// At least one worker is warm, and at the start all were; or they sleep, or have just been woken.
    Ready,
    /// None is.
    NotReady {
        kind: Trouble,
        /// Why not, for the person who reads it.
        cause: String,
    },
}

/// Kinds of trouble that keep workers from being ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// None: they are being started.
    Starting,
    /// The CLI was not found.
    CodexNotFound,
    /// The CLI is of a version that is not supported.
    CodexTooOld,
    /// The CLI does not start, or does not speak its protocol.
    CodexUnusable,
    /// CODEX_HOME can't be written.
    HomeUnusable,
    /// Codex can't read its `config.toml`.
    ConfigInvalid,
    /// The machine is out of processes, memory or file descriptors.
    OutOfResources,
    /// Workers start, and end again and again.
    WorkersFailing,
    /// The pool is shut down.
    Stopped,
}

impl Pool {
    /// Whether turns can run, now and as it changes.
    pub(crate) fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// Tells whether turns can run after something has changed that this depends on.
    pub(super) fn update_readiness(&self) {
        self.readiness.send_if_modified(|readiness| {
            // Looked at here: of two changes at once, what was looked at last is told last.
            let slots = self.slots.borrow();
            let home_fault = self.home_fault.borrow().clone();
            let config_fault = self.config_fault.borrow().clone();
            let any_ready = slots.iter().any(|slot| slot.state.ready().is_some());
            // At the start every slot must have had its chance; later one warm worker is enough.
            let all_tried = slots
                .iter()
                .all(|slot| slot.state.ready().is_some() || slot.last_failure.is_some());
            // Probes are to send turns to workers that sleep, and not to be told of each awakening.
            let sleeps = self.can_sleep()
                && slots.iter().all(|slot| {
                    let may_come = matches!(slot.state, SlotState::Asleep | SlotState::Starting);
                    slot.failures == 0 && (may_come || slot.state.ready().is_some())
                });
            let next = if let Some(cause) = home_fault {
                Readiness::NotReady { kind: Trouble::HomeUnusable, cause }
            } else if let Some(cause) = config_fault.filter(|_| any_ready) {
                Readiness::NotReady { kind: Trouble::ConfigInvalid, cause }
            } else if sleeps || any_ready && (*readiness == Readiness::Ready || all_tried) {
                Readiness::Ready
            } else {
                let (kind, cause) = trouble(&slots);
                Readiness::NotReady { kind, cause }
            };
            let has_changed = *readiness != next;
            *readiness = next;
            has_changed
        });
    }
}

/// Before anything has happened.
pub(super) fn starting() -> Readiness {
    let (kind, cause) = trouble(&[]);
    Readiness::NotReady { kind, cause }
}

pub(super) fn trouble(slots: &[SlotStatus]) -> (Trouble, String) {
    let stuck = slots.iter().find_map(|slot| match &slot.state {
        SlotState::Unresponsive(stuck) => Some(stuck),
        _ => None,
    });
    let without_worker = slots.iter().filter(|slot| slot.state.held().is_none());
    match without_worker.max_by_key(|slot| slot.failures) {
        Some(SlotStatus { failures: failures @ 1.., last_failure: Some(failure), .. }) => {
            (failure.kind, format!("{} ({failures} failures in a row)", failure.message))
        }
        Some(SlotStatus { state: SlotState::Stopped, .. }) => {
            (Trouble::Stopped, "the pool is shut down".to_owned())
        }
        _ => match stuck {
            Some(stuck) => {
                let cause = format!("worker {} {}", stuck.worker.id(), stuck.complaint());
                (Trouble::WorkersFailing, cause)
            }
            None => (Trouble::Starting, "the workers are being started".to_owned()),
        },
    }
}
