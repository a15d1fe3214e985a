//! Does an engine move (B36): no sign of it for long, though it has work, is a hang, whatever `/health` says.
//!
//! Problem: an engine that hangs keeps its sockets open and its front end answers; a busy one may be silent for a long prefill. Rule:
//! while requests are in flight, the time without a *sign* is counted. A step of the engine is a sign, and so is any byte of any answer;
//! an engine without statistics has only the latter. It hangs when that time reaches [`limit`]. A stream that had begun and was given up
//! as silent says the same sooner, if nothing else of the engine was seen for half of that. Cold start: the first look counts from now.
//! Recovery: not here, an idle engine makes no steps; a probe asks it.
//!
//! | since the last look | silence |
//! | --- | --- |
//! | a step, or a byte | none |
//! | nothing in flight, and no stream given up | none |
//! | nothing, requests in flight | grows by the time, at most [`LOOK_MAX`] |

use std::time::Duration;

/// So many times the expected prefill of all that runs is borne without a sign.
const PREFILLS: u32 = 3;

/// Silence that one look can add: what nobody looked at (a gateway that was stopped, a machine asleep) proves nothing.
pub const LOOK_MAX: Duration = Duration::from_secs(12);

/// What was seen since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Look {
    /// Requests that it works on now.
    pub in_flight: usize,
    /// Its steps so far, where it says so.
    pub steps: Option<u64>,
    /// A byte of an answer came.
    pub spoke: bool,
    /// A stream of it that had begun was given up as silent.
    pub stalled: bool,
}

/// What one replica's engine showed so far.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    steps: Option<u64>,
    silent: Duration,
    looked: Duration,
}

/// How long an engine may be silent: `hung_after`, or longer if what runs needs a long prefill.
pub fn limit(hung_after: Duration, prefill: Duration) -> Duration {
    hung_after.max(prefill.saturating_mul(PREFILLS))
}

impl Progress {
    /// Nothing seen yet.
    pub fn new(now: Duration) -> Progress {
        Progress {
            steps: None,
            silent: Duration::ZERO,
            looked: now,
        }
    }

    /// One look; true if it hangs.
    pub fn look(&mut self, look: Look, limit: Duration, now: Duration) -> bool {
        let passed = now.saturating_sub(self.looked).min(LOOK_MAX);
        self.looked = now;
        // Fewer than before are a sign too: it has started anew.
        let stepped = look.steps.is_some() && look.steps != self.steps;
        self.steps = look.steps.or(self.steps);
        if stepped || look.spoke || (look.in_flight == 0 && !look.stalled) {
            self.silent = Duration::ZERO;
            return false;
        }
        self.silent += passed;
        self.silent >= limit || (look.stalled && self.silent >= limit / 2)
    }

    /// Time without a sign, while there was work.
    pub fn silent(&self) -> Duration {
        self.silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// One look a second, from second 1 on; the second at which it hangs.
    fn hangs_at(looks: impl IntoIterator<Item = Look>) -> Option<usize> {
        let mut progress = Progress::new(Duration::ZERO);
        let mut looks = looks.into_iter().enumerate();
        looks.find_map(|(n, look)| progress.look(look, LIMIT, seconds(n as u64 + 1)).then_some(n + 1))
    }

    const QUIET: Look = Look {
        in_flight: 2,
        steps: Some(7),
        spoke: false,
        stalled: false,
    };

    #[test]
    fn silence_with_work_is_a_hang_and_nothing_else_is() {
        let always = |look: Look| std::iter::repeat_n(look, 300);
        // The first look sees steps for the first time: a sign.
        assert_eq!(hangs_at(always(QUIET)), Some(61));
        let without_statistics = Look { steps: None, ..QUIET };
        assert_eq!(hangs_at(always(without_statistics)), Some(60));
        let speaks = Look {
            spoke: true,
            ..without_statistics
        };
        assert_eq!(hangs_at(always(speaks)), None);
        let idle = Look { in_flight: 0, ..QUIET };
        assert_eq!(hangs_at(always(idle)), None);
        let steps = (0..300).map(|n| Look {
            steps: Some(n / 50),
            ..QUIET
        });
        assert_eq!(hangs_at(steps), None, "a step every 50 s is slow, not hung");
        let restarted = (0..300).map(|n| Look {
            steps: Some(if n < 50 { 900 } else { n / 40 }),
            ..QUIET
        });
        assert_eq!(hangs_at(restarted), None);
        // Metrics that can't be read now and then say nothing.
        let flickers = (0..300).map(|n| Look {
            steps: (n % 2 == 0).then_some(7),
            ..QUIET
        });
        assert_eq!(hangs_at(flickers), Some(61));
    }

    #[test]
    fn work_that_comes_after_a_pause_begins_anew() {
        let looks = (0..300).map(|n| Look {
            in_flight: usize::from(n % 50 != 0),
            ..QUIET
        });
        assert_eq!(hangs_at(looks), None);
    }

    #[test]
    fn a_stream_given_up_says_it_sooner_but_not_alone() {
        let with_stall = |at: u64, moves: bool| {
            hangs_at((0..300).map(move |n| Look {
                in_flight: usize::from(n < at),
                steps: Some(if moves { n } else { 7 }),
                stalled: n == at,
                ..QUIET
            }))
        };
        assert_eq!(with_stall(58, false), Some(59), "the last stream was given up");
        assert_eq!(with_stall(20, false), None);
        assert_eq!(with_stall(58, true), None, "the stream stalled, not the engine");
    }

    #[test]
    fn what_nobody_looked_at_proves_nothing() {
        let mut progress = Progress::new(Duration::ZERO);
        assert!(!progress.look(QUIET, LIMIT, seconds(1)));
        assert!(!progress.look(QUIET, LIMIT, seconds(100_000)));
        assert_eq!(progress.silent(), LOOK_MAX);
    }

    #[test]
    fn a_long_prefill_is_waited_for() {
        assert_eq!(limit(LIMIT, seconds(3)), LIMIT);
        assert_eq!(limit(LIMIT, seconds(40)), seconds(120));
    }

    proptest! {
        #[test]
        fn it_never_hangs_before_the_limit_of_looked_at_silence(
            looks in proptest::collection::vec((0_usize..3, proptest::option::of(0_u64..3), any::<bool>(), 1_u64..30), 1..200)
        ) {
            let (mut progress, mut now, mut since_sign) = (Progress::new(Duration::ZERO), 0, 0);
            let mut steps = None;
            for (in_flight, seen, spoke, passed) in looks {
                now += passed;
                let sign = spoke || in_flight == 0 || (seen.is_some() && seen != steps);
                steps = seen.or(steps);
                since_sign = if sign { 0 } else { since_sign + passed };
                let look = Look { in_flight, steps: seen, spoke, stalled: false };
                let hangs = progress.look(look, LIMIT, seconds(now));
                prop_assert!(!hangs || since_sign >= 60, "after {since_sign} s");
                // Each look counts for at least so much.
                prop_assert!(hangs || since_sign < 60 * 30 / LOOK_MAX.as_secs());
            }
        }
    }
}
