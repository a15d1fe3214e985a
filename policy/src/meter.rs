//! Times of one streamed answer: instants in, TTFT, ITL, TPOT and tokens per second out.
//!
//! An instant is a `Duration` since an epoch of the caller's choice, the same for all calls. Gaps between tokens are kept in a
//! histogram of fixed size with logarithmic buckets (each 10 % wider than the one before), so that a percentile is within 5 %
//! for gaps from 0.1 ms to 100 s, whatever the length of the stream, and nothing is allocated. Shorter gaps count as at most
//! 0.1 ms; the longest gap is exact. A counter that is full halves them all, which keeps the proportions. A non-stream answer has
//! no token instants, and so none of these times: `None`, never the total.

use std::time::Duration;

/// Lower bound of the first bucket that has one.
const SHORTEST: Duration = Duration::from_micros(100);
/// Each bucket's upper bound is this many times its lower bound. The middle (geometric) is off by 4.9 % at most.
const GROWTH: f64 = 1.1;
/// From 0.1 ms to 100 s: ln(10⁶) / ln(1.1) = 145, one below and one above.
const BUCKETS: usize = 147;

/// Measures one answer.
#[derive(Clone, Debug)]
pub struct Meter {
    accepted: Duration,
    dispatched: Option<Duration>,
    first_token: Option<Duration>,
    last_token: Option<Duration>,
    shown: Option<Duration>,
    tokens: u64,
    longest_gap: Option<Duration>,
    /// Since when a call is held.
    held_since: Option<Duration>,
    held: Duration,
    gaps: [u16; BUCKETS],
}

/// What was measured. `None`: there was nothing to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Dispatched → first upstream token.
    pub ttft_engine: Option<Duration>,
    /// Accepted → first reasoning, text or call byte sent.
    pub ttft_client: Option<Duration>,
    /// How long calls were held back, over all holds that have ended.
    pub tool_hold: Duration,
    /// Half of the gaps between tokens are at most this long.
    pub itl_p50: Option<Duration>,
    /// 99 % of the gaps are at most this long.
    pub itl_p99: Option<Duration>,
    /// The longest gap.
    pub itl_max: Option<Duration>,
    /// (last − first) / (tokens − 1).
    pub tpot: Option<Duration>,
    /// (tokens − 1) / (last − first).
    pub tokens_per_s: Option<f64>,
}

impl Meter {
    /// The request was accepted at `now`.
    pub fn new(now: Duration) -> Self {
        Self {
            accepted: now,
            dispatched: None,
            first_token: None,
            last_token: None,
            shown: None,
            tokens: 0,
            longest_gap: None,
            held_since: None,
            held: Duration::ZERO,
            gaps: [0; BUCKETS],
        }
    }

    /// The request was sent to a replica. Of several attempts the last before the first token counts.
    pub fn dispatched(&mut self, now: Duration) {
        if self.first_token.is_none() {
            self.dispatched = Some(now);
        }
    }

    /// `count` events with a token were read at `now`. Those that came in one read share the gap before it evenly.
    pub fn tokens(&mut self, now: Duration, count: u32) {
        if count == 0 {
            return;
        }
        self.tokens += u64::from(count);
        self.first_token.get_or_insert(now);
        // In the first read there is no gap before the first token, and none that could be told between the others.
        if let Some(last) = self.last_token.replace(now) {
            let gap = now.saturating_sub(last) / count;
            self.longest_gap = self.longest_gap.max(Some(gap));
            for _ in 0..count {
                self.count(gap);
            }
        }
    }

    /// A frame that shows something of the answer was handed to the client's side. Only the first counts.
    pub fn shown(&mut self, now: Duration) {
        self.shown.get_or_insert(now);
    }

    /// Whether a call is held back from `now` on.
    pub fn holds(&mut self, now: Duration, holds: bool) {
        match self.held_since {
            None if holds => self.held_since = Some(now),
            Some(since) if !holds => {
                self.held += now.saturating_sub(since);
                self.held_since = None;
            }
            _ => {}
        }
    }

    /// The times so far. `completion_tokens` is vLLM's count where it is known (an event may hold more than one token);
    /// otherwise events are counted.
    pub fn timings(&self, completion_tokens: Option<u64>) -> Timings {
        let between = |from: Option<Duration>, to: Option<Duration>| Some(to?.saturating_sub(from?));
        let tokens = completion_tokens.unwrap_or(self.tokens).max(self.tokens);
        let spread = between(self.first_token, self.last_token).filter(|spread| !spread.is_zero());
        let steps = spread.zip(tokens.checked_sub(1).filter(|steps| *steps > 0));
        Timings {
            ttft_engine: between(self.dispatched, self.first_token),
            ttft_client: between(Some(self.accepted), self.shown),
            tool_hold: self.held,
            itl_p50: self.percentile(0.50),
            itl_p99: self.percentile(0.99),
            itl_max: self.longest_gap,
            tpot: steps.map(|(spread, steps)| spread.div_f64(steps as f64)),
            tokens_per_s: steps.map(|(spread, steps)| steps as f64 / spread.as_secs_f64()),
        }
    }

    fn count(&mut self, gap: Duration) {
        if self.gaps.get(bucket(gap)).is_some_and(|count| *count == u16::MAX) {
            for count in &mut self.gaps {
                *count = count.div_ceil(2);
            }
        }
        if let Some(count) = self.gaps.get_mut(bucket(gap)) {
            *count += 1;
        }
    }

    /// The gaps between tokens by length: each bucket that has any, with the length that stands for it.
    pub fn gaps(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        let counted = self.gaps.iter().enumerate().filter(|(_, count)| **count > 0);
        counted.map(|(at, count)| (middle(at), u64::from(*count)))
    }

    /// The nearest-rank percentile: the smallest gap such that `share` of all gaps are no longer.
    fn percentile(&self, share: f64) -> Option<Duration> {
        // Without a gap (a whole answer) there is nothing to count.
        self.longest_gap?;
        let all: u64 = self.gaps.iter().map(|count| u64::from(*count)).sum();
        let rank = (share * all as f64).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.gaps.iter().enumerate() {
            seen += u64::from(*count);
            if *count > 0 && seen >= rank {
                return Some(middle(at).min(self.longest_gap?));
            }
        }
        None
    }
}

/// The bucket of `gap`: 0 below [`SHORTEST`], the last for all that is too long.
fn bucket(gap: Duration) -> usize {
    let times = gap.as_secs_f64() / SHORTEST.as_secs_f64();
    if times < 1.0 {
        0
    } else {
        (times.ln() / GROWTH.ln()) as usize + 1
    }
    .min(BUCKETS - 1)
}

/// The gap that stands for bucket `at`.
fn middle(at: usize) -> Duration {
    match at {
        0 => SHORTEST,
        at => SHORTEST.mul_f64(GROWTH.powf(at as f64 - 0.5)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    #[test]
    fn it_is_small() {
        assert!(size_of::<Meter>() <= 512, "{}", size_of::<Meter>());
    }

    #[test]
    fn ends_of_each_time() {
        let mut meter = Meter::new(ms(10.0));
        meter.dispatched(ms(15.0));
        meter.dispatched(ms(20.0));
        meter.tokens(ms(120.0), 1);
        meter.dispatched(ms(125.0));
        meter.shown(ms(130.0));
        meter.tokens(ms(140.0), 1);
        meter.shown(ms(140.0));
        meter.tokens(ms(220.0), 2);
        let timings = meter.timings(None);
        assert_eq!(timings.ttft_engine, Some(ms(100.0)));
        assert_eq!(timings.ttft_client, Some(ms(120.0)));
        assert_eq!(timings.itl_max, Some(ms(40.0)));
        assert_eq!(timings.tpot, Some(ms(100.0) / 3));
        assert!((timings.tokens_per_s.unwrap() - 30.0).abs() < 1e-6);
        assert_eq!(meter.timings(Some(11)).tpot, Some(ms(10.0)));
    }

    #[test]
    fn without_tokens_there_is_nothing() {
        let mut meter = Meter::new(ms(10.0));
        meter.dispatched(ms(20.0));
        meter.tokens(ms(30.0), 0);
        assert_eq!(meter.timings(Some(40)), Timings::default());
        meter.tokens(ms(30.0), 1);
        let one = meter.timings(None);
        assert_eq!(
            (one.itl_p50, one.itl_max, one.tpot, one.tokens_per_s),
            (None, None, None, None)
        );
    }

    #[test]
    fn holds_add_up() {
        let mut meter = Meter::new(Duration::ZERO);
        for (at, holds) in [
            (1.0, false),
            (2.0, true),
            (3.0, true),
            (5.0, false),
            (9.0, false),
            (10.0, true),
            (11.0, false),
        ] {
            meter.holds(ms(at), holds);
        }
        assert_eq!(meter.timings(None).tool_hold, ms(4.0));
    }

    #[test]
    fn time_that_runs_backwards_is_zero() {
        let mut meter = Meter::new(ms(10.0));
        meter.dispatched(ms(20.0));
        meter.tokens(ms(5.0), 1);
        meter.tokens(ms(4.0), 1);
        assert_eq!(meter.timings(None).itl_max, Some(Duration::ZERO));
        assert_eq!(meter.timings(None).ttft_engine, Some(Duration::ZERO));
    }

    #[test]
    fn a_full_counter_keeps_the_proportions() {
        let mut meter = Meter::new(Duration::ZERO);
        let mut now = Duration::ZERO;
        meter.tokens(now, 1);
        for token in 0..300_000u32 {
            now += if token % 50 == 0 { ms(100.0) } else { ms(10.0) };
            meter.tokens(now, 1);
        }
        let timings = meter.timings(None);
        assert!(
            near(timings.itl_p50.unwrap(), ms(10.0)) && near(timings.itl_p99.unwrap(), ms(100.0)),
            "{timings:?}"
        );
    }

    fn near(got: Duration, want: Duration) -> bool {
        (got.as_secs_f64() / want.as_secs_f64() - 1.0).abs() <= 0.05
    }

    proptest! {
        #[test]
        fn percentiles_are_within_five_percent(gaps in proptest::collection::vec(-4.0f64..2.0, 1..300)) {
            let mut meter = Meter::new(Duration::ZERO);
            let mut now = Duration::from_secs(1);
            meter.tokens(now, 1);
            let mut gaps: Vec<_> = gaps.into_iter().map(|exponent| Duration::from_secs_f64(10f64.powf(exponent))).collect();
            for gap in &gaps {
                now += *gap;
                meter.tokens(now, 1);
            }
            gaps.sort();
            let timings = meter.timings(None);
            for (got, share) in [(timings.itl_p50, 0.50), (timings.itl_p99, 0.99)] {
                let want = gaps[(share * gaps.len() as f64).ceil() as usize - 1];
                prop_assert!(near(got.unwrap(), want), "{:?} for {:?}", got, want);
            }
            prop_assert_eq!(timings.itl_max, gaps.last().copied());
        }
    }
}
