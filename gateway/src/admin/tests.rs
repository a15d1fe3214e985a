use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream as StdStream};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::*;

/// A running listener; dropped, it stops.
struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl Running {
    async fn start(health: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let state = AdminState {
            metrics: Metrics::new().unwrap(),
            health: Arc::new(move || health.clone()),
        };
        let served = tokio::spawn(serve(listener, state, async {
            let _ = stopped.await;
        }));
        Self {
            address,
            stop: Some(stop),
            served: Some(served),
        }
    }

    async fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        timeout(CLOSE_LIMIT * 3, self.served.take().unwrap())
            .await
            .expect("it ends")
            .unwrap();
    }

    /// What comes back for these bytes until the server closes.
    async fn exchange(&self, request: &'static str) -> String {
        let address = self.address;
        let exchange = tokio::task::spawn_blocking(move || {
            let mut stream = StdStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        exchange.await.unwrap()
    }
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_health_over_a_socket() {
    let mut running = Running::start(json!({"replicas": [{"name": "sim-a", "state": "ready"}]})).await;
    let answer = running
        .exchange("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(body(&answer).contains("\nsluice_build_info{version=\""), "{answer}");

    let answer = running
        .exchange("GET /health?verbose HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let health: Value = serde_json::from_str(body(&answer)).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let wanted = json!({"status": "ok", "version": version, "replicas": [{"name": "sim-a", "state": "ready"}]});
    assert_eq!(health, wanted);

    let head = running
        .exchange("HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body(&head).is_empty(), "{head}");
    running.stop().await;
    assert!(StdStream::connect(running.address).is_err(), "it still listens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_else_is_refused() {
    let running = Running::start(json!({})).await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"),
        ("GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "404"),
        (
            "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "405",
        ),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = running.exchange(request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_can_not_serve_says_503() {
    for (status, code) in [("degraded", "200"), ("draining", "503"), ("down", "503")] {
        let running = Running::start(json!({"status": status})).await;
        let answer = running
            .exchange("GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{status}: {answer}");
    }
}

/// Serves one connection on a pipe of this size, in paused time; tells how long it lived.
async fn lifetime(buffer: usize, request: &str, read: bool) -> (Duration, String) {
    let (near, far) = tokio::io::duplex(buffer);
    let state = AdminState {
        metrics: Metrics::new().unwrap(),
        health: Arc::new(|| json!({})),
    };
    let (_close, closing) = watch::channel(false);
    let began = tokio::time::Instant::now();
    let served = tokio::spawn(async move {
        connection(far, state, closing).await;
        began.elapsed()
    });
    let (mut from, mut to) = tokio::io::split(near);
    to.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    if read {
        from.read_to_string(&mut answer).await.unwrap();
    }
    (
        timeout(CONNECTION_LIMIT * 2, served).await.expect("it ends").unwrap(),
        answer,
    )
}

#[tokio::test(start_paused = true)]
async fn a_slow_head_and_an_idle_connection_are_closed() {
    let about_head_limit = HEAD_LIMIT..HEAD_LIMIT + Duration::from_secs(1);
    let (lived, answer) = lifetime(4_096, "GET /health HTTP/1.1\r\nHo", true).await;
    assert!(about_head_limit.contains(&lived), "{lived:?}");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let (lived, answer) = lifetime(4_096, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n", true).await;
    assert!(about_head_limit.contains(&lived), "{lived:?}");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_loses_its_place() {
    let (lived, _) = lifetime(64, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", false).await;
    assert!(
        (CONNECTION_LIMIT..CONNECTION_LIMIT + Duration::from_secs(1)).contains(&lived),
        "{lived:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_than_places_wait_for_one() {
    let running = Running::start(json!({})).await;
    let address = running.address;
    let held = tokio::task::spawn_blocking(move || {
        (0..CONNECTIONS)
            .map(|_| StdStream::connect(address).unwrap())
            .collect::<Vec<_>>()
    });
    let held = held.await.unwrap();
    // All places are taken once the server has accepted them all: the next one gets no answer.
    let late = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(300));
        let mut late = StdStream::connect(address).unwrap();
        late.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        late.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let early = late.read(&mut [0; 1]);
        assert!(early.is_err(), "it was answered while all places were taken");
        late
    });
    let mut late = late.await.unwrap();
    let (first, held) = held.split_first().unwrap();
    first.shutdown(Shutdown::Both).unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        late.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut answer = String::new();
        late.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answer.await.unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(held.len(), CONNECTIONS - 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_does_not_wait_for_idle_connections() {
    let mut running = Running::start(json!({})).await;
    let address = running.address;
    let idle = tokio::task::spawn_blocking(move || {
        let mut idle = StdStream::connect(address).unwrap();
        idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(idle.read(&mut [0; 1_024]).unwrap() > 0);
        idle
    });
    let _idle = idle.await.unwrap();
    let began = std::time::Instant::now();
    running.stop().await;
    assert!(began.elapsed() < CLOSE_LIMIT * 9 / 10, "{:?}", began.elapsed());
}

#[test]
fn only_loopback_unless_allowed() {
    let config = |text: &str| toml::from_str::<AdminConfig>(text).unwrap();
    assert_eq!(config(""), AdminConfig::default());
    assert_eq!(config("").listen.to_string(), "127.0.0.1:5003");
    for (text, fine) in [
        ("listen = \"127.0.0.1:1\"", true),
        ("listen = \"127.8.8.8:1\"", true),
        ("listen = \"[::1]:1\"", true),
        ("listen = \"[::ffff:127.0.0.1]:1\"", true),
        ("listen = \"0.0.0.0:1\"", false),
        ("listen = \"[::]:1\"", false),
        ("listen = \"10.0.0.1:1\"", false),
        ("listen = \"0.0.0.0:1\"\nallow_remote = true", true),
        ("listen = \"0.0.0.0:1\"\nenabled = false", true),
    ] {
        assert_eq!(config(text).check().is_ok(), fine, "{text}");
    }
    assert!(toml::from_str::<AdminConfig>("listn = \"127.0.0.1:1\"").is_err());
}
