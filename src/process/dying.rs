//! Whether a process is about to end.

use std::io;
use std::path::Path;

use rustix::io::Errno;

/// Whether a process has been killed or is about to end, although it can't be waited for yet: what
/// is written to it now is read by nobody. False where the system does not tell.
pub(crate) fn is_dying(pid: u32) -> bool {
    const PF_EXITING: u64 = 0x4;
    const SIGKILL: u64 = 1 << 8;
    let stat = match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // Not where it can't be looked at, for want of a file descriptor.
        Err(error) => return is_of_nobody(&error) && Path::new("/proc/self/stat").exists(),
    };
    // The name comes first, in brackets, and may hold anything.
    let Some((_, fields)) = stat.rsplit_once(") ") else { return false };
    let mut fields = fields.split(' ');
    let state = fields.next().unwrap_or_default();
    let flags: u64 = fields.nth(5).and_then(|flags| flags.parse().ok()).unwrap_or_default();
    if matches!(state, "Z" | "X") || flags & PF_EXITING != 0 {
        return true;
    }
    // A signal that is sent and not taken yet.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    status.lines().filter_map(pending).any(|mask| mask & SIGKILL != 0)
}

/// Whether there is no process to be looked at any more.
fn is_of_nobody(error: &io::Error) -> bool {
    let raw = error.raw_os_error();
    [Errno::NOENT, Errno::SRCH].iter().any(|errno| raw == Some(errno.raw_os_error()))
}

/// Whether a child of a process is about to end, or has ended and its exit status was not taken yet:
/// what the process says of that child now may be out of date. False where the system does not tell.
pub(crate) fn has_dying_children(pid: u32) -> bool {
    // Children are listed by the thread that started them.
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().any(|thread| {
        let children = std::fs::read_to_string(thread.path().join("children"));
        let children = children.unwrap_or_default();
        children.split_ascii_whitespace().filter_map(|child| child.parse().ok()).any(is_dying)
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_dying_until_its_exit_status_is_taken() {
        // Of a process of its own: other tests have children in this one.
        let script = "sleep 90 & echo $!; exec cat";
        let mut parent = std::process::Command::new("sh")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(parent.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        assert!(!has_dying_children(parent.id()));
        let child = rustix::process::Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
        // At once, and for ever, since `cat` knows of no children.
        assert!(has_dying_children(parent.id()));
        parent.kill().unwrap();
        parent.wait().unwrap();
    }
}
