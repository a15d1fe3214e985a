//! The life of a launched replica, as one transition function.
//!
//! Enters: what happened and when. Leaves: the next state and one action. Two rules carry it. A start follows a process that has
//! *gone*, never one that is going: an engine outlives its API server by ten seconds and more, and holds the GPU's memory while
//! it does. And a start that failed is tried again after a pause that doubles, unless nothing can change by itself
//! ([`Diagnosis::may_pass`]): then it waits for a person.
//!
//! | state | event | next state | action |
//! | --- | --- | --- | --- |
//! | Stopped, Waiting, GivenUp | Start | Starting | Spawn |
//! | Stopped, Waiting, GivenUp | Adopt | Starting | – |
//! | Starting | CameUp | Ready | – |
//! | Starting | Tick after `start_timeout` | Clearing, then again: Timeout | Terminate |
//! | Starting, Ready | Died(why) | Clearing, then again: why | Terminate |
//! | Starting, Ready | Stop | Clearing, then Stopped | Terminate |
//! | Clearing | Tick after `stop_grace` | Clearing (killing) | Kill |
//! | Clearing (killing) | Tick after `kill_again` | Clearing (killing) | Kill |
//! | Clearing | Stop / Start | Clearing, then Stopped / Starting | – |
//! | Clearing, then Stopped | Gone | Stopped | – |
//! | Clearing, then Starting | Gone | Starting | Spawn |
//! | Clearing, then again | Gone | Waiting, or GivenUp if it can't pass | – |
//! | Waiting | Tick at `until` | Starting | Spawn |
//! | Waiting, GivenUp | Stop | Stopped | – |
//! | any | any other | unchanged | – |

use std::time::Duration;

use super::diagnosis::Diagnosis;

/// An instant: time since an epoch of the caller's.
pub type Instant = Duration;

/// The times that rule a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// From the start of the process until it must be ready. vLLM needs 80 s to 200 s warm, more when it downloads.
    pub start_timeout: Duration,
    /// From SIGTERM until SIGKILL.
    pub stop_grace: Duration,
    /// From one SIGKILL to the next: a process in an uninterruptible wait of the driver dies late.
    pub kill_again: Duration,
    /// The pause after a first failure; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// A replica that was ready for so long has no failures any more.
    pub steady_after: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            start_timeout: Duration::from_secs(20 * 60),
            stop_grace: Duration::from_secs(30),
            kill_again: Duration::from_secs(5),
            first_pause: Duration::from_secs(2),
            longest_pause: Duration::from_secs(5 * 60),
            steady_after: Duration::from_secs(10 * 60),
        }
    }
}

impl Rules {
    /// The pause after the `failures`-th failure in a row (1 = the first).
    pub fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first_pause.saturating_mul(1 << doublings).min(self.longest_pause)
    }
}

/// Where a replica stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Life {
    /// No process, none wanted.
    #[default]
    Stopped,
    /// A process lives and isn't ready yet.
    Starting {
        /// Start of the process.
        since: Instant,
        /// Failures in a row before this start.
        failures: u32,
    },
    /// It answers, with the right model.
    Ready {
        /// When it became ready.
        since: Instant,
        /// Failures in a row before this start.
        failures: u32,
    },
    /// Its processes are being ended; nothing new starts before the last has gone.
    Clearing {
        /// The last signal's time.
        since: Instant,
        /// SIGKILL has been sent.
        killing: bool,
        /// What comes when nothing is left.
        then: Then,
    },
    /// A pause before the next start.
    Waiting {
        /// When the next start is due.
        until: Instant,
        /// Failures in a row.
        failures: u32,
        /// The last failure's cause.
        diagnosis: Diagnosis,
    },
    /// The cause can't pass by itself: no further start until one is asked for.
    GivenUp {
        /// Failures in a row.
        failures: u32,
        /// The cause.
        diagnosis: Diagnosis,
    },
}

/// What follows [`Life::Clearing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Rest,
    /// A start, at once.
    Start,
    /// The rules decide: a pause and a start, or nothing.
    Again {
        /// Failures in a row, this one included.
        failures: u32,
        /// Its cause.
        diagnosis: Diagnosis,
    },
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A replica is wanted.
    Start,
    /// A process of an earlier run was found and taken over.
    Adopt,
    /// It answers, with the right model.
    CameUp,
    /// Its first process has ended, or couldn't be started.
    Died(Diagnosis),
    /// No process of its session is left.
    Gone,
    /// No replica is wanted.
    Stop,
    /// Time has passed.
    Tick,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Start the process.
    Spawn,
    /// SIGTERM to all of its session.
    Terminate,
    /// SIGKILL to all of its session.
    Kill,
}

impl Life {
    /// When a [`Event::Tick`] is next due; none while only events can change anything.
    pub fn due(&self, rules: &Rules) -> Option<Instant> {
        match *self {
            Life::Starting { since, .. } => Some(since.saturating_add(rules.start_timeout)),
            Life::Clearing {
                since, killing: false, ..
            } => Some(since.saturating_add(rules.stop_grace)),
            Life::Clearing {
                since, killing: true, ..
            } => Some(since.saturating_add(rules.kill_again)),
            Life::Waiting { until, .. } => Some(until),
            Life::Stopped | Life::Ready { .. } | Life::GivenUp { .. } => None,
        }
    }
}

/// The transition; the table above is its contract.
pub fn step(life: Life, event: Event, rules: &Rules, now: Instant) -> (Life, Action) {
    let due = life.due(rules).is_some_and(|at| now >= at);
    match (life, event) {
        (Life::Stopped | Life::Waiting { .. } | Life::GivenUp { .. }, Event::Start) => spawn(0, now),
        (Life::Stopped | Life::Waiting { .. } | Life::GivenUp { .. }, Event::Adopt) => (
            Life::Starting {
                since: now,
                failures: 0,
            },
            Action::Nothing,
        ),
        (Life::Waiting { .. } | Life::GivenUp { .. }, Event::Stop) => (Life::Stopped, Action::Nothing),
        (Life::Waiting { failures, .. }, Event::Tick) if due => spawn(failures, now),

        (Life::Starting { failures, .. }, Event::CameUp) => (Life::Ready { since: now, failures }, Action::Nothing),
        (Life::Starting { failures, .. }, Event::Died(diagnosis)) => clear(again(failures, diagnosis), now),
        (Life::Starting { failures, .. }, Event::Tick) if due => clear(again(failures, Diagnosis::Timeout), now),
        (Life::Ready { since, failures }, Event::Died(diagnosis)) => {
            let steady = now.saturating_sub(since) >= rules.steady_after;
            clear(again(if steady { 0 } else { failures }, diagnosis), now)
        }
        (Life::Starting { .. } | Life::Ready { .. }, Event::Stop) => clear(Then::Rest, now),

        (Life::Clearing { then, .. }, Event::Tick) if due => (
            Life::Clearing {
                since: now,
                killing: true,
                then,
            },
            Action::Kill,
        ),
        (Life::Clearing { since, killing, .. }, Event::Stop) => (
            Life::Clearing {
                since,
                killing,
                then: Then::Rest,
            },
            Action::Nothing,
        ),
        (Life::Clearing { since, killing, .. }, Event::Start) => (
            Life::Clearing {
                since,
                killing,
                then: Then::Start,
            },
            Action::Nothing,
        ),
        (Life::Clearing { then, .. }, Event::Gone) => gone(then, rules, now),

        (unchanged, _) => (unchanged, Action::Nothing),
    }
}

fn spawn(failures: u32, now: Instant) -> (Life, Action) {
    (Life::Starting { since: now, failures }, Action::Spawn)
}

fn again(failures: u32, diagnosis: Diagnosis) -> Then {
    Then::Again {
        failures: failures.saturating_add(1),
        diagnosis,
    }
}

fn clear(then: Then, now: Instant) -> (Life, Action) {
    (
        Life::Clearing {
            since: now,
            killing: false,
            then,
        },
        Action::Terminate,
    )
}

fn gone(then: Then, rules: &Rules, now: Instant) -> (Life, Action) {
    match then {
        Then::Rest => (Life::Stopped, Action::Nothing),
        Then::Start => spawn(0, now),
        Then::Again { failures, diagnosis } if diagnosis.may_pass() => {
            let until = now.saturating_add(rules.pause(failures));
            (
                Life::Waiting {
                    until,
                    failures,
                    diagnosis,
                },
                Action::Nothing,
            )
        }
        Then::Again { failures, diagnosis } => (Life::GivenUp { failures, diagnosis }, Action::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use Diagnosis::{OutOfMemory, Timeout, UnknownFlag};

    const RULES: Rules = Rules {
        start_timeout: Duration::from_secs(100),
        stop_grace: Duration::from_secs(10),
        kill_again: Duration::from_secs(5),
        first_pause: Duration::from_secs(2),
        longest_pause: Duration::from_secs(60),
        steady_after: Duration::from_secs(600),
    };

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const STARTING: Life = Life::Starting {
        since: s(0),
        failures: 2,
    };
    const READY: Life = Life::Ready {
        since: s(0),
        failures: 2,
    };
    const WAITING: Life = Life::Waiting {
        until: s(8),
        failures: 2,
        diagnosis: OutOfMemory,
    };
    const GIVEN_UP: Life = Life::GivenUp {
        failures: 1,
        diagnosis: UnknownFlag,
    };

    const fn clearing(since: u64, killing: bool, then: Then) -> Life {
        Life::Clearing {
            since: s(since),
            killing,
            then,
        }
    }

    const fn failed(failures: u32, diagnosis: Diagnosis) -> Then {
        Then::Again { failures, diagnosis }
    }

    fn check(life: Life, event: Event, at: u64, expect: (Life, Action)) {
        assert_eq!(
            step(life, event, &RULES, s(at)),
            expect,
            "{life:?} + {event:?} at {at} s"
        );
    }

    #[test]
    fn every_row_of_the_table() {
        let start = (
            Life::Starting {
                since: s(7),
                failures: 0,
            },
            Action::Spawn,
        );
        let adopted = (
            Life::Starting {
                since: s(7),
                failures: 0,
            },
            Action::Nothing,
        );
        for life in [Life::Stopped, WAITING, GIVEN_UP] {
            check(life, Event::Start, 7, start);
            check(life, Event::Adopt, 7, adopted);
        }
        check(
            STARTING,
            Event::CameUp,
            7,
            (
                Life::Ready {
                    since: s(7),
                    failures: 2,
                },
                Action::Nothing,
            ),
        );
        check(
            STARTING,
            Event::Tick,
            100,
            (clearing(100, false, failed(3, Timeout)), Action::Terminate),
        );
        check(
            STARTING,
            Event::Died(OutOfMemory),
            7,
            (clearing(7, false, failed(3, OutOfMemory)), Action::Terminate),
        );
        check(
            READY,
            Event::Died(OutOfMemory),
            7,
            (clearing(7, false, failed(3, OutOfMemory)), Action::Terminate),
        );
        for life in [STARTING, READY] {
            check(
                life,
                Event::Stop,
                7,
                (clearing(7, false, Then::Rest), Action::Terminate),
            );
        }
        let then = failed(3, OutOfMemory);
        check(
            clearing(7, false, then),
            Event::Tick,
            17,
            (clearing(17, true, then), Action::Kill),
        );
        check(
            clearing(17, true, then),
            Event::Tick,
            22,
            (clearing(22, true, then), Action::Kill),
        );
        check(
            clearing(7, true, then),
            Event::Stop,
            9,
            (clearing(7, true, Then::Rest), Action::Nothing),
        );
        check(
            clearing(7, true, Then::Rest),
            Event::Start,
            9,
            (clearing(7, true, Then::Start), Action::Nothing),
        );
        check(
            clearing(7, true, Then::Rest),
            Event::Gone,
            9,
            (Life::Stopped, Action::Nothing),
        );
        check(clearing(3, true, Then::Start), Event::Gone, 7, start);
        let waiting = Life::Waiting {
            until: s(9 + 8),
            failures: 3,
            diagnosis: OutOfMemory,
        };
        check(clearing(7, false, then), Event::Gone, 9, (waiting, Action::Nothing));
        let given_up = Life::GivenUp {
            failures: 1,
            diagnosis: UnknownFlag,
        };
        check(
            clearing(7, false, failed(1, UnknownFlag)),
            Event::Gone,
            9,
            (given_up, Action::Nothing),
        );
        check(
            WAITING,
            Event::Tick,
            8,
            (
                Life::Starting {
                    since: s(8),
                    failures: 2,
                },
                Action::Spawn,
            ),
        );
        for life in [WAITING, GIVEN_UP] {
            check(life, Event::Stop, 7, (Life::Stopped, Action::Nothing));
        }
    }

    #[test]
    fn what_the_table_does_not_name_changes_nothing() {
        let events = [
            Event::Start,
            Event::Adopt,
            Event::CameUp,
            Event::Died(OutOfMemory),
            Event::Gone,
            Event::Stop,
            Event::Tick,
        ];
        let lives = [
            Life::Stopped,
            STARTING,
            READY,
            clearing(0, false, Then::Rest),
            WAITING,
            GIVEN_UP,
        ];
        // per state: the events of the table, in the order above (Tick is too early at 1 s)
        let named = [
            [true, true, false, false, false, false, false],
            [false, false, true, true, false, true, false],
            [false, false, false, true, false, true, false],
            [true, false, false, false, true, true, false],
            [true, true, false, false, false, true, false],
            [true, true, false, false, false, true, false],
        ];
        for (life, row) in lives.into_iter().zip(named) {
            for (event, named) in events.into_iter().zip(row) {
                if !named {
                    check(life, event, 1, (life, Action::Nothing));
                }
            }
        }
    }

    #[test]
    fn a_tick_before_its_time_changes_nothing() {
        for (life, at) in [
            (STARTING, 99),
            (clearing(7, false, Then::Rest), 16),
            (clearing(7, true, Then::Rest), 11),
            (WAITING, 7),
        ] {
            assert_eq!(life.due(&RULES), Some(s(at + 1)));
            check(life, Event::Tick, at, (life, Action::Nothing));
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<u64> = (1..9).map(|failures| RULES.pause(failures).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(RULES.pause(u32::MAX), s(60), "no overflow");
    }

    #[test]
    fn a_long_steady_run_forgives_earlier_failures() {
        check(
            READY,
            Event::Died(OutOfMemory),
            599,
            (clearing(599, false, failed(3, OutOfMemory)), Action::Terminate),
        );
        check(
            READY,
            Event::Died(OutOfMemory),
            600,
            (clearing(600, false, failed(1, OutOfMemory)), Action::Terminate),
        );
    }

    /// A replica that dies at each start is started ever more rarely, and never while something of it is left.
    #[test]
    fn a_crash_loop_slows_down() {
        let (mut life, mut now, mut starts) = (Life::Stopped, s(0), Vec::new());
        let mut event = Event::Start;
        while now < s(600) {
            let (next, action) = step(life, event, &RULES, now);
            life = next;
            event = match action {
                Action::Spawn => {
                    starts.push(now.as_secs());
                    now += s(1);
                    Event::Died(OutOfMemory)
                }
                Action::Terminate => Event::Gone,
                Action::Kill => panic!("it went by itself"),
                Action::Nothing => {
                    now = life.due(&RULES).unwrap();
                    Event::Tick
                }
            };
        }
        assert_eq!(starts, [0, 3, 8, 17, 34, 67, 128, 189, 250, 311, 372, 433, 494, 555]);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Start),
            Just(Event::CameUp),
            Just(Event::Died(OutOfMemory)),
            Just(Event::Died(UnknownFlag)),
            Just(Event::Gone),
            Just(Event::Stop),
            Just(Event::Tick),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: nothing starts while something is left, SIGTERM comes before SIGKILL and once,
        /// what must be ended leads to nothing left, and no state waits for a time that has passed.
        #[test]
        fn nothing_starts_while_something_is_left(events in prop::collection::vec((any_event(), 0u64..200), 0..80)) {
            let (mut life, mut now, mut lives, mut termed) = (Life::Stopped, s(0), false, false);
            for (event, pause) in events {
                now += s(pause);
                let was = life;
                let (next, action) = step(life, event, &RULES, now);
                life = next;
                if event == Event::Gone && matches!(was, Life::Clearing { .. }) {
                    (lives, termed) = (false, false);
                }
                match action {
                    Action::Spawn => {
                        prop_assert!(!lives, "{was:?} + {event:?}");
                        lives = true;
                    }
                    Action::Terminate => {
                        prop_assert!(lives && !termed, "{was:?} + {event:?}");
                        termed = true;
                    }
                    Action::Kill => prop_assert!(termed, "{was:?} + {event:?}"),
                    Action::Nothing => {}
                }
                let has_process = matches!(life, Life::Starting { .. } | Life::Ready { .. } | Life::Clearing { .. });
                prop_assert_eq!(has_process, lives, "{:?}", life);
                let (ticked, _) = step(life, Event::Tick, &RULES, now);
                let due = life.due(&RULES).is_some_and(|at| at <= now);
                prop_assert_eq!(due, ticked != life, "{:?} at {:?}", life, now);
            }
        }
    }
}
