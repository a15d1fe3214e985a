//! What a scraper gets, read by a strict parser of the text format, and what an observation costs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::*;

/// One sample: its labels in order, and its value.
type Sample = (Vec<(String, String)>, f64);

/// One metric family as scraped.
#[derive(Debug)]
struct Family {
    kind: String,
    /// By full sample name (`_bucket`, `_sum` and `_count` included).
    samples: BTreeMap<String, Vec<Sample>>,
}

/// Parses the text format 0.0.4 and refuses everything that it doesn't allow, and some that only Prometheus' linter
/// refuses: a family without help, one that comes twice, names and types that don't fit, repeated series, histograms that
/// fall or don't end in their count.
fn parse(text: &str) -> BTreeMap<String, Family> {
    assert!(text.ends_with('\n'), "the last line must end");
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = None::<String>;
    let mut help = None::<String>;
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect(line);
            assert!(help.is_none() && !words.trim().is_empty(), "{line}");
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect(line);
            assert_eq!(help.take().as_deref(), Some(name), "help comes before type: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(
                kind == "counter",
                name.ends_with("_total"),
                "counters and only they end in _total: {line}"
            );
            let family = Family {
                kind: kind.to_owned(),
                samples: BTreeMap::new(),
            };
            assert!(
                families.insert(name.to_owned(), family).is_none(),
                "it comes twice: {line}"
            );
            current = Some(name.to_owned());
        } else {
            let (name, labels, value) = sample(line);
            let family_name = current.as_ref().expect("a sample without a family");
            let family = families.get_mut(family_name).unwrap();
            let suffix = name
                .strip_prefix(family_name.as_str())
                .unwrap_or_else(|| panic!("{line} in {family_name}"));
            let suffixes: &[&str] = if family.kind == "histogram" {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            assert!(suffixes.contains(&suffix), "{line}");
            let mut sorted = labels.clone();
            sorted.sort();
            assert!(series.insert((name.clone(), sorted)), "the series comes twice: {line}");
            family.samples.entry(name).or_default().push((labels, value));
        }
    }
    families
        .iter()
        .filter(|(_, family)| family.kind == "histogram")
        .for_each(|(name, family)| histogram(name, family));
    families
}

fn sample(line: &str) -> (String, Vec<(String, String)>, f64) {
    let name_end = line.find(['{', ' ']).expect(line);
    let (name, rest) = line.split_at(name_end);
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    assert!(
        name.chars().all(legal) && !name.starts_with(|c: char| c.is_ascii_digit()),
        "{line}"
    );
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(behind) => labels(line, behind),
        None => (Vec::new(), rest),
    };
    let value = rest.strip_prefix(' ').expect(line);
    assert!(!value.contains(' '), "no timestamps: {line}");
    (name.to_owned(), labels, value.parse().expect(line))
}

/// From behind the opening brace; also returns what follows the closing one.
fn labels<'a>(line: &str, mut rest: &'a str) -> (Vec<(String, String)>, &'a str) {
    let mut labels = Vec::<(String, String)>::new();
    loop {
        let (name, behind) = rest.split_once("=\"").expect(line);
        assert!(
            name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.starts_with("__"),
            "{line}"
        );
        assert!(
            labels.iter().all(|(known, _)| known != name),
            "a label comes twice: {line}"
        );
        let mut value = String::new();
        let mut chars = behind.char_indices();
        let end = loop {
            let (at, c) = chars.next().expect(line);
            match c {
                '"' => break at + 1,
                '\\' => value.push(match chars.next().expect(line).1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    other => panic!("illegal escape {other:?}: {line}"),
                }),
                c => value.push(c),
            }
        };
        labels.push((name.to_owned(), value));
        rest = &behind[end..];
        match rest.split_at(1) {
            (",", more) => rest = more,
            ("}", more) => return (labels, more),
            _ => panic!("{line}"),
        }
    }
}

fn histogram(name: &str, family: &Family) {
    let of = |suffix: &str| {
        family
            .samples
            .get(&format!("{name}{suffix}"))
            .cloned()
            .unwrap_or_default()
    };
    let (sums, counts) = (of("_sum"), of("_count"));
    assert!(!counts.is_empty() && sums.len() == counts.len(), "{name}");
    let mut buckets = BTreeMap::<_, Vec<(f64, f64)>>::new();
    for (mut labels, value) in of("_bucket") {
        let at = labels
            .iter()
            .position(|(label, _)| label == "le")
            .expect("a bucket has a bound");
        let (_, bound) = labels.remove(at);
        let bound = if bound == "+Inf" {
            f64::INFINITY
        } else {
            bound.parse().unwrap()
        };
        buckets.entry(labels).or_default().push((bound, value));
    }
    assert_eq!(buckets.len(), counts.len(), "{name}");
    for (labels, buckets) in buckets {
        assert!(
            buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
            "{name} {labels:?}: {buckets:?}"
        );
        let count = counts
            .iter()
            .find(|(of, _)| *of == labels)
            .expect("each series has a count")
            .1;
        assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, count), "{name} {labels:?}");
    }
}

/// The value of the one series of this name that has these labels and no others, if there is one.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut wanted = labels
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect::<Vec<_>>();
    wanted.sort();
    let samples = families.values().find_map(|family| family.samples.get(name))?;
    samples.iter().find_map(|(labels, value)| {
        let mut labels = labels.clone();
        labels.sort();
        (labels == wanted).then_some(*value)
    })
}

fn record() -> Record {
    let ms = Duration::from_millis;
    Record {
        endpoint: "chat",
        model: "qwen3".to_owned(),
        replica: "sim-a".to_owned(),
        attempts: 1,
        stream: true,
        prompt_tokens: Some(1_000),
        cached_tokens: Some(900),
        completion_tokens: Some(200),
        reasoning_tokens: Some(50),
        queue: ms(2),
        ttft_engine: Some(ms(39)),
        ttft_client: Some(ms(41)),
        tpot: Some(ms(15)),
        tool_hold: ms(20),
        tool_calls: 1,
        duration: ms(3_000),
        status: 200,
        ..Record::default()
    }
}

#[test]
fn a_request_is_counted_under_its_labels() {
    let metrics = Metrics::new().unwrap();
    metrics.observe(&record());
    metrics.observe(&Record {
        cached_tokens: Some(0),
        ttft_client: Some(Duration::from_secs(2)),
        ..record()
    });
    metrics.observe(&Record {
        cached_tokens: None,
        ..record()
    });
    let left = Record {
        cancelled: true,
        error: Some("cancelled".to_owned()),
        status: 0,
        ..record()
    };
    metrics.observe(&left);
    let failed = Record {
        error: Some("upstream_ended".to_owned()),
        error_side: Some("upstream"),
        ..record()
    };
    metrics.observe(&failed);
    let refused = Record {
        endpoint: "chat",
        status: 401,
        error_side: Some("downstream"),
        ..Record::default()
    };
    metrics.observe(&refused);
    let gaps = [
        (Duration::from_millis(14), 190),
        (Duration::from_millis(45), 9),
        (Duration::from_secs(1), 0),
    ];
    metrics.observe_gaps("qwen3", "sim-a", gaps);
    metrics.observe_gaps("qwen3", "", [(Duration::from_millis(14), 0)]);
    metrics.tool_call("qwen3", "get_weather", "repaired", "number");
    metrics.history_changes("qwen3", "arguments_stubbed", 3);
    let scraped = parse(&metrics.render());

    let requests = |status, outcome, model| {
        let labels = [
            ("model", model),
            ("endpoint", "chat"),
            ("status", status),
            ("outcome", outcome),
        ];
        value(&scraped, "sluice_requests_total", &labels)
    };
    assert_eq!(requests("200", "ok", "qwen3"), Some(3.0));
    assert_eq!(requests("0", "cancelled", "qwen3"), Some(1.0));
    assert_eq!(requests("200", "error", "qwen3"), Some(1.0));
    assert_eq!(requests("401", "error", "none"), Some(1.0));

    let pair = [("model", "qwen3"), ("replica", "sim-a")];
    let ttft = |suffix: &str, warm| {
        value(
            &scraped,
            &format!("sluice_ttft_client_seconds_{suffix}"),
            &[pair[0], pair[1], ("warm", warm)],
        )
    };
    assert_eq!(ttft("count", "true"), Some(3.0));
    assert_eq!((ttft("count", "false"), ttft("sum", "false")), (Some(1.0), Some(2.0)));
    assert_eq!(ttft("count", "unknown"), Some(1.0));
    assert_eq!(value(&scraped, "sluice_ttft_engine_seconds_count", &pair), Some(5.0));
    assert_eq!(
        value(&scraped, "sluice_time_per_output_token_seconds_count", &pair),
        Some(5.0)
    );
    assert_eq!(value(&scraped, "sluice_inter_token_seconds_count", &pair), Some(199.0));
    let no_replica = [pair[0], ("replica", "none")];
    assert_eq!(
        value(&scraped, "sluice_inter_token_seconds_count", &no_replica),
        None,
        "it had no gap"
    );
    let below = |bound| {
        value(
            &scraped,
            "sluice_inter_token_seconds_bucket",
            &[pair[0], pair[1], ("le", bound)],
        )
    };
    assert_eq!(
        (below("0.01"), below("0.015"), below("0.05")),
        (Some(0.0), Some(190.0), Some(199.0))
    );

    let model = [("model", "qwen3")];
    assert_eq!(value(&scraped, "sluice_queue_seconds_count", &model), Some(5.0));
    assert_eq!(
        value(&scraped, "sluice_queue_seconds_count", &[("model", "none")]),
        Some(0.0),
        "it was never tried"
    );
    assert_eq!(value(&scraped, "sluice_tool_hold_seconds_count", &model), Some(5.0));
    let duration = |outcome| {
        value(
            &scraped,
            "sluice_request_duration_seconds_count",
            &[model[0], ("outcome", outcome)],
        )
    };
    assert_eq!(
        (duration("ok"), duration("error"), duration("cancelled")),
        (Some(3.0), Some(1.0), Some(1.0))
    );

    let tokens = |kind| value(&scraped, "sluice_tokens_total", &[model[0], ("kind", kind)]);
    assert_eq!(tokens("prompt"), Some(5_000.0));
    assert_eq!(tokens("cached"), Some(2_700.0));
    assert_eq!(
        (tokens("completion"), tokens("reasoning")),
        (Some(1_000.0), Some(250.0))
    );

    let errors = |model, code, side| {
        value(
            &scraped,
            "sluice_errors_total",
            &[("model", model), ("code", code), ("side", side)],
        )
    };
    assert_eq!(errors("qwen3", "upstream_ended", "upstream"), Some(1.0));
    assert_eq!(errors("none", "none", "downstream"), Some(1.0));
    assert_eq!(
        errors("qwen3", "cancelled", "none"),
        None,
        "a client that leaves is no error"
    );
    let call = [
        ("model", "qwen3"),
        ("tool", "get_weather"),
        ("verdict", "repaired"),
        ("kind", "number"),
    ];
    assert_eq!(value(&scraped, "sluice_tool_calls_total", &call), Some(1.0));
    let past = [("model", "qwen3"), ("kind", "arguments_stubbed")];
    assert_eq!(value(&scraped, "sluice_history_changes_total", &past), Some(3.0));
    assert_eq!(
        value(&scraped, "sluice_build_info", &[("version", env!("CARGO_PKG_VERSION"))]),
        Some(1.0)
    );
    assert!(value(&scraped, "process_resident_memory_bytes", &[]).unwrap() > 1e6);
    assert!(value(&scraped, "process_cpu_seconds_total", &[]).is_some());
}

#[test]
fn a_fresh_gateway_can_be_scraped() {
    let scraped = parse(&Metrics::new().unwrap().render());
    let unwanted = scraped
        .keys()
        .filter(|name| !name.starts_with("sluice_") && !name.starts_with("process_"));
    assert_eq!(unwanted.count(), 0, "{:?}", scraped.keys());
}

#[test]
fn in_flight_is_counted_by_guards() {
    let metrics = Metrics::new().unwrap();
    let running = |metrics: &Metrics| value(&parse(&metrics.render()), "sluice_in_flight", &[("model", "qwen3")]);
    assert_eq!(running(&metrics), None);
    let guards = [metrics.in_flight("qwen3"), metrics.in_flight("qwen3")];
    let other = metrics.in_flight("else");
    assert_eq!(running(&metrics), Some(2.0));
    let [first, second] = guards;
    drop(first);
    assert_eq!(running(&metrics), Some(1.0));
    std::thread::spawn(move || drop(second)).join().unwrap();
    assert_eq!(running(&metrics), Some(0.0), "an idle model stays visible");
    drop(other);
}

#[test]
fn replicas_come_change_and_go() {
    let metrics = Metrics::new().unwrap();
    let up = |metrics: &Metrics| value(&parse(&metrics.render()), "sluice_replica_up", &[("replica", "sim-a")]);
    metrics.replica_up("sim-a", true);
    assert_eq!(up(&metrics), Some(1.0));
    metrics.replica_up("sim-a", false);
    assert_eq!(up(&metrics), Some(0.0));
    let state = |metrics: &Metrics, state| {
        let labels = [("replica", "sim-a"), ("state", state)];
        value(&parse(&metrics.render()), "sluice_replica_state", &labels)
    };
    for now in ["ready", "hung"] {
        metrics.replica_state("sim-a", now, &["ready", "hung"]);
        for one in ["ready", "hung"] {
            assert_eq!(state(&metrics, one), Some(f64::from(u8::from(one == now))));
        }
    }
    metrics.replica_gone("sim-a");
    assert_eq!((up(&metrics), state(&metrics, "hung")), (None, None));
}

#[test]
fn what_becomes_of_the_rows_is_shown_and_does_not_keep_the_writer() {
    let metrics = Metrics::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let recorder = crate::record::open(&crate::record::RecordConfig::default(), folder.path()).unwrap();
    metrics.watch_records(&recorder);
    recorder.submit(Record {
        started: jiff::Timestamp::now(),
        ..record()
    });
    // The last handle: what is queued is written now, though the metrics live on.
    drop(recorder);
    let scraped = parse(&metrics.render());
    assert_eq!(value(&scraped, "sluice_records_written_total", &[]), Some(1.0));
    assert_eq!(value(&scraped, "sluice_records_shed_total", &[]), Some(0.0));
    assert_eq!(value(&scraped, "sluice_records_failures_total", &[]), Some(0.0));
    assert_eq!(value(&scraped, "sluice_records_queued", &[]), Some(0.0));
}

#[test]
fn labels_are_bounded_and_escaped() {
    let metrics = Metrics::new().unwrap();
    let hostile = "a\"b\\c\nd\u{e9}";
    metrics.observe(&Record {
        model: hostile.to_owned(),
        ..record()
    });
    for number in 0..150 {
        let name = format!("name-{number}");
        let (error, side) = (Some(name.clone()), Some("upstream"));
        metrics.observe(&Record {
            model: name.clone(),
            error: error.clone(),
            error_side: side,
            ..record()
        });
        metrics.observe(&Record {
            replica: name.clone(),
            ..record()
        });
        metrics.observe(&Record {
            status: 200 + number,
            ..record()
        });
        metrics.observe_gaps(&name, &name, [(Duration::from_millis(10), 1)]);
        metrics.tool_call("qwen3", &name, "passed", "none");
        metrics.replica_up(&name, true);
        drop(metrics.in_flight(&name));
    }
    let scraped = parse(&metrics.render());
    let mut shared = BTreeSet::new();
    for (family_name, family) in &scraped {
        let mut values = BTreeMap::<&str, BTreeSet<&str>>::new();
        for (name, value) in family.samples.values().flatten().flat_map(|(labels, _)| labels) {
            values.entry(name).or_default().insert(value);
        }
        for (label, values) in values {
            assert!(values.len() <= LIMIT + 1, "{family_name} {label}: {}", values.len());
            if values.contains(OTHER) {
                shared.insert(label.to_owned());
            }
        }
    }
    for label in ["model", "replica", "code", "tool", "status"] {
        assert!(shared.contains(label), "{label}: late names are counted under {OTHER}");
    }
    assert_eq!(value(&scraped, "sluice_in_flight", &[("model", hostile)]), Some(0.0));
    let requests = &scraped["sluice_requests_total"].samples["sluice_requests_total"];
    assert_eq!(
        requests.iter().map(|(_, value)| value).sum::<f64>(),
        451.0,
        "every request is counted somewhere"
    );
}

/// Generous, for a debug build on a busy machine: it catches a return to hashing labels or to locks, not a few ns.
#[test]
fn observing_is_cheap() {
    let metrics = Metrics::new().unwrap();
    let record = record();
    metrics.observe(&record);
    let best = (0..20).map(|_| {
        let began = Instant::now();
        (0..1_000).for_each(|_| metrics.observe(&record));
        began.elapsed() / 1_000
    });
    let best = best.min().unwrap();
    std::io::Write::write_all(&mut std::io::stderr(), format!("observe: {best:?}\n").as_bytes()).unwrap();
    assert!(best < Duration::from_micros(15), "{best:?}");
}

#[test]
fn threads_lose_nothing() {
    let metrics = Metrics::new().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for number in 0..500 {
                    metrics.observe(&Record {
                        model: format!("m{}", number % 20),
                        ..record()
                    });
                }
            });
        }
    });
    let scraped = parse(&metrics.render());
    let requests = &scraped["sluice_requests_total"].samples["sluice_requests_total"];
    assert_eq!(requests.len(), 20);
    assert!(requests.iter().all(|(_, value)| *value == 200.0));
}
