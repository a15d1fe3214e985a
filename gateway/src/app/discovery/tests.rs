//! Sources that change and fail, and what of it reaches the configuration.

use super::*;
use crate::config::{BackendConfig, Overrides, SHIPPED};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

fn backend(name: &str, replicas: Vec<ReplicaConfig>, dns: &str) -> BackendConfig {
    BackendConfig {
        discovery: DiscoveryConfig {
            dns: dns.to_owned(),
            ..DiscoveryConfig::default()
        },
        ..BackendConfig::new(name, replicas)
    }
}

fn config(backends: Vec<BackendConfig>) -> Config {
    let shipped = Config::parse("built-in", SHIPPED, &Overrides::default()).unwrap();
    Config {
        backend: backends,
        ..shipped
    }
}

/// Finders whose tasks never find anything by themselves.
fn finders(config: &Config) -> (Finders, mpsc::Receiver<News>) {
    let (tell, news) = mpsc::channel(PENDING);
    let all = config.backend.iter().filter(|backend| backend.discovery.is_enabled());
    let all = all.map(|backend| Finder {
        settings: backend.discovery.clone(),
        found: Found::new(),
        has_looked: false,
        task: tokio::spawn(std::future::pending()),
    });
    let finders = Finders {
        all: all.collect(),
        of: config
            .backend
            .iter()
            .map(|backend| (backend.name.clone(), backend.discovery.clone()))
            .collect(),
        tell,
        metrics: Metrics::new().unwrap(),
    };
    (finders, news)
}

fn found(pairs: &[(&str, &str)]) -> Found {
    let pairs = pairs.iter();
    pairs
        .map(|(name, url)| ((*name).to_owned(), (*url).to_owned()))
        .collect()
}

fn names(config: &Config) -> Vec<&str> {
    let replicas = config.backend.iter().flat_map(|backend| &backend.replica);
    replicas.map(|replica| replica.name.as_str()).collect()
}

#[tokio::test]
async fn what_is_found_stands_beside_what_is_named_and_never_twice() {
    let config = config(vec![
        backend(
            "one",
            vec![ReplicaConfig::external("static", "http://10.0.0.1:8000/")],
            "vllm:8000",
        ),
        backend("two", vec![ReplicaConfig::external("other", "http://10.9.9.9:1")], ""),
    ]);
    let (mut finders, _news) = finders(&config);
    assert_eq!(names(&finders.complete(&config)), ["static", "other"]);
    let settings = config.backend[0].discovery.clone();
    let news = found(&[
        ("10.0.0.1-8000", "http://10.0.0.1:8000"),
        ("10.0.0.2-8000", "http://10.0.0.2:8000"),
        ("other", "http://10.0.0.3:8000"),
    ]);
    assert!(finders.is_awaited("one") && !finders.is_awaited("two"));
    let failed = |settings: &DiscoveryConfig| News {
        settings: settings.clone(),
        found: None,
    };
    assert!(!finders.heard(failed(&settings)), "a failed look changes nothing");
    assert!(!finders.is_awaited("one"), "and nobody waits for another one");
    let news = News {
        settings,
        found: Some(news),
    };
    assert!(finders.heard(news));
    let complete = finders.complete(&config);
    assert_eq!(names(&complete), ["static", "10.0.0.2-8000", "other"]);
    let strange = DiscoveryConfig {
        dns: "gone:1".to_owned(),
        ..DiscoveryConfig::default()
    };
    assert!(!finders.heard(News {
        settings: strange,
        found: Some(Found::new())
    }));
}

#[tokio::test]
async fn another_source_takes_over_when_it_has_answered() {
    let mut config = config(vec![backend("one", vec![], "vllm:8000")]);
    let (mut finders, _news) = finders(&config);
    let before = found(&[("10.0.0.1-8000", "http://10.0.0.1:8000")]);
    finders.heard(News {
        settings: config.backend[0].discovery.clone(),
        found: Some(before),
    });
    config.backend[0].discovery.interval = Duration::from_secs(1);
    finders.follow(&config);
    assert_eq!(names(&finders.complete(&config)), ["10.0.0.1-8000"]);
    assert_eq!(finders.all.len(), 1, "nobody looks where nothing is wanted from");
    config.backend[0].discovery = DiscoveryConfig::default();
    finders.follow(&config);
    assert_eq!((names(&finders.complete(&config)).len(), finders.all.len()), (0, 0));
}

#[tokio::test]
async fn no_backend_has_more_than_its_limit() {
    let config = config(vec![backend("one", vec![], "https://vllm:8000")]);
    let (mut finders, _news) = finders(&config);
    let many = (0..1000).map(|i| (format!("r{i:04}"), format!("https://10.0.{}.{}:8000", i / 250, i % 250)));
    finders.heard(News {
        settings: config.backend[0].discovery.clone(),
        found: Some(many.collect()),
    });
    let complete = finders.complete(&config);
    assert_eq!(complete.backend[0].replica.len(), REPLICAS_MAX);
    assert_eq!(names(&complete)[REPLICAS_MAX - 1], "r0255");
    assert_eq!(
        complete.backend[0].tls.server_name, "vllm",
        "certificates are for the name"
    );
}

type Answer = io::Result<Vec<SocketAddr>>;

/// Looks up what it is told, one answer a look; the last one for ever.
async fn looks(answers: Vec<Answer>) -> (Vec<Found>, String) {
    let answers = Arc::new(Mutex::new(answers.into_iter().rev().collect::<Vec<_>>()));
    let ended = Arc::<tokio::sync::Notify>::default();
    let (left, done) = (answers.clone(), ended.clone());
    let lookup = Box::new(move |name: String| {
        assert_eq!(name, "vllm:8000");
        let next = left.lock().unwrap().pop();
        let done = done.clone();
        let answer: futures_util::future::BoxFuture<'static, Answer> = Box::pin(async move {
            match next {
                Some(answer) => answer,
                None => {
                    done.notify_one();
                    std::future::pending().await
                }
            }
        });
        answer
    });
    let source = Box::new(Dns::by(lookup, "vllm:8000", Duration::from_secs(10)));
    let (tell, mut news) = mpsc::channel(PENDING);
    let metrics = Metrics::new().unwrap();
    let task = tokio::spawn(look(source, DiscoveryConfig::default(), tell, metrics.clone()));
    ended.notified().await;
    task.abort();
    let mut heard = Vec::new();
    while let Ok(news) = news.try_recv() {
        heard.extend(news.found);
    }
    (heard, metrics.render())
}

#[tokio::test(start_paused = true)]
async fn each_other_answer_is_told_and_a_failed_or_empty_one_changes_nothing() {
    let at = |ips: &[&str]| -> Answer {
        Ok(ips
            .iter()
            .map(|ip| SocketAddr::new(ip.parse().unwrap(), 8000))
            .collect())
    };
    let failed = || -> Answer { Err(io::Error::other("SERVFAIL")) };
    let (heard, metrics) = looks(vec![
        failed(),
        at(&["10.0.0.2", "10.0.0.1"]),
        at(&["10.0.0.1", "10.0.0.2"]),
        failed(),
        at(&[]),
        at(&["10.0.0.1", "10.0.0.2"]),
        at(&["10.0.0.2", "fd00::1", "::ffff:10.0.0.3"]),
    ])
    .await;
    let both = found(&[
        ("10.0.0.1-8000", "http://10.0.0.1:8000"),
        ("10.0.0.2-8000", "http://10.0.0.2:8000"),
    ]);
    let later = found(&[
        ("10.0.0.2-8000", "http://10.0.0.2:8000"),
        ("10.0.0.3-8000", "http://10.0.0.3:8000"),
        ("v6-fd00--1-8000", "http://[fd00::1]:8000"),
    ]);
    assert_eq!(heard, [both, later]);
    assert!(metrics.contains("sluice_discovery_failures_total 3"), "{metrics}");
}

#[tokio::test]
async fn the_system_looks_names_up() {
    let dns = Dns::new("localhost:8000", Duration::from_secs(10));
    let found = dns.discover().await.unwrap();
    assert_eq!(
        found.get("127.0.0.1-8000").map(String::as_str),
        Some("http://127.0.0.1:8000")
    );
    let nowhere = Dns::new("nowhere.invalid:8000", Duration::from_secs(10));
    assert!(matches!(nowhere.discover().await, Err(DiscoveryError::Lookup { .. })));
}
