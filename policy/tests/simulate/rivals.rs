//! Who chooses: what others do, an oracle that knows the truth, and ours.

use sluice_policy::route::choose::{Decision, Question, RouteSettings, Router, Ticket, Used};
use sluice_policy::route::cost::Prefill;
use std::time::Duration;

use super::fleet::Truth;
use super::work::{Agent, Dice, Turn};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rival {
    RoundRobin,
    LeastLoad,
    SessionHash,
    PrefixOnly,
    Oracle,
    Ours,
}

impl Rival {
    pub(crate) const ALL: [Rival; 6] = [
        Rival::RoundRobin,
        Rival::LeastLoad,
        Rival::SessionHash,
        Rival::PrefixOnly,
        Rival::Oracle,
        Rival::Ours,
    ];
}

/// What a rival keeps.
pub(crate) struct Chooser {
    rival: Rival,
    next: usize,
    router: Router,
}

/// What our router decided and has counted; nobody else needs it.
pub(crate) type Pending = Option<(Decision, Ticket)>;

impl Chooser {
    pub(crate) fn new(rival: Rival, replicas: usize, kv_tokens: u64) -> Chooser {
        // 70 % off, in each coefficient another way.
        let usual = Prefill::default();
        let settings = RouteSettings {
            prior: Prefill {
                base: usual.base * 0.3,
                per_token: usual.per_token * 1.7,
                per_pair: usual.per_pair * 0.3,
            },
            ..RouteSettings::default()
        };
        let mut router = Router::new(replicas, settings);
        (0..replicas).for_each(|replica| router.capacity(replica, kv_tokens));
        Chooser { rival, next: 0, router }
    }

    pub(crate) fn choose(
        &mut self,
        agent: &Agent,
        turn: &Turn,
        truth: &[Truth],
        now: Duration,
    ) -> Option<(usize, Pending)> {
        let may: Vec<bool> = truth.iter().map(|replica| replica.is_up(now)).collect();
        let up: Vec<usize> = (0..may.len()).filter(|place| may[*place]).collect();
        // Rendezvous stands for the ring: an order of its own for each session, the same everywhere.
        let mut ring = up.clone();
        ring.sort_by_key(|place| Dice::new(agent.session ^ (*place as u64) << 48).next());
        let least = |places: &[usize]| {
            places
                .iter()
                .copied()
                .min_by_key(|place| (truth[*place].in_flight(), *place))
        };
        let chosen = match self.rival {
            Rival::RoundRobin => {
                self.next += 1;
                up.get(self.next % up.len().max(1)).copied()
            }
            Rival::LeastLoad => least(&up),
            Rival::SessionHash => ring.first().copied(),
            Rival::PrefixOnly => {
                // As the cache-aware routers do: the longest match if it is half of the prompt, else the least load.
                let hits = |place: &usize| truth[*place].resident(&turn.blocks);
                let best = up
                    .iter()
                    .copied()
                    .max_by_key(|place| (hits(place), std::cmp::Reverse(*place)));
                let whole = turn.blocks.last().map_or(0, |block| block.1);
                best.filter(|place| hits(place) * 2 >= whole).or_else(|| least(&up))
            }
            Rival::Oracle => up.iter().copied().min_by(|a, b| {
                let cost = |place: usize| truth[place].true_cost(turn, now);
                cost(*a).total_cmp(&cost(*b))
            }),
            Rival::Ours => {
                let question = Question {
                    session: agent.session,
                    is_named: agent.is_named,
                    chain: &turn.chain,
                    may: &may,
                    hint: None,
                };
                let decision = self.router.choose(question, ring.into_iter(), now)?;
                let ticket = self.router.dispatch(agent.session, &turn.chain, &decision, now);
                return Some((decision.replica, Some((decision, ticket))));
            }
        };
        chosen.map(|place| (place, None))
    }

    pub(crate) fn first_token(&mut self, pending: &mut Pending, now: Duration) {
        if let Some((_, ticket)) = pending {
            self.router.first_token(ticket, now);
        }
    }

    pub(crate) fn ended(&mut self, pending: Pending, used: Used, now: Duration) {
        if let Some((_, ticket)) = pending {
            self.router.ended(ticket, used, now);
        }
    }

    /// A replica has come back, empty.
    pub(crate) fn restarted(&mut self, replica: usize) {
        self.router.restarted(replica);
    }

    /// Metrics, a second old.
    pub(crate) fn waiting(&mut self, replica: usize, waiting: usize) {
        self.router.waiting(replica, waiting);
    }
}
