//! Behaviours of the built gateway over real sockets, one file each; `B…` are the rules that they hold.
//!
//! Every test starts the `sluice` binary with a configuration of its own and short limits. Behind it stand scripted
//! replicas, which the test drives byte by byte, or simulated ones. Times in assertions are guards against hanging, never
//! measurements: what must be *before* something else is shown by order (a script that goes on only after the client has
//! seen the last step).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// Measured times, and the log of a gateway whose test failed.
#![allow(clippy::print_stdout, clippy::print_stderr)]

/// The gateway as a process, scripted replicas, and clients that see every byte.
mod harness;

mod admission;
mod affinity;
mod auth;
mod bodies;
mod broken_upstream;
mod cancel;
mod chaos;
mod continuation;
mod crowd;
mod discovery;
mod drain;
mod edge_routes;
mod engine_mode;
mod errors;
mod fallback;
mod fleet;
mod h2;
mod headers;
mod health;
mod history;
mod hold;
mod leaving_client;
mod limits;
mod nodelay;
mod rates;
mod reask;
mod records;
mod reload;
mod routing;
mod same_message;
mod schema;
mod stream_shape;
mod tls;
mod tool_release;
mod upgrade;
mod upstream_tls;
