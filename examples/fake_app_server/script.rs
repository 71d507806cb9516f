//! The directive language of prompts; the table in `main.rs` says what each directive does.
//!
//! It is the offline model's: `[[` opens a directive where a lower-case letter follows, pairs of
//! brackets nest, JSON is read by a JSON reader, and a mistake is answered instead of done.

use std::time::Duration;

use serde_json::{Value, json};

use crate::faults::Death;

/// What a prompt asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Script {
    /// To be done in order.
    pub(crate) steps: Vec<Step>,
    /// What holds for the whole turn, wherever it stands in the prompt.
    pub(crate) manner: Manner,
}

/// What holds for a whole turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Manner {
    pub(crate) slow: Duration,
    pub(crate) refuse: Option<(i64, String)>,
    pub(crate) no_end: bool,
    pub(crate) double_end: bool,
    pub(crate) late: usize,
    pub(crate) ignore_interrupt: bool,
}

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    Say(String),
    Words(usize),
    Items { count: usize, bytes: usize },
    Ask { method: String, params: Value },
    Reason(String),
    Plan(Vec<String>),
    Run(String),
    Spawn(String),
    Wait(Duration),
    Hang,
    Retry(usize),
    Warn(String),
    UnknownItem,
    Line(usize),
    EndlessLine,
    Stderr(usize),
    StderrLine(usize),
    StderrText(String),
    Grow(u64),
    Die(Death),
    Fail { info: Value, message: String },
}

impl Step {
    /// Whether it makes an agent message, so that the default answer is not needed.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Step::Say(_) | Step::Words(_) | Step::Items { .. } | Step::Ask { .. })
    }
}

impl Script {
    /// Reads a prompt; of one with a mistake nothing is done but to say so.
    pub(crate) fn read(prompt: &str) -> Script {
        parse(prompt).unwrap_or_else(|(source, why)| {
            let excerpt: String = source.chars().take(80).collect();
            let text = format!("fake app-server: malformed directive {excerpt}: {why}");
            Script { steps: vec![Step::Say(text)], ..Script::default() }
        })
    }
}

/// The error is what is left of the prompt at the mistake, and what is wrong.
fn parse(prompt: &str) -> Result<Script, (&str, String)> {
    let mut script = Script::default();
    let mut rest = prompt;
    while let Some(at) = rest.find("[[") {
        let source = &rest[at..];
        let inner = &source[2..];
        if !inner.starts_with(|c: char| c.is_ascii_lowercase()) {
            rest = &source[1..];
            continue;
        }
        let end =
            inner.find(|c: char| !(c.is_ascii_lowercase() || c == '-')).unwrap_or(inner.len());
        let (word, arguments) = inner.split_at(end);
        let body = Body::read(word, arguments).map_err(|why| (source, why))?;
        take(&mut script, word, &body).map_err(|why| (source, why))?;
        rest = body.after;
    }
    Ok(script)
}

/// What stands between a directive's word and its closing brackets.
struct Body<'a> {
    /// Trimmed; without the JSON and what comes before it, where there is JSON.
    text: &'a str,
    /// What comes before the JSON: the method of `ask`.
    head: &'a str,
    json: Option<Value>,
    after: &'a str,
}

impl<'a> Body<'a> {
    fn read(word: &str, arguments: &'a str) -> Result<Body<'a>, String> {
        let start = arguments.trim_start();
        let (head, tail) = match word {
            "fail" if start.starts_with(['{', '"', '[']) => ("", start),
            "ask" => {
                let end =
                    start.find(|c: char| c.is_whitespace() || c == ']').unwrap_or(start.len());
                let (head, tail) = start.split_at(end);
                if tail.trim_start().starts_with("]]") {
                    let (_, after) = close(tail)?;
                    return Ok(Body { text: "", head, json: None, after });
                }
                (head, tail)
            }
            _ => {
                let (text, after) = close(arguments)?;
                return Ok(Body { text: text.trim(), head: "", json: None, after });
            }
        };
        let mut values = serde_json::Deserializer::from_str(tail).into_iter::<Value>();
        let json = match values.next() {
            Some(Ok(json)) => json,
            Some(Err(error)) => return Err(format!("not JSON: {error}")),
            None => return Err("JSON is missing".to_owned()),
        };
        let (text, after) = close(&tail[values.byte_offset()..])?;
        Ok(Body { text: text.trim(), head, json: Some(json), after })
    }
}

/// Splits at the `]]` that closes the directive.
fn close(source: &str) -> Result<(&str, &str), String> {
    let bytes = source.as_bytes();
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        match &bytes[at..] {
            [b'[', b'[', ..] => (depth, at) = (depth + 1, at + 2),
            [b']', b']', ..] if depth == 0 => {
                // The last two of a run of brackets close it.
                let extra = bytes[at + 2..].iter().take_while(|byte| **byte == b']').count();
                return Ok((&source[..at + extra], &source[at + extra + 2..]));
            }
            [b']', b']', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    Err("it is never closed with `]]`".to_owned())
}

fn take(script: &mut Script, word: &str, body: &Body<'_>) -> Result<(), String> {
    let text = body.text;
    let manner = &mut script.manner;
    let step = match word {
        "slow" => return assign(&mut manner.slow, millis(text)?),
        "refuse" => {
            let (code, message) =
                text.split_once(char::is_whitespace).unwrap_or((text, "scripted refusal"));
            let code = code.parse().map_err(|_| format!("`{code}` is no error code"))?;
            return assign(&mut manner.refuse, Some((code, message.trim().to_owned())));
        }
        "no-end" => return assign(&mut manner.no_end, none(text)?),
        "double-end" => return assign(&mut manner.double_end, none(text)?),
        "late" => return assign(&mut manner.late, count_or(text, 1)?),
        "ignore-interrupt" => return assign(&mut manner.ignore_interrupt, none(text)?),

        "say" => Step::Say(some(text)?),
        "words" => Step::Words(count(text)?),
        "items" => {
            let (items, bytes) = pair(text)?;
            Step::Items { count: items, bytes }
        }
        "ask" => ask(body)?,
        "reason" => Step::Reason(some(text)?),
        "plan" => Step::Plan(text.split(';').map(|step| step.trim().to_owned()).collect()),
        "run" => Step::Run(some(text)?),
        "spawn" => Step::Spawn(some(text)?),
        "wait" => Step::Wait(millis(text)?),
        "hang" => Step::Hang,
        "retry" => Step::Retry(count(text)?),
        "warn" => Step::Warn(some(text)?),
        "unknown-item" => Step::UnknownItem,
        "line" => Step::Line(count(text)?),
        "endless-line" => Step::EndlessLine,
        "stderr" => Step::Stderr(count(text)?),
        "stderr-line" => Step::StderrLine(count(text)?),
        "stderr-text" => Step::StderrText(some(text)?),
        "grow" => Step::Grow(count(text)?),
        "die" => Step::Die(Death::parse(text)?),
        "fail" => fail(body)?,
        _ => return Err(format!("there is no directive `{word}`")),
    };
    script.steps.push(step);
    Ok(())
}

fn assign<T>(place: &mut T, value: T) -> Result<(), String> {
    *place = value;
    Ok(())
}

fn ask(body: &Body<'_>) -> Result<Step, String> {
    if body.head.is_empty() || !body.text.is_empty() {
        return Err("a method and a JSON object are needed, and nothing else".to_owned());
    }
    let params = body.json.clone().unwrap_or_else(|| json!({}));
    Ok(Step::Ask { method: body.head.to_owned(), params })
}

fn fail(body: &Body<'_>) -> Result<Step, String> {
    let (info, message) = match &body.json {
        Some(json) => (json.clone(), body.text),
        None => {
            let (name, message) =
                body.text.split_once(char::is_whitespace).unwrap_or((body.text, ""));
            (Value::from(some(name)?), message.trim())
        }
    };
    let message = if message.is_empty() { "scripted failure" } else { message };
    Ok(Step::Fail { info, message: message.to_owned() })
}

fn none(text: &str) -> Result<bool, String> {
    if text.is_empty() { Ok(true) } else { Err("it takes no arguments".to_owned()) }
}

fn some(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("its argument is missing".to_owned()) } else { Ok(text.to_owned()) }
}

fn count<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("`{text}` is no number that can be used here"))
}

fn count_or(text: &str, default: usize) -> Result<usize, String> {
    if text.is_empty() { Ok(default) } else { count(text) }
}

fn pair<N: std::str::FromStr>(text: &str) -> Result<(N, N), String> {
    let (first, second) = text.split_once(char::is_whitespace).ok_or("two numbers are needed")?;
    Ok((count(first)?, count(second.trim())?))
}

/// Milliseconds, or a duration such as `2s`.
fn millis(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(millis) => Ok(Duration::from_millis(millis)),
        Err(_) => humantime::parse_duration(text)
            .map_err(|error| format!("`{text}` is not a duration such as `500ms`: {error}")),
    }
}
