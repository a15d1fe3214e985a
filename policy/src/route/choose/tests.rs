use super::*;
use crate::route::chain::Link;

/// A conversation of so many links of 4,000 bytes (1,000 tokens each).
fn chain(name: u64, links: u64) -> Arc<Chain> {
    let links = (1..=links).map(|i| Link {
        hash: name * 1_000 + i,
        bytes: i * 4_000,
    });
    Arc::new(Chain::from_links(links.collect()))
}

fn at(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// What the router would do with the ring pointing there.
fn decide(router: &mut Router, session: u64, chain: &Arc<Chain>, may: &[bool], ring: usize, now: f64) -> Decision {
    let question = Question {
        session,
        is_named: true,
        chain,
        may,
        hint: None,
    };
    router.choose(question, [ring].into_iter(), at(now)).unwrap()
}

/// Decides, dispatches, has its first token when it was expected, and ends it a second later.
fn serve_on(router: &mut Router, session: u64, chain: &Arc<Chain>, may: &[bool], ring: usize, now: f64) -> Decision {
    let decision = decide(router, session, chain, may, ring, now);
    let mut ticket = router.dispatch(session, chain, &decision, at(now));
    let first = at(now) + decision.expected;
    router.first_token(&mut ticket, first);
    router.ended(ticket, Used::default(), first + at(1.0));
    decision
}

/// With all replicas.
fn serve(router: &mut Router, session: u64, chain: &Arc<Chain>, ring: usize, now: f64) -> Decision {
    serve_on(router, session, chain, &[true; 3], ring, now)
}

#[test]
fn the_first_turn_goes_to_the_ring_the_next_where_it_was_and_a_fork_to_its_prefix() {
    let mut router = Router::new(3, RouteSettings::default());
    let first = serve(&mut router, 1, &chain(1, 10), 2, 0.0);
    assert_eq!((first.replica, first.reason, first.cached_bytes), (2, Reason::Ring, 0));
    let second = serve(&mut router, 1, &chain(1, 12), 0, 10.0);
    assert_eq!(
        (second.replica, second.reason, second.cached_bytes),
        (2, Reason::Session, 40_000)
    );
    let fork = serve(&mut router, 2, &chain(1, 13), 0, 20.0);
    assert_eq!((fork.replica, fork.reason), (2, Reason::Prefix));
    let other = serve(&mut router, 3, &chain(3, 2), 0, 30.0);
    assert_eq!((other.replica, other.reason), (0, Reason::Ring));
}

#[test]
fn conversations_that_only_begin_alike_are_not_one() {
    let mut router = Router::new(2, RouteSettings::default());
    let ask = |router: &mut Router, chain: &Arc<Chain>, ring: usize, now: f64| {
        let question = Question {
            session: 1,
            is_named: false,
            chain,
            may: &[true, true],
            hint: None,
        };
        let decision = router.choose(question, [ring].into_iter(), at(now)).unwrap();
        let mut ticket = router.dispatch(1, chain, &decision, at(now));
        router.first_token(&mut ticket, at(now) + decision.expected);
        router.ended(ticket, Used::default(), at(now + 5.0));
        (decision.replica, decision.reason)
    };
    // One system prompt, and then a conversation of its own.
    let alike = |name: u64, links: u64| {
        let mut links = chain(name, links).links().to_vec();
        links[0].hash = 1;
        Arc::new(Chain::from_links(links))
    };
    assert_eq!(ask(&mut router, &alike(1, 10), 0, 0.0), (0, Reason::Ring));
    assert_eq!(ask(&mut router, &alike(2, 10), 1, 10.0), (1, Reason::Ring));
    assert_eq!(ask(&mut router, &alike(1, 11), 1, 20.0), (0, Reason::Prefix));
    assert_eq!(ask(&mut router, &alike(1, 12), 1, 30.0), (0, Reason::Session));
}

#[test]
fn a_session_leaves_for_load_only_by_a_margin() {
    let mut router = Router::new(2, RouteSettings::default());
    serve(&mut router, 1, &chain(1, 10), 0, 0.0);
    let light = decide(&mut router, 9, &chain(9, 2), &[true, false], 0, 5.0);
    router.dispatch(9, &chain(9, 2), &light, at(5.0));
    let stays = decide(&mut router, 1, &chain(1, 11), &[true, true], 0, 5.0);
    assert_eq!((stays.replica, stays.reason), (0, Reason::Session));
    for other in 10..20 {
        let heavy = decide(&mut router, other, &chain(other, 40), &[true, false], 0, 5.0);
        router.dispatch(other, &chain(other, 40), &heavy, at(5.0));
    }
    let moves = decide(&mut router, 1, &chain(1, 11), &[true, true], 0, 5.0);
    assert_eq!((moves.replica, moves.reason), (1, Reason::MovedLoad));
}

#[test]
fn a_session_whose_replica_cannot_be_asked_moves_and_stays_there() {
    let mut router = Router::new(3, RouteSettings::default());
    serve(&mut router, 1, &chain(1, 10), 0, 0.0);
    let moved = serve_on(&mut router, 1, &chain(1, 11), &[false, true, true], 2, 5.0);
    assert_eq!((moved.replica, moved.reason), (2, Reason::MovedUnhealthy));
    let back = decide(&mut router, 1, &chain(1, 12), &[true, true, true], 0, 60.0);
    assert_eq!((back.replica, back.reason), (2, Reason::Session));
    let none = Question {
        session: 1,
        is_named: true,
        chain: &chain(1, 1),
        may: &[false; 3],
        hint: None,
    };
    assert_eq!(router.choose(none, [0].into_iter(), at(61.0)), None);
}

#[test]
fn a_session_whose_cache_is_elsewhere_goes_there() {
    let mut router = Router::new(2, RouteSettings::default());
    serve(&mut router, 1, &chain(1, 60), 0, 0.0);
    serve_on(&mut router, 2, &chain(2, 1), &[false, true], 1, 20.0);
    let decision = decide(&mut router, 2, &chain(1, 61), &[true, true], 1, 60.0);
    assert_eq!((decision.replica, decision.reason), (0, Reason::Prefix));
    router.restarted(0);
    let decision = decide(&mut router, 2, &chain(1, 61), &[true, true], 1, 60.0);
    assert_eq!((decision.replica, decision.reason), (1, Reason::Session));
}

#[test]
fn the_ring_gives_no_more_than_a_share() {
    let mut router = Router::new(2, RouteSettings::default());
    for session in 0..10 {
        let decision = decide(&mut router, session, &chain(session, 1), &[true, false], 0, 0.0);
        let mut ticket = router.dispatch(session, &chain(session, 1), &decision, at(0.0));
        router.first_token(&mut ticket, at(0.0));
    }
    let question = Question {
        session: 20,
        is_named: true,
        chain: &chain(20, 1),
        may: &[true, true],
        hint: None,
    };
    let decision = router.choose(question, [0, 1].into_iter(), at(1.0)).unwrap();
    assert_eq!((decision.replica, decision.reason), (1, Reason::Ring));
}

#[test]
fn a_replica_that_seemed_slow_gets_a_trial() {
    let mut router = Router::new(2, RouteSettings::default());
    for i in 0..10 {
        let decision = decide(&mut router, i, &chain(i, 5), &[true, false], 0, f64::from(i as u32));
        let mut ticket = router.dispatch(i, &chain(i, 5), &decision, at(f64::from(i as u32)));
        router.first_token(&mut ticket, at(f64::from(i as u32) + 20.0));
        router.ended(ticket, Used::default(), at(f64::from(i as u32) + 20.0));
    }
    let mut chosen = Vec::new();
    for i in 0..20 {
        chosen.push(serve(&mut router, 100 + i, &chain(100 + i, 5), 0, 90.0 + i as f64 * 0.01).replica);
    }
    assert!(chosen.contains(&0), "within sixteen new sessions");
    assert!(
        chosen.iter().filter(|replica| **replica == 0).count() <= 2,
        "{chosen:?}"
    );
}

#[test]
fn the_ratio_of_tokens_and_surprises_of_the_cache_are_learned() {
    let mut router = Router::new(3, RouteSettings::default());
    let conversation = chain(1, 20);
    serve(&mut router, 1, &conversation, 0, 0.0);
    let decision = decide(&mut router, 1, &conversation, &[true; 3], 0, 10.0);
    assert_eq!(decision.cached_bytes, 80_000);
    let mut ticket = router.dispatch(1, &conversation, &decision, at(10.0));
    router.first_token(&mut ticket, at(11.0));
    let used = Used {
        prompt_tokens: Some(40_000),
        cached_tokens: Some(0),
        completion_tokens: Some(10),
    };
    serve(&mut router, 5, &chain(5, 3), 0, 5.0);
    router.ended(ticket, used, at(12.0));
    assert_eq!(router.tokens_per_byte, 0.5);
    assert_eq!(
        router.index.cached(conversation.links())[0],
        80_000,
        "this answer has put it there again"
    );
}

/// Two replicas, each with a KV cache of so many links.
fn with_caches(links: u64) -> Router {
    let mut router = Router::new(2, RouteSettings::default());
    (0..2).for_each(|replica| router.capacity(replica, links * 1_000));
    router
}

#[test]
fn what_a_home_has_lost_binds_to_no_place() {
    let mut router = with_caches(30);
    serve_on(&mut router, 1, &chain(1, 20), &[true, false], 0, 0.0);
    let stays = decide(&mut router, 1, &chain(1, 21), &[true, true], 0, 30.0);
    assert_eq!((stays.replica, stays.reason), (0, Reason::Session));
    serve_on(&mut router, 2, &chain(2, 25), &[true, false], 0, 10.0);
    let moves = decide(&mut router, 1, &chain(1, 21), &[true, true], 0, 30.0);
    assert!(router.index.cached(chain(1, 21).links())[0] > 0, "some of it is left");
    assert_eq!((moves.replica, moves.reason), (1, Reason::MovedLoad));
}

#[test]
fn a_long_new_turn_leaves_a_home_that_has_all_of_the_turns_before() {
    let mut router = with_caches(1_000);
    for other in 10..20 {
        serve_on(&mut router, other, &chain(other, 10), &[true, false], 0, 0.0);
    }
    serve_on(&mut router, 1, &chain(1, 2), &[true, false], 0, 1.0);
    let decision = decide(&mut router, 1, &chain(1, 12), &[true, true], 0, 30.0);
    assert_eq!((decision.replica, decision.reason), (0, Reason::Session));
}

#[test]
fn a_new_conversation_pushes_out_what_nobody_asks_for_any_more() {
    let mut router = with_caches(30);
    serve_on(&mut router, 1, &chain(1, 29), &[true, false], 0, 0.0);
    serve_on(&mut router, 2, &chain(2, 29), &[false, true], 1, 500.0);
    // One live conversation each.
    serve_on(&mut router, 4, &chain(4, 1), &[true, false], 0, 500.0);
    let short = decide(&mut router, 3, &chain(3, 1), &[true, true], 1, 530.0);
    assert_eq!((short.replica, short.reason), (1, Reason::Ring));
    let long = decide(&mut router, 3, &chain(3, 20), &[true, true], 1, 530.0);
    assert_eq!((long.replica, long.reason), (0, Reason::Ring));
}

#[test]
fn a_prompt_uses_the_cache_when_it_begins_and_not_when_it_is_sent() {
    let mut router = with_caches(50);
    let may = [true, false];
    let send = |router: &mut Router, name: u64, now: f64| {
        let decision = decide(router, name, &chain(name, 20), &may, 0, now);
        router.dispatch(name, &chain(name, 20), &decision, at(now))
    };
    let mut first = send(&mut router, 1, 0.0);
    let mut second = send(&mut router, 2, 1.0);
    router.first_token(&mut first, at(3.0));
    router.ended(first, Used::default(), at(4.0));
    router.first_token(&mut second, at(6.0));
    send(&mut router, 3, 6.5);
    let has = |name: u64| router.index.cached(chain(name, 20).links())[0];
    assert_eq!((has(1), has(2)), (40_000, 80_000), "the second waited for the first");
}

#[test]
fn a_text_keeps_its_own_tokens_a_byte() {
    let mut router = with_caches(1_000);
    let mut tokens_of = |name: u64, now: f64| {
        let decision = decide(&mut router, name, &chain(name, 10), &[true, false], 0, now);
        let ticket = router.dispatch(name, &chain(name, 10), &decision, at(now));
        let tokens = ticket.tokens;
        let used = Used {
            prompt_tokens: Some(name * 4_000),
            ..Used::default()
        };
        let mut ticket = ticket;
        router.first_token(&mut ticket, at(now + 1.0));
        router.ended(ticket, used, at(now + 2.0));
        tokens
    };
    tokens_of(1, 0.0);
    let second = tokens_of(4, 10.0);
    assert!((second - 4_000.0).abs() < 1.0, "as the first: {second}");
    let again = [tokens_of(1, 20.0), tokens_of(4, 30.0)];
    assert!(again[0] < 4_001.0 && again[1] > 15_999.0, "{again:?}");
}

#[test]
fn a_hint_counts_like_a_home_where_nothing_is_known_of_the_session() {
    let all = [true; 3];
    let asked = chain(1, 12);
    let sent = |replica: usize, bytes: u64| {
        Some(Hint {
            replica,
            cached_bytes: bytes,
        })
    };
    // What it is, the hint, is the session named, who may be asked, then what is decided.
    let cases = [
        ("none", None, true, all, 2, 0, Reason::Ring),
        ("its replica", sent(1, 40_000), true, all, 1, 40_000, Reason::Shared),
        ("nothing of this prompt", sent(1, 0), true, all, 1, 0, Reason::Shared),
        (
            "not to be asked",
            sent(1, 40_000),
            true,
            [true, false, true],
            2,
            0,
            Reason::Ring,
        ),
        ("of nobody", sent(7, 40_000), true, all, 2, 0, Reason::Ring),
        // Without a name, only what has this conversation is its home.
        ("unnamed", sent(1, 40_000), false, all, 1, 40_000, Reason::Shared),
        ("unnamed, only alike", sent(1, 4_000), false, all, 2, 0, Reason::Ring),
        // Replica 0 has too much to do.
        ("busy", sent(0, 0), true, all, 1, 0, Reason::MovedLoad),
        ("busy, all cached", sent(0, 48_000), true, all, 1, 0, Reason::MovedLoad),
    ];
    for (what, hint, is_named, may, replica, cached_bytes, reason) in cases {
        let mut router = Router::new(3, RouteSettings::default());
        for other in 10..30 {
            let heavy = decide(&mut router, other, &chain(other, 40), &[true, false, false], 0, 5.0);
            router.dispatch(other, &chain(other, 40), &heavy, at(5.0));
        }
        let question = Question {
            session: 1,
            is_named,
            chain: &asked,
            may: &may,
            hint,
        };
        let decision = router.choose(question, [2].into_iter(), at(5.0)).unwrap();
        let got = (decision.replica, decision.cached_bytes, decision.reason);
        assert_eq!(got, (replica, cached_bytes, reason), "{what}");
    }
}

#[test]
fn what_is_known_here_outweighs_a_hint() {
    let mut router = Router::new(3, RouteSettings::default());
    serve(&mut router, 1, &chain(1, 10), 0, 0.0);
    assert!(router.knows(1, at(5.0)) && !router.knows(2, at(5.0)));
    let question = Question {
        session: 1,
        is_named: true,
        chain: &chain(1, 11),
        may: &[true; 3],
        hint: Some(Hint {
            replica: 2,
            cached_bytes: 44_000,
        }),
    };
    let decision = router.choose(question, [1].into_iter(), at(5.0)).unwrap();
    let got = (decision.replica, decision.cached_bytes, decision.reason);
    assert_eq!(got, (0, 40_000, Reason::Session));
    assert!(!router.knows(1, at(3.0 * 3600.0)), "it was idle for too long");
}

#[test]
fn a_hint_that_was_wrong_teaches_nothing_of_the_cache() {
    let mut router = Router::new(2, RouteSettings::default());
    let before = chain(5, 10);
    serve(&mut router, 5, &before, 1, 0.0);
    let asked = chain(1, 20);
    let question = Question {
        session: 1,
        is_named: true,
        chain: &asked,
        may: &[true; 2],
        hint: Some(Hint {
            replica: 1,
            cached_bytes: 72_000,
        }),
    };
    let decision = router.choose(question, [0].into_iter(), at(10.0)).unwrap();
    assert_eq!((decision.replica, decision.cached_bytes), (1, 72_000));
    let mut ticket = router.dispatch(1, &asked, &decision, at(10.0));
    router.first_token(&mut ticket, at(11.0));
    let used = Used {
        prompt_tokens: Some(20_000),
        cached_tokens: Some(0),
        completion_tokens: Some(10),
    };
    router.ended(ticket, used, at(12.0));
    assert_eq!(router.index.cached(before.links())[1], 40_000);
}
