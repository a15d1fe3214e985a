//! Recordings of a real vLLM replayed through `Turn`: what a client gets is one valid sequence of deltas, the same message as
//! the non-stream answer gives, and what `behaviour.md` asks for, however the bytes are split.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod client;
mod expected;
mod parsed;
mod replay;
mod splits;
mod tape;
mod torn;
