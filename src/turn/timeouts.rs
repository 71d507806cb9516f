//! The clocks of turns, as they are configured.

use std::time::Duration;

use crate::model::request::QuestionPolicy;

/// How long turns may take. A default holds where neither the request nor its tool says a time. A
/// maximum bounds what may be asked for, and the default too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// The `turn_timeout` where none is said. Default: no limit.
    pub turn: Option<Duration>,
    /// The `idle_timeout` where none is said: the longest time without progress. `None`: no limit.
    /// Default 10 min.
    pub idle: Option<Duration>,
    /// The longest time without progress while a command, an MCP call or a sub-agent of the turn runs,
    /// unless its `idle_timeout` is longer. `None`: no limit. Default 60 min.
    pub tool: Option<Duration>,
    /// The `answer_timeout` where none is said: the longest wait for an answer. Default, and `None`: 60 s,
    /// and 10 min where the caller is asked more than to call what it lent.
    pub answer: Option<Duration>,
    /// Longest `turn_timeout` that a caller may ask for. Default: any.
    pub max_turn: Option<Duration>,
    /// Longest `idle_timeout` that a caller may ask for. Default: any.
    pub max_idle: Option<Duration>,
    /// Longest `answer_timeout` that a caller may ask for. Default: any.
    pub max_answer: Option<Duration>,
    /// How long an interrupted turn may take to end. One that has not is told its end as if it had, and its
    /// worker is killed: at once where it gives no sign of life or has no other turn, else as soon as it has
    /// none, and after ten times as long, at least 30 s, all the same. Default 2 s.
    pub interrupt_grace: Duration,
}

impl Timeouts {
    /// The `answer_timeout` where none is said, under this policy. As with the other defaults, a maximum
    /// bounds it.
    pub(crate) fn answer_under(&self, policy: QuestionPolicy) -> Duration {
        let default = self.answer.unwrap_or(match policy {
            QuestionPolicy::Decline => Duration::from_secs(60),
            QuestionPolicy::Ask => Duration::from_secs(600),
        });
        self.max_answer.map_or(default, |most| default.min(most))
    }

    /// The `turn_timeout` where none is said.
    pub(crate) fn default_turn(&self) -> Option<Duration> {
        [self.turn, self.max_turn].into_iter().flatten().min()
    }

    /// The `idle_timeout` where none is said.
    pub(crate) fn default_idle(&self) -> Option<Duration> {
        [self.idle, self.max_idle].into_iter().flatten().min()
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            turn: None,
            idle: Some(Duration::from_secs(600)),
            tool: Some(Duration::from_secs(3600)),
            answer: None,
            max_turn: None,
            max_idle: None,
            max_answer: None,
            interrupt_grace: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_maximum_bounds_every_default() {
        let most = Some(Duration::from_secs(20));
        let bounded =
            Timeouts { max_turn: most, max_idle: most, max_answer: most, ..Timeouts::default() };
        let answers = [QuestionPolicy::Ask, QuestionPolicy::Decline];
        let answers = answers.map(|policy| Some(bounded.answer_under(policy)));
        assert_eq!(answers, [most; 2]);
        assert_eq!([bounded.default_turn(), bounded.default_idle()], [most; 2]);
        let usual = Timeouts::default();
        assert_eq!((usual.default_turn(), usual.default_idle()), (None, usual.idle));
    }
}
