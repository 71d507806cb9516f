//! codex-sidecar: OpenAI's Codex CLI behind gRPC, on a warm and supervised pool.
//!
//! In reading order. [`app`] wires everything; [`grpc`] is the edge; [`turn`] is the domain;
//! [`registry`] and [`pool`] are what it stands on; [`worker`] is one Codex process, which
//! [`app_server`] speaks with and [`process`] starts and ends.

pub mod app;
pub mod app_server;
pub mod cli;
pub mod codex_cli;
pub mod config;
pub mod grpc;
pub mod model;
#[cfg(feature = "offline-model")]
pub mod offline_model;
#[cfg(not(feature = "offline-model"))]
#[path = "offline_model/absent.rs"]
pub mod offline_model;
pub mod output_schema;
pub(crate) mod pool;
pub mod process;
pub mod redact;
pub(crate) mod registry;
pub mod telemetry;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod turn;
pub mod worker;

/// The contract's messages. Its stubs are [`grpc::api`] and [`grpc::client`].
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/messages/codex.sidecar.v1.rs"));

    /// The contract's descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/codex_sidecar_descriptor.bin"));
}
