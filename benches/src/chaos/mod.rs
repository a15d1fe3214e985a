//! A fault campaign against the built gateway: agents ask through it while its replicas are killed, stopped, slowed and reset by a
//! seeded schedule, and every answer is judged from its bytes alone.
//!
//! Enters: a [`Campaign`]. Leaves: a [`Report`], whose verdicts come from the client's side only; records and log of the gateway are
//! read for figures (how many went on elsewhere, were retried, held), never for a verdict. In order of use: `told` (what a model is
//! told to say, in numbered words), `agent` (who asks, and how it behaves), `http` (its connection), `heard` (what arrived), `judge`
//! (is it what was told), `fleet` (the processes), `schedule` (what befalls them), `report`. `crowd` and `growth` are campaigns of
//! their own: many streams at once that lose a replica, and many short requests.

mod agent;
mod campaign;
mod crowd;
mod fleet;
mod growth;
mod heard;
mod http;
mod judge;
mod report;
mod schedule;
mod told;

pub use campaign::Campaign;
pub use crowd::Crowd;
pub use growth::Growth;
pub use report::Report;
