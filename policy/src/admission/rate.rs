//! So many a minute (B3): one allowance of a key, of requests or of tokens.
//!
//! Rule: GCRA (ATM Forum's "virtual scheduling", 1994). The whole state is the instant at which the allowance is full again. Taking
//! `n` of `limit` moves it by `n / limit` of a minute; it is refused if that would be more than a minute away. So a minute's worth may
//! be had at once, then they come back one by one, without windows at whose edge twice as many pass. What was used is known only afterwards
//! for tokens: [`Bucket::charge`] takes past the allowance, and that debt is waited for. State in time means that a changed limit
//! keeps the part that is used.

use std::num::NonZeroU32;
use std::time::Duration;

/// What an allowance is for; also how much of it may be had at once.
const MINUTE: Duration = Duration::from_secs(60);

/// A limit: so many in a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerMinute(pub NonZeroU32);

impl PerMinute {
    /// In how long so many come back.
    fn time_of(self, amount: u64) -> Duration {
        let nanos = u128::from(amount) * MINUTE.as_nanos() / u128::from(self.0.get());
        u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
    }

    /// How many come back in this time, whole ones.
    fn amount_of(self, time: Duration) -> u64 {
        let amount = time.as_nanos() * u128::from(self.0.get()) / MINUTE.as_nanos();
        u64::try_from(amount).unwrap_or(u64::MAX)
    }
}

/// What is used of an allowance. The default is full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bucket {
    full_at: Duration,
}

impl Bucket {
    /// Time until all is there again; zero: it is.
    pub fn until_full(&self, now: Duration) -> Duration {
        self.full_at.saturating_sub(now)
    }

    /// How many can be had now.
    pub fn left(&self, limit: PerMinute, now: Duration) -> u64 {
        limit.amount_of(MINUTE.saturating_sub(self.until_full(now)))
    }

    /// Whether so many can be had now. More than the whole allowance can be had when it is full: else such a request would never pass.
    ///
    /// # Errors
    /// The time after which they can, if nobody else takes of them.
    pub fn has(&self, amount: u64, limit: PerMinute, now: Duration) -> Result<(), Duration> {
        let wanted = limit.time_of(amount).min(MINUTE).saturating_add(self.until_full(now));
        match wanted.saturating_sub(MINUTE) {
            Duration::ZERO => Ok(()),
            wait => Err(wait),
        }
    }

    /// Takes so many, there or not.
    pub fn charge(&mut self, amount: u64, limit: PerMinute, now: Duration) {
        self.full_at = self.full_at.max(now).saturating_add(limit.time_of(amount));
    }

    /// Takes what another process has used, as the time until it would be full there.
    pub fn charge_time(&mut self, time: Duration, now: Duration) {
        self.full_at = self.full_at.max(now).saturating_add(time);
    }

    /// So many were not used after all. What has come back on its own isn't given twice.
    pub fn give_back(&mut self, amount: u64, limit: PerMinute) {
        self.full_at = self.full_at.saturating_sub(limit.time_of(amount));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limit(per_minute: u32) -> PerMinute {
        PerMinute(NonZeroU32::new(per_minute).unwrap())
    }

    fn take(bucket: &mut Bucket, amount: u64, limit: PerMinute, now: Duration) -> Result<(), Duration> {
        bucket.has(amount, limit, now)?;
        bucket.charge(amount, limit, now);
        Ok(())
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn a_minutes_worth_at_once_then_one_by_one() {
        let (mut bucket, limit) = (Bucket::default(), limit(3));
        for left in [2, 1, 0] {
            assert_eq!(take(&mut bucket, 1, limit, S), Ok(()));
            assert_eq!(bucket.left(limit, S), left);
        }
        assert_eq!(take(&mut bucket, 1, limit, S), Err(20 * S));
        assert_eq!(take(&mut bucket, 1, limit, 11 * S), Err(10 * S));
        assert_eq!(take(&mut bucket, 1, limit, 21 * S), Ok(()));
        assert_eq!(take(&mut bucket, 1, limit, 21 * S), Err(20 * S));
        assert_eq!(bucket.left(limit, 81 * S), 3);
        assert_eq!(bucket.left(limit, 8_000 * S), 3);
    }

    #[test]
    fn a_debt_is_waited_for() {
        let (mut bucket, limit) = (Bucket::default(), limit(600));
        assert_eq!(take(&mut bucket, 100, limit, S), Ok(()));
        // It used 1,100 more than was thought.
        bucket.charge(1_100, limit, S);
        assert_eq!((bucket.left(limit, S), bucket.until_full(S)), (0, 120 * S));
        assert_eq!(bucket.has(1, limit, 61 * S), Err(Duration::from_millis(100)));
        assert_eq!(bucket.has(10, limit, 62 * S), Ok(()));
    }

    #[test]
    fn what_was_not_used_comes_back_once() {
        let (mut bucket, limit) = (Bucket::default(), limit(60));
        bucket.charge(40, limit, S);
        bucket.give_back(30, limit);
        assert_eq!(bucket.left(limit, S), 50);
        bucket.give_back(40, limit);
        assert_eq!(bucket.left(limit, S), 60);
        // Nothing was saved up by that.
        assert_eq!(take(&mut bucket, 60, limit, S), Ok(()));
        assert_eq!(bucket.has(1, limit, S), Err(S));
    }

    #[test]
    fn more_than_the_allowance_passes_when_it_is_full() {
        let (mut bucket, limit) = (Bucket::default(), limit(100));
        assert_eq!(take(&mut bucket, 500, limit, S), Ok(()));
        assert_eq!(bucket.until_full(S), 300 * S);
        assert_eq!(bucket.has(500, limit, S), Err(300 * S));
        assert_eq!(bucket.has(500, limit, 301 * S), Ok(()));
    }

    #[test]
    fn a_changed_limit_keeps_the_part_that_is_used() {
        let mut bucket = Bucket::default();
        bucket.charge(50, limit(100), S);
        assert_eq!(bucket.left(limit(1_000), S), 500);
        let mut later = Bucket::default();
        later.charge(10, limit(100), 100 * S);
        later.charge_time(bucket.until_full(S), 100 * S);
        assert_eq!(later.left(limit(100), 100 * S), 40);
    }

    proptest! {
        /// In no minute more than twice the limit (a full allowance and what comes back meanwhile), and whoever waits as told gets it.
        #[test]
        fn the_rate_is_held_and_the_wait_is_true(
            per_minute in 1u32..10_000,
            asks in proptest::collection::vec((0u64..20_000, 1u64..50), 1..200),
        ) {
            let (mut bucket, limit, mut now) = (Bucket::default(), limit(per_minute), Duration::ZERO);
            let mut taken: Vec<(Duration, u64)> = Vec::new();
            for (pause, amount) in asks {
                let amount = amount.min(u64::from(per_minute));
                now += Duration::from_millis(pause);
                if let Err(wait) = take(&mut bucket, amount, limit, now) {
                    prop_assert!(wait <= MINUTE);
                    prop_assert!(bucket.has(amount, limit, now + wait).is_ok());
                    prop_assert!(bucket.has(amount, limit, now + wait - Duration::from_nanos(1)).is_err());
                    continue;
                }
                taken.push((now, amount));
                let window: u64 = taken.iter().filter(|(at, _)| now - *at < MINUTE).map(|(_, amount)| amount).sum();
                prop_assert!(window <= 2 * u64::from(per_minute));
            }
        }
    }
}
