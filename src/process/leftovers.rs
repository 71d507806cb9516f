//! What processes carry in their environment: which sidecar started them, and which thread.
//!
//! A second line of defence only: whoever starts a process decides what it finds in there.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::guard_wire::SUBCOMMAND;
use super::tree::{self, Identity, Stat};

const VARIABLE: &str = "CODEX_SIDECAR_INSTANCE";

/// How long is killed in all.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which sidecar a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Instance {
    sidecar: Identity,
    /// Which processes the ids are of: a container has its own.
    namespace: u64,
    codex_home: PathBuf,
}

impl Instance {
    fn new(codex_home: &Path) -> io::Result<Instance> {
        let me = Stat::read(rustix::process::getpid().as_raw_nonzero().get())
            .ok_or_else(|| io::Error::other("/proc doesn't show this process"))?;
        let codex_home = std::path::absolute(codex_home)?;
        let codex_home = codex_home.canonicalize().unwrap_or(codex_home);
        let namespace = std::fs::metadata("/proc/self/ns/pid")?.ino();
        Ok(Instance { sidecar: me.identity, namespace, codex_home })
    }

    fn to_value(&self) -> OsString {
        let Instance { sidecar, namespace, codex_home } = self;
        let mut value = OsString::from(format!("{}:{}:{namespace}:", sidecar.pid, sidecar.started));
        value.push(codex_home);
        value
    }

    fn parse(value: &[u8]) -> Option<Instance> {
        let mut parts = value.splitn(4, |byte| *byte == b':');
        let mut number = || std::str::from_utf8(parts.next()?).ok()?.parse::<u64>().ok();
        let (pid, started, namespace) = (number()?, number()?, number()?);
        let sidecar = Identity { pid: pid.try_into().ok()?, started };
        let codex_home = OsStr::from_bytes(parts.next()?).into();
        Some(Instance { sidecar, namespace, codex_home })
    }

    /// Whether it is an earlier sidecar that served the same home and is dead.
    fn is_forerunner_of(&self, other: &Instance) -> bool {
        self.namespace == other.namespace
            && self.codex_home == other.codex_home
            // One that can't be looked at may well live.
            && Stat::look(self.sidecar.pid)
                .is_ok_and(|now| now.is_none_or(|now| now.identity != self.sidecar || now.zombie))
    }
}

/// The variable that a worker must have in its environment for [`clear_leftovers`] to find it.
///
/// # Errors
/// `/proc` can't be read.
pub fn instance_variable(codex_home: &Path) -> io::Result<(OsString, OsString)> {
    Ok((VARIABLE.into(), Instance::new(codex_home)?.to_value()))
}

/// Kills what an earlier sidecar that served the same home and is dead has left behind, as far as it
/// carries the [variable](instance_variable), with all descendants; gives how many processes that
/// were. Waits until they are gone, two seconds at most. To be called before the first worker starts,
/// not on a runtime's thread.
pub fn clear_leftovers(codex_home: &Path) -> usize {
    let Ok(instance) = Instance::new(codex_home) else { return 0 };
    kill_until_gone(|| {
        let all = tree::all().unwrap_or_default();
        let left = |stat: &Stat| {
            !stat.zombie
                && variable(stat, VARIABLE)
                    .and_then(|value| Instance::parse(&value))
                    .is_some_and(|of| of.is_forerunner_of(&instance))
        };
        let (mut guards, mut left): (Vec<Stat>, Vec<Stat>) =
            all.iter().filter(|stat| left(stat)).partition(|stat| is_guard(stat));
        // What is in a guard's environment only root can see.
        let parents: HashSet<i32> = left.iter().map(|stat| stat.parent).collect();
        let is_parent = |stat: &&Stat| parents.contains(&stat.identity.pid) && is_guard(stat);
        guards.extend(all.iter().filter(is_parent));
        left.extend(tree::below(&all, left.iter().map(|stat| stat.identity.pid)));
        // One of them may have started this sidecar.
        left.retain(|stat| stat.identity != instance.sidecar);
        // A guard that is left is at work: without it, what it kills would only be lost from sight.
        (left, !guards.is_empty())
    })
}

/// A moment, by the clock by which the system dates the start of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    #[cfg(test)]
    pub(super) fn of_ticks(ticks: u64) -> Moment {
        Moment(ticks)
    }

    /// In clock ticks since the system was started.
    pub(super) fn ticks(self) -> u64 {
        self.0
    }

    /// Now; the beginning of all if the system does not tell.
    pub fn now() -> Moment {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds: f64 =
            uptime.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
        // Rounded down, as the start of a process is.
        Moment((seconds * rustix::param::clock_ticks_per_second() as f64) as u64)
    }
}

/// Kills what the process `pid` and its descendants started at that moment or later with this variable
/// in its environment, and what those started in turn, but never `pid` itself; gives how many processes
/// that were. Waits until they are gone, two seconds at most; not for a runtime's thread. Codex gives
/// the commands of a thread its id as `CODEX_THREAD_ID`.
pub fn kill_started_since(pid: u32, name: &str, value: &str, since: Moment) -> usize {
    let Some(worker) = i32::try_from(pid).ok().and_then(Stat::read) else { return 0 };
    // A process that left the worker's tree is a child of the worker's guard.
    let root = Stat::read(worker.parent).filter(is_guard).unwrap_or(worker);
    kill_until_gone(|| {
        let all = tree::all().unwrap_or_default();
        let mut started: Vec<Stat> = tree::below(&all, [root.identity.pid])
            .into_iter()
            .filter(|stat| stat.identity != worker.identity && !stat.zombie)
            .filter(|stat| stat.identity.started >= since.0)
            .filter(|stat| variable(stat, name).is_some_and(|found| found == value.as_bytes()))
            .collect();
        started.extend(tree::below(&all, started.iter().map(|stat| stat.identity.pid)));
        (started, false)
    })
}

/// Kills what `find` finds, until it finds nothing, what was killed is dead, and there is nothing else
/// to wait for.
fn kill_until_gone(find: impl Fn() -> (Vec<Stat>, bool)) -> usize {
    let begun = Instant::now();
    let mut killed = HashSet::new();
    loop {
        let (found, wait) = find();
        let mut again = wait;
        for stat in found.iter().filter(|stat| !stat.zombie) {
            stat.kill();
            killed.insert(stat.identity);
            again = true;
        }
        let dying = |identity: &Identity| {
            Stat::look(identity.pid)
                .map_or(true, |now| now.is_some_and(|now| now.identity == *identity && !now.zombie))
        };
        if !(again || killed.iter().any(dying)) || begun.elapsed() > PATIENCE {
            return killed.len();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A variable of a process of ours; `None` where there is none or it must not be seen.
fn variable(stat: &Stat, name: &str) -> Option<Vec<u8>> {
    let directory = format!("/proc/{}", stat.identity.pid);
    if std::fs::metadata(&directory).ok()?.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let environment = std::fs::read(format!("{directory}/environ")).ok()?;
    let mut variables = environment.split(|byte| *byte == 0);
    variables
        .find_map(|line| Some(line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_vec()))
}

fn is_guard(stat: &Stat) -> bool {
    let line = std::fs::read(format!("/proc/{}/cmdline", stat.identity.pid)).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(SUBCOMMAND.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_survives_the_environment() {
        let instance = Instance::new(Path::new("/tmp/a:b c")).unwrap();
        assert_eq!(Instance::parse(instance.to_value().as_bytes()), Some(instance));
        for foreign in ["", "1", "1:2:3", "x:2:3:/home"] {
            assert_eq!(Instance::parse(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn only_a_dead_sidecar_of_the_same_home_is_a_forerunner() {
        let me = Instance::new(Path::new("/tmp/home")).unwrap();
        assert!(!me.is_forerunner_of(&me), "it lives");
        let mut dead = me.clone();
        dead.sidecar.started += 1;
        assert!(dead.is_forerunner_of(&me));
        let elsewhere = Instance { namespace: 1, ..dead.clone() };
        assert!(!elsewhere.is_forerunner_of(&me));
        let other_home = Instance { codex_home: "/tmp/other".into(), ..dead };
        assert!(!other_home.is_forerunner_of(&me));
    }
}
