//! vLLM's side. Enters: a request body in segments and the name of a backend. Leaves: an [`Answer`] that is read by polling.
//!
//! Only this room opens sockets to vLLM. It decides nothing about the answer's content: `flow` reads it, `policy` judges it.
//! Read on in `fleet.rs` (which replica), then `client.rs` (one connection, driven by its reader).

// Backends with their replicas, and the choice between them.
pub mod fleet;
// Which replicas a backend has now.
pub mod members;
// What is known of conversations and replicas, for that choice.
pub mod routing;
// Whether a replica may be asked, and what was seen of its engine.
pub mod health;
// Requests in flight on a replica.
pub mod flight;
// A place for each request at them.
pub mod admission;
// One running vLLM.
pub mod replica;
// Where it listens.
pub mod address;
// TLS to it, and the connection that requests run over.
pub mod tls;
// One HTTP/1.1 connection and the pool of idle ones.
pub mod client;
// How a replica takes tool requests, asked when it becomes ready.
pub mod probe;

pub use address::{Address, UrlFault};
pub use client::{Answer, Segments, UpstreamError};
pub use fleet::{Backend, Choice, Fleet, Member, Route, Wanted};
pub use flight::InFlight;
pub use members::Members;
pub use replica::Replica;
pub use routing::Routed;
pub use tls::{Tls, TlsError};
