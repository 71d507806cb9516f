//! Children of the sidecar that it didn't start: it adopts them as process 1 or as a subreaper.
//!
//! The dead ones are reaped. The live ones are killed if they come from a guard that was killed, which
//! is known by elimination: the guard is dead, and its orphans are children of ours that were none
//! before, lead or belong to sessions other than ours, and are no guards. A process can't join a
//! session, so whatever was started without a guard is in ours and is left alone, and so is whatever
//! somebody let into a container and orphaned there.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions};

use super::tree::{self, Identity, Pass, Stat, Sweep};

/// How long one of our session may be dead before it is taken for one that nobody waits for.
const UNCLAIMED: Duration = Duration::from_secs(10);

/// How often those of our session that are dead are looked at again.
const CLAIM_CHECK: Duration = Duration::from_secs(2);

/// How often process 1 looks what it was given. Others are given only what they started themselves.
const ROUND: Duration = Duration::from_secs(10);

/// The shortest time between two looks, however many children end.
const BREATH: Duration = Duration::from_millis(100);

/// How long somebody waits for a killed guard's orphans to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Orphans {
    me: Pid,
    looked: Option<Instant>,
    /// Live children that are not from a guard that was killed.
    standing: HashSet<Identity>,
    /// Dead ones of our session, since when.
    unclaimed: HashMap<Identity, Instant>,
    clearing: Option<Clearing>,
}

#[derive(Debug)]
struct Clearing {
    sweep: Sweep,
    since: Instant,
    rest: Duration,
}

impl Orphans {
    pub(super) fn new() -> Orphans {
        Orphans {
            me: rustix::process::getpid(),
            looked: None,
            standing: HashSet::new(),
            unclaimed: HashMap::new(),
            clearing: None,
        }
    }

    /// All processes, if it is time to look at them.
    pub(super) fn look(&mut self) -> Option<Vec<Stat>> {
        let since = self.looked.map(|looked| looked.elapsed());
        let due = match since {
            // While orphans are being killed, none of them may pass for one that was there before.
            _ if self.clearing.is_some() => false,
            None => true,
            Some(since) if since < BREATH => false,
            Some(since) => {
                someone_is_dead()
                    || (self.me.is_init() && since >= ROUND)
                    || (!self.unclaimed.is_empty() && since >= CLAIM_CHECK)
            }
        };
        if !due {
            return None;
        }
        // An error is most often a want of file descriptors. Soon again, then.
        let seen = tree::all().ok();
        self.looked = seen.as_ref().map(|_| Instant::now());
        seen
    }

    /// Notes the children that were seen while no guard died, and reaps the dead ones.
    pub(super) fn note(&mut self, seen: &[Stat], is_guard: impl Fn(Pid) -> bool) {
        let now = Instant::now();
        let session = own_session();
        let mut standing = HashSet::new();
        let mut unclaimed = HashMap::new();
        for stat in seen.iter().filter(|stat| stat.parent == self.me.as_raw_nonzero().get()) {
            let Some(pid) = stat.pid().filter(|pid| !is_guard(*pid)) else { continue };
            if !stat.zombie {
                standing.insert(stat.identity);
                continue;
            }
            let dead_since = self.unclaimed.get(&stat.identity).copied().unwrap_or(now);
            if stat.session != session || dead_since.elapsed() >= UNCLAIMED {
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
            } else {
                unclaimed.insert(stat.identity, dead_since);
            }
        }
        self.standing = standing;
        self.unclaimed = unclaimed;
    }

    /// Expects orphans, because a guard was killed.
    pub(super) fn expect(&mut self) {
        let rest = Duration::from_millis(1);
        self.clearing = Some(Clearing { sweep: Sweep::new(self.me), since: Instant::now(), rest });
    }

    /// Whether somebody should still wait for orphans to be gone.
    pub(super) fn are_awaited(&self) -> bool {
        self.clearing.is_some()
    }

    /// While there are orphans of killed guards: our children that are none.
    pub(super) fn standing(&self) -> Option<&HashSet<Identity>> {
        self.clearing.as_ref().map(|_| &self.standing)
    }

    /// Kills the orphans of killed guards once through; says when to come again.
    pub(super) fn tend(&mut self, is_guard: impl Fn(Pid) -> bool) -> Option<Duration> {
        let Some(clearing) = &mut self.clearing else {
            return if self.looked.is_none_or(|looked| looked.elapsed() < BREATH) {
                Some(BREATH)
            } else if !self.unclaimed.is_empty() {
                Some(CLAIM_CHECK)
            } else {
                self.me.is_init().then_some(ROUND)
            };
        };
        let session = own_session();
        let pass = clearing.sweep.pass(|stat| {
            stat.session != session
                && !self.standing.contains(&stat.identity)
                && stat.pid().is_some_and(|pid| !is_guard(pid))
        });
        clearing.sweep.children.retain(|pid| {
            matches!(rustix::process::waitpid(Some(*pid), WaitOptions::NOHANG), Ok(None))
        });
        match pass {
            Ok(Pass { nobody: true, .. }) => {
                self.clearing = None;
                return Some(BREATH);
            }
            Ok(Pass { new: 0, .. }) => {}
            Ok(_) => clearing.rest = Duration::ZERO,
            // Not seen is not gone.
            Err(_) => clearing.since = Instant::now(),
        }
        if clearing.since.elapsed() > PATIENCE {
            let left = clearing.sweep.children.len();
            tracing::warn!(left, "what a killed guard left behind can't be killed");
            self.clearing = None;
            return Some(BREATH);
        }
        let rest = clearing.rest;
        clearing.rest = (rest * 2).clamp(Duration::from_millis(1), Duration::from_millis(50));
        Some(rest)
    }
}

/// The session of this process. It may be one outside of its namespace, which has the number 0.
fn own_session() -> i32 {
    Stat::read(rustix::process::getpid().as_raw_nonzero().get()).map_or(0, |stat| stat.session)
}

/// Whether any child waits to be reaped.
fn someone_is_dead() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(rustix::process::waitid(WaitId::All, options), Ok(Some(_)))
}
