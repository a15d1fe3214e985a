//! Backends with their replicas, and which replica a request goes to.
//!
//! Enters: a backend, the hash of a session key, the replicas already tried. Leaves: a [`Choice`] with the reason that
//! `x-sluice-route` shows. A session stays where it was while its replica is usable; a new one goes to the consistent
//! ring (ketama), past replicas that carry more than their share. Nothing is awaited and no lock is held over a request.
//!
//! Ring: positions come from the replica's *name*, so that they survive a restart on another port and several gateways
//! in front of the same fleet agree. Load bound: "consistent hashing with bounded loads" (Mirrokni, Thorup, Zadimoghaddam,
//! 2016): no replica takes a new session while it carries more than `load_bound` × the mean.

use arc_swap::ArcSwap;
use moka::sync::Cache;
use pingora_ketama::{Bucket, Continuum};
use sha2::{Digest, Sha256};
use sluice_policy::history::Rules;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use super::replica::{Readiness, Replica};

/// What `x-sluice-route` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// The session's own replica.
    Hit,
    /// A conversation with a past that this gateway doesn't remember.
    Miss,
    /// The session's replica couldn't be used: moved.
    Repin,
    /// A new session.
    New,
}

impl Route {
    /// The header's and the record's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Route::Hit => "hit",
            Route::Miss => "miss",
            Route::Repin => "repin",
            Route::New => "new",
        }
    }
}

/// The decision for one attempt.
pub struct Choice {
    /// Index in the backend's list.
    pub index: usize,
    /// The replica.
    pub replica: Arc<Replica>,
    /// Why.
    pub route: Route,
}

/// Sessions remembered per backend.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Forgotten after this long without a request.
    pub idle: Duration,
    /// The least recently used are forgotten past this number.
    pub count: u64,
}

/// A served model as configured.
pub struct Backend {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Other ids for it.
    pub aliases: Vec<String>,
    /// The launch profile's name, for the record.
    pub profile: Arc<str>,
    /// Its replicas.
    pub replicas: Vec<Arc<Replica>>,
    model: ArcSwap<String>,
    /// What its chat template refuses ([`Rules`]), as learned from its 400s.
    refuses: AtomicU8,
    ring: Continuum,
    places: HashMap<SocketAddr, usize>,
    sessions: Cache<u64, u16>,
}

impl Backend {
    /// With its ring built. An empty `model` is learned from the first replica that is ready.
    pub fn new(
        name: &str,
        model: &str,
        aliases: Vec<String>,
        profile: &str,
        replicas: Vec<Arc<Replica>>,
        limits: SessionLimits,
    ) -> Self {
        let places: HashMap<SocketAddr, usize> = replicas
            .iter()
            .enumerate()
            .map(|(index, replica)| (ring_place(name, &replica.name), index))
            .collect();
        let mut buckets: Vec<Bucket> = places.keys().map(|&place| Bucket::new(place, 1)).collect();
        buckets.sort();
        Backend {
            name: name.into(),
            model: ArcSwap::from_pointee(model.to_owned()),
            refuses: AtomicU8::new(Rules::NONE.bits()),
            aliases,
            profile: profile.into(),
            ring: Continuum::new(&buckets),
            places,
            replicas,
            sessions: Cache::builder()
                .max_capacity(limits.count)
                .time_to_idle(limits.idle)
                .build(),
        }
    }

    /// The id that clients ask for; empty until it is known.
    pub fn model(&self) -> Arc<String> {
        self.model.load_full()
    }

    /// Learned from a replica, where the configuration names none.
    pub fn learn_model(&self, model: &str) {
        if self.model.load().is_empty() {
            self.model.store(Arc::new(model.to_owned()));
        }
    }

    /// What its chat template refuses of past turns, as far as is known.
    pub fn refuses(&self) -> Rules {
        Rules::from_bits(self.refuses.load(Ordering::Relaxed))
    }

    /// Learned: a request was refused, and taken when it was changed.
    pub fn learn_refusal(&self, rules: Rules) {
        self.refuses.fetch_or(rules.bits(), Ordering::Relaxed);
    }

    /// Clients may ask for it by this id.
    pub fn answers_to(&self, model: &str) -> bool {
        self.model.load().as_str() == model || self.aliases.iter().any(|alias| alias == model)
    }

    /// The replica for a session, leaving out those `tried`. `None` if nothing usable is left.
    pub fn choose(&self, session: u64, has_past: bool, tried: &[usize], load_bound: f64) -> Option<Choice> {
        let known = self.sessions.get(&session).map(usize::from);
        if let Some(index) = known
            && !tried.contains(&index)
            && let Some(replica) = self.replicas.get(index).filter(|replica| replica.is_usable())
        {
            return Some(Choice {
                index,
                replica: replica.clone(),
                route: Route::Hit,
            });
        }
        let index = self.on_ring(session, tried, load_bound)?;
        let replica = self.replicas.get(index)?.clone();
        let route = match known {
            Some(_) => Route::Repin,
            None if !tried.is_empty() => Route::Repin,
            None if has_past => Route::Miss,
            None => Route::New,
        };
        Some(Choice { index, replica, route })
    }

    /// The session's KV cache is there from now on.
    pub fn pin(&self, session: u64, index: usize) {
        if let Ok(index) = u16::try_from(index)
            && self.sessions.get(&session) != Some(index)
        {
            self.sessions.insert(session, index);
        }
    }

    /// Ready replicas first; one that nobody has asked yet only if there is no ready one; a resting one as the last resort.
    fn on_ring(&self, session: u64, tried: &[usize], load_bound: f64) -> Option<usize> {
        let untried = |index: &usize| !tried.contains(index);
        let usable = |index: &usize| self.replicas.get(*index).is_some_and(|r| r.is_usable());
        let ready = |index: &usize| {
            self.replicas
                .get(*index)
                .is_some_and(|r| r.readiness() == Readiness::Ready)
        };
        let all: Vec<usize> = (0..self.replicas.len()).filter(untried).collect();
        let mut candidates: Vec<usize> = all.iter().copied().filter(|i| usable(i) && ready(i)).collect();
        if candidates.is_empty() {
            candidates = all.iter().copied().filter(usable).collect();
        }
        if candidates.is_empty() {
            // Resting after a failure, but not known to be down: better asked than refused.
            let resting = |r: &Arc<Replica>| r.readiness() != Readiness::Down && r.address().is_some();
            candidates = all
                .into_iter()
                .filter(|i| self.replicas.get(*i).is_some_and(resting))
                .collect();
        }
        let load = |index: usize| self.replicas.get(index).map_or(0, |r| r.in_flight());
        let total: usize = candidates.iter().map(|&i| load(i)).sum();
        let bound = ((total + 1) as f64 * load_bound / candidates.len().max(1) as f64).ceil() as usize;
        let mut seen = 0_usize;
        for place in self.ring.node_iter(&session.to_be_bytes()) {
            // One turn around the ring meets every replica: 160 points each.
            seen += 1;
            if seen > self.replicas.len() * 160 {
                break;
            }
            if let Some(&index) = self.places.get(place)
                && candidates.contains(&index)
                && load(index) < bound
            {
                return Some(index);
            }
        }
        candidates.into_iter().min_by_key(|&i| load(i))
    }

    /// All its replicas are stand-ins.
    pub fn is_simulated(&self) -> bool {
        !self.replicas.is_empty() && self.replicas.iter().all(|replica| replica.simulated)
    }
}

/// A stable place on the ring for a name; ketama wants socket addresses.
fn ring_place(backend: &str, replica: &str) -> SocketAddr {
    let digest = Sha256::digest(format!("{backend}/{replica}").as_bytes());
    let mut octets = [0_u8; 16];
    for (octet, byte) in octets.iter_mut().zip(digest.iter()) {
        *octet = *byte;
    }
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)), 1)
}

/// All backends.
#[derive(Default)]
pub struct Fleet {
    /// In the order of the configuration.
    pub backends: Vec<Arc<Backend>>,
}

impl Fleet {
    /// By model id or alias; with no model given, the only backend.
    pub fn backend(&self, model: Option<&str>) -> Option<&Arc<Backend>> {
        match model {
            Some(model) => self.backends.iter().find(|backend| backend.answers_to(model)),
            None => match self.backends.as_slice() {
                [only] => Some(only),
                _ => None,
            },
        }
    }

    /// Ids that clients may ask for, aliases included.
    pub fn model_ids(&self) -> Vec<String> {
        let ids = self
            .backends
            .iter()
            .flat_map(|b| std::iter::once(b.model().to_string()).chain(b.aliases.iter().cloned()));
        ids.filter(|id| !id.is_empty()).collect()
    }

    /// Every replica of every backend.
    pub fn replicas(&self) -> impl Iterator<Item = (&Arc<Backend>, &Arc<Replica>)> {
        self.backends
            .iter()
            .flat_map(|backend| backend.replicas.iter().map(move |replica| (backend, replica)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::address::Address;
    use super::*;

    fn backend(count: usize) -> Backend {
        let replicas = (0..count)
            .map(|i| {
                let replica = Replica::new(&format!("r{i}"), false, None, Some(Address::loopback(9000 + i as u16)));
                replica.set_readiness(Readiness::Ready);
                Arc::new(replica)
            })
            .collect();
        let limits = SessionLimits {
            idle: Duration::from_secs(60),
            count: 1000,
        };
        Backend::new("b", "m", vec![], "p", replicas, limits)
    }

    #[test]
    fn a_session_stays_and_moves_only_when_its_replica_is_down() {
        let backend = backend(4);
        let first = backend.choose(7, false, &[], 1.25).unwrap();
        assert_eq!(first.route, Route::New);
        backend.pin(7, first.index);
        let again = backend.choose(7, true, &[], 1.25).unwrap();
        assert_eq!((again.index, again.route), (first.index, Route::Hit));
        backend.replicas[first.index].set_readiness(Readiness::Down);
        let moved = backend.choose(7, true, &[], 1.25).unwrap();
        assert_ne!(moved.index, first.index);
        assert_eq!(moved.route, Route::Repin);
    }

    #[test]
    fn the_ring_spreads_and_a_lost_replica_moves_only_its_own_sessions() {
        let backend = backend(4);
        let place = |session: u64| backend.choose(session, false, &[], 1.25).unwrap().index;
        let before: Vec<usize> = (0..1000).map(place).collect();
        for index in 0..4 {
            let share = before.iter().filter(|&&i| i == index).count();
            assert!(
                (100..500).contains(&share),
                "replica {index} has {share} of 1000 sessions"
            );
        }
        backend.replicas[2].set_readiness(Readiness::Down);
        for (session, &was) in before.iter().enumerate() {
            let now = place(session as u64);
            assert!(now != 2 && (was == 2 || now == was));
        }
    }

    #[test]
    fn a_loaded_replica_takes_no_new_session() {
        let backend = backend(2);
        let home = backend.choose(1, false, &[], 1.25).unwrap().index;
        let load: Vec<_> = (0..10).map(|_| backend.replicas[home].begin()).collect();
        assert_ne!(backend.choose(1, false, &[], 1.25).unwrap().index, home);
        drop(load);
        assert_eq!(backend.choose(1, false, &[], 1.25).unwrap().index, home);
    }

    #[test]
    fn tried_replicas_are_left_out_and_a_resting_one_is_the_last_resort() {
        let backend = backend(2);
        assert!(backend.choose(1, false, &[0, 1], 1.25).is_none());
        assert_eq!(backend.choose(1, false, &[0], 1.25).unwrap().index, 1);
        backend.replicas[1].failed();
        assert_eq!(backend.choose(1, false, &[], 1.25).unwrap().index, 0);
        assert_eq!(backend.choose(1, false, &[0], 1.25).unwrap().index, 1);
    }

    #[test]
    fn a_model_is_found_by_id_and_alias_and_the_only_one_without() {
        let mut one = backend(1);
        one.aliases.push("qwen3".into());
        let fleet = Fleet {
            backends: vec![Arc::new(one)],
        };
        assert!(fleet.backend(Some("m")).is_some());
        assert!(fleet.backend(Some("qwen3")).is_some());
        assert!(fleet.backend(None).is_some());
        assert!(fleet.backend(Some("x")).is_none());
        assert_eq!(fleet.model_ids(), ["m", "qwen3"]);
    }
}
