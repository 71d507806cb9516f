//! The words that every floor speaks: values without behaviour.
//!
//! [`id`] names things, [`request`] and [`options`] are what comes in, [`event`], [`item`],
//! [`question`] and [`failure`] what goes out, in the contract's own messages; [`outcome`] is how a turn
//! ended, [`refusal`] what is said instead. Nothing here knows anything of the project but the
//! messages of [`crate::pb`].

pub mod event;
pub mod failure;
pub mod id;
pub mod item;
pub mod options;
pub mod outcome;
pub mod question;
pub mod refusal;
pub mod request;
pub mod workspace;
