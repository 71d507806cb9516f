//! Codex's errors of a turn, and what they mean for whoever might try again.

use serde::Deserialize;
use serde_json::Value;

use super::retry;
use crate::model::failure::{FailureReason, TurnError};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CodexTurnError {
    #[serde(default)]
    message: String,
    #[serde(default)]
    codex_error_info: Value,
    #[serde(default)]
    additional_details: Option<String>,
}

impl From<CodexTurnError> for TurnError {
    fn from(error: CodexTurnError) -> TurnError {
        let CodexTurnError { message, codex_error_info, additional_details } = error;
        // Either a bare name, or an object with the name as its only key.
        let (name, info) = match &codex_error_info {
            Value::String(name) => (name.as_str(), &Value::Null),
            Value::Object(object) => object
                .iter()
                .next()
                .map_or(("other", &Value::Null), |(name, info)| (name.as_str(), info)),
            _ => ("other", &Value::Null),
        };
        let details = additional_details.unwrap_or_default();
        let http_status = info["httpStatusCode"]
            .as_u64()
            .and_then(|status| u16::try_from(status).ok())
            .or_else(|| status_in(&message))
            .or_else(|| status_in(&details));
        let is_filtered = [&message, &details].iter().any(|text| text.contains(INCOMPLETE));
        let reason = match failure_reason(name) {
            // An answer that the provider ended on purpose, which Codex tells like a broken stream.
            FailureReason::CodexError | FailureReason::ResponseStreamDisconnected
                if is_filtered =>
            {
                FailureReason::CodexError
            }
            // Codex has a name for this failure, and says `other` all the same.
            FailureReason::CodexError if message.starts_with(STREAM_DISCONNECTED) => {
                FailureReason::ResponseStreamDisconnected
            }
            // The body of a 400 is all that Codex tells of it.
            FailureReason::CodexError if http_status.is_none() && is_refusal(&message) => {
                FailureReason::BadRequest
            }
            reason => by_status(reason, http_status),
        };
        let is_about_a_limit = matches!(
            reason,
            FailureReason::RateLimitExceeded
                | FailureReason::UsageLimitExceeded
                | FailureReason::ServerOverloaded
        );
        let retry_after_in = |text: &str| retry::retry_after_in(text, is_about_a_limit);
        let retry_after = retry_after_in(&message).or_else(|| retry_after_in(&details));
        TurnError {
            retryable: !is_filtered && is_retryable(reason, http_status),
            retry_after: retry_after.and_then(|after| after.try_into().ok()),
            details,
            http_status: http_status.map(i32::from),
            ..TurnError::new(reason, message)
        }
    }
}

/// How Codex's message begins when the provider broke off in the middle of an answer.
const STREAM_DISCONNECTED: &str = "stream disconnected before completion";

/// What Codex says when the provider ended an answer as incomplete: `… reason: content_filter`.
const INCOMPLETE: &str = "Incomplete response returned";

/// What a status says of a failure that Codex names only by where it happened.
fn by_status(reason: FailureReason, http_status: Option<u16>) -> FailureReason {
    match (reason, http_status) {
        (
            FailureReason::HttpConnectionFailed
            | FailureReason::ResponseStreamConnectionFailed
            | FailureReason::ResponseStreamDisconnected
            | FailureReason::ResponseTooManyFailedAttempts
            | FailureReason::CodexError,
            Some(status),
        ) => match status {
            400 => FailureReason::BadRequest,
            401 => FailureReason::Unauthorized,
            429 => FailureReason::RateLimitExceeded,
            _ => reason,
        },
        _ => reason,
    }
}

/// The reasons by their names in `CodexErrorInfo` of the CLI's schema.
pub(crate) fn failure_reason(name: &str) -> FailureReason {
    match name {
        "contextWindowExceeded" => FailureReason::ContextWindowExceeded,
        "sessionBudgetExceeded" => FailureReason::SessionBudgetExceeded,
        "usageLimitExceeded" => FailureReason::UsageLimitExceeded,
        "rateLimitExceeded" => FailureReason::RateLimitExceeded,
        "flexUnavailable" => FailureReason::FlexUnavailable,
        "serverOverloaded" => FailureReason::ServerOverloaded,
        "modelNotFound" => FailureReason::ModelNotFound,
        "policyCapacityUnavailable" => FailureReason::PolicyCapacityUnavailable,
        "inferenceHookDenied" => FailureReason::InferenceHookDenied,
        "cyberPolicy" => FailureReason::CyberPolicy,
        "misalignmentPolicyViolation" => FailureReason::MisalignmentPolicyViolation,
        "tooManyDenials" => FailureReason::TooManyDenials,
        "httpConnectionFailed" => FailureReason::HttpConnectionFailed,
        "responseStreamConnectionFailed" => FailureReason::ResponseStreamConnectionFailed,
        "internalServerError" => FailureReason::InternalServerError,
        "unauthorized" => FailureReason::Unauthorized,
        "badRequest" => FailureReason::BadRequest,
        "threadRollbackFailed" => FailureReason::ThreadRollbackFailed,
        "sandboxError" => FailureReason::SandboxError,
        "responseStreamDisconnected" => FailureReason::ResponseStreamDisconnected,
        "responseTooManyFailedAttempts" => FailureReason::ResponseTooManyFailedAttempts,
        "activeTurnNotSteerable" => FailureReason::ActiveTurnNotSteerable,
        _ => FailureReason::CodexError,
    }
}

/// Whether a text is the body with which a provider refuses a request.
fn is_refusal(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|body| {
        body["error"].is_object() || body["error"].is_string() || !body["detail"].is_null()
    })
}

/// Whether the cause may be gone on a second try: the provider was overloaded, failing or out of
/// reach. What it refused it will refuse again.
fn is_retryable(reason: FailureReason, http_status: Option<u16>) -> bool {
    match reason {
        FailureReason::WorkerLost
        | FailureReason::SidecarRestarted
        | FailureReason::IdleTimeout
        | FailureReason::RateLimitExceeded
        | FailureReason::FlexUnavailable
        | FailureReason::ServerOverloaded
        | FailureReason::PolicyCapacityUnavailable
        | FailureReason::InternalServerError => true,
        FailureReason::HttpConnectionFailed
        | FailureReason::ResponseStreamConnectionFailed
        | FailureReason::ResponseStreamDisconnected
        | FailureReason::ResponseTooManyFailedAttempts => {
            http_status.is_none_or(|status| status >= 500 || status == 429)
        }
        FailureReason::CodexError => {
            http_status.is_some_and(|status| status >= 500 || status == 429)
        }
        FailureReason::TurnTimeout
        | FailureReason::WorkerProtocol
        | FailureReason::BudgetExceeded
        | FailureReason::ContextWindowExceeded
        | FailureReason::SessionBudgetExceeded
        | FailureReason::UsageLimitExceeded
        | FailureReason::ModelNotFound
        | FailureReason::InferenceHookDenied
        | FailureReason::CyberPolicy
        | FailureReason::MisalignmentPolicyViolation
        | FailureReason::TooManyDenials
        | FailureReason::Unauthorized
        | FailureReason::BadRequest
        | FailureReason::ThreadRollbackFailed
        | FailureReason::SandboxError
        | FailureReason::ActiveTurnNotSteerable
        | FailureReason::SettingsNotApplied => false,
    }
}

/// Codex names the status of some failures only in its text: `unexpected status 400 Bad Request: …`,
/// `exceeded retry limit, last status: 429 Too Many Requests`, a proxy's `HTTP 503`. The status of a
/// process (`exit status 137`) is none, nor is any other number.
fn status_in(text: &str) -> Option<u16> {
    let text = text.to_ascii_lowercase();
    let marks = ["status", "http", "http/1.0", "http/1.1", "http/2", "http/3"];
    let mut before = ["", ""];
    let mut is_marked = false;
    for word in text.split(|c: char| c.is_whitespace() || "\"'()[]{},;=".contains(c)) {
        let word = word.trim_matches([':', '.']);
        if word.is_empty() {
            continue;
        }
        // `status 429`, `status code: 429`, `HTTP status 429`, `status:429`.
        let (head, number) = word.rsplit_once(':').unwrap_or((before[1], word));
        let is_marked_here = if head == before[1] { is_marked } else { marks.contains(&head) };
        if is_marked_here
            && number.len() == 3
            && let Ok(status @ 400..=599) = number.parse()
        {
            return Some(status);
        }
        is_marked = match word {
            "code" => is_marked,
            "status" => !matches!(before[1], "exit" | "process" | "child" | "command" | "wait"),
            _ => marks.contains(&word),
        };
        before = [before[1], word];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_of_a_refusal_is_known_in_the_forms_of_several_providers() {
        for body in [
            r#"{"error":{"message":"no","code":null}}"#,
            r#"{"error":"model 'x' not found"}"#,
            r#"{"detail":"no"}"#,
            r#"{"detail":[{"loc":["body"],"msg":"no"}]}"#,
        ] {
            assert!(is_refusal(body), "{body}");
        }
        for text in ["no", "{}", "[]", r#"{"error":null}"#, r#""error""#, "{"] {
            assert!(!is_refusal(text), "{text}");
        }
    }

    #[test]
    fn only_a_status_of_http_is_one() {
        for (text, status) in [
            ("unexpected status 400 Bad Request: no", Some(400)),
            ("exceeded retry limit, last status: 429 Too Many Requests", Some(429)),
            ("the proxy said HTTP 503", Some(503)),
            ("HTTP/1.1 502 Bad Gateway", Some(502)),
            ("http status=401", Some(401)),
            ("status code: 529, try later", Some(529)),
            (r#"{"status":403,"message":"no"}"#, Some(403)),
            ("offline model: status 400 as the prompt asked", Some(400)),
            ("exit status 137", None),
            ("exit status 500 and exit status: 404", None),
            ("exited with exit status 401", None),
            ("status 200 OK", None),
            ("status 4290 is none", None),
            ("the status of 500 files", None),
            ("500 errors", None),
            ("", None),
        ] {
            assert_eq!(status_in(text), status, "{text}");
        }
    }
}
