//! Conversations that have just been answered on a replica and will speak again: their KV cache is kept for a while.
//!
//! Problem: an agent works for seconds between two turns. Whoever is let in meanwhile pushes its cache out, and when it comes back it
//! pushes out somebody else's: with more conversations than fit, each turn is computed from its first token. Rule: a conversation's
//! room is kept for it as long as computing it anew would cost: its prefill, twice, since all that runs there is held up by it (break-even, as
//! in the ski rental); one that needs a part of the room waits for that part of the time. Cold start: nothing is kept before a conversation
//! came back that had given way, so that a load that fits waits for nobody. Recovery: who is due, as one that has waited
//! for long is, waits for nobody that is kept, and preemptions end all keeping.
//!
//! Enters: a request that has ended well. Leaves: what its replica's `room` has to count, until it comes back or gives way.

use std::collections::VecDeque;
use std::time::Duration;

use super::room::Need;

/// Conversations kept of one replica.
const KEPT_MOST: usize = 64;

/// A prefill costs its own time, and that of all whom it holds up.
const COST: u32 = 2;

/// No conversation is kept longer.
const KEPT_FOR: Duration = Duration::from_secs(30);

/// Keeping begins when a conversation came back that had given way, and goes on for so long after the last one.
const REGRETTED_FOR: Duration = Duration::from_secs(120);

/// Conversations that gave way and are remembered.
const GONE_MOST: usize = 64;

/// A prompt that has at least this part of a kept one goes on with it.
const OWN_PART: f64 = 0.5;

/// A conversation that rests.
#[derive(Debug)]
pub(super) struct Resting {
    /// What it took, and still does.
    pub(super) need: Need,
    /// Its last answer ended then.
    since: Duration,
    /// Computing it anew would cost so long.
    cost: Duration,
}

impl Resting {
    /// Whether it lets go of so many tokens, for another one.
    fn gives_way(&self, tokens: u64, now: Duration) -> bool {
        let part = (tokens as f64 / self.need.tokens().max(1) as f64).min(1.0);
        now.saturating_sub(self.since) >= self.cost.mul_f64(part)
    }

    /// Links of its prompt that this one begins with.
    pub(super) fn in_common(&self, need: &Need) -> usize {
        let (mine, other) = (self.need.chain.links(), need.chain.links());
        // A hash stands for all up to its place.
        let mut places = 0..mine.len().min(other.len());
        while !places.is_empty() {
            let middle = places.start + places.len() / 2;
            match (mine.get(middle), other.get(middle)) {
                (Some(a), Some(b)) if a.hash == b.hash => places.start = middle + 1,
                _ => places.end = middle,
            }
        }
        places.start
    }

    /// The part of it that these links are.
    fn part_of(&self, links: usize) -> f64 {
        let last = links.checked_sub(1).and_then(|last| self.need.chain.links().get(last));
        last.map_or(0.0, |link| link.bytes as f64 / self.need.chain.bytes().max(1) as f64)
    }
}

/// Those of one replica, the longest at rest first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    all: VecDeque<Resting>,
    /// Those that gave way: the place of their last link, and its hash.
    gone: VecDeque<(usize, u64)>,
    /// When one of these last came back.
    regretted: Option<Duration>,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Resting> {
        self.all.iter()
    }

    /// One more; another one is not kept any more if there are too many.
    pub(super) fn push(&mut self, need: Need, anew: Duration, now: Duration) -> Option<Resting> {
        self.all.push_back(Resting {
            need,
            since: now,
            cost: anew.saturating_mul(COST).min(KEPT_FOR),
        });
        (self.all.len() > KEPT_MOST).then(|| self.all.pop_front()).flatten()
    }

    /// The place of the one that this request goes on with.
    pub(super) fn own(&self, need: &Need) -> Option<usize> {
        let common = self.all.iter().map(|resting| resting.in_common(need)).enumerate();
        let (place, links) = common.max_by_key(|(_, links)| *links)?;
        (self.all.get(place)?.part_of(links) >= OWN_PART).then_some(place)
    }

    /// Whether it would let go of so many tokens now.
    pub(super) fn gives_way(&self, resting: &Resting, tokens: u64, now: Duration) -> bool {
        let regretted = self.regretted.is_some_and(|at| now.saturating_sub(at) < REGRETTED_FOR);
        !regretted || resting.gives_way(tokens, now)
    }

    /// It gives way.
    pub(super) fn lets_go(&mut self, place: usize) -> Option<Resting> {
        let resting = self.all.remove(place)?;
        let links = resting.need.chain.links();
        let last = links
            .len()
            .checked_sub(1)
            .and_then(|last| Some((last, links.get(last)?.hash)));
        self.gone.extend(last);
        if self.gone.len() > GONE_MOST {
            self.gone.pop_front();
        }
        Some(resting)
    }

    /// This request is about to run.
    pub(super) fn comes(&mut self, need: &Need, now: Duration) {
        let links = need.chain.links();
        let back = |(place, hash): &(usize, u64)| links.get(*place).is_some_and(|link| link.hash == *hash);
        if let Some(place) = self.gone.iter().position(back) {
            self.gone.remove(place);
            self.regretted = Some(now);
        }
    }

    pub(super) fn get(&self, place: usize) -> Option<&Resting> {
        self.all.get(place)
    }

    pub(super) fn remove(&mut self, place: usize) -> Option<Resting> {
        self.all.remove(place)
    }
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
