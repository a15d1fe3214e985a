//! The client's side. Enters: a byte stream that pingora accepted. Leaves: a [`Call`](crate::flow::call::Call) for `flow`, and the response.
//!
//! Nothing here knows of replicas. Read on in `listener.rs` (a connection), `layers/` (what a request must pass),
//! `endpoints.rs` (what is answered here and what goes to `flow`), `faults.rs` (the only place where faults become responses).

// Whether the process leaves.
pub mod leaving;
// One connection.
pub mod listener;
// Its TLS.
pub mod tls;
// The client's byte stream.
pub mod transport;
// Request policy.
pub mod layers;
// Cross-origin requests.
pub mod cors;
// What each endpoint does.
pub mod endpoints;
// Faults to status and body.
pub mod faults;
