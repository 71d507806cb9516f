//! How the threads that this process began were to run, for those who go on with them.
//!
//! `codex-reply` has no field for it: the first call's `cwd`, `sandbox` and the like hold for the whole
//! conversation. A turn of the sidecar inherits nothing, so they are sent again with each.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::pb;

/// Of how many threads it is remembered. The oldest goes first, and is continued with the defaults then.
const REMEMBERED: usize = 1_000;

#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    options: HashMap<String, pb::ThreadOptions>,
    order: VecDeque<String>,
}

impl Sessions {
    pub(super) fn remember(&self, thread_id: &str, options: &pb::ThreadOptions) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.options.insert(thread_id.to_owned(), options.clone()).is_some() {
            return;
        }
        known.order.push_back(thread_id.to_owned());
        if known.order.len() > REMEMBERED {
            let oldest = known.order.pop_front();
            oldest.and_then(|thread_id| known.options.remove(&thread_id));
        }
    }

    pub(super) fn options(&self, thread_id: &str) -> Option<pb::ThreadOptions> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.options.get(thread_id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_thread_is_forgotten_first() {
        let sessions = Sessions::default();
        let options = |model: usize| pb::ThreadOptions {
            model: Some(model.to_string()),
            ..Default::default()
        };
        for number in 0..=REMEMBERED {
            sessions.remember(&number.to_string(), &options(number));
            sessions.remember(&number.to_string(), &options(number));
        }
        assert_eq!(sessions.options("0"), None);
        assert_eq!(sessions.options("1"), Some(options(1)));
        let newest = REMEMBERED.to_string();
        assert_eq!(sessions.options(&newest), Some(options(REMEMBERED)));
    }
}
