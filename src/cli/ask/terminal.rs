//! The person at this process's terminal.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, IsTerminal as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc as blocking;

use rustix::termios::{LocalModes, OptionalActions, QueueSelector, Termios};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc};

use super::Person;

/// Ended by a SIGTERM, as a shell tells it (128 + SIGTERM).
const TERMINATED: i32 = 143;

type Line = io::Result<Option<String>>;

/// Prompts go to stderr, lines come from the terminal. A thread of its own reads them, one at a time and
/// only when one is wanted: a read can't be given up.
pub(in crate::cli) struct Terminal {
    input: Arc<OwnedFd>,
    wants: blocking::Sender<()>,
    lines: Mutex<mpsc::UnboundedReceiver<Line>>,
    /// Whether a line was wanted that has not come: its question was withdrawn.
    is_reading: Cell<bool>,
    /// Whether it is given back at a SIGTERM.
    is_watched: Cell<bool>,
}

impl Terminal {
    /// The terminal, if there is one to ask at: stderr is shown on it, and stdin comes from it, or was
    /// the prompt (`prompt_was_piped`) and the terminal can be opened all the same.
    pub(in crate::cli) fn find(prompt_was_piped: bool) -> Option<Terminal> {
        if !io::stderr().is_terminal() {
            return None;
        }
        let stdin = io::stdin();
        let input = if stdin.is_terminal() {
            stdin.as_fd().try_clone_to_owned().ok()?
        } else if prompt_was_piped {
            File::open("/dev/tty").ok()?.into()
        } else {
            return None;
        };
        Terminal::on(input)
    }

    /// The one behind a descriptor.
    fn on(input: OwnedFd) -> Option<Terminal> {
        let (wants, wanted) = blocking::channel::<()>();
        let (sender, lines) = mpsc::unbounded_channel();
        let reader = input.try_clone().ok()?;
        std::thread::spawn(move || {
            let mut reader = BufReader::new(File::from(reader));
            while wanted.recv().is_ok() {
                if sender.send(read_line(&mut reader)).is_err() {
                    return;
                }
            }
        });
        let is_reading = Cell::new(false);
        let lines = Mutex::new(lines);
        let is_watched = Cell::new(false);
        Some(Terminal { input: Arc::new(input), wants, lines, is_reading, is_watched })
    }

    /// Has a terminal that is silenced echo again when the process is ended from outside.
    fn give_back_at_the_end(&self) {
        if self.is_watched.replace(true) {
            return;
        }
        let Ok(before) = rustix::termios::tcgetattr(&self.input) else { return };
        let Ok(mut signals) = signal(SignalKind::terminate()) else { return };
        let input = Arc::clone(&self.input);
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                let _ = rustix::termios::tcsetattr(&input, OptionalActions::Now, &before);
                std::process::exit(TERMINATED);
            }
        });
    }
}

/// `None` at the end of input.
fn read_line(reader: &mut impl io::BufRead) -> Line {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    Ok(Some(String::from_utf8_lossy(&line).into_owned()))
}

impl Person for Terminal {
    fn begin(&self) {
        // Best effort: what can't be thrown away is read.
        let _ = rustix::termios::tcflush(&self.input, QueueSelector::IFlush);
    }

    fn show(&self, text: &str) -> io::Result<()> {
        io::stderr().write_all(text.as_bytes())
    }

    async fn line(&self, prompt: &str, hidden: bool) -> io::Result<Option<String>> {
        let _silence = hidden.then(|| {
            self.give_back_at_the_end();
            Silence::of(Arc::clone(&self.input))
        });
        self.show(prompt)?;
        if !self.is_reading.replace(true) {
            // Without its reader the channel of lines is closed, too.
            let _ = self.wants.send(());
        }
        let line = self.lines.lock().await.recv().await;
        self.is_reading.set(false);
        if hidden {
            self.show("\n")?;
        }
        line.unwrap_or(Ok(None))
    }
}

/// Hides what is typed until it is dropped.
struct Silence {
    input: Arc<OwnedFd>,
    before: Option<Termios>,
}

impl Silence {
    fn of(input: Arc<OwnedFd>) -> Silence {
        let before = rustix::termios::tcgetattr(&input).ok();
        if let Some(before) = &before {
            let mut silent = before.clone();
            silent.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
            let _ = rustix::termios::tcsetattr(&input, OptionalActions::Now, &silent);
        }
        Silence { input, before }
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(&self.input, OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// A terminal and its other side.
    fn terminal() -> (Terminal, pty_process::blocking::Pty) {
        let (pty, pts) = pty_process::blocking::open().unwrap();
        let input = pts.as_fd().try_clone_to_owned().unwrap();
        (Terminal::on(input).unwrap(), pty)
    }

    fn is_echoed(terminal: &Terminal) -> bool {
        let modes = rustix::termios::tcgetattr(&terminal.input).unwrap().local_modes;
        modes.contains(LocalModes::ECHO)
    }

    #[tokio::test]
    async fn a_secret_is_hidden_while_it_is_typed_and_nothing_is_afterwards() {
        let (terminal, mut pty) = terminal();
        let reading = terminal.line("", true);
        let typing = async {
            while is_echoed(&terminal) {
                tokio::task::yield_now().await;
            }
            pty.write_all(b"hush\n").unwrap();
        };
        let (line, ()) = tokio::join!(reading, typing);
        assert_eq!(line.unwrap(), Some("hush".to_owned()));
        assert!(is_echoed(&terminal));
        let (line, ()) = tokio::join!(terminal.line("", false), async {
            pty.write_all(b"open\n").unwrap();
        });
        assert_eq!(line.unwrap(), Some("open".to_owned()));
        let mut echo = [0; 100];
        let count = pty.read(&mut echo).unwrap();
        let echo = String::from_utf8_lossy(&echo[..count]);
        assert!(echo.contains("open") && !echo.contains("hush"), "{echo:?}");
    }

    #[tokio::test]
    async fn a_prompt_that_is_withdrawn_gives_the_echo_back_and_its_line_to_the_next() {
        let (terminal, mut pty) = terminal();
        {
            let reading = terminal.line("", true);
            let seen = tokio::time::timeout(std::time::Duration::from_millis(50), reading).await;
            assert!(seen.is_err());
        }
        assert!(is_echoed(&terminal));
        pty.write_all(b"later\n").unwrap();
        assert_eq!(terminal.line("", false).await.unwrap(), Some("later".to_owned()));
    }

    #[tokio::test]
    async fn what_was_typed_before_the_question_does_not_count() {
        let (terminal, mut pty) = terminal();
        pty.write_all(b"y\n").unwrap();
        // It has come when it is echoed.
        let mut echo = [0; 100];
        assert!(pty.read(&mut echo).unwrap() > 0);
        terminal.begin();
        pty.write_all(b"n\n").unwrap();
        assert_eq!(terminal.line("", false).await.unwrap(), Some("n".to_owned()));
    }
}
