//! The colours of `codex exec`, or none.

use std::fmt::Display;

use supports_color::Stream;

/// How a word is made to stand out.
#[derive(Debug, Clone, Copy)]
pub(super) enum Style {
    Bold,
    Dimmed,
    Italic,
    Red,
    Green,
    Yellow,
    Magenta,
    Cyan,
}

impl Style {
    fn code(self) -> u8 {
        match self {
            Style::Bold => 1,
            Style::Dimmed => 2,
            Style::Italic => 3,
            Style::Red => 31,
            Style::Green => 32,
            Style::Yellow => 33,
            Style::Magenta => 35,
            Style::Cyan => 36,
        }
    }
}

/// Whether there are colours.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli::exec) struct Paint(pub(in crate::cli::exec) bool);

impl Paint {
    /// As `--color` says; `auto` looks at standard error and the environment.
    pub(in crate::cli::exec) fn asked(color: Option<&str>) -> Paint {
        Paint(match color {
            Some("always") => true,
            Some("never") => false,
            _ => supports_color::on_cached(Stream::Stderr).is_some(),
        })
    }

    /// The text in these styles, the first one outermost.
    pub(super) fn styled(self, styles: &[Style], text: impl Display) -> String {
        let mut painted = text.to_string();
        if self.0 {
            for style in styles.iter().rev() {
                painted = format!("\x1b[{}m{painted}\x1b[0m", style.code());
            }
        }
        painted
    }
}
