//! Processes that a sidecar started, told apart by their CODEX_HOME: whatever Codex starts inherits
//! it, however it detaches itself.

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
    with_environment(&wanted)
}

/// The processes that were started with this `NAME=value`.
pub fn with_environment(wanted: &str) -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            environment.split(|byte| *byte == 0).find(|pair| *pair == wanted.as_bytes())?;
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
