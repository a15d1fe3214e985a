//! Conversations that spoke lately, and will speak again: how many each replica has.
//!
//! Problem: a session's name doesn't tell conversations apart: many clients give none, and all their conversations begin alike. Rule: a
//! conversation is known by where it ended: its next prompt has that link among its last ones. A fork taken from there goes on in its
//! place, and the other one counts again with its next turn. Cold start: none. Recovery: who is silent for [`LIVE`] is forgotten.
//!
//! Enters: what is dispatched, where to. Leaves: a count.

use std::time::Duration;

use super::chain::Link;
use super::recent::Recent;

/// A conversation that spoke within this time will speak again.
pub(super) const LIVE: Duration = Duration::from_secs(120);

/// A turn adds no more links, or it counts as another conversation's.
const TURN_LINKS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Live {
    /// By the last link.
    ends: Recent<u16>,
    counts: Vec<usize>,
}

impl Live {
    /// Of so many replicas.
    pub(super) fn new(replicas: usize) -> Live {
        Live {
            ends: Recent::default(),
            counts: vec![0; replicas],
        }
    }

    /// Conversations of this replica.
    pub(super) fn of(&self, replica: usize) -> usize {
        self.counts.get(replica).copied().unwrap_or(0)
    }

    /// A conversation speaks, there.
    pub(super) fn spoke(&mut self, chain: &[Link], replica: usize, now: Duration) {
        let (Some(last), Ok(number)) = (chain.last(), u16::try_from(replica)) else {
            return;
        };
        let mut ends = chain.iter().rev().take(TURN_LINKS);
        let before = ends.find_map(|link| self.ends.remove(link.hash));
        self.ends.touch(last.hash, number, now);
        self.count(before, Some(number));
    }

    /// Who was silent for too long is gone.
    pub(super) fn forget_silent(&mut self, now: Duration) {
        while self
            .ends
            .oldest()
            .is_some_and(|oldest| now.saturating_sub(oldest) > LIVE)
        {
            let gone = self.ends.pop_oldest().map(|(_, replica)| replica);
            self.count(gone, None);
        }
    }

    /// Another replica has this number from now on, perhaps one more than there were.
    pub(super) fn occupy(&mut self, replica: usize) {
        self.ends.retain(|place| usize::from(*place) != replica);
        match self.counts.get_mut(replica) {
            Some(count) => *count = 0,
            None => self.counts.resize(replica + 1, 0),
        }
    }

    fn count(&mut self, before: Option<u16>, after: Option<u16>) {
        if let Some(count) = before.and_then(|place| self.counts.get_mut(usize::from(place))) {
            *count = count.saturating_sub(1);
        }
        if let Some(count) = after.and_then(|place| self.counts.get_mut(usize::from(place))) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many links; the first three are everybody's.
    fn chain(name: u64, links: u64) -> Vec<Link> {
        let hash = |i| if i <= 3 { i } else { name * 1_000 + i };
        (1..=links)
            .map(|i| Link {
                hash: hash(i),
                bytes: i * 100,
            })
            .collect()
    }

    #[test]
    fn a_conversation_counts_once_wherever_it_goes_and_those_that_begin_alike_are_several() {
        let mut live = Live::new(2);
        let at = Duration::from_secs;
        for name in 1..=3 {
            live.spoke(&chain(name, 5), 0, at(name));
        }
        assert_eq!((live.of(0), live.of(1)), (3, 0));
        live.spoke(&chain(2, 8), 0, at(4));
        live.spoke(&chain(3, 9), 1, at(5));
        assert_eq!((live.of(0), live.of(1)), (2, 1));
        live.spoke(&chain(3, 9), 1, at(5));
        assert_eq!(live.of(1), 1, "the same turn, asked again");
        live.forget_silent(at(4) + LIVE);
        assert_eq!((live.of(0), live.of(1)), (1, 1), "the first is silent");
        live.spoke(&chain(1, 9), 1, at(130));
        live.occupy(0);
        live.occupy(2);
        assert_eq!((live.of(0), live.of(1), live.of(2)), (0, 2, 0));
        live.forget_silent(at(1_000));
        assert_eq!((live.of(0), live.of(1)), (0, 0));
    }
}
