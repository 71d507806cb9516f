//! What the log is told of callers that are refused: each cause at once, then with how often it came, at
//! most every ten seconds, so that a flood of them is no flood of lines.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often the same cause is told at most.
const EVERY: Duration = Duration::from_secs(10);

/// Who was refused, by causes.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<&'static str, Told>>);

#[derive(Debug)]
struct Told {
    at: Instant,
    /// How many came since, and the last of them.
    since: u64,
    peer: String,
    detail: String,
}

impl Refusals {
    /// Somebody is refused. `detail` is what there is to say of this one.
    pub(crate) fn add(&self, cause: &'static str, peer: &str, detail: &str, now: Instant) {
        let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match refusals.get_mut(cause) {
            Some(told) => {
                told.since += 1;
                (told.peer, told.detail) = (peer.to_owned(), detail.to_owned());
                told.tell_if_due(cause, now);
            }
            None => {
                tracing::warn!(peer, detail = said(detail), "a caller is refused: {cause}");
                let (peer, detail) = (String::new(), String::new());
                refusals.insert(cause, Told { at: now, since: 0, peer, detail });
            }
        }
    }

    /// Tells what came since, where it is time, and forgets what came no more. To be called now and then.
    pub(crate) fn tell(&self, now: Instant) {
        let mut refusals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.retain(|cause, told| {
            told.tell_if_due(cause, now);
            told.since > 0 || now - told.at < EVERY
        });
    }
}

impl Told {
    fn tell_if_due(&mut self, cause: &'static str, now: Instant) {
        if self.since > 0 && now - self.at >= EVERY {
            let Told { since, peer, detail, .. } = &*self;
            tracing::warn!(
                refused = since,
                peer,
                detail = said(detail),
                "{since} callers more were refused, the last of them {peer}: {cause}"
            );
            (self.at, self.since) = (now, 0);
        }
    }
}

/// What is empty is no field of a line.
fn said(detail: &str) -> Option<&str> {
    (!detail.is_empty()).then_some(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_cause_is_a_line_in_ten_seconds_and_all_are_counted() {
        let refusals = Refusals::default();
        let now = Instant::now();
        let state = |cause: &str| {
            let refusals = refusals.0.lock().unwrap();
            refusals.get(cause).map(|told| (told.at - now, told.since))
        };
        let ms = Duration::from_millis;
        for at in 0..100 {
            refusals.add("a", "peer", "", now + ms(at));
        }
        assert_eq!(state("a"), Some((ms(0), 99)));
        refusals.add("b", "peer", "", now + ms(200));
        assert_eq!(state("b"), Some((ms(200), 0)));
        refusals.tell(now + ms(9_999));
        assert_eq!(state("a"), Some((ms(0), 99)));
        refusals.tell(now + EVERY);
        assert_eq!(state("a"), Some((EVERY, 0)));
        refusals.add("a", "peer", "", now + EVERY * 2);
        assert_eq!(state("a"), Some((EVERY * 2, 0)));
        refusals.tell(now + EVERY * 3);
        assert_eq!((state("a"), state("b")), (None, None));
    }
}
