//! Why Codex did not do with a thread what was asked, as types.

use crate::app_server::peer::{OVERLOADED, RequestError};
use crate::app_server::refusal_text::{self, Meaning};
use crate::model::refusal::FieldViolation;

/// Why Codex did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ThreadError {
    /// It has no rollout of the thread, or can't read it.
    #[error("{0}")]
    NotFound(String),
    /// It has a rollout of the thread in which nothing was ever written.
    #[error("{0}")]
    NothingWritten(String),
    /// Another process writes the thread.
    #[error("{0}")]
    HeldElsewhere(String),
    /// It is in Codex's archive, where a release that was cut short leaves it.
    #[error("{0}")]
    Archived(String),
    /// It is overloaded; try again.
    #[error("{0}")]
    Overloaded(String),
    /// A `config.toml` can't be read, the user's or one of a project.
    #[error("{0}")]
    BadConfig(String),
    /// It is out of file descriptors, memory or disk; the machine may have some again later.
    #[error("{0}")]
    OutOfResources(String),
    /// It took the turn as steering of a turn of its own, which was ended.
    #[error("the turn was taken as input of turn {0}, which Codex had begun by itself")]
    Steered(String),
    /// It refuses for another reason.
    #[error("{0}")]
    Refused(String),
    /// It has no permission profile of the name that was asked for, or may not use it.
    #[error("{0}")]
    UnknownProfile(String),
    /// It does not know a skill that an input names.
    #[error("{cause}")]
    UnknownSkill {
        /// The input's place.
        at: usize,
        /// Which skill, and which it knows.
        cause: String,
    },
    /// The policy does not let it be asked, or a turn with these options could write what is protected:
    /// which fields make it so.
    #[error("denied by policy")]
    Denied(Vec<FieldViolation>),
    /// It gives the thread more rights than were asked for, also when it loads it again.
    #[error("{0}")]
    NotApplied(String),
    /// It answered, but not so that it can be read: what it did can't be known.
    #[error("{0}")]
    Unreadable(String),
    /// The worker died or is stuck. Nothing was asked that could have had an effect, unless
    /// `written` says so.
    #[error("{cause}")]
    Lost {
        /// What happened.
        cause: String,
        /// Whether the worker may have seen the request.
        written: bool,
    },
}

impl From<RequestError> for ThreadError {
    fn from(error: RequestError) -> ThreadError {
        let text = error.to_string();
        match error {
            RequestError::Transport { written, .. } => ThreadError::Lost { cause: text, written },
            RequestError::Timeout { .. } => ThreadError::Lost { cause: text, written: true },
            RequestError::Decode { .. } | RequestError::TooLong { .. } => {
                ThreadError::Unreadable(text)
            }
            RequestError::Server { code: OVERLOADED, message, .. } => {
                ThreadError::Overloaded(message)
            }
            // The protocol has no codes for these. Callers are told what Codex says, without the names and
            // numbers of its protocol.
            RequestError::Server { message, .. } => {
                tracing::debug!(error = text, "Codex refuses a request");
                match refusal_text::meaning(&message) {
                    Meaning::ThreadNotFound if refusal_text::is_of_empty_rollout(&message) => {
                        ThreadError::NothingWritten(message)
                    }
                    Meaning::ThreadNotFound => {
                        let cause = refusal_text::cause_of_missing(&message);
                        ThreadError::NotFound(cause.map_or(message, str::to_owned))
                    }
                    Meaning::HeldElsewhere => ThreadError::HeldElsewhere(message),
                    Meaning::Archived => ThreadError::Archived(message),
                    Meaning::BadConfig => ThreadError::BadConfig(message),
                    Meaning::OutOfResources => ThreadError::OutOfResources(message),
                    Meaning::Other => ThreadError::Refused(message),
                }
            }
        }
    }
}

impl ThreadError {
    /// Whether what was asked for may have been done all the same.
    pub(crate) fn may_have_been_done(&self) -> bool {
        matches!(self, ThreadError::Lost { written: true, .. } | ThreadError::Unreadable(_))
    }

    /// The same of a request that went ahead of the one that matters, as `turn/start`: whatever was
    /// written, that was not.
    pub(crate) fn before_the_turn(self) -> ThreadError {
        match self {
            ThreadError::Lost { cause, written: _ } => ThreadError::Lost { cause, written: false },
            ThreadError::Unreadable(said) => ThreadError::Refused(said),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_ahead_of_a_turn_leaves_no_doubt_whether_it_began() {
        let garbled = RequestError::Decode { method: "config/read", cause: "garbled".to_owned() };
        let error = ThreadError::from(garbled).before_the_turn();
        assert!(matches!(error, ThreadError::Refused(_)), "{error:?}");
        let late =
            RequestError::Timeout { method: "config/read", after: std::time::Duration::ZERO };
        let error = ThreadError::from(late).before_the_turn();
        assert!(matches!(error, ThreadError::Lost { written: false, .. }), "{error:?}");
    }
}
