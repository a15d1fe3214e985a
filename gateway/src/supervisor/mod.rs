//! Beside the path: holds every replica to its launcher and profile.
//!
//! Enters: the replicas as configured ([`ReplicaSpec`]) and the state folder. Leaves: one [`ReplicaState`] per replica, on a
//! watch channel. Only this room starts processes; it never touches a request. `life` of `policy::profile` decides each step of a
//! launched replica, `process` does it, `session` knows the processes of one launch, `ledger` keeps what the next gateway must
//! know, `probe` asks whether a vLLM answers, `holder` says who sits on a port.
//!
//! A launched vLLM runs in a session of its own (the `setsid` program, which execs in place and so keeps the pid; `pre_exec`
//! would need `unsafe`, and starting ourselves anew needs our own program file, which an upgrade replaces). Its output goes to a
//! file, never a pipe: it outlives the gateway.

mod external;
mod holder;
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

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use holder::{Holder, busy_port_message, port_holder, vllm_at, vllm_hint};
pub use simulated::{Simulation, StartSimulation};
pub use spec::{
    ExternalConfig, KEY_VARIABLE, LauncherConfig, OnExit, ProcessConfig, ReplicaKey, ReplicaSpec, SettingError,
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
    replicas: Vec<Replica>,
    /// Another gateway may have the launched ones.
    let_go: bool,
}

struct Replica {
    name: String,
    launcher: &'static str,
    is_launched: bool,
    wanted: watch::Sender<Wanted>,
    state: watch::Receiver<ReplicaState>,
    task: JoinHandle<()>,
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
        let launches = specs
            .iter()
            .any(|spec| matches!(spec.launcher, LauncherConfig::Process(_)));
        let ledger = match launches || Ledger::exists(&settings.state_folder) {
            true => Some(Arc::new(Ledger::open(&settings.state_folder)?)),
            false => None,
        };
        let names: HashSet<String> = specs
            .iter()
            .filter(|spec| launched(spec))
            .map(|spec| spec.name.clone())
            .collect();
        let cleared = clear_strays(ledger.as_ref(), &names);
        let settings = Arc::new(settings);
        let mut replicas = Vec::with_capacity(specs.len());
        for spec in specs {
            let (wanted, wants) = watch::channel(Wanted::Run);
            let (tell, state) = watch::channel(ReplicaState::Starting {
                since: jiff::Timestamp::now(),
            });
            let (name, launcher, is_launched) = (spec.name.clone(), spec.launcher.name(), launched(&spec));
            let task = match (&spec.launcher, &ledger) {
                (LauncherConfig::External(config), _) => {
                    tokio::spawn(external::watch(spec.clone(), config.clone(), wants, tell))
                }
                (LauncherConfig::Simulated(config), _) => tokio::spawn(simulated::run(
                    spec.clone(),
                    config.clone(),
                    Arc::clone(&simulate),
                    wants,
                    tell,
                )),
                (LauncherConfig::Process(config), Some(ledger)) => {
                    let launch =
                        process::Launch::new(spec.clone(), config.clone(), Arc::clone(&settings), Arc::clone(ledger));
                    tokio::spawn(process::run(launch, cleared.clone(), wants, tell))
                }
                (LauncherConfig::Process(_), None) => continue, // unreachable: a process replica opens the ledger
            };
            replicas.push(Replica {
                name,
                launcher,
                is_launched,
                wanted,
                state,
                task,
            });
        }
        Ok(Supervisor {
            replicas,
            let_go: false,
        })
    }

    /// The replicas: name, launcher, and the state as a watch channel (the receiver always has the newest).
    pub fn replicas(&self) -> impl Iterator<Item = (&str, &'static str, watch::Receiver<ReplicaState>)> {
        self.replicas
            .iter()
            .map(|replica| (replica.name.as_str(), replica.launcher, replica.state.clone()))
    }

    /// The state of one replica.
    pub fn watch(&self, name: &str) -> Option<watch::Receiver<ReplicaState>> {
        self.find(name).map(|replica| replica.state.clone())
    }

    /// Ends a replica and keeps it ended; false if there is none of that name.
    pub fn rest(&self, name: &str) -> bool {
        self.find(name)
            .map(|replica| replica.wanted.send_replace(Wanted::Rest))
            .is_some()
    }

    /// Starts a replica that rests, waits for its next try or was given up; false if there is none of that name.
    pub fn resume(&self, name: &str) -> bool {
        self.find(name)
            .map(|replica| replica.wanted.send_replace(Wanted::Run))
            .is_some()
    }

    /// Leaves the launched replicas, and the lock on them, to another gateway; the others stay. Returns when it is so.
    pub async fn let_go(&mut self) {
        self.let_go = true;
        let launched: Vec<Replica> = self.replicas.extract_if(.., |replica| replica.is_launched).collect();
        for replica in &launched {
            replica.wanted.send_replace(Wanted::LetGo);
        }
        for replica in launched {
            if let Err(error) = replica.task.await {
                tracing::error!(replica = replica.name, %error, "the task of a replica failed");
            }
        }
    }

    /// [`Supervisor::let_go`] has been called, and [`Supervisor::take_back`] not since.
    pub fn has_let_go(&self) -> bool {
        self.let_go
    }

    /// Takes them again: as [`Supervisor::start`] does with what an earlier gateway left.
    ///
    /// # Errors
    /// As there.
    pub fn take_back(
        &mut self,
        settings: &Settings,
        specs: &[ReplicaSpec],
        simulate: &StartSimulation,
    ) -> Result<(), SupervisorError> {
        let launched: Vec<ReplicaSpec> = specs.iter().filter(|spec| launched(spec)).cloned().collect();
        if !launched.is_empty() {
            let again = Supervisor::start(settings.clone(), launched, simulate.clone())?;
            self.replicas.extend(again.replicas);
        }
        self.let_go = false;
        Ok(())
    }

    /// The gateway goes down: ends every launched process that isn't to be left (SIGTERM, SIGKILL at its limit) and returns when
    /// nothing of them is there any more. Bounded by the longest `stop_grace` and the kernel.
    pub async fn shutdown(self) {
        for replica in &self.replicas {
            replica.wanted.send_replace(Wanted::Close);
        }
        for replica in self.replicas {
            if let Err(error) = replica.task.await {
                tracing::error!(replica = replica.name, %error, "the task of a replica failed");
            }
        }
    }

    fn find(&self, name: &str) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.name == name)
    }
}

/// The log file of a launched replica.
pub fn log_path(state_folder: &Path, replica: &str) -> PathBuf {
    ledger::log_path(state_folder, replica)
}

fn launched(spec: &ReplicaSpec) -> bool {
    matches!(spec.launcher, LauncherConfig::Process(_))
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
            launcher,
        }
    }
}
