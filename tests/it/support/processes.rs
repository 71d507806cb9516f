//! Processes that a sidecar started, told apart by their CODEX_HOME: whatever Codex starts inherits
//! it, however it detaches itself; a guard has it in its mark.

use std::path::Path;
use std::time::{Duration, Instant};

/// A process that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub command: String,
}

/// The processes that have this CODEX_HOME in their environment; zombies are none.
pub fn of_home(codex_home: &Path) -> Vec<Process> {
    let wanted = format!("CODEX_HOME={}", codex_home.display());
    let mark = format!(":{}", codex_home.canonicalize().unwrap_or(codex_home.into()).display());
    with(|pair| {
        let is_mark =
            pair.starts_with(b"CODEX_SIDECAR_INSTANCE=") && pair.ends_with(mark.as_bytes());
        pair == wanted.as_bytes() || is_mark
    })
}

/// What the guards of a sidecar that runs, its workers and their commands have in their environment.
pub fn mark_of(sidecar: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{sidecar}/stat")).unwrap();
    let started = stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap();
    format!("CODEX_SIDECAR_INSTANCE={sidecar}:{started}:")
}

/// The processes that have that.
pub fn with_mark(mark: &str) -> Vec<Process> {
    with(|pair| pair.starts_with(mark.as_bytes()))
}

fn with(is_wanted: impl Fn(&[u8]) -> bool) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            environment.split(|byte| *byte == 0).find(|pair| is_wanted(pair))?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
            Some(Process { pid, command })
        })
        .filter(|process| process.pid != std::process::id())
        .collect()
}

/// Waits until no process of this CODEX_HOME is left. They are killed by then, but the kernel may
/// need a moment to take them apart.
pub async fn assert_none_left(codex_home: &Path) {
    let limit = Instant::now() + Duration::from_secs(15);
    loop {
        let left = of_home(codex_home);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < limit, "processes are left: {left:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn is_alive(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which may hold anything, in brackets.
        Ok(stat) => !stat.rsplit(") ").next().unwrap_or_default().starts_with('Z'),
        Err(_) => false,
    }
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).expect("a process id");
    rustix::process::kill_process(pid, signal).expect("the process is there");
}
