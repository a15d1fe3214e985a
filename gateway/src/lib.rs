//! Sluice does here: sockets, processes, files, time. What is decided, `sluice_policy` decides.
//!
//! The modules stand in the order in which a request meets them; those that stand beside its path say so.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

// The command line.
pub mod cli;
// The one configuration file.
pub mod config;
// The process: what is built at start, in which order, and how it ends.
pub mod app;
// Who may ask: keys, kept as hashes.
pub mod keys;
// 1 The client's side: listener, TLS, layers, endpoints, faults.
pub mod downstream;
// 2 One request: ask, plan, attempt, relay, record.
pub mod flow;
// 3 vLLM's side: client, fleet, replica, probes.
pub mod upstream;
// Beside the path: homes of conversations that several gateways share.
pub mod affinity;
// 4 What is kept of a request.
pub mod record;
// Beside the path: holds every replica to its launcher and profile.
pub mod supervisor;
// Beside the path: metrics.
pub mod telemetry;
// Beside the path: the admin listener.
pub mod admin;
// Beside the path: a stand-in for vLLM.
pub mod simulator;
