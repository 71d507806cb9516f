//! What arguments of several subcommands have in common.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read as _};
use std::path::Path;
use std::time::Duration;

use super::failure::Failure;
use crate::pb;
use crate::pb::user_input::Input;

/// Longest prompt that is read from stdin, in bytes: as many characters as Codex takes need no more.
const LONGEST_PROMPT: u64 = 4 << 20;

/// A duration: `500ms`, `30s`, `10m`, or plain seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if is_number {
        let seconds = text.parse::<f64>().ok();
        return seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| "is no number of seconds".to_owned());
    }
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write seconds, or 500ms, 30s, 10m"))
}

/// One that must not be zero.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be above zero".to_owned()),
        duration => Ok(duration),
    }
}

/// The command line with the values of `run`'s flags that need none joined to them, so that
/// `--web-search live` and `--web-search=live` are the same, and `--web-search PROMPT` has a prompt.
pub(super) fn joined(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    const VALUES: [(&str, &[&str]); 2] =
        [("--network", &["true", "false"]), ("--web-search", &["disabled", "cached", "live"])];
    let mut joined: Vec<OsString> = Vec::new();
    let mut is_over = false;
    for word in words {
        // Behind it everything is an argument of its own.
        is_over |= word == "--";
        let is_run = joined.get(1).is_some_and(|name| name == "run");
        if let Some(flag) = joined.last_mut().filter(|_| is_run && !is_over) {
            let takes = |(name, values): &(&str, &[&str])| {
                flag == name && values.iter().any(|value| word == *value)
            };
            if VALUES.iter().any(takes) {
                flag.push("=");
                flag.push(&word);
                continue;
            }
        }
        joined.push(word);
    }
    joined
}

/// The duration as the contract has it.
pub(crate) fn to_protobuf(duration: Duration) -> Result<prost_types::Duration, Failure> {
    duration.try_into().map_err(|_| Failure::usage(format!("{duration:?} is too long")))
}

/// The path from the root: the sidecar works in another directory than this client.
pub(super) fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path).map_err(|error| {
        Failure::usage(format!("{} can't be made absolute: {error}", path.display()))
    })?;
    let text = absolute.to_str();
    text.map(str::to_owned)
        .ok_or_else(|| Failure::usage(format!("{} is not UTF-8", path.display())))
}

/// The number of an enum's value, zero where none is chosen.
pub(super) fn number<E: Into<i32>>(
    by_name: fn(&str) -> Option<E>,
    prefix: &str,
    text: &Option<String>,
) -> i32 {
    let text = text.as_deref();
    text.and_then(|text| by_name(&enum_name(prefix, text))).map_or(0, Into::into)
}

/// `read-only` as the contract spells it: `SANDBOX_MODE_READ_ONLY`.
pub(super) fn enum_name(prefix: &str, text: &str) -> String {
    format!("{prefix}{}", text.to_ascii_uppercase().replace('-', "_"))
}

/// The prompt: the argument, or what stdin has where that is `-` or missing and stdin is no terminal.
pub(super) fn prompt(argument: Option<&str>) -> Result<String, Failure> {
    match argument {
        Some("-") => {}
        Some(prompt) => return Ok(prompt.to_owned()),
        None if io::stdin().is_terminal() => {
            return Err(Failure::usage(
                "there is no PROMPT: give it as the last argument, or pipe it in",
            ));
        }
        None => {}
    }
    let mut bytes = Vec::new();
    io::stdin()
        .take(LONGEST_PROMPT + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::usage(format!("can't read the prompt from stdin: {error}")))?;
    if bytes.len() as u64 > LONGEST_PROMPT {
        return Err(Failure::usage(
            "the prompt from stdin is longer than 4 MiB: put it into a file that Codex can read",
        ));
    }
    let prompt = String::from_utf8(bytes)
        .map_err(|_| Failure::usage("the prompt from stdin is not UTF-8"))?;
    if prompt.trim().is_empty() {
        return Err(Failure::usage(
            "there is no PROMPT: stdin is empty; give it as the last argument, or pipe it in",
        ));
    }
    Ok(prompt)
}

/// What is said to Codex beside a prompt.
#[derive(Debug, Default, clap::Args)]
pub(super) struct InputArgs {
    /// An image to show, a file on the sidecar's machine; may be given several times
    #[arg(long, value_name = "FILE", help_heading = "What to say")]
    pub(super) image: Vec<std::path::PathBuf>,
    /// A skill that the model is to use, with its SKILL.md; may be given several times
    #[arg(long, value_name = "NAME=FILE", help_heading = "What to say")]
    pub(super) skill: Vec<String>,
    /// A file, an app or a plugin that the prompt speaks of: a path, or an address such as app://ID; may
    /// be given several times
    #[arg(long, value_name = "NAME=PATH", help_heading = "What to say")]
    pub(super) mention: Vec<String>,
    /// Text from outside, which the model must not take for your word; may be given several times
    #[arg(long, value_name = "SOURCE=TEXT", help_heading = "What to say")]
    pub(super) external: Vec<String>,
}

impl InputArgs {
    /// The inputs in the order of the contract's kinds, the prompt first.
    pub(super) fn inputs(&self, prompt: Option<String>) -> Result<Vec<pb::UserInput>, Failure> {
        let mut inputs: Vec<Input> = prompt.map(Input::Text).into_iter().collect();
        for path in &self.image {
            inputs.push(Input::LocalImage(pb::LocalImage { path: absolute(path)? }));
        }
        for skill in &self.skill {
            let (name, path) = parts("--skill", "NAME=FILE", skill)?;
            inputs.push(Input::Skill(pb::Skill { name, path: absolute(Path::new(&path))? }));
        }
        for mention in &self.mention {
            let (name, path) = parts("--mention", "NAME=PATH", mention)?;
            let path = if path.contains("://") { path } else { absolute(Path::new(&path))? };
            inputs.push(Input::Mention(pb::Mention { name, path }));
        }
        for external in &self.external {
            let (source, text) = parts("--external", "SOURCE=TEXT", external)?;
            inputs.push(Input::ExternalMessage(pb::ExternalMessage { source, text }));
        }
        Ok(inputs.into_iter().map(|input| pb::UserInput { input: Some(input) }).collect())
    }
}

/// What stands before and behind the first `=`.
pub(crate) fn parts(flag: &str, form: &str, text: &str) -> Result<(String, String), Failure> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() && !value.is_empty() => {
            Ok((name.trim().to_owned(), value.to_owned()))
        }
        _ => Err(Failure::usage(format!("{flag} {text:?}: wants {form}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_duration_is_a_text_or_plain_seconds() {
        let cases =
            [("30", 30_000), ("0.5", 500), ("500ms", 500), ("10m", 600_000), (" 1m 30s ", 90_000)];
        for (text, millis) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert!(positive_duration("0").is_err() && positive_duration("1").is_ok());
        for wrong in ["", "soon", "-1", ".", "1.2.3", "30 parsecs"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_value_that_need_not_be_there_may_follow_its_flag() {
        let join = |line: &str| {
            let words = joined(line.split(' ').map(OsString::from));
            words.join(OsStr::new(" ")).into_string().unwrap()
        };
        let cases = [
            ("x run --web-search live hi", "x run --web-search=live hi"),
            ("x run --web-search hi", "x run --web-search hi"),
            ("x run --network --web-search hi", "x run --network --web-search hi"),
            ("x run --network false hi", "x run --network=false hi"),
            ("x run -- --network false", "x run -- --network false"),
            ("x exec --network false", "x exec --network false"),
        ];
        for (line, expected) in cases {
            assert_eq!(join(line), expected);
        }
    }

    #[test]
    fn every_kind_of_input_is_said_in_its_place() {
        let args = InputArgs {
            image: vec!["/i.png".into()],
            skill: vec!["review=/s/SKILL.md".to_owned()],
            mention: vec!["mail=app://mail".to_owned(), "notes=/n.md".to_owned()],
            external: vec!["github:issue/12=a=b".to_owned()],
        };
        let (name, path) = ("review".to_owned(), "/s/SKILL.md".to_owned());
        let mention = |name: &str, path: &str| {
            Input::Mention(pb::Mention { name: name.to_owned(), path: path.to_owned() })
        };
        let (source, text) = ("github:issue/12".to_owned(), "a=b".to_owned());
        let expected = [
            Input::Text("hi".to_owned()),
            Input::LocalImage(pb::LocalImage { path: "/i.png".to_owned() }),
            Input::Skill(pb::Skill { name, path }),
            mention("mail", "app://mail"),
            mention("notes", "/n.md"),
            Input::ExternalMessage(pb::ExternalMessage { source, text }),
        ];
        let inputs = args.inputs(Some("hi".to_owned())).unwrap();
        let inputs: Vec<Input> = inputs.into_iter().filter_map(|input| input.input).collect();
        assert_eq!(inputs, expected);
        for wrong in ["x", "=x", "x="] {
            let args = InputArgs { skill: vec![wrong.to_owned()], ..Default::default() };
            assert!(args.inputs(None).is_err(), "{wrong}");
        }
    }
}
