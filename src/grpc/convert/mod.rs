//! Requests on their way in: protobuf to the domain. What goes out is protobuf from the start.
//!
//! Pure functions: they read no file, no clock and no state. What depends on the machine (whether
//! a directory exists) is `turn::workspace`'s. Every message is taken apart field by field without
//! `..`, and every enum is matched without `_`, so that what the contract gains fails to compile
//! until it is handled here.
//!
//! The faults of the whole request are collected before it is refused.

mod answer;
mod image_url;
mod inputs;
mod options;
mod request;
#[cfg(test)]
mod tests;

pub(crate) use answer::answer;
pub(crate) use request::{context_key, context_ref, turn_request, user_inputs};

use crate::model::refusal::{Faults, show};
