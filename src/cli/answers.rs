//! Who answers what Codex asks, as far as a command line says it.

use clap::builder::PossibleValuesParser;

#[derive(Debug, clap::Args)]
pub(super) struct QuestionArgs {
    /// Say yes to whatever Codex asks that a yes answers, this once
    #[arg(long, short, conflicts_with_all = ["no", "on_question"], help_heading = "What Codex asks")]
    yes: bool,
    /// Say no to whatever Codex asks
    #[arg(long, short, conflicts_with = "on_question", help_heading = "What Codex asks")]
    no: bool,
    /// What to do when Codex asks: ask here (without a terminal, wait for `codex-sidecar answer`), stop the
    /// turn, or decline [default: ask on a terminal, else decline]
    #[arg(long, value_name = "WHAT", help_heading = "What Codex asks", value_parser = PossibleValuesParser::new(["ask", "fail", "decline"]))]
    on_question: Option<String>,
}

/// What becomes of questions where nobody says and nobody can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unasked {
    /// They are declined.
    Decline,
    /// They are left to others.
    Leave,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// The person at the terminal.
    Person,
    /// Whoever does so by `codex-sidecar answer`.
    Others,
    Yes,
    No,
    /// Nobody: the turn is stopped.
    Stop,
    /// Nobody, and so the sidecar declines.
    Nobody,
    /// Nobody, because that was asked for.
    Decline,
}

impl Answers {
    /// How what went without an answer could have had one.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Answers::Person => {
                "to answer, type it at the prompt before the turn's answer timeout; or give --yes or --no"
            }
            Answers::Others => {
                "to answer, run `codex-sidecar answer` before the turn's answer timeout; or give --yes \
                 or --no"
            }
            Answers::Yes => {
                "a yes is no answer to that: run it on a terminal, or with --on-question=ask in place of \
                 --yes, and answer with `codex-sidecar answer`"
            }
            Answers::No => {
                "a no is no answer to that: run it with --on-question=ask in place of --no, and answer \
                 with `codex-sidecar answer`"
            }
            Answers::Nobody => {
                "to answer, run it on a terminal; or give --yes or --no; or --on-question=ask, and answer \
                 with `codex-sidecar answer`"
            }
            Answers::Stop | Answers::Decline => {
                "to answer, give in place of --on-question=decline --yes or --no; or --on-question=ask, \
                 and answer on a terminal, or with `codex-sidecar answer`"
            }
        }
    }
}

impl QuestionArgs {
    /// Who answers, if there is a terminal to ask at or none.
    pub(super) fn answers(&self, is_terminal: bool, unasked: Unasked) -> Answers {
        match self.on_question.as_deref() {
            _ if self.yes => Answers::Yes,
            _ if self.no => Answers::No,
            Some("fail") => Answers::Stop,
            Some("decline") => Answers::Decline,
            Some(_) | None if is_terminal => Answers::Person,
            Some(_) => Answers::Others,
            None if unasked == Unasked::Leave => Answers::Others,
            None => Answers::Nobody,
        }
    }
}
