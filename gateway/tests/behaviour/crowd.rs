//! Two thousand streams at once, and nothing is left of them.

use futures_util::future::join_all;
use serde_json::json;
use sluice_gateway::simulator::{SimConfig, Simulator};
use std::time::Duration;
use tokio::net::TcpListener;

use super::harness::{Gateway, Request, Settings, until};

const STREAMS: usize = 2_000;
/// The streams are begun over this time.
const RAMP: Duration = Duration::from_secs(3);
/// Tokens of an answer, and the time between two of them.
const TOKENS: u32 = 16;
const ITL_MS: u32 = 400;
/// What the resident memory of a process may differ by for other reasons than a crowd.
const SLACK_KIB: u64 = 4 << 10;
/// A machine too slow to begin them all before the first one ends gets streams twice as long, so many times.
const SLOWER: u32 = 3;

/// Descriptors that the gateway has open, and its resident memory in KiB.
fn held(gateway: &Gateway) -> (usize, u64) {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
        .unwrap()
        .count();
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (descriptors, resident.trim().trim_end_matches(" kB").parse().unwrap())
}

/// All of them, from the first to the last byte; what the gateway held when all ran at once, if they did.
async fn crowd(gateway: &Gateway, simulators: &[Simulator], itl_ms: u32) -> Option<(usize, u64)> {
    let running = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let present: u32 = simulators.iter().map(|simulator| simulator.stats().present).sum();
            if present as usize >= STREAMS {
                return held(gateway);
            }
        }
    };
    let streams = join_all((0..STREAMS).map(async |n| {
        tokio::time::sleep(RAMP * n as u32 / STREAMS as u32).await;
        let body = json!({
            "stream": true, "max_tokens": TOKENS, "messages": [{"role": "user", "content": format!("question {n}")}],
            "sluice_sim": {"tokens": TOKENS, "itl_ms": itl_ms, "ttft_ms": 100},
        });
        let request = Request::post("/v1/chat/completions", &body).session(&format!("s{n}"));
        let answer = gateway.ask(request).await;
        let chunks = answer.chunks();
        let ends = chunks
            .iter()
            .filter(|chunk| chunk["choices"][0]["finish_reason"].is_string())
            .count();
        assert_eq!(ends, 1, "{}", answer.text());
    }));
    let (mut running, mut streams) = (std::pin::pin!(running), std::pin::pin!(streams));
    tokio::select! {
        held = &mut running => {
            streams.await;
            Some(held)
        }
        _ = &mut streams => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_paced_streams_at_once_without_an_error_and_nothing_is_left_of_them() {
    raise_descriptors();
    let mut addresses = Vec::new();
    let mut simulators = Vec::new();
    for seed in 0..2 {
        let config = SimConfig {
            max_num_seqs: 4_096,
            // a busy machine may take long between a connection and its first request
            keep_alive: super::harness::PATIENCE,
            seed,
            ..SimConfig::default()
        };
        let simulator = Simulator::new(config).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        simulators.push(simulator.clone());
        tokio::spawn(async move { simulator.serve(listener, std::future::pending()).await });
    }
    let gateway = Settings::external(simulators[0].model(), &addresses)
        .set("upstream", "idle = \"1s\"")
        // The runtime without stealing, which the other tests don't have.
        .set("server", "work_stealing = false")
        .start()
        .await;
    let before = held(&gateway);
    // The index of conversations and the tables grow with the first crowd, which stays; the streams' own memory goes back.
    let mut settled = Vec::new();
    for _ in 0..2 {
        let mut at_once = None;
        for slower in 0..SLOWER {
            at_once = crowd(&gateway, &simulators, ITL_MS << slower).await;
            if at_once.is_some() {
                break;
            }
        }
        let at_once = at_once.expect("all streams run at once");
        // A connection or two may be between two states when they are counted.
        assert!(
            at_once.0 + 50 >= before.0 + 2 * STREAMS,
            "not all streams ran at once: {before:?}, {at_once:?}"
        );
        // Idle connections to the replicas are closed after a second, then descriptors are as before; pages that nobody needs go back
        // over some ten seconds.
        let after = until("its descriptors are closed and its memory is given back", async || {
            let now = held(&gateway);
            (now.0 <= before.0 + 8 && now.1 < before.1 + at_once.1.saturating_sub(before.1) / 2).then_some(now)
        })
        .await;
        println!(
            "descriptors and resident KiB: {before:?} before, {at_once:?} with {STREAMS} streams, {after:?} after"
        );
        settled.push(after.1);
        assert!(simulators.iter().all(|simulator| simulator.stats().present == 0));
        let health = gateway.ask(Request::get("/health")).await.json();
        assert!(
            health["replicas"]
                .as_array()
                .unwrap()
                .iter()
                .all(|replica| replica["in_flight"] == 0),
            "{health}"
        );
    }
    let [first, second] = settled[..] else { unreachable!() };
    assert!(
        second < first + first.saturating_sub(before.1) / 2 + SLACK_KIB,
        "memory grows with each crowd: {before:?}, {settled:?} KiB"
    );
}

fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = 4 * STREAMS as u64 + 500;
    let current = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    assert!(
        current >= wanted,
        "this test needs {wanted} descriptors and may have {current}"
    );
    if limit.current.is_some_and(|now| now < current) {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(current),
                maximum: limit.maximum,
            },
        )
        .unwrap();
    }
}
