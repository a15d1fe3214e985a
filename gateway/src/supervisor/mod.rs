//! Beside the path: holds every replica to its launcher and profile.
//!
//! Enters: the replicas as configured ([`ReplicaSpec`]), at the start and later, and the state folder. Leaves: one [`ReplicaState`] per
//! replica, on a watch channel. Only this room starts processes; it never touches a request. `life` of `policy::profile` decides each step of a
//! launched replica, `process` does it, `session` knows the processes of one launch, `ledger` keeps what the next gateway must
//! know, `probe` asks whether a vLLM answers, `holder` says who sits on a port, `leaving` is how one goes that is configured no more.
//!
//! A launched vLLM runs in a session of its own (the `setsid` program, which execs in place and so keeps the pid; `pre_exec`
//! would need `unsafe`, and starting ourselves anew needs our own program file, which an upgrade replaces). Its output goes to a
//! file, never a pipe: it outlives the gateway.

mod external;
mod holder;
mod leaving;
mod ledger;
mod probe;
mod process;
mod procfs;
mod session;
mod simulated;
mod spec;
mod state;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use holder::{Holder, busy_port_message, port_holder, vllm_at, vllm_hint};
pub use leaving::Leaving;
pub use simulated::{Simulation, StartSimulation};
pub use spec::{
    ExternalConfig, KEY_VARIABLE, LauncherConfig, NAME_BYTES_MAX, OnExit, ProcessConfig, ReplicaKey, ReplicaSpec,
    SettingError, is_replica_name,
};
pub use state::ReplicaState;

use ledger::Ledger;

/// Why the supervisor can't start.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// A name that can't be a file name.
    #[error("replica name {0:?}: 1 to 64 letters, digits, '-', '_' or '.', and no '.' first")]
    Name(String),
    /// Two replicas of one name.
    #[error("two replicas are named `{0}`")]
    Twice(String),
    /// A launcher's setting is missing or wrong.
    #[error("replica `{replica}`: {error}")]
    Setting {
        /// The replica.
        replica: String,
        /// Which, and what is wrong with it.
        error: SettingError,
    },
    /// Another gateway holds this state folder.
    #[error("{path} is locked by {holder}: one gateway at a time owns the replicas of a state folder")]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// The state folder can't be used.
    #[error("{path}: {source}")]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What a replica's task is to bring about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// That it runs.
    Run,
    /// That it rests.
    Rest,
    /// That the task ends: the gateway is going down.
    Close,
    /// That the task ends and leaves everything to another gateway.
    LetGo,
    /// That it ends for good, whatever `on_exit` says: it is configured no more.
    End,
}

impl Wanted {
    /// Nothing else will be wished.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Wanted::Close | Wanted::LetGo | Wanted::End)
    }
}

/// What a replica's task goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// What it is to bring about.
    pub(crate) wanted: Wanted,
    /// The replica's name: a reload may change it.
    pub(crate) name: String,
    /// The key of one that is watched only.
    pub(crate) key: ReplicaKey,
}

/// Where the supervisor keeps its files, and what it must keep from launched processes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The state folder; created with mode 0700.
    pub state_folder: PathBuf,
    /// Environment variables of the gateway that a launched process doesn't inherit: the clients' key, the backends' `key_env`s.
    pub secret_variables: Vec<String>,
}

/// Owns the replicas from [`Supervisor::start`] to [`Supervisor::shutdown`].
pub struct Supervisor {
    state_folder: PathBuf,
    /// Environment variables that a launched process doesn't inherit.
    secrets: Arc<ArcSwap<Vec<String>>>,
    simulate: StartSimulation,
    ledger: Option<Arc<Ledger>>,
    cleared: watch::Receiver<bool>,
    replicas: Vec<Replica>,
    /// Those that are configured no more, until nothing is left of them.
    leaving: Vec<Replica>,
    /// Another gateway may have the launched ones.
    let_go: bool,
}

struct Replica {
    launcher: &'static str,
    is_launched: bool,
    port: Option<u16>,
    orders: Arc<watch::Sender<Order>>,
    state: watch::Receiver<ReplicaState>,
    task: JoinHandle<()>,
}

impl Replica {
    fn name(&self) -> String {
        self.orders.borrow().name.clone()
    }

    fn wants(&self, wanted: Wanted) {
        self.orders.send_modify(|order| order.wanted = wanted);
    }
}

impl Supervisor {
    /// Takes the lock, takes over or ends what an earlier gateway left, and starts every replica. Must be called inside a tokio
    /// runtime. Returns at once; what becomes of the replicas is told by [`Supervisor::watch`].
    ///
    /// # Errors
    /// If a spec is wrong, or (only with a process replica) the state folder can't be used or is another gateway's.
    pub fn start(
        settings: Settings,
        specs: Vec<ReplicaSpec>,
        simulate: StartSimulation,
    ) -> Result<Supervisor, SupervisorError> {
        check(&specs)?;
        let (ledger, cleared) = take_over(&settings.state_folder, &specs)?;
        let mut supervisor = Supervisor {
            state_folder: settings.state_folder,
            secrets: Arc::new(ArcSwap::from_pointee(settings.secret_variables)),
            simulate,
            ledger,
            cleared,
            replicas: Vec::with_capacity(specs.len()),
            leaving: Vec::new(),
            let_go: false,
        };
        for spec in specs {
            supervisor.add(spec)?;
        }
        Ok(supervisor)
    }

    /// One more, while the others run. A new start waits for what leaves by the same name or port.
    ///
    /// # Errors
    /// If the spec is wrong, its name taken, or (only with the first process replica) the state folder can't be used.
    pub fn add(&mut self, spec: ReplicaSpec) -> Result<watch::Receiver<ReplicaState>, SupervisorError> {
        spec.check()?;
        if self.find(&spec.name).is_some() {
            return Err(SupervisorError::Twice(spec.name));
        }
        if launched(&spec) && self.ledger.is_none() {
            self.ledger = Some(Arc::new(Ledger::open(&self.state_folder)?));
        }
        let (orders, wants) = watch::channel(Order {
            wanted: Wanted::Run,
            name: spec.name.clone(),
            key: spec.key.clone(),
        });
        let (tell, state) = watch::channel(ReplicaState::Looking {
            since: jiff::Timestamp::now(),
        });
        let (launcher, port, is_launched) = (spec.launcher.name(), spec.launcher.port(), launched(&spec));
        let before = self.leaving_before(&spec.name, port);
        let task = match (spec.launcher.clone(), &self.ledger) {
            (LauncherConfig::External(config), _) => tokio::spawn(external::watch(spec, config, wants, tell)),
            (LauncherConfig::Simulated(config), _) => {
                tokio::spawn(simulated::run(spec, config, Arc::clone(&self.simulate), wants, tell))
            }
            (LauncherConfig::Process(config), Some(ledger)) => {
                let launch = process::Launch::new(spec, config, Arc::clone(&self.secrets), Arc::clone(ledger));
                let cleared = self.cleared.clone();
                tokio::spawn(async move {
                    if leaving::all_gone(before, &mut wants.clone()).await {
                        process::run(launch, cleared, wants, tell).await;
                    }
                })
            }
            (LauncherConfig::Process(_), None) => return Ok(state), // unreachable: a process replica opens the ledger
        };
        self.replicas.push(Replica {
            launcher,
            is_launched,
            port,
            orders: Arc::new(orders),
            state: state.clone(),
            task,
        });
        Ok(state)
    }

    /// Replicas that stay have these names, and those that are only watched these keys, from now on: the old name of each, the new one,
    /// the key. Names may be exchanged.
    pub fn change(&self, changes: &[(String, String, ReplicaKey)]) {
        let found: Vec<_> = changes
            .iter()
            .filter_map(|(old, new, key)| Some((self.find(old)?, new, key)))
            .collect();
        for (replica, new, key) in found {
            replica.orders.send_if_modified(|order| {
                let is_other = order.name != *new || order.key != *key;
                order.name.clone_from(new);
                order.key.clone_from(key);
                is_other
            });
        }
    }

    /// It is configured no more: it runs on until it is told to end.
    pub fn release(&mut self, name: &str) -> Option<Leaving> {
        self.leaving.retain(|replica| !replica.task.is_finished());
        let place = self.replicas.iter().position(|replica| replica.name() == name)?;
        let replica = self.replicas.remove(place);
        let leaving = Leaving::new(replica.orders.clone(), replica.state.clone());
        self.leaving.push(replica);
        Some(leaving)
    }

    /// Environment variables that processes started from now on don't inherit.
    pub fn keep_secret(&self, variables: Vec<String>) {
        self.secrets.store(Arc::new(variables));
    }

    /// What is to be gone before a process of this name and port may start.
    fn leaving_before(&self, name: &str, port: Option<u16>) -> Vec<watch::Receiver<ReplicaState>> {
        let before = self.leaving.iter();
        let before = before.filter(|replica| replica.name() == name || (port.is_some() && replica.port == port));
        before.map(|replica| replica.state.clone()).collect()
    }

    /// The replicas: name, launcher, and the state as a watch channel (the receiver always has the newest).
    pub fn replicas(&self) -> impl Iterator<Item = (String, &'static str, watch::Receiver<ReplicaState>)> {
        self.replicas
            .iter()
            .map(|replica| (replica.name(), replica.launcher, replica.state.clone()))
    }

    /// The state of one replica.
    pub fn watch(&self, name: &str) -> Option<watch::Receiver<ReplicaState>> {
        self.find(name).map(|replica| replica.state.clone())
    }

    /// Ends a replica and keeps it ended; false if there is none of that name.
    pub fn rest(&self, name: &str) -> bool {
        self.find(name).map(|replica| replica.wants(Wanted::Rest)).is_some()
    }

    /// Starts a replica that rests, waits for its next try or was given up; false if there is none of that name.
    pub fn resume(&self, name: &str) -> bool {
        self.find(name).map(|replica| replica.wants(Wanted::Run)).is_some()
    }

    /// Leaves the launched replicas, and the lock on them, to another gateway; the others stay. Returns when it is so.
    pub async fn let_go(&mut self) {
        self.let_go = true;
        let held = self.replicas.extract_if(.., |replica| replica.is_launched);
        let leaving = self.leaving.extract_if(.., |replica| replica.is_launched);
        let launched: Vec<Replica> = held.chain(leaving).collect();
        for replica in &launched {
            replica.wants(Wanted::LetGo);
        }
        for replica in launched {
            let name = replica.name();
            if let Err(error) = replica.task.await {
                tracing::error!(replica = name, %error, "the task of a replica failed");
            }
        }
        // The lock goes with the last one that has it.
        self.ledger = None;
    }

    /// [`Supervisor::let_go`] has been called, and [`Supervisor::take_back`] not since.
    pub fn has_let_go(&self) -> bool {
        self.let_go
    }

    /// Takes them again: as [`Supervisor::start`] does with what an earlier gateway left.
    ///
    /// # Errors
    /// As there.
    pub fn take_back(&mut self, specs: Vec<ReplicaSpec>) -> Result<(), SupervisorError> {
        (self.ledger, self.cleared) = take_over(&self.state_folder, &specs)?;
        for spec in specs.into_iter().filter(launched) {
            self.add(spec)?;
        }
        self.let_go = false;
        Ok(())
    }

    /// The gateway goes down: ends every launched process that isn't to be left (SIGTERM, SIGKILL at its limit) and returns when
    /// nothing of them is there any more. Bounded by the longest `stop_grace` and the kernel.
    pub async fn shutdown(self) {
        for replica in &self.replicas {
            replica.wants(Wanted::Close);
        }
        for replica in &self.leaving {
            replica.wants(Wanted::End);
        }
        for replica in self.replicas.into_iter().chain(self.leaving) {
            let name = replica.name();
            if let Err(error) = replica.task.await {
                tracing::error!(replica = name, %error, "the task of a replica failed");
            }
        }
    }

    fn find(&self, name: &str) -> Option<&Replica> {
        self.replicas
            .iter()
            .find(|replica| replica.orders.borrow().name == name)
    }
}

/// The log file of a launched replica.
pub fn log_path(state_folder: &Path, replica: &str) -> PathBuf {
    ledger::log_path(state_folder, replica)
}

fn launched(spec: &ReplicaSpec) -> bool {
    spec.launcher.is_process()
}

/// The lock on launched replicas, if there are some or were; those that are configured no more are being ended.
fn take_over(
    state_folder: &Path,
    specs: &[ReplicaSpec],
) -> Result<(Option<Arc<Ledger>>, watch::Receiver<bool>), SupervisorError> {
    let names: HashSet<String> = specs
        .iter()
        .filter(|spec| launched(spec))
        .map(|spec| spec.name.clone())
        .collect();
    let ledger = match !names.is_empty() || Ledger::exists(state_folder) {
        true => Some(Arc::new(Ledger::open(state_folder)?)),
        false => None,
    };
    let cleared = clear_strays(ledger.as_ref(), &names);
    Ok((ledger, cleared))
}

fn check(specs: &[ReplicaSpec]) -> Result<(), SupervisorError> {
    let mut names = HashSet::new();
    for spec in specs {
        spec.check()?;
        if !names.insert(spec.name.as_str()) {
            return Err(SupervisorError::Twice(spec.name.clone()));
        }
    }
    Ok(())
}

/// Ends what the ledger has of replicas that are no longer configured. The others wait for it: it may hold their port, and
/// surely holds GPU memory.
fn clear_strays(ledger: Option<&Arc<Ledger>>, wanted: &HashSet<String>) -> watch::Receiver<bool> {
    let (tell, cleared) = watch::channel(false);
    let strays: Vec<String> = ledger
        .map(|ledger| ledger.names())
        .unwrap_or_default()
        .into_iter()
        .filter(|name| !wanted.contains(name))
        .collect();
    let Some(ledger) = ledger.cloned().filter(|_| !strays.is_empty()) else {
        tell.send_replace(true);
        return cleared;
    };
    tokio::spawn(async move {
        for name in strays {
            process::end_stray(&ledger, &name).await;
        }
        tell.send_replace(true);
    });
    cleared
}

#[cfg(test)]
mod tests {
    use sluice_policy::profile::builtin;

    use super::*;

    /// A replica named `name` with everything but its launcher by default.
    pub(super) fn spec(name: &str, launcher: LauncherConfig) -> ReplicaSpec {
        ReplicaSpec {
            name: name.to_owned(),
            model: "m".to_owned(),
            aliases: Vec::new(),
            key: ReplicaKey::NotWanted,
            profile: builtin("chunked_only_safe").unwrap().clone(),
            tls: None,
            launcher,
        }
    }
}
