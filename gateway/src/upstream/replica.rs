//! One running vLLM as the path sees it: where it listens, what it runs now, whether it may be asked.
//!
//! The supervisor and the probes write its state, `fleet` reads it. Everything here is an atomic or swapped as a whole:
//! a request never waits for another one.

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use sluice_policy::reasoning::Opener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::address::Address;
use super::client::Pool;

/// After a failed connect or a lost connection a replica is left alone for this long, doubled at each failure in a row.
const FIRST_REST: Duration = Duration::from_millis(500);
/// The longest such rest: a replica that comes back is noticed by a probe before.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// Whether the path may use a replica, as supervisor and probes see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Readiness {
    /// Not proven yet: used only if nothing is ready.
    Unknown = 0,
    /// `/health` answered 200.
    Ready = 1,
    /// Starting, stopping, crashed or not answering.
    Down = 2,
}

/// How tool calls are found in a replica's answers (B19), as the readiness probe found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ToolSetup {
    /// `tool_choice: "none"` keeps the tools in the prompt, no parser on vLLM's side.
    Raw = 0,
    /// The same, and vLLM has parsers of its own for `required` and named functions.
    Parsers = 1,
    /// `tool_choice: "none"` drops the tools from the prompt: vLLM must parse.
    EngineOnly = 2,
}

/// One running vLLM with its own KV cache.
pub struct Replica {
    /// Its name in the configuration and in `x-sluice-replica`.
    pub name: Arc<str>,
    /// A stand-in: its answers are marked.
    pub simulated: bool,
    /// `Authorization` for it, from the backend's own setting.
    pub authorization: Option<HeaderValue>,
    /// Idle connections.
    pub pool: Arc<Pool>,
    address: ArcSwapOption<Address>,
    model: ArcSwap<String>,
    readiness: AtomicU8,
    tool_setup: AtomicU8,
    opener: AtomicU8,
    in_flight: AtomicUsize,
    failures: AtomicU32,
    rests_until_ms: AtomicU64,
    born: Instant,
}

impl Replica {
    /// A replica that nobody has asked yet.
    pub fn new(name: &str, simulated: bool, authorization: Option<HeaderValue>, address: Option<Address>) -> Self {
        Replica {
            name: name.into(),
            simulated,
            authorization,
            pool: Arc::default(),
            address: ArcSwapOption::from_pointee(address),
            model: ArcSwap::default(),
            readiness: AtomicU8::new(Readiness::Unknown as u8),
            tool_setup: AtomicU8::new(ToolSetup::Raw as u8),
            opener: AtomicU8::new(0),
            in_flight: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            rests_until_ms: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// Where it listens; `None` while it has no address yet (being started).
    pub fn address(&self) -> Option<Arc<Address>> {
        self.address.load_full()
    }

    /// It listens there from now on. Idle connections to the old place are closed.
    pub fn moved_to(&self, address: Option<Address>) {
        self.address.store(address.map(Arc::new));
        self.pool.clear();
    }

    /// The model id that it serves; empty until it has said so.
    pub fn model(&self) -> Arc<String> {
        self.model.load_full()
    }

    /// It serves this id.
    pub fn serves(&self, model: &str) {
        self.model.store(Arc::new(model.to_owned()));
    }

    /// What supervisor and probes last said.
    pub fn readiness(&self) -> Readiness {
        match self.readiness.load(Ordering::Relaxed) {
            1 => Readiness::Ready,
            2 => Readiness::Down,
            _ => Readiness::Unknown,
        }
    }

    /// Says it, and returns what was said before.
    pub fn set_readiness(&self, readiness: Readiness) -> Readiness {
        let before = self.readiness();
        self.readiness.store(readiness as u8, Ordering::Relaxed);
        if readiness == Readiness::Ready {
            self.answered();
        }
        before
    }

    /// How tools are asked for.
    pub fn tool_setup(&self) -> ToolSetup {
        match self.tool_setup.load(Ordering::Relaxed) {
            1 => ToolSetup::Parsers,
            2 => ToolSetup::EngineOnly,
            _ => ToolSetup::Raw,
        }
    }

    /// What the readiness probe found.
    pub fn set_tool_setup(&self, setup: ToolSetup) {
        self.tool_setup.store(setup as u8, Ordering::Relaxed);
    }

    /// Who opens think blocks in its answers. Until it is known nothing is held back to find out: a stream must flow.
    pub fn opener(&self) -> Opener {
        match self.opener.load(Ordering::Relaxed) {
            1 => Opener::Model,
            2 => Opener::Prompt,
            _ => Opener::Unknown { hold: 0 },
        }
    }

    /// The probe or an answer showed it.
    pub fn set_opener(&self, opener: Opener) {
        let known = match opener {
            Opener::Model => 1,
            Opener::Prompt => 2,
            Opener::Unknown { .. } => return,
        };
        self.opener.store(known, Ordering::Relaxed);
    }

    /// Requests dispatched and not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Counts one request from dispatch to its end.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    /// May be asked now: has an address, isn't down, isn't resting after a failure.
    pub fn is_usable(&self) -> bool {
        self.readiness() != Readiness::Down && !self.is_resting() && self.address.load().is_some()
    }

    /// Left alone for a moment after a failure.
    pub fn is_resting(&self) -> bool {
        self.now_ms() < self.rests_until_ms.load(Ordering::Relaxed)
    }

    /// A connect failed or a connection broke: it rests.
    pub fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(16);
        let rest = FIRST_REST.saturating_mul(1 << failures).min(LONGEST_REST);
        self.rests_until_ms
            .store(self.now_ms() + rest.as_millis() as u64, Ordering::Relaxed);
        self.pool.clear();
    }

    /// It answered: no more rest.
    pub fn answered(&self) {
        if self.failures.swap(0, Ordering::Relaxed) != 0 {
            self.rests_until_ms.store(0, Ordering::Relaxed);
        }
    }

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}

/// One request in flight; dropping it ends the count.
pub struct InFlight(Arc<Replica>);

impl InFlight {
    /// The replica that it counts on.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_rests_and_an_answer_ends_the_rest() {
        let replica = Replica::new("a", false, None, Some(Address::loopback(1)));
        assert!(replica.is_usable());
        replica.failed();
        assert!(!replica.is_usable());
        replica.answered();
        assert!(replica.is_usable());
        replica.set_readiness(Readiness::Down);
        assert!(!replica.is_usable());
    }

    #[test]
    fn in_flight_ends_with_its_guard() {
        let replica = Arc::new(Replica::new("a", false, None, None));
        let guard = replica.begin();
        assert_eq!(replica.in_flight(), 1);
        drop(guard);
        assert_eq!(replica.in_flight(), 0);
    }
}
