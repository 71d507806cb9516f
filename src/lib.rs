//! codex-sidecar: OpenAI's Codex CLI behind gRPC, on a warm and supervised pool.
//!
//! For callers in Rust there are [`pb`], the contract's messages, and [`client`], its stubs. The rest is
//! the binary's.
//!
//! In reading order. `app` wires everything; `grpc` is the edge; `turn` is the domain; `registry` and
//! `pool` are what it stands on; `worker` is one Codex process, which `app_server` speaks with and
//! `process` starts and ends; `model` are the words that all of them speak.

mod access;
mod app;
mod app_server;
mod cli;
mod codex_cli;
mod config;
mod grpc;
mod model;
#[cfg(feature = "offline-model")]
mod offline_model;
#[cfg(not(feature = "offline-model"))]
#[path = "offline_model/absent.rs"]
mod offline_model;
mod output_schema;
#[doc(hidden)]
#[allow(missing_docs, reason = "it has no readers")]
pub mod parts;
mod pool;
mod process;
mod redact;
mod registry;
mod telemetry;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod turn;
mod worker;

pub use grpc::client;

#[doc(hidden)]
pub use cli::main;
#[doc(hidden)]
pub use process::guard_if_asked;

/// The contract's messages. Its stubs are in [`client`].
#[allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]
pub mod pb {
    include!(concat!(env!("OUT_DIR"), "/messages/codex.sidecar.v1.rs"));

    /// The contract's descriptors, for reflection.
    pub const DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/codex_sidecar_descriptor.bin"));
}
