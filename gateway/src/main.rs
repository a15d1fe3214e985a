//! The `sluice` program: the command line, and nothing else.

use std::process::ExitCode;

/// Its background thread gives pages back that nobody needs any more; glibc keeps what a crowd took.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // First of all: whoever speaks TLS afterwards finds its provider. An error means that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    sluice_gateway::cli::main()
}
