//! The built binary at a terminal: what a person sees of it, and what is typed.

use std::process::ExitStatus;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Child;

use super::binary::Binary;
use super::{PATIENCE, environment, within};

/// A terminal of its own, with a client of a sidecar at it.
pub struct Terminal {
    pty: pty_process::Pty,
    child: Child,
    screen: Vec<u8>,
    /// Up to where it was looked at.
    seen: usize,
}

impl Terminal {
    /// Starts a client.
    pub fn start(sidecar: &Binary, arguments: &[&str]) -> Terminal {
        let (pty, pts) = pty_process::open().expect("a terminal");
        pty.resize(pty_process::Size::new(24, 100)).unwrap();
        let command = pty_process::Command::new(env!("CARGO_BIN_EXE_codex-sidecar"))
            .env_clear()
            .envs(environment(&sidecar.place.user_home()))
            .env("TERM", "xterm")
            .env("CODEX_SIDECAR_ADDR", &sidecar.address)
            .args(arguments)
            .kill_on_drop(true);
        let child = command.spawn(pts).expect("the binary starts");
        Terminal { pty, child, screen: Vec::new(), seen: 0 }
    }

    /// Waits until the screen shows this after what it was waited for before.
    pub async fn until(&mut self, text: &str) {
        let what = format!("{text:?} on the screen");
        within(PATIENCE, &what, async {
            loop {
                let rest = &self.screen[self.seen..];
                if let Some(at) = rest.windows(text.len()).position(|part| part == text.as_bytes())
                {
                    self.seen += at + text.len();
                    return;
                }
                assert!(self.read().await, "ended without {text:?}: {}", self.shown());
            }
        })
        .await;
    }

    /// Types.
    pub async fn types(&mut self, text: &str) {
        self.pty.write_all(text.as_bytes()).await.unwrap();
    }

    /// Waits for the end: what was shown, and how it ended.
    pub async fn end(mut self) -> (String, ExitStatus) {
        within(PATIENCE, "the end at the terminal", async { while self.read().await {} }).await;
        let status = within(PATIENCE, "the client's end", self.child.wait()).await.unwrap();
        (self.shown(), status)
    }

    /// What is there so far.
    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen).into_owned()
    }

    /// Reads on; false at the end, which is an error on Linux.
    async fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        match self.pty.read(&mut buffer).await {
            Ok(count) if count > 0 => {
                self.screen.extend_from_slice(&buffer[..count]);
                true
            }
            _ => false,
        }
    }
}
