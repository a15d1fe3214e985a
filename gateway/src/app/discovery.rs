//! Replicas that are found while the gateway runs, beside those that the configuration names.
//!
//! Enters: a backend's `[backend.discovery]`. Leaves: the configuration with what was found in it ([`Finders::complete`]), so that a
//! found replica comes and goes like one that a reload adds or drops. A source looks ([`ServiceDiscovery`]); one task for each looks
//! again when it is time. What fails changes nothing, and is said once and counted.
//!
//! The trait has the shape of pingora's `ServiceDiscovery`; a further source (Kubernetes) is a file and an arm of `source`.

// Addresses of a name.
mod dns;
// A file that is watched.
mod file;

use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::dns::Dns;
use self::file::ReplicaFile;
use crate::config::{Config, DiscoveryConfig, ReplicaConfig};
use crate::supervisor::{ExternalConfig, LauncherConfig};
use crate::telemetry::Metrics;
use crate::upstream::Address;

/// Replicas of one backend, those of the configuration among them: more than an index of what is cached where can tell apart.
pub const REPLICAS_MAX: usize = sluice_policy::route::index::REPLICAS_LIMIT;

/// One look takes no longer.
const LOOK_TIME: Duration = Duration::from_secs(5);

/// Looks that were heard of and not carried out yet.
pub const PENDING: usize = 16;

/// What a source found: URLs by name.
pub type Found = BTreeMap<String, String>;

/// Why a source found nothing. What was known stays.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// The name can't be looked up.
    #[error("{name}: {source}")]
    Lookup {
        /// The name.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It has no address.
    #[error("{name}: no address")]
    NoAddress {
        /// The name.
        name: String,
    },
    /// No answer in time.
    #[error("no answer within {LOOK_TIME:?}")]
    Slow,
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It can't be used.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        problem: String,
    },
}

/// A source of replicas.
#[async_trait]
pub trait ServiceDiscovery: Send + Sync {
    /// All there are now.
    async fn discover(&self) -> Result<Found, DiscoveryError>;

    /// Waits until it is worth another look.
    async fn changed(&self);
}

fn source(settings: &DiscoveryConfig) -> Box<dyn ServiceDiscovery> {
    if settings.dns.is_empty() {
        Box::new(ReplicaFile::new(settings.file.clone()))
    } else {
        Box::new(Dns::new(&settings.dns, settings.interval))
    }
}

/// Everybody who looks for replicas.
pub struct Finders {
    all: Vec<Finder>,
    /// Where each backend's are found.
    of: HashMap<String, DiscoveryConfig>,
    tell: mpsc::Sender<News>,
    metrics: Metrics,
}

/// One source. Several backends may have the same.
struct Finder {
    settings: DiscoveryConfig,
    found: Found,
    /// Its first look has ended.
    has_looked: bool,
    task: JoinHandle<()>,
}

/// A source has found other replicas, or its first look has ended.
pub struct News {
    settings: DiscoveryConfig,
    /// `None`: that look failed.
    found: Option<Found>,
}

impl Drop for Finder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Finders {
    /// None yet; what they find is told there.
    pub fn new(tell: mpsc::Sender<News>, metrics: Metrics) -> Finders {
        Finders {
            all: Vec::new(),
            of: HashMap::new(),
            tell,
            metrics,
        }
    }

    /// Those that this configuration wants, and no others. A backend whose replicas are found elsewhere from now on keeps those it has until
    /// the new source has answered.
    pub fn follow(&mut self, config: &Config) {
        let backends = config.backend.iter().filter(|backend| backend.discovery.is_enabled());
        let wanted: HashMap<String, DiscoveryConfig> = backends
            .map(|backend| (backend.name.clone(), backend.discovery.clone()))
            .collect();
        let mut new: Vec<Finder> = Vec::new();
        for (backend, settings) in &wanted {
            let is_known = |finder: &Finder| finder.settings == *settings;
            if self.all.iter().any(is_known) || new.iter().any(is_known) {
                continue;
            }
            let before = self.of.get(backend).and_then(|before| self.finder(before));
            let found = before.map(|finder| finder.found.clone()).unwrap_or_default();
            let task = look(
                source(settings),
                settings.clone(),
                self.tell.clone(),
                self.metrics.clone(),
            );
            new.push(Finder {
                settings: settings.clone(),
                found,
                has_looked: false,
                task: tokio::spawn(task),
            });
        }
        self.all.append(&mut new);
        self.all
            .retain(|finder| wanted.values().any(|settings| *settings == finder.settings));
        self.of = wanted;
    }

    fn finder(&self, settings: &DiscoveryConfig) -> Option<&Finder> {
        self.all.iter().find(|finder| finder.settings == *settings)
    }

    /// True if other replicas are to be held now.
    pub fn heard(&mut self, news: News) -> bool {
        let finder = self.all.iter_mut().find(|finder| finder.settings == news.settings);
        let Some(finder) = finder else { return false };
        finder.has_looked = true;
        news.found.map(|found| finder.found = found).is_some()
    }

    /// Replicas of this backend are looked for, and the first look hasn't ended.
    pub fn is_awaited(&self, backend: &str) -> bool {
        let settings = self.of.get(backend);
        let finder = settings.and_then(|settings| self.finder(settings));
        finder.is_some_and(|finder| !finder.has_looked)
    }

    /// The configuration with what was found. What is there already, by its address, isn't added; a name that is taken is left out.
    pub fn complete(&self, config: &Config) -> Config {
        let mut config = config.clone();
        let replicas = config.backend.iter().flat_map(|backend| &backend.replica);
        let mut names: HashSet<String> = replicas.map(|replica| replica.name.clone()).collect();
        for backend in &mut config.backend {
            let Some(finder) = self.finder(&backend.discovery) else {
                continue;
            };
            let known: HashSet<String> = backend.replica.iter().filter_map(address).collect();
            for (name, url) in &finder.found {
                if known.contains(url) {
                    continue;
                }
                if backend.replica.len() >= REPLICAS_MAX {
                    tracing::error!(
                        backend = backend.name,
                        most = REPLICAS_MAX,
                        found = finder.found.len(),
                        "more replicas were found than one backend has: the rest is left out"
                    );
                    break;
                }
                if !names.insert(name.clone()) {
                    tracing::error!(
                        backend = backend.name,
                        replica = name,
                        url,
                        "a replica that was found has the name of another one: it is left out"
                    );
                    continue;
                }
                let external = ExternalConfig {
                    url: url.clone(),
                    probe: backend.discovery.probe,
                };
                backend
                    .replica
                    .push(ReplicaConfig::new(name, LauncherConfig::External(external)));
            }
            if let Some(host) = dns::secure_host(&backend.discovery.dns)
                && backend.tls.server_name.is_empty()
            {
                // Certificates are for the name, not for the addresses behind it.
                backend.tls.server_name = host;
            }
        }
        config
    }
}

/// The URL of an external replica in the form in which it is found.
fn address(replica: &ReplicaConfig) -> Option<String> {
    match &replica.launcher {
        LauncherConfig::External(external) => Some(Address::from_url(&external.url).ok()?.url()),
        LauncherConfig::Process(_) | LauncherConfig::Simulated(_) => None,
    }
}

/// Looks again and again.
async fn look(
    source: Box<dyn ServiceDiscovery>,
    settings: DiscoveryConfig,
    tell: mpsc::Sender<News>,
    metrics: Metrics,
) {
    let mut known = Found::new();
    let mut failure = None;
    let mut has_looked = false;
    loop {
        let mut news = None;
        let looked = tokio::time::timeout(LOOK_TIME, source.discover()).await;
        match looked.unwrap_or(Err(DiscoveryError::Slow)) {
            Ok(found) => {
                if failure.take().is_some() {
                    tracing::info!(replicas = found.len(), "replicas are found again");
                }
                if found != known {
                    known.clone_from(&found);
                    news = Some(found);
                }
            }
            Err(error) => {
                metrics.discovery_failed();
                let error = error.to_string();
                if failure.as_ref() != Some(&error) {
                    tracing::error!(
                        error,
                        known = known.len(),
                        "replicas can't be found: those that were known stay"
                    );
                    failure = Some(error);
                }
            }
        }
        if news.is_some() || !has_looked {
            let settings = settings.clone();
            if tell.send(News { settings, found: news }).await.is_err() {
                return;
            }
        }
        has_looked = true;
        source.changed().await;
    }
}

#[cfg(test)]
mod tests;
