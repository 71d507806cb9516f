//! Codex's app-server protocol: newline-delimited JSON-RPC without the `jsonrpc` field.
//!
//! The only place that knows Codex's JSON. [`peer`] speaks it over any pair of byte streams,
//! [`client`] asks with it, [`decode`] turns notifications into domain events, [`settings`] compares
//! what came into force with what was asked.
//! Nothing here knows processes, pools or gRPC.

mod answer;
pub mod baseline;
pub mod client;
pub mod decode;
pub(crate) mod lines;
pub mod mcp;
pub mod message;
pub mod peer;
pub mod record;
mod refusal_text;
pub mod secrets;
pub mod settings;
pub mod thread_error;
pub mod whose;
