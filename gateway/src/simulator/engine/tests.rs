//! The engine model in virtual time.
use super::super::config::Gpu;
use super::super::script::Limits;
use super::*;

/// A prompt of `tokens` tokens; different `from`s share nothing.
fn prompt(from: u32, tokens: u32) -> Chain {
    let mut chain = Chain::new(0);
    (from..from + tokens).for_each(|id| chain.push(id));
    chain
}

fn job(prompt: Chain, tokens: u32) -> Job {
    let text = " word".repeat(tokens as usize - 1);
    let script = Script::new(
        text,
        &Limits {
            max_tokens: tokens,
            ..Limits::default()
        },
    );
    assert_eq!(script.tokens(), tokens);
    let script = Arc::new(script);
    Job {
        prompt,
        script,
        ttft: None,
        itl: None,
        stuck_after: None,
        max_tokens: tokens,
    }
}

fn core(config: SimConfig) -> Core {
    Core::new(&config)
}

/// Runs until nothing is left to do; each token with its instant.
fn run(core: &mut Core, mut now: Duration) -> Vec<(Duration, Reached)> {
    let mut all = Vec::new();
    for _ in 0..1_000_000 {
        let mut reached = Vec::new();
        let next = core.advance(now, &mut reached);
        all.extend(reached.into_iter().map(|one| (now, one)));
        match next {
            Next::Now => {}
            Next::At(at) => now = at,
            Next::Idle => return all,
        }
    }
    panic!("the engine never came to rest");
}

/// Time to the first token of each sequence.
fn firsts(run: &[(Duration, Reached)]) -> HashMap<u64, f64> {
    let firsts = run.iter().filter(|(_, one)| one.produced == 1);
    firsts.map(|(at, one)| (one.id, at.as_secs_f64())).collect()
}

fn submit(core: &mut Core, job: Job, now: Duration) -> u64 {
    core.submit(vec![job], now).unwrap()[0]
}

fn is_near(value: f64, wanted: f64, share: f64) -> bool {
    (value - wanted).abs() <= wanted * share
}

#[test]
fn the_h100_preset_meets_the_measured_times() {
    let measured = [
        (1_024, 98.8, 26.9),
        (4_096, 371.9, 41.0),
        (16_384, 1_737.0, 65.2),
        (65_536, 11_794.0, 169.7),
    ];
    for (tokens, cold_ms, warm_ms) in measured {
        let mut core = core(SimConfig::default());
        let first = submit(&mut core, job(prompt(0, tokens), 1), Duration::ZERO);
        let cold = firsts(&run(&mut core, Duration::ZERO))[&first] * 1_000.0;
        let again = Duration::from_secs(60);
        let second = submit(&mut core, job(prompt(0, tokens), 1), again);
        let warm = (firsts(&run(&mut core, again))[&second] - 60.0) * 1_000.0;
        assert!(is_near(cold, cold_ms, 0.1), "cold {tokens}: {cold} against {cold_ms}");
        assert!(is_near(warm, warm_ms, 0.2), "warm {tokens}: {warm} against {warm_ms}");
    }
    let mut core = core(SimConfig::default());
    submit(&mut core, job(prompt(0, 1_000), 101), Duration::ZERO);
    let tokens = run(&mut core, Duration::ZERO);
    let rate = 100.0 / (tokens[100].0 - tokens[0].0).as_secs_f64();
    assert!((64.0..75.0).contains(&rate), "{rate} tokens/s");
}

#[test]
fn the_4090_preset_meets_the_reported_times() {
    let mut core = core(SimConfig {
        gpu: Gpu::Rtx4090x2,
        ..SimConfig::default()
    });
    let first = submit(&mut core, job(prompt(0, 8_192), 1), Duration::ZERO);
    let cold = firsts(&run(&mut core, Duration::ZERO))[&first];
    let second = submit(&mut core, job(prompt(0, 8_192), 1), Duration::from_secs(60));
    let warm = firsts(&run(&mut core, Duration::from_secs(60)))[&second] - 60.0;
    assert!(
        is_near(cold, 2.928, 0.03) && is_near(warm, 0.908, 0.03),
        "{cold} {warm}"
    );
}

#[test]
fn cached_tokens_are_whole_blocks_and_never_the_whole_prompt() {
    let mut core = core(SimConfig {
        speed: 0.0,
        ..SimConfig::default()
    });
    let mut cached = |tokens: u32| {
        let id = submit(&mut core, job(prompt(0, tokens), 1), Duration::ZERO);
        let run = run(&mut core, Duration::ZERO);
        run.iter().find(|(_, one)| one.id == id).unwrap().1.cached
    };
    assert_eq!(
        (cached(40), cached(40), cached(100), cached(100), cached(112)),
        (0, 32, 32, 96, 96)
    );
    assert_eq!(
        cached(112),
        96,
        "the last block is computed again, or there is no logit to sample from"
    );
    assert_eq!(
        core.tally.prefix(),
        (40 + 40 + 100 + 100 + 112 + 112, 32 + 32 + 96 + 96 + 96)
    );
}

#[test]
fn an_answer_is_found_in_the_next_turn() {
    let mut core = core(SimConfig {
        speed: 0.0,
        ..SimConfig::default()
    });
    let first = job(prompt(0, 16), 33);
    let mut next = first.prompt.clone();
    first.script.ids.iter().for_each(|id| next.push(*id));
    (0..16).for_each(|id| next.push(id));
    submit(&mut core, first, Duration::ZERO);
    run(&mut core, Duration::ZERO);
    let id = submit(&mut core, job(next, 1), Duration::ZERO);
    let second = run(&mut core, Duration::ZERO);
    assert_eq!(second.iter().find(|(_, one)| one.id == id).unwrap().1.cached, 48);
}

#[test]
fn without_prefix_caching_nothing_is_cached() {
    let mut core = core(SimConfig {
        speed: 0.0,
        prefix_caching: false,
        ..SimConfig::default()
    });
    for _ in 0..2 {
        submit(&mut core, job(prompt(0, 64), 1), Duration::ZERO);
        assert!(run(&mut core, Duration::ZERO).iter().all(|(_, one)| one.cached == 0));
    }
}

#[test]
fn beyond_max_num_seqs_the_first_come_is_the_first_served() {
    let mut core = core(SimConfig {
        max_num_seqs: 2,
        ..SimConfig::default()
    });
    let ids: Vec<u64> = (0..5)
        .map(|n| submit(&mut core, job(prompt(n * 1_000, 32), 10), Duration::ZERO))
        .collect();
    let mut reached = Vec::new();
    let mut now = Duration::ZERO;
    while core.running() == 0 {
        let Next::At(at) = core.advance(now, &mut reached) else {
            continue;
        };
        now = at;
    }
    assert_eq!((core.running(), core.waiting()), (2, 3));
    let firsts = firsts(&run(&mut core, now));
    assert!(ids.windows(2).all(|pair| firsts[&pair[0]] <= firsts[&pair[1]]));
    assert!(firsts[&ids[4]] > firsts[&ids[0]] + 0.2);
    assert_eq!((core.present(), core.kv_usage()), (0, 0.0));
}

#[test]
fn a_long_prefill_slows_the_decode_of_others_by_its_chunks() {
    let gap = |with_prefill: bool, chunk: u32| {
        let mut core = core(SimConfig {
            max_num_batched_tokens: chunk,
            ..SimConfig::default()
        });
        let id = submit(&mut core, job(prompt(0, 32), 60), Duration::ZERO);
        if with_prefill {
            submit(&mut core, job(prompt(9_000, 16_000), 1), Duration::ZERO);
        }
        let run = run(&mut core, Duration::ZERO);
        let times: Vec<f64> = run
            .iter()
            .filter(|(_, one)| one.id == id)
            .map(|(at, _)| at.as_secs_f64())
            .collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max)
    };
    assert!(is_near(gap(false, 8_192), 0.0143, 0.05));
    assert!(
        gap(true, 8_192) > 0.6,
        "a chunk of 8,192 tokens takes two thirds of a second"
    );
    assert!(
        (0.03..0.15).contains(&gap(true, 512)),
        "small chunks disturb less: {}",
        gap(true, 512)
    );
}

#[test]
fn when_blocks_run_out_the_youngest_is_preempted_and_still_completes() {
    let mut core = core(SimConfig {
        num_gpu_blocks: 20,
        ..SimConfig::default()
    });
    let old = submit(&mut core, job(prompt(0, 96), 100), Duration::ZERO);
    let young = submit(&mut core, job(prompt(5_000, 96), 100), Duration::ZERO);
    let run = run(&mut core, Duration::ZERO);
    let last = |id: u64| run.iter().rfind(|(_, one)| one.id == id).unwrap();
    assert!(core.tally.preemptions() >= 1);
    assert!(last(old).1.is_last && last(young).1.is_last && last(old).0 < last(young).0);
    let produced: Vec<u32> = run
        .iter()
        .filter(|(_, one)| one.id == young)
        .map(|(_, one)| one.produced)
        .collect();
    assert_eq!(produced, (1..=100).collect::<Vec<_>>(), "no token is produced twice");
    assert_eq!(core.kv_usage(), 0.0);
}

#[test]
fn what_never_fits_and_what_is_too_much_is_turned_away() {
    let mut core = core(SimConfig {
        num_gpu_blocks: 4,
        max_waiting_seqs: 2,
        ..SimConfig::default()
    });
    assert!(core.submit(vec![job(prompt(0, 60), 10)], Duration::ZERO).is_none());
    let small = || job(prompt(0, 16), 2);
    assert!(core.submit(vec![small(), small()], Duration::ZERO).is_some());
    assert!(core.submit(vec![small()], Duration::ZERO).is_none());
    run(&mut core, Duration::ZERO);
    assert!(core.submit(vec![small()], Duration::ZERO).is_some());
}

#[test]
fn an_aborted_sequence_frees_its_place_at_once() {
    let mut core = core(SimConfig {
        max_num_seqs: 1,
        ..SimConfig::default()
    });
    let first = submit(&mut core, job(prompt(0, 64), 1_000), Duration::ZERO);
    let second = submit(&mut core, job(prompt(500, 64), 3), Duration::ZERO);
    let mut reached = Vec::new();
    let mut now = Duration::ZERO;
    while !reached.iter().any(|one: &Reached| one.produced == 5) {
        let Next::At(at) = core.advance(now, &mut reached) else {
            continue;
        };
        now = at;
    }
    assert_eq!(core.abort(&[first]), 1);
    assert_eq!((core.running(), core.kv_usage()), (0, 0.0));
    assert_eq!(core.abort(&[first]), 0, "once only");
    let rest = run(&mut core, now);
    assert!(rest.iter().all(|(_, one)| one.id == second) && rest.len() == 3);
}

#[test]
fn a_pace_of_its_own_is_exact_and_costs_others_nothing() {
    let mut core = core(SimConfig::default());
    let (ttft, itl) = (Duration::from_millis(123), Duration::from_millis(7));
    let paced = submit(
        &mut core,
        Job {
            ttft: Some(ttft),
            itl: Some(itl),
            ..job(prompt(0, 5_000), 50)
        },
        Duration::ZERO,
    );
    let times: Vec<Duration> = run(&mut core, Duration::ZERO)
        .into_iter()
        .filter(|(_, one)| one.id == paced)
        .map(|(at, _)| at)
        .collect();
    assert_eq!(times, (0..50).map(|n| ttft + itl * n).collect::<Vec<_>>());
    let half = submit(
        &mut core,
        Job {
            itl: Some(itl),
            ..job(prompt(0, 64), 10)
        },
        Duration::ZERO,
    );
    let run = run(&mut core, Duration::ZERO);
    let times: Vec<Duration> = run
        .iter()
        .filter(|(_, one)| one.id == half)
        .map(|(at, _)| *at)
        .collect();
    assert!(times.windows(2).all(|pair| pair[1] - pair[0] == itl));
}

#[test]
fn a_stuck_sequence_keeps_its_place_and_the_engine_goes_on() {
    let mut core = core(SimConfig::default());
    let stuck = submit(
        &mut core,
        Job {
            stuck_after: Some(3),
            ..job(prompt(0, 64), 10)
        },
        Duration::ZERO,
    );
    let other = submit(&mut core, job(prompt(500, 64), 10), Duration::ZERO);
    let run = run(&mut core, Duration::ZERO);
    let count = |id| run.iter().filter(|(_, one)| one.id == id).count();
    assert_eq!((count(stuck), count(other), core.running()), (3, 10, 1));
    assert_eq!(core.abort(&[stuck]), 1);
    assert_eq!(core.running(), 0);
}

#[test]
fn a_hung_engine_makes_no_step_until_it_goes_on() {
    let mut core = core(SimConfig {
        speed: 0.0,
        ..SimConfig::default()
    });
    submit(&mut core, job(prompt(0, 64), 10), Duration::ZERO);
    core.set_hung(true);
    assert!(run(&mut core, Duration::from_secs(5)).is_empty());
    assert_eq!(core.tally.steps(), 0);
    core.set_hung(false);
    assert_eq!(run(&mut core, Duration::from_secs(6)).len(), 10);
    assert_eq!(core.tally.steps(), 10);
}

#[test]
fn speed_divides_every_time() {
    let last = |speed: f64| {
        let mut core = core(SimConfig {
            speed,
            ..SimConfig::default()
        });
        submit(&mut core, job(prompt(0, 4_096), 20), Duration::ZERO);
        run(&mut core, Duration::ZERO).last().unwrap().0.as_secs_f64()
    };
    assert!(is_near(last(10.0) * 10.0, last(1.0), 0.01));
    assert_eq!(last(0.0), 0.0);
}

#[test]
fn crowds_that_do_not_fit_are_served_to_the_last_token() {
    let mut core = core(SimConfig {
        num_gpu_blocks: 40,
        max_num_seqs: 8,
        ..SimConfig::default()
    });
    let paced = Job {
        ttft: Some(Duration::from_millis(5)),
        ..job(prompt(90_000, 64), 60)
    };
    let mut ids = vec![submit(&mut core, paced, Duration::ZERO)];
    ids.extend((0..12).map(|n| submit(&mut core, job(prompt(n * 1_000, 64), 120), Duration::ZERO)));
    let run = run(&mut core, Duration::ZERO);
    for (place, id) in ids.iter().enumerate() {
        let produced: Vec<u32> = run
            .iter()
            .filter(|(_, one)| one.id == *id)
            .map(|(_, one)| one.produced)
            .collect();
        let wanted = if place == 0 { 60 } else { 120 };
        assert_eq!(produced, (1..=wanted).collect::<Vec<_>>());
    }
    assert!(core.tally.preemptions() > 3);
    assert_eq!((core.present(), core.running(), core.kv_usage()), (0, 0, 0.0));
}

#[test]
fn a_sequence_that_is_stuck_from_the_start_produces_nothing() {
    let mut core = core(SimConfig::default());
    let stuck = Job {
        stuck_after: Some(0),
        ..job(prompt(0, 64), 10)
    };
    submit(&mut core, stuck, Duration::ZERO);
    assert!(run(&mut core, Duration::ZERO).is_empty());
    assert_eq!(core.running(), 1);
}
