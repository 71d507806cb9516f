//! What is remembered of conversations: which thread a context goes on with, and what is known of
//! a thread.
//!
//! [`bindings`] is a store, and decides nothing: when a binding may change, `turn::contexts` says.
//! [`threads`] lends each thread to one turn at a time. Both are in memory and answer from there; what
//! outlives the process goes through [`ledger`], and comes back from it at the next start. Nothing here
//! knows of workers but their ids.
//!
//! [`latest`] is for callers that keep no ids.
//!
//! [`bindings`] keeps an order of use, too, by which a context is evicted that the caller of
//! [`bindings::Bindings::evict`] lets go.
//!
//! A store that several sidecars share has no common admission, which keeps two writers of one key apart
//! here: there what is kept of a binding must name the thread that it replaces, and fail where it is
//! another one by now.

pub(crate) mod bindings;
pub(crate) mod latest;
pub(crate) mod ledger;
pub(crate) mod threads;
