//! The domain: what a turn is, and how it runs.
//!
//! [`request`] is what comes in, [`event`] what goes out, [`refusal`] what is said instead.
//! [`engine`] drives turns, one task each; [`admission`] says who may run, [`log`] keeps what
//! happened, [`directory`] finds it again. [`timeouts`] and [`retention`] are their settings.

pub mod admission;
pub mod directory;
pub mod engine;
pub mod event;
pub mod log;
pub mod output_schema;
pub mod refusal;
pub mod request;
pub mod retention;
pub mod timeouts;
pub mod workspace;
