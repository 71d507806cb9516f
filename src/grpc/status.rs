//! The only place where an error becomes a gRPC status.
//!
//! A status bears `google.rpc.ErrorInfo` (domain `codex.sidecar`, a reason in UPPER_SNAKE), a
//! `BadRequest` where a field is at fault, and a `RetryInfo` where trying again helps. All of it
//! goes into HTTP/2 trailers, the message even twice, and peers drop a stream whose header block
//! is too large (8 KiB is a common limit): so everything here is cut to stay below 4 KiB.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::model::id::ContextKey;
use crate::model::refusal::{FieldViolation, Refusal};

pub(super) const DOMAIN: &str = "codex.sidecar";

/// Most violations that a status lists.
const MOST_VIOLATIONS: usize = 16;
/// Most bytes of all violations together.
const VIOLATIONS_BYTES: usize = 1200;
/// Most bytes of one violation's description.
const DESCRIPTION_BYTES: usize = 300;
/// Most bytes of a field's path. Paths hold the caller's own keys under `thread_options.config`.
const FIELD_BYTES: usize = 100;
/// Most bytes of the message, percent-encoded as the header has it.
const MESSAGE_BYTES: usize = 600;
/// Most bytes of one value of the metadata: a context id fits whole.
const METADATA_BYTES: usize = 256;

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        status(&refusal)
    }
}

/// The status that says `refusal`.
pub(crate) fn status(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Unauthenticated | Refusal::CalledByATurn => {
            says(Code::Unauthenticated, "UNAUTHENTICATED", refusal).status()
        }
        Refusal::InvalidInput(violations) => {
            of_fields(Code::InvalidArgument, "INVALID_INPUT", "invalid request: ", violations)
        }
        Refusal::ThreadNotFound { thread_id, cause: _, can_be_new: _ } => {
            says(Code::NotFound, "THREAD_NOT_FOUND", refusal).with("thread_id", thread_id).status()
        }
        Refusal::NoLatestThread(directory) => says(Code::NotFound, "THREAD_NOT_FOUND", refusal)
            .with("working_directory", directory)
            .status(),
        Refusal::ContextNotFound(key) => {
            says(Code::NotFound, "CONTEXT_NOT_FOUND", refusal).with_context(key).status()
        }
        Refusal::TurnNotFound(turn_id) => {
            says(Code::NotFound, "TURN_NOT_FOUND", refusal).with("turn_id", turn_id).status()
        }
        Refusal::NoTurnOfContext(key) => {
            says(Code::NotFound, "TURN_NOT_FOUND", refusal).with_context(key).status()
        }
        Refusal::ThreadHeldElsewhere { thread_id, cause: _ } => {
            says(Code::FailedPrecondition, "THREAD_HELD_ELSEWHERE", refusal)
                .with("thread_id", thread_id)
                .status()
        }
        Refusal::ThreadShared { thread_id, context } => {
            says(Code::FailedPrecondition, "THREAD_SHARED", refusal)
                .with("thread_id", thread_id)
                .with_context(context)
                .status()
        }
        Refusal::ThreadHasCopies { thread_id, context } => {
            let draft = says(Code::FailedPrecondition, "THREAD_SHARED", refusal)
                .with("thread_id", thread_id);
            match context {
                Some(context) => draft.with_context(context).status(),
                None => draft.status(),
            }
        }
        Refusal::NotAGitRepository { field, path, can_be_skipped: _ } => {
            says(Code::FailedPrecondition, "NOT_A_GIT_REPOSITORY", refusal)
                .with("path", path.display())
                .about(field, refusal)
                .status()
        }
        Refusal::WorkingDirectoryMissing { field, path, cause: _ } => {
            says(Code::FailedPrecondition, "WORKING_DIRECTORY_MISSING", refusal)
                .with("path", path.display())
                .about(field, refusal)
                .status()
        }
        Refusal::PolicyDenied(denied) => {
            of_fields(Code::PermissionDenied, "POLICY_DENIED", "denied by policy: ", denied)
        }
        Refusal::QueueFull { waiting: _, retry_after }
        | Refusal::QueueShareFull { waiting: _, retry_after }
        | Refusal::QueueTooLarge { bytes: _, retry_after } => {
            says(Code::ResourceExhausted, "QUEUE_FULL", refusal).retry_after(*retry_after).status()
        }
        Refusal::ContextQueueFull { waiting: _, retry_after } => {
            says(Code::ResourceExhausted, "CONTEXT_QUEUE_FULL", refusal)
                .retry_after(*retry_after)
                .status()
        }
        Refusal::ContextsFull { bound: _, max_contexts: _ } => {
            says(Code::ResourceExhausted, "CONTEXTS_FULL", refusal).status()
        }
        Refusal::TurnRateExceeded { most: _, retry_after } => {
            says(Code::ResourceExhausted, "TURN_RATE_EXCEEDED", refusal)
                .retry_after(*retry_after)
                .status()
        }
        Refusal::TokenQuotaExceeded { used: _, most: _, retry_after } => {
            says(Code::ResourceExhausted, "TOKEN_QUOTA_EXCEEDED", refusal)
                .retry_after(*retry_after)
                .status()
        }
        Refusal::SteeringFull { turn_id, .. } => {
            says(Code::ResourceExhausted, "STEERING_FULL", refusal)
                .with("turn_id", turn_id)
                .status()
        }
        Refusal::TooManyReaders { open: _, of: _ }
        | Refusal::ReaderTooSlow
        | Refusal::StateUnread(_) => {
            says(Code::ResourceExhausted, "TOO_MANY_READERS", refusal).status()
        }
        Refusal::StateInMemory => {
            says(Code::FailedPrecondition, "STATE_IN_MEMORY", refusal).status()
        }
        Refusal::WorkerUnavailable { cause: _, retry_after } => {
            says(Code::Unavailable, "WORKER_UNAVAILABLE", refusal)
                .retry_after(*retry_after)
                .status()
        }
        Refusal::OutOfResources { cause: _, retry_after }
        | Refusal::ArrivalsTooLarge { bytes: _, retry_after } => {
            says(Code::ResourceExhausted, "OUT_OF_RESOURCES", refusal)
                .retry_after(*retry_after)
                .status()
        }
        Refusal::LedgerUnavailable { cause: _, retry_after }
        | Refusal::StateUnreadable { cause: _, retry_after } => {
            says(Code::Unavailable, "LEDGER_UNAVAILABLE", refusal)
                .retry_after(*retry_after)
                .status()
        }
        Refusal::TenantUnavailable { cause: _, retry_after } => {
            says(Code::Unavailable, "TENANT_UNAVAILABLE", refusal)
                .retry_after(*retry_after)
                .status()
        }
        Refusal::Draining { retry_after } => {
            says(Code::Unavailable, "DRAINING", refusal).retry_after(*retry_after).status()
        }
        Refusal::ContextBusy => says(Code::Aborted, "CONTEXT_BUSY", refusal).status(),
        Refusal::ContextInUse(key) => {
            says(Code::Aborted, "CONTEXT_BUSY", refusal).with_context(key).status()
        }
        Refusal::ContextExists(key) => {
            says(Code::AlreadyExists, "CONTEXT_EXISTS", refusal).with_context(key).status()
        }
        Refusal::RequestIdReused { request_id } => {
            says(Code::AlreadyExists, "REQUEST_ID_REUSED", refusal)
                .with("request_id", request_id)
                .status()
        }
        Refusal::CodexRefused { cause: _ } => {
            says(Code::FailedPrecondition, "CODEX_REFUSED", refusal).status()
        }
        Refusal::SettingsNotApplied { cause: _ } => {
            says(Code::FailedPrecondition, "SETTINGS_NOT_APPLIED", refusal).status()
        }
        Refusal::OpeningKillsWorkers { cause: _ } => {
            says(Code::FailedPrecondition, "OPENING_KILLS_WORKERS", refusal).status()
        }
        Refusal::NotSteerable { turn_id, cause: _ } => {
            says(Code::FailedPrecondition, "TURN_NOT_STEERABLE", refusal)
                .with("turn_id", turn_id)
                .status()
        }
        Refusal::DeadlineExceeded => {
            says(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", refusal).status()
        }
        Refusal::RequestIncomplete { patience: _ } => {
            says(Code::DeadlineExceeded, "REQUEST_INCOMPLETE", refusal).status()
        }
        Refusal::RequestNotFound { turn_id, request_id } => {
            says(Code::NotFound, "REQUEST_NOT_FOUND", refusal)
                .with("turn_id", turn_id)
                .with("request_id", request_id)
                .status()
        }
        Refusal::RequestAlreadyResolved { turn_id, request_id } => {
            says(Code::FailedPrecondition, "REQUEST_ALREADY_RESOLVED", refusal)
                .with("turn_id", turn_id)
                .with("request_id", request_id)
                .status()
        }
        Refusal::Unimplemented(_) => says(Code::Unimplemented, "UNIMPLEMENTED", refusal).status(),
        Refusal::Internal(_) => says(Code::Internal, "INTERNAL", refusal).status(),
    }
}

/// The contract's status for one that tonic gave by itself, before there was a service to say anything;
/// `None` for what another protocol than ours says, such as the health service's.
pub(crate) fn of_tonic(status: &Status, path: &str) -> Option<Status> {
    match status.code() {
        Code::OutOfRange => Some(
            says(Code::ResourceExhausted, "REQUEST_TOO_LARGE", status.message())
                .with("limit", "limits.max_message_bytes")
                .status(),
        ),
        // Of the request, because no answer has begun.
        Code::Internal => {
            let (field, fault) = unreadable(status.message());
            let fault = format!("can't be read: {fault}; send what the contract's messages allow");
            Some(self::status(&Refusal::field(field, fault)))
        }
        Code::Unimplemented => {
            let why = match status.message() {
                "" => "there is no such call",
                why => why,
            };
            let message = format!("{path}: {why}");
            Some(says(Code::Unimplemented, "UNIMPLEMENTED", message).status())
        }
        _ => None,
    }
}

/// Where in the request something could not be read, and what: from prost's words, which name messages
/// and fields from the inside out.
fn unreadable(message: &str) -> (String, &str) {
    let trail = message.strip_prefix("failed to decode Protobuf message: ").unwrap_or_default();
    let mut fault = message;
    let mut fields = Vec::new();
    let mut rest = trail;
    while let Some((step, more)) = rest.split_once(": ")
        && let Some((message, field)) = step.split_once('.')
        && !step.contains(' ')
    {
        // What a Struct holds has names of the caller's own.
        match message {
            "Struct" | "Value" | "ListValue" => fields.clear(),
            _ => fields.push(field),
        }
        (fault, rest) = (more, more);
    }
    if !trail.is_empty() && fields.is_empty() {
        fault = rest;
    }
    fields.reverse();
    match fields.is_empty() {
        true => ("message".to_owned(), fault),
        false => (fields.join("."), fault),
    }
}

/// A status in the making.
struct Draft {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: HashMap<String, String>,
    details: ErrorDetails,
}

fn says(code: Code, reason: &'static str, message: impl Display) -> Draft {
    Draft {
        code,
        reason,
        message: message.to_string(),
        metadata: HashMap::new(),
        details: ErrorDetails::new(),
    }
}

impl Draft {
    fn with(mut self, key: &str, value: impl Display) -> Draft {
        let value = shortened(&value.to_string(), METADATA_BYTES, str::len);
        self.metadata.insert(key.to_owned(), value);
        self
    }

    fn with_context(self, key: &ContextKey) -> Draft {
        // The tenant is the credential's matter, not for the caller's eyes.
        let ContextKey { tenant: _, context_id, thread_key } = key;
        self.with("context_id", context_id).with("thread_id_key", thread_key)
    }

    fn about(mut self, field: &str, description: impl Display) -> Draft {
        self.details.add_bad_request_violation(
            shortened(field, FIELD_BYTES, str::len),
            shortened(&description.to_string(), DESCRIPTION_BYTES, str::len),
        );
        self
    }

    fn retry_after(mut self, after: Duration) -> Draft {
        self.details.set_retry_info(Some(after));
        self
    }

    fn status(self) -> Status {
        let Draft { code, reason, message, metadata, mut details } = self;
        details.set_error_info(reason, DOMAIN, metadata);
        let message = shortened(&message, MESSAGE_BYTES, percent_encoded_length);
        Status::with_error_details(code, message, details)
    }
}

fn of_fields(
    code: Code,
    reason: &'static str,
    what: &str,
    violations: &[FieldViolation],
) -> Status {
    // The message is for people and has the first ones; the BadRequest is for programs.
    let mut message = what.to_owned();
    for (at, FieldViolation { field, description }) in violations.iter().enumerate() {
        if message.len() > MESSAGE_BYTES {
            break;
        }
        let separator = if at == 0 { "" } else { "; " };
        message.push_str(&format!("{separator}{field}: {description}"));
    }
    let mut draft = says(code, reason, message);

    let mut listed = 0;
    let mut bytes = 0;
    for FieldViolation { field, description } in violations.iter().take(MOST_VIOLATIONS) {
        let cost = field.len().min(FIELD_BYTES) + description.len().min(DESCRIPTION_BYTES);
        // The first one fits always.
        if bytes + cost > VIOLATIONS_BYTES {
            break;
        }
        bytes += cost;
        listed += 1;
        draft = draft.about(field, description);
    }
    let more = violations.len() - listed;
    if more > 0 {
        // Not as one more violation: its field would be none of the request's.
        draft = draft.with("violations_not_listed", more);
        draft.message = format!("{} faults: {}", violations.len(), draft.message);
    }
    draft.status()
}

/// `text`, cut at a character so that its `length`, an ellipsis included, is at most `most`.
fn shortened(text: &str, most: usize, length: fn(&str) -> usize) -> String {
    if length(text) <= most {
        return text.to_owned();
    }
    let ellipsis = "…";
    let room = most.saturating_sub(length(ellipsis));
    let mut used = 0;
    let kept = text.char_indices().find_map(|(at, character)| {
        used += length(character.encode_utf8(&mut [0; 4]));
        (used > room).then_some(at)
    });
    format!("{}{ellipsis}", &text[..kept.unwrap_or(text.len())])
}

/// How long `text` is as a `grpc-message` header: tonic writes these, and what is not ASCII, as
/// `%XX`.
fn percent_encoded_length(text: &str) -> usize {
    const ENCODED: &[u8] = b" \"#%<>`?{}";
    let plain = |byte: u8| byte.is_ascii_graphic() && !ENCODED.contains(&byte);
    text.bytes().map(|byte| if plain(byte) { 1 } else { 3 }).sum()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::model::id::{Tenant, ThreadId, TurnId};

    /// One of each; a new variant belongs here too.
    fn all(text: &str) -> Vec<(Refusal, Code, &'static str)> {
        let key = || ContextKey {
            tenant: Tenant::default(),
            context_id: text.to_owned(),
            thread_key: text.to_owned(),
        };
        let thread_id = || ThreadId::from_codex(text);
        let turn_id = || TurnId(text.to_owned());
        let cause = || text.to_owned();
        let path = || PathBuf::from(text);
        let retry_after = Duration::from_millis(1500);
        vec![
            (Refusal::field(cause(), cause()), Code::InvalidArgument, "INVALID_INPUT"),
            (
                Refusal::ThreadNotFound {
                    thread_id: thread_id(),
                    cause: cause(),
                    can_be_new: true,
                },
                Code::NotFound,
                "THREAD_NOT_FOUND",
            ),
            (Refusal::NoLatestThread(cause()), Code::NotFound, "THREAD_NOT_FOUND"),
            (Refusal::ContextNotFound(key()), Code::NotFound, "CONTEXT_NOT_FOUND"),
            (Refusal::TurnNotFound(turn_id()), Code::NotFound, "TURN_NOT_FOUND"),
            (Refusal::NoTurnOfContext(key()), Code::NotFound, "TURN_NOT_FOUND"),
            (
                Refusal::ThreadHeldElsewhere { thread_id: thread_id(), cause: cause() },
                Code::FailedPrecondition,
                "THREAD_HELD_ELSEWHERE",
            ),
            (
                Refusal::ThreadShared { thread_id: thread_id(), context: key() },
                Code::FailedPrecondition,
                "THREAD_SHARED",
            ),
            (
                Refusal::ThreadHasCopies { thread_id: thread_id(), context: Some(key()) },
                Code::FailedPrecondition,
                "THREAD_SHARED",
            ),
            (
                Refusal::NotAGitRepository {
                    field: "thread_options.working_directory".to_owned(),
                    path: path(),
                    can_be_skipped: true,
                },
                Code::FailedPrecondition,
                "NOT_A_GIT_REPOSITORY",
            ),
            (
                Refusal::WorkingDirectoryMissing { field: cause(), path: path(), cause: cause() },
                Code::FailedPrecondition,
                "WORKING_DIRECTORY_MISSING",
            ),
            (
                Refusal::PolicyDenied(vec![FieldViolation::new(cause(), cause())]),
                Code::PermissionDenied,
                "POLICY_DENIED",
            ),
            (Refusal::QueueFull { waiting: 9, retry_after }, Code::ResourceExhausted, "QUEUE_FULL"),
            (
                Refusal::TurnRateExceeded { most: 9, retry_after },
                Code::ResourceExhausted,
                "TURN_RATE_EXCEEDED",
            ),
            (
                Refusal::TokenQuotaExceeded { used: 9, most: 9, retry_after },
                Code::ResourceExhausted,
                "TOKEN_QUOTA_EXCEEDED",
            ),
            (
                Refusal::TenantUnavailable { cause: cause(), retry_after },
                Code::Unavailable,
                "TENANT_UNAVAILABLE",
            ),
            (
                Refusal::ContextsFull { bound: 9, max_contexts: 9 },
                Code::ResourceExhausted,
                "CONTEXTS_FULL",
            ),
            (
                Refusal::SteeringFull {
                    turn_id: turn_id(),
                    steered: 9,
                    bytes: 9,
                    most: 9,
                    most_bytes: 9,
                },
                Code::ResourceExhausted,
                "STEERING_FULL",
            ),
            (Refusal::ReaderTooSlow, Code::ResourceExhausted, "TOO_MANY_READERS"),
            (Refusal::StateUnread(retry_after), Code::ResourceExhausted, "TOO_MANY_READERS"),
            (Refusal::StateInMemory, Code::FailedPrecondition, "STATE_IN_MEMORY"),
            (
                Refusal::TooManyReaders { open: 9, of: "this turn" },
                Code::ResourceExhausted,
                "TOO_MANY_READERS",
            ),
            (
                Refusal::ArrivalsTooLarge { bytes: 9, retry_after },
                Code::ResourceExhausted,
                "OUT_OF_RESOURCES",
            ),
            (
                Refusal::QueueTooLarge { bytes: 9, retry_after },
                Code::ResourceExhausted,
                "QUEUE_FULL",
            ),
            (
                Refusal::QueueShareFull { waiting: 9, retry_after },
                Code::ResourceExhausted,
                "QUEUE_FULL",
            ),
            (
                Refusal::ContextQueueFull { waiting: 9, retry_after },
                Code::ResourceExhausted,
                "CONTEXT_QUEUE_FULL",
            ),
            (
                Refusal::WorkerUnavailable { cause: cause(), retry_after },
                Code::Unavailable,
                "WORKER_UNAVAILABLE",
            ),
            (
                Refusal::OutOfResources { cause: cause(), retry_after },
                Code::ResourceExhausted,
                "OUT_OF_RESOURCES",
            ),
            (Refusal::Draining { retry_after }, Code::Unavailable, "DRAINING"),
            (Refusal::ContextBusy, Code::Aborted, "CONTEXT_BUSY"),
            (Refusal::ContextExists(key()), Code::AlreadyExists, "CONTEXT_EXISTS"),
            (
                Refusal::RequestIdReused { request_id: cause() },
                Code::AlreadyExists,
                "REQUEST_ID_REUSED",
            ),
            (Refusal::CodexRefused { cause: cause() }, Code::FailedPrecondition, "CODEX_REFUSED"),
            (
                Refusal::OpeningKillsWorkers { cause: cause() },
                Code::FailedPrecondition,
                "OPENING_KILLS_WORKERS",
            ),
            (
                Refusal::NotSteerable { turn_id: turn_id(), cause: cause() },
                Code::FailedPrecondition,
                "TURN_NOT_STEERABLE",
            ),
            (
                Refusal::RequestNotFound { turn_id: turn_id(), request_id: cause() },
                Code::NotFound,
                "REQUEST_NOT_FOUND",
            ),
            (
                Refusal::RequestAlreadyResolved { turn_id: turn_id(), request_id: cause() },
                Code::FailedPrecondition,
                "REQUEST_ALREADY_RESOLVED",
            ),
            (Refusal::DeadlineExceeded, Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
            (
                Refusal::RequestIncomplete { patience: retry_after },
                Code::DeadlineExceeded,
                "REQUEST_INCOMPLETE",
            ),
            (Refusal::Unimplemented("not yet"), Code::Unimplemented, "UNIMPLEMENTED"),
            (Refusal::Internal(cause()), Code::Internal, "INTERNAL"),
        ]
    }

    /// How many bytes a status takes in the trailers.
    fn header_bytes(status: &Status) -> usize {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
    }

    #[test]
    fn every_refusal_has_its_code_and_reason() {
        for (refusal, code, reason) in all("x") {
            let retries = matches!(
                refusal,
                Refusal::QueueFull { .. }
                    | Refusal::QueueShareFull { .. }
                    | Refusal::QueueTooLarge { .. }
                    | Refusal::ArrivalsTooLarge { .. }
                    | Refusal::ContextQueueFull { .. }
                    | Refusal::WorkerUnavailable { .. }
                    | Refusal::OutOfResources { .. }
                    | Refusal::TurnRateExceeded { .. }
                    | Refusal::TokenQuotaExceeded { .. }
                    | Refusal::TenantUnavailable { .. }
                    | Refusal::Draining { .. }
            );
            let status = Status::from(refusal);
            assert_eq!(status.code(), code, "{status}");
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!((info.domain.as_str(), info.reason.as_str()), ("codex.sidecar", reason));
            let delay = details.retry_info().and_then(|info| info.retry_delay);
            assert_eq!(delay.is_some(), retries, "{status}");
            let first = status.message().chars().next().unwrap();
            assert!(first == 'C' || !first.is_uppercase(), "{status}");
            assert!(!status.message().ends_with('.'), "{status}");
        }
    }

    #[test]
    fn a_field_at_fault_is_named_whatever_the_code() {
        let refusal = Refusal::WorkingDirectoryMissing {
            field: "thread_options.additional_directories[0]".to_owned(),
            path: PathBuf::from("/gone"),
            cause: "does not exist".to_owned(),
        };
        let details = status(&refusal).get_error_details();
        let violation = &details.bad_request().unwrap().field_violations[0];
        assert_eq!(violation.field, "thread_options.additional_directories[0]");
        assert!(violation.description.contains("/gone does not exist"), "{violation:?}");
        assert_eq!(details.error_info().unwrap().metadata["path"], "/gone");
    }

    #[test]
    fn a_context_is_named_whole_and_its_tenant_never() {
        let key = ContextKey {
            tenant: Tenant("secret tenant".to_owned()),
            context_id: "c".repeat(256),
            thread_key: "codex_thread_id".to_owned(),
        };
        let status = status(&Refusal::ContextNotFound(key));
        let details = status.get_error_details();
        let metadata = &details.error_info().unwrap().metadata;
        assert_eq!(metadata["context_id"], "c".repeat(256));
        assert_eq!(metadata["thread_id_key"], "codex_thread_id");
        assert!(!format!("{status:?}").contains("secret tenant"));
    }

    #[test]
    fn no_status_outgrows_its_trailers() {
        // What is longest in each encoding: percent signs in headers, wide characters in both.
        for text in ["x", "%", "ä", "\u{1f980}", "\"", "\0", "\n"] {
            for (refusal, _, reason) in all(&text.repeat(50_000)) {
                let bytes = header_bytes(&Status::from(refusal));
                assert!(bytes < 4096, "{reason} of {text:?}: {bytes}");
            }
            let many = |length: usize| {
                let violation = || FieldViolation::new(text.repeat(length), text.repeat(length));
                Refusal::InvalidInput((0..200).map(|_| violation()).collect())
            };
            for length in [1, 20, 60, 100, 1000] {
                let bytes = header_bytes(&status(&many(length)));
                assert!(bytes < 4096, "200 of {length} × {text:?}: {bytes}");
            }
        }
    }

    #[test]
    fn the_first_violations_are_listed_and_the_others_counted() {
        let violations = (0..20).map(|at| FieldViolation::new(format!("inputs[{at}]"), "is blank"));
        let status = status(&Refusal::InvalidInput(violations.collect()));
        assert!(status.message().starts_with("20 faults: invalid request: inputs[0]: is blank; "));
        let details = status.get_error_details();
        let listed = &details.bad_request().unwrap().field_violations;
        assert_eq!((listed.len(), listed[15].field.as_str()), (16, "inputs[15]"));
        assert_eq!(details.error_info().unwrap().metadata["violations_not_listed"], "4");
    }
}
