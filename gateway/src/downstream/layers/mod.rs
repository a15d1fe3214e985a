//! Request policy as tower layers, outermost first: what a request must pass before `flow` gets it.
//!
//! | layer | enters | leaves | refuses |
//! | --- | --- | --- | --- |
//! | `trace` | `Request<Incoming>` | `Call<Incoming>` | unknown routes, header limits |
//! | `guard` | a call | the same | a panic becomes 500 |
//! | `auth` | a call | with an identity | 401, 429 |
//! | `admit` | a call | with a permit | 503 |
//! | `rate` | a call | with a charge | 429 |
//! | `body` | a call | `Call<Bytes>` | 408, 413, 415, 503 |
//!
//! A layer answers with a fault; only `trace` makes a response of it. Permits live inside the call and move into the
//! response's body: a tower limit that ends at the response head would count nothing of a stream (trap 3).

// Identity of the request, its route, faults to responses.
pub mod trace;
// A panic of one request ends that request.
pub mod guard;
// The shape of the two below, which only decide.
pub mod gate;
// Who asks.
pub mod auth;
// Room in the process.
pub mod admit;
// What its key may use.
pub mod rate;
// The whole body, within its limits.
pub mod body;
