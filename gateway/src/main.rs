//! The `sluice` program: the command line, and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: whoever speaks TLS afterwards finds its provider. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    sluice_gateway::cli::main()
}
