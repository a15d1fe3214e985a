//! Which replica: what a request has in common with earlier ones, what each replica would need for it, and the choice.
//!
//! Enters: a [`chain::Chain`], a session key, which replicas may be asked, `now` since the router's birth. Leaves: a
//! [`choose::Decision`] with its reason. What became of it comes back as a ticket's first token and end.

// The session key ladder.
pub mod session;
// The conversation chain: what the template renders, hashed piece by piece.
pub mod chain;
// What was touched last, by hash.
mod recent;
// Which replica has which part of a conversation in its KV cache.
pub mod index;
// Conversations that will speak again.
mod live;
// How long a replica needs for a prompt, learned; and what it has to do before.
pub mod cost;
// What gateways before the same fleet tell each other of a conversation.
pub mod shared;
// The decision, and what is learned from its outcome.
pub mod choose;
// What a router knows, as it is saved over a restart.
pub mod saved;
