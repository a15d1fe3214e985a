//! From configuration to what requests use: the flow's settings, and what is wanted of the fleet.

use http::HeaderValue;
use sluice_policy::admission::queue::QueueLimits;
use sluice_policy::admission::room::Capacity;
use sluice_policy::health::breaker::Rules;
use sluice_policy::profile::Profile;
use sluice_policy::protocol::ask::AskLimits;
use sluice_policy::reasoning::Opener;
use sluice_policy::route::choose::{Margins, RouteSettings};
use std::sync::Arc;

use crate::config::{
    BackendConfig, BadSchema, Config, HealthConfig, Normalise, ReasoningForm, ReplicaConfig, ThinkOpener, ToolParsing,
};
use crate::flow::exchange::{AgainLimits, ExchangeLimits, SeamLimits};
use crate::flow::hold::HoldLimits;
use crate::flow::tool_sets::MustCheck;
use crate::flow::{self, FlowConfig};
use crate::simulator::SIMULATED_SUFFIX;
use crate::supervisor::{LauncherConfig, ReplicaKey, ReplicaSpec};
use crate::upstream::{Replica, Tls, TlsError};

/// Why the fleet can't be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A backend names a profile that isn't there.
    #[error("backend `{backend}`: there is no profile `{profile}`")]
    Profile {
        /// The backend.
        backend: String,
        /// The name.
        profile: String,
    },
    /// TLS to its replicas.
    #[error("backend `{backend}`: tls.{key}: {source}")]
    Tls {
        /// The backend.
        backend: String,
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        source: Box<TlsError>,
    },
    /// A key that can't stand in a header.
    #[error("backend `{backend}`: the key in {variable} has bytes that can't stand in a header")]
    Key {
        /// The backend.
        backend: String,
        /// The variable.
        variable: String,
    },
}

/// What the flow goes by.
pub fn flow(config: &Config) -> FlowConfig {
    let limits = &config.limits;
    FlowConfig {
        ask: AskLimits {
            json_depth: limits.json_depth,
            n: limits.n,
            max_tokens: limits.max_tokens,
            grammar_bytes: usize_of(limits.grammar_bytes),
            ..AskLimits::default()
        },
        exchange: ExchangeLimits {
            attempts: config.upstream.attempts.max(1),
            connect: config.upstream.connect,
            idle: config.upstream.idle,
            answer: config.upstream.answer,
            stall: config.upstream.stall,
            keep_alive: config.server.keep_alive,
            head_after: config.server.head_after,
            event_bytes: usize_of(limits.sse_event_bytes),
            margins: Margins {
                stay_ratio: config.routing.stay_ratio,
                stay_margin: config.routing.stay_margin,
                load_bound: config.upstream.load_bound,
                trial_after: config.routing.trial_after,
                ..Margins::default()
            },
            answer_bytes: usize_of(limits.body_bytes),
            release_after: config.tools.release_after,
            again: AgainLimits {
                time: config.tools.reask_time,
                tokens: config.tools.reask_tokens,
            },
            seam: SeamLimits {
                count: config.continuation.count,
            },
            hold: HoldLimits {
                time: config.hold.time,
                count: config.hold.count,
            },
            queue: config.admission.enabled.then_some(QueueLimits {
                waiting: config.admission.queue,
                waiting_of_key: config.admission.queue_of_key,
                bytes: config.admission.queue_bytes,
                wait: config.admission.queue_wait,
            }),
        },
        history: config.history.normalise == Normalise::OnRefusal,
        names: flow::names(config.reasoning.names),
        reasoning: config.reasoning.form == ReasoningForm::Qwen3,
        opener: match config.reasoning.opener {
            ThinkOpener::Auto => None,
            ThinkOpener::Model => Some(Opener::Model),
            ThinkOpener::Prompt => Some(Opener::Prompt),
        },
        call_bytes: usize_of(limits.held_call_bytes),
        engine_parsing: config.tools.parsing == ToolParsing::Engine,
        reasks: config.tools.reask,
        continues: config.continuation.enabled,
        on_invalid: flow::on_invalid(config.tools.on_invalid),
        release: config.tools.release,
        release_bytes: usize_of(config.tools.release_bytes),
        must_check: match config.tools.bad_schema {
            BadSchema::Pass => MustCheck::Strict,
            BadSchema::Refuse => MustCheck::All,
        },
    }
}

/// What the breakers go by.
pub fn breaker(config: &HealthConfig) -> Rules {
    Rules {
        rest: config.rest,
        longest_rest: config.longest_rest,
        refusals: config.refusals,
        trials: config.trials,
        ramp: config.ramp,
    }
}

/// A backend as a configuration wants it.
pub struct WantedBackend {
    /// Its name.
    pub name: String,
    /// The id that clients ask for; empty if it is to be learned.
    pub model: String,
    /// Other ids.
    pub aliases: Vec<String>,
    /// The launch profile's name.
    pub profile: String,
    /// Who gets its requests where it can't take them.
    pub fallback: Vec<String>,
    /// It takes images.
    pub images: bool,
    /// For a router that knows nothing yet.
    pub routing: RouteSettings,
    /// Its replicas.
    pub replicas: Vec<WantedReplica>,
}

/// A replica as a configuration wants it.
pub struct WantedReplica {
    /// What the supervisor is to hold.
    pub spec: ReplicaSpec,
    /// What requests to it say.
    pub authorization: Option<HeaderValue>,
    /// What it holds.
    pub capacity: Capacity,
}

impl WantedReplica {
    /// One that nobody has asked yet.
    pub fn replica(&self) -> Replica {
        let simulated = self.spec.launcher.is_simulated();
        let made = Replica::new(&self.spec.name, simulated, self.authorization.clone(), None);
        made.serves(&self.spec.model);
        made
    }
}

/// What a configuration wants of the fleet. Whose settings are those of one of `tls` has that: files are read again at a reload, not for
/// each replica that is found.
///
/// # Errors
/// See [`BuildError`]: what `check-config` can't know without the environment.
pub fn fleet(config: &Config, tls: &[Arc<Tls>]) -> Result<Vec<WantedBackend>, BuildError> {
    let all = config.backend.iter();
    all.map(|backend| {
        let profile = config.profile(&backend.profile).ok_or_else(|| BuildError::Profile {
            backend: backend.name.clone(),
            profile: backend.profile.clone(),
        })?;
        self::backend(backend, &profile, config.admission.sequences, tls)
    })
    .collect()
}

/// Environment variables that launched processes don't inherit: the clients' key, the backends', a password of ours.
pub fn secret_variables(config: &Config) -> Vec<String> {
    let backends = config.backend.iter().map(|backend| backend.key_env.clone());
    let own = [config.auth.key_env.clone(), config.affinity.password_env.clone()];
    let all = own.into_iter().chain(backends);
    all.filter(|name| !name.is_empty()).collect()
}

/// What each replica runs at once: as the setting says, else as its launcher does. Nobody says it of an external one.
fn capacity(launcher: &LauncherConfig, profile: &Profile, setting: u32) -> Capacity {
    let own = match launcher {
        LauncherConfig::External(_) => None,
        LauncherConfig::Process(_) => profile.max_num_seqs.set().copied(),
        LauncherConfig::Simulated(simulated) => Some(simulated.max_num_seqs),
    };
    Capacity {
        sequences: Some(setting).filter(|setting| *setting > 0).or(own),
        // Said by its metrics.
        kv_tokens: None,
    }
}

fn backend(
    config: &BackendConfig,
    profile: &Profile,
    sequences: u32,
    tls: &[Arc<Tls>],
) -> Result<WantedBackend, BuildError> {
    let routing = RouteSettings::default();
    let all_simulated = config.replica.iter().all(|replica| replica.launcher.is_simulated());
    let authorization = authorization(config)?;
    let is_secure = config.replica.iter().any(|replica| replica.launcher.is_secure());
    let known = tls.iter().find(|tls| tls.is_by(&config.tls)).cloned();
    let tls = is_secure
        .then(|| known.map_or_else(|| Tls::read(&config.tls), Ok))
        .transpose();
    let tls = tls.map_err(|source| BuildError::Tls {
        backend: config.name.clone(),
        key: source.key(),
        source: Box::new(source),
    })?;
    let mut aliases = config.aliases.clone();
    if all_simulated && !config.model.is_empty() {
        // Clients are written for the real id; the answers say that they are simulated.
        aliases.push(config.model.clone());
    }
    let replicas = config.replica.iter().map(|replica| {
        let simulated = replica.launcher.is_simulated();
        WantedReplica {
            spec: spec(config, replica, profile, &tls),
            authorization: if simulated { None } else { authorization.clone() },
            capacity: capacity(&replica.launcher, profile, sequences),
        }
    });
    Ok(WantedBackend {
        name: config.name.clone(),
        model: served_id(&config.model, all_simulated),
        aliases,
        profile: config.profile.clone(),
        fallback: config.fallback.clone(),
        images: config.images,
        routing: RouteSettings {
            sequences: profile
                .max_num_seqs
                .set()
                .map_or(routing.sequences, |count| *count as usize),
            ..routing
        },
        replicas: replicas.collect(),
    })
}

/// A simulated model's id can't be mistaken (B6).
fn served_id(model: &str, simulated: bool) -> String {
    if simulated && !model.is_empty() {
        format!("{model}{SIMULATED_SUFFIX}")
    } else {
        model.to_owned()
    }
}

fn authorization(config: &BackendConfig) -> Result<Option<HeaderValue>, BuildError> {
    let ReplicaKey::Given(key) = ReplicaKey::from_env(&config.key_env) else {
        return Ok(None);
    };
    let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| BuildError::Key {
        backend: config.name.clone(),
        variable: config.key_env.clone(),
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn spec(backend: &BackendConfig, replica: &ReplicaConfig, profile: &Profile, tls: &Option<Arc<Tls>>) -> ReplicaSpec {
    let simulated = replica.launcher.is_simulated();
    ReplicaSpec {
        name: replica.name.clone(),
        model: served_id(&backend.model, simulated),
        aliases: backend.aliases.clone(),
        key: if simulated {
            ReplicaKey::NotWanted
        } else {
            ReplicaKey::from_env(&backend.key_env)
        },
        profile: profile.clone(),
        tls: tls.clone().filter(|_| replica.launcher.is_secure()),
        launcher: replica.launcher.clone(),
    }
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
