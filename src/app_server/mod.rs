//! Codex's app-server protocol: newline-delimited JSON-RPC without the `jsonrpc` field.
//!
//! The only place that knows Codex's JSON. [`peer`] speaks it over any pair of byte streams,
//! [`client`] asks with it, [`decode`] turns notifications into domain events, [`settings`] compares
//! what came into force with what was asked.
//! Nothing here knows processes, pools or gRPC.

pub(crate) mod answer;
pub(crate) mod baseline;
pub(crate) mod client;
pub(crate) mod command_environment;
pub(crate) mod decode;
pub(crate) mod lines;
pub(crate) mod login;
pub(crate) mod mcp;
pub(crate) mod message;
pub(crate) mod peer;
pub(crate) mod protected;
pub(crate) mod record;
mod refusal_text;
pub(crate) mod secrets;
pub(crate) mod settings;
pub(crate) mod thread_error;
mod turn_settings;
pub(crate) mod whose;
