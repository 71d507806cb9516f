//! The line that shows, on a terminal, that time goes by while nothing is printed.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::Printer;
use crate::cli::words::plain;
use crate::pb;
use crate::pb::item::Kind;
use crate::pb::turn_event::Event;

/// How long nothing must have been printed before time is shown.
const SILENCE: Duration = Duration::from_secs(1);

impl<W: Write> Printer<W> {
    /// Shows how long it has been going on, where nothing was printed for a while. For terminals:
    /// the line, of at most `width` characters, is wiped when something is printed.
    pub(in crate::cli) fn show_time(&mut self, width: usize) -> io::Result<()> {
        if !self.at_line_start || self.printed.elapsed() < SILENCE {
            return Ok(());
        }
        let elapsed = Duration::from_secs(self.began.elapsed().as_secs());
        let text = format!("[{}] {}", humantime::format_duration(elapsed), self.doing);
        // One less: the last column would break the line.
        let text: String = text.chars().take(width.saturating_sub(1)).collect();
        if self.shows_time && self.time_line == text {
            return Ok(());
        }
        self.shows_time = true;
        self.time_line.clone_from(&text);
        let (dim, plain) = if self.colours { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        write!(self.out, "\r\x1b[2K{dim}{text}{plain}")?;
        self.out.flush()
    }

    /// Wipes the line that shows the time.
    pub(super) fn wipe_time(&mut self) -> io::Result<()> {
        self.printed = Instant::now();
        if std::mem::take(&mut self.shows_time) {
            self.out.write_all(b"\r\x1b[2K")?;
        }
        Ok(())
    }

    /// Keeps in mind what the turn does.
    pub(super) fn note_doing(&mut self, event: &Event) {
        let doing = match event {
            Event::Queued(_) => "waiting in the queue".to_owned(),
            Event::ItemStarted(pb::ItemStarted {
                item: Some(pb::Item { kind: Some(kind), .. }),
            }) => match kind {
                Kind::CommandExecution(command) => format!("running {}", command.command),
                Kind::McpToolCall(call) => format!("calling {}.{}", call.server, call.tool),
                Kind::DynamicToolCall(call) => format!("calling {}", call.tool),
                _ => "thinking".to_owned(),
            },
            Event::RequestRaised(_) => {
                self.doing_before.get_or_insert_with(|| self.doing.clone());
                "waiting for an answer".to_owned()
            }
            Event::RequestResolved(_) => match self.doing_before.take() {
                Some(before) => before,
                None => return,
            },
            Event::TokenUsageUpdated(_)
            | Event::TurnDiffUpdated(_)
            | Event::CommandOutputDelta(_) => {
                return;
            }
            _ => "thinking".to_owned(),
        };
        self.doing = plain(&doing);
    }

    /// Takes note of an event that somebody else shows.
    pub(in crate::cli) fn note_event(&mut self, event: &pb::TurnEvent) {
        if let Some(kind) = &event.event {
            self.note_doing(kind);
        }
    }
}
