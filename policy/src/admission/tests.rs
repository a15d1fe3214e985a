//! Rooms and queue together: tables, then properties over random traffic on a clock of its own.

use super::*;
use proptest::prelude::*;

type Places = Admission<u32>;

const S: fn(u64) -> Duration = Duration::from_secs;

fn seats(counts: &[u32]) -> Places {
    Admission::new(counts.iter().map(|count| Capacity {
        sequences: Some(*count),
        kv_tokens: None,
    }))
}

fn cache(tokens: u64) -> Places {
    Admission::new([Capacity {
        sequences: None,
        kv_tokens: Some(tokens),
    }])
}

fn need(tokens: u64) -> Need {
    Need {
        sequences: 1,
        prompt_tokens: tokens,
        output_tokens: 0,
        chain: Arc::default(),
    }
}

fn waiter(key: &str, need: Need, tag: u32) -> Waiter<u32> {
    Waiter {
        key: key.into(),
        priority: Priority::Normal,
        work_tokens: need.tokens(),
        need,
        bytes: 10,
        is_cached: false,
        home: None,
        tag,
    }
}

/// Who is called now.
fn called(places: &mut Places, may: &[bool], now: Duration) -> Vec<u32> {
    let mut called = Vec::new();
    places.call(may, now, |tag| called.push(*tag));
    called
}

/// The called one is taken in where it was called to.
fn come(places: &mut Places, id: u64, now: Duration) -> Held {
    let replica = places.called(id).expect("it is called");
    let (need, fits) = places.loosen(id, &[true; 8], now).expect("it is there");
    assert!(fits[replica]);
    places.leave(id);
    places.take(replica, need, 0, S(0), now)
}

#[test]
fn who_was_refused_and_comes_again_goes_before_those_that_came_meanwhile() {
    let mut places = seats(&[1]);
    let told = |name: u64| {
        let link = crate::route::chain::Link { hash: name, bytes: 10 };
        Need {
            chain: Arc::new(Chain::from_links(vec![link])),
            ..need(1)
        }
    };
    let limits = QueueLimits {
        waiting: 1,
        ..QueueLimits::default()
    };
    let running = places.take(0, need(1), 0, S(0), S(0));
    let first = places.wait(waiter("a", told(1), 1), &limits, S(1)).unwrap();
    let refusal = places.wait(waiter("a", told(2), 2), &limits, S(2)).unwrap_err();
    assert_eq!(refusal.reason, Reason::Full);
    places.leave(first);
    places.wait(waiter("a", told(3), 3), &limits, S(3)).unwrap();
    let limits = QueueLimits::default();
    let again = places.wait(waiter("a", told(2), 2), &limits, S(3)).unwrap();
    assert_eq!(places.queue().ahead(again, S(3)), Some(0));
    // One that has waited too long keeps its place too.
    places.waited(again, S(33));
    places.leave(again);
    places.wait(waiter("a", told(2), 2), &limits, S(35)).unwrap();
    places.give_back(running, None, None, S(36));
    assert_eq!(called(&mut places, &[true], S(36)), [2]);
}

#[test]
fn one_more_replica_is_room_for_who_waits_and_one_that_takes_anothers_number_starts_empty() {
    let mut places = seats(&[1]);
    let first = places.take(0, need(1), 0, S(0), S(0));
    let id = places
        .wait(waiter("k", need(1), 7), &QueueLimits::default(), S(0))
        .unwrap();
    assert_eq!(called(&mut places, &[true], S(1)), [] as [u32; 0]);
    assert!(places.is_idle(1));
    places.occupy(
        1,
        Capacity {
            sequences: Some(1),
            kv_tokens: None,
        },
    );
    assert_eq!(called(&mut places, &[true, true], S(1)), [7]);
    assert!(!places.is_idle(1), "a place is kept for the called one");
    let second = come(&mut places, id, S(1));
    places.give_back(first, None, None, S(2));
    places.give_back(second, None, None, S(2));
    assert!(places.is_idle(0));
    places.occupy(0, Capacity::default());
    assert_eq!(places.capacity(0), Capacity::default());
}

#[test]
fn a_place_that_is_given_back_calls_who_is_next_and_nobody_takes_it_in_between() {
    let mut places = seats(&[1]);
    let limits = QueueLimits::default();
    assert_eq!(places.fitting(&need(1), &[true], S(0)), [true]);
    let first = places.take(0, need(1), 0, S(0), S(0));
    assert_eq!(places.fitting(&need(1), &[true], S(0)), [false]);
    let id = places.wait(waiter("k", need(1), 7), &limits, S(0)).unwrap();
    assert!(called(&mut places, &[true], S(0)).is_empty());
    places.give_back(first, None, None, S(5));
    assert_eq!(called(&mut places, &[true], S(5)), [7]);
    assert_eq!(
        places.fitting(&need(1), &[true], S(5)),
        [false],
        "kept for the called one"
    );
    let held = come(&mut places, id, S(5));
    assert!(places.queue().is_empty());
    places.give_back(held, None, None, S(6));
    assert_eq!(places.fitting(&need(1), &[true], S(6)), [true]);
}

#[test]
fn who_leaves_frees_what_was_kept_for_it() {
    let mut places = seats(&[1]);
    let limits = QueueLimits::default();
    let first = places.take(0, need(1), 0, S(0), S(0));
    let [a, b] = [1, 2].map(|tag| places.wait(waiter("k", need(1), tag), &limits, S(0)).unwrap());
    places.give_back(first, None, None, S(1));
    assert_eq!(called(&mut places, &[true], S(1)), [1]);
    places.leave(a);
    assert_eq!(called(&mut places, &[true], S(1)), [2]);
    places.leave(b);
    assert_eq!(places.room(0).map(Room::requests), Some(0));
}

#[test]
fn a_called_one_whose_replica_is_lost_waits_again() {
    let mut places = seats(&[1, 1]);
    let limits = QueueLimits::default();
    let (a, b) = (
        places.take(0, need(1), 0, S(0), S(0)),
        places.take(1, need(1), 0, S(0), S(0)),
    );
    let id = places.wait(waiter("k", need(1), 1), &limits, S(0)).unwrap();
    places.give_back(a, None, None, S(1));
    assert_eq!(called(&mut places, &[true, true], S(1)), [1]);
    assert_eq!(places.called(id), Some(0));
    let (_, fits) = places.loosen(id, &[false, true], S(1)).unwrap();
    assert_eq!(fits, [false, false]);
    assert_eq!(places.called(id), None);
    places.give_back(b, None, None, S(2));
    assert_eq!(called(&mut places, &[false, true], S(2)), [1]);
    assert_eq!(places.called(id), Some(1));
}

#[test]
fn a_place_moves_with_its_answer_room_or_not() {
    let mut places = seats(&[1, 1]);
    let (mut a, b) = (
        places.take(0, need(1), 0, S(0), S(0)),
        places.take(1, need(1), 0, S(0), S(0)),
    );
    places.move_to(&mut a, 1);
    assert_eq!(places.fitting(&need(1), &[true, true], S(0)), [true, false]);
    places.give_back(b, None, None, S(1));
    assert_eq!(places.fitting(&need(1), &[true, true], S(1)), [true, false]);
    places.give_back(a, None, None, S(1));
    assert_eq!(places.fitting(&need(1), &[true, true], S(1)), [true, true]);
}

#[test]
fn refusals_say_why_and_when_to_come_back() {
    let limits = QueueLimits {
        waiting: 3,
        waiting_of_key: 2,
        bytes: 1000,
        wait: S(10),
    };
    let mut places = seats(&[1]);
    // Places are held for eight seconds.
    let first = places.take(0, need(1), 0, S(0), S(0));
    places.give_back(first, None, None, S(8));
    let _running = places.take(0, need(1), 0, S(0), S(8));
    let mut ask = |key: &str, priority, bytes| {
        let waiter = Waiter {
            bytes,
            priority,
            ..waiter(key, need(1), 0)
        };
        places
            .wait(waiter, &limits, S(8))
            .map_err(|refusal| (refusal.reason, refusal.retry_after))
    };
    let normal = Priority::Normal;
    assert_eq!(ask("a", normal, 1001), Err((Reason::Full, S(1))));
    assert!(ask("a", normal, 10).is_ok());
    // The second of its key would wait for two places.
    assert_eq!(ask("a", normal, 10), Err((Reason::Wait, S(6))));
    assert!(ask("a", Priority::High, 10).is_ok(), "it goes before the other one");
    assert_eq!(ask("a", Priority::High, 10), Err((Reason::Key, S(6))));
    assert!(ask("b", Priority::High, 10).is_err_and(|(reason, _)| reason == Reason::Wait));
}

#[test]
fn without_a_measured_time_only_the_queues_bound_refuses() {
    let limits = QueueLimits {
        waiting: 100,
        ..QueueLimits::default()
    };
    let mut places = seats(&[1]);
    let _running = places.take(0, need(1), 0, S(0), S(0));
    let mut ask = || places.wait(waiter("k", need(1), 0), &limits, S(0));
    assert!((0..100).all(|_| ask().is_ok()));
    assert_eq!(ask().map_err(|refusal| refusal.reason), Err(Reason::Full));
}

#[test]
fn a_conversation_waits_for_its_home_until_another_one_is_as_good() {
    let mut places = seats(&[1, 1]);
    let limits = QueueLimits::default();
    let _home = places.take(0, need(1), 0, S(0), S(0));
    let at_home = Waiter {
        home: Some((0, S(3))),
        ..waiter("k", need(1), 1)
    };
    let id = places.wait(at_home, &limits, S(0)).unwrap();
    assert!(called(&mut places, &[true, true], S(1)).is_empty());
    assert_eq!(
        called(&mut places, &[false, true], S(1)),
        [1],
        "a home that is lost isn't waited for"
    );
    places.loosen(id, &[true, true], S(3));
    assert_eq!(called(&mut places, &[true, true], S(3)), [1]);
    assert_eq!(places.called(id), Some(1));
}

#[test]
fn ten_agents_of_60k_tokens_on_a_replica_of_140k_run_two_by_two() {
    let mut places = cache(140_000);
    let mut running = Vec::new();
    for _ in 0..10 {
        if places.fitting(&need(60_000), &[true], S(0)) == [true] {
            running.push(places.take(0, need(60_000), 0, S(0), S(0)));
        }
    }
    assert_eq!(running.len(), 2);
}

#[test]
fn two_that_are_due_do_not_keep_the_room_from_each_other() {
    let mut places = cache(100);
    let limits = QueueLimits::default();
    let running = places.take(0, need(60), 0, S(0), S(0));
    let ids = [1, 2].map(|tag| places.wait(waiter("k", need(90), tag), &limits, S(0)).unwrap());
    for _ in 0..queue::PASSED_MOST {
        // Smaller ones pass.
        let small = places.wait(waiter("k", need(40), 3), &limits, S(0)).unwrap();
        assert_eq!(called(&mut places, &[true], S(0)), [3]);
        let held = come(&mut places, small, S(0));
        places.give_back(held, None, None, S(0));
    }
    places.give_back(running, None, None, S(1));
    for (id, tag) in ids.into_iter().zip([1, 2]) {
        assert_eq!(called(&mut places, &[true], S(1)), [tag]);
        let held = come(&mut places, id, S(1));
        places.give_back(held, None, None, S(2));
    }
}

#[test]
fn one_that_needs_the_whole_cache_gets_it_while_small_ones_keep_coming() {
    let mut places = cache(1000);
    let limits = QueueLimits::default();
    let mut running: Vec<Held> = (0..5).map(|_| places.take(0, need(200), 0, S(0), S(0))).collect();
    let huge = places.wait(waiter("huge", need(5000), 99), &limits, S(0)).unwrap();
    let mut small = 0;
    // Each turn one small one comes and one ends.
    while places.called(huge).is_none() {
        let id = places.wait(waiter("small", need(200), 1), &limits, S(0)).unwrap();
        if !running.is_empty() {
            places.give_back(running.remove(0), None, None, S(0));
        }
        called(&mut places, &[true], S(0));
        if places.called(id).is_some() {
            running.push(come(&mut places, id, S(0)));
            small += 1;
        }
        // As much work of the other key as its own, a round more, and then it is passed over until it is due.
        assert!(small <= (5000 + 2048) / 200 + queue::PASSED_MOST + 1, "it starves");
    }
    assert!(running.is_empty(), "it goes alone");
}

#[test]
fn what_answers_say_is_learned() {
    let mut places = cache(1000);
    let wants = Wants {
        sequences: 2,
        prompt_bytes: 8192,
        max_tokens: None,
        chain: Arc::default(),
    };
    assert_eq!(
        (places.need(&wants).prompt_tokens, places.need(&wants).output_tokens),
        (2048, 512)
    );
    let short = Wants {
        max_tokens: Some(3),
        ..wants.clone()
    };
    assert_eq!(places.need(&short).output_tokens, 6);
    for _ in 0..200 {
        let held = places.take(0, places.need(&wants), 8192, S(0), S(0));
        places.give_back(held, Some(4096), Some(2000), S(1));
    }
    let need = places.need(&wants);
    assert_eq!((need.prompt_tokens, need.output_tokens.div_ceil(10)), (4096, 200));
    assert_eq!(places.work(&need, 8192, 4096), (2048 + need.output_tokens, true));
    assert!(!places.work(&need, 8192, 4000).1);
}

/// What happens, drawn.
#[derive(Debug, Clone)]
enum Event {
    Ask {
        key: u8,
        priority: u8,
        tokens: u64,
        n: u32,
        is_cached: bool,
    },
    /// The so many-th of those that run, or wait.
    End(usize),
    Leave(usize),
    Lost(usize),
    Preempted(usize),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4_u8, 0..3_u8, 1..3000_u64, 1..4_u32, any::<bool>())
            .prop_map(|(key, priority, tokens, n, is_cached)| Event::Ask { key, priority, tokens, n, is_cached }),
        4 => (0..64_usize).prop_map(Event::End),
        1 => (0..64_usize).prop_map(Event::Leave),
        1 => (0..3_usize).prop_map(Event::Lost),
        1 => (0..3_usize).prop_map(Event::Preempted),
        1 => (0..4000_u64).prop_map(Event::Pass),
    ]
}

/// Three replicas and whoever is there.
struct World {
    places: Places,
    may: Vec<bool>,
    now: Duration,
    running: Vec<(usize, Held)>,
    waiting: Vec<u64>,
}

impl World {
    fn new() -> World {
        let capacity = |sequences, kv_tokens| Capacity { sequences, kv_tokens };
        World {
            places: Admission::new([
                capacity(Some(3), Some(4000)),
                capacity(None, Some(2500)),
                capacity(Some(2), None),
            ]),
            may: vec![true; 3],
            now: Duration::ZERO,
            running: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// As the gateway does it: what is called comes at once.
    fn settle(&mut self) {
        loop {
            self.places.call(&self.may, self.now, |_| {});
            let called = self.waiting.iter().position(|id| self.places.called(*id).is_some());
            let Some(index) = called else { return };
            let id = self.waiting.remove(index);
            let replica = self.places.called(id).unwrap();
            let held = come(&mut self.places, id, self.now);
            self.running.push((replica, held));
        }
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Ask {
                key,
                priority,
                tokens,
                n,
                is_cached,
            } => {
                let need = Need {
                    sequences: n,
                    ..need(tokens)
                };
                let waiter = Waiter {
                    priority: Priority::ALL[usize::from(priority)],
                    is_cached,
                    ..waiter(&format!("key {key}"), need, 0)
                };
                let limits = QueueLimits {
                    waiting: 20,
                    wait: S(100_000),
                    ..QueueLimits::default()
                };
                if let Ok(id) = self.places.wait(waiter, &limits, self.now) {
                    self.waiting.push(id);
                }
            }
            Event::End(n) if !self.running.is_empty() => {
                let (_, held) = self.running.remove(n % self.running.len());
                self.places.give_back(held, Some(1), Some(1), self.now);
            }
            Event::Leave(n) if !self.waiting.is_empty() => {
                let id = self.waiting.remove(n % self.waiting.len());
                self.places.leave(id);
            }
            Event::Lost(replica) => self.may[replica] = !self.may[replica],
            Event::Preempted(replica) => self.places.preempted(replica, self.now),
            Event::Pass(ms) => self.now += Duration::from_millis(ms),
            Event::End(_) | Event::Leave(_) => {}
        }
        self.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    /// What rooms say is held is what runs; nothing runs past a room's bound but alone; the queue keeps its bound.
    #[test]
    fn places_are_conserved_and_bounds_kept(events in proptest::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        for event in &events {
            world.happens(event);
            prop_assert!(world.waiting.len() <= 20);
            prop_assert_eq!(world.places.queue().len(), world.waiting.len());
            prop_assert_eq!(world.places.queue().bytes(), world.waiting.len() as u64 * 10);
            for replica in 0..3 {
                let there: Vec<&Held> = world.running.iter().filter(|(at, _)| *at == replica).map(|(_, held)| held).collect();
                let room = world.places.room(replica).unwrap();
                let tokens: u64 = there.iter().map(|held| held.need.tokens()).sum();
                let sequences: u32 = there.iter().map(|held| held.need.sequences).sum();
                prop_assert_eq!((room.requests(), room.tokens(), room.sequences()), (there.len(), tokens, sequences));
                let capacity = room.capacity();
                prop_assert!(there.len() <= 1 || capacity.kv_tokens.is_none_or(|most| tokens <= most));
                prop_assert!(there.len() <= 1 || capacity.sequences.is_none_or(|most| sequences <= most));
            }
        }
    }

    /// While somebody waits who isn't kept back for one that is due, no replica has room for it.
    #[test]
    fn no_room_stays_empty_while_somebody_waits(events in proptest::collection::vec(event(), 1..120)) {
        let mut world = World::new();
        for event in &events {
            world.happens(event);
            for id in &world.waiting {
                let need = world.places.queue().waiter(*id).unwrap().need.clone();
                // `fitting` leaves out the room that is kept for one that is due.
                let fitting = world.places.fitting(&need, &world.may.clone(), world.now);
                prop_assert!(!fitting.contains(&true), "{:?} while {} waits", fitting, id);
            }
        }
    }

    /// Whatever comes after it, one that waits is called within a bound of what is called before it.
    #[test]
    fn nobody_starves(
        events in proptest::collection::vec(event(), 0..60),
        priority in 0..3_usize,
        tokens in 1..9000_u64,
        others in proptest::collection::vec((0..4_u8, 1..3000_u64, any::<bool>()), 1..8),
    ) {
        let mut world = World::new();
        events.iter().for_each(|event| world.happens(event));
        world.may = vec![true; 3];
        let limits = QueueLimits { waiting: 1000, wait: S(100_000), ..QueueLimits::default() };
        let one = Waiter { priority: Priority::ALL[priority], ..waiter("one", need(tokens), 0) };
        let id = world.places.wait(one, &limits, world.now).unwrap();
        world.waiting.push(id);
        world.settle();
        let mut rounds = 0;
        while world.waiting.contains(&id) {
            rounds += 1;
            prop_assert!(rounds < 2000, "it starves");
            // More urgent ones, of all keys, as many as end.
            let (key, tokens, is_cached) = others[rounds % others.len()];
            world.happens(&Event::Ask { key, priority: 0, tokens, n: 1, is_cached });
            world.happens(&Event::End(0));
            world.happens(&Event::Pass(500));
        }
    }
}
