//! The simulator over a real socket: vLLM's bytes, faults on demand, clients that leave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

mod answers;
mod client;
mod faults;
mod recordings;
