//! The search for those who are at the other ends of connections.
//!
//! The processes below a guard never leave it, whatever they do (it is a subreaper, and a PID namespace
//! is seen from outside), so that a process descends from a worker if its line of parents leads to a
//! guard. Who has a TCP connection is found by the inode of its socket among the files of processes: of
//! those below a guard first, then of all others, then of those below a guard that have very many, then of single threads
//! of these, which may have files of their own. Processes that are started meanwhile are looked at, too,
//! until none is new. Where nobody is found, those below a guard are looked at twice more: a socket may
//! have moved on to one that had been passed, it may be on its way from one to another (a socket's
//! `fdinfo` counts those), or only an `io_uring` may have it (whose `fdinfo` lists them).
//!
//! It is done in slices of bounded length, and remembers what it has looked at. It may block; it never
//! changes anything.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::files::{Files, file_count, sockets_in, threads};
use super::kin::{Kin, Peer, Somebody};
use super::reaper;
use super::sockets::{Sockets, TcpEnd};
use super::tree::{self, Identity, Stat};
use super::users::Users;

/// A process of ours that has more files than this is looked at after everybody else: many such must not
/// keep the search from the one that has the socket.
const MANY_FILES: u64 = 1_000;

/// Ours with more files than these, a process counting as 32, are taken to keep the search from its end on
/// purpose.
const ALL_FILES: u64 = 65_536;

/// How often ours are looked at again before it is said that nobody has a socket.
const SECOND_LOOKS: usize = 2;

/// How many times longer than its slice a search may take that has not had the processor for that long.
const PATIENCE: u32 = 4;

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
    /// Those of ours that were not looked at when the last pass began.
    unread: Vec<Stat>,
    /// How many files ours have, as far as that is known.
    files: u64,
    files_read: u64,
    /// All of ours that were there at some moment have been looked at.
    is_covered: bool,
    /// How often ours are looked at again by now, and who was this time.
    second_looks: usize,
    read_again: HashSet<Identity>,
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
            unread: Vec::new(),
            files: 0,
            files_read: 0,
            is_covered: false,
            second_looks: 0,
            read_again: HashSet::new(),
            newest: None,
        }
    }

    /// Looks for so long; whether there is nothing left to look for.
    pub(crate) fn go_on(&mut self, slice: Duration) -> bool {
        let clock = Clock::start(slice);
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
            match self.look(&clock) {
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
        self.read_again.clear();
        self.hidden.clear();
        self.unread.clear();
        (self.files, self.files_read, self.second_looks) = (0, 0, 0);
        self.is_covered = false;
        for it in &mut self.sought {
            if !matches!(it.found, Some(Kin::Ours(_))) {
                it.found = None;
            }
        }
    }

    fn look(&mut self, clock: &Clock) -> io::Result<bool> {
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
            let is_new = self.look_at_unread(&ours, others, clock)?;
            let Some(is_new) = is_new else { return Ok(self.is_settled()) };
            for stat in &ours {
                if self.read_by_thread.contains(&stat.identity) {
                    continue;
                }
                for thread in threads(stat.identity.pid) {
                    self.look_at_files(
                        &format!("{}/task/{thread}", stat.identity.pid),
                        stat,
                        How::OURS,
                    )?;
                }
                self.read_by_thread.insert(stat.identity);
                if self.is_settled() || clock.is_over() {
                    return Ok(self.is_settled());
                }
            }
            self.is_covered = true;
            if is_new {
                continue;
            }
            self.newest = None;
            if self.second_looks == SECOND_LOOKS {
                self.conclude();
                return Ok(true);
            }
            for stat in &ours {
                if self.read_again.contains(&stat.identity) {
                    continue;
                }
                let pid = stat.identity.pid;
                self.look_at_files(&pid.to_string(), stat, How::CLOSELY)?;
                for thread in threads(pid) {
                    self.look_at_files(&format!("{pid}/task/{thread}"), stat, How::CLOSELY)?;
                }
                self.read_again.insert(stat.identity);
                if self.is_settled() || clock.is_over() {
                    return Ok(self.is_settled());
                }
            }
            self.read_again.clear();
            self.second_looks += 1;
        }
    }

    /// Looks at those that were not looked at. Whether any of them was ours; `None` if there is nothing left
    /// to look for, or no time left.
    fn look_at_unread(
        &mut self,
        ours: &[Stat],
        others: Vec<Stat>,
        clock: &Clock,
    ) -> io::Result<Option<bool>> {
        let unread = ours.iter().filter(|stat| !self.read.contains(&stat.identity));
        let mut unread: Vec<(u64, Stat)> =
            unread.map(|stat| (file_count(stat.identity.pid), *stat)).collect();
        // The newest first among those that have as many.
        unread.sort_by_key(|(files, _)| *files);
        self.unread = unread.iter().map(|(_, stat)| *stat).collect();
        let unread_files: u64 = unread.iter().map(|(files, _)| files).sum();
        self.files = 32 * ours.len() as u64 + unread_files;
        let (few, many): (Vec<_>, Vec<_>) =
            unread.into_iter().partition(|(files, _)| *files <= MANY_FILES);
        let is_new = !self.unread.is_empty();
        let as_ours = |it: Vec<(u64, Stat)>| it.into_iter().map(|(_, stat)| (stat, How::OURS));
        let others = others.into_iter().map(|stat| (stat, How::OTHERS));
        for (stat, how) in as_ours(few).chain(others).chain(as_ours(many)) {
            if self.read.contains(&stat.identity) {
                continue;
            }
            self.newest = if how.are_ours { Some(stat) } else { self.newest };
            self.look_at_files(&stat.identity.pid.to_string(), &stat, how)?;
            self.read.insert(stat.identity);
            // After the first: each slice goes on a little.
            if self.is_settled() || clock.is_over() {
                return Ok(None);
            }
        }
        Ok(Some(is_new))
    }

    fn is_settled(&self) -> bool {
        self.sought.iter().all(|it| it.found.is_some())
    }

    fn settle(&mut self, which: impl Fn(&Sought) -> bool, kin: &Kin) {
        for it in self.sought.iter_mut().filter(|it| it.found.is_none() && which(it)) {
            it.found = Some(kin.clone());
        }
    }

    /// Settles the connections whose sockets are among the files of a process, or of a thread: what
    /// `/proc` has as `whose`.
    fn look_at_files(&mut self, whose: &str, stat: &Stat, how: How) -> io::Result<()> {
        let is_wanted = |inode| self.sought.iter().any(|it| it.is_wanted(inode));
        match sockets_in(whose, how.closely, is_wanted) {
            Ok(Files { sockets, count, hide }) => {
                self.files_read += if how.are_ours { count } else { 0 };
                if hide {
                    self.hidden.push(*stat);
                }
                for inode in sockets {
                    let kin = if how.are_ours { Kin::Ours(somebody(stat)) } else { Kin::Stranger };
                    self.settle(|it| it.is_wanted(inode), &kin);
                }
            }
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(errno.into()),
            Err(_) if how.are_ours => self.hidden.push(*stat),
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
        if self.is_settled() {
            return;
        }
        let mut suspects = self.hidden.clone();
        // One that moves on from process to process faster than it is looked at hides, too.
        suspects.extend(self.newest.filter(|_| self.is_covered));
        if !self.is_covered {
            // So do many of which each has many files.
            if self.files + self.files_read <= ALL_FILES {
                return;
            }
            let is_read = |stat: &Stat| self.read_by_thread.contains(&stat.identity);
            suspects.extend(self.unread.iter().filter(|stat| !is_read(stat)));
        }
        let suspects: Vec<(Stat, Users)> =
            suspects.into_iter().map(|stat| (stat, Users::of(stat.identity.pid))).collect();
        let all: Vec<Users> = self.read_by_thread.iter().map(|it| Users::of(it.pid)).collect();
        for it in self.sought.iter_mut().filter(|it| it.found.is_none()) {
            let Some(end) = it.end else { continue };
            let by = suspects.iter().find(|(_, users)| users.can_be(end.uid));
            it.found = Some(match by {
                Some((stat, _)) => Kin::PerhapsOurs(somebody(stat)),
                None if !self.is_covered => continue,
                // It has its user's id from its maker, and cannot have one that none of ours can set.
                None if !all.iter().any(|users| users.can_be(end.uid)) => Kin::Stranger,
                None => Kin::Unknown("no process that can be looked at has the socket"),
            });
        }
    }
}

/// How a process's files are looked at.
#[derive(Debug, Clone, Copy)]
struct How {
    are_ours: bool,
    /// Whether it is asked, too, what each of them has on its way.
    closely: bool,
}

impl How {
    const OTHERS: How = How { are_ours: false, closely: false };
    const OURS: How = How { are_ours: true, closely: false };
    const CLOSELY: How = How { are_ours: true, closely: true };
}

/// A slice of time: of the processor's, where others have it.
struct Clock {
    slice: Duration,
    begun: Instant,
    ran: Option<Duration>,
}

impl Clock {
    fn start(slice: Duration) -> Clock {
        Clock { slice, begun: Instant::now(), ran: ran() }
    }

    fn is_over(&self) -> bool {
        let passed = self.begun.elapsed();
        if passed < self.slice || passed >= self.slice * PATIENCE {
            return passed >= self.slice;
        }
        let ran = self.ran.zip(ran()).map(|(before, now)| now.saturating_sub(before));
        ran.is_none_or(|ran| ran >= self.slice)
    }
}

/// How long this thread has had a processor, if the kernel tells.
fn ran() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_ascii_whitespace().next()?.parse().ok().map(Duration::from_nanos)
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

    /// What each of these does with a socket that it has connected keeps it from all tables of files.
    #[tokio::test]
    async fn a_socket_that_is_in_no_table_of_files_is_ours_all_the_same() {
        const CONNECT: &str = "import socket,os,sys,array,ctypes,time\n\
            k=socket.create_connection(('127.0.0.1',PORT))\n";
        const FLIGHT: &str = "x,y=socket.socketpair(socket.AF_UNIX,socket.SOCK_DGRAM)\n\
            x.sendmsg([b'x'],[(socket.SOL_SOCKET,socket.SCM_RIGHTS,array.array('i',[k.fileno()]))])\n";
        const RING: &str = "c=ctypes.CDLL(None); p=(ctypes.c_uint32*30)()\n\
            r=c.syscall(425,8,ctypes.byref(p))\n\
            if r<0 or c.syscall(427,r,2,ctypes.byref((ctypes.c_int*1)(k.fileno())),1)<0: sys.exit()\n";
        const LEFT: &str = "k.close(); print('left',flush=True); time.sleep(60)";
        let chown = "\ntry: os.fchown(k.fileno(),54321,54321)\nexcept OSError: pass\n";
        for (name, hide) in [
            ("in flight", FLIGHT.to_owned()),
            ("in flight as another user's", format!("{chown}{FLIGHT}")),
            ("with a ring", RING.to_owned()),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port().to_string();
            let script = format!("{}{hide}{LEFT}", CONNECT.replace("PORT", &port));
            let (_child, pipes) = worker("python3", &script).await;
            let (_server, peer) = accepted(&listener).await;
            let mut lines = tokio::io::BufReader::new(pipes.stdout);
            let mut line = String::new();
            tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line).await.unwrap();
            if line != "left\n" {
                eprintln!("not tried, not permitted here: {name}");
                continue;
            }
            let kin = look(vec![peer]).await;
            assert!(matches!(kin[..], [Kin::Ours(_) | Kin::PerhapsOurs(_)]), "{name}: {kin:?}");
        }
    }
}
