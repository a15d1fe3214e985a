//! A replica that Sluice starts: the life that `policy` decides, lived.
//!
//! One task per replica: it waits for the next event (the process ended, the vLLM came up, nothing is left, a time is due, another
//! wish), lets `life::step` decide, and does the one action that follows. Nothing else knows the processes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use sluice_policy::profile::life::{Action, Event, Life, Rules, Then, step};
use sluice_policy::profile::{Diagnosis, Finding, Serving, argv, diagnose};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::holder::{listener_among, port_holder};
use super::ledger::{Entry, Ledger};
use super::probe::{self, Found};
use super::session::{Session, SpawnError};
use super::spec::KEY_VARIABLE;
use super::{OnExit, Order, ProcessConfig, ReplicaKey, ReplicaSpec, ReplicaState, Wanted, procfs};
use crate::upstream::Address;

/// Between two looks whether a starting vLLM is ready.
const LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Between two looks whether an ending session is empty.
const CLEAR_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at the log's size.
const LOG_PAUSE: Duration = Duration::from_secs(60);
/// When the gateway goes down, so many SIGKILLs are waited for: a process in an uninterruptible wait of the GPU's driver may
/// never end, and must not hold the gateway.
const KILLS_AT_EXIT_MAX: u32 = 6;
/// The grace of processes whose replica is no longer configured.
const STRAY_GRACE: Duration = Duration::from_secs(30);

/// What one start needs, computed once.
pub(super) struct Launch {
    spec: ReplicaSpec,
    config: ProcessConfig,
    /// Variables that it doesn't inherit.
    secrets: Arc<ArcSwap<Vec<String>>>,
    ledger: Arc<Ledger>,
    /// Program and arguments.
    argv: Vec<String>,
    rules: Rules,
}

impl Launch {
    pub(super) fn new(
        spec: ReplicaSpec,
        config: ProcessConfig,
        secrets: Arc<ArcSwap<Vec<String>>>,
        ledger: Arc<Ledger>,
    ) -> Launch {
        let names: Vec<String> = std::iter::once(&spec.model)
            .filter(|id| !id.is_empty())
            .chain(&spec.aliases)
            .cloned()
            .collect();
        let serving = Serving {
            host: "127.0.0.1",
            port: config.port,
            served_names: &names,
        };
        let argv = config
            .command
            .iter()
            .cloned()
            .chain(argv(&spec.profile, &serving))
            .collect();
        let rules = config.rules();
        Launch {
            spec,
            config,
            secrets,
            ledger,
            argv,
            rules,
        }
    }

    fn name(&self) -> &str {
        &self.spec.name
    }

    /// What is set and removed in the child's environment. The key goes in last: nothing may replace it.
    fn environment(&self) -> Vec<(String, Option<String>)> {
        let secrets = self.secrets.load();
        let removed = secrets.iter().map(|name| (name.clone(), None));
        let set = self
            .config
            .env
            .iter()
            .map(|(name, value)| (name.clone(), Some(value.clone())));
        let key = (KEY_VARIABLE.to_owned(), self.spec.key.value().map(str::to_owned));
        removed.chain(set).chain([key]).collect()
    }

    /// Tells whether a process that runs is the one that would be started.
    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        let environment = self
            .environment()
            .into_iter()
            .flat_map(|(name, value)| [name, value.unwrap_or_default()]);
        for part in self.argv.iter().cloned().chain(environment) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Starts the process, unless it is known beforehand that it would fail.
    fn start(&self) -> Result<Session, Finding> {
        if let ReplicaKey::Missing { variable } = &self.spec.key {
            let why = format!("environment variable {variable} (the backend's key_env) isn't set");
            return Err(Finding::new(Diagnosis::MissingApiKey, why));
        }
        if std::net::TcpListener::bind(("127.0.0.1", self.config.port))
            .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        {
            let holder = port_holder(self.config.port).map_or("somebody".to_owned(), |holder| holder.to_string());
            return Err(Finding::new(
                Diagnosis::PortTaken,
                format!("port {} is held by {holder}", self.config.port),
            ));
        }
        let failed = |error: &dyn std::fmt::Display| Finding::new(Diagnosis::Unknown, error.to_string());
        let log = self
            .ledger
            .new_log(self.name())
            .map_err(|error| failed(&format_args!("its log can't be opened: {error}")))?;
        let (program, args) = self.argv.split_first().ok_or_else(|| failed(&"no command"))?;
        let session = Session::spawn(program, args, &self.environment(), log).map_err(|error| match error {
            SpawnError::NotFound(_) => Finding::new(Diagnosis::CommandNotFound, error.to_string()),
            SpawnError::System { .. } => failed(&error),
        })?;
        if let Err(error) = self.note(&session) {
            tracing::warn!(replica = self.name(), %error, "a launched process can't be noted: a killed gateway would lose it");
        }
        Ok(session)
    }

    fn note(&self, session: &Session) -> io::Result<()> {
        let entry = Entry {
            pid: session.pid(),
            start_ticks: session.start_ticks(),
            boot_id: procfs::boot_id()?,
            started: Timestamp::now().to_string(),
            port: self.config.port,
            argv: self.argv.clone(),
            fingerprint: self.fingerprint(),
        };
        self.ledger.write(self.name(), &entry)
    }

    /// Waits until the vLLM of `session` answers on the port, with the model. `seen` keeps what the last look found missing.
    async fn ready(&self, session: &Session, seen: &mut String) -> Found {
        let address = Address::loopback(self.config.port);
        loop {
            match probe::look(&address, &self.spec.model, self.spec.key.value()).await {
                Ok(found) if self.is_ours(session, seen) => return found,
                Ok(_) => {}
                Err(error) => *seen = error.to_string(),
            }
            sleep(LOOK_PAUSE).await;
        }
    }

    /// Another server may have taken the port between our look and the process's bind: its health isn't our replica's.
    fn is_ours(&self, session: &Session, seen: &mut String) -> bool {
        if listener_among(self.config.port, session.members().into_iter().map(|(pid, _)| pid)).is_some() {
            return true;
        }
        let holder = port_holder(self.config.port).map_or("nobody".to_owned(), |holder| holder.to_string());
        *seen = format!("port {} answers, but is held by {holder}", self.config.port);
        false
    }

    /// Why the process ended, from its log; the key is masked should it stand there.
    fn finding(&self, session: Option<&Session>) -> Finding {
        let mut log = self.ledger.log_tail(self.name()).unwrap_or_default();
        if let Some(key) = self.spec.key.value() {
            log = log.replace(key, "***");
        }
        let mut finding = diagnose(&log);
        if finding.diagnosis == Diagnosis::Unknown
            && let Some(ending) = session.and_then(Session::ending)
        {
            finding.evidence.push(ending);
        }
        finding
    }
}

/// A replica's task. Returns when the gateway goes down and the process has gone, or is left as configured.
pub(super) async fn run(
    launch: Launch,
    mut cleared: watch::Receiver<bool>,
    wants: watch::Receiver<Order>,
    tell: watch::Sender<ReplicaState>,
) {
    let mut replica = Replica {
        launch,
        wants,
        wish: Wanted::Run,
        tell,
        epoch: Instant::now(),
        life: Life::Stopped,
        session: None,
        finding: None,
        found: None,
        seen: String::new(),
        kills: 0,
        is_taken_over: false,
    };
    replica.take_over();
    if replica.session.is_none() {
        // Nobody is to wait for it: a start takes minutes.
        let since = Timestamp::now();
        replica.tell.send_replace(ReplicaState::Starting { since });
    }
    // what is taken over needs nothing; a new start waits for the memory and ports of strays
    if replica.session.is_none() {
        tokio::select! {
            _ = cleared.wait_for(|cleared| *cleared) => {}
            _ = replica.wants.wait_for(|order| order.wanted.is_final()) => return,
        }
    }
    replica.live().await;
}

struct Replica {
    launch: Launch,
    wants: watch::Receiver<Order>,
    /// What was last wished. `Close` and `End` are final.
    wish: Wanted,
    tell: watch::Sender<ReplicaState>,
    /// Zero of the life's instants.
    epoch: Instant,
    life: Life,
    session: Option<Session>,
    /// Why it last ended.
    finding: Option<Finding>,
    /// What the last successful look found.
    found: Option<Found>,
    /// What the last look found missing.
    seen: String,
    /// SIGKILLs since the last start.
    kills: u32,
    /// The process is an earlier gateway's: it may be ready.
    is_taken_over: bool,
}

/// What woke the task.
enum Woken {
    /// The wish has changed; false if nobody wishes any more, which is as good as the gateway's end.
    Wish(bool),
    /// The first process has ended.
    Died,
    /// It answers, with its model.
    CameUp(Found),
    /// Nothing is left of it.
    Gone,
    /// The life's next time is due.
    Due,
}

impl Replica {
    /// Looks for what an earlier gateway started. What would be started now is kept; anything else is ended first.
    fn take_over(&mut self) {
        let Some((entry, session)) = leftover(&self.launch.ledger, self.launch.name()) else {
            return;
        };
        let same = entry.fingerprint == self.launch.fingerprint();
        let (replica, pid) = (self.launch.name(), entry.pid);
        match same {
            true => tracing::info!(replica, pid, started = %entry.started, "takes over a process of an earlier run"),
            false => tracing::info!(
                replica,
                pid,
                "ends a process of an earlier run: it was started with other settings"
            ),
        }
        self.session = Some(session);
        self.is_taken_over = same;
        self.apply(Event::Adopt);
        if !same {
            self.apply(Event::Stop);
        }
    }

    async fn live(&mut self) {
        self.wants.mark_changed(); // the first wish is a change
        loop {
            match self.next().await {
                Woken::Wish(heard) => {
                    let order = heard.then(|| self.wants.borrow_and_update().clone());
                    let was_renamed = order.as_ref().is_some_and(|order| self.rename(&order.name));
                    let wish = order.map_or(Wanted::Close, |order| order.wanted);
                    let is_news = !was_renamed || wish != self.wish || self.life == Life::Stopped;
                    self.wish = wish;
                    match wish {
                        Wanted::LetGo => return,
                        Wanted::Close if self.is_to_be_left() => return,
                        Wanted::Run if is_news => self.apply(Event::Start),
                        Wanted::Run => {}
                        Wanted::Rest | Wanted::Close | Wanted::End => self.apply(Event::Stop),
                    }
                }
                Woken::Died => {
                    let finding = self.launch.finding(self.session.as_ref());
                    self.fail(finding);
                }
                Woken::CameUp(found) => {
                    self.found = Some(found);
                    self.apply(Event::CameUp);
                }
                Woken::Gone => {
                    self.session = None;
                    self.launch.ledger.remove(self.launch.name());
                    self.apply(Event::Gone);
                }
                Woken::Due => self.apply(Event::Tick),
            }
            if self.wish.is_final() && (self.life == Life::Stopped || self.is_stuck()) {
                return;
            }
        }
    }

    /// The configuration calls it so from now on; false if it did before. Its files follow.
    fn rename(&mut self, name: &str) -> bool {
        let was = std::mem::replace(&mut self.launch.spec.name, name.to_owned());
        if was == name {
            return false;
        }
        self.launch.ledger.rename(&was, name);
        tracing::info!(replica = name, was, "the replica has another name");
        true
    }

    fn is_to_be_left(&self) -> bool {
        let left = self.launch.config.on_exit == OnExit::Leave
            && matches!(self.life, Life::Starting { .. } | Life::Ready { .. });
        if left {
            tracing::info!(
                replica = self.launch.name(),
                "its process runs on (on_exit = \"leave\")"
            );
        }
        left
    }

    fn is_stuck(&self) -> bool {
        let stuck = self.kills > KILLS_AT_EXIT_MAX;
        if stuck {
            let pids = self.session.as_ref().map(Session::members);
            tracing::error!(
                replica = self.launch.name(),
                ?pids,
                "SIGKILL doesn't end it; the next gateway will find it"
            );
        }
        stuck
    }

    /// Waits for what happens next.
    async fn next(&mut self) -> Woken {
        let due = self.life.due(&self.launch.rules).map(|at| self.epoch + at);
        let due = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            wish = self.wants.changed(), if !self.wish.is_final() => Woken::Wish(wish.is_ok()),
            woken = progress(&self.life, &self.launch, &mut self.session, &mut self.seen) => woken,
            () = due => Woken::Due,
            never = keep_log_bounded(&self.launch) => never,
        }
    }

    /// One step of the life, its action, and what is told of it.
    fn apply(&mut self, event: Event) {
        let was = self.life;
        let (life, action) = step(was, event, &self.launch.rules, self.epoch.elapsed());
        self.life = life;
        match action {
            Action::Nothing => {}
            Action::Spawn => return self.spawn(),
            Action::Terminate => {
                if let Life::Clearing {
                    then:
                        Then::Again {
                            diagnosis: Diagnosis::Timeout,
                            ..
                        },
                    ..
                } = life
                {
                    self.finding = Some(self.timeout_finding());
                }
                self.signal(Signal::TERM);
            }
            Action::Kill => {
                self.kills += 1;
                tracing::warn!(
                    replica = self.launch.name(),
                    "still there after SIGTERM and its grace: SIGKILL"
                );
                self.signal(Signal::KILL);
            }
        }
        if life != was {
            self.report();
        }
    }

    fn spawn(&mut self) {
        self.seen = "nothing listened yet".to_owned();
        self.kills = 0;
        self.is_taken_over = false;
        match self.launch.start() {
            Ok(session) => {
                tracing::info!(
                    replica = self.launch.name(),
                    pid = session.pid(),
                    argv = %self.launch.argv.join(" "),
                    log = %self.launch.ledger.log_path(self.launch.name()).display(),
                    "started"
                );
                self.session = Some(session);
                self.report();
            }
            Err(finding) => self.fail(finding), // the session is none: it is gone at the next look
        }
    }

    fn fail(&mut self, finding: Finding) {
        let diagnosis = finding.diagnosis;
        self.finding = Some(finding);
        self.apply(Event::Died(diagnosis));
    }

    fn timeout_finding(&self) -> Finding {
        let limit = self.launch.rules.start_timeout;
        let mut finding = Finding::new(Diagnosis::Timeout, format!("not ready after {limit:?}: {}", self.seen));
        finding.evidence.extend(self.launch.finding(None).evidence);
        finding
    }

    fn signal(&self, signal: Signal) {
        if let Some(session) = &self.session {
            session.signal(signal);
        }
    }

    /// Tells the rest of the gateway, and the log.
    fn report(&self) {
        let replica = self.launch.name();
        let state = self.state();
        match &state {
            ReplicaState::Ready { url, version, .. } => tracing::info!(replica, url, version, "replica is ready"),
            ReplicaState::Crashed {
                finding,
                restarts,
                next_try,
            } if !matches!(self.life, Life::Clearing { .. }) => {
                let (diagnosis, advice) = (finding.diagnosis, finding.diagnosis.advice());
                let log = self.launch.ledger.log_path(replica);
                match next_try {
                    Some(at) => {
                        tracing::error!(replica, %diagnosis, evidence = ?finding.evidence, advice, log = %log.display(), failures = restarts, next_try = %at, "replica failed");
                    }
                    None => {
                        tracing::error!(replica, %diagnosis, evidence = ?finding.evidence, advice, log = %log.display(), "replica failed, and trying again can't help");
                    }
                }
            }
            other => tracing::info!(replica, state = other.name(), "replica"),
        }
        self.tell.send_replace(state);
    }

    fn state(&self) -> ReplicaState {
        let crashed = |restarts, next_try| {
            let finding = self
                .finding
                .clone()
                .unwrap_or_else(|| Finding::new(Diagnosis::Unknown, "no log"));
            ReplicaState::Crashed {
                finding,
                restarts,
                next_try,
            }
        };
        let since = Timestamp::now();
        match self.life {
            Life::Stopped => ReplicaState::Stopped,
            Life::Starting { .. } if self.is_taken_over => ReplicaState::Looking { since },
            Life::Starting { .. } => ReplicaState::Starting { since },
            Life::Ready { .. } => ReplicaState::Ready {
                since,
                url: Address::loopback(self.launch.config.port).url(),
                version: self.found.as_ref().and_then(|found| found.version.clone()),
                models: self
                    .found
                    .as_ref()
                    .map(|found| found.models.clone())
                    .unwrap_or_default(),
            },
            Life::Clearing {
                then: Then::Rest | Then::Start,
                ..
            } => ReplicaState::Stopping,
            Life::Clearing {
                then: Then::Again { failures, .. },
                ..
            } => crashed(failures, None),
            Life::Waiting { until, failures, .. } => {
                let pause = until.saturating_sub(self.epoch.elapsed());
                crashed(failures, since.checked_add(pause).ok())
            }
            Life::GivenUp { failures, .. } => crashed(failures, None),
        }
    }
}

/// What the process itself does next, in each state of its life.
async fn progress(life: &Life, launch: &Launch, session: &mut Option<Session>, seen: &mut String) -> Woken {
    match (life, session) {
        (Life::Starting { .. }, Some(session)) => tokio::select! {
            biased;
            () = session.ended() => Woken::Died,
            found = launch.ready(session, seen) => Woken::CameUp(found),
        },
        (Life::Ready { .. }, Some(session)) => {
            session.ended().await;
            Woken::Died
        }
        (Life::Clearing { killing, .. }, Some(session)) => {
            while !session.is_gone() {
                if *killing {
                    session.signal(Signal::KILL); // what it forked meanwhile
                }
                sleep(CLEAR_PAUSE).await;
            }
            Woken::Gone
        }
        (Life::Clearing { .. }, None) => Woken::Gone,
        (Life::Starting { .. } | Life::Ready { .. }, None) => Woken::Died,
        (Life::Stopped | Life::Waiting { .. } | Life::GivenUp { .. }, _) => std::future::pending().await,
    }
}

async fn keep_log_bounded(launch: &Launch) -> Woken {
    loop {
        sleep(LOG_PAUSE).await;
        if let Err(error) = launch.ledger.bound_log(launch.name())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(replica = launch.name(), %error, "its log can't be cut");
        }
    }
}

/// What an earlier gateway started and what of it is left; an entry of which nothing is left is removed.
fn leftover(ledger: &Ledger, name: &str) -> Option<(Entry, Session)> {
    let entry = ledger.read(name)?;
    let adopted = match procfs::boot_id() {
        Ok(boot_id) if boot_id == entry.boot_id => Session::adopt(entry.pid, entry.start_ticks),
        Ok(_) => Ok(None), // before the machine's last start
        Err(error) => Err(error),
    };
    match adopted {
        Ok(Some(session)) => Some((entry, session)),
        Ok(None) => {
            ledger.remove(name);
            None
        }
        Err(error) => {
            tracing::warn!(replica = name, pid = entry.pid, %error, "a process of an earlier run can't be taken over");
            None
        }
    }
}

/// Ends what is left of a replica that is no longer configured.
pub(super) async fn end_stray(ledger: &Ledger, name: &str) {
    let Some((entry, mut session)) = leftover(ledger, name) else {
        return;
    };
    tracing::info!(
        replica = name,
        pid = entry.pid,
        "ends a process of an earlier run: its replica is no longer configured"
    );
    session.signal(Signal::TERM);
    let limit = Instant::now() + STRAY_GRACE;
    while !session.is_gone() {
        if Instant::now() >= limit {
            session.signal(Signal::KILL);
        }
        sleep(CLEAR_PAUSE).await;
    }
    ledger.remove(name);
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
