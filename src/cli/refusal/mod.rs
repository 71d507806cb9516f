//! Refusals of the sidecar in the words of the command line: `--cd`, and not
//! `thread_options.working_directory`; told once, with the exit code that says what kind it is.

mod names;

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value};

use self::names::Place;
use super::failure::{Detailed, Failure};
use super::{OUT_OF_TIME, REFUSED, UNREACHABLE};
use crate::grpc::caller::Refused;
use crate::pb;
use crate::pb::user_input::Input;

/// What the parts of a request are called where it comes from.
#[derive(Debug)]
pub(super) struct Words {
    place: Place,
    /// What its inputs are called.
    inputs: Vec<String>,
    /// Whether the working directory is what the sidecar takes where none is given.
    is_default_directory: bool,
}

impl Default for Words {
    /// Of what follows a turn.
    fn default() -> Words {
        Words::at(names::RUN)
    }
}

impl Words {
    fn at(place: Place) -> Words {
        Words { place, inputs: Vec::new(), is_default_directory: false }
    }

    /// Of `answer`.
    pub(super) fn of_answer() -> Words {
        Words::at(names::ANSWER)
    }

    /// Of `contexts`.
    pub(super) fn of_contexts() -> Words {
        Words::at(names::CONTEXTS)
    }

    /// Of `contexts history`.
    pub(super) fn of_history() -> Words {
        Words::at(names::HISTORY)
    }

    /// Of a tool of `mcp`.
    pub(super) fn of_tool() -> Words {
        Words::at(names::MCP)
    }

    /// Of `exec`.
    pub(super) fn of_exec(request: &pb::RunTurnRequest) -> Words {
        Words { inputs: inputs(&request.inputs), ..Words::at(names::EXEC) }
    }

    /// Of `run`.
    pub(super) fn of_run(request: &pb::RunTurnRequest) -> Words {
        let options = request.thread_options.as_ref();
        let directory = options.and_then(|options| options.working_directory.as_ref());
        Words { is_default_directory: directory.is_none(), ..Words::of(&request.inputs) }
    }

    /// Of a command line that says these inputs.
    pub(super) fn of(said: &[pb::UserInput]) -> Words {
        Words { inputs: inputs(said), ..Words::default() }
    }

    /// The argument that says a field; the field's own name where none does.
    fn argument(&self, field: &str) -> String {
        self.known(field).unwrap_or_else(|| field.to_owned())
    }

    fn known(&self, field: &str) -> Option<String> {
        if let Some(named) = self.input(field) {
            return Some(named.to_owned());
        }
        Some(match names::find(self.place, field)? {
            (argument, "") => argument.to_owned(),
            // `thread_options.config["a.b"]` is `-c a.b`, the second directory is the second --add-dir.
            (argument, rest) => format!("{argument} {}", inside(rest)),
        })
    }

    fn input(&self, field: &str) -> Option<&str> {
        let (at, _) = field.strip_prefix("inputs[")?.split_once(']')?;
        self.inputs.get(at.parse::<usize>().ok()?).map(String::as_str)
    }

    /// A text in one line, with the arguments in place of the fields that it names, and their values as
    /// they are typed. What it quotes stays as it is, and so does what may be a part of a path.
    fn text(&self, text: &str) -> String {
        let text = names::rephrased(self.place, &one_line(text));
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '[' | ']');
        let is_glued = |c: char| matches!(c, '/' | '\\' | '=' | '-' | '~' | '@');
        let mut told = String::new();
        let mut rest = text.as_str();
        let (mut before, mut is_quoted) = (' ', false);
        while let Some(c) = rest.chars().next() {
            if is_quoted || !is_part(c) {
                if c == '"' && before != '\\' {
                    is_quoted = !is_quoted;
                }
                told.push(c);
                before = c;
                rest = &rest[c.len_utf8()..];
                continue;
            }
            let (word, more) = rest.split_at(rest.find(|c| !is_part(c)).unwrap_or(rest.len()));
            let bare = word.trim_end_matches('.');
            let stands_alone = !is_glued(before) && !more.starts_with(is_glued);
            match Some(bare).filter(|_| stands_alone).and_then(|bare| self.own(bare)) {
                Some(own) => {
                    told.push_str(&own);
                    told.push_str(&word[bare.len()..]);
                }
                None => told.push_str(word),
            }
            before = c;
            rest = more;
        }
        told.replace("set --", "give --")
    }

    /// What a word of a text is called here, if it is called otherwise.
    fn own(&self, word: &str) -> Option<String> {
        if word == names::WORKING_DIRECTORY && self.is_default_directory {
            return Some("--cd is not given, and its default".to_owned());
        }
        // A word of a sentence may be a field's name by chance: only paths are taken for fields.
        if word.contains(['.', '_']) || word.starts_with("inputs[") {
            let last = || names::find_last(self.place, word).map(str::to_owned);
            if let Some(argument) = self.known(word).or_else(last) {
                return Some(argument);
            }
        }
        names::value(word)
    }

    /// A fault of an argument, which is named once, and its value, too.
    fn fault(argument: &str, fault: &str) -> String {
        if fault.starts_with(argument) {
            return fault.to_owned();
        }
        if let Some((_, value)) = argument.split_once(' ') {
            let quoted = format!("{value:?}");
            let rest = fault.strip_prefix(value).or_else(|| fault.strip_prefix(quoted.as_str()));
            if let Some(rest) = rest.filter(|rest| rest.starts_with(' ')) {
                return format!("{argument}{rest}");
            }
        }
        format!("{argument}: {fault}")
    }

    /// What is wrong with something that a person typed just now, and knows without its name.
    pub(super) fn faults(&self, refused: &Refused) -> String {
        if refused.fields.is_empty() {
            return self.text(&refused.message);
        }
        let faults = refused.fields.iter().map(|(_, fault)| self.text(fault));
        faults.collect::<Vec<_>>().join("; ")
    }

    /// What a refused call comes to.
    pub(super) fn failure(&self, refused: Refused) -> Failure {
        let code = code(&refused);
        let Refused { code: status, reason, message, fields, retry_after } = refused;
        let mut details = Map::new();
        let mut insert = |name: &str, value: Value| {
            details.insert(name.to_owned(), value);
        };
        insert("code", status.into());
        if let Some(reason) = &reason {
            insert("reason", reason.as_str().into());
        }
        let faults: Vec<(String, String)> =
            fields.iter().map(|(field, fault)| (self.argument(field), self.text(fault))).collect();
        // The sidecar's message repeats its only field.
        let message = match faults.as_slice() {
            [] => self.text(&message),
            [(argument, fault)] => Words::fault(argument, fault),
            faults => {
                let lines = faults.iter().map(|(argument, fault)| Words::fault(argument, fault));
                let lines: String = lines.map(|line| format!("\n  {line}")).collect();
                format!("the request is refused:{lines}")
            }
        };
        insert("message", message.as_str().into());
        if !faults.is_empty() {
            let list = fields.iter().zip(faults).map(|((field, _), (argument, fault))| {
                let texts = [("field", field.clone()), ("argument", argument), ("message", fault)];
                Value::from(Map::from_iter(
                    texts.map(|(name, text)| (name.to_owned(), Value::String(text))),
                ))
            });
            insert("fields", list.collect::<Vec<Value>>().into());
        }
        let mut told = message.clone();
        let _ = write!(told, " ({})", reason.as_deref().unwrap_or(status));
        if let Some(delay) = retry_after {
            let delay = Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
            insert("retry_after_seconds", delay.as_secs_f64().into());
            if !message.contains("try again") {
                let _ = write!(told, "; try again after {}", humantime::format_duration(delay));
            }
        }
        Failure::Detailed(Box::new(Detailed { message: told, code, details }))
    }
}

/// What inputs are called on a command line, beside what is the same for all.
fn inputs(inputs: &[pb::UserInput]) -> Vec<String> {
    let name = |input: &pb::UserInput| match &input.input {
        Some(Input::LocalImage(image)) => format!("--image {}", image.path),
        Some(Input::Skill(skill)) => format!("--skill {}", skill.name),
        Some(Input::Mention(mention)) => format!("--mention {}", mention.name),
        Some(Input::ExternalMessage(message)) => format!("--external {}", message.source),
        Some(Input::Text(_) | Input::ImageUrl(_)) | None => "PROMPT".to_owned(),
    };
    inputs.iter().map(name).collect()
}

/// A text of several lines in one.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}

/// What is within a field, for people: `["a.b"]` is `a.b`, `[1]` the second.
fn inside(rest: &str) -> String {
    let bare = rest.trim_start_matches(['.', '[']).trim_end_matches(']');
    match (bare.parse::<usize>(), serde_json::from_str::<String>(bare)) {
        (Ok(at), _) => format!("number {}", at + 1),
        (Err(_), Ok(key)) => key,
        (Err(_), Err(_)) => bare.to_owned(),
    }
}

/// The exit code of a refused call.
fn code(refused: &Refused) -> u8 {
    match (refused.code, refused.reason.as_deref()) {
        ("DEADLINE_EXCEEDED", _) => OUT_OF_TIME,
        (_, Some("DRAINING")) => UNREACHABLE,
        _ if refused.is_lost() => UNREACHABLE,
        _ => REFUSED,
    }
}

/// What a refused call comes to where no input is named by an argument of its own.
pub(super) fn failure(refused: Refused) -> Failure {
    Words::default().failure(refused)
}

#[cfg(test)]
mod tests;
