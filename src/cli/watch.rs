//! A turn as a person or a script follows it: the answer on stdout, all else on stderr.
//!
//! What `run` and `attach` have in common: what they show, who answers what Codex asks, and which exit
//! code the turn's end comes to.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Stderr, Write};
use std::path::PathBuf;
use std::rc::Rc;

use serde_json::{Map, Value};

use super::answers::{Answers, QuestionArgs, Unasked};
use super::ask::{self, Person, Terminal};
use super::failure::{CommandResult, Detailed, Failure, tell};
use super::printer::{Printer, colours_wanted, is_dumb};
use super::refusal::Words;
use super::turn::{Outcome, Output, Reply, Told};
use super::words::{show_error, show_question};
use super::{DECLINED, INTERRUPTED, OUT_OF_TIME, UNREACHABLE, json};
use crate::grpc::caller::Refused;
use crate::pb;
use crate::pb::turn_event::Event;

#[derive(Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// Print the events as JSON on stdout, one a line, and what goes wrong as JSON on stderr
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
    /// Print nothing but the answer, what is asked, and what goes wrong
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
    /// Write the answer into this file, too; without an answer it is empty
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output_last_message: Option<PathBuf>,
}

/// The person, if there is one. A clone is the same one.
#[derive(Clone)]
pub(super) struct Asked(Option<Rc<Terminal>>);

impl Person for Asked {
    fn begin(&self) {
        if let Some(terminal) = &self.0 {
            terminal.begin();
        }
    }

    fn show(&self, text: &str) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |terminal| terminal.show(text))
    }

    async fn line(&self, prompt: &str, hidden: bool) -> io::Result<Option<String>> {
        match &self.0 {
            Some(terminal) => terminal.line(prompt, hidden).await,
            None => Ok(None),
        }
    }
}

/// Standard error: where nobody hears, the turn and its answer are worth no less.
struct Unheard(Stderr);

impl Write for Unheard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Follows one turn.
pub(super) struct Watch {
    /// None under `--quiet` and `--json`.
    printer: Option<Printer<Unheard>>,
    json: bool,
    answers: Answers,
    person: Asked,
    interrupts: bool,
    words: Words,
    last_message: Option<PathBuf>,
    /// What was asked, by its id, for the end.
    asked: Vec<(String, String)>,
    turn_id: String,
}

impl Watch {
    /// `prompt_was_piped` tells that stdin is used up.
    pub(super) fn new(
        output: &OutputArgs,
        questions: &QuestionArgs,
        unasked: Unasked,
        prompt_was_piped: bool,
        words: Words,
    ) -> Result<Watch, Failure> {
        let OutputArgs { json, quiet, output_last_message } = output;
        if let Some(path) = output_last_message {
            // Now, and not when an hour's work is done; and emptied, so that nobody takes an earlier
            // answer for that of a turn which has none.
            let opened = OpenOptions::new().write(true).create(true).truncate(true).open(path);
            opened.map_err(|error| {
                Failure::usage(format!(
                    "can't write --output-last-message {}: {error}",
                    path.display()
                ))
            })?;
        }
        let terminal = Terminal::find(prompt_was_piped);
        let answers = questions.answers(terminal.is_some(), unasked);
        let printer = (!json && !quiet).then(|| {
            let stderr = io::stderr();
            let colours = colours_wanted(&stderr);
            Printer::new(Unheard(stderr), colours).without_final_response()
        });
        Ok(Watch {
            printer,
            json: *json,
            answers,
            person: Asked(terminal.map(Rc::new)),
            interrupts: true,
            words,
            last_message: output_last_message.clone(),
            asked: Vec::new(),
            turn_id: String::new(),
        })
    }

    /// The same for one who only looks on: Ctrl-C leaves the turn alone.
    pub(super) fn looking_on(mut self) -> Watch {
        self.interrupts = false;
        self
    }

    /// Who is asked.
    pub(super) fn person(&self) -> Asked {
        self.person.clone()
    }

    /// What the sidecar is to do about questions.
    pub(super) fn question_policy(&self) -> pb::QuestionPolicy {
        match self.answers {
            Answers::Nobody | Answers::Decline => pb::QuestionPolicy::Decline,
            _ => pb::QuestionPolicy::Ask,
        }
    }

    /// Prints the answer and gives the exit code.
    pub(super) fn conclude(self, told: Told) -> CommandResult {
        let Told { outcome, interrupted_by, declined, stopped_by, was_cut, left, .. } = told;
        match outcome {
            Outcome::Completed(answer) => {
                self.print_answer(&answer)?;
                if declined.is_empty() { Ok(0) } else { Err(self.declined(&declined)) }
            }
            Outcome::Failed(error) => Err(failed(&error)),
            Outcome::Interrupted if left => Ok(INTERRUPTED),
            Outcome::Interrupted => match stopped_by {
                Some(by) => Err(Failure::Told {
                    message: format!(
                        "Codex asked, and --on-question=fail stopped the turn: {}",
                        self.asked(|id| id == by).collect::<Vec<_>>().join("; ")
                    ),
                    code: DECLINED,
                }),
                None => interrupted(interrupted_by, was_cut),
            },
        }
    }

    fn print_answer(&self, answer: &str) -> Result<(), Failure> {
        if let Some(path) = &self.last_message {
            std::fs::write(path, answer).map_err(|error| {
                Failure::told(format!(
                    "can't write --output-last-message {}: {error}",
                    path.display()
                ))
            })?;
        }
        if self.json {
            return Ok(());
        }
        let mut stdout = io::stdout();
        if stdout.is_terminal() {
            // Nobody wants to read it twice on one screen.
            let was_shown = io::stderr().is_terminal()
                && self.printer.as_ref().is_some_and(Printer::has_answered);
            if !was_shown {
                Printer::new(&mut stdout, false).say(answer)?;
            }
        } else {
            writeln!(stdout, "{answer}")?;
            stdout.flush()?;
        }
        Ok(())
    }

    /// What was asked under these ids.
    fn asked(&self, is_meant: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
        let meant = self.asked.iter().filter(move |(id, _)| is_meant(id));
        meant.map(|(_, question)| question.as_str())
    }

    fn declined(&self, ids: &BTreeSet<String>) -> Failure {
        let what = match ids.len() {
            1 => "1 question".to_owned(),
            count => format!("{count} questions"),
        };
        let which = self.asked(|id| ids.contains(id));
        let which: String = which.map(|question| format!("\n  {question}")).collect();
        let advice = self.answers.advice();
        let message = format!(
            "the turn completed, but {what} of Codex went without an answer and was declined{which}\n\
             {advice}"
        );
        Failure::Told { message, code: DECLINED }
    }

    /// Tells of a question that is not put to anybody here.
    fn tell_of(&self, question: &pb::CodexRequest) {
        if self.printer.is_none() && self.answers == Answers::Others {
            let asked = show_question(question);
            tell(&format!("Codex asks: {asked}\n{}", how_to_answer(&self.turn_id, question)));
        }
    }
}

fn how_to_answer(turn_id: &str, question: &pb::CodexRequest) -> String {
    format!("answer it with: codex-sidecar answer {turn_id} {}", question.request_id)
}

/// Why a turn failed, and what it comes to.
fn failed(error: &pb::TurnError) -> Failure {
    let code = match error.reason.as_str() {
        "IDLE_TIMEOUT" | "TURN_TIMEOUT" => OUT_OF_TIME,
        _ => 1,
    };
    let told = show_error(error);
    let advice = match (error.retryable, error.side_effects_possible) {
        (true, false) => "; run it again",
        (true, true) => "; running it again may help, but what it did so far stays done",
        (false, _) => "",
    };
    let mut details = Map::new();
    let mut insert = |name: &str, value: Value| details.insert(name.to_owned(), value);
    insert("reason", error.reason.as_str().into());
    insert("message", error.message.as_str().into());
    insert("retryable", error.retryable.into());
    insert("side_effects_possible", error.side_effects_possible.into());
    if let Some(status) = error.http_status {
        insert("http_status", status.into());
    }
    if !error.details.is_empty() {
        insert("details", error.details.as_str().into());
    }
    // The advice goes on with the sentence.
    let told = if advice.is_empty() { told.as_str() } else { told.trim_end_matches('.') };
    let message = format!("turn failed: {told}{advice}");
    Failure::Detailed(Box::new(Detailed { message, code, details }))
}

/// What an interrupted turn comes to.
fn interrupted(by: pb::InterruptReason, was_cut: bool) -> CommandResult {
    use pb::InterruptReason::{CallerDisconnected, DeadlineExceeded, Draining, Superseded};
    let (message, code) = match by {
        CallerDisconnected if was_cut => (
            "the connection was lost, and the turn was interrupted for it; --on-disconnect continue \
             lets it run on",
            UNREACHABLE,
        ),
        DeadlineExceeded => ("the turn was interrupted: its deadline passed", OUT_OF_TIME),
        Draining => ("the turn was interrupted: the sidecar is on its way down", UNREACHABLE),
        Superseded => ("the turn was interrupted: another one took its place", INTERRUPTED),
        _ => return Ok(INTERRUPTED),
    };
    Err(Failure::Told { message: message.to_owned(), code })
}

impl Output for Watch {
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure> {
        self.turn_id.clone_from(&event.turn_id);
        if let Some(Event::RequestRaised(pb::RequestRaised { request: Some(question) })) =
            &event.event
        {
            self.asked.push((question.request_id.clone(), show_question(question)));
        }
        if self.json {
            let mut line = json::line(event)?;
            line.push('\n');
            let mut out = io::stdout();
            out.write_all(line.as_bytes())?;
            out.flush()?;
        }
        let Some(printer) = &mut self.printer else { return Ok(()) };
        let is_ours = match &event.event {
            // The prompt says all of it.
            Some(Event::RequestRaised(_)) => self.answers == Answers::Person,
            Some(Event::RequestResolved(resolved)) => {
                self.answers == Answers::Person
                    && resolved.resolution() == pb::RequestResolution::Answered
            }
            _ => false,
        };
        if is_ours {
            printer.note_event(event)
        } else {
            printer.event(event)?
        }
        if self.answers == Answers::Others
            && let Some(Event::RequestRaised(pb::RequestRaised { request: Some(question) })) =
                &event.event
        {
            printer.say(&how_to_answer(&self.turn_id, question))?;
        }
        Ok(())
    }

    fn finish_line(&mut self) -> Result<(), Failure> {
        self.printer.as_mut().map_or(Ok(()), Output::finish_line)
    }

    fn reply(&mut self, question: &pb::CodexRequest) -> Result<Reply, Failure> {
        let no = || ask::no(question);
        let is_call = matches!(question.kind, Some(pb::codex_request::Kind::ToolCall(_)));
        if is_call && !matches!(self.answers, Answers::Others) {
            // Whatever was lent, it was not lent here.
            self.tell_of(question);
            return Ok(no().map_or(Reply::Leave, Reply::Decline));
        }
        Ok(match self.answers {
            Answers::Person => Reply::Ask,
            Answers::Others => {
                self.tell_of(question);
                Reply::Leave
            }
            Answers::Yes => match ask::yes(question) {
                Some(answer) => Reply::Send(answer),
                None if self.person.0.is_some() => Reply::Ask,
                None => {
                    self.tell_of(question);
                    no().map_or(Reply::Leave, Reply::Decline)
                }
            },
            Answers::No => no().map_or(Reply::Leave, Reply::Send),
            Answers::Stop => {
                self.tell_of(question);
                Reply::Stop
            }
            Answers::Nobody | Answers::Decline => {
                self.tell_of(question);
                // The sidecar has been told to; one that was not, in a turn that was joined, is now.
                no().map_or(Reply::Leave, Reply::Decline)
            }
        })
    }

    fn refusal(&self, refused: Refused) -> Failure {
        self.words.failure(refused)
    }

    fn rejoins(&self) -> bool {
        true
    }

    fn interrupts(&self) -> bool {
        self.interrupts
    }

    fn interrupting(&mut self) -> Result<(), Failure> {
        self.note("interrupting the turn; Ctrl-C once more leaves at once")
    }

    fn ticks(&self) -> bool {
        self.printer.is_some() && io::stderr().is_terminal() && !is_dumb()
    }

    fn tick(&mut self) -> Result<(), Failure> {
        let Some(printer) = &mut self.printer else { return Ok(()) };
        let size = rustix::termios::tcgetwinsize(io::stderr());
        let width = size.map_or(0, |size| usize::from(size.ws_col));
        Ok(printer.show_time(if width == 0 { 80 } else { width })?)
    }
}
