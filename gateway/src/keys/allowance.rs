//! What a key may use in a minute and at once (B3).
//!
//! Enters: its limits, what its requests take. Leaves: a [`Charge`] that is held until an answer's end, or what was exceeded. What is used
//! belongs to the key and outlives a reload; what the rates say is `policy::admission::rate`'s.

use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sluice_policy::admission::rate::{Bucket, PerMinute};

/// The rates' time begins with the process.
static BORN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A key's limits; none = unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Requests in a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and answers in a minute.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Requests at once.
    pub concurrency: Option<NonZeroU32>,
}

/// The limits of a key that has some, and what is used of them.
#[derive(Debug, Clone)]
pub struct Allowance {
    limits: KeyLimits,
    used: Arc<Mutex<Used>>,
}

/// What is used belongs to no comparison: a reload carries it over.
impl PartialEq for Allowance {
    fn eq(&self, other: &Self) -> bool {
        self.limits == other.limits
    }
}

impl Eq for Allowance {}

#[derive(Debug, Default)]
struct Used {
    requests: Bucket,
    tokens: Bucket,
    running: u32,
    /// Requests that run in the process that this one took over from.
    elsewhere: u32,
}

/// Which limit, and when the same request would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exceeded {
    /// Requests in a minute.
    Requests {
        /// The limit.
        limit: PerMinute,
        /// Until one is there.
        wait: Duration,
    },
    /// Tokens in a minute.
    Tokens {
        /// The limit.
        limit: PerMinute,
        /// Until enough are there.
        wait: Duration,
    },
    /// Requests at once; when one of them ends, nobody knows.
    Concurrency {
        /// The limit.
        limit: NonZeroU32,
    },
}

/// One rate as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In a minute.
    pub limit: u32,
    /// That can be had now.
    pub left: u64,
    /// Until all can be had.
    pub reset: Duration,
}

/// What a key has used, as one process says it to the one that takes over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    /// Of requests in a minute, as the time until all can be had, since it was last said.
    pub requests: Duration,
    /// The same of tokens.
    pub tokens: Duration,
    /// Requests that run there still, and in those before it.
    pub running: u32,
}

impl Allowance {
    /// Of a key with these limits that went on from `before`; `None` if it has none.
    pub(super) fn new(limits: KeyLimits, before: Option<&Allowance>) -> Option<Allowance> {
        (limits != KeyLimits::default()).then(|| Allowance {
            limits,
            used: before.map_or_else(Arc::default, |before| before.used.clone()),
        })
    }

    /// A request came, whose body has so many tokens by a guess. Takes one of the requests; of tokens nothing yet, but there must be
    /// some.
    ///
    /// # Errors
    /// The first limit that it would exceed; nothing is taken then.
    pub fn begin(&self, guessed_tokens: u64) -> Result<Charge, Exceeded> {
        let (mut used, now) = (self.used(), BORN.elapsed());
        if let Some(limit) = self.limits.concurrency
            && used.running.saturating_add(used.elsewhere) >= limit.get()
        {
            return Err(Exceeded::Concurrency { limit });
        }
        if let Some(limit) = self.requests() {
            let wait = |wait| Exceeded::Requests { limit, wait };
            used.requests.has(1, limit, now).map_err(wait)?;
        }
        // What it takes is known when it is read; a key in debt need not be read for that.
        if let Some(limit) = self.tokens()
            && used.tokens.left(limit, now) == 0
        {
            let wait = |wait| Exceeded::Tokens { limit, wait };
            used.tokens.has(guessed_tokens.max(1), limit, now).map_err(wait)?;
        }
        if let Some(limit) = self.requests() {
            used.requests.charge(1, limit, now);
        }
        used.running += 1;
        Ok(Charge {
            allowance: self.clone(),
            tokens: 0,
        })
    }

    /// Requests in a minute as they stand.
    pub fn request_rate(&self) -> Option<Rate> {
        self.requests().map(|limit| rate(self.used().requests, limit))
    }

    /// Tokens in a minute as they stand.
    pub fn token_rate(&self) -> Option<Rate> {
        self.tokens().map(|limit| rate(self.used().tokens, limit))
    }

    /// Tokens are counted.
    pub fn counts_tokens(&self) -> bool {
        self.limits.tokens_per_minute.is_some()
    }

    /// What was used, for the process that takes over: it is counted there from now on, and here no more.
    pub fn hand_over(&self) -> Spent {
        let (mut used, now) = (self.used(), BORN.elapsed());
        Spent {
            requests: std::mem::take(&mut used.requests).until_full(now),
            tokens: std::mem::take(&mut used.tokens).until_full(now),
            running: used.running.saturating_add(used.elsewhere),
        }
    }

    /// What the process before said of this key comes to what was used here.
    pub fn go_on_from(&self, spent: Spent) {
        let (mut used, now) = (self.used(), BORN.elapsed());
        used.requests.charge_time(spent.requests, now);
        used.tokens.charge_time(spent.tokens, now);
        used.elsewhere = spent.running;
    }

    fn requests(&self) -> Option<PerMinute> {
        self.limits.requests_per_minute.map(PerMinute)
    }

    fn tokens(&self) -> Option<PerMinute> {
        self.limits.tokens_per_minute.map(PerMinute)
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rate(bucket: Bucket, limit: PerMinute) -> Rate {
    let now = BORN.elapsed();
    Rate {
        limit: limit.0.get(),
        left: bucket.left(limit, now),
        reset: bucket.until_full(now),
    }
}

/// One request's share. Its place among those at once is free when it is dropped.
#[derive(Debug)]
pub struct Charge {
    allowance: Allowance,
    tokens: u64,
}

impl Charge {
    /// Tokens are counted.
    pub fn counts_tokens(&self) -> bool {
        self.allowance.counts_tokens()
    }

    /// Tokens taken so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Its prompt has so many tokens, as far as can be told.
    ///
    /// # Errors
    /// They aren't there; then the request isn't counted either.
    pub fn prompt(&mut self, tokens: u64) -> Result<(), Exceeded> {
        let Some(limit) = self.allowance.tokens() else {
            return Ok(());
        };
        let (mut used, now) = (self.allowance.used(), BORN.elapsed());
        if let Err(wait) = used.tokens.has(tokens, limit, now) {
            if let Some(limit) = self.allowance.requests() {
                used.requests.give_back(1, limit);
            }
            return Err(Exceeded::Tokens { limit, wait });
        }
        used.tokens.charge(tokens, limit, now);
        self.tokens += tokens;
        Ok(())
    }

    /// It used so many in all; what is more than was taken is a debt.
    pub fn settle(&mut self, tokens: u64) {
        let Some(limit) = self.allowance.tokens() else { return };
        let mut used = self.allowance.used();
        match tokens.checked_sub(self.tokens) {
            Some(more) => used.tokens.charge(more, limit, BORN.elapsed()),
            None => used.tokens.give_back(self.tokens - tokens, limit),
        }
        self.tokens = tokens;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut used = self.allowance.used();
        used.running = used.running.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(requests: u32, tokens: u32, concurrency: u32) -> KeyLimits {
        KeyLimits {
            requests_per_minute: NonZeroU32::new(requests),
            tokens_per_minute: NonZeroU32::new(tokens),
            concurrency: NonZeroU32::new(concurrency),
        }
    }

    fn allowance(requests: u32, tokens: u32, concurrency: u32) -> Allowance {
        Allowance::new(limits(requests, tokens, concurrency), None).unwrap()
    }

    #[test]
    fn a_key_without_limits_has_nothing_to_look_at() {
        assert!(Allowance::new(KeyLimits::default(), None).is_none());
    }

    #[test]
    fn a_place_is_free_when_its_request_is_dropped() {
        let allowance = allowance(0, 0, 1);
        let charge = allowance.begin(0).unwrap();
        assert!(matches!(allowance.begin(0), Err(Exceeded::Concurrency { limit }) if limit.get() == 1));
        drop(charge);
        assert!(allowance.begin(0).is_ok());
    }

    #[test]
    fn who_is_refused_for_tokens_is_not_counted_as_a_request() {
        let allowance = allowance(2, 100, 0);
        let mut first = allowance.begin(0).unwrap();
        first.prompt(90).unwrap();
        let mut second = allowance.begin(0).unwrap();
        assert!(matches!(second.prompt(50), Err(Exceeded::Tokens { .. })));
        drop(second);
        assert_eq!(allowance.request_rate().unwrap().left, 1);
        // It used less than was thought.
        first.settle(40);
        allowance.begin(0).unwrap().prompt(50).unwrap();
    }

    #[test]
    fn a_debt_refuses_before_anything_is_read_and_takes_nothing() {
        let allowance = allowance(10, 100, 0);
        allowance.begin(0).unwrap().settle(200);
        let Err(Exceeded::Tokens { wait, .. }) = allowance.begin(30) else {
            panic!("a key in debt")
        };
        let expected = Duration::from_secs(78);
        assert!(wait > expected - Duration::from_secs(1) && wait <= expected, "{wait:?}");
        assert_eq!(allowance.request_rate().unwrap().left, 9);
    }

    #[test]
    fn what_is_used_outlives_another_limit_and_another_process() {
        let before = allowance(10, 0, 0);
        drop((0..5).map(|_| before.begin(0).unwrap()).collect::<Vec<_>>());
        let wider = Allowance::new(limits(100, 0, 0), Some(&before)).unwrap();
        assert_eq!(wider.request_rate().unwrap().left, 50);
        // Another process goes on from there, with what ends here later.
        let (before, after) = (allowance(10, 100, 2), allowance(10, 100, 2));
        let mut running = before.begin(0).unwrap();
        running.prompt(10).unwrap();
        after.go_on_from(before.hand_over());
        let left = |of: &Allowance| (of.request_rate().unwrap().left, of.token_rate().unwrap().left);
        assert_eq!((left(&before), left(&after)), ((10, 100), (9, 90)));
        let _here = after.begin(0).unwrap();
        assert!(matches!(after.begin(0), Err(Exceeded::Concurrency { .. })));
        running.settle(50);
        drop(running);
        after.go_on_from(before.hand_over());
        assert_eq!(left(&after), (8, 50));
        assert!(after.begin(0).is_ok());
    }
}
