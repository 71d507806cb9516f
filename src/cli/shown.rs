//! What an item's whole text has beyond the pieces of it that were shown.
//!
//! Codex tells a command's output in pieces as it comes, but not what it printed in its first moments;
//! of a long one, the whole has only the beginning and the end. A reader whose stream has a gap misses
//! pieces, too. The whole comes last, so what was missed can only be shown late.

/// Longest text of which the pieces are kept, in bytes: more than Codex keeps of an output. Of a
/// longer one, what comes after is taken for shown.
const KEPT: usize = 4 << 20;

/// The pieces of one item that were shown.
#[derive(Debug, Default)]
pub(super) struct Shown {
    text: String,
    /// Where the pieces end in the text.
    ends: Vec<usize>,
    /// Whether there were more pieces than are kept.
    is_cut: bool,
}

/// What was not shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missed<'a> {
    /// Nothing.
    Nothing,
    /// This, which follows what was shown.
    Rest(&'a str),
    /// These, in order; what was shown stands before, after or between them.
    Parts(Vec<&'a str>),
    /// What was shown is no part of the whole, which is this.
    Whole(&'a str),
}

impl Shown {
    /// Adds a piece.
    pub(super) fn push(&mut self, piece: &str) {
        if piece.is_empty() || self.is_cut {
            return;
        }
        if self.text.len() + piece.len() > KEPT {
            self.is_cut = true;
            return;
        }
        self.text.push_str(piece);
        self.ends.push(self.text.len());
    }

    /// Compares with the whole. Takes time in proportion to both.
    pub(super) fn missed_of<'a>(&self, whole: &'a str) -> Missed<'a> {
        if !self.is_cut {
            if let Some(rest) = whole.strip_prefix(self.text.as_str()) {
                return if rest.is_empty() { Missed::Nothing } else { Missed::Rest(rest) };
            }
            if self.text.starts_with(whole) {
                return Missed::Nothing;
            }
            if let Some(start) = whole.strip_suffix(self.text.as_str()) {
                return parts(vec![start]);
            }
        }
        // Piece after piece, each at the first place where it can stand. Where one has no place, the
        // whole leaves something out, and only what stands before the first piece is sure to be
        // missed.
        let mut missed = Vec::new();
        let (mut start, mut at) = (0, 0);
        for end in &self.ends {
            let piece = &self.text[start..*end];
            let Some(found) = whole[at..].find(piece) else {
                missed.truncate(1);
                return if start == 0 { Missed::Whole(whole) } else { parts(missed) };
            };
            missed.push(&whole[at..at + found]);
            at += found + piece.len();
            start = *end;
        }
        if self.is_cut {
            missed.truncate(1);
        } else {
            missed.push(&whole[at..]);
        }
        parts(missed)
    }
}

fn parts(mut missed: Vec<&str>) -> Missed<'_> {
    // An empty line more or less is no news.
    missed.retain(|part| !part.trim().is_empty());
    if missed.is_empty() { Missed::Nothing } else { Missed::Parts(missed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(pieces: &[&str]) -> Shown {
        let mut shown = Shown::default();
        pieces.iter().for_each(|piece| shown.push(piece));
        shown
    }

    #[test]
    fn what_was_missed_is_what_stands_around_the_pieces() {
        let cases = [
            (&["a\nb\n"][..], "a\nb\n", Missed::Nothing),
            (&["a\n", "b\n"], "a\nb\n", Missed::Nothing),
            (&[], "a\n", Missed::Rest("a\n")),
            (&["a\n"], "a\nb\n", Missed::Rest("b\n")),
            (&["end\n"], "start\nend\n", Missed::Parts(vec!["start\n"])),
            (&["b\n", "d\n"], "a\nb\nc\nd\ne\n", Missed::Parts(vec!["a\n", "c\n", "e\n"])),
            (&["rt", "en"], "start\nend\n", Missed::Parts(vec!["sta", "d\n"])),
            // Which of two equal pieces it was can't be told, and need not be.
            (&["x\n"], "x\ny\nx\n", Missed::Rest("y\nx\n")),
            (&["5\n", "6\n"], "1\n15\n5\n6\n", Missed::Parts(vec!["1\n15\n"])),
            // The whole is shorter than what was shown.
            (&["a\n\n"], "a\n", Missed::Nothing),
            (&["a\n"], "", Missed::Nothing),
            (&["b\n"], "\nb\n", Missed::Nothing),
            (&["1\n", "2\n", "3\n"], "0\n1\n... 2 bytes omitted ...\n3\n", {
                Missed::Parts(vec!["0\n"])
            }),
            (&["1\n", "2\n", "3\n"], "1\n... 2 bytes omitted ...\n3\n", Missed::Nothing),
            (&["other"], "a\n", Missed::Whole("a\n")),
            (&["žluť", "kůň"], "žluťoučký kůň", Missed::Parts(vec!["oučký "])),
        ];
        for (pieces, whole, expected) in cases {
            assert_eq!(shown(pieces).missed_of(whole), expected, "{pieces:?} of {whole:?}");
        }
    }

    #[test]
    fn a_flood_is_kept_only_so_far_and_not_shown_twice() {
        let piece = "x".repeat(64 * 1024);
        let mut shown = Shown::default();
        for _ in 0..1000 {
            shown.push(&piece);
        }
        assert!(shown.text.len() <= KEPT);
        let whole = format!("early\n{}\n... bytes omitted ...\n{piece}", piece.repeat(8));
        assert_eq!(shown.missed_of(&whole), Missed::Parts(vec!["early\n"]));
    }

    proptest! {
        /// Whatever pieces of a text were shown: those and what was missed are all of it.
        #[test]
        fn shown_and_missed_together_are_the_whole(
            text in prop::collection::vec("[ab]{1,3}\n", 1..12),
            is_shown in prop::collection::vec(any::<bool>(), 12),
        ) {
            let whole = text.concat();
            let pieces: Vec<&str> = text.iter().zip(&is_shown)
                .filter_map(|(line, is_shown)| is_shown.then_some(line.as_str())).collect();
            let shown = shown(&pieces);
            let missed = match shown.missed_of(&whole) {
                Missed::Nothing => String::new(),
                Missed::Rest(rest) => rest.to_owned(),
                Missed::Parts(parts) => parts.concat(),
                Missed::Whole(_) => panic!("it is a part"),
            };
            let sorted = |text: String| {
                let mut letters: Vec<char> = text.chars().collect();
                letters.sort_unstable();
                letters
            };
            // Blank parts are left out: only line feeds are.
            let letters = |text: String| sorted(text.replace('\n', ""));
            prop_assert_eq!(letters(format!("{}{missed}", pieces.concat())), letters(whole));
        }
    }
}
