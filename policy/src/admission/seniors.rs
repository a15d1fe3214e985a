//! Requests that were refused and come again: they wait since their first try.
//!
//! Problem: who is refused comes back when it was told to, finds others that came meanwhile, and is refused again: with a short queue
//! the last are served by chance. Rule: a request that is asked again, word for word, about when it was told to, is as old as its first try. Cold
//! start and recovery: who comes much too late, or not at all, is forgotten.
//!
//! Enters: refusals. Leaves: the first try of a request.

use std::collections::VecDeque;
use std::time::Duration;

use super::room::Need;

/// Refused requests that are remembered; the last refused longest ago are forgotten first.
const SENIORS_MOST: usize = 512;

/// A request comes again within so much of what it was told, and a little: clients add a random part of their own.
const LATE_RATIO: u32 = 2;
const LATE: Duration = Duration::from_secs(5);

/// One that was refused.
#[derive(Debug)]
struct Senior {
    /// Hash of its whole prompt.
    prompt: u64,
    first: Duration,
    until: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Seniors {
    all: VecDeque<Senior>,
}

impl Seniors {
    /// It is refused, and told to come again after so long.
    pub(super) fn refused(&mut self, need: &Need, first: Duration, retry_after: Duration, now: Duration) {
        let Some(last) = need.chain.links().last() else { return };
        self.all.push_back(Senior {
            prompt: last.hash,
            first,
            until: now
                .saturating_add(retry_after.saturating_mul(LATE_RATIO))
                .saturating_add(LATE),
        });
        if self.all.len() > SENIORS_MOST {
            self.all.pop_front();
        }
    }

    /// It comes: when it came first, if it had been refused.
    pub(super) fn comes(&mut self, need: &Need, now: Duration) -> Option<Duration> {
        let last = need.chain.links().last()?;
        let place = self.all.iter().position(|senior| senior.prompt == last.hash)?;
        let senior = self.all.remove(place)?;
        (now <= senior.until).then_some(senior.first)
    }

    /// Those that are expected back.
    pub(super) fn expected(&self, now: Duration) -> usize {
        self.all.iter().filter(|senior| now <= senior.until).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::chain::{Chain, Link};
    use std::sync::Arc;

    fn need(hash: u64) -> Need {
        let links = vec![Link { hash: 1, bytes: 10 }, Link { hash, bytes: 20 }];
        Need {
            chain: Arc::new(Chain::from_links(links)),
            ..Need::default()
        }
    }

    #[test]
    fn who_comes_again_in_time_is_as_old_as_its_first_try() {
        let mut seniors = Seniors::default();
        let at = Duration::from_secs;
        seniors.refused(&need(5), at(100), at(10), at(103));
        seniors.refused(&need(6), at(101), at(10), at(103));
        assert_eq!(seniors.expected(at(110)), 2);
        assert_eq!(seniors.comes(&need(7), at(110)), None, "it only begins alike");
        assert_eq!(seniors.comes(&need(5), at(115)), Some(at(100)));
        assert_eq!(seniors.comes(&need(5), at(115)), None, "once");
        assert_eq!(seniors.expected(at(140)), 0);
        assert_eq!(seniors.comes(&need(6), at(140)), None, "much too late");
        seniors.refused(&Need::default(), at(100), at(10), at(103));
        assert_eq!(
            seniors.comes(&Need::default(), at(104)),
            None,
            "nothing tells it from others"
        );
    }

    #[test]
    fn no_more_than_so_many_are_remembered() {
        let mut seniors = Seniors::default();
        let at = Duration::from_secs(5);
        for hash in 0..SENIORS_MOST as u64 + 1 {
            seniors.refused(&need(100 + hash), at, at, at);
        }
        assert_eq!(seniors.expected(at), SENIORS_MOST);
        assert_eq!(seniors.comes(&need(100), at), None);
        assert_eq!(seniors.comes(&need(101), at), Some(at));
    }
}
