//! The log: where every `tracing` event and pingora's `log` lines go, as `[log]` says.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use super::output;
use crate::config::{LogConfig, LogFormat};

/// Sends the process's log to standard error. Once, before anything that may have something to say.
pub(super) fn install(config: &LogConfig) -> Result<(), LogError> {
    // The configuration has been checked: what doesn't parse here has no place to come from.
    let filter = EnvFilter::builder()
        .parse(&config.level)
        .unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = output::is_colourful(io::stderr().is_terminal(), |name| std::env::var_os(name));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour);
    match config.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(LogError)
}

/// There is a log already.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the log: {0}")]
pub(super) struct LogError(Box<dyn std::error::Error + Send + Sync>);
