//! The edge: what gRPC says becomes what the domain says, and back.
//!
//! With `app`, which serves it, the only modules that know tonic. [`api`] and [`client`] are the
//! contract's stubs, [`convert`] is pure, [`status`] is the only map from a refusal to a gRPC status,
//! [`limits`] are their settings, [`call`] holds all calls to the same, the services only put the two around calls of the engine. `caller`
//! is the other end: it calls a sidecar.

mod all_of;
pub(crate) mod api;
pub(crate) mod arrivals;
pub(crate) mod call;
pub(crate) mod caller;
pub mod client;
pub(crate) mod codex_service;
pub(crate) mod convert;
pub(crate) mod deadline;
mod history;
pub(crate) mod limits;
mod page_size;
pub(crate) mod page_token;
pub(crate) mod pool_service;
mod routed;
pub(crate) mod status;
pub(crate) mod stream;
mod turns;
mod unary;
mod unsent;
pub(crate) mod when_read;
