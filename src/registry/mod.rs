//! What is remembered of conversations: which thread a context goes on with, and what is known of
//! a thread.
//!
//! [`bindings`] is a store, and decides nothing: when a binding may change, `turn::contexts` says.
//! [`threads`] lends each thread to one turn at a time. Both are in memory and begin empty; what they
//! hold ends with the process. Nothing here knows of workers but their ids.
//!
//! [`latest`] is for callers that keep no ids.
//!
//! [`bindings`] keeps an order of use, too, by which a context is evicted that the caller of
//! [`bindings::Bindings::evict`] lets go.
//!
//! Another store can stand in for [`bindings::Bindings`] and for the [`threads::ThreadFacts`] under the
//! same calls: what they take and give are plain values, and each call but `page` and `evict` is about one key.
//! One that outlives the process (a file behind the memory, written before the call returns) needs
//! nothing else, because admission keeps two writers of one key apart. One that several sidecars share
//! has no common admission: there `bind` and `remove` must name the thread that they replace, and fail
//! where it is another one by now.

pub(crate) mod bindings;
pub(crate) mod latest;
pub(crate) mod ledger;
pub(crate) mod threads;
