//! Why turns fail, as the contract has it; the reasons, which are texts there, are an enum here.

pub use crate::pb::TurnError;

impl TurnError {
    /// A failure that is no use to try again, and before which nothing was done.
    pub fn new(reason: FailureReason, message: impl Into<String>) -> TurnError {
        TurnError {
            reason: reason.as_str().to_owned(),
            message: message.into(),
            ..TurnError::default()
        }
    }
}

/// Kinds of failure of a turn. The upper ones are the sidecar's own, the others one per
/// `CodexErrorInfo` of the CLI's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureReason {
    /// The worker died with the turn on it.
    WorkerLost,
    /// The sidecar ended while the turn ran.
    SidecarRestarted,
    /// No progress for `idle_timeout`.
    IdleTimeout,
    /// Not done within `turn_timeout`.
    TurnTimeout,
    /// The worker garbled what it said, or said it in a line over the limit.
    WorkerProtocol,
    /// More came into force than was asked.
    SettingsNotApplied,
    /// More tokens than `max_total_tokens`.
    BudgetExceeded,
    /// `contextWindowExceeded`.
    ContextWindowExceeded,
    /// `sessionBudgetExceeded`.
    SessionBudgetExceeded,
    /// `usageLimitExceeded`.
    UsageLimitExceeded,
    /// `rateLimitExceeded`.
    RateLimitExceeded,
    /// `flexUnavailable`.
    FlexUnavailable,
    /// `serverOverloaded`.
    ServerOverloaded,
    /// `modelNotFound`.
    ModelNotFound,
    /// `policyCapacityUnavailable`.
    PolicyCapacityUnavailable,
    /// `inferenceHookDenied`.
    InferenceHookDenied,
    /// `cyberPolicy`.
    CyberPolicy,
    /// `misalignmentPolicyViolation`.
    MisalignmentPolicyViolation,
    /// `tooManyDenials`.
    TooManyDenials,
    /// `httpConnectionFailed`.
    HttpConnectionFailed,
    /// `responseStreamConnectionFailed`.
    ResponseStreamConnectionFailed,
    /// `internalServerError`.
    InternalServerError,
    /// `unauthorized`.
    Unauthorized,
    /// `badRequest`.
    BadRequest,
    /// `threadRollbackFailed`.
    ThreadRollbackFailed,
    /// `sandboxError`.
    SandboxError,
    /// `responseStreamDisconnected`.
    ResponseStreamDisconnected,
    /// `responseTooManyFailedAttempts`.
    ResponseTooManyFailedAttempts,
    /// `activeTurnNotSteerable`.
    ActiveTurnNotSteerable,
    /// `other`, none at all, or one that this version does not know.
    CodexError,
}

impl FailureReason {
    /// The name on the wire, in UPPER_SNAKE.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureReason::WorkerLost => "WORKER_LOST",
            FailureReason::SidecarRestarted => "SIDECAR_RESTARTED",
            FailureReason::IdleTimeout => "IDLE_TIMEOUT",
            FailureReason::TurnTimeout => "TURN_TIMEOUT",
            FailureReason::WorkerProtocol => "WORKER_PROTOCOL",
            FailureReason::SettingsNotApplied => "SETTINGS_NOT_APPLIED",
            FailureReason::BudgetExceeded => "BUDGET_EXCEEDED",
            FailureReason::ContextWindowExceeded => "CONTEXT_WINDOW_EXCEEDED",
            FailureReason::SessionBudgetExceeded => "SESSION_BUDGET_EXCEEDED",
            FailureReason::UsageLimitExceeded => "USAGE_LIMIT_EXCEEDED",
            FailureReason::RateLimitExceeded => "RATE_LIMIT_EXCEEDED",
            FailureReason::FlexUnavailable => "FLEX_UNAVAILABLE",
            FailureReason::ServerOverloaded => "SERVER_OVERLOADED",
            FailureReason::ModelNotFound => "MODEL_NOT_FOUND",
            FailureReason::PolicyCapacityUnavailable => "POLICY_CAPACITY_UNAVAILABLE",
            FailureReason::InferenceHookDenied => "INFERENCE_HOOK_DENIED",
            FailureReason::CyberPolicy => "CYBER_POLICY",
            FailureReason::MisalignmentPolicyViolation => "MISALIGNMENT_POLICY_VIOLATION",
            FailureReason::TooManyDenials => "TOO_MANY_DENIALS",
            FailureReason::HttpConnectionFailed => "HTTP_CONNECTION_FAILED",
            FailureReason::ResponseStreamConnectionFailed => "RESPONSE_STREAM_CONNECTION_FAILED",
            FailureReason::InternalServerError => "INTERNAL_SERVER_ERROR",
            FailureReason::Unauthorized => "UNAUTHORIZED",
            FailureReason::BadRequest => "BAD_REQUEST",
            FailureReason::ThreadRollbackFailed => "THREAD_ROLLBACK_FAILED",
            FailureReason::SandboxError => "SANDBOX_ERROR",
            FailureReason::ResponseStreamDisconnected => "RESPONSE_STREAM_DISCONNECTED",
            FailureReason::ResponseTooManyFailedAttempts => "RESPONSE_TOO_MANY_FAILED_ATTEMPTS",
            FailureReason::ActiveTurnNotSteerable => "ACTIVE_TURN_NOT_STEERABLE",
            FailureReason::CodexError => "CODEX_ERROR",
        }
    }
}
