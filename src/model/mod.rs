//! The words that every floor speaks: values without behaviour.
//!
//! [`id`] names things, [`request`] and [`options`] are what comes in, [`event`] what goes out,
//! [`refusal`] what is said instead. Nothing here knows anything else of the project.

pub mod event;
pub mod id;
pub mod options;
pub mod refusal;
pub mod request;
