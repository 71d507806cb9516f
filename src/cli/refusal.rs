//! Refusals of the sidecar in the words of the command line: `--cd`, and not
//! `thread_options.working_directory`; told once, with the exit code that says what kind it is.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value};

use super::failure::{Detailed, Failure};
use super::{OUT_OF_TIME, REFUSED, UNREACHABLE};
use crate::grpc::caller::Refused;
use crate::pb;
use crate::pb::user_input::Input;

/// Fields of requests, and the arguments that say them. What is within a field is named after it.
const ARGUMENTS: &[(&str, &str)] = &[
    ("thread_options.additional_directories", "--add-dir"),
    ("thread_options.approval_policy", "--approval"),
    ("thread_options.approvals_reviewer", "--reviewer"),
    ("thread_options.base_instructions", "--base-instructions"),
    ("thread_options.config", "-c"),
    ("thread_options.developer_instructions", "--developer-instructions"),
    ("thread_options.model_reasoning_effort_name", "--effort"),
    ("thread_options.model_reasoning_effort", "--effort"),
    ("thread_options.model", "--model"),
    ("thread_options.network_access_enabled", "--network"),
    ("thread_options.permission_profile", "--permission-profile"),
    ("thread_options.reasoning_summary", "--reasoning-summary"),
    ("thread_options.sandbox_mode", "--sandbox"),
    ("thread_options.service_tier", "--service-tier"),
    ("thread_options.skip_git_repo_check", "--skip-git-repo-check"),
    ("thread_options.web_search_mode", "--web-search"),
    ("thread_options.working_directory", "--cd"),
    ("turn_options.answer_timeout", "--answer-timeout"),
    ("turn_options.idle_timeout", "--idle-timeout"),
    ("turn_options.max_total_tokens", "--max-total-tokens"),
    ("turn_options.output_schema", "--output-schema"),
    ("turn_options.turn_timeout", "--turn-timeout"),
    ("review.base_branch", "--review base=BRANCH"),
    ("review.commit", "--review commit=COMMIT"),
    ("review.instructions", "--review TEXT"),
    ("missing_thread_policy", "--missing-thread"),
    ("disconnect_policy", "--on-disconnect"),
    ("question_policy", "--on-question"),
    ("context_policy", "--context-policy"),
    ("busy_policy", "--busy"),
    ("after_sequence", "--after"),
    ("thread_id_key", "--thread-key"),
    ("context_id", "--context"),
    ("request_id", "--request-id"),
    ("tool_name", "--tool"),
    ("thread_id", "--thread"),
    ("ephemeral", "--ephemeral"),
    ("turn_id", "TURN"),
    ("compact", "--compact"),
    ("review", "--review"),
    ("inputs", "PROMPT"),
];

/// What the inputs of a request are called on its command line, beside what is the same for all.
#[derive(Debug, Default)]
pub(super) struct Words {
    inputs: Vec<String>,
}

impl Words {
    /// Those of a request that came from a command line.
    pub(super) fn of(inputs: &[pb::UserInput]) -> Words {
        let name = |input: &pb::UserInput| match &input.input {
            Some(Input::LocalImage(image)) => format!("--image {}", image.path),
            Some(Input::Skill(skill)) => format!("--skill {}", skill.name),
            Some(Input::Mention(mention)) => format!("--mention {}", mention.name),
            Some(Input::ExternalMessage(message)) => format!("--external {}", message.source),
            Some(Input::Text(_) | Input::ImageUrl(_)) | None => "PROMPT".to_owned(),
        };
        Words { inputs: inputs.iter().map(name).collect() }
    }

    /// The argument that says a field; the field's own name where none does.
    fn argument(&self, field: &str) -> String {
        if let Some(named) = self.input(field) {
            return named.to_owned();
        }
        let found = ARGUMENTS.iter().find_map(|(name, argument)| {
            let rest = field.strip_prefix(name)?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then_some((argument, rest))
        });
        match found {
            Some((argument, "")) => (*argument).to_owned(),
            // `thread_options.config["a.b"]` is `-c a.b`, the second directory is the second --add-dir.
            Some((argument, rest)) => format!("{argument} {}", inside(rest)),
            None => field.to_owned(),
        }
    }

    fn input(&self, field: &str) -> Option<&str> {
        let (at, _) = field.strip_prefix("inputs[")?.split_once(']')?;
        self.inputs.get(at.parse::<usize>().ok()?).map(String::as_str)
    }

    /// A text with the arguments in place of the fields that it names.
    fn text(&self, text: &str) -> String {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '[' | ']');
        let mut told = String::new();
        let mut rest = text;
        while let Some(start) = rest.find(is_part) {
            told.push_str(&rest[..start]);
            let word = &rest[start..];
            let word = &word[..word.find(|c| !is_part(c)).unwrap_or(word.len())];
            rest = &rest[start + word.len()..];
            let field = word.trim_end_matches('.');
            // A word of a sentence may be a field's name by chance: only paths are taken for fields.
            let is_path = field.contains(['.', '_']) || field.starts_with("inputs[");
            if is_path && self.is_known(field) {
                told.push_str(&self.argument(field));
                told.push_str(&word[field.len()..]);
            } else {
                told.push_str(word);
            }
        }
        told.push_str(rest);
        told.replace("or set --", "or give --")
    }

    fn is_known(&self, field: &str) -> bool {
        self.argument(field) != field
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
            // Its fault is a sentence that names the argument.
            [(argument, fault)] if fault.starts_with(argument.as_str()) => fault.clone(),
            [(argument, fault)] => format!("{argument}: {fault}"),
            faults => {
                let lines =
                    faults.iter().map(|(argument, fault)| format!("\n  {argument}: {fault}"));
                format!("the request is refused:{}", lines.collect::<String>())
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
        let mut told = message;
        let _ = write!(told, " ({})", reason.as_deref().unwrap_or(status));
        if let Some(delay) = retry_after {
            let delay = Duration::from_millis(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX));
            insert("retry_after_seconds", delay.as_secs_f64().into());
            let _ = write!(told, "; try again after {}", humantime::format_duration(delay));
        }
        Failure::Detailed(Box::new(Detailed { message: told, code, details }))
    }
}

/// What is within a field, for people: `["a.b"]` is `a.b`, `[1]` the second.
fn inside(rest: &str) -> String {
    let bare = rest.trim_start_matches(['.', '[']).trim_end_matches(']');
    match bare.parse::<usize>() {
        Ok(at) => format!("number {}", at + 1),
        Err(_) => bare.trim_matches('"').to_owned(),
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
mod tests {
    use super::*;

    fn refused(
        code: &'static str,
        reason: &str,
        message: &str,
        fields: &[(&str, &str)],
    ) -> Refused {
        Refused {
            code,
            reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
            message: message.to_owned(),
            fields: fields
                .iter()
                .map(|(field, fault)| ((*field).to_owned(), (*fault).to_owned()))
                .collect(),
            retry_after: None,
        }
    }

    fn told(refused: Refused) -> (String, u8) {
        let text = |text: &str| pb::UserInput { input: Some(Input::Text(text.to_owned())) };
        let image = pb::LocalImage { path: "/a.png".to_owned() };
        let inputs = [text("x"), pb::UserInput { input: Some(Input::LocalImage(image)) }];
        match Words::of(&inputs).failure(refused) {
            Failure::Detailed(detailed) => (detailed.message, detailed.code),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_names_the_arguments_and_says_everything_once() {
        let sentence = "thread_options.working_directory /x is not inside a git repository; name one \
                        that is, or set thread_options.skip_git_repo_check";
        let field = [("thread_options.working_directory", sentence)];
        let one = refused("FAILED_PRECONDITION", "NOT_A_GIT_REPOSITORY", sentence, &field);
        let expected = "--cd /x is not inside a git repository; name one that is, or give \
                        --skip-git-repo-check (NOT_A_GIT_REPOSITORY)";
        assert_eq!(told(one), (expected.to_owned(), REFUSED));

        let fields = [
            ("inputs[0].text", "is blank"),
            ("inputs[1].local_image.path", "is no image"),
            ("thread_options.config[\"a.b\"]", "is odd"),
            ("thread_options.additional_directories[1]", "is relative"),
            ("turn_options.idle_timeout", "is above turn_options.turn_timeout."),
            ("something.new", "is not known here"),
        ];
        let many = refused("INVALID_ARGUMENT", "INVALID_INPUT", "6 faults: …", &fields);
        let expected = "the request is refused:\n  PROMPT: is blank\n  --image /a.png: is no image\n  \
                        -c a.b: is odd\n  --add-dir number 2: is relative\n  --idle-timeout: is above \
                        --turn-timeout.\n  something.new: is not known here (INVALID_INPUT)";
        assert_eq!(told(many), (expected.to_owned(), REFUSED));
    }

    #[test]
    fn words_that_are_no_paths_stay() {
        let message = "the context is busy: a review runs in turn_id 7";
        let busy = refused("ABORTED", "CONTEXT_BUSY", message, &[]);
        let expected = "the context is busy: a review runs in TURN 7 (CONTEXT_BUSY)";
        assert_eq!(told(busy), (expected.to_owned(), REFUSED));
    }

    #[test]
    fn the_exit_code_tells_what_kind_it_is() {
        let code = |code, reason| told(refused(code, reason, "x", &[])).1;
        assert_eq!(code("UNAVAILABLE", "DRAINING"), 69);
        assert_eq!(code("UNAVAILABLE", ""), 69);
        assert_eq!(code("CANCELLED", ""), 69);
        assert_eq!(code("UNAVAILABLE", "WORKER_UNAVAILABLE"), 3);
        assert_eq!(code("NOT_FOUND", "THREAD_NOT_FOUND"), 3);
        assert_eq!(code("UNAUTHENTICATED", ""), 3);
        assert_eq!(code("DEADLINE_EXCEEDED", ""), 4);
    }

    #[test]
    fn a_script_gets_the_parts() {
        let field = [("thread_options.model", "is empty")];
        let mut refused = refused("INVALID_ARGUMENT", "INVALID_INPUT", "invalid", &field);
        refused.retry_after = Some(Duration::from_millis(1500));
        let Failure::Detailed(detailed) = failure(refused) else { panic!() };
        let expected = serde_json::json!({
            "code": "INVALID_ARGUMENT", "reason": "INVALID_INPUT", "message": "--model: is empty",
            "fields": [
                {"field": "thread_options.model", "argument": "--model", "message": "is empty"}
            ],
            "retry_after_seconds": 1.5,
        });
        assert_eq!(Value::from(detailed.details), expected);
    }
}
