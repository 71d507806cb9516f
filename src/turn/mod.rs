//! The domain: what a turn is, and how it runs.
//!
//! [`engine`] drives turns, one task each, which does what the turn's machine says; [`admission`] says
//! who may run, [`contexts`] which thread goes on, [`log`] keeps what happened, [`turns`] finds it
//! again, [`readers`] counts who reads it, [`quota`] what is run in a while. [`timeouts`] and
//! [`retention`] are their settings.

pub(crate) mod admission;
pub(crate) mod claims;
mod clocks;
pub(crate) mod contexts;
pub(crate) mod engine;
pub(crate) mod log;
pub(crate) mod looks;
pub(crate) mod machine;
pub(crate) mod pixels;
pub(crate) mod quota;
pub(crate) mod readers;
mod retained;
pub(crate) mod retention;
mod revision;
mod roots;
pub(crate) mod summary;
pub(crate) mod timeouts;
#[allow(clippy::module_inception, reason = "one turn, among all that has to do with turns")]
pub(crate) mod turn;
pub(crate) mod turns;
pub(crate) mod workspace;
