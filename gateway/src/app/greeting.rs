//! What a person reads at the start: where to point a client, which key, and that simulated answers are simulated.

use std::io::Write;
use std::net::SocketAddr;

use crate::upstream::{Backend, Replica};

/// A line for the person who started the process. It goes to standard error, beside the log, whatever the log's format;
/// nothing is lost if nobody reads.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A new key, shown once.
pub fn new_key(key: &str, listen: SocketAddr, tls: bool, model: &str) {
    let scheme = if tls { "https" } else { "http" };
    let host = if listen.ip().is_unspecified() { "127.0.0.1".to_owned() } else { listen.ip().to_string() };
    let port = listen.port();
    let model = if model.is_empty() { String::new() } else { format!("\"model\": \"{model}\", ") };
    say(&format!(
        "\nA key was made, since there was none. It is shown only now:\n\n  {key}\n\nTry it:\n\n  \
         curl {scheme}://{host}:{port}/v1/chat/completions -H 'Authorization: Bearer {key}' \\\n    \
         -H 'Content-Type: application/json' \\\n    \
         -d '{{{model}\"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n"
    ));
}

/// A replica became ready.
pub fn ready(backend: &Backend, replica: &Replica, url: &str) {
    if replica.simulated {
        tracing::warn!(replica = %replica.name, model = %backend.model(), "ready, SIMULATED: its answers are made up and say so");
    } else {
        tracing::info!(replica = %replica.name, model = %backend.model(), url, "ready");
    }
}
