//! Large events that are on their way to readers.
//!
//! A stream keeps the event that it is in the midst of, also when its log has given it up: a reader that
//! reads must get it whole. One that does not read would keep it for ever. So all such events together are
//! bounded, and beyond that the stream that has been in the midst of one for longest loses it. An event
//! counts once, however many streams share it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Most bytes of all of them, but for the latest.
const MOST_BYTES: usize = 256 << 20;

/// From how many bytes on an event is large. Below, a stream costs no more than it does anyway.
pub(super) const LARGE: usize = 64 << 10;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Unsent(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    // In the order in which they were begun, each with the rest that is to be sent.
    under_way: BTreeMap<u64, UnderWay>,
    // How many streams are in the midst of it, by where it is in memory.
    events: HashMap<usize, usize>,
    bytes: usize,
}

#[derive(Debug)]
struct UnderWay {
    event: Bytes,
    sent: usize,
}

/// An event that is sent in pieces. Dropping it ends that.
#[derive(Debug)]
pub(super) struct Sending {
    unsent: Arc<Unsent>,
    number: u64,
}

impl Unsent {
    /// Begins to send an event.
    pub(super) fn begin(self: &Arc<Unsent>, event: Bytes) -> Sending {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        let streams = state.events.entry(event.as_ptr().addr()).or_default();
        *streams += 1;
        if *streams == 1 {
            state.bytes += event.len();
        }
        state.under_way.insert(number, UnderWay { event, sent: 0 });
        while state.bytes > MOST_BYTES && state.under_way.len() > 1 {
            let Some(oldest) = state.under_way.keys().next().copied() else { break };
            state.end(oldest);
        }
        Sending { unsent: Arc::clone(self), number }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, number: u64) {
        let Some(UnderWay { event, .. }) = self.under_way.remove(&number) else { return };
        let address = event.as_ptr().addr();
        if let Some(streams) = self.events.get_mut(&address) {
            *streams -= 1;
            if *streams == 0 {
                self.events.remove(&address);
                self.bytes -= event.len();
            }
        }
    }
}

impl Sending {
    /// The next piece of at most so many bytes; an empty one after the last. `None` where the event was
    /// lost.
    pub(super) fn next(&mut self, most: usize) -> Option<Bytes> {
        let mut state = self.unsent.state();
        let UnderWay { event, sent } = state.under_way.get_mut(&self.number)?;
        let end = event.len().min(*sent + most);
        let piece = event.slice(*sent..end);
        *sent = end;
        Some(piece)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.unsent.state().end(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_in_the_midst_of_one_for_longest_loses_it_and_shared_ones_count_once() {
        let unsent = Arc::new(Unsent::default());
        let event = || Bytes::from(vec![0; MOST_BYTES / 4]);
        let shared = event();
        let mut stuck: Vec<Sending> = (0..100).map(|_| unsent.begin(shared.clone())).collect();
        assert_eq!(stuck[0].next(10).unwrap().len(), 10);
        let mut others: Vec<Sending> = (0..3).map(|_| unsent.begin(event())).collect();
        assert!(stuck[0].next(10).is_some(), "that is what there may be");
        others.push(unsent.begin(event()));
        assert!(stuck.iter_mut().all(|stuck| stuck.next(10).is_none()));
        assert!(others.iter_mut().all(|other| other.next(10).is_some()));
        // One is always let through.
        drop((stuck, others));
        let mut large = unsent.begin(Bytes::from(vec![0; MOST_BYTES + 1]));
        assert_eq!(large.next(usize::MAX / 2).unwrap().len(), MOST_BYTES + 1);
        assert!(large.next(1).unwrap().is_empty());
        drop(large);
        let state = unsent.state();
        assert_eq!((state.bytes, state.events.len(), state.under_way.len()), (0, 0, 0));
    }
}
