//! The sidecar in memory: from a request to the events of its turn, over workers that the test plays.

mod attach;
mod calls;
mod clocks;
mod commands;
mod contexts;
mod erase;
mod failures;
mod faults_pool;
mod faults_together;
mod faults_worker;
mod fuzz;
mod history;
mod idempotency;
mod idle_threads;
mod kept_contexts;
mod killed;
mod mcp;
mod ownership;
mod policies;
mod policy;
mod questions;
mod queueing;
mod restart;
mod settings;
