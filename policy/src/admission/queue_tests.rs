//! The order, row by row.

use super::*;

const S: fn(u64) -> Duration = Duration::from_secs;

fn waiter(key: &str, work_tokens: u64) -> Waiter<()> {
    Waiter {
        key: key.into(),
        priority: Priority::Normal,
        need: Need::default(),
        bytes: 1,
        is_cached: false,
        work_tokens,
        home: None,
        tag: (),
    }
}

fn with(priority: Priority) -> Waiter<()> {
    Waiter {
        priority,
        ..waiter("k", 100)
    }
}

/// Whom it calls, one after the other, if all fit.
fn calls(queue: &mut Queue<()>, now: Duration) -> Vec<u64> {
    let mut calls = Vec::new();
    while let Some((id, _)) = queue.call(now, |_, _| Some(0), |_, _| panic!("all fit")) {
        queue.remove(id);
        calls.push(id);
    }
    calls
}

#[test]
fn priorities_go_first_and_rise_with_age() {
    let mut queue = Queue::default();
    let [low, normal, high] = [Priority::Low, Priority::Normal, Priority::High].map(|p| queue.push(with(p), S(0)));
    assert_eq!(queue.len_of(Priority::Low), 1);
    assert_eq!(calls(&mut queue, S(1)), [high, normal, low]);

    let old = queue.push(with(Priority::Low), S(0));
    let young = queue.push(with(Priority::High), S(15));
    assert_eq!(calls(&mut queue, S(19)), [young, old], "it has risen by one");
    let old = queue.push(with(Priority::Low), S(0));
    let young = queue.push(with(Priority::High), S(15));
    assert_eq!(calls(&mut queue, S(20)), [old, young], "as urgent, and came first");
}

#[test]
fn vllms_numbers_and_the_words() {
    for (number, priority) in [(-5, Priority::High), (0, Priority::Normal), (9, Priority::Low)] {
        assert_eq!(Priority::of_number(number), priority);
        assert_eq!(Priority::of_word(priority.as_str()), Some(priority));
    }
    assert_eq!(Priority::of_word("urgent"), None);
}

#[test]
fn keys_take_turns_by_work_not_by_requests() {
    let mut queue = Queue::default();
    let large: Vec<u64> = (0..4).map(|_| queue.push(waiter("large", 8 * QUANTUM), S(0))).collect();
    let small: Vec<u64> = (0..32).map(|_| queue.push(waiter("small", QUANTUM), S(0))).collect();
    let order = calls(&mut queue, S(0));
    for (n, id) in large.iter().enumerate() {
        let at = order.iter().position(|one| one == id).unwrap();
        let before = order[..at].iter().filter(|one| small.contains(one)).count();
        // As much work of each: eight small ones for a large one.
        assert!(
            (8 * n..=8 * (n + 1)).contains(&before),
            "{before} before the {n}th of {order:?}"
        );
    }
}

#[test]
fn a_key_that_comes_late_waits_for_one_of_each_not_for_all() {
    let mut queue = Queue::default();
    for _ in 0..100 {
        queue.push(waiter("many", 100), S(0));
    }
    let late = queue.push(waiter("one", 100), S(0));
    assert_eq!(queue.ahead(late, S(0)), Some(1));
    assert_eq!(queue.ahead_of_new("many", Priority::Normal, S(0), S(0)), 101);
    assert_eq!(queue.ahead_of_new("many", Priority::High, S(0), S(0)), 0);
    assert!(calls(&mut queue, S(0))[..2].contains(&late));
}

#[test]
fn cached_turns_overtake_within_a_bound() {
    let mut queue = Queue::default();
    let cold = queue.push(waiter("k", 100), S(0));
    let mut overtook = 0;
    loop {
        queue.push(
            Waiter {
                is_cached: true,
                ..waiter("k", 10)
            },
            S(0),
        );
        let (id, _) = queue.call(S(0), |_, _| Some(0), |_, _| {}).unwrap();
        queue.remove(id);
        if id == cold {
            break;
        }
        overtook += 1;
    }
    assert_eq!(overtook, PASSED_MOST);
}

#[test]
fn what_does_not_fit_is_passed_over_and_falls_due() {
    let mut queue = Queue::default();
    let huge = queue.push(waiter("a", 100), S(0));
    for n in 0..PASSED_MOST {
        let small = queue.push(waiter("b", 100), S(0));
        let called = queue.call(S(0), |id, _| (id != huge).then_some(3), |_, _| panic!("due after {n}"));
        assert_eq!(called, Some((small, 3)));
        queue.remove(small);
    }
    let mut due = Vec::new();
    assert_eq!(queue.call(S(0), |_, _| None, |id, _| due.push(id)), None);
    assert_eq!(due, [huge]);
}

#[test]
fn a_called_one_is_not_called_again_and_may_wait_again() {
    let mut queue = Queue::default();
    let id = queue.push(waiter("k", 100), S(0));
    assert_eq!(queue.call(S(0), |_, _| Some(2), |_, _| {}), Some((id, 2)));
    assert_eq!(queue.call(S(0), |_, _| Some(2), |_, _| {}), None);
    assert_eq!(queue.called(id), Some(2));
    queue.put_back(id);
    assert_eq!(queue.called(id), None);
    assert_eq!(queue.call(S(0), |_, _| Some(1), |_, _| {}), Some((id, 1)));
    assert_eq!(queue.remove(id).map(|(_, replica)| replica), Some(Some(1)));
    assert!(queue.is_empty() && queue.bytes() == 0 && queue.remove(id).is_none());
}
