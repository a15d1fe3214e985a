//! What is kept between two turns, row by row. Prompts have a link each 100 tokens, a byte a token; the room has 1,000 tokens.

use super::super::queue::{PASSED_MOST, Priority, QueueLimits, Waiter};
use super::super::room::{Capacity, Need};
use super::super::{Admission, Held};
use super::KEPT_MOST;
use crate::route::chain::{Chain, Link};
use std::sync::Arc;
use std::time::Duration;

const S: fn(u64) -> Duration = Duration::from_secs;

/// A prefill of 600 tokens anew: it costs twice that.
const ANEW: Duration = Duration::from_secs(5);

fn need(conversation: u64, links: u64) -> Need {
    let links = (1..=links).map(|n| Link {
        hash: conversation * 1000 + n,
        bytes: n * 100,
    });
    let chain = Chain::from_links(links.collect());
    Need {
        sequences: 1,
        prompt_tokens: chain.bytes(),
        output_tokens: 0,
        chain: Arc::new(chain),
    }
}

fn places() -> Admission<u64> {
    Admission::new([Capacity {
        sequences: None,
        kv_tokens: Some(1000),
    }])
}

fn fits(places: &mut Admission<u64>, need: &Need, now: Duration) -> bool {
    places.fitting(need, &[true], now) == [true]
}

fn begins(places: &mut Admission<u64>, conversation: u64, links: u64, now: Duration) -> Held {
    places.take(0, need(conversation, links), 0, ANEW, now)
}

/// A turn that begins and ends then, whole.
fn turn(places: &mut Admission<u64>, conversation: u64, links: u64, now: Duration) {
    let held = begins(places, conversation, links, now);
    places.give_back(held, None, Some(1), now);
}

/// Two that don't fit beside each other push each other out, until the first comes back at 10 s: its turn ends at once.
fn regretted() -> Admission<u64> {
    let mut places = places();
    turn(&mut places, 1, 6, S(0));
    turn(&mut places, 2, 6, S(1));
    turn(&mut places, 1, 7, S(10));
    places
}

fn waiter(conversation: u64, links: u64) -> Waiter<u64> {
    Waiter {
        key: "k".into(),
        priority: Priority::Normal,
        need: need(conversation, links),
        bytes: 1,
        is_cached: true,
        work_tokens: 100,
        home: None,
        tag: conversation,
    }
}

fn called(places: &mut Admission<u64>, now: Duration) -> Vec<u64> {
    let mut called = Vec::new();
    places.call(&[true], now, |tag| called.push(*tag));
    called
}

#[test]
fn a_load_that_never_came_back_to_what_it_lost_waits_for_nobody() {
    let mut places = places();
    for conversation in 1..20 {
        assert!(fits(&mut places, &need(conversation, 6), S(0)));
        turn(&mut places, conversation, 6, S(0));
    }
}

#[test]
fn room_is_kept_for_the_time_that_computing_anew_would_cost() {
    let mut places = regretted();
    assert!(!fits(&mut places, &need(2, 7), S(11)));
    assert!(fits(&mut places, &need(1, 8), S(11)), "its own room");
    assert!(!fits(&mut places, &need(2, 10), S(19)));
    assert!(fits(&mut places, &need(2, 10), S(20)));
    // Without a further regret it is over.
    turn(&mut places, 1, 8, S(100));
    assert!(!fits(&mut places, &need(3, 7), S(101)));
    turn(&mut places, 1, 9, S(200));
    assert!(fits(&mut places, &need(3, 7), S(201)));
}

#[test]
fn who_needs_a_part_waits_for_that_part_of_the_time() {
    let mut places = regretted();
    // 300 are free, 70 of 700 are missing.
    let mut small = need(3, 3);
    small.output_tokens = 70;
    assert!(!fits(&mut places, &small, S(10)));
    assert!(fits(&mut places, &small, S(11)));
}

#[test]
fn what_has_ended_without_usage_or_without_links_is_not_kept() {
    let mut places = regretted();
    let cut = begins(&mut places, 1, 8, S(11));
    places.give_back(cut, None, None, S(11));
    assert!(fits(&mut places, &need(2, 7), S(11)));
    let unknown = places.take(0, need(4, 0), 0, ANEW, S(12));
    places.give_back(unknown, Some(1), Some(1), S(12));
    assert_eq!(places.room(0).map(|room| room.tokens()), Some(0));
}

#[test]
fn a_preemption_ends_all_keeping() {
    let mut places = regretted();
    places.preempted(0, S(11));
    assert_eq!(places.room(0).map(|room| room.tokens()), Some(0));
    assert!(fits(&mut places, &need(2, 7), S(11)));
}

#[test]
fn one_with_a_room_is_not_refused_for_the_wait_of_others() {
    let mut places = regretted();
    let limits = QueueLimits {
        wait: Duration::ZERO,
        ..QueueLimits::default()
    };
    // Places are held for long.
    let long = begins(&mut places, 9, 1, S(11));
    places.give_back(long, None, Some(1), S(1000));
    turn(&mut places, 2, 6, S(1000));
    turn(&mut places, 1, 8, S(1001));
    assert!(places.wait(waiter(2, 7), &limits, S(1002)).is_err());
    assert!(places.wait(waiter(1, 9), &limits, S(1002)).is_ok());
    assert_eq!(called(&mut places, S(1002)), [1]);
}

#[test]
fn who_is_due_waits_for_nobody_that_is_kept() {
    let mut places = regretted();
    let limits = QueueLimits::default();
    places.wait(waiter(2, 7), &limits, S(11)).unwrap();
    for n in 1..=u64::from(PASSED_MOST) {
        assert!(called(&mut places, S(11)).is_empty(), "before {n}");
        // It has no room of its own, and takes some that is free.
        let id = places.wait(waiter(100 + n, 1), &limits, S(11)).unwrap();
        let expected = match n < u64::from(PASSED_MOST) {
            true => vec![100 + n],
            false => vec![100 + n, 2],
        };
        assert_eq!(called(&mut places, S(11)), expected);
        places.leave(id);
    }
}

#[test]
fn who_waits_twice_as_long_as_a_turn_takes_is_due_and_what_is_kept_gives_way() {
    // A place was held for 0 s, or for 7 s in the mean: the second one's turn would come then.
    for (held, due) in [(0, 10), (7, 14)] {
        let mut places = regretted();
        let long = begins(&mut places, 1, 8, S(12));
        places.held_s = Some(held as f64);
        let id = places.wait(waiter(2, 7), &QueueLimits::default(), S(12)).unwrap();
        places.give_back(long, None, Some(1), S(12));
        places.held_s = Some(held as f64 / 2.0);
        let resting = |places: &mut Admission<u64>, links: u64, at: Duration| {
            turn(places, 1, links, at);
            places.held_s = Some(held as f64 / 2.0);
            called(places, at)
        };
        for (links, at) in (9..).zip(13..=12 + due) {
            assert!(
                resting(&mut places, links, S(at)).is_empty(),
                "{at} s: it goes on before"
            );
        }
        assert_eq!(resting(&mut places, 40, S(13 + due)), [2]);
        places.leave(id);
    }
}

#[test]
fn no_more_than_so_many_are_kept_and_all_that_was_counted_comes_back() {
    let mut places = Admission::<u64>::new([Capacity {
        sequences: None,
        kv_tokens: Some(1 << 40),
    }]);
    for conversation in 0..200 {
        turn(&mut places, conversation, 3, S(0));
    }
    assert_eq!(places.room(0).map(|room| room.tokens()), Some(KEPT_MOST as u64 * 300));
    places.preempted(0, S(1));
    assert_eq!(places.room(0).map(|room| room.tokens()), Some(0));
}
