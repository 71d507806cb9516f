//! What Codex asks, put to a person.
//!
//! Says what is asked, shows the answers that are on offer, and reads until one of them is given. Knows
//! no turn and no sidecar: a question goes in, an answer comes out. What came from a model or a server
//! is shown without control characters, which could play tricks on a terminal.

mod approval;
mod automatic;
mod elicitation;
pub(crate) mod form;
mod questions;
mod terminal;
#[cfg(test)]
mod tests;

use std::io;

use crate::pb;
use crate::pb::answer_request_request::Answer;
use crate::pb::codex_request::Kind as Question;

pub(super) use automatic::{no, yes};
pub(super) use terminal::Terminal;

/// Whoever answers.
pub(super) trait Person {
    /// Begins a question: what was typed before it was seen counts for nothing.
    fn begin(&self);

    /// Shows a text, which ends with a line feed.
    fn show(&self, text: &str) -> io::Result<()>;

    /// Shows a prompt and reads the next line, without its line feed; hidden where it is typed if it is
    /// a secret. `None` where nobody will ever type one.
    async fn line(&self, prompt: &str, hidden: bool) -> io::Result<Option<String>>;
}

/// Nobody.
pub(super) struct Nobody;

impl Person for Nobody {
    fn begin(&self) {}

    fn show(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    async fn line(&self, _: &str, _: bool) -> io::Result<Option<String>> {
        Ok(None)
    }
}

/// Asks until there is an answer; `None` where nobody answers.
pub(super) async fn ask(
    question: &pb::CodexRequest,
    person: &impl Person,
) -> io::Result<Option<Answer>> {
    person.begin();
    match &question.kind {
        Some(Question::CommandApproval(asked)) => approval::command(asked, person).await,
        Some(Question::FileChangeApproval(asked)) => approval::file_change(asked, person).await,
        Some(Question::PermissionsApproval(asked)) => approval::permissions(asked, person).await,
        Some(Question::UserQuestions(asked)) => questions::ask(asked, person).await,
        Some(Question::Elicitation(asked)) => elicitation::ask(asked, person).await,
        // Nobody can type these: a function is called by a program, and what this client does not
        // know it can't ask.
        Some(Question::ToolCall(_) | Question::Unknown(_)) | None => Ok(no(question)),
    }
}

/// Something to choose: the key that is typed, and what it means.
struct Choice<T> {
    key: char,
    meaning: String,
    value: T,
}

impl<T> Choice<T> {
    fn new(key: char, meaning: impl Into<String>, value: T) -> Choice<T> {
        Choice { key, meaning: meaning.into(), value }
    }
}

/// Shows what there is to choose and reads until one of it is chosen, by its key or by a word that
/// begins with it. Nothing is chosen by default.
async fn choose<T: Clone>(choices: &[Choice<T>], person: &impl Person) -> io::Result<Option<T>> {
    let mut text = String::new();
    for Choice { key, meaning, value: _ } in choices {
        text.push_str(&format!("  {key}  {meaning}\n"));
    }
    person.show(&text)?;
    let keys: Vec<String> = choices.iter().map(|choice| choice.key.to_string()).collect();
    let prompt = format!("[{}] ", keys.join("/"));
    loop {
        let Some(line) = person.line(&prompt, false).await? else { return Ok(None) };
        let word = line.trim().to_lowercase();
        let typed = match word.as_str() {
            "yes" | "no" | "always" | "cancel" | "diff" => word.chars().next(),
            word if word.chars().count() == 1 => word.chars().next(),
            _ => None,
        };
        let chosen = choices.iter().find(|choice| Some(choice.key) == typed);
        match chosen {
            Some(choice) => return Ok(Some(choice.value.clone())),
            None => person.show(&format!("Type one of: {}\n", keys.join(", ")))?,
        }
    }
}

/// A text of somebody else's, each of its lines behind `indent`.
fn quoted(text: &str, indent: &str) -> String {
    let mut told = String::new();
    for line in text.lines() {
        let line: String = line.chars().filter(|c| !c.is_control() || *c == '\t').collect();
        told.push_str(&format!("{indent}{line}\n"));
    }
    told
}

/// JSON over several lines, as it is where it is none.
fn pretty(json: &str) -> String {
    serde_json::from_str::<serde_json::Value>(json)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .unwrap_or_else(|_| json.to_owned())
}
