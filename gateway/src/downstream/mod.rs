//! The client's side.

/// Who may ask: the key ring.
pub mod keys;
