//! What a person reads at the start: where to point a client, which key, and that simulated answers are simulated.

use std::io::Write;

use crate::config::{Config, Source};

use crate::upstream::{Backend, Replica};

/// A line for the person who started the process. It goes to standard error, beside the log, whatever the log's format;
/// nothing is lost if nobody reads.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A replica became ready.
pub fn ready(backend: &Backend, replica: &Replica, url: &str) {
    if replica.simulated {
        tracing::warn!(replica = %replica.name(), model = %backend.model(), "ready, SIMULATED: its answers are made up and say so");
    } else {
        tracing::info!(replica = %replica.name(), model = %backend.model(), url, "ready");
    }
}

/// Where clients point, and what answers.
pub fn started(source: &Source, config: &Config, simulated: bool) {
    let scheme = if config.server.tls.enabled { "https" } else { "http" };
    let admin = if config.admin.enabled {
        config.admin.listen.to_string()
    } else {
        "off".to_owned()
    };
    tracing::info!(%source, admin, "sluice {} listens: base_url = {scheme}://{}/v1", env!("CARGO_PKG_VERSION"), config.server.listen);
    if simulated {
        tracing::warn!(
            "SIMULATED replicas answer: no model runs; answers begin with [simulated] and model ids end in -simulated"
        );
    }
}
