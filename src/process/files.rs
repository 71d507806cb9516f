//! What processes have open: which sockets, and what is in no table of files.
//!
//! Only reads `/proc`, and says where that hides something; whose a process is it does not know.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

/// Who has more files than this is taken for one that hides them.
const MOST_FILES: u64 = 20_000;

/// How many files a process has, where the kernel tells (6.2 and newer), else 0.
pub(super) fn file_count(pid: i32) -> u64 {
    std::fs::metadata(format!("/proc/{pid}/fd")).map_or(0, |directory| directory.len())
}

/// The threads of a process but its first one.
pub(super) fn threads(pid: i32) -> Vec<i32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let threads = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    threads.filter(|thread| *thread != pid).collect()
}

/// What a process has open.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// The inodes of the sockets that are wanted.
    pub(super) sockets: Vec<u32>,
    pub(super) count: u64,
    /// There are more, of which it isn't told what they are.
    pub(super) hide: bool,
}

/// The sockets that are `wanted` among the files of a process or a thread. Looked at `closely`, those, too,
/// that are in no table of files: on their way to another process, or registered with an `io_uring`.
pub(super) fn sockets_in(
    whose: &str,
    closely: bool,
    wanted: impl Fn(u32) -> bool,
) -> Result<Files, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory: OwnedFd = rustix::fs::open(format!("/proc/{whose}/fd"), flags, Mode::empty())?;
    let mut buffer = Vec::with_capacity(8192);
    let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
    let mut found = Files::default();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes().starts_with(b".") {
            continue;
        }
        found.count += 1;
        if found.count > MOST_FILES {
            return Err(Errno::MSGSIZE);
        }
        let mut target = [0; 64];
        let target = match rustix::fs::readlinkat_raw(&directory, name, &mut target[..]) {
            Ok(length) => &target[..length],
            // Closed meanwhile.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let inode = socket_inode(target);
        found.sockets.extend(inode.filter(|inode| wanted(*inode)));
        if closely && (inode.is_some() || target == b"anon_inode:[io_uring]") {
            let path = format!("/proc/{whose}/fdinfo/{}", name.to_string_lossy());
            let (sockets, hide) = beyond_tables(&std::fs::read_to_string(path).unwrap_or_default());
            found.sockets.extend(sockets.into_iter().filter(|inode| wanted(*inode)));
            found.hide |= hide;
        }
    }
    Ok(found)
}

/// What a file's `fdinfo` says of files that it holds itself: the inodes of sockets, and whether there are
/// others that could be some.
fn beyond_tables(info: &str) -> (Vec<u32>, bool) {
    let number = |name| {
        let value = info.lines().find_map(|line: &str| line.strip_prefix(name));
        value.and_then(|value| value.trim().parse::<usize>().ok()).unwrap_or_default()
    };
    let registered = info.lines().skip_while(|line| !line.starts_with("UserFiles:")).skip(1);
    let registered = registered.map_while(|line| line.strip_prefix(' '));
    let (mut sockets, mut told) = (Vec::new(), 0);
    for line in registered {
        told += 1;
        let name = line.split_ascii_whitespace().nth(1).unwrap_or_default();
        sockets.extend(socket_inode(name.as_bytes()));
    }
    (sockets, number("scm_fds:") > 0 || number("UserFiles:") > told)
}

/// `socket:[12345]`
fn socket_inode(target: &[u8]) -> Option<u32> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_holds_itself_is_read_of_it() {
        let in_flight = "pos:\t0\nflags:\t02000002\nmnt_id:\t10\nino:\t9\nscm_fds: 1\n";
        assert_eq!(beyond_tables(in_flight), (vec![], true));
        assert_eq!(beyond_tables(&in_flight.replace(": 1", ": 0")), (vec![], false));
        let ring = "ino:\t9\nUserFiles:\t2\n    0: socket:[77]\n    1: /dev/null\nUserBufs:\t0\n    0: 5\n";
        assert_eq!(beyond_tables(ring), (vec![77], false));
        // Of a ring that is busy only their number is told.
        assert_eq!(beyond_tables("UserFiles:\t2\nUserBufs:\t0\n"), (vec![], true));
        assert_eq!(beyond_tables(""), (vec![], false));
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
