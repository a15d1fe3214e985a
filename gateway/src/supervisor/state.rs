//! What is: where each replica stands, as the rest of the gateway sees it.

use jiff::Timestamp;
use sluice_policy::profile::Finding;

/// Where a replica stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaState {
    /// Nobody has looked yet: it may be there already.
    Looking {
        /// Since when.
        since: Timestamp,
    },
    /// Started (or looked for), not ready yet.
    Starting {
        /// Since when.
        since: Timestamp,
    },
    /// It answers, and lists its model.
    Ready {
        /// Since when.
        since: Timestamp,
        /// Where it listens, without a path.
        url: String,
        /// vLLM's version, if it says.
        version: Option<String>,
        /// The ids that it lists, its own before those of adapters.
        models: Vec<String>,
    },
    /// An external one that was there and isn't now.
    Unreachable {
        /// Since when.
        since: Timestamp,
        /// What the last look at it found.
        why: String,
    },
    /// It is being ended.
    Stopping,
    /// It ended by itself, or didn't come up.
    Crashed {
        /// Why, with its proof.
        finding: Finding,
        /// Failures in a row.
        restarts: u32,
        /// When it is started again; none while the last one's remains are cleared away, or when trying again can't help.
        next_try: Option<Timestamp>,
    },
    /// Not running, and not wanted.
    Stopped,
}

impl ReplicaState {
    /// The name in `/health` and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            ReplicaState::Looking { .. } | ReplicaState::Starting { .. } => "starting",
            ReplicaState::Ready { .. } => "ready",
            ReplicaState::Unreachable { .. } => "unreachable",
            ReplicaState::Stopping => "stopping",
            ReplicaState::Crashed { .. } => "crashed",
            ReplicaState::Stopped => "stopped",
        }
    }

    /// Nobody has to do anything for it to be ready, now or after a while.
    pub fn may_return(&self) -> bool {
        match self {
            ReplicaState::Crashed { finding, next_try, .. } => next_try.is_some() || finding.diagnosis.may_pass(),
            ReplicaState::Stopped => false,
            ReplicaState::Looking { .. }
            | ReplicaState::Starting { .. }
            | ReplicaState::Ready { .. }
            | ReplicaState::Unreachable { .. }
            | ReplicaState::Stopping => true,
        }
    }

    /// Where to send requests, while there is somebody.
    pub fn url(&self) -> Option<&str> {
        match self {
            ReplicaState::Ready { url, .. } => Some(url),
            _ => None,
        }
    }
}
