//! Which replica has which part of a conversation in its KV cache, as far as can be known from outside.
//!
//! Problem: only vLLM knows its cache. Rule: what was sent to a replica is cached there, in the order of the last touch, a
//! conversation's end before its beginning (vLLM gives blocks up so), until more than its KV cache holds was sent. Cold start:
//! nothing is cached. Recovery: `cached_tokens` of an answer that says less than was thought shows up to which age everything is
//! lost, and that the cache holds less than thought; one that says as much lets the belief grow back. A restarted replica starts
//! empty. Source: vLLM's block pool, read beside the simulator's (gateway's `simulator/cache`).
//!
//! Enters: chains, replicas by number, `now`. Leaves: bytes cached per replica, and how many tokens a byte of a conversation has: each
//! piece of text keeps the ratio of the last prompt that it was measured in, since one ratio for all texts is a third off for some.

use foldhash::{HashMap, HashMapExt};
use std::time::Duration;

use super::chain::Link;
use super::recent::Recent;

/// Replicas of one backend that are remembered; further ones count as empty.
pub const REPLICAS_LIMIT: usize = 256;

/// Before a replica has said how large its KV cache is, in tokens.
const DEFAULT_KV_TOKENS: u64 = 140_000;

/// A belief is never less than this part of what the replica says it has.
const LEAST_BELIEF: f64 = 0.1;

/// How much a belief grows back with each answer that had all that was thought.
const BELIEF_GROWTH: f64 = 1.02;

/// Bits for replicas.
type Holders = [u64; REPLICAS_LIMIT / 64];

/// See the module.
pub struct Index {
    holders: HashMap<u64, Holders>,
    shelves: Vec<Shelf>,
    links: usize,
    limits: IndexLimits,
}

/// Bounds of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexLimits {
    /// Links over all replicas. Default 100,000 (about 20 MB).
    pub links: usize,
    /// A link is forgotten after so long without a touch. Default 2 h.
    pub idle: Duration,
}

impl Default for IndexLimits {
    fn default() -> Self {
        IndexLimits {
            links: 100_000,
            idle: Duration::from_secs(2 * 3600),
        }
    }
}

/// The text of one link, without what is before it.
#[derive(Debug, Clone, Copy)]
struct Piece {
    bytes: u64,
    tokens_per_byte: f32,
}

impl Piece {
    fn tokens(self) -> u64 {
        (self.bytes as f64 * f64::from(self.tokens_per_byte)).round() as u64
    }
}

/// One replica's KV cache, as believed.
#[derive(Debug, Default)]
struct Shelf {
    links: Recent<Piece>,
    /// Of all pieces.
    tokens: u64,
    /// What it says that it holds, in tokens.
    kv_tokens: Option<u64>,
    /// Part of that which seems to be there for us.
    belief: Option<f64>,
}

impl Shelf {
    fn holds(&self) -> u64 {
        let said = self.kv_tokens.unwrap_or(DEFAULT_KV_TOKENS);
        (said as f64 * self.belief.unwrap_or(1.0)) as u64
    }
}

impl Index {
    /// Empty.
    pub fn new(replicas: usize, limits: IndexLimits) -> Index {
        let shelves = replicas.min(REPLICAS_LIMIT);
        Index {
            holders: HashMap::new(),
            shelves: (0..shelves).map(|_| Shelf::default()).collect(),
            links: 0,
            limits,
        }
    }

    /// Bytes of this chain that each replica has, from its beginning; one entry a replica.
    pub fn cached(&self, chain: &[Link]) -> Vec<u64> {
        let mut cached = vec![0; self.shelves.len()];
        let mut alive: Holders = [u64::MAX; REPLICAS_LIMIT / 64];
        let mut before = 0;
        for link in chain {
            let holders = self.holders.get(&link.hash).copied().unwrap_or_default();
            for (word, (alive, holders)) in alive.iter_mut().zip(holders).enumerate() {
                if before > 0 {
                    each_bit(*alive & !holders, word, |replica| set(&mut cached, replica, before));
                }
                *alive &= holders;
            }
            if alive.iter().all(|word| *word == 0) {
                return cached;
            }
            before = link.bytes;
        }
        if before == 0 {
            return cached;
        }
        for (word, alive) in alive.iter().enumerate() {
            each_bit(*alive, word, |replica| set(&mut cached, replica, before));
        }
        cached
    }

    /// How far this chain is known, in bytes, and how many tokens a byte has there.
    pub fn tokens_per_byte(&self, chain: &[Link]) -> Option<(u64, f64)> {
        chain.iter().rev().find_map(|link| {
            let holders = self.holders.get(&link.hash)?;
            let (word, bits) = holders.iter().enumerate().find(|(_, bits)| **bits != 0)?;
            let shelf = self.shelves.get(word * 64 + bits.trailing_zeros() as usize)?;
            let piece = shelf.links.get(link.hash)?.value;
            Some((link.bytes, f64::from(piece.tokens_per_byte)))
        })
    }

    /// When the end of what is cached of this chain was last used on this replica.
    pub fn last_touch(&self, replica: usize, chain: &[Link], cached_bytes: u64) -> Option<Duration> {
        let last = chain.iter().rfind(|link| link.bytes <= cached_bytes)?;
        let shelf = self.shelves.get(replica)?;
        shelf.links.get(last.hash).map(|entry| entry.touched)
    }

    /// This prompt is in the replica's cache from now on, and `answer_bytes` of an answer after it, which nobody asks for again
    /// but which takes room.
    pub fn touch(&mut self, replica: usize, chain: &[Link], answer_bytes: u64, tokens_per_byte: f64, now: Duration) {
        if replica >= self.shelves.len() {
            return;
        }
        let piece = |bytes| Piece {
            bytes,
            tokens_per_byte: tokens_per_byte as f32,
        };
        if let Some(last) = chain.last().filter(|_| answer_bytes > 0) {
            // Of no prompt: a chain's hashes all come out of the hasher.
            self.put(replica, !last.hash, piece(answer_bytes), now);
        }
        // The beginning is touched last: it is given up last.
        for (place, link) in chain.iter().enumerate().rev() {
            let before = place.checked_sub(1).and_then(|place| chain.get(place));
            let bytes = link.bytes.saturating_sub(before.map_or(0, |link| link.bytes));
            self.put(replica, link.hash, piece(bytes), now);
        }
        self.fit(replica);
        self.expire(now);
    }

    /// A replica says how many tokens its KV cache holds; 0: it caches no prefixes.
    pub fn capacity(&mut self, replica: usize, kv_tokens: u64) {
        if let Some(shelf) = self.shelves.get_mut(replica)
            && shelf.kv_tokens != Some(kv_tokens)
        {
            shelf.kv_tokens = Some(kv_tokens);
            shelf.belief = None;
        }
    }

    /// Tokens that this replica's KV cache holds, as it says.
    pub fn kv_tokens(&self, replica: usize) -> u64 {
        let said = self.shelves.get(replica).and_then(|shelf| shelf.kv_tokens);
        said.unwrap_or(DEFAULT_KV_TOKENS)
    }

    /// An answer had less cached than was thought; what was thought was last used at `touched`: whatever is as old is lost too.
    pub fn had_less(&mut self, replica: usize, touched: Duration) {
        while self
            .shelves
            .get(replica)
            .and_then(|shelf| shelf.links.oldest())
            .is_some_and(|oldest| oldest <= touched)
        {
            self.drop_oldest(replica);
        }
        if let Some(shelf) = self.shelves.get_mut(replica) {
            let said = shelf.kv_tokens.unwrap_or(DEFAULT_KV_TOKENS).max(1) as f64;
            let holds = shelf.tokens as f64 / said;
            // One surprise may be chance (a sequence that ran long): halfway there.
            let belief = shelf.belief.unwrap_or(1.0);
            shelf.belief = Some((belief + holds.min(belief)) / 2.0).map(|belief| belief.max(LEAST_BELIEF));
        }
    }

    /// An answer had all that was thought.
    pub fn had_all(&mut self, replica: usize) {
        if let Some(shelf) = self.shelves.get_mut(replica)
            && let Some(belief) = shelf.belief
        {
            let more = belief * BELIEF_GROWTH;
            shelf.belief = (more < 1.0).then_some(more);
        }
    }

    /// Another replica has this number now, perhaps one more than there were: nothing is known of it.
    pub fn occupy(&mut self, replica: usize) {
        self.clear(replica);
        if let Some(shelf) = self.shelves.get_mut(replica) {
            *shelf = Shelf::default();
        }
        let shelves = (replica + 1).min(REPLICAS_LIMIT);
        if shelves > self.shelves.len() {
            self.shelves.resize_with(shelves, Shelf::default);
        }
    }

    /// A replica has started anew: its cache is empty.
    pub fn clear(&mut self, replica: usize) {
        while self.drop_oldest(replica) {}
    }

    /// Tokens of this replica's cache that nobody holds.
    pub fn free_tokens(&self, replica: usize) -> u64 {
        let shelf = self.shelves.get(replica);
        shelf.map_or(0, |shelf| shelf.holds().saturating_sub(shelf.tokens))
    }

    /// When what this replica would give up next was last used.
    pub fn oldest(&self, replica: usize) -> Option<Duration> {
        self.shelves.get(replica).and_then(|shelf| shelf.links.oldest())
    }

    /// Links remembered.
    pub fn len(&self) -> usize {
        self.links
    }

    /// Nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.links == 0
    }

    /// What a replica has, the longest untouched first: hash, bytes, last touch.
    pub fn entries(&self, replica: usize) -> impl Iterator<Item = (u64, u64, Duration)> + '_ {
        let shelf = self.shelves.get(replica);
        shelf.into_iter().flat_map(|shelf| {
            let links = shelf.links.oldest_first();
            links.map(|(hash, entry)| (hash, entry.value.bytes, entry.touched))
        })
    }

    /// One that was saved; in the order of [`Index::entries`].
    pub fn restore(&mut self, replica: usize, hash: u64, bytes: u64, tokens_per_byte: f64, touched: Duration) {
        if replica < self.shelves.len() {
            let tokens_per_byte = tokens_per_byte as f32;
            self.put(replica, hash, Piece { bytes, tokens_per_byte }, touched);
        }
    }

    fn put(&mut self, replica: usize, hash: u64, piece: Piece, now: Duration) {
        let Some(shelf) = self.shelves.get_mut(replica) else {
            return;
        };
        shelf.tokens += piece.tokens();
        match shelf.links.touch(hash, piece, now) {
            Some(before) => shelf.tokens -= before.value.tokens(),
            None => {
                self.links += 1;
                if let Some(word) = self.holders.entry(hash).or_default().get_mut(replica / 64) {
                    *word |= 1 << (replica % 64);
                }
            }
        }
        if self.links > self.limits.links {
            self.drop_oldest_of_all();
        }
    }

    /// Until no more is kept than its cache holds.
    fn fit(&mut self, replica: usize) {
        while self
            .shelves
            .get(replica)
            .is_some_and(|shelf| shelf.tokens > shelf.holds())
            && self.drop_oldest(replica)
        {}
    }

    fn expire(&mut self, now: Duration) {
        for replica in 0..self.shelves.len() {
            while self
                .shelves
                .get(replica)
                .and_then(|shelf| shelf.links.oldest())
                .is_some_and(|oldest| now.saturating_sub(oldest) > self.limits.idle)
            {
                self.drop_oldest(replica);
            }
        }
    }

    fn drop_oldest_of_all(&mut self) {
        let oldest = self.shelves.iter().enumerate();
        let oldest = oldest.filter_map(|(replica, shelf)| Some((shelf.links.oldest()?, replica)));
        if let Some((_, replica)) = oldest.min() {
            self.drop_oldest(replica);
        }
    }

    /// False if there was none.
    fn drop_oldest(&mut self, replica: usize) -> bool {
        let Some((shelf, (hash, piece))) = self.shelves.get_mut(replica).and_then(|shelf| {
            let oldest = shelf.links.pop_oldest()?;
            Some((shelf, oldest))
        }) else {
            return false;
        };
        shelf.tokens -= piece.tokens();
        self.links -= 1;
        if let Some(holders) = self.holders.get_mut(&hash) {
            if let Some(word) = holders.get_mut(replica / 64) {
                *word &= !(1 << (replica % 64));
            }
            if holders.iter().all(|word| *word == 0) {
                self.holders.remove(&hash);
            }
        }
        true
    }
}

fn set(cached: &mut [u64], replica: usize, bytes: u64) {
    if let Some(cached) = cached.get_mut(replica) {
        *cached = bytes;
    }
}

/// Calls `each` with the number of every set bit of the `word`-th word.
fn each_bit(mut bits: u64, word: usize, mut each: impl FnMut(usize)) {
    while bits != 0 {
        each(word * 64 + bits.trailing_zeros() as usize);
        bits &= bits - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Duration = Duration::from_secs(10);

    /// A chain of `count` links of 1,000 bytes; those below `common` are the same for every `name`.
    fn chain(name: u64, common: u64, count: u64) -> Vec<Link> {
        let hash = |i: u64| if i < common { i + 1 } else { name * 1_000 + i };
        (0..count)
            .map(|i| Link {
                hash: hash(i),
                bytes: (i + 1) * 1_000,
            })
            .collect()
    }

    /// With a cache of so many links at a token a byte.
    fn index(replicas: usize, links: u64) -> Index {
        let mut index = Index::new(replicas, IndexLimits::default());
        (0..replicas).for_each(|replica| index.capacity(replica, links * 1_000));
        index
    }

    #[test]
    fn each_replica_has_what_it_shares_with_what_was_sent_to_it() {
        let mut index = index(70, 100);
        index.touch(0, &chain(1, 3, 10), 0, 1.0, AT);
        index.touch(69, &chain(2, 3, 10), 0, 1.0, AT);
        let cached = index.cached(&chain(2, 3, 20));
        assert_eq!((cached[0], cached[69], cached[1]), (3_000, 10_000, 0));
        assert_eq!(index.cached(&chain(2, 3, 5))[69], 5_000);
    }

    #[test]
    fn what_no_longer_fits_is_lost_and_the_end_goes_before_the_beginning() {
        let mut index = index(1, 12);
        index.touch(0, &chain(1, 0, 6), 0, 1.0, AT);
        index.touch(0, &chain(2, 0, 8), 0, 1.0, AT);
        assert_eq!(index.cached(&chain(1, 0, 6)), [4_000]);
        assert_eq!(index.cached(&chain(2, 0, 8)), [8_000]);
        index.touch(0, &chain(2, 0, 8), 3_000, 1.0, AT);
        assert_eq!(index.cached(&chain(1, 0, 6)), [1_000], "an answer takes room too");
        index.touch(0, &chain(3, 0, 3), 0, 4.0, AT);
        assert_eq!(index.cached(&chain(2, 0, 8)), [0], "more tokens a byte fill it sooner");
    }

    #[test]
    fn a_surprise_forgets_what_is_as_old_and_shrinks_the_belief_until_it_was_right_for_long() {
        let mut index = index(1, 100);
        let at = Duration::from_secs;
        index.touch(0, &chain(1, 0, 10), 0, 1.0, at(1));
        index.touch(0, &chain(2, 0, 10), 0, 1.0, at(2));
        index.touch(0, &chain(3, 0, 10), 0, 1.0, at(3));
        assert_eq!(index.last_touch(0, &chain(2, 0, 12), 10_000), Some(at(2)));
        index.had_less(0, at(2));
        assert_eq!(index.cached(&chain(1, 0, 10)), [0]);
        assert_eq!(index.cached(&chain(3, 0, 10)), [10_000]);
        index.touch(0, &chain(4, 0, 70), 0, 1.0, at(4));
        let held = index.cached(&chain(4, 0, 70))[0];
        assert!(
            (50_000..60_000).contains(&held),
            "half of the way from 100 to 10: {held}"
        );
        (0..40).for_each(|_| index.had_all(0));
        index.touch(0, &chain(4, 0, 70), 0, 1.0, at(5));
        assert_eq!(index.cached(&chain(4, 0, 70)), [70_000]);
    }

    #[test]
    fn a_restart_a_long_silence_and_the_bound_of_the_whole_forget() {
        let mut index = index(2, 1_000);
        index.touch(0, &chain(1, 0, 10), 0, 1.0, AT);
        index.touch(1, &chain(1, 0, 10), 0, 1.0, AT);
        index.clear(0);
        assert_eq!(index.cached(&chain(1, 0, 10)), [0, 10_000]);
        let late = AT + IndexLimits::default().idle + Duration::from_secs(1);
        index.touch(0, &chain(2, 0, 1), 0, 1.0, late);
        assert_eq!((index.cached(&chain(1, 0, 10)), index.len()), (vec![0, 0], 1));
        index.limits.links = 5;
        index.touch(0, &chain(3, 0, 20), 0, 1.0, late);
        assert_eq!((index.len(), index.holders.len()), (5, 5));
    }

    #[test]
    fn a_replica_that_caches_nothing_has_nothing() {
        let mut index = index(1, 0);
        index.touch(0, &chain(1, 0, 10), 0, 1.0, AT);
        assert!(index.is_empty() && index.holders.is_empty());
    }
}
