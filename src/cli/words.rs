//! The contract in words for people.

use std::time::{Duration, SystemTime};

use crate::pb;
use crate::pb::codex_request::Kind as Question;

/// A text that is empty in the contract, as a dash.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { plain(text) }
}

/// The text in one line and without control characters, which could play tricks on a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An enum's name in the contract without its prefix, as a word: `WORKER_STATE_READY` is `ready`.
pub(super) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_ascii_lowercase().replace('_', " ")
}

/// How long ago a time was, in its largest unit or two.
pub(super) fn ago(time: Option<&prost_types::Timestamp>) -> String {
    let elapsed = time
        .and_then(|time| SystemTime::try_from(*time).ok())
        .and_then(|time| time.elapsed().ok())
        // Below a second it would only be noise.
        .map(|elapsed| Duration::from_secs(elapsed.as_secs()));
    let Some(elapsed) = elapsed else {
        return "-".to_owned();
    };
    let text = humantime::format_duration(elapsed).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// What was used.
pub(super) fn show_usage(usage: Option<&pb::Usage>) -> String {
    let Some(usage) = usage else {
        return "not known".to_owned();
    };
    format!(
        "{} in ({} cached), {} out ({} reasoning)",
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        usage.reasoning_output_tokens
    )
}

/// How long something took, if it is known.
pub(super) fn show_time(duration: Option<&prost_types::Duration>) -> String {
    match duration.and_then(|duration| Duration::try_from(*duration).ok()) {
        Some(duration) => format!(" after {}", show_duration(duration)),
        None => String::new(),
    }
}

/// A duration in milliseconds, or seconds where it is long.
pub(super) fn show_duration(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis < 10_000 => format!("{millis} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}

/// Why a turn failed, in one line.
pub(super) fn show_error(error: &pb::TurnError) -> String {
    let mut text = format!("{}: {}", error.reason, error.message);
    if let Some(status) = error.http_status {
        text = format!("{text} (HTTP status {status})");
    }
    if !error.details.is_empty() {
        text = format!("{text}: {}", error.details);
    }
    plain(&text)
}

/// What is asked, in one line.
pub(super) fn show_question(question: &pb::CodexRequest) -> String {
    let text = match &question.kind {
        Some(Question::CommandApproval(asked)) => match &asked.network_access {
            Some(network) if asked.command.is_empty() => {
                format!("may it reach {} by {}? {}", network.host, network.protocol, asked.reason)
            }
            _ => format!("may `{}` run? {}", asked.command, asked.reason),
        },
        Some(Question::FileChangeApproval(asked)) => {
            let paths: Vec<&str> = asked.changes.iter().map(|file| file.path.as_str()).collect();
            format!("may these files be changed: {}? {}", paths.join(", "), asked.reason)
        }
        Some(Question::PermissionsApproval(asked)) => {
            format!("may it have {}? {}", asked.permissions_json, asked.reason)
        }
        Some(Question::UserQuestions(asked)) => {
            let texts: Vec<&str> = asked.questions.iter().map(|one| one.text.as_str()).collect();
            texts.join(" ")
        }
        Some(Question::Elicitation(asked)) => format!("{}: {}", asked.server_name, asked.message),
        Some(Question::ToolCall(asked)) => format!("call {} {}", asked.tool, asked.arguments_json),
        Some(Question::Unknown(asked)) => format!("{} {}", asked.method, asked.json),
        None => "something that this client does not know".to_owned(),
    };
    plain(text.trim_end())
}
