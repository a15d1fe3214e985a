//! A stand-in for vLLM, good enough to develop a gateway against and honest enough not to be taken for one.
//!
//! Enters: HTTP requests as vLLM 0.32 takes them, and knobs that say what shall go wrong (`fault`). Leaves: answers in
//! vLLM's bytes, at the pace of a modelled GPU, with the cache hits of a modelled KV cache and vLLM's metrics. It never
//! runs a model: texts begin with `[simulated]`, the model id ends in `-simulated`.
//!
//! One request: `serve` (routes, headers) → `ask` (checks, knobs, prompt) → `answer` (what is said, [`CallKind`]) →
//! `drive` (queue, batch, blocks, time) → `body` and `wire` (events). The engine model is `engine` with `cache`.

mod answer;
mod ask;
mod body;
mod cache;
mod call;
mod check;
mod config;
mod drive;
mod engine;
mod fault;
mod metrics;
mod parsers;
mod prompt;
mod refusal;
mod reply;
mod schema;
mod script;
mod serve;
mod tokens;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use tokio::net::TcpListener;

pub use answer::MARK;
pub use call::CallKind;
pub use config::{FaultRates, Gpu, SIMULATED_SUFFIX, Setup, SimConfig, SimConfigError};
pub use fault::{Fault, KnobError};

/// Why a simulator didn't start.
#[derive(Debug, Error)]
pub enum SimulatorError {
    /// A setting is out of its range.
    #[error(transparent)]
    Config(#[from] SimConfigError),
    /// The environment variable that should hold the key isn't set, or isn't text.
    #[error("simulator: environment variable {0} with the API key isn't set")]
    Key(String),
    /// The address can't be listened on.
    #[error("simulator: can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// One simulated vLLM: engine, cache and counters. Clones are handles of the same one.
#[derive(Clone)]
pub struct Simulator {
    shared: Arc<Shared>,
}

struct Shared {
    config: SimConfig,
    model: String,
    fingerprint: String,
    key: Option<String>,
    engine: drive::Engine,
    requests: AtomicU64,
    connections: AtomicU64,
    started_s: f64,
}

/// What a simulator has seen and has in hand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stats {
    /// Requests for chat or text completions, well formed or not.
    pub requests: u64,
    /// Connections accepted, refused ones among them.
    pub connections: u64,
    /// Requests that were aborted because their client left.
    pub aborted: u64,
    /// Sequences in the batch.
    pub running: u32,
    /// Sequences that wait for a place.
    pub waiting: u32,
    /// Sequences known at all: running, waiting, or still in the front end.
    pub present: u32,
    /// Part of the KV blocks in use, 0 to 1.
    pub kv_usage: f64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Prompt tokens found there.
    pub prefix_hits: u64,
    /// Sequences that lost their blocks and were computed anew.
    pub preemptions: u64,
    /// Engine steps.
    pub steps: u64,
}

impl Simulator {
    /// Builds a simulator; it answers once [`Simulator::serve`] runs.
    ///
    /// # Errors
    /// A setting is out of its range, or `api_key_env` names a variable that isn't set.
    pub fn new(config: SimConfig) -> Result<Self, SimulatorError> {
        let key = match config.api_key_env.as_str() {
            "" => None,
            name => Some(std::env::var(name).map_err(|_| SimulatorError::Key(name.to_owned()))?),
        };
        Self::with_key(config, key)
    }

    /// As [`Simulator::new`], with the key itself instead of its variable's name.
    ///
    /// # Errors
    /// A setting is out of its range.
    pub fn with_key(config: SimConfig, key: Option<String>) -> Result<Self, SimulatorError> {
        config.check()?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let digest = tokens::mix_text(config.seed, &config.model) as u32;
        let shared = Shared {
            model: config.served_model(),
            fingerprint: format!("vllm-{}-{digest:08x}", wire::VERSION),
            key,
            engine: drive::Engine::new(&config),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            started_s: now.map_or(0.0, |since| since.as_secs_f64()),
            config,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Serves connections of `listener` until `shutdown` is ready. Then it ends as vLLM does at SIGTERM: running streams
    /// get an error event and `[DONE]`, and the simulator is dead for good.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) {
        serve::serve(self.clone(), listener, shutdown).await;
    }

    /// The model id it serves, with its suffix.
    pub fn model(&self) -> &str {
        &self.shared.model
    }

    /// Counters and gauges, for tests and for a status line.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let aborted = shared.engine.aborted_requests();
        shared.engine.read(|core| {
            let (prefix_queries, prefix_hits) = core.tally.prefix();
            Stats {
                requests: shared.requests.load(Ordering::Relaxed),
                connections: shared.connections.load(Ordering::Relaxed),
                aborted,
                running: core.running(),
                waiting: core.waiting(),
                present: core.present() as u32,
                kv_usage: core.kv_usage(),
                prefix_queries,
                prefix_hits,
                preemptions: core.tally.preemptions(),
                steps: core.tally.steps(),
            }
        })
    }

    /// Hangs the engine (or lets it go on): streams are silent and no step is made, while `/health`, `/v1/models` and
    /// `/metrics` answer as ever.
    pub fn set_hung(&self, hung: bool) {
        self.shared.engine.set_hung(hung);
    }

    /// Kills the engine: running streams get an error event and `[DONE]`, other requests 500, `/health` 503.
    pub fn kill_engine(&self) {
        self.shared.engine.die();
    }

    /// Forgets all cached prefixes, as a restart does.
    pub fn forget_prefixes(&self) {
        self.shared.engine.forget_prefixes();
    }
}

/// Serves a simulator on `address` until the future is dropped: what `sluice simulate` runs.
///
/// # Errors
/// The configuration is out of range, the key's variable isn't set, or the address can't be listened on.
pub async fn run(config: SimConfig, address: SocketAddr) -> Result<(), SimulatorError> {
    let simulator = Simulator::new(config)?;
    serve::run(simulator, address)
        .await
        .map_err(|source| SimulatorError::Listen { address, source })
}
