//! The search for those who are at the other ends of connections.
//!
//! The processes below a guard never leave it, whatever they do (it is a subreaper, and a PID namespace
//! is seen from outside), so that a process descends from a worker if its line of parents leads to a
//! guard. Who has a TCP connection is found by the inode of its socket among the files of processes: of
//! those below a guard first, then of all others, then of single threads of the former, which may have
//! files of their own. Processes that are started meanwhile are looked at, too, until none is new.
//!
//! It is done in slices of bounded length, and remembers what it has looked at. It may block; it never
//! changes anything.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::kin::{Kin, Peer, Somebody};
use super::reaper;
use super::sockets::{Sockets, TcpEnd};
use super::tree::{self, Identity, Stat};

/// Who has more files than this is taken for one that hides them.
const MOST_FILES: usize = 20_000;

/// How often it is begun anew because a guard was started, or has ended, meanwhile.
const BEGINNINGS: usize = 3;

/// Whose descendants are sought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roots {
    pub(super) guards: Vec<i32>,
    /// Workers without a guard.
    pub(super) unguarded: Vec<Identity>,
    /// While those that a killed guard has left are sought by the reaper: our children that are not
    /// among them.
    pub(super) standing: Option<HashSet<Identity>>,
}

impl Roots {
    fn are_none(&self) -> bool {
        self.guards.is_empty() && self.unguarded.is_empty() && self.standing.is_none()
    }

    /// Which processes are workers or descend from one.
    fn kin(&self, all: &[Stat]) -> HashSet<Identity> {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let session = all.iter().find(|stat| stat.identity.pid == me).map(|stat| stat.session);
        let is_left = |stat: &Stat| {
            let Some(standing) = &self.standing else { return false };
            stat.parent == me
                && Some(stat.session) != session
                && !standing.contains(&stat.identity)
                && !self.guards.contains(&stat.identity.pid)
        };
        let tops =
            all.iter().filter(|stat| self.unguarded.contains(&stat.identity) || is_left(stat));
        let mut kin: HashSet<Identity> = tops.map(|stat| stat.identity).collect();
        let roots: Vec<i32> =
            kin.iter().map(|top| top.pid).chain(self.guards.iter().copied()).collect();
        kin.extend(tree::below(all, roots).into_iter().map(|stat| stat.identity));
        kin
    }
}

/// A search for the other ends of some connections.
pub(crate) struct Census {
    sought: Vec<Sought>,
    roots: Roots,
    sockets: Option<Sockets>,
    begun: usize,
    /// Whose files were looked at.
    read: HashSet<Identity>,
    /// Whose threads' files were.
    read_by_thread: HashSet<Identity>,
    /// Those of ours whose files are hidden.
    hidden: Vec<Stat>,
    /// All of ours that were there at some moment have been looked at.
    is_covered: bool,
    /// One of ours that was new in the last pass.
    newest: Option<Stat>,
}

struct Sought {
    peer: Peer,
    end: Option<TcpEnd>,
    found: Option<Kin>,
}

impl Census {
    /// Nothing is looked at yet. The peers must have been there by now.
    pub(crate) fn new(peers: impl IntoIterator<Item = Peer>) -> Census {
        let sought = peers.into_iter().map(|peer| Sought { peer, end: None, found: None });
        Census {
            sought: sought.collect(),
            roots: Roots::default(),
            sockets: None,
            begun: 0,
            read: HashSet::new(),
            read_by_thread: HashSet::new(),
            hidden: Vec::new(),
            is_covered: false,
            newest: None,
        }
    }

    /// Looks for so long; whether there is nothing left to look for.
    pub(crate) fn go_on(&mut self, slice: Duration) -> bool {
        let until = Instant::now() + slice;
        loop {
            if self.begun == 0 || self.roots_have_changed() {
                if self.begun == BEGINNINGS {
                    let late = Kin::Unknown("workers come and go too fast");
                    for it in &mut self.sought {
                        if !matches!(it.found, Some(Kin::Ours(_) | Kin::Gone)) {
                            it.found = Some(late.clone());
                        }
                    }
                    return true;
                }
                self.begin();
            }
            if self.roots.are_none() {
                // Nobody can be below nobody.
                self.settle(|_| true, &Kin::Stranger);
                return true;
            }
            match self.look(until) {
                Ok(true) => {}
                Ok(false) => {
                    // What is known already is told by it.
                    if self.begun < BEGINNINGS && self.roots_have_changed() {
                        self.begin();
                    }
                    return false;
                }
                Err(error) => {
                    tracing::debug!(%error, "processes can't be looked at");
                    self.settle(|_| true, &Kin::Unknown("processes can't be looked at"));
                }
            }
            // A guard that was killed meanwhile has left its descendants to somebody else.
            if !self.roots_have_changed() {
                return true;
            }
        }
    }

    /// Who it is as far as that is known by now, in the order of the peers.
    pub(crate) fn known(&self) -> impl Iterator<Item = Option<&Kin>> {
        self.sought.iter().map(|it| it.found.as_ref())
    }

    /// Who it is, in the order of the peers.
    pub(crate) fn end(mut self) -> Vec<Kin> {
        self.conclude();
        let late = Kin::Unknown("not all processes could be looked at in time");
        self.sought.into_iter().map(|it| it.found.unwrap_or(late.clone())).collect()
    }

    fn roots_have_changed(&self) -> bool {
        self.roots != reaper::roots().blocking_recv().unwrap_or_default()
    }

    fn begin(&mut self) {
        self.begun += 1;
        self.roots = reaper::roots().blocking_recv().unwrap_or_default();
        self.read.clear();
        self.read_by_thread.clear();
        self.hidden.clear();
        self.is_covered = false;
        for it in &mut self.sought {
            if !matches!(it.found, Some(Kin::Ours(_))) {
                it.found = None;
            }
        }
    }

    fn look(&mut self, until: Instant) -> io::Result<bool> {
        if self.sockets.is_none() {
            self.sockets = Sockets::open().ok();
        }
        for it in &mut self.sought {
            it.look_at_socket(self.sockets.as_ref());
        }
        loop {
            let all = tree::all()?;
            let kin = self.roots.kin(&all);
            for it in &mut self.sought {
                it.look_at_process(&all, &kin);
            }
            if self.is_settled() {
                return Ok(true);
            }
            let (ours, others): (Vec<Stat>, Vec<Stat>) =
                all.into_iter().partition(|stat| kin.contains(&stat.identity));
            let mut is_new = false;
            for (stats, are_ours) in [(&ours, true), (&others, false)] {
                for stat in stats {
                    if self.read.contains(&stat.identity) {
                        continue;
                    }
                    is_new |= are_ours;
                    self.newest = if are_ours { Some(*stat) } else { self.newest };
                    let directory = format!("/proc/{}/fd", stat.identity.pid);
                    self.look_at_files(&directory, stat, are_ours)?;
                    self.read.insert(stat.identity);
                    if self.is_settled() {
                        return Ok(true);
                    }
                    // After the first: each slice goes on a little.
                    if Instant::now() >= until {
                        return Ok(false);
                    }
                }
            }
            for stat in &ours {
                if self.read_by_thread.contains(&stat.identity) {
                    continue;
                }
                for thread in threads(stat.identity.pid) {
                    let directory = format!("/proc/{}/task/{thread}/fd", stat.identity.pid);
                    self.look_at_files(&directory, stat, true)?;
                }
                self.read_by_thread.insert(stat.identity);
                if self.is_settled() {
                    return Ok(true);
                }
                if Instant::now() >= until {
                    return Ok(false);
                }
            }
            self.is_covered = true;
            if !is_new {
                self.newest = None;
                self.conclude();
                return Ok(true);
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.sought.iter().all(|it| it.found.is_some())
    }

    fn settle(&mut self, which: impl Fn(&Sought) -> bool, kin: &Kin) {
        for it in self.sought.iter_mut().filter(|it| it.found.is_none() && which(it)) {
            it.found = Some(kin.clone());
        }
    }

    /// Settles the connections whose sockets are in this directory of a process's or a thread's files.
    fn look_at_files(&mut self, directory: &str, stat: &Stat, are_ours: bool) -> io::Result<()> {
        let found = sockets_in(directory, |inode| self.sought.iter().any(|it| it.is_wanted(inode)));
        match found {
            Ok(inodes) => {
                for inode in inodes {
                    let kin = if are_ours { Kin::Ours(somebody(stat)) } else { Kin::Stranger };
                    self.settle(|it| it.is_wanted(inode), &kin);
                }
            }
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(errno.into()),
            Err(_) if are_ours => self.hidden.push(*stat),
            Err(_) => {}
        }
        Ok(())
    }

    /// Says of the connections that nobody was found with what that means.
    fn conclude(&mut self) {
        if self.is_settled() {
            return;
        }
        for it in &mut self.sought {
            it.look_at_socket_again(self.sockets.as_ref());
        }
        if self.is_settled() || !self.is_covered {
            return;
        }
        // It has its user's id from its maker, and cannot have one that none of ours has.
        let hidden: Vec<(Stat, Vec<u32>)> = {
            // One that moves on from process to process faster than it is looked at hides, too.
            let moving = self.newest.iter();
            self.hidden.iter().chain(moving).map(|stat| (*stat, uids(stat.identity.pid))).collect()
        };
        let all: HashSet<u32> = self.read_by_thread.iter().flat_map(|it| uids(it.pid)).collect();
        for it in self.sought.iter_mut().filter(|it| it.found.is_none()) {
            let Some(end) = it.end else { continue };
            let by = hidden.iter().find(|(_, uids)| uids.contains(&end.uid));
            it.found = Some(match by {
                Some((stat, _)) => Kin::PerhapsOurs(somebody(stat)),
                None if !all.contains(&end.uid) => Kin::Stranger,
                None => Kin::Unknown("no process that can be looked at has the socket"),
            });
        }
    }
}

impl Sought {
    fn is_wanted(&self, inode: u32) -> bool {
        self.found.is_none() && self.end.is_some_and(|end| end.inode == inode)
    }

    fn look_at_process(&mut self, all: &[Stat], kin: &HashSet<Identity>) {
        let Peer::Process { pid, seen } = self.peer else { return };
        if self.found.is_some() {
            return;
        }
        let stat = all.iter().find(|stat| stat.identity.pid == pid);
        self.found = Some(match stat {
            _ if pid == 0 => Kin::Unknown("its process is in a PID namespace that is not seen"),
            Some(stat) if kin.contains(&stat.identity) => Kin::Ours(somebody(stat)),
            // What has its number now was not there yet.
            Some(stat) if stat.zombie || stat.identity.started > seen.ticks() => Kin::Gone,
            Some(_) => Kin::Stranger,
            None => Kin::Gone,
        });
    }

    fn look_at_socket(&mut self, sockets: Option<&Sockets>) {
        let Peer::Tcp { client, server } = self.peer else { return };
        if self.found.is_some() || self.end.is_some() {
            return;
        }
        let Some(sockets) = sockets else {
            self.found = Some(if is_own(client) {
                Kin::Unknown("the system shows no sockets")
            } else {
                Kin::Stranger
            });
            return;
        };
        match sockets.end(client, server) {
            Ok(Some(TcpEnd { inode: 0, .. })) => self.found = Some(Kin::Gone),
            Ok(end @ Some(_)) => self.end = end,
            // Another machine's, or of another network namespace.
            Ok(None) | Err(_) if !is_own(client) => self.found = Some(Kin::Stranger),
            Ok(None) | Err(_) => {}
        }
    }

    /// Says of a socket that nobody was found with whether it is there at all.
    fn look_at_socket_again(&mut self, sockets: Option<&Sockets>) {
        let (Peer::Tcp { client, server }, None) = (self.peer, &self.found) else { return };
        let Some(sockets) = sockets else { return };
        let elsewhere = Kin::Unknown("its socket is not in the sidecar's network namespace");
        self.found = match (sockets.end(client, server), sockets.end(server, client)) {
            (Ok(Some(end)), _) if end.inode == 0 => Some(Kin::Gone),
            (Ok(end @ Some(_)), _) => {
                self.end = end;
                None
            }
            (Ok(None), Ok(Some(own))) if own.is_established => Some(elsewhere),
            (Ok(None), Ok(Some(_))) => Some(Kin::Gone),
            // Reset, unless the kernel shows none at all.
            (Ok(None), Ok(None)) if sockets.shows_listener(server) => Some(Kin::Gone),
            _ => Some(Kin::Unknown("the system does not show this connection")),
        };
    }
}

/// Whether it is an address of this machine: one that can be bound.
fn is_own(address: SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    let mut free = address;
    free.set_ip(ip);
    free.set_port(0);
    ip.is_loopback() || UdpSocket::bind(free).is_ok()
}

fn somebody(stat: &Stat) -> Somebody {
    let pid = stat.identity.pid;
    let command = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    Somebody { pid, command: String::from_utf8_lossy(&command).trim_end().to_owned() }
}

/// The users' ids that a process has: real, effective, saved, and for files.
fn uids(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|uid| uid.parse().ok()).collect()
}

/// The threads of a process but its first one.
fn threads(pid: i32) -> Vec<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let threads = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    threads.filter(|thread| *thread != pid).collect()
}

/// The inodes of the sockets in this directory of open files that are `wanted`.
fn sockets_in(directory: &str, wanted: impl Fn(u32) -> bool) -> Result<Vec<u32>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory: OwnedFd = rustix::fs::open(directory, flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(8192);
    let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
    let mut found = Vec::new();
    let mut count = 0;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        count += 1;
        if count > MOST_FILES {
            return Err(Errno::MSGSIZE);
        }
        let mut target = [0; 64];
        let target = match rustix::fs::readlinkat_raw(&directory, name, &mut target[..]) {
            Ok(length) => &target[..length],
            // Closed meanwhile.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        found.extend(socket_inode(target).filter(|inode| wanted(*inode)));
    }
    Ok(found)
}

/// `socket:[12345]`
fn socket_inode(target: &[u8]) -> Option<u32> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::process::{Moment, Pipes, Process, ProcessSpec};

    /// A worker without a guard that runs this in bash, or with Python.
    async fn worker(program: &str, script: &str) -> (Process, Pipes) {
        let spec = ProcessSpec {
            program: program.into(),
            args: vec!["-c".into(), script.into()],
            env: vec![("PATH".into(), std::env::var_os("PATH").unwrap_or_default())],
            ..ProcessSpec::default()
        };
        Process::spawn(spec).await.unwrap()
    }

    async fn look(peers: Vec<Peer>) -> Vec<Kin> {
        let looking = tokio::task::spawn_blocking(|| {
            let mut census = Census::new(peers);
            assert!(census.go_on(Duration::from_secs(20)));
            census.end()
        });
        looking.await.unwrap()
    }

    async fn accepted(listener: &TcpListener) -> (TcpStream, Peer) {
        let listener = listener.try_clone().unwrap();
        let accepting = tokio::task::spawn_blocking(move || listener.accept().unwrap().0);
        let server =
            tokio::time::timeout(Duration::from_secs(20), accepting).await.unwrap().unwrap();
        let client = server.peer_addr().unwrap();
        let peer = Peer::Tcp { client, server: server.local_addr().unwrap() };
        (server, peer)
    }

    #[tokio::test]
    async fn who_has_a_connection_is_told_by_the_file_that_it_has_open() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let dial = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; exec sleep 60");
        let (child, _pipes) = worker("/bin/bash", &dial).await;
        let (_ours, ours) = accepted(&listener).await;
        // Below it, in a session of its own, and in a thread that has files of its own.
        let (_child, _more_pipes) =
            worker("/bin/bash", &format!("setsid bash -c '{dial}'; true")).await;
        let (_below, below) = accepted(&listener).await;
        let thread = format!(
            "import ctypes, socket, threading, time\n\
             def dial():\n    assert ctypes.CDLL(None).unshare(0x400) == 0\n    \
             s = socket.create_connection(('127.0.0.1', {port})); time.sleep(60)\n\
             threading.Thread(target=dial).start()"
        );
        let (_threaded, _its_pipes) = worker("python3", &thread).await;
        let (_by_thread, by_thread) = accepted(&listener).await;
        let _client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_other, other) = accepted(&listener).await;
        let gone = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_left, left) = accepted(&listener).await;
        drop(gone);

        let kin = look(vec![ours, below, by_thread, other, left]).await;
        let [first, second, third, stranger, gone] = &kin[..] else { panic!("{kin:?}") };
        assert!(matches!(first, Kin::Ours(it) if it.pid.unsigned_abs() == child.pid()), "{kin:?}");
        assert!(matches!(second, Kin::Ours(it) if it.command == "sleep"), "{kin:?}");
        assert!(matches!(third, Kin::Ours(it) if it.command.starts_with("python")), "{kin:?}");
        assert_eq!((stranger, gone), (&Kin::Stranger, &Kin::Gone));
    }

    #[tokio::test]
    async fn a_process_is_told_by_its_line_of_parents_and_by_when_it_was_there() {
        let (child, _pipes) = worker("/bin/sh", "sleep 60; true").await;
        let process = |pid: u32, seen| Peer::Process { pid: i32::try_from(pid).unwrap(), seen };
        let me = std::process::id();
        let now = Moment::now();
        let long_ago = Moment::of_ticks(0);
        let peers = vec![
            process(child.pid(), now),
            process(me, now),
            process(me, long_ago),
            process(0, now),
            Peer::Process { pid: i32::MAX, seen: now },
        ];
        let kin = look(peers).await;
        assert!(
            matches!(&kin[0], Kin::Ours(it) if it.pid.unsigned_abs() == child.pid()),
            "{kin:?}"
        );
        assert_eq!((&kin[1], &kin[2], &kin[4]), (&Kin::Stranger, &Kin::Gone, &Kin::Gone));
        assert!(matches!(kin[3], Kin::Unknown(_)), "{kin:?}");
    }

    #[tokio::test]
    async fn a_search_goes_on_where_it_has_stopped_and_says_what_it_had_no_time_for() {
        let (_child, _pipes) = worker("/bin/sh", "sleep 60; true").await;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_server, peer) = accepted(&listener).await;
        let looking = tokio::task::spawn_blocking(move || {
            let mut hasty = Census::new([peer]);
            assert!(!hasty.go_on(Duration::ZERO));
            let hasty = hasty.end();
            let mut patient = Census::new([peer]);
            let slices = (1..5_000).find(|_| patient.go_on(Duration::from_micros(20)));
            (hasty, slices, patient.end())
        });
        let (hasty, slices, patient) = looking.await.unwrap();
        assert!(matches!(hasty[..], [Kin::Unknown(_)]), "{hasty:?}");
        assert!(slices.is_some_and(|slices| slices > 1), "{slices:?}");
        assert_eq!(patient, [Kin::Stranger]);
    }

    #[test]
    fn what_a_killed_guard_has_left_is_ours_and_other_children_are_not() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let stat = |pid: i32, parent: i32, session: i32| Stat {
            identity: Identity { pid, started: 1 },
            zombie: false,
            stopped: false,
            parent,
            group: pid,
            session,
        };
        let all = [
            stat(me, 1, 5),
            // A guard, its worker, a command of it.
            stat(1_000_001, me, 1_000_001),
            stat(1_000_002, 1_000_001, 1_000_001),
            stat(1_000_003, 1_000_002, 1_000_003),
            // A child of our session, one that was there before, and two that were not.
            stat(1_000_004, me, 5),
            stat(1_000_005, me, 1_000_005),
            stat(1_000_006, me, 1_000_001),
            stat(1_000_007, 1_000_006, 1_000_007),
        ];
        let kin = |roots: Roots| {
            let mut pids: Vec<i32> = roots.kin(&all).iter().map(|it| it.pid - 1_000_000).collect();
            pids.sort_unstable();
            pids
        };
        let guards = vec![1_000_001];
        assert_eq!(kin(Roots { guards: guards.clone(), ..Roots::default() }), [2, 3]);
        let standing = Some(HashSet::from([Identity { pid: 1_000_005, started: 1 }]));
        assert_eq!(kin(Roots { guards, standing, ..Roots::default() }), [2, 3, 6, 7]);
        let unguarded = vec![Identity { pid: 1_000_006, started: 1 }];
        assert_eq!(kin(Roots { unguarded, ..Roots::default() }), [6, 7]);
        let another = vec![Identity { pid: 1_000_006, started: 2 }];
        assert_eq!(kin(Roots { unguarded: another, ..Roots::default() }), Vec::<i32>::new());
    }

    #[test]
    fn only_a_socket_is_one() {
        assert_eq!(socket_inode(b"socket:[12345]"), Some(12345));
        for other in [&b"socket:[]"[..], b"socket:[x]", b"pipe:[1]", b"/socket:[1]", b"socket:[1] "]
        {
            assert_eq!(socket_inode(other), None);
        }
    }
}
