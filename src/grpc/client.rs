//! The contract's stubs for those who call it.

#![allow(missing_docs, clippy::all, clippy::pedantic, rustdoc::all, reason = "generated")]

include!(concat!(env!("OUT_DIR"), "/client/codex.sidecar.v1.rs"));
