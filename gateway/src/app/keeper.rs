//! Holds the fleet to the configuration while it runs (B37): a reload adds, drops and renames replicas without failing a request.
//!
//! Enters: that the configuration has changed, or that other replicas were found. Leaves: a new fleet for requests, replicas that are
//! started, watched, drained and ended. It has one owner (`beside`), so that one change, or an upgrade, ends before the next begins.
//! `roster` says what changes; the order here is what loses nothing: who has gone gets no new request first, then its running ones end,
//! then it is ended. One that is only watched needs no draining: nobody ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::discovery::{self, Finders, News};
use super::remembered::Remembered;
use super::roster::{Change, Roster, Seat};
use super::{build, follow, health};
use crate::config::{Config, Live};
use crate::flow::Flow;
use crate::supervisor::{LauncherConfig, Leaving, Supervisor};
use crate::upstream::{Replica, Tls};

/// Between two looks whether a replica that goes has ended its requests. The first one comes after the requests that had chosen it.
const LOOK: Duration = Duration::from_millis(100);

/// Requests that are told to leave go on elsewhere; they have so long to be gone.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// See the module.
pub struct Keeper {
    live: Arc<Live>,
    flow: Arc<Flow>,
    supervisor: Supervisor,
    roster: Roster,
    watchers: Vec<Watcher>,
    /// What the roster is by.
    config: Arc<Config>,
    finders: Finders,
    remembered: Remembered,
    news: mpsc::Receiver<News>,
}

/// Who looks at one replica.
struct Watcher {
    replica: Arc<Replica>,
    tasks: [JoinHandle<()>; 2],
}

impl Watcher {
    fn end(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Keeper {
    /// The supervisor has started whom the roster has.
    pub fn new(
        live: Arc<Live>,
        flow: Arc<Flow>,
        supervisor: Supervisor,
        roster: Roster,
        remembered: Remembered,
    ) -> Keeper {
        let (tell, news) = mpsc::channel(discovery::PENDING);
        let mut finders = Finders::new(tell, flow.books.metrics.clone());
        finders.follow(&live.get());
        let mut keeper = Keeper {
            finders,
            remembered,
            news,
            config: live.get(),
            live,
            flow,
            supervisor,
            roster,
            watchers: Vec::new(),
        };
        keeper.tell_awaited();
        let seats: Vec<Seat> = keeper.roster.seats().cloned().collect();
        seats.iter().for_each(|seat| keeper.watch(seat));
        keeper
    }

    /// Waits until other replicas are found. Nothing is lost if this is dropped.
    pub async fn finds(&mut self) -> News {
        match self.news.recv().await {
            Some(news) => news,
            // Unreachable: the finders hold a sender.
            None => std::future::pending().await,
        }
    }

    /// Other replicas were found, or nobody was.
    pub fn found(&mut self, news: News) {
        if self.finders.heard(news) {
            self.apply(self.config.clone());
        }
        self.tell_awaited();
    }

    /// Requests wait for a first look for replicas.
    fn tell_awaited(&self) {
        for backend in self.flow.fleet.load().backends.iter() {
            backend.set_awaited(self.finders.is_awaited(&backend.name));
        }
    }

    /// The configuration has changed.
    pub fn reload(&mut self) {
        self.renew_certificates();
        let config = self.live.get();
        if Arc::ptr_eq(&config, &self.config) {
            return;
        }
        self.finders.follow(&config);
        self.apply(config);
    }

    fn apply(&mut self, config: Arc<Config>) {
        let wanted = match build::fleet(&self.finders.complete(&config), &self.tls()) {
            Ok(wanted) => wanted,
            Err(error) => return tracing::error!(%error, "backends and replicas stay as they were"),
        };
        self.supervisor.keep_secret(build::secret_variables(&config));
        let change = self.roster.change(wanted);
        self.flow.fleet.store(Arc::new(self.roster.fleet()));
        self.remembered.restore_late(&self.flow.fleet.load());
        self.tell_awaited();
        self.carry_out(change, config.server.drain);
        self.config = config;
    }

    /// Launched replicas, and the lock on them, are another process's from now on.
    pub async fn let_go(&mut self) {
        self.supervisor.let_go().await;
    }

    /// They are this one's again, if they were let go of.
    pub fn take_back(&mut self) {
        if !self.supervisor.has_let_go() {
            return;
        }
        if let Err(error) = self.supervisor.take_back(self.roster.specs()) {
            return tracing::error!(%error, "the replicas can't be taken back: nobody watches them");
        }
        let launched = self.roster.seats().filter(|seat| seat.spec.launcher.is_process());
        let launched: Vec<Seat> = launched.cloned().collect();
        for seat in &launched {
            if let Some(watcher) = self.watcher(seat) {
                watcher.end();
            }
            self.watch(seat);
        }
    }

    /// The gateway goes down: the replicas are to be ended.
    pub fn into_supervisor(self) -> Supervisor {
        self.supervisor
    }

    /// Files may have been renewed, whatever the configuration says.
    fn renew_certificates(&self) {
        for tls in self.tls() {
            if let Err(error) = tls.reload() {
                tracing::error!(setting = error.key(), %error, "TLS to replicas stays as it was");
            }
        }
    }

    /// TLS to replicas, each once: those of a backend share it.
    fn tls(&self) -> Vec<Arc<Tls>> {
        let mut all: Vec<Arc<Tls>> = Vec::new();
        for tls in self.roster.seats().filter_map(|seat| seat.spec.tls.as_ref()) {
            if !all.iter().any(|other| Arc::ptr_eq(other, tls)) {
                all.push(tls.clone());
            }
        }
        all
    }

    /// What has gone lets go of its name before somebody else takes it.
    fn carry_out(&mut self, change: Change, limit: Duration) {
        for seat in change.dropped {
            self.drop_out(seat, limit);
        }
        let changed = change.changed.iter();
        let changed: Vec<_> = changed
            .map(|(was, seat)| (was.clone(), seat.spec.name.clone(), seat.spec.key.clone()))
            .collect();
        self.supervisor.change(&changed);
        for (was, seat) in &change.changed {
            if *was != seat.spec.name {
                tracing::info!(replica = %seat.spec.name, was, backend = %seat.backend.name, "the replica has another name");
                self.flow.books.metrics.replica_gone(was);
            }
        }
        for seat in &change.changed {
            health::show(&self.flow, &seat.1.replica);
        }
        for seat in change.added {
            tracing::info!(replica = %seat.spec.name, backend = %seat.backend.name, "the replica is added");
            match self.supervisor.add(seat.spec.clone()) {
                Ok(_) => self.watch(&seat),
                Err(error) => tracing::error!(replica = %seat.spec.name, %error, "the replica can't be started"),
            }
        }
        for replica in change.outdated {
            tracing::warn!(%replica, "the replica runs on with the settings that it was started with: others need a restart");
        }
    }

    fn drop_out(&mut self, seat: Seat, limit: Duration) {
        tracing::info!(replica = %seat.spec.name, backend = %seat.backend.name, running = seat.replica.in_flight(), "the replica is dropped");
        self.flow.books.metrics.replica_gone(&seat.spec.name);
        let leaving = self.supervisor.release(&seat.spec.name);
        let watcher = self.watcher(&seat);
        tokio::spawn(leave(seat, watcher, leaving, limit));
    }

    /// Who looks at it, looked up for the last time.
    fn watcher(&mut self, seat: &Seat) -> Option<Watcher> {
        let is_its = |watcher: &Watcher| Arc::ptr_eq(&watcher.replica, &seat.replica);
        let place = self.watchers.iter().position(is_its)?;
        Some(self.watchers.swap_remove(place))
    }

    fn watch(&mut self, seat: &Seat) {
        let Some(states) = self.supervisor.watch(&seat.spec.name) else {
            return;
        };
        let follow = follow::follow(
            seat.backend.clone(),
            seat.replica.clone(),
            seat.slot,
            seat.spec.tls.clone(),
            states,
            self.flow.clone(),
        );
        let watch = health::Watch {
            live: self.live.clone(),
            flow: self.flow.clone(),
            backend: seat.backend.clone(),
            slot: seat.slot,
            replica: seat.replica.clone(),
        };
        self.watchers.push(Watcher {
            replica: seat.replica.clone(),
            tasks: [tokio::spawn(follow), tokio::spawn(watch.run())],
        });
    }
}

/// The end of a replica that gets no new request: its running ones first, if it is ours to end.
async fn leave(seat: Seat, watcher: Option<Watcher>, leaving: Option<Leaving>, limit: Duration) {
    if let Some(watcher) = watcher {
        watcher.end();
    }
    let replica = &seat.replica;
    let is_ours = !matches!(seat.spec.launcher, LauncherConfig::External(_));
    if is_ours && !has_ended(replica, limit).await {
        let left = replica.flights.leave();
        tracing::warn!(replica = %seat.spec.name, left, ?limit, "the drain's time is over: what runs on the dropped replica goes on elsewhere");
        has_ended(replica, LAST_REQUESTS).await;
    }
    if let Some(leaving) = leaving {
        leaving.end().await;
    }
    replica.pool.clear();
    if is_ours {
        tracing::info!(replica = %seat.spec.name, "nothing is left of the dropped replica");
    }
}

async fn has_ended(replica: &Replica, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        tokio::time::sleep(LOOK).await;
        if replica.in_flight() == 0 {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
    }
}
