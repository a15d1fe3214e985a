//! The instruments, and the series that requests write to: found once per (model, replica), written to without hashing.
//!
//! An OpenTelemetry instrument hashes its attributes at each measurement, some 200 ns a time; a *bound* one has its
//! series at hand. So labels are put together the first time that a pair is seen and never on a later request.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{BoundCounter, BoundHistogram, Counter, Histogram, Meter};

use super::gaps::{GapFamily, Gaps};
use super::labels::{Bounded, OTHER};
use super::{Outcome, TelemetryError};
use crate::record::Warmth;

/// TTFT in seconds: 5 ms to 120 s, dense where an interactive answer lies; 1.5 is the alert threshold of the deployment.
const TTFT_BOUNDS: [f64; 24] = [
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0,
    20.0, 30.0, 60.0, 120.0,
];

/// Whole requests in seconds: a refusal takes a millisecond, a reasoning answer minutes.
const DURATION_BOUNDS: [f64; 20] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 300.0, 600.0,
    1_200.0,
];

/// Waiting, for a replica or for a call to become certain: mostly nothing, 10 s by default at most.
const WAIT_BOUNDS: [f64; 14] = [
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0,
];

/// Mean time per token of a stream, in seconds.
const TPOT_BOUNDS: [f64; 16] = [
    0.001, 0.002, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0,
];

/// Every instrument that requests write to.
pub(super) struct Instruments {
    requests: Counter<u64>,
    duration: Histogram<f64>,
    queue: Histogram<f64>,
    tool_hold: Histogram<f64>,
    ttft_client: Histogram<f64>,
    ttft_engine: Histogram<f64>,
    tpot: Histogram<f64>,
    gaps: GapFamily,
    tokens: Counter<u64>,
    pub(super) errors: Counter<u64>,
    pub(super) tool_calls: Counter<u64>,
    pub(super) history_changes: Counter<u64>,
    pub(super) continuations: Counter<u64>,
    pub(super) admission: Counter<u64>,
    pub(super) discovery_failures: Counter<u64>,
    pub(super) affinity_lookups: Counter<u64>,
    pub(super) affinity_homes: Counter<u64>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter, registry: &prometheus::Registry) -> Result<Self, TelemetryError> {
        let counter = |name, help| meter.u64_counter(name).with_description(help).build();
        let seconds = |name, help, bounds: &[f64]| {
            meter
                .f64_histogram(name)
                .with_description(help)
                .with_boundaries(bounds.to_vec())
                .build()
        };
        let gaps = GapFamily::new().map_err(TelemetryError::Registry)?;
        registry
            .register(Box::new(gaps.clone()))
            .map_err(TelemetryError::Registry)?;
        Ok(Self {
            requests: counter(
                "sluice_requests",
                "Requests that ended, by the status that the client got",
            ),
            duration: seconds(
                "sluice_request_duration_seconds",
                "Accepted to last byte sent",
                &DURATION_BOUNDS,
            ),
            queue: seconds("sluice_queue_seconds", "Waiting for a place at a replica", &WAIT_BOUNDS),
            tool_hold: seconds(
                "sluice_tool_hold_seconds",
                "Longest hold of a tool call, per request",
                &WAIT_BOUNDS,
            ),
            ttft_client: seconds(
                "sluice_ttft_client_seconds",
                "Accepted to first byte of the answer sent",
                &TTFT_BOUNDS,
            ),
            ttft_engine: seconds(
                "sluice_ttft_engine_seconds",
                "Dispatched to first upstream token",
                &TTFT_BOUNDS,
            ),
            tpot: seconds(
                "sluice_time_per_output_token_seconds",
                "Mean gap between tokens, per stream",
                &TPOT_BOUNDS,
            ),
            gaps,
            tokens: counter(
                "sluice_tokens",
                "Tokens; cached is a part of prompt, reasoning a part of completion",
            ),
            errors: counter(
                "sluice_errors",
                "Requests that failed, by code and by whose fault it was",
            ),
            tool_calls: counter("sluice_tool_calls", "Tool calls by what became of them"),
            history_changes: counter(
                "sluice_history_changes",
                "Past turns that were changed before they were sent, by what was changed",
            ),
            discovery_failures: counter(
                "sluice_discovery_failures",
                "Looks for replicas (DNS, file) that failed; those that were known stay",
            ),
            affinity_lookups: counter(
                "sluice_affinity_lookups",
                "Conversations that this gateway did not know, by what the server that gateways share said of them",
            ),
            affinity_homes: counter(
                "sluice_affinity_homes",
                "Turns whose replica was to be told to other gateways, by what became of that",
            ),
            admission: counter(
                "sluice_admission",
                "Requests that did not get a place at a replica at once, by what became of them",
            ),
            continuations: counter(
                "sluice_continuations",
                "Answers whose replica was lost after their first data line, by what became of them",
            ),
        })
    }
}

/// What requests of one model write to.
pub(super) struct ModelSeries {
    pub(super) name: Arc<str>,
    pub(super) in_flight: AtomicI64,
    pub(super) replicas: Bounded<String, ReplicaSeries>,
    requests: Bounded<RequestLabels, BoundCounter<u64>>,
    duration: [BoundHistogram<f64>; 3],
    pub(super) queue: BoundHistogram<f64>,
    pub(super) tool_hold: BoundHistogram<f64>,
    pub(super) prompt_tokens: BoundCounter<u64>,
    pub(super) cached_tokens: BoundCounter<u64>,
    pub(super) completion_tokens: BoundCounter<u64>,
    pub(super) reasoning_tokens: BoundCounter<u64>,
}

/// The labels of `sluice_requests_total` beside the model: endpoint, status, outcome.
type RequestLabels = (&'static str, u16, Outcome);

impl ModelSeries {
    pub(super) fn new(of: &Instruments, name: &str) -> Self {
        let name = Arc::<str>::from(name);
        let model = KeyValue::new("model", Arc::clone(&name));
        let tokens = |kind| of.tokens.bind(&[model.clone(), KeyValue::new("kind", kind)]);
        let outcome = |outcome: Outcome| {
            of.duration
                .bind(&[model.clone(), KeyValue::new("outcome", outcome.label())])
        };
        Self {
            in_flight: AtomicI64::new(0),
            replicas: Bounded::new(),
            requests: Bounded::new(),
            duration: [
                outcome(Outcome::Ok),
                outcome(Outcome::Error),
                outcome(Outcome::Cancelled),
            ],
            queue: of.queue.bind(std::slice::from_ref(&model)),
            tool_hold: of.tool_hold.bind(std::slice::from_ref(&model)),
            prompt_tokens: tokens("prompt"),
            cached_tokens: tokens("cached"),
            completion_tokens: tokens("completion"),
            reasoning_tokens: tokens("reasoning"),
            name,
        }
    }

    pub(super) fn requests(&self, of: &Instruments, labels: RequestLabels) -> Arc<BoundCounter<u64>> {
        self.requests.get(&labels, |labels| {
            let (endpoint, status, outcome) = match labels {
                Some((endpoint, status, outcome)) => (*endpoint, status.to_string(), outcome.label()),
                None => (OTHER, OTHER.to_owned(), OTHER),
            };
            of.requests.bind(&[
                KeyValue::new("model", Arc::clone(&self.name)),
                KeyValue::new("endpoint", endpoint),
                KeyValue::new("status", status),
                KeyValue::new("outcome", outcome),
            ])
        })
    }

    pub(super) fn duration(&self, outcome: Outcome) -> &BoundHistogram<f64> {
        let [ok, error, cancelled] = &self.duration;
        match outcome {
            Outcome::Ok => ok,
            Outcome::Error => error,
            Outcome::Cancelled => cancelled,
        }
    }
}

/// What requests of one model on one replica write to.
pub(super) struct ReplicaSeries {
    ttft_client: [BoundHistogram<f64>; 3],
    pub(super) ttft_engine: BoundHistogram<f64>,
    pub(super) tpot: BoundHistogram<f64>,
    pub(super) gaps: Arc<Gaps>,
}

impl ReplicaSeries {
    pub(super) fn new(of: &Instruments, model: &Arc<str>, replica: &Arc<str>) -> Self {
        let pair = [
            KeyValue::new("model", Arc::clone(model)),
            KeyValue::new("replica", Arc::clone(replica)),
        ];
        let [first, second] = &pair;
        let ttft = |warm| {
            of.ttft_client
                .bind(&[first.clone(), second.clone(), KeyValue::new("warm", warm)])
        };
        Self {
            ttft_client: [ttft("false"), ttft("true"), ttft("unknown")],
            ttft_engine: of.ttft_engine.bind(&pair),
            tpot: of.tpot.bind(&pair),
            gaps: of.gaps.series(model, replica),
        }
    }

    pub(super) fn ttft_client(&self, warmth: Warmth) -> &BoundHistogram<f64> {
        let [cold, warm, unknown] = &self.ttft_client;
        match warmth {
            Warmth::Cold => cold,
            Warmth::Warm => warm,
            Warmth::Unknown => unknown,
        }
    }
}
