//! How much a tenant may run in a while: turns in a minute, tokens in a day.
//!
//! Turns come out of a bucket that holds a minute's worth and fills evenly, so that how long to wait is
//! known exactly. Tokens are counted as Codex tells of them, by the days of UTC, and kept: a restart gives
//! nobody a new day. A turn that began before the day's tokens were used runs to its end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::model::event::Usage;
use crate::model::refusal::Refusal;
use crate::registry::ledger::{Change, KeptTokens, Ledger};

/// How much may be run in a while.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Most turns that begin in a minute, and at once after a quiet one; beyond it TURN_RATE_EXCEEDED.
    /// Default: any number.
    pub turns_per_minute: Option<u32>,
    /// Tokens, input and output of all turns with all that they own, that may be used in a day of UTC; no
    /// turn begins after that: TOKEN_QUOTA_EXCEEDED. Default: any number.
    pub tokens_per_day: Option<u64>,
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How much was run, against its limits.
#[derive(Debug)]
pub(crate) struct Quotas {
    limits: QuotaLimits,
    state: Mutex<State>,
    ledger: Arc<Ledger>,
}

#[derive(Debug, Default)]
struct State {
    /// When the bucket is full again, if no turn begins.
    full_at: Option<Instant>,
    tokens: KeptTokens,
}

impl Quotas {
    /// Nothing was run.
    pub(crate) fn new(limits: QuotaLimits, ledger: Arc<Ledger>) -> Arc<Quotas> {
        Arc::new(Quotas { limits, state: Mutex::default(), ledger })
    }

    /// Takes what an earlier process has kept.
    pub(crate) fn restore(&self, kept: KeptTokens) {
        self.state().tokens = kept;
    }

    /// Takes a turn that is to begin. Dropping what it gives, unless it is [kept](Begins::keep), gives the
    /// turn back.
    ///
    /// # Errors
    /// [`Refusal::TokenQuotaExceeded`], [`Refusal::TurnRateExceeded`].
    pub(crate) fn begin(self: &Arc<Quotas>) -> Result<Begins, Refusal> {
        let mut state = self.state();
        let now = SystemTime::now();
        if let Some(most) = self.limits.tokens_per_day {
            let used = state.tokens.on(now);
            if used >= most {
                let retry_after = until_midnight(now);
                return Err(Refusal::TokenQuotaExceeded { used, most, retry_after });
            }
        }
        if let Some(most) = self.limits.turns_per_minute {
            let (now, each) = (Instant::now(), MINUTE / most);
            let full_at = state.full_at.filter(|full_at| *full_at > now).unwrap_or(now);
            // Rounding must not make a minute's worth longer than a minute.
            let room = each * (most - 1);
            let wait = full_at.saturating_duration_since(now).saturating_sub(room);
            if !wait.is_zero() {
                return Err(Refusal::TurnRateExceeded { most, retry_after: wait });
            }
            state.full_at = Some(full_at + each);
        }
        Ok(Begins { quotas: Arc::clone(self), is_kept: false })
    }

    /// Counts what turns have used.
    pub(crate) fn count(&self, used: Usage) {
        let tokens = used.total_tokens();
        if tokens == 0 || self.limits.tokens_per_day.is_none() {
            return;
        }
        let mut state = self.state();
        state.tokens.add(tokens, SystemTime::now());
        // Not waited for: what a crash takes is what was used in its last moment.
        self.ledger.note(&[Change::Tokens(state.tokens)]);
    }

    /// How many tokens were used today, where that is counted.
    pub(crate) fn tokens_today(&self) -> Option<u64> {
        self.limits.tokens_per_day.map(|_| self.state().tokens.on(SystemTime::now()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A turn that is about to begin.
#[derive(Debug)]
pub(crate) struct Begins {
    quotas: Arc<Quotas>,
    is_kept: bool,
}

impl Begins {
    /// It has begun.
    pub(crate) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Begins {
    fn drop(&mut self) {
        if let Some(most) = self.quotas.limits.turns_per_minute.filter(|_| !self.is_kept) {
            let mut state = self.quotas.state();
            state.full_at = state.full_at.and_then(|full_at| full_at.checked_sub(MINUTE / most));
        }
    }
}

impl Default for KeptTokens {
    fn default() -> KeptTokens {
        KeptTokens { day: SystemTime::UNIX_EPOCH, tokens: 0 }
    }
}

impl KeptTokens {
    /// How many were used on the day of this moment.
    fn on(&self, now: SystemTime) -> u64 {
        if self.day == day(now) { self.tokens } else { 0 }
    }

    fn add(&mut self, tokens: u64, now: SystemTime) {
        *self = KeptTokens { day: day(now), tokens: self.on(now).saturating_add(tokens) };
    }
}

/// The first moment of the day, of UTC.
fn day(now: SystemTime) -> SystemTime {
    now - since_midnight(now)
}

fn until_midnight(now: SystemTime) -> Duration {
    DAY - since_midnight(now)
}

fn since_midnight(now: SystemTime) -> Duration {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::new(since_1970.as_secs() % DAY.as_secs(), since_1970.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotas(turns_per_minute: Option<u32>, tokens_per_day: Option<u64>) -> Arc<Quotas> {
        let limits = QuotaLimits { turns_per_minute, tokens_per_day };
        Quotas::new(limits, Arc::new(Ledger::memory()))
    }

    fn begins(quotas: &Arc<Quotas>) -> Result<(), Duration> {
        match quotas.begin() {
            Ok(begins) => {
                begins.keep();
                Ok(())
            }
            Err(Refusal::TurnRateExceeded { retry_after, .. }) => Err(retry_after),
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_minutes_turns_come_at_once_and_the_next_exactly_when_it_was_said() {
        let quotas = quotas(Some(3), None);
        let each = Duration::from_secs(20);
        assert_eq!([(); 4].map(|()| begins(&quotas)), [Ok(()), Ok(()), Ok(()), Err(each)]);
        tokio::time::advance(each - Duration::from_millis(1)).await;
        assert_eq!(begins(&quotas), Err(Duration::from_millis(1)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!((begins(&quotas), begins(&quotas)), (Ok(()), Err(each)));
        tokio::time::advance(MINUTE * 10).await;
        assert_eq!([(); 4].map(|()| begins(&quotas)), [Ok(()), Ok(()), Ok(()), Err(each)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_begin_is_given_back() {
        let quotas = quotas(Some(1), None);
        drop(quotas.begin().unwrap());
        assert_eq!((begins(&quotas), begins(&quotas)), (Ok(()), Err(MINUTE)));
    }

    #[tokio::test(start_paused = true)]
    async fn no_turn_begins_once_the_days_tokens_are_used() {
        let quotas = quotas(None, Some(100));
        let used = |input_tokens, output_tokens| Usage {
            input_tokens,
            output_tokens,
            cached_input_tokens: 1_000,
            reasoning_output_tokens: 1_000,
            ..Usage::default()
        };
        quotas.count(used(60, 39));
        assert_eq!((begins(&quotas), quotas.tokens_today()), (Ok(()), Some(99)));
        // What began runs to its end.
        quotas.count(used(50, 1));
        let refusal = quotas.begin().unwrap_err();
        let Refusal::TokenQuotaExceeded { used: 150, most: 100, retry_after } = refusal else {
            panic!("{refusal:?}");
        };
        assert!(retry_after <= DAY);
        // It is yesterday's by then.
        let yesterday = KeptTokens { day: day(SystemTime::now()) - DAY, tokens: 150 };
        quotas.restore(yesterday);
        assert_eq!((begins(&quotas), quotas.tokens_today()), (Ok(()), Some(0)));
    }

    #[test]
    fn a_day_ends_at_midnight_of_utc() {
        // 2026-11-28T23:59:59Z
        let last = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_910_399);
        let mut kept = KeptTokens::default();
        kept.add(5, last);
        kept.add(6, last);
        assert_eq!((kept.on(last), until_midnight(last)), (11, Duration::from_secs(1)));
        let next = last + Duration::from_secs(1);
        assert_eq!((kept.on(next), until_midnight(next)), (0, DAY));
        kept.add(7, next);
        assert_eq!((kept.on(next), kept.on(last)), (7, 0));
    }
}
