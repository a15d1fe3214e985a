//! Sluice decides here: plain data in, decisions out.
//!
//! No sockets, no runtime, no clock (`now` is an argument), no randomness of its own, no `unsafe`. Whatever a byte stream
//! does, it can be replayed here in a test, split at any byte. The modules stand in the order in which a request meets them;
//! `gateway` does what is decided here.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

// Wire types and codecs: what a client asks, what vLLM sends, what the client gets.
pub mod protocol;
// Which replica: the session key and its hash.
pub mod route;
// What a new configuration makes of the replicas that run.
pub mod membership;
// Whether a replica may be asked: its breaker, and whether its engine moves.
pub mod health;
// A place for each request before it is sent: rooms of replicas, the queue before them.
pub mod admission;
// The past of a conversation, made safe before it is sent.
pub mod history;
// `<think>` text apart from the answer.
pub mod reasoning;
// Tool calls found in the answer's text.
pub mod tool_call;
// One answer, composed of the stages above: upstream bytes in, steps out.
pub mod turn;
// Instants in, TTFT, ITL, TPOT and tokens per second out.
pub mod meter;
// Launch profiles: typed settings, argv, crash diagnosis.
pub mod profile;
