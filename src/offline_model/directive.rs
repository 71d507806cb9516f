//! The directive language: what a prompt may ask the offline model to do.
//!
//! Reads text, decides nothing about requests. A prompt is read whole before anything is done, so that a mistake
//! in the last directive is reported instead of being found half-way through a turn.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};

/// More words than this in one answer test the reader's patience, not the reader.
const MAX_WORDS: usize = 1_000_000;
/// The largest line that the sidecar is ever configured to read.
const MAX_BYTES: usize = 64 << 20;
/// How much of a wrong directive is quoted back.
const EXCERPT_CHARS: usize = 80;

/// One thing to do. The table in the parent module says how each is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Directive {
    Run(String),
    /// A command that asks to leave the sandbox.
    Escalate(String),
    /// Questions to the user.
    Ask(Vec<Question>),
    /// Permissions that are asked for, as the tool takes them.
    Permit(Value),
    Tool {
        name: String,
        arguments: Value,
    },
    Plan(Vec<String>),
    /// The body of an `apply_patch`, markers included.
    Patch(String),
    Reason(String),
    Say(String),
    /// A JSON pointer into the request.
    Show(String),
    Words(usize),
    Bytes(usize),
    /// What Codex's reviewer says of what this turn asks.
    Review(Verdict),
    /// The calls before and after it are made at once.
    And,
    Slow(Duration),
    Wait(Duration),
    Status {
        code: u16,
        retry_after: Option<u64>,
    },
    Fail {
        code: String,
        message: Option<String>,
    },
    /// Why the answer is not whole.
    Incomplete(String),
    /// What follows is for the next turn that Codex takes by itself.
    Next,
    End,
    Cut,
    Hang,
}

/// A question to the user.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Question {
    pub(super) text: String,
    pub(super) options: Vec<String>,
}

/// What a reviewer says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// Why it may be done.
    Allow(String),
    /// Why it may not be done.
    Deny(String),
    /// No verdict at all.
    Nonsense,
    /// Nothing, ever.
    Hang,
}

impl Directive {
    /// Whether Codex has to run a tool, and to ask again with its output, before the next directive.
    pub(super) fn is_call(&self) -> bool {
        match self {
            Self::Run(_)
            | Self::Escalate(_)
            | Self::Ask(_)
            | Self::Permit(_)
            | Self::Tool { .. }
            | Self::Plan(_)
            | Self::Patch(_) => true,
            Self::Reason(_)
            | Self::Say(_)
            | Self::Show(_)
            | Self::Words(_)
            | Self::Bytes(_)
            | Self::Review(_)
            | Self::And
            | Self::Slow(_)
            | Self::Wait(_)
            | Self::Status { .. }
            | Self::Fail { .. }
            | Self::Incomplete(_)
            | Self::Next
            | Self::End
            | Self::Cut
            | Self::Hang => false,
        }
    }
}

/// Why a prompt could not be followed, quoting the directive it stumbled over.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Malformed {
    excerpt: String,
    why: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { excerpt, why } = self;
        write!(f, "offline model: malformed directive {excerpt}: {why}")
    }
}

impl Malformed {
    /// `source` starts at the directive's `[[`.
    fn new(source: &str, why: impl Into<String>) -> Self {
        let mut excerpt: String = source.chars().take(EXCERPT_CHARS).collect();
        if excerpt.len() < source.len() {
            excerpt.push('…');
        }
        Self { excerpt, why: why.into() }
    }
}

/// Reads every directive of a prompt, in order.
///
/// `[[` opens a directive only where a lower-case letter follows: a prompt about shell tests (`[[ -f x ]]`) or nested
/// arrays is an ordinary prompt.
pub(crate) fn parse(prompt: &str) -> Result<Vec<Directive>, Malformed> {
    let mut directives = Vec::new();
    let mut rest = prompt;
    while let Some(at) = rest.find("[[") {
        let source = &rest[at..];
        let inner = &source[2..];
        if !inner.starts_with(|c: char| c.is_ascii_lowercase()) {
            // One character, not two: `[[[run ls]]` holds a directive at its second bracket.
            rest = &source[1..];
            continue;
        }
        let word_end = inner.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(inner.len());
        let (word, arguments) = inner.split_at(word_end);
        let whole = Body::read(word, arguments).map_err(|why| Malformed::new(source, why))?;
        let quoted = &source[..source.len() - whole.after.len()];
        directives.push(directive(word, &whole).map_err(|why| Malformed::new(quoted, why))?);
        rest = whole.after;
    }
    Ok(directives)
}

/// What the last `[[review …]]` in a text says, whatever else is in it.
pub(crate) fn verdict(text: &str) -> Option<Verdict> {
    const OPENING: &str = "[[review";
    text.rmatch_indices(OPENING).find_map(|(at, _)| {
        let (body, _) = close(&text[at + OPENING.len()..]).ok()?;
        review(body.trim()).ok()
    })
}

/// What stands between a directive's word and its closing brackets.
struct Body<'a> {
    /// Trimmed. For `tool`, the name alone.
    text: &'a str,
    /// The JSON of `tool` and `json`.
    json: Option<Value>,
    after: &'a str,
}

impl<'a> Body<'a> {
    fn read(word: &str, arguments: &'a str) -> Result<Self, String> {
        // JSON is read by a JSON reader: its strings may hold brackets of any kind.
        match word {
            "json" | "permit" => Self::with_json(arguments),
            "tool" => {
                let start = arguments.trim_start();
                let name_end =
                    start.find(|c: char| c.is_whitespace() || c == ']').unwrap_or(start.len());
                let (name, tail) = start.split_at(name_end);
                if tail.trim_start().starts_with("]]") {
                    let (_, after) = close(tail)?;
                    return Ok(Self { text: name, json: None, after });
                }
                Ok(Self { text: name, ..Self::with_json(tail)? })
            }
            _ => {
                let (text, after) = close(arguments)?;
                Ok(Self { text: text.trim(), json: None, after })
            }
        }
    }

    fn with_json(source: &'a str) -> Result<Self, String> {
        let mut values = serde_json::Deserializer::from_str(source).into_iter::<Value>();
        let json = match values.next() {
            Some(Ok(json)) => json,
            Some(Err(error)) => return Err(format!("not JSON: {error}")),
            None => return Err("JSON is missing".to_owned()),
        };
        let (text, tail) = source.split_at(values.byte_offset());
        let Some(after) = tail.trim_start().strip_prefix("]]") else {
            return Err("`]]` must follow the JSON".to_owned());
        };
        Ok(Self { text: text.trim(), json: Some(json), after })
    }
}

/// Splits at the `]]` that closes the directive. Pairs nest, so that a command may hold `[[ -f x ]]`.
fn close(source: &str) -> Result<(&str, &str), String> {
    let mut depth = 0_usize;
    let mut at = 0;
    let bytes = source.as_bytes();
    while at < bytes.len() {
        match &bytes[at..] {
            [b'[', b'[', ..] => {
                depth += 1;
                at += 2;
            }
            [b']', b']', ..] if depth == 0 => {
                // `${a[0]}]]]`: the last two of a run of brackets close the directive.
                let extra = bytes[at + 2..].iter().take_while(|b| **b == b']').count();
                return Ok((&source[..at + extra], &source[at + extra + 2..]));
            }
            [b']', b']', ..] => {
                depth -= 1;
                at += 2;
            }
            _ => at += 1,
        }
    }
    Err("it is never closed with `]]`".to_owned())
}

fn directive(word: &str, body: &Body<'_>) -> Result<Directive, String> {
    let text = body.text;
    let needed = |what: &str| {
        if text.is_empty() { Err(format!("{what} is missing")) } else { Ok(text.to_owned()) }
    };
    Ok(match word {
        "run" => Directive::Run(needed("the command")?),
        "escalate" => Directive::Escalate(needed("the command")?),
        "ask" => Directive::Ask(questions(text)?),
        "permit" => match &body.json {
            Some(permissions @ Value::Object(_)) => Directive::Permit(permissions.clone()),
            _ => return Err("the permissions are an object".to_owned()),
        },
        "review" => Directive::Review(review(text)?),
        "tool" => Directive::Tool {
            name: needed("the tool's name")?,
            arguments: body.json.clone().unwrap_or(Value::Object(Map::new())),
        },
        "plan" => {
            let steps: Vec<String> = text
                .split(';')
                .map(str::trim)
                .filter(|step| !step.is_empty())
                .map(str::to_owned)
                .collect();
            if steps.is_empty() {
                return Err("the steps are missing".to_owned());
            }
            Directive::Plan(steps)
        }
        "patch" => {
            let body = needed("the patch")?;
            Directive::Patch(if body.starts_with("*** Begin Patch") {
                body
            } else {
                format!("*** Begin Patch\n{body}\n*** End Patch")
            })
        }
        "write" => {
            let whole = needed("the file")?;
            let (file, content) = whole.split_once(char::is_whitespace).unwrap_or((&whole, ""));
            let lines: String = content.lines().map(|line| format!("+{line}\n")).collect();
            Directive::Patch(format!("*** Begin Patch\n*** Add File: {file}\n{lines}*** End Patch"))
        }
        "reason" => Directive::Reason(needed("the text")?),
        "say" => Directive::Say(needed("the text")?),
        "json" => Directive::Say(needed("JSON")?),
        "show" => {
            if !text.is_empty() && !text.starts_with('/') {
                return Err("a JSON pointer is empty or starts with `/`".to_owned());
            }
            Directive::Show(text.to_owned())
        }
        "words" => Directive::Words(count(text, MAX_WORDS)?),
        "bytes" => Directive::Bytes(count(text, MAX_BYTES)?),
        "slow" => Directive::Slow(match text.parse() {
            Ok(millis) => Duration::from_millis(millis),
            Err(_) => duration(text)?,
        }),
        "wait" => Directive::Wait(duration(text)?),
        "status" => {
            let (code, retry_after) = match text.split_once(char::is_whitespace) {
                Some((code, seconds)) => (
                    code,
                    Some(
                        seconds
                            .trim()
                            .parse()
                            .map_err(|_| format!("`{seconds}` is not a number of seconds"))?,
                    ),
                ),
                None => (text, None),
            };
            match code.parse() {
                Ok(code @ 400..=599) => Directive::Status { code, retry_after },
                _ => return Err("a status is a number from 400 to 599".to_owned()),
            }
        }
        "fail" => {
            let text = needed("the error code")?;
            match text.split_once(char::is_whitespace) {
                Some((code, message)) => Directive::Fail {
                    code: code.to_owned(),
                    message: Some(message.trim().to_owned()),
                },
                None => Directive::Fail { code: text, message: None },
            }
        }
        "incomplete" => Directive::Incomplete(needed("the reason")?),
        "and" | "next" | "end" | "cut" | "hang" if !text.is_empty() => {
            return Err("it takes no arguments".to_owned());
        }
        "and" => Directive::And,
        "next" => Directive::Next,
        "end" => Directive::End,
        "cut" => Directive::Cut,
        "hang" => Directive::Hang,
        _ => return Err(format!("there is no directive `{word}`")),
    })
}

/// `Which? | this | that`, and more of them after `;`.
fn questions(text: &str) -> Result<Vec<Question>, String> {
    let question = |text: &str| {
        let mut parts = text.split('|').map(|part| part.trim().to_owned());
        let text = parts.next().filter(|text| !text.is_empty())?;
        let options: Vec<String> = parts.filter(|option| !option.is_empty()).collect();
        (!options.is_empty()).then_some(Question { text, options })
    };
    let asked = text.split(';').map(question).collect::<Option<Vec<Question>>>();
    asked.ok_or_else(|| "a question and what to choose from are needed: `Q? | A | B`".to_owned())
}

/// `allow WHY`, `deny WHY`, `nonsense` or `hang`.
fn review(text: &str) -> Result<Verdict, String> {
    let (word, why) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let why = || match why.trim() {
        "" => "as the prompt asked".to_owned(),
        why => why.to_owned(),
    };
    match word {
        "allow" => Ok(Verdict::Allow(why())),
        "deny" => Ok(Verdict::Deny(why())),
        "nonsense" => Ok(Verdict::Nonsense),
        "hang" => Ok(Verdict::Hang),
        _ => Err("a review is `allow`, `deny`, `nonsense` or `hang`".to_owned()),
    }
}

fn count(text: &str, most: usize) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=most).contains(&n) => Ok(n),
        _ => Err(format!("a number from 1 to {most} is needed")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("`{text}` is not a duration such as `500ms`: {error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn directives_are_read_in_order_and_other_text_is_ignored() {
        let prompt = "please [[wait 1s 500ms]] then [[run if [[ -f a ]]; then echo ${b[0]}; fi]] and\n\
                      [[tool db.query {\"sql\": \"select ']]' from [[t\", \"n\": [[1]]}]][[tool ping]]\n\
                      [[slow 20]][[json [1,[2]]]] [[status 429 7]] [[fail boom because of it]] \
                      [[incomplete content_filter]] [[next]][[cut]]";
        assert_eq!(
            parse(prompt),
            Ok(vec![
                Directive::Wait(Duration::from_millis(1500)),
                Directive::Run("if [[ -f a ]]; then echo ${b[0]}; fi".into()),
                Directive::Tool {
                    name: "db.query".into(),
                    arguments: json!({"sql": "select ']]' from [[t", "n": [[1]]}),
                },
                Directive::Tool { name: "ping".into(), arguments: json!({}) },
                Directive::Slow(Duration::from_millis(20)),
                Directive::Say("[1,[2]]".into()),
                Directive::Status { code: 429, retry_after: Some(7) },
                Directive::Fail { code: "boom".into(), message: Some("because of it".into()) },
                Directive::Incomplete("content_filter".into()),
                Directive::Next,
                Directive::Cut,
            ])
        );
    }

    #[test]
    fn files_become_patches() {
        assert_eq!(
            parse("[[write a/b.txt one\ntwo]]"),
            Ok(vec![Directive::Patch(
                "*** Begin Patch\n*** Add File: a/b.txt\n+one\n+two\n*** End Patch".into()
            )])
        );
        assert_eq!(
            parse("[[patch\n*** Delete File: x\n]]"),
            Ok(vec![Directive::Patch("*** Begin Patch\n*** Delete File: x\n*** End Patch".into())])
        );
    }

    #[test]
    fn what_is_asked_is_read() {
        let question = |text: &str, options: &[&str]| Question {
            text: text.to_owned(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        };
        assert_eq!(
            parse(
                "[[ask Which? | Red | Blue; And? | A]] [[permit {\"network\": {\"enabled\": true}}]] \
                 [[escalate ls]] [[and]] [[review deny]]"
            ),
            Ok(vec![
                Directive::Ask(vec![
                    question("Which?", &["Red", "Blue"]),
                    question("And?", &["A"])
                ]),
                Directive::Permit(json!({"network": {"enabled": true}})),
                Directive::Escalate("ls".into()),
                Directive::And,
                Directive::Review(Verdict::Deny("as the prompt asked".into())),
            ])
        );
    }

    #[test]
    fn the_last_verdict_in_a_text_counts() {
        let allow = Some(Verdict::Allow("it is fine".into()));
        assert_eq!(verdict("x [[review deny no]] y [[review allow it is fine]] z"), allow);
        assert_eq!(verdict("[[review allow it is fine]] [[review perhaps]] [[review"), allow);
        assert_eq!(verdict("no [[say review]]"), None);
    }

    #[test]
    fn prose_with_brackets_is_prose() {
        for prompt in ["if [[ -f x ]]; then", "[[[", "[[1],[2]]", "[[Bin]]", "]]", ""] {
            assert_eq!(parse(prompt), Ok(vec![]), "{prompt}");
        }
    }

    #[test]
    fn a_mistake_is_named_and_quoted() {
        for (prompt, why) in [
            ("[[run ls", "never closed"),
            ("[[run ]]", "the command is missing"),
            ("[[frobnicate 1]]", "no directive `frobnicate`"),
            ("[[words many]]", "from 1 to 1000000"),
            ("[[bytes 67108865]]", "from 1 to 67108864"),
            ("[[wait soon]]", "not a duration"),
            ("[[status 200]]", "from 400 to 599"),
            ("[[status 429 soon]]", "not a number of seconds"),
            ("[[json {]]", "not JSON"),
            ("[[json {} {}]]", "must follow the JSON"),
            ("[[tool x nope]]", "not JSON"),
            ("[[cut now]]", "takes no arguments"),
            ("[[ask Which?]]", "what to choose from"),
            ("[[ask ; A | B]]", "a question"),
            ("[[permit 7]]", "an object"),
            ("[[permit]]", "not JSON"),
            ("[[review perhaps]]", "`allow`, `deny`"),
            ("[[say fine]] [[plan ;]]", "the steps are missing"),
        ] {
            let error = parse(prompt).unwrap_err().to_string();
            assert!(error.contains(why), "{prompt}: {error}");
            assert!(error.contains("malformed directive [["), "{error}");
        }
        let long = parse(&format!("[[run {}", "é".repeat(200))).unwrap_err();
        assert_eq!(long.excerpt.chars().count(), EXCERPT_CHARS + 1);
    }
}
