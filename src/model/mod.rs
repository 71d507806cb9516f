//! The words that every floor speaks: values without behaviour.
//!
//! [`id`] names things, [`request`] and [`options`] are what comes in, [`event`], [`item`],
//! [`question`] and [`failure`] what goes out, in the contract's own messages; [`outcome`] is how a turn
//! ended, [`refusal`] what is said instead. Nothing here knows anything of the project but the
//! messages of [`crate::pb`].

mod config_fields;
pub(crate) mod event;
pub(crate) mod failure;
pub(crate) mod fingerprint;
pub(crate) mod id;
pub(crate) mod item;
pub(crate) mod json;
pub(crate) mod options;
pub(crate) mod outcome;
pub(crate) mod pattern;
pub(crate) mod policy;
pub(crate) mod question;
pub(crate) mod refusal;
pub(crate) mod request;
pub(crate) mod workspace;
