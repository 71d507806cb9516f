//! What one caller can do to the others, with a canary beside it.
//!
//! Each test is a row: it starts a sidecar of its own, attacks it while a [`canary`] goes on with its
//! small calls, and asserts that the canary's calls all succeeded and that memory stayed within the
//! bounds that the row names. How long the canary's calls took is printed and not asserted. The table:
//!
//! ```sh
//! CODEX_SIDECAR_ATTACKS=full cargo test --release --test it attacks:: -- --nocapture --test-threads=1
//! ```
//!
//! Without the variable the attacks are as small as they can be and still show what they show.

mod canary;
mod connections;
mod frames;
mod memory;
mod queues;
mod requests;
mod wire;

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Once};
use std::time::Duration;

use codex_sidecar::parts::process::resident_bytes;
use tokio::process::Command;

use self::canary::{Canary, Seen};
use crate::support::binary::Binary;
use crate::support::{Place, processes};

/// Whether the attacks have their full size.
fn is_full() -> bool {
    std::env::var("CODEX_SIDECAR_ATTACKS").is_ok_and(|size| size == "full")
}

/// One of two sizes.
fn size<T>(short: T, full: T) -> T {
    if is_full() { full } else { short }
}

/// Resident memory, in MiB.
#[derive(Debug, Clone, Copy)]
struct Memory {
    sidecar: u64,
    /// All that it started, together.
    workers: u64,
}

impl Memory {
    fn of(pid: u32, place: &Place) -> Memory {
        let started = processes::of_home(&place.codex_home());
        let workers = started.iter().filter(|process| process.pid != pid);
        let workers: u64 = workers.filter_map(|process| resident_bytes(process.pid)).sum();
        Memory { sidecar: resident_bytes(pid).unwrap_or(0) >> 20, workers: workers >> 20 }
    }
}

/// The highest that memory was.
#[derive(Debug, Default)]
struct Peak {
    sidecar: AtomicU64,
    workers: AtomicU64,
}

/// What a row has measured, in MiB.
#[derive(Debug, Clone, Copy)]
struct Measured {
    before: Memory,
    peak: Memory,
    after: Memory,
}

impl Measured {
    /// How much more memory the sidecar took at most.
    fn grown(&self) -> u64 {
        self.peak.sidecar.saturating_sub(self.before.sidecar)
    }

    /// How much of it it has kept.
    fn kept(&self) -> u64 {
        self.after.sidecar.saturating_sub(self.before.sidecar)
    }
}

/// A sidecar under attack.
struct Target {
    sidecar: Binary,
    /// The canary's turns that the attack may take along.
    lost: usize,
}

impl Deref for Target {
    type Target = Binary;

    fn deref(&self) -> &Binary {
        &self.sidecar
    }
}

impl Target {
    /// Two workers, with these lines in the configuration file.
    async fn with(configuration: &str) -> Target {
        Target::started(configuration, |_| {}).await
    }

    async fn started(configuration: &str, change: impl FnOnce(&mut Command)) -> Target {
        let place = Place::new();
        let file = place.path().join("sidecar.toml");
        std::fs::write(&file, configuration).unwrap();
        let sidecar = Binary::cold(place, |command| {
            command.env("CODEX_SIDECAR_WORKERS", "2").arg("--config").arg(&file);
            change(command);
        })
        .await;
        sidecar.ready().await;
        Target { sidecar, lost: 0 }
    }

    /// Does `attack` with a canary beside it, prints the row, asserts that the canary was served, and
    /// stops the sidecar.
    async fn attacked(self, what: &str, attack: impl AsyncFnOnce(&Binary)) -> Measured {
        // The canary's thread is loaded, and what a first turn costs is paid.
        for _ in 0..2 {
            self.say("canary", "hello").await;
        }
        let (pid, place) = (self.pid(), &self.place);
        let before = Memory::of(pid, place);
        let peak = Arc::new(Peak::default());
        let looking = tokio::spawn({
            let (peak, home) = (Arc::clone(&peak), place.codex_home());
            async move {
                loop {
                    let started = tokio::task::spawn_blocking({
                        let home = home.clone();
                        move || {
                            let started = processes::of_home(&home);
                            let others = started.iter().filter(|process| process.pid != pid);
                            others.filter_map(|process| resident_bytes(process.pid)).sum::<u64>()
                        }
                    });
                    peak.workers.fetch_max(started.await.unwrap() >> 20, Relaxed);
                    peak.sidecar.fetch_max(resident_bytes(pid).unwrap_or(0) >> 20, Relaxed);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
        let canary = Canary::start(&self, &self.address, place);
        attack(&self).await;
        let mut seen = canary.stop().await;
        for _ in 0..self.lost {
            let lost = seen.turns.failures.iter().position(|it| it.contains("WORKER_LOST"));
            lost.map(|lost| seen.turns.failures.remove(lost));
        }
        looking.abort();
        // What is given back is given back by then.
        tokio::time::sleep(size(Duration::from_secs(2), Duration::from_secs(15))).await;
        let after = Memory::of(pid, place);
        let peak = Memory {
            sidecar: peak.sidecar.load(Relaxed).max(before.sidecar),
            workers: peak.workers.load(Relaxed).max(before.workers),
        };
        let measured = Measured { before, peak, after };
        print(what, &seen, measured);
        for (calls, kind) in [(&seen.health, "health"), (&seen.turns, "turns")] {
            assert!(calls.failures.is_empty(), "{what}: {kind}: {:#?}", calls.failures);
        }
        self.sidecar.stop().await;
        measured
    }
}

/// A row of the table.
fn print(what: &str, seen: &Seen, measured: Measured) {
    static HEAD: Once = Once::new();
    HEAD.call_once(|| {
        println!(
            "| attack | health p50/p99/max ms | turn p50/p99/max ms | failures | sidecar MiB before/peak/after | workers MiB | verdict |\n\
             |---|---|---|---|---|---|---|"
        );
    });
    let Measured { before, peak, after } = measured;
    let failures = seen.health.failures.len() + seen.turns.failures.len();
    println!(
        "| {what} | {} | {} | {failures} | {}/{}/{} | {}/{}/{} | {} |",
        seen.health.shown(),
        seen.turns.shown(),
        before.sidecar,
        peak.sidecar,
        after.sidecar,
        before.workers,
        peak.workers,
        after.workers,
        if failures == 0 { "holds" } else { "BROKEN" },
    );
}
