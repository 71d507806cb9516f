//! The integration tests: one binary, a module for each theme, and what they share in [`support`].
//!
//! One binary, because it is linked once. A test must not touch what belongs to the process: it names
//! its own directories, and what needs a process of its own gets one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, and says where"
)]

mod support;

mod asked;
mod attach;
#[cfg(target_os = "linux")]
mod attacks;
mod cli;
mod cli_questions;
mod cli_state;
mod cli_terminal;
mod clocks;
#[cfg(target_os = "linux")]
mod codex_home;
mod configuration_file;
#[cfg(target_os = "linux")]
mod crashes;
mod doors;
mod events;
mod exec;
mod failures;
#[cfg(target_os = "linux")]
mod faults_edge;
#[cfg(target_os = "linux")]
mod faults_ledger;
mod faults_pool;
#[cfg(target_os = "linux")]
mod faults_process;
mod faults_worker;
mod history;
mod idempotency;
mod idle_threads;
mod inputs;
mod lifecycle;
mod long_lines;
mod mcp;
mod mcp_server;
mod options;
mod ownership;
mod policies;
mod policy;
#[cfg(target_os = "linux")]
mod processes;
#[cfg(target_os = "linux")]
mod provider_key;
mod python_client;
mod questions;
mod queueing;
mod registry;
mod restarts;
mod review;
mod rollout;
mod schedules;
mod secrets;
mod settings;
mod soak;
mod structure;
mod tenants;
mod threads;
mod unary;
mod validation;
mod version_matrix;
#[cfg(target_os = "linux")]
mod way_back;
