//! One running vLLM as the path sees it: where it listens, what it runs now, whether it may be asked.
//!
//! The supervisor and the probes write its state, `fleet` reads it. Everything here is an atomic, swapped as a whole, or behind a lock
//! that is held for one step: a request never waits for another one.

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use sluice_policy::health::breaker::{Event, Phase};
use sluice_policy::reasoning::Opener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::address::Address;
use super::client::Pool;
use super::flight::{Flights, InFlight};
use super::health::Health;

/// The first look at a replica takes no longer, as a rule: it is up to three requests of 5 s at most, which a server that runs
/// answers at once.
const FIRST_LOOK: Duration = Duration::from_secs(10);

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

/// Where a replica stands, for people: what the supervisor says of it, and if that is ready, what its breaker does. A closed set: it
/// labels a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Not proven yet.
    Unknown,
    /// Takes requests.
    Ready,
    /// Starting, stopping, crashed or not answering.
    Down,
    /// It failed: left alone for a moment.
    Resting,
    /// It makes no progress (B36).
    Hung,
    /// Perhaps back: a few requests try it.
    Probing,
    /// Back: it gets more and more requests.
    Returning,
}

impl Standing {
    /// All there are.
    pub const ALL: [Standing; 7] = [
        Standing::Unknown,
        Standing::Ready,
        Standing::Down,
        Standing::Resting,
        Standing::Hung,
        Standing::Probing,
        Standing::Returning,
    ];

    /// Its name in `/health` and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Standing::Unknown => "unknown",
            Standing::Ready => "ready",
            Standing::Down => "down",
            Standing::Resting => "resting",
            Standing::Hung => "hung",
            Standing::Probing => "probing",
            Standing::Returning => "returning",
        }
    }

    /// Requests may go there, perhaps not all.
    pub fn is_up(self) -> bool {
        matches!(self, Standing::Ready | Standing::Probing | Standing::Returning)
    }
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

/// A replica's name: a reload may change it.
#[derive(Clone)]
pub struct Name(Arc<ArcSwap<Arc<str>>>);

impl Name {
    fn new(name: &str) -> Name {
        Name(Arc::new(ArcSwap::from_pointee(name.into())))
    }

    /// As it is now.
    pub fn get(&self) -> Arc<str> {
        Arc::clone(&self.0.load())
    }
}

/// One running vLLM with its own KV cache.
pub struct Replica {
    name: Name,
    /// A stand-in: its answers are marked.
    pub simulated: bool,
    authorization: ArcSwapOption<HeaderValue>,
    /// Idle connections.
    pub pool: Arc<Pool>,
    address: ArcSwapOption<Address>,
    model: ArcSwap<String>,
    readiness: AtomicU8,
    was_ready: AtomicBool,
    is_successor: AtomicBool,
    may_return: AtomicBool,
    returns: AtomicU32,
    tool_setup: AtomicU8,
    opener: AtomicU8,
    born: Instant,
    /// When its server started, as bits of a figure; 0 if that isn't known.
    started: AtomicU64,
    /// Requests that it works on.
    pub flights: Flights,
    /// Whether it may be asked, and what was seen of its engine.
    pub health: Arc<Health>,
}

impl Replica {
    /// A replica that nobody has asked yet.
    pub fn new(name: &str, simulated: bool, authorization: Option<HeaderValue>, address: Option<Address>) -> Self {
        let name = Name::new(name);
        Replica {
            health: Health::new(name.clone()),
            name,
            simulated,
            authorization: ArcSwapOption::from_pointee(authorization),
            pool: Arc::default(),
            address: ArcSwapOption::from_pointee(address),
            model: ArcSwap::default(),
            readiness: AtomicU8::new(Readiness::Unknown as u8),
            was_ready: AtomicBool::new(false),
            is_successor: AtomicBool::new(false),
            may_return: AtomicBool::new(true),
            returns: AtomicU32::new(0),
            tool_setup: AtomicU8::new(ToolSetup::Raw as u8),
            opener: AtomicU8::new(0),
            born: Instant::now(),
            started: AtomicU64::new(0),
            flights: Flights::default(),
        }
    }

    /// Its name in the configuration and in `x-sluice-replica`.
    pub fn name(&self) -> Arc<str> {
        self.name.get()
    }

    /// The configuration calls it so from now on.
    pub fn rename(&self, name: &str) {
        self.name.0.store(Arc::new(name.into()));
    }

    /// `Authorization` for it, from the backend's own setting.
    pub fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.load().as_deref().cloned()
    }

    /// It wants this from now on.
    pub fn set_authorization(&self, authorization: Option<HeaderValue>) {
        self.authorization.store(authorization.map(Arc::new));
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
            self.was_ready.store(true, Ordering::Relaxed);
        }
        before
    }

    /// It was away and is ready again: for all that is known, it has started anew, and not everybody is to try it at once.
    pub fn has_returned(&self) {
        self.returns.fetch_add(1, Ordering::Relaxed);
        self.health.step(Event::Returned);
    }

    /// How often it was away: what it says before and after is of two engines.
    pub fn returns(&self) -> u32 {
        self.returns.load(Ordering::Relaxed)
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

    /// When its server started, as it last said.
    pub fn started_s(&self) -> Option<f64> {
        let bits = self.started.load(Ordering::Relaxed);
        (bits != 0).then(|| f64::from_bits(bits))
    }

    /// It says when its server started, or doesn't.
    pub fn set_started_s(&self, started: Option<f64>) {
        self.started.store(started.map_or(0, f64::to_bits), Ordering::Relaxed);
    }

    /// Requests dispatched and not ended.
    pub fn in_flight(&self) -> usize {
        self.flights.count()
    }

    /// Counts one request from dispatch to its end.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        InFlight::begin(self.clone())
    }

    /// It was there once.
    pub fn was_ready(&self) -> bool {
        self.was_ready.load(Ordering::Relaxed)
    }

    /// It takes the place of one that was there: requests that nobody else can take are held until it is ready.
    pub fn succeeds(&self) {
        self.is_successor.store(true, Ordering::Relaxed);
        self.set_readiness(Readiness::Down);
    }

    /// Whether the supervisor thinks that it comes back by itself, while it is down.
    pub fn set_may_return(&self, may_return: bool) {
        self.may_return.store(may_return, Ordering::Relaxed);
    }

    /// It was there, or one whose place it takes, is away, and may come by itself (B35).
    pub fn is_expected(&self) -> bool {
        let is_away = self.readiness() == Readiness::Down || self.health.phase() == Phase::Hung;
        let is_known = self.was_ready() || self.is_successor.load(Ordering::Relaxed);
        is_away && is_known && self.may_return.load(Ordering::Relaxed)
    }

    /// Nobody has looked at it yet, and somebody is about to: it may be there already.
    pub fn is_unseen(&self) -> bool {
        self.readiness() == Readiness::Unknown && self.address.load().is_none() && self.born.elapsed() < FIRST_LOOK
    }

    /// May be asked now: has an address, isn't down, and its breaker admits.
    pub fn is_usable(&self) -> bool {
        self.readiness() != Readiness::Down && self.address.load().is_some() && self.health.admits()
    }

    /// May be asked if nobody else can be: its breaker may be open, but it isn't known to be down or to hang.
    pub fn is_last_resort(&self) -> bool {
        self.readiness() != Readiness::Down && self.address.load().is_some() && self.health.phase() != Phase::Hung
    }

    /// For people.
    pub fn standing(&self) -> Standing {
        match (self.readiness(), self.health.phase()) {
            (Readiness::Down, _) => Standing::Down,
            (_, Phase::Hung) => Standing::Hung,
            (Readiness::Unknown, _) => Standing::Unknown,
            (Readiness::Ready, Phase::Closed) => Standing::Ready,
            (Readiness::Ready, Phase::Open) => Standing::Resting,
            (Readiness::Ready, Phase::Probing) => Standing::Probing,
            (Readiness::Ready, Phase::Returning) => Standing::Returning,
        }
    }

    /// A connect failed, a connection broke, or its engine said that it is dead.
    pub fn failed(&self) {
        self.health.step(Event::Broke);
        self.pool.clear();
    }

    /// It makes no progress: nobody asks it, and what is in flight there is to leave. Returns how many were.
    pub fn hangs(&self) -> usize {
        self.health.step(Event::Hung);
        self.pool.clear();
        self.flights.leave()
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
        assert_eq!(replica.standing(), Standing::Unknown, "nothing has proven it");
        assert!(replica.is_last_resort());
        replica.health.step(Event::Good);
        assert!(replica.is_usable());
        replica.set_readiness(Readiness::Down);
        assert!(!replica.is_usable());
    }

    #[test]
    fn one_that_hangs_is_not_even_the_last_resort() {
        let replica = Replica::new("a", false, None, Some(Address::loopback(1)));
        replica.set_readiness(Readiness::Ready);
        assert_eq!(replica.hangs(), 0);
        assert_eq!(replica.standing(), Standing::Hung);
        assert!(!replica.is_usable() && !replica.is_last_resort());
        replica.health.step(Event::Alive);
        assert_eq!(replica.standing(), Standing::Probing);
        assert!(replica.is_usable());
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
