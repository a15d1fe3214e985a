//! What is measured, once for both harnesses: `benches/time.rs` (criterion) and `benches/instructions.rs` (gungraun).
//!
//! Each input is made by a seeded generator, so that two runs, and two machines, measure the same bytes. A [`Case`] has its
//! input prepared and its stages warmed; `run` is what is measured. Read on in `answers.rs` (what a model sends) and
//! `requests.rs` (what an agent asks). `broken` and `chaos` are no measures of time: the one breaks calls
//! and counts what repair makes of them, the other breaks replicas and judges what clients get. The servers that the end-to-end run needs are in `bin/`, the run itself in `e2e.py`.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

// Answers of a model, as chunks of vLLM's stream.
pub mod answers;
// Broken calls, and what becomes of them.
pub mod broken;
// One call through the scanner.
pub mod calls;
// Agents and faults, end to end.
pub mod chaos;
// Requests of an agent.
pub mod requests;
// Decisions of the router.
pub mod routing;
// The generator.
pub mod seed;

pub use answers::{Pushes, decoding, pushes};
pub use calls::{Scan, scan};
pub use requests::{Reading, reading};
pub use routing::{Routing, routing};

/// What is done with a prepared input.
pub trait Case {
    /// The measured part. What it makes is kept until [`Case::rest`], so that freeing it isn't measured.
    fn run(&mut self);
    /// How many units (chunks, events, requests) one run handles.
    fn units(&self) -> u64;
    /// Puts what was made away.
    fn rest(&mut self);
}
