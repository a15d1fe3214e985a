//! Another process takes over (B37): the same sockets, the same replicas, no connection refused, no stream cut.
//!
//! The running gateway starts its successor and talks with it over a pair of Unix sockets, the successor's end of which is its standard
//! input: no name in a file system, no right to check. With the first word go the listening sockets, so that their accept queues are never
//! closed. Whatever goes wrong up to the word `Serving` ends the successor and leaves everything as it was.
//!
//! | the old process | the new one |
//! | --- | --- |
//! | starts it; `TakeOver` with the sockets | reads configuration, keys, records; builds everything |
//! | | `Prepared`, or `Failed` |
//! | saves what routers know, lets go of launched replicas; `Go` | restores it, adopts replicas, waits until those are ready that were |
//! | | `Serving`, or `Failed` |
//! | accepts no more; `Taken`: of keys and of replicas | goes on from there, accepts |
//! | finishes what it has, says `Taken` again, and leaves | |
//!
//! Sides: `successor` is what the old process knows of the new one, `predecessor` the reverse; `wire` is between them, `control` is where
//! `sluice upgrade` asks for it, `sockets` what is handed on.

// Who asks for it.
pub mod control;
// The new process, seen from the old one.
pub mod successor;
// The old process, seen from the new one.
pub mod predecessor;
// Listening sockets.
pub mod sockets;
// The turn, on both sides.
mod handover;
// What they say to each other.
mod wire;

/// Why another process didn't take over. The old one goes on.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The kernel ends a container with its first process.
    #[error(
        "the gateway is process 1 of its container, which ends with it: start a container of the new image beside it, then stop this one"
    )]
    FirstProcess,
    /// Its program can't be started.
    #[error("{program} can't be started: {source}")]
    Start {
        /// The file.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It says why it can't serve.
    #[error("the new process can't take over: {0}")]
    Failed(String),
    /// It ended without a word.
    #[error("the new process ended ({0}); the gateway's log says more")]
    Ended(String),
    /// It said nothing in time.
    #[error("the new process wasn't {what} within {limit:?}; it was ended")]
    Late {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: std::time::Duration,
    },
    /// What it said is none of the words above.
    #[error("the new process doesn't speak as this one does: {0}")]
    Garbled(String),
    /// The sockets between the two.
    #[error("the two processes can't talk: {0}")]
    Talk(#[from] std::io::Error),
    /// SIGTERM came first.
    #[error("the gateway was told to end")]
    Ending,
}
