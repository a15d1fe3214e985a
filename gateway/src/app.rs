//! The process: what is built at start, in which order, and how it ends.
//!
//! Enters: where the configuration comes from. Leaves: an exit code. pingora is the shell (listeners, runtimes, the signal
//! that everything hears); requests are served by `downstream`, everything beside their path runs in one background
//! service of one thread (`beside`). The end is ours: pingora's grace period is a fixed sleep (trap 1), so `drain` leaves
//! as soon as the last stream has ended.

/// What runs beside the path.
pub mod beside;
/// From configuration to what requests use.
pub mod build;
/// The end.
pub mod drain;
/// What a person reads at the start.
pub mod greeting;

use pingora_core::listeners::{ConnectionFilter, ListenerConfig};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{Config, Live, Source};
use crate::downstream::keys::KeyRing;
use crate::record;
use crate::supervisor;

/// How `sluice serve` was called.
pub struct AppOptions {
    /// Where the configuration comes from.
    pub source: Source,
}
