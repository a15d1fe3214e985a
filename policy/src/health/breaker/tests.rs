use super::*;
use proptest::prelude::*;

const RULES: Rules = Rules {
    rest: Duration::from_secs(1),
    longest_rest: Duration::from_secs(8),
    refusals: 3,
    trials: 2,
    ramp: Duration::from_secs(30),
};

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const CLOSED: State = State::Closed { refusals: 0 };
const PROBING: State = State::Probing { good: 0, rests: 1 };

fn open(until: u64, rests: u32) -> State {
    State::Open {
        until: at(until),
        rests,
    }
}

fn returning(window: usize) -> State {
    State::Returning {
        window,
        until: at(40),
        rests: 1,
    }
}

/// Each row of the module's table, at second 10.
#[test]
fn every_transition() {
    use Event::{Alive, Broke, Good, Hung, Refused, Returned};
    let fresh = State::Probing { good: 0, rests: 0 };
    let rows = [
        (CLOSED, Broke, open(11, 1)),
        (CLOSED, Refused, State::Closed { refusals: 1 }),
        (State::Closed { refusals: 2 }, Refused, open(11, 1)),
        (State::Closed { refusals: 2 }, Good, CLOSED),
        (CLOSED, Alive, CLOSED),
        (open(11, 1), Alive, PROBING),
        (open(11, 1), Good, State::Probing { good: 1, rests: 1 }),
        (open(11, 1), Broke, open(11, 1)),
        (open(11, 1), Refused, open(11, 1)),
        // Its time was over: the event meets the trials.
        (open(10, 1), Broke, open(12, 2)),
        (PROBING, Good, State::Probing { good: 1, rests: 1 }),
        (State::Probing { good: 1, rests: 1 }, Good, returning(4)),
        (PROBING, Broke, open(12, 2)),
        (State::Probing { good: 1, rests: 9 }, Refused, open(18, 10)),
        (PROBING, Alive, PROBING),
        (returning(4), Good, returning(6)),
        (returning(62), Good, CLOSED),
        (returning(4), Broke, open(12, 2)),
        (returning(4), Refused, open(12, 2)),
        (returning(4), Alive, returning(4)),
        (CLOSED, Hung, State::Hung),
        (open(11, 1), Hung, State::Hung),
        (PROBING, Hung, State::Hung),
        (returning(4), Hung, State::Hung),
        (State::Hung, Alive, fresh),
        (State::Hung, Good, State::Hung),
        (State::Hung, Broke, State::Hung),
        (State::Hung, Refused, State::Hung),
        (CLOSED, Returned, fresh),
        (open(11, 4), Returned, fresh),
        (State::Hung, Returned, fresh),
        (returning(4), Returned, fresh),
    ];
    for (before, event, after) in rows {
        let mut breaker = Breaker::new(RULES);
        breaker.state = before;
        breaker.step(event, at(10));
        assert_eq!(breaker.state, after, "{before:?} and {event:?}");
    }
}

#[test]
fn time_alone_ends_a_rest_and_a_ramp_but_no_hang() {
    for (before, now, after) in [
        (open(11, 1), 10, open(11, 1)),
        (open(11, 1), 11, PROBING),
        (returning(4), 39, returning(4)),
        (returning(4), 40, CLOSED),
        (State::Hung, 100_000, State::Hung),
    ] {
        let mut breaker = Breaker::new(RULES);
        breaker.state = before;
        assert_eq!(breaker.state(at(now)), after);
    }
}

#[test]
fn one_that_is_back_gets_trials_then_a_growing_window() {
    let mut breaker = Breaker::new(RULES);
    let mut old: Vec<Pass> = (0..20).filter_map(|_| breaker.admit(at(0))).collect();
    assert_eq!(old.len(), 20);
    breaker.step(Event::Returned, at(1));
    let herd = |breaker: &mut Breaker| (0..1000).filter_map(|_| breaker.admit(at(2))).count();
    // Nobody ends: what is admitted adds up, and streams of before don't count.
    assert_eq!(breaker.verdict(at(2)), Verdict::Trial);
    assert_eq!(herd(&mut breaker), 2);
    old.drain(..).for_each(|pass| breaker.ended(pass));
    assert_eq!(herd(&mut breaker), 0, "those of before gave nothing back");
    let mut rounds = Vec::new();
    let mut admitted = 2;
    while breaker.state(at(2)) != CLOSED {
        (0..admitted).for_each(|_| breaker.step(Event::Good, at(2)));
        if breaker.state(at(2)) != CLOSED {
            admitted = herd(&mut breaker);
            rounds.push(admitted);
        }
    }
    assert_eq!(rounds, [2, 4, 8, 16]);
}

#[test]
fn streams_that_outlived_an_outage_take_no_place() {
    let mut breaker = Breaker::new(Rules { trials: 1, ..RULES });
    let old: Vec<Pass> = (0..20).filter_map(|_| breaker.admit(at(0))).collect();
    breaker.step(Event::Broke, at(0));
    breaker.step(Event::Good, at(0));
    assert_eq!(breaker.state(at(0)).phase(), Phase::Returning);
    assert_eq!(breaker.verdict(at(0)), Verdict::Admit, "beside {} old ones", old.len());
}

#[test]
fn an_outage_of_many_streams_is_one_rest() {
    let mut breaker = Breaker::new(RULES);
    (0..100).for_each(|_| breaker.step(Event::Broke, at(0)));
    assert_eq!(breaker.state(at(0)), open(1, 1));
}

proptest! {
    #[test]
    fn it_bounds_trials_and_never_shuts_for_good(
        steps in proptest::collection::vec((0_u8..10, 0_u64..4), 1..300)
    ) {
        let mut breaker = Breaker::new(RULES);
        let (mut now, mut passes, mut in_round) = (Duration::ZERO, Vec::new(), 0_usize);
        let mut round = 0;
        for (what, passed) in steps {
            now += at(passed);
            match what {
                0 => breaker.step(Event::Broke, now),
                1 => breaker.step(Event::Refused, now),
                2 | 3 => breaker.step(Event::Good, now),
                4 => breaker.step(Event::Alive, now),
                5 => breaker.step(Event::Returned, now),
                6 => breaker.step(Event::Hung, now),
                7 => if let Some(pass) = passes.pop() {
                    breaker.ended(pass);
                },
                _ => passes.extend(breaker.admit(now)),
            }
            let state = breaker.state(now);
            if round != breaker.round {
                (round, in_round) = (breaker.round, 0);
            }
            in_round = in_round.max(passes.iter().filter(|pass| pass.round == round).count());
            match state {
                State::Probing { .. } => prop_assert!(in_round <= RULES.trials),
                State::Open { until, .. } => prop_assert!(until <= now + RULES.longest_rest),
                _ => {}
            }
        }
        passes.into_iter().for_each(|pass| breaker.ended(pass));
        prop_assert_eq!(breaker.under_way, 0);
        if breaker.state(now) == State::Hung {
            breaker.step(Event::Alive, now);
        }
        prop_assert!(breaker.verdict(now + RULES.longest_rest) != Verdict::Reject);
    }
}
