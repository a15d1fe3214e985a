//! Backends with their replicas, and which replica a request goes to.
//!
//! Enters: a backend, a session key, the conversation's chain, the replicas already tried. Leaves: a [`Choice`] with the reason that
//! `x-sluice-route` and the record show, counted as load before anything is sent. `policy::route` decides; here is what it can't know:
//! which replicas may be asked now, the ring (ketama), and the time. Nothing is awaited and no lock is held over a request.
//!
//! A reload makes a new [`Fleet`]: ids and aliases change at once for all backends. A [`Backend`] of it that was there before is a new face
//! of the same replicas: what is known of them, who waits and who runs, is shared by both, and a request that has the old one sees the
//! replicas of the new one (`members`).

use arc_swap::ArcSwap;
use sluice_policy::admission::room::Capacity;
use sluice_policy::history::Rules;
use sluice_policy::route::chain::Chain;
use sluice_policy::route::choose::{Decision, Margins, Question, Reason, RouteSettings};
use sluice_policy::route::session::{SessionKey, SessionSource};
use sluice_policy::route::shared::Hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use super::admission::{self, Places};
use super::members::{Members, Resort};
use super::replica::Replica;
use super::routing::{Routed, Routing};

/// Where a request went, as `x-sluice-route` says, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What happened.
    pub happened: Happened,
    /// Why.
    pub reason: Reason,
}

/// What `x-sluice-route` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The conversation's own replica: its session's, or the one that has its past.
    Hit,
    /// A conversation with a past that this gateway doesn't remember.
    Miss,
    /// The session's replica couldn't be used, or another one is much sooner: moved.
    Repin,
    /// A new session.
    New,
}

impl Route {
    fn new(reason: Reason, has_past: bool) -> Route {
        let happened = match reason {
            Reason::Session | Reason::Shared => Happened::Hit,
            Reason::Prefix if has_past => Happened::Hit,
            Reason::MovedLoad | Reason::MovedUnhealthy => Happened::Repin,
            Reason::Ring if has_past => Happened::Miss,
            Reason::Prefix | Reason::Ring => Happened::New,
        };
        Route { happened, reason }
    }

    /// The header's and the record's word.
    pub fn as_str(self) -> &'static str {
        match self.happened {
            Happened::Hit => "hit",
            Happened::Miss => "miss",
            Happened::Repin => "repin",
            Happened::New => "new",
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
    /// What it counts until it ends.
    pub routed: Routed,
    /// The prefill there if nothing were cached.
    pub(super) anew: Duration,
}

/// What is to be decided for one attempt.
#[derive(Clone, Copy)]
pub struct Wanted<'w> {
    /// Which session.
    pub session: SessionKey,
    /// The prompt.
    pub chain: &'w Arc<Chain>,
    /// The conversation has had turns before.
    pub has_past: bool,
    /// Replicas that have failed already.
    pub tried: &'w [usize],
    /// What another gateway knows of the session.
    pub hint: Option<Hint>,
    /// How easily conversations move.
    pub margins: Margins,
}

/// A served model as configured.
pub struct Backend {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Other ids for it.
    pub aliases: Vec<String>,
    /// The launch profile's name, for the record.
    pub profile: Arc<str>,
    /// Backends that get its requests where it can't take them, by name.
    fallback: Vec<String>,
    /// It takes images, video and audio.
    takes_images: bool,
    /// As configured; empty if it is to be learned.
    model: Arc<String>,
    kept: Arc<Kept>,
}

/// What stays over reloads.
struct Kept {
    members: ArcSwap<Members>,
    /// The model, where the configuration names none.
    learned: ArcSwap<String>,
    /// What its chat template refuses ([`Rules`]), as learned from its 400s.
    refuses: AtomicU8,
    router: Arc<Routing>,
    /// Requests that are held (B35).
    held: Arc<AtomicUsize>,
    places: Places,
    /// Replicas are looked for for the first time.
    is_awaited: AtomicBool,
}

/// One replica of a backend's new list.
pub enum Member {
    /// The one of this slot stays.
    Stays {
        /// Which.
        slot: usize,
        /// Sequences that it runs at once, if that is known.
        sequences: Option<u32>,
    },
    /// A new one.
    New {
        /// It.
        replica: Arc<Replica>,
        /// What it holds.
        capacity: Capacity,
    },
}

impl Backend {
    /// An empty `model` is learned from the first replica that is ready.
    pub fn new(
        name: &str,
        model: &str,
        aliases: Vec<String>,
        profile: &str,
        replicas: Vec<Arc<Replica>>,
        settings: RouteSettings,
    ) -> Self {
        let kept = Kept {
            learned: ArcSwap::default(),
            refuses: AtomicU8::new(Rules::NONE.bits()),
            places: Places::new(replicas.iter().map(|_| Capacity::default())),
            router: Arc::new(Routing::new(replicas.len(), settings)),
            members: ArcSwap::from_pointee(Members::new(name, replicas.into_iter().map(Some).collect())),
            held: Arc::default(),
            is_awaited: AtomicBool::new(false),
        };
        Backend {
            name: name.into(),
            model: Arc::new(model.to_owned()),
            aliases,
            profile: profile.into(),
            fallback: Vec::new(),
            takes_images: true,
            kept: Arc::new(kept),
        }
    }

    /// The same backend as another configuration has it.
    #[must_use]
    pub fn renewed(&self, name: &str, model: &str, aliases: Vec<String>, profile: &str) -> Self {
        Backend {
            name: name.into(),
            model: Arc::new(model.to_owned()),
            aliases,
            profile: profile.into(),
            fallback: self.fallback.clone(),
            takes_images: self.takes_images,
            kept: self.kept.clone(),
        }
    }

    /// With these fallbacks; and whether it takes images.
    #[must_use]
    pub fn with_fallback(self, fallback: Vec<String>, takes_images: bool) -> Self {
        Backend {
            fallback,
            takes_images,
            ..self
        }
    }

    /// Somebody may be asked, or is expected back: a request that comes now is answered or held.
    fn is_served(&self) -> bool {
        let members = self.kept.members.load();
        let mut all = members.iter();
        self.is_unseen()
            || all.any(|(_, replica)| replica.is_usable() || replica.is_last_resort() || replica.is_expected())
    }

    /// It isn't known yet who is there: the first look at a replica, or for replicas, is under way.
    pub fn is_unseen(&self) -> bool {
        let members = self.kept.members.load();
        let mut all = members.iter();
        self.kept.is_awaited.load(Ordering::Relaxed) || all.any(|(_, replica)| replica.is_unseen())
    }

    /// The first look for its replicas is under way, or has ended.
    pub fn set_awaited(&self, is_awaited: bool) {
        self.kept.is_awaited.store(is_awaited, Ordering::Relaxed);
    }

    /// These are its replicas from now on; where each stands comes back. One that isn't among them gets no new request. Who waits for a
    /// place looks at the new ones at once. Not to be called twice at a time.
    pub fn enrol(&self, members: Vec<Member>) -> Vec<usize> {
        let before = self.members();
        let stays = |slot: usize| {
            members
                .iter()
                .any(|member| matches!(member, Member::Stays { slot: stays, .. } if *stays == slot))
        };
        let mut slots: Vec<Option<Arc<Replica>>> = (0..before.slots())
            .map(|slot| before.get(slot).filter(|_| stays(slot)).cloned())
            .collect();
        // Not the slot of one that goes just now: somebody may be about to send to it.
        let is_free = |slot: usize| {
            before.get(slot).is_none() && self.kept.router.is_idle(slot) && self.kept.places.is_idle(slot)
        };
        let mut free: Vec<usize> = (0..slots.len()).rev().filter(|slot| is_free(*slot)).collect();
        let mut numbers = Vec::with_capacity(members.len());
        for member in members {
            numbers.push(match member {
                Member::Stays { slot, sequences } => {
                    self.kept.places.sequences(slot, sequences);
                    slot
                }
                Member::New { replica, capacity } => {
                    let slot = free.pop().unwrap_or(slots.len());
                    self.kept.router.occupy(slot);
                    self.kept.places.occupy(slot, capacity);
                    match slots.get_mut(slot) {
                        Some(place) => *place = Some(replica),
                        None => slots.push(Some(replica)),
                    }
                    slot
                }
            });
        }
        self.kept.members.store(Arc::new(Members::new(&self.name, slots)));
        admission::look_again(self);
        numbers
    }

    /// Its replicas now.
    pub fn members(&self) -> Arc<Members> {
        self.kept.members.load_full()
    }

    /// Who has this slot now.
    pub fn replica(&self, slot: usize) -> Option<Arc<Replica>> {
        self.kept.members.load().get(slot).cloned()
    }

    /// Where the replica of this name is.
    pub fn slot_of(&self, name: &str) -> Option<usize> {
        let members = self.kept.members.load();
        let mut all = members.iter();
        all.find(|(_, replica)| &*replica.name() == name).map(|(slot, _)| slot)
    }

    /// The id that clients ask for; empty until it is known.
    pub fn model(&self) -> Arc<String> {
        if self.model.is_empty() {
            self.kept.learned.load_full()
        } else {
            self.model.clone()
        }
    }

    /// Learned from a replica, where the configuration names none.
    pub fn learn_model(&self, model: &str) {
        if self.kept.learned.load().is_empty() {
            self.kept.learned.store(Arc::new(model.to_owned()));
        }
    }

    /// What its chat template refuses of past turns, as far as is known.
    pub fn refuses(&self) -> Rules {
        Rules::from_bits(self.kept.refuses.load(Ordering::Relaxed))
    }

    /// Learned: a request was refused, and taken when it was changed.
    pub fn learn_refusal(&self, rules: Rules) {
        self.kept.refuses.fetch_or(rules.bits(), Ordering::Relaxed);
    }

    /// Clients may ask for it by this id.
    pub fn answers_to(&self, model: &str) -> bool {
        self.model().as_str() == model || self.aliases.iter().any(|alias| alias == model)
    }

    /// With replicas of these sizes; else nothing is known of them.
    #[must_use]
    pub fn with_capacities(self, capacities: impl IntoIterator<Item = Capacity>) -> Self {
        let places = &self.kept.places;
        let all = capacities.into_iter().enumerate();
        all.for_each(|(slot, capacity)| places.occupy(slot, capacity));
        self
    }

    /// Places at its replicas.
    pub fn places(&self) -> &Places {
        &self.kept.places
    }

    /// The replica for a request, leaving out those `tried`; it counts as sent from now on. `None` if nothing usable is left.
    pub fn choose(&self, wanted: Wanted<'_>) -> Option<Choice> {
        self.choose_among(wanted, None)
    }

    /// The same among those that have `room`; `None`: all have.
    pub(super) fn choose_among(&self, wanted: Wanted<'_>, room: Option<&[bool]>) -> Option<Choice> {
        let key = wanted.session.hash.to_be_bytes();
        let members = self.kept.members.load();
        // A turn that was in vain: others took the last trial of the chosen replica meanwhile.
        for _ in 0..=members.slots() {
            let (mut may, resort) = members.may_be_asked(wanted.tried);
            if let Some(room) = room {
                may.iter_mut().zip(room).for_each(|(may, room)| *may &= room);
            }
            let question = question(&wanted, &may);
            let (decision, mut routed) = self
                .kept
                .router
                .decide(question, wanted.margins, members.on_ring(&key))?;
            let replica = members.get(decision.replica)?.clone();
            let passage = match resort {
                Resort::Usual => replica.health.admit(),
                Resort::Last => Some(replica.health.admit_anyway()),
            };
            let Some(passage) = passage else { continue };
            routed.passes(passage);
            return Some(Choice {
                index: decision.replica,
                replica,
                route: Route::new(decision.reason, wanted.has_past),
                routed,
                anew: decision.anew,
            });
        }
        None
    }

    /// A place for a request that is held, if fewer than `count` are.
    pub fn hold(&self, count: usize) -> Option<HoldSlot> {
        let held = &self.kept.held;
        if held.fetch_add(1, Ordering::AcqRel) >= count {
            held.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(HoldSlot(held.clone()))
    }

    /// Somebody may be asked now, these left out. Looked at where only a good one is wanted: what is chosen counts as sent.
    pub fn has_usable(&self, left_out: &[usize]) -> bool {
        let members = self.kept.members.load();
        let mut all = members.iter();
        all.any(|(slot, replica)| !left_out.contains(&slot) && replica.is_usable())
    }

    /// What would be chosen; nothing is counted.
    pub(super) fn consider(&self, wanted: Wanted<'_>, may: &[bool]) -> Option<Decision> {
        let key = wanted.session.hash.to_be_bytes();
        let question = question(&wanted, may);
        let members = self.kept.members.load();
        self.kept
            .router
            .consider(question, wanted.margins, members.on_ring(&key))
    }

    /// What is known of its conversations and replicas.
    pub fn routing(&self) -> &Arc<Routing> {
        &self.kept.router
    }

    /// Who may be asked now, these left out.
    pub(super) fn may_be_asked(&self, tried: &[usize]) -> (Vec<bool>, Resort) {
        self.kept.members.load().may_be_asked(tried)
    }

    /// All its replicas are stand-ins.
    pub fn is_simulated(&self) -> bool {
        let members = self.kept.members.load();
        !members.is_empty() && members.iter().all(|(_, replica)| replica.simulated)
    }
}

/// A held request's place among those of its backend; dropping it gives it back.
pub struct HoldSlot(Arc<AtomicUsize>);

impl Drop for HoldSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn question<'q>(wanted: &Wanted<'q>, may: &'q [bool]) -> Question<'q> {
    Question {
        session: wanted.session.hash,
        is_named: wanted.session.source != SessionSource::ConversationHash,
        chain: wanted.chain,
        may,
        hint: wanted.hint,
    }
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

    /// The backends that take a request for `first`, in this order: it, or the first of its fallbacks (and theirs) that can, of those that
    /// `may` be used, then the further ones. Where nobody is up it begins with the first that would take it. Empty: it has images, and
    /// nobody takes any.
    pub fn serving<'f>(
        &'f self,
        first: &'f Arc<Backend>,
        has_images: bool,
        may: impl Fn(&Backend) -> bool,
    ) -> Vec<&'f Arc<Backend>> {
        let fits = |backend: &&Arc<Backend>| (backend.takes_images || !has_images) && may(backend);
        if first.fallback.is_empty() {
            return Some(first).filter(fits).into_iter().collect();
        }
        let mut order: Vec<&Arc<Backend>> = Vec::new();
        let mut left = vec![first];
        // Each turn takes one that wasn't there before.
        while let Some(next) = left.pop() {
            if order.iter().any(|known| Arc::ptr_eq(known, next)) {
                continue;
            }
            order.push(next);
            let named = next.fallback.iter().rev();
            left.extend(named.filter_map(|name| self.backends.iter().find(|backend| *backend.name == **name)));
        }
        order.retain(fits);
        let begin = order.iter().position(|backend| backend.is_served());
        order.split_off(begin.unwrap_or_default())
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
    pub fn replicas(&self) -> Vec<(Arc<Backend>, Arc<Replica>)> {
        let mut all = Vec::new();
        for backend in &self.backends {
            let members = backend.members();
            all.extend(members.iter().map(|(_, replica)| (backend.clone(), replica.clone())));
        }
        all
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
