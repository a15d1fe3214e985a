//! Which replica: for now the session key of B32.

// The session key ladder.
pub mod session;
