//! Which replica and which backend a request goes to: tables over fleets in memory.

use super::super::address::Address;
use super::super::replica::Readiness;
use super::*;
use sluice_policy::health::breaker::Event;

fn backend(count: usize) -> Backend {
    let replicas = (0..count)
        .map(|i| {
            let replica = Replica::new(&format!("r{i}"), false, None, Some(Address::loopback(9000 + i as u16)));
            replica.set_readiness(Readiness::Ready);
            Arc::new(replica)
        })
        .collect();
    Backend::new("b", "m", vec![], "p", replicas, RouteSettings::default())
}

fn choose(backend: &Backend, session: u64, has_past: bool, tried: &[usize]) -> Option<Choice> {
    backend.choose(Wanted {
        session: SessionKey {
            hash: session,
            source: SessionSource::SessionIdHeader,
        },
        chain: &Arc::default(),
        has_past,
        tried,
        hint: None,
        margins: Margins::default(),
    })
}

#[test]
fn a_session_stays_and_moves_only_when_its_replica_is_down() {
    let backend = backend(4);
    let first = choose(&backend, 7, false, &[]).unwrap();
    assert_eq!(first.route.as_str(), "new");
    let again = choose(&backend, 7, true, &[]).unwrap();
    assert_eq!((again.index, again.route.as_str()), (first.index, "hit"));
    backend.replica(first.index).unwrap().set_readiness(Readiness::Down);
    let moved = choose(&backend, 7, true, &[]).unwrap();
    assert_ne!(moved.index, first.index);
    assert_eq!(
        (moved.route.as_str(), moved.route.reason),
        ("repin", Reason::MovedUnhealthy)
    );
    assert_eq!(choose(&backend, 8, true, &[]).unwrap().route.as_str(), "miss");
}

#[test]
fn the_ring_spreads_and_a_lost_replica_moves_only_its_own_sessions() {
    let backend = backend(4);
    let place = |session: u64| choose(&backend, session, false, &[]).unwrap().index;
    let before: Vec<usize> = (0..1000).map(place).collect();
    for index in 0..4 {
        let share = before.iter().filter(|&&i| i == index).count();
        assert!(
            (100..500).contains(&share),
            "replica {index} has {share} of 1000 sessions"
        );
    }
    backend.replica(2).unwrap().set_readiness(Readiness::Down);
    for (session, &was) in before.iter().enumerate() {
        let now = place(session as u64);
        assert!(now != 2 && (was == 2 || now == was));
    }
}

#[test]
fn a_loaded_replica_takes_no_new_session() {
    let backend = backend(2);
    let home = choose(&backend, 1, false, &[]).unwrap().index;
    let load: Vec<_> = (0..10)
        .map(|i| choose(&backend, 100 + i, false, &[1 - home]).unwrap())
        .collect();
    assert!(load.iter().all(|choice| choice.index == home));
    assert_ne!(choose(&backend, 2, false, &[]).unwrap().index, home);
}

#[test]
fn tried_replicas_are_left_out_and_a_resting_one_is_the_last_resort() {
    let backend = backend(2);
    assert!(choose(&backend, 1, false, &[0, 1]).is_none());
    assert_eq!(choose(&backend, 1, false, &[0]).unwrap().index, 1);
    backend.replica(1).unwrap().failed();
    assert_eq!(choose(&backend, 1, false, &[]).unwrap().index, 0);
    assert_eq!(choose(&backend, 1, false, &[0]).unwrap().index, 1);
}

#[test]
fn one_that_is_back_is_tried_by_a_few_and_the_rest_goes_elsewhere() {
    let backend = backend(2);
    let home = choose(&backend, 1, false, &[]).unwrap().index;
    backend.replica(home).unwrap().health.step(Event::Returned);
    let herd: Vec<Choice> = (0..50).filter_map(|_| choose(&backend, 1, true, &[])).collect();
    assert_eq!(herd.len(), 50);
    let trials = herd.iter().filter(|choice| choice.index == home).count();
    assert!((1..=2).contains(&trials), "{trials} trials");
    drop(herd);
    // Alone it takes them all: nobody else can.
    let herd: Vec<Choice> = (0..50).filter_map(|_| choose(&backend, 1, true, &[1 - home])).collect();
    assert_eq!(herd.len(), 50);
    backend.replica(home).unwrap().hangs();
    assert!(choose(&backend, 1, true, &[1 - home]).is_none(), "unless it hangs");
}

#[test]
fn a_request_goes_to_the_first_backend_that_can_take_it() {
    let named = |name: &str, fallback: &[&str], images: bool| {
        let replica = Replica::new(name, false, None, Some(Address::loopback(9000)));
        replica.set_readiness(Readiness::Ready);
        let replicas = vec![Arc::new(replica)];
        let backend = Backend::new(name, name, vec![], "p", replicas, RouteSettings::default());
        let fallback = fallback.iter().map(|name| (*name).to_owned()).collect();
        Arc::new(backend.with_fallback(fallback, images))
    };
    let fleet = Fleet {
        backends: vec![
            named("text", &["small", "vision"], false),
            named("small", &["last"], false),
            named("vision", &[], true),
            named("last", &["text"], false),
        ],
    };
    let goes = |down: &[&str], images: bool, may_not: &str| -> Vec<String> {
        for backend in &fleet.backends {
            let state = if down.contains(&&*backend.name) {
                Readiness::Down
            } else {
                Readiness::Ready
            };
            // One that may come back is waited for, not passed by.
            let replica = backend.replica(0).unwrap();
            replica.set_may_return(false);
            replica.set_readiness(state);
        }
        let first = fleet.backend(Some("text")).unwrap();
        let serving = fleet.serving(first, images, |backend| *backend.name != *may_not);
        serving.iter().map(|backend| backend.name.to_string()).collect()
    };
    for (down, images, may_not, to) in [
        (&[][..], false, "", &["text", "small", "last", "vision"][..]),
        (&["text"], false, "", &["small", "last", "vision"]),
        (&["text", "small"], false, "", &["last", "vision"]),
        (&["text", "small", "last"], false, "", &["vision"]),
        (&["text"], false, "small", &["last", "vision"]),
        (
            &["text", "small", "vision", "last"],
            false,
            "",
            &["text", "small", "last", "vision"],
        ),
        (&["small"], false, "", &["text", "small", "last", "vision"]),
        (&[], true, "", &["vision"]),
        (&["vision"], true, "", &["vision"]),
        (&[], true, "vision", &[]),
    ] {
        assert_eq!(goes(down, images, may_not), to, "{down:?} {images} {may_not}");
    }
    let text = fleet.backend(Some("text")).unwrap();
    goes(&["text"], false, "");
    text.replica(0).unwrap().set_may_return(true);
    assert!(
        fleet
            .serving(text, false, |_| true)
            .first()
            .is_some_and(|backend| *backend.name == *"text")
    );
}

#[test]
fn a_model_is_found_by_id_and_alias_and_the_only_one_without() {
    let mut one = backend(1);
    one.aliases.push("qwen3".into());
    let fleet = Fleet {
        backends: vec![Arc::new(one)],
    };
    assert!(fleet.backend(Some("m")).is_some());
    assert!(fleet.backend(Some("qwen3")).is_some());
    assert!(fleet.backend(None).is_some());
    assert!(fleet.backend(Some("x")).is_none());
    assert_eq!(fleet.model_ids(), ["m", "qwen3"]);
}
