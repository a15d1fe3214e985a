//! Faults on demand, and how they look from outside; clients that leave; limits of the HTTP side.
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sluice_gateway::simulator::{FaultRates, SimConfig, Simulator, Stats};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{CHAT, chat, exchange, get, instant, post, post_with, request, start, start_with_key};

/// Waits until the simulator's numbers are as wanted, or fails after a second.
async fn settle(simulator: &Simulator, wanted: impl Fn(&Stats) -> bool) -> Stats {
    for _ in 0..200 {
        let stats = simulator.stats();
        if wanted(&stats) {
            return stats;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came: {:?}", simulator.stats());
}

fn tokens_of(answer: &crate::client::Answer) -> usize {
    let is_token = |event: &&Value| event["choices"][0]["delta"].get("role").is_none() && event.get("error").is_none();
    answer.events().iter().filter(is_token).count()
}

fn broken(fault: &str, stream: bool) -> Value {
    chat(json!({"stream": stream, "sluice_sim": {"fault": fault, "tokens": 40}}))
}

#[tokio::test]
async fn resets_before_the_head_are_resets() {
    let (_simulator, address) = start(instant()).await;
    for fault in ["reset_before", "refuse"] {
        let answer = post(address, CHAT, &broken(fault, true)).await;
        assert!(answer.is_reset && answer.head.is_empty(), "{fault}: {answer:?}");
    }
    let answer = post_with(address, CHAT, "x-sim-fault: refuse\r\n", &chat(json!({}))).await;
    assert!(answer.is_reset && answer.head.is_empty(), "{answer:?}");
    let answer = post(address, CHAT, &broken("reset_mid:3", false)).await;
    assert!(answer.is_reset && answer.head.is_empty(), "{answer:?}");
}

#[tokio::test]
async fn a_reset_in_mid_stream_comes_after_the_tokens() {
    let (_simulator, address) = start(instant()).await;
    let answer = post(address, CHAT, &broken("reset_mid:5", true)).await;
    assert!(answer.is_reset && !answer.is_complete, "{answer:?}");
    assert_eq!((answer.status(), tokens_of(&answer)), (200, 5));
    let answer = post(address, CHAT, &broken("close_mid:5", true)).await;
    assert!(
        !answer.is_reset && !answer.is_complete,
        "an end of file without a last chunk: {answer:?}"
    );
    assert_eq!(tokens_of(&answer), 5);
}

#[tokio::test]
async fn an_error_event_is_followed_by_done_and_a_proper_end() {
    let (_simulator, address) = start(instant()).await;
    let answer = post(address, CHAT, &broken("error_event:4", true)).await;
    assert!(answer.is_complete && !answer.is_reset);
    // As recorded when the engine was killed (faults/api_sigterm.json), spaces included.
    let end = "data: {\"error\": {\"message\": \"EngineCore encountered an issue. See stack trace (above) for the root \
               cause.\", \"type\": \"InternalServerError\", \"param\": null, \"code\": 500}}\n\ndata: [DONE]\n\n";
    assert!(answer.text().ends_with(end), "{}", answer.text());
    assert_eq!(tokens_of(&answer), 4);
    let whole = post(address, CHAT, &broken("error_event", false)).await;
    assert_eq!(
        (whole.status(), whole.json()["error"]["type"].as_str()),
        (500, Some("InternalServerError"))
    );
}

#[tokio::test]
async fn a_stall_is_silence_and_keeps_the_place_until_the_client_leaves() {
    let (simulator, address) = start(instant()).await;
    let body = broken("stall:3", true).to_string();
    let raw = request("POST", CHAT, "content-type: application/json\r\n", &body);
    let answer = exchange(address, &raw, Duration::from_millis(300)).await;
    assert!(!answer.is_complete && tokens_of(&answer) == 3, "{answer:?}");
    let stats = settle(&simulator, |stats| stats.running == 0).await;
    assert_eq!((stats.aborted, stats.present), (1, 0));
}

#[tokio::test]
async fn a_hang_sends_no_byte_and_is_aborted_with_its_client() {
    let (simulator, address) = start(instant()).await;
    for stream in [true, false] {
        let body = broken("hang", stream).to_string();
        let raw = request("POST", CHAT, "content-type: application/json\r\n", &body);
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&raw).await.unwrap();
        settle(&simulator, |stats| stats.running == 1).await;
        let mut byte = [0];
        assert!(
            tokio::time::timeout(Duration::from_millis(150), socket.read(&mut byte))
                .await
                .is_err()
        );
        drop(socket);
        settle(&simulator, |stats| stats.present == 0).await;
    }
    assert_eq!(simulator.stats().aborted, 2);
}

#[tokio::test]
async fn slow_starts_and_statuses() {
    let (_simulator, address) = start(instant()).await;
    let begin = Instant::now();
    let answer = post(address, CHAT, &broken("slow_start:200", true)).await;
    assert!(answer.is_complete && begin.elapsed() >= Duration::from_millis(200));
    for (status, kind) in [
        (429, "RateLimitError"),
        (500, "InternalServerError"),
        (503, "ServiceUnavailableError"),
    ] {
        let answer = post(address, CHAT, &broken(&format!("status:{status}"), true)).await;
        assert_eq!(
            (answer.status(), answer.json()["error"]["type"].as_str()),
            (status, Some(kind))
        );
    }
}

#[tokio::test]
async fn knobs_come_by_header_body_and_marker_and_wrong_ones_are_named() {
    let (_simulator, address) = start(instant()).await;
    let count = |answer: &crate::client::Answer| answer.json()["usage"]["completion_tokens"].as_u64();
    let by_header = post_with(address, CHAT, "x-sim-tokens: 17\r\n", &chat(json!({}))).await;
    let by_body = post(address, CHAT, &chat(json!({"sluice_sim": {"tokens": 17}}))).await;
    let marked = json!([{"role": "user", "content": "Hi [[sim tokens=17]]"}]);
    let by_marker = post(address, CHAT, &chat(json!({"messages": marked}))).await;
    assert_eq!(
        (count(&by_header), count(&by_body), count(&by_marker)),
        (Some(17), Some(17), Some(17))
    );
    let old = json!([
        {"role": "user", "content": "[[sim fault=status:500]]"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "again"},
    ]);
    assert_eq!(
        post(address, CHAT, &chat(json!({"messages": old}))).await.status(),
        200,
        "a marker hits one turn"
    );
    let wrong = post(address, CHAT, &chat(json!({"sluice_sim": {"tokns": 17}}))).await;
    assert_eq!(wrong.status(), 400);
    assert!(wrong.text().contains("tokns"), "{}", wrong.text());
}

#[tokio::test]
async fn an_exact_text_is_answered_to_the_byte() {
    let (_simulator, address) = start(instant()).await;
    // "<think>a</think>\n\n<tool_call>ü"
    let header = "x-sim-text: PHRoaW5rPmE8L3RoaW5rPgoKPHRvb2xfY2FsbD7DvA==\r\n";
    let answer = post_with(address, CHAT, header, &chat(json!({"stream": true}))).await;
    assert_eq!(answer.content(0), "<think>a</think>\n\n<tool_call>ü");
}

#[tokio::test]
async fn paced_tokens_leave_one_by_one_when_they_are_due() {
    let (_simulator, address) = start(SimConfig::default()).await;
    let body = chat(json!({"stream": true, "sluice_sim": {"tokens": 6, "ttft-ms": 60, "itl-ms": 60}})).to_string();
    let mut socket = TcpStream::connect(address).await.unwrap();
    let raw = request(
        "POST",
        CHAT,
        "content-type: application/json\r\nconnection: close\r\n",
        &body,
    );
    socket.write_all(&raw).await.unwrap();
    let begin = Instant::now();
    let (mut tokens, mut reads, mut buffer) = (0_u64, 0, vec![0; 65_536]);
    loop {
        let count = socket.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        let new = buffer[..count]
            .windows(12)
            .filter(|window| window == b"\"token_ids\":")
            .count() as u64;
        tokens += new;
        reads += u32::from(new > 0);
        // Never early; how late is the machine's affair.
        let due = Duration::from_millis((60 * tokens).saturating_sub(5));
        assert!(begin.elapsed() >= due, "{tokens} tokens after {:?}", begin.elapsed());
    }
    assert_eq!(tokens, 6);
    assert!(reads >= 3, "they came in {reads} reads");
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_or_in_prefill_aborts_its_request() {
    let (simulator, address) = start(SimConfig::default()).await;
    let long = "word ".repeat(20_000);
    let prefill = chat(json!({"stream": true, "messages": [{"role": "user", "content": long}]}));
    let decode = chat(json!({"stream": true, "sluice_sim": {"tokens": 5000, "ttft-ms": 1}}));
    for (body, reads) in [
        (&decode, 3),
        (&prefill, 1),
        (&chat(json!({"sluice_sim": {"tokens": 5000}})), 0),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let raw = request("POST", CHAT, "content-type: application/json\r\n", &body.to_string());
        socket.write_all(&raw).await.unwrap();
        settle(&simulator, |stats| {
            stats.present == 1 && (stats.running == 1 || reads < 3)
        })
        .await;
        for _ in 0..reads {
            assert!(socket.read(&mut [0; 4_096]).await.unwrap() > 0);
        }
        drop(socket);
        let left = Instant::now();
        settle(&simulator, |stats| stats.present == 0).await;
        assert!(left.elapsed() < Duration::from_millis(200), "{:?}", left.elapsed());
    }
    let stats = simulator.stats();
    assert_eq!((stats.aborted, stats.kv_usage), (3, 0.0));
    let page = get(address, "/metrics").await.text();
    assert!(page.contains("finished_reason=\"abort\",model_name=\"Qwen/Qwen3-32B-AWQ-simulated\"} 3.0"));
    assert!(page.contains("vllm:num_requests_running{engine=\"0\",model_name=\"Qwen/Qwen3-32B-AWQ-simulated\"} 0.0"));
}

#[tokio::test]
async fn random_faults_follow_their_rates() {
    let faults = FaultRates {
        status_503: 0.5,
        ..FaultRates::default()
    };
    let (_simulator, address) = start(SimConfig {
        faults,
        seed: 3,
        ..instant()
    })
    .await;
    let mut refused = 0;
    for _ in 0..60 {
        refused += u32::from(
            post(address, CHAT, &chat(json!({"sluice_sim": {"tokens": 2}})))
                .await
                .status()
                == 503,
        );
    }
    assert!((15..45).contains(&refused), "{refused} of 60");
    let all = FaultRates {
        refuse: 1.0,
        ..FaultRates::default()
    };
    let (simulator, address) = start(SimConfig {
        faults: all,
        ..instant()
    })
    .await;
    let answer = get(address, "/health").await;
    assert!(answer.is_reset && answer.head.is_empty(), "{answer:?}");
    assert_eq!(simulator.stats().connections, 1);
}

#[tokio::test]
async fn a_hung_engine_is_silent_while_health_answers() {
    let (simulator, address) = start(instant()).await;
    simulator.set_hung(true);
    let raw = request(
        "POST",
        CHAT,
        "content-type: application/json\r\n",
        &chat(json!({"stream": true})).to_string(),
    );
    let hanging = tokio::spawn(async move { exchange(address, &raw, Duration::from_millis(400)).await });
    assert_eq!(get(address, "/health").await.status(), 200);
    let answer = hanging.await.unwrap();
    assert_eq!(
        (answer.status(), answer.chunks.len()),
        (200, 0),
        "the head, and nothing more"
    );
    assert_eq!(simulator.stats().steps, 0);
}

#[tokio::test]
async fn a_dead_engine_ends_streams_with_an_error_and_refuses_the_rest() {
    let (simulator, address) = start(SimConfig::default()).await;
    let raw = request(
        "POST",
        CHAT,
        "content-type: application/json\r\n",
        &chat(json!({"stream": true})).to_string(),
    );
    let dying = tokio::spawn(async move { exchange(address, &raw, Duration::from_millis(500)).await });
    settle(&simulator, |stats| stats.running == 1).await;
    simulator.kill_engine();
    let answer = dying.await.unwrap();
    assert!(answer.is_complete && answer.text().contains("EngineCore") && answer.text().ends_with("[DONE]\n\n"));
    assert_eq!(post(address, CHAT, &chat(json!({}))).await.status(), 500);
    assert_eq!(get(address, "/health").await.status(), 503);
}

#[tokio::test]
async fn a_shutdown_ends_streams_as_vllm_does_and_closes_the_port() {
    let simulator = Simulator::new(SimConfig::default()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = simulator.clone();
    let server = tokio::spawn(async move { serving.serve(listener, async { drop(stopped.await) }).await });
    let raw = request(
        "POST",
        CHAT,
        "content-type: application/json\r\n",
        &chat(json!({"stream": true})).to_string(),
    );
    let client = tokio::spawn(async move { exchange(address, &raw, Duration::from_secs(3)).await });
    settle(&simulator, |stats| stats.running == 1).await;
    let begin = Instant::now();
    stop.send(()).unwrap();
    server.await.unwrap();
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "an idle end needs no grace: {:?}",
        begin.elapsed()
    );
    let answer = client.await.unwrap();
    assert!(
        answer.is_complete && answer.text().ends_with("data: [DONE]\n\n"),
        "{answer:?}"
    );
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn idle_connections_are_closed_when_uvicorn_would() {
    let (_simulator, address) = start(SimConfig {
        keep_alive: Duration::from_millis(300),
        ..instant()
    })
    .await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        socket.write_all(&request("GET", "/health", "", "")).await.unwrap();
        assert!(socket.read(&mut [0; 4_096]).await.unwrap() > 0);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let begin = Instant::now();
    let read = tokio::time::timeout(Duration::from_secs(2), socket.read(&mut [0; 64]))
        .await
        .expect("closed");
    assert_eq!(read.unwrap(), 0);
    assert!(begin.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn the_key_guards_v1_only_and_bodies_are_limited() {
    let config = SimConfig {
        max_body_bytes: 2_000,
        ..instant()
    };
    let (_simulator, address) = start_with_key(config, Some("sk-test")).await;
    let key = "authorization: Bearer sk-test\r\n";
    assert_eq!(post(address, CHAT, &chat(json!({}))).await.status(), 401);
    assert_eq!(
        post_with(address, CHAT, "authorization: Bearer sk-tes\r\n", &chat(json!({})))
            .await
            .status(),
        401
    );
    assert_eq!(post_with(address, CHAT, key, &chat(json!({}))).await.status(), 200);
    assert_eq!(get(address, "/v1/nothing").await.status(), 401);
    for open in ["/health", "/ping", "/version", "/metrics", "/load"] {
        assert_eq!(get(address, open).await.status(), 200, "{open}");
    }
    let large = chat(json!({"padding": "x".repeat(3_000)}));
    let answer = post_with(address, CHAT, key, &large).await;
    assert_eq!(answer.status(), 413);
    assert!(answer.text().contains("max_body_bytes"));
}

#[tokio::test]
async fn answers_that_would_not_fit_memory_are_refused() {
    let (_simulator, address) = start(instant()).await;
    let many = json!({"n": 1_000, "ignore_eos": true, "max_tokens": 100_000});
    for more in [json!({"min_tokens": 3_000_000_000_u64}), many] {
        let answer = post(address, CHAT, &chat(more)).await;
        assert!(
            answer.status() == 400 && answer.text().contains("2000000 tokens"),
            "{}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn more_connections_than_allowed_are_reset() {
    let (_simulator, address) = start(SimConfig {
        max_connections: 1,
        ..instant()
    })
    .await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(&request("GET", "/health", "", "")).await.unwrap();
    assert!(first.read(&mut [0; 4_096]).await.unwrap() > 0);
    let second = get(address, "/health").await;
    assert!(second.is_reset && second.head.is_empty(), "{second:?}");
}
