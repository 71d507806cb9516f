//! The domain: what a turn is, and how it runs.
//!
//! [`engine`] drives turns, one task each, which does what the turn's machine says; [`admission`] says
//! who may run, [`contexts`] which thread goes on, [`log`] keeps what happened, [`turns`] finds it
//! again. [`timeouts`] and [`retention`] are their settings.

pub mod admission;
pub(crate) mod claims;
mod clocks;
pub(crate) mod contexts;
pub mod engine;
pub mod log;
mod machine;
pub mod retention;
pub mod timeouts;
pub mod turn;
pub(crate) mod turns;
pub mod workspace;
