//! The turn from one process to the next, on both sides; the table of it stands in `app::upgrade`.

use pingora_core::server::ShutdownWatch;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use super::UpgradeError;
use super::control::{Order, Outcome};
use super::predecessor::Predecessor;
use super::successor::Successor;
use crate::app::beside::{Beside, take};
use crate::app::notify;
use crate::downstream::leaving::Leaving;
use crate::supervisor::{Supervisor, SupervisorError};

/// Replicas that were ready are found again within this time; else those that are will do.
const FOUND_AGAIN: Duration = Duration::from_secs(30);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often the old process says what keys have used there.
const TELL: Duration = Duration::from_secs(1);
/// The old process lets go of the lock before it says so; what still ends strays may hold it for a moment.
const LOCK_TRIES: u32 = 50;
/// Between two of them.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

impl Beside {
    /// The old side: hands everything to another process, or goes on.
    pub(in crate::app) async fn upgrade(
        &self,
        order: Order,
        supervisor: &mut Option<Supervisor>,
        shutdown: &mut ShutdownWatch,
    ) -> Outcome {
        tracing::info!("another process is to take over");
        match self.hand_over(order, supervisor, shutdown).await {
            Ok(pid) => {
                tracing::info!(pid, "another process serves; this one finishes what it has");
                Outcome::Done {
                    pid,
                    leaves: std::process::id(),
                }
            }
            Err(error) => {
                tracing::error!(%error, "the upgrade failed; this process goes on");
                Outcome::Failed(error.to_string())
            }
        }
    }

    async fn hand_over(
        &self,
        order: Order,
        supervisor: &mut Option<Supervisor>,
        shutdown: &mut ShutdownWatch,
    ) -> Result<u32, UpgradeError> {
        let mut successor = {
            let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
            let sockets = sockets.as_ref().ok_or(UpgradeError::Ending)?;
            Successor::start(order.program, sockets, self.ready_replicas())?
        };
        let turned = tokio::select! {
            turned = self.turn(&mut successor, supervisor) => turned,
            _ = shutdown.wait_for(|ends| *ends) => Err(UpgradeError::Ending),
        };
        if let Err(error) = turned {
            successor.end().await;
            self.take_back(supervisor);
            return Err(error);
        }
        self.leaving.send_replace(Leaving::HandedOver);
        drop(take(&self.sockets));
        let pid = successor.pid().unwrap_or_default();
        notify::main_process(pid);
        // Said before anything else can be: it serves, whatever becomes of this.
        let _ = self.say_spent(&mut successor).await;
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(successor);
        Ok(pid)
    }

    /// Tells what keys have used since the last time.
    async fn say_spent(&self, successor: &mut Successor) -> Result<(), UpgradeError> {
        let said = successor.spent(self.keys.hand_over()).await;
        said.inspect_err(|error| tracing::info!(%error, "nobody hears any more what keys use here"))
    }

    /// While this process finishes what it has, the other one hears what that takes: now and then, and when `finished`.
    pub(in crate::app) async fn keep_telling(&self, finished: impl Future<Output = ()>) {
        let Some(mut successor) = take(&self.successor) else {
            return finished.await;
        };
        let now_and_then = async {
            loop {
                tokio::time::sleep(TELL).await;
                if self.say_spent(&mut successor).await.is_err() {
                    // It has handed over itself, and left before this one.
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = now_and_then => {}
            () = finished => {}
        }
        let _ = self.say_spent(&mut successor).await;
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(successor);
    }

    async fn turn(&self, successor: &mut Successor, supervisor: &mut Option<Supervisor>) -> Result<(), UpgradeError> {
        successor.prepared().await?;
        let (remembered, fleet) = (self.remembered.clone(), self.flow.fleet.load_full());
        // On a thread for waiting: it is a few megabytes of disk.
        let _ = tokio::task::spawn_blocking(move || remembered.save(&fleet)).await;
        if let Some(supervisor) = supervisor {
            supervisor.let_go().await;
        }
        successor.serves().await
    }

    /// Launched replicas are this process's again.
    fn take_back(&self, supervisor: &mut Option<Supervisor>) {
        let Some(supervisor) = supervisor.as_mut().filter(|supervisor| supervisor.has_let_go()) else {
            return;
        };
        match supervisor.take_back(&self.start.settings, &self.start.specs, &self.start.simulate) {
            Ok(()) => self.follow_all(supervisor),
            Err(error) => tracing::error!(%error, "the replicas can't be taken back: nobody watches them"),
        }
    }

    fn ready_replicas(&self) -> Vec<String> {
        let fleet = self.flow.fleet.load();
        let ready = fleet.replicas().filter(|(_, replica)| replica.standing().is_up());
        ready.map(|(_, replica)| replica.name.to_string()).collect()
    }

    /// The new side: waits until what was ready at the old one is ready here.
    ///
    /// # Errors
    /// In words: nothing is, and something was.
    pub(in crate::app) async fn find_again(&self, predecessor: &Predecessor) -> Result<(), String> {
        let wanted = predecessor.ready();
        let all_found = async {
            loop {
                let found = self.ready_replicas();
                let fleet = self.flow.fleet.load();
                let mut here = fleet.replicas().map(|(_, replica)| &*replica.name);
                let missing =
                    here.any(|name| wanted.iter().any(|one| one == name) && !found.iter().any(|one| one == name));
                if !missing && (wanted.is_empty() || !found.is_empty()) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(FOUND_AGAIN, all_found).await.is_err() && self.ready_replicas().is_empty() {
            return Err(format!("no replica became ready within {FOUND_AGAIN:?}"));
        }
        Ok(())
    }

    /// The new side: says that it serves, and hears what keys have used at the old one until that has left.
    pub(in crate::app) fn go_on_from(&self, predecessor: Predecessor) {
        let keys = self.keys.clone();
        // On a thread for waiting: it lives as long as the old process, which `[server] drain` bounds.
        tokio::task::spawn_blocking(move || {
            let mut heard = predecessor.serving().and_then(|()| predecessor.spent());
            while let Ok(Some(spent)) = &heard {
                keys.go_on_from(spent);
                heard = predecessor.spent();
            }
            keys.go_on_from(&BTreeMap::new());
            match heard {
                Ok(_) => tracing::info!("the process before has left"),
                Err(error) => tracing::warn!(%error, "what keys have used there isn't known"),
            }
        });
    }

    /// Takes the replicas; after an upgrade their lock may be held for a moment.
    pub(in crate::app) async fn supervise(&self, takes_over: bool) -> Result<Supervisor, SupervisorError> {
        let mut tries = if takes_over { LOCK_TRIES } else { 1 };
        loop {
            tries -= 1;
            let start = &self.start;
            match Supervisor::start(start.settings.clone(), start.specs.clone(), start.simulate.clone()) {
                Err(SupervisorError::Locked { .. }) if tries > 0 => tokio::time::sleep(LOCK_PAUSE).await,
                started => return started.inspect(|supervisor| self.follow_all(supervisor)),
            }
        }
    }
}
