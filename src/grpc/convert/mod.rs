//! Requests on their way in: protobuf to the domain. What goes out is protobuf from the start.
//!
//! Pure functions: they read no file, no clock and no state. What depends on the machine (whether
//! a directory exists) is `turn::workspace`'s. Every message is taken apart field by field without
//! `..`, and every enum is matched without `_`, so that what the contract gains fails to compile
//! until it is handled here.
//!
//! The faults of the whole request are collected before it is refused.

mod image_url;
mod options;
mod request;
#[cfg(test)]
mod tests;

pub(crate) use request::{answer, context_key, context_ref, turn_request, user_inputs};

use std::fmt::Write as _;

use crate::model::refusal::{FieldViolation, Refusal};

/// The faults of one request. It keeps the first [`Faults::MOST`] and counts no further: a caller
/// could else make it hold many times the memory of the request.
#[derive(Debug, Default)]
struct Faults(Vec<FieldViolation>);

impl Faults {
    const MOST: usize = 256;

    fn add(&mut self, field: impl Into<String>, description: impl Into<String>) {
        if self.0.len() < Faults::MOST {
            self.0.push(FieldViolation::new(field, description));
        }
    }

    /// `value` if there was no fault.
    fn or_refuse<T>(self, value: T) -> Result<T, Refusal> {
        if self.0.is_empty() { Ok(value) } else { Err(Refusal::InvalidInput(self.0)) }
    }
}

/// A caller's value for an error message: quoted, escaped, and cut where it is long.
fn show(value: &str) -> String {
    const MOST: usize = 48;
    match value.char_indices().nth(MOST) {
        None => format!("{value:?}"),
        Some((end, _)) => {
            let mut shown = format!("{:?}…", &value[..end]);
            // Writing to a String can't fail.
            let _ = write!(shown, " ({} bytes)", value.len());
            shown
        }
    }
}
