//! What one replica can hold: running sequences, and the tokens of their prompts and expected answers in its KV cache.
//!
//! Problem: vLLM takes whatever it is sent, and what doesn't fit pushes out the cache of others, whose next turn is then computed
//! anew. Rule: sequences up to `max_num_seqs` (`n` counts n), tokens up to those of the KV cache; a prefix that running requests
//! share is counted once, as the cache holds it once. Cold start: a size that isn't known bounds nothing. Recovery: preemptions
//! say that the estimates were too low: the room shrinks by a fifth, and grows back slowly (additive increase, multiplicative
//! decrease, as TCP has it). What is larger than the whole room goes alone, so that nothing waits for ever. Conversations between two
//! turns count too, as long as they are `kept`.

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

use foldhash::{HashMap, HashMapExt as _};

use super::kept::{Kept, Resting};
use crate::route::chain::{Chain, Link};

/// A preemption leaves this part of the room.
const CUT: f64 = 0.8;

/// No less than this part is left.
const LEAST_PART: f64 = 0.3;

/// Preemptions within this time are one: they have one cause.
const CUT_EVERY: Duration = Duration::from_secs(5);

/// Without a preemption the room grows by so much of the whole, each so often.
const EASE: f64 = 0.02;
const EASE_EVERY: Duration = Duration::from_secs(10);

/// The size of a replica; `None`: not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// `max_num_seqs`.
    pub sequences: Option<u32>,
    /// `num_gpu_blocks × block_size`.
    pub kv_tokens: Option<u64>,
}

/// What a request takes of a replica while it runs, as estimated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// `n`.
    pub sequences: u32,
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of all its answers.
    pub output_tokens: u64,
    /// The prompt, where its parts are known.
    pub chain: Arc<Chain>,
}

impl Need {
    /// All its tokens.
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.output_tokens)
    }

    /// Of the prompt, up to this link.
    fn tokens_to(&self, link: &Link) -> u64 {
        let share = u128::from(self.prompt_tokens) * u128::from(link.bytes) / u128::from(self.chain.bytes().max(1));
        u64::try_from(share).unwrap_or(u64::MAX).min(self.prompt_tokens)
    }

    /// Tokens that no link stands for: the prompt's end, and the answers.
    fn rest(&self) -> u64 {
        let linked = self.chain.links().last().map_or(0, |last| self.tokens_to(last));
        (self.prompt_tokens - linked).saturating_add(self.output_tokens)
    }
}

/// What is held of a room, as one process says it to the one that takes over, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holds {
    /// Running sequences.
    pub sequences: u32,
    /// KV tokens.
    pub tokens: u64,
}

/// A part of prompts that run.
#[derive(Debug)]
struct Part {
    holders: u32,
    tokens: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Room {
    capacity: Capacity,
    requests: usize,
    sequences: u32,
    tokens: u64,
    parts: HashMap<u64, Part>,
    /// What another process has there.
    elsewhere: Holds,
    /// Conversations between two turns; their tokens are counted.
    kept: Kept,
    /// How much of the capacity is given away.
    part: f64,
    /// When that was last changed.
    changed: Duration,
}

impl Room {
    /// Of a replica of this size.
    pub fn new(capacity: Capacity) -> Room {
        Room {
            capacity,
            requests: 0,
            sequences: 0,
            tokens: 0,
            parts: HashMap::new(),
            elsewhere: Holds::default(),
            kept: Kept::default(),
            part: 1.0,
            changed: Duration::ZERO,
        }
    }

    /// Its size.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Its size is another one, or is known now. What runs stays.
    pub fn set_capacity(&mut self, capacity: Capacity) {
        self.capacity = capacity;
    }

    /// Requests that hold a place.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// Tokens that are held, by what runs and what is kept.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Sequences that are held.
    pub fn sequences(&self) -> u32 {
        self.sequences
    }

    /// What runs holds, here and in another process.
    pub fn holds(&self) -> Holds {
        let kept = self.kept.iter().map(|resting| self.freed_by(resting, &Need::default()));
        let kept = kept.fold(0, u64::saturating_add);
        let all = self.all();
        Holds {
            tokens: all.tokens.saturating_sub(kept),
            ..all
        }
    }

    /// What is kept too.
    fn all(&self) -> Holds {
        Holds {
            sequences: self.sequences.saturating_add(self.elsewhere.sequences),
            tokens: self.tokens.saturating_add(self.elsewhere.tokens),
        }
    }

    /// So much is held by another process: one that this one took over from, until it has left.
    pub fn set_elsewhere(&mut self, holds: Holds) {
        self.elsewhere = holds;
    }

    /// Nothing runs there.
    fn is_idle(&self) -> bool {
        self.requests == 0 && self.elsewhere.sequences == 0
    }

    /// Whether a request may run there beside what runs and what is kept. One that never could may if nothing else is there.
    pub fn fits(&self, need: &Need, now: Duration) -> bool {
        self.fits_where(need, |resting, missing| self.kept.gives_way(resting, missing, now))
    }

    /// The same for one that is due: what is kept gives way to it.
    pub fn fits_due(&self, need: &Need) -> bool {
        self.fits_where(need, |_, _| true)
    }

    fn fits_where(&self, need: &Need, gives_way: impl Fn(&Resting, u64) -> bool) -> bool {
        let is_alone = self.is_idle();
        let sequences = self.all().sequences.saturating_add(need.sequences);
        let most = self.capacity.sequences.map(|most| self.part_of(most.into()));
        if !is_alone && most.is_some_and(|most| u64::from(sequences) > most) {
            return false;
        }
        let Some(most) = self.most_tokens() else { return true };
        let own = self.kept.own(need);
        let again = own
            .and_then(|place| self.kept.get(place))
            .map_or(0, |own| own.need.rest());
        let wanted = self.all().tokens.saturating_add(self.tokens_of(need)) - again;
        let mut missing = wanted.saturating_sub(most);
        for (place, resting) in self.kept.iter().enumerate() {
            if missing == 0 {
                break;
            }
            if Some(place) != own && gives_way(resting, missing) {
                missing = missing.saturating_sub(self.freed_by(resting, need));
            } else if is_alone && Some(place) != own {
                return false;
            }
        }
        missing == 0 || is_alone
    }

    /// Whether the smallest request may run there. Cheaper than asking for each.
    pub fn has_any(&self) -> bool {
        let sequences = self.capacity.sequences.map(|most| self.part_of(most.into()));
        let all = self.all();
        self.is_idle()
            || (sequences.is_none_or(|most| u64::from(all.sequences) < most)
                && (!self.kept.is_empty() || self.most_tokens().is_none_or(|most| all.tokens < most)))
    }

    /// It runs there from now on, whether it fits or not.
    pub fn take(&mut self, need: &Need) {
        self.requests += 1;
        self.sequences = self.sequences.saturating_add(need.sequences);
        let mut before = 0;
        for link in need.chain.links() {
            let up_to = need.tokens_to(link);
            let tokens = up_to - before;
            before = up_to;
            let part = self.parts.entry(link.hash).or_insert(Part { holders: 0, tokens });
            if part.holders == 0 {
                self.tokens = self.tokens.saturating_add(part.tokens);
            }
            part.holders += 1;
        }
        self.tokens = self.tokens.saturating_add(need.rest());
        // What is kept gives way, the longest at rest first, but not what it goes on with.
        let own = self.kept.own(need);
        let mut next = 0;
        while self.most_tokens().is_some_and(|most| self.all().tokens > most) {
            next += usize::from(own == Some(next));
            let Some(resting) = self.kept.lets_go(next) else { return };
            self.release(&resting.need);
        }
    }

    /// It has ended there. Once for each [`Room::take`], with the same need.
    pub fn give_back(&mut self, need: &Need) {
        self.requests = self.requests.saturating_sub(1);
        self.sequences = self.sequences.saturating_sub(need.sequences);
        self.release(need);
    }

    /// It has ended there, and its cache is kept for its next turn: as [`Room::give_back`], but its tokens stay counted.
    pub(super) fn keep(&mut self, need: Need, anew: Duration, now: Duration) {
        if need.chain.links().is_empty() || self.capacity.kv_tokens.is_none() {
            return self.give_back(&need);
        }
        self.requests = self.requests.saturating_sub(1);
        self.sequences = self.sequences.saturating_sub(need.sequences);
        if let Some(gone) = self.kept.push(need, anew, now) {
            self.release(&gone.need);
        }
    }

    /// Whether room is kept for this request.
    pub(super) fn keeps(&self, need: &Need) -> bool {
        self.kept.own(need).is_some()
    }

    /// Tokens of its prompt that are held there: they are in the cache.
    pub(super) fn held_of(&self, need: &Need) -> u64 {
        need.tokens() - self.tokens_of(need)
    }

    /// What was kept for this request is its own now.
    pub(super) fn goes_on(&mut self, need: &Need, now: Duration) {
        self.kept.comes(need, now);
        if let Some(own) = self.kept.own(need).and_then(|place| self.kept.remove(place)) {
            self.release(&own.need);
        }
    }

    fn release(&mut self, need: &Need) {
        for link in need.chain.links() {
            if let Some(part) = self.parts.get_mut(&link.hash) {
                part.holders -= 1;
                if part.holders == 0 {
                    self.tokens = self.tokens.saturating_sub(part.tokens);
                    self.parts.remove(&link.hash);
                }
            }
        }
        self.tokens = self.tokens.saturating_sub(need.rest());
    }

    /// The replica had to stop a running sequence for want of KV blocks.
    pub fn preempted(&mut self, now: Duration) {
        self.ease(now);
        if self.part < 1.0 && now.saturating_sub(self.changed) < CUT_EVERY {
            return;
        }
        // No block was free any more: nothing of what was kept is left.
        while let Some(gone) = self.kept.lets_go(0) {
            self.release(&gone.need);
        }
        self.part = (self.part * CUT).max(LEAST_PART);
        self.changed = now;
    }

    /// Time has passed.
    pub fn ease(&mut self, now: Duration) {
        while self.part < 1.0 && now.saturating_sub(self.changed) >= EASE_EVERY {
            self.part = (self.part + EASE).min(1.0);
            self.changed += EASE_EVERY;
        }
    }

    fn part_of(&self, whole: u64) -> u64 {
        ((whole as f64 * self.part) as u64).max(1)
    }

    fn most_tokens(&self) -> Option<u64> {
        self.capacity.kv_tokens.map(|most| self.part_of(most))
    }

    /// Tokens that nobody else holds, nor would this request.
    fn freed_by(&self, resting: &Resting, by: &Need) -> u64 {
        let links = resting.need.chain.links().iter().skip(resting.in_common(by));
        let parts = links.filter_map(|link| self.parts.get(&link.hash));
        let alone = parts.filter(|part| part.holders == 1).map(|part| part.tokens);
        alone.fold(resting.need.rest(), u64::saturating_add)
    }

    /// What a request would add: without the prefix that runs there already.
    fn tokens_of(&self, need: &Need) -> u64 {
        let links = need.chain.links();
        // Whoever holds a link holds all before it: a hash stands for all up to its place.
        let shared = links.partition_point(|link| self.parts.contains_key(&link.hash));
        let shared = shared.checked_sub(1).and_then(|last| links.get(last));
        need.tokens() - shared.map_or(0, |link| need.tokens_to(link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn need(prompt_tokens: u64, output_tokens: u64) -> Need {
        Need {
            sequences: 1,
            prompt_tokens,
            output_tokens,
            chain: Arc::default(),
        }
    }

    /// A prompt of 100 bytes a link, a token a byte.
    fn linked(hashes: &[u64], output_tokens: u64) -> Need {
        let links = (1..).zip(hashes).map(|(n, &hash)| Link { hash, bytes: n * 100 });
        Need {
            sequences: 1,
            prompt_tokens: hashes.len() as u64 * 100,
            output_tokens,
            chain: Arc::new(Chain::from_links(links.collect())),
        }
    }

    fn room(sequences: Option<u32>, kv_tokens: Option<u64>) -> Room {
        Room::new(Capacity { sequences, kv_tokens })
    }

    #[test]
    fn sequences_and_tokens_bound_each_for_itself() {
        let mut few = room(Some(3), None);
        few.take(&need(1 << 40, 0));
        let two = Need {
            sequences: 2,
            ..need(1, 1)
        };
        assert!(few.fits(&two, NOW), "n counts n");
        few.take(&two);
        assert!(!few.fits(&need(1, 1), NOW) && !few.has_any());
        few.give_back(&two);
        assert!(few.fits(&need(1, 1), NOW));

        let mut small = room(None, Some(140_000));
        small.take(&need(60_000, 500));
        small.take(&need(60_000, 500));
        assert!(!small.fits(&need(60_000, 500), NOW) && small.has_any());
        assert!(small.fits(&need(19_000, 0), NOW) && !small.fits(&need(19_001, 0), NOW));
        let mut unknown = room(None, None);
        (0..1000).for_each(|_| unknown.take(&need(60_000, 500)));
        assert!(unknown.fits(&need(60_000, 500), NOW));
    }

    #[test]
    fn a_shared_prefix_counts_once_until_its_last_holder_ends() {
        let mut room = room(None, Some(1000));
        let (a, b) = (linked(&[1, 2, 3, 4, 5], 100), linked(&[1, 2, 3, 4, 9], 100));
        room.take(&a);
        assert_eq!(room.tokens(), 600);
        assert!(room.fits(&b, NOW), "400 of it are there");
        room.take(&b);
        assert_eq!(room.tokens(), 800);
        assert!(!room.fits(&linked(&[7, 8], 100), NOW));
        room.give_back(&a);
        assert_eq!(room.tokens(), 600);
        room.give_back(&b);
        assert_eq!((room.tokens(), room.requests(), room.parts.len()), (0, 0, 0));
    }

    #[test]
    fn what_is_larger_than_the_room_goes_alone() {
        let mut room = room(Some(1), Some(1000));
        let huge = Need {
            sequences: 16,
            ..need(5000, 0)
        };
        assert!(room.fits(&huge, NOW));
        room.take(&huge);
        assert!(!room.fits(&need(1, 0), NOW));
        room.give_back(&huge);
        room.take(&need(1, 0));
        assert!(!room.fits(&huge, NOW));
    }

    #[test]
    fn what_another_process_has_takes_room_too() {
        let mut room = room(Some(3), Some(1_000));
        let small = need(90, 10);
        let elsewhere = |sequences, tokens| Holds { sequences, tokens };
        room.set_elsewhere(elsewhere(2, 950));
        // For want of tokens, then of sequences.
        assert!(!room.fits(&small, NOW) && room.has_any());
        room.set_elsewhere(elsewhere(3, 300));
        assert!(!room.fits(&small, NOW) && !room.has_any());
        room.set_elsewhere(elsewhere(2, 300));
        assert!(room.fits(&small, NOW));
        room.take(&small);
        assert_eq!((room.holds(), room.fits(&small, NOW)), (elsewhere(3, 400), false));
        room.set_elsewhere(Holds::default());
        assert!(room.fits(&small, NOW));
    }

    #[test]
    fn preemptions_tighten_and_time_relaxes() {
        let s = Duration::from_secs;
        let mut room = room(None, Some(1000));
        room.take(&need(1, 0));
        assert!(room.fits(&need(999, 0), NOW));
        room.preempted(s(100));
        room.preempted(s(101));
        assert!(
            room.fits(&need(799, 0), NOW) && !room.fits(&need(800, 0), NOW),
            "one cause, one cut"
        );
        room.preempted(s(106));
        assert!(room.fits(&need(639, 0), NOW) && !room.fits(&need(640, 0), NOW));
        (0..100).for_each(|n| room.preempted(s(110 + 6 * n)));
        assert!(room.fits(&need(299, 0), NOW), "never less than a part");
        room.ease(s(100_000));
        assert!(room.fits(&need(999, 0), NOW));
    }
}
