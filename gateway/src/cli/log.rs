//! The log: where every `tracing` event and pingora's `log` lines go, as `[log]` says.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use super::output;
use crate::config::{LogConfig, LogFormat};

/// Sends the process's log to standard error. Once, before anything that may have something to say.
pub(super) fn install(config: &LogConfig) -> Result<(), LogError> {
    let colour = output::is_colourful(io::stderr().is_terminal(), |name| std::env::var_os(name));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(&config.level))
        .with_writer(io::stderr)
        .with_ansi(colour);
    match config.format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(LogError)
}

/// What is let through. The shell's own lines about its threads and listeners are no news at `info`; whoever names a module, or
/// asks for more than `info`, gets what was asked for.
fn filter(level: &str) -> EnvFilter {
    let level = match level.trim() {
        bare if bare.eq_ignore_ascii_case("info") => "info,pingora_core=warn",
        other => other,
    };
    // The configuration has been checked: what doesn't parse here has no place to come from.
    EnvFilter::builder()
        .parse(level)
        .unwrap_or_else(|_| EnvFilter::new("info"))
}

/// There is a log already.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the log: {0}")]
pub(super) struct LogError(Box<dyn std::error::Error + Send + Sync>);

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The names of the lines that come through at that level.
    fn shown(level: &str) -> String {
        let lines = Lines::default();
        let into = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter(level))
            .with_writer(move || into.clone())
            .with_ansi(false)
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::error!(target: "pingora_core::server", "shell-error");
            tracing::info!(target: "pingora_core::server", "shell-info");
            tracing::debug!(target: "pingora_core::server", "shell-debug");
            tracing::info!(target: "sluice_gateway::flow", "ours-info");
            tracing::debug!(target: "sluice_gateway::flow", "ours-debug");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let names = text.lines().filter_map(|line| line.split_whitespace().last());
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_shell_is_quiet_unless_it_is_asked_for() {
        assert_eq!(shown("info"), "shell-error ours-info");
        assert_eq!(shown(" INFO "), "shell-error ours-info");
        assert_eq!(shown("error"), "shell-error");
        assert_eq!(
            shown("debug"),
            "shell-error shell-info shell-debug ours-info ours-debug"
        );
        assert_eq!(shown("info,pingora_core=info"), "shell-error shell-info ours-info");
        assert_eq!(
            shown("info,sluice_gateway::flow=debug"),
            "shell-error shell-info ours-info ours-debug"
        );
    }
}
