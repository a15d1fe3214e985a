//! The decision: the replica whose first token is expected soonest, unless the conversation's own is nearly as good.
//!
//! Problem: a conversation's KV cache is on one replica, load is on all. Rule: each replica that may be asked has a cost: its
//! expected time to the first token (`cost`, with what `index` knows of the chain); the prefill once more, since others wait for it; what it
//! pushes out of the cache there, as far as that will be asked for again; and what the replica's live conversations will cost it in the turns
//! to come. The *home* is the session's replica, else the ring's. It is left only for one that is better by a margin, so that two that are equally good
//! don't throw a conversation to and fro; and a conversation isn't moved for the turns to come, since its cache is worth more. Both hold for the
//! part of it that home still has: what is lost there binds it to no place.
//! Cold start: the ring, with a load bound. Recovery: a replica that nobody chose for a while gets a new session, or one bad
//! estimate would starve it. Source: `tests/simulate.rs`: smallest cost without the live conversations is worse than a hash of the
//! session, since conversations pile up where the next token is soonest.
//!
//! | home | chosen | reason |
//! | --- | --- | --- |
//! | the session's | home | `session` |
//! | the session's, it may not be asked | any | `moved: unhealthy` |
//! | another gateway's ([`Hint`]), of a session that isn't known here | home | `shared` |
//! | any | another, which has more of the conversation | `prefix` |
//! | the session's, another gateway's | another, which has no more of it | `moved: load` |
//! | the ring's | home, or another, which has no more of it | `ring` |
//!
//! A hint of a replica that may not be asked counts for nothing; of one that may, the prompt that went there counts as cached.

use std::sync::Arc;
use std::time::Duration;

use super::chain::Chain;
use super::cost::{Load, Prefill, Room, Speed};
use super::index::{Index, IndexLimits};
use super::live::{LIVE, Live};
use super::recent::Recent;
use super::shared::Hint;

/// A conversation without a name is where at least this part of it is.
const UNNAMED_PREFIX: f64 = 0.25;

/// What each live conversation of a replica will cost one that comes to it, in its mean prefills: turns to come, times the share
/// of its time that a conversation is being prefilled.
const CROWD: f64 = 1.0;

/// Weight of a prefill in its replica's mean, and the mean before there was one, in seconds.
const MEAN_WEIGHT: f64 = 0.05;
const FIRST_MEAN: f64 = 0.3;

/// Each so many-th new session may be a trial.
const TRIAL_EVERY: u64 = 16;

/// Tokens of a byte of prompt, before any answer has said: JSON of English and code.
const FIRST_TOKENS_PER_BYTE: f64 = 0.25;

/// No text has more tokens a byte, nor less.
const TOKENS_PER_BYTE: (f64, f64) = (0.02, 1.5);

/// Weight of one more answer in that ratio.
const RATIO_WEIGHT: f64 = 0.05;

/// Shorter prompts say more of the template than of the text.
const RATIO_LEAST_BYTES: u64 = 1024;

/// A prompt that waited for others says how long it took itself from so many uncached tokens on: shorter ones share a step.
const QUEUED_LEAST_TOKENS: f64 = 2048.0;

/// Less of the cache than expected is a surprise from here on: blocks and the ratio's error.
const SURPRISE_TOKENS: f64 = 128.0;
const SURPRISE_PART: f64 = 0.15;

/// What may change while a router runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Margins {
    /// A conversation leaves its replica for one whose cost is less than this part of its own. Default 0.7.
    pub stay_ratio: f64,
    /// And less by at least so much. Default 50 ms.
    pub stay_margin: Duration,
    /// How much the prefill counts that others have to wait for. Default 1.
    pub burden: f64,
    /// The ring gives a new session to a replica with at most so many times the mean load. Default 1.25.
    pub load_bound: f64,
    /// A replica that nobody chose for so long gets a new session. Default 60 s.
    pub trial_after: Duration,
}

impl Default for Margins {
    fn default() -> Self {
        Margins {
            stay_ratio: 0.7,
            stay_margin: Duration::from_millis(50),
            burden: 1.0,
            load_bound: 1.25,
            trial_after: Duration::from_secs(60),
        }
    }
}

/// Settings of a router.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteSettings {
    /// Those that may change.
    pub margins: Margins,
    /// `max_num_seqs` of the replicas. Default 32.
    pub sequences: usize,
    /// Sessions remembered. Default 100,000.
    pub sessions: usize,
    /// Bounds of the index; its idle time is that of the sessions too.
    pub index: IndexLimits,
    /// Coefficients before anything is learned.
    pub prior: Prefill,
}

impl Default for RouteSettings {
    fn default() -> Self {
        RouteSettings {
            margins: Margins::default(),
            sequences: 32,
            sessions: 100_000,
            index: IndexLimits::default(),
            prior: Prefill::default(),
        }
    }
}

/// Why this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The session's own.
    Session,
    /// The session's own, as another gateway knows.
    Shared,
    /// It has more of the conversation than the home.
    Prefix,
    /// The session's own has too much to do.
    MovedLoad,
    /// The session's own can't be asked.
    MovedUnhealthy,
    /// Nothing is known of the conversation.
    Ring,
}

impl Reason {
    /// The record's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Session => "session",
            Reason::Shared => "shared",
            Reason::Prefix => "prefix",
            Reason::MovedLoad => "moved: load",
            Reason::MovedUnhealthy => "moved: unhealthy",
            Reason::Ring => "ring",
        }
    }
}

/// What is to be decided.
#[derive(Debug, Clone, Copy)]
pub struct Question<'q> {
    /// Hash of the session key.
    pub session: u64,
    /// The client gave the key; else it is a hash of how the conversation begins, and many may begin so.
    pub is_named: bool,
    /// The prompt.
    pub chain: &'q Arc<Chain>,
    /// By number: may it be asked?
    pub may: &'q [bool],
    /// What another gateway knows of the session.
    pub hint: Option<Hint>,
}

/// What was decided; nothing is counted before [`Router::dispatch`].
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// By number.
    pub replica: usize,
    /// Why.
    pub reason: Reason,
    /// Bytes of the prompt that it is thought to have.
    pub cached_bytes: u64,
    /// Expected time to the first token.
    pub expected: Duration,
    /// And of the prefill there if nothing were cached.
    pub anew: Duration,
}

/// A request that was dispatched. It is to be ended with [`Router::ended`] exactly once.
#[derive(Debug)]
pub struct Ticket {
    id: u64,
    replica: usize,
    chain: Arc<Chain>,
    cached_bytes: u64,
    /// When what is cached was used before, if it was done by then.
    touched: Option<Duration>,
    tokens: f64,
    tokens_per_byte: f64,
    /// Nothing was before it.
    clear: bool,
    dispatched: Duration,
    /// When its prefill began, as far as can be seen, and its first token.
    began: Duration,
    first: Option<Duration>,
}

/// What an answer's usage says; unknown fields of answers that broke off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Of the prompt.
    pub prompt_tokens: Option<u64>,
    /// Of these, found in the cache.
    pub cached_tokens: Option<u64>,
    /// Of the answer.
    pub completion_tokens: Option<u64>,
}

struct Replica {
    speed: Speed,
    load: Load,
    chosen: Duration,
    /// Mean seconds of its prefills, as expected.
    mean: f64,
    /// The last first token, and the last end, of any request.
    last_first: Duration,
    last_end: Duration,
}

impl Replica {
    fn new(settings: &RouteSettings) -> Replica {
        Replica {
            speed: Speed::new(settings.prior),
            load: Load::default(),
            chosen: Duration::ZERO,
            mean: FIRST_MEAN,
            last_first: Duration::ZERO,
            last_end: Duration::ZERO,
        }
    }
}

/// Where a session was last sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Home {
    pub(super) replica: u16,
    /// Of its prompt there; 0 is not known.
    pub(super) bytes: u64,
}

/// One backend's router.
pub struct Router {
    pub(super) settings: RouteSettings,
    pub(super) index: Index,
    pub(super) sessions: Recent<Home>,
    live: Live,
    replicas: Vec<Replica>,
    pub(super) tokens_per_byte: f64,
    has_ratio: bool,
    next_ticket: u64,
    new_sessions: u64,
}

/// What a replica would need for the request.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    replica: usize,
    ttft: f64,
    /// The prefill with nothing cached.
    anew: f64,
    /// Of this turn, to it and to others.
    cost: f64,
    /// Of the turns to come, by those of others.
    later: f64,
    cached: u64,
}

impl Router {
    /// Of so many replicas, of which nothing is known.
    pub fn new(replicas: usize, settings: RouteSettings) -> Router {
        Router {
            index: Index::new(replicas, settings.index),
            sessions: Recent::default(),
            live: Live::new(replicas),
            replicas: (0..replicas).map(|_| Replica::new(&settings)).collect(),
            tokens_per_byte: FIRST_TOKENS_PER_BYTE,
            has_ratio: false,
            next_ticket: 0,
            new_sessions: 0,
            settings,
        }
    }

    /// Other margins from now on; what is known stays.
    pub fn set_margins(&mut self, margins: Margins) {
        self.settings.margins = margins;
    }

    /// Decides. `ring` gives the replicas in the ring's order for this session, the same on every gateway; repetitions don't
    /// matter. `None` if nothing may be asked.
    pub fn choose(
        &mut self,
        question: Question<'_>,
        ring: impl Iterator<Item = usize>,
        now: Duration,
    ) -> Option<Decision> {
        self.live.forget_silent(now);
        let home = self.session(question.session, now);
        let known = home.map(|home| usize::from(home.replica));
        // What this gateway knows itself is newer.
        let hint = question.hint.filter(|_| known.is_none());
        let estimates = self.estimates(Question { hint, ..question }, now);
        let of = |replica: usize| estimates.iter().find(|estimate| estimate.replica == replica).copied();
        let lost = known.is_some_and(|replica| of(replica).is_none());
        let most = estimates.iter().map(|estimate| estimate.cached).max().unwrap_or(0);
        let whole = question.chain.bytes();
        // A session without a name is no home if its replica hasn't got this conversation: another one began alike.
        let is_own = |home: &Estimate| {
            let has_it = home.cached as f64 >= whole as f64 * UNNAMED_PREFIX;
            question.is_named || most == 0 || (has_it && home.cached == most)
        };
        let own = known.or(hint.map(|hint| hint.replica)).and_then(of).filter(is_own);
        // What was there binds it to its home as far as it is there still; one that nobody has anything of is bound by its name.
        let had = home.map_or(0, |home| home.bytes.min(whole));
        let bound = own.map_or(0.0, |own| match (most, had) {
            (0, _) | (_, 0) => 1.0,
            _ => (own.cached as f64 / had as f64).min(1.0),
        });
        let cost = |estimate: &Estimate| estimate.cost + (1.0 - bound) * estimate.later;
        let best = estimates.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).copied()?;
        let (home, reason) = match own {
            Some(home) if known.is_some() => (home, Reason::Session),
            Some(home) => (home, Reason::Shared),
            None => {
                let trial = self.trial(question.may, now).and_then(of);
                if let Some(trial) = trial.filter(|_| !lost) {
                    return Some(decision(trial, Reason::Ring));
                }
                let ring = self.on_ring(&estimates, ring).and_then(of);
                (ring.unwrap_or(best), Reason::Ring)
            }
        };
        let margins = self.settings.margins;
        // The ring's is left by the whole margin, so that gateways agree.
        let hold = own.map_or(1.0, |_| bound);
        let stay_ratio = 1.0 - hold * (1.0 - margins.stay_ratio);
        let (least, here) = (cost(&best), cost(&home));
        let leaves = least < here * stay_ratio && least + hold * margins.stay_margin.as_secs_f64() < here;
        let (chosen, reason) = match (leaves, reason) {
            (false, reason) => (home, reason),
            (true, _) if best.cached > home.cached => (best, Reason::Prefix),
            (true, Reason::Ring) => (best, Reason::Ring),
            (true, _) => (best, Reason::MovedLoad),
        };
        Some(decision(chosen, if lost { Reason::MovedUnhealthy } else { reason }))
    }

    /// The decision is carried out: counted before anything is sent, so that the next decision knows of it.
    pub fn dispatch(&mut self, session: u64, chain: &Arc<Chain>, decision: &Decision, now: Duration) -> Ticket {
        let place = decision.replica;
        let tokens_per_byte = self.ratio(chain);
        let cached = decision.cached_bytes as f64 * tokens_per_byte;
        let tokens = chain.bytes() as f64 * tokens_per_byte;
        let touched = self.index.last_touch(place, chain.links(), decision.cached_bytes);
        let room = self.room(place);
        let id = self.next_ticket;
        self.next_ticket += 1;
        let (mut clear, mut settled) = (false, false);
        if let Some(replica) = self.replicas.get_mut(place) {
            clear = replica.load.is_clear(room);
            settled = replica
                .load
                .oldest_prefill()
                .is_none_or(|oldest| touched.is_some_and(|t| t < oldest));
            let seconds = replica.speed.seconds((tokens - cached).max(1.0), cached);
            replica.load.dispatched(id, seconds, tokens, now);
            replica.mean += MEAN_WEIGHT * (seconds - replica.mean);
            replica.chosen = now;
        }
        self.index.touch(place, chain.links(), 0, tokens_per_byte, now);
        if let Ok(replica) = u16::try_from(place) {
            let bytes = chain.bytes();
            self.sessions.touch(session, Home { replica, bytes }, now);
        }
        self.live.spoke(chain.links(), place, now);
        if self.sessions.len() > self.settings.sessions {
            self.sessions.pop_oldest();
        }
        Ticket {
            id,
            replica: place,
            chain: chain.clone(),
            cached_bytes: decision.cached_bytes,
            touched: touched.filter(|_| settled),
            tokens,
            tokens_per_byte,
            clear,
            dispatched: now,
            began: now,
            first: None,
        }
    }

    /// Its first token has come: its prefill is done.
    pub fn first_token(&mut self, ticket: &mut Ticket, now: Duration) {
        if ticket.first.is_some() {
            return;
        }
        ticket.first = Some(now);
        let Some(replica) = self.replicas.get_mut(ticket.replica) else {
            return;
        };
        replica.load.first_token(ticket.id, now);
        ticket.began = ticket.dispatched.max(replica.last_first);
        replica.last_first = now;
        if ticket.dispatched < ticket.began.max(replica.last_end) {
            // Others have used the cache while it waited: it did after them.
            let (links, ratio) = (ticket.chain.links(), ticket.tokens_per_byte);
            self.index.touch(ticket.replica, links, 0, ratio, now);
        }
    }

    /// It has ended, well or not.
    pub fn ended(&mut self, ticket: Ticket, used: Used, now: Duration) {
        if let Some(replica) = self.replicas.get_mut(ticket.replica) {
            let decoded = ticket.first.map(|first| now.saturating_sub(first));
            replica.load.ended(ticket.id, ticket.tokens, decoded, now);
            replica.last_end = now;
        }
        let bytes = ticket.chain.bytes();
        let mut ratio = ticket.tokens_per_byte;
        if let Some(prompt) = used.prompt_tokens.filter(|_| bytes >= RATIO_LEAST_BYTES) {
            ratio = (prompt as f64 / bytes as f64).clamp(TOKENS_PER_BYTE.0, TOKENS_PER_BYTE.1);
            let weight = if self.has_ratio { RATIO_WEIGHT } else { 1.0 };
            self.tokens_per_byte += weight * (ratio - self.tokens_per_byte);
            self.has_ratio = true;
        }
        let prompt = used.prompt_tokens.map_or(ticket.tokens, |tokens| tokens as f64);
        let thought = ticket.cached_bytes as f64 * prompt / (bytes as f64).max(1.0);
        if let Some(cached) = used.cached_tokens {
            let less = cached as f64 + SURPRISE_TOKENS + thought * SURPRISE_PART < thought;
            match ticket.touched {
                Some(touched) if less => self.index.had_less(ticket.replica, touched),
                Some(_) if !less && thought > 0.0 => self.index.had_all(ticket.replica),
                _ => {}
            }
        }
        if let Some(first) = ticket.first {
            let cached = used.cached_tokens.map_or(thought, |cached| cached as f64);
            let uncached = (prompt - cached).max(1.0);
            let seconds = first.saturating_sub(ticket.began).as_secs_f64();
            let queued = ticket.began > ticket.dispatched && uncached >= QUEUED_LEAST_TOKENS;
            if (ticket.clear || queued)
                && let Some(replica) = self.replicas.get_mut(ticket.replica)
            {
                replica.speed.learn(uncached, cached, seconds, now);
            }
            let answer = used.completion_tokens.unwrap_or(0) as f64 / ratio;
            let links = ticket.chain.links();
            self.index.touch(ticket.replica, links, answer as u64, ratio, now);
        }
    }

    /// Another replica has this number from now on, perhaps one more than there were: what was known of it is of another one. Nothing
    /// may be under way there ([`Router::is_idle`]).
    pub fn occupy(&mut self, replica: usize) {
        self.index.occupy(replica);
        self.sessions.retain(|home| usize::from(home.replica) != replica);
        self.live.occupy(replica);
        match self.replicas.get_mut(replica) {
            Some(known) => *known = Replica::new(&self.settings),
            None => self.replicas.resize_with(replica + 1, || Replica::new(&self.settings)),
        }
    }

    /// Nothing that was dispatched there is under way.
    pub fn is_idle(&self, replica: usize) -> bool {
        self.replicas
            .get(replica)
            .is_none_or(|replica| replica.load.sequences() == 0)
    }

    /// A replica has started anew: its cache is empty.
    pub fn restarted(&mut self, replica: usize) {
        self.index.clear(replica);
    }

    /// What a replica says of itself: tokens of its KV cache (0 if it caches no prefixes).
    pub fn capacity(&mut self, replica: usize, kv_tokens: u64) {
        self.index.capacity(replica, kv_tokens);
    }

    /// Requests that wait in a replica, as its metrics say.
    pub fn waiting(&mut self, replica: usize, waiting: usize) {
        if let Some(replica) = self.replicas.get_mut(replica) {
            replica.load.reported_waiting(waiting);
        }
    }

    /// Expected time of all prefills that a replica was given and hasn't done: how long it may be silent.
    pub fn prefill_ahead(&self, replica: usize) -> Duration {
        let seconds = self
            .replicas
            .get(replica)
            .map_or(0.0, |replica| replica.load.prefill_seconds());
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// Links remembered, for a gauge.
    pub fn index_len(&self) -> usize {
        self.index.len()
    }

    /// This session has a home, as far as this router knows.
    pub fn knows(&self, session: u64, now: Duration) -> bool {
        self.session(session, now).is_some()
    }

    fn session(&self, session: u64, now: Duration) -> Option<Home> {
        let entry = self.sessions.get(session)?;
        let idle = now.saturating_sub(entry.touched);
        (idle <= self.settings.index.idle).then_some(entry.value)
    }

    fn estimates(&mut self, question: Question<'_>, now: Duration) -> Vec<Estimate> {
        let cached = self.index.cached(question.chain.links());
        let (ratio, burden) = (self.ratio(question.chain), self.settings.margins.burden);
        let tokens = question.chain.bytes() as f64 * ratio;
        let (index, live) = (&self.index, &self.live);
        let settings = &self.settings;
        let asked = self.replicas.iter_mut().enumerate();
        let asked = asked.filter(|(place, _)| question.may.get(*place) == Some(&true));
        asked
            .map(|(place, replica)| {
                replica.speed.fade(now);
                let hinted = question.hint.filter(|hint| hint.replica == place);
                let bytes = cached.get(place).copied().unwrap_or(0);
                let bytes = bytes.max(hinted.map_or(0, |hint| hint.cached_bytes));
                let cached = bytes as f64 * ratio;
                let room = Room {
                    sequences: settings.sequences,
                    tokens: index.kv_tokens(place).max(1) as f64,
                };
                let prefill = replica.speed.seconds((tokens - cached).max(1.0), cached);
                let ttft = replica.load.wait(tokens, room, now) + prefill;
                let pushed_out = (tokens - cached - index.free_tokens(place) as f64).max(0.0);
                let again = match index.oldest(place).filter(|_| pushed_out > 0.0) {
                    Some(oldest) => {
                        let idle = now.saturating_sub(oldest).as_secs_f64();
                        replica.speed.seconds(pushed_out, 0.0) * (-idle / LIVE.as_secs_f64()).exp()
                    }
                    None => 0.0,
                };
                Estimate {
                    replica: place,
                    ttft,
                    anew: replica.speed.seconds(tokens, 0.0),
                    cost: ttft + burden * prefill + (1.0 + burden) * again,
                    later: CROWD * live.of(place) as f64 * replica.mean,
                    cached: bytes,
                }
            })
            .collect()
    }

    /// Tokens of a byte of this prompt: as measured in what is known of it, the rest as in all prompts.
    fn ratio(&self, chain: &Chain) -> f64 {
        let (known, own) = self.index.tokens_per_byte(chain.links()).unwrap_or((0, 0.0));
        let share = known as f64 / chain.bytes().max(1) as f64;
        share * own + (1.0 - share) * self.tokens_per_byte
    }

    fn room(&self, replica: usize) -> Room {
        Room {
            sequences: self.settings.sequences,
            tokens: self.index.kv_tokens(replica).max(1) as f64,
        }
    }

    /// The first on the ring that carries no more than its share.
    fn on_ring(&self, estimates: &[Estimate], mut ring: impl Iterator<Item = usize>) -> Option<usize> {
        let load = |replica: usize| self.replicas.get(replica).map_or(0, |replica| replica.load.sequences());
        let total: usize = estimates.iter().map(|estimate| load(estimate.replica)).sum();
        let mean = (total + 1) as f64 / estimates.len().max(1) as f64;
        let bound = (mean * self.settings.margins.load_bound).ceil() as usize;
        ring.find(|place| estimates.iter().any(|estimate| estimate.replica == *place) && load(*place) < bound)
    }

    /// A replica that nobody chose for long, now and then.
    fn trial(&mut self, may: &[bool], now: Duration) -> Option<usize> {
        self.new_sessions += 1;
        if !self.new_sessions.is_multiple_of(TRIAL_EVERY) {
            return None;
        }
        let idle = self.replicas.iter().enumerate();
        let idle = idle.filter(|(place, replica)| {
            may.get(*place) == Some(&true) && now.saturating_sub(replica.chosen) > self.settings.margins.trial_after
        });
        idle.min_by_key(|(_, replica)| replica.chosen).map(|(place, _)| place)
    }
}

fn decision(estimate: Estimate, reason: Reason) -> Decision {
    Decision {
        replica: estimate.replica,
        reason,
        cached_bytes: estimate.cached,
        expected: Duration::try_from_secs_f64(estimate.ttft).unwrap_or_default(),
        anew: Duration::try_from_secs_f64(estimate.anew).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
