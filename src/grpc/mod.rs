//! The edge: what gRPC says becomes what the domain says, and back.
//!
//! With `app`, which serves it, the only modules that know tonic. [`api`] and [`client`] are the
//! contract's stubs, [`convert`] is pure, [`status`] is the only map from a refusal to a gRPC status,
//! [`limits`] are their settings, the services only put the two around calls of the engine. `caller`
//! is the other end: it calls a sidecar.

pub mod api;
pub(crate) mod caller;
pub mod client;
pub mod codex_service;
pub mod convert;
pub mod deadline;
pub mod limits;
mod page_token;
pub mod pool_service;
pub mod status;
mod stream;
