//! The built binary as a sidecar: for signals, exit codes, logs and other languages' clients.

use std::ops::Deref;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::{Client, PATIENCE, Place, codex_path, environment, processes, within};

/// `codex-sidecar serve --offline-model`, as a child process. Killed when it is dropped.
#[derive(Debug)]
pub struct Binary {
    client: Client,
    pub place: Place,
    pub address: String,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    is_log_unread: Arc<AtomicBool>,
}

impl Deref for Binary {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// The binary, with an environment that holds nothing of the machine's.
pub fn command(place: &Place) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codex-sidecar"));
    command
        .env_clear()
        .envs(environment(&place.user_home()))
        .env("CODEX_PATH", codex_path())
        .env("CODEX_HOME", place.codex_home())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

impl Binary {
    /// One worker, ready for turns.
    pub async fn start() -> Binary {
        Binary::with(|_| {}).await
    }

    /// The same with more flags or variables.
    pub async fn with(change: impl FnOnce(&mut Command)) -> Binary {
        let binary = Binary::cold(Place::new(), change).await;
        binary.ready().await;
        binary
    }

    /// On these directories, ready for turns: after another one, its successor.
    pub async fn in_place(place: Place) -> Binary {
        let binary = Binary::cold(place, |_| {}).await;
        binary.ready().await;
        binary
    }

    /// Listening; whether it is ready is the test's matter.
    pub async fn cold(place: Place, change: impl FnOnce(&mut Command)) -> Binary {
        let mut command = command(&place);
        command
            .args(["serve", "--offline-model", "--listen", "127.0.0.1:0"])
            // Not a flag, which would win.
            .env("CODEX_SIDECAR_WORKERS", "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        change(&mut command);
        if is_hangup_ignored() {
            // What this is told to outlive it would outlive, too.
            through(&mut command, &["env", "--default-signal=HUP"]);
        }
        let mut child = command.spawn().expect("the binary starts");

        let log = Arc::new(Mutex::new(Vec::new()));
        let is_log_unread = Arc::new(AtomicBool::new(false));
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        tokio::spawn({
            let (log, is_log_unread) = (Arc::clone(&log), Arc::clone(&is_log_unread));
            // To the end, so that the child never writes into a pipe that is full or broken.
            async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    log.lock().unwrap().push(line);
                    if is_log_unread.load(Relaxed) {
                        // The pipe stays open.
                        std::future::pending::<()>().await;
                    }
                }
            }
        });
        let listening = async {
            loop {
                let ended = child.try_wait().unwrap();
                if let Some(address) = log.lock().unwrap().iter().find_map(|line| listening(line)) {
                    break address;
                }
                assert!(ended.is_none(), "the sidecar ended at once: {log:#?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let address = within(PATIENCE, "the address in the log", listening).await;
        let client = Client::connect(&address, place.work()).await;
        Binary { client, place, address, child, log, is_log_unread }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        processes::signal(self.pid(), signal);
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Nobody reads what it logs from its next line on, and the pipe stays open.
    pub fn leave_log_unread(&self) {
        self.is_log_unread.store(true, Relaxed);
    }

    /// Waits for its end.
    pub async fn exited(&mut self, limit: Duration) -> ExitStatus {
        let exited = tokio::time::timeout(limit, self.child.wait()).await;
        exited.unwrap_or_else(|_| panic!("runs on after {limit:?}: {}", self.log())).unwrap()
    }

    /// Ends it by SIGKILL, with whatever runs.
    pub async fn kill(mut self) -> Place {
        self.signal(rustix::process::Signal::KILL);
        let _ = self.exited(PATIENCE).await;
        let Binary { place, .. } = self;
        place
    }

    /// Drains it by SIGTERM and asserts that it went well.
    pub async fn stop(mut self) -> Place {
        self.signal(rustix::process::Signal::TERM);
        let status = self.exited(PATIENCE).await;
        assert!(status.success(), "{status}: {}", self.log());
        processes::assert_none_left(&self.place.codex_home()).await;
        let Binary { place, .. } = self;
        place
    }
}

/// Whether these tests were started through `nohup`, or by what does the same.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 != 0)
}

/// Starts the command through another one, which must replace itself by it.
pub fn through(command: &mut Command, wrapper: &[&str]) {
    let inner = command.as_std();
    let mut outer = Command::new(wrapper[0]);
    outer.args(&wrapper[1..]).arg(inner.get_program()).args(inner.get_args());
    // It does not tell that it was cleared.
    outer.env_clear();
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    *command = outer;
}

/// Runs a subcommand to its end.
pub async fn output(command: &mut Command) -> std::process::Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the binary starts");
    within(PATIENCE, &format!("the end of {command:?}"), child.wait_with_output()).await.unwrap()
}

/// The address in a line of the log, whichever form it has.
fn listening(line: &str) -> Option<String> {
    let (_, address) = line.split_once("listening on ")?;
    let end = address.find(|c: char| c == '"' || c.is_whitespace());
    Some(address[..end.unwrap_or(address.len())].to_owned())
}
