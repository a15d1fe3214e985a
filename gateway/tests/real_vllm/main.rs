//! The built gateway before a real vLLM, seen by real clients.
//!
//! `./test real` runs it: one process, one thread, so that a test that watches an engine's counters is alone with it.
//! Engines are shared by all tests ([`engine::shared`]); each test has a gateway of its own. What the model answers is
//! scripted by a marker in the prompt ([`script::Script`]), so that each expectation is exact. Every wait is bounded, and
//! no test prints a prompt or an answer. The folder with `vllm/serve.sh` is `SLUICE_SHARED`, else `shared/` beside the
//! checkout; without it the tests fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed expectation is how a test speaks
#![allow(clippy::print_stderr)] // measured times are printed, not asserted to the millisecond

/// A vLLM on this CPU, ended with the process that started it.
mod engine;
/// The built `sluice` with a config and a state folder of its own.
mod gateway;
/// What one client got, from a stream or from one body.
mod message;
/// What a test makes the model say.
mod script;
/// A client of a hundred lines over a bare socket: it sees each byte and can leave at any moment.
mod wire;

/// curl: bytes of the stream, keep-alive, refusals, HTTP/2.
mod curl;
/// An engine killed with -9: before the first byte, and in mid-stream.
mod death;
/// Each other way to lose an engine, in text and in reasoning.
mod losses;
/// The endpoints beside chat.
mod endpoints;
/// Calls that the client insists on.
mod guided;
/// A restart of the only engine: what runs goes on, what comes waits.
mod held;
/// Past turns: made safe, and the same prefix.
mod history;
/// The process launcher: starts a vLLM with a profile's flags, and leaves nothing of it.
mod launcher;
/// A client that leaves in prefill and in mid-stream.
mod leaving;
/// Fifty streams at once.
mod parallel;
/// One row for each request.
mod records;
/// Calls that aren't valid, asked again.
mod reask;
/// With and without vLLM's parsers, streamed and whole: one message.
mod same_message;
/// A conversation that stays, against round robin.
mod sticky;
/// OpenAI's Python SDK and the Python example.
mod sdk;
