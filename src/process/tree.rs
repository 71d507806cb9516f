//! The processes of this machine as `/proc` shows them, and how to kill one and never another.
//!
//! A process id names whoever has it now. Two things make a signal safe: an unreaped child's id can't
//! be given to anyone else, so that the parent, which alone reaps, may kill it by id; any other process
//! is held by a pidfd, and killed only if what was read about it is still true afterwards.

use std::collections::{HashMap, HashSet};
use std::io;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

/// What names a process for good: its id, and when it started in clock ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) pid: i32,
    pub(super) started: u64,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(super) identity: Identity,
    pub(super) zombie: bool,
    pub(super) stopped: bool,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
}

impl Stat {
    /// Reads it; `None` once it is gone, or where it can't be looked at.
    pub(super) fn read(pid: i32) -> Option<Stat> {
        Stat::look(pid).ok().flatten()
    }

    /// Reads it; `None` once it is gone.
    ///
    /// # Errors
    /// There are no file descriptors or no memory to look with: whether it is gone is not known.
    pub(super) fn look(pid: i32) -> io::Result<Option<Stat>> {
        let blind = [Errno::MFILE, Errno::NFILE, Errno::NOMEM].map(Errno::raw_os_error);
        match std::fs::read(format!("/proc/{pid}/stat")) {
            Ok(text) => Ok(Stat::parse(pid, &text)),
            Err(error) if error.raw_os_error().is_some_and(|errno| blind.contains(&errno)) => {
                Err(error)
            }
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn parse(pid: i32, text: &[u8]) -> Option<Stat> {
        // The name stands in brackets and may itself hold blanks and brackets.
        let after_name = text.iter().rposition(|byte| *byte == b')')? + 1;
        let text = std::str::from_utf8(&text[after_name..]).ok()?;
        let mut fields = text.split_ascii_whitespace();
        let state = fields.next()?;
        let (zombie, stopped) = (matches!(state, "Z" | "X" | "x"), matches!(state, "T" | "t"));
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        let session = fields.next()?.parse().ok()?;
        // The 22nd field of all, four of which were taken here and two before.
        let started = fields.nth(15)?.parse().ok()?;
        Some(Stat { identity: Identity { pid, started }, zombie, stopped, parent, group, session })
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.identity.pid)
    }

    /// Kills it, wherever in the tree it is, unless it is gone already.
    pub(super) fn kill(&self) {
        let Some(pid) = self.pid() else { return };
        let Ok(held) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
        if Stat::read(self.identity.pid).is_some_and(|now| now.identity == self.identity) {
            let _ = rustix::process::pidfd_send_signal(held, Signal::KILL);
        }
    }
}

/// Every process id, the newest first as far as ids tell. So one that forks and exits all the time,
/// each time under a higher id, is looked at before it has moved on.
pub(super) fn pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    pids.sort_unstable_by(|one, other| other.cmp(one));
    Ok(pids)
}

/// Every process.
pub(super) fn all() -> io::Result<Vec<Stat>> {
    pids()?.into_iter().filter_map(|pid| Stat::look(pid).transpose()).collect()
}

/// Which of them descend from the roots; the roots themselves do not.
pub(super) fn below(stats: &[Stat], roots: impl IntoIterator<Item = i32>) -> Vec<Stat> {
    let mut by_parent: HashMap<i32, Vec<Stat>> = HashMap::new();
    for stat in stats {
        by_parent.entry(stat.parent).or_default().push(*stat);
    }
    let mut found = Vec::new();
    let mut parents: Vec<i32> = roots.into_iter().collect();
    let mut seen: HashSet<i32> = parents.iter().copied().collect();
    while let Some(parent) = parents.pop() {
        for child in by_parent.get(&parent).into_iter().flatten() {
            // What is read one after the other need not fit together: there could be a circle.
            if seen.insert(child.identity.pid) {
                found.push(*child);
                parents.push(child.identity.pid);
            }
        }
    }
    found
}

/// The killing of children, and of all their descendants, pass after pass. Whoever makes it must be the
/// parent, a subreaper, and the only one that reaps those children.
///
/// There is an end to it: an orphan becomes the child of the subreaper, so where there is any descendant
/// there is a child, and a child stays until it is reaped. There is a race too, against descendants
/// that fork all the time. It is run by looking at the newest first, by killing at once instead of
/// after the last was read, and by not looking again at those that are killed or are none of ours. Who
/// forks no faster than once in a pass, a fraction of a millisecond, is caught.
#[derive(Debug)]
pub(super) struct Sweep {
    parent: Pid,
    /// Since when all was looked at, in passes.
    age: u32,
    /// Processes that need no second look: the killed ones, with their identity, and strangers.
    /// Forgotten now and then, because a process id is given anew.
    killed: HashMap<i32, Identity>,
    spared: HashSet<i32>,
    /// All that were ever killed.
    known: HashSet<Identity>,
    /// Children that were killed; the caller reaps them.
    pub(super) children: HashSet<Pid>,
}

/// What a pass met.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// How many were killed that had not been before.
    pub(super) new: usize,
    /// Whether there was nobody at all, where everybody was looked at.
    pub(super) nobody: bool,
}

impl Sweep {
    /// After how many passes all is looked at anew.
    const OLD: u32 = 8;

    pub(super) fn new(parent: Pid) -> Sweep {
        Sweep {
            parent,
            age: Sweep::OLD,
            killed: HashMap::new(),
            spared: HashSet::new(),
            known: HashSet::new(),
            children: HashSet::new(),
        }
    }

    /// Kills the children that `which` picks, and their descendants, once through.
    pub(super) fn pass(&mut self, which: impl Fn(&Stat) -> bool) -> io::Result<Pass> {
        let pids = pids()?;
        let whole = self.age >= Self::OLD;
        if whole {
            self.age = 0;
            self.killed.clear();
            self.spared.clear();
        }
        self.age += 1;
        let mut others = Vec::new();
        let mut found = Vec::new();
        for pid in pids {
            if self.killed.contains_key(&pid) || self.spared.contains(&pid) {
                continue;
            }
            let Some(mut stat) = Stat::look(pid)? else { continue };
            if let Some(parent) = self.killed.get(&stat.parent) {
                if Stat::read(stat.parent).is_some_and(|now| now.identity == *parent) {
                    stat.kill();
                    found.push(stat);
                    continue;
                }
                // It has just lost its parent, most likely.
                stat = Stat::read(pid).unwrap_or(stat);
            }
            if stat.parent != self.parent.as_raw_nonzero().get() {
                others.push(stat);
            } else if which(&stat) {
                self.kill_child(&stat);
                found.push(stat);
            } else {
                self.spared.insert(pid);
            }
        }
        for stat in below(&others, found.iter().map(|stat| stat.identity.pid)) {
            stat.kill();
            found.push(stat);
        }
        self.killed.extend(found.iter().map(|stat| (stat.identity.pid, stat.identity)));
        // Older ones first: a parent is most often older than its child. Who is not shown to descend
        // from somebody that is spared may just have lost its parent, and be ours then.
        for stat in others.iter().rev() {
            if stat.parent == 0 || self.spared.contains(&stat.parent) {
                self.spared.insert(stat.identity.pid);
            }
        }
        let new = found.iter().filter(|stat| self.known.insert(stat.identity)).count();
        if new == 0 {
            self.age = Self::OLD;
        }
        Ok(Pass { new, nobody: whole && found.is_empty() })
    }

    fn kill_child(&mut self, child: &Stat) {
        let Some(pid) = child.pid() else { return };
        let _ = rustix::process::kill_process(pid, Signal::KILL);
        // In one go, against which nothing can fork. The group can be nobody else's while its leader is
        // not reaped.
        if child.group == child.identity.pid {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        self.children.insert(pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_brackets_is_no_obstacle() {
        let line =
            b"42 (a) Z (b) S 7 8 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 12345 1000 2 18446\n";
        let stat = Stat::parse(42, line).unwrap();
        let identity = Identity { pid: 42, started: 12345 };
        assert_eq!(
            stat,
            Stat { identity, zombie: false, stopped: false, parent: 7, group: 8, session: 9 }
        );
        assert_eq!(Stat::parse(42, b"42 (a"), None);
        assert_eq!(Stat::parse(42, b""), None);
    }

    #[test]
    fn this_process_is_read_and_descends_from_its_parent() {
        let me = Stat::read(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(!me.zombie);
        let all = all().unwrap();
        assert!(below(&all, [me.parent]).contains(&me));
        assert!(!below(&all, [me.identity.pid]).contains(&me));
    }
}
