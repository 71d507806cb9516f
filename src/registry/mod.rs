//! What is remembered of conversations: which thread a context goes on with, and what is known of
//! a thread.
//!
//! [`bindings`] is a store, and decides nothing: when a binding may change, `turn::contexts` says.
//! [`threads`] lends each thread to one turn at a time. Both are in memory and begin empty; what they
//! hold ends with the process. Nothing here knows of workers but their ids.
//!
//! A store that outlives the process takes the place of [`bindings::Bindings`] and of
//! [`threads::ThreadFacts`], which are plain values for that purpose, under the same calls. A turn has
//! its context to itself from its admission to its end, so each call is one write of one key, and no
//! call reads what a turn of another key may change. A file (memory in front, the write before the
//! answer) keeps the calls as they are. A store that several sidecars share knows no common
//! admission: there `bind` and `remove` must also say which thread they replace, and fail where
//! another sidecar has bound another one meanwhile.

pub(crate) mod bindings;
pub(crate) mod threads;
