//! Which users' ids the sockets of a process can have.

/// Which users' ids the sockets of a process can have.
#[derive(Debug)]
pub(super) struct Users {
    /// Real, effective, saved, and for files.
    own: Vec<u32>,
    /// It can give a socket, or itself, any id.
    any: bool,
}

impl Users {
    pub(super) fn of(pid: i32) -> Users {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Users::read(&status, || has_many_ids(pid))
    }

    /// By what `/proc/PID/status` says, and whether its user namespace has more than one id.
    fn read(status: &str, has_many_ids: impl FnOnce() -> bool) -> Users {
        /// CAP_CHOWN and CAP_SETUID.
        const OVER_IDS: u64 = 1 | 1 << 7;
        let field =
            |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let own = field("Uid:").split_ascii_whitespace().filter_map(|uid| uid.parse().ok());
        let capabilities = u64::from_str_radix(field("CapPrm:").trim(), 16).unwrap_or_default();
        // In a user namespace of its own it has them over the ids of that namespace.
        let any = capabilities & OVER_IDS != 0 && has_many_ids();
        Users { own: own.collect(), any }
    }

    pub(super) fn can_be(&self, uid: u32) -> bool {
        self.any || self.own.contains(&uid)
    }
}

/// Whether the user namespace of a process has more than one id.
fn has_many_ids(pid: i32) -> bool {
    let Ok(map) = std::fs::read_to_string(format!("/proc/{pid}/uid_map")) else { return true };
    let lengths = map.lines().filter_map(|line| line.split_ascii_whitespace().nth(2));
    lengths.filter_map(|length| length.parse::<u64>().ok()).sum::<u64>() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_only_nobodys_where_nobody_can_set_it() {
        let able = Users { own: vec![0], any: true };
        let plain = Users { own: vec![65534], any: false };
        assert!(able.can_be(54321) && plain.can_be(65534) && !plain.can_be(54321));
        let read = |capabilities: &str, has_many_ids: bool| {
            let status = format!("Name:\tx\nUid:\t1\t2\t3\t4\nCapPrm:\t{capabilities}\n");
            Users::read(&status, || has_many_ids)
        };
        let users = read("00000000000001ff", true);
        assert_eq!((users.own, users.any), (vec![1, 2, 3, 4], true));
        assert!(read("0000000000000001", true).any && read("0000000000000080", true).any);
        assert!(!read("0000000000000080", false).any && !read("000001ffffffff7e", true).any);
        let me = Users::of(rustix::process::getpid().as_raw_nonzero().get());
        assert!(me.can_be(rustix::process::geteuid().as_raw()), "{me:?}");
    }
}
