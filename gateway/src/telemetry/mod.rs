//! Metrics: a finished request's `Record` enters, `GET /metrics` leaves.
//!
//! The instruments are OpenTelemetry's (one API for more than one export), the export is Prometheus' text format from a
//! registry of our own. `Metrics::observe` costs well under a microsecond: the series of a (model, replica) are found
//! by two hash lookups and written to directly (`series`). Label values are enums, configured names, or bounded
//! (`labels`): prompts, answers and keys are never labels. Gaps between tokens come in buckets (`gaps`).

mod gaps;
mod labels;
mod process;
mod series;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use tracing::warn;

use crate::record::{Counts, Record, Recorder};
use labels::{Bounded, LIMIT, OTHER};
use series::{Instruments, ModelSeries, ReplicaSeries};

/// Label of a request that was refused before a model or replica was chosen.
const NONE: &str = "none";

/// Media type of what [`Metrics::render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Handle to all metrics; clones are cheap and share everything.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

impl Metrics {
    /// Builds the instruments and their registry; one per process.
    ///
    /// # Errors
    /// The registry refused an instrument: two of one name.
    pub fn new() -> Result<Self, TelemetryError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_target_info()
            .scope_info_enabled(false)
            // Names are written out in full, units included: what is read here is what is scraped.
            .without_units()
            .build()
            .map_err(TelemetryError::Exporter)?;
        let provider = SdkMeterProvider::builder()
            .with_resource(Resource::builder_empty().build())
            .with_reader(exporter)
            .build();
        let meter = provider.meter("sluice");
        let state = State {
            instruments: Instruments::new(&meter, &registry)?,
            models: Bounded::new(),
            replicas: Bounded::new(),
            tools: Bounded::new(),
            codes: Bounded::new(),
            replicas_up: Mutex::default(),
            replica_states: Mutex::default(),
            records: Mutex::default(),
            queues: Mutex::default(),
        };
        let state = Arc::new(state);
        register_observed(&meter, &state);
        process::register(&meter);
        Ok(Self {
            inner: Arc::new(Inner {
                state,
                registry,
                _provider: provider,
            }),
        })
    }

    /// Counts a finished request: call it once for each, where its record is made.
    pub fn observe(&self, record: &Record) {
        let state = &*self.inner.state;
        let outcome = Outcome::of(record);
        let model = state.model(&record.model);
        model
            .requests(&state.instruments, (known(record.endpoint), record.status, outcome))
            .add(1);
        model.duration(outcome).record(record.duration.as_secs_f64());
        if record.attempts > 0 || !record.queue.is_zero() {
            model.queue.record(record.queue.as_secs_f64());
        }
        if record.tool_calls > 0 || !record.tool_hold.is_zero() {
            model.tool_hold.record(record.tool_hold.as_secs_f64());
        }
        let tokens = [
            (&model.prompt_tokens, record.prompt_tokens),
            (&model.cached_tokens, record.cached_tokens),
            (&model.completion_tokens, record.completion_tokens),
            (&model.reasoning_tokens, record.reasoning_tokens),
        ];
        tokens
            .into_iter()
            .for_each(|(counter, count)| counter.add(count.unwrap_or(0)));
        state.observe_stream(&model, record);
        if let Outcome::Error = outcome {
            state.count_error(&model, record);
        }
    }

    /// Counts the gaps between the tokens of a finished stream: each item is a length and how many gaps had it, as the
    /// meter's buckets tell. Call it once for each stream, beside [`Self::observe`].
    pub fn observe_gaps(&self, model: &str, replica: &str, gaps: impl IntoIterator<Item = (Duration, u64)>) {
        let state = &*self.inner.state;
        let mut gaps = gaps.into_iter().filter(|(_, count)| *count > 0).peekable();
        // A stream that never came to a second token leaves no empty series.
        if gaps.peek().is_some() {
            let series = state.replica(&state.model(model), replica);
            gaps.for_each(|(gap, count)| series.gaps.add(gap, count));
        }
    }

    /// Counts one tool call by what became of it: closed sets both, `verdict` (`passed`, `repaired`, `reasked`, `refused`) and `kind`
    /// (what was repaired, why it was refused, `several`, `none`).
    pub fn tool_call(&self, model: &str, tool: &str, verdict: &'static str, kind: &'static str) {
        let state = &*self.inner.state;
        let tool = Arc::<str>::clone(&state.tools.get(tool, |name| Arc::from(name.unwrap_or(OTHER))));
        state.instruments.tool_calls.add(
            1,
            &[
                KeyValue::new("model", Arc::clone(&state.model(model).name)),
                KeyValue::new("tool", tool),
                KeyValue::new("verdict", verdict),
                KeyValue::new("kind", kind),
            ],
        );
    }

    /// Counts changes of past turns by their kind, a closed set (B30).
    pub fn history_changes(&self, model: &str, kind: &'static str, count: u64) {
        let state = &*self.inner.state;
        state.instruments.history_changes.add(
            count,
            &[
                KeyValue::new("model", Arc::clone(&state.model(model).name)),
                KeyValue::new("kind", kind),
            ],
        );
    }

    /// Counts an answer whose replica was lost after its first data line, by what became of it: `continued`, `anew`,
    /// `not_continuable`, `failed`, `poison`.
    pub fn continuation(&self, model: &str, outcome: &'static str) {
        let state = &*self.inner.state;
        let labels = [
            KeyValue::new("model", Arc::clone(&state.model(model).name)),
            KeyValue::new("outcome", outcome),
        ];
        state.instruments.continuations.add(1, &labels);
    }

    /// Counts a look for replicas that failed.
    pub fn discovery_failed(&self) {
        self.inner.state.instruments.discovery_failures.add(1, &[]);
    }

    /// Counts a look for a conversation's home at the server that gateways share: `hit`, `miss`, `failed`, `unasked` (it is away).
    pub fn affinity_asked(&self, outcome: &'static str) {
        let labels = [KeyValue::new("outcome", outcome)];
        self.inner.state.instruments.affinity_lookups.add(1, &labels);
    }

    /// Counts turns whose replica was to be told to that server: `written`, `failed`, `shed` (it is away, or too many wait).
    pub fn affinity_told(&self, outcome: &'static str, count: u64) {
        if count > 0 {
            let labels = [KeyValue::new("outcome", outcome)];
            self.inner.state.instruments.affinity_homes.add(count, &labels);
        }
    }

    /// Counts a request that did not get its place at once, by what became of it: `waited`, `left`, `full`, `key_full`, `too_long`,
    /// `overdue`.
    pub fn admission(&self, model: &str, outcome: &'static str) {
        let state = &*self.inner.state;
        let labels = [
            KeyValue::new("model", Arc::clone(&state.model(model).name)),
            KeyValue::new("outcome", outcome),
        ];
        state.instruments.admission.add(1, &labels);
    }

    /// Shows who waits (`sluice_queue_length`): `waiting` says how many requests of a model and a priority. A later call replaces it.
    pub fn watch_queues(&self, waiting: impl Fn() -> Vec<(String, &'static str, u64)> + Send + Sync + 'static) {
        *lock(&self.inner.state.queues) = Some(Box::new(waiting));
    }

    /// Counts a request as running until the guard is dropped.
    pub fn in_flight(&self, model: &str) -> InFlight {
        let model = self.inner.state.model(model);
        model.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { model }
    }

    /// Says whether a replica may be given requests: `sluice_replica_up`. Only the first hundred names are shown.
    pub fn replica_up(&self, replica: &str, up: bool) {
        let mut replicas = lock(&self.inner.state.replicas_up);
        if let Some(known) = replicas.get_mut(replica) {
            *known = up;
        } else if replicas.len() < LIMIT {
            replicas.insert(replica.to_owned(), up);
        }
    }

    /// Says where a replica stands, of a closed set of names: `sluice_replica_state`. Only the first hundred replicas are shown.
    pub fn replica_state(&self, replica: &str, state: &'static str, all: &'static [&'static str]) {
        let mut replicas = lock(&self.inner.state.replica_states);
        if let Some(known) = replicas.get_mut(replica) {
            known.now = state;
        } else if replicas.len() < LIMIT {
            replicas.insert(replica.to_owned(), ReplicaState { now: state, all });
        }
    }

    /// Forgets a replica that the configuration no longer has.
    pub fn replica_gone(&self, replica: &str) {
        lock(&self.inner.state.replicas_up).remove(replica);
        lock(&self.inner.state.replica_states).remove(replica);
    }

    /// Shows what becomes of the rows (`sluice_records_*`). A later call replaces the recorder.
    pub fn watch_records(&self, recorder: &Recorder) {
        *lock(&self.inner.state.records) = Some(Box::new(recorder.counting()));
    }

    /// Everything in Prometheus' text format ([`CONTENT_TYPE`]). Takes milliseconds with many series, and reads `/proc`.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.inner.registry.gather(), &mut text) {
            warn!(%error, "metrics are incomplete");
        }
        text
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// A request that runs: `sluice_in_flight` is one higher until this is dropped.
#[must_use = "dropping it says that the request has ended"]
pub struct InFlight {
    model: Arc<ModelSeries>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.model.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for InFlight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InFlight").field("model", &self.model.name).finish()
    }
}

/// What can go wrong when the metrics are built, never later.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The exporter could not be built.
    #[error("metrics exporter: {0}")]
    Exporter(#[source] opentelemetry_sdk::error::OTelSdkError),
    /// The registry refused a collector.
    #[error("metrics registry: {0}")]
    Registry(#[source] prometheus::Error),
}

/// How a request ended, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Ok,
    Error,
    Cancelled,
}

impl Outcome {
    fn of(record: &Record) -> Self {
        if record.cancelled {
            Self::Cancelled
        } else if record.error.is_some() || record.status >= 400 {
            Self::Error
        } else {
            Self::Ok
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

struct Inner {
    state: Arc<State>,
    registry: Registry,
    /// The exporter in the registry reads from it.
    _provider: SdkMeterProvider,
}

/// Where a replica stands, and where it could.
#[derive(Clone, Copy)]
struct ReplicaState {
    now: &'static str,
    all: &'static [&'static str],
}

/// Model, priority, requests that wait.
type Waiting = dyn Fn() -> Vec<(String, &'static str, u64)> + Send + Sync;

/// What requests write to and a scrape reads.
struct State {
    instruments: Instruments,
    models: Bounded<String, ModelSeries>,
    replicas: Bounded<String, Arc<str>>,
    tools: Bounded<String, Arc<str>>,
    codes: Bounded<String, Arc<str>>,
    replicas_up: Mutex<BTreeMap<String, bool>>,
    replica_states: Mutex<BTreeMap<String, ReplicaState>>,
    records: Mutex<Option<Box<dyn Fn() -> Counts + Send + Sync>>>,
    queues: Mutex<Option<Box<Waiting>>>,
}

impl State {
    fn model(&self, name: &str) -> Arc<ModelSeries> {
        self.models.get(known(name), |name| {
            ModelSeries::new(&self.instruments, name.unwrap_or(OTHER))
        })
    }

    fn replica(&self, model: &ModelSeries, name: &str) -> Arc<ReplicaSeries> {
        model.replicas.get(known(name), |name| {
            // The label is bounded over all models, not for each of them.
            let label = self
                .replicas
                .get(name.unwrap_or(OTHER), |name| Arc::from(name.unwrap_or(OTHER)));
            ReplicaSeries::new(&self.instruments, &model.name, &label)
        })
    }

    /// What only a stream that has begun has.
    fn observe_stream(&self, model: &ModelSeries, record: &Record) {
        if record.ttft_client.is_none() && record.ttft_engine.is_none() && record.tpot.is_none() {
            return;
        }
        let replica = self.replica(model, &record.replica);
        if let Some(ttft) = record.ttft_client {
            replica.ttft_client(record.warmth()).record(ttft.as_secs_f64());
        }
        if let Some(ttft) = record.ttft_engine {
            replica.ttft_engine.record(ttft.as_secs_f64());
        }
        if let Some(tpot) = record.tpot {
            replica.tpot.record(tpot.as_secs_f64());
        }
    }

    fn count_error(&self, model: &ModelSeries, record: &Record) {
        let code = record.error.as_deref().unwrap_or(NONE);
        let code = Arc::<str>::clone(&self.codes.get(code, |name| Arc::from(name.unwrap_or(OTHER))));
        self.instruments.errors.add(
            1,
            &[
                KeyValue::new("model", Arc::clone(&model.name)),
                KeyValue::new("code", code),
                KeyValue::new("side", record.error_side.unwrap_or(NONE)),
            ],
        );
    }
}

/// The instruments that are read when somebody scrapes.
fn register_observed(meter: &Meter, state: &Arc<State>) {
    meter
        .u64_observable_gauge("sluice_build_info")
        .with_description("Always 1; the labels say which build this is")
        .with_callback(|to| to.observe(1, &[KeyValue::new("version", env!("CARGO_PKG_VERSION"))]))
        .build();
    let of = Arc::clone(state);
    meter
        .i64_observable_gauge("sluice_in_flight")
        .with_description("Requests that run now")
        .with_callback(move |to| {
            of.models.for_each(|_, model| {
                let label = KeyValue::new("model", Arc::clone(&model.name));
                to.observe(model.in_flight.load(Ordering::Relaxed), &[label]);
            });
        })
        .build();
    let of = Arc::clone(state);
    meter
        .u64_observable_gauge("sluice_replica_up")
        .with_description("1 if the replica may be given requests")
        .with_callback(move |to| {
            for (replica, up) in lock(&of.replicas_up).iter() {
                to.observe(u64::from(*up), &[KeyValue::new("replica", replica.clone())]);
            }
        })
        .build();
    let of = Arc::clone(state);
    meter
        .u64_observable_gauge("sluice_replica_state")
        .with_description("1 for where the replica stands, 0 for the other states")
        .with_callback(move |to| {
            for (replica, state) in lock(&of.replica_states).iter() {
                for name in state.all {
                    let labels = [KeyValue::new("replica", replica.clone()), KeyValue::new("state", *name)];
                    to.observe(u64::from(*name == state.now), &labels);
                }
            }
        })
        .build();
    let of = Arc::clone(state);
    meter
        .u64_observable_gauge("sluice_queue_length")
        .with_description("Requests that wait for a place at a replica")
        .with_callback(move |to| {
            let waiting = lock(&of.queues).as_ref().map(|waiting| waiting());
            for (model, priority, count) in waiting.into_iter().flatten() {
                let model = Arc::clone(&of.model(&model).name);
                to.observe(
                    count,
                    &[KeyValue::new("model", model), KeyValue::new("priority", priority)],
                );
            }
        })
        .build();
    register_records(meter, state);
}

fn register_records(meter: &Meter, state: &Arc<State>) {
    let counter = |name, help, read: fn(&Counts) -> u64| {
        let of = Arc::clone(state);
        let callback = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            if let Some(counts) = &*lock(&of.records) {
                to.observe(read(&counts()), &[]);
            }
        };
        meter
            .u64_observable_counter(name)
            .with_description(help)
            .with_callback(callback)
            .build();
    };
    counter("sluice_records_written", "Rows on disk", |counts| counts.written);
    counter(
        "sluice_records_shed",
        "Rows that were not kept because the database was too slow",
        |counts| counts.shed,
    );
    counter(
        "sluice_records_failures",
        "Transactions and openings that failed",
        |counts| counts.failures,
    );
    let of = Arc::clone(state);
    meter
        .u64_observable_gauge("sluice_records_queued")
        .with_description("Rows that wait for the writer")
        .with_callback(move |to| {
            if let Some(counts) = &*lock(&of.records) {
                to.observe(counts().queued, &[]);
            }
        })
        .build();
}

fn known(name: &str) -> &str {
    if name.is_empty() { NONE } else { name }
}

/// Nothing that is kept behind these locks can be left half-done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
