//! How long a replica needs for a prompt, learned from its streams; and the work that it has been given and not done.
//!
//! Problem: prefill isn't linear (each new token reads all before it), and replicas differ. Rule: `base + a·u + b·u·(cached + u/2)`
//! for `u` uncached tokens; three factors on a prior are fitted by least squares of relative errors, held together by a ridge
//! towards one common factor (a slow replica is slow in all three). Robust: what is more than three times off counts as three times.
//! Cold start: the prior. Recovery: what was learned fades within minutes, the prior comes back. Source: facts of vLLM 0.24 on
//! an H100 (372 ms for 4,096 tokens, 1.74 s for 16,384, 11.8 s for 65,536).
//!
//! Enters: measured times to the first token, dispatches and ends. Leaves: expected seconds. Seconds are `f64` here: they are added,
//! multiplied and fitted.

use std::time::Duration;

/// What is learned fades by half in about 7 minutes.
const FADES_AFTER_S: f64 = 600.0;

/// How many measured streams the prior weighs, as a whole.
const PRIOR_WEIGHT: f64 = 0.3;

/// How many measured streams hold the three factors together.
const RIDGE: f64 = 0.5;

/// An outlier counts as so many times its expectation, or the inverse.
const OUTLIER: f64 = 3.0;

/// No factor leaves this range around the common one, nor the common one around 1.
const FACTOR_RANGE: (f64, f64) = (0.02, 50.0);

/// Weight of a new answer's duration in the mean.
const DURATION_WEIGHT: f64 = 0.1;

/// An answer's length before any was seen (the deployment this was made for: reasoning answers take about 24 s).
const FIRST_DURATION_S: f64 = 10.0;

/// Coefficients of a prefill.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prefill {
    /// Whatever the prompt, in seconds.
    pub base: f64,
    /// For each uncached token.
    pub per_token: f64,
    /// For each uncached token and each token before it.
    pub per_pair: f64,
}

impl Default for Prefill {
    /// Qwen3-32B-AWQ on an H100.
    fn default() -> Self {
        Prefill {
            base: 0.02,
            per_token: 8.0e-5,
            per_pair: 3.0e-9,
        }
    }
}

impl Prefill {
    /// Its three terms for such a prompt.
    fn terms(&self, uncached: f64, cached: f64) -> [f64; 3] {
        [
            self.base,
            self.per_token * uncached,
            self.per_pair * uncached * (cached + uncached / 2.0),
        ]
    }
}

/// How fast a replica is.
#[derive(Debug, Clone)]
pub struct Speed {
    prior: Prefill,
    /// Sums over measured streams, faded: count, Σr, Σfᵢfⱼ (upper triangle), Σr·fᵢ.
    count: f64,
    ratio: f64,
    pairs: [f64; 6],
    hits: [f64; 3],
    factors: [f64; 3],
    faded: Duration,
}

impl Speed {
    /// Nothing is known but the prior.
    pub fn new(prior: Prefill) -> Speed {
        Speed {
            prior,
            count: 0.0,
            ratio: 0.0,
            pairs: [0.0; 6],
            hits: [0.0; 3],
            factors: [1.0; 3],
            faded: Duration::ZERO,
        }
    }

    /// Expected seconds to the first token with nothing before it.
    pub fn seconds(&self, uncached: f64, cached: f64) -> f64 {
        let terms = self.prior.terms(uncached, cached);
        terms.iter().zip(self.factors).map(|(term, factor)| term * factor).sum()
    }

    /// A stream that was dispatched with nothing waiting had its first token after so many seconds.
    pub fn learn(&mut self, uncached: f64, cached: f64, seconds: f64, now: Duration) {
        let terms = self.prior.terms(uncached, cached);
        let whole: f64 = terms.iter().sum();
        if !(whole > 0.0 && seconds > 0.0 && seconds.is_finite()) {
            return;
        }
        self.fade(now);
        let expected = self.seconds(uncached, cached);
        let seconds = seconds.clamp(expected / OUTLIER, expected * OUTLIER);
        let [f0, f1, f2] = terms.map(|term| term / whole);
        let ratio = seconds / whole;
        // Relative to what is expected, so that long prompts don't rule the fit.
        let weight = (whole / expected) * (whole / expected);
        self.count += weight;
        self.ratio += weight * ratio;
        let products = [f0 * f0, f0 * f1, f0 * f2, f1 * f1, f1 * f2, f2 * f2];
        self.pairs
            .iter_mut()
            .zip(products)
            .for_each(|(sum, x)| *sum += weight * x);
        self.hits
            .iter_mut()
            .zip([f0, f1, f2])
            .for_each(|(sum, f)| *sum += weight * ratio * f);
        self.fit();
    }

    /// Time has passed: what was learned counts less.
    pub fn fade(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.faded).as_secs_f64();
        self.faded = self.faded.max(now);
        if passed <= 0.0 {
            return;
        }
        let keep = (-passed / FADES_AFTER_S).exp();
        self.count *= keep;
        self.ratio *= keep;
        self.pairs.iter_mut().for_each(|sum| *sum *= keep);
        self.hits.iter_mut().for_each(|sum| *sum *= keep);
        self.fit();
    }

    /// Minimises `Σ (r - f·m)² + RIDGE·|m - s|²`, with `s` the common factor.
    fn fit(&mut self) {
        // Weights are relative to what is expected: the prior's and the ridge's follow the common factor.
        let scale = |common: f64| 1.0 / (common * common);
        let plain = (self.ratio / self.count.max(f64::MIN_POSITIVE)).clamp(FACTOR_RANGE.0, FACTOR_RANGE.1);
        let plain = if self.count > 0.0 { plain } else { 1.0 };
        let weight = PRIOR_WEIGHT * scale(plain);
        let common = ((self.ratio + weight) / (self.count + weight)).clamp(FACTOR_RANGE.0, FACTOR_RANGE.1);
        let ridge = RIDGE * scale(common);
        let [p00, p01, p02, p11, p12, p22] = self.pairs;
        let matrix = [
            [p00 + ridge, p01, p02],
            [p01, p11 + ridge, p12],
            [p02, p12, p22 + ridge],
        ];
        let right = self.hits.map(|hit| hit + ridge * common);
        if let Some(solved) = solve(matrix, right) {
            self.factors = solved.map(|factor| factor.clamp(common * FACTOR_RANGE.0, common * FACTOR_RANGE.1));
        }
    }
}

/// Cramer's rule; none if it is singular.
fn solve(m: [[f64; 3]; 3], right: [f64; 3]) -> Option<[f64; 3]> {
    let [a, b, c] = m;
    let det = |a: [f64; 3], b: [f64; 3], c: [f64; 3]| {
        a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0])
    };
    let whole = det(a, b, c);
    let [x, y, z] = right;
    let solved = [
        det([x, a[1], a[2]], [y, b[1], b[2]], [z, c[1], c[2]]) / whole,
        det([a[0], x, a[2]], [b[0], y, b[2]], [c[0], z, c[2]]) / whole,
        det([a[0], a[1], x], [b[0], b[1], y], [c[0], c[1], z]) / whole,
    ];
    solved.iter().all(|value| value.is_finite()).then_some(solved)
}

/// What a replica has to do: prefills that were dispatched, sequences that run.
#[derive(Debug, Clone)]
pub struct Load {
    /// Prefills without a first token yet, in the order of their dispatch.
    prefills: Vec<Open>,
    /// When the one at work will be done, if all goes as expected.
    free_at: f64,
    /// Sequences from dispatch to end, and their tokens.
    sequences: usize,
    tokens: f64,
    /// Mean seconds from first token to end.
    duration: f64,
    /// Waiting in the engine, as its metrics last said.
    waiting: usize,
}

/// A prefill without a first token yet.
#[derive(Debug, Clone, Copy)]
struct Open {
    ticket: u64,
    /// Expected.
    seconds: f64,
    dispatched: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Load {
            prefills: Vec::new(),
            free_at: 0.0,
            sequences: 0,
            tokens: 0.0,
            duration: FIRST_DURATION_S,
            waiting: 0,
        }
    }
}

/// What a replica holds at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Room {
    /// `max_num_seqs`.
    pub sequences: usize,
    /// Tokens of its KV cache.
    pub tokens: f64,
}

impl Load {
    /// A request is about to be sent: `seconds` of prefill, `tokens` of prompt.
    pub fn dispatched(&mut self, ticket: u64, seconds: f64, tokens: f64, now: Duration) {
        self.free_at = self.free_at.max(now.as_secs_f64()) + seconds;
        self.prefills.push(Open {
            ticket,
            seconds,
            dispatched: now,
        });
        self.sequences += 1;
        self.tokens += tokens;
    }

    /// Its first token has come: prefills are done in the order of their dispatch, so those still open begin now.
    pub fn first_token(&mut self, ticket: u64, now: Duration) {
        let before = self.prefills.len();
        self.prefills.retain(|open| open.ticket != ticket);
        if self.prefills.len() < before {
            self.free_at = now.as_secs_f64() + self.prefills.iter().map(|open| open.seconds).sum::<f64>();
        }
    }

    /// It has ended, however; `decoded` since its first token.
    pub fn ended(&mut self, ticket: u64, tokens: f64, decoded: Option<Duration>, now: Duration) {
        self.first_token(ticket, now);
        self.sequences = self.sequences.saturating_sub(1);
        self.tokens = if self.sequences == 0 {
            0.0
        } else {
            (self.tokens - tokens).max(0.0)
        };
        if let Some(decoded) = decoded {
            self.duration += DURATION_WEIGHT * (decoded.as_secs_f64() - self.duration);
        }
    }

    /// What the engine's metrics say waits in it; other gateways' requests are among them.
    pub fn reported_waiting(&mut self, waiting: usize) {
        self.waiting = waiting;
    }

    /// Expected seconds of all prefills that aren't done.
    pub fn prefill_seconds(&self) -> f64 {
        self.prefills.iter().map(|open| open.seconds).sum()
    }

    /// Dispatched and not ended.
    pub fn sequences(&self) -> usize {
        self.sequences
    }

    /// When the oldest prefill was dispatched that isn't done: what was sent before is in the cache.
    pub fn oldest_prefill(&self) -> Option<Duration> {
        self.prefills.first().map(|open| open.dispatched)
    }

    /// Nothing is before a request that is dispatched now.
    pub fn is_clear(&self, room: Room) -> bool {
        self.prefills.is_empty() && self.waiting == 0 && self.sequences < room.sequences
    }

    /// Seconds until a request of `tokens` would be begun.
    pub fn wait(&self, tokens: f64, room: Room, now: Duration) -> f64 {
        // One that is late is expected to take a part of its time still.
        let last = self.prefills.last().map_or(0.0, |open| open.seconds);
        let prefill = match self.prefills.is_empty() {
            true => 0.0,
            false => (self.free_at - now.as_secs_f64()).max(last * 0.25),
        };
        // Sequences end evenly over the mean duration: what is too much waits for so many of them.
        let places = room.sequences.max(1) as f64;
        let too_many = (self.sequences as f64 + 1.0 - places).max(0.0) / places;
        let too_large = match self.sequences {
            0 => 0.0,
            _ => (self.tokens + tokens - room.tokens).max(0.0) / room.tokens.max(1.0),
        };
        // What waits there and isn't ours is seen in the metrics only.
        let foreign = self.waiting.saturating_sub(self.prefills.len()) as f64 / places;
        prefill + (too_many.max(too_large) + foreign) * self.duration
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        sequences: 4,
        tokens: 100_000.0,
    };

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn the_prior_is_what_was_measured_on_the_h100() {
        let speed = Speed::new(Prefill::default());
        for (tokens, seconds) in [(4_096.0, 0.372), (16_384.0, 1.737), (65_536.0, 11.794)] {
            let error: f64 = speed.seconds(tokens, 0.0) / seconds - 1.0;
            assert!(error.abs() < 0.1, "{tokens}: {error}");
        }
    }

    #[test]
    fn another_machine_is_learned_from_few_streams_and_forgotten_in_minutes() {
        let truth = Prefill {
            base: 0.08,
            per_token: 2.5e-4,
            per_pair: 2.0e-9,
        };
        let truth = Speed::new(truth);
        let mut speed = Speed::new(Prefill::default());
        for i in 0..20 {
            let (uncached, cached) = (500.0 + f64::from(i % 5) * 4_000.0, f64::from(i % 3) * 20_000.0);
            speed.learn(uncached, cached, truth.seconds(uncached, cached), at(f64::from(i)));
        }
        for (uncached, cached) in [(1_000.0, 0.0), (10_000.0, 10_000.0), (40_000.0, 0.0)] {
            let error = speed.seconds(uncached, cached) / truth.seconds(uncached, cached) - 1.0;
            assert!(error.abs() < 0.15, "{uncached}, {cached}: {error}");
        }
        speed.fade(at(3.0 * 3600.0));
        let error = speed.seconds(5_000.0, 0.0) / Speed::new(Prefill::default()).seconds(5_000.0, 0.0) - 1.0;
        assert!(error.abs() < 0.05, "{error}");
    }

    #[test]
    fn an_outlier_counts_little() {
        let mut speed = Speed::new(Prefill::default());
        let usual = speed.seconds(2_000.0, 0.0);
        for i in 0..20 {
            let seconds = if i == 10 { usual * 1_000.0 } else { usual };
            speed.learn(2_000.0, 0.0, seconds, at(f64::from(i)));
        }
        assert!((speed.seconds(2_000.0, 0.0) / usual - 1.0).abs() < 0.15);
        speed.learn(2_000.0, 0.0, f64::INFINITY, at(30.0));
        speed.learn(0.0, 0.0, -1.0, at(30.0));
        assert!(speed.seconds(2_000.0, 0.0).is_finite());
    }

    #[test]
    fn prefills_wait_for_those_before_and_are_released_at_the_first_token() {
        let mut load = Load::default();
        assert!(load.is_clear(ROOM));
        load.dispatched(1, 2.0, 1_000.0, at(10.0));
        load.dispatched(2, 3.0, 1_000.0, at(10.0));
        assert!(!load.is_clear(ROOM));
        assert_eq!(load.wait(0.0, ROOM, at(11.0)), 4.0);
        load.first_token(1, at(11.0));
        assert_eq!(load.wait(0.0, ROOM, at(11.0)), 3.0);
        assert_eq!(load.wait(0.0, ROOM, at(20.0)), 0.75, "late, but not done");
        load.first_token(2, at(20.0));
        assert_eq!((load.wait(0.0, ROOM, at(20.0)), load.sequences()), (0.0, 2));
        load.ended(1, 1_000.0, Some(at(5.0)), at(21.0));
        load.ended(2, 1_000.0, None, at(21.0));
        assert_eq!(load.sequences(), 0);
    }

    #[test]
    fn a_full_replica_makes_wait_by_sequences_and_by_tokens() {
        let mut load = Load::default();
        for ticket in 0..4 {
            load.dispatched(ticket, 0.0, 10_000.0, at(0.0));
            load.first_token(ticket, at(0.0));
        }
        assert!(load.wait(0.0, ROOM, at(0.0)) > 0.0);
        load.ended(0, 10_000.0, None, at(1.0));
        assert_eq!(load.wait(10_000.0, ROOM, at(1.0)), 0.0);
        assert!(load.wait(90_000.0, ROOM, at(1.0)) > 0.0);
        load.reported_waiting(2);
        assert!(load.wait(0.0, ROOM, at(1.0)) > 0.0 && !load.is_clear(ROOM));
    }
}
