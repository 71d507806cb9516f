//! What a turn shows as `codex exec` does: JSONL on standard output, or for people on standard error
//! all that happens and on standard output the last message.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use super::failed;
use super::{human, jsonl};
use crate::cli::failure::{Failure, tell};
use crate::cli::refusal::Words;
use crate::cli::turn::Output;
use crate::grpc::caller::Refused;
use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::codex_request::Kind as Question;
use crate::pb::turn_event::Event;

/// What is written.
#[derive(Debug)]
pub(super) enum Form {
    /// JSONL, to standard output.
    Jsonl(jsonl::Renderer),
    /// For people, to standard error.
    Human(Box<human::Renderer>),
}

/// Writes on a thread of its own: whoever reads slowly must not keep this process from reading the
/// events, of which the sidecar retains only so many.
pub(super) struct Display {
    form: Form,
    words: Words,
    is_review: bool,
    /// The last message of a review, until it is known what comes next.
    held: Option<pb::TurnEvent>,
    texts: mpsc::Sender<Vec<u8>>,
    writer: std::thread::JoinHandle<io::Result<()>>,
    failed_on_the_way: bool,
    last_message: Option<String>,
    last_message_file: Option<(PathBuf, File)>,
}

impl Display {
    /// The file for the last message is opened now, so that a wrong path is told before the turn.
    pub(super) fn start(
        form: Form,
        words: Words,
        is_review: bool,
        last_message_file: Option<&Path>,
    ) -> Result<Display, Failure> {
        let last_message_file = last_message_file.map(open).transpose()?;
        let (texts, queue) = mpsc::channel::<Vec<u8>>();
        let to_stdout = matches!(form, Form::Jsonl(_));
        let writer = std::thread::spawn(move || {
            if to_stdout {
                return write_all(queue, &mut io::stdout().lock());
            }
            // Where nobody listens, the turn and its answer are worth no less.
            let _ = write_all(queue, &mut io::stderr());
            Ok(())
        });
        Ok(Display {
            form,
            words,
            is_review,
            held: None,
            texts,
            writer,
            failed_on_the_way: false,
            last_message: None,
            last_message_file,
        })
    }

    /// Writes what comes after the events, and waits until all is written; gives whether an error was
    /// told that Codex did not get over.
    pub(super) fn finish(mut self, has_completed: bool) -> Result<bool, Failure> {
        if let Some(held) = self.held.take() {
            self.show(&held)?;
        }
        let last_message = self.last_message.take();
        if let Some((path, file)) = self.last_message_file.take().filter(|_| has_completed) {
            self.keep_last_message(&path, file, last_message.as_deref());
        }
        let is_human = match &self.form {
            Form::Human(renderer) => {
                let usage = renderer.usage();
                self.write(usage.into_bytes()).ok();
                true
            }
            Form::Jsonl(_) => false,
        };
        let Display { texts, writer, failed_on_the_way, .. } = self;
        drop(texts);
        match writer.join() {
            Ok(written) => written?,
            Err(_) => return Err(failed("can't write the output")),
        }
        // On a terminal it stands above, unless that shows only one of the two.
        let is_shown = io::stdout().is_terminal() && io::stderr().is_terminal();
        match last_message {
            Some(message) if is_human && has_completed && !is_shown => {
                let mut out = io::stdout().lock();
                writeln!(out, "{message}")?;
                out.flush()?;
            }
            _ => {}
        }
        Ok(failed_on_the_way)
    }

    fn keep_last_message(&self, path: &Path, mut file: File, message: Option<&str>) {
        if message.is_none() {
            let path = path.display();
            self.complain(&format!(
                "Warning: no last agent message; wrote empty content to {path}"
            ));
        }
        let written =
            file.set_len(0).and_then(|()| file.write_all(message.unwrap_or("").as_bytes()));
        if let Err(error) = written {
            let path = path.display();
            self.complain(&format!("Failed to write last message file {path}: {error}"));
        }
    }

    /// Tells on standard error, in its place among what is told there.
    fn complain(&self, line: &str) {
        match self.form {
            Form::Jsonl(_) => tell(line),
            Form::Human(_) => self.write(format!("{line}\n").into_bytes()).unwrap_or_default(),
        }
    }

    fn show(&mut self, event: &pb::TurnEvent) -> Result<(), Failure> {
        match &mut self.form {
            Form::Jsonl(renderer) => {
                for line in renderer.event(event) {
                    let mut text = serde_json::to_vec(&line)
                        .map_err(|error| failed(format!("can't render an event: {error}")))?;
                    text.push(b'\n');
                    self.texts.send(text).map_err(|_| Failure::OutputClosed)?;
                }
                if let Some(Event::Warning(warning)) = &event.event
                    && !jsonl::is_from_codex(warning)
                {
                    tell(&format!("warning: {}", warning.message));
                }
            }
            Form::Human(renderer) => {
                let text = renderer.event(event);
                if !text.is_empty() {
                    self.write(text.into_bytes()).ok();
                }
            }
        }
        match &event.event {
            Some(Event::ItemCompleted(pb::ItemCompleted { item: Some(item) })) => {
                if let Some(pb::item::Kind::AgentMessage(message)) = &item.kind {
                    self.last_message = Some(message.text.clone());
                }
            }
            Some(Event::ThreadError(pb::ThreadError { will_retry: false, .. })) => {
                self.failed_on_the_way = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn write(&self, text: Vec<u8>) -> Result<(), Failure> {
        // The writer ends early only when it can't write; `finish` knows why.
        self.texts.send(text).map_err(|_| Failure::OutputClosed)
    }
}

fn is_message(event: &pb::TurnEvent) -> bool {
    let Some(Event::ItemCompleted(pb::ItemCompleted { item: Some(item) })) = &event.event else {
        return false;
    };
    matches!(item.kind, Some(pb::item::Kind::AgentMessage(_)))
}

fn open(path: &Path) -> Result<(PathBuf, File), Failure> {
    // What is in it stays until there is another message.
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file
        .map_err(|error| failed(format!("Failed to open last message file {path:?}: {error}")))?;
    Ok((path.to_owned(), file))
}

fn write_all(queue: mpsc::Receiver<Vec<u8>>, out: &mut impl Write) -> io::Result<()> {
    for text in queue {
        out.write_all(&text)?;
    }
    out.flush()
}

impl Output for Display {
    fn event(&mut self, event: &pb::TurnEvent) -> Result<(), Failure> {
        // A review that fails says so in a message. The real one tells the error before it, the sidecar
        // with the turn's end.
        let held = self.held.take();
        let is_error = matches!(&event.event, Some(Event::ThreadError(_)));
        if let Some(held) = held.as_ref().filter(|_| !is_error) {
            self.show(held)?;
        }
        if self.is_review && is_message(event) {
            self.held = Some(event.clone());
            return Ok(());
        }
        self.show(event)?;
        held.filter(|_| is_error).map_or(Ok(()), |held| self.show(&held))
    }

    /// Says nothing of it, as the real one does.
    fn interrupting(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Says no at once, as the real one does: nobody is there to be asked.
    fn answer(&self, question: &pb::CodexRequest) -> Option<Answer> {
        match question.kind.as_ref()? {
            Question::CommandApproval(_) | Question::FileChangeApproval(_) => {
                let decision = pb::ApprovalDecision::Decline.into();
                Some(Answer::Approval(pb::ApprovalAnswer { decision, ..Default::default() }))
            }
            Question::PermissionsApproval(_) => Some(Answer::Permissions(Default::default())),
            Question::UserQuestions(_) => Some(Answer::UserQuestions(Default::default())),
            Question::Elicitation(_) => {
                let action = pb::ElicitationAction::Cancel.into();
                Some(Answer::Elicitation(pb::ElicitationAnswer { action, ..Default::default() }))
            }
            Question::ToolCall(_) => Some(Answer::ToolCall(Default::default())),
            Question::Unknown(_) => None,
        }
    }

    /// What the real one says, where that is known.
    fn refusal(&self, refused: Refused) -> Failure {
        match refused.reason.as_deref() {
            Some("NOT_A_GIT_REPOSITORY") => failed(
                "Not inside a trusted directory and --skip-git-repo-check was not specified.",
            ),
            _ => self.words.failure(refused),
        }
    }
}
