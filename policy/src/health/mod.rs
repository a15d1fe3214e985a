//! Whether a replica may be asked (B36): what requests, probes and metrics saw of it, told with the time since an epoch of the caller's.
//!
//! Enters: failures and good answers, an engine's own figures, silence. Leaves: admit, admit as a trial, or reject; and that it hangs.
//! `breaker` remembers what became of requests, `progress` judges whether the engine moves, `engine` reads what it says of itself.
//! Nothing here asks, waits or logs: `gateway` looks, and carries out what is decided.

// May this replica be asked: the state machine.
pub mod breaker;
// What an engine's metrics say.
pub mod engine;
// Does it still move.
pub mod progress;
