//! Codex's errors of a turn, and what they mean for whoever might try again.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::turn::event::{FailureReason, TurnError};

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
        let reason = match failure_reason(name) {
            // Codex has a name for this failure, and says `other` all the same.
            FailureReason::CodexError if message.starts_with(STREAM_DISCONNECTED) => {
                FailureReason::ResponseStreamDisconnected
            }
            reason => reason,
        };
        let details = additional_details.unwrap_or_default();
        let http_status = info["httpStatusCode"]
            .as_u64()
            .or_else(|| status_in(&message))
            .or_else(|| status_in(&details))
            .and_then(|status| u16::try_from(status).ok());
        TurnError {
            reason,
            retryable: is_retryable(reason, http_status),
            retry_after: retry_after_in(&message).or_else(|| retry_after_in(&details)),
            message,
            details,
            side_effects_possible: false,
            http_status,
        }
    }
}

/// How Codex's message begins when the provider broke off in the middle of an answer.
const STREAM_DISCONNECTED: &str = "stream disconnected before completion";

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

fn is_retryable(reason: FailureReason, http_status: Option<u16>) -> bool {
    match reason {
        FailureReason::WorkerLost
        | FailureReason::IdleTimeout
        | FailureReason::TurnTimeout
        | FailureReason::WorkerProtocol
        | FailureReason::RateLimitExceeded
        | FailureReason::FlexUnavailable
        | FailureReason::ServerOverloaded
        | FailureReason::PolicyCapacityUnavailable
        | FailureReason::ResponseStreamDisconnected
        | FailureReason::InternalServerError => true,
        // A connection that the provider answered with a refusal will be refused again.
        FailureReason::HttpConnectionFailed
        | FailureReason::ResponseStreamConnectionFailed
        | FailureReason::ResponseTooManyFailedAttempts => http_status
            .is_none_or(|status| status >= 500 || matches!(status, 408 | 409 | 425 | 429)),
        FailureReason::CodexError => {
            http_status.is_some_and(|status| status >= 500 || status == 429)
        }
        FailureReason::BudgetExceeded
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
        | FailureReason::ActiveTurnNotSteerable => false,
    }
}

/// Codex names the status of some failures only in its text: `unexpected status 400 Bad Request: …`
/// and `exceeded retry limit, last status: 429 Too Many Requests`.
fn status_in(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("status")?;
    let rest = rest.trim_start_matches([':', ' ']);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

/// Providers say when to try again in words: `Please try again in 7.5s`, `… in 300ms`.
fn retry_after_in(text: &str) -> Option<Duration> {
    let lower = text.to_ascii_lowercase();
    let (_, rest) = lower.split_once("try again in ")?;
    let number: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let unit = rest[number.len()..].trim_start();
    let number: f64 = number.parse().ok()?;
    let seconds = if unit.starts_with("ms") || unit.starts_with("millisecond") {
        number / 1000.0
    } else if unit.starts_with('s') {
        number
    } else if unit.starts_with('m') {
        number * 60.0
    } else if unit.starts_with('h') {
        number * 3600.0
    } else {
        return None;
    };
    Duration::try_from_secs_f64(seconds).ok()
}
